//! Steps of training over ranks: what ranks tell each other beside the plan's messages.

use super::{
    Job, Program,
    execute::{Follow, Turns, execute, tag},
    measured::{self, Part},
    model::{Model, memory},
    save,
    shards::{Held, Shards},
    sums::Among,
};
use crate::{
    ExecError, checkpoint,
    metrics::Metrics,
    plan::Peak,
    train::{self, Figures, Report},
};
use fabric::{Channel, Direct, Fabric, collective};
use library::{Role, names};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

/// Channels beside the plan's: validation, by stage.
pub(super) const EVALUATION: u32 = 0x4000_0000;
/// Sums over the copies of a stage, by stage.
pub(super) const COPIES: u32 = 0x5000_0000;
/// Sums over the stages of a parameter, by its number.
const TIED: u32 = 0x6000_0000;

/// What all ranks know of a step once its gradients are there.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Agreed {
    pub losses: Vec<f64>,
    pub grad_norm: f64,
    pub max_violation: Option<f64>,
}

/// Trains as one rank.
pub(super) fn train(
    job: &Job,
    f: &dyn Fabric,
    direct: Option<&dyn Direct>,
    turns: Option<&Turns>,
    report: &mut dyn Report,
) -> Result<f64, ExecError> {
    // Its memory is freed last: that waits for messages under way, unless they were ended.
    let mut model = None;
    // A panic of ours must not leave the others waiting.
    let guard = Guard { fabric: f, direct, turns, finished: std::cell::Cell::new(false) };
    let result = run(job, f, (direct, turns), report, &mut model);
    guard.finished.set(true);
    if let Err(e) = &result {
        if !matches!(e.fabric(), Some(fabric::FabricError::Aborted { .. })) {
            f.abort(&e.to_string());
        }
        direct.iter().for_each(|d| d.stop(&e.to_string()));
        if let Some(turns) = turns {
            turns.stop();
        }
    }
    result
}

struct Guard<'a> {
    fabric: &'a dyn Fabric,
    direct: Option<&'a dyn Direct>,
    turns: Option<&'a Turns>,
    finished: std::cell::Cell<bool>,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if !self.finished.get() {
            self.fabric.abort("it panicked");
            self.direct.iter().for_each(|d| d.stop("it panicked"));
            self.turns.iter().for_each(|t| t.stop());
        }
    }
}

fn run<'a>(
    job: &Job<'a>,
    f: &'a dyn Fabric,
    (direct, turns): (Option<&'a dyn Direct>, Option<&'a Turns>),
    report: &mut dyn Report,
    model: &mut Option<Model<'a>>,
) -> Result<f64, ExecError> {
    let o = job.options;
    train::check(o)?;
    let rank = f.rank();
    let model = model.insert(Model::new(*job, f, direct, turns)?);
    let peak = peak(model)?;
    for session in model.sessions.values().take(1) {
        // What all stages and pairs of this rank have already is in the peak too.
        let others = model.sessions.values().skip(1).map(|s| s.held_bytes()).sum::<u64>() + model.pairs.bytes();
        session.admit(&peak, o.memory_limit, others)?;
    }
    let identity = train::identity(job.whole, job.text, o);
    let first = save::resume(model, f, &identity, &mut |w| report.warn(w))?;
    report.start(&peak, first, o.steps);
    let mut metrics = if rank == 0 { Some(Metrics::open(&o.out.join("metrics.jsonl"), first)?) } else { None };
    let started = Instant::now();
    let mut val_loss = f64::NAN;
    for step in first + 1..=o.steps {
        (model.step, model.agreed) = (step, None);
        model.losses.clear();
        for session in model.sessions.values_mut() {
            session.store.zero(Role::Grad);
            session.store.zero(Role::Tally);
        }
        let during = |what: &'static str| {
            move |e: ExecError| match e {
                ExecError::Fabric(source) => ExecError::Rank { doing: format!("rank {rank}, step {step}, {what}"), source },
                other => other,
            }
        };
        if step == first + 2 {
            model.counts.restart();
        }
        model.lent.sent.borrow_mut().clear();
        let follow = Follow { step, turns };
        model.counts_traffic = job.members() > 1 && step == first + 1;
        execute(job.plan, rank, model, follow)?;
        model.lent.flush().map_err(ExecError::from).map_err(during("what was sent"))?;
        if model.counts_traffic {
            model.counts_traffic = false;
            report.traffic(&model.traffic.get().sum(f)?);
        }
        for stage in model.sessions.keys().copied().collect::<Vec<_>>() {
            for shards in Held::new(job, stage, rank).shards {
                shards.share_updates(model, stage).map_err(during("the parameters that copies updated"))?;
            }
        }
        let agreed = model.agreed.take().expect("a plan ends with updates");
        report.micro_losses(&agreed.losses);
        let last = step == o.steps;
        let mut figures = Figures {
            step,
            loss: agreed.losses.iter().sum(),
            grad_norm: agreed.grad_norm,
            lr: train::learning_rate(o, step),
            tokens_per_s: ((step - first) * (o.batch * o.seq) as u64) as f64 / started.elapsed().as_secs_f64(),
            max_violation: agreed.max_violation,
            val_loss: None,
            peak_bytes: peak.total(),
        };
        if last || (o.eval_every > 0 && step.is_multiple_of(o.eval_every)) {
            // Experts' rows of validation are not the step's.
            let sent = model.lent.sent.borrow().clone();
            val_loss = model.evaluate(f).map_err(during("validation"))?;
            figures.val_loss = Some(val_loss);
            *model.lent.sent.borrow_mut() = sent;
        }
        if let Some(metrics) = &mut metrics {
            metrics.write(&figures, &agreed.losses)?;
        }
        report.step(&figures);
        let mut stop = [u8::from(!last && report.stop())];
        collective::broadcast(f, 0, &mut stop).map_err(ExecError::from).map_err(during("whether to go on"))?;
        let stop = stop == [1];
        if last || stop || (o.save_every > 0 && step.is_multiple_of(o.save_every)) {
            if let Some(metrics) = &mut metrics {
                metrics.sync()?;
            }
            save::save(model, f, step, &identity).map_err(during("a checkpoint"))?;
            if rank == 0 {
                checkpoint::prune(&o.out, o.keep.max(1));
            }
        }
        if stop {
            break;
        }
    }
    if first >= o.steps {
        val_loss = model.evaluate(f)?;
    }
    if first < o.steps {
        let measured = measured::measured(model, model.step - first, f)?;
        if rank == 0 {
            let path = o.out.join("costs.json");
            if !measured.stages.is_empty() {
                let text = serde_json::to_string_pretty(&measured.costs(job)).expect("numbers");
                std::fs::write(&path, text + "\n").map_err(|e| ExecError::io(&path, &e))?;
            } else if path.exists() {
                // Those of an earlier run, maybe of another model.
                std::fs::remove_file(&path).map_err(|e| ExecError::io(&path, &e))?;
            }
            report.measured(&measured);
        }
    }
    // Nobody goes before all have what they need.
    collective::barrier(f)?;
    Ok(val_loss)
}

/// Memory of a rank by cause: its stages' entries, and what units keep between forward and backward.
fn peak(model: &Model) -> Result<Peak, ExecError> {
    let mut sum = Peak::default();
    for (stage, s) in &model.sessions {
        let dims = &model.shapes[0].dims;
        let names: Vec<&str> = s.manifest.entries.iter().map(|e| e.name.as_str()).collect();
        let entries: Vec<_> = names.iter().map(|n| (*n, dims)).collect();
        let part = s.peak(&entries)?;
        sum.activations += part.activations;
        part.by_role.into_iter().for_each(|(role, n)| *sum.by_role.entry(role).or_insert(0) += n);
        let kept = memory(&model.job, *stage, model.rank)?;
        *sum.by_role.entry(Role::Inner).or_insert(0) += kept.units * kept.kept;
    }
    sum.activations += model.pairs.bytes();
    Ok(sum)
}

/// The error for a number that is not finite.
pub(super) fn not_finite(job: &Job, step: u64, what: &str, value: f64, first: String) -> ExecError {
    let newest = checkpoint::list(&job.options.out).first().map(|p| p.display().to_string());
    ExecError::NotFinite { what: what.into(), value, step, first, checkpoint: newest.unwrap_or("none was made yet".into()) }
}

/// The ranks that have a stage, in order of its directions.
pub(super) fn copies(job: &Job, stage: u16) -> Vec<usize> {
    let placement = &job.plan.placement;
    let mut out = Vec::new();
    for rank in (0..placement.num_dirs()).filter_map(|d| placement.rank(d as u16, stage)) {
        if !out.contains(&rank) {
            out.push(rank);
        }
    }
    out
}

/// Sums a stage's gradients and tallies over its copies.
pub(super) fn reduce(model: &mut Model, stage: u16) -> Result<(), ExecError> {
    Held::new(&model.job, stage, model.rank).shards.iter().try_for_each(|s| s.reduce(model, stage))
}

/// The optimiser's step on a stage; before the first of a step, all ranks agree on the gradient's norm.
pub(super) fn update(model: &mut Model, stage: u16, f: &dyn Fabric) -> Result<(), ExecError> {
    if model.agreed.is_none() {
        model.agreed = Some(agree(model, f)?);
    }
    let grad_norm = model.agreed.as_ref().expect("set above").grad_norm;
    let (o, step) = (model.job.options, model.step);
    let session = model.sessions.get_mut(&stage).expect("a stage of this rank");
    let since = Instant::now();
    train::update(session, &model.shapes[0].dims, o, step, grad_norm)?;
    model.counts.add(stage, Part::Update, since, std::time::Duration::ZERO);
    Ok(())
}

/// A parameter that several stages have.
pub(super) struct Tied {
    name: String,
    /// In order.
    stages: Vec<u16>,
    /// All ranks that have one of them, in order.
    pub members: Vec<usize>,
}

/// The parameters that several stages have, by name.
pub(super) fn tied(job: &Job) -> Vec<Tied> {
    let mut stages_of: BTreeMap<&str, Vec<u16>> = BTreeMap::new();
    for (stage, program) in job.programs[0].iter().enumerate() {
        for p in program.manifest.params.iter().filter(|p| p.role == Role::Param) {
            stages_of.entry(&p.name).or_default().push(stage as u16);
        }
    }
    let several = stages_of.into_iter().filter(|(_, s)| s.len() > 1);
    let tied = several.map(|(name, stages)| {
        let members: BTreeSet<usize> = stages.iter().flat_map(|s| copies(job, *s)).collect();
        Tied { name: name.into(), stages, members: members.into_iter().collect() }
    });
    tied.collect()
}

/// Sums the gradients of parameters that several stages have, over these stages.
fn sum_tied(model: &mut Model) -> Result<(), ExecError> {
    let job = model.job;
    for (number, Tied { name, stages, members }) in tied(&job).into_iter().enumerate() {
        let Some(own) = members.iter().position(|m| *m == model.rank) else { continue };
        let owner = |stage: &u16| {
            let shards = Shards::common(&job, *stage);
            let rank = shards.members[shards.owner(&name)];
            members.iter().position(|m| *m == rank).expect("it is a member")
        };
        let owners: Vec<usize> = stages.iter().map(owner).collect();
        let Model { sessions, sums, lent, step, .. } = model;
        let here = sessions.iter_mut().filter_map(|(stage, session)| {
            let place = stages.iter().position(|s| s == stage)?;
            let slot = session.store.get_mut(Role::Grad, &name).expect("trained parameters have gradients");
            Some((place, slot))
        });
        let tag = tag(b"TIED", Channel(TIED | number as u32), (0, 0, number as u32), *step);
        let among = Among { way: &*lent, members: &members, own, tag };
        sums.reduce_stages(&among, &owners, &mut here.collect::<Vec<_>>())?;
    }
    Ok(())
}

/// What a rank tells the others after its gradients.
enum Item {
    /// The sum of squares of a tensor's gradient.
    Square(String),
    /// A layer's imbalance.
    Violation,
    /// A micro-batch's loss.
    Loss(usize),
}

/// The tensors whose sums of squares a copy of a stage tells.
fn squares_of(program: &Program, held: &Held) -> BTreeSet<String> {
    let own = program.manifest.params.iter().filter(|p| p.role == Role::Param && held.owns(&p.name));
    own.flat_map(|p| names::expand(&p.name, &p.shape).0).collect()
}

/// What a rank tells, in order: every rank knows how much every other one does.
fn items(job: &Job, rank: usize) -> Vec<Item> {
    let mut out = Vec::new();
    for (stage, program) in job.programs[job.member(rank)].iter().enumerate() {
        if !copies(job, stage as u16).contains(&rank) {
            continue;
        }
        let held = Held::new(job, stage as u16, rank);
        out.extend(squares_of(program, &held).into_iter().map(Item::Square));
        if !held.is_first() {
            continue;
        }
        let forward = program.manifest.entries.iter().find(|e| e.name == "forward");
        for p in forward.iter().flat_map(|e| &e.outputs).filter(|p| p.role == Role::Tally && train::is_load(&p.name)) {
            let layers: i64 = p.shape.iter().rev().skip(1).filter_map(base::Dim::known).product();
            out.extend((0..layers).map(|_| Item::Violation));
        }
    }
    let (placement, last) = (&job.plan.placement, job.plan.num_stages() as u16 - 1);
    for dir in (0..placement.num_dirs()).filter(|d| placement.rank(*d as u16, last) == Some(rank)) {
        out.extend((0..job.plan.num_micro).map(|m| Item::Loss(dir * job.plan.num_micro + m)));
    }
    out
}

/// All ranks tell each other what they have; all come to the same.
fn agree(model: &mut Model, f: &dyn Fabric) -> Result<Agreed, ExecError> {
    sum_tied(model)?;
    let (job, rank) = (model.job, model.rank);
    let mut own: Vec<f64> = Vec::new();
    for stage in model.sessions.keys().copied().collect::<Vec<_>>() {
        let held = Held::new(&job, stage, rank);
        if !held.writes() {
            continue;
        }
        let session = model.sessions.get_mut(&stage).expect("a stage of this rank");
        let told = squares_of(job.program(rank, stage), &held);
        let squares = train::squares(session, &model.shapes[0].dims)?;
        own.extend(squares.into_iter().filter(|(name, _)| told.contains(name)).map(|(_, x)| x));
        if held.is_first() {
            own.extend(train::violations(session));
        }
    }
    own.extend(model.losses.values());
    let all: Vec<Vec<Item>> = (0..f.size()).map(|r| items(&job, r)).collect();
    assert_eq!(own.len(), all[rank].len(), "a rank tells what the others expect");
    let bytes: Vec<u8> = own.iter().flat_map(|x| x.to_le_bytes()).collect();
    let lengths: Vec<usize> = all.iter().map(|items| items.len() * 8).collect();
    let told = collective::all_to_all(f, &vec![bytes; f.size()], &lengths)?;
    let mut squares = BTreeMap::new();
    let (mut violations, mut losses) = (Vec::new(), BTreeMap::new());
    for (items, bytes) in all.into_iter().zip(&told) {
        for (item, x) in items.into_iter().zip(bytes.as_chunks::<8>().0) {
            let x = f64::from_le_bytes(*x);
            match item {
                Item::Square(name) => _ = squares.entry(name).or_insert(x),
                Item::Violation => violations.push(x),
                Item::Loss(number) => _ = losses.insert(number, x),
            }
        }
    }
    let grad_norm = squares.values().sum::<f64>().sqrt();
    if !grad_norm.is_finite() {
        let bad = squares.iter().find(|(_, x)| !x.is_finite()).map_or("", |(name, _)| name);
        return Err(not_finite(&job, model.step, "the gradient's norm", grad_norm, format!("the gradient of {bad}")));
    }
    let max_violation = train::mean(&violations);
    Ok(Agreed { losses: losses.into_values().collect(), grad_norm, max_violation })
}
