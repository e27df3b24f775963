//! Schedules as data. A [`Policy`] generates what each rank computes, in order; [`passes`] add what ranks send each other; the result is
//! a [`Plan`], which prints and reads back. See `docs/ir/schedule.md`.
//!
//! Words: a model is cut into *stages*, numbered in the order a micro-batch passes them. A *direction* is a way that micro-batches take over
//! the ranks: most plans have one; DualPipe sends half of the micro-batches from the last rank to the first. Stages are numbered along their
//! direction, so an activation always goes from stage s to s + 1 and a gradient from s to s − 1; stage s holds the same layers in every
//! direction. Micro-batches are numbered from 0 within each direction.

pub mod action;
pub mod cluster;
pub mod costs;
pub mod draw;
pub mod engine;
pub mod error;
pub mod pair;
pub mod passes;
pub mod placement;
pub mod plan;
pub mod play;
pub mod policy;
pub mod report;
pub mod simulate;
pub mod slots;
pub mod tasks;
pub mod text;
pub mod verify;

pub use action::{Action, Message, Payload, Unit};
pub use costs::Costs;
pub use error::ScheduleError;
pub use placement::Placement;
pub use plan::Plan;
pub use policy::{Policy, Size};
pub use simulate::{Simulated, simulate};
pub use slots::{Slots, assign_slots};
pub use verify::{Limits, Violation, verify, verify_members, verify_messages};

#[cfg(test)]
mod tests;

/// A whole plan of a step: the policy's order, with messages, waits, gradient reductions and updates.
///
/// # Errors
/// E0401, E0402, E0403 if the size does not fit the policy; the error names the nearest that does.
pub fn plan(policy: Policy, size: Size) -> Result<Plan, ScheduleError> {
    let mut plan = policy.generate(size)?;
    passes::lower(&mut plan)?;
    Ok(plan)
}
