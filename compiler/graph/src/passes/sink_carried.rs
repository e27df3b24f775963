//! Computes what a loop carries to its next turn as late as possible, so that it may take the place of what it replaces: nothing reads that any more.
//! Before: `repeat (x) { %1 = exp x; %2 = neg x; carry %1; stack %2 }`   After: `repeat (x) { %2 = neg x; %1 = exp x; carry %1; stack %2 }`.

use super::{Stats, push};
use crate::{
    ir::{Func, Node, Value},
    op::Op,
};
use base::arena::Id;

/// See the module.
pub fn sink_carried(func: &mut Func) -> Stats {
    let mut stats = Stats::default();
    for node in func.nodes.values_mut() {
        if let Op::Repeat(r) = &mut node.op {
            stats.changes += sink_carried(&mut r.body).changes;
            stats.changes += sink(&mut r.body, r.carried);
        }
    }
    stats
}

/// Moves the nodes of the first outputs, and all that needs them, behind all else; says how many moved.
fn sink(body: &mut Func, carried: usize) -> usize {
    // An argument is there already.
    let first: Vec<usize> =
        body.outputs[..carried].iter().map(|o| o.value.node.index()).filter(|n| *n >= body.args.len()).collect();
    let mut sinks: Vec<bool> = Vec::with_capacity(body.nodes.len());
    for (id, node) in body.nodes.iter() {
        sinks.push(first.contains(&id.index()) || node.inputs.iter().any(|v| sinks[v.node.index()]));
    }
    let count = sinks.iter().skip_while(|s| !**s).filter(|s| !**s).count();
    if count == 0 {
        return 0;
    }
    let old = std::mem::take(&mut body.nodes);
    let mut moved: Vec<Vec<Value>> = vec![Vec::new(); old.len()];
    for last in [false, true] {
        for (id, node) in old.iter().filter(|(id, _)| sinks[id.index()] == last) {
            let inputs = node.inputs.iter().map(|v| moved[v.node.index()][v.index as usize]).collect();
            moved[id.index()] = push(body, Node { inputs, ..node.clone() });
        }
    }
    for o in &mut body.outputs {
        o.value = moved[o.value.node.index()][o.value.index as usize];
    }
    count
}
