//! Kernels of [`crate::rows`]: a warp for each row, by the widest words that rows are made of.

use super::{Gpu, context::Context, module::Module};
use crate::{
    DeviceError,
    rows::{FACTORS, HEAD, Rows},
};
use cudarc::driver::{result, sys};
use std::{ffi::c_void, sync::Arc};

const THREADS: u32 = 256;
/// Threads of a warp.
const WARP: u32 = 32;
/// Blocks for each multiprocessor: as many as hold all of its threads.
const BLOCKS: i32 = 8;
const TARGET: &str = "sm_80";

/// How wide what is loaded at once may be. # Units: bytes.
const WIDTHS: [usize; 3] = [16, 4, 1];

/// What is done with rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Marks,
    Alike,
    Copy,
}

const ALL: [What; 3] = [What::Marks, What::Alike, What::Copy];

fn symbol(what: What, width: usize) -> String {
    let name = match what {
        What::Marks => "marks",
        What::Alike => "alike",
        What::Copy => "copy",
    };
    format!("lode_rows_{name}_{width}")
}

/// Loads of `width` bytes at an address to these registers, or stores.
fn moved(load: bool, width: usize, reg: &str, at: &str) -> String {
    let op = if load { "ld" } else { "st" };
    let (kind, regs) = match width {
        16 => ("v4.u32", format!("{{{reg}0, {reg}1, {reg}2, {reg}3}}")),
        4 => ("u32", format!("{reg}0")),
        _ => ("u8", format!("{reg}0")),
    };
    if load { format!("{op}.global.{kind} {regs}, [{at}];") } else { format!("{op}.global.{kind} [{at}], {regs};") }
}

/// A kernel: `a` and `b` are rows (marks have one kind), `list` is what is told of each or the pairs, `flag` is set where a pair differs.
fn kernel(what: What, width: usize) -> String {
    let num = if width == 16 { 4 } else { 1 };
    let load = |reg: &str, at: &str| moved(true, width, reg, at);
    // What is set before a row's words, done with each, and after them.
    let (before, each, after) = match what {
        What::Marks => {
            let mut each = load("%v", "%x");
            for k in 0..num {
                each += &format!(
                    "
  mad.lo.u32 %t, %j, {num}, {k};
  mov.b64 %m, {{%v{k}, %t}};
  mul.lo.u64 %m, %m, {};
  shr.u64 %n, %m, 32;
  xor.b64 %m, %m, %n;
  mul.lo.u64 %m, %m, {};
  add.u64 %sum, %sum, %m;",
                    FACTORS[0], FACTORS[1]
                );
            }
            let mut after = String::from("bar.warp.sync 0xffffffff;");
            for far in [16, 8, 4, 2, 1] {
                after += &format!(
                    "
  mov.b64 {{%t, %s}}, %sum;
  shfl.sync.bfly.b32 %t, %t, {far}, 31, 0xffffffff;
  shfl.sync.bfly.b32 %s, %s, {far}, 31, 0xffffffff;
  mov.b64 %m, {{%t, %s}};
  add.u64 %sum, %sum, %m;"
                );
            }
            after += "\n  setp.ne.u32 %p, %lane, 0;\n  @%p bra next;\n  st.global.u64 [%item], %sum;";
            ("mov.u32 %r0, %row;\n  mov.u32 %r1, %row;\n  mov.u64 %sum, 0;".to_string(), each, after)
        }
        What::Alike => {
            let mut each = format!("{}\n  {}", load("%v", "%x"), load("%w", "%y"));
            for k in 0..num {
                each += &format!("\n  xor.b32 %t, %v{k}, %w{k};\n  or.b32 %s, %s, %t;");
            }
            let after = "setp.eq.u32 %p, %s, 0;\n  @%p bra next;\n  st.global.u32 [%flag], %s;";
            ("ld.global.v2.u32 {%r0, %r1}, [%item];\n  mov.u32 %s, 0;".to_string(), each, after.to_string())
        }
        What::Copy => {
            let each = format!("{}\n  {}", load("%v", "%y"), moved(false, width, "%v", "%x"));
            ("ld.global.v2.u32 {%r0, %r1}, [%item];".to_string(), each, String::new())
        }
    };
    format!(
        "
.visible .entry {}(.param .u64 a, .param .u64 b, .param .u32 words, .param .u32 count, .param .u64 list, .param .u64 flag)
{{
  .reg .pred %p;
  .reg .b32 %row, %step, %lane, %words, %bytes, %count, %j, %s, %t, %r<2>, %v<4>, %w<4>;
  .reg .b64 %a, %b, %list, %flag, %item, %x, %y, %from, %to, %m, %n, %sum;

  ld.param.u64 %a, [a];
  ld.param.u64 %b, [b];
  ld.param.u32 %words, [words];
  ld.param.u32 %count, [count];
  ld.param.u64 %list, [list];
  ld.param.u64 %flag, [flag];
  cvta.to.global.u64 %a, %a;
  cvta.to.global.u64 %b, %b;
  cvta.to.global.u64 %list, %list;
  cvta.to.global.u64 %flag, %flag;
  mul.lo.u32 %bytes, %words, {width};
  mov.u32 %s, %ctaid.x;
  mov.u32 %t, %ntid.x;
  mov.u32 %j, %tid.x;
  and.b32 %lane, %j, 31;
  mad.lo.u32 %row, %s, %t, %j;
  shr.u32 %row, %row, 5;
  mov.u32 %s, %nctaid.x;
  mul.lo.u32 %step, %s, %t;
  shr.u32 %step, %step, 5;
more:
  setp.ge.u32 %p, %row, %count;
  @%p bra done;
  mul.wide.u32 %item, %row, 8;
  add.u64 %item, %list, %item;
  {before}
  mul.wide.u32 %to, %r0, %bytes;
  add.u64 %to, %a, %to;
  mul.wide.u32 %from, %r1, %bytes;
  add.u64 %from, %b, %from;
  mov.u32 %j, %lane;
word:
  setp.ge.u32 %p, %j, %words;
  @%p bra ended;
  mul.wide.u32 %m, %j, {width};
  add.u64 %x, %to, %m;
  add.u64 %y, %from, %m;
  {each}
  add.u32 %j, %j, {WARP};
  bra word;
ended:
  {after}
next:
  add.u32 %row, %row, %step;
  bra more;
done:
  ret;
}}
",
        symbol(what, width)
    )
}

/// All kernels.
pub fn ptx() -> String {
    let mut text = format!(".version 7.0\n.target {TARGET}\n.address_size 64\n");
    text.extend(ALL.iter().flat_map(|what| WIDTHS.map(|width| kernel(*what, width))));
    text
}

/// The kernels on a device.
pub(super) struct RowKernels {
    functions: Vec<(What, usize, sys::CUfunction)>,
    _module: Module,
}

// SAFETY: as for the functions of a module.
unsafe impl Send for RowKernels {}
// SAFETY: as above.
unsafe impl Sync for RowKernels {}

impl RowKernels {
    fn new(context: &Arc<Context>) -> Result<RowKernels, DeviceError> {
        let module = Module::new(context, ptx().as_bytes(), None, TARGET)?;
        let function = |(what, width): (What, usize)| {
            let f = module.raw(&symbol(what, width))?;
            // The driver loads a kernel when it is first asked about it: now, and not while messages are under way.
            // SAFETY: the function is of the module.
            let asked = context.call(|| unsafe { result::occupancy::max_active_block_per_multiprocessor(f, THREADS as i32, 0) });
            asked.map_err(|e| Context::error("a look at rows", e)).map(|_| (what, width, f))
        };
        let all = ALL.iter().flat_map(|what| WIDTHS.map(|width| (*what, width)));
        Ok(RowKernels { functions: all.map(function).collect::<Result<_, _>>()?, _module: module })
    }
}

impl Gpu {
    pub(crate) fn prepare_rows(&self) -> Result<(), DeviceError> {
        if self.loaded.rows.get().is_none() {
            // Another thread may be as far: one of the two is kept.
            let _ = self.loaded.rows.set(RowKernels::new(&self.context)?);
        }
        Ok(())
    }
    /// Starts a kernel on `count` rows or pairs of rows of `a` and `b`, at least one.
    ///
    /// # Safety
    /// As [`crate::Device::marks`].
    unsafe fn start_rows(&self, what: What, (a, b): (Rows, Rows), count: usize, room: *mut u8) -> Result<(), DeviceError> {
        let kernels = self.loaded.rows.get().unwrap_or_else(|| base::bug!("kernels of rows that were not made ready"));
        let fits = |r: &Rows, width: usize| (r.at as usize).is_multiple_of(width) && r.bytes.is_multiple_of(width);
        let width = WIDTHS.into_iter().find(|w| fits(&a, *w) && fits(&b, *w)).expect("all are of whole bytes");
        let (.., function) = kernels.functions.iter().find(|(k, w, _)| (*k, *w) == (what, width)).expect("there is each");
        let wanted = count.div_ceil((THREADS / WARP) as usize) as i64;
        let blocks = wanted.clamp(1, i64::from(BLOCKS * self.context.info.processors)) as u32;
        fn pointer<T>(x: &T) -> *mut c_void {
            (x as *const T).cast::<c_void>().cast_mut()
        }
        let (words, count) = ((a.bytes / width) as u32, count as u32);
        let (a, b, list, flag) = (a.at as u64, b.at as u64, room as u64 + HEAD as u64, room as u64);
        let mut pointers = [pointer(&a), pointer(&b), pointer(&words), pointer(&count), pointer(&list), pointer(&flag)];
        let launch = || {
            // SAFETY: the arguments are those of the kernel, and the caller vouches for the memory.
            unsafe { result::launch_kernel(*function, (blocks, 1, 1), (THREADS, 1, 1), 0, self.context.stream, &mut pointers) }
        };
        self.context.call(launch).map_err(|e| Context::error("a look at rows", e))
    }
    /// # Safety
    /// As [`crate::Device::marks`].
    pub(crate) unsafe fn marks(&self, rows: Rows, room: *mut u8) -> Result<Vec<u64>, DeviceError> {
        if rows.count == 0 {
            return Ok(Vec::new());
        }
        // SAFETY: the caller vouches for the memory.
        let told = unsafe {
            self.start_rows(What::Marks, (rows, rows), rows.count, room)?;
            self.read(room.wrapping_add(HEAD), 8 * rows.count)?
        };
        Ok(told.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b)).collect())
    }
    /// # Safety
    /// As [`crate::Device::are_alike`].
    pub(crate) unsafe fn are_alike(&self, rows: Rows, pairs: &[[u32; 2]], room: *mut u8) -> Result<bool, DeviceError> {
        if pairs.is_empty() {
            return Ok(true);
        }
        // SAFETY: the caller vouches for the memory.
        let differ = unsafe {
            self.write(room, &told(pairs))?;
            self.start_rows(What::Alike, (rows, rows), pairs.len(), room)?;
            self.read(room, HEAD)?
        };
        Ok(differ.iter().all(|b| *b == 0))
    }
    /// # Safety
    /// As [`crate::Device::copy_rows`].
    pub(crate) unsafe fn copy_rows(&self, to: Rows, from: Rows, pairs: &[[u32; 2]], room: *mut u8) -> Result<(), DeviceError> {
        if pairs.is_empty() {
            return Ok(());
        }
        // SAFETY: the caller vouches for the memory. Writing waits for the kernel that reads other pairs there.
        unsafe {
            self.write(room, &told(pairs))?;
            self.start_rows(What::Copy, (to, from), pairs.len(), room)
        }
    }
}

/// A word that is 0, and the pairs.
fn told(pairs: &[[u32; 2]]) -> Vec<u8> {
    let numbers = pairs.iter().flatten().flat_map(|n| n.to_le_bytes());
    [0; HEAD].into_iter().chain(numbers).collect()
}
