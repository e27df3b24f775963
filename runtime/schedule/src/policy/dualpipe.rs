//! DualPipe and its half, DualPipeV. # Source: DeepSeek-V3 report, 2024, section 3.2.1 and the authors' repository; "cut in half" by Sea AI
//! Lab. DualPipe on 2·K ranks with 2·M micro-batches is DualPipeV on K ranks with M, plus its mirror image with the directions swapped.

use super::{Policy, Size, row::Row};
use crate::{Action, Placement, Plan, ScheduleError};

/// The list of rank `h` of `k` that holds chunk 0, nearer to the input, and chunk 1; `m` micro-batches. Needs m ≥ 2·k − 1.
fn half(k: usize, h: usize, m: usize, chunks: [(u16, u16); 2]) -> Vec<Action> {
    let (near, far) = (0, 1);
    let d = k - 1 - h;
    let mut row = Row::new(&chunks);
    // 1. Fill.
    (0..2 * d).for_each(|_| row.f(near));
    // 2. Both chunks.
    for _ in 0..=h {
        row.f(near);
        row.f(far);
    }
    // 3. First backwards; weight gradients at once, where nothing else could run.
    for _ in 0..d {
        row.i(far);
        row.w();
        row.f(far);
    }
    // 4. The steady state. The turning rank has its first backward's gradient from its own forward just before: nothing to overlap.
    for round in 0..m + h + 1 - 2 * k {
        if round == 0 && d == 0 {
            row.f(near);
            row.b(far);
        } else {
            row.pair(near, far);
        }
        row.pair(far, near);
    }
    // 5. No near forwards are left.
    for _ in 0..d {
        row.b(far);
        row.pair(far, near);
    }
    // 6. No forwards are left. Weight gradients of the later half wait, so that the neighbours get their gradients earlier.
    for n in 0..2 * (h + 1) {
        let chunk = if n % 2 == 0 { far } else { near };
        if n < h + 1 { row.b(chunk) } else { row.i(chunk) }
    }
    // 7. The last backwards of near.
    for _ in 0..d {
        row.w();
        row.i(near);
    }
    // 8. The last weight gradients.
    (0..=h).for_each(|_| row.w());
    row.actions
}

/// Both directions over an even number of ranks.
pub fn generate(size: Size) -> Result<Plan, ScheduleError> {
    let (p, n) = (size.ranks, size.micro);
    if p < 2 || p % 2 != 0 {
        let near = if p < 2 { "2".into() } else { format!("{} or {}", p - 1, p + 1) };
        return Err(ScheduleError::Ranks {
            policy: Policy::DualPipe.name(),
            ranks: p,
            why: "the number of ranks is even",
            help: format!("take {near} ranks, or --policy dualpipev, which runs on {} ranks", p.max(1)),
        });
    }
    if n % 2 != 0 || n < 2 * p - 2 {
        let least = 2 * p - 2;
        let help = if n < least {
            format!("take {least}, or {} for a steady state, or --policy dualpipev on {} ranks", 2 * p, p / 2)
        } else {
            format!("take {} or {}, or --policy dualpipev on {} ranks", n - 1, n + 1, p / 2)
        };
        let why = format!("half of them go each way, and they are at least {least}");
        return Err(ScheduleError::Micro { policy: Policy::DualPipe.name(), ranks: p, micro: n, why, help });
    }
    let (k, m) = (p / 2, n / 2);
    let list = |rank: usize| {
        let (h, near, far) = if rank < k { (rank, 0, 1) } else { (p - 1 - rank, 1, 0) };
        half(k, h, m, [(near, h as u16), (far, (p - 1 - h) as u16)])
    };
    Ok(super::plan(Policy::DualPipe, Placement::mirrored(p), m, list))
}

/// One direction, down the ranks and up again.
pub fn generate_v(size: Size) -> Result<Plan, ScheduleError> {
    let (k, m) = (size.ranks, size.micro);
    super::need_ranks(Policy::DualPipeV, k)?;
    super::need_micro(Policy::DualPipeV, size, 2 * k - 1)?;
    let list = |rank: usize| half(k, rank, m, [(0, rank as u16), (0, (2 * k - 1 - rank) as u16)]);
    Ok(super::plan(Policy::DualPipeV, Placement::v(k), m, list))
}
