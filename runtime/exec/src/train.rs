//! Training: gradients of each micro-batch are added up, then one update. Everything a step does depends on the seed, the step and
//! the parameters alone, so a run that was resumed is bit-equal to one that never stopped.

use crate::{
    ExecError, HostTensor, Session, checkpoint,
    data::{Batch, Text},
    plan::Peak,
};
use base::{DType, DimEnv};
use library::Role;
use std::{io::Write, path::PathBuf, time::Instant};

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
    /// Something worth a line.
    fn warn(&mut self, text: String);
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

/// Trains; the last validation loss.
///
/// # Errors
/// E07xx; checkpoints that were made stay.
pub fn train(s: &mut Session, text: &Text, o: &Options, report: &mut dyn Report) -> Result<f64, ExecError> {
    let rows = o.batch / o.micro_batches.max(1);
    if rows == 0 || rows * o.micro_batches != o.batch {
        let why = format!("{} sequences cannot be split in {} equal parts", o.batch, o.micro_batches);
        return Err(ExecError::Input { name: "micro-batches".into(), why });
    }
    let shape = [rows as i64, o.seq as i64];
    let eval_rows = o.eval_rows.min(o.batch).max(1);
    let grad_dims = s.bind("grad", &[("tokens", &shape), ("targets", &shape)])?;
    let loss_dims = s.bind("loss", &[("tokens", &[eval_rows as i64, o.seq as i64])])?;
    let peak = s.peak(&[("grad", &grad_dims), ("loss", &loss_dims), ("update", &grad_dims)])?;
    s.admit(&peak, o.memory_limit)?;
    let identity = identity(s, text, o);
    s.store.initialise(&s.manifest, o.seed)?;
    let manifest = s.manifest.clone();
    let first = match o.resume {
        true => checkpoint::resume(&mut s.store, &manifest, &o.out, &identity, &mut |w| report.warn(w))?,
        false => 0,
    };
    report.start(&peak, first, o.steps);
    std::fs::create_dir_all(&o.out).map_err(|e| ExecError::io(&o.out, &e))?;
    let metrics_path = o.out.join("metrics.jsonl");
    let mut metrics = std::fs::OpenOptions::new()
        .create(true)
        .write(true)
        .append(first > 0)
        .truncate(first == 0)
        .open(&metrics_path)
        .map_err(|e| ExecError::io(&metrics_path, &e))?;
    let started = Instant::now();
    let mut val_loss = f64::NAN;
    for step in first + 1..=o.steps {
        let mut figures = self::step(s, text, o, step, rows, &grad_dims)?;
        figures.peak_bytes = peak.total();
        figures.tokens_per_s = ((step - first) * (o.batch * o.seq) as u64) as f64 / started.elapsed().as_secs_f64();
        if step == o.steps || (o.eval_every > 0 && step % o.eval_every == 0) {
            val_loss = evaluate(s, text, o, eval_rows, &loss_dims)?;
            figures.val_loss = Some(val_loss);
        }
        if step == o.steps || (o.save_every > 0 && step % o.save_every == 0) {
            checkpoint::save(&mut s.store, &manifest, &o.out, step, &identity)?;
            checkpoint::prune(&o.out, o.keep.max(1));
        }
        let line = serde_json::json!({
            "step": figures.step, "loss": figures.loss, "lr": figures.lr, "grad_norm": figures.grad_norm,
            "tokens_per_s": figures.tokens_per_s, "max_vio": figures.max_violation, "val_loss": figures.val_loss,
            "peak_bytes": figures.peak_bytes,
        });
        writeln!(metrics, "{line}").map_err(|e| ExecError::io(&metrics_path, &e))?;
        report.step(&figures);
    }
    if first >= o.steps {
        val_loss = evaluate(s, text, o, eval_rows, &loss_dims)?;
    }
    Ok(val_loss)
}

/// What a checkpoint has to share with the run that goes on from it.
fn identity(s: &Session, text: &Text, o: &Options) -> String {
    let params: Vec<String> = s.manifest.params.iter().map(|p| format!("{}{:?}", p.name, p.shape)).collect();
    let all = format!(
        "{} {params:?} {} {} {} {} {:?}",
        s.manifest.name,
        o.batch,
        o.seq,
        o.seed,
        text.checksum,
        (o.steps, o.warmup, o.lr, o.floor)
    );
    format!("{:016x}", library::file::checksum(all.as_bytes()))
}

fn step(s: &mut Session, text: &Text, o: &Options, step: u64, rows: usize, dims: &DimEnv) -> Result<Figures, ExecError> {
    s.store.zero(Role::Grad);
    s.store.zero(Role::Tally);
    let share = 1.0 / (o.batch * o.seq) as f64;
    let weights = HostTensor::from_f64(DType::F32, &[rows as i64, o.seq as i64], vec![share; rows * o.seq]);
    let mut loss = 0.0;
    for part in 0..o.micro_batches {
        let Batch { tokens, targets } = text.batch(o.seed, step, part * rows, rows, o.seq);
        let inputs = [("tokens", &tokens), ("targets", &targets), ("weights", &weights)];
        let outputs = s.run("grad", dims, &inputs)?;
        let part_loss = output(&outputs, "loss");
        if !part_loss.is_finite() {
            let first = s.find_not_finite("grad", dims, &inputs)?;
            let first = first.map_or("no step's result was the first".into(), |k| format!("{k} made the first such number"));
            let checkpoint = checkpoint::list(&o.out).first().map_or("none was made yet".into(), |p| p.display().to_string());
            return Err(ExecError::NotFinite { loss: part_loss, step, first, checkpoint });
        }
        loss += part_loss;
    }
    let max_violation = max_violation(s);
    let lr = learning_rate(o, step);
    let (rate, t, clip) = (scalar(lr), scalar(step as f64), scalar(o.clip));
    let outputs = s.run("update", dims, &[("lr", &rate), ("step", &t), ("clip", &clip)])?;
    let grad_norm = output(&outputs, "grad_norm");
    if !grad_norm.is_finite() {
        let checkpoint = checkpoint::list(&o.out).first().map_or("none was made yet".into(), |p| p.display().to_string());
        return Err(ExecError::NotFinite { loss, step, first: format!("the gradient's norm is {grad_norm}"), checkpoint });
    }
    Ok(Figures { step, loss, grad_norm, lr, max_violation, ..Figures::default() })
}

fn output(outputs: &[(String, HostTensor)], name: &str) -> f64 {
    outputs.iter().find(|(n, _)| n == name).and_then(|(_, t)| t.to_f64().first().copied()).unwrap_or(f64::NAN)
}

/// max load / mean load − 1, mean over layers. # Source: Wang et al., arXiv 2408.15664, MaxVio.
fn max_violation(s: &mut Session) -> Option<f64> {
    let mut values = Vec::new();
    for (_, slot) in s.store.of_role(Role::Tally).filter(|(n, _)| n.rsplit('.').next() == Some("load")) {
        let data = crate::tensor::read(slot.dtype, slot.memory.bytes());
        let experts = slot.shape.last().copied().unwrap_or(1).max(1) as usize;
        for layer in data.chunks(experts) {
            let mean = layer.iter().sum::<f64>() / experts as f64;
            if mean > 0.0 {
                values.push(layer.iter().copied().fold(0.0, f64::max) / mean - 1.0);
            }
        }
    }
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Mean validation loss. # Units: nats.
fn evaluate(s: &mut Session, text: &Text, o: &Options, rows: usize, dims: &DimEnv) -> Result<f64, ExecError> {
    let rounds = o.eval_rows.div_ceil(rows).max(1);
    let total = rounds * rows;
    let share = 1.0 / (total * o.seq) as f64;
    let weights = HostTensor::from_f64(DType::F32, &[rows as i64, o.seq as i64], vec![share; rows * o.seq]);
    let mut loss = 0.0;
    for i in 0..rounds {
        let Batch { tokens, targets } = text.validation(i * rows, rows, total, o.seq);
        let outputs = s.run("loss", dims, &[("tokens", &tokens), ("targets", &targets), ("weights", &weights)])?;
        loss += output(&outputs, "loss");
    }
    Ok(loss)
}
