//! Block quantisation, block by block.

use super::{Precision, Tensor};
use crate::op::{
    MapFn,
    quantize::{CODE, GREATEST, LEAST_SCALE, SCALE},
};
use base::DType;

/// The last axis, and the rows of it.
fn rows(x: &Tensor) -> (usize, usize) {
    let n = *x.shape.last().expect("blocks are of an axis") as usize;
    (n, x.shape[..x.shape.len() - 1].iter().product::<i64>() as usize)
}

/// Codes and scales. Codes depend on the scale as it is stored: they are by its inverse.
pub(super) fn quantize(size: usize, x: &Tensor, precision: Precision) -> Vec<Vec<f64>> {
    let round = |dtype: DType, x: f64| if precision == Precision::Rounded { dtype.round(x) } else { x };
    let (n, rows) = rows(x);
    let (mut codes, mut scales) = (Vec::with_capacity(x.data.len()), Vec::new());
    for block in (0..rows).flat_map(|r| x.data[r * n..(r + 1) * n].chunks(size)) {
        let block: Vec<f64> = block.iter().map(|x| round(SCALE, *x)).collect();
        let most = block.iter().fold(0.0, |m, x| MapFn::Max.eval(&[m, x.abs()]));
        let scale = round(SCALE, most / GREATEST);
        let inverse = if scale >= LEAST_SCALE { round(SCALE, 1.0 / scale) } else { 0.0 };
        codes.extend(block.iter().map(|x| round(CODE, round(SCALE, x * inverse))));
        scales.push(scale);
    }
    vec![codes, scales]
}

pub(super) fn dequantize(size: usize, codes: &Tensor, scales: &Tensor) -> Vec<f64> {
    let ((n, rows), per_row) = (rows(codes), *scales.shape.last().expect("blocks are of an axis") as usize);
    let at = |i: usize| scales.data[i / n.max(1) * per_row + i % n.max(1) / size];
    (0..rows * n).map(|i| codes.data[i] * at(i)).collect()
}
