//! The derivative of a contraction: two contractions.

use super::Site;
use crate::{
    build::Builder,
    ir::Value,
    op::{Contract, Op},
};

/// dA = dC·B over the letters that A lacks, dB = A·dC over those that B lacks. Each letter of an operand is in the result or in the
/// other operand, so these are contractions too; batch letters stay batch letters.
pub(super) fn term(b: &mut Builder, s: &Site, c: &Contract, i: usize) -> Value {
    let (lhs, rhs, out) = (c.lhs.clone(), c.rhs.clone(), c.out.clone());
    if i == 0 {
        b.op(Op::Contract(Contract { lhs: out, rhs, out: lhs }), &[s.dy(), s.x(1)])
    } else {
        b.op(Op::Contract(Contract { lhs, rhs: out, out: rhs }), &[s.x(0), s.dy()])
    }
}
