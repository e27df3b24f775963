//! GPUs through the CUDA driver, which is loaded when a device is first asked for: a program without one starts and works.
//!
//! One stream: what is started runs in order. Errors carry the kernel's name and source line where the driver lets them be known.

mod context;
mod finite;
mod lanes;
mod mirror;
mod module;
pub mod nccl;
mod program;
pub mod rows;
pub mod sums;

pub use context::{GpuInfo, driver_version, gpus, identity};
pub use lanes::Lanes;
pub(crate) use mirror::Mirror;
pub(crate) use program::Program;
pub use sums::Sums;

use crate::{DeviceError, Memory, Step};
use context::Context;
use cudarc::driver::{
    result,
    sys::{self, CUdeviceptr},
};
use finite::Finite;
use library::{GpuLaunch, Kernel, SM_90A};
use module::{Function, Module};
use std::{
    path::Path,
    sync::{Arc, OnceLock},
};

/// The compute capability that code for `sm_90a` runs on.
const CAPABILITY: (i32, i32) = (9, 0);

/// A GPU with a library's kernels.
#[derive(Clone)]
pub struct Gpu {
    context: Arc<Context>,
    loaded: Arc<Loaded>,
}

/// Kernels on the device, in the manifest's order.
pub(crate) struct Loaded {
    functions: Vec<Function>,
    finite: Finite,
    /// Loaded when they are asked for.
    rows: OnceLock<rows::RowKernels>,
    /// Holds them.
    _modules: Vec<Module>,
}

/// A moment on the device.
pub struct Event {
    context: Arc<Context>,
    handle: sys::CUevent,
}

// SAFETY: the driver's handles may be used from any thread with the context current.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: it was created, and the driver keeps what it still needs.
        let _ = self.context.call(|| unsafe { result::event::destroy(self.handle) });
    }
}

impl Gpu {
    /// The GPU of a number with a library's code: PTX, which the driver compiles, or the assembler `ptxas` if it is given.
    ///
    /// # Errors
    /// E0441 if there is no such device or it is of another kind than the code, E0442 if the code is refused.
    pub fn new(ordinal: usize, kernels: &[Kernel], code: &[Vec<u8>], ptxas: Option<&Path>) -> Result<Gpu, DeviceError> {
        let context = Context::new(ordinal)?;
        if context.info.capability != CAPABILITY {
            let ((major, minor), name) = (context.info.capability, &context.info.name);
            let why = format!("device {ordinal} ({name}) is sm_{major}{minor}, the code is for {SM_90A}");
            return Err(DeviceError::None { why });
        }
        let load = |c: &Vec<u8>| Module::new(&context, c, ptxas, SM_90A);
        let modules = code.iter().map(load).collect::<Result<Vec<_>, _>>()?;
        let function = |k: &Kernel| {
            let launch = k.gpu.as_ref().unwrap_or_else(|| base::bug!("{} has no launch data", k.symbol));
            let missing = || DeviceError::Code { what: k.symbol.clone(), why: "there is no code".into(), log: String::new() };
            let module = modules.iter().find(|m| m.raw(&k.symbol).is_ok()).ok_or_else(missing)?;
            module.function(k, launch)
        };
        let functions = kernels.iter().map(function).collect::<Result<_, _>>()?;
        let finite = Finite::new(&context)?;
        Ok(Gpu { context, loaded: Arc::new(Loaded { functions, finite, rows: OnceLock::new(), _modules: modules }) })
    }
    /// The same device with a stream of its own: what is started here and there is in no order.
    ///
    /// # Errors
    /// E0441.
    pub fn beside(&self) -> Result<Gpu, DeviceError> {
        Ok(Gpu { context: Context::new(self.context.info.ordinal)?, loaded: self.loaded.clone() })
    }
    /// What it is.
    pub fn info(&self) -> &GpuInfo {
        &self.context.info
    }
    /// Zeros. If `pinned`, transfers to and from the host's copy are fast.
    ///
    /// # Errors
    /// E0444.
    pub fn memory(&self, bytes: usize, pinned: bool) -> Result<Memory, DeviceError> {
        Ok(Memory::on_gpu(bytes, Mirror::new(&self.context, bytes, !pinned)?, pinned))
    }
    /// What is free. # Units: bytes.
    pub fn available_bytes(&self) -> u64 {
        self.context.free_bytes() as u64
    }
    /// Global memory that a launch needs for its blocks. # Units: bytes.
    pub fn workspace_bytes(&self, kernel: usize, dims: &[i64], grid: i64) -> usize {
        let f = &self.loaded.functions[kernel];
        if f.launch.workspace_bytes == 0 || grid <= 0 {
            return 0;
        }
        f.launch.workspace_bytes.saturating_mul(f.blocks(&GpuLaunch::extents(dims, grid)) as usize)
    }
    pub(crate) fn prepare(&self, steps: &[Step], workspace: *mut u8) -> Result<Program, DeviceError> {
        Program::new(&self.context, &self.loaded, steps, workspace)
    }
    /// Waits for all that was started.
    ///
    /// # Errors
    /// E0443.
    pub fn wait(&self) -> Result<(), DeviceError> {
        self.context.check()?;
        self.context.wait().map_err(|e| Context::error("a step", e))
    }
    /// This moment among what was started.
    ///
    /// # Errors
    /// E0443.
    pub fn mark(&self) -> Result<Event, DeviceError> {
        let failed = |e| Context::error("an event", e);
        let handle = self.context.call(|| result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)).map_err(failed)?;
        let event = Event { context: self.context.clone(), handle };
        // SAFETY: both were created and live.
        self.context.call(|| unsafe { result::event::record(handle, self.context.stream) }).map_err(failed)?;
        Ok(event)
    }
    /// Waits for a moment: what was started after it may still be under way.
    ///
    /// # Errors
    /// E0443.
    pub fn wait_for(&self, event: &Event) -> Result<(), DeviceError> {
        // SAFETY: it was created and recorded.
        let over = self.context.call(|| unsafe { result::event::synchronize(event.handle) });
        over.map_err(|e| Context::error("a step", e))
    }
    /// The time between two moments that are over. # Units: nanoseconds.
    pub fn nanoseconds(&self, from: &Event, to: &Event) -> f64 {
        // SAFETY: both were recorded on the stream.
        let ms = self.context.call(|| unsafe { result::event::elapsed(from.handle, to.handle) });
        // One that is not over has no time.
        f64::from(ms.unwrap_or(0.0)) * 1e6
    }
    /// A copy of memory on the device, after all that was started.
    ///
    /// # Errors
    /// E0443.
    ///
    /// # Safety
    /// The memory has that many bytes.
    pub unsafe fn read(&self, from: *const u8, bytes: usize) -> Result<Vec<u8>, DeviceError> {
        self.wait()?;
        let mut to = vec![0u8; bytes];
        // SAFETY: the caller vouches for the memory.
        let copied = self.context.call(|| unsafe { result::memcpy_dtoh_sync(&mut to, from as CUdeviceptr) });
        copied.map(|()| to).map_err(|e| Context::error("a copy from the device", e))
    }
    /// Fills memory on the device, after all that was started.
    ///
    /// # Errors
    /// E0443.
    ///
    /// # Safety
    /// The memory has that many bytes.
    pub unsafe fn write(&self, to: *mut u8, bytes: &[u8]) -> Result<(), DeviceError> {
        self.wait()?;
        // SAFETY: the caller vouches for the memory.
        let copied = self.context.call(|| unsafe { result::memcpy_htod_async(to as CUdeviceptr, bytes, self.context.stream) });
        copied.map_err(|e| Context::error("a copy to the device", e))?;
        // A copy of the default stream could end after the call, with nothing that waits for it.
        self.wait()
    }
    /// Starts to copy memory on the device, after all that was started.
    ///
    /// # Errors
    /// E0443.
    ///
    /// # Safety
    /// Both have that many bytes until the device was waited for.
    pub unsafe fn copy(&self, from: *const u8, to: *mut u8, bytes: usize) -> Result<(), DeviceError> {
        let (from, to) = (from as CUdeviceptr, to as CUdeviceptr);
        // SAFETY: the caller vouches for the memory.
        let started = self.context.call(|| unsafe { result::memcpy_dtod_async(to, from, bytes, self.context.stream) });
        started.map_err(|e| Context::error("a copy on the device", e))
    }
    /// Starts to zero memory on the device, after all that was started.
    ///
    /// # Errors
    /// E0443.
    ///
    /// # Safety
    /// It has that many bytes until the device was waited for.
    pub unsafe fn zero(&self, at: *mut u8, bytes: usize) -> Result<(), DeviceError> {
        // SAFETY: the caller vouches for the memory.
        let started = self.context.call(|| unsafe { result::memset_d8_async(at as CUdeviceptr, 0, bytes, self.context.stream) });
        started.map_err(|e| Context::error("zeroing memory", e))
    }
    /// For each tensor whether it is finite; `None` for a dtype that has to be looked at elsewhere.
    ///
    /// # Errors
    /// E0443.
    ///
    /// # Safety
    /// The memory is there.
    pub unsafe fn are_finite(&self, tensors: &[(base::DType, *const u8, usize)]) -> Result<Vec<Option<bool>>, DeviceError> {
        // SAFETY: the caller vouches for the memory.
        unsafe { self.loaded.finite.look(&self.context, tensors) }
    }
}

/// How many blocks a launch has on a device that runs so many at once; for tests without one.
pub fn blocks(l: &GpuLaunch, resident: i64, dims: &[i64], grid: i64) -> i64 {
    module::blocks(l, resident, &GpuLaunch::extents(dims, grid))
}
