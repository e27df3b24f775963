//! Replaces regions by their ops: for gradients, and for targets without a kernel for them. Exact.
//! Before: `%1 = fused %0 { topk (exp x) }`   After: `%1 = exp %0; %2 = topk %1`.

use super::{Stats, rewrite};
use crate::{ir::Func, op::Op};

/// See the module.
pub fn expand_fused(func: &mut Func) -> Stats {
    expand_fused_where(func, &|_| true)
}

/// The same of the regions that `which` says.
pub fn expand_fused_where(func: &mut Func, which: &dyn Fn(&crate::op::Fused) -> bool) -> Stats {
    rewrite(func, &mut |func, node| match &node.op {
        Op::Fused(f) if which(f) => Some(f.inline(func, &node.inputs, node.origin)),
        _ => None,
    })
}
