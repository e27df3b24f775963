//! The host as a device: aligned memory, launches of compiled kernels on a fixed pool of threads, dense and grouped products.
//!
//! Results do not depend on the number of threads: a block is computed by one thread in a fixed order, and products split rows and
//! columns, never sums.

pub mod code;
pub mod memory;
pub mod product;

pub use code::{Code, KernelFn, SharedObject};
pub use memory::Memory;
pub use product::{Grouped, Product};

use rayon::prelude::*;

/// A pool of threads that runs steps.
pub struct HostDevice {
    pool: rayon::ThreadPool,
    threads: usize,
}

/// A resolved launch.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The kernel.
    pub kernel: KernelFn,
    /// Its buffers.
    pub buffers: Vec<*mut u8>,
    /// Its extents.
    pub dims: Vec<i64>,
    /// The number of blocks.
    pub grid: i64,
}

// SAFETY: the pointers are only used by `HostDevice::launch`, whose caller keeps the memory alive.
unsafe impl Send for Launch {}
// SAFETY: as above; a launch is never changed while it is shared.
unsafe impl Sync for Launch {}

impl HostDevice {
    /// A device of `threads` threads, or one a core.
    pub fn new(threads: Option<usize>) -> HostDevice {
        let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)).max(1);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads can be started");
        HostDevice { pool, threads }
    }
    /// The number of threads.
    pub fn threads(&self) -> usize {
        self.threads
    }
    /// Runs all of `work` inside the pool, so that steps need not enter it one by one.
    pub fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pool.install(work)
    }
    /// Runs all blocks of a kernel.
    ///
    /// # Safety
    /// The buffers are valid for what the kernel reads and writes with these extents, and nothing else uses them meanwhile.
    pub unsafe fn launch(&self, l: &Launch) {
        let chunks = l.grid.min(4 * self.threads as i64);
        if self.threads == 1 || chunks <= 1 {
            // SAFETY: the caller vouches for the buffers.
            unsafe { (l.kernel)(l.buffers.as_ptr(), l.dims.as_ptr(), 0, l.grid) };
            return;
        }
        (0..chunks).into_par_iter().for_each(|i| {
            let (begin, end) = (l.grid * i / chunks, l.grid * (i + 1) / chunks);
            // SAFETY: blocks are independent, and the caller vouches for the buffers.
            unsafe { (l.kernel)(l.buffers.as_ptr(), l.dims.as_ptr(), begin, end) };
        });
    }
}

#[cfg(test)]
mod tests;
