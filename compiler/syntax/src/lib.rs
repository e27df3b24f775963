//! Text to tokens to the syntax tree.

pub mod ast;
pub mod error;
pub mod lexer;
mod parse;

#[allow(clippy::all, missing_docs, unused_qualifications)]
mod grammar {
    include!(concat!(env!("OUT_DIR"), "/grammar.rs"));
}

pub use error::SyntaxError;
pub use lexer::{Tok, lex};
pub use parse::parse;

#[cfg(test)]
mod tests;
