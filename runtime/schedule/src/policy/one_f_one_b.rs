//! One forward, one backward: as few activations as a pipeline can have. # Source: PipeDream-flush; Narayanan et al., 2021.

use super::{Policy, Size, row::Row};
use crate::{Placement, Plan, ScheduleError};

/// The order of each rank.
pub fn generate(size: Size) -> Result<Plan, ScheduleError> {
    let (ranks, micro) = (size.ranks, size.micro);
    super::need_ranks(Policy::OneFOneB, ranks)?;
    super::need_micro(Policy::OneFOneB, size, 1)?;
    let list = |rank: usize| {
        let mut row = Row::new(&[(0, rank as u16)]);
        let warm_up = micro.min(ranks - 1 - rank);
        (0..warm_up).for_each(|_| row.f(0));
        for _ in warm_up..micro {
            row.f(0);
            row.b(0);
        }
        (0..warm_up).for_each(|_| row.b(0));
        row.actions
    };
    Ok(super::plan(Policy::OneFOneB, Placement::linear(ranks), micro, list))
}
