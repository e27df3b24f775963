//! Replaces a `scatter_add` that adds one row for each index of its batch, such as a gathered probability's gradient, by a map: the row where
//! the index says so, 0 elsewhere. It fuses with what is around it, so that what is mostly zeros is not stored; once gradients are taken.
//! Before: `%y = scatter_add idx, v {batch = 2, n}`, of `[b, t, 1]`   After: `iota`, `broadcast`, `map eq`, `map select`
//! The sum of such a map along the axis of its indices is the row itself, where the index is one of the axis: `%s = reduce sum %y {axes = [2]}`

use super::{Stats, rewrite};
use crate::{
    build::Builder,
    ir::{Func, Node, Value},
    op::{MapFn, Op, ReduceFn},
};
use base::{DType, Dim};

/// See the module.
pub fn expand_single_pick(func: &mut Func) -> Stats {
    rewrite(func, &mut |func, node| match &node.op {
        Op::ScatterAdd { batch, n } if func.ty(node.inputs[0]).shape[*batch..].iter().all(|d| d.is(1)) => {
            Some(vec![definition(func, node, *batch, n)])
        }
        Op::Reduce(ReduceFn::Sum, axes) if let [axis] = axes[..] => sum_of_pick(func, node, axis).map(|v| vec![v]),
        _ => None,
    })
}

/// The sum along `axis` of what [`definition`] gives, or of its negative: one term, the others are 0.
fn sum_of_pick(func: &mut Func, node: &Node, axis: usize) -> Option<Value> {
    let inputs = |v: Value, op: Op| (func.def(v).op == op).then(|| func.def(v).inputs.clone());
    let mut picked = node.inputs[0];
    let mut negative = false;
    while let Some(x) = inputs(picked, Op::Map(MapFn::Neg)) {
        (picked, negative) = (x[0], !negative);
    }
    let [here, rows, zero] = inputs(picked, Op::Map(MapFn::Select))?[..] else { return None };
    let [places, index] = inputs(here, Op::Map(MapFn::Eq))?[..] else { return None };
    // What a broadcast repeats, and the axes that it has.
    let repeated = |v: Value| match &func.def(v).op {
        Op::Broadcast { axes, .. } => Some((func.def(v).inputs[0], axes.clone())),
        _ => None,
    };
    let [(places, own), (index, of_index), (rows, of_rows), (zero, _)] =
        [repeated(places)?, repeated(index)?, repeated(rows)?, repeated(zero)?];
    let n = match &func.def(places).op {
        Op::Iota(n) if own == [axis] => n.clone(),
        _ => return None,
    };
    if !matches!(&func.def(zero).op, Op::Const(c, _) if c.get() == 0.0) || of_index.contains(&axis) || of_rows.contains(&axis) {
        return None;
    }
    let shape = node.types[0].shape.clone();
    let without = |axes: Vec<usize>| axes.into_iter().map(|a| a - usize::from(a > axis)).collect::<Vec<_>>();
    let mut f = Builder { func, origin: node.origin };
    let [index, rows] = [(index, of_index), (rows, of_rows)].map(|(x, axes)| match axes.len() == shape.len() {
        true => x,
        false => f.broadcast(x, &shape, &without(axes)),
    });
    let n = f.op(Op::Extent(n, DType::I32), &[]);
    let n = f.splat(n, &shape);
    let none = f.full_like(index, 0.0);
    let inside = [f.map(MapFn::Le, &[none, index]), f.map(MapFn::Lt, &[index, n])];
    let inside = f.map(MapFn::And, &inside);
    let zero = f.full_like(rows, 0.0);
    let sum = f.map(MapFn::Select, &[inside, rows, zero]);
    Some(if negative { f.map(MapFn::Neg, &[sum]) } else { sum })
}

fn definition(func: &mut Func, node: &Node, batch: usize, n: &Dim) -> Value {
    let [index, rows] = [node.inputs[0], node.inputs[1]];
    let result = node.types[0].shape.clone();
    let mut f = Builder { func, origin: node.origin };
    let shared: Vec<usize> = (0..batch).collect();
    // Without the axes of one pick, both fit the result but for its new axis.
    let row: Vec<usize> = (batch + 1..result.len()).collect();
    let index = f.reshape(index, &result[..batch]);
    let kept: Vec<Dim> = shared.iter().chain(&row).map(|a| result[*a].clone()).collect();
    let rows = f.reshape(rows, &kept);
    let index = f.broadcast(index, &result, &shared);
    let places = f.op(Op::Iota(n.clone()), &[]);
    let places = f.broadcast(places, &result, &[batch]);
    let here = f.map(MapFn::Eq, &[places, index]);
    let rows = f.broadcast(rows, &result, &[shared, row].concat());
    let zero = f.full_like(rows, 0.0);
    debug_assert_eq!(f.func.ty(index).dtype, DType::I32);
    f.map(MapFn::Select, &[here, rows, zero])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        interp::{Options, Tensor, eval},
        ir::Role,
        verify::verify_func,
    };
    use base::{DimEnv, TensorType};

    #[test]
    fn a_sum_of_one_pick_has_no_loop() {
        // Indices, some outside of 0..4; rows; the axis that is summed, and whether that is the one of the indices.
        let cases: [(&[i64], &[i64], usize, bool); 4] = [
            (&[2, 3, 1], &[2, 3, 1], 2, true),
            (&[2, 1], &[2, 1, 5], 1, true),
            (&[2, 1], &[2, 1, 5], 2, false),
            (&[1], &[1], 0, true),
        ];
        for (index, rows, axis, folds) in cases {
            let tensor = |dtype, shape: &[i64], low: f64| {
                let n = shape.iter().product::<i64>();
                Tensor::new(dtype, shape, (0..n).map(|i| ((i * 3) % 7) as f64 + low).collect())
            };
            let args = [tensor(DType::I32, index, -2.0), tensor(DType::F32, rows, 0.5)];
            let mut func = Func::new("f");
            let values: Vec<Value> = args
                .iter()
                .enumerate()
                .map(|(i, t)| {
                    let ty = TensorType::new(t.dtype, t.shape.iter().map(|n| Dim::from(*n)).collect::<Vec<_>>());
                    func.arg(&i.to_string(), Role::Input, ty)
                })
                .collect();
            let mut b = Builder { func: &mut func, origin: None };
            let batch = index.len() - 1;
            let y = b.op(Op::ScatterAdd { batch, n: Dim::from(4) }, &values);
            let y = b.map(MapFn::Neg, &[y]);
            let sum = b.sum(y, &[axis]);
            func.output("sum", Role::Result, sum);
            let want = eval(&func, &args, &DimEnv::new(), Options::EXACT).expect("it evaluates");
            assert_eq!(expand_single_pick(&mut func).changes, 1 + usize::from(folds), "{index:?}");
            assert_eq!(verify_func(&func), [], "{index:?}");
            assert_eq!(eval(&func, &args, &DimEnv::new(), Options::EXACT).expect("it evaluates"), want, "{index:?}");
            let last = func.def(func.outputs[0].value);
            assert_eq!(matches!(last.op, Op::Reduce(..)), !folds, "{index:?}");
        }
    }

    #[test]
    fn one_row_for_each_index() {
        // Shapes of indices and rows, the batch, and whether there is one pick each.
        let cases: [(&[i64], &[i64], usize, bool); 5] = [
            (&[2, 3, 1], &[2, 3, 1], 2, true),
            (&[2, 3], &[2, 3, 5], 2, true),
            (&[1, 1], &[1, 1, 4], 0, true),
            (&[2, 3], &[2, 3, 5], 1, false),
            (&[0, 1], &[0, 1, 2], 1, true),
        ];
        for (index, rows, batch, expands) in cases {
            let tensor = |dtype, shape: &[i64], low: f64| {
                let n = shape.iter().product::<i64>();
                Tensor::new(dtype, shape, (0..n).map(|i| ((i * 3) % 7) as f64 + low).collect())
            };
            // Some indices are outside of 0..4.
            let args = [tensor(DType::I32, index, -2.0), tensor(DType::F32, rows, 0.5)];
            let mut func = Func::new("f");
            let values = args.iter().enumerate().map(|(i, t)| {
                let ty = TensorType::new(t.dtype, t.shape.iter().map(|n| Dim::from(*n)).collect::<Vec<_>>());
                func.arg(&i.to_string(), Role::Input, ty)
            });
            let values: Vec<Value> = values.collect();
            let y = Builder { func: &mut func, origin: None }.op(Op::ScatterAdd { batch, n: Dim::from(4) }, &values);
            func.output("y", Role::Result, y);
            let want = eval(&func, &args, &DimEnv::new(), Options::EXACT).expect("it evaluates");
            assert_eq!(expand_single_pick(&mut func).changes, usize::from(expands), "{index:?}");
            assert_eq!(verify_func(&func), [], "{index:?}");
            assert_eq!(eval(&func, &args, &DimEnv::new(), Options::EXACT).expect("it evaluates"), want, "{index:?}");
        }
    }
}
