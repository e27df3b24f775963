//! A stage's forward of one micro-batch and its backward of another as one list of launches over a compute and a communication stream. In: the
//! entries `forward`, `backward_input` and `backward_weight` of a stage whose experts are divided (in a group of one: rows are carried by a
//! [`Link`](device::Link), and come back as they were). Out: a list in the order of `schedule::pair`, with what waits for what.
//!
//! Where a layer is split follows from its exchanges: what comes before rows go to the experts is attention, what is between is experts. Which
//! step waits for which follows from memory alone: two steps that touch the same bytes, of which one writes, keep the order that they have when
//! the entries run one after the other. So whatever the streams do, bits are those of that. Each entry has an arena of its own, where no two
//! buffers share a place.
//!
//! [`Pair`] runs the list of one stage alone, to measure it. Training has the list of two stages, see `ranks::pairs`.

mod list;
mod resolved;

pub use list::listed;
pub(crate) use resolved::Resolved;

use crate::{
    ExecError, HostTensor, Session,
    plan::size,
    resolve::{describe, flatten},
    trace::{Lane, Trace},
};
use base::DimEnv;
use device::{Link, Memory, Placed, Ran, Streams};
use library::{Entry, Port};
use std::time::Instant;

/// A micro-batch of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// The one that goes forward.
    Forward,
    /// The one that goes backward.
    Backward,
}

impl Half {
    /// Of an entry, by its number among forward, backward of inputs and backward of weights.
    fn of(entry: usize) -> Half {
        if entry == 0 { Half::Forward } else { Half::Backward }
    }
}

/// A pair, resolved for a session's memory.
pub struct Pair<'s> {
    session: &'s mut Session,
    of: Resolved,
}

impl Session {
    /// The pair of this stage for micro-batches of these sizes.
    ///
    /// # Errors
    /// E0701 to E0704; E0704 as well if the stage has no exchanges, or layers of several kinds that have some.
    pub fn pair(&mut self, dims: &DimEnv) -> Result<Pair<'_>, ExecError> {
        let mut parts = resolved::Parts::default();
        for (k, e) in list::entries(&self.manifest, dims)?.into_iter().enumerate() {
            parts.add(self, e, Half::of(k), dims)?;
        }
        let of = parts.resolve(&self.device, dims)?;
        crate::peers::check(&of.program, "a pair", None)?;
        Ok(Pair { session: self, of })
    }
}

impl Pair<'_> {
    /// Fills what a run makes with NaN: what it then reads without having written it shows.
    pub fn poison(&mut self) {
        let made = |e: &Entry, name: &str| e.outputs.iter().any(|p| p.name == name);
        for (half, entries) in self.of.halves.iter_mut().zip([&self.of.entries[..1], &self.of.entries[1..]]) {
            let results = half.iter_mut().filter(|(name, _)| entries.iter().any(|e| made(e, name)));
            results.for_each(|(_, (_, memory))| memory.fill(0xff));
        }
        self.of.arenas.iter_mut().for_each(|a| a.fill(0xff));
    }
    /// Where a tensor of a micro-batch lies: an input, a result, or what the entries hand each other.
    fn tensor(&mut self, half: Half, name: &str) -> Result<&mut (Port, Memory), ExecError> {
        let own = &mut self.of.halves[half as usize];
        let known = own.keys().cloned().collect::<Vec<_>>().join(", ");
        let why = || format!("it is unknown to the pair; there are {known}");
        own.get_mut(name).ok_or_else(|| ExecError::Input { name: name.into(), why: why() })
    }
    fn shape(&self, p: &Port) -> Vec<i64> {
        p.shape.iter().map(|d| size(d, &self.of.dims)).collect()
    }
    /// Sets a tensor of a micro-batch.
    ///
    /// # Errors
    /// E0704 if there is none of that name, dtype and shape.
    pub fn set(&mut self, half: Half, name: &str, value: &HostTensor) -> Result<(), ExecError> {
        let port = self.tensor(half, name)?.0.clone();
        let shape = self.shape(&port);
        if (value.dtype, &value.shape) != (port.dtype, &shape) {
            let why = format!("{}{:?} is not {}{shape:?}", value.dtype, value.shape, port.dtype);
            return Err(ExecError::Input { name: name.into(), why });
        }
        self.tensor(half, name)?.1.bytes_mut().copy_from_slice(&value.bytes);
        Ok(())
    }
    /// A tensor of a micro-batch.
    ///
    /// # Errors
    /// E0704 if there is none of that name, E0443.
    pub fn get(&mut self, half: Half, name: &str) -> Result<HostTensor, ExecError> {
        let (port, memory) = self.tensor(half, name)?;
        memory.refresh()?;
        let (port, bytes) = (port.clone(), memory.bytes().to_vec());
        Ok(HostTensor { dtype: port.dtype, shape: self.shape(&port), bytes })
    }
    /// The tensors of a micro-batch that start with `prefix`.
    pub fn ports(&self, half: Half, prefix: &str) -> Vec<Port> {
        self.of.halves[half as usize].values().map(|(p, _)| p.clone()).filter(|p| p.name.starts_with(prefix)).collect()
    }
    /// Runs the forward alone.
    ///
    /// # Errors
    /// As [`Pair::run`].
    pub fn forward(&mut self, streams: &Streams) -> Result<(), ExecError> {
        let n = flatten(&self.of.entries[0].steps).len();
        let list: Vec<Placed> = self.in_turn().into_iter().take(n).collect();
        self.run(&list, streams, false).map(|_| ())
    }
    /// Makes the micro-batch that went forward the one that goes backward: what its forward kept is copied.
    ///
    /// # Errors
    /// E0443.
    pub fn hand_over(&mut self) -> Result<(), ExecError> {
        let device = self.session.device.clone();
        let [forward, backward] = &mut self.of.halves;
        let mut steps = Vec::new();
        for (name, (_, to)) in backward.iter_mut() {
            let Some((_, from)) = forward.get_mut(name) else { continue };
            from.send()?;
            steps.push(device::Step::Copy { from: from.as_ptr(), to: to.as_ptr(), bytes: to.len() });
            to.written();
        }
        let mut program = device.prepare(steps, std::ptr::null_mut())?;
        // SAFETY: both memories have as many bytes, which the same port says, and live.
        unsafe { device.run_one_by_one(&mut program) }?;
        Ok(device.wait()?)
    }

    /// The entries one after the other: every step waits for the one before.
    pub fn in_turn(&self) -> Vec<Placed> {
        self.of.steps.in_turn()
    }
    /// All steps of one stream alone.
    pub fn alone(&self, communicates: bool) -> Vec<Placed> {
        let of = self.in_turn().into_iter().filter(|p| p.communicates == communicates);
        of.map(|p| Placed { waits: Vec::new(), ..p }).collect()
    }
    /// The list of the pair.
    ///
    /// # Errors
    /// E0704 if a layer's steps do not go into the order of `schedule::pair`: what one needs would come after it.
    pub fn interleaved(&self) -> Result<Vec<Placed>, ExecError> {
        self.of.interleaved(&self.session.manifest)
    }
    /// Streams for this pair's exchanges.
    ///
    /// # Errors
    /// E0443, E0444.
    pub fn streams(&self, link: Link) -> Result<Streams, ExecError> {
        let largest = self.exchanged().into_iter().max().unwrap_or(0);
        Ok(self.session.device.streams(link, largest)?)
    }
    /// What each exchange moves. # Units: bytes.
    pub fn exchanged(&self) -> Vec<usize> {
        let of = |s: &device::Step| match s {
            device::Step::Exchange(x) if x.what == device::What::Offsets => Some((x.groups + 1) * size_of::<i32>()),
            device::Step::Exchange(x) => Some(x.rows * x.row),
            _ => None,
        };
        self.of.program.steps.iter().filter_map(of).collect()
    }
    /// Runs a list and waits for it; when each step ran, if `timed`.
    ///
    /// # Errors
    /// E0443.
    pub fn run(&mut self, list: &[Placed], streams: &Streams, timed: bool) -> Result<Vec<Ran>, ExecError> {
        let entries = 0..self.of.entries.len();
        entries.clone().try_for_each(|k| self.of.send(k, &mut self.session.store))?;
        let device = self.session.device.clone();
        // SAFETY: `Session::pair` resolved every pointer into memory of the session or of this pair, which both live.
        let ran = unsafe { device.run_list(&self.of.program, list, streams, timed) };
        entries.for_each(|k| self.of.written(k, &mut self.session.store));
        Ok(ran?)
    }
    /// The session whose memory it uses.
    pub fn session(&mut self) -> &mut Session {
        self.session
    }
    /// What a step of a list is: its part, layer, and kernel.
    pub fn name(&self, p: &Placed) -> String {
        let what = describe(&self.of.program.steps[p.step], &self.session.manifest);
        format!("{}: {what}", self.of.steps.places[p.step])
    }
    /// A run as a trace with a lane a stream.
    pub fn trace(&self, list: &[Placed], ran: &[Ran]) -> Trace {
        let mut trace = Trace::new(&self.session.device_name());
        let begun = Instant::now();
        for (p, r) in list.iter().zip(ran) {
            let lane = if p.communicates { Lane::Communication } else { Lane::Kernels };
            trace.add(lane, &self.name(p), begun, r.start, r.end - r.start);
        }
        trace
    }
}
