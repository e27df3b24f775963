//! Code on the device: PTX through the driver's compiler, or through an assembler that was named; and what each kernel needs to be launched.

use super::context::{Context, why};
use crate::DeviceError;
use base::{Dim, DimEnv};
use cudarc::driver::{
    result::{self, DriverError},
    sys::{self, CUfunction_attribute_enum as Attribute, CUjit_option},
};
use library::{GpuLaunch, Kernel};
use std::{
    ffi::{CString, c_void},
    fs,
    path::Path,
    process::Command,
    sync::Arc,
};

/// A loaded module.
pub(super) struct Module {
    context: Arc<Context>,
    handle: sys::CUmodule,
}

// SAFETY: a module is used from one thread at a time, with its context current.
unsafe impl Send for Module {}
// SAFETY: as above; it is only read.
unsafe impl Sync for Module {}

/// A kernel, ready to be launched.
pub(super) struct Function {
    pub handle: sys::CUfunction,
    pub launch: GpuLaunch,
    /// The symbol and the source line it stands for.
    pub name: String,
    /// Blocks that run at the same time on the whole device.
    pub resident: i64,
}

// SAFETY: as for its module, which lives as long.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

/// Blocks of a cluster that every device has room for.
const MOST_OF_CLUSTER: u32 = 8;
/// What the driver's compiler may say. # Units: bytes.
const LOG_BYTES: usize = 16 << 10;
/// Lines of it that are shown.
const LOG_LINES: usize = 12;

/// The first lines of what an assembler says.
fn shortened(log: &str) -> String {
    let lines: Vec<&str> = log.lines().map(str::trim_end).filter(|l| !l.is_empty()).collect();
    let more = lines.len().saturating_sub(LOG_LINES);
    let shown = lines[..lines.len() - more].join("\n  ");
    if more > 0 { format!("{shown}\n  … {more} lines more") } else { shown }
}

/// PTX as machine code, by `ptxas`.
fn assemble(ptxas: &Path, ptx: &[u8], target: &str) -> Result<Vec<u8>, String> {
    let folder = std::env::temp_dir().join(format!("lode-ptx-{}", std::process::id()));
    let (source, code) = (folder.join("kernels.ptx"), folder.join("kernels.cubin"));
    let run = || -> std::io::Result<std::process::Output> {
        fs::create_dir_all(&folder)?;
        fs::write(&source, ptx)?;
        Command::new(ptxas).arg(format!("-arch={target}")).arg("-lineinfo").arg(&source).arg("-o").arg(&code).output()
    };
    let out = run().map(|out| (fs::read(&code), out));
    let _ = fs::remove_dir_all(&folder);
    match out {
        Ok((Ok(code), out)) if out.status.success() => Ok(code),
        Ok((_, out)) => Err(String::from_utf8_lossy(&out.stderr).into_owned()),
        Err(e) => Err(format!("{}: {e}", ptxas.display())),
    }
}

impl Module {
    /// Loads a piece of PTX, assembled by `ptxas` if one is named.
    ///
    /// # Errors
    /// E0442 with what the compiler says.
    pub fn new(context: &Arc<Context>, ptx: &[u8], ptxas: Option<&Path>, target: &str) -> Result<Module, DeviceError> {
        let refused = |why: String, log: &str| DeviceError::Code { what: "the library".into(), why, log: shortened(log) };
        let image = match ptxas {
            Some(ptxas) => assemble(ptxas, ptx, target).map_err(|log| refused("it does not assemble".into(), &log))?,
            None => CString::new(ptx)
                .map_err(|_| refused("the text holds a zero".into(), "build the library again"))?
                .into_bytes_with_nul(),
        };
        let mut log = vec![0u8; LOG_BYTES];
        let mut options = [CUjit_option::CU_JIT_ERROR_LOG_BUFFER, CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        let mut values = [log.as_mut_ptr().cast::<c_void>(), LOG_BYTES as *mut c_void];
        let mut handle = std::ptr::null_mut();
        let loaded = context.call(|| {
            // SAFETY: the text ends in 0 or is machine code with its own length; the log has the length that is told.
            unsafe {
                sys::cuModuleLoadDataEx(
                    &mut handle,
                    image.as_ptr().cast(),
                    options.len() as u32,
                    options.as_mut_ptr(),
                    values.as_mut_ptr(),
                )
            }
            .result()
        });
        loaded.map_err(|e| {
            let text: Vec<u8> = log.iter().copied().take_while(|b| *b != 0).collect();
            refused(why(e), &String::from_utf8_lossy(&text))
        })?;
        Ok(Module { context: context.clone(), handle })
    }
    /// A kernel of the module.
    ///
    /// # Errors
    /// E0442 if it is not there, or cannot have the shared memory and threads that it needs.
    pub fn function(&self, k: &Kernel, launch: &GpuLaunch) -> Result<Function, DeviceError> {
        let name = k.origin.as_ref().map_or(k.symbol.clone(), |o| format!("{} ({o})", k.symbol));
        let refused = |e| DeviceError::Code { what: name.clone(), why: why(e), log: "build the library again".into() };
        let symbol = CString::new(k.symbol.as_str()).unwrap_or_default();
        let (threads, shared) = (launch.threads as i32, launch.dynamic_shared_bytes);
        let found = self.context.call(|| {
            // SAFETY: the module is loaded as long as `self` lives.
            let f = unsafe { result::module::get_function(self.handle, symbol) }?;
            let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is of the module.
            unsafe { result::function::set_function_attribute(f, attribute, shared as i32) }?;
            if launch.cluster > MOST_OF_CLUSTER {
                let attribute = Attribute::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED;
                // SAFETY: as above.
                unsafe { result::function::set_function_attribute(f, attribute, 1) }?;
            }
            if launch.cluster > 1 {
                return Ok((f, clusters(f, launch)? * i64::from(launch.cluster)));
            }
            // SAFETY: as above.
            let blocks = unsafe { result::occupancy::max_active_block_per_multiprocessor(f, threads, shared) }?;
            Ok((f, i64::from(blocks) * i64::from(self.context.info.processors)))
        });
        let (handle, resident) = found.map_err(refused)?;
        if resident == 0 {
            let why = format!("a block of {threads} threads and {shared} bytes of shared memory does not fit");
            return Err(DeviceError::Code { what: name, why, log: String::new() });
        }
        Ok(Function { handle, launch: launch.clone(), name, resident })
    }
}

/// How many clusters of a kernel run at the same time: fewer than there is room for blocks, as those of one share a part of the device.
fn clusters(f: sys::CUfunction, launch: &GpuLaunch) -> Result<i64, DriverError> {
    let config = sys::CUlaunchConfig {
        gridDimX: launch.cluster,
        gridDimY: 1,
        gridDimZ: 1,
        blockDimX: launch.threads,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: launch.dynamic_shared_bytes as u32,
        hStream: std::ptr::null_mut(),
        attrs: std::ptr::null_mut(),
        numAttrs: 0,
    };
    let mut count = 0;
    // SAFETY: the function is of a loaded module and tells itself what its clusters are.
    unsafe { sys::cuOccupancyMaxActiveClusters(&mut count, f, &config) }.result()?;
    Ok(i64::from(count))
}

impl Module {
    /// A function that is no kernel of a library.
    pub fn raw(&self, symbol: &str) -> Result<sys::CUfunction, DeviceError> {
        let name = CString::new(symbol).unwrap_or_default();
        // SAFETY: the module is loaded as long as `self` lives.
        let found = self.context.call(|| unsafe { result::module::get_function(self.handle, name) });
        found.map_err(|e| DeviceError::Code { what: symbol.into(), why: why(e), log: String::new() })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: whoever launches its functions holds it.
        let _ = self.context.call(|| unsafe { result::module::unload(self.handle) });
    }
}

/// The value of an extent of launch data; the manifest was checked to use only what is there.
pub(super) fn value(d: &Dim, env: &DimEnv) -> i64 {
    d.eval(env).unwrap_or(0)
}

impl Function {
    /// How many blocks to launch: those that have work, but where each needs memory or stays for several turns no more than run at once.
    pub fn blocks(&self, env: &DimEnv) -> i64 {
        blocks(&self.launch, self.resident, env)
    }
}

/// As [`Function::blocks`].
pub(super) fn blocks(l: &GpuLaunch, resident: i64, env: &DimEnv) -> i64 {
    let stays = l.workspace_bytes > 0 || !l.maps.is_empty() || l.cluster > 1;
    let most = if stays { resident } else { i64::from(i32::MAX) };
    let (blocks, cluster) = (value(&l.blocks, env).clamp(0, most), i64::from(l.cluster));
    // Whole clusters, of which there is work.
    if blocks == 0 { 0 } else { (blocks / cluster).max(1) * cluster }
}
