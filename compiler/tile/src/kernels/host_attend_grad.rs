//! The gradient of softmax attention on the host, for every domain. Buffers: q, k, v, o, lse, d_o, d_lse, domain operands…, dq, dk,
//! dv. dk and dv are sums over all queries, so their buffers have the accumulator's dtype; whoever calls narrows them.
//!
//! A block has a batch and a key head and is the only one to write the group's dk and dv, so that sums have one order. It walks tiles
//! of queries (rows: the queries for each head of the group, head by head), and for each the keys that the domain lets it see:
//!
//! ```text
//! Sᵀ = K·Qᵀ, dPᵀ = V·dOᵀ             keys down, rows across
//! P  = exp(scale·S − lse)            Δ = rowsum(dO∘O) − dlse
//! dS = scale·P∘(dP − Δ)
//! dV += Pᵀ·dO, dK += dSᵀ·Q           straight into the buffers, or through scratch where keys are listed
//! dQ += dS·K                         stored once the tile is done
//! ```
//!
//! Memory map, in f32 (f64 for f64): Q, dQ [R, dk], dO [R, dv], Qᵀ, dOᵀ, Sᵀ and dPᵀ [keys, R], rows lse, Δ; for masked domains the
//! mask [keys, queries] and K [keys, dk]. For these no NaN or infinity passes between a row and a key that do not see each other: rows and
//! keys that are not finite are zero in the products, and their pairs are computed one by one.
//!
//! # Source: Dao, FlashAttention-2, 2023, algorithm 2, with the gradient of lse. Tested on the domains and sizes of `tests/attend.rs`.

use super::{
    build::{Build, both, exp, tile, transposed},
    domain::{Keys, Problem, Scene, Tiling, is_masked},
};
use crate::ir::{Expr, Kernel, Mem, TileRef};
use base::{DType, Dim};
use graph::op::{MapFn, ReduceFn, Scalar};

/// What scratch may take: a quarter of a level-2 cache. # Units: bytes.
const BUDGET: i64 = 64 << 10;

/// The tiling used unless another is asked for.
pub fn default_tiling(p: &Problem) -> Tiling {
    Tiling::choose(p, BUDGET, |t| scratch_bytes(p, t))
}

/// What a block of that tiling needs in scratch. # Units: bytes.
pub fn scratch_bytes(p: &Problem, t: &Tiling) -> i64 {
    let rows = t.queries * (p.h / p.g);
    (rows * (3 * p.dk + 2 * p.dv + 2 * t.keys + 3) + t.keys * p.dk) * p.sum_dtype().bytes() as i64
}

/// The kernel.
pub fn host_attend_grad(p: &Problem, tiling: Tiling) -> Kernel {
    let mut b = Build::new("attend_grad");
    let [q, k, v, o, lse] = p.elems();
    let sums = p.sum_dtype();
    let mut read = |name: &str, dtype: DType, n: &Dim| b.read(name, dtype, n.clone());
    let given = Given {
        q: read("q", p.dtype, &q),
        k: read("k", p.dtype, &k),
        v: read("v", p.dtype, &v),
        o: read("o", p.dtype, &o),
        lse: read("lse", sums, &lse),
        d_o: read("d_o", p.dtype, &o),
        d_lse: read("d_lse", sums, &lse),
    };
    let operands = p.operands.iter().enumerate().map(|(i, t)| read(&format!("d{i}"), t.dtype, &t.elems())).collect();
    let [dq, dk, dv] = [("dq", p.dtype, q), ("dk", sums, k), ("dv", sums, v)].map(|(name, d, n)| b.write(name, d, n));

    b.kernel.grid = p.b.clone() * Dim::from(p.g);
    let (t, s) = (b.dim(&p.t), b.dim(&p.s));
    let (batch, group) = (Expr::floor_div(b.block(), Expr::int(p.g)), Expr::rem(b.block(), Expr::int(p.g)));
    let scene = Scene { problem: p, operands, t: t.clone(), s: s.clone(), batch: b.bind(batch), group: b.bind(group) };
    let g = Grad::new(&mut b, &scene, tiling, given, [dk, dv]);
    for (mem, n) in [(dk, p.dk), (dv, p.dv)] {
        b.range(s.clone(), |b, key| {
            let row = b.bind(scene.row(key, n));
            b.each(Expr::int(n), |b, d| b.store(mem, row + d, g.f(0.0)));
        });
    }
    let num_tiles = b.bind(Expr::floor_div(t.clone() + Expr::int(tiling.queries - 1), Expr::int(tiling.queries)));
    b.range(num_tiles, |b, i| {
        let first = b.bind(i * Expr::int(tiling.queries));
        let count = b.bind(Expr::minimum(Expr::int(tiling.queries), t - first.clone()));
        let queries = [&first, &count];
        let num_bad = g.load_queries(b, queries);
        scene.each_tile(b, tiling, queries, |b, keys| g.tile(b, queries, &keys, num_bad));
        g.each_row(b, queries, |b, query, row| {
            b.each(Expr::int(p.dk), |b, d| {
                let x = Expr::load(g.dq, row * Expr::int(p.dk) + d.clone());
                b.store(dq, query * Expr::int(p.dk) + d, x);
            });
        });
    });
    b.finish()
}

/// The operands.
struct Given {
    q: Mem,
    k: Mem,
    v: Mem,
    o: Mem,
    lse: Mem,
    d_o: Mem,
    d_lse: Mem,
}

/// A block's memory.
struct Grad<'a> {
    scene: &'a Scene<'a>,
    tiling: Tiling,
    heads: i64,
    rows: i64,
    dtype: DType,
    given: Given,
    dk: Mem,
    dv: Mem,
    q: Mem,
    qt: Mem,
    d_o: Mem,
    dot: Mem,
    dq: Mem,
    p: Mem,
    ds: Mem,
    lse: Mem,
    delta: Mem,
    masked: Option<Masked>,
}

/// What a masked domain needs besides.
struct Masked {
    mask: Mem,
    keys: Mem,
    good_key: Mem,
    good_row: Mem,
}

impl<'a> Grad<'a> {
    fn new(b: &mut Build, scene: &'a Scene, tiling: Tiling, given: Given, [dk, dv]: [Mem; 2]) -> Grad<'a> {
        let p = scene.problem;
        let (heads, dtype) = (p.h / p.g, p.sum_dtype());
        let rows = tiling.queries * heads;
        let masked = is_masked(&p.domain, tiling).then(|| Masked {
            mask: b.scratch("mask", DType::Bool, tiling.keys * tiling.queries),
            keys: b.scratch("keys", dtype, tiling.keys * p.dk),
            good_key: b.scratch("good_key", DType::Bool, tiling.keys),
            good_row: b.scratch("good_row", DType::Bool, rows),
        });
        let mut scratch = |name, n: i64| b.scratch(name, dtype, rows * n);
        Grad {
            scene,
            tiling,
            heads,
            rows,
            dtype,
            given,
            dk,
            dv,
            q: scratch("rows_q", p.dk),
            qt: scratch("qt", p.dk),
            d_o: scratch("rows_d_o", p.dv),
            dot: scratch("d_ot", p.dv),
            dq: scratch("rows_dq", p.dk),
            p: scratch("p", tiling.keys),
            ds: scratch("ds", tiling.keys),
            lse: scratch("rows_lse", 1),
            delta: scratch("delta", 1),
            masked,
        }
    }
    fn f(&self, x: f64) -> Expr {
        Build::f(self.dtype, x)
    }
    fn num_rows(&self) -> Expr {
        Expr::int(self.rows)
    }
    fn extents(&self) -> [Expr; 2] {
        [Expr::int(self.scene.problem.dk), Expr::int(self.scene.problem.dv)]
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
    /// The sum over `0..n` in lanes.
    fn sum(&self, b: &mut Build, n: Expr, term: impl FnOnce(Expr) -> Expr) -> Expr {
        Expr::Var(b.reduce(ReduceFn::Sum, self.f(0.0), n, |_, i| term(i)))
    }

    /// Q, dO, their transposes, lse and Δ; rows past the last query weigh nothing. Gives the number of rows that are not finite, which
    /// masked products leave out.
    fn load_queries(&self, b: &mut Build, queries: [&Expr; 2]) -> Expr {
        let [dk, dv] = self.extents();
        for (mem, n) in [(self.q, &dk), (self.qt, &dk), (self.dq, &dk), (self.d_o, &dv), (self.dot, &dv)] {
            b.fill(mem, self.num_rows() * n.clone(), self.f(0.0));
        }
        b.fill(self.lse, self.num_rows(), self.f(f64::INFINITY));
        b.fill(self.delta, self.num_rows(), self.f(0.0));
        if let Some(m) = &self.masked {
            let no = Expr::Const(Scalar::new(0.0), DType::Bool);
            b.fill(m.mask, Expr::int(self.tiling.keys * self.tiling.queries), no.clone());
            b.fill(m.good_row, self.num_rows(), no);
        }
        let num_bad = b.var(DType::I64, Expr::int(0));
        self.each_row(b, queries, |b, query, row| {
            let g = &self.given;
            let at_o = b.bind(query.clone() * dv.clone());
            let at_q = b.bind(query.clone() * dk.clone());
            let product =
                self.sum(b, dv.clone(), |d| Expr::load(g.d_o, at_o.clone() + d.clone()) * Expr::load(g.o, at_o.clone() + d));
            let delta = b.bind(product - Expr::load(g.d_lse, query.clone()));
            let lse = b.bind(Expr::load(g.lse, query));
            b.store(self.delta, row.clone(), delta.clone());
            b.store(self.lse, row.clone(), lse.clone());
            let good = self.masked.as_ref().map(|m| {
                let size_q = self.sum(b, dk.clone(), |d| abs(Expr::load(g.q, at_q.clone() + d)));
                let size_o = self.sum(b, dv.clone(), |d| abs(Expr::load(g.d_o, at_o.clone() + d)));
                let good = b.bind(Expr::map1(MapFn::IsFinite, size_q + size_o + abs(delta) + abs(lse)));
                b.store(m.good_row, row.clone(), good.clone());
                let bad = Expr::map1(MapFn::Not, good.clone()).cast(DType::I64);
                b.assign(num_bad, Expr::Var(num_bad) + bad);
                good
            });
            for (from, at, n, mem, turned) in [(g.q, at_q, dk, self.q, self.qt), (g.d_o, at_o, dv, self.d_o, self.dot)] {
                b.each(n.clone(), |b, d| {
                    let x = Expr::load(from, at + d.clone());
                    let x = b.bind(match &good {
                        Some(good) => Expr::select(good.clone(), x, self.f(0.0)),
                        None => x,
                    });
                    b.store(mem, row.clone() * n + d.clone(), x.clone());
                    b.store(turned, d * self.num_rows() + row.clone(), x);
                });
            }
        });
        Expr::Var(num_bad)
    }

    fn tile(&self, b: &mut Build, queries: [&Expr; 2], keys: &Keys, num_bad: Expr) {
        let Some(m) = &self.masked else {
            let k = self.scene.rows(b, self.given.k, self.scene.problem.dk, keys, self.tiling);
            self.weigh(b, k.clone(), keys);
            self.add(b, k, keys);
            return;
        };
        let seen = self.scene.mask(b, m.mask, self.tiling.queries, queries, keys);
        b.if_(Expr::lt(Expr::int(0), seen), |b| {
            let bad_keys = self.load_keys(b, m, keys);
            let k = tile(m.keys, Expr::int(0), self.scene.problem.dk);
            self.weigh(b, k.clone(), keys);
            self.add(b, k, keys);
            b.if_(Expr::lt(Expr::int(0), num_bad + bad_keys), |b| self.add_bad_pairs(b, m, queries, keys));
        });
    }
    /// K with zeros for keys whose k or v is not finite; gives the number of these.
    fn load_keys(&self, b: &mut Build, m: &Masked, keys: &Keys) -> Expr {
        let p = self.scene.problem;
        let [dk, dv] = self.extents();
        let num_bad = b.var(DType::I64, Expr::int(0));
        b.range(keys.count(), |b, c| {
            let key = b.bind(keys.key(c.clone()));
            let (at_k, at_v) = (b.bind(self.scene.row(key.clone(), p.dk)), b.bind(self.scene.row(key, p.dv)));
            let size_k = self.sum(b, dk.clone(), |d| abs(Expr::load(self.given.k, at_k.clone() + d)));
            let size_v = self.sum(b, dv, |d| abs(Expr::load(self.given.v, at_v + d)));
            let good = b.bind(Expr::map1(MapFn::IsFinite, size_k + size_v));
            b.store(m.good_key, c.clone(), good.clone());
            b.assign(num_bad, Expr::Var(num_bad) + Expr::map1(MapFn::Not, good.clone()).cast(DType::I64));
            b.each(dk.clone(), |b, d| {
                let x = Expr::select(good, Expr::load(self.given.k, at_k + d.clone()), self.f(0.0));
                b.store(m.keys, c * dk + d, x);
            });
        });
        Expr::Var(num_bad)
    }
    /// P and dS, transposed.
    fn weigh(&self, b: &mut Build, k: TileRef, keys: &Keys) {
        let [dk, dv] = self.extents();
        let v = self.scene.rows(b, self.given.v, self.scene.problem.dv, keys, self.tiling);
        let by_rows = |mem| tile(mem, Expr::int(0), self.rows);
        b.dot([keys.count(), self.num_rows(), dk], k, by_rows(self.qt), by_rows(self.p), false);
        b.dot([keys.count(), self.num_rows(), dv], v, by_rows(self.dot), by_rows(self.ds), false);
        let scale = self.f(self.scene.problem.scale);
        let queries = Expr::int(self.tiling.queries);
        b.range(keys.count(), |b, c| {
            b.range(Expr::int(self.heads), |b, j| {
                let first_row = b.bind(j * queries.clone());
                let good_key = self.masked.as_ref().map(|m| b.bind(Expr::load(m.good_key, c.clone())));
                b.each(queries.clone(), |b, i| {
                    let row = b.bind(first_row + i.clone());
                    let at = b.bind(c.clone() * self.num_rows() + row.clone());
                    let score = Expr::load(self.p, at.clone()) * scale.clone();
                    let mut p = b.bind(exp(score - Expr::load(self.lse, row.clone())));
                    let dp = Expr::load(self.ds, at.clone()) - Expr::load(self.delta, row.clone());
                    let mut ds = p.clone() * dp * scale;
                    if let (Some(m), Some(good_key)) = (&self.masked, good_key) {
                        let seen = both(Expr::load(m.mask, c * queries + i), good_key);
                        let seen = b.bind(both(seen, Expr::load(m.good_row, row)));
                        p = Expr::select(seen.clone(), p, self.f(0.0));
                        ds = Expr::select(seen, ds, self.f(0.0));
                    }
                    b.store(self.ds, at.clone(), ds);
                    b.store(self.p, at, p);
                });
            });
        });
    }
    /// Adds the tile's share to dV, dK and dQ.
    fn add(&self, b: &mut Build, k: TileRef, keys: &Keys) {
        let [dk, dv] = self.extents();
        let by_rows = |mem| tile(mem, Expr::int(0), self.rows);
        for (weights, with, n, mem) in [(self.p, self.d_o, &dv, self.dv), (self.ds, self.q, &dk, self.dk)] {
            let width = n.known().expect("a constant");
            let extents = [keys.count(), n.clone(), self.num_rows()];
            let with = tile(with, Expr::int(0), width);
            match keys {
                Keys::Range { .. } => {
                    let to = self.scene.rows(b, mem, width, keys, self.tiling);
                    b.dot(extents, by_rows(weights), with, to, true);
                }
                Keys::Listed { count, .. } => {
                    let sums = b.scratch("sums", self.dtype, self.tiling.keys * width);
                    b.dot(extents, by_rows(weights), with, tile(sums, Expr::int(0), width), false);
                    b.range(count.clone(), |b, c| {
                        let to = b.bind(self.scene.row(keys.key(c.clone()), width));
                        b.each(n.clone(), |b, d| {
                            b.add(mem, to + d.clone(), Expr::load(sums, c * n.clone() + d));
                        });
                    });
                }
            }
        }
        let width = self.scene.problem.dk;
        let weights = transposed(self.ds, Expr::int(0), self.rows);
        b.dot([self.num_rows(), dk, keys.count()], weights, k, tile(self.dq, Expr::int(0), width), true);
    }
    /// Adds the pairs that the products left out: those that see each other and are not both finite.
    fn add_bad_pairs(&self, b: &mut Build, m: &Masked, queries: [&Expr; 2], keys: &Keys) {
        let g = &self.given;
        let [dk, dv] = self.extents();
        let scale = self.f(self.scene.problem.scale);
        b.range(keys.count(), |b, c| {
            let key = b.bind(keys.key(c.clone()));
            let at_k = b.bind(self.scene.row(key.clone(), self.scene.problem.dk));
            let at_v = b.bind(self.scene.row(key, self.scene.problem.dv));
            self.each_row(b, queries, |b, query, row| {
                let i = Expr::rem(row.clone(), Expr::int(self.tiling.queries));
                let seen = Expr::load(m.mask, c.clone() * Expr::int(self.tiling.queries) + i);
                let done = Expr::and(Expr::load(m.good_row, row.clone()), Expr::load(m.good_key, c));
                b.if_(Expr::and(seen, Expr::map1(MapFn::Not, done)), |b| {
                    let (at_q, at_o) = (b.bind(query.clone() * dk.clone()), b.bind(query * dv.clone()));
                    let load = |mem, at: &Expr, d: &Expr| Expr::load(mem, at.clone() + d.clone());
                    let score = self.sum(b, dk.clone(), |d| load(g.q, &at_q, &d) * load(g.k, &at_k, &d));
                    let dp = self.sum(b, dv.clone(), |d| load(g.d_o, &at_o, &d) * load(g.v, &at_v, &d));
                    let p = b.bind(exp(score * scale.clone() - Expr::load(self.lse, row.clone())));
                    let ds = b.bind(p.clone() * (dp - Expr::load(self.delta, row.clone())) * scale);
                    b.each(dv, |b, d| {
                        let x = p * load(g.d_o, &at_o, &d);
                        b.add(self.dv, at_v + d, x);
                    });
                    b.each(dk.clone(), |b, d| {
                        let (to_q, to_k) = (ds.clone() * load(g.k, &at_k, &d), ds * load(g.q, &at_q, &d));
                        b.add(self.dq, row * dk + d.clone(), to_q);
                        b.add(self.dk, at_k + d, to_k);
                    });
                });
            });
        });
    }
}

fn abs(x: Expr) -> Expr {
    Expr::map1(MapFn::Abs, x)
}
