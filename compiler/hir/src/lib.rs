//! Names, dtypes and shapes: from syntax trees to a graph module.
//!
//! In: a parsed model file and what it uses. Out: a [`Program`] (parameters, entry points, defaults of training), or diagnostics, all of
//! them in one run. A function is elaborated at each call for the types it is called with, and once at its definition with its
//! generic names opaque; shapes come from the graph's own shape rules, so there is one set of them.

mod assigned;
mod builtins;
mod calls;
mod check;
mod config;
mod einops;
mod elaborate;
pub mod error;
mod expressions;
mod frame;
mod modules;
mod operators;
mod pipeline;
mod statements;
mod std_lib;
mod train;
mod types;
mod value;

pub use config::{Constant, Overrides};
pub use error::HirError;
pub use modules::Loader;
pub use pipeline::{Pipeline, SCHEDULES};

use base::{Diags, FileId, Sources};
use graph::ir::Init;
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
    /// How it is trained over ranks, as far as the model says.
    pub pipeline: Pipeline,
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
    let modules = modules::resolve(root, sources, load, overrides, diags);
    let program = elaborate::program(&modules, diags);
    check::definitions(&modules, diags);
    program.filter(|_| diags.len() == before)
}

/// The typed outline of a program, for `--emit=hir`: config, parameters, and the model's calls and names with their types.
pub fn print(program: &Program) -> String {
    let mut out = String::new();
    if !program.dims.is_empty() {
        out.push_str(&format!("dims {}\n", program.dims.join(", ")));
    }
    for (name, value) in &program.config {
        out.push_str(&format!("config {name} = {value}\n"));
    }
    for (name, value) in &program.settings {
        out.push_str(&format!("set {name} = {value}\n"));
    }
    out.push_str(&program.pipeline.to_string());
    for p in &program.module.params {
        let role = if p.role == graph::Role::State { "state" } else { "param" };
        let init = match p.init {
            Init::Normal(x) => format!("normal({x:?})"),
            Init::Uniform(x) => format!("uniform({x:?})"),
            Init::Constant(x) => format!("constant({x:?})"),
        };
        let nodecay = if p.decay || p.role == graph::Role::State { "" } else { " nodecay" };
        out.push_str(&format!("{role} {}: {} = {init}{nodecay}\n", p.name, p.ty));
    }
    out + &program.outline
}

#[cfg(test)]
mod tests;
