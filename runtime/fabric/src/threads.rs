//! Ranks as threads of one process.

use crate::{Channel, Fabric, FabricError, Timeouts, mailbox::Mailbox};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

/// A thread's end.
pub struct Threads {
    rank: usize,
    boxes: Arc<Vec<Mailbox>>,
    sent: Mutex<BTreeMap<(usize, Channel), u64>>,
    timeouts: Timeouts,
}

/// The ends of `size` ranks, in order.
pub fn world(size: usize, timeouts: Timeouts) -> Vec<Threads> {
    let boxes: Arc<Vec<Mailbox>> = Arc::new((0..size).map(|_| Mailbox::default()).collect());
    (0..size).map(|rank| Threads { rank, boxes: boxes.clone(), sent: Mutex::default(), timeouts }).collect()
}

impl Fabric for Threads {
    fn rank(&self) -> usize {
        self.rank
    }
    fn size(&self) -> usize {
        self.boxes.len()
    }
    fn send(&self, to: usize, channel: Channel, bytes: &[u8]) -> Result<(), FabricError> {
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        let number = sent.entry((to, channel)).or_default();
        self.boxes[self.rank].check(self.rank, to, channel, *number)?;
        self.boxes[to].put(self.rank, channel, *number, bytes.to_vec());
        *number += 1;
        Ok(())
    }
    fn receive(&self, from: usize, channel: Channel, into: &mut [u8]) -> Result<(), FabricError> {
        self.boxes[self.rank].take(self.rank, from, channel, into, self.timeouts.message)
    }
    fn check(&self) -> Result<(), FabricError> {
        self.boxes[self.rank].check_all(self.rank)
    }
    fn abort(&self, why: &str) {
        self.boxes.iter().for_each(|b| b.abort(self.rank, why));
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // Who learnt that a rank gave up tells it on, lest others see this one go before they hear it.
        if let Some((rank, why)) = self.boxes[self.rank].aborted() {
            self.boxes.iter().for_each(|b| b.abort(rank, &why));
        }
        // What was sent is still received; then waits end.
        self.boxes.iter().for_each(|b| b.lose(self.rank));
    }
}
