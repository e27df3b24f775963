//! `lode train` over ranks: of this process, or this process as one of several.

use super::common::{self, FAILED, LONGEST, USAGE};
use crate::{
    cli::{Carrier, Cut, Engine, Ranks, Train},
    pipeline::{Front, Options},
    stages::{self, Failed, Stages},
};
use device::cuda::nccl::Nccl;
use exec::{
    ExecError,
    data::Text,
    ranks::{self, Job, Nodes, OnGpu},
    train,
};
use fabric::{Fabric, FabricError, Timeouts, World, collective, discover, nccl::Links, tcp, threads};
use hir::Pipeline;
use schedule::{Plan, Policy, Size};
use std::time::Duration;

/// This process among the ranks.
pub struct Process {
    /// Who it is.
    pub world: World,
    #[cfg(feature = "mpi")]
    mpi: Option<fabric::mpi::Mpi>,
}

/// How long waits may take.
fn timeouts(args: &Ranks) -> Result<Timeouts, u8> {
    if !(args.timeout > 0.0 && args.timeout <= LONGEST) {
        eprintln!("--timeout takes seconds, above 0 and at most {LONGEST}");
        return Err(USAGE);
    }
    let message = Duration::from_secs_f64(args.timeout);
    // A message gives up before the start does.
    Ok(Timeouts { message, start: Timeouts::default().start.max(message) })
}

/// Who this process is.
///
/// # Errors
/// E0425, E0426; the exit code.
pub fn process(args: &Ranks) -> Result<Process, u8> {
    #[cfg(feature = "mpi")]
    if args.fabric == Carrier::Mpi {
        let mpi = fabric::mpi::start(timeouts(args)?).map_err(|e| common::fail_with(&e))?;
        return Ok(Process { world: mpi.world(), mpi: Some(mpi) });
    }
    if args.fabric == Carrier::Mpi {
        eprintln!("this lode was built without MPI: cargo build -p driver --features mpi");
        return Err(USAGE);
    }
    let flags = discover::Flags {
        rank: args.rank,
        size: args.world_size,
        local_rank: args.local_rank,
        rendezvous: args.rendezvous.clone(),
    };
    let world = discover(&flags, &|name| std::env::var(name).ok()).map_err(|e| common::fail_with(&e))?;
    Ok(Process {
        world,
        #[cfg(feature = "mpi")]
        mpi: None,
    })
}

/// How a model is cut and run.
pub struct Settled {
    /// Ranks of a pipeline, if something says.
    pub ranks: Option<usize>,
    /// The order of computing.
    pub policy: Policy,
    /// Stages a rank, for `interleaved`.
    pub chunks: usize,
    /// Pipelines side by side.
    pub replicas: usize,
    /// Replicas that divide experts.
    pub experts: usize,
    /// Which stage has which layers.
    pub layout: Option<String>,
}

fn usage(text: String) -> u8 {
    eprintln!("{text}");
    USAGE
}

/// Flags first, then what the model says, then one pipeline of 1F1B.
///
/// # Errors
/// The exit code.
pub fn settle(cut: &Cut, (replicas, experts): (Option<usize>, Option<usize>), declared: &Pipeline) -> Result<Settled, u8> {
    let name = cut.schedule.clone().or(declared.schedule.clone()).unwrap_or_else(|| Policy::OneFOneB.name().into());
    let Some(policy) = Policy::from_name(&name) else {
        let names: Vec<&str> = Policy::ALL.iter().map(|p| p.name()).collect();
        return Err(usage(format!("there is no schedule '{name}'; there are {}", names.join(" "))));
    };
    // A layout is of as many stages as the model says, a flag may change these.
    let declared_layout = if cut.ranks.is_none() && cut.schedule.is_none() { declared.layout.clone() } else { None };
    // One replica has nobody to divide experts with: asked for, it overrides what the model says.
    let declared_experts = declared.expert_parallel.filter(|_| replicas != Some(1));
    let experts = experts.or(declared_experts);
    let replicas = replicas.or(declared.replicas).or(experts).unwrap_or(1).max(1);
    let experts = experts.unwrap_or(1);
    if experts == 0 || !replicas.is_multiple_of(experts) {
        let near = (1..=replicas).rev().find(|e| replicas.is_multiple_of(*e) && *e <= experts).unwrap_or(1);
        let text = format!("--expert-parallel {experts} does not divide {replicas} replicas; the nearest that does is {near}");
        return Err(usage(text));
    }
    Ok(Settled {
        ranks: cut.ranks.or(declared.ranks),
        policy,
        chunks: cut.chunks.or(declared.chunks).unwrap_or(2),
        replicas,
        experts,
        layout: cut.layout.clone().or(declared_layout),
    })
}

/// The plan of a step, and how many micro-batches it has in all.
fn plan(s: &Settled, flag: Option<usize>, world: &World, micro_batches: usize) -> Result<Plan, u8> {
    let copies = s.replicas;
    let here = if world.size > 1 { None } else { s.ranks };
    let ranks = flag.or(here).unwrap_or(if world.size > 1 { world.size / copies } else { 1 });
    if world.size > 1 && ranks * copies != world.size {
        let text = format!("{ranks} ranks × {copies} replicas are not the {} processes that {} says", world.size, world.source);
        return Err(usage(text));
    }
    if !micro_batches.is_multiple_of(copies) {
        return Err(usage(format!("{micro_batches} micro-batches are not shared evenly by {copies} replicas")));
    }
    let size = Size { ranks, micro: micro_batches / copies, chunks: s.chunks };
    let plan = schedule::plan(s.policy, size).map_err(|e| common::fail_with(&e))?;
    Ok(plan.copies(copies))
}

/// Trains over ranks; the last validation loss.
///
/// # Errors
/// The exit code; what was wrong was told.
pub fn train(
    args: &Train,
    process: &Process,
    front: &Front,
    o: &mut train::Options,
    options: &Options,
    report: &mut (dyn train::Report + Send),
) -> Result<f64, u8> {
    let r = &args.ranks;
    let (world, timeouts) = (&process.world, timeouts(r)?);
    let program = front.program.as_ref().expect("checked by `front`");
    let settled = settle(&r.cut, (r.replicas, r.expert_parallel), &program.pipeline)?;
    let plan = plan(&settled, r.cut.ranks, world, o.micro_batches)?;
    o.micro_batches = plan.num_micro * plan.placement.num_dirs();
    let size = (plan.num_stages(), settled.experts);
    let stages = stages::compile(program, &front.sources, settled.layout.as_deref(), size, options);
    let stages = stages.map_err(|e| match e {
        Failed::Cut(e) => common::fail_with(&e),
        Failed::Back(e) => common::back_failed(&e),
    })?;
    let text = Text::read(&args.data, o.seq).map_err(|e| common::fail_with(&e))?;
    let vocab = stages::vocab(program);
    if let Some(vocab) = vocab {
        text.expect_vocab(vocab).map_err(|e| common::fail_with(&e))?;
    }
    // After a restart there may be no checkpoint yet.
    let restarted = std::env::var("LODE_RESTART").is_ok_and(|n| n != "0" && !n.is_empty());
    o.resume |= restarted && !exec::checkpoint::list(&o.out).is_empty();
    let here = if world.size > 1 { 1 } else { plan.num_ranks() };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = args.threads.unwrap_or((cores / here).max(1));
    let ptxas = std::env::var_os("LODE_PTXAS").map(std::path::PathBuf::from);
    let gpu = OnGpu { ordinal: ordinal(args, world)?, ptxas: ptxas.as_deref() };
    let job = Job {
        plan: &plan,
        programs: &stages.programs,
        replicas: settled.replicas,
        nodes: r.ranks_per_node.map_or_else(|| Nodes::Machine(discover::machine()), Nodes::Each),
        whole: &stages.whole,
        inputs: &stages.inputs,
        text: &text,
        options: o,
        threads,
        gpu,
        checked: r.check_messages,
        sharded: !r.whole_updates,
    };
    if world.rank == 0 {
        header(&stages, &job);
    }
    let word = format!("{} {:016x} {:?}", env!("CARGO_PKG_VERSION"), stages.checksum, r.fabric);
    let hash = job.hash(library::file::checksum(word.as_bytes()));
    #[cfg(feature = "mpi")]
    if let Some(mpi) = &process.mpi {
        let result = mpi.agree(hash).map_err(ExecError::from).and_then(|()| ranks::train_rank(&job, mpi, None, report));
        return result.map_err(|e| told(world, &e));
    }
    let result = if r.fabric == Carrier::Nccl {
        if plan.num_ranks() != world.size {
            let n = plan.num_ranks();
            return Err(usage(format!("NCCL takes a process for each rank: `lode launch -n {n}` or the like, for {n} ranks")));
        }
        over_nccl(&job, world, hash, timeouts, report)
    } else if world.size > 1 {
        tcp::connect(world, hash, timeouts).map_err(ExecError::from).and_then(|f| ranks::train_rank(&job, &f, None, report))
    } else {
        let engine = match r.engine {
            Engine::Threads => ranks::Engine::Threads,
            Engine::Replay => ranks::Engine::Replay,
        };
        ranks::train_here(&job, engine, timeouts, report)
    };
    result.map_err(|e| told(world, &e))
}

/// The GPU of this process: those of a machine one after the other, from the one that was named on.
fn ordinal(args: &Train, world: &World) -> Result<usize, u8> {
    if !args.on.is_gpu() {
        return Ok(0);
    }
    let count = device::gpus().map_err(|e| common::fail_with(&e))?.len();
    // One that there is not is refused where it is opened.
    let divides = world.size > 1 && args.on.device < count;
    Ok(if divides { (args.on.device + world.local_rank) % count } else { args.on.device })
}

/// As one rank with a GPU of its own: what is large goes over NCCL, what is small over connections.
fn over_nccl(job: &Job, world: &World, hash: u64, timeouts: Timeouts, report: &mut dyn train::Report) -> Result<f64, ExecError> {
    let store: Box<dyn Fabric> = if world.size > 1 {
        Box::new(tcp::connect(world, hash, timeouts)?)
    } else {
        Box::new(threads::world(1, timeouts).remove(0))
    };
    // NCCL would say this later, and only one of the ranks.
    let own = device::cuda::identity(job.gpu.ordinal)?;
    let all = collective::all_gather(&*store, &own)?;
    if let Some(other) = (0..world.size).find(|r| *r != world.rank && all[*r] == own) {
        let why = format!("rank {other} has the same one; take as many processes as there are GPUs, or --fabric tcp");
        return Err(FabricError::Nccl { rank: world.rank, what: format!("GPU {}", job.gpu.ordinal), number: 0, why }.into());
    }
    let nccl = Nccl::open(job.gpu.ordinal)?;
    let scratch = nccl.upload(&vec![0; 8 * world.size])?;
    // SAFETY: there are two f32 for each rank, which nothing else uses.
    let links = unsafe { Links::connect(nccl, &*store, (&job.flows(), &job.sets()), scratch, timeouts) }?;
    let done = ranks::train_rank(job, &*store, Some(&links), report)?;
    links.finish()?;
    Ok(done)
}

/// Tells what went wrong; what another rank said, it says itself.
fn told(world: &World, e: &ExecError) -> u8 {
    if world.rank > 0 && matches!(e.fabric(), Some(FabricError::Aborted { .. })) { FAILED } else { common::fail_with(e) }
}

/// What runs where, and what it costs.
fn header(stages: &Stages, job: &Job) {
    let (plan, replicas) = (job.plan, job.replicas);
    let shown = |counts: &[usize]| counts.iter().map(usize::to_string).collect::<Vec<_>>().join(" + ");
    eprintln!(
        "{} on {} ranks{}, {} stages of {} layers, {} micro-batches{}",
        plan.policy,
        plan.num_ranks(),
        match (replicas, job.members()) {
            (1, _) => String::new(),
            (_, 1) => format!(" ({replicas} replicas)"),
            (_, members) => format!(" ({replicas} replicas, {members} of them divide the experts)"),
        },
        plan.num_stages(),
        shown(&stages.layout.0),
        plan.num_micro * plan.placement.num_dirs(),
        if plan.placement.num_dirs() > replicas { ", half of them each way" } else { "" },
    );
    let total: f64 = stages.costs.iter().flatten().sum();
    for (stage, (program, [forward, backward])) in stages.programs[0].iter().zip(&stages.costs).enumerate() {
        let params: i64 = program.manifest.params.iter().map(|p| p.shape.iter().product::<i64>()).sum();
        let share = |x: f64| 100.0 * x / total;
        let holders = plan.placement.holders(stage as u16);
        eprintln!(
            "stage {stage:<3} ranks {:<8} {params:>12} parameters  cost {:>4.1} % forward {:>4.1} % backward",
            holders.iter().map(usize::to_string).collect::<Vec<_>>().join(","),
            share(*forward),
            share(*backward),
        );
    }
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    for (rank, stages) in plan.placement.stages_by_rank().iter().enumerate() {
        // What does not fit the model is told when the run starts.
        let Ok(parts) = stages.iter().map(|s| exec::ranks::memory(job, *s, rank)).collect::<Result<Vec<_>, _>>() else { return };
        let activations: Vec<String> = parts.iter().map(|m| format!("{} × {:.2}", m.units, mib(m.kept))).collect();
        eprintln!(
            "rank {rank:<4} {:.2} MiB, {:.2} of them moments, and {} MiB of activations",
            mib(parts.iter().map(|m| m.stored).sum()),
            mib(parts.iter().map(|m| m.moments).sum()),
            activations.join(" + "),
        );
    }
}
