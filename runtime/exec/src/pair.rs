//! A stage's forward of one micro-batch and its backward of another as one list of launches over a compute and a communication stream. In: the
//! entries `forward`, `backward_input` and `backward_weight` of a stage whose experts are divided (in a group of one: rows are carried by a
//! [`Link`](device::Link), and come back as they were). Out: a list in the order of `schedule::pair`, with what waits for what.
//!
//! Where a layer is split follows from its exchanges: what comes before rows go to the experts is attention, what is between is experts. Which
//! step waits for which follows from memory alone: two steps that touch the same bytes, of which one writes, keep the order that they have when
//! the entries run one after the other. So whatever the streams do, bits are those of that. Each entry has an arena of its own, where no two
//! buffers share a place.

use crate::{
    ExecError, HostTensor, Session,
    plan::{self, Plan, size},
    resolve::{Scene, describe, flatten},
    store::allocate,
    trace::{Lane, Trace},
};
use base::DimEnv;
use device::{Link, Memory, Placed, Program, Ran, Streams};
use library::{Class, Entry, Exchange, GroupedGemm, LibraryError, Manifest, Port, Step, View};
use schedule::pair::{self, Part};
use std::{collections::BTreeMap, time::Instant};

/// The entries, in the order in which they run one after the other.
const ENTRIES: [&str; 3] = ["forward", "backward_input", "backward_weight"];

/// A micro-batch of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// The one that goes forward.
    Forward,
    /// The one that goes backward.
    Backward,
}

/// Where a step stands in a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
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
struct Touch {
    from: usize,
    to: usize,
    writes: bool,
}

/// Whether two steps touch the same bytes, and one of them writes there.
fn meet(a: &[Touch], b: &[Touch]) -> bool {
    a.iter().any(|x| b.iter().any(|y| x.from < y.to && y.from < x.to && (x.writes || y.writes)))
}

/// The steps of a pair: those of the entries one after the other.
struct Steps {
    places: Vec<Place>,
    communicates: Vec<bool>,
    touches: Vec<Vec<Touch>>,
}

/// A pair, resolved for a session's memory.
pub struct Pair<'s> {
    session: &'s mut Session,
    dims: DimEnv,
    entries: Vec<Entry>,
    program: Program,
    steps: Steps,
    /// Memory that is not the store's, by name.
    halves: [BTreeMap<String, (Port, Memory)>; 2],
    arenas: Vec<Memory>,
}

impl Session {
    /// The pair of this stage for micro-batches of these sizes.
    ///
    /// # Errors
    /// E0701 to E0704; E0704 as well if the stage has no exchanges, or layers of several kinds that have some.
    pub fn pair(&mut self, dims: &DimEnv) -> Result<Pair<'_>, ExecError> {
        let entries = entries(&self.manifest, dims)?;
        let mut halves = [BTreeMap::new(), BTreeMap::new()];
        let (mut steps, mut arenas, mut all) = (Vec::new(), Vec::new(), Vec::new());
        let workspace = entries.iter().map(|e| self.workspace(&e.steps, dims)).max().unwrap_or(0);
        let workspace = allocate(Some(&self.device), workspace, "workspace", false)?;
        for (k, e) in entries.iter().enumerate() {
            let plan = plan::plan_apart(e, dims)?;
            let arena = allocate(Some(&self.device), plan.arena_bytes, "activations", false)?;
            let bases = self.bases(e, &plan, &arena, &mut halves[usize::from(k > 0)])?;
            let scene = Scene { entry: e, plan: &plan, bases: &bases, kernels: &self.manifest.kernels, fixed: self.fixed };
            let resolved: Result<Vec<_>, _> = flatten(&e.steps).into_iter().map(|(s, turns)| scene.resolve(s, &turns)).collect();
            steps.extend(resolved.map_err(|why| LibraryError::Invalid { name: e.name.clone(), why })?);
            arenas.push(arena);
            all.push((plan, bases));
        }
        let program = self.device.prepare(steps, workspace.as_ptr())?;
        arenas.push(workspace);
        let (dims, steps) = (dims.clone(), Steps::new(&entries, &all)?);
        Ok(Pair { session: self, dims, entries, program, steps, halves, arenas })
    }

    /// The first byte of each buffer; memory that is not the store's is made where it is not there.
    fn bases(
        &mut self,
        e: &Entry,
        plan: &Plan,
        arena: &Memory,
        own: &mut BTreeMap<String, (Port, Memory)>,
    ) -> Result<Vec<*mut u8>, ExecError> {
        let mut bases = vec![std::ptr::null_mut::<u8>(); e.buffers.len()];
        for p in e.args.iter().chain(&e.outputs) {
            bases[p.buffer] = if p.role.is_stored() {
                self.stored(e, p, plan)?
            } else {
                if !own.contains_key(&p.name) {
                    let memory = allocate(Some(&self.device), plan.bytes[p.buffer], &p.name, false)?;
                    own.insert(p.name.clone(), (p.clone(), memory));
                }
                own[&p.name].1.as_ptr()
            };
        }
        for (b, offset) in plan.offset.iter().enumerate() {
            if let Some(offset) = offset {
                bases[b] = arena.as_ptr().wrapping_add(*offset);
            }
        }
        Ok(bases)
    }
}

impl Pair<'_> {
    /// Fills what a run makes with NaN: what it then reads without having written it shows.
    pub fn poison(&mut self) {
        let made = |e: &Entry, name: &str| e.outputs.iter().any(|p| p.name == name);
        for (half, entries) in self.halves.iter_mut().zip([&self.entries[..1], &self.entries[1..]]) {
            let results = half.iter_mut().filter(|(name, _)| entries.iter().any(|e| made(e, name)));
            results.for_each(|(_, (_, memory))| memory.fill(0xff));
        }
        self.arenas.iter_mut().for_each(|a| a.fill(0xff));
    }
    /// Where a tensor of a micro-batch lies: an input, a result, or what the entries hand each other.
    fn tensor(&mut self, half: Half, name: &str) -> Result<&mut (Port, Memory), ExecError> {
        let own = &mut self.halves[half as usize];
        let known = own.keys().cloned().collect::<Vec<_>>().join(", ");
        let why = || format!("it is unknown to the pair; there are {known}");
        own.get_mut(name).ok_or_else(|| ExecError::Input { name: name.into(), why: why() })
    }
    fn shape(&self, p: &Port) -> Vec<i64> {
        p.shape.iter().map(|d| size(d, &self.dims)).collect()
    }
    /// Sets a tensor of a micro-batch.
    ///
    /// # Errors
    /// E0704 if there is none of that name, dtype and shape.
    pub fn set(&mut self, half: Half, name: &str, value: &HostTensor) -> Result<(), ExecError> {
        let port = self.tensor(half, name)?.0.clone();
        let shape = self.shape(&port);
        if (value.dtype, &value.shape) != (port.dtype, &shape) {
            let why = format!("{}{:?} is not {}{shape:?}", value.dtype, value.shape, port.dtype);
            return Err(ExecError::Input { name: name.into(), why });
        }
        self.tensor(half, name)?.1.bytes_mut().copy_from_slice(&value.bytes);
        Ok(())
    }
    /// A tensor of a micro-batch.
    ///
    /// # Errors
    /// E0704 if there is none of that name, E0443.
    pub fn get(&mut self, half: Half, name: &str) -> Result<HostTensor, ExecError> {
        let (port, memory) = self.tensor(half, name)?;
        memory.refresh()?;
        let (port, bytes) = (port.clone(), memory.bytes().to_vec());
        Ok(HostTensor { dtype: port.dtype, shape: self.shape(&port), bytes })
    }
    /// The tensors of a micro-batch that start with `prefix`.
    pub fn ports(&self, half: Half, prefix: &str) -> Vec<Port> {
        self.halves[half as usize].values().map(|(p, _)| p.clone()).filter(|p| p.name.starts_with(prefix)).collect()
    }
    /// Runs the forward alone.
    ///
    /// # Errors
    /// As [`Pair::run`].
    pub fn forward(&mut self, streams: &Streams) -> Result<(), ExecError> {
        let n = flatten(&self.entries[0].steps).len();
        let list: Vec<Placed> = self.in_turn().into_iter().take(n).collect();
        self.run(&list, streams, false).map(|_| ())
    }
    /// Makes the micro-batch that went forward the one that goes backward: what its forward kept is copied.
    ///
    /// # Errors
    /// E0443.
    pub fn hand_over(&mut self) -> Result<(), ExecError> {
        let device = self.session.device.clone();
        let [forward, backward] = &mut self.halves;
        let mut steps = Vec::new();
        for (name, (_, to)) in backward.iter_mut() {
            let Some((_, from)) = forward.get_mut(name) else { continue };
            from.send()?;
            steps.push(device::Step::Copy { from: from.as_ptr(), to: to.as_ptr(), bytes: to.len() });
            to.written();
        }
        let mut program = device.prepare(steps, std::ptr::null_mut())?;
        // SAFETY: both memories have as many bytes, which the same port says, and live.
        unsafe { device.run_one_by_one(&mut program) }?;
        Ok(device.wait()?)
    }

    /// The entries one after the other: every step waits for the one before.
    pub fn in_turn(&self) -> Vec<Placed> {
        self.steps.in_turn()
    }
    /// All steps of one stream alone.
    pub fn alone(&self, communicates: bool) -> Vec<Placed> {
        let of = self.in_turn().into_iter().filter(|p| p.communicates == communicates);
        of.map(|p| Placed { waits: Vec::new(), ..p }).collect()
    }
    /// The list of the pair.
    ///
    /// # Errors
    /// E0704 if a layer's steps do not go into the order of `schedule::pair`: what one needs would come after it.
    pub fn interleaved(&self) -> Result<Vec<Placed>, ExecError> {
        self.steps.interleaved(&|s| describe(&self.program.steps[s], &self.session.manifest))
    }
    /// Streams for this pair's exchanges.
    ///
    /// # Errors
    /// E0443, E0444.
    pub fn streams(&self, link: Link) -> Result<Streams, ExecError> {
        let largest = self.exchanged().into_iter().max().unwrap_or(0);
        Ok(self.session.device.streams(link, largest)?)
    }
    /// What each exchange moves. # Units: bytes.
    pub fn exchanged(&self) -> Vec<usize> {
        let of = |s: &device::Step| match s {
            device::Step::Exchange(x) if x.what == device::What::Offsets => Some((x.groups + 1) * size_of::<i32>()),
            device::Step::Exchange(x) => Some(x.rows * x.row),
            _ => None,
        };
        self.program.steps.iter().filter_map(of).collect()
    }
    /// Runs a list and waits for it; when each step ran, if `timed`.
    ///
    /// # Errors
    /// E0443.
    pub fn run(&mut self, list: &[Placed], streams: &Streams, timed: bool) -> Result<Vec<Ran>, ExecError> {
        self.each_memory(|m, _| Ok(m.send()?))?;
        let device = self.session.device.clone();
        // SAFETY: `Session::pair` resolved every pointer into memory of the session or of this pair, which both live.
        let ran = unsafe { device.run_list(&self.program, list, streams, timed) };
        self.each_memory(|m, written| {
            if written {
                m.written();
            }
            Ok(())
        })?;
        Ok(ran?)
    }
    /// The memory of each argument and output, and whether it is an output.
    fn each_memory(&mut self, mut f: impl FnMut(&mut Memory, bool) -> Result<(), ExecError>) -> Result<(), ExecError> {
        for (k, e) in self.entries.iter().enumerate() {
            for (p, is_output) in e.args.iter().map(|p| (p, false)).chain(e.outputs.iter().map(|p| (p, true))) {
                let memory = match self.halves[usize::from(k > 0)].get_mut(&p.name).filter(|_| !p.role.is_stored()) {
                    Some((_, own)) => own,
                    None => &mut self.session.store.get_mut(p.role, &p.name).expect("resolving made it").memory,
                };
                f(memory, is_output)?;
            }
        }
        Ok(())
    }
    /// The session whose memory it uses.
    pub fn session(&mut self) -> &mut Session {
        self.session
    }
    /// What a step of a list is: its part, layer, and kernel.
    pub fn name(&self, p: &Placed) -> String {
        let what = describe(&self.program.steps[p.step], &self.session.manifest);
        format!("{}: {what}", self.steps.places[p.step])
    }
    /// A run as a trace with a lane a stream.
    pub fn trace(&self, list: &[Placed], ran: &[Ran]) -> Trace {
        let mut trace = Trace::new(&self.session.device_name());
        let begun = Instant::now();
        for (p, r) in list.iter().zip(ran) {
            let lane = if p.communicates { Lane::Communication } else { Lane::Kernels };
            trace.add(lane, &self.name(p), begun, r.start, r.end - r.start);
        }
        trace
    }
}

/// The stage's entries for these dims.
fn entries(m: &Manifest, dims: &DimEnv) -> Result<Vec<Entry>, ExecError> {
    let missing = |n: &str| ExecError::NoEntry { name: n.into(), known: "those of a whole model".into() };
    ENTRIES.into_iter().map(|n| m.variant(n, dims).cloned().ok_or_else(|| missing(n))).collect()
}

/// The list of a stage without a device: the parts in their order, each with its stream, layer and number of steps.
///
/// # Errors
/// As [`Session::pair`] and [`Pair::interleaved`].
pub fn listed(m: &Manifest, dims: &DimEnv) -> Result<Vec<(String, usize)>, ExecError> {
    let entries = entries(m, dims)?;
    // As if each piece of memory lay behind the one before.
    let mut free = 0usize;
    let mut place = |bytes: usize| {
        free += bytes.next_multiple_of(device::memory::ALIGNMENT);
        free - bytes.next_multiple_of(device::memory::ALIGNMENT)
    };
    let mut known: BTreeMap<(Option<library::Role>, bool, String), usize> = BTreeMap::new();
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
    fn new(entries: &[Entry], all: &[(Plan, Vec<*mut u8>)]) -> Result<Steps, ExecError> {
        let layers = num_layers(&entries[0])?;
        let (mut communicates, mut touches, mut starts) = (Vec::new(), Vec::new(), Vec::new());
        for (e, (plan, bases)) in entries.iter().zip(all) {
            starts.push(touches.len());
            for (s, turns) in flatten(&e.steps) {
                touches.push(touched(s, &turns, e, plan, bases));
                communicates.push(matches!(s, Step::Exchange(_)));
            }
        }
        let mut places = places_of(&entries[0], layers, true)?;
        places.extend(places_of(&entries[1], layers, false)?);
        places.extend(weight_places(&entries[2], layers, &touches[starts[2]..]));
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
    fn in_turn(&self) -> Vec<Placed> {
        let n = self.places.len();
        let other = |i: usize| i > 0 && self.communicates[i - 1] != self.communicates[i];
        let waits = |i: usize| if other(i) { vec![i - 1] } else { Vec::new() };
        (0..n).map(|step| Placed { step, communicates: self.communicates[step], waits: waits(step) }).collect()
    }
    /// The list of the pair.
    ///
    /// # Errors
    /// E0704 if a layer's steps do not go into the order of `schedule::pair`: what one needs would come after it.
    fn interleaved(&self, name: &dyn Fn(usize) -> String) -> Result<Vec<Placed>, ExecError> {
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

/// The layers of a forward that exchange rows.
fn num_layers(e: &Entry) -> Result<usize, ExecError> {
    match the_loop(e, is_exchange)[..] {
        [at] => match &e.steps[at] {
            Step::Loop { count, .. } => Ok(usize::try_from(*count).unwrap_or(0)),
            _ => base::bug!("a loop that is none"),
        },
        [] => Err(wrong(e, "it exchanges no rows: build the stage with --expert-parallel 1")),
        _ => Err(wrong(e, "layers of several kinds exchange rows")),
    }
}

/// Where the steps of a forward, or of a backward of inputs, stand.
fn places_of(e: &Entry, layers: usize, forward: bool) -> Result<Vec<Place>, ExecError> {
    let at = match the_loop(e, is_exchange)[..] {
        [at] => at,
        _ => return Err(wrong(e, "its layers do not exchange rows as the forward's do")),
    };
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
fn touched(step: &Step, turns: &[i64], e: &Entry, plan: &Plan, bases: &[*mut u8]) -> Vec<Touch> {
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

/// The elements of a buffer that a view may reach: what a loop's turn has of a stack that moves with it, else all.
fn reach(v: &View, turns: &[i64], plan: &Plan, e: &Entry) -> (usize, usize) {
    let dims = &plan.dims;
    let elems = size(&e.buffers[v.buffer].elems, dims).max(0);
    let by: Vec<i64> = v.turn.iter().map(|d| size(d, dims)).collect();
    let Some(part) = by.iter().map(|n| n.abs()).filter(|n| *n > 0).min() else { return (0, elems as usize) };
    let start = size(&v.offset, dims) + by.iter().zip(turns).map(|(n, i)| n * i).sum::<i64>();
    let from = start.div_euclid(part) * part;
    (from.clamp(0, elems) as usize, (from + part).clamp(0, elems) as usize)
}
