//! What a run measures of itself: how long each stage's entries take, what memory each rank uses, and how much ranks send each other.

use super::{
    Job,
    model::{Model, memory},
};
use crate::ExecError;
use fabric::{Direct, Fabric, FabricError, Span, Staged, Tag, collective};
use schedule::costs;
use std::{
    cell::RefCell,
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// What is timed of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Part {
    Forward,
    BackwardInput,
    BackwardWeight,
    /// Of all its parameters.
    Update,
}

/// All of them, as they are numbered.
const PARTS: [Part; 4] = [Part::Forward, Part::BackwardInput, Part::BackwardWeight, Part::Update];

impl Part {
    /// Of an entry, if it is timed.
    pub(super) fn of_entry(entry: &str) -> Option<Part> {
        match entry {
            "forward" => Some(Part::Forward),
            "backward_input" => Some(Part::BackwardInput),
            "backward_weight" => Some(Part::BackwardWeight),
            _ => None,
        }
    }
}

/// Means of a stage over its micro-batches and copies, without the first step. # Units: milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StageTimes {
    /// By [`Part`]; without the time in which rows of experts are exchanged.
    pub ms: [f64; 4],
    /// That time, for a micro-batch's forward and for its backward.
    pub exchange_ms: [f64; 2],
}

/// What a rank has allocated. # Units: bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RankMemory {
    /// Parameters, states, gradients, moments, tallies.
    pub stored: u64,
    /// What entries use while they run.
    pub arenas: u64,
    /// What micro-batches keep between entries, and messages.
    pub between: u64,
}

/// What was measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measured {
    /// By stage; none if a single step was run, which is slower than those after it.
    pub stages: Vec<StageTimes>,
    /// By rank.
    pub ranks: Vec<RankMemory>,
    /// A forward of one micro-batch and a backward of another as one list, where that was run; the mean of all. # Units: milliseconds.
    pub pair_ms: Option<f64>,
    /// What all ranks sent each other in the last step, by kind: activations, gradients, and so on. # Units: bytes.
    pub sent: Vec<(&'static str, u64)>,
}

/// Kinds of messages by their first word.
const KINDS: [(&[u8; 4], &str); 6] = [
    (b"ACTI", "activations"),
    (b"GRAD", "their gradients"),
    (b"SUMS", "sums of gradients"),
    (b"TIED", "sums of tied ones"),
    (b"NEXT", "parameters"),
    (b"ROWS", "rows of experts"),
];

/// What a rank counts while it runs.
#[derive(Default)]
pub(super) struct Counts {
    /// By stage and part, and at last of exchanges of forwards and of backwards: time, and how often.
    times: BTreeMap<(u16, usize), (Duration, u64)>,
    /// Of pairs that ran as one list.
    pairs: (Duration, u64),
}

impl Counts {
    pub fn add(&mut self, stage: u16, part: Part, since: Instant, exchanged: Duration) {
        let mut one = |k: usize, time: Duration, n: u64| {
            let t = self.times.entry((stage, k)).or_default();
            *t = (t.0 + time, t.1 + n);
        };
        one(part as usize, since.elapsed().saturating_sub(exchanged), 1);
        // Of a backward that is cut in two, what it exchanges counts once.
        let (side, n) = match part {
            Part::Forward => (0, 1),
            Part::BackwardInput => (1, 1),
            Part::BackwardWeight | Part::Update => (1, 0),
        };
        one(PARTS.len() + side, exchanged, n);
    }
    pub fn add_pair(&mut self, since: Instant) {
        self.pairs = (self.pairs.0 + since.elapsed(), self.pairs.1 + 1);
    }
    /// What was before does not count: the first step is slow.
    pub fn restart(&mut self) {
        *self = Counts::default();
    }
}

/// Counts what goes by it.
pub(super) struct Lent<'a> {
    pub direct: Option<&'a dyn Direct>,
    pub staged: Staged<'a>,
    pub sent: RefCell<BTreeMap<[u8; 4], u64>>,
}

impl<'a> Lent<'a> {
    /// By `direct` if there is one, else over the host.
    pub fn new(direct: Option<&'a dyn Direct>, staged: Staged<'a>) -> Lent<'a> {
        Lent { direct, staged, sent: RefCell::default() }
    }
    fn way(&self) -> &dyn Direct {
        self.direct.unwrap_or(&self.staged)
    }
    fn count(&self, tag: Tag, bytes: usize) {
        let [a, b, c, d, ..] = tag.head;
        self.count_as([a, b, c, d], bytes);
    }
    fn count_as(&self, word: [u8; 4], bytes: usize) {
        *self.sent.borrow_mut().entry(word).or_default() += bytes as u64;
    }
    /// Counts what experts' exchanges send over the host.
    pub fn count_rows(&self, bytes: usize) {
        self.count_as(*b"ROWS", bytes);
    }
}

impl Direct for Lent<'_> {
    unsafe fn send_spans(&self, to: usize, tag: Tag, spans: &[Span]) -> Result<(), FabricError> {
        self.count(tag, spans.iter().map(|s| s.bytes).sum());
        // SAFETY: as the caller says.
        unsafe { self.way().send_spans(to, tag, spans) }
    }
    unsafe fn receive_spans(&self, from: usize, tag: Tag, spans: &[Span]) -> Result<(), FabricError> {
        // SAFETY: as above.
        unsafe { self.way().receive_spans(from, tag, spans) }
    }
    fn is_sent(&self, to: usize) -> Result<bool, FabricError> {
        self.way().is_sent(to)
    }
    fn flush(&self) -> Result<(), FabricError> {
        self.way().flush()
    }
    fn stop(&self, why: &str) {
        self.way().stop(why);
    }
    unsafe fn swap(
        &self,
        members: &[usize],
        tag: Tag,
        sends: &[(usize, Span)],
        receives: &[(usize, Span)],
    ) -> Result<(), FabricError> {
        self.count(tag, sends.iter().map(|(_, s)| s.bytes).sum());
        // SAFETY: as above.
        unsafe { self.way().swap(members, tag, sends, receives) }
    }
}

/// All ranks tell each other what they measured in so many steps.
///
/// # Errors
/// What the fabric says.
pub(super) fn measured(model: &Model, steps: u64, f: &dyn Fabric) -> Result<Measured, ExecError> {
    let num_stages = model.job.plan.num_stages();
    let keys = (0..num_stages as u16).flat_map(|s| (0..PARTS.len() + 2).map(move |k| (s, k)));
    let mut own: Vec<u64> = Vec::new();
    for key in keys {
        let (time, n) = model.counts.times.get(&key).copied().unwrap_or_default();
        own.extend([time.as_nanos() as u64, n]);
    }
    let sum = |of: &dyn Fn(&crate::Session) -> u64| model.sessions.values().map(of).sum::<u64>();
    own.extend([
        sum(&|s| s.store.bytes().values().sum()),
        sum(&|s| s.arena_bytes()) + model.pairs.bytes(),
        model.shelf.made() + model.rooms.borrow().bytes(),
    ]);
    own.extend([model.counts.pairs.0.as_nanos() as u64, model.counts.pairs.1]);
    let sent = model.lent.sent.borrow();
    own.extend(KINDS.map(|(word, _)| sent.get(word).copied().unwrap_or(0)));
    let bytes: Vec<u8> = own.iter().flat_map(|n| n.to_le_bytes()).collect();
    let told = collective::all_gather(f, &bytes)?;
    let told: Vec<Vec<u64>> =
        told.iter().map(|b| b.as_chunks::<8>().0.iter().map(|n| u64::from_le_bytes(*n)).collect()).collect();
    let total = |i: usize| told.iter().map(|t| t[i]).sum::<u64>();
    let width = 2 * (PARTS.len() + 2);
    let mean = |stage: usize, k: usize| {
        let (ns, n) = (total(stage * width + 2 * k), total(stage * width + 2 * k + 1));
        ns as f64 / 1e6 / n.max(1) as f64
    };
    let times =
        |s: usize| StageTimes { ms: [0, 1, 2, 3].map(|k| mean(s, k)), exchange_ms: [0, 1].map(|k| mean(s, PARTS.len() + k)) };
    let at = num_stages * width;
    let memory = |t: &Vec<u64>| RankMemory { stored: t[at], arenas: t[at + 1], between: t[at + 2] };
    Ok(Measured {
        stages: (0..num_stages).filter(|_| steps > 1).map(times).collect(),
        ranks: told.iter().map(memory).collect(),
        pair_ms: Some((total(at + 3), total(at + 4)))
            .filter(|(_, n)| *n > 0 && steps > 1)
            .map(|(ns, n)| ns as f64 / 1e6 / n as f64),
        sent: KINDS.iter().enumerate().map(|(i, (_, name))| (*name, total(at + 5 + i))).filter(|(_, n)| *n > 0).collect(),
    })
}

impl Measured {
    /// What `lode schedule --simulate` reads: the mean stage, and each one's share of it.
    pub fn costs(&self, job: &Job) -> schedule::Costs {
        let n = self.stages.len() as f64;
        let mean = |k: usize| self.stages.iter().map(|s| s.ms[k]).sum::<f64>() / n;
        let [mut forward, mut backward_input, backward_weight, update] = [0, 1, 2, 3].map(mean);
        // A pair's time has its exchanges; so have its halves', beside it.
        if self.pair_ms.is_some() {
            let exchanges = |k: usize| self.stages.iter().map(|s| s.exchange_ms[k]).sum::<f64>() / n;
            forward += exchanges(0);
            backward_input += exchanges(1);
        }
        let whole = forward + backward_input + backward_weight;
        let exchanged = |s: &StageTimes| if self.pair_ms.is_some() { s.exchange_ms.iter().sum() } else { 0.0 };
        let factor = |s: &StageTimes| if whole > 0.0 { (s.ms[..3].iter().sum::<f64>() + exchanged(s)) / whole } else { 1.0 };
        let mut need = costs::Memory::default();
        for stage in 0..self.stages.len() as u16 {
            let holder = job.plan.placement.holders(stage).first().copied().unwrap_or(0);
            let Ok(m) = memory(job, stage, holder) else { continue };
            need.activation += m.kept as f64 / n;
            need.parameters += m.stored as f64 / n;
        }
        schedule::Costs {
            unit: "ms".into(),
            parts: Some(n),
            forward,
            backward_input,
            backward_weight,
            pair: self.pair_ms,
            update,
            stages: self.stages.iter().map(factor).collect(),
            memory: need,
            ..schedule::Costs::unit(0.0)
        }
    }
}
