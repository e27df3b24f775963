//! The crate through its text.

mod generators;
mod report;
mod simulate;
mod verify;

use crate::{Plan, Policy, Size};

/// Two stages a rank where the policy lets choose.
pub fn size(ranks: usize, micro: usize) -> Size {
    Size { ranks, micro, chunks: 2 }
}

/// A policy's order of computing.
pub fn generated(policy: Policy, ranks: usize, micro: usize) -> Plan {
    policy.generate(size(ranks, micro)).unwrap_or_else(|e| panic!("{e}"))
}

/// A whole plan.
pub fn planned(policy: Policy, ranks: usize, micro: usize) -> Plan {
    crate::plan(policy, size(ranks, micro)).unwrap_or_else(|e| panic!("{e}"))
}
