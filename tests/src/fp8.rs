//! Rounding to e4m3 in blocks on the host, bit by bit against the formulas, and a model whose experts do so.

use base::{DType, DimEnv};
use driver::{
    commands::common,
    pipeline::{self, Options},
};
use exec::{HostTensor, Session, random::Stream};

fn session(name: &str, text: &str, set: &[(&str, &str)]) -> Session {
    session_with(name, text, set, Options::default())
}

fn session_with(name: &str, text: &str, set: &[(&str, &str)], options: Options) -> Session {
    let set = set.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
    let options = Options { overrides: hir::Overrides { set, ..Default::default() }, ..options };
    let front = pipeline::front(name, text, &mut |_| None, &options);
    let told: Vec<String> = front.diagnostics.iter().map(|d| d.error.to_string()).collect();
    let program = front.program.as_ref().unwrap_or_else(|| panic!("{told:?}"));
    let (module, _) = pipeline::middle(program, &options).expect("it optimises");
    let lowered = pipeline::lower(&module, &options).expect("it lowers");
    let library = pipeline::library(program, &module, &lowered, &front.sources, &options).expect("it compiles");
    let mut session = common::session(library, Some(2)).expect("it links");
    let manifest = session.manifest.clone();
    session.store.initialise(&manifest, 7).expect("it fits");
    session
}

#[test]
fn blocks_are_rounded_as_the_formulas_say() {
    let text = "use std.fp8.round_fp8
dims B
model m(x: [B, 12]) -> ([B, 12], [B, 12], f32[B, 3]) {
  let (code, scale) = quantize(x, size: 4)
  (round_fp8(x, size: 4), dequantize(code, scale, size: 4), scale)
}
";
    let mut session = session("m.lode", text, &[]);
    let stream = Stream::new(5, "x");
    // Rows from 1e-6 to 1e6, a row of zeros, and a block whose other elements are far below its largest.
    let mut x: Vec<f64> = (0..120).map(|i| stream.normal(i) * 10f64.powi(i as i32 / 12 - 5)).collect();
    x.extend([0.0; 12]);
    x.extend([1e4, 1e-4, -0.02, 0.03, 448.0, 1.0, -1.06, 0.0, 1.0, 1.0, -1.0, 1.0]);
    let x: Vec<f32> = x.into_iter().map(|x| x as f32).collect();
    let b = x.len() as i64 / 12;
    let given = HostTensor::from_f64(DType::F32, &[b, 12], x.iter().map(|x| f64::from(*x)));
    let dims: DimEnv = [("B".into(), b)].into_iter().collect();
    let got: Vec<Vec<f64>> =
        session.run("forward", &dims, &[("x", &given)]).expect("it runs").into_iter().map(|(_, t)| t.to_f64()).collect();
    let (mut want, mut scales) = (Vec::new(), Vec::new());
    for block in x.chunks(4) {
        let scale = block.iter().fold(0.0f32, |m, x| m.max(x.abs())) / 448.0;
        scales.push(f64::from(scale));
        let code = |x: f32| if scale > 0.0 { DType::E4M3.round(f64::from(x * (1.0 / scale))) as f32 } else { 0.0 };
        want.extend(block.iter().map(|x| f64::from(code(*x) * scale)));
    }
    assert_eq!(got[2], scales);
    // A zero may have either sign.
    assert_eq!(got[1], want);
    assert_eq!(got[0], want, "the gradient's way round is exact");
    for (i, (x, y)) in x.iter().zip(&want).enumerate() {
        // Half a unit of 4 bits, or of the smallest code.
        let error = f64::from(x.abs()) / 16.0 + scales[i / 4] * 2f64.powi(-10);
        assert!((f64::from(*x) - y).abs() <= error, "{x} became {y}");
    }
}

#[test]
fn what_is_moved_as_codes_keeps_every_bit() {
    // Rows of two blocks and a shorter one; rounded before and after they are taken, and some of them after.
    let text = "use std.fp8.round_fp8
dims B, N
model m(x: [B, 3, 20], idx: i32[N]) -> ([N, 3, 20], [N, 3, 20], [N, 3, 8], [B, 3, 28], e4m3[N, 3, 20], f32[N, 3, 3]) {
  let y = round_fp8(x, size: 8)
  let (codes, scales) = quantize(take(x, idx), size: 8)
  (take(y, idx), round_fp8(take(x, idx), size: 8), take(y, idx)[:, :, 8:16], concat(y[:, :, 0:8], y), codes, scales)
}
";
    let stream = Stream::new(3, "x");
    let (b, n) = (7, 40);
    let x = HostTensor::from_f64(
        DType::F32,
        &[b, 3, 20],
        (0..b as u64 * 60).map(|i| stream.normal(i) * 2f64.powi(i as i32 % 40 - 20)),
    );
    // Some indices are outside.
    let idx = HostTensor::from_f64(DType::I32, &[n], (0..n).map(|i| ((i * 5) % 9 - 1) as f64));
    let dims: DimEnv = [("B".into(), b), ("N".into(), n)].into_iter().collect();
    let run = |no_optimize: bool| {
        let mut session = session_with("m.lode", text, &[], Options { no_optimize, ..Options::default() });
        let got = session.run("forward", &dims, &[("x", &x), ("idx", &idx)]).expect("it runs");
        got.into_iter().map(|(_, t)| t.to_f64()).collect::<Vec<_>>()
    };
    let (written, moved) = (run(true), run(false));
    assert_eq!(written, moved);
    assert!(written[0].iter().any(|x| *x != 0.0) && written[0] == written[1]);
}

#[test]
fn products_of_deepseek_v3_round_their_operands_if_asked() {
    let text = include_str!("../../models/deepseek_v3/model.lode");
    let small = [
        ("vocab_size", "64"),
        ("hidden_size", "32"),
        ("intermediate_size", "64"),
        ("moe_intermediate_size", "16"),
        ("num_hidden_layers", "2"),
        ("first_k_dense_replace", "1"),
        ("num_attention_heads", "2"),
        ("q_lora_rank", "16"),
        ("kv_lora_rank", "16"),
        ("qk_nope_head_dim", "8"),
        ("qk_rope_head_dim", "4"),
        ("v_head_dim", "8"),
        ("n_routed_experts", "4"),
        ("num_experts_per_tok", "2"),
        ("n_group", "2"),
        ("topk_group", "1"),
        ("initializer_range", "0.2"),
    ];
    let run = |block: &'static str| {
        let set: Vec<(&str, &str)> = small.into_iter().chain([("fp8_block", block)]).collect();
        let mut session = session("deepseek_v3.lode", text, &set);
        let tokens = HostTensor::from_f64(DType::I32, &[1, 9], (0..9).map(|i| f64::from(i * 7 % 64)));
        let dims: DimEnv = [("B".into(), 1), ("T".into(), 9)].into_iter().collect();
        session.run("forward", &dims, &[("tokens", &tokens)]).expect("it runs")[0].1.to_f64()
    };
    let (exact, rounded) = (run("0"), run("16"));
    let size = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let off = size(&mut exact.iter().zip(&rounded).map(|(a, b)| a - b)) / size(&mut exact.iter().copied());
    // Both operands of eight products one after the other, to 4 bits each (2^−4/√3 of a value): 0.2, not parts of a hundred and not the value itself.
    assert!((1e-2..0.4).contains(&off), "logits are off by {off:.1e}");
}
