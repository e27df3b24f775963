//! The other members of a group that divides experts: an entry's exchanges are carried out between its steps, on the host.

use crate::ExecError;
use device::{Device, Exchange, Program, Step};

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

/// Carries out one exchange.
///
/// # Safety
/// The exchange's pointers are valid for its extents, and nothing else uses the memory meanwhile.
pub(crate) unsafe fn carry(x: &Exchange, peers: &dyn Peers) -> Result<(), ExecError> {
    let rank = peers.rank();
    // SAFETY: the caller vouches for the memory.
    let (parts, lengths) = unsafe { (x.parts(rank), x.lengths(rank)) };
    let arrived = peers.all_to_all(parts, x.row, &lengths)?;
    // SAFETY: as above.
    unsafe { x.put(rank, &arrived) };
    Ok(())
}

/// Runs all steps of a program for the host, exchanges among the members.
///
/// # Safety
/// As `Device::run`.
pub(crate) unsafe fn run(device: &Device, program: &Program, peers: &dyn Peers) -> Result<(), ExecError> {
    let mut done = 0;
    for (i, step) in program.steps.iter().enumerate() {
        let Step::Exchange(x) = step else { continue };
        // SAFETY: the caller vouches for the steps' memory.
        unsafe {
            device.run_part(program, done..i);
            carry(x, peers)?;
        }
        done = i + 1;
    }
    // SAFETY: as above.
    unsafe { device.run_part(program, done..program.steps.len()) };
    Ok(())
}
