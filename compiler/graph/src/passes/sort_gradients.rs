//! Gradients of attention over lists before others of the same queries: what they have aside is large, and the sum of the gradients of queries is not there yet.
//! Before: `attend_grad %q, … {causal}; attend_grad %q, … {blocks}`   After: `attend_grad %q, … {blocks}; attend_grad %q, … {causal}`. Exact.

use super::{Stats, push};
use crate::{
    ir::{Func, Node, NodeId, Value},
    op::Op,
};
use base::Arena;

/// See the module.
pub fn sort_gradients(func: &mut Func) -> Stats {
    let mut stats = Stats::default();
    for node in func.nodes.values_mut() {
        if let Op::Repeat(r) = &mut node.op {
            stats.changes += sort_gradients(&mut r.body).changes;
        }
    }
    let grads = func
        .nodes
        .iter()
        .filter_map(|(id, n)| if let Op::AttendGrad(a) = &n.op { Some((id, a.domain.has_lists())) } else { None });
    let grads: Vec<(NodeId, bool)> = grads.collect();
    // Those over lists that each of the others lets go first.
    let mut before: Vec<Vec<NodeId>> = vec![Vec::new(); func.nodes.len()];
    for (other, _) in grads.iter().filter(|(_, listed)| !listed) {
        let mut above = vec![false; func.nodes.len()];
        for (id, node) in func.nodes.iter() {
            above[id.0 as usize] = id == *other || node.inputs.iter().any(|v| above[v.node.0 as usize]);
        }
        let queries = |id: NodeId| func.nodes[id].inputs[0];
        let go =
            grads.iter().filter(|(id, listed)| *listed && id > other && queries(*id) == queries(*other) && !above[id.0 as usize]);
        before[other.0 as usize] = go.map(|(id, _)| *id).collect();
    }
    if before.iter().all(Vec::is_empty) {
        return stats;
    }
    stats.changes += before.iter().flatten().count();
    let old = std::mem::replace(&mut func.nodes, Arena::new());
    let mut moved: Vec<Vec<Value>> = vec![Vec::new(); old.len()];
    // In their order, each behind what it reads and what goes first; none twice.
    let mut todo: Vec<(NodeId, bool)> = old.ids().rev().map(|id| (id, false)).collect();
    while let Some((id, ready)) = todo.pop() {
        if !moved[id.0 as usize].is_empty() {
            continue;
        }
        let node = &old[id];
        if !ready {
            todo.push((id, true));
            todo.extend(
                node.inputs.iter().map(|v| v.node).chain(before[id.0 as usize].iter().copied()).rev().map(|n| (n, false)),
            );
            continue;
        }
        let inputs = node.inputs.iter().map(|v| moved[v.node.0 as usize][v.index as usize]).collect();
        moved[id.0 as usize] = push(func, Node { inputs, ..node.clone() });
    }
    for o in &mut func.outputs {
        o.value = moved[o.value.node.0 as usize][o.value.index as usize];
    }
    stats
}
