//! Contractions that share an operand become one: QKV, gate and up, router. Done once, outside saturation, as a join on the shared
//! operand, so that the rule never sees its own result.
//!
//! x·w₁, x·w₂ → slices of x·[w₁ w₂]. Exact: each result element sums the same products in the same order.

use crate::language::{ENode, Facts, Head};
use base::Dim;
use egg::{EGraph, Id};
use graph::{Func, Op, Value, op::Contract};
use std::collections::BTreeMap;

/// One way to compute several classes together.
pub struct Group {
    /// The classes and the e-nodes (slices of the common product) to choose for them.
    pub members: Vec<(Id, ENode)>,
}

/// Adds the merged product of each set of contractions `x·w` with one x and weights that are arguments of the function.
pub fn shared_operand(egraph: &mut EGraph<ENode, Facts>, func: &Func, classes: &BTreeMap<Value, Id>) -> Vec<Group> {
    // By shared operand and form: the contractions, in order.
    let mut sets: Vec<(Value, Contract, Vec<(Value, Value)>)> = Vec::new();
    for (id, node) in func.nodes.iter() {
        let Op::Contract(spec) = &node.op else { continue };
        // A plain product: one column axis in the weight, last in the result.
        let cols = spec.cols();
        let plain = spec.batch().is_empty() && cols.len() == 1 && spec.out.last() == cols.first() && spec.rhs.len() == 2;
        if !plain || !is_weight(func, node.inputs[1]) {
            continue;
        }
        let entry = (Value { node: id, index: 0 }, node.inputs[1]);
        match sets.iter_mut().find(|(x, s, _)| *x == node.inputs[0] && s == spec) {
            Some((_, _, members)) => members.push(entry),
            None => sets.push((node.inputs[0], spec.clone(), vec![entry])),
        }
    }
    let mut groups = Vec::new();
    for (x, spec, members) in sets.into_iter().filter(|(_, _, m)| m.len() > 1) {
        let axis = spec.rhs.iter().position(|c| spec.cols().contains(c)).expect("the weight has the column axis");
        let weights: Vec<Id> = members.iter().map(|(_, w)| classes[w]).collect();
        let joined = add(egraph, &Op::Concat(axis), weights);
        let product = add(egraph, &Op::Contract(spec.clone()), vec![classes[&x], joined]);
        let mut start = Dim::from(0);
        let mut group = Group { members: Vec::new() };
        for (result, _) in &members {
            let ty = func.ty(*result);
            let last = ty.rank() - 1;
            let len = ty.shape[last].clone();
            let op = Op::Slice { axis: last, start: start.clone(), len: len.clone(), step: 1 };
            let node = ENode { head: egraph.analysis.intern(&op), children: vec![product] };
            let slice = egraph.add(node.clone());
            egraph.union(classes[result], slice);
            group.members.push((classes[result], node));
            start = start + len;
        }
        groups.push(group);
    }
    egraph.rebuild();
    groups
}

fn add(egraph: &mut EGraph<ENode, Facts>, op: &Op, children: Vec<Id>) -> Id {
    let head: Head = egraph.analysis.intern(op);
    egraph.add(ENode { head, children })
}

/// Whether a value is an argument, or an argument cast to another dtype: then joining it costs a copy and no recomputation.
fn is_weight(func: &Func, v: Value) -> bool {
    match func.def(v).op {
        Op::Arg(_) => true,
        Op::Cast(_) => is_weight(func, func.def(v).inputs[0]),
        _ => false,
    }
}
