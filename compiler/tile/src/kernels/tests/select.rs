//! The best of scores that are computed where they are compared.

use super::{Random, assert_near, known, oracle, results};
use crate::{
    fused::{Fused, Select, fuse_scores_many, fuse_select, fuse_select_many},
    kernels::{gpu_topk_long::gpu_topk_long, host_topk::TopK},
    view::StridedView,
};
use base::{DType, Dim, DimEnv, TensorType};
use graph::{
    Func, Op, Role, Value,
    build::Builder,
    interp::Tensor,
    op::{Form, MapFn},
};

type Build = fn(&mut Builder, &[Value]) -> Value;

fn shape(b: &Builder, v: Value) -> Vec<Dim> {
    b.func.ty(v).shape.clone()
}

fn iota(b: &mut Builder, n: &Dim, shape: &[Dim], axis: usize) -> Value {
    let i = b.op(Op::Iota(n.clone()), &[]);
    b.broadcast(i, shape, &[axis])
}

/// What `build` makes of arguments of these types as one region.
fn region(args: &[TensorType], build: Build) -> graph::op::Fused {
    let mut f = Func::new("f");
    let args: Vec<Value> = args.iter().enumerate().map(|(i, t)| f.arg(&format!("a{i}"), Role::Inner, t.clone())).collect();
    let result = build(&mut Builder::new(&mut f), &args);
    f.output("y", Role::Inner, result);
    graph::op::Fused { form: Form::Select, body: f }
}

/// The region's kernels give what its ops give, with extents that are run-time dims; whether there is one for many processors.
#[track_caller]
fn check(args: &[Tensor], types: &[&str], dims: &[(&str, i64)], build: Build) -> bool {
    let dims: DimEnv = dims.iter().map(|(n, x)| ((*n).into(), *x)).collect();
    let ty = |(t, text): (&Tensor, &&str)| {
        TensorType::new(t.dtype, text.split(' ').map(|d| d.parse().expect("a dim")).collect::<Vec<Dim>>())
    };
    let region_of_dims = region(&args.iter().zip(types).map(ty).collect::<Vec<_>>(), build);
    let op = Op::Fused(Box::new(region(&args.iter().map(known).collect::<Vec<_>>(), build)));
    let want = oracle(&op, args);
    let select = Select::of(&region_of_dims).expect("it has a kernel");
    let view = |i: usize, shape: &[Dim]| {
        StridedView::contiguous(library::View { buffer: i, offset: Dim::from(0), turn: Vec::new() }, shape)
    };
    let body = &region_of_dims.body;
    let places: Vec<StridedView> = (0..args.len()).map(|i| view(i, &body.arg_type(i).shape)).collect();
    let target = view(args.len(), &body.ty(body.outputs[0].value).shape);
    let many = fuse_select_many(&select, &places, &target);
    let exists = many.is_some();
    for Fused { kernel, views, .. } in [Some(fuse_select(&select, &places, &target)), many].into_iter().flatten() {
        assert_eq!(crate::verify::verify(&kernel), Vec::<String>::new());
        let (last, read) = views.split_last().expect("the result");
        assert_eq!(last.buffer, args.len());
        let read: Vec<Tensor> = read.iter().map(|v| args[v.buffer].clone()).collect();
        let got = results(&kernel, &read, &[want[0].data.len()], &dims, false);
        assert_near("the best", &got[0], &want[0].data, 0.0);
    }
    // All scores, and the best of them afterwards.
    let scores = select.scores().shape.iter().map(|d| d.eval(&dims).expect("known dims")).collect::<Vec<_>>();
    let few = scores.iter().product::<i64>() <= 200;
    let (n, rows) = scores.split_last().expect("candidates");
    let of_scores = &select.scores().shape[..];
    let [to, ends] = [of_scores, &of_scores[..rows.len()]]
        .into_iter()
        .enumerate()
        .map(|(i, s)| view(args.len() + i, s))
        .collect::<Vec<_>>()
        .try_into()
        .expect("two");
    if let Some(Fused { kernel, views, .. }) = fuse_scores_many(&select, &places, &to, &ends).filter(|_| few) {
        assert_eq!(crate::verify::verify(&kernel), Vec::<String>::new());
        let num_rows = rows.iter().product::<i64>();
        // What is behind a row's end stays as it was.
        let new = [(num_rows * n) as usize, num_rows as usize];
        let given = views.iter().map(|v| args.get(v.buffer).map(|x| x.data.clone()));
        let mut buffers: Vec<Vec<f64>> =
            given.enumerate().map(|(i, x)| x.unwrap_or_else(|| vec![f64::NAN; new[views[i].buffer - args.len()]])).collect();
        crate::interp::run(&kernel, &mut buffers, &dims, crate::interp::Options::default()).expect("it runs");
        let [all, ends] = [0, 1].map(|i| views.iter().position(|v| v.buffer == args.len() + i).expect("it is written"));
        let p = TopK { dtype: DType::F32, rows: num_rows.into(), n: (*n).into(), k: select.chosen() };
        let all = Tensor::new(DType::F32, &scores, buffers[all].clone());
        let ends = Tensor::new(DType::I32, rows, buffers[ends].clone());
        let got = results(&gpu_topk_long(&p, true), &[all, ends], &[want[0].data.len()], &dims, false);
        assert_near("the best of stored scores", &got[0], &want[0].data, 0.0);
    }
    exists
}

/// Compressed attention's probabilities, summed over the heads of a group and folded from windows to blocks; the query's own block comes
/// first, later ones never: `select_blocks` of `std/nsa.lode`. Arguments: q, kc, lse.
fn blocks(b: &mut Builder, a: &[Value]) -> Value {
    let (q, k) = (shape(b, a[0]), shape(b, a[1]));
    let [bs, t, h, d] = [0, 1, 2, 3].map(|i| q[i].clone());
    let (m, g) = (k[1].clone(), k[2].clone());
    let r = h.try_div(&g).expect("heads share keys");
    let (size, stride, fill) = (4, 2, 2);
    let n = t.ceil_div(&Dim::from(size));
    let qg = b.reshape(a[0], &[bs.clone(), t.clone(), g.clone(), r, d]);
    let s = b.contract("btgrd,bmgd->btgrm", qg, a[1]);
    let scale = b.full_like(s, 0.5);
    let s = b.mul(s, scale);
    let all = shape(b, s);
    let lse = b.reshape(a[2], &all[..4]);
    let lse = b.broadcast(lse, &all, &[0, 1, 2, 3]);
    let p = b.map(MapFn::Sub, &[s, lse]);
    let p = b.map(MapFn::Exp, &[p]);
    let pair = [t.clone(), m.clone()];
    let i = iota(b, &m, &pair, 1);
    let two = b.full_like(i, 2.0);
    let ends = b.mul(i, two);
    let three = b.full_like(i, 3.0);
    let ends = b.add(ends, three);
    let at = iota(b, &t, &pair, 0);
    let seen = b.map(MapFn::Le, &[ends, at]);
    let seen = b.broadcast(seen, &all, &[1, 4]);
    let zero = b.full_like(p, 0.0);
    let p = b.map(MapFn::Select, &[seen, p, zero]);
    let p = b.sum(p, &[3]);
    let value = graph::op::Scalar::new(0.0);
    let (low, high) = (Dim::from(fill), n.clone() * Dim::from(fill) - m);
    let p = b.op(Op::Pad { axis: 3, low, high, value }, &[p]);
    let wide = [bs.clone(), t.clone(), g.clone(), n.clone() + Dim::from(1), Dim::from(fill)];
    let p = b.reshape(p, &wide);
    let part = |b: &mut Builder, start: i64, weight: [f64; 2]| {
        let x = b.op(Op::Slice { axis: 3, start: Dim::from(start), len: n.clone(), step: 1 }, &[p]);
        let shape = shape(b, x);
        let i = iota(b, &Dim::from(fill), &shape, 4);
        let zero = b.full_like(i, 0.0);
        let first = b.map(MapFn::Eq, &[i, zero]);
        let [u, v] = weight.map(|w| b.full_like(x, w));
        let w = b.map(MapFn::Select, &[first, u, v]);
        let x = b.mul(x, w);
        b.sum(x, &[4])
    };
    let own = part(b, 1, [2.0, 1.0]);
    let before = part(b, 0, [0.0, 1.0]);
    let score = b.add(own, before);
    let shape = shape(b, score);
    let _ = stride;
    let row = b.op(Op::Iota(t), &[]);
    let by = b.full_like(row, size as f64);
    let block = b.map(MapFn::FloorDiv, &[row, by]);
    let block = b.broadcast(block, &shape, &[1]);
    let j = iota(b, &n, &shape, 3);
    let local = b.map(MapFn::Eq, &[j, block]);
    let high = b.full_like(score, 1e30);
    let score = b.map(MapFn::Select, &[local, high, score]);
    let known = b.map(MapFn::Le, &[j, block]);
    let never = b.full_like(score, f64::NEG_INFINITY);
    let score = b.map(MapFn::Select, &[known, score, never]);
    b.op(Op::TopK(3), &[score])
}

/// Each head's best blocks by their mean keys: `moba`. Arguments: q, means.
fn means(b: &mut Builder, a: &[Value]) -> Value {
    let score = b.contract("bthd,bnhd->bthn", a[0], a[1]);
    b.op(Op::TopK(2), &[score])
}

/// A light indexer's best tokens: `dsa`. Arguments: q, k, weights.
fn tokens(b: &mut Builder, a: &[Value]) -> Value {
    let like = b.contract("bthd,bsd->bths", a[0], a[1]);
    let zero = b.full_like(like, 0.0);
    let like = b.map(MapFn::Max, &[like, zero]);
    let score = b.contract("bths,bth->bts", like, a[2]);
    let (shape, s) = (shape(b, score), shape(b, a[1])[1].clone());
    let pair = &shape[1..];
    let j = iota(b, &s, pair, 1);
    let t = iota(b, &pair[0], pair, 0);
    let known = b.map(MapFn::Le, &[j, t]);
    let known = b.broadcast(known, &shape, &[1, 2]);
    let never = b.full_like(score, f64::NEG_INFINITY);
    let score = b.map(MapFn::Select, &[known, score, never]);
    b.op(Op::TopK(4), &[score])
}

#[test]
fn blocks_by_compressed_attention() {
    let mut r = Random::new(5);
    for (t, h, g) in [(1, 2, 1), (4, 4, 2), (9, 4, 2), (40, 6, 1), (300, 2, 2)] {
        let m = ((t - 4 + 2) / 2).max(0);
        let q = r.tensor(DType::F32, &[2, t, h, 5]);
        let k = r.tensor(DType::F32, &[2, m, g, 5]);
        let lse = r.tensor(DType::F32, &[2, t, h]);
        let (h, g) = (h.to_string(), g.to_string());
        let types = [format!("B T {h} 5"), format!("B max(0,floordiv(T-2,2)) {g} 5"), format!("B T {h}")];
        check(&[q, k, lse], &types.each_ref().map(String::as_str), &[("B", 2), ("T", t)], blocks);
    }
}

#[test]
fn blocks_by_their_means() {
    let mut r = Random::new(6);
    for (t, n) in [(1, 1), (3, 1), (20, 5), (40, 150)] {
        let (q, k) = (r.tensor(DType::F32, &[1, t, 3, 4]), r.tensor(DType::F32, &[1, n, 3, 4]));
        check(&[q, k], &["1 T 3 4", "1 N 3 4"], &[("T", t), ("N", n)], means);
    }
    // Ties go to the lower index, and NaN comes first.
    let q = Tensor::new(DType::F32, &[1, 1, 1, 1], vec![1.0]);
    let k = Tensor::new(DType::F32, &[1, 5, 1, 1], vec![1.0, 2.0, f64::NAN, 2.0, 2.0]);
    check(&[q, k], &["1 T 1 1", "1 N 1 1"], &[("T", 1), ("N", 5)], means);
}

#[test]
fn tokens_by_an_indexer() {
    let mut r = Random::new(7);
    for (t, h) in [(1, 1), (5, 2), (35, 3), (200, 1)] {
        let q = r.tensor(DType::F32, &[2, t, h, 4]);
        let (k, w) = (r.tensor(DType::F32, &[2, t, 4]), r.tensor(DType::F32, &[2, t, h]));
        let types = [format!("B T {h} 4"), "B T 4".into(), format!("B T {h}")];
        check(&[q, k, w], &types.each_ref().map(String::as_str), &[("B", 2), ("T", t)], tokens);
    }
}

#[test]
fn rows_of_heads_for_many_processors() {
    let mut r = Random::new(8);
    // One head a group, without keys, with one, and with more than a tile of queries.
    for (t, h, g) in [(1, 2, 1), (4, 4, 2), (9, 16, 1), (40, 4, 1), (1, 2, 2), (4, 2, 2), (150, 2, 2)] {
        let m = ((t - 4 + 2) / 2).max(0);
        let mut f32s = |shape: &[i64]| r.tensor(DType::F32, shape);
        let (q, k, lse) = (f32s(&[2, t, h, 8]), f32s(&[2, m, g, 8]), f32s(&[2, t, h]));
        let types = [format!("B T {h} 8"), format!("B max(0,floordiv(T-2,2)) {g} 8"), format!("B T {h}")];
        assert!(check(&[q, k, lse], &types.each_ref().map(String::as_str), &[("B", 2), ("T", t)], blocks));

        let (q, k, w) = (f32s(&[2, t, h, 4]), f32s(&[2, t, 4]), f32s(&[2, t, h]));
        let types = [format!("B T {h} 4"), "B T 4".into(), format!("B T {h}")];
        assert!(check(&[q, k, w], &types.each_ref().map(String::as_str), &[("B", 2), ("T", t)], tokens));

        let (q, k) = (f32s(&[1, t, 3, 4]), f32s(&[1, m + 1, 3, 4]));
        assert!(check(&[q, k], &["1 T 3 4", "1 N 3 4"], &[("T", t), ("N", m + 1)], means));
    }
    // Ties go to the lower index, and NaN comes first.
    let q = Tensor::new(DType::F32, &[1, 2, 1, 4], vec![1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]);
    let k = [1.0, 2.0, f64::NAN, 2.0, 2.0].into_iter().flat_map(|x| [x, 0.0, 0.0, 0.0]).collect();
    let k = Tensor::new(DType::F32, &[1, 5, 1, 4], k);
    assert!(check(&[q, k], &["1 T 1 4", "1 N 1 4"], &[("T", 2), ("N", 5)], means));
}

#[test]
fn what_would_need_whole_rows_has_no_kernel() {
    let f32s = |text: &str| TensorType::new(DType::F32, text.split(' ').map(|d| d.parse().expect("a dim")).collect::<Vec<Dim>>());
    // A softmax over all candidates before the choice.
    let soft: Build = |b, a| {
        let s = b.contract("btd,bnd->btn", a[0], a[1]);
        let sum = b.sum(s, &[2]);
        let sum = b.broadcast(sum, &shape(b, s), &[0, 1]);
        let s = b.map(MapFn::Div, &[s, sum]);
        b.op(Op::TopK(2), &[s])
    };
    assert!(Select::of(&region(&[f32s("B T 4"), f32s("B N 4")], soft)).is_none());
    // Candidates that are mixed by a matrix.
    let mixed: Build = |b, a| {
        let s = b.contract("btd,bnd->btn", a[0], a[1]);
        let s = b.contract("btn,bnm->btm", s, a[2]);
        b.op(Op::TopK(2), &[s])
    };
    assert!(Select::of(&region(&[f32s("B T 4"), f32s("B N 4"), f32s("B N M")], mixed)).is_none());
    // No product at all.
    let plain: Build = |b, a| {
        let s = b.map(MapFn::Exp, &[a[0]]);
        b.op(Op::TopK(2), &[s])
    };
    assert!(Select::of(&region(&[f32s("B T 4")], plain)).is_none());
}
