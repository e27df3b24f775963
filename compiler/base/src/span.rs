//! Where a piece of text stands: file and byte range.

use miette::SourceSpan;
use std::sync::Arc;

crate::id_type!(
    /// A source file.
    FileId,
    "file"
);

/// A byte range in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// The file.
    pub file: FileId,
    /// First byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

impl Span {
    /// The bytes `start..end` of `file`.
    pub fn new(file: FileId, start: usize, end: usize) -> Self {
        let byte = |n: usize| u32::try_from(n).expect("sources are below 4 GiB");
        Self { file, start: byte(start), end: byte(end) }
    }
    /// The smallest span that holds both; they are in one file.
    pub fn to(self, other: Span) -> Span {
        Span { file: self.file, start: self.start.min(other.start), end: self.end.max(other.end) }
    }
}

impl From<Span> for SourceSpan {
    fn from(s: Span) -> Self {
        (s.start as usize, (s.end - s.start) as usize).into()
    }
}

/// A source file's name and text.
#[derive(Clone, Debug)]
pub struct Source {
    /// The path as given, or `std/<name>.lode`.
    pub name: Arc<str>,
    /// The whole text.
    pub text: Arc<str>,
}

/// All source files of a compilation.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    files: crate::Arena<FileId, Source>,
}

impl Sources {
    /// Adds a file.
    pub fn add(&mut self, name: &str, text: &str) -> FileId {
        self.files.push(Source { name: name.into(), text: text.into() })
    }
    /// The file with this id.
    pub fn get(&self, id: FileId) -> &Source {
        &self.files[id]
    }
    /// The id of the file with this name.
    pub fn find(&self, name: &str) -> Option<FileId> {
        self.files.iter().find(|(_, s)| &*s.name == name).map(|(id, _)| id)
    }
    /// Line and column of a span's start, both from 1; columns count characters.
    pub fn line_col(&self, span: Span) -> (usize, usize) {
        let before = &self.get(span.file).text[..span.start as usize];
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }
    /// The text under a span.
    pub fn text(&self, span: Span) -> &str {
        &self.get(span.file).text[span.start as usize..span.end as usize]
    }
}
