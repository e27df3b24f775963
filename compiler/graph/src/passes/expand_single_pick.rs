//! Replaces a `scatter_add` that adds one row for each index of its batch, such as a gathered probability's gradient, by a map: the row where
//! the index says so, 0 elsewhere. It fuses with what is around it, so that what is mostly zeros is not stored; once gradients are taken.
//! Before: `%y = scatter_add idx, v {batch = 2, n}`, of `[b, t, 1]`   After: `iota`, `broadcast`, `map eq`, `map select`

use super::{Stats, rewrite};
use crate::{
    build::Builder,
    ir::{Func, Node, Value},
    op::{MapFn, Op},
};
use base::{DType, Dim};

/// See the module.
pub fn expand_single_pick(func: &mut Func) -> Stats {
    rewrite(func, &mut |func, node| match &node.op {
        Op::ScatterAdd { batch, n } if func.ty(node.inputs[0]).shape[*batch..].iter().all(|d| d.is(1)) => {
            Some(vec![definition(func, node, *batch, n)])
        }
        _ => None,
    })
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
