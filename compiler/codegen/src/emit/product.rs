//! Tile products whose columns are contiguous: blocks of four rows and two vectors of columns are summed in registers, so that each
//! vector of b serves four rows and each element of a two vectors. Columns are the outer loop: their part of b stays in the
//! first-level cache while rows pass. What is left of the rows is taken in twos and ones, of the columns in one vector and in scalars.

use super::{Emitter, convert::memory_type, pointer, text::Writer, value_type};
use base::DType;
use tile::ir::{Dot, TileRef};

/// The width of vectors: a register of AVX2, half of one of AVX-512. # Units: bytes.
const VECTOR_BYTES: usize = 32;
/// Rows of a block, and of what is left.
const ROWS: [usize; 3] = [4, 2, 1];

/// Whether such a product is emitted here; others become loops before.
pub(crate) fn is_blocked(d: &Dot, result: DType) -> bool {
    d.b.col.known() == Some(1) && d.c.col.known() == Some(1) && matches!(result, DType::F32 | DType::F64)
}

/// A product's operands as values.
struct Product {
    extents: [String; 3],
    known: [Option<i64>; 2],
    accumulate: bool,
    a: Operand,
    b: Operand,
    c: Operand,
}

struct Operand {
    dtype: DType,
    pointer: String,
    base: String,
    row: String,
    col: String,
}

/// A block of the result: its first row and column, and how much it covers.
struct Block<'a> {
    i: &'a str,
    j: &'a str,
    rows: usize,
    vectors: usize,
    lanes: usize,
}

impl Emitter<'_> {
    /// Emits a product that [`is_blocked`] admits.
    pub(super) fn product(&mut self, d: &Dot) {
        let mut operand = |t: &TileRef| Operand {
            dtype: self.k.mem_dtype(t.mem),
            pointer: pointer(t.mem),
            base: self.expr(&t.base),
            row: self.expr(&t.row),
            col: self.expr(&t.col),
        };
        let (a, b, c) = (operand(&d.a), operand(&d.b), operand(&d.c));
        let extents = [&d.m, &d.n, &d.k].map(|e| self.expr(e));
        let known = [d.m.known(), d.n.known()];
        Product { extents, known, accumulate: d.accumulate, a, b, c }.columns(&mut self.w);
    }
}

impl Product {
    fn columns(&self, w: &mut Writer) {
        let lanes = VECTOR_BYTES / self.c.dtype.bytes();
        // Few rows take more vectors, so that there are eight sums.
        let vectors = match self.known[0] {
            Some(1) => 8,
            Some(2 | 3) => 4,
            Some(_) | None => 2,
        };
        let blocks = [(vectors, lanes), (1, lanes), (1, 1)];
        let [m, n, _] = &self.extents;
        in_steps(w, n, self.known[1], blocks.map(|(vectors, lanes)| vectors * lanes), |w, s, j| {
            let (vectors, lanes) = blocks[s];
            in_steps(w, m, self.known[0], ROWS, |w, r, i| {
                self.block(w, &Block { i, j, rows: ROWS[r], vectors, lanes });
            });
        });
    }

    fn block(&self, w: &mut Writer, block: &Block) {
        let Block { i, j, rows, vectors, lanes } = *block;
        let scalar = value_type(self.c.dtype);
        let ty = if lanes == 1 { scalar.to_string() } else { format!("vector<{lanes}x{scalar}>") };
        let (mut starts, mut places) = (Vec::new(), Vec::new());
        for r in 0..rows {
            let row = add(w, i, r);
            starts.push(at(w, &self.a.base, &row, &self.a.row));
            let start = at(w, &self.c.base, &row, &self.c.row);
            let start = w.op(&format!("arith.addi {start}, {j} : i64"));
            for v in 0..vectors {
                let index = add(w, &start, v * lanes);
                places.push(element(w, &self.c, &index));
            }
        }
        let first: Vec<String> = places
            .iter()
            .map(|p| if self.accumulate { load(w, self.c.dtype, p, lanes) } else { zeros(w, lanes, scalar) })
            .collect();
        let b_first = w.op(&format!("arith.addi {}, {j} : i64", self.b.base));

        let (zero, one) = (w.int(0, "i64"), w.int(1, "i64"));
        let (sums, l) = (w.fresh(), w.fresh());
        let old: Vec<String> = first.iter().map(|_| w.fresh()).collect();
        let pairs: Vec<String> = old.iter().zip(&first).map(|(a, f)| format!("{a} = {f}")).collect();
        let (count, pairs, types) = (first.len(), pairs.join(", "), vec![ty.as_str(); first.len()].join(", "));
        let k = &self.extents[2];
        w.line(&format!("{sums}:{count} = scf.for {l} = {zero} to {k} step {one} iter_args({pairs}) -> ({types}) : i64 {{"));
        w.inside(|w| {
            let row = at(w, &b_first, &l, &self.b.row);
            let mut b = Vec::new();
            for v in 0..vectors {
                let index = add(w, &row, v * lanes);
                let p = element(w, &self.b, &index);
                b.push(load(w, self.b.dtype, &p, lanes));
            }
            let mut new = Vec::new();
            for (r, start) in starts.iter().enumerate() {
                let index = at(w, start, &l, &self.a.col);
                let p = element(w, &self.a, &index);
                let x = load(w, self.a.dtype, &p, 1);
                let x = splat(w, &x, lanes, &ty);
                for (v, y) in b.iter().enumerate() {
                    let sum = &old[r * vectors + v];
                    new.push(w.op(&format!("llvm.intr.fmuladd({x}, {y}, {sum}) : ({ty}, {ty}, {ty}) -> {ty}")));
                }
            }
            w.line(&format!("scf.yield {} : {types}", new.join(", ")));
        });
        w.line("}");
        for (s, p) in places.iter().enumerate() {
            let value = if count == 1 { sums.clone() } else { format!("{sums}#{s}") };
            w.line(&format!("llvm.store {value}, {p} {{alignment = {} : i64}} : {ty}, !llvm.ptr", self.c.dtype.bytes()));
        }
    }
}

/// For each of the steps in turn, as many turns of that width as fit between where the last stopped and `end`.
fn in_steps<const N: usize>(
    w: &mut Writer,
    end: &str,
    known: Option<i64>,
    steps: [usize; N],
    mut body: impl FnMut(&mut Writer, usize, &str),
) {
    let mut first = w.int(0, "i64");
    let mut left = known;
    for (s, step) in steps.into_iter().enumerate() {
        if left.is_some_and(|n| n < step as i64) {
            continue;
        }
        left = left.map(|n| n % step as i64);
        let width = w.int(step as i64, "i64");
        let last = if step == 1 {
            end.to_string()
        } else {
            // Each step divides those before it, so this is where it must stop wherever it starts. Extents are not negative.
            let rest = w.op(&format!("arith.remui {end}, {width} : i64"));
            w.op(&format!("arith.subi {end}, {rest} : i64"))
        };
        let i = w.fresh();
        w.line(&format!("scf.for {i} = {first} to {last} step {width} : i64 {{"));
        w.inside(|w| body(w, s, &i));
        w.line("}");
        first = last;
    }
}

/// `a + n`.
fn add(w: &mut Writer, a: &str, n: usize) -> String {
    if n == 0 {
        return a.to_string();
    }
    let n = w.int(n as i64, "i64");
    w.op(&format!("arith.addi {a}, {n} : i64"))
}

/// `a + b·c`.
fn at(w: &mut Writer, a: &str, b: &str, c: &str) -> String {
    let product = w.op(&format!("arith.muli {b}, {c} : i64"));
    w.op(&format!("arith.addi {a}, {product} : i64"))
}

fn element(w: &mut Writer, t: &Operand, index: &str) -> String {
    let ty = memory_type(t.dtype);
    w.op(&format!("llvm.getelementptr inbounds {}[{index}] : (!llvm.ptr, i64) -> !llvm.ptr, {ty}", t.pointer))
}

/// Loads and widens neighbouring elements.
fn load(w: &mut Writer, dtype: DType, p: &str, lanes: usize) -> String {
    in_lanes(w, lanes, |w| {
        let ty = w.ty(memory_type(dtype));
        let v = w.op(&format!("llvm.load {p} {{alignment = {} : i64}} : !llvm.ptr -> {ty}", dtype.bytes()));
        w.widen(v, dtype)
    })
}

fn zeros(w: &mut Writer, lanes: usize, scalar: &str) -> String {
    in_lanes(w, lanes, |w| w.float(0.0, scalar))
}

fn in_lanes(w: &mut Writer, lanes: usize, body: impl FnOnce(&mut Writer) -> String) -> String {
    let outer = std::mem::replace(&mut w.lanes, lanes);
    let v = body(w);
    w.lanes = outer;
    v
}

/// A scalar in each lane.
fn splat(w: &mut Writer, x: &str, lanes: usize, ty: &str) -> String {
    if lanes == 1 {
        return x.to_string();
    }
    let zero = w.int(0, "i64");
    let none = w.op(&format!("llvm.mlir.poison : {ty}"));
    let one = w.op(&format!("llvm.insertelement {x}, {none}[{zero} : i64] : {ty}"));
    w.op(&format!("llvm.shufflevector {one}, {none} [{}] : {ty}", vec!["0"; lanes].join(", ")))
}
