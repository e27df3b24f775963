//! The derivative of a loop: a loop the other way round.
//!
//! The body is differentiated as a function: forward nodes, then the gradients' nodes. That function is cut in two. What the
//! gradients read of the forward nodes is stacked by the forward loop, which gets further results for it; the backward loop carries
//! the gradients of the carried values and the sums of the constants' gradients, and stacks the gradients of the stacked operands.

use super::{
    Adjoints, AutodiffError, Remat, Site,
    cut::{Source, cut_late, fresh, is_arg, is_cheap, is_free},
    flow, reverse,
};
use crate::{
    build::Builder,
    ir::{Func, Node, Role, Value},
    op::{Op, Repeat},
};
use base::{Dim, TensorType, arena::Id};
use std::collections::{BTreeMap, BTreeSet};

/// The differentiated body before it is cut.
struct Joint {
    func: Func,
    /// How many nodes are of the forward body.
    forward: usize,
    /// What the backward loop carries and stacks.
    gradients: Vec<Gradient>,
    /// For stacked outputs with a gradient, which output and the value that stands for its slice.
    seeds: Vec<(usize, Value)>,
}

/// A gradient that the backward loop computes.
struct Gradient {
    /// Of which operand of the loop.
    operand: usize,
    /// What stands for its value before the turn; none for a stacked operand.
    before: Option<Value>,
    /// Its value after the turn, or the slice to stack.
    after: Value,
}

pub(super) fn terms(b: &mut Builder, s: &Site, r: &Repeat) -> Result<Vec<Option<Value>>, AutodiffError> {
    let mut terms = vec![None; s.node.inputs.len()];
    if r.count == 0 {
        terms[..r.carried].copy_from_slice(&s.dy[..r.carried]);
        return Ok(terms);
    }
    let joint = differentiate(s, r)?;
    if joint.gradients.is_empty() {
        return Ok(terms);
    }
    let fixed = r.carried + r.constant;
    let source = |v: Value| match &joint.func.nodes[v.node].op {
        Op::Arg(i) if (*i as usize) < r.carried => Source::Saved,
        Op::Arg(_) => Source::Given,
        _ if v.node.index() >= joint.forward => Source::Computed,
        op if is_free(op) || (s.remat == Remat::Cheap && is_cheap(op)) => Source::Computed,
        _ => Source::Saved,
    };
    let targets: Vec<Value> = joint.gradients.iter().map(|g| g.after).collect();
    let stacked: BTreeSet<Value> = r.body.outputs.iter().skip(r.carried).map(|o| o.value).collect();
    let cut = cut_late(&joint.func, joint.forward, &targets, &stacked, source);

    // Arguments of the backward body and operands of the backward loop, in step.
    let (mut body, mut map, mut operands) = (Func::new("body"), BTreeMap::new(), Vec::new());
    let mut arg = |body: &mut Func, name: String, old: Value, operand: Value| {
        map.insert(old, body.arg(&name, Role::Inner, joint.func.ty(old).clone()));
        operands.push(operand);
    };
    for (g, before) in joint.gradients.iter().filter_map(|g| Some((g, g.before?))) {
        let start = s.dy.get(g.operand).copied().flatten().filter(|_| g.operand < r.carried);
        let start = start.unwrap_or_else(|| b.full_like(s.x(g.operand), 0.0));
        arg(&mut body, format!("grad.{}", g.operand), before, start);
    }
    let carried = body.args.len();
    let given = |range: std::ops::Range<usize>| {
        cut.given.iter().filter(move |v| is_arg(&r.body, **v) && range.contains(&v.node.index())).copied()
    };
    for v in given(r.carried..fixed) {
        arg(&mut body, format!("arg.{}", v.node.index()), v, s.x(v.node.index()));
    }
    let constant = body.args.len() - carried;
    for v in given(fixed..r.body.args.len()) {
        arg(&mut body, format!("arg.{}", v.node.index()), v, s.x(v.node.index()));
    }
    for (output, seed) in joint.seeds.iter().filter(|(_, seed)| cut.given.contains(seed)) {
        arg(&mut body, format!("dy.{output}"), *seed, s.dy[*output].expect("a seed is of a result with a gradient"));
    }
    let stacks = save(b.func, s, r, &joint, cut.saved.iter().copied());
    for (k, (v, stack)) in cut.saved.iter().zip(stacks).enumerate() {
        arg(&mut body, format!("saved.{k}"), *v, stack);
    }

    cut.copy(&joint.func, &mut body, &mut map);
    for g in &joint.gradients {
        body.output(&format!("grad.{}", g.operand), Role::Inner, map[&g.after]);
    }
    let backward = Repeat { count: r.count, carried, constant, reverse: !r.reverse, body };
    for (g, result) in joint.gradients.iter().zip(b.node(Op::Repeat(Box::new(backward)), &operands)) {
        terms[g.operand] = Some(result);
    }
    Ok(terms)
}

/// The body with the gradients of what it is asked for.
fn differentiate(s: &Site, r: &Repeat) -> Result<Joint, AutodiffError> {
    let (varied_args, varied) = flow::varied_body(r, &s.want);
    let results: Vec<bool> = s.dy.iter().map(Option::is_some).collect();
    let (_, useful) = flow::useful_body(r, &results);
    let outputs: Vec<Value> = r.body.outputs.iter().map(|o| o.value).collect();
    let mut joint = Joint { func: r.body.clone(), forward: r.body.nodes.len(), gradients: Vec::new(), seeds: Vec::new() };
    // Stands for an argument of the backward body; the number is past all arguments of the forward one.
    let placeholder = |func: &mut Func, ty: TensorType| {
        let op = Op::Arg(u32::try_from(func.nodes.len()).expect("fewer than 2^32 nodes"));
        Value { node: func.nodes.push(Node { op, inputs: Vec::new(), types: vec![ty], origin: None }), index: 0 }
    };
    let mut adjoints = Adjoints::new(&r.body);
    let mut before = BTreeMap::new();
    for (i, v) in outputs.iter().enumerate() {
        let is_carried = i < r.carried;
        let varies = varied[v.node.index()][v.index as usize];
        if if is_carried { !varied_args[i] || !useful[i] } else { !varies || !results[i] } {
            continue;
        }
        let seed = placeholder(&mut joint.func, r.body.ty(*v).clone());
        if is_carried {
            before.insert(i, seed);
        } else {
            joint.seeds.push((i, seed));
        }
        if varies {
            adjoints.add(&mut Builder::new(&mut joint.func), *v, seed);
        }
    }
    reverse(&mut joint.func, &varied, &mut adjoints, s.remat)?;
    for (operand, varies) in varied_args.into_iter().enumerate() {
        let arg = r.body.arg_value(operand);
        let found = adjoints.get(arg).filter(|_| varies);
        let gradient = if operand < r.carried {
            let Some(before) = before.get(&operand) else { continue };
            let after = found.unwrap_or_else(|| Builder::new(&mut joint.func).full_like(arg, 0.0));
            Gradient { operand, before: Some(*before), after }
        } else {
            let Some(term) = found else { continue };
            if operand < r.carried + r.constant {
                let before = placeholder(&mut joint.func, r.body.ty(arg).clone());
                let after = Builder::new(&mut joint.func).add(before, term);
                Gradient { operand, before: Some(before), after }
            } else {
                Gradient { operand, before: None, after: term }
            }
        };
        joint.gradients.push(gradient);
    }
    Ok(joint)
}

/// Makes the forward loop stack these values of its body; returns the stacks. What it stacks already is not stacked twice.
fn save(func: &mut Func, s: &Site, r: &Repeat, joint: &Joint, values: impl Iterator<Item = Value>) -> Vec<Value> {
    let nodes = joint.func.nodes.values().take(joint.forward).cloned().collect();
    let mut body = Func { nodes, ..r.body.clone() };
    let mut types = s.node.types.clone();
    let mut stacks = Vec::new();
    for v in values {
        let known = body.outputs.iter().skip(r.carried).position(|o| o.value == v);
        let at = known.map_or(body.outputs.len(), |k| r.carried + k);
        if known.is_none() {
            let name = fresh(&body, "saved", at);
            body.output(&name, Role::Inner, v);
            let mut ty = body.ty(v).clone();
            ty.shape.insert(0, Dim::from(r.count));
            types.push(ty);
        }
        stacks.push(Value { node: s.id, index: u32::try_from(at).expect("fewer than 2^32 results") });
    }
    let node = &mut func.nodes[s.id];
    node.op = Op::Repeat(Box::new(Repeat { body, ..r.clone() }));
    node.types = types;
    stacks
}
