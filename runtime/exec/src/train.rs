//! Training: gradients of each micro-batch are added up, then one update. Everything a step does depends on the seed, the step and
//! the parameters alone, so a run that was resumed is bit-equal to one that never stopped.

use crate::{
    ExecError, HostTensor, Session,
    checkpoint::{self, Identity},
    data::{Batch, Text},
    metrics::Metrics,
    plan::Peak,
    tensor,
};
use base::{DType, DimEnv};
use library::{Manifest, Role};
use std::{collections::BTreeMap, path::PathBuf, time::Instant};

/// What to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// Sequences in a step.
    pub batch: usize,
    /// Tokens in a sequence.
    pub seq: usize,
    /// Parts of a step's batch.
    pub micro_batches: usize,
    /// Steps in all.
    pub steps: u64,
    /// Steps over which the learning rate rises.
    pub warmup: u64,
    /// Peak learning rate.
    pub lr: f64,
    /// Final learning rate over the peak.
    pub floor: f64,
    /// Largest gradient norm; 0 for none.
    pub clip: f64,
    /// Of parameters and batches.
    pub seed: u64,
    /// Steps between validations; 0 for only at the end.
    pub eval_every: u64,
    /// Sequences in a validation.
    pub eval_rows: usize,
    /// Steps between checkpoints; 0 for only at the end.
    pub save_every: u64,
    /// Checkpoints kept.
    pub keep: usize,
    /// Where checkpoints and metrics go.
    pub out: PathBuf,
    /// Whether to go on from the newest checkpoint.
    pub resume: bool,
    /// Bytes the plan may need.
    pub memory_limit: Option<u64>,
}

/// One step's figures.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    /// Steps done.
    pub step: u64,
    /// Mean loss of the step's tokens. # Units: nats.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate used.
    pub lr: f64,
    /// Since the run began.
    pub tokens_per_s: f64,
    /// max load / mean load − 1, mean over layers, of tallies called `load`.
    pub max_violation: Option<f64>,
    /// Mean validation loss, if it was taken. # Units: nats.
    pub val_loss: Option<f64>,
    /// The plan's peak. # Units: bytes.
    pub peak_bytes: u64,
}

/// Watches a run.
pub trait Report {
    /// Before the first step: memory by cause, and the step it starts from.
    fn start(&mut self, peak: &Peak, first: u64, steps: u64);
    /// After each step.
    fn step(&mut self, figures: &Figures);
    /// The loss of each of a step's micro-batches, by number, before `step`. They add up to the step's loss.
    fn micro_losses(&mut self, _losses: &[f64]) {}
    /// What all ranks sent each other for experts in the first step, if they divide them.
    fn traffic(&mut self, _sent: &crate::ranks::Traffic) {}
    /// What a run over ranks measured of itself, at its end.
    fn measured(&mut self, _measured: &crate::ranks::Measured) {}
    /// Something worth a line.
    fn warn(&mut self, text: String);
    /// Asked after each step: whether to save and stop before the last one.
    fn stop(&mut self) -> bool {
        false
    }
}

/// The learning rate of step `t` (from 1): a linear rise, then half a cosine down to the floor.
/// # Source: Loshchilov and Hutter, SGDR, 2017.
pub fn learning_rate(o: &Options, t: u64) -> f64 {
    if t <= o.warmup {
        return o.lr * t as f64 / o.warmup as f64;
    }
    let progress = (t - o.warmup) as f64 / o.steps.saturating_sub(o.warmup).max(1) as f64;
    let low = o.floor * o.lr;
    low + 0.5 * (o.lr - low) * (1.0 + (std::f64::consts::PI * progress.min(1.0)).cos())
}

fn scalar(x: f64) -> HostTensor {
    HostTensor::from_f64(DType::F32, &[], [x])
}

/// Trains; the last validation loss, NaN if none was taken.
///
/// # Errors
/// E07xx; checkpoints that were made stay.
pub fn train(s: &mut Session, text: &Text, o: &Options, report: &mut dyn Report) -> Result<f64, ExecError> {
    check(o)?;
    let feed = Feed::new(s, o)?;
    let peak = s.peak(&[("grad", &feed.dims), ("loss", &feed.eval_dims), ("norm", &feed.dims), ("update", &feed.dims)])?;
    s.admit(&peak, o.memory_limit, 0)?;
    if let Some(vocab) = vocab(s) {
        text.expect_vocab(vocab)?;
    }
    let manifest = s.manifest.clone();
    let identity = identity(&manifest, text, o);
    s.store.initialise(&manifest, o.seed)?;
    s.store.zero(Role::Moment);
    let first = match (o.resume, checkpoint::list(&o.out).first()) {
        (true, _) => checkpoint::resume(&mut s.store, &manifest, &o.out, &identity, &mut |w| report.warn(w))?,
        (false, None) => 0,
        (false, Some(newest)) => return Err(occupied(o, newest)),
    };
    report.start(&peak, first, o.steps);
    let mut metrics = Metrics::open(&o.out.join("metrics.jsonl"), first)?;
    let started = Instant::now();
    let mut val_loss = f64::NAN;
    for step in first + 1..=o.steps {
        let (mut figures, losses) = feed.step(s, text, o, step, report)?;
        figures.peak_bytes = peak.total();
        figures.tokens_per_s = ((step - first) * (o.batch * o.seq) as u64) as f64 / started.elapsed().as_secs_f64();
        let last = step == o.steps;
        if last || (o.eval_every > 0 && step.is_multiple_of(o.eval_every)) {
            val_loss = feed.evaluate(s, text, o)?;
            figures.val_loss = Some(val_loss);
        }
        metrics.write(&figures, &losses)?;
        report.step(&figures);
        let stop = !last && report.stop();
        if last || stop || (o.save_every > 0 && step.is_multiple_of(o.save_every)) {
            metrics.sync()?;
            checkpoint::save(&mut s.store, &manifest, &o.out, step, &identity)?;
            checkpoint::prune(&o.out, o.keep.max(1));
        }
        if stop {
            return Ok(val_loss);
        }
    }
    if first >= o.steps {
        val_loss = feed.evaluate(s, text, o)?;
    }
    Ok(val_loss)
}

/// The folder holds a run already.
pub(crate) fn occupied(o: &Options, newest: &std::path::Path) -> ExecError {
    let name = newest.file_stem().unwrap_or_default().to_string_lossy();
    let step = name.trim_start_matches("step-").trim_start_matches('0').to_string();
    ExecError::Occupied { path: o.out.display().to_string(), step }
}

/// Options that make no sense.
pub(crate) fn check(o: &Options) -> Result<(), ExecError> {
    let wrong = |name: &str, why: String| Err(ExecError::Input { name: name.into(), why });
    if o.batch == 0 || o.seq == 0 {
        return wrong("batch", format!("{} sequences of {} tokens are none", o.batch, o.seq));
    }
    if o.micro_batches == 0 || !o.batch.is_multiple_of(o.micro_batches) {
        return wrong("micro-batches", format!("{} sequences cannot be split in {} equal parts", o.batch, o.micro_batches));
    }
    for (name, x) in [("lr", o.lr), ("floor", o.floor), ("clip", o.clip)] {
        if !x.is_finite() || x < 0.0 {
            return wrong(name, format!("it is {x}"));
        }
    }
    Ok(())
}

/// The vocabulary, if the model says: the last extent of what it predicts.
pub(crate) fn vocab(s: &Session) -> Option<i64> {
    let forward = s.manifest.entry("forward")?;
    let logits = forward.outputs.iter().find(|p| p.role == Role::Result && p.dtype.is_float() && p.shape.len() == 3)?;
    logits.shape[2].known()
}

/// What a checkpoint has to share with the run that goes on from it.
pub(crate) fn identity(manifest: &Manifest, text: &Text, o: &Options) -> Identity {
    let params: Vec<String> = manifest.params.iter().map(|p| format!("{}:{}{:?}", p.name, p.dtype, p.shape)).collect();
    let run = format!("{} {params:?} {} {} {} {}", manifest.name, o.batch, o.seq, o.seed, text.checksum);
    let run = format!("{:016x}", library::file::checksum(run.as_bytes()));
    Identity { run, schedule: format!("{} {} {} {} {}", o.steps, o.warmup, o.lr, o.floor, o.clip) }
}

/// How batches reach the model: the inputs' names, and what depends on the shapes alone.
pub(crate) struct Feed {
    /// Tokens, and what follows them if the model takes that.
    pub names: Vec<String>,
    /// Sequences of a micro-batch, and of a validation's.
    pub rows: usize,
    eval_rows: usize,
    eval_rounds: usize,
    pub dims: DimEnv,
    eval_dims: DimEnv,
    /// 1 / (tokens of the whole step), for each token's loss; likewise for validation.
    pub weights: HostTensor,
    eval_weights: HostTensor,
}

impl Feed {
    pub fn new(s: &Session, o: &Options) -> Result<Feed, ExecError> {
        let rows = o.batch / o.micro_batches;
        let eval_rows = o.eval_rows.clamp(1, o.batch);
        let eval_rounds = o.eval_rows.div_ceil(eval_rows).max(1);
        let inputs: Vec<_> = s.entry("grad")?.args.iter().filter(|p| p.role == Role::Input).cloned().collect();
        let names: Vec<String> = inputs.iter().map(|p| p.name.clone()).filter(|n| n != "weights").collect();
        let is_text = |p: &library::Port| p.name == "weights" || (p.dtype == DType::I32 && p.shape.len() == 2);
        if names.is_empty() || names.len() > 2 || !inputs.iter().all(is_text) {
            let why = "training feeds i32 tokens [B, T] and the tokens that follow them".to_string();
            return Err(ExecError::Input { name: names.join(", "), why });
        }
        let bind = |entry: &str, rows: usize| {
            let shape = [rows as i64, o.seq as i64];
            let shapes: Vec<(&str, &[i64])> = names.iter().map(|n| (n.as_str(), &shape[..])).collect();
            s.bind(entry, &shapes)
        };
        let (dims, eval_dims) = (bind("grad", rows)?, bind("loss", eval_rows)?);
        let port = inputs.iter().find(|p| p.name == "weights");
        let share = |dims: &DimEnv, parts: usize| {
            let shape: Vec<i64> = port.iter().flat_map(|p| &p.shape).map(|d| d.eval(dims).unwrap_or(0)).collect();
            let n = shape.iter().product::<i64>().max(0) as usize;
            HostTensor::from_f64(DType::F32, &shape, vec![1.0 / (n * parts) as f64; n])
        };
        let (weights, eval_weights) = (share(&dims, o.micro_batches), share(&eval_dims, eval_rounds));
        Ok(Feed { rows, eval_rows, eval_rounds, dims, eval_dims, weights, eval_weights, names })
    }
    pub fn inputs<'a>(&'a self, batch: &'a Batch, weights: &'a HostTensor) -> Vec<(&'a str, &'a HostTensor)> {
        let text = self.names.iter().map(String::as_str).zip([&batch.tokens, &batch.targets]);
        text.chain([("weights", weights)]).collect()
    }

    fn step(
        &self,
        s: &mut Session,
        text: &Text,
        o: &Options,
        step: u64,
        report: &mut dyn Report,
    ) -> Result<(Figures, Vec<f64>), ExecError> {
        s.store.zero(Role::Grad);
        s.store.zero(Role::Tally);
        let mut losses = Vec::new();
        for part in 0..o.micro_batches {
            let batch = text.batch(o.seed, step, part * self.rows, self.rows, o.seq);
            let outputs = s.run("grad", &self.dims, &self.inputs(&batch, &self.weights))?;
            let part_loss = output(&outputs, "loss");
            if !part_loss.is_finite() {
                return Err(self.not_finite(s, text, o, step, "the loss", part_loss));
            }
            losses.push(part_loss);
        }
        report.micro_losses(&losses);
        if let Some((name, x)) = s.first_not_finite(Role::Grad)? {
            return Err(self.not_finite(s, text, o, step, &format!("the gradient of {name}"), x));
        }
        let max_violation = max_violation(s);
        let lr = learning_rate(o, step);
        let squares = squares(s, &self.dims)?;
        let grad_norm = squares.values().sum::<f64>().sqrt();
        if !grad_norm.is_finite() {
            return Err(self.not_finite(s, text, o, step, "the gradient's norm", grad_norm));
        }
        update(s, &self.dims, o, step, grad_norm)?;
        let loss = losses.iter().sum();
        Ok((Figures { step, loss, grad_norm, lr, max_violation, ..Figures::default() }, losses))
    }
    /// The error for a step that made such a number: the step is done once more, to see where it came from.
    fn not_finite(&self, s: &mut Session, text: &Text, o: &Options, step: u64, what: &str, value: f64) -> ExecError {
        let mut first = "it does not come from one step of the entry".to_string();
        for part in 0..o.micro_batches {
            let batch = text.batch(o.seed, step, part * self.rows, self.rows, o.seq);
            match s.find_not_finite("grad", &self.dims, &self.inputs(&batch, &self.weights)) {
                Ok(None) => continue,
                Ok(Some(found)) => first = found,
                Err(e) => first = format!("where it came from is not known: {e}"),
            }
            break;
        }
        let newest = checkpoint::list(&o.out).first().map(|p| p.display().to_string());
        let checkpoint = newest.unwrap_or("none was made yet".into());
        ExecError::NotFinite { what: what.into(), value, step, first, checkpoint }
    }

    /// Mean validation loss. # Units: nats.
    fn evaluate(&self, s: &mut Session, text: &Text, o: &Options) -> Result<f64, ExecError> {
        let total = self.eval_rounds * self.eval_rows;
        let mut loss = 0.0;
        for i in 0..self.eval_rounds {
            let batch = text.validation(i * self.eval_rows, self.eval_rows, total, o.seq);
            let outputs = s.run("loss", &self.eval_dims, &self.inputs(&batch, &self.eval_weights))?;
            loss += output(&outputs, "loss");
        }
        Ok(loss)
    }
}

fn output(outputs: &[(String, HostTensor)], name: &str) -> f64 {
    outputs.iter().find(|(n, _)| n == name).and_then(|(_, t)| t.to_f64().first().copied()).unwrap_or(f64::NAN)
}

/// The sum of squares of the gradient of each tensor, by its name in a file. Summed in this order they give the norm, wherever layers live.
pub(crate) fn squares(s: &mut Session, dims: &DimEnv) -> Result<BTreeMap<String, f64>, ExecError> {
    let mut out = BTreeMap::new();
    for (name, sums) in s.run("norm", dims, &[])? {
        let (names, _) = library::names::expand(&name, &sums.shape);
        out.extend(names.into_iter().zip(sums.to_f64()));
    }
    Ok(out)
}

/// Whether an entry is the update, or a part of it.
pub(crate) fn is_update(name: &str) -> bool {
    name == "update" || name.starts_with("update.")
}

/// The optimiser's step: the update, or all parts of it that the session has.
pub(crate) fn update(s: &mut Session, dims: &DimEnv, o: &Options, step: u64, grad_norm: f64) -> Result<(), ExecError> {
    let (rate, t, clip, norm) = (scalar(learning_rate(o, step)), scalar(step as f64), scalar(o.clip), scalar(grad_norm));
    let given = [("lr", &rate), ("step", &t), ("clip", &clip), ("grad_norm", &norm)];
    let parts: Vec<String> = s.manifest.entries.iter().map(|e| e.name.clone()).filter(|n| is_update(n)).collect();
    for part in parts {
        // A part takes what it reads.
        let entry = s.entry(&part)?;
        let own: Vec<_> =
            given.into_iter().filter(|(n, _)| entry.args.iter().any(|p| p.name == *n && !p.role.is_stored())).collect();
        s.run(&part, dims, &own)?;
    }
    Ok(())
}

/// max load / mean load − 1, mean over layers. # Source: Wang et al., arXiv 2408.15664, MaxVio.
fn max_violation(s: &mut Session) -> Option<f64> {
    mean(&violations(s))
}

/// The mean of what is a number.
pub(crate) fn mean(values: &[f64]) -> Option<f64> {
    let known: Vec<f64> = values.iter().copied().filter(|x| x.is_finite()).collect();
    (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
}

/// Whether a tally counts what experts are given.
pub(crate) fn is_load(name: &str) -> bool {
    name.rsplit('.').next().is_some_and(|n| n.contains("load"))
}

/// max load / mean load − 1 of each layer with a load; NaN if that is none.
pub(crate) fn violations(s: &mut Session) -> Vec<f64> {
    let mut values = Vec::new();
    for (_, slot) in s.store.of_role(Role::Tally).filter(|(n, _)| is_load(n)) {
        let data = tensor::read(slot.dtype, slot.memory.bytes());
        let experts = slot.shape.last().copied().unwrap_or(1).max(1) as usize;
        for layer in data.chunks(experts) {
            let mean = layer.iter().sum::<f64>() / experts as f64;
            values.push(if mean > 0.0 { layer.iter().copied().fold(0.0, f64::max) / mean - 1.0 } else { f64::NAN });
        }
    }
    values
}

#[cfg(test)]
mod tests;
