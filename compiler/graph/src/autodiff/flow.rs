//! Where gradients can flow: from which operand to which result, which values vary with given arguments, which arguments given outputs
//! depend on.

use super::map;
use crate::{
    ir::Func,
    op::{Exchange, Op, Repeat},
};
use base::arena::Id;

/// Whether a gradient flows from a result to operand `i`, if both are floats; loops apart.
fn flows(op: &Op, i: usize) -> bool {
    match op {
        Op::Arg(_) | Op::Const(..) | Op::Extent(..) | Op::Iota(_) | Op::TopK(_) | Op::Route { .. } | Op::StopGradient => false,
        Op::Cast(_)
        | Op::Reduce(..)
        | Op::Broadcast { .. }
        | Op::Transpose(_)
        | Op::Reshape(_)
        | Op::Slice { .. }
        | Op::Concat(_)
        | Op::Pad { .. }
        | Op::Contract(_)
        | Op::Cumsum { .. }
        | Op::Quantize(_)
        | Op::Dequantize(_) => true,
        Op::Map(f) => map::flows(*f, i),
        Op::Gather { .. } => i == 0,
        Op::ScatterAdd { .. } => i == 1,
        Op::Exchange { what, .. } => *what != Exchange::Offsets && i == 0,
        Op::GroupedContract { .. } | Op::GroupedOuter => i < 2,
        Op::Attend(_) => i < 3,
        Op::AttendGrad(_) => i < 7,
        Op::Repeat(_) | Op::Fused(_) => base::bug!("what flows through a body depends on it"),
    }
}

/// For each result of each node, whether it varies with the arguments marked in `args`.
pub(super) fn varied(func: &Func, args: &[bool]) -> Vec<Vec<bool>> {
    let mut marks: Vec<Vec<bool>> = Vec::with_capacity(func.nodes.len());
    for node in func.nodes.values() {
        let operands: Vec<bool> = node.inputs.iter().map(|v| marks[v.node.index()][v.index as usize]).collect();
        let mark = match &node.op {
            Op::Arg(i) => vec![args[*i as usize]],
            // Without a turn, what is carried is what it was.
            Op::Repeat(r) if r.count == 0 => (0..node.types.len()).map(|i| i < r.carried && operands[i]).collect(),
            Op::Repeat(r) => {
                let (_, inner) = varied_body(r, &operands);
                r.body.outputs.iter().map(|o| inner[o.value.node.index()][o.value.index as usize]).collect()
            }
            op => vec![operands.iter().enumerate().any(|(i, varies)| *varies && flows(op, i)); node.types.len()],
        };
        marks.push(mark.iter().zip(&node.types).map(|(m, ty)| *m && ty.dtype.is_float()).collect());
    }
    marks
}

/// The body's arguments that vary in some turn if the marked operands do, and its values.
pub(super) fn varied_body(r: &Repeat, operands: &[bool]) -> (Vec<bool>, Vec<Vec<bool>>) {
    let mut args = operands.to_vec();
    loop {
        let marks = varied(&r.body, &args);
        let mut changed = false;
        for (i, o) in r.body.outputs.iter().enumerate().take(r.carried) {
            if marks[o.value.node.index()][o.value.index as usize] && !args[i] {
                (args[i], changed) = (true, true);
            }
        }
        if !changed {
            return (args, marks);
        }
    }
}

/// The arguments that the marked outputs depend on.
fn useful(func: &Func, outputs: &[bool]) -> Vec<bool> {
    let mut marks: Vec<Vec<bool>> = func.nodes.values().map(|n| vec![false; n.types.len()]).collect();
    for (o, _) in func.outputs.iter().zip(outputs).filter(|(_, marked)| **marked) {
        marks[o.value.node.index()][o.value.index as usize] = true;
    }
    for (id, node) in func.nodes.iter().rev() {
        let results = &marks[id.index()];
        if !results.contains(&true) {
            continue;
        }
        let operands = match &node.op {
            Op::Repeat(r) if r.count == 0 => (0..node.inputs.len()).map(|i| i < r.carried && results[i]).collect(),
            Op::Repeat(r) => useful_body(r, results).0,
            op => (0..node.inputs.len()).map(|i| flows(op, i)).collect(),
        };
        for (v, _) in node.inputs.iter().zip(operands).filter(|(v, flows)| *flows && func.ty(**v).dtype.is_float()) {
            marks[v.node.index()][v.index as usize] = true;
        }
    }
    (0..func.args.len()).map(|i| marks[i][0]).collect()
}

/// The body's arguments and outputs that, in some turn, the marked results of the loop depend on.
pub(super) fn useful_body(r: &Repeat, results: &[bool]) -> (Vec<bool>, Vec<bool>) {
    let mut outputs = results.to_vec();
    loop {
        let args = useful(&r.body, &outputs);
        let mut changed = false;
        for i in (0..r.carried).filter(|i| args[*i]) {
            changed |= !outputs[i];
            outputs[i] = true;
        }
        if !changed {
            return (args, outputs);
        }
    }
}
