//! The same for a device of many processors: operands come as rectangles in the dtype that they have, and every loop over rows, keys or candidates is one
//! over all pairs at once.
//!
//! ```text
//! Q = queries[rows]
//! for each chunk of candidates: K = keys[chunk], S = Q·Kᵀ, P = map(S), F[q, i] = fold of P over the heads of q, line[q, j] = score(F), each q keeps its best
//! ```
//!
//! Rows are queries, each with its heads. Where a warp has all heads of a query and F is a sum, P takes the place of S, which threads hold, and the heads are
//! summed from there. Scratch: Q [rows, d], K [keys, d], S [rows, keys], of which each thread may hold its part, P as S, F
//! [queries, keys], each query's list of its best with a chunk's candidates behind them, in the order of all f32 as integers. A list grows by a merge: a
//! lane for each that counts those that come before it, of a long list by halving. Where a block has many queries, a lane has one of them, and lets those
//! candidates into its list, in registers, that beat its last.

use super::{
    Chunk, Emit, Fold, Fused, Fuser, Need, Select, TILE, combine, emitted, neutral,
    rows::{OfRow, of_rows},
};
use crate::{
    group::is_layout,
    ir::{Axis, COPY_ALIGN, Copy, Expr, LoopKind, Mem, Stmt, VarId, compute_dtype},
    kernels::{
        build::{Build, eq, tile, transposed},
        gpu_product::is_multiple,
    },
    view::StridedView,
};
use base::{DType, Dim};
use graph::{
    Op, Value,
    op::{MapFn, ReduceFn, Scalar},
};
use std::collections::BTreeMap;

/// Elements that a row of P is longer than a chunk's keys: eight rows that a warp stores lie in different banks.
const BANK_ELEMS: i64 = 8;
/// Neighbouring keys that a lane folds; widths are multiples.
const KEYS_OF_LANE: i64 = 2;
/// Heads that a warp sums between its lanes.
const HEADS_OF_WARP: [i64; 4] = [2, 4, 8, 16];
/// The places of a list that are all looked at for a candidate's.
const SHORT_LIST: i64 = 32;
/// So many queries are a warp's lanes.
const QUERIES_OF_WARP: i64 = 32;
/// Keys of a candidate, at most, so that a chunk's are one rectangle.
const MOST_KEYS: i64 = 256;

/// The kernel, if operands lie so that rectangles of them can be copied.
pub fn select_many(s: &Select, places: &[StridedView], target: &StridedView) -> Option<Fused> {
    emitted(s, places, target, |f| {
        Many::of(s, places, f, true)?.block(f);
        Some(())
    })
}

/// The kernel that stores all scores and where each row ends, to choose from them afterwards: where a list of the best would be too long. `target` is of f32 and
/// has the candidates as its last axis, `ends` of i32 has its other axes. What is behind a row's end is left as it is.
pub fn scores_many(s: &Select, places: &[StridedView], target: &StridedView, ends: &StridedView) -> Option<Fused> {
    emitted(s, places, target, |f| {
        Many::of(s, places, f, false)?.all(f, ends);
        Some(())
    })
}

/// An operand of the product where it lies: its letters in the order of a copy's axes, without those of one index.
struct Operand {
    view: StridedView,
    dtype: DType,
    letters: Vec<char>,
}

struct Many<'a> {
    emit: Emit<'a>,
    queries: Operand,
    keys: Operand,
    /// P, and the elements from row to row.
    mapped: Mem,
    stride: i64,
    /// Whether heads are summed between the lanes of a warp.
    warp: bool,
    /// Whether P is F already: a query has one head.
    single: bool,
    lists: Option<Lists>,
    /// What P has of each row alone, and where that is for all rows.
    of_rows: Vec<(OfRow, Mem)>,
}

/// Where an operand lies and its dtype there: an argument, as it is or widened, seen through layout ops.
fn place(s: &Select, places: &[StridedView], v: Value) -> Option<(StridedView, DType)> {
    let node = s.func.def(v);
    match &node.op {
        Op::Arg(i) => Some((places[*i as usize].clone(), s.ty(v).dtype)),
        Op::Cast(DType::F32) => place(s, places, node.inputs[0]).filter(|(_, d)| matches!(d, DType::BF16 | DType::F16)),
        op if is_layout(op) => {
            let (view, dtype) = place(s, places, node.inputs[0])?;
            Some((view.apply(op)?, dtype))
        }
        _ => None,
    }
}

impl<'a> Many<'a> {
    fn of(s: &'a Select<'a>, places: &[StridedView], f: &mut Fuser, lists: bool) -> Option<Many<'a>> {
        let heads = s.heads();
        let [summed] = s.spec.summed()[..] else { return None };
        s.along.filter(|_| TILE % heads == 0)?;
        let need = |c: &char| s.spec.out.iter().position(|o| o == c).map(|i| s.need[i].clone());
        let operand = |queries: bool| {
            let left = s.left == queries;
            let v = s.func.def(s.product).inputs[usize::from(!left)];
            let (view, dtype) = place(s, places, v)?;
            let letters = if left { &s.spec.lhs } else { &s.spec.rhs };
            // Axes of one index, then rows, what rows go along, heads, terms.
            let order = |c: &char| match need(c) {
                Some(Need::Row(a)) if Some(a) != s.along => 0,
                Some(Need::Row(_) | Need::Range { .. }) => 1,
                Some(Need::Whole(_)) => 2,
                None => 3,
            };
            let mut letters: Vec<(usize, char)> =
                letters.iter().copied().enumerate().filter(|(a, _)| !view.shape[*a].is(1)).collect();
            letters.sort_by_key(|(_, c)| order(c));
            let take = |of: &[Dim]| letters.iter().map(|(a, _)| of[*a].clone()).collect::<Vec<_>>();
            let view = StridedView { at: view.at.clone(), shape: take(&view.shape), strides: take(&view.strides) };
            let of = |kind: usize| letters.iter().filter(|(_, c)| order(c) == kind).count();
            let inner = if queries && heads > 1 { [1, 1, 1] } else { [1, 0, 1] };
            let all = [1, 2, 3].map(of) == inner && letters.last().is_some_and(|(_, c)| *c == summed);
            let n = COPY_ALIGN / dtype.bytes() as i64;
            let aligned = view.at.turn.iter().chain([&view.at.offset]).all(|d| is_multiple(d, n));
            let (last, outer) = view.strides.split_last()?;
            let steps = last.is(1) && outer.iter().chain(view.shape.last()).all(|d| is_multiple(d, n));
            let narrow = matches!(dtype, DType::BF16 | DType::F16 | DType::F32);
            let letters = letters.iter().map(|(_, c)| *c).collect();
            (all && aligned && steps && narrow && view.shape.len() <= 5).then_some(Operand { view, dtype, letters })
        };
        let (queries, keys) = (operand(true)?, operand(false)?);
        let (_, _, len) = s.range();
        if queries.dtype != keys.dtype || len > MOST_KEYS || compute_dtype(s.ty(s.scores).dtype) != DType::F32 {
            return None;
        }
        let emit = Emit::new(s, f, Some(queries.dtype));
        let (sum, heads) = (s.fold.how() == Some(ReduceFn::Sum), emit.heads);
        let warp = sum && HEADS_OF_WARP.contains(&heads) && emit.width % (8 * heads.min(8)) == 0;
        let single = s.fold.how().is_some() && heads == 1;
        // Rows that are summed from shared memory lie so that what a group of lanes stores is in different banks.
        let stride = emit.width + if warp || s.fold == Fold::No { 0 } else { BANK_ELEMS };
        let mapped = match warp || single {
            true => emit.mem.scores,
            false => f.kernel.scratch("mapped", emit.dtype, (TILE * stride) as usize),
        };
        let lists = lists.then(|| Lists::new(&emit, f));
        let of_rows = of_rows(s).into_iter().map(|x| (x, f.kernel.scratch("row", DType::F32, TILE as usize))).collect();
        Some(Many { emit, queries, keys, mapped, stride, warp, single, lists, of_rows })
    }

    fn lists(&self) -> &Lists {
        self.lists.as_ref().expect("it keeps the best")
    }
    fn block(&self, f: &mut Fuser) {
        let e = &self.emit;
        let (at, rows, n) = e.rows(f);
        f.by_hand(|b| {
            let lists = self.lists();
            b.fill(lists.values, Expr::int(lists.sides * e.queries * lists.width), never());
            b.fill(lists.places, Expr::int(lists.sides * e.queries * lists.stride), int(-1));
        });
        let end = e.end(f, &at, &rows, n);
        let chunks = self.each_chunk(f, (&at, &rows), end, |f, side, chunk, last| {
            self.line(f, &at, chunk, last, |q, j, value| {
                let lists = self.lists();
                (lists.values, lists.row(side, q) + Expr::int(e.s.k) + j.clone(), value)
            });
            match self.lists().entering {
                Some(entering) => self.enter(f, chunk, entering),
                None => self.merge(f, chunk, side),
            }
        });
        let side = f.bind(Expr::rem(chunks, Expr::int(2)));
        self.write(f, &at, &rows, &side);
    }
    /// All scores, stored.
    fn all(&self, f: &mut Fuser, ends: &StridedView) {
        let e = &self.emit;
        f.kernel.name = "scores".into();
        let (at, rows, n) = e.rows(f);
        let end = e.end(f, &at, &rows, n);
        self.each_chunk(f, (&at, &rows), end.clone(), |f, _, chunk, last| self.store(f, &at, &rows, chunk, last));
        let mut loops = Vec::new();
        let q = f.open(Expr::int(0), rows.clone(), LoopKind::Vector, &mut loops);
        let mut idx = at.to_vec();
        if let Some(a) = e.s.along {
            idx[a] = at[a].clone() + q;
        }
        let index = f.address(ends, &idx);
        let to = f.buffer(ends, DType::I32, crate::ir::Access::Write);
        f.here(Stmt::Store { mem: to, index, value: end.cast(DType::I32) });
        f.close_loops(loops);
    }
    /// Where a row's score of a candidate is stored.
    fn element(&self, f: &mut Fuser, target: &StridedView, at: &[Expr], q: &Expr, j: Expr) -> Expr {
        let mut idx = at.to_vec();
        if let Some(a) = self.emit.s.along {
            idx[a] = at[a].clone() + q.clone();
        }
        idx.push(j);
        f.address(target, &idx)
    }
    /// Runs `body` for each chunk of the candidates before `end`, of which the folded value is in scratch then: its side of the lists, the chunk, and the last row. How
    /// many there are.
    fn each_chunk(
        &self,
        f: &mut Fuser,
        (at, rows): (&[Expr], &Expr),
        end: Expr,
        body: impl FnOnce(&mut Fuser, &Expr, &Chunk, &Expr),
    ) -> Expr {
        let (e, s) = (&self.emit, self.emit.s);
        let zero = Expr::Const(Scalar::new(0.0), e.dtype);
        f.by_hand(|b| {
            if !self.warp && !self.single {
                b.fill(self.mapped, Expr::int(TILE * self.stride), zero);
            }
            if e.carried > 0 {
                b.fill(e.mem.sums, Expr::int(2 * e.queries * (e.width + e.carried)), e.nothing());
            }
        });
        self.copy(f, &self.queries, at, &Expr::int(0), [TILE, e.heads], e.mem.queries);
        self.rows(f, at, rows);
        let chunks = f.bind(Expr::floor_div(end.clone() + Expr::int(e.chunk - 1), Expr::int(e.chunk)));
        let mut outer = Vec::new();
        let c = f.open(Expr::int(0), chunks.clone(), LoopKind::Serial, &mut outer);
        let chunk = e.chunk_at(f, c.clone(), end);
        self.product(f, at, &chunk.key);
        let last = f.bind(rows.clone() - Expr::int(1));
        let side = f.bind(Expr::rem(c, Expr::int(2)));
        self.map(f, at, &chunk, &last, &side);
        let key = self.fold(f, at, &chunk, &last, &side);
        if let Fold::No = s.fold {
            f.tiles = vec![e.tile(s.mapped, &s.spec.out, self.mapped, at, &key, e.heads)];
        }
        body(f, &side, &chunk, &last);
        f.close_loops(outer);
        chunks
    }

    /// What there is of each row, before the chunks.
    fn rows(&self, f: &mut Fuser, at: &[Expr], rows: &Expr) {
        let e = &self.emit;
        for (x, mem) in &self.of_rows {
            let last = f.bind(rows.clone() - Expr::int(1));
            let mut loops = Vec::new();
            let row = f.open(Expr::int(0), Expr::int(TILE), LoopKind::Vector, &mut loops);
            let (query, heads) = self.query_and_heads(f, &row, &last);
            let idx = e.index(&x.letters, at, &query, &heads, None);
            let value = f.eval(x.number, &idx);
            f.here(Stmt::Store { mem: *mem, index: row, value });
            f.close_loops(loops);
        }
    }
    /// The query of a row, up to the last, and its head.
    fn query_and_heads(&self, f: &mut Fuser, row: &Expr, last: &Expr) -> (Expr, BTreeMap<char, Expr>) {
        let e = &self.emit;
        let query = f.bind(Expr::minimum(Expr::floor_div(row.clone(), Expr::int(e.heads)), last.clone()));
        (query, e.inside_at(f, Expr::rem(row.clone(), Expr::int(e.heads))))
    }
    /// S of a chunk.
    fn product(&self, f: &mut Fuser, at: &[Expr], key: &Expr) {
        let (e, zero, depth) = (&self.emit, Expr::int(0), self.emit.depth);
        self.copy(f, &self.keys, at, key, [e.width, 1], e.mem.keys);
        f.by_hand(|b| {
            let (q, k) = (tile(e.mem.queries, zero.clone(), depth), transposed(e.mem.keys, zero.clone(), depth));
            b.dot([TILE, e.width, depth].map(Expr::int), q, k, tile(e.mem.scores, zero, e.width), false);
        });
    }
    /// A rectangle of an operand: rows from `at` or keys from `key`.
    fn copy(&self, f: &mut Fuser, o: &Operand, at: &[Expr], key: &Expr, [rows, heads]: [i64; 2], to: Mem) {
        let s = self.emit.s;
        let first = |c: &char| match s.spec.out.iter().position(|o| o == c).map(|i| &s.need[i]) {
            Some(Need::Row(a)) => at[*a].clone(),
            Some(Need::Range { .. }) => key.clone(),
            Some(Need::Whole(_)) | None => Expr::int(0),
        };
        let mut axes: Vec<Axis> = Vec::new();
        for (a, c) in o.letters.iter().enumerate() {
            let (extent, stride) = (f.kernel.dim(&o.view.shape[a]), f.kernel.dim(&o.view.strides[a]));
            axes.push(Axis { extent, stride, at: first(c) });
        }
        let from = f.buffer(&o.view, o.dtype, crate::ir::Access::Read);
        let run = if heads > 1 { heads } else { rows };
        f.here(Stmt::Copy(Copy { from, to, rows, cols: self.emit.depth, run, axes, index: None, paired: None }));
    }
    /// A loop over all pairs of a row and one of `n`, and the two.
    fn pairs(&self, f: &mut Fuser, rows: i64, n: i64, loops: &mut Vec<super::super::Loop>) -> [Expr; 3] {
        let e = f.open(Expr::int(0), Expr::int(rows * n), LoopKind::Vector, loops);
        let row = f.bind(Expr::floor_div(e.clone(), Expr::int(n)));
        let i = f.bind(Expr::rem(e.clone(), Expr::int(n)));
        [e, row, i]
    }
    /// P = map(S). Rows past the last are computed as the last is; nothing looks at them.
    fn map(&self, f: &mut Fuser, at: &[Expr], chunk: &Chunk, last: &Expr, side: &Expr) {
        // Without keys there is nothing to look at.
        let any = Expr::lt(chunk.from.clone(), chunk.to.clone());
        let without_keys = |f: &mut Fuser| {
            if self.single {
                self.nothing(f, chunk, side);
            }
        };
        let Some(mask) = self.emit.s.mask() else {
            return f.branch(any, |f| self.map_keys(f, at, chunk, last, side), without_keys);
        };
        // Most chunks lie before all rows: there the mask lets everything through.
        let key = f.bind(chunk.key.clone() + chunk.to.clone() - Expr::int(1));
        let [a, b] = [&mask.keys, &mask.rows].map(|(v, axes)| {
            let of = |axis: &Option<usize>| match axis.map(|a| &self.emit.s.need[a]) {
                Some(Need::Row(r)) => at[*r].clone(),
                Some(Need::Range { .. }) => key.clone(),
                Some(Need::Whole(_)) | None => Expr::int(0),
            };
            let idx: Vec<Expr> = axes.iter().map(of).collect();
            f.eval(*v, &idx)
        });
        let all = f.bind(Expr::and(Expr::le(a, b), any.clone()));
        let without = |f: &mut Fuser| {
            f.given = Some((mask.value, true));
            self.map_keys(f, at, chunk, last, side);
            f.given = None;
        };
        let with = |f: &mut Fuser| f.branch(any, |f| self.map_keys(f, at, chunk, last, side), without_keys);
        f.branch(all, without, with);
    }
    /// F of a chunk that has no keys.
    fn nothing(&self, f: &mut Fuser, chunk: &Chunk, side: &Expr) {
        let e = &self.emit;
        let mut loops = Vec::new();
        let [_, q, i] = self.pairs(f, e.queries, e.width, &mut loops);
        let nothing = f.new_var(e.dtype, f.scopes.len() - 1);
        f.here(Stmt::Var(nothing, e.nothing()));
        self.store_sum(f, chunk, nothing, [&q, &i, side]);
        f.close_loops(loops);
    }
    /// The same of keys that there are.
    fn map_keys(&self, f: &mut Fuser, at: &[Expr], chunk: &Chunk, last: &Expr, side: &Expr) {
        let (e, s) = (&self.emit, self.emit.s);
        let mut loops = Vec::new();
        let [element, row, i] = self.pairs(f, TILE, e.width, &mut loops);
        let (query, heads) = self.query_and_heads(f, &row, last);
        let place = [row, i.clone()];
        // What lies along the keys is only read where there are some.
        let i = if e.reads_by_key() {
            Expr::maximum(chunk.from.clone(), Expr::minimum(i, chunk.to.clone() - Expr::int(1)))
        } else {
            i
        };
        let key = f.bind(chunk.key.clone() + i);
        let idx = e.index(&s.spec.out, at, &query, &heads, Some(&key));
        let product = e.tile(s.product, &s.spec.out, e.mem.scores, at, &chunk.key, e.heads);
        f.tiles = vec![super::Tile { own: Some((idx.clone(), element.clone())), ..product }];
        for (x, mem) in &self.of_rows {
            // As loops over elements find what threads hold for their rows.
            let own = Some((idx.clone(), Expr::floor_div(element.clone(), Expr::int(e.width))));
            let letters = x.own_letters(&s.spec.out);
            f.tiles.push(super::Tile { own, ..e.tile_of(x.repeated, &letters, *mem, at, &chunk.key, [e.heads, 1]) });
        }
        let value = f.eval(s.mapped, &idx);
        let value = if f.kernel.expr_dtype(&value) == e.dtype { value } else { value.cast(e.dtype) };
        let weight = if self.warp || self.single { e.weight(f, at, &query, &heads) } else { None };
        let value = weight.map_or(value.clone(), |w| value * w);
        if self.single {
            let sum = f.new_var(e.dtype, f.scopes.len() - 1);
            f.here(Stmt::Var(sum, value));
            self.store_sum(f, chunk, sum, [&place[0], &place[1], side]);
        } else {
            let [row, i] = place;
            let index = if self.warp { element } else { row * Expr::int(self.stride) + i };
            f.here(Stmt::Store { mem: self.mapped, index, value });
        }
        f.close_loops(loops);
    }
    /// F, and the first key that it has.
    fn fold(&self, f: &mut Fuser, at: &[Expr], chunk: &Chunk, last: &Expr, side: &Expr) -> Expr {
        let (e, s) = (&self.emit, self.emit.s);
        let Some(how) = s.fold.how() else { return chunk.key.clone() };
        if self.single {
            return e.folded(f, at, &chunk.key, e.sums_at(side));
        }
        let mut loops = Vec::new();
        if self.warp {
            let [_, q, i] = self.pairs(f, e.queries, e.width, &mut loops);
            let level = f.scopes.len() - 1;
            let sum = f.new_var(e.dtype, level);
            f.here(Stmt::Var(sum, neutral(how, e.dtype)));
            let mut inner = Vec::new();
            let head = f.open(Expr::int(0), Expr::int(e.heads), LoopKind::Serial, &mut inner);
            let index = (q.clone() * Expr::int(e.heads) + head) * Expr::int(e.width) + i.clone();
            f.here(Stmt::Accumulate(sum, how, Expr::load(self.mapped, index)));
            f.close_loops(inner);
            self.store_sum(f, chunk, sum, [&q, &i, side]);
            f.close_loops(loops);
            return e.folded(f, at, &chunk.key, e.sums_at(side));
        }
        // A lane has neighbouring keys, which are loaded at once.
        let [_, q, first] = self.pairs(f, e.queries, e.width / KEYS_OF_LANE, &mut loops);
        let first = f.bind(first * Expr::int(KEYS_OF_LANE));
        let query = f.bind(Expr::minimum(q.clone(), last.clone()));
        let level = f.scopes.len() - 1;
        let sums: Vec<VarId> = (0..KEYS_OF_LANE).map(|_| f.new_var(e.dtype, level)).collect();
        sums.iter().for_each(|sum| f.here(Stmt::Var(*sum, neutral(how, e.dtype))));
        let mut inner = Vec::new();
        let (heads, number) = e.open_heads(f, &mut inner);
        let row = f.bind((q.clone() * Expr::int(e.heads) + number) * Expr::int(self.stride) + first.clone());
        let weight = e.weight(f, at, &query, &heads);
        for (i, sum) in sums.iter().enumerate() {
            let x = Expr::load(self.mapped, row.clone() + Expr::int(i as i64));
            let x = weight.clone().map_or(x.clone(), |w| x * w);
            f.here(Stmt::Assign(*sum, Expr::Map(combine(how), vec![Expr::Var(*sum), x])));
        }
        f.close_loops(inner);
        for (i, sum) in sums.into_iter().enumerate() {
            let i = f.bind(first.clone() + Expr::int(i as i64));
            self.store_sum(f, chunk, sum, [&q, &i, side]);
        }
        f.close_loops(loops);
        e.folded(f, at, &chunk.key, e.sums_at(side))
    }
    /// A sum of F; of keys that there are none of, nothing. The last ones are also where the next chunk finds those that it takes over.
    fn store_sum(&self, f: &mut Fuser, chunk: &Chunk, sum: VarId, [q, i, side]: [&Expr; 3]) {
        let e = &self.emit;
        let inside = Expr::and(Expr::le(chunk.from.clone(), i.clone()), Expr::lt(i.clone(), chunk.to.clone()));
        let value = Expr::select(inside, Expr::Var(sum), e.nothing());
        let row = q.clone() * Expr::int(e.width + e.carried);
        let index = e.sums_at(side) + row.clone() + i.clone() + Expr::int(e.carried);
        if e.carried == 0 {
            return f.here(Stmt::Store { mem: e.mem.sums, index, value });
        }
        let value = f.bind(value);
        f.here(Stmt::Store { mem: e.mem.sums, index, value: value.clone() });
        let kept = e.width - e.carried;
        let index = e.sums_at(&(Expr::int(1) - side.clone())) + row + i.clone() - Expr::int(kept);
        let then = vec![Stmt::Store { mem: e.mem.sums, index, value }];
        f.here(Stmt::If { cond: Expr::le(Expr::int(kept), i.clone()), then, otherwise: Vec::new() });
    }
    /// The scores of the chunk's candidates as they are.
    fn store(&self, f: &mut Fuser, at: &[Expr], rows: &Expr, chunk: &Chunk, last: &Expr) {
        let (e, s) = (&self.emit, self.emit.s);
        let mut loops = Vec::new();
        let [_, q, j] = self.pairs(f, e.queries, e.chunk, &mut loops);
        let inside = f.bind(Expr::and(Expr::lt(j.clone(), chunk.here.clone()), Expr::lt(q.clone(), rows.clone())));
        let near = f.bind(Expr::minimum(j, chunk.here.clone() - Expr::int(1)));
        let mut idx = at.to_vec();
        if let Some(a) = s.along {
            idx[a] = f.bind(at[a].clone() + Expr::minimum(q.clone(), last.clone()));
        }
        let candidate = f.bind(chunk.first.clone() + near);
        idx.push(candidate.clone());
        let value = f.eval(s.scores, &idx);
        let target = f.target.clone();
        let index = self.element(f, &target, at, &q, candidate);
        let to = f.buffer(&target, DType::F32, crate::ir::Access::Write);
        f.by_hand(|b| b.if_(inside, |b| b.store(to, index, value)));
        f.close_loops(loops);
    }
    /// The scores of the chunk's candidates in the order of all, where `to` says; those past its last are never chosen.
    fn line(
        &self,
        f: &mut Fuser,
        at: &[Expr],
        chunk: &Chunk,
        last: &Expr,
        to: impl FnOnce(&Expr, &Expr, Expr) -> (Mem, Expr, Expr),
    ) {
        let (e, s) = (&self.emit, self.emit.s);
        let mut loops = Vec::new();
        let [_, q, j] = self.pairs(f, e.queries, e.chunk, &mut loops);
        let mut idx = at.to_vec();
        if let Some(a) = s.along {
            idx[a] = f.bind(at[a].clone() + Expr::minimum(q.clone(), last.clone()));
        }
        let inside = f.bind(Expr::lt(j.clone(), chunk.here.clone()));
        let near = f.bind(Expr::minimum(j.clone(), chunk.here.clone() - Expr::int(1)));
        idx.push(f.bind(chunk.first.clone() + near));
        let value = f.eval(s.scores, &idx).order();
        let value = Expr::select(inside, value, never());
        let (mem, index, value) = to(&q, &j, value);
        f.here(Stmt::Store { mem, index, value });
        f.close_loops(loops);
    }
    /// Merges each query's list and the chunk's candidates: a lane has one of them and counts those that come before it.
    fn merge(&self, f: &mut Fuser, chunk: &Chunk, side: &Expr) {
        let (e, k, lists) = (&self.emit, self.emit.s.k, self.lists());
        f.by_hand(|b| {
            let (width, other) = (lists.width, b.bind(Expr::int(1) - side.clone()));
            b.each(Expr::int(e.queries * width), |b, element| {
                let q = b.bind(Expr::floor_div(element.clone(), Expr::int(width)));
                let i = b.bind(Expr::rem(element, Expr::int(width)));
                let row = b.bind(lists.row(side, &q));
                let own = b.bind(Expr::load(lists.values, row.clone() + i.clone()));
                let rank = b.var(DType::I32, int(0));
                b.range(Expr::int(e.chunk), |b, j| {
                    let x = b.bind(Expr::load(lists.values, row.clone() + Expr::int(k) + j.clone()));
                    // Equal ones stay in order.
                    let earlier = Expr::lt((j + Expr::int(k)).cast(DType::I32), i.clone().cast(DType::I32));
                    let same = Expr::and(earlier, eq(x.clone(), own.clone()));
                    let before = Expr::map2(MapFn::Or, same, Expr::lt(own.clone(), x));
                    b.assign(rank, Expr::Var(rank) + before.cast(DType::I32));
                });
                // The list is in order: its first are before a candidate, and each of its own knows its place.
                let of_list = self.first_of_list(b, &row, &own);
                let listed = b.bind(Expr::lt(i.clone(), Expr::int(k)));
                b.assign(rank, Expr::Var(rank) + Expr::select(listed, i.clone().cast(DType::I32), of_list));
                let real = Expr::lt(i.clone(), Expr::int(k + e.chunk));
                b.if_(Expr::and(Expr::lt(Expr::Var(rank), int(k)), real), |b| {
                    let place = b.var(DType::I32, (chunk.first.clone() + i.clone() - Expr::int(k)).cast(DType::I32));
                    b.if_(Expr::lt(i.clone(), Expr::int(k)), |b| {
                        b.assign(place, Expr::load(lists.places, lists.place(side, &q) + i))
                    });
                    let rank = b.bind(Expr::Var(rank).cast(DType::I64));
                    b.store(lists.values, lists.row(&other, &q) + rank.clone(), own);
                    b.store(lists.places, lists.place(&other, &q) + rank, Expr::Var(place));
                });
            });
        });
    }
    /// The same by a lane for each query: first it finds the few candidates that beat the last of its list, then it puts each of these in its place, and what
    /// that beats moves one on.
    fn enter(&self, f: &mut Fuser, chunk: &Chunk, entering: Mem) {
        let (e, k, lists) = (&self.emit, self.emit.s.k, self.lists());
        f.by_hand(|b| {
            b.each(Expr::int(e.queries), |b, q| {
                let [row, places] = [lists.row(&Expr::int(0), &q), lists.place(&Expr::int(0), &q)].map(|at| b.bind(at));
                let candidates = b.bind(row.clone() + Expr::int(k));
                let numbers = b.bind(q * Expr::int(e.chunk | 1));
                let last = b.bind(Expr::load(lists.values, candidates.clone() - Expr::int(1)));
                let count = b.var(DType::I64, Expr::int(0));
                b.range(Expr::int(e.chunk), |b, j| {
                    let n = b.now(count);
                    b.store(entering, numbers.clone() + n.clone(), j.clone().cast(DType::I32));
                    let x = Expr::load(lists.values, candidates.clone() + j);
                    b.assign(count, n + Expr::lt(last.clone(), x).cast(DType::I64));
                });
                let count = b.now(count);
                b.if_(Expr::lt(Expr::int(0), count.clone()), |b| {
                    let at = |i: usize| {
                        [(lists.values, row.clone()), (lists.places, places.clone())].map(|(m, a)| (m, a + Expr::int(i as i64)))
                    };
                    let list: Vec<[VarId; 2]> =
                        (0..k as usize).map(|i| at(i).map(|(m, a)| b.var(DType::I32, Expr::load(m, a)))).collect();
                    b.range(count, |b, i| {
                        let j = b.bind(Expr::load(entering, numbers.clone() + i));
                        let value = b.bind(Expr::load(lists.values, candidates.clone() + j.clone().cast(DType::I64)));
                        let place = b.bind(chunk.first.clone().cast(DType::I32) + j);
                        let new = [value.clone(), place];
                        let own: Vec<[Expr; 2]> = list.iter().map(|all| all.map(|v| b.now(v))).collect();
                        // Equal ones stay in order.
                        let beats: Vec<Expr> = own.iter().map(|[v, _]| b.bind(Expr::lt(v.clone(), value.clone()))).collect();
                        for (i, vars) in list.iter().enumerate() {
                            for c in 0..2 {
                                let moved = match i.checked_sub(1) {
                                    Some(before) => Expr::select(beats[before].clone(), own[before][c].clone(), new[c].clone()),
                                    None => new[c].clone(),
                                };
                                b.assign(vars[c], Expr::select(beats[i].clone(), moved, own[i][c].clone()));
                            }
                        }
                    });
                    for (i, vars) in list.iter().enumerate() {
                        for ((mem, index), v) in at(i).into_iter().zip(vars) {
                            let value = b.now(*v);
                            b.store(mem, index, value);
                        }
                    }
                });
            });
        });
    }
    /// How many of a list come before a candidate, or are equal to it.
    fn first_of_list(&self, b: &mut Build, row: &Expr, own: &Expr) -> Expr {
        let (k, values) = (self.emit.s.k, self.lists().values);
        if k <= SHORT_LIST {
            let count = b.var(DType::I32, int(0));
            b.range(Expr::int(k), |b, m| {
                let before = not(Expr::lt(Expr::load(values, row.clone() + m), own.clone()));
                b.assign(count, Expr::Var(count) + before.cast(DType::I32));
            });
            return Expr::Var(count);
        }
        let (lo, hi) = (b.var(DType::I64, Expr::int(0)), b.var(DType::I64, Expr::int(k)));
        b.range(Expr::int(i64::from((k as u64).next_power_of_two().trailing_zeros()) + 1), |b, _| {
            let middle = b.bind(Expr::floor_div(Expr::Var(lo) + Expr::Var(hi), Expr::int(2)));
            let x = b.bind(Expr::load(values, row.clone() + Expr::minimum(middle.clone(), Expr::int(k - 1))));
            let open = b.bind(Expr::lt(Expr::Var(lo), Expr::Var(hi)));
            let before = b.bind(not(Expr::lt(x, own.clone())));
            let next = Expr::and(open.clone(), before.clone());
            b.assign(lo, Expr::select(next, middle.clone() + Expr::int(1), Expr::Var(lo)));
            b.assign(hi, Expr::select(Expr::and(open, not(before)), middle, Expr::Var(hi)));
        });
        Expr::Var(lo).cast(DType::I32)
    }
    fn write(&self, f: &mut Fuser, at: &[Expr], rows: &Expr, side: &Expr) {
        let (e, s) = (&self.emit, self.emit.s);
        let mut loops = Vec::new();
        let [_, q, i] = self.pairs(f, e.queries, s.k, &mut loops);
        let mut idx = at.to_vec();
        if let Some(a) = s.along {
            idx[a] = f.bind(at[a].clone() + q.clone());
        }
        idx.push(i.clone());
        let target = f.target.clone();
        let index = f.address(&target, &idx);
        let to = f.buffer(&target, DType::I32, crate::ir::Access::Write);
        let lists = self.lists();
        f.by_hand(|b| {
            b.if_(Expr::lt(q.clone(), rows.clone()), |b| {
                let index = b.bind(index);
                let value = b.bind(Expr::load(lists.values, lists.row(side, &q) + i.clone()));
                let taken = b.bind(Expr::map2(MapFn::Ne, value, never()));
                let place = Expr::load(lists.places, lists.place(side, &q) + i);
                b.store(to, index, Expr::select(taken, place, int(-1)));
            });
        });
        f.close_loops(loops);
    }
}

/// What each query keeps: places of scores in the order of all, best first, with room for a chunk's candidates behind, and where they are. A place that is
/// left has that of -inf. All of it is there twice where a merge reads one side and writes the other.
struct Lists {
    values: Mem,
    places: Mem,
    /// The numbers of the candidates that beat the last of a query's list, where a lane has a query.
    entering: Option<Mem>,
    sides: i64,
    queries: i64,
    /// Elements from query to query, of values and of places.
    width: i64,
    stride: i64,
}

impl Lists {
    fn new(e: &Emit, f: &mut Fuser) -> Lists {
        let (queries, k) = (e.queries, e.s.k);
        let enter = queries >= QUERIES_OF_WARP && k <= SHORT_LIST;
        // Lanes with a query each look into different banks; else four elements are loaded at once.
        let (width, stride) = if enter { ((k + e.chunk) | 1, k | 1) } else { ((k + e.chunk + 3) / 4 * 4, k) };
        let mut scratch = |name: &str, elems: i64| f.kernel.scratch(name, DType::I32, elems as usize);
        let sides = if enter { 1 } else { 2 };
        let values = scratch("lists", sides * queries * width);
        let places = scratch("places", sides * queries * stride);
        let entering = enter.then(|| scratch("entering", queries * (e.chunk | 1)));
        Lists { values, places, entering, sides, queries, width, stride }
    }
    /// The number of a query's list on a side.
    fn list(&self, side: &Expr, q: &Expr) -> Expr {
        if self.sides == 1 { q.clone() } else { side.clone() * Expr::int(self.queries) + q.clone() }
    }
    /// Where a query's scores begin on a side.
    fn row(&self, side: &Expr, q: &Expr) -> Expr {
        self.list(side, q) * Expr::int(self.width)
    }
    /// Where a query's places begin on a side.
    fn place(&self, side: &Expr, q: &Expr) -> Expr {
        self.list(side, q) * Expr::int(self.stride)
    }
}

fn int(n: i64) -> Expr {
    Build::f(DType::I32, n as f64)
}

/// Of a place where there is nothing: what -inf is in the order of all.
fn never() -> Expr {
    Build::f(DType::F32, f64::NEG_INFINITY).order()
}

fn not(x: Expr) -> Expr {
    Expr::map1(MapFn::Not, x)
}
