//! Which piece of memory an action writes. A rank has three pools: *activation* slots, held from a forward to the end of its unit's backward
//! (weight gradients included); *receive* buffers, from the receive to the action that reads it; *send* buffers, from the action that makes a
//! message to the wait for its send. Numbers are given in the order of the list, the lowest free one each time, which needs as many as are
//! ever held at once.

use crate::{Action, Message, Plan, Unit};
use std::collections::HashMap;

/// A pool of a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pool {
    /// What backwards need of forwards.
    Activation,
    /// What arrives.
    Receive,
    /// What leaves.
    Send,
}

impl Pool {
    /// All.
    pub const ALL: [Pool; 3] = [Pool::Activation, Pool::Receive, Pool::Send];
}

/// What a pool's piece holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Held {
    /// A unit's activations.
    Unit(Unit),
    /// A message, at its reader or at its maker.
    Message(Message),
}

/// The pieces of every rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slots {
    /// By rank and position in its list: the pieces that the action begins to hold, in the order of [`begins`].
    pub of: Vec<Vec<Vec<u32>>>,
    /// By rank: how many pieces each pool has, in the order of [`Pool::ALL`].
    pub num: Vec<[u32; 3]>,
}

/// What an action begins to hold: its forward's activations, then the messages that it makes for other ranks; or the message that arrives.
pub fn begins(plan: &Plan, rank: usize, action: Action) -> Vec<(Pool, Held)> {
    let mut out = Vec::new();
    out.extend(action.forward().map(|u| (Pool::Activation, Held::Unit(u))));
    let leaves = |m: &Message| plan.route(*m).is_some_and(|(from, to)| from == rank && to != rank);
    out.extend(action.makes().filter(leaves).map(|m| (Pool::Send, Held::Message(m))));
    if let Action::Receive(m) = action {
        out.push((Pool::Receive, Held::Message(m)));
    }
    out
}

/// What an action ends to hold, once it is done.
pub fn ends(plan: &Plan, rank: usize, action: Action) -> Vec<(Pool, Held)> {
    let mut out = Vec::new();
    out.extend(action.ends().map(|u| (Pool::Activation, Held::Unit(u))));
    let arrived = |m: &Message| plan.route(*m).is_some_and(|(from, to)| from != rank && to == rank);
    out.extend(action.reads(plan.num_stages()).filter(arrived).map(|m| (Pool::Receive, Held::Message(m))));
    if let Action::WaitSend(m) = action {
        out.push((Pool::Send, Held::Message(m)));
    }
    out
}

/// Gives every action its pieces.
pub fn assign_slots(plan: &Plan) -> Slots {
    let (mut of, mut num) = (Vec::new(), Vec::new());
    for (rank, list) in plan.actions.iter().enumerate() {
        let mut held: HashMap<(Pool, Held), u32> = HashMap::new();
        let mut free: [std::collections::BinaryHeap<std::cmp::Reverse<u32>>; 3] = Default::default();
        let mut used = [0; 3];
        let mut row = Vec::with_capacity(list.len());
        for action in list {
            let begun = begins(plan, rank, *action).into_iter().map(|what| {
                let pool = what.0 as usize;
                let piece = free[pool].pop().map_or_else(
                    || {
                        used[pool] += 1;
                        used[pool] - 1
                    },
                    |p| p.0,
                );
                held.insert(what, piece);
                piece
            });
            row.push(begun.collect());
            for what in ends(plan, rank, *action) {
                if let Some(piece) = held.remove(&what) {
                    free[what.0 as usize].push(std::cmp::Reverse(piece));
                }
            }
        }
        of.push(row);
        num.push(used);
    }
    Slots { of, num }
}

/// The most units whose activations each rank holds at once.
pub fn peak_live(plan: &Plan) -> Vec<usize> {
    let peak = |list: &Vec<Action>| {
        let (mut live, mut peak) = (0usize, 0);
        for action in list {
            live += usize::from(action.forward().is_some());
            peak = peak.max(live);
            live = live.saturating_sub(usize::from(action.ends().is_some()));
        }
        peak
    };
    plan.actions.iter().map(peak).collect()
}
