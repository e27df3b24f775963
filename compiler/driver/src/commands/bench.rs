//! `lode bench`: how fast an entry runs on this machine, with seeded inputs and parameters.

use super::common::{self, FAILED, LONGEST, USAGE};
use crate::putln;
use crate::{
    cli::{self, Bench, MessageFormat, Model, On},
    pipeline::Options,
};
use base::DimEnv;
use exec::{HostTensor, Session, trace::Trace};
use std::time::{Duration, Instant};

/// Fewer runs than this give no median.
const MIN_RUNS: usize = 5;

/// Runs for the cost of starting steps.
const COST_RUNS: usize = 20;

/// Runs the entry for a while; prints the median and least time of a call, and tokens a second (the product of the run-time dims).
pub fn run(args: &Bench, format: MessageFormat) -> u8 {
    bench(args, format).unwrap_or_else(|code| code)
}

/// A session, its dims and made-up inputs of an entry.
struct Subject {
    session: Session,
    dims: DimEnv,
    inputs: Vec<(String, HostTensor)>,
}

impl Subject {
    fn new(
        model: &Model,
        (entry, given): (&str, &[String]),
        (on, threads): (&On, Option<usize>),
        no_optimize: bool,
        format: MessageFormat,
    ) -> Result<Subject, u8> {
        let options = Options {
            overrides: common::overrides(model)?,
            no_optimize,
            by_definition: no_optimize,
            gpu: on.is_gpu(),
            locked: model.locked,
            ..Options::default()
        };
        let dims = common::dims(given)?;
        let mut session = common::session_on(common::library(model, &options, format)?, on, threads)?;
        let failed = |e: exec::ExecError| common::fail_with(&e);
        let manifest = session.manifest.clone();
        if let Some(d) = manifest.dims.iter().find(|d| !dims.contains_key(d.as_str())) {
            eprintln!("--dims has to give {d}; the model has {}", manifest.dims.join(", "));
            return Err(USAGE);
        }
        session.admit(&session.peak(&[(entry, &dims)]).map_err(failed)?, None, 0).map_err(failed)?;
        session.store.initialise(&manifest, 0).map_err(failed)?;
        let inputs = common::inputs(session.entry(entry).map_err(failed)?, &dims).map_err(|name| {
            eprintln!("{name} depends on more than the dims given");
            FAILED
        })?;
        Ok(Subject { session, dims, inputs })
    }
}

fn bench(args: &Bench, format: MessageFormat) -> Result<u8, u8> {
    if !(args.seconds >= 0.0 && args.seconds <= LONGEST) {
        eprintln!("--seconds takes a number, at least 0 and at most {LONGEST}");
        return Err(USAGE);
    }
    let (entry, on) = (args.entry.as_str(), (&args.on, args.threads));
    let Subject { mut session, dims, inputs } = Subject::new(&args.model, (entry, &args.dims), on, args.no_optimize, format)?;
    let failed = |e: exec::ExecError| common::fail_with(&e);
    let given: Vec<(&str, &HostTensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
    for _ in 0..2 {
        session.run(entry, &dims, &given).map_err(failed)?;
    }
    let (mut times, begin) = (Vec::new(), Instant::now());
    while times.len() < MIN_RUNS || begin.elapsed() < Duration::from_secs_f64(args.seconds) {
        let since = Instant::now();
        session.run(entry, &dims, &given).map_err(failed)?;
        times.push(since.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    let (median, least) = (times[times.len() / 2], times[0]);
    let tokens = dims.values().product::<i64>() as f64;
    putln!(
        "{} {entry} on {}: {:.3} ms median, {:.3} ms least of {} calls; {:.0} tokens/s",
        session.manifest.name,
        session.device_name(),
        median * 1e3,
        least * 1e3,
        times.len(),
        tokens / median
    );
    if let Some(c) = session.costs(entry, &dims, &given, COST_RUNS).map_err(failed)? {
        let steps = (c.kernels + c.others).max(1) as f64;
        putln!("{} kernels, {} copies a call", c.kernels, c.others);
        for (what, (start, total)) in [("one by one", c.plain), ("recorded anew", c.anew), ("recorded", c.recorded)] {
            let (each, all) = (start / steps * 1e6, total / steps * 1e6);
            putln!("{what:<13} {each:.3} us each to start, {all:.3} us each until done, {:.3} ms in all", total * 1e3);
        }
        putln!("{:<13} {:.4} ms each", "in a row", c.in_a_row * 1e3);
    }
    if args.profile || args.trace.is_some() {
        session.profile = args.profile.then(Default::default);
        session.trace = args.trace.is_some().then(|| Trace::new(&session.device_name()));
        let runs = if args.trace.is_some() { 1 } else { MIN_RUNS };
        (0..runs).try_for_each(|_| session.run(entry, &dims, &given).map(|_| ())).map_err(failed)?;
        let profile = session.profile.take().unwrap_or_default();
        let rows = profile.rows();
        let all: u64 = rows.iter().map(|r| r.3).sum();
        for (_, step, calls, ns) in rows.into_iter().take(40) {
            let (each, share) = (ns as f64 / 1e3 / calls as f64, 100.0 * ns as f64 / all as f64);
            putln!("{share:>5.1} % {:>6} calls {each:>10.2} us each  {step}", calls / runs as u64);
        }
        if let (Some(path), Some(trace)) = (&args.trace, session.trace.take()) {
            trace.write(path).map_err(failed)?;
        }
    }
    Ok(0)
}

/// `lode trace`: records one run after two that warm up.
pub fn trace(args: &cli::Trace, format: MessageFormat) -> u8 {
    let record = || -> Result<(), u8> {
        let (entry, on) = (args.entry.as_str(), (&args.on, args.threads));
        let Subject { mut session, dims, inputs } = Subject::new(&args.model, (entry, &args.dims), on, false, format)?;
        let failed = |e: exec::ExecError| common::fail_with(&e);
        let given: Vec<(&str, &HostTensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
        for recorded in [false, false, true] {
            session.trace = recorded.then(|| Trace::new(&session.device_name()));
            session.run(entry, &dims, &given).map_err(failed)?;
        }
        session.trace.take().expect("the last run was recorded").write(&args.out).map_err(failed)?;
        putln!("{}", args.out.display());
        Ok(())
    };
    record().map_or_else(|code| code, |()| 0)
}
