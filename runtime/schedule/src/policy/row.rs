//! Writes one rank's list: counts micro-batches up and keeps the queue of weight gradients.

use crate::{Action, Unit};
use std::collections::VecDeque;

/// A list under way. Chunks are the stages of the rank, in the order the policy speaks of them; forwards and backwards of each count up
/// from micro-batch 0, separately.
pub struct Row {
    chunks: Vec<(u16, u16)>,
    forwards: Vec<u32>,
    backwards: Vec<u32>,
    queue: VecDeque<Unit>,
    /// What was written.
    pub actions: Vec<Action>,
}

impl Row {
    /// Of a rank that runs these (direction, stage).
    pub fn new(chunks: &[(u16, u16)]) -> Row {
        let zeros = vec![0; chunks.len()];
        Row { chunks: chunks.to_vec(), forwards: zeros.clone(), backwards: zeros, queue: VecDeque::new(), actions: Vec::new() }
    }

    fn next_forward(&mut self, chunk: usize) -> Unit {
        let ((dir, stage), micro) = (self.chunks[chunk], self.forwards[chunk]);
        self.forwards[chunk] += 1;
        Unit { dir, stage, micro }
    }

    fn next_backward(&mut self, chunk: usize) -> Unit {
        let ((dir, stage), micro) = (self.chunks[chunk], self.backwards[chunk]);
        self.backwards[chunk] += 1;
        Unit { dir, stage, micro }
    }

    /// The next forward of a chunk.
    pub fn f(&mut self, chunk: usize) {
        let unit = self.next_forward(chunk);
        self.actions.push(Action::Forward(unit));
    }

    /// The next backward of a chunk, whole.
    pub fn b(&mut self, chunk: usize) {
        let unit = self.next_backward(chunk);
        self.actions.push(Action::Backward(unit));
    }

    /// The next backward of a chunk without its weight gradients, which are queued.
    pub fn i(&mut self, chunk: usize) {
        let unit = self.next_backward(chunk);
        self.queue.push_back(unit);
        self.actions.push(Action::BackwardInput(unit));
    }

    /// The oldest weight gradients of the queue.
    pub fn w(&mut self) {
        let unit = self.queue.pop_front().expect("the policy queued one");
        self.actions.push(Action::BackwardWeight(unit));
    }

    /// The oldest weight gradients of one chunk.
    pub fn w_of(&mut self, chunk: usize) {
        let at = self.queue.iter().position(|u| (u.dir, u.stage) == self.chunks[chunk]);
        let unit = at.and_then(|at| self.queue.remove(at)).expect("the policy queued one");
        self.actions.push(Action::BackwardWeight(unit));
    }

    /// The next forward of one chunk and the next backward of the other, overlapped.
    pub fn pair(&mut self, forward: usize, backward: usize) {
        let (forward, backward) = (self.next_forward(forward), self.next_backward(backward));
        self.actions.push(Action::Pair { forward, backward });
    }
}
