//! Places receives ahead of their readers: early enough that a message is on its way while the rank still computes, late enough that its
//! buffer is not held for long. In: messages are there. Out: a receive stands `ahead` computations before its reader, or earlier where
//! messages from one peer arrive in another order than they are read in; per peer receives keep their order.

use crate::{Action, Plan, tasks};
use std::collections::HashMap;

/// The pass. A plan in which ranks could then wait for each other keeps its receives.
pub fn defer_receives(plan: &mut Plan, ahead: usize) {
    let lists = (0..plan.num_ranks()).map(|rank| placed(plan, rank, ahead)).collect();
    let before = std::mem::replace(&mut plan.actions, lists);
    if tasks::stuck(&tasks::tasks(plan)).contains(&true) {
        plan.actions = before;
    }
}

fn placed(plan: &Plan, rank: usize, ahead: usize) -> Vec<Action> {
    let list = &plan.actions[rank];
    let mut readers = HashMap::new();
    let mut computed = 0usize;
    for action in list.iter().filter(|a| a.computes()) {
        action.reads(plan.num_stages()).for_each(|m| _ = readers.insert(m, computed));
        computed += 1;
    }
    // From the end: a receive goes `ahead` computations before its reader, and not behind later ones from the same peer.
    let mut limit = HashMap::new();
    let mut at: Vec<Vec<Action>> = vec![Vec::new(); computed + 1];
    for action in list.iter().rev() {
        if let Action::Receive(message) = *action {
            let from = plan.route(message).map(|(from, _)| from);
            let wanted = readers.get(&message).map_or(computed, |r| r.saturating_sub(ahead));
            let place = *limit.get(&from).unwrap_or(&computed).min(&wanted);
            limit.insert(from, place);
            at[place].push(*action);
        }
    }
    let mut out = Vec::with_capacity(list.len());
    let mut position = 0;
    for action in list.iter().filter(|a| !matches!(a, Action::Receive(_))) {
        if action.computes() {
            out.extend(at[position].drain(..).rev());
            position += 1;
        }
        out.push(*action);
    }
    out.extend(at[position].drain(..).rev());
    out
}
