//! The greatest elements of few rows that may be long, for a device of many processors. Two kernels, one after the other:
//!
//! ```text
//! parts   x → values, places               the k best of each part of a row, in order
//! join    values, places → indices         the k best of these
//! ```
//!
//! A lane has an element and counts those that come before it, greater ones and equal ones with a lower index: that is its place. NaN come first, -inf is never
//! taken, places that are left are -1. Of many parts only the k with the greatest first values are looked at: what another has comes after these.
//! Work: n·PART a row, and (n·k/PART)², or of many parts (n/PART)² + k⁴.

use super::{
    build::{Build, eq},
    gpu_topk::is_ordered,
    host_topk::TopK,
};
use crate::ir::{Expr, Kernel, Mem};
use base::{DType, Dim, TensorType};
use graph::op::MapFn;

/// Elements of a part, unless what computes them has fewer.
pub const PART: i64 = 128;
/// Elements that are chosen, at most: few of a part.
const MOST: i64 = 32;
/// Values of a row that are joined in scratch; parts of which the first values are.
const NEAR: i64 = 1024;
/// More than so many parts have values, of which each then is a number of its own, below 2⁵³.
const VALUES: i64 = 2 * NEAR * MOST;
/// Values that are loaded at once.
const AT_ONCE: i64 = 8;

/// Whether it is built for such a choice, of rows of any length.
pub fn takes(p: &TopK) -> bool {
    is_ordered(p.dtype) && p.n.known().is_none() && p.k <= MOST
}

/// Whether rows are few: of one run-time dim at most, as those of a batch.
pub fn are_few(rows: &[Dim]) -> bool {
    rows.iter().filter(|d| d.known().is_none()).count() <= 1
}

/// Parts of a row, of so many elements; one of an empty row too, which says so.
fn parts(p: &TopK, part: i64) -> Dim {
    p.n.ceil_div(&Dim::from(part)).maximum(&Dim::from(1))
}

/// The types of values and places.
pub fn memories(p: &TopK, part: i64) -> [TensorType; 2] {
    [0, 1].map(|_| TensorType::new(DType::I32, vec![p.rows.clone() * parts(p, part) * Dim::from(p.k)]))
}

/// Both kernels: buffers x, values, places; values, places, indices.
pub fn gpu_topk_parts(p: &TopK) -> [Kernel; 2] {
    [of_parts(p), join(p, PART)]
}

fn int(n: i64) -> Expr {
    Build::f(DType::I32, n as f64)
}

/// What -inf is in the order of all.
pub fn never() -> Expr {
    Build::f(DType::F32, f64::NEG_INFINITY).order()
}

/// How many of the first `n` values from `start` on come before the one at `at`, which is `own`.
fn rank(b: &mut Build, values: Mem, [start, n, at]: [&Expr; 3], own: &Expr) -> Expr {
    let rank = b.var(DType::I32, int(0));
    let load = |b: &mut Build, j: Expr| {
        let x = b.bind(Expr::load(values, start.clone() + j.clone()));
        (x, j)
    };
    b.at_once([Expr::int(0), n.clone()], AT_ONCE, load, |b, (x, j)| {
        let earlier = Expr::and(eq(x.clone(), own.clone()), Expr::lt(j, at.clone()));
        let before = Expr::map2(MapFn::Or, earlier, Expr::lt(own.clone(), x));
        b.assign(rank, Expr::Var(rank) + before.cast(DType::I32));
    });
    b.bind(Expr::Var(rank).cast(DType::I64))
}

/// How many of the first `n` keys, of which no two are the same, are greater than the one at `i`.
fn rank_of_key(b: &mut Build, keys: Mem, n: &Expr, i: &Expr) -> Expr {
    let own = b.bind(Expr::load(keys, i.clone()));
    let rank = b.var(DType::I32, int(0));
    let load = |b: &mut Build, j: Expr| b.bind(Expr::load(keys, j));
    b.at_once([Expr::int(0), n.clone()], AT_ONCE, load, |b, x| {
        b.assign(rank, Expr::Var(rank) + Expr::lt(own.clone(), x).cast(DType::I32));
    });
    b.bind(Expr::Var(rank).cast(DType::I64))
}

fn of_parts(p: &TopK) -> Kernel {
    let mut b = Build::new("topk_parts");
    let x = b.read("x", p.dtype, p.rows.clone() * p.n.clone());
    let [values, places] = memories(p, PART).map(|ty| ty.elems());
    let (values, places) = (b.write("values", DType::I32, values), b.write("places", DType::I32, places));
    b.kernel.grid = p.rows.clone() * parts(p, PART);
    let (n, parts) = (b.dim(&p.n), b.dim(&parts(p, PART)));
    let row = b.bind(Expr::floor_div(b.block(), parts.clone()));
    let first = b.bind(Expr::rem(b.block(), parts) * Expr::int(PART));
    let last = b.bind(n.clone() - Expr::int(1));
    let own = b.scratch("own", DType::I32, PART);
    b.each(Expr::int(PART), |b, e| b.store(own, e, never()));
    b.if_(Expr::lt(Expr::int(0), n.clone()), |b| {
        b.each(Expr::int(PART), |b, e| {
            let i = b.bind(first.clone() + e.clone());
            let near = Expr::minimum(i.clone(), last.clone());
            let value = b.bind(Expr::load(x, row * n.clone() + near).order());
            b.store(own, e, Expr::select(Expr::lt(i, n), value, never()));
        });
    });
    let to = b.bind(b.block() * Expr::int(p.k));
    keep(&mut b, own, [PART, p.k], [first, to], [values, places]);
    b.finish()
}

/// The k best of a part that is in scratch and has no fewer, in the order of all: from `to` on, and where they are if the part begins at `first`.
pub fn keep(b: &mut Build, own: Mem, [part, k]: [i64; 2], [first, to]: [Expr; 2], [values, places]: [Mem; 2]) {
    b.each(Expr::int(part), |b, e| {
        let value = b.bind(Expr::load(own, e.clone()));
        let place = rank(b, own, [&Expr::int(0), &Expr::int(part), &e], &value);
        b.if_(Expr::lt(place.clone(), Expr::int(k)), |b| {
            let to = b.bind(to + place);
            let taken = Expr::map2(MapFn::Ne, value.clone(), never());
            b.store(places, to.clone(), Expr::select(taken, (first + e).cast(DType::I32), int(-1)));
            b.store(values, to, value);
        });
    });
}

/// The k best of all parts of such a size: buffers values, places, indices.
pub fn join(p: &TopK, part: i64) -> Kernel {
    let mut b = Build::new("topk_join");
    let [values, places] = memories(p, part).map(|ty| ty.elems());
    let (values, places) = (b.read("values", DType::I32, values), b.read("places", DType::I32, places));
    let indices = b.write("indices", DType::I32, p.rows.clone() * Dim::from(p.k));
    b.kernel.grid = p.rows.clone();
    let (n, parts) = (b.dim(&(parts(p, part) * Dim::from(p.k))), b.dim(&parts(p, part)));
    let (start, to) = (b.bind(b.block() * n.clone()), b.bind(b.block() * Expr::int(p.k)));
    let keep = |b: &mut Build, place: Expr, [to, at]: [Expr; 2]| {
        b.if_(Expr::lt(place.clone(), Expr::int(p.k)), |b| b.store(indices, to + place, Expr::load(places, at)));
    };
    // All look at all, which is sooner in scratch if they have room there: as numbers of which no two are the same, so that one comparison is enough.
    let near = b.scratch("near", DType::I64, NEAR);
    let fits = b.bind(Expr::le(n.clone(), Expr::int(NEAR)));
    b.if_(fits.clone(), |b| {
        b.each(n.clone(), |b, i| {
            let value = Expr::load(values, start.clone() + i.clone()).cast(DType::I64);
            b.store(near, i.clone(), value * Expr::int(2 * NEAR) + (n.clone() - i));
        });
        b.each(n.clone(), |b, i| {
            let place = rank_of_key(b, near, &n, &i);
            keep(b, place, [to.clone(), start.clone() + i]);
        });
    });
    let few = b.bind(Expr::le(parts.clone(), Expr::int(NEAR)));
    b.if_(Expr::and(Expr::map1(MapFn::Not, fits.clone()), few.clone()), |b| {
        let chosen = b.scratch("chosen", DType::I64, p.k);
        let best = b.scratch("best", DType::I64, p.k * p.k);
        let key = |value: Expr, i: Expr| value.cast(DType::I64) * Expr::int(VALUES) + (n.clone() - i);
        b.each(parts.clone(), |b, i| {
            let first = b.bind(i.clone() * Expr::int(p.k));
            b.store(near, i, key(Expr::load(values, start.clone() + first.clone()), first));
        });
        b.each(parts.clone(), |b, i| {
            let place = rank_of_key(b, near, &parts, &i);
            b.if_(Expr::lt(place.clone(), Expr::int(p.k)), |b| b.store(chosen, place, i * Expr::int(p.k)));
        });
        let candidate = |b: &mut Build, i: &Expr| {
            let of = Expr::load(chosen, Expr::floor_div(i.clone(), Expr::int(p.k)));
            b.bind(of + Expr::rem(i.clone(), Expr::int(p.k)))
        };
        let all = Expr::int(p.k * p.k);
        b.each(all.clone(), |b, i| {
            let at = candidate(b, &i);
            b.store(best, i, key(Expr::load(values, start.clone() + at.clone()), at));
        });
        b.each(all.clone(), |b, i| {
            let place = rank_of_key(b, best, &all, &i);
            let at = candidate(b, &i);
            keep(b, place, [to.clone(), start.clone() + at]);
        });
    });
    b.if_(Expr::map1(MapFn::Not, few), |b| {
        b.each(n.clone(), |b, i| {
            let at = b.bind(start.clone() + i.clone());
            let own = b.bind(Expr::load(values, at.clone()));
            let place = rank(b, values, [&start, &n, &i], &own);
            keep(b, place, [to.clone(), at]);
        });
    });
    b.finish()
}
