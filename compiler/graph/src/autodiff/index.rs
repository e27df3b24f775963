//! The derivative of gather; scatter-add's is a gather.

use super::Site;
use crate::{build::Builder, ir::Value, op::Op};

pub(super) fn gather(b: &mut Builder, s: &Site, batch: usize) -> Value {
    let n = b.func.ty(s.x(0)).shape[batch].clone();
    b.op(Op::ScatterAdd { batch, n }, &[s.x(1), s.dy()])
}
