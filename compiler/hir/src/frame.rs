//! Functions under construction: the entry point and, inside it, the bodies of `repeat`s. A tensor of an outer frame that is used in
//! an inner one becomes an argument of each body between.

use crate::value::TensorVal;
use base::{DType, Dim, Span, TensorType};
use graph::{
    Func, NodeId, Op, OpError, Role, Value,
    ir::{Arg, Node},
    op::Repeat,
};
use std::collections::BTreeMap;

/// What an argument of a frame is.
#[derive(Clone, Debug, PartialEq)]
pub enum ArgKind {
    /// Of an entry point.
    Entry(Role, String),
    /// Carried from turn to turn; starts as this value of the outer frame.
    Carried(Value),
    /// The same in every turn.
    Constant(Value),
    /// A slice of this value of the outer frame.
    Stacked(Value),
}

/// A function being built. Arguments may be discovered late; `finish` puts them first.
#[derive(Default)]
pub struct Frame {
    func: Func,
    args: Vec<(ArgKind, Value)>,
    captured: BTreeMap<Value, Value>,
}

impl Frame {
    fn arg(&mut self, kind: ArgKind, ty: TensorType) -> Value {
        let index = u32::try_from(self.args.len()).expect("fewer than 2^32 arguments");
        let node = self.func.nodes.push(Node { op: Op::Arg(index), inputs: Vec::new(), types: vec![ty], origin: None });
        let value = Value { node, index: 0 };
        self.args.push((kind, value));
        value
    }
    /// The function with its arguments in the given order (indices into `args`), first; and the outputs.
    fn finish(self, name: &str, order: &[usize], outputs: Vec<(String, Role, Value)>) -> Func {
        let mut out = Func::new(name);
        let mut place: BTreeMap<NodeId, NodeId> = BTreeMap::new();
        for (k, i) in order.iter().enumerate() {
            let (kind, value) = &self.args[*i];
            let (name, role) = match kind {
                ArgKind::Entry(role, name) => (name.clone(), *role),
                ArgKind::Carried(_) => (format!("c{k}"), Role::Inner),
                ArgKind::Constant(_) => (format!("k{k}"), Role::Inner),
                ArgKind::Stacked(_) => (format!("s{k}"), Role::Inner),
            };
            let mut node = self.func.nodes[value.node].clone();
            node.op = Op::Arg(k as u32);
            out.args.push(Arg { name, role });
            place.insert(value.node, out.nodes.push(node));
        }
        for (id, node) in self.func.nodes.iter().filter(|(_, n)| !matches!(n.op, Op::Arg(_))) {
            let mut node = node.clone();
            node.inputs.iter_mut().for_each(|v| v.node = place[&v.node]);
            place.insert(id, out.nodes.push(node));
        }
        for (name, role, v) in outputs {
            out.output(&name, role, Value { node: place[&v.node], index: v.index });
        }
        out
    }
}

/// The frames of one entry point, outermost first.
pub struct Frames {
    frames: Vec<Frame>,
    /// The source text that new nodes stand for.
    pub origin: Option<Span>,
}

impl Frames {
    /// An empty entry point.
    pub fn new() -> Self {
        Frames { frames: vec![Frame::default()], origin: None }
    }
    /// How many `repeat`s are around.
    pub fn level(&self) -> usize {
        self.frames.len() - 1
    }
    /// The type of a tensor.
    pub fn ty(&self, t: TensorVal) -> &TensorType {
        self.frames[t.level].func.ty(t.value)
    }
    /// The tensor as a value of the innermost frame.
    fn here(&mut self, t: TensorVal) -> Value {
        let mut value = t.value;
        for level in t.level + 1..self.frames.len() {
            value = match self.frames[level].captured.get(&value) {
                Some(inner) => *inner,
                None => {
                    let ty = self.frames[level - 1].func.ty(value).clone();
                    let inner = self.frames[level].arg(ArgKind::Constant(value), ty);
                    self.frames[level].captured.insert(value, inner);
                    inner
                }
            };
        }
        value
    }
    /// Applies an op in the innermost frame.
    ///
    /// # Errors
    /// If the op does not take these operands.
    pub fn apply(&mut self, op: Op, operands: &[TensorVal]) -> Result<Vec<TensorVal>, OpError> {
        let inputs: Vec<Value> = operands.iter().map(|t| self.here(*t)).collect();
        let level = self.level();
        let func = &mut self.frames[level].func;
        let node = func.add(op, &inputs, self.origin)?;
        Ok((0..func.nodes[node].types.len() as u32).map(|index| TensorVal { value: Value { node, index }, level }).collect())
    }
    /// The result of an op that is known to fit.
    pub fn op(&mut self, op: Op, operands: &[TensorVal]) -> TensorVal {
        let name = op.name();
        self.apply(op, operands).unwrap_or_else(|e| base::bug!("{name}: {e}"))[0]
    }
    /// A scalar constant.
    pub fn constant(&mut self, x: f64, dtype: DType) -> TensorVal {
        self.op(Op::Const(graph::op::Scalar::new(x), dtype), &[])
    }
    /// An argument of the entry point, or the one of that name and role if it is there already.
    pub fn entry_arg(&mut self, name: &str, role: Role, ty: &TensorType) -> TensorVal {
        let kind = ArgKind::Entry(role, name.to_string());
        let value = match self.frames[0].args.iter().find(|(k, _)| *k == kind) {
            Some((_, v)) => *v,
            None => self.frames[0].arg(kind, ty.clone()),
        };
        TensorVal { value, level: 0 }
    }
    /// This turn's slice of a tensor stacked over all `repeat`s around, outermost first.
    pub fn slice(&mut self, stacked: TensorVal) -> TensorVal {
        let mut value = stacked.value;
        for level in stacked.level + 1..self.frames.len() {
            let mut ty = self.frames[level - 1].func.ty(value).clone();
            ty.shape.remove(0);
            value = self.frames[level].arg(ArgKind::Stacked(value), ty);
        }
        TensorVal { value, level: self.level() }
    }

    /// Begins the body of a `repeat`; the carried tensors as they are inside.
    pub fn enter(&mut self, carried: &[TensorVal]) -> Vec<TensorVal> {
        let outer: Vec<Value> = carried.iter().map(|t| self.here(*t)).collect();
        let types: Vec<TensorType> = carried.iter().map(|t| self.ty(*t).clone()).collect();
        self.frames.push(Frame::default());
        let level = self.level();
        outer
            .into_iter()
            .zip(types)
            .map(|(v, ty)| TensorVal { value: self.frames[level].arg(ArgKind::Carried(v), ty), level })
            .collect()
    }
    /// Ends the body: the next carried values and the values to stack. The results in the outer frame: carried, then stacks.
    ///
    /// # Errors
    /// If a carried value changes its type.
    pub fn leave(&mut self, count: i64, carried: &[TensorVal], stacks: &[TensorVal]) -> Result<Vec<TensorVal>, OpError> {
        let outputs: Vec<(String, Role, Value)> =
            carried.iter().chain(stacks).enumerate().map(|(i, t)| (format!("o{i}"), Role::Inner, self.here(*t))).collect();
        let frame = self.frames.pop().expect("the body's frame");
        let rank = |kind: &ArgKind| match kind {
            ArgKind::Carried(_) => 0,
            ArgKind::Constant(_) => 1,
            ArgKind::Stacked(_) => 2,
            ArgKind::Entry(..) => base::bug!("a body has no entry arguments"),
        };
        let mut order: Vec<usize> = (0..frame.args.len()).collect();
        order.sort_by_key(|i| rank(&frame.args[*i].0));
        let level = self.level();
        let operands: Vec<TensorVal> = order
            .iter()
            .map(|i| match frame.args[*i].0 {
                ArgKind::Carried(value) | ArgKind::Constant(value) | ArgKind::Stacked(value) => TensorVal { value, level },
                ArgKind::Entry(..) => base::bug!("a body has no entry arguments"),
            })
            .collect();
        let constant = frame.args.iter().filter(|a| rank(&a.0) == 1).count();
        let body = frame.finish("body", &order, outputs);
        self.apply(Op::Repeat(Box::new(Repeat { count, carried: carried.len(), constant, reverse: false, body })), &operands)
    }
    /// Drops the body that was begun last, after a mistake in it.
    pub fn abandon(&mut self) {
        self.frames.pop();
    }

    /// The finished entry point: arguments in the order of `args` (each exists), then outputs.
    pub fn finish(mut self, name: &str, args: &[(Role, String, TensorType)], outputs: Vec<(String, Role, TensorVal)>) -> Func {
        for (role, name, ty) in args {
            self.entry_arg(name, *role, ty);
        }
        let frame = self.frames.pop().expect("the entry point's frame");
        let index = |role: &Role, name: &String| frame.args.iter().position(|(k, _)| *k == ArgKind::Entry(*role, name.clone()));
        let order: Vec<usize> = args.iter().filter_map(|(role, name, _)| index(role, name)).collect();
        debug_assert_eq!(order.len(), frame.args.len(), "every argument is listed");
        frame.finish(name, &order, outputs.into_iter().map(|(n, r, t)| (n, r, t.value)).collect())
    }
}

/// The type of `ty` stacked over loops of these counts, outermost first.
pub fn stacked(ty: &TensorType, counts: &[i64]) -> TensorType {
    let shape: Vec<Dim> = counts.iter().map(|n| Dim::from(*n)).chain(ty.shape.iter().cloned()).collect();
    TensorType::new(ty.dtype, shape)
}
