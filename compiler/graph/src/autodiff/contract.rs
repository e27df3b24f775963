//! The derivative of a contraction: two contractions.

use super::Site;
use crate::{
    build::Builder,
    ir::Value,
    op::{Contract, Op},
};
use base::DType;

/// dA = dC·B over the letters that A lacks, dB = A·dC over those that B lacks. Each letter of an operand is in the result or in the
/// other operand, so these are contractions too; batch letters stay batch letters. Where operands were rounded to tf32, dC is too.
pub(super) fn term(b: &mut Builder, s: &Site, c: &Contract, i: usize) -> Value {
    let (lhs, rhs, out) = (c.lhs.clone(), c.rhs.clone(), c.out.clone());
    let dy = if [0, 1].iter().all(|i| is_rounded(b, s.x(*i))) {
        let narrow = b.cast(s.dy(), DType::TF32);
        b.cast(narrow, DType::F32)
    } else {
        s.dy()
    };
    if i == 0 {
        b.op(Op::Contract(Contract { lhs: out, rhs, out: lhs }), &[dy, s.x(1)])
    } else {
        b.op(Op::Contract(Contract { lhs, rhs: out, out: rhs }), &[s.x(0), dy])
    }
}

/// Whether an operand was rounded to tf32 for the product.
fn is_rounded(b: &Builder, v: Value) -> bool {
    let node = b.func.def(v);
    match node.op {
        Op::Cast(DType::F32) => b.func.ty(node.inputs[0]).dtype == DType::TF32,
        Op::Transpose(_) | Op::Reshape(_) | Op::Broadcast { .. } | Op::Slice { .. } => is_rounded(b, node.inputs[0]),
        _ => false,
    }
}
