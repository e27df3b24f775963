//! The greatest elements of each row, on the host. Buffers: x, indices.
//!
//! A block has some rows. For each it keeps the best so far, best first, in scratch [k], and inserts each element that beats the last
//! of them, from the back; equal ones stay behind those before them, so ties go to the lower index. NaN beats all numbers, -inf is
//! never taken, places that are left are -1. Work: n comparisons a row and k moves for each element that gets in, so about n + k²·log(n/k)
//! for rows in random order, n·k at worst.

use super::build::{Build, eq};
use crate::ir::{Expr, Kernel, Mem, VarId, compute_dtype};
use base::{DType, Dim};
use graph::op::MapFn;

/// A top-k. # Shapes: x `[rows, n]`; indices i32 `[rows, k]`.
#[derive(Clone, Debug)]
pub struct TopK {
    /// The dtype of x.
    pub dtype: DType,
    /// Rows.
    pub rows: Dim,
    /// Elements of a row.
    pub n: Dim,
    /// How many to choose; from 1.
    pub k: i64,
}

/// Sizes of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling {
    /// Rows of a block.
    pub rows: i64,
}

impl std::fmt::Display for Tiling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rows={}", self.rows)
    }
}

impl Tiling {
    /// All that the kernel is built for, the preferred one first.
    pub const LEGAL: [Tiling; 3] = [Tiling { rows: 16 }, Tiling { rows: 4 }, Tiling { rows: 1 }];
}

/// The kernel.
pub fn host_topk(p: &TopK, tiling: Tiling) -> Kernel {
    let mut b = Build::new("topk");
    let x = b.read("x", p.dtype, p.rows.clone() * p.n.clone());
    let indices = b.write("indices", DType::I32, p.rows.clone() * Dim::from(p.k));
    let dtype = compute_dtype(p.dtype);
    let best = b.scratch("best", dtype, p.k);
    let place = b.scratch("place", DType::I32, p.k);
    b.kernel.grid = p.rows.ceil_div(&Dim::from(tiling.rows));
    let (rows, n) = (b.dim(&p.rows), b.dim(&p.n));
    let k = Expr::int(p.k);
    b.each_row(rows, tiling.rows, |b, row| {
        let start = b.bind(row.clone() * n.clone());
        let count = b.var(DType::I64, Expr::int(0));
        b.range(n, |b, i| {
            let value = b.bind(Expr::load(x, start + i.clone()));
            insert(b, [best, place], &Expr::int(0), p.k, count, value, i);
        });
        let none = Expr::Const(graph::op::Scalar::new(-1.0), DType::I32);
        b.range(k.clone(), |b, j| {
            let to = b.bind(row * k + j.clone());
            let chosen = b.bind(Expr::lt(j.clone(), Expr::Var(count)));
            b.if_(chosen.clone(), |b| b.store(indices, to.clone(), Expr::load(place, j)));
            b.if_(Expr::map1(MapFn::Not, chosen), |b| b.store(indices, to, none));
        });
    });
    b.finish()
}

/// Lets a value into a list of the `k` best, which begins at `base` of both memories and has `count` of them.
pub(crate) fn insert(b: &mut Build, [best, place]: [Mem; 2], base: &Expr, k: i64, count: VarId, value: Expr, index: Expr) {
    let dtype = b.kernel.expr_dtype(&value);
    let full = Expr::le(Expr::int(k), Expr::Var(count));
    let last = Expr::load(best, base.clone() + Expr::int(k - 1));
    let taken = Expr::map2(MapFn::Ne, value.clone(), Build::f(dtype, f64::NEG_INFINITY));
    b.if_(taken, |b| {
        // Until the list is full its last place has no value yet.
        let enters = b.var(DType::Bool, Expr::map1(MapFn::Not, full.clone()));
        b.if_(full, |b| b.assign(enters, beats(&value, last)));
        b.if_(Expr::Var(enters), |b| {
            let at = b.var(DType::I64, Expr::minimum(Expr::Var(count), Expr::int(k - 1)));
            let moving = b.var(DType::Bool, Expr::lt(Expr::int(0), Expr::Var(at)));
            b.while_(Expr::Var(moving), |b| {
                let before = b.bind(Expr::Var(at) - Expr::int(1));
                let other = b.bind(Expr::load(best, base.clone() + before.clone()));
                b.assign(moving, beats(&value, other.clone()));
                b.if_(Expr::Var(moving), |b| {
                    let to = b.bind(base.clone() + Expr::Var(at));
                    b.store(best, to.clone(), other);
                    b.store(place, to, Expr::load(place, base.clone() + before.clone()));
                    b.assign(at, before.clone());
                    b.assign(moving, Expr::lt(Expr::int(0), before));
                });
            });
            let to = b.bind(base.clone() + Expr::Var(at));
            b.store(best, to.clone(), value);
            b.store(place, to, index.cast(DType::I32));
            b.assign(count, Expr::minimum(Expr::Var(count) + Expr::int(1), Expr::int(k)));
        });
    });
}

/// Whether `a` comes before `b`, which is at a lower index.
pub(crate) fn beats(a: &Expr, b: Expr) -> Expr {
    let is_nan = |x: &Expr| Expr::map2(MapFn::Ne, x.clone(), x.clone());
    let above = Expr::and(is_nan(a), eq(b.clone(), b.clone()));
    Expr::map2(MapFn::Or, above, Expr::lt(b, a.clone()))
}
