//! The entries of a pair with memory of their own. In: sessions of one device, of the stage that goes forward and of the one that goes backward. Out:
//! steps with addresses, and where each tensor lies that the entries take and make.

use super::{
    Half,
    list::{self, Steps},
};
use crate::{
    ExecError, Session,
    kept::{Pool, Shelf},
    plan::{self, Plan, size},
    resolve::{Scene, describe, flatten},
    store::{self, Store, allocate},
};
use base::DimEnv;
use device::{Device, Memory, Placed, Program};
use library::{Entry, LibraryError, Manifest, Port};
use std::collections::BTreeMap;

/// Tensors of a half that are no store's, by name.
type Own = BTreeMap<String, (Port, Memory)>;

/// A pair's entries, resolved.
pub(crate) struct Resolved {
    pub dims: DimEnv,
    pub entries: Vec<Entry>,
    pub program: Program,
    pub steps: Steps,
    /// Memory that is not the store's, by name.
    pub halves: [Own; 2],
    pub arenas: Vec<Memory>,
}

/// Entries that were resolved so far.
#[derive(Default)]
pub(super) struct Parts {
    entries: Vec<Entry>,
    all: Vec<(Plan, Vec<*mut u8>)>,
    steps: Vec<device::Step>,
    halves: [Own; 2],
    arenas: Vec<Memory>,
    workspace: usize,
}

impl Parts {
    /// Resolves the next entry for a session's memory and memory of its own.
    pub fn add(&mut self, session: &mut Session, e: Entry, half: Half, dims: &DimEnv) -> Result<(), ExecError> {
        let plan = plan::plan_apart(&e, dims)?;
        let arena = allocate(Some(&session.device), plan.arena_bytes, "activations", false)?;
        let bases = self.bases(session, &e, &plan, (&arena, half))?;
        let scene = Scene { entry: &e, plan: &plan, bases: &bases, kernels: &session.manifest.kernels, fixed: session.fixed };
        let resolved: Result<Vec<_>, _> = flatten(&e.steps).into_iter().map(|(s, turns)| scene.resolve(s, &turns)).collect();
        self.steps.extend(resolved.map_err(|why| LibraryError::Invalid { name: e.name.clone(), why })?);
        self.workspace = self.workspace.max(session.workspace(&e.steps, dims));
        self.arenas.push(arena);
        self.all.push((plan, bases));
        self.entries.push(e);
        Ok(())
    }
    /// The first byte of each buffer; memory that is not the store's is made where it is not there.
    fn bases(
        &mut self,
        session: &mut Session,
        e: &Entry,
        plan: &Plan,
        (arena, half): (&Memory, Half),
    ) -> Result<Vec<*mut u8>, ExecError> {
        let own = &mut self.halves[half as usize];
        let mut bases = vec![std::ptr::null_mut::<u8>(); e.buffers.len()];
        for p in e.args.iter().chain(&e.outputs) {
            bases[p.buffer] = if p.role.is_stored() {
                session.stored(e, p, plan)?
            } else {
                if !own.contains_key(&p.name) {
                    let memory = allocate(Some(&session.device), plan.bytes[p.buffer], &p.name, false)?;
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
    /// All of them for a device.
    pub fn resolve(mut self, device: &Device, dims: &DimEnv) -> Result<Resolved, ExecError> {
        let steps = Steps::new(&self.entries, &self.all)?;
        // Kernels run on one stream, so they share it.
        let workspace = allocate(Some(device), self.workspace, "workspace", false)?;
        let program = device.prepare(self.steps, workspace.as_ptr())?;
        self.arenas.push(workspace);
        Ok(Resolved { dims: dims.clone(), entries: self.entries, program, steps, halves: self.halves, arenas: self.arenas })
    }
}

impl Resolved {
    /// The forward of one stage and the backward of another, on one device and with the same kernels.
    ///
    /// # Errors
    /// As `Session::pair`.
    pub fn of_two(forward: &mut Session, backward: &mut Session, dims: &DimEnv) -> Result<Resolved, ExecError> {
        let mut parts = Parts::default();
        let [ahead, back] = [&forward.manifest, &backward.manifest].map(|m| list::entries(m, dims));
        parts.add(forward, ahead?.swap_remove(0), Half::Forward, dims)?;
        for e in back?.into_iter().skip(1) {
            parts.add(backward, e, Half::Backward, dims)?;
        }
        parts.resolve(&forward.device.clone(), dims)
    }
    /// The list of the pair.
    ///
    /// # Errors
    /// E0704 if a layer's steps do not go into the order of `schedule::pair`: what one needs would come after it.
    pub fn interleaved(&self, manifest: &Manifest) -> Result<Vec<Placed>, ExecError> {
        self.steps.interleaved(&|s| describe(&self.program.steps[s], manifest))
    }
    /// Memory of its own. # Units: bytes.
    pub fn bytes(&self) -> u64 {
        let own = self.halves.iter().flat_map(BTreeMap::values).map(|(_, m)| m);
        own.chain(&self.arenas).map(|m| m.len() as u64).sum()
    }
    /// Brings what an entry reads to the device; `store` is its session's.
    pub fn send(&mut self, entry: usize, store: &mut Store) -> Result<(), ExecError> {
        self.each_memory(entry, store, store::send)
    }
    /// An entry wrote its outputs.
    pub fn written(&mut self, entry: usize, store: &mut Store) {
        self.each_memory(entry, store, store::written).expect("nothing can fail");
    }
    fn each_memory(
        &mut self,
        entry: usize,
        store: &mut Store,
        f: impl Fn(&mut Memory, bool) -> Result<(), ExecError>,
    ) -> Result<(), ExecError> {
        let half = &mut self.halves[Half::of(entry) as usize];
        let own = |p: &Port| !p.role.is_stored();
        store::each_memory(&self.entries[entry], (half, |h, p| h.get_mut(&p.name).filter(|_| own(p)).map(|(_, m)| m)), store, f)
    }
    /// The tensors of a half that its entries make, or take from elsewhere.
    fn ports(&self, half: Half, made: bool) -> Vec<Port> {
        let entries = || (0..self.entries.len()).filter(|k| Half::of(*k) == half).map(|k| &self.entries[k]);
        let is_made = |p: &Port| entries().any(|e| e.outputs.iter().any(|o| o.name == p.name));
        let all = entries().flat_map(|e| e.args.iter().chain(&e.outputs)).filter(|p| !p.role.is_stored());
        let mut out: Vec<Port> = all.filter(|p| is_made(p) == made).cloned().collect();
        out.sort_by(|a, b| a.name.cmp(&b.name));
        out.dedup_by(|a, b| a.name == b.name);
        out
    }
    /// Copies what a half takes out of a pool, which keeps it. The copies may be under way.
    ///
    /// # Errors
    /// E0704 if something is not there or has another shape; E0443.
    pub fn take_in(&mut self, half: Half, device: &Device, pool: &mut Pool) -> Result<(), ExecError> {
        let wrong = |name: &str, why: String| ExecError::Input { name: name.into(), why };
        for p in self.ports(half, false) {
            let t = pool.get_mut(&p.name).ok_or_else(|| wrong(&p.name, "a pair takes it, and it is not there".into()))?;
            let shape: Vec<i64> = p.shape.iter().map(|d| size(d, &self.dims)).collect();
            if (t.dtype, &t.shape) != (p.dtype, &shape) {
                return Err(wrong(&p.name, format!("{}{:?} is not {}{shape:?}", t.dtype, t.shape, p.dtype)));
            }
            t.memory.send()?;
            let own = &mut self.halves[half as usize].get_mut(&p.name).expect("resolving made it").1;
            // SAFETY: both have the bytes of the port's shape, on this device; who runs the pair waits for it.
            unsafe { device.copy(t.memory.as_ptr(), own.as_ptr(), own.len()) }?;
            own.written();
        }
        Ok(())
    }
    /// Copies what a half made and is wanted to a pool. The copies may be under way.
    ///
    /// # Errors
    /// E0703, E0443.
    pub fn give_out(
        &self,
        half: Half,
        device: &Device,
        (pool, shelf): (&mut Pool, &mut Shelf),
        wanted: impl Fn(&str) -> bool,
    ) -> Result<(), ExecError> {
        for p in self.ports(half, true).into_iter().filter(|p| wanted(&p.name)) {
            let own = &self.halves[half as usize][&p.name].1;
            let mut made = shelf.tensor(p.dtype, p.shape.iter().map(|d| size(d, &self.dims)).collect())?;
            // SAFETY: as above.
            unsafe { device.copy(own.as_ptr(), made.memory.as_ptr(), own.len()) }?;
            made.memory.written();
            shelf.insert(pool, p.name.clone(), made);
        }
        Ok(())
    }
}
