//! A plan: the list of every rank.

use crate::{Action, Message, Placement, Unit};

/// What every rank does in a step, in order. See [`crate::text`] for how it reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What made it, such as `dualpipe`; a name only.
    pub policy: String,
    /// Which rank runs which stage.
    pub placement: Placement,
    /// Micro-batches of each direction.
    pub num_micro: usize,
    /// By rank.
    pub actions: Vec<Vec<Action>>,
}

impl Plan {
    /// How many ranks there are.
    pub fn num_ranks(&self) -> usize {
        self.placement.num_ranks()
    }

    /// How many stages the model is cut into.
    pub fn num_stages(&self) -> usize {
        self.placement.num_stages()
    }

    /// How many units there are: what [`Plan::index`] is below.
    pub fn num_units(&self) -> usize {
        self.placement.num_dirs() * self.num_stages() * self.num_micro
    }

    /// A unit's place in a list of all; none if there is no such unit.
    pub fn index(&self, unit: Unit) -> Option<usize> {
        let (dir, stage, micro) = (usize::from(unit.dir), usize::from(unit.stage), unit.micro as usize);
        let exists = dir < self.placement.num_dirs() && stage < self.num_stages() && micro < self.num_micro;
        exists.then(|| (dir * self.num_stages() + stage) * self.num_micro + micro)
    }

    /// From which rank to which a message goes; none if an end does not exist. Equal ends: a hand-over, nothing is sent.
    pub fn route(&self, message: Message) -> Option<(usize, usize)> {
        let reader = message.reader(self.num_stages())?;
        Some((self.placement.rank_of(message.unit)?, self.placement.rank_of(reader)?))
    }

    /// Without messages, waits, reductions and updates: the order of computing alone.
    pub fn compute_only(&self) -> Plan {
        let keep = |a: &Action| match a {
            Action::Forward(_) | Action::Backward(_) | Action::BackwardInput(_) | Action::BackwardWeight(_) => true,
            Action::Pair { .. } | Action::Recompute(_) => true,
            Action::Send(_) | Action::Receive(_) | Action::WaitSend(_) => false,
            Action::ReduceGrad { .. } | Action::Update { .. } => false,
        };
        let actions = self.actions.iter().map(|list| list.iter().copied().filter(keep).collect()).collect();
        Plan { actions, ..self.clone() }
    }

    /// This many copies side by side, as data parallelism has them; see [`Placement::copies`].
    pub fn copies(&self, copies: usize) -> Plan {
        let dirs = self.placement.num_dirs();
        let mut actions = Vec::with_capacity(copies * self.actions.len());
        for c in 0..copies {
            let unit = |u: Unit| Unit { dir: u.dir + (c * dirs) as u16, ..u };
            let message = |m: Message| Message { unit: unit(m.unit), ..m };
            let moved = |a: &Action| match *a {
                Action::Forward(u) => Action::Forward(unit(u)),
                Action::Backward(u) => Action::Backward(unit(u)),
                Action::BackwardInput(u) => Action::BackwardInput(unit(u)),
                Action::BackwardWeight(u) => Action::BackwardWeight(unit(u)),
                Action::Pair { forward, backward } => Action::Pair { forward: unit(forward), backward: unit(backward) },
                Action::Recompute(u) => Action::Recompute(unit(u)),
                Action::Send(m) => Action::Send(message(m)),
                Action::Receive(m) => Action::Receive(message(m)),
                Action::WaitSend(m) => Action::WaitSend(message(m)),
                Action::ReduceGrad { stage } => Action::ReduceGrad { stage },
                Action::Update { stage } => Action::Update { stage },
            };
            actions.extend(self.actions.iter().map(|list| list.iter().map(moved).collect()));
        }
        Plan { policy: self.policy.clone(), placement: self.placement.copies(copies), num_micro: self.num_micro, actions }
    }
}
