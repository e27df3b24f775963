//! Attention of few queries over many keys, as in a step of decoding: keys are divided into parts, so that a batch of one keeps a device busy, and what each part gives is
//! joined. Wide keys are, too, where it is not known that queries are many. Two kernels, one after the other:
//!
//! ```text
//! part    as `gpu_attend`, with o and lse of each part, and scores if they are asked for
//! merge   o and lse of parts → o if it is kept, lse, a map if there is one
//! ```
//!
//! # Source: Dao et al., Flash-Decoding for long-context inference, 2023. Tested on the domains and sizes of `tests/attend.rs`.

use super::{
    build::{Build, div, eq, exp},
    domain::{Problem, most_keys},
    gpu_attend::{AtEnd, Blocks, Ending, Job, Tiling, attend, columns, is_wide},
    gpu_product::Element,
};
use crate::ir::{Expr, Kernel, LoopKind, Mem};
use base::{DType, Dim};
use graph::op::{Domain, MapFn, ReduceFn};

/// Blocks that there should be: the two that each processor of a large GPU has at a time. Of 528 and 1056 a step of decoding with native sparse
/// attention took up to a tenth longer on an H200, and with dense attention as long.
const BLOCKS: i64 = 264;
/// Parts of keys, at most, where a block has all columns of the result.
pub const MAX_PARTS: i64 = 32;
/// The same where values are wide: a block has its processor to itself, and two have the halves of a row's columns.
const MAX_WIDE_PARTS: i64 = BLOCKS / 4;

/// Tiles of keys that there are for each part, at least.
const PART_TILES: i64 = 4;

/// Parts of a problem's keys, at most.
fn max_parts(p: &Problem) -> i64 {
    if columns(p) < p.dv { MAX_WIDE_PARTS } else { MAX_PARTS }
}

/// Into how many parts the keys that a tile sees are divided, so that a batch of one keeps a device busy and one of many stores little aside:
/// [`gpu_attend_part`] gives what each part has, [`gpu_attend_merge`] joins them in order. None where they are not divided, whatever the batch and however many queries
/// there are from `fewest` on.
pub fn num_parts(p: &Problem, t: Tiling, fewest: i64) -> Option<Dim> {
    let few = p.t.known().filter(|n| *n <= t.queries() && (!p.domain.has_lists() || Blocks::of(p, t).is_some()));
    // To wide keys any number of queries come that other kernels would expand them for: mostly few, but where the keys are their own.
    let any = is_wide(p) && !p.domain.has_lists() && (p.t.known().is_some() || !counts(&p.t, &p.s));
    if few.is_none() && !any {
        return None;
    }
    let length = |idx: usize| p.operands[idx].shape[3].known().map(Dim::from);
    let bounded = few.and_then(|n| most_keys(&p.domain, n, &length)?.known()).map(|n| n.div_euclid(t.keys));
    // Of fewer tiles a part takes as long. Where keys are narrow their number at run time is no matter.
    let long = p.s.floor_div(&Dim::from(PART_TILES * t.keys));
    let most = match bounded {
        Some(n) => Dim::from(n),
        None if is_wide(p) || long.known().is_some() => long,
        None => Dim::from(max_parts(p)),
    };
    let one = Dim::from(1);
    let most = most.minimum(&Dim::from(max_parts(p))).maximum(&one);
    let of_query = p.h / t.heads * (p.dv / columns(p));
    let blocks = if is_wide(p) { BLOCKS / 2 } else { BLOCKS };
    if few.is_none() && p.t.known().unwrap_or(fewest).div_euclid(t.queries()) * of_query >= blocks {
        return None;
    }
    let tiles = if few.is_some() { Dim::from(1) } else { p.t.ceil_div(&Dim::from(t.queries())) };
    let alone = (p.b.clone() * tiles * Dim::from(of_query)).maximum(&one);
    let of_waves = |n: i64| Dim::from(n * blocks).floor_div(&alone);
    let mut parts = of_waves(1);
    if is_wide(p) {
        // Two waves where these have room for more than twice as many, and there is time to join them: 80 blocks of three parts take two turns of a third, where one
        // part takes a whole one. Of more parts than two the gain is less than the join.
        let more = (of_waves(2) - parts.clone() * Dim::from(2)).minimum(&alone.floor_div(&Dim::from(blocks / 3)));
        parts = parts.clone() + more * (parts + one.clone());
    }
    let parts = parts.minimum(&most).maximum(&one);
    (!most.is(1) && !parts.is(1)).then_some(parts)
}

/// Whether the run-time dims that count queries are all that count keys, which there are as many of then.
fn counts(t: &Dim, s: &Dim) -> bool {
    let [t, s] = [t, s].map(|d| {
        let mut symbols = std::collections::BTreeSet::new();
        d.symbols(&mut symbols);
        symbols
    });
    !s.is_empty() && s.is_subset(&t)
}

/// What each part of the keys gives: o and lse in the accumulator's dtype, of each part, −∞ where a row sees no key of it.
///
/// # Shapes
/// o [parts, b, t, h, dv], lse [parts, b, t, h].
pub fn gpu_attend_part(p: &Problem, t: Tiling, parts: &Dim) -> Kernel {
    attend(&[Job { p, parts: Some(parts), ending: None, scores: false }], t)
}

/// The same, and the scores as they were multiplied: of the whole domain alone, each key of which is in a part.
///
/// # Shapes
/// scores, behind o and lse: [b, t, h, s].
pub fn gpu_attend_part_scores(p: &Problem, t: Tiling, parts: &Dim) -> Kernel {
    debug_assert!(p.domain == Domain::Full && columns(p) == p.dv, "{:?} skips keys, or several blocks have them", p.domain);
    attend(&[Job { p, parts: Some(parts), ending: None, scores: true }], t)
}

/// Two attentions of the same queries in parts, each into as many as its own number: one launch, whose blocks need not wait for each other's.
///
/// # Panics
/// If their queries or heads differ.
pub fn gpu_attend_two_parts(problems: [&Problem; 2], t: Tiling, parts: [&Dim; 2]) -> Kernel {
    let [one, other] = problems;
    assert!(same_queries(one, other));
    attend(&[0, 1].map(|i| Job { p: problems[i], parts: Some(parts[i]), ending: None, scores: false }), t)
}

/// Whether queries and heads of two problems have the same extents and dtypes.
pub fn same_queries(p: &Problem, other: &Problem) -> bool {
    let of = |p: &Problem| (p.dtype, p.b.clone(), p.t.clone(), p.h, p.g, p.dk, p.dv);
    of(p) == of(other)
}

/// Parts as one: buffers o and lse of parts, then o if that is kept, and lse. Each row takes its parts in order.
pub fn gpu_attend_merge(p: &Problem, parts: &Dim, keeps: bool) -> Kernel {
    merge(p, std::slice::from_ref(parts), keeps, None)
}

/// The same with a map of the result, which may read the results of other attentions of these extents that are in parts too: buffers o and lse of the parts of each, of
/// this first, what the map reads, then o if that is kept, lse, and the map's result. The [`Element`] has a product for each attention.
pub fn gpu_attend_merge_map(p: &Problem, parts: &[Dim], ending: &Ending) -> Kernel {
    merge(p, parts, ending.keeps, Some(ending))
}

/// The parts of an attention, and of the block's row what each of them weighs.
struct Parts {
    o: Mem,
    lse: Mem,
    weights: Mem,
    own: Mem,
    count: Expr,
    /// A constant that it is not above.
    most: i64,
    dtype: DType,
}

impl Parts {
    /// Brings the logs of a row's parts.
    fn bring(&self, b: &mut Build, rows: &Expr, row: &Expr) {
        let (count, own) = (self.count.clone(), self.own);
        // Those that there are none of weigh nothing.
        b.each(Expr::int(self.most), |b, i| {
            let near = Expr::minimum(i.clone(), count.clone() - Expr::int(1));
            let log = b.bind(Expr::load(self.lse, near * rows.clone() + row.clone()));
            b.store(own, i.clone(), Expr::select(Expr::lt(i, count), log, Build::f(self.dtype, f64::NEG_INFINITY)));
        });
    }
    /// Weighs the parts of a row whose logs are there; its lse.
    fn weigh(&self, b: &mut Build) -> Expr {
        let of_part = |i: Expr| Expr::load(self.own, i);
        let [log, largest, total] = join_logs(b, self.dtype, LoopKind::Vector, Expr::int(self.most), &of_part);
        b.each(Expr::int(self.most), |b, i| b.store(self.weights, i.clone(), div(exp(of_part(i) - largest), total)));
        log
    }
    /// Column `c` of `dv`.
    fn column(&self, b: &mut Build, rows: &Expr, row: &Expr, (dv, c): (&Expr, &Expr)) -> Expr {
        let acc = b.var(self.dtype, Build::f(self.dtype, 0.0));
        let last = b.bind(self.count.clone() - Expr::int(1));
        // Many by twice as many at once, then those that are left.
        let load = |b: &mut Build, first: Expr, many: i64| {
            let load = |i: i64| {
                let part = first.clone() + Expr::int(i);
                let near = Expr::minimum(part.clone(), last.clone());
                ((near * rows.clone() + row.clone()) * dv.clone() + c.clone(), part)
            };
            let all: Vec<[Expr; 2]> =
                (0..many).map(load).map(|(at, part)| [b.bind(Expr::load(self.o, at)), b.bind(part)]).collect();
            for [x, part] in all {
                b.assign(acc, Expr::Var(acc) + x * Expr::load(self.weights, part));
            }
        };
        let twice = b.bind(Expr::floor_div(self.count.clone(), Expr::int(2 * LOADED)));
        let done = b.bind(twice.clone() * Expr::int(2 * LOADED));
        let left = Expr::floor_div(self.count.clone() - done.clone() + Expr::int(LOADED - 1), Expr::int(LOADED));
        let left = b.bind(left);
        b.range(twice, |b, turn| load(b, turn * Expr::int(2 * LOADED), 2 * LOADED));
        b.range(left, |b, turn| load(b, done + turn * Expr::int(LOADED), LOADED));
        Expr::Var(acc)
    }
}

/// The log of the sum of what parts have the logs of, 0 if all have nothing, which has the log −∞; the largest of these, and the sum of what each is over that.
pub fn join_logs(b: &mut Build, dtype: DType, kind: LoopKind, count: Expr, of_part: &dyn Fn(Expr) -> Expr) -> [Expr; 3] {
    let f = |x: f64| Build::f(dtype, x);
    let largest = b.var(dtype, f(f64::NEG_INFINITY));
    b.for_(Expr::int(0), count.clone(), kind, |b, i| b.accumulate(largest, ReduceFn::Max, of_part(i)));
    let none = b.bind(eq(Expr::Var(largest), f(f64::NEG_INFINITY)));
    let largest = b.bind(Expr::select(none.clone(), f(0.0), Expr::Var(largest)));
    let total = b.var(dtype, f(0.0));
    b.for_(Expr::int(0), count, kind, |b, i| b.accumulate(total, ReduceFn::Sum, exp(of_part(i) - largest.clone())));
    let total = b.bind(Expr::select(none.clone(), f(1.0), Expr::Var(total)));
    let log = b.bind(Expr::select(none, f(0.0), largest.clone() + Expr::map1(MapFn::Log, total.clone())));
    [log, largest, total]
}

/// A block has a row.
fn merge(p: &Problem, parts: &[Dim], keeps: bool, ending: Option<&Ending>) -> Kernel {
    let mut b = Build::new("attend_merge");
    let [.., o_elems, lse_elems] = p.elems();
    let dtype = p.sum_dtype();
    let mut of_parts = |count: &Dim| {
        let [o, lse] =
            [("o_parts", &o_elems), ("lse_parts", &lse_elems)].map(|(name, n)| b.read(name, dtype, n.clone() * count.clone()));
        let most = (count.known().unwrap_or(max_parts(p)) + LOADED - 1) / LOADED * LOADED;
        let [weights, own] = ["weights", "own"].map(|name| b.scratch(name, dtype, most));
        Parts { o, lse, weights, own, count: b.dim(count), most, dtype }
    };
    let branches: Vec<Parts> = parts.iter().map(&mut of_parts).collect();
    let read = ending.map_or(Vec::new(), |e| e.read(&mut b));
    let o = keeps.then(|| b.write("o", p.dtype, o_elems.clone()));
    let lse = b.write("lse", dtype, lse_elems.clone());
    let mapped = ending.map(|e| match e.gives {
        AtEnd::Map(dtype, map) => (map, b.write("y", dtype, o_elems)),
        AtEnd::Sums(_) => base::bug!("sums of rows whose keys are taken in parts"),
    });
    b.kernel.grid = lse_elems.clone();
    let (rows, row, dv) = (b.dim(&lse_elems), b.block(), Expr::int(p.dv));
    let rounded = |x: Expr| if p.dtype == dtype { x } else { x.cast(p.dtype) };
    let join = |b: &mut Build| {
        branches.iter().for_each(|x| x.bring(b, &rows, &row));
        let logs: Vec<Expr> = branches.iter().map(|x| x.weigh(b)).collect();
        b.store(lse, row.clone(), logs[0].clone());
        if o.is_none() && mapped.is_none() {
            return;
        }
        b.each(dv.clone(), |b, c| {
            let products: Vec<Expr> = branches.iter().map(|x| rounded(x.column(b, &rows, &row, (&dv, &c)))).collect();
            let products: Vec<Expr> = products.into_iter().map(|x| b.bind(x)).collect();
            let at = b.bind(row.clone() * dv.clone() + c.clone());
            if let Some(o) = o {
                b.store(o, at.clone(), products[0].clone());
            }
            if let Some((map, y)) = mapped {
                let value = map(b, &Element { products, operands: read.clone(), at: vec![row.clone(), c] });
                let value = b.bind(value);
                b.store(y, at, value);
            }
        });
    };
    let ([own], Some(o), None, None) = (&branches[..], o, mapped, parts[0].known()) else {
        join(&mut b);
        return b.finish();
    };
    // Nothing waits for what an only part weighs, as where a batch is large.
    b.if_(Expr::lt(Expr::int(1), own.count.clone()), join);
    b.if_(eq(own.count.clone(), Expr::int(1)), |b| {
        let f = |x: f64| Build::f(dtype, x);
        let log = b.bind(Expr::load(own.lse, row.clone()));
        let none = b.bind(eq(log.clone(), f(f64::NEG_INFINITY)));
        b.store(lse, row.clone(), Expr::select(none.clone(), f(0.0), log));
        b.each(dv.clone(), |b, c| {
            let at = b.bind(row.clone() * dv.clone() + c);
            b.store(o, at.clone(), rounded(Expr::select(none.clone(), f(0.0), Expr::load(own.o, at))));
        });
    });
    b.finish()
}

/// Parts of which a thread loads an element at once.
const LOADED: i64 = 8;
