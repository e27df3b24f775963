//! Products for a device of many processors: dense ones of any strides, and over ragged rows. Buffers: a, b, c; or x, w (or y), offsets, result. With an
//! [`Epilogue`] a tile is multiplied by several matrices, and mapped where it was summed.
//!
//! A block makes tiles of the result one after the other, each the sum over pieces of the summed axis that come to scratch as rectangles:
//!
//! ```text
//! C = 0
//! for each piece of k: A ← a[rows, piece], B ← b[piece, columns], C += A·B
//! c[rows, columns] = C (+ c)
//! ```
//!
//! Where there are few tiles and many terms, blocks share a tile's pieces of k between them: each makes a sum of its part, `c` then has a first axis of
//! parts, and another kernel adds them in order.
//!
//! Which tile a block makes goes down some rows of tiles before it goes on to the next columns, so that blocks at work share what they read. What
//! cannot be copied as rectangles (see [`Copy`]) is loaded element by element. Outside of the operands scratch is 0.
//!
//! Memory map: A [m, k] or [k, m], B [k, n] or [n, k], whichever neighbours in memory are neighbours in; C [m, n] in the accumulator's dtype.
//!
//! # Source: the order of tiles: CUTLASS's documentation, "threadblock rasterization". Tested on the shapes of `tests.rs`.

mod codes;
mod epilogue;

pub use codes::{GivenScales, OfCodes, gpu_scales, scales};
pub use epilogue::{Element, Epilogue, Given, Operand};

use super::build::{Build, tile, transposed};
use crate::ir::{Axis, COPY_ALIGN, Copy, Expr, Kernel, LoopKind, Mem, Stmt, TileRef};
use base::{DType, Dim};
use codes::Codes;
use epilogue::Tile;
use graph::op::MapFn;

/// A dense product: `c[i, j] (+)= Σ_l a[i, l]·b[l, j]` for each index of the batch.
#[derive(Clone, Debug)]
pub struct Product {
    /// Of a and b.
    pub dtype: DType,
    /// Of c: the same, or what sums of it are kept in.
    pub result: DType,
    /// Rows, columns, the summed extent.
    pub extents: [Dim; 3],
    /// a along rows and terms, b along terms and columns, c along rows and columns.
    pub strides: [Dim; 6],
    /// Extents of the batch, and strides in a, b and c.
    pub batch: Vec<(Dim, [Dim; 3])>,
    /// Whether to add to c.
    pub accumulate: bool,
    /// Into how many parts the summed axis is taken; if more than 1, c is `[parts, m, n]`, contiguous, and there is no batch.
    pub parts: i64,
    /// Whether a, b and c begin at multiples of [`COPY_ALIGN`].
    pub aligned: [bool; 3],
}

/// A product over ragged rows; see `library::GroupedGemm`.
#[derive(Clone, Debug)]
pub struct Grouped {
    /// Of all three.
    pub dtype: DType,
    /// Groups, rows, k, n.
    pub extents: [Dim; 4],
    /// Terms of products with further rows and matrices that are added to those of the one matrix, of rows of a result alone: buffers x, w, x1, w1, ….
    pub further: Vec<Dim>,
    /// Rows into y `[rows, n]`, w being `[groups, n, k]` if that is `Some(true)`; else outer products into w.
    pub rows: Option<bool>,
    /// Whether outer products are added to w.
    pub accumulate: bool,
    /// Whether all begin at multiples of [`COPY_ALIGN`].
    pub aligned: bool,
}

/// Sizes of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling {
    /// Rows of a tile.
    pub m: i64,
    /// Columns of a product of a tile.
    pub n: i64,
    /// How many products of a matrix a tile has beside each other; they are summed one after the other.
    pub beside: i64,
    /// Terms of a piece.
    pub k: i64,
    /// Rows of tiles before the next columns.
    pub down: i64,
    /// Whether two blocks run as a pair, and each brings half of the second operand's pieces for both where their tiles have the same columns.
    pub pairs: bool,
}

/// What a piece of 64 terms takes with tiles of so many rows and columns, in percent of the widest: products of 4096 rows, columns and terms (`docs/performance.md`).
const PIECE_COSTS: [((i64, i64), i64); 3] = [((128, 256), 100), ((128, 192), 83), ((128, 128), 66)];

/// What a piece of 128 terms of codes takes with each tiling, in nanoseconds: 4096 rows, 7168 columns and 16384 terms (`docs/performance.md`).
const COSTS_OF_CODES: [i64; 5] = [1079, 780, 589, 773, 817];

/// Terms of ragged rows' products from which on blocks run in pairs: of 768 a step of decoding took 7 % longer (`docs/performance.md`).
const TERMS_IN_PAIRS: i64 = 1024;

/// What a piece of 128 terms of codes takes with each tiling of those whose matrices have a scale for 128 columns, in nanoseconds; likewise.
const COSTS_OF_BLOCKS: [i64; 2] = [600, 449];

/// Columns of a matrix that are not known.
const MANY_COLUMNS: i64 = 1 << 14;

/// Columns of all products of a tile, at most: what threads hold.
const WIDEST: i64 = 256;

/// Rows that are few, and the columns of their tiles at most.
const FEW_ROWS: i64 = 64;
const FEW_COLUMNS: i64 = 128;

impl Tiling {
    const fn new(m: i64, n: i64, k: i64) -> Tiling {
        Tiling { m, n, beside: 1, k, down: 16, pairs: false }
    }
    /// The tilings of codes: sums of a piece take as many registers as those of all.
    pub const OF_CODES: [Tiling; 5] = [
        Tiling { beside: 2, ..Tiling::new(128, 128, 128) },
        Tiling::new(128, 192, 128),
        Tiling::new(128, 128, 128),
        Tiling::new(192, 128, 128),
        Tiling { beside: 2, ..Tiling::new(128, 96, 128) },
    ];
    /// Those of codes whose matrices have a scale for as many columns as a product has or more: one factor a row, in place of one for each sum.
    pub const OF_BLOCKS: [Tiling; 2] = [Tiling::OF_CODES[3], Tiling::OF_CODES[2]];
    /// The one used for codes: that which is done soonest with these rows and columns, of each of two matrices 128.
    fn choose_of_codes([m, n]: [&Dim; 2], copies: bool, (matrices, of): (usize, OfCodes), ragged: bool) -> Tiling {
        if !copies {
            return Tiling::new(64, 64, 64);
        }
        let (rows, cols) = (m.known(), n.known().unwrap_or(MANY_COLUMNS));
        let work = |(t, cost): &&(Tiling, i64)| {
            let wide = (cols + t.columns() - 1) / t.columns();
            match rows {
                Some(rows) => ((rows + t.m - 1) / t.m * wide + PROCESSORS - 1) / PROCESSORS * cost * Tiling::OF_CODES[0].m,
                None => wide * cost * Tiling::OF_CODES[0].m / t.m,
            }
        };
        let of_each = || Tiling::OF_CODES.iter().copied().zip(COSTS_OF_CODES).collect::<Vec<_>>();
        let of_blocks = || Tiling::OF_BLOCKS.iter().copied().zip(COSTS_OF_BLOCKS).collect();
        let all = if of.columns > 1 { of_blocks() } else { of_each() };
        let fits = |(t, _): &&(Tiling, i64)| match (matrices, ragged) {
            (1, false) => true,
            // Groups end in the middle of a tile, and 192 columns leave no registers for where they do.
            (1, true) => of.columns > 1 || *t == Tiling::OF_CODES[0] || *t == Tiling::OF_CODES[2],
            _ => *t == Tiling::OF_CODES[2],
        };
        all.iter().filter(fits).min_by_key(work).expect("there is one for two").0
    }
    /// The tilings of tf32.
    pub const OF_TF32: [Tiling; 7] = {
        let mut all = [Tiling::new(0, 0, 0); 7];
        let mut i = 0;
        while i < all.len() {
            all[i] = Tiling::LEGAL[i].of_tf32();
            i += 1;
        }
        all
    };
    /// The tiling of bf16 with as many bytes a piece.
    const fn of_tf32(self) -> Tiling {
        Tiling { k: self.k / 2, ..self }
    }
    /// Columns of a tile, of one matrix.
    fn columns(&self) -> i64 {
        self.n * self.beside
    }
    /// All that the kernel is built for.
    pub const LEGAL: [Tiling; 10] = [
        Tiling::new(128, 256, 64),
        Tiling::new(128, 192, 64),
        Tiling::new(128, 128, 64),
        Tiling::new(128, 64, 64),
        Tiling::new(64, 256, 64),
        Tiling::new(64, 128, 64),
        Tiling::new(64, 64, 64),
        Tiling::new(128, 128, 32),
        Tiling::new(64, 64, 16),
        Tiling::new(16, 16, 16),
    ];
    /// The one used unless another is asked for: of the widest columns that waste the least.
    pub fn choose(dtype: DType, m: &Dim, n: &Dim, copies: bool) -> Tiling {
        Tiling::choose_beside(dtype, m, n, copies, 1)
    }
    /// The same for each of some matrices whose products a tile has beside each other.
    fn choose_beside(dtype: DType, m: &Dim, n: &Dim, copies: bool, matrices: usize) -> Tiling {
        if dtype == DType::TF32 && copies {
            return Tiling::choose_beside(DType::BF16, m, n, copies, matrices).of_tf32();
        }
        let fits = |t: &&Tiling| match (dtype, copies) {
            (DType::F64, _) => t.m == 16,
            (DType::BF16 | DType::F16, true) => t.k == 64 && t.n * matrices as i64 <= WIDEST,
            (DType::BF16 | DType::F16 | DType::E4M3, _) => t.k == 32 || t.m == 64 && t.n == 64 && t.k == 64,
            // Those of 128 by 128 are a tenth faster and twice the code.
            _ => t.m == 64 && t.k == 16,
        };
        let covered = |d: &Dim, by: i64| d.known().map_or(0, |d| (d + by - 1) / by * by);
        // Few rows against columns of any number, as keys of a step of decoding, wait for memory: narrow tiles are more blocks.
        let few = n.known().is_none() && m.known().is_some_and(|m| m <= FEW_ROWS);
        let wide = |t: &Tiling| few && t.n > FEW_COLUMNS;
        let waste = |t: &&Tiling| (wide(t), covered(n, t.n), covered(m, t.m), -t.m * t.n);
        *Tiling::LEGAL.iter().filter(fits).min_by_key(waste).expect("there is one for every dtype")
    }
}

impl Tiling {
    /// The one of a product alone: where rows and columns are known and wide tiles leave processors idle, narrower ones if they are done sooner.
    fn choose_alone(dtype: DType, [m, n, k]: [&Dim; 3], copies: bool) -> Tiling {
        Tiling::choose_sooner(dtype, [m, n], copies, (1, Tiling::LEGAL[0].most_parts(k)))
    }
    /// The same of so many products of these rows and columns, whose sums are in so many parts at most.
    fn choose_sooner(dtype: DType, [m, n]: [&Dim; 2], copies: bool, (products, parts): (i64, i64)) -> Tiling {
        if dtype == DType::TF32 && copies {
            return Tiling::choose_sooner(DType::BF16, [m, n], copies, (products, parts)).of_tf32();
        }
        let chosen = Tiling::choose(dtype, m, n, copies);
        let (Some(rows), Some(cols)) = (m.known(), n.known()) else { return chosen };
        let cost = |t: &Tiling| PIECE_COSTS.iter().find(|((m, n), _)| (t.m, t.n) == (*m, *n)).map(|(_, cost)| *cost);
        if !copies || chosen.k != 64 || cost(&chosen).is_none() {
            return chosen;
        }
        // What a processor does: tiles one after the other, or a part of one.
        let work = |t: &Tiling| {
            let tiles = products * t.tiles(rows, cols);
            Some(cost(t)? * ((tiles + PROCESSORS - 1) / PROCESSORS) * parts / (PROCESSORS / tiles.max(1)).clamp(1, parts))
        };
        let narrower = Tiling::LEGAL.into_iter().filter(|t| t.k == chosen.k && t.n <= chosen.n);
        let best = narrower.filter_map(|t| Some((work(&t)?, t))).min_by_key(|(work, _)| *work);
        // More tiles read more of the operands.
        best.filter(|(least, _)| least * 10 <= work(&chosen).unwrap_or(0) * 9).map_or(chosen, |(_, t)| t)
    }
    /// Into how many parts a sum of these terms may be taken.
    fn most_parts(&self, k: &Dim) -> i64 {
        k.known().map_or(MAX_PARTS, |k| k / (self.k * PIECES_OF_PART)).clamp(1, MAX_PARTS)
    }
    /// How many there are of a result.
    fn tiles(&self, rows: i64, cols: i64) -> i64 {
        (rows + self.m - 1) / self.m * ((cols + self.n - 1) / self.n)
    }
    /// The same of whole periods of columns, if there is one.
    pub fn of_periods(dtype: DType, m: &Dim, n: &Dim, copies: bool, period: i64) -> Option<Tiling> {
        let chosen = Tiling::choose(dtype, m, n, copies);
        let covered = |d: &Dim, by: i64| d.known().map_or(0, |d| (d + by - 1) / by * by);
        let waste = |t: &Tiling| (t.m != chosen.m, t.k != chosen.k, covered(n, t.n), -t.n);
        [chosen].into_iter().chain(Tiling::LEGAL).filter(|t| t.n % period == 0).min_by_key(waste)
    }
}

/// Whether the extent is a multiple of `n` for certain.
pub fn is_multiple(d: &Dim, n: i64) -> bool {
    d.try_div(&Dim::from(n)).is_some()
}

/// An operand as axes of a buffer: those of the batch, then the two of the matrix.
struct Matrix {
    mem: Mem,
    /// Extent and stride, and the place in the batch.
    batch: Vec<(Expr, Expr, usize)>,
    /// Extent and stride of the two axes.
    axes: [(Expr, Expr); 2],
    /// The axis along which elements are neighbours.
    inner: usize,
    /// Whether rectangles can be copied.
    copies: bool,
    /// The buffer by whose indices rows are taken.
    index: Option<usize>,
    /// Whether the block beside makes the same copies, if blocks run in pairs.
    paired: Option<Expr>,
}

/// What is known of a matrix before it has expressions.
struct Shape<'a> {
    extents: [&'a Dim; 2],
    strides: [&'a Dim; 2],
    batch: Vec<(&'a Dim, &'a Dim)>,
    aligned: bool,
}

impl Shape<'_> {
    fn inner(&self) -> usize {
        usize::from(!self.strides[0].is(1) || self.strides[1].is(1))
    }
    /// If `terms` are along this axis, whether they lie as tensor cores take them: those of tf32 are neighbours.
    fn lies(&self, dtype: DType, terms: usize) -> bool {
        dtype != DType::TF32 || self.inner() == terms
    }
    fn copies(&self, dtype: DType) -> bool {
        let n = COPY_ALIGN / dtype.bytes() as i64;
        let (inner, outer) = (self.inner(), 1 - self.inner());
        let strides = [self.strides[outer]].into_iter().chain(self.batch.iter().map(|(_, s)| *s));
        let moved = self.batch.iter().filter(|(_, s)| !s.is(0)).count();
        self.aligned
            && self.strides[inner].is(1)
            && (dtype == DType::TF32 || is_multiple(self.extents[inner], n))
            && strides.into_iter().all(|s| is_multiple(s, n))
            && moved <= 3
    }
    /// Elements up to the last.
    fn elems(&self) -> Dim {
        let axes = self.extents.iter().zip(&self.strides).map(|(e, s)| (*e, *s)).chain(self.batch.iter().copied());
        axes.fold(Dim::from(1), |n, (e, s)| n + (e.clone() - Dim::from(1)) * s.clone())
    }
    fn matrix(&self, b: &mut Build, mem: Mem, copies: bool) -> Matrix {
        let batch = self.batch.iter().enumerate().filter(|(_, (_, s))| !s.is(0));
        let batch = batch.map(|(i, (e, s))| (b.dim(e), b.dim(s), i)).collect();
        let axes = [0, 1].map(|i| (b.dim(self.extents[i]), b.dim(self.strides[i])));
        Matrix { mem, batch, axes, inner: self.inner(), copies, index: None, paired: None }
    }
}

impl Matrix {
    /// Scratch of `sizes` of it: row-major along the inner axis.
    fn tile(&self, scratch: Mem, sizes: [i64; 2]) -> TileRef {
        if self.inner == 1 { tile(scratch, Expr::int(0), sizes[1]) } else { transposed(scratch, Expr::int(0), sizes[0]) }
    }
    /// The rectangle of `sizes` at `at` to scratch or from it; in the latter case `limit` bounds the axes.
    fn copy(&self, b: &mut Build, scratch: Mem, sizes: [i64; 2], at: [&Expr; 2], batch: &[Expr], store: bool) {
        let (inner, outer) = (self.inner, 1 - self.inner);
        if self.copies {
            let mut axes: Vec<Axis> = self
                .batch
                .iter()
                .map(|(extent, stride, i)| Axis { extent: extent.clone(), stride: stride.clone(), at: batch[*i].clone() })
                .collect();
            for i in [outer, inner] {
                let (extent, stride) = self.axes[i].clone();
                axes.push(Axis { extent, stride, at: at[i].clone() });
            }
            let (from, to) = if store { (scratch, self.mem) } else { (self.mem, scratch) };
            let (rows, paired) = (sizes[outer], self.paired.clone());
            return b.push(Stmt::Copy(Copy { from, to, rows, cols: sizes[inner], run: rows, axes, index: self.index, paired }));
        }
        b.each(Expr::int(sizes[0] * sizes[1]), |b, e| {
            let (inside, index) = self.element(b, &e, sizes, at, batch);
            if store {
                b.if_(inside, |b| b.store(self.mem, index, Expr::load(scratch, e)));
                return;
            }
            // What is outside is not looked at, but its place has to exist.
            let from = b.bind(Expr::select(inside.clone(), index, Expr::int(0)));
            let zero = Build::f(crate::ir::compute_dtype(b.kernel.mem_dtype(scratch)), 0.0);
            b.store(scratch, e, Expr::select(inside, Expr::load(self.mem, from), zero));
        });
    }
    /// Whether element `e` of a row-major rectangle along the inner axis is inside, and where it is.
    fn element(&self, b: &mut Build, e: &Expr, sizes: [i64; 2], at: [&Expr; 2], batch: &[Expr]) -> (Expr, Expr) {
        let (inner, outer) = (self.inner, 1 - self.inner);
        let width = Expr::int(sizes[inner]);
        let mut i = [Expr::int(0), Expr::int(0)];
        i[outer] = b.bind(at[outer].clone() + Expr::floor_div(e.clone(), width.clone()));
        if let Some(by) = self.index {
            let length = b.kernel.buffers[by].elems.clone();
            let length = b.dim(&length);
            let last = b.bind(Expr::lt(i[outer].clone(), length));
            let known = b.bind(Expr::select(last.clone(), i[outer].clone(), Expr::int(0)));
            let row = Expr::load(Mem::Buffer(by), known).cast(DType::I64);
            i[outer] = b.bind(Expr::select(last, row, Expr::int(-1)));
        }
        i[inner] = b.bind(at[inner].clone() + Expr::rem(e.clone(), width));
        let mut inside =
            Expr::and(Expr::lt(i[0].clone(), self.axes[0].0.clone()), Expr::lt(i[1].clone(), self.axes[1].0.clone()));
        if self.index.is_some() {
            inside = Expr::and(Expr::le(Expr::int(0), i[outer].clone()), inside);
        }
        let inside = b.bind(inside);
        (inside, b.bind(self.place(&i, batch)))
    }
    /// Where the element of a row and a column is.
    fn place(&self, [r, c]: &[Expr; 2], batch: &[Expr]) -> Expr {
        let moved = self.batch.iter().fold(Expr::int(0), |n, (_, stride, i)| n + batch[*i].clone() * stride.clone());
        moved + r.clone() * self.axes[0].1.clone() + c.clone() * self.axes[1].1.clone()
    }
}

/// The dtype of operands in scratch: codes are multiplied as such if they have scales and are copied.
fn scratch_dtype(dtype: DType, codes: bool) -> DType {
    if dtype == DType::E4M3 && !codes { DType::BF16 } else { dtype }
}

impl Product {
    /// Parts of the summed axis that keep the processors of a GPU busy where there are few tiles of a result of known extents.
    pub fn choose_parts(&self) -> i64 {
        if self.batch.is_empty() { Product::parts_of(self.dtype, &self.extents) } else { 1 }
    }
    /// The same for these extents and no batch.
    pub fn parts_of(dtype: DType, [m, n, k]: &[Dim; 3]) -> i64 {
        let (Some(rows), Some(cols)) = (m.known(), n.known()) else { return 1 };
        let (t, blocks) = match dtype {
            DType::TF32 | DType::BF16 | DType::F16 => (Tiling::choose_alone(dtype, [m, n, k], true), PROCESSORS),
            DType::F32 => (Tiling::choose(dtype, m, n, false), PROCESSORS * NEIGHBOURS),
            _ => return 1,
        };
        (blocks / t.tiles(rows, cols).max(1)).clamp(1, t.most_parts(k))
    }
}

/// Of the GPU that tiles are shared out over: an H100 or H200.
const PROCESSORS: i64 = 132;
/// Blocks without tensor cores that share a processor.
const NEIGHBOURS: i64 = 4;
/// More parts take longer to add than they save.
const MAX_PARTS: i64 = 8;
/// Pieces that a part has, at least.
const PIECES_OF_PART: i64 = 8;

/// The kernel of a dense product.
pub fn gpu_product(p: &Product, tiling: Option<Tiling>) -> Kernel {
    dense(p, &Epilogue::none(p.result), "c", tiling)
}

/// Dense products of the same rows with one or more matrices that lie alike, and maps of them. Buffers: a, each b, what else the maps read, and the
/// results, which all lie as c does. It adds to nothing and has no parts.
pub fn gpu_product_map(p: &Product, epilogue: &Epilogue, tiling: Option<Tiling>) -> Kernel {
    dense(p, epilogue, "y", tiling)
}

fn dense(p: &Product, epilogue: &Epilogue, result: &str, tiling: Option<Tiling>) -> Kernel {
    let mut b = Build::new(if epilogue.units.is_some() { "product_of_columns" } else { "product" });
    let [m, n, k] = &p.extents;
    let parts = (Dim::from(p.parts), [Dim::from(0), Dim::from(0), m.clone() * n.clone()]);
    let by_part = if p.parts > 1 { vec![parts] } else { p.batch.clone() };
    let batch = |i: usize| by_part.iter().map(|(e, s)| (e, &s[i])).collect::<Vec<_>>();
    // Between the elements of an axis of one there is any stride.
    let any = Dim::from(COPY_ALIGN);
    let stride = |i: usize, extent: &Dim| if extent.is(1) { &any } else { &p.strides[i] };
    let strides = |i: usize| {
        let extents = [[m, k], [k, n], [m, n]][i];
        [stride(2 * i, extents[0]), stride(2 * i + 1, extents[1])]
    };
    let a = Shape { extents: [m, k], strides: strides(0), batch: batch(0), aligned: p.aligned[0] };
    let bb = Shape { extents: [k, n], strides: strides(1), batch: batch(1), aligned: p.aligned[1] };
    let c = Shape { extents: [m, n], strides: strides(2), batch: batch(2), aligned: p.aligned[2] };
    let lie = a.lies(p.dtype, 1) && bb.lies(p.dtype, 0);
    let copies = lie && a.copies(p.dtype) && bb.copies(p.dtype);
    let choose = || match (epilogue.units, epilogue.codes) {
        (Some(u), _) => Tiling::of_periods(p.dtype, m, n, copies, u.period).expect("whole periods have a tiling"),
        (None, Some(of)) => Tiling::choose_of_codes([m, n], copies, (epilogue.matrices, of), false),
        // Those of a batch are tiles for many processors, and have no parts.
        _ if epilogue.map.is_none() && p.batch.is_empty() => Tiling::choose_alone(p.dtype, [m, n, k], copies),
        _ => Tiling::choose_beside(p.dtype, m, n, copies, epilogue.matrices),
    };
    let t = tiling.unwrap_or_else(choose);
    let am = b.read("a", p.dtype, a.elems());
    let bms: Vec<Mem> = (0..epilogue.matrices).map(|i| b.read(&epilogue.name("b", i), p.dtype, bb.elems())).collect();
    let names = ["a", "b"];
    let codes = epilogue.codes.map(|c| Codes::new(&mut b, (c, t), [m, n, k], names, epilogue.matrices, None));
    let [operands, cms] = match p.accumulate {
        true => [Vec::new(), vec![b.update(result, p.result, c.elems())]],
        false => epilogue.buffers(&mut b, result, &c.elems()),
    };
    let a = a.matrix(&mut b, am, copies);
    let mut bbs: Vec<Matrix> = bms.into_iter().map(|mem| bb.matrix(&mut b, mem, copies)).collect();
    let as_result = |(mem, (_, dtype)): (Mem, &(Given, DType))| {
        let mut c = c.matrix(&mut b, mem, c.copies(*dtype) && c.inner() == 1);
        // Sums lie by rows, whichever way the result does.
        c.inner = 1;
        c
    };
    let results: Vec<Matrix> = cms.into_iter().zip(&epilogue.results).map(as_result).collect();
    let tiles = [m.ceil_div(&Dim::from(t.m)), n.ceil_div(&Dim::from(t.columns()))];
    let count = by_part.iter().fold(Dim::from(1), |n, (e, _)| n * e.clone());
    let tiles_of_one = tiles[0].clone() * tiles[1].clone();
    b.kernel.grid = count * tiles_of_one.clone();
    // Both tiles of a pair are of one product; if there may be an odd number, one more has no rows.
    let pairs = t.pairs && copies && (by_part.is_empty() || is_multiple(&tiles_of_one, 2));
    let padded = pairs && !is_multiple(&b.kernel.grid, 2);
    if padded {
        b.kernel.grid = b.kernel.grid.ceil_div(&Dim::from(2)) * Dim::from(2);
    }
    let whole = [is_multiple(m, t.m) && !padded, is_multiple(n, t.n)];
    let tiles = tiles.map(|d| b.dim(&d));
    let block = b.block();
    let each = b.bind(tiles[0].clone() * tiles[1].clone());
    let mut rest = b.bind(Expr::floor_div(block.clone(), each.clone()));
    let mut index = vec![Expr::int(0); by_part.len()];
    for (i, (extent, _)) in by_part.iter().enumerate().rev() {
        let extent = b.dim(extent);
        index[i] = if i == 0 { rest.clone() } else { b.bind(Expr::rem(rest.clone(), extent.clone())) };
        rest = if i == 0 { rest } else { b.bind(Expr::floor_div(rest, extent)) };
    }
    let number = if by_part.is_empty() { block } else { b.bind(Expr::rem(block, each.clone())) };
    let t = Tiling { pairs, ..t };
    let ([mut row, col], paired) = raster(&mut b, number.clone(), tiles.clone(), t);
    bbs.iter_mut().for_each(|m| m.paired = paired.clone());
    if padded {
        let [tall, _] = tiles;
        row = b.bind(Expr::select(Expr::lt(number, each), row, tall * Expr::int(t.m)));
    }
    let elems = Expr::int(t.m * t.n);
    let sum = p.result.accumulator();
    let zero = Build::f(sum, 0.0);
    let dtype = scratch_dtype(p.dtype, copies && codes.is_some());
    let at = b.scratch("a", dtype, t.m * t.k);
    let beside = Beside::all(&mut b, epilogue, (t, &col), (dtype, sum));
    beside.iter().for_each(|s| b.fill(s.sums, elems.clone(), zero.clone()));
    let pieces = k.ceil_div(&Dim::from(t.k));
    let (of_part, pieces) = (b.dim(&pieces.ceil_div(&Dim::from(p.parts.max(1)))), b.dim(&pieces));
    let [from, to] = if p.parts > 1 {
        let from = b.bind(index[0].clone() * of_part.clone());
        let to = b.bind(Expr::minimum(from.clone() + of_part, pieces));
        [from, to]
    } else {
        [Expr::int(0), pieces]
    };
    b.for_(from, to, LoopKind::Serial, |b, piece| {
        let l = b.bind(piece * Expr::int(t.k));
        let few = codes.as_ref().map(|codes| codes.before(b, &l, &index, &beside));
        a.copy(b, at, [t.m, t.k], [&row, &l], &index, false);
        for s in &beside {
            bbs[s.matrix].copy(b, s.piece, [t.k, t.n], [&l, &s.col], &index, false);
        }
        let operands = |s: &Beside| (s.clone(), a.tile(at, [t.m, t.k]), bbs[s.matrix].tile(s.piece, [t.k, t.n]));
        let products: Vec<(Beside, TileRef, TileRef)> = beside.iter().map(operands).collect();
        if let (Some(codes), Some(few)) = (&codes, &few) {
            return codes.add(b, t, (&l, [&row, &col], &index), (&products, few), None);
        }
        for (s, left, right) in products {
            b.dot([t.m, t.n, t.k].map(Expr::int), left, right, tile(s.sums, Expr::int(0), t.n), true);
        }
    });
    let extents = [m, n].map(|d| b.dim(d));
    for (col, sums) in Beside::by_columns(&beside) {
        let held = epilogue.hold(&mut b, &sums, t.m * t.n);
        let extents = extents.clone();
        let tile = Tile { t, sums: &sums, held: &held, dtype: p.result, at: [&row, &col], batch: &index, extents, whole };
        if p.accumulate {
            tile.add(&mut b, &results[0]);
        }
        tile.end(&mut b, epilogue, &operands, &results);
    }
    b.finish()
}

/// A product of a tile: one of its columns beside each other.
#[derive(Clone)]
struct Beside {
    /// The number of its matrix.
    matrix: usize,
    /// Its first column, and how far that is from the tile's.
    col: Expr,
    by: i64,
    /// Where a piece of the matrix is, and the sums.
    piece: Mem,
    sums: Mem,
}

impl Beside {
    /// All of a tile whose first column is given, with pieces and sums of these dtypes.
    fn all(b: &mut Build, epilogue: &Epilogue, (t, col): (Tiling, &Expr), (dtype, sum): (DType, DType)) -> Vec<Beside> {
        let mut all = Vec::new();
        for (at, matrix) in (0..t.beside).flat_map(|at| (0..epilogue.matrices).map(move |i| (at, i))) {
            let name = |of: &str| match epilogue.matrices as i64 * t.beside {
                1 => of.to_string(),
                _ => format!("{of}{}", at * epilogue.matrices as i64 + matrix as i64),
            };
            let by = at * t.n;
            let col = b.bind(col.clone() + Expr::int(by));
            let sums = b.scratch(&name("c"), sum, t.m * t.n);
            all.push(Beside { matrix, col, by, piece: b.scratch(&name("b"), dtype, t.n * t.k), sums });
        }
        all
    }
    /// The sums of all matrices at the same columns, and the first of these.
    fn by_columns(all: &[Beside]) -> Vec<(Expr, Vec<Mem>)> {
        let of = |same: &[Beside]| (same[0].col.clone(), same.iter().map(|s| s.sums).collect());
        all.chunk_by(|x, y| x.by == y.by).map(of).collect()
    }
}

/// The first row and column of tile `number`; in pairs also whether tile `number ^ 1` has the same columns, and there may be one tile more.
fn raster(b: &mut Build, number: Expr, [tall, wide]: [Expr; 2], t: Tiling) -> ([Expr; 2], Option<Expr>) {
    let down = Expr::int(t.down);
    let per = b.bind(down.clone() * wide);
    let strip = b.bind(Expr::floor_div(number.clone(), per.clone()));
    let inside = b.bind(Expr::rem(number, per));
    let first = b.bind(strip * down.clone());
    let mut height = b.bind(Expr::minimum(tall - first.clone(), down));
    if t.pairs {
        height = b.bind(Expr::maximum(height, Expr::int(1)));
    }
    let row = b.bind((first + Expr::rem(inside.clone(), height.clone())) * Expr::int(t.m));
    let col = b.bind(Expr::floor_div(inside.clone(), height.clone()) * Expr::int(t.columns()));
    let paired = t.pairs.then(|| {
        // Strips have an even number of tiles.
        let other = inside.clone() + Expr::int(1) - Expr::int(2) * Expr::rem(inside, Expr::int(2));
        let other = Expr::floor_div(other, height) * Expr::int(t.columns());
        b.bind(Expr::Map(MapFn::Eq, vec![other, col.clone()]))
    });
    ([row, col], paired)
}

fn or(x: Expr, y: Expr) -> Expr {
    Expr::Map(MapFn::Or, vec![x, y])
}

fn not(x: Expr) -> Expr {
    Expr::Map(MapFn::Not, vec![x])
}

/// The kernel of a product over ragged rows.
pub fn gpu_grouped(p: &Grouped, tiling: Option<Tiling>) -> Kernel {
    match p.rows {
        Some(transposed) => rows(p, transposed, &Epilogue::none(p.dtype), tiling),
        None => outer(p, tiling),
    }
}

/// Products of the same ragged rows with one or more matrices, and maps of them. Buffers: x, each w, the indices if rows are taken by index, offsets,
/// what else the maps read, and the results.
pub fn gpu_grouped_map(p: &Grouped, epilogue: &Epilogue, tiling: Option<Tiling>) -> Kernel {
    let transposed = p.rows.expect("rows of a result");
    rows(p, transposed, epilogue, tiling)
}

/// `y[r] = x[r]·w[group of r]` (and more of such). Tiles are of rows of one group; what no group has is 0.
fn rows(p: &Grouped, transposed: bool, epilogue: &Epilogue, tiling: Option<Tiling>) -> Kernel {
    let mut b = Build::new("grouped");
    let [groups, rows, k, n] = &p.extents;
    let one = Dim::from(1);
    let of_x = epilogue.taken.as_ref().unwrap_or(rows);
    let all_terms: Vec<&Dim> = [k].into_iter().chain(&p.further).collect();
    let matrix_elems: Vec<Dim> = all_terms.iter().map(|k| (*k).clone() * n.clone()).collect();
    let rows_of = |k| Shape { extents: [of_x, k], strides: [k, &one], batch: Vec::new(), aligned: p.aligned };
    let matrix_of = |i: usize| {
        let k = all_terms[i];
        let strides = if transposed { [&one, k] } else { [n, &one] };
        Shape { extents: [k, n], strides, batch: vec![(groups, &matrix_elems[i])], aligned: p.aligned }
    };
    let shapes: Vec<[Shape; 2]> = (0..all_terms.len()).map(|i| [rows_of(all_terms[i]), matrix_of(i)]).collect();
    let y = Shape { extents: [rows, n], strides: [n, &one], batch: Vec::new(), aligned: p.aligned };
    let copies = shapes.iter().flatten().all(|s| s.copies(p.dtype));
    let choose = || match epilogue.codes {
        Some(of) => Tiling::choose_of_codes([rows, n], copies, (epilogue.matrices, of), true),
        None => {
            // The second level gives what many groups' matrices ask for no faster (`docs/performance.md`): two blocks ask for a third less. Of few terms a block
            // waits for the other as long.
            let many = all_terms.iter().all(|k| k.known().is_none_or(|k| k >= TERMS_IN_PAIRS));
            let pairs = copies && many && matches!(p.dtype, DType::BF16 | DType::F16);
            Tiling { pairs, ..Tiling::choose_beside(p.dtype, rows, n, copies, epilogue.matrices) }
        }
    };
    let t = tiling.unwrap_or_else(choose);
    let mut brought = Vec::new();
    for (i, [x, w]) in shapes.iter().enumerate() {
        let (of_rows, matrices) = if i == 0 { ("x".to_string(), epilogue.matrices) } else { (format!("x{i}"), 1) };
        let name = |j| if i == 0 { epilogue.name("w", j) } else { format!("w{i}") };
        let xm = b.read(&of_rows, p.dtype, x.elems());
        let wms: Vec<Mem> = (0..matrices).map(|j| b.read(&name(j), p.dtype, w.elems())).collect();
        brought.push((xm, wms));
    }
    let names = ["x", "w"];
    let codes = epilogue.codes.map(|c| Codes::new(&mut b, (c, t), [rows, n, k], names, epilogue.matrices, Some(groups)));
    let index = epilogue.taken.as_ref().map(|_| b.read("index", DType::I32, rows.clone()));
    let offsets = b.read("offsets", DType::I32, groups.clone() + Dim::from(1));
    let [operands, yms] = epilogue.buffers(&mut b, "y", &y.elems());
    let index = index.map(|m| if let Mem::Buffer(i) = m { i } else { base::bug!("a buffer") });
    let mut terms = Vec::new();
    for ([x, w], (xm, wms)) in shapes.iter().zip(brought) {
        let x = Matrix { index, ..x.matrix(&mut b, xm, copies) };
        terms.push((x, wms.into_iter().map(|m| w.matrix(&mut b, m, copies)).collect::<Vec<Matrix>>()));
    }
    let mut results: Vec<Matrix> =
        yms.into_iter().zip(&epilogue.results).map(|(m, (_, d))| y.matrix(&mut b, m, y.copies(*d))).collect();
    let wide = n.ceil_div(&Dim::from(t.columns()));
    // Every group, and the rows of none, may end in a tile that is not full.
    let tall = rows.floor_div(&Dim::from(t.m)) + groups.clone() + Dim::from(1);
    let pairs = t.pairs && copies;
    // A pair has the same columns of two tiles behind each other.
    let each = Dim::from(if pairs { 2 } else { 1 });
    b.kernel.grid = tall.ceil_div(&each) * wide.clone() * each;
    let (wide, groups, total, columns) = (b.dim(&wide), b.dim(groups), b.dim(rows), b.dim(n));
    let number = if pairs { b.bind(Expr::floor_div(b.block(), Expr::int(2))) } else { b.block() };
    let tile_row = b.bind(Expr::floor_div(number.clone(), wide.clone()));
    let tile_row = if pairs { b.bind(tile_row * Expr::int(2)) } else { tile_row };
    let col = b.bind(Expr::rem(number, wide) * Expr::int(t.columns()));
    // Group g begins with tile ⌊offsets[g] / m⌋ + g, which leaves each group as many tiles as it may need: the last that begins here or before.
    let (low, high) = (b.var(DType::I64, Expr::int(0)), b.var(DType::I64, groups.clone()));
    let v = Expr::Var;
    let tiles_before = |at: Expr, g: Expr| Expr::floor_div(at, Expr::int(t.m)) + g;
    b.while_(Expr::lt(v(low), v(high)), |b| {
        let middle = b.bind(Expr::floor_div(v(low) + v(high) + Expr::int(1), Expr::int(2)));
        let at = Expr::load(offsets, middle.clone()).cast(DType::I64);
        let before = b.bind(Expr::le(tiles_before(at, middle.clone()), tile_row.clone()));
        b.assign(low, Expr::select(before.clone(), middle.clone(), v(low)));
        b.assign(high, Expr::select(before, v(high), middle - Expr::int(1)));
    });
    let group = b.now(low);
    // Where a group begins, or all end.
    let begin = |b: &mut Build, group: &Expr| {
        let known = b.bind(Expr::minimum(group.clone(), groups.clone()));
        b.bind(Expr::load(offsets, known).cast(DType::I64))
    };
    let (start, end) = (begin(&mut b, &group), begin(&mut b, &(group.clone() + Expr::int(1))));
    // Rows of a tile of a group that begins and ends there: the first, where the rows end, and whether there is such a group.
    let tile_of = |b: &mut Build, tile: Expr, group: Expr, [start, end]: [Expr; 2]| {
        let limit = b.bind(Expr::select(Expr::lt(group.clone(), groups.clone()), end, total.clone()));
        let row = b.bind(start.clone() + (tile - tiles_before(start, group.clone())) * Expr::int(t.m));
        (row, limit, Expr::lt(group, groups.clone()))
    };
    let (mut group, mut own, mut ends, mut paired) = (group, tile_row.clone(), [start, end], None);
    if pairs {
        // The next tile is of the same group, or of the next; all is loaded at once.
        let next = b.bind(Expr::minimum(group.clone() + Expr::int(1), groups.clone()));
        let last_end = begin(&mut b, &(group.clone() + Expr::int(2)));
        let [start, end] = ends.clone();
        let begins = b.bind(Expr::le(tiles_before(end.clone(), next.clone()), tile_row.clone() + Expr::int(1)));
        let of_next = |b: &mut Build, x: Expr, y: Expr| b.bind(Expr::select(begins.clone(), x, y));
        let after = of_next(&mut b, next, group.clone());
        let ends_after = [of_next(&mut b, end.clone(), start), of_next(&mut b, last_end, end)];
        let second = b.bind(Expr::lt(Expr::int(0), Expr::rem(b.block(), Expr::int(2))));
        let of = |b: &mut Build, x: &Expr, y: &Expr| b.bind(Expr::select(second.clone(), y.clone(), x.clone()));
        let same = Expr::Map(MapFn::Eq, vec![group.clone(), after.clone()]);
        let same = b.bind(Expr::and(same, Expr::lt(group.clone(), groups.clone())));
        let last = b.bind(tile_row.clone() + Expr::int(1));
        let (other_group, other_tile) = (of(&mut b, &after, &group), of(&mut b, &last, &tile_row));
        (group, own) = (of(&mut b, &group, &after), of(&mut b, &tile_row, &last));
        let other_ends = [0, 1].map(|i| of(&mut b, &ends_after[i], &ends[i]));
        ends = [0, 1].map(|i| of(&mut b, &ends[i], &ends_after[i]));
        let (row, limit, has_group) = tile_of(&mut b, other_tile, other_group, other_ends);
        paired = Some((same, b.bind(Expr::and(Expr::lt(row, limit), has_group))));
    }
    let (row, limit, has_group) = tile_of(&mut b, own, group.clone(), ends);
    let mut work = b.bind(Expr::lt(row.clone(), limit.clone()));
    for y in results.iter_mut() {
        y.axes[0].0 = limit.clone();
    }
    let has_group = b.bind(has_group);
    let mut turns = has_group.clone();
    let mut counted = b.bind(limit.clone() - row.clone());
    if let Some((same, other)) = &paired {
        // Both blocks take as many pieces; rows that there are not are multiplied by any group's matrix, and count for nothing.
        turns = b.bind(or(Expr::and(work.clone(), has_group.clone()), other.clone()));
        work = b.bind(or(work, other.clone()));
        counted = b.bind(Expr::select(has_group.clone(), counted, Expr::int(0)));
        group = b.bind(Expr::minimum(group, groups.clone() - Expr::int(1)));
        terms.iter_mut().flat_map(|(_, ws)| ws).for_each(|w| w.paired = Some(same.clone()));
    }
    let pieces = |k: &&Dim| {
        let pieces = b.dim(&k.ceil_div(&Dim::from(t.k)));
        b.bind(Expr::select(turns.clone(), pieces, Expr::int(0)))
    };
    let pieces: Vec<Expr> = all_terms.iter().map(pieces).collect();
    let elems = Expr::int(t.m * t.n);
    let dtype = scratch_dtype(p.dtype, copies && codes.is_some());
    let at = b.scratch("a", dtype, t.m * t.k);
    let beside = Beside::all(&mut b, epilogue, (t, &col), (dtype, p.dtype.accumulator()));
    let held: Vec<Vec<Mem>> =
        Beside::by_columns(&beside).iter().map(|(_, sums)| epilogue.hold(&mut b, sums, t.m * t.n)).collect();
    b.if_(work, |b| {
        for s in &beside {
            b.fill(s.sums, elems.clone(), Build::f(p.dtype.accumulator(), 0.0));
        }
        for ((x, ws), pieces) in terms.iter().zip(pieces) {
            b.range(pieces, |b, piece| {
                let l = b.bind(piece * Expr::int(t.k));
                let batch = [group.clone()];
                let few = codes.as_ref().map(|codes| codes.before(b, &l, &batch, &beside));
                x.copy(b, at, [t.m, t.k], [&row, &l], &batch, false);
                for s in &beside {
                    ws[s.matrix].copy(b, s.piece, [t.k, t.n], [&l, &s.col], &batch, false);
                }
                let operands = |s: &Beside| (s.clone(), x.tile(at, [t.m, t.k]), ws[s.matrix].tile(s.piece, [t.k, t.n]));
                let products: Vec<(Beside, TileRef, TileRef)> = beside.iter().map(operands).collect();
                if let (Some(codes), Some(few)) = (&codes, &few) {
                    return codes.add(b, t, (&l, [&row, &col], &batch), (&products, few), Some(&counted));
                }
                for (s, left, right) in products {
                    let extents = [t.m, t.n, t.k].map(Expr::int);
                    b.dot_rows(extents, left, right, tile(s.sums, Expr::int(0), t.n), counted.clone());
                }
            });
        }
        if pairs {
            b.if_(not(has_group), |b| {
                beside.iter().for_each(|s| b.fill(s.sums, elems.clone(), Build::f(p.dtype.accumulator(), 0.0)));
            });
        }
        let whole = [false, is_multiple(n, t.n)];
        // A block of a pair may have a tile of no rows, before the first: what is mapped of it is not stored, but read.
        let mapped = if pairs { b.bind(Expr::maximum(limit.clone(), Expr::int(1))) } else { limit.clone() };
        let extents = [mapped, columns.clone()];
        for ((col, sums), held) in Beside::by_columns(&beside).iter().zip(&held) {
            let dtype = epilogue.codes.map_or(p.dtype, |c| c.product);
            let tile = Tile { t, sums, held, dtype, at: [&row, col], batch: &[], extents: extents.clone(), whole };
            tile.end(b, epilogue, &operands, &results);
        }
    });
    b.finish()
}

/// `w[g] = Σ_{r of g} x[r]ᵀ·y[r]`.
fn outer(p: &Grouped, tiling: Option<Tiling>) -> Kernel {
    let mut b = Build::new("grouped_outer");
    let [groups, rows, k, n] = &p.extents;
    let one = Dim::from(1);
    let matrix = k.clone() * n.clone();
    let x = Shape { extents: [k, rows], strides: [&one, k], batch: Vec::new(), aligned: p.aligned };
    let y = Shape { extents: [rows, n], strides: [n, &one], batch: Vec::new(), aligned: p.aligned };
    let w = Shape { extents: [k, n], strides: [n, &one], batch: vec![(groups, &matrix)], aligned: p.aligned };
    let copies = x.copies(p.dtype) && y.copies(p.dtype);
    let t = tiling.unwrap_or_else(|| Tiling::choose_sooner(p.dtype, [k, n], copies, (groups.known().unwrap_or(1), 1)));
    let (xm, ym) = (b.read("x", p.dtype, x.elems()), b.read("y", p.dtype, y.elems()));
    let offsets = b.read("offsets", DType::I32, groups.clone() + Dim::from(1));
    let wm = if p.accumulate { b.update("w", p.dtype, w.elems()) } else { b.write("w", p.dtype, w.elems()) };
    let (mut x, mut y) = (x.matrix(&mut b, xm, copies), y.matrix(&mut b, ym, copies));
    let store = w.copies(p.dtype);
    let w = w.matrix(&mut b, wm, store);
    let tiles = [k.ceil_div(&Dim::from(t.m)), n.ceil_div(&Dim::from(t.n))];
    b.kernel.grid = groups.clone() * tiles[0].clone() * tiles[1].clone();
    // Both tiles of a pair are of one group.
    let t = Tiling { pairs: t.pairs && copies && is_multiple(&(tiles[0].clone() * tiles[1].clone()), 2), ..t };
    let tiles = tiles.map(|d| b.dim(&d));
    let each = b.bind(tiles[0].clone() * tiles[1].clone());
    let group = b.bind(Expr::floor_div(b.block(), each.clone()));
    let number = b.bind(Expr::rem(b.block(), each));
    let ([row, col], paired) = raster(&mut b, number, tiles, t);
    y.paired = paired;
    let start = b.bind(Expr::load(offsets, group.clone()).cast(DType::I64));
    let end = b.bind(Expr::load(offsets, group.clone() + Expr::int(1)).cast(DType::I64));
    // Rows of the next group are outside; what is copied ahead is bounded by all rows.
    b.dim(rows);
    x.axes[1].0 = end.clone();
    y.axes[0].0 = end.clone();
    let sums = b.scratch("c", p.dtype.accumulator(), t.m * t.n);
    let [at, bt] = [("a", t.m), ("b", t.n)].map(|(name, n)| b.scratch(name, scratch_dtype(p.dtype, false), n * t.k));
    b.fill(sums, Expr::int(t.m * t.n), Build::f(p.dtype.accumulator(), 0.0));
    let pieces = b.bind(Expr::floor_div(end - start.clone() + Expr::int(t.k - 1), Expr::int(t.k)));
    b.range(pieces, |b, piece| {
        let l = b.bind(start + piece * Expr::int(t.k));
        x.copy(b, at, [t.m, t.k], [&row, &l], &[], false);
        y.copy(b, bt, [t.k, t.n], [&l, &col], &[], false);
        let extents = [t.m, t.n, t.k].map(Expr::int);
        b.dot(extents, x.tile(at, [t.m, t.k]), y.tile(bt, [t.k, t.n]), tile(sums, Expr::int(0), t.n), true);
    });
    if p.accumulate {
        let whole = [is_multiple(k, t.m), is_multiple(n, t.n)];
        let (extents, batch) = ([k, n].map(|d| b.dim(d)), [group.clone()]);
        Tile { t, sums: &[sums], held: &[], dtype: p.dtype, at: [&row, &col], batch: &batch, extents, whole }.add(&mut b, &w);
    }
    w.copy(&mut b, sums, [t.m, t.n], [&row, &col], &[group], true);
    b.finish()
}
