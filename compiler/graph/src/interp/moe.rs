//! Rows among the members of a group: each looks at what all of them have.

use super::{Tensor, peers::Peers};
use std::ops::Range;

/// The rows that members have of each expert.
struct Rows<'t> {
    all: &'t Tensor,
    /// Experts a member.
    own: usize,
}

impl Rows<'_> {
    fn new<'t>(peers: &dyn Peers, all: &'t Tensor) -> Rows<'t> {
        Rows { all, own: (all.shape[1] as usize - 1) / peers.size() }
    }
    /// Those of `member` for expert `expert`.
    fn of(&self, member: usize, expert: usize) -> Range<usize> {
        let at = |i: usize| self.all.data[member * self.all.shape[1] as usize + i].max(0.0) as usize;
        at(expert)..at(expert + 1)
    }
    /// What comes to `to`, in order: from whom, and which rows there.
    fn arriving(&self, to: usize, size: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
        let experts = to * self.own..(to + 1) * self.own;
        experts.flat_map(move |e| (0..size).map(move |from| (from, e))).map(|(from, e)| (from, self.of(from, e)))
    }
}

/// All offsets, and those of the rows that this member gets.
pub(super) fn offsets(peers: &dyn Peers, offsets: &Tensor) -> Vec<Vec<f64>> {
    let (size, n) = (peers.size(), offsets.data.len());
    let all = Tensor { dtype: offsets.dtype, shape: vec![size as i64, n as i64], data: peers.gather(&offsets.data).concat() };
    let rows = Rows::new(peers, &all);
    let mut own = vec![0.0];
    let arriving: Vec<usize> = rows.arriving(peers.rank(), size).map(|(_, r)| r.len()).collect();
    for of_expert in arriving.chunks(size) {
        own.push(own[own.len() - 1] + of_expert.iter().sum::<usize>() as f64);
    }
    vec![all.data, own]
}

/// The rows of this member's experts; none if there are more than fit: other members have more rows than this one.
pub(super) fn there(peers: &dyn Peers, x: &Tensor, all: &Tensor, len: usize) -> Option<Vec<f64>> {
    let (width, given) = (x.shape[1] as usize, peers.gather(&x.data));
    let rows = Rows::new(peers, all);
    let mut out = vec![0.0; len * width];
    let mut at = 0;
    for (from, range) in rows.arriving(peers.rank(), peers.size()) {
        let n = range.len() * width;
        out.get_mut(at..at + n)?.copy_from_slice(&given[from][range.start * width..range.end * width]);
        at += n;
    }
    Some(out)
}

/// The rows that this member sent, from where they are now.
pub(super) fn back(peers: &dyn Peers, y: &Tensor, all: &Tensor, len: usize) -> Vec<f64> {
    let (width, given) = (y.shape[1] as usize, peers.gather(&y.data));
    let rows = Rows::new(peers, all);
    let mut out = vec![0.0; len * width];
    for (holder, held) in given.iter().enumerate() {
        let mut at = 0;
        for (from, range) in rows.arriving(holder, peers.size()) {
            let n = range.len() * width;
            if from == peers.rank() {
                out[range.start * width..range.end * width].copy_from_slice(&held[at..at + n]);
            }
            at += n;
        }
    }
    out
}
