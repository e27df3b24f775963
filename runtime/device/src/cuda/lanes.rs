//! Streams beside a device's own, on which exchanges of a group of one are carried out while the device's own stream computes.

use super::{Context, Event, Gpu, Program};
use crate::{
    DeviceError,
    streams::{Link, Placed, Ran},
};
use cudarc::driver::{
    result::{self, DriverError},
    sys::{self, CUdeviceptr},
};
use std::{ffi::c_void, sync::Arc};

/// Rows come back while later ones still go: in pieces of so many bytes. # Source: several pieces an exchange of 30 to 300 MB, and a piece takes
/// far longer than starting it.
const PIECE: usize = 4 << 20;

/// Streams of the highest priority.
pub struct Lanes {
    context: Arc<Context>,
    link: Link,
    /// What leaves the device, or is copied within it.
    out: sys::CUstream,
    /// What comes back.
    back: sys::CUstream,
    /// Pinned memory of the host, for one exchange at a time.
    host: *mut u8,
    bytes: usize,
}

// SAFETY: the driver's handles may be used from any thread with the context current; the host's memory is the driver's to write. One thread at a time: two lists
// would share that memory.
unsafe impl Send for Lanes {}

impl Drop for Lanes {
    fn drop(&mut self) {
        // SAFETY: both were created; what they still do is waited for before the memory goes.
        let _ = self.context.call(|| unsafe {
            for stream in [self.out, self.back] {
                let _ = result::stream::synchronize(stream);
                let _ = result::stream::destroy(stream);
            }
            if self.host.is_null() { Ok(()) } else { result::free_host(self.host.cast::<c_void>()) }
        });
    }
}

impl Gpu {
    /// Streams for exchanges of at most so many bytes.
    ///
    /// # Errors
    /// E0443, or E0444 if the host has no memory for them.
    pub fn lanes(&self, link: Link, largest_bytes: usize) -> Result<Lanes, DeviceError> {
        let context = &self.context;
        let stream = || {
            context.call(|| {
                let mut range = (0, 0);
                // SAFETY: the driver writes two numbers.
                unsafe { sys::cuCtxGetStreamPriorityRange(&mut range.0, &mut range.1) }.result()?;
                result::stream::create_with_priority(result::stream::StreamKind::NonBlocking, range.1)
            })
        };
        let failed = |e| Context::error("a stream", e);
        let (out, back) = (stream().map_err(failed)?, stream().map_err(failed)?);
        let mut lanes = Lanes { context: context.clone(), link, out, back, host: std::ptr::null_mut(), bytes: 0 };
        if link == Link::Host && largest_bytes > 0 {
            // SAFETY: the driver fills it before anything reads it.
            let host = context.call(|| unsafe { result::malloc_host(largest_bytes, 0) });
            let host = host.map_err(|_| DeviceError::Memory { bytes: largest_bytes, free: 0 })?;
            (lanes.host, lanes.bytes) = (host.cast(), largest_bytes);
        }
        Ok(lanes)
    }
}

impl Lanes {
    /// The stream on which an exchange ends.
    fn last(&self) -> sys::CUstream {
        match self.link {
            Link::Host => self.back,
            Link::Device { .. } => self.out,
        }
    }
    /// Waits for all that was started on both.
    fn wait_all(&self) -> Result<(), DriverError> {
        // SAFETY: both live as long as `self`.
        let wait = |stream| self.context.call(|| unsafe { result::stream::synchronize(stream) });
        wait(self.out).and(wait(self.back))
    }
    fn event(&self) -> Result<Event, DriverError> {
        let handle = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)?;
        Ok(Event { context: self.context.clone(), handle })
    }
    /// A moment of a stream.
    fn mark(&self, stream: sys::CUstream) -> Result<Event, DriverError> {
        let event = self.event()?;
        // SAFETY: both were created and live.
        unsafe { result::event::record(event.handle, stream) }?;
        Ok(event)
    }
    fn wait(stream: sys::CUstream, event: &Event) -> Result<(), DriverError> {
        // SAFETY: both were created and live.
        unsafe { result::stream::wait_event(stream, event.handle, sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT) }
    }
    /// Starts to move bytes, after what was started before.
    ///
    /// # Safety
    /// Both are valid for the bytes until the stream of `last` is waited for.
    unsafe fn carry(&self, from: CUdeviceptr, to: CUdeviceptr, bytes: usize) -> Result<(), DriverError> {
        let piece = match self.link {
            Link::Host => PIECE,
            Link::Device { piece } => piece.max(1),
        };
        if self.link == Link::Host {
            assert!(bytes <= self.bytes, "{bytes} bytes in {} of the host", self.bytes);
            // The host's memory is free once the move before has come back.
            Lanes::wait(self.out, &self.mark(self.back)?)?;
        }
        for at in (0..bytes).step_by(piece) {
            let n = piece.min(bytes - at);
            let (from, to) = (from + at as u64, to + at as u64);
            match self.link {
                // SAFETY: the caller vouches for the device's memory; the host's has so many bytes, and nothing but these copies touches it.
                Link::Host => unsafe {
                    let place = self.host.add(at).cast::<c_void>();
                    sys::cuMemcpyDtoHAsync_v2(place, from, n, self.out).result()?;
                    Lanes::wait(self.back, &self.mark(self.out)?)?;
                    sys::cuMemcpyHtoDAsync_v2(to, place, n, self.back).result()?;
                },
                // SAFETY: as above.
                Link::Device { .. } => unsafe { result::memcpy_dtod_async(to, from, n, self.out) }?,
            }
        }
        Ok(())
    }
}

impl Program {
    /// Runs a list of steps and waits for it; when each ran, if `timed`.
    ///
    /// # Errors
    /// E0443.
    ///
    /// # Safety
    /// As `run`, and steps that touch the same memory are ordered by their stream or by what they wait for.
    pub unsafe fn run_list(&self, list: &[Placed], lanes: &Lanes, timed: bool) -> Result<Vec<Ran>, DeviceError> {
        let failed = |e| Context::error("a list over two streams", e);
        let context = self.context.clone();
        // SAFETY: the caller vouches for the memory.
        let started = context.call(|| unsafe { self.start_list(list, lanes, timed) });
        // Whatever was started is over when this returns, also if the rest could not be: its memory is the caller's again.
        let over = lanes.wait_all().and(context.wait());
        let (begin, marks) = started.map_err(failed)?;
        over.map_err(failed)?;
        let since = |e: &Event| {
            // SAFETY: both were recorded, and are over.
            context.call(|| unsafe { result::event::elapsed(begin.handle, e.handle) }).map(|ms| f64::from(ms) * 1e6)
        };
        let ran = marks.iter().map(|[a, b]| Ok(Ran { start: since(a)?, end: since(b)? }));
        ran.collect::<Result<Vec<_>, _>>().map_err(failed)
    }
    /// As `run_list`, without waiting: the moment before, and that of each step's start and end if `timed`.
    unsafe fn start_list(&self, list: &[Placed], lanes: &Lanes, timed: bool) -> Result<(Event, Vec<[Event; 2]>), DriverError> {
        let compute = self.context.stream;
        let mut awaited = vec![false; list.len()];
        list.iter().flat_map(|p| &p.waits).for_each(|w| awaited[*w] = true);
        let mut ends: Vec<Option<Event>> = Vec::with_capacity(list.len());
        let mut marks = Vec::new();
        let begin = lanes.mark(compute)?;
        for stream in [lanes.out, lanes.back] {
            Lanes::wait(stream, &begin)?;
        }
        for (placed, awaited) in list.iter().zip(awaited) {
            let (first, last) = if placed.communicates { (lanes.out, lanes.last()) } else { (compute, compute) };
            for w in &placed.waits {
                Lanes::wait(first, ends[*w].as_ref().expect("what is awaited stands before"))?;
            }
            if placed.communicates && lanes.link == Link::Host {
                // One exchange at a time, so that its time is its own.
                Lanes::wait(first, &lanes.mark(last)?)?;
            }
            let start = if timed { Some(lanes.mark(first)?) } else { None };
            if placed.communicates {
                for (from, to, bytes) in self.moves(placed.step) {
                    // SAFETY: the caller vouches for the memory.
                    unsafe { lanes.carry(from, to, bytes) }?;
                }
            } else {
                // SAFETY: as above.
                unsafe { self.put(placed.step, compute) }?;
            }
            if let Some(start) = start {
                marks.push([start, lanes.mark(last)?]);
            }
            ends.push(if awaited { Some(lanes.mark(last)?) } else { None });
        }
        // What waits for the device's own stream waits for all.
        for stream in [lanes.out, lanes.back] {
            Lanes::wait(compute, &lanes.mark(stream)?)?;
        }
        Ok((begin, marks))
    }
}
