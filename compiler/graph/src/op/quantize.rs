//! Shape rules of block quantisation, and which blocks moved elements are in.
//! # Source: DeepSeek-V3, arXiv 2412.19437, section 3.3.2.

use super::{Op, OpError, check_dtype, check_shape, op_error};
use base::{DType, Dim, TensorType};

/// The format of codes.
pub const CODE: DType = DType::E4M3;
/// The format of scales.
pub const SCALE: DType = DType::F32;
/// The greatest code: that of a block's largest element.
pub const GREATEST: f64 = 448.0;
/// Blocks of a smaller scale, whose inverse is not finite, have codes 0: the least normal number of its format.
pub const LEAST_SCALE: f64 = f32::MIN_POSITIVE as f64;

pub(super) fn quantize(size: i64, x: &TensorType) -> Result<Vec<TensorType>, OpError> {
    if !x.dtype.is_float() || x.rank() == 0 || size < 1 {
        return op_error!("blocks of {size} elements of {x}");
    }
    Ok(vec![x.with_dtype(CODE), TensorType::new(SCALE, scales(size, &x.shape))])
}

pub(super) fn dequantize(size: i64, codes: &TensorType, scale: &TensorType) -> Result<TensorType, OpError> {
    check_dtype("the value of the codes", codes, CODE)?;
    check_dtype("the value of the scales", scale, SCALE)?;
    if codes.rank() == 0 || size < 1 {
        return op_error!("blocks of {size} elements of {codes}");
    }
    check_shape("the shape of the scales", &scale.shape, &scales(size, &codes.shape))?;
    Ok(codes.with_dtype(SCALE))
}

/// The shape of the scales of a shape.
///
/// # Panics
/// If it has no axis.
pub fn scales(size: i64, shape: &[Dim]) -> Vec<Dim> {
    let (last, rest) = shape.split_last().expect("blocks are of an axis");
    rest.iter().cloned().chain([last.ceil_div(&Dim::from(size))]).collect()
}

/// What does to the scales of an operand what `op` does to its elements, if that moves blocks whole: rows by a gather, axes before the last in any way, the
/// last one as whole blocks. `from` are the shapes of the operands that move (of a gather, the first), `to` is that of the result.
pub fn of_scales(op: &Op, size: i64, from: &[&[Dim]], to: &[Dim]) -> Option<Op> {
    let by = Dim::from(size);
    let whole = |d: &Dim| d.try_div(&by);
    let last = to.len().checked_sub(1)?;
    let x = *from.first()?;
    let kept = x.len().checked_sub(1)?;
    match op {
        Op::Gather { batch } => (*batch < kept).then(|| op.clone()),
        Op::Transpose(perm) => (perm[last] == last).then(|| op.clone()),
        Op::Broadcast { axes, .. } => {
            (axes.last() == Some(&last)).then(|| Op::Broadcast { shape: scales(size, to), axes: axes.clone() })
        }
        // Blocks are runs of elements in memory's order, as long as none goes over the end of a row.
        Op::Reshape(_) => {
            let moved = x[kept] == to[last] || (whole(&x[kept]).is_some() && whole(&to[last]).is_some());
            moved.then(|| Op::Reshape(scales(size, to)))
        }
        Op::Slice { axis, .. } if *axis < last => Some(op.clone()),
        Op::Slice { axis, start, len, step: 1 } => {
            // A shorter last block may only be the last one of all.
            let ends = start.clone() + len.clone() == x[kept];
            let len = if ends { Some(len.ceil_div(&by)) } else { whole(len) }?;
            Some(Op::Slice { axis: *axis, start: whole(start)?, len, step: 1 })
        }
        Op::Concat(axis) if *axis < last => Some(op.clone()),
        Op::Concat(_) => {
            let before = &from[..from.len() - 1];
            before.iter().all(|x| x.last().is_some_and(|d| whole(d).is_some())).then(|| op.clone())
        }
        // What computes, and padding, whose elements may be any.
        Op::Arg(_)
        | Op::Const(..)
        | Op::Extent(..)
        | Op::Iota(_)
        | Op::Map(_)
        | Op::Cast(_)
        | Op::Reduce(..)
        | Op::Slice { .. }
        | Op::Pad { .. }
        | Op::Contract(_)
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
        | Op::Fused(_) => None,
    }
}
