//! Moves nodes that give the same in each turn out of loops: they are computed once and become constant operands.
//! Before: `repeat 4 (x) constant (w) { x + cast w }`   After: `%1 = cast w; repeat 4 (x) constant (%1) { x + %1 }`.
//!
//! Only where holding the result is cheap: it takes no more elements than a constant operand, or at most one run-time dim times a
//! constant. So a table of angles `[T, 32]` leaves the loop, a mask `[T, T]` stays. What costs nothing to repeat (constants, iota,
//! broadcast, slice) moves only with a node that needs it.

use super::{Stats, push};
use crate::{
    ir::{Arg, Func, Node, NodeId, Role, Value},
    op::{Op, Repeat},
};
use base::{Arena, Dim, TensorType, arena::Id};

/// See the module.
pub fn hoist_constant(func: &mut Func) -> Stats {
    let old = std::mem::take(func);
    let mut stats = Stats::default();
    *func = Func { name: old.name, args: old.args, nodes: Arena::new(), outputs: old.outputs };
    let mut moved: Vec<Vec<Value>> = Vec::with_capacity(old.nodes.len());
    for node in old.nodes.values() {
        let mut node = node.clone();
        for v in &mut node.inputs {
            *v = moved[v.node.0 as usize][v.index as usize];
        }
        if let Op::Repeat(r) = &mut node.op {
            stats.changes += hoist_constant(&mut r.body).changes;
            stats.changes += hoist(func, r, &mut node.inputs);
        }
        moved.push(push(func, node));
    }
    for o in &mut func.outputs {
        o.value = moved[o.value.node.0 as usize][o.value.index as usize];
    }
    stats
}

/// Moves nodes of a loop's body to the end of `outer`; returns how many.
fn hoist(outer: &mut Func, r: &mut Repeat, operands: &mut Vec<Value>) -> usize {
    if r.count < 2 {
        return 0;
    }
    let body = &r.body;
    let constants = r.carried..r.carried + r.constant;
    let held: Vec<Dim> = constants.clone().map(|i| body.arg_type(i).elems()).collect();
    let mut invariant: Vec<bool> = Vec::with_capacity(body.nodes.len());
    for (id, node) in body.nodes.iter() {
        let same = |v: &Value| invariant[v.node.index()];
        let is = if matches!(node.op, Op::Arg(_)) { constants.contains(&id.index()) } else { node.inputs.iter().all(same) };
        invariant.push(is);
    }
    // Worth moving: costs something, and its result is cheap to hold.
    let moves = |id: NodeId, node: &Node| {
        invariant[id.index()] && costs(&node.op) && node.types.iter().all(|t| is_cheap_to_hold(t, &held))
    };
    let moves: Vec<bool> = body.nodes.iter().map(|(id, node)| moves(id, node)).collect();
    // A result that only moved nodes need is no operand of the loop; the last of a chain is.
    let mut leaves: Vec<Value> = Vec::new();
    let readers = body.nodes.iter().filter(|(id, _)| !moves[id.index()]).flat_map(|(_, n)| n.inputs.iter());
    for v in readers.chain(body.outputs.iter().map(|o| &o.value)) {
        if moves[v.node.index()] && !leaves.contains(v) {
            leaves.push(*v);
        }
    }
    if leaves.is_empty() {
        return 0;
    }
    // What moved nodes need goes along; as a copy, if the body needs it too.
    let mut copies = moves.clone();
    for (id, node) in body.nodes.iter().rev().filter(|(_, n)| !matches!(n.op, Op::Arg(_))) {
        if copies[id.index()] {
            node.inputs.iter().for_each(|v| copies[v.node.index()] = true);
        }
    }
    leaves.sort();
    // Only what leads to a leaf moves.
    let mut needed = vec![false; body.nodes.len()];
    leaves.iter().for_each(|v| needed[v.node.index()] = true);
    for (id, node) in body.nodes.iter().rev() {
        if needed[id.index()] {
            node.inputs.iter().for_each(|v| needed[v.node.index()] = true);
        }
    }
    let mut outside: Vec<Vec<Value>> = Vec::with_capacity(body.nodes.len());
    for (id, node) in body.nodes.iter() {
        let at = id.index();
        outside.push(if at < body.args.len() {
            vec![operands[at]]
        } else if copies[at] && needed[at] {
            let inputs = node.inputs.iter().map(|v| outside[v.node.index()][v.index as usize]).collect();
            push(outer, Node { inputs, ..node.clone() })
        } else {
            Vec::new()
        });
    }
    let count = moves.iter().zip(&needed).filter(|(m, n)| **m && **n).count();
    let at = r.carried + r.constant;
    operands.splice(at..at, leaves.iter().map(|v| outside[v.node.index()][v.index as usize]));
    // Moved nodes that lead to no leaf are dead: a node that stays and reads one makes it a leaf.
    r.body = with_arguments(body, at, &leaves, &moves);
    r.constant += leaves.len();
    count
}

/// The body with an argument from `at` on for each of the values, and without the nodes that moved.
pub(super) fn with_arguments(body: &Func, at: usize, values: &[Value], gone: &[bool]) -> Func {
    let mut new = Func::new(&body.name);
    let mut moved: Vec<Vec<Value>> = Vec::with_capacity(body.nodes.len());
    let mut replaced = Vec::new();
    for i in 0..=body.args.len() {
        if i == at {
            for v in values {
                let taken = |n: &usize| body.args.iter().chain(&new.args).any(|a: &Arg| a.name == format!("hoisted{n}"));
                let name = format!("hoisted{}", (0..).find(|n| !taken(n)).expect("there are more numbers than arguments"));
                replaced.push((*v, new.arg(&name, Role::Inner, body.ty(*v).clone())));
            }
        }
        if let Some(arg) = body.args.get(i) {
            moved.push(vec![new.arg(&arg.name, arg.role, body.arg_type(i).clone())]);
        }
    }
    let value = |moved: &[Vec<Value>], v: Value| match replaced.iter().find(|(old, _)| *old == v) {
        Some((_, new)) => *new,
        None => moved[v.node.index()][v.index as usize],
    };
    for (id, node) in body.nodes.iter().skip(body.args.len()) {
        if gone[id.index()] {
            moved.push(Vec::new());
            continue;
        }
        let inputs = node.inputs.iter().map(|v| value(&moved, *v)).collect();
        moved.push(push(&mut new, Node { inputs, ..node.clone() }));
    }
    for o in &body.outputs {
        let v = value(&moved, o.value);
        new.output(&o.name, o.role, v);
    }
    new
}

/// Whether it does more than name elements that are there already.
fn costs(op: &Op) -> bool {
    match op {
        Op::Arg(_)
        | Op::Const(..)
        | Op::Extent(..)
        | Op::Iota(_)
        | Op::Broadcast { .. }
        | Op::Reshape(_)
        | Op::Slice { .. }
        | Op::StopGradient => false,
        Op::Map(_)
        | Op::Cast(_)
        | Op::Reduce(..)
        | Op::Transpose(_)
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
        | Op::Fused(_) => true,
    }
}

fn is_cheap_to_hold(t: &TensorType, held: &[Dim]) -> bool {
    let elems = t.elems();
    let degree = elems.sum_of_products().iter().map(|(_, atoms)| atoms.len()).max().unwrap_or(0);
    degree <= 1 || held.iter().any(|h| h.try_div(&elems).is_some())
}
