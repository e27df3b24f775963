//! The command line: what `lode --help` shows. Each flag has an environment variable `LODE_<FLAG>` where that is useful.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// A deep-learning compiler: typed models to fused kernels.
#[derive(Debug, Parser)]
#[command(name = "lode", version, disable_help_subcommand = true)]
pub struct Cli {
    /// How diagnostics are printed on standard error.
    #[arg(long, global = true, value_enum, default_value_t = MessageFormat::Human, env = "LODE_MESSAGE_FORMAT")]
    pub message_format: MessageFormat,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The form of diagnostics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MessageFormat {
    /// With source text and colours on a terminal.
    Human,
    /// One JSON object a line.
    Json,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check types and shapes.
    Check(Model),
    /// Compile to a library, or print any stage.
    Build(Build),
    /// Run passes on graph text.
    Opt(Opt),
    /// Make graph text that shows a mistake small.
    Reduce(Reduce),
    /// Call an entry point once.
    Run(Run),
    /// Measure how fast an entry point runs.
    Bench(Bench),
    /// Record what runs when, for ui.perfetto.dev.
    Trace(Trace),
    /// Draw the graph as written and as it runs, on an HTML page.
    Viz(Viz),
    /// Train a model on a file of text.
    Train(Train),
    /// Run a command as several ranks on this machine.
    Launch(Launch),
    /// Continue a prompt.
    Generate(Generate),
    /// Plan a training step over ranks: print, prove, simulate, draw.
    Schedule(Schedule),
    /// Measure a model's kernels on this machine and keep what was found in a lock.
    Tune(Tune),
    /// Explain an error code, or how a model's kernels came about.
    Explain(Explain),
    /// Format model files.
    Fmt {
        /// The files.
        files: Vec<PathBuf>,
        /// Change nothing; exit with 1 if a file is not formatted.
        #[arg(long)]
        check: bool,
    },
    /// Say what this machine has.
    Doctor,
}

/// Which model, and with what config.
#[derive(Clone, Debug, Args)]
pub struct Model {
    /// The model file, or, to run it, a library that `lode build` wrote (`.lodelib`).
    pub file: PathBuf,
    /// Overrides a config value: `--set layers=2`.
    #[arg(long = "set", value_name = "NAME=VALUE")]
    pub set: Vec<String>,
    /// A JSON object of config values, such as a `config.json`.
    #[arg(long, env = "LODE_CONFIG")]
    pub config: Option<PathBuf>,
    /// Fail unless the model's lock, `<stem>.tune.lock` beside it, has a time and a tiling for every step.
    #[arg(long, env = "LODE_LOCKED")]
    pub locked: bool,
}

/// For which language a library is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Binding {
    /// C, and all that calls C.
    C,
    /// None: the `.lodelib` alone, which `lode` itself takes.
    None,
}

/// `lode build`.
#[derive(Debug, Args)]
pub struct Build {
    #[command(flatten)]
    /// The model.
    pub model: Model,
    /// What to compile for: host or sm_90a.
    #[arg(long, default_value = "host", env = "LODE_TARGET")]
    pub target: String,
    /// Stages to print, in place of a library: tokens ast hir graph tile mlir llvm ptx library plan.
    #[arg(long, value_delimiter = ',', value_name = "STAGE")]
    pub emit: Vec<String>,
    /// The run-time dims of `--emit=plan`: `B=1,T=128`.
    #[arg(long, value_delimiter = ',', value_name = "NAME=NUMBER")]
    pub dims: Vec<String>,
    /// What is written beside the library: `c` is a shared object and a header, `none` nothing. Without the flag it is `c` where there is a
    /// C compiler to link with.
    #[arg(long, value_enum)]
    pub lib: Option<Binding>,
    /// Where files go; `-` prints stages to standard output.
    #[arg(short, long, default_value = ".", env = "LODE_OUT")]
    pub out: PathBuf,
    #[command(flatten)]
    /// With `--ranks`: a library for each stage of the model, and what each costs and needs.
    pub cut: Cut,
    /// With `--ranks`: the stages of the first of so many members that divide the experts; without it as the model's `pipeline` says. 1 is a group of one,
    /// whose rows go nowhere, as `pair_gpu` runs it; 0 divides nothing.
    #[arg(long, value_name = "E", requires = "ranks")]
    pub expert_parallel: Option<usize>,
    /// Take the graph as written: attention by its definition, a kernel for each op.
    #[arg(long)]
    pub no_optimize: bool,
    /// Print how long each stage took.
    #[arg(long)]
    pub timings: bool,
}

/// `lode opt`.
#[derive(Debug, Args)]
pub struct Opt {
    /// Graph or tile text, `-` for standard input; of tile text, plans and schedules there is only verification.
    pub file: PathBuf,
    /// Passes, separated by commas.
    #[arg(short, long, default_value = "")]
    pub passes: String,
    /// Verify after each pass.
    #[arg(long)]
    pub verify_each: bool,
}

/// What a graph is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Way {
    /// Its text, read back.
    Text,
    /// What the optimiser makes of it.
    Optimize,
    /// Its gradient, with differences.
    Grad,
    /// Its tile programs, in their interpreter.
    Tile,
    /// Code for this machine.
    Host,
}

/// `lode reduce`.
#[derive(Debug, Args)]
#[group(id = "question", required = true, multiple = false, args = ["check", "passes", "backend"])]
pub struct Reduce {
    /// Graph text, `-` for standard input.
    pub file: PathBuf,
    /// A shell command that is given the path of a smaller text and ends with 0 if that still shows the mistake.
    #[arg(long, value_name = "COMMAND")]
    pub check: Option<String>,
    /// The mistake is that these passes break the graph or change what it computes.
    #[arg(short, long = "pass", value_name = "PASSES")]
    pub passes: Option<String>,
    /// The mistake is that this differs from the interpreter.
    #[arg(long, value_enum)]
    pub backend: Option<Way>,
    /// Values of run-time dims, 3 if not given: `B=1,T=128`.
    #[arg(long, value_delimiter = ',', value_name = "NAME=NUMBER")]
    pub dims: Vec<String>,
    /// The seed of the arguments.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Where the smaller text goes; standard output if not given.
    #[arg(short, long)]
    pub out: Option<PathBuf>,
}

/// Which way a program is evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// The interpreter, in f64.
    Ref,
    /// Compiled for this machine.
    Host,
    /// Compiled for a GPU.
    Cuda,
}

/// What runs a compiled model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Machine {
    /// This machine's processor.
    Host,
    /// A GPU.
    Cuda,
}

/// Where a model runs.
#[derive(Clone, Debug, Args)]
pub struct On {
    /// What runs it.
    #[arg(long, value_enum, default_value_t = Machine::Host, env = "LODE_BACKEND")]
    pub backend: Machine,
    /// Which GPU; `lode doctor` lists them. Of several processes on a machine each takes the next one, from this one on.
    #[arg(long, default_value_t = 0, env = "LODE_DEVICE")]
    pub device: usize,
}

/// `lode run`.
#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    /// The model.
    pub model: Model,
    /// The entry point.
    #[arg(long, default_value = "forward")]
    pub entry: String,
    /// An input: `tokens=@tokens.npy`.
    #[arg(short, long = "input", value_name = "NAME=@FILE")]
    pub input: Vec<String>,
    /// An expected output: `output=@logits.npy`.
    #[arg(long, value_name = "NAME=@FILE")]
    pub expect: Vec<String>,
    /// The largest difference from what is expected, relative to the largest expected magnitude.
    #[arg(long, default_value_t = 1e-4)]
    pub tolerance: f64,
    /// How to evaluate.
    #[arg(long, value_enum, default_value_t = Backend::Host)]
    pub backend: Backend,
    /// Which GPU; `lode doctor` lists them.
    #[arg(long, default_value_t = 0, env = "LODE_DEVICE")]
    pub device: usize,
    /// Weights in safetensors; without them parameters are initialised from the seed.
    #[arg(long)]
    pub weights: Option<PathBuf>,
    /// The seed of initial parameters.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Where outputs are written as .npy.
    #[arg(short, long)]
    pub out: Option<PathBuf>,
}

/// `lode bench`.
#[derive(Debug, Args)]
pub struct Bench {
    #[command(flatten)]
    /// The model.
    pub model: Model,
    /// The entry point: `forward`, `loss`, `grad`.
    #[arg(long, default_value = "forward")]
    pub entry: String,
    #[command(flatten)]
    /// Where it runs.
    pub on: On,
    /// The run-time dims: `B=1,T=128`.
    #[arg(long, value_delimiter = ',', value_name = "NAME=NUMBER")]
    pub dims: Vec<String>,
    /// How long to go on. # Units: seconds.
    #[arg(long, default_value_t = 5.0)]
    pub seconds: f64,
    /// Threads; by default one a core.
    #[arg(long, env = "LODE_THREADS")]
    pub threads: Option<usize>,
    /// Take the graph as written: attention by its definition, a kernel for each op.
    #[arg(long)]
    pub no_optimize: bool,
    /// Print the time of each kind of step at the end.
    #[arg(long)]
    pub profile: bool,
    /// Record the last run in this file, for ui.perfetto.dev.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
}

/// `lode trace`.
#[derive(Debug, Args)]
pub struct Trace {
    #[command(flatten)]
    /// The model.
    pub model: Model,
    /// The entry point: `forward`, `loss`, `grad`, `update`.
    #[arg(long, default_value = "grad")]
    pub entry: String,
    #[command(flatten)]
    /// Where it runs.
    pub on: On,
    /// The run-time dims: `B=1,T=128`.
    #[arg(long, value_delimiter = ',', value_name = "NAME=NUMBER")]
    pub dims: Vec<String>,
    /// Threads; by default one a core.
    #[arg(long, env = "LODE_THREADS")]
    pub threads: Option<usize>,
    /// The file.
    #[arg(short, long, default_value = "trace.json")]
    pub out: PathBuf,
}

/// `lode tune`.
#[derive(Debug, Args)]
pub struct Tune {
    #[command(flatten)]
    /// The model.
    pub model: Model,
    /// How long to go on: `60s`, `5m`. What was found is kept as it is found.
    #[arg(long, default_value = "60s", env = "LODE_BUDGET")]
    pub budget: String,
    /// The run-time dims to measure for: `B=1,T=128`; by default those of the model's train item.
    #[arg(long, value_delimiter = ',', value_name = "NAME=NUMBER")]
    pub dims: Vec<String>,
    #[command(flatten)]
    /// Where it is measured, and for what.
    pub on: On,
    /// Threads; by default one a core.
    #[arg(long, env = "LODE_THREADS")]
    pub threads: Option<usize>,
    /// Where the lock goes; by default beside the model.
    #[arg(short, long)]
    pub out: Option<PathBuf>,
    /// Add the times, and the rates they show, to this table of a device in place of writing a lock.
    #[arg(long, value_name = "FILE")]
    pub table: Option<PathBuf>,
}

/// `lode explain`.
#[derive(Debug, Args)]
pub struct Explain {
    #[command(flatten)]
    /// An error code such as E0301, or a model.
    pub what: Model,
    /// A kernel, by its symbol or number: where it comes from, which rules made it, what else there was.
    #[arg(long)]
    pub kernel: Option<String>,
    /// In the list of kernels, those too that take next to nothing.
    #[arg(long)]
    pub all: bool,
    /// What to compile for: `host` or `sm_90a`.
    #[arg(long, default_value = "host")]
    pub target: String,
    /// The run-time dims that costs are for: `B=1,T=128`; by default the lock's, else 64 each.
    #[arg(long, value_delimiter = ',', value_name = "NAME=NUMBER")]
    pub dims: Vec<String>,
}

/// `lode viz`.
#[derive(Debug, Args)]
pub struct Viz {
    #[command(flatten)]
    /// The model.
    pub model: Model,
    /// The page; by default beside the model.
    #[arg(short, long)]
    pub out: Option<PathBuf>,
}

/// `lode train`.
#[derive(Debug, Args)]
pub struct Train {
    #[command(flatten)]
    /// The model.
    pub model: Model,
    #[command(flatten)]
    /// Where it runs.
    pub on: On,
    /// The text to train on; its last tenth is for validation.
    #[arg(long)]
    pub data: PathBuf,
    /// Optimiser steps.
    #[arg(long)]
    pub steps: Option<u64>,
    /// Sequences in a step.
    #[arg(long)]
    pub batch: Option<usize>,
    /// Tokens in a sequence.
    #[arg(long)]
    pub seq: Option<usize>,
    /// Parts a step's batch is computed in.
    #[arg(long)]
    pub micro_batches: Option<usize>,
    /// Peak learning rate.
    #[arg(long)]
    pub lr: Option<f64>,
    /// Seed of parameters and data order.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Where checkpoints and metrics go.
    #[arg(short, long, default_value = "build/run")]
    pub out: PathBuf,
    /// Steps between checkpoints.
    #[arg(long, default_value_t = 100)]
    pub save_every: u64,
    /// Steps between validations.
    #[arg(long)]
    pub eval_every: Option<u64>,
    /// Continue from the last checkpoint in the output folder.
    #[arg(long)]
    pub resume: bool,
    /// Stop if the plan needs more than this. # Units: MiB.
    #[arg(long)]
    pub memory_limit: Option<u64>,
    /// Threads; by default one a core.
    #[arg(long, env = "LODE_THREADS")]
    pub threads: Option<usize>,
    /// Characters of text to generate at the end.
    #[arg(long, default_value_t = 400)]
    pub sample: usize,
    /// Take the graph as written: attention by its definition, a kernel for each op.
    #[arg(long)]
    pub no_optimize: bool,
    /// Print the time of each kind of step at the end.
    #[arg(long)]
    pub profile: bool,
    /// Record every step in this file, for ui.perfetto.dev: for runs of few steps.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    #[command(flatten)]
    /// Over several ranks.
    pub ranks: Ranks,
}

/// How the ranks of one process run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// At once, a thread each.
    Threads,
    /// One after the other, always in one order.
    Replay,
}

/// What carries messages between processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Carrier {
    /// Connections of our own.
    Tcp,
    /// MPI, in a `lode` that was built with it.
    Mpi,
    /// NCCL from GPU to GPU, a GPU for each process; what is small goes over connections of our own.
    Nccl,
}

/// A model in stages. What is not given is what the model's `pipeline` says.
#[derive(Debug, Args)]
pub struct Cut {
    /// Ranks of a pipeline: the model is cut into stages. Under `lode launch`, `mpirun`, `srun` or `torchrun` a process is a rank, and this
    /// follows from their number; otherwise all ranks are of this process.
    #[arg(long, env = "LODE_RANKS")]
    pub ranks: Option<usize>,
    /// The order of computing: 1f1b (if nothing says another) interleaved zb1p zbv dualpipe dualpipev.
    #[arg(long, env = "LODE_SCHEDULE")]
    pub schedule: Option<String>,
    /// Stages a rank, for `interleaved`; 2 if nothing says another number.
    #[arg(long)]
    pub chunks: Option<usize>,
    /// Which stage has which layers: `Et|tt|tL`, E what comes before them, L what comes after. Without it, even by cost.
    #[arg(long)]
    pub layout: Option<String>,
}

/// Training over ranks.
#[derive(Debug, Args)]
pub struct Ranks {
    #[command(flatten)]
    /// Its stages.
    pub cut: Cut,
    /// Pipelines side by side, each with its part of the batch; without it what the model's `pipeline` says, or one.
    #[arg(long, env = "LODE_REPLICAS")]
    pub replicas: Option<usize>,
    /// Replicas that divide the experts of each layer: every one has its share, and rows go to the replica that has their expert. Divides the
    /// number of replicas, which it is by default, and that of experts. Without it what the model's `pipeline` says, or 1.
    #[arg(long, value_name = "E", env = "LODE_EXPERT_PARALLEL")]
    pub expert_parallel: Option<usize>,
    /// Let every copy of a stage keep all of its optimiser. By default copies (mirrors, replicas) share it (ZeRO-1): the same bits, less memory.
    #[arg(long, env = "LODE_WHOLE_UPDATES")]
    pub whole_updates: bool,
    /// How the ranks of one process run.
    #[arg(long, value_enum, default_value_t = Engine::Threads, env = "LODE_ENGINE")]
    pub engine: Engine,
    /// What carries messages between processes.
    #[arg(long, value_enum, default_value_t = Carrier::Tcp, env = "LODE_FABRIC")]
    pub fabric: Carrier,
    /// How long a rank waits for another's message. # Units: seconds.
    #[arg(long, default_value_t = 120.0, env = "LODE_TIMEOUT")]
    pub timeout: f64,
    /// Send with every message what it is, and check that.
    #[arg(long, env = "LODE_CHECK_MESSAGES")]
    pub check_messages: bool,
    /// Send experts' rows as if every N ranks shared a machine; without it ranks tell each other where they are. The bits are the same.
    #[arg(long, value_name = "N", env = "LODE_RANKS_PER_NODE")]
    pub ranks_per_node: Option<usize>,
    /// This process's rank, where no launcher says it.
    #[arg(long)]
    pub rank: Option<usize>,
    /// How many processes there are.
    #[arg(long)]
    pub world_size: Option<usize>,
    /// This process's number on its machine.
    #[arg(long)]
    pub local_rank: Option<usize>,
    /// Where rank 0 listens: `host:port`.
    #[arg(long)]
    pub rendezvous: Option<String>,
}

/// `lode launch`.
#[derive(Debug, Args)]
pub struct Launch {
    /// How many processes.
    #[arg(short)]
    pub n: usize,
    /// How often all are started again after one failed; training then goes on from the last checkpoint.
    #[arg(long, default_value_t = 0)]
    pub restarts: usize,
    /// After one failed, how long the others have to end by themselves. # Units: seconds.
    #[arg(long, default_value_t = 5.0)]
    pub grace: f64,
    /// The command, such as `lode train …`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    pub command: Vec<String>,
}

/// `lode generate`.
#[derive(Debug, Args)]
pub struct Generate {
    #[command(flatten)]
    /// The model.
    pub model: Model,
    #[command(flatten)]
    /// Where it runs.
    pub on: On,
    /// A checkpoint or safetensors file.
    #[arg(long)]
    pub weights: Option<PathBuf>,
    /// The text to continue (bytes are tokens).
    #[arg(long, default_value = "\n")]
    pub prompt: String,
    /// Token numbers to continue, in place of a text: `1,2,3`.
    #[arg(long, value_delimiter = ',')]
    pub tokens: Vec<i32>,
    /// How many tokens to make.
    #[arg(short = 'n', long, default_value_t = 256)]
    pub length: usize,
    /// 0 takes the likeliest.
    #[arg(long, default_value_t = 0.8)]
    pub temperature: f64,
    /// Only the k likeliest.
    #[arg(long)]
    pub top_k: Option<usize>,
    /// Only the likeliest that make up this share.
    #[arg(long)]
    pub top_p: Option<f64>,
    /// Most tokens the model sees at once.
    #[arg(long, default_value_t = 512)]
    pub context: usize,
    /// The seed.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// `lode schedule`.
#[derive(Debug, Args)]
pub struct Schedule {
    /// 1f1b, interleaved, zb1p, zbv, dualpipe, dualpipev.
    #[arg(long, default_value = "dualpipe")]
    pub policy: String,
    /// Ranks of a pipeline; 8, or 16 with --cluster.
    #[arg(long)]
    pub ranks: Option<usize>,
    /// Micro-batches of a step, both directions together; by default two for each rank, or the published batch with --cluster.
    #[arg(long)]
    pub micro: Option<usize>,
    /// Stages on each rank, of interleaved.
    #[arg(long, default_value_t = 2)]
    pub chunks: usize,
    /// Pipelines side by side, as data parallelism has them.
    #[arg(long, default_value_t = 1)]
    pub copies: usize,
    /// Print the whole plan, with messages, waits, sums and updates: what `lode opt` verifies.
    #[arg(long)]
    pub whole: bool,
    /// Print the lines without the header, as torch.distributed.pipelining reads them.
    #[arg(long, conflicts_with = "whole")]
    pub rows: bool,
    /// Print where the time goes, for these costs: a JSON file, or `unit` (every part 1), `overlap` (a pair 2.4), `deepseek-v3`.
    #[arg(long, value_name = "COSTS")]
    pub simulate: Option<String>,
    /// Draw a timeline; `-` prints it.
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Write a trace for Perfetto or Chrome; `-` prints it.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Print all policies side by side.
    #[arg(long)]
    pub compare: bool,
    /// Print counts, the formula of the bubble against the simulator, and memory by cause.
    #[arg(long)]
    pub explain: bool,
    /// Compute forwards again before their backwards, and keep only inputs until then.
    #[arg(long)]
    pub recompute: bool,
    /// Fail if a rank of the simulated plan needs more. # Units: MiB.
    #[arg(long, requires = "simulate")]
    pub memory_limit: Option<u64>,
    /// Print the inside of an overlapped pair of stages with so many layers: its launches on two streams, with the times of DeepSeek's trace.
    #[arg(long, value_name = "LAYERS")]
    pub pair: Option<usize>,
    /// Plan DeepSeek-V3's layers on a cluster, for every routing: `4096xH100`, `2048xH800`.
    #[arg(long, value_name = "COUNTxGPU")]
    pub cluster: Option<String>,
    /// GPUs that share a layer's experts, with --cluster or the costs `deepseek-v3`.
    #[arg(long, default_value_t = 64)]
    pub expert_ranks: usize,
}
