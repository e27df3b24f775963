//! Mistakes in the text: E01.

use miette::{Diagnostic, SourceSpan};
use thiserror::Error;

/// A mistake that the lexer or the parser found.
#[derive(Clone, Debug, PartialEq, Eq, Error, Diagnostic)]
pub enum SyntaxError {
    /// Something else was expected here.
    #[error("unexpected {found}")]
    #[diagnostic(code(E0101))]
    Unexpected {
        /// What stands there.
        found: String,
        /// What could stand there.
        #[help]
        expected: Option<String>,
        /// Where.
        #[label("not expected here")]
        at: SourceSpan,
    },
    /// A bracket without its partner.
    #[error("this '{open}' is not closed")]
    #[diagnostic(code(E0102), help("add '{close}'"))]
    Unclosed {
        /// The bracket.
        open: char,
        /// Its partner.
        close: char,
        /// Where it stands.
        #[label("opened here")]
        at: SourceSpan,
        /// Where its partner was missed.
        #[label("'{close}' expected before this")]
        before: SourceSpan,
    },
    /// A closing bracket without an opening one.
    #[error("nothing is open for this '{close}' to close")]
    #[diagnostic(code(E0103), help("remove it, or add its partner before it"))]
    Unopened {
        /// The bracket.
        close: char,
        /// Where.
        #[label("no partner")]
        at: SourceSpan,
    },
    /// A number that is none.
    #[error("'{text}' is not a number")]
    #[diagnostic(
        code(E0104),
        help("integers are below 2^63; floats are written 0.5 or 1e-6; a name does not start with a digit")
    )]
    BadNumber {
        /// The text.
        text: String,
        /// Where.
        #[label("not a number")]
        at: SourceSpan,
    },
    /// A string without its end.
    #[error("this string does not end on its line")]
    #[diagnostic(code(E0105), help("close it with '\"'; a line break inside is written \\n"))]
    OpenString {
        /// Where.
        #[label("starts here")]
        at: SourceSpan,
    },
    /// A character that begins no token.
    #[error("the character {character:?} has no meaning here")]
    #[diagnostic(code(E0106), help("{help}"))]
    UnknownCharacter {
        /// The first character.
        character: char,
        /// What to do.
        help: &'static str,
        /// Where.
        #[label("this one")]
        at: SourceSpan,
    },
    /// Beyond what the parser takes.
    #[error("{what}: more than {limit}")]
    #[diagnostic(code(E0107), help("split it with `let`"))]
    TooDeep {
        /// What is too much.
        what: &'static str,
        /// How much is taken.
        limit: usize,
        /// Where.
        #[label("here")]
        at: SourceSpan,
    },
    /// A construct in a place where it has no meaning.
    #[error("{what}")]
    #[diagnostic(code(E0108), help("{help}"))]
    Misplaced {
        /// What.
        what: String,
        /// What to do.
        help: &'static str,
        /// Where.
        #[label("here")]
        at: SourceSpan,
    },
    /// A keyword where a name belongs.
    #[error("'{word}' is a reserved word")]
    #[diagnostic(code(E0109), help("choose another name, such as '{word}_'"))]
    Reserved {
        /// The keyword.
        word: &'static str,
        /// Where.
        #[label("a name is expected here")]
        at: SourceSpan,
    },
    /// An escape that strings do not have.
    #[error("'\\{character}' is not an escape")]
    #[diagnostic(code(E0110), help("strings have \\\", \\\\ and \\n"))]
    BadEscape {
        /// What follows the backslash.
        character: char,
        /// Where.
        #[label("not an escape")]
        at: SourceSpan,
    },
}
