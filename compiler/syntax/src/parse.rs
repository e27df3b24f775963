//! From tokens to the tree. The grammar's actions, and how its errors are told.

use crate::{
    ast::*,
    error::SyntaxError,
    grammar,
    lexer::{ITEM_KEYWORDS, Tok, ends_statement, lex_covered},
};
use base::{DType, Diags, FileId, Span};
use lalrpop_util::{ErrorRecovery, ParseError};

/// The grammar's own error type: none of its actions fails.
#[derive(Clone, Debug, PartialEq)]
pub enum Failure {}

/// A place where the parser skipped tokens.
pub type Recovery = ErrorRecovery<usize, Tok, Failure>;

/// A construct in a place where it has no meaning: what, what to do, where.
pub type Misuse = (String, &'static str, Span);

/// Parses a file: always a tree; what is wrong is reported. A mistake is told once: each item is parsed by itself, so that none reaches
/// into the next one, and what only follows from a mistake told already is left out.
pub fn parse(file: FileId, text: &str, diags: &mut Diags) -> File {
    let first = diags.len();
    let (tokens, covered) = lex_covered(file, text, diags);
    let mut tree = File::default();
    let mut starts: Vec<usize> = Vec::new();
    let mut depth = 0;
    for (i, (_, tok, _)) in tokens.iter().enumerate() {
        match tok {
            Tok::Punct("(" | "[" | "{") => depth += 1,
            Tok::Punct(")" | "]" | "}") => depth -= 1,
            _ if depth == 0 && begins_item(text, &tokens, i) => starts.push(i),
            Tok::Punct(_) | Tok::Keyword(_) | Tok::Ident(_) | Tok::Int(_) | Tok::Float(_) | Tok::Str(_) => {}
            Tok::Doc(_) | Tok::Newline => {}
        }
    }
    let mut from = 0;
    for to in starts.into_iter().filter(|i| *i > 0).chain([tokens.len()]).filter(|_| !tokens.is_empty()) {
        let item = Chunk { file, text, tokens: &tokens, from, to, covered: &covered }.parse(diags);
        // Up to the next item: a bracket that closes nothing stands behind its item, and no token is left of it.
        let begin = if from == 0 { 0 } else { tokens[from].0 };
        let end = tokens.get(to).map_or(text.len() + 1, |t| t.0);
        let is_broken = diags.spans_from(first).any(|s| (begin..end).contains(&(s.start as usize)));
        match item {
            Some(item) => {
                tree.has_gaps |= is_broken && !matches!(item.kind, ItemKind::Func(_) | ItemKind::Train(_));
                tree.items.push(Item { is_broken, ..item });
            }
            None => match tokens[from..to].iter().find(|t| !matches!(t.1, Tok::Doc(_))).map(|t| &t.1) {
                Some(Tok::Keyword("fn")) => tree.lost.push(FuncKind::Fn),
                Some(Tok::Keyword("block")) => tree.lost.push(FuncKind::Block),
                Some(Tok::Keyword("model")) => tree.lost.push(FuncKind::Model),
                Some(Tok::Keyword("train")) => {}
                _ => tree.has_gaps = true,
            },
        }
        from = to;
    }
    // Nothing but mistakes.
    tree.has_gaps |= tokens.is_empty() && diags.len() > first;
    tree
}

/// Whether token `i`, outside of all brackets, is the first of an item: its keyword, or a word at the start of a line that cannot continue
/// the item before.
fn begins_item(text: &str, tokens: &[(usize, Tok, usize)], i: usize) -> bool {
    let (start, tok, _) = &tokens[i];
    let gap = text[..*start].chars().next_back();
    let column_0 = gap == Some('\n');
    let ended = ends_statement(&tokens[..i]);
    match (i.checked_sub(1).map(|i| &tokens[i].1), tok) {
        (None, _) => true,
        (Some(Tok::Doc(_)), _) => false,
        (_, Tok::Doc(_)) => true,
        (_, Tok::Keyword(k)) if ITEM_KEYWORDS.contains(k) => column_0 || (ended && gap.is_some_and(char::is_whitespace)),
        (_, Tok::Keyword(_) | Tok::Ident(_)) => column_0 && ended,
        (_, Tok::Int(_) | Tok::Float(_) | Tok::Str(_) | Tok::Punct(_) | Tok::Newline) => false,
    }
}

/// The tokens of an item.
struct Chunk<'a> {
    file: FileId,
    text: &'a str,
    tokens: &'a [(usize, Tok, usize)],
    from: usize,
    to: usize,
    covered: &'a [(usize, usize)],
}

impl Chunk<'_> {
    fn parse(&self, diags: &mut Diags) -> Option<Item> {
        let (mut errors, mut misuse) = (Vec::new(), Vec::new());
        let tokens = self.tokens[self.from..self.to].iter().cloned().map(Ok::<_, Failure>);
        let result = grammar::ItemParser::new().parse(self.file, &mut errors, &mut misuse, tokens);
        let item = result.map_err(|error| errors.push(ErrorRecovery { error, dropped_tokens: Vec::new() })).ok();
        let mut end = 0;
        for ErrorRecovery { error, dropped_tokens } in errors {
            let (span, error) = self.explain(error);
            let (first, last) = (span.start as usize, span.end as usize);
            // What follows right behind a skipped stretch is the same mistake; so is all in a body whose head was skipped.
            let follows = end > 0 && first <= end;
            if !follows && !self.covered.iter().any(|c| c.0 <= last && first <= c.1) {
                diags.push(span, error);
            }
            end = end.max(dropped_tokens.last().map_or(0, |t| t.2)).max(last);
            if !is_balanced(&dropped_tokens) {
                break;
            }
        }
        for (what, help, span) in misuse {
            diags.push(span, SyntaxError::Misplaced { what, help, at: span.into() });
        }
        item
    }

    fn explain(&self, e: ParseError<usize, Tok, Failure>) -> (Span, SyntaxError) {
        let (at, expected) = match e {
            ParseError::UnrecognizedToken { token, expected } => (token.0, expected),
            ParseError::ExtraToken { token } => (token.0, Vec::new()),
            ParseError::InvalidToken { location } => (location, Vec::new()),
            ParseError::UnrecognizedEof { location, expected } => (location, expected),
            ParseError::User { error } => match error {},
        };
        // Tokens that stand in for forgotten brackets, and line breaks, are empty; the one found is the first that starts here or later.
        let found = self.tokens[self.from..self.to].iter().position(|t| t.0 >= at).map_or(self.to, |i| self.from + i);
        let Some((start, tok, end)) = self.tokens.get(found) else {
            let end = self.text.trim_end().len();
            let span = Span::new(self.file, end, end);
            return (
                span,
                SyntaxError::Unexpected { found: "end of the file".into(), expected: wording(expected), at: span.into() },
            );
        };
        if let Some(i) = self.reserved(found, &expected) {
            let (start, tok, end) = &self.tokens[i];
            let Tok::Keyword(word) = tok else { base::bug!("a reserved word is a keyword") };
            let span = Span::new(self.file, *start, *end);
            return (span, SyntaxError::Reserved { word, at: span.into() });
        }
        let span = Span::new(self.file, *start, *end);
        (span, SyntaxError::Unexpected { found: describe(tok), expected: wording(expected), at: span.into() })
    }

    /// The keyword that was meant as a name, if that is the mistake at token `i`.
    fn reserved(&self, i: usize, expected: &[String]) -> Option<usize> {
        let assigns = |i: usize| matches!(self.tokens.get(i), Some((_, Tok::Punct("="), _)));
        // These continue or begin an expression: a name was hardly meant.
        let could_be_name = |i: usize| match &self.tokens[i].1 {
            Tok::Keyword(k) => {
                !matches!(*k, "let" | "as" | "if" | "else" | "with" | "and" | "or" | "not" | "param" | "true" | "false")
            }
            Tok::Ident(_) | Tok::Int(_) | Tok::Float(_) | Tok::Str(_) | Tok::Doc(_) | Tok::Punct(_) | Tok::Newline => false,
        };
        if could_be_name(i) && expected.iter().any(|e| e == "ident") {
            let first = self.text[..self.tokens[i].0].rsplit('\n').next().is_none_or(|l| l.trim().is_empty());
            // At the start of a line it may be the beginning of something in the wrong place.
            let begins = matches!(self.tokens.get(i + 1), Some((_, Tok::Ident(_) | Tok::Punct("{" | "("), _)));
            return (!first || !begins).then_some(i);
        }
        // `state = 3`: the keyword was taken for a statement's.
        (i > self.from && assigns(i) && could_be_name(i - 1)).then(|| i - 1)
    }
}

/// Whether every brace that opens in these closes in them.
fn is_balanced(tokens: &[(usize, Tok, usize)]) -> bool {
    let count = |p: &str| tokens.iter().filter(|t| matches!(t.1, Tok::Punct(q) if q == p)).count();
    count("{") == count("}")
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
    const EXPRESSION: &[&str] =
        &["\"(\"", "\"[\"", "\"-\"", "\"if\"", "\"not\"", "\"param\"", "\"true\"", "\"false\"", "float", "ident", "int", "str"];
    let expression = expected.iter().any(|e| e == "float");
    let statement = expected.iter().any(|e| e == "\"penalty\"") && expression;
    if statement {
        return Some("expected a statement".into());
    }
    let mut words: Vec<String> = if expression { vec!["an expression".into()] } else { Vec::new() };
    for e in expected {
        if expression && EXPRESSION.contains(&e.as_str()) {
            continue;
        }
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

pub(crate) fn let_stmt(names: Vec<Ident>, ty: Option<Type>, value: Expr, span: Span, misuse: &mut Vec<Misuse>) -> Stmt {
    if let (Some(ty), true) = (&ty, names.len() != 1) {
        misuse.push(("a type belongs to one name".into(), "leave it out: the parts of a tuple have their types", ty.span));
    }
    Stmt { kind: StmtKind::Let { names, ty, value }, span }
}

/// Positional arguments stand first.
pub(crate) fn arguments(args: Vec<Arg>, misuse: &mut Vec<Misuse>) -> Vec<Arg> {
    let named = args.iter().position(|a| a.name.is_some()).unwrap_or(args.len());
    if let Some(late) = args[named..].iter().find(|a| a.name.is_none()) {
        misuse.push((
            "a positional argument after a named one".into(),
            "put it before the named ones, or name it",
            late.value.span,
        ));
    }
    args
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
