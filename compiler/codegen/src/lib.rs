//! Tile programs to MLIR, to LLVM, to code for this machine's processor. The only crate that names LLVM.
//!
//! In: kernels that verify. Out: a relocatable object, or functions in memory. Each kernel is two functions: the block, whose buffers
//! are `noalias` arguments, and the entry point, which runs blocks `begin..end`.

mod dot;
mod emit;
mod jit;
mod llvm;
mod mlir;

pub use dot::expand_dot;
pub use jit::Jit;
pub use llvm::{host_cpu, llvm_version};

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

/// The MLIR text of the kernels, as it is before lowering.
pub fn emit_mlir(kernels: &[Kernel]) -> String {
    emit::module(kernels)
}

/// The LLVM text of the kernels, optimised for this machine.
///
/// # Errors
/// If MLIR or LLVM refuses what we emit.
pub fn emit_llvm(kernels: &[Kernel]) -> Result<String, CodegenError> {
    mlir::with_llvm(&emit::module(kernels), |module| {
        llvm::optimise(module)?;
        Ok(module.print_to_string().to_string())
    })
}

/// Relocatable objects that hold the kernels' entry points: the same kernels give the same bytes.
///
/// # Errors
/// If MLIR or LLVM refuses what we emit.
pub fn emit_objects(kernels: &[Kernel]) -> Result<Vec<Vec<u8>>, CodegenError> {
    // Two modules, so that two cores compile; which kernel is in which depends on its place alone.
    let parts = [0, 1].map(|k| kernels.iter().skip(k).step_by(2).cloned().collect::<Vec<_>>());
    let results = std::thread::scope(|s| {
        let threads = parts.each_ref().map(|part| s.spawn(|| emit_object(part)));
        threads.map(|t| t.join().unwrap_or_else(|_| Err(CodegenError("a compiler thread panicked".into()))))
    });
    results.into_iter().collect()
}

fn emit_object(kernels: &[Kernel]) -> Result<Vec<u8>, CodegenError> {
    mlir::with_llvm(&emit::module(kernels), |module| {
        llvm::optimise(module)?;
        llvm::object(module)
    })
}

#[cfg(test)]
mod tests;
