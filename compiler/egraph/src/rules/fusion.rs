//! Fusion: elementwise chains that have a function of their own.

use super::{Class, Family, How, Rule};
use egg::rewrite as rw;

/// The table.
pub fn rules() -> Vec<Rule> {
    use Class::{Exact, Reassociates};
    let rule = |name, class, rewrite| Rule { name, family: Family::Fusion, class, how: How::Pattern(rewrite) };
    vec![
        // x·σ(x) = silu(x). One rounding less: silu divides where the product multiplies.
        rule("mul-of-sigmoid", Reassociates, rw!("mul-of-sigmoid"; "(mul ?x (sigmoid ?x))" => "(silu ?x)")),
        rule("mul-of-sigmoid-left", Reassociates, rw!("mul-of-sigmoid-left"; "(mul (sigmoid ?x) ?x)" => "(silu ?x)")),
        // silu(g)·u = swiglu(g, u): the gate comes first, the halves are never swapped.
        rule("mul-of-silu", Reassociates, rw!("mul-of-silu"; "(mul (silu ?g) ?u)" => "(swiglu ?g ?u)")),
        rule("mul-of-silu-right", Reassociates, rw!("mul-of-silu-right"; "(mul ?u (silu ?g))" => "(swiglu ?g ?u)")),
        // −(−x) = x.
        rule("neg-of-neg", Exact, rw!("neg-of-neg"; "(neg (neg ?x))" => "?x")),
        // x + (−y) = x − y.
        rule("add-of-neg", Exact, rw!("add-of-neg"; "(add ?x (neg ?y))" => "(sub ?x ?y)")),
        rule("add-of-neg-left", Exact, rw!("add-of-neg-left"; "(add (neg ?y) ?x)" => "(sub ?x ?y)")),
        // x − (−y) = x + y.
        rule("sub-of-neg", Exact, rw!("sub-of-neg"; "(sub ?x (neg ?y))" => "(add ?x ?y)")),
        // −(x − y) = y − x.
        rule("neg-of-sub", Exact, rw!("neg-of-sub"; "(neg (sub ?x ?y))" => "(sub ?y ?x)")),
        // not not c = c.
        rule("not-of-not", Exact, rw!("not-of-not"; "(not (not ?c))" => "?c")),
    ]
}
