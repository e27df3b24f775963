//! `lode tune`: measures a model's kernels on this machine, each alone, and keeps times and the fastest tilings in a lock.
//!
//! The lock changes what the optimiser takes to be cheap, and so the program; what the new program has and the lock lacks is measured in
//! another round. The file is written whenever something was found, under another name first: it is whole or not there, and whoever
//! interrupts keeps the best so far.

use super::common::{self, FAILED, LONGEST, USAGE};
use crate::{
    cli::{MessageFormat, Tune},
    pipeline::{self, Lock, Options},
    putln,
};
use base::DimEnv;
use exec::measure::Measured;
use library::{Class, Job, Manifest, Step, file};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::{Duration, Instant},
};
use tile::{Lowered, Tilings, Tuning, tuning};

/// Rounds of measuring and compiling anew; the program settles in two or three.
const ROUNDS: usize = 4;
/// Time between two writes of the lock.
const SAVE_EVERY: Duration = Duration::from_millis(500);

/// Tunes; prints what was found.
pub fn run(args: &Tune, format: MessageFormat) -> u8 {
    tune(args, format).unwrap_or_else(|code| code)
}

/// `60s`, `5m`, `90`.
fn budget(text: &str) -> Option<Duration> {
    let (number, unit) = match text.strip_suffix('m') {
        Some(n) => (n, 60.0),
        None => (text.strip_suffix('s').unwrap_or(text), 1.0),
    };
    let seconds = number.parse::<f64>().ok()? * unit;
    (seconds > 0.0 && seconds <= LONGEST).then(|| Duration::from_secs_f64(seconds))
}

fn tune(args: &Tune, format: MessageFormat) -> Result<u8, u8> {
    let Some(budget) = budget(&args.budget) else {
        eprintln!("--budget takes a time such as 60s or 5m, not '{}'", args.budget);
        return Err(USAGE);
    };
    if args.model.locked {
        eprintln!("--locked is for commands that read a lock");
        return Err(USAGE);
    }
    if args.model.file.extension().is_some_and(|e| e == file::EXTENSION) {
        eprintln!("{} is built: tune its source", args.model.file.display());
        return Err(USAGE);
    }
    let deadline = Instant::now() + budget;
    let gpu = args.on.is_gpu();
    let options = Options { overrides: common::overrides(&args.model)?, gpu, ..Options::default() };
    let front = common::front(&args.model, &options, format)?;
    let program = front.program.as_ref().expect("checked by `front`");
    let path = args.out.clone().unwrap_or_else(|| common::lock_path(&args.model.file));
    if let Some(table) = &args.table {
        known(table, &Tuning::of_target(gpu).target)?;
    }
    let mut search = Search {
        lock: Tuning {
            device: if gpu { gpu_name(args.on.device)? } else { device(args.threads) },
            program: Some((program.module.name.clone(), pipeline::program_hash(program))),
            dims: dims(program, &args.dims)?,
            times: BTreeMap::new(),
            tilings: BTreeMap::new(),
            ..Tuning::of_target(gpu).clone()
        },
        samples: BTreeMap::new(),
        parts: Parts::default(),
        tried: BTreeMap::new(),
        rates: Rates::default(),
    };
    let mut saved = Instant::now();
    let mut whole = false;
    for round in 0..ROUNDS {
        let lock = Lock { path: path.display().to_string(), tuning: search.lock.clone() };
        let options = Options { lock: (round > 0).then_some(lock), ..options.clone() };
        let back = |e| common::back_failed(&e);
        let (module, _) = pipeline::middle(program, &options).map_err(back)?;
        let every = tile::lower_with(&module, pipeline::lowering(&options), Tilings::Every)
            .map_err(|e| back(pipeline::BackError::Target(e)))?;
        if round > 0 && pipeline::missing(&pipeline::lower(&module, &options).map_err(back)?, &search.lock).is_empty() {
            whole = true;
            break;
        }
        if Instant::now() >= deadline {
            break;
        }
        let library = pipeline::library(program, &module, &every, &front.sources, &options).map_err(back)?;
        let mut session = common::session_on(library, &args.on, args.threads)?;
        let manifest = session.manifest.clone();
        session.store.initialise(&manifest, 0).map_err(|e| common::fail_with(&e))?;
        search.parts = Parts::new(&every, &manifest, &search.lock.dims);
        let entries: Vec<_> = manifest.entries.iter().filter(|e| !e.is_variant()).collect();
        for (i, entry) in entries.iter().enumerate() {
            let inputs = match common::inputs(entry, &search.lock.dims) {
                Ok(inputs) => inputs,
                Err(name) => {
                    eprintln!("--dims has to give every dim; {name} of {} depends on more", entry.name);
                    return Err(USAGE);
                }
            };
            let given: Vec<_> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
            // Each entry gets its share of what is left.
            let left = deadline.saturating_duration_since(Instant::now());
            let until = Instant::now() + left / u32::try_from(entries.len() - i).unwrap_or(1);
            let dims = search.lock.dims.clone();
            let mut each = |m: Measured| {
                search.note(&every, &m);
                if args.table.is_none() && saved.elapsed() > SAVE_EVERY {
                    saved = Instant::now();
                    // A write that fails is told at the end.
                    let _ = write(&path, &search.lock.to_string());
                }
            };
            let done = session.measure(&entry.name, &dims, &given, until, &mut each).map_err(|e| common::fail_with(&e))?;
            let state = if done { "measured" } else { "in part: the budget is spent" };
            eprintln!("round {}, {}: {state}", round + 1, entry.name);
        }
    }
    let (out, text) = match &args.table {
        Some(table) => (table, search.table(table)?.to_string()),
        None => (&path, search.lock.to_string()),
    };
    write(out, &text).map_err(|e| {
        eprintln!("{}: {e}", out.display());
        FAILED
    })?;
    putln!("{}: {} times, {} tilings", out.display(), search.lock.times.len(), search.lock.tilings.len());
    for (problem, tried) in &search.tried {
        let Some(best) = search.lock.tilings.get(problem) else { continue };
        let usual = tried.iter().find(|t| t.usual).map_or(0.0, |t| t.ns);
        let least = tried.iter().map(|t| t.ns).fold(f64::INFINITY, f64::min);
        putln!("  {problem}: {best} of {}, {:.2} of the usual one's time", tried.len(), least / usual);
    }
    if !whole && args.table.is_none() {
        eprintln!("note: the budget did not suffice for every step; a larger --budget completes the lock");
    }
    Ok(0)
}

/// What this machine is called.
fn device(threads: Option<usize>) -> String {
    let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    format!("{}, {threads} threads", codegen::host_cpu())
}

/// The table of a target at a path, if there is one.
fn known(path: &Path, target: &str) -> Result<Option<Tuning>, u8> {
    let Ok(text) = std::fs::read_to_string(path) else { return Ok(None) };
    let table = Tuning::parse(&text, &path.display().to_string()).map_err(|e| common::fail_with(&e))?;
    if table.target != target {
        eprintln!("{} is of {}, what is measured of {target}", path.display(), table.target);
        return Err(USAGE);
    }
    Ok(Some(table))
}

/// What a GPU is called.
fn gpu_name(number: usize) -> Result<String, u8> {
    let all = device::gpus().map_err(|e| common::fail_with(&e))?;
    Ok(all.get(number).map_or_else(|| format!("GPU {number}"), |g| g.name.clone()))
}

/// The dims given; of others, what the model trains with.
fn dims(program: &hir::Program, given: &[String]) -> Result<DimEnv, u8> {
    let given = common::dims(given)?;
    if let Some(unknown) = given.keys().find(|d| !program.dims.iter().any(|x| **x == ***d)) {
        eprintln!("the model has no run-time dim {unknown}; it has {}", program.dims.join(", "));
        return Err(USAGE);
    }
    let setting = |name: &str, or: f64| program.settings.get(name).copied().unwrap_or(or) as i64;
    let usual = |d: &str| match d {
        "B" => setting("batch", 1.0),
        _ => setting("seq", 128.0),
    };
    Ok(program.dims.iter().map(|d| (d.as_str().into(), given.get(d.as_str()).copied().unwrap_or_else(|| usual(d)))).collect())
}

/// A tiling that was measured. # Units: nanoseconds of all launches of an entry.
#[derive(Clone, Debug)]
struct Tried {
    tiling: String,
    usual: bool,
    ns: f64,
}

/// The best rates seen.
#[derive(Clone, Debug, Default)]
struct Rates {
    launch_ns: Option<f64>,
    bytes_per_ns: f64,
    products: BTreeMap<base::DType, f64>,
}

/// Everything found so far.
struct Search {
    lock: Tuning,
    /// The times of each bucket: of each job in it, of the fastest kernel.
    samples: BTreeMap<Job, BTreeMap<Job, f64>>,
    /// Of the library being measured.
    parts: Parts,
    tried: BTreeMap<String, Vec<Tried>>,
    rates: Rates,
}

/// What a library's kernels are of: an op may take several, one after the other, as attention's gradient does, and each says the work of all.
#[derive(Clone, Debug, Default)]
struct Parts {
    /// For each work the kernels of each op that does it, and how often it launches each.
    of: BTreeMap<Job, BTreeSet<BTreeMap<usize, usize>>>,
    /// Those that are tilings of one problem: they do the same.
    tilings: BTreeSet<usize>,
    /// The times of kernels so far.
    ns: BTreeMap<(Job, usize), f64>,
}

impl Parts {
    fn new(lowered: &Lowered, manifest: &Manifest, dims: &DimEnv) -> Parts {
        let mut jobs: BTreeMap<usize, BTreeSet<Job>> = BTreeMap::new();
        for entry in &manifest.entries {
            each_launch(&entry.steps, &mut |kernel, step| {
                jobs.entry(kernel).or_default().extend(step.job(&entry.buffers, dims));
            });
        }
        let mut ops: BTreeMap<_, BTreeMap<usize, usize>> = BTreeMap::new();
        for l in &lowered.launched {
            *ops.entry((&l.func, &l.loops, l.node)).or_default().entry(l.kernel).or_default() += 1;
        }
        let mut of: BTreeMap<Job, BTreeSet<BTreeMap<usize, usize>>> = BTreeMap::new();
        for kernels in ops.into_values() {
            for job in kernels.keys().filter_map(|k| jobs.get(k)).flatten() {
                let does = |(k, _): &(&usize, &usize)| jobs.get(k).is_some_and(|all| all.contains(job));
                let same = kernels.iter().filter(does).map(|(k, n)| (*k, *n));
                of.entry(job.clone()).or_default().insert(same.collect());
            }
        }
        Parts { of, tilings: lowered.tilings.iter().map(|(.., kernel)| *kernel).collect(), ns: BTreeMap::new() }
    }

    /// Notes the time of a kernel; what the fastest op takes that does this work, once all of its kernels are known.
    fn note(&mut self, kernel: usize, job: &Job, ns: f64) -> Option<f64> {
        let known = self.ns.entry((job.clone(), kernel)).or_insert(ns);
        *known = known.min(ns);
        let ops = self.of.get(job)?.iter().filter(|kernels| kernels.contains_key(&kernel));
        let whole = |kernels: &BTreeMap<usize, usize>| {
            let (mut sum, mut least) = (0.0, None);
            for (k, launches) in kernels {
                let ns = *self.ns.get(&(job.clone(), *k))?;
                if self.tilings.contains(k) {
                    least = Some(least.map_or(ns, |l: f64| l.min(ns)));
                } else {
                    sum += *launches as f64 * ns;
                }
            }
            Some(sum + least.unwrap_or(0.0))
        };
        ops.filter_map(whole).min_by(f64::total_cmp)
    }
}

/// The launches among steps, those in loops too.
fn each_launch(steps: &[Step], visit: &mut dyn FnMut(usize, &Step)) {
    for step in steps {
        match step {
            Step::Launch { kernel, .. } => visit(*kernel, step),
            Step::Loop { body, .. } => each_launch(body, visit),
            Step::Gemm(_) | Step::GroupedGemm(_) | Step::Exchange(_) | Step::Copy { .. } | Step::Zero { .. } => {}
        }
    }
}

/// A copy that moves at least this much shows what memory gives. # Units: bytes; more than caches hold. Other steps are said to read all of what they pick
/// from.
const LARGE_BYTES: f64 = 16e6;

impl Search {
    fn note(&mut self, lowered: &Lowered, m: &Measured) {
        self.rates.launch_ns = Some(self.rates.launch_ns.unwrap_or(f64::INFINITY).min(m.ns));
        if m.zeros {
            // It has the job of a copy, and reads nothing.
            return;
        }
        let whole = match m.kernel {
            Some(kernel) => self.parts.note(kernel, &m.job, m.ns),
            None => Some(m.ns),
        };
        if let Some(ns) = whole {
            let of_bucket = self.samples.entry(tuning::bucket(&m.job)).or_default();
            let known = of_bucket.entry(m.job.clone()).or_insert(ns);
            *known = known.min(ns);
            let of_bucket: Vec<(&Job, f64)> = of_bucket.iter().map(|(job, ns)| (job, *ns)).collect();
            let ns = self.lock.in_bucket(&of_bucket);
            self.lock.times.insert(tuning::bucket(&m.job), ns);
        }
        let tilings: BTreeSet<&(String, String, usize)> =
            lowered.tilings.iter().filter(|(.., kernel)| m.kernel == Some(*kernel)).collect();
        for (problem, tiling, _) in tilings {
            let usual = lowered.tilings.iter().find(|(p, ..)| p == problem).is_some_and(|(_, t, _)| t == tiling);
            let tried = self.tried.entry(problem.clone()).or_default();
            match tried.iter_mut().find(|t| t.tiling == *tiling) {
                Some(t) => t.ns = t.ns.min(m.ns),
                None => tried.push(Tried { tiling: tiling.clone(), usual, ns: m.ns }),
            }
            let best = tried.iter().min_by(|a, b| a.ns.total_cmp(&b.ns)).expect("one was pushed");
            self.lock.tilings.insert(problem.clone(), best.tiling.clone());
        }
        if m.job.class == Class::Copy && m.job.bytes() > LARGE_BYTES {
            self.rates.bytes_per_ns = self.rates.bytes_per_ns.max(m.job.bytes() / m.ns);
        }
        if let (Class::Product, Some(ns)) = (m.job.class, whole) {
            let rate = self.rates.products.entry(m.job.dtype).or_insert(0.0);
            *rate = rate.max(m.job.flops() / ns);
        }
    }

    /// The table at `path`, or the shipped one, with what was found: the greater rate of both, and the shorter time. What else a machine does
    /// makes times longer and never shorter, so that a table gets better with each run.
    fn table(&self, path: &Path) -> Result<Tuning, u8> {
        let mut table = match known(path, &self.lock.target)? {
            Some(table) => table,
            None => Tuning { program: None, dims: DimEnv::new(), times: BTreeMap::new(), ..self.lock.clone() },
        };
        let round = |x: f64| if x < 10.0 { (x * 10.0).round() / 10.0 } else { x.round() };
        if let Some(ns) = self.rates.launch_ns {
            table.launch_ns = round(ns.max(1.0).min(table.launch_ns));
        }
        table.bytes_per_ns = table.bytes_per_ns.max(round(self.rates.bytes_per_ns));
        for (dtype, rate) in &self.rates.products {
            let known = table.products.entry(*dtype).or_insert(0.0);
            *known = known.max(round(*rate));
        }
        for (bucket, of) in &self.samples {
            let steps: Vec<(&Job, f64)> = of.iter().map(|(job, ns)| (job, *ns)).collect();
            let ns = table.in_bucket(&steps);
            let least = table.times.entry(bucket.clone()).or_insert(u64::MAX);
            *least = (*least).min(ns);
        }
        table.tilings.clear();
        Ok(table)
    }
}

/// Writes a file whole or not at all.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    std::fs::write(&temporary, text).and_then(|()| std::fs::rename(&temporary, path)).inspect_err(|_| {
        let _ = std::fs::remove_file(&temporary);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_of_an_op_are_added_up_and_tilings_are_not() {
        let job = Job { class: Class::AttendGrad, dtype: base::DType::BF16, shape: vec![2, 64, 64, 64, 32, 32] };
        // An op of kernel 0 and twice kernel 1, another of the same work in 2, 3 and 4, of which 3 and 4 are tilings of one problem.
        let ops = [BTreeMap::from([(0, 1), (1, 2)]), BTreeMap::from([(2, 1), (3, 1), (4, 1)])];
        let of = BTreeMap::from([(job.clone(), BTreeSet::from(ops))]);
        let mut parts = Parts { of, tilings: [3, 4].into(), ns: BTreeMap::new() };
        for (kernel, ns, want) in [
            (0, 20.0, None),
            (1, 150.0, Some(320.0)),
            (3, 50.0, None),
            (2, 10.0, None),
            (4, 40.0, Some(50.0)),
            (0, 15.0, Some(315.0)),
        ] {
            assert_eq!(parts.note(kernel, &job, ns), want, "{kernel}");
        }
        let other = Job { shape: vec![1; 6], ..job };
        assert_eq!(parts.note(0, &other, 1.0), None, "a work that nothing in the library does");
    }

    #[test]
    fn what_is_zeroed_is_no_copy() {
        let lock = Tuning { times: BTreeMap::new(), ..Tuning::of_target(true).clone() };
        let (samples, parts, tried, rates) = Default::default();
        let mut search = Search { lock, samples, parts, tried, rates };
        let job = Job { class: Class::Copy, dtype: base::DType::F32, shape: vec![1 << 26] };
        let measured = |zeros: bool, ns: f64| Measured { kernel: None, job: job.clone(), zeros, ns, times: 1 };
        search.note(&Lowered::default(), &measured(true, 10_000.0));
        assert_eq!((search.lock.times.len(), search.rates.bytes_per_ns, search.rates.launch_ns), (0, 0.0, Some(10_000.0)));
        search.note(&Lowered::default(), &measured(false, 40_000.0));
        assert_eq!(search.lock.times.values().copied().collect::<Vec<_>>(), [40_000]);
        assert_eq!(search.rates.launch_ns, Some(10_000.0));
        // A lock is whole without it.
        let at = library::View { buffer: 0, offset: base::Dim::from(0), turn: Vec::new() };
        let buffers = vec![library::Buffer { dtype: base::DType::F32, elems: base::Dim::from(64), external: false }];
        let (name, steps) = ("f".into(), vec![Step::Zero { at, elems: base::Dim::from(64) }]);
        let (args, outputs, constraints, when) = Default::default();
        let entry = library::Entry { name, args, outputs, buffers, steps, constraints, when };
        let lowered = Lowered { entries: vec![entry], ..Lowered::default() };
        assert_eq!(pipeline::missing(&lowered, &search.lock), Vec::<String>::new());
    }

    #[test]
    fn budgets_are_times() {
        assert_eq!(budget("60s"), Some(Duration::from_secs(60)));
        assert_eq!(budget("1.5m"), Some(Duration::from_secs(90)));
        assert_eq!(budget("7"), Some(Duration::from_secs(7)));
        for wrong in ["", "s", "-1s", "0", "soon", "infs", "1e30", "1e308m"] {
            assert_eq!(budget(wrong), None, "{wrong}");
        }
    }
}
