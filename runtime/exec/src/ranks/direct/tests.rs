//! Exchanges of rows from device to device, on the host's memory: against what goes over the host, and what ends badly.

use super::*;
use crate::{ranks::relay::Ways, testing::bare_host};
use fabric::{Fabric, FabricError, Staged, Tag, Timeouts, threads};
use std::{
    cell::{Cell, RefCell},
    sync::Barrier,
    time::Duration,
};

const MEMBERS: usize = 4;
const GROUPS: usize = 8;
/// Rows of a member.
const ROWS: usize = 12;

/// What a member is told to do.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// It is gone at its exchange of this number.
    Gone(usize),
    /// It does nothing from there on.
    Stalls(usize),
}

/// Swaps over the host's fabric until the fault.
struct Faulty<'a> {
    staged: Staged<'a>,
    fault: Fault,
    swaps: Cell<usize>,
}

impl Direct for Faulty<'_> {
    unsafe fn send_spans(&self, _: usize, _: Tag, _: &[Span]) -> Result<(), FabricError> {
        unreachable!("rows are swapped")
    }
    unsafe fn receive_spans(&self, _: usize, _: Tag, _: &[Span]) -> Result<(), FabricError> {
        unreachable!("rows are swapped")
    }
    fn is_sent(&self, _: usize) -> Result<bool, FabricError> {
        Ok(true)
    }
    fn flush(&self) -> Result<(), FabricError> {
        Ok(())
    }
    fn stop(&self, _: &str) {}
    unsafe fn swap(
        &self,
        members: &[usize],
        tag: Tag,
        sends: &[(usize, Span)],
        receives: &[(usize, Span)],
    ) -> Result<(), FabricError> {
        let at = self.swaps.replace(self.swaps.get() + 1);
        if matches!(self.fault, Fault::Gone(n) | Fault::Stalls(n) if n == at) {
            return Err(FabricError::Device { rank: self.staged.fabric.rank(), why: "a test's".into() });
        }
        // SAFETY: as the caller says.
        unsafe { self.staged.swap(members, tag, sends, receives) }
    }
}

/// Rows of each member, and all offsets.
struct Given {
    all: Vec<i32>,
    from: Vec<Vec<u8>>,
    what: What,
    row: usize,
}

impl Given {
    /// Rows of few kinds, so that many are equal.
    fn new(seed: u64, what: What, row: usize) -> Given {
        let mut state = seed;
        let mut next = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % n
        };
        let mut all = Vec::new();
        for _ in 0..MEMBERS {
            let mut ends: Vec<i32> = (0..GROUPS).map(|_| next(ROWS as u64 + 1) as i32).collect();
            ends.sort_unstable();
            all.push(0);
            all.extend(ends);
        }
        let given = if what == What::There { ROWS } else { ROWS * MEMBERS };
        // The last byte makes them differ, so that all of a row is looked at.
        let mut kinds = || vec![7; row - 1].into_iter().chain([next(5) as u8]).collect::<Vec<u8>>();
        let from = (0..MEMBERS).map(|_| (0..given).flat_map(|_| kinds()).collect()).collect();
        Given { all, from, what, row }
    }
    fn exchange(&self, from: &[u8], all: &mut [i32], to: &mut [u8]) -> Exchange {
        let (from, all, to) = (from.as_ptr(), all.as_mut_ptr(), to.as_mut_ptr());
        Exchange { what: self.what, from, all, to, members: MEMBERS, groups: GROUPS, rows: ROWS, row: self.row }
    }
    fn made(&self) -> Vec<u8> {
        vec![0xee; if self.what == What::There { ROWS * MEMBERS * self.row } else { ROWS * self.row }]
    }
    /// What arrives over the host.
    fn expected(&self) -> Vec<Vec<u8>> {
        let mut to = vec![self.made(); MEMBERS];
        let mut all = self.all.clone();
        let exchanges: Vec<Exchange> =
            to.iter_mut().zip(&self.from).map(|(to, from)| self.exchange(from, &mut all, to)).collect();
        // SAFETY: the arrays have the exchange's extents.
        unsafe {
            let parts: Vec<_> = exchanges.iter().enumerate().map(|(m, x)| x.parts(m)).collect();
            for (m, x) in exchanges.iter().enumerate() {
                x.put(m, &parts.iter().map(|p| p[m].clone()).collect::<Vec<_>>());
            }
        }
        to
    }
    /// What each member has at the end, and what it sent to other nodes.
    fn carry(&self, ways: &Ways, faults: [Fault; MEMBERS]) -> Vec<Result<(Vec<u8>, Traffic), ExecError>> {
        let patience = Duration::from_millis(if faults == [Fault::None; MEMBERS] { 20_000 } else { 300 });
        let timeouts = Timeouts { start: patience, message: patience };
        let over = Barrier::new(faults.iter().filter(|f| !matches!(f, Fault::Gone(_))).count());
        let one = |f: threads::Threads| {
            let (rank, device) = (f.rank(), Arc::new(bare_host()));
            let (waited, count, traffic) = (Cell::default(), Cell::new(0), Cell::default());
            let rooms = RefCell::new(Rooms::new(&device));
            let faulty = Faulty {
                staged: Staged { fabric: &f, device: device.clone(), checked: true },
                fault: faults[rank],
                swaps: Cell::new(0),
            };
            let carry = Carry {
                fabric: &f,
                direct: Some(&faulty),
                members: (0..MEMBERS).collect(),
                turns: None,
                checked: true,
                step: 3,
                count: &count,
                ways: ways.clone(),
                waited: &waited,
                sent: &|_| {},
                rooms: &rooms,
                traffic: Some(&traffic),
            };
            let (mut all, mut to) = (self.all.clone(), self.made());
            let x = self.exchange(&self.from[rank], &mut all, &mut to);
            // SAFETY: the arrays have the exchange's extents.
            let done = unsafe { carry.carry_rows(&device, &x) };
            // Who stalls is there until the others gave up.
            if !matches!(faults[rank], Fault::Gone(_)) {
                over.wait();
            }
            done.map(|()| (to, traffic.get()))
        };
        std::thread::scope(|s| {
            let one = &one;
            let ranks: Vec<_> = threads::world(MEMBERS, timeouts).into_iter().map(|f| s.spawn(move || one(f))).collect();
            ranks.into_iter().map(|r| r.join().expect("no rank panics")).collect()
        })
    }
}

/// Whoever shares a node, rows come to where they would over the host; those that are equal cross once.
#[test]
fn rows_arrive_as_over_the_host_whoever_shares_a_node() {
    let all_ways = [[0, 0, 0, 0], [0, 0, 2, 2], [0, 1, 0, 1], [0, 1, 1, 0], [0, 0, 0, 3], [0, 1, 2, 3], [0, 0, 2, 3]];
    let (mut fewer, mut same) = (0, 0);
    for seed in 0..12 {
        for what in [What::There, What::Back] {
            // Rows of words, and of an odd number of bytes.
            let given = Given::new(seed, what, if seed % 2 == 0 { 8 } else { 3 });
            let want = given.expected();
            for ways in all_ways {
                let got = given.carry(&Ways(ways.to_vec()), [Fault::None; MEMBERS]);
                for (rank, (got, want)) in got.into_iter().zip(&want).enumerate() {
                    let (got, sent) = got.expect("it arrives");
                    assert!(got == *want, "seed {seed}, {what:?}, nodes {ways:?}, rank {rank}");
                    assert!(sent.crossed <= sent.across && (what == What::There || sent.crossed == sent.across));
                    (fewer, same) =
                        (fewer + usize::from(sent.crossed < sent.across), same + usize::from(sent.crossed == sent.across));
                }
            }
        }
    }
    assert!(fewer > 100 && same > 100, "{fewer} {same}");
}

/// A member that is gone or stalls, before rows cross or when it has them to hand on, ends all others in time, which say who it was.
#[test]
fn a_member_that_takes_rows_in_and_fails_ends_all() {
    let given = Given::new(1, What::There, 8);
    let ways = Ways(vec![0, 0, 2, 2]);
    for fault in [Fault::Gone(0), Fault::Gone(1), Fault::Stalls(0), Fault::Stalls(1)] {
        let mut faults = [Fault::None; MEMBERS];
        faults[3] = fault;
        let ended = given.carry(&ways, faults);
        let stalls = matches!(fault, Fault::Stalls(_));
        let mut named = 0;
        for (rank, done) in ended.into_iter().enumerate().take(3) {
            // Once it has what crosses, only who shares its node needs it.
            let Err(e) = done else {
                assert!(rank < 2 && matches!(fault, Fault::Gone(1) | Fault::Stalls(1)), "rank {rank} has its rows");
                continue;
            };
            let text = e.to_string();
            named += usize::from(match e.fabric() {
                Some(FabricError::Timeout { peer, .. }) => *peer == 3 && stalls,
                Some(FabricError::Lost { peer, .. }) => *peer == 3 && !stalls,
                Some(FabricError::Aborted { .. }) => false,
                _ => panic!("rank {rank}: {text}"),
            });
        }
        assert!(named > 0, "none says who it was");
    }
}

/// What is told of rows is checked before it is used.
#[test]
fn damaged_places_are_refused() {
    let given = Given::new(1, What::There, 8);
    let (timeouts, ways) = (Timeouts::default(), Ways(vec![0, 1, 2, 3]));
    let told = |count: u32, list: Option<u32>| {
        let mut world = threads::world(MEMBERS, timeouts);
        let device = Arc::new(bare_host());
        let (waited, exchanges, rooms) = (Cell::default(), Cell::new(5), RefCell::new(Rooms::new(&device)));
        let carry = |f| Carry {
            fabric: f,
            direct: None,
            members: (0..MEMBERS).collect(),
            turns: None,
            checked: true,
            step: 3,
            count: &exchanges,
            ways: ways.clone(),
            waited: &waited,
            sent: &|_| {},
            rooms: &rooms,
            traffic: None,
        };
        let (mut all, mut to) = (given.all.clone(), given.made());
        let x = given.exchange(&given.from[0], &mut all, &mut to);
        let others = world.split_off(1);
        for other in &others {
            let sender = carry(other as &dyn Fabric);
            let is_first = other.rank() == 1;
            let count = if is_first { count } else { AS_THEY_ARE };
            sender.send(0, LISTS, &sender.head(), &count.to_le_bytes()).expect("it is there");
            if let Some(place) = list.filter(|_| is_first) {
                let rows: usize = x.pieces(&given.all, 1, 0).iter().sum();
                assert!(rows > 1, "there is something to damage");
                let list: Vec<u8> = (0..rows).flat_map(|i| if i == 1 { place } else { 0 }.to_le_bytes()).collect();
                sender.send(0, LISTS, &sender.head(), &list).expect("it is there");
            }
        }
        carry(&world[0]).hear(&x, &given.all).map(|coming| coming.len())
    };
    assert_eq!(told(AS_THEY_ARE, None).expect("nothing is packed"), 0);
    assert_eq!(told(1, Some(0)).expect("all are equal"), 1);
    for (count, place) in [(1, 1), (2, u32::MAX), (1 << 20, 0)] {
        let refused = told(count, Some(place)).expect_err("there are not as many rows");
        let Some(FabricError::Mismatch { rank: 0, peer: 1, channel, number: 5, .. }) = refused.fabric() else {
            panic!("{refused}")
        };
        assert_eq!(*channel, LISTS);
    }
}
