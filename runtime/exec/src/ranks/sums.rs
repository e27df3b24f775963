//! Tensors that several ranks have alike, summed element by element in order of the ranks, where they lie: each part goes to who adds it up, and from there to
//! who wants it. So the bits are the same whatever carries the parts, and on a host as on a GPU.

use super::room::Room;
use crate::{ExecError, store::Slot, tensor};
use base::DType;
use device::{Device, cuda};
use fabric::{Direct, Span, Tag};
use std::sync::Arc;

/// Parts that are added up at once; fewer, larger messages against memory. # Units: bytes.
const BATCH: usize = 64 << 20;
/// So that every part is aligned for its numbers. # Units: bytes.
const ALIGN: usize = 16;

/// What a rank adds up with.
pub(super) struct Sums {
    device: Arc<Device>,
    kernels: Option<cuda::Sums>,
    /// Parts, one after the other.
    parts: Room,
}

/// Some ranks that have the same tensors.
pub(super) struct Among<'a> {
    pub way: &'a dyn Direct,
    /// In the order in which sums are taken.
    pub members: &'a [usize],
    /// This rank's place among them.
    pub own: usize,
    pub tag: Tag,
}

impl Among<'_> {
    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let own = self.own;
        (0..self.members.len()).filter(move |m| *m != own)
    }
    /// # Safety
    /// As [`Direct::swap`].
    unsafe fn swap(&self, sends: &[(usize, Span)], receives: &[(usize, Span)]) -> Result<(), ExecError> {
        // Stages of one rank may share a parameter.
        if self.members.len() < 2 {
            return Ok(());
        }
        // SAFETY: the caller vouches for the memory.
        Ok(unsafe { self.way.swap(self.members, self.tag, sends, receives) }?)
    }
}

/// Where a tensor lies, after what the host changed of it was sent there.
fn span(slot: &mut Slot) -> Result<Span, ExecError> {
    slot.memory.send()?;
    Ok(Span { at: slot.memory.as_ptr(), bytes: slot.memory.len() })
}

/// Gives each tensor of its owner to all others.
///
/// # Errors
/// E0443, and what the fabric says.
pub(super) fn spread(device: &Device, among: &Among, slots: &mut [(usize, &mut Slot)]) -> Result<(), ExecError> {
    let (mut sends, mut receives) = (Vec::new(), Vec::new());
    for (owner, slot) in slots.iter_mut() {
        let s = span(slot)?;
        if *owner == among.own {
            sends.extend(among.others().map(|m| (m, s)));
        } else {
            receives.push((*owner, s));
        }
    }
    device.wait()?;
    // SAFETY: the spans are of tensors of this rank's store, which nothing else uses.
    unsafe { among.swap(&sends, &receives) }?;
    slots.iter_mut().filter(|(owner, _)| *owner != among.own).for_each(|(_, slot)| slot.memory.written());
    Ok(())
}

impl Sums {
    /// For tensors of a device.
    ///
    /// # Errors
    /// E0442.
    pub fn new(device: Arc<Device>) -> Result<Sums, ExecError> {
        let (kernels, parts) = (device.sums()?, Room::new(device.clone(), "parts of sums"));
        Ok(Sums { device, kernels, parts })
    }
    /// Starts the sum of tensors that lie one after the other, in order.
    ///
    /// # Safety
    /// The device's memory is there, and nothing else uses it.
    unsafe fn add(&self, dtype: DType, to: *mut u8, parts: *const u8, count: usize, bytes: usize) -> Result<(), ExecError> {
        if let Some(kernels) = &self.kernels {
            // SAFETY: the caller vouches for the memory.
            if unsafe { kernels.start(dtype, to, parts, (count, bytes / dtype.bytes())) }? {
                return Ok(());
            }
        }
        // SAFETY: as above.
        let read = |k: usize| unsafe { self.device.read(parts.wrapping_add(k * bytes), bytes) };
        let all = (0..count).map(read).collect::<Result<Vec<_>, _>>()?;
        let sum = sum(dtype, &all);
        // SAFETY: as above.
        Ok(unsafe { self.device.write(to, &sum) }?)
    }
    /// Sums tensors over the members, each where its owner is, and then everywhere if that is asked for.
    ///
    /// # Errors
    /// E0443, and what the fabric says.
    pub fn reduce(&mut self, among: &Among, mut slots: Vec<(usize, &mut Slot)>, everywhere: bool) -> Result<(), ExecError> {
        let count = among.members.len();
        let mut rest = &mut slots[..];
        while !rest.is_empty() {
            let (mut n, mut bytes) = (0, 0);
            while n < rest.len() && (n == 0 || bytes + rest[n].1.memory.len() * count <= BATCH) {
                bytes += rest[n].1.memory.len() * count;
                n += 1;
            }
            let (batch, after) = rest.split_at_mut(n);
            self.reduce_batch(among, batch, everywhere)?;
            rest = after;
        }
        Ok(())
    }
    fn reduce_batch(&mut self, among: &Among, slots: &mut [(usize, &mut Slot)], everywhere: bool) -> Result<(), ExecError> {
        let count = among.members.len();
        let (mut sends, mut receives, mut sums, mut at) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for (owner, slot) in slots.iter_mut() {
            let s = span(slot)?;
            if *owner == among.own {
                sums.push((slot.dtype, s, at));
                at = (at + s.bytes * count).next_multiple_of(ALIGN);
            } else {
                sends.push((*owner, s));
            }
        }
        let parts = self.parts.take(at)?.at;
        for (_, s, at) in &sums {
            let part = |m: usize| Span { at: parts.wrapping_add(at + m * s.bytes), bytes: s.bytes };
            receives.extend(among.others().map(|m| (m, part(m))));
            // SAFETY: the tensor and its part have as many bytes, and nothing else uses them.
            unsafe { self.device.copy(s.at, part(among.own).at, s.bytes) }?;
        }
        self.device.wait()?;
        // SAFETY: the spans are of tensors of this rank's store and of `parts`, which nothing else uses.
        unsafe { among.swap(&sends, &receives) }?;
        for (dtype, s, at) in sums {
            // SAFETY: as above.
            unsafe { self.add(dtype, s.at, parts.wrapping_add(at), count, s.bytes) }?;
        }
        slots.iter_mut().filter(|(owner, _)| *owner == among.own).for_each(|(_, slot)| slot.memory.written());
        if everywhere { spread(&self.device, among, slots) } else { Ok(self.device.wait()?) }
    }
    /// Sums a tensor that several stages have: the part of stage i is with member `owners[i]`. `slots` are this rank's, by stage; all get the sum.
    ///
    /// # Errors
    /// As [`Sums::reduce`].
    pub fn reduce_stages(&mut self, among: &Among, owners: &[usize], slots: &mut [(usize, &mut Slot)]) -> Result<(), ExecError> {
        let (dtype, bytes) = slots.first().map_or((DType::F32, 0), |(_, s)| (s.dtype, s.memory.len()));
        let parts = self.parts.take(bytes * owners.len())?.at;
        let (mut sends, mut receives) = (Vec::new(), Vec::new());
        for (stage, owner) in owners.iter().enumerate() {
            let part = Span { at: parts.wrapping_add(stage * bytes), bytes };
            if *owner != among.own {
                receives.push((*owner, part));
                continue;
            }
            let (_, slot) = slots.iter_mut().find(|(s, _)| *s == stage).expect("an owner has the stage");
            let s = span(slot)?;
            // SAFETY: both have as many bytes, and nothing else uses them.
            unsafe { self.device.copy(s.at, part.at, bytes) }?;
            sends.extend(among.others().map(|m| (m, s)));
        }
        self.device.wait()?;
        // SAFETY: as in `reduce_batch`.
        unsafe { among.swap(&sends, &receives) }?;
        for (_, slot) in slots.iter_mut() {
            // SAFETY: as above.
            unsafe { self.add(dtype, slot.memory.as_ptr(), parts, owners.len(), bytes) }?;
            slot.memory.written();
        }
        Ok(self.device.wait()?)
    }
}

/// The sum of tensors, in order: of f64 in f64, of all others in f32, rounded once.
fn sum(dtype: DType, parts: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(parts[0].len());
    let mut push = |x: f64| tensor::push(dtype, x, &mut bytes);
    let numbers = |part: &Vec<u8>| tensor::read(dtype, part);
    if dtype == DType::F64 {
        let mut sum = numbers(&parts[0]);
        parts[1..].iter().for_each(|part| sum.iter_mut().zip(numbers(part)).for_each(|(s, x)| *s += x));
        sum.into_iter().for_each(&mut push);
    } else {
        let mut sum: Vec<f32> = numbers(&parts[0]).into_iter().map(|x| x as f32).collect();
        parts[1..].iter().for_each(|part| sum.iter_mut().zip(numbers(part)).for_each(|(s, x)| *s += x as f32));
        sum.into_iter().for_each(|x| push(f64::from(x)));
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{HostTensor, ranks::execute::tag, testing::bare_host};
    use device::Memory;
    use fabric::{Channel, Fabric, Staged, Timeouts, threads};

    fn slot(dtype: DType, x: f64, elems: usize) -> Slot {
        let t = HostTensor::from_f64(dtype, &[elems as i64], vec![x; elems]);
        let mut memory = Memory::new(t.bytes.len()).expect("there is that much");
        memory.bytes_mut().copy_from_slice(&t.bytes);
        Slot { dtype, shape: t.shape, memory }
    }

    #[test]
    fn sums_are_taken_in_the_members_order_at_the_owner_or_everywhere() {
        // In the order 4, 0, 2: (1e8 + 1) - 1e8 is 0 in f32 and 1 in f64; in bf16 the sum is rounded once.
        let own = [1.0, 5.0, -1e8, 6.0, 1e8];
        let of = |f: &threads::Threads, everywhere: bool| {
            let device = Arc::new(bare_host());
            let members = if f.rank().is_multiple_of(2) { vec![4, 0, 2] } else { vec![3, 1] };
            let place = members.iter().position(|m| *m == f.rank()).expect("a rank is in its set");
            let staged = Staged { fabric: f, device: device.clone(), checked: true };
            let tag = tag(b"SUMS", Channel(3 + u32::from(everywhere)), (0, 0, 0), 1);
            let among = Among { way: &staged, members: &members, own: place, tag };
            let x = own[f.rank()];
            // The last is empty, and none but the third is owned by the first member.
            let mut tensors = [slot(DType::F32, x, 3), slot(DType::F64, x, 2), slot(DType::BF16, x, 5), slot(DType::F32, x, 0)];
            let owned = tensors.iter_mut().zip([1, 1, 0, 1]).map(|(slot, owner)| (owner, slot)).collect();
            Sums::new(device).expect("the host needs none").reduce(&among, owned, everywhere).expect("all are there");
            tensors.map(|t| tensor::read(t.dtype, t.memory.bytes()))
        };
        for everywhere in [false, true] {
            let got: Vec<_> = std::thread::scope(|s| {
                let world = threads::world(5, Timeouts::default()).into_iter();
                let of = &of;
                let ranks: Vec<_> = world.map(|f| s.spawn(move || of(&f, everywhere))).collect();
                ranks.into_iter().map(|r| r.join().expect("no rank panics")).collect()
            });
            // Member 1 of each set owns the first two: ranks 0 and 1.
            assert_eq!(got[0][..2], [vec![0.0; 3], vec![1.0; 2]]);
            assert_eq!(got[1][..2], [vec![11.0; 3], vec![11.0; 2]]);
            assert_eq!((&got[4][2], &got[3][2]), (&vec![0.0; 5], &vec![11.0; 5]));
            let others = if everywhere { [vec![0.0; 3], vec![1.0; 2]] } else { [vec![-1e8; 3], vec![-1e8; 2]] };
            assert_eq!(got[2][..2], others, "{everywhere}");
        }
    }
}
