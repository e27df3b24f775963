//! Derivatives of reductions.

use super::Site;
use crate::{
    build::Builder,
    ir::Value,
    op::{MapFn, Op, ReduceFn},
};

/// Sum: dy for each element. Max and min: dy shared equally among the elements that equal the result. Prod: dy times the product of
/// the other elements, also where some are 0.
pub(super) fn term(b: &mut Builder, s: &Site, f: ReduceFn, axes: &[usize]) -> Value {
    let (x, ty) = (s.x(0), b.func.ty(s.x(0)).clone());
    let kept: Vec<usize> = (0..ty.rank()).filter(|a| !axes.contains(a)).collect();
    let expand = |b: &mut Builder, v: Value| b.broadcast(v, &ty.shape, &kept);
    // How many elements a condition holds for, as a float.
    let count = |b: &mut Builder, condition: Value| {
        let ones = b.cast(condition, ty.dtype);
        b.sum(ones, axes)
    };
    match f {
        ReduceFn::Sum => expand(b, s.dy()),
        ReduceFn::Max | ReduceFn::Min => {
            let extremum = expand(b, s.y());
            let hit = b.map(MapFn::Eq, &[x, extremum]);
            let ties = count(b, hit);
            let share = b.map(MapFn::Div, &[s.dy(), ties]);
            let (share, zero) = (expand(b, share), b.full_like(x, 0.0));
            b.map(MapFn::Select, &[hit, share, zero])
        }
        ReduceFn::Prod => {
            let (zero, one) = (b.full_like(x, 0.0), b.full_like(x, 1.0));
            let is_zero = b.map(MapFn::Eq, &[x, zero]);
            let zeros = count(b, is_zero);
            let nonzero = b.map(MapFn::Select, &[is_zero, one, x]);
            let product = b.op(Op::Reduce(ReduceFn::Prod, axes.to_vec()), &[nonzero]);
            let scaled = b.mul(s.dy(), product);
            let (none, single) = (b.full_like(zeros, 0.0), b.full_like(zeros, 1.0));
            // The product of the others: without zeros, the whole by this one; with a single zero, it alone gets the rest's product.
            let keep_if = |b: &mut Builder, n: Value| {
                let holds = b.map(MapFn::Eq, &[zeros, n]);
                let kept = b.map(MapFn::Select, &[holds, scaled, none]);
                expand(b, kept)
            };
            let (without, at_zero) = (keep_if(b, none), keep_if(b, single));
            let elsewhere = b.map(MapFn::Div, &[without, nonzero]);
            b.map(MapFn::Select, &[is_zero, at_zero, elsewhere])
        }
    }
}
