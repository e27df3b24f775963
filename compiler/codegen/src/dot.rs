//! Tile-level products of any strides as loops: a sum per element, in lanes where both factors are contiguous. Products with
//! contiguous columns stay: the emitter takes them in blocks.

use crate::emit::is_blocked;
use base::DType;
use graph::op::{ReduceFn, Scalar};
use tile::{
    Expr, Kernel, LoopKind, Mem, Stmt, VarId,
    ir::{Dot, TileRef},
};

/// The kernel without the products that are not [`is_blocked`].
pub(crate) fn expand_dot(kernel: &Kernel) -> Kernel {
    expand_all(kernel, &|k, d, _| if is_blocked(&d, k.mem_dtype(d.c.mem)) { vec![Stmt::Dot(d)] } else { product(k, d) })
}

/// The kernel without products but those that the threads of a block share out by tiles ([`Tiled`]): each of the others is a vector loop
/// over its elements, whose terms are taken turn after turn.
pub(crate) fn spread_dot(kernel: &Kernel) -> Kernel {
    expand_all(kernel, &|k, d, whole| match Tiled::new(k, &d).filter(|_| whole) {
        Some(_) => vec![Stmt::Dot(d)],
        None => elements(k, d),
    })
}

/// A product of constant extents in scratch, the sums in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tiled {
    /// Rows, columns (multiples of 16), and the summed extent.
    pub extents: [i64; 3],
    /// `[m, k]`.
    pub a: Matrix,
    /// `[k, n]`.
    pub b: Matrix,
    /// `[m, n]`.
    pub c: Matrix,
}

/// A matrix that begins with a scratch memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Matrix {
    /// The memory's number.
    pub scratch: usize,
    /// Elements from row to row.
    pub row: i64,
    /// Elements from column to column.
    pub col: i64,
}

impl Tiled {
    /// If the product is one.
    pub(crate) fn new(k: &Kernel, d: &Dot) -> Option<Tiled> {
        let matrix = |t: &TileRef| match (t.mem, t.base.known()?) {
            (Mem::Scratch(scratch), 0) => Some(Matrix { scratch, row: t.row.known()?, col: t.col.known()? }),
            _ => None,
        };
        let (a, b, c) = (matrix(&d.a)?, matrix(&d.b)?, matrix(&d.c)?);
        let extents = [d.m.known()?, d.n.known()?, d.k.known()?];
        let even = extents[..2].iter().all(|n| *n > 0 && n % 16 == 0);
        (even && k.scratch[c.scratch].dtype == DType::F32).then_some(Tiled { extents, a, b, c })
    }
    /// Whether a GPU has instructions for it: bf16 or f16, sixteen terms at once, rows or columns of eight neighbours.
    pub(crate) fn fits_tensor_cores(&self, k: &Kernel) -> bool {
        let neighbours = |m: &Matrix| m.row == 1 && m.col % 8 == 0 || m.col == 1 && m.row % 8 == 0;
        let dtypes = [self.a, self.b].map(|m| k.scratch[m.scratch].dtype);
        let narrow = dtypes[0] == dtypes[1] && matches!(dtypes[0], DType::BF16 | DType::F16);
        narrow && self.extents[2] % 16 == 0 && [self.a, self.b].iter().all(neighbours) && self.c.col == 1
    }
    /// Whether warp groups have: the same, or e4m3 or tf32 with neighbours along the summed axis, 32 or 8 terms at once.
    pub(crate) fn fits_warp_groups(&self, k: &Kernel) -> bool {
        let [a, b] = [self.a, self.b].map(|m| k.scratch[m.scratch].dtype);
        let others = a == b && matches!(a, DType::E4M3 | DType::TF32);
        let inside = self.a.col == 1 && self.b.row == 1;
        self.fits_tensor_cores(k) || others && inside && self.extents[2] * a.bytes() as i64 % 32 == 0 && self.c.col == 1
    }
}

/// Is told whether the whole block runs the product.
type Expand<'a> = &'a dyn Fn(&mut Kernel, Dot, bool) -> Vec<Stmt>;

fn expand_all(kernel: &Kernel, with: Expand<'_>) -> Kernel {
    let mut k = kernel.clone();
    let body = std::mem::take(&mut k.body);
    k.body = expand(&mut k, body, true, with);
    k
}

fn expand(k: &mut Kernel, body: Vec<Stmt>, whole: bool, with: Expand<'_>) -> Vec<Stmt> {
    let mut out = Vec::new();
    for s in body {
        match s {
            Stmt::Dot(d) => out.extend(with(k, d, whole)),
            Stmt::For { var, lo, hi, kind, body } => {
                let body = expand(k, body, whole && kind == LoopKind::Serial, with);
                out.push(Stmt::For { var, lo, hi, kind, body });
            }
            Stmt::While { cond, body } => out.push(Stmt::While { cond, body: expand(k, body, whole, with) }),
            Stmt::If { cond, then, otherwise } => {
                let (then, otherwise) = (expand(k, then, whole, with), expand(k, otherwise, whole, with));
                out.push(Stmt::If { cond, then, otherwise });
            }
            s
            @ (Stmt::Let(..) | Stmt::Var(..) | Stmt::Assign(..) | Stmt::Accumulate(..) | Stmt::Store { .. } | Stmt::Copy(_)) => {
                out.push(s);
            }
        }
    }
    out
}

fn at(t: &TileRef, r: VarId, c: VarId) -> Expr {
    t.base.clone() + Expr::Var(r) * t.row.clone() + Expr::Var(c) * t.col.clone()
}

/// `for i, for j: c[i, j] = init + Σ_l a[i, l]·b[l, j]`.
fn product(k: &mut Kernel, mut d: Dot) -> Vec<Stmt> {
    let mut out = Vec::new();
    bind_operands(k, &mut out, &mut d);
    let [i, j] = [(); 2].map(|()| k.var(DType::I64));
    let (m, n) = (d.m.clone(), d.n.clone());
    let columns = serial(j, n, element(k, d, i, j, LoopKind::Vector));
    out.push(serial(i, m, vec![columns]));
    out
}

/// `for e in lanes: c[e / n, e % n] = init + Σ_l a[e / n, l]·b[l, e % n]`.
fn elements(k: &mut Kernel, mut d: Dot) -> Vec<Stmt> {
    let mut out = Vec::new();
    bind_operands(k, &mut out, &mut d);
    let [e, i, j] = [(); 3].map(|()| k.var(DType::I64));
    let (count, n) = (d.m.clone() * d.n.clone(), d.n.clone());
    let mut body = vec![Stmt::Let(i, Expr::floor_div(Expr::Var(e), n.clone())), Stmt::Let(j, Expr::rem(Expr::Var(e), n))];
    body.extend(element(k, d, i, j, LoopKind::Serial));
    out.push(Stmt::For { var: e, lo: Expr::int(0), hi: count, kind: LoopKind::Vector, body });
    out
}

fn bind_operands(k: &mut Kernel, out: &mut Vec<Stmt>, d: &mut Dot) {
    let extents = [&mut d.m, &mut d.n, &mut d.k];
    let places = [&mut d.a, &mut d.b, &mut d.c].into_iter().flat_map(|t| [&mut t.base, &mut t.row, &mut t.col]);
    for e in extents.into_iter().chain(places) {
        *e = bind(k, out, e.clone());
    }
}

/// `c[i, j] = init + Σ_l a[i, l]·b[l, j]`.
fn element(k: &mut Kernel, d: Dot, i: VarId, j: VarId, kind: LoopKind) -> Vec<Stmt> {
    let l = k.var(DType::I64);
    let c = at(&d.c, i, j);
    let first = Expr::load(d.c.mem, c.clone());
    let dtype = k.expr_dtype(&first);
    let sum = k.var(dtype);
    let first = if d.accumulate { first } else { Expr::Const(Scalar::new(0.0), dtype) };
    let term = Expr::load(d.a.mem, at(&d.a, i, l)) * Expr::load(d.b.mem, at(&d.b, l, j));
    let terms = vec![Stmt::Accumulate(sum, ReduceFn::Sum, term)];
    let terms = Stmt::For { var: l, lo: Expr::int(0), hi: d.k, kind, body: terms };
    let store = Stmt::Store { mem: d.c.mem, index: c, value: Expr::Var(sum) };
    vec![Stmt::Var(sum, first), terms, store]
}

fn serial(var: VarId, hi: Expr, body: Vec<Stmt>) -> Stmt {
    Stmt::For { var, lo: Expr::int(0), hi, kind: LoopKind::Serial, body }
}

/// A value that is computed once.
fn bind(k: &mut Kernel, out: &mut Vec<Stmt>, e: Expr) -> Expr {
    if matches!(e, Expr::Const(..) | Expr::Var(_) | Expr::Dim(_)) {
        return e;
    }
    let v = k.var(k.expr_dtype(&e));
    out.push(Stmt::Let(v, e));
    Expr::Var(v)
}
