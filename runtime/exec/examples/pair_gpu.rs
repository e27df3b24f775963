//! How much of a stage's communication hides under the computing of a pair, on one GPU.
//!
//! ```text
//! pair_gpu FILE B=1 T=8192 [link=host|device] [piece=128] [runs=5] [trace=FILE]
//! ```
//! FILE is a stage that `lode build M --ranks 3 --layout 'E|tttt|L' --expert-parallel 1 --target sm_90a` wrote: a forward of one micro-batch and
//! a backward of another go through its layers as `exec::pair` lists them. Rows that the all-to-all would send go over a link that stands for the
//! network, all of them: `host` takes them to the host's memory and back in pieces, both ways at once; `device` copies them within the device,
//! `piece` KiB at a time. Exit code 1 if bits are not those of the entries one after the other.

use base::{DType, DimEnv};
use device::{Link, Placed, Ran};
use exec::{ExecError, HostTensor, Pair, Session, pair::Half, random::Stream};
use library::{Init, Library, Role};
use std::{path::Path, process::ExitCode, time::Instant};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some((file, rest)) = args.split_first() else {
        eprintln!("pair_gpu FILE B=1 T=8192 [link=host|device] [piece=128] [runs=5] [trace=FILE]");
        return ExitCode::from(2);
    };
    match measure(Path::new(file), rest) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

/// What a run made, as checksums: results of the forward, gradients of activations, gradients of weights.
fn made(pair: &mut Pair) -> Result<Vec<(String, u64)>, ExecError> {
    let mut out = Vec::new();
    for (half, prefix) in [(Half::Forward, "out."), (Half::Forward, "saved."), (Half::Backward, "d_in.")] {
        for p in pair.ports(half, prefix) {
            let sum = checksum(&pair.get(half, &p.name)?.bytes);
            out.push((p.name, sum));
        }
    }
    for (name, slot) in pair.session().store.of_role(Role::Grad) {
        slot.memory.refresh()?;
        out.push((format!("gradient of {name}"), checksum(slot.memory.bytes())));
    }
    Ok(out)
}

/// Of whole words: fast enough for gigabytes.
fn checksum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let words = words.iter().map(|w| u64::from_le_bytes(*w)).chain(rest.iter().map(|b| u64::from(*b)));
    // Odd factors lose nothing; the rotation brings high bits down. # Source: the factor is that of 64-bit FNV.
    words.fold(0xcbf2_9ce4_8422_2325, |h: u64, w| (h ^ w).wrapping_mul(0x100_0000_01b3).rotate_left(29))
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Parameters as they start, but that numbers recur after a million: drawing gigabytes of them takes longer than all else here.
fn fill(session: &mut Session) -> Result<(), ExecError> {
    const DRAWN: usize = 1 << 20;
    for p in session.manifest.params.clone() {
        let stream = Stream::new(0, &p.name);
        let n = (p.shape.iter().product::<i64>().max(0) as usize).min(DRAWN);
        let value = |i: u64| match p.init {
            Init::Normal(std) => std * stream.normal(i),
            Init::Uniform(a) => a * (2.0 * stream.uniform(i) - 1.0),
            Init::Constant(c) => c,
        };
        let drawn = HostTensor::from_f64(p.dtype, &[n as i64], (0..n as u64).map(value).collect::<Vec<f64>>()).bytes;
        let memory = &mut session.store.slot(p.role, &p.name, p.dtype, &p.shape)?.memory;
        memory.bytes_mut().chunks_mut(drawn.len().max(1)).for_each(|c| c.copy_from_slice(&drawn[..c.len()]));
    }
    Ok(())
}

/// What a stage is given: numbers of both signs.
fn given(pair: &mut Pair, half: Half, prefix: &str, seed: u64, dims: &DimEnv) -> Result<(), ExecError> {
    for p in pair.ports(half, prefix) {
        let shape: Vec<i64> = p.shape.iter().map(|d| d.eval(dims).unwrap_or(1)).collect();
        let (stream, n) = (Stream::new(seed, &p.name), shape.iter().product::<i64>() as u64);
        let value = |i: u64| if p.dtype.is_float() { 2.0 * stream.uniform(i) - 1.0 } else { (64.0 * stream.uniform(i)).floor() };
        debug_assert!(p.dtype != DType::Bool);
        pair.set(half, &p.name, &HostTensor::from_f64(p.dtype, &shape, (0..n).map(value).collect::<Vec<f64>>()))?;
    }
    Ok(())
}

fn measure(file: &Path, rest: &[String]) -> Result<bool, ExecError> {
    let begin = Instant::now();
    let word = |name: &str| rest.iter().find_map(|w| w.strip_prefix(name)?.strip_prefix('='));
    let number = |name: &str, default: usize| word(name).and_then(|v| v.parse().ok()).unwrap_or(default);
    let dims: DimEnv = ["B", "T"].iter().map(|n| ((*n).into(), number(n, 1) as i64)).collect();
    let runs = number("runs", 5).max(1);
    let link = match word("link").unwrap_or("host") {
        "device" => Link::Device { piece: number("piece", 128) << 10 },
        _ => Link::Host,
    };
    let mut session = Session::on_gpu(Library::read(file)?, 0, None)?;
    let manifest = session.manifest.clone();
    fill(&mut session)?;
    println!("{}: ready in {:.1} s on {}", manifest.name, begin.elapsed().as_secs_f64(), session.device_name());
    let mut pair = session.pair(&dims)?;
    let streams = pair.streams(link)?;
    // The micro-batch that goes backward went forward before.
    given(&mut pair, Half::Forward, "in.", 1, &dims)?;
    pair.forward(&streams)?;
    pair.hand_over()?;
    given(&mut pair, Half::Backward, "d_out.", 2, &dims)?;
    given(&mut pair, Half::Forward, "in.", 3, &dims)?;
    let (in_turn, list) = (pair.in_turn(), pair.interleaved()?);
    let [compute_alone, rows_alone] = [false, true].map(|communicates| pair.alone(communicates));
    let moved = pair.exchanged();
    let large: Vec<usize> = moved.iter().copied().filter(|n| *n > 1 << 16).collect();
    println!(
        "{} launches, {} exchanges of {:.1} MB, {:.2} GB in all; {} waits between the streams; {:.1} s so far",
        list.len() - moved.len(),
        large.len(),
        large.iter().max().copied().unwrap_or(0) as f64 / 1e6,
        moved.iter().sum::<usize>() as f64 / 1e9,
        list.iter().map(|p| p.waits.len()).sum::<usize>(),
        begin.elapsed().as_secs_f64()
    );

    // The bits: gradients add up in place, so each run begins with none.
    let mut bits = Vec::new();
    for order in [&in_turn, &list] {
        pair.poison();
        pair.session().store.zero(Role::Grad);
        pair.run(order, &streams, false)?;
        bits.push(made(&mut pair)?);
    }
    let differ: Vec<&str> = bits[0].iter().zip(&bits[1]).filter(|(a, b)| a != b).map(|((n, _), _)| n.as_str()).collect();
    let same = differ.is_empty() && bits[0].len() == bits[1].len();
    println!(
        "{} tensors, one after the other and interleaved: {}",
        bits[0].len(),
        if same { "the same bits" } else { "DIFFERENT BITS" }
    );
    differ.iter().take(8).for_each(|n| println!("  {n} differs"));

    // Times by the host's clock, until the device is done; `span` is by the device's.
    let span = |ran: &[Ran]| ran.iter().map(|r| r.end).fold(0.0, f64::max);
    let mut clock = |order: &[Placed]| -> Result<f64, ExecError> {
        let mut times = Vec::new();
        for _ in 0..=runs {
            let from = Instant::now();
            pair.run(order, &streams, false)?;
            times.push(from.elapsed().as_secs_f64() * 1e3);
        }
        times.remove(0);
        Ok(median(times))
    };
    let (computing, talking) = (clock(&compute_alone)?, clock(&rows_alone)?);
    let (serial, both) = (clock(&in_turn)?, clock(&list)?);
    let bytes = moved.iter().sum::<usize>() as f64;
    println!("compute alone            {computing:>9.3} ms");
    println!("communication alone      {talking:>9.3} ms ({:.1} GB/s)", bytes / talking / 1e6);
    println!("one after the other      {serial:>9.3} ms");
    println!("interleaved              {both:>9.3} ms");
    println!("hidden                   {:>9.1} % of communication", 100.0 * (computing + talking - both) / talking);
    println!("at best                  {:>9.1} %", 100.0 * (computing + talking - computing.max(talking)) / talking);

    // Once more with the time of every step.
    let ran = pair.run(&list, &streams, true)?;
    let busy =
        |talks: bool| list.iter().zip(&ran).filter(|(p, _)| p.communicates == talks).map(|(_, r)| r.end - r.start).sum::<f64>();
    println!(
        "with times of all steps  {:>9.3} ms, compute {:.3}, communication {:.3}",
        span(&ran) / 1e6,
        busy(false) / 1e6,
        busy(true) / 1e6
    );
    by_part(&pair, &list, &ran);
    if let Some(path) = word("trace") {
        pair.trace(&list, &ran).write(Path::new(path))?;
        println!("trace in {path}");
    }
    println!("{:.1} s in all", begin.elapsed().as_secs_f64());
    Ok(same)
}

/// What each part took, of all layers together.
fn by_part(pair: &Pair, list: &[Placed], ran: &[Ran]) {
    let mut parts: std::collections::BTreeMap<(bool, String), (usize, f64, f64)> = std::collections::BTreeMap::new();
    // Where its stream waits, the gap before a step is counted with it.
    let mut last = [0.0f64; 2];
    for (p, r) in list.iter().zip(ran) {
        let name = pair.name(p);
        let part = name.split([' ', ':']).next().unwrap_or_default().to_string();
        let end = &mut last[usize::from(p.communicates)];
        let row = parts.entry((p.communicates, part)).or_default();
        *row = (row.0 + 1, row.1 + r.end - r.start, row.2 + (r.start - *end).max(0.0));
        *end = r.end;
    }
    for ((_, part), (steps, ns, gap)) in parts {
        println!("  {part:<14} {steps:>5} steps {:>9.3} ms, its stream was idle before it {:>8.3} ms", ns / 1e6, gap / 1e6);
    }
}
