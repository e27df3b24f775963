//! The other members of a group that divides experts: an entry's exchanges are carried out between its steps. Offsets go over the host; rows go from where they
//! lie to where they belong if something carries them so, else over the host as well.

use crate::ExecError;
use device::{Device, Exchange, Mark, Memory, Placed, Program, Step, What};

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
    /// Whether rows go from device to device: by [`Peers::carry_rows`].
    fn is_direct(&self) -> bool {
        false
    }
    /// Carries an exchange of rows from where they lie to where they belong, after what the device was asked for before; what it copies may still be under way.
    ///
    /// # Errors
    /// What carries them says.
    ///
    /// # Safety
    /// The exchange's pointers are the device's and valid for its extents, and nothing else uses the memory meanwhile.
    unsafe fn carry_rows(&self, _device: &Device, _x: &Exchange) -> Result<(), ExecError> {
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
        return unsafe { peers.carry_rows(device, x) };
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

/// Runs a list of two streams and waits for it: the device computes while this thread carries exchanges, with `beside` for what they copy. Before an exchange
/// is waited for, all steps were started that do not need it, also such that stand behind it. All members come to the exchanges in the list's order.
///
/// # Safety
/// As `Device::run_list`; what the list reads is there.
pub(crate) unsafe fn run_list(
    device: &Device,
    beside: Option<&Device>,
    program: &Program,
    list: &[Placed],
    peers: &dyn Peers,
) -> Result<(), ExecError> {
    // SAFETY: the caller vouches for the memory.
    let ran = unsafe { start_list((device, beside.unwrap_or(device)), program, list, peers) };
    // Whatever was started is over when this returns: its memory is the caller's again.
    ran.and(device.wait().map_err(ExecError::from))
}

/// # Safety
/// As [`run_list`].
unsafe fn start_list(
    (device, beside): (&Device, &Device),
    program: &Program,
    list: &[Placed],
    peers: &dyn Peers,
) -> Result<(), ExecError> {
    let mut awaited = vec![false; list.len()];
    list.iter().filter(|p| p.communicates).flat_map(|p| &p.waits).for_each(|w| awaited[*w] = true);
    let mut ends: Vec<Option<Mark>> = list.iter().map(|_| None).collect();
    let mut computes = (0..list.len()).filter(|at| !list[*at].communicates).peekable();
    let exchanges = (0..list.len()).filter(|at| list[*at].communicates);
    for next in exchanges.map(Some).chain([None]) {
        // What needs no exchange from here on. What this one waits for is among it, as waits point backwards.
        let can_start = |at: &usize| next.is_none_or(|next| list[*at].waits.iter().all(|w| *w < next));
        while let Some(at) = computes.next_if(can_start) {
            // SAFETY: the caller vouches for the memory, and the list for the order.
            unsafe { device.execute(program, list[at].step) }?;
            ends[at] = if awaited[at] { Some(device.mark()?) } else { None };
        }
        let Some(next) = next else { break };
        for w in &list[next].waits {
            device.wait_for(ends[*w].as_ref().expect("what is awaited was started"))?;
        }
        let Step::Exchange(x) = &program.steps[list[next].step] else { base::bug!("what communicates is an exchange") };
        // SAFETY: as above.
        unsafe { carry(beside, x, peers) }?;
        beside.wait()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::bare_host;
    use std::cell::RefCell;

    /// One of a group of one that notes which bytes were set at each exchange.
    struct Watch<'m> {
        memory: &'m Memory,
        seen: RefCell<Vec<Vec<u8>>>,
    }

    impl Peers for Watch<'_> {
        fn rank(&self) -> usize {
            0
        }
        fn size(&self) -> usize {
            1
        }
        fn all_to_all(&self, parts: Vec<Vec<u8>>, _: usize, _: &[usize]) -> Result<Vec<Vec<u8>>, ExecError> {
            // SAFETY: nothing runs while an exchange is carried on the host.
            let bytes = unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.memory.len()) };
            self.seen.borrow_mut().push(bytes[..5].to_vec());
            Ok(parts)
        }
    }

    #[test]
    fn what_needs_no_exchange_is_started_before_it_is_waited_for() {
        let memory = Memory::new(64).expect("there is that much");
        let at = |n: usize| memory.as_ptr().wrapping_add(n);
        // Two numbers to the places 0 to 4 come from 32; offsets of one group of no rows.
        // SAFETY: within the memory.
        unsafe { at(32).write_bytes(1, 8) };
        let set = |n: usize| Step::Copy { from: at(32), to: at(n), bytes: 1 };
        let offsets = Exchange {
            what: What::Offsets,
            from: at(48),
            all: at(40).cast(),
            to: at(56),
            members: 1,
            groups: 0,
            rows: 0,
            row: 0,
        };
        let exchange = || Step::Exchange(offsets.clone());
        let device = bare_host();
        let steps = vec![set(0), exchange(), set(1), set(2), exchange(), set(3), set(4)];
        let program = device.prepare(steps, std::ptr::null_mut()).expect("it is the host");
        let placed = |step: usize, waits: &[usize]| Placed { step, communicates: matches!(step, 1 | 4), waits: waits.to_vec() };
        // The first exchange needs step 0, step 2 needs it, steps 3 and 5 need none, the second exchange needs 2, and 6 needs it.
        let list =
            [placed(0, &[]), placed(1, &[0]), placed(2, &[]), placed(3, &[1]), placed(4, &[3]), placed(5, &[]), placed(6, &[4])];
        let watch = Watch { memory: &memory, seen: RefCell::default() };
        // SAFETY: all of it is within the memory.
        unsafe { run_list(&device, None, &program, &list, &watch) }.expect("it runs");
        assert_eq!(watch.seen.take(), [[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]);
        assert_eq!(memory.bytes()[..5], [1; 5]);
        // One after the other nothing is started early.
        let in_turn: Vec<Placed> =
            (0..7).map(|step: usize| placed(step, &step.checked_sub(1).into_iter().collect::<Vec<_>>())).collect();
        // SAFETY: as above.
        unsafe { at(0).write_bytes(0, 5) };
        // SAFETY: as above.
        unsafe { run_list(&device, None, &program, &in_turn, &watch) }.expect("it runs");
        assert_eq!(watch.seen.take(), [[1, 0, 0, 0, 0], [1, 1, 1, 0, 0]]);
    }
}
