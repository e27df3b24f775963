//! Looks for numbers that are not finite where they lie.

use super::{context::Context, mirror::Mirror, module::Module};
use crate::DeviceError;
use base::DType;
use cudarc::driver::{result, sys};
use std::{ffi::c_void, sync::Arc};

const PTX: &str = include_str!("finite.ptx");
const THREADS: u32 = 256;
/// Blocks for each multiprocessor: as many as hold all of its threads.
const BLOCKS: i32 = 8;

/// The kernel.
pub(super) struct Finite {
    function: sys::CUfunction,
    _module: Module,
}

// SAFETY: as for the functions of a module.
unsafe impl Send for Finite {}
// SAFETY: as above.
unsafe impl Sync for Finite {}

/// Which bits of a word are exponents: all of a mask set is a number that is not finite.
fn masks(dtype: DType) -> Option<[u32; 2]> {
    match dtype {
        DType::F32 | DType::TF32 => Some([0x7f80_0000; 2]),
        DType::BF16 => Some([0x7f80, 0x7f80_0000]),
        DType::F16 => Some([0x7c00, 0x7c00_0000]),
        DType::F64 | DType::E4M3 | DType::I64 | DType::I32 | DType::Bool => None,
    }
}

impl Finite {
    pub fn new(context: &Arc<Context>) -> Result<Finite, DeviceError> {
        let module = Module::new(context, PTX.as_bytes(), None, "sm_70")?;
        Ok(Finite { function: module.raw("lode_not_finite")?, _module: module })
    }
    /// # Safety
    /// The memory is there, in whole words whose rest is zero, as [`Mirror`] has it.
    pub unsafe fn look(
        &self,
        context: &Arc<Context>,
        tensors: &[(DType, *const u8, usize)],
    ) -> Result<Vec<Option<bool>>, DeviceError> {
        let found = Mirror::new(context, 4 * tensors.len(), false)?;
        for (i, (dtype, at, bytes)) in tensors.iter().enumerate() {
            let Some([low, high]) = masks(*dtype) else { continue };
            let (at, words, flag) = (*at as u64, bytes.div_ceil(4) as u64, found.address() as u64 + 4 * i as u64);
            let wanted = words.div_ceil(u64::from(THREADS)) as i64;
            let blocks = wanted.clamp(0, i64::from(BLOCKS * context.info.processors)) as u32;
            if blocks == 0 {
                continue;
            }
            fn pointer<T>(x: &T) -> *mut c_void {
                (x as *const T).cast::<c_void>().cast_mut()
            }
            let mut pointers = [pointer(&at), pointer(&words), pointer(&low), pointer(&high), pointer(&flag)];
            let launch = || {
                // SAFETY: the arguments are those of the kernel, and the caller vouches for the memory.
                unsafe { result::launch_kernel(self.function, (blocks, 1, 1), (THREADS, 1, 1), 0, context.stream, &mut pointers) }
            };
            context.call(launch).map_err(|e| Context::error("looking for numbers that are not finite", e))?;
        }
        let mut bytes = vec![0u8; 4 * tensors.len()];
        // SAFETY: there are as many bytes.
        unsafe { found.fetch(bytes.as_mut_ptr()) }?;
        let words = bytes.as_chunks::<4>().0.iter().map(|w| u32::from_ne_bytes(*w) == 0);
        Ok(tensors.iter().zip(words).map(|((dtype, ..), finite)| masks(*dtype).map(|_| finite)).collect())
    }
}
