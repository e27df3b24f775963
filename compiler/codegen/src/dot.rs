//! Tile-level products of any strides as loops: a sum per element, in lanes where both factors are contiguous. Products with
//! contiguous columns stay: the emitter takes them in blocks.

use crate::emit::is_blocked;
use base::DType;
use graph::op::{ReduceFn, Scalar};
use tile::{
    Expr, Kernel, LoopKind, Stmt, VarId,
    ir::{Dot, TileRef},
};

/// The kernel without the products that are not [`is_blocked`].
pub(crate) fn expand_dot(kernel: &Kernel) -> Kernel {
    let mut k = kernel.clone();
    let body = std::mem::take(&mut k.body);
    k.body = expand(&mut k, body);
    k
}

fn expand(k: &mut Kernel, body: Vec<Stmt>) -> Vec<Stmt> {
    let mut out = Vec::new();
    for s in body {
        match s {
            Stmt::Dot(d) if !is_blocked(&d, k.mem_dtype(d.c.mem)) => out.extend(product(k, d)),
            Stmt::For { var, lo, hi, kind, body } => out.push(Stmt::For { var, lo, hi, kind, body: expand(k, body) }),
            Stmt::While { cond, body } => out.push(Stmt::While { cond, body: expand(k, body) }),
            Stmt::If { cond, then, otherwise } => {
                let (then, otherwise) = (expand(k, then), expand(k, otherwise));
                out.push(Stmt::If { cond, then, otherwise });
            }
            s @ (Stmt::Let(..) | Stmt::Var(..) | Stmt::Assign(..) | Stmt::Accumulate(..) | Stmt::Store { .. } | Stmt::Dot(_)) => {
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
    let extents = [&mut d.m, &mut d.n, &mut d.k];
    let places = [&mut d.a, &mut d.b, &mut d.c].into_iter().flat_map(|t| [&mut t.base, &mut t.row, &mut t.col]);
    for e in extents.into_iter().chain(places) {
        *e = bind(k, &mut out, e.clone());
    }
    let [i, j, l] = [(); 3].map(|()| k.var(DType::I64));
    let c = at(&d.c, i, j);
    let first = Expr::load(d.c.mem, c.clone());
    let dtype = k.expr_dtype(&first);
    let sum = k.var(dtype);
    let first = if d.accumulate { first } else { Expr::Const(Scalar::new(0.0), dtype) };
    let term = Expr::load(d.a.mem, at(&d.a, i, l)) * Expr::load(d.b.mem, at(&d.b, l, j));
    let terms = vec![Stmt::Accumulate(sum, ReduceFn::Sum, term)];
    let terms = Stmt::For { var: l, lo: Expr::int(0), hi: d.k, kind: LoopKind::Vector, body: terms };
    let store = Stmt::Store { mem: d.c.mem, index: c, value: Expr::Var(sum) };
    let columns = serial(j, d.n, vec![Stmt::Var(sum, first), terms, store]);
    out.push(serial(i, d.m, vec![columns]));
    out
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
