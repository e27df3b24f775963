use super::*;
use crate::{
    interp::{Options, Tensor, eval},
    op::Scalar,
    verify::verify_func,
};
use base::{DType, DimEnv};

const K: i64 = 3;

/// Logits of `[B, T]` rows and `n` tokens, their maximum, the sum of exponentials, that of exponentials times logits, and what follows from those
/// in the region.
fn region(dtype: DType, n: i64, transposed: bool) -> Func {
    let mut f = Func::new("f");
    let ty =
        |dtype, shape: &[&str]| TensorType::new(dtype, shape.iter().map(|d| d.parse().expect("a dim")).collect::<Vec<Dim>>());
    let (n, k) = (n.to_string(), K.to_string());
    let x = f.arg("x", Role::Input, ty(dtype, &["B", "T", &k]));
    let w = f.arg("w", Role::Param, ty(dtype, &if transposed { [n.as_str(), &k] } else { [k.as_str(), &n] }));
    let bias = f.arg("bias", Role::Param, ty(DType::F32, &[&n]));
    let mut b = Builder::new(&mut f);
    let w = if transposed { b.transpose(w, &[1, 0]) } else { w };
    let z = b.contract("btk,kn->btn", x, w);
    let z = b.cast(z, DType::F32);
    let shape = b.func.ty(z).shape.clone();
    let bias = b.broadcast(bias, &shape, &[2]);
    let z = b.add(z, bias);
    let m = b.op(Op::Reduce(ReduceFn::Max, vec![2]), &[z]);
    let wide = b.broadcast(m, &shape, &[0, 1]);
    let c = b.map(MapFn::Sub, &[z, wide]);
    let e = b.map(MapFn::Exp, &[c]);
    let s = b.sum(e, &[2]);
    let ez = b.mul(z, e);
    let u = b.sum(ez, &[2]);
    let least = b.op(Op::Reduce(ReduceFn::Min, vec![2]), &[z]);
    let log = b.map(MapFn::Log, &[s]);
    let lse = b.add(m, log);
    let nodes: BTreeSet<NodeId> = b.func.nodes.ids().skip(3).collect();
    let (fused, operands) = Fused::outline(b.func, Form::Stream, &nodes, &[s, m, u, least, lse]);
    let results = b.node(Op::Fused(Box::new(fused)), &operands);
    results.into_iter().enumerate().for_each(|(i, v)| f.output(&format!("y{i}"), Role::Result, v));
    crate::passes::prune_dead(&mut f);
    f
}

fn dims() -> DimEnv {
    [("B".into(), 2), ("T".into(), 3)].into_iter().collect()
}

fn same(what: &str, want: &[Tensor], got: &[Tensor]) {
    for (i, (want, got)) in want.iter().zip(got).enumerate() {
        for (x, y) in want.data.iter().zip(&got.data) {
            // Sums in another order, in f64; the terms are not negative, or few.
            assert!(
                (x.is_nan() && y.is_nan()) || x == y || (x - y).abs() <= 1e-12 * (1.0 + x.abs()),
                "{what}, result {i}: {y} is not {x}"
            );
        }
    }
}

#[test]
fn any_chunk_gives_what_the_region_means() {
    let edges: &[(&str, fn(usize) -> f64)] = &[
        ("equal", |_| 0.0),
        ("one is huge", |i| if i == 3 { 1e4 } else { 0.0 }),
        ("growing", |i| 100.0 * i as f64),
        ("falling", |i| -100.0 * i as f64),
        ("forbidden at first", |i| if i < 4 { f64::NEG_INFINITY } else { 1.0 }),
        ("forbidden later", |i| if i > 2 { f64::NEG_INFINITY } else { 1.0 }),
        ("all forbidden", |_| f64::NEG_INFINITY),
        ("no number", |i| if i == 5 { f64::NAN } else { 0.0 }),
        ("endless", |i| if i == 5 { f64::INFINITY } else { 0.0 }),
    ];
    for (dtype, n, transposed) in [(DType::F32, 7, true), (DType::BF16, 12, false), (DType::F64, 11, true)] {
        let f = region(dtype, n, transposed);
        let mut args = crate::random::args(&f, &dims(), n as u64);
        for (what, bias) in edges {
            args[2].data = (0..n as usize).map(bias).collect();
            let want = eval(&f, &args, &dims(), Options::EXACT).expect("it evaluates");
            for chunk in 1..=n {
                let mut streamed = f.clone();
                // An axis of one chunk is left alone.
                assert_eq!(stream_fused_by(&mut streamed, chunk).changes, usize::from(chunk < n), "{what} by {chunk}");
                assert_eq!(verify_func(&streamed), [], "{what} by {chunk}");
                let fused = streamed.nodes.values().any(|n| matches!(n.op, Op::Fused(_)));
                assert_eq!(fused, chunk == n);
                let got = eval(&streamed, &args, &dims(), Options::EXACT).expect("it evaluates");
                same(&format!("{dtype} {what} of {n} by {chunk}"), &want, &got);
            }
        }
    }
}

#[test]
fn nothing_that_has_the_axis_is_whole() {
    let mut f = region(DType::F32, 11, true);
    stream_fused_by(&mut f, 4);
    let along = |t: &TensorType| t.rank() == 3 && t.shape[2].is(11);
    assert!(!f.nodes.values().any(|n| n.types.iter().any(along)));
    let Some(Op::Repeat(r)) = f.nodes.values().map(|n| &n.op).find(|op| matches!(op, Op::Repeat(_))) else { panic!("no loop") };
    assert_eq!((r.count, r.carried, r.constant, r.stacked()), (2, 4, 1, 2));
}

/// A region of `[B, B, n]` rows, made by a function of the logits.
fn other(n: i64, make: fn(&mut Builder, Value) -> Value) -> Func {
    let mut f = Func::new("f");
    let ty = TensorType::new(DType::F32, [Dim::sym("B"), Dim::sym("B"), Dim::from(n)]);
    let x = f.arg("x", Role::Input, ty);
    let mut b = Builder::new(&mut f);
    let last = make(&mut b, x);
    let nodes: BTreeSet<NodeId> = b.func.nodes.ids().skip(1).collect();
    let (fused, operands) = Fused::outline(b.func, Form::Stream, &nodes, &[last]);
    let y = b.op(Op::Fused(Box::new(fused)), &operands);
    f.output("y", Role::Result, y);
    f
}

#[test]
fn what_takes_two_passes_is_left_alone() {
    let cases: &[(&str, fn(&mut Builder, Value) -> Value, bool)] = &[
        (
            "the maximum of other rows",
            |b, z| {
                let m = b.op(Op::Reduce(ReduceFn::Max, vec![2]), &[z]);
                let m = b.transpose(m, &[1, 0]);
                let shape = b.func.ty(z).shape.clone();
                let m = b.broadcast(m, &shape, &[0, 1]);
                let c = b.map(MapFn::Sub, &[z, m]);
                let e = b.map(MapFn::Exp, &[c]);
                b.sum(e, &[2])
            },
            false,
        ),
        (
            "a sum less the mean",
            |b, z| {
                let m = b.sum(z, &[2]);
                let shape = b.func.ty(z).shape.clone();
                let m = b.broadcast(m, &shape, &[0, 1]);
                let c = b.map(MapFn::Sub, &[z, m]);
                let e = b.map(MapFn::Exp, &[c]);
                b.sum(e, &[2])
            },
            false,
        ),
        (
            "a square in place of an exponential",
            |b, z| {
                let m = b.op(Op::Reduce(ReduceFn::Max, vec![2]), &[z]);
                let shape = b.func.ty(z).shape.clone();
                let m = b.broadcast(m, &shape, &[0, 1]);
                let c = b.map(MapFn::Sub, &[z, m]);
                let e = b.mul(c, c);
                b.sum(e, &[2])
            },
            false,
        ),
        (
            "the largest exponential",
            |b, z| {
                let m = b.op(Op::Reduce(ReduceFn::Max, vec![2]), &[z]);
                let shape = b.func.ty(z).shape.clone();
                let m = b.broadcast(m, &shape, &[0, 1]);
                let c = b.map(MapFn::Sub, &[z, m]);
                let e = b.map(MapFn::Exp, &[c]);
                b.op(Op::Reduce(ReduceFn::Max, vec![2]), &[e])
            },
            false,
        ),
        (
            "an axis that is padded",
            |b, z| {
                let (low, high) = (Dim::from(1), Dim::from(0));
                let z = b.op(Op::Pad { axis: 2, low, high, value: Scalar::new(0.0) }, &[z]);
                b.sum(z, &[2])
            },
            false,
        ),
        ("both axes", |b, z| b.sum(z, &[1, 2]), false),
        ("a plain sum", |b, z| b.sum(z, &[2]), true),
    ];
    for (what, make, streams) in cases {
        let mut f = other(9, *make);
        assert_eq!(stream_fused_by(&mut f, 4).changes, usize::from(*streams), "{what}");
        let select = |f: &mut Func| {
            for n in f.nodes.values_mut() {
                if let Op::Fused(r) = &mut n.op {
                    r.form = Form::Select;
                }
            }
        };
        let mut f = other(9, *make);
        select(&mut f);
        assert_eq!(stream_fused_by(&mut f, 4).changes, 0, "{what}, of another form");
    }
}
