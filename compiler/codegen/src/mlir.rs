//! MLIR text to an LLVM module, in one process and one LLVM.

use crate::CodegenError;
use inkwell::{context::Context as LlvmContext, llvm_sys::prelude::LLVMModuleRef, module::Module as LlvmModule};
use melior::{
    Context,
    dialect::DialectRegistry,
    ir::Module,
    pass::PassManager,
    utility::{parse_pass_pipeline, register_all_dialects, register_all_llvm_translations, register_all_passes},
};
use std::sync::{Mutex, Once};

/// From structured control flow and arithmetic to the `llvm` dialect.
/// One conversion for all dialects takes a third of the time of one for each. Our types are those of LLVM, so that it leaves no casts.
const PIPELINE: &str = "builtin.module(convert-scf-to-cf,convert-to-llvm)";

/// Calls `with` on the LLVM module of an MLIR text.
///
/// # Errors
/// What MLIR says, if it does not take the text.
pub(crate) fn with_llvm<R>(text: &str, with: impl FnOnce(&LlvmModule) -> Result<R, CodegenError>) -> Result<R, CodegenError> {
    static PASSES: Once = Once::new();
    PASSES.call_once(register_all_passes);
    // What a text names is loaded when it is met.
    let registry = DialectRegistry::new();
    register_all_dialects(&registry);
    // A text has a thread of its own.
    let context = Context::new();
    context.enable_multi_threading(false);
    context.append_dialect_registry(&registry);
    register_all_llvm_translations(&context);
    let messages = std::sync::Arc::new(Mutex::new(String::new()));
    let (sink, functions) = (messages.clone(), functions(text));
    context.attach_diagnostic_handler(move |d| {
        if let Ok(mut out) = sink.lock() {
            out.push_str(&described(&functions, &d.location().to_string(), &d.to_string()));
        }
        true
    });
    let failed = |what: &str| CodegenError(format!("{what}: {}", messages.lock().map(|m| m.clone()).unwrap_or_default()));
    let mut module = Module::parse(&context, text).ok_or_else(|| failed("MLIR does not parse what codegen emits"))?;
    let passes = PassManager::new(&context);
    passes.enable_verifier(cfg!(debug_assertions));
    parse_pass_pipeline(passes.as_operation_pass_manager(), PIPELINE).map_err(|e| failed(&e.to_string()))?;
    passes.run(&mut module).map_err(|_| failed("lowering to the llvm dialect"))?;
    let llvm = LlvmContext::create();
    // SAFETY: both are alive; mlir-sys and llvm-sys declare the same opaque C types of the one LLVM linked in.
    let raw: LLVMModuleRef =
        unsafe { mlir_sys::mlirTranslateModuleToLLVMIR(module.as_operation().to_raw(), llvm.raw().cast()) }.cast();
    if raw.is_null() {
        return Err(failed("translation to LLVM"));
    }
    // SAFETY: the translation made it in `llvm`, and nothing else owns it.
    let llvm_module = unsafe { LlvmModule::new(raw) };
    with(&llvm_module)
}

/// The lines where the functions of a text begin, and their names.
fn functions(text: &str) -> Vec<(usize, String)> {
    let name = |line: &str| Some(line.trim_start().split_once("func ")?.1.split_once('@')?.1.split_once('(')?.0.to_string());
    text.lines().enumerate().filter_map(|(i, line)| Some((i + 1, name(line)?))).collect()
}

/// A diagnostic, with the function it is in.
fn described(functions: &[(usize, String)], location: &str, message: &str) -> String {
    let line = location.split(':').nth(1).and_then(|n| n.parse::<usize>().ok());
    let function = line.and_then(|line| functions.iter().rev().find(|(first, _)| *first <= line));
    let function = function.map(|(_, name)| format!("in {name}, ")).unwrap_or_default();
    format!("{function}{location}: {message}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_mlir_refuses_is_told_with_the_function() {
        let text =
            "module {\n  func.func @good() {\n    return\n  }\n  func.func @bad(%x: f32) -> i32 {\n    return %x : f32\n  }\n}\n";
        let error = with_llvm(text, |_| Ok(())).expect_err("the types differ").0;
        assert!(error.contains("in bad, ") && error.contains("i32"), "{error}");
    }
}
