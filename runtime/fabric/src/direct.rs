//! Memory of ranks' devices moved between ranks. [`Staged`] takes it over the host and any fabric; [`crate::nccl::Links`] goes from GPU to GPU.

use crate::{Channel, Fabric, FabricError};
use device::Device;
use std::sync::Arc;

/// A piece of a device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its first byte, as the device's steps find it.
    pub at: *mut u8,
    /// How long it is. # Units: bytes.
    pub bytes: usize,
}

// SAFETY: an address; who uses it vouches for the memory.
unsafe impl Send for Span {}
// SAFETY: as above.
unsafe impl Sync for Span {}

/// Bytes of what a message says of itself.
pub const HEAD: usize = 24;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Its channel.
    pub channel: Channel,
    /// What it says of itself: both ends know it.
    pub head: [u8; HEAD],
    /// Its number, for errors.
    pub number: u64,
}

impl Tag {
    /// Whether a message that came is the one that is expected.
    ///
    /// # Errors
    /// E0423.
    pub fn expect(&self, rank: usize, peer: usize, head: &[u8]) -> Result<(), FabricError> {
        if head == self.head {
            return Ok(());
        }
        let what = format!("its header is {head:02x?}, that of message {} is {:02x?}", self.number, self.head);
        Err(FabricError::Mismatch { rank, peer, channel: self.channel, number: self.number, what })
    }
}

/// Moves memory of this rank's device to other ranks and theirs here. What the device was asked for with the spans of a call is over when it is made; what is
/// received is there when it returns. Both ends of a message give spans of the same lengths in the same order.
pub trait Direct {
    /// Starts to send spans to a rank, as one message. Their memory stays as it is until [`Direct::is_sent`].
    ///
    /// # Errors
    /// As [`Fabric::send`]; E0443 of the device.
    ///
    /// # Safety
    /// The spans are this rank's device's, until then.
    unsafe fn send_spans(&self, to: usize, tag: Tag, spans: &[Span]) -> Result<(), FabricError>;
    /// Waits for the next message of a rank.
    ///
    /// # Errors
    /// As [`Fabric::receive`]; E0443 of the device.
    ///
    /// # Safety
    /// The spans are this rank's device's, and nothing else uses them.
    unsafe fn receive_spans(&self, from: usize, tag: Tag, spans: &[Span]) -> Result<(), FabricError>;
    /// Whether all that was sent to a rank has left its memory.
    ///
    /// # Errors
    /// As [`Fabric::check`].
    fn is_sent(&self, to: usize) -> Result<bool, FabricError>;
    /// Waits for that, of all ranks.
    ///
    /// # Errors
    /// As [`Fabric::receive`].
    fn flush(&self) -> Result<(), FabricError>;
    /// Ends what is under way, of which the others are told elsewhere: memory can be freed then, which would wait for it. A second call does nothing.
    fn stop(&self, why: &str);
    /// Sends and receives among `members`, whose places in the list name peers, all at once; waits for all of it. What a member sends another comes in order.
    ///
    /// # Errors
    /// As above.
    ///
    /// # Safety
    /// The spans are this rank's device's, and nothing else uses them. All members call alike.
    unsafe fn swap(
        &self,
        members: &[usize],
        tag: Tag,
        sends: &[(usize, Span)],
        receives: &[(usize, Span)],
    ) -> Result<(), FabricError>;
}

/// Over the host: messages of a fabric, copied from the device and to it.
pub struct Staged<'f> {
    /// What carries them.
    pub fabric: &'f dyn Fabric,
    /// Whose memory it is.
    pub device: Arc<Device>,
    /// Whether each message says what it is, and that is checked.
    pub checked: bool,
}

impl Staged<'_> {
    fn failed(&self, e: &device::DeviceError) -> FabricError {
        FabricError::Device { rank: self.fabric.rank(), why: e.to_string() }
    }
    fn head<'t>(&self, tag: &'t Tag) -> &'t [u8] {
        if self.checked { &tag.head } else { &[] }
    }
    /// What is sent for spans.
    ///
    /// # Safety
    /// The spans are this rank's device's.
    unsafe fn message(&self, tag: Tag, spans: &[Span]) -> Result<Vec<u8>, FabricError> {
        let mut bytes = self.head(&tag).to_vec();
        bytes.reserve_exact(spans.iter().map(|s| s.bytes).sum());
        for s in spans {
            // SAFETY: the caller vouches for the memory.
            bytes.extend(unsafe { self.device.read(s.at, s.bytes) }.map_err(|e| self.failed(&e))?);
        }
        Ok(bytes)
    }
}

impl Direct for Staged<'_> {
    fn stop(&self, _why: &str) {}
    unsafe fn send_spans(&self, to: usize, tag: Tag, spans: &[Span]) -> Result<(), FabricError> {
        // SAFETY: the caller vouches for the memory.
        self.fabric.send(to, tag.channel, &unsafe { self.message(tag, spans) }?)
    }
    unsafe fn receive_spans(&self, from: usize, tag: Tag, spans: &[Span]) -> Result<(), FabricError> {
        let head = self.head(&tag).len();
        let mut bytes = vec![0; head + spans.iter().map(|s| s.bytes).sum::<usize>()];
        self.fabric.receive(from, tag.channel, &mut bytes)?;
        if head > 0 {
            tag.expect(self.fabric.rank(), from, &bytes[..head])?;
        }
        let mut rest = &bytes[head..];
        for s in spans {
            let (own, after) = rest.split_at(s.bytes);
            // SAFETY: as above.
            unsafe { self.device.write(s.at, own) }.map_err(|e| self.failed(&e))?;
            rest = after;
        }
        Ok(())
    }
    fn is_sent(&self, _: usize) -> Result<bool, FabricError> {
        Ok(true)
    }
    fn flush(&self) -> Result<(), FabricError> {
        Ok(())
    }
    unsafe fn swap(
        &self,
        members: &[usize],
        tag: Tag,
        sends: &[(usize, Span)],
        receives: &[(usize, Span)],
    ) -> Result<(), FabricError> {
        let own = members.iter().position(|m| *m == self.fabric.rank()).unwrap_or(0);
        let of = |all: &[(usize, Span)], peer: usize| all.iter().filter(|(p, _)| *p == peer).map(|(_, s)| *s).collect::<Vec<_>>();
        // What all get is read from the device once.
        let mut last: (Vec<Span>, Vec<u8>) = Default::default();
        // Each begins with its neighbour, so that not all send to the first one first.
        for k in 1..members.len() {
            let peer = (own + k) % members.len();
            let spans = of(sends, peer);
            if spans.is_empty() {
                continue;
            }
            if last.0 != spans {
                // SAFETY: the caller vouches for the memory.
                last = (spans.clone(), unsafe { self.message(tag, &spans) }?);
            }
            self.fabric.send(members[peer], tag.channel, &last.1)?;
        }
        for (peer, from) in members.iter().enumerate() {
            let spans = of(receives, peer);
            if !spans.is_empty() {
                // SAFETY: as above.
                unsafe { self.receive_spans(*from, tag, &spans) }?;
            }
        }
        Ok(())
    }
}
