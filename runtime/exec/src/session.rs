//! A library being run: code, parameters, and each entry resolved to pointers for the dims at hand, so that a step costs a call.

use crate::{
    ExecError, HostTensor,
    plan::{self, Peak, Plan, size},
    store::Store,
};
use base::{DType, DimEnv};
use device::{Code, Grouped, HostDevice, Launch, Memory, Product};
use library::{Entry, GroupedGemm, LibraryError, Manifest, Port, Role, Step, View};
use std::collections::BTreeMap;

/// A library, its code and its parameters.
pub struct Session {
    /// The manifest.
    pub manifest: Manifest,
    /// Parameters and all that outlives a call.
    pub store: Store,
    code: Box<dyn Code>,
    device: HostDevice,
    arena: Memory,
    prepared: BTreeMap<(String, Vec<(String, i64)>), Prepared>,
}

/// An entry resolved for its dims.
struct Prepared {
    plan: Plan,
    steps: Vec<Resolved>,
    /// Memory of inputs, scalars and results, by buffer.
    own: BTreeMap<usize, Memory>,
    /// The first byte of each buffer.
    bases: Vec<*mut u8>,
}

// SAFETY: the pointers go to memory that the session owns.
unsafe impl Send for Prepared {}
// SAFETY: as above.
unsafe impl Sync for Prepared {}

/// A step with pointers.
enum Resolved {
    Launch { index: usize, launch: Launch },
    Product(Product),
    Grouped(Grouped),
    Copy { from: *const u8, to: *mut u8, bytes: usize },
    Zero { at: *mut u8, bytes: usize },
}

// SAFETY: the pointers go to memory that the session owns and changes only through `&mut self`.
unsafe impl Send for Resolved {}
// SAFETY: as above.
unsafe impl Sync for Resolved {}

/// Roles whose tensors live in the store.
fn is_stored(role: Role) -> bool {
    match role {
        Role::Param | Role::State | Role::Grad | Role::Moment | Role::Tally => true,
        Role::Input | Role::Scalar | Role::Result | Role::Inner => false,
    }
}

impl Session {
    /// A session on `threads` threads, or one a core.
    ///
    /// # Errors
    /// E0606 if a kernel of the manifest is not in the code.
    pub fn new(manifest: Manifest, code: Box<dyn Code>, threads: Option<usize>) -> Result<Session, ExecError> {
        if let Some(k) = manifest.kernels.iter().find(|k| code.kernel(&k.symbol).is_none()) {
            return Err(LibraryError::Symbol { symbol: k.symbol.clone() }.into());
        }
        let arena = Memory::new(0).expect("an empty arena");
        Ok(Session { manifest, store: Store::default(), code, device: HostDevice::new(threads), arena, prepared: BTreeMap::new() })
    }
    /// The entry called `name`.
    ///
    /// # Errors
    /// E0701.
    pub fn entry(&self, name: &str) -> Result<&Entry, ExecError> {
        self.manifest.entries.iter().find(|e| e.name == name).ok_or_else(|| {
            let known = self.manifest.entries.iter().map(|e| e.name.as_str()).collect::<Vec<_>>().join(", ");
            ExecError::NoEntry { name: name.into(), known }
        })
    }

    /// The run-time dims that give an entry's inputs these shapes.
    ///
    /// # Errors
    /// E0704 if a shape contradicts another or the model.
    pub fn bind(&self, entry: &str, inputs: &[(&str, &[i64])]) -> Result<DimEnv, ExecError> {
        let entry = self.entry(entry)?;
        let mut dims = DimEnv::new();
        let wrong = |name: &str, why: String| ExecError::Input { name: name.into(), why };
        for (name, shape) in inputs {
            let port = entry.args.iter().find(|p| p.name == *name && !is_stored(p.role));
            let port = port.ok_or_else(|| wrong(name, format!("there are {}", listed(entry))))?;
            if port.shape.len() != shape.len() {
                return Err(wrong(name, format!("it has {} axes, the model takes {:?}", shape.len(), port.shape)));
            }
            for (d, n) in port.shape.iter().zip(*shape) {
                for s in &self.manifest.dims {
                    if *d == base::Dim::sym(s) && *dims.entry(s.as_str().into()).or_insert(*n) != *n {
                        return Err(wrong(name, format!("{s} is {} and {n}", dims[s.as_str()])));
                    }
                }
            }
        }
        for (name, shape) in inputs {
            let port = entry.args.iter().find(|p| p.name == *name).expect("found above");
            if port.shape.iter().zip(*shape).any(|(d, n)| d.eval(&dims) != Some(*n)) {
                return Err(wrong(name, format!("{shape:?} is not {:?}", port.shape)));
            }
        }
        for s in &self.manifest.dims {
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
            let entry = self.entry(name)?;
            let plan = plan::plan(entry, dims)?;
            peak.activations = peak.activations.max(plan.arena_bytes as u64);
            for p in entry.args.iter().chain(&entry.outputs) {
                let bytes = plan.bytes[p.buffer] as u64;
                if is_stored(p.role) {
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
    /// Fails if the peak is above the limit, or above what is available.
    ///
    /// # Errors
    /// E0703 with the number and a table by cause.
    pub fn admit(&self, peak: &Peak, limit: Option<u64>) -> Result<(), ExecError> {
        let held: u64 = self.store.bytes().values().sum();
        let available = limit.or_else(|| device::memory::available_bytes().map(|n| n + held));
        match available {
            Some(n) if peak.total() > n => {
                Err(ExecError::Memory { needed_mib: peak.total().div_ceil(1 << 20), available_mib: n >> 20, table: peak.table() })
            }
            _ => Ok(()),
        }
    }

    /// Runs an entry; its results and scalars by name.
    ///
    /// # Errors
    /// E0701 to E0704.
    pub fn run(&mut self, entry: &str, dims: &DimEnv, inputs: &[(&str, &HostTensor)]) -> Result<Vec<(String, HostTensor)>, ExecError> {
        let key = self.prepare(entry, dims)?;
        self.write_inputs(&key, entry, inputs)?;
        let prepared = &self.prepared[&key];
        let device = &self.device;
        // SAFETY: `prepare` resolved every pointer into memory of this session with the planned sizes.
        device.install(|| prepared.steps.iter().for_each(|s| unsafe { execute(device, s) }));
        Ok(self.read_outputs(&key, entry))
    }

    /// Runs an entry and looks after every step for the first NaN, or else the first infinity above zero: the kernel that made it. Every
    /// buffer has memory of its own here.
    ///
    /// # Errors
    /// As `run`.
    pub fn find_not_finite(&mut self, entry: &str, dims: &DimEnv, inputs: &[(&str, &HostTensor)]) -> Result<Option<String>, ExecError> {
        self.prepared.clear();
        let e = self.entry(entry)?.clone();
        let mut plan = plan::plan(&e, dims)?;
        let mut at = 0;
        for (b, offset) in plan.offset.iter_mut().enumerate().filter(|(_, o)| o.is_some()) {
            *offset = Some(at);
            at += plan.bytes[b].next_multiple_of(device::memory::ALIGNMENT);
        }
        plan.arena_bytes = at;
        let Some(arena) = Memory::new(at) else { return Ok(None) };
        self.arena = arena;
        let key = self.resolve(&e, plan)?;
        self.write_inputs(&key, entry, inputs)?;
        let prepared = &self.prepared[&key];
        let mut infinite = None;
        let mut found = None;
        let mut views = Vec::new();
        flatten(&e.steps, &mut Vec::new(), &mut views);
        for (step, (original, turns)) in prepared.steps.iter().zip(&views) {
            // SAFETY: as in `run`.
            self.device.install(|| unsafe { execute(&self.device, step) });
            let what = || match step {
                Resolved::Launch { index, .. } => {
                    let k = &self.manifest.kernels[*index];
                    k.origin.as_ref().map_or(k.symbol.clone(), |o| format!("{} ({o})", k.symbol))
                }
                Resolved::Product(_) | Resolved::Grouped(_) => "a product".into(),
                Resolved::Copy { .. } | Resolved::Zero { .. } => "a copy".into(),
            };
            for v in plan::views(original) {
                let b = &e.buffers[v.buffer];
                if !b.dtype.is_float() {
                    continue;
                }
                let moved = size(&v.offset, dims) + v.turn.iter().zip(turns).map(|(s, i)| size(s, dims) * i).sum::<i64>();
                let skipped = moved as usize * b.dtype.bytes();
                // SAFETY: the rest of the buffer from the view's start.
                let rest = unsafe { std::slice::from_raw_parts(prepared.bases[v.buffer].add(skipped), prepared.plan.bytes[v.buffer] - skipped) };
                let data = crate::tensor::read(b.dtype, rest);
                if data.iter().any(|x| x.is_nan()) {
                    found = Some(what());
                } else if infinite.is_none() && data.contains(&f64::INFINITY) {
                    infinite = Some(what());
                }
            }
            if found.is_some() {
                break;
            }
        }
        self.prepared.clear();
        Ok(found.or(infinite))
    }

    /// Plans and resolves an entry unless that is done.
    fn prepare(&mut self, entry: &str, dims: &DimEnv) -> Result<(String, Vec<(String, i64)>), ExecError> {
        let key = (entry.to_string(), dims.iter().map(|(n, v)| (n.to_string(), *v)).collect::<Vec<_>>());
        if self.prepared.contains_key(&key) {
            return Ok(key);
        }
        let e = self.entry(entry)?.clone();
        let plan = plan::plan(&e, dims)?;
        if plan.arena_bytes > self.arena.len() {
            self.prepared.clear();
            self.arena = Memory::new(0).expect("an empty arena");
            self.arena = Memory::new(plan.arena_bytes).ok_or_else(|| ExecError::Memory {
                needed_mib: plan.arena_bytes as u64 >> 20,
                available_mib: device::memory::available_bytes().unwrap_or(0) >> 20,
                table: "for activations".into(),
            })?;
        }
        self.resolve(&e, plan)
    }

    fn resolve(&mut self, e: &Entry, plan: Plan) -> Result<(String, Vec<(String, i64)>), ExecError> {
        let dims = plan.dims.clone();
        let mut own = BTreeMap::new();
        let ports: Vec<Port> = e.args.iter().chain(&e.outputs).cloned().collect();
        for p in &ports {
            if is_stored(p.role) {
                let shape: Vec<i64> = p.shape.iter().map(|d| size(d, &dims)).collect();
                self.store.slot(p.role, &p.name, p.dtype, &shape)?;
            } else if let std::collections::btree_map::Entry::Vacant(slot) = own.entry(p.buffer) {
                let bytes = plan.bytes[p.buffer];
                slot.insert(Memory::new(bytes).ok_or_else(|| ExecError::Memory {
                    needed_mib: bytes as u64 >> 20,
                    available_mib: 0,
                    table: format!("for {}", p.name),
                })?);
            }
        }
        let mut bases = vec![std::ptr::null_mut::<u8>(); e.buffers.len()];
        for p in &ports {
            bases[p.buffer] = match is_stored(p.role) {
                true => self.store.get(p.role, &p.name).expect("made above").memory.as_ptr(),
                false => own[&p.buffer].as_ptr(),
            };
        }
        for (b, offset) in plan.offset.iter().enumerate() {
            if let Some(offset) = offset {
                bases[b] = self.arena.as_ptr().wrapping_add(*offset);
            }
        }
        let mut flat = Vec::new();
        flatten(&e.steps, &mut Vec::new(), &mut flat);
        let r = Resolver { e, dims: &dims, bases: &bases, manifest: &self.manifest, code: &*self.code };
        let steps = flat.into_iter().map(|(step, turns)| r.step(step, &turns)).collect();
        let key = (e.name.clone(), dims.iter().map(|(n, v)| (n.to_string(), *v)).collect::<Vec<_>>());
        self.prepared.insert(key.clone(), Prepared { plan, steps, own, bases });
        Ok(key)
    }

    fn write_inputs(&mut self, key: &(String, Vec<(String, i64)>), entry: &str, inputs: &[(&str, &HostTensor)]) -> Result<(), ExecError> {
        let args: Vec<Port> = self.entry(entry)?.args.iter().filter(|p| !is_stored(p.role)).cloned().collect();
        let known = args.iter().map(|p| p.name.as_str()).collect::<Vec<_>>().join(", ");
        let prepared = self.prepared.get_mut(key).expect("prepared by the caller");
        for port in &args {
            let wrong = |why: String| ExecError::Input { name: port.name.clone(), why };
            let Some((_, t)) = inputs.iter().find(|(n, _)| *n == port.name) else {
                return Err(wrong(format!("it is missing; there are {known}")));
            };
            let shape: Vec<i64> = port.shape.iter().map(|d| size(d, &prepared.plan.dims)).collect();
            if t.shape != shape || t.dtype.is_float() != port.dtype.is_float() {
                return Err(wrong(format!("{}{:?} is not {}{shape:?}", t.dtype, t.shape, port.dtype)));
            }
            let memory = prepared.own.get_mut(&port.buffer).expect("inputs have memory of their own");
            memory.bytes_mut().copy_from_slice(&t.cast(port.dtype).bytes);
        }
        Ok(())
    }
    fn read_outputs(&self, key: &(String, Vec<(String, i64)>), entry: &str) -> Vec<(String, HostTensor)> {
        let prepared = &self.prepared[key];
        let Ok(e) = self.entry(entry) else { return Vec::new() };
        let results = e.outputs.iter().filter(|p| !is_stored(p.role));
        results
            .map(|p| {
                let shape = p.shape.iter().map(|d| size(d, &prepared.plan.dims)).collect();
                (p.name.clone(), HostTensor { dtype: p.dtype, shape, bytes: prepared.own[&p.buffer].bytes().to_vec() })
            })
            .collect()
    }
}

fn listed(e: &Entry) -> String {
    e.args.iter().filter(|p| !is_stored(p.role)).map(|p| p.name.as_str()).collect::<Vec<_>>().join(", ")
}

/// Every step that is no loop, with the turns of the loops around it, in order.
fn flatten<'e>(steps: &'e [Step], turns: &mut Vec<i64>, out: &mut Vec<(&'e Step, Vec<i64>)>) {
    for s in steps {
        match s {
            Step::Loop { count, reverse, body } => {
                for i in 0..*count {
                    turns.push(if *reverse { count - 1 - i } else { i });
                    flatten(body, turns, out);
                    turns.pop();
                }
            }
            s => out.push((s, turns.clone())),
        }
    }
}

struct Resolver<'a> {
    e: &'a Entry,
    dims: &'a DimEnv,
    bases: &'a [*mut u8],
    manifest: &'a Manifest,
    code: &'a dyn Code,
}

impl Resolver<'_> {
    fn at(&self, v: &View, turns: &[i64]) -> *mut u8 {
        let elems = size(&v.offset, self.dims) + v.turn.iter().zip(turns).map(|(s, i)| size(s, self.dims) * i).sum::<i64>();
        self.bases[v.buffer].wrapping_offset(elems as isize * self.e.buffers[v.buffer].dtype.bytes() as isize)
    }
    fn size(&self, d: &base::Dim) -> usize {
        usize::try_from(size(d, self.dims)).unwrap_or(0)
    }
    fn step(&self, step: &Step, turns: &[i64]) -> Resolved {
        let at = |v: &View| self.at(v, turns);
        match step {
            Step::Launch { kernel, buffers, dims, grid } => Resolved::Launch {
                index: *kernel,
                launch: Launch {
                    kernel: self.code.kernel(&self.manifest.kernels[*kernel].symbol).expect("checked when the session was made"),
                    buffers: buffers.iter().map(at).collect(),
                    dims: dims.iter().map(|d| size(d, self.dims)).collect(),
                    grid: size(grid, self.dims),
                },
            },
            Step::Gemm(g) => {
                let bytes = g.dtype.bytes() as isize;
                let mut starts = vec![[at(&g.a), at(&g.b), at(&g.c)]];
                for (n, strides) in &g.batch {
                    let by: [isize; 3] = strides.each_ref().map(|d| size(d, self.dims) as isize * bytes);
                    let n = self.size(n) as isize;
                    let moved = |s: [*mut u8; 3], i: isize| [0, 1, 2].map(|k| s[k].wrapping_offset(i * by[k]));
                    starts = starts.into_iter().flat_map(|s| (0..n).map(move |i| moved(s, i))).collect();
                }
                Resolved::Product(Product {
                    dtype: g.dtype,
                    m: self.size(&g.m),
                    n: self.size(&g.n),
                    k: self.size(&g.k),
                    strides: g.strides.each_ref().map(|d| size(d, self.dims) as isize),
                    starts,
                    accumulate: g.accumulate,
                })
            }
            Step::GroupedGemm(GroupedGemm::Rows { dtype, x, w, offsets, y, extents, transposed }) => Resolved::Grouped(Grouped {
                dtype: *dtype,
                memory: [at(x), at(w), at(y)],
                offsets: at(offsets).cast::<i32>().cast_const(),
                extents: extents.each_ref().map(|d| self.size(d)),
                rows: Some(*transposed),
            }),
            Step::GroupedGemm(GroupedGemm::Outer { dtype, x, y, offsets, w, extents }) => Resolved::Grouped(Grouped {
                dtype: *dtype,
                memory: [at(x), at(w), at(y)],
                offsets: at(offsets).cast::<i32>().cast_const(),
                extents: extents.each_ref().map(|d| self.size(d)),
                rows: None,
            }),
            Step::Copy { from, to, elems } => {
                let width: DType = self.e.buffers[from.buffer].dtype;
                Resolved::Copy { from: at(from), to: at(to), bytes: self.size(elems) * width.bytes() }
            }
            Step::Zero { at: v, elems } => Resolved::Zero { at: at(v), bytes: self.size(elems) * self.e.buffers[v.buffer].dtype.bytes() },
            Step::Loop { .. } => base::bug!("loops are flattened before they are resolved"),
        }
    }
}

/// Runs a step.
///
/// # Safety
/// The step's pointers are valid for its extents, and nothing else uses the memory.
unsafe fn execute(device: &HostDevice, step: &Resolved) {
    // SAFETY: the caller vouches for the pointers.
    unsafe {
        match step {
            Resolved::Launch { launch, .. } => device.launch(launch),
            Resolved::Product(p) => device.multiply(p),
            Resolved::Grouped(g) => device.multiply_groups(g),
            Resolved::Copy { from, to, bytes } => std::ptr::copy(*from, *to, *bytes),
            Resolved::Zero { at, bytes } => at.write_bytes(0, *bytes),
        }
    }
}
