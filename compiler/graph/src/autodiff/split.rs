//! Splits a gradient function into the part others wait for and the weights' gradients, which a schedule can place later.

use super::cut::{Source, cut, fresh, is_arg, is_free};
use crate::ir::{Func, Role, Value};
use std::collections::{BTreeMap, BTreeSet};

/// The two parts of a gradient function; run one after the other, they are the whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Split {
    /// All outputs but the gradients of parameters, then, with the role `Inner`, what the second part needs.
    pub backward_input: Func,
    /// From those of the arguments that it uses, then the first part's `Inner` outputs under the same names: the gradients of parameters.
    pub backward_weight: Func,
}

/// Splits a function made by `grad`. A node goes to the second part if only the gradients of parameters need it; loops are not taken
/// apart.
pub fn split(joint: &Func) -> Split {
    let is_weight = |name: &str| joint.args.iter().any(|a| a.name == name && a.role == Role::Param);
    let (weights, others): (Vec<_>, Vec<_>) = joint.outputs.iter().partition(|o| o.role == Role::Grad && is_weight(&o.name));
    let given = |v: Value| if is_arg(joint, v) { Source::Given } else { Source::Computed };
    let first = cut(joint, others.iter().map(|o| o.value), given);
    let second = cut(joint, weights.iter().map(|o| o.value), |v| match given(v) {
        Source::Computed if first.nodes.contains(&v.node) && !is_free(&joint.nodes[v.node].op) => Source::Saved,
        source => source,
    });

    let mut backward_input = Func::new("backward_input");
    let mut map = BTreeMap::new();
    for (arg, v, ty) in joint.arg_values() {
        map.insert(v, backward_input.arg(&arg.name, arg.role, ty.clone()));
    }
    first.copy(joint, &mut backward_input, &mut map);
    others.iter().for_each(|o| backward_input.output(&o.name, o.role, map[&o.value]));
    let mut handed = Vec::new();
    for (k, v) in second.saved.iter().enumerate() {
        let name = fresh(&backward_input, k);
        backward_input.output(&name, Role::Inner, map[v]);
        handed.push((name, *v));
    }

    let mut backward_weight = Func::new("backward_weight");
    let used: BTreeSet<Value> = second.given.iter().copied().collect();
    let mut map = BTreeMap::new();
    for (arg, v, ty) in joint.arg_values().filter(|(_, v, _)| used.contains(v)) {
        map.insert(v, backward_weight.arg(&arg.name, arg.role, ty.clone()));
    }
    for (name, v) in &handed {
        map.insert(*v, backward_weight.arg(name, Role::Inner, joint.ty(*v).clone()));
    }
    second.copy(joint, &mut backward_weight, &mut map);
    weights.iter().for_each(|o| backward_weight.output(&o.name, o.role, map[&o.value]));
    Split { backward_input, backward_weight }
}
