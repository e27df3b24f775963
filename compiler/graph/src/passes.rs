//! Passes: a verified graph in, a verified graph with the same outputs out. Each is a function; the table is for `lode opt -p`.

mod drop_stop_gradient;
mod expand_attend;
mod expand_fused;
mod expand_quantize;
mod expand_single_pick;
mod expand_thin_contract;
mod fold_constants;
mod fold_transpose;
mod hoist_casts;
mod hoist_constant;
mod lift_transpose;
mod merge_equal;
mod outline_sums;
mod prune_dead;
mod simplify_layout;
mod sink_carried;
mod sort_gradients;
mod split_deltas;
mod stream_fused;

pub use drop_stop_gradient::drop_stop_gradient;
pub use expand_attend::expand_attend;
pub use expand_fused::{expand_fused, expand_fused_where};
pub use expand_quantize::expand_quantize;
pub use expand_single_pick::expand_single_pick;
pub use expand_thin_contract::expand_thin_contract;
pub use fold_constants::fold_constants;
pub use fold_transpose::fold_transpose;
pub use hoist_casts::hoist_casts;
pub use hoist_constant::hoist_constant;
pub use lift_transpose::lift_transpose;
pub use merge_equal::merge_equal;
pub use outline_sums::{outline_sums, outline_sums_where};
pub use prune_dead::prune_dead;
pub use simplify_layout::simplify_layout;
pub use sink_carried::sink_carried;
pub use sort_gradients::sort_gradients;
pub use split_deltas::{is_zero, split_deltas, split_deltas_where};
pub use stream_fused::{CHUNK, Stream, stream_fused, stream_fused_by};

pub(crate) use expand_quantize::{definition, definition_of};

use crate::{
    ir::{Func, Module, Node, Value},
    op::Op,
    verify::{Violation, verify_func},
};
use base::Arena;

/// What a pass did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Nodes replaced, merged, moved or removed; 0 if the function is as it was.
    pub changes: usize,
}

/// A pass with its name.
#[derive(Clone, Copy)]
pub struct Pass {
    /// The name, as `lode opt -p` takes it.
    pub name: &'static str,
    /// One line on what it does.
    pub about: &'static str,
    /// The pass.
    pub run: fn(&mut Func) -> Stats,
}

/// Every pass.
pub const ALL: &[Pass] = &[
    Pass { name: "drop_stop_gradient", about: "removes stop_gradient, once gradients are taken", run: drop_stop_gradient },
    Pass { name: "expand_attend", about: "replaces attention by its definition, before gradients are taken", run: expand_attend },
    Pass { name: "expand_fused", about: "replaces regions by their ops", run: expand_fused },
    Pass { name: "expand_quantize", about: "replaces block quantisation by its definition", run: expand_quantize },
    Pass {
        name: "expand_single_pick",
        about: "sums by index of one row each as maps, which fuse; for GPUs",
        run: expand_single_pick,
    },
    Pass {
        name: "expand_thin_contract",
        about: "contractions with an operand that has no axis of its own as products and sums",
        run: expand_thin_contract,
    },
    Pass { name: "fold_constants", about: "computes what depends on constants alone", run: fold_constants },
    Pass { name: "fold_transpose", about: "contractions that give what is transposed", run: fold_transpose },
    Pass { name: "hoist_casts", about: "narrows once what several loops narrow in each turn; for GPUs", run: hoist_casts },
    Pass { name: "hoist_constant", about: "moves what is the same in each turn out of loops", run: hoist_constant },
    Pass { name: "lift_transpose", about: "maps before what they read is transposed; for GPUs", run: lift_transpose },
    Pass { name: "merge_equal", about: "computes the same thing once", run: merge_equal },
    Pass {
        name: "outline_sums",
        about: "attentions with sums of their results as regions, where nothing else reads these; for GPUs",
        run: outline_sums,
    },
    Pass { name: "prune_dead", about: "removes what no output needs", run: prune_dead },
    Pass { name: "simplify_layout", about: "removes and joins layout ops and casts", run: simplify_layout },
    Pass { name: "sink_carried", about: "computes what loops carry last", run: sink_carried },
    Pass { name: "sort_gradients", about: "gradients of attention over lists before others; for GPUs", run: sort_gradients },
    Pass {
        name: "split_deltas",
        about: "what gated gradients of attention take from its result, apart, and gates in their weights; for GPUs",
        run: split_deltas,
    },
    Pass { name: "stream_fused", about: "regions along a long axis as loops over its chunks", run: stream_fused },
];

/// The usual order, before and after autodiff; it leaves `stop_gradient` alone.
pub const PIPELINE: &[&str] = &["fold_constants", "simplify_layout", "merge_equal", "hoist_constant", "prune_dead"];

/// The pass called `name`.
pub fn by_name(name: &str) -> Option<Pass> {
    ALL.iter().copied().find(|p| p.name == name)
}

/// Why passes could not be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// A name that is in no table.
    #[error("no pass '{0}'")]
    Unknown(String),
    /// A pass broke a function: our mistake.
    #[error("after {pass}: {}", .violations.iter().map(Violation::to_string).collect::<Vec<_>>().join("; "))]
    Broken {
        /// The pass.
        pass: String,
        /// What does not hold.
        violations: Vec<Violation>,
    },
}

/// Runs passes in order over all functions; with `verify_each`, verifies after each. Returns what each did, summed over the functions.
///
/// # Errors
/// If a name is unknown (then nothing ran), or a pass broke a function.
pub fn run(module: &mut Module, names: &[&str], verify_each: bool) -> Result<Vec<(&'static str, Stats)>, RunError> {
    let found = names.iter().map(|n| by_name(n).ok_or_else(|| RunError::Unknown(n.to_string())));
    let passes = found.collect::<Result<Vec<_>, _>>()?;
    let mut done = Vec::new();
    for pass in passes {
        let mut sum = Stats::default();
        for func in &mut module.funcs {
            sum.changes += (pass.run)(func).changes;
            let violations = if verify_each { verify_func(func) } else { Vec::new() };
            if !violations.is_empty() {
                return Err(RunError::Broken { pass: pass.name.into(), violations });
            }
        }
        done.push((pass.name, sum));
    }
    Ok(done)
}

/// Copies a function node by node, bodies of loops first. `replace` sees the function so far and a node whose inputs are already of that
/// function; it may give values of the same types to be used instead.
fn rewrite(func: &mut Func, replace: &mut dyn FnMut(&mut Func, &Node) -> Option<Vec<Value>>) -> Stats {
    let old = std::mem::take(func);
    let mut stats = Stats::default();
    *func = Func { name: old.name, args: old.args, nodes: Arena::new(), outputs: old.outputs };
    let mut moved: Vec<Vec<Value>> = Vec::with_capacity(old.nodes.len());
    for node in old.nodes.values() {
        let mut node = node.clone();
        for v in &mut node.inputs {
            *v = moved[v.node.0 as usize][v.index as usize];
        }
        if let Op::Repeat(r) = &mut node.op {
            stats.changes += rewrite(&mut r.body, replace).changes;
        }
        moved.push(match replace(func, &node) {
            Some(values) => {
                stats.changes += 1;
                values
            }
            None => push(func, node),
        });
    }
    for o in &mut func.outputs {
        o.value = moved[o.value.node.0 as usize][o.value.index as usize];
    }
    stats
}

/// Appends a node as it is; returns its results.
fn push(func: &mut Func, node: Node) -> Vec<Value> {
    let count = u32::try_from(node.types.len()).expect("fewer than 2^32 results");
    let node = func.nodes.push(node);
    (0..count).map(|index| Value { node, index }).collect()
}

/// Appends a node for `like`'s source text; the shape rule cannot fail, as a pass only builds what follows from a verified graph.
fn add(func: &mut Func, op: Op, inputs: &[Value], like: &Node) -> Value {
    let name = op.name();
    match func.add(op, inputs, like.origin) {
        Ok(node) => Value { node, index: 0 },
        Err(e) => base::bug!("{name}: {e}"),
    }
}

#[cfg(test)]
mod tests;
