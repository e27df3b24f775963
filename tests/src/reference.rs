//! Models and ops held against what others compute. `tests/reference` has the scripts that made the cases: Hugging Face's models with
//! random weights, and loops in NumPy over the formulas of NSA and of DeepSeek-V3's mixtures. Config, weights and arrays are read as a
//! user would give them to `lode run`.

use driver::{
    cli::{Backend, MessageFormat, Model, Run},
    commands,
};
use std::path::{Path, PathBuf};

/// The exit code of `lode run` of `file` on a case with these inputs.
fn run(file: &str, case: &Path, inputs: &[&str], output: &str, set: &[&str], backend: Backend) -> u8 {
    let weights = case.join("model.safetensors");
    let args = Run {
        model: Model {
            file: Path::new(env!("CARGO_MANIFEST_DIR")).join(file),
            set: set.iter().map(|s| s.to_string()).collect(),
            config: Some(case.join("config.json")),
            locked: false,
        },
        entry: "forward".into(),
        input: inputs.iter().map(|n| format!("{n}=@{}", case.join(n).with_extension("npy").display())).collect(),
        expect: vec![format!("output=@{}", case.join(output).display())],
        // Both sides round some forty times to f32, at 6e-8 each.
        tolerance: 1e-5,
        backend,
        device: 0,
        weights: Some(weights).filter(|w| w.exists()),
        seed: 0,
        out: None,
    };
    let run = move || commands::run::run(&args, MessageFormat::Human);
    let worker = std::thread::Builder::new().stack_size(64 << 20).spawn(run).expect("a thread can be started");
    worker.join().expect("it does not panic")
}

/// The cases whose names begin so, in order.
fn cases(prefix: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("reference/cases");
    let entries = folder.read_dir().expect("the cases are part of the source").filter_map(Result::ok).map(|e| e.path());
    let mut found: Vec<PathBuf> =
        entries.filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(prefix))).collect();
    found.sort();
    found
}

fn all_agree(file: &str, prefix: &str, count: usize, inputs: &[&str], output: &str) {
    let cases = cases(prefix);
    assert_eq!(cases.len(), count, "cases of {prefix}");
    for case in cases {
        for backend in [Backend::Ref, Backend::Host] {
            assert_eq!(run(file, &case, inputs, output, &[], backend), 0, "{} by {backend:?}", case.display());
        }
    }
}

/// With another config the same case must differ: the comparison can tell.
fn differs(model: &str, prefix: &str, set: &str) {
    let file = format!("../models/{model}/model.lode");
    assert_eq!(run(&file, &cases(prefix)[0], &["tokens"], "logits.npy", &[set], Backend::Ref), 1, "{prefix} with {set}");
}

#[test]
fn llama_agrees_with_transformers() {
    all_agree("../models/llama/model.lode", "llama", 1, &["tokens"], "logits.npy");
    // The case's angle is read from an object within the config.
    differs("llama", "llama", "rope_theta=10000.0");
}

#[test]
fn qwen3_moe_agrees_with_transformers() {
    all_agree("../models/qwen3_moe/model.lode", "qwen3_moe", 1, &["tokens"], "logits.npy");
    differs("qwen3_moe", "qwen3_moe", "norm_topk_prob=false");
}

#[test]
fn deepseek_v3_agrees_with_transformers() {
    all_agree("../models/deepseek_v3/model.lode", "deepseek_v3", 1, &["tokens"], "logits.npy");
    differs("deepseek_v3", "deepseek_v3", "topk_group=4");
    differs("deepseek_v3", "deepseek_v3", "rope_interleave=false");
}

#[test]
fn nsa_agrees_with_its_formulas() {
    all_agree("reference/nsa.lode", "nsa", 14, &["q", "kc", "vc", "ks", "vs", "kw", "vw", "gate"], "output.npy");
}

#[test]
fn mixtures_agree_with_their_formulas() {
    all_agree("reference/moe.lode", "moe", 8, &["x"], "output.npy");
}
