//! Whether roots are computed row by row: each element from elements of its own row, or from what there is one of for that row.

use crate::{
    fused::num_parts,
    group::{is_inline, is_layout, is_unrolled, view_base},
};
use base::Dim;
use graph::{Func, NodeId, Op, Value};
use std::collections::BTreeSet;

/// Rows that some roots have together: all axes but the innermost, and that.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rows {
    outer: Vec<Dim>,
    inner: Dim,
}

impl Rows {
    /// The elements of all rows.
    pub fn elems(&self) -> Dim {
        self.outer.iter().fold(self.inner.clone(), |n, d| n * d.clone())
    }
    fn of_shape(shape: &[Dim]) -> Option<Rows> {
        let (inner, outer) = shape.split_last()?;
        let many = outer.iter().any(|d| !d.is(1)) && inner.known().is_some_and(|n| n > 1);
        many.then(|| Rows { outer: outer.to_vec(), inner: inner.clone() })
    }
}

/// Whether a root may be a reduction of rows, or a map of what is.
pub(super) fn may_be(func: &Func, id: NodeId) -> bool {
    match &func.nodes[id].op {
        Op::Map(_) | Op::Cast(_) => !super::adds_to_argument(func, id),
        Op::Reduce(..) => reduced(func, id).is_some(),
        _ => false,
    }
}

/// The rows that a reduction is of, if it is taken whole.
fn reduced(func: &Func, id: NodeId) -> Option<Rows> {
    let node = &func.nodes[id];
    let Op::Reduce(_, axes) = &node.op else { return None };
    let operand = func.ty(node.inputs[0]);
    let whole = !is_unrolled(&node.op, operand) && num_parts(func, Value { node: id, index: 0 }).is_none();
    (axes[..] == [operand.rank() - 1] && whole).then(|| Rows::of_shape(&operand.shape))?
}

/// The rows of some roots, if all are computed by the same ones, one of them reduces rows, and none reads another at other rows.
pub(super) fn of(func: &Func, root: &[bool], members: &[NodeId]) -> Option<Rows> {
    let shape = |m: NodeId| &func.nodes[m].types[0].shape;
    let candidates = members.iter().flat_map(|m| inside(func, root, *m).into_iter().chain(Rows::of_shape(shape(*m))));
    let candidates: Vec<Rows> = candidates.collect();
    candidates.into_iter().find(|rows| {
        let mut w = Walk { func, root, rows, elsewhere: BTreeSet::new(), seen: BTreeSet::new(), reduces: false };
        let fits = members.iter().all(|m| {
            let inputs = func.nodes[*m].inputs.iter();
            match (&func.nodes[*m].op, w.level(shape(*m))) {
                (Op::Reduce(..), Some(Level::Row)) => w.reduce(*m),
                (Op::Map(_) | Op::Cast(_), Some(level)) => inputs.copied().all(|x| w.value(x, level)),
                _ => false,
            }
        });
        fits && w.reduces && members.iter().all(|m| !w.elsewhere.contains(m))
    })
}

/// The rows that a root reduces, itself or on its way.
fn inside(func: &Func, root: &[bool], id: NodeId) -> Option<Rows> {
    let own =
        |v: &&Value| !root[v.node.0 as usize] && (is_inline(&func.def(**v).op) || matches!(func.def(**v).op, Op::Reduce(..)));
    let (mut open, mut seen) = (vec![id], BTreeSet::new());
    while let Some(id) = open.pop() {
        let rows = reduced(func, id);
        if rows.is_some() {
            return rows;
        }
        if seen.insert(id) {
            open.extend(func.nodes[id].inputs.iter().rev().filter(own).map(|v| v.node));
        }
    }
    None
}

/// What there is one of: for each element or for each row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Element,
    Row,
}

struct Walk<'a> {
    func: &'a Func,
    root: &'a [bool],
    rows: &'a Rows,
    /// What is read at other rows or columns.
    elsewhere: BTreeSet<NodeId>,
    seen: BTreeSet<(Value, Level)>,
    reduces: bool,
}

impl Walk<'_> {
    /// What a shape has an element for.
    fn level(&self, shape: &[Dim]) -> Option<Level> {
        let Rows { outer, inner } = self.rows;
        let n = outer.len();
        if shape.len() == n + 1 && shape[..n] == outer[..] && shape[n] == *inner {
            Some(Level::Element)
        } else if shape.len() >= n && shape[..n] == outer[..] && shape[n..].iter().all(|d| d.is(1)) {
            Some(Level::Row)
        } else {
            None
        }
    }
    fn stored(&self, v: Value) -> bool {
        self.root[v.node.0 as usize] || matches!(self.func.def(v).op, Op::Arg(_))
    }
    /// Whether a reduction is one of rows.
    fn reduce(&mut self, id: NodeId) -> bool {
        self.reduces = true;
        reduced(self.func, id).is_some_and(|r| r == *self.rows) && self.value(self.func.nodes[id].inputs[0], Level::Element)
    }
    /// Whether the value at hand's own element or row is computed so.
    fn value(&mut self, v: Value, level: Level) -> bool {
        if self.stored(v) || !self.seen.insert((v, level)) {
            return true;
        }
        let node = self.func.def(v);
        let same = self.level(&node.types[0].shape) == Some(level);
        match &node.op {
            Op::Const(..) | Op::Extent(..) => true,
            Op::Map(_) | Op::Cast(_) | Op::StopGradient if same => node.inputs.iter().all(|x| self.value(*x, level)),
            Op::Reduce(..) if same && level == Level::Row => self.reduce(v.node),
            Op::Broadcast { axes, .. } if same => {
                let below = node.inputs[0];
                let kept = axes.iter().copied().eq(0..axes.len());
                match self.level(&self.func.ty(below).shape) {
                    Some(level) if kept => self.value(below, level),
                    _ => self.other(below),
                }
            }
            Op::Reshape(_) if same && self.level(&self.func.ty(node.inputs[0]).shape) == Some(level) => {
                self.value(node.inputs[0], level)
            }
            _ => self.other(v),
        }
    }
    /// Whether a value that is not read by rows is made of what is stored alone.
    fn other(&mut self, v: Value) -> bool {
        if self.stored(v) {
            self.elsewhere.insert(v.node);
            return true;
        }
        let node = self.func.def(v);
        match &node.op {
            Op::Const(..) | Op::Extent(..) => true,
            Op::Map(_) | Op::Cast(_) | Op::StopGradient | Op::Broadcast { .. } => node.inputs.iter().all(|x| self.other(*x)),
            op if is_layout(op) && is_inline(op) => match view_base(self.func, v) {
                Some((base, _)) if self.stored(base) => {
                    self.elsewhere.insert(base.node);
                    true
                }
                _ => false,
            },
            _ => false,
        }
    }
}
