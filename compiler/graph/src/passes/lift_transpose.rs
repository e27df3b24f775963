//! Computes maps before what they read is transposed, so that a map reads and writes neighbours; whoever reads the result sees it transposed, which costs a
//! contraction nothing. For a GPU, where lanes that read a column wait for each element.
//! Before: `%1 = transpose %0; %3 = broadcast %2; %4 = mul %1, %3`   After: `%1 = broadcast %2; %3 = mul %0, %1; %4 = transpose %3`.

use super::{Stats, add, rewrite};
use crate::{
    ir::{Func, Node, Value},
    op::Op,
};

/// See the module.
pub fn lift_transpose(func: &mut Func) -> Stats {
    rewrite(func, &mut |func, node| match &node.op {
        Op::Map(_) | Op::Cast(_) => lifted(func, node).map(|v| vec![v]),
        _ => None,
    })
}

fn lifted(func: &mut Func, node: &Node) -> Option<Value> {
    let perm = node.inputs.iter().find_map(|v| match &func.def(*v).op {
        Op::Transpose(perm) if turns_matrices(perm) => Some(perm.clone()),
        _ => None,
    })?;
    // Where an axis of the result lies before the transpose.
    let before = |axes: &[usize]| axes.iter().map(|a| perm[*a]).collect::<Vec<_>>();
    let movable = |v: &Value| match &func.def(*v).op {
        Op::Transpose(p) => *p == perm,
        Op::Broadcast { axes, .. } => before(axes).is_sorted(),
        _ => false,
    };
    if !node.inputs.iter().all(movable) {
        return None;
    }
    let mut shape = node.types[0].shape.clone();
    perm.iter().zip(&node.types[0].shape).for_each(|(p, d)| shape[*p] = d.clone());
    let mut inputs = Vec::new();
    for v in &node.inputs {
        let below = func.def(*v).clone();
        inputs.push(match &below.op {
            Op::Broadcast { axes, .. } => {
                add(func, Op::Broadcast { shape: shape.clone(), axes: before(axes) }, &below.inputs, &below)
            }
            _ => below.inputs[0],
        });
    }
    let computed = add(func, node.op.clone(), &inputs, node);
    Some(add(func, Op::Transpose(perm), &[computed], node))
}

/// Whether the last two axes change places and no others do: what products take as it is.
fn turns_matrices(perm: &[usize]) -> bool {
    let n = perm.len();
    n >= 2 && perm[n - 2..] == [n - 1, n - 2] && perm[..n - 2].iter().copied().eq(0..n - 2)
}
