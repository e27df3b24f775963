//! Softmax attention on the host, for every domain. Buffers: q, k, v, domain operands…, o, lse.
//!
//! A block has a batch, a key head and a tile of queries; its rows are those queries for each head of the group, head by head. It
//! walks the keys that the domain lets the tile see, with the running maximum and sum of each row:
//!
//! ```text
//! Sᵀ = K·Qᵀ                     keys down, rows across: lanes are rows, and K is read where it lies
//! m' = max(m, max Sᵀ)           P = exp(Sᵀ − m'), α = exp(m − m')
//! l  = α·l + ΣP                 O = α·O + Pᵀ·V
//! o  = O / l, lse = m + log l   both 0 for a row that saw no key
//! ```
//!
//! Memory map, in f32 (f64 for f64): Qᵀ [dk, R] scaled, Sᵀ [keys, R], O [R, dv], rows m, m', α, l; for masked domains the mask [keys,
//! queries] and V [keys, dv]. No NaN of a key reaches a row that does not see it: scores are selected by the mask, and where a tile is not
//! seen by all, rows of V that are not finite are left out of the product and added to the rows that see them one by one.
//!
//! # Source: Dao, FlashAttention-2, 2023, algorithm 1. Tested on the domains and sizes of `tests/attend.rs`.

use super::{
    build::{Build, div, eq, exp, tile, transposed},
    domain::{Keys, Problem, Scene, Tiling, is_masked},
};
use crate::ir::{Expr, Kernel, Mem, TileRef};
use base::{DType, Dim};
use graph::op::{MapFn, ReduceFn};

/// What scratch may take: most of a level-1 cache, or a part of level 2. # Units: bytes.
const BUDGET: i64 = 48 << 10;

/// The tiling used unless another is asked for.
pub fn default_tiling(p: &Problem) -> Tiling {
    Tiling::choose(p, BUDGET, |t| scratch_bytes(p, t))
}

/// What a block of that tiling needs in scratch. # Units: bytes.
pub fn scratch_bytes(p: &Problem, t: &Tiling) -> i64 {
    let rows = t.queries * (p.h / p.g);
    (rows * (p.dk + t.keys + p.dv + 5) + t.keys * p.dv) * p.sum_dtype().bytes() as i64
}

/// The kernel.
pub fn host_attend(p: &Problem, tiling: Tiling) -> Kernel {
    let mut b = Build::new("attend");
    let [q_elems, k_elems, v_elems, o_elems, lse_elems] = p.elems();
    let [q, k, v] = [("q", q_elems), ("k", k_elems), ("v", v_elems)].map(|(name, n)| b.read(name, p.dtype, n));
    let operands = p.operands.iter().enumerate().map(|(i, t)| b.read(&format!("d{i}"), t.dtype, t.elems())).collect();
    let (o, lse) = (b.write("o", p.dtype, o_elems), b.write("lse", p.sum_dtype(), lse_elems));

    let num_tiles = p.t.ceil_div(&Dim::from(tiling.queries));
    b.kernel.grid = p.b.clone() * Dim::from(p.g) * num_tiles.clone();
    let num_tiles = b.dim(&num_tiles);
    let at = b.bind(Expr::floor_div(b.block(), num_tiles.clone()));
    let first = b.bind(Expr::rem(b.block(), num_tiles) * Expr::int(tiling.queries));
    let (batch, group) = (Expr::floor_div(at.clone(), Expr::int(p.g)), Expr::rem(at, Expr::int(p.g)));
    let (t, s) = (b.dim(&p.t), b.dim(&p.s));
    let scene = Scene { problem: p, operands, t, s, batch: b.bind(batch), group: b.bind(group) };
    let count = b.bind(Expr::minimum(Expr::int(tiling.queries), scene.t.clone() - first.clone()));
    let queries = [&first, &count];

    let a = Attend::new(&mut b, &scene, tiling, [k, v]);
    a.load_queries(&mut b, q, queries);
    scene.each_tile(&mut b, tiling, queries, |b, keys| a.tile(b, queries, &keys));
    a.store(&mut b, o, lse, queries);
    b.finish()
}

/// A block's memory.
struct Attend<'a> {
    scene: &'a Scene<'a>,
    tiling: Tiling,
    /// Heads of the group.
    heads: i64,
    rows: i64,
    dtype: DType,
    k: Mem,
    v: Mem,
    qt: Mem,
    scores: Mem,
    out: Mem,
    max: Mem,
    new_max: Mem,
    alpha: Mem,
    sum: Mem,
    masked: Option<Masked>,
}

/// What a masked domain needs besides.
struct Masked {
    mask: Mem,
    values: Mem,
    bad: Mem,
}

impl<'a> Attend<'a> {
    fn new(b: &mut Build, scene: &'a Scene, tiling: Tiling, [k, v]: [Mem; 2]) -> Attend<'a> {
        let p = scene.problem;
        let (heads, dtype) = (p.h / p.g, p.sum_dtype());
        let rows = tiling.queries * heads;
        let masked = is_masked(&p.domain, tiling).then(|| Masked {
            mask: b.scratch("mask", DType::Bool, tiling.keys * tiling.queries),
            values: b.scratch("values", dtype, tiling.keys * p.dv),
            bad: b.scratch("bad", DType::Bool, tiling.keys),
        });
        let [qt, scores, out] =
            [("qt", p.dk), ("scores", tiling.keys), ("out", p.dv)].map(|(n, d)| b.scratch(n, dtype, rows * d));
        let [max, new_max, alpha, sum] = ["max", "new_max", "alpha", "sum"].map(|n| b.scratch(n, dtype, rows));
        Attend { scene, tiling, heads, rows, dtype, k, v, qt, scores, out, max, new_max, alpha, sum, masked }
    }
    fn f(&self, x: f64) -> Expr {
        Build::f(self.dtype, x)
    }
    fn num_rows(&self) -> Expr {
        Expr::int(self.rows)
    }
    /// Visits each valid row: query, head and number of the row.
    fn each_row(&self, b: &mut Build, [first, count]: [&Expr; 2], body: impl FnOnce(&mut Build, Expr, Expr)) {
        b.range(Expr::int(self.heads), |b, j| {
            b.range(count.clone(), |b, i| {
                let row = b.bind(j.clone() * Expr::int(self.tiling.queries) + i.clone());
                let query = b.bind(self.scene.query(first.clone() + i, j));
                body(b, query, row);
            });
        });
    }

    /// Qᵀ, scaled, with zeros for rows past the last query; nothing seen yet.
    fn load_queries(&self, b: &mut Build, q: Mem, queries: [&Expr; 2]) {
        let dk = self.scene.problem.dk;
        b.fill(self.qt, Expr::int(self.rows * dk), self.f(0.0));
        b.fill(self.out, Expr::int(self.rows * self.scene.problem.dv), self.f(0.0));
        b.fill(self.max, self.num_rows(), self.f(f64::NEG_INFINITY));
        b.fill(self.sum, self.num_rows(), self.f(0.0));
        if let Some(m) = &self.masked {
            let no = Expr::Const(graph::op::Scalar::new(0.0), DType::Bool);
            b.fill(m.mask, Expr::int(self.tiling.keys * self.tiling.queries), no);
        }
        self.each_row(b, queries, |b, query, row| {
            b.each(Expr::int(dk), |b, d| {
                let x = Expr::load(q, query * Expr::int(dk) + d.clone()) * self.f(self.scene.problem.scale);
                b.store(self.qt, d * self.num_rows() + row, x);
            });
        });
    }

    fn tile(&self, b: &mut Build, queries: [&Expr; 2], keys: &Keys) {
        let dk = self.scene.problem.dk;
        let Some(m) = &self.masked else {
            let k = self.scene.rows(b, self.k, dk, keys, self.tiling);
            self.multiply_keys(b, k, keys);
            self.softmax(b, keys);
            let v = self.scene.rows(b, self.v, self.scene.problem.dv, keys, self.tiling);
            self.multiply_values(b, v, keys);
            return;
        };
        let seen = self.scene.mask(b, m.mask, self.tiling.queries, queries, keys);
        b.if_(Expr::lt(Expr::int(0), seen.clone()), |b| {
            let k = self.scene.rows(b, self.k, dk, keys, self.tiling);
            self.multiply_keys(b, k, keys);
            self.select(b, m, keys);
            self.softmax(b, keys);
            let all = b.bind(eq(seen, queries[1].clone() * keys.count()));
            b.if_(all.clone(), |b| {
                let v = self.scene.rows(b, self.v, self.scene.problem.dv, keys, self.tiling);
                self.multiply_values(b, v, keys);
            });
            b.if_(Expr::map1(MapFn::Not, all), |b| self.multiply_seen_values(b, m, queries, keys));
        });
    }
    /// Sᵀ = K·Qᵀ.
    fn multiply_keys(&self, b: &mut Build, k: TileRef, keys: &Keys) {
        let extents = [keys.count(), self.num_rows(), Expr::int(self.scene.problem.dk)];
        b.dot(extents, k, tile(self.qt, Expr::int(0), self.rows), tile(self.scores, Expr::int(0), self.rows), false);
    }
    /// Scores of pairs that do not see each other become -inf.
    fn select(&self, b: &mut Build, m: &Masked, keys: &Keys) {
        let queries = Expr::int(self.tiling.queries);
        b.range(keys.count(), |b, c| {
            b.range(Expr::int(self.heads), |b, j| {
                let row = b.bind(c.clone() * self.num_rows() + j * queries.clone());
                b.each(queries.clone(), |b, i| {
                    let at = b.bind(row + i.clone());
                    let seen = Expr::load(m.mask, c * queries + i);
                    b.store(self.scores, at.clone(), Expr::select(seen, Expr::load(self.scores, at), self.f(f64::NEG_INFINITY)));
                });
            });
        });
    }
    /// Sᵀ becomes P; m, l and O follow.
    fn softmax(&self, b: &mut Build, keys: &Keys) {
        let (none, rows) = (self.f(f64::NEG_INFINITY), self.num_rows());
        b.each(rows.clone(), |b, r| b.store(self.new_max, r.clone(), Expr::load(self.max, r)));
        b.range(keys.count(), |b, c| {
            b.each(rows.clone(), |b, r| {
                let score = Expr::load(self.scores, c * self.num_rows() + r.clone());
                b.store(self.new_max, r.clone(), Expr::maximum(Expr::load(self.new_max, r), score));
            });
        });
        b.each(rows.clone(), |b, r| {
            let (old, new) = (Expr::load(self.max, r.clone()), Expr::load(self.new_max, r.clone()));
            let new = b.bind(new);
            // A row that has seen nothing yet: subtract 0 instead of -inf.
            let shift = b.bind(Expr::select(eq(new.clone(), none), self.f(0.0), new.clone()));
            let alpha = b.bind(exp(old - shift.clone()));
            b.store(self.max, r.clone(), new);
            b.store(self.new_max, r.clone(), shift);
            b.store(self.alpha, r.clone(), alpha.clone());
            b.store(self.sum, r.clone(), Expr::load(self.sum, r) * alpha);
        });
        b.range(keys.count(), |b, c| {
            b.each(rows.clone(), |b, r| {
                let at = b.bind(c * self.num_rows() + r.clone());
                let p = b.bind(exp(Expr::load(self.scores, at.clone()) - Expr::load(self.new_max, r.clone())));
                b.store(self.scores, at, p.clone());
                b.store(self.sum, r.clone(), Expr::load(self.sum, r) + p);
            });
        });
        let dv = self.scene.problem.dv;
        b.range(rows, |b, r| {
            let alpha = b.bind(Expr::load(self.alpha, r.clone()));
            b.each(Expr::int(dv), |b, d| {
                let at = b.bind(r * Expr::int(dv) + d);
                b.store(self.out, at.clone(), Expr::load(self.out, at) * alpha);
            });
        });
    }
    /// O += Pᵀ·V.
    fn multiply_values(&self, b: &mut Build, v: TileRef, keys: &Keys) {
        let dv = self.scene.problem.dv;
        let extents = [self.num_rows(), Expr::int(dv), keys.count()];
        b.dot(extents, transposed(self.scores, Expr::int(0), self.rows), v, tile(self.out, Expr::int(0), dv), true);
    }
    /// O += Pᵀ·V where some rows do not see some keys.
    fn multiply_seen_values(&self, b: &mut Build, m: &Masked, queries: [&Expr; 2], keys: &Keys) {
        let dv = self.scene.problem.dv;
        let num_bad = b.var(DType::I64, Expr::int(0));
        b.range(keys.count(), |b, c| {
            let from = b.bind(self.scene.row(keys.key(c.clone()), dv));
            let size = b.reduce(ReduceFn::Sum, self.f(0.0), Expr::int(dv), |_, d| {
                Expr::map1(MapFn::Abs, Expr::load(self.v, from.clone() + d))
            });
            // Also where only the sum overflows; the way around is right for any row.
            let good = b.bind(Expr::map1(MapFn::IsFinite, Expr::Var(size)));
            let bad = b.bind(Expr::map1(MapFn::Not, good.clone()));
            b.store(m.bad, c.clone(), bad.clone());
            b.assign(num_bad, Expr::Var(num_bad) + bad.cast(DType::I64));
            b.each(Expr::int(dv), |b, d| {
                let x = Expr::select(good, Expr::load(self.v, from + d.clone()), self.f(0.0));
                b.store(m.values, c * Expr::int(dv) + d, x);
            });
        });
        self.multiply_values(b, tile(m.values, Expr::int(0), dv), keys);
        b.if_(Expr::lt(Expr::int(0), Expr::Var(num_bad)), |b| {
            b.range(keys.count(), |b, c| {
                b.if_(Expr::load(m.bad, c.clone()), |b| {
                    let from = b.bind(self.scene.row(keys.key(c.clone()), dv));
                    self.each_row(b, queries, |b, _, row| {
                        let i = Expr::rem(row.clone(), Expr::int(self.tiling.queries));
                        b.if_(Expr::load(m.mask, c.clone() * Expr::int(self.tiling.queries) + i), |b| {
                            let p = b.bind(Expr::load(self.scores, c * self.num_rows() + row.clone()));
                            b.each(Expr::int(dv), |b, d| {
                                b.add(self.out, row * Expr::int(dv) + d.clone(), p * Expr::load(self.v, from + d));
                            });
                        });
                    });
                });
            });
        });
    }

    fn store(&self, b: &mut Build, o: Mem, lse: Mem, queries: [&Expr; 2]) {
        let dv = self.scene.problem.dv;
        self.each_row(b, queries, |b, query, row| {
            let sum = b.bind(Expr::load(self.sum, row.clone()));
            let none = b.bind(eq(sum.clone(), self.f(0.0)));
            let log = Expr::load(self.max, row.clone()) + Expr::map1(MapFn::Log, sum.clone());
            b.store(lse, query.clone(), Expr::select(none.clone(), self.f(0.0), log));
            let factor = b.bind(Expr::select(none, self.f(0.0), div(self.f(1.0), sum)));
            b.each(Expr::int(dv), |b, d| {
                let x = Expr::load(self.out, row * Expr::int(dv) + d.clone()) * factor;
                b.store(o, query * Expr::int(dv) + d, x);
            });
        });
    }
}
