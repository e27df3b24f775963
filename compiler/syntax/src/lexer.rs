//! Text to tokens, by hand. Decides where statements end: inside `{ }` a line break after a token that can end a statement is a
//! `;`, unless the next line goes on. In: a file's text. Out: tokens with spans; what is no token is reported and skipped.

use crate::error::SyntaxError;
use base::{Diags, FileId, Span};

/// A token.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Tok {
    Ident(String),
    Int(i64),
    Float(f64),
    Str(String),
    Doc(String),
    Keyword(&'static str),
    Punct(&'static str),
    /// A statement's end that a line break makes.
    Newline,
}

/// The reserved words.
pub const KEYWORDS: &[&str] = &[
    "use",
    "dims",
    "config",
    "precision",
    "fn",
    "block",
    "model",
    "train",
    "let",
    "repeat",
    "as",
    "if",
    "else",
    "param",
    "state",
    "tally",
    "penalty",
    "after",
    "step",
    "minimize",
    "with",
    "set",
    "true",
    "false",
    "and",
    "or",
    "not",
    "nodecay",
];

const PUNCTS: &[&str] = &[
    "->", "==", "!=", "<=", ">=", "..", "^T", "(", ")", "[", "]", "{", "}", ",", ";", ":", "=", "+", "-", "*", "/", "%", "@",
    "<", ">", "|", "&", ".",
];

/// Lexes a file.
pub fn lex(file: FileId, text: &str, diags: &mut Diags) -> Vec<(usize, Tok, usize)> {
    let mut out: Vec<(usize, Tok, usize)> = Vec::new();
    // Open brackets and where they stand.
    let mut nesting: Vec<(char, usize)> = Vec::new();
    let mut operators = 0;
    let (mut at, mut broke) = (0, false);
    while let Some(c) = text[at..].chars().next() {
        let start = at;
        if c == '\n' {
            broke = true;
            at += 1;
            continue;
        }
        if c.is_whitespace() {
            at += c.len_utf8();
            continue;
        }
        let rest = &text[at..];
        if rest.starts_with("//") {
            let line = rest.lines().next().unwrap_or(rest);
            at += line.len();
            if let Some(doc) = line.strip_prefix("///").filter(|_| nesting.is_empty()) {
                out.push((start, Tok::Doc(doc.trim().into()), at));
            }
            continue;
        }
        let tok = if c.is_ascii_alphabetic() || c == '_' {
            let len = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
            at += len;
            let word = &rest[..len];
            match KEYWORDS.iter().find(|k| **k == word) {
                Some(k) => Tok::Keyword(k),
                None => Tok::Ident(word.into()),
            }
        } else if c.is_ascii_digit() {
            let (tok, len) = number(rest);
            at += len;
            match tok {
                Some(tok) => tok,
                None => {
                    let span = Span::new(file, start, at);
                    diags.push(span, SyntaxError::BadNumber { text: rest[..len].into(), at: span.into() });
                    Tok::Int(0)
                }
            }
        } else if c == '"' {
            let (value, len, closed) = string(rest);
            at += len;
            if !closed {
                let span = Span::new(file, start, at);
                diags.push(span, SyntaxError::OpenString { at: span.into() });
            }
            Tok::Str(value)
        } else if let Some(p) = PUNCTS.iter().find(|p| rest.starts_with(**p)) {
            at += p.len();
            Tok::Punct(p)
        } else {
            at += c.len_utf8();
            let span = Span::new(file, start, at);
            diags.push(span, SyntaxError::UnknownCharacter { character: c, at: span.into() });
            continue;
        };
        // An item's keyword at the start of a line begins an item: what is still open was forgotten.
        let column = start - text[..start].rfind('\n').map_or(0, |i| i + 1);
        if column == 0 && matches!(&tok, Tok::Keyword(k) if ITEM_KEYWORDS.contains(k)) {
            close_down_to(file, 0, start, &mut nesting, &mut out, diags);
        }
        // Likewise a statement's keyword at the start of a line: no parenthesis reaches over it.
        if broke && matches!(&tok, Tok::Keyword("let" | "repeat" | "state" | "tally" | "penalty" | "after" | "minimize")) {
            let keep = nesting.iter().rposition(|(open, _)| *open == '{').map_or(nesting.len(), |i| i + 1);
            close_down_to(file, keep, start, &mut nesting, &mut out, diags);
        }
        if broke
            && nesting.last().is_some_and(|n| n.0 == '{')
            && out.last().is_some_and(|(_, t, _)| ends_statement(t))
            && !continues(&tok)
        {
            let end = out.last().map_or(start, |t| t.2);
            out.push((end, Tok::Newline, end));
        }
        broke = false;
        match &tok {
            Tok::Punct("(" | "[" | "{") => {
                nesting.push((c, start));
                if nesting.len() > MAX_NESTING {
                    let at = Span::new(file, start, at);
                    diags.push(at, SyntaxError::TooDeep { what: "nested brackets", limit: MAX_NESTING, at: at.into() });
                    close_silently(start, &mut nesting, &mut out);
                    return out;
                }
            }
            Tok::Punct(")" | "]" | "}") => match nesting.iter().rposition(|(open, _)| partner(*open) == c) {
                Some(i) => {
                    close_down_to(file, i + 1, start, &mut nesting, &mut out, diags);
                    nesting.pop();
                }
                None => {
                    let span = Span::new(file, start, at);
                    diags.push(span, SyntaxError::Unopened { close: c, at: span.into() });
                    continue;
                }
            },
            _ => {}
        }
        operators = match &tok {
            Tok::Newline | Tok::Punct(";" | "," | "{" | "}") | Tok::Keyword("let") => 0,
            Tok::Punct(
                "+" | "-" | "*" | "/" | "%" | "@" | "<" | ">" | "<=" | ">=" | "==" | "!=" | "|" | "&" | "^T" | "[" | "(" | ".",
            ) => operators + 1,
            Tok::Keyword("and" | "or" | "not" | "else") => operators + 1,
            _ if matches!(out.last(), Some((_, Tok::Newline, _))) => 0,
            _ => operators,
        };
        if operators > MAX_OPERATORS {
            let span = Span::new(file, start, at);
            diags.push(span, SyntaxError::TooDeep { what: "operators in an expression", limit: MAX_OPERATORS, at: span.into() });
            close_silently(start, &mut nesting, &mut out);
            return out;
        }
        out.push((start, tok, at));
    }
    close_down_to(file, 0, text.len(), &mut nesting, &mut out, diags);
    out
}

/// Brackets open at once, and operators of one expression: the tree's depth, which recursion has to follow.
const MAX_NESTING: usize = 128;
const MAX_OPERATORS: usize = 1000;

/// The keywords that begin an item and nothing else at the start of a line.
const ITEM_KEYWORDS: &[&str] = &["use", "dims", "config", "precision", "fn", "block", "model", "train"];

fn partner(open: char) -> char {
    match open {
        '(' => ')',
        '[' => ']',
        _ => '}',
    }
}

fn closing(open: char) -> Tok {
    Tok::Punct(match open {
        '(' => ")",
        '[' => "]",
        _ => "}",
    })
}

/// Closes what is open beyond the first `keep` brackets; the innermost is reported, as the others follow from it.
fn close_down_to(
    file: FileId,
    keep: usize,
    before: usize,
    nesting: &mut Vec<(char, usize)>,
    out: &mut Vec<(usize, Tok, usize)>,
    diags: &mut Diags,
) {
    let mut first = true;
    while nesting.len() > keep {
        let Some((open, start)) = nesting.pop() else { return };
        if std::mem::take(&mut first) {
            let span = Span::new(file, start, start + 1);
            let before = Span::new(file, before, before).into();
            diags.push(span, SyntaxError::Unclosed { open, close: partner(open), at: span.into(), before });
        }
        out.push((before, closing(open), before));
    }
}

fn close_silently(before: usize, nesting: &mut Vec<(char, usize)>, out: &mut Vec<(usize, Tok, usize)>) {
    while let Some((open, _)) = nesting.pop() {
        out.push((before, closing(open), before));
    }
}

fn ends_statement(t: &Tok) -> bool {
    match t {
        Tok::Ident(_) | Tok::Int(_) | Tok::Float(_) | Tok::Str(_) | Tok::Keyword("true" | "false" | "nodecay") => true,
        Tok::Punct(p) => matches!(*p, ")" | "]" | "}" | "^T"),
        Tok::Keyword(_) | Tok::Doc(_) | Tok::Newline => false,
    }
}

fn continues(t: &Tok) -> bool {
    match t {
        Tok::Punct(p) => !matches!(*p, "(" | "[" | "-" | "{"),
        Tok::Keyword(k) => matches!(*k, "else" | "as" | "and" | "or"),
        Tok::Ident(_) | Tok::Int(_) | Tok::Float(_) | Tok::Str(_) | Tok::Doc(_) | Tok::Newline => false,
    }
}

fn number(rest: &str) -> (Option<Tok>, usize) {
    let bytes = rest.as_bytes();
    let digits = |mut i: usize| {
        while i < bytes.len() && (bytes[i].is_ascii_digit() || bytes[i] == b'_') {
            i += 1;
        }
        i
    };
    let mut end = digits(0);
    let mut float = false;
    if bytes.get(end) == Some(&b'.') && bytes.get(end + 1).is_some_and(u8::is_ascii_digit) {
        float = true;
        end = digits(end + 1);
    }
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
        if bytes.get(end + 1 + sign).is_some_and(u8::is_ascii_digit) {
            float = true;
            end = digits(end + 1 + sign);
        }
    }
    // A number runs on to the end of the word, so that `12abc` is one mistake.
    let word = rest[end..].find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len() - end);
    let text = rest[..end].replace('_', "");
    let tok = if word > 0 {
        None
    } else if float {
        text.parse().ok().filter(|x: &f64| x.is_finite()).map(Tok::Float)
    } else {
        text.parse().ok().map(Tok::Int)
    };
    (tok, end + word)
}

fn string(rest: &str) -> (String, usize, bool) {
    let mut value = String::new();
    let mut chars = rest.char_indices().skip(1);
    while let Some((i, c)) = chars.next() {
        match c {
            '"' => return (value, i + 1, true),
            '\n' => return (value, i, false),
            '\\' => match chars.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, c)) => value.push(c),
                None => {}
            },
            c => value.push(c),
        }
    }
    (value, rest.len(), false)
}
