//! NCCL on real GPUs: every call on real buffers, and the ways in which it ends badly. For a machine with GPUs and NCCL.
//!
//! ```text
//! cargo run -p fabric --example nccl_check                     # one rank: sends to itself, every collective, time-out and abort
//! nccl_check --ranks 2                                         # starts itself as two ranks of this machine, each on the GPU of its number
//! lode launch -n 4 target/debug/examples/nccl_check            # or torchrun, srun, mpirun: one rank a GPU
//! ```
//! A line a check; exit code 1 if one fails. Several ranks also see that one which gives up ends the others, within the time-out.

use base::DType;
use device::{
    Device, Gpu, Host, Rows,
    cuda::nccl::{Call, Comm, Gate, Id, Nccl, Operation, State},
};
use fabric::{
    Channel, Direct, Fabric, FabricError, Span, Tag, Timeouts, World, discover,
    nccl::{Engine, Flow, Links},
    tcp, threads,
};
use std::{
    cell::Cell,
    net::TcpListener,
    process::{Command, ExitCode},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Elements of each rank's part.
const N: usize = 1 << 20;
/// What a message that does not come is given up after.
const SHORT: Timeouts = Timeouts { start: Duration::from_secs(120), message: Duration::from_secs(2) };
const PATIENT: Timeouts = Timeouts { start: Duration::from_secs(120), message: Duration::from_secs(15) };

/// More than all checks of a rank take together, after it has met the others.
const WATCH: Duration = Duration::from_secs(45);
/// More than all checks take together.
const ALL: Duration = Duration::from_secs(90);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match &args[..] {
        [] => run(),
        [flag, n] if flag == "--ranks" && n.parse::<usize>().is_ok_and(|n| n > 0) => start(n.parse().expect("just seen")),
        _ => {
            eprintln!("nccl_check [--ranks N]");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

/// Where this rank stands: what a check that hangs was in.
static PLACE: Mutex<String> = Mutex::new(String::new());

fn at(place: impl Into<String>) {
    *PLACE.lock().unwrap_or_else(PoisonError::into_inner) = place.into();
}

/// Ends the process, and says where it stood, if it takes longer than all checks should.
fn watch(rank: usize) {
    std::thread::spawn(move || {
        std::thread::sleep(WATCH);
        println!("rank {rank}: HANGS: {}", PLACE.lock().unwrap_or_else(PoisonError::into_inner));
        // Nothing of the driver's is asked: it may be what hangs.
        std::process::abort();
    });
}

/// This program as so many ranks; whether all end well.
fn start(ranks: usize) -> Result<bool, String> {
    let failed = |e: std::io::Error| e.to_string();
    // Free now; rank 0 listens there soon.
    let port = TcpListener::bind(("127.0.0.1", 0)).and_then(|l| l.local_addr()).map_err(failed)?.port().to_string();
    let this = std::env::current_exe().map_err(failed)?;
    let mut children = Vec::new();
    for rank in 0..ranks {
        let mut command = Command::new(&this);
        command.envs([("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", ranks)].map(|(name, n)| (name, n.to_string())));
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", &port).env_remove("LODE_RENDEZVOUS");
        children.push(command.spawn().map_err(failed)?);
    }
    let (begin, mut good) = (Instant::now(), true);
    for (rank, child) in children.iter_mut().enumerate() {
        let status = loop {
            match child.try_wait().map_err(failed)? {
                Some(status) => break Some(status),
                None if begin.elapsed() > ALL => break None,
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        if status.is_none() {
            println!("rank {rank} does not end");
            child.kill().and_then(|()| child.wait()).map_err(failed)?;
        }
        good &= status.is_some_and(|s| s.success());
    }
    println!("{ranks} ranks: {}", if good { "all good" } else { "NOT GOOD" });
    Ok(good)
}

fn run() -> Result<bool, String> {
    let world = discover(&discover::Flags::default(), &|n| std::env::var(n).ok()).map_err(|e| e.to_string())?;
    // One for each check that ends badly: who gave up once is heard on its store for ever.
    let store = |number: u64| -> Result<Box<dyn Fabric>, String> {
        Ok(match world.size {
            1 => Box::new(threads::world(1, PATIENT).remove(0)),
            _ => Box::new(tcp::connect(&world, number, PATIENT).map_err(|e| e.to_string())?),
        })
    };
    let open = || Nccl::open(world.local_rank).map_err(|e| e.to_string());
    let nccl = open()?;
    println!("rank {} of {}: NCCL {}", world.rank, world.size, nccl.version().map_err(|e| e.to_string())?);
    watch(world.rank);
    at("every call");
    let mut good = calls(nccl, &*store(1)?, PATIENT).map_err(|e| e.to_string())?;
    at("kernels of rows");
    good &= rows(&world)?;
    at("a call that stalls");
    good &= stalls(Holding::new(open()?)?, &*store(2)?).map_err(|e| e.to_string())?;
    if world.size > 1 {
        at("a rank that gives up");
        good &= gives_up(open()?, &*store(3)?).map_err(|e| e.to_string())?;
    }
    Ok(good)
}

/// Which rows are equal, and copies of them, on the GPU against the host: rows of 16, 4 and 1 bytes at once, of one word and of more than a warp takes in a turn.
fn rows(world: &World) -> Result<bool, String> {
    let failed = |e: device::DeviceError| e.to_string();
    let gpu = Device::Gpu(Gpu::new(world.local_rank, &[], &[], None).map_err(failed)?);
    gpu.prepare_rows().map_err(failed)?;
    let host = Device::Host(Host::new(Box::new(Nothing), [], Some(1))?);
    let mut good = true;
    for (bytes, count) in [(16, 1), (7168 * 2, 3000), (2052, 500), (4, 70_000), (3, 999), (128, 0)] {
        // Every third row has the bytes of the one three before; all else differs in the last byte at least.
        let kind = |i: usize| if i.is_multiple_of(3) { i / 6 * 6 } else { i };
        let byte = |i: usize, j: usize| if j + 1 == bytes { kind(i) as u8 } else { (kind(i) >> 8) as u8 ^ (j * 31) as u8 };
        let data: Vec<u8> = (0..count).flat_map(|i| (0..bytes).map(move |j| byte(i, j))).collect();
        let places: Vec<[u32; 2]> = (0..count as u32).map(|i| [count as u32 - 1 - i, i]).collect();
        let alike: Vec<[u32; 2]> = (0..count as u32).step_by(3).map(|i| [i, i / 6 * 6]).collect();
        let mut wrong = alike.clone();
        wrong.extend((count > 1).then_some([0, 1]));
        let on = |device: &Device| -> Result<_, device::DeviceError> {
            let memory = |n: usize| Ok(device.memory(n, false)?.expect("there is that much"));
            let (from, to, room) = (memory(bytes * count)?, memory(bytes * count)?, memory(device::rows::room(count + 1))?);
            device.wait()?;
            let [from, to] = [from.as_ptr(), to.as_ptr()].map(|at| Rows { at, bytes, count });
            // SAFETY: the memory is as long, and used by nothing else.
            unsafe {
                device.write(from.at, &data)?;
                device.copy_rows(to, from, &places, room.as_ptr())?;
                let copied = device.read(to.at, bytes * count)?;
                let alike = [&alike, &wrong].map(|pairs| device.are_alike(from, pairs, room.as_ptr()));
                let [alike, wrong] = alike;
                Ok((copied, device.marks(from, room.as_ptr())?, alike?, wrong?))
            }
        };
        let (got, want) = (on(&gpu).map_err(failed)?, on(&host).map_err(failed)?);
        let fine = got == want && got.2 && (count < 2 || !got.3);
        good &= fine;
        println!("rank {}: {count} rows of {bytes} bytes: {}", world.rank, if fine { "good" } else { "WRONG" });
    }
    Ok(good)
}

/// No kernels.
struct Nothing;

impl device::Code for Nothing {
    fn kernel(&self, _: &str) -> Option<device::KernelFn> {
        None
    }
}

/// Both ways along a chain of all ranks.
fn flows(size: usize) -> Vec<Flow> {
    (1..size).flat_map(|r| [(r - 1, r), (r, r - 1)]).collect()
}

/// All ranks, the last one first.
fn sets(size: usize) -> Vec<Vec<usize>> {
    vec![(0..size).rev().collect()]
}

/// The number that rank `rank` has at element `i`: small whole ones, so that sums are exact in every dtype.
fn value(rank: usize, i: usize) -> f32 {
    ((i * 7 + rank * 3) % 11) as f32
}

fn bytes(numbers: impl Iterator<Item = f32>) -> Vec<u8> {
    numbers.flat_map(f32::to_le_bytes).collect()
}

/// Device memory, for errors in the fabric's words.
fn upload(nccl: &Nccl, rank: usize, data: &[u8]) -> Result<u64, FabricError> {
    let told = |e: device::DeviceError| FabricError::Nccl { rank, what: "memory".into(), number: 0, why: e.to_string() };
    nccl.upload(data).map_err(told)
}

/// Every call, and what has to arrive.
fn calls(nccl: Nccl, store: &dyn Fabric, timeouts: Timeouts) -> Result<bool, FabricError> {
    let (rank, size) = (store.rank(), store.size());
    let scratch = upload(&nccl, rank, &vec![0; 8 * size])?;
    let mine: Vec<u8> = bytes((0..N * size).map(|i| value(rank, i)));
    let (from, to) = (upload(&nccl, rank, &mine)?, upload(&nccl, rank, &vec![0xff; mine.len()])?);
    // SAFETY: the memory is that long, and freed by nobody.
    let links = unsafe { Links::connect(Keep(&nccl), store, (&flows(size), &sets(size)), scratch, timeouts)? };
    let mut good = true;
    let blank = vec![0xff; mine.len()];
    let mut check = |what: &str, want: &[u8]| {
        // SAFETY: what was enqueued has run. The memory is blank again after it: a call that does nothing shows.
        let (got, blanked) = unsafe { (nccl.download(to, want.len()), nccl.write(to, &blank)) };
        let fine = got.is_ok_and(|g| g == want) && blanked.is_ok();
        good &= fine;
        println!("rank {rank}: {what}: {}", if fine { "good" } else { "WRONG" });
    };
    let part = |r: usize| (0..N).map(move |i| value(r, i));
    let op = |call, elems| Operation { call, from, to, elems, dtype: DType::F32 };
    let sum = |i: usize| (0..size).map(|r| value(r, i)).sum::<f32>();
    let collectives = [
        (op(Call::Broadcast { root: size - 1 }, N), bytes(part(size - 1))),
        (op(Call::AllReduce, N), bytes((0..N).map(sum))),
        (op(Call::ReduceScatter, N), bytes((rank * N..(rank + 1) * N).map(sum))),
        (op(Call::AllGather, N), bytes((0..size).flat_map(part))),
    ];
    for (op, want) in collectives {
        // SAFETY: both memories have `N` elements for each rank.
        unsafe { links.collective(&op)? };
        links.wait_collectives()?;
        check(&format!("{:?}", op.call), &want);
    }
    // SAFETY: as above.
    unsafe { links.all_to_all(from, to, N, DType::F32)? };
    links.wait_collectives()?;
    check("all to all", &bytes((0..size).flat_map(|r| (rank * N..(rank + 1) * N).map(move |i| value(r, i)))));
    for flow in flows(size) {
        // SAFETY: as above.
        unsafe {
            match flow {
                (a, b) if a == rank => links.send(b, from, N, DType::F32)?,
                (a, b) if b == rank => links.receive(a, to, N, DType::F32)?,
                _ => continue,
            }
        }
        links.wait(flow)?;
        if flow.1 == rank {
            check(&format!("from rank {}", flow.0), &bytes(part(flow.0)));
        }
    }
    // As the executor does: messages with names, and pieces among a set.
    let span = |at: u64, r: usize| Span { at: (at + 4 * (N * r) as u64) as *mut u8, bytes: 4 * N };
    let tag = Tag { channel: Channel(7), head: [7; 24], number: 0 };
    for flow in flows(size) {
        // SAFETY: as above.
        unsafe {
            match flow {
                (a, b) if a == rank => links.send_spans(b, tag, &[span(from, 0)])?,
                (a, b) if b == rank => {
                    links.receive_spans(a, tag, &[span(to, 0)])?;
                    check(&format!("a named message from rank {a}"), &bytes(part(a)));
                }
                _ => continue,
            }
        }
    }
    links.flush()?;
    let members = sets(size).remove(0);
    let others = || members.iter().enumerate().filter(|(_, r)| **r != rank);
    let sends: Vec<_> = others().map(|(peer, r)| (peer, span(from, *r))).collect();
    let receives: Vec<_> = others().map(|(peer, r)| (peer, span(to, *r))).collect();
    // SAFETY: as above.
    unsafe { links.swap(&members, tag, &sends, &receives)? };
    let none = |r: usize| if r == rank { vec![0xff; 4 * N] } else { bytes((rank * N..(rank + 1) * N).map(move |i| value(r, i))) };
    check("pieces among a set", &(0..size).flat_map(none).collect::<Vec<u8>>());
    links.finish()?;
    println!("rank {rank}: all communicators ended in good order");
    Ok(good)
}

/// A collective that does not run in time is given up, named, and all communicators are aborted. An abort waits for the stream, so the gate before the
/// call is opened by another thread when its time is over.
fn stalls(nccl: Holding, store: &dyn Fabric) -> Result<bool, FabricError> {
    let (rank, size, gate) = (store.rank(), store.size(), nccl.gate);
    let scratch = upload(&nccl.nccl, rank, &vec![0; 8 * size])?;
    // SAFETY: the memory is that long.
    let links = unsafe { Links::connect(nccl, store, (&flows(size), &[]), scratch, SHORT)? };
    links.engine().hold.set(true);
    let op = Operation { call: Call::AllReduce, from: scratch, to: scratch + 4 * size as u64, elems: 1, dtype: DType::F32 };
    let first = std::thread::scope(|s| {
        s.spawn(move || {
            std::thread::sleep(SHORT.message + Duration::from_secs(2));
            gate.open();
        });
        // SAFETY: as above.
        unsafe { links.collective(&op) }.and_then(|()| links.wait_collectives())
    });
    // SAFETY: as above.
    let later = unsafe { links.collective(&op) };
    // Of several ranks the first whose time is over tells the others.
    let told = size > 1 && matches!(first, Err(FabricError::Aborted { .. } | FabricError::Lost { .. }));
    let fine = (told || matches!(first, Err(FabricError::Timeout { .. }))) && first == later;
    println!("rank {rank}: {}: {first:?}", if fine { "given up as it should" } else { "WRONG" });
    Ok(fine)
}

/// The last rank gives up before a collective; the others, who are in it, learn that and end well before their time is over.
fn gives_up(nccl: Nccl, store: &dyn Fabric) -> Result<bool, FabricError> {
    let (rank, size) = (store.rank(), store.size());
    let scratch = upload(&nccl, rank, &vec![0; 8 * size])?;
    // SAFETY: the memory is that long.
    let links = unsafe { Links::connect(Telling(nccl), store, (&flows(size), &[]), scratch, PATIENT)? };
    at("connected, to give up or to learn it");
    if rank + 1 == size {
        // The others are in the collective by then.
        std::thread::sleep(Duration::from_secs(1));
        links.abort(&FabricError::Nccl {
            rank,
            what: "a check".into(),
            number: 0,
            why: "it gives up to see who learns it".into(),
        });
        println!("rank {rank}: gave up");
        return Ok(true);
    }
    let op = Operation { call: Call::AllReduce, from: scratch, to: scratch + 4 * size as u64, elems: 1, dtype: DType::F32 };
    let begin = Instant::now();
    // SAFETY: as above.
    let begun = unsafe { links.collective(&op) };
    at("in a collective that the last rank does not join");
    let ended = begun.and_then(|()| links.wait_collectives());
    at("it ended");
    let seconds = begin.elapsed().as_secs_f64();
    let learnt = matches!(ended, Err(FabricError::Aborted { .. } | FabricError::Lost { .. }));
    let fine = learnt && seconds < PATIENT.message.as_secs_f64() / 2.0;
    println!("rank {rank}: {} after {seconds:.2} s: {ended:?}", if fine { "learnt it" } else { "WRONG" });
    Ok(fine)
}

/// The library, lent.
struct Keep<'a>(&'a Nccl);

/// The library, which says where it stands.
struct Telling(Nccl);

/// The library with a gate before a call.
struct Holding {
    nccl: Nccl,
    hold: Cell<bool>,
    gate: Gate,
}

impl Holding {
    fn new(nccl: Nccl) -> Result<Holding, String> {
        let gate = nccl.gate().map_err(|e| e.to_string())?;
        Ok(Holding { nccl, hold: Cell::new(false), gate })
    }
}

/// Hands an engine's calls on.
macro_rules! delegate {
    ($type:ty, $self:ident => $nccl:expr, $before:expr) => {
        impl Engine for $type {
            type Comm = Comm;
            fn id(&$self) -> Result<Id, String> {
                Engine::id($nccl)
            }
            fn start(&$self, size: usize, rank: usize, id: &Id) -> Result<Comm, String> {
                Engine::start($nccl, size, rank, id)
            }
            fn state(&$self, comm: &Comm) -> State {
                Engine::state($nccl, comm)
            }
            fn begin(&$self) -> State {
                Engine::begin($nccl)
            }
            fn end(&$self) -> State {
                Engine::end($nccl)
            }
            unsafe fn enqueue(&$self, comm: &Comm, op: &Operation) -> State {
                if let Err(why) = $before(comm) {
                    return State::Failed(why);
                }
                // SAFETY: the caller vouches for the memory.
                unsafe { Engine::enqueue($nccl, comm, op) }
            }
            fn is_idle(&$self, comm: &Comm) -> Result<bool, String> {
                Engine::is_idle($nccl, comm)
            }
            unsafe fn abort(&$self, comms: &[&Comm]) {
                at(format!("aborting {} communicators", comms.len()));
                // SAFETY: as the caller says.
                unsafe { Engine::abort($nccl, comms) }
                at("aborted");
            }
            fn finalize(&$self, comm: &Comm) -> State {
                Engine::finalize($nccl, comm)
            }
            unsafe fn destroy(&$self, comm: &Comm) {
                // SAFETY: as the caller says.
                unsafe { Engine::destroy($nccl, comm) }
            }
        }
    };
}
delegate!(Keep<'_>, self => self.0, |_: &Comm| Ok::<(), String>(()));
delegate!(Telling, self => &self.0, |_: &Comm| Ok::<(), String>(()));
delegate!(Holding, self => &self.nccl, |comm: &Comm| {
    if self.hold.replace(false) {
        self.nccl.hold(comm, &self.gate).map_err(|e| e.to_string())?;
    }
    Ok::<(), String>(())
});
