//! Whether programs mean what they say. The standard library is evaluated by the graph's interpreter and compared with loops written
//! from the formulas, not from its text.

use super::*;
use base::{DType, DimEnv};
use graph::{
    Func,
    autodiff::{self, Remat, Seed},
    interp::{self, Options, Tensor},
};

mod attention;
mod basic;
mod broken;
mod elaborate;
mod language;
mod mistakes;
mod moe;
mod nsa;
mod packed;
mod pages;
mod program;
mod training;
mod variants;

fn lower_text(text: &str) -> Result<Program, Vec<String>> {
    let mut sources = Sources::default();
    let root = sources.add("t.lode", text);
    let mut diags = Diags::new();
    let program = lower(root, &mut sources, &mut |_| None, &Overrides::default(), &mut diags);
    let messages: Vec<String> = diags
        .into_sorted()
        .iter()
        .map(|e| {
            format!(
                "{}:{} {} {}",
                sources.line_col(e.span).0,
                sources.line_col(e.span).1,
                e.error.code().expect("a code"),
                e.error
            )
        })
        .collect();
    program.ok_or(messages)
}

fn errors(text: &str) -> Vec<String> {
    lower_text(text).err().unwrap_or_default()
}

const HEAD: &str = "dims B, T\nconfig { d = 8, h = 2, k = 4, n = 3 }\n";

fn ok(text: &str) -> Program {
    let p = lower_text(&format!("{HEAD}{text}")).unwrap_or_else(|e| panic!("{e:#?}"));
    let violations = graph::verify::verify(&p.module);
    assert!(violations.is_empty(), "{violations:?}");
    p
}

/// Named arguments of an evaluation.
type Given<'a> = [(&'a str, Tensor)];

/// Deterministic numbers in [-1, 1) as f32 has them, so that nothing is rounded on the way in.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> f64 {
        // Knuth's 64-bit linear congruence; the high bits are the good ones.
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        f64::from(((self.0 >> 40) as f32) / (1u32 << 23) as f32 - 1.0)
    }
    fn below(&mut self, n: usize) -> usize {
        ((self.next() + 1.0) / 2.0 * n as f64) as usize
    }
    fn tensor(&mut self, shape: &[i64]) -> Tensor {
        let n = shape.iter().product::<i64>();
        Tensor::new(DType::F32, shape, (0..n).map(|_| self.next()).collect())
    }
}

fn ints(shape: &[i64], data: &[i64]) -> Tensor {
    Tensor::new(DType::I32, shape, data.iter().map(|x| *x as f64).collect())
}

/// The arguments in the order of the function, and its run-time dims.
fn arguments(func: &Func, given: &Given) -> (Vec<Tensor>, DimEnv) {
    let find = |name: &str| given.iter().find(|(n, _)| *n == name).unwrap_or_else(|| panic!("no argument {name}")).1.clone();
    let args: Vec<Tensor> = func.args.iter().map(|a| find(&a.name)).collect();
    let shapes: Vec<&[i64]> = args.iter().map(|t| &t.shape[..]).collect();
    let dims = interp::bind_dims(func, &shapes).unwrap_or_else(|e| panic!("{e}"));
    (args, dims)
}

/// The model's results, without rounding.
fn eval(text: &str, given: &Given) -> Vec<Tensor> {
    let p = lower_text(text).unwrap_or_else(|e| panic!("{e:#?}"));
    let func = p.module.func("forward").expect("a model has a forward");
    let (args, dims) = arguments(func, given);
    interp::eval(func, &args, &dims, Options::EXACT).unwrap_or_else(|e| panic!("{e}"))
}

/// The gradients of the model's result, a scalar, by the arguments in `wrt`.
fn grad(text: &str, given: &Given, wrt: &[&str]) -> Vec<Tensor> {
    let p = lower_text(text).unwrap_or_else(|e| panic!("{e:#?}"));
    let func = p.module.func("forward").expect("a model has a forward");
    let place = |name: &&str| func.args.iter().position(|a| a.name == *name).unwrap_or_else(|| panic!("no argument {name}"));
    let wrt: Vec<usize> = wrt.iter().map(place).collect();
    let seed = Seed { objective: "output", remat: Remat::Cheap };
    let func = autodiff::grad(func, &wrt, seed).unwrap_or_else(|e| panic!("{e}"));
    let (args, dims) = arguments(&func, given);
    interp::eval(&func, &args, &dims, Options::EXACT).unwrap_or_else(|e| panic!("{e}")).split_off(1)
}

/// Fails unless the numbers agree to `bound`, relative to the greatest of them and to 1.
#[track_caller]
fn close(what: &str, got: &Tensor, want: &[f64], bound: f64) {
    assert_eq!(got.data.len(), want.len(), "{what}: number of values, {:?}", got.shape);
    let size = want.iter().fold(1.0, |m: f64, x| m.max(x.abs()));
    for (i, (x, y)) in got.data.iter().zip(want).enumerate() {
        assert!((x - y).abs() <= bound * size, "{what}: element {i} of {:?} is {x}, not {y}", got.shape);
    }
}

/// Rounding of a few hundred f64 operations, the sums of which differ in order from the reference.
const BOUND: f64 = 1e-11;
