//! The entry points of training: `loss`, `norm` and `update`.
//!
//! `loss`: parameters, states, the batch and a weight for each token's loss to Σ wᵢ·lossᵢ + Σw·penalties, and the tallies. `norm`: gradients
//! to the sum of squares of each, by layer, under the parameter's name; the run-time adds them up, so that the norm is the same wherever
//! layers live. `update`: parameters, states, gradients, tallies, moments and the scalars `lr`, `step`, `clip`, `grad_norm` to the next
//! parameters, states and moments: clipping, the optimiser for each parameter, the `after step` blocks.

use crate::{
    elaborate::{AfterStep, Elaborator, Stop},
    error::{HirError, suggest},
    frame::Frames,
    modules::Modules,
    value::{TensorVal, Val},
};
use base::{DType, Diags, TensorType};
use graph::{
    Module, Op, Role,
    op::{MapFn, ReduceFn},
};
use std::collections::BTreeMap;
use syntax::ast;

/// Adds `loss`, `norm` and `update` to the module; the mistakes of both are told.
pub(crate) fn entries(
    modules: &Modules,
    train: &ast::Train,
    module: &mut Module,
    settings: &mut BTreeMap<String, f64>,
    diags: &mut Diags,
) {
    let mut e = Elaborator::new(modules, diags);
    let (tallies, after) = loss(&mut e, train, module).unwrap_or_default();
    norm(module);
    let mut e = Elaborator::new(modules, diags);
    e.push_call(modules.root, ast::FuncKind::Model);
    set(&mut e, train, settings);
    // A mistake ends `update` where it stands; it has been reported.
    let _ = update(&mut e, train, module, &tallies, &after);
}

type Tallies = Vec<(String, TensorType)>;

fn loss(e: &mut Elaborator, train: &ast::Train, module: &mut Module) -> Result<(Tallies, Vec<AfterStep>), Stop> {
    e.push_call(e.modules.root, ast::FuncKind::Model);
    let mut args: Vec<(Role, String, TensorType)> = Vec::new();
    for p in &train.params {
        let ty = e.tensor_type(&p.ty)?;
        let t = e.frames.entry_arg(&p.name.node, Role::Input, &ty);
        e.written.insert(t, p.ty.span);
        e.define(&p.name.node, Val::Tensor(t));
        args.push((Role::Input, p.name.node.clone(), ty));
    }
    let body =
        ast::Body { stmts: train.stmts.clone(), value: Some(Box::new(train.objective.clone())), span: train.objective.span };
    let at = train.objective.span;
    let value = e.body(&body)?;
    let losses = e.as_tensor(value, at)?;
    if !e.frames.ty(losses).dtype.is_float() {
        let (what, found) = ("the objective".into(), e.frames.ty(losses).to_string());
        let error = HirError::Mismatch { what, expected: "a tensor of floats".into(), found, help: None, at: at.into() };
        return e.fail(at, error);
    }
    let losses = cast(e, losses, DType::F32);
    let ty = e.frames.ty(losses).clone();
    let weights = e.frames.entry_arg("weights", Role::Input, &ty);
    args.push((Role::Input, "weights".into(), ty.clone()));
    let axes: Vec<usize> = (0..ty.rank()).collect();
    let weighted = e.frames.op(Op::Map(MapFn::Mul), &[losses, weights]);
    let mut total = e.frames.op(Op::Reduce(ReduceFn::Sum, axes.clone()), &[weighted]);
    if !e.penalties.is_empty() {
        let share = e.frames.op(Op::Reduce(ReduceFn::Sum, axes), &[weights]);
        for p in std::mem::take(&mut e.penalties) {
            let scaled = e.frames.op(Op::Map(MapFn::Mul), &[p, share]);
            total = e.frames.op(Op::Map(MapFn::Add), &[total, scaled]);
        }
    }
    let mut outputs = vec![("loss".to_string(), Role::Scalar, total)];
    let mut tallies = Vec::new();
    for t in std::mem::take(&mut e.tallies) {
        tallies.push((t.name.clone(), t.ty.clone()));
        outputs.push((t.name, Role::Tally, t.value));
    }
    // Without a model that is whole, what follows would only repeat that.
    if !e.diags.is_empty() {
        return Err(Stop);
    }
    let params = module.params.iter().map(|p| (p.role, p.name.clone(), p.ty.clone()));
    let all: Vec<_> = params.chain(args).collect();
    if let Some(p) = e.params.iter().find(|p| !module.params.iter().any(|q| q.name == p.name)) {
        let what = format!("the objective makes the parameter {}, which the model does not have", p.name);
        return e.fail(at, HirError::Program { what, help: "the objective calls the model", at: at.into() });
    }
    let frames = std::mem::replace(&mut e.frames, Frames::new());
    module.funcs.push(frames.finish("loss", &all, outputs));
    Ok((tallies, std::mem::take(&mut e.after_steps)))
}

/// Adds `norm`: Σ g² of each parameter, by layer.
fn norm(module: &mut Module) {
    let mut frames = Frames::new();
    let (mut args, mut outputs) = (Vec::new(), Vec::new());
    for p in module.params.iter().filter(|p| p.role == Role::Param) {
        args.push((Role::Grad, p.name.clone(), p.ty.clone()));
        let mut g = frames.entry_arg(&p.name, Role::Grad, &p.ty);
        if p.ty.dtype != DType::F32 {
            g = frames.op(Op::Cast(DType::F32), &[g]);
        }
        let square = frames.op(Op::Map(MapFn::Mul), &[g, g]);
        let layers = p.name.split('.').filter(|part| part.starts_with('*')).count();
        let axes: Vec<usize> = (layers..p.ty.rank()).collect();
        let sum = if axes.is_empty() { square } else { frames.op(Op::Reduce(ReduceFn::Sum, axes), &[square]) };
        outputs.push((p.name.clone(), Role::Result, sum));
    }
    module.funcs.push(frames.finish("norm", &args, outputs));
}

/// The `set` entries and the optimiser's `lr`.
fn set(e: &mut Elaborator, train: &ast::Train, settings: &mut BTreeMap<String, f64>) {
    // Name, least value, whether it counts something.
    const KNOWN: &[(&str, f64, bool)] = &[
        ("batch", 1.0, true),
        ("seq", 1.0, true),
        ("steps", 0.0, true),
        ("warmup", 0.0, true),
        ("clip", f64::NEG_INFINITY, false),
        ("floor", 0.0, false),
        ("micro_batches", 1.0, true),
        ("seed", 0.0, true),
        ("eval_every", 0.0, true),
    ];
    for (name, value) in &train.settings {
        let Some((_, least, counts)) = KNOWN.iter().find(|(n, _, _)| *n == name.node) else {
            let known = || KNOWN.iter().map(|(n, _, _)| *n);
            let all = || format!("there are {}", known().collect::<Vec<_>>().join(", "));
            let help = Some(suggest(&name.node, known()).unwrap_or_else(all));
            let error = HirError::Unknown { what: "setting", name: name.node.clone(), help, at: name.span.into() };
            e.diags.push(name.span, error);
            continue;
        };
        let Ok(x) = number(e, value) else { continue };
        let why = match *counts {
            true if x.fract() != 0.0 || x < *least => format!("{x} is not a whole number from {least}"),
            false if x.is_nan() || x < *least => format!("{x} is less than {least}"),
            _ => {
                settings.insert(name.node.clone(), x);
                continue;
            }
        };
        let name = name.node.clone();
        e.diags.push(value.span, HirError::Setting { name, why, help: None, at: value.span.into() });
    }
    let lr = train.optimizer_args.iter().find(|a| a.name.as_ref().is_some_and(|n| n.node == "lr"));
    if let Some(x) = lr.and_then(|a| number(e, &a.value).ok()) {
        settings.insert("lr".into(), x);
    }
}

fn number(e: &mut Elaborator, value: &ast::Expr) -> Result<f64, Stop> {
    match e.expr(value)? {
        Val::Float(x) => Ok(x),
        Val::Int(d) if d.known().is_some() => Ok(d.known().unwrap_or(0) as f64),
        _ => e.not_constant("a setting", value.span),
    }
}

fn cast(e: &mut Elaborator, t: TensorVal, dtype: DType) -> TensorVal {
    if e.frames.ty(t).dtype == dtype { t } else { e.frames.op(Op::Cast(dtype), &[t]) }
}

fn update(
    e: &mut Elaborator,
    train: &ast::Train,
    module: &mut Module,
    tallies: &Tallies,
    after: &[AfterStep],
) -> Result<(), Stop> {
    let at = train.optimizer.span;
    let Some(def) = e.scope().funcs.get(&train.optimizer.node).cloned() else { return e.unknown("function", &train.optimizer) };
    let moments = match &def.func.result.kind {
        ast::TypeKind::Tuple(types) if !types.is_empty() => types.len() - 1,
        _ => 0,
    };
    let scalar = TensorType::scalar(DType::F32);
    let params = module.params.clone();
    let mut args: Vec<(Role, String, TensorType)> = params.iter().map(|p| (p.role, p.name.clone(), p.ty.clone())).collect();
    let trained: Vec<_> = params.iter().filter(|p| p.role == Role::Param).collect();
    args.extend(trained.iter().map(|p| (Role::Grad, p.name.clone(), p.ty.clone())));
    args.extend(tallies.iter().map(|(n, ty)| (Role::Tally, n.clone(), ty.clone())));
    let moment_type = |p: &graph::ParamDecl| p.ty.with_dtype(p.ty.dtype.accumulator());
    for p in &trained {
        args.extend((0..moments).map(|k| (Role::Moment, format!("{}#{k}", p.name), moment_type(p))));
    }
    args.extend(["lr", "step", "clip", "grad_norm"].map(|n| (Role::Scalar, n.to_string(), scalar.clone())));
    let arg = |e: &mut Elaborator, role: Role, name: &str| {
        let (_, _, ty) =
            args.iter().find(|(r, n, _)| *r == role && n == name).unwrap_or_else(|| base::bug!("no argument {name}"));
        e.frames.entry_arg(name, role, ty)
    };
    let norm = arg(e, Role::Scalar, "grad_norm");
    // min(1, clip / (norm + 1e-6)), 1 if clip ≤ 0.
    let clip = arg(e, Role::Scalar, "clip");
    let (zero, one, small) =
        (e.frames.constant(0.0, DType::F32), e.frames.constant(1.0, DType::F32), e.frames.constant(1e-6, DType::F32));
    let below = e.frames.op(Op::Map(MapFn::Add), &[norm, small]);
    let ratio = e.frames.op(Op::Map(MapFn::Div), &[clip, below]);
    let ratio = e.frames.op(Op::Map(MapFn::Min), &[one, ratio]);
    let active = e.frames.op(Op::Map(MapFn::Lt), &[zero, clip]);
    let factor = e.frames.op(Op::Map(MapFn::Select), &[active, ratio, one]);

    let mut outputs = Vec::new();
    let (lr, step) = (arg(e, Role::Scalar, "lr"), arg(e, Role::Scalar, "step"));
    for p in &trained {
        let value = arg(e, Role::Param, &p.name);
        let g = arg(e, Role::Grad, &p.name);
        let spread = e.broadcast(factor, &p.ty.shape);
        let accumulator = p.ty.dtype.accumulator();
        let g = cast(e, g, accumulator);
        let spread = cast(e, spread, accumulator);
        let g = e.frames.op(Op::Map(MapFn::Mul), &[g, spread]);
        let mut given = vec![Val::Tensor(cast(e, value, accumulator)), Val::Tensor(g)];
        for k in 0..moments {
            given.push(Val::Tensor(arg(e, Role::Moment, &format!("{}#{k}", p.name))));
        }
        let results = optimize(e, &def, train, given, lr, step, p.decay, at)?;
        for (k, r) in results.into_iter().enumerate() {
            let Val::Tensor(t) = r else {
                let (what, found) = (format!("a result of {}", train.optimizer.node), e.describe(&r));
                let error = HirError::Mismatch { what, expected: "a tensor".into(), found, help: None, at: at.into() };
                return e.fail(at, error);
            };
            let (name, role) =
                if k == 0 { (p.name.clone(), Role::Param) } else { (format!("{}#{}", p.name, k - 1), Role::Moment) };
            let t = if k == 0 { cast(e, t, p.ty.dtype) } else { t };
            outputs.push((name, role, t));
        }
    }
    let mut states: BTreeMap<String, TensorVal> = BTreeMap::new();
    for block in after {
        run_after_step(e, block, &mut states)?;
    }
    outputs.extend(states.into_iter().map(|(n, t)| (n, Role::State, t)));
    if !e.diags.is_empty() {
        return Err(Stop);
    }
    let frames = std::mem::replace(&mut e.frames, Frames::new());
    module.funcs.push(frames.finish("update", &args, outputs));
    Ok(())
}

/// Calls the optimiser for one parameter.
#[allow(clippy::too_many_arguments)]
fn optimize(
    e: &mut Elaborator,
    def: &crate::modules::Definition,
    train: &ast::Train,
    given: Vec<Val>,
    lr: TensorVal,
    step: TensorVal,
    decay: bool,
    at: base::Span,
) -> Result<Vec<Val>, Stop> {
    let mut given = given.into_iter();
    let mut values = Vec::new();
    for p in &def.func.params {
        let hyper = train.optimizer_args.iter().find(|a| a.name.as_ref().is_some_and(|n| n.node == p.name.node));
        let value = match (p.name.node.as_str(), hyper) {
            ("lr", _) => Val::Tensor(lr),
            ("t", _) => Val::Tensor(step),
            ("decay", _) if !decay => Val::Float(0.0),
            (_, Some(h)) => e.expr(&h.value)?,
            _ => match (given.next(), &p.default) {
                (Some(v), _) => v,
                (None, Some(d)) => e.expr(d)?,
                (None, None) => {
                    let why = format!("misses '{}'", p.name.node);
                    return e.fail(at, HirError::Arguments { func: def.func.name.node.clone(), why, help: None, at: at.into() });
                }
            },
        };
        values.push(value);
    }
    let unknown = train
        .optimizer_args
        .iter()
        .find(|a| a.name.as_ref().is_none_or(|n| !def.func.params.iter().any(|p| p.name.node == n.node)));
    if let Some(a) = unknown {
        let why = "takes named hyper-parameters that it declares".into();
        return e.fail(
            a.value.span,
            HirError::Arguments { func: def.func.name.node.clone(), why, help: None, at: a.value.span.into() },
        );
    }
    e.enter_file(def);
    let mut args = Vec::new();
    let mut outcome = Ok(Val::Unit);
    for (p, v) in def.func.params.iter().zip(values) {
        match e.bind_param(&format!("'{}' of {}", p.name.node, def.func.name.node), &p.ty, v, at) {
            Ok(v) => {
                e.define(&p.name.node, v.clone());
                args.push((p.name.node.clone(), v));
            }
            Err(stop) => outcome = Err(stop),
        }
    }
    if outcome.is_ok() {
        outcome = e.body_of(def, args, at);
    }
    e.pop_call();
    match outcome? {
        Val::Tuple(parts) => Ok(parts),
        v => Ok(vec![v]),
    }
}

/// Runs an `after step` block, inside loops over its stacks.
fn run_after_step(e: &mut Elaborator, block: &AfterStep, states: &mut BTreeMap<String, TensorVal>) -> Result<(), Stop> {
    // A fn: it declares nothing.
    e.push_call(block.file, ast::FuncKind::Fn);
    let of_role = |role: Role| block.slots.iter().filter(move |s| s.role == role);
    let call = e.call();
    call.assignable = Some(of_role(Role::State).map(|s| s.local.clone()).collect());
    call.rests = block.rests.clone();
    let outcome = nest(e, block, 0, states);
    e.pop_call();
    for (slot, t) in of_role(Role::State).zip(outcome?) {
        states.insert(slot.name.clone(), t);
    }
    Ok(())
}

/// The new states of a block, inside loop number `depth`.
fn nest(
    e: &mut Elaborator,
    block: &AfterStep,
    depth: usize,
    states: &BTreeMap<String, TensorVal>,
) -> Result<Vec<TensorVal>, Stop> {
    if depth < block.counts.len() {
        e.frames.enter(&[]);
        let inner = match nest(e, block, depth + 1, states) {
            Ok(inner) => inner,
            Err(stop) => {
                e.frames.abandon();
                return Err(stop);
            }
        };
        return match e.frames.leave(block.counts[depth], &[], &inner) {
            Ok(results) => Ok(results),
            Err(error) => e.shape_error("after step", error, block.body.span),
        };
    }
    for (name, v) in &block.constants {
        e.define(name, v.clone());
    }
    for slot in &block.slots {
        let outer = match states.get(&slot.name) {
            Some(t) => *t,
            None => e.frames.entry_arg(&slot.name, slot.role, &slot.ty),
        };
        let t = e.frames.slice(outer);
        e.define(&slot.local, Val::Tensor(t));
    }
    // Run in the scope just filled, so that its assignments can be read afterwards. A last `if` is a statement here.
    let mut body = block.body.clone();
    body.stmts.extend(body.value.take().map(|e| ast::Stmt { span: e.span, kind: ast::StmtKind::Expr(*e) }));
    e.body(&body)?;
    let mut results = Vec::new();
    for slot in block.slots.iter().filter(|s| s.role == Role::State) {
        match e.lookup(&slot.local) {
            Some(Val::Tensor(t)) => results.push(t),
            _ => return Err(Stop),
        }
    }
    Ok(results)
}
