//! Mistakes in names (E02), types and shapes (E03).

use miette::{Diagnostic, SourceSpan};
use thiserror::Error;

/// A mistake that elaboration found.
#[derive(Clone, Debug, PartialEq, Eq, Error, Diagnostic)]
#[allow(missing_docs)]
pub enum HirError {
    #[error("no {what} is called '{name}'")]
    #[diagnostic(code(E0201))]
    Unknown {
        what: &'static str,
        name: String,
        #[help]
        help: Option<String>,
        #[label("not found")]
        at: SourceSpan,
    },
    #[error("'{name}' is defined twice")]
    #[diagnostic(code(E0202), help("rename one of them"))]
    Duplicate {
        name: String,
        #[label("again here")]
        at: SourceSpan,
    },
    #[error("{func} {why}")]
    #[diagnostic(code(E0203))]
    Arguments {
        func: String,
        why: String,
        #[help]
        help: Option<String>,
        #[label("this call")]
        at: SourceSpan,
    },
    #[error("{what} cannot stand here")]
    #[diagnostic(code(E0204), help("{help}"))]
    Place {
        what: String,
        help: &'static str,
        #[label("here")]
        at: SourceSpan,
    },
    #[error("two parameters have the name {name}")]
    #[diagnostic(code(E0205), help("name the instances: `f(x) as first`"))]
    ParamTwice {
        name: String,
        #[label("the second one")]
        at: SourceSpan,
    },
    #[error("cannot use {path}: {why}")]
    #[diagnostic(code(E0206))]
    Module {
        path: String,
        why: String,
        #[help]
        help: Option<String>,
        #[label("used here")]
        at: SourceSpan,
    },
    #[error("config '{name}': {why}")]
    #[diagnostic(code(E0207))]
    Config {
        name: String,
        why: String,
        #[help]
        help: Option<String>,
        #[label("the config")]
        at: SourceSpan,
    },
    #[error("{what}")]
    #[diagnostic(code(E0208), help("{help}"))]
    Program {
        what: String,
        help: &'static str,
        #[label("here")]
        at: SourceSpan,
    },
    #[error("setting '{name}': {why}")]
    #[diagnostic(code(E0209))]
    Setting {
        name: String,
        why: String,
        #[help]
        help: Option<String>,
        #[label("this value")]
        at: SourceSpan,
    },
    #[error("cannot multiply {left_shape} by {right_shape}")]
    #[diagnostic(
        code(E0301),
        help("the last axis of the left has to be the first of the right; transpose one operand or make them agree{origin}")
    )]
    InnerExtent {
        left_shape: String,
        right_shape: String,
        left_extent: String,
        right_extent: String,
        origin: String,
        #[label("inner extent {left_extent}")]
        left: SourceSpan,
        #[label("inner extent {right_extent}")]
        right: SourceSpan,
    },
    #[error("{what} is {found}, not {expected}")]
    #[diagnostic(code(E0302))]
    Mismatch {
        what: String,
        expected: String,
        found: String,
        #[help]
        help: Option<String>,
        #[label("this is {found}")]
        at: SourceSpan,
    },
    #[error("{what} has to be known at compile time")]
    #[diagnostic(code(E0303), help("use a number or a config value"))]
    NotConstant {
        what: String,
        #[label("not a constant")]
        at: SourceSpan,
    },
    #[error("{left_type} and {right_type} do not broadcast")]
    #[diagnostic(code(E0304), help("axes are aligned at the last one; each pair is equal or one of them is 1{origin}"))]
    Broadcast {
        left_type: String,
        right_type: String,
        origin: String,
        #[label("{left_type}")]
        left: SourceSpan,
        #[label("{right_type}")]
        right: SourceSpan,
    },
    #[error("{left_type} and {right_type} do not mix")]
    #[diagnostic(code(E0305), help("convert one: `cast(x, f32)`"))]
    Mix {
        left_type: String,
        right_type: String,
        #[label("{left_type}")]
        left: SourceSpan,
        #[label("{right_type}")]
        right: SourceSpan,
    },
    #[error("{func}: {why}")]
    #[diagnostic(code(E0306))]
    Shape {
        func: String,
        why: String,
        #[label("here")]
        at: SourceSpan,
    },
    #[error("the pattern does not fit: {why}")]
    #[diagnostic(code(E0307), help("one word per axis: \"b t (h k) -> b h t k\""))]
    Pattern {
        why: String,
        #[label("this pattern")]
        at: SourceSpan,
    },
    #[error("{why}")]
    #[diagnostic(code(E0308), help("this is the message of an `error(…)` in the library"))]
    User {
        why: String,
        #[label("from this call")]
        at: SourceSpan,
    },
}

/// "did you mean" for a name, if a known one is close.
pub(crate) fn suggest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    let (distance, best) = known.map(|k| (edit_distance(name, k), k)).min()?;
    (distance <= 1 + name.len() / 4 && distance < best.len()).then(|| format!("did you mean '{best}'?"))
}

/// The number of characters to insert, delete or change. # Source: Wagner and Fischer, 1974.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let cost = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
