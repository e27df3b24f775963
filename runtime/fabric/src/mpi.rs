//! Ranks as processes that `mpirun` or a like launcher started: messages over MPI, with the feature `mpi`.
//!
//! All messages have one tag and a header with kind, channel and number, as over TCP. A thread of its own looks for what arrives and puts it
//! into the mailbox, so waits are bounded and end when a rank gives up. Calls into MPI are made one at a time.
//! # Source: the MPI 3.1 standard, chapters 3 (point to point) and 12.4 (threads).

use crate::{Channel, Fabric, FabricError, Timeouts, World, collective, mailbox::Mailbox};
use mpi_sys as sys;
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

const TAG: i32 = 77;
const DATA: u32 = 0;
const ABORT: u32 = 1;
const HEADER: usize = 16;
/// Between looks for messages, when there are none.
const PERIOD: Duration = Duration::from_micros(50);
/// How long a rank that gives up waits for its last words to leave.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A process's end.
pub struct Mpi {
    rank: usize,
    size: usize,
    timeouts: Timeouts,
    shared: Arc<Shared>,
    sent: Mutex<BTreeMap<(usize, Channel), u64>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    mailbox: Mailbox,
    /// Messages under way, and the one lock of all calls into MPI.
    under_way: Mutex<Vec<UnderWay>>,
    stop: AtomicBool,
}

/// A message and the request that sends it.
struct UnderWay {
    request: sys::MPI_Request,
    _bytes: Vec<u8>,
}

// SAFETY: a request is a handle that any thread may use, one at a time; it is only used under the lock that it stands behind.
unsafe impl Send for UnderWay {}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Vec<UnderWay>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts MPI and meets the others. Who this process is, MPI says.
///
/// # Errors
/// E0425 if MPI does not start or takes no calls from several threads.
pub fn start(timeouts: Timeouts) -> Result<Mpi, FabricError> {
    let failed = |what: &str| FabricError::Meeting { rank: 0, what: what.into() };
    let (mut given, mut rank, mut size) = (0, 0, 0);
    // SAFETY: MPI is started once, by the one call of this function of a process; the pointers are to live integers.
    let codes = unsafe {
        let wanted = sys::RSMPI_THREAD_SERIALIZED;
        [
            sys::MPI_Init_thread(std::ptr::null_mut(), std::ptr::null_mut(), wanted, &raw mut given),
            sys::MPI_Comm_rank(sys::RSMPI_COMM_WORLD, &raw mut rank),
            sys::MPI_Comm_size(sys::RSMPI_COMM_WORLD, &raw mut size),
        ]
    };
    // SAFETY: a constant of the library.
    if codes != [0; 3] || given < unsafe { sys::RSMPI_THREAD_SERIALIZED } {
        return Err(failed("MPI does not start, or takes no calls from several threads"));
    }
    let (rank, size) = (rank as usize, size as usize);
    let shared = Arc::new(Shared { mailbox: Mailbox::default(), under_way: Mutex::default(), stop: AtomicBool::new(false) });
    let thread = std::thread::Builder::new().name("mpi".into());
    let progress = shared.clone();
    let thread = thread.spawn(move || listen(&progress)).map_err(|e| failed(&e.to_string()))?;
    Ok(Mpi { rank, size, timeouts, shared, sent: Mutex::default(), thread: Some(thread) })
}

/// Puts what arrives into the mailbox and forgets what has left, until it is told to stop.
fn listen(shared: &Shared) {
    while !shared.stop.load(Ordering::Acquire) {
        let mut under_way = shared.lock();
        under_way.retain_mut(|u| !is_done(&mut u.request));
        let Some((from, bytes)) = next_message() else {
            drop(under_way);
            std::thread::sleep(PERIOD);
            continue;
        };
        drop(under_way);
        let word = |i: usize| u32::from_le_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]);
        let number = u64::from(word(8)) | u64::from(word(12)) << 32;
        match word(0) {
            DATA => shared.mailbox.put(from, Channel(word(4)), number, bytes[HEADER..].to_vec()),
            _ => shared.mailbox.abort(from, &String::from_utf8_lossy(&bytes[HEADER..])),
        }
    }
}

fn is_done(request: &mut sys::MPI_Request) -> bool {
    let mut flag = 0;
    // SAFETY: the request is of a send whose buffer lives beside it; the caller holds the lock.
    let code = unsafe { sys::MPI_Test(request, &raw mut flag, sys::RSMPI_STATUS_IGNORE) };
    code != 0 || flag != 0
}

/// A message that is there: from whom, and its bytes. The caller holds the lock.
fn next_message() -> Option<(usize, Vec<u8>)> {
    let mut flag = 0;
    // SAFETY: plain data that MPI fills.
    let mut status: sys::MPI_Status = unsafe { std::mem::zeroed() };
    let mut count = 0;
    // SAFETY: the pointers are to live values; the caller holds the lock.
    unsafe {
        let world = sys::RSMPI_COMM_WORLD;
        if sys::MPI_Iprobe(sys::RSMPI_ANY_SOURCE, TAG, world, &raw mut flag, &raw mut status) != 0 || flag == 0 {
            return None;
        }
        sys::MPI_Get_count(&raw const status, sys::RSMPI_UINT8_T, &raw mut count);
        let mut bytes = vec![0u8; usize::try_from(count).unwrap_or(0)];
        let to = bytes.as_mut_ptr().cast();
        let from = status.MPI_SOURCE;
        let code = sys::MPI_Recv(to, count, sys::RSMPI_UINT8_T, from, TAG, world, sys::RSMPI_STATUS_IGNORE);
        (code == 0 && bytes.len() >= HEADER).then_some((from as usize, bytes))
    }
}

impl Mpi {
    /// Who this process is.
    pub fn world(&self) -> World {
        World { rank: self.rank, size: self.size, local_rank: self.rank, rendezvous: None, source: "MPI" }
    }
    /// Returns once all ranks have said the same `plan`: a hash of all that has to be the same.
    ///
    /// # Errors
    /// E0425 if a rank says another, E0421 if one does not come.
    pub fn agree(&self, plan: u64) -> Result<(), FabricError> {
        let plans = collective::all_gather(self, &plan.to_le_bytes())?;
        match plans.iter().position(|p| *p != plans[0]) {
            None => Ok(()),
            Some(other) => {
                let what = format!("rank {other} runs another binary, model or plan than rank 0");
                Err(FabricError::Meeting { rank: self.rank, what })
            }
        }
    }
    /// Hands bytes to MPI; they are kept until they have left.
    fn post(&self, to: usize, kind: u32, channel: Channel, number: u64, bytes: &[u8]) -> bool {
        let mut message = Vec::with_capacity(HEADER + bytes.len());
        message.extend(kind.to_le_bytes());
        message.extend(channel.0.to_le_bytes());
        message.extend(number.to_le_bytes());
        message.extend(bytes);
        let Ok(length) = i32::try_from(message.len()) else { return false };
        let mut under_way = self.shared.lock();
        // SAFETY: the buffer stays where it is until the request is done, as both are kept together; the lock is held.
        let (code, request) = unsafe {
            let mut request = sys::RSMPI_REQUEST_NULL;
            let (from, world) = (message.as_ptr().cast(), sys::RSMPI_COMM_WORLD);
            let code = sys::MPI_Isend(from, length, sys::RSMPI_UINT8_T, to as i32, TAG, world, &raw mut request);
            (code, request)
        };
        under_way.push(UnderWay { request, _bytes: message });
        code == 0
    }
}

impl Fabric for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }
    fn size(&self) -> usize {
        self.size
    }
    fn send(&self, to: usize, channel: Channel, bytes: &[u8]) -> Result<(), FabricError> {
        let (rank, mailbox) = (self.rank, &self.shared.mailbox);
        if to == rank {
            mailbox.check(rank, to, channel, 0)?;
            mailbox.put_own(rank, channel, bytes.to_vec());
            return Ok(());
        }
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        let number = sent.entry((to, channel)).or_default();
        mailbox.check(rank, to, channel, *number)?;
        if !self.post(to, DATA, channel, *number, bytes) {
            return Err(FabricError::Lost { rank, peer: to, action: "send", channel, number: *number });
        }
        *number += 1;
        Ok(())
    }
    fn receive(&self, from: usize, channel: Channel, into: &mut [u8]) -> Result<(), FabricError> {
        self.shared.mailbox.take(self.rank, from, channel, into, self.timeouts.message)
    }
    fn check(&self) -> Result<(), FabricError> {
        self.shared.mailbox.check_all(self.rank)
    }
    fn abort(&self, why: &str) {
        self.shared.mailbox.abort(self.rank, why);
        for to in (0..self.size).filter(|r| *r != self.rank) {
            self.post(to, ABORT, Channel::COLLECTIVE, 0, why.as_bytes());
        }
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        let gave_up = self.shared.mailbox.aborted().is_some();
        let patience = if gave_up { LAST_WORDS } else { self.timeouts.message };
        let end = Instant::now() + patience;
        // What was sent still leaves.
        while !self.shared.lock().is_empty() && Instant::now() < end {
            std::thread::sleep(PERIOD);
        }
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // It does not panic.
            let _ = thread.join();
        }
        // A rank that gave up ends without: the launcher then ends the others.
        if !gave_up {
            // SAFETY: MPI was started, and nothing calls it after this.
            unsafe { sys::MPI_Finalize() };
        }
    }
}
