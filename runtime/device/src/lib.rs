//! What runs steps: the host, with compiled kernels on a fixed pool of threads and dense and grouped products, or a GPU ([`cuda`]).
//!
//! Results do not depend on the number of threads: a block is computed by one thread in a fixed order, and products split rows and
//! columns, never sums.

pub mod code;
pub mod cuda;
pub mod error;
pub mod exchange;
pub mod memory;
pub mod product;
pub mod rows;
pub mod step;
pub mod streams;

pub use code::{Code, KernelFn, SharedObject};
pub use cuda::{Gpu, GpuInfo, driver_version, gpus};
pub use error::DeviceError;
pub use exchange::{Exchange, Places, What};
pub use memory::Memory;
pub use product::{Grouped, Product};
pub use rows::Rows;
pub use step::{Device, Host, Launch, Mark, Program, Step};
pub use streams::{Link, Placed, Ran, Streams};

use rayon::prelude::*;

/// A pool of threads that runs steps.
pub struct HostDevice {
    pool: rayon::ThreadPool,
    threads: usize,
}

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
    pub unsafe fn launch(&self, kernel: KernelFn, l: &Launch) {
        let chunks = l.grid.min(4 * self.threads as i64);
        if self.threads == 1 || chunks <= 1 {
            // SAFETY: the caller vouches for the buffers.
            unsafe { kernel(l.buffers.as_ptr(), l.dims.as_ptr(), 0, l.grid) };
            return;
        }
        (0..chunks).into_par_iter().for_each(|i| {
            let (begin, end) = (l.grid * i / chunks, l.grid * (i + 1) / chunks);
            // SAFETY: blocks are independent, and the caller vouches for the buffers.
            unsafe { kernel(l.buffers.as_ptr(), l.dims.as_ptr(), begin, end) };
        });
    }
}

#[cfg(test)]
mod tests;
