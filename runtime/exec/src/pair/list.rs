//! The list of a pair: where each step of its entries stands, and what waits for what. In: the entries with their plans and addresses. Out:
//! places of a list, see [`Steps::interleaved`].

use crate::{
    ExecError,
    plan::{self, Plan, size},
    resolve::{Turn, flatten, in_turns},
};
use base::DimEnv;
use device::Placed;
use library::{Class, Entry, Exchange, GroupedGemm, Manifest, Role, Step, View};
use schedule::pair::{self, Part};
use std::collections::BTreeMap;

/// The entries, in the order in which they run one after the other.
const ENTRIES: [&str; 3] = ["forward", "backward_input", "backward_weight"];

/// Where a step stands in a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// Before the layers.
    Head,
    /// In a part of a layer.
    Part(Part, usize),
    /// After the layers.
    Tail,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Head => f.write_str("before"),
            Place::Part(part, layer) => write!(f, "{} {layer}", part.name()),
            Place::Tail => f.write_str("after"),
        }
    }
}

/// Bytes that a step reads or writes.
pub(crate) struct Touch {
    from: usize,
    to: usize,
    writes: bool,
}

/// Whether two steps touch the same bytes, and one of them writes there.
fn meet(a: &[Touch], b: &[Touch]) -> bool {
    a.iter().any(|x| b.iter().any(|y| x.from < y.to && y.from < x.to && (x.writes || y.writes)))
}

/// The steps of a pair: those of the entries one after the other.
pub(crate) struct Steps {
    pub places: Vec<Place>,
    communicates: Vec<bool>,
    touches: Vec<Vec<Touch>>,
}

/// The stage's entries for these dims.
pub(super) fn entries(m: &Manifest, dims: &DimEnv) -> Result<Vec<Entry>, ExecError> {
    let missing = |n: &str| ExecError::NoEntry { name: n.into(), known: "those of a whole model".into() };
    ENTRIES.into_iter().map(|n| m.variant(n, dims).cloned().ok_or_else(|| missing(n))).collect()
}

/// The list of a stage without a device: the parts in their order, each with its stream, layer and number of steps.
///
/// # Errors
/// As `Session::pair` and `Pair::interleaved`.
pub fn listed(m: &Manifest, dims: &DimEnv) -> Result<Vec<(String, usize)>, ExecError> {
    let entries = entries(m, dims)?;
    // As if each piece of memory lay behind the one before.
    let mut free = 0usize;
    let mut place = |bytes: usize| {
        free += bytes.next_multiple_of(device::memory::ALIGNMENT);
        free - bytes.next_multiple_of(device::memory::ALIGNMENT)
    };
    let mut known: BTreeMap<(Option<Role>, bool, String), usize> = BTreeMap::new();
    let (mut all, mut names) = (Vec::new(), Vec::new());
    for (k, e) in entries.iter().enumerate() {
        let plan = plan::plan_apart(e, dims)?;
        let arena = place(plan.arena_bytes);
        let mut bases: Vec<usize> = plan.offset.iter().map(|o| o.map_or(0, |o| arena + o)).collect();
        for p in e.args.iter().chain(&e.outputs) {
            let stored = p.role.is_stored();
            let key = (stored.then_some(p.role), !stored && k > 0, p.name.clone());
            bases[p.buffer] = *known.entry(key).or_insert_with(|| place(plan.bytes[p.buffer]));
        }
        names.extend(flatten(&e.steps).into_iter().map(|(s, _)| match s {
            Step::Launch { kernel, .. } => m.kernels[*kernel].symbol.clone(),
            Step::Exchange(_) => "an exchange".into(),
            Step::Gemm(_) | Step::GroupedGemm(_) => "a product".into(),
            Step::Copy { .. } | Step::Zero { .. } | Step::Loop { .. } => "a copy".into(),
        }));
        all.push((plan, bases.into_iter().map(std::ptr::without_provenance_mut).collect()));
    }
    let steps = Steps::new(&entries, &all)?;
    let mut out: Vec<(String, usize)> = Vec::new();
    for p in steps.interleaved(&|s| names[s].clone())? {
        let name = steps.places[p.step].to_string();
        match out.last_mut().filter(|l| l.0 == name) {
            Some(last) => last.1 += 1,
            None => out.push((name, 1)),
        }
    }
    Ok(out)
}

impl Steps {
    /// Of entries with their plans and the first byte of each buffer.
    pub fn new(entries: &[Entry], all: &[(Plan, Vec<*mut u8>)]) -> Result<Steps, ExecError> {
        let [ahead, back] = [layers_of(&entries[0])?, layers_of(&entries[1])?];
        let (mut communicates, mut touches, mut starts) = (Vec::new(), Vec::new(), Vec::new());
        for (e, (plan, bases)) in entries.iter().zip(all) {
            starts.push(touches.len());
            for (s, turns) in in_turns(&e.steps) {
                touches.push(touched(s, &turns, e, plan, bases));
                communicates.push(matches!(s, Step::Exchange(_)));
            }
        }
        let mut places = places_of(&entries[0], ahead, true)?;
        places.extend(places_of(&entries[1], back, false)?);
        places.extend(weight_places(&entries[2], back.1, &touches[starts[2]..]));
        let mut steps = Steps { places, communicates, touches };
        steps.advance(starts[1]..starts[2]);
        Ok(steps)
    }
    /// Moves what a layer's experts need for their gradients of weights, and what that needs, from behind the rows' return to before it: it stands
    /// there by chance. `backward`: the steps of the backward of inputs. What does need the rows stays, and is found when the list is made.
    fn advance(&mut self, backward: std::ops::Range<usize>) {
        for at in backward.clone().rev() {
            let Place::Part(Part::AttentionBackwardInput, layer) = self.places[at] else { continue };
            let needs = |later: usize| meet(&self.touches[at], &self.touches[later]);
            let of = |part: Part| move |s: &usize, places: &[Place]| places[*s] == Place::Part(part, layer);
            let (weights, inputs) = (of(Part::ExpertsBackwardWeight), of(Part::ExpertsBackwardInput));
            let by_weights = (backward.end..self.places.len()).any(|s| weights(&s, &self.places) && needs(s));
            let by_moved = (at + 1..backward.end).any(|s| inputs(&s, &self.places) && needs(s));
            if by_weights || by_moved {
                self.places[at] = Place::Part(Part::ExpertsBackwardInput, layer);
            }
        }
    }

    /// The entries one after the other: every step waits for the one before.
    pub fn in_turn(&self) -> Vec<Placed> {
        let n = self.places.len();
        let other = |i: usize| i > 0 && self.communicates[i - 1] != self.communicates[i];
        let waits = |i: usize| if other(i) { vec![i - 1] } else { Vec::new() };
        (0..n).map(|step| Placed { step, communicates: self.communicates[step], waits: waits(step) }).collect()
    }
    /// The list of the pair.
    ///
    /// # Errors
    /// E0704 if a layer's steps do not go into the order of `schedule::pair`: what one needs would come after it.
    pub fn interleaved(&self, name: &dyn Fn(usize) -> String) -> Result<Vec<Placed>, ExecError> {
        let layers = self.places.iter().filter_map(|p| if let Place::Part(_, l) = p { Some(l + 1) } else { None });
        let layers = layers.max().unwrap_or(0);
        let mut rank: BTreeMap<Place, usize> = BTreeMap::from([(Place::Head, 0)]);
        for l in pair::launches(layers) {
            rank.insert(Place::Part(l.part, l.layer), rank.len());
        }
        rank.insert(Place::Tail, rank.len());
        let mut order: Vec<usize> = (0..self.places.len()).collect();
        order.sort_by_key(|s| (rank[&self.places[*s]], *s));
        self.with_waits(&order, name)
    }
    /// A list in this order, with what each step waits for on the other stream.
    fn with_waits(&self, order: &[usize], name: &dyn Fn(usize) -> String) -> Result<Vec<Placed>, ExecError> {
        let meet = |a: usize, b: usize| meet(&self.touches[a], &self.touches[b]);
        let mut list: Vec<Placed> = Vec::with_capacity(order.len());
        // What each stream has waited for, of the other.
        let mut seen = [None::<usize>; 2];
        for (at, step) in order.iter().enumerate() {
            let before = &order[..at];
            if let Some(late) = before.iter().find(|s| *s > step && meet(**s, *step)) {
                let what = |s: usize| format!("{}: {}", self.places[s], name(s));
                let why = format!("{} would run before what it needs, {}", what(*late), what(*step));
                return Err(ExecError::Input { name: "pair".into(), why });
            }
            let own = self.communicates[*step];
            let last = (0..at).rev().find(|p| self.communicates[order[*p]] != own && meet(order[*p], *step));
            let seen = &mut seen[usize::from(own)];
            let waits = last.filter(|l| seen.is_none_or(|s| *l > s));
            *seen = waits.or(*seen);
            list.push(Placed { step: *step, communicates: own, waits: waits.into_iter().collect() });
        }
        Ok(list)
    }
}

/// The loop of an entry whose body has a step of this kind, by its place among the entry's steps.
fn the_loop(e: &Entry, is: impl Fn(&Step) -> bool) -> Vec<usize> {
    let has = |s: &Step| matches!(s, Step::Loop { body, .. } if plan::steps(body).into_iter().any(&is));
    (0..e.steps.len()).filter(|i| has(&e.steps[*i])).collect()
}

fn is_exchange(s: &Step) -> bool {
    matches!(s, Step::Exchange(_))
}

fn wrong(e: &Entry, why: &str) -> ExecError {
    ExecError::Input { name: e.name.clone(), why: why.into() }
}

/// The layers of an entry that exchange rows: the loop that they are turns of, by its place among the entry's steps, and how many there are.
fn layers_of(e: &Entry) -> Result<(usize, usize), ExecError> {
    match the_loop(e, is_exchange)[..] {
        [at] => match &e.steps[at] {
            Step::Loop { count, .. } => Ok((at, usize::try_from(*count).unwrap_or(0))),
            _ => base::bug!("a loop that is none"),
        },
        [] => Err(wrong(e, "it exchanges no rows: build the stage with --expert-parallel 1")),
        _ => Err(wrong(e, "layers of several kinds exchange rows")),
    }
}

/// Where the steps of a forward, or of a backward of inputs, stand.
fn places_of(e: &Entry, (at, layers): (usize, usize), forward: bool) -> Result<Vec<Place>, ExecError> {
    let mut out = Vec::new();
    for (i, s) in e.steps.iter().enumerate() {
        let steps = flatten(std::slice::from_ref(s));
        if i != at {
            out.extend(steps.iter().map(|_| if i < at { Place::Head } else { Place::Tail }));
            continue;
        }
        let n = steps.len() / layers.max(1);
        for (turn, steps) in steps.chunks(n.max(1)).enumerate() {
            let layer = steps[0].1[0] as usize;
            if layer != if forward { turn } else { layers - 1 - turn } {
                return Err(wrong(e, "its layers do not run in order"));
            }
            let rows = |wanted: bool| move |(s, _): &(&Step, Vec<i64>)| matches!(s, Step::Exchange(Exchange::Rows { back, .. }) if *back == wanted);
            let [there, back] = [false, true].map(|b| steps.iter().position(rows(b)).unwrap_or(steps.len()));
            for (i, (s, _)) in steps.iter().enumerate() {
                let after = match forward {
                    true if layer + 1 < layers => Place::Part(Part::AttentionForward, layer + 1),
                    true => Place::Tail,
                    false => Place::Part(Part::AttentionBackwardInput, layer),
                };
                let before = match forward {
                    true => Place::Part(Part::AttentionForward, layer),
                    false if layer + 1 < layers => Place::Part(Part::AttentionBackwardInput, layer + 1),
                    false => Place::Head,
                };
                let [sent, between, returned] = match forward {
                    true => [Part::DispatchForward, Part::ExpertsForward, Part::CombineForward],
                    false => [Part::CombineBackward, Part::ExpertsBackwardInput, Part::DispatchBackward],
                };
                out.push(match s {
                    Step::Exchange(Exchange::Rows { back: true, .. }) => Place::Part(returned, layer),
                    Step::Exchange(_) => Place::Part(sent, layer),
                    _ if i < there => before,
                    _ if i < back => Place::Part(between, layer),
                    _ => after,
                });
            }
        }
    }
    Ok(out)
}

/// Where the steps of a backward of weights stand: a layer's outer products over rows of experts and what belongs to them are the experts'.
fn weight_places(e: &Entry, layers: usize, touches: &[Vec<Touch>]) -> Vec<Place> {
    let is_outer = |s: &Step| match s {
        Step::Launch { work, .. } => work.class == Class::GroupedOuter,
        Step::GroupedGemm(g) => matches!(g, GroupedGemm::Outer { .. }),
        Step::Gemm(_) | Step::Exchange(_) | Step::Copy { .. } | Step::Zero { .. } | Step::Loop { .. } => false,
    };
    let loops = the_loop(e, is_outer);
    let mut out = Vec::new();
    for (i, s) in e.steps.iter().enumerate() {
        let steps = flatten(std::slice::from_ref(s));
        let of_layers = matches!(s, Step::Loop { count, .. } if loops[..] == [i] && *count == layers as i64);
        if !of_layers {
            out.extend(steps.iter().map(|_| Place::Tail));
            continue;
        }
        for steps in steps.chunks((steps.len() / layers.max(1)).max(1)) {
            let own = &touches[out.len()..out.len() + steps.len()];
            let mut ours: Vec<bool> = steps.iter().map(|(s, _)| is_outer(s)).collect();
            while let Some(more) =
                (0..ours.len()).find(|i| !ours[*i] && (0..ours.len()).any(|j| ours[j] && meet(&own[*i], &own[j])))
            {
                ours[more] = true;
            }
            let layer = steps[0].1[0] as usize;
            let part = |ours: &bool| if *ours { Part::ExpertsBackwardWeight } else { Part::AttentionBackwardWeight };
            out.extend(ours.iter().map(|o| Place::Part(part(o), layer)));
        }
    }
    out
}

/// What a step reads and writes.
fn touched(step: &Step, turns: &[Turn], e: &Entry, plan: &Plan, bases: &[*mut u8]) -> Vec<Touch> {
    // Kernels do not say which buffers they write: an argument that is no output is read by all.
    let read = |b: usize| e.args.iter().any(|p| p.buffer == b) && !e.outputs.iter().any(|p| p.buffer == b);
    let touch = |v: &View, writes: bool| {
        let (from, to) = reach(v, turns, plan, e);
        let bytes = e.buffers[v.buffer].dtype.bytes();
        let base = bases[v.buffer] as usize;
        Touch { from: base + from * bytes, to: base + to * bytes, writes }
    };
    let all = |reads: &[&View], writes: &[&View]| {
        reads.iter().map(|v| touch(v, false)).chain(writes.iter().map(|v| touch(v, true))).collect()
    };
    match step {
        Step::Launch { buffers, .. } => buffers.iter().map(|v| touch(v, !read(v.buffer))).collect(),
        Step::Gemm(g) => all(&[&g.a, &g.b], &[&g.c]),
        Step::GroupedGemm(GroupedGemm::Rows { x, w, offsets, y, .. }) => all(&[x, w, offsets], &[y]),
        Step::GroupedGemm(GroupedGemm::Outer { x, y, offsets, w, .. }) => all(&[x, y, offsets], &[w]),
        Step::Exchange(Exchange::Offsets { offsets, all: told, own, .. }) => all(&[offsets], &[told, own]),
        Step::Exchange(Exchange::Rows { from, all: told, to, .. }) => all(&[from, told], &[to]),
        Step::Copy { from, to, .. } => all(&[from], &[to]),
        Step::Zero { at, .. } => all(&[], &[at]),
        Step::Loop { .. } => base::bug!("loops are flattened before they are resolved"),
    }
}

/// The elements of a buffer that a view may reach: what a loop's turn has of a stack that is nothing but the turns' parts, else all.
fn reach(v: &View, turns: &[Turn], plan: &Plan, e: &Entry) -> (usize, usize) {
    let dims = &plan.dims;
    let elems = size(&e.buffers[v.buffer].elems, dims).max(0);
    let by: Vec<i64> = v.turn.iter().map(|d| size(d, dims)).collect();
    let moving = || by.iter().zip(turns).filter(|(n, _)| **n != 0);
    let Some(part) = moving().map(|(n, _)| n.abs()).min() else { return (0, elems as usize) };
    // A stack along another axis than the first has parts that lie between each other.
    if part.checked_mul(moving().map(|(_, t)| t.count).product()) != Some(elems) {
        return (0, elems as usize);
    }
    let start = size(&v.offset, dims) + by.iter().zip(turns).map(|(n, t)| n * t.number).sum::<i64>();
    let from = start.div_euclid(part) * part;
    (from.clamp(0, elems) as usize, (from + part).clamp(0, elems) as usize)
}
