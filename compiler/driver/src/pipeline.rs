//! From a model file to a library: the page that calls every stage.
//!
//! A pure function of sources, options, target and tuning table: no clock, no environment, no randomness.

use crate::buckets;
use base::{Diags, DimEnv, FileId, Sources, diag::Entry};
use codegen::CodegenError;
use graph::{
    Module, Role,
    autodiff::{self, Remat, Seed},
    passes,
};
use hir::{Overrides, Program};
use library::{Library, Manifest};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};
use tile::{Lowered, TargetError, Tilings, Tuning, TuningError, tuning};

/// What to compile and how.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// What replaces config values.
    pub overrides: Overrides,
    /// Leave the graph as written.
    pub no_optimize: bool,
    /// Attention by its definition, and a kernel for each op: what the optimiser is compared with.
    pub by_definition: bool,
    /// For a GPU.
    pub gpu: bool,
    /// Measured times and tilings, and where they were read.
    pub lock: Option<Lock>,
    /// Whether every step has to be in the lock.
    pub locked: bool,
}

/// A lock as it was read: its path, for messages, and what it says.
#[derive(Clone, Debug, PartialEq)]
pub struct Lock {
    /// The file.
    pub path: String,
    /// What it says.
    pub tuning: Tuning,
}

impl Options {
    /// The tuning table: the shipped one of the target, with what the lock says in its place.
    pub fn tuning(&self) -> Tuning {
        let shipped = Tuning::of_target(self.gpu);
        self.lock.as_ref().map_or_else(|| shipped.clone(), |l| shipped.with(&l.tuning))
    }
    /// What run-time dims are taken to be: those that the lock was measured for.
    pub fn sizes(&self) -> DimEnv {
        self.lock.as_ref().map(|l| l.tuning.dims.clone()).unwrap_or_default()
    }
}

/// The front half's result.
pub struct Front {
    /// Every file read.
    pub sources: Sources,
    /// The model's file.
    pub root: FileId,
    /// The checked program, or none after a mistake.
    pub program: Option<Program>,
    /// What was found, by position.
    pub diagnostics: Vec<Entry>,
}

/// Why the back half gave up.
#[derive(Debug)]
pub enum BackError {
    /// A stated limit of the target.
    Target(TargetError),
    /// A lock that cannot be used.
    Tuning(TuningError),
    /// Our bug.
    Internal(String),
}

impl From<CodegenError> for BackError {
    fn from(e: CodegenError) -> Self {
        BackError::Internal(e.0)
    }
}

/// text → tokens → ast → hir → graph. `load` reads files beside the root.
pub fn front(name: &str, text: &str, load: &mut hir::Loader, options: &Options) -> Front {
    let mut sources = Sources::default();
    let root = sources.add(name, text);
    let mut diags = Diags::new();
    let program = hir::lower(root, &mut sources, load, &options.overrides, &mut diags);
    Front { sources, root, program, diagnostics: diags.into_sorted() }
}

/// graph → [autodiff] → [e-graph] → graph: the module with `grad`, normalised and optimised.
pub fn middle(program: &Program, options: &Options) -> Result<(Module, Vec<egraph::Report>), BackError> {
    let mut module = program.module.clone();
    let internal = |e: String| BackError::Internal(e);
    if options.by_definition {
        passes::run(&mut module, &["expand_attend"], cfg!(debug_assertions)).map_err(|e| internal(e.to_string()))?;
    }
    passes::run(&mut module, passes::PIPELINE, cfg!(debug_assertions)).map_err(|e| internal(e.to_string()))?;
    if let Some(loss) = module.func("loss") {
        let wrt: Vec<usize> = loss.args.iter().enumerate().filter(|(_, a)| a.role == Role::Param).map(|(i, _)| i).collect();
        let grad =
            autodiff::grad(loss, &wrt, Seed { objective: "loss", remat: Remat::Cheap }).map_err(|e| internal(e.to_string()))?;
        let mut grad = graph::accumulate::accumulate(&grad);
        grad.name = "grad".into();
        module.funcs.push(grad);
    }
    optimize(module, options)
}

/// graph → [e-graph] → graph: functions whose gradients are taken, normalised and optimised.
pub fn optimize(mut module: Module, options: &Options) -> Result<(Module, Vec<egraph::Report>), BackError> {
    let internal = |e: String| BackError::Internal(e);
    passes::run(&mut module, &["drop_stop_gradient"], cfg!(debug_assertions)).map_err(|e| internal(e.to_string()))?;
    passes::run(&mut module, passes::PIPELINE, cfg!(debug_assertions)).map_err(|e| internal(e.to_string()))?;
    if options.no_optimize {
        passes::run(&mut module, &["expand_quantize"], cfg!(debug_assertions)).map_err(|e| internal(e.to_string()))?;
        return Ok((module, Vec::new()));
    }
    let (mut module, reports) = buckets::optimize(&module, options);
    passes::run(&mut module, &["stream_fused", "expand_quantize"], cfg!(debug_assertions))
        .map_err(|e| internal(e.to_string()))?;
    if options.gpu {
        passes::run(
            &mut module,
            &["expand_thin_contract", "expand_single_pick", "lift_transpose", "hoist_casts"],
            cfg!(debug_assertions),
        )
        .map_err(|e| internal(e.to_string()))?;
    }
    passes::run(&mut module, passes::PIPELINE, cfg!(debug_assertions)).map_err(|e| internal(e.to_string()))?;
    passes::run(&mut module, &["fold_transpose", "prune_dead", "sink_carried"], cfg!(debug_assertions))
        .map_err(|e| internal(e.to_string()))?;
    Ok((module, reports))
}

/// The hash of a program as a lock names it: of its graph as it comes from the language.
pub fn program_hash(program: &Program) -> u64 {
    library::file::checksum(graph::text::print(&program.module).as_bytes())
}

/// graph → tile: kernels, buffers and steps.
///
/// # Errors
/// E05: what the target cannot do, and what a lock lacks that has to have all.
pub fn lower(module: &Module, options: &Options) -> Result<Lowered, BackError> {
    let lock = options.lock.as_ref();
    let none = BTreeMap::new();
    let tilings = Tilings::Of(lock.map_or(&none, |l| &l.tuning.tilings));
    let lowered = tile::lower_with(module, lowering(options), tilings).map_err(BackError::Target)?;
    match lock.filter(|_| options.locked) {
        Some(l) => {
            let missing = missing(&lowered, &l.tuning);
            if missing.is_empty() {
                return Ok(lowered);
            }
            let command = format!("`lode tune` with the same model and config and --dims {}", shown(&l.tuning.dims));
            Err(BackError::Tuning(TuningError::Missing { path: l.path.clone(), missing, command }))
        }
        None => Ok(lowered),
    }
}

/// How to lower for these options.
pub fn lowering(options: &Options) -> tile::Options {
    tile::Options { fuse: !options.by_definition, parts: options.gpu, products: options.gpu }
}

/// Dims as the command line takes them.
pub fn shown(dims: &DimEnv) -> String {
    dims.iter().map(|(n, v)| format!("{n}={v}")).collect::<Vec<_>>().join(",")
}

/// Whether this of the entries is what runs for these dims when its name is called.
pub fn runs(entries: &[library::Entry], e: &library::Entry, dims: &DimEnv) -> bool {
    let first = entries.iter().find(|x| x.name == e.name && x.is_variant() && x.runs_at(dims));
    first.map_or(!e.is_variant(), |first| std::ptr::eq(first, e))
}

/// What a lock would have to say of these entries and does not: buckets of steps at the lock's dims, and problems with several tilings.
pub fn missing(lowered: &Lowered, lock: &Tuning) -> Vec<String> {
    let mut missing = Vec::new();
    let mut note = |text: String| {
        if !missing.contains(&text) {
            missing.push(text);
        }
    };
    let mut launched = BTreeSet::new();
    for entry in lowered.entries.iter().filter(|e| runs(&lowered.entries, e, &lock.dims)) {
        for step in exec::plan::steps(&entry.steps) {
            if let library::Step::Launch { kernel, .. } = step {
                launched.insert(*kernel);
            }
            // What is zeroed is no copy.
            let job = Some(step).filter(|s| !matches!(s, library::Step::Zero { .. }));
            let job = job.and_then(|s| s.job(&entry.buffers, &lock.dims)).map(|j| tuning::bucket(&j));
            job.filter(|j| !lock.times.contains_key(j)).into_iter().for_each(|j| note(format!("time {}", tuning::show(&j))));
        }
    }
    let chosen = |(p, _, kernel): &&(String, String, usize)| launched.contains(kernel) && !lock.tilings.contains_key(p);
    for (problem, ..) in lowered.tilings.iter().filter(chosen) {
        note(format!("tiling {problem:?}"));
    }
    missing
}

/// tile → mlir → llvm → object or ptx → library.
pub fn library(
    program: &Program,
    module: &Module,
    lowered: &Lowered,
    sources: &Sources,
    options: &Options,
) -> Result<Library, BackError> {
    let mut manifest = manifest(program, module, lowered, sources);
    let code = emit(&mut manifest, lowered, sources, options)?;
    Library::new(manifest, code).map_err(|e| BackError::Internal(e.to_string()))
}

/// tile → the target's code, of which the manifest then knows.
///
/// # Errors
/// E05: limits of the target.
pub fn emit(manifest: &mut Manifest, lowered: &Lowered, sources: &Sources, options: &Options) -> Result<Vec<Vec<u8>>, BackError> {
    if !options.gpu {
        return Ok(codegen::emit_objects(&lowered.kernels)?);
    }
    let ptx = ptx(lowered, sources)?;
    manifest.target = library::SM_90A.into();
    manifest.kernels.iter_mut().zip(&ptx.kernels).for_each(|(k, g)| k.gpu = Some(gpu_launch(g)));
    Ok(vec![ptx.text.into_bytes()])
}

/// The PTX of kernels, with lines of the sources.
///
/// # Errors
/// E05: limits of the target.
pub fn ptx(lowered: &Lowered, sources: &Sources) -> Result<codegen::gpu::Ptx, BackError> {
    let mut places = std::collections::BTreeMap::new();
    let mut place = |span: base::Span| {
        let found = places.entry(span).or_insert_with(|| {
            let (line, column) = sources.line_col(span);
            codegen::gpu::Place { file: sources.get(span.file).name.clone(), line, column }
        });
        found.clone()
    };
    let lines = lowered.origins.iter().zip(&lowered.lines).map(|(origin, vars)| codegen::gpu::Lines {
        kernel: origin.map(&mut place),
        vars: vars.iter().map(|(v, span)| (*v, place(*span))).collect(),
    });
    Ok(codegen::emit_ptx_with_lines(&lowered.kernels, &lines.collect::<Vec<_>>(), &codegen::GpuOptions::default())?)
}

/// What it takes to launch a kernel, in the library's words.
fn gpu_launch(k: &codegen::GpuKernel) -> library::GpuLaunch {
    let extent = |e: &codegen::gpu::Extent| match e {
        codegen::gpu::Extent::Const(n) => base::Dim::from(*n),
        codegen::gpu::Extent::Dim(i) => base::Dim::sym(&format!("d{i}")),
    };
    let map = |m: &codegen::gpu::TensorMap| library::TensorMap {
        buffer: m.buffer,
        dtype: m.dtype,
        axes: m.axes.iter().map(|(n, s)| (extent(n), extent(s))).collect(),
        rows: m.rows,
        runs: m.runs,
        cols: m.cols,
    };
    library::GpuLaunch {
        threads: k.threads,
        cluster: k.cluster,
        blocks: k.blocks.clone(),
        static_shared_bytes: k.static_shared,
        dynamic_shared_bytes: k.dynamic_shared,
        workspace_bytes: k.workspace,
        maps: k.maps.iter().map(map).collect(),
    }
}

/// The manifest of what was lowered, for the host.
pub fn manifest(program: &Program, module: &Module, lowered: &Lowered, sources: &Sources) -> Manifest {
    let kernels = lowered.kernels.iter().zip(&lowered.origins).map(|(k, origin)| library::Kernel {
        symbol: k.name.clone(),
        num_buffers: k.buffers.len(),
        num_dims: k.dims.len(),
        scratch_bytes: k.scratch.iter().map(|s| s.elems * s.dtype.bytes()).sum(),
        origin: origin.map(|s| format!("{}:{}", sources.get(s.file).name, sources.line_col(s).0)),
        gpu: None,
    });
    let params = module.params.iter().map(|p| library::Param {
        name: p.name.clone(),
        dtype: p.ty.dtype,
        shape: p.ty.shape.iter().map(|d| d.known().expect("parameters have constant extents")).collect(),
        init: match p.init {
            graph::ir::Init::Normal(x) => library::Init::Normal(x),
            graph::ir::Init::Uniform(x) => library::Init::Uniform(x),
            graph::ir::Init::Constant(x) => library::Init::Constant(x),
        },
        decay: p.decay,
        role: if p.role == Role::State { library::Role::State } else { library::Role::Param },
    });
    Manifest {
        name: module.name.clone(),
        target: library::HOST.into(),
        dims: program.dims.clone(),
        params: params.collect(),
        kernels: kernels.collect(),
        entries: lowered.entries.clone(),
        settings: program.settings.clone(),
    }
}

/// All of it, for files on disk.
pub fn read_source(path: &Path) -> std::io::Result<(String, String)> {
    Ok((path.display().to_string(), std::fs::read_to_string(path)?))
}
