//! From graph to tile programs: which nodes share a kernel, how each kernel walks its data, and the buffers and steps of an
//! entry point.

pub mod cost;
pub mod fused;
pub mod gemm;
pub mod group;
pub mod interp;
pub mod ir;
pub mod kernels;
pub mod lower;
pub mod select;
pub mod simulate;
pub mod text;
pub mod tuning;
pub mod verify;
pub mod view;

pub use ir::{Access, Expr, Kernel, LoopKind, Mem, Stmt, VarId};
pub use lower::{Lowered, Options, TargetError, Tilings, lower, lower_with};
pub use tuning::{Tuning, TuningError};
pub use verify::verify;
