//! Tile-level products as loops. Rows in fours and sums in fours, so that each vector of b is used four times and c is loaded once for
//! four terms; the innermost loop runs over columns. A product whose columns are not contiguous, or that goes into narrow
//! floats, becomes a sum per element.

use base::DType;
use graph::op::ReduceFn;
use tile::{
    Expr, Kernel, LoopKind, Stmt, VarId,
    ir::{Dot, TileRef},
};

/// Rows and terms taken together.
const BLOCK: i64 = 4;

/// The kernel without [`Stmt::Dot`].
pub fn expand_dot(kernel: &Kernel) -> Kernel {
    let mut k = kernel.clone();
    let body = std::mem::take(&mut k.body);
    k.body = expand(&mut k, body);
    k
}

fn expand(k: &mut Kernel, body: Vec<Stmt>) -> Vec<Stmt> {
    let mut out = Vec::new();
    for s in body {
        match s {
            Stmt::Dot(d) => out.extend(product(k, &d)),
            Stmt::For { var, lo, hi, kind, body } => out.push(Stmt::For { var, lo, hi, kind, body: expand(k, body) }),
            Stmt::While { cond, body } => out.push(Stmt::While { cond, body: expand(k, body) }),
            Stmt::If { cond, then, otherwise } => {
                let (then, otherwise) = (expand(k, then), expand(k, otherwise));
                out.push(Stmt::If { cond, then, otherwise });
            }
            s @ (Stmt::Let(..) | Stmt::Var(..) | Stmt::Assign(..) | Stmt::Accumulate(..) | Stmt::Store { .. }) => out.push(s),
        }
    }
    out
}

fn at(t: &TileRef, r: Expr, c: Expr) -> Expr {
    t.base.clone() + r * t.row.clone() + c * t.col.clone()
}

fn bind(k: &mut Kernel, out: &mut Vec<Stmt>, e: Expr) -> Expr {
    if matches!(e, Expr::Const(..) | Expr::Var(_) | Expr::Dim(_)) {
        return e;
    }
    let v = k.var(k.expr_dtype(&e));
    out.push(Stmt::Let(v, e));
    Expr::Var(v)
}

fn product(k: &mut Kernel, d: &Dot) -> Vec<Stmt> {
    let mut out = Vec::new();
    let sum = k.expr_dtype(&Expr::load(d.c.mem, Expr::int(0)));
    let mut d = d.clone();
    for e in [
        &mut d.m,
        &mut d.n,
        &mut d.k,
        &mut d.a.base,
        &mut d.b.base,
        &mut d.c.base,
        &mut d.a.row,
        &mut d.a.col,
        &mut d.b.row,
        &mut d.c.row,
    ] {
        *e = bind(k, &mut out, e.clone());
    }
    // What is summed in memory must not be rounded there.
    let narrow = k.mem_dtype(d.c.mem) != sum;
    if narrow || d.b.col.known() != Some(1) || d.c.col.known() != Some(1) {
        let (i, j, l) = (k.var(DType::I64), k.var(DType::I64), k.var(DType::I64));
        let acc = k.var(sum);
        let c = at(&d.c, Expr::Var(i), Expr::Var(j));
        let first = if d.accumulate { Expr::load(d.c.mem, c.clone()) } else { zero(sum) };
        let term = load(k, &d.a, Expr::Var(i), Expr::Var(l), sum) * load(k, &d.b, Expr::Var(l), Expr::Var(j), sum);
        let inner = looped(l, Expr::int(0), d.k.clone(), LoopKind::Vector, vec![Stmt::Accumulate(acc, ReduceFn::Sum, term)]);
        let store = Stmt::Store { mem: d.c.mem, index: c, value: Expr::Var(acc) };
        let columns = looped(j, Expr::int(0), d.n.clone(), LoopKind::Serial, vec![Stmt::Var(acc, first), inner, store]);
        out.push(looped(i, Expr::int(0), d.m.clone(), LoopKind::Serial, vec![columns]));
        return out;
    }
    // Blocks of four rows, then the rows left.
    let whole = bind(k, &mut out, Expr::floor_div(d.m.clone(), Expr::int(BLOCK)));
    let i = k.var(DType::I64);
    let mut body = Vec::new();
    let first = bind(k, &mut body, Expr::Var(i) * Expr::int(BLOCK));
    body.extend(rows(k, &d, &first, BLOCK, sum));
    out.push(looped(i, Expr::int(0), whole.clone(), LoopKind::Serial, body));
    let i = k.var(DType::I64);
    let body = rows(k, &d, &Expr::Var(i), 1, sum);
    out.push(looped(i, whole * Expr::int(BLOCK), d.m.clone(), LoopKind::Serial, body));
    out
}

/// `count` rows from `first`.
fn rows(k: &mut Kernel, d: &Dot, first: &Expr, count: i64, sum: DType) -> Vec<Stmt> {
    let mut out = Vec::new();
    if !d.accumulate {
        let j = k.var(DType::I64);
        let clear = (0..count).map(|r| Stmt::Store {
            mem: d.c.mem,
            index: at(&d.c, first.clone() + Expr::int(r), Expr::Var(j)),
            value: zero(sum),
        });
        out.push(looped(j, Expr::int(0), d.n.clone(), LoopKind::Vector, clear.collect()));
    }
    let whole = bind(k, &mut out, Expr::floor_div(d.k.clone(), Expr::int(BLOCK)));
    let l = k.var(DType::I64);
    let mut body = Vec::new();
    let start = bind(k, &mut body, Expr::Var(l) * Expr::int(BLOCK));
    body.extend(terms(k, d, first, count, &start, BLOCK, sum));
    out.push(looped(l, Expr::int(0), whole.clone(), LoopKind::Serial, body));
    let l = k.var(DType::I64);
    let body = terms(k, d, first, count, &Expr::Var(l), 1, sum);
    out.push(looped(l, whole * Expr::int(BLOCK), d.k.clone(), LoopKind::Serial, body));
    out
}

/// Adds `terms` terms from `start` to `count` rows.
fn terms(k: &mut Kernel, d: &Dot, first: &Expr, count: i64, start: &Expr, terms: i64, sum: DType) -> Vec<Stmt> {
    let mut out = Vec::new();
    let mut factors = Vec::new();
    for r in 0..count {
        for t in 0..terms {
            let a = load(k, &d.a, first.clone() + Expr::int(r), start.clone() + Expr::int(t), sum);
            factors.push(bind(k, &mut out, a));
        }
    }
    let j = k.var(DType::I64);
    let mut body = Vec::new();
    let mut vectors = Vec::new();
    for t in 0..terms {
        let b = load(k, &d.b, start.clone() + Expr::int(t), Expr::Var(j), sum);
        vectors.push(bind(k, &mut body, b));
    }
    for r in 0..count {
        let index = at(&d.c, first.clone() + Expr::int(r), Expr::Var(j));
        let mut value = Expr::load(d.c.mem, index.clone());
        for t in 0..terms {
            value = value + factors[(r * terms + t) as usize].clone() * vectors[t as usize].clone();
        }
        body.push(Stmt::Store { mem: d.c.mem, index, value });
    }
    out.push(looped(j, Expr::int(0), d.n.clone(), LoopKind::Vector, body));
    out
}

fn load(k: &Kernel, t: &TileRef, r: Expr, c: Expr, sum: DType) -> Expr {
    let e = Expr::load(t.mem, at(t, r, c));
    if k.expr_dtype(&e) == sum { e } else { e.cast(sum) }
}

fn zero(dtype: DType) -> Expr {
    Expr::Const(graph::op::Scalar::new(0.0), dtype)
}

fn looped(var: VarId, lo: Expr, hi: Expr, kind: LoopKind, body: Vec<Stmt>) -> Stmt {
    Stmt::For { var, lo, hi, kind, body }
}
