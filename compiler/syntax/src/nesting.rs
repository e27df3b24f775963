//! Brackets that are open, and how deep the tree under them can get. In: tokens one by one. Out: which bracket was forgotten, where.
//!
//! What holds: the brackets of the tokens that the lexer hands on are balanced, so a forgotten one is told once, here.

use crate::{error::SyntaxError, lexer::Tok};
use base::{Diags, FileId, Span};

/// Brackets open at once, and levels of the tree. Whoever walks the tree does so by recursion, on a stack of 2 MiB at the least.
pub(crate) const MAX_NESTING: usize = 256;

/// An open bracket.
struct Open {
    bracket: char,
    start: usize,
    /// The indentation of its line.
    indent: usize,
    /// The levels around it, and the most within it so far.
    base: usize,
    deepest: usize,
}

/// The brackets open at a place in the text.
#[derive(Default)]
pub(crate) struct Nesting {
    open: Vec<Open>,
    /// An upper bound of the tree's depth at this token.
    levels: usize,
    /// The first brace of this item whose partner stands further left than its line: likely the next brace's partner.
    suspect: Option<usize>,
}

/// Where the next token stands.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// Its first byte.
    pub start: usize,
    /// The indentation of its line.
    pub indent: usize,
    /// Whether it is the first of its line.
    pub first: bool,
}

type Tokens = Vec<(usize, Tok, usize)>;

impl Nesting {
    /// Whether no bracket is open.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Whether a line break can end a statement here.
    pub fn in_braces(&self) -> bool {
        self.open.last().is_some_and(|o| o.bracket == '{')
    }

    /// A new item begins.
    pub fn reset(&mut self) {
        self.open.clear();
        (self.levels, self.suspect) = (0, None);
    }

    /// An operator: one more level.
    pub fn enter_operand(&mut self) {
        self.levels += 1;
    }

    /// A separator: the levels of what stands before it end.
    pub fn end_part(&mut self) {
        self.levels = match self.open.last_mut() {
            Some(o) => {
                o.deepest = o.deepest.max(self.levels);
                o.base
            }
            None => 0,
        };
    }

    /// An opening bracket. A body is two levels: whoever walks the tree enters its statement and then the body, with large frames; 250
    /// nested `repeat` of one level overflow 2 MiB in an unoptimised `hir`, 200 do not.
    pub fn open(&mut self, bracket: char, at: Place) {
        self.levels += if bracket == '{' { 2 } else { 1 };
        self.open.push(Open { bracket, start: at.start, indent: at.indent, base: self.levels, deepest: self.levels });
    }

    /// Whether the tree would get deeper than what follows it can walk.
    pub fn too_deep(&self) -> bool {
        self.levels > MAX_NESTING
    }

    /// A closing bracket; what was opened within and forgotten is told and closed. False if nothing is open for it.
    pub fn close(&mut self, close: char, at: Place, sink: &mut Sink<'_>) -> bool {
        let Some(i) = self.open.iter().rposition(|o| partner(o.bracket) == close) else { return false };
        self.force(i + 1, at.start, sink);
        let open = self.open.last().expect("a partner was found and is still open");
        if at.first && at.indent < open.indent && close == '}' {
            self.suspect.get_or_insert(open.start);
        }
        self.pop();
        true
    }

    /// A keyword that begins an item: nothing can be open.
    pub fn begin_item(&mut self, before: usize, sink: &mut Sink<'_>) {
        self.force(0, before, sink);
        self.reset();
    }

    /// A keyword that begins a statement: no parenthesis can be open.
    pub fn begin_statement(&mut self, before: usize, sink: &mut Sink<'_>) {
        if let Some(i) = self.open.iter().rposition(|o| o.bracket == '{') {
            self.force(i + 1, before, sink);
        }
    }

    /// An `else` without a `}` before it, inside of a body: the brace before it was forgotten.
    pub fn begin_else(&mut self, before: usize, sink: &mut Sink<'_>) {
        if self.in_braces() && self.open.len() > 1 && !matches!(sink.tokens.last(), Some((_, Tok::Punct("}"), _))) {
            self.force(self.open.len() - 1, before, sink);
        }
    }

    /// A string without its end: it took along the parentheses that close what this line, from `line` on, opened, and of braces as many
    /// as it holds.
    pub fn end_line(&mut self, line: usize, at: usize, mut braces: usize, sink: &mut Sink<'_>) {
        while self.open.last().is_some_and(|o| o.start >= line && (o.bracket != '{' || braces > 0)) {
            let Some(open) = self.pop() else { return };
            braces -= usize::from(open.bracket == '{');
            sink.tokens.push((at, Tok::Punct(closing(open.bracket)), at));
        }
    }

    fn pop(&mut self) -> Option<Open> {
        let open = self.open.pop()?;
        self.levels = if self.open.is_empty() { 0 } else { self.levels.max(open.deepest) };
        Some(open)
    }

    /// Closes what is open beyond the first `keep` brackets and tells one of them, as the others follow from it.
    fn force(&mut self, keep: usize, before: usize, sink: &mut Sink<'_>) {
        let mut told = None;
        while self.open.len() > keep {
            let Some(open) = self.pop() else { return };
            sink.tokens.push((before, Tok::Punct(closing(open.bracket)), before));
            told = told.or(Some((open.bracket, open.start)));
        }
        let Some((open, start)) = told else { return };
        let start = self.suspect.filter(|s| open == '{' && *s > start).unwrap_or(start);
        let span = Span::new(sink.file, start, start + 1);
        let at = Span::new(sink.file, before, before).into();
        sink.diags.push(span, SyntaxError::Unclosed { open, close: partner(open), at: span.into(), before: at });
        // What stands between a forgotten parenthesis and its place is read wrongly; a body's statements are not.
        sink.covered.push((if open == '{' { before } else { start }, before));
    }
}

/// Where tokens and mistakes go.
pub(crate) struct Sink<'a> {
    /// The file.
    pub file: FileId,
    /// The tokens so far.
    pub tokens: &'a mut Tokens,
    /// The mistakes so far.
    pub diags: &'a mut Diags,
    /// Byte ranges, both ends included, in which a mistake of the parser would be a consequence of one told already.
    pub covered: &'a mut Vec<(usize, usize)>,
}

fn partner(open: char) -> char {
    match open {
        '(' => ')',
        '[' => ']',
        _ => '}',
    }
}

fn closing(open: char) -> &'static str {
    match open {
        '(' => ")",
        '[' => "]",
        _ => "}",
    }
}
