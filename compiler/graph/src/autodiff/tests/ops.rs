//! Each op alone.

use super::*;
use crate::op::{Attend, Domain, Exchange, ReduceFn, map::Kind, quantize::Block};

#[test]
fn elementwise() {
    for f in MapFn::ALL {
        let kind = match f {
            MapFn::Log | MapFn::Sqrt | MapFn::Rsqrt | MapFn::Pow => "p 3, 2",
            _ => "f 3, 2",
        };
        match f.kind() {
            Kind::Float | Kind::Number => {
                check(f.name(), &vec![kind; f.arity()], &[], |b, x| vec![b.op(Op::Map(*f), x)]);
            }
            Kind::Select => check("select", &["f 5", "f 5", "f 5"], &[], |b, x| {
                let zero = b.full_like(x[0], 0.0);
                let positive = b.map(MapFn::Lt, &[zero, x[0]]);
                vec![b.map(MapFn::Select, &[positive, x[1], x[2]])]
            }),
            Kind::Int | Kind::Compare | Kind::Logic | Kind::Test => {}
        }
    }
}

#[test]
fn elementwise_at_the_corners() {
    let at = |f: MapFn, args: &[f64]| {
        let args: Vec<Tensor> = args.iter().map(|x| Tensor::new(DType::F64, &[], vec![*x])).collect();
        gradient(&args, |b, x| b.map(f, x))[0]
    };
    assert_eq!(at(MapFn::Max, &[0.0, 0.0]), 0.0);
    assert_eq!(at(MapFn::Abs, &[0.0]), 0.0);
    assert_eq!(at(MapFn::Pow, &[0.0, 0.0]), 0.0);
    assert_eq!(at(MapFn::Pow, &[0.0, 2.0]), 0.0);
    let scalar = |x: f64| Tensor::new(DType::F64, &[], vec![x]);
    assert_eq!(gradient(&[scalar(2.0), scalar(0.0)], |b, x| b.map(MapFn::Pow, &[x[1], x[0]])), [0.0]);
}

#[test]
fn products_in_tf32_have_gradients_in_tf32() {
    let mut f = Func::new("f");
    let ty = |shape: [i64; 2]| TensorType::new(DType::F32, shape.map(Dim::from).to_vec());
    let args = [f.arg("x", Role::Input, ty([2, 3])), f.arg("w", Role::Param, ty([3, 4]))];
    let mut b = Builder::new(&mut f);
    let wide = args.map(|v| {
        let narrow = b.cast(v, DType::TF32);
        b.cast(narrow, DType::F32)
    });
    let y = b.contract("ik,kj->ij", wide[0], wide[1]);
    let square = b.mul(y, y);
    let total = b.sum(square, &[0, 1]);
    f.output("total", Role::Scalar, total);
    let g = grad(&f, &[0, 1], Seed { objective: "total", remat: Remat::Cheap }).expect("it has a derivative");
    let rounded = |v: &Value| matches!(g.def(*v).op, Op::Cast(DType::F32)) && g.ty(g.def(*v).inputs[0]).dtype == DType::TF32;
    let products: Vec<_> = g.nodes.values().filter(|n| matches!(n.op, Op::Contract(_))).collect();
    assert_eq!(products.len(), 3);
    assert!(products.iter().all(|n| n.inputs.iter().all(rounded)));
    // What they give is as it is.
    let results = [1, 2].map(|i| g.def(g.outputs[i].value));
    assert!(results.iter().all(|n| n.types[0].dtype == DType::F32 && !matches!(n.op, Op::Cast(_))));
}

#[test]
fn what_is_computed_in_tf32_has_gradients_in_tf32() {
    let x = Tensor::new(DType::F32, &[3], vec![1.0, -2.0, 0.5]);
    let both = |b: &mut Builder, x: &[Value]| {
        let narrow = b.cast(x[0], DType::TF32);
        let square = b.mul(narrow, narrow);
        let [wide, square] = [narrow, square].map(|v| b.cast(v, DType::F32));
        b.mul(wide, square)
    };
    assert_eq!(gradient(&[x], both), [3.0, 12.0, 0.75]);
}

#[test]
fn casts_and_stops() {
    check("cast", &["f 4"], &[], |b, x| {
        let narrow = b.cast(x[0], DType::BF16);
        let square = b.mul(narrow, narrow);
        vec![b.cast(square, DType::F64)]
    });
    let x = Tensor::new(DType::F64, &[2], vec![3.0, 4.0]);
    let stopped = |b: &mut Builder, x: &[Value]| {
        let y = b.op(Op::StopGradient, &[x[0]]);
        b.mul(x[0], y)
    };
    assert_eq!(gradient(std::slice::from_ref(&x), stopped), [3.0, 4.0]);
    let through_ints = |b: &mut Builder, x: &[Value]| {
        let i = b.cast(x[0], DType::I32);
        b.cast(i, DType::F64)
    };
    assert_eq!(gradient(&[x], through_ints), [0.0, 0.0]);
}

#[test]
fn reductions() {
    for f in ReduceFn::ALL {
        for axes in [vec![], vec![0], vec![2], vec![0, 2], vec![0, 1, 2]] {
            for t in [0, 1, 3] {
                if t == 0 && matches!(f, ReduceFn::Max | ReduceFn::Min) {
                    continue;
                }
                check(&format!("{}{axes:?}", f.name()), &["f 2, T, 3"], &[("T", t)], |b, x| {
                    vec![b.op(Op::Reduce(f, axes.clone()), x)]
                });
            }
        }
    }
    check("product of zeros", &["z 8, 3"], &[], |b, x| vec![b.op(Op::Reduce(ReduceFn::Prod, vec![1]), x)]);
    let ties = Tensor::new(DType::F64, &[4], vec![2.0, 5.0, 5.0, 1.0]);
    assert_eq!(gradient(&[ties], |b, x| b.op(Op::Reduce(ReduceFn::Max, vec![0]), x)), [0.0, 0.5, 0.5, 0.0]);
}

#[test]
fn layout() {
    let t = || Dim::sym("T");
    for n in [1, 4] {
        let dims = [("T", n)];
        check("broadcast", &["f 3, T"], &dims, |b, x| vec![b.broadcast(x[0], &[2.into(), 3.into(), 2.into(), t()], &[1, 3])]);
        check("transpose", &["f 2, T, 3"], &dims, |b, x| vec![b.transpose(x[0], &[1, 2, 0])]);
        check("reshape", &["f T, 6"], &dims, |b, x| vec![b.reshape(x[0], &[2.into(), t() * 3.into()])]);
        check("concat", &["f 2, T", "f 2, 3", "f 2, T"], &dims, |b, x| vec![b.op(Op::Concat(1), x)]);
        let pad = Op::Pad { axis: 0, low: t(), high: 2.into(), value: Scalar::new(3.0) };
        check("pad", &["f 2, 2"], &dims, |b, x| vec![b.op(pad.clone(), x)]);
    }
    let slice = |axis, start: Dim, len: Dim, step| Op::Slice { axis, start, len, step };
    for n in [3, 4, 5, 6, 7] {
        let dims = [("T", n)];
        check("slice", &["f 2, T"], &dims, |b, x| vec![b.op(slice(1, 1.into(), t() - 2.into(), 1), x)]);
        let halves = t().floor_div(&2.into());
        check("even", &["f T, 2"], &dims, |b, x| vec![b.op(slice(0, 0.into(), halves.clone(), 2), x)]);
        check("odd", &["f 2, T"], &dims, |b, x| vec![b.op(slice(1, 1.into(), halves.clone(), 2), x)]);
        let thirds = (t() - 1.into()).floor_div(&3.into());
        check("third", &["f T"], &dims, |b, x| vec![b.op(slice(0, 1.into(), thirds.clone(), 3), x)]);
        check("none", &["f T"], &dims, |b, x| vec![b.op(slice(0, t(), 0.into(), 3), x)]);
    }
}

#[test]
fn contractions() {
    for (spec, a, c) in [
        ("ik,kj->ij", "f 2, T", "f T, 3"),
        ("bik,bjk->jbi", "f 2, 3, T", "f 2, 4, T"),
        ("ij,ij->ij", "f 2, T", "f 2, T"),
        ("btd,bd->bt", "f 2, T, 3", "f 2, 3"),
        ("i,j->ij", "f T", "f 2"),
        ("ij,ji->", "f T, 2", "f 2, T"),
        (",i->i", "f", "f T"),
    ] {
        for t in [0, 1, 3] {
            check(spec, &[a, c], &[("T", t)], |b, x| vec![b.contract(spec, x[0], x[1])]);
        }
    }
    check("square", &["f 3, 3"], &[], |b, x| vec![b.contract("ik,kj->ij", x[0], x[0])]);
}

#[test]
fn indices() {
    for t in [0, 1, 4] {
        let dims = [("T", t)];
        check("gather", &["f 2, T, 3", "i-1:5 2, 3"], &dims, |b, x| vec![b.op(Op::Gather { batch: 1 }, x)]);
        let scatter = Op::ScatterAdd { batch: 1, n: 3.into() };
        check("scatter_add", &["f 2, T, 2", "i-1:4 2, T"], &dims, |b, x| vec![b.op(scatter.clone(), &[x[1], x[0]])]);
        for (exclusive, reverse) in [(false, false), (false, true), (true, false), (true, true)] {
            let cumsum = Op::Cumsum { axis: 1, exclusive, reverse };
            check("cumsum", &["f 2, T, 2"], &dims, |b, x| vec![b.op(cumsum.clone(), x)]);
        }
    }
    check("best", &["f 3, 5"], &[], |b, x| {
        let best = b.op(Op::TopK(2), x);
        vec![b.op(Op::Gather { batch: 1 }, &[x[0], best])]
    });
}

#[test]
fn attention() {
    let and = |a, b| Domain::And(Box::new(a), Box::new(b));
    let or = |a, b| Domain::Or(Box::new(a), Box::new(b));
    let (chosen, by_key, by_row) = ("i-1:4 2, T, 2, 3", "i0:3 2, S", "i0:3 2, T");
    for (domain, operands) in [
        (Domain::Full, vec![]),
        (Domain::Causal, vec![]),
        (and(Domain::Causal, Domain::Window(2)), vec![]),
        (and(Domain::Causal, or(Domain::Window(2), Domain::Prefix(1))), vec![]),
        (Domain::EndsBefore { length: 3, stride: 2 }, vec![]),
        (Domain::EndsAt(0), vec![by_key]),
        (Domain::Segments(0, 1), vec![by_row, by_key]),
        (and(Domain::Blocks { idx: 0, size: 2 }, Domain::Causal), vec![chosen]),
        (Domain::Groups { idx: 0, of: 1 }, vec![chosen, by_key]),
        (or(Domain::Tokens(0), Domain::Window(1)), vec![chosen]),
    ] {
        let attend = Op::Attend(Attend { domain: domain.clone(), scale: Scalar::new(0.7) });
        let specs = [vec!["f 2, T, 4, 3", "f 2, S, 2, 3", "f 2, S, 2, 2"], operands].concat();
        for (t, s) in [(1, 1), (3, 5), (5, 3), (2, 0)] {
            let name = format!("{domain} {t} {s}");
            check(&name, &specs, &[("T", t), ("S", s)], |b, x| b.node(attend.clone(), x));
            check(&name, &specs, &[("T", t), ("S", s)], |b, x| vec![b.op(attend.clone(), x)]);
            check(&name, &specs, &[("T", t), ("S", s)], |b, x| vec![b.node(attend.clone(), x)[1]]);
        }
    }
}

#[test]
fn ragged_rows() {
    for t in [0, 1, 4] {
        let dims = [("T", t)];
        for (transposed, w) in [(false, "f 3, 2, 4"), (true, "f 3, 4, 2")] {
            check("grouped_contract", &["f 2*T, 2", w, "i-1:3 T, 2"], &dims, |b, x| {
                let offsets = b.op(Op::Route { groups: 3 }, &[x[2]]);
                vec![b.op(Op::GroupedContract { transposed }, &[x[0], x[1], offsets])]
            });
        }
        check("grouped_outer", &["f 2*T, 2", "f 2*T, 3", "i-1:3 T, 2"], &dims, |b, x| {
            let offsets = b.op(Op::Route { groups: 3 }, &[x[2]]);
            vec![b.op(Op::GroupedOuter, &[x[0], x[1], offsets])]
        });
        // A group of one: what goes there and back is where it was.
        check("exchange", &["f 2*T, 2", "i-1:3 T, 2"], &dims, |b, x| {
            let offsets = b.op(Op::Route { groups: 3 }, &[x[1]]);
            let exchange = |what| Op::Exchange { what, members: 1 };
            let all = b.node(exchange(Exchange::Offsets), &[offsets])[0];
            let there = b.op(exchange(Exchange::There), &[x[0], all]);
            let square = b.map(MapFn::Mul, &[there, there]);
            vec![there, b.op(exchange(Exchange::Back), &[square, all])]
        });
    }
}

#[test]
fn second_derivatives_stop_at_attention() {
    let mut f = Func::new("f");
    let ty = TensorType::new(DType::F64, [1, 2, 1, 2].map(Dim::from).to_vec());
    let q = f.arg("q", Role::Input, ty);
    let mut b = Builder::new(&mut f);
    let attend = Attend { domain: Domain::Causal, scale: Scalar::new(1.0) };
    let o = b.op(Op::Attend(attend), &[q, q, q]);
    let total = b.sum(o, &[0, 1, 2, 3]);
    f.output("total", Role::Scalar, total);
    let seed = |objective| Seed { objective, remat: Remat::Cheap };
    let mut g = grad(&f, &[0], seed("total")).expect("attention has a derivative");
    let dq = g.outputs[1].value;
    let size = Builder::new(&mut g).sum(dq, &[0, 1, 2, 3]);
    g.output("size", Role::Scalar, size);
    assert_eq!(grad(&g, &[0], seed("size")), Err(AutodiffError::NotDifferentiable { op: "attend_grad" }));
}

#[test]
fn blocks_of_codes() {
    // The slope of rounding is 1: of the interpreter, which does not round here.
    for (n, size) in [(6, 3), (7, 3), (2, 4), (0, 4)] {
        check("quantize", &["f 2, N"], &[("N", n)], |b, x| {
            b.node(Op::Quantize(Block::of_row(size)), x).into_iter().map(|v| b.cast(v, DType::F64)).collect()
        });
        check("there and back", &["f 2, N"], &[("N", n)], |b, x| {
            let q = b.node(Op::Quantize(Block::of_row(size)), x);
            vec![b.op(Op::Dequantize(Block::of_row(size)), &q)]
        });
    }
    // And that of what is stopped before is that of what is beside.
    let x = Tensor::new(DType::F64, &[4], vec![1.0, 2.0, 3.0, 4.0]);
    let straight = |b: &mut Builder, x: &[Value]| {
        let stopped = b.op(Op::StopGradient, x);
        let q = b.node(Op::Quantize(Block::of_row(2)), &[stopped]);
        let y = b.op(Op::Dequantize(Block::of_row(2)), &q);
        let y = b.cast(y, DType::F64);
        let change = b.map(MapFn::Sub, &[y, stopped]);
        let y = b.add(x[0], change);
        let square = b.mul(y, y);
        b.sum(square, &[0])
    };
    let before = 2.0 * 1.0;
    assert!((gradient(&[x], straight)[0] - before).abs() < 1e-12);
}
