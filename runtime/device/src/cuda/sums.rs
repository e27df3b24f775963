//! Sums of tensors that lie one after the other, element by element and in their order: what a host would add up, with the same bits.

use super::{Gpu, context::Context, module::Module};
use crate::DeviceError;
use base::DType;
use cudarc::driver::{result, sys};
use std::{ffi::c_void, sync::Arc};

const THREADS: u32 = 256;
/// Blocks for each multiprocessor: as many as hold all of its threads.
const BLOCKS: i32 = 8;
const TARGET: &str = "sm_80";

/// What numbers are made of: dtype, PTX's name for the sum's dtype, the logarithm of bytes, how one is read to `%x`, and how `%acc` is written.
const KINDS: [(DType, &str, u32, &str, &str); 4] = [
    (DType::F32, "f32", 2, "ld.global.f32 %x, [%at];", "st.global.f32 [%out], %acc;"),
    (DType::F64, "f64", 3, "ld.global.f64 %x, [%at];", "st.global.f64 [%out], %acc;"),
    (
        DType::BF16,
        "f32",
        1,
        "ld.global.u16 %h, [%at];\n  cvt.u32.u16 %w, %h;\n  shl.b32 %w, %w, 16;\n  mov.b32 %x, %w;",
        "cvt.rn.bf16.f32 %h, %acc;\n  st.global.u16 [%out], %h;",
    ),
    (
        DType::F16,
        "f32",
        1,
        "ld.global.u16 %h, [%at];\n  cvt.f32.f16 %x, %h;",
        "cvt.rn.f16.f32 %h, %acc;\n  st.global.u16 [%out], %h;",
    ),
];

fn symbol(dtype: DType) -> String {
    format!("lode_sum_{dtype}")
}

/// A kernel for each kind: an element a thread and turn, parts in their order.
pub fn ptx() -> String {
    let mut text = format!(".version 7.0\n.target {TARGET}\n.address_size 64\n");
    for (dtype, sum, shift, load, store) in KINDS {
        text += &format!(
            "
.visible .entry {}(.param .u64 to, .param .u64 parts, .param .u64 elems, .param .u32 count)
{{
  .reg .pred %p<3>;
  .reg .b16 %h;
  .reg .b32 %w, %r<8>;
  .reg .b64 %rd<8>, %at, %out;
  .reg .{sum} %x, %acc;

  ld.param.u64 %rd1, [to];
  ld.param.u64 %rd2, [parts];
  ld.param.u64 %rd3, [elems];
  ld.param.u32 %r1, [count];
  cvta.to.global.u64 %rd1, %rd1;
  cvta.to.global.u64 %rd2, %rd2;
  mov.u32 %r2, %ctaid.x;
  mov.u32 %r3, %ntid.x;
  mov.u32 %r4, %tid.x;
  mov.u32 %r5, %nctaid.x;
  mad.lo.u32 %r6, %r2, %r3, %r4;
  mul.lo.u32 %r7, %r5, %r3;
  cvt.u64.u32 %rd4, %r6;
  cvt.u64.u32 %rd5, %r7;
  shl.b64 %rd6, %rd3, {shift};
next:
  setp.ge.u64 %p1, %rd4, %rd3;
  @%p1 bra done;
  shl.b64 %rd7, %rd4, {shift};
  add.u64 %at, %rd2, %rd7;
  add.u64 %out, %rd1, %rd7;
  {load}
  mov.{sum} %acc, %x;
  mov.u32 %r2, 1;
part:
  setp.ge.u32 %p2, %r2, %r1;
  @%p2 bra write;
  add.u64 %at, %at, %rd6;
  {load}
  add.rn.{sum} %acc, %acc, %x;
  add.u32 %r2, %r2, 1;
  bra part;
write:
  {store}
  add.u64 %rd4, %rd4, %rd5;
  bra next;
done:
  ret;
}}
",
            symbol(dtype)
        );
    }
    text
}

/// The kernels on a device.
pub struct Sums {
    context: Arc<Context>,
    functions: Vec<(DType, sys::CUfunction)>,
    _module: Module,
}

// SAFETY: as for the functions of a module.
unsafe impl Send for Sums {}
// SAFETY: as above.
unsafe impl Sync for Sums {}

impl Gpu {
    /// Kernels that add up tensors.
    ///
    /// # Errors
    /// E0442 if the driver refuses them.
    pub fn sums(&self) -> Result<Sums, DeviceError> {
        let module = Module::new(&self.context, ptx().as_bytes(), None, TARGET)?;
        let function = |dtype: DType| {
            let f = module.raw(&symbol(dtype))?;
            // The driver loads a kernel when it is first asked about it: now, and not while messages are under way.
            // SAFETY: the function is of the module.
            let asked =
                self.context.call(|| unsafe { result::occupancy::max_active_block_per_multiprocessor(f, THREADS as i32, 0) });
            asked.map_err(|e| Context::error("a sum of tensors", e)).map(|_| (dtype, f))
        };
        let functions = KINDS.iter().map(|(dtype, ..)| function(*dtype));
        Ok(Sums { context: self.context.clone(), functions: functions.collect::<Result<_, _>>()?, _module: module })
    }
}

impl Sums {
    /// Starts the sum of `count` tensors of `elems` elements that lie one after the other at `parts`, each element in order; narrow floats are added in
    /// f32 and rounded once. Whether there is a kernel for the dtype.
    ///
    /// # Errors
    /// E0443.
    ///
    /// # Safety
    /// The device's memory is there, and nothing else uses it until the device was waited for.
    pub unsafe fn start(
        &self,
        dtype: DType,
        to: *mut u8,
        parts: *const u8,
        (count, elems): (usize, usize),
    ) -> Result<bool, DeviceError> {
        let Some((_, function)) = self.functions.iter().find(|(d, _)| *d == dtype) else { return Ok(false) };
        let (to, parts, elems, count) = (to as u64, parts as u64, elems as u64, count as u32);
        let wanted = elems.div_ceil(u64::from(THREADS)) as i64;
        let blocks = wanted.clamp(0, i64::from(BLOCKS * self.context.info.processors)) as u32;
        if blocks == 0 {
            return Ok(true);
        }
        fn pointer<T>(x: &T) -> *mut c_void {
            (x as *const T).cast::<c_void>().cast_mut()
        }
        let mut pointers = [pointer(&to), pointer(&parts), pointer(&elems), pointer(&count)];
        let launch = || {
            // SAFETY: the arguments are those of the kernel, and the caller vouches for the memory.
            unsafe { result::launch_kernel(*function, (blocks, 1, 1), (THREADS, 1, 1), 0, self.context.stream, &mut pointers) }
        };
        self.context.call(launch).map_err(|e| Context::error("a sum of tensors", e))?;
        Ok(true)
    }
}
