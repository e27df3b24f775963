//! Products of operands that are only widened, for a device on which products are kernels: what is bf16, f16 or tf32 in memory is multiplied as it is and
//! summed in f32, which is the same: factors of eight or eleven bits have exact products in f32. Nothing is widened in memory, and tensor cores take them.

use super::{Body, Lowerer};
use crate::{group::is_layout, view::StridedView};
use base::DType;
use graph::{Func, Op, Value};

/// The narrow value that `v` is, widened to f32 and seen through layout ops.
pub(crate) fn narrow(func: &Func, v: Value) -> Option<Value> {
    let node = func.def(v);
    match node.op {
        Op::Cast(DType::F32) => {
            Some(node.inputs[0]).filter(|x| matches!(func.ty(*x).dtype, DType::TF32 | DType::BF16 | DType::F16))
        }
        _ if is_layout(&node.op) => narrow(func, node.inputs[0]),
        _ => None,
    }
}

/// The narrow values of both operands of a contraction, if they are of one dtype.
pub(crate) fn narrow_operands(func: &Func, op: &Op, inputs: &[Value]) -> Option<[Value; 2]> {
    let (Op::Contract(_), [a, b]) = (op, inputs) else { return None };
    let both = [narrow(func, *a)?, narrow(func, *b)?];
    (func.ty(both[0]).dtype == func.ty(both[1]).dtype).then_some(both)
}

impl Lowerer<'_> {
    /// The narrow operand as a view, with the layout of the widened one.
    pub(super) fn strided_narrow(&mut self, b: &mut Body, v: Value) -> StridedView {
        let node = b.func.def(v);
        let below = node.inputs[0];
        if matches!(node.op, Op::Cast(_)) {
            return self.strided(b, below);
        }
        let op = node.op.clone();
        let view = self.strided_narrow(b, below);
        view.apply(&op).unwrap_or_else(|| {
            let dtype = narrow(b.func, v).map_or(DType::F32, |x| b.func.ty(x).dtype);
            let dense = self.copied(b, &view, dtype);
            dense.apply(&op).expect("a layout op of a contiguous value is a view")
        })
    }
}
