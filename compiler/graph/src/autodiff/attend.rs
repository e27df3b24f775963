//! The derivative of attention.

use super::Site;
use crate::{
    build::Builder,
    ir::Value,
    op::{Attend, Op},
};

/// `attend_grad`, with zeros for the gradient of a result that is not used.
pub(super) fn terms(b: &mut Builder, s: &Site, a: &Attend) -> Vec<Option<Value>> {
    let results = [0, 1].map(|index| Value { node: s.id, index });
    let [d_o, d_lse] = [0, 1].map(|i| s.dy[i].unwrap_or_else(|| b.full_like(results[i], 0.0)));
    let mut operands = s.node.inputs[..3].to_vec();
    operands.extend([results[0], results[1], d_o, d_lse]);
    operands.extend_from_slice(&s.node.inputs[3..]);
    let mut terms: Vec<Option<Value>> = b.node(Op::AttendGrad(a.clone()), &operands).into_iter().map(Some).collect();
    terms.resize(s.node.inputs.len(), None);
    terms
}
