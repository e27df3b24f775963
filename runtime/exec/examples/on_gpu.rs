//! Libraries for a GPU against the host's, and how fast they are, without the compiler: for a machine that has a GPU and nothing else.
//!
//! ```text
//! on_gpu record FOLDER NAME… [batch=2] [seq=45] [steps=200]  # on any machine: what FOLDER/host and FOLDER/plain compute goes to FOLDER/NAME.*.safetensors
//! on_gpu check FOLDER NAME… [the same] [near=4e-4]           # on the GPU: FOLDER/gpu/NAME.lodelib against that
//! on_gpu time FILE ENTRY B=8 T=128 [runs=20] [largest] [profile] # how long an entry of a library takes, and where
//! on_gpu copy                                # how fast the device copies its own memory
//! ```
//! `tests/benches/gpu_models.sh` builds the folder. Exit code 1 if something does not agree.

use base::{DType, DimEnv};
use device::{Device, Gpu, Step};
use exec::{
    ExecError, HostTensor, Session,
    agree::{self, LOSSES, Problem, Tensors},
    checkpoint,
    random::Stream,
    session::Profile,
};
use library::{Class, Library, Manifest, Role};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

/// Sizes of what is compared: a length that no tile divides.
const PROBLEM: Problem = Problem { batch: 2, seq: 45, steps: 200 };
/// Elements of an input that are random, at most.
const PERIOD: u64 = (1 << 24) + 3;
/// Steps of a run that is broken off.
const RESUMED: u64 = 8;
/// The host is this near to the interpreter, as `tests/src/models.rs` holds it to; the GPU as well, so twice that between them.
const NEAR: f64 = 2.0 * 2e-4;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["record", folder, ref rest @ ..] => {
            let problem = problem(rest);
            names(rest).try_for_each(|n| record(Path::new(folder), n, &problem)).map(|()| true)
        }
        ["check", folder, ref rest @ ..] => check_all(Path::new(folder), rest),
        ["time", file, entry, ref rest @ ..] => time(Path::new(file), entry, rest).map(|()| true),
        ["copy"] => copy_rate().map(|rate| println!("copy: {:.3} TB/s, read and written", rate / 1e3)).map(|()| true),
        _ => {
            eprintln!(
                "on_gpu record FOLDER NAME… | check FOLDER NAME… | time FILE ENTRY B=1 T=128 [runs=20] [largest] [profile] | copy"
            );
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("error: {e}");
            if let Some(help) = miette::Diagnostic::help(&e) {
                eprintln!("  help: {help}");
            }
            ExitCode::FAILURE
        }
    }
}

/// The bytes that a launch of each map moves, on average: all of what it reads and writes, also where it takes a part of that.
fn traffic(manifest: &Manifest, entry: &str, dims: &DimEnv) -> BTreeMap<String, f64> {
    let mut found: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    let mut open: Vec<(&library::Step, i64)> = Vec::new();
    open.extend(manifest.entries.iter().filter(|e| e.name == entry).flat_map(|e| &e.steps).map(|s| (s, 1)));
    while let Some((step, times)) = open.pop() {
        match step {
            library::Step::Launch { kernel, work, .. } if work.class == Class::Fused => {
                let bytes = work.shape.last().and_then(|n| n.eval(dims)).unwrap_or(0) as f64;
                let (sum, count) = found.entry(manifest.kernels[*kernel].symbol.clone()).or_default();
                *sum += bytes * times as f64;
                *count += times as f64;
            }
            library::Step::Loop { count, body, .. } => {
                let turns = times * *count;
                open.extend(body.iter().map(|s| (s, turns)));
            }
            library::Step::Launch { .. }
            | library::Step::Gemm(_)
            | library::Step::GroupedGemm(_)
            | library::Step::Copy { .. }
            | library::Step::Zero { .. }
            | library::Step::Exchange(_) => {}
        }
    }
    found.into_iter().map(|(name, (sum, count))| (name, sum / count)).collect()
}

/// An empty folder for checkpoints.
fn empty(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("lode-on-gpu-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    path
}

/// The number after `name=` in the words of a command.
fn number<T: std::str::FromStr>(words: &[&str], name: &str) -> Option<T> {
    words.iter().find_map(|w| w.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
}

fn names<'a>(words: &'a [&'a str]) -> impl Iterator<Item = &'a str> {
    words.iter().copied().filter(|w| !w.contains('='))
}

fn problem(words: &[&str]) -> Problem {
    let Problem { batch, seq, steps } = PROBLEM;
    Problem {
        batch: number(words, "batch").unwrap_or(batch),
        seq: number(words, "seq").unwrap_or(seq),
        steps: number(words, "steps").unwrap_or(steps),
    }
}

fn reference(folder: &Path, name: &str, kind: &str) -> PathBuf {
    folder.join(format!("{name}.{kind}.safetensors"))
}

fn record(folder: &Path, name: &str, problem: &Problem) -> Result<(), ExecError> {
    for kind in ["host", "plain"] {
        let file = folder.join(kind).join(format!("{name}.lodelib"));
        // SAFETY: `lode build` made both files.
        let mut s = unsafe { Session::open(&file, None) }?;
        let mut tensors = agree::once(&mut s, problem)?;
        let out = empty(name);
        tensors.insert(LOSSES.into(), agree::losses(&mut s, problem, &out)?);
        let _ = std::fs::remove_dir_all(&out);
        let tensors: Vec<(String, HostTensor)> = tensors.into_iter().collect();
        checkpoint::write(&reference(folder, name, kind), &tensors, &[])?;
    }
    Ok(())
}

fn read(path: &Path) -> Result<Tensors, ExecError> {
    let bytes = std::fs::read(path).map_err(|e| ExecError::io(path, &e))?;
    checkpoint::parse(&bytes, path)
}

fn check_all(folder: &Path, words: &[&str]) -> Result<bool, ExecError> {
    let (problem, near) = (problem(words), number(words, "near").unwrap_or(NEAR));
    println!(
        "{:<12} {:>7} {:>6} {:>10} {:>22} {:>7} {:>7} {:>8}",
        "model", "ready s", "kern", "apart", "worst", "twice", "drift", "resume"
    );
    let mut good = true;
    for name in names(words) {
        match check(folder, name, &problem, near) {
            Ok(fine) => good &= fine,
            Err(e) => {
                good = false;
                println!("{name}: {e}");
                if let Some(help) = miette::Diagnostic::help(&e) {
                    println!("  {help}");
                }
            }
        }
    }
    Ok(good)
}

fn check(folder: &Path, name: &str, problem: &Problem, near: f64) -> Result<bool, ExecError> {
    let (mut host, mut plain) = (read(&reference(folder, name, "host"))?, read(&reference(folder, name, "plain"))?);
    let losses = [&mut host, &mut plain].map(|t| t.remove(LOSSES).map_or_else(Vec::new, |t| t.to_f64()));
    // Where codes of e4m3 take another value by rounding, two programs of the host are farther apart than what each is from the interpreter.
    let near = near.max(agree::DRIFT * agree::farthest(&host, &plain).1);
    let begin = Instant::now();
    let library = Library::read(&folder.join("gpu").join(format!("{name}.lodelib")))?;
    let mut s = Session::on_gpu(library, 0, None)?;
    let ready = begin.elapsed().as_secs_f64();
    let kernels = s.manifest.kernels.len();
    let first = agree::once(&mut s, problem)?;
    let (worst, apart) = agree::farthest(&host, &first);
    // Again as a recorded run, and with an arena of NaN.
    s.poison = true;
    let same = (0..3).try_fold(true, |same, _| Ok::<bool, ExecError>(same && agree::once(&mut s, problem)? == first))?;
    s.poison = false;
    let out = empty(name);
    let trained = agree::losses(&mut s, problem, &out.join("a"))
        .inspect_err(|_| println!("{name:<12} {ready:>7.2} {kernels:>6} {apart:>10.2e} {worst}, and training fails"))?
        .to_f64();
    let again = agree::losses(&mut s, problem, &out.join("b"))?.to_f64() == trained;
    let (step, share) = agree::drift(&trained, [&losses[0], &losses[1]]);
    let resumed = agree::resumes(&mut s, &Problem { steps: RESUMED, ..*problem }, &out)?;
    let _ = std::fs::remove_dir_all(&out);
    let worst: String = worst.chars().rev().take(22).collect::<String>().chars().rev().collect();
    let yes = |b: bool| if b { "same" } else { "DIFFERS" };
    println!(
        "{name:<12} {ready:>7.2} {kernels:>6} {apart:>10.2e} {worst:>22} {:>7} {share:>7.3} {:>8}",
        yes(same && again),
        yes(resumed)
    );
    let last = |x: &[f64]| x.last().copied().unwrap_or(f64::NAN);
    println!(
        "  loss after {}: {:.4}, on the host {:.4} and {:.4}; the largest share of the bound at step {step}",
        trained.len(),
        last(&trained),
        last(&losses[0]),
        last(&losses[1])
    );
    Ok(apart <= near && same && again && share <= 1.0 && resumed)
}

/// How fast copies within the device are, at their median: what kernels that only move memory are held to. # Units: bytes a nanosecond, read and written.
fn copy_rate() -> Result<f64, ExecError> {
    const BYTES: usize = 2 << 30;
    let device = Device::Gpu(Gpu::new(0, &[], &[], None)?);
    let memory = || Ok::<_, ExecError>(device.memory(BYTES, false)?.expect("the device has 4 GiB"));
    let (from, to) = (memory()?, memory()?);
    let step = Step::Copy { from: from.as_ptr(), to: to.as_ptr(), bytes: BYTES };
    let mut program = device.prepare(vec![step], std::ptr::null_mut())?;
    let mut times = Vec::new();
    for _ in 0..20 {
        let begin = device.mark()?;
        // SAFETY: both memories have so many bytes and live.
        unsafe { device.run_one_by_one(&mut program) }?;
        let end = device.mark()?;
        device.wait()?;
        times.push(device.nanoseconds(&begin, &end));
    }
    times.sort_by(f64::total_cmp);
    Ok(2.0 * BYTES as f64 / times[times.len() / 2])
}

fn time(file: &Path, entry: &str, rest: &[&str]) -> Result<(), ExecError> {
    let dims: DimEnv =
        rest.iter().filter_map(|w| w.split_once('=')).filter_map(|(n, v)| Some((n.into(), v.parse().ok()?))).collect();
    let begin = Instant::now();
    let library = Library::read(file)?;
    let mut s = Session::on_gpu(library, 0, None)?;
    let ready = begin.elapsed().as_secs_f64();
    let manifest = s.manifest.clone();
    let ports = s.entry(entry)?.args.clone();
    let peak = s.peak(&[(entry, &dims)])?;
    s.admit(&peak, None, 0)?;
    s.store.initialise(&manifest, 0)?;
    let mut inputs = Vec::new();
    for port in ports.iter().filter(|p| matches!(p.role, Role::Input | Role::Scalar)) {
        let shape: Vec<i64> = port.shape.iter().map(|d| d.eval(&dims).unwrap_or(1)).collect();
        let (stream, n) = (Stream::new(0, &port.name), shape.iter().product::<i64>() as u64);
        // Rates are small; what a model is given has both signs.
        let value = |i: u64| match (port.role, port.dtype.is_float()) {
            (Role::Scalar, true) => 1e-4 * stream.uniform(i),
            (_, true) => 2.0 * stream.uniform(i) - 1.0,
            (_, false) => (64.0 * stream.uniform(i)).floor(),
        };
        debug_assert!(port.dtype != DType::Bool);
        // Caches are large: what comes after so many is the same again.
        let few = n.min(PERIOD);
        let first = HostTensor::from_f64(port.dtype, &[few as i64], (0..few).map(value));
        let all = n as usize * port.dtype.bytes();
        let mut bytes = Vec::with_capacity(all);
        while bytes.len() < all {
            let left = (all - bytes.len()).min(first.bytes.len());
            bytes.extend_from_slice(&first.bytes[..left]);
        }
        inputs.push((port.name.clone(), HostTensor { dtype: port.dtype, shape, bytes }));
    }
    let given: Vec<(&str, &HostTensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
    let runs = number(rest, "runs").unwrap_or(20);
    let Some(c) = s.costs(entry, &dims, &given, runs)? else { return Ok(()) };
    let begin = Instant::now();
    (0..runs).try_for_each(|_| s.run(entry, &dims, &given).map(|_| ()))?;
    let call = begin.elapsed().as_secs_f64() / runs as f64;
    let steps = (c.kernels + c.others).max(1) as f64;
    let name = &manifest.name;
    println!(
        "{name} {entry}: ready in {ready:.2} s, {} kernels and {} copies a run, {:.1} MiB",
        c.kernels,
        c.others,
        peak.total() as f64 / f64::from(1 << 20)
    );
    let tokens = dims.values().product::<i64>() as f64;
    println!("{name} {entry}: {:.3} ms a call with inputs and results, {:.0} tokens/s", call * 1e3, tokens / call);
    for (what, (start, all)) in [("one by one", c.plain), ("recorded anew", c.anew), ("recorded", c.recorded)] {
        println!(
            "{name} {entry} {what}: {:.3} us each to start, {:.3} us each until done, {:.3} ms in all",
            start / steps * 1e6,
            all / steps * 1e6,
            all * 1e3
        );
    }
    println!("{name} {entry} recorded, {runs} in a row: {:.4} ms each", c.in_a_row * 1e3);
    if rest.contains(&"largest") {
        for (name, x) in s.run(entry, &dims, &given)? {
            let all = x.to_f64();
            let (largest, nan) = (all.iter().fold(0.0f64, |a, x| a.max(x.abs())), all.iter().filter(|x| x.is_nan()).count());
            println!("{name}: largest {largest:.3e}, {nan} NaN of {}", all.len());
        }
    }
    if rest.contains(&"profile") {
        s.profile = Some(Profile::default());
        (0..3).try_for_each(|_| s.run(entry, &dims, &given).map(|_| ()))?;
        let profile = s.profile.take().unwrap_or_default();
        let rows = profile.rows();
        let all: u64 = rows.iter().map(|r| r.3).sum();
        let (bytes, copy) = (traffic(&manifest, entry, &dims), copy_rate()?);
        println!("share of what a copy moves, {copy:.0} GB/s, of each map:");
        for (_, step, calls, ns) in rows.into_iter().take(50) {
            let each = ns as f64 / calls as f64;
            let symbol = step.split(' ').next().unwrap_or_default();
            let share = |b: &f64| format!("{:.0} GB/s {:>3.0} %", b / each, 100.0 * b / each / copy);
            let rate = bytes.get(symbol).map_or(String::new(), share);
            println!("{:>5.1} % {:>5} x {:>9.2} us {rate:>16}  {step}", 100.0 * ns as f64 / all as f64, calls / 3, each / 1e3);
        }
    }
    Ok(())
}
