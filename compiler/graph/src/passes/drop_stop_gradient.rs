//! Removes `stop_gradient`. Only right once gradients are taken.
//! Before: `%1 = stop_gradient %0; %2 = exp %1`   After: `%2 = exp %0`.

use super::{Stats, rewrite};
use crate::{ir::Func, op::Op};

/// See the module.
pub fn drop_stop_gradient(func: &mut Func) -> Stats {
    rewrite(func, &mut |_, node| matches!(node.op, Op::StopGradient).then(|| node.inputs.clone()))
}
