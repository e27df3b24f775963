//! `lode train`: compiles, trains, and ends with a sample.

use super::{
    common,
    ranks::{self, Process},
};
use crate::putln;
use crate::{
    cli::{Carrier, MessageFormat, Train},
    pipeline::{Front, Options},
};
use exec::{
    data::Text,
    generate,
    plan::Peak,
    ranks::Silent,
    trace::Trace,
    train::{self, Figures, Report},
};
use indicatif::{ProgressBar, ProgressStyle};
use library::Library;
use std::{collections::BTreeMap, time::Instant};

/// Trains a model.
pub fn run(args: &Train, format: MessageFormat) -> u8 {
    start(args, format).map_or_else(|code| code, |()| 0)
}

struct Progress {
    bar: ProgressBar,
    val: Option<f64>,
    plain: bool,
}

impl Progress {
    fn new(steps: u64) -> Progress {
        use std::io::IsTerminal;
        let bar = ProgressBar::new(steps);
        let style = ProgressStyle::with_template("{bar:24} {pos}/{len} {msg} [{elapsed}<{eta}]").expect("the template is valid");
        bar.set_style(style);
        Progress { bar, val: None, plain: !std::io::stderr().is_terminal() }
    }
}

impl Report for Progress {
    fn start(&mut self, peak: &Peak, first: u64, steps: u64) {
        eprintln!("memory {:.1} MiB\n{}", peak.total() as f64 / f64::from(1 << 20), peak.table());
        if first > 0 {
            eprintln!("going on from step {first}");
        }
        self.bar.set_length(steps);
        self.bar.set_position(first);
    }
    fn step(&mut self, f: &Figures) {
        self.val = f.val_loss.or(self.val);
        let val = self.val.map_or(String::new(), |v| format!(" val {v:.3}"));
        let balance = f.max_violation.map_or(String::new(), |v| format!(" max-vio {v:.2}"));
        let text = format!(
            "loss {:.3}{val} {:.0} tokens/s{balance} {:.0} MiB",
            f.loss,
            f.tokens_per_s,
            f.peak_bytes as f64 / f64::from(1 << 20)
        );
        if self.plain {
            if f.val_loss.is_some() {
                eprintln!("step {} {text}", f.step);
            }
        } else {
            self.bar.set_position(f.step);
            self.bar.set_message(text);
        }
    }
    fn traffic(&mut self, sent: &exec::ranks::Traffic) {
        let mib = |bytes: u64| format!("{:.2} MiB", bytes as f64 / f64::from(1 << 20));
        let across = match sent.across {
            0 => String::new(),
            n => format!("; {} of it are for other nodes, where {} go", mib(n), mib(sent.crossed)),
        };
        let once = match sent.once {
            0 => String::new(),
            n => format!(", {} if equal rows went once a node", mib(n)),
        };
        let text = format!("experts: ranks send {} a step{once}{across}", mib(sent.plain));
        self.bar.suspend(|| eprintln!("{text}"));
    }
    fn measured(&mut self, m: &exec::ranks::Measured) {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let mut lines = Vec::new();
        for (stage, s) in m.stages.iter().enumerate() {
            let [forward, input, weight, update] = s.ms;
            let exchange: f64 = s.exchange_ms.iter().sum();
            let exchange = if exchange > 0.0 { format!(", exchanges {exchange:.3}") } else { String::new() };
            lines.push(format!(
                "stage {stage:<3} measured, in ms: forward {forward:.3}, gradients of inputs {input:.3}, of weights {weight:.3}{exchange}; update {update:.3}"
            ));
        }
        lines.extend(m.pair_ms.map(|ms| format!("pairs     measured, in ms: {ms:.3} for a forward and a backward as one list")));
        for (rank, r) in m.ranks.iter().enumerate() {
            let [stored, arenas, between] = [r.stored, r.arenas, r.between].map(mib);
            lines.push(format!(
                "rank {rank:<4} measured, in MiB: {stored:.2} stored, {arenas:.2} while entries run, {between:.2} between them"
            ));
        }
        if !m.sent.is_empty() {
            let all: u64 = m.sent.iter().map(|(_, n)| n).sum();
            let parts: Vec<String> = m.sent.iter().map(|(name, n)| format!("{name} {:.3}", mib(*n))).collect();
            lines.push(format!("ranks send {:.3} MiB a step: {}", mib(all), parts.join(", ")));
        }
        self.bar.suspend(|| eprintln!("{}", lines.join("\n")));
    }
    fn warn(&mut self, text: String) {
        self.bar.suspend(|| eprintln!("warning: {text}"));
    }
}

/// What is trained: flags first, then what the model sets.
fn settings(args: &Train, set: &BTreeMap<String, f64>) -> train::Options {
    let setting = |name: &str, default: f64| set.get(name).copied().unwrap_or(default);
    train::Options {
        batch: args.batch.unwrap_or(setting("batch", 8.0) as usize),
        seq: args.seq.unwrap_or(setting("seq", 128.0) as usize),
        micro_batches: args.micro_batches.unwrap_or(setting("micro_batches", 1.0) as usize),
        steps: args.steps.unwrap_or(setting("steps", 100.0) as u64),
        warmup: setting("warmup", 0.0) as u64,
        lr: args.lr.unwrap_or(setting("lr", 1e-3)),
        floor: setting("floor", 0.1),
        clip: setting("clip", 1.0),
        seed: args.seed.unwrap_or(setting("seed", 0.0) as u64),
        eval_every: args.eval_every.unwrap_or(setting("eval_every", 0.0) as u64),
        eval_rows: 64,
        save_every: args.save_every,
        keep: 3,
        out: args.out.clone(),
        resume: args.resume,
        memory_limit: args.memory_limit.map(|m| m << 20),
    }
}

/// Trains over ranks; rank 0 reports.
fn over_ranks(args: &Train, process: &Process, front: &Front, options: &Options, clock: Instant) -> Result<(), u8> {
    let program = front.program.as_ref().expect("checked by `front`");
    let mut o = settings(args, &program.settings);
    o.micro_batches = args.micro_batches.or(program.pipeline.micro_batches).unwrap_or(o.micro_batches);
    if process.world.rank > 0 {
        return ranks::train(args, process, front, &mut o, options, &mut Silent).map(drop);
    }
    let mut progress = Progress::new(o.steps);
    let outcome = ranks::train(args, process, front, &mut o, options, &mut progress);
    progress.bar.finish_and_clear();
    let val = outcome?;
    eprintln!("trained {} steps in {:.0} s", o.steps, clock.elapsed().as_secs_f64());
    putln!("validation loss {val:.4} nats a token");
    Ok(())
}

fn start(args: &Train, format: MessageFormat) -> Result<(), u8> {
    let options = Options {
        overrides: common::overrides(&args.model)?,
        no_optimize: args.no_optimize,
        by_definition: args.no_optimize,
        locked: args.model.locked,
        gpu: args.on.is_gpu(),
        ..Options::default()
    };
    let clock = Instant::now();
    let process = ranks::process(&args.ranks)?;
    let r = &args.ranks;
    let several = [r.replicas, r.expert_parallel].into_iter().flatten().any(|n| n != 1);
    let asked = process.world.size > 1 || r.cut.ranks.is_some() || several || r.fabric == Carrier::Nccl;
    if r.fabric == Carrier::Nccl && !args.on.is_gpu() {
        eprintln!("--fabric nccl is for GPUs: --backend cuda");
        return Err(common::USAGE);
    }
    let is_built = args.model.file.extension().is_some_and(|x| x == library::file::EXTENSION);
    if asked && is_built {
        eprintln!("{} is built: it can no longer be cut into stages", args.model.file.display());
        return Err(common::USAGE);
    }
    if !is_built {
        let front = common::front(&args.model, &options, format)?;
        let declared = &front.program.as_ref().expect("checked by `front`").pipeline;
        let several = [declared.replicas, declared.expert_parallel].into_iter().flatten().any(|n| n > 1);
        let says = declared.ranks.is_some() || several;
        if asked || (says && !args.on.is_gpu()) {
            if options.locked {
                eprintln!(
                    "--locked is for one process: a lock has the steps of whole entries, and ranks run stages of them, which `lode tune` does not measure"
                );
                return Err(common::USAGE);
            }
            return over_ranks(args, &process, &front, &options, clock);
        }
        if says {
            eprintln!(
                "note: the model's pipeline is left out: it is trained in one piece on one GPU, unless --ranks or a launcher asks for ranks"
            );
        }
        let library = common::compile(&front, &options)?;
        return whole(args, library, clock);
    }
    whole(args, common::library(&args.model, &options, format)?, clock)
}

/// Trains the model in one piece.
fn whole(args: &Train, library: Library, clock: Instant) -> Result<(), u8> {
    if library.manifest.entries.iter().all(|e| e.name != "update") {
        eprintln!("{} has no train item", args.model.file.display());
        return Err(common::FAILED);
    }
    let o = settings(args, &library.manifest.settings);
    let steps = o.steps;
    let text = Text::read(&args.data, o.seq).map_err(|e| common::fail_with(&e))?;
    let elems: i64 = library.manifest.params.iter().map(|p| p.shape.iter().product::<i64>()).sum();
    eprintln!(
        "{}: {elems} parameters, {} kernels, ready in {:.2} s",
        library.manifest.name,
        library.manifest.kernels.len(),
        clock.elapsed().as_secs_f64()
    );
    let mut session = common::session_on(library, &args.on, args.threads)?;
    session.profile = args.profile.then(Default::default);
    session.trace = args.trace.is_some().then(|| Trace::new(&session.device_name()));
    let mut progress = Progress::new(steps);
    let outcome = train::train(&mut session, &text, &o, &mut progress);
    progress.bar.finish_and_clear();
    if let (Some(path), Some(trace)) = (&args.trace, session.trace.take()) {
        trace.write(path).map_err(|e| common::fail_with(&e))?;
    }
    let val = outcome.map_err(|e| common::fail_with(&e))?;
    for (entry, step, calls, ns) in session.profile.take().iter().flat_map(|p| p.rows()).take(40) {
        eprintln!("{entry:<8} {calls:>7} calls {:>9.1} ms  {step}", ns as f64 / 1e6);
    }
    eprintln!("trained {steps} steps in {:.0} s", clock.elapsed().as_secs_f64());
    putln!("validation loss {val:.4} nats a token");
    if args.sample > 0 {
        putln!("---");
        let g = generate::Options {
            length: args.sample,
            temperature: 0.8,
            top_k: None,
            top_p: Some(0.95),
            context: o.seq,
            seed: o.seed,
        };
        super::generate::print(&mut session, b"\n", &g).map_err(|e| common::fail_with(&e))?;
    }
    Ok(())
}
