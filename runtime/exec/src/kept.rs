//! Tensors that stay where a session's device has them from one entry to the next. Their memory is used again and never given back while a run goes on: to
//! free memory of a GPU would wait for all that its streams do, also for messages that have not come.

use crate::{
    ExecError, HostTensor,
    store::{Slot, allocate},
    tensor,
};
use base::DType;
use device::{Device, Memory};
use std::{collections::BTreeMap, sync::Arc};

/// Tensors by name.
pub type Pool = BTreeMap<String, Slot>;

/// Memory of a device that is free, by its size.
pub struct Shelf {
    device: Arc<Device>,
    free: BTreeMap<usize, Vec<Memory>>,
    made: u64,
}

impl Shelf {
    /// An empty one.
    pub fn new(device: Arc<Device>) -> Shelf {
        Shelf { device, free: BTreeMap::new(), made: 0 }
    }
    /// Memory with anything in it.
    ///
    /// # Errors
    /// E0703 if there is none.
    pub fn take(&mut self, bytes: usize) -> Result<Memory, ExecError> {
        if let Some(used) = self.free.get_mut(&bytes).and_then(Vec::pop) {
            return Ok(used);
        }
        self.made += bytes as u64;
        allocate(Some(&self.device), bytes, "tensors between entries", false)
    }
    /// All memory that was made. # Units: bytes.
    pub fn made(&self) -> u64 {
        self.made
    }
    /// A tensor with anything in it.
    ///
    /// # Errors
    /// E0703.
    pub fn tensor(&mut self, dtype: DType, shape: Vec<i64>) -> Result<Slot, ExecError> {
        let bytes = shape.iter().product::<i64>().max(0) as usize * dtype.bytes();
        Ok(Slot { dtype, shape, memory: self.take(bytes)? })
    }
    /// A copy of a tensor of the host.
    ///
    /// # Errors
    /// E0703, E0443.
    pub fn put(&mut self, t: &HostTensor) -> Result<Slot, ExecError> {
        let mut slot = self.tensor(t.dtype, t.shape.clone())?;
        slot.memory.set(&t.bytes);
        slot.memory.send()?;
        Ok(slot)
    }
    /// Takes memory back.
    pub fn give(&mut self, memory: Memory) {
        self.free.entry(memory.len()).or_default().push(memory);
    }
    /// Adds a tensor to a pool, in the place of what was called so.
    pub fn insert(&mut self, pool: &mut Pool, name: String, slot: Slot) {
        if let Some(old) = pool.insert(name, slot) {
            self.give(old.memory);
        }
    }
    /// Takes back all of a pool but what is still wanted.
    pub fn retain(&mut self, pool: &mut Pool, wanted: impl Fn(&str) -> bool) {
        let done: Vec<String> = pool.keys().filter(|n| !wanted(n)).cloned().collect();
        for name in done {
            let slot = pool.remove(&name).expect("just seen");
            self.give(slot.memory);
        }
    }
}

/// The first number of a tensor, if there is one.
///
/// # Errors
/// E0443.
pub fn number(pool: &Pool, name: &str) -> Result<Option<f64>, ExecError> {
    let Some(slot) = pool.get(name) else { return Ok(None) };
    slot.memory.refresh()?;
    Ok(tensor::read(slot.dtype, slot.memory.bytes()).first().copied())
}
