//! Elementwise functions, casts, reductions and running sums.

use super::{
    Tensor,
    layout::{around, strides},
};
use crate::op::{MapFn, ReduceFn};
use base::DType;

pub(super) fn map(f: MapFn, x: &[&Tensor]) -> Vec<f64> {
    match x {
        [a] => a.data.iter().map(|a| f.eval(&[*a])).collect(),
        [a, b] => a.data.iter().zip(&b.data).map(|(a, b)| f.eval(&[*a, *b])).collect(),
        [a, b, c] => a.data.iter().zip(&b.data).zip(&c.data).map(|((a, b), c)| f.eval(&[*a, *b, *c])).collect(),
        _ => base::bug!("{} of {} operands", f.name(), x.len()),
    }
}

/// Truncates to integers here; a float keeps its value until the result is rounded.
pub(super) fn cast(to: DType, x: &Tensor) -> Vec<f64> {
    if to.is_float() { x.data.clone() } else { x.data.iter().map(|x| to.round(*x)).collect() }
}

pub(super) fn reduce(f: ReduceFn, axes: &[usize], x: &Tensor) -> Vec<f64> {
    let extents = x.extents();
    let kept: Vec<usize> = (0..extents.len()).filter(|a| !axes.contains(a)).collect();
    let kept_extents: Vec<usize> = kept.iter().map(|a| extents[*a]).collect();
    let mut by = vec![0; extents.len()];
    for (axis, stride) in kept.iter().zip(strides(&kept_extents)) {
        by[*axis] = stride;
    }
    let mut out = vec![identity(f, x.dtype); kept_extents.iter().product()];
    let step: fn(f64, f64) -> f64 = match f {
        ReduceFn::Sum => |a, b| a + b,
        ReduceFn::Prod => |a, b| a * b,
        ReduceFn::Max => |a, b| MapFn::Max.eval(&[a, b]),
        ReduceFn::Min => |a, b| MapFn::Min.eval(&[a, b]),
    };
    if !extents.contains(&0) {
        fold_into(&mut out, 0, &extents, &by, &mut x.data.iter(), &step);
    }
    out
}

/// The result for no elements.
fn identity(f: ReduceFn, dtype: DType) -> f64 {
    let (least, greatest) = match dtype {
        DType::I64 => (i64::MIN as f64, i64::MAX as f64),
        DType::I32 => (f64::from(i32::MIN), f64::from(i32::MAX)),
        DType::F64 | DType::F32 | DType::TF32 | DType::BF16 | DType::F16 | DType::E4M3 | DType::Bool => {
            (f64::NEG_INFINITY, f64::INFINITY)
        }
    };
    match f {
        ReduceFn::Sum => 0.0,
        ReduceFn::Prod => 1.0,
        ReduceFn::Max => least,
        ReduceFn::Min => greatest,
    }
}

/// Folds the operand's elements, taken in order, into the places of the result that `strides` lead to.
fn fold_into(
    out: &mut [f64],
    base: usize,
    extents: &[usize],
    strides: &[usize],
    x: &mut std::slice::Iter<'_, f64>,
    step: &dyn Fn(f64, f64) -> f64,
) {
    match (extents, strides) {
        ([n, extents @ ..], [stride, strides @ ..]) => {
            (0..*n).for_each(|i| fold_into(out, base + i * stride, extents, strides, x, step));
        }
        _ => out[base] = step(out[base], *x.next().expect("one element per index")),
    }
}

pub(super) fn cumsum(axis: usize, exclusive: bool, reverse: bool, x: &Tensor) -> Vec<f64> {
    let (outer, n, inner) = around(axis, &x.extents());
    let mut out = vec![0.0; x.data.len()];
    for o in 0..outer {
        for i in 0..inner {
            let mut sum = 0.0;
            for k in 0..n {
                let at = (o * n + if reverse { n - 1 - k } else { k }) * inner + i;
                let before = sum;
                sum += x.data[at];
                out[at] = if exclusive { before } else { sum };
            }
        }
    }
    out
}
