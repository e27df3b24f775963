//! Lets a contraction give its result in the order in which it is read, where a transpose and casts are all that reads it. Exact: the same products are summed.
//! Before: `%2 = contract %0, %1 {"ab,ac->bc"}; %3 = cast %2; %4 = transpose %3`   After: `%2 = contract %0, %1 {"ab,ac->cb"}; %3 = cast %2`.

use super::{Stats, push};
use crate::{
    ir::{Func, Node, NodeId, Value},
    op::{Contract, Op},
};
use base::{Arena, arena::Id};

/// See the module.
pub fn fold_transpose(func: &mut Func) -> Stats {
    let old = std::mem::take(func);
    let mut stats = Stats::default();
    *func = Func { name: old.name, args: old.args, nodes: Arena::new(), outputs: old.outputs };
    let mut users = vec![0; old.nodes.len()];
    let read = old.nodes.values().flat_map(|n| n.inputs.iter()).chain(func.outputs.iter().map(|o| &o.value));
    read.for_each(|v| users[v.node.index()] += 1);
    let mut moved: Vec<Vec<Value>> = Vec::with_capacity(old.nodes.len());
    for node in old.nodes.values() {
        let mut node = node.clone();
        if let Op::Repeat(r) = &mut node.op {
            stats.changes += fold_transpose(&mut r.body).changes;
        }
        let inputs = |n: &Node| n.inputs.iter().map(|v| moved[v.node.index()][v.index as usize]).collect::<Vec<_>>();
        let values = match alone(&old.nodes, &users, &node) {
            Some((product, spec, casts)) => {
                stats.changes += 1;
                let mut ty = node.types[0].clone();
                ty.dtype = product.types[0].dtype;
                let node =
                    Node { op: Op::Contract(spec), inputs: inputs(product), types: vec![ty.clone()], origin: product.origin };
                casts.into_iter().rev().fold(push(func, node), |x, cast| {
                    let types = vec![ty.with_dtype(cast.types[0].dtype)];
                    push(func, Node { op: cast.op.clone(), inputs: x, types, origin: cast.origin })
                })
            }
            None => {
                node.inputs = inputs(&node);
                push(func, node)
            }
        };
        moved.push(values);
    }
    for o in &mut func.outputs {
        o.value = moved[o.value.node.index()][o.value.index as usize];
    }
    stats
}

/// The contraction that a node transposes and nothing else reads, in the order that is wanted, and the casts between.
fn alone<'n>(nodes: &'n Arena<NodeId, Node>, users: &[usize], node: &Node) -> Option<(&'n Node, Contract, Vec<&'n Node>)> {
    let Op::Transpose(perm) = &node.op else { return None };
    let (mut below, mut casts) = (node.inputs[0].node, Vec::new());
    while users[below.index()] == 1 {
        match &nodes[below].op {
            Op::Cast(_) => {
                casts.push(&nodes[below]);
                below = nodes[below].inputs[0].node;
            }
            Op::Contract(c) => {
                let out = perm.iter().map(|p| c.out[*p]).collect();
                return Some((&nodes[below], Contract { out, ..c.clone() }, casts));
            }
            _ => return None,
        }
    }
    None
}
