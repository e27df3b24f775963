//! Rows among the members of a group that divides experts: which bytes go to whom, and where what comes belongs. Who carries them is the
//! caller's; see `library::Exchange`.

use std::ops::Range;

/// What is told or sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The offsets of each member's rows.
    Offsets,
    /// Rows, to the member that has their group.
    There,
    /// Rows, back to who sent them.
    Back,
}

/// An exchange with addresses.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// What.
    pub what: What,
    /// Offsets i32 `[groups + 1]`, or rows.
    pub from: *const u8,
    /// i32 `[members, groups + 1]`.
    pub all: *mut i32,
    /// Offsets i32 `[groups/members + 1]`, or rows.
    pub to: *mut u8,
    /// How many members.
    pub members: usize,
    /// Of all members together.
    pub groups: usize,
    /// Rows of a member before they are sent.
    pub rows: usize,
    /// Bytes of a row.
    pub row: usize,
}

// SAFETY: the pointers are only used by who carries the exchange out, whose caller keeps the memory alive.
unsafe impl Send for Exchange {}
// SAFETY: as above; an exchange is never changed while it is shared.
unsafe impl Sync for Exchange {}

impl Exchange {
    /// The parts that member `rank` sends, by who gets them; what it keeps is one of them.
    ///
    /// # Safety
    /// The memory is valid for the extents, and nothing else uses it meanwhile.
    pub unsafe fn parts(&self, rank: usize) -> Vec<Vec<u8>> {
        let members = 0..self.members;
        if self.what == What::Offsets {
            // SAFETY: the caller vouches for the memory.
            let own = unsafe { std::slice::from_raw_parts(self.from, (self.groups + 1) * 4) };
            return members.map(|_| own.to_vec()).collect();
        }
        // SAFETY: as above.
        let table = unsafe { self.table() };
        let bytes = |rows: Range<usize>| {
            // SAFETY: as above; the table stays within the rows.
            unsafe { std::slice::from_raw_parts(self.from.add(rows.start * self.row), rows.len() * self.row) }
        };
        match self.what {
            What::There => members.map(|to| bytes(table.span(rank, to)).to_vec()).collect(),
            What::Offsets | What::Back => {
                let mut parts = vec![Vec::new(); self.members];
                for (member, _, at) in table.arriving(rank) {
                    parts[member].extend_from_slice(bytes(at));
                }
                parts
            }
        }
    }
    /// How long the parts are that come to member `rank`, by who sends them. # Units: bytes.
    ///
    /// # Safety
    /// As [`Exchange::parts`].
    pub unsafe fn lengths(&self, rank: usize) -> Vec<usize> {
        let members = 0..self.members;
        if self.what == What::Offsets {
            return members.map(|_| (self.groups + 1) * 4).collect();
        }
        // SAFETY: the caller vouches for the memory.
        let table = unsafe { self.table() };
        let rows = |other: usize| match self.what {
            What::There => table.span(other, rank).len(),
            What::Offsets | What::Back => table.span(rank, other).len(),
        };
        members.map(|m| rows(m) * self.row).collect()
    }
    /// Puts what came where it belongs.
    ///
    /// # Panics
    /// If the parts are not as long as [`Exchange::lengths`] says.
    ///
    /// # Safety
    /// As [`Exchange::parts`].
    pub unsafe fn put(&self, rank: usize, parts: &[Vec<u8>]) {
        if self.what == What::Offsets {
            let width = self.groups + 1;
            // SAFETY: the caller vouches for the memory.
            let all = unsafe { std::slice::from_raw_parts_mut(self.all, self.members * width) };
            for (x, bytes) in all.iter_mut().zip(parts.iter().flat_map(|p| p.as_chunks::<4>().0)) {
                *x = i32::from_le_bytes(*bytes);
            }
            let own = self.groups / self.members;
            // SAFETY: as above.
            let (table, to) = unsafe { (self.table(), std::slice::from_raw_parts_mut(self.to.cast::<i32>(), own + 1)) };
            to.fill(0);
            for (_, group, at) in table.arriving(rank) {
                to[group + 1] = at.end as i32;
            }
            return;
        }
        // SAFETY: as above.
        let table = unsafe { self.table() };
        let rows = if self.what == What::There { self.rows * self.members } else { self.rows };
        // SAFETY: as above.
        let to = unsafe { std::slice::from_raw_parts_mut(self.to, rows * self.row) };
        let mut filled = 0;
        if self.what == What::There {
            let mut taken = vec![0; self.members];
            for (member, _, at) in table.arriving(rank) {
                let n = at.len() * self.row;
                to[at.start * self.row..at.end * self.row].copy_from_slice(&parts[member][taken[member]..taken[member] + n]);
                taken[member] += n;
                filled = at.end * self.row;
            }
        } else {
            for (holder, part) in parts.iter().enumerate() {
                let at = table.span(rank, holder);
                to[at.start * self.row..at.end * self.row].copy_from_slice(part);
                filled = at.end * self.row;
            }
        }
        to[filled..].fill(0);
    }
    /// How long `from` and `to` are. # Units: bytes.
    pub fn sizes(&self) -> [usize; 2] {
        let (apart, together) = (self.rows * self.row, self.rows * self.members * self.row);
        match self.what {
            What::Offsets => [(self.groups + 1) * 4, (self.groups / self.members + 1) * 4],
            What::There => [apart, together],
            What::Back => [together, apart],
        }
    }
    /// The table of offsets as its memory holds it. # Units: elements.
    pub fn told(&self) -> usize {
        self.members * (self.groups + 1)
    }
    /// What member `rank` sends, receives and keeps of rows, as places in the memory of `from` and `to`; `all` is the table of all members' offsets. What
    /// a member gets of another comes in the order in which that one sends it.
    ///
    /// # Panics
    /// If it is the offsets that are exchanged.
    pub fn places(&self, rank: usize, all: &[i32]) -> Places {
        let table = Table::of(self, all);
        let bytes = |rows: Range<usize>| rows.start * self.row..rows.end * self.row;
        let (mut out, mut filled) = (Places::default(), 0);
        let arriving = table.arriving(rank);
        match self.what {
            What::Offsets => base::bug!("offsets have no rows"),
            What::There => {
                for to in (0..self.members).filter(|m| *m != rank) {
                    let pieces = (0..table.own).map(|g| table.piece(rank, to * table.own + g));
                    out.sends.extend(pieces.map(|rows| (to, bytes(rows))));
                }
                for (member, group, to) in arriving {
                    filled = to.end;
                    if member == rank {
                        out.keeps.push((bytes(table.piece(rank, rank * table.own + group)), bytes(to)));
                    } else {
                        out.receives.push((member, bytes(to)));
                    }
                }
                out.rest = bytes(filled..self.rows * self.members);
            }
            What::Back => {
                for (member, group, from) in arriving {
                    if member == rank {
                        out.keeps.push((bytes(from), bytes(table.piece(rank, rank * table.own + group))));
                    } else {
                        out.sends.push((member, bytes(from)));
                    }
                }
                for holder in 0..self.members {
                    filled = table.span(rank, holder).end;
                    let pieces = (0..table.own).map(|g| table.piece(rank, holder * table.own + g));
                    out.receives.extend(pieces.filter(|_| holder != rank).map(|rows| (holder, bytes(rows))));
                }
                out.rest = bytes(filled..self.rows);
            }
        }
        out.sends.retain(|(_, range)| !range.is_empty());
        out.receives.retain(|(_, range)| !range.is_empty());
        out
    }
    /// How many rows a member has for each group of another, by the table of all members' offsets.
    pub fn pieces(&self, all: &[i32], of: usize, holder: usize) -> Vec<usize> {
        let (width, own) = (self.groups + 1, self.groups / self.members);
        let ends = self.ends(&all[of * width..][..width]);
        (holder * own..(holder + 1) * own).map(|group| ends[group + 1] - ends[group]).collect()
    }
    /// A member's offsets. What they hold is data: kept within the rows, not decreasing, and all rows of one expert after those of the one before.
    fn ends(&self, given: &[i32]) -> Vec<usize> {
        let limit = if self.what == What::Offsets { i32::MAX as usize / self.members } else { self.rows };
        let mut low = 0;
        let next = |x: &i32| {
            low = usize::try_from(*x).unwrap_or(0).clamp(low, limit);
            low
        };
        let mut ends: Vec<usize> = given.iter().map(next).collect();
        ends[0] = 0;
        ends
    }
    /// Carries it out in a group of one.
    ///
    /// # Safety
    /// As [`Exchange::parts`].
    pub unsafe fn alone(&self) {
        // SAFETY: the caller vouches for the memory.
        unsafe { self.put(0, &self.parts(0)) };
    }
    /// # Safety
    /// As [`Exchange::parts`].
    unsafe fn table(&self) -> Table {
        // SAFETY: the caller vouches for the memory.
        Table::of(self, unsafe { std::slice::from_raw_parts(self.all, self.told()) })
    }
}

/// Where rows of an exchange lie. # Units: bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// To whom, and where in `from`.
    pub sends: Vec<(usize, Range<usize>)>,
    /// From whom, and where in `to`.
    pub receives: Vec<(usize, Range<usize>)>,
    /// From where to where, without leaving.
    pub keeps: Vec<(Range<usize>, Range<usize>)>,
    /// What of `to` is zeroed.
    pub rest: Range<usize>,
}

/// The rows of every member, by group.
struct Table {
    offsets: Vec<Vec<usize>>,
    /// Groups a member.
    own: usize,
}

impl Table {
    fn of(x: &Exchange, given: &[i32]) -> Table {
        let offsets = given.chunks(x.groups + 1).map(|row| x.ends(row)).collect();
        Table { offsets, own: x.groups / x.members }
    }
    /// The rows of `member` for a group.
    fn piece(&self, member: usize, group: usize) -> Range<usize> {
        self.offsets[member][group]..self.offsets[member][group + 1]
    }
    /// The rows of `member` that `holder` has the groups of.
    fn span(&self, member: usize, holder: usize) -> Range<usize> {
        self.offsets[member][holder * self.own]..self.offsets[member][(holder + 1) * self.own]
    }
    /// What comes to `holder`: from whom, for which of its groups, and where it lies there.
    fn arriving(&self, holder: usize) -> Vec<(usize, usize, Range<usize>)> {
        let mut at = 0;
        let mut out = Vec::new();
        for group in 0..self.own {
            for (member, offsets) in self.offsets.iter().enumerate() {
                let n = offsets[holder * self.own + group + 1] - offsets[holder * self.own + group];
                out.push((member, group, at..at + n));
                at += n;
            }
        }
        out
    }
}
