//! `lode bench`: how fast an entry runs on this machine, with seeded inputs and parameters.

use super::common::{self, FAILED, USAGE};
use crate::putln;
use crate::{
    cli::{Bench, MessageFormat},
    pipeline::Options,
};
use exec::HostTensor;
use std::time::{Duration, Instant};

/// Fewer runs than this give no median.
const MIN_RUNS: usize = 5;

/// Runs the entry for a while; prints the median and least time of a call, and tokens a second (the product of the run-time dims).
pub fn run(args: &Bench, format: MessageFormat) -> u8 {
    bench(args, format).unwrap_or_else(|code| code)
}

fn bench(args: &Bench, format: MessageFormat) -> Result<u8, u8> {
    let options = Options {
        overrides: common::overrides(&args.model)?,
        no_optimize: args.no_optimize,
        by_definition: args.no_optimize,
        locked: args.model.locked,
        ..Options::default()
    };
    let dims = common::dims(&args.dims)?;
    let mut session = common::session(common::library(&args.model, &options, format)?, args.threads)?;
    let failed = |e: exec::ExecError| common::fail_with(&e);
    let manifest = session.manifest.clone();
    if let Some(d) = manifest.dims.iter().find(|d| !dims.contains_key(d.as_str())) {
        eprintln!("--dims has to give {d}; the model has {}", manifest.dims.join(", "));
        return Err(USAGE);
    }
    session.store.initialise(&manifest, 0).map_err(failed)?;
    let entry = session.entry(&args.entry).map_err(failed)?.clone();
    let inputs = common::inputs(&entry, &dims).map_err(|name| {
        eprintln!("{name} depends on more than the dims given");
        FAILED
    })?;
    let given: Vec<(&str, &HostTensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
    session.admit(&session.peak(&[(&args.entry, &dims)]).map_err(failed)?, None).map_err(failed)?;
    for _ in 0..2 {
        session.run(&args.entry, &dims, &given).map_err(failed)?;
    }
    let (mut times, begin) = (Vec::new(), Instant::now());
    while times.len() < MIN_RUNS || begin.elapsed() < Duration::from_secs_f64(args.seconds) {
        let since = Instant::now();
        session.run(&args.entry, &dims, &given).map_err(failed)?;
        times.push(since.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    let (median, least) = (times[times.len() / 2], times[0]);
    let tokens = dims.values().product::<i64>() as f64;
    putln!(
        "{} {}: {:.2} ms median, {:.2} ms least of {} calls; {:.0} tokens/s",
        manifest.name,
        args.entry,
        median * 1e3,
        least * 1e3,
        times.len(),
        tokens / median
    );
    Ok(0)
}
