//! Runs libraries: plans memory, binds dims, executes steps; initialises, saves and loads parameters; trains and generates.
//!
//! The run-time imports no compiler stage. A future cache of keys and values belongs in `generate`, as state beside the prompt.

pub mod agree;
pub mod checkpoint;
pub mod costs;
pub mod data;
mod debug;
pub mod error;
pub mod generate;
mod kept;
pub mod measure;
mod metrics;
pub mod npy;
pub mod open;
pub mod pair;
pub mod peers;
pub mod plan;
pub mod random;
pub mod ranks;
mod resolve;
pub mod session;
pub mod store;
pub mod tensor;
pub mod trace;
pub mod train;

pub use error::ExecError;
pub use pair::Pair;
pub use peers::Peers;
pub use session::Session;
pub use tensor::HostTensor;

#[cfg(test)]
mod testing;
