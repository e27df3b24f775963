//! Reductions.

use super::{MapFn, OpError, check_axis, op_error};
use base::{DType, TensorType};

/// An associative function of many numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReduceFn {
    /// The sum; 0 of none.
    Sum,
    /// The product; 1 of none.
    Prod,
    /// The largest; -inf (integers: the least value) of none; NaN if any is.
    Max,
    /// The smallest; inf (integers: the greatest value) of none; NaN if any is.
    Min,
}

impl ReduceFn {
    /// Every function.
    pub const ALL: [ReduceFn; 4] = [ReduceFn::Sum, ReduceFn::Prod, ReduceFn::Max, ReduceFn::Min];
    /// Its name in the text form and the language.
    pub fn name(self) -> &'static str {
        match self {
            ReduceFn::Sum => "sum",
            ReduceFn::Prod => "prod",
            ReduceFn::Max => "max",
            ReduceFn::Min => "min",
        }
    }
    /// The function with this name.
    pub fn from_name(name: &str) -> Option<ReduceFn> {
        ReduceFn::ALL.into_iter().find(|f| f.name() == name)
    }
    /// The function of two partial results that joins them.
    pub fn joins(self) -> MapFn {
        match self {
            ReduceFn::Sum => MapFn::Add,
            ReduceFn::Prod => MapFn::Mul,
            ReduceFn::Max => MapFn::Max,
            ReduceFn::Min => MapFn::Min,
        }
    }
}

pub(super) fn infer(f: ReduceFn, axes: &[usize], t: &TensorType) -> Result<TensorType, OpError> {
    if t.dtype == DType::Bool {
        return op_error!("{} of {t}", f.name());
    }
    if axes.windows(2).any(|w| w[0] >= w[1]) {
        return op_error!("axes {axes:?} are not increasing");
    }
    axes.iter().try_for_each(|a| check_axis(*a, t))?;
    let kept = t.shape.iter().enumerate().filter(|(i, _)| !axes.contains(i)).map(|(_, d)| d.clone());
    Ok(TensorType::new(t.dtype, kept.collect::<Vec<_>>()))
}
