//! Every entry of every model, small, compiled for the host, against the graph's interpreter.

use base::DType;
use driver::{
    commands::common,
    pipeline::{self, Options},
};
use exec::HostTensor;
use graph::{
    Role,
    interp::{self, Tensor},
};
use hir::Overrides;
use std::path::Path;

fn options(set: &str) -> Options {
    let set = set.split_whitespace().filter_map(|s| s.split_once('=')).map(|(n, v)| (n.to_string(), v.to_string())).collect();
    Options { overrides: Overrides { set, ..Overrides::default() }, ..Options::default() }
}

/// Runs `forward` and `grad` both ways, with the steps and kernels of the host and with those of a GPU; the worst difference relative to
/// the largest magnitude of each output.
fn compare(model: &str, set: &str, b: i64, t: i64, vocab: i64) {
    for gpu in [false, true] {
        compare_steps(model, set, [b, t, vocab], gpu);
    }
}

fn compare_steps(model: &str, set: &str, [b, t, vocab]: [i64; 3], gpu: bool) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models").join(model).join("model.lode");
    let text = std::fs::read_to_string(&path).expect("the model is part of the source");
    let options = options(set);
    let front = pipeline::front("model.lode", &text, &mut |_| None, &options);
    let told: Vec<String> = front.diagnostics.iter().map(|d| d.error.to_string()).collect();
    let program = front.program.as_ref().unwrap_or_else(|| panic!("{model}: {told:?}"));
    let (module, reports) = pipeline::middle(program, &Options { gpu, ..options.clone() }).expect("it optimises");
    assert!(reports.iter().all(|r| r.cost.1 <= r.cost.0), "{reports:?}");
    let (plain, _) = pipeline::middle(program, &Options { no_optimize: true, ..options.clone() }).expect("it compiles");
    let lowered = pipeline::lower(&module, &Options { gpu, ..Options::default() }).expect("it lowers");
    let context = dialects::context();
    dialects::load(&context, &[dialects::GRAPH_IRDL, dialects::TILE_IRDL]).expect("the dialects load");
    for text in [graph::text::print(&module), tile::text::print(&lowered.kernels)] {
        dialects::parse(&context, &text).unwrap_or_else(|e| panic!("{model}: {e}"));
    }
    let library = pipeline::library(program, &module, &lowered, &front.sources, &options).expect("it compiles");
    let mut session = common::session(library, Some(2)).expect("it links");
    let manifest = session.manifest.clone();
    session.store.initialise(&manifest, 1).expect("it fits");
    let shape = [b, t];
    let numbers = |step: i64| (0..b * t).map(move |i| ((i * 37 + step * 11 + i * i) % vocab) as f64);
    let tokens = HostTensor::from_f64(DType::I32, &shape, numbers(0));
    let targets = HostTensor::from_f64(DType::I32, &shape, numbers(1));
    let weights = HostTensor::from_f64(DType::F32, &shape, (0..b * t).map(|_| 1.0 / (b * t) as f64));
    for entry in ["forward", "grad"] {
        let inputs: Vec<(&str, &HostTensor)> = match entry {
            "forward" => vec![("tokens", &tokens)],
            _ => vec![("tokens", &tokens), ("targets", &targets), ("weights", &weights)],
        };
        let shapes: Vec<(&str, &[i64])> = inputs.iter().map(|(n, _)| (*n, &shape[..])).collect();
        let dims = session.bind(entry, &shapes).expect("the shapes fit");
        let func = plain.func(entry).expect("the entry is there");
        let mut args = Vec::new();
        for (arg, _, ty) in func.arg_values() {
            let role = if arg.role == Role::State { library::Role::State } else { library::Role::Param };
            let given = inputs.iter().find(|(n, _)| *n == arg.name).map(|(_, t)| (*t).clone());
            let zeros = || {
                HostTensor::from_f64(
                    ty.dtype,
                    &ty.eval(&dims).expect("extents"),
                    vec![0.0; ty.eval(&dims).expect("extents").iter().product::<i64>() as usize],
                )
            };
            let t = match arg.role {
                Role::Param | Role::State => {
                    let slot = session.store.get(role, &arg.name).expect("it was initialised");
                    HostTensor { dtype: slot.dtype, shape: slot.shape.clone(), bytes: slot.memory.bytes().to_vec() }
                }
                _ => given.unwrap_or_else(zeros),
            };
            args.push(Tensor { dtype: t.dtype, shape: t.shape.clone(), data: t.to_f64() });
        }
        let want = interp::eval(func, &args, &dims, interp::Options::EXACT).expect("it evaluates");
        session.store.zero(library::Role::Grad);
        session.store.zero(library::Role::Tally);
        let outputs = session.run(entry, &dims, &inputs).expect("it runs");
        for (o, want) in func.outputs.iter().zip(want) {
            let stored = |role| session.store.get(role, &o.name).map(|s| exec::tensor::read(s.dtype, s.memory.bytes()));
            let got = match o.role {
                Role::Grad => stored(library::Role::Grad),
                Role::Tally => stored(library::Role::Tally),
                _ => outputs.iter().find(|(n, _)| *n == o.name).map(|(_, t)| t.to_f64()),
            };
            let got = got.unwrap_or_else(|| panic!("{entry} gives no {}", o.name));
            let scale = want.data.iter().fold(1e-6f64, |m, x| m.max(x.abs()));
            let worst = got.iter().zip(&want.data).fold(0.0f64, |m, (x, y)| m.max((x - y).abs() / scale));
            assert!(got.len() == want.data.len() && worst < 2e-4, "{model} {entry} {}: {worst:.2e} of {scale:.2e}", o.name);
        }
    }
}

#[test]
fn strata_agrees_with_the_interpreter() {
    compare(
        "strata",
        "layers=2 vocab=32 d=32 heads=4 kv=2 dh=8 experts=4 ff=16 length=8 stride=4 size=8 count=3 window=12",
        2,
        45,
        32,
    );
}

#[test]
fn strata_without_a_compressed_key_agrees() {
    compare(
        "strata",
        "layers=1 vocab=16 d=16 heads=2 kv=1 dh=8 experts=4 ff=8 length=8 stride=4 size=8 count=3 window=12",
        1,
        5,
        16,
    );
}

#[test]
fn llama_agrees_with_the_interpreter() {
    compare(
        "llama",
        "num_hidden_layers=2 vocab_size=32 hidden_size=32 intermediate_size=48 num_attention_heads=4 head_dim=8",
        2,
        19,
        32,
    );
}

#[test]
fn a_llama_of_scaled_positions_agrees_with_the_interpreter() {
    let small = "num_hidden_layers=1 vocab_size=32 hidden_size=32 intermediate_size=48 num_attention_heads=4 head_dim=8 original_max_position_embeddings=16";
    for scaling in ["rope_type=yarn factor=4.0", "rope_type=yarn factor=4.0 attention_factor=0.9", "rope_type=llama3 factor=8.0"]
    {
        compare("llama", &format!("{small} {scaling}"), 1, 21, 32);
    }
}

#[test]
fn qwen3_moe_agrees_with_the_interpreter() {
    compare(
        "qwen3_moe",
        "num_hidden_layers=2 vocab_size=32 hidden_size=32 moe_intermediate_size=16 head_dim=8 num_experts=4",
        2,
        17,
        32,
    );
}

#[test]
fn deepseek_v3_agrees_with_the_interpreter() {
    let set = "vocab_size=32 hidden_size=32 intermediate_size=48 moe_intermediate_size=16 num_hidden_layers=3 first_k_dense_replace=1 \
               num_attention_heads=4 q_lora_rank=16 kv_lora_rank=8 qk_nope_head_dim=8 qk_rope_head_dim=4 v_head_dim=8 n_routed_experts=8 \
               num_experts_per_tok=2 n_group=4 topk_group=2 initializer_range=0.1";
    compare("deepseek_v3", set, 2, 13, 32);
}
