//! What a gradient of attention takes from the attention's result, computed apart: each row's Σ o·d_o, which is all that it needs of o. Where d_o is a number for each row
//! times something that several branches share, as with gates, the sum is of that, so that one pass over it has all branches' sums and gates' gradients, and no result
//! is needed after it. Numbers that cannot be negative are taken into the weights: g·exp(x − lse) = exp(x − (lse − log g)), so that all branches read what they share, and
//! nobody stores it times their numbers.
//! Before: `%d_o = map mul %x, %g`, `%dq, … = attend_grad %q, %k, %v, %o, %lse, %d_o, %d_lse`
//! After: `%s = reduce sum (map mul %o, %x)`, … `attend_grad %q, %k, %v, 0, %lse - log %g, %x, -%s`, or if %g may be negative or %d_lse is not 0
//! `attend_grad %q, %k, %v, 0, %lse, %d_o, %d_lse - %g·%s`

use super::{Stats, rewrite};
use crate::{
    build::Builder,
    ir::{Func, Node, Value},
    op::{MapFn, Op, ReduceFn},
};
use base::DType;
use std::collections::VecDeque;

/// Ops that are computed again rather than kept, at most.
const MOST_OPS: usize = 12;

/// Of all gradients of attention.
pub fn split_deltas(func: &mut Func) -> Stats {
    split_deltas_where(func, &|_, _| true)
}

/// Of those that are asked for.
pub fn split_deltas_where(func: &mut Func, wanted: &dyn Fn(&Func, &Node) -> bool) -> Stats {
    let mut signs = VecDeque::new();
    find_signs(func, &[], &mut signs);
    rewrite(func, &mut |func, node| {
        let Op::AttendGrad(_) = node.op else { return None };
        let positive = signs.pop_front()?;
        let [_, _, _, o, lse, d_o, d_lse, ..] = node.inputs[..] else { return None };
        let (x, gate) = gated(func, d_o).filter(|_| !is_zero(func, o) && wanted(func, node))?;
        let mut b = Builder { func, origin: node.origin };
        let sum = b.func.ty(d_lse).dtype;
        let wide = |b: &mut Builder, v: Value| if b.func.ty(v).dtype == sum { v } else { b.cast(v, sum) };
        let [wide_o, wide_x, gate] = [o, x, gate].map(|v| wide(&mut b, v));
        let product = b.mul(wide_o, wide_x);
        let total = b.op(Op::Reduce(ReduceFn::Sum, vec![3]), &[product]);
        let mut inputs = node.inputs.clone();
        inputs[3] = b.full_like(o, 0.0);
        // Weights times gates would leave f16's range where a tensor times gates does not.
        let wide = b.func.ty(x).dtype != DType::F16;
        if wide && positive && is_zero(b.func, d_lse) {
            let log = b.map(MapFn::Log, &[gate]);
            inputs[4] = b.map(MapFn::Sub, &[lse, log]);
            inputs[6] = b.map(MapFn::Neg, &[total]);
            // In memory only from here on, where no result is: sums take it from what it is made of.
            inputs[5] = if is_light(b.func, x) { again(&mut b, x) } else { x };
        } else {
            let delta = b.mul(gate, total);
            inputs[6] = b.map(MapFn::Sub, &[d_lse, delta]);
        }
        Some(b.node(node.op.clone(), &inputs))
    })
}

/// A map's node once more, one for all that ask.
fn again(b: &mut Builder, v: Value) -> Value {
    let node = b.func.def(v).clone();
    let other = b.func.nodes.iter().find(|(id, n)| *id != v.node && n.op == node.op && n.inputs == node.inputs);
    let other = other.map(|(node, _)| Value { node, index: 0 });
    other.unwrap_or_else(|| b.op(node.op, &node.inputs))
}

/// Whether a value is a map of one other that is as long, and of little.
fn is_light(func: &Func, v: Value) -> bool {
    let (Op::Map(_) | Op::Cast(_)) = func.def(v).op else { return false };
    let (elems, mut open, mut seen, mut long) = (func.ty(v).elems(), vec![v], Vec::new(), 0);
    while let Some(x) = open.pop().filter(|_| seen.len() < MOST_OPS) {
        seen.push(x);
        match &func.def(x).op {
            Op::Map(_) | Op::Cast(_) | Op::Broadcast { .. } => {
                open.extend(func.def(x).inputs.iter().filter(|y| !seen.contains(y)))
            }
            _ => long += i32::from(func.ty(x).elems() == elems),
        }
    }
    open.is_empty() && seen.len() < MOST_OPS && long <= 1
}

/// Which of a function's outputs are never negative, as far as its ops say, if these arguments are not; and of each gradient of attention, in the order in which they are
/// rewritten, whether the numbers of its rows are not.
fn find_signs(func: &Func, known: &[bool], found: &mut VecDeque<bool>) -> Vec<bool> {
    let mut positive: Vec<Vec<bool>> = Vec::with_capacity(func.nodes.len());
    for node in func.nodes.values() {
        let of = |v: &Value| positive[v.node.0 as usize][v.index as usize];
        let all = || node.inputs.iter().all(of);
        let one = match &node.op {
            Op::Arg(i) => known.get(*i as usize).is_some_and(|k| *k),
            Op::Const(c, _) => c.get() >= 0.0 && c.get().is_sign_positive(),
            Op::Map(MapFn::Sigmoid | MapFn::Exp | MapFn::Abs | MapFn::Softplus) => true,
            Op::Map(MapFn::Max) => node.inputs.iter().any(of),
            // The greatest of nothing is -∞.
            Op::Reduce(ReduceFn::Max, _) => false,
            Op::Map(MapFn::Mul | MapFn::Add | MapFn::Div | MapFn::Min)
            | Op::Reduce(..)
            | Op::Cast(_)
            | Op::StopGradient
            | Op::Broadcast { .. }
            | Op::Transpose(_)
            | Op::Reshape(_)
            | Op::Slice { .. } => all(),
            Op::Repeat(r) => {
                // What is carried from turn to turn is not looked into.
                let inside: Vec<bool> = node.inputs.iter().enumerate().map(|(i, v)| i >= r.carried && of(v)).collect();
                let outputs = find_signs(&r.body, &inside, found).into_iter().enumerate();
                positive.push(outputs.map(|(i, known)| i >= r.carried && known).collect());
                continue;
            }
            Op::Fused(f) => {
                let inside: Vec<bool> = node.inputs.iter().map(of).collect();
                positive.push(find_signs(&f.body, &inside, &mut VecDeque::new()));
                continue;
            }
            Op::AttendGrad(_) => {
                found.push_back(gated(func, node.inputs[5]).is_some_and(|(_, gate)| of(&gate)));
                false
            }
            _ => false,
        };
        positive.push(vec![one; node.types.len()]);
    }
    func.outputs.iter().map(|o| positive[o.value.node.0 as usize][o.value.index as usize]).collect()
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
