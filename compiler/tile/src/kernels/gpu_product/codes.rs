//! Products of codes of e4m3: what a block of the summed axis gives is worth a scale of its row times one of its column.
//!
//! ```text
//! for each piece of k: P = A·B; C += P · sa[block, rows] · sb[block, columns]
//! ```
//!
//! # Source: DeepSeek-V3, arXiv 2412.19437, section 3.3.2: tensor cores sum codes with some fourteen bits, so what a block gives is added in f32.

use super::{Beside, Matrix, Shape, Tiling};
use crate::{
    ir::{Dot, Expr, Kernel, Mem, Stmt, TileRef},
    kernels::build::{Build, tile},
};
use base::{DType, Dim};

/// Rows of which a block lays out the scales of one block of terms.
const PART: i64 = 256;

/// Columns of all sums of a tile and of what pieces give, at most: what threads hold of 64 rows a warp group.
const MOST_COLUMNS: i64 = 384;

/// The scales of a block begin at multiples of this, so that neighbours move together. # Units: elements.
const ALIGN: i64 = 4;

/// The extents of the scales of `rows` rows of `terms` codes as products take them: f32 `[⌈terms / block⌉, rows]`, rows up to a multiple of 4.
pub fn scales(rows: &Dim, terms: &Dim, block: i64) -> [Dim; 2] {
    let align = Dim::from(ALIGN);
    [terms.ceil_div(&Dim::from(block)), rows.ceil_div(&align) * align]
}

/// Scales as a quantisation gives them, f32 `[groups, ⌈rows / together⌉, blocks]`.
pub struct GivenScales {
    /// Matrices, and 1 for rows.
    pub groups: Dim,
    /// Rows of a result or of a matrix.
    pub rows: Dim,
    /// Neighbouring rows that have one.
    pub together: i64,
    /// Blocks of each.
    pub blocks: Dim,
    /// If rows are taken by index: of how many. What is outside is worth 0.
    pub taken: Option<Dim>,
}

/// The kernel that lays scales out as products take them: [`scales`] of each group. Buffers: scales, the indices if rows are taken by index, and the result.
pub fn gpu_scales(p: &GivenScales) -> Kernel {
    let mut b = Build::new("scales");
    let [_, width] = scales(&p.rows, &Dim::from(1), 1);
    let from = p.taken.as_ref().unwrap_or(&p.rows).ceil_div(&Dim::from(p.together));
    let x = b.read("x", DType::F32, p.groups.clone() * from.clone() * p.blocks.clone());
    let index = p.taken.as_ref().map(|_| b.read("index", DType::I32, p.rows.clone()));
    let count = p.groups.clone() * p.blocks.clone();
    let y = b.write("y", DType::F32, count.clone() * width.clone());
    let parts = width.ceil_div(&Dim::from(PART));
    b.kernel.grid = count.clone() * parts.clone();
    let (all, parts) = (b.dim(&(count * parts.clone())), b.dim(&parts));
    let [rows, blocks, width, from] = [&p.rows, &p.blocks, &width, &from].map(|d| b.dim(d));
    b.each_row(all, 1, |b, part| {
        let line = b.bind(Expr::floor_div(part.clone(), parts.clone()));
        let first = b.bind(Expr::rem(part, parts.clone()) * Expr::int(PART));
        let count = b.bind(Expr::minimum(width.clone() - first.clone(), Expr::int(PART)));
        let group = b.bind(Expr::floor_div(line.clone(), blocks.clone()));
        let (block, to) = (b.bind(Expr::rem(line.clone(), blocks.clone())), b.bind(line * width.clone()));
        b.each(count, |b, i| {
            let i = b.bind(first.clone() + i);
            let known = b.bind(Expr::minimum(i.clone(), rows.clone() - Expr::int(1)));
            let row = match index {
                Some(index) => b.bind(Expr::load(index, known.clone()).cast(DType::I64)),
                None if p.together > 1 => b.bind(Expr::floor_div(known, Expr::int(p.together))),
                None => known,
            };
            let there = b.bind(Expr::and(Expr::le(Expr::int(0), row.clone()), Expr::lt(row.clone(), from.clone())));
            let row = b.bind(Expr::select(there.clone(), row, Expr::int(0)));
            let at = b.bind((group.clone() * from.clone() + row) * blocks.clone() + block.clone());
            let scale = b.bind(Expr::select(there, Expr::load(x, at), Build::f(DType::F32, 0.0)));
            b.store(y, to + i, scale);
        });
    });
    b.finish()
}

/// What products of codes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OfCodes {
    /// Terms of a block of which each row, and each column, has a scale: a multiple of those of a piece, or no fewer than all.
    pub block: i64,
    /// Neighbouring columns that have one scale; if that is more than 1, the scales of each matrix are f32 `[groups, ⌈n / columns⌉, ⌈terms / block⌉]`, as they are given.
    pub columns: i64,
    /// What a product is rounded to before it is mapped.
    pub product: DType,
}

/// A buffer of scales, and where those of a piece are.
struct Scales {
    /// Lines of a block each, those of a group behind each other.
    matrix: Matrix,
    blocks: Expr,
    /// How many are brought at once, and where they are then.
    wide: i64,
    piece: Mem,
}

impl Scales {
    /// Of each of `rows`, or of those of each of `groups`, a scale for each block: `wide` neighbours are brought at once.
    fn new(b: &mut Build, of: &str, [rows, terms]: [&Dim; 2], (block, wide): (i64, i64), groups: &Dim) -> Scales {
        let [blocks, width] = scales(rows, terms, block);
        let (lines, one) = (groups.clone() * blocks.clone(), Dim::from(1));
        let shape = Shape { extents: [&lines, &width], strides: [&width, &one], batch: Vec::new(), aligned: true };
        let mem = b.read(&format!("s{of}"), DType::F32, shape.elems());
        let matrix = shape.matrix(b, mem, shape.copies(DType::F32));
        let blocks = b.dim(&blocks);
        Scales { matrix, blocks, wide, piece: b.scratch(&format!("s{of}"), DType::F32, wide) }
    }
    /// Brings those of a block from a place on.
    fn copy(&self, b: &mut Build, group: Option<&Expr>, block: &Expr, at: &Expr) {
        let line = match group {
            Some(g) => b.bind(g.clone() * self.blocks.clone() + block.clone()),
            None => block.clone(),
        };
        self.matrix.copy(b, self.piece, [1, self.wide], [&line, at], &[], false);
    }
}

/// The scales of a matrix.
enum OfMatrix {
    /// Each column's, which are brought as those of rows are.
    Each(Scales),
    /// Of `columns` neighbours one: lines of `blocks`, `lines` of each group.
    Few { mem: Mem, columns: i64, lines: Expr, blocks: Expr },
}

impl OfMatrix {
    fn new(b: &mut Build, of: &str, [n, terms]: [&Dim; 2], c: OfCodes, wide: i64, groups: &Dim) -> OfMatrix {
        if c.columns == 1 {
            return OfMatrix::Each(Scales::new(b, of, [n, terms], (c.block, wide), groups));
        }
        let [lines, blocks] = [n.ceil_div(&Dim::from(c.columns)), terms.ceil_div(&Dim::from(c.block))];
        let mem = b.read(&format!("s{of}"), DType::F32, groups.clone() * lines.clone() * blocks.clone());
        OfMatrix::Few { mem, columns: c.columns, lines: b.dim(&lines), blocks: b.dim(&blocks) }
    }
}

/// What products of codes have beside their operands.
pub(super) struct Codes {
    block: i64,
    rows: Scales,
    columns: Vec<OfMatrix>,
    /// Whether tiles begin at any row.
    begins: bool,
    /// What a piece gives: of as many products as may be under way together.
    parts: Vec<Mem>,
}

impl Codes {
    /// Of products `[m, n, k]` with so many matrices, the operands being called so.
    pub fn new(
        b: &mut Build,
        (c, t): (OfCodes, Tiling),
        [m, n, k]: [&Dim; 3],
        [of_rows, of_columns]: [&str; 2],
        matrices: usize,
        groups: Option<&Dim>,
    ) -> Codes {
        // Ragged rows begin anywhere: what is brought begins at a multiple before.
        let (begins, one) = (groups.is_some(), Dim::from(1));
        let rows = Scales::new(b, of_rows, [m, k], (c.block, t.m + if begins { ALIGN } else { 0 }), &one);
        let name = |j: usize| if matrices == 1 { of_columns.to_string() } else { format!("{of_columns}{j}") };
        let columns =
            (0..matrices).map(|j| OfMatrix::new(b, &name(j), [n, k], c, t.n * t.beside, groups.unwrap_or(&one))).collect();
        let count = matrices as i64 * t.beside;
        let parts = (MOST_COLUMNS / t.n - count).clamp(1, count);
        let name = |i: i64| if parts == 1 { "p".to_string() } else { format!("p{i}") };
        let parts = (0..parts).map(|i| b.scratch(&name(i), DType::F32, t.m * t.n)).collect();
        Codes { block: c.block, rows, columns, parts, begins }
    }
}

impl Codes {
    /// What is read before a piece that begins with term `l` is there: the scale of each product's columns, if they have one.
    pub fn before(&self, b: &mut Build, l: &Expr, batch: &[Expr], products: &[Beside]) -> Vec<Option<Expr>> {
        if self.columns.iter().all(|s| matches!(s, OfMatrix::Each(_))) {
            return vec![None; products.len()];
        }
        let block = b.bind(Expr::floor_div(l.clone(), Expr::int(self.block)));
        products.iter().map(|of| self.few(b, batch.first().filter(|_| self.begins), &block, of)).collect()
    }
    /// Adds what the products of a piece are worth to their sums. The piece begins with term `l`, the tile at a row and a column.
    pub fn add(
        &self,
        b: &mut Build,
        t: Tiling,
        (l, [row, col], batch): (&Expr, [&Expr; 2], &[Expr]),
        (products, few): (&[(Beside, TileRef, TileRef)], &[Option<Expr>]),
        counted: Option<&Expr>,
    ) {
        let parts = self.parts.len();
        let start =
            if self.begins { b.bind(Expr::floor_div(row.clone(), Expr::int(ALIGN)) * Expr::int(ALIGN)) } else { row.clone() };
        let by = if self.begins { b.bind(row.clone() - start.clone()) } else { Expr::int(0) };
        let group = batch.first().filter(|_| self.begins);
        let block = b.bind(Expr::floor_div(l.clone(), Expr::int(self.block)));
        for (i, (_, left, right)) in products.iter().enumerate() {
            let ([m, n, k], c) = ([t.m, t.n, t.k].map(Expr::int), tile(self.parts[i % parts], Expr::int(0), t.n));
            let (a, right, counted) = (left.clone(), right.clone(), counted.cloned());
            b.push(Stmt::Dot(Dot { m, n, k, a, b: right, c, accumulate: false, counted }));
            if i == 0 {
                // Beside the first product, and apart from what it multiplies: that is free as soon as all are done.
                self.rows.copy(b, None, &block, &start);
                for s in &self.columns {
                    if let OfMatrix::Each(s) = s {
                        s.copy(b, group, &block, col);
                    }
                }
            }
            if let Some(before) = (i + 1).checked_sub(parts) {
                self.scale(b, t, (before, &by), &products[before].0, few[before].as_ref());
            }
        }
        // What was under way while the others were scaled.
        for (i, (beside, ..)) in products.iter().enumerate().skip((products.len() + 1).saturating_sub(parts)) {
            self.scale(b, t, (i, &by), beside, few[i].as_ref());
        }
    }
    /// The scale of all columns of a product in a block, if they have one.
    fn few(&self, b: &mut Build, group: Option<&Expr>, block: &Expr, of: &Beside) -> Option<Expr> {
        let OfMatrix::Few { mem, columns, lines, blocks } = &self.columns[of.matrix] else { return None };
        let line = Expr::minimum(Expr::floor_div(of.col.clone(), Expr::int(*columns)), lines.clone() - Expr::int(1));
        let line = group.map_or(line.clone(), |g| g.clone() * lines.clone() + line);
        let at = b.bind(line * blocks.clone() + block.clone());
        Some(b.bind(Expr::load(*mem, at)))
    }
    /// Adds what product number `i` of a piece is worth to its sums; scales of rows begin `by` before, and `few` is that of all columns.
    fn scale(&self, b: &mut Build, t: Tiling, (i, by): (usize, &Expr), beside: &Beside, few: Option<&Expr>) {
        let (wide, part) = (Expr::int(t.n), self.parts[i % self.parts.len()]);
        b.each(Expr::int(t.m * t.n), |b, e| {
            let by_row = Expr::load(self.rows.piece, Expr::floor_div(e.clone(), wide.clone()) + by.clone());
            let column = Expr::rem(e.clone(), wide) + Expr::int(beside.by);
            let by_column = match &self.columns[beside.matrix] {
                OfMatrix::Each(s) => Expr::load(s.piece, column),
                OfMatrix::Few { .. } => few.expect("a scale of all columns").clone(),
            };
            let worth = Expr::load(part, e.clone()) * (by_row * by_column);
            b.store(beside.sums, e.clone(), Expr::load(beside.sums, e) + worth);
        });
    }
}
