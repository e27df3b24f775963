//! Gather, scatter, top-k and routing.

use super::Tensor;
use std::cmp::Ordering;

/// The batch size, the indices of a batch, and the elements of a row.
fn split(batch: usize, idx: &Tensor, row: &[i64]) -> (usize, usize, usize) {
    let product = |s: &[i64]| s.iter().product::<i64>() as usize;
    (product(&idx.shape[..batch]), product(&idx.shape[batch..]), product(row))
}

/// The row an index names.
fn row(idx: f64, n: usize) -> Option<usize> {
    (idx >= 0.0 && idx < n as f64).then_some(idx as usize)
}

pub(super) fn gather(batch: usize, x: &Tensor, idx: &Tensor) -> Vec<f64> {
    let n = x.shape[batch] as usize;
    let (batches, picks, len) = split(batch, idx, &x.shape[batch + 1..]);
    let mut out = vec![0.0; batches * picks * len];
    for at in 0..batches * picks {
        if let Some(i) = row(idx.data[at], n) {
            let from = (at / picks * n + i) * len;
            out[at * len..(at + 1) * len].copy_from_slice(&x.data[from..from + len]);
        }
    }
    out
}

pub(super) fn scatter_add(batch: usize, n: usize, idx: &Tensor, v: &Tensor) -> Vec<f64> {
    let (batches, picks, len) = split(batch, idx, &v.shape[idx.shape.len()..]);
    let mut out = vec![0.0; batches * n * len];
    for at in 0..batches * picks {
        if let Some(i) = row(idx.data[at], n) {
            let to = (at / picks * n + i) * len;
            out[to..to + len].iter_mut().zip(&v.data[at * len..]).for_each(|(y, x)| *y += x);
        }
    }
    out
}

pub(super) fn topk(k: usize, x: &Tensor) -> Vec<f64> {
    let n = *x.shape.last().expect("top-k has an axis") as usize;
    let rows = x.shape[..x.shape.len() - 1].iter().product::<i64>() as usize;
    let mut out = Vec::with_capacity(rows * k);
    for r in 0..rows {
        let row = &x.data[r * n..(r + 1) * n];
        let mut order: Vec<usize> = (0..n).filter(|i| row[*i] != f64::NEG_INFINITY).collect();
        order.sort_by(|a, b| descending(row[*a], row[*b]));
        out.extend((0..k).map(|j| order.get(j).map_or(-1.0, |i| *i as f64)));
    }
    out
}

/// NaN before all numbers; equal ones keep their order.
fn descending(a: f64, b: f64) -> Ordering {
    b.is_nan().cmp(&a.is_nan()).then_with(|| b.partial_cmp(&a).unwrap_or(Ordering::Equal))
}

/// Offsets, source and position.
pub(super) fn route(groups: usize, idx: &Tensor) -> Vec<Vec<f64>> {
    let mut offsets = vec![0.0; groups + 1];
    let (mut source, mut position) = (vec![-1.0; idx.data.len()], vec![-1.0; idx.data.len()]);
    let mut next = 0;
    for group in 0..groups {
        for (at, chosen) in idx.data.iter().enumerate() {
            if row(*chosen, groups) == Some(group) {
                source[next] = at as f64;
                position[at] = next as f64;
                next += 1;
            }
        }
        offsets[group + 1] = next as f64;
    }
    vec![offsets, source, position]
}
