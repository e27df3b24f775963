//! A rank's stages as what computes: sessions, and what each unit keeps between its forward and its backward.

use super::{
    Job, Shared, Traffic,
    execute::{Compute, Turns},
    experts::Carry,
    relay::Ways,
    shards::Held,
    step,
};
use crate::{ExecError, HostTensor, Peers, Session, plan::size};
use base::{DType, Dim, DimEnv};
use fabric::Fabric;
use library::{Entry, Port, Role};
use schedule::{Message, Payload, Unit};
use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
};

/// Tensors by name.
type Pool = BTreeMap<String, HostTensor>;

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
    /// What went to other ranks with experts, in the steps that count it.
    pub traffic: Cell<Traffic>,
    pub counts_traffic: bool,
    /// By rank; none if no experts are divided.
    nodes: Vec<usize>,
    kept: BTreeMap<Unit, Pool>,
    fabric: &'a dyn Fabric,
    /// Where all ranks compute in one order.
    turns: Option<&'a Turns>,
    exchanges: Cell<u64>,
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

/// The node of each rank, as they tell each other.
fn nodes(job: &Job, fabric: &dyn Fabric) -> Result<Vec<usize>, ExecError> {
    let own = job.nodes.first(fabric.rank()) as u64;
    let told = fabric::collective::all_gather(fabric, &own.to_le_bytes())?;
    Ok(told.iter().map(|bytes| u64::from_le_bytes(bytes.as_chunks::<8>().0[0]) as usize).collect())
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
    pub fn new(job: Job<'a>, fabric: &'a dyn Fabric, turns: Option<&'a Turns>) -> Result<Model<'a>, ExecError> {
        let rank = fabric.rank();
        check_messages(&job)?;
        job.check_members()?;
        let mut sessions = BTreeMap::new();
        for stage in &job.plan.placement.stages_by_rank()[rank] {
            let program = &job.programs[job.member(rank)][usize::from(*stage)];
            let code = Box::new(Shared(program.code.clone()));
            let mut manifest = program.manifest.clone();
            manifest.entries = entries(&job, *stage, rank).cloned().collect();
            let mut session = Session::new(manifest, code, Some(job.threads))?;
            // Whatever rows other ranks have, a row has the same bits.
            session.fixed = true;
            session.store.initialise(&program.manifest, job.options.seed)?;
            sessions.insert(*stage, session);
        }
        let o = job.options;
        let eval_rows = o.eval_rows.clamp(1, o.batch);
        let parts = [(o.batch / o.micro_batches, o.micro_batches), (eval_rows, o.eval_rows.div_ceil(eval_rows).max(1))];
        let [a, b] = parts.map(|(rows, parts)| shapes(&job, rows, parts));
        let (losses, kept) = (BTreeMap::new(), BTreeMap::new());
        let nodes = if job.members() > 1 { nodes(&job, fabric)? } else { Vec::new() };
        Ok(Model {
            job,
            rank,
            sessions,
            shapes: [a?, b?],
            step: 0,
            losses,
            agreed: None,
            traffic: Cell::default(),
            counts_traffic: false,
            nodes,
            kept,
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
    /// Bytes of a message for these dims.
    fn bytes(&self, stage: u16, payload: Payload, dims: &DimEnv) -> usize {
        self.layout(stage, payload).map(|p| elems(p, dims) * p.dtype.bytes()).sum()
    }
    /// A message's tensors, under the names its reader has for them.
    fn decode(&self, from: u16, payload: Payload, bytes: &[u8], dims: &DimEnv, pool: &mut Pool) {
        let mut at = 0;
        for p in self.layout(from, payload) {
            let n = elems(p, dims) * p.dtype.bytes();
            let name = match payload {
                Payload::Activation => p.name.replacen("out.", "in.", 1),
                Payload::Gradient => p.name.replacen("d_in.", "d_out.", 1),
            };
            let shape = p.shape.iter().map(|d| size(d, dims)).collect();
            pool.insert(name, HostTensor { dtype: p.dtype, shape, bytes: bytes[at..at + n].to_vec() });
            at += n;
        }
    }
    /// Takes what a message holds out of an entry's results.
    fn encode(&self, stage: u16, payload: Payload, pool: &mut Pool) -> Vec<u8> {
        let names: Vec<String> = self.layout(stage, payload).map(|p| p.name.clone()).collect();
        names.iter().flat_map(|n| pool.remove(n).expect("the entry makes it").bytes).collect()
    }

    /// Runs an entry on what it takes from the pool, and adds its results.
    fn run(&mut self, stage: u16, entry: &str, which: usize, pool: &mut Pool) -> Result<(), ExecError> {
        let session = self.sessions.get_mut(&stage).expect("a stage of this rank");
        let names: Vec<String> =
            session.entry(entry)?.args.iter().filter(|p| !p.role.is_stored()).map(|p| p.name.clone()).collect();
        let mut inputs: Vec<(&str, &HostTensor)> = Vec::new();
        for n in &names {
            let why = || format!("stage {stage} does not have it for {entry}");
            let t = pool.get(n).ok_or_else(|| ExecError::Input { name: n.clone(), why: why() })?;
            inputs.push((n, t));
        }
        let members = self.job.group(self.rank);
        let carry = Carry {
            fabric: self.fabric,
            turns: self.turns,
            checked: self.job.checked,
            step: self.step,
            count: &self.exchanges,
            ways: Ways(members.iter().map(|m| self.nodes.get(*m).copied().unwrap_or(0)).collect()),
            traffic: self.counts_traffic.then_some(&self.traffic),
            members,
        };
        let peers: Option<&dyn Peers> = if self.job.members() > 1 { Some(&carry) } else { None };
        let results = session.run_among(entry, &self.shapes[which].dims, &inputs, peers)?;
        pool.extend(results);
        Ok(())
    }

    /// The forward of a stage: from what the stage before made and the batch to what the next reads, and all results.
    fn forward_of(&mut self, stage: u16, which: usize, first_row: usize, input: &[u8]) -> Result<(Vec<u8>, Pool), ExecError> {
        let (job, shapes) = (self.job, &self.shapes[which]);
        let o = job.options;
        let mut pool = Pool::new();
        let batch = if which == 0 {
            job.text.batch(o.seed, self.step, first_row, shapes.rows, o.seq)
        } else {
            let total = o.eval_rows.div_ceil(shapes.rows).max(1) * shapes.rows;
            job.text.validation(first_row, shapes.rows, total, o.seq)
        };
        let text = job.inputs.iter().filter(|p| p.name != "weights").zip([batch.tokens, batch.targets]);
        pool.extend(text.map(|(p, t)| (p.name.clone(), t)));
        pool.insert("weights".into(), shapes.weights.clone());
        if stage > 0 {
            self.decode(stage - 1, Payload::Activation, input, &shapes.dims, &mut pool);
        }
        self.run(stage, "forward", which, &mut pool)?;
        let made = self.encode(stage, Payload::Activation, &mut pool);
        Ok((made, pool))
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
        let mut here: BTreeMap<u16, Vec<Vec<u8>>> = BTreeMap::new();
        let own: Vec<u16> = (0..num_stages).filter(|s| rank_of(*s) == self.rank).collect();
        for stage in own {
            let before = stage.checked_sub(1).map(rank_of);
            let channel = |stage: u16| fabric::Channel(step::EVALUATION | u32::from(stage));
            let mut handed = here.remove(&stage).unwrap_or_default().into_iter();
            for round in 0..rounds {
                let input = match before {
                    None => Vec::new(),
                    Some(from) if from == self.rank => handed.next().expect("the stage before made it"),
                    Some(from) => {
                        let mut bytes = vec![0; self.bytes(stage - 1, Payload::Activation, &self.shapes[1].dims)];
                        fabric.receive(from, channel(stage), &mut bytes)?;
                        bytes
                    }
                };
                let first_row = round * self.shapes[1].rows;
                let (made, pool) = self.forward_of(stage, 1, first_row, &input)?;
                if stage + 1 == num_stages {
                    loss += loss_of(&pool);
                } else if rank_of(stage + 1) == self.rank {
                    here.entry(stage + 1).or_default().push(made);
                } else {
                    fabric.send(rank_of(stage + 1), channel(stage + 1), &made)?;
                }
            }
        }
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

fn loss_of(pool: &Pool) -> f64 {
    pool.get("loss").and_then(|t| t.to_f64().first().copied()).unwrap_or(f64::NAN)
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
    fn length(&self, m: Message) -> usize {
        self.bytes(m.unit.stage, m.payload, &self.shapes[0].dims)
    }
    fn forward(&mut self, u: Unit, input: Vec<u8>) -> Result<Vec<u8>, ExecError> {
        let number = self.number(u);
        let (made, mut pool) = self.forward_of(u.stage, 0, number * self.shapes[0].rows, &input)?;
        if usize::from(u.stage) + 1 == self.job.plan.num_stages() {
            let loss = loss_of(&pool);
            if !loss.is_finite() {
                let at = format!("stage {}, micro-batch {number}", u.stage);
                return Err(step::not_finite(&self.job, self.step, "the loss", loss, at));
            }
            self.losses.insert(number, loss);
        }
        let wanted = wanted(self.job.program(self.rank, u.stage).manifest.entries.iter());
        pool.retain(|name, _| wanted.contains(name.as_str()));
        self.kept.insert(u, pool);
        Ok(made)
    }
    fn backward(&mut self, u: Unit, gradient: Vec<u8>) -> Result<Vec<u8>, ExecError> {
        // In its two parts: a kernel of both would contract a·b + c elsewhere, and schedules that split would have other bits.
        let made = self.backward_input(u, gradient)?;
        self.backward_weight(u)?;
        Ok(made)
    }
    fn backward_input(&mut self, u: Unit, gradient: Vec<u8>) -> Result<Vec<u8>, ExecError> {
        let mut pool = self.kept.remove(&u).expect("a plan's forward comes first");
        self.decode(u.stage + 1, Payload::Gradient, &gradient, &self.shapes[0].dims, &mut pool);
        self.run(u.stage, "backward_input", 0, &mut pool)?;
        let made = self.encode(u.stage, Payload::Gradient, &mut pool);
        let later = entry_of(&self.job, u.stage, "backward_weight");
        pool.retain(|name, _| later.is_some_and(|e| e.args.iter().any(|p| p.name == *name)));
        self.kept.insert(u, pool);
        Ok(made)
    }
    fn backward_weight(&mut self, u: Unit) -> Result<(), ExecError> {
        let mut pool = self.kept.remove(&u).expect("a plan's backward of inputs comes first");
        self.run(u.stage, "backward_weight", 0, &mut pool)
    }
    fn reduce(&mut self, stage: u16, fabric: &dyn Fabric) -> Result<(), ExecError> {
        step::reduce(self, stage, fabric)
    }
    fn update(&mut self, stage: u16, fabric: &dyn Fabric) -> Result<(), ExecError> {
        step::update(self, stage, fabric)
    }
}
