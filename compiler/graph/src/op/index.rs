//! Shape rules of gather, scatter, top-k and running sums.

use super::{OpError, check_axis, check_dtype, check_shape, op_error};
use base::{DType, Dim, TensorType};

pub(super) fn gather(batch: usize, x: &TensorType, idx: &TensorType) -> Result<TensorType, OpError> {
    check_dtype("the index", idx, DType::I32)?;
    if x.rank() <= batch || idx.rank() < batch {
        return op_error!("gather of {x} by {idx} with {batch} batch axes");
    }
    check_shape("the index's batch", &idx.shape[..batch], &x.shape[..batch])?;
    Ok(TensorType::new(x.dtype, [&idx.shape[..], &x.shape[batch + 1..]].concat()))
}

pub(super) fn scatter_add(batch: usize, n: &Dim, idx: &TensorType, v: &TensorType) -> Result<TensorType, OpError> {
    check_dtype("the index", idx, DType::I32)?;
    if idx.rank() < batch || v.rank() < idx.rank() || v.dtype == DType::Bool {
        return op_error!("scatter_add of {v} by {idx} with {batch} batch axes");
    }
    check_shape("the rows' index", &v.shape[..idx.rank()], &idx.shape)?;
    Ok(TensorType::new(v.dtype, [&idx.shape[..batch], std::slice::from_ref(n), &v.shape[idx.rank()..]].concat()))
}

pub(super) fn topk(k: i64, x: &TensorType) -> Result<TensorType, OpError> {
    if !x.dtype.is_float() || x.rank() == 0 || k < 1 {
        return op_error!("the {k} greatest of {x}");
    }
    let mut result = x.with_dtype(DType::I32);
    result.shape[x.rank() - 1] = Dim::from(k);
    Ok(result)
}

pub(super) fn cumsum(axis: usize, x: &TensorType) -> Result<TensorType, OpError> {
    check_axis(axis, x)?;
    if x.dtype == DType::Bool { op_error!("cumsum of {x}") } else { Ok(x.clone()) }
}
