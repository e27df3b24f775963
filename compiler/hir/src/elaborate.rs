//! Elaboration: bodies are evaluated for the types and compile-time values of a call; tensors become nodes of the graph. Here: what is
//! known at a point of the walk, and how mistakes are told. The walk itself is in `calls`, `statements`, `expressions`, `operators`.

use crate::{
    Program, builtins,
    config::Constant,
    error::{HirError, suggest},
    frame::Frames,
    modules::{Definition, Modules, Scope},
    value::{TensorVal, Val},
};
use base::{DType, Diags, Dim, FileId, Span, TensorType, dim::Atom};
use graph::{Op, OpError, ParamDecl, Role, op::Contract};
use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};
use syntax::ast;

/// A mistake was reported (or a definition's check ended); the enclosing statement is given up.
#[derive(Clone, Copy, Debug)]
pub struct Stop;

/// The names of one call.
pub(crate) struct Call {
    pub file: FileId,
    pub kind: ast::FuncKind,
    /// What is called; none for the train item and `after step` blocks.
    pub func: Option<Rc<ast::Func>>,
    pub scopes: Vec<BTreeMap<String, Val>>,
    pub rests: BTreeMap<String, Vec<Dim>>,
    /// The states and tallies declared so far, for `after step`.
    pub slots: Vec<Slot>,
    /// In an `after step` block: the states, which alone can be assigned.
    pub assignable: Option<Vec<String>>,
}

/// A state or tally of a block.
#[derive(Clone)]
pub(crate) struct Slot {
    pub role: Role,
    /// The name in the block.
    pub local: String,
    /// The whole name.
    pub name: String,
    /// Stacked over the repeats around.
    pub ty: TensorType,
    /// How many repeats are around.
    pub depth: usize,
    /// What the local name stands for at first.
    pub value: TensorVal,
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
    pub slots: Vec<Slot>,
    /// Compile-time values in scope.
    pub constants: Vec<(String, Val)>,
    pub rests: BTreeMap<String, Vec<Dim>>,
}

/// Elaborates one entry point.
pub(crate) struct Elaborator<'a> {
    pub modules: &'a Modules,
    pub diags: &'a mut Diags,
    pub frames: Frames,
    /// Whether this checks a definition, with generic values unknown: extents are symbols, floats are NaN.
    pub opaque: bool,
    pub calls: Vec<Call>,
    /// Instance names from the model to here.
    pub path: Vec<String>,
    /// Turns of the repeats around.
    pub counts: Vec<i64>,
    pub params: Vec<ParamDecl>,
    /// Names of parameters, states and tallies.
    pub declared: BTreeSet<String>,
    /// Turns so far of repeats with one label, by path.
    pub turns: BTreeMap<String, i64>,
    pub tallies: Vec<Tally>,
    pub penalties: Vec<TensorVal>,
    pub after_steps: Vec<AfterStep>,
    /// Where the type of a tensor is written.
    pub written: BTreeMap<TensorVal, Span>,
    outline: Vec<String>,
}

/// The program of resolved modules, or `None` after a mistake.
pub(crate) fn program(modules: &Modules, diags: &mut Diags) -> Option<Program> {
    let before = diags.len();
    let model = modules.model.as_ref()?;
    let root = &modules.scopes[&modules.root];
    let mut module = graph::Module { name: model.func.name.node.clone(), params: Vec::new(), funcs: Vec::new() };
    if root.has_gaps {
        return None;
    }
    let outline = if model.is_broken { None } else { forward(Elaborator::new(modules, diags), model, &mut module) };
    let mut settings = BTreeMap::new();
    if let Some(train) = &modules.train {
        crate::train::entries(modules, train, &mut module, &mut settings, diags);
    }
    let outline = outline.filter(|_| diags.len() == before)?;
    let pipeline = modules.pipeline.clone();
    Some(Program { module, dims: root.dims.clone(), config: root.config.clone(), settings, pipeline, outline })
}

/// Adds the parameters and the entry point `forward`; the outline.
fn forward(mut e: Elaborator, model: &Definition, module: &mut graph::Module) -> Option<String> {
    e.enter_file(model);
    let mut inputs = Vec::new();
    let mut args = Vec::new();
    let mut stopped = false;
    for p in &model.func.params {
        let Ok(ty) = e.tensor_type(&p.ty) else {
            e.define(&p.name.node, Val::Error);
            stopped = true;
            continue;
        };
        let t = e.frames.entry_arg(&p.name.node, Role::Input, &ty);
        e.written.insert(t, p.ty.span);
        args.push((p.name.node.clone(), Val::Tensor(t)));
        inputs.push((Role::Input, p.name.node.clone(), ty));
    }
    let line = e.begin_outline();
    let result = e.body_of(model, args, model.func.name.span).ok().filter(|_| !stopped)?;
    let text = format!("model {}{} -> {}", model.func.name.node, e.signature(&model.func), e.describe(&result));
    e.pop_call();
    e.end_outline(line, text);
    let mut outputs = Vec::new();
    match result {
        Val::Tensor(t) => outputs.push(("output".to_string(), Role::Result, t)),
        Val::Tuple(parts) if parts.iter().all(|v| matches!(v, Val::Tensor(_))) => {
            let tensors = parts.iter().filter_map(|v| if let Val::Tensor(t) = v { Some(*t) } else { None });
            outputs.extend(tensors.enumerate().map(|(i, t)| (format!("output{i}"), Role::Result, t)));
        }
        v => {
            let (what, found) = ("the result of the model".into(), e.describe(&v));
            let (expected, at) = ("a tensor or a tuple of tensors".into(), model.func.result.span);
            let error = HirError::Mismatch { what, expected, found, help: None, at: at.into() };
            return e.fail(at, error).ok();
        }
    }
    // Such as two inputs of one name.
    if !e.diags.is_empty() {
        return None;
    }
    module.params = std::mem::take(&mut e.params);
    let params = module.params.iter().map(|p| (p.role, p.name.clone(), p.ty.clone()));
    let all: Vec<_> = params.chain(inputs).collect();
    let frames = std::mem::replace(&mut e.frames, Frames::new());
    module.funcs.push(frames.finish("forward", &all, outputs));
    Some(e.outline.into_iter().map(|l| l + "\n").collect())
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
            written: BTreeMap::new(),
            outline: Vec::new(),
        }
    }

    // --- names ---

    /// A call frame in the file of `def`, so that its types can be evaluated.
    pub fn enter_file(&mut self, def: &Definition) {
        self.push_call(def.file, def.func.kind);
        self.call().func = Some(def.func.clone());
    }
    pub fn push_call(&mut self, file: FileId, kind: ast::FuncKind) {
        self.calls.push(Call {
            file,
            kind,
            func: None,
            scopes: vec![BTreeMap::new()],
            rests: BTreeMap::new(),
            slots: Vec::new(),
            assignable: None,
        });
    }
    pub fn pop_call(&mut self) {
        self.calls.pop();
    }
    pub fn call(&mut self) -> &mut Call {
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
    /// A name of the body.
    pub fn variable(&self, name: &str) -> Option<&Val> {
        self.calls.last().and_then(|c| c.scopes.iter().rev().find_map(|s| s.get(name)))
    }
    pub fn lookup(&self, name: &str) -> Option<Val> {
        if let Some(v) = self.variable(name) {
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

    // --- mistakes ---

    pub fn fail<T>(&mut self, at: Span, error: HirError) -> Result<T, Stop> {
        self.misfit(at, error, &[])
    }
    /// A misfit of extents; where the types of `tensors` are written is told.
    pub fn misfit<T>(&mut self, at: Span, error: HirError, tensors: &[TensorVal]) -> Result<T, Stop> {
        // What a use showed is not told again in the terms of the definition.
        let again = !self.modules.told.borrow_mut().insert(at);
        if again && self.opaque {
            return Err(Stop);
        }
        let mut related = Vec::new();
        for t in tensors {
            if let Some(span) = self.written.get(t).filter(|s| **s != at) {
                related.push((*span, format!("this is {}", self.frames.ty(*t))));
            }
        }
        self.diags.push_related(at, error, related);
        Err(Stop)
    }
    pub fn unknown<T>(&mut self, what: &'static str, name: &ast::Ident) -> Result<T, Stop> {
        let scope = self.scope();
        // Told where it was to be defined.
        if what == "function" && scope.lacks_functions {
            return Err(Stop);
        }
        let known: Vec<&str> = match what {
            "function" => scope.funcs.keys().map(String::as_str).chain(builtins::NAMES.iter().copied()).collect(),
            _ => {
                let locals = self.calls.iter().last().into_iter().flat_map(|c| c.scopes.iter().flat_map(|s| s.keys()));
                locals.chain(scope.config.iter().map(|(n, _)| n)).chain(&scope.dims).map(String::as_str).collect()
            }
        };
        let mut help = suggest(&name.node, known.into_iter());
        if what == "function" && help.is_none() {
            help = crate::std_lib::MODULES.iter().find(|(n, _)| *n == name.node).map(|(n, _)| format!("write `use std.{n}`"));
        }
        self.fail(name.span, HirError::Unknown { what, name: name.node.clone(), help, at: name.span.into() })
    }
    /// The need for a value that a definition's check does not have ends it; elsewhere it is a mistake.
    pub fn not_constant<T>(&mut self, what: impl Into<String>, at: Span) -> Result<T, Stop> {
        if self.opaque { Err(Stop) } else { self.fail(at, HirError::NotConstant { what: what.into(), at: at.into() }) }
    }
    /// Whether a definition's check cannot judge these extents: a quotient, the smaller or the larger of unknowns may be what is needed.
    pub fn undecided<'d>(&self, mut dims: impl Iterator<Item = &'d Dim>) -> bool {
        let compound = |a: &Atom| matches!(a, Atom::FloorDiv(..) | Atom::Min(..) | Atom::Max(..));
        self.opaque && dims.any(|d| d.sum_of_products().iter().flat_map(|(_, atoms)| atoms).any(compound))
    }
    /// Whether these are floats of different width, which a definition's check cannot judge: a type without a dtype is any float.
    pub fn any_floats(&self, a: DType, b: DType) -> bool {
        self.opaque && a != b && a.is_float() && b.is_float()
    }
    pub fn describe(&self, v: &Val) -> String {
        match v {
            Val::Tensor(t) => self.frames.ty(*t).to_string(),
            Val::Int(d) => format!("the int {d}"),
            Val::Float(x) => format!("the float {x:?}"),
            Val::Bool(b) => format!("the bool {b}"),
            Val::Str(s) => format!("the string {s:?}"),
            Val::DType(d) => format!("the dtype {d}"),
            Val::Tuple(parts) => format!("({})", parts.iter().map(|v| self.describe(v)).collect::<Vec<_>>().join(", ")),
            Val::Rows(r) => format!("rows[{}]", r.groups),
            Val::List(_) | Val::Domain(_) | Val::Init(_) | Val::Unit | Val::Error => v.kind().into(),
        }
    }
    /// A type or extent as it is written.
    pub fn source_of(&self, span: Span) -> String {
        let text = self.modules.texts.get(&span.file).and_then(|t| t.get(span.start as usize..span.end as usize));
        text.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
    }

    // --- nodes ---

    /// Reports an op that does not take its operands.
    pub fn shape_error<T>(&mut self, func: &str, e: OpError, at: Span) -> Result<T, Stop> {
        self.fail(at, HirError::Shape { func: func.into(), why: e.0, at: at.into() })
    }
    /// A node; a misfit is the user's mistake at `at`.
    pub fn node(&mut self, func: &str, op: Op, operands: &[TensorVal], at: Span) -> Result<Vec<TensorVal>, Stop> {
        self.frames.origin = Some(at);
        let written: &[Dim] = if let Op::Reshape(shape) | Op::Broadcast { shape, .. } = &op { shape } else { &[] };
        let dtypes: Vec<DType> = operands.iter().map(|t| self.frames.ty(*t).dtype).filter(|d| d.is_float()).collect();
        let undecided = self.undecided(written.iter().chain(operands.iter().flat_map(|t| &self.frames.ty(*t).shape)))
            || dtypes.windows(2).any(|d| self.any_floats(d[0], d[1]));
        let results = match self.frames.apply(op, operands) {
            Ok(results) => results,
            Err(_) if undecided => return Err(Stop),
            Err(e) => return self.shape_error(func, e, at),
        };
        for t in &results {
            if let Some(d) = self.frames.ty(*t).shape.iter().find(|d| d.known().is_some_and(|n| n < 0)).cloned() {
                return self.shape_error(func, OpError(format!("an extent of {d}")), at);
            }
        }
        Ok(results)
    }
    pub fn node1(&mut self, func: &str, op: Op, operands: &[TensorVal], at: Span) -> Result<TensorVal, Stop> {
        self.node(func, op, operands, at).map(|r| r[0])
    }

    /// A contraction; operands of f32 are rounded to tf32 if the program says so.
    pub fn contraction(&mut self, func: &str, spec: Contract, operands: [TensorVal; 2], at: Span) -> Result<TensorVal, Stop> {
        let rounds = self.modules.tf32 && operands.iter().all(|t| self.frames.ty(*t).dtype == DType::F32);
        let operands = if rounds {
            self.frames.origin = Some(at);
            let narrow = operands.map(|t| self.frames.op(Op::Cast(DType::TF32), &[t]));
            narrow.map(|t| self.frames.op(Op::Cast(DType::F32), &[t]))
        } else {
            operands
        };
        self.node1(func, Op::Contract(spec), &operands, at)
    }

    // --- the outline ---

    /// Keeps a line for a call, above those of its body.
    pub fn begin_outline(&mut self) -> usize {
        self.outline.push(String::new());
        self.outline.len() - 1
    }
    pub fn end_outline(&mut self, line: usize, text: String) {
        self.outline[line] = format!("{}{text}", "  ".repeat(self.calls.len() + self.counts.len()));
    }
    pub fn outline(&mut self, text: &dyn Fn(&Self) -> String) {
        if !self.opaque {
            let line = self.begin_outline();
            self.end_outline(line, text(self));
        }
    }
}
