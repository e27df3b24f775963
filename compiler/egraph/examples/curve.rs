//! What optimising takes and does: time, e-nodes, growth and choices by rule for each function body of the shipped models, and the curve over
//! depth. `cargo run --release -p egraph --example curve [-- MODEL]`.

#[path = "../src/tests/source.rs"]
mod source;

use egraph::{Options, Report, optimize, rules};
use graph::Module;
use std::{collections::BTreeMap, time::Instant};

fn main() {
    let only = std::env::args().nth(1);
    for (name, small) in source::MODELS.iter().filter(|(n, _)| only.as_ref().is_none_or(|o| o == n)) {
        let small = source::module(name, small);
        let whole = source::module(name, "");
        for (size, module) in [("small", &small), ("as shipped", &whole)] {
            let (ms, reports) = run(module);
            println!("{name}, {size}: {ms:.1} ms");
            for r in &reports {
                let gain = 100.0 * (1.0 - r.cost.1 / r.cost.0.max(1.0));
                println!(
                    "  {:<18} e-nodes {:>5} to {:>5}, cost {:>14.0}, {gain:.2} % less",
                    r.func, r.num_nodes.0, r.num_nodes.1, r.cost.0
                );
                let mut chosen: BTreeMap<&str, usize> = BTreeMap::new();
                r.chosen.iter().for_each(|s| *chosen.entry(s.rule).or_default() += 1);
                for (rule, count) in &r.fired {
                    let used = chosen.get(rule.as_str()).copied().unwrap_or(0);
                    println!("    {rule:<38} fired {count:>4}, chosen {used:>3}");
                }
            }
        }
    }
    println!("deepseek_v3 by depth, {} rules:", rules::all().len());
    // Its first three layers are dense; at least one more is needed.
    for layers in [4, 8, 16, 32, 64] {
        let module = source::module("deepseek_v3", &format!("num_hidden_layers={layers}"));
        let (ms, reports) = run(&module);
        let worst = reports.iter().map(|r| r.num_nodes.1).max().unwrap_or(0);
        let peak = peak_mib().map_or("unknown".into(), |n| format!("{n} MiB"));
        println!("  {layers:>2} layers: {ms:>6.1} ms, {} bodies, the largest {worst} e-nodes, peak memory {peak}", reports.len());
    }
}

/// The most memory that this process has had so far, where the system tells.
fn peak_mib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? >> 10)
}

/// The best of five runs, in milliseconds, and the reports.
fn run(module: &Module) -> (f64, Vec<Report>) {
    let mut best = f64::INFINITY;
    let mut reports = Vec::new();
    for _ in 0..5 {
        let start = Instant::now();
        reports = optimize(module, &tile::cost::op_cost, &Options::default()).1;
        best = best.min(start.elapsed().as_secs_f64() * 1e3);
    }
    (best, reports)
}
