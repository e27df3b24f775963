//! Shape rules of routing and of contractions over ragged rows.

use super::{OpError, check_dtype, check_shape, op_error};
use base::{DType, Dim, TensorType};

pub(super) fn route(groups: i64, idx: &TensorType) -> Result<Vec<TensorType>, OpError> {
    check_dtype("the choice", idx, DType::I32)?;
    if idx.rank() != 2 || groups < 1 {
        return op_error!("routing of {idx} to {groups} groups");
    }
    let i32s = |shape: Vec<Dim>| TensorType::new(DType::I32, shape);
    Ok(vec![i32s(vec![Dim::from(groups + 1)]), i32s(vec![idx.elems()]), idx.clone()])
}

fn groups(offsets: &TensorType) -> Result<Dim, OpError> {
    check_dtype("the offsets", offsets, DType::I32)?;
    match &offsets.shape[..] {
        [n] => Ok(n.clone() - Dim::from(1)),
        _ => op_error!("offsets of {offsets}"),
    }
}

pub(super) fn grouped_contract(transposed: bool, operands: &[&TensorType]) -> Result<TensorType, OpError> {
    let (x, w) = (operands[0], operands[1]);
    let e = groups(operands[2])?;
    let ([r, k], [we, wa, wb]) = (&x.shape[..], &w.shape[..]) else { return op_error!("grouped_contract of {x} and {w}") };
    let (wk, n) = if transposed { (wb, wa) } else { (wa, wb) };
    if x.dtype != w.dtype || !x.dtype.is_float() {
        return op_error!("grouped_contract of {x} and {w}");
    }
    check_shape("the rows' inner extent", std::slice::from_ref(k), std::slice::from_ref(wk))?;
    check_shape("the number of matrices", std::slice::from_ref(we), &[e])?;
    Ok(TensorType::new(x.dtype, vec![r.clone(), n.clone()]))
}

pub(super) fn grouped_outer(operands: &[&TensorType]) -> Result<TensorType, OpError> {
    let (x, y) = (operands[0], operands[1]);
    let e = groups(operands[2])?;
    let ([r, k], [r2, n]) = (&x.shape[..], &y.shape[..]) else { return op_error!("grouped_outer of {x} and {y}") };
    if x.dtype != y.dtype || !x.dtype.is_float() {
        return op_error!("grouped_outer of {x} and {y}");
    }
    check_shape("the number of rows", std::slice::from_ref(r), std::slice::from_ref(r2))?;
    Ok(TensorType::new(x.dtype, vec![e, k.clone(), n.clone()]))
}
