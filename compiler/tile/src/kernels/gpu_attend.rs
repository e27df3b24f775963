//! Softmax attention for a device of many processors, over domains that are ranges with tests, or lists of blocks with such. Buffers: q, k, v, domain
//! operands…, o, lse; with lists blocks, member and count before the last two. With an [`Ending`] what it reads comes before these, and the mapped result
//! after them, with or without o: the tile is mapped where it was summed. Or sums of maps over columns, as a loss and gradients take of a result.
//!
//! A block has a batch, some heads of a group and a tile of queries; its rows are the queries, each with its heads. With lists it goes over the union of
//! its queries' blocks, which `gpu_attend_union` has made, and each query's rows see those that it listed. Keys come a tile at a time; the product with the values of one tile and the weights of the
//! next do not wait for each other:
//!
//! ```text
//! S = Q·K₀ᵀ, weigh S, P = S
//! for each further tile j of keys: S = Q·Kⱼᵀ, O = O + P·Vⱼ₋₁, weigh S, O = α·O, P = S
//! O = O + P·V of the last
//!
//! weigh: m' = max S if that is larger than m by more than 8/c, else m     α = 2^(c·(m − m'))     S = 2^(c·S − c·m')     l = α·l + ΣS     c = scale·log₂ e
//! o = O / l, lse = scale·m + log l      both 0 for a row that saw no key
//! ```
//!
//! Of values of more than 256 columns a block sums half. Where they are known to be the first columns of keys, these are not joined: a tile of keys is in three
//! pieces, of which the block's half is its values too, and two warp groups take turns in place of products that run ahead.
//!
//! Memory map: Q [rows, dk], K [keys, dk], V [keys, dv] as they come; S, P [rows, keys] and O [rows, dv], of which each thread may hold its part; m, l, α
//! [rows]. Values of keys that a row does not see have to be finite, if they are in a tile of which it sees another.
//!
//! # Source: Shah et al., FlashAttention-3, 2024, section 3.2; Zadouri et al., FlashAttention-4, 2026, on when to scale. Tested on the domains and sizes of `tests/attend.rs`.

use super::{
    build::{Build, both, div, eq, exp, tile, transposed, truth},
    domain::{Pieces, Problem, Scene, driving_list, sees_only_keys},
    gpu_attend_union::Union,
    gpu_product::Element,
};
use crate::ir::{Axis, COPY_ALIGN, Copy, Expr, Kernel, LoopKind, Mem, Stmt};
use base::{DType, Dim};
use graph::op::{Domain, MapFn, ReduceFn};

/// How much larger than 1 weights may become before the largest score is taken anew, as a power of two: far below what f16 holds.
const SLACK: f64 = 8.0;

/// Sizes of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling {
    /// Rows of a tile: queries, each with the tile's heads.
    pub rows: i64,
    /// Keys of a tile.
    pub keys: i64,
    /// Heads of a tile: one, or all that share keys.
    pub heads: i64,
}

impl Tiling {
    /// All that the kernel is built for.
    pub const LEGAL: [Tiling; 4] = [
        Tiling { rows: 128, keys: 128, heads: 1 },
        Tiling { rows: 128, keys: 64, heads: 1 },
        Tiling { rows: 64, keys: 32, heads: 1 },
        Tiling { rows: 16, keys: 16, heads: 1 },
    ];
    /// The one used unless another is asked for.
    pub fn choose(p: &Problem) -> Tiling {
        let narrow = matches!(p.dtype, DType::BF16 | DType::F16);
        let heads = p.h / p.g;
        if is_wide(p) {
            // Rows are as many of a query's heads as there are.
            let rows = if shares(p) { 2 * WIDE_ROWS } else { WIDE_ROWS };
            let own = (0..=rows.ilog2()).map(|i| rows >> i).find(|n| heads % n == 0).unwrap_or(1);
            return Tiling { rows, keys: 32, heads: own };
        }
        if let Some((Domain::Tokens(_), _)) = driving_list(&p.domain) {
            // A query has a tile of its own.
            return Tiling { rows: heads, keys: TOKENS, heads };
        }
        if let Some(size) = super::gpu_attend_union::block_size(&p.domain) {
            // Queries of a tile share loads, and each sees few of the others' blocks.
            // Sixteen lanes share a row: what is not so many keys is not taken.
            let keys = if size % 16 == 0 { size.min(if narrow { 64 } else { 32 }) } else { 16 };
            return Tiling { rows: LISTED_ROWS, keys, heads };
        }
        if p.t.known().is_some_and(|t| t * heads <= LISTED_ROWS) && LISTED_ROWS % heads == 0 {
            return Tiling { rows: LISTED_ROWS, keys: if narrow { 64 } else { 32 }, heads };
        }
        match p.dtype {
            DType::BF16 | DType::F16 if p.dk <= 192 && p.dv <= 128 => Tiling::LEGAL[0],
            DType::BF16 | DType::F16 => Tiling::LEGAL[1],
            _ => Tiling::LEGAL[2],
        }
    }
    /// Queries of a tile.
    pub fn queries(&self) -> i64 {
        self.rows / self.heads
    }
}

/// Rows of a tile where there are lists, or few queries: what one warp group multiplies.
const LISTED_ROWS: i64 = 64;

/// Columns of the result that a block sums, and of keys and values that are not wide.
pub const WIDEST: i64 = 256;

/// Rows of a tile where keys and values are wide: these leave room for no more. Twice as many where values need no memory of their own.
const WIDE_ROWS: i64 = 64;

/// Whether keys or values have more columns than usual, as where a latent that all heads share is both.
pub(super) fn is_wide(p: &Problem) -> bool {
    p.dk.max(p.dv) > WIDEST
}

/// Whether keys are values and more columns, which are given in place of keys: a block has its half of the values' columns, the other half and those.
pub fn shares(p: &Problem) -> bool {
    p.shared && p.dv > WIDEST && p.dk > p.dv && p.dk <= MOST_KEY && !p.domain.has_lists()
}

/// Columns of the result that a block sums: all, or half of many.
pub(super) fn columns(p: &Problem) -> i64 {
    if p.dv > WIDEST { p.dv / 2 } else { p.dv }
}

/// Keys of a list that come together.
const TOKENS: i64 = 128;

/// Whether the kernel takes the problem with this tiling: operands come as rectangles, and no list says which keys a query sees but one of blocks, or
/// one of single keys that has each once, if heads are a warp group's rows.
pub fn takes(p: &Problem, t: Tiling, aligned: bool) -> bool {
    let tokens = || Tokens::of(p, t).is_some() && (p.dtype == DType::F32 || t.rows % 64 == 0 && t.rows <= 192);
    let listed = || Union::new(p, t).is_some() || Blocks::of(p, t).is_some() || tokens();
    let wide = is_wide(p) && p.dk <= MOST_KEY && p.dv <= 2 * WIDEST && columns(p) % 16 == 0 && !p.domain.has_lists();
    (is_plain(p, aligned) || wide && is_tile(p, aligned)) && (!p.domain.has_lists() || listed())
}

/// Columns of keys, at most.
const MOST_KEY: i64 = 576;

/// Whether operands come as rectangles that are not wide.
pub(super) fn is_plain(p: &Problem, aligned: bool) -> bool {
    is_tile(p, aligned) && !is_wide(p)
}

/// Whether operands come as rectangles.
fn is_tile(p: &Problem, aligned: bool) -> bool {
    let n = COPY_ALIGN / p.dtype.bytes() as i64;
    let narrow = matches!(p.dtype, DType::BF16 | DType::F16 | DType::F32);
    narrow && aligned && p.dk % n == 0 && p.dk % 16 == 0 && p.dv % 16 == 0
}

/// A tensor `[batch, positions, heads, n]` of which rectangles of positions and elements of a head are copied.
#[derive(Clone)]
pub(super) struct Heads {
    mem: Mem,
    axes: [(Expr, Expr); 4],
    /// The first of the elements, and how many.
    first: Expr,
    n: i64,
}

impl Heads {
    pub(super) fn new(b: &mut Build, mem: Mem, batch: &Dim, positions: &Dim, heads: i64, n: i64) -> Heads {
        let row = heads * n;
        let of_batch = positions.clone() * Dim::from(row);
        let axes = [
            (b.dim(batch), b.dim(&of_batch)),
            (Expr::int(heads), Expr::int(n)),
            (b.dim(positions), Expr::int(row)),
            (Expr::int(n), Expr::int(1)),
        ];
        Heads { mem, axes, first: Expr::int(0), n }
    }
    /// So many elements of a head, from one on.
    fn columns(self, first: &Expr, n: i64) -> Heads {
        Heads { first: first.clone(), n, ..self }
    }
    /// Positions from `first` on of a head, to scratch or from it.
    pub(super) fn copy(&self, b: &mut Build, scratch: Mem, rows: i64, at: [&Expr; 3], store: bool) {
        self.copy_heads(b, scratch, [rows, 1], at, store);
    }
    /// Positions of a head to scratch: those that stand in the buffer `index` from `at` on.
    fn gather(&self, b: &mut Build, scratch: Mem, rows: i64, [batch, head, at]: [&Expr; 3], index: usize) {
        let [(batches, of_batch), (_, of_head), (positions, row), (_, one)] = self.axes.clone();
        let first = batch.clone() * of_batch.clone() + head.clone() * of_head;
        // The last axis is all there is, so that a batch and a head are further along it.
        let all = Axis { extent: batches * of_batch, stride: one, at: b.bind(first) };
        let axes = vec![Axis { extent: positions, stride: row, at: at.clone() }, all];
        b.push(Stmt::Copy(Copy {
            from: self.mem,
            to: scratch,
            rows,
            cols: self.n,
            run: rows,
            axes,
            index: Some(index),
            paired: None,
        }));
    }
    /// The same of some heads from `head` on: rows are positions, each with these heads.
    pub(super) fn copy_heads(
        &self,
        b: &mut Build,
        scratch: Mem,
        [rows, heads]: [i64; 2],
        [batch, head, first]: [&Expr; 3],
        store: bool,
    ) {
        let at = [batch.clone(), head.clone(), first.clone(), self.first.clone()];
        let axes =
            self.axes.iter().zip(at).map(|((extent, stride), at)| Axis { extent: extent.clone(), stride: stride.clone(), at });
        let mut axes: Vec<Axis> = axes.collect();
        let run = if heads == 1 { rows } else { heads };
        if heads > 1 {
            axes.swap(1, 2);
        }
        let (from, to) = if store { (scratch, self.mem) } else { (self.mem, scratch) };
        b.push(Stmt::Copy(Copy { from, to, rows, cols: self.n, run, axes, index: None, paired: None }));
    }
    /// To scratch all heads that share keys of those queries whose numbers in `[b, t, g]`, of `all` there are, stand in a buffer from `at` on.
    pub(super) fn pick_heads(
        &self,
        b: &mut Build,
        scratch: Mem,
        [rows, heads]: [i64; 2],
        all: &Expr,
        (numbers, at): (Mem, &Expr),
    ) {
        let Mem::Buffer(index) = numbers else { base::bug!("numbers of queries are in a buffer") };
        // An only query is where its number says, and what is negative is outside.
        let (at, index) = match rows == heads {
            true => (b.bind(Expr::load(numbers, at.clone()).cast(DType::I64)), None),
            false => (at.clone(), Some(index)),
        };
        let axes = vec![
            Axis::new(all.clone(), heads * self.n, at),
            Axis::new(Expr::int(heads), self.n, Expr::int(0)),
            Axis::new(Expr::int(self.n), 1, Expr::int(0)),
        ];
        b.push(Stmt::Copy(Copy { from: self.mem, to: scratch, rows, cols: self.n, run: heads, axes, index, paired: None }));
    }
    /// To scratch those rows whose numbers stand in a buffer, as [`pick_rows`].
    pub(super) fn pick_rows(&self, b: &mut Build, scratch: Mem, rows: i64, all: &Expr, from: (Mem, &Expr)) {
        pick_rows(b, (self.mem, scratch), [rows, self.n], all, from);
    }
}

/// To scratch those rows of `n` elements whose numbers in `[b, t, h]`, of `all` there are, stand in a buffer from `at` on.
pub(super) fn pick_rows(b: &mut Build, (from, to): (Mem, Mem), [rows, n]: [i64; 2], all: &Expr, (numbers, at): (Mem, &Expr)) {
    let Mem::Buffer(index) = numbers else { base::bug!("numbers of rows are in a buffer") };
    let axes = vec![Axis::new(all.clone(), n, at.clone()), Axis::new(Expr::int(n), 1, Expr::int(0))];
    b.push(Stmt::Copy(Copy { from, to, rows, cols: n, run: rows, axes, index: Some(index), paired: None }));
}

/// A map at an [`Element`] whose row is that of a batch, a query and a head, together.
pub type MapOfElement<'a> = dyn Fn(&mut Build, &Element) -> Expr + 'a;

/// What follows: a map of each element of the result, which may read others' values there, or sums of such maps over each row's columns.
pub struct Ending<'a> {
    /// What it reads: the dtypes and elements of buffers.
    pub operands: Vec<(DType, Dim)>,
    /// Whether the result itself is stored, too.
    pub keeps: bool,
    /// What is given.
    pub gives: AtEnd<'a>,
}

/// What an [`Ending`] gives.
pub enum AtEnd<'a> {
    /// A map, stored as this.
    Map(DType, &'a MapOfElement<'a>),
    /// Sums, of a row each, and what each is stored as: once or more.
    Sums(Vec<(Vec<DType>, &'a MapOfElement<'a>)>),
}

impl Ending<'_> {
    /// The buffers that it reads.
    pub(super) fn read(&self, b: &mut Build) -> Vec<Mem> {
        let operands = self.operands.iter().enumerate();
        operands.map(|(i, (dtype, elems))| b.read(&format!("z{i}"), *dtype, elems.clone())).collect()
    }
    /// The buffers that it writes: those of a map, or of each sum.
    fn write(&self, b: &mut Build, [o, lse]: [&Dim; 2]) -> Vec<Vec<Mem>> {
        match &self.gives {
            AtEnd::Map(dtype, _) => vec![vec![b.write("y", *dtype, o.clone())]],
            AtEnd::Sums(sums) => {
                let mut of = |i: usize, dtype: &DType| b.write(&format!("sum{i}"), *dtype, lse.clone());
                sums.iter().enumerate().map(|(i, (dtypes, _))| dtypes.iter().map(|d| of(i, d)).collect()).collect()
            }
        }
    }
}

/// Whether a kernel can give so many sums of rows: it has all of a row's columns, and a place for what is summed while o is still needed.
pub fn takes_sums(p: &Problem, t: Tiling, count: usize) -> bool {
    columns(p) == p.dv && !shares(p) && (count <= 1 || t.keys == p.dv)
}

/// The kernel.
pub fn gpu_attend(p: &Problem, t: Tiling) -> Kernel {
    attend(&[Job { p, parts: None, ending: None, scores: false }], t)
}

/// The same with a map of the result.
pub fn gpu_attend_map(p: &Problem, t: Tiling, ending: &Ending) -> Kernel {
    attend(&[Job { p, parts: None, ending: Some(ending), scores: false }], t)
}

/// One attention of a kernel.
pub(super) struct Job<'a> {
    pub p: &'a Problem,
    /// Into how many parts its keys are divided, if they are.
    pub parts: Option<&'a Dim>,
    pub ending: Option<&'a Ending<'a>>,
    /// Whether scores are stored as they were multiplied.
    pub scores: bool,
}

/// The buffers of a job but for queries, and what of them it maps.
struct Buffers<'a> {
    /// Keys, or their columns behind those that values are.
    k: Mem,
    v: Mem,
    operands: Vec<Mem>,
    union: Option<Union>,
    o: Option<Mem>,
    lse: Mem,
    ending: Option<(&'a Ending<'a>, Vec<Mem>, Vec<Vec<Mem>>)>,
    scores: Option<Mem>,
}

impl<'a> Job<'a> {
    /// What each result is a multiple of.
    fn count(&self) -> Dim {
        self.parts.cloned().unwrap_or(Dim::from(1))
    }
    /// Blocks of a part.
    fn of_part(&self, t: Tiling) -> Dim {
        let of_columns = self.p.h / t.heads * (self.p.dv / columns(self.p));
        self.p.t.ceil_div(&Dim::from(t.queries())) * self.p.b.clone() * Dim::from(of_columns)
    }
    fn read(&self, b: &mut Build, t: Tiling) -> (Mem, Mem, Vec<Mem>, Option<Union>, Vec<Mem>) {
        let p = self.p;
        let [_, k, v, ..] = p.elems();
        let k = if shares(p) { p.b.clone() * p.s.clone() * Dim::from(p.g * (p.dk - p.dv)) } else { k };
        let [k, v] = [("k", k), ("v", v)].map(|(name, n)| b.read(name, p.dtype, n));
        let operands = p.operands.iter().enumerate().map(|(i, t)| b.read(&format!("d{i}"), t.dtype, t.elems())).collect();
        let union = Union::new(p, t).map(|u| u.read(b, p));
        (k, v, operands, union, self.ending.map_or(Vec::new(), |e| e.read(b)))
    }
    fn write(&self, b: &mut Build, (k, v, operands, union, read): (Mem, Mem, Vec<Mem>, Option<Union>, Vec<Mem>)) -> Buffers<'a> {
        let p = self.p;
        let [.., o, lse] = p.elems().map(|n| n * self.count());
        let stored = if self.parts.is_some() { p.sum_dtype() } else { p.dtype };
        let keeps = self.ending.is_none_or(|e| e.keeps);
        Buffers {
            k,
            v,
            operands,
            union,
            o: keeps.then(|| b.write("o", stored, o.clone())),
            lse: b.write("lse", p.sum_dtype(), lse.clone()),
            ending: self.ending.map(|e| (e, read, e.write(b, [&o, &lse]))),
            scores: self.scores.then(|| b.write("s", p.sum_dtype(), p.scores())),
        }
    }
    /// What the block of this number does.
    fn program(&self, b: &mut Build, t: Tiling, scratch: Scratch, (q, buffers): (Mem, Buffers), block: Expr) {
        let p = self.p;
        let q = Heads::new(b, q, &p.b, &p.t, p.h, p.dk);
        let k = Heads::new(b, buffers.k, &p.b, &p.s, p.g, if shares(p) { p.dk - p.dv } else { p.dk });
        let v = Heads::new(b, buffers.v, &p.b, &p.s, p.g, p.dv);
        let batches = p.b.clone() * self.count();
        let of_result = |b: &mut Build, mem: Mem| Heads::new(b, mem, &batches, &p.t, p.h, p.dv);
        let o = buffers.o.map(|mem| of_result(b, mem));
        let ending = buffers.ending.map(|(e, read, to)| {
            let y = if let AtEnd::Map(..) = e.gives { Some(of_result(b, to[0][0])) } else { None };
            (e, read, to, y)
        });
        // Neighbouring blocks have the same keys.
        let n = columns(p);
        let (column, block) = match p.dv / n {
            1 => (Expr::int(0), block),
            parts => {
                let column = b.bind(Expr::rem(block.clone(), Expr::int(parts)) * Expr::int(n));
                (column, b.bind(Expr::floor_div(block, Expr::int(parts))))
            }
        };
        let v = v.columns(&column, n);
        let o = o.map(|o| o.columns(&column, n));

        let (part, block) = if self.parts.is_some() {
            let n = b.dim(&self.of_part(t).floor_div(&Dim::from(p.dv / n)));
            (b.bind(Expr::floor_div(block.clone(), n.clone())), b.bind(Expr::rem(block, n)))
        } else {
            (Expr::int(0), block)
        };
        let place = match p.domain.has_lists() && Blocks::of(p, t).is_none() {
            true => Place::of_lists(b, p, t),
            false => Place::of_ranges(b, p, t, block),
        };
        let Place { batch, head, group, first } = place;
        // Whose result it is.
        let own = if self.parts.is_some() { b.dim(&p.b) * part.clone() + batch.clone() } else { batch.clone() };
        let own = b.bind(own);
        let (queries, keys) = (b.dim(&p.t), b.dim(&p.s));
        let operands = buffers.operands;
        let scene = Scene { problem: p, operands, t: queries, s: keys, batch: batch.clone(), group: group.clone() };
        let tokens = Tokens::of(p, t).map(|tokens| tokens.read(b, &scene, &first));
        let listed = Blocks::of(p, t).map(|x| x.read(b, &scene));
        let which =
            buffers.union.map(Rows::Union).or(tokens.map(Rows::Tokens)).or(listed.map(Rows::Blocks)).unwrap_or(Rows::Neighbours);
        let stored = buffers.scores.map(|mem| (mem, head.clone()));
        let mut a = Attend { stored, ..Attend::new(&scene, t, first, which, scratch) };
        if let Some([other, rest]) = scratch.more {
            let own = Piece { first: column.clone(), n, of: [a.q, a.k], of_values: true };
            let other = Piece { first: b.bind(Expr::int(n) - column.clone()), n, of: other, of_values: true };
            a.pieces = vec![own, other, Piece { first: Expr::int(p.dv), n: p.dk - p.dv, of: rest, of_values: false }];
        }

        for piece in &a.pieces {
            let q = q.clone().columns(&piece.first, piece.n);
            q.copy_heads(b, piece.of[0], [t.rows, t.heads], [&batch, &head, &a.first], false);
        }
        a.begin(b);
        let source = a.source(b);
        let all = source.count(b);
        let (before, pieces) = if self.parts.is_some() {
            let count = b.dim(&self.count());
            let each = b.bind(Expr::floor_div(all.clone() + count.clone() - Expr::int(1), count));
            let before = b.bind(each.clone() * part);
            (before.clone(), b.bind(Expr::minimum(each, all - before)))
        } else {
            (Expr::int(0), all)
        };
        b.if_(Expr::lt(Expr::int(0), pieces.clone()), |b| {
            a.visit(b, [&k, &v], [&batch, &group], pieces, |b, j| source.at(b, &later(j, &before)));
        });
        let nothing = if self.parts.is_some() { f64::NEG_INFINITY } else { 0.0 };
        let lse = buffers.lse;
        a.finish(b, |b, r, none, log| {
            let log = Expr::select(none, a.f(nothing), log);
            match column.known() {
                Some(_) => a.store_lse(b, lse, [&own, &head], [r, log]),
                // Of the blocks with the same scores one stores what they are summed to.
                None => b.if_(eq(column.clone(), Expr::int(0)), |b| a.store_lse(b, lse, [&own, &head], [r, log])),
            }
        });
        if let Some(o) = o {
            o.copy_heads(b, a.out, [t.rows, t.heads], [&own, &head, &a.first], true);
        }
        let Some((ending, read, to, y)) = ending else { return };
        match &ending.gives {
            AtEnd::Map(_, map) => {
                a.map_result(b, (*map, a.out), &read, [&head, &column]);
                let y = y.expect("a map has a result").columns(&column, n);
                y.copy_heads(b, a.out, [t.rows, t.heads], [&own, &head, &a.first], true);
            }
            AtEnd::Sums(sums) => {
                for (i, ((_, map), to)) in sums.iter().zip(&to).enumerate() {
                    // Nobody needs scores any more; nor, at last, o.
                    let place = if i + 1 < sums.len() { a.scores } else { a.out };
                    a.map_result(b, (*map, place), &read, [&head, &column]);
                    a.sum_rows(b, place, to, [&own, &head]);
                }
            }
        }
    }
}

/// Attentions of the same queries, one or two, of which the first's blocks come first. Buffers: q; k, v, and what else is read, of each; o, lse, and what else is written,
/// of each.
pub(super) fn attend(jobs: &[Job], t: Tiling) -> Kernel {
    let p = jobs[0].p;
    debug_assert!(jobs.iter().all(|j| takes(j.p, t, true)), "{:?} with {t:?}", p.domain);
    let mut b = Build::new(if jobs[0].parts.is_some() { "attend_part" } else { "attend" });
    let q = b.read("q", p.dtype, p.elems()[0].clone());
    let read: Vec<_> = jobs.iter().map(|j| j.read(&mut b, t)).collect();
    let mut buffers: Vec<_> = jobs.iter().zip(read).map(|(j, read)| j.write(&mut b, read)).collect();
    let blocks = jobs.iter().map(|j| j.of_part(t) * j.count());
    b.kernel.grid = blocks.fold(Dim::from(0), |all, n| all + n);
    let scratch = Scratch::new(&mut b, p, t);
    let block = b.block();
    match jobs {
        [job] => job.program(&mut b, t, scratch, (q, buffers.remove(0)), block),
        [one, other] => {
            let n = b.dim(&(one.of_part(t) * one.count()));
            let [of_one, of_other] = [buffers.remove(0), buffers.remove(0)];
            let first = b.bind(Expr::lt(block.clone(), n.clone()));
            b.if_(first.clone(), |b| one.program(b, t, scratch, (q, of_one), block.clone()));
            b.if_(Expr::map1(MapFn::Not, first), |b| {
                let block = b.bind(block - n);
                other.program(b, t, scratch, (q, of_other), block);
            });
        }
        _ => base::bug!("{} attentions in a kernel", jobs.len()),
    }
    b.finish()
}

/// What a block has: its batch, its first head, whose keys, its first query.
struct Place {
    batch: Expr,
    head: Expr,
    group: Expr,
    first: Expr,
}

impl Place {
    /// Heads are neighbours, and the queries that see the most keys come first.
    fn of_ranges(b: &mut Build, p: &Problem, t: Tiling, block: Expr) -> Place {
        let (num_tiles, batches) = (b.dim(&p.t.ceil_div(&Dim::from(t.queries()))), b.dim(&p.b));
        let heads = Expr::int(p.h / t.heads);
        let head = b.bind(Expr::rem(block.clone(), heads.clone()));
        let head = b.bind(head * Expr::int(t.heads));
        let rest = b.bind(Expr::floor_div(block, heads));
        let batch = b.bind(Expr::rem(rest.clone(), batches.clone()));
        let first = b.bind((num_tiles - Expr::int(1) - Expr::floor_div(rest, batches)) * Expr::int(t.queries()));
        let group = b.bind(Expr::floor_div(head.clone(), Expr::int(p.h / p.g)));
        Place { batch, head, group, first }
    }
    /// All that share keys are neighbours, so that these stay near.
    fn of_lists(b: &mut Build, p: &Problem, t: Tiling) -> Place {
        let [batch, group, first] = super::gpu_attend_union::place(b, p, &p.t, t.queries());
        let head = b.bind(group.clone() * Expr::int(t.heads));
        Place { batch, head, group, first }
    }
}

/// Piece `j` of those from `before` on.
fn later(j: &Expr, before: &Expr) -> Expr {
    if before.known() == Some(0) { j.clone() } else { j.clone() + before.clone() }
}

/// Where a tile's keys are.
pub(super) enum Source<'a> {
    /// In the union of its queries' blocks, in pieces of so many.
    Lists(&'a Union, i64),
    /// In one or two ranges.
    Ranges(Pieces),
    /// In a query's list, in pieces of so many.
    Tokens(Expr, i64, Expr),
    /// In the blocks that the only query lists, in pieces of so many.
    Blocks(&'a Blocks, i64, Expr),
}

impl<'a> Source<'a> {
    /// Of queries from the first on, in pieces of `keys`.
    pub fn new(b: &mut Build, scene: &Scene, union: Option<&'a Union>, (first, queries): (&Expr, i64), keys: i64) -> Source<'a> {
        if let Some(u) = union {
            return Source::Lists(u, keys);
        }
        let last = b.bind(Expr::minimum(first.clone() + Expr::int(queries), scene.t.clone()) - Expr::int(1));
        Source::Ranges(scene.pieces(b, &scene.problem.domain, [first, &last], keys))
    }
    /// How many pieces.
    pub fn count(&self, b: &mut Build) -> Expr {
        match self {
            Source::Lists(u, keys) => u.pieces(b, *keys),
            Source::Ranges(r) => r.count.clone(),
            Source::Tokens(_, _, count) => count.clone(),
            Source::Blocks(l, keys, _) => Expr::int(l.n * (l.size / keys)),
        }
    }
    /// The first key of piece `j`, or its place in the lists.
    pub fn at(&self, b: &mut Build, j: &Expr) -> Expr {
        match self {
            Source::Lists(u, keys) => u.piece(b, j, *keys),
            Source::Ranges(r) => r.at(b, j),
            Source::Tokens(first, keys, _) => b.bind(first.clone() + j.clone() * Expr::int(*keys)),
            Source::Blocks(l, keys, end) => l.piece(b, j, *keys, end),
        }
    }
}

/// Rows and columns of scores: which queries and which keys.
pub(super) struct Sides<'a> {
    /// The first query, and how many.
    pub queries: (&'a Expr, i64),
    /// Neighbouring heads that each query has.
    pub heads: i64,
    /// The first key, and how many.
    pub keys: (&'a Expr, i64),
    /// Whether a row is a query's, else a key's.
    pub by_queries: bool,
    /// Which queries rows are, if they are no neighbours.
    pub rows: Option<&'a Gathered>,
}

/// Which queries of a tile list the keys at hand, by their place in the tile.
pub(super) type Listed<'a> = &'a dyn Fn(Expr) -> Expr;

/// Makes scores −∞ where a query does not list the keys or does not see a key, unless all of the tile see each other. Past the last query any may be seen,
/// and past the last key where rows are keys.
pub(super) fn mask(b: &mut Build, scene: &Scene, domain: &Domain, scores: Mem, sides: &Sides, listed: Option<Listed>) {
    let p = scene.problem;
    let Sides { queries: (query, queries), heads, keys: (key, keys), by_queries, rows } = *sides;
    let [last_query, last_key] = [(query, queries), (key, keys)].map(|(first, n)| b.bind(first.clone() + Expr::int(n - 1)));
    let last_query = rows.map_or(last_query, |g| g.last.clone());
    let mut all = scene.all_see(b, domain, [query, &last_query], [key, &last_key]);
    let within = by_queries && !sees_only_keys(domain);
    if within {
        all = both(Expr::lt(last_key, scene.s.clone()), all);
    }
    let width = Expr::int(if by_queries { keys } else { queries * heads });
    let elems = Expr::int(queries * heads * keys);
    let none = Build::f(p.sum_dtype(), f64::NEG_INFINITY);
    if let Some(listed) = listed {
        b.each(elems.clone(), |b, e| {
            let (row, col) = (Expr::floor_div(e.clone(), width.clone()), Expr::rem(e.clone(), width.clone()));
            let query = Expr::floor_div(if by_queries { row } else { col }, Expr::int(heads));
            let seen = b.bind(listed(query));
            b.store(scores, e.clone(), Expr::select(seen, Expr::load(scores, e), none.clone()));
        });
    }
    if all == truth() {
        return;
    }
    let all = b.bind(all);
    b.if_(Expr::map1(MapFn::Not, all), |b| {
        let test = scene.test(domain, [query, key]).map(|test| {
            let rest = b.bind((scene.s.clone() - key.clone()).cast(DType::I32));
            (test.near(b), rest)
        });
        b.each(elems, |b, e| {
            let (row, col) = (Expr::floor_div(e.clone(), width.clone()), Expr::rem(e.clone(), width));
            let (t, s) = if by_queries { (row, col) } else { (col, row) };
            let t = rows.map_or_else(|| Expr::floor_div(t.clone(), Expr::int(heads)), |g| g.query(t.clone()));
            let seen = match test {
                Some((test, rest)) => {
                    // Places in a tile and how far tiles are apart fit in 32 bits.
                    let [t, s] = [t, s].map(|x| b.bind(x.cast(DType::I32)));
                    let inside = if within { Expr::lt(s.clone(), rest) } else { truth() };
                    both(inside, test.passes(&t, &s))
                }
                None => {
                    let t = b.bind(Expr::minimum(query.clone() + t, scene.t.clone() - Expr::int(1)));
                    let s = b.bind(key.clone() + s);
                    // Tests look at keys that there are.
                    let inside = b.bind(Expr::lt(s.clone(), scene.s.clone()));
                    let s = b.bind(Expr::minimum(s, scene.s.clone() - Expr::int(1)));
                    both(inside, scene.sees(b, domain, &t, &s))
                }
            };
            let seen = b.bind(seen);
            b.store(scores, e.clone(), Expr::select(seen, Expr::load(scores, e), none));
        });
    });
}

/// Which queries a tile's rows are.
pub(super) enum Rows {
    /// Neighbours, which see what the domain says.
    Neighbours,
    /// Neighbours, which see what they list of the union of their blocks.
    Union(Union),
    /// Those that list the block of keys at hand.
    Gathered(Gathered),
    /// One, with its heads, which sees what it lists.
    Tokens(Tokens),
    /// The only one of a batch, with its heads, which sees the blocks that it lists.
    Blocks(Blocks),
}

/// A list of blocks of keys of the only query of a batch, which has each once, as in a step of decoding: no union is needed.
pub(super) struct Blocks {
    operand: usize,
    size: i64,
    rest: Domain,
    n: i64,
    /// In a kernel: the lists, and the place of the query's first.
    from: Option<(Mem, Expr)>,
}

impl Blocks {
    /// Of a problem with one query, whose heads are rows of a tile.
    pub fn of(p: &Problem, t: Tiling) -> Option<Blocks> {
        let (Domain::Blocks { idx: operand, size }, rest) = driving_list(&p.domain)? else { return None };
        let n = p.operands[operand].shape[3].known().filter(|n| *n > 0)?;
        let alone = p.t.known() == Some(1) && p.distinct && t.heads == p.h / p.g && t.rows % t.heads == 0;
        (alone && size % t.keys == 0 && !rest.has_lists()).then_some(Blocks { operand, size, rest, n, from: None })
    }
    fn read(self, b: &mut Build, scene: &Scene) -> Blocks {
        let row = scene.batch.clone() * Expr::int(scene.problem.g) + scene.group.clone();
        let from = Some((scene.operands[self.operand], b.bind(row * Expr::int(self.n))));
        Blocks { from, ..self }
    }
    /// The first key of piece `j`; of no block it lies behind the last key, which nothing sees.
    fn piece(&self, b: &mut Build, j: &Expr, keys: i64, end: &Expr) -> Expr {
        let (list, first) = self.from.clone().expect("a kernel reads it");
        let each = Expr::int(self.size / keys);
        let at = first + Expr::floor_div(j.clone(), each.clone());
        let block = b.bind(Expr::load(list, at).cast(DType::I64));
        let start = block.clone() * Expr::int(self.size) + Expr::rem(j.clone(), each) * Expr::int(keys);
        b.bind(Expr::select(Expr::lt(block, Expr::int(0)), end.clone(), start))
    }
}

/// A list of single keys for each query, which has each once.
pub(super) struct Tokens {
    operand: usize,
    rest: Domain,
    n: i64,
    /// In a kernel: the lists, and the place of a query's first.
    from: Option<(Mem, Expr)>,
}

impl Tokens {
    /// Of a problem whose tiles have a query each.
    fn of(p: &Problem, t: Tiling) -> Option<Tokens> {
        let (Domain::Tokens(operand), rest) = driving_list(&p.domain)? else { return None };
        let n = p.operands[operand].shape[3].known().filter(|n| *n > 0)?;
        let fits = p.distinct && t.rows == t.heads && t.heads == p.h / p.g && !rest.has_lists();
        fits.then_some(Tokens { operand, rest, n, from: None })
    }
    fn read(self, b: &mut Build, scene: &Scene, query: &Expr) -> Tokens {
        let row = (scene.batch.clone() * scene.t.clone() + query.clone()) * Expr::int(scene.problem.g) + scene.group.clone();
        // Copies by index look at where the lists end.
        b.dim(&scene.problem.operands[self.operand].elems());
        let from = Some((scene.operands[self.operand], b.bind(row * Expr::int(self.n))));
        Tokens { from, ..self }
    }
    fn source(&self) -> (Mem, Expr) {
        self.from.clone().expect("a kernel reads it")
    }
    /// The lists' buffer.
    fn buffer(&self) -> usize {
        match self.source().0 {
            Mem::Buffer(i) => i,
            Mem::Scratch(_) => base::bug!("lists are a buffer"),
        }
    }
    /// Makes scores of the keys from place `start` of the lists on −∞ that the query does not see: of a list that has ended, or no key.
    fn mask(&self, b: &mut Build, scene: &Scene, scores: Mem, query: &Expr, start: &Expr, [rows, keys]: [i64; 2]) {
        let (list, first) = self.source();
        let left = b.bind(first + Expr::int(self.n) - start.clone());
        let none = Build::f(scene.problem.sum_dtype(), f64::NEG_INFINITY);
        b.each(Expr::int(rows * keys), |b, e| {
            let col = b.bind(Expr::rem(e.clone(), Expr::int(keys)));
            let inside = b.bind(Expr::lt(col.clone(), left.clone()));
            // Past the last list there is nothing to look at.
            let place = start.clone() + Expr::minimum(col, left - Expr::int(1));
            let key = b.bind(Expr::load(list, place).cast(DType::I64));
            let known = both(Expr::le(Expr::int(0), key.clone()), Expr::lt(key.clone(), scene.s.clone()));
            let known = b.bind(both(inside, known));
            let key = b.bind(Expr::select(known.clone(), key, Expr::int(0)));
            let seen = both(known, scene.sees(b, &self.rest, query, &key));
            let seen = b.bind(seen);
            b.store(scores, e.clone(), Expr::select(seen, Expr::load(scores, e), none));
        });
    }
}

/// Rows whose numbers in `[b, t, h]` stand in a buffer, or those of their queries in `[b, t, g]`, by increasing queries of one batch; what is negative is
/// none, and lies at the end.
pub(super) struct Gathered {
    numbers: Mem,
    at: Expr,
    /// The first query.
    pub first: Expr,
    /// A query that none is after.
    last: Expr,
    /// The domain without the list.
    pub rest: Domain,
    /// Numbers of a query, and rows of a number.
    of_query: i64,
    rows: i64,
    /// The first query of the batch.
    batch: Expr,
}

impl Gathered {
    /// `count` rows from `at` on, the first of which is one.
    pub fn new(b: &mut Build, scene: &Scene, rows: Mem, at: Expr, count: i64, rest: Domain) -> Gathered {
        let heads = scene.problem.h;
        let batch = b.bind(scene.batch.clone() * scene.t.clone());
        let mut query = |at: Expr| {
            let row = b.bind(Expr::load(rows, at).cast(DType::I64));
            (row.clone(), b.bind(Expr::floor_div(row, Expr::int(heads)) - batch.clone()))
        };
        let (_, first) = query(at.clone());
        let (row, last) = query(at.clone() + Expr::int(count - 1));
        let last = Expr::select(Expr::lt(row, Expr::int(0)), scene.t.clone() - Expr::int(1), last);
        Gathered { numbers: rows, at, first, last: b.bind(last), rest, of_query: heads, rows: 1, batch }
    }
    /// Queries whose numbers are from `at` on, each with so many rows.
    pub fn of_tile(scene: &Scene, numbers: Mem, at: &Expr, ends: [&Expr; 2], rows: i64, rest: Domain) -> Gathered {
        let ([first, last], batch) = (ends.map(Expr::clone), scene.batch.clone() * scene.t.clone());
        Gathered { numbers, at: at.clone(), first, last, rest, of_query: scene.problem.g, rows, batch }
    }
    /// How far the query of a row is from the first.
    fn query(&self, row: Expr) -> Expr {
        let number = if self.rows == 1 { row } else { Expr::floor_div(row, Expr::int(self.rows)) };
        let number = Expr::load(self.numbers, self.at.clone() + number).cast(DType::I64);
        let query = Expr::floor_div(number, Expr::int(self.of_query)) - self.batch.clone();
        Expr::maximum(query - self.first.clone(), Expr::int(0))
    }
}

/// A block's scratch.
#[derive(Clone, Copy)]
pub(super) struct Scratch {
    q: Mem,
    k: Mem,
    v: Mem,
    /// Of queries and keys that are in pieces: the other half of what values are of, and the rest.
    more: Option<[[Mem; 2]; 2]>,
    scores: Mem,
    weights: Mem,
    out: Mem,
    max: Mem,
    sum: Mem,
    alpha: Mem,
}

/// Some of the columns of queries and keys, and where these are in scratch.
struct Piece {
    first: Expr,
    n: i64,
    of: [Mem; 2],
    /// Whether values have them; else they are all that is given of keys.
    of_values: bool,
}

impl Scratch {
    pub fn new(b: &mut Build, p: &Problem, Tiling { rows, keys, .. }: Tiling) -> Scratch {
        let dtype = p.sum_dtype();
        let n = columns(p);
        let mut pair = |n: i64| [("q", rows), ("k", keys)].map(|(name, m)| b.scratch(name, p.dtype, m * n));
        let [q, k] = pair(if shares(p) { n } else { p.dk });
        let more = shares(p).then(|| [pair(n), pair(p.dk - p.dv)]);
        let v = if shares(p) { k } else { b.scratch("v", p.dtype, keys * n) };
        let (scores, weights) = (b.scratch("scores", dtype, rows * keys), b.scratch("weights", p.dtype, rows * keys));
        let out = b.scratch("out", dtype, rows * columns(p));
        let [max, sum, alpha] = ["max", "sum", "alpha"].map(|name| b.scratch(name, dtype, rows));
        Scratch { q, k, v, more, scores, weights, out, max, sum, alpha }
    }
}

/// A block's memory.
pub(super) struct Attend<'a> {
    scene: &'a Scene<'a>,
    tiling: Tiling,
    /// The first query.
    first: Expr,
    dtype: DType,
    pub q: Mem,
    k: Mem,
    v: Mem,
    scores: Mem,
    weights: Mem,
    pub out: Mem,
    max: Mem,
    sum: Mem,
    alpha: Mem,
    rows: Rows,
    /// What scores are summed of: queries and keys, or pieces of these.
    pieces: Vec<Piece>,
    /// Where scores are stored too, and the first head.
    stored: Option<(Mem, Expr)>,
}

impl<'a> Attend<'a> {
    pub fn new(scene: &'a Scene, tiling: Tiling, first: Expr, which: Rows, scratch: Scratch) -> Attend<'a> {
        let Scratch { q, k, v, scores, weights, out, max, sum, alpha, .. } = scratch;
        let dtype = scene.problem.sum_dtype();
        let pieces = vec![Piece { first: Expr::int(0), n: scene.problem.dk, of: [q, k], of_values: false }];
        Attend { scene, tiling, first, dtype, q, k, v, scores, weights, out, max, sum, alpha, rows: which, pieces, stored: None }
    }
    /// Where its keys are, if rows are neighbours.
    fn source(&self, b: &mut Build) -> Source<'_> {
        let (t, queries) = (self.tiling, (&self.first, self.tiling.queries()));
        match &self.rows {
            Rows::Union(u) => Source::Lists(u, t.keys),
            Rows::Tokens(l) => Source::Tokens(l.source().1, t.keys, Expr::int((l.n + t.keys - 1) / t.keys)),
            Rows::Blocks(l) => Source::Blocks(l, t.keys, self.scene.s.clone()),
            Rows::Neighbours | Rows::Gathered(_) => Source::new(b, self.scene, None, queries, t.keys),
        }
    }
    /// Keys, or values, to scratch: from `start` on.
    fn bring(&self, b: &mut Build, from: &Heads, to: Mem, [batch, group, start]: [&Expr; 3]) {
        match &self.rows {
            Rows::Tokens(l) => from.gather(b, to, self.tiling.keys, [batch, group, start], l.buffer()),
            Rows::Neighbours | Rows::Union(_) | Rows::Gathered(_) | Rows::Blocks(_) => {
                from.copy(b, to, self.tiling.keys, [batch, group, start], false);
            }
        }
    }
    /// Keys from `start` on, in pieces.
    fn bring_keys(&self, b: &mut Build, [k, v]: [&Heads; 2], at: [&Expr; 3]) {
        for Piece { first, n, of: [_, to], of_values } in &self.pieces {
            match of_values {
                true => self.bring(b, &v.clone().columns(first, *n), *to, at),
                false => self.bring(b, k, *to, at),
            }
        }
    }
    /// Nothing is seen yet.
    pub fn begin(&self, b: &mut Build) {
        b.fill(self.out, Expr::int(self.tiling.rows * self.columns()), self.f(0.0));
        self.each_row(b, |b, r| {
            b.store(self.max, r.clone(), self.f(f64::NEG_INFINITY));
            b.store(self.sum, r, self.f(0.0));
        });
    }
    /// Goes over `pieces` of keys, one or more, of a batch and a group; `at` has the first key of each.
    pub fn visit(
        &self,
        b: &mut Build,
        [k, v]: [&Heads; 2],
        [batch, group]: [&Expr; 2],
        pieces: Expr,
        at: impl Fn(&mut Build, &Expr) -> Expr,
    ) {
        if self.v == self.k {
            // A tile's keys are its values: nothing runs ahead.
            b.range(pieces, |b, j| {
                let start = at(b, &j);
                self.bring_keys(b, [k, v], [batch, group, &start]);
                self.multiply_keys(b);
                self.weigh(b, &j, &start);
                self.scale_result(b);
                self.keep_weights(b);
                self.multiply_values(b);
            });
            return;
        }
        let zero = Expr::int(0);
        let start = at(b, &zero);
        self.bring_keys(b, [k, v], [batch, group, &start]);
        self.multiply_keys(b);
        self.store_scores(b, &start);
        self.weigh(b, &zero, &start);
        self.keep_weights(b);
        if pieces.known() != Some(1) {
            b.for_(Expr::int(1), pieces.clone(), LoopKind::Serial, |b, j| {
                let before = b.bind(j.clone() - Expr::int(1));
                let (start, before) = (at(b, &j), at(b, &before));
                self.bring_keys(b, [k, v], [batch, group, &start]);
                self.multiply_keys(b);
                self.bring(b, v, self.v, [batch, group, &before]);
                self.multiply_values(b);
                self.store_scores(b, &start);
                self.weigh(b, &j, &start);
                self.scale_result(b);
                self.keep_weights(b);
            });
        }
        let last = b.bind(pieces - Expr::int(1));
        let last = at(b, &last);
        self.bring(b, v, self.v, [batch, group, &last]);
        self.multiply_values(b);
    }
    fn f(&self, x: f64) -> Expr {
        Build::f(self.dtype, x)
    }
    fn columns(&self) -> i64 {
        columns(self.scene.problem)
    }
    fn each_row(&self, b: &mut Build, body: impl FnOnce(&mut Build, Expr)) {
        b.each(Expr::int(self.tiling.rows), body);
    }
    /// S = Q·Kᵀ.
    fn multiply_keys(&self, b: &mut Build) {
        let (Tiling { rows, keys, .. }, zero) = (self.tiling, Expr::int(0));
        for (i, Piece { n, of: [q, k], .. }) in self.pieces.iter().enumerate() {
            let (q, k) = (tile(*q, zero.clone(), *n), transposed(*k, zero.clone(), *n));
            b.dot([rows, keys, *n].map(Expr::int), q, k, tile(self.scores, zero.clone(), keys), i > 0);
        }
    }
    /// Scores of keys from `start` on, of rows and keys that there are.
    fn store_scores(&self, b: &mut Build, start: &Expr) {
        let Some((mem, head)) = &self.stored else { return };
        let (p, Tiling { rows, keys, heads }) = (self.scene.problem, self.tiling);
        let row = b.bind((self.scene.batch.clone() * self.scene.t.clone() + self.first.clone()) * Expr::int(p.h) + head.clone());
        let inside = b.bind((self.scene.t.clone() - self.first.clone()) * Expr::int(heads));
        let rest = b.bind(self.scene.s.clone() - start.clone());
        let store = |b: &mut Build, tests: bool| {
            b.each(Expr::int(rows), |b, r| {
                b.if_(Expr::lt(r.clone(), inside.clone()), |b| {
                    let (query, own) = (Expr::floor_div(r.clone(), Expr::int(heads)), Expr::rem(r.clone(), Expr::int(heads)));
                    let at = (row.clone() + query * Expr::int(p.h) + own) * self.scene.s.clone() + start.clone();
                    let at = b.bind(at);
                    b.each(Expr::int(keys), |b, c| {
                        let score = Expr::load(self.scores, r * Expr::int(keys) + c.clone());
                        let there = if tests { Expr::lt(c.clone(), rest.clone()) } else { truth() };
                        b.if_(there, |b| b.store(*mem, at + c, score));
                    });
                });
            });
        };
        // The last tile alone has keys that there are none of.
        let whole = b.bind(Expr::le(Expr::int(keys), rest.clone()));
        b.if_(whole.clone(), |b| store(b, false));
        b.if_(Expr::map1(MapFn::Not, whole), |b| store(b, true));
    }
    /// Makes scores of piece `j`, of keys from `start` on, −∞ where a row does not see the key.
    fn mask(&self, b: &mut Build, j: &Expr, start: &Expr) {
        let Tiling { keys, heads, .. } = self.tiling;
        let queries = (&self.first, self.tiling.queries());
        let sides = Sides { queries, heads, keys: (start, keys), by_queries: true, rows: None };
        match &self.rows {
            Rows::Neighbours => mask(b, self.scene, &self.scene.problem.domain, self.scores, &sides, None),
            Rows::Union(u) => {
                let entry = b.bind(u.entry(j, keys));
                mask(b, self.scene, &u.rest, self.scores, &sides, Some(&|q| u.lists(&entry, q)));
            }
            Rows::Gathered(g) => mask(b, self.scene, &g.rest, self.scores, &Sides { rows: Some(g), ..sides }, None),
            Rows::Blocks(l) => mask(b, self.scene, &l.rest, self.scores, &sides, None),
            Rows::Tokens(l) => l.mask(b, self.scene, self.scores, &self.first, start, [self.tiling.rows, keys]),
        }
    }
    /// Scores of piece `j`, of keys from `start` on, become weights; m, l and α follow.
    fn weigh(&self, b: &mut Build, j: &Expr, start: &Expr) {
        let (Tiling { rows, keys, .. }, p) = (self.tiling, self.scene.problem);
        let (elems, width) = (Expr::int(rows * keys), Expr::int(keys));
        let none = self.f(f64::NEG_INFINITY);
        self.mask(b, j, start);
        let factor = self.f(p.scale * std::f64::consts::LOG2_E);
        let ln_2 = self.f(std::f64::consts::LN_2);
        let per_score = p.scale * std::f64::consts::LOG2_E;
        let slack = self.f(if per_score > 0.0 { SLACK / per_score } else { 0.0 });
        self.each_row(b, |b, r| {
            let old = b.bind(Expr::load(self.max, r.clone()));
            let largest = b.reduce(ReduceFn::Max, none.clone(), width.clone(), |_, c| {
                Expr::load(self.scores, r.clone() * width.clone() + c)
            });
            // A largest score that is hardly larger changes nothing, so that O stays as it is: weights are below 2^SLACK then.
            let rises = b.bind(Expr::lt(old.clone() + slack, Expr::Var(largest)));
            let new = b.bind(Expr::select(rises.clone(), Expr::Var(largest), old.clone()));
            // A row that has seen nothing yet: subtract 0 instead of -inf.
            let shift = b.bind(Expr::select(eq(new.clone(), none.clone()), self.f(0.0), new.clone() * factor.clone()));
            let alpha = Expr::select(rises, exp((old * factor.clone() - shift) * ln_2.clone()), self.f(1.0));
            let alpha = b.bind(alpha);
            b.store(self.max, r.clone(), new);
            b.store(self.alpha, r.clone(), alpha.clone());
            b.store(self.sum, r.clone(), Expr::load(self.sum, r.clone()) * alpha);
        });
        b.each(elems.clone(), |b, e| {
            let max = b.bind(Expr::load(self.max, Expr::floor_div(e.clone(), width.clone())));
            let shift = b.bind(Expr::select(eq(max.clone(), none.clone()), self.f(0.0), max * factor.clone()));
            let x = (Expr::load(self.scores, e.clone()) * factor.clone() - shift) * ln_2.clone();
            b.store(self.scores, e, exp(x));
        });
        self.each_row(b, |b, r| {
            let total = b
                .reduce(ReduceFn::Sum, self.f(0.0), width.clone(), |_, c| Expr::load(self.scores, r.clone() * width.clone() + c));
            b.store(self.sum, r.clone(), Expr::load(self.sum, r) + Expr::Var(total));
        });
    }
    /// P = S.
    fn keep_weights(&self, b: &mut Build) {
        let elems = Expr::int(self.tiling.rows * self.tiling.keys);
        b.each(elems, |b, e| b.store(self.weights, e.clone(), Expr::load(self.scores, e)));
    }
    /// O = α·O.
    fn scale_result(&self, b: &mut Build) {
        let dv = Expr::int(self.columns());
        b.each(Expr::int(self.tiling.rows) * dv.clone(), |b, e| {
            let alpha = Expr::load(self.alpha, Expr::floor_div(e.clone(), dv));
            b.store(self.out, e.clone(), Expr::load(self.out, e) * alpha);
        });
    }
    /// O = O + P·V.
    fn multiply_values(&self, b: &mut Build) {
        let (Tiling { rows, keys, .. }, dv) = (self.tiling, self.columns());
        let zero = Expr::int(0);
        let (left, v) = (tile(self.weights, zero.clone(), keys), tile(self.v, zero.clone(), dv));
        b.dot([rows, dv, keys].map(Expr::int), left, v, tile(self.out, zero, dv), true);
    }
    /// What is mapped of o, into O or another tile. Past the last query it is mapped of the last one's values.
    fn map_result(&self, b: &mut Build, (map, to): (&MapOfElement, Mem), read: &[Mem], [head, column]: [&Expr; 2]) {
        let (p, Tiling { rows, heads, .. }) = (self.scene.problem, self.tiling);
        let dv = Expr::int(self.columns());
        b.each(Expr::int(rows) * dv.clone(), |b, e| {
            let (row, col) = (Expr::floor_div(e.clone(), dv.clone()), Expr::rem(e.clone(), dv));
            let (t, head) = match heads {
                1 => (row, head.clone()),
                _ => (Expr::floor_div(row.clone(), Expr::int(heads)), head.clone() + Expr::rem(row, Expr::int(heads))),
            };
            let t = b.bind(Expr::minimum(self.first.clone() + t, self.scene.t.clone() - Expr::int(1)));
            let row = b.bind((self.scene.batch.clone() * self.scene.t.clone() + t) * Expr::int(p.h) + head);
            let col = b.bind(if column.known() == Some(0) { col } else { column.clone() + col });
            let o = b.bind(Expr::load(self.out, e.clone()).cast(p.dtype));
            let value = map(b, &Element { products: vec![o], operands: read.to_vec(), at: vec![row, col] });
            let value = b.bind(value);
            b.store(to, e, value);
        });
    }
    /// The sums of a tile's rows.
    fn sum_rows(&self, b: &mut Build, tile: Mem, to: &[Mem], at: [&Expr; 2]) {
        let n = Expr::int(self.columns());
        self.each_row(b, |b, r| {
            let sum = b.reduce(ReduceFn::Sum, self.f(0.0), n.clone(), |_, c| Expr::load(tile, r.clone() * n + c));
            self.store_of_row(b, to, at, r, Expr::Var(sum));
        });
    }
    /// O becomes o; what is kept of each row is whether it saw nothing, and else lse.
    pub fn finish(&self, b: &mut Build, keep: impl FnOnce(&mut Build, Expr, Expr, Expr)) {
        let p = self.scene.problem;
        self.each_row(b, |b, r| {
            let sum = b.bind(Expr::load(self.sum, r.clone()));
            let none = b.bind(eq(sum.clone(), self.f(0.0)));
            let log = Expr::load(self.max, r.clone()) * self.f(p.scale) + Expr::map1(MapFn::Log, sum.clone());
            b.store(self.alpha, r.clone(), Expr::select(none.clone(), self.f(0.0), div(self.f(1.0), sum)));
            keep(b, r, none, log);
        });
        self.scale_result(b);
    }
    /// The lse of a row, of the batch of results that is its own.
    fn store_lse(&self, b: &mut Build, lse: Mem, at: [&Expr; 2], [r, log]: [Expr; 2]) {
        let log = b.bind(log);
        self.store_of_row(b, &[lse], at, r, log);
    }
    /// A number of a row, if that is a query's.
    fn store_of_row(&self, b: &mut Build, to: &[Mem], [own, head]: [&Expr; 2], r: Expr, value: Expr) {
        let (p, heads) = (self.scene.problem, Expr::int(self.tiling.heads));
        let t = b.bind(self.first.clone() + Expr::floor_div(r.clone(), heads.clone()));
        b.if_(Expr::lt(t.clone(), self.scene.t.clone()), |b| {
            let head = head.clone() + Expr::rem(r, heads);
            let row = b.bind((own.clone() * self.scene.t.clone() + t) * Expr::int(p.h) + head);
            to.iter().for_each(|mem| b.store(*mem, row.clone(), value.clone()));
        });
    }
}
