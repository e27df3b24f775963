//! The greatest elements of each row, for a device of many processors. Buffers: x, indices.
//!
//! Lanes share a row. There is no list: each place goes to the best of what comes after the place before it, in the order of values and then indices,
//! by a reduction for the value and one for its index, both of integers, which a warp reduces by an instruction. NaN come first, -inf is never taken,
//! places that are left are -1. Work: 2·n·k a row, without a branch that lanes part at.

use super::{
    build::{Build, eq},
    host_topk::TopK,
};
use crate::ir::{Expr, Kernel, Mem, compute_dtype};
use base::{DType, Dim};
use graph::op::{MapFn, ReduceFn};

/// Rows of a block.
const ROWS: i64 = 16;

/// Whether it is built for elements of this dtype.
pub fn is_ordered(dtype: DType) -> bool {
    compute_dtype(dtype) == DType::F32
}

/// The kernel.
pub fn gpu_topk(p: &TopK) -> Kernel {
    let mut b = Build::new("topk");
    let x = b.read("x", p.dtype, p.rows.clone() * p.n.clone());
    let indices = b.write("indices", DType::I32, p.rows.clone() * Dim::from(p.k));
    b.kernel.grid = p.rows.ceil_div(&Dim::from(ROWS));
    let (rows, n) = (b.dim(&p.rows), b.dim(&p.n));
    b.each_row(rows, ROWS, |b, row| {
        let start = b.bind(row.clone() * n.clone());
        let first = b.bind(row * Expr::int(p.k));
        choose(b, &n, p.k, |_, i| Expr::load(x, start.clone() + i), |b, j, index| b.store(indices, first + j, index));
    });
    b.finish()
}

/// The places of the `k` greatest of n numbers of a team, each given to `store` with its index or -1.
pub fn choose(
    b: &mut Build,
    n: &Expr,
    k: i64,
    load: impl Fn(&mut Build, Expr) -> Expr,
    store: impl FnOnce(&mut Build, Expr, Expr),
) {
    let all = b.bind(n.clone().cast(DType::I32));
    let none = b.bind(Build::f(DType::F32, f64::NEG_INFINITY).order());
    // The place before: its value in the order of all, and its index.
    let before = b.var(DType::I32, Build::f(DType::F32, f64::NAN).order());
    let last = b.var(DType::I32, Build::f(DType::I32, -1.0));
    b.range(Expr::int(k), |b, j| {
        let [above, behind] = [before, last].map(|v| b.now(v));
        let element = |b: &mut Build, i: Expr| {
            let v = load(b, i.clone()).order();
            let v = b.bind(v);
            let i = b.bind(i.cast(DType::I32));
            let same = Expr::and(eq(v.clone(), above.clone()), Expr::lt(behind.clone(), i.clone()));
            let follows = Expr::map2(MapFn::Or, Expr::lt(v.clone(), above.clone()), same);
            [v, i, follows]
        };
        let (best, found) = (b.var(DType::I32, none.clone()), b.var(DType::I32, all.clone()));
        b.each(n.clone(), |b, i| {
            let [v, _, follows] = element(b, i);
            b.accumulate(best, ReduceFn::Max, Expr::select(follows, v, none.clone()));
        });
        let best = b.now(best);
        b.each(n.clone(), |b, i| {
            let [v, i, follows] = element(b, i);
            let fits = Expr::and(eq(v, best.clone()), follows);
            b.accumulate(found, ReduceFn::Min, Expr::select(fits, i, all.clone()));
        });
        let found = b.now(found);
        store(b, j, Expr::select(Expr::lt(none, best.clone()), found.clone(), Build::f(DType::I32, -1.0)));
        b.assign(before, best);
        b.assign(last, found);
    });
}

/// The same of n numbers in scratch by their keys, integers in the order of all, from a place on: what is taken has the least key of all then.
pub fn choose_by_key(b: &mut Build, (keys, first): (Mem, Expr), n: i64, k: i64, store: impl FnOnce(&mut Build, Expr, Expr)) {
    let none = b.bind(Build::f(DType::F32, f64::NEG_INFINITY).order());
    b.range(Expr::int(k), |b, j| {
        let (best, found) = (b.var(DType::I32, none.clone()), b.var(DType::I32, Build::f(DType::I32, n as f64)));
        b.each(Expr::int(n), |b, i| b.accumulate(best, ReduceFn::Max, Expr::load(keys, first.clone() + i)));
        let best = b.now(best);
        b.each(Expr::int(n), |b, i| {
            let is_best = eq(Expr::load(keys, first.clone() + i.clone()), best.clone());
            b.accumulate(found, ReduceFn::Min, Expr::select(is_best, i.cast(DType::I32), Build::f(DType::I32, n as f64)));
        });
        let found = b.now(found);
        store(b, j, Expr::select(Expr::lt(none, best.clone()), found.clone(), Build::f(DType::I32, -1.0)));
        // Where none is left, there is none to take.
        let taken = b.bind(Expr::minimum(found.cast(DType::I64), Expr::int(n - 1)));
        b.store(keys, first.clone() + taken, Build::f(DType::I32, f64::from(i32::MIN)));
    });
}
