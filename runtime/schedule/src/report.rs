//! What `lode schedule` says of a plan, as text.

use crate::{
    Action, Costs, Plan, Policy, ScheduleError, Simulated, Size,
    cluster::{Cluster, Routing},
    pair::{self, PairCosts},
    simulate::{RankTime, simulate, time},
    slots,
    tasks::Task,
};
use std::fmt::Write;

/// Writes a line.
macro_rules! line {
    ($out:expr, $($arg:tt)*) => { writeln!($out, $($arg)*).expect("strings can be written") };
}

/// Rows of text under a head, columns as wide as they have to be; the first is aligned left.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width: Vec<usize> =
        (0..columns).map(|c| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0)).collect();
    let mut out = String::new();
    for row in rows {
        let cells = row.iter().enumerate().map(|(c, s)| {
            let pad = " ".repeat(width[c] - s.chars().count());
            if c == 0 { format!("{s}{pad}") } else { format!("{pad}{s}") }
        });
        line!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    out
}

/// Up to three digits behind the point, fewer of large numbers.
fn number(x: f64) -> String {
    let digits = if x < 100.0 { 3 } else { 1 };
    let text = format!("{x:.digits$}");
    if !text.contains('.') {
        return text;
    }
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

fn range(values: impl Iterator<Item = f64> + Clone) -> String {
    let (least, most) = (values.clone().fold(f64::MAX, f64::min), values.fold(f64::MIN, f64::max));
    let (least, most) = (number(least), number(most));
    if least == most { least } else { format!("{least} to {most}") }
}

/// # Units: mebibytes.
fn mebibytes(bytes: f64) -> String {
    format!("{:.0}", bytes / f64::from(1 << 20))
}

fn with_unit(x: String, unit: &str) -> String {
    if unit.is_empty() { x } else { format!("{x} {unit}") }
}

/// Where the time of a simulated plan went: a line a rank (of many ranks the first of each kind of line), and the critical path.
pub fn simulated(plan: &Plan, costs: &Costs, out: &Simulated) -> String {
    let idle = out.ranks.iter().map(RankTime::idle);
    let mut text = String::new();
    let unit = &costs.unit;
    line!(
        text,
        "{} on {} ranks, {} micro-batches: step {}, bubble {} ({:.1} % of the ranks' time)",
        plan.policy,
        plan.num_ranks(),
        plan.num_micro * plan.placement.num_dirs(),
        with_unit(number(out.makespan), unit),
        with_unit(range(idle.clone()), unit),
        100.0 * idle.sum::<f64>() / (out.makespan * plan.num_ranks() as f64)
    );
    let head = ["rank", "busy", "warm-up", "dependency", "rendezvous", "drain", "idle", "activations"];
    let mut rows = vec![head.map(String::from).to_vec()];
    let mut last: Option<Vec<String>> = None;
    for (rank, (time, memory)) in out.ranks.iter().zip(&out.memory).enumerate() {
        let cells =
            [time.busy, time.warm_up, time.dependency, time.rendezvous, time.drain, time.idle(), memory.peak_parts].map(number);
        // Copies of a pipeline repeat its lines.
        if plan.num_ranks() > 64 && rank >= crate::costs::pipeline_ranks(plan) {
            last = Some(cells.to_vec());
            continue;
        }
        rows.push([vec![rank.to_string()], cells.to_vec()].concat());
    }
    if last.is_some() {
        rows.push(vec!["…".into()]);
    }
    text += &table(&rows);
    text + &critical(out, unit)
}

/// What the critical path is made of.
fn critical(out: &Simulated, unit: &str) -> String {
    let span = |n: &petgraph::graph::NodeIndex| out.spans[n.index()];
    let (mut computes, mut messages, mut hops) = (0.0, 0.0, 0usize);
    for node in &out.critical {
        let took = span(node).end - span(node).start;
        match out.tasks.graph[*node] {
            Task::Compute { .. } => computes += took,
            Task::Message { .. } => {
                messages += took;
                hops += 1;
            }
            Task::Reduce { .. } => messages += took,
        }
    }
    format!(
        "critical path: {} of computing, {} of messages, {hops} hops between ranks\n",
        with_unit(number(computes), unit),
        with_unit(number(messages), unit)
    )
}

/// All policies on the same ranks with the same micro-batches.
///
/// # Errors
/// E0405 if the costs are of another plan.
pub fn compare(size: Size, costs: &Costs) -> Result<String, ScheduleError> {
    let head = ["policy", "stages", "step", "bubble", "bubble %", "activations", "parameters", "pairs"];
    let mut rows = vec![head.map(String::from).to_vec()];
    let mut refused = String::new();
    for policy in Policy::ALL {
        let plan = match crate::plan(policy, size) {
            Ok(plan) => plan,
            Err(e) => {
                line!(refused, "{}", says(&e));
                continue;
            }
        };
        let out = simulate(&plan, costs)?;
        let idle = out.ranks.iter().map(RankTime::idle);
        let pairs = plan.actions.iter().map(|l| l.iter().filter(|a| matches!(a, Action::Pair { .. })).count() as f64);
        let held: f64 = plan.placement.stages_by_rank().iter().map(Vec::len).sum::<usize>() as f64 / plan.num_stages() as f64;
        rows.push(vec![
            policy.name().into(),
            plan.num_stages().to_string(),
            number(out.makespan),
            range(idle.clone()),
            format!("{:.1}", 100.0 * idle.sum::<f64>() / (out.makespan * plan.num_ranks() as f64)),
            range(out.memory.iter().map(|m| m.peak_parts)),
            format!("{}x", number(held)),
            range(pairs),
        ]);
    }
    let mut text = String::new();
    let unit = if costs.unit.is_empty() { String::new() } else { format!(", times in {}", costs.unit) };
    line!(
        text,
        "{} ranks, {} micro-batches{unit}; activations of a rank in 1/{} of the model",
        size.ranks,
        size.micro,
        size.ranks
    );
    Ok(text + &table(&rows) + &refused)
}

/// An error and its help, in a line.
pub fn says(e: &ScheduleError) -> String {
    let help = miette::Diagnostic::help(e).map(|h| format!(" ({h})")).unwrap_or_default();
    format!("{e}{help}")
}

/// The published formula of a policy's bubble: in words, its value, and when it is exact.
pub fn formula(policy: Policy, size: Size, costs: &Costs) -> (&'static str, f64, &'static str) {
    let (f, w, fb) = (costs.forward, costs.backward_weight, costs.whole_pair());
    let (b, split) = (costs.whole_backward(), costs.backward_input + w);
    let p = size.ranks as f64;
    let parts = costs.parts.unwrap_or(p) / p;
    let equal = "exact for F = I = W";
    let (words, value, when) = match policy {
        Policy::OneFOneB => ("(P - 1)(F + B)", (p - 1.0) * (f + b), "exact"),
        Policy::Interleaved => ("(P - 1)(F + B) / v", (p - 1.0) * (f + b) / size.chunks.max(1) as f64, "exact if P divides N"),
        Policy::Zb1p => ("(P - 1)(F + B - 2W)", (p - 1.0) * (f + split - 2.0 * w), equal),
        Policy::Zbv => ("(P - 1) F / 2", (p - 1.0) * f / 2.0, equal),
        Policy::DualPipe => ("(P/2 - 1)(FB + B - 3W), the middle ranks'", (p / 2.0 - 1.0) * (fb + split - 3.0 * w), equal),
        Policy::DualPipeV => ("(P - 1)(FB + B - 3W) / 2, the last rank's", (p - 1.0) * (fb + split - 3.0 * w) / 2.0, equal),
    };
    (words, value * parts, when)
}

/// Counts, formula, simulated value and memory by cause.
pub fn explain(policy: Policy, size: Size, plan: &Plan, costs: &Costs, out: &Simulated) -> String {
    let mut text = String::new();
    let head = ["rank", "forwards", "backwards", "inputs", "weights", "pairs", "sends", "receives", "slots", "receive", "send"];
    let mut rows = vec![head.map(String::from).to_vec()];
    let pieces = slots::assign_slots(plan);
    for (rank, list) in plan.actions.iter().enumerate() {
        let count = |is: fn(&Action) -> bool| list.iter().filter(|a| is(a)).count().to_string();
        rows.push(vec![
            rank.to_string(),
            count(|a| matches!(a, Action::Forward(_))),
            count(|a| matches!(a, Action::Backward(_))),
            count(|a| matches!(a, Action::BackwardInput(_))),
            count(|a| matches!(a, Action::BackwardWeight(_))),
            count(|a| matches!(a, Action::Pair { .. })),
            count(|a| matches!(a, Action::Send(_))),
            count(|a| matches!(a, Action::Receive(_))),
            pieces.num[rank][0].to_string(),
            pieces.num[rank][1].to_string(),
            pieces.num[rank][2].to_string(),
        ]);
    }
    text += &table(&rows);
    let (words, value, when) = formula(policy, size, costs);
    line!(
        text,
        "bubble: {words} = {} by the formula ({when}); simulated {}",
        number(value),
        range(out.ranks.iter().map(RankTime::idle))
    );
    let times = [
        ("F", costs.forward),
        ("I", costs.backward_input),
        ("W", costs.backward_weight),
        ("B", costs.whole_backward()),
        ("FB", costs.whole_pair()),
    ];
    let times = times.map(|(name, t)| format!("{name} = {}", number(t)));
    line!(text, "times of a part: {}", times.join(", "));
    let bound = policy.max_live(size);
    let live = slots::peak_live(plan);
    line!(
        text,
        "activations: at most {} units (stage x micro-batch) at once, the policy's bound is {}",
        range(live.iter().map(|l| *l as f64)),
        range(bound.iter().map(|l| *l as f64))
    );
    if out.memory.iter().any(|m| m.peak_activations + m.buffers + m.parameters > 0.0) {
        let mut rows = vec![["rank", "parameters MiB", "activations MiB", "buffers MiB", "sum MiB"].map(String::from).to_vec()];
        for (rank, m) in out.memory.iter().enumerate() {
            let all = [m.parameters, m.peak_activations, m.buffers, m.parameters + m.peak_activations + m.buffers];
            rows.push([vec![rank.to_string()], all.map(mebibytes).to_vec()].concat());
        }
        text += &table(&rows);
    }
    let pair = plan.actions.iter().flatten().find(|a| matches!(a, Action::Pair { .. }));
    if let Some(pair) = pair {
        let apart = costs.forward + costs.whole_backward();
        let share = 100.0 * (1.0 - costs.whole_pair() / apart);
        line!(text, "a pair takes {}, {share:.1} % less than its halves apart", number(time(plan, costs, *pair)));
    }
    text
}

/// A run on a cluster for every routing, with pairs overlapped and 1F1B without.
///
/// # Errors
/// As [`crate::plan`] and [`simulate`].
pub fn cluster(cluster: &Cluster, policy: Policy, micro: usize) -> Result<String, ScheduleError> {
    let size = Size { ranks: cluster.ranks, micro, chunks: 2 };
    let plan = crate::plan(policy, size)?;
    let plain = crate::plan(Policy::OneFOneB, size)?;
    let mut text = String::new();
    line!(
        text,
        "{} {}: {} ranks a pipeline, {} pipelines, experts over {} GPUs; DeepSeek-V3's layers, {micro} micro-batches of {} tokens each",
        cluster.gpus,
        cluster.gpu.name,
        cluster.ranks,
        cluster.copies(),
        cluster.expert_ranks,
        crate::cluster::TOKENS
    );
    let head = ["routing", "copies", "MB", "comm ms", "exposed %", "step s", "bubble %", "overhead %", "1f1b s", "overhead %"];
    let mut rows = vec![head.map(String::from).to_vec()];
    for routing in Routing::ALL {
        let costs = cluster.costs(routing);
        let pure = cluster.pure_compute(micro);
        let overlapped = simulate(&plan, &costs)?;
        let apart = simulate(&plain, &costs)?;
        let idle = overlapped.ranks.iter().map(|r| (1e3 * r.idle() / overlapped.makespan).round() / 10.0);
        rows.push(vec![
            routing.name().into(),
            format!("{:.2}", cluster.remote_copies(routing)),
            format!("{:.0}", cluster.remote_bytes(routing) / 1e6),
            format!("{:.1}", cluster.comm(routing)),
            format!("{:.0}", 100.0 * cluster.exposed(routing)),
            format!("{:.2}", overlapped.makespan / 1e3),
            range(idle),
            format!("{:.0}", 100.0 * (1.0 - pure / overlapped.makespan)),
            format!("{:.2}", apart.makespan / 1e3),
            format!("{:.0}", 100.0 * (1.0 - pure / apart.makespan)),
        ]);
    }
    text += &table(&rows);
    let costs = cluster.costs(Routing::Limited);
    let sizes = [2, 3, 4, 6, 8, 12].map(|k| (k, k * cluster.ranks));
    let by_size = sizes.into_iter().filter_map(|(k, micro)| Some((k, overhead(cluster, policy, micro).ok()?)));
    let by_size: Vec<String> = by_size.map(|(k, share)| format!("{k}P {share:.0} %")).collect();
    line!(text, "overhead by micro-batches, node-limited: {}", by_size.join(", "));
    let memory = &simulate(&plan, &costs)?.memory[0];
    line!(
        text,
        "copies: of a token to other nodes; MB: a GPU's to other nodes, a layer's forward and backward; comm: those transfers under compute"
    );
    line!(
        text,
        "exposed: of a pair's time; overhead: what computing alone on whole GPUs would not take; 1f1b: communication not overlapped"
    );
    line!(
        text,
        "memory of a GPU: {} MiB of weights and gradients, {} MiB of message buffers, activations of {} units",
        mebibytes(memory.parameters),
        mebibytes(memory.buffers),
        number(memory.peak_parts)
    );
    line!(text, "not in the step: the optimiser, the sum of gradients, embedding and head, differences between pipelines");
    Ok(text)
}

/// The part of a step's time, in per cent, that computing alone on whole GPUs would not take; node-limited routing.
///
/// # Errors
/// As [`crate::plan`] and [`simulate`].
pub fn overhead(cluster: &Cluster, policy: Policy, micro: usize) -> Result<f64, ScheduleError> {
    let plan = crate::plan(policy, Size { ranks: cluster.ranks, micro, chunks: 2 })?;
    let out = simulate(&plan, &cluster.costs(Routing::Limited))?;
    Ok(100.0 * (1.0 - cluster.pure_compute(micro) / out.makespan))
}

/// The inside of a pair of stages with so many layers: every launch with its stream, its times and what it waits for.
pub fn pair(layers: usize, costs: &PairCosts) -> String {
    let launches = pair::launches(layers);
    let out = pair::simulate(&launches, costs);
    let name = |k: usize| format!("{}{}", launches[k].part.name(), launches[k].layer);
    let mut rows = vec![["#", "stream", "launch", "start", "end", "waits for"].map(String::from).to_vec()];
    for (k, (launch, span)) in launches.iter().zip(&out.spans).enumerate() {
        let stream = if launch.part.communicates() { "communication" } else { "compute" };
        let waits: Vec<String> = launch.waits.iter().map(|w| name(*w)).collect();
        rows.push(vec![k.to_string(), stream.into(), name(k), number(span.start), number(span.end), waits.join(" ")]);
    }
    let mut text = table(&rows);
    line!(
        text,
        "{} ms: compute busy {}, communication busy {}, both {}; {:.1} % of communication is under compute",
        number(out.makespan),
        number(out.compute),
        number(out.comm),
        number(out.both),
        100.0 * out.both / out.comm
    );
    text
}
