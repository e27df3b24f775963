//! Rows by index, on the host. Buffers: x, index, rows.
//!
//! A block copies some rows; lanes are their elements. Rows whose index is outside are 0.

use super::build::Build;
use crate::ir::{Expr, Kernel, compute_dtype};
use base::{DType, Dim};
use graph::op::MapFn;

/// A gather or a scatter. # Shapes: x `[batch, n, row]`, index i32 `[batch, picks]`, rows `[batch, picks, row]`.
#[derive(Clone, Debug)]
pub struct Rows {
    /// The dtype of x and the rows.
    pub dtype: DType,
    /// The product of the shared leading axes.
    pub batch: Dim,
    /// The number of indices of a batch.
    pub picks: Dim,
    /// The extent that is indexed.
    pub n: Dim,
    /// Elements of a row.
    pub row: Dim,
}

/// Sizes of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling {
    /// Rows of a block.
    pub rows: i64,
}

impl Tiling {
    /// All that the kernel is built for, the preferred one first.
    pub const LEGAL: [Tiling; 3] = [Tiling { rows: 64 }, Tiling { rows: 16 }, Tiling { rows: 1 }];
}

/// The kernel.
pub fn host_gather(p: &Rows, tiling: Tiling) -> Kernel {
    let mut b = Build::new("gather");
    let picks = p.batch.clone() * p.picks.clone();
    let x = b.read("x", p.dtype, p.batch.clone() * p.n.clone() * p.row.clone());
    let index = b.read("index", DType::I32, picks.clone());
    let rows = b.write("rows", p.dtype, picks.clone() * p.row.clone());
    b.kernel.grid = picks.ceil_div(&Dim::from(tiling.rows));
    let (total, per_batch, n, row) = (b.dim(&picks), b.dim(&p.picks), b.dim(&p.n), b.dim(&p.row));
    b.each_row(total, tiling.rows, |b, i| {
        let from = b.bind(Expr::load(index, i.clone()).cast(DType::I64));
        let to = b.bind(i.clone() * row.clone());
        let inside = b.bind(Expr::and(Expr::le(Expr::int(0), from.clone()), Expr::lt(from.clone(), n.clone())));
        b.if_(inside.clone(), |b| {
            let from = b.bind((Expr::floor_div(i, per_batch) * n + from) * row.clone());
            b.each(row.clone(), |b, d| b.store(rows, to.clone() + d.clone(), Expr::load(x, from + d)));
        });
        b.if_(Expr::map1(MapFn::Not, inside), |b| {
            b.each(row, |b, d| b.store(rows, to + d, Build::f(compute_dtype(p.dtype), 0.0)));
        });
    });
    b.finish()
}
