//! The policies: each gives the order in which ranks compute. To add one: a file in `policy/`, a variant and its lines here.

mod dualpipe;
mod interleaved;
mod one_f_one_b;
mod row;
mod zb1p;
mod zbv;

use crate::{Action, Placement, Plan, ScheduleError};

/// How large a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Ranks of one pipeline.
    pub ranks: usize,
    /// Micro-batches of a step, all directions together.
    pub micro: usize,
    /// Stages on each rank, for `interleaved`; the others have a number of their own.
    pub chunks: usize,
}

/// An order of computing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Policy {
    /// One forward, one backward.
    OneFOneB,
    /// The same over several stages a rank.
    Interleaved,
    /// 1F1B with weight gradients apart.
    Zb1p,
    /// Down and up again, weight gradients apart.
    Zbv,
    /// Both directions at once, forwards and backwards in overlapped pairs.
    DualPipe,
    /// The half of it: down and up again.
    DualPipeV,
}

impl Policy {
    /// All, in the order of their age.
    pub const ALL: [Policy; 6] =
        [Policy::OneFOneB, Policy::Interleaved, Policy::Zb1p, Policy::Zbv, Policy::DualPipe, Policy::DualPipeV];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Policy::OneFOneB => "1f1b",
            Policy::Interleaved => "interleaved",
            Policy::Zb1p => "zb1p",
            Policy::Zbv => "zbv",
            Policy::DualPipe => "dualpipe",
            Policy::DualPipeV => "dualpipev",
        }
    }

    /// The policy of a name.
    pub fn from_name(name: &str) -> Option<Policy> {
        Policy::ALL.into_iter().find(|p| p.name() == name)
    }

    /// The most units whose activations a rank may hold at once, by rank: what [`crate::verify`] checks. A unit is a stage on a micro-batch.
    /// # Source: for DualPipe its authors' table, P + 1; for the others the length of the warm-up.
    pub fn max_live(self, size: Size) -> Vec<usize> {
        let Size { ranks, micro, chunks } = size;
        let group = micro / (micro / ranks.max(1)).max(1);
        let of = |rank: usize| match self {
            Policy::OneFOneB => micro.min(ranks - rank),
            Policy::Interleaved => (chunks * micro).min((chunks.max(1) - 1) * group + 2 * (ranks - 1 - rank) + 1),
            Policy::Zb1p => micro.min(ranks),
            Policy::Zbv => (2 * micro).min(2 * ranks),
            Policy::DualPipe => ranks + 1,
            Policy::DualPipeV => 2 * ranks + 1,
        };
        (0..ranks).map(of).collect()
    }

    /// What every rank computes, in order; no messages yet.
    ///
    /// # Errors
    /// E0401, E0402 if the size does not fit; the error names the nearest that does.
    pub fn generate(self, size: Size) -> Result<Plan, ScheduleError> {
        match self {
            Policy::OneFOneB => one_f_one_b::generate(size),
            Policy::Interleaved => interleaved::generate(size),
            Policy::Zb1p => zb1p::generate(size),
            Policy::Zbv => zbv::generate(size),
            Policy::DualPipe => dualpipe::generate(size),
            Policy::DualPipeV => dualpipe::generate_v(size),
        }
    }
}

/// A plan from the list of each rank.
fn plan(policy: Policy, placement: Placement, num_micro: usize, list: impl Fn(usize) -> Vec<Action>) -> Plan {
    let actions = (0..placement.num_ranks()).map(list).collect();
    Plan { policy: policy.name().into(), placement, num_micro, actions }
}

fn need_ranks(policy: Policy, ranks: usize) -> Result<(), ScheduleError> {
    if ranks > 0 {
        return Ok(());
    }
    let why = "a pipeline has a rank";
    Err(ScheduleError::Ranks { policy: policy.name(), ranks, why, help: "take 1 rank".into() })
}

fn need_micro(policy: Policy, size: Size, least: usize) -> Result<(), ScheduleError> {
    if size.micro >= least {
        return Ok(());
    }
    let (why, help) = (format!("they are at least {least}"), format!("take {least}"));
    Err(ScheduleError::Micro { policy: policy.name(), ranks: size.ranks, micro: size.micro, why, help })
}
