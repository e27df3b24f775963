//! Copies of rectangles as loops.

use base::DType;
use graph::op::Scalar;
use tile::{
    Expr, Kernel, LoopKind, Mem, Stmt, VarId,
    ir::{COPY_ALIGN, Copy, compute_dtype},
    kernels::gpu_product::is_multiple,
};

/// The kernel with loops for the copies that are not to be kept.
pub(crate) fn expand_copies(kernel: &Kernel, keep: &dyn Fn(&Kernel, &Copy) -> bool) -> Kernel {
    let mut k = kernel.clone();
    let body = std::mem::take(&mut k.body);
    k.body = list(&mut k, body, keep);
    k
}

fn list(k: &mut Kernel, body: Vec<Stmt>, keep: &dyn Fn(&Kernel, &Copy) -> bool) -> Vec<Stmt> {
    let mut out = Vec::new();
    for s in body {
        match s {
            Stmt::Copy(c) if !keep(k, &c) => expand(k, c, &mut out),
            Stmt::For { var, lo, hi, kind, body } => out.push(Stmt::For { var, lo, hi, kind, body: list(k, body, keep) }),
            Stmt::While { cond, body } => out.push(Stmt::While { cond, body: list(k, body, keep) }),
            Stmt::If { cond, then, otherwise } => {
                let (then, otherwise) = (list(k, then, keep), list(k, otherwise, keep));
                out.push(Stmt::If { cond, then, otherwise });
            }
            s => out.push(s),
        }
    }
    out
}

/// A variable with a value.
fn bind(k: &mut Kernel, out: &mut Vec<Stmt>, e: Expr) -> Expr {
    let v = k.var(k.expr_dtype(&e));
    out.push(Stmt::Let(v, e));
    Expr::Var(v)
}

/// The number of elements of a buffer, as the kernel is passed it.
pub(crate) fn length(k: &Kernel, buffer: usize) -> Expr {
    let elems = &k.buffers[buffer].elems;
    match (elems.known(), k.dims.iter().position(|d| d == elems)) {
        (Some(n), _) => Expr::int(n),
        (None, Some(i)) => Expr::Dim(i),
        (None, None) => base::bug!("{} is not passed the {elems} elements of '{}'", k.name, k.buffers[buffer].name),
    }
}

/// Whether so many neighbours, from a multiple of their number on, are inside together or none is: not if rows end among them.
fn ends_between(k: &Kernel, c: &Copy, together: i64) -> bool {
    match c.axes.last().map(|a| &a.extent) {
        Some(Expr::Dim(i)) => is_multiple(&k.dims[*i], together),
        Some(e) => e.known().is_none_or(|n| n % together == 0),
        None => false,
    }
}

/// To scratch: a lane takes neighbours of 16 bytes, if they are inside together. To a buffer: a lane takes an element.
fn expand(k: &mut Kernel, c: Copy, out: &mut Vec<Stmt>) {
    let load = matches!(c.to, Mem::Scratch(_));
    let buffer = if load { c.from } else { c.to };
    let bytes = k.mem_dtype(buffer).bytes() as i64;
    let together = COPY_ALIGN / bytes;
    let whole = load && c.cols % together == 0 && ends_between(k, &c, together);
    let chunk = if whole { together } else { 1 };
    let axes: Vec<[Expr; 3]> = c
        .axes
        .iter()
        .map(|a| {
            [a.extent.clone(), a.stride.clone(), if a.at.known().is_some() { a.at.clone() } else { bind(k, out, a.at.clone()) }]
        })
        .collect();
    let e = k.var(DType::I64);
    let mut body = Vec::new();
    let across = c.cols / chunk;
    let r = bind(k, &mut body, Expr::floor_div(Expr::Var(e), Expr::int(across)));
    let col = bind(k, &mut body, Expr::rem(Expr::Var(e), Expr::int(across)) * Expr::int(chunk));
    // An index that stands in a buffer, -1 past its end.
    let taken = |k: &mut Kernel, body: &mut Vec<Stmt>, by: usize, i: Expr| {
        let n = length(k, by);
        let i = bind(k, body, i);
        let last = Expr::lt(i.clone(), n);
        let known = bind(k, body, Expr::select(last.clone(), i, Expr::int(0)));
        let row = Expr::load(Mem::Buffer(by), known).cast(DType::I64);
        bind(k, body, Expr::select(last, row, Expr::int(-1)))
    };
    let (mut inside, mut index) = (None, Expr::int(0));
    for (back, [extent, stride, at]) in axes.into_iter().rev().enumerate() {
        let i = match back {
            0 => bind(k, &mut body, at + col.clone()),
            1 => match c.index {
                Some(by) if c.run == c.rows => taken(k, &mut body, by, at + r.clone()),
                None if c.run == c.rows => bind(k, &mut body, at + r.clone()),
                _ => bind(k, &mut body, at + Expr::rem(r.clone(), Expr::int(c.run))),
            },
            2 if c.run != c.rows => {
                let run = at + Expr::floor_div(r.clone(), Expr::int(c.run));
                match c.index {
                    Some(by) => taken(k, &mut body, by, run),
                    None => bind(k, &mut body, run),
                }
            }
            _ => at,
        };
        let within = Expr::and(Expr::le(Expr::int(0), i.clone()), Expr::lt(i.clone(), extent));
        inside = Some(inside.map_or(within.clone(), |x| Expr::and(x, within)));
        index = i * stride + index;
    }
    let inside = bind(k, &mut body, inside.expect("it has axes"));
    let place = bind(k, &mut body, r * Expr::int(c.cols) + col);
    if load {
        // What is outside is not looked at, but its place has to exist.
        let from = bind(k, &mut body, Expr::select(inside.clone(), index, Expr::int(0)));
        let j = k.var(DType::I64);
        let zero = Expr::Const(Scalar::new(0.0), compute_dtype(k.mem_dtype(c.to)));
        let value = Expr::select(inside, Expr::load(c.from, from + Expr::Var(j)), zero);
        let store = Stmt::Store { mem: c.to, index: place + Expr::Var(j), value };
        body.push(Stmt::For { var: j, lo: Expr::int(0), hi: Expr::int(chunk), kind: LoopKind::Serial, body: vec![store] });
    } else {
        let store = Stmt::Store { mem: c.to, index, value: Expr::load(c.from, place) };
        body.push(Stmt::If { cond: inside, then: vec![store], otherwise: Vec::new() });
    }
    let lanes = |var: VarId, n: i64, body| Stmt::For { var, lo: Expr::int(0), hi: Expr::int(n), kind: LoopKind::Vector, body };
    out.push(lanes(e, c.rows * across, body));
}
