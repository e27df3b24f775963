//! The artefact of a build and all that the run-time needs: a manifest (typed entry points, buffers, steps, parameters) and the
//! code. Only this crosses from the compiler to the run-time.

pub mod error;
pub mod file;
pub mod header;
pub mod manifest;
pub mod names;
mod validate;
pub mod work;

pub use error::LibraryError;
pub use file::Library;
pub use manifest::{
    Buffer, BufferId, Entry, Exchange, Gemm, GpuLaunch, GroupedGemm, HOST, Init, Kernel, Manifest, Param, Port, Role, SM_90A,
    Step, TensorMap, View,
};
pub use work::{Class, Job, Work};
