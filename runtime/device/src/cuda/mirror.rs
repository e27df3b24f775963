//! A piece of memory on the device, and which of it and its copy on the host is newer.

use super::context::Context;
use crate::DeviceError;
use cudarc::driver::{result, sys::CUdeviceptr};
use std::{
    ffi::c_void,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, Ordering},
    },
};

/// Both hold the same.
const SAME: u8 = 0;
/// The host's was changed.
const HOST: u8 = 1;
/// The device's was changed.
const DEVICE: u8 = 2;

/// Memory on a device.
pub(crate) struct Mirror {
    context: Arc<Context>,
    address: CUdeviceptr,
    bytes: usize,
    newer: AtomicU8,
    /// Held while the host's copy is filled.
    filling: Mutex<()>,
}

impl std::fmt::Debug for Mirror {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes at {:#x} of device {}", self.bytes, self.address, self.context.info.ordinal)
    }
}

impl Mirror {
    /// Zeros. `host`: what a copy on the host would hold is known to be zero, too.
    ///
    /// # Errors
    /// E0444.
    pub(super) fn new(context: &Arc<Context>, bytes: usize, host: bool) -> Result<Mirror, DeviceError> {
        // Whole words, all of them zero: what looks at memory by words sees nothing odd behind the last element.
        let whole = bytes.max(1).next_multiple_of(16);
        // SAFETY: the memory is filled before anything reads it.
        let address = context.call(|| unsafe { result::malloc_sync(whole) });
        let address = address.map_err(|_| DeviceError::Memory { bytes, free: context.free_bytes() })?;
        let m = Mirror {
            context: context.clone(),
            address,
            bytes,
            newer: AtomicU8::new(if host { SAME } else { DEVICE }),
            filling: Mutex::new(()),
        };
        m.set(0, whole)?;
        Ok(m)
    }
    pub(crate) fn address(&self) -> *mut u8 {
        self.address as *mut u8
    }
    /// Fills the device's copy with a byte.
    pub(crate) fn fill(&mut self, byte: u8) {
        let filled = self.set(byte, self.bytes);
        self.context.keep(filled);
        *self.newer.get_mut() = DEVICE;
    }
    fn set(&self, byte: u8, bytes: usize) -> Result<(), DeviceError> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the memory has that many bytes and lives as long as `self`, which waits before it frees it.
        let set = self.context.call(|| unsafe { result::memset_d8_async(self.address, byte, bytes, self.context.stream) });
        set.map_err(|e| Context::error("filling memory", e))
    }
    /// Whether the host's copy is out of date.
    pub(crate) fn is_ahead(&self) -> bool {
        self.newer.load(Ordering::Acquire) == DEVICE
    }
    /// The host's copy was or will be changed.
    pub(crate) fn host_changes(&mut self) {
        *self.newer.get_mut() = HOST;
    }
    /// Steps changed the device's copy.
    pub(crate) fn device_changed(&mut self) {
        *self.newer.get_mut() = DEVICE;
    }
    /// Sends the host's copy, if it is newer. The transfer may still be under way: the host's copy stays as it is until the device was waited for.
    pub(crate) fn send(&mut self, from: &[u8]) -> Result<(), DeviceError> {
        if *self.newer.get_mut() != HOST {
            return Ok(());
        }
        if self.bytes > 0 {
            // SAFETY: both have that many bytes; memory that is not pinned is copied aside by the driver before it returns.
            let sent = self.context.call(|| unsafe { result::memcpy_htod_async(self.address, from, self.context.stream) });
            sent.map_err(|e| Context::error("a copy to the device", e))?;
        }
        *self.newer.get_mut() = SAME;
        Ok(())
    }
    /// Fetches the device's copy to `to`, if it is newer, and waits for it.
    ///
    /// # Safety
    /// `to` is valid for the bytes, and nothing reads or writes it meanwhile but this function.
    pub(crate) unsafe fn fetch(&self, to: *mut u8) -> Result<(), DeviceError> {
        let _filling = self.filling.lock().unwrap_or_else(|p| p.into_inner());
        if !self.is_ahead() {
            return Ok(());
        }
        if self.bytes > 0 {
            // SAFETY: the caller vouches for the memory.
            let to = unsafe { std::slice::from_raw_parts_mut(to, self.bytes) };
            // SAFETY: both have that many bytes, and the stream is waited for below.
            let started = self.context.call(|| unsafe { result::memcpy_dtoh_async(to, self.address, self.context.stream) });
            started.and_then(|()| self.context.wait()).map_err(|e| Context::error("a copy from the device", e))?;
        }
        self.newer.store(SAME, Ordering::Release);
        Ok(())
    }
    /// Page-locked memory of the host, which is copied without the driver's help.
    pub(crate) fn pinned(&self) -> Option<*mut u8> {
        // SAFETY: the memory is filled by whoever asks for it.
        let p = self.context.call(|| unsafe { result::malloc_host(self.bytes.max(1), 0) }).ok()?;
        Some(p.cast())
    }
    /// Frees what `pinned` gave.
    ///
    /// # Safety
    /// `p` is of `pinned`, and used no more.
    pub(crate) unsafe fn free_pinned(&self, p: *mut u8) {
        // SAFETY: the caller vouches for it; transfers are over.
        let _ = self.context.wait().and_then(|()| self.context.call(|| unsafe { result::free_host(p.cast::<c_void>()) }));
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        // SAFETY: the memory is of `malloc_sync`, and what was started is over: freeing waits for the device.
        let _ = self.context.call(|| unsafe { result::free_sync(self.address) });
    }
}
