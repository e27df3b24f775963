//! Interpreters that run one function together, each on values of its own: what an exchange of rows is defined by.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// One of a group. All run the same function, so all come to the same exchanges in the same order.
pub trait Peers {
    /// Its number.
    fn rank(&self) -> usize;
    /// How many there are.
    fn size(&self) -> usize;
    /// What every one of them has, by its number.
    fn gather(&self, own: &[f64]) -> Vec<Vec<f64>>;
}

/// A group of one.
pub struct Alone;

impl Peers for Alone {
    fn rank(&self) -> usize {
        0
    }
    fn size(&self) -> usize {
        1
    }
    fn gather(&self, own: &[f64]) -> Vec<Vec<f64>> {
        vec![own.to_vec()]
    }
}

/// Where threads meet.
pub struct Meeting {
    size: usize,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    brought: Vec<Option<Vec<f64>>>,
    /// How many have taken what was brought.
    taken: usize,
    /// Whether one will not come again.
    ended: bool,
}

impl Meeting {
    /// A meeting of so many.
    pub fn new(size: usize) -> Meeting {
        let state = State { brought: vec![None; size], taken: 0, ended: false };
        Meeting { size, state: Mutex::new(state), changed: Condvar::new() }
    }
    /// The end of member `rank`.
    pub fn member(&self, rank: usize) -> Member<'_> {
        Member { meeting: self, rank }
    }
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread's end. Who panics, or goes while others wait for it, ends the meeting.
pub struct Member<'m> {
    meeting: &'m Meeting,
    rank: usize,
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        self.meeting.lock().ended = true;
        self.meeting.changed.notify_all();
    }
}

impl Peers for Member<'_> {
    fn rank(&self) -> usize {
        self.rank
    }
    fn size(&self) -> usize {
        self.meeting.size
    }
    fn gather(&self, own: &[f64]) -> Vec<Vec<f64>> {
        let wait = |s| self.meeting.changed.wait(s).unwrap_or_else(PoisonError::into_inner);
        let mut s = self.meeting.lock();
        // The last round is over when all have taken what was brought.
        while s.brought[self.rank].is_some() {
            s = wait(s);
        }
        s.brought[self.rank] = Some(own.to_vec());
        self.meeting.changed.notify_all();
        while s.brought.iter().any(Option::is_none) {
            assert!(!s.ended, "a member of the group is gone");
            s = wait(s);
        }
        let all = s.brought.iter().flatten().cloned().collect();
        s.taken += 1;
        if s.taken == self.meeting.size {
            (s.brought, s.taken) = (vec![None; self.meeting.size], 0);
            self.meeting.changed.notify_all();
        }
        all
    }
}
