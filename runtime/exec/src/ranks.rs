//! Training over ranks: each has some stages of a model, and a plan says who computes what when. On any number of ranks and with any
//! schedule a step gives what a single process gives: the same bits where each stage lives once; with copies of stages (DualPipe's mirrors,
//! data parallelism) the same losses of the same parameters, and gradients that differ by the order of one sum.
//!
//! What is summed, and in which order: a stage's gradients over its micro-batches, by their number, in place; over the copies of a stage, by
//! direction; a parameter of several stages (a tied table), by stage; the squares of the gradient's norm, in double precision by name of
//! tensor; losses, by micro-batch, where those of direction d come after those of d − 1.

mod direct;
mod execute;
mod experts;
mod measured;
mod model;
mod pairs;
mod relay;
mod room;
mod save;
mod shards;
mod step;
mod sums;

pub use execute::{Compute, Follow, Turns, execute};
pub use experts::Traffic;
pub use measured::{Measured, Part, RankMemory, StageTimes};
pub use model::{StageBytes, StageMemory, memory, stage_bytes};

use crate::{ExecError, data::Text, train};
use device::KernelFn;
use fabric::{Direct, Fabric, Timeouts, threads};
use library::{Manifest, Port};
use schedule::{Action, Plan};
use std::{collections::BTreeSet, path::Path, sync::Arc};

/// A stage's program: its manifest with the entries `forward`, `backward_input`, `backward_weight`, `norm` and
/// the update in parts, `update.0` and on.
#[derive(Clone)]
pub struct Program {
    /// Parameters, kernels, entries.
    pub manifest: Manifest,
    /// All stages of a rank share it.
    pub code: Code,
}

/// What runs a program's kernels.
#[derive(Clone)]
pub enum Code {
    /// The host.
    Host(Arc<dyn device::Code>),
    /// A GPU, by the code of a library.
    Gpu(Arc<Vec<Vec<u8>>>),
}

/// Where programs for a GPU run.
#[derive(Clone, Copy, Debug, Default)]
pub struct OnGpu<'a> {
    /// The number of the GPU of this process's ranks.
    pub ordinal: usize,
    /// Assembles the code in the driver's place.
    pub ptxas: Option<&'a Path>,
}

/// Code that stages share.
struct Shared(Arc<dyn device::Code>);

impl device::Code for Shared {
    fn kernel(&self, symbol: &str) -> Option<KernelFn> {
        self.0.kernel(symbol)
    }
}

/// Which ranks share a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nodes {
    /// This rank's has this number, which no other machine has; the others say theirs.
    Machine(u64),
    /// Every so many ranks share one, as if they were on several.
    Each(usize),
}

impl Nodes {
    /// The number of the machine that a rank is on.
    fn of(self, rank: usize) -> u64 {
        match self {
            Nodes::Machine(number) => number,
            Nodes::Each(n) => (rank / n.max(1)) as u64,
        }
    }
}

/// A training run over ranks.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// Who computes what; its stages are the programs.
    pub plan: &'a Plan,
    /// By share of the experts, then by stage: one share unless ranks divide experts. Entries are the same; parameters that are divided have the
    /// names of the share's experts.
    pub programs: &'a [Vec<Program>],
    /// Pipelines side by side; each as many as there are shares divide the experts.
    pub replicas: usize,
    /// The model as a whole: its name, run-time dims and parameters.
    pub whole: &'a Manifest,
    /// Who shares a machine.
    pub nodes: Nodes,
    /// What the model is fed: tokens, what follows them, and a weight for each.
    pub inputs: &'a [Port],
    /// The text.
    pub text: &'a Text,
    /// `micro_batches` are those of the plan, all directions together.
    pub options: &'a train::Options,
    /// Threads that a rank computes on, on the host.
    pub threads: usize,
    /// Where programs for a GPU run.
    pub gpu: OnGpu<'a>,
    /// Whether every message says what it is, and that is checked.
    pub checked: bool,
    /// Whether a stage's copies share its optimiser (ZeRO-1): the same bits, less memory.
    pub sharded: bool,
}

impl Job<'_> {
    /// From which rank to which messages of the plan go: all of them, the same on every rank.
    pub fn flows(&self) -> Vec<(usize, usize)> {
        let sent = self.plan.actions.iter().flatten();
        let routes = sent.filter_map(|a| if let Action::Send(m) = a { self.plan.route(*m) } else { None });
        routes.collect::<BTreeSet<_>>().into_iter().collect()
    }
    /// The sets of ranks that share a stage, experts, or a tied parameter, or that divide experts: all of them, the same on every rank. A
    /// rank's number in a set is its place there.
    pub fn sets(&self) -> Vec<Vec<usize>> {
        let mut sets = BTreeSet::new();
        for (rank, stages) in self.plan.placement.stages_by_rank().iter().enumerate() {
            sets.insert(self.group(rank));
            for stage in stages {
                sets.extend(shards::Held::new(self, *stage, rank).shards.into_iter().map(|s| s.members));
            }
        }
        sets.extend(step::tied(self).into_iter().map(|t| t.members));
        sets.into_iter().filter(|s| s.len() > 1).collect()
    }
    /// A hash of all that ranks have to agree on: plan, parameters, run, and the given word for binary and model.
    pub fn hash(&self, binary: u64) -> u64 {
        let o = self.options;
        let run = (o.batch, o.seq, o.steps, o.warmup, o.lr.to_bits(), o.floor.to_bits(), o.clip.to_bits(), o.seed);
        let often = (o.eval_every, o.eval_rows, o.save_every, o.resume, self.checked, self.sharded, self.text.checksum);
        let params: Vec<_> = self.programs.iter().flatten().map(|p| &p.manifest.params).collect();
        let text = format!("{binary} {} {params:?} {run:?} {often:?}", schedule::text::print(self.plan));
        library::file::checksum(text.as_bytes())
    }
}

/// How ranks of one process run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// At once, a thread each.
    Threads,
    /// One after the other, always in one order.
    Replay,
}

/// Trains with all ranks in this process; the last validation loss.
///
/// # Errors
/// The first cause: what a rank says that did not fail because of another.
pub fn train_here(
    job: &Job,
    engine: Engine,
    timeouts: Timeouts,
    report: &mut (dyn train::Report + Send),
) -> Result<f64, ExecError> {
    let turns = (engine == Engine::Replay).then(|| Turns::new(job.plan, &|rank| job.group(rank)));
    let mut world = threads::world(job.plan.num_ranks(), timeouts).into_iter();
    let first = world.next().expect("a plan has a rank");
    let mut results = std::thread::scope(|s| {
        let turns = turns.as_ref();
        let others: Vec<_> = world.map(|f| s.spawn(move || step::train(job, &f, None, turns, &mut Silent))).collect();
        let mut results = vec![step::train(job, &first, None, turns, report)];
        drop(first);
        results.extend(others.into_iter().map(|t| t.join().unwrap_or_else(|e| std::panic::resume_unwind(e))));
        results
    });
    let follows =
        |e: &ExecError| matches!(e.fabric(), Some(fabric::FabricError::Aborted { .. } | fabric::FabricError::Lost { .. }));
    let cause = results.iter().position(|r| r.as_ref().is_err_and(|e| !follows(e)));
    let any = results.iter().position(Result::is_err);
    results.swap_remove(cause.or(any).unwrap_or(0))
}

/// Trains as one rank of several processes; the last validation loss. Activations, gradients, rows of experts and parameters go by `direct` if there is one,
/// with flows and sets as [`Job::flows`] and [`Job::sets`] say, else over the host by the fabric; what is small goes by the fabric.
///
/// # Errors
/// What went wrong here, or which rank gave up, and why.
pub fn train_rank(
    job: &Job,
    fabric: &dyn Fabric,
    direct: Option<&dyn Direct>,
    report: &mut dyn train::Report,
) -> Result<f64, ExecError> {
    step::train(job, fabric, direct, None, report)
}

/// What ranks above 0 report: nothing.
pub struct Silent;

impl train::Report for Silent {
    fn start(&mut self, _: &crate::plan::Peak, _: u64, _: u64) {}
    fn step(&mut self, _: &train::Figures) {}
    fn warn(&mut self, _: String) {}
}
