//! Objects linked into this process.

use crate::CodegenError;
use inkwell::llvm_sys::{
    core::LLVMCreateMemoryBufferWithMemoryRangeCopy,
    error::{LLVMDisposeErrorMessage, LLVMErrorRef, LLVMGetErrorMessage},
    orc2::{
        LLVMOrcCreateDynamicLibrarySearchGeneratorForProcess, LLVMOrcJITDylibAddGenerator,
        lljit::{
            LLVMOrcCreateLLJIT, LLVMOrcDisposeLLJIT, LLVMOrcLLJITAddObjectFile, LLVMOrcLLJITGetGlobalPrefix,
            LLVMOrcLLJITGetMainJITDylib, LLVMOrcLLJITLookup, LLVMOrcLLJITRef,
        },
    },
    target::{LLVM_InitializeNativeAsmPrinter, LLVM_InitializeNativeTarget},
};
use std::{
    ffi::{CStr, CString},
    sync::Mutex,
};

/// Code in memory; it stays valid as long as this value.
pub struct Jit {
    // Look-ups link code: one at a time.
    jit: Mutex<LLVMOrcLLJITRef>,
}

// SAFETY: the pointer is only used under the lock, and LLVM's JIT may be used from any thread.
unsafe impl Send for Jit {}
// SAFETY: as above.
unsafe impl Sync for Jit {}

fn check(error: LLVMErrorRef) -> Result<(), CodegenError> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: an error that is not null has a message, which is freed once.
    let text = unsafe {
        let message = LLVMGetErrorMessage(error);
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        LLVMDisposeErrorMessage(message);
        text
    };
    Err(CodegenError(text))
}

impl Jit {
    /// Links objects that `emit_objects` made.
    ///
    /// # Errors
    /// What the linker says.
    pub fn load(objects: &[Vec<u8>]) -> Result<Jit, CodegenError> {
        // SAFETY: the C interface is used as its documentation says; every object is copied into a buffer that the JIT takes over.
        unsafe {
            LLVM_InitializeNativeTarget();
            LLVM_InitializeNativeAsmPrinter();
            let mut jit = std::ptr::null_mut();
            check(LLVMOrcCreateLLJIT(&mut jit, std::ptr::null_mut()))?;
            let owned = Jit { jit: Mutex::new(jit) };
            let dylib = LLVMOrcLLJITGetMainJITDylib(jit);
            let mut generator = std::ptr::null_mut();
            let prefix = LLVMOrcLLJITGetGlobalPrefix(jit);
            check(LLVMOrcCreateDynamicLibrarySearchGeneratorForProcess(&mut generator, prefix, None, std::ptr::null_mut()))?;
            LLVMOrcJITDylibAddGenerator(dylib, generator);
            for object in objects {
                let buffer = LLVMCreateMemoryBufferWithMemoryRangeCopy(object.as_ptr().cast(), object.len(), c"kernels".as_ptr());
                check(LLVMOrcLLJITAddObjectFile(jit, dylib, buffer))?;
            }
            Ok(owned)
        }
    }
    /// The address of a symbol.
    pub fn symbol(&self, name: &str) -> Option<*const ()> {
        let name = CString::new(name).ok()?;
        let jit = self.jit.lock().ok()?;
        let mut address = 0;
        // SAFETY: the JIT is alive and locked.
        check(unsafe { LLVMOrcLLJITLookup(*jit, &mut address, name.as_ptr()) }).ok()?;
        Some(address as *const ())
    }
}

impl Drop for Jit {
    fn drop(&mut self) {
        if let Ok(jit) = self.jit.lock() {
            // SAFETY: made by `load`, freed once; no function of it runs any more.
            let _ = check(unsafe { LLVMOrcDisposeLLJIT(*jit) });
        }
    }
}
