//! A stable counting sort of rows by group, for a device of many processors. Three kernels, one after the other:
//!
//! ```text
//! count    choice → counts            block p: how many choices of its chunk are of each group
//! starts   counts → starts, totals    a block has some groups: where in each a chunk's choices begin, and how many it has
//! place    choice, starts, totals → offsets, source, position   block p: its chunk's choices, in order
//! ```
//!
//! There are [`PARTS`] chunks, whatever the number of choices. A block takes [`PIECE`] choices of its chunk at a time: a lane has a choice, and counts
//! the equal ones before it, so that no two go to the same place and the order is the choices'; then a lane has a group, and counts its choices. Work: two
//! comparisons for each choice and lane, [`STEP`] of them in a turn, as a lane that waits for each one would mostly wait.
//!
//! Buffers are those of `host_route`, and between the kernels counts and starts i32 `[PARTS, groups]` and totals i32 `[groups]`.

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
/// Comparisons, or groups, of a turn.
const STEP: i64 = 8;
/// Groups of a block of `starts`, and chunks that a lane adds, whose loads are under way together.
const GROUPS: i64 = 8;
const CHUNKS: i64 = 16;

/// The three kernels, in order; the buffers of each are in the page's.
pub fn gpu_route(p: &Route) -> [Kernel; 3] {
    [count(p), starts(p), place(p)]
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

/// A lane has some chunks of a group: their sum first, then each one's part after those of the lanes before.
pub(super) fn starts(p: &Route) -> Kernel {
    let mut b = Build::new("route_starts");
    let counts = b.read("counts", DType::I32, Dim::from(PARTS * p.groups));
    let starts = b.write("starts", DType::I32, Dim::from(PARTS * p.groups));
    let totals = b.write("totals", DType::I32, Dim::from(p.groups));
    let lanes = PARTS / CHUNKS;
    let sums = b.scratch("sums", DType::I32, lanes * GROUPS);
    b.kernel.grid = Dim::from((p.groups + GROUPS - 1) / GROUPS);
    let first = b.bind(b.block() * Expr::int(GROUPS));
    // The lane among those of the group, the group, and where the counts of its chunks are.
    let of = |b: &mut Build, e: &Expr| {
        let lane = b.bind(Expr::floor_div(e.clone(), Expr::int(GROUPS)));
        let group = b.bind(first.clone() + Expr::rem(e.clone(), Expr::int(GROUPS)));
        let inside = b.bind(Expr::lt(group.clone(), Expr::int(p.groups)));
        let near = b.bind(Expr::minimum(group, Expr::int(p.groups - 1)));
        let at = b.bind(lane.clone() * Expr::int(CHUNKS * p.groups) + near.clone());
        let at: Vec<Expr> = (0..CHUNKS).map(|j| at.clone() + Expr::int(j * p.groups)).collect();
        let counts: Vec<Expr> = at.iter().map(|at| b.bind(Expr::load(counts, at.clone()))).collect();
        (lane, near, inside, at, counts)
    };
    b.each(Expr::int(lanes * GROUPS), |b, e| {
        let (.., counts) = of(b, &e);
        b.store(sums, e, counts.into_iter().fold(int(0), |n, x| n + x));
    });
    b.each(Expr::int(lanes * GROUPS), |b, e| {
        let (lane, group, inside, at, counts) = of(b, &e);
        let before = b.var(DType::I32, int(0));
        b.range(Expr::int(lanes), |b, other| {
            let sum = Expr::load(sums, other.clone() * Expr::int(GROUPS) + Expr::rem(e.clone(), Expr::int(GROUPS)));
            b.assign(before, Expr::Var(before) + Expr::select(Expr::lt(other, lane.clone()), sum, int(0)));
        });
        let mut sum = b.now(before);
        b.if_(inside, |b| {
            for (at, n) in at.into_iter().zip(counts) {
                b.store(starts, at, sum.clone());
                sum = b.bind(sum.clone() + n);
            }
            b.if_(eq(lane, Expr::int(lanes - 1)), |b| b.store(totals, group, sum));
        });
    });
    b.finish()
}

/// Where each group begins, and where the last ends, in scratch.
pub(super) fn offsets(b: &mut Build, totals: Mem, groups: i64) -> Mem {
    let turns = (groups + STEP - 1) / STEP;
    let near = b.scratch("totals", DType::I32, turns * STEP);
    let offsets = b.scratch("offsets", DType::I32, groups + 1);
    b.each(Expr::int(turns * STEP), |b, g| {
        let total = Expr::load(totals, Expr::minimum(g.clone(), Expr::int(groups - 1)));
        b.store(near, g, total);
    });
    b.each(Expr::int(groups + 1), |b, g| {
        let sum = b.var(DType::I32, int(0));
        b.range(Expr::int(turns), |b, turn| {
            let first = b.bind(turn * Expr::int(STEP));
            let one = |j: i64| {
                let at = first.clone() + Expr::int(j);
                Expr::select(Expr::lt(at.clone(), g.clone()), Expr::load(near, at), int(0))
            };
            b.assign(sum, (0..STEP).map(one).fold(Expr::Var(sum), |n, one| n + one));
        });
        b.store(offsets, g, Expr::Var(sum));
    });
    offsets
}

fn place(p: &Route) -> Kernel {
    let mut b = Build::new("route_place");
    let choice = b.read("choice", DType::I32, p.choices.clone());
    let starts = b.read("starts", DType::I32, Dim::from(PARTS * p.groups));
    let totals = b.read("totals", DType::I32, Dim::from(p.groups));
    let all = b.write("offsets", DType::I32, Dim::from(p.groups + 1));
    let source = b.write("source", DType::I32, p.choices.clone());
    let position = b.write("position", DType::I32, p.choices.clone());
    let next = b.scratch("next", DType::I32, p.groups);
    let groups = Expr::int(p.groups);
    let row = b.bind(b.block() * groups.clone());
    let offsets = offsets(&mut b, totals, p.groups);
    let is_first = b.bind(eq(b.block(), Expr::int(0)));
    b.if_(is_first, |b| b.each(Expr::int(p.groups + 1), |b, g| b.store(all, g.clone(), Expr::load(offsets, g))));
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
