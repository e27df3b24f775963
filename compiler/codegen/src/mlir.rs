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
const PIPELINE: &str = "builtin.module(convert-scf-to-cf,convert-math-to-llvm,convert-arith-to-llvm,\
convert-cf-to-llvm,convert-func-to-llvm,reconcile-unrealized-casts)";

/// Calls `with` on the LLVM module of an MLIR text.
///
/// # Errors
/// What MLIR says, if it does not take the text.
pub fn with_llvm<R>(text: &str, with: impl FnOnce(&LlvmModule) -> Result<R, CodegenError>) -> Result<R, CodegenError> {
    static PASSES: Once = Once::new();
    PASSES.call_once(register_all_passes);
    let registry = DialectRegistry::new();
    register_all_dialects(&registry);
    let context = Context::new();
    context.append_dialect_registry(&registry);
    context.load_all_available_dialects();
    register_all_llvm_translations(&context);
    let messages = std::sync::Arc::new(Mutex::new(String::new()));
    let sink = messages.clone();
    context.attach_diagnostic_handler(move |d| {
        if let Ok(mut out) = sink.lock() {
            out.push_str(&format!("{}: {d}\n", d.location()));
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
