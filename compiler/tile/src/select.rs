//! Picks the kernel of an op that is not fused.

use crate::{ir::Kernel, lower::TargetError};
use base::TensorType;
use graph::Op;

/// The kernel for `op`: its buffers are the operands, then the results.
///
/// # Errors
/// E0501 if a size that has to be a constant is not.
pub fn kernel(op: &Op, operands: &[&TensorType], results: &[TensorType]) -> Result<Kernel, TargetError> {
    let _ = (operands, results);
    base::bug!("{} has no kernel", op.name())
}
