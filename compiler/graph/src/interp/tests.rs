//! Known values of each op, run-time dims, and what is an error.

use super::*;
use crate::{
    build::Builder,
    ir::Role,
    op::{Attend, Domain, MapFn, ReduceFn, Scalar},
};
use base::Dim;

const NAN: f64 = f64::NAN;
const INF: f64 = f64::INFINITY;

fn f64s(shape: &[i64], data: &[f64]) -> Tensor {
    Tensor::new(DType::F64, shape, data.to_vec())
}
fn i32s(shape: &[i64], data: &[i64]) -> Tensor {
    Tensor::new(DType::I32, shape, data.iter().map(|i| *i as f64).collect())
}
fn known(t: &Tensor) -> TensorType {
    TensorType::new(t.dtype, t.shape.iter().map(|n| Dim::from(*n)).collect::<Vec<_>>())
}
fn contract(spec: &str) -> Op {
    Op::Contract(spec.parse().expect("a contraction"))
}

/// The results of `op` alone.
fn apply(op: Op, args: &[Tensor], options: Options) -> Result<Vec<Tensor>, InterpError> {
    let mut f = Func::new("f");
    let operands: Vec<Value> = args.iter().enumerate().map(|(i, t)| f.arg(&i.to_string(), Role::Input, known(t))).collect();
    for (i, v) in Builder::new(&mut f).node(op, &operands).into_iter().enumerate() {
        f.output(&i.to_string(), Role::Result, v);
    }
    eval(&f, args, &DimEnv::new(), options)
}

/// Equal, with NaN equal to itself, up to the last few bits.
#[track_caller]
fn check(op: Op, args: &[Tensor], want: &[&[f64]]) {
    let got = apply(op.clone(), args, Options::EXACT).expect("it evaluates");
    assert_eq!(got.len(), want.len(), "{op:?}");
    for (got, want) in got.iter().zip(want) {
        let near = |a: f64, b: f64| a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= 1e-12 * b.abs().max(1.0);
        let same = got.data.len() == want.len() && got.data.iter().zip(*want).all(|(a, b)| near(*a, *b));
        assert!(same, "{op:?}\n got {got:?}\nwant {want:?}");
    }
}

#[test]
fn elementwise_and_reductions() {
    check(Op::Map(MapFn::Max), &[f64s(&[3], &[1.0, NAN, -0.5]), f64s(&[3], &[2.0, 0.0, -INF])], &[&[2.0, NAN, -0.5]]);
    check(Op::Map(MapFn::FloorDiv), &[i32s(&[3], &[-7, 7, 7]), i32s(&[3], &[2, -2, 0])], &[&[-4.0, -4.0, 0.0]]);
    check(Op::Cast(DType::I32), &[f64s(&[4], &[-1.9, 1.9, 3e9, NAN])], &[&[-1.0, 1.0, 2147483647.0, 0.0]]);
    check(Op::Cast(DType::Bool), &[f64s(&[2], &[-0.1, 0.0])], &[&[1.0, 0.0]]);
    let x = f64s(&[2, 3], &[1.0, 5.0, 2.0, -1.0, NAN, 0.0]);
    let reduce = |f, axes: &[usize]| Op::Reduce(f, axes.to_vec());
    check(reduce(ReduceFn::Sum, &[1]), std::slice::from_ref(&x), &[&[8.0, NAN]]);
    check(reduce(ReduceFn::Max, &[0]), std::slice::from_ref(&x), &[&[1.0, NAN, 2.0]]);
    check(reduce(ReduceFn::Min, &[0, 1]), &[f64s(&[2, 2], &[4.0, 3.0, 9.0, 7.0])], &[&[3.0]]);
    check(reduce(ReduceFn::Max, &[0]), &[f64s(&[0], &[])], &[&[-INF]]);
    check(reduce(ReduceFn::Min, &[0]), &[i32s(&[0], &[])], &[&[2147483647.0]]);
    check(reduce(ReduceFn::Prod, &[1]), &[f64s(&[2, 0], &[])], &[&[1.0, 1.0]]);
    let row = f64s(&[1, 3], &[1.0, 2.0, 4.0]);
    let cumsum = |exclusive, reverse| Op::Cumsum { axis: 1, exclusive, reverse };
    check(cumsum(false, false), std::slice::from_ref(&row), &[&[1.0, 3.0, 7.0]]);
    check(cumsum(true, true), &[row], &[&[6.0, 4.0, 0.0]]);
}

#[test]
fn layout() {
    let x = f64s(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let one = std::slice::from_ref(&x);
    check(Op::Transpose(vec![1, 0]), one, &[&[1.0, 4.0, 2.0, 5.0, 3.0, 6.0]]);
    let shape = [2, 2, 3].map(Dim::from).to_vec();
    check(Op::Broadcast { shape, axes: vec![0, 2] }, one, &[&[1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 4.0, 5.0, 6.0]]);
    check(Op::Slice { axis: 1, start: 0.into(), len: 2.into(), step: 2 }, one, &[&[1.0, 3.0, 4.0, 6.0]]);
    check(Op::Slice { axis: 0, start: 2.into(), len: 0.into(), step: 1 }, one, &[&[]]);
    check(
        Op::Concat(0),
        &[x.clone(), f64s(&[0, 3], &[]), f64s(&[1, 3], &[7.0; 3])],
        &[&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 7.0, 7.0]],
    );
    check(
        Op::Pad { axis: 0, low: 1.into(), high: 0.into(), value: Scalar::new(9.0) },
        one,
        &[&[9.0, 9.0, 9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]],
    );
}

#[test]
fn contractions() {
    let a = f64s(&[2, 2], &[1.0, 2.0, 3.0, 4.0]);
    let b = f64s(&[2, 2], &[5.0, 6.0, 7.0, 8.0]);
    let ab = [a.clone(), b.clone()];
    check(contract("ik,kj->ij"), &ab, &[&[19.0, 22.0, 43.0, 50.0]]);
    check(contract("ik,kj->ji"), &ab, &[&[19.0, 43.0, 22.0, 50.0]]);
    check(contract("ij,ij->ij"), &ab, &[&[5.0, 12.0, 21.0, 32.0]]);
    check(contract("bk,bk->b"), &ab, &[&[17.0, 53.0]]);
    check(contract("ij,ji->"), &ab, &[&[69.0]]);
    check(contract("i,j->ij"), &[f64s(&[1], &[2.0]), f64s(&[2], &[3.0, 4.0])], &[&[6.0, 8.0]]);
    check(contract("ik,kj->ij"), &[f64s(&[1, 0], &[]), f64s(&[0, 2], &[])], &[&[0.0, 0.0]]);
    let offsets = i32s(&[4], &[0, 1, 1, 2]);
    let x = f64s(&[3, 2], &[1.0, 1.0, 1.0, 2.0, 9.0, 9.0]);
    let w = f64s(&[3, 2, 1], &[1.0, 2.0, 0.0, 0.0, 3.0, 4.0]);
    check(Op::GroupedContract { transposed: false }, &[x.clone(), w, offsets.clone()], &[&[3.0, 11.0, 0.0]]);
    let wt = f64s(&[3, 1, 2], &[1.0, 2.0, 0.0, 0.0, 3.0, 4.0]);
    check(Op::GroupedContract { transposed: true }, &[x.clone(), wt, offsets.clone()], &[&[3.0, 11.0, 0.0]]);
    check(Op::GroupedOuter, &[x, f64s(&[3, 1], &[2.0, 3.0, 5.0]), offsets], &[&[2.0, 2.0, 0.0, 0.0, 3.0, 6.0]]);
}

/// Two members with two experts each; one has rows for all of them and one that is skipped, the other for some.
#[test]
fn rows_go_to_the_member_that_has_their_expert() {
    use peers::Meeting;
    let meeting = Meeting::new(2);
    let run = |rank: usize, offsets: &[i64], x: &[f64]| {
        let mut f = Func::new("f");
        let i32s = TensorType::new(DType::I32, vec![5.into()]);
        let o = f.arg("o", Role::Input, i32s);
        let x_type = TensorType::new(DType::F64, vec![4.into(), 1.into()]);
        let v = f.arg("x", Role::Input, x_type);
        let mut b = Builder::new(&mut f);
        let exchange = |what| Op::Exchange { what, members: 2 };
        let told = b.node(exchange(Exchange::Offsets), &[o]);
        let there = b.op(exchange(Exchange::There), &[v, told[0]]);
        let back = b.op(exchange(Exchange::Back), &[there, told[0]]);
        for (name, v) in [("all", told[0]), ("own", told[1]), ("there", there), ("back", back)] {
            f.output(name, Role::Result, v);
        }
        let args = [self::i32s(&[5], offsets), f64s(&[4, 1], x)];
        let member = meeting.member(rank);
        let out = eval_among(&f, &args, &DimEnv::new(), Options::EXACT, &member).expect("it evaluates");
        out.into_iter().map(|t| t.data).collect::<Vec<_>>()
    };
    let (a, b) = std::thread::scope(|s| {
        let other = s.spawn(|| run(1, &[0, 0, 2, 2, 4], &[5.0, 6.0, 7.0, 8.0]));
        (run(0, &[0, 1, 2, 3, 3], &[1.0, 2.0, 3.0, 9.0]), other.join().expect("it does not panic"))
    });
    assert_eq!(a[0], [0.0, 1.0, 2.0, 3.0, 3.0, 0.0, 0.0, 2.0, 2.0, 4.0]);
    assert_eq!((&a[0], &a[1][..], &b[1][..]), (&b[0], &[0.0, 1.0, 4.0][..], &[0.0, 1.0, 3.0][..]));
    assert_eq!(a[2], [1.0, 2.0, 5.0, 6.0, 0.0, 0.0, 0.0, 0.0]);
    assert_eq!(b[2], [3.0, 7.0, 8.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    assert_eq!((&a[3][..], &b[3][..]), (&[1.0, 2.0, 3.0, 0.0][..], &[5.0, 6.0, 7.0, 8.0][..]));
}

#[test]
fn indices() {
    let x = f64s(&[2, 2, 1], &[1.0, 2.0, 3.0, 4.0]);
    check(Op::Gather { batch: 1 }, &[x, i32s(&[2, 3], &[1, -1, 0, 2, 1, 1])], &[&[2.0, 0.0, 1.0, 0.0, 4.0, 4.0]]);
    let scatter = Op::ScatterAdd { batch: 0, n: 3.into() };
    check(scatter, &[i32s(&[4], &[2, 0, 2, 3]), f64s(&[4], &[1.0, 2.0, 3.0, 4.0])], &[&[2.0, 0.0, 4.0]]);
    check(
        Op::TopK(4),
        &[f64s(&[2, 4], &[1.0, NAN, 1.0, 3.0, -INF, 0.0, -INF, -1.0])],
        &[&[1.0, 3.0, 0.0, 2.0, 1.0, 3.0, -1.0, -1.0]],
    );
    check(
        Op::Route { groups: 3 },
        &[i32s(&[2, 2], &[2, 0, -1, 2])],
        &[&[0.0, 1.0, 1.0, 3.0], &[1.0, 0.0, 3.0, -1.0], &[1.0, 0.0, -1.0, 2.0]],
    );
}

/// For each of `t` queries over `s` keys, the keys it sees as bits, found by giving key j the value 2^j and equal scores.
fn seen(domain: Domain, t: i64, s: i64, operands: &[Tensor]) -> Vec<u64> {
    let mut args = vec![f64s(&[1, t, 1, 1], &vec![0.0; t as usize]), f64s(&[1, s, 1, 1], &vec![1.0; s as usize])];
    args.push(f64s(&[1, s, 1, 1], &(0..s).map(|j| 2f64.powi(j as i32)).collect::<Vec<_>>()));
    args.extend_from_slice(operands);
    let results = apply(Op::Attend(Attend { domain, scale: Scalar::new(1.0) }), &args, Options::EXACT).expect("it evaluates");
    let count = |i: usize| if results[0].data[i] == 0.0 { 0.0 } else { results[1].data[i].exp() };
    (0..t as usize).map(|i| (results[0].data[i] * count(i)).round() as u64).collect()
}

#[test]
fn domains() {
    let and = |a, b| Domain::And(Box::new(a), Box::new(b));
    assert_eq!(seen(Domain::Full, 1, 3, &[]), [0b111]);
    assert_eq!(seen(Domain::Causal, 3, 3, &[]), [0b1, 0b11, 0b111]);
    // Two queries at positions 2 and 3 of four keys.
    assert_eq!(seen(Domain::Causal, 2, 4, &[]), [0b111, 0b1111]);
    assert_eq!(seen(and(Domain::Causal, Domain::Window(2)), 2, 4, &[]), [0b110, 0b1100]);
    assert_eq!(seen(Domain::Prefix(2), 2, 4, &[]), [0b11, 0b11]);
    assert_eq!(seen(Domain::EndsBefore { length: 2, stride: 1 }, 4, 3, &[]), [0, 0b1, 0b11, 0b111]);
    assert_eq!(seen(Domain::EndsAt(0), 3, 2, &[i32s(&[1, 2], &[2, 1])]), [0, 0b10, 0b11]);
    assert_eq!(seen(Domain::Segments(0, 1), 2, 3, &[i32s(&[1, 2], &[7, 8]), i32s(&[1, 3], &[7, 8, 7])]), [0b101, 0b10]);
    let idx = i32s(&[1, 2, 1, 2], &[1, -1, -1, -1]);
    assert_eq!(seen(Domain::Blocks { idx: 0, size: 2 }, 2, 5, std::slice::from_ref(&idx)), [0b1100, 0]);
    assert_eq!(seen(Domain::Tokens(0), 2, 2, std::slice::from_ref(&idx)), [0b10, 0]);
    assert_eq!(seen(Domain::Groups { idx: 0, of: 1 }, 2, 3, &[idx.clone(), i32s(&[1, 3], &[1, 0, 1])]), [0b101, 0]);
    let or = Domain::Or(Box::new(Domain::Tokens(0)), Box::new(Domain::Causal));
    assert_eq!(seen(or, 2, 2, &[idx]), [0b11, 0b11]);
}

#[test]
fn attention_is_softmax() {
    let q = f64s(&[1, 1, 2, 1], &[2.0, -1.0]);
    let (k, v) = (f64s(&[1, 2, 1, 1], &[0.5, 1.0]), f64s(&[1, 2, 1, 1], &[3.0, 5.0]));
    let weight = |a: f64, b: f64| 1.0 / (1.0 + (b - a).exp());
    let (w0, w1) = (weight(0.5, 1.0), weight(-0.25, -0.5));
    let attend = Attend { domain: Domain::Full, scale: Scalar::new(0.5) };
    let o = [3.0 * w0 + 5.0 * (1.0 - w0), 3.0 * w1 + 5.0 * (1.0 - w1)];
    let lse = [(0.5f64.exp() + 1f64.exp()).ln(), ((-0.25f64).exp() + (-0.5f64).exp()).ln()];
    check(Op::Attend(attend), &[q, k, v], &[&o, &lse]);
}

#[test]
fn loops_run_both_ways() {
    let scalar = TensorType::scalar(DType::F64);
    let mut body = Func::new("body");
    let [c, k, s] = ["c", "k", "s"].map(|name| body.arg(name, Role::Inner, scalar.clone()));
    let mut b = Builder::new(&mut body);
    let scaled = b.mul(c, k);
    let next = b.add(scaled, s);
    body.output("c", Role::Inner, next);
    body.output("was", Role::Inner, c);
    let args = [f64s(&[], &[1.0]), f64s(&[], &[10.0]), f64s(&[3], &[2.0, 3.0, 4.0])];
    let repeat = |reverse| Op::Repeat(Box::new(Repeat { count: 3, carried: 1, constant: 1, reverse, body: body.clone() }));
    check(repeat(false), &args, &[&[1234.0], &[1.0, 12.0, 123.0]]);
    check(repeat(true), &args, &[&[1432.0], &[143.0, 14.0, 1.0]]);
    let none = Op::Repeat(Box::new(Repeat { count: 0, carried: 1, constant: 1, reverse: false, body }));
    check(none, &[args[0].clone(), args[1].clone(), f64s(&[0], &[])], &[&[1.0], &[]]);
}

#[test]
fn rounding_is_per_node() {
    let x = Tensor::new(DType::BF16, &[2], vec![1.0, 1.0 / 256.0]);
    let sum = Op::Reduce(ReduceFn::Sum, vec![0]);
    assert_eq!(apply(sum.clone(), std::slice::from_ref(&x), Options::EXACT).expect("fits")[0].data, [1.00390625]);
    assert_eq!(apply(sum, &[x], Options::ROUNDED).expect("fits")[0].data, [1.0]);
}

#[test]
fn dims_are_bound_and_checked() {
    let mut f = Func::new("f");
    let (b, t) = (Dim::sym("B"), Dim::sym("T"));
    let x = f.arg("x", Role::Input, TensorType::new(DType::F64, vec![b.clone(), t.clone()]));
    f.arg("y", Role::Input, TensorType::new(DType::F64, vec![b * t.clone(), t.clone()]));
    let part = Builder::new(&mut f).op(Op::Slice { axis: 1, start: t.clone() - 4.into(), len: 2.into(), step: 3 }, &[x]);
    f.output("part", Role::Result, part);
    let dims = bind_dims(&f, &[&[2, 5], &[10, 5]]).expect("fits");
    assert_eq!(dims, DimEnv::from([("B".into(), 2), ("T".into(), 5)]));
    let error = |shapes: [&[i64]; 2]| bind_dims(&f, &shapes).expect_err("does not fit").to_string();
    assert_eq!(error([&[2, 5], &[10, 6]]), "T is 5 in argument 'x' and 6 in argument 'y'");
    assert_eq!(error([&[2, 5], &[11, 5]]), "argument 'y' is [11, 5], not f64[B*T, T]");
    assert_eq!(error([&[2], &[11, 5]]), "argument 'x' is [2], not f64[B, T]");
    let run = |t: i64, dims: &DimEnv| {
        let args = [Tensor::full(DType::F64, &[2, t], 1.0), Tensor::full(DType::F64, &[2 * t, t], 1.0)];
        eval(&f, &args, dims, Options::EXACT).map_err(|e| e.to_string())
    };
    assert!(run(5, &dims).is_ok());
    assert_eq!(run(4, &dims), Err("argument 'x' is f64[2, 4], not f64[B, T]".into()));
    let small = DimEnv::from([("B".into(), 2), ("T".into(), 3)]);
    assert_eq!(run(3, &small), Err("f %2: slice of 2 elements from -1 by 3 of an axis of 3".into()));
    let mut g = Func::new("g");
    g.arg("x", Role::Input, TensorType::new(DType::F64, vec![Dim::from(2) * t]));
    let unbound = bind_dims(&g, &[&[4]]).expect_err("T is bound nowhere");
    assert_eq!(unbound.to_string(), "the run-time dims of '2*T' have no value");
}
