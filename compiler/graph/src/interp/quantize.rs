//! Block quantisation, block by block.

use super::{Precision, Tensor};
use crate::op::{
    MapFn,
    quantize::{Block, CODE, GREATEST, LEAST_SCALE, SCALE},
};
use base::DType;

/// The number of the scale of each element, and how many scales there are.
fn numbers(block: Block, shape: &[i64]) -> (Vec<usize>, usize) {
    let whole = |n: i64, by: i64| (n + by - 1) / by;
    let n = *shape.last().expect("blocks are of an axis");
    let m = if block.rows == 1 { 1 } else { shape[shape.len() - 2] };
    let (down, across) = (whole(m, block.rows), whole(n, block.size));
    let elems: i64 = shape.iter().product();
    let number = |i: i64| {
        let (row, col) = (i / n, i % n);
        (row / m * down + row % m / block.rows) * across + col / block.size
    };
    let count = if elems == 0 {
        shape[..shape.len() - block.axes()].iter().product::<i64>() * down * across
    } else {
        elems / n / m * down * across
    };
    ((0..elems).map(|i| number(i) as usize).collect(), count as usize)
}

/// Codes and scales. Codes depend on the scale as it is stored: they are by its inverse.
pub(super) fn quantize(block: Block, x: &Tensor, precision: Precision) -> Vec<Vec<f64>> {
    let round = |dtype: DType, x: f64| if precision == Precision::Rounded { dtype.round(x) } else { x };
    let (numbers, count) = numbers(block, &x.shape);
    let wide: Vec<f64> = x.data.iter().map(|x| round(SCALE, *x)).collect();
    let mut most = vec![0.0; count];
    for (x, i) in wide.iter().zip(&numbers) {
        most[*i] = MapFn::Max.eval(&[most[*i], x.abs()]);
    }
    let scales: Vec<f64> = most.into_iter().map(|most| round(SCALE, most / GREATEST)).collect();
    let inverse = |scale: &f64| if *scale >= LEAST_SCALE { round(SCALE, 1.0 / scale) } else { 0.0 };
    let inverses: Vec<f64> = scales.iter().map(inverse).collect();
    let codes = wide.iter().zip(&numbers).map(|(x, i)| round(CODE, round(SCALE, x * inverses[*i]))).collect();
    vec![codes, scales]
}

pub(super) fn dequantize(block: Block, codes: &Tensor, scales: &Tensor) -> Vec<f64> {
    let (numbers, _) = numbers(block, &codes.shape);
    codes.data.iter().zip(numbers).map(|(x, i)| x * scales.data[i]).collect()
}
