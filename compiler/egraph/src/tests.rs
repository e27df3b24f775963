//! Each rule on both sides by the interpreter, what must not fire, and that nothing gets dearer or differs from run to run.

use super::*;
use base::{DType, Dim, DimEnv};
use graph::{
    Role,
    build::Builder,
    interp::{self, Options as Interp, Tensor},
    op::{MapFn, ReduceFn},
    text::print,
};

/// A unit an element; a product its multiplications; a fixed charge a step.
fn cost(op: &Op, operands: &[&TensorType], results: &[TensorType]) -> f64 {
    let elems = |t: &TensorType| t.elems().substitute(&|_| Some(Dim::from(8))).known().expect("all dims have a value") as f64;
    match op {
        Op::Arg(_) | Op::Slice { .. } | Op::Reshape(_) | Op::Transpose(_) | Op::Broadcast { .. } => 0.0,
        Op::Contract(_) => 1000.0 + elems(&results[0]) * elems(operands[0]).sqrt(),
        Op::Concat(_) => 10.0 + elems(&results[0]) / 10.0,
        _ => 10.0 + elems(&results[0]),
    }
}

type Build = fn(&mut Builder, &[Value]) -> Vec<Value>;

/// For each rule a program where it has to fire: operand types as text, and the program.
const INSTANCES: &[(&str, &[&str], Build)] = &[
    ("mul-of-sigmoid", &["f32 B 3"], |b, a| {
        let s = b.map(MapFn::Sigmoid, &[a[0]]);
        vec![b.mul(a[0], s)]
    }),
    ("mul-of-sigmoid-left", &["f64 B 3"], |b, a| {
        let s = b.map(MapFn::Sigmoid, &[a[0]]);
        vec![b.mul(s, a[0])]
    }),
    ("mul-of-silu", &["f32 B 3", "f32 B 3"], |b, a| {
        let s = b.map(MapFn::Silu, &[a[0]]);
        vec![b.mul(s, a[1])]
    }),
    ("mul-of-silu-right", &["f32 5", "f32 5"], |b, a| {
        let s = b.map(MapFn::Silu, &[a[1]]);
        vec![b.mul(a[0], s)]
    }),
    ("neg-of-neg", &["i32 B"], |b, a| {
        let n = b.map(MapFn::Neg, &[a[0]]);
        let n = b.map(MapFn::Neg, &[n]);
        vec![b.add(n, a[0])]
    }),
    ("add-of-neg", &["f32 B 2", "f32 B 2"], |b, a| {
        let n = b.map(MapFn::Neg, &[a[1]]);
        vec![b.add(a[0], n)]
    }),
    ("not-of-not", &["i32 B", "i32 B"], |b, a| {
        let c = b.map(MapFn::Lt, a);
        let n = b.map(MapFn::Not, &[c]);
        let n = b.map(MapFn::Not, &[n]);
        vec![b.map(MapFn::Select, &[n, a[0], a[1]])]
    }),
    ("contract-of-shared-operand", &["f32 B 4", "f32 4 3", "f32 4 5"], |b, a| {
        vec![b.contract("bd,df->bf", a[0], a[1]), b.contract("bd,df->bf", a[0], a[2])]
    }),
];

fn func(types: &[&str], build: Build) -> Func {
    let mut f = Func::new("f");
    let args: Vec<Value> = types
        .iter()
        .enumerate()
        .map(|(i, t)| {
            let mut words = t.split(' ');
            let dtype: DType = words.next().expect("a dtype").parse().expect("a dtype");
            let shape: Vec<Dim> = words.map(|d| d.parse().expect("a dim")).collect();
            f.arg(&format!("a{i}"), Role::Input, TensorType::new(dtype, shape))
        })
        .collect();
    let outputs = build(&mut Builder::new(&mut f), &args);
    outputs.into_iter().enumerate().for_each(|(i, v)| f.output(&format!("o{i}"), Role::Result, v));
    f
}

fn optimized(f: &Func, class: Class) -> (Module, Report) {
    let module = Module { name: "m".into(), params: Vec::new(), funcs: vec![f.clone()] };
    assert_eq!(graph::verify::verify(&module), []);
    let (out, mut reports) = optimize(&module, &cost, &Options { class, ..Options::default() });
    assert_eq!(graph::verify::verify(&out), []);
    (out, reports.pop().expect("a report a function"))
}

/// Both on random data, for several sizes of `B`.
fn assert_equal(name: &str, before: &Func, after: &Func) {
    let mut seed = 11u64;
    for b in [0, 1, 2, 7] {
        let dims: DimEnv = [("B".into(), b)].into_iter().collect();
        let data = before.arg_values().map(|(_, _, t)| {
            let shape = t.eval(&dims).expect("extents");
            let value = |_| {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let x = (seed >> 40) as f64 / 2f64.powi(21) - 4.0;
                if t.dtype.is_float() { f64::from(x as f32) } else { x.floor() }
            };
            Tensor::new(t.dtype, &shape, (0..shape.iter().product::<i64>()).map(value).collect())
        });
        let data: Vec<Tensor> = data.collect();
        let eval = |f: &Func| interp::eval(f, &data, &dims, Interp::EXACT).expect("it evaluates");
        for (x, y) in eval(before).iter().zip(&eval(after)) {
            assert_eq!((x.dtype, &x.shape), (y.dtype, &y.shape), "{name}");
            for (x, y) in x.data.iter().zip(&y.data) {
                assert!((x - y).abs() <= 1e-12 * (1.0 + x.abs()), "{name}, B = {b}: {x} became {y}");
            }
        }
    }
}

#[test]
fn every_rule_fires_and_keeps_the_meaning() {
    for name in rules::names() {
        let (_, types, build) = INSTANCES.iter().find(|(n, ..)| *n == name).unwrap_or_else(|| panic!("no instance of {name}"));
        let f = func(types, *build);
        let (out, report) = optimized(&f, Class::ChangesIntermediate);
        assert!(report.fired.iter().any(|(n, count)| n == name && *count > 0), "{name} did not fire: {report:?}");
        assert!(report.cost.1 < report.cost.0, "{name} gains nothing: {report:?}");
        assert_equal(name, &f, &out.funcs[0]);
    }
    assert_eq!(INSTANCES.len(), rules::names().len(), "an instance for a rule that is not there");
}

#[test]
fn what_only_looks_alike_is_left_alone() {
    let alike: &[(&str, &[&str], Build)] = &[
        ("another operand's sigmoid", &["f32 B", "f32 B"], |b, a| {
            let s = b.map(MapFn::Sigmoid, &[a[0]]);
            vec![b.mul(a[1], s)]
        }),
        ("x·x, summed", &["f32 B 4"], |b, a| {
            let x = b.mul(a[0], a[0]);
            vec![b.sum(x, &[1])]
        }),
        ("x − (−y) is no difference", &["f32 B", "f32 B"], |b, a| {
            let n = b.map(MapFn::Neg, &[a[1]]);
            vec![b.map(MapFn::Sub, &[a[0], n])]
        }),
        ("the sum of a silu", &["f32 B", "f32 B"], |b, a| {
            let s = b.map(MapFn::Silu, &[a[0]]);
            vec![b.add(s, a[1])]
        }),
        ("products of two left operands", &["f32 B 4", "f32 B 4", "f32 4 3", "f32 4 5"], |b, a| {
            vec![b.contract("bd,df->bf", a[0], a[2]), b.contract("bd,df->bf", a[1], a[3])]
        }),
        ("a product that needs another's result", &["f32 4 4", "f32 4 4"], |b, a| {
            let x = b.contract("bd,df->bf", a[0], a[1]);
            let y = b.contract("bd,df->bf", a[0], x);
            vec![b.op(Op::Reduce(ReduceFn::Max, vec![0]), &[y])]
        }),
    ];
    for (name, types, build) in alike {
        let f = func(types, *build);
        let (out, report) = optimized(&f, Class::ChangesIntermediate);
        assert!(report.fired.is_empty(), "{name}: {report:?}");
        assert_eq!(print(&out), print(&Module { name: "m".into(), params: Vec::new(), funcs: vec![f] }), "{name}");
    }
}

#[test]
fn the_gate_and_the_value_of_swiglu_are_not_swapped() {
    let f = func(&["f64 4", "f64 4"], |b, a| {
        let s = b.map(MapFn::Silu, &[a[0]]);
        vec![b.mul(a[1], s)]
    });
    let (out, _) = optimized(&f, Class::Reassociates);
    let (_, node) = out.funcs[0].nodes.iter().find(|(_, n)| n.op == Op::Map(MapFn::Swiglu)).expect("it is fused");
    assert_eq!(node.inputs, [f.arg_value(0), f.arg_value(1)]);
}

#[test]
fn rules_of_a_looser_class_are_off_when_not_asked_for() {
    let (_, types, build) = INSTANCES[0];
    let (_, report) = optimized(&func(types, build), Class::Exact);
    assert!(report.fired.is_empty(), "{report:?}");
}

#[test]
fn the_same_program_gives_the_same_text() {
    for (_, types, build) in INSTANCES {
        let f = func(types, *build);
        let run = || print(&optimized(&f, Class::ChangesIntermediate).0);
        assert_eq!(run(), run());
    }
}

#[test]
fn nothing_gets_dearer() {
    // Where merging costs more than it brings, the products stay.
    let f = func(&["f32 B 4", "f32 4 3", "f32 4 5"], |b, a| {
        vec![b.contract("bd,df->bf", a[0], a[1]), b.contract("bd,df->bf", a[0], a[2])]
    });
    let module = Module { name: "m".into(), params: Vec::new(), funcs: vec![f] };
    let dear = |op: &Op, operands: &[&TensorType], results: &[TensorType]| match op {
        Op::Concat(_) => 1e9,
        op => cost(op, operands, results),
    };
    let (out, reports) = optimize(&module, &dear, &Options::default());
    assert_eq!(reports[0].cost.0, reports[0].cost.1);
    assert_eq!(print(&out), print(&module));
}
