//! Steps packed for the driver: arguments and tensor maps once, then a call a step, or one call for all of them as a graph.
//!
//! The first run waits after every step, so that a kernel that fails is named. The second is recorded as a graph, which that run and all later
//! ones launch.

use super::{Loaded, context::Context, module::value};
use crate::{DeviceError, Exchange, Launch, Step, What};
use base::{DType, DimEnv};
use cudarc::driver::{
    result::{self, DriverError},
    sys::{self, CUdeviceptr, CUtensorMap},
};
use library::{GpuLaunch, TensorMap};
use std::{ffi::c_void, sync::Arc};

/// A step for the driver.
enum Ready {
    Launch {
        function: usize,
        blocks: u32,
        arguments: Arguments,
    },
    Copy {
        from: CUdeviceptr,
        to: CUdeviceptr,
        bytes: usize,
    },
    Zero {
        at: CUdeviceptr,
        bytes: usize,
    },
    /// Bytes of an exchange in a group of one: from, to, how many.
    Exchange(Vec<(CUdeviceptr, CUdeviceptr, usize)>),
    /// Among several members: who runs the other steps carries it out between two of them.
    Among,
    /// There is nothing to do.
    Nothing,
}

/// What a kernel is passed: buffers, extents, the grid, the workspace; then maps.
struct Arguments {
    /// Where each of the others lies.
    pointers: Vec<*mut c_void>,
    _numbers: Box<[u64]>,
    _maps: Box<[CUtensorMap]>,
}

impl Arguments {
    fn new(numbers: Vec<u64>, maps: Vec<CUtensorMap>) -> Arguments {
        let (numbers, maps) = (numbers.into_boxed_slice(), maps.into_boxed_slice());
        let pointers = numbers.iter().map(|a| (a as *const u64).cast::<c_void>().cast_mut());
        let pointers = pointers.chain(maps.iter().map(|m| (m as *const CUtensorMap).cast::<c_void>().cast_mut())).collect();
        Arguments { pointers, _numbers: numbers, _maps: maps }
    }
}

/// Packed steps, and how often they ran.
pub(crate) struct Program {
    pub(super) context: Arc<Context>,
    loaded: Arc<Loaded>,
    steps: Vec<Ready>,
    tried: bool,
    graph: Option<Graph>,
}

// SAFETY: addresses are of memory on the device, which its owner keeps; handles are used with the context current.
unsafe impl Send for Program {}
// SAFETY: as above; a program is only changed through `&mut self`.
unsafe impl Sync for Program {}

/// A recorded run.
struct Graph {
    context: Arc<Context>,
    exec: sys::CUgraphExec,
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: it was instantiated, and what was launched is over or kept by the driver until it is.
        let _ = self.context.call(|| unsafe { result::graph::exec_destroy(self.exec) });
    }
}

impl Program {
    /// Packs steps. `workspace` is what the kernels of one step at a time need.
    ///
    /// # Errors
    /// E0442 if the driver refuses a tensor map.
    pub(super) fn new(
        context: &Arc<Context>,
        loaded: &Arc<Loaded>,
        steps: &[Step],
        workspace: *mut u8,
    ) -> Result<Program, DeviceError> {
        let pack = |s: &Step| match s {
            Step::Launch(l) => pack(loaded, context, l, workspace),
            Step::Copy { from, to, bytes } if *bytes > 0 && from.cast_mut() != *to => {
                Ok(Ready::Copy { from: *from as CUdeviceptr, to: *to as CUdeviceptr, bytes: *bytes })
            }
            Step::Zero { at, bytes } if *bytes > 0 => Ok(Ready::Zero { at: *at as CUdeviceptr, bytes: *bytes }),
            Step::Copy { .. } | Step::Zero { .. } => Ok(Ready::Nothing),
            Step::Product(_) | Step::Grouped(_) => base::bug!("a product that is no kernel, on a GPU"),
            Step::Exchange(x) if x.members != 1 => Ok(Ready::Among),
            Step::Exchange(x) => Ok(Ready::Exchange(moves(x))),
        };
        let steps = steps.iter().map(pack).collect::<Result<_, _>>()?;
        Ok(Program { context: context.clone(), loaded: loaded.clone(), steps, tried: false, graph: None })
    }
    /// Kernels that are launched, and other steps that are not empty.
    pub fn counts(&self) -> (usize, usize) {
        let launches = self.steps.iter().filter(|s| matches!(s, Ready::Launch { .. })).count();
        let nothing = self.steps.iter().filter(|s| matches!(s, Ready::Nothing)).count();
        (launches, self.steps.len() - launches - nothing)
    }

    /// Starts all steps.
    ///
    /// # Errors
    /// E0443, in the first run with the kernel's name.
    ///
    /// # Safety
    /// The memory that the steps name is there, and nothing else uses it.
    pub unsafe fn run(&mut self) -> Result<(), DeviceError> {
        if !self.tried {
            for i in 0..self.steps.len() {
                // SAFETY: the caller vouches for the memory.
                unsafe { self.start(i) }?;
                let help = "its accesses are checked by `compute-sanitizer`, see docs/testing.md";
                let failed = |e| DeviceError::Step { step: self.name(i), why: super::context::why(e), help };
                self.context.wait().map_err(failed)?;
            }
            self.tried = true;
            return Ok(());
        }
        if self.graph.is_none() {
            // SAFETY: the caller vouches for the memory.
            self.graph = Some(unsafe { self.record() }?);
        }
        let graph = self.graph.as_ref().expect("recorded above");
        // SAFETY: the graph's functions are loaded, and the caller vouches for the memory.
        let launched = self.context.call(|| unsafe { result::graph::launch(graph.exec, self.context.stream) });
        launched.map_err(|e| Context::error("a recorded run", e))
    }

    /// Forgets the recorded run: the next one is recorded again.
    pub fn forget(&mut self) {
        self.graph = None;
    }

    /// Starts all steps one by one.
    ///
    /// # Errors
    /// As `start`.
    ///
    /// # Safety
    /// As `run`.
    pub unsafe fn start_all(&self) -> Result<(), DeviceError> {
        self.context.call(|| Ok(())).map_err(|e| Context::error("a step", e))?;
        // SAFETY: the caller vouches for the memory; the context is current.
        (0..self.steps.len())
            .try_for_each(|i| unsafe { self.put(i, self.context.stream) }.map_err(|e| Context::error(&self.name(i), e)))
    }

    /// Starts one step.
    ///
    /// # Errors
    /// E0443 if the driver does not take it.
    ///
    /// # Safety
    /// As `run`.
    pub unsafe fn start(&self, i: usize) -> Result<(), DeviceError> {
        // SAFETY: the caller vouches for the memory.
        self.context.call(|| unsafe { self.put(i, self.context.stream) }).map_err(|e| Context::error(&self.name(i), e))
    }

    /// As `start`, on a stream, with the context current.
    ///
    /// # Safety
    /// As `run`.
    pub(super) unsafe fn put(&self, i: usize, stream: sys::CUstream) -> Result<(), DriverError> {
        match &self.steps[i] {
            Ready::Launch { function, blocks, arguments } => {
                let f = &self.loaded.functions[*function];
                let (threads, shared) = (f.launch.threads, f.launch.dynamic_shared_bytes as u32);
                let none = std::ptr::null_mut();
                // The driver does not write to the list.
                let pointers = arguments.pointers.as_ptr().cast_mut();
                // SAFETY: the pointers are to what docs/ir/ptx.md lists for a kernel; the driver reads it before it returns.
                unsafe { sys::cuLaunchKernel(f.handle, *blocks, 1, 1, threads, 1, 1, shared, stream, pointers, none) }.result()
            }
            // SAFETY: the caller vouches for the memory.
            Ready::Copy { from, to, bytes } => unsafe { result::memcpy_dtod_async(*to, *from, *bytes, stream) },
            // SAFETY: as above.
            Ready::Zero { at, bytes } => unsafe { result::memset_d8_async(*at, 0, *bytes, stream) },
            Ready::Exchange(moves) => moves.iter().try_for_each(|(from, to, bytes)| {
                // SAFETY: as above.
                unsafe { result::memcpy_dtod_async(*to, *from, *bytes, stream) }
            }),
            Ready::Among => base::bug!("an exchange among several members, without them"),
            Ready::Nothing => Ok(()),
        }
    }
    /// What an exchange moves: from, to, bytes.
    pub(super) fn moves(&self, i: usize) -> Vec<(CUdeviceptr, CUdeviceptr, usize)> {
        match &self.steps[i] {
            Ready::Exchange(moves) => moves.clone(),
            Ready::Nothing => Vec::new(),
            Ready::Launch { .. } | Ready::Copy { .. } | Ready::Zero { .. } | Ready::Among => {
                base::bug!("{} is no exchange in a group of one", self.name(i))
            }
        }
    }

    /// Records a run without running it.
    ///
    /// # Safety
    /// As `run`, whenever the graph is launched.
    unsafe fn record(&self) -> Result<Graph, DeviceError> {
        let failed = |e| Context::error("recording a run", e);
        let (context, stream) = (&self.context, self.context.stream);
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as the context.
        context.call(|| unsafe { result::stream::begin_capture(stream, mode) }).map_err(failed)?;
        // SAFETY: the caller vouches for the memory.
        let started = unsafe { self.start_all() };
        // SAFETY: recording began above, and ends whatever happened.
        let graph = context.call(|| unsafe { result::stream::end_capture(stream) });
        started?;
        let graph = graph.map_err(failed)?;
        // SAFETY: the driver made the graph; it is needed no more once it is instantiated.
        let exec = context.call(|| unsafe {
            let exec = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            let _ = result::graph::destroy(graph);
            exec
        });
        Ok(Graph { context: context.clone(), exec: exec.map_err(failed)? })
    }

    /// What a step is.
    fn name(&self, i: usize) -> String {
        match &self.steps[i] {
            Ready::Launch { function, .. } => format!("kernel {}", self.loaded.functions[*function].name),
            Ready::Copy { .. } => "a copy".into(),
            Ready::Zero { .. } => "zeroing memory".into(),
            Ready::Exchange(_) | Ready::Among => "an exchange".into(),
            Ready::Nothing => "nothing".into(),
        }
    }
}

/// What an exchange in a group of one moves. All rows go, also those behind the last group's: nothing reads them.
fn moves(x: &Exchange) -> Vec<(CUdeviceptr, CUdeviceptr, usize)> {
    let (from, to) = (x.from as CUdeviceptr, x.to as CUdeviceptr);
    let moves = match x.what {
        What::Offsets => {
            let bytes = (x.groups + 1) * size_of::<i32>();
            vec![(from, x.all as CUdeviceptr, bytes), (from, to, bytes)]
        }
        What::There | What::Back => vec![(from, to, x.rows * x.row)],
    };
    moves.into_iter().filter(|(from, to, bytes)| *bytes > 0 && from != to).collect()
}

fn pack(loaded: &Loaded, context: &Context, l: &Launch, workspace: *mut u8) -> Result<Ready, DeviceError> {
    let f = &loaded.functions[l.kernel];
    let env = GpuLaunch::extents(&l.dims, l.grid);
    let blocks = f.blocks(&env);
    if l.grid <= 0 || blocks <= 0 {
        return Ok(Ready::Nothing);
    }
    let maps = f.launch.maps.iter().map(|m| {
        encode(context, &Described::new(m, &env, l.buffers[m.buffer] as u64)).map_err(|why| DeviceError::Code {
            what: f.name.clone(),
            why: format!("a tensor map of buffer {}: {why}", m.buffer),
            log: "the sizes of this run do not fit its copies".into(),
        })
    });
    let maps = maps.collect::<Result<_, _>>()?;
    Ok(Ready::Launch { function: l.kernel, blocks: blocks as u32, arguments: Arguments::new(arguments(l, workspace), maps) })
}

/// What every kernel is passed before its maps.
fn arguments(l: &Launch, workspace: *mut u8) -> Vec<u64> {
    let buffers = l.buffers.iter().map(|b| *b as u64);
    buffers.chain(l.dims.iter().map(|n| *n as u64)).chain([l.grid as u64, workspace as u64]).collect()
}

/// A tensor map in numbers, innermost axis first.
#[derive(Debug, PartialEq)]
struct Described {
    address: u64,
    dtype: DType,
    extents: Vec<u64>,
    /// Of all axes but the innermost. # Units: bytes.
    strides: Vec<u64>,
    /// Of a rectangle.
    sizes: Vec<u32>,
}

impl Described {
    fn new(m: &TensorMap, env: &DimEnv, address: u64) -> Described {
        let mut sizes = vec![1; m.axes.len()];
        sizes.iter_mut().zip([m.cols, m.rows, m.runs]).for_each(|(size, n)| *size = n);
        let size = m.dtype.bytes() as u64;
        Described {
            address,
            dtype: m.dtype,
            // An axis without elements is not read; the driver wants one.
            extents: m.axes.iter().rev().map(|(n, _)| value(n, env).max(1) as u64).collect(),
            strides: m.axes.iter().rev().skip(1).map(|(_, s)| value(s, env) as u64 * size).collect(),
            sizes,
        }
    }
}

/// The driver's form of a tensor map.
fn encode(context: &Context, d: &Described) -> Result<CUtensorMap, String> {
    use sys::{
        CUtensorMapDataType_enum as Type, CUtensorMapFloatOOBfill_enum as Outside, CUtensorMapInterleave_enum as Interleave,
        CUtensorMapL2promotion_enum as Promotion, CUtensorMapSwizzle_enum as Swizzle,
    };
    // Rows of f32 lie as they are; neighbours of the others are permuted within 128 bytes.
    let (dtype, swizzle) = match d.dtype {
        DType::F32 => (Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT32, Swizzle::CU_TENSOR_MAP_SWIZZLE_NONE),
        DType::TF32 => (Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT32, Swizzle::CU_TENSOR_MAP_SWIZZLE_128B),
        DType::BF16 => (Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, Swizzle::CU_TENSOR_MAP_SWIZZLE_128B),
        DType::F16 => (Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT16, Swizzle::CU_TENSOR_MAP_SWIZZLE_128B),
        DType::E4M3 => (Type::CU_TENSOR_MAP_DATA_TYPE_UINT8, Swizzle::CU_TENSOR_MAP_SWIZZLE_128B),
        DType::F64 | DType::I64 | DType::I32 | DType::Bool => return Err(format!("a tensor map of {}", d.dtype)),
    };
    let steps = vec![1u32; d.sizes.len()];
    let mut map = CUtensorMap { opaque: [0; 16] };
    let encoded = context.call(|| {
        // SAFETY: the lists have as many entries as the rank asks for; the address is not read.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                dtype,
                d.extents.len() as u32,
                d.address as *mut c_void,
                d.extents.as_ptr(),
                d.strides.as_ptr(),
                d.sizes.as_ptr(),
                steps.as_ptr(),
                Interleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                Promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                Outside::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
    });
    encoded.map(|()| map).map_err(super::context::why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Dim;

    #[test]
    fn a_group_of_one_keeps_its_rows() {
        let at = |n: usize| n as *mut u8;
        let x = |what| Exchange { what, from: at(64), all: at(128).cast(), to: at(256), members: 1, groups: 3, rows: 5, row: 8 };
        assert_eq!(moves(&x(What::Offsets)), [(64, 128, 16), (64, 256, 16)]);
        assert_eq!(moves(&x(What::There)), [(64, 256, 40)]);
        assert_eq!(moves(&Exchange { rows: 0, ..x(What::Back) }), []);
    }

    #[test]
    fn a_kernel_is_passed_buffers_extents_grid_and_workspace() {
        let l = Launch { kernel: 0, buffers: vec![16 as *mut u8, 32 as *mut u8], dims: vec![7, -1], grid: 5 };
        assert_eq!(arguments(&l, 64 as *mut u8), [16, 32, 7, u64::MAX, 5, 64]);
    }

    #[test]
    fn clusters_are_launched_whole() {
        let blocks = |work: &str, cluster, resident| {
            let l = GpuLaunch {
                threads: 384,
                cluster,
                blocks: work.parse().expect("a dim"),
                static_shared_bytes: 0,
                dynamic_shared_bytes: 0,
                workspace_bytes: 128,
                maps: Vec::new(),
            };
            super::super::module::blocks(&l, resident, &GpuLaunch::extents(&[], 6))
        };
        assert_eq!([blocks("grid", 2, 132), blocks("grid", 2, 5), blocks("grid", 2, 1), blocks("0", 2, 132)], [6, 4, 2, 0]);
        assert_eq!([blocks("grid", 1, 5), blocks("0", 1, 5)], [5, 0]);
    }

    #[test]
    fn maps_are_described_from_the_inside() {
        let d = |t: &str| t.parse::<Dim>().expect("a dim");
        let axes = vec![(d("3"), d("64*d0")), (d("d0"), d("64")), (d("64"), d("1"))];
        let m = TensorMap { buffer: 1, dtype: DType::F16, axes, rows: 16, runs: 8, cols: 32 };
        let got = Described::new(&m, &GpuLaunch::extents(&[10], 1), 256);
        let want = Described {
            address: 256,
            dtype: DType::F16,
            extents: vec![64, 10, 3],
            strides: vec![128, 1280],
            sizes: vec![32, 16, 8],
        };
        assert_eq!(got, want);
        assert_eq!(Described::new(&m, &GpuLaunch::extents(&[0], 1), 256).extents, [64, 1, 3]);
    }
}
