//! From graph to tile programs: which nodes share a kernel, how each kernel walks its data, and the buffers and steps of an
//! entry point.

pub mod ir;

pub use ir::{Access, Expr, Kernel, LoopKind, Mem, Stmt, VarId};
