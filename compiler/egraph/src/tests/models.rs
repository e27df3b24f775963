//! What fires in the shipped models, and what it gives.

use super::*;

/// A shipped model or bench as a test has it: its name, the precision that it is given, what is set, and the run-time dims that it is optimised for.
struct Shipped(&'static str, &'static str, &'static str, &'static [(&'static str, i64)]);

/// f32 storage, products of bf16.
const NARROW: &str = "precision { storage = f32, compute = bf16 }";

/// The sizes of DeepSeek-V3, of four layers, of which the last has experts.
const PUBLISHED: Shipped = Shipped("deepseek_v3", "", "num_hidden_layers=4", &[]);

/// The same in products of bf16.
const NARROW_PUBLISHED: Shipped = Shipped("deepseek_v3", NARROW, "num_hidden_layers=4", &[("B", 8), ("T", 2048)]);

/// The numbers of Granite 3.1, 2B, in a small llama.
const GRANITE: Shipped = Shipped(
    "llama",
    "",
    "embedding_multiplier=12.0 attention_multiplier=0.015625 residual_multiplier=0.22 logits_scaling=8.0",
    &[],
);

impl Shipped {
    /// As tests have it, small.
    fn small(name: &'static str) -> Shipped {
        Shipped(name, "", source::MODELS.iter().find(|(n, _)| *n == name).expect("it is shipped").1, &[])
    }
    fn module(&self) -> Module {
        let Shipped(name, precision, set, _) = self;
        let path = match name.strip_prefix("benches/") {
            Some(bench) => format!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/benches/{}.lode"), bench),
            None => format!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/{}/model.lode"), name),
        };
        let text = std::fs::read_to_string(path).expect("it is shipped");
        source::compile(&text.replace("dims B, T", &format!("dims B, T\n{precision}")), set)
    }
    /// What the rules did in these entries, by the cost of a target.
    fn reports(&self, gpu: bool, entries: &BTreeSet<&str>) -> Vec<Report> {
        let model = tile::cost::Model::new(tile::Tuning::of_target(gpu));
        let sizes: DimEnv = self.3.iter().map(|(n, v)| ((*n).into(), *v)).collect();
        let cost = |op: &Op, x: &[&TensorType], y: &[TensorType]| model.op_cost(&sizes, op, x, y);
        let mut module = self.module();
        module.funcs.retain(|f| entries.contains(f.name.as_str()));
        let (out, reports) = optimize(&module, &cost, &Options { sizes: sizes.clone(), ..Options::default() });
        assert_eq!(graph::verify::verify(&out), [], "{}", self.0);
        for r in &reports {
            assert!(r.num_nodes.1 < Options::default().node_limit && r.cost.1 <= r.cost.0, "{}: {r:?}", self.0);
        }
        reports
    }
}

/// Every rule, with a shipped model or bench and an entry where the rule makes what is chosen; or where it fires and something else is cheaper. `host`, `gpu` or both of
/// them.
const SHOWN: &[(&str, &[&str], &str, &str)] = &[
    // Algebra: products re-associated, latent attention absorbed, products of shared operands joined, axes moved, norms folded.
    ("deepseek_v3 forward", &["host"], "chosen", "contract-of-contract attend-of-projected-keys concat-of-broadcast"),
    ("deepseek_v3 forward", &["host", "gpu"], "fires", "attend-of-projected-values attend-of-repeated-heads"),
    ("deepseek_v3 forward", &["host", "gpu"], "chosen", "contract-of-shared-operand contract-of-reshape div-by-constant"),
    ("deepseek_v3 forward", &["host"], "chosen", "reshape-of-contract slice-of-contract"),
    ("deepseek_v3 forward", &["host", "gpu"], "fires", "contract-of-transpose"),
    ("deepseek_v3 grad", &["host", "gpu"], "chosen", "transpose-of-contract"),
    ("deepseek_v3 forward", &["host"], "chosen", "contract-of-mul-by-summed"),
    ("deepseek_v3, as published forward", &["gpu"], "chosen", "contract-of-mul-by-row contract-of-mul-by-summed"),
    ("llama, wide forward", &["gpu"], "chosen", "contract-of-mul-by-summed"),
    ("strata grad", &["host", "gpu"], "fires", "add-of-contracts"),
    // Numbers that logits and what a layer adds are multiplied by go behind the products of their gradients.
    ("llama, granite grad", &["host", "gpu"], "chosen", "contract-of-mul-by-constant"),
    // What YaRN multiplies queries and keys by goes into the scale.
    ("nsa_decode forward", &["gpu"], "chosen", "scores-of-attend"),
    ("llama, yarn forward", &["host", "gpu"], "chosen", "attend-of-scaled-query"),
    // Attention: the choice of blocks, gates and sum of branches in the kernel of one, rotary positions in that of a projection.
    ("strata forward", &["host", "gpu"], "chosen", "topk-of-scores"),
    ("strata grad", &["host", "gpu"], "chosen", "topk-of-scores"),
    ("strata forward", &["gpu"], "chosen", "map-of-attend"),
    ("strata grad", &["gpu"], "chosen", "map-of-attend"),
    ("llama, wide forward", &["gpu"], "chosen", "map-of-contract-columns"),
    ("llama, wide grad", &["gpu"], "chosen", "map-of-contract-columns"),
    ("deepseek_v3, narrow forward", &["gpu"], "chosen", "map-of-contract-columns"),
    ("deepseek_v3, narrow grad", &["gpu"], "chosen", "map-of-contract-columns"),
    // Experts: rows with their loads and SwiGLU where gate and up are summed, weights of rows and the combination, the router; backwards too.
    ("qwen3_moe forward", &["gpu"], "chosen", "map-of-grouped-contracts contract-of-few-choices"),
    ("qwen3_moe grad", &["gpu"], "chosen", "map-of-grouped-contracts scatter-add-by-position scatter-add-by-source"),
    ("qwen3_moe grad", &["host"], "chosen", "scatter-add-by-position scatter-add-by-source contract-of-nothing-summed"),
    ("qwen3_moe forward", &["host"], "chosen", "contract-of-few-choices"),
    ("qwen3_moe, few tokens forward", &["host", "gpu"], "chosen", "topk-of-rows"),
    ("qwen3_moe, few tokens grad", &["host", "gpu"], "chosen", "topk-of-rows"),
    ("deepseek_v3, as published forward", &["host", "gpu"], "chosen", "topk-of-rows"),
    ("qwen3_moe, wide forward", &["gpu"], "chosen", "topk-of-rows"),
    ("deepseek_v3 grad", &["host"], "chosen", "add-of-grouped-contracts"),
    ("deepseek_v3 grad", &["gpu"], "chosen", "grouped-contract-of-joined"),
    ("qwen3_moe forward", &["host", "gpu"], "fires", "grouped-contract-of-shared-operand"),
    ("deepseek_v3, many forward", &["host", "gpu"], "fires", "add-of-shared-expert"),
    // Heads: the loss without logits, maps of products.
    ("llama, wide loss", &["host", "gpu"], "chosen", "gather-of-contract reduce-of-streamed gather-of-map"),
    ("llama, wide forward", &["gpu"], "chosen", "map-of-contracts"),
    // Gate and up with their gate, all three kept.
    ("llama, wide grad", &["gpu"], "chosen", "map-of-contracts"),
    ("qwen3_moe forward", &["host", "gpu"], "fires", "mul-of-silu"),
    ("qwen3_moe grad", &["host", "gpu"], "fires", "mul-of-silu-right"),
    // Precision: casts and codes where they are few.
    ("llama, wide grad", &["host"], "chosen", "cast-of-layout"),
    ("llama, wide loss", &["gpu"], "chosen", "gather-of-cast"),
    ("llama, wide grad", &["host", "gpu"], "fires", "slice-of-cast"),
    ("deepseek_v3, narrow grad", &["gpu"], "chosen", "slice-of-cast"),
    ("deepseek_v3, narrow forward", &["host", "gpu"], "fires", "cast-of-cast"),
    ("qwen3_moe, wide grad", &["gpu"], "chosen", "contract-of-widened-and-f32 contract-of-widened"),
    ("deepseek_v3, unshared fp8 forward", &["host"], "chosen", "gather-of-dequantize"),
    (
        "deepseek_v3, fp8 forward",
        &["host", "gpu"],
        "fires",
        "add-of-rounding dequantize-of-moved quantize-of-moved gather-of-quantize slice-of-quantize",
    ),
    ("fp8_layer forward", &["gpu"], "chosen", "contract-of-dequantized grouped-contract-of-dequantized"),
    ("deepseek_v3, fp8 forward", &["host"], "chosen", "slice-of-dequantize reshape-of-dequantize"),
    ("deepseek_v3, fp8 grad", &["host"], "chosen", "concat-of-dequantize"),
];

#[test]
fn what_each_rule_is_for_is_done_in_a_shipped_model() {
    let tiny = Shipped::small("deepseek_v3").2;
    let fp8: &str = Box::leak(format!("{tiny} fp8_block=16").into_boxed_str());
    let unshared: &str = Box::leak(format!("{fp8} n_shared_experts=0").into_boxed_str());
    let wide = "hidden_size=768 num_attention_heads=12 num_key_value_heads=4 head_dim=64 intermediate_size=2048 vocab_size=32768";
    let wide_experts =
        "hidden_size=2048 num_attention_heads=32 num_key_value_heads=4 head_dim=128 moe_intermediate_size=768 num_experts=128";
    let models = [
        ("deepseek_v3", Shipped::small("deepseek_v3")),
        ("strata", Shipped::small("strata")),
        ("qwen3_moe", Shipped::small("qwen3_moe")),
        ("llama, wide", Shipped("llama", NARROW, wide, &[("B", 8), ("T", 2048)])),
        ("qwen3_moe, wide", Shipped("qwen3_moe", NARROW, wide_experts, &[("B", 8), ("T", 2048)])),
        ("deepseek_v3, fp8", Shipped("deepseek_v3", "", fp8, &[("B", 8), ("T", 512)])),
        ("deepseek_v3, unshared fp8", Shipped("deepseek_v3", "", unshared, &[("B", 8), ("T", 512)])),
        ("qwen3_moe, few tokens", Shipped("qwen3_moe", "", Shipped::small("qwen3_moe").2, &[("B", 1), ("T", 64)])),
        ("deepseek_v3, as published", PUBLISHED),
        ("deepseek_v3, narrow", NARROW_PUBLISHED),
        ("llama, granite", GRANITE),
        ("nsa_decode", Shipped("benches/nsa_decode", "", "", &[("B", 4), ("S", 65536), ("M", 4095)])),
        ("fp8_layer", Shipped("benches/fp8_layer", "", "", &[("B", 1), ("T", 16384)])),
        ("llama, yarn", Shipped("llama", "", "rope_type=yarn factor=4.0", &[])),
        ("deepseek_v3, many", Shipped("deepseek_v3", "", tiny, &[("B", 1), ("T", 65536)])),
    ];
    let mut unseen: BTreeSet<&str> = rules::all().iter().map(|r| r.name).collect();
    let mut missing = Vec::new();
    for (name, model) in &models {
        let entry_of = |place: &'static str| place.strip_prefix(name).and_then(|rest| rest.strip_prefix(' '));
        let entries: BTreeSet<&str> = SHOWN.iter().filter_map(|(place, ..)| entry_of(place)).collect();
        for target in ["host", "gpu"] {
            let reports = model.reports(target == "gpu", &entries);
            for (place, targets, how, rules) in SHOWN {
                let Some(entry) = entry_of(place) else { continue };
                let of_entry = || reports.iter().filter(|r| r.func.split('/').next() == Some(entry));
                assert!(of_entry().next().is_some(), "{place}");
                for rule in rules.split(' ').filter(|_| targets.contains(&target)) {
                    let fires = of_entry().flat_map(|r| &r.fired).any(|(name, _)| name == rule);
                    let chosen = of_entry().flat_map(|r| &r.chosen).any(|s| s.rule == rule);
                    if !fires || *how == "chosen" && !chosen {
                        missing.push(format!("{place}, {target}: {rule} is not {how}"));
                    }
                    unseen.remove(rule);
                }
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(unseen.is_empty(), "no shipped model needs {unseen:?}");
    let known = |place: &str| models.iter().any(|(name, _)| place.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
    assert!(SHOWN.iter().all(|(place, ..)| known(place)));
}

#[test]
fn logits_of_a_llama_are_scaled() {
    let set = "num_hidden_layers=1 vocab_size=8 hidden_size=8 intermediate_size=8 num_attention_heads=2 num_key_value_heads=1";
    let dims = [("B".into(), 1), ("T".into(), 3)].into_iter().collect();
    let logits = |more: &str| {
        let module = source::module("llama", &format!("{set} {more}"));
        run(module.func("forward").expect("it is there"), &dims, 1)[0].value.data.clone()
    };
    // Layers that add nothing leave rows of the table, of which the norm takes the factor.
    let [plain, eighth, no_layers, wide] =
        ["", "logits_scaling=8.0", "residual_multiplier=0.0", "residual_multiplier=0.0 embedding_multiplier=1000.0"].map(logits);
    assert!(plain.iter().zip(&eighth).all(|(x, y)| (x - 8.0 * y).abs() <= 1e-9 * x.abs()));
    assert!(plain.iter().zip(&no_layers).any(|(x, y)| (x - y).abs() > 1e-3));
    assert!(no_layers.iter().zip(&wide).all(|(x, y)| (x - y).abs() <= 1e-2 * x.abs()), "{no_layers:?} {wide:?}");
}

#[test]
fn runs_agree() {
    for (name, set) in source::MODELS {
        let module = source::module(name, set);
        let (out, reports) = optimize(&module, &tile::cost::op_cost, &Options::default());
        let again = optimize(&module, &tile::cost::op_cost, &Options::default());
        assert_eq!((print(&out), reports), (print(&again.0), again.1), "{name}");
    }
}

/// The scores of a router and the products of the shared expert read the same rows.
#[test]
fn a_router_is_joined_with_the_shared_expert() {
    let module = Shipped::small("deepseek_v3").module();
    for gpu in [false, true] {
        let out = optimized_for(&module, gpu, &[]);
        let body = last_layer(&out, "forward");
        let joined = body.nodes.values().filter(|n| matches!(n.op, Op::Concat(0)));
        let columns: Vec<Vec<_>> = joined.map(|n| n.inputs.iter().map(|v| body.ty(*v).shape[0].known()).collect()).collect();
        // Scores of 8 experts; gate and up of 32.
        let mut all = [Some(8), Some(32), Some(32)];
        let has_all = |c: &Vec<Option<i64>>| {
            let mut c = c.clone();
            c.sort();
            all.sort();
            c == all
        };
        assert!(columns.iter().any(has_all), "gpu {gpu}: {columns:?}");
    }
}

/// No function costs more after than before, by a target's own table.
fn nothing_dearer_on(name: &str, module: &Module, gpu: bool) {
    let model = tile::cost::Model::new(tile::Tuning::of_target(gpu));
    let cost = |op: &Op, x: &[&TensorType], y: &[TensorType]| model.op_cost(&DimEnv::new(), op, x, y);
    let (out, _) = optimize(module, &cost, &Options::default());
    for (before, after) in module.funcs.iter().zip(&out.funcs) {
        let [was, is] = [before, after].map(|f| program_cost(f, &cost));
        assert!(is <= was, "{name} {} on {}: {is} in place of {was}", before.name, if gpu { "a GPU" } else { "the host" });
    }
}

/// What `examples/curve.rs` measures, without a clock: scopes stay small, no rule runs away, and depth changes nothing.
#[test]
fn e_graphs_stay_small_do_not_grow_with_depth_and_nothing_gets_dearer() {
    for (name, dim, depths) in [
        ("strata", "layers", &[2, 64][..]),
        ("deepseek_v3", "num_hidden_layers", &[5, 61]),
        ("qwen3_moe", "num_hidden_layers", &[2]),
        ("llama", "num_hidden_layers", &[2]),
    ] {
        let of = |layers: &i64| {
            let module = source::module(name, &format!("{dim}={layers}"));
            let (_, reports) = optimize(&module, &tile::cost::op_cost, &Options::default());
            reports.into_iter().map(|r| (r.func, r.num_nodes, r.fired)).collect::<Vec<_>>()
        };
        let shipped = source::module(name, "");
        [false, true].iter().for_each(|gpu| nothing_dearer_on(name, &shipped, *gpu));
        let all: Vec<_> = depths.iter().map(of).collect();
        assert!(all.iter().all(|x| *x == all[0]), "{name}");
        for (func, (before, after), fired) in &all[0] {
            assert!(*after <= 5 * before && *after < 2000, "{name} {func}: {before} e-nodes to {after}");
            for (rule, growth) in fired {
                assert!(growth.nodes <= *before, "{name} {func}: {rule} adds {growth:?} to {before} e-nodes");
            }
            let added: usize = fired.iter().map(|(_, g)| g.nodes).sum();
            assert!(before + added >= *after, "{name} {func}: who made the others? {before} e-nodes to {after}, {fired:?}");
        }
    }
}

/// Latent attention of some queries over a cache of latents, as written: keys and values of each head are computed.
const LATENT: &str = "
dims B, T, S
config { heads = 128, nope = 128, rope_dim = 64, v_dim = 128, rank = 512 }
model latent(a: [B, T, heads, nope], r: [B, T, heads, rope_dim], cache: [B, S, rank], shared: [B, S, rope_dim])
  -> [B, T, heads, v_dim] {
  let kv = rearrange(cache @ (param kv_b: [heads * (nope + v_dim), rank] = normal(0.02))^T, \"b s (h k) -> b s h k\", h: heads)
  let (k, v) = split(kv, [nope, v_dim])
  let k = concat(k, broadcast(shared[:, :, new, :], [B, S, heads, rope_dim]))
  attend(concat(a, r), k, v, causal(), scale: 0.07)
}
";

/// Floating-point operations of products and attention.
fn flops(f: &Func, sizes: &DimEnv) -> f64 {
    let size = |d: &Dim| d.eval(sizes).expect("every dim has a size") as f64;
    let elems = |t: &TensorType| size(&t.elems());
    let of = |node: &graph::Node| {
        let operand = |i: usize| f.ty(node.inputs[i]);
        match &node.op {
            Op::Contract(c) => {
                let own = c.rhs.iter().zip(&operand(1).shape).filter(|(x, _)| !c.lhs.contains(x));
                2.0 * elems(operand(0)) * own.map(|(_, d)| size(d)).product::<f64>()
            }
            Op::Attend(_) => 2.0 * (elems(operand(0)) + elems(&node.types[0])) * size(&operand(1).shape[1]),
            _ => 0.0,
        }
    };
    f.nodes.values().map(of).sum()
}

#[test]
fn latent_attention_is_absorbed_for_one_query_and_expanded_for_many() {
    let module = source::compile(LATENT, "");
    let at = |t: i64, s: i64| {
        let sizes: DimEnv = [("B".into(), 1), ("T".into(), t), ("S".into(), s)].into_iter().collect();
        let cost = |op: &Op, x: &[&TensorType], y: &[TensorType]| tile::cost::op_cost_at(&sizes, op, x, y);
        let options = Options { sizes: sizes.clone(), ..Options::default() };
        let (out, reports) = optimize(&module, &cost, &options);
        assert_eq!(graph::verify::verify(&out), []);
        let ratio = flops(&out.funcs[0], &sizes) / flops(&module.funcs[0], &sizes);
        (ratio, reports[0].chosen.iter().map(|s| s.rule).collect::<Vec<_>>())
    };
    let (ratio, rules) = at(1, 4096);
    assert!(ratio < 0.02, "{ratio} of the operations: {rules:?}");
    for rule in ["attend-of-projected-keys", "attend-of-projected-values", "attend-of-repeated-heads"] {
        assert!(rules.contains(&rule), "{rule} is not among {rules:?}");
    }
    let (ratio, rules) = at(4096, 4096);
    assert!(ratio == 1.0 && !rules.contains(&"attend-of-projected-keys"), "{ratio} of the operations: {rules:?}");
}

#[test]
fn absorbed_attention_means_the_same() {
    let module = source::compile(LATENT, "heads=2 nope=3 rope_dim=2 v_dim=4 rank=5");
    let f = &module.funcs[0];
    let mut fired = Vec::new();
    // As both variants of an entry are found: for few queries and for many.
    for bucket in [1, 4096] {
        let sizes: DimEnv = [("T".into(), bucket), ("S".into(), 4096)].into_iter().collect();
        let options = Options { sizes, ..Options::default() };
        for (seed, t, s) in [(0, 1, 4), (1, 3, 5), (2, 2, 2)] {
            let dims = [("B".into(), 2), ("T".into(), t), ("S".into(), s)].into_iter().collect();
            fired = check_choices_for("latent", f, &options, &dims, seed).0;
        }
    }
    assert!(fired.iter().any(|(r, n)| *r == "attend-of-projected-keys" && *n > 0), "{fired:?}");
}

/// The sparse attentions of `std`, with what choosing keys by a score of each pair of positions would store.
const SPARSE: &[(&str, bool)] = &[
    (
        "use std.nsa
dims B, T
model m(q: [B, T, 4, 8], k: [B, T, 2, 8], v: [B, T, 2, 8], g: [B, T, 4, 3]) -> [B, T, 4, 8] {
  nsa(q, k, v, g, length: 16, stride: 8, size: 16, count: 6, window: 64)
}",
        true,
    ),
    (
        "use std.moba
dims B, T
model m(q: [B, T, 4, 8], k: [B, T, 2, 8], v: [B, T, 2, 8]) -> [B, T, 4, 8] { moba(q, k, v, size: 16, count: 3) }",
        true,
    ),
    (
        "use std.dsa
dims B, T
model m(q: [B, T, 4, 8], k: [B, T, 2, 8], v: [B, T, 2, 8], qi: [B, T, 3, 8], ki: [B, T, 8], wi: [B, T, 3]) -> [B, T, 4, 8] {
  dsa(q, k, v, qi, ki, wi, count: 16)
}",
        true,
    ),
    (
        "use std.sink
dims B, T
model m(q: [B, T, 4, 8], k: [B, T, 2, 8], v: [B, T, 2, 8]) -> [B, T, 4, 8] { sink(q, k, v, window: 16, sinks: 4) }",
        false,
    ),
];

/// How many run-time extents are multiplied in a size, at most.
fn degree(d: &Dim) -> usize {
    d.sum_of_products().iter().map(|(_, atoms)| atoms.len()).max().unwrap_or(0)
}

#[test]
fn sparse_attention_of_std_stores_no_score_of_each_pair() {
    for ((text, chooses), gpu) in SPARSE.iter().flat_map(|of| [(of, false), (of, true)]) {
        let module = source::compile(text, "");
        let out = optimized_for(&module, gpu, &[]);
        assert_eq!(graph::verify::verify(&out), [], "{text}");
        let ops: Vec<&Op> = out.funcs[0].nodes.values().map(|n| &n.op).collect();
        let is_choice = |op: &&&Op| matches!(op, Op::Fused(r) if r.form == graph::op::Form::Select);
        let regions = ops.iter().filter(is_choice).count();
        assert_eq!(regions, usize::from(*chooses), "gpu {gpu}: {text}\n{}", print(&out));
        assert!(ops.iter().any(|op| matches!(op, Op::Attend(_))), "{text}");
        let stored = |m: &Module| {
            let options = tile::lower::Options { fuse: true, parts: gpu, products: gpu };
            let lowered = tile::lower(m, options).expect("it has kernels");
            lowered.entries[0].buffers.iter().map(|b| degree(&b.elems)).max()
        };
        // Batch and positions; not positions twice.
        assert_eq!(stored(&out), Some(2), "{text}\n{}", print(&out));
        assert_eq!(stored(&module), Some(if *chooses { 3 } else { 2 }), "{text}");
        // And they mean the same.
        let dims = [("B".into(), 2), ("T".into(), 37)].into_iter().collect();
        assert_agree(text, &run(&module.funcs[0], &dims, 1), &run(&out.funcs[0], &dims, 1));
    }
}

#[test]
fn a_sparse_attention_of_std_is_twenty_lines_at_most() {
    for name in ["moba", "dsa", "sink"] {
        let path = format!(concat!(env!("CARGO_MANIFEST_DIR"), "/../hir/std/{}.lode"), name);
        let text = std::fs::read_to_string(path).expect("it is in std");
        let lines = text.lines().filter(|l| !l.trim().is_empty() && !l.starts_with("//")).count();
        assert!(lines <= 20 && text.matches("fn ").count() == 1, "{name}: {lines} lines");
    }
}

/// The regions of ragged products of a function and of its loops, or of dense ones: how many products each has, how many results, and whether rows
/// come with their loads.
fn regions(f: &Func, ragged: bool) -> Vec<(usize, usize, bool)> {
    let of = |node: &graph::Node| match &node.op {
        Op::Fused(region) if region.form == graph::op::Form::Product => {
            let count = |is: &dyn Fn(&Op) -> bool| region.body.nodes.values().filter(|n| is(&n.op)).count();
            let [all, dense] =
                [count(&|op| matches!(op, Op::GroupedContract { .. })), count(&|op| matches!(op, Op::Contract(_)))];
            let gathers = count(&|op| matches!(op, Op::Gather { .. })) == 1;
            let products = if ragged { all } else { dense };
            if products > 0 { vec![(products, region.body.outputs.len(), gathers)] } else { Vec::new() }
        }
        Op::Repeat(r) => regions(&r.body, ragged),
        _ => Vec::new(),
    };
    f.nodes.values().flat_map(of).collect()
}

/// The module optimised for a target, for so many positions.
fn optimized_for(module: &Module, gpu: bool, sizes: &[(&str, i64)]) -> Module {
    let model = tile::cost::Model::new(tile::Tuning::of_target(gpu));
    let sizes: DimEnv = sizes.iter().map(|(n, v)| ((*n).into(), *v)).collect();
    let cost = |op: &Op, x: &[&TensorType], y: &[TensorType]| model.op_cost(&sizes, op, x, y);
    let (out, reports) = optimize(module, &cost, &Options { sizes: sizes.clone(), ..Options::default() });
    assert_eq!(graph::verify::verify(&out), []);
    assert!(reports.iter().all(|r| r.cost.1 <= r.cost.0));
    out
}

#[test]
fn branches_of_sparse_attention_are_gated_in_the_kernel_of_one_where_there_is_one() {
    fn regions(f: &Func) -> Vec<&graph::op::Fused> {
        fn of(node: &graph::Node) -> Option<&graph::op::Fused> {
            match &node.op {
                Op::Fused(region) if region.form == graph::op::Form::Attend => Some(&**region),
                _ => None,
            }
        }
        let inside = f.nodes.values().filter_map(|n| if let Op::Repeat(r) = &n.op { Some(regions(&r.body)) } else { None });
        f.nodes.values().filter_map(of).chain(inside.flatten()).collect()
    }
    let strata = source::module("strata", "");
    let sizes = [("B", 4), ("T", 2048)];
    let (out, on_host) = (optimized_for(&strata, true, &sizes), optimized_for(&strata, false, &sizes));
    for entry in ["forward", "grad"] {
        let of = |m: &Module| m.func(entry).map(|f| regions(f).iter().map(|r| r.body.outputs.len()).collect::<Vec<_>>());
        // The sum; the gradient needs the branch's result and its scores' sums as well.
        assert_eq!(of(&out), Some(vec![if entry == "grad" { 3 } else { 1 }]), "{entry}");
        assert_eq!(of(&on_host), Some(Vec::new()), "{entry}");
        let f = out.func(entry).expect("it is there");
        let maps = regions(f)[0].body.nodes.values().filter(|n| matches!(n.op, Op::Map(_))).count();
        assert_eq!(maps, 5, "{entry}: three gates and two sums");
    }
}

#[test]
fn dense_products_are_mapped_where_they_are_summed_if_there_is_a_kernel() {
    let shipped = source::module("llama", "");
    // As it is trained: gradients are f32, gate and up of the forward pass are kept for the gradient.
    let text =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/llama/model.lode")).expect("it is shipped");
    let narrow = text.replace("dims B, T", "dims B, T\nprecision { storage = f32, compute = bf16 }");
    let narrow = source::compile(&narrow, "hidden_size=2048 intermediate_size=5632 num_attention_heads=16 vocab_size=4096");
    for (name, module, sizes) in [("f32", &shipped, [("B", 64), ("T", 64)]), ("bf16", &narrow, [("B", 4), ("T", 2048)])] {
        let (out, on_host) = (optimized_for(module, true, &sizes), optimized_for(module, false, &sizes));
        let of = |m: &Module, entry: &str| regions(m.func(entry).expect("the entry is there"), false);
        // Where tensor cores take the product, positions of queries and keys; the gate, and both residuals of a layer after its last product.
        let forward = of(&out, "forward");
        let (rotated, rest) = forward.split_at(forward.len() - 2);
        assert_eq!(rest, [(2, 1, false), (1, 1, false)], "{name}: {forward:?}");
        assert!(rotated.iter().all(|r| *r == (1, 1, false)) && rotated.is_empty() == (name == "f32"), "{name}: {forward:?}");
        // A gate's two gradients read two operands at the end of a tile, which takes longer than a kernel of their own.
        let grad = of(&out, "grad");
        assert!(!grad.contains(&(1, 2, false)), "{name}: {grad:?}");
        assert_eq!((of(&on_host, "forward"), of(&on_host, "grad")), (Vec::new(), Vec::new()), "{name}");
    }
}

#[test]
fn positions_are_rotated_where_projections_are_summed() {
    let text = |name: &str| {
        let path = format!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/{}/model.lode"), name);
        let text = std::fs::read_to_string(path).expect("it is shipped");
        text.replace("dims B, T", "dims B, T\nprecision { storage = f32, compute = bf16 }")
    };
    // Queries and keys; of strata, whose rows are multiplied by more matrices, queries.
    for (name, set, count) in [
        ("llama", "hidden_size=768 num_attention_heads=12 num_key_value_heads=4 head_dim=64", 2),
        ("llama", "hidden_size=2048 num_attention_heads=16 num_key_value_heads=4 head_dim=128", 2),
        ("strata", "d=768 heads=12 dh=64", 1),
    ] {
        let module = source::compile(&text(name), set);
        let sizes = [("B", 8), ("T", 2048)];
        let (out, on_host) = (optimized_for(&module, true, &sizes), optimized_for(&module, false, &sizes));
        let rotated = |m: &Module, entry: &str| {
            let all = m.func(entry).expect("the entry is there").nodes.values().filter_map(|n| n.op.body());
            let regions =
                all.flat_map(|f| f.nodes.values()).filter_map(|n| if let Op::Fused(r) = &n.op { Some(r) } else { None });
            // Two halves of a head of one product.
            let joins = |r: &graph::op::Fused| r.body.nodes.values().any(|n| matches!(n.op, Op::Concat(3)));
            regions.filter(|r| r.form == graph::op::Form::Product && joins(r)).map(|r| r.body.outputs.len()).collect::<Vec<_>>()
        };
        // In a gradient it is what is rotated that is kept, and nothing rotates it again.
        for entry in ["forward", "grad"] {
            assert_eq!(rotated(&out, entry), vec![1; count], "{name} {set} {entry}");
            assert_eq!(rotated(&on_host, entry), [0; 0], "{name} {set} {entry}");
        }
    }
}

#[test]
fn experts_are_regions_of_products_where_there_is_a_kernel_for_them() {
    for (name, set) in source::MODELS.iter().filter(|(name, _)| *name != "llama") {
        let module = source::module(name, set);
        let (out, on_host) = (optimized_for(&module, true, &[]), optimized_for(&module, false, &[]));
        let of = |m: &Module, entry: &str| regions(m.func(entry).expect("the entry is there"), true);
        // Gate and up, of rows that are never stored.
        assert_eq!(of(&out, "forward"), [(2, 1, true)], "{name}");
        // Both are kept for the gradient, and those of both factors come from one product; the rows' is a sum of two, which may be a region or
        // computed where it is picked.
        let grad = of(&out, "grad");
        assert!(grad.starts_with(&[(2, 3, true), (1, 2, false)]), "{name}: {grad:?}");
        assert!(matches!(grad[2..], [] | [(1, _, false)]), "{name}: {grad:?}");
        assert_eq!((of(&on_host, "forward"), of(&on_host, "grad")), (Vec::new(), Vec::new()), "{name}");
    }
}

#[test]
fn a_shared_expert_is_no_more_expert_where_matrices_would_be_copied() {
    let set = source::MODELS.iter().find(|(n, _)| *n == "deepseek_v3").expect("it is shipped").1;
    for (set, tokens) in [(set, 4096), ("", 65536)] {
        let module = source::module("deepseek_v3", set);
        let module = Module { funcs: vec![module.func("forward").expect("it is there").clone()], ..module };
        for gpu in [false, true] {
            let model = tile::cost::Model::new(tile::Tuning::of_target(gpu));
            let sizes: DimEnv = [("B".into(), 1), ("T".into(), tokens)].into_iter().collect();
            let cost = |op: &Op, x: &[&TensorType], y: &[TensorType]| model.op_cost(&sizes, op, x, y);
            let (_, reports) = optimize(&module, &cost, &Options { sizes: sizes.clone(), ..Options::default() });
            let fired = reports.iter().flat_map(|r| &r.fired).any(|(rule, _)| rule == "add-of-shared-expert");
            assert!(!fired, "gpu {gpu}, {tokens} tokens, {set}");
        }
    }
}

/// The scattered sums of rows in the loops of a function.
fn scattered_rows(f: &Func) -> usize {
    let of = |node: &graph::Node| match &node.op {
        Op::Repeat(r) => {
            r.body.nodes.values().filter(|n| matches!(n.op, Op::ScatterAdd { batch: 0, .. })).count() + scattered_rows(&r.body)
        }
        _ => 0,
    };
    f.nodes.values().map(of).sum()
}

#[test]
fn gradients_of_experts_are_picked_by_the_routing_of_an_earlier_loop() {
    for (name, set) in source::MODELS.iter().filter(|(name, _)| *name != "llama") {
        let module = source::module(name, set);
        let before = scattered_rows(module.func("grad").expect("it has a gradient"));
        assert!(before >= 2, "{name}");
        for gpu in [false, true] {
            let model = tile::cost::Model::new(tile::Tuning::of_target(gpu));
            let sizes = DimEnv::new();
            let cost = |op: &Op, x: &[&TensorType], y: &[TensorType]| model.op_cost(&sizes, op, x, y);
            let (out, reports) = optimize(&module, &cost, &Options::default());
            let grad = out.func("grad").expect("it has a gradient");
            let rules: Vec<&str> =
                reports.iter().filter(|r| r.func.starts_with("grad")).flat_map(|r| &r.chosen).map(|s| s.rule).collect();
            for rule in ["scatter-add-by-position", "scatter-add-by-source"] {
                assert!(rules.contains(&rule), "{name}, gpu {gpu}: {rule} is not among {rules:?}");
            }
            assert_eq!(scattered_rows(grad), before - 2, "{name}, gpu {gpu}\n{}", print(&out));
        }
    }
}

/// The largest buffer of an entry, and all of them. # Units: elements.
fn buffers(m: &Module, entry: &str, gpu: bool, sizes: &DimEnv) -> (i64, i64) {
    let options = tile::lower::Options { fuse: true, parts: gpu, products: gpu };
    let lowered = tile::lower(m, options).expect("it has kernels");
    let entry = lowered.entries.iter().find(|e| e.name == entry).expect("the entry is there");
    let inner = entry.buffers.iter().filter(|b| !b.external).map(|b| b.elems.eval(sizes).expect("every dim has a size"));
    inner.fold((0, 0), |(most, sum), n| (most.max(n), sum + n))
}

#[test]
fn the_loss_stores_no_logits() {
    // A GPU streams what is large: there the launches of 17 chunks cost something.
    for (gpu, t) in [(false, 128), (true, 2048)] {
        let sizes: DimEnv = [("B".into(), 8), ("T".into(), t)].into_iter().collect();
        let model = tile::cost::Model::new(tile::Tuning::of_target(gpu));
        for (name, set) in source::MODELS.iter().filter(|(name, _)| *name != "strata") {
            // The last chunk has 1,000 tokens.
            let module = source::module(name, &format!("{set} vocab_size=33768"));
            let module = Module { funcs: vec![module.func("loss").expect("it is trained").clone()], ..module };
            let cost = |op: &Op, x: &[&TensorType], y: &[TensorType]| model.op_cost(&sizes, op, x, y);
            let (out, reports) = optimize(&module, &cost, &Options { sizes: sizes.clone(), ..Options::default() });
            let chosen: Vec<&str> = reports.iter().flat_map(|r| &r.chosen).map(|s| s.rule).collect();
            assert!(chosen.contains(&"reduce-of-streamed") && chosen.contains(&"gather-of-contract"), "{name}: {chosen:?}");
            let logits = 8 * t * 33768;
            assert!(buffers(&module, "loss", gpu, &sizes).0 >= logits, "gpu {gpu}: {name}");
            let (most, sum) = buffers(&out, "loss", gpu, &sizes);
            assert!(most <= logits / 15 && sum <= logits / 3, "gpu {gpu}: {name}: {most} of {sum}, of {logits} logits");
        }
    }
}

#[test]
fn routers_are_one_operator_each() {
    for (name, set) in source::MODELS.iter().filter(|(name, _)| *name != "llama") {
        let module = source::module(name, set);
        for (gpu, entry) in [(false, "forward"), (false, "grad"), (true, "forward"), (true, "grad")] {
            // Of few tokens; many are chosen for by several kernels on a GPU.
            let out = optimized_for(&module, gpu, &[("B", 1), ("T", 64)]);
            let (mut routers, mut chosen_apart) = (0, 0);
            for node in out.func(entry).expect("the entry is there").nodes.values() {
                let Op::Repeat(r) = &node.op else { continue };
                let is_router = |op: &Op| matches!(op, Op::Fused(f) if f.form == graph::op::Form::Rows);
                let count = |is: &dyn Fn(&Op) -> bool| r.body.nodes.values().filter(|n| is(&n.op)).count();
                // Experts among which a choice is made are no positions.
                let of_few = |n: &graph::Node| r.body.ty(n.inputs[0]).shape.last().is_some_and(|d| d.known().is_some());
                routers += count(&is_router);
                chosen_apart += r.body.nodes.values().filter(|n| matches!(n.op, Op::TopK(_)) && of_few(n)).count();
            }
            assert_eq!((routers, chosen_apart), (1, 0), "{name} {entry}, gpu {gpu}\n{}", print(&out));
        }
    }
}

#[test]
fn norms_go_through_products_of_a_shipped_model() {
    // Routers and latents have fewer columns than the norms before them; at sizes where a stored norm is in a cache that is no gain.
    let forward = BTreeSet::from(["forward"]);
    for (model, gpu, by_row) in [
        (PUBLISHED, true, true),
        (Shipped::small("deepseek_v3"), false, false),
        (Shipped::small("llama"), false, false),
        (Shipped::small("llama"), true, false),
    ] {
        let reports = model.reports(gpu, &forward);
        let fired = |rule: &str| reports.iter().flat_map(|r| &r.fired).any(|(fired, _)| fired == rule);
        let chosen = |rule: &str| reports.iter().flat_map(|r| &r.chosen).any(|s| s.rule == rule);
        assert!(fired("contract-of-mul-by-summed") && fired("contract-of-mul-by-row"), "{}, gpu {gpu}", model.0);
        assert_eq!(chosen("contract-of-mul-by-row"), by_row, "{}, gpu {gpu}", model.0);
    }
}

/// The last layer of an entry: the body of its last loop.
fn last_layer<'m>(m: &'m Module, entry: &str) -> &'m Func {
    let mut loops = m.func(entry).expect("the entry is there").nodes.values().filter_map(|n| n.op.body());
    loops.next_back().expect("it has layers")
}

#[test]
fn rows_of_experts_in_fp8_are_sent_as_codes() {
    let set = source::MODELS.iter().find(|(n, _)| *n == "deepseek_v3").expect("it is shipped").1;
    let module = source::module("deepseek_v3", &format!("{set} n_shared_experts=0 fp8_block=16"));
    for gpu in [false, true] {
        let model = tile::cost::Model::new(tile::Tuning::of_target(gpu));
        let sizes = DimEnv::new();
        let cost = |op: &Op, x: &[&TensorType], y: &[TensorType]| model.op_cost(&sizes, op, x, y);
        let (out, reports) = optimize(&module, &cost, &Options::default());
        assert_eq!(graph::verify::verify(&out), []);
        for r in &reports {
            assert!(r.cost.1 <= r.cost.0 && r.num_nodes.1 <= 5 * r.num_nodes.0, "gpu {gpu}: {r:?}");
            assert!(r.fired.iter().all(|(_, g)| g.nodes <= r.num_nodes.0), "gpu {gpu}: {r:?}");
        }
        let of_forward = || reports.iter().filter(|r| r.func.starts_with("forward"));
        let fired: Vec<&str> = of_forward().flat_map(|r| &r.fired).map(|(rule, _)| rule.as_str()).collect();
        for rule in ["quantize-of-moved", "gather-of-dequantize", "dequantize-of-moved", "add-of-rounding"] {
            assert!(fired.contains(&rule), "gpu {gpu}: {rule} is not among {fired:?}");
        }
        let body = last_layer(&out, "forward");
        let count = |is: &dyn Fn(&graph::Node) -> bool| body.nodes.values().filter(|n| is(n)).count();
        let is_op = |v: &Value, name: &str| body.def(*v).op.name() == name;
        // Of experts x, gate and up, what goes down and its matrix; of attention four rows and five matrices: each once, and nothing is added to what codes are
        // worth and taken from it.
        assert_eq!(count(&|n| matches!(n.op, Op::Quantize(_))), 14, "gpu {gpu}");
        let changes = |n: &graph::Node| matches!(n.op, Op::Map(MapFn::Sub)) && n.inputs.iter().any(|v| is_op(v, "dequantize"));
        assert_eq!(count(&changes), 0, "gpu {gpu}");
        // Rows are sent as codes; or a GPU's kernel of both first products takes them by index, of what codes are worth.
        let of_codes = |n: &graph::Node| matches!(n.op, Op::Gather { .. }) && body.ty(n.inputs[0]).dtype == DType::E4M3;
        let by_index = regions(body, true).iter().filter(|(.., by_index)| *by_index).count();
        assert_eq!(count(&of_codes) + by_index, 1, "gpu {gpu}");
        let chosen = of_forward().flat_map(|r| &r.chosen).any(|s| s.rule == "gather-of-dequantize");
        assert_eq!(chosen, by_index == 0, "gpu {gpu}");
        assert!(gpu || chosen);
    }
}

#[test]
fn what_is_sent_to_several_experts_is_quantised_once() {
    let text = "use std.fp8.round_fp8
dims N
model m(x: [N, 256], idx: i32[N, 4], w: [8, 64, 256]) -> [N, 4, 64] {
  let r = route(idx, 8)
  collect(grouped_t(round_fp8(dispatch(x, r)), w, r), r)
}";
    let module = source::compile(text, "");
    for gpu in [false, true] {
        let model = tile::cost::Model::new(tile::Tuning::of_target(gpu));
        let sizes: DimEnv = [("N".into(), 4096)].into_iter().collect();
        let cost = |op: &Op, x: &[&TensorType], y: &[TensorType]| model.op_cost(&sizes, op, x, y);
        let (out, reports) = optimize(&module, &cost, &Options { sizes: sizes.clone(), ..Options::default() });
        assert!(reports[0].chosen.iter().any(|s| s.rule == "quantize-of-moved"), "gpu {gpu}: {:?}", reports[0].chosen);
        let f = &out.funcs[0];
        let of = |n: &graph::Node| matches!(n.op, Op::Quantize(_)).then(|| f.ty(n.inputs[0]).shape[0].clone());
        assert_eq!(f.nodes.values().filter_map(of).collect::<Vec<_>>(), [Dim::sym("N")], "gpu {gpu}");
        let dims = [("N".into(), 5)].into_iter().collect();
        assert_agree(text, &run(&module.funcs[0], &dims, 1), &run(f, &dims, 1));
    }
}
