//! Removes layout ops and casts that change nothing, and joins two that follow one another. Exact.
//! Before: `%1 = transpose %0 [1, 0]; %2 = transpose %1 [1, 0]; %3 = exp %2`   After: `%3 = exp %0`.

use super::{Stats, add, rewrite};
use crate::{ir::Func, op::Op};
use base::{DType, TensorType};

/// See the module.
pub fn simplify_layout(func: &mut Func) -> Stats {
    rewrite(func, &mut |func, node| {
        let [input] = node.inputs[..] else { return None };
        let [ty] = &node.types[..] else { return None };
        let (mut op, mut input, mut changed) = (node.op.clone(), input, false);
        loop {
            if changes_nothing(&op, func.ty(input), ty) {
                return Some(vec![input]);
            }
            let before = func.def(input);
            let [source] = before.inputs[..] else { break };
            let Some(joined) = join(&before.op, &op, func.ty(source), ty) else { break };
            (op, input, changed) = (joined, source, true);
        }
        changed.then(|| vec![add(func, op, &[input], node)])
    })
}

/// Whether the result is the operand.
fn changes_nothing(op: &Op, from: &TensorType, to: &TensorType) -> bool {
    if from != to {
        return false;
    }
    match op {
        Op::Transpose(perm) => perm.iter().copied().eq(0..perm.len()),
        // Of one type, a broadcast has each axis in its place; a slice takes all elements, as its step is positive.
        Op::Broadcast { .. } | Op::Reshape(_) | Op::Cast(_) | Op::Concat(_) => true,
        Op::Slice { start, .. } => start.is(0),
        Op::Pad { low, high, .. } => low.is(0) && high.is(0),
        Op::Reduce(_, axes) => axes.is_empty(),
        Op::Arg(_)
        | Op::Const(..)
        | Op::Extent(..)
        | Op::Iota(_)
        | Op::Map(_)
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
        | Op::StopGradient
        | Op::Repeat(_)
        | Op::Fused(_) => false,
    }
}

/// The one op that does what `first` and then `second` do, from `from` to `to`.
fn join(first: &Op, second: &Op, from: &TensorType, to: &TensorType) -> Option<Op> {
    match (first, second) {
        (Op::Transpose(a), Op::Transpose(b)) => Some(Op::Transpose(b.iter().map(|i| a[*i]).collect())),
        (Op::Reshape(_), Op::Reshape(shape)) => Some(Op::Reshape(shape.clone())),
        (Op::Broadcast { axes: a, .. }, Op::Broadcast { shape, axes: b }) => {
            Some(Op::Broadcast { shape: shape.clone(), axes: a.iter().map(|i| b[*i]).collect() })
        }
        // All elements are equal, so it does not matter which are taken or where they go.
        (Op::Broadcast { axes, .. }, Op::Transpose(_) | Op::Reshape(_) | Op::Slice { .. }) if axes.is_empty() => {
            Some(Op::Broadcast { shape: to.shape.clone(), axes: Vec::new() })
        }
        (Op::Cast(middle), Op::Cast(last)) if is_exact(from.dtype, *middle) => Some(Op::Cast(*last)),
        _ => None,
    }
}

/// Whether each value of `from` is a value of `to`.
fn is_exact(from: DType, to: DType) -> bool {
    use DType::{BF16, Bool, E4M3, F16, F32, F64, I32, I64, TF32};
    from == to
        || match from {
            Bool => true,
            I32 => matches!(to, I64 | F64),
            I64 | F64 => false,
            F32 => to == F64,
            TF32 => matches!(to, F32 | F64),
            BF16 | F16 => matches!(to, TF32 | F32 | F64),
            E4M3 => matches!(to, F16 | BF16 | TF32 | F32 | F64),
        }
}
