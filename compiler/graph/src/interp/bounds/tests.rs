//! Bounds hold: of evaluations with rounding, in other orders, and of known cases; and they are not so wide as to say nothing.

use super::*;
use crate::op::quantize::Block;
use crate::{
    interp::eval,
    ir::{Role, Value},
    random::{self, program},
};

/// Bounds of one op.
fn of(op: Op, args: &[Tensor]) -> Bounded {
    let mut f = Func::new("f");
    let known = |t: &Tensor| TensorType::new(t.dtype, t.shape.iter().map(|n| base::Dim::from(*n)).collect::<Vec<_>>());
    let values: Vec<Value> = args.iter().enumerate().map(|(i, t)| f.arg(&i.to_string(), Role::Input, known(t))).collect();
    let node = f.add(op, &values, None).expect("it fits");
    f.output("y", Role::Result, Value { node, index: 0 });
    bounds(&f, args, &DimEnv::new(), Roundoff::Dtype).expect("it evaluates").remove(0)
}

fn f32s(data: &[f64]) -> Tensor {
    Tensor::new(DType::F32, &[data.len() as i64], data.to_vec())
}

#[test]
fn what_is_exact_has_no_error() {
    let sum = Op::Reduce(ReduceFn::Sum, vec![0]);
    assert_eq!(of(sum.clone(), &[f32s(&[1.0, 2.0, 40.0])]).error, [0.0]);
    assert!(of(sum, &[f32s(&[0.1, 2.0])]).error[0] > 0.0);
    assert_eq!(of(Op::Map(MapFn::Mul), &[f32s(&[1.5, 0.1]), f32s(&[2.0, 0.1])]).error[0], 0.0);
    assert!(of(Op::Map(MapFn::Exp), &[f32s(&[0.0])]).error[0] > 0.0);
}

#[test]
fn what_leaves_the_range_is_unknown() {
    let big = f32s(&[3e38, 100.0]);
    let twice = of(Op::Map(MapFn::Add), &[big.clone(), big]);
    assert_eq!((twice.error[0], twice.error[1]), (f64::INFINITY, 0.0));
    let ints = Tensor::new(DType::I32, &[1], vec![2e9]);
    assert_eq!(of(Op::Map(MapFn::Mul), &[ints.clone(), ints]).error, [f64::INFINITY]);
}

#[test]
fn a_decision_within_the_error_is_unknown() {
    let (tenth, error) = (0.1, 1e-8);
    assert_eq!(spread(MapFn::Lt, &[tenth, tenth + 1e-9], &[error, 0.0], 1.0), f64::INFINITY);
    assert_eq!(spread(MapFn::Lt, &[tenth, 0.2], &[error, 0.0], 1.0), 0.0);
    assert_eq!(spread(MapFn::Floor, &[3.0], &[error], 3.0), f64::INFINITY);
    assert_eq!(spread(MapFn::Select, &[1.0, 5.0, 7.0], &[0.0, 0.5, 9.0], 5.0), 0.5);
    assert_eq!(spread(MapFn::Select, &[1.0, 5.0, 7.0], &[1.0, 0.5, 0.25], 5.0), 2.5);
}

#[test]
fn a_difference_is_found() {
    let b = Bounded { value: f32s(&[1.0, 2.0, f64::NAN]), error: vec![0.5, 0.0, 0.0] };
    assert_eq!(b.disagreement(&[1.4, 2.0, f64::NAN]), None);
    assert_eq!(b.disagreement(&[1.4, 2.1, f64::NAN]), Some((1, 2.1, 2.0, 0.0)));
    assert_eq!(b.disagreement(&[1.6, 2.0, f64::NAN]).map(|d| d.0), Some(0));
    assert!(b.disagreement(&[1.0]).is_some());
}

#[test]
fn rounded_evaluation_is_within() {
    let (mut known, mut all, mut wide, mut floats) = (0, 0, 0, 0);
    for seed in 0..400 {
        let p = program(seed, random::Options::default());
        let args = random::args(p.func(), &p.dims, seed);
        let bounds = bounds(p.func(), &args, &p.dims, Roundoff::Dtype).expect("it evaluates");
        let rounded = eval(p.func(), &args, &p.dims, Options::ROUNDED).expect("it evaluates");
        for ((b, r), o) in bounds.iter().zip(rounded).zip(&p.func().outputs) {
            let text = || crate::text::print(&p.module);
            assert_eq!(b.disagreement(&r.data), None, "seed {seed} {}\n{}", o.name, text());
            known += b.num_known();
            all += b.error.len();
            if b.value.dtype == DType::F32 {
                floats += b.num_known();
                wide += b.error.iter().zip(&b.value.data).filter(|(e, y)| e.is_finite() && **e > 1e-2 * (1.0 + y.abs())).count();
            }
        }
    }
    assert!(known * 100 > all * 80, "{known} of {all} are known");
    assert!(wide * 100 < floats * 15, "{wide} of {floats} bounds are wide");
}

#[test]
fn what_codes_are_worth_is_known_to_half_a_code() {
    let x = f32s(&[3.0, -0.7, 0.01, 1e-6, 0.0, 0.0, 448.0, 1.0, 5.0]);
    let mut f = Func::new("f");
    let arg = f.arg("x", Role::Input, TensorType::new(DType::F32, vec![base::Dim::from(9)]));
    let mut b = crate::build::Builder::new(&mut f);
    let q = b.node(Op::Quantize(Block::of_row(4)), &[arg]);
    let y = b.op(Op::Dequantize(Block::of_row(4)), &q);
    q.iter().chain([&y]).for_each(|v| f.output(&v.node.to_string(), Role::Result, *v));
    let of = |args: &[Tensor]| bounds(&f, args, &DimEnv::new(), Roundoff::Dtype).expect("it evaluates");
    let [codes, scales, worth] = &of(std::slice::from_ref(&x))[..] else { panic!("three results") };
    assert!([codes, scales, worth].iter().all(|b| b.num_known() == b.error.len()), "{codes:?} {scales:?} {worth:?}");
    for (i, e) in worth.error.iter().enumerate() {
        let (x, scale) = (x.data[i].abs(), scales.value.data[i / 4]);
        assert!(*e <= 1.1 * (x / 16.0 + scale * 2f64.powi(-9)), "{x} is known to {e:e}");
    }
    // And rounding each node stays within.
    let got = eval(&f, std::slice::from_ref(&x), &DimEnv::new(), Options::ROUNDED).expect("it evaluates");
    for (b, got) in [codes, scales, worth].iter().zip(&got) {
        assert_eq!(b.disagreement(&got.data), None);
    }
    // Beyond the greatest code there is no other.
    let cast = of_cast(&[447.0, 448.0, 460.0, 1e4, f64::INFINITY]);
    assert_eq!(cast.error[1], 0.0);
    assert!(cast.error[0] < 30.0 && cast.error[2] < 30.0 && cast.error[3] == 1e4 - 448.0 && cast.error[4] == f64::INFINITY);
}

fn of_cast(x: &[f64]) -> Bounded {
    of(Op::Cast(DType::E4M3), &[f32s(x)])
}
