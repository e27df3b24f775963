//! Proves a plan: ten rules, each with its own function, all violations of all of them. Looks, changes nothing.

use crate::{
    Action, Message, Payload, Plan, Policy, Size, Unit,
    costs::pipeline_ranks,
    play,
    slots::{self, Held, Pool, Slots},
    tasks::{self, Task},
    text,
};
use std::collections::{BTreeMap, HashMap};

/// A rule that a plan breaks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// Which, 1 to 10; see `docs/ir/schedule.md`.
    pub rule: u8,
    /// On which rank.
    pub rank: usize,
    /// Where in its list, from 0; its length if something is missing.
    pub position: usize,
    /// The action there, or the one that is missing.
    pub action: String,
    /// What is wrong.
    pub what: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rule {}: rank {}, position {}, {}: {}", self.rule, self.rank, self.position, self.action, self.what)
    }
}

/// What a rank may hold; nothing is not bounded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Limits {
    /// Units whose activations a rank holds at once, by rank.
    pub max_live: Option<Vec<usize>>,
    /// Activations of a unit, and what a rank may spend on them. # Units: bytes.
    pub bytes: Option<(u64, u64)>,
}

impl Limits {
    /// Of a plan whose name is a policy's, on the ranks of one pipeline; else none.
    pub fn of(plan: &Plan) -> Limits {
        let (ranks, micro) = (plan.num_ranks(), plan.num_micro * plan.placement.num_dirs());
        let size = Size { ranks, micro, chunks: plan.num_stages() / ranks.max(1) };
        let policy = Policy::from_name(&plan.policy).filter(|_| ranks == pipeline_ranks(plan));
        Limits { max_live: policy.map(|p| p.max_live(size)), bytes: None }
    }
}

/// Checks all rules.
pub fn verify(plan: &Plan, slots: &Slots, limits: &Limits) -> Vec<Violation> {
    let mut check = Check { plan, found: Vec::new() };
    check.counts();
    check.data();
    check.channels();
    check.progress();
    check.collectives();
    check.memory(limits);
    check.weight_queue();
    check.slots(slots);
    check.reductions();
    check.pairs();
    check.found.sort();
    check.found
}

/// What a message between stages holds: a text a tensor, with dtype and extents.
pub type Tensors = Vec<String>;

/// The part of rule 3 that needs the model: what arrives has the dtypes and extents, and so the bytes, of what its reader takes. `made` is
/// what a stage hands over, `read` what it takes from the stage before (activations) or after (gradients).
pub fn verify_messages(
    plan: &Plan,
    made: &dyn Fn(u16, Payload) -> Tensors,
    read: &dyn Fn(u16, Payload) -> Tensors,
) -> Vec<Violation> {
    let mut check = Check { plan, found: Vec::new() };
    let num_stages = plan.num_stages();
    for (at, action) in check.all().collect::<Vec<_>>() {
        for m in action.reads(num_stages) {
            let (maker, payload) = (m.unit.stage, m.payload);
            let reader = if payload == Payload::Activation { maker + 1 } else { maker - 1 };
            let (given, taken) = (made(maker, payload), read(reader, payload));
            if given != taken {
                let what = format!("stage {maker} hands over {}, stage {reader} takes {}", given.join(", "), taken.join(", "));
                check.say(3, at, action, what);
            }
        }
    }
    check.found
}

/// Rule 5 where replicas divide experts: a forward or backward of one waits in its middle for the same of the others, so all have the same list.
/// `replicas` lie side by side, as [`Plan::copies`] makes them.
pub fn verify_members(plan: &Plan, replicas: usize) -> Vec<Violation> {
    let mut check = Check { plan, found: Vec::new() };
    let (ranks, dirs) = (plan.num_ranks() / replicas.max(1), plan.placement.num_dirs() / replicas.max(1));
    // What a rank computes, as if it were of the first replica.
    let computes = |rank: usize| {
        let own = move |u: Unit| Unit { dir: u.dir.wrapping_sub((rank / ranks * dirs) as u16), ..u };
        let what = move |a: Action| (std::mem::discriminant(&a), [a.forward(), a.backward(), a.ends()].map(|u| u.map(own)));
        let list = plan.actions[rank].iter().copied().enumerate().filter(|(_, a)| a.computes());
        list.map(move |(i, a)| (i, a, what(a))).collect::<Vec<_>>()
    };
    for rank in ranks..ranks * replicas.max(1) {
        let (first, list) = (computes(rank % ranks), computes(rank));
        let other = list.iter().enumerate().find(|(i, (.., what))| first.get(*i).is_none_or(|(.., w)| w != what));
        if let Some((_, (position, action, _))) = other {
            let what = format!("rank {} of the first replica computes something else then", rank % ranks);
            check.say(5, (rank, *position), *action, what);
        } else if let Some((_, action, _)) = first.get(list.len()) {
            check.miss(5, rank, *action, "the first replica computes it");
        }
    }
    check.found
}

struct Check<'p> {
    plan: &'p Plan,
    found: Vec<Violation>,
}

impl Check<'_> {
    fn say(&mut self, rule: u8, (rank, position): (usize, usize), action: Action, what: impl Into<String>) {
        let action = text::cell(action, self.plan.num_stages());
        self.found.push(Violation { rule, rank, position, action, what: what.into() });
    }

    /// Something that should stand on a rank, and does not.
    fn miss(&mut self, rule: u8, rank: usize, action: Action, what: impl Into<String>) {
        self.say(rule, (rank, self.plan.actions[rank].len()), action, what);
    }

    /// All actions with their places.
    fn all(&self) -> impl Iterator<Item = ((usize, usize), Action)> + use<'_> {
        let lists = self.plan.actions.iter().enumerate();
        lists.flat_map(|(rank, list)| list.iter().enumerate().map(move |(position, a)| ((rank, position), *a)))
    }

    fn units(&self) -> impl Iterator<Item = Unit> + use<> {
        let (dirs, stages, micro) =
            (self.plan.placement.num_dirs() as u16, self.plan.num_stages() as u16, self.plan.num_micro as u32);
        (0..dirs).flat_map(move |dir| (0..stages).flat_map(move |stage| (0..micro).map(move |micro| Unit { dir, stage, micro })))
    }

    /// 1. Every unit has one forward and one backward, whole or in both halves, the input's first, on the rank that holds its stage.
    fn counts(&mut self) {
        let plan = self.plan;
        // Forwards, whole backwards, and both halves, by unit.
        let mut counts = vec![[0u8; 4]; plan.num_units()];
        let mut bad = Vec::new();
        for (at, action) in self.all() {
            let halves = match action {
                Action::Forward(u) => [Some((u, 0)), None],
                Action::Backward(u) => [Some((u, 1)), None],
                Action::BackwardInput(u) => [Some((u, 2)), None],
                Action::BackwardWeight(u) => [Some((u, 3)), None],
                Action::Pair { forward, backward } => [Some((forward, 0)), Some((backward, 1))],
                Action::Recompute(u) => [Some((u, 4)), None],
                Action::Send(_) | Action::Receive(_) | Action::WaitSend(_) => continue,
                Action::ReduceGrad { .. } | Action::Update { .. } => continue,
            };
            for (u, kind) in halves.into_iter().flatten() {
                let Some(i) = plan.index(u) else {
                    bad.push((at, action, "there is no such stage or micro-batch".to_string()));
                    continue;
                };
                if plan.placement.rank_of(u) != Some(at.0) {
                    bad.push((at, action, format!("its stage is on rank {}", plan.placement.rank_of(u).unwrap_or_default())));
                }
                let count = counts[i].get_mut(kind).map_or(1, |n| {
                    *n = n.saturating_add(1);
                    *n
                });
                if count == 2 {
                    bad.push((at, action, "a second time".to_string()));
                }
                if kind == 3 && counts[i][2] == 0 {
                    bad.push((at, action, "gradients of weights before those of inputs".to_string()));
                }
                if (kind == 1 && counts[i][2] + counts[i][3] > 0) || (kind == 2 && counts[i][1] > 0) {
                    bad.push((at, action, "a whole backward and a half".to_string()));
                }
            }
        }
        bad.into_iter().for_each(|(at, action, what)| self.say(1, at, action, what));
        for u in self.units() {
            let [f, b, i, w] = counts[plan.index(u).expect("of this plan")];
            let rank = plan.placement.rank_of(u).expect("of this plan");
            if f == 0 {
                self.miss(1, rank, Action::Forward(u), "no forward");
            }
            match (b, i, w) {
                (0, 0, 0) => self.miss(1, rank, Action::Backward(u), "no backward"),
                (0, 0, _) => self.miss(1, rank, Action::BackwardInput(u), "no gradients of inputs"),
                (0, _, 0) => self.miss(1, rank, Action::BackwardWeight(u), "no gradients of weights"),
                _ => {}
            }
        }
    }

    /// 2. What an action reads is there before it: made earlier on the rank, or received; what is sent was made.
    fn data(&mut self) {
        let plan = self.plan;
        let units = plan.num_units();
        let (mut made, mut came) = ([vec![false; units], vec![false; units]], [vec![false; units], vec![false; units]]);
        let mut bad = Vec::new();
        for (at, action) in self.all() {
            let rank = at.0;
            let has = |of: &[Vec<bool>; 2], m: Message| plan.index(m.unit).is_some_and(|i| of[m.payload as usize][i]);
            match action {
                Action::Send(m) if !has(&made, m) => bad.push((at, action, "it is not made yet")),
                Action::WaitSend(_) | Action::Send(_) | Action::ReduceGrad { .. } | Action::Update { .. } => {}
                Action::Receive(m) => {
                    if let Some(i) = plan.index(m.unit) {
                        came[m.payload as usize][i] = true;
                    }
                }
                Action::Recompute(u) | Action::BackwardWeight(u) => {
                    if !has(&made, Message { payload: Payload::Activation, unit: u }) {
                        bad.push((at, action, "before the forward"));
                    }
                    if matches!(action, Action::Recompute(_)) && has(&made, Message { payload: Payload::Gradient, unit: u }) {
                        bad.push((at, action, "after the backward"));
                    }
                }
                Action::Forward(_) | Action::Backward(_) | Action::BackwardInput(_) | Action::Pair { .. } => {
                    if action.backward().is_some_and(|u| !has(&made, Message { payload: Payload::Activation, unit: u })) {
                        bad.push((at, action, "before the forward"));
                    }
                    for m in action.reads(plan.num_stages()) {
                        let local = plan.route(m).is_some_and(|(from, to)| from == rank && to == rank);
                        if !has(if local { &made } else { &came }, m) {
                            let what = match m.payload {
                                Payload::Activation => "before the activation that it reads",
                                Payload::Gradient => "before the gradient that it reads",
                            };
                            bad.push((at, action, what));
                        }
                    }
                    for m in action.makes() {
                        if let Some(i) = plan.index(m.unit) {
                            made[m.payload as usize][i] = true;
                        }
                    }
                }
            }
        }
        bad.into_iter().for_each(|(at, action, what)| self.say(2, at, action, what));
    }

    /// 3. Every message is sent once and received once, between the ranks it is for; per pair of ranks in one order.
    fn channels(&mut self) {
        let plan = self.plan;
        // By (from, to): the messages with their places.
        let mut sent: BTreeMap<(usize, usize), Vec<(Message, (usize, usize))>> = BTreeMap::new();
        let mut received = sent.clone();
        let mut waited: HashMap<Message, usize> = HashMap::new();
        let mut bad = Vec::new();
        for (at, action) in self.all() {
            let (m, of, end) = match action {
                Action::Send(m) => (m, &mut sent, true),
                Action::Receive(m) => (m, &mut received, false),
                Action::WaitSend(m) => {
                    *waited.entry(m).or_default() += 1;
                    continue;
                }
                Action::Forward(_) | Action::Backward(_) | Action::BackwardInput(_) | Action::BackwardWeight(_) => continue,
                Action::Pair { .. } | Action::Recompute(_) | Action::ReduceGrad { .. } | Action::Update { .. } => continue,
            };
            match plan.route(m) {
                None => bad.push((at, action, "no stage reads it".to_string())),
                Some((from, to)) if from == to => bad.push((at, action, "both stages are on this rank".to_string())),
                Some((from, to)) if at.0 != if end { from } else { to } => {
                    bad.push((at, action, format!("it goes from rank {from} to rank {to}")));
                }
                Some(route) => of.entry(route).or_default().push((m, at)),
            }
        }
        let routes: std::collections::BTreeSet<_> = sent.keys().chain(received.keys()).copied().collect();
        for route in routes {
            let (s, r) = (sent.remove(&route).unwrap_or_default(), received.remove(&route).unwrap_or_default());
            let first = s.iter().zip(&r).position(|((a, _), (b, _))| a != b);
            let k = first.unwrap_or(s.len().min(r.len()));
            let other = |side: &[(Message, _)], end: fn(Message) -> Action| {
                side.get(k).map_or("nothing".to_string(), |(m, _)| text::cell(end(*m), plan.num_stages()))
            };
            match (s.get(k), r.get(k)) {
                (Some((m, at)), _) => {
                    let what = format!(
                        "message {k} from rank {} to rank {}; received there is {}",
                        route.0,
                        route.1,
                        other(&r, Action::Receive)
                    );
                    bad.push((*at, Action::Send(*m), what));
                }
                (None, Some((m, at))) => {
                    let what = format!("message {k} from rank {} to rank {}; sent there is nothing", route.0, route.1);
                    bad.push((*at, Action::Receive(*m), what));
                }
                (None, None) => {}
            }
            // A hash map's order does not matter here: it is asked, not walked.
            bad.extend(s.iter().filter(|(m, _)| waited.get(m) != Some(&1)).map(|(m, at)| {
                (*at, Action::Send(*m), format!("it is waited for {} times, not once", waited.get(m).copied().unwrap_or(0)))
            }));
        }
        bad.into_iter().for_each(|(at, action, what)| self.say(3, at, action, what));
    }

    /// 4. Nothing waits for itself: the task graph has no cycle, and ranks that take messages as late as they can come to the end.
    fn progress(&mut self) {
        let plan = self.plan;
        let graph = tasks::tasks(plan);
        let stuck = tasks::stuck(&graph);
        let mut hangs = false;
        for rank in 0..plan.num_ranks() {
            let first = graph.nodes[rank].iter().position(|n| n.is_some_and(|n| stuck[n.index()]));
            if let Some(position) = first {
                hangs = true;
                let node = graph.nodes[rank][position].expect("just found");
                let before = graph.graph.neighbors_directed(node, petgraph::Incoming).filter(|n| stuck[n.index()]).min();
                let what = match before.map(|n| graph.graph[n]) {
                    Some(task @ Task::Compute { rank: on, .. }) => {
                        format!("it waits forever for {} of rank {on}", tasks::name(plan, task))
                    }
                    Some(task) => format!("it waits forever for {}", tasks::name(plan, task)),
                    None => "it waits forever".into(),
                };
                self.say(4, (rank, position), plan.actions[rank][position], what);
            }
        }
        if !hangs {
            for (rank, position) in play::lazy_stuck(plan) {
                self.say(
                    4,
                    (rank, position),
                    plan.actions[rank][position],
                    "ranks that take messages only when they read them hang here",
                );
            }
        }
    }

    /// 5. The ranks of a communicator call its collectives in one order.
    fn collectives(&mut self) {
        let plan = self.plan;
        let holders: Vec<Vec<usize>> = (0..plan.num_stages()).map(|s| plan.placement.holders(s as u16)).collect();
        // By communicator and rank: the stages in order, with positions.
        let mut orders: BTreeMap<&[usize], BTreeMap<usize, Vec<(u16, usize)>>> = BTreeMap::new();
        for ((rank, position), action) in self.all() {
            if let Action::ReduceGrad { stage } = action
                && let Some(group) = holders.get(usize::from(stage))
            {
                orders.entry(group.as_slice()).or_default().entry(rank).or_default().push((stage, position));
            }
        }
        let mut bad = Vec::new();
        for order in orders.values() {
            let mut ranks = order.iter();
            let Some((first, expected)) = ranks.next() else { continue };
            for (rank, given) in ranks {
                let differs = given.iter().zip(expected).find(|(a, b)| a.0 != b.0);
                bad.extend(differs.map(|((stage, position), (other, _))| {
                    ((*rank, *position), *stage, format!("rank {first} sums stage {other} at this point"))
                }));
            }
        }
        bad.into_iter().for_each(|(at, stage, what)| self.say(5, at, Action::ReduceGrad { stage }, what));
    }

    /// 6. Activations held at once, weight gradients' included, stay within the limits.
    fn memory(&mut self, limits: &Limits) {
        let by_bytes = limits.bytes.and_then(|(unit, budget)| budget.checked_div(unit)).map(|n| n as usize);
        for (rank, list) in self.plan.actions.iter().enumerate() {
            let bound = limits.max_live.as_ref().and_then(|m| m.get(rank).copied());
            let (mut live, mut said) = (0usize, [false; 2]);
            for (position, action) in list.iter().enumerate() {
                live += usize::from(action.forward().is_some());
                if let Some(bound) = bound.filter(|b| live > *b && !said[0]) {
                    said[0] = true;
                    self.say(
                        6,
                        (rank, position),
                        *action,
                        format!("activations of {live} units at once, at most {bound} are allowed"),
                    );
                }
                if let Some((unit, budget)) = limits.bytes.filter(|_| by_bytes.is_some_and(|b| live > b) && !said[1]) {
                    said[1] = true;
                    let what = format!("activations of {} bytes at once, the budget is {budget}", live as u64 * unit);
                    self.say(6, (rank, position), *action, what);
                }
                live = live.saturating_sub(usize::from(action.ends().is_some()));
            }
        }
    }

    /// 7. Weight gradients are queued before they are computed, and none are left.
    fn weight_queue(&mut self) {
        for rank in 0..self.plan.num_ranks() {
            let mut queue: Vec<(Unit, usize)> = Vec::new();
            let mut bad = Vec::new();
            for (position, action) in self.plan.actions[rank].iter().enumerate() {
                match *action {
                    Action::BackwardInput(u) => queue.push((u, position)),
                    Action::BackwardWeight(u) => match queue.iter().position(|(q, _)| *q == u) {
                        Some(at) => _ = queue.remove(at),
                        None => bad.push((position, *action, "it is not in the queue")),
                    },
                    Action::Forward(_) | Action::Backward(_) | Action::Pair { .. } | Action::Recompute(_) => {}
                    Action::Send(_) | Action::Receive(_) | Action::WaitSend(_) => {}
                    Action::ReduceGrad { .. } | Action::Update { .. } => {}
                }
            }
            bad.extend(
                queue
                    .iter()
                    .map(|(u, position)| (*position, Action::BackwardInput(*u), "its gradients of weights stay in the queue")),
            );
            bad.into_iter().for_each(|(position, action, what)| self.say(7, (rank, position), action, what));
        }
    }

    /// 8. A piece of memory is read only while it holds what is read, and written only when its last reader is done.
    fn slots(&mut self, slots: &Slots) {
        let plan = self.plan;
        for (rank, list) in plan.actions.iter().enumerate() {
            let mut piece: HashMap<(Pool, Held), u32> = HashMap::new();
            let mut holds: HashMap<(Pool, u32), (Held, usize)> = HashMap::new();
            for (position, action) in list.iter().enumerate() {
                let at = (rank, position);
                let begun = slots::begins(plan, rank, *action);
                let given = slots.of.get(rank).and_then(|r| r.get(position)).map_or(&[][..], Vec::as_slice);
                if given.len() != begun.len() {
                    self.say(8, at, *action, format!("it begins to hold {} pieces and is given {}", begun.len(), given.len()));
                }
                for (what, number) in begun.into_iter().zip(given) {
                    if slots.num.get(rank).is_none_or(|n| *number >= n[what.0 as usize]) {
                        self.say(8, at, *action, format!("there is no piece {number}"));
                    }
                    if let Some((_, since)) = holds.insert((what.0, *number), (what.1, position)) {
                        let since = text::cell(list[since], plan.num_stages());
                        self.say(8, at, *action, format!("piece {number} still holds what {since} put there"));
                    }
                    piece.insert(what, *number);
                }
                let reads = action.backward().into_iter().chain(action.ends()).map(|u| (Pool::Activation, Held::Unit(u)));
                let ends = slots::ends(plan, rank, *action);
                let sends = if let Action::Send(m) = *action { Some((Pool::Send, Held::Message(m))) } else { None };
                for what in reads.chain(ends.iter().copied()).chain(sends) {
                    let there = piece.get(&what).and_then(|n| holds.get(&(what.0, *n)));
                    if there.is_none_or(|(held, _)| *held != what.1) {
                        self.say(8, at, *action, "what it reads is not there");
                        break;
                    }
                }
                for what in ends {
                    if let Some(number) = piece.remove(&what) {
                        holds.remove(&(what.0, number));
                    }
                }
            }
        }
    }

    /// 9. Every holder of a stage sums its gradients once, after the last of them, and then updates it once.
    fn reductions(&mut self) {
        let plan = self.plan;
        for (rank, stages) in plan.placement.stages_by_rank().into_iter().enumerate() {
            let list = &plan.actions[rank];
            for stage in stages {
                let places = |wanted: Action| -> Vec<usize> { (0..list.len()).filter(|p| list[*p] == wanted).collect() };
                let (sum, update) = (Action::ReduceGrad { stage }, Action::Update { stage });
                let (sums, updates) = (places(sum), places(update));
                for (action, found) in [(sum, &sums), (update, &updates)] {
                    if found.len() != 1 {
                        self.miss(9, rank, action, format!("{} times, not once", found.len()));
                    }
                }
                let last = list.iter().rposition(|a| a.ends().or(a.backward()).is_some_and(|u| u.stage == stage));
                if let Some((at, last)) = sums.first().zip(last).filter(|(s, l)| *s < l) {
                    let what = format!("before {}", text::cell(list[last], plan.num_stages()));
                    self.say(9, (rank, *at), sum, what);
                }
                if let Some((at, _)) = updates.first().zip(sums.first()).filter(|(u, s)| u < s) {
                    self.say(9, (rank, *at), update, "before the sum of its gradients");
                }
            }
        }
        let held = plan.placement.stages_by_rank();
        let strange: Vec<_> = self
            .all()
            .filter(|((rank, _), a)| {
                matches!(a, Action::ReduceGrad { stage } | Action::Update { stage } if !held[*rank].contains(stage))
            })
            .collect();
        strange.into_iter().for_each(|(at, action)| self.say(9, at, action, "its stage is not on this rank"));
    }

    /// 10. The halves of a pair are of different units.
    fn pairs(&mut self) {
        let same: Vec<_> =
            self.all().filter(|(_, a)| matches!(a, Action::Pair { forward, backward } if forward == backward)).collect();
        same.into_iter().for_each(|(at, action)| self.say(10, at, action, "both halves are the same stage and micro-batch"));
    }
}
