//! Which names a loop's body assigns without defining them: what is carried from turn to turn.

use std::collections::BTreeSet;
use syntax::ast::{Body, Expr, ExprKind, Ident, Index, StmtKind};

/// The names a body assigns that it does not itself define before, in order; each once.
pub(crate) fn assigned(body: &Body) -> Vec<Ident> {
    let mut walk = Walk::default();
    walk.body(body);
    walk.out
}

#[derive(Default)]
struct Walk {
    /// Names defined inside, innermost scope last.
    local: Vec<BTreeSet<String>>,
    out: Vec<Ident>,
}

impl Walk {
    fn body(&mut self, body: &Body) {
        self.local.push(BTreeSet::new());
        for stmt in &body.stmts {
            match &stmt.kind {
                StmtKind::Let { names, value, .. } => {
                    self.expr(value);
                    names.iter().for_each(|n| self.define(&n.node));
                }
                StmtKind::Assign { names, value } => {
                    self.expr(value);
                    for n in names {
                        let known = self.local.iter().any(|s| s.contains(&n.node)) || self.out.iter().any(|m| m.node == n.node);
                        if !known {
                            self.out.push(n.clone());
                        }
                    }
                }
                StmtKind::Repeat { body, .. } => self.body(body),
                StmtKind::Expr(e) | StmtKind::Penalty(e) => self.expr(e),
                StmtKind::Tally { name, value, .. } => {
                    self.expr(value);
                    self.define(&name.node);
                }
                StmtKind::State(d) => self.define(d.path.parts.last().map_or("_", |p| &p.node)),
                StmtKind::AfterStep(_) => {}
            }
        }
        body.value.iter().for_each(|e| self.expr(e));
        self.local.pop();
    }

    fn define(&mut self, name: &str) {
        if let Some(scope) = self.local.last_mut() {
            scope.insert(name.into());
        }
    }

    fn expr(&mut self, e: &Expr) {
        match &e.kind {
            ExprKind::If { cond, then, otherwise } => {
                self.expr(cond);
                self.body(then);
                otherwise.iter().for_each(|b| self.body(b));
            }
            ExprKind::Binary(_, a, b) => {
                self.expr(a);
                self.expr(b);
            }
            ExprKind::Unary(_, a) | ExprKind::Transpose(a) => self.expr(a),
            ExprKind::Call { args, .. } => args.iter().for_each(|a| self.expr(&a.value)),
            ExprKind::Index(x, items) => {
                self.expr(x);
                for item in items {
                    match item {
                        Index::At(e) => self.expr(e),
                        Index::Slice { start, end, step } => [start, end, step].into_iter().flatten().for_each(|e| self.expr(e)),
                        Index::Rest(_) | Index::New(_) => {}
                    }
                }
            }
            ExprKind::Tuple(parts) | ExprKind::List(parts) => parts.iter().for_each(|e| self.expr(e)),
            ExprKind::Param(d) => self.define(d.path.parts.last().map_or("_", |p| &p.node)),
            ExprKind::Int(_)
            | ExprKind::Float(_)
            | ExprKind::Bool(_)
            | ExprKind::Str(_)
            | ExprKind::Name(_)
            | ExprKind::Error => {}
        }
    }
}
