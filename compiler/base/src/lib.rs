//! What every stage shares: dims, dtypes, tensor types, spans, diagnostics, typed arenas and the MLIR text form.
//! Imports nothing of Lode.

pub mod arena;
pub mod diag;
pub mod dim;
pub mod dtype;
mod serial;
pub mod span;
pub mod text;

pub mod ty;

pub use arena::Arena;
pub use diag::Diags;
pub use dim::{Dim, DimEnv};
pub use dtype::DType;
pub use span::{FileId, Sources, Span};
pub use ty::TensorType;

/// Panics with a message that names the stage: our own mistake, never the user's.
#[macro_export]
macro_rules! bug {
    ($($arg:tt)*) => { panic!("internal error in {}: {}", module_path!(), format_args!($($arg)*)) };
}
