//! Replaces block quantisation by its definition, which fuses with what is around it: once precision is placed.
//! Before: `%c, %s = quantize %x`   After: `reshape` to blocks, widened, `reduce max` of `map abs`, `map div` by 448, its inverse, `map mul`, `cast` to codes.

use super::{Stats, rewrite};
use crate::{
    build::Builder,
    ir::{Func, Role, Value},
    op::{
        MapFn, Op, ReduceFn, Scalar,
        quantize::{Block, CODE, GREATEST, LEAST_SCALE, SCALE},
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
        Op::Quantize(block) => quantize(b, *block, x[0]).into(),
        Op::Dequantize(block) => vec![dequantize(b, *block, x[0], x[1])],
        _ => base::bug!("{} is no quantisation", op.name()),
    }
}

fn quantize(b: &mut Builder, block: Block, x: Value) -> [Value; 2] {
    let shape = b.func.ty(x).shape.clone();
    // Widened as blocks, so that what is stored is read in these.
    let blocks = to_blocks(b, x, block);
    let blocks = b.cast(blocks, SCALE);
    let magnitude = b.map(MapFn::Abs, &[blocks]);
    let inside = axes(block, shape.len()).into_iter().map(|(_, within)| within).collect();
    let most = b.op(Op::Reduce(ReduceFn::Max, inside), &[magnitude]);
    let greatest = b.full_like(most, GREATEST);
    let scale = b.map(MapFn::Div, &[most, greatest]);
    // One quotient a block: an element is multiplied.
    let [least, one, zero] = [LEAST_SCALE, 1.0, 0.0].map(|x| b.full_like(scale, x));
    let fits = b.map(MapFn::Le, &[least, scale]);
    let inverse = b.map(MapFn::Div, &[one, scale]);
    let inverse = b.map(MapFn::Select, &[fits, inverse, zero]);
    let wide = of_blocks(b, inverse, blocks, block);
    let code = b.mul(blocks, wide);
    let code = b.cast(code, CODE);
    [from_blocks(b, code, &shape, block), scale]
}

fn dequantize(b: &mut Builder, block: Block, code: Value, scale: Value) -> Value {
    let shape = b.func.ty(code).shape.clone();
    let blocks = to_blocks(b, code, block);
    let blocks = b.cast(blocks, SCALE);
    let wide = of_blocks(b, scale, blocks, block);
    let worth = b.mul(blocks, wide);
    from_blocks(b, worth, &shape, block)
}

/// The axes of blocks in a shape of so many, and where the elements of a block then are, the outer one first.
fn axes(block: Block, rank: usize) -> Vec<(usize, usize)> {
    let first = rank - block.axes();
    (0..block.axes()).map(|i| (first + i, first + 2 * i + 1)).collect()
}

/// `[.., n]` as `[.., m, size]`, with zeros after a shorter last block; likewise the axis before, if blocks have several rows.
fn to_blocks(b: &mut Builder, mut x: Value, block: Block) -> Value {
    let shape = b.func.ty(x).shape.clone();
    let by = [block.rows, block.size];
    let mut split = shape[..shape.len() - block.axes()].to_vec();
    for ((axis, _), by) in axes(block, shape.len()).into_iter().zip(&by[2 - block.axes()..]) {
        let (n, by) = (shape[axis].clone(), Dim::from(*by));
        let m = n.ceil_div(&by);
        let high = m.clone() * by.clone() - n;
        if !high.is(0) {
            x = b.op(Op::Pad { axis, low: Dim::from(0), high, value: Scalar::new(0.0) }, &[x]);
        }
        split.extend([m, by]);
    }
    b.reshape(x, &split)
}

/// A number of each block, for each of its elements.
fn of_blocks(b: &mut Builder, x: Value, blocks: Value, block: Block) -> Value {
    let shape = b.func.ty(blocks).shape.clone();
    let inside: Vec<usize> = axes(block, shape.len() - block.axes()).into_iter().map(|(_, within)| within).collect();
    b.broadcast(x, &shape, &(0..shape.len()).filter(|i| !inside.contains(i)).collect::<Vec<_>>())
}

/// `[.., m, size]` as `[.., n]`, and likewise the axis before.
fn from_blocks(b: &mut Builder, x: Value, shape: &[Dim], block: Block) -> Value {
    let blocks = b.func.ty(x).shape.clone();
    let mut whole = shape.to_vec();
    for (axis, within) in axes(block, shape.len()) {
        whole[axis] = blocks[within - 1].clone() * blocks[within].clone();
    }
    let mut x = b.reshape(x, &whole);
    for (axis, _) in axes(block, shape.len()) {
        if whole[axis] != shape[axis] {
            x = b.op(Op::Slice { axis, start: Dim::from(0), len: shape[axis].clone(), step: 1 }, &[x]);
        }
    }
    x
}

#[cfg(test)]
mod tests;
