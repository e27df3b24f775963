//! Sums of elements by index where an index list is short, for a device of many processors: the gradient of the best of a row. Buffers: index, rows, sums;
//! sums have the accumulator's dtype.
//!
//! Lanes are the elements of a result's row, and each looks at the whole list. Indices outside are dropped.

use super::{
    build::{Build, eq},
    host_gather::Rows,
    host_scatter_add::sum_dtype,
};
use crate::ir::{Expr, Kernel};
use base::{DType, Dim};

/// Rows of a block.
const ROWS: i64 = 16;
/// The longest list.
const MOST: i64 = 32;

/// Whether it is built for this: elements, and few of a known number in each row.
pub fn is_few(p: &Rows) -> bool {
    p.row.is(1) && p.picks.known().is_some_and(|n| n <= MOST)
}

/// The kernel.
pub fn gpu_scatter_few(p: &Rows) -> Kernel {
    let mut b = Build::new("scatter_few");
    let index = b.read("index", DType::I32, p.batch.clone() * p.picks.clone());
    let rows = b.read("rows", p.dtype, p.batch.clone() * p.picks.clone());
    let dtype = sum_dtype(p.dtype);
    let sums = b.write("sums", dtype, p.batch.clone() * p.n.clone());
    b.kernel.grid = p.batch.ceil_div(&Dim::from(ROWS));
    let (total, picks, n) = (b.dim(&p.batch), b.dim(&p.picks), b.dim(&p.n));
    b.each_row(total, ROWS, |b, row| {
        let (list, to) = (b.bind(row.clone() * picks.clone()), b.bind(row * n.clone()));
        b.each(n, |b, i| {
            let own = b.bind(i.clone().cast(DType::I32));
            let sum = b.var(dtype, Build::f(dtype, 0.0));
            b.range(picks, |b, j| {
                let at = b.bind(list + j);
                let found = eq(Expr::load(index, at.clone()), own.clone());
                b.if_(found, |b| b.assign(sum, Expr::Var(sum) + Expr::load(rows, at)));
            });
            b.store(sums, to + i, Expr::Var(sum));
        });
    });
    b.finish()
}
