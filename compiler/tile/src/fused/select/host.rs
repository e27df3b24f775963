//! The same with loops over rows and lanes along keys or candidates, for a core with a vector unit.

use super::super::{Fused, Fuser, Loop, combine, neutral};
use super::{Chunk, Emit, Fold, Select, emitted};
use crate::{
    ir::{Expr, LoopKind, Mem, Stmt, compute_dtype},
    kernels::{
        build::{Build, tile},
        host_topk::{beats, insert},
    },
    view::StridedView,
};
use base::DType;
use graph::op::{MapFn, ReduceFn, Scalar};
use std::collections::BTreeMap;

/// Candidates that are compared at once.
const SOME: i64 = 16;

/// The kernel; `places` are where the operands are.
pub fn select(s: &Select, places: &[StridedView], target: &StridedView) -> Fused {
    emitted(s, places, target, |f| {
        Host::new(Emit::new(s, f, None), f).block(f);
        Some(())
    })
    .expect("it takes every region")
}

/// The kernel's sizes and memory, with a chunk of a row's scores, and each row's best, where they are and how many.
struct Host<'a> {
    emit: Emit<'a>,
    line: Mem,
    best: Mem,
    place: Mem,
    count: Mem,
}

impl<'a> Host<'a> {
    fn new(emit: Emit<'a>, f: &mut Fuser) -> Host<'a> {
        let dtype = compute_dtype(emit.s.ty(emit.s.scores).dtype);
        let mut scratch = |name: &str, dtype, elems: i64| f.kernel.scratch(name, dtype, elems.max(1) as usize);
        let line = scratch("line", dtype, emit.chunk);
        let best = scratch("best", dtype, emit.queries * emit.s.k);
        let place = scratch("place", DType::I32, emit.queries * emit.s.k);
        let count = scratch("count", DType::I64, emit.queries);
        Host { emit, line, best, place, count }
    }

    fn block(&self, f: &mut Fuser) {
        let (at, rows, n) = self.emit.rows(f);
        let zero = Expr::Const(Scalar::new(0.0), self.emit.dtype);
        f.by_hand(|b| {
            b.fill(self.emit.mem.scores, Expr::int(self.emit.queries * self.emit.heads * self.emit.width), zero);
            b.fill(self.count, Expr::int(self.emit.queries), Expr::int(0));
        });
        self.pack_queries(f, &at, &rows);
        let end = self.emit.end(f, &at, &rows, n);
        let chunks = f.bind(Expr::floor_div(end.clone() + Expr::int(self.emit.chunk - 1), Expr::int(self.emit.chunk)));
        let mut outer = Vec::new();
        let c = f.open(Expr::int(0), chunks, LoopKind::Serial, &mut outer);
        let Chunk { first, here, key, from, to, reach } = self.emit.chunk_at(f, c, end);
        self.product(f, &at, &key, [&from, &to], &rows);
        self.map(f, &at, &key, [&from, &to], &rows);
        self.fold(f, &at, &key, [&from, &to, &reach], &rows);
        self.compare(f, &at, &key, &first, &here, &rows);
        f.close_loops(outer);
        self.write(f, &at, &rows);
    }
    fn pack_queries(&self, f: &mut Fuser, at: &[Expr], rows: &Expr) {
        let (v, letters) = self.emit.operand(true);
        let mut loops = Vec::new();
        let q = f.open(Expr::int(0), rows.clone(), LoopKind::Serial, &mut loops);
        let (mut heads, number) = self.emit.open_heads(f, &mut loops);
        let row = f.bind((q.clone() * Expr::int(self.emit.heads) + number) * Expr::int(self.emit.depth));
        let d = self.open_summed(f, &mut heads, &mut loops);
        let idx = self.emit.index(letters, at, &q, &heads, None);
        let value = f.eval(v, &idx);
        f.here(Stmt::Store { mem: self.emit.mem.queries, index: row + d, value });
        f.close(loops);
    }
    /// Loops over the summed letters, the last in lanes, and the number of the turn.
    fn open_summed(&self, f: &mut Fuser, heads: &mut BTreeMap<char, Expr>, loops: &mut Vec<Loop>) -> Expr {
        let summed = self.emit.s.spec.summed();
        let mut number = Expr::int(0);
        for (i, c) in summed.iter().enumerate() {
            let at = self.emit.s.spec.lhs.iter().position(|l| l == c).expect("it is in both");
            let n = self.emit.s.lhs_shape()[at].known().expect("checked before");
            let kind = if i + 1 == summed.len() { LoopKind::Vector } else { LoopKind::Serial };
            let var = f.open(Expr::int(0), Expr::int(n), kind, loops);
            number = number * Expr::int(n) + var.clone();
            heads.insert(*c, var);
        }
        number
    }
    /// The keys of the chunk, transposed, and the product.
    fn product(&self, f: &mut Fuser, at: &[Expr], key: &Expr, [from, to]: [&Expr; 2], rows: &Expr) {
        let (v, letters) = self.emit.operand(false);
        let mut loops = Vec::new();
        let i = f.open(from.clone(), to.clone(), LoopKind::Serial, &mut loops);
        let k = f.bind(key.clone() + i.clone());
        let mut none = BTreeMap::new();
        let d = self.open_summed(f, &mut none, &mut loops);
        let idx = self.emit.index(letters, at, &Expr::int(0), &none, Some(&k));
        let value = f.eval(v, &idx);
        f.here(Stmt::Store { mem: self.emit.mem.keys, index: d * Expr::int(self.emit.width) + i, value });
        f.close(loops);
        let extents = [rows.clone() * Expr::int(self.emit.heads), to.clone() - from.clone(), Expr::int(self.emit.depth)];
        let (width, depth) = (self.emit.width, self.emit.depth);
        f.by_hand(|b| {
            let a = tile(self.emit.mem.queries, Expr::int(0), depth);
            b.dot(
                extents,
                a,
                tile(self.emit.mem.keys, from.clone(), width),
                tile(self.emit.mem.scores, from.clone(), width),
                false,
            );
        });
    }
    /// The maps after the product, in its place.
    fn map(&self, f: &mut Fuser, at: &[Expr], key: &Expr, [from, to]: [&Expr; 2], rows: &Expr) {
        let s = self.emit.s;
        if s.mapped == s.product {
            return;
        }
        f.tiles = vec![self.emit.tile(s.product, &s.spec.out, self.emit.mem.scores, at, key, self.emit.heads)];
        let mut loops = Vec::new();
        let q = f.open(Expr::int(0), rows.clone(), LoopKind::Serial, &mut loops);
        let (heads, number) = self.emit.open_heads(f, &mut loops);
        let row = f.bind((q.clone() * Expr::int(self.emit.heads) + number) * Expr::int(self.emit.width));
        let i = f.open(from.clone(), to.clone(), LoopKind::Vector, &mut loops);
        let k = key.clone() + i.clone();
        let idx = self.emit.index(&s.spec.out, at, &q, &heads, Some(&k));
        let value = f.eval(s.mapped, &idx);
        let value = if f.kernel.expr_dtype(&value) == self.emit.dtype { value } else { value.cast(self.emit.dtype) };
        f.here(Stmt::Store { mem: self.emit.mem.scores, index: row + i, value });
        f.close(loops);
    }
    /// The sum over the axes that end inside.
    fn fold(&self, f: &mut Fuser, at: &[Expr], key: &Expr, [from, to, reach]: [&Expr; 3], rows: &Expr) {
        let s = self.emit.s;
        if let Fold::No = s.fold {
            f.tiles = vec![self.emit.tile(s.mapped, &s.spec.out, self.emit.mem.scores, at, key, self.emit.heads)];
            return;
        }
        let how = if let Fold::Reduce(r) = &s.fold { *r } else { ReduceFn::Sum };
        let mut loops = Vec::new();
        let q = f.open(Expr::int(0), rows.clone(), LoopKind::Serial, &mut loops);
        let sum = f.bind(q.clone() * Expr::int(self.emit.width));
        let (mem, width, dtype) = (&self.emit.mem, self.emit.width, self.emit.dtype);
        f.by_hand(|b| b.each(reach.clone(), |b, i| b.store(mem.sums, sum.clone() + i, neutral(how, dtype))));
        let (heads, number) = self.emit.open_heads(f, &mut loops);
        let row = f.bind((q.clone() * Expr::int(self.emit.heads) + number) * Expr::int(width));
        let factor = self.emit.weight(f, at, &q, &heads);
        f.by_hand(|b| {
            b.for_(from.clone(), to.clone(), LoopKind::Vector, |b, i| {
                let x = Expr::load(mem.scores, row + i.clone());
                let x = factor.map_or(x.clone(), |w| x * w);
                let to = b.bind(sum + i);
                b.store(mem.sums, to.clone(), Expr::Map(combine(how), vec![Expr::load(mem.sums, to), x]));
            });
        });
        f.close_loops(loops);
        self.emit.folded(f, at, key, Expr::int(0));
    }
    /// The chunk's candidates against each row's best so far.
    fn compare(&self, f: &mut Fuser, at: &[Expr], _key: &Expr, first: &Expr, here: &Expr, rows: &Expr) {
        let s = self.emit.s;
        let mut loops = Vec::new();
        let q = f.open(Expr::int(0), rows.clone(), LoopKind::Serial, &mut loops);
        let mut idx: Vec<Expr> = at.to_vec();
        if let Some(a) = s.along {
            idx[a] = f.bind(at[a].clone() + q.clone());
        }
        let mut inner = Vec::new();
        let i = f.open(Expr::int(0), here.clone(), LoopKind::Vector, &mut inner);
        idx.push(first.clone() + i.clone());
        let value = f.eval(s.scores, &idx);
        f.here(Stmt::Store { mem: self.line, index: i, value });
        f.close(inner);
        let k = s.k;
        f.by_hand(|b| {
            let base = b.bind(q.clone() * Expr::int(k));
            let count = b.var(DType::I64, Expr::load(self.count, q.clone()));
            // Few get in once the list is full, so a few candidates at a time are passed over.
            let some = Expr::int(SOME);
            let parts = b.bind(Expr::floor_div(here.clone() + Expr::int(SOME - 1), some.clone()));
            b.range(parts, |b, part| {
                let from = b.bind(part * some.clone());
                let num = b.bind(Expr::minimum(some, here.clone() - from.clone()));
                let dtype = b.kernel.mem_dtype(self.line);
                let most = b.reduce(ReduceFn::Max, Build::f(dtype, f64::NEG_INFINITY), num.clone(), |_, i| {
                    Expr::load(self.line, from.clone() + i)
                });
                let last = Expr::minimum(Expr::Var(count), Expr::int(k)) - Expr::int(1);
                let last = b.bind(Expr::maximum(last, Expr::int(0)) + base.clone());
                let short = b.bind(Expr::lt(Expr::Var(count), Expr::int(k)));
                let enters = b.var(DType::Bool, short.clone());
                b.if_(Expr::map1(MapFn::Not, short), |b| b.assign(enters, beats(&Expr::Var(most), Expr::load(self.best, last))));
                b.if_(Expr::Var(enters), |b| {
                    b.range(num, |b, i| {
                        let i = b.bind(from + i);
                        let value = b.bind(Expr::load(self.line, i.clone()));
                        insert(b, [self.best, self.place], &base, k, count, value, first.clone() + i);
                    });
                });
            });
            b.store(self.count, q, Expr::Var(count));
        });
        f.close_loops(loops);
    }
    fn write(&self, f: &mut Fuser, at: &[Expr], rows: &Expr) {
        let s = self.emit.s;
        let mut loops = Vec::new();
        let q = f.open(Expr::int(0), rows.clone(), LoopKind::Serial, &mut loops);
        let mut idx: Vec<Expr> = at.to_vec();
        if let Some(a) = s.along {
            idx[a] = f.bind(at[a].clone() + q.clone());
        }
        let i = f.open(Expr::int(0), Expr::int(s.k), LoopKind::Serial, &mut loops);
        idx.push(i.clone());
        let target = f.target.clone();
        let index = f.address(&target, &idx);
        let to = f.buffer(&target, DType::I32, crate::ir::Access::Write);
        let k = s.k;
        f.by_hand(|b| {
            let chosen = b.bind(Expr::lt(i.clone(), Expr::load(self.count, q.clone())));
            let index = b.bind(index);
            b.if_(chosen.clone(), |b| b.store(to, index.clone(), Expr::load(self.place, q * Expr::int(k) + i)));
            let none = Expr::Const(Scalar::new(-1.0), DType::I32);
            b.if_(Expr::map1(MapFn::Not, chosen), |b| b.store(to, index, none));
        });
        f.close_loops(loops);
    }
}
