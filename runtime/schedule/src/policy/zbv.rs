//! ZB-V: split backwards on a V of half stages; the first rank has the loss too. # Source: Qi et al., Pipeline Parallelism with Controllable
//! Memory, 2024.

use super::{Policy, Size, row::Row};
use crate::{Placement, Plan, ScheduleError};

/// The order of each rank. It is made for at least 2·ranks − 1 micro-batches; of fewer, what is too much is left out.
pub fn generate(size: Size) -> Result<Plan, ScheduleError> {
    let (ranks, micro) = (size.ranks, size.micro);
    super::need_ranks(Policy::Zbv, ranks)?;
    super::need_micro(Policy::Zbv, size, 1)?;
    let made = micro.max(2 * ranks - 1);
    let list = |rank: usize| {
        let chunks = [(0, rank as u16), (0, (2 * ranks - 1 - rank) as u16)];
        let mut row = Row::new(&chunks);
        let (below, above) = (rank, ranks - rank);
        (0..2 * above - 1).for_each(|_| row.f(0));
        for _ in 0..below {
            row.f(1);
            row.f(0);
        }
        for _ in 0..above {
            row.f(1);
            row.i(1);
            row.w();
        }
        // As many of chunk 0 as of chunk 1 are left to do: forwards of chunk 1 come to an end last.
        let (ahead, behind) = (2 * above - 1 + below, below + above);
        for n in 0..made - behind {
            if ahead + n < made {
                row.f(0);
            }
            row.i(0);
            row.w();
            row.f(1);
            row.i(1);
            row.w();
        }
        for _ in 0..below {
            row.i(0);
            row.i(1);
        }
        for _ in 0..above {
            row.i(0);
            row.w_of(0);
        }
        (0..below).for_each(|_| row.w_of(1));
        (0..below).for_each(|_| row.w_of(0));
        row.actions.retain(|a| a.forward().or(a.backward()).or(a.ends()).is_some_and(|u| (u.micro as usize) < micro));
        row.actions
    };
    Ok(super::plan(Policy::Zbv, Placement::v(ranks), micro, list))
}
