//! Shape rules of the ops that move elements without changing them.

use super::{OpError, check_axis, op_error};
use base::{Dim, TensorType, ty::ShapeDisplay};

/// Whether one type is the other with its last axis as pairs of neighbours: `[.., n]` and `[.., n/2, 2]`.
pub fn are_pairs(whole: &TensorType, pairs: &TensorType) -> bool {
    let ([before @ .., n], [same @ .., half, two]) = (&whole.shape[..], &pairs.shape[..]) else { return false };
    before == same && two.is(2) && half.known().zip(n.known()).is_some_and(|(half, n)| n == 2 * half)
}

pub(super) fn broadcast(shape: &[Dim], axes: &[usize], t: &TensorType) -> Result<TensorType, OpError> {
    let fits = axes.len() == t.rank()
        && axes.windows(2).all(|w| w[0] < w[1])
        && axes.iter().zip(&t.shape).all(|(a, d)| shape.get(*a) == Some(d));
    if fits {
        Ok(TensorType::new(t.dtype, shape))
    } else {
        op_error!("broadcast of {t} to {} by axes {axes:?}", ShapeDisplay(shape))
    }
}

pub(super) fn transpose(perm: &[usize], t: &TensorType) -> Result<TensorType, OpError> {
    let mut sorted = perm.to_vec();
    sorted.sort_unstable();
    if sorted.iter().copied().ne(0..t.rank()) {
        return op_error!("{perm:?} is not a permutation of the axes of {t}");
    }
    Ok(TensorType::new(t.dtype, perm.iter().map(|p| t.shape[*p].clone()).collect::<Vec<_>>()))
}

pub(super) fn reshape(shape: &[Dim], t: &TensorType) -> Result<TensorType, OpError> {
    let result = TensorType::new(t.dtype, shape);
    if result.elems() == t.elems() {
        Ok(result)
    } else {
        op_error!("{t} has {} elements, {} has {}", t.elems(), ShapeDisplay(shape), result.elems())
    }
}

pub(super) fn slice(axis: usize, start: &Dim, len: &Dim, step: i64, t: &TensorType) -> Result<TensorType, OpError> {
    check_axis(axis, t)?;
    if step < 1 {
        return op_error!("a step of {step}");
    }
    let extent = &t.shape[axis];
    if [start, len].iter().any(|d| d.known().is_some_and(|n| n < 0)) {
        return op_error!("a slice of {len} elements from {start}");
    }
    // The last element taken; only a difference that is a constant can be judged here.
    let last = start.clone() + (len.clone() - Dim::from(1)) * Dim::from(step);
    if !len.is(0) && (extent - &last).known().is_some_and(|room| room < 1) {
        return op_error!("elements {start} to {last} of an axis of {extent}");
    }
    let mut result = t.clone();
    result.shape[axis] = len.clone();
    Ok(result)
}

pub(super) fn concat(axis: usize, operands: &[&TensorType]) -> Result<TensorType, OpError> {
    let Some((first, rest)) = operands.split_first() else { return op_error!("concat of nothing") };
    check_axis(axis, first)?;
    let mut result = (*first).clone();
    for t in rest {
        let mut same = (*t).clone();
        check_axis(axis, t)?;
        same.shape[axis] = first.shape[axis].clone();
        if same != **first {
            return op_error!("concat of {first} and {t} along axis {axis}");
        }
        result.shape[axis] = result.shape[axis].clone() + t.shape[axis].clone();
    }
    Ok(result)
}

pub(super) fn pad(axis: usize, low: &Dim, high: &Dim, t: &TensorType) -> Result<TensorType, OpError> {
    check_axis(axis, t)?;
    if [low, high].iter().any(|d| d.known().is_some_and(|n| n < 0)) {
        return op_error!("a padding of {low} and {high}");
    }
    let mut result = t.clone();
    result.shape[axis] = result.shape[axis].clone() + low.clone() + high.clone();
    Ok(result)
}
