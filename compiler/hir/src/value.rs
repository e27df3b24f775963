//! What names stand for while a body is elaborated.

use base::{DType, Dim};
use graph::{Value, ir::Init, op::Domain};

/// A tensor: a value of the frame at `level`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TensorVal {
    /// The value.
    pub value: Value,
    /// Which frame it belongs to: 0 is the function, n the body of the n-th `repeat` around.
    pub level: usize,
}

/// An attention domain and the tensors it names.
#[derive(Clone, Debug, PartialEq)]
pub struct DomainVal {
    /// The domain; operand numbers index `operands`.
    pub domain: Domain,
    /// The tensors.
    pub operands: Vec<TensorVal>,
}

/// A routing: see [`graph::Op::Route`].
#[derive(Clone, Debug, PartialEq)]
pub struct RowsVal {
    /// i32 `[groups + 1]`.
    pub offsets: TensorVal,
    /// i32 `[rows]`.
    pub source: TensorVal,
    /// i32 `[n, k]`.
    pub position: TensorVal,
    /// The number of groups.
    pub groups: i64,
    /// Rows a token takes.
    pub k: Dim,
    /// All rows.
    pub rows: Dim,
}

/// A value of the language.
#[derive(Clone, Debug, PartialEq)]
pub enum Val {
    /// A tensor.
    Tensor(TensorVal),
    /// A compile-time integer or an extent.
    Int(Dim),
    /// A compile-time float.
    Float(f64),
    /// A compile-time truth value.
    Bool(bool),
    /// A compile-time string.
    Str(String),
    /// A list of compile-time values.
    List(Vec<Val>),
    /// Several results.
    Tuple(Vec<Val>),
    /// An attention domain.
    Domain(DomainVal),
    /// A routing.
    Rows(RowsVal),
    /// A dtype's name.
    DType(DType),
    /// An initialiser.
    Init(Init),
    /// Nothing: the value of a body without one.
    Unit,
    /// A mistake that was reported.
    Error,
}

impl Val {
    /// What kind of value it is, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Val::Tensor(_) => "a tensor",
            Val::Int(_) => "an int",
            Val::Float(_) => "a float",
            Val::Bool(_) => "a bool",
            Val::Str(_) => "a string",
            Val::List(_) => "a list",
            Val::Tuple(_) => "a tuple",
            Val::Domain(_) => "a domain",
            Val::Rows(_) => "a routing",
            Val::DType(_) => "a dtype",
            Val::Init(_) => "an initialiser",
            Val::Unit => "nothing",
            Val::Error => "a mistake",
        }
    }
    /// Whether it is, or holds, a tensor: such a value belongs to one entry point and one turn of a loop.
    pub fn has_tensor(&self) -> bool {
        match self {
            Val::Tensor(_) | Val::Rows(_) => true,
            Val::Domain(d) => !d.operands.is_empty(),
            Val::List(parts) | Val::Tuple(parts) => parts.iter().any(Val::has_tensor),
            Val::Int(_) | Val::Float(_) | Val::Bool(_) | Val::Str(_) | Val::DType(_) | Val::Init(_) | Val::Unit | Val::Error => {
                false
            }
        }
    }
}
