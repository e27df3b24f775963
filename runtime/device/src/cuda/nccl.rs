//! NCCL, loaded when it is first asked for: communicators that never block the host. Whoever calls polls; see `fabric::nccl`, which keeps the books.
//!
//! NCCL takes no calls of several threads on one communicator, nor on several of one device: one thread owns them all. Aborting is the exception.
//! # Source: NCCL user guide, "Fault tolerance" and "Thread safety".

use super::context::Context;
use crate::DeviceError;
use base::DType;
use cudarc::{
    driver::{result as driver, sys::CUstream},
    nccl::sys,
};
use std::{
    ffi::{CStr, c_int},
    sync::Arc,
    time::{Duration, Instant},
};

/// How long communicators may take to end at once. # Source: they take milliseconds; a process that ends with some left is no worse off.
const PATIENCE: Duration = Duration::from_secs(10);

/// What ranks have to share to meet in a communicator.
pub type Id = [u8; 128];

/// How far a communicator is with what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It may be asked for more.
    Ready,
    /// It works on the last call.
    Working,
    /// It can only be aborted.
    Failed(String),
}

/// What ranks do together, or two of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Call {
    Send {
        peer: usize,
    },
    Receive {
        peer: usize,
    },
    Broadcast {
        root: usize,
    },
    AllReduce,
    /// `elems` are those that arrive.
    ReduceScatter,
    /// `elems` are those that leave.
    AllGather,
}

/// A call with its memory, on the device; of a send only `from` is read, of a receive only `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// What to do.
    pub call: Call,
    /// Address.
    pub from: u64,
    /// Address.
    pub to: u64,
    /// Of each rank.
    pub elems: usize,
    /// Numbers of which sums are taken; bytes where none are.
    pub dtype: DType,
}

/// A GPU and NCCL.
pub struct Nccl {
    context: Arc<Context>,
}

/// A communicator and the stream of its own that its calls run on.
pub struct Comm {
    handle: sys::ncclComm_t,
    stream: CUstream,
}

/// Four bytes of the host's memory that a stream waits for; never freed, as a stream may still look.
#[derive(Clone, Copy, Debug)]
pub struct Gate {
    flag: *mut u32,
}

// SAFETY: the memory stays, and is written as one.
unsafe impl Send for Gate {}
// SAFETY: as above.
unsafe impl Sync for Gate {}

impl Gate {
    /// Lets go on what [`Nccl::hold`] holds. Calls nothing of the driver, which an abort may keep busy.
    pub fn open(self) {
        // SAFETY: the memory stays.
        unsafe { self.flag.write_volatile(1) };
    }
}

// SAFETY: a handle that any thread may use, one at a time; the context is made current before each call.
unsafe impl Send for Comm {}
// SAFETY: calls beside that of the owning thread are aborts, which NCCL allows.
unsafe impl Sync for Comm {}

impl Nccl {
    /// NCCL on a GPU, by its number.
    ///
    /// # Errors
    /// E0441 if there is no GPU, or no NCCL.
    pub fn open(ordinal: usize) -> Result<Nccl, DeviceError> {
        let context = Context::new(ordinal)?;
        // SAFETY: loading the library runs its initialisers, as in every program that uses it.
        if !unsafe { sys::is_culib_present() } {
            return Err(DeviceError::None { why: "NCCL is not installed (libnccl.so)".into() });
        }
        Ok(Nccl { context })
    }
    /// NCCL's version: 22703 is 2.27.3.
    ///
    /// # Errors
    /// E0443.
    pub fn version(&self) -> Result<i32, DeviceError> {
        let mut version = 0;
        // SAFETY: the pointer is to a live integer.
        done("version", unsafe { sys::ncclGetVersion(&raw mut version) }).map(|()| version)
    }
    /// An identity for a new communicator: one rank makes it and tells the others.
    ///
    /// # Errors
    /// E0443.
    pub fn id(&self) -> Result<Id, DeviceError> {
        // SAFETY: plain bytes.
        let mut id: sys::ncclUniqueId = unsafe { std::mem::zeroed() };
        // SAFETY: the pointer is to a live value.
        done("a unique id", unsafe { sys::ncclGetUniqueId(&raw mut id) })?;
        Ok(id.internal.map(|b| b as u8))
    }
    /// Begins to meet the other ranks of a communicator; [`Nccl::state`] says when they have met.
    ///
    /// # Errors
    /// E0443.
    pub fn start(&self, size: usize, rank: usize, id: &Id) -> Result<Comm, DeviceError> {
        // What computes meanwhile leaves it the first processors that are free.
        let stream = self.call("a stream", || {
            let mut range = (0, 0);
            // SAFETY: the driver writes two numbers.
            unsafe { cudarc::driver::sys::cuCtxGetStreamPriorityRange(&mut range.0, &mut range.1) }.result()?;
            driver::stream::create_with_priority(driver::stream::StreamKind::NonBlocking, range.1)
        })?;
        let id = sys::ncclUniqueId { internal: id.map(|b| b as std::ffi::c_char) };
        let mut config = config();
        let mut handle = std::ptr::null_mut();
        // SAFETY: the pointers are to live values; NCCL copies the configuration.
        let code = unsafe { sys::ncclCommInitRankConfig(&raw mut handle, size as c_int, id, rank as c_int, &raw mut config) };
        match code {
            sys::ncclResult_t::ncclSuccess | sys::ncclResult_t::ncclInProgress => Ok(Comm { handle, stream }),
            other => Err(failed("a communicator", other)),
        }
    }
    /// How far a communicator is.
    pub fn state(&self, comm: &Comm) -> State {
        let mut state = sys::ncclResult_t::ncclSuccess;
        // SAFETY: the communicator was started, and the pointer is to a live value.
        let asked = unsafe { sys::ncclCommGetAsyncError(comm.handle, &raw mut state) };
        of(if asked == sys::ncclResult_t::ncclSuccess { state } else { asked })
    }
    /// Begins a group: what is enqueued until its end begins together.
    pub fn begin(&self) -> State {
        // SAFETY: it takes nothing.
        of(unsafe { sys::ncclGroupStart() })
    }
    /// Ends a group.
    pub fn end(&self) -> State {
        // SAFETY: it takes nothing.
        of(unsafe { sys::ncclGroupEnd() })
    }
    /// Puts a call on the communicator's stream. The memory has to stay until [`Nccl::is_idle`].
    ///
    /// # Safety
    /// The addresses are device memory of as many elements as the call reads and writes, of ranks that call alike.
    pub unsafe fn enqueue(&self, comm: &Comm, op: &Operation) -> State {
        let (from, to, n) = (op.from as *const std::ffi::c_void, op.to as *mut std::ffi::c_void, op.elems);
        let (dtype, n) = match (kind(op.dtype), op.call) {
            (Some(dtype), _) => (dtype, n),
            // Bytes, where nothing is summed.
            (None, Call::Send { .. } | Call::Receive { .. } | Call::Broadcast { .. } | Call::AllGather) => {
                (sys::ncclDataType_t::ncclUint8, n * op.dtype.bytes())
            }
            (None, Call::AllReduce | Call::ReduceScatter) => return State::Failed(format!("NCCL has no sums of {}", op.dtype)),
        };
        let (sum, h, s) = (sys::ncclRedOp_t::ncclSum, comm.handle, comm.stream.cast());
        if let Err(e) = self.call("a call of NCCL", || Ok(())) {
            return State::Failed(e.to_string());
        }
        // SAFETY: the caller vouches for the memory; communicator and stream live as long as `comm`.
        of(unsafe {
            match op.call {
                Call::Send { peer } => sys::ncclSend(from, n, dtype, peer as c_int, h, s),
                Call::Receive { peer } => sys::ncclRecv(to, n, dtype, peer as c_int, h, s),
                Call::Broadcast { root } => sys::ncclBroadcast(from, to, n, dtype, root as c_int, h, s),
                Call::AllReduce => sys::ncclAllReduce(from, to, n, dtype, sum, h, s),
                Call::ReduceScatter => sys::ncclReduceScatter(from, to, n, dtype, sum, h, s),
                Call::AllGather => sys::ncclAllGather(from, to, n, dtype, h, s),
            }
        })
    }
    /// Whether all that the communicator was asked for has run.
    ///
    /// # Errors
    /// E0443.
    pub fn is_idle(&self, comm: &Comm) -> Result<bool, DeviceError> {
        use cudarc::driver::sys::CUresult;
        // SAFETY: the stream lives as long as `comm`.
        let query = self.context.call(|| unsafe { cudarc::driver::sys::cuStreamQuery(comm.stream) }.result());
        match query {
            Ok(()) => Ok(true),
            Err(e) if e.0 == CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            Err(e) => Err(Context::error("a message", e)),
        }
    }
    /// Ends communicators at once, whatever they do; they are used no more. Each by a thread of its own: ending one frees memory, which waits for all that
    /// runs on the device, also for another one's call that waits for a rank that is gone and ends only when that one is told to. Whether all ended in time.
    ///
    /// # Safety
    /// It is called once for a communicator.
    pub unsafe fn abort(&self, comms: &[&Comm]) -> bool {
        let (done, ended) = std::sync::mpsc::channel();
        for comm in comms {
            let (handle, done) = (comm.handle as usize, done.clone());
            std::thread::spawn(move || {
                // SAFETY: the caller vouches that it lives; aborts may be called by any thread.
                unsafe { sys::ncclCommAbort(handle as sys::ncclComm_t) };
                // Nobody listens any more if it took too long.
                let _ = done.send(());
            });
        }
        let end = Instant::now() + PATIENCE;
        comms.iter().all(|_| ended.recv_timeout(end.saturating_duration_since(Instant::now())).is_ok())
    }
    /// Begins to end a communicator in good order; [`Nccl::state`] says when it is done, then [`Nccl::destroy`].
    pub fn finalize(&self, comm: &Comm) -> State {
        // SAFETY: it was started and not ended.
        of(unsafe { sys::ncclCommFinalize(comm.handle) })
    }
    /// Frees what a communicator holds.
    ///
    /// # Safety
    /// It is called once, for one that was finalised and not aborted.
    pub unsafe fn destroy(&self, comm: &Comm) {
        // SAFETY: the caller vouches that it lives.
        unsafe { sys::ncclCommDestroy(comm.handle) };
        // SAFETY: nothing is on it any more.
        let _ = self.context.call(|| unsafe { driver::stream::destroy(comm.stream) });
    }

    /// Device memory with these bytes, never freed before the process ends: for checks.
    ///
    /// # Errors
    /// E0443.
    pub fn upload(&self, bytes: &[u8]) -> Result<u64, DeviceError> {
        self.call("memory", || {
            // SAFETY: the memory is as long as what is copied, and the copy has ended when the call returns.
            unsafe {
                let at = driver::malloc_sync(bytes.len().max(1))?;
                driver::memcpy_htod_sync(at, bytes)?;
                Ok(at)
            }
        })
    }
    /// Fills device memory.
    ///
    /// # Errors
    /// E0443.
    ///
    /// # Safety
    /// So many bytes are there, and nothing uses them.
    pub unsafe fn write(&self, at: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        // SAFETY: the caller vouches for the memory.
        self.call("memory", || unsafe { driver::memcpy_htod_sync(at, bytes) })
    }
    /// What is at a device address.
    ///
    /// # Errors
    /// E0443.
    ///
    /// # Safety
    /// So many bytes are there, and nothing writes them.
    pub unsafe fn download(&self, at: u64, bytes: usize) -> Result<Vec<u8>, DeviceError> {
        let mut out = vec![0; bytes];
        // SAFETY: the caller vouches for the memory.
        self.call("memory", || unsafe { driver::memcpy_dtoh_sync(&mut out, at) })?;
        Ok(out)
    }
    /// A gate that is shut: for checks of what stalls.
    ///
    /// # Errors
    /// E0443.
    pub fn gate(&self) -> Result<Gate, DeviceError> {
        // SAFETY: the memory is as long as what is written, and nobody else knows it yet.
        self.call("a gate", || unsafe {
            let flag = driver::malloc_host(4, cudarc::driver::sys::CU_MEMHOSTALLOC_DEVICEMAP)?.cast::<u32>();
            flag.write_volatile(0);
            Ok(Gate { flag })
        })
    }
    /// Holds what follows on the communicator's stream until the gate is open.
    ///
    /// # Errors
    /// E0443.
    pub fn hold(&self, comm: &Comm, gate: &Gate) -> Result<(), DeviceError> {
        use cudarc::driver::sys::{CUstreamWaitValue_flags, cuStreamWaitValue32_v2};
        let until = CUstreamWaitValue_flags::CU_STREAM_WAIT_VALUE_GEQ as u32;
        // SAFETY: the flag stays; the stream lives as long as `comm`.
        self.call("a gate", || unsafe { cuStreamWaitValue32_v2(comm.stream, gate.flag as u64, 1, until) }.result())
    }
    fn call<T>(&self, what: &str, f: impl FnOnce() -> Result<T, driver::DriverError>) -> Result<T, DeviceError> {
        self.context.call(f).map_err(|e| Context::error(what, e))
    }
}

/// NCCL's own initial value, but that no call blocks.
fn config() -> sys::ncclConfig_t {
    // # Source: nccl.h, NCCL_CONFIG_INITIALIZER: what is not set is INT_MIN or null.
    const UNDEFINED: c_int = c_int::MIN;
    // SAFETY: plain numbers and pointers, of which null is one.
    let mut c: sys::ncclConfig_t = unsafe { std::mem::zeroed() };
    // The size says which fields there are: those up to `splitShare`, which versions from 2.18 on have.
    c.size = std::mem::offset_of!(sys::ncclConfig_t, splitShare) + size_of::<c_int>();
    (c.magic, c.version) = (0xcafe_beef, 21800);
    (c.blocking, c.cgaClusterSize, c.minCTAs, c.maxCTAs, c.splitShare) = (0, UNDEFINED, UNDEFINED, UNDEFINED, UNDEFINED);
    c
}

fn kind(dtype: DType) -> Option<sys::ncclDataType_t> {
    use sys::ncclDataType_t as N;
    match dtype {
        DType::F64 => Some(N::ncclFloat64),
        DType::F32 | DType::TF32 => Some(N::ncclFloat32),
        DType::BF16 => Some(N::ncclBfloat16),
        DType::F16 => Some(N::ncclFloat16),
        DType::I64 => Some(N::ncclInt64),
        DType::I32 => Some(N::ncclInt32),
        DType::E4M3 | DType::Bool => None,
    }
}

fn of(code: sys::ncclResult_t) -> State {
    match code {
        sys::ncclResult_t::ncclSuccess => State::Ready,
        sys::ncclResult_t::ncclInProgress => State::Working,
        other => State::Failed(text(other)),
    }
}

fn text(code: sys::ncclResult_t) -> String {
    // SAFETY: the library is loaded, and its texts are constants.
    let text = unsafe { CStr::from_ptr(sys::ncclGetErrorString(code)) };
    format!("{} ({code:?})", text.to_string_lossy())
}

fn failed(what: &str, code: sys::ncclResult_t) -> DeviceError {
    DeviceError::Step { step: what.into(), why: text(code), help: "NCCL_DEBUG=INFO says more" }
}

fn done(what: &str, code: sys::ncclResult_t) -> Result<(), DeviceError> {
    if code == sys::ncclResult_t::ncclSuccess { Ok(()) } else { Err(failed(what, code)) }
}
