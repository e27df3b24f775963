//! A rank's stages as what computes: sessions, and what each unit keeps between its forward and its backward.

use super::{
    Code, Job, Shared, Traffic,
    direct::Rooms,
    execute::{Compute, Turns, tag},
    experts::Carry,
    measured::{Counts, Lent, Part},
    pairs::{self, Pairs},
    relay::Ways,
    shards::Held,
    step,
    sums::Sums,
};
use crate::{
    ExecError, HostTensor, Peers, Session,
    kept::{self, Pool, Shelf},
    plan::size,
    store::Slot,
};
use base::{DType, Dim, DimEnv};
use device::{Device, Gpu, Host, Memory};
use fabric::{Direct, Fabric, Span, Staged, Tag};
use library::{Entry, Library, Port, Role};
use schedule::{Message, Payload, Unit};
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

/// A rank's part of the model.
pub(super) struct Model<'a> {
    pub job: Job<'a>,
    pub rank: usize,
    /// By stage.
    pub sessions: BTreeMap<u16, Session>,
    /// Of a micro-batch, and of a validation's part.
    pub shapes: [Shapes; 2],
    /// The step under way.
    pub step: u64,
    /// What the step's micro-batches lost, of those whose last stage is here.
    pub losses: BTreeMap<usize, f64>,
    /// What the step's `update` is told, once all gradients are there.
    pub agreed: Option<step::Agreed>,
    /// Where the stages' tensors lie.
    pub device: Arc<Device>,
    /// What tensors go to other ranks by.
    pub lent: Lent<'a>,
    /// What is measured.
    pub counts: Counts,
    /// What gradients are added up with.
    pub sums: Sums,
    /// What went to other ranks with experts, in the steps that count it.
    pub traffic: Cell<Traffic>,
    pub counts_traffic: bool,
    /// By rank; none if no experts are divided.
    nodes: Vec<usize>,
    /// What rows from device to device use.
    pub rooms: RefCell<Rooms>,
    kept: BTreeMap<Unit, Pool>,
    /// Forwards and backwards that run at once.
    pub pairs: Pairs,
    /// Memory of tensors that are done with.
    pub shelf: Shelf,
    /// What was sent to a rank and may not have left yet.
    sent: Vec<(usize, Vec<Memory>)>,
    fabric: &'a dyn Fabric,
    /// Where all ranks compute in one order.
    turns: Option<&'a Turns>,
    exchanges: Cell<u64>,
}

/// What runs a rank's stages: all of them share it.
fn device(job: &Job, rank: usize) -> Result<Arc<Device>, ExecError> {
    let stages = &job.plan.placement.stages_by_rank()[rank];
    let mut programs = stages.iter().map(|s| job.program(rank, *s));
    let first =
        programs.next().ok_or_else(|| ExecError::Input { name: format!("rank {rank}"), why: "it has no stage".into() })?;
    if programs.any(|p| p.manifest.kernels != first.manifest.kernels) {
        base::bug!("stages with kernels of their own");
    }
    let kernels = &first.manifest.kernels;
    let target = if matches!(first.code, Code::Host(_)) { library::HOST } else { library::SM_90A };
    Library { manifest: first.manifest.clone(), code: Vec::new() }.expect_target(target)?;
    let device = match &first.code {
        Code::Host(code) => {
            let symbols = kernels.iter().map(|k| k.symbol.as_str());
            let host = Host::new(Box::new(Shared(code.clone())), symbols, Some(job.threads));
            Device::Host(host.map_err(|symbol| library::LibraryError::Symbol { symbol })?)
        }
        Code::Gpu(code) => Device::Gpu(Gpu::new(job.gpu.ordinal, kernels, code, job.gpu.ptxas)?),
    };
    Ok(Arc::new(device))
}

/// What depends on the number of rows.
pub(super) struct Shapes {
    pub rows: usize,
    pub dims: DimEnv,
    pub weights: HostTensor,
}

/// What a stage hands over, or takes: the ports of an entry with this prefix, their numbers, dtypes and extents.
fn ports(job: &Job, stage: u16, entry: &str, prefix: &str, taken: bool) -> Vec<String> {
    let ports = entry_of(job, stage, entry).map_or(&[][..], |e| if taken { &e.args } else { &e.outputs });
    let own = ports.iter().filter(|p| p.role == Role::Inner);
    let mut out: Vec<String> = own
        .filter_map(|p| {
            let number = p.name.strip_prefix(prefix)?;
            let extents: Vec<String> = p.shape.iter().map(Dim::to_string).collect();
            Some(format!("{number}: {}[{}]", p.dtype, extents.join(", ")))
        })
        .collect();
    out.sort();
    out
}

/// The node of each rank, as they tell each other: the first rank of the same machine. Ranks may be placed on machines in any order.
fn nodes(machine: u64, fabric: &dyn Fabric) -> Result<Vec<usize>, ExecError> {
    let told = fabric::collective::all_gather(fabric, &machine.to_le_bytes())?;
    let first = |machine: &Vec<u8>| told.iter().position(|other| other == machine).expect("it is one of them");
    Ok(told.iter().map(first).collect())
}

/// Whether both ends of every message have the same tensors.
fn check_messages(job: &Job) -> Result<(), ExecError> {
    let made = |stage, payload| match payload {
        Payload::Activation => ports(job, stage, "forward", "out.", false),
        Payload::Gradient => ports(job, stage, "backward_input", "d_in.", false),
    };
    // What a later entry reads of a message may be a part of it.
    let read = |stage: u16, payload| {
        let (given, own) = match payload {
            Payload::Activation => (
                made(stage - 1, payload),
                ["forward", "backward_input", "backward_weight"].map(|e| ports(job, stage, e, "in.", true)),
            ),
            Payload::Gradient => (
                made(stage + 1, payload),
                ["forward", "backward_input", "backward_weight"].map(|e| ports(job, stage, e, "d_out.", true)),
            ),
        };
        // A tensor that no entry takes agrees with anything.
        let mut own: Vec<String> = own.concat();
        own.sort();
        own.dedup();
        let number = |t: &str| t.split(':').next().map(String::from);
        own.extend(given.into_iter().filter(|g| own.iter().all(|o| number(o) != number(g))).collect::<Vec<_>>());
        own.sort();
        own
    };
    match schedule::verify_messages(job.plan, &made, &read).first() {
        None => Ok(()),
        Some(v) => Err(ExecError::Input { name: v.action.clone(), why: v.what.clone() }),
    }
}

impl<'a> Model<'a> {
    pub fn new(
        job: Job<'a>,
        fabric: &'a dyn Fabric,
        direct: Option<&'a dyn Direct>,
        turns: Option<&'a Turns>,
    ) -> Result<Model<'a>, ExecError> {
        let rank = fabric.rank();
        check_messages(&job)?;
        job.check_members()?;
        let device = device(&job, rank)?;
        let mut sessions = BTreeMap::new();
        for stage in &job.plan.placement.stages_by_rank()[rank] {
            let program = &job.programs[job.member(rank)][usize::from(*stage)];
            let mut manifest = program.manifest.clone();
            manifest.entries = entries(&job, *stage, rank).cloned().collect();
            let mut session = Session::on(manifest, device.clone());
            // Whatever rows other ranks have, a row has the same bits.
            session.fixed = true;
            session.store.initialise(&program.manifest, job.options.seed)?;
            sessions.insert(*stage, session);
        }
        let o = job.options;
        let eval_rows = o.eval_rows.clamp(1, o.batch);
        let parts = [(o.batch / o.micro_batches, o.micro_batches), (eval_rows, o.eval_rows.div_ceil(eval_rows).max(1))];
        let [a, b] = parts.map(|(rows, parts)| shapes(&job, rows, parts));
        let (a, b) = (a?, b?);
        // Nothing is allocated once messages are under way.
        for session in sessions.values_mut() {
            let names = session.manifest.entries.iter().filter(|e| !e.is_variant()).map(|e| e.name.clone());
            let mut all: Vec<(String, &DimEnv)> = names.map(|n| (n, &a.dims)).collect();
            all.push(("forward".into(), &b.dims));
            session.prepare_all(&all)?;
        }
        // On the host nothing runs beside what computes, so a pair would be memory alone.
        let at_once = job.members() > 1 && (direct.is_some() || matches!(*device, Device::Gpu(_)));
        let pairs = if at_once { Pairs::new(&job, rank, &mut sessions, &device, &a.dims)? } else { Pairs::default() };
        let staged = Staged { fabric, device: device.clone(), checked: job.checked };
        let (lent, sums, shelf) = (Lent::new(direct, staged), Sums::new(device.clone())?, Shelf::new(device.clone()));
        let (losses, kept) = (BTreeMap::new(), BTreeMap::new());
        let nodes = if job.members() > 1 { nodes(job.nodes.of(rank), fabric)? } else { Vec::new() };
        if direct.is_some() && nodes.iter().any(|n| *n != nodes[0]) {
            device.prepare_rows()?;
        }
        let rooms = RefCell::new(Rooms::new(&device));
        Ok(Model {
            job,
            rank,
            sessions,
            shapes: [a, b],
            device,
            lent,
            counts: Counts::default(),
            sums,
            step: 0,
            losses,
            agreed: None,
            traffic: Cell::default(),
            counts_traffic: false,
            nodes,
            rooms,
            kept,
            pairs,
            shelf,
            sent: Vec::new(),
            fabric,
            turns,
            exchanges: Cell::new(0),
        })
    }

    /// The number of a unit's micro-batch among all of the step.
    pub fn number(&self, u: Unit) -> usize {
        usize::from(u.dir) * self.job.plan.num_micro + u.micro as usize
    }

    /// What a message holds: ports of the entry that made it, with `prefix` in their names.
    fn layout(&self, stage: u16, payload: Payload) -> impl Iterator<Item = &Port> {
        let (entry, prefix) = match payload {
            Payload::Activation => ("forward", "out."),
            Payload::Gradient => ("backward_input", "d_in."),
        };
        let outputs = entry_of(&self.job, stage, entry).map_or(&[][..], |e| &e.outputs);
        outputs.iter().filter(move |p| p.role == Role::Inner && p.name.starts_with(prefix))
    }
    /// Memory for the tensors of a message.
    fn blank(&mut self, stage: u16, payload: Payload, which: usize) -> Result<Vec<Memory>, ExecError> {
        let dims = &self.shapes[which].dims;
        let sizes: Vec<usize> = self.layout(stage, payload).map(|p| elems(p, dims) * p.dtype.bytes()).collect();
        sizes.into_iter().map(|n| self.shelf.take(n)).collect()
    }
    /// Puts a message's tensors in a pool, under the names its reader has for them.
    fn decode(&mut self, from: u16, payload: Payload, parcel: Vec<Memory>, which: usize, pool: &mut Pool) {
        let dims = &self.shapes[which].dims;
        let named = self.layout(from, payload).zip(parcel).map(|(p, memory)| {
            let name = match payload {
                Payload::Activation => p.name.replacen("out.", "in.", 1),
                Payload::Gradient => p.name.replacen("d_in.", "d_out.", 1),
            };
            (name, Slot { dtype: p.dtype, shape: p.shape.iter().map(|d| size(d, dims)).collect(), memory })
        });
        for (name, slot) in named.collect::<Vec<_>>() {
            self.shelf.insert(pool, name, slot);
        }
    }
    /// Takes what a message holds out of an entry's results.
    pub fn encode(&self, stage: u16, payload: Payload, pool: &mut Pool) -> Vec<Memory> {
        self.layout(stage, payload).map(|p| pool.remove(&p.name).expect("the entry makes it").memory).collect()
    }
    /// Sends a message's tensors; what has left is free.
    fn give(&mut self, to: usize, tag: Tag, mut parcel: Vec<Memory>) -> Result<(), ExecError> {
        for (to, parcel) in std::mem::take(&mut self.sent) {
            if self.lent.is_sent(to)? {
                parcel.into_iter().for_each(|m| self.shelf.give(m));
            } else {
                self.sent.push((to, parcel));
            }
        }
        let spans = spans(&mut parcel)?;
        // SAFETY: the memory is this device's, and stays in `sent` until it has left.
        let started = unsafe { self.lent.send_spans(to, tag, &spans) };
        self.sent.push((to, parcel));
        Ok(started?)
    }
    /// Waits for a message.
    fn get(&mut self, from: usize, tag: Tag, (stage, payload): (u16, Payload), which: usize) -> Result<Vec<Memory>, ExecError> {
        let mut parcel = self.blank(stage, payload, which)?;
        let spans = spans(&mut parcel)?;
        // Memory that is new is being zeroed.
        self.device.wait()?;
        // SAFETY: the memory is this device's, and nothing else has it.
        unsafe { self.lent.receive_spans(from, tag, &spans) }?;
        parcel.iter_mut().for_each(Memory::written);
        Ok(parcel)
    }

    /// This rank's way to those that it divides experts with; `waited` counts how long exchanges took, `sent` what they send over the host.
    pub fn carry<'m>(&'m self, waited: &'m Cell<Duration>, sent: &'m dyn Fn(usize)) -> Carry<'m> {
        let members = self.job.group(self.rank);
        Carry {
            fabric: self.fabric,
            direct: self.lent.direct.map(|_| &self.lent as &dyn Direct),
            waited,
            turns: self.turns,
            checked: self.job.checked,
            step: self.step,
            count: &self.exchanges,
            sent,
            ways: Ways(members.iter().map(|m| self.nodes.get(*m).copied().unwrap_or(0)).collect()),
            rooms: &self.rooms,
            traffic: self.counts_traffic.then_some(&self.traffic),
            members,
        }
    }
    /// Runs an entry on what it takes from the pool, and adds its results.
    fn run(&mut self, stage: u16, entry: &str, which: usize, pool: &mut Pool) -> Result<(), ExecError> {
        let mut session = self.sessions.remove(&stage).expect("a stage of this rank");
        let mut shelf = std::mem::replace(&mut self.shelf, Shelf::new(self.device.clone()));
        let (since, waited) = (Instant::now(), Cell::default());
        let sent = |bytes| self.lent.count_rows(bytes);
        let carry = self.carry(&waited, &sent);
        let peers: Option<&dyn Peers> = if self.job.members() > 1 { Some(&carry) } else { None };
        let ran = session.run_kept(entry, &self.shapes[which].dims, (pool, &mut shelf), peers);
        (self.shelf, _) = (shelf, self.sessions.insert(stage, session));
        ran?;
        if let Some(part) = Part::of_entry(entry).filter(|_| which == 0) {
            self.counts.add(stage, part, since, waited.get());
        }
        Ok(())
    }

    /// The forward of a stage: from what the stage before made and the batch to what the next reads, and all results.
    fn forward_of(
        &mut self,
        stage: u16,
        which: usize,
        first_row: usize,
        input: Vec<Memory>,
    ) -> Result<(Vec<Memory>, Pool), ExecError> {
        let mut pool = self.taken_by_forward(stage, which, first_row, input)?;
        self.run(stage, "forward", which, &mut pool)?;
        let made = self.encode(stage, Payload::Activation, &mut pool);
        Ok((made, pool))
    }
    /// What a forward takes: what the stage before made, and the batch.
    pub fn taken_by_forward(
        &mut self,
        stage: u16,
        which: usize,
        first_row: usize,
        input: Vec<Memory>,
    ) -> Result<Pool, ExecError> {
        let (job, shapes) = (self.job, &self.shapes[which]);
        let o = job.options;
        let mut pool = Pool::new();
        let batch = if which == 0 {
            job.text.batch(o.seed, self.step, first_row, shapes.rows, o.seq)
        } else {
            let total = o.eval_rows.div_ceil(shapes.rows).max(1) * shapes.rows;
            job.text.validation(first_row, shapes.rows, total, o.seq)
        };
        let mut text = [batch.tokens, batch.targets].into_iter();
        for p in job.inputs {
            let of_text = if p.name == "weights" { None } else { text.next() };
            let t = of_text.map_or_else(|| shapes.weights.cast(p.dtype), |t| t.cast(p.dtype));
            let t = self.shelf.put(&t)?;
            self.shelf.insert(&mut pool, p.name.clone(), t);
        }
        if stage > 0 {
            self.decode(stage - 1, Payload::Activation, input, which, &mut pool);
        }
        Ok(pool)
    }
    /// What a unit keeps after its forward, whose results are in the pool; its loss, if its stage has one.
    pub fn keep_forward(&mut self, u: Unit, mut pool: Pool) -> Result<(), ExecError> {
        if usize::from(u.stage) + 1 == self.job.plan.num_stages() {
            let (number, loss) = (self.number(u), loss_of(&pool)?);
            if !loss.is_finite() {
                let at = format!("stage {}, micro-batch {number}", u.stage);
                return Err(step::not_finite(&self.job, self.step, "the loss", loss, at));
            }
            self.losses.insert(number, loss);
        }
        let wanted = wanted(self.job.program(self.rank, u.stage).manifest.entries.iter());
        self.shelf.retain(&mut pool, |name| wanted.contains(name));
        self.kept.insert(u, pool);
        Ok(())
    }
    /// What a backward takes: what the unit kept, and the gradient of what its forward made.
    pub fn taken_by_backward(&mut self, u: Unit, gradient: Vec<Memory>) -> Pool {
        let mut pool = self.kept.remove(&u).expect("a plan's forward comes first");
        self.decode(u.stage + 1, Payload::Gradient, gradient, 0, &mut pool);
        pool
    }

    /// The mean validation loss: forwards alone, one part of the text after the other through the stages of direction 0.
    pub fn evaluate(&mut self, fabric: &dyn Fabric) -> Result<f64, ExecError> {
        let plan = self.job.plan;
        let num_stages = plan.num_stages() as u16;
        // Validation is not part of the plan: all ranks compute at once.
        let turns = self.turns.take();
        let rounds = self.job.options.eval_rows.div_ceil(self.shapes[1].rows).max(1);
        let first = |stage: u16| plan.placement.rank(0, stage).expect("every direction has every stage");
        let dir = self.job.evaluates(self.rank);
        let rank_of = |stage: u16| dir.and_then(|d| plan.placement.rank(d, stage)).unwrap_or(first(stage));
        let mut loss = 0.0;
        let mut here: BTreeMap<u16, Vec<Vec<Memory>>> = BTreeMap::new();
        let own: Vec<u16> = (0..num_stages).filter(|s| rank_of(*s) == self.rank).collect();
        let of = |stage: u16, round: usize, step: u64| {
            tag(b"EVAL", fabric::Channel(step::EVALUATION | u32::from(stage)), (0, stage, round as u32), step)
        };
        for stage in own {
            let before = stage.checked_sub(1).map(rank_of);
            let mut handed = here.remove(&stage).unwrap_or_default().into_iter();
            for round in 0..rounds {
                let input = match before {
                    None => Vec::new(),
                    Some(from) if from == self.rank => handed.next().expect("the stage before made it"),
                    Some(from) => self.get(from, of(stage, round, self.step), (stage - 1, Payload::Activation), 1)?,
                };
                let first_row = round * self.shapes[1].rows;
                let (made, mut pool) = self.forward_of(stage, 1, first_row, input)?;
                if stage + 1 == num_stages {
                    loss += loss_of(&pool)?;
                } else if rank_of(stage + 1) == self.rank {
                    here.entry(stage + 1).or_default().push(made);
                } else {
                    self.give(rank_of(stage + 1), of(stage + 1, round, self.step), made)?;
                }
                self.shelf.retain(&mut pool, |_| false);
            }
        }
        self.lent.flush()?;
        let mut bytes = loss.to_le_bytes();
        fabric::collective::broadcast(fabric, first(num_stages - 1), &mut bytes)?;
        self.turns = turns;
        Ok(f64::from_le_bytes(bytes))
    }
}

/// What a stage needs on a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageMemory {
    /// Parameters, states, gradients, moments, tallies. # Units: bytes.
    pub stored: u64,
    /// The moments among these. # Units: bytes.
    pub moments: u64,
    /// What a micro-batch keeps from its forward to the end of its backward. # Units: bytes.
    pub kept: u64,
    /// How many micro-batches keep that at once, at most.
    pub units: u64,
}

/// What stage `stage` needs on rank `rank`, beside what its entries use while they run.
///
/// # Errors
/// E0702 if the model does not take the run's rows and tokens.
pub fn memory(job: &Job, stage: u16, rank: usize) -> Result<StageMemory, ExecError> {
    let dims = shapes(job, job.options.batch / job.options.micro_batches, job.options.micro_batches)?.dims;
    let entries: Vec<&Entry> = entries(job, stage, rank).collect();
    let StageBytes { stored, moments, kept } = stage_bytes(&entries, &dims);
    let (mut live, mut units) = (0u64, 0);
    for action in &job.plan.actions[rank] {
        live += u64::from(action.forward().is_some_and(|u| u.stage == stage));
        units = live.max(units);
        live -= u64::from(action.ends().is_some_and(|u| u.stage == stage));
    }
    Ok(StageMemory { stored, moments, kept, units })
}

/// What a stage needs by its entries. # Units: bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageBytes {
    /// Parameters, states, gradients, moments, tallies.
    pub stored: u64,
    /// The moments among these.
    pub moments: u64,
    /// What a micro-batch keeps from its forward to the end of its backward.
    pub kept: u64,
}

/// What a stage with these entries needs for these dims.
pub fn stage_bytes(entries: &[&Entry], dims: &DimEnv) -> StageBytes {
    let bytes =
        |p: &Port| p.shape.iter().map(|d| d.eval(dims).unwrap_or(0)).product::<i64>().max(0) as u64 * p.dtype.bytes() as u64;
    let ports = || entries.iter().flat_map(|e| e.args.iter().chain(&e.outputs));
    let stored: BTreeMap<(Role, &str), u64> =
        ports().filter(|p| p.role.is_stored()).map(|p| ((p.role, p.name.as_str()), bytes(p))).collect();
    let moments = stored.iter().filter(|((role, _), _)| *role == Role::Moment).map(|(_, n)| n).sum();
    let wanted = wanted(entries.iter().copied());
    let forward = entries.iter().filter(|e| e.name == "forward").flat_map(|e| e.args.iter().chain(&e.outputs));
    let kept = forward.filter(|p| wanted.contains(p.name.as_str()) && !p.role.is_stored()).map(bytes).sum();
    StageBytes { stored: stored.into_values().sum(), moments, kept }
}

/// The entries of a stage that a rank runs.
fn entries<'a>(job: &Job<'a>, stage: u16, rank: usize) -> impl Iterator<Item = &'a Entry> {
    let held = Held::new(job, stage, rank);
    job.programs[job.member(rank)][usize::from(stage)].manifest.entries.iter().filter(move |e| held.runs(&e.name))
}

fn entry_of<'a>(job: &Job<'a>, stage: u16, name: &str) -> Option<&'a Entry> {
    // Of any share: they are the same but for names of parameters.
    job.programs[0].get(usize::from(stage))?.manifest.entries.iter().find(|e| e.name == name)
}

/// What a stage's backward entries take.
fn wanted<'a>(entries: impl Iterator<Item = &'a Entry>) -> BTreeSet<&'a str> {
    let backward = entries.filter(|e| matches!(e.name.as_str(), "backward_input" | "backward_weight"));
    backward.flat_map(|e| &e.args).filter(|p| !p.role.is_stored()).map(|p| p.name.as_str()).collect()
}

fn elems(p: &Port, dims: &DimEnv) -> usize {
    p.shape.iter().map(|d| size(d, dims)).product::<i64>().max(0) as usize
}

fn loss_of(pool: &Pool) -> Result<f64, ExecError> {
    Ok(kept::number(pool, "loss")?.unwrap_or(f64::NAN))
}

/// Where tensors lie.
fn spans(parcel: &mut [Memory]) -> Result<Vec<Span>, ExecError> {
    let span = |m: &mut Memory| {
        m.send()?;
        Ok(Span { at: m.as_ptr(), bytes: m.len() })
    };
    parcel.iter_mut().map(span).collect()
}

/// Dims and weights for so many rows; each token's loss weighs 1 / (tokens of `parts` such parts).
fn shapes(job: &Job, rows: usize, parts: usize) -> Result<Shapes, ExecError> {
    let mut dims = DimEnv::new();
    for p in job.inputs.iter().filter(|p| p.name != "weights") {
        for (d, n) in p.shape.iter().zip([rows as i64, job.options.seq as i64]) {
            for s in job.whole.dims.iter().filter(|s| *d == Dim::sym(s)) {
                dims.insert(s.as_str().into(), n);
            }
        }
    }
    for s in &job.whole.dims {
        dims.entry(s.as_str().into()).or_insert(1);
    }
    let of_weights = job.inputs.iter().find(|p| p.name == "weights").map_or(&[][..], |p| &p.shape);
    let shape: Vec<i64> = of_weights.iter().map(|d| d.eval(&dims).unwrap_or(0)).collect();
    let n = shape.iter().product::<i64>().max(0) as usize;
    let weights = HostTensor::from_f64(DType::F32, &shape, vec![1.0 / (n * parts) as f64; n]);
    Ok(Shapes { rows, dims, weights })
}

impl Compute for Model<'_> {
    type Parcel = Vec<Memory>;
    fn send(&mut self, to: usize, tag: Tag, _: Message, parcel: Vec<Memory>) -> Result<(), ExecError> {
        self.give(to, tag, parcel)
    }
    fn receive(&mut self, from: usize, tag: Tag, m: Message) -> Result<Vec<Memory>, ExecError> {
        self.get(from, tag, (m.unit.stage, m.payload), 0)
    }
    fn forward(&mut self, u: Unit, input: Vec<Memory>) -> Result<Vec<Memory>, ExecError> {
        let first_row = self.number(u) * self.shapes[0].rows;
        let (made, pool) = self.forward_of(u.stage, 0, first_row, input)?;
        self.keep_forward(u, pool)?;
        Ok(made)
    }
    fn backward(&mut self, u: Unit, gradient: Vec<Memory>) -> Result<Vec<Memory>, ExecError> {
        // In its two parts: a kernel of both would contract a·b + c elsewhere, and schedules that split would have other bits.
        let made = self.backward_input(u, gradient)?;
        self.backward_weight(u)?;
        Ok(made)
    }
    fn backward_input(&mut self, u: Unit, gradient: Vec<Memory>) -> Result<Vec<Memory>, ExecError> {
        let mut pool = self.taken_by_backward(u, gradient);
        self.run(u.stage, "backward_input", 0, &mut pool)?;
        let made = self.encode(u.stage, Payload::Gradient, &mut pool);
        let later = entry_of(&self.job, u.stage, "backward_weight");
        self.shelf.retain(&mut pool, |name| later.is_some_and(|e| e.args.iter().any(|p| p.name == name)));
        self.kept.insert(u, pool);
        Ok(made)
    }
    fn backward_weight(&mut self, u: Unit) -> Result<(), ExecError> {
        let mut pool = self.kept.remove(&u).expect("a plan's backward of inputs comes first");
        self.run(u.stage, "backward_weight", 0, &mut pool)?;
        self.shelf.retain(&mut pool, |_| false);
        Ok(())
    }
    fn pair(&mut self, ahead: (Unit, Vec<Memory>), back: (Unit, Vec<Memory>)) -> Result<[Vec<Memory>; 2], ExecError> {
        pairs::run(self, ahead, back)
    }
    fn reduce(&mut self, stage: u16) -> Result<(), ExecError> {
        step::reduce(self, stage)
    }
    fn update(&mut self, stage: u16) -> Result<(), ExecError> {
        step::update(self, stage, self.fabric)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fabric::{Timeouts, threads};

    #[test]
    fn nodes_are_machines_however_ranks_are_placed() {
        let machines = [7, 9, 7, 9, 8];
        let told: Vec<Vec<usize>> = std::thread::scope(|s| {
            let world = threads::world(machines.len(), Timeouts::default()).into_iter().zip(machines);
            let ranks: Vec<_> = world.map(|(f, machine)| s.spawn(move || nodes(machine, &f).expect("all are there"))).collect();
            ranks.into_iter().map(|r| r.join().expect("no rank panics")).collect()
        });
        assert!(told.iter().all(|nodes| *nodes == [0, 1, 0, 1, 4]), "{told:?}");
        // In a group of the first four each takes in for its like on the other machine.
        let ways = Ways(told[0][..4].to_vec());
        assert_eq!(ways.beside(2), [0, 2]);
        assert_eq!([0, 1, 2, 3].map(|from| ways.relay(from, &ways.elsewhere(from)[0])), [1, 0, 3, 2]);
    }
}
