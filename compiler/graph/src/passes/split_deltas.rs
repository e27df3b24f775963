//! What a gradient of attention takes from the attention's result, computed apart: each row's Σ o·d_o, which is all that it needs of o. Where d_o is a number for each row
//! times something that several branches share, as with gates, the sum is of that, so that one pass over it has all branches' sums and gates' gradients, and no result
//! is needed after it.
//! Before: `%d_o = map mul %x, %g`, `%dq, … = attend_grad %q, %k, %v, %o, %lse, %d_o, %d_lse`
//! After: `%s = reduce sum (map mul %o, %x)`, … `attend_grad %q, %k, %v, 0, %lse, %d_o, %d_lse - %g·%s`

use super::{Stats, rewrite};
use crate::{
    build::Builder,
    ir::{Func, Node, Value},
    op::{MapFn, Op, ReduceFn},
};

/// Of all gradients of attention.
pub fn split_deltas(func: &mut Func) -> Stats {
    split_deltas_where(func, &|_, _| true)
}

/// Of those that are asked for.
pub fn split_deltas_where(func: &mut Func, wanted: &dyn Fn(&Func, &Node) -> bool) -> Stats {
    rewrite(func, &mut |func, node| {
        let Op::AttendGrad(_) = node.op else { return None };
        let [_, _, _, o, _, d_o, d_lse, ..] = node.inputs[..] else { return None };
        let (x, gate) = gated(func, d_o).filter(|_| !is_zero(func, o) && wanted(func, node))?;
        let mut b = Builder { func, origin: node.origin };
        let sum = b.func.ty(d_lse).dtype;
        let wide = |b: &mut Builder, v: Value| if b.func.ty(v).dtype == sum { v } else { b.cast(v, sum) };
        let [wide_o, wide_x, gate] = [o, x, gate].map(|v| wide(&mut b, v));
        let product = b.mul(wide_o, wide_x);
        let total = b.op(Op::Reduce(ReduceFn::Sum, vec![3]), &[product]);
        let delta = b.mul(gate, total);
        let d_lse = b.map(MapFn::Sub, &[d_lse, delta]);
        let zero = b.full_like(o, 0.0);
        let mut inputs = node.inputs.clone();
        (inputs[3], inputs[6]) = (zero, d_lse);
        Some(b.node(node.op.clone(), &inputs))
    })
}

/// If a value is a number for each row times another: that, and the numbers.
fn gated(func: &Func, v: Value) -> Option<(Value, Value)> {
    let node = func.def(v);
    let Op::Map(MapFn::Mul) = node.op else { return None };
    let of_rows = |v: Value| match &func.def(v).op {
        Op::Broadcast { axes, .. } if axes[..] == [0, 1, 2] => Some(func.def(v).inputs[0]),
        _ => None,
    };
    let [x, y] = node.inputs[..] else { return None };
    of_rows(y).map(|gate| (x, gate)).or_else(|| of_rows(x).map(|gate| (y, gate)))
}

/// Whether a value is zeros.
pub fn is_zero(func: &Func, v: Value) -> bool {
    let node = func.def(v);
    match &node.op {
        Op::Const(c, _) => c.get() == 0.0,
        Op::Broadcast { .. } => is_zero(func, node.inputs[0]),
        _ => false,
    }
}
