//! `lode explain E0301`: the page of an error code.

use crate::put;
/// The pages of `docs/errors`, by code, from the build script's listing.
const PAGES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/error_pages.rs"));

/// The page of `code`, such as `E0301`; case does not matter.
pub fn page(code: &str) -> Option<&'static str> {
    PAGES.iter().find(|(c, _)| c.eq_ignore_ascii_case(code)).map(|(_, text)| *text)
}

/// Prints the page.
pub fn run(code: &str) -> u8 {
    match page(code) {
        Some(text) => {
            put!("{text}");
            0
        }
        None => {
            let known: Vec<&str> = PAGES.iter().map(|(c, _)| *c).collect();
            eprintln!("there is no code '{code}'; the codes are {}", known.join(" "));
            2
        }
    }
}
