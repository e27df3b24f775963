//! The subcommands: one file each. Each returns the exit code: 0 fine, 1 diagnostics or a failed check, 2 usage.

pub mod bench;
pub mod build;
pub mod common;
pub mod doctor;
pub mod explain;
pub mod fmt;
pub mod generate;
pub mod launch;
pub mod opt;
pub mod ranks;
pub mod reduce;
pub mod run;
pub mod schedule;
pub mod train;
pub mod tune;
pub mod viz;
