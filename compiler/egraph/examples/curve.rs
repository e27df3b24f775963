//! What optimising takes and does, and whether it keeps its bars: for each distinct function and loop body of the shipped models its time,
//! e-nodes, and what each rule added and was chosen for; then time, e-nodes and memory over depth. Ends with 1 if a bar is broken.
//! `cargo run --release -p egraph --example curve [-- MODEL]`.
//!
//! Times are of the processor, not of the clock, where the system tells them, and means over many runs.

#[path = "../src/tests/source.rs"]
mod source;

use egraph::{Options, Report, optimize, rules};
use graph::{Func, Module};
use std::{collections::BTreeMap, process::ExitCode, time::Instant};

/// For a layer. # Units: ms.
const BAR_LAYER: f64 = 100.0;
/// For all functions of deepseek_v3, as shipped. # Units: ms.
const BAR_DEEPSEEK: f64 = 300.0;
/// The longest over the shortest time of all depths.
const BAR_FLAT: f64 = 1.5;
/// Batches of runs, of which the least mean counts.
const BATCHES: usize = 5;
/// A batch takes at least this long. # Units: ms.
const BATCH_MS: f64 = 60.0;

fn main() -> ExitCode {
    let only = std::env::args().nth(1);
    let chosen = |name: &str| only.as_ref().is_none_or(|o| o == name);
    let mut broken = Vec::new();
    println!("{} rules; processor time of a run, the least of {BATCHES} means", rules::all().len());
    for (name, _) in source::MODELS.iter().filter(|(n, _)| chosen(n)) {
        model(name, &mut broken);
    }
    // The first three layers of deepseek_v3 are dense, and one more is needed.
    for (name, dim, depths) in
        [("strata", "layers", &[1, 2, 4, 16, 64][..]), ("deepseek_v3", "num_hidden_layers", &[4, 8, 16, 32, 64])]
    {
        if chosen(name) {
            curve(name, dim, depths, &mut broken);
        }
    }
    broken.iter().for_each(|b| println!("BROKEN: {b}"));
    if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A model as shipped: what each of its scopes takes and what the rules do there.
fn model(name: &str, broken: &mut Vec<String>) {
    let module = source::module(name, "");
    let (all, _) = time(&module);
    println!("\n{name}: {all:.1} ms in all");
    if name == "deepseek_v3" && all > BAR_DEEPSEEK {
        broken.push(format!("{name} takes {all:.1} ms, bar {BAR_DEEPSEEK}"));
    }
    let mut seen: Vec<&Func> = Vec::new();
    for func in &module.funcs {
        let mut found = Vec::new();
        scopes(func, &func.name, &mut found);
        for (path, body) in found {
            if seen.contains(&body) {
                continue;
            }
            seen.push(body);
            scope(&module, &path, body, broken);
        }
    }
}

/// A function and the bodies of its loops, inner ones first.
fn scopes<'a>(func: &'a Func, path: &str, found: &mut Vec<(String, &'a Func)>) {
    let bodies = func.nodes.values().filter_map(|n| n.op.body());
    bodies.zip(egraph::body_names(func, path)).for_each(|(b, name)| scopes(b, &name, found));
    found.push((path.into(), func));
}

fn scope(module: &Module, path: &str, body: &Func, broken: &mut Vec<String>) {
    let alone = |f: &Func| Module { funcs: vec![f.clone()], ..module.clone() };
    let (whole, reports) = time(&alone(body));
    let mut inner: Vec<&Func> = Vec::new();
    body.nodes.values().filter_map(|n| n.op.body()).for_each(|b| {
        if !inner.contains(&b) {
            inner.push(b)
        }
    });
    let own = (whole - inner.iter().map(|b| time(&alone(b)).0).sum::<f64>()).max(0.0);
    let r = reports.last().expect("a report for each scope, its own last");
    let gain = 100.0 * (1.0 - r.cost.1 / r.cost.0.max(1.0));
    println!("  {path}: {own:.1} ms, {} e-nodes to {}, cost {gain:.2} % less", r.num_nodes.0, r.num_nodes.1);
    if path.contains("/body") && own > BAR_LAYER {
        broken.push(format!("{path} takes {own:.1} ms, bar {BAR_LAYER}"));
    }
    let mut chosen: BTreeMap<&str, usize> = BTreeMap::new();
    r.chosen.iter().for_each(|s| *chosen.entry(s.rule).or_default() += 1);
    for (rule, growth) in &r.fired {
        let used = chosen.get(rule.as_str()).copied().unwrap_or(0);
        println!("    {rule:<36} fired {:>3}, added {:>3} e-nodes, chosen {used:>2}", growth.times, growth.nodes);
    }
}

/// Time, e-nodes and memory by depth.
fn curve(name: &str, dim: &str, depths: &[i64], broken: &mut Vec<String>) {
    println!("\n{name} by depth:");
    let modules: Vec<Module> = depths.iter().map(|n| source::module(name, &format!("{dim}={n}"))).collect();
    let all = times(&modules);
    for ((layers, module), (ms, reports)) in depths.iter().zip(&modules).zip(&all) {
        let nodes: usize = reports.iter().map(|r| r.num_nodes.1).sum();
        // The peak begins anew.
        let _ = std::fs::write("/proc/self/clear_refs", "5");
        optimize(module, &tile::cost::op_cost, &Options::default());
        let peak = peak_mib().map_or("unknown".into(), |mib| format!("{mib:.1} MiB"));
        println!("  {layers:>2} layers: {ms:>6.1} ms, {} scopes, {nodes} e-nodes, peak memory {peak}", reports.len());
    }
    let (least, most) = all.iter().fold((f64::INFINITY, 0.0f64), |(a, b), (t, _)| (a.min(*t), b.max(*t)));
    println!("  the longest over the shortest: {:.2} (bar {BAR_FLAT})", most / least);
    if most / least > BAR_FLAT {
        broken.push(format!("{name} takes {least:.1} to {most:.1} ms by depth, bar {BAR_FLAT} times"));
    }
}

/// The most memory that this process has had, where the system tells. # Units: MiB.
fn peak_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<f64>().ok()? / 1024.0)
}

/// Processor time of this thread so far, where the system tells. # Units: ms.
fn processor_ms() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(text.split_whitespace().next()?.parse::<f64>().ok()? / 1e6)
}

/// The least mean of several batches of runs, in milliseconds, and the reports.
fn time(module: &Module) -> (f64, Vec<Report>) {
    times(std::slice::from_ref(module)).remove(0)
}

/// The same of several modules, in turns, so that what else the machine does meets all of them. The system counts in ticks of some milliseconds.
fn times(modules: &[Module]) -> Vec<(f64, Vec<Report>)> {
    let mut all = vec![(f64::INFINITY, Vec::new()); modules.len()];
    for _ in 0..BATCHES {
        for (module, (best, reports)) in modules.iter().zip(&mut all) {
            let (clock, start) = (Instant::now(), processor_ms());
            let spent = || {
                let of_processor = processor_ms().zip(start).map(|(now, then)| now - then);
                of_processor.unwrap_or_else(|| clock.elapsed().as_secs_f64() * 1e3)
            };
            let mut runs = 0.0;
            while spent() < BATCH_MS {
                *reports = optimize(module, &tile::cost::op_cost, &Options::default()).1;
                runs += 1.0;
            }
            *best = best.min(spent() / runs);
        }
    }
    all
}
