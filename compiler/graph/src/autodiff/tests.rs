//! Every derivative against central differences of the exact interpreter.

mod models;
mod ops;
mod repeats;

use super::*;
use crate::{
    interp::{self, Options, Tensor, bind_dims},
    op::{MapFn, Scalar},
    verify::verify_func,
};
use base::{DType, Dim, DimEnv, TensorType};

/// Pseudo-random numbers. # Source: Steele, Lea and Flood, Fast splittable pseudorandom number generators, 2014.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// In `[0, 1)`.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / 2f64.powi(53)
    }
}

/// The arguments of a case: `f B, T` numbers of both signs, `p 3` positive ones, `z 3` some of them 0, `i-1:4 T` integers from -1 to 3.
fn arg(spec: &str, dims: &DimEnv, random: &mut Random) -> (TensorType, Tensor) {
    let (kind, shape) = spec.split_once(' ').unwrap_or((spec, ""));
    let dim = |s: &str| s.parse::<Dim>().expect("a dim");
    let shape: Vec<Dim> = shape.split(',').filter(|s| !s.trim().is_empty()).map(dim).collect();
    let dtype = if kind.starts_with('i') { DType::I32 } else { DType::F64 };
    let ty = TensorType::new(dtype, shape);
    let extents = ty.eval(dims).expect("the case gives all dims");
    let mut number = || match kind {
        "f" => random.unit() * 4.0 - 2.0,
        "p" => random.unit() + 0.5,
        "z" => (random.unit() * 4.0 - 2.0) * f64::from(u8::from(random.unit() < 0.6)),
        ints => {
            let (low, high) = ints[1..].split_once(':').expect("low:high");
            let bound = |s: &str| s.parse::<f64>().expect("an integer");
            (bound(low) + random.unit() * (bound(high) - bound(low))).floor()
        }
    };
    let data = (0..extents.iter().product()).map(|_| number()).collect();
    (ty, Tensor::new(dtype, &extents, data))
}

/// A sum of all elements of all float values with different weights.
fn weigh(b: &mut Builder, values: &[Value]) -> Value {
    let mut total = None;
    for (k, v) in values.iter().enumerate() {
        let ty = b.func.ty(*v).clone();
        if !ty.dtype.is_float() {
            continue;
        }
        let n = ty.elems();
        let index = b.op(Op::Iota(n.clone()), &[]);
        let index = b.cast(index, ty.dtype);
        let (factor, offset) = (b.full_like(index, 1.7), b.full_like(index, k as f64 + 0.3));
        let angle = b.mul(index, factor);
        let angle = b.add(angle, offset);
        let weights = b.map(MapFn::Cos, &[angle]);
        let flat = b.reshape(*v, std::slice::from_ref(&n));
        let product = b.mul(weights, flat);
        let sum = b.sum(product, &[0]);
        total = Some(total.map_or(sum, |t| b.add(t, sum)));
    }
    total.expect("a float result")
}

/// Differentiates a weighted sum of what `build` makes by every float argument, in both ways to treat loops; compares with
/// differences, and the two parts of `split` with the whole.
#[track_caller]
fn check(name: &str, specs: &[&str], dims: &[(&str, i64)], build: impl Fn(&mut Builder, &[Value]) -> Vec<Value>) {
    let dims: DimEnv = dims.iter().map(|(s, n)| ((*s).into(), *n)).collect();
    let mut random = Random(name.bytes().fold(7, |h: u64, c| h.wrapping_mul(31) + u64::from(c)));
    let (types, args): (Vec<_>, Vec<_>) = specs.iter().map(|s| arg(s, &dims, &mut random)).unzip();
    let mut f = Func::new("f");
    let values: Vec<Value> = types
        .iter()
        .enumerate()
        .map(|(i, ty)| f.arg(&format!("x{i}"), if i % 2 == 0 { Role::Param } else { Role::Input }, ty.clone()))
        .collect();
    let mut b = Builder::new(&mut f);
    let results = build(&mut b, &values);
    let total = weigh(&mut b, &results);
    f.output("total", Role::Scalar, total);
    let wrt: Vec<usize> = (0..args.len()).filter(|i| types[*i].dtype.is_float()).collect();
    for remat in [Remat::Save, Remat::Cheap] {
        let g = grad(&f, &wrt, Seed { objective: "total", remat }).expect("it has a derivative");
        assert_eq!(verify_func(&g), [], "{name}");
        let found = interp::eval(&g, &args, &dims, Options::EXACT).expect("the gradient evaluates");
        for ((i, gradient), output) in wrt.iter().zip(&found[1..]).zip(&g.outputs[1..]) {
            assert_eq!(*g.ty(output.value), types[*i], "{name}");
            differences(name, &f, &args, &dims, *i, gradient, &mut random);
        }
        in_two_parts(name, &g, &args, &dims, &found);
        assert_eq!(crate::text::parse_func(&crate::text::print_func(&g)).as_ref(), Ok(&g), "{name}");
        // The passes keep it.
        let mut module = crate::ir::Module { funcs: vec![g.clone()], ..Default::default() };
        crate::passes::run(&mut module, crate::passes::PIPELINE, true).expect("passes keep graphs whole");
        let after = interp::eval(&module.funcs[0], &args, &dims, Options::EXACT).expect("it evaluates");
        for (x, y) in found.iter().zip(&after).flat_map(|(x, y)| x.data.iter().zip(&y.data)) {
            assert!((x - y).abs() <= 1e-9 * (1.0 + x.abs()), "{name}: {x} becomes {y}");
        }
        // Alone, each gradient is the same, and no node more than with the others is computed.
        for (i, gradient) in wrt.iter().zip(&found[1..]) {
            let alone = grad(&f, &[*i], Seed { objective: "total", remat }).expect("it has a derivative");
            assert!(alone.nodes.len() <= g.nodes.len(), "{name}: by x{i} alone");
            let results = interp::eval(&alone, &args, &dims, Options::EXACT).expect("the gradient evaluates");
            assert_eq!(results[1], *gradient, "{name}: by x{i} alone");
        }
    }
}

/// Compares up to 12 elements of a gradient with (f(x + h) − f(x − h)) / 2h. The error of the difference is about h²·f‴/6 + 1e-16·f/h.
#[track_caller]
fn differences(name: &str, f: &Func, args: &[Tensor], dims: &DimEnv, i: usize, gradient: &Tensor, random: &mut Random) {
    let n = args[i].data.len();
    let picks: Vec<usize> = if n <= 12 { (0..n).collect() } else { (0..12).map(|_| random.next() as usize % n).collect() };
    let h = 1e-5;
    for at in picks {
        let total = |x: f64| {
            let mut args = args.to_vec();
            args[i].data[at] += x;
            interp::eval(f, &args, dims, Options::EXACT).expect("it evaluates")[0].data[0]
        };
        let (want, got) = ((total(h) - total(-h)) / (2.0 * h), gradient.data[at]);
        assert!((got - want).abs() <= 1e-6 * (1.0 + want.abs()), "{name}: by x{i}[{at}]: got {got}, difference {want}");
    }
}

/// Runs the parts of `split` one after the other.
#[track_caller]
fn in_two_parts(name: &str, joint: &Func, args: &[Tensor], dims: &DimEnv, want: &[Tensor]) {
    let is_weight =
        |o: &crate::ir::Output| o.role == Role::Grad && joint.args.iter().any(|a| a.name == o.name && a.role == Role::Param);
    let parts = split(joint, &is_weight);
    for part in [&parts.backward_input, &parts.backward_weight] {
        assert_eq!(verify_func(part), [], "{name}");
    }
    let given = |arg: &crate::ir::Arg| args[joint.args.iter().position(|a| a == arg).expect("an argument of the whole")].clone();
    let first_args: Vec<Tensor> = parts.backward_input.args.iter().map(given).collect();
    let first = interp::eval(&parts.backward_input, &first_args, dims, Options::EXACT).expect("the first part evaluates");
    let by_name = |arg: &crate::ir::Arg| match joint.args.iter().position(|a| a == arg) {
        Some(i) => args[i].clone(),
        None => {
            let handed = |o: &crate::ir::Output| o.role == Role::Inner && o.name == arg.name;
            let at = parts.backward_input.outputs.iter().position(handed).expect("the first part hands it over");
            first[at].clone()
        }
    };
    let second_args: Vec<Tensor> = parts.backward_weight.args.iter().map(by_name).collect();
    let second = interp::eval(&parts.backward_weight, &second_args, dims, Options::EXACT).expect("the second part evaluates");
    for (o, want) in joint.outputs.iter().zip(want) {
        let find = |f: &Func| f.outputs.iter().position(|p| p.name == o.name && p.role == o.role);
        let got = match find(&parts.backward_weight) {
            Some(at) => &second[at],
            None => &first[find(&parts.backward_input).expect("one of the parts has it")],
        };
        assert_eq!(got, want, "{name}: '{}'", o.name);
    }
}

/// The gradient by argument 0 of the weighted results.
fn gradient(args: &[Tensor], build: impl Fn(&mut Builder, &[Value]) -> Value) -> Vec<f64> {
    let mut f = Func::new("f");
    let known = |t: &Tensor| TensorType::new(t.dtype, t.shape.iter().map(|n| Dim::from(*n)).collect::<Vec<_>>());
    let values: Vec<Value> = args.iter().enumerate().map(|(i, t)| f.arg(&format!("x{i}"), Role::Input, known(t))).collect();
    let mut b = Builder::new(&mut f);
    let y = build(&mut b, &values);
    let axes: Vec<usize> = (0..b.func.ty(y).rank()).collect();
    let total = b.sum(y, &axes);
    f.output("total", Role::Scalar, total);
    let g = grad(&f, &[0], Seed { objective: "total", remat: Remat::Cheap }).expect("it has a derivative");
    interp::eval(&g, args, &DimEnv::new(), Options::EXACT).expect("it evaluates")[1].data.clone()
}

#[test]
fn what_is_not_a_gradient_is_an_error() {
    let mut f = Func::new("f");
    let x = f.arg("x", Role::Input, TensorType::new(DType::F32, vec![Dim::from(2)]));
    f.arg("n", Role::Input, TensorType::scalar(DType::I32));
    let mut b = Builder::new(&mut f);
    let sum = b.sum(x, &[0]);
    f.output("x", Role::Result, x);
    f.output("sum", Role::Scalar, sum);
    let error = |wrt: &[usize], objective: &str| {
        grad(&f, wrt, Seed { objective, remat: Remat::Cheap }).expect_err("no gradient").to_string()
    };
    assert_eq!(error(&[0], "y"), "'f' has no output 'y'");
    assert_eq!(error(&[0], "x"), "the objective 'x' is f32[2], not a float scalar");
    assert_eq!(error(&[1], "sum"), "argument 'n' is i32[], which has no gradient");
}

#[test]
fn dims_of_a_gradient_are_those_of_the_function() {
    let mut f = Func::new("f");
    let ty = TensorType::new(DType::BF16, vec![Dim::sym("T")]);
    let (x, w) = (f.arg("x", Role::Input, ty.clone()), f.arg("w", Role::Param, ty.clone()));
    let mut b = Builder::new(&mut f);
    let product = b.mul(x, w);
    let total = b.sum(product, &[0]);
    f.output("total", Role::Scalar, total);
    let g = grad(&f, &[1], Seed { objective: "total", remat: Remat::Cheap }).expect("it has a derivative");
    assert_eq!((g.outputs[1].name.as_str(), g.outputs[1].role, g.ty(g.outputs[1].value)), ("w", Role::Grad, &ty));
    assert_eq!(bind_dims(&g, &[&[3], &[3]]), bind_dims(&f, &[&[3], &[3]]));
    // Nothing is computed for x.
    let product_rules = g.nodes.values().filter(|n| n.op == Op::Map(MapFn::Mul)).count();
    assert_eq!(product_rules, 2);
}
