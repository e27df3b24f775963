//! Sums of rows by index, on the host. Buffers: index, rows, sums. Where rows are of a narrow float, sums have the accumulator's dtype;
//! whoever calls narrows them.
//!
//! A block has one batch and a chunk of columns, which no other block writes: it zeroes them, then adds row after row in increasing
//! order, so that sums do not depend on the number of threads. Lanes are columns. Indices outside are dropped.

use super::{build::Build, host_gather::Rows};
use crate::ir::{Expr, Kernel};
use base::{DType, Dim};

/// Sizes of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling {
    /// Columns of a block.
    pub columns: i64,
}

impl std::fmt::Display for Tiling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "columns={}", self.columns)
    }
}

impl Tiling {
    /// All that the kernel is built for, the preferred one first.
    pub const LEGAL: [Tiling; 3] = [Tiling { columns: 64 }, Tiling { columns: 256 }, Tiling { columns: 16 }];
}

/// The dtype of the sums of rows of a dtype.
pub fn sum_dtype(rows: DType) -> DType {
    if rows.is_float() { rows.accumulator() } else { rows }
}

/// The kernel.
pub fn host_scatter_add(p: &Rows, tiling: Tiling) -> Kernel {
    let mut b = Build::new("scatter_add");
    let index = b.read("index", DType::I32, p.batch.clone() * p.picks.clone());
    let rows = b.read("rows", p.dtype, p.batch.clone() * p.picks.clone() * p.row.clone());
    let dtype = sum_dtype(p.dtype);
    let sums = b.write("sums", dtype, p.batch.clone() * p.n.clone() * p.row.clone());
    let chunks = p.row.ceil_div(&Dim::from(tiling.columns));
    b.kernel.grid = p.batch.clone() * chunks.clone();
    let (picks, n, row, chunks) = (b.dim(&p.picks), b.dim(&p.n), b.dim(&p.row), b.dim(&chunks));
    let batch = b.bind(Expr::floor_div(b.block(), chunks.clone()));
    let first = b.bind(Expr::rem(b.block(), chunks) * Expr::int(tiling.columns));
    let columns = b.bind(Expr::minimum(Expr::int(tiling.columns), row.clone() - first.clone()));
    b.range(n.clone(), |b, i| {
        let to = b.bind((batch.clone() * n.clone() + i) * row.clone() + first.clone());
        b.each(columns.clone(), |b, c| b.store(sums, to + c, Build::f(dtype, 0.0)));
    });
    b.range(picks.clone(), |b, i| {
        let i = b.bind(batch.clone() * picks + i);
        let to = b.bind(Expr::load(index, i.clone()).cast(DType::I64));
        b.if_(Expr::and(Expr::le(Expr::int(0), to.clone()), Expr::lt(to.clone(), n.clone())), |b| {
            let to = b.bind((batch * n + to) * row.clone() + first.clone());
            let from = b.bind(i * row + first);
            b.each(columns, |b, c| b.add(sums, to + c.clone(), Expr::load(rows, from + c)));
        });
    });
    b.finish()
}
