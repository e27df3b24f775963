//! Ranks as GPUs: messages and collectives in device memory over NCCL.
//!
//! Each edge and flow (from one rank to another) has a communicator of two ranks and a stream of its own, so that no flow waits behind another;
//! each set of ranks that share a stage or divide experts has one, and collectives have one of all ranks. All are made in the same order on all ranks and used once before the first step: what is connected at first
//! use hangs pipelines (pytorch #160210). No call blocks the host: [`Links`] polls, looks for asynchronous errors and ranks that are gone, gives up after the time-out
//! with the peer and the message's number, and then aborts every communicator, once. One thread owns it.
//! What ranks tell each other to meet goes over another fabric, as a store.

use crate::{Channel, Direct, Fabric, FabricError, Span, Tag, Timeouts, collective, direct::HEAD};
pub use device::cuda::nccl::{Call, Id, Operation, State};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// What we ask of NCCL. [`device::cuda::nccl::Nccl`] is the library; tests have another.
pub trait Engine {
    /// A communicator.
    type Comm;
    /// An identity for a new one.
    ///
    /// # Errors
    /// What the library says.
    fn id(&self) -> Result<Id, String>;
    /// Begins to meet the others.
    ///
    /// # Errors
    /// What the library says.
    fn start(&self, size: usize, rank: usize, id: &Id) -> Result<Self::Comm, String>;
    /// How far it is.
    fn state(&self, comm: &Self::Comm) -> State;
    /// Begins a group of calls.
    fn begin(&self) -> State;
    /// Ends a group of calls.
    fn end(&self) -> State;
    /// Puts a call on the communicator's stream.
    ///
    /// # Safety
    /// The addresses are memory of as many elements as the call reads and writes, until it has run.
    unsafe fn enqueue(&self, comm: &Self::Comm, op: &Operation) -> State;
    /// Whether all that was enqueued has run.
    ///
    /// # Errors
    /// What the device says.
    fn is_idle(&self, comm: &Self::Comm) -> Result<bool, String>;
    /// Ends them at once.
    ///
    /// # Safety
    /// Once for a communicator, which is used no more.
    unsafe fn abort(&self, comms: &[&Self::Comm]);
    /// Begins to end it in good order.
    fn finalize(&self, comm: &Self::Comm) -> State;
    /// Frees it.
    ///
    /// # Safety
    /// Once, for one that was finalised and not aborted.
    unsafe fn destroy(&self, comm: &Self::Comm);
}

/// From which rank to which, neighbours of a pipeline.
pub type Flow = (usize, usize);

/// The channel of messages that make ranks meet.
const MEETING: Channel = Channel(0x3fff_ffff);
/// Between looks.
const PERIOD: Duration = Duration::from_micros(50);

struct Link<C> {
    comm: C,
    /// Messages or collectives so far.
    number: Cell<u64>,
}

/// A rank's communicators.
pub struct Links<'s, E: Engine> {
    engine: E,
    /// Where ranks that fail are heard of.
    store: &'s dyn Fabric,
    rank: usize,
    size: usize,
    timeouts: Timeouts,
    flows: BTreeMap<Flow, Link<E::Comm>>,
    /// Of the sets that this rank is in.
    sets: Vec<(Vec<usize>, Link<E::Comm>)>,
    all: Option<Link<E::Comm>>,
    /// Why all communicators were aborted.
    aborted: RefCell<Option<FabricError>>,
}

/// Which communicator, and what is done on it: for messages.
#[derive(Clone, Copy)]
enum Which {
    Flow(Flow),
    /// By its place in the list.
    Set(usize),
    All,
}

impl<'s, E: Engine> Links<'s, E> {
    /// Makes and warms the communicators: of each flow that this rank has an end of, of each set of ranks that it is in, and of all ranks. `flows` and
    /// `sets` are those of all ranks, the same everywhere; a rank's number in a set is its place there. `scratch` is device memory of at least two f32 for each rank, which is overwritten.
    ///
    /// # Errors
    /// E0425 if the ranks do not meet in time, E0427 if NCCL refuses something; then all communicators were aborted.
    ///
    /// # Safety
    /// `scratch` is such memory.
    pub unsafe fn connect(
        engine: E,
        store: &'s dyn Fabric,
        (flows, sets): (&[Flow], &[Vec<usize>]),
        scratch: u64,
        timeouts: Timeouts,
    ) -> Result<Links<'s, E>, FabricError> {
        let (rank, size) = (store.rank(), store.size());
        let (no_flows, no_sets, aborted) = (BTreeMap::new(), Vec::new(), RefCell::new(None));
        let mut links = Links { engine, store, rank, size, timeouts, flows: no_flows, sets: no_sets, all: None, aborted };
        // SAFETY: the caller vouches for the memory.
        let made = unsafe { links.make(flows, sets, scratch) };
        made.inspect_err(|e| links.abort(e))?;
        Ok(links)
    }
    unsafe fn make(&mut self, flows: &[Flow], sets: &[Vec<usize>], scratch: u64) -> Result<(), FabricError> {
        let mut flows = flows.to_vec();
        flows.sort_unstable();
        flows.dedup();
        for flow in flows.into_iter().filter(|(from, to)| [*from, *to].contains(&self.rank)) {
            let (from, to) = flow;
            let id = self.share(from, &[to])?;
            let comm = self.engine.start(2, usize::from(self.rank == to), &id).map_err(|what| self.refused("a flow", what))?;
            self.flows.insert(flow, Link { comm, number: Cell::new(0) });
            self.settle(Which::Flow(flow), self.timeouts.start)?;
        }
        let mut sets: Vec<&Vec<usize>> = sets.iter().filter(|s| s.len() > 1).collect();
        sets.sort_unstable();
        sets.dedup();
        for set in sets {
            let Some(own) = set.iter().position(|r| *r == self.rank) else { continue };
            let id = self.share(set[0], set)?;
            let comm = self.engine.start(set.len(), own, &id).map_err(|what| self.refused("a set of ranks", what))?;
            self.sets.push((set.clone(), Link { comm, number: Cell::new(0) }));
            self.settle(Which::Set(self.sets.len() - 1), self.timeouts.start)?;
        }
        let others: Vec<usize> = (1..self.size).collect();
        let id = self.share(0, &others)?;
        let comm = self.engine.start(self.size, self.rank, &id).map_err(|what| self.refused("all ranks", what))?;
        self.all = Some(Link { comm, number: Cell::new(0) });
        self.settle(Which::All, self.timeouts.start)?;
        // Used once: what NCCL connects late is connected now.
        for (from, to) in self.flows.keys().copied().collect::<Vec<_>>() {
            // SAFETY: one element of the scratch memory, whose content means nothing.
            unsafe {
                if from == self.rank {
                    self.send(to, scratch, 1, base::DType::F32)?
                } else {
                    self.receive(from, scratch, 1, base::DType::F32)?
                }
            }
            self.wait_for(Which::Flow((from, to)), self.timeouts.start)?;
        }
        for set in 0..self.sets.len() {
            let peers = 0..self.sets[set].0.len();
            let op = |call, at| Operation { call, from: at, to: at, elems: 1, dtype: base::DType::F32 };
            let others = peers.filter(|p| self.sets[set].0[*p] != self.rank);
            let ops: Vec<Operation> = others
                .flat_map(|peer| [op(Call::Send { peer }, scratch), op(Call::Receive { peer }, scratch + 4 * (1 + peer) as u64)])
                .collect();
            // SAFETY: as above: there are two elements for each rank.
            unsafe { self.run(Which::Set(set), &ops)? };
            self.wait_for(Which::Set(set), self.timeouts.start)?;
        }
        let sum = Operation {
            call: Call::AllReduce,
            from: scratch,
            to: scratch + 4 * self.size as u64,
            elems: 1,
            dtype: base::DType::F32,
        };
        // SAFETY: as above.
        unsafe { self.collective(&sum)? };
        self.wait_for(Which::All, self.timeouts.start)?;
        collective::barrier(self.store)
    }
    /// The identity that `owner` makes, told to the others of a communicator.
    fn share(&self, owner: usize, others: &[usize]) -> Result<Id, FabricError> {
        if self.rank == owner {
            let id = self.engine.id().map_err(|what| self.refused("an identity", what))?;
            others.iter().filter(|r| **r != owner).try_for_each(|to| self.store.send(*to, MEETING, &id))?;
            return Ok(id);
        }
        let mut id = [0; 128];
        self.store.receive(owner, MEETING, &mut id)?;
        Ok(id)
    }

    /// Sends elements to a rank; returns when that is on its way. [`Links::wait`] says when the memory is free.
    ///
    /// # Errors
    /// E0427, E0421.
    ///
    /// # Panics
    /// If there is no such flow.
    ///
    /// # Safety
    /// So many elements are at the device address, and stay there until then.
    pub unsafe fn send(&self, to: usize, at: u64, elems: usize, dtype: base::DType) -> Result<(), FabricError> {
        // In a communicator of two the sender is 0.
        let op = Operation { call: Call::Send { peer: 1 }, from: at, to: at, elems, dtype };
        // SAFETY: the caller vouches for the memory.
        unsafe { self.run(Which::Flow((self.rank, to)), &[op]) }
    }
    /// Posts a receive of elements from a rank; [`Links::wait`] says when they are there.
    ///
    /// # Errors
    /// E0427, E0421.
    ///
    /// # Panics
    /// If there is no such flow.
    ///
    /// # Safety
    /// As many elements fit at the device address, and nothing uses it until then.
    pub unsafe fn receive(&self, from: usize, at: u64, elems: usize, dtype: base::DType) -> Result<(), FabricError> {
        let op = Operation { call: Call::Receive { peer: 0 }, from: at, to: at, elems, dtype };
        // SAFETY: the caller vouches for the memory.
        unsafe { self.run(Which::Flow((from, self.rank)), &[op]) }
    }
    /// Begins a collective of all ranks.
    ///
    /// # Errors
    /// E0427, E0421.
    ///
    /// # Safety
    /// The memory is as long as [`Operation`] says; all ranks call alike and in the same order.
    pub unsafe fn collective(&self, op: &Operation) -> Result<(), FabricError> {
        // SAFETY: the caller vouches for the memory.
        unsafe { self.run(Which::All, &[*op]) }
    }
    /// Rank r gets part r of every rank: `elems` elements each, one after the other in both memories. As sends and receives of one group, which all
    /// versions of NCCL have.
    ///
    /// # Errors
    /// E0427, E0421.
    ///
    /// # Safety
    /// `elems` elements for each rank are at `from` and fit at `to`; all ranks call alike.
    pub unsafe fn all_to_all(&self, from: u64, to: u64, elems: usize, dtype: base::DType) -> Result<(), FabricError> {
        let bytes = (elems * dtype.bytes()) as u64;
        let part = |call: Call, peer: usize| {
            let at = peer as u64 * bytes;
            Operation { call, from: from + at, to: to + at, elems, dtype }
        };
        let ops: Vec<Operation> =
            (0..self.size).flat_map(|peer| [part(Call::Send { peer }, peer), part(Call::Receive { peer }, peer)]).collect();
        // SAFETY: the caller vouches for the memory.
        unsafe { self.run(Which::All, &ops) }
    }
    /// Waits until all messages with a rank have arrived and left.
    ///
    /// # Errors
    /// E0421 after the time-out, E0427 if NCCL says that the communicator failed; then all communicators were aborted.
    pub fn wait(&self, flow: Flow) -> Result<(), FabricError> {
        self.wait_for(Which::Flow(flow), self.timeouts.message)
    }
    /// Waits until all collectives have run.
    ///
    /// # Errors
    /// As [`Links::wait`].
    pub fn wait_collectives(&self) -> Result<(), FabricError> {
        self.wait_for(Which::All, self.timeouts.message)
    }
    /// What makes the calls.
    pub fn engine(&self) -> &E {
        &self.engine
    }
    /// How many communicators there are.
    pub fn num_comms(&self) -> usize {
        self.flows.len() + self.sets.len() + usize::from(self.all.is_some())
    }

    fn link(&self, which: Which) -> &Link<E::Comm> {
        match which {
            Which::Flow(flow) => {
                self.flows.get(&flow).unwrap_or_else(|| panic!("there is no flow from {} to {}", flow.0, flow.1))
            }
            Which::Set(set) => &self.sets[set].1,
            Which::All => self.all.as_ref().expect("it is made before it is used"),
        }
    }
    fn check(&self) -> Result<(), FabricError> {
        self.aborted.borrow().clone().map_or(Ok(()), Err)
    }
    /// Enqueues calls as one group, and polls until NCCL has taken them.
    unsafe fn run(&self, which: Which, ops: &[Operation]) -> Result<(), FabricError> {
        self.check()?;
        if ops.is_empty() {
            return Ok(());
        }
        let link = self.link(which);
        let mut states = Vec::new();
        if ops.len() > 1 {
            states.push(self.engine.begin());
        }
        // SAFETY: the caller vouches for the memory.
        states.extend(ops.iter().map(|op| unsafe { self.engine.enqueue(&link.comm, op) }));
        if ops.len() > 1 {
            // Also after a failure: a group that was begun is ended.
            states.push(self.engine.end());
        }
        if let Some(what) = states.into_iter().find_map(|s| if let State::Failed(what) = s { Some(what) } else { None }) {
            return Err(self.give_up(which, what));
        }
        self.settle(which, self.timeouts.message)?;
        link.number.set(link.number.get() + 1);
        Ok(())
    }
    /// Waits until the communicator takes the next call.
    fn settle(&self, which: Which, patience: Duration) -> Result<(), FabricError> {
        self.poll(which, patience, &|comm| Ok(self.engine.state(comm) == State::Ready))
    }
    fn wait_for(&self, which: Which, patience: Duration) -> Result<(), FabricError> {
        self.check()?;
        self.poll(which, patience, &|comm| self.engine.is_idle(comm))
    }
    /// Looks again and again, for asynchronous errors as well.
    fn poll(
        &self,
        which: Which,
        patience: Duration,
        ready: &dyn Fn(&E::Comm) -> Result<bool, String>,
    ) -> Result<(), FabricError> {
        let end = Instant::now() + patience;
        let link = self.link(which);
        loop {
            if let State::Failed(what) = self.engine.state(&link.comm) {
                return Err(self.give_up(which, what));
            }
            match ready(&link.comm) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(what) => return Err(self.give_up(which, what)),
            }
            if let Err(e) = self.store.check() {
                self.abort(&e);
                return Err(e);
            }
            if Instant::now() >= end {
                let (action, peer, channel, number) = self.name(which);
                let e = FabricError::Timeout { rank: self.rank, action, peer, channel, number, seconds: patience.as_secs() };
                self.abort(&e);
                return Err(e);
            }
            std::thread::sleep(PERIOD);
        }
    }
    /// What is done on a communicator, with whom, on which channel, and the last message's number.
    fn name(&self, which: Which) -> (&'static str, usize, Channel, u64) {
        let number = self.link(which).number.get();
        match which {
            Which::Flow((from, to)) if from == self.rank => ("send", to, Channel((from * self.size + to) as u32), number),
            Which::Flow((from, to)) => ("receive", from, Channel((from * self.size + to) as u32), number),
            Which::Set(_) | Which::All => ("collective", self.rank, Channel::COLLECTIVE, number),
        }
    }
    fn refused(&self, what: &str, why: String) -> FabricError {
        FabricError::Nccl { rank: self.rank, what: what.into(), number: 0, why }
    }
    fn give_up(&self, which: Which, why: String) -> FabricError {
        let (action, peer, channel, number) = self.name(which);
        let what = format!("{action} with rank {peer} on {channel}");
        let e = FabricError::Nccl { rank: self.rank, what, number, why };
        self.abort(&e);
        e
    }
    /// Aborts all communicators, so that nothing waits for what will not come. The first cause counts; a second call does nothing.
    pub fn abort(&self, why: &FabricError) {
        let mut aborted = self.aborted.borrow_mut();
        if aborted.is_some() {
            return;
        }
        *aborted = Some(why.clone());
        // Who only learnt it has nothing to tell.
        if !matches!(why, FabricError::Aborted { .. } | FabricError::Lost { .. }) {
            self.store.abort(&why.to_string());
        }
        let links = self.flows.values().chain(self.sets.iter().map(|(_, link)| link)).chain(&self.all);
        // SAFETY: `aborted` was none, and nothing uses a communicator once it is set.
        unsafe { self.engine.abort(&links.map(|l| &l.comm).collect::<Vec<_>>()) };
    }
    /// Ends all communicators in good order, the same on all ranks.
    ///
    /// # Errors
    /// As [`Links::wait`].
    pub fn finish(mut self) -> Result<(), FabricError> {
        self.check()?;
        let sets = (0..self.sets.len()).map(Which::Set);
        let keys = self.flows.keys().map(|f| Which::Flow(*f)).chain(sets).chain([Which::All]).collect::<Vec<_>>();
        for which in &keys {
            if let State::Failed(what) = self.engine.finalize(&self.link(*which).comm) {
                return Err(self.give_up(*which, what));
            }
            self.settle(*which, self.timeouts.message)?;
        }
        let sets = std::mem::take(&mut self.sets).into_iter().map(|(_, link)| link);
        for link in std::mem::take(&mut self.flows).into_values().chain(sets).chain(self.all.take()) {
            // SAFETY: it was finalised, and is here used for the last time.
            unsafe { self.engine.destroy(&link.comm) };
        }
        // Nobody goes while another still looks whether all are there.
        collective::barrier(self.store)
    }
}

impl<E: Engine> Drop for Links<'_, E> {
    fn drop(&mut self) {
        if self.flows.is_empty() && self.sets.is_empty() && self.all.is_none() {
            return;
        }
        // What was not ended in good order is not waited for.
        let (rank, what, why) = (self.rank, "its end".to_string(), "the rank ended before its communicators".to_string());
        self.abort(&FabricError::Nccl { rank, what, number: 0, why });
    }
}

/// NCCL's messages have no names, so each is announced over the store: who receives it waits there, sees what it is, and only then asks NCCL for it. What fails
/// fails as it would over the store, and no kernel spins for what may not come.
impl<E: Engine> Links<'_, E> {
    /// An error after which nothing is under way any more.
    fn failed(&self, e: FabricError) -> FabricError {
        self.abort(&e);
        e
    }
    /// Waits until a rank says what it sends next.
    fn announced(&self, from: usize, tag: Tag) -> Result<(), FabricError> {
        let mut head = [0; HEAD];
        let said = self.store.receive(from, tag.channel, &mut head).and_then(|()| tag.expect(self.rank, from, &head));
        said.map_err(|e| self.failed(e))
    }
}

impl<E: Engine> Direct for Links<'_, E> {
    fn stop(&self, why: &str) {
        self.abort(&FabricError::Aborted { peer: self.rank, why: why.to_string() });
    }
    unsafe fn send_spans(&self, to: usize, tag: Tag, spans: &[Span]) -> Result<(), FabricError> {
        self.check()?;
        self.store.send(to, tag.channel, &tag.head).map_err(|e| self.failed(e))?;
        // In a communicator of two the sender is 0.
        let ops: Vec<Operation> = filled(spans).map(|s| bytes(Call::Send { peer: 1 }, s)).collect();
        // SAFETY: the caller vouches for the memory.
        unsafe { self.run(Which::Flow((self.rank, to)), &ops) }
    }
    unsafe fn receive_spans(&self, from: usize, tag: Tag, spans: &[Span]) -> Result<(), FabricError> {
        self.check()?;
        self.announced(from, tag)?;
        let ops: Vec<Operation> = filled(spans).map(|s| bytes(Call::Receive { peer: 0 }, s)).collect();
        // SAFETY: as above.
        unsafe { self.run(Which::Flow((from, self.rank)), &ops)? };
        self.wait_for(Which::Flow((from, self.rank)), self.timeouts.message)
    }
    fn is_sent(&self, to: usize) -> Result<bool, FabricError> {
        self.check()?;
        let which = Which::Flow((self.rank, to));
        self.engine.is_idle(&self.link(which).comm).map_err(|what| self.give_up(which, what))
    }
    fn flush(&self) -> Result<(), FabricError> {
        let own = self.flows.keys().filter(|(from, _)| *from == self.rank);
        own.copied().try_for_each(|flow| self.wait_for(Which::Flow(flow), self.timeouts.message))
    }
    unsafe fn swap(
        &self,
        members: &[usize],
        tag: Tag,
        sends: &[(usize, Span)],
        receives: &[(usize, Span)],
    ) -> Result<(), FabricError> {
        self.check()?;
        // All members are there, and do the same: what follows does not wait for long.
        let others = || members.iter().copied().filter(|m| *m != self.rank);
        others().try_for_each(|to| self.store.send(to, tag.channel, &tag.head)).map_err(|e| self.failed(e))?;
        others().try_for_each(|from| self.announced(from, tag))?;
        let sends = sends.iter().map(|(peer, s)| (Call::Send { peer: *peer }, *s));
        let receives = receives.iter().map(|(peer, s)| (Call::Receive { peer: *peer }, *s));
        let calls = sends.chain(receives).filter(|(_, s)| s.bytes > 0);
        let ops: Vec<Operation> = calls.map(|(call, s)| bytes(call, s)).collect();
        if ops.is_empty() {
            return Ok(());
        }
        let set = self.sets.iter().position(|(set, _)| set == members);
        let which = Which::Set(set.unwrap_or_else(|| panic!("there is no set of the ranks {members:?}")));
        // SAFETY: the caller vouches for the memory.
        unsafe { self.run(which, &ops)? };
        self.wait_for(which, self.timeouts.message)
    }
}

/// Those that are not empty: NCCL is not asked for nothing.
fn filled(spans: &[Span]) -> impl Iterator<Item = Span> {
    spans.iter().copied().filter(|s| s.bytes > 0)
}

/// A call on a span, as bytes.
fn bytes(call: Call, s: Span) -> Operation {
    // A dtype of one byte of which NCCL has no sums goes as bytes.
    Operation { call, from: s.at as u64, to: s.at as u64, elems: s.bytes, dtype: base::DType::Bool }
}

impl Engine for device::cuda::nccl::Nccl {
    type Comm = device::cuda::nccl::Comm;
    fn id(&self) -> Result<Id, String> {
        self.id().map_err(|e| e.to_string())
    }
    fn start(&self, size: usize, rank: usize, id: &Id) -> Result<Self::Comm, String> {
        self.start(size, rank, id).map_err(|e| e.to_string())
    }
    fn state(&self, comm: &Self::Comm) -> State {
        self.state(comm)
    }
    fn begin(&self) -> State {
        self.begin()
    }
    fn end(&self) -> State {
        self.end()
    }
    unsafe fn enqueue(&self, comm: &Self::Comm, op: &Operation) -> State {
        // SAFETY: the caller vouches for the memory.
        unsafe { self.enqueue(comm, op) }
    }
    fn is_idle(&self, comm: &Self::Comm) -> Result<bool, String> {
        self.is_idle(comm).map_err(|e| e.to_string())
    }
    unsafe fn abort(&self, comms: &[&Self::Comm]) {
        // SAFETY: as the caller says. What did not end is left to the end of the process.
        let _ = unsafe { self.abort(comms) };
    }
    fn finalize(&self, comm: &Self::Comm) -> State {
        self.finalize(comm)
    }
    unsafe fn destroy(&self, comm: &Self::Comm) {
        // SAFETY: as the caller says.
        unsafe { self.destroy(comm) }
    }
}

#[cfg(test)]
mod tests;
