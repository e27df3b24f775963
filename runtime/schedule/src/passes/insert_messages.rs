//! Adds sends and receives. In: an order of computing. Out: each message is sent right after the action that made it, and received somewhere
//! before the action that reads it.
//!
//! Ranks are played in turns, an action each. A send is written into its own list and the matching receive into the peer's at the same
//! moment, so there is one order of everything that all lists agree with: no list can wait for what stands behind it, even if every message
//! blocks both its ends. And the receives of a rank from one peer stand in the order of that peer's sends.
//! # Source: the idea of torch.distributed.pipelining's lowering.

use crate::{Action, Plan, ScheduleError, text};

/// Which units are done, on their own rank; what other ranks know of them came by a message, written at the same moment.
struct Played<'p> {
    plan: &'p Plan,
    forward: Vec<bool>,
    backward: Vec<bool>,
}

impl Played<'_> {
    fn is_ready(&self, action: Action) -> bool {
        let plan = self.plan;
        let made = |m: crate::Message| {
            let of = match m.payload {
                crate::Payload::Activation => &self.forward,
                crate::Payload::Gradient => &self.backward,
            };
            plan.index(m.unit).is_some_and(|i| of[i])
        };
        let own = match action {
            Action::BackwardWeight(u) => plan.index(u).is_some_and(|i| self.backward[i]),
            Action::Recompute(u) => plan.index(u).is_some_and(|i| self.forward[i]),
            Action::Forward(_) | Action::Backward(_) | Action::BackwardInput(_) | Action::Pair { .. } => {
                action.backward().is_none_or(|u| plan.index(u).is_some_and(|i| self.forward[i]))
            }
            Action::Send(_) | Action::Receive(_) | Action::WaitSend(_) => true,
            Action::ReduceGrad { .. } | Action::Update { .. } => true,
        };
        own && action.reads(plan.num_stages()).all(made)
    }
}

/// The pass.
///
/// # Errors
/// E0403 if the order cannot be played to its end.
pub fn insert_messages(plan: &mut Plan) -> Result<(), ScheduleError> {
    let (ranks, units) = (plan.num_ranks(), plan.num_units());
    let mut lists: Vec<Vec<Action>> = plan.actions.iter().map(|l| Vec::with_capacity(4 * l.len())).collect();
    let mut next = vec![0; ranks];
    let mut played = Played { plan, forward: vec![false; units], backward: vec![false; units] };
    loop {
        let mut moved = false;
        for rank in 0..ranks {
            let Some(action) = plan.actions[rank].get(next[rank]).copied() else { continue };
            if !played.is_ready(action) {
                continue;
            }
            moved = true;
            next[rank] += 1;
            lists[rank].push(action);
            if let Some(i) = action.forward().and_then(|u| plan.index(u)) {
                played.forward[i] = true;
            }
            if let Some(i) = action.backward().and_then(|u| plan.index(u)) {
                played.backward[i] = true;
            }
            for message in action.makes() {
                if let Some((from, to)) = plan.route(message).filter(|(from, to)| from != to) {
                    lists[from].push(Action::Send(message));
                    lists[to].push(Action::Receive(message));
                }
            }
        }
        if !moved {
            break;
        }
    }
    if let Some(rank) = (0..ranks).find(|r| next[*r] < plan.actions[*r].len()) {
        let (position, num_stages) = (next[rank], plan.num_stages());
        let action = text::cell(plan.actions[rank][position], num_stages);
        return Err(ScheduleError::Stuck { rank, action, position });
    }
    plan.actions = lists;
    Ok(())
}
