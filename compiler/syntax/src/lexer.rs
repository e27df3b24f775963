//! Text to tokens, by hand. Decides where statements end: inside `{ }` a line break after a token that can end a statement is a
//! `;`, unless the next line goes on. In: a file's text. Out: tokens with spans; what is no token is reported and skipped, and the
//! brackets of what is handed on are balanced.

use crate::{
    error::SyntaxError,
    nesting::{MAX_NESTING, Nesting, Place, Sink},
};
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
    "pipeline",
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

/// The keywords that begin an item and nothing else at the start of a line.
pub(crate) const ITEM_KEYWORDS: &[&str] = &["use", "dims", "config", "precision", "pipeline", "fn", "block", "model", "train"];

/// The keywords that begin a statement and nothing else.
const STATEMENT_KEYWORDS: &[&str] = &["let", "repeat", "state", "tally", "penalty", "after", "minimize"];

const PUNCTS: &[&str] = &[
    "->", "==", "!=", "<=", ">=", "..", "^T", "(", ")", "[", "]", "{", "}", ",", ";", ":", "=", "+", "-", "*", "/", "%", "@",
    "<", ">", "|", "&", ".",
];

/// Lexes a file.
pub fn lex(file: FileId, text: &str, diags: &mut Diags) -> Vec<(usize, Tok, usize)> {
    lex_covered(file, text, diags).0
}

/// Lexes a file. Also returns the byte ranges in which a mistake of the parser would follow from one told already.
#[allow(clippy::type_complexity)]
pub(crate) fn lex_covered(file: FileId, text: &str, diags: &mut Diags) -> (Vec<(usize, Tok, usize)>, Vec<(usize, usize)>) {
    let (mut tokens, mut covered) = (Vec::new(), Vec::new());
    let mut nesting = Nesting::default();
    let mut sink = Sink { file, tokens: &mut tokens, diags, covered: &mut covered };
    // The item at hand: its first token.
    let mut item = 0;
    let (mut at, mut line, mut first) = (0, 0, true);
    let mut indent = 0;
    while let Some(c) = text[at..].chars().next() {
        let start = at;
        let rest = &text[at..];
        if c == '\n' {
            at += 1;
            (line, first) = (at, true);
            continue;
        }
        if c.is_whitespace() {
            at += c.len_utf8();
            continue;
        }
        if rest.starts_with("//") {
            let comment = rest.split('\n').next().unwrap_or(rest);
            at += comment.len();
            if let Some(doc) = comment.strip_prefix("///").filter(|d| nesting.is_empty() && !d.starts_with('/')) {
                sink.tokens.push((start, Tok::Doc(doc.trim().into()), at));
            }
            continue;
        }
        if first {
            indent = start - line;
        }
        let place = Place { start, indent, first };
        let (told, mistakes) = (sink.covered.len(), sink.diags.len());
        let Some((tok, len)) = token(rest, start, &mut sink) else {
            at += unknown(rest, start, &mut sink);
            let from = sink.tokens.last().map_or(line, |t| t.2.min(line));
            cover_line(text, from, at, &mut sink);
            continue;
        };
        at += len;
        let bad_number = c.is_ascii_digit() && sink.diags.len() > mistakes;
        if let Tok::Keyword(word) = tok {
            let begins_line = first && !matches!(sink.tokens.last(), Some((_, Tok::Punct("."), _)));
            if begins_line && ITEM_KEYWORDS.contains(&word) && (indent == 0 || nesting.is_empty()) {
                nesting.begin_item(start, &mut sink);
                let docs = sink.tokens.iter().rev().take_while(|t| matches!(t.1, Tok::Doc(_))).count();
                item = sink.tokens.len() - docs;
            }
            if begins_line && STATEMENT_KEYWORDS.contains(&word) {
                nesting.begin_statement(start, &mut sink);
            }
            if word == "else" {
                nesting.begin_else(start, &mut sink);
            }
        }
        if first && nesting.in_braces() && ends_statement(sink.tokens) && !continues(&tok) {
            let end = sink.tokens.last().map_or(start, |t| t.2);
            sink.tokens.push((end, Tok::Newline, end));
            nesting.end_part();
        }
        first = false;
        match &tok {
            Tok::Punct("(" | "[" | "{") => nesting.open(c, place),
            Tok::Punct(")" | "]" | "}") => {
                if !nesting.close(c, place, &mut sink) {
                    let span = Span::new(file, start, at);
                    sink.diags.push(span, SyntaxError::Unopened { close: c, at: span.into() });
                    // Statements behind a surplus brace are outside of their body; a partner that was forgotten is of this statement.
                    let ends = |t: &&(usize, Tok, usize)| matches!(t.1, Tok::Newline | Tok::Punct("{" | "}" | ";"));
                    let statement = sink.tokens[item..].iter().rev().find(ends).map_or(line, |t| t.2.min(line));
                    let from = if c == '}' { sink.tokens.get(item).map_or(line, |t| t.0) } else { statement };
                    cover_line(text, from, at, &mut sink);
                    continue;
                }
            }
            Tok::Punct("," | ";") => nesting.end_part(),
            Tok::Punct("+" | "-" | "*" | "/" | "%" | "@" | "<" | ">" | "<=" | ">=" | "==" | "!=" | "|" | "&" | "^T")
            | Tok::Keyword("and" | "or" | "not" | "else") => nesting.enter_operand(),
            Tok::Punct(_)
            | Tok::Keyword(_)
            | Tok::Ident(_)
            | Tok::Int(_)
            | Tok::Float(_)
            | Tok::Str(_)
            | Tok::Doc(_)
            | Tok::Newline => {}
        }
        if nesting.too_deep() {
            let span = Span::new(file, start, at);
            sink.diags.push(span, SyntaxError::TooDeep { what: "levels of nesting", limit: MAX_NESTING, at: span.into() });
            sink.tokens.truncate(item);
            nesting.reset();
            at = next_item(text, at);
            (line, first) = (at, true);
            continue;
        }
        sink.tokens.push((start, tok, at));
        if bad_number {
            cover_line(text, line, at, &mut sink);
        }
        if sink.covered.len() > told && c == '"' {
            nesting.end_line(line, at, text[start..at].matches('}').count(), &mut sink);
        }
    }
    nesting.begin_item(text.len(), &mut sink);
    (tokens, covered)
}

/// The token that `rest` starts with, and its length; what is wrong inside of it is told.
fn token(rest: &str, start: usize, sink: &mut Sink<'_>) -> Option<(Tok, usize)> {
    let c = rest.chars().next()?;
    if c.is_ascii_alphabetic() || c == '_' {
        let len = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
        let word = &rest[..len];
        let tok = KEYWORDS.iter().find(|k| **k == word).map_or_else(|| Tok::Ident(word.into()), |k| Tok::Keyword(k));
        return Some((tok, len));
    }
    if c.is_ascii_digit() {
        let (tok, len) = number(rest);
        let tok = tok.unwrap_or_else(|| {
            let span = Span::new(sink.file, start, start + len);
            sink.diags.push(span, SyntaxError::BadNumber { text: rest[..len].into(), at: span.into() });
            Tok::Int(0)
        });
        return Some((tok, len));
    }
    if c == '"' {
        let (value, len) = string(rest, start, sink);
        return Some((Tok::Str(value), len));
    }
    PUNCTS.iter().find(|p| rest.starts_with(**p)).map(|p| (Tok::Punct(p), p.len()))
}

/// Tells of a run of characters that begin no token; returns its length.
fn unknown(rest: &str, start: usize, sink: &mut Sink<'_>) -> usize {
    let known =
        |c: char| c.is_whitespace() || c.is_ascii_alphanumeric() || "_\"/".contains(c) || PUNCTS.iter().any(|p| p.starts_with(c));
    let mut chars = rest.char_indices();
    let character = chars.next().map_or('?', |(_, c)| c);
    let len = chars.find(|(_, c)| known(*c) || (c.is_ascii() && *c != character)).map_or(rest.len(), |(i, _)| i);
    let help = match character {
        '!' => "write `not`",
        '\'' | '`' => "strings are written in double quotes",
        '#' => "comments start with //",
        '^' => "a transpose is written `^T`, a power `pow(a, b)`",
        _ => "remove it",
    };
    let span = Span::new(sink.file, start, start + len);
    sink.diags.push(span, SyntaxError::UnknownCharacter { character, help, at: span.into() });
    len
}

/// What the parser finds from `from` to the end of the line of `at` follows from what was told.
fn cover_line(text: &str, from: usize, at: usize, sink: &mut Sink<'_>) {
    let end = text[at..].find('\n').map_or(text.len(), |i| at + i);
    sink.covered.push((from, end));
}

/// The first line after `at` that begins an item, or the end.
fn next_item(text: &str, at: usize) -> usize {
    let mut line = at;
    while let Some(i) = text[line..].find('\n') {
        line += i + 1;
        let rest = &text[line..];
        let word = &rest[..rest.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(rest.len())];
        if ITEM_KEYWORDS.contains(&word) {
            return line;
        }
    }
    text.len()
}

/// Whether a statement can end after the last of these tokens.
pub(crate) fn ends_statement(tokens: &[(usize, Tok, usize)]) -> bool {
    let mut last = tokens.iter().rev().map(|t| &t.1);
    match last.next() {
        Some(Tok::Ident(_) | Tok::Int(_) | Tok::Float(_) | Tok::Str(_) | Tok::Keyword("true" | "false" | "nodecay")) => true,
        Some(Tok::Punct(p)) => matches!(*p, ")" | "]" | "}" | "^T"),
        // The last part of a path: `as block`.
        Some(Tok::Keyword(_)) => matches!(last.next(), Some(Tok::Keyword("as") | Tok::Punct("."))),
        Some(Tok::Doc(_) | Tok::Newline) | None => false,
    }
}

/// Whether a line that starts with this token goes on with the statement before.
fn continues(t: &Tok) -> bool {
    match t {
        Tok::Punct(p) => !matches!(*p, "(" | "[" | "-" | "{"),
        Tok::Keyword(k) => matches!(*k, "else" | "as" | "and" | "or" | "nodecay"),
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

/// The value of the string that `rest` starts with, and its length.
fn string(rest: &str, start: usize, sink: &mut Sink<'_>) -> (String, usize) {
    let mut value = String::new();
    let mut chars = rest.char_indices().skip(1).peekable();
    let mut end = rest.len();
    while let Some((i, c)) = chars.next() {
        match c {
            '"' => return (value, i + 1),
            '\n' => {
                end = i;
                break;
            }
            '\\' => match chars.next_if(|(_, c)| *c != '\n') {
                Some((_, 'n')) => value.push('\n'),
                Some((_, c @ ('"' | '\\'))) => value.push(c),
                Some((j, character)) => {
                    let span = Span::new(sink.file, start + i, start + j + character.len_utf8());
                    sink.diags.push(span, SyntaxError::BadEscape { character, at: span.into() });
                }
                None => {}
            },
            c => value.push(c),
        }
    }
    let span = Span::new(sink.file, start, start + end);
    sink.diags.push(span, SyntaxError::OpenString { at: span.into() });
    sink.covered.push((start, start + end + 1));
    (value, end)
}
