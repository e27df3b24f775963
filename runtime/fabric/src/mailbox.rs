//! What has arrived at a rank and was not yet received: a queue for each peer and channel.

use crate::{Channel, FabricError};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Condvar, Mutex, MutexGuard},
    time::{Duration, Instant},
};

/// A message, with its number on its channel.
struct Message {
    number: u64,
    bytes: Vec<u8>,
}

#[derive(Default)]
struct State {
    arrived: BTreeMap<(usize, Channel), VecDeque<Message>>,
    /// The number of the next message to be received.
    next: BTreeMap<(usize, Channel), u64>,
    lost: Vec<usize>,
    aborted: Option<(usize, String)>,
}

/// A rank's mailbox.
#[derive(Default)]
pub(crate) struct Mailbox {
    state: Mutex<State>,
    changed: Condvar,
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        // What is behind the lock is whole whenever it is free.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
    /// A message has arrived.
    pub fn put(&self, from: usize, channel: Channel, number: u64, bytes: Vec<u8>) {
        self.lock().arrived.entry((from, channel)).or_default().push_back(Message { number, bytes });
        self.changed.notify_all();
    }
    /// A message of this rank to itself.
    pub fn put_own(&self, rank: usize, channel: Channel, bytes: Vec<u8>) {
        let mut state = self.lock();
        let waiting = state.arrived.get(&(rank, channel)).map_or(0, VecDeque::len) as u64;
        let number = state.next.get(&(rank, channel)).copied().unwrap_or(0) + waiting;
        state.arrived.entry((rank, channel)).or_default().push_back(Message { number, bytes });
        self.changed.notify_all();
    }
    /// Nothing more will come from `peer`.
    pub fn lose(&self, peer: usize) {
        let mut state = self.lock();
        if !state.lost.contains(&peer) {
            state.lost.push(peer);
        }
        self.changed.notify_all();
    }
    /// Rank `peer` gives up; the first word counts.
    pub fn abort(&self, peer: usize, why: &str) {
        self.lock().aborted.get_or_insert_with(|| (peer, why.to_string()));
        self.changed.notify_all();
    }
    /// Who gave up, and why.
    pub fn aborted(&self) -> Option<(usize, String)> {
        self.lock().aborted.clone()
    }
    /// The error to report to who waits for no message, if a rank is gone or gave up.
    pub fn check_all(&self, rank: usize) -> Result<(), FabricError> {
        let state = self.lock();
        if let Some((peer, why)) = &state.aborted {
            return Err(FabricError::Aborted { peer: *peer, why: why.clone() });
        }
        let lost =
            |peer: &usize| FabricError::Lost { rank, peer: *peer, action: "wait", channel: Channel::COLLECTIVE, number: 0 };
        state.lost.first().map_or(Ok(()), |peer| Err(lost(peer)))
    }
    /// The error to report for a send to `peer`, if there is one.
    pub fn check(&self, rank: usize, peer: usize, channel: Channel, number: u64) -> Result<(), FabricError> {
        let state = self.lock();
        if let Some((peer, why)) = &state.aborted {
            return Err(FabricError::Aborted { peer: *peer, why: why.clone() });
        }
        if state.lost.contains(&peer) {
            return Err(FabricError::Lost { rank, peer, action: "send", channel, number });
        }
        Ok(())
    }
    /// Waits for the next message.
    pub fn take(
        &self,
        rank: usize,
        from: usize,
        channel: Channel,
        into: &mut [u8],
        timeout: Duration,
    ) -> Result<(), FabricError> {
        let end = Instant::now() + timeout;
        let mut state = self.lock();
        let number = *state.next.entry((from, channel)).or_default();
        loop {
            if let Some(message) = state.arrived.get_mut(&(from, channel)).and_then(VecDeque::pop_front) {
                state.next.insert((from, channel), number + 1);
                let mismatch = |what| FabricError::Mismatch { rank, peer: from, channel, number, what };
                if message.number != number {
                    return Err(mismatch(format!("it has the number {}", message.number)));
                }
                if message.bytes.len() != into.len() {
                    return Err(mismatch(format!("it has {} bytes, {} are expected", message.bytes.len(), into.len())));
                }
                into.copy_from_slice(&message.bytes);
                return Ok(());
            }
            if let Some((peer, why)) = &state.aborted {
                return Err(FabricError::Aborted { peer: *peer, why: why.clone() });
            }
            if state.lost.contains(&from) {
                return Err(FabricError::Lost { rank, peer: from, action: "receive", channel, number });
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let seconds = timeout.as_secs();
                return Err(FabricError::Timeout { rank, action: "receive", peer: from, channel, number, seconds });
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
    }
}
