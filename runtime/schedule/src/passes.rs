//! From an order of computing to a plan that ranks can follow: what they send each other, when they wait, when gradients are summed.

mod defer_receives;
mod insert_messages;
mod insert_reductions;
mod insert_waits;

pub use defer_receives::{batches_finish, defer_receives};
pub use insert_messages::insert_messages;
pub use insert_reductions::insert_reductions;
pub use insert_waits::insert_waits;

use crate::{Plan, ScheduleError};

/// How many messages a rank may have under way to one peer.
/// # Source: two buffers: one is read by the network while the other is filled.
pub const OUTSTANDING_SENDS: usize = 2;

/// All of them, in order. In: an order of computing. Out: a whole plan.
///
/// # Errors
/// E0403 if the order cannot be played to its end.
pub fn lower(plan: &mut Plan) -> Result<(), ScheduleError> {
    insert_messages(plan)?;
    defer_receives(plan, 1);
    insert_waits(plan, OUTSTANDING_SENDS);
    insert_reductions(plan);
    Ok(())
}
