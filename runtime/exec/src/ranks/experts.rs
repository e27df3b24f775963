//! Expert parallelism: some replicas divide the experts of each layer, and send each other rows in the middle of a forward or backward. They
//! follow the same list ([`schedule::verify_members`]), so they come to the same exchanges in the same order.

use super::{
    Job, Program,
    direct::Rooms,
    execute::Turns,
    relay::{self, Ways},
    shards,
};
use crate::{ExecError, Peers};
use device::{Device, Exchange};
use fabric::{Channel, Direct, Fabric, FabricError, Tag, direct::HEAD};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    time::{Duration, Instant},
};

/// Rows of experts, among the members of a group.
const ROWS: Channel = Channel(0x4800_0000);
/// Rows that came from another node, from who took them in.
const FORWARDED: Channel = Channel(0x4900_0000);
/// Which rows are which, of those that go to another node from device to device.
pub(super) const LISTS: Channel = Channel(0x4a00_0000);
/// A packed message that says it is longer is damaged. # Units: bytes.
const MAX_PACKED: u64 = 1 << 36;

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
    /// A row once for each of its experts: so they go inside a node.
    pub plain: u64,
    /// If equal rows went once to a node; 0 if nothing looked which are equal, as where they go from device to device.
    pub once: u64,
    /// What of it goes to another node.
    pub across: u64,
    /// What of it would, if equal rows went once.
    pub across_once: u64,
    /// Rows that did go to another node, without what says which of them are whose.
    pub crossed: u64,
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
                let more = [bytes, bytes * u64::from(new), bytes * over, bytes * u64::from(new) * over, 0];
                *self = Traffic::of(self.numbers().into_iter().zip(more).map(|(a, b)| a + b));
            }
        }
    }
    fn numbers(self) -> [u64; 5] {
        [self.plain, self.once, self.across, self.across_once, self.crossed]
    }
    fn of(mut numbers: impl Iterator<Item = u64>) -> Traffic {
        let mut next = || numbers.next().unwrap_or(0);
        Traffic { plain: next(), once: next(), across: next(), across_once: next(), crossed: next() }
    }
    /// The sum over all ranks.
    pub(super) fn sum(self, f: &dyn Fabric) -> Result<Traffic, ExecError> {
        let all = fabric::collective::all_gather(f, &self.numbers().map(u64::to_le_bytes).concat())?;
        let number = |bytes: &[u8], i: usize| u64::from_le_bytes(bytes.as_chunks::<8>().0[i]);
        Ok(Traffic::of((0..5).map(|i| all.iter().map(|bytes| number(bytes, i)).sum())))
    }
}

/// A rank's way to the other members of its group.
pub(super) struct Carry<'a> {
    pub fabric: &'a dyn Fabric,
    /// What rows go by from device to device, if something does that.
    pub direct: Option<&'a dyn Direct>,
    pub members: Vec<usize>,
    /// Where all ranks compute in one order.
    pub turns: Option<&'a Turns>,
    /// Whether each message says what it is.
    pub checked: bool,
    pub step: u64,
    /// Exchanges so far.
    pub count: &'a Cell<u64>,
    /// The node of each member.
    pub ways: Ways,
    /// How long exchanges took.
    pub waited: &'a Cell<Duration>,
    /// All that is sent over the host is counted here, without headers. # Units: bytes.
    pub sent: &'a dyn Fn(usize),
    /// What rows from device to device use.
    pub rooms: &'a RefCell<Rooms>,
    /// What is sent is counted here, if that is wanted.
    pub traffic: Option<&'a Cell<Traffic>>,
}

impl Carry<'_> {
    /// What the message is, its step, and which exchange of the step it belongs to.
    fn header(&self) -> [u8; HEAD] {
        let mut out = [0; HEAD];
        out[..4].copy_from_slice(b"ROWS");
        out[8..16].copy_from_slice(&self.step.to_le_bytes());
        out[16..].copy_from_slice(&self.count.get().to_le_bytes());
        out
    }
    /// What goes before a message over the host.
    pub(super) fn head(&self) -> Vec<u8> {
        if self.checked { self.header().to_vec() } else { Vec::new() }
    }
    /// What rows from device to device say of themselves.
    pub(super) fn tag(&self) -> Tag {
        Tag { channel: ROWS, head: self.header(), number: self.count.get() }
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
        let (rank, size, since) = (self.rank(), self.size(), Instant::now());
        let head = &self.head()[..];
        // What has no rows is the same for all, so it is one.
        let unit = if row > 0 { row } else { parts[rank].len().max(1) };
        let mut crossed = 0;
        // Each begins with its neighbour, so that not all send to the first one first.
        for to in (1..size).map(|i| (rank + i) % size).filter(|to| self.ways.together(*to, rank)) {
            self.send(to, ROWS, head, &parts[to])?;
        }
        for node in self.ways.elsewhere(rank) {
            let given: Vec<&[u8]> = node.iter().map(|m| &parts[*m][..]).collect();
            let (packed, rows) = relay::pack(&given, unit);
            let to = self.ways.relay(rank, &node);
            // Who takes it in does not know how many rows are equal.
            self.send(to, ROWS, head, &(packed.len() as u64).to_le_bytes())?;
            self.send(to, ROWS, head, &packed)?;
            crossed += rows as u64;
        }
        if let Some(traffic) = self.traffic {
            let mut counted = traffic.get();
            counted.count(&parts, row, rank, &self.ways.0);
            if self.direct.is_some() {
                // Of rows that go from device to device nobody sees which are equal.
                (counted.once, counted.across_once) = (0, 0);
            }
            traffic.set(Traffic { crossed: counted.crossed + crossed, ..counted });
        }
        self.pass()?;
        let mut arrived: Vec<Option<Vec<u8>>> = vec![None; size];
        arrived[rank] = Some(parts[rank].clone());
        if !self.ways.is_one() {
            let node = self.ways.beside(rank);
            let others = (0..size).filter(|from| !self.ways.together(*from, rank));
            for from in others.filter(|from| self.ways.relay(*from, &node) == rank) {
                for (member, part) in node.iter().zip(self.take_in(from, node.len(), unit, head)?) {
                    if *member != rank {
                        self.send(*member, FORWARDED, head, &part)?;
                        continue;
                    }
                    if part.len() != lengths[from] {
                        return Err(self.mismatch(
                            from,
                            ROWS,
                            format!("rows of {} bytes in place of {}", part.len(), lengths[from]),
                        ));
                    }
                    arrived[from] = Some(part);
                }
            }
            self.pass()?;
        }
        for (from, length) in lengths.iter().enumerate() {
            if arrived[from].is_none() {
                arrived[from] = Some(if self.ways.together(from, rank) {
                    self.receive(from, ROWS, *length, head)?
                } else {
                    self.receive(self.ways.relay(from, &self.ways.beside(rank)), FORWARDED, *length, head)?
                });
            }
        }
        self.count.set(self.count.get() + 1);
        self.waited.set(self.waited.get() + since.elapsed());
        Ok(arrived.into_iter().flatten().collect())
    }
    fn is_direct(&self) -> bool {
        self.direct.is_some()
    }
    unsafe fn carry_rows(&self, device: &Device, x: &Exchange) -> Result<(), ExecError> {
        let Some(direct) = self.direct else { base::bug!("nothing carries rows from device to device") };
        // SAFETY: the caller vouches for the memory.
        unsafe { self.carry_direct(direct, device, x) }
    }
}

impl Carry<'_> {
    /// Where all compute in one order: lets the others come as far.
    fn pass(&self) -> Result<(), ExecError> {
        self.turns.map_or(Ok(()), |turns| turns.pass(self.fabric.rank()))
    }
    pub(super) fn send(&self, member: usize, channel: Channel, head: &[u8], bytes: &[u8]) -> Result<(), ExecError> {
        (self.sent)(bytes.len());
        Ok(self.fabric.send(self.members[member], channel, &[head, bytes].concat())?)
    }
    pub(super) fn mismatch(&self, from: usize, channel: Channel, what: String) -> ExecError {
        let (rank, number) = (self.fabric.rank(), self.count.get());
        FabricError::Mismatch { rank, peer: self.members[from], channel, number, what }.into()
    }
    /// The next message of a member, after its header.
    pub(super) fn receive(&self, from: usize, channel: Channel, length: usize, head: &[u8]) -> Result<Vec<u8>, ExecError> {
        let mut bytes = vec![0; head.len() + length];
        self.fabric.receive(self.members[from], channel, &mut bytes)?;
        if bytes[..head.len()] != *head {
            let what =
                format!("its header is {:02x?}, that of exchange {} is {head:02x?}", &bytes[..head.len()], self.count.get());
            return Err(self.mismatch(from, channel, what));
        }
        bytes.drain(..head.len());
        Ok(bytes)
    }
    /// What a member of another node sends to the members of this one.
    fn take_in(&self, from: usize, members: usize, unit: usize, head: &[u8]) -> Result<Vec<Vec<u8>>, ExecError> {
        let length = self.receive(from, ROWS, size_of::<u64>(), head)?;
        let length = length.as_chunks::<8>().0.first().map_or(0, |b| u64::from_le_bytes(*b));
        let damaged = || self.mismatch(from, ROWS, format!("packed rows of {length} bytes for {members} members are damaged"));
        if length > MAX_PACKED {
            return Err(damaged());
        }
        let packed = self.receive(from, ROWS, length as usize, head)?;
        relay::unpack(&packed, members, unit).ok_or_else(damaged)
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
        assert_eq!(t, Traffic { plain: 14, once: 8, across: 10, across_once: 4, crossed: 0 });
        t.count(&[vec![1; 8], Vec::new(), vec![1; 8], vec![1; 8]], 0, 1, &[0, 0, 2, 2]);
        assert_eq!(t, Traffic { plain: 38, once: 24, across: 26, across_once: 12, crossed: 0 });
    }
}
