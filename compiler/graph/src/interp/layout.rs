//! Ops that move elements: copies by strides, and blocks along an axis.

use super::Tensor;

/// The distance between neighbours along each axis of a row-major tensor.
pub(super) fn strides(extents: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; extents.len()];
    for i in (1..extents.len()).rev() {
        strides[i - 1] = strides[i] * extents[i];
    }
    strides
}

/// The elements of `data` at `base + Σ index·stride`, the last axis fastest.
pub(super) fn read(data: &[f64], base: usize, extents: &[usize], strides: &[usize]) -> Vec<f64> {
    let mut out = Vec::with_capacity(extents.iter().product());
    if !extents.contains(&0) {
        read_into(data, base, extents, strides, &mut out);
    }
    out
}

fn read_into(data: &[f64], base: usize, extents: &[usize], strides: &[usize], out: &mut Vec<f64>) {
    match (extents, strides) {
        ([n], [1]) => out.extend_from_slice(&data[base..base + n]),
        ([n], [stride]) => out.extend((0..*n).map(|i| data[base + i * stride])),
        ([n, extents @ ..], [stride, strides @ ..]) => {
            (0..*n).for_each(|i| read_into(data, base + i * stride, extents, strides, out));
        }
        _ => out.push(data[base]),
    }
}

/// The extents before, of and after `axis`, multiplied.
pub(super) fn around(axis: usize, extents: &[usize]) -> (usize, usize, usize) {
    (extents[..axis].iter().product(), extents[axis], extents[axis + 1..].iter().product())
}

pub(super) fn broadcast(axes: &[usize], x: &Tensor, out: &[usize]) -> Vec<f64> {
    let mut by = vec![0; out.len()];
    for (axis, stride) in axes.iter().zip(strides(&x.extents())) {
        by[*axis] = stride;
    }
    read(&x.data, 0, out, &by)
}

pub(super) fn transpose(perm: &[usize], x: &Tensor) -> Vec<f64> {
    let (extents, by) = (x.extents(), strides(&x.extents()));
    let pick = |from: &[usize]| perm.iter().map(|p| from[*p]).collect::<Vec<_>>();
    read(&x.data, 0, &pick(&extents), &pick(&by))
}

pub(super) fn slice(axis: usize, start: usize, step: usize, x: &Tensor, out: &[usize]) -> Vec<f64> {
    let mut by = strides(&x.extents());
    let base = start * by[axis];
    by[axis] *= step;
    read(&x.data, base, out, &by)
}

pub(super) fn concat(axis: usize, x: &[&Tensor]) -> Vec<f64> {
    let (outer, ..) = around(axis, &x[0].extents());
    let mut out = Vec::new();
    for i in 0..outer {
        for t in x {
            let n = t.data.len() / outer;
            out.extend_from_slice(&t.data[i * n..(i + 1) * n]);
        }
    }
    out
}

pub(super) fn pad(axis: usize, low: usize, high: usize, value: f64, x: &Tensor) -> Vec<f64> {
    let (outer, n, inner) = around(axis, &x.extents());
    let mut out = Vec::with_capacity(outer * (low + n + high) * inner);
    for i in 0..outer {
        out.extend(std::iter::repeat_n(value, low * inner));
        out.extend_from_slice(&x.data[i * n * inner..(i + 1) * n * inner]);
        out.extend(std::iter::repeat_n(value, high * inner));
    }
    out
}
