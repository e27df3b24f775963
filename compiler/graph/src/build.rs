//! Shorthands for building functions from Rust: each appends a node and returns its value. For code that already knows the
//! types fit (autodiff, passes, tests); a misfit is our bug.

use crate::{
    ir::{Func, Value},
    op::{Contract, MapFn, Op, ReduceFn, Scalar},
};
use base::{DType, Dim, Span};

/// A function being built, with the source text new nodes stand for.
pub struct Builder<'f> {
    /// The function.
    pub func: &'f mut Func,
    /// The origin of new nodes.
    pub origin: Option<Span>,
}

impl<'f> Builder<'f> {
    /// A builder that appends to `func`.
    pub fn new(func: &'f mut Func) -> Self {
        Builder { func, origin: None }
    }
    /// All results of a new node.
    pub fn node(&mut self, op: Op, inputs: &[Value]) -> Vec<Value> {
        let name = op.name();
        match self.func.add(op, inputs, self.origin) {
            Ok(node) => (0..self.func.nodes[node].types.len() as u32).map(|index| Value { node, index }).collect(),
            Err(e) => base::bug!("{name}: {e}"),
        }
    }
    /// The single result of a new node.
    pub fn op(&mut self, op: Op, inputs: &[Value]) -> Value {
        self.node(op, inputs)[0]
    }
    /// Elementwise; the operands have one shape.
    pub fn map(&mut self, f: MapFn, inputs: &[Value]) -> Value {
        self.op(Op::Map(f), inputs)
    }
    /// The sum of two.
    pub fn add(&mut self, a: Value, b: Value) -> Value {
        self.map(MapFn::Add, &[a, b])
    }
    /// The product of two.
    pub fn mul(&mut self, a: Value, b: Value) -> Value {
        self.map(MapFn::Mul, &[a, b])
    }
    /// A scalar constant.
    pub fn constant(&mut self, x: f64, dtype: DType) -> Value {
        self.op(Op::Const(Scalar::new(x), dtype), &[])
    }
    /// A constant of the type of `like`.
    pub fn full_like(&mut self, like: Value, x: f64) -> Value {
        let t = self.func.ty(like).clone();
        let c = self.constant(x, t.dtype);
        self.splat(c, &t.shape)
    }
    /// A scalar repeated to `shape`.
    pub fn splat(&mut self, scalar: Value, shape: &[Dim]) -> Value {
        if shape.is_empty() { scalar } else { self.broadcast(scalar, shape, &[]) }
    }
    /// See [`Op::Broadcast`].
    pub fn broadcast(&mut self, x: Value, shape: &[Dim], axes: &[usize]) -> Value {
        self.op(Op::Broadcast { shape: shape.to_vec(), axes: axes.to_vec() }, &[x])
    }
    /// A sum over axes.
    pub fn sum(&mut self, x: Value, axes: &[usize]) -> Value {
        if axes.is_empty() { x } else { self.op(Op::Reduce(ReduceFn::Sum, axes.to_vec()), &[x]) }
    }
    /// A conversion, or the value itself if it has that dtype.
    pub fn cast(&mut self, x: Value, dtype: DType) -> Value {
        if self.func.ty(x).dtype == dtype { x } else { self.op(Op::Cast(dtype), &[x]) }
    }
    /// See [`Op::Reshape`].
    pub fn reshape(&mut self, x: Value, shape: &[Dim]) -> Value {
        if self.func.ty(x).shape == shape { x } else { self.op(Op::Reshape(shape.to_vec()), &[x]) }
    }
    /// See [`Op::Transpose`].
    pub fn transpose(&mut self, x: Value, perm: &[usize]) -> Value {
        if perm.iter().copied().eq(0..perm.len()) { x } else { self.op(Op::Transpose(perm.to_vec()), &[x]) }
    }
    /// Einstein summation, `"btd,dh->bth"`.
    pub fn contract(&mut self, spec: &str, a: Value, b: Value) -> Value {
        let spec: Contract = spec.parse().unwrap_or_else(|e| base::bug!("{e}"));
        self.op(Op::Contract(spec), &[a, b])
    }
}
