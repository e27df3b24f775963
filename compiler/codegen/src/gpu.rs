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
    emit::{Function, Machine, function, functions_module},
    llvm, mlir, on_all_cores,
};
use access::each_expr;
use base::{DType, Dim};
use graph::op::MapFn;
pub use hopper::{Extent, TensorMap};
use lines::Places;
pub use lines::{Lines, Place};
use plan::Limits;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};
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
    /// Neighbouring blocks that are a cluster: a multiple of so many is launched.
    pub cluster: u32,
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
const LIMITS: Limits = Limits { warp: 32, threads: (128, 256), most: 1024, shared_bytes: 224 << 10, hopper: true, cluster: 16 };

/// The MLIR text of the kernels as GPU code, as it is before lowering.
///
/// # Errors
/// As [`emit_ptx`], for what the kernels hold.
pub fn emit_gpu_mlir(kernels: &[Kernel]) -> Result<String, CodegenError> {
    let places = Places::default();
    let emitted = kernels.iter().enumerate().map(|(i, k)| Ok(emit(i, k, &places)?.0)).collect::<Result<Vec<_>, _>>()?;
    Ok(functions_module(&emitted.iter().collect::<Vec<_>>(), Machine::Gpu))
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
    let places = Places::new(lines);
    let numbers: Vec<usize> = (0..kernels.len()).collect();
    let emitted = on_all_cores(&numbers, |i| emit(*i, &kernels[*i], &places))?;
    let operations = |text: &str| text.lines().filter(|line| !line.trim_start().starts_with(lines::MARK)).count();
    let parts = parts(&emitted.iter().map(|(f, _)| operations(&f.text)).collect::<Vec<_>>());
    let compile = |part: &Vec<usize>| {
        let marked = functions_module(&part.iter().map(|i| &emitted[*i].0).collect::<Vec<_>>(), Machine::Gpu);
        Ok((mlir::with_llvm(&marked, |module| llvm::ptx(module, options))?, marked))
    };
    let compiled = on_all_cores(&parts, compile)?;
    let mut out = Ptx { text: String::new(), kernels: Vec::new() };
    let mut files = Vec::new();
    let mut declared = BTreeSet::new();
    for ((text, marked), part) in compiled.iter().zip(&parts) {
        let text = places.write(text, marked, part, &mut files);
        // What every part declares is said once.
        let common = |line: &str| [".version", ".target", ".address_size", ".extern"].iter().any(|p| line.starts_with(p));
        let inline = |line: &str| matches!(line.trim_start(), "// begin inline asm" | "// end inline asm");
        let said = |line: &&str| !inline(line) && (!common(line) || declared.insert(line.to_string()));
        text.lines().filter(said).for_each(|line| out.text.extend([line, "\n"]));
    }
    out.kernels.extend(emitted.into_iter().map(|(_, k)| k));
    for (i, file) in files.iter().enumerate() {
        // PTX is ASCII.
        let name: String =
            file.chars().map(|c| if c.is_ascii_graphic() && !['"', '\\'].contains(&c) { c } else { '_' }).collect();
        let _ = writeln!(out.text, "\t.file\t{} \"{name}\"", i + 1);
    }
    Ok(out)
}

/// Which functions of such lengths are compiled together, by their numbers: the longest first, each goes where there is the least. It depends on the lengths
/// alone, so that the text does not depend on the number of cores.
fn parts(lengths: &[usize]) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|i| (std::cmp::Reverse(lengths[*i]), *i));
    let mut parts = vec![(0, Vec::new()); PARTS];
    for i in order {
        let (length, part) = parts.iter_mut().min_by_key(|(length, _)| *length).expect("there are parts");
        *length += lengths[i];
        part.push(i);
    }
    let mut parts: Vec<Vec<usize>> = parts.into_iter().map(|(_, part)| part).filter(|p| !p.is_empty()).collect();
    parts.iter_mut().for_each(|part| part.sort_unstable());
    parts.sort_unstable();
    parts
}

/// The function of a kernel, and how it is launched.
fn emit(i: usize, kernel: &Kernel, places: &Places) -> Result<(Function, GpuKernel), CodegenError> {
    check(kernel)?;
    let (k, plan) = plan::prepare(kernel, LIMITS);
    let none = BTreeMap::new();
    let function = function(i, (&k, &plan), places.of_kernels.get(i).unwrap_or(&none), Machine::Gpu);
    let launch = GpuKernel {
        symbol: k.name.clone(),
        threads: plan.launched(),
        cluster: plan.clustered(),
        grid: plan.grid.clone(),
        blocks: plan.blocks.clone(),
        static_shared: function.reductions,
        dynamic_shared: plan.shared_bytes + plan.hopper.as_ref().map_or(0, |h| h.shared_bytes),
        workspace: plan.workspace_bytes,
        maps: plan.hopper.as_ref().map_or_else(Vec::new, |h| h.maps.clone()),
    };
    Ok((function, launch))
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
