//! A library being run: code, parameters, and each entry resolved to pointers for the dims at hand, so that a step costs a call.

use crate::{
    ExecError, HostTensor,
    kept::{Pool, Shelf},
    peers::{self, Peers},
    plan::{self, Peak, Plan, size},
    resolve::{Scene, describe, flatten},
    store::{self, Store, allocate},
    trace::{Lane, Trace},
};
use base::{Dim, DimEnv};
use device::{Code, Device, Gpu, Host, Memory, Program};
use library::{Entry, HOST, Library, LibraryError, Manifest, Port, Role, SM_90A, Step};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::Instant,
};

/// A library, its code and its parameters.
pub struct Session {
    /// The manifest.
    pub manifest: Manifest,
    /// Parameters and all that outlives a call.
    pub store: Store,
    /// Time by kind of step, counted while this is `Some`.
    pub profile: Option<Profile>,
    /// What ran when, recorded while this is `Some`.
    pub trace: Option<Trace>,
    /// Fills the arena with NaN before every run: what a step then reads without having written it shows.
    pub poison: bool,
    /// Whether the bits of a row of a grouped product are the same whatever other rows there are; set before the first run.
    pub fixed: bool,
    pub(crate) device: Arc<Device>,
    arena: Memory,
    prepared: BTreeMap<Key, Prepared>,
}

/// An entry and the values of its dims.
pub(crate) type Key = (String, Vec<(String, i64)>);

/// Where what kernels need besides their buffers begins. # Units: bytes. # Source: docs/ir/ptx.md, a kernel's workspace.
const WORKSPACE_ALIGN: usize = 128;

/// Resolved entries that are kept, or twice as many as there are entries; generation makes one for each length of its text.
const MAX_PREPARED: usize = 16;

/// An entry resolved for its dims.
pub(crate) struct Prepared {
    /// Its plan.
    pub plan: Plan,
    /// Its steps.
    pub program: Program,
    /// The first byte of each buffer.
    pub bases: Vec<*mut u8>,
    /// Memory of inputs, scalars and results, by buffer.
    own: BTreeMap<usize, Memory>,
}

// SAFETY: the pointers go to memory that the session owns.
unsafe impl Send for Prepared {}
// SAFETY: as above.
unsafe impl Sync for Prepared {}

/// Time by kind of step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Profile {
    rows: BTreeMap<(String, String), (u64, u64)>,
}

impl Profile {
    /// Entry, step, calls, and nanoseconds; the slowest first.
    pub fn rows(&self) -> Vec<(&str, &str, u64, u64)> {
        let mut rows: Vec<_> = self.rows.iter().map(|((e, s), (calls, ns))| (e.as_str(), s.as_str(), *calls, *ns)).collect();
        rows.sort_by_key(|(.., ns)| std::cmp::Reverse(*ns));
        rows
    }
    fn add(&mut self, entry: &str, step: String, ns: f64) {
        let row = self.rows.entry((entry.into(), step)).or_default();
        row.0 += 1;
        row.1 += ns as u64;
    }
}

impl Session {
    /// A session on `threads` threads of the host, or one a core.
    ///
    /// # Errors
    /// E0606 if a kernel of the manifest is not in the code, E0607 if the library is for a GPU.
    pub fn new(manifest: Manifest, code: Box<dyn Code>, threads: Option<usize>) -> Result<Session, ExecError> {
        let library = Library { manifest, code: Vec::new() };
        library.expect_target(HOST)?;
        let symbols = library.manifest.kernels.iter().map(|k| k.symbol.as_str());
        let host = Host::new(code, symbols, threads).map_err(|symbol| LibraryError::Symbol { symbol })?;
        Ok(Session::of(library.manifest, Device::Host(host)))
    }
    /// A session on a GPU, by its number. `ptxas` assembles the code in the driver's place, if it is given.
    ///
    /// # Errors
    /// E0607 if the library is for the host, E0441 and E0442 for the device.
    pub fn on_gpu(library: Library, ordinal: usize, ptxas: Option<&Path>) -> Result<Session, ExecError> {
        library.expect_target(SM_90A)?;
        let gpu = Gpu::new(ordinal, &library.manifest.kernels, &library.code, ptxas)?;
        Ok(Session::of(library.manifest, Device::Gpu(gpu)))
    }
    fn of(manifest: Manifest, device: Device) -> Session {
        Session::on(manifest, Arc::new(device))
    }
    /// A session on a device that has the manifest's kernels, and may have other sessions.
    pub(crate) fn on(manifest: Manifest, device: Arc<Device>) -> Session {
        let arena = Memory::new(0).expect("an empty arena");
        let store = Store::on(&device);
        Session {
            manifest,
            store,
            profile: None,
            trace: None,
            poison: false,
            fixed: false,
            device,
            arena,
            prepared: BTreeMap::new(),
        }
    }
    /// What runs the steps, in words.
    pub fn device_name(&self) -> String {
        match &*self.device {
            Device::Host(_) => "host".into(),
            Device::Gpu(g) => g.info().name.clone(),
        }
    }
    /// The entry called `name`.
    ///
    /// # Errors
    /// E0701.
    pub fn entry(&self, name: &str) -> Result<&Entry, ExecError> {
        self.manifest.entry(name).ok_or_else(|| {
            let all = self.manifest.entries.iter().filter(|e| !e.is_variant());
            let known = all.map(|e| e.name.as_str()).collect::<Vec<_>>().join(", ");
            ExecError::NoEntry { name: name.into(), known }
        })
    }
    /// What runs for these dims when `name` is called: the entry, or a variant for their shape bucket.
    ///
    /// # Errors
    /// E0701.
    pub fn variant(&self, name: &str, dims: &DimEnv) -> Result<&Entry, ExecError> {
        self.entry(name)?;
        Ok(self.manifest.variant(name, dims).expect("the entry is there"))
    }

    /// The run-time dims that give an entry's inputs these shapes. A dim that no argument depends on is 1.
    ///
    /// # Errors
    /// E0704 if a shape contradicts another or the model, or does not settle a dim.
    pub fn bind(&self, entry: &str, inputs: &[(&str, &[i64])]) -> Result<DimEnv, ExecError> {
        let entry = self.entry(entry)?;
        let mut dims = DimEnv::new();
        let wrong = |name: &str, why: String| ExecError::Input { name: name.into(), why };
        let mut ports = Vec::new();
        for (name, shape) in inputs {
            let port = entry.args.iter().find(|p| p.name == *name && !p.role.is_stored());
            let port = port.ok_or_else(|| wrong(name, format!("it is unknown; there are {}", listed(entry))))?;
            if port.shape.len() != shape.len() {
                return Err(wrong(name, format!("it has {} axes, the model takes {:?}", shape.len(), port.shape)));
            }
            for (d, n) in port.shape.iter().zip(*shape) {
                for s in &self.manifest.dims {
                    if *d == Dim::sym(s) && *dims.entry(s.as_str().into()).or_insert(*n) != *n {
                        return Err(wrong(name, format!("{s} is {} and {n}", dims[s.as_str()])));
                    }
                }
            }
            ports.push((port, *name, *shape));
        }
        for (port, name, shape) in ports {
            if port.shape.iter().zip(shape).any(|(d, n)| d.eval(&dims) != Some(*n)) {
                return Err(wrong(name, format!("{shape:?} is not {:?}", port.shape)));
            }
        }
        let mut needed = BTreeSet::new();
        entry.args.iter().flat_map(|p| &p.shape).for_each(|d| d.symbols(&mut needed));
        for s in &self.manifest.dims {
            if needed.contains(s.as_str()) && !dims.contains_key(s.as_str()) {
                let names: Vec<&str> = inputs.iter().map(|(n, _)| *n).collect();
                return Err(wrong(&names.join(", "), format!("{s} is not settled by it; there are {}", listed(entry))));
            }
            dims.entry(s.as_str().into()).or_insert(1);
        }
        Ok(dims)
    }

    /// Memory that running these entries together needs, before any is allocated.
    ///
    /// # Errors
    /// E0702.
    pub fn peak(&self, entries: &[(&str, &DimEnv)]) -> Result<Peak, ExecError> {
        let mut peak = Peak::default();
        let mut stored: BTreeMap<(Role, &str), u64> = BTreeMap::new();
        for (name, dims) in entries {
            let entry = self.variant(name, dims)?;
            let plan = plan::plan(entry, dims)?;
            peak.activations = peak.activations.max(plan.arena_bytes as u64);
            peak.workspace = peak.workspace.max(self.workspace(&entry.steps, dims) as u64);
            for p in entry.args.iter().chain(&entry.outputs) {
                let bytes = plan.bytes[p.buffer] as u64;
                if p.role.is_stored() {
                    stored.insert((p.role, &p.name), bytes);
                } else {
                    *peak.by_role.entry(p.role).or_insert(0) += bytes;
                }
            }
        }
        for ((role, _), bytes) in stored {
            *peak.by_role.entry(role).or_insert(0) += bytes;
        }
        Ok(peak)
    }
    /// Fails if the peak is above the limit, or above what is available; `others` of it, beside its own memory, is allocated already.
    ///
    /// # Errors
    /// E0703 with the number and a table by cause.
    pub fn admit(&self, peak: &Peak, limit: Option<u64>, others: u64) -> Result<(), ExecError> {
        let held = self.held_bytes() + others;
        let system = self.device.available_bytes().map(|n| n + held);
        let available = limit.into_iter().chain(system).min();
        match available {
            Some(n) if peak.total() > n => {
                let (needed_mib, available_mib) = (peak.total().div_ceil(1 << 20), n >> 20);
                Err(ExecError::Memory { needed_mib, available_mib, table: peak.table() })
            }
            _ => Ok(()),
        }
    }

    /// What it has allocated. # Units: bytes.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.store.bytes().values().sum::<u64>() + self.arena_bytes()
    }
    /// What its entries use while they run. # Units: bytes.
    pub(crate) fn arena_bytes(&self) -> u64 {
        self.arena.len() as u64
    }
    /// Runs an entry; its results and scalars by name. Parameters, states, gradients, moments and tallies are read from the store and
    /// written there.
    ///
    /// # Errors
    /// E0701 to E0704, E0604 if a step would touch memory outside its buffers.
    pub fn run(
        &mut self,
        entry: &str,
        dims: &DimEnv,
        inputs: &[(&str, &HostTensor)],
    ) -> Result<Vec<(String, HostTensor)>, ExecError> {
        self.run_among(entry, dims, inputs, None)
    }
    /// As `run`, as one of a group that divides experts.
    ///
    /// # Errors
    /// As `run`, and what the group says; E0704 if the entry is for a group of another size.
    pub fn run_among(
        &mut self,
        entry: &str,
        dims: &DimEnv,
        inputs: &[(&str, &HostTensor)],
        peers: Option<&dyn Peers>,
    ) -> Result<Vec<(String, HostTensor)>, ExecError> {
        let key = self.prepare(entry, dims)?;
        peers::check(&self.prepared[&key].program, entry, peers)?;
        self.write_inputs(&key, entry, inputs)?;
        self.go(&key, entry, peers)?;
        self.read_outputs(&key, entry)
    }
    /// As `run_among`, for tensors that lie on this session's device and stay there: inputs are taken from the pool, which keeps them, and results are added
    /// to it.
    ///
    /// # Errors
    /// As `run_among`.
    pub(crate) fn run_kept(
        &mut self,
        entry: &str,
        dims: &DimEnv,
        (pool, shelf): (&mut Pool, &mut Shelf),
        peers: Option<&dyn Peers>,
    ) -> Result<(), ExecError> {
        let key = self.prepare(entry, dims)?;
        peers::check(&self.prepared[&key].program, entry, peers)?;
        let device = self.device.clone();
        let e = self.manifest.variant(entry, &self.prepared[&key].plan.dims).expect("it was prepared").clone();
        let wrong = |name: &str, why: String| ExecError::Input { name: name.into(), why };
        let prepared = self.prepared.get_mut(&key).expect("prepared above");
        for p in e.args.iter().filter(|p| !p.role.is_stored()) {
            let t = pool.get_mut(&p.name).ok_or_else(|| wrong(&p.name, format!("{entry} takes it, and it is not there")))?;
            let shape = shape(p, &prepared.plan.dims);
            if (t.dtype, &t.shape) != (p.dtype, &shape) {
                return Err(wrong(&p.name, format!("{}{:?} is not {}{shape:?}", t.dtype, t.shape, p.dtype)));
            }
            t.memory.send()?;
            let own = prepared.own.get_mut(&p.buffer).expect("inputs have memory of their own");
            // SAFETY: both have the bytes of the port's shape, on this device; what is copied is waited for below.
            unsafe { device.copy(t.memory.as_ptr(), own.as_ptr(), own.len()) }?;
            own.written();
        }
        self.go(&key, entry, peers)?;
        let prepared = &self.prepared[&key];
        for p in e.outputs.iter().filter(|p| !p.role.is_stored()) {
            let (own, mut made) = (&prepared.own[&p.buffer], shelf.tensor(p.dtype, shape(p, &prepared.plan.dims))?);
            // SAFETY: as above.
            unsafe { device.copy(own.as_ptr(), made.memory.as_ptr(), own.len()) }?;
            made.memory.written();
            shelf.insert(pool, p.name.clone(), made);
        }
        Ok(device.wait()?)
    }
    /// Runs an entry whose inputs are in their places, and waits for it.
    fn go(&mut self, key: &Key, entry: &str, peers: Option<&dyn Peers>) -> Result<(), ExecError> {
        if self.poison {
            self.arena.fill(0xff);
        }
        if self.profile.is_some() || self.trace.is_some() {
            self.watch(key, entry, peers)?;
        } else {
            self.send(key, entry)?;
            let prepared = self.prepared.get_mut(key).expect("prepared above");
            // SAFETY: `prepare` resolved every pointer into memory of this session with the planned sizes; what runs is waited for.
            let ran = unsafe {
                match peers {
                    Some(peers) => peers::run(&self.device, &prepared.program, peers),
                    None => self.device.run(&mut prepared.program).map_err(ExecError::from),
                }
            };
            self.written(key, entry);
            ran.and(self.device.wait().map_err(ExecError::from))?;
        }
        Ok(())
    }

    /// As `run` without outputs, with the time of every step and of the copies before them.
    fn watch(&mut self, key: &Key, entry: &str, peers: Option<&dyn Peers>) -> Result<(), ExecError> {
        let (device, begun) = (self.device.clone(), Instant::now());
        let first = device.mark()?;
        self.send(key, entry)?;
        let mut marks = vec![device.mark()?];
        let program = &self.prepared[key].program;
        for i in 0..program.steps.len() {
            // SAFETY: as in `run`.
            unsafe {
                match (&program.steps[i], peers) {
                    (device::Step::Exchange(x), Some(peers)) => peers::carry(&device, x, peers)?,
                    _ => device.execute(program, i)?,
                }
            }
            marks.push(device.mark()?);
        }
        self.written(key, entry);
        device.wait()?;
        let since = |m: &device::Mark| device.nanoseconds(&first, m);
        for (s, pair) in self.prepared[key].program.steps.iter().zip(marks.windows(2)) {
            let (what, ns) = (describe(s, &self.manifest), device.nanoseconds(&pair[0], &pair[1]));
            let is_copy = matches!(s, device::Step::Copy { .. } | device::Step::Zero { .. });
            if let Some(t) = &mut self.trace {
                let lane = if is_copy { Lane::Copies } else { Lane::Kernels };
                t.add(lane, &what, begun, since(&pair[0]), ns);
            }
            if let Some(p) = &mut self.profile {
                p.add(entry, what, ns);
            }
        }
        if let Some(t) = &mut self.trace {
            let (sent, all) = (since(&marks[0]), since(&marks[marks.len() - 1]));
            if matches!(*device, Device::Gpu(_)) {
                t.add(Lane::Copies, "inputs to the device", begun, 0.0, sent);
            }
            t.add(Lane::Entries, entry, begun, 0.0, all);
        }
        Ok(())
    }
    /// Brings what an entry reads to the device.
    pub(crate) fn send(&mut self, key: &Key, entry: &str) -> Result<(), ExecError> {
        self.each_port(key, entry, store::send)
    }
    /// The entry wrote its outputs.
    pub(crate) fn written(&mut self, key: &Key, entry: &str) {
        self.each_port(key, entry, store::written).expect("nothing can fail");
    }
    fn each_port(
        &mut self,
        key: &Key,
        entry: &str,
        f: impl Fn(&mut Memory, bool) -> Result<(), ExecError>,
    ) -> Result<(), ExecError> {
        let prepared = self.prepared.get_mut(key).expect("prepared by the caller");
        let e = self.manifest.variant(entry, &prepared.plan.dims).expect("it was prepared");
        store::each_memory(e, (&mut prepared.own, |own, p| own.get_mut(&p.buffer)), &mut self.store, f)
    }

    /// What the kernels of these steps need besides their buffers, at most. # Units: bytes.
    pub(crate) fn workspace(&self, steps: &[Step], dims: &DimEnv) -> usize {
        let of = |s: &Step| match s {
            Step::Launch { kernel, dims: own, grid, .. } => {
                let own: Vec<i64> = own.iter().map(|d| size(d, dims)).collect();
                self.device.workspace_bytes(*kernel, &own, size(grid, dims))
            }
            Step::Loop { body, .. } => self.workspace(body, dims),
            Step::Gemm(_) | Step::GroupedGemm(_) | Step::Exchange(_) | Step::Copy { .. } | Step::Zero { .. } => 0,
        };
        steps.iter().map(of).max().unwrap_or(0)
    }
    /// The arena that a plan needs, with what its kernels need behind it. # Units: bytes.
    pub(crate) fn room(&self, e: &Entry, plan: &Plan) -> usize {
        match self.workspace(&e.steps, &plan.dims) {
            0 => plan.arena_bytes,
            n => plan.arena_bytes.next_multiple_of(WORKSPACE_ALIGN) + n,
        }
    }

    /// The first tensor of a role that is not finite, and its worst number.
    ///
    /// # Errors
    /// E0443.
    pub fn first_not_finite(&mut self, role: Role) -> Result<Option<(String, f64)>, ExecError> {
        let device = self.device.clone();
        let slots: Vec<_> = self.store.of_role(role).collect();
        let tensors: Vec<_> = slots.iter().map(|(_, s)| (s.dtype, &s.memory)).collect();
        for ((name, s), finite) in slots.iter().zip(device.are_finite(&tensors)?) {
            if finite == Some(true) {
                continue;
            }
            s.memory.refresh()?;
            if let Some(x) = crate::tensor::not_finite(s.dtype, s.memory.bytes()) {
                return Ok(Some(((*name).to_string(), x)));
            }
        }
        Ok(None)
    }

    /// Plans and resolves an entry unless that is done.
    pub(crate) fn prepare(&mut self, entry: &str, dims: &DimEnv) -> Result<Key, ExecError> {
        let key = key(entry, dims);
        if self.prepared.contains_key(&key) {
            return Ok(key);
        }
        let e = self.variant(entry, dims)?.clone();
        let plan = plan::plan(&e, dims)?;
        let room = self.room(&e, &plan);
        if room > self.arena.len() || self.prepared.len() >= MAX_PREPARED.max(2 * self.manifest.entries.len()) {
            self.prepared.clear();
        }
        if room > self.arena.len() {
            self.replace_arena(room)?;
        }
        self.resolve(&e, plan)
    }

    /// Plans and resolves these entries, so that running them later allocates nothing.
    ///
    /// # Errors
    /// E0702, E0703.
    pub(crate) fn prepare_all(&mut self, entries: &[(String, &DimEnv)]) -> Result<(), ExecError> {
        let mut room = self.arena.len();
        for (name, dims) in entries {
            let e = self.variant(name, dims)?;
            room = room.max(self.room(e, &plan::plan(e, dims)?));
        }
        if room > self.arena.len() {
            self.replace_arena(room)?;
        }
        entries.iter().try_for_each(|(name, dims)| self.prepare(name, dims).map(drop))
    }
    /// Forgets all that was resolved, and the arena.
    pub(crate) fn forget(&mut self) {
        self.prepared.clear();
        self.arena = Memory::new(0).expect("an empty arena");
    }
    /// An arena of zeros; nothing may be resolved to the old one.
    pub(crate) fn replace_arena(&mut self, bytes: usize) -> Result<(), ExecError> {
        self.forget();
        self.arena = allocate(Some(&self.device), bytes, "activations", false)?;
        Ok(())
    }

    /// Resolves an entry; its plan fits the arena.
    pub(crate) fn resolve(&mut self, e: &Entry, plan: Plan) -> Result<Key, ExecError> {
        let mut own = BTreeMap::new();
        let mut bases = vec![std::ptr::null_mut::<u8>(); e.buffers.len()];
        for p in e.args.iter().chain(&e.outputs) {
            bases[p.buffer] = if p.role.is_stored() {
                self.stored(e, p, &plan)?
            } else {
                if let std::collections::btree_map::Entry::Vacant(vacant) = own.entry(p.buffer) {
                    let bytes = plan.bytes[p.buffer];
                    vacant.insert(allocate(Some(&self.device), bytes, &p.name, true)?);
                }
                own[&p.buffer].as_ptr()
            };
        }
        for (b, offset) in plan.offset.iter().enumerate() {
            if let Some(offset) = offset {
                bases[b] = self.arena.as_ptr().wrapping_add(*offset);
            }
        }
        let scene = Scene { entry: e, plan: &plan, bases: &bases, kernels: &self.manifest.kernels, fixed: self.fixed };
        let steps: Result<Vec<device::Step>, String> =
            flatten(&e.steps).iter().map(|(s, turns)| scene.resolve(s, turns)).collect();
        let steps = steps.map_err(|why| LibraryError::Invalid { name: e.name.clone(), why })?;
        let key = key(&e.name, &plan.dims);
        let workspace = self.arena.as_ptr().wrapping_add(plan.arena_bytes.next_multiple_of(WORKSPACE_ALIGN));
        let program = self.device.prepare(steps, workspace)?;
        self.prepared.insert(key.clone(), Prepared { plan, program, own, bases });
        Ok(key)
    }
    /// Where a port that outlives a call lies.
    pub(crate) fn stored(&mut self, e: &Entry, p: &Port, plan: &Plan) -> Result<*mut u8, ExecError> {
        let shape = shape(p, &plan.dims);
        let slot = self.store.slot(p.role, &p.name, p.dtype, &shape)?;
        if slot.dtype != p.dtype || slot.shape != shape {
            let why = format!("the store has {}{:?}, {} takes {}{shape:?}", slot.dtype, slot.shape, e.name, p.dtype);
            return Err(ExecError::Input { name: p.name.clone(), why });
        }
        Ok(slot.memory.as_ptr())
    }
    /// What `resolve` made, to be run.
    pub(crate) fn prepared_mut(&mut self, key: &Key) -> &mut Prepared {
        self.prepared.get_mut(key).expect("prepared by the caller")
    }
    /// What `resolve` made.
    pub(crate) fn prepared(&self, key: &Key) -> &Prepared {
        &self.prepared[key]
    }

    /// Copies the inputs to their places.
    pub(crate) fn write_inputs(&mut self, key: &Key, entry: &str, inputs: &[(&str, &HostTensor)]) -> Result<(), ExecError> {
        let e = self.manifest.variant(entry, &self.prepared[key].plan.dims).expect("it was prepared");
        let wrong = |name: &str, why: String| ExecError::Input { name: name.into(), why };
        let is_input = |p: &&Port| !p.role.is_stored();
        if let Some((name, _)) = inputs.iter().find(|(n, _)| !e.args.iter().filter(is_input).any(|p| p.name == *n)) {
            return Err(wrong(name, format!("it is unknown; there are {}", listed(e))));
        }
        let prepared = self.prepared.get_mut(key).expect("prepared by the caller");
        for port in e.args.iter().filter(is_input) {
            let Some((_, t)) = inputs.iter().find(|(n, _)| *n == port.name) else {
                return Err(wrong(&port.name, format!("it is missing; there are {}", listed(e))));
            };
            let shape = shape(port, &prepared.plan.dims);
            if t.shape != shape || t.dtype.is_float() != port.dtype.is_float() {
                return Err(wrong(&port.name, format!("{}{:?} is not {}{shape:?}", t.dtype, t.shape, port.dtype)));
            }
            let memory = prepared.own.get_mut(&port.buffer).expect("inputs have memory of their own").bytes_mut();
            let bytes = if t.dtype == port.dtype { &t.bytes } else { &t.cast(port.dtype).bytes };
            if bytes.len() != memory.len() {
                return Err(wrong(&port.name, format!("it has {} bytes of data, {} are needed", bytes.len(), memory.len())));
            }
            memory.copy_from_slice(bytes);
        }
        Ok(())
    }
    fn read_outputs(&mut self, key: &Key, entry: &str) -> Result<Vec<(String, HostTensor)>, ExecError> {
        let begun = Instant::now();
        let prepared = &self.prepared[key];
        prepared.own.values().try_for_each(Memory::refresh)?;
        if let (Some(t), Device::Gpu(_)) = (&mut self.trace, &*self.device) {
            t.add(Lane::Copies, "results from the device", begun, 0.0, begun.elapsed().as_secs_f64() * 1e9);
        }
        let results = self.variant(entry, &prepared.plan.dims)?.outputs.iter().filter(|p| !p.role.is_stored());
        let tensor = |p: &Port| {
            let bytes = prepared.own[&p.buffer].bytes().to_vec();
            (p.name.clone(), HostTensor { dtype: p.dtype, shape: shape(p, &prepared.plan.dims), bytes })
        };
        Ok(results.map(tensor).collect())
    }
}

fn key(entry: &str, dims: &DimEnv) -> Key {
    (entry.to_string(), dims.iter().map(|(n, v)| (n.to_string(), *v)).collect())
}

/// A port's extents for planned dims.
fn shape(p: &Port, dims: &DimEnv) -> Vec<i64> {
    p.shape.iter().map(|d| size(d, dims)).collect()
}

fn listed(e: &Entry) -> String {
    e.args.iter().filter(|p| !p.role.is_stored()).map(|p| p.name.as_str()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
