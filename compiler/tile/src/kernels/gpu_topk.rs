//! The greatest elements of each row, for a device of many processors. Buffers: x, indices.
//!
//! Lanes share a row. There is no list: each place goes to the best of what comes after the place before it, in the order of values and then indices,
//! by a reduction for the value and one for its index. NaN come first, -inf is never taken, places that are left are -1. Work: 2·n·k a row, without
//! a branch that lanes part at.

use super::{
    build::{Build, eq},
    host_topk::TopK,
};
use crate::ir::{Expr, Kernel, compute_dtype};
use base::{DType, Dim};
use graph::op::{MapFn, ReduceFn, Scalar};

/// Rows of a block.
const ROWS: i64 = 16;

/// The kernel.
pub fn gpu_topk(p: &TopK) -> Kernel {
    let mut b = Build::new("topk");
    let x = b.read("x", p.dtype, p.rows.clone() * p.n.clone());
    let indices = b.write("indices", DType::I32, p.rows.clone() * Dim::from(p.k));
    let dtype = compute_dtype(p.dtype);
    let int = |n: f64| Expr::Const(Scalar::new(n), DType::I32);
    let none = Build::f(dtype, f64::NEG_INFINITY);
    b.kernel.grid = p.rows.ceil_div(&Dim::from(ROWS));
    let (rows, n) = (b.dim(&p.rows), b.dim(&p.n));
    b.each_row(rows, ROWS, |b, row| {
        let start = b.bind(row.clone() * n.clone());
        let all = b.bind(n.clone().cast(DType::I32));
        let is_nan = |v: &Expr| Expr::map2(MapFn::Ne, v.clone(), v.clone());
        let nans = b.reduce(ReduceFn::Sum, int(0.0), n.clone(), |b, i| {
            let v = b.bind(Expr::load(x, start.clone() + i));
            is_nan(&v).cast(DType::I32)
        });
        // The place before: its value, and its index.
        let (value, at) = (b.var(dtype, Build::f(dtype, f64::INFINITY)), b.var(DType::I32, int(-1.0)));
        b.range(Expr::int(p.k), |b, j| {
            let place = b.bind(j.clone().cast(DType::I32));
            let of_nan = b.bind(Expr::lt(place.clone(), Expr::Var(nans)));
            // Infinity itself is still to come when the last NaN is taken.
            b.if_(eq(place, Expr::Var(nans)), |b| b.assign(at, int(-1.0)));
            let (before, last) = (b.bind(Expr::Var(value) + Build::f(dtype, 0.0)), b.bind(Expr::Var(at) + int(0.0)));
            let (best, found) = (b.var(dtype, none.clone()), b.var(DType::I32, all.clone()));
            let follows = |v: &Expr, i: &Expr| {
                let same = Expr::and(eq(v.clone(), before.clone()), Expr::lt(last.clone(), i.clone()));
                Expr::map2(MapFn::Or, Expr::lt(v.clone(), before.clone()), same)
            };
            b.each(n.clone(), |b, i| {
                let v = b.bind(Expr::load(x, start.clone() + i.clone()));
                let i = b.bind(i.cast(DType::I32));
                let taken = b.bind(follows(&v, &i));
                b.accumulate(best, ReduceFn::Max, Expr::select(taken, v, none.clone()));
            });
            let best = b.bind(Expr::Var(best) + Build::f(dtype, 0.0));
            b.each(n.clone(), |b, i| {
                let v = b.bind(Expr::load(x, start.clone() + i.clone()));
                let i = b.bind(i.cast(DType::I32));
                let number = b.bind(Expr::and(eq(v.clone(), best.clone()), follows(&v, &i)));
                let nan = b.bind(Expr::and(is_nan(&v), Expr::lt(last.clone(), i.clone())));
                let fits = b.bind(Expr::select(of_nan.clone(), nan, number));
                b.accumulate(found, ReduceFn::Min, Expr::select(fits, i, all.clone()));
            });
            let found = b.bind(Expr::Var(found) + int(0.0));
            let some = Expr::map2(MapFn::Or, of_nan.clone(), Expr::lt(none.clone(), best.clone()));
            let some = b.bind(Expr::and(some, Expr::lt(found.clone(), all.clone())));
            b.assign(at, found.clone());
            b.assign(value, Expr::select(of_nan, before, best));
            b.store(indices, row * Expr::int(p.k) + j, Expr::select(some, found, int(-1.0)));
        });
    });
    b.finish()
}
