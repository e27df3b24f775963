//! What can be wrong with a library: E06.

use miette::Diagnostic;
use thiserror::Error;

/// A library cannot be read, written or used.
#[derive(Debug, Error, Diagnostic)]
#[allow(missing_docs)]
pub enum LibraryError {
    #[error("{path} is not a Lode library")]
    #[diagnostic(code(E0601), help("`lode build` writes one"))]
    Foreign { path: String },
    #[error("{path} is damaged: {why}")]
    #[diagnostic(code(E0602), help("build it again"))]
    Damaged { path: String, why: String },
    #[error("{path} has format {found}, this program reads {known}")]
    #[diagnostic(code(E0603), help("build it again with this version"))]
    Version { path: String, found: u32, known: u32 },
    #[error("the manifest of {name} is not valid: {why}")]
    #[diagnostic(code(E0604), help("this is a mistake of the compiler, or the file was changed by hand"))]
    Invalid { name: String, why: String },
    #[error("{path}: {source}")]
    #[diagnostic(code(E0605))]
    Io { path: String, source: std::io::Error },
    #[error("the code has no symbol {symbol}")]
    #[diagnostic(code(E0606), help("manifest and code are of different builds"))]
    Symbol { symbol: String },
    #[error("{name} was built for {built}, not for {wanted}")]
    #[diagnostic(code(E0607), help("build it with `--target {wanted}`"))]
    Target { name: String, built: String, wanted: String },
    #[error("{path} is there and is no library")]
    #[diagnostic(code(E0608), help("name another folder with -o, or remove it"))]
    Overwrite { path: String },
    #[error("{path} cannot be used: {why}")]
    #[diagnostic(code(E0609), help("`lode build` writes it beside its .lodelib: keep the two together"))]
    Object { path: String, why: String },
}
