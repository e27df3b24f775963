//! From a model file to a library: the page that calls every stage.
//!
//! A pure function of sources, options and target: no clock, no environment, no randomness.

use base::{Diags, FileId, Sources, diag::Entry};
use codegen::CodegenError;
use graph::{
    Module, Role,
    autodiff::{self, Remat, Seed},
    passes,
};
use hir::{Overrides, Program};
use library::{Library, Manifest};
use std::path::Path;
use tile::{Lowered, TargetError};

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
    passes::run(&mut module, &["drop_stop_gradient"], cfg!(debug_assertions)).map_err(|e| internal(e.to_string()))?;
    passes::run(&mut module, passes::PIPELINE, cfg!(debug_assertions)).map_err(|e| internal(e.to_string()))?;
    if options.no_optimize {
        return Ok((module, Vec::new()));
    }
    let (mut module, report) = egraph::optimize(&module, &tile::cost::op_cost, &egraph::Options::default());
    passes::run(&mut module, passes::PIPELINE, cfg!(debug_assertions)).map_err(|e| internal(e.to_string()))?;
    Ok((module, report))
}

/// graph → tile: kernels, buffers and steps.
pub fn lower(module: &Module, options: &Options) -> Result<Lowered, BackError> {
    tile::lower(module, tile::Options { fuse: !options.by_definition, parts: options.gpu, products: options.gpu })
        .map_err(BackError::Target)
}

/// tile → mlir → llvm → object → library.
pub fn library(program: &Program, module: &Module, lowered: &Lowered, sources: &Sources) -> Result<Library, BackError> {
    let code = codegen::emit_objects(&lowered.kernels)?;
    Library::new(manifest(program, module, lowered, sources), code).map_err(|e| BackError::Internal(e.to_string()))
}

/// The manifest of what was lowered.
pub fn manifest(program: &Program, module: &Module, lowered: &Lowered, sources: &Sources) -> Manifest {
    let kernels = lowered.kernels.iter().zip(&lowered.origins).map(|(k, origin)| library::Kernel {
        symbol: k.name.clone(),
        num_buffers: k.buffers.len(),
        num_dims: k.dims.len(),
        scratch_bytes: k.scratch.iter().map(|s| s.elems * s.dtype.bytes()).sum(),
        origin: origin.map(|s| format!("{}:{}", sources.get(s.file).name, sources.line_col(s).0)),
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
        target: "host".into(),
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
