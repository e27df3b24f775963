//! Reverse-mode derivatives, graph to graph. In: a verified function and a scalar output. Out: the same function with the gradients
//! of that output by chosen arguments as further outputs.
//!
//! One rule per op, each a sum of terms that only read forward values and the gradient of the op's results. Gradients have the
//! dtype of what they are of. What does not depend on the chosen arguments, or the objective not on it, gets no gradient and costs
//! nothing. Terms are added in the reverse order of use. Derivatives of derivatives stop at `attend_grad`.
//! # Source: Griewank and Walther, Evaluating Derivatives, 2008, chapter 3.

mod attend;
mod contract;
mod cut;
mod flow;
mod index;
mod layout;
mod map;
mod moe;
mod quantize;
mod reduce;
mod repeat;
mod split;
#[cfg(test)]
mod tests;

pub use split::{Split, cut_off, split};

use crate::{
    build::Builder,
    ir::{Func, Node, NodeId, Role, Value},
    op::Op,
    passes::expand_fused,
};
use base::{DType, arena::Id};

/// What the forward part of a loop keeps for the backward part. Constants and stacked operands of the loop are never kept again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Remat {
    /// Every value the derivatives read.
    Save,
    /// What costs more than a pass over memory (contractions, attention, reductions, top-k, routing, gathers, running sums) and
    /// the carried values; elementwise ops, casts and layout are computed again.
    #[default]
    Cheap,
}

/// What is differentiated, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed<'a> {
    /// The name of the output: a float scalar.
    pub objective: &'a str,
    /// What loops keep.
    pub remat: Remat,
}

/// Why a function has no derivative.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AutodiffError {
    /// The function has no such output.
    #[error("'{func}' has no output '{name}'")]
    NoOutput {
        /// The function.
        func: String,
        /// The output asked for.
        name: String,
    },
    /// The objective is not a float scalar.
    #[error("the objective '{name}' is {ty}, not a float scalar")]
    NotScalar {
        /// The output.
        name: String,
        /// Its type.
        ty: String,
    },
    /// An argument of integers or bools.
    #[error("argument '{name}' is {ty}, which has no gradient")]
    NotFloat {
        /// The argument.
        name: String,
        /// Its type.
        ty: String,
    },
    /// A gradient reaches an op without a derivative.
    #[error("no derivative of '{op}'")]
    NotDifferentiable {
        /// The op.
        op: &'static str,
    },
}

/// `func` with, after its outputs, the gradient of the objective by each argument of `wrt`: an output with the argument's name and the
/// role `Grad`. Arguments that the objective does not depend on get zeros.
///
/// # Errors
/// If the objective is not a float scalar, an argument is not of floats, or an op on the way has no derivative.
pub fn grad(func: &Func, wrt: &[usize], seed: Seed) -> Result<Func, AutodiffError> {
    let mut whole = func.clone();
    expand_fused(&mut whole);
    let func = &whole;
    let objective = func
        .output_named(seed.objective)
        .ok_or_else(|| AutodiffError::NoOutput { func: func.name.clone(), name: seed.objective.into() })?;
    let ty = func.ty(objective.value);
    if ty.rank() != 0 || !ty.dtype.is_float() {
        return Err(AutodiffError::NotScalar { name: seed.objective.into(), ty: ty.to_string() });
    }
    let mut chosen = vec![false; func.args.len()];
    for i in wrt {
        let ty = func.arg_type(*i);
        if !ty.dtype.is_float() {
            return Err(AutodiffError::NotFloat { name: func.args[*i].name.clone(), ty: ty.to_string() });
        }
        chosen[*i] = true;
    }
    let mut out = func.clone();
    let mut seeds = Vec::new();
    if flow::varied(func, &chosen)[objective.value.node.index()][objective.value.index as usize] {
        let one = Builder::new(&mut out).constant(1.0, ty.dtype);
        seeds.push((objective.value, one));
    }
    let gradients = pull_back(&mut out, &seeds, wrt, seed.remat)?;
    for (i, value) in wrt.iter().zip(gradients) {
        out.output(&func.args[*i].name, Role::Grad, value);
    }
    Ok(out)
}

/// Appends to `func` what takes gradients from values to arguments: each seed is a value and its gradient, of the same type. The gradients
/// of the arguments of `wrt`, zeros where they do not matter.
///
/// # Errors
/// If an argument is not of floats, or an op on the way has no derivative.
pub fn pull_back(func: &mut Func, seeds: &[(Value, Value)], wrt: &[usize], remat: Remat) -> Result<Vec<Value>, AutodiffError> {
    let mut chosen = vec![false; func.args.len()];
    for i in wrt {
        let ty = func.arg_type(*i);
        if !ty.dtype.is_float() {
            return Err(AutodiffError::NotFloat { name: func.args[*i].name.clone(), ty: ty.to_string() });
        }
        chosen[*i] = true;
    }
    let varied = flow::varied(func, &chosen);
    let mut adjoints = Adjoints::new(func);
    for (value, gradient) in seeds {
        if varied[value.node.index()][value.index as usize] {
            adjoints.add(&mut Builder::new(func), *value, *gradient);
        }
    }
    reverse(func, &varied, &mut adjoints, remat)?;
    let gradient = |i: &usize| {
        let arg = func.arg_value(*i);
        adjoints.get(arg).unwrap_or_else(|| Builder::new(func).full_like(arg, 0.0))
    };
    Ok(wrt.iter().map(gradient).collect())
}

/// The gradients found so far of the results of the forward nodes.
struct Adjoints(Vec<Vec<Option<Value>>>);

impl Adjoints {
    fn new(func: &Func) -> Adjoints {
        Adjoints(func.nodes.values().map(|n| vec![None; n.types.len()]).collect())
    }
    fn get(&self, v: Value) -> Option<Value> {
        self.0[v.node.index()][v.index as usize]
    }
    /// Adds a term to the gradient of `v`.
    fn add(&mut self, b: &mut Builder, v: Value, term: Value) {
        let sum = &mut self.0[v.node.index()][v.index as usize];
        *sum = Some(match *sum {
            Some(before) => b.add(before, term),
            None => term,
        });
    }
}

/// A forward node whose operands' gradients are asked for.
struct Site<'a> {
    id: NodeId,
    node: &'a Node,
    /// The gradients of its results; none is zero.
    dy: Vec<Option<Value>>,
    /// Which operands' gradients are of use.
    want: Vec<bool>,
    remat: Remat,
}

impl Site<'_> {
    /// Operand `i`.
    fn x(&self, i: usize) -> Value {
        self.node.inputs[i]
    }
    /// Result 0.
    fn y(&self) -> Value {
        Value { node: self.id, index: 0 }
    }
    /// The gradient of the only result.
    fn dy(&self) -> Value {
        self.dy[0].expect("an op with one result is visited for its gradient")
    }
}

/// Walks the forward nodes of `out` (those `adjoints` knows) from last to first and appends what computes the gradients of what varies.
fn reverse(out: &mut Func, varied: &[Vec<bool>], adjoints: &mut Adjoints, remat: Remat) -> Result<(), AutodiffError> {
    for index in (0..adjoints.0.len()).rev() {
        let id = NodeId::new(index);
        let dy = adjoints.0[index].clone();
        let want: Vec<bool> = out.nodes[id].inputs.iter().map(|v| varied[v.node.index()][v.index as usize]).collect();
        if dy.iter().all(Option::is_none) || !want.contains(&true) {
            continue;
        }
        let node = out.nodes[id].clone();
        let mut b = Builder { origin: node.origin, func: &mut *out };
        let site = Site { id, node: &node, dy, want, remat };
        let terms = terms(&mut b, &site)?;
        for ((v, term), want) in node.inputs.iter().zip(terms).zip(&site.want) {
            if let Some(term) = term.filter(|_| *want) {
                adjoints.add(&mut b, *v, term);
            }
        }
    }
    Ok(())
}

/// The terms a node adds to the gradients of its operands.
fn terms(b: &mut Builder, s: &Site) -> Result<Vec<Option<Value>>, AutodiffError> {
    match &s.node.op {
        Op::Attend(a) => Ok(attend::terms(b, s, a)),
        Op::Repeat(r) => repeat::terms(b, s, r),
        Op::Quantize(_) | Op::Dequantize(_) => quantize::terms(b, s),
        Op::Fused(_) => base::bug!("regions are taken apart first"),
        Op::AttendGrad(_) => Err(AutodiffError::NotDifferentiable { op: s.node.op.name() }),
        Op::Arg(_)
        | Op::Const(..)
        | Op::Extent(..)
        | Op::Iota(_)
        | Op::Map(_)
        | Op::Cast(_)
        | Op::Reduce(..)
        | Op::Broadcast { .. }
        | Op::Transpose(_)
        | Op::Reshape(_)
        | Op::Slice { .. }
        | Op::Concat(_)
        | Op::Pad { .. }
        | Op::Contract(_)
        | Op::Gather { .. }
        | Op::ScatterAdd { .. }
        | Op::TopK(_)
        | Op::Cumsum { .. }
        | Op::Route { .. }
        | Op::GroupedContract { .. }
        | Op::GroupedOuter
        | Op::Exchange { .. }
        | Op::StopGradient => Ok((0..s.want.len()).map(|i| s.want[i].then(|| term(b, s, i)).flatten()).collect()),
    }
}

/// The term of operand `i`, for ops with one result.
fn term(b: &mut Builder, s: &Site, i: usize) -> Option<Value> {
    match &s.node.op {
        Op::Map(f) => map::term(b, s, *f, i),
        Op::Cast(_) => {
            // What was rounded for products alone has a gradient as if it were not.
            let alone = |v: Value| {
                let mut users = b.func.nodes.values().filter(|n| n.inputs.contains(&v));
                matches!(b.func.def(v).op, Op::Cast(_)) && users.all(|n| matches!(n.op, Op::Cast(DType::F32)))
            };
            let dtype = match b.func.ty(s.x(0)).dtype {
                DType::TF32 if alone(s.x(0)) => DType::F32,
                dtype => dtype,
            };
            Some(b.cast(s.dy(), dtype))
        }
        Op::Reduce(f, axes) => Some(reduce::term(b, s, *f, axes)),
        Op::Broadcast { shape, axes } => {
            let repeated: Vec<usize> = (0..shape.len()).filter(|a| !axes.contains(a)).collect();
            Some(b.sum(s.dy(), &repeated))
        }
        Op::Transpose(perm) => Some(layout::transpose(b, s, perm)),
        Op::Reshape(_) => {
            let shape = b.func.ty(s.x(0)).shape.clone();
            Some(b.reshape(s.dy(), &shape))
        }
        Op::Slice { axis, start, len, step } => Some(layout::slice(b, s, *axis, start, len, *step)),
        Op::Concat(axis) => Some(layout::concat(b, s, *axis, i)),
        Op::Pad { axis, low, .. } => Some(layout::pad(b, s, *axis, low)),
        Op::Contract(c) => Some(contract::term(b, s, c, i)),
        Op::Gather { batch } => Some(index::gather(b, s, *batch)),
        Op::ScatterAdd { batch, .. } => Some(b.op(Op::Gather { batch: *batch }, &[s.dy(), s.x(0)])),
        Op::Cumsum { axis, exclusive, reverse } => {
            Some(b.op(Op::Cumsum { axis: *axis, exclusive: *exclusive, reverse: !reverse }, &[s.dy()]))
        }
        Op::GroupedContract { transposed } => Some(moe::grouped_contract(b, s, *transposed, i)),
        Op::GroupedOuter => Some(moe::grouped_outer(b, s, i)),
        Op::Exchange { what, members } => Some(moe::exchange(b, s, *what, *members)),
        Op::Arg(_) | Op::Const(..) | Op::Extent(..) | Op::Iota(_) | Op::TopK(_) | Op::Route { .. } | Op::StopGradient => None,
        Op::Attend(_) | Op::AttendGrad(_) | Op::Quantize(_) | Op::Dequantize(_) | Op::Repeat(_) | Op::Fused(_) => {
            base::bug!("{} has its own rule", s.node.op.name())
        }
    }
}
