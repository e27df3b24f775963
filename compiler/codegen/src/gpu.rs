//! Tile programs to PTX, for one GPU architecture.
//!
//! A kernel becomes an entry point of its name. Its parameters, in order: a pointer per buffer, an i64 per dim, the number of blocks of the tile
//! program (`Kernel::grid` over the dims), and a pointer to the workspace (any, if it needs none). It gives the same bits however many
//! blocks of threads are launched; [`GpuKernel::grid`] is the number that has work to do.
//!
//! How a tile program is spread over threads: `plan.rs` and `emit/simt.rs`.

pub(crate) mod access;
pub(crate) mod hopper;
pub(crate) mod lines;
pub(crate) mod plan;
pub(crate) mod rows;
pub(crate) mod unit;

use crate::{
    CodegenError, PARTS,
    emit::{Machine, block_module},
    llvm, mlir, on_all_cores,
};
use access::each_expr;
use base::{DType, Dim};
use graph::op::MapFn;
pub use hopper::{Extent, TensorMap};
use lines::Places;
pub use lines::{Lines, Place};
use plan::{Limits, Plan};
use std::{collections::BTreeSet, fmt::Write};
use tile::{Expr, Kernel};

/// For which GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuOptions {
    /// LLVM's name of the architecture.
    pub target: String,
    /// The version of the PTX instruction set, 86 for 8.6.
    pub ptx: u32,
}

impl Default for GpuOptions {
    fn default() -> GpuOptions {
        GpuOptions { target: "sm_90a".into(), ptx: 86 }
    }
}

/// What it takes to launch a kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct GpuKernel {
    /// The entry point.
    pub symbol: String,
    /// Threads of a block, in one dimension.
    pub threads: u32,
    /// The number of blocks that have something to do. Fewer do the same work, more than that idle; at least one has to be launched if
    /// there is work.
    pub grid: Dim,
    /// The same for every step that launches it: over its extents, `d0`, `d1`, … in their order, and `grid`, the blocks of the tile program.
    pub blocks: Dim,
    /// Shared memory that the kernel declares itself. # Units: bytes.
    pub static_shared: usize,
    /// Shared memory to ask for when launching; above 48 KiB the function's limit has to be raised first. # Units: bytes.
    pub dynamic_shared: usize,
    /// Global memory that each launched block needs, one block's after the other's, aligned to 128. # Units: bytes.
    pub workspace: usize,
    /// The tensor maps that follow the other parameters, each 128 bytes by value.
    pub maps: Vec<TensorMap>,
}

/// The PTX of a module, and how its kernels are launched.
#[derive(Clone, Debug, PartialEq)]
pub struct Ptx {
    /// The text, for `cuModuleLoadData` or `ptxas`.
    pub text: String,
    /// The kernels, in the order given.
    pub kernels: Vec<GpuKernel>,
}

/// Of a Hopper GPU: 227 KiB of shared memory a block, of which reductions may take 3.
const LIMITS: Limits = Limits { warp: 32, threads: (128, 256), most: 1024, shared_bytes: 224 << 10, hopper: true };

/// The MLIR text of the kernels as GPU code, as it is before lowering.
///
/// # Errors
/// As [`emit_ptx`], for what the kernels hold.
pub fn emit_gpu_mlir(kernels: &[Kernel]) -> Result<String, CodegenError> {
    Ok(module(kernels, &Places::default())?.0)
}

/// The PTX of kernels that verify: the same kernels give the same bytes.
///
/// # Errors
/// If a kernel takes a function of f64 that only a C library has, or MLIR or LLVM refuses what we emit.
pub fn emit_ptx(kernels: &[Kernel], options: &GpuOptions) -> Result<Ptx, CodegenError> {
    emit_ptx_with_lines(kernels, &vec![Lines::default(); kernels.len()], options)
}

/// The same PTX, whose instructions tell where in the sources what they compute stands.
///
/// # Errors
/// As [`emit_ptx`].
pub fn emit_ptx_with_lines(kernels: &[Kernel], lines: &[Lines], options: &GpuOptions) -> Result<Ptx, CodegenError> {
    assert_eq!(kernels.len(), lines.len(), "lines of each kernel");
    // Which kernel is in which part depends on its place alone, so that the text does not depend on the number of cores.
    let each = kernels.len().div_ceil(PARTS).max(1);
    let parts: Vec<_> = kernels.chunks(each).zip(lines.chunks(each)).collect();
    let emit = |(part, lines): &(&[Kernel], &[Lines])| {
        let places = Places::new(lines);
        let (marked, kernels) = module(part, &places)?;
        Ok((mlir::with_llvm(&marked, |module| llvm::ptx(module, options))?, kernels, marked, places))
    };
    let mut out = Ptx { text: String::new(), kernels: Vec::new() };
    let mut files = Vec::new();
    let mut declared = BTreeSet::new();
    for (text, kernels, marked, places) in on_all_cores(&parts, emit)? {
        let text = places.write(&text, &marked, &mut files);
        // What every part declares is said once.
        let common = |line: &str| [".version", ".target", ".address_size", ".extern"].iter().any(|p| line.starts_with(p));
        let said = |line: &&str| !common(line) || declared.insert(line.to_string());
        text.lines().filter(said).for_each(|line| out.text.extend([line, "\n"]));
        out.kernels.extend(kernels);
    }
    for (i, file) in files.iter().enumerate() {
        // PTX is ASCII.
        let name: String =
            file.chars().map(|c| if c.is_ascii_graphic() && !['"', '\\'].contains(&c) { c } else { '_' }).collect();
        let _ = writeln!(out.text, "\t.file\t{} \"{name}\"", i + 1);
    }
    Ok(out)
}

fn module(kernels: &[Kernel], places: &Places) -> Result<(String, Vec<GpuKernel>), CodegenError> {
    kernels.iter().try_for_each(check)?;
    let prepared: Vec<(Kernel, Plan)> = kernels.iter().map(|k| plan::prepare(k, LIMITS)).collect();
    let planned: Vec<(&Kernel, Plan)> = prepared.iter().map(|(k, p)| (k, p.clone())).collect();
    let (text, reductions) = block_module(&planned, places, Machine::Gpu);
    let launch = |((k, plan), sums): (&(&Kernel, Plan), usize)| GpuKernel {
        symbol: k.name.clone(),
        threads: plan.launched(),
        grid: plan.grid.clone(),
        blocks: plan.blocks.clone(),
        static_shared: sums,
        dynamic_shared: plan.shared_bytes + plan.hopper.as_ref().map_or(0, |h| h.shared_bytes),
        workspace: plan.workspace_bytes,
        maps: plan.hopper.as_ref().map_or_else(Vec::new, |h| h.maps.clone()),
    };
    Ok((text, planned.iter().zip(reductions).map(launch).collect()))
}

/// Fails if a kernel takes a function of f64 that has no code here.
fn check(k: &Kernel) -> Result<(), CodegenError> {
    let mut found = None;
    each_expr(&k.body, &mut |e| {
        if let Expr::Map(f, args) = e
            && k.expr_dtype(&args[0]) == DType::F64
            && needs_library(*f)
        {
            found = found.or(Some(*f));
        }
    });
    match found {
        Some(f) => Err(CodegenError(format!("kernel {}: {} of f64 has no code for GPUs", k.name, f.name()))),
        None => Ok(()),
    }
}

/// Whether a function of f64 is more than some instructions.
fn needs_library(f: MapFn) -> bool {
    match f {
        MapFn::Exp
        | MapFn::Log
        | MapFn::Pow
        | MapFn::Sin
        | MapFn::Cos
        | MapFn::Tanh
        | MapFn::Sigmoid
        | MapFn::Silu
        | MapFn::Swiglu
        | MapFn::Softplus
        | MapFn::Erf => true,
        MapFn::Add
        | MapFn::Sub
        | MapFn::Mul
        | MapFn::Div
        | MapFn::Min
        | MapFn::Max
        | MapFn::Neg
        | MapFn::Abs
        | MapFn::Floor
        | MapFn::Sqrt
        | MapFn::Rsqrt
        | MapFn::Sign
        | MapFn::FloorDiv
        | MapFn::Rem
        | MapFn::Eq
        | MapFn::Ne
        | MapFn::Lt
        | MapFn::Le
        | MapFn::And
        | MapFn::Or
        | MapFn::Not
        | MapFn::IsFinite
        | MapFn::Select => false,
    }
}
