//! A loop with carried values: layers stay rolled, so that the graph's size does not depend on depth.

use super::{OpError, op_error};
use crate::ir::Func;
use base::{Dim, TensorType};

/// `count` turns of `body`. Operands: carried values, then constants, then stacked values `[count, …]`. The body's arguments are the
/// carried values, the constants, and this turn's slices of the stacked ones; its outputs the next carried values, then values
/// that are stacked to `[count, …]`. Results: the last carried values, then the stacks.
#[derive(Clone, Debug, PartialEq)]
pub struct Repeat {
    /// The number of turns.
    pub count: i64,
    /// How many operands are carried.
    pub carried: usize,
    /// How many are the same in each turn.
    pub constant: usize,
    /// Whether turns run from the last slice to the first.
    pub reverse: bool,
    /// What a turn does.
    pub body: Func,
}

impl Repeat {
    /// How many operands are stacked.
    pub fn stacked(&self) -> usize {
        self.body.args.len() - self.carried - self.constant
    }
}

pub(super) fn infer(r: &Repeat, operands: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    if operands.len() != r.body.args.len()
        || r.carried + r.constant > operands.len()
        || r.body.outputs.len() < r.carried
        || r.count < 0
    {
        return op_error!("repeat of {} operands, {} body arguments", operands.len(), r.body.args.len());
    }
    let stack = |t: &TensorType| {
        let mut t = t.clone();
        t.shape.insert(0, Dim::from(r.count));
        t
    };
    for (i, operand) in operands.iter().enumerate() {
        let inner = r.body.arg_type(i);
        let expected = if i < r.carried + r.constant { inner.clone() } else { stack(inner) };
        if **operand != expected {
            return op_error!("operand {i} of repeat is {operand}, not {expected}");
        }
    }
    let out = |i: usize| r.body.ty(r.body.outputs[i].value);
    if let Some(i) = (0..r.carried).find(|i| out(*i) != operands[*i]) {
        return op_error!("carried value {i} of repeat is {} and becomes {}", operands[i], out(i));
    }
    Ok((0..r.body.outputs.len()).map(|i| if i < r.carried { out(i).clone() } else { stack(out(i)) }).collect())
}
