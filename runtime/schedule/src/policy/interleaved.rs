//! Interleaved 1F1B: several stages on each rank, a smaller bubble for more messages and memory. # Source: Narayanan et al., 2021, section 2.2.

use super::{Policy, Size, row::Row};
use crate::{Placement, Plan, ScheduleError};

/// The order of each rank. Micro-batches go through the chunks in rounds of `group`, about as many as there are ranks.
pub fn generate(size: Size) -> Result<Plan, ScheduleError> {
    let Size { ranks, micro, chunks } = size;
    super::need_ranks(Policy::Interleaved, ranks)?;
    super::need_micro(Policy::Interleaved, size, 1)?;
    let chunks = chunks.max(1);
    let rounds = (micro / ranks).max(1);
    if !micro.is_multiple_of(rounds) {
        let fits = |n: &usize| n.is_multiple_of((n / ranks).max(1));
        let (below, above) = ((1..micro).rev().find(fits).unwrap_or(1), (micro + 1..).find(fits).unwrap_or(micro));
        return Err(ScheduleError::Micro {
            policy: Policy::Interleaved.name(),
            ranks,
            micro,
            why: format!("they make {rounds} equal rounds"),
            help: format!("take {below} or {above}"),
        });
    }
    let group = micro / rounds;
    let total = chunks * micro;
    let list = |rank: usize| {
        let stages: Vec<(u16, u16)> = (0..chunks).map(|c| (0, (c * ranks + rank) as u16)).collect();
        let mut row = Row::new(&stages);
        let forward = |k: usize| k / group % chunks;
        let backward = |k: usize| chunks - 1 - forward(k);
        let warm_up = total.min((chunks - 1) * group + 2 * (ranks - 1 - rank));
        (0..warm_up).for_each(|k| row.f(forward(k)));
        for k in warm_up..total {
            row.f(forward(k));
            row.b(backward(k - warm_up));
        }
        (total - warm_up..total).for_each(|k| row.b(backward(k)));
        row.actions
    };
    Ok(super::plan(Policy::Interleaved, Placement::looped(ranks, chunks), micro, list))
}
