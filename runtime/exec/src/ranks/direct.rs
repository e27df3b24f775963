//! Rows of experts from device to device. Between nodes a row that several experts of a node read crosses once: who sends looks where the rows lie which are
//! equal, and sends the different ones to the member there that [`Ways`](super::relay::Ways) names; that one hands each its rows. Which row is which goes over the host.
//! A node for which no rows are equal is sent each row from where it lies to where it belongs, as within a node.

use super::{
    experts::{Carry, LISTS, Traffic},
    relay::Once,
    room::Room,
};
use crate::{ExecError, Peers};
use device::{Device, Exchange, Places, Rows, What, rows::room};
use fabric::{Direct, Span};
use std::{ops::Range, sync::Arc, time::Instant};

/// In place of how many rows differ: each goes as it is.
const AS_THEY_ARE: u32 = u32::MAX;

/// Memory that exchanges use.
pub(super) struct Rooms {
    /// What is told of rows.
    told: Room,
    /// Rows that go to other nodes, equal ones once.
    packed: Room,
    /// Such rows of other nodes.
    arrived: Room,
    /// What of them the others on this node get.
    handed: Room,
}

impl Rooms {
    pub fn new(device: &Arc<Device>) -> Rooms {
        let of = |what| Room::new(device.clone(), what);
        Rooms {
            told: of("places of rows"),
            packed: of("rows for other nodes"),
            arrived: of("rows of other nodes"),
            handed: of("rows for others here"),
        }
    }
    /// Of all. # Units: bytes.
    pub fn bytes(&self) -> u64 {
        [&self.told, &self.packed, &self.arrived, &self.handed].iter().map(|r| r.bytes()).sum()
    }
}

/// What another member sends to this node.
struct Coming {
    from: usize,
    /// How many rows differ.
    rows: usize,
    /// For each row of each member here which of them it is, if this rank takes them in.
    list: Option<Vec<u32>>,
}

/// Rows as numbers.
fn numbers(range: &Range<usize>, row: usize) -> Range<u32> {
    (range.start / row) as u32..(range.end / row) as u32
}

impl Carry<'_> {
    /// Carries an exchange of rows, piece by piece from where they lie.
    ///
    /// # Safety
    /// As [`Peers::carry_rows`].
    pub(super) unsafe fn carry_direct(&self, direct: &dyn Direct, device: &Device, x: &Exchange) -> Result<(), ExecError> {
        let rank = self.rank();
        // SAFETY: the caller vouches for the memory. Reading waits for the device, which is no part of the exchange.
        let told = unsafe { device.read(x.all.cast::<u8>(), x.told() * size_of::<i32>()) }?;
        let since = Instant::now();
        let told: Vec<i32> = told.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b)).collect();
        let places = x.places(rank, &told);
        let bytes = |elsewhere: bool| {
            let sent = places.sends.iter().filter(|(to, _)| !elsewhere || !self.ways.together(*to, rank));
            sent.map(|(_, r)| r.len() as u64).sum::<u64>()
        };
        let (plain, across) = (bytes(false), bytes(true));
        // What comes back differs by expert.
        let crossed = if x.what == What::There && !self.ways.is_one() {
            // SAFETY: the caller vouches for the memory.
            unsafe { self.once_a_node(direct, device, x, (&places, &told)) }?
        } else {
            let sends: Vec<_> = places.sends.iter().map(|(m, r)| (*m, given(x, r))).collect();
            let receives: Vec<_> = places.receives.iter().map(|(m, r)| (*m, made(x, r))).collect();
            // SAFETY: as above.
            unsafe { self.swap(direct, &sends, &receives) }?;
            across
        };
        if let Some(traffic) = self.traffic {
            let t = traffic.get();
            traffic.set(Traffic { plain: t.plain + plain, across: t.across + across, crossed: t.crossed + crossed, ..t });
        }
        // SAFETY: as above; the places are within the exchange's extents.
        unsafe {
            for (own, place) in &places.keeps {
                device.copy(given(x, own).at, made(x, place).at, own.len())?;
            }
            device.zero(made(x, &places.rest).at, places.rest.len())?;
        }
        self.waited.set(self.waited.get() + since.elapsed());
        Ok(())
    }

    /// Sends and receives among the members, by their places in the group.
    ///
    /// # Safety
    /// As [`Direct::swap`].
    unsafe fn swap(&self, direct: &dyn Direct, sends: &[(usize, Span)], receives: &[(usize, Span)]) -> Result<(), ExecError> {
        // SAFETY: the caller vouches for the memory.
        unsafe { direct.swap(&self.members, self.tag(), sends, receives) }?;
        self.count.set(self.count.get() + 1);
        Ok(())
    }

    /// Rows to who has their expert; those for another node once, if some are equal. What went to other nodes. # Units: bytes.
    ///
    /// # Safety
    /// As [`Peers::carry_rows`].
    unsafe fn once_a_node(
        &self,
        direct: &dyn Direct,
        device: &Device,
        x: &Exchange,
        (places, told): (&Places, &[i32]),
    ) -> Result<u64, ExecError> {
        let (rank, mut rooms) = (self.rank(), self.rooms.borrow_mut());
        let rows = |at: *mut u8, count: usize| Rows { at, bytes: x.row, count };
        let own = rows(x.from.cast_mut(), x.rows);
        let elsewhere = self.ways.elsewhere(rank);
        // SAFETY: the caller vouches for the memory.
        let once = unsafe { self.look(device, own, (&elsewhere, places), &mut rooms.told) }?;
        self.tell(&elsewhere, &once)?;
        let coming = self.hear(x, told)?;

        // Between nodes, and within them what does not come from another.
        let is_packed = |to: usize| elsewhere.iter().zip(&once).any(|(node, once)| once.is_some() && node.contains(&to));
        let is_coming = |from: usize| coming.iter().any(|c| c.from == from);
        let mut sends: Vec<_> = places.sends.iter().filter(|(to, _)| !is_packed(*to)).map(|(to, r)| (*to, given(x, r))).collect();
        let mut receives: Vec<_> =
            places.receives.iter().filter(|(from, _)| !is_coming(*from)).map(|(from, r)| (*from, made(x, r))).collect();
        let distinct: Vec<u32> = once.iter().flatten().flat_map(|o| o.rows.iter().copied()).collect();
        let packed = rooms.packed.take(distinct.len() * x.row)?.at;
        let mut at = 0;
        for (node, once) in elsewhere.iter().zip(&once).filter_map(|(node, once)| Some((node, once.as_ref()?))) {
            let bytes = once.rows.len() * x.row;
            sends.push((self.ways.relay(rank, node), Span { at: packed.wrapping_add(at), bytes }));
            at += bytes;
        }
        let taken_in: Vec<(&Coming, &[u32])> = coming.iter().filter_map(|c| Some((c, c.list.as_deref()?))).collect();
        let total: usize = taken_in.iter().map(|(c, _)| c.rows).sum();
        let arrived = rooms.arrived.take(total * x.row)?.at;
        let mut at = 0;
        for (c, _) in &taken_in {
            let bytes = c.rows * x.row;
            receives.push((c.from, Span { at: arrived.wrapping_add(at), bytes }));
            at += bytes;
        }
        let crossed = sends.iter().filter(|(to, _)| !self.ways.together(*to, rank)).map(|(_, s)| s.bytes as u64).sum();
        let pairs: Vec<[u32; 2]> = (0..).zip(&distinct).map(|(i, row)| [i, *row]).collect();
        let told_at = rooms.told.take(room(pairs.len()))?.at;
        // SAFETY: as above; the rooms are this rank's, and have the rows.
        unsafe {
            device.copy_rows(rows(packed, distinct.len()), own, &pairs, told_at)?;
            device.wait()?;
            self.swap(direct, &sends, &receives)?;
        }

        // Within the node what came from others.
        let node = self.ways.beside(rank);
        let (mut kept, mut handed, mut sends, mut first, mut next) = (Vec::new(), Vec::new(), Vec::new(), 0, 0);
        for (c, list) in &taken_in {
            let mut list = list.iter().map(|place| first + place);
            for member in &node {
                if *member == rank {
                    let places = places.receives.iter().filter(|(from, _)| *from == c.from);
                    kept.extend(places.flat_map(|(_, r)| numbers(r, x.row)).zip(&mut list).map(|(to, from)| [to, from]));
                    continue;
                }
                for n in x.pieces(told, c.from, *member).into_iter().filter(|n| *n > 0) {
                    handed.extend((next..).zip(list.by_ref().take(n)).map(|(to, from)| [to, from]));
                    sends.push((*member, next as usize * x.row..(next as usize + n) * x.row));
                    next += n as u32;
                }
            }
            first += c.rows as u32;
        }
        let mut receives: Vec<_> = places.receives.iter().filter(|(from, _)| is_coming(*from)).collect();
        // Who hands them on goes through who sent them, in order.
        receives.sort_by_key(|(from, _)| *from);
        let of = receives.into_iter().map(|(from, r)| (self.ways.relay(*from, &node), made(x, r)));
        let receives: Vec<_> = of.filter(|(from, _)| *from != rank).collect();
        let hands = rooms.handed.take(handed.len() * x.row)?.at;
        let told_at = rooms.told.take(room(kept.len().max(handed.len())))?.at;
        let sends: Vec<_> =
            sends.into_iter().map(|(to, r)| (to, Span { at: hands.wrapping_add(r.start), bytes: r.len() })).collect();
        let [arrived, hands] = [rows(arrived, total), rows(hands, handed.len())];
        // SAFETY: as above.
        unsafe {
            device.copy_rows(rows(x.to, x.rows * x.members), arrived, &kept, told_at)?;
            device.copy_rows(hands, arrived, &handed, told_at)?;
            if self.ways.are_shared() {
                device.wait()?;
                self.swap(direct, &sends, &receives)?;
            }
        }
        Ok(crossed)
    }

    /// Of the rows for each other node, which are sent and which are equal to these; none where all differ.
    ///
    /// # Safety
    /// As [`Device::marks`].
    unsafe fn look(
        &self,
        device: &Device,
        own: Rows,
        (elsewhere, places): (&[Vec<usize>], &Places),
        told: &mut Room,
    ) -> Result<Vec<Option<Once>>, ExecError> {
        let of = |node: &Vec<usize>| -> Vec<u32> {
            let sent = places.sends.iter().filter(|(to, _)| node.contains(to));
            sent.flat_map(|(_, r)| numbers(r, own.bytes)).collect()
        };
        let given: Vec<Vec<u32>> = elsewhere.iter().map(of).collect();
        let count = given.iter().flatten().max().map_or(0, |row| *row as usize + 1);
        let at = told.take(room(count))?.at;
        // SAFETY: the caller vouches for the memory.
        let marks = unsafe { device.marks(Rows { count, ..own }, at) }?;
        let once: Vec<Option<Once>> = given.iter().map(|rows| Once::new(rows, |row| marks[row as usize])).collect();
        let pairs: Vec<[u32; 2]> =
            given.iter().zip(&once).filter_map(|(rows, once)| Some(once.as_ref()?.pairs(rows))).flatten().collect();
        let at = told.take(room(pairs.len()))?.at;
        // SAFETY: as above.
        let alike = unsafe { device.are_alike(own, &pairs, at) }?;
        // That different rows have one mark does not happen, but may.
        Ok(if alike { once } else { elsewhere.iter().map(|_| None).collect() })
    }

    /// Tells the members of other nodes what comes: each how many rows differ, and who takes them in which row is which.
    fn tell(&self, elsewhere: &[Vec<usize>], once: &[Option<Once>]) -> Result<(), ExecError> {
        let head = self.head();
        for (node, once) in elsewhere.iter().zip(once) {
            let count = once.as_ref().map_or(AS_THEY_ARE, |o| o.rows.len() as u32);
            node.iter().try_for_each(|to| self.send(*to, LISTS, &head, &count.to_le_bytes()))?;
            if let Some(once) = once {
                let list: Vec<u8> = once.places.iter().flat_map(|p| p.to_le_bytes()).collect();
                self.send(self.ways.relay(self.rank(), node), LISTS, &head, &list)?;
            }
        }
        Ok(())
    }

    /// What the members of other nodes tell, of those whose rows come once.
    fn hear(&self, x: &Exchange, told: &[i32]) -> Result<Vec<Coming>, ExecError> {
        let (rank, head) = (self.rank(), self.head());
        let node = self.ways.beside(rank);
        let words = |bytes: Vec<u8>| bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect::<Vec<u32>>();
        let mut out = Vec::new();
        for from in (0..self.size()).filter(|from| !self.ways.together(*from, rank)) {
            let count = words(self.receive(from, LISTS, 4, &head)?)[0];
            if count == AS_THEY_ARE {
                continue;
            }
            let mut coming = Coming { from, rows: count as usize, list: None };
            if self.ways.relay(from, &node) == rank {
                let all: usize = node.iter().flat_map(|to| x.pieces(told, from, *to)).sum();
                let list = words(self.receive(from, LISTS, 4 * all, &head)?);
                if coming.rows > all || list.iter().any(|place| *place >= count) {
                    return Err(self.mismatch(from, LISTS, format!("places of {all} rows among {count} are damaged")));
                }
                coming.list = Some(list);
            }
            out.push(coming);
        }
        Ok(out)
    }
}

/// Where an exchange's rows lie.
fn given(x: &Exchange, r: &Range<usize>) -> Span {
    Span { at: x.from.cast_mut().wrapping_add(r.start), bytes: r.len() }
}

/// Where they belong.
fn made(x: &Exchange, r: &Range<usize>) -> Span {
    Span { at: x.to.wrapping_add(r.start), bytes: r.len() }
}

#[cfg(test)]
mod tests;
