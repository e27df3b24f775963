//! What statements read, write and name.

use std::collections::BTreeSet;
use tile::{Expr, Mem, Stmt, VarId};

/// The memories that statements touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Access {
    /// Read.
    pub read: BTreeSet<Mem>,
    /// Written.
    pub written: BTreeSet<Mem>,
}

impl Access {
    /// Of statements.
    pub(crate) fn of(body: &[Stmt]) -> Access {
        let mut a = Access::default();
        body.iter().for_each(|s| a.stmt(s));
        a
    }
    /// Of expressions.
    pub(crate) fn of_exprs<'e>(exprs: impl IntoIterator<Item = &'e Expr>) -> Access {
        let mut a = Access::default();
        exprs.into_iter().for_each(|e| a.expr(e));
        a
    }
    /// Both.
    pub(crate) fn join(&mut self, other: &Access) {
        self.read.extend(&other.read);
        self.written.extend(&other.written);
    }
    /// Whether what follows must wait for this: one of them writes what the other touches.
    pub(crate) fn conflicts(&self, next: &Access) -> bool {
        let shares = |a: &BTreeSet<Mem>, b: &BTreeSet<Mem>| a.intersection(b).next().is_some();
        shares(&self.written, &next.read) || shares(&self.written, &next.written) || shares(&self.read, &next.written)
    }
    fn expr(&mut self, e: &Expr) {
        visit(e, &mut |e| {
            if let Expr::Load(mem, _) = e {
                self.read.insert(*mem);
            }
        });
    }
    fn stmt(&mut self, s: &Stmt) {
        exprs(s, &mut |e| self.expr(e));
        match s {
            Stmt::Store { mem, .. } => {
                self.written.insert(*mem);
            }
            Stmt::Dot(d) => {
                self.read.extend([d.a.mem, d.b.mem]);
                if d.accumulate {
                    self.read.insert(d.c.mem);
                }
                self.written.insert(d.c.mem);
            }
            Stmt::Copy(c) => {
                self.read.insert(c.from);
                self.read.extend(c.index.map(Mem::Buffer));
                self.written.insert(c.to);
            }
            Stmt::For { body, .. } | Stmt::While { body, .. } => body.iter().for_each(|s| self.stmt(s)),
            Stmt::If { then, otherwise, .. } => then.iter().chain(otherwise).for_each(|s| self.stmt(s)),
            Stmt::Let(..) | Stmt::Var(..) | Stmt::Assign(..) | Stmt::Accumulate(..) => {}
        }
    }
}

/// The expressions of a statement, without those of statements inside.
pub(crate) fn exprs<'s>(s: &'s Stmt, see: &mut dyn FnMut(&'s Expr)) {
    match s {
        Stmt::Let(_, e) | Stmt::Var(_, e) | Stmt::Assign(_, e) | Stmt::Accumulate(_, _, e) => see(e),
        Stmt::Store { index, value, .. } => [index, value].into_iter().for_each(see),
        Stmt::For { lo, hi, .. } => [lo, hi].into_iter().for_each(see),
        Stmt::While { cond, .. } | Stmt::If { cond, .. } => see(cond),
        Stmt::Dot(d) => {
            let places = [&d.a, &d.b, &d.c].into_iter().flat_map(|t| [&t.base, &t.row, &t.col]);
            [&d.m, &d.n, &d.k].into_iter().chain(places).chain(&d.counted).for_each(see);
        }
        Stmt::Copy(c) => c.exprs().for_each(see),
    }
}

/// The expressions of statements and of those inside, and their parts.
pub(crate) fn each_expr(body: &[Stmt], see: &mut dyn FnMut(&Expr)) {
    for s in body {
        exprs(s, &mut |e| visit(e, see));
        s.lists().into_iter().for_each(|b| each_expr(b, see));
    }
}

/// An expression and its parts.
pub(crate) fn visit<'e>(e: &'e Expr, see: &mut dyn FnMut(&'e Expr)) {
    see(e);
    match e {
        Expr::Const(..) | Expr::Dim(_) | Expr::Var(_) => {}
        Expr::Load(_, e) | Expr::Cast(_, e) | Expr::Order(e) => visit(e, see),
        Expr::Map(_, args) => args.iter().for_each(|a| visit(a, see)),
    }
}

/// Whether an expression names such a variable.
pub(crate) fn expr_uses(e: &Expr, is: &dyn Fn(VarId) -> bool) -> bool {
    let mut found = false;
    visit(e, &mut |e| found |= matches!(e, Expr::Var(v) if is(*v)));
    found
}

/// Whether a statement names such a variable.
pub(crate) fn stmt_uses(s: &Stmt, is: &dyn Fn(VarId) -> bool) -> bool {
    let mut found = false;
    exprs(s, &mut |e| found |= expr_uses(e, is));
    found
        || match s {
            Stmt::Assign(v, _) | Stmt::Accumulate(v, ..) => is(*v),
            Stmt::For { body, .. } | Stmt::While { body, .. } => body.iter().any(|s| stmt_uses(s, is)),
            Stmt::If { then, otherwise, .. } => then.iter().chain(otherwise).any(|s| stmt_uses(s, is)),
            Stmt::Let(..) | Stmt::Var(..) | Stmt::Store { .. } | Stmt::Dot(_) | Stmt::Copy(_) => false,
        }
}
