//! Canonical layout: two spaces a level, one space around binary operators, no trailing blanks, at most one empty line. Line breaks
//! and comments stay where they are; the tokens do not change. In: a file that lexes without errors. Out: its text, formatted.

use crate::lexer::{Tok, lex};
use base::{Diags, FileId};

/// The file formatted, or `None` if it does not parse; then why is reported.
pub fn format(file: FileId, text: &str, diags: &mut Diags) -> Option<String> {
    let before = diags.len();
    crate::parse(file, text, diags);
    if diags.len() > before {
        return None;
    }
    let tokens: Vec<_> =
        lex(file, text, diags).into_iter().filter(|(_, t, _)| !matches!(t, Tok::Newline | Tok::Doc(_))).collect();
    let mut out = String::with_capacity(text.len());
    // Brackets open, and whether the line that opened each had opened another before it (those share one indent).
    let mut open: Vec<bool> = Vec::new();
    let mut next = 0;
    let mut at = 0;
    let mut blank = false;
    for line in text.split_inclusive('\n') {
        let (start, end) = (at, at + line.len());
        at = end;
        let first = next;
        while next < tokens.len() && tokens[next].0 < end {
            next += 1;
        }
        let words = &tokens[first..next];
        let code_end = words.last().map_or(start, |t| t.2);
        let comment = text[code_end.min(end)..end].trim();
        if words.is_empty() && comment.is_empty() {
            blank = !out.is_empty();
            continue;
        }
        if std::mem::take(&mut blank) {
            out.push('\n');
        }
        let closing = words.iter().take_while(|(_, t, _)| is_close(t)).count();
        let level = |open: &[bool]| open.iter().filter(|shared| !**shared).count();
        let kept = open.len().saturating_sub(closing);
        let continued = closing == 0 && words.first().is_some_and(|(_, t, _)| continues(t)) && first > 0;
        let indent = level(&open[..kept]) + usize::from(continued);
        out.push_str(&"  ".repeat(indent));
        let mut opened_here = false;
        for (i, (s, tok, e)) in words.iter().enumerate() {
            let absolute = first + i;
            if i > 0 && spaced(&tokens, absolute) {
                out.push(' ');
            }
            out.push_str(&text[*s..*e]);
            if is_open(tok) {
                open.push(std::mem::replace(&mut opened_here, true));
            } else if is_close(tok) {
                open.pop();
                opened_here = false;
            }
        }
        if !comment.is_empty() {
            out.push_str(if words.is_empty() { "" } else { "  " });
            out.push_str(comment);
        }
        out.push('\n');
    }
    Some(out)
}

fn is_open(t: &Tok) -> bool {
    matches!(t, Tok::Punct("(" | "[" | "{"))
}

fn is_close(t: &Tok) -> bool {
    matches!(t, Tok::Punct(")" | "]" | "}"))
}

/// Whether a line that starts with this goes on with the one before.
fn continues(t: &Tok) -> bool {
    matches!(t, Tok::Punct("+" | "*" | "/" | "%" | "@" | "==" | "!=" | "<" | "<=" | ">" | ">=" | "|" | "&" | "=" | "->"))
        || matches!(t, Tok::Keyword("and" | "or" | "as"))
}

/// Whether a blank goes between token `i - 1` and token `i` of one line.
fn spaced(tokens: &[(usize, Tok, usize)], i: usize) -> bool {
    let (before, tok) = (&tokens[i - 1].1, &tokens[i].1);
    // A minus with nothing before it to subtract from, and a colon or dot inside a word, bind.
    let prefix_minus = |k: usize| {
        matches!(tokens[k].1, Tok::Punct("-"))
            && (k == 0 || !matches!(tokens[k - 1].1, Tok::Ident(_) | Tok::Int(_) | Tok::Float(_) | Tok::Punct(")" | "]" | "^T")))
    };
    let in_slice = |k: usize| enclosing(tokens, k) == Some("[");
    match (before, tok) {
        (Tok::Punct("(" | "["), _) | (_, Tok::Punct(")" | "]" | "," | ";" | "^T")) => false,
        (Tok::Punct("." | ".."), _) | (_, Tok::Punct(".")) => false,
        (Tok::Punct("{"), Tok::Punct("}")) => false,
        // `use std.{a, b}`.
        (Tok::Punct("{"), _) if i >= 2 && matches!(tokens[i - 2].1, Tok::Punct(".")) => false,
        (_, Tok::Punct("}")) if in_use(tokens, i) => false,
        (before, Tok::Punct(":")) => matches!(before, Tok::Punct(",")),
        (Tok::Punct(":"), _) => !in_slice(i),
        // Types and indices touch their name; a list after a word does not.
        (Tok::Keyword("train"), Tok::Punct("(")) => false,
        (Tok::Ident(_) | Tok::Punct(")" | "]" | "^T"), Tok::Punct("(" | "[")) => false,
        _ if prefix_minus(i - 1) => false,
        // `.*` in a path.
        (Tok::Punct("*"), Tok::Ident(_)) if i >= 2 && matches!(tokens[i - 2].1, Tok::Punct(".")) => true,
        _ => true,
    }
}

/// Whether the brace that token `i` closes was opened by `.{`.
fn in_use(tokens: &[(usize, Tok, usize)], i: usize) -> bool {
    let open = tokens[..i].iter().rposition(|(_, t, _)| is_open(t));
    open.is_some_and(|o| o > 0 && matches!(tokens[o - 1].1, Tok::Punct(".")))
}

/// The bracket around token `i`, if it is one whose colons are slices: those of an index.
fn enclosing(tokens: &[(usize, Tok, usize)], i: usize) -> Option<&'static str> {
    let mut depth = 0;
    for (_, tok, _) in tokens[..i].iter().rev() {
        if is_close(tok) {
            depth += 1;
        } else if is_open(tok) {
            if depth == 0 {
                let Tok::Punct(p) = tok else { return None };
                return Some(p);
            }
            depth -= 1;
        }
    }
    None
}
