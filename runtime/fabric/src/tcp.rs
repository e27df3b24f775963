//! Ranks as processes, a TCP connection between each two.
//!
//! Rank 0 listens at the meeting place. Every other rank tells it who it is, what it runs and where it listens; rank 0 answers with the
//! table of places, or with what is wrong, once all are there. Then each rank connects to those below it. A thread for each
//! connection puts what arrives into the mailbox, so a send waits for the network alone.
//!
//! A message is a header (kind, channel, number, length; little-endian) and its bytes.

use crate::{Channel, Fabric, FabricError, Timeouts, World, mailbox::Mailbox};
use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// The first bytes of every connection.
const MAGIC: [u8; 8] = *b"lodeTCP1";
/// A header that says more is damaged. # Units: bytes.
const MAX_LENGTH: u64 = 1 << 36;
/// Between tries to reach a rank that does not listen yet.
const RETRY: Duration = Duration::from_millis(20);

const DATA: u32 = 0;
const ABORT: u32 = 1;
const HEADER: usize = 24;

/// A process's end.
pub struct Tcp {
    rank: usize,
    size: usize,
    mailbox: Arc<Mailbox>,
    /// By peer; none for this rank.
    peers: Vec<Option<Mutex<Peer>>>,
    timeouts: Timeouts,
}

struct Peer {
    stream: TcpStream,
    sent: BTreeMap<Channel, u64>,
}

/// Meets the other ranks. `plan` is a hash of all that has to be the same on every rank: binary, model, schedule.
///
/// # Errors
/// E0425 if they do not all come in time, or differ in size or plan, or two say that they are the same rank.
pub fn connect(world: &World, plan: u64, timeouts: Timeouts) -> Result<Tcp, FabricError> {
    connect_at(world, plan, timeouts, None)
}

/// As [`connect`], rank 0 with a listener that it has already.
///
/// # Errors
/// As [`connect`].
pub fn connect_at(world: &World, plan: u64, timeouts: Timeouts, listener: Option<TcpListener>) -> Result<Tcp, FabricError> {
    let m = Meeting { rank: world.rank, size: world.size, plan, end: Instant::now() + timeouts.start };
    let mut streams: Vec<Option<TcpStream>> = (0..world.size).map(|_| None).collect();
    if world.size > 1 {
        let place = world.rendezvous.as_deref().ok_or_else(|| m.failed("no meeting place".into()))?;
        if world.rank == 0 {
            let listener = match listener {
                Some(listener) => listener,
                None => TcpListener::bind(place).map_err(|e| m.failed(format!("cannot listen at {place}: {e}")))?,
            };
            m.host(&listener, &mut streams)?;
        } else {
            m.join(place, &mut streams)?;
        }
    }
    let mailbox = Arc::new(Mailbox::default());
    let mut peers = Vec::new();
    for (peer, stream) in streams.into_iter().enumerate() {
        let Some(stream) = stream else {
            peers.push(None);
            continue;
        };
        let failed = |e: std::io::Error| m.failed(format!("connection to rank {peer}: {e}"));
        stream.set_nodelay(true).map_err(failed)?;
        stream.set_read_timeout(None).map_err(failed)?;
        stream.set_write_timeout(Some(timeouts.message)).map_err(failed)?;
        let (reader, mailbox) = (stream.try_clone().map_err(failed)?, mailbox.clone());
        let thread = std::thread::Builder::new().name(format!("from rank {peer}"));
        thread.spawn(move || listen(peer, reader, &mailbox)).map_err(failed)?;
        peers.push(Some(Mutex::new(Peer { stream, sent: BTreeMap::new() })));
    }
    Ok(Tcp { rank: world.rank, size: world.size, mailbox, peers, timeouts })
}

/// Puts what arrives into the mailbox until the connection ends.
fn listen(peer: usize, mut stream: TcpStream, mailbox: &Mailbox) {
    loop {
        let mut header = [0; HEADER];
        let arrived = stream.read_exact(&mut header);
        let word = |i: usize| u32::from_le_bytes([header[i], header[i + 1], header[i + 2], header[i + 3]]);
        let long = |i: usize| u64::from(word(i)) | u64::from(word(i + 4)) << 32;
        let (kind, channel, number, length) = (word(0), Channel(word(4)), long(8), long(16));
        if arrived.is_err() || kind > ABORT || length > MAX_LENGTH {
            return mailbox.lose(peer);
        }
        let mut bytes = vec![0; length as usize];
        if stream.read_exact(&mut bytes).is_err() {
            return mailbox.lose(peer);
        }
        match kind {
            DATA => mailbox.put(peer, channel, number, bytes),
            // Kinds above are refused.
            _ => mailbox.abort(number as usize, &String::from_utf8_lossy(&bytes)),
        }
    }
}

fn message(kind: u32, channel: Channel, number: u64, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + bytes.len());
    out.extend(kind.to_le_bytes());
    out.extend(channel.0.to_le_bytes());
    out.extend(number.to_le_bytes());
    out.extend((bytes.len() as u64).to_le_bytes());
    out.extend(bytes);
    out
}

impl Tcp {
    fn peer(&self, rank: usize) -> MutexGuard<'_, Peer> {
        let peer = self.peers[rank].as_ref().expect("no rank sends to itself");
        peer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tcp {
    /// Tells every peer that `rank` gives up; the message's number is the rank.
    fn tell_all(&self, rank: usize, why: &str) {
        for to in (0..self.size).filter(|r| *r != self.rank) {
            // Who is gone needs no word.
            let _ = self.peer(to).stream.write_all(&message(ABORT, Channel::COLLECTIVE, rank as u64, why.as_bytes()));
        }
    }
}

impl Fabric for Tcp {
    fn rank(&self) -> usize {
        self.rank
    }
    fn size(&self) -> usize {
        self.size
    }
    fn send(&self, to: usize, channel: Channel, bytes: &[u8]) -> Result<(), FabricError> {
        let rank = self.rank;
        if to == rank {
            // A schedule may fold two stages onto one rank.
            let mailbox = &self.mailbox;
            mailbox.check(rank, to, channel, 0)?;
            mailbox.put_own(rank, channel, bytes.to_vec());
            return Ok(());
        }
        let mut peer = self.peer(to);
        let number = *peer.sent.entry(channel).or_default();
        self.mailbox.check(rank, to, channel, number)?;
        match peer.stream.write_all(&message(DATA, channel, number, bytes)) {
            Ok(()) => {
                peer.sent.insert(channel, number + 1);
                Ok(())
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                let seconds = self.timeouts.message.as_secs();
                Err(FabricError::Timeout { rank, action: "send", peer: to, channel, number, seconds })
            }
            Err(_) => Err(FabricError::Lost { rank, peer: to, action: "send", channel, number }),
        }
    }
    fn receive(&self, from: usize, channel: Channel, into: &mut [u8]) -> Result<(), FabricError> {
        self.mailbox.take(self.rank, from, channel, into, self.timeouts.message)
    }
    fn check(&self) -> Result<(), FabricError> {
        self.mailbox.check_all(self.rank)
    }
    fn abort(&self, why: &str) {
        self.mailbox.abort(self.rank, why);
        self.tell_all(self.rank, why);
    }
}

impl Drop for Tcp {
    fn drop(&mut self) {
        // Who learnt that a rank gave up tells it on, lest others see this one go before they hear it.
        if let Some((rank, why)) = self.mailbox.aborted() {
            self.tell_all(rank, &why);
        }
        for peer in self.peers.iter().flatten() {
            let peer = peer.lock().unwrap_or_else(PoisonError::into_inner);
            // What was sent still arrives; the reader threads end.
            let _ = peer.stream.shutdown(Shutdown::Write);
        }
    }
}

/// How ranks find each other.
struct Meeting {
    rank: usize,
    size: usize,
    plan: u64,
    end: Instant,
}

/// What a rank says of itself.
struct Hello {
    rank: usize,
    size: usize,
    plan: u64,
    port: u16,
}

impl Meeting {
    fn failed(&self, what: String) -> FabricError {
        FabricError::Meeting { rank: self.rank, what }
    }
    fn io(&self, what: &str) -> impl Fn(std::io::Error) -> FabricError {
        let (rank, what) = (self.rank, what.to_string());
        move |e| FabricError::Meeting { rank, what: format!("{what}: {e}") }
    }

    /// Rank 0: waits for all, tells them the table.
    fn host(&self, listener: &TcpListener, streams: &mut [Option<TcpStream>]) -> Result<(), FabricError> {
        let mut ports: Vec<Option<SocketAddr>> = vec![None; self.size];
        let mut wrong = None;
        while wrong.is_none() && (1..self.size).any(|r| streams[r].is_none()) {
            let missing: Vec<String> = (1..self.size).filter(|r| streams[*r].is_none()).map(|r| r.to_string()).collect();
            let mut stream = self.accept(listener, &format!("rank {} did not come", missing.join(", ")))?;
            // What does not speak our language is not a rank.
            let Some(hello) = self.hear(&mut stream) else { continue };
            if let Some(why) = self.objection(&hello, streams) {
                wrong = Some(why);
                streams[hello.rank.min(self.size - 1)].get_or_insert(stream);
                continue;
            }
            let ip = stream.peer_addr().map_err(self.io("address"))?.ip();
            ports[hello.rank] = Some(SocketAddr::new(ip, hello.port));
            streams[hello.rank] = Some(stream);
        }
        let table = ports.iter().map(|p| p.map_or(String::new(), |p| p.to_string())).collect::<Vec<_>>().join("\n");
        let answer = wrong.as_ref().map_or(format!("table\n{table}"), |why| format!("wrong\n{why}"));
        for stream in streams.iter_mut().flatten() {
            let written = put(stream, answer.as_bytes());
            if wrong.is_none() {
                written.map_err(self.io("the table could not be sent"))?;
            }
        }
        wrong.map_or(Ok(()), |why| Err(self.failed(why)))
    }
    fn objection(&self, hello: &Hello, streams: &[Option<TcpStream>]) -> Option<String> {
        if hello.size != self.size {
            return Some(format!("rank {} was started with {} ranks, rank 0 with {}", hello.rank, hello.size, self.size));
        }
        if hello.rank == 0 || hello.rank >= self.size || streams[hello.rank].is_some() {
            return Some(format!("two processes say that they are rank {}", hello.rank));
        }
        (hello.plan != self.plan).then(|| format!("rank {} runs another binary, model or plan than rank 0", hello.rank))
    }

    /// Another rank: asks rank 0 for the table, then connects to the ranks below and is connected to by those above.
    fn join(&self, place: &str, streams: &mut [Option<TcpStream>]) -> Result<(), FabricError> {
        let mut host = self.reach(place)?;
        let local = host.local_addr().map_err(self.io("address"))?.ip();
        let any = if local.is_loopback() { local } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
        let listener = TcpListener::bind((any, 0)).map_err(self.io("cannot listen"))?;
        let port = listener.local_addr().map_err(self.io("address"))?.port();
        self.tell(&mut host, port).map_err(self.io("rank 0"))?;
        host.set_read_timeout(Some(self.left())).map_err(self.io("rank 0"))?;
        let answer = get(&mut host).map_err(|e| self.failed(format!("rank 0 did not answer: {e}")))?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let table: Vec<&str> = match answer.split_once('\n') {
            Some(("table", table)) => table.split('\n').collect(),
            Some(("wrong", why)) => return Err(self.failed(why.to_string())),
            Some(_) | None => return Err(self.failed("rank 0's answer makes no sense".into())),
        };
        streams[0] = Some(host);
        for below in 1..self.rank {
            let mut stream = self.reach(table[below])?;
            self.tell(&mut stream, 0).map_err(self.io(&format!("rank {below}")))?;
            streams[below] = Some(stream);
        }
        while (self.rank + 1..self.size).any(|r| streams[r].is_none()) {
            let mut stream = self.accept(&listener, "a rank above did not connect")?;
            if let Some(hello) = self.hear(&mut stream).filter(|h| h.rank > self.rank && h.rank < self.size) {
                streams[hello.rank] = Some(stream);
            }
        }
        Ok(())
    }

    fn left(&self) -> Duration {
        // A time-out of zero would be none.
        self.end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
    }
    fn reach(&self, place: &str) -> Result<TcpStream, FabricError> {
        let failed = |e: std::io::Error| self.failed(format!("cannot reach {place}: {e}"));
        loop {
            let tried = place.to_socket_addrs().and_then(|mut all| {
                let address = all.next().ok_or_else(|| std::io::Error::new(ErrorKind::NotFound, "no address"))?;
                TcpStream::connect_timeout(&address, self.left())
            });
            match tried {
                Ok(stream) => return Ok(stream),
                Err(e) if Instant::now() >= self.end => return Err(failed(e)),
                Err(_) => std::thread::sleep(RETRY),
            }
        }
    }
    fn accept(&self, listener: &TcpListener, missing: &str) -> Result<TcpStream, FabricError> {
        listener.set_nonblocking(true).map_err(self.io("cannot listen"))?;
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false).map_err(self.io("connection"))?;
                    return Ok(stream);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock && Instant::now() < self.end => std::thread::sleep(RETRY),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Err(self.failed(missing.to_string())),
                Err(e) => return Err(self.io("cannot listen")(e)),
            }
        }
    }
    fn tell(&self, stream: &mut TcpStream, port: u16) -> std::io::Result<()> {
        let words = [self.rank as u64, self.size as u64, self.plan, u64::from(port)];
        let bytes: Vec<u8> = MAGIC.into_iter().chain(words.iter().flat_map(|w| w.to_le_bytes())).collect();
        put(stream, &bytes)
    }
    fn hear(&self, stream: &mut TcpStream) -> Option<Hello> {
        stream.set_read_timeout(Some(self.left())).ok()?;
        let bytes = get(stream).ok()?;
        let words = bytes.strip_prefix(&MAGIC)?;
        let word = |i: usize| words.get(8 * i..8 * i + 8).map(|b| b.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b)));
        let (rank, size, plan, port) = (word(0)?, word(1)?, word(2)?, word(3)?);
        Some(Hello { rank: rank as usize, size: size as usize, plan, port: u16::try_from(port).ok()? })
    }
}

/// What is longer is no greeting. # Units: bytes.
const MAX_GREETING: u32 = 1 << 22;

/// Writes a length and bytes.
fn put(stream: &mut TcpStream, bytes: &[u8]) -> std::io::Result<()> {
    let length = u32::try_from(bytes.len()).expect("greetings are short");
    stream.write_all(&[&length.to_le_bytes(), bytes].concat())
}

/// Reads them.
fn get(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > MAX_GREETING {
        return Err(std::io::Error::new(ErrorKind::InvalidData, "not a greeting"));
    }
    let mut bytes = vec![0; length as usize];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}
