//! How far a correct evaluation may be from the exact one: next to each value, a bound on what rounding can change.
//!
//! A running error analysis: each op adds its own rounding to what the errors of its operands can make of it, to first order and with
//! the worst signs. Where an error can change a decision (a comparison, a floor, a choice of top-k, an index), or a value can leave its
//! dtype's range, the bound is infinite: nothing is known. Sums may be taken in any order, intermediate values may be kept wider than
//! their dtype, a product and a sum may round once.
//! # Source: Higham, Accuracy and Stability of Numerical Algorithms, 2002, sections 3.1 to 3.3.

use super::{
    InterpError, Options, Tensor, apply,
    attend::{Extents, Row},
    contract::dot,
    size,
};
use crate::{
    ir::{Func, Node},
    op::{Attend, Exchange, MapFn, Op, ReduceFn, Repeat, map::Kind},
    passes::definition_of,
};
use base::{DType, DimEnv, TensorType, arena::Id};
use std::rc::Rc;

/// The exact values of a tensor and how far from each a correct evaluation may be.
#[derive(Clone, Debug, PartialEq)]
pub struct Bounded {
    /// Evaluated in f64; floats are not rounded to their dtype.
    pub value: Tensor,
    /// One for each value; infinite where nothing is known, 0 where the value is certain.
    pub error: Vec<f64>,
}

/// Which rounding is bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Roundoff {
    /// That of f64, whatever the dtypes: of the interpreter itself.
    Exact,
    /// That of each value's dtype, sums in its accumulator.
    Dtype,
}

impl Roundoff {
    /// The unit roundoff of a result.
    fn unit(self, dtype: DType) -> f64 {
        match self {
            Roundoff::Exact => DType::F64.unit_roundoff(),
            Roundoff::Dtype => dtype.unit_roundoff(),
        }
    }
    /// The unit roundoff within an op.
    fn inner(self, dtype: DType) -> f64 {
        self.unit(dtype.accumulator())
    }
    /// The greatest number that may be wrong by itself, and the greatest that is finite.
    fn range(self, dtype: DType) -> (f64, f64) {
        match (self, dtype) {
            (Roundoff::Exact, _) | (Roundoff::Dtype, DType::F64 | DType::I64 | DType::I32 | DType::Bool) => {
                (f64::MIN_POSITIVE, f64::MAX)
            }
            (Roundoff::Dtype, DType::F32 | DType::TF32) => (f64::from(f32::MIN_POSITIVE), f64::from(f32::MAX)),
            (Roundoff::Dtype, DType::BF16) => (f64::from(f32::MIN_POSITIVE), half::bf16::MAX.to_f64()),
            (Roundoff::Dtype, DType::F16) => (2f64.powi(-24), half::f16::MAX.to_f64()),
            (Roundoff::Dtype, DType::E4M3) => (2f64.powi(-9), 448.0),
        }
    }
    /// Whether `x` is a number of the dtype.
    fn holds(self, dtype: DType, x: f64) -> bool {
        match self {
            Roundoff::Exact => true,
            Roundoff::Dtype => dtype.round(x) == x,
        }
    }
}

/// The outputs of `func` with their bounds; the arguments are certain.
///
/// # Errors
/// If a node takes elements that are not there.
///
/// # Panics
/// If the arguments do not have the function's types.
pub fn bounds(func: &Func, args: &[Tensor], dims: &DimEnv, roundoff: Roundoff) -> Result<Vec<Bounded>, InterpError> {
    let args = args.iter().map(|t| Rc::new(Bounded { value: t.clone(), error: vec![0.0; t.data.len()] })).collect();
    let results = run(func, args, dims, roundoff)?;
    Ok(results.into_iter().map(Rc::unwrap_or_clone).collect())
}

fn run(func: &Func, args: Vec<Rc<Bounded>>, dims: &DimEnv, roundoff: Roundoff) -> Result<Vec<Rc<Bounded>>, InterpError> {
    let mut values: Vec<Vec<Rc<Bounded>>> = Vec::with_capacity(func.nodes.len());
    for node in func.nodes.values() {
        let operands: Vec<Rc<Bounded>> = node.inputs.iter().map(|v| values[v.node.index()][v.index as usize].clone()).collect();
        values.push(match &node.op {
            Op::Arg(i) => vec![args[*i as usize].clone()],
            Op::Repeat(r) => repeat(r, node, &operands, dims, roundoff)?,
            Op::Fused(f) => run(&f.body, operands, dims, roundoff)?,
            // As its definition: what of a block is the largest, and what that makes of all others.
            op @ (Op::Quantize(_) | Op::Dequantize(_)) => {
                let types: Vec<&TensorType> = node.inputs.iter().map(|v| func.ty(*v)).collect();
                run(&definition_of(op, &types), operands, dims, roundoff)?
            }
            _ => single(node, &operands, dims, roundoff)?,
        });
    }
    Ok(func.outputs.iter().map(|o| values[o.value.node.index()][o.value.index as usize].clone()).collect())
}

fn repeat(
    r: &Repeat,
    node: &Node,
    x: &[Rc<Bounded>],
    dims: &DimEnv,
    roundoff: Roundoff,
) -> Result<Vec<Rc<Bounded>>, InterpError> {
    let (fixed, count) = (r.carried + r.constant, r.count as usize);
    let mut carried = x[..r.carried].to_vec();
    let empty = |ty: &TensorType| {
        let shape = ty.eval(dims).ok_or_else(|| InterpError::Unbound { dim: ty.to_string() })?;
        Ok(Bounded { value: Tensor::full(ty.dtype, &shape, 0.0), error: vec![0.0; size(&shape)] })
    };
    let mut stacks = node.types[r.carried..].iter().map(empty).collect::<Result<Vec<_>, InterpError>>()?;
    for turn in 0..count {
        let at = if r.reverse { count - 1 - turn } else { turn };
        let mut args = std::mem::take(&mut carried);
        args.extend_from_slice(&x[r.carried..fixed]);
        args.extend(x[fixed..].iter().map(|stack| {
            let (shape, n) = (stack.value.shape[1..].to_vec(), stack.error.len() / count);
            let part = at * n..(at + 1) * n;
            let value = Tensor { dtype: stack.value.dtype, shape, data: stack.value.data[part.clone()].to_vec() };
            Rc::new(Bounded { value, error: stack.error[part].to_vec() })
        }));
        carried = run(&r.body, args, dims, roundoff)?;
        for (stack, slice) in stacks.iter_mut().zip(carried.drain(r.carried..)) {
            let n = slice.error.len();
            stack.value.data[at * n..(at + 1) * n].copy_from_slice(&slice.value.data);
            stack.error[at * n..(at + 1) * n].copy_from_slice(&slice.error);
        }
    }
    carried.extend(stacks.into_iter().map(Rc::new));
    Ok(carried)
}

/// A node that is no loop.
fn single(node: &Node, x: &[Rc<Bounded>], dims: &DimEnv, roundoff: Roundoff) -> Result<Vec<Rc<Bounded>>, InterpError> {
    let values: Vec<Rc<Tensor>> = x.iter().map(|b| Rc::new(b.value.clone())).collect();
    let results = apply(node, &values, dims, Options::EXACT)?;
    let site = Site { node, x, results: &results, dims, roundoff };
    let errors = site.errors()?;
    Ok(results
        .iter()
        .zip(errors)
        .map(|(value, mut error)| {
            let pairs = error.iter_mut().zip(&value.data);
            // What is no number says that something is unknown; so does an infinity where the dtype has none.
            let unknown = |e: f64, y: f64| e.is_nan() || y.is_infinite() && !roundoff.holds(value.dtype, y);
            pairs.filter(|(e, y)| unknown(**e, **y)).for_each(|(e, _)| *e = f64::INFINITY);
            Rc::new(Bounded { value: (**value).clone(), error })
        })
        .collect())
}

/// What an op adds to the error of its result.
enum Own {
    /// Nothing: elements are moved or chosen.
    Moved,
    /// The result is the number of the dtype next to the exact one.
    Rounded,
    /// A few units in the last place.
    Approximate,
}

struct Site<'a> {
    node: &'a Node,
    x: &'a [Rc<Bounded>],
    results: &'a [Rc<Tensor>],
    dims: &'a DimEnv,
    roundoff: Roundoff,
}

impl Site<'_> {
    fn dtype(&self) -> DType {
        self.node.types[0].dtype
    }
    /// The same op on other numbers, in f64.
    fn again(&self, operands: Vec<Vec<f64>>) -> Result<Vec<f64>, InterpError> {
        let mut node = self.node.clone();
        node.types.iter_mut().for_each(|t| t.dtype = DType::F64);
        let operands = self.x.iter().zip(operands).map(|(b, data)| {
            let dtype = if b.value.dtype.is_float() { DType::F64 } else { b.value.dtype };
            Rc::new(Tensor { dtype, shape: b.value.shape.clone(), data })
        });
        let operands: Vec<Rc<Tensor>> = operands.collect();
        Ok(apply(&node, &operands, self.dims, Options::EXACT)?[0].data.clone())
    }
    /// |x| + error.
    fn most(&self, i: usize) -> Vec<f64> {
        self.x[i].value.data.iter().zip(&self.x[i].error).map(|(x, e)| x.abs() + e).collect()
    }
    fn least(&self, i: usize) -> Vec<f64> {
        self.x[i].value.data.iter().map(|x| x.abs()).collect()
    }
    fn certain(&self, i: usize) -> bool {
        self.x[i].error.iter().all(|e| *e == 0.0)
    }
    fn unknown(&self) -> Vec<Vec<f64>> {
        self.results.iter().map(|t| vec![f64::INFINITY; t.data.len()]).collect()
    }
    /// Adds the rounding of result `i` to what came from its operands.
    fn rounded(&self, i: usize, mut error: Vec<f64>, own: &Own) -> Vec<f64> {
        let dtype = self.node.types[i].dtype;
        if !dtype.is_float() {
            return error;
        }
        let (unit, (tiny, greatest)) = (self.roundoff.unit(dtype), self.roundoff.range(dtype));
        for (e, y) in error.iter_mut().zip(&self.results[i].data) {
            let by = match own {
                Own::Moved => continue,
                Own::Rounded if *e == 0.0 && self.roundoff.holds(dtype, *y) => continue,
                Own::Rounded => unit,
                // The arithmetic within is f32 at least.
                Own::Approximate => unit + 6.0 * self.roundoff.inner(dtype),
            };
            if !y.is_finite() {
                *e = if *e == 0.0 { 0.0 } else { f64::INFINITY };
                continue;
            }
            *e += by * (y.abs() + *e) + tiny;
            if y.abs() + *e > greatest * (1.0 - unit) {
                *e = f64::INFINITY;
            }
        }
        error
    }
    /// The errors of a sum whose terms are at most `most` in size and certainly `least`, `n` of them.
    fn summed(&self, most: &[f64], least: &[f64], n: f64) -> Vec<f64> {
        let unit = self.roundoff.inner(self.dtype());
        let error = most.iter().zip(least).map(|(m, l)| (m - l) + ((n + 2.0) * unit + 1e-15) * m);
        self.rounded(0, error.collect(), &Own::Rounded)
    }
    /// Whether integers may have left their range.
    fn overflows(&self) -> bool {
        let most = match self.dtype() {
            DType::I32 => f64::from(i32::MAX),
            DType::I64 => 2f64.powi(53),
            DType::F64 | DType::F32 | DType::TF32 | DType::BF16 | DType::F16 | DType::E4M3 | DType::Bool => return false,
        };
        self.results[0].data.iter().any(|x| x.abs() >= most)
    }
    /// Integers: as certain as all operands together.
    fn of_integers(&self) -> Vec<f64> {
        let certain = (0..self.x.len()).all(|i| self.certain(i)) && !self.overflows();
        vec![if certain { 0.0 } else { f64::INFINITY }; self.results[0].data.len()]
    }

    fn errors(&self) -> Result<Vec<Vec<f64>>, InterpError> {
        let errors = |i: usize| self.x[i].error.clone();
        Ok(vec![match &self.node.op {
            Op::Arg(_) | Op::Repeat(_) | Op::Fused(_) | Op::Quantize(_) | Op::Dequantize(_) => {
                base::bug!("arguments, bodies and what has a definition are bounded elsewhere")
            }
            Op::Const(..) | Op::Extent(..) | Op::Iota(_) => self.rounded(0, vec![0.0; self.results[0].data.len()], &Own::Rounded),
            Op::Map(f) => self.map(*f),
            Op::Cast(to) => self.cast(*to),
            Op::Reduce(f, _) => self.reduce(*f)?,
            Op::Pad { axis, low, high, value } => {
                let zero = Op::Pad { axis: *axis, low: low.clone(), high: high.clone(), value: crate::op::Scalar::new(0.0) };
                let node = Node { op: zero, ..self.node.clone() };
                let error = Site { node: &node, ..*self }.again(vec![errors(0)])?;
                // The padding may have to be rounded.
                let held = !self.dtype().is_float() || self.roundoff.holds(self.dtype(), value.get()) || value.get().is_nan();
                if held { error } else { self.rounded(0, error, &Own::Rounded) }
            }
            Op::Broadcast { .. } | Op::Transpose(_) | Op::Reshape(_) | Op::Slice { .. } | Op::Concat(_) | Op::StopGradient => {
                self.again((0..self.x.len()).map(errors).collect())?
            }
            Op::Gather { batch } => {
                let mut error = self.again(vec![errors(0), self.x[1].value.data.clone()])?;
                let row = size(&self.x[0].value.shape[batch + 1..]);
                error.iter_mut().enumerate().for_each(|(i, e)| *e += self.x[1].error[i / row]);
                error
            }
            Op::ScatterAdd { .. } if !self.certain(0) => return Ok(self.unknown()),
            Op::ScatterAdd { .. } if !self.dtype().is_float() => self.of_integers(),
            Op::ScatterAdd { .. } => {
                let index = || self.x[0].value.data.clone();
                let [most, least] = [self.again(vec![index(), self.most(1)])?, self.again(vec![index(), self.least(1)])?];
                self.summed(&most, &least, self.x[0].error.len() as f64)
            }
            Op::Cumsum { .. } if !self.dtype().is_float() => self.of_integers(),
            Op::Cumsum { axis, .. } => {
                let n = self.results[0].shape[*axis] as f64;
                self.summed(&self.again(vec![self.most(0)])?, &self.again(vec![self.least(0)])?, n)
            }
            Op::Contract(c) => {
                let summed = c.lhs.iter().zip(&self.x[0].value.shape).filter(|(l, _)| !c.out.contains(l));
                let n: i64 = summed.map(|(_, n)| n).product();
                let most = self.again(vec![self.most(0), self.most(1)])?;
                self.summed(&most, &self.again(vec![self.least(0), self.least(1)])?, n as f64)
            }
            Op::Exchange { what: Exchange::Offsets, .. } if !self.certain(0) => return Ok(self.unknown()),
            Op::Exchange { what: Exchange::Offsets, .. } => {
                return Ok(self.results.iter().map(|t| vec![0.0; t.data.len()]).collect());
            }
            Op::Exchange { .. } if !self.certain(1) => return Ok(self.unknown()),
            Op::Exchange { .. } => self.again(vec![errors(0), self.x[1].value.data.clone()])?,
            Op::GroupedContract { .. } | Op::GroupedOuter if !self.certain(2) => return Ok(self.unknown()),
            Op::GroupedContract { .. } | Op::GroupedOuter => {
                let offsets = || self.x[2].value.data.clone();
                let most = self.again(vec![self.most(0), self.most(1), offsets()])?;
                let least = self.again(vec![self.least(0), self.least(1), offsets()])?;
                self.summed(&most, &least, self.x[0].value.shape.iter().copied().max().unwrap_or(0) as f64)
            }
            Op::TopK(k) => self.topk(*k as usize),
            Op::Route { .. } if !self.certain(0) => return Ok(self.unknown()),
            Op::Route { .. } => return Ok(self.results.iter().map(|t| vec![0.0; t.data.len()]).collect()),
            Op::Attend(_) if (3..self.x.len()).any(|i| !self.certain(i)) => return Ok(self.unknown()),
            Op::Attend(a) => return Ok(self.attend(a)),
            Op::AttendGrad(_) if (7..self.x.len()).any(|i| !self.certain(i)) => return Ok(self.unknown()),
            Op::AttendGrad(a) => return Ok(self.attend_grad(a)),
        }])
    }

    fn map(&self, f: MapFn) -> Vec<f64> {
        if self.overflows() {
            return self.unknown().remove(0);
        }
        let number = |i: usize| {
            let (x, e): (Vec<f64>, Vec<f64>) = self.x.iter().map(|b| (b.value.data[i], b.error[i])).unzip();
            if e.iter().all(|e| *e == 0.0) { 0.0 } else { spread(f, &x, &e, self.results[0].data[i]) }
        };
        let mut error: Vec<f64> = (0..self.results[0].data.len()).map(number).collect();
        if f == MapFn::Erf {
            // What the reference computes is not much better than f64 either.
            error.iter_mut().for_each(|e| *e += 1e-14);
        }
        let own = match f {
            MapFn::Add | MapFn::Sub | MapFn::Mul | MapFn::Div => Own::Rounded,
            MapFn::Neg | MapFn::Abs | MapFn::Sign | MapFn::Floor | MapFn::Min | MapFn::Max | MapFn::Select => Own::Moved,
            MapFn::Pow
            | MapFn::Exp
            | MapFn::Log
            | MapFn::Sqrt
            | MapFn::Rsqrt
            | MapFn::Sin
            | MapFn::Cos
            | MapFn::Tanh
            | MapFn::Sigmoid
            | MapFn::Silu
            | MapFn::Swiglu
            | MapFn::Softplus
            | MapFn::Erf => Own::Approximate,
            MapFn::FloorDiv
            | MapFn::Rem
            | MapFn::Eq
            | MapFn::Ne
            | MapFn::Lt
            | MapFn::Le
            | MapFn::And
            | MapFn::Or
            | MapFn::Not
            | MapFn::IsFinite => return error,
        };
        self.rounded(0, error, &own)
    }
    fn cast(&self, to: DType) -> Vec<f64> {
        let from = self.x[0].value.dtype;
        let pairs = self.x[0].value.data.iter().zip(&self.x[0].error);
        if to.is_float() {
            let mut error = self.rounded(0, self.x[0].error.clone(), &Own::Rounded);
            if to == DType::E4M3 && self.roundoff == Roundoff::Dtype {
                // It saturates, so that being next to its range's end or beyond it is no doubt.
                let (tiny, greatest) = self.roundoff.range(to);
                for ((e, x), before) in error.iter_mut().zip(&self.x[0].value.data).zip(&self.x[0].error) {
                    let most = x.abs() + before;
                    if *e != 0.0 && most.is_finite() || most > greatest {
                        *e = before + (to.unit_roundoff() * most + tiny).max(most - greatest);
                    }
                }
            }
            return error;
        }
        let known = |x: f64, e: f64| {
            e == 0.0 && (from.is_float() || to.round(x) == x || to == DType::Bool)
                || e > 0.0 && to.round(x - e) == to.round(x + e)
        };
        // What is between two numbers on both sides of 0 may be 0.
        let crosses = |x: f64, e: f64| to == DType::Bool && e >= x.abs() && e > 0.0;
        pairs.map(|(x, e)| if known(*x, *e) && !crosses(*x, *e) { 0.0 } else { f64::INFINITY }).collect()
    }
    fn reduce(&self, f: ReduceFn) -> Result<Vec<f64>, InterpError> {
        if !self.dtype().is_float() {
            let extremes = matches!(f, ReduceFn::Max | ReduceFn::Min) && self.certain(0);
            return Ok(if extremes { vec![0.0; self.results[0].data.len()] } else { self.of_integers() });
        }
        let n = self.x[0].error.len() as f64 / (self.results[0].data.len().max(1)) as f64;
        let with = |f: ReduceFn, data: Vec<f64>| {
            let Op::Reduce(_, axes) = &self.node.op else { base::bug!("a reduction") };
            let node = Node { op: Op::Reduce(f, axes.clone()), ..self.node.clone() };
            Site { node: &node, ..*self }.again(vec![data])
        };
        Ok(match f {
            ReduceFn::Sum | ReduceFn::Prod => {
                let exact = self.certain(0) && f == ReduceFn::Sum && self.x[0].value.data.iter().all(|x| x.fract() == 0.0);
                let (most, least) = (with(f, self.most(0))?, with(f, self.least(0))?);
                if exact && most.iter().all(|m| *m < 2f64.powi(20)) {
                    return Ok(self.rounded(0, vec![0.0; most.len()], &Own::Rounded));
                }
                self.summed(&most, &least, n)
            }
            ReduceFn::Max | ReduceFn::Min => {
                let error = with(ReduceFn::Max, self.x[0].error.clone())?;
                error.into_iter().map(|e| e.max(0.0)).collect()
            }
        })
    }
    /// A choice is known if all that come later are smaller beyond doubt.
    fn topk(&self, k: usize) -> Vec<f64> {
        let n = *self.x[0].value.shape.last().expect("top-k has an axis") as usize;
        let mut error = Vec::new();
        for (chosen, row) in self.results[0].data.chunks(k).enumerate().map(|(r, c)| (c, r * n..(r + 1) * n)) {
            let (x, e) = (&self.x[0].value.data[row.clone()], &self.x[0].error[row]);
            let mut left: Vec<usize> = (0..n).collect();
            let mut known = true;
            for c in chosen {
                // Of equal ones the first is chosen.
                let tied = |c: usize, i: usize| x[c] == x[i] && e[c] == 0.0 && e[i] == 0.0 && c < i;
                let certain = e.iter().all(|e| *e == 0.0);
                if *c >= 0.0 {
                    let c = *c as usize;
                    left.retain(|i| *i != c);
                    known &= certain || left.iter().all(|i| x[c] - e[c] > x[*i] + e[*i] || tied(c, *i));
                } else {
                    known &= left.iter().all(|i| e[*i] == 0.0);
                }
                error.push(if known { 0.0 } else { f64::INFINITY });
            }
        }
        error
    }

    /// Score of a key and its error.
    fn score(&self, a: &Attend, x: &Extents, at: usize, row: Row, s: usize) -> (f64, f64) {
        let (q, k) = (at * x.dk..(at + 1) * x.dk, x.key(row, s, x.dk));
        let (score, error) = self.dot(0, q, 1, k);
        let scale = a.scale.get();
        let score = scale * score;
        (score, scale.abs() * error + 4.0 * self.roundoff.inner(self.dtype()) * score.abs())
    }
    /// A dot product of parts of two operands, and its error.
    fn dot(&self, a: usize, of_a: std::ops::Range<usize>, b: usize, of_b: std::ops::Range<usize>) -> (f64, f64) {
        let (x, y) = (&self.x[a], &self.x[b]);
        let (u, v) = (&x.value.data[of_a.clone()], &y.value.data[of_b.clone()]);
        let (eu, ev) = (&x.error[of_a], &y.error[of_b]);
        let unit = (u.len() as f64 + 4.0) * self.roundoff.inner(self.dtype());
        let mut error = 0.0;
        for i in 0..u.len() {
            error += u[i].abs() * ev[i] + v[i].abs() * eu[i] + eu[i] * ev[i];
            error += unit * (u[i].abs() + eu[i]) * (v[i].abs() + ev[i]);
        }
        (dot(u, v), if error.is_nan() { f64::INFINITY } else { error })
    }
    fn attend(&self, a: &Attend) -> Vec<Vec<f64>> {
        let (q, v) = (&self.x[0].value, &self.x[2].value);
        let x = Extents::of(q, v);
        let (unit, inner) = (self.roundoff.unit(self.dtype()), self.roundoff.inner(self.dtype()));
        let mut errors: Vec<Vec<f64>> = self.results.iter().map(|t| vec![0.0; t.data.len()]).collect();
        let domain: Vec<&Tensor> = self.x[3..].iter().map(|b| &b.value).collect();
        x.each_row(q.extents()[0], &a.domain, &domain, |row, h, keys| {
            if keys.is_empty() {
                return;
            }
            let at = x.query(row, h);
            let scores: Vec<(f64, f64)> = keys.iter().map(|s| self.score(a, &x, at, row, *s)).collect();
            let max = scores.iter().fold(f64::NEG_INFINITY, |m, (s, _)| m.max(*s));
            let sum: f64 = scores.iter().map(|(s, _)| (s - max).exp()).sum();
            let doubt = scores.iter().fold(0.0f64, |d, (s, e)| worse(d, e + inner * (2.0 * s.abs() + 2.0 * max.abs() + 8.0)));
            let terms = (keys.len() as f64 + 8.0) * inner;
            // Weights may be rounded to the operands' dtype.
            let relative = (2.0 * doubt).exp_m1() + terms + 2.0 * unit;
            for (s, (score, _)) in keys.iter().zip(&scores) {
                let weight = (score - max).exp() / sum;
                for (j, i) in x.key(row, *s, x.dv).enumerate() {
                    let (v, e) = (v.data[i], self.x[2].error[i]);
                    errors[0][at * x.dv + j] += weight * (relative * (v.abs() + e) + e);
                }
            }
            errors[1][at] = doubt + terms + 4.0 * inner * max.abs();
        });
        errors.into_iter().enumerate().map(|(i, e)| self.rounded(i, e, &Own::Rounded)).collect()
    }
    fn attend_grad(&self, a: &Attend) -> Vec<Vec<f64>> {
        let (q, k, v) = (&self.x[0], &self.x[1], &self.x[2]);
        let (lse, d_o, d_lse) = (&self.x[4], &self.x[5], &self.x[6]);
        let x = Extents::of(&q.value, &v.value);
        let (unit, inner) = (self.roundoff.unit(self.dtype()), self.roundoff.inner(self.dtype()));
        let mut errors: Vec<Vec<f64>> = self.results.iter().map(|t| vec![0.0; t.data.len()]).collect();
        let domain: Vec<&Tensor> = self.x[7..].iter().map(|b| &b.value).collect();
        let terms = (x.s + x.t * x.h + 8) as f64 * inner;
        x.each_row(q.value.extents()[0], &a.domain, &domain, |row, h, keys| {
            let at = x.query(row, h);
            let (of_q, of_o) = (at * x.dk..(at + 1) * x.dk, at * x.dv..(at + 1) * x.dv);
            let (delta, mut e_delta) = self.dot(5, of_o.clone(), 3, of_o.clone());
            let delta = delta - d_lse.value.data[at];
            e_delta += d_lse.error[at] + 2.0 * inner * (delta.abs() + d_lse.value.data[at].abs());
            let (lse, e_lse) = (lse.value.data[at], lse.error[at]);
            for s in keys {
                let (of_k, of_v) = (x.key(row, *s, x.dk), x.key(row, *s, x.dv));
                let (score, e) = self.score(a, &x, at, row, *s);
                let p = (score - lse).exp();
                let doubt = e + e_lse + inner * (2.0 * score.abs() + 2.0 * lse.abs() + 8.0);
                let e_p = p * (doubt.exp_m1() + 2.0 * unit);
                let (dp, e_dp) = self.dot(5, of_o.clone(), 2, of_v.clone());
                let (inside, e_inside) = ((dp - delta).abs(), e_dp + e_delta + 2.0 * inner * (dp.abs() + delta.abs()));
                let scale = a.scale.get().abs();
                let ds = scale * p * inside;
                let e_ds = scale * (p * e_inside + e_p * (inside + e_inside)) + (2.0 * unit + 4.0 * inner) * ds;
                for (j, o) in of_o.clone().enumerate() {
                    let (y, e) = (d_o.value.data[o].abs(), d_o.error[o]);
                    errors[2][of_v.start + j] += p * e + e_p * (y + e) + terms * (p + e_p) * (y + e);
                }
                for (i, j) in of_q.clone().zip(of_k) {
                    let of = |b: &Bounded, i: usize| {
                        let (y, e) = (b.value.data[i].abs(), b.error[i]);
                        ds * e + e_ds * (y + e) + terms * (ds + e_ds) * (y + e)
                    };
                    errors[0][i] += of(k, j);
                    errors[1][j] += of(q, i);
                }
            }
        });
        errors.into_iter().enumerate().map(|(i, e)| self.rounded(i, e, &Own::Rounded)).collect()
    }
}

/// The greater of two errors; what is no number says that something is unknown.
fn worse(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::INFINITY } else { a.max(b) }
}

/// What errors `e` of `x` can make of `y = f(x)`; not all are 0.
fn spread(f: MapFn, x: &[f64], e: &[f64], y: f64) -> f64 {
    let all: f64 = e.iter().sum();
    let decided = |known: bool| if known { 0.0 } else { f64::INFINITY };
    let ends = |least: f64| {
        if x[0] - e[0] < least {
            return f64::INFINITY;
        }
        [x[0] - e[0], x[0] + e[0]].iter().fold(0.0f64, |m, x| worse(m, (f.eval(&[*x]) - y).abs()))
    };
    let product = |a: f64, ea: f64, b: f64, eb: f64| a.abs() * eb + b.abs() * ea + ea * eb;
    if f.kind() == Kind::Int {
        return f64::INFINITY;
    }
    match f {
        MapFn::Add | MapFn::Sub | MapFn::Neg | MapFn::Abs => all,
        MapFn::Min | MapFn::Max => e[0].max(e[1]),
        MapFn::Mul => product(x[0], e[0], x[1], e[1]),
        MapFn::Div if x[1].abs() <= e[1] => f64::INFINITY,
        MapFn::Div => (e[0] + y.abs() * e[1]) / (x[1].abs() - e[1]),
        MapFn::FloorDiv | MapFn::Rem => f64::INFINITY,
        // Monotone in each operand where the base is positive.
        MapFn::Pow if x[0] - e[0] <= 0.0 => f64::INFINITY,
        MapFn::Pow => [-1.0, 1.0]
            .iter()
            .flat_map(|i| [-1.0, 1.0].map(|j| (f.eval(&[x[0] + i * e[0], x[1] + j * e[1]]) - y).abs()))
            .fold(0.0, worse),
        MapFn::Sign => decided(x[0].abs() > e[0]),
        MapFn::Floor => decided((x[0] - e[0]).floor() == (x[0] + e[0]).floor()),
        MapFn::Exp | MapFn::Tanh | MapFn::Sigmoid | MapFn::Softplus | MapFn::Erf => ends(f64::NEG_INFINITY),
        MapFn::Log | MapFn::Rsqrt => ends(f64::MIN_POSITIVE),
        MapFn::Sqrt => ends(0.0),
        MapFn::Sin | MapFn::Cos => e[0].min(2.0),
        // The derivative is at most 1.1 in size.
        MapFn::Silu => 1.1 * e[0],
        MapFn::Swiglu => product(MapFn::Silu.eval(&x[..1]), 1.1 * e[0], x[1], e[1]),
        MapFn::Eq | MapFn::Ne | MapFn::Lt | MapFn::Le => decided((x[0] - x[1]).abs() > all),
        MapFn::And => decided((0..2).any(|i| e[i] == 0.0 && x[i] == 0.0)),
        MapFn::Or => decided((0..2).any(|i| e[i] == 0.0 && x[i] != 0.0)),
        MapFn::Not => f64::INFINITY,
        MapFn::IsFinite => decided(x[0].is_finite() && all.is_finite()),
        MapFn::Select if e[0] == 0.0 => e[if x[0] != 0.0 { 1 } else { 2 }],
        MapFn::Select => e[1].max(e[2]) + (x[1] - x[2]).abs(),
    }
}

impl Bounded {
    /// The first of `got` that no correct evaluation gives: where it is, what it is, what it should be, and by how much it may differ.
    /// Infinite and undefined numbers are to be the same; where nothing is known, anything goes.
    pub fn disagreement(&self, got: &[f64]) -> Option<(usize, f64, f64, f64)> {
        let same = |g: f64, y: f64, e: f64| e == f64::INFINITY || g == y || (g.is_nan() && y.is_nan()) || (g - y).abs() <= e;
        let numbers = || got.iter().zip(&self.value.data).zip(&self.error);
        if got.len() != self.error.len() {
            return Some((got.len(), f64::NAN, f64::NAN, 0.0));
        }
        let at = numbers().position(|((g, y), e)| !same(*g, *y, *e))?;
        Some((at, got[at], self.value.data[at], self.error[at]))
    }
    /// How many values have a bound.
    pub fn num_known(&self) -> usize {
        self.error.iter().filter(|e| e.is_finite()).count()
    }
}

#[cfg(test)]
mod tests;
