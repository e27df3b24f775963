//! Walks the long axis of regions of the form `stream` in chunks, so that what has that axis is never whole in memory: a loop over the chunks, and
//! what is left after it. In: any function. Out: the same without such regions, where their axis is longer than a chunk.
//!
//! Values of a region are *along* the axis, or *whole*. A reduction over the axis is *folded*: each turn reduces its chunk and joins it with what was
//! carried. A sum of exponentials of x − m, m the maximum of x, is folded with the maximum so far and scaled where that grows, so that one pass is
//! enough:
//! ```text
//! m' = max(m, max x)    s' = s·exp(m − m') + Σ exp(x − m')
//! ```
//! The order of sums is that of chunks and then of elements; it depends on the axis's extent and on nothing else.
//! # Source: Milakov and Gimelshein, Online normalizer calculation for softmax, 2018, algorithm 3.

use super::{Stats, rewrite};
use crate::{
    build::Builder,
    ir::{Func, Node, NodeId, Role, Value},
    op::{Form, Fused, MapFn, Op, ReduceFn, Repeat},
};
use base::{Dim, Span, TensorType, arena::Id};
use std::collections::{BTreeMap, BTreeSet};

/// Elements of the axis in a chunk: enough columns for a product at full speed, few enough for a chunk of a few hundred rows to stay in cache.
pub const CHUNK: i64 = 2048;

/// See the module.
pub fn stream_fused(func: &mut Func) -> Stats {
    stream_fused_by(func, CHUNK)
}

/// The same in chunks of this many elements.
pub fn stream_fused_by(func: &mut Func, chunk: i64) -> Stats {
    rewrite(func, &mut |func, node| match &node.op {
        Op::Fused(f) => Stream::of(f, chunk).map(|s| s.expand(func, &node.inputs, node.origin)),
        _ => None,
    })
}

/// A region that can be walked in chunks.
#[derive(Clone, Debug)]
pub struct Stream<'a> {
    body: &'a Func,
    /// The axis's extent.
    pub extent: i64,
    /// Elements of a chunk.
    pub chunk: i64,
    /// Which axis of a node's value it is, by node; none of what is whole.
    along: Vec<Option<usize>>,
    /// The folds that a node's value is computed from, by node.
    needs: Vec<BTreeSet<usize>>,
    folds: Vec<Fold>,
}

/// A reduction over the axis.
#[derive(Clone, Debug)]
struct Fold {
    node: NodeId,
    how: ReduceFn,
    /// The fold that the exponents have been lessened by.
    max: Option<usize>,
}

fn first(node: NodeId) -> Value {
    Value { node, index: 0 }
}

impl<'a> Stream<'a> {
    /// The region as one, if it is.
    pub fn of(region: &'a Fused, chunk: i64) -> Option<Stream<'a>> {
        let body = &region.body;
        let n = body.nodes.len();
        // The longest axis that is reduced.
        let extent = |id: NodeId, a: usize| body.ty(body.nodes[id].inputs[0]).shape[a].known();
        let reduced = body.nodes.iter().flat_map(|(id, node)| match &node.op {
            Op::Reduce(_, axes) => axes.iter().filter_map(|a| Some((extent(id, *a)?, id, *a))).collect(),
            _ => Vec::new(),
        });
        let reduced: Vec<(i64, NodeId, usize)> = reduced.collect();
        let longest = reduced.iter().map(|r| r.0).max().filter(|n| *n > chunk && region.form == Form::Stream)?;
        let (along, needs) = (vec![None; n], vec![BTreeSet::new(); n]);
        let mut s = Stream { body, extent: longest, chunk, along, needs, folds: Vec::new() };
        for (_, id, a) in reduced.iter().filter(|r| r.0 == longest) {
            s.mark(body.nodes[*id].inputs[0], *a)?;
        }
        for (id, node) in body.nodes.iter() {
            let i = id.index();
            s.needs[i] = node.inputs.iter().flat_map(|v| s.needs[v.node.index()].clone()).collect();
            if s.along[i].is_none() && node.inputs.iter().any(|v| s.axis(*v).is_some()) {
                let fold = s.fold(id, node)?;
                s.needs[i] = [s.folds.len()].into();
                s.folds.push(fold);
            }
        }
        let whole = body.outputs.iter().all(|o| s.axis(o.value).is_none());
        (whole && !s.folds.is_empty()).then_some(s)
    }
    /// Turns, and elements left after the last.
    pub fn turns(&self) -> (i64, i64) {
        (self.extent / self.chunk, self.extent % self.chunk)
    }

    /// How often a node of the body is computed: once a chunk, or once.
    pub fn turns_of(&self, node: NodeId) -> i64 {
        let (turns, rest) = self.turns();
        let streamed = self.along[node.index()].is_some() || self.folds.iter().any(|f| f.node == node);
        if streamed { turns + i64::from(rest > 0) } else { 1 }
    }

    fn axis(&self, v: Value) -> Option<usize> {
        self.along[v.node.index()].filter(|_| v.index == 0)
    }
    /// Notes that axis `a` of a value is the one, and of what it is computed from.
    fn mark(&mut self, v: Value, a: usize) -> Option<()> {
        if let Some(known) = self.axis(v) {
            return (known == a).then_some(());
        }
        self.along[v.node.index()] = Some(a);
        let node = self.body.def(v);
        let only = node.inputs.first().copied();
        let mut below = |v: Option<Value>, a: Option<usize>| self.mark(v?, a?);
        match &node.op {
            Op::Arg(_) => Some(()),
            Op::Map(_) | Op::Cast(_) | Op::StopGradient => node.inputs.iter().try_for_each(|x| below(Some(*x), Some(a))),
            Op::Broadcast { axes, .. } => match axes.iter().position(|x| *x == a) {
                Some(at) => below(only, Some(at)),
                None => Some(()),
            },
            Op::Transpose(perm) => below(only, Some(perm[a])),
            Op::Contract(c) => [&c.lhs, &c.rhs].into_iter().zip(&node.inputs).try_for_each(|(letters, x)| {
                match letters.iter().position(|l| *l == c.out[a]) {
                    Some(at) => below(Some(*x), Some(at)),
                    None => Some(()),
                }
            }),
            Op::Const(..)
            | Op::Extent(..)
            | Op::Iota(_)
            | Op::Reduce(..)
            | Op::Reshape(_)
            | Op::Slice { .. }
            | Op::Concat(_)
            | Op::Pad { .. }
            | Op::Gather { .. }
            | Op::ScatterAdd { .. }
            | Op::TopK(_)
            | Op::Cumsum { .. }
            | Op::Attend(_)
            | Op::AttendGrad(_)
            | Op::Route { .. }
            | Op::GroupedContract { .. }
            | Op::GroupedOuter
            | Op::Exchange { .. }
            | Op::Quantize(_)
            | Op::Dequantize(_)
            | Op::Repeat(_)
            | Op::Fused(_) => None,
        }
    }
    /// A node that is whole and reads what is along, as a fold.
    fn fold(&self, id: NodeId, node: &Node) -> Option<Fold> {
        let (Op::Reduce(how, axes), x) = (&node.op, *node.inputs.first()?) else { return None };
        let a = self.axis(x)?;
        // What is carried is rounded once a turn, so it has to be of the dtype of sums.
        let dtype = node.types[0].dtype;
        if *axes != [a] || !dtype.is_float() || dtype != dtype.accumulator() {
            return None;
        }
        let needs: Vec<usize> = self.needs[x.node.index()].iter().copied().collect();
        match needs[..] {
            [] => Some(Fold { node: id, how: *how, max: None }),
            [m] => {
                let max = &self.folds[m];
                let same = self.body.nodes[max.node].types == node.types;
                let fits = *how == ReduceFn::Sum && max.how == ReduceFn::Max && max.max.is_none() && same;
                (fits && self.is_scaled(x, max.node, a)).then_some(Fold { node: id, how: *how, max: Some(m) })
            }
            _ => None,
        }
    }
    /// Whether a value is exp(x − m), or that times something, with `m` of each row.
    fn is_scaled(&self, v: Value, m: NodeId, a: usize) -> bool {
        let node = self.body.def(v);
        let free = |x: &Value| self.needs[x.node.index()].is_empty();
        match &node.op {
            Op::Map(MapFn::Mul) => [[0, 1], [1, 0]].iter().any(|[x, y]| {
                let (x, y) = (node.inputs[*x], node.inputs[*y]);
                free(&y) && self.is_scaled(x, m, a)
            }),
            Op::Map(MapFn::Exp) => {
                let exponent = self.body.def(node.inputs[0]);
                let (Op::Map(MapFn::Sub), [x, by]) = (&exponent.op, &exponent.inputs[..]) else { return false };
                let rows = (0..self.body.ty(v).rank()).filter(|i| *i != a);
                match &self.body.def(*by).op {
                    Op::Broadcast { axes, .. } => {
                        free(x) && self.body.def(*by).inputs == [first(m)] && axes.iter().copied().eq(rows)
                    }
                    _ => false,
                }
            }
            _ => false,
        }
    }

    /// Appends the loop and what is left; returns the region's results.
    fn expand(&self, func: &mut Func, inputs: &[Value], origin: Option<Span>) -> Vec<Value> {
        let body = self.body;
        let mut b = Builder { func, origin };
        let mut whole: BTreeMap<Value, Value> = body.arg_values().map(|(_, v, _)| v).zip(inputs.iter().copied()).collect();
        let is_whole = |i: usize| self.along[i].is_none() && !self.folds.iter().any(|f| f.node.index() == i);
        for (id, node) in body.nodes.iter().skip(body.args.len()) {
            if is_whole(id.index()) && self.needs[id.index()].is_empty() {
                copy(&mut b, id, node, &mut whole);
            }
        }
        let streamed: Vec<(Value, usize)> = body.arg_values().filter_map(|(_, v, _)| Some((v, self.axis(v)?))).collect();
        let mut constant: Vec<Value> = Vec::new();
        for (id, node) in body.nodes.iter().filter(|(id, _)| !is_whole(id.index())) {
            let reads = node.inputs.iter().filter(|v| self.axis(**v).is_none() && self.needs[v.node.index()].is_empty());
            for v in reads.filter(|_| !matches!(body.nodes[id].op, Op::Arg(_))) {
                if !constant.contains(v) {
                    constant.push(*v);
                }
            }
        }

        let mut carried: Vec<Value> = self.folds.iter().map(|f| neutral(&mut b, f.how, &body.nodes[f.node].types[0])).collect();
        let (turns, rest) = self.turns();
        let mut inner = Func::new("body");
        let inside = |inner: &mut Func, name: String, ty: TensorType| inner.arg(&name, Role::Inner, ty);
        let before: Vec<Value> =
            carried.iter().enumerate().map(|(i, v)| inside(&mut inner, format!("c{i}"), b.func.ty(*v).clone())).collect();
        let mut map = BTreeMap::new();
        for (i, v) in constant.iter().enumerate() {
            map.insert(*v, inside(&mut inner, format!("k{i}"), body.ty(*v).clone()));
        }
        for (i, (v, a)) in streamed.iter().enumerate() {
            let mut ty = body.ty(*v).clone();
            ty.shape[*a] = Dim::from(self.chunk);
            map.insert(*v, inside(&mut inner, format!("s{i}"), ty));
        }
        let after = self.turn(&mut Builder { func: &mut inner, origin }, map, &before, self.chunk);
        after.iter().enumerate().for_each(|(i, v)| inner.output(&format!("c{i}"), Role::Inner, *v));
        let mut operands = carried.clone();
        operands.extend(constant.iter().map(|v| whole[v]));
        operands.extend(streamed.iter().map(|(v, a)| self.stacked(&mut b, whole[v], *a)));
        let (count, carries, same) = (turns, carried.len(), constant.len());
        let repeat = Repeat { count, carried: carries, constant: same, reverse: false, body: inner };
        carried = b.node(Op::Repeat(Box::new(repeat)), &operands);
        if rest > 0 {
            let mut map: BTreeMap<Value, Value> = constant.iter().map(|v| (*v, whole[v])).collect();
            for (v, axis) in &streamed {
                let (start, len) = (Dim::from(turns * self.chunk), Dim::from(rest));
                map.insert(*v, b.op(Op::Slice { axis: *axis, start, len, step: 1 }, &[whole[v]]));
            }
            carried = self.turn(&mut b, map, &carried, rest);
        }
        for (fold, v) in self.folds.iter().zip(&carried) {
            // Where the maximum is infinite the exponents are no numbers, nor is their sum: m − m is 0, or none.
            let value = match fold.max {
                Some(m) => {
                    let none = b.map(MapFn::Sub, &[carried[m], carried[m]]);
                    b.add(*v, none)
                }
                None => *v,
            };
            whole.insert(first(fold.node), value);
        }
        for (id, node) in body.nodes.iter().skip(body.args.len()) {
            if is_whole(id.index()) && !self.needs[id.index()].is_empty() {
                copy(&mut b, id, node, &mut whole);
            }
        }
        body.outputs.iter().map(|o| whole[&o.value]).collect()
    }
    /// The chunks of an operand, stacked along a first axis; the rest left out.
    fn stacked(&self, b: &mut Builder, x: Value, axis: usize) -> Value {
        let (turns, rest) = self.turns();
        let start = Dim::from(0);
        let len = Dim::from(turns * self.chunk);
        let x = if rest == 0 { x } else { b.op(Op::Slice { axis, start, len, step: 1 }, &[x]) };
        let mut shape = b.func.ty(x).shape.clone();
        shape[axis] = Dim::from(self.chunk);
        shape.insert(axis, Dim::from(turns));
        let x = b.reshape(x, &shape);
        let perm: Vec<usize> = [axis].into_iter().chain((0..shape.len()).filter(|i| *i != axis)).collect();
        b.transpose(x, &perm)
    }
    /// The folds after a chunk of `len` elements, from those before it. `map` has the chunk of each streamed operand and all that is whole.
    fn turn(&self, b: &mut Builder, mut map: BTreeMap<Value, Value>, before: &[Value], len: i64) -> Vec<Value> {
        let mut after: Vec<Value> = Vec::new();
        let mut factors: BTreeMap<usize, Value> = BTreeMap::new();
        for (id, node) in self.body.nodes.iter().skip(self.body.args.len()) {
            let inputs = |map: &BTreeMap<Value, Value>| node.inputs.iter().map(|v| map[v]).collect::<Vec<Value>>();
            if let Some(a) = self.along[id.index()] {
                let op = match &node.op {
                    Op::Broadcast { shape, axes } => {
                        let mut shape = shape.clone();
                        shape[a] = Dim::from(len);
                        Op::Broadcast { shape, axes: axes.clone() }
                    }
                    op => op.clone(),
                };
                let value = b.op(op, &inputs(&map));
                map.insert(first(id), value);
            }
            let Some(i) = self.folds.iter().position(|f| f.node == id) else { continue };
            let part = b.op(node.op.clone(), &inputs(&map));
            let fold = &self.folds[i];
            let value = match fold.max {
                Some(m) => {
                    let scaled = b.mul(before[i], factors[&m]);
                    b.add(scaled, part)
                }
                None => b.map(fold.how.joins(), &[before[i], part]),
            };
            after.push(value);
            if self.folds.iter().any(|f| f.max == Some(i)) {
                // Nothing yet but −∞ is as good as a maximum of 0: all exponentials are 0.
                let (least, zero) = (b.full_like(value, f64::NEG_INFINITY), b.full_like(value, 0.0));
                let none = b.map(MapFn::Eq, &[value, least]);
                let safe = b.map(MapFn::Select, &[none, zero, value]);
                let less = b.map(MapFn::Sub, &[before[i], safe]);
                factors.insert(i, b.map(MapFn::Exp, &[less]));
                map.insert(first(id), safe);
            }
        }
        after
    }
}

/// Appends a node of the body as it is.
fn copy(b: &mut Builder, id: NodeId, node: &Node, map: &mut BTreeMap<Value, Value>) {
    let inputs: Vec<Value> = node.inputs.iter().map(|v| map[v]).collect();
    let results = b.node(node.op.clone(), &inputs);
    map.extend(results.into_iter().enumerate().map(|(i, v)| (Value { node: id, index: i as u32 }, v)));
}

/// What reducing nothing gives.
fn neutral(b: &mut Builder, how: ReduceFn, ty: &TensorType) -> Value {
    let x = match how {
        ReduceFn::Sum => 0.0,
        ReduceFn::Prod => 1.0,
        ReduceFn::Max => f64::NEG_INFINITY,
        ReduceFn::Min => f64::INFINITY,
    };
    let c = b.constant(x, ty.dtype);
    b.splat(c, &ty.shape)
}

#[cfg(test)]
mod tests;
