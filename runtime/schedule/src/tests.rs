//! The crate through its text.

mod generators;

use crate::{Plan, Policy, Size};

/// A policy's order of computing.
pub fn generated(policy: Policy, ranks: usize, micro: usize) -> Plan {
    policy.generate(Size { ranks, micro, chunks: 2 }).unwrap_or_else(|e| panic!("{e}"))
}

/// A whole plan.
pub fn planned(policy: Policy, ranks: usize, micro: usize) -> Plan {
    crate::plan(policy, Size { ranks, micro, chunks: 2 }).unwrap_or_else(|e| panic!("{e}"))
}
