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

/// The scales of a block begin at multiples of this, so that neighbours move together. # Units: elements.
const ALIGN: i64 = 4;

/// The extents of the scales of `rows` rows of `terms` codes as products take them: f32 `[⌈terms / block⌉, rows]`, rows up to a multiple of 4.
pub fn scales(rows: &Dim, terms: &Dim, block: i64) -> [Dim; 2] {
    let align = Dim::from(ALIGN);
    [terms.ceil_div(&Dim::from(block)), rows.ceil_div(&align) * align]
}

/// Scales as a quantisation gives them, f32 `[groups, rows, blocks]`.
pub struct GivenScales {
    /// Matrices, and 1 for rows.
    pub groups: Dim,
    /// Rows of a result or of a matrix.
    pub rows: Dim,
    /// Blocks of each.
    pub blocks: Dim,
    /// If rows are taken by index: of how many. What is outside is worth 0.
    pub taken: Option<Dim>,
}

/// The kernel that lays scales out as products take them: [`scales`] of each group. Buffers: scales, the indices if rows are taken by index, and the result.
pub fn gpu_scales(p: &GivenScales) -> Kernel {
    let mut b = Build::new("scales");
    let [_, width] = scales(&p.rows, &Dim::from(1), 1);
    let from = p.taken.as_ref().unwrap_or(&p.rows);
    let x = b.read("x", DType::F32, p.groups.clone() * from.clone() * p.blocks.clone());
    let index = p.taken.as_ref().map(|_| b.read("index", DType::I32, p.rows.clone()));
    let count = p.groups.clone() * p.blocks.clone();
    let y = b.write("y", DType::F32, count.clone() * width.clone());
    b.kernel.grid = count.clone();
    let [count, rows, blocks, width, from] = [&count, &p.rows, &p.blocks, &width, from].map(|d| b.dim(d));
    b.each_row(count, 1, |b, line| {
        let group = b.bind(Expr::floor_div(line.clone(), blocks.clone()));
        let (block, to) = (b.bind(Expr::rem(line.clone(), blocks.clone())), b.bind(line * width.clone()));
        b.each(width, |b, i| {
            let known = b.bind(Expr::minimum(i.clone(), rows.clone() - Expr::int(1)));
            let row = match index {
                Some(index) => b.bind(Expr::load(index, known.clone()).cast(DType::I64)),
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
    /// What a product is rounded to before it is mapped.
    pub product: DType,
}

/// A buffer of scales, and where those of a piece are.
struct Scales {
    matrix: Matrix,
    piece: Mem,
}

impl Scales {
    /// Of each of `rows` a scale for each block; `batch` is a first axis of such.
    fn new(b: &mut Build, of: &str, [rows, terms]: [&Dim; 2], (block, wide): (i64, i64), batch: Option<&Dim>) -> Scales {
        let [blocks, width] = scales(rows, terms, block);
        let (one, all) = (Dim::from(1), blocks.clone() * width.clone());
        let batch = batch.map(|n| (n, &all)).into_iter().collect();
        let shape = Shape { extents: [&blocks, &width], strides: [&width, &one], batch, aligned: true };
        let mem = b.read(&format!("s{of}"), DType::F32, shape.elems());
        let matrix = shape.matrix(b, mem, shape.copies(DType::F32));
        Scales { matrix, piece: b.scratch(&format!("s{of}"), DType::F32, wide) }
    }
}

/// What products of codes have beside their operands.
pub(super) struct Codes {
    block: i64,
    rows: Scales,
    columns: Vec<Scales>,
    /// What a piece gives.
    part: Mem,
}

impl Codes {
    /// Of products `[m, n, k]` with so many matrices, the operands being called so.
    pub fn new(
        b: &mut Build,
        (block, t): (i64, Tiling),
        [m, n, k]: [&Dim; 3],
        [of_rows, of_columns]: [&str; 2],
        matrices: usize,
        groups: Option<&Dim>,
    ) -> Codes {
        let rows = Scales::new(b, of_rows, [m, k], (block, t.m), None);
        let name = |j: usize| if matrices == 1 { of_columns.to_string() } else { format!("{of_columns}{j}") };
        let columns = (0..matrices).map(|j| Scales::new(b, &name(j), [n, k], (block, t.n * t.beside), groups)).collect();
        Codes { block, rows, columns, part: b.scratch("p", DType::F32, t.m * t.n) }
    }
}

impl Codes {
    /// Adds what the products of a piece are worth to their sums. The piece begins with term `l`, the tile at a row and a column.
    pub fn add(
        &self,
        b: &mut Build,
        t: Tiling,
        (l, [row, col], batch): (&Expr, [&Expr; 2], &[Expr]),
        products: &[(Beside, TileRef, TileRef)],
        counted: Option<&Expr>,
    ) {
        let wide = Expr::int(t.n);
        for (i, (beside, left, right)) in products.iter().enumerate() {
            let ([m, n, k], c) = ([t.m, t.n, t.k].map(Expr::int), tile(self.part, Expr::int(0), t.n));
            let (a, right, counted) = (left.clone(), right.clone(), counted.cloned());
            b.push(Stmt::Dot(Dot { m, n, k, a, b: right, c, accumulate: false, counted }));
            if i == 0 {
                // Beside the first product, and apart from what it multiplies: that is free as soon as all are done.
                let block = b.bind(Expr::floor_div(l.clone(), Expr::int(self.block)));
                self.rows.matrix.copy(b, self.rows.piece, [1, t.m], [&block, row], &[], false);
                for s in &self.columns {
                    s.matrix.copy(b, s.piece, [1, t.n * t.beside], [&block, col], batch, false);
                }
            }
            b.each(Expr::int(t.m * t.n), |b, e| {
                let by_row = Expr::load(self.rows.piece, Expr::floor_div(e.clone(), wide.clone()));
                let column = Expr::rem(e.clone(), wide.clone()) + Expr::int(beside.by);
                let by_column = Expr::load(self.columns[beside.matrix].piece, column);
                let worth = Expr::load(self.part, e.clone()) * (by_row * by_column);
                b.store(beside.sums, e.clone(), Expr::load(beside.sums, e) + worth);
            });
        }
    }
}
