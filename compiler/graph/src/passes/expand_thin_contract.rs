//! Replaces a contraction one of whose operands has no axis of its own by a product and a sum, and one that sums nothing by a product: they fuse with
//! what is around them. For devices of many processors, on which such a one moves as much as it computes: once gradients are taken and algebra is done.
//! Before: `%y = contract x, w {nkd,nk->nd}`   After: `broadcast`, `map mul` and `reduce` in the accumulator's type, `cast`.

use super::{Stats, rewrite};
use crate::{
    build::Builder,
    ir::{Func, Node, Value},
    op::{Contract, Op},
};

/// See the module.
pub fn expand_thin_contract(func: &mut Func) -> Stats {
    rewrite(func, &mut |func, node| match &node.op {
        Op::Contract(c) if !c.batch().is_empty() && c.cols().is_empty() => {
            Some(vec![definition(func, node, c, node.inputs[0], node.inputs[1])])
        }
        Op::Contract(c) if !c.batch().is_empty() && c.rows().is_empty() => {
            let turned = Contract { lhs: c.rhs.clone(), rhs: c.lhs.clone(), out: c.out.clone() };
            Some(vec![definition(func, node, &turned, node.inputs[1], node.inputs[0])])
        }
        Op::Contract(c) if c.lhs.iter().chain(&c.rhs).all(|x| c.out.contains(x)) => Some(vec![outer(func, node, c)]),
        _ => None,
    })
}

/// `lhs·rhs`, every letter being one of the result.
fn outer(func: &mut Func, node: &Node, c: &Contract) -> Value {
    let (dtype, shape) = (func.ty(node.inputs[0]).dtype, node.types[0].shape.clone());
    let mut f = Builder { func, origin: node.origin };
    let place = |list: &[char], x: char| list.iter().position(|y| *y == x).expect("every letter is one of the list");
    let [lhs, rhs] = [(&c.lhs, node.inputs[0]), (&c.rhs, node.inputs[1])].map(|(own, v)| {
        // The operand's axes in the result's order.
        let order: Vec<char> = c.out.iter().copied().filter(|x| own.contains(x)).collect();
        let v = f.cast(v, dtype.accumulator());
        let v = f.transpose(v, &order.iter().map(|x| place(own, *x)).collect::<Vec<_>>());
        f.broadcast(v, &shape, &order.iter().map(|x| place(&c.out, *x)).collect::<Vec<_>>())
    });
    let product = f.mul(lhs, rhs);
    f.cast(product, dtype)
}

/// `Σ wide·thin`, every letter of `thin` being one of `wide`.
fn definition(func: &mut Func, node: &Node, c: &Contract, wide: Value, thin: Value) -> Value {
    let dtype = func.ty(wide).dtype;
    let sum = dtype.accumulator();
    let mut f = Builder { func, origin: node.origin };
    let place = |list: &[char], x: char| list.iter().position(|y| *y == x).expect("every letter is one of the wide operand");
    let (wide, thin) = (f.cast(wide, sum), f.cast(thin, sum));
    // The thin operand's axes in the wide one's order.
    let order: Vec<char> = c.lhs.iter().copied().filter(|x| c.rhs.contains(x)).collect();
    let thin = f.transpose(thin, &order.iter().map(|x| place(&c.rhs, *x)).collect::<Vec<_>>());
    let shape = f.func.ty(wide).shape.clone();
    let thin = f.broadcast(thin, &shape, &order.iter().map(|x| place(&c.lhs, *x)).collect::<Vec<_>>());
    let products = f.mul(wide, thin);
    let summed: Vec<usize> = (0..c.lhs.len()).filter(|i| !c.out.contains(&c.lhs[*i])).collect();
    let sums = if summed.is_empty() { products } else { f.sum(products, &summed) };
    let left: Vec<char> = c.lhs.iter().copied().filter(|x| c.out.contains(x)).collect();
    let sums = f.transpose(sums, &c.out.iter().map(|x| place(&left, *x)).collect::<Vec<_>>());
    f.cast(sums, dtype)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        interp::{Options, Tensor, eval},
        ir::Role,
        verify::verify_func,
    };
    use base::{DType, Dim, DimEnv, TensorType};

    #[test]
    fn thin_operands_on_either_side() {
        let extent = |x: char| i64::from(x as u32 % 5 + 1);
        let tensor = |word: &str, by: i64| {
            let shape: Vec<i64> = word.chars().map(extent).collect();
            let n = shape.iter().product::<i64>();
            Tensor::new(DType::F32, &shape, (0..n).map(|i| ((i * by) % 7 - 3) as f64).collect())
        };
        for (spec, expands) in [
            ("nkd,nk->nd", true),
            ("nd,nkd->kn", true),
            ("kn,dnk->dn", true),
            ("nkd,nkd->n", true),
            ("nd,n->dn", true),
            ("nd,nk->nkd", true),
            ("n,d->dn", true),
            ("nkd,k->nd", false),
            ("nkd,nke->nde", false),
        ] {
            let (operands, _) = spec.split_once("->").expect("a result");
            let (a, b) = operands.split_once(',').expect("two operands");
            let args = [tensor(a, 3), tensor(b, 5)];
            let mut func = Func::new("f");
            let values = args.iter().enumerate().map(|(i, t)| {
                let ty = TensorType::new(t.dtype, t.shape.iter().map(|n| Dim::from(*n)).collect::<Vec<_>>());
                func.arg(&i.to_string(), Role::Input, ty)
            });
            let values: Vec<Value> = values.collect();
            let out = Builder { func: &mut func, origin: None }.contract(spec, values[0], values[1]);
            func.output("y", Role::Result, out);
            let want = eval(&func, &args, &DimEnv::new(), Options::EXACT).expect("it evaluates");
            assert_eq!(expand_thin_contract(&mut func).changes, usize::from(expands), "{spec}");
            assert_eq!(verify_func(&func), [], "{spec}");
            assert!(!expands || !func.nodes.values().any(|n| matches!(n.op, Op::Contract(_))), "{spec}");
            assert_eq!(eval(&func, &args, &DimEnv::new(), Options::EXACT).expect("it evaluates"), want, "{spec}");
        }
    }
}
