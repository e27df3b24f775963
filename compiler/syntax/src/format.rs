//! Canonical layout: two spaces a level, one space around binary operators, no trailing blanks, at most one empty line, 110 columns.
//! Line breaks and comments stay where they are; a line that is too long is broken at its outermost comma or operator. The tokens
//! do not change, and the layout of a laid-out file is itself. In: a file that parses. Out: its text, formatted.

use crate::lexer::{Tok, ends_statement, lex};
use base::{Diags, FileId};

/// The longest line that is left as it is.
const COLUMNS: usize = 110;

/// A line is not broken before this column if it can be broken after.
const SHORTEST: usize = 50;

/// The file formatted, or `None` if it does not parse; then why is reported.
pub fn format(file: FileId, text: &str, diags: &mut Diags) -> Option<String> {
    let before = diags.len();
    crate::parse(file, text, diags);
    if diags.len() > before {
        return None;
    }
    let tokens: Vec<_> =
        lex(file, text, diags).into_iter().filter(|(_, t, _)| !matches!(t, Tok::Newline | Tok::Doc(_))).collect();
    let around = brackets_around(&tokens);
    let mut layout = Layout { text, tokens: &tokens, around: &around, open: Vec::new(), out: String::with_capacity(text.len()) };
    let (mut next, mut at, mut blank) = (0, 0, false);
    for line in text.split_inclusive('\n') {
        let (start, end) = (at, at + line.len());
        at = end;
        let first = next;
        while next < tokens.len() && tokens[next].0 < end {
            next += 1;
        }
        let code_end = if first < next { tokens[next - 1].2 } else { start };
        let comment = text[code_end..end].trim();
        if first == next && comment.is_empty() {
            blank = !layout.out.is_empty();
            continue;
        }
        let closes = first < next && is_close(&tokens[first].1);
        if std::mem::take(&mut blank) && !closes && !layout.out.ends_with("{\n") {
            layout.out.push('\n');
        }
        layout.line(first, next, comment);
    }
    Some(layout.out)
}

/// For each token, the opening bracket that it stands in.
fn brackets_around(tokens: &[(usize, Tok, usize)]) -> Vec<Option<usize>> {
    let mut open = Vec::new();
    let mut around = Vec::with_capacity(tokens.len());
    for (i, (_, tok, _)) in tokens.iter().enumerate() {
        if is_close(tok) {
            around.push(open.pop());
            continue;
        }
        around.push(open.last().copied());
        if is_open(tok) {
            open.push(i);
        }
    }
    around
}

struct Layout<'a> {
    text: &'a str,
    tokens: &'a [(usize, Tok, usize)],
    /// The bracket around each token; a closing bracket's is its partner.
    around: &'a [Option<usize>],
    /// The brackets open: whether the line that opened each had opened another before it (those share one indent).
    open: Vec<bool>,
    out: String,
}

impl Layout<'_> {
    /// Lays out tokens `from..to` of one line and the comment behind them.
    fn line(&mut self, mut from: usize, to: usize, comment: &str) {
        if from == to {
            self.out.push_str(&"  ".repeat(self.level(self.open.len())));
        }
        while from < to {
            let indent = 2 * self.indent(from, to);
            let end = self.end_of_line(from, to, indent);
            self.out.push_str(&" ".repeat(indent));
            let mut opened_here = false;
            for i in from..end {
                if i > from && self.spaced(i) {
                    self.out.push(' ');
                }
                let (s, tok, e) = &self.tokens[i];
                self.out.push_str(&self.text[*s..*e]);
                if is_open(tok) {
                    self.open.push(std::mem::replace(&mut opened_here, true));
                } else if is_close(tok) {
                    self.open.pop();
                    opened_here = false;
                }
            }
            from = end;
            if from < to {
                self.out.push('\n');
            } else if !comment.is_empty() {
                self.out.push_str("  ");
            }
        }
        self.out.push_str(comment);
        self.out.push('\n');
    }

    fn level(&self, brackets: usize) -> usize {
        self.open[..brackets].iter().filter(|shared| !**shared).count()
    }

    /// The level of the line that starts with token `from`.
    fn indent(&self, from: usize, to: usize) -> usize {
        let closing = self.tokens[from..to].iter().take_while(|(_, t, _)| is_close(t)).count();
        let level = self.level(self.open.len().saturating_sub(closing));
        level + usize::from(closing == 0 && from > 0 && self.continues(from))
    }

    /// Whether a line that starts with token `i` goes on with the one before, other than by a bracket.
    fn continues(&self, i: usize) -> bool {
        match &self.tokens[i - 1].1 {
            Tok::Punct(",") => match self.around[i] {
                // The entries of a list of lines; those of `set` hang below it.
                Some(open) => is(self.tokens, open, "{") && matches!(self.tokens[open - 1].1, Tok::Punct(")")),
                None => true,
            },
            Tok::Punct("=" | "->" | ":") => true,
            before if is_operator(before) => true,
            _ if self.starts_negation(i) => false,
            _ => {
                is_operator(&self.tokens[i].1)
                    || matches!(self.tokens[i].1, Tok::Punct("=" | "->") | Tok::Keyword("as" | "nodecay"))
            }
        }
    }

    /// Whether token `i` is the minus of a statement of its own.
    fn starts_negation(&self, i: usize) -> bool {
        let in_body = self.around[i].is_some_and(|o| is(self.tokens, o, "{"));
        in_body && is(self.tokens, i, "-") && self.text[self.tokens[i - 1].2..self.tokens[i].0].contains('\n')
    }

    /// Where the line that starts with token `from` at column `indent` ends: at `to`, unless it gets too long.
    fn end_of_line(&self, from: usize, to: usize, indent: usize) -> usize {
        let mut width = indent;
        let mut best: Option<((bool, usize, u8), usize)> = None;
        let mut first = None;
        let mut depth: usize = 0;
        for i in from..to {
            let (s, tok, e) = &self.tokens[i];
            if i > from && self.can_break(i) {
                first = first.or(Some(i));
                let rank = (width < SHORTEST, depth, tightness(tok).unwrap_or(0));
                if width <= COLUMNS && best.is_none_or(|(r, _)| rank <= r) {
                    best = Some((rank, i));
                }
            }
            depth = if is_open(tok) { depth + 1 } else { depth.saturating_sub(usize::from(is_close(tok))) };
            width += usize::from(i > from && self.spaced(i)) + self.text[*s..*e].chars().count();
        }
        if width <= COLUMNS {
            return to;
        }
        best.map(|(_, i)| i).or(first).unwrap_or(to)
    }

    /// Whether a line break before token `i` changes nothing: a `-` or a bracket would begin a statement.
    fn can_break(&self, i: usize) -> bool {
        let (before, tok) = (&self.tokens[i - 1].1, &self.tokens[i].1);
        let in_path = matches!(before, Tok::Punct("."));
        match tok {
            Tok::Punct("->") => true,
            Tok::Punct("-") => false,
            tok if is_operator(tok) => !in_path && ends_statement(&self.tokens[..i]),
            tok => matches!(before, Tok::Punct(",")) && !is_close(tok),
        }
    }

    /// Whether a blank goes between token `i - 1` and token `i` of one line.
    fn spaced(&self, i: usize) -> bool {
        let tokens = self.tokens;
        let (before, tok) = (&tokens[i - 1].1, &tokens[i].1);
        // A minus with nothing before it to subtract from, and a colon or dot inside a word, bind.
        let prefix_minus = |k: usize| is(tokens, k, "-") && (k == 0 || !ends_statement(&tokens[..k]) || self.starts_negation(k));
        let in_slice = |k: usize| self.around[k].is_some_and(|o| is(tokens, o, "["));
        // `use std.{a, b}`.
        let in_use = |k: usize| self.around[k].is_some_and(|o| is(tokens, o, "{") && o > 0 && is(tokens, o - 1, "."));
        match (before, tok) {
            (Tok::Punct("(" | "["), _) | (_, Tok::Punct(")" | "]" | "," | ";" | "^T")) => false,
            (Tok::Punct("." | ".."), _) | (_, Tok::Punct(".")) => false,
            (Tok::Punct("{"), Tok::Punct("}")) => false,
            (Tok::Punct("{"), _) if in_use(i) => false,
            (_, Tok::Punct("}")) if in_use(i) => false,
            (before, Tok::Punct(":")) => matches!(before, Tok::Punct(",")),
            (Tok::Punct(":"), _) => !in_slice(i),
            // Types, indices and calls touch their name; a list after a word does not.
            (Tok::Keyword("train"), Tok::Punct("(")) => false,
            (Tok::Ident(_) | Tok::Punct(")" | "]" | "^T"), Tok::Punct("(" | "[")) => false,
            _ => !prefix_minus(i - 1),
        }
    }
}

fn is(tokens: &[(usize, Tok, usize)], i: usize, punct: &str) -> bool {
    matches!(tokens[i].1, Tok::Punct(p) if p == punct)
}

fn is_open(t: &Tok) -> bool {
    matches!(t, Tok::Punct("(" | "[" | "{"))
}

fn is_close(t: &Tok) -> bool {
    matches!(t, Tok::Punct(")" | "]" | "}"))
}

/// Whether this is an operator between two expressions.
fn is_operator(t: &Tok) -> bool {
    tightness(t).is_some()
}

/// How tightly an operator binds, from 1; the tiers of the grammar.
fn tightness(t: &Tok) -> Option<u8> {
    Some(match t {
        Tok::Keyword("or") => 1,
        Tok::Keyword("and") => 2,
        Tok::Punct("==" | "!=" | "<" | "<=" | ">" | ">=") => 3,
        Tok::Punct("|") => 4,
        Tok::Punct("&") => 5,
        Tok::Punct("+" | "-") => 6,
        Tok::Punct("*" | "/" | "%") => 7,
        Tok::Punct("@") => 8,
        Tok::Punct(_) | Tok::Keyword(_) | Tok::Ident(_) | Tok::Int(_) | Tok::Float(_) | Tok::Str(_) => return None,
        Tok::Doc(_) | Tok::Newline => return None,
    })
}
