//! `lode check` and `lode build`.

use super::{
    common::{self, FAILED, USAGE},
    ranks,
};
use crate::{
    cli::{Binding, Build, MessageFormat, Model},
    link,
    pipeline::{self, Front, Options},
    put, putln,
    stages::{self, Failed},
};
use base::{Diags, DimEnv};
use library::{Library, file};
use std::{path::Path, time::Instant};

/// The stages that can be printed, in order.
const STAGES: &[&str] = &["tokens", "ast", "hir", "graph", "tile", "mlir", "llvm", "ptx", "library", "plan"];

/// What can be compiled for, and the stages that only one of them has.
const TARGETS: [(&str, &[&str]); 2] = [("host", &["llvm"]), ("sm_90a", &["ptx"])];

/// Checks types and shapes.
pub fn check(model: &Model, format: MessageFormat) -> u8 {
    let overrides = match common::overrides(model) {
        Ok(o) => o,
        Err(code) => return code,
    };
    match common::front(model, &Options { overrides, ..Options::default() }, format) {
        Ok(_) => 0,
        Err(code) => code,
    }
}

/// Builds a library, or prints stages.
pub fn run(args: &Build, format: MessageFormat) -> u8 {
    build(args, format).map_or_else(|code| code, |()| 0)
}

fn build(args: &Build, format: MessageFormat) -> Result<(), u8> {
    if !TARGETS.iter().any(|(t, _)| *t == args.target) {
        eprintln!("there is no target '{}'; there are {}", args.target, TARGETS.map(|(t, _)| t).join(" "));
        return Err(USAGE);
    }
    if let Some(unknown) = args.emit.iter().find(|s| !STAGES.contains(&s.as_str())) {
        eprintln!("there is no stage '{unknown}'; there are {}", STAGES.join(" "));
        return Err(USAGE);
    }
    let others = TARGETS.iter().filter(|(t, _)| *t != args.target).flat_map(|(_, stages)| *stages);
    if let Some(foreign) = others.into_iter().find(|s| args.emit.iter().any(|e| e == *s)) {
        eprintln!("there is no stage '{foreign}' for {}", args.target);
        return Err(USAGE);
    }
    let host = args.target == "host";
    if args.emit.is_empty() && args.out.as_os_str() == "-" {
        eprintln!("a library is files: name a folder with -o");
        return Err(USAGE);
    }
    let stem =
        args.model.file.parent().and_then(Path::file_name).filter(|_| args.model.file.file_stem().is_some_and(|s| s == "model"));
    let stem = stem.or(args.model.file.file_stem()).map_or("model".into(), |s| s.to_string_lossy().into_owned());
    let put = |stage: &str, text: &str| -> Result<(), u8> {
        if args.out.as_os_str() == "-" {
            put!("{text}");
            return Ok(());
        }
        let path = args.out.join(format!("{stem}.{stage}"));
        std::fs::create_dir_all(&args.out).and_then(|()| std::fs::write(&path, text)).map_err(|e| {
            eprintln!("{}: {e}", path.display());
            FAILED
        })
    };
    let wants = |stage: &str| args.emit.iter().any(|s| s == stage);
    let mut clock = Clock { on: args.timings, last: Instant::now() };
    let options = Options {
        overrides: common::overrides(&args.model)?,
        no_optimize: args.no_optimize,
        by_definition: args.no_optimize,
        gpu: !host,
        locked: args.model.locked,
        ..Options::default()
    };
    if wants("tokens") || wants("ast") {
        let (name, text) = pipeline::read_source(&args.model.file).map_err(|e| {
            eprintln!("{}: {e}", args.model.file.display());
            FAILED
        })?;
        let mut sources = base::Sources::default();
        let file = sources.add(&name, &text);
        if wants("tokens") {
            put("tokens", &syntax::print_tokens(&syntax::lex(file, &text, &mut Diags::new())))?;
        }
        if wants("ast") {
            put("ast", &syntax::print_ast(&syntax::parse(file, &text, &mut Diags::new())))?;
        }
    }
    let front = common::front(&args.model, &options, format)?;
    let program = front.program.as_ref().expect("checked by `front`");
    let options = common::with_lock(&front, &options)?;
    clock.lap("front");
    if wants("hir") {
        put("hir", &hir::print(program))?;
    }
    if args.cut.ranks.is_some() {
        if !args.emit.is_empty() {
            eprintln!("--ranks writes libraries of stages: leave out --emit");
            return Err(USAGE);
        }
        if options.locked {
            eprintln!("--locked is for whole entries: `lode tune` does not measure the stages that --ranks cuts them into");
            return Err(USAGE);
        }
        return build_stages(args, &front, &options, &stem);
    }
    let back = |e: pipeline::BackError| common::back_failed(&e);
    let (module, _) = pipeline::middle(program, &options).map_err(back)?;
    clock.lap("middle");
    if wants("graph") {
        put("graph", &graph::text::print_with(&module, &front.sources))?;
    }
    let lowered = pipeline::lower(&module, &options).map_err(back)?;
    clock.lap("tile");
    if wants("tile") {
        put("tile", &tile::text::print(&lowered.kernels))?;
    }
    if wants("mlir") {
        let gpu = || codegen::emit_gpu_mlir(&lowered.kernels).map_err(|e| back(e.into()));
        put("mlir", &if host { codegen::emit_mlir(&lowered.kernels) } else { gpu()? })?;
    }
    if wants("ptx") {
        let ptx = pipeline::ptx(&lowered, &front.sources).map_err(back)?;
        clock.lap("codegen");
        put("ptx", &ptx.text)?;
    }
    if wants("llvm") {
        put("llvm", &codegen::emit_llvm(&lowered.kernels).unwrap_or_else(|e| base::bug!("{e}")))?;
    }
    if wants("library") {
        let manifest = if host {
            pipeline::manifest(program, &module, &lowered, &front.sources)
        } else {
            // How kernels are launched is decided with their code.
            pipeline::library(program, &module, &lowered, &front.sources, &options).map_err(back)?.manifest
        };
        put("library", &(serde_json::to_string_pretty(&manifest).expect("a manifest is plain data") + "\n"))?;
    }
    if wants("plan") {
        put("plan", &plan(&lowered.entries, &args.dims)?)?;
    }
    if args.emit.is_empty() {
        let library = pipeline::library(program, &module, &lowered, &front.sources, &options).map_err(back)?;
        clock.lap("codegen");
        write(args, &library, &stem)?;
        clock.lap("link");
    }
    Ok(())
}

/// Writes a library for each stage, and says what each costs and needs.
fn build_stages(args: &Build, front: &Front, options: &Options, stem: &str) -> Result<(), u8> {
    let program = front.program.as_ref().expect("checked by `front`");
    // A stage is the same in any number of replicas.
    let settled = ranks::settle(&args.cut, (Some(1), Some(1)), &program.pipeline)?;
    // How many stages there are does not depend on the micro-batches, and this number suits every policy.
    let ranks = settled.ranks.unwrap_or(1);
    let size = schedule::Size { ranks, micro: 4 * ranks, chunks: settled.chunks };
    let plan = schedule::plan(settled.policy, size).map_err(|e| common::fail_with(&e))?;
    // 0 is none, whatever the model says; a group of one has its exchanges, too.
    let declared = program.pipeline.expert_parallel.filter(|n| *n > 1);
    let experts = args.expert_parallel.or(declared).filter(|n| *n > 0);
    let size = (plan.num_stages(), experts);
    let stages = stages::build(program, &front.sources, settled.layout.as_deref(), size, options);
    let stages = stages.map_err(|e| match e {
        Failed::Cut(e) => common::fail_with(&e),
        Failed::Back(e) => common::back_failed(&e),
    })?;
    let dims = if args.dims.is_empty() { micro_batch(program) } else { common::dims(&args.dims)? };
    let shown: Vec<String> = dims.iter().map(|(n, v)| format!("{n}={v}")).collect();
    eprintln!("{} on {ranks} ranks, {} stages, a micro-batch of {}", plan.policy, stages.len(), shown.join(","));
    let total: f64 = stages.iter().flat_map(|s| s.costs).sum();
    let mut memory = schedule::costs::Memory::default();
    for (i, s) in stages.iter().enumerate() {
        let manifest = &s.library.manifest;
        let entries: Vec<_> = manifest.entries.iter().collect();
        let need = exec::ranks::stage_bytes(&entries, &dims);
        memory.activation += need.kept as f64 / stages.len() as f64;
        memory.parameters += need.stored as f64 / stages.len() as f64;
        let mut arena = 0;
        for e in &entries {
            arena = arena.max(exec::plan::plan(e, &dims).map_err(|e| common::fail_with(&e))?.arena_bytes);
        }
        let holders: Vec<String> = plan.placement.holders(i as u16).iter().map(usize::to_string).collect();
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        eprintln!(
            "stage {i:<3} ranks {:<8} {:>3} layers {:>12} parameters  cost {:>4.1} % forward {:>4.1} % backward  {:.2} MiB stored, {:.2} kept a micro-batch, \
             {:.2} while it computes",
            holders.join(","),
            s.layers,
            manifest.params.iter().map(|p| p.shape.iter().product::<i64>()).sum::<i64>(),
            100.0 * s.costs[0] / total,
            100.0 * (s.costs[1] + s.costs[2]) / total,
            mib(need.stored),
            mib(need.kept),
            mib(arena as u64),
        );
        write(args, &s.library, &format!("{stem}.{i}"))?;
    }
    // What `lode schedule --simulate` reads: the mean stage, and each one's share of it.
    let mean = |k: usize| stages.iter().map(|s| s.costs[k]).sum::<f64>() / stages.len() as f64;
    let [forward, backward_input, backward_weight] = [0, 1, 2].map(mean);
    let factor = |s: &stages::Built| s.costs.iter().sum::<f64>() / (forward + backward_input + backward_weight);
    let costs = schedule::Costs {
        parts: Some(stages.len() as f64),
        forward,
        backward_input,
        backward_weight,
        pair: None,
        stages: stages.iter().map(factor).collect(),
        memory,
        ..schedule::Costs::unit(0.0)
    };
    let path = args.out.join(format!("{stem}.costs.json"));
    let text = serde_json::to_string_pretty(&costs).expect("numbers") + "\n";
    std::fs::write(&path, text).map_err(|e| common::fail_with(&exec::ExecError::io(&path, &e)))?;
    putln!("{}", path.display());
    Ok(())
}

/// The dims of a micro-batch as the model sets it: rows and tokens of its first input, all others 1.
fn micro_batch(program: &hir::Program) -> DimEnv {
    let set = |name: &str, default: f64| program.settings.get(name).copied().unwrap_or(default);
    let parts = program.pipeline.micro_batches.map_or(set("micro_batches", 1.0), |n| n as f64);
    let sizes = [(set("batch", 8.0) / parts).max(1.0) as i64, set("seq", 128.0) as i64];
    let mut dims: DimEnv = program.dims.iter().map(|d| (d.as_str().into(), 1)).collect();
    let loss = program.module.func("loss");
    let input = loss.and_then(|f| f.arg_values().find(|(a, ..)| a.role == graph::Role::Input).map(|(.., ty)| ty.shape.clone()));
    for (d, n) in input.iter().flatten().zip(sizes) {
        for (name, value) in &mut dims {
            if *d == base::Dim::sym(name) {
                *value = n;
            }
        }
    }
    dims
}

/// Writes the library and what binds it to C; prints the paths.
fn write(args: &Build, library: &Library, stem: &str) -> Result<(), u8> {
    let path = args.out.join(format!("{stem}.{}", file::EXTENSION));
    let failed = |path: &Path, e: &std::io::Error| common::fail_with(&exec::ExecError::io(path, e));
    std::fs::create_dir_all(&args.out).map_err(|e| failed(&args.out, &e))?;
    library.write(&path).map_err(|e| common::fail_with(&e))?;
    putln!("{}", path.display());
    if args.lib == Some(Binding::None) {
        return Ok(());
    }
    let header = || {
        let header = args.out.join(format!("{stem}.h"));
        std::fs::write(&header, library::header::print(&library.manifest, stem)).map_err(|e| failed(&header, &e))?;
        putln!("{}", header.display());
        Ok(())
    };
    // The code for a GPU is in the library: there is nothing to link.
    if library.manifest.target != library::HOST {
        return header();
    }
    let object = file::object_path(&path);
    match link::link(library, &object) {
        Ok(()) => putln!("{}", object.display()),
        Err(e) if args.lib.is_none() && e.is_no_compiler() => {
            // What an earlier build left would be of another build.
            let _ = std::fs::remove_file(&object);
            eprintln!("note: {e}; C programs need {}, `lode` does not", object.display());
            return Ok(());
        }
        Err(e) => {
            eprintln!("error: {e}");
            return Err(FAILED);
        }
    }
    header()
}

/// The plans of all entries for the dims given.
fn plan(entries: &[library::Entry], dims: &[String]) -> Result<String, u8> {
    let dims = common::dims(dims)?;
    let mut text = String::new();
    for entry in entries {
        let plan = exec::plan::plan(entry, &dims).map_err(|e| common::fail_with(&e))?;
        text += &exec::plan::print(entry, &plan);
    }
    Ok(text)
}

struct Clock {
    on: bool,
    last: Instant,
}

impl Clock {
    fn lap(&mut self, stage: &str) {
        if self.on {
            eprintln!("{stage:<8} {:>9.1} ms", self.last.elapsed().as_secs_f64() * 1e3);
        }
        self.last = Instant::now();
    }
}
