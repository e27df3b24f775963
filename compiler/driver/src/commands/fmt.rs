//! `lode fmt`: canonical layout of model files.

use crate::putln;
use crate::{cli::MessageFormat, report};
use base::{Diags, Sources};
use std::path::PathBuf;

/// Formats the files in place, or only says which are not formatted.
pub fn run(files: &[PathBuf], check: bool, format: MessageFormat) -> u8 {
    let mut code = 0;
    for path in files {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) => {
                eprintln!("{}: {e}", path.display());
                code = 1;
                continue;
            }
        };
        let mut sources = Sources::default();
        let file = sources.add(&path.display().to_string(), &text);
        let mut diags = Diags::new();
        let formatted = syntax::format(file, &text, &mut diags);
        let Some(formatted) = formatted else {
            report::print(&sources, &diags.into_sorted(), format);
            code = 1;
            continue;
        };
        if formatted == text {
            continue;
        }
        if check {
            putln!("{}", path.display());
            code = 1;
        } else if let Err(e) = std::fs::write(path, formatted) {
            eprintln!("{}: {e}", path.display());
            code = 1;
        }
    }
    code
}
