//! Removes nodes that no output needs. A loop loses the results that nobody reads, the carried values that only they needed, and the
//! operands its body does not read. Arguments of the function itself stay.
//! Before: `%1 = exp %0; %2 = sin %0; return %1`   After: `%1 = exp %0; return %1`.

use super::Stats;
use crate::{
    ir::{Func, Node, Value},
    op::{Op, Repeat},
};
use base::arena::Id;

/// See the module.
pub fn prune_dead(func: &mut Func) -> Stats {
    let (args, outputs) = (vec![true; func.args.len()], vec![true; func.outputs.len()]);
    let mut stats = Stats::default();
    *func = prune(func, &args, &outputs, &mut stats);
    stats
}

/// For each node, which of its results the outputs need.
fn live(func: &Func, outputs: &[bool]) -> Vec<Vec<bool>> {
    let mut live: Vec<Vec<bool>> = func.nodes.values().map(|n| vec![false; n.types.len()]).collect();
    let mark = |live: &mut Vec<Vec<bool>>, v: Value| live[v.node.0 as usize][v.index as usize] = true;
    for (o, _) in func.outputs.iter().zip(outputs).filter(|(_, live)| **live) {
        mark(&mut live, o.value);
    }
    for (id, node) in func.nodes.iter().rev() {
        let results = live[id.index()].clone();
        if results.contains(&true) {
            let operands =
                if let Op::Repeat(r) = &node.op { live_in_loop(r, &results).operands } else { vec![true; node.inputs.len()] };
            node.inputs.iter().zip(operands).filter(|(_, live)| *live).for_each(|(v, _)| mark(&mut live, *v));
        }
    }
    live
}

struct LoopLive {
    /// The operands of the loop, which are the arguments of its body.
    operands: Vec<bool>,
    /// Its results, which are the outputs of its body.
    results: Vec<bool>,
}

fn live_in_loop(r: &Repeat, results: &[bool]) -> LoopLive {
    let mut results = results.to_vec();
    loop {
        let live = live(&r.body, &results);
        let mut operands: Vec<bool> = (0..r.body.args.len()).map(|i| live[i][0]).collect();
        // A carried value that a turn reads must be computed by the turn before.
        let missing = (0..r.carried).filter(|i| operands[*i] && !results[*i]).collect::<Vec<_>>();
        if missing.is_empty() {
            operands[..r.carried].copy_from_slice(&results[..r.carried]);
            return LoopLive { operands, results };
        }
        missing.into_iter().for_each(|i| results[i] = true);
    }
}

/// The function with these arguments and outputs, without dead nodes.
fn prune(func: &Func, args: &[bool], outputs: &[bool], stats: &mut Stats) -> Func {
    let live = live(func, outputs);
    let mut new = Func::new(&func.name);
    let mut moved: Vec<Vec<Option<Value>>> = Vec::with_capacity(func.nodes.len());
    let value = |moved: &[Vec<Option<Value>>], v: Value| {
        moved[v.node.0 as usize][v.index as usize].unwrap_or_else(|| base::bug!("a live value was removed"))
    };
    for (id, node) in func.nodes.iter() {
        let results = &live[id.index()];
        if let Op::Arg(i) = node.op {
            let arg = &func.args[i as usize];
            let kept = args[i as usize].then(|| new.arg(&arg.name, arg.role, node.types[0].clone()));
            moved.push(vec![kept]);
            continue;
        }
        if !results.contains(&true) {
            stats.changes += 1;
            moved.push(vec![None; node.types.len()]);
            continue;
        }
        let mut node = node.clone();
        let mut kept = vec![true; node.types.len()];
        if let Op::Repeat(r) = &mut node.op {
            let in_loop = live_in_loop(r, results);
            r.body = prune(&r.body, &in_loop.operands, &in_loop.results, stats);
            let count = |range: std::ops::Range<usize>| in_loop.operands[range].iter().filter(|live| **live).count();
            let (carried, constant) = (count(0..r.carried), count(r.carried..r.carried + r.constant));
            (r.carried, r.constant) = (carried, constant);
            node.inputs = keep(&node.inputs, &in_loop.operands);
            node.types = keep(&node.types, &in_loop.results);
            stats.changes += in_loop.operands.iter().chain(&in_loop.results).filter(|live| !**live).count();
            kept = in_loop.results;
        }
        node.inputs.iter_mut().for_each(|v| *v = value(&moved, *v));
        moved.push(number(&mut new, node, &kept));
    }
    for o in keep(&func.outputs, outputs) {
        let v = value(&moved, o.value);
        new.output(&o.name, o.role, v);
    }
    new
}

fn keep<T: Clone>(items: &[T], kept: &[bool]) -> Vec<T> {
    items.iter().zip(kept).filter(|(_, k)| **k).map(|(x, _)| x.clone()).collect()
}

/// Appends a node; its results are those of the old one that are kept.
fn number(func: &mut Func, node: Node, kept: &[bool]) -> Vec<Option<Value>> {
    let node = func.nodes.push(node);
    let mut next = 0..;
    kept.iter().map(|k| if *k { next.next().map(|index| Value { node, index }) } else { None }).collect()
}
