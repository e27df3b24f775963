//! Replaces block quantisation by its definition, which fuses with what is around it: once precision is placed.
//! Before: `%c, %s = quantize %x`   After: `reshape` to blocks, widened, `reduce max` of `map abs`, `map div` by 448, its inverse, `map mul`, `cast` to codes.

use super::{Stats, rewrite};
use crate::{
    build::Builder,
    ir::{Func, Role, Value},
    op::{
        MapFn, Op, ReduceFn, Scalar,
        quantize::{CODE, GREATEST, LEAST_SCALE, SCALE},
    },
};
use base::{Dim, TensorType};

/// See the module.
pub fn expand_quantize(func: &mut Func) -> Stats {
    rewrite(func, &mut |func, node| match &node.op {
        Op::Quantize(_) | Op::Dequantize(_) => {
            let mut b = Builder { func, origin: node.origin };
            Some(definition(&mut b, &node.op, &node.inputs))
        }
        _ => None,
    })
}

/// The definition as a function of its own.
pub(crate) fn definition_of(op: &Op, operands: &[&TensorType]) -> Func {
    let mut f = Func::new("definition");
    let args: Vec<Value> = operands.iter().enumerate().map(|(i, t)| f.arg(&format!("x{i}"), Role::Inner, (*t).clone())).collect();
    let results = definition(&mut Builder::new(&mut f), op, &args);
    results.into_iter().enumerate().for_each(|(i, v)| f.output(&format!("y{i}"), Role::Inner, v));
    f
}

/// Appends what a quantisation, or the way back, is by definition.
pub(crate) fn definition(b: &mut Builder, op: &Op, x: &[Value]) -> Vec<Value> {
    match op {
        Op::Quantize(size) => quantize(b, *size, x[0]).into(),
        Op::Dequantize(size) => vec![dequantize(b, *size, x[0], x[1])],
        _ => base::bug!("{} is no quantisation", op.name()),
    }
}

fn quantize(b: &mut Builder, size: i64, x: Value) -> [Value; 2] {
    let shape = b.func.ty(x).shape.clone();
    // Widened as blocks, so that what is stored is read in these.
    let blocks = to_blocks(b, x, size);
    let blocks = b.cast(blocks, SCALE);
    let magnitude = b.map(MapFn::Abs, &[blocks]);
    let last = shape.len();
    let most = b.op(Op::Reduce(ReduceFn::Max, vec![last]), &[magnitude]);
    let greatest = b.full_like(most, GREATEST);
    let scale = b.map(MapFn::Div, &[most, greatest]);
    // One quotient a block: an element is multiplied.
    let [least, one, zero] = [LEAST_SCALE, 1.0, 0.0].map(|x| b.full_like(scale, x));
    let fits = b.map(MapFn::Le, &[least, scale]);
    let inverse = b.map(MapFn::Div, &[one, scale]);
    let inverse = b.map(MapFn::Select, &[fits, inverse, zero]);
    let wide = of_blocks(b, inverse, blocks);
    let code = b.mul(blocks, wide);
    let code = b.cast(code, CODE);
    [from_blocks(b, code, &shape), scale]
}

fn dequantize(b: &mut Builder, size: i64, code: Value, scale: Value) -> Value {
    let shape = b.func.ty(code).shape.clone();
    let blocks = to_blocks(b, code, size);
    let blocks = b.cast(blocks, SCALE);
    let wide = of_blocks(b, scale, blocks);
    let worth = b.mul(blocks, wide);
    from_blocks(b, worth, &shape)
}

/// `[.., n]` as `[.., m, size]`, with zeros after a shorter last block.
fn to_blocks(b: &mut Builder, x: Value, size: i64) -> Value {
    let mut shape = b.func.ty(x).shape.clone();
    let (axis, by) = (shape.len() - 1, Dim::from(size));
    let n = shape[axis].clone();
    let m = n.ceil_div(&by);
    let high = m.clone() * by.clone() - n;
    let x = if high.is(0) { x } else { b.op(Op::Pad { axis, low: Dim::from(0), high, value: Scalar::new(0.0) }, &[x]) };
    shape.splice(axis.., [m, by]);
    b.reshape(x, &shape)
}

/// A number of each block, for each of its elements.
fn of_blocks(b: &mut Builder, x: Value, blocks: Value) -> Value {
    let shape = b.func.ty(blocks).shape.clone();
    b.broadcast(x, &shape, &(0..shape.len() - 1).collect::<Vec<_>>())
}

/// `[.., m, size]` as `[.., n]`.
fn from_blocks(b: &mut Builder, x: Value, shape: &[Dim]) -> Value {
    let blocks = b.func.ty(x).shape.clone();
    let axis = shape.len() - 1;
    let all = blocks[axis].clone() * blocks[axis + 1].clone();
    let whole = [&shape[..axis], std::slice::from_ref(&all)].concat();
    let x = b.reshape(x, &whole);
    let len = shape[axis].clone();
    if all == len { x } else { b.op(Op::Slice { axis, start: Dim::from(0), len, step: 1 }, &[x]) }
}

#[cfg(test)]
mod tests;
