//! Kernels that are written by hand: each a function from a problem and a tiling to a tile program.

pub mod build;
pub mod domain;
pub mod gpu_attend;
pub mod gpu_attend_by_block;
pub mod gpu_attend_grad;
pub mod gpu_attend_grad_by_block;
pub mod gpu_attend_parts;
pub mod gpu_attend_union;
pub mod gpu_product;
pub mod gpu_route;
pub mod gpu_scatter_add;
pub mod gpu_scatter_few;
pub mod gpu_scatter_sorted;
pub mod gpu_topk;
pub mod gpu_topk_long;
pub mod gpu_topk_parts;
pub mod host_attend;
pub mod host_attend_grad;
pub mod host_cumsum;
pub mod host_gather;
pub mod host_route;
pub mod host_scatter_add;
pub mod host_topk;
#[cfg(test)]
mod tests;
