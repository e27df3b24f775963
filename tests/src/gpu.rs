//! Kernels of the models as GPU code: `ptxas` takes them, and threads of the host that stand for a GPU's compute what the interpreter does.

use base::{DType, Dim, DimEnv};
use codegen::{GpuOptions, emulate::Emulated};
use driver::pipeline::{self, Options};
use exec::HostTensor;
use hir::Overrides;
use std::{
    path::{Path, PathBuf},
    process::Command,
};
use tile::{
    Access, Kernel, interp,
    kernels::{
        domain::Problem,
        gpu_attend::{self, gpu_attend},
        gpu_attend_grad::{self, gpu_attend_grad_keys, gpu_attend_grad_queries},
        gpu_route::{self, gpu_route},
        gpu_scatter_sorted::{self, gpu_scatter_sorted},
        host_gather::Rows,
        host_route::Route,
    },
};

/// The models, small.
pub(crate) const MODELS: [(&str, &str); 4] = [
    ("llama", "num_hidden_layers=2 vocab_size=32 hidden_size=32 intermediate_size=48 num_attention_heads=4 head_dim=16"),
    ("strata", "layers=2 vocab=32 d=32 heads=4 kv=2 dh=8 experts=4 ff=16 length=8 stride=4 size=8 count=3 window=12"),
    ("qwen3_moe", "num_hidden_layers=2 vocab_size=32 hidden_size=32 moe_intermediate_size=16 head_dim=8 num_experts=4"),
    (
        "deepseek_v3",
        "vocab_size=32 hidden_size=32 intermediate_size=48 moe_intermediate_size=16 num_hidden_layers=3 first_k_dense_replace=1 \
         num_attention_heads=4 q_lora_rank=16 kv_lora_rank=8 qk_nope_head_dim=8 qk_rope_head_dim=4 v_head_dim=8 n_routed_experts=8 \
         num_experts_per_tok=2 n_group=4 topk_group=2 initializer_range=0.1",
    ),
];

/// A model's text.
fn source(model: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models").join(model).join("model.lode");
    std::fs::read_to_string(&path).expect("the model is part of the source")
}

/// A model's program, with its sources.
fn front(model: &str, options: &Options) -> pipeline::Front {
    pipeline::front("model.lode", &source(model), &mut |_| None, options)
}

fn options(set: &str, gpu: bool, plain: bool) -> Options {
    let set = set.split_whitespace().filter_map(|s| s.split_once('=')).map(|(n, v)| (n.to_string(), v.to_string())).collect();
    Options {
        overrides: Overrides { set, ..Overrides::default() },
        gpu,
        no_optimize: plain,
        by_definition: plain,
        ..Options::default()
    }
}

/// A model's library, for a GPU or the host; `plain` is by its definitions.
pub(crate) fn built(model: &str, set: &str, gpu: bool, plain: bool) -> library::Library {
    let options = options(set, gpu, plain);
    let front = front(model, &options);
    let program = front.program.as_ref().expect("it checks");
    let (module, _) = pipeline::middle(program, &options).expect("it optimises");
    let lowered = pipeline::lower(&module, &options).expect("it lowers");
    pipeline::library(program, &module, &lowered, &front.sources, &options).expect("it compiles")
}

fn kernels(model: &str, set: &str) -> Vec<Kernel> {
    kernels_of(&source(model), set)
}

fn kernels_of(text: &str, set: &str) -> Vec<Kernel> {
    let options = options(set, true, false);
    let front = pipeline::front("model.lode", text, &mut |_| None, &options);
    let (module, _) = pipeline::middle(front.program.as_ref().expect("it checks"), &options).expect("it optimises");
    pipeline::lower(&module, &options).expect("it lowers").kernels
}

/// `LODE_PTXAS`, or one on the path.
fn ptxas() -> Option<PathBuf> {
    let on_path = || std::env::split_paths(&std::env::var_os("PATH")?).map(|d| d.join("ptxas")).find(|p| p.is_file());
    let found = std::env::var_os("LODE_PTXAS").map(PathBuf::from).or_else(on_path);
    if found.is_none() {
        println!("skipped: no ptxas");
    }
    found
}

/// What the assembler tells of a text.
fn assemble(ptxas: &Path, name: &str, text: &str) -> String {
    let folder = std::env::temp_dir().join(format!("lode-ptx-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder for temporary files");
    let (source, code) = (folder.join("kernels.ptx"), folder.join("kernels.cubin"));
    std::fs::write(&source, text).expect("it is written");
    let out = Command::new(ptxas).args(["-arch=sm_90a", "-v"]).arg(&source).arg("-o").arg(&code).output();
    let out = out.expect("ptxas starts");
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    std::fs::remove_dir_all(&folder).expect("the folder is there");
    assert!(out.status.success(), "{name}: {told}");
    told
}

#[test]
fn attention_spills_no_registers_and_its_products_run_on() {
    let Some(ptxas) = ptxas() else { return };
    let mut kernels = Vec::new();
    for (dk, dv, domain, shared) in [
        (128, 128, "causal", false),
        (64, 64, "causal & window(512)", false),
        (192, 128, "full", false),
        (192, 192, "causal", false),
        (256, 256, "causal", false),
        (256, 128, "causal & window(512)", false),
        (576, 512, "causal", false),
        (576, 512, "causal", true),
    ] {
        let [b, t] = ["B", "T"].map(Dim::sym);
        let domain = domain.parse().expect("a domain");
        let s = t.clone();
        let p = Problem {
            dtype: DType::BF16,
            b,
            t,
            s,
            h: 16,
            g: if dk > 256 { 1 } else { 4 },
            dk,
            dv,
            domain,
            scale: 0.1,
            operands: Vec::new(),
            distinct: false,
            shared,
        };
        let tiling = gpu_attend_grad::Tiling::choose(&p);
        kernels.push(gpu_attend(&p, gpu_attend::Tiling::choose(&p)));
        if !gpu_attend_grad::takes(&p, tiling, true) {
            continue;
        }
        kernels.extend(tiling.gives().iter().map(|gives| gpu_attend_grad_keys(&p, tiling, *gives)));
        kernels.push(gpu_attend_grad_queries(&p, tiling, false));
    }
    kernels.iter_mut().enumerate().for_each(|(i, k)| k.name = format!("{}_{i}", k.name));
    let ptx = codegen::emit_ptx(&kernels, &GpuOptions::default()).expect("it compiles");
    assert!(ptx.kernels.iter().all(|k| !k.maps.is_empty()), "they run on warp groups");
    let told = assemble(&ptxas, "attention", &ptx.text);
    // Threads that hold 64 times 256 sums keep their number and such in memory while they go over tiles.
    assert!(most_spilled(&told) <= 16, "{told}");
    assert!(told.matches(" 0 bytes spill stores").count() + 2 >= kernels.len(), "{told}");
    // What the assembler says when a product waits for itself.
    assert!(!told.contains("serialized"), "{told}");
}

#[test]
fn gradients_of_few_heads_over_lists_spill_no_registers_and_run_on() {
    let Some(ptxas) = ptxas() else { return };
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/nsa_train.lode")).expect("a bench");
    for g in [16, 8] {
        let mut kernels = kernels_of(&text, &format!("h=16 g={g}"));
        kernels.retain(|k| ["attend_grad_query_parts", "attend_grad_query_merge"].iter().any(|name| k.name.contains(name)));
        assert_eq!(kernels.len(), 2, "{g} heads of keys");
        let ptx = codegen::emit_ptx(&kernels, &GpuOptions::default()).expect("it compiles");
        assert!(ptx.kernels.iter().any(|k| !k.maps.is_empty()), "on warp groups");
        let told = assemble(&ptxas, "few_heads", &ptx.text);
        assert!(most_spilled(&told) == 0 && !told.contains("serialized"), "{told}");
    }
}

/// The most registers that any kernel of a text spills. # Units: bytes stored.
fn most_spilled(told: &str) -> u32 {
    let stores = told.split(" bytes spill stores").filter_map(|before| before.rsplit([' ', ',']).next()?.parse().ok());
    stores.max().expect("it tells of kernels")
}

#[test]
fn both_ends_of_a_window_cost_few_registers() {
    let Some(ptxas) = ptxas() else { return };
    let [b, t] = ["B", "T"].map(Dim::sym);
    let domain = "causal & window(512)".parse().expect("a domain");
    let s = t.clone();
    let p = Problem {
        dtype: DType::BF16,
        b,
        t,
        s,
        h: 64,
        g: 4,
        dk: 128,
        dv: 128,
        domain,
        scale: 0.1,
        operands: Vec::new(),
        distinct: false,
        shared: false,
    };
    let ptx = codegen::emit_ptx(&[gpu_attend(&p, gpu_attend::Tiling::choose(&p))], &GpuOptions::default()).expect("it compiles");
    let told = assemble(&ptxas, "window", &ptx.text);
    assert!(most_spilled(&told) == 0 && !told.contains("serialized"), "{told}");
}

#[test]
fn products_of_experts_spill_no_registers_and_run_on() {
    let Some(ptxas) = ptxas() else { return };
    let text = source("qwen3_moe").replace("dims B, T", "dims B, T\nprecision { storage = bf16, compute = bf16 }");
    let common = "num_hidden_layers=2 num_experts_per_tok=8 vocab_size=32000";
    // Gate and up of 384 columns are twice 128 at once: twice 192 are more than threads hold.
    for own in
        ["hidden_size=2048 moe_intermediate_size=768 num_experts=128", "hidden_size=768 moe_intermediate_size=384 num_experts=8"]
    {
        let kernels = kernels_of(&text, &format!("{common} {own}")).into_iter().filter(|k| k.name.contains("grouped"));
        let kernels: Vec<Kernel> = kernels.collect();
        assert!(kernels.len() >= 4, "rows of both products and their gradients");
        let ptx = codegen::emit_ptx(&kernels, &GpuOptions::default()).expect("it compiles");
        let told = assemble(&ptxas, "experts", &ptx.text);
        assert!(most_spilled(&told) == 0 && !told.contains("serialized"), "{told}");
    }
}

#[test]
fn sums_of_tensors_assemble() {
    let Some(ptxas) = ptxas() else { return };
    let told = assemble(&ptxas, "sums", &device::cuda::sums::ptx());
    assert_eq!(told.matches(" 0 bytes spill stores").count(), 4, "{told}");
}

#[test]
fn kernels_of_rows_assemble() {
    let Some(ptxas) = ptxas() else { return };
    let told = assemble(&ptxas, "rows", &device::cuda::rows::ptx());
    assert_eq!(told.matches(" 0 bytes spill stores").count(), 9, "{told}");
}

#[test]
fn products_with_what_follows_them_spill_no_registers_and_run_on() {
    let Some(ptxas) = ptxas() else { return };
    let text = source("llama").replace("dims B, T", "dims B, T\nprecision { storage = f32, compute = bf16 }");
    let set = "hidden_size=4096 intermediate_size=14336 num_attention_heads=32 num_key_value_heads=8 vocab_size=32000";
    let kernels: Vec<Kernel> = kernels_of(&text, set).into_iter().filter(|k| k.name.contains("product")).collect();
    let buffers = |k: &Kernel| k.buffers.iter().map(|b| b.name.clone()).collect::<Vec<_>>().join(" ");
    let all: Vec<String> = kernels.iter().map(buffers).collect();
    // A gate, residuals of one value and of two, a gradient as f32; the gradients of a gate are faster apart.
    for wanted in ["a b0 b1 y", "a b z0 y", "a b z0 z1 y", "a b y"] {
        assert!(all.iter().any(|b| b == wanted), "no '{wanted}' in {all:?}");
    }
    let ptx = codegen::emit_ptx(&kernels, &GpuOptions::default()).expect("it compiles");
    assert!(ptx.kernels.iter().all(|k| !k.maps.is_empty()), "they run on warp groups");
    let told = assemble(&ptxas, "products", &ptx.text);
    assert_eq!(told.matches(" 0 bytes spill stores").count(), kernels.len(), "{told}");
    assert!(!told.contains("serialized"), "{told}");
}

/// Llama whose products are in tf32.
fn in_tf32(set: &str) -> Vec<Kernel> {
    let text = source("llama").replace("dims B, T", "dims B, T\nprecision { matmul = tf32 }");
    let products = kernels_of(&text, set).into_iter().filter(|k| k.scratch.iter().any(|s| s.dtype == DType::TF32));
    products.collect()
}

#[test]
fn products_in_tf32_spill_no_registers_and_run_on() {
    let Some(ptxas) = ptxas() else { return };
    let kernels = in_tf32("hidden_size=1024 intermediate_size=2816 num_attention_heads=16 vocab_size=32000");
    // Those of a layer, forward and backward, and the head's.
    assert!(kernels.len() >= 10, "{}", kernels.len());
    let ptx = codegen::emit_ptx(&kernels, &GpuOptions::default()).expect("it compiles");
    assert!(ptx.kernels.iter().all(|k| !k.maps.is_empty()), "they run on warp groups");
    let told = assemble(&ptxas, "tf32", &ptx.text);
    assert_eq!(told.matches(" 0 bytes spill stores").count(), kernels.len(), "{told}");
    assert!(!told.contains("serialized"), "{told}");
}

#[test]
fn blocks_are_chosen_experts_multiplied_and_positions_rotated_without_detours() {
    let bench = |name: &str, kind: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches").join(name);
        let text = std::fs::read_to_string(path).expect("the bench is part of the source");
        let kernels: Vec<Kernel> = kernels_of(&text, "").into_iter().filter(|k| k.name.contains(kind)).collect();
        let ptx = codegen::emit_ptx(&kernels, &GpuOptions::default()).expect("it compiles");
        assert!(!kernels.is_empty() && ptx.kernels.iter().all(|k| !k.maps.is_empty()), "{name}: {kind} on warp groups");
        (ptx, kernels.len())
    };
    // A warp sums the 16 heads of its query between its lanes: 8, 4 and 2 of 16 columns change hands. Four blocks share a processor.
    let (select, count) = bench("nsa_layer.lode", "select");
    assert_eq!((count, select.text.matches("shfl.sync.bfly").count()), (1, 14));
    assert!(select.kernels[0].static_shared + select.kernels[0].dynamic_shared <= 56 << 10, "{:?}", select.kernels[0]);
    // Gate and up are one product, of 256 columns, as down is.
    let (grouped, count) = bench("moe_layer.lode", "grouped");
    assert_eq!((count, grouped.text.matches("m64n256k16").count(), grouped.text.matches("m64n128k16").count()), (2, 8, 0));
    // Positions of halves and of neighbours are rotated in registers.
    let (rotated, count) = bench("rotated.lode", "columns");
    assert_eq!((count, rotated.kernels.iter().map(|k| k.workspace).max()), (4, Some(0)));
    // Products of codes, each a piece's by itself: gate and up with rows by index, and down.
    let (codes, count) = bench("fp8_layer.lode", "grouped");
    assert_eq!((count, codes.text.matches("f32.e4m3.e4m3").count()), (2, 3 * 4));
    let Some(ptxas) = ptxas() else { return };
    let told = assemble(&ptxas, "codes", &codes.text);
    // Places of rows by index take a register or three too many.
    assert!(most_spilled(&told) <= 32 && !told.contains("serialized"), "{told}");
    for (name, ptx, count) in [("select", select, 1), ("grouped", grouped, 2), ("rotated", rotated, 4)] {
        let told = assemble(&ptxas, name, &ptx.text);
        assert_eq!(told.matches(" 0 bytes spill stores").count(), count, "{told}");
        assert!(!told.contains("serialized"), "{told}");
    }
}

#[test]
fn every_model_assembles() {
    let Some(ptxas) = ptxas() else { return };
    let in_fp8 = ("deepseek_v3", format!("{} fp8_block=12", MODELS[3].1));
    for (model, set) in MODELS.map(|(model, set)| (model, set.to_string())).into_iter().chain([in_fp8]) {
        let kernels = kernels(model, &set);
        let ptx = codegen::emit_ptx(&kernels, &GpuOptions::default()).expect("it compiles");
        assert_eq!(ptx.kernels.len(), kernels.len());
        let told = assemble(&ptxas, model, &ptx.text);
        let spills = told.split("Compiling entry function '").skip(1).filter(|text| !text.contains(" 0 bytes spill stores"));
        // A few registers may be spilled outside of the inner loops of a long kernel, or of one block that reads all gradients, never in a map.
        let many = |name: &&str| ptx.kernels.iter().any(|k| k.symbol == *name && !k.grid.is(1));
        let names = spills.filter_map(|text| text.split('\'').next()).filter(|name| name.contains("map")).filter(many);
        let names: Vec<&str> = names.collect();
        assert!(names.is_empty(), "{model}: registers of {names:?} are spilled");
        for k in &ptx.kernels {
            assert!(told.contains(&format!("'{}'", k.symbol)) && k.static_shared + k.dynamic_shared <= 227 << 10, "{k:?}");
        }
    }
}

/// Numbers of a buffer: small ones, of both signs; indices from -1 on; where groups of rows begin.
fn numbers(b: &tile::ir::Buffer, n: usize, seed: usize) -> Vec<f64> {
    let dtype = b.dtype;
    if b.name == "offsets" {
        return (0..n).map(|i| (i * 7) as f64).collect();
    }
    let at = |i: usize| ((i * 37 + seed * 11 + i * i % 101) % 64) as f64;
    (0..n)
        .map(|i| match dtype {
            DType::I32 | DType::I64 => at(i) % 5.0 - 1.0,
            DType::Bool => f64::from(u8::from(at(i) < 40.0)),
            DType::F64 | DType::F32 | DType::TF32 | DType::BF16 | DType::F16 | DType::E4M3 => dtype.round(at(i) / 32.0 - 0.9),
        })
        .collect()
}

fn eval(d: &Dim, env: &DimEnv) -> i64 {
    d.eval(env).unwrap_or_else(|| panic!("{d} has no value"))
}

/// Runs a kernel in the interpreter and as threads. Whether its operands could be made up.
fn agrees(threads: &Emulated, k: &Kernel, env: &DimEnv) -> bool {
    let given: Vec<Vec<f64>> = k.buffers.iter().enumerate().map(|(i, b)| numbers(b, eval(&b.elems, env) as usize, i)).collect();
    let mut want = given.clone();
    if interp::run(k, &mut want, env, interp::Options::default()).is_err() {
        return false;
    }
    let dims: Vec<i64> = k.dims.iter().map(|d| eval(d, env)).collect();
    let mut first: Option<Vec<Vec<u8>>> = None;
    for (blocks, reversed) in [(1, true), (3, false)] {
        let mut memory: Vec<Vec<u8>> = k
            .buffers
            .iter()
            .zip(&given)
            .map(|(b, x)| HostTensor::from_f64(b.dtype, &[x.len() as i64], x.iter().copied()).bytes)
            .collect();
        let pointers: Vec<*mut u8> = memory.iter_mut().map(Vec::as_mut_ptr).collect();
        // SAFETY: the interpreter finds no access out of bounds, and the allocator aligns to more than an element.
        unsafe { threads.run(&k.name, &pointers, &dims, eval(&k.grid, env), blocks, reversed) };
        for ((b, got), want) in k.buffers.iter().zip(&memory).zip(&want).filter(|((b, _), _)| b.access != Access::Read) {
            let scale = want.iter().filter(|x| x.is_finite()).fold(1e-3f64, |a, x| a.max(x.abs()));
            for (i, (g, w)) in exec::tensor::read(b.dtype, got).into_iter().zip(want).enumerate() {
                // What is next to the middle of two codes becomes either.
                let next = if b.dtype == DType::E4M3 { w.abs() / 8.0 + 2f64.powi(-9) } else { 0.0 };
                let same = g == *w || g.is_nan() && w.is_nan() || (g - w).abs() <= 2e-5 * scale + next;
                assert!(same, "{}: {}[{i}] is {g:e}, not {w:e}, of {scale:e}", k.name, b.name);
            }
        }
        let first = first.get_or_insert_with(|| memory.clone());
        assert!(*first == memory, "{}: the number of blocks or the order of threads shows", k.name);
    }
    true
}

fn threads_agree(model: usize) {
    let (model, set) = MODELS[model];
    kernels_agree(model, &kernels(model, set));
}

fn kernels_agree(model: &str, kernels: &[Kernel]) {
    let threads = Emulated::load(kernels).expect("it compiles");
    let env: DimEnv = [("B".into(), 2), ("T".into(), 19), ("S".into(), 150), ("M".into(), 8)].into_iter().collect();
    // What places rows takes where they begin from the kernels before it: `routing_by_threads`, `sums_by_index_by_threads`.
    let led = ["route_place", "scatter_place", "scatter_sum", "scatter_join"];
    let alone = kernels.iter().filter(|k| !led.iter().any(|name| k.name.contains(name)));
    let made: Vec<&Kernel> = alone.filter(|k| !agrees(&threads, k, &env)).collect();
    let names: Vec<&str> = made.iter().map(|k| k.name.as_str()).collect();
    assert!(names.is_empty(), "{model}: no operands for {names:?} of {} kernels", kernels.len());
}

#[test]
fn threads_compute_llama() {
    threads_agree(0);
}

#[test]
fn threads_compute_strata() {
    threads_agree(1);
}

#[test]
fn threads_compute_qwen3_moe() {
    threads_agree(2);
}

#[test]
fn threads_compute_deepseek_v3() {
    threads_agree(3);
}

#[test]
fn threads_compute_a_step_of_sparse_attention() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/nsa_decode.lode");
    let text = std::fs::read_to_string(path).expect("the bench is part of the source");
    kernels_agree("nsa_decode", &kernels_of(&text.replace("bf16", "f32"), "h=4 g=2 d=16"));
}

#[test]
fn gradients_of_one_head_by_blocks_by_threads() {
    let mut kernels = kernels(MODELS[1].0, &format!("{} kv=4 dh=16 size=16 count=6", MODELS[1].1));
    kernels.retain(|k| k.name.contains("attend_grad_query"));
    assert_eq!(kernels.len(), 2);
    kernels_agree("strata of one head a group", &kernels);
}

#[test]
fn threads_compute_codes_of_experts_in_fp8() {
    let of_codes = |k: &Kernel| k.buffers.iter().any(|b| b.dtype == DType::E4M3);
    let mut kernels = kernels(MODELS[3].0, &format!("{} fp8_block=12", MODELS[3].1));
    kernels.retain(of_codes);
    // Codes are made and read.
    assert!(kernels.len() >= 4, "{} kernels", kernels.len());
    kernels_agree("codes", &kernels);
}

#[test]
fn threads_compute_products_in_tf32() {
    let kernels = in_tf32(MODELS[0].1);
    assert!(kernels.len() >= 10, "{}", kernels.len());
    kernels_agree("tf32", &kernels);
}

#[test]
fn routing_by_threads() {
    let (choices, groups) = (300, 5);
    let route = gpu_route(&Route { choices: Dim::sym("N"), groups });
    let threads = Emulated::load(&route).expect("it compiles");
    let env: DimEnv = [("N".into(), choices)].into_iter().collect();
    // choice, counts, starts, totals, offsets, source, position
    let passed: [&[usize]; 3] = [&[0, 1], &[1, 2, 3], &[0, 2, 3, 4, 5, 6]];
    let table = (gpu_route::PARTS * groups) as usize;
    let choice: Vec<i32> = (0..choices).map(|i| ((i * i + 3 * i) % 7) as i32 - 1).collect();
    let of_groups = groups as usize;
    let sizes = [table, table, of_groups, of_groups + 1, 300, 300];
    let mut memory: Vec<Vec<i32>> = [choice.clone()].into_iter().chain(sizes.map(|n| vec![7; n])).collect();
    for (k, buffers) in route.iter().zip(passed) {
        let pointers: Vec<*mut u8> = buffers.iter().map(|i| memory[*i].as_mut_ptr().cast()).collect();
        let dims: Vec<i64> = k.dims.iter().map(|d| eval(d, &env)).collect();
        // SAFETY: the buffers have the sizes that the kernels name, and indices come from the kernel before.
        unsafe { threads.run(&k.name, &pointers, &dims, eval(&k.grid, &env), 3, true) };
    }
    let [offsets, source, position] = &memory[4..] else { panic!("seven buffers") };
    let sorted: Vec<i32> =
        (0..groups as i32).flat_map(|g| (0..300).filter(|i| choice[*i as usize] == g).collect::<Vec<_>>()).collect();
    assert_eq!(&source[..sorted.len()], sorted);
    assert!(source[sorted.len()..].iter().all(|s| *s == -1));
    let place = |i: usize| sorted.iter().position(|s| *s == i as i32).map_or(-1, |p| p as i32);
    assert!((0..300).all(|i| position[i] == place(i)));
    assert_eq!(offsets.last(), Some(&(sorted.len() as i32)));
}

#[test]
fn sums_by_index_by_threads() {
    // One column a thread, of which the last block has fewer; two; four.
    [300, 512, 1024].into_iter().for_each(sums_by_index_of);
}

/// Long runs and short ones, in two passes of the sort.
fn sums_by_index_of(row: i64) {
    let picks = 500;
    let [batch, n] = [1, 400].map(Dim::from);
    let p = Rows { dtype: DType::F32, batch, picks: Dim::sym("P"), n, row: Dim::from(row) };
    let mut work = gpu_scatter_sorted(&p);
    work.iter_mut().enumerate().for_each(|(i, (k, _))| k.name = format!("{}_{i}", k.name));
    let kernels: Vec<Kernel> = work.iter().map(|(k, _)| k.clone()).collect();
    let threads = Emulated::load(&kernels).expect("it compiles");
    let env: DimEnv = [("P".into(), picks)].into_iter().collect();
    let index: Vec<i32> = (0..picks as i32).map(|i| if i % 3 == 0 { 7 } else { (i * i + 3 * i) % 402 - 1 }).collect();
    let rows: Vec<f32> = (0..picks * row).map(|i| ((i * 37 + i * i % 101) % 64) as f32).collect();
    let words = |x: &[f32]| x.iter().map(|x| x.to_bits() as i32).collect::<Vec<i32>>();
    let of_asides = gpu_scatter_sorted::memories(&p);
    let sums = (400 * row) as usize;
    let mut memory = vec![index.clone(), words(&rows), vec![7; sums]];
    memory.extend(of_asides.iter().map(|t| vec![7; eval(&t.elems(), &env) as usize]));
    for (k, buffers) in &work {
        let at = |b: &gpu_scatter_sorted::Buffer| match *b {
            gpu_scatter_sorted::Buffer::Index => 0,
            gpu_scatter_sorted::Buffer::Rows => 1,
            gpu_scatter_sorted::Buffer::Sums => 2,
            gpu_scatter_sorted::Buffer::Aside(i) => 3 + i,
        };
        let pointers: Vec<*mut u8> = buffers.iter().map(|b| memory[at(b)].as_mut_ptr().cast()).collect();
        let dims: Vec<i64> = k.dims.iter().map(|d| eval(d, &env)).collect();
        // SAFETY: the buffers have the sizes that the kernels name, and orders come from the kernels before.
        unsafe { threads.run(&k.name, &pointers, &dims, eval(&k.grid, &env), 3, true) };
    }
    let mut want = vec![0f32; sums];
    for (i, to) in index.iter().enumerate().filter(|(_, to)| (0..400).contains(*to)) {
        for c in 0..row as usize {
            want[*to as usize * row as usize + c] += rows[i * row as usize + c];
        }
    }
    // Sums of small integers are exact.
    assert_eq!(memory[2], words(&want));
}
