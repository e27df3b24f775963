//! Two ways to run a plan that need more than others do, played without computing: a plan that they finish does not hang elsewhere.
//! Both are proofs of their own beside the task graph: they look at lists and counts alone.

use crate::{Action, Message, Plan};
use std::collections::{BTreeMap, VecDeque};

/// Which ranks wait for what: an item is (peer, whether the peer sends, how many the peer has to have posted).
type Needs = Vec<(usize, bool, usize)>;

/// Plays ranks until none can go on. `step` of a rank posts what it may and returns what it needs before its next step, or nothing at its
/// end; a post is (peer, whether this rank sends). Out: by rank whether it came to its end.
fn play(ranks: usize, mut step: impl FnMut(usize, &mut dyn FnMut(usize, bool) -> usize) -> Option<Needs>) -> Vec<bool> {
    // By (peer, whether the rank sends). Peers of a rank are few.
    let mut posted: Vec<BTreeMap<(usize, bool), usize>> = vec![BTreeMap::new(); ranks];
    let mut needs: Vec<Needs> = vec![Vec::new(); ranks];
    let mut ended = vec![false; ranks];
    let mut queue: VecDeque<usize> = (0..ranks).collect();
    let mut queued = vec![true; ranks];
    while let Some(rank) = queue.pop_front() {
        queued[rank] = false;
        while !ended[rank]
            && needs[rank].iter().all(|(peer, sends, n)| *n <= posted[*peer].get(&(rank, *sends)).copied().unwrap_or(0))
        {
            let mut post = |peer: usize, sends: bool| {
                if !std::mem::replace(&mut queued[peer], true) {
                    queue.push_back(peer);
                }
                let n = posted[rank].entry((peer, sends)).or_insert(0);
                *n += 1;
                *n
            };
            match step(rank, &mut post) {
                Some(next) => needs[rank] = next,
                None => ended[rank] = true,
            }
        }
    }
    ended
}

/// Ranks that exchange all messages between two computations at once, in the order of their lists, and wait until the other end of each has
/// been posted too, of sends as well. What [`crate::passes::insert_messages`] writes comes to its end like this; receives that were placed
/// ahead do not have to. Out: the ranks that do not come to their end, and where their batch begins.
pub fn batches_stuck(plan: &Plan) -> Vec<(usize, usize)> {
    let mut next = vec![0; plan.num_ranks()];
    let mut begin = next.clone();
    let is_message = |a: &Action| matches!(a, Action::Send(_) | Action::Receive(_));
    let ended = play(plan.num_ranks(), |rank, post| {
        let list = &plan.actions[rank];
        begin[rank] = next[rank] + list[next[rank]..].iter().take_while(|a| !is_message(a)).count();
        let batch = list[begin[rank]..].iter().take_while(|a| !a.computes());
        let mut needs = Needs::new();
        next[rank] = begin[rank];
        for action in batch {
            next[rank] += 1;
            let (Action::Send(message) | Action::Receive(message)) = *action else { continue };
            let sends = matches!(action, Action::Send(_));
            // A message to nowhere waits for ever, on itself.
            let peer = plan.route(message).map_or(rank, |(from, to)| if sends { to } else { from });
            needs.push((peer, !sends, post(peer, sends)));
        }
        if needs.is_empty() { None } else { Some(needs) }
    });
    (0..plan.num_ranks()).filter(|r| !ended[*r]).map(|r| (r, begin[r])).collect()
}

/// Ranks that take a message only when they come to its reader (with those before it from the same peer), and stop at a
/// [`Action::WaitSend`] until the other end has taken the message. Out: the ranks that do not come to their end, and where they stand.
pub fn lazy_stuck(plan: &Plan) -> Vec<(usize, usize)> {
    let ranks = plan.num_ranks();
    let mut next = vec![0; ranks];
    let mut posted: Vec<BTreeMap<usize, VecDeque<Message>>> = vec![BTreeMap::new(); ranks];
    // By rank and peer: how many were sent, and which number each message under way has.
    let mut numbers: Vec<BTreeMap<Message, (usize, usize)>> = vec![BTreeMap::new(); ranks];
    let mut taken: Vec<BTreeMap<usize, usize>> = vec![BTreeMap::new(); ranks];
    let ended = play(ranks, |rank, post| {
        // A step ends before the next action that has to wait; what it waits for is taken before that action is left.
        let list = &plan.actions[rank];
        let mut take = |from: usize, needs: &mut Needs, post: &mut dyn FnMut(usize, bool) -> usize| {
            let n = taken[rank].entry(from).or_insert(0);
            *n += 1;
            needs.push((from, true, *n));
            post(from, false);
        };
        while let Some(action) = list.get(next[rank]) {
            next[rank] += 1;
            let mut needs = Needs::new();
            match *action {
                Action::Send(m) => {
                    let to = plan.route(m).map_or(rank, |(_, to)| to);
                    numbers[rank].insert(m, (to, post(to, true)));
                }
                Action::Receive(m) => posted[rank].entry(plan.route(m).map_or(rank, |(from, _)| from)).or_default().push_back(m),
                Action::WaitSend(m) => needs.extend(numbers[rank].remove(&m).map(|(to, n)| (to, false, n))),
                Action::ReduceGrad { .. } => {}
                Action::Forward(_)
                | Action::Backward(_)
                | Action::BackwardInput(_)
                | Action::BackwardWeight(_)
                | Action::Pair { .. }
                | Action::Recompute(_)
                | Action::Update { .. } => {
                    for m in action.reads(plan.num_stages()) {
                        let Some((from, _)) = plan.route(m).filter(|(from, to)| from != to) else { continue };
                        let queue = posted[rank].entry(from).or_default();
                        // What was read before is not in the queue any more: messages may overtake their readers.
                        while queue.contains(&m) {
                            queue.pop_front();
                            take(from, &mut needs, post);
                        }
                    }
                }
            }
            if !needs.is_empty() {
                return Some(needs);
            }
        }
        // Messages that nobody reads.
        let rest: Vec<usize> = posted[rank].iter().flat_map(|(from, queue)| queue.iter().map(|_| *from)).collect();
        posted[rank].clear();
        let mut needs = Needs::new();
        rest.into_iter().for_each(|from| take(from, &mut needs, post));
        if needs.is_empty() { None } else { Some(needs) }
    });
    (0..ranks).filter(|r| !ended[*r]).map(|r| (r, next[r].max(1) - 1)).collect()
}
