//! What can go wrong at run time: E07.

use miette::Diagnostic;
use thiserror::Error;

/// A run failed.
#[derive(Debug, Error, Diagnostic)]
#[allow(missing_docs)]
pub enum ExecError {
    #[error("there is no entry '{name}'")]
    #[diagnostic(code(E0701), help("the library has {known}"))]
    NoEntry { name: String, known: String },
    #[error("{what} is {value} for {dims}")]
    #[diagnostic(code(E0702), help("these run-time dims do not fit the model"))]
    Extent { what: String, value: i64, dims: String },
    #[error("{what} has no value for {dims}")]
    #[diagnostic(code(E0702), help("a run-time dim is not given, a divisor is not positive, or the value is beyond 64 bits"))]
    NoExtent { what: String, dims: String },
    #[error("the plan needs {needed_mib} MiB, {available_mib} MiB are available")]
    #[diagnostic(code(E0703), help("smaller --batch or --seq, or more --micro-batches\n{table}"))]
    Memory { needed_mib: u64, available_mib: u64, table: String },
    #[error("input '{name}': {why}")]
    #[diagnostic(code(E0704))]
    Input { name: String, why: String },
    #[error("{path}: {why}")]
    #[diagnostic(code(E0705), help("{help}"))]
    File { path: String, why: String, help: &'static str },
    #[error("{path} does not fit the model:\n{mismatches}")]
    #[diagnostic(code(E0706), help("the weights are of another model or config"))]
    Weights { path: String, mismatches: String },
    #[error("{path} is too short: {have} tokens, {need} are needed")]
    #[diagnostic(code(E0707), help("a longer text, or a smaller --seq"))]
    ShortData { path: String, have: usize, need: usize },
    #[error("{what} is {value} at step {step}")]
    #[diagnostic(code(E0708), help("{first}; the last good checkpoint is kept: {checkpoint}"))]
    NotFinite { what: String, value: f64, step: u64, first: String, checkpoint: String },
    #[error("no checkpoint in {path} can be read")]
    #[diagnostic(code(E0709), help("{why}"))]
    NoCheckpoint { path: String, why: String },
    #[error("{path} holds a run up to step {step}")]
    #[diagnostic(code(E0710), help("--resume goes on with it, another --out begins a new one"))]
    Occupied { path: String, step: String },
    #[error("{path}: token {token} at {at}, the model has {vocab}")]
    #[diagnostic(code(E0711), help("data of a vocabulary of at most {vocab}, or a model with a larger one"))]
    Vocabulary { path: String, token: i32, at: usize, vocab: i64 },
    #[error("{doing}: {source}")]
    #[diagnostic(forward(source))]
    Rank { doing: String, source: fabric::FabricError },
    #[error(transparent)]
    #[diagnostic(transparent)]
    Fabric(#[from] fabric::FabricError),
    #[error("the copies of stage {stage} differ at step {step}: rank {rank} has {found:016x}, rank {owner} {expected:016x}")]
    #[diagnostic(code(E0712), help("a checkpoint of them was not made; go on from the one before with --resume"))]
    Copies { stage: u16, step: u64, rank: usize, found: u64, owner: usize, expected: u64 },
    #[error(transparent)]
    #[diagnostic(transparent)]
    Device(#[from] device::DeviceError),
    #[error(transparent)]
    #[diagnostic(transparent)]
    Library(#[from] library::LibraryError),
}

impl ExecError {
    /// What the fabric said, if that is the cause.
    pub fn fabric(&self) -> Option<&fabric::FabricError> {
        if let ExecError::Rank { source, .. } | ExecError::Fabric(source) = self { Some(source) } else { None }
    }
    /// A file that cannot be read or written.
    pub fn io(path: &std::path::Path, e: &std::io::Error) -> ExecError {
        let help = match e.kind() {
            std::io::ErrorKind::NotFound => "check the path",
            std::io::ErrorKind::StorageFull => "the disk is full: free some space and go on with --resume",
            _ => "nothing was lost: what was saved before is intact",
        };
        ExecError::File { path: path.display().to_string(), why: e.to_string(), help }
    }
}
