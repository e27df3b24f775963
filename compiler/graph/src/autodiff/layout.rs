//! Derivatives of the ops that move elements: each moves them back.

use super::Site;
use crate::{
    build::Builder,
    ir::Value,
    op::{Op, Scalar},
};
use base::Dim;

pub(super) fn transpose(b: &mut Builder, s: &Site, perm: &[usize]) -> Value {
    let mut inverse = vec![0; perm.len()];
    perm.iter().enumerate().for_each(|(i, p)| inverse[*p] = i);
    b.transpose(s.dy(), &inverse)
}

/// Zeros around what was taken. A step leaves gaps: each element becomes a row of `step` with zeros after it; the row of the last one
/// may reach past the end by less than a step, so the whole is made a step longer and cut.
pub(super) fn slice(b: &mut Builder, s: &Site, axis: usize, start: &Dim, len: &Dim, step: i64) -> Value {
    let extent = b.func.ty(s.x(0)).shape[axis].clone();
    let zeros = |axis, low: Dim, high: Dim| Op::Pad { axis, low, high, value: Scalar::new(0.0) };
    if step == 1 {
        return b.op(zeros(axis, start.clone(), extent - start.clone() - len.clone()), &[s.dy()]);
    }
    let (mut rows, mut flat) = (b.func.ty(s.dy()).shape.clone(), b.func.ty(s.dy()).shape.clone());
    rows.insert(axis + 1, Dim::from(1));
    flat[axis] = len.clone() * Dim::from(step);
    let each = b.reshape(s.dy(), &rows);
    let spread = b.op(zeros(axis + 1, Dim::from(0), Dim::from(step - 1)), &[each]);
    let spread = b.reshape(spread, &flat);
    let high = extent.clone() + Dim::from(step) - start.clone() - flat[axis].clone();
    let whole = b.op(zeros(axis, start.clone(), high), &[spread]);
    b.op(Op::Slice { axis, start: Dim::from(0), len: extent, step: 1 }, &[whole])
}

pub(super) fn concat(b: &mut Builder, s: &Site, axis: usize, i: usize) -> Value {
    let extent = |v: &Value| b.func.ty(*v).shape[axis].clone();
    let start = s.node.inputs[..i].iter().map(extent).fold(Dim::from(0), |sum, n| sum + n);
    let len = extent(&s.x(i));
    b.op(Op::Slice { axis, start, len, step: 1 }, &[s.dy()])
}

pub(super) fn pad(b: &mut Builder, s: &Site, axis: usize, low: &Dim) -> Value {
    let len = b.func.ty(s.x(0)).shape[axis].clone();
    b.op(Op::Slice { axis, start: low.clone(), len, step: 1 }, &[s.dy()])
}
