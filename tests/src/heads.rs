//! The head of a model at a large vocabulary: log-probabilities without a logit in memory, on the host against the interpreter in f64.

use base::{DType, DimEnv};
use driver::{
    commands::common,
    pipeline::{self, Options},
};
use exec::{HostTensor, Session};
use graph::{
    Module, Op,
    interp::{
        Tensor,
        bounds::{Roundoff, bounds},
    },
    random,
};

const D: usize = 12;

/// Log-probabilities of tokens under a head whose logits have `bias` added to them: the program as written and as compiled, and its session.
fn head(v: i64, logits: &str) -> (Module, Module, Session) {
    let text = format!(
        "use std.log_prob
dims B, T
model m(x: [B, T, {D}], w: [{v}, {D}], bias: [{v}], tokens: i32[B, T]) -> f32[B, T] {{
  let logits = {logits}
  log_prob(logits, tokens, temperature: 0.7)
}}
"
    );
    let options = Options::default();
    let front = pipeline::front("m.lode", &text, &mut |_| None, &options);
    let told: Vec<String> = front.diagnostics.iter().map(|d| d.error.to_string()).collect();
    let program = front.program.as_ref().unwrap_or_else(|| panic!("{told:?}"));
    let (module, _) = pipeline::middle(program, &options).expect("it optimises");
    let lowered = pipeline::lower(&module, &options).expect("it lowers");
    let library = pipeline::library(program, &module, &lowered, &front.sources, &options).expect("it compiles");
    let session = common::session(library, Some(2)).expect("it links");
    (program.module.clone(), module, session)
}

fn dims(b: i64, t: i64) -> DimEnv {
    [("B".into(), b), ("T".into(), t)].into_iter().collect()
}

fn run(session: &mut Session, dims: &DimEnv, args: &[Tensor]) -> Vec<f64> {
    let names = ["x", "w", "bias", "tokens"];
    let given: Vec<HostTensor> = args.iter().map(|t| HostTensor::from_f64(t.dtype, &t.shape, t.data.iter().copied())).collect();
    let inputs: Vec<(&str, &HostTensor)> = names.into_iter().zip(&given).collect();
    session.run("forward", dims, &inputs).expect("it runs")[0].1.to_f64()
}

#[test]
fn log_probabilities_of_a_large_vocabulary() {
    let biases: &[(&str, fn(usize) -> f64)] = &[
        ("random", |i| ((i * 7919) % 101) as f64 / 50.0 - 1.0),
        ("all equal", |_| 0.0),
        ("one is huge, in the second chunk", |i| if i == 3000 { 1e4 } else { 0.0 }),
        ("growing", |i| i as f64 / 20.0),
        ("the first chunk is forbidden", |i| if i < 2100 { f64::NEG_INFINITY } else { 0.0 }),
        ("all but one are forbidden", |i| if i == 5 { 0.0 } else { f64::NEG_INFINITY }),
    ];
    // Few tokens are one chunk; a prime number leaves some after the last whole chunk; others leave one or none.
    for (v, streams) in [(1i64, false), (7, false), (4099, true), (6144, true)] {
        let (written, compiled, mut session) = head(v, "x @ w^T + bias");
        let is_loop = |m: &Module| m.funcs[0].nodes.values().any(|n| matches!(n.op, Op::Repeat(_)));
        assert_eq!(is_loop(&compiled), streams, "{v} tokens");
        for (what, bias) in biases {
            let dims = dims(2, 3);
            let f = &written.funcs[0];
            let mut args = random::args(f, &dims, 11);
            args[2].data = (0..v as usize).map(bias).collect();
            args[3].data = (0..6).map(|i| (i * 1237 % (v + 2)) as f64 - 1.0).collect();
            let want = bounds(f, &args, &dims, Roundoff::Dtype).expect("it evaluates").remove(0);
            let got = run(&mut session, &dims, &args);
            if let Some((at, got, want, error)) = want.disagreement(&got) {
                panic!("{v} tokens, {what}: [{at}] is {got:e}, not {want:e} ± {error:.1e}");
            }
            // Bounds say nothing where a number could be infinite; this is what f32 gives for these.
            for (x, y) in want.value.data.iter().zip(&got) {
                let near = (x - y).abs() <= 1e-5 * (1.0 + x.abs());
                assert!(x == y || (x.is_nan() && y.is_nan()) || near, "{v} tokens, {what}: {y}, not {x}");
            }
            let again = run(&mut session, &dims, &args);
            assert!(got.iter().zip(&again).all(|(a, b)| a.to_bits() == b.to_bits()), "{v} tokens, {what}: another run differs");
        }
    }
}

#[test]
fn the_order_of_sums_does_not_depend_on_the_batch() {
    // A product of few terms, so that the host's library sums them in one order: what is folded is the same for any number of rows, bit by bit.
    let (written, _, mut session) = head(5000, "x[:, :, 0:2] @ w[:, 0:2]^T + bias");
    let all = dims(4, 6);
    let args = random::args(&written.funcs[0], &all, 5);
    let whole = run(&mut session, &all, &args);
    assert!(whole.iter().all(|x| x.is_finite()));
    for row in 0..4 {
        let mut one = args.clone();
        one[0] = Tensor::new(DType::F32, &[1, 6, D as i64], args[0].data[row * 6 * D..(row + 1) * 6 * D].to_vec());
        one[3] = Tensor::new(DType::I32, &[1, 6], args[3].data[row * 6..(row + 1) * 6].to_vec());
        assert_eq!(run(&mut session, &dims(1, 6), &one), whole[row * 6..(row + 1) * 6]);
    }
}
