//! ZB1P (ZB-H1): 1F1B with split backwards; weight gradients fill the end, with the memory of 1F1B. # Source: Qi et al., Zero Bubble Pipeline
//! Parallelism, 2023, section 3.1.

use super::{Policy, Size, row::Row};
use crate::{Placement, Plan, ScheduleError};

/// The order of each rank. Weight gradients run `rank` micro-batches behind.
pub fn generate(size: Size) -> Result<Plan, ScheduleError> {
    let (ranks, micro) = (size.ranks, size.micro);
    super::need_ranks(Policy::Zb1p, ranks)?;
    super::need_micro(Policy::Zb1p, size, 1)?;
    let list = |rank: usize| {
        let mut row = Row::new(&[(0, rank as u16)]);
        let warm_up = micro.min(ranks - 1 - rank);
        (0..warm_up).for_each(|_| row.f(0));
        for k in 0..micro {
            if k < micro - warm_up {
                row.f(0);
            }
            row.i(0);
            if k >= rank {
                row.w();
            }
        }
        (0..micro.min(rank)).for_each(|_| row.w());
        row.actions
    };
    Ok(super::plan(Policy::Zb1p, Placement::linear(ranks), micro, list))
}
