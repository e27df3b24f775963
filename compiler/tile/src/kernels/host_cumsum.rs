//! Running sums on the host. Buffers: x, y.
//!
//! A block has one index of the axes before and a chunk of the axes after, whose sums so far are in scratch [columns], in the
//! accumulator's dtype; lanes are the chunk's columns.

use super::build::Build;
use crate::ir::{Expr, Kernel, compute_dtype};
use base::{DType, Dim};

/// A running sum. # Shapes: x, y `[outer, n, inner]`.
#[derive(Clone, Debug)]
pub struct Cumsum {
    /// The dtype of x and y.
    pub dtype: DType,
    /// The product of the axes before.
    pub outer: Dim,
    /// The extent of the axis.
    pub n: Dim,
    /// The product of the axes after.
    pub inner: Dim,
    /// Whether element i leaves out its own term.
    pub exclusive: bool,
    /// Whether it runs from the end.
    pub reverse: bool,
}

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
    pub const LEGAL: [Tiling; 3] = [Tiling { columns: 256 }, Tiling { columns: 64 }, Tiling { columns: 8 }];
}

/// The kernel.
pub fn host_cumsum(p: &Cumsum, tiling: Tiling) -> Kernel {
    let mut b = Build::new("cumsum");
    let elems = p.outer.clone() * p.n.clone() * p.inner.clone();
    let (x, y) = (b.read("x", p.dtype, elems.clone()), b.write("y", p.dtype, elems));
    let dtype = p.dtype.accumulator();
    let sums = b.scratch("sums", dtype, tiling.columns);
    let chunks = p.inner.ceil_div(&Dim::from(tiling.columns));
    b.kernel.grid = p.outer.clone() * chunks.clone();
    let (n, inner, chunks) = (b.dim(&p.n), b.dim(&p.inner), b.dim(&chunks));
    let outer = b.bind(Expr::floor_div(b.block(), chunks.clone()));
    let first = b.bind(Expr::rem(b.block(), chunks) * Expr::int(tiling.columns));
    let columns = b.bind(Expr::minimum(Expr::int(tiling.columns), inner.clone() - first.clone()));
    b.fill(sums, columns.clone(), Build::f(dtype, 0.0));
    b.range(n.clone(), |b, i| {
        let i = if p.reverse { n.clone() - Expr::int(1) - i } else { i };
        let row = b.bind((outer * n + i) * inner + first);
        b.each(columns, |b, c| {
            let at = b.bind(row + c.clone());
            let before = b.bind(Expr::load(sums, c.clone()));
            let term = Expr::load(x, at.clone());
            let term = if compute_dtype(p.dtype) == dtype { term } else { term.cast(dtype) };
            let after = b.bind(before.clone() + term);
            b.store(sums, c, after.clone());
            let sum = if p.exclusive { before } else { after };
            let narrow = compute_dtype(p.dtype);
            b.store(y, at, if narrow == dtype { sum } else { sum.cast(narrow) });
        });
    });
    b.finish()
}
