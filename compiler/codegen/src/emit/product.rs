//! Tile products whose columns are contiguous: blocks of four rows and two vectors of columns are summed in registers, so that each
//! vector of b serves four rows and each element of a two vectors. Columns are the outer loop: their part of b stays in the
//! first-level cache while rows pass. Rows that are left go one by one with four vectors, columns that are left with one vector, then
//! in scalars.

use super::{Emitter, convert::memory_type, text::Writer, value_type};
use base::DType;
use tile::ir::{Dot, TileRef};

/// Rows and vectors of a block; enough sums to hide the latency of a multiply-add, few enough to stay in sixteen registers.
const BLOCK: (usize, usize) = (4, 2);
/// The same for single rows.
const ROW: (usize, usize) = (1, 4);
/// The width of vectors: a register of AVX2, half of one of AVX-512. # Units: bytes.
const VECTOR_BYTES: usize = 32;

/// Whether products like this are emitted here; others are expanded to loops before.
pub(crate) fn is_blocked(d: &Dot, memory: DType) -> bool {
    d.b.col.known() == Some(1) && d.c.col.known() == Some(1) && matches!(memory, DType::F32 | DType::F64)
}

/// A product's operands as values.
struct Product<'d> {
    d: &'d Dot,
    m: String,
    n: String,
    k: String,
    a: Operand,
    b: Operand,
    c: Operand,
    known: [Option<i64>; 2],
}

struct Operand {
    dtype: DType,
    pointer: String,
    base: String,
    row: String,
    col: String,
}

impl Emitter<'_> {
    pub(super) fn product(&mut self, d: &Dot) {
        let mut operand = |t: &TileRef| Operand {
            dtype: self.k.mem_dtype(t.mem),
            pointer: super::pointer(t.mem),
            base: self.expr(&t.base),
            row: self.expr(&t.row),
            col: self.expr(&t.col),
        };
        let (a, b, c) = (operand(&d.a), operand(&d.b), operand(&d.c));
        let [m, n, k] = [&d.m, &d.n, &d.k].map(|e| self.expr(e));
        let known = [d.m.known(), d.n.known()];
        Product { d, m, n, k, a, b, c, known }.emit(&mut self.w);
    }
}

impl Product<'_> {
    fn emit(&self, w: &mut Writer) {
        let lanes = VECTOR_BYTES / self.c.dtype.bytes();
        // Widest columns first: each step takes what it can, the next goes on where it stopped.
        let mut first = w.int(0, "i64");
        for (vectors, lanes) in [(BLOCK.1, lanes), (1, lanes), (1, 1)] {
            let step = (vectors * lanes) as i64;
            if self.known[1].is_some_and(|n| n % (BLOCK.1 * lanes) as i64 == 0 && vectors * lanes < BLOCK.1 * VECTOR_BYTES / self.c.dtype.bytes() && n % (BLOCK.1 * VECTOR_BYTES / self.c.dtype.bytes()) as i64 == 0) {
                continue;
            }
            let end = whole(w, &self.n, step);
            let step = w.int(step, "i64");
            let j = w.fresh();
            w.line(&format!("scf.for {j} = {first} to {end} step {step} : i64 {{"));
            w.inside(|w| self.rows(w, &j, vectors, lanes));
            w.line("}");
            first = end;
        }
    }
}
