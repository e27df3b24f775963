//! Discrete events: jobs that wait for others, and share what they use. A job begins when all jobs before it have ended, works, and ends its
//! latency later; its rate is 1 while nobody else uses its pools, and falls where they do. Streams need nothing of their own: their order is
//! edges. Those that are `early` let the next job begin when the work is done: a link takes the next message while the last is on its way.
//!
//! A *pool* has a capacity: a GPU's processors, a link's bandwidth. A job takes an amount of it. Jobs with priority (kernels of the
//! communication stream, which hold the processors they got) take theirs first; the others share what is left in equal proportion.

use petgraph::{
    Incoming,
    graph::{DiGraph, EdgeReference, NodeIndex},
    visit::EdgeRef,
};
use std::{cmp::Reverse, collections::BinaryHeap};

/// A part of a pool.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    /// Which.
    pub pool: u32,
    /// How much, if nobody else takes any.
    pub amount: f64,
    /// Whether it is taken before others'.
    pub first: bool,
}

/// What a job needs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Job {
    /// Time at rate 1.
    pub work: f64,
    /// From the end of the work to the end.
    pub latency: f64,
    /// Up to two pools: a message uses the sender's link and the receiver's.
    pub shares: [Option<Share>; 2],
}

/// When a job ran.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Span {
    /// All before it had ended.
    pub start: f64,
    /// It had ended.
    pub end: f64,
}

/// A time on the heap. Ties: the lower job first.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Event {
    time: f64,
    job: u32,
    /// The job's events before the last change of its rate are void.
    version: u32,
}

impl Eq for Event {}

impl Ord for Event {
    fn cmp(&self, other: &Event) -> std::cmp::Ordering {
        self.time.total_cmp(&other.time).then(self.job.cmp(&other.job)).then(self.version.cmp(&other.version))
    }
}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Event) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// A job under way.
#[derive(Clone, Copy, Debug, Default)]
struct Running {
    left: f64,
    rate: f64,
    since: f64,
    version: u32,
    worked: bool,
}

/// When every job of the graph runs; `capacity` of every pool. None for the jobs of a cycle and what comes after them.
pub fn run<N, E>(graph: &DiGraph<N, E>, jobs: &[Job], capacity: &[f64], early: impl Fn(&E) -> bool) -> Vec<Option<Span>> {
    let count = graph.node_count();
    let mut missing = vec![0u32; count];
    graph.raw_edges().iter().for_each(|e| missing[e.target().index()] += 1);
    let mut spans: Vec<Option<Span>> = vec![None; count];
    let mut running = vec![Running::default(); count];
    let mut users: Vec<Vec<u32>> = vec![Vec::new(); capacity.len()];
    let mut heap: BinaryHeap<Reverse<Event>> = BinaryHeap::new();
    let mut ready: Vec<usize> = (0..count).rev().filter(|j| missing[*j] == 0).collect();
    let mut now = 0.0;
    loop {
        while let Some(j) = ready.pop() {
            spans[j] = Some(Span { start: now, end: f64::INFINITY });
            running[j] = Running { left: jobs[j].work, since: now, ..Running::default() };
            let mut shares = jobs[j].shares.iter().flatten().peekable();
            if shares.peek().is_none() {
                heap.push(Reverse(Event { time: now + jobs[j].work, job: j as u32, version: 0 }));
            } else {
                shares.for_each(|s| users[s.pool as usize].push(j as u32));
                settle(jobs, capacity, &users, j, now, &mut running, &mut heap);
            }
        }
        let Some(Reverse(Event { time, job, version })) = heap.pop() else { break };
        let j = job as usize;
        if version != running[j].version {
            continue;
        }
        now = time;
        let works = !running[j].worked;
        if works {
            running[j].worked = true;
            let mut shares = jobs[j].shares.iter().flatten().peekable();
            if shares.peek().is_some() {
                shares.for_each(|s| users[s.pool as usize].retain(|u| *u != job));
                settle(jobs, capacity, &users, j, now, &mut running, &mut heap);
            }
        }
        let ends = !works || jobs[j].latency == 0.0;
        if !ends {
            heap.push(Reverse(Event { time: now + jobs[j].latency, job, version }));
        } else if let Some(span) = &mut spans[j] {
            span.end = now;
        }
        for edge in graph.edges(NodeIndex::new(j)) {
            let now = if early(edge.weight()) { works } else { ends };
            let next = edge.target().index();
            if now {
                missing[next] -= 1;
                if missing[next] == 0 {
                    ready.push(next);
                }
            }
        }
    }
    spans.iter_mut().for_each(|s| *s = s.filter(|s| s.end.is_finite()));
    spans
}

/// New rates for all that share a pool with a job, which has just come or gone.
fn settle(
    jobs: &[Job],
    capacity: &[f64],
    users: &[Vec<u32>],
    job: usize,
    now: f64,
    running: &mut [Running],
    heap: &mut BinaryHeap<Reverse<Event>>,
) {
    let mut touched: Vec<u32> = jobs[job].shares.iter().flatten().flat_map(|s| users[s.pool as usize].iter().copied()).collect();
    touched.sort_unstable();
    touched.dedup();
    for j in touched {
        let rate = jobs[j as usize].shares.iter().flatten().map(|s| rate(jobs, capacity, users, s)).fold(1.0, f64::min);
        let r = &mut running[j as usize];
        if rate == r.rate {
            continue;
        }
        r.left = (r.left - (now - r.since) * r.rate).max(0.0);
        *r = Running { rate, since: now, version: r.version + 1, ..*r };
        // Without any rate it waits until somebody goes.
        if rate > 0.0 {
            heap.push(Reverse(Event { time: now + r.left / rate, job: j, version: r.version }));
        }
    }
}

/// The part of its amount that a share gets.
fn rate(jobs: &[Job], capacity: &[f64], users: &[Vec<u32>], share: &Share) -> f64 {
    let wanted = |first: bool| -> f64 {
        let of = |j: &u32| {
            jobs[*j as usize].shares.iter().flatten().find(|s| s.pool == share.pool && s.first == first).map(|s| s.amount)
        };
        users[share.pool as usize].iter().filter_map(of).sum()
    };
    let left = if share.first { capacity[share.pool as usize] } else { (capacity[share.pool as usize] - wanted(true)).max(0.0) };
    let all = wanted(share.first);
    if all <= left || all == 0.0 { 1.0 } else { left / all }
}

/// The jobs that the last end waited for, from the first to the last: each began when the one before it ended, or, over an early edge, when
/// its work was done.
pub fn critical_path<N, E>(graph: &DiGraph<N, E>, jobs: &[Job], spans: &[Span], early: impl Fn(&E) -> bool) -> Vec<NodeIndex> {
    let mut path = Vec::new();
    let mut at = graph.node_indices().max_by(|a, b| spans[a.index()].end.total_cmp(&spans[b.index()].end).then(b.cmp(a)));
    while let Some(node) = at {
        path.push(node);
        let released = |e: &EdgeReference<E>| {
            let from = e.source().index();
            spans[from].end - if early(e.weight()) { jobs[from].latency } else { 0.0 }
        };
        // Of several that were last the first in the graph's order.
        let edges = graph.edges_directed(node, Incoming);
        at = edges.max_by(|a, b| released(a).total_cmp(&released(b)).then(b.source().cmp(&a.source()))).map(|e| e.source());
    }
    path.reverse();
    path
}
