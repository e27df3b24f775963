//! From tokens to the tree. The grammar's actions, and how its errors are told.

use crate::{ast::*, error::SyntaxError, grammar, lexer::Tok};
use base::{DType, Diags, FileId, Span};
use lalrpop_util::{ErrorRecovery, ParseError};

/// The grammar's own error type: none of its actions fails.
#[derive(Clone, Debug, PartialEq)]
pub enum Failure {}

/// A place where the parser skipped tokens.
pub type Recovery = ErrorRecovery<usize, Tok, Failure>;

/// A construct in a place where it has no meaning: what, what to do, where.
pub type Misuse = (String, &'static str, Span);

/// Parses a file: always a tree; what is wrong is reported.
pub fn parse(file: FileId, text: &str, diags: &mut Diags) -> File {
    let tokens = crate::lexer::lex(file, text, diags);
    let (mut errors, mut misuse) = (Vec::new(), Vec::new());
    let result = grammar::FileParser::new().parse(file, &mut errors, &mut misuse, tokens.into_iter().map(Ok::<_, Failure>));
    let mut last_end = None;
    let tree = result.unwrap_or_else(|error| {
        errors.push(ErrorRecovery { error, dropped_tokens: Vec::new() });
        File::default()
    });
    for e in errors {
        let (span, error) = explain(file, text, e.error);
        // What follows right behind a skipped stretch is the same mistake.
        let skipped_to = e.dropped_tokens.last().map_or(span.end, |t| t.2 as u32);
        if last_end.is_none_or(|end| span.start > end) {
            diags.push(span, error);
        }
        last_end = Some(skipped_to.max(span.end));
    }
    for (what, help, span) in misuse {
        diags.push(span, SyntaxError::Misplaced { what, help, at: span.into() });
    }
    tree
}

fn explain(file: FileId, text: &str, e: ParseError<usize, Tok, Failure>) -> (Span, SyntaxError) {
    let (span, found, expected) = match e {
        ParseError::UnrecognizedToken { token: (l, t, r), expected } => (Span::new(file, l, r), describe(&t), expected),
        ParseError::ExtraToken { token: (l, t, r) } => (Span::new(file, l, r), describe(&t), Vec::new()),
        ParseError::UnrecognizedEof { expected, .. } => {
            (Span::new(file, text.len(), text.len()), "end of the file".into(), expected)
        }
        ParseError::InvalidToken { location } => (Span::new(file, location, location), "token".into(), Vec::new()),
        ParseError::User { error } => match error {},
    };
    (span, SyntaxError::Unexpected { found, expected: wording(expected), at: span.into() })
}

fn describe(t: &Tok) -> String {
    match t {
        Tok::Ident(s) => format!("name '{s}'"),
        Tok::Int(n) => format!("number {n}"),
        Tok::Float(x) => format!("number {x}"),
        Tok::Str(s) => format!("string {s:?}"),
        Tok::Doc(_) => "documentation comment".into(),
        Tok::Keyword(k) => format!("keyword '{k}'"),
        Tok::Punct(p) => format!("'{p}'"),
        Tok::Newline => "end of the line".into(),
    }
}

/// What could have stood there, if the list is short enough to help.
fn wording(expected: Vec<String>) -> Option<String> {
    let mut words: Vec<String> = Vec::new();
    for e in expected {
        let word = match e.as_str() {
            "ident" => "a name".into(),
            "int" | "float" => "a number".into(),
            "str" => "a string".into(),
            "nl" | "\";\"" => "the end of the statement".into(),
            "doc" => continue,
            other => format!("'{}'", other.trim_matches('"')),
        };
        if !words.contains(&word) {
            words.push(word);
        }
    }
    match words.len() {
        0 | 9.. => None,
        _ => Some(format!("expected {}", words.join(" or "))),
    }
}

pub(crate) fn join_docs(docs: Vec<String>) -> Option<String> {
    if docs.is_empty() { None } else { Some(docs.join("\n")) }
}

/// `rest` has its parts last first.
pub(crate) fn use_item(file: FileId, l: usize, r: usize, first: Ident, rest: (Vec<Ident>, Option<Vec<Ident>>)) -> ItemKind {
    let (parts, names) = rest;
    let mut path = Path { parts: [first].into_iter().chain(parts.into_iter().rev()).collect(), span: Span::new(file, l, r) };
    let names = names.unwrap_or_else(|| {
        let last = path.parts.last().cloned().into_iter().collect();
        if path.parts.len() > 1 {
            path.parts.pop();
        }
        last
    });
    ItemKind::Use { path, names }
}

pub(crate) fn precisions(entries: Vec<(Ident, (String, Span))>, misuse: &mut Vec<Misuse>) -> Vec<(Ident, Spanned<DType>)> {
    entries
        .into_iter()
        .filter_map(|(name, (value, span))| match value.parse() {
            Ok(node) => Some((name, Spanned { node, span })),
            Err(()) => {
                misuse.push((format!("'{value}' is not a dtype"), "dtypes are f64 f32 bf16 f16 e4m3 i64 i32 bool", span));
                None
            }
        })
        .collect()
}

pub(crate) fn tensor_type((name, span): (String, Span), mut axes: Vec<Axis>, misuse: &mut Vec<Misuse>) -> TypeKind {
    if let Ok(dtype) = name.parse() {
        return TypeKind::Tensor { dtype: Some(dtype), axes };
    }
    match (name.as_str(), axes.len(), axes.pop()) {
        ("rows", 1, Some(Axis::Extent(e))) => TypeKind::Rows(Box::new(e)),
        (_, _, last) => {
            misuse.push((format!("'{name}' is not a dtype"), "dtypes are f64 f32 bf16 f16 e4m3 i64 i32 bool", span));
            axes.extend(last);
            TypeKind::Tensor { dtype: None, axes }
        }
    }
}

pub(crate) fn rows_axis((word, span): (String, Span), name: Ident, misuse: &mut Vec<Misuse>) -> Axis {
    if word != "rows" {
        misuse.push((format!("'{word} {}' is not an axis", name.node), "an axis is an extent, `..S`, or `rows r`", span));
    }
    Axis::Rows(name)
}

pub(crate) fn body(mut stmts: Vec<Stmt>, last: Option<Stmt>, span: Span) -> Body {
    let value = match last {
        Some(Stmt { kind: StmtKind::Expr(e), .. }) => Some(Box::new(e)),
        Some(stmt) => {
            stmts.push(stmt);
            None
        }
        None => None,
    };
    Body { stmts, value, span }
}

pub(crate) fn target(tuple: ExprKind, misuse: &mut Vec<Misuse>) -> Vec<Ident> {
    let ExprKind::Tuple(parts) = tuple else { base::bug!("a target is a tuple") };
    let mut names = Vec::new();
    for e in parts {
        match e.kind {
            ExprKind::Name(node) => names.push(Spanned { node, span: e.span }),
            _ => misuse.push(("only names can be assigned".into(), "write `(a, b) = …` with names", e.span)),
        }
    }
    names
}

pub(crate) fn binary(op: BinaryOp, a: Expr, b: Expr, span: Span) -> Expr {
    Expr { kind: ExprKind::Binary(op, Box::new(a), Box::new(b)), span }
}

/// A negative literal is a literal.
pub(crate) fn negate(e: Expr, span: Span) -> Expr {
    let kind = match e.kind {
        ExprKind::Int(n) => ExprKind::Int(-n),
        ExprKind::Float(x) => ExprKind::Float(-x),
        _ => ExprKind::Unary(UnaryOp::Neg, Box::new(e)),
    };
    Expr { kind, span }
}

pub(crate) fn index_at(e: Expr) -> Index {
    match e.kind {
        ExprKind::Name(ref n) if n == "new" => Index::New(e.span),
        _ => Index::At(e),
    }
}
