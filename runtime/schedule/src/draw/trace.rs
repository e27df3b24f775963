//! A trace in Chrome's JSON format, which Perfetto reads too: a process a rank with its compute stream and its messages; arrows from the action
//! that makes a message to the action that reads it. Times in micro-units: a time of 1 in the costs' unit is 1,000.

use crate::{Action, Plan, Simulated, engine::Span, tasks::Task, text};
use std::fmt::Write;

/// The JSON, one event a line.
pub fn trace(plan: &Plan, simulated: &Simulated) -> String {
    let mut events = Vec::new();
    for rank in 0..plan.num_ranks() {
        events.push(format!(r#"{{"ph":"M","pid":{rank},"name":"process_name","args":{{"name":"rank {rank}"}}}}"#));
        events.push(format!(r#"{{"ph":"M","pid":{rank},"name":"process_sort_index","args":{{"sort_index":{rank}}}}}"#));
        for (thread, name) in ["compute", "messages out"].iter().enumerate() {
            events.push(format!(r#"{{"ph":"M","pid":{rank},"tid":{thread},"name":"thread_name","args":{{"name":"{name}"}}}}"#));
        }
    }
    for (rank, list) in plan.actions.iter().enumerate() {
        for (action, node) in list.iter().zip(&simulated.tasks.nodes[rank]).filter(|(a, _)| a.computes()) {
            let Some(span) = node.map(|n| simulated.spans[n.index()]) else { continue };
            events.push(complete(rank, 0, &text::cell(*action, plan.num_stages()), kind(*action), span));
        }
    }
    // A message has an arrow from the end of its maker to its arrival, which its number ties together.
    for (number, node) in simulated.tasks.graph.node_indices().enumerate() {
        let Task::Message { message, from, to } = simulated.tasks.graph[node] else { continue };
        let (span, cell) = (simulated.spans[node.index()], text::cell(Action::Send(message), plan.num_stages()));
        events.push(complete(from as usize, 1, &cell, "message", span));
        let arrow = |phase: &str, rank: u32, time: f64| {
            format!(
                r#"{{"ph":"{phase}","id":{number},"pid":{rank},"tid":0,"ts":{},"name":"{cell}","cat":"message"}}"#,
                micro(time)
            )
        };
        events.push(arrow("s", from, span.start));
        // It binds to the action that begins next there.
        events.push(arrow("f", to, span.end));
    }
    format!("{{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n{}\n]}}\n", events.join(",\n"))
}

/// Thousandths, without the dust of sums.
fn micro(time: f64) -> f64 {
    (time * 1e6).round() / 1e3
}

fn complete(rank: usize, thread: usize, name: &str, category: &str, span: Span) -> String {
    let mut out = String::new();
    let duration = micro(span.end - span.start);
    let done = write!(
        out,
        r#"{{"ph":"X","pid":{rank},"tid":{thread},"ts":{},"dur":{duration},"name":"{name}","cat":"{category}"}}"#,
        micro(span.start)
    );
    done.expect("strings can be written");
    out
}

fn kind(action: Action) -> &'static str {
    match action {
        Action::Forward(_) => "forward",
        Action::Backward(_) => "backward",
        Action::BackwardInput(_) => "backward input",
        Action::BackwardWeight(_) => "backward weight",
        Action::Pair { .. } => "pair",
        Action::Recompute(_) => "recompute",
        Action::Send(_) | Action::Receive(_) | Action::WaitSend(_) => "message",
        Action::ReduceGrad { .. } => "reduce",
        Action::Update { .. } => "update",
    }
}
