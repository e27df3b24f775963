//! The f64 meaning of a graph: the oracle that every pass, kernel and derivative is compared with. In: a verified function,
//! arguments, values of the run-time dims. Out: the outputs, in order.
//!
//! Integers are exact up to 2^53 in size; i64 values beyond that and overflow are out of scope (they saturate). Sums run in f64 in a
//! fixed order.

mod attend;
pub mod bounds;
mod contract;
mod elementwise;
mod index;
mod layout;
mod moe;
pub mod peers;
mod quantize;
#[cfg(test)]
mod tests;

use crate::{
    ir::{Func, Node, NodeId, Value},
    op::{Exchange, Op, Repeat},
};
use base::{DType, DimEnv, TensorType, arena::Id, dim::Atom};
use peers::{Alone, Peers};
use std::{fmt, rc::Rc, sync::Arc};

/// A tensor: row-major values of a dtype, each held in an f64.
#[derive(Clone, PartialEq)]
pub struct Tensor {
    /// The type of the elements.
    pub dtype: DType,
    /// The extents; empty for a scalar.
    pub shape: Vec<i64>,
    /// As many values as the extents' product.
    pub data: Vec<f64>,
}

impl Tensor {
    /// A tensor of `data` rounded to `dtype`.
    ///
    /// # Panics
    /// If the number of values is not the product of the extents.
    pub fn new(dtype: DType, shape: &[i64], data: Vec<f64>) -> Tensor {
        assert_eq!(shape.iter().product::<i64>(), data.len() as i64, "values of a tensor of shape {shape:?}");
        let data = data.into_iter().map(|x| dtype.round(x)).collect();
        Tensor { dtype, shape: shape.to_vec(), data }
    }
    /// A tensor of one value.
    pub fn full(dtype: DType, shape: &[i64], x: f64) -> Tensor {
        Tensor { dtype, shape: shape.to_vec(), data: vec![dtype.round(x); size(shape)] }
    }
    /// The extents as counts.
    fn extents(&self) -> Vec<usize> {
        self.shape.iter().map(|n| *n as usize).collect()
    }
    /// The extents of a tensor of rank `N`.
    fn axes<const N: usize>(&self) -> [usize; N] {
        self.extents().try_into().expect("the shape rule fixed the rank")
    }
    /// Whether this has the type, for the dims.
    fn is(&self, ty: &TensorType, dims: &DimEnv) -> bool {
        self.dtype == ty.dtype && ty.eval(dims).as_ref() == Some(&self.shape) && self.data.len() == size(&self.shape)
    }
}

/// `f32[2, 3] 1.0 2.0 …`, cut after 64 values.
impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape)?;
        self.data.iter().take(64).try_for_each(|x| write!(f, " {x}"))?;
        if self.data.len() > 64 { f.write_str(" …") } else { Ok(()) }
    }
}

fn size(shape: &[i64]) -> usize {
    shape.iter().product::<i64>() as usize
}

/// How floats are kept between nodes. Integers and bools are what their dtype can hold in both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// In f64, whatever their dtype: the reference that tolerances are stated for.
    #[default]
    Exact,
    /// Each node's result is rounded to its dtype, once.
    Rounded,
}

/// How to evaluate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// How floats are kept.
    pub precision: Precision,
}

impl Options {
    /// No rounding between nodes.
    pub const EXACT: Options = Options { precision: Precision::Exact };
    /// Each node's result rounded to its dtype.
    pub const ROUNDED: Options = Options { precision: Precision::Rounded };
}

/// Why a function cannot be evaluated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InterpError {
    /// The wrong number of arguments.
    #[error("{func} takes {expected} arguments, not {given}")]
    Count {
        /// The function.
        func: String,
        /// How many it takes.
        expected: usize,
        /// How many there are.
        given: usize,
    },
    /// An argument does not have the type.
    #[error("argument '{name}' is {given}, not {expected}")]
    Argument {
        /// Its name.
        name: String,
        /// Its type in the function.
        expected: String,
        /// What was given.
        given: String,
    },
    /// A run-time dim that no argument binds.
    #[error("the run-time dims of '{dim}' have no value")]
    Unbound {
        /// The extent.
        dim: String,
    },
    /// Two arguments bind a dim to different values.
    #[error("{dim} is {first} in argument '{first_arg}' and {second} in argument '{second_arg}'")]
    Conflict {
        /// The dim.
        dim: String,
        /// The value it had first.
        first: i64,
        /// Where.
        first_arg: String,
        /// The value it has then.
        second: i64,
        /// Where.
        second_arg: String,
    },
    /// A node reads or makes what does not exist for these dims.
    #[error("{func} {node}: {message}")]
    Bounds {
        /// The function.
        func: String,
        /// The node.
        node: NodeId,
        /// What is wrong.
        message: String,
    },
}

/// The values of run-time dims for arguments of these shapes: an extent that is a dim binds it, all others are checked.
///
/// # Errors
/// If the shapes do not fit, or two arguments disagree.
pub fn bind_dims(func: &Func, shapes: &[&[i64]]) -> Result<DimEnv, InterpError> {
    if shapes.len() != func.args.len() {
        return Err(InterpError::Count { func: func.name.clone(), expected: func.args.len(), given: shapes.len() });
    }
    let mut dims = DimEnv::new();
    let mut binder: std::collections::BTreeMap<Arc<str>, &str> = std::collections::BTreeMap::new();
    let misfit = |name: &str, ty: &TensorType, shape: &[i64]| InterpError::Argument {
        name: name.into(),
        expected: ty.to_string(),
        given: format!("{shape:?}"),
    };
    for ((arg, _, ty), shape) in func.arg_values().zip(shapes) {
        if shape.len() != ty.rank() || shape.iter().any(|n| *n < 0) {
            return Err(misfit(&arg.name, ty, shape));
        }
        for (dim, n) in ty.shape.iter().zip(*shape) {
            let terms = dim.sum_of_products();
            let [(1, atoms)] = &terms[..] else { continue };
            let [Atom::Sym(name)] = &atoms[..] else { continue };
            let first = *dims.entry(name.clone()).or_insert(*n);
            let first_arg = binder.entry(name.clone()).or_insert(&arg.name);
            if first != *n {
                return Err(InterpError::Conflict {
                    dim: name.to_string(),
                    first,
                    first_arg: first_arg.to_string(),
                    second: *n,
                    second_arg: arg.name.clone(),
                });
            }
        }
    }
    for ((arg, _, ty), shape) in func.arg_values().zip(shapes) {
        for (dim, n) in ty.shape.iter().zip(*shape) {
            match dim.eval(&dims) {
                None => return Err(InterpError::Unbound { dim: dim.to_string() }),
                Some(m) if m != *n => return Err(misfit(&arg.name, ty, shape)),
                Some(_) => {}
            }
        }
    }
    Ok(dims)
}

/// The outputs of `func`, in order.
///
/// # Errors
/// If the arguments do not have the types, a dim has no value, or a node takes elements that are not there.
pub fn eval(func: &Func, args: &[Tensor], dims: &DimEnv, options: Options) -> Result<Vec<Tensor>, InterpError> {
    eval_among(func, args, dims, options, &Alone)
}

/// As [`eval`], as one of a group of interpreters that exchange rows.
///
/// # Errors
/// As [`eval`].
pub fn eval_among(
    func: &Func,
    args: &[Tensor],
    dims: &DimEnv,
    options: Options,
    peers: &dyn Peers,
) -> Result<Vec<Tensor>, InterpError> {
    if args.len() != func.args.len() {
        return Err(InterpError::Count { func: func.name.clone(), expected: func.args.len(), given: args.len() });
    }
    for ((arg, _, ty), given) in func.arg_values().zip(args) {
        if !given.is(ty, dims) {
            return Err(InterpError::Argument {
                name: arg.name.clone(),
                expected: ty.to_string(),
                given: format!("{}{:?}", given.dtype, given.shape),
            });
        }
    }
    let args = args.iter().cloned().map(Rc::new).collect();
    let results = run(func, args, dims, (options, peers))?;
    Ok(results.into_iter().map(Rc::unwrap_or_clone).collect())
}

/// How to evaluate, and among whom.
type How<'a> = (Options, &'a dyn Peers);

/// Evaluates nodes in order; a value is dropped after its last use.
fn run(func: &Func, args: Vec<Rc<Tensor>>, dims: &DimEnv, how: How) -> Result<Vec<Rc<Tensor>>, InterpError> {
    let mut last_use = vec![0usize; func.nodes.len()];
    for (id, node) in func.nodes.iter() {
        node.inputs.iter().for_each(|v| last_use[v.node.index()] = id.index());
    }
    func.outputs.iter().for_each(|o| last_use[o.value.node.index()] = usize::MAX);
    let mut values: Vec<Vec<Rc<Tensor>>> = Vec::with_capacity(func.nodes.len());
    for (id, node) in func.nodes.iter() {
        let results = match node.op {
            Op::Arg(i) => vec![args[i as usize].clone()],
            _ => {
                let operands: Vec<Rc<Tensor>> = node.inputs.iter().map(|v| fetch(&values, *v)).collect();
                let site = Site { func, id, node, dims, options: how.0, peers: how.1 };
                site.results(&operands)?
            }
        };
        values.push(results);
        for v in &node.inputs {
            if last_use[v.node.index()] == id.index() {
                values[v.node.index()].clear();
            }
        }
    }
    Ok(func.outputs.iter().map(|o| fetch(&values, o.value)).collect())
}

/// The results of one node on its operands.
pub(crate) fn apply(
    node: &Node,
    operands: &[Rc<Tensor>],
    dims: &DimEnv,
    options: Options,
) -> Result<Vec<Rc<Tensor>>, InterpError> {
    Site { func: &Func::new("f"), id: NodeId(0), node, dims, options, peers: &Alone }.results(operands)
}

fn fetch(values: &[Vec<Rc<Tensor>>], v: Value) -> Rc<Tensor> {
    values[v.node.index()][v.index as usize].clone()
}

/// A node being evaluated.
struct Site<'a> {
    func: &'a Func,
    id: NodeId,
    node: &'a Node,
    dims: &'a DimEnv,
    options: Options,
    peers: &'a dyn Peers,
}

impl Site<'_> {
    fn fail<T>(&self, message: String) -> Result<T, InterpError> {
        Err(InterpError::Bounds { func: self.func.name.clone(), node: self.id, message })
    }
    fn extent(&self, dim: &base::Dim) -> Result<i64, InterpError> {
        dim.eval(self.dims).ok_or_else(|| InterpError::Unbound { dim: dim.to_string() })
    }
    /// The shape of result `i`.
    fn shape(&self, i: usize) -> Result<Vec<i64>, InterpError> {
        let shape = self.node.types[i].shape.iter().map(|d| self.extent(d)).collect::<Result<Vec<i64>, _>>()?;
        if shape.iter().any(|n| *n < 0) {
            return self.fail(format!("{} is {shape:?} here", self.node.types[i]));
        }
        Ok(shape)
    }
    fn results(&self, x: &[Rc<Tensor>]) -> Result<Vec<Rc<Tensor>>, InterpError> {
        if let Op::Repeat(r) = &self.node.op {
            return self.repeat(r, x);
        }
        if let Op::Fused(f) = &self.node.op {
            return run(&f.body, x.to_vec(), self.dims, (self.options, self.peers));
        }
        let shapes = (0..self.node.types.len()).map(|i| self.shape(i)).collect::<Result<Vec<_>, _>>()?;
        let data = self.data(&x.iter().map(|t| &**t).collect::<Vec<_>>(), &shapes)?;
        let mut results = Vec::new();
        for ((ty, shape), mut data) in self.node.types.iter().zip(shapes).zip(data) {
            assert_eq!(data.len(), size(&shape), "{} makes {ty}", self.node.op.name());
            if !ty.dtype.is_float() || self.options.precision == Precision::Rounded {
                data.iter_mut().for_each(|x| *x = ty.dtype.round(*x));
            }
            results.push(Rc::new(Tensor { dtype: ty.dtype, shape, data }));
        }
        Ok(results)
    }
    /// The values of each result, before rounding.
    fn data(&self, x: &[&Tensor], shapes: &[Vec<i64>]) -> Result<Vec<Vec<f64>>, InterpError> {
        let out: Vec<usize> = shapes[0].iter().map(|n| *n as usize).collect();
        Ok(vec![match &self.node.op {
            Op::Arg(_) => base::bug!("arguments are bound before"),
            Op::Const(c, _) => vec![c.get()],
            Op::Extent(d, _) => vec![self.extent(d)? as f64],
            Op::Iota(_) => (0..out[0]).map(|i| i as f64).collect(),
            Op::Map(f) => elementwise::map(*f, x),
            Op::Cast(to) => elementwise::cast(*to, x[0]),
            Op::Reduce(f, axes) => elementwise::reduce(*f, axes, x[0]),
            Op::Broadcast { axes, .. } => layout::broadcast(axes, x[0], &out),
            Op::Transpose(perm) => layout::transpose(perm, x[0]),
            Op::Reshape(_) if x[0].data.len() != size(&shapes[0]) => {
                return self.fail(format!("reshape of {:?} to {:?}", x[0].shape, shapes[0]));
            }
            Op::Reshape(_) | Op::StopGradient => x[0].data.clone(),
            Op::Slice { axis, start, step, .. } => {
                let (start, len, extent) = (self.extent(start)?, shapes[0][*axis], x[0].shape[*axis]);
                if start < 0 || start > extent || (len > 0 && start + (len - 1) * step >= extent) {
                    return self.fail(format!("slice of {len} elements from {start} by {step} of an axis of {extent}"));
                }
                layout::slice(*axis, start as usize, *step as usize, x[0], &out)
            }
            Op::Concat(axis) => layout::concat(*axis, x),
            Op::Pad { axis, low, high, value } => {
                let (low, high) = (self.extent(low)?, self.extent(high)?);
                if low < 0 || high < 0 {
                    return self.fail(format!("a padding of {low} and {high}"));
                }
                layout::pad(*axis, low as usize, high as usize, value.get(), x[0])
            }
            Op::Contract(c) => contract::contract(c, x[0], x[1], &out),
            Op::Gather { batch } => index::gather(*batch, x[0], x[1]),
            Op::ScatterAdd { batch, .. } => index::scatter_add(*batch, out[*batch], x[0], x[1]),
            Op::TopK(k) => index::topk(*k as usize, x[0]),
            Op::Cumsum { axis, exclusive, reverse } => elementwise::cumsum(*axis, *exclusive, *reverse, x[0]),
            Op::Attend(a) => return Ok(attend::attend(a, x)),
            Op::AttendGrad(a) => return Ok(attend::attend_grad(a, x)),
            Op::Route { groups } => return Ok(index::route(*groups as usize, x[0])),
            Op::GroupedContract { transposed } => contract::grouped_contract(*transposed, x[0], x[1], x[2]),
            Op::GroupedOuter => contract::grouped_outer(x[0], x[1], x[2]),
            Op::Exchange { members, .. } if *members != self.peers.size() as i64 => {
                return self.fail(format!("{members} members where there are {}", self.peers.size()));
            }
            Op::Exchange { what: Exchange::Offsets, .. } => return Ok(moe::offsets(self.peers, x[0])),
            Op::Exchange { what: Exchange::There, .. } => match moe::there(self.peers, x[0], x[1], out[0]) {
                Some(rows) => rows,
                None => return self.fail(format!("more than {} rows arrive", out[0])),
            },
            Op::Exchange { what: Exchange::Back, .. } => moe::back(self.peers, x[0], x[1], out[0]),
            Op::Quantize(block) => return Ok(quantize::quantize(*block, x[0], self.options.precision)),
            Op::Dequantize(block) => quantize::dequantize(*block, x[0], x[1]),
            Op::Repeat(_) | Op::Fused(_) => base::bug!("bodies are evaluated op by op"),
        }])
    }
    fn repeat(&self, r: &Repeat, x: &[Rc<Tensor>]) -> Result<Vec<Rc<Tensor>>, InterpError> {
        let (fixed, count) = (r.carried + r.constant, r.count as usize);
        let mut carried = x[..r.carried].to_vec();
        let mut stacks = Vec::new();
        for (i, ty) in self.node.types.iter().enumerate().skip(r.carried) {
            let shape = self.shape(i)?;
            stacks.push(Tensor { dtype: ty.dtype, data: vec![0.0; size(&shape)], shape });
        }
        for turn in 0..count {
            let at = if r.reverse { count - 1 - turn } else { turn };
            let mut args = std::mem::take(&mut carried);
            args.extend_from_slice(&x[r.carried..fixed]);
            args.extend(x[fixed..].iter().map(|stack| {
                let (shape, n) = (stack.shape[1..].to_vec(), stack.data.len() / count);
                Rc::new(Tensor { dtype: stack.dtype, shape, data: stack.data[at * n..(at + 1) * n].to_vec() })
            }));
            carried = run(&r.body, args, self.dims, (self.options, self.peers))?;
            for (stack, slice) in stacks.iter_mut().zip(carried.drain(r.carried..)) {
                let n = slice.data.len();
                stack.data[at * n..(at + 1) * n].copy_from_slice(&slice.data);
            }
        }
        carried.extend(stacks.into_iter().map(Rc::new));
        Ok(carried)
    }
}
