//! Printing diagnostics: the only place that knows the source text and the terminal.

use crate::cli::MessageFormat;
use base::{Sources, Span, diag::Entry};
use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, Severity};
use std::fmt;

/// A diagnostic with the text it labels.
#[derive(Debug)]
struct Rendered<'a> {
    error: &'a (dyn Diagnostic + Send + Sync),
    source: NamedSource<String>,
    extra: Vec<LabeledSpan>,
}

impl fmt::Display for Rendered<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.error, f)
    }
}

impl std::error::Error for Rendered<'_> {}

impl Diagnostic for Rendered<'_> {
    fn code<'b>(&'b self) -> Option<Box<dyn fmt::Display + 'b>> {
        self.error.code()
    }
    fn severity(&self) -> Option<Severity> {
        self.error.severity()
    }
    fn help<'b>(&'b self) -> Option<Box<dyn fmt::Display + 'b>> {
        self.error.help()
    }
    fn source_code(&self) -> Option<&dyn miette::SourceCode> {
        Some(&self.source)
    }
    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let own = self.error.labels().into_iter().flatten();
        Some(Box::new(own.chain(self.extra.iter().cloned())))
    }
}

/// Prints all diagnostics to standard error.
pub fn print(sources: &Sources, entries: &[Entry], format: MessageFormat) {
    for entry in entries {
        match format {
            MessageFormat::Human => eprint!("{}", human(sources, entry)),
            MessageFormat::Json => eprintln!("{}", json(sources, entry)),
        }
    }
    if format == MessageFormat::Human && !entries.is_empty() {
        let plural = if entries.len() == 1 { "error" } else { "errors" };
        eprintln!("{} {plural}", entries.len());
    }
}

/// A diagnostic as text with the lines it speaks of.
pub fn human(sources: &Sources, entry: &Entry) -> String {
    use std::io::IsTerminal;
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let theme = if colour { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
    let file = sources.get(entry.span.file);
    let here = entry.related.iter().filter(|(s, _)| s.file == entry.span.file);
    let rendered = Rendered {
        error: entry.error.as_ref(),
        source: NamedSource::new(&file.name, file.text.to_string()),
        extra: here.map(|(s, text)| LabeledSpan::new_with_span(Some(text.clone()), *s)).collect(),
    };
    let mut out = String::new();
    if GraphicalReportHandler::new_themed(theme).with_width(110).render_report(&mut out, &rendered).is_err() {
        out = format!("{rendered}\n");
    }
    for (span, text) in entry.related.iter().filter(|(s, _)| s.file != entry.span.file) {
        let (line, column) = sources.line_col(*span);
        out.push_str(&format!("  note: {text} ({}:{line}:{column})\n", sources.get(span.file).name));
    }
    out
}

/// A diagnostic as one JSON object.
pub fn json(sources: &Sources, entry: &Entry) -> serde_json::Value {
    let place = |span: Span, label: Option<&str>| {
        let (line, col) = sources.line_col(span);
        serde_json::json!({ "file": &*sources.get(span.file).name, "line": line, "col": col, "start": span.start, "end": span.end, "label": label })
    };
    let labels: Vec<LabeledSpan> = entry.error.labels().into_iter().flatten().collect();
    let mut spans: Vec<_> = labels
        .iter()
        .map(|l| place(Span::new(entry.span.file, l.offset(), l.offset() + l.len()), l.label()))
        .chain(entry.related.iter().map(|(s, text)| place(*s, Some(text))))
        .collect();
    if spans.is_empty() {
        spans.push(place(entry.span, None));
    }
    serde_json::json!({
        "level": "error",
        "code": entry.error.code().map(|c| c.to_string()),
        "message": entry.error.to_string(),
        "spans": spans,
        "help": entry.error.help().map(|h| h.to_string()),
    })
}

/// Writes to standard output. A reader that has gone away wants no more: the process ends well.
pub fn put(text: std::fmt::Arguments) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_fmt(text).and_then(|()| out.flush()) {
        Ok(()) => {}
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(e) => {
            eprintln!("standard output: {e}");
            std::process::exit(1);
        }
    }
}

/// `print!` by [`put`].
#[macro_export]
macro_rules! put {
    ($($arg:tt)*) => { $crate::report::put(format_args!($($arg)*)) };
}

/// `println!` by [`put`].
#[macro_export]
macro_rules! putln {
    () => { $crate::put!("\n") };
    ($($arg:tt)*) => { $crate::put!("{}\n", format_args!($($arg)*)) };
}
