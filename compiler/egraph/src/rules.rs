//! The rules: a table per family. A rule is a line with its law above it; it never makes things worse, and commuting for its own
//! sake is not a rule.

mod fusion;

use crate::language::{ENode, Facts};
use egg::Rewrite;

/// What a rule does to rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Bit-equal results.
    Exact,
    /// Sums or products are taken in another order or form, in the same precision.
    Reassociates,
    /// Intermediate values have another precision.
    ChangesIntermediate,
}

/// A rule.
pub struct Rule {
    /// Root op first.
    pub name: &'static str,
    /// What it does to rounding.
    pub class: Class,
    /// The rewrite.
    pub rewrite: Rewrite<ENode, Facts>,
}

/// Every rule, by family.
pub fn all() -> Vec<Rule> {
    fusion::rules()
}

/// The names of all rules, and of those that are not patterns, in order.
pub fn names() -> Vec<&'static str> {
    let patterns = all().into_iter().map(|r| r.name);
    patterns.chain(["contract-of-shared-operand"]).collect()
}
