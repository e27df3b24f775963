//! Einstein sums and contractions over ragged rows.

use super::{
    Tensor,
    layout::{read, strides},
};
use crate::op::Contract;

/// As one product of matrices per batch index: both operands are copied with the summed axes last, each result is a dot product of two rows.
pub(super) fn contract(c: &Contract, a: &Tensor, b: &Tensor, out: &[usize]) -> Vec<f64> {
    let (batch, rows, cols, summed) = (c.batch(), c.rows(), c.cols(), c.summed());
    let extent = |l: &char| match c.lhs.iter().position(|x| x == l) {
        Some(i) => a.shape[i] as usize,
        None => b.shape[c.rhs.iter().position(|x| x == l).expect("each letter is in an operand")] as usize,
    };
    let size = |letters: &[char]| letters.iter().map(extent).product::<usize>();
    let arrange = |t: &Tensor, own: &[char], order: [&[char]; 3]| {
        let (order, by) = (order.concat(), strides(&t.extents()));
        let stride = |l: &char| by[own.iter().position(|x| x == l).expect("the operand has this letter")];
        let extents: Vec<usize> = order.iter().map(extent).collect();
        read(&t.data, 0, &extents, &order.iter().map(stride).collect::<Vec<_>>())
    };
    let left = arrange(a, &c.lhs, [&batch, &rows, &summed]);
    let right = arrange(b, &c.rhs, [&batch, &cols, &summed]);
    let (nb, m, n, k) = (size(&batch), size(&rows), size(&cols), size(&summed));
    let mut product = Vec::with_capacity(nb * m * n);
    for i in 0..nb {
        for row in (i * m..(i + 1) * m).map(|r| &left[r * k..(r + 1) * k]) {
            product.extend((i * n..(i + 1) * n).map(|col| dot(row, &right[col * k..(col + 1) * k])));
        }
    }
    let order = [&batch[..], &rows, &cols].concat();
    let by = strides(&order.iter().map(extent).collect::<Vec<_>>());
    let stride = |l: &char| by[order.iter().position(|x| x == l).expect("the product has the result's letters")];
    read(&product, 0, out, &c.out.iter().map(stride).collect::<Vec<_>>())
}

pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).fold(0.0, |sum, (a, b)| sum + a * b)
}

/// `y += f·x`.
pub(super) fn axpy(f: f64, x: &[f64], y: &mut [f64]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += f * x);
}

/// The rows of each group.
fn groups(offsets: &Tensor, rows: usize) -> Vec<std::ops::Range<usize>> {
    let at = |x: f64| (x.max(0.0) as usize).min(rows);
    offsets.data.windows(2).map(|w| at(w[0])..at(w[1])).collect()
}

pub(super) fn grouped_contract(transposed: bool, x: &Tensor, w: &Tensor, offsets: &Tensor) -> Vec<f64> {
    let ([rows, k], [_, wa, wb]) = (x.axes(), w.axes());
    let n = if transposed { wa } else { wb };
    let mut out = vec![0.0; rows * n];
    for (e, group) in groups(offsets, rows).into_iter().enumerate() {
        let w = &w.data[e * k * n..(e + 1) * k * n];
        for r in group {
            let (x, y) = (&x.data[r * k..(r + 1) * k], &mut out[r * n..(r + 1) * n]);
            if transposed {
                y.iter_mut().enumerate().for_each(|(j, y)| *y = dot(x, &w[j * k..(j + 1) * k]));
            } else {
                x.iter().enumerate().for_each(|(i, x)| axpy(*x, &w[i * n..(i + 1) * n], y));
            }
        }
    }
    out
}

pub(super) fn grouped_outer(x: &Tensor, y: &Tensor, offsets: &Tensor) -> Vec<f64> {
    let ([rows, k], [_, n]) = (x.axes(), y.axes());
    let groups = groups(offsets, rows);
    let mut out = vec![0.0; groups.len() * k * n];
    for (e, group) in groups.into_iter().enumerate() {
        for r in group {
            for i in 0..k {
                let at = (e * k + i) * n;
                axpy(x.data[r * k + i], &y.data[r * n..(r + 1) * n], &mut out[at..at + n]);
            }
        }
    }
    out
}
