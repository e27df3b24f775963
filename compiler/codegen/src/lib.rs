//! Tile programs to MLIR, to LLVM, to code for this machine's processor or to PTX ([`gpu`]). The only crate that names LLVM.
//!
//! In: kernels that verify. Out: a relocatable object, or functions in memory. Each kernel is two functions: the block, whose buffers
//! are `noalias` arguments, and the entry point, which runs blocks `begin..end`.

mod copy;
mod dot;
mod emit;
pub mod emulate;
pub mod gpu;
mod jit;
mod llvm;
mod mlir;

pub use gpu::{GpuKernel, GpuOptions, emit_gpu_mlir, emit_ptx, emit_ptx_with_lines};
pub use jit::Jit;
pub use llvm::{host_cpu, llvm_version};

use std::sync::atomic::{AtomicUsize, Ordering};
use tile::Kernel;

/// Why code could not be made: our bug, told with the kernel's name.
#[derive(Clone, Debug)]
pub struct CodegenError(pub String);

impl std::fmt::Display for CodegenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for CodegenError {}

/// What a block's scratch memory may take: it is on a thread's stack. # Units: bytes.
const MAX_SCRATCH: usize = 256 << 10;

/// Objects that a library is compiled as, or modules of its PTX, so that many cores compile.
const PARTS: usize = 8;

/// For which processor, and how much to optimise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// LLVM's name of the processor (`x86-64-v3`); none is this machine's.
    pub cpu: Option<String>,
    /// 0 for the least time, 1 for fast code, 2 and 3 for more of LLVM's machine passes, which seldom pay.
    pub opt_level: u8,
}

impl Default for Options {
    fn default() -> Options {
        Options { cpu: None, opt_level: 1 }
    }
}

/// The MLIR text of the kernels, as it is before lowering.
pub fn emit_mlir(kernels: &[Kernel]) -> String {
    emit::module(kernels)
}

/// The LLVM text of the kernels, optimised for this machine.
///
/// # Errors
/// As [`emit_objects_for`].
pub fn emit_llvm(kernels: &[Kernel]) -> Result<String, CodegenError> {
    check_scratch(kernels)?;
    mlir::with_llvm(&emit::module(kernels), |module| {
        llvm::optimise(module, &Options::default())?;
        Ok(module.print_to_string().to_string())
    })
}

/// Relocatable objects for this machine.
///
/// # Errors
/// As [`emit_objects_for`].
pub fn emit_objects(kernels: &[Kernel]) -> Result<Vec<Vec<u8>>, CodegenError> {
    emit_objects_for(kernels, &Options::default())
}

/// Relocatable objects that hold the kernels' entry points: the same kernels give the same bytes.
///
/// # Errors
/// If a kernel needs more scratch memory than a block may have, or MLIR or LLVM refuses what we emit.
pub fn emit_objects_for(kernels: &[Kernel], options: &Options) -> Result<Vec<Vec<u8>>, CodegenError> {
    check_scratch(kernels)?;
    // Which kernel is in which part depends on its place alone, so that the bytes do not depend on the number of cores.
    let parts: Vec<Vec<Kernel>> = (0..PARTS).map(|k| kernels.iter().skip(k).step_by(PARTS).cloned().collect()).collect();
    let parts: Vec<_> = parts.into_iter().filter(|p| !p.is_empty()).collect();
    on_all_cores(&parts, |part| emit_object(part, options))
}

/// What `emit` makes of each part, in order, or the first error.
fn on_all_cores<T: Sync, R: Send>(
    parts: &[T],
    emit: impl Fn(&T) -> Result<R, CodegenError> + Sync,
) -> Result<Vec<R>, CodegenError> {
    let (next, threads) = (AtomicUsize::new(0), std::thread::available_parallelism().map_or(1, usize::from));
    let work = || {
        let mut done = Vec::new();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(part) = parts.get(i) else { return done };
            done.push((i, emit(part)));
        }
    };
    let mut results = std::thread::scope(|s| {
        let threads: Vec<_> = (0..threads.min(parts.len())).map(|_| s.spawn(work)).collect();
        let panicked = |_| vec![(usize::MAX, Err(CodegenError("a compiler thread panicked".into())))];
        threads.into_iter().flat_map(|t| t.join().unwrap_or_else(panicked)).collect::<Vec<_>>()
    });
    results.sort_by_key(|(i, _)| *i);
    results.into_iter().map(|(_, result)| result).collect()
}

fn emit_object(kernels: &[Kernel], options: &Options) -> Result<Vec<u8>, CodegenError> {
    mlir::with_llvm(&emit::module(kernels), |module| {
        llvm::optimise(module, options)?;
        llvm::object(module, options)
    })
}

fn check_scratch(kernels: &[Kernel]) -> Result<(), CodegenError> {
    for k in kernels {
        let needed: usize = k.scratch.iter().map(|s| (s.elems * s.dtype.bytes()).next_multiple_of(64)).sum();
        if needed > MAX_SCRATCH {
            let text = format!("kernel {}: {needed} bytes of scratch memory, where {MAX_SCRATCH} are available", k.name);
            return Err(CodegenError(text));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
