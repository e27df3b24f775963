//! Collecting diagnostics. Stages define their own error enums (`thiserror` with `miette`) and push them here; they go on
//! after an error and report all of them. Only the driver renders.

use crate::Span;
use miette::Diagnostic;

/// A diagnostic and the place it is sorted by.
pub struct Entry {
    /// The primary place; labels inside `error` are byte ranges of the same file.
    pub span: Span,
    /// The error, with code, labels and help.
    pub error: Box<dyn Diagnostic + Send + Sync>,
    /// Labels in other files than `span`'s, or that cannot be stated in the error's own enum.
    pub related: Vec<(Span, String)>,
}

/// The diagnostics of a compilation, in the order found.
#[derive(Default)]
pub struct Diags {
    entries: Vec<Entry>,
}

impl Diags {
    /// No diagnostics.
    pub fn new() -> Self {
        Self::default()
    }
    /// Records `error` at `span`.
    pub fn push(&mut self, span: Span, error: impl Diagnostic + Send + Sync + 'static) {
        self.push_related(span, error, Vec::new());
    }
    /// Records `error` at `span` with notes at other places.
    pub fn push_related(&mut self, span: Span, error: impl Diagnostic + Send + Sync + 'static, related: Vec<(Span, String)>) {
        self.entries.push(Entry { span, error: Box::new(error), related });
    }
    /// Whether nothing was reported.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
    /// How many were reported so far.
    pub fn len(&self) -> usize {
        self.entries.len()
    }
    /// The places of those from the `first`-th on.
    pub fn spans_from(&self, first: usize) -> impl Iterator<Item = Span> {
        self.entries[first..].iter().map(|e| e.span)
    }
    /// The diagnostics by position; the same message at the same place once.
    pub fn into_sorted(mut self) -> Vec<Entry> {
        self.entries.sort_by_key(|e| e.span);
        self.entries.dedup_by(|a, b| a.span == b.span && a.error.to_string() == b.error.to_string());
        self.entries
    }
}
