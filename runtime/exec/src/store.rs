//! Tensors that outlive a call: parameters, states, gradients, moments, tallies. By role and name, in the device's memory.

use crate::{
    ExecError, HostTensor,
    checkpoint::{Contents, MOMENT, Piece},
    random::Stream,
    tensor,
};
use base::DType;
use device::{Device, Memory};
use library::{Entry, Init, Manifest, Param, Port, Role, names};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

/// A tensor of the store.
#[derive(Debug)]
pub struct Slot {
    /// Its dtype.
    pub dtype: DType,
    /// Its extents.
    pub shape: Vec<i64>,
    /// Its elements.
    pub memory: Memory,
}

/// A parameter's name, and that of the tensor that stands for it where a weight file lacks it: in Hugging Face's files a tied head has no
/// tensor of its own.
pub const TIED: &[(&str, &str)] = &[("lm_head.weight", "model.embed_tokens.weight")];

/// Tensors by role and name.
#[derive(Default)]
pub struct Store {
    slots: BTreeMap<(Role, String), Slot>,
    /// Where they lie; none is the host.
    device: Option<Arc<Device>>,
}

impl Store {
    /// An empty store on a device.
    pub(crate) fn on(device: &Arc<Device>) -> Store {
        Store { slots: BTreeMap::new(), device: Some(device.clone()) }
    }
    /// Brings what the host knows of all tensors up to date.
    ///
    /// # Errors
    /// E0443 if the device fails.
    pub fn refresh(&self) -> Result<(), ExecError> {
        Ok(self.slots.values().try_for_each(|s| s.memory.refresh())?)
    }
    /// The tensor, made of zeros if it is not there.
    ///
    /// # Errors
    /// E0703 if there is no memory for it.
    pub fn slot(&mut self, role: Role, name: &str, dtype: DType, shape: &[i64]) -> Result<&mut Slot, ExecError> {
        let key = (role, name.to_string());
        if !self.slots.contains_key(&key) {
            let bytes = shape.iter().product::<i64>().max(0) as usize * dtype.bytes();
            let memory = allocate(self.device.as_deref(), bytes, name, false)?;
            self.slots.insert(key.clone(), Slot { dtype, shape: shape.to_vec(), memory });
        }
        Ok(self.slots.get_mut(&key).expect("inserted above"))
    }
    /// The tensor, if it is there.
    pub fn get(&self, role: Role, name: &str) -> Option<&Slot> {
        self.slots.get(&(role, name.to_string()))
    }
    /// The tensor, if it is there, to be changed.
    pub(crate) fn get_mut(&mut self, role: Role, name: &str) -> Option<&mut Slot> {
        self.slots.get_mut(&(role, name.to_string()))
    }
    /// All tensors by role and name.
    pub fn iter(&self) -> impl Iterator<Item = ((Role, &str), &Slot)> {
        self.slots.iter().map(|((role, name), slot)| ((*role, name.as_str()), slot))
    }
    /// The same, to be changed.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = ((Role, &str), &mut Slot)> {
        self.slots.iter_mut().map(|((role, name), slot)| ((*role, name.as_str()), slot))
    }
    /// All tensors of a role, by name.
    pub fn of_role(&mut self, role: Role) -> impl Iterator<Item = (&str, &mut Slot)> {
        self.slots.iter_mut().filter(move |((r, _), _)| *r == role).map(|((_, n), s)| (n.as_str(), s))
    }
    /// Zeros every tensor of a role.
    pub fn zero(&mut self, role: Role) {
        self.of_role(role).for_each(|(_, s)| s.memory.fill(0));
    }
    /// Bytes by role.
    pub fn bytes(&self) -> BTreeMap<Role, u64> {
        let mut out = BTreeMap::new();
        for ((role, _), slot) in &self.slots {
            *out.entry(*role).or_insert(0) += slot.memory.len() as u64;
        }
        out
    }

    /// Initialises parameters and states. An element depends on the seed, its tensor's name in a file and its place there alone, so
    /// that neither stacking nor threads matter.
    ///
    /// # Errors
    /// E0703 if there is no memory for them.
    pub fn initialise(&mut self, manifest: &Manifest, seed: u64) -> Result<(), ExecError> {
        let bytes = |p: &Param| p.shape.iter().fold(p.dtype.bytes() as u64, |n, d| n.saturating_mul(d.max(&0).unsigned_abs()));
        let new = manifest.params.iter().filter(|p| self.get(p.role, &p.name).is_none());
        admit(self.device.as_deref(), new.fold(0, |n, p| n.saturating_add(bytes(p))), "parameters")?;
        for p in &manifest.params {
            let (names, shape) = names::expand(&p.name, &p.shape);
            let slot = self.slot(p.role, &p.name, p.dtype, &p.shape)?;
            let each = shape.iter().product::<i64>().max(0) as usize;
            let piece = PIECE * p.dtype.bytes();
            let mut pieces: Vec<(Stream, u64, &mut [u8])> = Vec::new();
            for (name, tensor) in names.iter().zip(slot.memory.bytes_mut().chunks_mut((each * p.dtype.bytes()).max(1))) {
                let stream = Stream::new(seed, name);
                pieces.extend(tensor.chunks_mut(piece).enumerate().map(|(i, bytes)| (stream, (i * PIECE) as u64, bytes)));
            }
            let fill = |pieces: &mut [(Stream, u64, &mut [u8])]| {
                pieces.iter_mut().for_each(|(stream, first, bytes)| draw(p, stream, *first, bytes));
            };
            let threads = std::thread::available_parallelism().map_or(1, usize::from);
            let share = pieces.len().div_ceil(threads).max(1);
            if share == pieces.len() {
                fill(&mut pieces);
            } else {
                std::thread::scope(|s| {
                    for part in pieces.chunks_mut(share) {
                        s.spawn(|| fill(part));
                    }
                });
            }
        }
        Ok(())
    }

    /// The tensors of a weight file: parameters and states under their expanded names.
    pub(crate) fn pieces(&self, manifest: &Manifest) -> Vec<Piece<'_>> {
        let mut out = Vec::new();
        for p in &manifest.params {
            let Some(slot) = self.get(p.role, &p.name) else { continue };
            let (names, shape) = names::expand(&p.name, &p.shape);
            let each = slot.memory.len() / names.len().max(1);
            for (i, name) in names.into_iter().enumerate() {
                let bytes = &slot.memory.bytes()[i * each..(i + 1) * each];
                out.push(Piece { name, dtype: p.dtype, shape: shape.clone(), bytes });
            }
        }
        out
    }
    /// A copy of the tensors of a weight file.
    pub fn to_file(&self, manifest: &Manifest) -> Vec<(String, HostTensor)> {
        let tensor = |p: Piece| (p.name, HostTensor { dtype: p.dtype, shape: p.shape, bytes: p.bytes.to_vec() });
        self.pieces(manifest).into_iter().map(tensor).collect()
    }

    /// Takes parameters and states from a weight file, converting floats to the storage dtype. A missing state starts as declared.
    /// `tied`: a parameter's name, and the tensor that stands for it if it is not in the file.
    ///
    /// # Errors
    /// E0705 if the file cannot be read, E0706 with every missing tensor, wrong shape or dtype and unused tensor; then nothing is changed.
    pub fn load_weights(&mut self, manifest: &Manifest, path: &Path, tied: &[(&str, &str)]) -> Result<(), ExecError> {
        let files = crate::checkpoint::read(path)?;
        let file = Contents::parse_all(&files)?;
        let fill = self.match_names(manifest, &file, tied, true);
        let fill = fill.map_err(|mismatches| ExecError::Weights { path: path.display().to_string(), mismatches })?;
        self.fill(manifest, fill)
    }

    /// What each parameter takes its bytes from; none for a state that the file lacks, if that is `lenient`.
    ///
    /// # Errors
    /// Everything that does not fit, a line each.
    pub(crate) fn match_names<'f>(
        &self,
        manifest: &Manifest,
        file: &'f Contents<'f>,
        tied: &[(&str, &str)],
        lenient: bool,
    ) -> Result<Vec<Option<Vec<&'f Piece<'f>>>>, String> {
        let ignored = |n: &str| n.starts_with(MOMENT) || n.contains("rotary_emb.inv_freq");
        let mut unused: BTreeSet<&str> = file.pieces.keys().map(String::as_str).filter(|n| !ignored(n)).collect();
        let mut problems = Vec::new();
        let mut out = Vec::new();
        for p in &manifest.params {
            let (names, shape) = names::expand(&p.name, &p.shape);
            let mut found = Vec::new();
            for name in &names {
                let other = tied.iter().find(|(n, _)| n == name).map(|(_, other)| *other);
                let Some(piece) = file.pieces.get(name).or_else(|| file.pieces.get(other?)) else {
                    if p.role != Role::State || !lenient {
                        problems.push(format!("  {name} {shape:?} is missing"));
                    }
                    continue;
                };
                unused.remove(piece.name.as_str());
                if piece.shape != shape {
                    problems.push(format!("  {name} is {:?}, not {shape:?}", piece.shape));
                } else if piece.dtype.is_float() != p.dtype.is_float() {
                    problems.push(format!("  {name} is {}, not {}", piece.dtype, p.dtype));
                } else {
                    found.push(piece);
                }
            }
            out.push((found.len() == names.len()).then_some(found));
        }
        problems.extend(file.foreign.iter().map(|(n, dtype)| format!("  {n} is of dtype {dtype}, which is not read")));
        problems.extend(unused.iter().map(|n| format!("  {n} is not of the model")));
        if problems.is_empty() { Ok(out) } else { Err(problems.join("\n")) }
    }
    /// Fills parameters with what `match_names` found.
    pub(crate) fn fill(&mut self, manifest: &Manifest, found: Vec<Option<Vec<&Piece>>>) -> Result<(), ExecError> {
        for (p, found) in manifest.params.iter().zip(found) {
            let Some(found) = found else { continue };
            let slot = self.slot(p.role, &p.name, p.dtype, &p.shape)?;
            let each = slot.memory.len() / found.len().max(1);
            for (piece, to) in found.iter().zip(slot.memory.bytes_mut().chunks_mut(each.max(1))) {
                convert(piece, p.dtype, to);
            }
        }
        Ok(())
    }
}

/// Fails if there is no memory for so many bytes. The system promises more than it has, so it is asked before.
fn admit(device: Option<&Device>, bytes: u64, what: &str) -> Result<(), ExecError> {
    // Not worth a look at the system's files.
    const SMALL: u64 = 1 << 20;
    let available = if bytes < SMALL { None } else { available(device) };
    match available {
        Some(n) if bytes > n => Err(no_memory(bytes, n, what)),
        _ => Ok(()),
    }
}

fn no_memory(bytes: u64, available: u64, what: &str) -> ExecError {
    ExecError::Memory { needed_mib: bytes.div_ceil(1 << 20), available_mib: available >> 20, table: format!("for {what}") }
}

/// What a device has left. # Units: bytes.
fn available(device: Option<&Device>) -> Option<u64> {
    device.map_or_else(device::memory::available_bytes, Device::available_bytes)
}

/// Zeros, if there is memory for them. If `pinned`, transfers between host and device are fast.
///
/// # Errors
/// E0703.
pub(crate) fn allocate(device: Option<&Device>, bytes: usize, what: &str, pinned: bool) -> Result<Memory, ExecError> {
    admit(device, bytes as u64, what)?;
    let memory = device.map_or_else(|| Ok(Memory::new(bytes)), |d| d.memory(bytes, pinned))?;
    memory.ok_or_else(|| no_memory(bytes as u64, available(device).unwrap_or(0), what))
}

/// Calls `f` with the memory of each argument and output of an entry, and whether it is an output: what `own` finds in `owned`, else what the store has.
///
/// # Errors
/// What `f` says.
pub(crate) fn each_memory<O>(
    e: &Entry,
    (owned, own): (&mut O, impl for<'o> Fn(&'o mut O, &Port) -> Option<&'o mut Memory>),
    store: &mut Store,
    f: impl Fn(&mut Memory, bool) -> Result<(), ExecError>,
) -> Result<(), ExecError> {
    for (p, is_output) in e.args.iter().map(|p| (p, false)).chain(e.outputs.iter().map(|p| (p, true))) {
        match own(owned, p) {
            Some(memory) => f(memory, is_output)?,
            None => f(&mut store.get_mut(p.role, &p.name).expect("resolving made it").memory, is_output)?,
        }
    }
    Ok(())
}

/// Brings what an entry reads to the device, for [`each_memory`].
pub(crate) fn send(memory: &mut Memory, _is_output: bool) -> Result<(), ExecError> {
    Ok(memory.send()?)
}

/// An entry wrote its outputs, for [`each_memory`]. Never fails.
pub(crate) fn written(memory: &mut Memory, is_output: bool) -> Result<(), ExecError> {
    if is_output {
        memory.written();
    }
    Ok(())
}

/// Elements that are drawn or converted at once.
const PIECE: usize = 1 << 14;

/// Elements `first..` of a tensor's stream.
fn draw(p: &Param, s: &Stream, first: u64, to: &mut [u8]) {
    let n = (to.len() / p.dtype.bytes()) as u64;
    let mut bytes = Vec::with_capacity(to.len());
    for i in first..first + n {
        let x = match p.init {
            Init::Normal(std) => std * s.normal(i),
            Init::Uniform(a) => a * (2.0 * s.uniform(i) - 1.0),
            Init::Constant(c) => c,
        };
        tensor::push(p.dtype, x, &mut bytes);
    }
    to.copy_from_slice(&bytes);
}

/// Copies a tensor, rounding to the dtype.
fn convert(piece: &Piece, dtype: DType, to: &mut [u8]) {
    if piece.dtype == dtype {
        return to.copy_from_slice(piece.bytes);
    }
    let from = piece.bytes.chunks(PIECE * piece.dtype.bytes());
    for (from, to) in from.zip(to.chunks_mut(PIECE * dtype.bytes())) {
        let mut bytes = Vec::with_capacity(to.len());
        tensor::read(piece.dtype, from).into_iter().for_each(|x| tensor::push(dtype, x, &mut bytes));
        to.copy_from_slice(&bytes);
    }
}

#[cfg(test)]
mod tests;
