//! The gradient of softmax attention for a device of many processors, over domains that are ranges with tests, or lists of blocks with such: three kernels,
//! each the only one to write its results, so that sums have one order.
//!
//! ```text
//! rows      l = lse·log₂ e       Δ = rowsum(dO∘O) − dlse                      by tiles' heads: [b, h / heads, t, heads], padded
//! keys      for each head of the group and each tile of queries that see the block's keys, keys down and queries across:
//!               Sᵀ = K·Qᵀ, dPᵀ = V·dOᵀ, P = 2^(c·S − l), dV += Pᵀ·dO, dS = P∘(dP − Δ), dK += dSᵀ·Q
//!           dk = scale·dK, dv = dV                                            c = scale·log₂ e
//! queries   for each tile of keys that the block's queries see, queries down and keys across:
//!               S = Q·Kᵀ, dP = dO·Vᵀ, P = 2^(c·S − l), dS = P∘(dP − Δ), dQ += dS·K
//!           dq = scale·dQ
//! ```
//!
//! S and dP are computed twice: sums of dQ over key tiles would have to wait for each other, or be taken in any order. Where heads are so wide that threads
//! cannot hold dK and dV together, each has a kernel of its own, and S is computed three times: the kernel of dV needs neither V nor dP.
//!
//! With lists a tile's rows are some queries, each with all heads that share keys, and a block of keys goes over the queries that list it, in order, taken
//! by their numbers (`gpu_attend_union`).
//!
//! Memory map of keys: K [keys, dk], V [keys, dv] of the block; Q [queries, dk], dO [queries, dv] and l, Δ [queries] as they come; S, P, dP, dS [keys, queries],
//! dK, dV, of which each thread may hold its part. Of queries: the same with the two turned round. What a row does not see has to be finite, if it is in a
//! tile of which the row sees something.
//!
//! # Source: Shah et al., FlashAttention-3, 2024, appendix B.1; Dao, FlashAttention-2, 2023, algorithm 2. Tested on the domains and sizes of `tests/attend.rs`.

use super::{
    build::{Build, exp, tile, transposed},
    domain::{Problem, Scene},
    gpu_attend::{self, Gathered, Heads, Sides, Source, mask},
    gpu_attend_grad_by_block,
    gpu_attend_union::{self, Inverse, Union},
};
use crate::ir::{Axis, COPY_ALIGN, Copy, Expr, Kernel, LoopKind, Mem, Stmt};
use base::{DType, Dim, TensorType};
use graph::op::{Domain, ReduceFn};

/// Sizes of the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling {
    /// Rows (queries, each with the tile's heads) and keys of a tile of the kernel that a block of keys has.
    pub of_keys: [i64; 2],
    /// The same of the kernel that a block of queries has.
    pub of_queries: [i64; 2],
    /// Heads of a tile: one, or with lists all that share keys.
    pub heads: i64,
    /// Blocks of threads that share the heads of a block of keys; each has a sum of its own, and `gpu_attend_grad_parts` adds them.
    pub parts: i64,
    /// Rows and keys of a tile of the kernel that has dv alone, if `of_keys` is of one that has dk alone.
    pub of_values: Option<[i64; 2]>,
    /// Whether queries are sorted by the blocks that they list (`gpu_attend_grad_by_block`), in place of unions of tiles.
    pub by_block: bool,
}

/// What a kernel that has a block of keys gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gives {
    /// dk and dv.
    Both,
    /// dk.
    Keys,
    /// dv.
    Values,
}

impl Tiling {
    /// All that the kernels are built for.
    pub const LEGAL: [Tiling; 6] = [
        Tiling { of_keys: [64, 128], of_queries: [128, 128], heads: 1, parts: 1, of_values: None, by_block: false },
        Tiling { of_keys: [32, 128], of_queries: [128, 64], heads: 1, parts: 1, of_values: None, by_block: false },
        Tiling { of_keys: [64, 128], of_queries: [128, 64], heads: 1, parts: 1, of_values: Some([64, 128]), by_block: false },
        Tiling { of_keys: [32, 128], of_queries: [128, 32], heads: 1, parts: 1, of_values: Some([64, 128]), by_block: false },
        Tiling { of_keys: [32, 64], of_queries: [64, 32], heads: 1, parts: 1, of_values: None, by_block: false },
        Tiling { of_keys: [16, 16], of_queries: [16, 16], heads: 1, parts: 1, of_values: None, by_block: false },
    ];
    /// The one used unless another is asked for.
    pub fn choose(p: &Problem) -> Tiling {
        let (narrow, both) = (matches!(p.dtype, DType::BF16 | DType::F16), p.dk + p.dv);
        if let Some(size) = gpu_attend_union::block_size(&p.domain) {
            let t = gpu_attend::Tiling::choose(p);
            let of_keys = [t.rows, size];
            let of_values = (narrow && both > MOST_HELD).then_some(of_keys);
            let tiling = Tiling { of_keys, of_queries: [t.rows, t.keys], heads: t.heads, parts: 1, of_values, by_block: false };
            // Many blocks are in the lists of a tile's queries where these have few heads.
            let by_block = union(p, tiling).is_none() && gpu_attend_grad_by_block::takes(p, tiling);
            return Tiling { by_block, ..tiling };
        }
        let legal = match p.dtype {
            _ if !narrow => Tiling::LEGAL[4],
            _ if p.dk.max(p.dv) <= 128 => Tiling::LEGAL[0],
            _ if both <= MOST_HELD => Tiling::LEGAL[1],
            _ if both <= 384 => Tiling::LEGAL[2],
            _ => Tiling::LEGAL[3],
        };
        // Where keys are few, each for a stride of queries, blocks of them are too few for all processors.
        let shared = p.h / p.g;
        let parts = stride(&p.domain).min(MOST_PARTS).min(1 << shared.trailing_zeros());
        Tiling { parts, ..legal }
    }
    /// What the kernels that have a block of keys give.
    pub fn gives(&self) -> &'static [Gives] {
        if self.of_values.is_some() { &[Gives::Keys, Gives::Values] } else { &[Gives::Both] }
    }
}

/// Columns of dk and dv together that a thread can hold a share of beside S and dP.
const MOST_HELD: i64 = 320;
/// Parts that the heads of a block of keys are shared out in.
const MOST_PARTS: i64 = 16;

/// Queries for each key, where a domain says that keys are that few; a power of two.
fn stride(d: &Domain) -> i64 {
    match d {
        Domain::EndsBefore { stride, .. } => 1 << stride.max(&1).ilog2(),
        Domain::And(x, y) => stride(x).max(stride(y)),
        Domain::Or(x, y) => stride(x).min(stride(y)),
        Domain::Full
        | Domain::Causal
        | Domain::Window(_)
        | Domain::Prefix(_)
        | Domain::EndsAt(_)
        | Domain::Segments(..)
        | Domain::Blocks { .. }
        | Domain::Groups { .. }
        | Domain::Tokens(_) => 1,
    }
}

/// Whether the kernels take the problem with this tiling.
pub fn takes(p: &Problem, t: Tiling, aligned: bool) -> bool {
    let n = COPY_ALIGN / p.dtype.bytes() as i64;
    let by_block = !t.by_block || gpu_attend_grad_by_block::takes(p, t);
    let lists = !p.domain.has_lists() || by_block && listed(p, t).is_some_and(|u| u.size == t.of_keys[1]);
    gpu_attend::is_plain(p, aligned) && lists && p.dv % n == 0
}

/// The tiling of the forward kernel that has the same tiles of queries.
pub fn forward(t: Tiling) -> gpu_attend::Tiling {
    let [rows, keys] = t.of_queries;
    gpu_attend::Tiling { rows, keys, heads: t.heads }
}
fn union(p: &Problem, t: Tiling) -> Option<Union> {
    Union::new(p, forward(t)).filter(|_| t.of_keys[0] == t.of_queries[0])
}
/// The lists by which a block of keys knows its queries.
fn listed(p: &Problem, t: Tiling) -> Option<Union> {
    if t.by_block { Union::listed(p, forward(t)) } else { union(p, t) }
}

/// Elements of what there is one of for each row, by tiles' heads, padded so that each of these begins where rectangles are copied.
pub fn of_rows(p: &Problem, t: Tiling) -> Dim {
    p.b.clone() * Dim::from(p.h / t.heads) * padded(p, t.heads)
}
/// The rows of a batch and the heads of a tile.
pub(super) fn padded(p: &Problem, heads: i64) -> Dim {
    let n = Dim::from(COPY_ALIGN / p.sum_dtype().bytes() as i64);
    (p.t.clone() * Dim::from(heads)).ceil_div(&n) * n
}

/// Rows of a block of the first kernel.
const ROWS: i64 = 8;

/// l and Δ. Buffers: o, lse, d_o, d_lse, l, Δ.
pub fn gpu_attend_grad_rows(p: &Problem, tiling: Tiling) -> Kernel {
    rows(p, tiling, true)
}

/// The same where Σ o·d_o is taken off d_lse already. Buffers: lse, d_lse, l, Δ.
pub fn gpu_attend_grad_rows_of_sums(p: &Problem, tiling: Tiling) -> Kernel {
    rows(p, tiling, false)
}

fn rows(p: &Problem, tiling: Tiling, summed: bool) -> Kernel {
    let mut b = Build::new("attend_grad_rows");
    let [_, _, _, o_elems, lse_elems] = p.elems();
    let sums = p.sum_dtype();
    let o = summed.then(|| b.read("o", p.dtype, o_elems.clone()));
    let lse = b.read("lse", sums, lse_elems.clone());
    let d_o = summed.then(|| b.read("d_o", p.dtype, o_elems));
    let d_lse = b.read("d_lse", sums, lse_elems);
    let of_rows = of_rows(p, tiling);
    let [l, delta] = ["l", "delta"].map(|name| b.write(name, sums, of_rows.clone()));
    b.kernel.grid = of_rows.ceil_div(&Dim::from(ROWS));
    let (total, t, padded) = (b.dim(&of_rows), b.dim(&p.t), b.dim(&padded(p, tiling.heads)));
    let (heads, groups) = (Expr::int(tiling.heads), Expr::int(p.h / tiling.heads));
    let f = |x: f64| Build::f(sums, x);
    b.each_row(total, ROWS, |b, row| {
        let place = b.bind(Expr::rem(row.clone(), padded.clone()));
        let group = b.bind(Expr::floor_div(row.clone(), padded));
        let query = b.bind(Expr::floor_div(place.clone(), heads.clone()));
        let head = Expr::rem(group.clone(), groups.clone()) * heads.clone() + Expr::rem(place, heads);
        let batch = Expr::floor_div(group, groups);
        let inside = b.bind(Expr::lt(query.clone(), t.clone()));
        let query = Expr::minimum(query, t.clone() - Expr::int(1));
        let at = b.bind((batch * t + query) * Expr::int(p.h) + head);
        let sum = match o.zip(d_o) {
            Some((o, d_o)) => {
                let first = b.bind(at.clone() * Expr::int(p.dv));
                Expr::Var(b.reduce(ReduceFn::Sum, f(0.0), Expr::int(p.dv), |_, d| {
                    Expr::load(o, first.clone() + d.clone()) * Expr::load(d_o, first.clone() + d)
                }))
            }
            None => f(0.0),
        };
        let scaled = Expr::load(lse, at.clone()) * f(std::f64::consts::LOG2_E);
        b.store(l, row.clone(), Expr::select(inside.clone(), scaled, f(0.0)));
        b.store(delta, row, Expr::select(inside, sum - Expr::load(d_lse, at), f(0.0)));
    });
    b.finish()
}

/// What both kernels read.
pub(super) struct Given {
    pub q: Heads,
    pub k: Heads,
    pub v: Heads,
    pub d_o: Heads,
    pub l: Mem,
    pub delta: Mem,
    pub operands: Vec<Mem>,
}

impl Given {
    /// `of_rows`: elements of l and Δ each.
    pub fn new(b: &mut Build, p: &Problem, of_rows: &Dim) -> Given {
        let [q, k, v, o, _] = p.elems();
        let [q, k, v, d_o] = [("q", q), ("k", k), ("v", v), ("d_o", o)].map(|(name, n)| b.read(name, p.dtype, n));
        let [l, delta] = ["l", "delta"].map(|name| b.read(name, p.sum_dtype(), of_rows.clone()));
        let operands = p.operands.iter().enumerate().map(|(i, t)| b.read(&format!("d{i}"), t.dtype, t.elems())).collect();
        Given {
            q: Heads::new(b, q, &p.b, &p.t, p.h, p.dk),
            k: Heads::new(b, k, &p.b, &p.s, p.g, p.dk),
            v: Heads::new(b, v, &p.b, &p.s, p.g, p.dv),
            d_o: Heads::new(b, d_o, &p.b, &p.t, p.h, p.dv),
            l,
            delta,
            operands,
        }
    }
}

/// Scores of a tile, which become P.
pub(super) struct Tiles {
    pub dtype: DType,
    pub elems: Expr,
    pub scores: Mem,
}

impl Tiles {
    /// P = 2^(c·S − l); `row` gives the place of an element's l.
    pub fn weigh(&self, b: &mut Build, p: &Problem, l: Mem, row: impl FnOnce(Expr) -> Expr) {
        let factor = Build::f(self.dtype, p.scale * std::f64::consts::LOG2_E);
        let ln_2 = Build::f(self.dtype, std::f64::consts::LN_2);
        b.each(self.elems.clone(), |b, e| {
            let x = Expr::load(self.scores, e.clone()) * factor - Expr::load(l, row(e.clone()));
            b.store(self.scores, e, exp(x * ln_2));
        });
    }
    /// dS = P∘(dP − Δ), narrowed.
    pub fn differ(&self, b: &mut Build, [grads, d_scores]: [Mem; 2], delta: Mem, row: impl FnOnce(Expr) -> Expr) {
        b.each(self.elems.clone(), |b, e| {
            let dp = Expr::load(grads, e.clone()) - Expr::load(delta, row(e.clone()));
            b.store(grads, e.clone(), Expr::load(self.scores, e) * dp);
        });
        self.narrow(b, grads, d_scores);
    }
    fn narrow(&self, b: &mut Build, from: Mem, to: Mem) {
        b.each(self.elems.clone(), |b, e| b.store(to, e.clone(), Expr::load(from, e)));
    }
}

/// dk and dv, or sums of them by parts or items (`gpu_attend_union`) that are still to be added. Buffers: q, k, v, d_o, l, Δ (with lists those of the sorted
/// queries), domain operands…, with lists also offsets, firsts, queries, owner and, of few heads, rows, then dk, dv, or the one that it gives.
pub fn gpu_attend_grad_keys(p: &Problem, tiling: Tiling, gives: Gives) -> Kernel {
    let [of_k, of_v] = [Gives::Values, Gives::Keys].map(|other| gives != other);
    let [rows, keys] = tiling.of_values.filter(|_| !of_k).unwrap_or(tiling.of_keys);
    let (queries, heads) = (rows / tiling.heads, tiling.heads);
    let mut b = Build::new(if of_k { "attend_grad_keys" } else { "attend_grad_values" });
    let union = listed(p, tiling);
    let sorted = union.as_ref().map(|u| gpu_attend_union::num_tiles(p, u) * Dim::from(rows));
    let given = Given::new(&mut b, p, &sorted.unwrap_or_else(|| of_rows(p, tiling)));
    let inverse = union.as_ref().map(|u| Inverse::read(u, &mut b, p, heads));
    let [_, k_elems, v_elems, ..] = p.elems();
    let [dk, dv] = of_sums(p, tiling).unwrap_or([k_elems, v_elems].map(|n| TensorType::new(p.dtype, vec![n])));
    let parts = Dim::from(tiling.parts);
    let results = [("dk", of_k, dk), ("dv", of_v, dv)].map(|(name, given, t)| given.then(|| b.write(name, t.dtype, t.elems())));
    // Results, sums by parts like so many batches, or by items.
    let of_result = |b: &mut Build, mem, n: i64| match &union {
        Some(u) => Heads::new(b, mem, &gpu_attend_union::num_items(p, u), &Dim::from(keys), 1, n),
        None => Heads::new(b, mem, &(p.b.clone() * parts.clone()), &p.s, p.g, n),
    };
    let [dk, dv] = [(results[0], p.dk), (results[1], p.dv)].map(|(mem, n)| mem.map(|mem| of_result(&mut b, mem, n)));
    let padded = padded(p, tiling.heads);
    let groups = Dim::from(p.h);
    let axes = [(p.b.clone(), padded.clone() * groups.clone()), (groups, padded.clone()), (padded, Dim::from(1))];
    let axes = axes.map(|(n, by)| (b.dim(&n), b.dim(&by)));

    let ([batch, group, first], part) = match &inverse {
        Some(inverse) => (inverse.place(&mut b, p), Expr::int(0)),
        None => {
            b.kernel.grid = p.s.ceil_div(&Dim::from(keys)) * p.b.clone() * Dim::from(p.g) * parts;
            // Parts and groups are neighbours, and the first keys, which causal queries see the most, come first.
            let mut rest = b.block();
            let batches = b.dim(&p.b);
            let [part, group, batch] = [Expr::int(tiling.parts), Expr::int(p.g), batches].map(|n| {
                let at = b.bind(Expr::rem(rest.clone(), n.clone()));
                rest = b.bind(Expr::floor_div(rest.clone(), n));
                at
            });
            ([batch, group, b.bind(rest * Expr::int(keys))], part)
        }
    };
    let (t, s) = (b.dim(&p.t), b.dim(&p.s));
    let scene = Scene { problem: p, operands: given.operands.clone(), t, s, batch: batch.clone(), group: group.clone() };

    let dtype = p.sum_dtype();
    let k = b.scratch("k", p.dtype, keys * p.dk);
    let v = of_k.then(|| b.scratch("v", p.dtype, keys * p.dv));
    let (q, d_o) = (b.scratch("q", p.dtype, rows * p.dk), b.scratch("d_o", p.dtype, rows * p.dv));
    let l = b.scratch("l", dtype, rows);
    let delta = of_k.then(|| b.scratch("delta", dtype, rows));
    let sums_k = of_k.then(|| b.scratch("dk", dtype, keys * p.dk));
    let sums_v = of_v.then(|| b.scratch("dv", dtype, keys * p.dv));
    let scores = b.scratch("scores", dtype, keys * rows);
    let grads = of_k
        .then(|| ["grads", "d_scores"].map(|name| b.scratch(name, if name == "grads" { dtype } else { p.dtype }, keys * rows)));
    let tiles = Tiles { dtype, elems: Expr::int(keys * rows), scores };
    let weights = of_v.then(|| b.scratch("weights", p.dtype, keys * rows));
    let zero = || Expr::int(0);
    let column = |e: Expr| Expr::rem(e, Expr::int(rows));

    given.k.copy(&mut b, k, keys, [&batch, &group, &first], false);
    if let Some(v) = v {
        given.v.copy(&mut b, v, keys, [&batch, &group, &first], false);
    }
    for (sums, n) in [(sums_k, p.dk), (sums_v, p.dv)] {
        if let Some(sums) = sums {
            b.fill(sums, Expr::int(keys * n), Build::f(dtype, 0.0));
        }
    }
    // A tile of rows: what brings q and d_o, l and Δ, to scratch, and which queries they are.
    let of_tile = |b: &mut Build,
                   bring: &dyn Fn(&mut Build, &Heads, Mem),
                   vector: &dyn Fn(&mut Build, Mem, Mem),
                   (start, gathered): (&Expr, Option<&Gathered>)| {
        bring(b, &given.q, q);
        vector(b, given.l, l);
        let (left, right) = (tile(k, zero(), p.dk), transposed(q, zero(), p.dk));
        b.dot([keys, rows, p.dk].map(Expr::int), left, right, tile(tiles.scores, zero(), rows), false);
        bring(b, &given.d_o, d_o);
        if let (Some(delta), Some(v), Some([grads, _])) = (delta, v, grads) {
            vector(b, given.delta, delta);
            let (left, right) = (tile(v, zero(), p.dv), transposed(d_o, zero(), p.dv));
            b.dot([keys, rows, p.dv].map(Expr::int), left, right, tile(grads, zero(), rows), false);
        }
        let sides = Sides { queries: (start, queries), heads, keys: (&first, keys), by_queries: false, rows: gathered };
        let domain = gathered.map_or(&p.domain, |g| &g.rest);
        mask(b, &scene, domain, tiles.scores, &sides, None);
        tiles.weigh(b, p, l, column);
        if let Some((weights, sums)) = weights.zip(sums_v) {
            tiles.narrow(b, tiles.scores, weights);
            let (left, right) = (tile(weights, zero(), rows), tile(d_o, zero(), p.dv));
            b.dot([keys, p.dv, rows].map(Expr::int), left, right, tile(sums, zero(), p.dv), true);
        }
        if let (Some(delta), Some(sums), Some([grads, d_scores])) = (delta, sums_k, grads) {
            tiles.differ(b, [grads, d_scores], delta, column);
            let (left, right) = (tile(d_scores, zero(), rows), tile(q, zero(), p.dk));
            b.dot([keys, p.dk, rows].map(Expr::int), left, right, tile(sums, zero(), p.dk), true);
        }
    };
    match inverse.as_ref().zip(union.as_ref()) {
        Some((inverse, u)) => {
            // What there are numbers of: rows, or queries of each group.
            let of_query = Dim::from(if inverse.rows.is_some() { p.h } else { p.g });
            let all = b.dim(&(p.b.clone() * p.t.clone() * of_query));
            let tiles = b.dim(&gpu_attend_union::num_tiles(p, u));
            inverse.each(&mut b, &batch, &scene.t, |b, number, [start, last]| {
                let slot = b.bind(number.clone() * Expr::int(queries));
                let first_row = b.bind(number.clone() * Expr::int(rows));
                let bring = |b: &mut Build, from: &Heads, to: Mem| match inverse.rows {
                    Some(numbers) => from.pick_rows(b, to, rows, &all, (numbers, &first_row)),
                    None => from.pick_heads(b, to, [rows, heads], &all, (inverse.queries, &slot)),
                };
                let vector = |b: &mut Build, from: Mem, to: Mem| {
                    let axes = vec![Axis::new(tiles.clone(), rows, number.clone()), Axis::new(Expr::int(rows), 1, Expr::int(0))];
                    b.push(Stmt::Copy(Copy { from, to, rows: 1, cols: rows, run: 1, axes, index: None, paired: None }));
                };
                let gathered = Gathered::of_tile(&scene, inverse.queries, &slot, [&start, &last], heads, u.rest.clone());
                of_tile(b, &bring, &vector, (&start, Some(&gathered)));
            });
        }
        None => {
            let last = b.bind(Expr::minimum(first.clone() + Expr::int(keys), scene.s.clone()) - Expr::int(1));
            let (lo, hi) = scene.queries(&mut b, &p.domain, &first, &last);
            // l and Δ are copied from where rectangles may begin.
            let aligned = COPY_ALIGN / dtype.bytes() as i64;
            let lo = b.bind(Expr::floor_div(lo, Expr::int(aligned)) * Expr::int(aligned));
            let pieces = b.bind(Expr::floor_div(hi - lo.clone() + Expr::int(rows - 1), Expr::int(rows)));
            let of_head = |b: &mut Build, head: Expr| {
                b.range(pieces, |b, j| {
                    let start = b.bind(lo + j * Expr::int(rows));
                    let bring = |b: &mut Build, from: &Heads, to: Mem| from.copy(b, to, rows, [&batch, &head, &start], false);
                    let vector = |b: &mut Build, from: Mem, to: Mem| {
                        let at = [batch.clone(), head.clone(), start.clone()];
                        let axes = axes.iter().zip(at).map(|((n, by), at)| Axis { extent: n.clone(), stride: by.clone(), at });
                        b.push(Stmt::Copy(Copy {
                            from,
                            to,
                            rows: 1,
                            cols: rows,
                            run: 1,
                            axes: axes.collect(),
                            index: None,
                            paired: None,
                        }));
                    };
                    of_tile(b, &bring, &vector, (&start, None));
                });
            };
            match p.h / p.g {
                1 => of_head(&mut b, group.clone()),
                shared => b.range(Expr::int(shared / tiling.parts), |b, i| {
                    let head = b.bind(group.clone() * Expr::int(shared) + part.clone() * Expr::int(shared / tiling.parts) + i);
                    of_head(b, head);
                }),
            }
        }
    }
    if let Some(sums) = sums_k {
        b.each(Expr::int(keys * p.dk), |b, e| b.store(sums, e.clone(), Expr::load(sums, e) * Build::f(dtype, p.scale)));
    }
    let at = match &inverse {
        Some(_) => [b.block(), Expr::int(0), Expr::int(0)],
        None => {
            let batches = b.dim(&p.b);
            [b.bind(part * batches + batch.clone()), group, first]
        }
    };
    for (to, sums) in [dk.zip(sums_k), dv.zip(sums_v)].into_iter().flatten() {
        to.copy(&mut b, sums, keys, at.each_ref(), true);
    }
    b.finish()
}

/// The types of the sums of dk and dv that the kernel writes in place of results, if it does.
pub fn of_sums(p: &Problem, tiling: Tiling) -> Option<[TensorType; 2]> {
    let of = |n: [Dim; 2]| n.map(|n| TensorType::new(p.sum_dtype(), vec![n]));
    let [_, k, v, ..] = p.elems();
    match listed(p, tiling) {
        Some(u) => Some(of([p.dk, p.dv].map(|n| gpu_attend_union::of_items(p, &u, n)))),
        None if tiling.parts > 1 => Some(of([k, v].map(|n| n * Dim::from(tiling.parts)))),
        None => None,
    }
}

/// The sums that parts of a block's heads have, added in order: dk, or with `values` dv. Buffers: sums, d.
pub fn gpu_attend_grad_parts(p: &Problem, tiling: Tiling, values: bool) -> Kernel {
    let mut b = Build::new("attend_grad_parts");
    let n = p.elems()[if values { 2 } else { 1 }].clone();
    let sums = b.read("sums", p.sum_dtype(), n.clone() * Dim::from(tiling.parts));
    let d = b.write("d", p.dtype, n.clone());
    b.kernel.grid = n.ceil_div(&Dim::from(ELEMS));
    let n = b.dim(&n);
    let first = b.bind(b.block() * Expr::int(ELEMS));
    let last = b.bind(Expr::minimum(first.clone() + Expr::int(ELEMS), n.clone()));
    b.for_(first, last, LoopKind::Vector, |b, i| {
        let sum = (1..tiling.parts)
            .fold(Expr::load(sums, i.clone()), |sum, part| sum + Expr::load(sums, Expr::int(part) * n.clone() + i.clone()));
        let dtype = p.dtype;
        b.store(d, i, if dtype == p.sum_dtype() { sum } else { sum.cast(dtype) });
    });
    b.finish()
}

/// Elements that a block adds.
const ELEMS: i64 = 1024;

/// A tile of queries and what it sums of dq, in scratch.
pub(super) struct Queries<'a> {
    p: &'a Problem,
    rows: i64,
    keys: i64,
    k: Mem,
    v: Mem,
    pub q: Mem,
    pub d_o: Mem,
    pub l: Mem,
    pub delta: Mem,
    sums: Mem,
    tiles: Tiles,
    grads: Mem,
    d_scores: Mem,
}

impl<'a> Queries<'a> {
    pub fn new(b: &mut Build, p: &'a Problem, [rows, keys]: [i64; 2]) -> Queries<'a> {
        let mut narrow = |name, n: i64| b.scratch(name, p.dtype, n);
        let (k, v) = (narrow("k", keys * p.dk), narrow("v", keys * p.dv));
        let (q, d_o) = (narrow("q", rows * p.dk), narrow("d_o", rows * p.dv));
        let dtype = p.sum_dtype();
        let mut wide = |name, n: i64| b.scratch(name, dtype, n);
        let [l, delta] = ["l", "delta"].map(|name| wide(name, rows));
        let sums = wide("dq", rows * p.dk);
        let tiles = Tiles { dtype, elems: Expr::int(rows * keys), scores: wide("scores", rows * keys) };
        let grads = wide("grads", rows * keys);
        let d_scores = b.scratch("d_scores", p.dtype, rows * keys);
        Queries { p, rows, keys, k, v, q, d_o, l, delta, sums, tiles, grads, d_scores }
    }
    /// Nothing is summed yet.
    pub fn begin(&self, b: &mut Build) {
        b.fill(self.sums, Expr::int(self.rows * self.p.dk), Build::f(self.tiles.dtype, 0.0));
    }
    /// Adds what the keys at `at` (batch, group, first) give; `mask` leaves out scores of keys that are not seen.
    pub fn add(&self, b: &mut Build, given: &Given, at: [&Expr; 3], mask: impl FnOnce(&mut Build, Mem)) {
        let Queries { p, rows, keys, k, v, q, d_o, l, delta, sums, ref tiles, grads, d_scores } = *self;
        let zero = || Expr::int(0);
        let row = |e: Expr| Expr::floor_div(e, Expr::int(keys));
        given.k.copy(b, k, keys, at, false);
        let (left, right) = (tile(q, zero(), p.dk), transposed(k, zero(), p.dk));
        b.dot([rows, keys, p.dk].map(Expr::int), left, right, tile(tiles.scores, zero(), keys), false);
        given.v.copy(b, v, keys, at, false);
        let (left, right) = (tile(d_o, zero(), p.dv), transposed(v, zero(), p.dv));
        b.dot([rows, keys, p.dv].map(Expr::int), left, right, tile(grads, zero(), keys), false);
        mask(b, tiles.scores);
        tiles.weigh(b, p, l, row);
        tiles.differ(b, [grads, d_scores], delta, row);
        let (left, right) = (tile(d_scores, zero(), keys), tile(k, zero(), p.dk));
        b.dot([rows, p.dk, keys].map(Expr::int), left, right, tile(sums, zero(), p.dk), true);
    }
    /// dq of the tile, where its sums were, and more of each element.
    pub fn finish(&self, b: &mut Build, more: impl FnOnce(&mut Build, &Expr) -> Option<Expr>) -> Mem {
        let (sums, scale) = (self.sums, Build::f(self.tiles.dtype, self.p.scale));
        b.each(Expr::int(self.rows * self.p.dk), |b, e| {
            let own = |e: &Expr| Expr::load(sums, e.clone()) * scale;
            match more(b, &e) {
                Some(other) => {
                    let sum = b.bind(other + own(&e));
                    b.store(sums, e, sum);
                }
                None => b.store(sums, e.clone(), own(&e)),
            }
        });
        sums
    }
}

/// dq, or with `adds` what is in its memory and dq. Buffers: q, k, v, d_o, l, Δ, domain operands…, with lists also blocks, member and count, then dq.
pub fn gpu_attend_grad_queries(p: &Problem, tiling: Tiling, adds: bool) -> Kernel {
    let [rows, keys] = tiling.of_queries;
    let (queries, own) = (rows / tiling.heads, tiling.heads);
    let mut b = Build::new("attend_grad_queries");
    let given = Given::new(&mut b, p, &of_rows(p, tiling));
    let union = union(p, tiling).map(|u| u.read(&mut b, p));
    let [q_elems, ..] = p.elems();
    let memory = if adds { b.update("dq", p.dtype, q_elems) } else { b.write("dq", p.dtype, q_elems) };
    let dq = Heads::new(&mut b, memory, &p.b, &p.t, p.h, p.dk);
    let padded = b.dim(&padded(p, tiling.heads));

    let num_tiles = p.t.ceil_div(&Dim::from(queries));
    b.kernel.grid = num_tiles.clone() * p.b.clone() * Dim::from(p.h / own);
    let [batch, group, first] = match &union {
        Some(_) => gpu_attend_union::place(&mut b, p, &p.t, queries),
        None => {
            // Heads are neighbours, and the queries that see the most keys come first.
            let (num_tiles, batches, heads) = (b.dim(&num_tiles), b.dim(&p.b), Expr::int(p.h));
            let head = b.bind(Expr::rem(b.block(), heads.clone()));
            let rest = b.bind(Expr::floor_div(b.block(), heads));
            let batch = b.bind(Expr::rem(rest.clone(), batches.clone()));
            [batch, head, b.bind((num_tiles - Expr::int(1) - Expr::floor_div(rest, batches)) * Expr::int(queries))]
        }
    };
    // Rows are of these heads.
    let head = b.bind(group.clone() * Expr::int(own));
    let group = b.bind(Expr::floor_div(head.clone(), Expr::int(p.h / p.g)));
    let (t, s) = (b.dim(&p.t), b.dim(&p.s));
    let scene = Scene { problem: p, operands: given.operands.clone(), t, s, batch: batch.clone(), group: group.clone() };

    let tile = Queries::new(&mut b, p, tiling.of_queries);
    given.q.copy_heads(&mut b, tile.q, [rows, own], [&batch, &head, &first], false);
    given.d_o.copy_heads(&mut b, tile.d_o, [rows, own], [&batch, &head, &first], false);
    tile.begin(&mut b);
    let of_heads = batch.clone() * Expr::int(p.h / own) + Expr::floor_div(head.clone(), Expr::int(own));
    let start = b.bind(of_heads * padded);
    b.each(Expr::int(rows), |b, r| {
        let row = Expr::minimum(first.clone() * Expr::int(own) + r.clone(), scene.t.clone() * Expr::int(own) - Expr::int(1));
        let at = b.bind(start + row);
        b.store(tile.l, r.clone(), Expr::load(given.l, at.clone()));
        b.store(tile.delta, r, Expr::load(given.delta, at));
    });
    let source = Source::new(&mut b, &scene, union.as_ref(), (&first, queries), keys);
    let pieces = source.count(&mut b);
    b.range(pieces, |b, j| {
        let start = source.at(b, &j);
        tile.add(b, &given, [&batch, &group, &start], |b, scores| {
            let sides = Sides { queries: (&first, queries), heads: own, keys: (&start, keys), by_queries: true, rows: None };
            match &union {
                None => mask(b, &scene, &p.domain, scores, &sides, None),
                Some(u) => {
                    let entry = b.bind(u.entry(&j, keys));
                    mask(b, &scene, &u.rest, scores, &sides, Some(&|q| u.lists(&entry, q)));
                }
            }
        });
    });
    let sums = tile.finish(&mut b, |b, e| {
        let n = Expr::int(p.dk);
        let (row, col) = (Expr::floor_div(e.clone(), n.clone()), Expr::rem(e.clone(), n.clone()));
        let (query, head) = match own {
            1 => (row, head.clone()),
            _ => (Expr::floor_div(row.clone(), Expr::int(own)), head.clone() + Expr::rem(row, Expr::int(own))),
        };
        adds.then(|| {
            // Past the last query there is nothing.
            let query = b.bind(Expr::minimum(first.clone() + query, scene.t.clone() - Expr::int(1)));
            let row = b.bind((batch.clone() * scene.t.clone() + query) * Expr::int(p.h) + head);
            let at = b.bind(row * n + col);
            b.bind(Expr::load(memory, at))
        })
    });
    dq.copy_heads(&mut b, sums, [rows, own], [&batch, &head, &first], true);
    b.finish()
}
