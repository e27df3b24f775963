//! Fusion: elementwise chains that have a function of their own.

use super::{Class, Family, How, Rule};
use egg::rewrite as rw;

/// The table.
pub fn rules() -> Vec<Rule> {
    use Class::Reassociates;
    let rule = |name, class, rewrite| Rule { name, family: Family::Fusion, class, how: How::Pattern(rewrite) };
    vec![
        // silu(g)·u = swiglu(g, u): the gate comes first, the halves are never swapped.
        rule("mul-of-silu", Reassociates, rw!("mul-of-silu"; "(mul (silu ?g) ?u)" => "(swiglu ?g ?u)")),
        rule("mul-of-silu-right", Reassociates, rw!("mul-of-silu-right"; "(mul ?u (silu ?g))" => "(swiglu ?g ?u)")),
    ]
}
