//! The tuning table: a device's rates, measured times by shape bucket, and tilings that were found to be the fastest. Two are shipped, in
//! `tuning/*.txt`; `lode tune` writes one beside a model, `<stem>.tune.lock`.
//!
//! Text, a fact a line, sorted, so that two can be compared:
//!
//! ```text
//! lode-tuning 1
//! target host
//! device "a name"
//! program "strata" 9c1e…        what a lock is of: the model's name and the hash of its graph before it is optimised
//! dims B=8 T=256                the run-time dims it was measured for
//! rate launch 1500              ns a step; memory: bytes a ns; map: operations a ns; processors: blocks at a time; tile: extents of a block
//! rate product f32 80           operations a ns
//! time product f32 1x2048x256x256 120000     ns of a step of this class, dtype and bucket: extents that are powers of two
//! tiling "attend f32 …" queries=16,keys=64
//! ```

mod text;

use base::{DType, DimEnv};
use library::{Class, Job};
use miette::Diagnostic;
use std::{collections::BTreeMap, sync::OnceLock};
use thiserror::Error;

/// The host's shipped table: its name and text.
pub const HOST: (&str, &str) = ("host", include_str!("../tuning/host.txt"));
/// The shipped table of Hopper GPUs.
pub const SM_90A: (&str, &str) = ("sm_90a", include_str!("../tuning/sm_90a.txt"));

/// The version of the text that is read and written.
pub const VERSION: u32 = 1;

/// What is known of a device, and what was chosen for it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tuning {
    /// What is compiled for: `host` or `sm_90a`.
    pub target: String,
    /// The device it was measured on.
    pub device: String,
    /// Of a lock: the model's name and the hash of its graph.
    pub program: Option<(String, u64)>,
    /// Of a lock: the run-time dims it was measured for.
    pub dims: DimEnv,
    /// Starting a step. # Units: nanoseconds.
    pub launch_ns: f64,
    /// Memory traffic. # Units: bytes a nanosecond.
    pub bytes_per_ns: f64,
    /// Elementwise arithmetic in vector loops. # Units: operations a nanosecond.
    pub map_ops_per_ns: f64,
    /// Blocks that run at a time.
    pub processors: f64,
    /// Rows and columns of a block of a product; rows of one of attention.
    pub tile: [i64; 2],
    /// Products by dtype. # Units: floating-point operations a nanosecond.
    pub products: BTreeMap<DType, f64>,
    /// Measured times by bucket. # Units: nanoseconds.
    pub times: BTreeMap<Job, u64>,
    /// The chosen tiling of each problem.
    pub tilings: BTreeMap<String, String>,
}

/// A tuning table cannot be used.
#[derive(Debug, Error, Diagnostic)]
#[allow(missing_docs)]
pub enum TuningError {
    #[error("{path}:{line}: {why}")]
    #[diagnostic(code(E0511), help("`lode tune` writes it anew"))]
    Damaged { path: String, line: usize, why: String },
    #[error("{path} is written in version {found} of the format, this program reads {known}")]
    #[diagnostic(code(E0512), help("`lode tune` writes it anew"))]
    Version { path: String, found: u32, known: u32 },
    #[error("{path} is for {found}, the target is {wanted}")]
    #[diagnostic(code(E0513), help("tune on a device of that target, or remove the file"))]
    Foreign { path: String, found: String, wanted: String },
    #[error("{path} is of another program or config: {found}, not {wanted}")]
    #[diagnostic(code(E0514), help("{command}"))]
    Outdated { path: String, found: String, wanted: String, command: String },
    #[error("{path} lacks {}", list(missing))]
    #[diagnostic(code(E0515), help("{command}"))]
    Missing { path: String, missing: Vec<String>, command: String },
    #[error("{path}: {why}")]
    #[diagnostic(code(E0516), help("{command}"))]
    Unreadable { path: String, why: String, command: String },
}

/// The first few, and how many more.
fn list(missing: &[String]) -> String {
    let first = missing.iter().take(5).cloned().collect::<Vec<_>>().join("; ");
    if missing.len() > 5 { format!("{first}; and {} more", missing.len() - 5) } else { first }
}

impl Tuning {
    /// A shipped table, [`HOST`] or [`SM_90A`].
    pub fn shipped((name, text): (&'static str, &'static str)) -> &'static Tuning {
        static HOST_TABLE: OnceLock<Tuning> = OnceLock::new();
        static GPU_TABLE: OnceLock<Tuning> = OnceLock::new();
        let parse = || Tuning::parse(text, name).unwrap_or_else(|e| base::bug!("{e}"));
        if name == HOST.0 { HOST_TABLE.get_or_init(parse) } else { GPU_TABLE.get_or_init(parse) }
    }
    /// The shipped table of a target.
    pub fn of_target(gpu: bool) -> &'static Tuning {
        Tuning::shipped(if gpu { SM_90A } else { HOST })
    }
    /// The rate of products of a dtype; of one that is not in the table, that of f32.
    pub fn product_rate(&self, dtype: DType) -> f64 {
        *self.products.get(&dtype).or(self.products.get(&DType::F32)).unwrap_or(&self.map_ops_per_ns)
    }
    /// This table with a lock's times and tilings in place of its own.
    pub fn with(&self, lock: &Tuning) -> Tuning {
        let mut all = self.clone();
        all.times.extend(lock.times.iter().map(|(k, v)| (k.clone(), *v)));
        all.tilings.extend(lock.tilings.iter().map(|(k, v)| (k.clone(), v.clone())));
        all
    }
    /// Notes what a step took: in its bucket, the time that this gives there. Of several, the last counts.
    pub fn note(&mut self, job: &Job, ns: f64) {
        self.times.insert(bucket(job), self.in_bucket(&[(job, ns)]));
    }
    /// What steps of one bucket say of it: the roofline's time at its extents, times the mean ratio of theirs to the roofline's.
    /// # Units: nanoseconds. # Panics: if there are none.
    pub fn in_bucket(&self, steps: &[(&Job, f64)]) -> u64 {
        let ratio = |(job, ns): &(&Job, f64)| (ns / crate::cost::roofline(self, job)).ln();
        let mean = steps.iter().map(ratio).sum::<f64>() / steps.len() as f64;
        let key = bucket(steps.first().expect("a step").0);
        (crate::cost::roofline(self, &key) * mean.exp()).round().max(1.0) as u64
    }
}

/// The shape bucket: each extent is the nearest power of two, or 0.
pub fn bucket(job: &Job) -> Job {
    let near = |n: &i64| if *n <= 0 { 0 } else { 1i64 << ((*n as f64).log2().round() as u32).min(62) };
    Job { shape: job.shape.iter().map(near).collect(), ..job.clone() }
}

/// A job as tables show it.
pub fn show(job: &Job) -> String {
    let shape: Vec<String> = job.shape.iter().map(i64::to_string).collect();
    format!("{} {} {}", Class::name(job.class), job.dtype, shape.join("x"))
}

#[cfg(test)]
mod tests;
