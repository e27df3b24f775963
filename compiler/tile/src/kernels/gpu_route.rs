//! A stable counting sort of rows by group, for a device of many processors. Three kernels, one after the other:
//!
//! ```text
//! count    choice → counts        block p: how many choices of its chunk are of each group
//! offsets  counts → offsets, starts   one block: where each group begins, and each chunk's part of it
//! place    choice, starts, offsets → source, position   block p: its chunk's choices, in order
//! ```
//!
//! There are [`PARTS`] chunks, whatever the number of choices. A lane has a group and walks the chunk, which all lanes of a block read together, so
//! that no two write to the same place and the order is the choices'. Work: a comparison for each choice and group.
//!
//! Buffers are those of `host_route`, and counts and starts i32 `[PARTS, groups]` between the kernels.

use super::{build::Build, host_route::Route};
use crate::ir::{Expr, Kernel, LoopKind, Mem};
use base::{DType, Dim};
use graph::op::{MapFn, Scalar};

/// Chunks of choices: as many as keep the processors of a GPU busy.
pub const PARTS: i64 = 256;

/// The three kernels, in order; the buffers of each are in the page's.
pub fn gpu_route(p: &Route) -> [Kernel; 3] {
    [count(p), offsets(p), place(p)]
}

fn none() -> Expr {
    Expr::Const(Scalar::new(-1.0), DType::I32)
}

/// The first and one past the last choice of this block's chunk.
fn chunk(b: &mut Build, p: &Route) -> [Expr; 2] {
    let choices = b.dim(&p.choices);
    let size = b.dim(&p.choices.ceil_div(&Dim::from(PARTS)));
    let first = b.bind(Expr::minimum(b.block() * size.clone(), choices.clone()));
    let last = b.bind(Expr::minimum(first.clone() + size, choices));
    [first, last]
}

fn count(p: &Route) -> Kernel {
    let mut b = Build::new("route_count");
    let choice = b.read("choice", DType::I32, p.choices.clone());
    let counts = b.write("counts", DType::I32, Dim::from(PARTS * p.groups));
    b.kernel.grid = Dim::from(PARTS);
    let [first, last] = chunk(&mut b, p);
    let to = b.bind(b.block() * Expr::int(p.groups));
    b.each(Expr::int(p.groups), |b, g| {
        let group = b.bind(g.clone().cast(DType::I32));
        let found = b.var(DType::I32, Expr::Const(Scalar::new(0.0), DType::I32));
        b.for_(first, last, LoopKind::Serial, |b, i| {
            let one = is(Expr::load(choice, i), group).cast(DType::I32);
            b.assign(found, Expr::Var(found) + one);
        });
        b.store(counts, to + g, Expr::Var(found));
    });
    b.finish()
}

fn is(a: Expr, b: Expr) -> Expr {
    Expr::map2(MapFn::Eq, a, b)
}

/// A lane has a group; the sums before each group are taken by all lanes from the totals.
fn offsets(p: &Route) -> Kernel {
    let mut b = Build::new("route_offsets");
    let counts = b.read("counts", DType::I32, Dim::from(PARTS * p.groups));
    let offsets = b.write("offsets", DType::I32, Dim::from(p.groups + 1));
    let starts = b.write("starts", DType::I32, Dim::from(PARTS * p.groups));
    let totals = b.scratch("totals", DType::I32, p.groups);
    let zero = || Expr::Const(Scalar::new(0.0), DType::I32);
    let groups = Expr::int(p.groups);
    b.each(groups.clone(), |b, g| {
        let sum = b.var(DType::I32, zero());
        b.range(Expr::int(PARTS), |b, part| {
            let at = b.bind(part * Expr::int(p.groups) + g.clone());
            b.store(starts, at.clone(), Expr::Var(sum));
            b.assign(sum, Expr::Var(sum) + Expr::load(counts, at));
        });
        b.store(totals, g, Expr::Var(sum));
    });
    b.each(groups + Expr::int(1), |b, g| {
        let sum = b.var(DType::I32, zero());
        b.range(g.clone(), |b, other| b.assign(sum, Expr::Var(sum) + Expr::load(totals, other)));
        b.store(offsets, g, Expr::Var(sum));
    });
    b.finish()
}

fn place(p: &Route) -> Kernel {
    let mut b = Build::new("route_place");
    let choice = b.read("choice", DType::I32, p.choices.clone());
    let starts = b.read("starts", DType::I32, Dim::from(PARTS * p.groups));
    let offsets = b.read("offsets", DType::I32, Dim::from(p.groups + 1));
    let source = b.write("source", DType::I32, p.choices.clone());
    let position = b.write("position", DType::I32, p.choices.clone());
    b.kernel.grid = Dim::from(PARTS);
    let [first, last] = chunk(&mut b, p);
    let row = b.bind(b.block() * Expr::int(p.groups));
    b.each(Expr::int(p.groups), |b, g| {
        let group = b.bind(g.clone().cast(DType::I32));
        let next = b.var(DType::I32, Expr::load(offsets, g.clone()) + Expr::load(starts, row + g.clone()));
        b.for_(first.clone(), last.clone(), LoopKind::Serial, |b, i| {
            let chosen = b.bind(Expr::load(choice, i.clone()));
            b.if_(is(chosen.clone(), group), |b| {
                let to = b.bind(Expr::Var(next).cast(DType::I64));
                b.store(source, to, i.clone().cast(DType::I32));
                // The lane's group is the one chosen: the element is its own.
                b.store(position, i + g - chosen.cast(DType::I64), Expr::Var(next));
                b.assign(next, Expr::Var(next) + Expr::Const(Scalar::new(1.0), DType::I32));
            });
        });
    });
    skipped(&mut b, p, choice, position, [first.clone(), last.clone()]);
    // Places that the skipped leave at the end.
    let total = b.bind(Expr::load(offsets, Expr::int(p.groups)).cast(DType::I64));
    b.for_(Expr::maximum(first, total), last, LoopKind::Vector, |b, i| b.store(source, i, none()));
    b.finish()
}

/// Choices outside the groups.
fn skipped(b: &mut Build, p: &Route, choice: Mem, position: Mem, [first, last]: [Expr; 2]) {
    b.for_(first, last, LoopKind::Vector, |b, i| {
        let chosen = b.bind(Expr::load(choice, i.clone()).cast(DType::I64));
        let outside = Expr::map2(MapFn::Or, Expr::lt(chosen.clone(), Expr::int(0)), Expr::le(Expr::int(p.groups), chosen));
        b.if_(outside, |b| b.store(position, i, none()));
    });
}
