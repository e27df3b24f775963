//! Computes elementwise ops and casts of constants, and extents that are known; a constant broadcast to a shape counts as a constant.
//! Before: `%1 = add 1.0, 2.0`   After: `%1 = 3.0`. Floats are evaluated in f64 from operands rounded to their dtype and
//! rounded once, which for + − · / √ on f32 and below is what the target computes; integers only where f64 is exact and the
//! result fits. Also drops x·1, x/1, x − 0, and x + 0 with the zero that changes nothing, and
//! choices whose condition is constant.

use super::{Stats, add, rewrite};
use crate::{
    ir::{Func, Node, Value},
    op::{MapFn, Op, Scalar},
};
use base::DType;

/// See the module.
pub fn fold_constants(func: &mut Func) -> Stats {
    rewrite(func, &mut |func, node| {
        if let Op::Map(f) = node.op
            && let Some(same) = identity(func, f, &node.inputs)
        {
            return Some(vec![same]);
        }
        let (value, ty) = (fold(func, node)?, &node.types[0]);
        let scalar = add(func, Op::Const(Scalar::new(value), ty.dtype), &[], node);
        if ty.rank() == 0 {
            return Some(vec![scalar]);
        }
        Some(vec![add(func, Op::Broadcast { shape: ty.shape.clone(), axes: Vec::new() }, &[scalar], node)])
    })
}

/// The value that all elements of the node's result have.
fn fold(func: &Func, node: &Node) -> Option<f64> {
    let dtype = node.types.first()?.dtype;
    if let Op::Extent(d, _) = &node.op {
        return fits(d.known()? as f64, dtype);
    }
    let operands = || node.inputs.iter().map(|v| constant(func, *v)).collect::<Option<Vec<_>>>();
    if let Op::Map(f) = node.op {
        return fits(f.eval(&operands()?), dtype);
    }
    if matches!(node.op, Op::Cast(_)) {
        let x = operands()?[0];
        return if dtype.is_int() { fits(x.trunc(), dtype) } else { Some(dtype.round(x)) };
    }
    None
}

/// `x` as a constant of the dtype; none if an integer is not exact or does not fit.
fn fits(x: f64, dtype: DType) -> Option<f64> {
    let limit = match dtype {
        DType::I32 => f64::from(i32::MAX),
        DType::I64 => 2f64.powi(53),
        DType::F64 | DType::F32 | DType::TF32 | DType::BF16 | DType::F16 | DType::E4M3 | DType::Bool => f64::INFINITY,
    };
    (!dtype.is_int() || x.abs() <= limit).then(|| dtype.round(x))
}

/// The constant that all elements of a value are.
fn constant(func: &Func, v: Value) -> Option<f64> {
    let mut node = func.def(v);
    if let Op::Broadcast { axes, .. } = &node.op
        && axes.is_empty()
    {
        node = func.def(node.inputs[0]);
    }
    if let Op::Const(x, dtype) = node.op { Some(dtype.round(x.get())) } else { None }
}

/// The operand that the result equals bit for bit.
fn identity(func: &Func, f: MapFn, inputs: &[Value]) -> Option<Value> {
    let is = |i: usize, x: f64| constant(func, inputs[i]).is_some_and(|c| c.to_bits() == x.to_bits());
    // x + 0 is not x where x is -0; x + -0 is. Integers have one zero.
    let zero = |i: usize| if func.ty(inputs[i]).dtype.is_int() { is(i, 0.0) || is(i, -0.0) } else { is(i, -0.0) };
    let kept = match f {
        MapFn::Add if zero(1) => 0,
        MapFn::Add if zero(0) => 1,
        MapFn::Sub if is(1, 0.0) => 0,
        MapFn::Mul if is(1, 1.0) => 0,
        MapFn::Mul if is(0, 1.0) => 1,
        MapFn::Div | MapFn::FloorDiv if is(1, 1.0) => 0,
        MapFn::Select => {
            if constant(func, inputs[0])? != 0.0 {
                1
            } else {
                2
            }
        }
        _ => return None,
    };
    Some(inputs[kept])
}
