//! The rules: a table per family. A rule is a line or a function with its law above it; it never makes things worse, and commuting for its own
//! sake is not a rule. `docs/optimiser.md` lists them; a test holds both lists against each other.

mod algebra;
mod attention;
mod blocks;
mod experts;
mod fusion;
mod heads;
mod layout;
mod precision;
mod products;
mod regions;
mod rows;
mod shared;
mod streams;

use crate::{
    language::{ENode, Facts},
    rewrite::{Site, Term},
};
use egg::{Id, Rewrite};

/// What a rule does to rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Bit-equal results, up to the sign of a zero.
    Exact,
    /// Sums or products are taken in another order or form, in the same precision.
    Reassociates,
    /// Intermediate values have another precision.
    ChangesIntermediate,
}

impl Class {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Class::Exact => "exact",
            Class::Reassociates => "re-associates",
            Class::ChangesIntermediate => "changes precision",
        }
    }
}

/// A family of rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// Products re-associated, scales and factors moved.
    Algebra,
    /// Attention: absorbed projections, shared heads, scales.
    Attention,
    /// Rows of experts: sums by routed indices as picks, combination of choices.
    Experts,
    /// Elementwise chains with a function of their own.
    Fusion,
    /// What follows the last layer.
    Heads,
    /// Transposes, reshapes, slices and broadcasts pushed away from products.
    Layout,
    /// Several ops that share an operand become one.
    Merging,
    /// Casts and quantisation placed where they are cheap.
    Precision,
}

impl Family {
    /// Every family.
    pub const ALL: &[Family] = &[
        Family::Algebra,
        Family::Attention,
        Family::Experts,
        Family::Fusion,
        Family::Heads,
        Family::Layout,
        Family::Merging,
        Family::Precision,
    ];
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Family::Algebra => "algebra",
            Family::Attention => "attention",
            Family::Experts => "experts",
            Family::Fusion => "fusion",
            Family::Heads => "heads",
            Family::Layout => "layout",
            Family::Merging => "merging",
            Family::Precision => "precision",
        }
    }
}

/// A rule.
pub struct Rule {
    /// Root op first.
    pub name: &'static str,
    /// Where it belongs.
    pub family: Family,
    /// What it does to rounding.
    pub class: Class,
    /// What it does.
    pub how: How,
}

/// How a rule finds what is equal.
pub enum How {
    /// A pattern of elementwise functions.
    Pattern(Rewrite<ENode, Facts>),
    /// The name of the root op, and the terms that equal it at a site.
    Directed(&'static str, fn(&Site) -> Vec<Term>),
    /// Done once after those, see `merge`.
    Join,
    /// As directed, done once after all others: regions around the site, with the classes that their results equal.
    Outline(&'static str, fn(&Site) -> Vec<(Id, Term)>),
}

/// Every rule, by family.
pub fn all() -> Vec<Rule> {
    let join = |name| Rule { name, family: Family::Merging, class: Class::Exact, how: How::Join };
    let mut all = layout::rules();
    all.extend(algebra::rules());
    all.extend(attention::rules());
    all.extend(experts::rules());
    all.extend(shared::rules());
    all.extend(fusion::rules());
    all.extend(heads::rules());
    all.extend(precision::rules());
    all.extend(blocks::rules());
    all.extend(regions::rules());
    all.extend(products::rules());
    all.extend(streams::rules());
    all.extend(rows::rules());
    all.extend([join("contract-of-shared-operand"), join("grouped-contract-of-shared-operand")]);
    all
}

/// The law of a rule in short, as the page of the rules has it.
pub fn law(name: &str) -> &'static str {
    let quoted = format!("`{name}`");
    let row = include_str!("../../../docs/optimiser.md").lines().find(|l| l.starts_with("| ") && l.contains(&quoted));
    row.and_then(|l| l.split('|').nth(4)).map_or("", str::trim)
}

/// A line of a table of directed rules.
fn directed(name: &'static str, family: Family, class: Class, root: &'static str, f: fn(&Site) -> Vec<Term>) -> Rule {
    Rule { name, family, class, how: How::Directed(root, f) }
}
