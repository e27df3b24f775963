//! Expert parallelism: some replicas divide the experts of each layer, and send each other rows in the middle of a forward or backward. They
//! follow the same list ([`schedule::verify_members`]), so they come to the same exchanges in the same order.

use super::{Job, Program, execute::Turns, shards};
use crate::{ExecError, Peers};
use fabric::{Channel, Fabric, FabricError};
use std::{cell::Cell, collections::BTreeSet};

/// Rows of experts, among the members of a group.
const ROWS: Channel = Channel(0x4800_0000);
/// Bytes of a header: what the message is, its step, and which exchange of the step it belongs to.
const HEADER: usize = 24;

impl Job<'_> {
    /// How many ranks divide a stage's experts.
    pub fn members(&self) -> usize {
        self.programs.len()
    }
    /// What a rank runs of a stage.
    pub(super) fn program(&self, rank: usize, stage: u16) -> &Program {
        &self.programs[self.member(rank)][usize::from(stage)]
    }
    /// Ranks of a replica.
    fn replica_ranks(&self) -> usize {
        self.plan.num_ranks() / self.replicas
    }
    /// Which share of the experts a rank has.
    pub fn member(&self, rank: usize) -> usize {
        rank / self.replica_ranks() % self.members()
    }
    /// The ranks that divide experts with this one, in order of their shares.
    pub fn group(&self, rank: usize) -> Vec<usize> {
        let each = self.replica_ranks();
        let first = rank / each / self.members() * self.members();
        (first..first + self.members()).map(|replica| replica * each + rank % each).collect()
    }
    /// The first direction of the replica that has validation's rows computed by this rank; none if it has no part in that. Who divides experts
    /// with the first replica computes the same rows.
    pub(super) fn evaluates(&self, rank: usize) -> Option<u16> {
        let replica = rank / self.replica_ranks();
        let dirs = self.plan.placement.num_dirs() / self.replicas;
        (replica < self.members()).then_some((replica * dirs) as u16)
    }
    /// Whether the groups of the plan can divide experts.
    pub(super) fn check_members(&self) -> Result<(), ExecError> {
        let wrong = |name: &str, why: String| Err(ExecError::Input { name: name.into(), why });
        if self.members() == 0 || self.replicas == 0 || !self.replicas.is_multiple_of(self.members()) {
            return wrong("experts", format!("{} replicas are no groups of {}", self.replicas, self.members()));
        }
        let stages = self.plan.num_stages() as u16;
        let mixed = (0..stages).filter(|_| self.members() > 1).find_map(|s| shards::mixed(self, 0, s));
        if let Some(entry) = mixed {
            return wrong(entry, "it updates experts together with what all ranks have, so experts cannot be divided".into());
        }
        let broken = if self.members() > 1 { schedule::verify_members(self.plan, self.replicas) } else { Vec::new() };
        broken.first().map_or(Ok(()), |v| wrong(&v.action, v.to_string()))
    }
}

/// What ranks send each other for experts: offsets and rows, there and back. # Units: bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// As it is sent: a row once for each of its experts.
    pub plain: u64,
    /// If equal rows went once to a node.
    pub once: u64,
    /// What of it goes to another node.
    pub across: u64,
    /// What would, if equal rows went once.
    pub across_once: u64,
}

impl Traffic {
    /// Counts the parts that member `own` sends, of rows of `row` bytes; `nodes` are those of the members.
    fn count(&mut self, parts: &[Vec<u8>], row: usize, own: usize, nodes: &[usize]) {
        let mut seen: BTreeSet<(usize, &[u8])> = BTreeSet::new();
        for (to, part) in parts.iter().enumerate().filter(|(to, _)| *to != own) {
            let node = nodes[to];
            for row in part.chunks(if row > 0 { row } else { part.len().max(1) }) {
                let (bytes, new) = (row.len() as u64, seen.insert((node, row)));
                let over = u64::from(node != nodes[own]);
                let more = [bytes, bytes * u64::from(new), bytes * over, bytes * u64::from(new) * over];
                *self = Traffic::of(self.numbers().into_iter().zip(more).map(|(a, b)| a + b));
            }
        }
    }
    fn numbers(self) -> [u64; 4] {
        [self.plain, self.once, self.across, self.across_once]
    }
    fn of(mut numbers: impl Iterator<Item = u64>) -> Traffic {
        let mut next = || numbers.next().unwrap_or(0);
        Traffic { plain: next(), once: next(), across: next(), across_once: next() }
    }
    /// The sum over all ranks.
    pub(super) fn sum(self, f: &dyn Fabric) -> Result<Traffic, ExecError> {
        let all = fabric::collective::all_gather(f, &self.numbers().map(u64::to_le_bytes).concat())?;
        let number = |bytes: &[u8], i: usize| u64::from_le_bytes(bytes.as_chunks::<8>().0[i]);
        Ok(Traffic::of((0..4).map(|i| all.iter().map(|bytes| number(bytes, i)).sum())))
    }
}

/// A rank's way to the other members of its group.
pub(super) struct Carry<'a> {
    pub fabric: &'a dyn Fabric,
    pub members: Vec<usize>,
    /// Where all ranks compute in one order.
    pub turns: Option<&'a Turns>,
    /// Whether each message says what it is.
    pub checked: bool,
    pub step: u64,
    /// Exchanges so far.
    pub count: &'a Cell<u64>,
    /// What is sent is counted here, if that is wanted; the node of each member.
    pub traffic: Option<(&'a Cell<Traffic>, Vec<usize>)>,
}

impl Carry<'_> {
    fn header(&self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        out[..4].copy_from_slice(b"ROWS");
        out[8..16].copy_from_slice(&self.step.to_le_bytes());
        out[16..].copy_from_slice(&self.count.get().to_le_bytes());
        out
    }
}

impl Peers for Carry<'_> {
    fn rank(&self) -> usize {
        self.members.iter().position(|m| *m == self.fabric.rank()).expect("a rank is in its own group")
    }
    fn size(&self) -> usize {
        self.members.len()
    }
    fn all_to_all(&self, parts: Vec<Vec<u8>>, row: usize, lengths: &[usize]) -> Result<Vec<Vec<u8>>, ExecError> {
        let (rank, size) = (self.rank(), self.size());
        let head = if self.checked { &self.header()[..] } else { &[] };
        if let Some((traffic, nodes)) = &self.traffic {
            let mut counted = traffic.get();
            counted.count(&parts, row, rank, nodes);
            traffic.set(counted);
        }
        // Each begins with its neighbour, so that not all send to the first one first.
        for to in (1..size).map(|i| (rank + i) % size) {
            self.fabric.send(self.members[to], ROWS, &[head, &parts[to]].concat())?;
        }
        if let Some(turns) = self.turns {
            turns.pass(self.fabric.rank())?;
        }
        let mut arrived = Vec::new();
        for (from, length) in lengths.iter().enumerate() {
            if from == rank {
                arrived.push(parts[rank].clone());
                continue;
            }
            let (peer, mut bytes) = (self.members[from], vec![0; head.len() + length]);
            self.fabric.receive(peer, ROWS, &mut bytes)?;
            if bytes[..head.len()] != *head {
                let what =
                    format!("its header is {:02x?}, that of exchange {} is {head:02x?}", &bytes[..head.len()], self.count.get());
                let (rank, number) = (self.fabric.rank(), self.count.get());
                return Err(FabricError::Mismatch { rank, peer, channel: ROWS, number, what }.into());
            }
            bytes.drain(..head.len());
            arrived.push(bytes);
        }
        self.count.set(self.count.get() + 1);
        Ok(arrived)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_rows_count_once_a_node() {
        let mut t = Traffic::default();
        // Member 1 of four; 0 and 1 are on one node, 2 and 3 on another.
        let parts = ["aabb", "aacc", "aadd", "aaddaa"].map(|p| p.as_bytes().to_vec());
        t.count(&parts, 2, 1, &[0, 0, 2, 2]);
        assert_eq!(t, Traffic { plain: 14, once: 8, across: 10, across_once: 4 });
        t.count(&[vec![1; 8], Vec::new(), vec![1; 8], vec![1; 8]], 0, 1, &[0, 0, 2, 2]);
        assert_eq!(t, Traffic { plain: 38, once: 24, across: 26, across_once: 12 });
    }
}
