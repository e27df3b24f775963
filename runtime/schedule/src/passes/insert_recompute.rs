//! Trades time for memory. In: an order of computing. Out: before every backward its forward is computed again, so that between the two only
//! the stage's input is kept.

use crate::{Action, Plan};

/// The pass.
pub fn insert_recompute(plan: &mut Plan) {
    for list in &mut plan.actions {
        *list = list.iter().flat_map(|a| a.backward().map(Action::Recompute).into_iter().chain([*a])).collect();
    }
}
