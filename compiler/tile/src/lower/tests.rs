//! Entries in the tile interpreter against functions in the graph's.

mod codes;

use crate::{
    ir::{LoopKind, Stmt},
    lower,
    simulate::simulate,
};
use base::{DType::*, Dim, DimEnv, TensorType};
use graph::{
    Func, Module, Op, Role, Value,
    build::Builder,
    interp::{Options, Tensor, bind_dims, eval},
    op::{Attend, Domain, Form, MapFn, ReduceFn, Repeat, Scalar},
};

/// Deterministic numbers in -1..1.
fn noise(seed: &mut u64) -> f64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 33) as f64 / f64::from(1u32 << 30) - 1.0
}

fn ty(text: &str) -> TensorType {
    let (dtype, shape) = text.trim_end_matches(']').split_once('[').expect("a type");
    let shape: Vec<Dim> = shape.split(',').filter(|d| !d.trim().is_empty()).map(|d| d.trim().parse().expect("a dim")).collect();
    TensorType::new(dtype.parse().expect("a dtype"), shape)
}

/// Builds a function of arguments of these types and compares both ways of running it; integer arguments count 0, 1, 2, 0, ….
fn check(args: &[&str], dims: &[(&str, i64)], build: impl FnOnce(&mut Builder, &[Value]) -> Vec<Value>) -> lower::Lowered {
    compare(func(args, build), dims)
}

fn func(args: &[&str], build: impl FnOnce(&mut Builder, &[Value]) -> Vec<Value>) -> Func {
    let mut f = Func::new("f");
    let values: Vec<Value> = args.iter().enumerate().map(|(i, t)| f.arg(&format!("a{i}"), Role::Input, ty(t))).collect();
    let outputs = build(&mut Builder::new(&mut f), &values);
    outputs.into_iter().enumerate().for_each(|(i, v)| f.output(&format!("o{i}"), Role::Result, v));
    f
}

/// The same, and the names of the kernels for many processors.
fn kernels_of(f: Func, dims: &[(&str, i64)]) -> Vec<String> {
    compare(f.clone(), dims);
    on_gpu(&f).kernels.iter().map(|k| k.name.rsplit_once('_').expect("a number").0.to_string()).collect()
}

fn compare(f: Func, dims: &[(&str, i64)]) -> lower::Lowered {
    let env: DimEnv = dims.iter().map(|(n, v)| ((*n).into(), *v)).collect();
    let mut seed = 7;
    let tensors: Vec<Tensor> = f
        .arg_values()
        .map(|(_, _, t)| {
            let shape = t.eval(&env).expect("extents");
            let n = shape.iter().product::<i64>();
            let data = (0..n).map(|i| if t.dtype.is_float() { noise(&mut seed) } else { (i % 3) as f64 }).collect();
            Tensor::new(t.dtype, &shape, data)
        })
        .collect();
    let shapes: Vec<&[i64]> = tensors.iter().map(|t| &t.shape[..]).collect();
    bind_dims(&f, &shapes).expect("dims bind");
    // In bf16 a value may round to its neighbour, or not be rounded inside of a kernel: half a unit in each of up to 24 terms below 1.
    let narrow = tensors.iter().any(|t| t.dtype == BF16);
    let rounded = f.nodes.values().any(|n| n.types[0].dtype == TF32);
    let near = if narrow { 24.0 / 512.0 } else { 1e-5 };
    let options = if narrow || rounded { Options::ROUNDED } else { Options::EXACT };
    let want = eval(&f, &tensors, &env, options).expect("the graph evaluates");
    let module = Module { name: "m".into(), params: Vec::new(), funcs: vec![f] };
    let violations = graph::verify::verify(&module);
    assert!(violations.is_empty(), "{violations:?}");
    let data: Vec<Vec<f64>> = tensors.iter().map(|t| t.data.clone()).collect();
    let run = |fuse: bool, parts: bool| {
        let lowered = lower::lower(&module, lower::Options { fuse, parts, products: parts }).expect("it lowers");
        let got = simulate(&lowered, &lowered.entries[0], &data, &env).unwrap_or_else(|e| panic!("{e}\n{:#?}", lowered.kernels));
        for (i, (g, w)) in got.iter().zip(&want).enumerate() {
            assert_eq!(g.len(), w.data.len());
            for (j, (x, y)) in g.iter().zip(&w.data).enumerate() {
                let close = (x - y).abs() <= near * (1.0 + y.abs()) || (x.is_nan() && y.is_nan());
                let at = format!("output {i} element {j}, fuse {fuse}, parts {parts}");
                assert!(close, "{at}: {x} for {y}\n{:#?}\n{:#?}", lowered.entries[0].steps, lowered.kernels);
            }
        }
        lowered
    };
    run(false, false);
    run(true, true);
    run(true, false)
}

const BT: &[(&str, i64)] = &[("B", 2), ("T", 5)];

#[test]
fn elementwise_chains_are_one_flat_kernel() {
    let l = check(&["f32[B, T, 8]", "f32[B, T, 8]"], BT, |b, a| {
        let s = b.map(MapFn::Sigmoid, &[a[0]]);
        let m = b.mul(s, a[1]);
        vec![b.add(m, a[0])]
    });
    assert_eq!((l.kernels.len(), l.entries[0].steps.len()), (1, 1));
}

#[test]
fn buffers_begin_aligned_where_all_launches_have_them_so() {
    let alignments = |both: bool| {
        let l = check(&["f32[16]", "f32[17]"], &[], |b, a| {
            let rest = b.op(Op::Slice { axis: 0, start: 1.into(), len: 16.into(), step: 1 }, &a[1..]);
            let all = if both { vec![a[0], rest] } else { vec![a[0]] };
            all.into_iter().map(|x| b.map(MapFn::Sigmoid, &[x])).collect()
        });
        assert_eq!(l.kernels.len(), 1);
        l.kernels[0].buffers.iter().map(|b| b.alignment).collect::<Vec<_>>()
    };
    assert_eq!(alignments(false), [16, 16]);
    assert_eq!(alignments(true), [4, 16]);
}

#[test]
fn a_norm_is_one_kernel() {
    let l = check(&["f32[B, T, 8]", "f32[8]"], BT, |b, a| {
        let square = b.mul(a[0], a[0]);
        let sum = b.sum(square, &[2]);
        let r = b.map(MapFn::Rsqrt, &[sum]);
        let shape = b.func.ty(a[0]).shape.clone();
        let r = b.broadcast(r, &shape, &[0, 1]);
        let w = b.broadcast(a[1], &shape, &[2]);
        let y = b.mul(a[0], r);
        vec![b.mul(y, w)]
    });
    assert_eq!(l.kernels.len(), 1, "{:#?}", l.kernels);
}

#[test]
fn softmax_is_one_kernel() {
    let l = check(&["f32[B, T, 9]"], BT, |b, a| {
        let shape = b.func.ty(a[0]).shape.clone();
        let m = b.op(Op::Reduce(ReduceFn::Max, vec![2]), a);
        let m = b.broadcast(m, &shape, &[0, 1]);
        let c = b.map(MapFn::Sub, &[a[0], m]);
        let e = b.map(MapFn::Exp, &[c]);
        let s = b.sum(e, &[2]);
        let s = b.broadcast(s, &shape, &[0, 1]);
        vec![b.map(MapFn::Div, &[e, s])]
    });
    assert_eq!(l.kernels.len(), 1, "{:#?}", l.kernels);
}

#[test]
fn reductions_over_any_axes() {
    for axes in [vec![0], vec![1], vec![2], vec![0, 1], vec![0, 2], vec![1, 2], vec![0, 1, 2]] {
        check(&["f32[B, T, 300]"], BT, |b, a| vec![b.sum(a[0], &axes)]);
        check(&["f32[B, 11, 7]"], BT, |b, a| vec![b.op(Op::Reduce(ReduceFn::Max, axes.clone()), a)]);
    }
}

#[test]
fn layout_ops_compose() {
    check(&["f32[B, T, 8]"], BT, |b, a| {
        let d = |s: &str| s.parse::<Dim>().expect("a dim");
        let r = b.reshape(a[0], &[d("B"), d("T"), d("2"), d("4")]);
        let t = b.transpose(r, &[0, 2, 1, 3]);
        let neg = b.map(MapFn::Neg, &[t]);
        let s = b.op(Op::Slice { axis: 2, start: d("1"), len: d("T - 1"), step: 1 }, &[neg]);
        let p = b.op(Op::Pad { axis: 2, low: d("2"), high: d("1"), value: graph::op::Scalar::new(3.0) }, &[s]);
        let c = b.op(Op::Concat(3), &[p, p]);
        let back = b.transpose(neg, &[0, 2, 1, 3]);
        let flat = b.reshape(back, &[d("B*T"), d("8")]);
        vec![p, c, b.map(MapFn::Exp, &[flat])]
    });
}

#[test]
fn gathers_and_tables() {
    check(&["f32[6, 4]", "i32[B, T]", "f32[B, T, 3]"], BT, |b, a| {
        let d = |s: &str| s.parse::<Dim>().expect("a dim");
        let g = b.op(Op::Gather { batch: 0 }, &[a[0], a[1]]);
        let i = b.op(Op::Iota(d("T")), &[]);
        let i = b.op(Op::Cast(F32), &[i]);
        let angle = b.map(MapFn::Cos, &[i]);
        let shape = b.func.ty(g).shape.clone();
        let angle = b.broadcast(angle, &shape, &[1]);
        let along = b.reshape(a[1], &[d("B"), d("T"), d("1")]);
        let picked = b.op(Op::Gather { batch: 2 }, &[a[2], along]);
        vec![b.mul(g, angle), picked]
    });
}

#[test]
fn contractions_with_views_and_epilogues() {
    check(&["f32[B, T, 8]", "f32[8, 2, 4]", "f32[2, 4, 8]"], BT, |b, a| {
        let x = b.map(MapFn::Silu, &[a[0]]);
        let h = b.contract("btd,dhk->bthk", x, a[1]);
        let y = b.contract("bthk,hko->bto", h, a[2]);
        let s = b.contract("bthk,bshk->bhts", h, h);
        let odd = b.contract("bhts,bhts->h", s, s);
        vec![b.add(y, a[0]), s, odd]
    });
}

#[test]
fn repeats_carry_stack_and_slice() {
    let mut body = Func::new("body");
    let (c, k, w) = (
        body.arg("c", Role::Inner, ty("f32[B, 4]")),
        body.arg("k", Role::Inner, ty("f32[B, 4]")),
        body.arg("w", Role::Inner, ty("f32[4, 4]")),
    );
    let mut b = Builder::new(&mut body);
    let p = b.contract("bi,ij->bj", c, w);
    let next = b.add(p, k);
    let next = b.add(next, c);
    let stack = b.map(MapFn::Tanh, &[c]);
    body.output("c", Role::Inner, next);
    body.output("y", Role::Inner, stack);
    for (count, reverse) in [(3, false), (3, true), (1, false)] {
        let r = Repeat { count, carried: 1, constant: 1, reverse, body: body.clone() };
        check(&["f32[B, 4]", "f32[B, 4]", &format!("f32[{count}, 4, 4]")], BT, |b, a| {
            let x = b.map(MapFn::Exp, &[a[0]]);
            b.node(Op::Repeat(Box::new(r.clone())), &[x, a[1], a[2]])
        });
    }
}

/// Outputs that replace arguments: in place where nothing else reads them, through copies where something does.
#[test]
fn outputs_replace_arguments() {
    let mut f = Func::new("f");
    let (p, m, g) = (
        f.arg("p", Role::Param, ty("f32[4, 4]")),
        f.arg("m", Role::Moment, ty("f32[4, 4]")),
        f.arg("g", Role::Grad, ty("f32[4, 4]")),
    );
    let x = f.arg("x", Role::Input, ty("f32[B, 4]"));
    let mut b = Builder::new(&mut f);
    let next_m = b.add(m, g);
    let turned = b.transpose(p, &[1, 0]);
    let next_p = b.add(turned, next_m);
    let dw = b.contract("bi,bj->ij", x, x);
    let next_g = b.add(g, dw);
    f.output("p", Role::Param, next_p);
    f.output("m", Role::Moment, next_m);
    f.output("g", Role::Grad, next_g);
    let l = compare(f, BT);
    assert!(l.entries[0].steps.iter().any(|s| matches!(s, library::Step::Gemm(g) if g.accumulate)), "{:#?}", l.entries[0].steps);
}

#[test]
fn stacked_sums_are_added_in_the_loop() {
    let mut body = Func::new("body");
    let x = body.arg("x", Role::Inner, ty("f32[B, 4]"));
    let mut b = Builder::new(&mut body);
    let dw = b.contract("bi,bj->ij", x, x);
    body.output("dw", Role::Inner, dw);
    let mut f = Func::new("f");
    let (g, xs) = (f.arg("g", Role::Grad, ty("f32[3, 4, 4]")), f.arg("x", Role::Input, ty("f32[3, B, 4]")));
    let mut b = Builder::new(&mut f);
    let dw = b.op(Op::Repeat(Box::new(Repeat { count: 3, carried: 0, constant: 0, reverse: true, body })), &[xs]);
    let next = b.add(g, dw);
    f.output("g", Role::Grad, next);
    let l = compare(f, BT);
    assert_eq!(l.entries[0].buffers.len(), 2, "{:#?}", l.entries[0]);
}

#[test]
fn large_reductions_are_taken_in_parts() {
    let parts = |args: &[&str], dims: &[(&str, i64)], build: &dyn Fn(&mut Builder, Value) -> Value| {
        let mut f = Func::new("f");
        let x = f.arg("x", Role::Input, ty(args[0]));
        let y = build(&mut Builder::new(&mut f), x);
        f.output("y", Role::Result, y);
        compare(f.clone(), dims);
        let module = Module { name: "m".into(), params: Vec::new(), funcs: vec![f] };
        let lowered = lower::lower(&module, lower::Options { fuse: true, parts: true, products: false }).expect("it lowers");
        lowered.kernels.iter().map(|k| k.grid.to_string()).collect::<Vec<_>>()
    };
    // To one number, of one axis and of several; with what is computed from it and from what.
    let total = |b: &mut Builder, x: Value| {
        let square = b.mul(x, x);
        let all: Vec<usize> = (0..b.func.ty(x).rank()).collect();
        let sum = b.sum(square, &all);
        b.map(MapFn::Sqrt, &[sum])
    };
    assert_eq!(parts(&["f32[T]"], BT, &total), ["256", "1", "1"]);
    assert_eq!(parts(&["f32[B, T, 7]"], BT, &total), ["256", "1", "1"]);
    assert_eq!(parts(&["f32[100, 50]"], BT, &total), ["256", "1", "1"]);
    assert_eq!(parts(&["f32[10, 50]"], BT, &total), ["1"]);
    // Sums of rows.
    let columns = |b: &mut Builder, x: Value| b.sum(x, &[0, 1]);
    assert_eq!(parts(&["f32[B, T, 300]"], BT, &columns), ["512", "5"]);
    assert_eq!(parts(&["f32[B, T, 70000]"], &[("B", 1), ("T", 2)], &columns), ["274"]);
    let greatest = |b: &mut Builder, x: Value| b.op(Op::Reduce(ReduceFn::Max, vec![0]), &[x]);
    assert_eq!(parts(&["bf16[T, 3, 40]"], &[("T", 200)], &greatest).len(), 2);
}

fn loops(stmts: &[Stmt]) -> Vec<LoopKind> {
    let of = |s: &Stmt| {
        let own = if let Stmt::For { kind, .. } = s { Some(*kind) } else { None };
        own.into_iter().chain(s.lists().into_iter().flat_map(loops)).collect::<Vec<_>>()
    };
    stmts.iter().flat_map(of).collect()
}

/// The square of a stack's layers, as a gradient's norm takes it: the kernels are the same for any number of layers, but for that number.
#[test]
fn sums_of_a_layer_do_not_depend_on_how_many_there_are() {
    for shape in ["260, 256", "64, 9, 128", "70000", "4096", "5, 40", "3"] {
        let kernels = |layers: i64| {
            let mut f = Func::new("f");
            let x = f.arg("x", Role::Grad, ty(&format!("f32[{layers}, {shape}]")));
            let mut b = Builder::new(&mut f);
            let square = b.mul(x, x);
            let axes: Vec<usize> = (1..b.func.ty(x).rank()).collect();
            let sum = b.sum(square, &axes);
            f.output("x", Role::Result, sum);
            if layers == 2 {
                compare(f.clone(), &[]);
            }
            let module = Module { name: "m".into(), params: Vec::new(), funcs: vec![f] };
            let lowered = lower::lower(&module, lower::Options { fuse: true, parts: true, products: false }).expect("it lowers");
            // The loops, and how they run: what adds which terms in which order.
            lowered.kernels.iter().map(|k| (loops(&k.body), k.grid.known().expect("known"))).collect::<Vec<_>>()
        };
        let [one, two, five] = [1, 2, 5].map(kernels);
        let ways = |of: &[(Vec<LoopKind>, i64)]| of.iter().map(|(loops, _)| loops.clone()).collect::<Vec<_>>();
        assert_eq!((ways(&one), ways(&one)), (ways(&two), ways(&five)), "{shape}");
        // Parts of each layer.
        if one.len() > 1 {
            assert_eq!((one[0].1 * 2, one[0].1 * 5), (two[0].1, five[0].1), "{shape}");
        }
        assert_eq!(one.len(), if matches!(shape, "260, 256" | "64, 9, 128" | "70000") { 2 } else { 1 }, "{shape}");
    }
}

#[test]
fn constants_and_views_are_outputs_without_fusing() {
    check(&["f32[B]"], BT, |b, a| {
        let c = b.constant(2.5, F32);
        let wide = b.broadcast(a[0], &["3".parse().expect("a dim"), Dim::sym("B")], &[1]);
        vec![c, wide]
    });
}

#[test]
fn what_a_loop_carries_is_left_where_its_stack_has_it() {
    let mut body = Func::new("body");
    let x = body.arg("x", Role::Inner, ty("f32[B, 4]"));
    let mut b = Builder::new(&mut body);
    // It reads all of the carried row for each element it writes.
    let sum = b.sum(x, &[1]);
    let sum = b.broadcast(sum, &[Dim::sym("B"), Dim::from(4)], &[0]);
    let next = b.add(sum, x);
    let twice = b.mul(next, next);
    body.output("next", Role::Inner, next);
    body.output("before", Role::Inner, x);
    body.output("twice", Role::Inner, twice);
    body.output("again", Role::Inner, x);
    let r = Repeat { count: 3, carried: 1, constant: 0, reverse: false, body };
    let l = check(&["f32[B, 4]"], BT, |b, a| {
        let results = b.node(Op::Repeat(Box::new(r.clone())), &[a[0]]);
        results[..3].iter().map(|v| b.map(MapFn::Neg, &[*v])).chain([results[3]]).collect()
    });
    // The stack that is a result is a copy.
    let Some(library::Step::Loop { body, .. }) = l.entries[0].steps.iter().find(|s| matches!(s, library::Step::Loop { .. }))
    else {
        panic!("no loop in {:#?}", l.entries[0].steps)
    };
    let copies = body.iter().filter(|s| matches!(s, library::Step::Copy { .. })).count();
    assert_eq!(copies, 1, "{body:#?}");
}

#[test]
fn a_value_that_is_carried_and_stacked_is_copied_from_where_it_is() {
    let mut body = Func::new("body");
    let x = body.arg("x", Role::Inner, ty("f32[4]"));
    let mut b = Builder::new(&mut body);
    // It reads all of the carried value for each element it writes.
    let sum = b.sum(x, &[0]);
    let y = b.broadcast(sum, &[Dim::from(4)], &[]);
    body.output("next", Role::Inner, y);
    body.output("stack", Role::Inner, y);
    let mut f = Func::new("f");
    let x = f.arg("x", Role::Input, ty("f32[4]"));
    let results =
        Builder::new(&mut f).node(Op::Repeat(Box::new(Repeat { count: 3, carried: 1, constant: 0, reverse: false, body })), &[x]);
    f.output("last", Role::Result, results[0]);
    f.output("all", Role::Result, results[1]);
    compare(f, BT);
}

#[test]
fn empty_values_are_padded_joined_and_gathered_from() {
    let pad = |high: i64| Op::Pad { axis: 0, low: 0.into(), high: high.into(), value: graph::op::Scalar::new(-0.5) };
    for t in [1, 2, 5] {
        check(&["f32[T, 3]", "i32[2]", "f32[0, 3]"], &[("T", t)], |b, a| {
            let tail = Op::Slice { axis: 0, start: 1.into(), len: Dim::sym("T") - Dim::from(1), step: 1 };
            // A view, a value that is computed where it is used, one in memory that is an output too, and an argument.
            let view = b.op(tail.clone(), &a[..1]);
            let inline = b.map(MapFn::Exp, &[view]);
            let sums = b.op(Op::Cumsum { axis: 0, exclusive: false, reverse: false }, &[view]);
            let turned = b.transpose(a[2], &[1, 0]);
            let mut outputs = vec![sums, turned];
            for x in [view, inline, sums, a[2]] {
                outputs.push(b.op(pad(2), &[x]));
                outputs.push(b.op(Op::Concat(0), &[x, a[0]]));
                outputs.push(b.op(Op::Gather { batch: 0 }, &[x, a[1]]));
            }
            outputs
        });
    }
}

#[test]
fn empty_values_are_reshaped_and_padded() {
    let d = |s: &str| s.parse::<Dim>().expect("a dim");
    let pad = |axis| Op::Pad { axis, low: 1.into(), high: 0.into(), value: graph::op::Scalar::new(2.0) };
    for t in [1, 3] {
        check(&["f32[0]", "f32[B, T, 8]"], &[("B", 2), ("T", t)], |b, a| {
            let none = b.reshape(a[0], &[d("2"), d("2"), d("0"), d("2")]);
            let tail = b.op(Op::Slice { axis: 1, start: 1.into(), len: d("T - 1"), step: 1 }, &a[1..]);
            let sums = b.op(Op::Cumsum { axis: 1, exclusive: false, reverse: false }, &[tail]);
            let flat = b.reshape(sums, &[d("8*B*T - 8*B")]);
            let again = b.op(Op::Cumsum { axis: 0, exclusive: true, reverse: true }, &[flat]);
            let split = b.reshape(again, &[d("T - 1"), d("B"), d("8")]);
            vec![b.op(pad(2), &[none]), b.op(pad(0), &[split])]
        });
    }
}

#[test]
fn constants_are_numbers_of_their_dtype() {
    check(&["bool[B]"], BT, |b, a| {
        let two = b.full_like(a[0], 2.0);
        let padded = Op::Pad { axis: 0, low: 0.into(), high: 1.into(), value: graph::op::Scalar::new(-3.0) };
        let padded = b.op(padded, &[a[0]]);
        vec![b.cast(two, F32), b.cast(padded, I32)]
    });
}

#[test]
fn a_view_given_to_a_loop_is_reshaped_there() {
    let d = |n: i64| Dim::from(n);
    let mut body = Func::new("body");
    let (w, x) = (body.arg("w", Role::Inner, ty("f32[3, 2, 1]")), body.arg("x", Role::Inner, ty("f32[2, 3]")));
    let mut b = Builder::new(&mut body);
    let turned = b.reshape(x, &[d(3), d(2)]);
    let y = b.contract("abx,ab->bx", w, turned);
    body.output("y", Role::Inner, y);
    let mut f = Func::new("f");
    let (x, w) = (f.arg("x", Role::Input, ty("f32[2]")), f.arg("w", Role::Input, ty("f32[3, 2, 1]")));
    let mut b = Builder::new(&mut f);
    let wide = b.broadcast(x, &[d(4), d(2), d(3)], &[1]);
    let y = b.op(Op::Repeat(Box::new(Repeat { count: 4, carried: 0, constant: 1, reverse: false, body })), &[w, wide]);
    f.output("y", Role::Result, y);
    compare(f, BT);
}

/// The values of a region of these nodes, which are of the function and not needed there.
fn outlined(b: &mut Builder, nodes: &[Value], results: &[Value]) -> Vec<Value> {
    outlined_as(Form::Product, b, nodes, results)
}

fn outlined_as(form: Form, b: &mut Builder, nodes: &[Value], results: &[Value]) -> Vec<Value> {
    let nodes = nodes.iter().map(|v| v.node).collect();
    let (region, operands) = graph::op::Fused::outline(b.func, form, &nodes, results);
    b.node(Op::Fused(Box::new(region)), &operands)
}

/// The names of a kernel's buffers.
fn names(k: &crate::Kernel) -> Vec<&str> {
    k.buffers.iter().map(|b| b.name.as_str()).collect()
}

#[test]
fn maps_of_products_of_experts_are_one_kernel() {
    // Rows by choice and their experts' products. What is in the region, and what others want as well.
    #[derive(Clone, Copy, PartialEq)]
    enum Way {
        Gate,
        Kept,
        Factor,
        Backward,
    }
    let build = |way: Way| {
        move |b: &mut Builder, a: &[Value]| {
            let [x, choice, gate, up, down, w] = a[..] else { panic!("six arguments") };
            let route = b.node(Op::Route { groups: 3 }, &[choice]);
            let two = b.constant(2.0, I32);
            let two = b.splat(two, &["2*N".parse().expect("a dim")]);
            let token = b.map(MapFn::FloorDiv, &[route[1], two]);
            let rows = b.op(Op::Gather { batch: 0 }, &[x, token]);
            let product = |b: &mut Builder, x: Value, w: Value| b.op(Op::GroupedContract { transposed: true }, &[x, w, route[0]]);
            let (g, u) = (product(b, rows, gate), product(b, rows, up));
            let s = b.map(MapFn::Silu, &[g]);
            let h = b.map(MapFn::Swiglu, &[g, u]);
            match way {
                Way::Gate => outlined(b, &[rows, g, u, h], &[h]),
                Way::Kept => {
                    let h = outlined(b, &[rows, g, u, h], &[h, g, u]);
                    vec![product(b, h[0], down), b.map(MapFn::Abs, &[h[1]]), h[2]]
                }
                // A number for each row, and a value that is not of the region.
                Way::Factor => {
                    let shape = b.func.ty(g).shape.clone();
                    let factor = b.broadcast(w, &shape, &[0]);
                    let (part, other) = (b.mul(s, factor), b.map(MapFn::Sin, &[u]));
                    let sum = b.add(part, other);
                    outlined(b, &[g, s, part, factor, sum], &[sum])
                }
                // The gradients of both factors of a gate, from one product.
                Way::Backward => {
                    let y = b.op(Op::GroupedContract { transposed: false }, &[rows, down, route[0]]);
                    let (dg, du) = (b.mul(y, u), b.mul(y, s));
                    outlined(b, &[rows, y, dg, s, du], &[dg, du, y])
                }
            }
        }
    };
    let args = ["bf16[N, 16]", "i32[N, 2]", "bf16[3, 24, 16]", "bf16[3, 24, 16]", "bf16[3, 16, 24]", "bf16[2*N]"];
    let all = [
        (Way::Gate, vec!["x", "w0", "w1", "index", "offsets", "y"], 1),
        (Way::Kept, vec!["x", "w0", "w1", "index", "offsets", "y0", "y1", "y2"], 2),
        (Way::Factor, vec!["x", "w", "offsets", "z0", "z1", "y"], 2),
        (Way::Backward, vec!["x", "w", "index", "offsets", "z0", "z1", "y0", "y1", "y2"], 2),
    ];
    for (way, buffers, count) in all {
        let mut f = Func::new("f");
        let values: Vec<Value> = args.iter().enumerate().map(|(i, t)| f.arg(&format!("a{i}"), Role::Input, ty(t))).collect();
        let outputs = build(way)(&mut Builder::new(&mut f), &values);
        outputs.into_iter().enumerate().for_each(|(i, v)| f.output(&format!("o{i}"), Role::Result, v));
        graph::passes::prune_dead(&mut f);
        compare(f.clone(), &[("N", 7)]);
        let module = Module { name: "m".into(), params: Vec::new(), funcs: vec![f] };
        let lowered = lower::lower(&module, lower::Options { fuse: true, parts: true, products: true }).expect("it lowers");
        let grouped: Vec<_> = lowered.kernels.iter().filter(|k| k.name.contains("grouped")).collect();
        assert!(grouped.iter().any(|k| names(k) == buffers), "{:?}", grouped.iter().map(|k| names(k)).collect::<Vec<_>>());
        assert_eq!(grouped.len(), count);
    }
}

#[test]
fn products_of_joined_rows_are_one_kernel() {
    // Rows and matrices joined along the summed axis, of as many terms or not, both ways that matrices lie.
    for (transposed, gate, up) in [(true, "bf16[3, 24, 16]", "bf16[3, 24, 40]"), (false, "bf16[3, 16, 24]", "bf16[3, 40, 24]")] {
        let mut f = Func::new("f");
        let args = ["bf16[N, 16]", "bf16[N, 40]", gate, up, "i32[N, 1]"];
        let a: Vec<Value> = args.iter().enumerate().map(|(i, t)| f.arg(&format!("a{i}"), Role::Input, ty(t))).collect();
        let mut b = Builder::new(&mut f);
        let offsets = b.node(Op::Route { groups: 3 }, &[a[4]])[0];
        let rows = b.op(Op::Concat(1), &[a[0], a[1]]);
        let matrices = b.op(Op::Concat(if transposed { 2 } else { 1 }), &[a[2], a[3]]);
        let y = b.op(Op::GroupedContract { transposed }, &[rows, matrices, offsets]);
        let y = outlined(&mut b, &[rows, matrices, y], &[y])[0];
        f.output("y", Role::Result, y);
        graph::passes::prune_dead(&mut f);
        compare(f.clone(), &[("N", 7)]);
        let lowered = on_gpu(&f);
        let grouped: Vec<_> = lowered.kernels.iter().filter(|k| k.name.contains("grouped")).map(names).collect();
        assert_eq!(grouped, [["x", "w", "x1", "w1", "offsets", "y"]]);
    }
}

#[test]
fn regions_of_other_products_are_taken_apart() {
    // Rows that are mapped themselves, products of other rows, or of matrices that lie the other way.
    for way in 0..3 {
        let mut f = Func::new("f");
        let args = ["bf16[N, 16]", "bf16[N, 16]", "bf16[3, 16, 16]", "bf16[3, 16, 16]", "i32[N, 1]", "i32[N]"];
        let a: Vec<Value> = args.iter().enumerate().map(|(i, t)| f.arg(&format!("a{i}"), Role::Input, ty(t))).collect();
        let mut b = Builder::new(&mut f);
        let offsets = b.node(Op::Route { groups: 3 }, &[a[4]])[0];
        let rows = b.op(Op::Gather { batch: 0 }, &[a[0], a[5]]);
        let g = b.op(Op::GroupedContract { transposed: true }, &[rows, a[2], offsets]);
        let other = if way == 1 { a[1] } else { rows };
        let u = b.op(Op::GroupedContract { transposed: way != 2 }, &[other, a[3], offsets]);
        let h = b.map(MapFn::Swiglu, &[g, u]);
        let h = if way == 0 { b.mul(h, rows) } else { h };
        let y = outlined(&mut b, &[rows, g, u, h], &[h])[0];
        f.output("y", Role::Result, y);
        graph::passes::prune_dead(&mut f);
        let Op::Fused(region) = &f.def(y_of(&f)).op else { panic!("a region") };
        assert!(!lower::has_kernel(region, true), "{way}");
        compare(f, &[("N", 5)]);
    }
}

/// The function of a region of all that `build` adds but what it says it leaves outside, and its kernels where products are kernels.
fn of_products(
    args: &[&str],
    dims: &[(&str, i64)],
    build: &dyn Fn(&mut Builder, &[Value]) -> (Vec<Value>, Vec<Value>),
) -> Option<Vec<crate::Kernel>> {
    let mut f = Func::new("f");
    let values: Vec<Value> = args.iter().enumerate().map(|(i, t)| f.arg(&format!("a{i}"), Role::Input, ty(t))).collect();
    let mut b = Builder::new(&mut f);
    let (outside, results) = build(&mut b, &values);
    let nodes = (args.len()..b.func.nodes.len()).map(|i| Value { node: graph::NodeId(i as u32), index: 0 });
    let inside: Vec<Value> = nodes.filter(|v| !outside.contains(v)).collect();
    let outputs = outlined(&mut b, &inside, &results);
    outputs.into_iter().enumerate().for_each(|(i, v)| f.output(&format!("o{i}"), Role::Result, v));
    graph::passes::prune_dead(&mut f);
    compare(f.clone(), dims);
    let Op::Fused(region) = &f.def(y_of(&f)).op else { panic!("a region") };
    if !lower::has_kernel(region, true) {
        return None;
    }
    let module = Module { name: "m".into(), params: Vec::new(), funcs: vec![f] };
    Some(lower::lower(&module, lower::Options { fuse: true, parts: true, products: true }).expect("it lowers").kernels)
}

#[test]
fn maps_of_dense_products_are_one_kernel() {
    let all = |args: &[&str], dims: &[(&str, i64)], wanted: &[&str], build: &dyn Fn(&mut Builder, &[Value]) -> Vec<Value>| {
        let kernels = of_products(args, dims, &|b, a| (Vec::new(), build(b, a))).expect("it has a kernel");
        assert_eq!(kernels.iter().map(names).collect::<Vec<_>>(), [wanted], "{args:?}");
    };
    for dtype in ["bf16", "f32"] {
        let of = |shapes: &[&str]| shapes.iter().map(|s| format!("{dtype}{s}")).collect::<Vec<String>>();
        let run =
            |shapes: &[&str], dims: &[(&str, i64)], wanted: &[&str], build: &dyn Fn(&mut Builder, &[Value]) -> Vec<Value>| {
                let args = of(shapes);
                all(&args.iter().map(String::as_str).collect::<Vec<_>>(), dims, wanted, build);
            };
        // Gate and up, alone and with both kept; more rows than a tile has.
        for kept in [false, true] {
            let wanted = if kept { &["a", "b0", "b1", "y0", "y1", "y2"][..] } else { &["a", "b0", "b1", "y"] };
            run(&["[B, T, 16]", "[24, 16]", "[24, 16]"], &[("B", 3), ("T", 67)], wanted, &|b, a| {
                let (g, u) = (b.contract("btd,fd->btf", a[0], a[1]), b.contract("btd,fd->btf", a[0], a[2]));
                let h = b.map(MapFn::Swiglu, &[g, u]);
                if kept { vec![h, u, g] } else { vec![h] }
            });
        }
        // A factor for each row, a bias for each column, a residual that is a view and one that is not.
        let shapes = ["[B, T, 16]", "[16, 40]", "[B, T]", "[40]", "[B, T, 40]"];
        run(&shapes, BT, &["a", "b", "z0", "z1", "z2", "y"], &|b, a| {
            let y = b.contract("btd,df->btf", a[0], a[1]);
            let shape = b.func.ty(y).shape.clone();
            let (factor, bias) = (b.broadcast(a[2], &shape, &[0, 1]), b.broadcast(a[3], &shape, &[2]));
            let (y, half) = (b.mul(y, factor), b.full_like(y, 0.5));
            let (y, z) = (b.add(y, bias), b.mul(a[4], half));
            vec![b.add(y, z)]
        });
        // Gradients of both factors of a gate from one product.
        run(&["[B, T, 16]", "[16, 40]", "[B, T, 40]", "[B, T, 40]"], BT, &["a", "b", "z0", "z1", "y0", "y1"], &|b, a| {
            let dh = b.contract("bto,of->btf", a[0], a[1]);
            let s = b.map(MapFn::Silu, &[a[2]]);
            let (dg, du) = (b.mul(dh, a[3]), b.mul(dh, s));
            vec![dg, du]
        });
        // Heads with matrices of their own, a number for each head and one for each row; two results of one product.
        run(&["[B, T, 3, 16]", "[3, 8, 16]", "[3]", "[T, 3]"], BT, &["a", "b", "z0", "z1", "y0", "y1"], &|b, a| {
            let y = b.contract("bthk,hlk->bthl", a[0], a[1]);
            let shape = b.func.ty(y).shape.clone();
            let (h, r) = (b.broadcast(a[2], &shape, &[2]), b.broadcast(a[3], &shape, &[1, 2]));
            let (y, n) = (b.mul(y, h), b.map(MapFn::Neg, &[y]));
            vec![b.add(y, r), n]
        });
        // A result that lies the other way, with a value that has one axis of the columns and one of the rows.
        run(&["[B, T, 16]", "[2, 16, 4]", "[4, T]"], BT, &["a", "b", "z0", "y"], &|b, a| {
            let y = b.contract("btd,hdk->hkbt", a[0], a[1]);
            let turned = b.func.ty(y).shape.clone();
            let z = b.broadcast(a[2], &turned, &[1, 3]);
            vec![b.map(MapFn::Sub, &[y, z])]
        });
    }
    // More results, for which tensor cores have no registers.
    let three = |b: &mut Builder, a: &[Value]| {
        let y = b.contract("td,df->tf", a[0], a[1]);
        [MapFn::Abs, MapFn::Exp, MapFn::Neg].map(|f| b.map(f, &[y])).to_vec()
    };
    all(&["f32[T, 16]", "f32[16, 40]"], BT, &["a", "b", "y0", "y1", "y2"], &three);
    let wide = |b: &mut Builder, a: &[Value]| {
        let y = b.contract("td,df->tf", a[0], a[1]);
        vec![b.cast(y, F32), b.map(MapFn::Neg, &[y])]
    };
    let narrow = ["bf16[T, 16]", "bf16[16, 40]"];
    assert!(of_products(&narrow, BT, &|b, a| (Vec::new(), three(b, a))).is_none());
    assert!(of_products(&narrow, BT, &|b, a| (Vec::new(), wide(b, a))).is_none());
    // What is widened for the product is multiplied as it is.
    all(&["bf16[B, T, 16]", "bf16[16, 40]", "f32[40]"], BT, &["a", "b", "z0", "y"], &|b, a| {
        let (x, w) = (b.cast(a[0], F32), b.cast(a[1], F32));
        let y = b.contract("btd,df->btf", x, w);
        let shape = b.func.ty(y).shape.clone();
        let bias = b.broadcast(a[2], &shape, &[2]);
        let y = b.add(y, bias);
        vec![b.cast(y, BF16)]
    });
}

/// Rotary positions of the last columns of each head, after `kept` others: halves of f32 with tables of angles, joined and rounded.
fn rotated(b: &mut Builder, q: Value, [cos, sin]: [Value; 2], kept: i64) -> Value {
    let shape = b.func.ty(q).shape.clone();
    let (axis, width) = (shape.len() - 1, shape[shape.len() - 1].known().expect("a number"));
    let half = (width - kept) / 2;
    let columns = |b: &mut Builder, start: i64, len: i64| {
        b.op(Op::Slice { axis, start: Dim::from(start), len: Dim::from(len), step: 1 }, &[q])
    };
    let [x, y] = [kept, kept + half].map(|start| {
        let part = columns(b, start, half);
        b.cast(part, F32)
    });
    let of_half = b.func.ty(x).shape.clone();
    let [c, s] = [cos, sin].map(|table| b.broadcast(table, &of_half, &[1, axis]));
    let [xc, ys, yc, xs] = [(x, c), (y, s), (y, c), (x, s)].map(|(a, z)| b.mul(a, z));
    let (first, second) = (b.map(MapFn::Sub, &[xc, ys]), b.add(yc, xs));
    let dtype = b.func.ty(q).dtype;
    if kept == 0 {
        let both = b.op(Op::Concat(axis), &[first, second]);
        return b.cast(both, dtype);
    }
    let parts = [first, second].map(|v| b.cast(v, dtype));
    let before = columns(b, 0, kept);
    b.op(Op::Concat(axis), &[before, parts[0], parts[1]])
}

/// The same of neighbours, which are an axis of their own meanwhile, or already.
fn rotated_pairs(b: &mut Builder, q: Value, [cos, sin]: [Value; 2], kept: i64) -> Value {
    let shape = b.func.ty(q).shape.clone();
    let (axis, width) = (shape.len() - 1, shape[shape.len() - 1].known().expect("a number"));
    let columns = |b: &mut Builder, x: Value, axis: usize, start: i64, len: i64| {
        b.op(Op::Slice { axis, start: Dim::from(start), len: Dim::from(len), step: 1 }, &[x])
    };
    let (pairs, of_pairs) = if width == 2 {
        (q, axis - 1)
    } else {
        let turned = if kept == 0 { q } else { columns(b, q, axis, kept, width - kept) };
        let split = [&shape[..axis], &[Dim::from((width - kept) / 2), Dim::from(2)]].concat();
        (b.reshape(turned, &split), axis)
    };
    let [x, y] = [0, 1].map(|i| {
        let part = columns(b, pairs, of_pairs + 1, i, 1);
        b.cast(part, F32)
    });
    let of_half = b.func.ty(x).shape.clone();
    let [c, s] = [cos, sin].map(|table| b.broadcast(table, &of_half, &[1, of_pairs]));
    let [xc, ys, yc, xs] = [(x, c), (y, s), (y, c), (x, s)].map(|(a, z)| b.mul(a, z));
    let (first, second) = (b.map(MapFn::Sub, &[xc, ys]), b.add(yc, xs));
    let both = b.op(Op::Concat(of_pairs + 1), &[first, second]);
    let dtype = b.func.ty(q).dtype;
    let both = b.cast(both, dtype);
    if width == 2 {
        return both;
    }
    let joined = b.reshape(both, &[&shape[..axis], &[Dim::from(width - kept)]].concat());
    if kept == 0 {
        return joined;
    }
    let before = columns(b, q, axis, 0, kept);
    b.op(Op::Concat(axis), &[before, joined])
}

#[test]
fn a_map_of_neighbours_is_one_kernel() {
    // Alone, after columns that stay, and before a product that reads it from memory.
    for kept in [0, 4] {
        let half = format!("f32[T, {}]", (12 - kept) / 2);
        let l = check(&["f32[B, T, 3, 12]", &half, &half], BT, |b, a| vec![rotated_pairs(b, a[0], [a[1], a[2]], kept)]);
        assert_eq!(l.kernels.len(), 1, "{:#?}", l.kernels);
        // A turn is for a pair, so that nobody asks at each element which of it that is.
        assert!(!format!("{:?}", l.kernels).contains("Select"), "{:#?}", l.kernels);
        let l = check(&["f32[B, T, 3, 12]", &half, &half, "f32[12, 5]"], BT, |b, a| {
            let y = rotated_pairs(b, a[0], [a[1], a[2]], kept);
            vec![b.contract("bthk,kn->bthn", y, a[3])]
        });
        assert_eq!((l.kernels.len(), l.entries[0].steps.len()), (1, 2), "{:#?}", l.kernels);
    }
    // The gradient of that: pairs of pads.
    let l = check(&["f32[B, T, 3, 6, 1]", "f32[B, T, 3, 6, 1]"], BT, |b, a| {
        let pad = |low: i64| Op::Pad { axis: 4, low: low.into(), high: (1 - low).into(), value: graph::op::Scalar::new(0.0) };
        let [first, second] = [0, 1].map(|i| b.op(pad(i as i64), &[a[i]]));
        let both = b.add(first, second);
        let rows = b.reshape(both, &["B", "T", "3", "12"].map(|d| d.parse().expect("a dim")));
        vec![b.op(Op::Pad { axis: 3, low: 4.into(), high: 0.into(), value: graph::op::Scalar::new(0.0) }, &[rows])]
    });
    assert_eq!(l.kernels.len(), 1, "{:#?}", l.kernels);
}

#[test]
fn neighbours_are_mapped_with_each_other() {
    // After a bias; columns before them that stay, as many and fewer; pairs that have an axis of their own.
    for (heads, width, kept, own, t) in
        [(3, 16, 0, false, 67), (2, 64, 32, false, 5), (5, 48, 32, false, 3), (1, 64, 0, false, 4), (3, 32, 0, true, 5)]
    {
        let shape = if own { format!("{heads}, {}, 2", width / 2) } else { format!("{heads}, {width}") };
        let half = format!("f32[T, {}]", (width - kept) / 2);
        let args = ["bf16[B, T, 16]", &format!("bf16[{shape}, 16]"), &half, &half, &format!("bf16[{shape}]")];
        let build = |b: &mut Builder, a: &[Value]| {
            let q = b.contract(if own { "btd,hkpd->bthkp" } else { "btd,hkd->bthk" }, a[0], a[1]);
            let shape = b.func.ty(q).shape.clone();
            let bias = b.broadcast(a[4], &shape, &(2..shape.len()).collect::<Vec<_>>());
            let q = b.add(q, bias);
            (Vec::new(), vec![rotated_pairs(b, q, [a[2], a[3]], kept)])
        };
        let kernels = of_products(&args, &[("B", 2), ("T", t)], &build).expect("it has a kernel");
        assert_eq!(kernels.iter().map(names).collect::<Vec<_>>(), [["a", "b", "z0", "z1", "z2", "y"]], "{args:?}");
    }
    // Units of four columns; pairs of pairs.
    let kernels = of_products(&["bf16[B, T, 16]", "bf16[3, 16, 16]", "f32[T, 6]", "f32[T, 6]"], BT, &|b, a| {
        let q = b.contract("btd,hkd->bthk", a[0], a[1]);
        (Vec::new(), vec![rotated_pairs(b, q, [a[2], a[3]], 4)])
    });
    assert!(kernels.is_none());
    let kernels = of_products(&["bf16[B, T, 16]", "bf16[16, 16]"], BT, &|b, a| {
        let q = b.contract("btd,kd->btk", a[0], a[1]);
        let shape = b.func.ty(q).shape.clone();
        let fours = b.reshape(q, &[&shape[..2], &[4, 2, 2].map(Dim::from)].concat());
        let fours = b.map(MapFn::Exp, &[fours]);
        (Vec::new(), vec![b.reshape(fours, &shape)])
    });
    assert!(kernels.is_none());
}

#[test]
fn columns_are_mapped_with_others_of_their_head() {
    // Positions rotated after a bias; matrices that lie either way, heads that fill a tile, and that do not; rows for several tiles.
    let tables = |half: i64| [format!("f32[T, {half}]"), format!("f32[T, {half}]")];
    for (heads, width, kept, transposed, t) in
        [(3, 16, 0, true, 67), (2, 64, 0, false, 5), (5, 64, 32, true, 3), (3, 32, 16, false, 4)]
    {
        let w = if transposed { format!("bf16[{heads}, {width}, 16]") } else { format!("bf16[16, {heads}, {width}]") };
        let [c, s] = tables((width - kept) / 2);
        let args = ["bf16[B, T, 16]", &w, &c, &s, &format!("bf16[{heads}, {width}]")];
        let build = |b: &mut Builder, a: &[Value]| {
            let q = b.contract(if transposed { "btd,hkd->bthk" } else { "btd,dhk->bthk" }, a[0], a[1]);
            let shape = b.func.ty(q).shape.clone();
            let bias = b.broadcast(a[4], &shape, &[2, 3]);
            let q = b.add(q, bias);
            (Vec::new(), vec![rotated(b, q, [a[2], a[3]], kept)])
        };
        let kernels = of_products(&args, &[("B", 2), ("T", t)], &build).expect("it has a kernel");
        assert_eq!(kernels.iter().map(names).collect::<Vec<_>>(), [["a", "b", "z0", "z1", "z2", "y"]], "{args:?}");
    }
    // The product is wanted besides, and what is widened is multiplied as it is; heads that each have rows of their own.
    let args = ["bf16[B, T, 3, 16]", "bf16[3, 16, 32]", "f32[T, 16]", "f32[T, 16]"];
    let build = |b: &mut Builder, a: &[Value]| {
        let (x, w) = (b.cast(a[0], F32), b.cast(a[1], F32));
        let q = b.contract("bthd,hdk->bthk", x, w);
        let y = rotated(b, q, [a[2], a[3]], 0);
        (Vec::new(), vec![b.cast(y, BF16), q])
    };
    let kernels = of_products(&args, BT, &build).expect("it has a kernel");
    assert_eq!(kernels.iter().map(names).collect::<Vec<_>>(), [["a", "b", "z0", "z1", "y0", "y1"]]);
}

#[test]
fn columns_that_no_kernel_maps_with_others_are_taken_apart() {
    // Halves of four columns, heads of which no tile has whole ones, operands without tensor cores, rows for columns, and a slice of what is not computed.
    for (way, (dtype, width)) in [("bf16", 8), ("bf16", 80), ("f32", 16), ("bf16", 16), ("bf16", 16)].into_iter().enumerate() {
        let rows = if way == 3 { format!("{dtype}[3, {width}, 16]") } else { format!("{dtype}[16, 3, {width}]") };
        let half = format!("f32[T, {}]", width / 2);
        let args = [&format!("{dtype}[B, T, 16]"), &rows, &half, &half, &format!("f32[B, T, 3, {}]", width)];
        let kernels = of_products(&args.map(|s| s.as_str()), BT, &|b, a| {
            let q = match way {
                3 => b.contract("hkd,btd->bthk", a[1], a[0]),
                _ => b.contract("btd,dhk->bthk", a[0], a[1]),
            };
            let y = rotated(b, q, [a[2], a[3]], 0);
            if way < 4 {
                return (Vec::new(), vec![y]);
            }
            let columns = |start: i64| Op::Slice { axis: 3, start: Dim::from(start), len: Dim::from(8), step: 1 };
            let [low, high] = [0, 8].map(|start| b.op(columns(start), &[a[4]]));
            let turned = b.op(Op::Concat(3), &[high, low]);
            let turned = b.cast(turned, BF16);
            (Vec::new(), vec![b.add(y, turned)])
        });
        assert!(kernels.is_none(), "{way}");
    }
}

#[test]
fn mapped_products_are_added_where_a_gradient_is() {
    // Of so few terms that no product is taken in parts. In a loop the turn's part of a stack is added to; a sum that replaces an argument is computed in its place, if nothing else reads that there.
    let products = |f: &Func| {
        compare(f.clone(), BT);
        let module = Module { name: "m".into(), params: Vec::new(), funcs: vec![f.clone()] };
        let lowered = lower::lower(&module, lower::Options { fuse: true, parts: true, products: true }).expect("it lowers");
        lowered
            .kernels
            .iter()
            .map(|k| k.buffers.iter().map(|b| format!("{} {:?}", b.name, b.access)).collect::<Vec<_>>())
            .collect::<Vec<_>>()
    };
    let mut body = Func::new("body");
    let (x, w) = (body.arg("x", Role::Inner, ty("f32[5, 4]")), body.arg("dy", Role::Inner, ty("f32[5, 6]")));
    let mut b = Builder::new(&mut body);
    let dw = b.contract("bi,bj->ij", x, w);
    let wide = b.map(MapFn::Tanh, &[dw]);
    let y = outlined(&mut b, &[dw, wide], &[wide])[0];
    body.output("dw", Role::Inner, y);
    graph::passes::prune_dead(&mut body);
    let mut f = Func::new("f");
    let g = f.arg("g", Role::Grad, ty("f32[3, 4, 6]"));
    let xs = ["f32[3, 5, 4]", "f32[3, 5, 6]"].map(|t| f.arg(t, Role::Input, ty(t)));
    let mut b = Builder::new(&mut f);
    let dw = b.op(Op::Repeat(Box::new(Repeat { count: 3, carried: 0, constant: 0, reverse: true, body })), &xs);
    let next = b.add(g, dw);
    f.output("g", Role::Grad, next);
    assert_eq!(products(&f), [["a Read", "b Read", "y ReadWrite"]]);

    for turned in [false, true] {
        let mut f = Func::new("f");
        let g = f.arg("g", Role::Grad, ty("f32[6, 6]"));
        let x = ["x", "y"].map(|n| f.arg(n, Role::Input, ty("f32[5, 6]")));
        let mut b = Builder::new(&mut f);
        let (dw, old) = (b.contract("bi,bj->ij", x[0], x[1]), if turned { b.transpose(g, &[1, 0]) } else { g });
        let wide = b.map(MapFn::Tanh, &[dw]);
        let sum = b.add(old, wide);
        let sum = outlined(&mut b, &[dw, wide, sum], &[sum])[0];
        f.output("g", Role::Grad, sum);
        graph::passes::prune_dead(&mut f);
        let wanted = if turned { &["a Read", "b Read", "z0 Read", "y Write"][..] } else { &["a Read", "b Read", "y ReadWrite"] };
        assert_eq!(products(&f)[0], wanted);
    }
}

#[test]
fn a_product_of_what_it_would_be_added_to_is_computed_aside() {
    let mut f = Func::new("f");
    let w = f.arg("w", Role::Grad, ty("f32[20, 20]"));
    let mut b = Builder::new(&mut f);
    let square = b.contract("ij,jk->ik", w, w);
    let next = b.add(w, square);
    f.output("w", Role::Grad, next);
    compare(f, &[]);
}

#[test]
fn outer_products_of_experts_are_added_where_a_gradient_is() {
    let mut f = Func::new("f");
    let g = f.arg("g", Role::Grad, ty("bf16[3, 16, 24]"));
    let args = [("x", "bf16[N, 16]"), ("y", "bf16[N, 24]"), ("choice", "i32[N, 1]")];
    let [x, y, choice] = args.map(|(n, t)| f.arg(n, Role::Input, ty(t)));
    let mut b = Builder::new(&mut f);
    let route = b.node(Op::Route { groups: 3 }, &[choice]);
    let dw = b.op(Op::GroupedOuter, &[x, y, route[0]]);
    let next = b.add(g, dw);
    f.output("g", Role::Grad, next);
    compare(f.clone(), &[("N", 21)]);
    let module = Module { name: "m".into(), params: Vec::new(), funcs: vec![f] };
    let lowered = lower::lower(&module, lower::Options { fuse: true, parts: true, products: true }).expect("it lowers");
    let outer: Vec<_> = lowered.kernels.iter().filter(|k| names(k) == ["x", "y", "offsets", "w"]).collect();
    assert!(matches!(&outer[..], [k] if k.buffers[3].access == crate::Access::ReadWrite), "{outer:?}");
}

#[test]
fn dense_products_of_views_and_of_nothing_are_mapped() {
    let d = |s: &str| s.parse::<Dim>().expect("a dim");
    // Rows of a part of the positions, matrices that lie in two ways: one is copied, or both.
    let build = |b: &mut Builder, a: &[Value]| {
        let x = b.op(Op::Slice { axis: 1, start: d("1"), len: d("T - 1"), step: 1 }, &a[..1]);
        let turned = b.transpose(a[2], &[1, 0]);
        let z = b.op(Op::Slice { axis: 1, start: d("0"), len: d("T - 1"), step: 1 }, &a[3..]);
        let (g, u) = (b.contract("btd,df->btf", x, a[1]), b.contract("btd,df->btf", x, turned));
        let h = b.map(MapFn::Swiglu, &[g, u]);
        (vec![x, turned, z], vec![b.add(h, z)])
    };
    for t in [1, 2, 70] {
        let args = ["bf16[B, T, 16]", "bf16[16, 24]", "bf16[24, 16]", "bf16[B, T, 24]"];
        let kernels = of_products(&args, &[("B", 2), ("T", t)], &build).expect("it has a kernel");
        assert!(
            kernels.iter().any(|k| names(k) == ["a", "b0", "b1", "z0", "y"]),
            "{:?}",
            kernels.iter().map(names).collect::<Vec<_>>()
        );
    }
    // No terms, and no rows.
    for args in [["f32[T, 0]", "f32[0, 24]"], ["f32[0, 16]", "f32[16, 24]"]] {
        let build = |b: &mut Builder, a: &[Value]| {
            let y = b.contract("td,df->tf", a[0], a[1]);
            (Vec::new(), vec![b.map(MapFn::Cos, &[y])])
        };
        assert!(of_products(&args, BT, &build).is_some());
    }
}

#[test]
fn regions_of_other_dense_products_are_taken_apart() {
    let args = ["bf16[T, 16]", "bf16[T, 16]", "bf16[16, 16]", "bf16[16, 16]", "bf16[24, 16]", "bf16[64, 600]", "bf16[64, 24]"];
    for way in 0..7 {
        let kernels = of_products(&args, &[("T", 5)], &|b, a| {
            let (x, w) = (a[0], a[2]);
            let g = b.contract("td,df->tf", x, w);
            let y = match way {
                // Another's rows, an operand that is mapped, a sum of another order, one more product, a product of the product.
                0 => b.contract("td,df->tf", a[1], a[3]),
                1 => {
                    let w = b.map(MapFn::Exp, &[a[3]]);
                    b.contract("td,df->tf", x, w)
                }
                2 => b.contract("td,fd->tf", x, a[3]),
                3 => {
                    let (u, v) = (b.contract("td,df->tf", x, a[3]), b.contract("td,df->tf", x, a[2]));
                    b.add(u, v)
                }
                4 => b.contract("td,df->tf", g, a[3]),
                // What is summed in parts, a result of another shape.
                5 => {
                    let y = b.contract("kf,kd->df", a[5], a[6]);
                    return (Vec::new(), vec![b.map(MapFn::Abs, &[y])]);
                }
                _ => {
                    let y = b.map(MapFn::Abs, &[g]);
                    return (Vec::new(), vec![b.transpose(y, &[1, 0])]);
                }
            };
            (Vec::new(), vec![b.add(g, y)])
        });
        // Equal products are one; three are too many all the same.
        assert!(kernels.is_none(), "{way}");
    }
}

#[test]
fn a_router_is_one_kernel() {
    // Biased scores in groups, the best group of two, the best experts of it, weights that are turned and normalised; `turned` scores are a view.
    for (dtype, turned) in [("f32", false), ("f32", true), ("bf16", false)] {
        let scores = if turned { format!("{dtype}[6, N]") } else { format!("{dtype}[N, 6]") };
        let bias = format!("{dtype}[6]");
        let l = check(&[&scores, &bias], &[("N", 37)], |b, a| {
            let x = if turned { b.transpose(a[0], &[1, 0]) } else { a[0] };
            let all = b.func.ty(x).shape.clone();
            let d = Dim::from;
            let bias = b.broadcast(a[1], &all, &[1]);
            let s = b.add(x, bias);
            let groups = b.reshape(s, &[all[0].clone(), d(2), d(3)]);
            let best = b.op(Op::TopK(2), &[groups]);
            let two = b.op(Op::Gather { batch: 2 }, &[groups, best]);
            let sums = b.sum(two, &[2]);
            let group = b.op(Op::TopK(1), &[sums]);
            let first = b.op(Op::Iota(d(2)), &[]);
            let first = b.broadcast(first, &[all[0].clone(), d(2)], &[1]);
            let wide = b.reshape(group, &all[..1]);
            let wide = b.broadcast(wide, &[all[0].clone(), d(2)], &[0]);
            let kept = b.map(MapFn::Eq, &[first, wide]);
            let kept3 = b.broadcast(kept, &[all[0].clone(), d(2), d(3)], &[0, 1]);
            let never = b.full_like(groups, f64::NEG_INFINITY);
            let left = b.map(MapFn::Select, &[kept3, groups, never]);
            let back = b.reshape(left, &all);
            // One more than there are: the last is none.
            let chosen = b.op(Op::TopK(4), &[back]);
            let w = b.op(Op::Gather { batch: 1 }, &[s, chosen]);
            let square = b.mul(w, w);
            let total = b.sum(square, &[1]);
            let total = b.broadcast(total, &[all[0].clone(), d(4)], &[0]);
            let w = b.map(MapFn::Sub, &[w, total]);
            let turned = b.reshape(w, &[all[0].clone(), d(2), d(2)]);
            let turned = b.transpose(turned, &[0, 2, 1]);
            let part = b.op(Op::Slice { axis: 2, start: d(1), len: d(1), step: 1 }, &[turned]);
            let part = b.map(MapFn::Neg, &[part]);
            let nodes: Vec<Value> =
                (a.len()..b.func.nodes.len()).map(|i| Value { node: graph::NodeId(i as u32), index: 0 }).collect();
            let inside: Vec<Value> = nodes.into_iter().filter(|v| *v != x).collect();
            let given = outlined_as(Form::Rows, b, &inside, &[chosen, w, part, kept]);
            let Op::Fused(region) = &b.func.def(given[0]).op else { panic!("a region") };
            // A team's, too.
            assert!(lower::has_kernel(region, true), "{dtype}");
            given
        });
        let of: Vec<&str> = l.kernels.iter().map(|k| k.name.as_str()).filter(|n| !n.contains("map")).collect();
        assert_eq!(of, ["host_rows_0"], "{dtype} {turned}");
    }
}

#[test]
fn a_gate_and_a_sum_of_branches_are_in_the_kernel_of_one() {
    // What the region gives beside the sum, the domain, the dtype, and whether its result is cast.
    let ways = [
        (vec![], "causal & window(5)", BF16, false),
        (vec![0], "causal", BF16, false),
        (vec![1, 0], "causal & blocks(0, 32)", BF16, false),
        (vec![1], "causal & window(7)", BF16, true),
        (vec![0], "causal & window(3)", F32, false),
        (vec![1], "blocks(0, 32)", F32, false),
    ];
    for (given, domain, dtype, wide) in ways {
        let of = |shape: &str| ty(&format!("{dtype}[{shape}]"));
        let mut f = Func::new("f");
        let types =
            [of("B, T, 4, 16"), of("B, T, 2, 16"), of("B, T, 2, 32"), of("B, T, 4, 3"), of("B, T, 4, 32"), of("B, T, 4, 32")];
        let a: Vec<Value> = types.iter().enumerate().map(|(i, t)| f.arg(&format!("a{i}"), Role::Input, t.clone())).collect();
        let domain: graph::op::Domain = domain.parse().expect("a domain");
        let mut operands = a[..3].to_vec();
        operands.extend((0..domain.num_operands()).map(|_| f.arg("list", Role::Input, ty("i32[B, T, 2, 2]"))));
        let mut b = Builder::new(&mut f);
        let attend = b.node(Op::Attend(Attend { domain, scale: Scalar::new(0.25) }), &operands);
        let shape = b.func.ty(a[4]).shape.clone();
        let gate = |b: &mut Builder, i: i64| {
            let part = b.op(Op::Slice { axis: 3, start: Dim::from(i), len: Dim::from(1), step: 1 }, &[a[3]]);
            let part = b.reshape(part, &shape[..3]);
            b.broadcast(part, &shape, &[0, 1, 2])
        };
        let (first, last) = (gate(&mut b, 0), gate(&mut b, 2));
        let (one, two) = (b.mul(first, a[4]), b.mul(last, attend[0]));
        let sum = b.add(one, two);
        let sum = b.add(sum, a[5]);
        let sum = if wide { b.cast(sum, F32) } else { sum };
        let inside: Vec<Value> =
            (attend[0].node.0..b.func.nodes.len() as u32).map(|i| Value { node: graph::NodeId(i), index: 0 }).collect();
        let views = |v: &Value, b: &Builder| matches!(b.func.def(*v).op, Op::Slice { .. } | Op::Reshape(_));
        let inside: Vec<Value> = inside.into_iter().filter(|v| !views(v, &b)).collect();
        let results: Vec<Value> = [sum].into_iter().chain(given.iter().map(|i| attend[*i])).collect();
        let results = outlined_as(Form::Attend, &mut b, &inside, &results);
        results.into_iter().enumerate().for_each(|(i, v)| f.output(&format!("o{i}"), Role::Result, v));
        graph::passes::prune_dead(&mut f);
        compare(f.clone(), &[("B", 2), ("T", 37)]);
        let module = Module { name: "m".into(), params: Vec::new(), funcs: vec![f] };
        let lowered = lower::lower(&module, lower::Options { fuse: true, parts: true, products: true }).expect("it lowers");
        let of: Vec<_> = lowered.kernels.iter().filter(|k| !k.name.contains("union")).map(names).collect();
        let own = [&["z0", "z1", "z2", "z3"][..], if given.contains(&0) { &["o"] } else { &[] }, &["lse", "y"]].concat();
        assert_eq!(of.len(), 1, "one kernel, and a list's union: {of:?}");
        assert!(of[0].ends_with(&own), "{of:?}");
    }
}

#[test]
fn branches_of_an_only_query_are_joined_by_the_last() {
    // The first branch's result is asked for too; the chosen blocks; the dtype.
    for (asked, chosen, dtype) in [(false, true, BF16), (true, true, F32), (false, false, F32)] {
        let of = |shape: &str| ty(&format!("{dtype}[{shape}]"));
        let mut f = Func::new("f");
        let types = [of("B, 1, 4, 16"), of("B, S, 2, 16"), of("B, S, 2, 32"), of("B, 1, 4"), ty("f32[B, 1, 2, N]")];
        let a: Vec<Value> = types.iter().enumerate().map(|(i, t)| f.arg(&format!("a{i}"), Role::Input, t.clone())).collect();
        let list = f.arg("list", Role::Input, ty("i32[B, 1, 2, 3]"));
        let mut b = Builder::new(&mut f);
        let best = b.op(Op::TopK(3), &[a[4]]);
        let attend = |b: &mut Builder, domain: &str, operands: &[Value]| {
            let attend = Attend { domain: domain.parse().expect("a domain"), scale: Scalar::new(0.25) };
            b.node(Op::Attend(attend), &[&a[..3], operands].concat())
        };
        let near = attend(&mut b, "causal & window(300)", &[]);
        let far = attend(&mut b, "causal & blocks(0, 64)", &[if chosen { best } else { list }]);
        let shape = b.func.ty(near[0]).shape.clone();
        let gate = b.broadcast(a[3], &shape, &[0, 1, 2]);
        let sum = b.mul(gate, near[0]);
        let sum = b.add(sum, far[0]);
        let inside: Vec<Value> =
            (far[0].node.0..b.func.nodes.len() as u32).map(|i| Value { node: graph::NodeId(i), index: 0 }).collect();
        let sum = outlined_as(Form::Attend, &mut b, &inside, &[sum])[0];
        f.output("sum", Role::Result, sum);
        if asked {
            f.output("near", Role::Result, near[0]);
        }
        graph::passes::prune_dead(&mut f);
        compare(f.clone(), &[("B", 2), ("S", 401), ("N", 7)]);
        let of: Vec<_> = on_gpu(&f).kernels.iter().map(|k| k.name.trim_start_matches("host_").to_string()).collect();
        let of: Vec<&str> = of.iter().map(|n| n.trim_end_matches(|c: char| c.is_ascii_digit() || c == '_')).collect();
        let want = match (asked, chosen) {
            // Two branches are one launch.
            (false, true) => vec!["topk_parts", "topk_join", "attend_part", "attend_merge"],
            (true, true) => vec!["topk_parts", "topk_join", "attend_part", "attend_merge", "attend_part", "attend_merge"],
            // A list that may have a block twice is not in parts.
            _ => vec!["attend_part", "attend_merge", "attend_union", "attend"],
        };
        assert_eq!(of, want);
        if !asked && chosen {
            // The launch of two branches has the work of both, the keys that an only query sees.
            let lowered = on_gpu(&f);
            let work = |s: &library::Step| match s {
                library::Step::Launch { kernel, work, .. } if lowered.kernels[*kernel].name.contains("attend_") => {
                    Some(work.clone())
                }
                _ => None,
            };
            let work: Vec<_> = lowered.entries[0].steps.iter().filter_map(work).collect();
            let sizes = [("B".into(), 1), ("S".into(), 1 << 20), ("N".into(), 7)].into_iter().collect();
            // So has the one that joins them.
            assert_eq!((work.len(), &work[0]), (2, &work[1]));
            let job = work[0].at(&sizes).expect("all dims have values");
            assert_eq!(&job.shape[..], &[2, 2, 300 + 192, 300 + 192, 16, 32]);
        }
    }
}

#[test]
fn gated_gradients_of_attention_need_none_of_its_results() {
    let mut f = Func::new("f");
    let types = ["f32[B, T, 4, 16]", "f32[B, T, 2, 16]", "f32[B, T, 2, 32]", "f32[B, T, 4, 32]"];
    let gates = ["f32[B, T, 4]"; 3];
    let a: Vec<Value> =
        types.iter().chain(&gates).enumerate().map(|(i, t)| f.arg(&format!("a{i}"), Role::Input, ty(t))).collect();
    let mut b = Builder::new(&mut f);
    let shape = b.func.ty(a[3]).shape.clone();
    let domains = ["causal", "causal & window(5)", "causal & window(9)"];
    let attends: Vec<(Attend, Vec<Value>)> = domains
        .iter()
        .map(|domain| {
            let attend = Attend { domain: domain.parse().expect("a domain"), scale: Scalar::new(0.25) };
            let results = b.node(Op::Attend(attend.clone()), &a[..3]);
            (attend, results)
        })
        .collect();
    // Gates that are never negative, one of them 0 here and there, and one that is: this is no part of the weights.
    let zero = b.full_like(a[4], 0.0);
    let gates = [b.map(MapFn::Sigmoid, &[a[4]]), b.map(MapFn::Max, &[a[5], zero]), a[6]];
    let none = b.full_like(a[4], 0.0);
    let (mut outputs, mut sum) = (Vec::new(), None);
    for ((attend, results), gate) in attends.into_iter().zip(&gates) {
        let wide = b.broadcast(*gate, &shape, &[0, 1, 2]);
        let d_o = b.mul(a[3], wide);
        let grads = b.node(Op::AttendGrad(attend), &[&a[..3], &results, &[d_o, none]].concat());
        sum = Some(sum.map_or(grads[0], |sum| b.add(sum, grads[0])));
        let of_gate = b.mul(a[3], results[0]);
        outputs.extend([grads[1], grads[2], b.sum(of_gate, &[3])]);
    }
    outputs.extend(sum);
    outputs.into_iter().enumerate().for_each(|(i, v)| f.output(&format!("o{i}"), Role::Result, v));
    compare(f.clone(), &[("B", 2), ("T", 37)]);
    let lowered = on_gpu(&f);
    // The results are in no memory: what gradients take of them is summed where they are; the first two gradients of queries are summed before the third is there.
    let steps = &lowered.entries[0].steps;
    let kernels = steps
        .iter()
        .filter_map(|s| if let library::Step::Launch { kernel, .. } = s { Some(&lowered.kernels[*kernel]) } else { None });
    let of: Vec<&str> =
        kernels.map(|k| k.name.trim_start_matches("host_").trim_end_matches(|c: char| c.is_ascii_digit())).collect();
    let grad = ["attend_grad_rows_", "attend_grad_keys_", "attend_grad_queries_"];
    // Logs of gates are taken off the sums of exponentials, a number a row.
    let logs = ["map_"];
    let maps = ["map_"; 2];
    let want = [&["attend_"; 3][..], &maps, &grad, &maps, &grad, &maps, &grad, &logs].concat();
    assert_eq!(of, want);
    // What is shared is read by two as it is.
    let upstream: Vec<usize> = steps
        .iter()
        .filter_map(|s| match s {
            library::Step::Launch { kernel, buffers, .. } if lowered.kernels[*kernel].name.contains("grad_keys") => {
                Some(buffers[3].buffer)
            }
            _ => None,
        })
        .collect();
    assert!(upstream[0] == upstream[1] && upstream[1] != upstream[2], "{upstream:?}");
    let rows = lowered.kernels.iter().filter(|k| k.name.contains("grad_rows"));
    assert!(rows.map(names).all(|names| names == ["lse", "d_lse", "l", "delta"]));
}

/// The last kernel of an attention's gradient adds that of queries to another's, in its memory; and gradients over lists come first.
#[test]
fn gradients_of_queries_are_added_where_they_are() {
    let types = ["T, 16, 16", "T, 2, 16", "T, 2, 16", "T, 16, 16"];
    // The domains, the dtype, and what else there is.
    let build = |domains: &[&str], dtype: base::DType, way: &str| {
        let args: Vec<String> = types.iter().map(|t| format!("{dtype}[B, {t}]")).chain(["i32[B, T, 2, 2]".into()]).collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        func(&args, |b, a| {
            let (mut sum, mut outputs): (Option<Value>, Vec<Value>) = (None, Vec::new());
            for (i, domain) in domains.iter().enumerate() {
                let attend = Attend { domain: domain.parse().expect("a domain"), scale: Scalar::new(0.25) };
                let lists = if domain.contains("blocks") { &a[4..] } else { &[] };
                let of = b.node(Op::Attend(attend.clone()), &[&a[..3], lists].concat());
                let none = b.full_like(of[1], 0.0);
                let grads = b.node(Op::AttendGrad(attend), &[&a[..3], &of, &[a[3], none], lists].concat());
                outputs.extend(&grads[1..]);
                if i == 0 && way == "read by another" {
                    outputs.push(b.map(MapFn::Abs, &[grads[0]]));
                }
                if i == 1 && way == "an output" {
                    outputs.push(grads[0]);
                }
                sum = Some(match sum {
                    Some(sum) if way == "twice" => {
                        let twice = b.add(grads[0], grads[0]);
                        b.add(sum, twice)
                    }
                    Some(sum) if i % 2 == 0 => b.add(sum, grads[0]),
                    Some(sum) => b.add(grads[0], sum),
                    None => grads[0],
                });
            }
            let sum = sum.expect("there is a gradient");
            outputs.push(b.map(MapFn::Neg, &[sum]));
            outputs
        })
    };
    // Of each kernel of dq, whether it adds, and whether it reads lists.
    let kernels = |f: &Func| {
        let lowered = on_gpu(f);
        let of = |s: &library::Step| match s {
            library::Step::Launch { kernel, .. } if lowered.kernels[*kernel].name.contains("grad_queries") => {
                let k = &lowered.kernels[*kernel];
                let dq = k.buffers.last().expect("dq");
                Some((dq.access == crate::ir::Access::ReadWrite, names(k).contains(&"d0")))
            }
            _ => None,
        };
        lowered.entries[0].steps.iter().filter_map(of).collect::<Vec<_>>()
    };
    let three = ["causal & window(5)", "causal & window(9)", "causal"];
    for (domains, dtype, want) in [
        (&three[..], F32, vec![(false, false), (true, false), (true, false)]),
        (&three[..2], BF16, vec![(false, false), (true, false)]),
        (&["causal", "causal & blocks(0, 16)"], F32, vec![(false, true), (true, false)]),
    ] {
        let f = build(domains, dtype, "");
        compare(f.clone(), &[("B", 2), ("T", 17)]);
        assert_eq!(kernels(&f), want, "{domains:?} {dtype}");
    }
    for way in ["read by another", "an output", "twice"] {
        let f = build(&three[..2], F32, way);
        compare(f.clone(), &[("B", 1), ("T", 5)]);
        assert_eq!(kernels(&f), [(false, false); 2], "{way}");
    }
}

/// What is computed once more in one body has a number that means something else in the next.
#[test]
fn gated_gradients_of_attention_in_two_loops() {
    let types = ["f32[B, T, 2, 16]", "f32[B, T, 2, 16]", "f32[B, T, 2, 16]", "f32[B, T, 2]"];
    let body = |light: MapFn| {
        let mut body = Func::new("body");
        let a: Vec<Value> = types.iter().enumerate().map(|(i, t)| body.arg(&format!("a{i}"), Role::Inner, ty(t))).collect();
        let mut b = Builder::new(&mut body);
        let attend = Attend { domain: "causal".parse().expect("a domain"), scale: Scalar::new(0.25) };
        let results = b.node(Op::Attend(attend.clone()), &a[..3]);
        let (x, gate) = (b.map(light, &[a[0]]), b.map(MapFn::Sigmoid, &[a[3]]));
        let shape = b.func.ty(x).shape.clone();
        let gate = b.broadcast(gate, &shape, &[0, 1, 2]);
        let (d_o, none) = (b.mul(x, gate), b.full_like(a[3], 0.0));
        let grads = b.node(Op::AttendGrad(attend), &[&a[..3], &results, &[d_o, none]].concat());
        body.output("next", Role::Inner, grads[0]);
        Repeat { count: 2, carried: 1, constant: 3, reverse: false, body }
    };
    for second in [MapFn::Neg, MapFn::Abs] {
        let mut f = Func::new("f");
        let a: Vec<Value> = types.iter().enumerate().map(|(i, t)| f.arg(&format!("a{i}"), Role::Input, ty(t))).collect();
        let mut x = a[0];
        for r in [body(MapFn::Neg), body(second)] {
            x = Builder::new(&mut f).node(Op::Repeat(Box::new(r)), &[x, a[1], a[2], a[3]])[0];
        }
        f.output("last", Role::Result, x);
        compare(f, &[("B", 1), ("T", 9)]);
    }
}

/// A warp chooses among few numbers, in the order of floats.
#[test]
fn a_choice_among_many_is_no_warps() {
    for (scores, few) in [("f32[N, 512]", true), ("f32[N, 513]", false), ("f64[N, 6]", false)] {
        let mut f = Func::new("f");
        let x = f.arg("x", Role::Input, ty(scores));
        let mut b = Builder::new(&mut f);
        let y = b.map(MapFn::Neg, &[x]);
        let best = b.op(Op::TopK(3), &[y]);
        let w = b.op(Op::Gather { batch: 1 }, &[y, best]);
        let given = outlined_as(Form::Rows, &mut b, &[y, best, w], &[best, w]);
        ["best", "w"].iter().zip(&given).for_each(|(name, v)| f.output(name, Role::Result, *v));
        graph::passes::prune_dead(&mut f);
        let Op::Fused(region) = &f.def(f.outputs[0].value).op else { panic!("a region") };
        assert_eq!([false, true].map(|gpu| lower::has_kernel(region, gpu)), [true, few], "{scores}");
        compare(f, &[("N", 3)]);
    }
}

#[test]
fn regions_in_which_rows_meet_are_taken_apart() {
    for way in 0..4 {
        let mut f = Func::new("f");
        let a = ["f32[N, 6]", "f32[N]"].map(|t| f.arg(t, Role::Input, ty(t)));
        let mut b = Builder::new(&mut f);
        let d = Dim::from;
        let all = b.func.ty(a[0]).shape.clone();
        // A sum over rows, a value that rows have no place in, scores that are turned, and more numbers than scratch has.
        let y = match way {
            0 => b.sum(a[0], &[0]),
            1 => {
                let y = b.transpose(a[0], &[1, 0]);
                b.map(MapFn::Neg, &[y])
            }
            2 => b.reshape(a[0], &[all[0].clone() * d(2), d(3)]),
            _ => b.broadcast(a[1], &[all[0].clone(), d(5000)], &[0]),
        };
        let y = b.map(MapFn::Neg, &[y]);
        let y = if way == 0 { b.broadcast(y, &all, &[1]) } else { y };
        let nodes: Vec<Value> = (2..b.func.nodes.len()).map(|i| Value { node: graph::NodeId(i as u32), index: 0 }).collect();
        let y = outlined_as(Form::Rows, &mut b, &nodes, &[y])[0];
        f.output("y", Role::Result, y);
        graph::passes::prune_dead(&mut f);
        let Op::Fused(region) = &f.def(y_of(&f)).op else { panic!("a region") };
        assert!(!lower::has_kernel(region, false), "{way}");
        compare(f, &[("N", 5)]);
    }
}

/// The only result.
fn y_of(f: &Func) -> Value {
    f.outputs[0].value
}

#[test]
fn products_of_what_is_only_widened_take_it_as_it_is() {
    let mut f = Func::new("f");
    let values: Vec<Value> =
        ["bf16[N, 16]", "bf16[24, 16]"].iter().enumerate().map(|(i, t)| f.arg(&format!("a{i}"), Role::Input, ty(t))).collect();
    let mut b = Builder::new(&mut f);
    let w = b.cast(values[1], F32);
    let w = b.transpose(w, &[1, 0]);
    let x = b.map(MapFn::Abs, &[values[0]]);
    let x = b.cast(x, F32);
    let y = b.contract("nk,kf->nf", x, w);
    f.output("y", Role::Result, y);
    compare(f.clone(), &[("N", 5)]);
    let module = Module { name: "m".into(), params: Vec::new(), funcs: vec![f] };
    let lowered = lower::lower(&module, lower::Options { fuse: true, parts: true, products: true }).expect("it lowers");
    let dtypes: Vec<Vec<base::DType>> = lowered.kernels.iter().map(|k| k.buffers.iter().map(|b| b.dtype).collect()).collect();
    assert_eq!(dtypes, [vec![BF16, BF16], vec![BF16, BF16, F32]]);
}

#[test]
fn products_of_tf32_have_neighbours_along_the_summed_axis() {
    // A product and its two gradients, as `x·wᵀ` and as `x·w`: what does not lie so is copied, turned.
    for (w, forward) in [("f32[24, 16]", "btk,fk->btf"), ("f32[16, 24]", "btk,kf->btf")] {
        let f = func(&["f32[B, T, 16]", w, "f32[B, T, 24]"], |b, a| {
            let wide: Vec<Value> = a
                .iter()
                .map(|v| {
                    let narrow = b.cast(*v, TF32);
                    b.cast(narrow, F32)
                })
                .collect();
            let (x, w, dy) = (wide[0], wide[1], wide[2]);
            let turned = forward.contains("fk");
            let (dx, dw) = if turned { ("btf,fk->btk", "btf,btk->fk") } else { ("btf,kf->btk", "btk,btf->kf") };
            let (left, right) = if turned { (dy, x) } else { (x, dy) };
            let y = b.contract(forward, x, w);
            vec![y, b.contract(dx, dy, w), b.contract(dw, left, right)]
        });
        compare(f.clone(), &[("B", 2), ("T", 4)]);
        let lowered = on_gpu(&f);
        let products: Vec<_> = lowered.kernels.iter().filter(|k| k.name.contains("product")).collect();
        assert!(products.len() == 3 && products.iter().all(|k| k.scratch.iter().filter(|s| s.dtype == TF32).count() == 2));
        // Each brings rectangles.
        let brings = |k: &crate::Kernel| format!("{:?}", k.body).matches("Copy(").count();
        assert!(products.iter().all(|k| brings(k) >= 2));
        let turned = lowered.kernels.iter().filter(|k| k.buffers.len() == 2 && k.buffers.iter().all(|b| b.dtype == TF32));
        assert_eq!(turned.count(), 3);
    }
}

#[test]
fn sums_of_many_terms_are_taken_in_parts() {
    // A weight's gradient that is added to: few tiles, terms by the number of rows.
    let mut f = Func::new("f");
    let [x, dy] = ["bf16[T, 40]", "bf16[T, 48]"].map(ty);
    let (x, dy) = (f.arg("x", Role::Input, x), f.arg("dy", Role::Input, dy));
    let old = f.arg("w", Role::Grad, ty("bf16[40, 48]"));
    let mut b = Builder::new(&mut f);
    let dw = b.contract("tk,tf->kf", x, dy);
    let sum = b.add(dw, old);
    f.output("w", Role::Grad, sum);
    for t in [3, 64, 200] {
        compare(f.clone(), &[("T", t)]);
    }
    let module = Module { name: "m".into(), params: Vec::new(), funcs: vec![f] };
    let lowered = lower::lower(&module, lower::Options { fuse: true, parts: true, products: true }).expect("it lowers");
    assert!(lowered.kernels[0].name.contains("product") && lowered.kernels[0].grid.is(8), "{:?}", lowered.kernels[0].grid);
}

#[test]
fn sums_of_rows_of_few_columns_take_their_neighbours_along() {
    // Columns that lie side by side, that are joined, and that lie apart; of numbers that are rounded once their parts are joined, too.
    for (way, dtype, parts) in [(0, "f32", 512), (0, "bf16", 512), (1, "f32", 512), (1, "bf16", 512), (2, "bf16", 512 / 4)] {
        let mut f = Func::new("f");
        let shape = ["B, T, 16, 3", "B, T, 16, 1", "B, T, 4, 64"][way];
        let [x, y] = ["x", "y"].map(|n| f.arg(n, Role::Input, ty(&format!("{dtype}[{shape}]"))));
        let mut b = Builder::new(&mut f);
        let mut terms = b.mul(x, y);
        if way == 1 {
            let pad = |b: &mut Builder, x: Value, low: i64| {
                b.op(Op::Pad { axis: 3, low: Dim::from(low), high: Dim::from(2 - low), value: Scalar::new(0.0) }, &[x])
            };
            let (first, last) = (pad(&mut b, terms, 0), pad(&mut b, x, 2));
            terms = b.add(first, last);
        }
        let mut axes = vec![0, 1];
        if way == 2 {
            terms = b.op(Op::Transpose(vec![0, 2, 1, 3]), &[terms]);
            axes = vec![0, 2];
        }
        let sum = b.op(Op::Reduce(ReduceFn::Sum, axes), &[terms]);
        f.output("sum", Role::Result, sum);
        for (batch, t) in [(1, 3), (2, 70), (1, 1)] {
            compare(f.clone(), &[("B", batch), ("T", t)]);
        }
        let found = on_gpu(&f).kernels;
        let grids: Vec<Option<i64>> = found.iter().map(|k| k.grid.known()).collect();
        assert_eq!((found.len(), grids[0]), (2, Some(if way == 2 { 4 * parts } else { parts })), "way {way}: {grids:?}");
    }
}

#[test]
fn long_sums_that_a_short_one_takes_are_stored() {
    // As in the gradient of weights that are normalised: each of eight would take all eight again.
    let f = func(&["f32[N, 8, 200]", "f32[N, 200]", "f32[N, 8]"], |b, a| {
        let shape = b.func.ty(a[0]).shape.clone();
        let y = b.broadcast(a[1], &shape, &[0, 2]);
        let terms = b.mul(a[0], y);
        let long = b.op(Op::Reduce(ReduceFn::Sum, vec![2]), &[terms]);
        let weighed = b.mul(long, a[2]);
        let short = b.op(Op::Reduce(ReduceFn::Sum, vec![1]), &[weighed]);
        let all = b.broadcast(short, &shape[..2], &[0]);
        vec![b.map(MapFn::Sub, &[long, all])]
    });
    assert_eq!(kernels_of(f, &[("N", 5)]), ["host_map", "host_map"]);
    // A sum of one, as of the heads of a group that has one, takes it once.
    let f = func(&["f32[N, 1, 200]", "f32[N, 1]", "f32[N]"], |b, a| {
        let long = b.op(Op::Reduce(ReduceFn::Sum, vec![2]), &[a[0]]);
        let weighed = b.mul(long, a[1]);
        let short = b.op(Op::Reduce(ReduceFn::Sum, vec![1]), &[weighed]);
        vec![b.map(MapFn::Sub, &[short, a[2]])]
    });
    assert_eq!(kernels_of(f, &[("N", 5)]), ["host_map"]);
}

#[test]
fn a_view_that_several_read_is_no_copy() {
    // Two products read it, once it is stored.
    let l = check(&["f32[N, 12]", "f32[3, 8, 12]", "f32[3, 8, 12]", "i32[N, 1]"], &[("N", 5)], |b, a| {
        let offsets = b.node(Op::Route { groups: 3 }, &[a[3]])[0];
        let shape = b.func.ty(a[0]).shape.clone();
        let blocks = b.reshape(a[0], &[shape[0].clone(), Dim::from(3), Dim::from(4)]);
        let y = b.map(MapFn::Silu, &[blocks]);
        let y = b.reshape(y, &shape);
        [a[1], a[2]].map(|w| b.op(Op::GroupedContract { transposed: true }, &[y, w, offsets])).to_vec()
    });
    assert_eq!(l.entries[0].steps.len(), 4, "{:#?}", l.entries[0].steps);
    // A sum and a map read it, and indices are not divided in either.
    let l = check(&["f32[B, T, 8]"], BT, |b, a| {
        let y = b.map(MapFn::Silu, a);
        let shape = b.func.ty(y).shape.clone();
        let blocks = b.reshape(y, &[shape[0].clone() * shape[1].clone(), Dim::from(2), Dim::from(4)]);
        let max = b.op(Op::Reduce(ReduceFn::Max, vec![0]), &[blocks]);
        vec![b.map(MapFn::Exp, &[blocks]), max]
    });
    assert_eq!(l.entries[0].steps.len(), 3, "{:#?}", l.entries[0].steps);
}

#[test]
fn sums_of_many_rows_by_index_are_sorted_first() {
    // Indices 0, 1, 2 in turn: runs of many tiles, of several, and inside of one; some outside, some results without a row.
    let plain = ["i32[T]", "f32[T, 3]"];
    let of_batches = ["i32[2, T]", "bf16[2, T, 3]"];
    for (args, batch, n, t, spread) in
        [(plain, 0, 2, 200, 1), (of_batches, 1, 150, 40, 1), (plain, 0, 70_000, 9, 30_000), (plain, 0, 5, 0, 1)]
    {
        let mut f = Func::new("f");
        let a = args.map(|of| f.arg(of, Role::Input, ty(of)));
        let b = &mut Builder::new(&mut f);
        let shape = b.func.ty(a[0]).shape.clone();
        let times = b.constant(f64::from(spread), I32);
        let times = b.broadcast(times, &shape, &[]);
        let index = b.mul(a[0], times);
        let sums = b.op(Op::ScatterAdd { batch, n: Dim::from(n) }, &[index, a[1]]);
        f.output("sums", Role::Result, sums);
        compare(f.clone(), &[("T", t)]);
        let l = on_gpu(&f);
        let kernels: Vec<&str> = l.kernels.iter().map(|k| k.name.as_str()).filter(|n| n.contains("scatter")).collect();
        let sorts = |what: &str| kernels.iter().any(|n| n.contains(&format!("scatter_{what}")));
        assert!(["count", "place", "sum", "join"].into_iter().all(sorts), "{kernels:?}");
    }
}

#[test]
fn a_gpu_computes_again_what_is_as_cheap_as_its_memory() {
    // The loss of rows and its gradient: neither exponentials nor differences are stored, in f32 twice as long as what they are made of.
    let l = {
        let mut f = Func::new("f");
        let x = f.arg("x", Role::Input, ty("bf16[T, 40]"));
        let target = f.arg("t", Role::Input, ty("i32[T]"));
        let b = &mut Builder::new(&mut f);
        let wide = b.op(Op::Cast(F32), &[x]);
        let shape = b.func.ty(wide).shape.clone();
        let max = b.op(Op::Reduce(ReduceFn::Max, vec![1]), &[wide]);
        let max = b.broadcast(max, &shape, &[0]);
        let shifted = b.map(MapFn::Sub, &[wide, max]);
        let e = b.map(MapFn::Exp, &[shifted]);
        let sum = b.sum(e, &[1]);
        let log = b.map(MapFn::Log, &[sum]);
        let picked = b.op(Op::Gather { batch: 1 }, &[shifted, target]);
        let loss = b.map(MapFn::Sub, &[log, picked]);
        let sum = b.broadcast(sum, &shape, &[0]);
        let p = b.map(MapFn::Div, &[e, sum]);
        let p = b.op(Op::Cast(BF16), &[p]);
        f.output("loss", Role::Result, loss);
        f.output("p", Role::Result, p);
        compare(f.clone(), &[("T", 6)]);
        let module = Module { name: "m".into(), params: Vec::new(), funcs: vec![f] };
        lower::lower(&module, lower::Options { fuse: true, parts: true, products: true }).expect("it lowers")
    };
    let long = |b: &library::Buffer| b.elems.to_string().contains("40") && b.dtype == F32;
    assert!(!l.entries[0].buffers.iter().any(long), "{:#?}", l.entries[0].buffers);
}

/// What a GPU gets for a function.
fn on_gpu(f: &Func) -> lower::Lowered {
    let module = Module { name: "m".into(), params: Vec::new(), funcs: vec![f.clone()] };
    lower::lower(&module, lower::Options { fuse: true, parts: true, products: true }).expect("it lowers")
}

#[test]
fn an_optimizer_is_one_kernel_on_a_gpu() {
    // Both moments and the parameter, in place; the gradient times a number is read by both and stored nowhere.
    let mut f = Func::new("f");
    let names = ["p", "m", "v"];
    let [p, m, v] = names.map(|n| f.arg(n, Role::Param, ty("f32[N, 6]")));
    let g = f.arg("g", Role::Input, ty("f32[N, 6]"));
    let lr = f.arg("lr", Role::Input, ty("f32[]"));
    let b = &mut Builder::new(&mut f);
    let shape = b.func.ty(p).shape.clone();
    let clip = b.map(MapFn::Exp, &[lr]);
    let clip = b.broadcast(clip, &shape, &[]);
    let g = b.mul(g, clip);
    let m1 = b.add(m, g);
    let square = b.mul(g, g);
    let v1 = b.add(v, square);
    let root = b.map(MapFn::Sqrt, &[v1]);
    let step = b.map(MapFn::Div, &[m1, root]);
    let p1 = b.map(MapFn::Sub, &[p, step]);
    for (name, value) in names.into_iter().zip([p1, m1, v1]) {
        f.output(name, Role::Param, value);
    }
    compare(f.clone(), &[("N", 3)]);
    let l = on_gpu(&f);
    let entry = &l.entries[0];
    // The factor, and all else.
    assert_eq!((entry.steps.len(), entry.buffers.len()), (2, 6), "{:#?}", entry.steps);
    assert_eq!(l.kernels.last().expect("a kernel").buffers.len(), 5);
}

#[test]
fn a_residual_and_the_norm_after_it_are_one_kernel_on_a_gpu() {
    let mut f = Func::new("f");
    let [x, y] = ["x", "y"].map(|n| f.arg(n, Role::Input, ty("bf16[B, T, 8]")));
    let b = &mut Builder::new(&mut f);
    let sum = b.add(x, y);
    let wide = b.cast(sum, F32);
    let square = b.mul(wide, wide);
    let mean = b.sum(square, &[2]);
    let r = b.map(MapFn::Rsqrt, &[mean]);
    let shape = b.func.ty(wide).shape.clone();
    let r = b.broadcast(r, &shape, &[0, 1]);
    let norm = b.mul(wide, r);
    let norm = b.cast(norm, BF16);
    f.output("norm", Role::Result, norm);
    compare(f.clone(), BT);
    let l = on_gpu(&f);
    assert_eq!((l.entries[0].steps.len(), names(&l.kernels[0])), (1, vec!["b0", "b1", "b2"]));
}

#[test]
fn maps_are_joined_where_their_order_allows() {
    // Both halves of a gate's gradient; one is read by a product, from which the third comes.
    let l = |late: bool| {
        let mut f = Func::new("f");
        let [x, y, d] = ["x", "y", "d"].map(|n| f.arg(n, Role::Input, ty("f32[T, 8]")));
        let w = f.arg("w", Role::Input, ty("f32[8, 8]"));
        let b = &mut Builder::new(&mut f);
        let s = b.map(MapFn::Silu, &[x]);
        let dy = b.mul(d, s);
        let product = b.contract("tk,kn->tn", dy, w);
        // From what the product gives, or from what was there before it.
        let other = if late { product } else { y };
        let slope = b.map(MapFn::Sigmoid, &[x]);
        let e = b.mul(d, other);
        let dx = b.mul(e, slope);
        [("p", product), ("dy", dy), ("dx", dx)].into_iter().for_each(|(n, v)| f.output(n, Role::Result, v));
        compare(f.clone(), &[("T", 5)]);
        on_gpu(&f).entries[0].steps.len()
    };
    assert_eq!((l(false), l(true)), (2, 3));
}

#[test]
fn joined_maps_do_not_write_over_what_is_still_read() {
    // b is a's new value turned: nothing is written in place before it is read elsewhere.
    let mut f = Func::new("f");
    let [a, c] = ["a", "c"].map(|n| f.arg(n, Role::Param, ty("f32[5, 5]")));
    let b = &mut Builder::new(&mut f);
    let turned = b.op(Op::Transpose(vec![1, 0]), &[a]);
    let sum = b.add(c, turned);
    let new_c = b.map(MapFn::Exp, &[sum]);
    let both = b.mul(a, c);
    let new_a = b.map(MapFn::Exp, &[both]);
    f.output("c", Role::Param, new_c);
    f.output("a", Role::Param, new_a);
    compare(f.clone(), &[]);
    // One kernel, and a copy of what is read at other elements than it is written at; the other is written in its place.
    let is_copy = |s: &library::Step| matches!(s, library::Step::Copy { .. });
    let steps = &on_gpu(&f).entries[0].steps;
    assert_eq!((steps.len(), steps.iter().filter(|s| is_copy(s)).count()), (2, 1), "{steps:#?}");
}

#[test]
fn what_is_only_widened_has_memory_where_a_product_reads_it() {
    // The wide value is stored too, in a kernel that would otherwise keep the narrow one to itself.
    check(&["bf16[B, T, 8]", "bf16[8, 6]", "f32[8, 6]"], BT, |b, a| {
        let narrow = b.map(MapFn::Exp, &[a[0]]);
        let wide = b.cast(narrow, F32);
        let weights = b.cast(a[1], F32);
        let product = b.contract("btk,kn->btn", wide, weights);
        let exact = b.contract("btk,kn->btn", wide, a[2]);
        vec![wide, product, exact]
    });
}

#[test]
fn pieces_of_a_row_need_no_choice() {
    let selects = |l: &lower::Lowered| {
        l.kernels.iter().map(|k| crate::text::print(std::slice::from_ref(k)).matches("select").count()).sum::<usize>()
    };
    let slice = |b: &mut Builder, x: Value, start: i64, len: i64| {
        b.op(Op::Slice { axis: 3, start: Dim::from(start), len: Dim::from(len), step: 1 }, &[x])
    };
    // Halves that are rotated, and the gradient of that; then pieces of other lengths, one of which is of a constant.
    let l = check(&["bf16[B, T, 2, 8]"], BT, |b, a| {
        let [x, y] = [0, 4].map(|start| slice(b, a[0], start, 4));
        let (sum, difference) = (b.add(x, y), b.map(MapFn::Sub, &[x, y]));
        vec![b.op(Op::Concat(3), &[difference, sum])]
    });
    assert_eq!((l.kernels.len(), selects(&l)), (1, 0), "{}", crate::text::print(&l.kernels));
    let pad = |b: &mut Builder, x: Value, low: i64, high: i64| {
        b.op(Op::Pad { axis: 3, low: Dim::from(low), high: Dim::from(high), value: graph::op::Scalar::new(2.0) }, &[x])
    };
    let l = check(&["f32[B, T, 2, 8]"], BT, |b, a| {
        let [x, y] = [(0, 4), (4, 0)].map(|(low, high)| {
            let half = slice(b, a[0], high, 4);
            pad(b, half, low, high)
        });
        vec![b.add(x, y)]
    });
    assert_eq!((l.kernels.len(), selects(&l)), (1, 0), "{:#?}", l.kernels);
    let l = check(&["f32[B, T, 2, 8]", "f32[B, T, 2, 3]"], BT, |b, a| {
        let joined = b.op(Op::Concat(3), &[a[1], a[0]]);
        let padded = pad(b, a[0], 1, 2);
        vec![b.mul(joined, padded)]
    });
    assert_eq!((l.kernels.len(), selects(&l)), (1, 0), "{:#?}", l.kernels);
}

/// Few rows that are long, cut into pieces for many processors: with a remainder, joined from parts of other lengths, and with a sum of each beside.
#[test]
fn few_long_rows_are_cut() {
    let d = |n: i64| Dim::from(n);
    let mut f = Func::new("f");
    let [x, y, m] = [("x", "f32[3, 4100]"), ("y", "f32[3, 4196]"), ("m", "f32[8296]")].map(|(n, t)| f.arg(n, Role::Input, ty(t)));
    let mut b = Builder::new(&mut f);
    let joined = b.op(Op::Concat(1), &[x, y]);
    let wide = b.broadcast(m, &[d(3), d(8296)], &[1]);
    let scaled = b.mul(joined, wide);
    let sum = b.sum(scaled, &[1]);
    let turned = b.map(MapFn::Abs, &[wide]);
    for (name, v) in [("joined", joined), ("scaled", scaled), ("sum", sum), ("turned", turned)] {
        f.output(name, Role::Result, v);
    }
    compare(f, &[]);
    let mut f = Func::new("f");
    let m = f.arg("m", Role::Input, ty("bf16[8200]"));
    let mut b = Builder::new(&mut f);
    let copies = b.broadcast(m, &[d(3), d(8200)], &[1]);
    f.output("copies", Role::Result, copies);
    compare(f.clone(), &[]);
    let module = Module { name: "m".into(), params: Vec::new(), funcs: vec![f] };
    let lowered = lower::lower(&module, lower::Options { fuse: true, parts: true, products: true }).expect("it lowers");
    assert!(lowered.kernels.iter().any(|k| k.grid.is(3 * 9)), "{:?}", lowered.kernels);
}

/// A copy of a view of few long rows, as what a loop begins with is, is cut as well.
#[test]
fn copies_of_few_long_rows_are_cut() {
    let mut body = Func::new("body");
    let x = body.arg("x", Role::Inner, ty("f32[3, 8200]"));
    let next = Builder::new(&mut body).map(MapFn::Sin, &[x]);
    body.output("x", Role::Inner, next);
    let r = Repeat { count: 2, carried: 1, constant: 0, reverse: false, body };
    let f = func(&["f32[3, 8300]"], |b, a| {
        let columns = b.op(Op::Slice { axis: 1, start: 7.into(), len: 8200.into(), step: 1 }, a);
        b.node(Op::Repeat(Box::new(r)), &[columns])
    });
    compare(f.clone(), &[]);
    let lowered = on_gpu(&f);
    let library::Step::Launch { kernel, .. } = &lowered.entries[0].steps[0] else { panic!("{:?}", lowered.entries[0].steps) };
    assert_eq!(lowered.kernels[*kernel].grid, Dim::from(3 * 9));
}

/// Two products and nothing after them are as many results as one region says; one alone is a product.
#[test]
fn products_alone_in_a_region() {
    for results in [1, 2] {
        let mut f = Func::new("f");
        let args = [("x", "bf16[N, 64]"), ("w", "bf16[64, 64]"), ("u", "bf16[64, 64]")];
        let [x, w, u] = args.map(|(n, t)| f.arg(n, Role::Input, ty(t)));
        let mut b = Builder::new(&mut f);
        let products = [w, u].map(|m| b.contract("nk,km->nm", x, m));
        let given = outlined(&mut b, &products[..results], &products[..results]);
        for (i, v) in given.into_iter().enumerate() {
            f.output(&format!("y{i}"), Role::Result, v);
        }
        compare(f, &[("N", 70)]);
    }
}

#[test]
fn a_choice_of_few_rows_by_what_is_stored_is_made_in_parts() {
    // Sums over heads folded from windows to blocks of four and the one before, or scores as they are stored; of long rows and of short ones.
    for (folds, b, m) in [(true, 2, 1200), (true, 3, 4), (true, 1, 1), (false, 2, 700), (false, 1, 3)] {
        let f = func(&["f32[B, 2, 3, 4*M]", "f32[B, 2, 3]", "f32[B, 2, M]"], |b, a| {
            let shape = b.func.ty(a[0]).shape.clone();
            let few = [shape[0].clone(), shape[1].clone(), Dim::sym("M")];
            if !folds {
                let x = b.map(MapFn::Neg, &[a[2]]);
                let chosen = b.op(Op::TopK(5), &[x]);
                return outlined_as(Form::Select, b, &[x, chosen], &[chosen]);
            }
            let sums = b.broadcast(a[1], &shape, &[0, 1, 2]);
            let x = b.map(MapFn::Sub, &[a[0], sums]);
            let p = b.map(MapFn::Exp, &[x]);
            let f = b.op(Op::Reduce(ReduceFn::Sum, vec![2]), &[p]);
            let zero = Scalar::new(0.0);
            let padded = b.op(Op::Pad { axis: 2, low: Dim::from(4), high: Dim::from(0), value: zero }, &[f]);
            let blocks = [&few[..2], &[few[2].clone() + Dim::from(1), Dim::from(4)]].concat();
            let blocks = b.reshape(padded, &blocks);
            let part = |b: &mut Builder, start: i64| {
                let len = Dim::sym("M");
                let x = b.op(Op::Slice { axis: 2, start: Dim::from(start), len, step: 1 }, &[blocks]);
                (x, b.op(Op::Reduce(ReduceFn::Sum, vec![3]), &[x]))
            };
            let ((x0, own), (x1, before)) = (part(b, 1), part(b, 0));
            let both = b.add(own, before);
            let score = b.add(both, a[2]);
            let chosen = b.op(Op::TopK(5), &[score]);
            outlined_as(Form::Select, b, &[sums, x, p, f, padded, blocks, x0, own, x1, before, both, score, chosen], &[chosen])
        });
        assert_eq!(kernels_of(f, &[("B", b), ("M", m)]), ["host_choice", "host_topk_join"]);
    }
}

#[test]
fn an_attention_of_few_queries_gives_its_scores() {
    // Heads that share keys or not; with the result, its sums, or neither; narrow operands that are widened.
    for (way, dtype) in [(0, "f32"), (1, "f32"), (2, "f32"), (3, "f32"), (0, "bf16")] {
        let args = ["[B, 1, 4, 16]", "[B, S, 2, 16]", "[B, S, 2, 16]"].map(|t| format!("{dtype}{t}"));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        for s in [1, 65, 300] {
            let f = func(&args, |b, a| {
                let o = b.node(Op::Attend(Attend { domain: Domain::Full, scale: Scalar::new(0.25) }), &a[..3]);
                let shape = b.func.ty(a[0]).shape.clone();
                let grouped = [&shape[..2], &[Dim::from(2), Dim::from(2)], &shape[3..]].concat();
                let q = b.reshape(a[0], &grouped);
                let (wide, k) = if dtype == "f32" { (q, a[1]) } else { (b.cast(q, F32), b.cast(a[1], F32)) };
                let scores = b.contract("btgrd,bsgd->btgrs", wide, k);
                let nodes = [o[0], q, wide, k, scores].into_iter().filter(|v| !a.contains(v)).collect::<Vec<_>>();
                let results = match way {
                    0 => vec![scores, o[0], o[1]],
                    1 => vec![o[1], scores],
                    2 => vec![scores, o[0]],
                    _ => vec![scores],
                };
                outlined_as(Form::Attend, b, &nodes, &results)
            });
            let names = kernels_of(f, &[("B", 2), ("S", s)]);
            let want = ["host_attend_part", "host_attend_merge"];
            assert_eq!(names, want[..if way == 3 { 1 } else { 2 }], "way {way}");
        }
    }
}

/// Attention to a latent of values and 32 columns joined to them: `t` queries.
fn latent(t: &str) -> Func {
    func(&[&format!("f32[B, {t}, 4, 320]"), "f32[B, S, 288]", "f32[B, S, 32]"], |b, a| {
        let keys = b.op(Op::Concat(2), &a[1..]);
        let by_heads = |b: &mut Builder, x: Value, n: i64| {
            let shape = [&b.func.ty(x).shape.clone()[..2], &[Dim::from(1), Dim::from(n)]].concat();
            b.reshape(x, &shape)
        };
        let (k, v) = (by_heads(b, keys, 320), by_heads(b, a[1], 288));
        b.node(Op::Attend(Attend { domain: Domain::Causal, scale: Scalar::new(0.25) }), &[a[0], k, v])
    })
}

#[test]
fn keys_that_are_values_and_more_columns_are_not_joined() {
    // Of any number of queries, too: they may be few.
    for (t, s) in [("1", 1), ("T", 70)] {
        let dims = [("B", 2), ("S", s), ("T", 35)];
        assert_eq!(kernels_of(latent(t), &dims[..if t == "1" { 2 } else { 3 }]), ["host_attend_part", "host_attend_merge"]);
    }
    // Their bytes are those of q, o and keys.
    let lowered = on_gpu(&latent("1"));
    let library::Step::Launch { work, .. } = &lowered.entries[0].steps[0] else { panic!("a launch") };
    let job = work.at(&[("B".into(), 2), ("S".into(), 1 << 20)].into_iter().collect()).expect("all dims have values");
    let bytes = 4.0 * 2.0 * (4.0 * (320.0 + 288.0) + f64::from(1 << 20) * 320.0);
    assert!((job.bytes() / bytes - 1.0).abs() < 1e-3, "{} for {bytes}", job.bytes());
}

#[test]
fn keys_are_not_divided_where_a_variant_has_few_queries() {
    let variants = |most: i64| {
        let few = Func { name: format!("f@T<={most}"), ..latent("T") };
        let module = Module { name: "m".into(), params: Vec::new(), funcs: vec![latent("T"), few] };
        let lowered = lower::lower(&module, lower::Options { fuse: true, parts: true, products: true }).expect("it lowers");
        let of = |e: &library::Entry| {
            let launch = |s: &library::Step| if let library::Step::Launch { kernel, .. } = s { Some(*kernel) } else { None };
            e.steps.iter().filter_map(launch).map(|k| lowered.kernels[k].name.clone()).collect::<Vec<_>>()
        };
        lowered.entries.iter().map(of).collect::<Vec<_>>()
    };
    // A tile has 32 queries, and two blocks.
    let names = variants(66 * 32);
    assert!(names[0][0].starts_with("host_attend_") && names[0].len() == 1, "{names:?}");
    assert_eq!(names[1].len(), 2, "{names:?}");
    assert!(variants(1024).iter().all(|names| names.len() == 2));
}

/// An attention of six heads in each turn of a loop, with its sums, and gradients of it by those: a slice of the sums begins anywhere.
#[test]
fn sums_of_attention_are_stacked_wherever_a_slice_begins() {
    let of = |shared: bool, grad: bool| {
        let mut body = Func::new("body");
        let columns = if shared { 288 } else { 16 };
        let types = [format!("f32[B, T, 6, {}]", columns + 32), format!("f32[B, S, 1, {columns}]"), "f32[B, S, 1, 32]".into()];
        let mut args: Vec<Value> = ["q", "c", "r"].iter().zip(types).map(|(n, t)| body.arg(n, Role::Inner, ty(&t))).collect();
        if grad {
            for (name, n) in [("o", columns), ("d", columns)] {
                args.push(body.arg(name, Role::Inner, ty(&format!("f32[B, T, 6, {n}]"))));
            }
            args.push(body.arg("lse", Role::Inner, ty("f32[B, T, 6]")));
        }
        let mut b = Builder::new(&mut body);
        let keys = b.op(Op::Concat(3), &args[1..3]);
        let attend = Attend { domain: Domain::Causal, scale: Scalar::new(0.25) };
        let given = [args[0], keys, args[1]];
        let results = match grad {
            false => b.node(Op::Attend(attend), &given),
            true => b.node(Op::AttendGrad(attend), &[&given[..], &[args[3], args[5], args[4], args[5]]].concat()),
        };
        results.into_iter().enumerate().for_each(|(i, v)| body.output(&format!("y{i}"), Role::Inner, v));
        let types: Vec<String> = body.arg_values().map(|(_, _, t)| format!("{t}").replacen('[', "[2, ", 1)).collect();
        let types: Vec<&str> = types.iter().map(String::as_str).collect();
        let r = Repeat { count: 2, carried: 0, constant: 0, reverse: false, body };
        kernels_of(func(&types, |b, a| b.node(Op::Repeat(Box::new(r)), a)), &[("B", 1), ("T", 2), ("S", 3)])
    };
    assert_eq!(of(true, false), ["host_attend_part", "host_attend_merge"]);
    assert!(of(false, false).contains(&"host_attend".into()));
    assert!(of(false, true).contains(&"host_attend_grad_keys".into()));
}

/// How many buffers are neither given nor results, and how many a kernel reads and writes.
#[test]
fn a_map_is_written_over_what_only_it_reads() {
    let buffers = |way: &str| {
        let l = check(&["f32[B, 8, 8]", "f32[8, 8]"], &[("B", 3)], |b, a| {
            let x = b.contract("btk,kn->btn", a[0], a[1]);
            let shape = b.func.ty(x).shape.clone();
            let y = match way {
                "with its row's sum" => {
                    let sum = b.sum(x, &[2]);
                    let all = b.broadcast(sum, &shape, &[0, 1]);
                    b.map(MapFn::Sub, &[x, all])
                }
                "turned" => {
                    let turned = b.op(Op::Transpose(vec![0, 2, 1]), &[x]);
                    b.add(x, turned)
                }
                _ => b.map(MapFn::Sin, &[x]),
            };
            let mut results = vec![b.contract("btk,kn->btn", y, a[1])];
            match way {
                "another reads it" => results.push(b.contract("btk,kn->btn", x, a[1])),
                "it is a result" => results.push(x),
                "a view of it is a result" => results.push(b.op(Op::Transpose(vec![1, 0, 2]), &[x])),
                "the map is a result" => results.push(y),
                _ => {}
            }
            results
        });
        let inner = l.entries[0].buffers.iter().filter(|b| !b.external).count();
        let of_kernels = l.kernels.iter().flat_map(|k| &k.buffers);
        (inner, of_kernels.filter(|b| b.access == crate::Access::ReadWrite).count())
    };
    assert_eq!(buffers(""), (1, 1));
    for (way, inner) in [
        ("with its row's sum", 2),
        ("turned", 2),
        ("another reads it", 2),
        ("it is a result", 1),
        ("a view of it is a result", 2),
        ("the map is a result", 1),
    ] {
        assert_eq!(buffers(way), (inner, 0), "{way}");
    }
}

#[test]
fn a_map_is_not_written_over_what_a_loop_gives() {
    // A repeated constant, which a map of the last turn's reads too.
    let mut body = Func::new("body");
    let (x, y) = (body.arg("x", Role::Inner, ty("f32[B, 4]")), body.arg("y", Role::Inner, ty("f32[B, 4]")));
    let mut b = Builder::new(&mut body);
    let three = b.constant(3.0, F32);
    let shape = b.func.ty(x).shape.clone();
    let same = b.broadcast(three, &shape, &[]);
    let less = b.map(MapFn::Sub, &[y, same]);
    let next = b.map(MapFn::Exp, &[less]);
    body.output("x", Role::Inner, next);
    body.output("y", Role::Inner, same);
    let r = Repeat { count: 1, carried: 2, constant: 0, reverse: false, body };
    check(&["f32[B, 4]", "f32[B, 4]"], BT, |b, a| b.node(Op::Repeat(Box::new(r)), a));
}

/// A loss, a gate's gradient and the sums that a gradient of attention takes of its result: the result is stored nowhere.
#[test]
fn sums_of_an_attentions_result_are_in_its_kernel() {
    // The domain, keys' and values' columns, the dtype, and how many different sums: of more than one, keys of a tile are as many as columns.
    let ways = [
        ("causal & window(5)", 128, BF16, 2),
        ("causal & window(5)", 64, BF16, 1),
        ("causal & blocks(0, 32)", 32, BF16, 2),
        ("causal & blocks(0, 64)", 16, F32, 1),
        ("causal", 16, F32, 1),
        ("ends_before(4, 2)", 64, F32, 1),
    ];
    let build = |domain: &str, n: i64, dtype: base::DType, count: usize, way: &str| {
        let of = |shape: &str| format!("{dtype}[{shape}]");
        let lists = if domain.contains("blocks") { 1 } else { 0 };
        let args = [
            format!("B, T, 4, {n}"),
            format!("B, T, 2, {n}"),
            format!("B, T, 2, {n}"),
            format!("B, T, 4, {n}"),
            "B, T, 4".into(),
        ];
        let mut args: Vec<String> = args.iter().map(|s| of(s)).collect();
        args.extend((0..lists).map(|_| "i32[B, T, 2, 2]".to_string()));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        func(&args, |b, a| {
            let attend = Attend { domain: domain.parse().expect("a domain"), scale: Scalar::new(0.25) };
            let of = b.node(Op::Attend(attend), &[&a[..3], &a[5..]].concat());
            let [o, lse] = of[..] else { panic!("a result and sums") };
            let shape = b.func.ty(o).shape.clone();
            // A sum of the result times what is made of two others, as it is and widened.
            let weight = b.broadcast(a[4], &shape, &[0, 1, 2]);
            let x = b.mul(weight, a[3]);
            let product = b.mul(o, x);
            let mut results = vec![b.op(Op::Reduce(ReduceFn::Sum, vec![3]), &[product]), lse];
            let [wide_o, wide_x] = [o, x].map(|v| if dtype == F32 { v } else { b.cast(v, F32) });
            let product = b.mul(wide_x, wide_o);
            results.push(b.op(Op::Reduce(ReduceFn::Sum, vec![3]), &[product]));
            if count > 1 {
                let square = b.mul(o, o);
                results.push(b.op(Op::Reduce(ReduceFn::Sum, vec![3]), &[square]));
            }
            match way {
                "the result too" => results.push(o),
                "a map of it" => results.push(b.map(MapFn::Abs, &[o])),
                "another sum" => results.push(b.op(Op::Reduce(ReduceFn::Sum, vec![1]), &[o])),
                "a greatest" => results.push(b.op(Op::Reduce(ReduceFn::Max, vec![3]), &[o])),
                "a view" => results.push(b.transpose(o, &[0, 2, 1, 3])),
                "its sums" => {
                    let sums = b.broadcast(lse, &shape, &[0, 1, 2]);
                    let sums = if dtype == F32 { sums } else { b.cast(sums, dtype) };
                    let product = b.mul(o, sums);
                    results.push(b.op(Op::Reduce(ReduceFn::Sum, vec![3]), &[product]));
                }
                _ => {}
            }
            results
        })
    };
    let attention = |f: &Func| {
        let kernels = on_gpu(f).kernels;
        let k = kernels.into_iter().find(|k| names(k).contains(&"lse")).expect("the attention");
        names(&k).iter().map(|n| n.to_string()).collect::<Vec<_>>()
    };
    for (domain, n, dtype, count) in ways {
        let f = build(domain, n, dtype, count, "");
        compare(f.clone(), &[("B", 2), ("T", 37)]);
        let want = [&["lse", "sum0", "sum0"][..], if count > 1 { &["sum1"] } else { &[] }].concat();
        let of = attention(&f);
        assert!(of.ends_with(&want.iter().map(|n| n.to_string()).collect::<Vec<_>>()), "{domain} {n} {dtype}: {of:?}");
        assert!(!of.contains(&"o".to_string()), "{domain} {n} {dtype}: {of:?}");
    }
    for way in ["the result too", "a map of it", "another sum", "a greatest", "a view", "its sums"] {
        let f = build("causal & window(5)", 128, F32, 1, way);
        compare(f.clone(), &[("B", 1), ("T", 5)]);
        assert!(attention(&f).contains(&"o".to_string()), "{way}");
    }
    // Two sums where a tile has fewer keys than columns: nowhere to put what is summed first.
    let f = build("causal & window(5)", 16, F32, 2, "");
    compare(f.clone(), &[("B", 2), ("T", 37)]);
    assert!(attention(&f).contains(&"o".to_string()));
}

#[test]
fn sums_of_nothing_are_one_element() {
    check(&["f32[0]", "f32[0, 1, 0]", "f32[0, 1, 0]"], &[], |b, a| {
        let wide = b.broadcast(a[0], &[Dim::from(0), Dim::from(1), Dim::from(0)], &[0]);
        let sums = [a[2], a[1]].map(|x| {
            let y = b.add(wide, x);
            let flat = b.reshape(y, &[Dim::from(0)]);
            b.sum(flat, &[0])
        });
        vec![b.add(sums[0], sums[1])]
    });
}
