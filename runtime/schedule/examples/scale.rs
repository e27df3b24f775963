//! How long it takes to plan, prove and simulate a step of many ranks, nothing folded: `scale [RANKS [MICRO [COPIES]]]`. By default 4,096:
//! DualPipe on 16 ranks with 60 micro-batches, 256 pipelines side by side, which sum the gradients of a stage over 512 holders.

use schedule::{
    Limits, Policy, Size,
    cluster::{Cluster, Routing},
};
use std::time::Instant;

fn main() {
    let mut numbers = std::env::args().skip(1).map(|a| a.parse::<usize>().expect("a number"));
    let (ranks, micro, copies) = (numbers.next().unwrap_or(16), numbers.next().unwrap_or(60), numbers.next().unwrap_or(256));
    let size = Size { ranks, micro, chunks: 2 };
    let start = Instant::now();
    let mut last = start;
    let mut lap = |what: &str| {
        let now = Instant::now();
        println!("{what:<10} {:6.2} s", (now - last).as_secs_f64());
        last = now;
    };
    let plan = schedule::plan(Policy::DualPipe, size).expect("it fits").copies(copies);
    let actions: usize = plan.actions.iter().map(Vec::len).sum();
    lap("planned");
    let slots = schedule::assign_slots(&plan);
    lap("slots");
    let limits = Limits { max_live: Some(Policy::DualPipe.max_live(size).repeat(copies)), bytes: None };
    let violations = schedule::verify(&plan, &slots, &limits);
    assert!(violations.is_empty(), "{}", violations[0]);
    lap("proved");
    let cluster = Cluster::parse("4096xH100", ranks, 64).expect("a cluster");
    let out = schedule::simulate(&plan, &cluster.costs(Routing::Limited)).expect("it ends");
    lap("simulated");
    let memory = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = memory.lines().find_map(|l| l.strip_prefix("VmHWM:")).map_or("unknown", str::trim);
    println!(
        "{} ranks, {actions} actions, {} tasks, {} edges: {:.2} s in all (bar 30), {peak} at most (bar 4 GiB); step {:.2} s",
        plan.num_ranks(),
        out.tasks.graph.node_count(),
        out.tasks.graph.edge_count(),
        start.elapsed().as_secs_f64(),
        out.makespan / 1e3
    );
}
