//! Text to tokens to the syntax tree.

pub mod ast;
mod dump;
pub mod error;
mod format;
pub mod lexer;
mod nesting;
mod parse;

#[allow(clippy::all, clippy::unwrap_used, missing_docs, unused_qualifications)]
mod grammar {
    include!(concat!(env!("OUT_DIR"), "/grammar.rs"));
}

pub use dump::{print_ast, print_tokens};
pub use error::SyntaxError;
pub use format::format;
pub use lexer::{Tok, lex};
pub use parse::parse;

#[cfg(test)]
mod tests;
