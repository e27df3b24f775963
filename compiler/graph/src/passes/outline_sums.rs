//! Sums over columns of an attention's result, as a loss and gradients take them, and the attention as one region, where nothing else reads the result: it is never
//! stored then. Maps that such a sum is of are in the region; so is what is only repeated or mapped of little on the way. Of several attentions that a map reads
//! it is the last. Exact.
//! Before: `%o, %lse = attend …; … %s = reduce sum (map mul %o, %x)`   After: `%s, %lse = fused attend { … }; …`

use super::{Stats, push};
use crate::{
    ir::{Func, Node, NodeId, Value},
    op::{Form, Fused, Op, ReduceFn},
};
use base::Arena;
use std::collections::{BTreeMap, BTreeSet};

/// Ops of a region, at most.
const MOST_OPS: usize = 48;

/// Of all attentions.
pub fn outline_sums(func: &mut Func) -> Stats {
    outline_sums_where(func, &|_| true)
}

/// The same of the regions that `wanted` says, inside loops too.
pub fn outline_sums_where(func: &mut Func, wanted: &dyn Fn(&Fused) -> bool) -> Stats {
    let mut stats = Stats::default();
    for node in func.nodes.values_mut() {
        if let Op::Repeat(r) = &mut node.op {
            stats.changes += outline_sums_where(&mut r.body, wanted).changes;
        }
    }
    let attends: Vec<NodeId> = func.nodes.iter().filter(|(_, n)| matches!(n.op, Op::Attend(_))).map(|(id, _)| id).collect();
    // A map that reads several results is in the region of the last; then those before have another reader.
    let found = attends.iter().rev().find_map(|id| {
        let (nodes, results) = sums_of(func, *id)?;
        let (region, operands) = Fused::outline(func, Form::Attend, &nodes, &results);
        wanted(&region).then_some((nodes, results, region, operands))
    });
    if let Some((nodes, results, region, operands)) = found {
        replace(func, &nodes, &results, (region, &operands));
        stats.changes += 1 + outline_sums_where(func, wanted).changes;
    }
    stats
}

/// The nodes of an attention and of all that reads its result, if that ends in sums over columns, and the values that others read.
fn sums_of(func: &Func, attend: NodeId) -> Option<(BTreeSet<NodeId>, Vec<Value>)> {
    let o = Value { node: attend, index: 0 };
    let shape = &func.ty(o).shape;
    let mut readers: Vec<Vec<NodeId>> = vec![Vec::new(); func.nodes.len()];
    for (id, node) in func.nodes.iter() {
        node.inputs.iter().for_each(|v| readers[v.node.0 as usize].push(id));
    }
    let is_output = |id: NodeId| func.outputs.iter().any(|out| out.value.node == id);
    if func.outputs.iter().any(|out| out.value == o) {
        return None;
    }
    let (mut inside, mut sums, mut open) = (BTreeSet::from([attend]), BTreeSet::new(), vec![attend]);
    while let Some(id) = open.pop() {
        for reader in &readers[id.0 as usize] {
            let node = &func.nodes[*reader];
            let reads = id != attend || node.inputs.contains(&o);
            match &node.op {
                _ if !reads => {}
                Op::Reduce(ReduceFn::Sum, axes) if axes[..] == [3] => _ = sums.insert(*reader),
                Op::Map(_) | Op::Cast(_) if node.types[0].shape == *shape && !is_output(*reader) => {
                    if inside.insert(*reader) {
                        open.push(*reader);
                    }
                }
                _ => return None,
            }
        }
    }
    if sums.is_empty() {
        return None;
    }
    // What depends on the attention: none of it may be read, but what is inside.
    let mut above = vec![false; func.nodes.len()];
    for (id, node) in func.nodes.iter() {
        above[id.0 as usize] = id == attend || node.inputs.iter().any(|v| above[v.node.0 as usize]);
    }
    let mut open: Vec<NodeId> = inside.iter().copied().filter(|id| *id != attend).collect();
    while let Some(id) = open.pop() {
        for v in &func.nodes[id].inputs {
            let node = func.def(*v);
            let light = matches!(node.op, Op::Map(_) | Op::Cast(_) | Op::Broadcast { .. }) && node.types[0].shape == *shape;
            let is_scalar = matches!(node.op, Op::Const(..));
            if inside.contains(&v.node) {
                continue;
            }
            if above[v.node.0 as usize] {
                return None;
            }
            let given = func.nodes[attend].inputs.contains(v);
            if (light || is_scalar) && !given {
                inside.insert(v.node);
                open.push(v.node);
            }
        }
    }
    let lse = Value { node: attend, index: 1 };
    let read = func.outputs.iter().any(|out| out.value == lse)
        || readers[attend.0 as usize].iter().any(|r| func.nodes[*r].inputs.contains(&lse));
    let results = sums.iter().map(|node| Value { node: *node, index: 0 }).chain(read.then_some(lse)).collect();
    inside.extend(sums);
    (inside.len() <= MOST_OPS).then_some((inside, results))
}

/// Puts the region where the attention is, and before it what it reads. What others read of what was in it stays for them.
fn replace(func: &mut Func, nodes: &BTreeSet<NodeId>, results: &[Value], (region, operands): (Fused, &[Value])) {
    let first = *nodes.iter().find(|id| matches!(func.nodes[**id].op, Op::Attend(_))).expect("the attention");
    let old = std::mem::replace(&mut func.nodes, Arena::new());
    let types = region.body.outputs.iter().map(|o| region.body.ty(o.value).clone()).collect();
    let origin = old[first].origin;
    let own = Node { op: Op::Fused(Box::new(region)), inputs: operands.to_vec(), types, origin };
    // What depends on the attention is in the region alone.
    let mut inside = BTreeSet::from([first]);
    inside.extend(nodes.iter().filter(|id| results.iter().any(|v| v.node == **id)));
    for id in nodes {
        if old[*id].inputs.iter().any(|v| inside.contains(&v.node)) {
            inside.insert(*id);
        }
    }
    let mut moved: BTreeMap<Value, Value> = BTreeMap::new();
    // In their order, each behind what it reads; none twice.
    let mut done = vec![false; old.len()];
    let mut todo: Vec<(NodeId, bool)> = old.ids().rev().map(|id| (id, false)).collect();
    while let Some((id, ready)) = todo.pop() {
        let id = if inside.contains(&id) { first } else { id };
        if done[id.0 as usize] {
            continue;
        }
        let node = if id == first { &own } else { &old[id] };
        if !ready {
            todo.push((id, true));
            todo.extend(node.inputs.iter().rev().map(|v| (v.node, false)));
            continue;
        }
        done[id.0 as usize] = true;
        let new = push(func, Node { inputs: node.inputs.iter().map(|v| moved[v]).collect(), ..node.clone() });
        match id == first {
            true => moved.extend(results.iter().copied().zip(new)),
            false => moved.extend(new.into_iter().enumerate().map(|(i, v)| (Value { node: id, index: i as u32 }, v))),
        }
    }
    for o in &mut func.outputs {
        o.value = moved[&o.value];
    }
}
