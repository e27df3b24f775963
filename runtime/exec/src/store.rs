//! Tensors that outlive a call: parameters, states, gradients, moments, tallies. By role and name, in the device's memory.

use crate::{ExecError, HostTensor, random::Stream};
use base::DType;
use device::Memory;
use library::{Init, Manifest, Role, names};
use std::{collections::BTreeMap, path::Path};

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

/// Tensors by role and name.
#[derive(Debug, Default)]
pub struct Store {
    slots: BTreeMap<(Role, String), Slot>,
}

impl Store {
    /// The tensor, made of zeros if it is not there.
    ///
    /// # Errors
    /// E0703 if there is no memory for it.
    pub fn slot(&mut self, role: Role, name: &str, dtype: DType, shape: &[i64]) -> Result<&mut Slot, ExecError> {
        let key = (role, name.to_string());
        if !self.slots.contains_key(&key) {
            let bytes = shape.iter().product::<i64>().max(0) as usize * dtype.bytes();
            let memory = Memory::new(bytes).ok_or_else(|| ExecError::Memory {
                needed_mib: bytes as u64 >> 20,
                available_mib: device::memory::available_bytes().unwrap_or(0) >> 20,
                table: format!("for {name}"),
            })?;
            self.slots.insert(key.clone(), Slot { dtype, shape: shape.to_vec(), memory });
        }
        Ok(self.slots.get_mut(&key).expect("inserted above"))
    }
    /// The tensor, if it is there.
    pub fn get(&self, role: Role, name: &str) -> Option<&Slot> {
        self.slots.get(&(role, name.to_string()))
    }
    /// All tensors of a role, by name.
    pub fn of_role(&mut self, role: Role) -> impl Iterator<Item = (&str, &mut Slot)> {
        self.slots.iter_mut().filter(move |((r, _), _)| *r == role).map(|((_, n), s)| (n.as_str(), s))
    }
    /// Zeros every tensor of a role.
    pub fn zero(&mut self, role: Role) {
        self.of_role(role).for_each(|(_, s)| s.memory.bytes_mut().fill(0));
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
    /// E0703.
    pub fn initialise(&mut self, manifest: &Manifest, seed: u64) -> Result<(), ExecError> {
        for p in &manifest.params {
            let (names, _) = names::expand(&p.name, &p.shape);
            let elems = p.shape.iter().product::<i64>().max(0) as usize;
            let each = elems / names.len().max(1);
            let mut data = Vec::with_capacity(elems);
            for name in &names {
                let s = Stream::new(seed, name);
                data.extend((0..each as u64).map(|i| match p.init {
                    Init::Normal(std) => std * s.normal(i),
                    Init::Uniform(a) => a * (2.0 * s.uniform(i) - 1.0),
                    Init::Constant(c) => c,
                }));
            }
            let t = HostTensor::from_f64(p.dtype, &p.shape, data);
            self.slot(p.role, &p.name, p.dtype, &p.shape)?.memory.bytes_mut().copy_from_slice(&t.bytes);
        }
        Ok(())
    }

    /// The tensors of a weight file: parameters and states under their expanded names.
    pub fn to_file(&self, manifest: &Manifest) -> Vec<(String, HostTensor)> {
        let mut out = Vec::new();
        for p in &manifest.params {
            let Some(slot) = self.get(p.role, &p.name) else { continue };
            let (names, shape) = names::expand(&p.name, &p.shape);
            let each = slot.memory.len() / names.len().max(1);
            for (i, name) in names.into_iter().enumerate() {
                let bytes = slot.memory.bytes()[i * each..(i + 1) * each].to_vec();
                out.push((name, HostTensor { dtype: p.dtype, shape: shape.clone(), bytes }));
            }
        }
        out
    }

    /// Takes parameters and states from a weight file, converting floats to the storage dtype. A missing state starts as declared.
    ///
    /// # Errors
    /// E0706 with every missing tensor, wrong shape and unused tensor; then nothing is changed.
    pub fn load_weights(&mut self, manifest: &Manifest, path: &Path, tied: &[(&str, &str)]) -> Result<(), ExecError> {
        let bytes = std::fs::read(path).map_err(|e| ExecError::io(path, &e))?;
        let file = crate::checkpoint::parse(&bytes, path)?;
        let mut unused: std::collections::BTreeSet<&str> = file.keys().map(String::as_str).collect();
        let mut problems = Vec::new();
        let mut loaded = Vec::new();
        for p in &manifest.params {
            let (names, shape) = names::expand(&p.name, &p.shape);
            let mut data = Vec::new();
            let mut whole = true;
            for name in &names {
                let alias = tied.iter().find(|(n, _)| n == name).map(|(_, other)| *other);
                let Some(t) = file.get(name).or_else(|| alias.and_then(|a| file.get(a))) else {
                    whole = false;
                    if p.role == Role::Param {
                        problems.push(format!("  {name} {shape:?} is missing"));
                    }
                    continue;
                };
                unused.remove(name.as_str());
                if t.shape != shape {
                    problems.push(format!("  {name} is {:?}, not {shape:?}", t.shape));
                    whole = false;
                } else {
                    data.extend(t.cast(p.dtype).bytes);
                }
            }
            if whole {
                loaded.push((p, data));
            }
        }
        problems
            .extend(unused.iter().filter(|n| !n.contains("rotary_emb.inv_freq")).map(|n| format!("  {n} is not of the model")));
        if !problems.is_empty() {
            return Err(ExecError::Weights { path: path.display().to_string(), mismatches: problems.join("\n") });
        }
        for (p, data) in loaded {
            self.slot(p.role, &p.name, p.dtype, &p.shape)?.memory.bytes_mut().copy_from_slice(&data);
        }
        Ok(())
    }
}
