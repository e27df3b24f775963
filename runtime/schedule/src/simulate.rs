//! Plays a plan on a clock: when everything runs, who waits and why, what memory is held. In: a plan that [`crate::verify`] accepts, and
//! [`Costs`]. Same input, same output; no clock is read.

use crate::{
    Action, Costs, Plan, ScheduleError,
    costs::pipeline_ranks,
    engine::{self, Job, Share, Span},
    slots,
    tasks::{self, Edge, Task, Tasks},
};
use petgraph::{Incoming, graph::NodeIndex};

/// What a rank's compute stream did. Its times add up to the makespan. # Units: those of the costs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RankTime {
    /// It computed.
    pub busy: f64,
    /// Before its first action.
    pub warm_up: f64,
    /// What it needed was not computed yet.
    pub dependency: f64,
    /// What it needed was on its way.
    pub rendezvous: f64,
    /// After its last action.
    pub drain: f64,
}

impl RankTime {
    /// All but busy.
    pub fn idle(&self) -> f64 {
        self.warm_up + self.dependency + self.rendezvous + self.drain
    }
}

/// Memory of a rank. # Units: bytes, and units of activations in parts of the model (see [`Costs`]).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RankMemory {
    /// The most activations at once, in parts of the model.
    pub peak_parts: f64,
    /// The most bytes of activations at once.
    pub peak_activations: f64,
    /// Buffers of messages.
    pub buffers: f64,
    /// Parameters with gradients and moments.
    pub parameters: f64,
    /// Bytes of activations from each time on.
    pub curve: Vec<(f64, f64)>,
}

/// A plan on the clock.
#[derive(Clone, Debug)]
pub struct Simulated {
    /// What was played.
    pub tasks: Tasks,
    /// When, by node.
    pub spans: Vec<Span>,
    /// When the last computation ended.
    pub makespan: f64,
    /// By rank.
    pub ranks: Vec<RankTime>,
    /// By rank.
    pub memory: Vec<RankMemory>,
    /// From the first to the last.
    pub critical: Vec<NodeIndex>,
}

/// Plays a plan.
///
/// # Errors
/// E0403 if it hangs, E0405 if the costs are of another plan.
pub fn simulate(plan: &Plan, costs: &Costs) -> Result<Simulated, ScheduleError> {
    costs.check(plan)?;
    let tasks = tasks::tasks(plan);
    let links = costs.hop.bytes > 0.0 && costs.hop.bytes_per_unit > 0.0;
    let jobs: Vec<Job> = tasks.graph.node_weights().map(|t| job(plan, costs, *t, links)).collect();
    // Link out and link in of each rank.
    let capacity = if links { vec![costs.hop.bytes_per_unit; 2 * plan.num_ranks()] } else { Vec::new() };
    let spans = engine::run(&tasks.graph, &jobs, &capacity, early);
    let spans: Vec<Span> = match spans.iter().position(Option::is_none) {
        Some(_) => return Err(stuck(plan, &tasks, &spans)),
        None => spans.into_iter().flatten().collect(),
    };
    let computes = tasks.graph.node_indices().filter(|n| matches!(tasks.graph[*n], Task::Compute { .. }));
    let makespan = computes.map(|n| spans[n.index()].end).fold(0.0, f64::max);
    let ranks = (0..plan.num_ranks()).map(|r| rank_time(plan, &tasks, &spans, r, makespan)).collect();
    let memory = memory(plan, costs, &tasks, &spans);
    let critical = engine::critical_path(&tasks.graph, &jobs, &spans, early);
    Ok(Simulated { tasks, spans, makespan, ranks, memory, critical })
}

/// A pair of ranks' link takes the next message while the last is on its way.
fn early(edge: &Edge) -> bool {
    *edge == Edge::Channel
}

fn stuck(plan: &Plan, tasks: &Tasks, spans: &[Option<Span>]) -> ScheduleError {
    let of =
        |rank: usize| tasks.nodes[rank].iter().position(|n| n.is_some_and(|n| spans[n.index()].is_none())).map(|p| (rank, p));
    let (rank, position) = (0..plan.num_ranks()).find_map(of).unwrap_or((0, 0));
    let action = crate::text::cell(plan.actions[rank][position], plan.num_stages());
    ScheduleError::Stuck { rank, action, position }
}

/// Whether every rank's memory is within a limit. # Units: MiB.
///
/// # Errors
/// E0406 with the rank that needs most.
pub fn check_memory(out: &Simulated, limit: u64) -> Result<(), ScheduleError> {
    let sums = out.memory.iter().map(|m| ((m.parameters + m.peak_activations + m.buffers) / f64::from(1 << 20)).ceil() as u64);
    let Some((rank, needed)) = sums.enumerate().max_by_key(|(rank, sum)| (*sum, std::cmp::Reverse(*rank))) else { return Ok(()) };
    if needed <= limit {
        return Ok(());
    }
    let m = &out.memory[rank];
    let most = if m.parameters > m.peak_activations { "parameters" } else { "activations" };
    let help = format!(
        "most of it are {most}: --explain shows every cause; --recompute holds fewer activations, more ranks fewer parameters"
    );
    Err(ScheduleError::Memory { rank, needed, limit, help })
}

/// What a task takes.
fn job(plan: &Plan, costs: &Costs, task: Task, links: bool) -> Job {
    match task {
        Task::Compute { rank, position } => {
            let action = plan.actions[rank as usize][position as usize];
            Job { work: time(plan, costs, action) * jitter(costs, rank, position), ..Job::default() }
        }
        Task::Message { from, to, .. } => {
            let share = |pool: u32| links.then_some(Share { pool, amount: costs.hop.bytes_per_unit, first: false });
            let work = if links { costs.hop.bytes / costs.hop.bytes_per_unit } else { 0.0 };
            Job { work, latency: costs.hop.latency, shares: [share(2 * from), share(2 * to + 1)] }
        }
        Task::Reduce { stage } => {
            let alone = plan.placement.holders(stage).len() < 2;
            Job { work: if alone { 0.0 } else { costs.reduce * costs.scale(plan, stage) }, ..Job::default() }
        }
    }
}

/// How long an action computes.
pub fn time(plan: &Plan, costs: &Costs, action: Action) -> f64 {
    let scale = |u: crate::Unit| costs.scale(plan, u.stage);
    match action {
        Action::Forward(u) | Action::Recompute(u) => costs.forward * scale(u),
        Action::Backward(u) => costs.whole_backward() * scale(u),
        Action::BackwardInput(u) => costs.backward_input * scale(u),
        Action::BackwardWeight(u) => costs.backward_weight * scale(u),
        // Where stages differ each half gains in the same proportion.
        Action::Pair { forward, backward } => {
            let apart = costs.forward + costs.whole_backward();
            let gain = if apart > 0.0 { costs.whole_pair() / apart } else { 1.0 };
            if scale(forward) == scale(backward) {
                costs.whole_pair() * scale(forward)
            } else {
                gain * (costs.forward * scale(forward) + costs.whole_backward() * scale(backward))
            }
        }
        Action::Update { stage } => costs.update * costs.scale(plan, stage),
        Action::Send(_) | Action::Receive(_) | Action::WaitSend(_) | Action::ReduceGrad { .. } => 0.0,
    }
}

/// 1, or more for a straggler.
fn jitter(costs: &Costs, rank: u32, position: u32) -> f64 {
    if costs.jitter.spread == 0.0 {
        return 1.0;
    }
    // SplitMix64 of a counter: Steele et al., 2014.
    let mut z = costs.jitter.seed ^ (u64::from(rank) << 32 | u64::from(position)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    let uniform = ((z >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    1.0 - costs.jitter.spread * uniform.ln()
}

/// Where a rank's time went.
fn rank_time(plan: &Plan, tasks: &Tasks, spans: &[Span], rank: usize, makespan: f64) -> RankTime {
    let mut out = RankTime::default();
    let mut free = 0.0;
    let mut first = true;
    let list = plan.actions[rank].iter().zip(&tasks.nodes[rank]).filter(|(a, _)| a.computes());
    for node in list.filter_map(|(_, n)| *n) {
        let span = spans[node.index()];
        let gap = span.start - free;
        if first {
            out.warm_up += gap;
        } else if gap > 0.0 {
            // The message that it waited for, if it was one: how long was that under way?
            let last = tasks
                .graph
                .neighbors_directed(node, Incoming)
                .max_by(|a, b| spans[a.index()].end.total_cmp(&spans[b.index()].end).then(b.cmp(a)));
            let moving = last.filter(|n| matches!(tasks.graph[*n], Task::Message { .. } | Task::Reduce { .. }));
            let moved = moving.map_or(0.0, |n| span.start - spans[n.index()].start.max(free));
            out.rendezvous += moved;
            out.dependency += gap - moved;
        }
        first = false;
        out.busy += span.end - span.start;
        free = span.end;
    }
    out.drain = makespan - free;
    out
}

/// What every rank holds.
fn memory(plan: &Plan, costs: &Costs, tasks: &Tasks, spans: &[Span]) -> Vec<RankMemory> {
    let stages = plan.placement.stages_by_rank();
    let (bytes, parts) = (costs.memory, costs.parts.unwrap_or(pipeline_ranks(plan) as f64));
    let mut out = Vec::with_capacity(plan.num_ranks());
    for (rank, list) in plan.actions.iter().enumerate() {
        let mut m = RankMemory::default();
        let (mut live_parts, mut live) = (0.0f64, 0.0f64);
        let mut held = [0usize; 3];
        let mut most = [0usize; 3];
        let mut recomputed: Vec<crate::Unit> =
            list.iter().filter_map(|a| if let Action::Recompute(u) = a { Some(*u) } else { None }).collect();
        recomputed.sort_unstable();
        for (action, node) in list.iter().zip(&tasks.nodes[rank]) {
            slots::begins(plan, rank, *action).iter().for_each(|(p, _)| held[*p as usize] += 1);
            (0..3).for_each(|p| most[p] = most[p].max(held[p]));
            slots::ends(plan, rank, *action).iter().for_each(|(p, _)| held[*p as usize] = held[*p as usize].saturating_sub(1));
            let Some(span) = node.map(|n| spans[n.index()]) else { continue };
            let before = live;
            if let Some(u) = action.forward() {
                live_parts += costs.scale(plan, u.stage);
                live += costs.scale(plan, u.stage)
                    * if recomputed.binary_search(&u).is_ok() { bytes.input } else { bytes.activation };
            }
            if let Action::Recompute(u) = *action {
                live += costs.scale(plan, u.stage) * (bytes.activation - bytes.input);
            }
            if live != before {
                m.curve.push((span.start, live));
            }
            m.peak_parts = m.peak_parts.max(live_parts);
            m.peak_activations = m.peak_activations.max(live);
            let before = live;
            if let Action::BackwardInput(u) = *action {
                live -= costs.scale(plan, u.stage) * (bytes.activation - bytes.weight_part);
            }
            if let Some(u) = action.ends() {
                live_parts -= costs.scale(plan, u.stage);
                let kept = if matches!(action, Action::BackwardWeight(_)) { bytes.weight_part } else { bytes.activation };
                live -= costs.scale(plan, u.stage) * kept;
            }
            if live != before {
                m.curve.push((span.end, live));
            }
        }
        m.buffers = costs.hop.bytes * (most[1] + most[2]) as f64;
        m.parameters = stages[rank].iter().map(|s| bytes.parameters * costs.scale(plan, *s)).sum();
        // Sums of fractions such as 1/3 leave dust; units are at most as fine as stages.
        m.peak_parts = (m.peak_parts * plan.num_stages() as f64 / parts).round() * parts / plan.num_stages() as f64;
        out.push(m);
    }
    out
}
