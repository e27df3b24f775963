//! The books of NCCL's communicators, with a library of our own in NCCL's place: what is called in which order, and how failures end.

use super::*;
use crate::threads;
use base::DType;
use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Arc, Mutex},
};

/// What a call of some rank is to do in place of its work.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    /// Nothing, for ever.
    Stall,
    /// Fail, after it was taken.
    Late,
    /// Be refused.
    Refuse,
}

#[derive(Default)]
struct World {
    /// Messages under way, by communicator, from whom to whom in it.
    wires: BTreeMap<(u64, usize, usize), VecDeque<Vec<u8>>>,
    next_id: u64,
    /// How many ranks have started a communicator.
    met: BTreeMap<u64, usize>,
}

/// Device memory of a rank is a vector; address 16 is its first byte. Each state is `Working` once before it is `Ready`.
struct Fake {
    world: Arc<Mutex<World>>,
    memory: RefCell<Vec<u8>>,
    log: Arc<Mutex<Vec<String>>>,
    /// The communicator's number among those of this rank, its call's number, and what goes wrong there.
    fault: Option<(usize, usize, Fault)>,
    started: Cell<usize>,
}

struct FakeComm {
    number: usize,
    id: u64,
    size: usize,
    rank: usize,
    calls: Cell<usize>,
    works: Cell<bool>,
    pending: RefCell<VecDeque<Operation>>,
    broken: Cell<Option<Fault>>,
}

const BASE: u64 = 16;

impl Fake {
    fn note(&self, text: String) {
        self.log.lock().expect("no panic").push(text);
    }
    fn bytes(&self, at: u64, op: &Operation) -> std::ops::Range<usize> {
        let start = (at - BASE) as usize;
        start..start + op.elems * op.dtype.bytes()
    }
    /// Does what can be done of a communicator's calls.
    fn progress(&self, c: &FakeComm) {
        let mut world = self.world.lock().expect("no panic");
        let mut memory = self.memory.borrow_mut();
        let mut pending = c.pending.borrow_mut();
        while let Some(op) = pending.front().copied() {
            match op.call {
                Call::Send { peer } => {
                    let bytes = memory[self.bytes(op.from, &op)].to_vec();
                    world.wires.entry((c.id, c.rank, peer)).or_default().push_back(bytes);
                }
                Call::Receive { peer } => {
                    let Some(bytes) = world.wires.get_mut(&(c.id, peer, c.rank)).and_then(VecDeque::pop_front) else { return };
                    memory[self.bytes(op.to, &op)].copy_from_slice(&bytes);
                }
                // Of one rank: what leaves arrives.
                Call::Broadcast { .. } | Call::AllReduce | Call::ReduceScatter | Call::AllGather => {
                    let bytes = memory[self.bytes(op.from, &op)].to_vec();
                    memory[self.bytes(op.to, &op)].copy_from_slice(&bytes);
                }
            }
            pending.pop_front();
        }
    }
}

impl Engine for Fake {
    type Comm = FakeComm;
    fn id(&self) -> Result<Id, String> {
        let mut world = self.world.lock().expect("no panic");
        world.next_id += 1;
        let mut id = [0; 128];
        id[..8].copy_from_slice(&world.next_id.to_le_bytes());
        Ok(id)
    }
    fn start(&self, size: usize, rank: usize, id: &Id) -> Result<FakeComm, String> {
        let id = u64::from_le_bytes(id[..8].try_into().expect("eight"));
        *self.world.lock().expect("no panic").met.entry(id).or_default() += 1;
        let number = self.started.get();
        self.started.set(number + 1);
        self.note(format!("start {rank} of {size}"));
        let (calls, works, pending, broken) = (Cell::new(0), Cell::new(true), RefCell::default(), Cell::new(None));
        Ok(FakeComm { number, id, size, rank, calls, works, pending, broken })
    }
    fn state(&self, c: &FakeComm) -> State {
        if c.broken.get() == Some(Fault::Late) && !c.works.get() {
            return State::Failed("a peer is gone (ncclRemoteError)".into());
        }
        let all = self.world.lock().expect("no panic").met[&c.id] >= c.size;
        if c.works.replace(!all) || !all { State::Working } else { State::Ready }
    }
    fn begin(&self) -> State {
        self.note("group".into());
        State::Ready
    }
    fn end(&self) -> State {
        self.note("end".into());
        State::Working
    }
    unsafe fn enqueue(&self, c: &FakeComm, op: &Operation) -> State {
        let call = c.calls.get();
        c.calls.set(call + 1);
        self.note(format!("{}/{} {:?} {}", c.number, c.rank, op.call, op.elems));
        c.works.set(true);
        if let Some((_, _, fault)) = self.fault.filter(|(comm, at, _)| (*comm, *at) == (c.number, call)) {
            c.broken.set(Some(fault));
            return if fault == Fault::Refuse { State::Failed("it makes no sense".into()) } else { State::Working };
        }
        c.pending.borrow_mut().push_back(*op);
        // A stream goes on by itself.
        self.progress(c);
        State::Working
    }
    fn is_idle(&self, c: &FakeComm) -> Result<bool, String> {
        if c.broken.get().is_some() {
            return Ok(false);
        }
        self.progress(c);
        Ok(c.pending.borrow().is_empty())
    }
    unsafe fn abort(&self, comms: &[&FakeComm]) {
        comms.iter().for_each(|c| self.note(format!("abort {}", c.number)));
    }
    fn finalize(&self, c: &FakeComm) -> State {
        c.works.set(true);
        self.note(format!("finalize {}", c.number));
        State::Working
    }
    unsafe fn destroy(&self, c: &FakeComm) {
        self.note(format!("destroy {}", c.number));
    }
}

const PATIENT: Timeouts = Timeouts { start: Duration::from_secs(20), message: Duration::from_secs(20) };
const SHORT: Timeouts = Timeouts { start: Duration::from_secs(20), message: Duration::from_millis(50) };

type Log = Vec<String>;

/// Runs a program on each of `size` ranks of a chain; what each noted.
fn chain<R: Send>(
    size: usize,
    timeouts: Timeouts,
    fault: Option<(usize, (usize, usize, Fault))>,
    program: impl Fn(Links<'_, Fake>) -> R + Sync,
) -> Vec<(Result<R, FabricError>, Log)> {
    chain_with(size, &[], timeouts, fault, program)
}

/// The same, with sets of ranks beside.
fn chain_with<R: Send>(
    size: usize,
    sets: &[Vec<usize>],
    timeouts: Timeouts,
    fault: Option<(usize, (usize, usize, Fault))>,
    program: impl Fn(Links<'_, Fake>) -> R + Sync,
) -> Vec<(Result<R, FabricError>, Log)> {
    let world = Arc::new(Mutex::new(World::default()));
    let flows: Vec<Flow> = (1..size).flat_map(|r| [(r, r - 1), (r - 1, r)]).collect();
    std::thread::scope(|s| {
        let (flows, program) = (&flows, &program);
        let ranks: Vec<_> = threads::world(size, PATIENT)
            .into_iter()
            .enumerate()
            .map(|(rank, store)| {
                let world = world.clone();
                s.spawn(move || {
                    let log = Arc::new(Mutex::new(Vec::new()));
                    let memory = RefCell::new((0..64).map(|i| (rank * 64 + i) as u8).collect());
                    let fault = fault.filter(|(r, _)| *r == rank).map(|(_, f)| f);
                    let fake = Fake { world, memory, log: log.clone(), fault, started: Cell::new(0) };
                    // SAFETY: the fake's addresses are of its own vector, with room for that.
                    let links = unsafe { Links::connect(fake, &store, (flows, sets), BASE, timeouts) };
                    let done = links.map(program);
                    let log = log.lock().expect("no panic").clone();
                    (done, log)
                })
            })
            .collect();
        ranks.into_iter().map(|r| r.join().expect("no rank panics")).collect()
    })
}

#[test]
fn communicators_are_made_and_warmed_in_one_order() {
    let ranks = chain(3, PATIENT, None, |links| {
        assert_eq!(links.num_comms(), if links.rank == 1 { 5 } else { 3 });
        links.finish()
    });
    let logs: Vec<&Log> =
        ranks.iter().map(|(done, log)| done.as_ref().expect("they meet").as_ref().map(|()| log).expect("they end")).collect();
    // An interior rank has a communicator for each edge and flow, and one of all; each is used once.
    assert_eq!(
        logs[1].join("\n"),
        "start 1 of 2\nstart 0 of 2\nstart 0 of 2\nstart 1 of 2\nstart 1 of 3\n\
         0/1 Receive { peer: 0 } 1\n1/0 Send { peer: 1 } 1\n2/0 Send { peer: 1 } 1\n3/1 Receive { peer: 0 } 1\n4/1 AllReduce 1\n\
         finalize 0\nfinalize 1\nfinalize 2\nfinalize 3\nfinalize 4\ndestroy 0\ndestroy 1\ndestroy 2\ndestroy 3\ndestroy 4"
    );
    let edge = "start 0 of 2\nstart 1 of 2\nstart 0 of 3\n0/0 Send { peer: 1 } 1\n1/1 Receive { peer: 0 } 1\n2/0 AllReduce 1\n\
                finalize 0\nfinalize 1\nfinalize 2\ndestroy 0\ndestroy 1\ndestroy 2";
    assert_eq!(logs[0].join("\n"), edge);
}

#[test]
fn flows_keep_their_order_and_do_not_mix() {
    let ranks = chain(2, PATIENT, None, |links| {
        let (me, other) = (links.rank, 1 - links.rank);
        // SAFETY: 64 bytes are there.
        unsafe {
            links.send(other, BASE + 16, 2, DType::I32).expect("sent");
            links.send(other, BASE + 24, 2, DType::I32).expect("sent");
            links.receive(other, BASE + 40, 2, DType::I32).expect("posted");
            links.receive(other, BASE + 48, 2, DType::I32).expect("posted");
        }
        links.wait((other, me)).expect("arrived");
        links.wait((me, other)).expect("left");
        let memory = links.engine.memory.borrow().clone();
        memory[40..56].to_vec()
    });
    for (rank, (done, _)) in ranks.into_iter().enumerate() {
        // The first twelve bytes were scratch memory.
        let first = ((1 - rank) * 64) as u8 + 16;
        assert_eq!(done.expect("they meet"), (first..first + 16).collect::<Vec<u8>>());
    }
}

fn tag(channel: u32, head: u8) -> Tag {
    Tag { channel: Channel(channel), head: [head; HEAD], number: 7 }
}

fn span(offset: u64, bytes: usize) -> Span {
    Span { at: (BASE + offset) as *mut u8, bytes }
}

#[test]
fn sets_swap_in_their_own_order_and_messages_are_announced() {
    // The members' order is not that of ranks; rank 1 is in neither.
    let sets = [vec![2, 0], vec![2, 0], vec![1]];
    let ranks = chain_with(3, &sets, PATIENT, None, |links| {
        assert_eq!(links.num_comms(), [4, 5, 4][links.rank]);
        // In good order: who just goes ends the others.
        if links.rank == 1 {
            links.finish().expect("all end");
            return Vec::new();
        }
        let peer = usize::from(links.rank == 2);
        // Two pieces each way, the second of another length; nothing is empty for NCCL.
        let (sends, receives) = ([(peer, span(20, 2)), (peer, span(24, 3))], [(peer, span(40, 2)), (peer, span(42, 3))]);
        // SAFETY: 64 bytes are there.
        unsafe { links.swap(&[2, 0], tag(9, 1), &sends, &receives) }.expect("both swap");
        let got = links.engine.memory.borrow()[40..45].to_vec();
        links.finish().expect("all end");
        got
    });
    let got: Vec<Vec<u8>> = ranks.iter().map(|(done, _)| done.as_ref().expect("they meet").clone()).collect();
    let of = |rank: u8| [20, 21, 24, 25, 26].map(|i| rank * 64 + i).to_vec();
    assert_eq!(got, [of(2), Vec::new(), of(0)]);
    // A set is warmed once, and swaps in one group, sends first.
    let log = ranks[0].1.join("\n");
    let group = |n: [usize; 2]| n.map(|n| format!("2/1 Send {{ peer: 0 }} {n}")).join("\n");
    assert!(log.contains(&format!("group\n{}\n2/1 Receive", group([2, 3]))), "{log}");

    // A set of one has no communicator, and nothing to swap.
    let ranks = chain_with(1, &[vec![0]], PATIENT, None, |links| {
        assert_eq!(links.num_comms(), 1);
        // SAFETY: nothing is sent.
        unsafe { links.swap(&[0], tag(9, 1), &[], &[]) }.expect("there is nothing to do");
        links.finish()
    });
    ranks[0].0.as_ref().expect("it starts").as_ref().expect("it ends");

    let ranks = chain(2, PATIENT, None, |links| {
        // SAFETY: 64 bytes are there.
        let run = |links: &Links<Fake>| unsafe {
            if links.rank == 0 {
                links.send_spans(1, tag(3, 1), &[span(16, 4), span(30, 0), span(24, 4)])?;
                links.flush()?;
                assert!(links.is_sent(1)?);
                links.send_spans(1, tag(3, 2), &[span(16, 4)])?;
                return links.store.receive(1, Channel(4), &mut [0]);
            }
            links.receive_spans(0, tag(3, 1), &[span(40, 4), span(63, 0), span(44, 4)])?;
            assert_eq!(links.engine.memory.borrow()[40..48], [16, 17, 18, 19, 24, 25, 26, 27]);
            // What it says it is, is not what is expected.
            links.receive_spans(0, tag(3, 3), &[span(40, 4)]).inspect_err(|e| links.abort(e))
        };
        run(&links).expect_err("they disagree").to_string()
    });
    let told: Vec<&String> = ranks.iter().map(|(done, _)| done.as_ref().expect("they meet")).collect();
    assert!(told[1].starts_with("rank 1: message 7 on channel 3 from rank 0: its header is [02"), "{}", told[1]);
    assert_eq!(*told[0], format!("rank 1 gave up: {}", told[1]));
}

#[test]
fn all_to_all_is_one_group() {
    let ranks = chain(1, PATIENT, None, |links| {
        // SAFETY: 64 bytes are there.
        unsafe { links.all_to_all(BASE, BASE + 32, 4, DType::F32) }.expect("begun");
        links.wait_collectives().expect("done");
        links.engine.memory.borrow()[32..48].to_vec()
    });
    let (done, log) = &ranks[0];
    // The first eight bytes were scratch memory.
    assert_eq!(done.as_ref().expect("it starts")[8..], (8..16).collect::<Vec<u8>>());
    let group = "group\n0/0 Send { peer: 0 } 4\n0/0 Receive { peer: 0 } 4\nend\nabort 0";
    assert!(log.join("\n").ends_with(group), "{log:?}");
}

#[test]
fn what_does_not_come_is_given_up_and_named() {
    // Rank 1's second send to rank 0 (its first is the warming): it never leaves.
    let ranks = chain(2, SHORT, Some((1, (1, 1, Fault::Stall))), |links| {
        let other = 1 - links.rank;
        // SAFETY: 64 bytes are there.
        let run = || unsafe {
            if links.rank == 1 {
                links.send(other, BASE, 1, DType::F32)?;
                return links.wait((1, 0));
            }
            links.receive(other, BASE, 1, DType::F32)?;
            links.wait((1, 0))
        };
        let first = run().expect_err("it stalls");
        // All that comes later says the first cause.
        // SAFETY: as above.
        let later = unsafe { links.send(other, BASE, 1, DType::F32) }.expect_err("it was aborted");
        (first.to_string(), first == later)
    });
    for (rank, (done, log)) in ranks.iter().enumerate() {
        let (told, same) = done.as_ref().expect("they meet");
        let named = |rank: usize| {
            let (action, other) = (["receive", "send"][rank], 1 - rank);
            format!("rank {rank}: {action} of message 2 on channel 2 with rank {other} took longer than 0 s")
        };
        // Who gives up first tells the other.
        assert!(*told == named(rank) || *told == format!("rank {} gave up: {}", 1 - rank, named(1 - rank)), "{told}");
        assert!(same);
        // Each communicator once.
        let aborts: Vec<&String> = log.iter().filter(|l| l.starts_with("abort")).collect();
        assert_eq!(aborts.len(), aborts.iter().collect::<BTreeSet<_>>().len());
        assert_eq!(aborts.len(), 3);
    }
}

#[test]
fn failures_of_the_library_are_told() {
    for (fault, why) in [(Fault::Late, "a peer is gone (ncclRemoteError)"), (Fault::Refuse, "it makes no sense")] {
        let ranks = chain(1, PATIENT, Some((0, (0, 1, fault))), |links| {
            let op = Operation { call: Call::AllGather, from: BASE, to: BASE, elems: 1, dtype: DType::F32 };
            // SAFETY: 64 bytes are there.
            let begun = unsafe { links.collective(&op) };
            begun.and_then(|()| links.wait_collectives()).expect_err("it fails").to_string()
        });
        let (told, log) = &ranks[0];
        assert_eq!(
            *told.as_ref().expect("it starts"),
            format!("rank 0: NCCL, collective with rank 0 on collective, message 1: {why}")
        );
        assert_eq!(log.iter().filter(|l| l.starts_with("abort")).count(), 1);
    }
    // While they meet: the others learn it over the store.
    let ranks = chain(2, PATIENT, Some((0, (0, 0, Fault::Refuse))), |_| ());
    let told: Vec<String> = ranks.iter().map(|(done, _)| done.as_ref().expect_err("refused").to_string()).collect();
    let why = "rank 0: NCCL, send with rank 1 on channel 1, message 0: it makes no sense";
    assert_eq!(told, [why.to_string(), format!("rank 0 gave up: {why}")]);
}
