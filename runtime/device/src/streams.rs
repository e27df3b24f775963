//! A program's steps as a list over two streams: what computes, and what communicates. A stream runs its steps in the order of the list; what one
//! waits for on the other stands in the list.

use crate::{Device, DeviceError, Program, cuda::Lanes};
use std::time::Instant;

/// A step's place in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Of the program.
    pub step: usize,
    /// Whether it runs on the stream that communicates; such a step is an exchange.
    pub communicates: bool,
    /// Places of the list, before this one and on the other stream, that end before this one begins.
    pub waits: Vec<usize>,
}

/// What carries the rows of a group of one, where they would go to another device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// To pinned memory of the host and back, in pieces, both ways at once: copy engines do it, at the rate of the bus, and no processor of the
    /// device takes part.
    Host,
    /// Within the device, in pieces of so many bytes one after the other: starting each takes time, so small pieces are slow.
    Device {
        /// # Units: bytes.
        piece: usize,
    },
}

/// When a step of a list ran, since the list began. # Units: nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Ran {
    pub start: f64,
    pub end: f64,
}

/// What a device needs for lists over two streams.
pub enum Streams {
    /// One step after the other.
    Host,
    /// Streams beside the device's own.
    Gpu(Lanes),
}

impl Device {
    /// Streams for exchanges of at most so many bytes.
    ///
    /// # Errors
    /// E0443, or E0444 if the host has no memory for them.
    pub fn streams(&self, link: Link, largest_bytes: usize) -> Result<Streams, DeviceError> {
        match self {
            Device::Host(_) => Ok(Streams::Host),
            Device::Gpu(g) => g.lanes(link, largest_bytes).map(Streams::Gpu),
        }
    }
    /// Runs a list and waits for it; when each step ran, if `timed`. The host runs it in order.
    ///
    /// # Errors
    /// E0443.
    ///
    /// # Safety
    /// As `run`, and steps that touch the same memory are ordered by their stream or by what they wait for.
    pub unsafe fn run_list(
        &self,
        program: &Program,
        list: &[Placed],
        streams: &Streams,
        timed: bool,
    ) -> Result<Vec<Ran>, DeviceError> {
        match (self, program.on_gpu(), streams) {
            (Device::Host(_), _, Streams::Host) => {
                let begin = Instant::now();
                let since = || begin.elapsed().as_secs_f64() * 1e9;
                let mut ran = Vec::new();
                for placed in list {
                    let start = since();
                    // SAFETY: the caller vouches for the pointers.
                    unsafe { self.execute(program, placed.step) }?;
                    ran.push(Ran { start, end: since() });
                }
                Ok(if timed { ran } else { Vec::new() })
            }
            // SAFETY: as above.
            (Device::Gpu(_), Some(p), Streams::Gpu(lanes)) => unsafe { p.run_list(list, lanes, timed) },
            (Device::Host(_), _, Streams::Gpu(_)) | (Device::Gpu(_), ..) => base::bug!("streams of another device"),
        }
    }
}
