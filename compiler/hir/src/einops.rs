//! Patterns: `"b t (h k) -> b h t k"` for `rearrange`, `"b t h k, h k d -> b t d"` for `contract`. One word per axis, `...` for any
//! leading axes, `1` for an axis of extent 1, parentheses for axes that are one in memory.

/// An axis of a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// A name.
    Name(String),
    /// Extent 1.
    One,
    /// `...`.
    Rest,
    /// Several that are one axis.
    Group(Vec<String>),
}

/// The axes of one side.
///
/// # Errors
/// If a parenthesis is not closed, or a word is no name.
pub fn words(text: &str) -> Result<Vec<Word>, String> {
    let spaced = text.replace('(', " ( ").replace(')', " ) ");
    let mut out = Vec::new();
    let mut group: Option<Vec<String>> = None;
    for word in spaced.split_whitespace() {
        let is_name = word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        match (word, &mut group) {
            ("(", None) => group = Some(Vec::new()),
            (")", Some(_)) => out.extend(group.take().map(Word::Group)),
            ("1", None) => out.push(Word::One),
            ("...", None) if !out.contains(&Word::Rest) => out.push(Word::Rest),
            (_, None) if is_name => out.push(Word::Name(word.into())),
            (_, Some(names)) if is_name => names.push(word.into()),
            _ => return Err(format!("'{word}' is not expected there")),
        }
    }
    if group.is_some() { Err("a parenthesis is not closed".into()) } else { Ok(out) }
}

/// Splits `"a -> b"`.
///
/// # Errors
/// Without exactly one arrow.
pub fn arrow(text: &str) -> Result<(&str, &str), String> {
    match text.split("->").collect::<Vec<_>>()[..] {
        [a, b] => Ok((a, b)),
        _ => Err("it needs one '->'".into()),
    }
}
