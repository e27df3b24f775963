//! Moves receives towards their readers, so that a receive's buffer is held no longer than it has to be. In: messages are there. Out: a
//! receive stands `ahead` computations before the one that reads it, or earlier; per peer they keep their order.

use crate::{Action, Plan};

/// The pass. Where the deferred receives of a plan could make ranks that post and wait in batches wait for each other, they stay as they were.
pub fn defer_receives(plan: &mut Plan, ahead: usize) {
    let lists = (0..plan.num_ranks()).map(|rank| deferred(plan, rank, ahead)).collect();
    let before = std::mem::replace(&mut plan.actions, lists);
    if !batches_finish(plan) {
        plan.actions = before;
    }
}

fn deferred(plan: &Plan, rank: usize, ahead: usize) -> Vec<Action> {
    let list = &plan.actions[rank];
    // From the end: a receive goes before the computation `ahead` before its reader, and before later receives from the same peer.
    let mut readers = std::collections::HashMap::new();
    let mut computed = 0usize;
    for action in list.iter().filter(|a| a.computes()) {
        action.reads(plan.num_stages()).for_each(|m| _ = readers.insert(m, computed));
        computed += 1;
    }
    let mut limit = std::collections::HashMap::new();
    let mut at: Vec<Vec<Action>> = vec![Vec::new(); computed + 1];
    let mut position = computed;
    for action in list.iter().rev() {
        if let Action::Receive(message) = *action {
            let from = plan.route(message).map(|(from, _)| from);
            let wanted = readers.get(&message).map_or(position, |r| r.saturating_sub(ahead)).max(position);
            let place = *limit.get(&from).unwrap_or(&computed).min(&wanted);
            limit.insert(from, place);
            at[place].push(*action);
        } else if action.computes() {
            position -= 1;
        }
    }
    let mut out = Vec::with_capacity(list.len());
    let mut position = 0;
    let mut place = |position: usize, out: &mut Vec<Action>| out.extend(at[position].drain(..).rev());
    for action in list.iter().filter(|a| !matches!(a, Action::Receive(_))) {
        if action.computes() {
            place(position, &mut out);
            position += 1;
        }
        out.push(*action);
    }
    place(position, &mut out);
    out
}

/// Plays the plan on ranks that post all messages between two computations at once and then wait for every one of them, both ends; per pair
/// of ranks in order. The worst way to run it, and a proof of its own that it ends.
pub fn batches_finish(plan: &Plan) -> bool {
    let ranks = plan.num_ranks();
    // By (rank, peer): how many are posted and how many of the other end. Peers of a rank are few.
    let mut posted: Vec<std::collections::BTreeMap<(usize, bool), usize>> = vec![Default::default(); ranks];
    let mut next = vec![0; ranks];
    // What rank r's batch needs: the peer's posts of the other end of (peer, sends) to reach a number.
    let mut needs: Vec<Vec<(usize, bool, usize)>> = vec![Vec::new(); ranks];
    let mut queue: std::collections::VecDeque<usize> = (0..ranks).collect();
    let mut queued = vec![true; ranks];
    while let Some(rank) = queue.pop_front() {
        queued[rank] = false;
        loop {
            if !needs[rank].iter().all(|(peer, sends, n)| posted[*peer].get(&(rank, !sends)).is_some_and(|have| have >= n)) {
                break;
            }
            needs[rank].clear();
            let list = &plan.actions[rank];
            // Over computations, up to the next batch.
            while next[rank] < list.len() && !matches!(list[next[rank]], Action::Send(_) | Action::Receive(_)) {
                next[rank] += 1;
            }
            if next[rank] == list.len() {
                break;
            }
            while let Some(action) = list.get(next[rank]).filter(|a| !a.computes()) {
                next[rank] += 1;
                let (message, sends) = match *action {
                    Action::Send(m) => (m, true),
                    Action::Receive(m) => (m, false),
                    Action::WaitSend(_) | Action::ReduceGrad { .. } => continue,
                    Action::Forward(_) | Action::Backward(_) | Action::BackwardInput(_) | Action::BackwardWeight(_) => continue,
                    Action::Pair { .. } | Action::Recompute(_) | Action::Update { .. } => continue,
                };
                let Some((from, to)) = plan.route(message) else { return false };
                let peer = if sends { to } else { from };
                let n = posted[rank].entry((peer, sends)).or_insert(0);
                *n += 1;
                needs[rank].push((peer, sends, *n));
                if !std::mem::replace(&mut queued[peer], true) {
                    queue.push_back(peer);
                }
            }
        }
    }
    (0..ranks).all(|r| needs[r].is_empty() && next[r] == plan.actions[r].len())
}
