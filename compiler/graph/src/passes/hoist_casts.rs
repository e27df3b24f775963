//! Narrows what loops take a slice of in each turn once for all turns, where two loops or more narrow it: weights that a forward and a backward pass both
//! multiply by. That takes memory of half of them and reads them once; for GPUs.
//! Before: `repeat 4 (x) stacked (w) { x @ cast w }`, twice   After: `%1 = cast w; repeat 4 (x) stacked (%1) { x @ %1 }`, twice.

use super::{Stats, hoist_constant::with_arguments, push};
use crate::{
    ir::{Func, Node, NodeId, Value},
    op::{Op, Repeat},
};
use base::{Arena, DType, arena::Id};
use std::collections::{BTreeMap, BTreeSet};

/// See the module.
pub fn hoist_casts(func: &mut Func) -> Stats {
    let mut stats = Stats::default();
    for node in func.nodes.values_mut() {
        if let Op::Repeat(r) = &mut node.op {
            stats.changes += hoist_casts(&mut r.body).changes;
        }
    }
    let mut times: BTreeMap<(Value, DType), usize> = BTreeMap::new();
    let of_loop = |node: &Node| match &node.op {
        Op::Repeat(r) => casts(r).into_iter().map(|(k, to, cast)| ((node.inputs[k], to), cast)).collect(),
        _ => Vec::new(),
    };
    for node in func.nodes.values() {
        // A loop counts once, however often it narrows the same.
        let keys: BTreeSet<_> = of_loop(node).into_iter().map(|(key, _)| key).collect();
        keys.into_iter().for_each(|key| *times.entry(key).or_default() += 1);
    }
    times.retain(|_, n| *n > 1);
    if times.is_empty() {
        return stats;
    }
    let old = std::mem::take(&mut func.nodes);
    func.nodes = Arena::new();
    let mut moved: Vec<Vec<Value>> = Vec::with_capacity(old.len());
    let mut narrowed: BTreeMap<(Value, DType), Value> = BTreeMap::new();
    for node in old.values() {
        let mut new = node.clone();
        let value = |v: &Value| moved[v.node.index()][v.index as usize];
        new.inputs = node.inputs.iter().map(value).collect();
        let hoisted: Vec<_> = of_loop(node).into_iter().filter(|(key, _)| times.contains_key(key)).collect();
        if let Op::Repeat(r) = &mut new.op
            && !hoisted.is_empty()
        {
            for (key, _) in &hoisted {
                let (from, to) = (value(&key.0), key.1);
                let all = *narrowed.entry(*key).or_insert_with(|| {
                    let types = vec![func.ty(from).with_dtype(to)];
                    push(func, Node { op: Op::Cast(to), inputs: vec![from], types, origin: node.origin })[0]
                });
                new.inputs.push(all);
            }
            let values: Vec<Value> = hoisted.iter().map(|(_, cast)| Value { node: *cast, index: 0 }).collect();
            let gone: Vec<bool> = r.body.nodes.ids().map(|id| values.iter().any(|v| v.node == id)).collect();
            r.body = with_arguments(&r.body, r.body.args.len(), &values, &gone);
            stats.changes += values.len();
        }
        moved.push(push(func, new));
    }
    for o in &mut func.outputs {
        o.value = moved[o.value.node.index()][o.value.index as usize];
    }
    stats
}

/// What a loop takes by slices of a known size and narrows: which operand, to what, and where.
fn casts(r: &Repeat) -> Vec<(usize, DType, NodeId)> {
    let cast = |(id, node): (NodeId, &Node)| {
        let Op::Cast(to) = node.op else { return None };
        let Op::Arg(k) = r.body.def(node.inputs[0]).op else { return None };
        let ty = r.body.arg_type(k as usize);
        let fits = k as usize >= r.carried + r.constant && to.bytes() < ty.dtype.bytes() && ty.elems().known().is_some();
        fits.then_some((k as usize, to, id))
    };
    if r.count < 2 { Vec::new() } else { r.body.nodes.iter().filter_map(cast).collect() }
}
