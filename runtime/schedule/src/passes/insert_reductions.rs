//! Adds the sums of gradients and the optimiser's steps, if a plan has none. In: computations are there. Out: a stage's sum follows the last gradients of its
//! weights on the rank, as soon as they are there; the updates stand at the end, in the order of the sums.
//!
//! All holders of a stage have to sum in the same order. Copies of a pipeline do, since their lists are equal. A rank and its mirror in
//! DualPipe do too: the mirror runs the same list with the directions swapped, and what is near to the one is near to the other, so both end
//! the same stage first.

use crate::{Action, Plan};

/// The pass.
pub fn insert_reductions(plan: &mut Plan) {
    let stages = plan.placement.stages_by_rank();
    let has = |is: fn(&Action) -> bool| plan.actions.iter().flatten().any(is);
    let (sums, updates) = (!has(|a| matches!(a, Action::ReduceGrad { .. })), !has(|a| matches!(a, Action::Update { .. })));
    for (rank, list) in plan.actions.iter_mut().enumerate() {
        let last: Vec<(usize, u16)> = stages[rank]
            .iter()
            .filter_map(|s| {
                let end = list.iter().rposition(|a| a.ends().is_some_and(|u| u.stage == *s))?;
                // A neighbour waits for what the last backward sends: that goes first.
                let sends = list[end + 1..].iter().take_while(|a| matches!(a, Action::Send(_) | Action::WaitSend(_))).count();
                Some((end + sends, *s))
            })
            .collect();
        let mut order = last.clone();
        order.sort_unstable();
        let mut out = Vec::with_capacity(list.len() + 2 * order.len());
        for (position, action) in list.iter().enumerate() {
            out.push(*action);
            out.extend(
                last.iter().filter(|(p, _)| sums && *p == position).map(|(_, stage)| Action::ReduceGrad { stage: *stage }),
            );
        }
        out.extend(order.iter().filter(|_| updates).map(|(_, stage)| Action::Update { stage: *stage }));
        *list = out;
    }
}
