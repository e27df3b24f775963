//! What can be wrong with a schedule.

/// See the pages `docs/errors/E040x.md`.
#[derive(Clone, Debug, PartialEq, thiserror::Error, miette::Diagnostic)]
pub enum ScheduleError {
    /// The policy does not run on so many ranks.
    #[error("{policy} does not run on {ranks} ranks: {why}")]
    #[diagnostic(code(E0401), help("{help}"))]
    Ranks {
        /// Which.
        policy: &'static str,
        /// How many.
        ranks: usize,
        /// The condition.
        why: &'static str,
        /// The nearest that runs.
        help: String,
    },
    /// Too few or too many micro-batches.
    #[error("{policy} on {ranks} ranks does not run with {micro} micro-batches: {why}")]
    #[diagnostic(code(E0402), help("{help}"))]
    Micro {
        /// Which.
        policy: &'static str,
        /// On how many.
        ranks: usize,
        /// How many.
        micro: usize,
        /// The condition.
        why: String,
        /// The nearest that runs.
        help: String,
    },
    /// The lists cannot be played to their end.
    #[error("rank {rank} waits forever before {action}, position {position}")]
    #[diagnostic(code(E0403), help("what it reads is made later, or never"))]
    Stuck {
        /// Who.
        rank: usize,
        /// Before what.
        action: String,
        /// Where in its list, from 0.
        position: usize,
    },
    /// The text is not a plan.
    #[error("line {line}: {what}")]
    #[diagnostic(code(E0404))]
    Text {
        /// From 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// The costs are not costs, or of another plan.
    #[error("costs: {what}")]
    #[diagnostic(code(E0405))]
    Costs {
        /// What is wrong.
        what: String,
    },
    /// A rank needs more memory than it may have.
    #[error("rank {rank} needs {needed} MiB at once, of {limit}")]
    #[diagnostic(code(E0406), help("{help}"))]
    Memory {
        /// The one that needs most.
        rank: usize,
        /// What it needs. # Units: MiB.
        needed: u64,
        /// What it may have. # Units: MiB.
        limit: u64,
        /// What helps.
        help: String,
    },
}
