//! Follows a rank's list of a plan: the one executor, for every schedule, every fabric, and whatever computes.
//!
//! What is computed is a parcel in, a parcel out; see [`Compute`], which also says how parcels travel. A receive is only noted where it stands in the list; the action that reads the
//! message waits for it, so that computing goes on while it is under way. Messages from one rank to another are taken in the order in which they are sent, which
//! the plan proves to be that of the receives (rule 3).

use crate::ExecError;
use fabric::{Channel, FabricError, Tag, direct::HEAD};
use schedule::{Action, Message, Payload, Plan, Unit, text::cell};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Condvar, Mutex, PoisonError},
};

/// What a rank computes, and how what it makes goes to other ranks.
pub trait Compute {
    /// What stages hand each other; what an end of the model reads is the default.
    type Parcel: Default;
    /// Hands a parcel to another rank; does not wait for it.
    ///
    /// # Errors
    /// What the fabric says.
    fn send(&mut self, to: usize, tag: Tag, message: Message, parcel: Self::Parcel) -> Result<(), ExecError>;
    /// Waits for a parcel of another rank.
    ///
    /// # Errors
    /// What the fabric says.
    fn receive(&mut self, from: usize, tag: Tag, message: Message) -> Result<Self::Parcel, ExecError>;
    /// The forward of a unit, from what the stage before handed over: what the next one reads.
    ///
    /// # Errors
    /// What computing it says.
    fn forward(&mut self, unit: Unit, input: Self::Parcel) -> Result<Self::Parcel, ExecError>;
    /// The whole backward, from the gradient of what the forward made: that of what it read.
    ///
    /// # Errors
    /// As above.
    fn backward(&mut self, unit: Unit, gradient: Self::Parcel) -> Result<Self::Parcel, ExecError>;
    /// The backward without the gradients of weights.
    ///
    /// # Errors
    /// As above.
    fn backward_input(&mut self, unit: Unit, gradient: Self::Parcel) -> Result<Self::Parcel, ExecError>;
    /// The gradients of weights that `backward_input` left.
    ///
    /// # Errors
    /// As above.
    fn backward_weight(&mut self, unit: Unit) -> Result<(), ExecError>;
    /// A forward and a whole backward at once.
    ///
    /// # Errors
    /// As above.
    fn pair(&mut self, forward: (Unit, Self::Parcel), backward: (Unit, Self::Parcel)) -> Result<[Self::Parcel; 2], ExecError> {
        Ok([self.forward(forward.0, forward.1)?, self.backward(backward.0, backward.1)?])
    }
    /// Sums a stage's gradients over the ranks that hold it.
    ///
    /// # Errors
    /// As above, and what the fabric says.
    fn reduce(&mut self, stage: u16) -> Result<(), ExecError>;
    /// The optimiser's step on a stage.
    ///
    /// # Errors
    /// As above, and what the fabric says.
    fn update(&mut self, stage: u16) -> Result<(), ExecError>;
}

/// How a rank follows its list.
#[derive(Clone, Copy, Default)]
pub struct Follow<'a> {
    /// The step, in messages' headers and in errors.
    pub step: u64,
    /// Where all ranks compute in one order.
    pub turns: Option<&'a Turns>,
}

/// The channel of a message: one for each payload, direction and boundary between stages.
fn channel(plan: &Plan, m: Message) -> Channel {
    let payload = u32::from(m.payload == Payload::Gradient);
    let lane = (u32::from(m.unit.dir) * plan.num_stages() as u32 + u32::from(m.unit.stage)) * 2 + payload;
    Channel(lane)
}

/// What a message says of itself: what it is, and of which step.
pub(super) fn tag(word: &[u8; 4], channel: Channel, (dir, stage, number): (u16, u16, u32), step: u64) -> Tag {
    let mut head = [0; HEAD];
    head[..4].copy_from_slice(word);
    head[4..6].copy_from_slice(&dir.to_le_bytes());
    head[6..8].copy_from_slice(&stage.to_le_bytes());
    head[8..12].copy_from_slice(&number.to_le_bytes());
    head[16..].copy_from_slice(&step.to_le_bytes());
    Tag { channel, head, number: u64::from(number) }
}

fn message_tag(plan: &Plan, m: Message, step: u64) -> Tag {
    let word = if m.payload == Payload::Gradient { b"GRAD" } else { b"ACTI" };
    tag(word, channel(plan, m), (m.unit.dir, m.unit.stage, m.unit.micro), step)
}

/// Runs a rank's list of one step.
///
/// # Errors
/// What computing says, and E0421 to E0424 of the fabric, with the action that was under way.
pub fn execute<C: Compute>(plan: &Plan, rank: usize, compute: &mut C, follow: Follow) -> Result<(), ExecError> {
    let mut post = Post { plan, follow, made: BTreeMap::new(), noted: BTreeMap::new() };
    for (position, action) in plan.actions[rank].iter().enumerate() {
        let mut run = || post.act(*action, compute);
        let done = match follow.turns.filter(|_| is_turn(*action)) {
            Some(turns) => turns.wait(rank, position).and_then(|()| {
                let done = run();
                turns.end();
                done
            }),
            None => run(),
        };
        let doing = || format!("rank {rank}, step {}, {}", follow.step, cell(*action, plan.num_stages()));
        done.map_err(|e| if let ExecError::Fabric(source) = e { ExecError::Rank { doing: doing(), source } } else { e })?;
    }
    Ok(())
}

/// Messages on their way.
struct Post<'a, P> {
    plan: &'a Plan,
    follow: Follow<'a>,
    /// Made here or arrived, and not yet read or sent.
    made: BTreeMap<Message, P>,
    /// Receives that the list has passed, by who sends.
    noted: BTreeMap<usize, VecDeque<Message>>,
}

impl<P: Default> Post<'_, P> {
    fn act<C: Compute<Parcel = P>>(&mut self, action: Action, compute: &mut C) -> Result<(), ExecError> {
        let num_stages = self.plan.num_stages();
        let mut read = Vec::new();
        for m in action.reads(num_stages) {
            read.push(self.take(m, compute)?);
        }
        // The first stage's forward and the last one's backward read nothing.
        let starts = |u: Unit, payload| match payload {
            Payload::Activation => u.stage == 0,
            Payload::Gradient => usize::from(u.stage) + 1 == num_stages,
        };
        let mut read = read.into_iter();
        let mut next = |u: Unit, payload| if starts(u, payload) { P::default() } else { read.next().expect("it was read") };
        let mut made = Vec::new();
        match action {
            Action::Forward(u) => made.push(compute.forward(u, next(u, Payload::Activation))?),
            Action::Backward(u) => made.push(compute.backward(u, next(u, Payload::Gradient))?),
            Action::BackwardInput(u) => made.push(compute.backward_input(u, next(u, Payload::Gradient))?),
            Action::BackwardWeight(u) => compute.backward_weight(u)?,
            Action::Pair { forward, backward } => {
                let forward = (forward, next(forward, Payload::Activation));
                made.extend(compute.pair(forward, (backward, next(backward, Payload::Gradient)))?);
            }
            // A backward computes again what it needs.
            Action::Recompute(_) => {}
            Action::Send(m) => {
                let (_, to) = self.plan.route(m).expect("a plan sends what is read");
                let parcel = self.made.remove(&m).expect("a plan sends what was made");
                compute.send(to, message_tag(self.plan, m, self.follow.step), m, parcel)?;
            }
            Action::Receive(m) => {
                let (from, _) = self.plan.route(m).expect("a plan receives what is made");
                self.noted.entry(from).or_default().push_back(m);
            }
            // What is sent has memory of its own until it has left.
            Action::WaitSend(_) => {}
            Action::ReduceGrad { stage } => compute.reduce(stage)?,
            Action::Update { stage } => compute.update(stage)?,
        }
        for (m, parcel) in action.makes().zip(made) {
            if self.plan.route(m).is_some() {
                self.made.insert(m, parcel);
            }
        }
        Ok(())
    }
    /// What an action reads of a message: made here, or received after what its sender sent before.
    fn take<C: Compute<Parcel = P>>(&mut self, m: Message, compute: &mut C) -> Result<P, ExecError> {
        let (from, to) = self.plan.route(m).expect("what is read is made");
        if from == to {
            return Ok(self.made.remove(&m).expect("a plan reads what was made"));
        }
        while !self.made.contains_key(&m) {
            let next = self.noted.get_mut(&from).and_then(VecDeque::pop_front).expect("a plan receives what is read");
            let parcel = compute.receive(from, message_tag(self.plan, next, self.follow.step), next)?;
            self.made.insert(next, parcel);
        }
        Ok(self.made.remove(&m).expect("it arrived"))
    }
}

/// Whether an action computes and so takes its turn in the one order.
fn is_turn(action: Action) -> bool {
    action.forward().is_some() || action.backward().is_some() || action.ends().is_some()
}

/// One order for what all ranks of a process compute: with it, the ranks' threads run one after the other, always the same way.
pub struct Turns {
    /// The ranks that compute together, one after the other, and where in their lists.
    order: Vec<(Vec<usize>, usize)>,
    state: Mutex<Turn>,
    changed: Condvar,
}

#[derive(Default)]
struct Turn {
    /// Which of all.
    at: usize,
    /// Which of its ranks is at work.
    who: usize,
    stopped: bool,
}

impl Turns {
    /// The order: ranks in turn, each its next computation as soon as what it reads was made. `group` are the ranks that a rank divides
    /// experts with, in one order for all of them: they compute together.
    pub fn new(plan: &Plan, group: &dyn Fn(usize) -> Vec<usize>) -> Turns {
        let num_stages = plan.num_stages();
        let mut made = std::collections::BTreeSet::new();
        let mut next = vec![0; plan.num_ranks()];
        let mut order = Vec::new();
        loop {
            let before = order.len();
            for rank in (0..plan.num_ranks()).filter(|r| group(*r)[0] == *r) {
                let list = &plan.actions[rank];
                while next[rank] < list.len() && !is_turn(list[next[rank]]) {
                    next[rank] += 1;
                }
                let Some(action) = list.get(next[rank]) else { continue };
                if action.reads(num_stages).all(|m| made.contains(&m)) {
                    let ranks = group(rank);
                    made.extend(ranks.iter().flat_map(|r| plan.actions[*r][next[rank]].makes()));
                    order.push((ranks, next[rank]));
                    next[rank] += 1;
                }
            }
            if order.len() == before {
                return Turns { order, state: Mutex::default(), changed: Condvar::new() };
            }
        }
    }
    /// Waits for the turn of a rank's action.
    fn wait(&self, rank: usize, position: usize) -> Result<(), ExecError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if state.stopped {
                return Err(FabricError::Aborted { peer: rank, why: "another rank failed".into() }.into());
            }
            let (ranks, of) = &self.order[state.at % self.order.len()];
            if ranks[state.who] == rank && *of == position {
                return Ok(());
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
    fn end(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.who += 1;
        if state.who == self.order[state.at % self.order.len()].0.len() {
            (state.at, state.who) = (state.at + 1, 0);
        }
        self.changed.notify_all();
    }
    /// In the middle of a turn: lets the other ranks of the group come as far.
    ///
    /// # Errors
    /// E0424 if a rank failed.
    pub(super) fn pass(&self, rank: usize) -> Result<(), ExecError> {
        let position = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let (ranks, position) = &self.order[state.at % self.order.len()];
            state.who = (state.who + 1) % ranks.len();
            *position
        };
        self.changed.notify_all();
        self.wait(rank, position)
    }
    /// Ends all waits: a rank failed.
    pub fn stop(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).stopped = true;
        self.changed.notify_all();
    }
}
