//! Text to operations. Never panics: nesting is limited, and every failure is an error with its place.

use super::{Attr, Block, Loc, Place, Real, Region, TextError, TextOp, TextValue, Type, float_bits};

/// How deep regions, attributes and types may nest; far above what we print, far below what the stack holds.
const MAX_DEPTH: u32 = 100;

/// The operations of a text.
///
/// # Errors
/// With line, column and what was expected.
pub fn parse(text: &str) -> Result<Vec<TextOp>, TextError> {
    let line_starts = std::iter::once(0).chain(text.match_indices('\n').map(|(i, _)| i + 1)).collect();
    let mut p = Parser { text, at: 0, depth: 0, line_starts };
    let mut ops = Vec::new();
    while !p.rest().is_empty() {
        if p.rest().starts_with(['#', '!']) {
            return Err(p.error("expected an operation; aliases are not read, print with --mlir-print-local-scope"));
        }
        ops.push(p.op()?);
    }
    Ok(ops)
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: u32,
    line_starts: Vec<usize>,
}

type Parsed<T> = Result<T, TextError>;

impl<'a> Parser<'a> {
    /// What is left, after white space and comments.
    fn rest(&mut self) -> &'a str {
        loop {
            let rest = self.text[self.at..].trim_start();
            self.at = self.text.len() - rest.len();
            match rest.strip_prefix("//") {
                Some(comment) => self.at += 2 + comment.find('\n').unwrap_or(comment.len()),
                None => return rest,
            }
        }
    }
    fn place_of(&self, at: usize) -> Place {
        let line = self.line_starts.partition_point(|s| *s <= at);
        let column = self.text[self.line_starts[line - 1]..at].chars().count() + 1;
        let small = |n| u32::try_from(n).unwrap_or(u32::MAX);
        Place { line: small(line), column: small(column) }
    }
    fn error_at(&self, at: usize, message: impl Into<String>) -> TextError {
        self.place_of(at).error(message)
    }
    fn error(&mut self, message: impl Into<String>) -> TextError {
        self.rest();
        self.error_at(self.at, message)
    }
    fn expected(&mut self, what: &str) -> TextError {
        let found: String = self.rest().chars().take_while(|c| *c != '\n').take(20).collect();
        let found = if found.is_empty() { "the end".into() } else { format!("'{found}'") };
        self.error(format!("expected {what} before {found}"))
    }
    fn eat(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }
    fn expect(&mut self, token: &str) -> Parsed<()> {
        if self.eat(token) { Ok(()) } else { Err(self.expected(&format!("'{token}'"))) }
    }
    /// Runs `f` one level deeper.
    fn nested<T>(&mut self, f: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.depth == MAX_DEPTH {
            return Err(self.error(format!("expected at most {MAX_DEPTH} levels of nesting")));
        }
        self.depth += 1;
        let result = f(self);
        self.depth -= 1;
        result
    }
    /// Items separated by commas, up to `close`, which is consumed.
    fn list<T>(&mut self, close: &str, mut item: impl FnMut(&mut Self) -> Parsed<T>) -> Parsed<Vec<T>> {
        let mut items = Vec::new();
        if self.eat(close) {
            return Ok(items);
        }
        loop {
            items.push(item(self)?);
            if !self.eat(",") {
                self.expect(close)?;
                return Ok(items);
            }
        }
    }
    fn take_while(&mut self, ok: impl Fn(char) -> bool) -> &'a str {
        let rest = &self.text[self.at..];
        let len = rest.find(|c| !ok(c)).unwrap_or(rest.len());
        self.at += len;
        &rest[..len]
    }
    fn word(&mut self) -> &'a str {
        if self.rest().starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
            self.take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '.'))
        } else {
            ""
        }
    }
    fn string(&mut self) -> Parsed<String> {
        if !self.rest().starts_with('"') {
            return Err(self.expected("a string"));
        }
        let (start, bytes) = (self.at, self.text.as_bytes());
        let mut out = Vec::new();
        let mut i = start + 1;
        loop {
            match bytes.get(i) {
                None | Some(b'\n') => return Err(self.error_at(start, "expected '\"' at the end of the string")),
                Some(b'"') => break,
                Some(b'\\') => {
                    let hex = |k: usize| bytes.get(k).and_then(|b| (*b as char).to_digit(16));
                    let (byte, len) = match (bytes.get(i + 1), hex(i + 1), hex(i + 2)) {
                        (Some(b @ (b'"' | b'\\')), ..) => (*b, 2),
                        (Some(b'n'), ..) => (b'\n', 2),
                        (Some(b't'), ..) => (b'\t', 2),
                        (_, Some(h), Some(l)) => ((h * 16 + l) as u8, 3),
                        _ => return Err(self.error_at(i, "expected '\"', '\\', 'n', 't' or two hex digits after '\\'")),
                    };
                    out.push(byte);
                    i += len;
                }
                Some(b) => {
                    out.push(*b);
                    i += 1;
                }
            }
        }
        self.at = i + 1;
        String::from_utf8(out).map_err(|_| self.error_at(start, "expected UTF-8 in the string"))
    }
    /// A value's name, after `%`; with `#i` where that is written.
    fn value_name(&mut self) -> Parsed<String> {
        self.expect("%")?;
        let start = self.at;
        if self.take_while(|c| c.is_ascii_digit()).is_empty() {
            self.take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '.' | '-'));
        }
        let name = &self.text[start..self.at];
        if name.is_empty() {
            return Err(self.expected("a value's name"));
        }
        if !self.text[self.at..].starts_with('#') {
            return Ok(name.into());
        }
        self.at += 1;
        let index = self.digits()?;
        Ok(format!("{name}#{index}"))
    }
    fn digits(&mut self) -> Parsed<u32> {
        self.rest();
        let start = self.at;
        let digits = self.take_while(|c| c.is_ascii_digit());
        digits.parse().map_err(|_| self.error_at(start, "expected a number of 32 bits"))
    }

    fn op(&mut self) -> Parsed<TextOp> {
        self.rest();
        let place = self.place_of(self.at);
        let mut names = Vec::new();
        if self.rest().starts_with('%') {
            loop {
                let name = self.value_name()?;
                if self.eat(":") {
                    let (at, count) = (self.at, self.digits()?);
                    if !(1..=65_536).contains(&count) {
                        return Err(self.error_at(at, "expected 1 to 65536 results"));
                    }
                    // `%a:1` is `%a`.
                    if count == 1 { names.push(name) } else { names.extend((0..count).map(|i| format!("{name}#{i}"))) }
                } else {
                    names.push(name);
                }
                if !self.eat(",") {
                    break;
                }
            }
            self.expect("=")?;
        }
        let name = self.string()?;
        self.expect("(")?;
        let operands = self.list(")", Self::value_name)?;
        let mut attrs = Vec::new();
        if self.eat("<{") {
            self.dict(&mut attrs)?;
            self.expect(">")?;
        }
        let mut regions = Vec::new();
        if self.eat("(") {
            regions = self.list(")", |p| p.nested(Self::region))?;
        }
        if self.eat("{") {
            self.dict(&mut attrs)?;
        }
        self.expect(":")?;
        let (operand_types, result_types) = self.nested(Self::function_type)?;
        let loc = self.loc()?;
        let mut op = TextOp { name, attrs, regions, loc, place, ..TextOp::default() };
        op.operands = pair(&op, "operand", operands, operand_types)?;
        op.results = pair(&op, "result", names, result_types)?;
        Ok(op)
    }
    fn region(&mut self) -> Parsed<Region> {
        self.expect("{")?;
        let mut blocks = Vec::new();
        if !self.rest().starts_with(['^', '}']) {
            blocks.push(Block { args: Vec::new(), ops: self.block_ops()? });
        }
        while self.eat("^") {
            if self.take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '.' | '-')).is_empty() {
                return Err(self.expected("a block's name"));
            }
            let mut args = Vec::new();
            if self.eat("(") {
                args = self.list(")", |p| {
                    let name = p.value_name()?;
                    p.expect(":")?;
                    let ty = p.ty()?;
                    p.loc()?;
                    Ok(TextValue { name, ty })
                })?;
            }
            self.expect(":")?;
            blocks.push(Block { args, ops: self.block_ops()? });
        }
        self.expect("}")?;
        Ok(Region { blocks })
    }
    fn block_ops(&mut self) -> Parsed<Vec<TextOp>> {
        let mut ops = Vec::new();
        while self.rest().starts_with(['%', '"']) {
            ops.push(self.op()?);
        }
        Ok(ops)
    }
    /// An optional location; of those without file, line and column nothing is kept.
    fn loc(&mut self) -> Parsed<Option<Loc>> {
        if !self.eat("loc(") {
            return Ok(None);
        }
        if self.rest().starts_with('"') {
            let file = self.string()?;
            if self.eat(":") {
                let line = self.digits()?;
                self.expect(":")?;
                let column = self.digits()?;
                self.expect(")")?;
                return Ok(Some(Loc { file, line, column }));
            }
        }
        self.balanced(')')?;
        Ok(None)
    }
    /// Skips to the bracket `close` that closes one already open, and past it; brackets nest, strings are skipped, `->` is no bracket.
    fn balanced(&mut self, close: char) -> Parsed<()> {
        let start = self.at;
        let mut open = vec![close];
        while let Some(c) = self.text[self.at..].chars().next() {
            match c {
                '"' => {
                    self.string()?;
                    continue;
                }
                '-' if self.text[self.at..].starts_with("->") => self.at += 1,
                '<' => open.push('>'),
                '(' => open.push(')'),
                '[' => open.push(']'),
                '{' => open.push('}'),
                '>' | ')' | ']' | '}' if open.pop() != Some(c) => break,
                _ => {}
            }
            self.at += c.len_utf8();
            if open.is_empty() {
                return Ok(());
            }
        }
        Err(self.error_at(start, format!("expected a matching '{close}'")))
    }

    /// The entries of a dictionary, after `{` and past `}`.
    fn dict(&mut self, attrs: &mut Vec<(String, Attr)>) -> Parsed<()> {
        self.nested(|p| {
            p.list("}", |p| {
                p.rest();
                let start = p.at;
                let key = if p.rest().starts_with('"') { p.string()? } else { p.word().to_string() };
                if key.is_empty() {
                    return Err(p.expected("a key"));
                }
                if attrs.iter().any(|(k, _)| *k == key) {
                    return Err(p.error_at(start, format!("expected another key than '{key}'")));
                }
                let value = if p.eat("=") { p.attr()? } else { Attr::Unit };
                attrs.push((key, value));
                Ok(())
            })?;
            Ok(())
        })
    }
    fn attr(&mut self) -> Parsed<Attr> {
        self.nested(|p| match p.rest().chars().next() {
            Some('"') => Ok(Attr::Str(p.string()?)),
            Some('[') => {
                p.expect("[")?;
                Ok(Attr::Array(p.list("]", Self::attr)?))
            }
            Some('{') => {
                p.expect("{")?;
                let mut entries = Vec::new();
                p.dict(&mut entries)?;
                Ok(Attr::Dict(entries))
            }
            Some('@') => {
                p.expect("@")?;
                let name = if p.rest().starts_with('"') { p.string()? } else { p.word().to_string() };
                if name.is_empty() { Err(p.expected("a symbol's name")) } else { Ok(Attr::Symbol(name)) }
            }
            Some('-' | '0'..='9') => p.number(),
            Some('#') => {
                let start = p.at;
                p.at += 1;
                p.word();
                p.other(start)
            }
            Some('!' | '(') => Ok(Attr::Type(p.ty()?)),
            Some(_) => p.word_attr(),
            None => Err(p.expected("an attribute")),
        })
    }
    /// An attribute that begins with a word.
    fn word_attr(&mut self) -> Parsed<Attr> {
        self.rest();
        let start = self.at;
        match self.word() {
            "" => Err(self.expected("an attribute")),
            "true" => Ok(Attr::Bool(true)),
            "false" => Ok(Attr::Bool(false)),
            "unit" => Ok(Attr::Unit),
            "array" if self.eat("<i64") => {
                if self.eat(">") {
                    return Ok(Attr::Ints(Vec::new()));
                }
                self.expect(":")?;
                Ok(Attr::Ints(self.list(">", |p| {
                    p.rest();
                    let start = p.at;
                    match p.number_token()? {
                        (false, text) => p.integer(start, text),
                        (true, _) => Err(p.error_at(start, "expected an integer")),
                    }
                })?))
            }
            "array" | "dense" | "dense_resource" | "sparse" | "affine_map" | "affine_set" | "strided" | "opaque" | "distinct" => {
                self.other(start)
            }
            _ => {
                self.at = start;
                Ok(Attr::Type(self.ty()?))
            }
        }
    }
    /// An attribute kept as written, from `start`; its name is read.
    fn other(&mut self, start: usize) -> Parsed<Attr> {
        if self.text[self.at..].starts_with('<') {
            self.at += 1;
            self.balanced('>')?;
        }
        let text = self.text[start..self.at].to_string();
        Ok(Attr::Other(text, if self.eat(":") { Some(self.ty()?) } else { None }))
    }
    /// A number as written, and whether it is a float.
    fn number_token(&mut self) -> Parsed<(bool, &'a str)> {
        self.rest();
        let start = self.at;
        self.eat("-");
        if self.text[self.at..].starts_with("0x") {
            self.at += 2;
            self.take_while(|c| c.is_ascii_hexdigit());
            return Ok((false, &self.text[start..self.at]));
        }
        if self.take_while(|c| c.is_ascii_digit()).is_empty() {
            return Err(self.expected("a number"));
        }
        let float = self.text[self.at..].starts_with('.');
        if float {
            self.at += 1;
            self.take_while(|c| c.is_ascii_digit());
            let before = self.at;
            if self.text[self.at..].starts_with(['e', 'E']) {
                self.at += 1;
                if self.text[self.at..].starts_with(['+', '-']) {
                    self.at += 1;
                }
                if self.take_while(|c| c.is_ascii_digit()).is_empty() {
                    self.at = before;
                }
            }
        }
        Ok((float, &self.text[start..self.at]))
    }
    fn integer(&self, start: usize, text: &str) -> Parsed<i64> {
        let value = match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).map(u64::cast_signed),
            None => text.parse(),
        };
        value.map_err(|_| self.error_at(start, "expected an integer of 64 bits"))
    }
    fn number(&mut self) -> Parsed<Attr> {
        let start = self.at;
        let (float, text) = self.number_token()?;
        let ty = if self.eat(":") { Some(self.ty()?) } else { None };
        if float {
            let value = text.parse().map_err(|_| self.error_at(start, "expected a float"))?;
            return Ok(Attr::Float(Real::new(value), ty));
        }
        let bits = self.integer(start, text)?;
        // The digits of a float type are its bits; only hex is taken.
        match (&ty, float_bits(ty.as_ref())) {
            (Some(Type::Text(name)), Some(width)) => {
                if !text.starts_with("0x") || (width < 64 && bits >> width != 0) {
                    return Err(self.error_at(start, format!("expected a float of type {name}")));
                }
                let bits = bits.cast_unsigned();
                let value = match name.as_str() {
                    "f64" => f64::from_bits(bits),
                    "f32" => f64::from(f32::from_bits(bits as u32)),
                    "f16" => half::f16::from_bits(bits as u16).to_f64(),
                    _ => half::bf16::from_bits(bits as u16).to_f64(),
                };
                Ok(Attr::Float(Real::new(value), ty))
            }
            _ => Ok(Attr::Int(bits, ty)),
        }
    }

    fn ty(&mut self) -> Parsed<Type> {
        self.nested(|p| {
            p.rest();
            let start = p.at;
            if p.rest().starts_with('(') {
                let (operands, results) = p.function_type()?;
                return Ok(Type::Function(operands, results));
            }
            let dialect = p.eat("!");
            let name = p.word();
            if name.is_empty() {
                return Err(p.expected("a type"));
            }
            let params = p.at;
            if dialect {
                if !p.eat("<") {
                    return Ok(Type::Dialect { name: name.into(), params: Vec::new() });
                }
                if let Ok(attrs) = p.list(">", Self::attr)
                    && !attrs.is_empty()
                {
                    return Ok(Type::Dialect { name: name.into(), params: attrs });
                }
            }
            // Parameters in a syntax of their own.
            p.at = params;
            if p.text[params..].starts_with('<') {
                p.at += 1;
                p.balanced('>')?;
            }
            Ok(Type::Text(p.text[start..p.at].into()))
        })
    }
    fn function_type(&mut self) -> Parsed<(Vec<Type>, Vec<Type>)> {
        self.expect("(")?;
        let operands = self.list(")", Self::ty)?;
        self.expect("->")?;
        let results = if self.eat("(") { self.list(")", Self::ty)? } else { vec![self.ty()?] };
        Ok((operands, results))
    }
}

fn pair(op: &TextOp, what: &str, names: Vec<String>, types: Vec<Type>) -> Parsed<Vec<TextValue>> {
    if names.len() == types.len() {
        return Ok(names.into_iter().zip(types).map(|(name, ty)| TextValue { name, ty }).collect());
    }
    let names_are = if what == "result" { "result names" } else { "operands" };
    Err(op.error(format_args!("{} {names_are} and {} {what} types", names.len(), types.len())))
}
