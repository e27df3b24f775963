//! Memory of a rank's device that is used again and again. It is never freed while messages are under way, as that would wait for them.

use crate::{ExecError, store::allocate};
use device::{Device, Memory};
use fabric::Span;
use std::sync::Arc;

/// Memory for one purpose.
pub(super) struct Room {
    device: Arc<Device>,
    what: &'static str,
    memory: Memory,
    /// What was too small, kept to the end.
    outgrown: Vec<Memory>,
}

impl Room {
    /// None yet.
    pub fn new(device: Arc<Device>, what: &'static str) -> Room {
        Room { device, what, memory: Memory::new(0).expect("nothing"), outgrown: Vec::new() }
    }
    /// So many bytes; what was in them is lost.
    ///
    /// # Errors
    /// E0703, E0443.
    pub fn take(&mut self, bytes: usize) -> Result<Span, ExecError> {
        if self.memory.len() < bytes {
            let more = allocate(Some(&self.device), bytes.max(2 * self.memory.len()), self.what, false)?;
            self.outgrown.push(std::mem::replace(&mut self.memory, more));
            // What is new is being zeroed, perhaps beside what uses it.
            self.device.wait()?;
        }
        Ok(Span { at: self.memory.as_ptr(), bytes })
    }
    /// What it has. # Units: bytes.
    pub fn bytes(&self) -> u64 {
        self.outgrown.iter().chain([&self.memory]).map(|m| m.len() as u64).sum()
    }
}
