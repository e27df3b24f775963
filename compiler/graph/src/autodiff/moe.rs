//! Derivatives of contractions over ragged rows. Rows past the last offset have none.

use super::Site;
use crate::{
    build::Builder,
    ir::Value,
    op::{Exchange, Op},
};

/// dx = dy·wᵀ per group; dw = xᵀ·dy per group, or its transpose.
pub(super) fn grouped_contract(b: &mut Builder, s: &Site, transposed: bool, i: usize) -> Value {
    let (x, w, offsets, dy) = (s.x(0), s.x(1), s.x(2), s.dy());
    match (i, transposed) {
        (0, _) => b.op(Op::GroupedContract { transposed: !transposed }, &[dy, w, offsets]),
        (_, false) => b.op(Op::GroupedOuter, &[x, dy, offsets]),
        (_, true) => b.op(Op::GroupedOuter, &[dy, x, offsets]),
    }
}

/// What was sent goes back, what came back is sent: every row is where it was once.
pub(super) fn exchange(b: &mut Builder, s: &Site, what: Exchange, members: i64) -> Value {
    b.op(Op::Exchange { what: what.turned(), members }, &[s.dy(), s.x(1)])
}

/// dx = y·dwᵀ, dy = x·dw per group.
pub(super) fn grouped_outer(b: &mut Builder, s: &Site, i: usize) -> Value {
    let (other, offsets) = (s.x(1 - i), s.x(2));
    b.op(Op::GroupedContract { transposed: i == 0 }, &[other, s.dy(), offsets])
}
