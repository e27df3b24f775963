//! A stable counting sort of rows by group, for a device of many processors. Three kernels, one after the other:
//!
//! ```text
//! count    choice → counts        block p: how many choices of its chunk are of each group
//! offsets  counts → offsets, starts   one block: where each group begins, and each chunk's part of it
//! place    choice, starts, offsets → source, position   block p: its chunk's choices, in order
//! ```
//!
//! There are [`PARTS`] chunks, whatever the number of choices. A block takes [`PIECE`] choices of its chunk at a time: a lane has a choice, and counts
//! the equal ones before it, so that no two go to the same place and the order is the choices'; then a lane has a group, and counts its choices. Work: two
//! comparisons for each choice and lane, [`STEP`] of them in a turn, as a lane that waits for each one would mostly wait.
//!
//! Buffers are those of `host_route`, and counts and starts i32 `[PARTS, groups]` between the kernels.

use super::{
    build::{Build, eq},
    host_route::Route,
};
use crate::ir::{Expr, Kernel, Mem};
use base::{DType, Dim};

/// Chunks of choices: as many as keep the processors of a GPU busy.
pub const PARTS: i64 = 256;
/// Choices that a block looks at together.
const PIECE: i64 = 128;
/// Comparisons, or parts, of a turn.
const STEP: i64 = 8;

/// The three kernels, in order; the buffers of each are in the page's.
pub fn gpu_route(p: &Route) -> [Kernel; 3] {
    [count(p), offsets(p), place(p)]
}

fn int(n: i64) -> Expr {
    Build::f(DType::I32, n as f64)
}

/// The first and one past the last of this block's chunk of so many.
pub(super) fn chunk(b: &mut Build, all: &Dim) -> [Expr; 2] {
    b.kernel.grid = Dim::from(PARTS);
    let (size, all) = (b.dim(&all.ceil_div(&Dim::from(PARTS))), b.dim(all));
    let first = b.bind(Expr::minimum(b.block() * size.clone(), all.clone()));
    let last = b.bind(Expr::minimum(first.clone() + size, all));
    [first, last]
}

/// For each piece of this block's chunk: its first choice's number, how many it has, and the choices in scratch, with -2, which is no choice, in
/// place of what is past the end.
fn each_piece(b: &mut Build, p: &Route, choice: Mem, body: impl FnOnce(&mut Build, Expr, Expr, Mem)) {
    let piece = b.scratch("piece", DType::I32, PIECE);
    let choices = b.dim(&p.choices);
    let [first, last] = chunk(b, &p.choices);
    let pieces = b.bind(Expr::floor_div(last.clone() - first.clone() + Expr::int(PIECE - 1), Expr::int(PIECE)));
    b.range(pieces, |b, i| {
        let from = b.bind(first + i * Expr::int(PIECE));
        let size = b.bind(Expr::minimum(last - from.clone(), Expr::int(PIECE)));
        b.each(Expr::int(PIECE), |b, e| {
            let inside = b.bind(Expr::lt(e.clone(), size.clone()));
            // What is outside is not looked at, but its place has to exist.
            let at = b.bind(Expr::minimum(from.clone() + e.clone(), choices.clone() - Expr::int(1)));
            b.store(piece, e, Expr::select(inside, Expr::load(choice, at), int(-2)));
        });
        body(b, from, size, piece);
    });
}

/// How many of the piece are `wanted`; if there is a limit, of those before it.
fn equal(b: &mut Build, piece: Mem, wanted: &Expr, before: Option<&Expr>) -> Expr {
    let found = b.var(DType::I32, int(0));
    b.range(Expr::int(PIECE / STEP), |b, turn| {
        let first = b.bind(turn * Expr::int(STEP));
        let one = |j: i64| {
            let at = first.clone() + Expr::int(j);
            let same = eq(Expr::load(piece, at.clone()), wanted.clone());
            before.map_or(same.clone(), |i| Expr::and(same, Expr::lt(at, i.clone()))).cast(DType::I32)
        };
        b.assign(found, (0..STEP).map(one).fold(Expr::Var(found), |n, one| n + one));
    });
    b.now(found)
}

fn count(p: &Route) -> Kernel {
    let mut b = Build::new("route_count");
    let choice = b.read("choice", DType::I32, p.choices.clone());
    let counts = b.write("counts", DType::I32, Dim::from(PARTS * p.groups));
    let found = b.scratch("found", DType::I32, p.groups);
    let groups = Expr::int(p.groups);
    let to = b.bind(b.block() * groups.clone());
    b.fill(found, groups.clone(), int(0));
    each_piece(&mut b, p, choice, |b, _, _, piece| {
        b.each(groups.clone(), |b, g| {
            let group = b.bind(g.clone().cast(DType::I32));
            let more = equal(b, piece, &group, None);
            b.store(found, g.clone(), Expr::load(found, g) + more);
        });
    });
    b.each(groups, |b, g| b.store(counts, to + g.clone(), Expr::load(found, g)));
    b.finish()
}

/// A lane has a group; the sums before each group are taken by all lanes from the totals.
pub(super) fn offsets(p: &Route) -> Kernel {
    let mut b = Build::new("route_offsets");
    let counts = b.read("counts", DType::I32, Dim::from(PARTS * p.groups));
    let offsets = b.write("offsets", DType::I32, Dim::from(p.groups + 1));
    let starts = b.write("starts", DType::I32, Dim::from(PARTS * p.groups));
    let turns = (p.groups + STEP - 1) / STEP;
    let totals = b.scratch("totals", DType::I32, turns * STEP);
    let groups = Expr::int(p.groups);
    b.fill(totals, Expr::int(turns * STEP), int(0));
    b.each(groups.clone(), |b, g| {
        let sum = b.var(DType::I32, int(0));
        b.range(Expr::int(PARTS / STEP), |b, turn| {
            let first = b.bind(turn * Expr::int(STEP * p.groups) + g.clone());
            let at = |j: i64| first.clone() + Expr::int(j * p.groups);
            let read: Vec<Expr> = (0..STEP).map(|j| b.bind(Expr::load(counts, at(j)))).collect();
            for (j, n) in (0..STEP).zip(read) {
                b.store(starts, at(j), Expr::Var(sum));
                b.assign(sum, Expr::Var(sum) + n);
            }
        });
        b.store(totals, g, Expr::Var(sum));
    });
    b.each(groups + Expr::int(1), |b, g| {
        let sum = b.var(DType::I32, int(0));
        b.range(Expr::int(turns), |b, turn| {
            let first = b.bind(turn * Expr::int(STEP));
            let one = |j: i64| {
                let at = first.clone() + Expr::int(j);
                Expr::select(Expr::lt(at.clone(), g.clone()), Expr::load(totals, at), int(0))
            };
            b.assign(sum, (0..STEP).map(one).fold(Expr::Var(sum), |n, one| n + one));
        });
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
    let next = b.scratch("next", DType::I32, p.groups);
    let groups = Expr::int(p.groups);
    let row = b.bind(b.block() * groups.clone());
    b.each(groups.clone(), |b, g| b.store(next, g.clone(), Expr::load(offsets, g.clone()) + Expr::load(starts, row + g)));
    let total = b.bind(Expr::load(offsets, groups.clone()).cast(DType::I64));
    each_piece(&mut b, p, choice, |b, from, size, piece| {
        b.each(size, |b, i| {
            let chosen = b.bind(Expr::load(piece, i.clone()));
            let before = equal(b, piece, &chosen, Some(&i));
            let at = b.bind(from.clone() + i.clone());
            let known = Expr::and(Expr::le(int(0), chosen.clone()), Expr::lt(chosen.clone(), int(p.groups)));
            let known = b.bind(known);
            let group = b.bind(Expr::select(known.clone(), chosen, int(0)).cast(DType::I64));
            let to = b.bind(Expr::select(known.clone(), Expr::load(next, group) + before, int(-1)));
            b.store(position, at.clone(), to.clone());
            b.if_(known, |b| b.store(source, to.cast(DType::I64), at.clone().cast(DType::I32)));
            // Places that choices of no group leave at the end.
            b.if_(Expr::le(total, at.clone()), |b| b.store(source, at, int(-1)));
        });
        b.each(groups, |b, g| {
            let group = b.bind(g.clone().cast(DType::I32));
            let more = equal(b, piece, &group, None);
            b.store(next, g.clone(), Expr::load(next, g) + more);
        });
    });
    b.finish()
}
