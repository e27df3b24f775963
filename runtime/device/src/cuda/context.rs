//! The driver, loaded when it is first asked for, and a device's primary context with one stream. Every call makes the context current first,
//! so a session may be moved between threads.

use crate::DeviceError;
use cudarc::driver::{
    result::{self, DriverError},
    sys::{self, CUdevice_attribute},
};
use std::{
    ffi::c_int,
    sync::{Arc, Mutex, OnceLock},
};

/// A device as `lode doctor` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuInfo {
    /// Its number.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// Compute capability.
    pub capability: (i32, i32),
    /// All of its memory. # Units: bytes.
    pub memory_bytes: usize,
    /// Multiprocessors.
    pub processors: i32,
}

/// In the driver's words.
pub(super) fn why(e: DriverError) -> String {
    let text = e.error_string().map(|s| s.to_string_lossy().into_owned());
    let name = e.error_name().map(|s| s.to_string_lossy().into_owned());
    match (name, text) {
        (Ok(name), Ok(text)) => format!("{text} ({name})"),
        _ => format!("error {:?}", e.0),
    }
}

/// Loads the driver and starts it, once.
fn start() -> Result<(), DeviceError> {
    static STARTED: OnceLock<Result<(), String>> = OnceLock::new();
    let start = || {
        // SAFETY: loading the driver's library runs its initialisers, as every program that uses it does.
        if !unsafe { sys::is_culib_present() } {
            return Err("the CUDA driver is not installed (libcuda.so)".to_string());
        }
        result::init().map_err(why)
    };
    STARTED.get_or_init(start).clone().map_err(|why| DeviceError::None { why })
}

/// The devices, or why there are none.
///
/// # Errors
/// E0441.
pub fn gpus() -> Result<Vec<GpuInfo>, DeviceError> {
    start()?;
    let none = |e| DeviceError::None { why: why(e) };
    let count = result::device::get_count().map_err(none)?;
    if count == 0 {
        return Err(DeviceError::None { why: "the driver knows of none".into() });
    }
    (0..count).map(|i| info(i).map_err(none)).collect()
}

fn info(ordinal: c_int) -> Result<GpuInfo, DriverError> {
    let device = result::device::get(ordinal)?;
    // SAFETY: the driver gave the device.
    let attribute = |a: CUdevice_attribute| unsafe { result::device::get_attribute(device, a) };
    Ok(GpuInfo {
        ordinal: ordinal as usize,
        name: result::device::get_name(device)?,
        capability: (
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        // SAFETY: as above.
        memory_bytes: unsafe { result::device::total_mem(device) }?,
        processors: attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
    })
}

/// What tells a GPU from all others, whatever number a process has for it.
///
/// # Errors
/// E0441.
pub fn identity(ordinal: usize) -> Result<[u8; 16], DeviceError> {
    start()?;
    let uuid = result::device::get(ordinal as c_int).and_then(result::device::get_uuid);
    uuid.map(|u| u.bytes.map(|b| b as u8)).map_err(|e| DeviceError::None { why: why(e) })
}

/// The driver's own version where the system tells it, and the CUDA version that it brings.
pub fn driver_version() -> Option<String> {
    start().ok()?;
    let mut version = 0;
    // SAFETY: the driver is loaded, and writes one number.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().ok()?;
    let cuda = format!("CUDA {}.{}", version / 1000, version % 1000 / 10);
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    let own = text.split_whitespace().find(|w| w.contains('.') && w.starts_with(|c: char| c.is_ascii_digit()));
    Some(own.map_or(cuda.clone(), |own| format!("{own}, {cuda}")))
}

/// A device's primary context, retained, and a stream.
pub(super) struct Context {
    pub info: GpuInfo,
    device: sys::CUdevice,
    primary: sys::CUcontext,
    pub stream: sys::CUstream,
    /// The first failure of a call that cannot report it itself.
    failed: Mutex<Option<DeviceError>>,
}

// SAFETY: the driver's handles may be used from any thread with the context current, which `call` sees to.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    pub fn new(ordinal: usize) -> Result<Arc<Context>, DeviceError> {
        let all = gpus()?;
        let count = all.len();
        let info = all.into_iter().nth(ordinal);
        let info = info.ok_or_else(|| DeviceError::None { why: format!("there are {count}, and none has number {ordinal}") })?;
        let none = |e| DeviceError::None { why: why(e) };
        let device = result::device::get(ordinal as c_int).map_err(none)?;
        // SAFETY: the driver gave the device; `drop` releases the context.
        let primary = unsafe { result::primary_ctx::retain(device) }.map_err(none)?;
        // SAFETY: the context was retained above.
        let made = unsafe { result::ctx::set_current(primary) }
            .and_then(|()| result::stream::create(result::stream::StreamKind::NonBlocking));
        let stream = made.map_err(|e| {
            // SAFETY: retained above, and used no more.
            let _ = unsafe { result::primary_ctx::release(device) };
            none(e)
        })?;
        Ok(Arc::new(Context { info, device, primary, stream, failed: Mutex::new(None) }))
    }
    /// Calls the driver with the context current.
    pub fn call<T>(&self, f: impl FnOnce() -> Result<T, DriverError>) -> Result<T, DriverError> {
        // SAFETY: the context is retained as long as `self` lives.
        unsafe { result::ctx::set_current(self.primary) }?;
        f()
    }
    /// The error for something that failed.
    pub fn error(step: &str, e: DriverError) -> DeviceError {
        DeviceError::Step {
            step: step.into(),
            why: why(e),
            help: "what ran before it may be the cause: errors of a device come late",
        }
    }
    /// Keeps an error for whoever can report one.
    pub fn keep(&self, result: Result<(), DeviceError>) {
        if let Err(e) = result {
            self.failed.lock().unwrap_or_else(|p| p.into_inner()).get_or_insert(e);
        }
    }
    /// What was kept.
    pub fn check(&self) -> Result<(), DeviceError> {
        self.failed.lock().unwrap_or_else(|p| p.into_inner()).take().map_or(Ok(()), Err)
    }
    /// Waits for all that was started.
    pub fn wait(&self) -> Result<(), DriverError> {
        // SAFETY: the stream lives as long as `self`.
        self.call(|| unsafe { result::stream::synchronize(self.stream) })
    }
    /// Free memory. # Units: bytes.
    pub fn free_bytes(&self) -> usize {
        self.call(result::mem_get_info).map_or(0, |(free, _)| free)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: nothing uses the stream and the context after this: all that does holds `self`.
        let _ = self.call(|| unsafe {
            let _ = result::stream::destroy(self.stream);
            result::primary_ctx::release(self.device)
        });
    }
}
