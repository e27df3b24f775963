//! The standard library's text, by module name.

/// `use std.<name>`.
pub const MODULES: &[(&str, &str)] = &[
    ("adamw", include_str!("../std/adamw.lode")),
    ("cross_entropy", include_str!("../std/cross_entropy.lode")),
    ("dsa", include_str!("../std/dsa.lode")),
    ("embed", include_str!("../std/embed.lode")),
    ("fp8", include_str!("../std/fp8.lode")),
    ("gqa", include_str!("../std/gqa.lode")),
    ("layernorm", include_str!("../std/layernorm.lode")),
    ("linear", include_str!("../std/linear.lode")),
    ("log_prob", include_str!("../std/log_prob.lode")),
    ("mla", include_str!("../std/mla.lode")),
    ("moba", include_str!("../std/moba.lode")),
    ("moe", include_str!("../std/moe.lode")),
    ("nsa", include_str!("../std/nsa.lode")),
    ("rmsnorm", include_str!("../std/rmsnorm.lode")),
    ("rope", include_str!("../std/rope.lode")),
    ("sink", include_str!("../std/sink.lode")),
    ("softmax", include_str!("../std/softmax.lode")),
    ("swiglu", include_str!("../std/swiglu.lode")),
];
