//! Slices along the axis of layers. A value over all layers is computed for some of them from slices of what it is made of; so `norm` and
//! `update`, which treat layers alike, become those of a stage.

use super::{Range, StageError, cut::Stage, slice_name};
use crate::{
    ir::{Func, Node, NodeId, Role, Value},
    op::Op,
};
use base::Dim;
use std::collections::BTreeMap;

/// What an argument of the whole is to a stage.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Part {
    /// Not there.
    Absent,
    /// As it is.
    Whole,
    /// Some layers of it.
    Slice(Range),
}

/// Copies from `from` to `to` what is asked for.
pub(super) struct Slicer<'f> {
    pub from: &'f Func,
    pub to: Func,
    /// What was copied: whole, or the slice.
    pub done: BTreeMap<(Value, Option<Range>), Value>,
    /// Slices of arguments that were made, by node of `to`: of which argument. None if all there may be are in `done`.
    pub slices: Option<BTreeMap<NodeId, (usize, Range)>>,
}

impl Slicer<'_> {
    fn error(&self, v: Value, why: &str) -> StageError {
        let node = &self.from.nodes[v.node];
        let what = match &node.op {
            Op::Arg(i) => self.from.args[*i as usize].name.clone(),
            op => format!("'{}' of {}", op.name(), self.from.name),
        };
        StageError::Whole { what, why: why.into() }
    }
    /// `v` as it is.
    pub fn whole(&mut self, v: Value) -> Result<Value, StageError> {
        self.get(v, None)
    }
    /// Layers of `v`, whose first axis are all layers.
    pub fn slice(&mut self, v: Value, range: Range) -> Result<Value, StageError> {
        let all = self.from.ty(v).shape.first().and_then(Dim::known);
        if all == Some(range.len) && range.start == 0 {
            return self.whole(v);
        }
        self.get(v, Some(range))
    }
    fn get(&mut self, v: Value, range: Option<Range>) -> Result<Value, StageError> {
        if let Some(found) = self.done.get(&(v, range)) {
            return Ok(*found);
        }
        let node = self.from.nodes[v.node].clone();
        if let Op::Arg(i) = node.op {
            let (Some(slices), Some(range)) = (&mut self.slices, range) else {
                return Err(self.error(v, "it is needed whole where only some layers are, or the other way round"));
            };
            let mut slice = node.clone();
            slice.types[0].shape[0] = Dim::from(range.len);
            let new = Value { node: self.to.nodes.push(slice), index: 0 };
            slices.insert(new.node, (i as usize, range));
            self.done.insert((v, Some(range)), new);
            return Ok(new);
        }
        let Some(range) = range else {
            let inputs = node.inputs.iter().map(|x| self.whole(*x)).collect::<Result<Vec<_>, _>>()?;
            let new = self.to.nodes.push(Node { inputs, ..node.clone() });
            for index in 0..node.types.len() as u32 {
                self.done.insert((Value { node: v.node, index }, None), Value { node: new, index });
            }
            return Ok(Value { node: new, index: v.index });
        };
        let n = Dim::from(range.len);
        let (op, inputs) = match &node.op {
            Op::Map(_) | Op::Cast(_) | Op::StopGradient => (node.op.clone(), self.slices(&node.inputs, range)?),
            Op::Reduce(_, axes) if !axes.contains(&0) => (node.op.clone(), self.slices(&node.inputs, range)?),
            Op::Broadcast { shape, axes } => {
                let shape = [n].into_iter().chain(shape[1..].iter().cloned()).collect();
                let x = node.inputs[0];
                let x = if axes.first() == Some(&0) { self.slice(x, range)? } else { self.whole(x)? };
                (Op::Broadcast { shape, axes: axes.clone() }, vec![x])
            }
            Op::Transpose(perm) if perm[0] == 0 => (node.op.clone(), self.slices(&node.inputs, range)?),
            Op::Contract(c) if c.out.first().is_some_and(|b| c.lhs.first() == Some(b) && c.rhs.first() == Some(b)) => {
                (node.op.clone(), self.slices(&node.inputs, range)?)
            }
            Op::Repeat(r) if r.carried == 0 => {
                let mut inputs = Vec::new();
                for (i, x) in node.inputs.iter().enumerate() {
                    inputs.push(if i < r.constant { self.whole(*x)? } else { self.slice(*x, range)? });
                }
                let turns = crate::op::Repeat { count: range.len, ..(**r).clone() };
                (Op::Repeat(Box::new(turns)), inputs)
            }
            op => return Err(self.error(v, &format!("'{}' treats layers together", op.name()))),
        };
        let made = self.to.add(op, &inputs, node.origin).map_err(|e| self.error(v, &e.0))?;
        for index in 0..node.types.len() as u32 {
            self.done.insert((Value { node: v.node, index }, Some(range)), Value { node: made, index });
        }
        Ok(Value { node: made, index: v.index })
    }
    fn slices(&mut self, values: &[Value], range: Range) -> Result<Vec<Value>, StageError> {
        values.iter().map(|x| self.slice(*x, range)).collect()
    }
}

/// An entry over all parameters as that of a stage: arguments and outputs of other stages go, stacks become slices.
pub(super) fn restrict(func: &Func, stage: &Stage) -> Result<Func, StageError> {
    let part = |name: &str, role: Role| match role {
        Role::Param | Role::State | Role::Grad | Role::Result => stage.part(name),
        Role::Moment => stage.part(name.rsplit_once('#').map_or(name, |(p, _)| p)),
        Role::Tally => stage.tallies.get(name).cloned().unwrap_or(Part::Absent),
        Role::Scalar | Role::Input | Role::Inner => Part::Whole,
    };
    let mut s = Slicer { from: func, to: Func::new(&func.name), done: BTreeMap::new(), slices: None };
    for (arg, v, ty) in func.arg_values() {
        match part(&arg.name, arg.role) {
            Part::Absent => {}
            Part::Whole => {
                let new = s.to.arg(&arg.name, arg.role, ty.clone());
                s.done.insert((v, None), new);
            }
            Part::Slice(range) => {
                let mut ty = ty.clone();
                ty.shape[0] = Dim::from(range.len);
                let new = s.to.arg(&slice_name(&arg.name, range.start), arg.role, ty);
                s.done.insert((v, Some(range)), new);
            }
        }
    }
    for o in &func.outputs {
        let (name, value) = match part(&o.name, o.role) {
            Part::Absent => continue,
            Part::Whole => (o.name.clone(), s.whole(o.value)?),
            Part::Slice(range) => (slice_name(&o.name, range.start), s.slice(o.value, range)?),
        };
        s.to.output(&name, o.role, value);
    }
    Ok(s.to)
}
