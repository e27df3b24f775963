//! The other members of a group that divides experts: an entry's exchanges are carried out between its steps. Offsets go over the host; rows go from where they
//! lie to where they belong if something carries them so, else over the host as well.

use crate::ExecError;
use device::{Device, Exchange, Memory, Program, Step, What};
use fabric::Span;
use std::ops::Range;

/// One of a group. All members run the same entries, so all come to the same exchanges in the same order.
pub trait Peers {
    /// Its number.
    fn rank(&self) -> usize;
    /// How many there are.
    fn size(&self) -> usize;
    /// Sends each member its part, of rows of `row` bytes (0 for what has no rows); what comes from each, of these lengths. # Units: bytes.
    ///
    /// # Errors
    /// What carries the parts says.
    fn all_to_all(&self, parts: Vec<Vec<u8>>, row: usize, lengths: &[usize]) -> Result<Vec<Vec<u8>>, ExecError>;
    /// Whether rows go from device to device: by [`Peers::swap`].
    fn is_direct(&self) -> bool {
        false
    }
    /// Sends and receives pieces of the device's memory, by member; returns when they have left and are there.
    ///
    /// # Errors
    /// What carries them says.
    ///
    /// # Safety
    /// As [`fabric::Direct::swap`].
    unsafe fn swap(&self, _sends: &[(usize, Span)], _receives: &[(usize, Span)]) -> Result<(), ExecError> {
        base::bug!("rows do not go from device to device here")
    }
}

/// Fails unless all exchanges of a program are among so many members.
pub(crate) fn check(program: &Program, entry: &str, peers: Option<&dyn Peers>) -> Result<(), ExecError> {
    let size = peers.map_or(1, Peers::size);
    let other = program.steps.iter().find_map(|s| match s {
        Step::Exchange(x) if x.members != size => Some(x.members),
        _ => None,
    });
    let why = |members| format!("experts are divided among {members} ranks, and it runs on {size}");
    other.map_or(Ok(()), |members| Err(ExecError::Input { name: entry.into(), why: why(members) }))
}

/// Carries out one exchange, after what the device was asked for before.
///
/// # Safety
/// The exchange's pointers are valid for its extents, and nothing else uses the memory meanwhile.
pub(crate) unsafe fn carry(device: &Device, x: &Exchange, peers: &dyn Peers) -> Result<(), ExecError> {
    if x.what != What::Offsets && peers.is_direct() {
        // SAFETY: the caller vouches for the memory.
        return unsafe { carry_direct(device, x, peers) };
    }
    let rank = peers.rank();
    let over_host = |x: &Exchange| -> Result<(), ExecError> {
        // SAFETY: as above.
        let (parts, lengths) = unsafe { (x.parts(rank), x.lengths(rank)) };
        let arrived = peers.all_to_all(parts, x.row, &lengths)?;
        // SAFETY: as above.
        unsafe { x.put(rank, &arrived) };
        Ok(())
    };
    if matches!(device, Device::Host(_)) {
        return over_host(x);
    }
    // The same with copies of the memory.
    let [given, made] = x.sizes();
    let told = x.told() * size_of::<i32>();
    let room = |bytes: usize| Memory::new(bytes).ok_or_else(|| ExecError::from(device::DeviceError::Memory { bytes, free: 0 }));
    let (mut from, mut all, mut to) = (room(given)?, room(told)?, room(made)?);
    // SAFETY: as above.
    unsafe {
        from.bytes_mut().copy_from_slice(&device.read(x.from, given)?);
        all.bytes_mut().copy_from_slice(&device.read(x.all.cast::<u8>(), told)?);
    }
    over_host(&Exchange { from: from.as_ptr(), all: all.as_ptr().cast(), to: to.as_ptr(), ..x.clone() })?;
    // SAFETY: as above.
    unsafe {
        if x.what == What::Offsets {
            device.write(x.all.cast::<u8>(), all.bytes())?;
        }
        device.write(x.to, to.bytes_mut())?;
    }
    Ok(())
}

/// Carries out an exchange of rows, piece by piece from where they lie.
///
/// # Safety
/// As [`carry`].
unsafe fn carry_direct(device: &Device, x: &Exchange, peers: &dyn Peers) -> Result<(), ExecError> {
    // SAFETY: the caller vouches for the memory. Reading waits for the device.
    let told = unsafe { device.read(x.all.cast::<u8>(), x.told() * size_of::<i32>()) }?;
    let told: Vec<i32> = told.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b)).collect();
    let places = x.places(peers.rank(), &told);
    let from = |r: &Range<usize>| Span { at: x.from.cast_mut().wrapping_add(r.start), bytes: r.len() };
    let to = |r: &Range<usize>| Span { at: x.to.wrapping_add(r.start), bytes: r.len() };
    let sends: Vec<_> = places.sends.iter().map(|(m, r)| (*m, from(r))).collect();
    let receives: Vec<_> = places.receives.iter().map(|(m, r)| (*m, to(r))).collect();
    // SAFETY: the places are within the exchange's extents, for which the caller vouches.
    unsafe {
        peers.swap(&sends, &receives)?;
        for (own, place) in &places.keeps {
            device.copy(from(own).at, to(place).at, own.len())?;
        }
        device.zero(to(&places.rest).at, places.rest.len())?;
    }
    Ok(())
}

/// Runs all steps of a program, exchanges among the members; on a GPU the last ones may still be under way.
///
/// # Safety
/// As `Device::run`.
pub(crate) unsafe fn run(device: &Device, program: &Program, peers: &dyn Peers) -> Result<(), ExecError> {
    let mut done = 0;
    for (i, step) in program.steps.iter().enumerate() {
        let Step::Exchange(x) = step else { continue };
        // SAFETY: the caller vouches for the steps' memory.
        unsafe {
            device.run_part(program, done..i)?;
            carry(device, x, peers)?;
        }
        done = i + 1;
    }
    // SAFETY: as above.
    Ok(unsafe { device.run_part(program, done..program.steps.len()) }?)
}
