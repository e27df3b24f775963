//! A stage's forward of one micro-batch and its backward of another as one list of launches over a compute and a communication stream. In: the
//! entries `forward`, `backward_input` and `backward_weight` of a stage whose experts are divided (in a group of one: rows are carried by a
//! [`Link`](device::Link), and come back as they were). Out: a list in the order of `schedule::pair`, with what waits for what.
//!
//! Where a layer is split follows from its exchanges: what comes before rows go to the experts is attention, what is between is experts. Which
//! step waits for which follows from memory alone: two steps that touch the same bytes, of which one writes, keep the order that they have when
//! the entries run one after the other. So whatever the streams do, bits are those of that. Each entry has an arena of its own, where no two
//! buffers share a place.

mod list;

pub use list::listed;

use crate::{
    ExecError, HostTensor, Session,
    plan::{self, Plan, size},
    resolve::{Scene, describe, flatten},
    store::allocate,
    trace::{Lane, Trace},
};
use base::DimEnv;
use device::{Link, Memory, Placed, Program, Ran, Streams};
use library::{Entry, LibraryError, Port};
use list::Steps;
use std::{collections::BTreeMap, time::Instant};

/// A micro-batch of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// The one that goes forward.
    Forward,
    /// The one that goes backward.
    Backward,
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
        let entries = list::entries(&self.manifest, dims)?;
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
        crate::peers::check(&program, "a pair", None)?;
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
