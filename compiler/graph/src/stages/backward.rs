//! The entries of a stage: gradients are taken of its forward part, which is cut in what runs first and what runs later.

use crate::{
    accumulate::accumulate,
    autodiff::{self, Remat},
    build::Builder,
    ir::{Func, NodeId, Output, Role, Value},
    op::Op,
};

/// Of a stage's forward part: `forward` with, besides, what the backward entries read, as `saved.k`; `backward`, which gives gradients of
/// `in.k` and of parameters; and the same in two: `backward_input`, then `backward_weight`, which reads `held.k` of it.
pub(super) fn entries(forward: &Func) -> Vec<Func> {
    let crossing = |name: &str| name.starts_with("out.");
    let is_float = |o: &&Output| o.role == Role::Inner && crossing(&o.name) && forward.ty(o.value).dtype.is_float();
    let outputs: Vec<&Output> = forward.outputs.iter().filter(is_float).collect();
    let given: Vec<_> = outputs.iter().map(|o| (format!("d_{}", o.name), Role::Inner, forward.ty(o.value).clone())).collect();
    let (mut joint, gradients) = with_args(forward, &given);
    let shift = |v: Value| moved(forward, given.len(), v);
    let mut seeds: Vec<(Value, Value)> = outputs.iter().map(|o| shift(o.value)).zip(gradients).collect();
    if let Some(loss) = forward.outputs.iter().find(|o| o.role == Role::Scalar && o.name == "loss") {
        let one = Builder::new(&mut joint).constant(1.0, forward.ty(loss.value).dtype);
        seeds.push((shift(loss.value), one));
    }
    let is_wanted = |i: &usize| {
        let arg = &forward.args[*i];
        arg.role == Role::Param || (arg.role == Role::Inner && forward.arg_type(*i).dtype.is_float())
    };
    let wrt: Vec<usize> = (0..forward.args.len()).filter(is_wanted).collect();
    let found = autodiff::pull_back(&mut joint, &seeds, &wrt, Remat::Cheap).unwrap_or_else(|e| base::bug!("a stage: {e}"));
    for (i, value) in wrt.iter().zip(found) {
        let arg = &forward.args[*i];
        match arg.role {
            Role::Param => joint.output(&arg.name, Role::Grad, value),
            _ => joint.output(&format!("d_{}", arg.name), Role::Inner, value),
        }
    }
    let late = |o: &Output| o.role == Role::Grad || o.name.starts_with("d_in.");
    let (first, backward) = autodiff::cut_off(&joint, &late, ["forward", "backward", "saved"], Remat::Cheap);
    let mut parts = autodiff::split(&with_start(&backward), &|o| o.role == Role::Grad);
    parts.backward_input.outputs.retain(|o| !o.name.starts_with(START));
    vec![accumulate(&first), accumulate(&backward), parts.backward_input, accumulate(&parts.backward_weight)]
}

/// Before the number of a value that [`with_start`] names.
const START: &str = "start.";

/// A backward that gives no gradient to a stage before, with that of what its first loop carries as an output: so it is split where those of
/// other stages are, and a layer's kernels are the same on every stage.
fn with_start(backward: &Func) -> Func {
    let mut out = backward.clone();
    if out.outputs.iter().any(|o| o.name.starts_with("d_in.")) {
        return out;
    }
    let carried = |op: &Op| if let Op::Repeat(r) = op { r.carried } else { 0 };
    let last = backward.nodes.iter().rfind(|(_, n)| carried(&n.op) > 0);
    for index in last.iter().flat_map(|(_, n)| 0..carried(&n.op) as u32) {
        let node = last.expect("there is one").0;
        out.output(&format!("{START}{index}"), Role::Inner, Value { node, index });
    }
    out
}

fn moved(func: &Func, added: usize, v: Value) -> Value {
    let shift = if (v.node.0 as usize) < func.args.len() { 0 } else { added as u32 };
    Value { node: NodeId(v.node.0 + shift), index: v.index }
}

/// The function with further arguments, after its own; and these.
fn with_args(func: &Func, args: &[(String, Role, base::TensorType)]) -> (Func, Vec<Value>) {
    let mut out = Func::new(&func.name);
    for (arg, _, ty) in func.arg_values() {
        out.arg(&arg.name, arg.role, ty.clone());
    }
    let added = args.iter().map(|(name, role, ty)| out.arg(name, *role, ty.clone())).collect();
    for node in func.nodes.values().skip(func.args.len()) {
        let mut node = node.clone();
        node.inputs.iter_mut().for_each(|v| *v = moved(func, args.len(), *v));
        out.nodes.push(node);
    }
    for o in &func.outputs {
        out.output(&o.name, o.role, moved(func, args.len(), o.value));
    }
    (out, added)
}
