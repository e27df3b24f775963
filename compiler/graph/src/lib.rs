//! The tensor graph: SSA, pure, about thirty structured ops. The hub of the compiler: the front half lowers to it, the back
//! half starts from it, and each op's shape rule, f64 meaning and derivative stand here, once.
//!
//! *Not yet decided at this level*: which nodes share a kernel, memory layout, where values live, order of execution.

pub mod accumulate;
pub mod autodiff;
pub mod build;
pub mod interp;
pub mod ir;
pub mod op;
pub mod passes;
pub mod random;
pub mod shrink;
pub mod stages;
pub mod text;
pub mod verify;

pub use ir::{Arg, Func, Module, Node, NodeId, Output, ParamDecl, Role, Value};
pub use op::{Op, OpError};
pub use verify::{Violation, verify, verify_func};
