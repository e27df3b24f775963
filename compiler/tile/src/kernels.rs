//! Kernels that are written by hand: each a function from a problem and a tiling to a tile program.

pub mod build;
pub mod domain;
pub mod host_attend;
pub mod host_attend_grad;
#[cfg(test)]
mod tests;
