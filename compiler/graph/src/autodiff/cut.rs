//! Cuts a function in two: what the second part computes itself, and what it takes from the first.

use crate::{
    ir::{Func, NodeId, Value},
    op::Op,
};
use base::arena::Id;
use std::collections::{BTreeMap, BTreeSet};

/// How the second part comes by a value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// It is an argument of the second part already.
    Given,
    /// The first part computes it and hands it over.
    Saved,
    /// The second part computes it.
    Computed,
}

/// What a second part consists of.
#[derive(Default)]
pub(super) struct Cut {
    /// The values it is given that it uses.
    pub(super) given: BTreeSet<Value>,
    /// The values handed over.
    pub(super) saved: BTreeSet<Value>,
    /// The nodes it computes.
    pub(super) nodes: BTreeSet<NodeId>,
}

/// The second part that computes `targets`.
pub(super) fn cut(func: &Func, targets: impl IntoIterator<Item = Value>, source: impl Fn(Value) -> Source) -> Cut {
    let mut cut = Cut::default();
    let mut needed: Vec<Value> = targets.into_iter().collect();
    while let Some(v) = needed.pop() {
        match source(v) {
            Source::Given => drop(cut.given.insert(v)),
            Source::Saved => drop(cut.saved.insert(v)),
            Source::Computed if cut.nodes.insert(v.node) => needed.extend(&func.nodes[v.node].inputs),
            Source::Computed => {}
        }
    }
    cut
}

/// The same, where what the first part, of so many nodes, computes of a value may be handed over in its place: it is no larger, and nothing in the second
/// part reads the value but through it. What leads from the one to the other, as the rotation of queries, is then not computed again. What is `kept` in any
/// case costs nothing to hand over, so nothing takes its place.
pub(super) fn cut_late(
    func: &Func,
    first: usize,
    targets: &[Value],
    kept: &BTreeSet<Value>,
    source: impl Fn(Value) -> Source,
) -> Cut {
    let mut instead: BTreeSet<Value> = BTreeSet::new();
    let with = |instead: &BTreeSet<Value>| {
        cut(func, targets.iter().copied(), |v| if instead.contains(&v) { Source::Saved } else { source(v) })
    };
    let cost = |cut: &Cut| cut.saved.difference(kept).count();
    let mut best = with(&instead);
    // Of integers, as the results of a routing, rules may know more than of what is computed of them.
    for v in best.saved.difference(kept).copied().filter(|v| func.ty(*v).dtype.is_float()).collect::<Vec<_>>() {
        let (of_v, elems) = (func.ty(v), func.ty(v).elems());
        let fits = |id: &NodeId| {
            let node = &func.nodes[*id];
            let [ty] = &node.types[..] else { return false };
            *id > v.node
                && id.index() < first
                && !is_free(&node.op)
                && ty.elems() == elems
                && ty.dtype.bytes() <= of_v.dtype.bytes()
        };
        // The last first.
        for node in best.nodes.clone().into_iter().rev().filter(fits) {
            let mut other = instead.clone();
            other.insert(Value { node, index: 0 });
            let found = with(&other);
            if !found.saved.contains(&v) && cost(&found) <= cost(&best) {
                (best, instead) = (found, other);
                break;
            }
        }
    }
    best
}

impl Cut {
    /// Appends the nodes to `out`, whose values for those given and saved are in `map`; adds the results to `map`.
    pub(super) fn copy(&self, func: &Func, out: &mut Func, map: &mut BTreeMap<Value, Value>) {
        for id in &self.nodes {
            let mut node = func.nodes[*id].clone();
            node.inputs.iter_mut().for_each(|v| *v = map[v]);
            let results = node.types.len();
            let new = out.nodes.push(node);
            map.extend((0..results as u32).map(|index| (Value { node: *id, index }, Value { node: new, index })));
        }
    }
}

/// Whether a result takes no memory or no less than the operand: never worth saving.
pub(super) fn is_free(op: &Op) -> bool {
    match op {
        Op::Const(..) | Op::Extent(..) | Op::Iota(_) | Op::Broadcast { .. } | Op::Reshape(_) | Op::StopGradient => true,
        Op::Arg(_)
        | Op::Map(_)
        | Op::Cast(_)
        | Op::Reduce(..)
        | Op::Transpose(_)
        | Op::Slice { .. }
        | Op::Concat(_)
        | Op::Pad { .. }
        | Op::Contract(_)
        | Op::Gather { .. }
        | Op::ScatterAdd { .. }
        | Op::TopK(_)
        | Op::Cumsum { .. }
        | Op::Attend(_)
        | Op::AttendGrad(_)
        | Op::Route { .. }
        | Op::GroupedContract { .. }
        | Op::GroupedOuter
        | Op::Exchange { .. }
        | Op::Quantize(_)
        | Op::Dequantize(_)
        | Op::Repeat(_)
        | Op::Fused(_) => false,
    }
}

/// Whether a result costs a pass over memory at most.
pub(super) fn is_cheap(op: &Op) -> bool {
    match op {
        Op::Map(_) | Op::Cast(_) | Op::Transpose(_) | Op::Slice { .. } | Op::Concat(_) | Op::Pad { .. } => true,
        // A pass for the scales and one for the codes, in place of a code for each weight of each layer.
        Op::Quantize(_) | Op::Dequantize(_) => true,
        Op::Const(..) | Op::Extent(..) | Op::Iota(_) | Op::Broadcast { .. } | Op::Reshape(_) | Op::StopGradient => true,
        Op::Arg(_)
        | Op::Reduce(..)
        | Op::Contract(_)
        | Op::Gather { .. }
        | Op::ScatterAdd { .. }
        | Op::TopK(_)
        | Op::Cumsum { .. }
        | Op::Attend(_)
        | Op::AttendGrad(_)
        | Op::Route { .. }
        | Op::GroupedContract { .. }
        | Op::GroupedOuter
        | Op::Exchange { .. }
        | Op::Repeat(_)
        | Op::Fused(_) => false,
    }
}

/// A name, `<prefix>.<k>` if it is free, that no output or argument has.
pub(super) fn fresh(func: &Func, prefix: &str, k: usize) -> String {
    let taken = |name: &str| func.outputs.iter().any(|o| o.name == name) || func.args.iter().any(|a| a.name == name);
    let mut name = format!("{prefix}.{k}");
    while taken(&name) {
        name.push('\'');
    }
    name
}

/// Whether `v` is an argument of `func`.
pub(super) fn is_arg(func: &Func, v: Value) -> bool {
    v.node.index() < func.args.len()
}
