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

/// What one scale is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Block {
    /// Neighbours along the last axis but one, 1 where there is none; there may be fewer left of the last.
    pub rows: i64,
    /// Neighbours along the last axis; likewise.
    pub size: i64,
}

impl Block {
    /// So many elements of a row.
    pub const fn of_row(size: i64) -> Block {
        Block { rows: 1, size }
    }
    /// How many axes it lies along: those that are no batch.
    pub fn axes(&self) -> usize {
        if self.rows == 1 { 1 } else { 2 }
    }
    /// How far it reaches along an axis of a shape of so many.
    pub fn along(&self, axis: usize, rank: usize) -> i64 {
        match rank - axis {
            1 => self.size,
            2 => self.rows,
            _ => 1,
        }
    }
    fn fits(&self, x: &TensorType) -> Result<(), OpError> {
        let Block { rows, size } = self;
        match (x.dtype.is_float() && x.rank() >= self.axes() && *size > 0 && *rows > 0, rows) {
            (true, _) => Ok(()),
            (false, 1) => op_error!("blocks of {size} elements of {x}"),
            (false, _) => op_error!("blocks of {rows} by {size} elements of {x}"),
        }
    }
}

pub(super) fn quantize(block: Block, x: &TensorType) -> Result<Vec<TensorType>, OpError> {
    block.fits(x)?;
    Ok(vec![x.with_dtype(CODE), TensorType::new(SCALE, scales(block, &x.shape))])
}

pub(super) fn dequantize(block: Block, codes: &TensorType, scale: &TensorType) -> Result<TensorType, OpError> {
    check_dtype("the value of the codes", codes, CODE)?;
    check_dtype("the value of the scales", scale, SCALE)?;
    block.fits(codes)?;
    check_shape("the shape of the scales", &scale.shape, &scales(block, &codes.shape))?;
    Ok(codes.with_dtype(SCALE))
}

/// The shape of the scales of a shape.
///
/// # Panics
/// If it has fewer axes than a block.
pub fn scales(block: Block, shape: &[Dim]) -> Vec<Dim> {
    let mut scales = shape.to_vec();
    for (back, by) in [block.size, block.rows].into_iter().take(block.axes()).enumerate() {
        let axis = shape.len() - 1 - back;
        scales[axis] = shape[axis].ceil_div(&Dim::from(by));
    }
    scales
}

/// What does to the scales of an operand what `op` does to its elements, if that moves blocks whole: a gather along an axis that blocks do not lie along, axes before
/// those in any way, those as whole blocks. `from` are the shapes of the operands that move (of a gather, the first), `to` is that of the result.
pub fn of_scales(op: &Op, block: Block, from: &[&[Dim]], to: &[Dim]) -> Option<Op> {
    let x = *from.first()?;
    // The first axes that blocks lie along.
    let (of_x, of_to) = (x.len().checked_sub(block.axes())?, to.len().checked_sub(block.axes())?);
    let whole = |d: &Dim, axis: usize, rank: usize| d.try_div(&Dim::from(block.along(axis, rank)));
    match op {
        Op::Gather { batch } => (*batch < of_x).then(|| op.clone()),
        Op::Transpose(perm) => (of_to..to.len()).all(|i| perm[i] == i).then(|| op.clone()),
        Op::Broadcast { axes, .. } => {
            let kept = (0..block.axes()).all(|i| axes[of_x + i] == of_to + i);
            kept.then(|| Op::Broadcast { shape: scales(block, to), axes: axes.clone() })
        }
        // Blocks of a row are runs of elements in memory's order, as long as none goes over the end of a row; those of several stay in rows of one length.
        Op::Reshape(_) => {
            let (own, other) = (&x[of_x], &to[of_to]);
            let moved = own == other || (whole(own, of_x, x.len()).is_some() && whole(other, of_to, to.len()).is_some());
            (moved && x[of_x + 1..] == to[of_to + 1..]).then(|| Op::Reshape(scales(block, to)))
        }
        Op::Slice { axis, .. } if *axis < of_x => Some(op.clone()),
        Op::Slice { axis, start, len, step: 1 } => {
            // A shorter last block may only be the last one of all.
            let ends = start.clone() + len.clone() == x[*axis];
            let by = Dim::from(block.along(*axis, x.len()));
            let len = if ends { Some(len.ceil_div(&by)) } else { len.try_div(&by) }?;
            Some(Op::Slice { axis: *axis, start: start.try_div(&by)?, len, step: 1 })
        }
        Op::Concat(axis) if *axis < of_x => Some(op.clone()),
        Op::Concat(axis) => {
            let before = &from[..from.len() - 1];
            before.iter().all(|x| whole(&x[*axis], *axis, x.len()).is_some()).then(|| op.clone())
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
