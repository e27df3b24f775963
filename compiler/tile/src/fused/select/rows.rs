//! What the map of a product has of each row alone, as the sums of an attention's scores: it is the same for all keys.

use super::{Need, Select};
use crate::group::is_layout;
use base::DType;
use graph::{NodeId, Op, Value};
use std::collections::BTreeSet;

/// What a map of the product repeats along its keys: that, the number of each row, and the letters of this.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct OfRow {
    pub repeated: Value,
    pub number: Value,
    pub letters: Vec<char>,
}

impl OfRow {
    /// The product's letters with none for the axes that it is repeated along.
    pub fn own_letters(&self, out: &[char]) -> Vec<char> {
        out.iter().map(|c| if self.letters.contains(c) { *c } else { '\0' }).collect()
    }
}

/// Whether it is computed of arguments without a loop.
fn is_plain(s: &Select, v: Value) -> bool {
    let node = s.func.def(v);
    let plain = match &node.op {
        Op::Arg(_) | Op::Const(..) | Op::Map(_) | Op::Cast(_) => true,
        op => is_layout(op),
    };
    plain && node.inputs.iter().all(|x| is_plain(s, *x))
}

/// All of f32 in the map of the scores.
pub(super) fn of_rows(s: &Select) -> Vec<OfRow> {
    let (func, out) = (s.func, &s.spec.out);
    let is_key = |c: &char| matches!(s.need[out.iter().position(|o| o == c).expect("it is there")], Need::Range { .. });
    let (mut open, mut seen, mut found) = (vec![s.mapped], BTreeSet::from([s.mapped]), Vec::new());
    while let Some(v) = open.pop() {
        let node = func.def(v);
        match &node.op {
            Op::Broadcast { axes, .. } if s.ty(v).rank() == out.len() => {
                let letters: Vec<char> = axes.iter().map(|a| out[*a]).collect();
                let number = node.inputs[0];
                let fits = s.ty(number).dtype == DType::F32 && is_plain(s, number);
                if !letters.is_empty() && !letters.iter().any(is_key) && fits {
                    found.push(OfRow { repeated: v, number, letters });
                }
            }
            Op::Map(_) | Op::Cast(_) if s.ty(v).rank() == out.len() => {
                open.extend(node.inputs.iter().filter(|x| seen.insert(**x)));
            }
            _ => {}
        }
    }
    found.sort();
    found
}

/// What the map has of an argument, if that is all that is read of it: numbers of rows, views of the argument.
pub(super) fn only_of_rows(s: &Select, arg: usize) -> Option<Vec<OfRow>> {
    let arg = Value { node: NodeId(u32::try_from(arg).expect("few arguments")), index: 0 };
    let is_view = |mut v: Value| {
        while v != arg && is_layout(&s.func.def(v).op) && !matches!(s.func.def(v).op, Op::Broadcast { .. }) {
            v = s.func.def(v).inputs[0];
        }
        v == arg
    };
    let found: Vec<OfRow> = of_rows(s).into_iter().filter(|x| is_view(x.number)).collect();
    // Views of it are read by views, and the last by what repeats it.
    let reads = s.func.nodes.iter().filter(|(_, n)| n.inputs.iter().any(|v| is_view(*v)));
    let known = |(id, _): (NodeId, &graph::Node)| {
        let v = Value { node: id, index: 0 };
        is_view(v) || found.iter().any(|x| x.repeated == v)
    };
    let given = s.func.outputs.iter().any(|o| is_view(o.value));
    ({ reads }.all(known) && !found.is_empty() && !given).then_some(found)
}
