//! Bounds the messages under way. In: messages are there. Out: a send waits first for the one `outstanding` before it to the same peer, and the
//! last are waited for at the end; so the buffers of sends are few, and all free when the step ends.

use crate::{Action, Plan};
use std::collections::{BTreeMap, VecDeque};

/// The pass.
pub fn insert_waits(plan: &mut Plan, outstanding: usize) {
    for rank in 0..plan.num_ranks() {
        let mut under_way: BTreeMap<usize, VecDeque<_>> = BTreeMap::new();
        let mut out = Vec::with_capacity(plan.actions[rank].len() * 3 / 2);
        for action in &plan.actions[rank] {
            if let Action::Send(message) = *action {
                let peer = plan.route(message).map_or(rank, |(_, to)| to);
                let sends = under_way.entry(peer).or_default();
                if sends.len() == outstanding.max(1) {
                    out.extend(sends.pop_front().map(Action::WaitSend));
                }
                sends.push_back(message);
            }
            out.push(*action);
        }
        out.extend(under_way.into_values().flatten().map(Action::WaitSend));
        plan.actions[rank] = out;
    }
}
