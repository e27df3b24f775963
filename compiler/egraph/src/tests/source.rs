//! The shipped models as the driver hands them to the optimiser. Shared with `examples/curve.rs`.

use base::{Diags, Sources};
use graph::{
    Module, Role,
    autodiff::{self, Remat, Seed},
    passes,
};
use hir::Overrides;
use std::path::Path;

/// The models, each with a small configuration.
pub const MODELS: &[(&str, &str)] = &[
    (
        "deepseek_v3",
        "vocab_size=256 hidden_size=64 intermediate_size=128 moe_intermediate_size=32 num_hidden_layers=3 first_k_dense_replace=1 \
         num_attention_heads=4 q_lora_rank=32 kv_lora_rank=16 qk_nope_head_dim=16 qk_rope_head_dim=8 v_head_dim=16 n_routed_experts=8 \
         num_experts_per_tok=2 n_group=4 topk_group=2",
    ),
    ("llama", ""),
    ("qwen3_moe", ""),
    ("strata", ""),
];

/// `forward`, `loss`, `update` and `grad` of `models/<name>` with config values set, normalised.
pub fn module(name: &str, set: &str) -> Module {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models").join(name).join("model.lode");
    compile(&std::fs::read_to_string(path).expect("the model is part of the source"), set)
}

/// The same of a text.
pub fn compile(text: &str, set: &str) -> Module {
    let set = set.split_whitespace().filter_map(|s| s.split_once('=')).map(|(n, v)| (n.to_string(), v.to_string())).collect();
    let (mut sources, mut diags) = (Sources::default(), Diags::new());
    let root = sources.add("model.lode", text);
    let overrides = Overrides { set, ..Overrides::default() };
    let program = hir::lower(root, &mut sources, &mut |_| None, &overrides, &mut diags);
    let told: Vec<String> = diags.into_sorted().iter().map(|d| d.error.to_string()).collect();
    let mut module = program.unwrap_or_else(|| panic!("{told:?}")).module;
    let normalise = |m: &mut Module| passes::run(m, passes::PIPELINE, false).expect("the passes are there");
    normalise(&mut module);
    if let Some(loss) = module.func("loss") {
        let wrt: Vec<usize> = (0..loss.args.len()).filter(|i| loss.args[*i].role == Role::Param).collect();
        let grad = autodiff::grad(loss, &wrt, Seed { objective: "loss", remat: Remat::Cheap }).expect("it has a derivative");
        let mut grad = graph::accumulate::accumulate(&grad);
        grad.name = "grad".into();
        module.funcs.push(grad);
    }
    passes::run(&mut module, &["drop_stop_gradient"], false).expect("the pass is there");
    normalise(&mut module);
    module
}
