//! From an order of computing to a plan that ranks can follow: what they send each other, when they wait, when gradients are summed.

mod defer_receives;
mod insert_messages;
mod insert_recompute;
mod insert_reductions;
mod insert_waits;

pub use defer_receives::defer_receives;
pub use insert_messages::insert_messages;
pub use insert_recompute::insert_recompute;
pub use insert_reductions::insert_reductions;
pub use insert_waits::insert_waits;

use crate::{Action, Plan, ScheduleError, play};

/// How many messages a rank may have under way to one peer, where that does not make ranks wait for each other.
/// # Source: two buffers: one is read by the network while the other is filled.
pub const OUTSTANDING_SENDS: usize = 2;

/// All of them, in order. In: an order of computing. Out: a whole plan.
///
/// # Errors
/// E0403 if the order cannot be played to its end.
pub fn lower(plan: &mut Plan) -> Result<(), ScheduleError> {
    insert_messages(plan)?;
    place(plan);
    insert_reductions(plan);
    Ok(())
}

fn place(plan: &mut Plan) {
    defer_receives(plan, 1);
    bound(plan);
}

/// Where a rank gets ahead of its peer by more than two messages, more have to be under way.
fn bound(plan: &mut Plan) {
    let messages = std::mem::take(&mut plan.actions);
    for outstanding in OUTSTANDING_SENDS.. {
        plan.actions.clone_from(&messages);
        insert_waits(plan, outstanding);
        if outstanding > 2 * plan.num_micro || play::lazy_stuck(plan).is_empty() {
            break;
        }
    }
}

/// Those whose work is not there yet. In: an order of computing, or a whole plan, or one with messages alone. Out: a whole plan.
///
/// # Errors
/// E0403 if the order cannot be played to its end.
pub fn complete(plan: &mut Plan) -> Result<(), ScheduleError> {
    let has = |plan: &Plan, is: fn(&Action) -> bool| plan.actions.iter().flatten().any(is);
    if !has(plan, |a| matches!(a, Action::Send(_) | Action::Receive(_))) {
        insert_messages(plan)?;
        place(plan);
    } else if !has(plan, |a| matches!(a, Action::WaitSend(_))) {
        bound(plan);
    }
    insert_reductions(plan);
    Ok(())
}
