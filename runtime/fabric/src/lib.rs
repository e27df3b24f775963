//! Moves bytes between ranks. One trait: [`threads`] of one process, [`tcp`] between processes, and with the feature `mpi` MPI. Collectives are
//! functions over these. Memory of devices goes by [`direct`]: over the host and any of them, or over [`nccl`] from GPU to
//! GPU. Who a rank is comes from [`discover`].
//!
//! What always holds: every wait is bounded and ends with an error that names the action, the peer and the message's number; messages of one
//! channel from one peer arrive in order and whole; a message of another length or number than expected is an error and never data; when a
//! rank gives up, all others learn why.

pub mod collective;
pub mod direct;
pub mod discover;
mod error;
mod mailbox;
#[cfg(feature = "mpi")]
pub mod mpi;
pub mod nccl;
pub mod tcp;
pub mod threads;

pub use direct::{Direct, Span, Staged, Tag};
pub use discover::{World, discover};
pub use error::FabricError;

use std::time::Duration;

/// Messages that do not mix: each has an order of its own between two ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Channel(pub u32);

impl Channel {
    /// Of [`collective`]'s functions.
    pub const COLLECTIVE: Channel = Channel(u32::MAX);
}

impl std::fmt::Display for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if *self == Channel::COLLECTIVE { f.write_str("collective") } else { write!(f, "channel {}", self.0) }
    }
}

/// How long waits may take. # Source: nesting as in torchtitan #2899: a collective inside a step gives up before the start does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Until all ranks have met.
    pub start: Duration,
    /// Until a message arrives.
    pub message: Duration,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts { start: Duration::from_secs(300), message: Duration::from_secs(120) }
    }
}

/// One rank's end. Sends do not wait for the receiver.
pub trait Fabric: Send + Sync {
    /// This rank's number.
    fn rank(&self) -> usize;
    /// How many ranks there are.
    fn size(&self) -> usize;
    /// Hands `bytes` over to `to`.
    ///
    /// # Errors
    /// E0422 if the peer is gone, E0424 if a rank gave up.
    fn send(&self, to: usize, channel: Channel, bytes: &[u8]) -> Result<(), FabricError>;
    /// Waits for the next message of `from` on the channel, which has to be as long as `into`.
    ///
    /// # Errors
    /// E0421 after the time-out, E0422 if the peer is gone, E0423 if the message has another length or number, E0424 if a rank gave up.
    fn receive(&self, from: usize, channel: Channel, into: &mut [u8]) -> Result<(), FabricError>;
    /// Whether all other ranks are still there, as far as is known; for those who wait for something else.
    ///
    /// # Errors
    /// E0422 if one is gone, E0424 if one gave up.
    fn check(&self) -> Result<(), FabricError>;
    /// Tells every rank why this one gives up; all waits end.
    fn abort(&self, why: &str);
}

#[cfg(test)]
mod tests;
