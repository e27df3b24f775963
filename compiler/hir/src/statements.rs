//! Statements: names, loops, and what a block declares.

use crate::{
    elaborate::{AfterStep, Elaborator, Slot, Stop, Tally},
    error::HirError,
    frame::stacked,
    value::{TensorVal, Val},
};
use base::{DType, Span, TensorType};
use graph::{Op, OpError, ParamDecl, Role, ir::Init, op::ReduceFn};
use syntax::ast::{self, StmtKind};

impl Elaborator<'_> {
    /// Runs a body in a scope of its own. Statements after a mistake are still looked at.
    pub fn body(&mut self, body: &ast::Body) -> Result<Val, Stop> {
        self.call().scopes.push(Default::default());
        let mut stopped = false;
        for stmt in &body.stmts {
            stopped |= self.stmt(stmt).is_err();
            if stopped && self.opaque {
                break;
            }
        }
        let value = match &body.value {
            Some(e) if !(stopped && self.opaque) => self.expr(e),
            _ => Ok(Val::Unit),
        };
        self.call().scopes.pop();
        if stopped { Err(Stop) } else { value }
    }

    fn stmt(&mut self, stmt: &ast::Stmt) -> Result<(), Stop> {
        match &stmt.kind {
            StmtKind::Let { names, ty, value } => self.let_names(names, ty.as_ref(), value),
            StmtKind::Assign { names, value } => {
                let parts = self.expr(value).and_then(|v| self.unpack(v, names.len(), value.span))?;
                for (n, v) in names.iter().zip(parts) {
                    self.assign(n, v, value.span)?;
                }
                Ok(())
            }
            StmtKind::Repeat { count, label, body } => self.repeat(count, label.as_ref(), body, stmt.span),
            StmtKind::Expr(e) => self.expr(e).map(|_| ()),
            StmtKind::State(d) => self.state(d),
            StmtKind::Tally { name, ty, value } => self.tally(name, ty, value),
            StmtKind::Penalty(e) => self.penalty(e),
            StmtKind::AfterStep(body) => {
                self.needs_block("after step", body.span)?;
                let (counts, call) = (self.counts.clone(), self.call());
                let known = call.scopes.iter().flatten().filter(|(_, v)| !v.has_tensor());
                let constants = known.map(|(n, v)| (n.clone(), v.clone())).collect();
                let slots = call.slots.iter().filter(|s| s.depth == counts.len()).cloned().collect();
                let (body, file, rests) = (body.clone(), call.file, call.rests.clone());
                self.after_steps.push(AfterStep { body, file, counts, slots, constants, rests });
                Ok(())
            }
        }
    }

    fn let_names(&mut self, names: &[ast::Ident], ty: Option<&ast::Type>, value: &ast::Expr) -> Result<(), Stop> {
        let v = self.expr(value).and_then(|v| match ty {
            Some(ty) => self.fit(&format!("'{}'", names.first().map_or("_", |n| &n.node)), ty, v, value.span),
            None => Ok(v),
        });
        let parts = v.and_then(|v| self.unpack(v, names.len(), value.span));
        let failed = parts.is_err();
        let parts = parts.unwrap_or_else(|_| vec![Val::Error; names.len()]);
        for (n, v) in names.iter().zip(parts) {
            if let Val::Tensor(t) = &v {
                if let Some(ty) = ty {
                    self.written.insert(*t, ty.span);
                }
                self.outline(&|e| format!("let {}: {}", n.node, e.describe(&v)));
            }
            self.define(&n.node, v);
        }
        if failed { Err(Stop) } else { Ok(()) }
    }

    fn unpack(&mut self, v: Val, n: usize, at: Span) -> Result<Vec<Val>, Stop> {
        let found = match v {
            v if n == 1 => return Ok(vec![v]),
            Val::Tuple(parts) if parts.len() == n => return Ok(parts),
            Val::Tuple(parts) => format!("a tuple of {}", parts.len()),
            v => self.describe(&v),
        };
        let (what, expected) = ("the value".into(), format!("a tuple of {n}"));
        self.fail(at, HirError::Mismatch { what, expected, found, help: None, at: at.into() })
    }

    fn assign(&mut self, name: &ast::Ident, v: Val, at: Span) -> Result<(), Stop> {
        if name.node == "_" {
            return Ok(());
        }
        let Some(old) = self.variable(&name.node).cloned() else { return self.unknown("variable", name) };
        let call = self.call();
        let is_outermost = !call.scopes[1..].iter().any(|s| s.contains_key(&name.node));
        let refused = match &call.assignable {
            Some(states) if is_outermost && !states.contains(&name.node) => Some((
                format!("an assignment to '{}'", name.node),
                "in `after step` the states of the block are assigned, and its `let` names",
            )),
            None if matches!(old, Val::Tensor(t) if call.slots.iter().any(|s| s.role == Role::State && s.value == t)) => Some((
                format!("an assignment to the state '{}'", name.node),
                "states change once per step: assign it in `after step { … }`",
            )),
            Some(_) | None => None,
        };
        if let Some((what, help)) = refused {
            return self.fail(name.span, HirError::Place { what, help, at: name.span.into() });
        }
        let (expected, found) = match (&old, &v) {
            (Val::Error, _) => return Err(Stop),
            (Val::Tensor(a), Val::Tensor(b)) => (self.frames.ty(*a).to_string(), self.frames.ty(*b).to_string()),
            (a, b) => (a.kind().to_string(), b.kind().to_string()),
        };
        if expected != found {
            let what = format!("the new value of '{}'", name.node);
            let help = Some("an assignment keeps the type; use `let` for another".into());
            return self.fail(at, HirError::Mismatch { what, expected, found, help, at: at.into() });
        }
        self.set(&name.node, v);
        Ok(())
    }
    fn set(&mut self, name: &str, v: Val) {
        if let Some(scope) = self.call().scopes.iter_mut().rev().find(|s| s.contains_key(name)) {
            scope.insert(name.into(), v);
        }
    }

    // --- loops ---

    fn repeat(&mut self, count: &ast::Expr, label: Option<&ast::Path>, body: &ast::Body, at: Span) -> Result<(), Stop> {
        let n = self.int(count, "the number of turns")?;
        if n < 0 {
            return self.shape_error("repeat", OpError(format!("{n} turns")), count.span);
        }
        let carried = self.carried(body)?;
        if n == 0 {
            return Ok(());
        }
        let depth = self.path.len();
        match label {
            Some(label) => self.push_label(label)?,
            None => self.path.push("layers".into()),
        }
        let key = self.path.join(".");
        let start = self.turns.get(&key).copied().unwrap_or(0);
        self.turns.insert(key.clone(), start.saturating_add(n));
        self.path.push(if start == 0 { "*".into() } else { format!("*+{start}") });
        self.outline(&|_| format!("repeat {n} as {key}"));
        self.counts.push(n);
        let outer: Vec<TensorVal> = carried.iter().map(|(_, t)| *t).collect();
        let inner = self.frames.enter(&outer);
        self.call().scopes.push(carried.iter().zip(&inner).map(|((n, _), t)| (n.clone(), Val::Tensor(*t))).collect());
        let (tallies, penalties, slots) = (self.tallies.len(), self.penalties.len(), self.call().slots.len());
        let outcome = self.body(body);
        let scope = self.call().scopes.pop().expect("the body's scope");
        self.call().slots.truncate(slots);
        self.counts.pop();
        self.path.truncate(depth);
        if outcome.is_err() {
            self.frames.abandon();
            self.tallies.truncate(tallies);
            self.penalties.truncate(penalties);
            carried.iter().for_each(|(name, _)| self.set(name, Val::Error));
            return Err(Stop);
        }
        let next: Vec<TensorVal> = carried
            .iter()
            .zip(inner)
            .map(|((name, _), t)| if let Some(Val::Tensor(v)) = scope.get(name) { *v } else { t })
            .collect();
        let stacks: Vec<TensorVal> =
            self.tallies[tallies..].iter().map(|t| t.value).chain(self.penalties[penalties..].iter().copied()).collect();
        self.frames.origin = Some(at);
        let results = match self.frames.leave(n, &next, &stacks) {
            Ok(results) => results,
            Err(e) => {
                self.tallies.truncate(tallies);
                self.penalties.truncate(penalties);
                return self.shape_error("repeat", e, at);
            }
        };
        let (last, stacks) = results.split_at(carried.len());
        for ((name, _), t) in carried.iter().zip(last) {
            self.set(name, Val::Tensor(*t));
        }
        let (of_tallies, of_penalties) = stacks.split_at(self.tallies.len() - tallies);
        for (t, value) in self.tallies[tallies..].iter_mut().zip(of_tallies) {
            t.value = *value;
            t.ty = stacked(&t.ty, &[n]);
        }
        for (p, t) in self.penalties[penalties..].iter_mut().zip(of_penalties) {
            *p = self.frames.op(Op::Reduce(ReduceFn::Sum, vec![0]), &[*t]);
        }
        Ok(())
    }

    /// The tensors that a loop's body assigns and that live outside of it, in order of assignment.
    fn carried(&mut self, body: &ast::Body) -> Result<Vec<(String, TensorVal)>, Stop> {
        let mut out: Vec<(String, TensorVal)> = Vec::new();
        for name in crate::assigned::assigned(body) {
            match self.variable(&name.node) {
                // A state is not assigned here; the assignment itself reports it.
                Some(Val::Tensor(t)) if self.is_state(*t) => {}
                Some(Val::Tensor(t)) => out.push((name.node, *t)),
                Some(Val::Error) => return Err(Stop),
                Some(v) => {
                    let what = format!("the assignment of {} in a `repeat`", v.kind());
                    let help = "the turns of a loop are alike: only tensors are carried from one to the next";
                    return self.fail(name.span, HirError::Place { what, help, at: name.span.into() });
                }
                // So does that of a name that is unknown.
                None => {}
            }
        }
        Ok(out)
    }

    fn is_state(&self, t: TensorVal) -> bool {
        self.calls.last().is_some_and(|c| c.slots.iter().any(|s| s.role == Role::State && s.value == t))
    }

    // --- declarations ---

    pub fn needs_block(&mut self, what: &str, at: Span) -> Result<(), Stop> {
        if self.calls.last().is_some_and(|c| c.kind == ast::FuncKind::Fn) {
            let help = "only blocks and models have parameters and state";
            return self.fail(at, HirError::Place { what: what.into(), help, at: at.into() });
        }
        Ok(())
    }
    fn full_name(&self, parts: &[ast::Ident]) -> String {
        self.path.iter().map(String::as_str).chain(parts.iter().map(|p| p.node.as_str())).collect::<Vec<_>>().join(".")
    }
    /// A whole name, once, of something whose extents are constants.
    fn reserve(&mut self, what: &str, parts: &[ast::Ident], ty: &TensorType, at: Span) -> Result<String, Stop> {
        let name = self.full_name(parts);
        if let Some(d) = ty.shape.iter().find(|d| d.known().is_none() && !self.opaque) {
            return self.not_constant(format!("the extent {d} of {what} {name}"), at);
        }
        if !self.declared.insert(name.clone()) {
            return self.fail(at, HirError::ParamTwice { name, at: at.into() });
        }
        Ok(name)
    }
    /// Records a parameter or state; its whole name and stacked type.
    fn declare(&mut self, d: &ast::Declared, ty: &TensorType, role: Role) -> Result<(String, TensorType), Stop> {
        let at = d.path.span;
        let splits = d.path.parts.iter().filter(|p| p.node == "*").count();
        if splits > ty.rank() {
            let help = "each `*` takes up one leading axis";
            let what = format!("a name with {splits} `*` of a tensor of rank {}", ty.rank());
            return self.fail(at, HirError::Place { what, help, at: at.into() });
        }
        let init = self.init(d.init.as_deref())?;
        let what = if role == Role::State { "state" } else { "parameter" };
        let name = self.reserve(what, &d.path.parts, ty, at)?;
        let stack = stacked(ty, &self.counts);
        let decay = role == Role::Param && !d.nodecay && ty.rank() - splits >= 2;
        self.params.push(ParamDecl { name: name.clone(), ty: stack.clone(), init, decay, role });
        Ok((name, stack))
    }
    fn init(&mut self, e: Option<&ast::Expr>) -> Result<Init, Stop> {
        let Some(e) = e else { return Ok(Init::Normal(0.02)) };
        match self.expr(e)? {
            Val::Init(init) => Ok(init),
            v => {
                let found = self.describe(&v);
                let (what, expected) = ("the initialiser".into(), "normal(std), uniform(a), zeros, ones or constant(c)".into());
                self.fail(e.span, HirError::Mismatch { what, expected, found, help: None, at: e.span.into() })
            }
        }
    }
    /// A declared type; without a dtype it has `default`, and the second result is false.
    fn declared_type(&mut self, ty: &ast::Type, default: DType) -> Result<(TensorType, bool), Stop> {
        let written = matches!(ty.kind, ast::TypeKind::Tensor { dtype: Some(_), .. });
        let mut t = self.tensor_type(ty)?;
        if !written {
            t.dtype = default;
        }
        Ok((t, written))
    }

    pub fn param(&mut self, d: &ast::Declared) -> Result<Val, Stop> {
        self.needs_block("param", d.path.span)?;
        let (ty, written) = self.declared_type(&d.ty, self.modules.storage)?;
        if !ty.dtype.is_float() {
            let (what, found) = ("a parameter".into(), ty.to_string());
            let help = Some("integers have no gradient; use `state`".into());
            let expected = "a tensor of floats".into();
            return self.fail(d.ty.span, HirError::Mismatch { what, expected, found, help, at: d.ty.span.into() });
        }
        let (name, stack) = self.declare(d, &ty, Role::Param)?;
        self.frames.origin = Some(d.path.span);
        let t = self.frames.entry_arg(&name, Role::Param, &stack);
        let mut t = self.frames.slice(t);
        if !written && ty.dtype != self.modules.compute {
            t = self.frames.op(Op::Cast(self.modules.compute), &[t]);
        }
        self.written.insert(t, d.ty.span);
        self.define(local(&d.path), Val::Tensor(t));
        Ok(Val::Tensor(t))
    }

    fn state(&mut self, d: &ast::Declared) -> Result<(), Stop> {
        self.needs_block("state", d.path.span)?;
        let (ty, _) = self.declared_type(&d.ty, DType::F32)?;
        let (name, stack) = self.declare(d, &ty, Role::State)?;
        let t = self.frames.entry_arg(&name, Role::State, &stack);
        let t = self.frames.slice(t);
        self.written.insert(t, d.ty.span);
        self.add_slot(Role::State, local(&d.path), name, stack, t);
        Ok(())
    }

    fn tally(&mut self, name: &ast::Ident, ty: &ast::Type, value: &ast::Expr) -> Result<(), Stop> {
        self.needs_block("tally", name.span)?;
        let (ty, _) = self.declared_type(ty, DType::F32)?;
        let v = self.expr(value)?;
        let t = self.scalar_tensor(&v, ty.dtype, value.span)?;
        let t = if self.frames.ty(t).dtype == ty.dtype { t } else { self.frames.op(Op::Cast(ty.dtype), &[t]) };
        if *self.frames.ty(t) != ty {
            let (what, found) = (format!("the tally '{}'", name.node), self.frames.ty(t).to_string());
            let error = HirError::Mismatch { what, expected: ty.to_string(), found, help: None, at: value.span.into() };
            return self.misfit(value.span, error, &[t]);
        }
        let t = self.frames.op(Op::StopGradient, &[t]);
        let full = self.reserve("tally", std::slice::from_ref(name), &ty, name.span)?;
        let stack = stacked(&ty, &self.counts);
        self.tallies.push(Tally { name: full.clone(), value: t, ty });
        self.add_slot(Role::Tally, &name.node, full, stack, t);
        Ok(())
    }

    fn add_slot(&mut self, role: Role, local: &str, name: String, ty: TensorType, value: TensorVal) {
        let depth = self.counts.len();
        self.define(local, Val::Tensor(value));
        self.call().slots.push(Slot { role, local: local.into(), name, ty, depth, value });
    }

    fn penalty(&mut self, e: &ast::Expr) -> Result<(), Stop> {
        self.needs_block("penalty", e.span)?;
        let v = self.expr(e)?;
        let t = self.scalar_tensor(&v, DType::F32, e.span)?;
        if self.frames.ty(t).rank() != 0 {
            let (what, expected) = ("a penalty".into(), "a scalar".into());
            let found = self.frames.ty(t).to_string();
            let help = Some("sum or average it".into());
            return self.fail(e.span, HirError::Mismatch { what, expected, found, help, at: e.span.into() });
        }
        let is_f32 = self.frames.ty(t).dtype == DType::F32;
        let t = if is_f32 { t } else { self.node1("penalty", Op::Cast(DType::F32), &[t], e.span)? };
        self.penalties.push(t);
        Ok(())
    }
}

/// The name in the block: the last part.
fn local(path: &ast::Path) -> &str {
    path.parts.last().map_or("_", |p| &p.node)
}
