//! LLVM: optimisation for this machine's processor, and objects; the same for a GPU, and PTX.

use crate::{CodegenError, GpuOptions, Options};
use inkwell::{
    GlobalVisibility, OptimizationLevel,
    attributes::{Attribute, AttributeLoc},
    llvm_sys::support::LLVMParseCommandLineOptions,
    module::{Linkage, Module},
    passes::PassBuilderOptions,
    targets::{CodeModel, FileType, InitializationConfig, RelocMode, Target, TargetMachine, TargetTriple},
};
use std::sync::Once;

/// What tile programs need of LLVM's `default<O2>`, in half of its time: stack slots become values, indices leave the loops, loops become
/// vector code. There is nothing to inline, and interleaved vector loops gain nothing from unrolling.
const PIPELINE: &str = "function(sroa<modify-cfg>,early-cse<memssa>,simplifycfg,instcombine<max-iterations=1;no-verify-fixpoint>,\
loop-mssa(loop-rotate<header-duplication>,licm),loop(indvars),loop-vectorize,instcombine<max-iterations=1;no-verify-fixpoint>,\
early-cse<memssa>,loop-mssa(licm),simplifycfg),globaldce";

/// The same for a GPU: functions are inlined, short loops unrolled. Neighbouring accesses are joined when code is emitted, and indices leave the loops once more.
/// What else was here (induction variables, a second round of instructions) took 0.8 s of a model's 2.1 and left the kernels as they are.
const GPU_PIPELINE: &str = "always-inline,function(sroa<modify-cfg>,early-cse,simplifycfg,\
instcombine<max-iterations=1;no-verify-fixpoint>,loop-mssa(loop-rotate<header-duplication>,licm),loop-unroll<O2>,\
early-cse<memssa>,simplifycfg),globaldce";

/// The version linked in.
pub fn llvm_version() -> String {
    let (a, b, c) = inkwell::support::get_llvm_version();
    format!("{a}.{b}.{c}")
}

/// This machine's processor, as LLVM names it.
pub fn host_cpu() -> String {
    TargetMachine::get_host_cpu_name().to_string()
}

/// The processor to compile for, and its features; a named one implies its own.
fn target(options: &Options) -> (String, String) {
    match &options.cpu {
        Some(cpu) => (cpu.clone(), String::new()),
        None => (host_cpu(), TargetMachine::get_host_cpu_features().to_string()),
    }
}

/// Makes LLVM's targets known, once; the same for all, so that what one is asked for does not depend on what was asked before.
fn initialise() {
    static TARGETS: Once = Once::new();
    TARGETS.call_once(|| {
        Target::initialize_x86(&InitializationConfig::default());
        Target::initialize_nvptx(&InitializationConfig::default());
        // Strength reduction takes half of the time to emit code, for addresses that x86 computes in its loads. Its kin, which GPUs have, a fifth, for
        // places that have what is constant in them last as they are written (`Writer::linear`).
        let arguments = [c"lode", c"-disable-lsr", c"-opt-disable=slsr,nary-reassociate"].map(std::ffi::CStr::as_ptr);
        // SAFETY: three strings that end in 0; LLVM copies what it keeps.
        unsafe { LLVMParseCommandLineOptions(3, arguments.as_ptr(), std::ptr::null()) };
    });
}

fn machine(options: &Options) -> Result<TargetMachine, CodegenError> {
    initialise();
    let triple = TargetMachine::get_default_triple();
    let code = Target::from_triple(&triple).map_err(|e| CodegenError(e.to_string()))?;
    let (cpu, features) = target(options);
    let level = match options.opt_level {
        0 => OptimizationLevel::None,
        1 => OptimizationLevel::Less,
        2 => OptimizationLevel::Default,
        _ => OptimizationLevel::Aggressive,
    };
    code.create_target_machine(&triple, &cpu, &features, level, RelocMode::PIC, CodeModel::Default)
        .ok_or_else(|| CodegenError(format!("no machine for {cpu} of {triple}")))
}

/// Optimises for a processor, and hides all but the entry points.
pub(crate) fn optimise(module: &Module, options: &Options) -> Result<(), CodegenError> {
    let machine = machine(options)?;
    module.set_triple(&machine.get_triple());
    module.set_data_layout(&machine.get_target_data().get_data_layout());
    let context = module.get_context();
    let (cpu, features) = target(options);
    let mut function = module.get_first_function();
    while let Some(f) = function {
        if f.count_basic_blocks() > 0 {
            let name = f.get_name().to_string_lossy().into_owned();
            if name.starts_with("lode.") && name.ends_with(".x8") {
                // What the vectoriser puts in place of calls must not be dropped before; both objects may have it.
                f.set_linkage(Linkage::WeakODR);
                f.as_global_value().set_visibility(GlobalVisibility::Hidden);
            } else if name.starts_with("block.") || name.starts_with("lode.") {
                f.set_linkage(Linkage::Internal);
            }
            for (key, value) in [("target-cpu", cpu.as_str()), ("target-features", features.as_str())] {
                if !value.is_empty() {
                    f.add_attribute(AttributeLoc::Function, context.create_string_attribute(key, value));
                }
            }
        }
        function = f.get_next_function();
    }
    let passes = PassBuilderOptions::create();
    passes.set_loop_interleaving(true);
    passes.set_verify_each(false);
    let pipeline = if options.opt_level == 0 { "default<O0>" } else { PIPELINE };
    module.run_passes(pipeline, &machine, passes).map_err(|e| CodegenError(e.to_string()))
}

/// The module as a relocatable object.
pub(crate) fn object(module: &Module, options: &Options) -> Result<Vec<u8>, CodegenError> {
    let buffer = machine(options)?.write_to_memory_buffer(module, FileType::Object).map_err(|e| CodegenError(e.to_string()))?;
    Ok(buffer.as_slice().to_vec())
}

fn gpu_machine(options: &GpuOptions) -> Result<TargetMachine, CodegenError> {
    initialise();
    let triple = TargetTriple::create("nvptx64-nvidia-cuda");
    let code = Target::from_triple(&triple).map_err(|e| CodegenError(e.to_string()))?;
    let features = format!("+ptx{}", options.ptx);
    code.create_target_machine(
        &triple,
        &options.target,
        &features,
        OptimizationLevel::Default,
        RelocMode::Default,
        CodeModel::Default,
    )
    .ok_or_else(|| CodegenError(format!("no machine for {}", options.target)))
}

/// Optimises for a GPU, and gives the PTX text.
pub(crate) fn ptx(module: &Module, options: &GpuOptions) -> Result<String, CodegenError> {
    let machine = gpu_machine(options)?;
    module.set_triple(&machine.get_triple());
    module.set_data_layout(&machine.get_target_data().get_data_layout());
    let mut function = module.get_first_function();
    while let Some(f) = function {
        if f.count_basic_blocks() > 0 && f.get_name().to_bytes().starts_with(b"lode.") {
            f.set_linkage(Linkage::Internal);
            let kind = Attribute::get_named_enum_kind_id("alwaysinline");
            f.add_attribute(AttributeLoc::Function, module.get_context().create_enum_attribute(kind, 0));
        }
        function = f.get_next_function();
    }
    let passes = PassBuilderOptions::create();
    passes.set_verify_each(false);
    module.run_passes(GPU_PIPELINE, &machine, passes).map_err(|e| CodegenError(e.to_string()))?;
    let buffer = machine.write_to_memory_buffer(module, FileType::Assembly).map_err(|e| CodegenError(e.to_string()))?;
    String::from_utf8(buffer.as_slice().to_vec()).map_err(|_| CodegenError("PTX that is no text".into()))
}
