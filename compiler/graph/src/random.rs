//! Random well-typed programs, for tests that hold a stage against the interpreter. A program is a pure function of its seed.
//!
//! A program grows from a few arguments, one op at a time: an op is drawn from [`GROWTHS`], its operands are values that are there, made to
//! fit by casts, reductions and broadcasts where they do not. Each node is evaluated as it is added, so that no slice leaves its axis and
//! few numbers grow beyond what narrow floats hold. Extents are run-time dims and constants: 0, 1, primes, and a little more than a power
//! of two, where loops have remainders.

use crate::{
    interp::{self, Options as InterpOptions, Tensor},
    ir::{Func, Module, Node, NodeId, Role, Value},
    op::{self, Attend, Contract, Domain, Exchange, Form, Fused, MapFn, Op, ReduceFn, Repeat, Scalar, map::Kind},
};
use base::{DType, Dim, DimEnv, TensorType};
use std::{collections::BTreeSet, rc::Rc};

/// Pseudo-random numbers. # Source: Steele, Lea and Flood, Fast splittable pseudorandom number generators, 2014.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// In `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / 2f64.powi(53)
    }
    /// In `0..n`; `n` is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }
    /// True once in `n` times.
    pub fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
    /// One of them, or none of none.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        if items.is_empty() { None } else { Some(&items[self.below(items.len())]) }
    }
}

/// What programs are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How many ops are drawn; those they need to fit their operands come on top.
    pub ops: usize,
    /// The most elements a value has.
    pub max_elems: i64,
}

impl Default for Options {
    fn default() -> Options {
        Options { ops: 10, max_elems: 1200 }
    }
}

/// A program with what to run it on.
#[derive(Clone, Debug)]
pub struct Program {
    /// One function, `f`; its arguments have the role `Input`, its outputs `Result`.
    pub module: Module,
    /// Values of its run-time dims.
    pub dims: DimEnv,
}

impl Program {
    /// The function.
    pub fn func(&self) -> &Func {
        &self.module.funcs[0]
    }
}

/// The program of a seed.
pub fn program(seed: u64, options: Options) -> Program {
    let mut random = Random::new(seed);
    let dims =
        DimEnv::from([("B".into(), pick(&mut random, &[1, 2, 3])), ("T".into(), pick(&mut random, &[1, 2, 3, 5, 7, 11, 19]))]);
    let mut palette = vec![Dim::sym("B"), Dim::sym("T")];
    for _ in 0..3 {
        palette.push(Dim::from(pick(&mut random, &[1, 2, 2, 3, 3, 4, 4, 5, 7, 8, 8, 9, 16, 17, 33])));
    }
    if random.once_in(12) {
        palette.push(Dim::from(0));
    }
    let floats = match random.below(8) {
        0 => vec![DType::F64],
        1 => vec![DType::BF16, DType::F32],
        2 => vec![DType::F16, DType::F32],
        3 => vec![DType::BF16],
        _ => vec![DType::F32],
    };
    let mut g =
        Grower { func: Func::new("f"), known: Vec::new(), dims: dims.clone(), palette, floats, depth: 0, options, random };
    for i in 0..2 + g.random.below(4) {
        let mut shape = g.shape();
        while !g.fits(&shape) {
            shape.pop();
        }
        let dtype = match g.random.below(8) {
            0 => DType::I32,
            1 if g.random.once_in(2) => DType::Bool,
            1 => DType::I64,
            _ => g.float(),
        };
        let ty = TensorType::new(dtype, shape);
        let name = format!("x{i}");
        let tensor = Rc::new(arg(&name, &ty, &dims, seed));
        let value = g.func.arg(&name, Role::Input, ty);
        g.known.push((value, tensor));
    }
    g.grow(options.ops);
    g.outputs(1, 5);
    let module = Module { name: format!("random{seed}"), params: Vec::new(), funcs: vec![g.func] };
    Program { module, dims }
}

/// Arguments for a function: what each holds depends on its name, its type and the seed alone.
///
/// # Panics
/// If a dim has no value.
pub fn args(func: &Func, dims: &DimEnv, seed: u64) -> Vec<Tensor> {
    func.arg_values().map(|(a, _, ty)| arg(&a.name, ty, dims, seed)).collect()
}

/// Floats in −2..2, integers from −1 to 6.
fn arg(name: &str, ty: &TensorType, dims: &DimEnv, seed: u64) -> Tensor {
    let mut random = Random::new(name.bytes().fold(seed, |h, c| h.wrapping_mul(31).wrapping_add(u64::from(c))));
    let shape = ty.eval(dims).expect("every dim has a value");
    let number = |_| match ty.dtype {
        DType::F64 | DType::F32 | DType::TF32 | DType::BF16 | DType::F16 | DType::E4M3 => random.unit() * 4.0 - 2.0,
        DType::I64 | DType::I32 => random.below(8) as f64 - 1.0,
        DType::Bool => random.below(2) as f64,
    };
    Tensor::new(ty.dtype, &shape, (0..shape.iter().product()).map(number).collect())
}

fn pick<T: Clone>(random: &mut Random, items: &[T]) -> T {
    random.pick(items).expect("a list with items").clone()
}

/// A function that grows.
struct Grower {
    func: Func,
    /// The values so far with what they hold; in a loop's body, in its first turn.
    known: Vec<(Value, Rc<Tensor>)>,
    dims: DimEnv,
    /// The extents new shapes are made of.
    palette: Vec<Dim>,
    /// The floats of this program.
    floats: Vec<DType>,
    /// Loops around.
    depth: usize,
    options: Options,
    random: Random,
}

type Growth = fn(&mut Grower) -> Option<()>;

/// What a program grows by, and how often.
const GROWTHS: &[(usize, Growth)] = &[
    (12, Grower::map),
    (5, Grower::reduce),
    (2, Grower::normalise),
    (3, Grower::broadcast),
    (3, Grower::transpose),
    (3, Grower::reshape),
    (3, Grower::slice),
    (2, Grower::concat),
    (2, Grower::pad),
    (5, Grower::contract),
    (2, Grower::gather),
    (2, Grower::scatter_add),
    (1, Grower::topk),
    (2, Grower::cumsum),
    (1, Grower::leaf),
    (2, Grower::cast),
    (1, Grower::stop_gradient),
    (2, Grower::attend),
    (1, Grower::experts),
    (2, Grower::quantize),
    (2, Grower::repeat),
    (1, Grower::fused),
];

impl Grower {
    fn grow(&mut self, ops: usize) {
        let total: usize = GROWTHS.iter().map(|(weight, _)| weight).sum();
        // An op may find no operands.
        let mut tries = 6 * ops;
        let mut left = ops;
        while left > 0 && tries > 0 {
            tries -= 1;
            let mut at = self.random.below(total);
            let growth = GROWTHS.iter().find(|(weight, _)| {
                let here = at < *weight;
                at = at.saturating_sub(*weight);
                here
            });
            let (_, growth) = growth.expect("the weights add up to the total");
            left -= usize::from(growth(self).is_some());
        }
    }
    /// Names between `least` and `most` values as outputs, those that nothing reads first.
    fn outputs(&mut self, least: usize, most: usize) {
        let mut read = vec![false; self.func.nodes.len()];
        self.func.nodes.values().flat_map(|n| &n.inputs).for_each(|v| read[v.node.0 as usize] = true);
        let mut free: Vec<Value> = self.known.iter().map(|(v, _)| *v).filter(|v| !read[v.node.0 as usize]).collect();
        while free.len() > most {
            free.remove(self.random.below(free.len()));
        }
        while free.len() < least {
            free.push(pick(&mut self.random, &self.known).0);
        }
        let role = if self.depth == 0 { Role::Result } else { Role::Inner };
        for value in free {
            let name = format!("y{}", self.func.outputs.len());
            self.func.output(&name, role, value);
        }
    }

    fn extent(&self, d: &Dim) -> i64 {
        d.eval(&self.dims).unwrap_or(-1)
    }
    fn fits(&self, shape: &[Dim]) -> bool {
        let mut elems = 1i64;
        shape.iter().all(|d| {
            let n = self.extent(d);
            elems = elems.saturating_mul(n.max(1));
            n >= 0 && elems <= self.options.max_elems
        })
    }
    /// The first result of a node, if the node can be: its types fit, it is small, and what it computes is tame.
    fn op(&mut self, op: Op, inputs: &[Value]) -> Option<Value> {
        self.node(op, inputs).map(|v| v[0])
    }
    fn node(&mut self, op: Op, inputs: &[Value]) -> Option<Vec<Value>> {
        let operands: Vec<&TensorType> = inputs.iter().map(|v| self.func.ty(*v)).collect();
        let types = op::infer(&op, &operands).ok()?;
        if !types.iter().all(|t| self.fits(&t.shape)) {
            return None;
        }
        let node = Node { op, inputs: inputs.to_vec(), types, origin: None };
        let data: Vec<Rc<Tensor>> = inputs.iter().map(|v| self.tensor(*v)).collect();
        let results = interp::apply(&node, &data, &self.dims, InterpOptions::ROUNDED).ok()?;
        let wild = |t: &Rc<Tensor>| t.dtype.is_float() && t.data.iter().any(|x| x.is_nan() || x.abs() > 1e3);
        let lost = |t: &Rc<Tensor>| t.dtype.is_int() && t.data.iter().any(|x| x.abs() > 1e6);
        if results.iter().any(lost) || results.iter().any(wild) && !self.random.once_in(40) {
            return None;
        }
        let id = self.func.nodes.push(node);
        let values: Vec<Value> = (0..results.len()).map(|i| Value { node: id, index: i as u32 }).collect();
        self.known.extend(values.iter().copied().zip(results));
        Some(values)
    }
    fn tensor(&self, v: Value) -> Rc<Tensor> {
        self.known.iter().find(|(known, _)| *known == v).expect("every value is known").1.clone()
    }
    fn ty(&self, v: Value) -> TensorType {
        self.func.ty(v).clone()
    }

    /// One of the program's floats.
    fn float(&mut self) -> DType {
        pick(&mut self.random, &self.floats)
    }
    fn extent_of_palette(&mut self) -> Dim {
        pick(&mut self.random, &self.palette)
    }
    fn shape(&mut self) -> Vec<Dim> {
        let rank = pick(&mut self.random, &[0, 1, 2, 2, 3, 3, 4]);
        (0..rank).map(|_| self.extent_of_palette()).collect()
    }
    /// A value that is there; late ones are likelier.
    fn value(&mut self, wanted: impl Fn(&TensorType) -> bool) -> Option<Value> {
        let fitting: Vec<Value> = self.known.iter().map(|(v, _)| *v).filter(|v| wanted(self.func.ty(*v))).collect();
        let late = fitting.len().saturating_sub(4);
        let from = if self.random.once_in(2) { late } else { 0 };
        self.random.pick(&fitting[from..]).copied()
    }
    fn float_value(&mut self, rank: usize) -> Option<Value> {
        self.value(|t| t.dtype.is_float() && t.rank() >= rank)
    }
    fn constant(&mut self, x: f64, ty: &TensorType) -> Option<Value> {
        let scalar = self.op(Op::Const(Scalar::new(x), ty.dtype), &[])?;
        if ty.rank() == 0 {
            Some(scalar)
        } else {
            self.op(Op::Broadcast { shape: ty.shape.clone(), axes: Vec::new() }, &[scalar])
        }
    }
    /// A value of this type: one that is there, one made of another, or a constant.
    fn fit(&mut self, ty: &TensorType) -> Option<Value> {
        if !self.fits(&ty.shape) {
            return None;
        }
        if !self.random.once_in(3)
            && let Some(v) = self.value(|t| t == ty)
        {
            return Some(v);
        }
        if !self.random.once_in(8)
            && let Some(v) = self.value(|_| true)
            && let Some(v) = self.mould(v, ty)
        {
            return Some(v);
        }
        let x = if ty.dtype.is_float() { self.random.below(9) as f64 / 4.0 - 1.0 } else { self.random.below(3) as f64 };
        self.constant(x, ty)
    }
    /// `v` as a value of this type: by a reshape, or by reducing what it has too much and repeating what it lacks.
    fn mould(&mut self, mut v: Value, ty: &TensorType) -> Option<Value> {
        if self.ty(v).dtype == DType::Bool && ty.dtype != DType::Bool {
            v = self.op(Op::Cast(ty.dtype), &[v])?;
        }
        let from = self.ty(v);
        if from.shape != ty.shape && from.elems() == ty.elems() {
            v = self.op(Op::Reshape(ty.shape.clone()), &[v])?;
        } else if from.shape != ty.shape {
            let (mut kept, mut axes, mut next) = (Vec::new(), Vec::new(), 0);
            for (i, d) in from.shape.iter().enumerate() {
                if let Some(at) = (next..ty.rank()).find(|at| ty.shape[*at] == *d) {
                    kept.push(i);
                    axes.push(at);
                    next = at + 1;
                }
            }
            let gone: Vec<usize> = (0..from.rank()).filter(|i| !kept.contains(i)).collect();
            if !gone.is_empty() {
                if from.dtype == DType::Bool {
                    return None;
                }
                let f = pick(&mut self.random, &[ReduceFn::Sum, ReduceFn::Sum, ReduceFn::Max, ReduceFn::Min]);
                v = self.op(Op::Reduce(f, gone), &[v])?;
            }
            if axes.len() < ty.rank() {
                v = self.op(Op::Broadcast { shape: ty.shape.clone(), axes }, &[v])?;
            }
        }
        if self.ty(v).dtype != ty.dtype {
            v = self.op(Op::Cast(ty.dtype), &[v])?;
        }
        Some(v)
    }
    /// Indices of `0..n`, some of them outside.
    fn indices(&mut self, shape: &[Dim], n: &Dim) -> Option<Value> {
        let ty = TensorType::new(DType::I32, shape);
        if !self.fits(shape) {
            return None;
        }
        let v = match self.random.below(4) {
            0 if shape.len() == 1 => self.op(Op::Iota(shape[0].clone()), &[])?,
            _ => self.fit(&ty)?,
        };
        match n.known() {
            Some(n) if n > 0 && !self.random.once_in(4) => {
                let n = self.constant(n as f64, &ty)?;
                self.op(Op::Map(MapFn::Rem), &[v, n])
            }
            _ => Some(v),
        }
    }

    fn map(&mut self) -> Option<()> {
        let f = pick(&mut self.random, MapFn::ALL);
        let wanted = |t: &TensorType| match f.kind() {
            Kind::Float | Kind::Test => t.dtype.is_float(),
            Kind::Number => t.dtype != DType::Bool,
            Kind::Int => t.dtype.is_int(),
            Kind::Compare | Kind::Select => true,
            Kind::Logic => t.dtype == DType::Bool,
        };
        let x = self.value(wanted)?;
        let ty = self.ty(x);
        let mut operands = vec![x];
        if f.kind() == Kind::Select {
            operands.insert(0, self.fit(&ty.with_dtype(DType::Bool))?);
        }
        while operands.len() < f.arity() {
            operands.push(self.fit(&ty)?);
        }
        // Mostly where the function is defined, and not next to a pole.
        let positive = match f {
            MapFn::Div => Some(1),
            MapFn::Pow | MapFn::Log | MapFn::Sqrt | MapFn::Rsqrt => Some(0),
            _ => None,
        };
        if let Some(i) = positive.filter(|_| !self.random.once_in(8)) {
            let magnitude = self.op(Op::Map(MapFn::Abs), &[operands[i]])?;
            let half = self.constant(0.5, &ty)?;
            operands[i] = self.op(Op::Map(MapFn::Add), &[magnitude, half])?;
        }
        self.op(Op::Map(f), &operands).map(drop)
    }
    fn axes(&mut self, rank: usize) -> Vec<usize> {
        let axes: Vec<usize> = (0..rank).filter(|_| self.random.once_in(2)).collect();
        if axes.is_empty() && rank > 0 { vec![self.random.below(rank)] } else { axes }
    }
    fn reduce(&mut self) -> Option<()> {
        let x = self.value(|t| t.dtype != DType::Bool && t.rank() > 0)?;
        let axes = self.axes(self.func.ty(x).rank());
        let f = pick(&mut self.random, &[ReduceFn::Sum, ReduceFn::Sum, ReduceFn::Max, ReduceFn::Min, ReduceFn::Prod]);
        self.op(Op::Reduce(f, axes), &[x]).map(drop)
    }
    /// A reduction and the values it was of: softmax, norms, centring.
    fn normalise(&mut self) -> Option<()> {
        let x = self.float_value(1)?;
        let ty = self.ty(x);
        let axes = self.axes(ty.rank());
        let kept: Vec<usize> = (0..ty.rank()).filter(|i| !axes.contains(i)).collect();
        let spread = Op::Broadcast { shape: ty.shape.clone(), axes: kept };
        match self.random.below(3) {
            0 => {
                let max = self.op(Op::Reduce(ReduceFn::Max, axes.clone()), &[x])?;
                let max = self.op(spread.clone(), &[max])?;
                let centred = self.op(Op::Map(MapFn::Sub), &[x, max])?;
                let e = self.op(Op::Map(MapFn::Exp), &[centred])?;
                let sum = self.op(Op::Reduce(ReduceFn::Sum, axes), &[e])?;
                let sum = self.op(spread, &[sum])?;
                self.op(Op::Map(MapFn::Div), &[e, sum])
            }
            1 => {
                let square = self.op(Op::Map(MapFn::Mul), &[x, x])?;
                let sum = self.op(Op::Reduce(ReduceFn::Sum, axes), &[square])?;
                let sum = self.op(spread, &[sum])?;
                let floor = self.constant(0.25, &ty)?;
                let sum = self.op(Op::Map(MapFn::Add), &[sum, floor])?;
                let r = self.op(Op::Map(MapFn::Rsqrt), &[sum])?;
                self.op(Op::Map(MapFn::Mul), &[x, r])
            }
            _ => {
                let sum = self.op(Op::Reduce(ReduceFn::Sum, axes), &[x])?;
                let sum = self.op(spread, &[sum])?;
                self.op(Op::Map(MapFn::Sub), &[x, sum])
            }
        }
        .map(drop)
    }
    fn broadcast(&mut self) -> Option<()> {
        let x = self.value(|_| true)?;
        let (mut shape, mut axes) = (self.ty(x).shape, (0..self.func.ty(x).rank()).collect::<Vec<_>>());
        for _ in 0..1 + self.random.below(2) {
            let at = self.random.below(shape.len() + 1);
            shape.insert(at, self.extent_of_palette());
            axes.iter_mut().filter(|a| **a >= at).for_each(|a| *a += 1);
        }
        self.op(Op::Broadcast { shape, axes }, &[x]).map(drop)
    }
    fn permutation(&mut self, rank: usize) -> Vec<usize> {
        let mut perm: Vec<usize> = (0..rank).collect();
        for i in (1..rank).rev() {
            perm.swap(i, self.random.below(i + 1));
        }
        perm
    }
    fn transpose(&mut self) -> Option<()> {
        let x = self.value(|t| t.rank() >= 2)?;
        let perm = self.permutation(self.func.ty(x).rank());
        self.op(Op::Transpose(perm), &[x]).map(drop)
    }
    /// Joins neighbours, splits constants, adds and drops axes of 1.
    fn reshape(&mut self) -> Option<()> {
        let x = self.value(|t| t.rank() >= 1)?;
        let mut shape = self.ty(x).shape;
        for _ in 0..1 + self.random.below(3) {
            match self.random.below(3) {
                0 if shape.len() >= 2 => {
                    let at = self.random.below(shape.len() - 1);
                    let d = shape.remove(at + 1);
                    shape[at] = shape[at].clone() * d;
                }
                1 => shape.insert(self.random.below(shape.len() + 1), Dim::from(1)),
                _ => {
                    let at = self.random.below(shape.len());
                    let factor = Dim::from(pick(&mut self.random, &[2, 3, 4]));
                    let by = if self.random.once_in(3) { self.extent_of_palette() } else { factor };
                    if let Some(q) = shape[at].try_div(&by).filter(|_| !shape[at].is(0) && !by.is(0)) {
                        shape[at] = q;
                        shape.insert(at + 1, by);
                    }
                }
            }
            if shape.is_empty() {
                break;
            }
        }
        self.op(Op::Reshape(shape), &[x]).map(drop)
    }
    fn slice(&mut self) -> Option<()> {
        let x = self.value(|t| t.rank() >= 1)?;
        let shape = self.ty(x).shape;
        let axis = self.random.below(shape.len());
        let n = shape[axis].clone();
        let step = pick(&mut self.random, &[1, 1, 1, 2, 3]);
        let (start, len) = match self.random.below(4) {
            0 => (Dim::from(0), n.floor_div(&Dim::from(2 * step))),
            1 => (Dim::from(1), (n - Dim::from(1)).floor_div(&Dim::from(step))),
            2 => (n.floor_div(&Dim::from(2)), (n.clone() - n.floor_div(&Dim::from(2))).ceil_div(&Dim::from(step))),
            _ => (n - Dim::from(1), Dim::from(1)),
        };
        self.op(Op::Slice { axis, start, len, step }, &[x]).map(drop)
    }
    fn concat(&mut self) -> Option<()> {
        let x = self.value(|t| t.rank() >= 1)?;
        let ty = self.ty(x);
        let axis = self.random.below(ty.rank());
        let mut operands = vec![x];
        for _ in 0..1 + self.random.below(2) {
            let mut other = ty.clone();
            if self.random.once_in(2) {
                other.shape[axis] = self.extent_of_palette();
            }
            operands.push(self.fit(&other)?);
        }
        let at = self.random.below(operands.len());
        operands.swap(0, at);
        self.op(Op::Concat(axis), &operands).map(drop)
    }
    fn pad(&mut self) -> Option<()> {
        let x = self.value(|t| t.rank() >= 1)?;
        let ty = self.ty(x);
        let axis = self.random.below(ty.rank());
        let mut side = || match self.random.below(5) {
            0 => self.palette[self.random.below(self.palette.len())].clone(),
            n => Dim::from(n as i64 - 1),
        };
        let (low, high) = (side(), side());
        let value =
            if ty.dtype.is_float() { pick(&mut self.random, &[0.0, 0.0, 1.5, -0.25]) } else { self.random.below(2) as f64 };
        self.op(Op::Pad { axis, low, high, value: Scalar::new(value) }, &[x]).map(drop)
    }
    fn contract(&mut self) -> Option<()> {
        let a = self.float_value(1)?;
        let ty = self.ty(a);
        let lhs: Vec<char> = "abcdef".chars().take(ty.rank()).collect();
        // Each letter of the left side is kept, shared with the right, or summed; the right has up to two of its own.
        let (mut rhs, mut out) = (Vec::new(), Vec::new());
        for (letter, d) in lhs.iter().zip(&ty.shape) {
            let kind = self.random.below(4);
            if kind != 0 {
                rhs.push((*letter, d.clone()));
            }
            if kind < 2 {
                out.push(*letter);
            }
        }
        for letter in "xy".chars().take(self.random.below(3)) {
            rhs.push((letter, self.extent_of_palette()));
            out.push(letter);
        }
        let order = self.permutation(rhs.len());
        let rhs: Vec<(char, Dim)> = order.into_iter().map(|i| rhs[i].clone()).collect();
        let order = self.permutation(out.len());
        let out = order.into_iter().map(|i| out[i]).collect();
        let (rhs, shape): (Vec<char>, Vec<Dim>) = rhs.into_iter().unzip();
        let b = self.fit(&TensorType::new(ty.dtype, shape))?;
        let (op, inputs) = if self.random.once_in(2) {
            (Op::Contract(Contract { lhs: rhs, rhs: lhs, out }), [b, a])
        } else {
            (Op::Contract(Contract { lhs, rhs, out }), [a, b])
        };
        let y = self.op(op.clone(), &inputs)?;
        if self.ty(y).rank() > 0 && self.random.once_in(4) { self.gate(&op, &inputs, y) } else { Some(()) }
    }
    fn gather(&mut self) -> Option<()> {
        let x = self.value(|t| t.rank() >= 1)?;
        let ty = self.ty(x);
        let batch = self.random.below(ty.rank());
        let mut shape = ty.shape[..batch].to_vec();
        for _ in 0..self.random.below(3) {
            shape.push(self.extent_of_palette());
        }
        let index = self.indices(&shape, &ty.shape[batch])?;
        self.op(Op::Gather { batch }, &[x, index]).map(drop)
    }
    fn scatter_add(&mut self) -> Option<()> {
        let x = self.value(|t| t.dtype != DType::Bool)?;
        let ty = self.ty(x);
        let rank = self.random.below(ty.rank() + 1);
        let batch = self.random.below(rank + 1);
        let n = self.extent_of_palette();
        let index = self.indices(&ty.shape[..rank], &n)?;
        self.op(Op::ScatterAdd { batch, n }, &[index, x]).map(drop)
    }
    fn topk(&mut self) -> Option<()> {
        let x = self.float_value(1)?;
        let k = 1 + self.random.below(4) as i64;
        let index = self.op(Op::TopK(k), &[x])?;
        if self.random.once_in(2) {
            let batch = self.func.ty(x).rank() - 1;
            self.op(Op::Gather { batch }, &[x, index])?;
        }
        Some(())
    }
    fn cumsum(&mut self) -> Option<()> {
        let x = self.value(|t| t.dtype != DType::Bool && t.rank() >= 1)?;
        let axis = self.random.below(self.func.ty(x).rank());
        let (exclusive, reverse) = (self.random.once_in(2), self.random.once_in(2));
        self.op(Op::Cumsum { axis, exclusive, reverse }, &[x]).map(drop)
    }
    fn leaf(&mut self) -> Option<()> {
        let d = self.extent_of_palette();
        let dtype = pick(&mut self.random, &[DType::F32, DType::I32, DType::I64]);
        let op = if self.random.once_in(2) { Op::Extent(d, dtype) } else { Op::Iota(d) };
        self.op(op, &[]).map(drop)
    }
    fn cast(&mut self) -> Option<()> {
        let x = self.value(|_| true)?;
        let mut dtypes = vec![DType::I32, DType::Bool, DType::F32, DType::BF16];
        dtypes.extend(if self.random.once_in(4) {
            [DType::E4M3, DType::I64, DType::F16, DType::F64, DType::TF32].as_slice()
        } else {
            &[]
        });
        let dtype = pick(&mut self.random, &dtypes);
        let narrow = self.op(Op::Cast(dtype), &[x])?;
        // Few ops take what is neither a float of the program nor an integer.
        if self.random.once_in(2) {
            let dtype = self.float();
            self.op(Op::Cast(dtype), &[narrow])?;
        }
        Some(())
    }
    fn stop_gradient(&mut self) -> Option<()> {
        let x = self.float_value(0)?;
        self.op(Op::StopGradient, &[x]).map(drop)
    }

    fn attend(&mut self) -> Option<()> {
        let dtype = self.float();
        let [b, t] = [0; 2].map(|_| self.extent_of_palette());
        let s = if self.random.once_in(2) { t.clone() } else { self.extent_of_palette() };
        let g = pick(&mut self.random, &[1, 1, 2, 3]);
        let h = g * pick(&mut self.random, &[1, 2, 3]);
        let [dk, dv] = [0; 2].map(|_| pick(&mut self.random, &[1, 2, 3, 4, 8, 9]));
        let mut of = |shape: [&Dim; 4]| self.fit(&TensorType::new(dtype, shape.map(Dim::clone)));
        let q = of([&b, &t, &h.into(), &dk.into()])?;
        let k = of([&b, &s, &g.into(), &dk.into()])?;
        let v = of([&b, &s, &g.into(), &dv.into()])?;
        let mut operands = vec![q, k, v];
        let domain = self.domain(2, [&b, &t, &s, &g.into()], &mut operands)?;
        let attend = Attend { domain, scale: Scalar::new(pick(&mut self.random, &[1.0, 0.5, 0.25])) };
        let results = self.node(Op::Attend(attend.clone()), &operands)?;
        if self.random.once_in(3) {
            let [o, lse] = [results[0], results[1]].map(|v| self.ty(v));
            let (d_o, d_lse) = (self.fit(&o)?, self.fit(&lse)?);
            operands.splice(3..3, [results[0], results[1], d_o, d_lse]);
            self.node(Op::AttendGrad(attend), &operands)?;
        }
        Some(())
    }
    /// A domain whose operands are appended to those of the op.
    fn domain(&mut self, depth: usize, [b, t, s, g]: [&Dim; 4], operands: &mut Vec<Value>) -> Option<Domain> {
        let small = |g: &mut Grower| 1 + g.random.below(4) as i64;
        let mut add = |g: &mut Grower, shape: &[&Dim], n: &Dim| {
            let v = g.indices(&shape.iter().map(|d| (*d).clone()).collect::<Vec<_>>(), n)?;
            operands.push(v);
            Some(operands.len() - 4)
        };
        let n = Dim::from(small(self));
        Some(match self.random.below(if depth > 0 { 15 } else { 10 }) {
            0 => Domain::Full,
            1 => Domain::Causal,
            2 => Domain::Window(small(self)),
            3 => Domain::EndsBefore { length: small(self), stride: small(self) },
            4 => Domain::EndsAt(add(self, &[b, s], t)?),
            5 => Domain::Segments(add(self, &[b, t], &3.into())?, add(self, &[b, s], &3.into())?),
            6 => Domain::Blocks { idx: add(self, &[b, t, g, &n], s)?, size: small(self) },
            7 => Domain::Groups { idx: add(self, &[b, t, g, &n], &3.into())?, of: add(self, &[b, s], &3.into())? },
            8 => Domain::Tokens(add(self, &[b, t, g, &n], s)?),
            9 => Domain::Prefix(small(self)),
            10 => Domain::And(Box::new(Domain::Causal), Box::new(self.domain(depth - 1, [b, t, s, g], operands)?)),
            11 => Domain::And(Box::new(Domain::Causal), Box::new(Domain::Window(small(self)))),
            n => {
                let parts = [0; 2].map(|_| self.domain(depth - 1, [b, t, s, g], operands).map(Box::new));
                let [Some(x), Some(y)] = parts else { return None };
                if n < 14 { Domain::And(x, y) } else { Domain::Or(x, y) }
            }
        })
    }
    /// Rows routed to experts, products of each with its expert's matrix, and back.
    fn experts(&mut self) -> Option<()> {
        let dtype = self.float();
        let (n, e) = (self.extent_of_palette(), 1 + self.random.below(4) as i64);
        let k = 1 + self.random.below(e.min(3) as usize) as i64;
        let choice = if self.random.once_in(2) {
            let scores = self.fit(&TensorType::new(dtype, [n.clone(), e.into()]))?;
            let choice = self.op(Op::TopK(k), &[scores])?;
            if self.random.once_in(2) {
                self.router(scores, choice)?;
            }
            choice
        } else {
            self.indices(&[n.clone(), k.into()], &e.into())?
        };
        let routed = self.node(Op::Route { groups: e }, &[choice])?;
        let (offsets, source, position) = (routed[0], routed[1], routed[2]);
        let [width, out] = [0; 2].map(|_| self.extent_of_palette());
        let x = self.fit(&TensorType::new(dtype, [n, width.clone()]))?;
        let per_row = self.ty(source);
        let by = self.constant(k as f64, &per_row)?;
        let token = self.op(Op::Map(MapFn::FloorDiv), &[source, by])?;
        let rows = self.op(Op::Gather { batch: 0 }, &[x, token])?;
        let transposed = self.random.once_in(2);
        let matrix = if transposed { [out.clone(), width] } else { [width, out.clone()] };
        let w = self.fit(&TensorType::new(dtype, [vec![Dim::from(e)], matrix.to_vec()].concat()))?;
        let (mut xs, mut own, mut all) = (rows, offsets, None);
        if self.random.once_in(3) {
            // A group of one.
            let told = self.node(Op::Exchange { what: Exchange::Offsets, members: 1 }, &[offsets])?;
            xs = self.op(Op::Exchange { what: Exchange::There, members: 1 }, &[rows, told[0]])?;
            (own, all) = (told[1], Some(told[0]));
        }
        let mut y = self.op(Op::GroupedContract { transposed }, &[xs, w, own])?;
        if let Some(all) = all {
            y = self.op(Op::Exchange { what: Exchange::Back, members: 1 }, &[y, all])?;
        }
        if self.random.once_in(2) {
            self.op(Op::GroupedOuter, &[rows, y, offsets])?;
        }
        if self.random.once_in(2) {
            self.gate(&Op::GroupedContract { transposed }, &[rows, w, offsets], y)?;
        }
        if self.random.once_in(2) {
            let back = self.op(Op::Gather { batch: 0 }, &[y, position])?;
            self.op(Op::Reduce(ReduceFn::Sum, vec![1]), &[back])?;
        }
        Some(())
    }
    /// Codes and scales of blocks, and what they are worth; moved before, between or after.
    fn quantize(&mut self) -> Option<()> {
        let mut x = self.float_value(1)?;
        if self.random.once_in(4) {
            x = self.move_rows(&[x], op::quantize::Block::of_row(1))?[0];
        }
        let size = pick(&mut self.random, &[1, 2, 2, 3, 4, 4, 8]);
        let rows = if self.ty(x).rank() > 1 && self.random.once_in(4) { 1 + self.random.below(3) as i64 } else { 1 };
        let block = op::quantize::Block { rows, size };
        let mut q = self.node(Op::Quantize(block), &[x])?;
        if self.random.once_in(4) {
            return Some(());
        }
        for _ in 0..self.random.below(3) {
            q = self.move_rows(&q, block)?;
        }
        let y = self.op(Op::Dequantize(block), &q)?;
        if self.random.once_in(3) {
            self.move_rows(&[y], block)?;
        }
        // Straight through, as it is written for gradients.
        let ty = self.ty(x);
        if self.random.once_in(2) && self.ty(y).shape == ty.shape {
            let y = if ty.dtype == DType::F32 { y } else { self.op(Op::Cast(ty.dtype), &[y])? };
            let change = self.op(Op::Map(MapFn::Sub), &[y, x])?;
            self.op(Op::Map(MapFn::Add), &[x, change])?;
        }
        Some(())
    }
    /// Values, or codes and scales, with their rows moved in one way: what goes for blocks of the first goes for the scales.
    fn move_rows(&mut self, values: &[Value], block: op::quantize::Block) -> Option<Vec<Value>> {
        let ty = self.ty(values[0]);
        let last = ty.rank() - block.axes();
        let mut index = None;
        let op = match self.random.below(4) {
            0 if last > 0 => {
                let batch = self.random.below(last);
                let mut shape = ty.shape[..batch].to_vec();
                shape.push(self.extent_of_palette());
                index = Some(self.indices(&shape, &ty.shape[batch])?);
                Op::Gather { batch }
            }
            1 if last > 0 => {
                let mut perm = self.permutation(last);
                perm.extend(last..ty.rank());
                Op::Transpose(perm)
            }
            2 if last > 0 => {
                let joined = ty.shape[..last].iter().fold(Dim::from(1), |n, d| n * d.clone());
                Op::Reshape([vec![joined], ty.shape[last..].to_vec()].concat())
            }
            _ => {
                let axis = last + self.random.below(block.axes());
                let len = Dim::from(block.along(axis, ty.rank()) * (1 + self.random.below(2) as i64));
                let rest = ty.shape[axis].clone() - len.clone();
                if self.extent(&rest) < 0 {
                    return Some(values.to_vec());
                }
                Op::Slice { axis, start: Dim::from(0), len, step: 1 }
            }
        };
        let operands = |v: Value| [v].into_iter().chain(index).collect::<Vec<_>>();
        let first = self.op(op.clone(), &operands(values[0]))?;
        let Some(scales) = values.get(1) else { return Some(vec![first]) };
        let to = self.ty(first);
        let of_scales = op::quantize::of_scales(&op, block, &[&ty.shape], &to.shape)?;
        let second = self.op(of_scales, &operands(*scales))?;
        Some(vec![first, second])
    }
    /// Weights of what is chosen of each row; as a region, or not.
    fn router(&mut self, scores: Value, choice: Value) -> Option<()> {
        let (ty, chosen) = (self.ty(scores), self.ty(choice).shape);
        let bias = self.fit(&TensorType::new(ty.dtype, [ty.shape[1].clone()]))?;
        let bias = self.op(Op::Broadcast { shape: ty.shape.clone(), axes: vec![1] }, &[bias])?;
        let biased = self.op(Op::Map(MapFn::Add), &[scores, bias])?;
        let picked = self.op(Op::Gather { batch: 1 }, &[biased, choice])?;
        let f = pick(&mut self.random, &[ReduceFn::Sum, ReduceFn::Max]);
        let all = self.op(Op::Reduce(f, vec![1]), &[picked])?;
        let all = self.op(Op::Broadcast { shape: chosen, axes: vec![0] }, &[all])?;
        let weights = self.op(Op::Map(MapFn::Sub), &[picked, all])?;
        if self.random.once_in(3) {
            return Some(());
        }
        let mut nodes: BTreeSet<NodeId> = [biased, picked, all, weights].iter().map(|v| v.node).collect();
        nodes.extend(self.func.def(all).inputs.iter().map(|v| v.node));
        nodes.extend([choice.node, bias.node].into_iter().filter(|_| self.random.once_in(2)));
        let mut results = vec![weights];
        results.extend([choice, biased].into_iter().filter(|v| nodes.contains(&v.node)).filter(|_| self.random.once_in(2)));
        let (fused, operands) = Fused::outline(&self.func, Form::Rows, &nodes, &results);
        self.node(Op::Fused(Box::new(fused)), &operands).map(drop)
    }
    /// A map of a product and of another of the same rows, or of one of them and others; as a region or not.
    fn gate(&mut self, product: &Op, operands: &[Value], y: Value) -> Option<()> {
        let (rows, of_w, of_y) = (operands[0], self.ty(operands[1]), self.ty(y));
        let mut others = operands.to_vec();
        others[1] = self.fit(&of_w)?;
        let z = self.op(product.clone(), &others)?;
        let factor = self.fit(&TensorType::new(of_y.dtype, [of_y.shape[0].clone()]))?;
        let factor = self.op(Op::Broadcast { shape: of_y.shape.clone(), axes: vec![0] }, &[factor])?;
        let mut nodes: BTreeSet<NodeId> = [y.node, z.node].into();
        let mut last = y;
        for _ in 0..1 + self.random.below(4) {
            let beside = pick(&mut self.random, &[y, z, z, factor, factor]);
            let f = pick(&mut self.random, &[MapFn::Swiglu, MapFn::Mul, MapFn::Silu, MapFn::Add]);
            last = self.op(Op::Map(f), &[last, beside][..f.arity()])?;
            nodes.insert(last.node);
        }
        if self.random.once_in(2) {
            return Some(());
        }
        // What is in the region and what it takes: rows that are taken, or how a factor is repeated.
        let may_be_inside = |id: &NodeId| !matches!(self.func.nodes[*id].op, Op::Arg(_) | Op::Repeat(_) | Op::Fused(_));
        let some: Vec<NodeId> = [rows.node, factor.node].into_iter().filter(may_be_inside).collect();
        nodes.extend(some.into_iter().filter(|_| self.random.once_in(2)));
        let results = match self.random.below(3) {
            0 => vec![last],
            1 => vec![last, y, z],
            _ => vec![last, z],
        };
        let (fused, operands) = Fused::outline(&self.func, Form::Product, &nodes, &results);
        self.node(Op::Fused(Box::new(fused)), &operands).map(drop)
    }
    /// A region of a value and of some of what it is computed from.
    fn fused(&mut self) -> Option<()> {
        let last = self.value(|_| true)?;
        let (mut nodes, mut open) = (BTreeSet::new(), vec![last.node]);
        while let Some(id) = open.pop() {
            let node = &self.func.nodes[id];
            if !matches!(node.op, Op::Arg(_) | Op::Repeat(_) | Op::Fused(_)) && nodes.insert(id) {
                open.extend(node.inputs.iter().map(|v| v.node).filter(|_| !self.random.once_in(3)));
            }
        }
        let form = pick(&mut self.random, &Form::ALL);
        let (fused, operands) = Fused::outline(&self.func, form, &nodes, &[last]);
        self.node(Op::Fused(Box::new(fused)), &operands).map(drop)
    }
    fn repeat(&mut self) -> Option<()> {
        if self.depth == 2 {
            return None;
        }
        let count = pick(&mut self.random, &[0, 1, 2, 2, 3, 3, 4]);
        let carried = self.random.below(3);
        let constant = self.random.below(3);
        let mut operands = Vec::new();
        for _ in 0..carried + constant {
            operands.push(self.value(|_| true)?);
        }
        for _ in 0..usize::from(carried + constant == 0) + self.random.below(2) {
            let mut shape = self.shape();
            shape.insert(0, count.into());
            let dtype = self.float();
            operands.push(self.fit(&TensorType::new(dtype, shape))?);
        }
        let mut body = Grower {
            func: Func::new("body"),
            known: Vec::new(),
            dims: self.dims.clone(),
            palette: self.palette.clone(),
            floats: self.floats.clone(),
            depth: self.depth + 1,
            options: self.options,
            random: Random::new(self.random.bits()),
        };
        for (i, v) in operands.iter().enumerate() {
            let (mut ty, data) = (self.ty(*v), self.tensor(*v));
            let tensor = if i < carried + constant {
                data
            } else {
                ty.shape.remove(0);
                let shape = ty.eval(&self.dims)?;
                let n = shape.iter().product::<i64>() as usize;
                let first = data.data.iter().copied().chain(std::iter::repeat(0.5)).take(n);
                Rc::new(Tensor::new(ty.dtype, &shape, first.collect()))
            };
            let value = body.func.arg(&format!("z{i}"), Role::Inner, ty);
            body.known.push((value, tensor));
        }
        body.grow(1 + self.options.ops / 3);
        for i in 0..carried {
            let ty = body.func.arg_type(i).clone();
            let made: Vec<Value> = body.known.iter().map(|(v, _)| *v).collect();
            let late = pick(&mut body.random, &made[made.len().saturating_sub(4)..]);
            let next = body.mould(late, &ty).or_else(|| body.fit(&ty))?;
            body.func.output(&format!("y{i}"), Role::Inner, next);
        }
        let stacks = usize::from(carried == 0 || body.random.once_in(2));
        body.outputs(stacks, stacks);
        let reverse = self.random.once_in(2);
        self.node(Op::Repeat(Box::new(Repeat { count, carried, constant, reverse, body: body.func })), &operands).map(drop)
    }
}

#[cfg(test)]
mod tests;
