//! Names, dtypes and shapes: from syntax trees to a graph module.
//!
//! In: a parsed model file and what it uses. Out: a [`Program`] (parameters, entry points, defaults of training), or diagnostics, all of
//! them in one run. A function is elaborated at each call for the types it is called with, and once at its definition with its
//! generic names opaque; shapes come from the graph's own shape rules, so there is one set of them.

mod builtins;
mod check;
mod einops;
mod elaborate;
pub mod error;
mod frame;
mod modules;
mod std_lib;
mod train;
mod types;
mod value;

pub use error::HirError;
pub use modules::{Constant, Loader, Overrides};

use base::{Diags, FileId, Sources};
use std::collections::BTreeMap;

/// A checked model.
#[derive(Clone, Debug)]
pub struct Program {
    /// Parameters and entry points: `forward`, and with a `train` item `loss` and `update`.
    pub module: graph::Module,
    /// Run-time dims in order of declaration.
    pub dims: Vec<String>,
    /// Config values as used, in order.
    pub config: Vec<(String, Constant)>,
    /// Defaults of `lode train`: the `set` entries, and the optimiser's peak `lr`.
    pub settings: BTreeMap<String, f64>,
    /// The typed outline: each call with its types, each name with its type.
    pub outline: String,
}

/// Elaborates the model in `root`. `load` supplies the text of used files.
pub fn lower(
    root: FileId,
    sources: &mut Sources,
    load: &mut Loader,
    overrides: &Overrides,
    diags: &mut Diags,
) -> Option<Program> {
    let before = diags.len();
    let modules = modules::resolve(root, sources, load, overrides, diags)?;
    let program = elaborate::program(&modules, diags);
    check::definitions(&modules, diags);
    program.filter(|_| diags.len() == before)
}

/// The typed outline of a program, for `--emit=hir`.
pub fn print(program: &Program) -> String {
    let mut out = String::new();
    for (name, value) in &program.config {
        out.push_str(&format!("config {name} = {value}\n"));
    }
    for p in &program.module.params {
        out.push_str(&format!("{:?} {}: {}\n", p.role, p.name, p.ty).to_lowercase().replacen(&p.name.to_lowercase(), &p.name, 1));
    }
    out + &program.outline
}

#[cfg(test)]
mod tests;
