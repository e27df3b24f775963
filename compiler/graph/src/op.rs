//! The primitive ops: one list, and for each its shape rule. The f64 meaning is in `interp`, the derivative in `autodiff`;
//! both match on [`Op`] without a wildcard.

use crate::ir::Func;
use base::{DType, Dim, TensorType, ty::ShapeDisplay};

pub mod attend;
pub mod contract;
pub mod fused;
pub mod index;
pub mod layout;
pub mod map;
pub mod moe;
pub mod quantize;
pub mod reduce;
pub mod repeat;

pub use attend::{Attend, Domain};
pub use contract::Contract;
pub use fused::{Form, Fused};
pub use layout::are_pairs;
pub use map::MapFn;
pub use moe::{Exchange, terms_axis};
pub use reduce::ReduceFn;
pub use repeat::Repeat;

/// A constant that is an attribute of an op. Floats compare and hash by their bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scalar(u64);

impl Scalar {
    /// The constant `x`; integers up to 2^53 are exact.
    pub fn new(x: f64) -> Scalar {
        Scalar(x.to_bits())
    }
    /// Its value.
    pub fn get(self) -> f64 {
        f64::from_bits(self.0)
    }
}

impl std::fmt::Debug for Scalar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.get())
    }
}

/// A primitive op. Shapes in the comments: `r..` any axes.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Argument `i` of the function.
    Arg(u32),
    /// A scalar constant of the dtype.
    Const(Scalar, DType),
    /// The value of an extent as a scalar of the dtype.
    Extent(Dim, DType),
    /// `[n]` i32: 0, 1, … n-1.
    Iota(Dim),
    /// Elementwise on operands of one shape.
    Map(MapFn),
    /// Elementwise conversion, rounding to nearest even; float to int truncates toward zero; to bool is `!= 0`.
    Cast(DType),
    /// Over `axes` (sorted), which disappear; sums in the accumulator type. An empty max is -inf, an empty min inf.
    Reduce(ReduceFn, Vec<usize>),
    /// To `shape`; axis `i` of the operand is axis `axes[i]` (increasing) of the result, with equal extent; other axes repeat.
    Broadcast {
        /// The result's shape.
        shape: Vec<Dim>,
        /// Where the operand's axes go.
        axes: Vec<usize>,
    },
    /// Axis `i` of the result is axis `perm[i]` of the operand.
    Transpose(Vec<usize>),
    /// Row-major reinterpretation; the number of elements stays.
    Reshape(Vec<Dim>),
    /// Elements `start, start + step, …` (`len` of them) of `axis`.
    Slice {
        /// The axis.
        axis: usize,
        /// The first.
        start: Dim,
        /// How many.
        len: Dim,
        /// Positive.
        step: i64,
    },
    /// Operands one after the other along `axis`.
    Concat(usize),
    /// `low` and `high` copies of `value` around `axis`.
    Pad {
        /// The axis.
        axis: usize,
        /// How many before; not negative.
        low: Dim,
        /// How many after; not negative.
        high: Dim,
        /// What.
        value: Scalar,
    },
    /// Einstein summation of two operands; sums in the accumulator type, rounds once to the operands' dtype.
    Contract(Contract),
    /// `x [b.., n, r..]`, `idx [b.., i..]` → `[b.., i.., r..]`: `x[b, idx[b, i], r]`, 0 where the index is outside `0..n`.
    Gather {
        /// The number of leading axes shared by both.
        batch: usize,
    },
    /// `idx [b.., i..]`, `v [b.., i.., r..]` → `[b.., n, r..]`: sums `v` rows in increasing `i`; indices outside `0..n` are dropped.
    ScatterAdd {
        /// The number of leading axes shared by both.
        batch: usize,
        /// The extent of the new axis.
        n: Dim,
    },
    /// `x [b.., n]` → i32 `[b.., k]`: indices of the k greatest, best first, ties to the lower index, NaN greatest; -inf is never
    /// chosen; -1 where fewer than k are left.
    TopK(i64),
    /// Running sum along `axis` in the accumulator type.
    Cumsum {
        /// The axis.
        axis: usize,
        /// Whether element i leaves out its own term.
        exclusive: bool,
        /// Whether it runs from the end.
        reverse: bool,
    },
    /// Softmax attention over a domain: q, k, v, domain operands → o, lse.
    Attend(Attend),
    /// Its gradient: q, k, v, o, lse, d_o, d_lse, domain operands → dq, dk, dv.
    AttendGrad(Attend),
    /// i32 `idx [n, k]` of groups, -1 to skip → `offsets [E + 1]`, `source [n*k]`, `position [n, k]`, all i32: a stable counting
    /// sort. `source[r]` is the flat `i*k + j` in row `r` (-1 past `offsets[E]`), `position` its inverse (-1 where skipped).
    Route {
        /// E.
        groups: i64,
    },
    /// `x [R, K]`, `w [E, K, N]` (`[E, N, K]` if transposed), `offsets [E + 1]` → `[R, N]`: each row times its group's matrix;
    /// rows past `offsets[E]` are 0.
    GroupedContract {
        /// Whether `w` is `[E, N, K]`.
        transposed: bool,
    },
    /// `x [R, K]`, `y [R, N]`, `offsets [E + 1]` → `[E, K, N]`: the sum of outer products over the rows of each group.
    GroupedOuter,
    /// Rows among the `members` of a group that divide the experts; see [`Exchange`].
    Exchange {
        /// What is told or sent.
        what: Exchange,
        /// How many; each has as many experts.
        members: i64,
    },
    /// `x [.., n]` → codes in e4m3 `[.., n]` and scales in f32 `[.., ⌈n / size⌉]`, a scale for each [block](quantize::Block) of so many elements of the last
    /// axis (the last block may be shorter), and of so many rows of the axis before, if these are more than 1, of which there are `⌈m / rows⌉` scales: scale = max |x| / 448, code = x · (1 / scale) to nearest even, in f32. A block whose scale is 0 has codes
    /// 0; one with an infinity or NaN is worth NaN.
    Quantize(quantize::Block),
    /// Codes `[.., n]` in e4m3, their scales → f32 `[.., n]`: each code times its block's scale.
    Dequantize(quantize::Block),
    /// The operand, through which no gradient flows.
    StopGradient,
    /// A loop; see [`Repeat`].
    Repeat(Box<Repeat>),
    /// A region; see [`Fused`].
    Fused(Box<Fused>),
}

/// Why an op does not take its operands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct OpError(pub String);

/// Shorthand for a failed shape rule.
macro_rules! op_error {
    ($($arg:tt)*) => { Err($crate::op::OpError(format!($($arg)*))) };
}
pub(crate) use op_error;

impl Op {
    /// The op's name in the text form, without the dialect.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Arg(_) => "arg",
            Op::Const(..) => "const",
            Op::Extent(..) => "extent",
            Op::Iota(_) => "iota",
            Op::Map(_) => "map",
            Op::Cast(_) => "cast",
            Op::Reduce(..) => "reduce",
            Op::Broadcast { .. } => "broadcast",
            Op::Transpose(_) => "transpose",
            Op::Reshape(_) => "reshape",
            Op::Slice { .. } => "slice",
            Op::Concat(_) => "concat",
            Op::Pad { .. } => "pad",
            Op::Contract(_) => "contract",
            Op::Gather { .. } => "gather",
            Op::ScatterAdd { .. } => "scatter_add",
            Op::TopK(_) => "topk",
            Op::Cumsum { .. } => "cumsum",
            Op::Attend(_) => "attend",
            Op::AttendGrad(_) => "attend_grad",
            Op::Route { .. } => "route",
            Op::GroupedContract { .. } => "grouped_contract",
            Op::GroupedOuter => "grouped_outer",
            Op::Exchange { what, .. } => what.name(),
            Op::Quantize(_) => "quantize",
            Op::Dequantize(_) => "dequantize",
            Op::StopGradient => "stop_gradient",
            Op::Repeat(_) => "repeat",
            Op::Fused(_) => "fused",
        }
    }
    /// The functions inside this op.
    pub fn body(&self) -> Option<&Func> {
        match self {
            Op::Repeat(r) => Some(&r.body),
            Op::Fused(f) => Some(&f.body),
            _ => None,
        }
    }
}

/// The result types of `op` on operands of these types.
///
/// # Errors
/// If the op does not take them.
pub fn infer(op: &Op, operands: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    let arity = match op {
        Op::Arg(_) => return op_error!("an argument has no shape rule"),
        Op::Const(..) | Op::Extent(..) | Op::Iota(_) => Some(0),
        Op::Map(f) => Some(f.arity()),
        Op::Cast(_)
        | Op::StopGradient
        | Op::Reduce(..)
        | Op::Broadcast { .. }
        | Op::Transpose(_)
        | Op::Reshape(_)
        | Op::Slice { .. }
        | Op::Pad { .. }
        | Op::TopK(_)
        | Op::Cumsum { .. }
        | Op::Route { .. }
        | Op::Quantize(_) => Some(1),
        Op::Contract(_) | Op::Gather { .. } | Op::ScatterAdd { .. } | Op::Dequantize(_) => Some(2),
        Op::Exchange { what: Exchange::Offsets, .. } => Some(1),
        Op::Exchange { what: Exchange::There | Exchange::Back, .. } => Some(2),
        Op::GroupedContract { .. } | Op::GroupedOuter => Some(3),
        Op::Concat(_) | Op::Attend(_) | Op::AttendGrad(_) | Op::Repeat(_) | Op::Fused(_) => None,
    };
    if let Some(n) = arity.filter(|n| *n != operands.len()) {
        return op_error!("{} takes {n} operands, not {}", op.name(), operands.len());
    }
    let one = |t: TensorType| Ok(vec![t]);
    match op {
        Op::Arg(_) => op_error!("an argument has no shape rule"),
        Op::Const(_, dtype) | Op::Extent(_, dtype) => one(TensorType::scalar(*dtype)),
        Op::Iota(n) => one(TensorType::new(DType::I32, vec![n.clone()])),
        Op::Map(f) => one(map::infer(*f, operands)?),
        Op::Cast(dtype) => one(operands[0].with_dtype(*dtype)),
        Op::Reduce(f, axes) => one(reduce::infer(*f, axes, operands[0])?),
        Op::Broadcast { shape, axes } => one(layout::broadcast(shape, axes, operands[0])?),
        Op::Transpose(perm) => one(layout::transpose(perm, operands[0])?),
        Op::Reshape(shape) => one(layout::reshape(shape, operands[0])?),
        Op::Slice { axis, start, len, step } => one(layout::slice(*axis, start, len, *step, operands[0])?),
        Op::Concat(axis) => one(layout::concat(*axis, operands)?),
        Op::Pad { axis, low, high, .. } => one(layout::pad(*axis, low, high, operands[0])?),
        Op::Contract(c) => one(contract::infer(c, operands[0], operands[1])?),
        Op::Gather { batch } => one(index::gather(*batch, operands[0], operands[1])?),
        Op::ScatterAdd { batch, n } => one(index::scatter_add(*batch, n, operands[0], operands[1])?),
        Op::TopK(k) => one(index::topk(*k, operands[0])?),
        Op::Cumsum { axis, .. } => one(index::cumsum(*axis, operands[0])?),
        Op::Attend(a) => attend::infer(a, operands),
        Op::AttendGrad(a) => attend::infer_grad(a, operands),
        Op::Route { groups } => moe::route(*groups, operands[0]),
        Op::GroupedContract { transposed } => one(moe::grouped_contract(*transposed, operands)?),
        Op::GroupedOuter => one(moe::grouped_outer(operands)?),
        Op::Exchange { what, members } => moe::exchange(*what, *members, operands),
        Op::Quantize(block) => quantize::quantize(*block, operands[0]),
        Op::Dequantize(block) => one(quantize::dequantize(*block, operands[0], operands[1])?),
        Op::StopGradient => one(operands[0].clone()),
        Op::Repeat(r) => repeat::infer(r, operands),
        Op::Fused(f) => fused::infer(f, operands),
    }
}

/// Fails unless `axis < rank`.
pub(crate) fn check_axis(axis: usize, t: &TensorType) -> Result<(), OpError> {
    if axis < t.rank() { Ok(()) } else { op_error!("axis {axis} of {t}") }
}

/// Fails unless `t` has this dtype.
pub(crate) fn check_dtype(what: &str, t: &TensorType, dtype: DType) -> Result<(), OpError> {
    if t.dtype == dtype { Ok(()) } else { op_error!("{what} is {t}, not {dtype}") }
}

/// Fails unless `a` and `b` are one shape.
pub(crate) fn check_shape(what: &str, a: &[Dim], b: &[Dim]) -> Result<(), OpError> {
    if a == b { Ok(()) } else { op_error!("{what} is {}, not {}", ShapeDisplay(a), ShapeDisplay(b)) }
}
