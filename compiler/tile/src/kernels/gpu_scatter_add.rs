//! Sums of rows by index, for a device of many processors. Buffers: index, rows, sums; sums have the accumulator's dtype.
//!
//! A block has a batch, some rows of the result and a chunk of their columns, which it sums in scratch. It looks for the indices that fall among its rows
//! a piece of them at a time: lanes find the next one after the one before, so that rows are added in increasing order and most pieces cost one look.
//! Indices outside are dropped.

use super::{build::Build, host_gather::Rows, host_scatter_add::sum_dtype};
use crate::ir::{Expr, Kernel};
use base::{DType, Dim};
use graph::op::{ReduceFn, Scalar};

/// Rows of the result that a block has.
const ROWS: i64 = 16;
/// Columns of a block.
const COLUMNS: i64 = 256;
/// Indices of a piece.
const PIECE: i64 = 1024;

/// The kernel.
pub fn gpu_scatter_add(p: &Rows) -> Kernel {
    let mut b = Build::new("scatter_add");
    let index = b.read("index", DType::I32, p.batch.clone() * p.picks.clone());
    let rows = b.read("rows", p.dtype, p.batch.clone() * p.picks.clone() * p.row.clone());
    let dtype = sum_dtype(p.dtype);
    let sums = b.write("sums", dtype, p.batch.clone() * p.n.clone() * p.row.clone());
    let aside = b.scratch("aside", dtype, ROWS * COLUMNS);
    let (chunks, ranges) = (p.row.ceil_div(&Dim::from(COLUMNS)), p.n.ceil_div(&Dim::from(ROWS)));
    b.kernel.grid = p.batch.clone() * ranges.clone() * chunks.clone();
    let (picks, n, row) = (b.dim(&p.picks), b.dim(&p.n), b.dim(&p.row));
    let (chunks, ranges) = (b.dim(&chunks), b.dim(&ranges));
    let rest = b.bind(Expr::floor_div(b.block(), chunks.clone()));
    let batch = b.bind(Expr::floor_div(rest.clone(), ranges.clone()));
    let first = b.bind(Expr::rem(rest, ranges) * Expr::int(ROWS));
    let column = b.bind(Expr::rem(b.block(), chunks) * Expr::int(COLUMNS));
    let columns = b.bind(Expr::minimum(Expr::int(COLUMNS), row.clone() - column.clone()));
    let end = b.bind(Expr::minimum(first.clone() + Expr::int(ROWS), n.clone()));
    b.fill(aside, Expr::int(ROWS * COLUMNS), Expr::Const(Scalar::new(0.0), dtype));

    let start = b.bind(batch.clone() * picks.clone());
    let pieces = b.dim(&p.picks.ceil_div(&Dim::from(PIECE)));
    b.range(pieces, |b, piece| {
        let from = b.bind(piece * Expr::int(PIECE));
        let to = b.bind(Expr::minimum(from.clone() + Expr::int(PIECE), picks));
        let (last, more) = (b.var(DType::I64, from.clone() - Expr::int(1)), b.var(DType::I64, Expr::int(1)));
        b.while_(Expr::lt(Expr::int(0), Expr::Var(more)), |b| {
            let before = b.now(last);
            let next = b.var(DType::I64, to.clone());
            b.for_(from.clone(), to.clone(), crate::ir::LoopKind::Vector, |b, i| {
                let at = b.bind(Expr::load(index, start.clone() + i.clone()).cast(DType::I64));
                let own = Expr::and(Expr::le(first.clone(), at.clone()), Expr::lt(at, end.clone()));
                let follows = b.bind(Expr::and(own, Expr::lt(before.clone(), i.clone())));
                b.accumulate(next, ReduceFn::Min, Expr::select(follows, i, to.clone()));
            });
            let next = b.now(next);
            b.assign(last, next.clone());
            b.assign(more, to.clone() - next.clone());
            b.if_(Expr::lt(next.clone(), to.clone()), |b| {
                let pick = b.bind(start.clone() + next);
                let at = b.bind(Expr::load(index, pick.clone()).cast(DType::I64) - first.clone());
                let (at, from) = (b.bind(at * Expr::int(COLUMNS)), b.bind(pick * row.clone() + column.clone()));
                b.each(columns.clone(), |b, c| b.add(aside, at + c.clone(), Expr::load(rows, from + c)));
            });
        });
    });

    b.range(end - first.clone(), |b, r| {
        let to = b.bind((batch * n + first + r.clone()) * row + column);
        let from = b.bind(r * Expr::int(COLUMNS));
        b.each(columns, |b, c| b.store(sums, to + c.clone(), Expr::load(aside, from + c)));
    });
    b.finish()
}
