//! Interpreters that run one function together, each on values of its own: what an exchange of rows is defined by.

use std::sync::{Condvar, Mutex, PoisonError};

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
    /// What was brought, how many have taken it.
    state: Mutex<(Vec<Option<Vec<f64>>>, usize)>,
    changed: Condvar,
}

impl Meeting {
    /// A meeting of so many.
    pub fn new(size: usize) -> Meeting {
        Meeting { size, state: Mutex::new((vec![None; size], 0)), changed: Condvar::new() }
    }
    /// The end of member `rank`.
    pub fn member(&self, rank: usize) -> Member<'_> {
        Member { meeting: self, rank }
    }
}

/// A thread's end.
pub struct Member<'m> {
    meeting: &'m Meeting,
    rank: usize,
}

impl Peers for Member<'_> {
    fn rank(&self) -> usize {
        self.rank
    }
    fn size(&self) -> usize {
        self.meeting.size
    }
    fn gather(&self, own: &[f64]) -> Vec<Vec<f64>> {
        let Meeting { size, state, changed } = self.meeting;
        let wait = |s| changed.wait(s).unwrap_or_else(PoisonError::into_inner);
        let mut s = state.lock().unwrap_or_else(PoisonError::into_inner);
        // The last round is over when all have taken what was brought.
        while s.0[self.rank].is_some() {
            s = wait(s);
        }
        s.0[self.rank] = Some(own.to_vec());
        changed.notify_all();
        while s.0.iter().any(Option::is_none) {
            s = wait(s);
        }
        let all = s.0.iter().flatten().cloned().collect();
        s.1 += 1;
        if s.1 == *size {
            *s = (vec![None; *size], 0);
            changed.notify_all();
        }
        all
    }
}
