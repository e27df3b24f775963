//! Divides the experts of a model among the members of a group. In: a module with `loss`, `norm` and `update`, before gradients are taken. Out:
//! what each member runs: of parameters with an axis of experts it has its share, and rows go to the member that has their expert and
//! come back.
//!
//! Before: `y = grouped_contract(x, w, offsets)`   After: `y = return(grouped_contract(exchange(x), w's share, own offsets))`. What is
//! computed row by row between two such products stays where the rows are. Parameters keep their names, but that the `*` of a divided axis
//! says where it starts: `experts.*+0`; member m's start at m times its share ([`of_member`]).

use super::StageError;
use crate::{
    ir::{Func, Module, Node, NodeId, Role, Value},
    op::{Contract, Exchange, Op, Repeat},
};
use base::{Dim, TensorType};
use std::collections::BTreeMap;

/// Each member's part of `module`, under the names of member 0; only `loss`, `norm` and `update` are kept.
///
/// # Errors
/// If the model has no experts, they are not shared evenly, or something needs those of all members.
pub fn divide_experts(module: &Module, members: i64) -> Result<Module, StageError> {
    let entry = |name: &str| module.func(name).ok_or_else(|| StageError::NoLayers(module.name.clone()));
    let loss = entry("loss")?;
    let (divided, found) = divide(loss, members, BTreeMap::new(), &|_| None)?;
    if found.is_empty() {
        return Err(StageError::NoExperts(module.name.clone()));
    }
    let mut axes: BTreeMap<&str, usize> = BTreeMap::new();
    for (arg, axis) in found {
        let name = &loss.args[arg].name;
        if loss.args[arg].role != Role::Param || name.split('.').filter(|p| p.starts_with('*')).count() <= axis {
            return Err(StageError::Together { what: name.clone(), why: "its experts have no numbers".into() });
        }
        axes.insert(name, axis);
    }
    let param = |name: &str| name.rsplit_once('#').map_or(name, |(p, _)| p).to_string();
    let axis_of = |name: &str, role: Role| match role {
        Role::Param | Role::Grad | Role::Moment | Role::Result => axes.get(&*param(name)).copied(),
        Role::State | Role::Input | Role::Tally | Role::Scalar | Role::Inner => None,
    };
    let mut funcs = vec![divided];
    for name in ["norm", "update"] {
        let func = entry(name)?;
        let given = func.args.iter().enumerate().filter_map(|(i, a)| Some((i, axis_of(&a.name, a.role)?))).collect();
        funcs.push(divide(func, members, given, &|o| axis_of(&func.outputs[o].name, func.outputs[o].role))?.0);
    }
    let renamed = |name: &str, role: Role| axis_of(name, role).map_or(name.to_string(), |axis| marked(name, axis));
    for f in &mut funcs {
        f.args.iter_mut().for_each(|a| a.name = renamed(&a.name, a.role));
        f.outputs.iter_mut().for_each(|o| o.name = renamed(&o.name, o.role));
    }
    let mut params = module.params.clone();
    for p in &mut params {
        if let Some(axis) = axis_of(&p.name, p.role) {
            p.ty.shape[axis] = share(&p.ty.shape[axis], members)?;
            p.name = marked(&p.name, axis);
        }
    }
    Ok(Module { name: module.name.clone(), params, funcs })
}

/// The name with the `*` of an axis as `*+0`.
fn marked(name: &str, axis: usize) -> String {
    let mut stars = 0;
    let part = |p: &str| {
        stars += usize::from(p.starts_with('*'));
        if p == "*" && stars == axis + 1 { "*+0".to_string() } else { p.to_string() }
    };
    name.split('.').map(part).collect::<Vec<_>>().join(".")
}

/// What a tensor of this shape, divided among members and called `name` in [`divide_experts`]'s module, is called by a member.
pub fn of_member(name: &str, shape: &[i64], member: i64) -> String {
    let mut axis = 0;
    let part = |p: &str| {
        let extent = shape.get(axis).copied().unwrap_or(0);
        axis += usize::from(p.starts_with('*'));
        match (p, extent * member) {
            ("*+0", 0) => "*".to_string(),
            ("*+0", first) => format!("*+{first}"),
            _ => p.to_string(),
        }
    };
    name.split('.').map(part).collect::<Vec<_>>().join(".")
}

/// An extent shared evenly.
fn share(extent: &Dim, members: i64) -> Result<Dim, StageError> {
    match extent.known() {
        Some(n) if n % members == 0 => Ok(Dim::from(n / members)),
        _ => Err(StageError::Uneven { experts: extent.to_string(), members }),
    }
}

/// The function with these arguments in shares, along the axis given, and all others that turn out to be divided; and which they are.
/// `shared` says along which axis an output is wanted as a share.
fn divide(
    func: &Func,
    members: i64,
    mut args: BTreeMap<usize, usize>,
    shared: &dyn Fn(usize) -> Option<usize>,
) -> Result<(Func, BTreeMap<usize, usize>), StageError> {
    // An argument that is needed as a share shows where it is read; then all is done again with it.
    loop {
        let mut d = Divider::new(func, members, &args)?;
        match d.outputs(shared) {
            Ok(()) => return Ok((d.to, args)),
            Err(Stop::Needs(arg, axis)) => _ = args.insert(arg, axis),
            Err(Stop::Not(e)) => return Err(e),
        }
    }
}

/// Why a function is not divided yet.
enum Stop {
    /// This argument is needed as a share along this axis.
    Needs(usize, usize),
    /// It cannot be.
    Not(StageError),
}

impl From<StageError> for Stop {
    fn from(e: StageError) -> Stop {
        Stop::Not(e)
    }
}

/// Copies from `from` to `to` what is asked for.
struct Divider<'f> {
    from: &'f Func,
    to: Func,
    members: i64,
    args: &'f BTreeMap<usize, usize>,
    whole: BTreeMap<Value, Value>,
    shares: BTreeMap<(Value, usize), Value>,
    /// Rows where their experts are.
    sent: BTreeMap<Value, Value>,
    /// Of offsets: those of all members, and of the rows that are here.
    told: BTreeMap<Value, [Value; 2]>,
    /// Of values that are computed row by row from a divided product: its offsets.
    rows_of: BTreeMap<Value, Option<Value>>,
}

impl<'f> Divider<'f> {
    fn new(from: &'f Func, members: i64, args: &'f BTreeMap<usize, usize>) -> Result<Divider<'f>, StageError> {
        let (whole, shares, sent) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let to = Func::new(&from.name);
        let mut d = Divider { from, to, members, args, whole, shares, sent, told: BTreeMap::new(), rows_of: BTreeMap::new() };
        for (i, (arg, v, ty)) in from.arg_values().enumerate() {
            let mut ty = ty.clone();
            if let Some(axis) = args.get(&i) {
                ty.shape[*axis] = share(&ty.shape[*axis], members)?;
                let new = d.to.arg(&arg.name, arg.role, ty);
                d.shares.insert((v, *axis), new);
            } else {
                let new = d.to.arg(&arg.name, arg.role, ty);
                d.whole.insert(v, new);
            }
        }
        Ok(d)
    }
    fn outputs(&mut self, shared: &dyn Fn(usize) -> Option<usize>) -> Result<(), Stop> {
        for (i, o) in self.from.outputs.iter().enumerate() {
            let value = match shared(i) {
                Some(axis) => self.share(o.value, axis)?,
                None => self.whole(o.value)?,
            };
            self.to.output(&o.name, o.role, value);
        }
        Ok(())
    }
    fn not<T>(&self, v: Value, why: &str) -> Result<T, Stop> {
        let node = &self.from.nodes[v.node];
        let what = match &node.op {
            Op::Arg(i) => self.from.args[*i as usize].name.clone(),
            op => format!("'{}' of {}", op.name(), self.from.name),
        };
        Err(Stop::Not(StageError::Together { what, why: why.into() }))
    }
    fn add(&mut self, op: Op, inputs: &[Value], like: NodeId) -> Result<NodeId, Stop> {
        let what = op.name();
        let made = self.to.add(op, inputs, self.from.nodes[like].origin);
        made.map_err(|e| Stop::Not(StageError::Together { what: format!("'{what}' of {}", self.from.name), why: e.0 }))
    }

    /// `v` as it is without a group.
    fn whole(&mut self, v: Value) -> Result<Value, Stop> {
        if let Some(done) = self.whole.get(&v) {
            return Ok(*done);
        }
        let node = self.from.nodes[v.node].clone();
        let made = match &node.op {
            Op::Arg(_) => return self.not(v, "it is needed whole where only some experts are"),
            Op::Repeat(r) => self.repeat(&node, r, v.node)?,
            Op::GroupedContract { .. } if self.rows_of(v).is_some() => {
                let offsets = self.rows_of(v).expect("just seen");
                let (rows, [all, _]) = (self.sent(v)?, self.told(offsets, v.node)?);
                self.add(Op::Exchange { what: Exchange::Back, members: self.members }, &[rows, all], v.node)?
            }
            _ => {
                let inputs = node.inputs.iter().map(|x| self.whole(*x)).collect::<Result<Vec<_>, _>>()?;
                self.to.nodes.push(Node { inputs, ..node.clone() })
            }
        };
        for index in 0..node.types.len() as u32 {
            self.whole.insert(Value { node: v.node, index }, Value { node: made, index });
        }
        Ok(Value { node: made, index: v.index })
    }

    /// A loop whose body is divided.
    fn repeat(&mut self, node: &Node, r: &Repeat, id: NodeId) -> Result<NodeId, Stop> {
        let (body, args) = divide(&r.body, self.members, BTreeMap::new(), &|_| None)?;
        let mut inputs = Vec::new();
        for (i, x) in node.inputs.iter().enumerate() {
            inputs.push(match args.get(&i) {
                None => self.whole(*x)?,
                Some(_) if i < r.carried => return self.not(*x, "a loop carries it"),
                Some(axis) => self.share(*x, axis + usize::from(i >= r.carried + r.constant))?,
            });
        }
        self.add(Op::Repeat(Box::new(Repeat { body, ..r.clone() })), &inputs, id)
    }

    /// This member's share of `v` along an axis of experts.
    fn share(&mut self, v: Value, axis: usize) -> Result<Value, Stop> {
        if let Some(done) = self.shares.get(&(v, axis)) {
            return Ok(*done);
        }
        let node = self.from.nodes[v.node].clone();
        let own = || share(&self.from.ty(v).shape[axis], self.members);
        let x = node.inputs.first().copied();
        let (op, inputs) = match &node.op {
            Op::Arg(i) if !self.args.contains_key(&(*i as usize)) => return Err(Stop::Needs(*i as usize, axis)),
            Op::Map(_) | Op::Cast(_) | Op::StopGradient => {
                (node.op.clone(), node.inputs.iter().map(|x| self.share(*x, axis)).collect::<Result<Vec<_>, _>>()?)
            }
            Op::Slice { axis: a, .. } | Op::Pad { axis: a, .. } | Op::Concat(a) if *a != axis => {
                (node.op.clone(), node.inputs.iter().map(|x| self.share(*x, axis)).collect::<Result<Vec<_>, _>>()?)
            }
            Op::Broadcast { shape, axes } => {
                let mut shape = shape.clone();
                shape[axis] = own()?;
                let x = x.expect("its operand");
                let x = match axes.iter().position(|a| *a == axis) {
                    Some(i) => self.share(x, i)?,
                    None => self.whole(x)?,
                };
                (Op::Broadcast { shape, axes: axes.clone() }, vec![x])
            }
            Op::Reduce(_, axes) => {
                let x = x.expect("its operand");
                let kept: Vec<usize> = (0..self.from.ty(x).rank()).filter(|a| !axes.contains(a)).collect();
                (node.op.clone(), vec![self.share(x, kept[axis])?])
            }
            Op::Transpose(perm) => (node.op.clone(), vec![self.share(x.expect("its operand"), perm[axis])?]),
            Op::Reshape(shape) => {
                let x = x.expect("its operand");
                let Some(old) = kept_axis(&self.from.ty(x).shape, shape, axis) else {
                    return self.not(v, "it treats experts together");
                };
                let mut shape = shape.clone();
                shape[axis] = own()?;
                (Op::Reshape(shape), vec![self.share(x, old)?])
            }
            // Blocks are of the last axis, or the last two.
            Op::Quantize(block) | Op::Dequantize(block) if axis + block.axes() < self.from.ty(v).rank() => {
                (node.op.clone(), node.inputs.iter().map(|x| self.share(*x, axis)).collect::<Result<Vec<_>, _>>()?)
            }
            Op::Contract(c) => (node.op.clone(), self.factors(c, &node, axis)?),
            _ => return self.not(v, "it treats experts together"),
        };
        let made = Value { node: self.add(op, &inputs, v.node)?, index: v.index };
        self.shares.insert((v, axis), made);
        Ok(made)
    }
    /// The operands of a contraction's share: those that have the axis are shared along it.
    fn factors(&mut self, c: &Contract, node: &Node, axis: usize) -> Result<Vec<Value>, Stop> {
        let mut out = Vec::new();
        for (labels, x) in [&c.lhs, &c.rhs].into_iter().zip(&node.inputs) {
            out.push(match labels.iter().position(|l| *l == c.out[axis]) {
                Some(i) => self.share(*x, i)?,
                None => self.whole(*x)?,
            });
        }
        Ok(out)
    }

    /// All members' offsets and those of the rows that are here, for offsets of this member's own rows.
    fn told(&mut self, offsets: Value, like: NodeId) -> Result<[Value; 2], Stop> {
        if let Some(told) = self.told.get(&offsets) {
            return Ok(*told);
        }
        let x = self.whole(offsets)?;
        let node = self.add(Op::Exchange { what: Exchange::Offsets, members: self.members }, &[x], like)?;
        let told = [0, 1].map(|index| Value { node, index });
        self.told.insert(offsets, told);
        Ok(told)
    }

    /// The offsets of the divided product that `v` is computed from row by row, if there is one.
    fn rows_of(&mut self, v: Value) -> Option<Value> {
        if let Some(known) = self.rows_of.get(&v) {
            return *known;
        }
        let node = &self.from.nodes[v.node];
        let found = match &node.op {
            Op::GroupedContract { .. } => is_of_argument(self.from, node.inputs[1]).then_some(node.inputs[2]),
            _ => row_inputs(self.from, v).into_iter().find_map(|x| self.rows_of(x)),
        };
        self.rows_of.insert(v, found);
        found
    }

    /// `v`, computed row by row, where the experts of its rows are.
    fn sent(&mut self, v: Value) -> Result<Value, Stop> {
        if let Some(done) = self.sent.get(&v) {
            return Ok(*done);
        }
        let offsets = self.rows_of(v).expect("asked of what is computed from a divided product");
        let node = self.from.nodes[v.node].clone();
        let more = |n: &Dim| n.clone() * Dim::from(self.members);
        let op = match &node.op {
            Op::GroupedContract { .. } => {
                let w = self.share(node.inputs[1], 0)?;
                let (x, [_, own]) = (self.rows(node.inputs[0], offsets)?, self.told(offsets, v.node)?);
                let made = Value { node: self.add(node.op.clone(), &[x, w, own], v.node)?, index: 0 };
                self.sent.insert(v, made);
                return Ok(made);
            }
            Op::Reshape(shape) => Op::Reshape([vec![more(&shape[0])], shape[1..].to_vec()].concat()),
            Op::Broadcast { shape, axes } => {
                Op::Broadcast { shape: [vec![more(&shape[0])], shape[1..].to_vec()].concat(), axes: axes.clone() }
            }
            op => op.clone(),
        };
        let inputs = node.inputs.iter().map(|x| self.rows(*x, offsets)).collect::<Result<Vec<_>, _>>()?;
        let made = Value { node: self.add(op, &inputs, v.node)?, index: v.index };
        self.sent.insert(v, made);
        Ok(made)
    }
    /// Rows where their experts are: computed there, the same for every row, or sent.
    fn rows(&mut self, v: Value, offsets: Value) -> Result<Value, Stop> {
        match self.rows_of(v) {
            Some(of) if of == offsets => return self.sent(v),
            Some(_) => return self.not(v, "its rows are of two routings"),
            None => {}
        }
        if let Some(done) = self.sent.get(&v) {
            return Ok(*done);
        }
        let node = self.from.nodes[v.node].clone();
        let members = Dim::from(self.members);
        let made = match &node.op {
            Op::Broadcast { shape, axes } if axes.first() != Some(&0) => {
                let shape = [vec![shape[0].clone() * members], shape[1..].to_vec()].concat();
                let x = self.whole(node.inputs[0])?;
                self.add(Op::Broadcast { shape, axes: axes.clone() }, &[x], v.node)?
            }
            _ => {
                let (x, [all, _]) = (self.whole(v)?, self.told(offsets, v.node)?);
                let ty: TensorType = self.from.ty(v).clone();
                let Some((rows, row)) = ty.shape.split_first() else { return self.not(v, "it has no rows") };
                let width = row.iter().fold(Dim::from(1), |n, d| n * d.clone());
                let is_flat = row.len() == 1;
                let x = if is_flat { x } else { self.one(Op::Reshape(vec![rows.clone(), width]), &[x], v.node)? };
                let exchange = Op::Exchange { what: Exchange::There, members: self.members };
                let sent = self.one(exchange, &[x, all], v.node)?;
                let shape = [vec![rows.clone() * members], row.to_vec()].concat();
                if is_flat { sent.node } else { self.add(Op::Reshape(shape), &[sent], v.node)? }
            }
        };
        let made = Value { node: made, index: 0 };
        self.sent.insert(v, made);
        Ok(made)
    }
    fn one(&mut self, op: Op, inputs: &[Value], like: NodeId) -> Result<Value, Stop> {
        Ok(Value { node: self.add(op, inputs, like)?, index: 0 })
    }
}

/// The operands whose rows become those of `v`; none if `v` is not computed row by row.
fn row_inputs(func: &Func, v: Value) -> Vec<Value> {
    let node = &func.nodes[v.node];
    let rows = |x: &Value| func.ty(*x).shape.first() == func.ty(v).shape.first();
    let by_row = match &node.op {
        Op::Map(_) | Op::Cast(_) | Op::StopGradient => func.ty(v).rank() > 0,
        Op::Broadcast { axes, .. } => axes.first() == Some(&0),
        Op::Reduce(_, axes) => !axes.contains(&0) && func.ty(v).rank() > 0,
        Op::Transpose(perm) => perm.first() == Some(&0),
        Op::Slice { axis, .. } | Op::Pad { axis, .. } | Op::Concat(axis) => *axis > 0,
        Op::Reshape(shape) => !shape.is_empty() && rows(&node.inputs[0]),
        Op::Quantize(block) | Op::Dequantize(block) => func.ty(v).rank() > block.axes(),
        _ => false,
    };
    if by_row { node.inputs.clone() } else { Vec::new() }
}

/// Whether a value depends on arguments alone through ops that keep its axes apart: a matrix that may be divided.
fn is_of_argument(func: &Func, v: Value) -> bool {
    let node = &func.nodes[v.node];
    match &node.op {
        Op::Arg(_) => true,
        Op::Map(_)
        | Op::Cast(_)
        | Op::StopGradient
        | Op::Broadcast { .. }
        | Op::Reduce(..)
        | Op::Transpose(_)
        | Op::Reshape(_)
        | Op::Slice { .. }
        | Op::Pad { .. }
        | Op::Quantize(_)
        | Op::Dequantize(_)
        | Op::Concat(_) => node.inputs.iter().any(|x| is_of_argument(func, *x)),
        _ => false,
    }
}

/// The axis of `old` that is axis `axis` of `new`, if a reshape keeps it as it is.
fn kept_axis(old: &[Dim], new: &[Dim], axis: usize) -> Option<usize> {
    let product = |dims: &[Dim]| dims.iter().fold(Dim::from(1), |n, d| n * d.clone());
    let before = product(&new[..axis]);
    (0..old.len()).find(|a| old[*a] == new[axis] && product(&old[..*a]) == before)
}

#[cfg(test)]
mod tests;
