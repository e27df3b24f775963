//! The artefact of a build and all that the run-time needs: a manifest (typed entry points, buffers, steps, parameters) and the
//! code. Only this crosses from the compiler to the run-time.

pub mod manifest;

pub use manifest::{Buffer, BufferId, Entry, GroupedGemm, Gemm, Manifest, Port, Role, Step, View};
