//! `lode schedule`: plans of a training step over ranks. Without other flags it prints the order of computing; every plan is proved before
//! anything is said of it.

use super::common::{FAILED, USAGE, fail_with};
use crate::{cli::Schedule, put};
use schedule::{
    Costs, Limits, Plan, Policy, Simulated, Size,
    cluster::{Cluster, Routing},
    draw,
    pair::PairCosts,
    passes, report,
    simulate::{self, simulate},
    text,
};
use std::path::Path;

/// Runs the command.
pub fn run(args: &Schedule) -> u8 {
    answer(args).unwrap_or_else(|code| code)
}

fn answer(args: &Schedule) -> Result<u8, u8> {
    let Some(policy) = Policy::from_name(&args.policy) else {
        let names = Policy::ALL.map(Policy::name).join(", ");
        return Err(usage(&format!("no policy '{}'; there are {names}", args.policy)));
    };
    if args.copies == 0 || args.chunks == 0 || args.expert_ranks == 0 {
        return Err(usage("--copies, --chunks and --expert-ranks are at least 1"));
    }
    let ranks = args.ranks.unwrap_or(if args.cluster.is_some() { 16 } else { 8 });
    let cluster = args.cluster.as_ref().map(|text| cluster(text, ranks, args.expert_ranks)).transpose()?;
    let micro = args.micro.unwrap_or(cluster.map_or(2 * ranks, |c| c.micro()));
    // The published batch is not always even for each pipeline; what is asked for is taken as it is.
    let micro = if args.micro.is_none() && policy == Policy::DualPipe { micro.next_multiple_of(2) } else { micro };
    let size = Size { ranks, micro, chunks: args.chunks };
    let costs = match (&args.simulate, cluster) {
        (Some(name), _) => Some(costs(name, ranks, args.expert_ranks)?),
        (None, Some(cluster)) => Some(cluster.costs(Routing::Limited)),
        (None, None) => None,
    };
    if let Some(layers) = args.pair {
        put!("{}", report::pair(layers, &PairCosts::deepseek_v3()));
        return Ok(0);
    }
    let or_unit = || costs.clone().unwrap_or_else(|| Costs::unit(3.0));
    if args.compare {
        put!("{}", report::compare(size, &or_unit()).map_err(|e| fail_with(&e))?);
    }
    if let Some(cluster) = cluster.filter(|_| !args.compare) {
        put!("{}", report::cluster(&cluster, policy, micro).map_err(|e| fail_with(&e))?);
    }
    let pictures = args.svg.is_some() || args.trace.is_some();
    let says = args.simulate.is_some() || args.explain || pictures;
    if (args.compare || cluster.is_some()) && !says {
        return Ok(0);
    }
    let plan = proved(policy, size, args)?;
    if !says {
        let shown = if args.whole { plan } else { plan.compute_only() };
        put!("{}", if args.rows { text::print_rows(&shown) } else { text::print(&shown) });
        return Ok(0);
    }
    let costs = or_unit();
    let out = simulate(&plan, &costs).map_err(|e| fail_with(&e))?;
    if args.simulate.is_some() {
        put!("{}", report::simulated(&plan, &costs, &out));
    }
    if args.explain {
        put!("{}", report::explain(policy, size, &plan, &costs, &out));
    }
    draw_files(args, &plan, &costs, &out)?;
    if let Some(limit) = args.memory_limit {
        simulate::check_memory(&out, limit).map_err(|e| fail_with(&e))?;
    }
    Ok(0)
}

fn usage(text: &str) -> u8 {
    eprintln!("{text}");
    USAGE
}

/// A whole plan that broke no rule.
fn proved(policy: Policy, size: Size, args: &Schedule) -> Result<Plan, u8> {
    let copies = args.copies;
    let mut plan = policy.generate(size).map_err(|e| fail_with(&e))?;
    if args.recompute {
        passes::insert_recompute(&mut plan);
    }
    passes::lower(&mut plan).map_err(|e| fail_with(&e))?;
    let plan = if copies > 1 { plan.copies(copies) } else { plan };
    let limits = Limits { max_live: Some(policy.max_live(size).repeat(copies)), bytes: None };
    let violations = schedule::verify(&plan, &schedule::assign_slots(&plan), &limits);
    if let Some(first) = violations.first() {
        base::bug!("{} made a plan that is wrong: {first}", policy.name());
    }
    Ok(plan)
}

fn cluster(text: &str, ranks: usize, expert_ranks: usize) -> Result<Cluster, u8> {
    let names = schedule::cluster::GPUS.map(|g| g.name).join(", ");
    let cluster = Cluster::parse(text, ranks, expert_ranks)
        .ok_or_else(|| usage(&format!("--cluster takes a number and a GPU, such as 4096xH100 (of {names}), not '{text}'")))?;
    if ranks == 0 || cluster.copies() == 0 || cluster.micro() == 0 || !cluster.gpus.is_multiple_of(ranks) {
        return Err(usage(&format!(
            "{} GPUs are no whole number of pipelines of {ranks} ranks, or too many for the batch",
            cluster.gpus
        )));
    }
    Ok(cluster)
}

/// A preset or a file.
fn costs(name: &str, ranks: usize, expert_ranks: usize) -> Result<Costs, u8> {
    match name {
        "unit" => return Ok(Costs::unit(3.0)),
        "overlap" => return Ok(Costs::unit(2.4)),
        "deepseek-v3" => return Ok(cluster("2048xH800", ranks, expert_ranks)?.costs(Routing::Limited)),
        _ => {}
    }
    let text = std::fs::read_to_string(name).map_err(|e| {
        eprintln!("{name}: {e}");
        FAILED
    })?;
    Costs::parse(&text).map_err(|e| fail_with(&e))
}

fn draw_files(args: &Schedule, plan: &Plan, costs: &Costs, out: &Simulated) -> Result<(), u8> {
    let write = |path: &Path, text: String| {
        if path.as_os_str() == "-" {
            put!("{text}");
            return Ok(());
        }
        std::fs::write(path, text).map_err(|e| {
            eprintln!("{}: {e}", path.display());
            FAILED
        })
    };
    if let Some(path) = &args.svg {
        write(path, draw::svg(plan, out, &costs.unit))?;
    }
    if let Some(path) = &args.trace {
        write(path, draw::trace(plan, out))?;
    }
    Ok(())
}
