//! Cuts functions of gradients in two: what runs first, and what a schedule can place later.

use super::{
    Remat,
    cut::{Cut, Source, cut, fresh, is_arg, is_cheap, is_free},
};
use crate::{
    ir::{Func, Node, Output, Role, Value},
    op::{Op, Repeat},
};
use base::{Dim, arena::Id};
use std::collections::{BTreeMap, BTreeSet};

/// The two parts of a gradient function; run one after the other, they are the whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Split {
    /// All outputs but the gradients of parameters, then, with the role `Inner`, what the second part needs.
    pub backward_input: Func,
    /// From those of the arguments that it uses, then the first part's `Inner` outputs under the same names: the gradients of parameters.
    pub backward_weight: Func,
}

/// Splits a function made by `grad` or `pull_back`. A node goes to the second part if only the gradients of parameters, which `is_weight`
/// marks, need it; a loop that computes both becomes two.
pub fn split(joint: &Func, is_weight: &dyn Fn(&Output) -> bool) -> Split {
    let joint = part_loops(joint, is_weight);
    let names = ["backward_input", "backward_weight", "held"];
    let (backward_input, backward_weight) = cut_off(&joint, is_weight, names, Remat::Save);
    Split { backward_input, backward_weight }
}

/// Cuts a function in two: the second computes the outputs marked as `late`, the first all others and, with the role `Inner`, what the
/// second reads. Each takes those of the arguments that it uses. With `Remat::Cheap` the second part computes cheap ops again.
/// `names`: of the first function, of the second, and of what is handed over before its number.
pub fn cut_off(joint: &Func, late: &dyn Fn(&Output) -> bool, names: [&str; 3], remat: Remat) -> (Func, Func) {
    let (later, others): (Vec<_>, Vec<_>) = joint.outputs.iter().partition(|o| late(o));
    let given = |v: Value| if is_arg(joint, v) { Source::Given } else { Source::Computed };
    let first = cut(joint, others.iter().map(|o| o.value), given);
    let again = |op: &Op| is_free(op) || (remat == Remat::Cheap && is_cheap(op));
    let second = cut(joint, later.iter().map(|o| o.value), |v| match given(v) {
        Source::Computed if first.nodes.contains(&v.node) && !again(&joint.nodes[v.node].op) => Source::Saved,
        source => source,
    });
    let start = |name: &str, cut: &Cut| {
        let (mut func, mut map) = (Func::new(name), BTreeMap::new());
        for (arg, v, ty) in joint.arg_values().filter(|(_, v, _)| cut.given.contains(v)) {
            map.insert(v, func.arg(&arg.name, arg.role, ty.clone()));
        }
        (func, map)
    };
    let (mut early, mut map) = start(names[0], &first);
    first.copy(joint, &mut early, &mut map);
    others.iter().for_each(|o| early.output(&o.name, o.role, map[&o.value]));
    let mut handed = Vec::new();
    for (k, v) in second.saved.iter().enumerate() {
        let name = fresh(joint, names[2], k);
        early.output(&name, Role::Inner, map[v]);
        handed.push((name, *v));
    }
    let (mut after, mut map) = start(names[1], &second);
    for (name, v) in &handed {
        map.insert(*v, after.arg(name, Role::Inner, joint.ty(*v).clone()));
    }
    second.copy(joint, &mut after, &mut map);
    later.iter().for_each(|o| after.output(&o.name, o.role, map[&o.value]));
    (early, after)
}

/// Takes loops apart that compute both what outputs marked as `late` need and what others do: the second loop makes the stacks that only
/// the late ones need, from what the first stacks for it.
fn part_loops(func: &Func, late: &dyn Fn(&Output) -> bool) -> Func {
    let early = values(func, func.outputs.iter().filter(|o| !late(o)).map(|o| o.value));
    let mut out = Func { name: func.name.clone(), args: func.args.clone(), ..Func::default() };
    let mut moved: Vec<Vec<Value>> = Vec::with_capacity(func.nodes.len());
    for (id, node) in func.nodes.iter() {
        let mut node = node.clone();
        node.inputs.iter_mut().for_each(|v| *v = moved[v.node.index()][v.index as usize]);
        let results = node.types.len();
        let is_early = |i: usize| early.contains(&Value { node: id, index: i as u32 });
        let found = match &node.op {
            Op::Repeat(r) if (0..results).any(is_early) => {
                let late: Vec<usize> = (r.carried..results).filter(|i| !is_early(*i)).collect();
                (!late.is_empty()).then(|| part_loop(&mut out, &node, r, &late))
            }
            _ => None,
        };
        moved.push(found.unwrap_or_else(|| push(&mut out, node)));
    }
    for o in &func.outputs {
        out.output(&o.name, o.role, moved[o.value.node.index()][o.value.index as usize]);
    }
    out
}

/// The values that `targets` depend on, and they themselves.
fn values(func: &Func, targets: impl IntoIterator<Item = Value>) -> BTreeSet<Value> {
    let (mut found, mut waiting) = (BTreeSet::new(), targets.into_iter().collect::<Vec<_>>());
    while let Some(v) = waiting.pop() {
        if found.insert(v) {
            waiting.extend(&func.nodes[v.node].inputs);
        }
    }
    found
}

/// Appends the loop `node` as two; its results.
fn part_loop(out: &mut Func, node: &Node, r: &Repeat, late: &[usize]) -> Vec<Value> {
    let body = &r.body;
    let fixed = r.carried + r.constant;
    let early: Vec<usize> = (0..body.outputs.len()).filter(|i| !late.contains(i)).collect();
    let output = |i: &usize| body.outputs[*i].value;
    let first = cut(body, early.iter().map(output), |v| if is_arg(body, v) { Source::Given } else { Source::Computed });
    let second = cut(body, late.iter().map(output), |v| match &body.nodes[v.node].op {
        Op::Arg(i) if (*i as usize) < r.carried => Source::Saved,
        Op::Arg(_) => Source::Given,
        op if first.nodes.contains(&v.node) && !is_free(op) => Source::Saved,
        _ => Source::Computed,
    });

    let mut early_body = Func::new("body");
    let mut map = BTreeMap::new();
    for (arg, v, ty) in body.arg_values() {
        map.insert(v, early_body.arg(&arg.name, arg.role, ty.clone()));
    }
    first.copy(body, &mut early_body, &mut map);
    early.iter().for_each(|i| early_body.output(&body.outputs[*i].name, body.outputs[*i].role, map[&output(i)]));
    for (k, v) in second.saved.iter().enumerate() {
        early_body.output(&fresh(body, "held", k), Role::Inner, map[v]);
    }
    let loop_node = |op: Repeat, inputs: Vec<Value>| {
        let stack = |i: usize, o: &Output, body: &Func| {
            let mut ty = body.ty(o.value).clone();
            if i >= op.carried {
                ty.shape.insert(0, Dim::from(op.count));
            }
            ty
        };
        let types = op.body.outputs.iter().enumerate().map(|(i, o)| stack(i, o, &op.body)).collect();
        Node { inputs, types, origin: node.origin, op: Op::Repeat(Box::new(op)) }
    };
    let before = push(out, loop_node(Repeat { body: early_body, ..r.clone() }, node.inputs.clone()));

    let (mut late_body, mut map, mut operands, mut constant) = (Func::new("body"), BTreeMap::new(), Vec::new(), 0);
    for v in &second.given {
        let i = v.node.index();
        map.insert(*v, late_body.arg(&format!("arg.{i}"), Role::Inner, body.ty(*v).clone()));
        operands.push(node.inputs[i]);
        constant += usize::from(i < fixed);
    }
    for (k, v) in second.saved.iter().enumerate() {
        map.insert(*v, late_body.arg(&format!("held.{k}"), Role::Inner, body.ty(*v).clone()));
        operands.push(before[early.len() + k]);
    }
    second.copy(body, &mut late_body, &mut map);
    late.iter().for_each(|i| late_body.output(&body.outputs[*i].name, body.outputs[*i].role, map[&output(i)]));
    let after = Repeat { count: r.count, carried: 0, constant, reverse: r.reverse, body: late_body };
    let after = push(out, loop_node(after, operands));

    let place = |list: &[usize], i: usize| list.iter().position(|x| *x == i);
    let result = |i| place(late, i).map_or_else(|| before[place(&early, i).expect("early or late")], |k| after[k]);
    (0..body.outputs.len()).map(result).collect()
}

fn push(out: &mut Func, node: Node) -> Vec<Value> {
    let count = u32::try_from(node.types.len()).expect("fewer than 2^32 results");
    let node = out.nodes.push(node);
    (0..count).map(|index| Value { node, index }).collect()
}
