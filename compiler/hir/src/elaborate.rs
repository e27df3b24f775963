//! Elaboration: bodies are evaluated for the types and compile-time values of a call; tensors become nodes of the graph.

use crate::{
    Program, builtins,
    error::HirError,
    frame::{Frames, stacked},
    modules::{Constant, Definition, Modules, Scope, suggest},
    value::{TensorVal, Val},
};
use base::{DType, Diags, Dim, FileId, Span, TensorType, ty::ShapeDisplay};
use graph::{
    Op, OpError, ParamDecl, Role,
    ir::Init,
    op::{Contract, MapFn},
};
use std::collections::{BTreeMap, BTreeSet};
use syntax::ast::{self, BinaryOp, ExprKind, StmtKind, UnaryOp};

/// A mistake was reported (or a definition's check ended); the enclosing statement is given up.
#[derive(Clone, Copy, Debug)]
pub struct Stop;

/// Calls inside calls; recursion ends here.
const MAX_CALLS: usize = 64;

/// The names of one call.
pub(crate) struct Call {
    file: FileId,
    kind: ast::FuncKind,
    scopes: Vec<BTreeMap<String, Val>>,
    rests: BTreeMap<String, Vec<Dim>>,
}

/// A sum over micro-batches.
#[derive(Clone)]
pub(crate) struct Tally {
    pub name: String,
    /// Stacked over the repeats around.
    pub value: TensorVal,
    pub ty: TensorType,
}

/// An `after step` block and what it sees.
#[derive(Clone)]
pub(crate) struct AfterStep {
    pub body: ast::Body,
    pub file: FileId,
    /// Turns of the repeats around.
    pub counts: Vec<i64>,
    /// Local name, declared name and stacked type of states and tallies.
    pub states: Vec<(String, String, TensorType)>,
    pub tallies: Vec<(String, String, TensorType)>,
    /// Compile-time values in scope.
    pub constants: Vec<(String, Val)>,
}

/// Elaborates one entry point.
pub(crate) struct Elaborator<'a> {
    pub modules: &'a Modules,
    pub diags: &'a mut Diags,
    pub frames: Frames,
    /// Whether this checks a definition, with generic values unknown.
    pub opaque: bool,
    calls: Vec<Call>,
    path: Vec<String>,
    counts: Vec<i64>,
    pub params: Vec<ParamDecl>,
    declared: BTreeSet<String>,
    /// Turns so far of repeats with one label, by path.
    turns: BTreeMap<String, i64>,
    pub tallies: Vec<Tally>,
    pub penalties: Vec<TensorVal>,
    pub after_steps: Vec<AfterStep>,
    local_states: Vec<(String, String, TensorType)>,
    local_tallies: Vec<(String, String, TensorType)>,
    pub outline: String,
}

/// The program of resolved modules, or `None` after a mistake.
pub(crate) fn program(modules: &Modules, diags: &mut Diags) -> Option<Program> {
    let model = &modules.model;
    let root = &modules.scopes[&modules.root];
    let mut e = Elaborator::new(modules, diags);
    e.enter_file(model);
    let mut inputs = Vec::new();
    let mut args = Vec::new();
    for p in &model.func.params {
        let ty = e.tensor_type(&p.ty).ok()?;
        args.push((p.name.node.clone(), Val::Tensor(e.frames.entry_arg(&p.name.node, Role::Input, &ty))));
        inputs.push((Role::Input, p.name.node.clone(), ty));
    }
    let result = e.body_of(model, args, model.func.name.span).ok()?;
    let mut outputs = Vec::new();
    match result {
        Val::Tensor(t) => outputs.push(("output".to_string(), Role::Result, t)),
        Val::Tuple(parts) => {
            for (i, part) in parts.iter().enumerate() {
                if let Val::Tensor(t) = part {
                    outputs.push((format!("output{i}"), Role::Result, *t));
                }
            }
        }
        _ => {}
    }
    let (params, outline) = (std::mem::take(&mut e.params), std::mem::take(&mut e.outline));
    let all: Vec<_> = params.iter().map(|p| (p.role, p.name.clone(), p.ty.clone())).chain(inputs).collect();
    let frames = std::mem::replace(&mut e.frames, Frames::new());
    let mut module = graph::Module { name: model.func.name.node.clone(), params, funcs: Vec::new() };
    if !outputs.is_empty() {
        module.funcs.push(frames.finish("forward", &all, outputs));
    }
    let mut settings = BTreeMap::new();
    if let Some(train) = modules.train.clone() {
        crate::train::entries(modules, &train, &mut module, &mut settings, diags)?;
    }
    Some(Program { module, dims: root.dims.clone(), config: root.config.clone(), settings, outline })
}

impl<'a> Elaborator<'a> {
    pub fn new(modules: &'a Modules, diags: &'a mut Diags) -> Self {
        Elaborator {
            modules,
            diags,
            frames: Frames::new(),
            opaque: false,
            calls: Vec::new(),
            path: Vec::new(),
            counts: Vec::new(),
            params: Vec::new(),
            declared: BTreeSet::new(),
            turns: BTreeMap::new(),
            tallies: Vec::new(),
            penalties: Vec::new(),
            after_steps: Vec::new(),
            local_states: Vec::new(),
            local_tallies: Vec::new(),
            outline: String::new(),
        }
    }
    /// A call frame in the file of `def`, so that its types can be evaluated.
    pub fn enter_file(&mut self, def: &Definition) {
        self.push_call(def.file, def.func.kind);
    }
    pub fn push_call(&mut self, file: FileId, kind: ast::FuncKind) {
        self.calls.push(Call { file, kind, scopes: vec![BTreeMap::new()], rests: BTreeMap::new() });
    }
    pub fn pop_call(&mut self) {
        self.calls.pop();
    }
    fn call(&mut self) -> &mut Call {
        self.calls.last_mut().expect("inside a call")
    }
    pub fn scope(&self) -> &Scope {
        &self.modules.scopes[&self.calls.last().map_or(self.modules.root, |c| c.file)]
    }
    pub fn define(&mut self, name: &str, value: Val) {
        if name != "_" {
            self.call().scopes.last_mut().expect("a scope").insert(name.into(), value);
        }
    }
    pub fn rest(&self, name: &str) -> Option<Vec<Dim>> {
        self.calls.last()?.rests.get(name).cloned()
    }
    pub fn bind_rest(&mut self, name: &str, dims: Vec<Dim>) {
        self.call().rests.insert(name.into(), dims);
    }
    pub fn lookup(&self, name: &str) -> Option<Val> {
        let call = self.calls.last()?;
        if let Some(v) = call.scopes.iter().rev().find_map(|s| s.get(name)) {
            return Some(v.clone());
        }
        let scope = self.scope();
        if let Some((_, c)) = scope.config.iter().find(|(n, _)| n == name) {
            return Some(match c {
                Constant::Int(n) => Val::Int(Dim::from(*n)),
                Constant::Float(x) => Val::Float(*x),
                Constant::Bool(b) => Val::Bool(*b),
                Constant::Str(s) => Val::Str(s.clone()),
            });
        }
        if scope.dims.iter().any(|d| d == name) {
            return Some(Val::Int(Dim::sym(name)));
        }
        name.parse().ok().map(Val::DType)
    }

    pub fn fail<T>(&mut self, at: Span, error: HirError) -> Result<T, Stop> {
        self.diags.push(at, error);
        Err(Stop)
    }
    pub fn unknown<T>(&mut self, what: &'static str, name: &ast::Ident) -> Result<T, Stop> {
        let mut known: BTreeSet<String> =
            self.calls.iter().last().into_iter().flat_map(|c| c.scopes.iter().flat_map(|s| s.keys().cloned())).collect();
        let scope = self.scope();
        known.extend(scope.config.iter().map(|(n, _)| n.clone()));
        known.extend(scope.dims.iter().cloned());
        if what == "function" {
            known = scope.funcs.keys().cloned().chain(builtins::NAMES.iter().map(|n| n.to_string())).collect();
        }
        let help = suggest(&name.node, known.iter().map(String::as_str));
        self.fail(name.span, HirError::Unknown { what, name: name.node.clone(), help, at: name.span.into() })
    }
    /// The need for a value that a definition's check does not have ends it; elsewhere it is a mistake.
    pub fn not_constant<T>(&mut self, what: impl Into<String>, at: Span) -> Result<T, Stop> {
        if self.opaque { Err(Stop) } else { self.fail(at, HirError::NotConstant { what: what.into(), at: at.into() }) }
    }
    pub fn describe(&self, v: &Val) -> String {
        match v {
            Val::Tensor(t) => self.frames.ty(*t).to_string(),
            Val::Int(d) => format!("the int {d}"),
            v => v.kind().into(),
        }
    }
    /// A type or extent as it is written.
    pub fn source_of(&self, span: Span) -> String {
        self.modules.texts[&span.file][span.start as usize..span.end as usize].split_whitespace().collect::<Vec<_>>().join(" ")
    }
    /// Reports an op that does not take its operands.
    pub fn shape_error<T>(&mut self, func: &str, e: OpError, at: Span) -> Result<T, Stop> {
        self.fail(at, HirError::Shape { func: func.into(), why: e.0, at: at.into() })
    }
    /// A node; a misfit is the user's mistake at `at`.
    pub fn node(&mut self, func: &str, op: Op, operands: &[TensorVal], at: Span) -> Result<Vec<TensorVal>, Stop> {
        self.frames.origin = Some(at);
        match self.frames.apply(op, operands) {
            Ok(results) => Ok(results),
            Err(e) => self.shape_error(func, e, at),
        }
    }
    pub fn node1(&mut self, func: &str, op: Op, operands: &[TensorVal], at: Span) -> Result<TensorVal, Stop> {
        self.node(func, op, operands, at).map(|r| r[0])
    }

    // --- functions ---

    /// The value of a function's body for these arguments, in the call frame already entered.
    pub fn body_of(&mut self, def: &Definition, args: Vec<(String, Val)>, at: Span) -> Result<Val, Stop> {
        args.into_iter().for_each(|(n, v)| self.define(&n, v));
        let before = self.diags.len();
        let value = self.body(&def.func.body);
        if self.diags.len() > before {
            return Err(Stop);
        }
        let value = value?;
        let at = def.func.body.value.as_ref().map_or(at, |v| v.span);
        self.result(&def.func.result, value, &def.func.name.node, at)
    }
    fn result(&mut self, ty: &ast::Type, value: Val, func: &str, at: Span) -> Result<Val, Stop> {
        match (&ty.kind, value) {
            (ast::TypeKind::Tuple(types), Val::Tuple(parts)) if types.len() == parts.len() => {
                let parts: Result<Vec<Val>, Stop> = types.iter().zip(parts).map(|(t, v)| self.result(t, v, func, at)).collect();
                Ok(Val::Tuple(parts?))
            }
            (_, value) => self.bind_param(&format!("the result of {func}"), ty, value, at),
        }
    }

    fn call_function(
        &mut self,
        def: &Definition,
        args: &[ast::Arg],
        label: Option<&ast::Path>,
        name: &ast::Ident,
        at: Span,
    ) -> Result<Val, Stop> {
        let func = def.func.clone();
        if self.calls.len() >= MAX_CALLS {
            let why = "calls itself, or calls nest too deeply".into();
            return self.fail(at, HirError::Arguments { func: name.node.clone(), why, help: None, at: at.into() });
        }
        let is_block = func.kind != ast::FuncKind::Fn;
        if is_block && self.calls.last().is_some_and(|c| c.kind == ast::FuncKind::Fn) {
            let help = "make the caller a block: only blocks have parameters";
            return self.fail(at, HirError::Place { what: "a block's call in a fn", help, at: at.into() });
        }
        let mut given: Vec<Option<(Val, Span)>> = vec![None; func.params.len()];
        for (i, arg) in args.iter().enumerate() {
            let slot = match &arg.name {
                Some(n) => func.params.iter().position(|p| p.name.node == n.node),
                None => Some(i).filter(|i| *i < given.len()),
            };
            let wrong = |why: String| HirError::Arguments {
                func: name.node.clone(),
                why,
                help: Some(format!(
                    "it takes ({})",
                    func.params.iter().map(|p| p.name.node.as_str()).collect::<Vec<_>>().join(", ")
                )),
                at: arg.value.span.into(),
            };
            let Some(slot) = slot else {
                let why = arg
                    .name
                    .as_ref()
                    .map_or(format!("takes {} arguments", func.params.len()), |n| format!("has no parameter '{}'", n.node));
                return self.fail(arg.value.span, wrong(why));
            };
            if given[slot].is_some() {
                return self.fail(arg.value.span, wrong(format!("gets '{}' twice", func.params[slot].name.node)));
            }
            given[slot] = Some((self.expr(&arg.value)?, arg.value.span));
        }
        let depth = self.path.len();
        if is_block {
            match label {
                Some(l) if l.parts.len() == 1 && l.parts[0].node == "_" => {}
                Some(l) => self.path.extend(l.parts.iter().map(|p| p.node.clone())),
                // The model itself adds nothing: its parameters have the names the model file gives them.
                None if func.kind == ast::FuncKind::Model => {}
                None => self.path.push(name.node.clone()),
            }
        }
        self.enter_file(def);
        let states = (std::mem::take(&mut self.local_states), std::mem::take(&mut self.local_tallies));
        let outcome = self.bind_and_run(def, given, name, at);
        (self.local_states, self.local_tallies) = states;
        self.pop_call();
        self.path.truncate(depth);
        let value = outcome?;
        let indent = "  ".repeat(self.calls.len());
        let line = format!("{indent}{} -> {}\n", name.node, self.describe(&value));
        self.outline.push_str(&line);
        Ok(value)
    }
    fn bind_and_run(
        &mut self,
        def: &Definition,
        given: Vec<Option<(Val, Span)>>,
        name: &ast::Ident,
        at: Span,
    ) -> Result<Val, Stop> {
        let mut args = Vec::new();
        for (p, given) in def.func.params.iter().zip(given) {
            let (value, span) = match (given, &p.default) {
                (Some(g), _) => g,
                (None, Some(d)) => (self.expr(d)?, at),
                (None, None) => {
                    let why = format!("misses '{}'", p.name.node);
                    return self.fail(at, HirError::Arguments { func: name.node.clone(), why, help: None, at: at.into() });
                }
            };
            let value = self.bind_param(&format!("'{}' of {}", p.name.node, name.node), &p.ty, value, span)?;
            self.define(&p.name.node, value.clone());
            args.push((p.name.node.clone(), value));
        }
        self.body_of(def, args, at)
    }

    // --- statements ---

    /// Runs a body in a scope of its own. Statements after a mistake are still looked at.
    pub fn body(&mut self, body: &ast::Body) -> Result<Val, Stop> {
        self.call().scopes.push(BTreeMap::new());
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
            StmtKind::Let { names, ty, value } => {
                let v = self.expr(value).and_then(|v| match ty {
                    Some(ty) => self.bind_param(&format!("'{}'", names[0].node), ty, v, value.span),
                    None => Ok(v),
                });
                let parts = match v {
                    Ok(v) => self.unpack(v, names.len(), value.span),
                    Err(stop) => Err(stop),
                };
                let failed = parts.is_err();
                let parts = parts.unwrap_or_else(|_| vec![Val::Error; names.len()]);
                names.iter().zip(parts).for_each(|(n, v)| self.define(&n.node, v));
                if failed { Err(Stop) } else { Ok(()) }
            }
            StmtKind::Assign { names, value } => {
                let parts = self.expr(value).and_then(|v| self.unpack(v, names.len(), value.span))?;
                for (n, v) in names.iter().zip(parts) {
                    self.assign(n, v, value.span)?;
                }
                Ok(())
            }
            StmtKind::Repeat { count, label, body } => self.repeat(count, label.as_ref(), body, stmt.span),
            StmtKind::Expr(e) => self.expr(e).map(|_| ()),
            StmtKind::State(d) => {
                self.needs_block("state", d.path.span)?;
                let ty = self.tensor_type(&d.ty)?;
                let init = self.init(d.init.as_deref())?;
                let (name, stack) = self.declare(&d.path, &ty, init, false, Role::State)?;
                let local = d.path.parts[d.path.parts.len() - 1].node.clone();
                let t = self.frames.entry_arg(&name, Role::State, &stack);
                let t = self.frames.slice(t);
                self.local_states.push((local.clone(), name, stack));
                self.define(&local, Val::Tensor(t));
                Ok(())
            }
            StmtKind::Tally { name, ty, value } => {
                self.needs_block("tally", name.span)?;
                let ty = self.tensor_type(ty)?;
                let v = self.expr(value)?;
                let t = self.scalar_tensor(&v, ty.dtype, value.span)?;
                let t = if self.frames.ty(t).dtype == ty.dtype { t } else { self.frames.op(Op::Cast(ty.dtype), &[t]) };
                if *self.frames.ty(t) != ty {
                    let found = self.frames.ty(t).to_string();
                    let what = format!("the tally '{}'", name.node);
                    return self.fail(
                        value.span,
                        HirError::Mismatch { what, expected: ty.to_string(), found, help: None, at: value.span.into() },
                    );
                }
                let t = self.frames.op(Op::StopGradient, &[t]);
                let full = self.full_name(std::slice::from_ref(name));
                let stack = stacked(&ty, &self.counts);
                self.local_tallies.push((name.node.clone(), full.clone(), stack));
                self.tallies.push(Tally { name: full, value: t, ty });
                self.define(&name.node, Val::Tensor(t));
                Ok(())
            }
            StmtKind::Penalty(e) => {
                self.needs_block("penalty", e.span)?;
                let v = self.expr(e)?;
                let t = self.scalar_tensor(&v, DType::F32, e.span)?;
                let t = if self.frames.ty(t).dtype == DType::F32 {
                    t
                } else {
                    self.node1("penalty", Op::Cast(DType::F32), &[t], e.span)?
                };
                if self.frames.ty(t).rank() != 0 {
                    let found = self.frames.ty(t).to_string();
                    let help = Some("sum or average it".into());
                    return self.fail(
                        e.span,
                        HirError::Mismatch {
                            what: "a penalty".into(),
                            expected: "a scalar".into(),
                            found,
                            help,
                            at: e.span.into(),
                        },
                    );
                }
                self.penalties.push(t);
                Ok(())
            }
            StmtKind::AfterStep(body) => {
                self.needs_block("after step", body.span)?;
                let constants = self
                    .call()
                    .scopes
                    .iter()
                    .flatten()
                    .filter(|(_, v)| !matches!(v, Val::Tensor(_) | Val::Domain(_) | Val::Rows(_)));
                let constants: Vec<(String, Val)> = constants.map(|(n, v)| (n.clone(), v.clone())).collect();
                self.after_steps.push(AfterStep {
                    body: body.clone(),
                    file: self.calls.last().expect("inside a call").file,
                    counts: self.counts.clone(),
                    states: self.local_states.clone(),
                    tallies: self.local_tallies.clone(),
                    constants,
                });
                Ok(())
            }
        }
    }
    fn needs_block(&mut self, what: &'static str, at: Span) -> Result<(), Stop> {
        if self.calls.last().is_some_and(|c| c.kind == ast::FuncKind::Fn) {
            return self
                .fail(at, HirError::Place { what, help: "only blocks and models have parameters and state", at: at.into() });
        }
        Ok(())
    }
    fn unpack(&mut self, v: Val, n: usize, at: Span) -> Result<Vec<Val>, Stop> {
        match v {
            v if n == 1 => Ok(vec![v]),
            Val::Tuple(parts) if parts.len() == n => Ok(parts),
            v => {
                let found = if let Val::Tuple(p) = &v { format!("a tuple of {}", p.len()) } else { self.describe(&v) };
                self.fail(
                    at,
                    HirError::Mismatch {
                        what: "the value".into(),
                        expected: format!("a tuple of {n}"),
                        found,
                        help: None,
                        at: at.into(),
                    },
                )
            }
        }
    }
    pub fn assign(&mut self, name: &ast::Ident, v: Val, at: Span) -> Result<(), Stop> {
        let Some(old) = self.calls.last().and_then(|c| c.scopes.iter().rev().find_map(|s| s.get(&name.node))).cloned() else {
            return self.unknown("variable", name);
        };
        if let (Val::Tensor(a), Val::Tensor(b)) = (&old, &v)
            && self.frames.ty(*a) != self.frames.ty(*b)
        {
            let (expected, found) = (self.frames.ty(*a).to_string(), self.frames.ty(*b).to_string());
            let what = format!("the new value of '{}'", name.node);
            let help = Some("an assignment keeps the type; use `let` for another".into());
            return self.fail(at, HirError::Mismatch { what, expected, found, help, at: at.into() });
        }
        let scope = self.call().scopes.iter_mut().rev().find(|s| s.contains_key(&name.node));
        scope.expect("found above").insert(name.node.clone(), v);
        Ok(())
    }

    fn repeat(&mut self, count: &ast::Expr, label: Option<&ast::Path>, body: &ast::Body, at: Span) -> Result<(), Stop> {
        let n = self.int(count, "the number of turns")?;
        if n < 0 {
            return self.fail(
                count.span,
                HirError::NotConstant { what: "a number of turns that is not negative".into(), at: count.span.into() },
            );
        }
        if n == 0 {
            return Ok(());
        }
        let names = assigned(body);
        let mut carried = Vec::new();
        for name in &names {
            match self.calls.last().and_then(|c| c.scopes.iter().rev().find_map(|s| s.get(name))) {
                Some(Val::Tensor(t)) => carried.push((name.clone(), *t)),
                Some(Val::Error) => return Err(Stop),
                _ => {}
            }
        }
        let depth = self.path.len();
        match label {
            Some(l) if l.parts.len() == 1 && l.parts[0].node == "_" => {}
            Some(l) => self.path.extend(l.parts.iter().map(|p| p.node.clone())),
            None => self.path.push("layers".into()),
        }
        let key = self.path.join(".");
        let start = self.turns.get(&key).copied().unwrap_or(0);
        self.turns.insert(key, start + n);
        self.path.push(if start == 0 { "*".into() } else { format!("*+{start}") });
        self.counts.push(n);
        let outer: Vec<TensorVal> = carried.iter().map(|(_, t)| *t).collect();
        let inner = self.frames.enter(&outer);
        self.call().scopes.push(carried.iter().zip(&inner).map(|((n, _), t)| (n.clone(), Val::Tensor(*t))).collect());
        let (tallies, penalties) = (self.tallies.len(), self.penalties.len());
        let outcome = self.body(body);
        let scope = self.call().scopes.pop().expect("the body's scope");
        self.counts.pop();
        self.path.truncate(depth);
        if outcome.is_err() {
            self.frames.abandon();
            self.tallies.truncate(tallies);
            self.penalties.truncate(penalties);
            for (name, _) in &carried {
                self.set(name, Val::Error);
            }
            return Err(Stop);
        }
        let mut next = Vec::new();
        for (name, t) in &carried {
            match scope.get(name) {
                Some(Val::Tensor(v)) => next.push(*v),
                _ => next.push(*t),
            }
        }
        let stacks: Vec<TensorVal> =
            self.tallies[tallies..].iter().map(|t| t.value).chain(self.penalties[penalties..].iter().copied()).collect();
        self.frames.origin = Some(at);
        let results = match self.frames.leave(n, &next, &stacks) {
            Ok(results) => results,
            Err(e) => return self.shape_error("repeat", e, at),
        };
        for ((name, _), t) in carried.iter().zip(&results) {
            self.set(name, Val::Tensor(*t));
        }
        let mut stacks = results[carried.len()..].iter().copied();
        for t in &mut self.tallies[tallies..] {
            t.value = stacks.next().expect("a stack for each tally");
            t.ty = stacked(&t.ty, &[n]);
        }
        let rest: Vec<TensorVal> = stacks.collect();
        for (p, t) in self.penalties[penalties..].iter_mut().zip(rest) {
            *p = self.frames.op(Op::Reduce(graph::op::ReduceFn::Sum, vec![0]), &[t]);
        }
        Ok(())
    }
    fn set(&mut self, name: &str, v: Val) {
        if let Some(scope) = self.call().scopes.iter_mut().rev().find(|s| s.contains_key(name)) {
            scope.insert(name.into(), v);
        }
    }

    // --- parameters ---

    fn full_name(&self, parts: &[ast::Ident]) -> String {
        self.path.iter().map(String::as_str).chain(parts.iter().map(|p| p.node.as_str())).collect::<Vec<_>>().join(".")
    }
    /// Records a parameter or state; its full name and stacked type.
    fn declare(
        &mut self,
        path: &ast::Path,
        ty: &TensorType,
        init: Init,
        nodecay: bool,
        role: Role,
    ) -> Result<(String, TensorType), Stop> {
        let name = self.full_name(&path.parts);
        let splits = path.parts.iter().filter(|p| p.node == "*").count();
        if let Some(d) = ty.shape.iter().find(|d| d.known().is_none_or(|n| n < 0)) {
            let what = format!("the extent {d} of parameter {name}");
            return self.not_constant(what, path.span);
        }
        if splits > ty.rank() || !self.declared.insert(name.clone()) {
            return self.fail(path.span, HirError::ParamTwice { name, at: path.span.into() });
        }
        let stack = stacked(ty, &self.counts);
        let decay = role == Role::Param && !nodecay && ty.rank() - splits >= 2;
        self.params.push(ParamDecl { name: name.clone(), ty: stack.clone(), init, decay, role });
        Ok((name, stack))
    }
    fn init(&mut self, e: Option<&ast::Expr>) -> Result<Init, Stop> {
        let Some(e) = e else { return Ok(Init::Normal(0.02)) };
        match self.expr(e)? {
            Val::Init(init) => Ok(init),
            v => {
                let found = self.describe(&v);
                let expected = "normal(std), uniform(a), zeros, ones or constant(c)".into();
                self.fail(
                    e.span,
                    HirError::Mismatch { what: "the initialiser".into(), expected, found, help: None, at: e.span.into() },
                )
            }
        }
    }
    fn param(&mut self, d: &ast::Declared) -> Result<Val, Stop> {
        self.needs_block("param", d.path.span)?;
        let written = matches!(d.ty.kind, ast::TypeKind::Tensor { dtype: Some(_), .. });
        let mut ty = self.tensor_type(&d.ty)?;
        if !written {
            ty.dtype = self.modules.storage;
        }
        let init = self.init(d.init.as_deref())?;
        let (name, stack) = self.declare(&d.path, &ty, init, d.nodecay, Role::Param)?;
        self.frames.origin = Some(d.path.span);
        let t = self.frames.entry_arg(&name, Role::Param, &stack);
        let mut t = self.frames.slice(t);
        if !written && ty.dtype != self.modules.compute {
            t = self.frames.op(Op::Cast(self.modules.compute), &[t]);
        }
        let local = &d.path.parts[d.path.parts.len() - 1].node;
        self.define(local, Val::Tensor(t));
        Ok(Val::Tensor(t))
    }

    // --- expressions ---

    pub fn expr(&mut self, e: &ast::Expr) -> Result<Val, Stop> {
        match &e.kind {
            ExprKind::Int(n) => Ok(Val::Int(Dim::from(*n))),
            ExprKind::Float(x) => Ok(Val::Float(*x)),
            ExprKind::Bool(b) => Ok(Val::Bool(*b)),
            ExprKind::Str(s) => Ok(Val::Str(s.clone())),
            ExprKind::Name(n) => match self.lookup(n) {
                Some(Val::Error) => Err(Stop),
                Some(v) => Ok(v),
                None => match n.as_str() {
                    "zeros" => Ok(Val::Init(Init::Constant(0.0))),
                    "ones" => Ok(Val::Init(Init::Constant(1.0))),
                    _ => self.unknown("name", &ast::Spanned { node: n.clone(), span: e.span }),
                },
            },
            ExprKind::Binary(op, a, b) => {
                let x = self.expr(a);
                let y = self.expr(b);
                self.binary(*op, (x?, a.span), (y?, b.span), e.span)
            }
            ExprKind::Unary(UnaryOp::Neg, a) => match self.expr(a)? {
                Val::Int(d) => Ok(Val::Int(-d)),
                Val::Float(x) => Ok(Val::Float(-x)),
                Val::Tensor(t) => self.node1("-", Op::Map(MapFn::Neg), &[t], e.span).map(Val::Tensor),
                v => self.wrong("-", &v, a.span),
            },
            ExprKind::Unary(UnaryOp::Not, a) => match self.expr(a)? {
                Val::Bool(b) => Ok(Val::Bool(!b)),
                Val::Tensor(t) => self.node1("not", Op::Map(MapFn::Not), &[t], e.span).map(Val::Tensor),
                v => self.wrong("not", &v, a.span),
            },
            ExprKind::Transpose(a) => {
                let t = self.tensor(a)?;
                let rank = self.frames.ty(t).rank();
                if rank < 2 {
                    return self.shape_error("^T", OpError(format!("{} has no two axes to swap", self.frames.ty(t))), e.span);
                }
                let perm = (0..rank - 2).chain([rank - 1, rank - 2]).collect();
                self.node1("^T", Op::Transpose(perm), &[t], e.span).map(Val::Tensor)
            }
            ExprKind::Call { func, args, label } => {
                if let Some(def) = self.scope().funcs.get(&func.node).cloned() {
                    return self.call_function(&def, args, label.as_ref(), func, e.span);
                }
                match builtins::call(self, func, args, e.span) {
                    Some(result) => result,
                    None => self.unknown("function", func),
                }
            }
            ExprKind::Index(x, items) => {
                let t = self.tensor(x)?;
                self.index(t, items, e.span).map(Val::Tensor)
            }
            ExprKind::Tuple(parts) => Ok(Val::Tuple(parts.iter().map(|p| self.expr(p)).collect::<Result<_, _>>()?)),
            ExprKind::List(parts) => Ok(Val::List(parts.iter().map(|p| self.expr(p)).collect::<Result<_, _>>()?)),
            ExprKind::If { cond, then, otherwise } => match self.expr(cond)? {
                Val::Bool(true) => self.body(then),
                Val::Bool(false) => otherwise.as_ref().map_or(Ok(Val::Unit), |b| self.body(b)),
                _ => self.not_constant("the condition of an `if`", cond.span),
            },
            ExprKind::Param(d) => self.param(d),
            ExprKind::Error => Err(Stop),
        }
    }
    pub fn wrong<T>(&mut self, func: &str, v: &Val, at: Span) -> Result<T, Stop> {
        let why = format!("does not take {}", self.describe(v));
        self.fail(at, HirError::Arguments { func: func.into(), why, help: None, at: at.into() })
    }
    pub fn tensor(&mut self, e: &ast::Expr) -> Result<TensorVal, Stop> {
        let v = self.expr(e)?;
        self.as_tensor(v, e.span)
    }
    pub fn as_tensor(&mut self, v: Val, at: Span) -> Result<TensorVal, Stop> {
        match v {
            Val::Tensor(t) => Ok(t),
            v => {
                let found = self.describe(&v);
                self.fail(
                    at,
                    HirError::Mismatch { what: "this".into(), expected: "a tensor".into(), found, help: None, at: at.into() },
                )
            }
        }
    }
    /// An extent.
    pub fn extent(&mut self, e: &ast::Expr) -> Result<Dim, Stop> {
        match self.expr(e)? {
            Val::Int(d) => Ok(d),
            v => {
                let found = self.describe(&v);
                self.fail(
                    e.span,
                    HirError::Mismatch {
                        what: "an extent".into(),
                        expected: "an int".into(),
                        found,
                        help: None,
                        at: e.span.into(),
                    },
                )
            }
        }
    }
    /// A compile-time integer.
    pub fn int(&mut self, e: &ast::Expr, what: &str) -> Result<i64, Stop> {
        match self.extent(e)?.known() {
            Some(n) => Ok(n),
            None => self.not_constant(what, e.span),
        }
    }
    /// A scalar tensor of a compile-time number; a tensor as it is.
    pub fn scalar_tensor(&mut self, v: &Val, dtype: DType, at: Span) -> Result<TensorVal, Stop> {
        match v {
            Val::Tensor(t) => Ok(*t),
            Val::Int(d) => Ok(match d.known() {
                Some(n) => self.frames.constant(n as f64, dtype),
                None => self.frames.op(Op::Extent(d.clone(), dtype), &[]),
            }),
            Val::Float(x) if dtype.is_float() => Ok(self.frames.constant(*x, dtype)),
            Val::Bool(b) if dtype == DType::Bool => Ok(self.frames.constant(f64::from(u8::from(*b)), dtype)),
            v => {
                let found = self.describe(v);
                let help = Some("convert with `cast`".into());
                self.fail(
                    at,
                    HirError::Mismatch {
                        what: "this".into(),
                        expected: format!("a number of {dtype}"),
                        found,
                        help,
                        at: at.into(),
                    },
                )
            }
        }
    }
    /// Repeats `t` to `shape`; its axes are the last ones, each equal or 1.
    pub fn broadcast(&mut self, t: TensorVal, shape: &[Dim]) -> TensorVal {
        let ty = self.frames.ty(t).clone();
        if ty.shape == shape {
            return t;
        }
        let shift = shape.len() - ty.rank();
        let kept: Vec<usize> = (0..ty.rank()).filter(|a| ty.shape[*a] == shape[a + shift]).collect();
        let squeezed: Vec<Dim> = kept.iter().map(|a| ty.shape[*a].clone()).collect();
        let t = if kept.len() == ty.rank() { t } else { self.frames.op(Op::Reshape(squeezed), &[t]) };
        self.frames.op(Op::Broadcast { shape: shape.to_vec(), axes: kept.iter().map(|a| a + shift).collect() }, &[t])
    }
    /// The common shape of two, if they broadcast.
    pub fn common_shape(a: &[Dim], b: &[Dim]) -> Option<Vec<Dim>> {
        let rank = a.len().max(b.len());
        let one = Dim::from(1);
        (0..rank)
            .map(|i| {
                let of = |s: &[Dim]| (i + s.len()).checked_sub(rank).map_or(one.clone(), |j| s[j].clone());
                match (of(a), of(b)) {
                    (x, y) if x == y => Some(x),
                    (x, y) if x.is(1) => Some(y),
                    (x, y) if y.is(1) => Some(x),
                    _ => None,
                }
            })
            .collect()
    }
    /// Two operands brought to one dtype and shape; at least one is a tensor.
    pub fn unify(&mut self, (a, at_a): (Val, Span), (b, at_b): (Val, Span)) -> Result<(TensorVal, TensorVal), Stop> {
        let dtype = match (&a, &b) {
            (Val::Tensor(t), _) | (_, Val::Tensor(t)) => self.frames.ty(*t).dtype,
            _ => self.modules.compute,
        };
        let x = self.scalar_tensor(&a, dtype, at_a)?;
        let y = self.scalar_tensor(&b, dtype, at_b)?;
        let (tx, ty) = (self.frames.ty(x).clone(), self.frames.ty(y).clone());
        let (left_type, right_type) = (tx.to_string(), ty.to_string());
        if tx.dtype != ty.dtype {
            return self.fail(at_a, HirError::Mix { left_type, right_type, left: at_a.into(), right: at_b.into() });
        }
        match Self::common_shape(&tx.shape, &ty.shape) {
            Some(shape) => Ok((self.broadcast(x, &shape), self.broadcast(y, &shape))),
            None => {
                let dims: Vec<&Dim> = tx.shape.iter().chain(&ty.shape).collect();
                let origin = self.origin_of(&dims).map_or(String::new(), |o| format!("; {o}"));
                self.fail(at_a, HirError::Broadcast { left_type, right_type, origin, left: at_a.into(), right: at_b.into() })
            }
        }
    }

    fn binary(&mut self, op: BinaryOp, a: (Val, Span), b: (Val, Span), at: Span) -> Result<Val, Stop> {
        use BinaryOp as B;
        match (op, &a.0, &b.0) {
            (_, Val::Int(x), Val::Int(y)) => {
                let compare = |f: fn(i64, i64) -> bool| (x - y).known().map(|d| f(d, 0));
                let truth = match op {
                    B::Add => return Ok(Val::Int(x.clone() + y.clone())),
                    B::Sub => return Ok(Val::Int(x.clone() - y.clone())),
                    B::Mul => return Ok(Val::Int(x.clone() * y.clone())),
                    B::Div if y.known().is_none_or(|n| n > 0) => return Ok(Val::Int(x.floor_div(y))),
                    B::Rem if y.known().is_none_or(|n| n > 0) => return Ok(Val::Int(x.clone() - x.floor_div(y) * y.clone())),
                    B::Eq => compare(|a, b| a == b),
                    B::Ne => compare(|a, b| a != b),
                    B::Lt => compare(|a, b| a < b),
                    B::Le => compare(|a, b| a <= b),
                    B::Gt => compare(|a, b| a > b),
                    B::Ge => compare(|a, b| a >= b),
                    _ => return self.wrong(symbol(op), &a.0, at),
                };
                match truth {
                    Some(t) => Ok(Val::Bool(t)),
                    None => self.not_constant("what is compared", at),
                }
            }
            (_, Val::Float(_) | Val::Int(_), Val::Float(_) | Val::Int(_)) => {
                let number = |v: &Val| match v {
                    Val::Float(x) => Some(*x),
                    Val::Int(d) => d.known().map(|n| n as f64),
                    _ => None,
                };
                let (Some(x), Some(y)) = (number(&a.0), number(&b.0)) else {
                    return self.not_constant("arithmetic of an extent and a float", at);
                };
                Ok(match op {
                    B::Add => Val::Float(x + y),
                    B::Sub => Val::Float(x - y),
                    B::Mul => Val::Float(x * y),
                    B::Div => Val::Float(x / y),
                    B::Eq => Val::Bool(x == y),
                    B::Ne => Val::Bool(x != y),
                    B::Lt => Val::Bool(x < y),
                    B::Le => Val::Bool(x <= y),
                    B::Gt => Val::Bool(x > y),
                    B::Ge => Val::Bool(x >= y),
                    B::Rem | B::Or | B::And | B::BitOr | B::BitAnd | B::MatMul => return self.wrong(symbol(op), &a.0, at),
                })
            }
            (B::And, Val::Bool(x), Val::Bool(y)) => Ok(Val::Bool(*x && *y)),
            (B::Or, Val::Bool(x), Val::Bool(y)) => Ok(Val::Bool(*x || *y)),
            (B::Eq, Val::Bool(x), Val::Bool(y)) => Ok(Val::Bool(x == y)),
            (B::Eq, Val::Str(x), Val::Str(y)) => Ok(Val::Bool(x == y)),
            (B::Ne, Val::Str(x), Val::Str(y)) => Ok(Val::Bool(x != y)),
            (B::BitAnd | B::BitOr, Val::Domain(x), Val::Domain(y)) => {
                Ok(Val::Domain(builtins::join_domains(op == B::BitAnd, x, y)))
            }
            (B::MatMul, Val::Tensor(x), Val::Tensor(y)) => self.matmul((*x, a.1), (*y, b.1), at).map(Val::Tensor),
            (_, Val::Tensor(_), _) | (_, _, Val::Tensor(_)) => {
                let (x, y) = self.unify(a, b)?;
                let int = self.frames.ty(x).dtype.is_int();
                let (f, swap) = match op {
                    B::Add => (MapFn::Add, false),
                    B::Sub => (MapFn::Sub, false),
                    B::Mul => (MapFn::Mul, false),
                    B::Div => (if int { MapFn::FloorDiv } else { MapFn::Div }, false),
                    B::Rem => (MapFn::Rem, false),
                    B::Eq => (MapFn::Eq, false),
                    B::Ne => (MapFn::Ne, false),
                    B::Lt => (MapFn::Lt, false),
                    B::Le => (MapFn::Le, false),
                    B::Gt => (MapFn::Lt, true),
                    B::Ge => (MapFn::Le, true),
                    B::And => (MapFn::And, false),
                    B::Or => (MapFn::Or, false),
                    B::BitOr | B::BitAnd | B::MatMul => {
                        let v = Val::Tensor(x);
                        return self.wrong(symbol(op), &v, at);
                    }
                };
                let operands = if swap { [y, x] } else { [x, y] };
                self.node1(symbol(op), Op::Map(f), &operands, at).map(Val::Tensor)
            }
            (_, x, _) => {
                let x = x.clone();
                self.wrong(symbol(op), &x, a.1)
            }
        }
    }

    fn matmul(&mut self, (a, at_a): (TensorVal, Span), (b, at_b): (TensorVal, Span), at: Span) -> Result<TensorVal, Stop> {
        let (ta, tb) = (self.frames.ty(a).clone(), self.frames.ty(b).clone());
        if ta.dtype != tb.dtype {
            let (left_type, right_type) = (ta.to_string(), tb.to_string());
            return self.fail(at, HirError::Mix { left_type, right_type, left: at_a.into(), right: at_b.into() });
        }
        let (Some(k1), Some(k2)) = (ta.shape.last(), tb.shape.first()) else {
            return self.shape_error("@", OpError(format!("{ta} @ {tb}: a scalar has no axis to contract")), at);
        };
        if k1 != k2 {
            let origin = self.origin_of(&[k1, k2]).map_or(String::new(), |o| format!("; {o}"));
            let error = HirError::InnerExtent {
                left_shape: ShapeDisplay(&ta.shape).to_string(),
                right_shape: ShapeDisplay(&tb.shape).to_string(),
                left_extent: k1.to_string(),
                right_extent: k2.to_string(),
                origin,
                left: at_a.into(),
                right: at_b.into(),
            };
            return self.fail(at, error);
        }
        let letters: Vec<char> = ('a'..='z').chain('A'..='Z').collect();
        let (m, n) = (ta.rank(), tb.rank());
        if m + n > letters.len() {
            return self.shape_error("@", OpError(format!("{ta} @ {tb} has too many axes")), at);
        }
        let lhs = letters[..m].to_vec();
        let rhs: Vec<char> = [&letters[m - 1..m], &letters[m..m + n - 1]].concat();
        let out = [&lhs[..m - 1], &rhs[1..]].concat();
        self.node1("@", Op::Contract(Contract { lhs, rhs, out }), &[a, b], at)
    }

    fn index(&mut self, mut t: TensorVal, items: &[ast::Index], at: Span) -> Result<TensorVal, Stop> {
        let rank = self.frames.ty(t).rank();
        let used = items.iter().filter(|i| matches!(i, ast::Index::At(_) | ast::Index::Slice { .. })).count();
        if used > rank {
            let why = OpError(format!("{used} indices of {}", self.frames.ty(t)));
            return self.shape_error("index", why, at);
        }
        let mut axis = 0;
        // The result's shape with dropped and new axes, applied as one reshape at the end.
        let mut reshape: Vec<Option<Dim>> = Vec::new();
        let mut changed = false;
        for item in items {
            match item {
                ast::Index::Rest(_) => {
                    for _ in 0..rank - used {
                        reshape.push(Some(self.frames.ty(t).shape[axis].clone()));
                        axis += 1;
                    }
                }
                ast::Index::New(_) => {
                    reshape.push(Some(Dim::from(1)));
                    changed = true;
                }
                ast::Index::At(e) => {
                    let extent = self.frames.ty(t).shape[axis].clone();
                    let i = self.extent(e)?;
                    let start = if i.known().is_some_and(|n| n < 0) { extent + i } else { i };
                    t = self.node1("index", Op::Slice { axis, start, len: Dim::from(1), step: 1 }, &[t], at)?;
                    changed = true;
                    axis += 1;
                }
                ast::Index::Slice { start, end, step } => {
                    let extent = self.frames.ty(t).shape[axis].clone();
                    let bound = |me: &mut Self, e: &Option<ast::Expr>, default: Dim| -> Result<Dim, Stop> {
                        let Some(e) = e else { return Ok(default) };
                        let d = me.extent(e)?;
                        Ok(if d.known().is_some_and(|n| n < 0) { extent.clone() + d } else { d })
                    };
                    let from = bound(self, start, Dim::from(0))?;
                    let to = bound(self, end, extent.clone())?;
                    let step = step.as_ref().map_or(Ok(1), |s| self.int(s, "the step of a slice"))?;
                    if step < 1 {
                        return self.shape_error("index", OpError(format!("a step of {step}")), at);
                    }
                    let len = (to - from.clone()).ceil_div(&Dim::from(step));
                    if !(from.is(0) && len == extent && step == 1) {
                        t = self.node1("index", Op::Slice { axis, start: from, len: len.clone(), step }, &[t], at)?;
                    }
                    reshape.push(Some(len));
                    axis += 1;
                }
            }
        }
        while axis < rank {
            reshape.push(Some(self.frames.ty(t).shape[axis].clone()));
            axis += 1;
        }
        if changed {
            let shape = reshape.into_iter().flatten().collect();
            t = self.node1("index", Op::Reshape(shape), &[t], at)?;
        }
        Ok(t)
    }
}

fn symbol(op: BinaryOp) -> &'static str {
    match op {
        BinaryOp::Or => "or",
        BinaryOp::And => "and",
        BinaryOp::Eq => "==",
        BinaryOp::Ne => "!=",
        BinaryOp::Lt => "<",
        BinaryOp::Le => "<=",
        BinaryOp::Gt => ">",
        BinaryOp::Ge => ">=",
        BinaryOp::BitOr => "|",
        BinaryOp::BitAnd => "&",
        BinaryOp::Add => "+",
        BinaryOp::Sub => "-",
        BinaryOp::Mul => "*",
        BinaryOp::Div => "/",
        BinaryOp::Rem => "%",
        BinaryOp::MatMul => "@",
    }
}

/// The names a body assigns that it does not itself define before, in order.
fn assigned(body: &ast::Body) -> Vec<String> {
    fn visit(body: &ast::Body, local: &mut BTreeSet<String>, out: &mut Vec<String>) {
        let outer = local.clone();
        for stmt in &body.stmts {
            match &stmt.kind {
                StmtKind::Let { names, .. } => local.extend(names.iter().map(|n| n.node.clone())),
                StmtKind::Assign { names, .. } => {
                    for n in names.iter().filter(|n| !local.contains(&n.node)) {
                        if !out.contains(&n.node) {
                            out.push(n.node.clone());
                        }
                    }
                }
                StmtKind::Repeat { body, .. } => visit(body, local, out),
                StmtKind::Expr(e) => branches(e, local, out),
                StmtKind::State(_) | StmtKind::Tally { .. } | StmtKind::Penalty(_) | StmtKind::AfterStep(_) => {}
            }
        }
        if let Some(e) = &body.value {
            branches(e, local, out);
        }
        *local = outer;
    }
    fn branches(e: &ast::Expr, local: &mut BTreeSet<String>, out: &mut Vec<String>) {
        if let ExprKind::If { then, otherwise, .. } = &e.kind {
            visit(then, local, out);
            otherwise.iter().for_each(|b| visit(b, local, out));
        }
    }
    let mut out = Vec::new();
    visit(body, &mut BTreeSet::new(), &mut out);
    out
}
