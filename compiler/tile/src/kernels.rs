//! Kernels that are written by hand: each a function from a problem and a tiling to a tile program.

pub mod build;
