//! LLVM: optimisation for this machine's processor, and objects.

use crate::CodegenError;
use inkwell::{
    OptimizationLevel,
    attributes::AttributeLoc,
    module::{Linkage, Module},
    passes::PassBuilderOptions,
    targets::{CodeModel, FileType, InitializationConfig, RelocMode, Target, TargetMachine},
};
use std::sync::Once;

/// The version linked in.
pub fn llvm_version() -> String {
    let (a, b, c) = inkwell::support::get_llvm_version();
    format!("{a}.{b}.{c}")
}

/// This machine's processor, as LLVM names it.
pub fn host_cpu() -> String {
    TargetMachine::get_host_cpu_name().to_string()
}

fn machine() -> Result<TargetMachine, CodegenError> {
    static TARGETS: Once = Once::new();
    TARGETS.call_once(|| Target::initialize_x86(&InitializationConfig::default()));
    let triple = TargetMachine::get_default_triple();
    let target = Target::from_triple(&triple).map_err(|e| CodegenError(e.to_string()))?;
    let features = TargetMachine::get_host_cpu_features().to_string();
    let level = OptimizationLevel::Aggressive;
    target
        .create_target_machine(&triple, &host_cpu(), &features, level, RelocMode::PIC, CodeModel::Default)
        .ok_or_else(|| CodegenError(format!("no machine for {triple}")))
}

/// Optimises for this machine.
pub fn optimise(module: &Module) -> Result<(), CodegenError> {
    let machine = machine()?;
    module.set_triple(&machine.get_triple());
    module.set_data_layout(&machine.get_target_data().get_data_layout());
    let context = module.get_context();
    let cpu = host_cpu();
    let features = TargetMachine::get_host_cpu_features().to_string();
    let mut function = module.get_first_function();
    while let Some(f) = function {
        if f.count_basic_blocks() > 0 {
            let name = f.get_name().to_string_lossy().into_owned();
            if name.ends_with("_block") || name.starts_with("lode_") {
                f.set_linkage(Linkage::Internal);
            }
            for (key, value) in [("target-cpu", cpu.as_str()), ("target-features", features.as_str())] {
                f.add_attribute(AttributeLoc::Function, context.create_string_attribute(key, value));
            }
        }
        function = f.get_next_function();
    }
    let options = PassBuilderOptions::create();
    options.set_loop_vectorization(true);
    options.set_loop_slp_vectorization(true);
    options.set_loop_unrolling(true);
    options.set_loop_interleaving(true);
    options.set_verify_each(false);
    module.run_passes("default<O2>", &machine, options).map_err(|e| CodegenError(e.to_string()))
}

/// The module as a relocatable object.
pub fn object(module: &Module) -> Result<Vec<u8>, CodegenError> {
    let buffer = machine()?.write_to_memory_buffer(module, FileType::Object).map_err(|e| CodegenError(e.to_string()))?;
    Ok(buffer.as_slice().to_vec())
}
