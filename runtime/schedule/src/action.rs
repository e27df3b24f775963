//! What a rank does: one step of its list. Plain data, `Copy`, ordered.

/// One stage on one micro-batch: what a forward or a backward is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Unit {
    /// Which way the micro-batch takes over the ranks.
    pub dir: u16,
    /// The stage of the model, from 0 in the order of the forward.
    pub stage: u16,
    /// The micro-batch, from 0 within its direction.
    pub micro: u32,
}

/// What a message holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Payload {
    /// What a stage's forward made, for the next stage's forward.
    Activation,
    /// The gradient of what a stage's forward read, for the previous stage's backward.
    Gradient,
}

/// A message between neighbouring stages. Both ends name it by its *sender*, so a send and its receive hold equal messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Message {
    /// What it holds.
    pub payload: Payload,
    /// The stage and micro-batch that made it.
    pub unit: Unit,
}

impl Message {
    /// The stage and micro-batch that reads it; none at the model's ends.
    pub fn reader(self, num_stages: usize) -> Option<Unit> {
        let stage = match self.payload {
            Payload::Activation => self.unit.stage.checked_add(1).filter(|s| usize::from(*s) < num_stages),
            Payload::Gradient => self.unit.stage.checked_sub(1),
        };
        stage.map(|stage| Unit { stage, ..self.unit })
    }
}

/// One step of a rank's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// The forward. Reads the activation of the stage before, or the data at stage 0.
    Forward(Unit),
    /// The whole backward: gradients of inputs and of weights. Reads the gradient of the next stage; the last stage has the loss.
    Backward(Unit),
    /// The backward's gradients of inputs; those of the weights are computed later, by a [`Action::BackwardWeight`].
    BackwardInput(Unit),
    /// The backward's gradients of weights.
    BackwardWeight(Unit),
    /// A forward and a whole backward at once, each under the other's communication.
    Pair {
        /// The forward's half.
        forward: Unit,
        /// The backward's half.
        backward: Unit,
    },
    /// Computes again what the forward did not keep, from the stage's input, before the unit's backward.
    Recompute(Unit),
    /// Hands a message to the network after the action that made it. Does not wait for the receiver.
    Send(Message),
    /// Posts the receive of a message into its buffer. The action that reads it waits for it.
    Receive(Message),
    /// Waits until a message of an earlier send has been taken: its buffer is free.
    WaitSend(Message),
    /// Sums the gradients of a stage over all ranks that hold it, in every direction.
    ReduceGrad {
        /// Which.
        stage: u16,
    },
    /// The optimiser's step on a stage.
    Update {
        /// Which.
        stage: u16,
    },
}

impl Action {
    /// The unit whose forward this runs.
    pub fn forward(self) -> Option<Unit> {
        match self {
            Action::Forward(u) | Action::Pair { forward: u, .. } => Some(u),
            Action::Backward(_) | Action::BackwardInput(_) | Action::BackwardWeight(_) | Action::Recompute(_) => None,
            Action::Send(_) | Action::Receive(_) | Action::WaitSend(_) => None,
            Action::ReduceGrad { .. } | Action::Update { .. } => None,
        }
    }

    /// The unit whose gradients of inputs this computes.
    pub fn backward(self) -> Option<Unit> {
        match self {
            Action::Backward(u) | Action::BackwardInput(u) | Action::Pair { backward: u, .. } => Some(u),
            Action::Forward(_) | Action::BackwardWeight(_) | Action::Recompute(_) => None,
            Action::Send(_) | Action::Receive(_) | Action::WaitSend(_) => None,
            Action::ReduceGrad { .. } | Action::Update { .. } => None,
        }
    }

    /// The unit whose gradients of weights this computes; with it the unit's memory is free.
    pub fn ends(self) -> Option<Unit> {
        match self {
            Action::Backward(u) | Action::BackwardWeight(u) | Action::Pair { backward: u, .. } => Some(u),
            Action::Forward(_) | Action::BackwardInput(_) | Action::Recompute(_) => None,
            Action::Send(_) | Action::Receive(_) | Action::WaitSend(_) => None,
            Action::ReduceGrad { .. } | Action::Update { .. } => None,
        }
    }

    /// Whether it occupies the rank's compute stream.
    pub fn computes(self) -> bool {
        match self {
            Action::Forward(_) | Action::Backward(_) | Action::BackwardInput(_) | Action::BackwardWeight(_) => true,
            Action::Pair { .. } | Action::Recompute(_) | Action::Update { .. } => true,
            Action::Send(_) | Action::Receive(_) | Action::WaitSend(_) | Action::ReduceGrad { .. } => false,
        }
    }

    /// The messages that this makes, in the order in which they are sent: the forward's first.
    pub fn makes(self) -> impl Iterator<Item = Message> {
        let activation = self.forward().map(|unit| Message { payload: Payload::Activation, unit });
        let gradient = self.backward().map(|unit| Message { payload: Payload::Gradient, unit });
        activation.into_iter().chain(gradient)
    }

    /// The messages that this reads, if they come from another rank. Those of stage −1 and of the stage after the last do not exist.
    pub fn reads(self, num_stages: usize) -> impl Iterator<Item = Message> {
        let activation = self
            .forward()
            .filter(|u| u.stage > 0)
            .map(|u| Message { payload: Payload::Activation, unit: Unit { stage: u.stage - 1, ..u } });
        let gradient = self
            .backward()
            .filter(|u| usize::from(u.stage) + 1 < num_stages)
            .map(|u| Message { payload: Payload::Gradient, unit: Unit { stage: u.stage + 1, ..u } });
        activation.into_iter().chain(gradient)
    }
}
