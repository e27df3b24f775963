//! Computes the same thing once: nodes of one op on the same values become the first of them; also inside loops, where arguments
//! that are given the same value each turn become one. The order of operands does not count where the function commutes.
//! Before: `%2 = exp %0; %3 = exp %0; %4 = add %2, %3`   After: `%2 = exp %0; %4 = add %2, %2`.

use super::{Stats, push};
use crate::{
    ir::{Func, NodeId, Value},
    op::{MapFn, Op},
};
use base::{Arena, arena::Id};
use std::collections::HashMap;

/// See the module.
pub fn merge_equal(func: &mut Func) -> Stats {
    let same = (0..func.args.len()).collect::<Vec<_>>();
    merge(func, &same)
}

/// Merges nodes; argument `i` equals argument `same[i] <= i`.
fn merge(func: &mut Func, same: &[usize]) -> Stats {
    let old = std::mem::take(func);
    let mut stats = Stats::default();
    *func = Func { name: old.name, args: old.args, nodes: Arena::new(), outputs: old.outputs };
    let mut moved: Vec<Vec<Value>> = Vec::with_capacity(old.nodes.len());
    // Looked up by key only, so its order cannot show.
    let mut seen: HashMap<(&'static str, Vec<Value>), Vec<NodeId>> = HashMap::new();
    for (id, node) in old.nodes.iter() {
        let mut node = node.clone();
        for v in &mut node.inputs {
            *v = moved[v.node.0 as usize][v.index as usize];
        }
        if let Op::Arg(i) = node.op {
            let (first, own) = (same[i as usize], push(func, node));
            let is_first = first == id.index();
            let read = old.nodes.values().any(|n| n.inputs.iter().any(|v| v.node == id));
            stats.changes += usize::from(!is_first && read);
            moved.push(if is_first { own } else { moved[first].clone() });
            continue;
        }
        if let Op::Repeat(r) = &mut node.op {
            let first_equal = |i: usize| {
                // Only arguments of one kind can be equal in each turn; carried ones are so in the first turn alone.
                let kind_start = match i {
                    _ if i < r.carried => i,
                    _ if i < r.carried + r.constant => r.carried,
                    _ => r.carried + r.constant,
                };
                (kind_start..i).find(|k| node.inputs[*k] == node.inputs[i]).unwrap_or(i)
            };
            let same: Vec<usize> = (0..node.inputs.len()).map(first_equal).collect();
            stats.changes += merge(&mut r.body, &same).changes;
        }
        let mut key = node.inputs.clone();
        if matches!(node.op, Op::Map(f) if commutes(f)) {
            key.sort();
        }
        let alike = seen.entry((node.op.name(), key)).or_default();
        let equal = alike.iter().find(|n| func.nodes[**n].op == node.op && func.nodes[**n].types == node.types);
        if let Some(first) = equal {
            let count = u32::try_from(node.types.len()).expect("fewer than 2^32 results");
            moved.push((0..count).map(|index| Value { node: *first, index }).collect());
            stats.changes += 1;
        } else {
            alike.push(NodeId::new(func.nodes.len()));
            moved.push(push(func, node));
        }
    }
    for o in &mut func.outputs {
        o.value = moved[o.value.node.0 as usize][o.value.index as usize];
    }
    stats
}

/// Whether the operands may change places without a change of bits.
fn commutes(f: MapFn) -> bool {
    matches!(f, MapFn::Add | MapFn::Mul | MapFn::Eq | MapFn::Ne | MapFn::And | MapFn::Or)
}
