//! Cuts a model into stages for pipelined training. In: a module with `loss`, `norm` and `update`, and how many layers each stage has.
//! Out: a module for each stage with `forward`, `backward`, `backward_input`, `backward_weight`, `norm` and the update in parts, `update.0`
//! and on; run one after the other they are the whole.
//!
//! Layers are the turns of the outermost `repeat`s that read parameters. A stage has layers `a..b` of a repeat: its loop has `b - a` turns
//! and its parameters are those slices, under names that count from `a`. What comes before the first layer is the first stage's, what
//! depends on the last layer the last one's. What depends on the inputs alone (positions, masks) or on parameters alone (a tied table's
//! transpose) is computed by every stage that reads it. All else that a later stage reads crosses every boundary between: `in.k` and
//! `out.k`, with gradients `d_in.k` and `d_out.k`.

mod backward;
mod cut;
mod experts;
mod parts;
mod slice;
#[cfg(test)]
mod tests;

pub use experts::{divide_experts, of_member};

use crate::{
    ir::{Func, Module, Role},
    op::{Op, Repeat},
};

/// How many layers each stage has; the first also has what comes before them, the last what comes after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout(pub Vec<usize>);

/// Why a module is not cut.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StageError {
    /// There is nothing to cut.
    #[error("{0} has no train item, or no repeat with parameters to cut")]
    NoLayers(String),
    /// The layout is of another model.
    #[error("the layout has {found} layers, the model has {expected}")]
    Count {
        /// Of the model.
        expected: usize,
        /// Of the layout.
        found: usize,
    },
    /// Something that belongs to all layers at once.
    #[error("{what} cannot be cut by layers: {why}")]
    Whole {
        /// A parameter, or a value of an entry.
        what: String,
        /// The op or use in the way.
        why: String,
    },
    /// Something that belongs to all experts at once.
    #[error("{what} cannot be divided by experts: {why}")]
    Together {
        /// A parameter, or a value of an entry.
        what: String,
        /// The op or use in the way.
        why: String,
    },
    /// There is nothing to divide.
    #[error("{0} has no experts: no product over ragged rows has matrices that are parameters")]
    NoExperts(String),
    /// Members would have different numbers of experts.
    #[error("{experts} experts are not shared evenly by {members} ranks")]
    Uneven {
        /// Of a layer.
        experts: String,
        /// Of the group.
        members: i64,
    },
}

/// The stages of `module`. In: entries as elaborated, or after passes; gradients are not yet taken.
///
/// # Errors
/// If the layout does not fit the model, or something belongs to all layers at once.
pub fn split(module: &Module, layout: &Layout, passes: &dyn Fn(&mut Module)) -> Result<Vec<Module>, StageError> {
    let none = || StageError::NoLayers(module.name.clone());
    let loss = module.func("loss").ok_or_else(none)?;
    let (expected, found) = (num_layers(module), layout.0.iter().sum());
    if expected == 0 || layout.0.is_empty() {
        return Err(none());
    }
    if expected != found {
        return Err(StageError::Count { expected, found });
    }
    let cuts = cut::cut(module, loss, layout)?;
    let mut stages = Vec::new();
    for (i, stage) in cuts.into_iter().enumerate() {
        let mut forward =
            Module { name: format!("{}.{i}", module.name), params: stage.params.clone(), funcs: vec![stage.func.clone()] };
        passes(&mut forward);
        let mut funcs = backward::entries(&forward.funcs[0]);
        for name in ["norm", "update"] {
            let whole = module.func(name).ok_or_else(none)?;
            let own = slice::restrict(whole, &stage)?;
            if name == "update" { funcs.extend(parts::parts(&own)?) } else { funcs.push(own) }
        }
        stages.push(Module { funcs, ..forward });
    }
    Ok(stages)
}

/// How many layers `module` has that can be cut.
pub fn num_layers(module: &Module) -> usize {
    module.func("loss").map_or(0, |f| f.nodes.values().filter_map(|n| layers(f, n)).map(|r| r.count as usize).sum())
}

/// Whether a node of a loss is a loop whose turns are layers.
pub fn is_layers(loss: &Func, node: crate::NodeId) -> bool {
    layers(loss, &loss.nodes[node]).is_some()
}

/// The loop of a node, if its turns are layers: something is carried, and each turn has parameters of its own.
fn layers<'f>(func: &Func, node: &'f crate::ir::Node) -> Option<&'f Repeat> {
    let Op::Repeat(r) = &node.op else { return None };
    let is_param =
        |v: &crate::ir::Value| matches!(func.nodes[v.node].op, Op::Arg(i) if func.args[i as usize].role == Role::Param);
    let stacked = &node.inputs[r.carried + r.constant..];
    (r.carried > 0 && !r.reverse && r.count > 0 && stacked.iter().any(is_param)).then_some(&**r)
}

/// Some layers of a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Range {
    start: i64,
    len: i64,
}

/// The name of a stack's slice: its first `*` counts from `start` on.
fn slice_name(name: &str, start: i64) -> String {
    let mut done = false;
    let part = |part: &str| match part.strip_prefix('*') {
        Some(rest) if !done => {
            done = true;
            let from = start + rest.strip_prefix('+').and_then(|k| k.parse::<i64>().ok()).unwrap_or(0);
            if from == 0 { "*".to_string() } else { format!("*+{from}") }
        }
        _ => part.to_string(),
    };
    name.split('.').map(part).collect::<Vec<_>>().join(".")
}
