//! MLIR's generic syntax as plain data: what `graph`, `tile` and `plan` print and read back, without LLVM.
//!
//! `parse(print(x)) == x`, and stock `mlir-opt` reads what is printed when it knows the dialects (`--irdl-file=`). Left out of the
//! syntax: successors, aliases (print with `--mlir-print-local-scope`), and locations other than `file:line:column`.

mod parse;

pub use parse::parse;
use std::fmt::{self, Write};

/// An operation.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct TextOp {
    /// The name with its dialect: `graph.contract`.
    pub name: String,
    /// What it takes.
    pub operands: Vec<TextValue>,
    /// What it gives. Several results of one name are called `7#0`, `7#1`, …
    pub results: Vec<TextValue>,
    /// Its attributes, in the order written.
    pub attrs: Vec<(String, Attr)>,
    /// Its regions.
    pub regions: Vec<Region>,
    /// The source text it stands for.
    pub loc: Option<Loc>,
    /// Where it was read.
    pub place: Place,
}

/// An SSA value: a name without `%`, and its type.
#[derive(Clone, Debug, PartialEq)]
pub struct TextValue {
    /// Digits, or a letter followed by letters, digits, `_`, `$`, `.` and `-`; `name#i` for result `i` of several.
    pub name: String,
    /// The type.
    pub ty: Type,
}

/// A list of blocks.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Region {
    /// The blocks; the first is entered.
    pub blocks: Vec<Block>,
}

/// Arguments and the operations that run in order.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Block {
    /// The arguments.
    pub args: Vec<TextValue>,
    /// The operations.
    pub ops: Vec<TextOp>,
}

/// A source position that is part of the program: `loc("file":line:column)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loc {
    /// The file.
    pub file: String,
    /// The line, from 1.
    pub line: u32,
    /// The column, from 1.
    pub column: u32,
}

/// Where in the text something was read. Any two are equal, so that equality of operations is equality of content.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place {
    /// The line, from 1; 0 for what was not read.
    pub line: u32,
    /// The column in characters, from 1.
    pub column: u32,
}

impl PartialEq for Place {
    fn eq(&self, _: &Place) -> bool {
        true
    }
}

/// An attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Attr {
    /// Present, without a value.
    Unit,
    /// `true`, `false`.
    Bool(bool),
    /// `3`, `3 : i32`; without a type MLIR takes i64.
    Int(i64, Option<Type>),
    /// `1.5`, `1.5 : f32`; without a type MLIR takes f64.
    Float(Real, Option<Type>),
    /// `"text"`.
    Str(String),
    /// `array<i64: 1, 2>`.
    Ints(Vec<i64>),
    /// `[a, b]`.
    Array(Vec<Attr>),
    /// `{key = a}`.
    Dict(Vec<(String, Attr)>),
    /// `@name`.
    Symbol(String),
    /// A type.
    Type(Type),
    /// Any other attribute, as written: `#dialect.name<…>`, `affine_map<…>`, `dense<…>`; and its type.
    Other(String, Option<Type>),
}

/// A number that compares by its bits, so that NaN equals itself and 0 differs from -0.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Real(u64);

impl Real {
    /// The number `x`.
    pub fn new(x: f64) -> Real {
        Real(x.to_bits())
    }
    /// Its value.
    pub fn get(self) -> f64 {
        f64::from_bits(self.0)
    }
}

impl fmt::Debug for Real {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.get())
    }
}

/// A type.
#[derive(Clone, Debug, PartialEq)]
pub enum Type {
    /// A builtin type, or one whose parameters are no attributes, as written: `f32`, `tensor<4x?xf32>`, `!llvm.array<4 x f32>`.
    Text(String),
    /// `!dialect.name<attr, attr>`.
    Dialect {
        /// The name with its dialect, without `!`.
        name: String,
        /// The parameters.
        params: Vec<Attr>,
    },
    /// `(operands) -> results`.
    Function(Vec<Type>, Vec<Type>),
}

/// Why a text cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{column}: {message}")]
pub struct TextError {
    /// The line, from 1.
    pub line: u32,
    /// The column in characters, from 1.
    pub column: u32,
    /// What was expected, and what was found.
    pub message: String,
}

impl Place {
    /// An error at this place.
    pub fn error(self, message: impl Into<String>) -> TextError {
        TextError { line: self.line, column: self.column, message: message.into() }
    }
}

impl Type {
    /// A builtin type: `f32`.
    pub fn text(name: &str) -> Type {
        Type::Text(name.into())
    }
}

impl Attr {
    /// A string.
    pub fn str(s: impl Into<String>) -> Attr {
        Attr::Str(s.into())
    }
    /// A 64-bit integer.
    pub fn i64(n: i64) -> Attr {
        Attr::Int(n, Some(Type::text("i64")))
    }
    /// A 64-bit float; its bits survive.
    pub fn f64(x: f64) -> Attr {
        Attr::Float(Real::new(x), Some(Type::text("f64")))
    }
}

impl TextOp {
    /// The operation `name` with nothing else.
    pub fn new(name: &str) -> TextOp {
        TextOp { name: name.into(), ..TextOp::default() }
    }
    /// The attribute `key`.
    pub fn attr(&self, key: &str) -> Option<&Attr> {
        self.attrs.iter().find(|(k, _)| k == key).map(|(_, a)| a)
    }
    /// An error at this operation.
    pub fn error(&self, message: impl fmt::Display) -> TextError {
        self.place.error(format!("{}: {message}", self.name))
    }
    fn wrong(&self, key: &str, kind: &str) -> TextError {
        match self.attr(key) {
            None => self.error(format_args!("no attribute '{key}', expected {kind}")),
            Some(a) => self.error(format_args!("'{key}' is {a}, expected {kind}")),
        }
    }
    /// The string attribute `key`.
    ///
    /// # Errors
    /// If it is absent or something else; so for the other `get_*`.
    pub fn get_str(&self, key: &str) -> Result<&str, TextError> {
        match self.attr(key) {
            Some(Attr::Str(s)) => Ok(s),
            _ => Err(self.wrong(key, "a string")),
        }
    }
    /// The integer attribute `key`, of any type.
    pub fn get_int(&self, key: &str) -> Result<i64, TextError> {
        match self.attr(key) {
            Some(Attr::Int(n, _)) => Ok(*n),
            _ => Err(self.wrong(key, "an integer")),
        }
    }
    /// The integer attribute `key`, not negative.
    pub fn get_index(&self, key: &str) -> Result<usize, TextError> {
        usize::try_from(self.get_int(key)?).map_err(|_| self.wrong(key, "an integer from 0"))
    }
    /// The float attribute `key`, of any type.
    pub fn get_float(&self, key: &str) -> Result<f64, TextError> {
        match self.attr(key) {
            Some(Attr::Float(x, _)) => Ok(x.get()),
            _ => Err(self.wrong(key, "a float")),
        }
    }
    /// The bool attribute `key`.
    pub fn get_bool(&self, key: &str) -> Result<bool, TextError> {
        match self.attr(key) {
            Some(Attr::Bool(b)) => Ok(*b),
            _ => Err(self.wrong(key, "true or false")),
        }
    }
    /// The `array<i64: …>` attribute `key`.
    pub fn get_ints(&self, key: &str) -> Result<&[i64], TextError> {
        match self.attr(key) {
            Some(Attr::Ints(a)) => Ok(a),
            _ => Err(self.wrong(key, "array<i64: …>")),
        }
    }
    /// The array of strings `key`.
    pub fn get_strs(&self, key: &str) -> Result<Vec<&str>, TextError> {
        let Some(Attr::Array(items)) = self.attr(key) else { return Err(self.wrong(key, "an array of strings")) };
        let strs = items.iter().map(|a| if let Attr::Str(s) = a { Some(s.as_str()) } else { None });
        strs.collect::<Option<_>>().ok_or_else(|| self.wrong(key, "an array of strings"))
    }
}

/// The text of operations, one after the other.
pub fn print(ops: &[TextOp]) -> String {
    let mut out = String::new();
    for op in ops {
        print_op(&mut out, op, 0);
    }
    out
}

impl fmt::Display for TextOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(print(std::slice::from_ref(self)).trim_end())
    }
}

/// Appends to a string, which cannot fail.
macro_rules! put {
    ($out:expr, $($arg:tt)*) => { write!($out, $($arg)*).expect("a string takes all text") };
}

fn print_op(out: &mut String, op: &TextOp, indent: usize) {
    put!(out, "{:indent$}", "");
    if let Some(first) = op.results.first() {
        // Results called `7#0`, `7#1` are declared as `%7:2`.
        match first.name.split_once('#') {
            Some((name, _)) => put!(out, "%{name}:{} = ", op.results.len()),
            None => {
                for (i, r) in op.results.iter().enumerate() {
                    put!(out, "{}%{}", comma(i), r.name);
                }
                out.push_str(" = ");
            }
        }
    }
    put!(out, "{}(", Quoted(&op.name));
    for (i, v) in op.operands.iter().enumerate() {
        put!(out, "{}%{}", comma(i), v.name);
    }
    out.push(')');
    for (i, region) in op.regions.iter().enumerate() {
        out.push_str(if i == 0 { " ({\n" } else { ", {\n" });
        for (k, block) in region.blocks.iter().enumerate() {
            if k > 0 || !block.args.is_empty() || block.ops.is_empty() {
                put!(out, "{:indent$}^bb{k}", "");
                for (j, a) in block.args.iter().enumerate() {
                    put!(out, "{}%{}: {}", if j == 0 { "(" } else { ", " }, a.name, a.ty);
                }
                out.push_str(if block.args.is_empty() { ":\n" } else { "):\n" });
            }
            for op in &block.ops {
                print_op(out, op, indent + 2);
            }
        }
        put!(out, "{:indent$}}}", "");
    }
    if !op.regions.is_empty() {
        out.push(')');
    }
    if !op.attrs.is_empty() {
        put!(out, " {}", DictOf(&op.attrs));
    }
    let types = |values: &[TextValue]| values.iter().map(|v| v.ty.clone()).collect();
    put!(out, " : {}", Type::Function(types(&op.operands), types(&op.results)));
    if let Some(l) = &op.loc {
        put!(out, " loc({}:{}:{})", Quoted(&l.file), l.line, l.column);
    }
    out.push('\n');
}

fn comma(i: usize) -> &'static str {
    if i == 0 { "" } else { ", " }
}

/// A string in quotes, with MLIR's escapes.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for c in self.0.chars() {
            match c {
                '"' => f.write_str("\\\"")?,
                '\\' => f.write_str("\\\\")?,
                c if c.is_ascii_control() => write!(f, "\\{:02X}", u32::from(c))?,
                c => f.write_char(c)?,
            }
        }
        f.write_char('"')
    }
}

fn is_bare(s: &str) -> bool {
    s.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && s.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '.'))
}

struct DictOf<'a>(&'a [(String, Attr)]);

impl fmt::Display for DictOf<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('{')?;
        for (i, (key, attr)) in self.0.iter().enumerate() {
            f.write_str(comma(i))?;
            if is_bare(key) {
                f.write_str(key)?
            } else {
                Quoted(key).fmt(f)?
            }
            if *attr != Attr::Unit {
                write!(f, " = {attr}")?;
            }
        }
        f.write_char('}')
    }
}

fn list<T: fmt::Display>(f: &mut fmt::Formatter<'_>, items: &[T]) -> fmt::Result {
    items.iter().enumerate().try_for_each(|(i, x)| write!(f, "{}{x}", comma(i)))
}

impl fmt::Display for Attr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let typed = |f: &mut fmt::Formatter<'_>, ty: &Option<Type>| ty.as_ref().map_or(Ok(()), |t| write!(f, " : {t}"));
        match self {
            Attr::Unit => f.write_str("unit"),
            Attr::Bool(b) => write!(f, "{b}"),
            Attr::Int(n, ty) => {
                write!(f, "{n}")?;
                typed(f, ty)
            }
            Attr::Float(x, ty) => {
                print_float(f, x.get(), ty.as_ref())?;
                typed(f, ty)
            }
            Attr::Str(s) => Quoted(s).fmt(f),
            Attr::Ints(items) => {
                f.write_str(if items.is_empty() { "array<i64" } else { "array<i64: " })?;
                list(f, items)?;
                f.write_char('>')
            }
            Attr::Array(items) => {
                f.write_char('[')?;
                list(f, items)?;
                f.write_char(']')
            }
            Attr::Dict(items) => DictOf(items).fmt(f),
            Attr::Symbol(s) if is_bare(s) => write!(f, "@{s}"),
            Attr::Symbol(s) => write!(f, "@{}", Quoted(s)),
            Attr::Type(t) => t.fmt(f),
            Attr::Other(s, ty) => {
                f.write_str(s)?;
                typed(f, ty)
            }
        }
    }
}

/// The width in bits of a float type; f64 where none is written.
fn float_bits(ty: Option<&Type>) -> Option<u32> {
    match ty {
        None => Some(64),
        Some(Type::Text(t)) => match t.as_str() {
            "f64" => Some(64),
            "f32" => Some(32),
            "f16" | "bf16" => Some(16),
            _ => None,
        },
        Some(_) => None,
    }
}

/// Decimal with a point, as MLIR asks; infinities and NaNs by their bits, which needs a type (MLIR and we then know the width).
fn print_float(f: &mut fmt::Formatter<'_>, x: f64, ty: Option<&Type>) -> fmt::Result {
    if x.is_finite() {
        let text = format!("{x:?}");
        return match text.split_once('e') {
            Some((digits, exponent)) if !digits.contains('.') => write!(f, "{digits}.0e{exponent}"),
            _ => f.write_str(&text),
        };
    }
    match (float_bits(ty), ty) {
        (Some(32), _) => write!(f, "0x{:08X}", (x as f32).to_bits()),
        (Some(16), Some(Type::Text(t))) if t == "f16" => write!(f, "0x{:04X}", half::f16::from_f64(x).to_bits()),
        (Some(16), _) => write!(f, "0x{:04X}", half::bf16::from_f64(x).to_bits()),
        // Without a type hex digits would read as an integer.
        _ => write!(f, "0x{:016X}{}", x.to_bits(), if ty.is_none() { " : f64" } else { "" }),
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Text(s) => f.write_str(s),
            Type::Dialect { name, params } => {
                write!(f, "!{name}")?;
                if params.is_empty() {
                    return Ok(());
                }
                f.write_char('<')?;
                list(f, params)?;
                f.write_char('>')
            }
            Type::Function(operands, results) => {
                f.write_char('(')?;
                list(f, operands)?;
                f.write_str(") -> ")?;
                match &results[..] {
                    [one @ (Type::Text(_) | Type::Dialect { .. })] => one.fmt(f),
                    _ => {
                        f.write_char('(')?;
                        list(f, results)?;
                        f.write_char(')')
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads, prints, reads: both readings are equal and the second print changes nothing.
    #[track_caller]
    fn check(text: &str, printed: &str) {
        let ops = parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        assert_eq!(print(&ops), printed);
        assert_eq!(parse(printed).as_ref(), Ok(&ops));
    }

    #[test]
    fn regions_results_and_locations() {
        check(
            r#"
// a comment
%0, %a = "x.two"() : () -> (i32, tensor<4x?xf32, #map<(d0) -> (d0)>>)
%1:2 = "x.loop"(%0, %a) ({
^entry(%b: i32, %c: !x.t<f32, ["B", "T + 1"]> loc("f":1:2)):
  "x.end"(%b) : (i32) -> () loc("a b.lode":3:14)
^next:
  "x.end"() : () -> ()
}, {}, {
  "x.end"() : () -> ()
}) {n = 3 : i32, u} : (i32, tensor<4x?xf32, #map<(d0) -> (d0)>>) -> (i32, f32) loc(unknown)
"x.use"(%1#1) <{p = 1}> {q} : (f32) -> ()
"#,
            r#"%0, %a = "x.two"() : () -> (i32, tensor<4x?xf32, #map<(d0) -> (d0)>>)
%1:2 = "x.loop"(%0, %a) ({
^bb0(%b: i32, %c: !x.t<f32, ["B", "T + 1"]>):
  "x.end"(%b) : (i32) -> () loc("a b.lode":3:14)
^bb1:
  "x.end"() : () -> ()
}, {
}, {
  "x.end"() : () -> ()
}) {n = 3 : i32, u} : (i32, tensor<4x?xf32, #map<(d0) -> (d0)>>) -> (i32, f32)
"x.use"(%1#1) {p = 1, q} : (f32) -> ()
"#,
        );
    }

    #[test]
    fn attributes() {
        check(
            r#""x"() {a = [1, -2 : i32, true, unit], "b c" = {d, e = 1.0}, f = @g, h = @"i j", k = array<i64: 1, -2>, l = array<i64>,
                m = "\"\\\n\t\C3\A9é", n = (i32) -> (), o = !llvm.array<4 x f32>, p = #x.y<{a -> b}>, q = dense<[1, 2]> : tensor<2xi32>,
                r = 0xFF, s = !x.y<1, "a", f32, [!z.w]>, t = affine_map<(d0) -> (d0)>} : () -> ()"#,
            concat!(
                r#""x"() {a = [1, -2 : i32, true, unit], "b c" = {d, e = 1.0}, f = @g, h = @"i j", k = array<i64: 1, -2>, "#,
                r#"l = array<i64>, m = "\"\\\0A\09éé", n = (i32) -> (), o = !llvm.array<4 x f32>, p = #x.y<{a -> b}>, "#,
                r#"q = dense<[1, 2]> : tensor<2xi32>, r = 255, s = !x.y<1, "a", f32, [!z.w]>, t = affine_map<(d0) -> (d0)>} "#,
                ": () -> ()\n"
            ),
        );
    }

    #[test]
    fn floats_keep_their_bits() {
        let numbers =
            [0.0, -0.0, 1.0, 0.1, -1.5e-300, 1e22, 5e-324, f64::MAX, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, -f64::NAN];
        for x in numbers {
            for ty in [Some("f64"), None] {
                let attr = Attr::Float(Real::new(x), ty.map(Type::text));
                let op = TextOp { attrs: vec![("v".into(), attr)], ..TextOp::new("x") };
                let back = parse(&op.to_string()).expect("it was printed");
                assert_eq!(back[0].get_float("v").expect("a float").to_bits(), x.to_bits(), "{op}");
            }
        }
        check(
            "\"x\"() {a = 0x7F800000 : f32, b = 0xFF80 : bf16} : () -> ()",
            "\"x\"() {a = 0x7F800000 : f32, b = 0xFF80 : bf16} : () -> ()\n",
        );
    }

    #[test]
    fn errors_say_where_and_what() {
        for (text, want) in [
            ("\"x\"( : () -> ()", "1:6: expected '%' before ': () -> ()'"),
            ("\n  \"x\"(%0) : () -> ()", "2:3: x: 1 operands and 0 operand types"),
            ("%0 = \"x\"() : () -> ()", "1:1: x: 1 result names and 0 result types"),
            ("\"x\"() {a = } : () -> ()", "1:12: expected an attribute before '} : () -> ()'"),
            ("\"x\"() {a, a} : () -> ()", "1:11: expected another key than 'a'"),
            ("\"x", "1:1: expected '\"' at the end of the string"),
            ("\"x\"() {a = \"\\FF\"} : () -> ()", "1:12: expected UTF-8 in the string"),
            ("\"x\"() ({", "1:9: expected '}' before the end"),
            ("\"x\"()[^bb1] : () -> ()", "1:6: expected ':' before '[^bb1] : () -> ()'"),
            ("#a = loc(\"f\":1:1)", "1:1: expected an operation; aliases are not read, print with --mlir-print-local-scope"),
            ("\"x\"() {a = 99999999999999999999} : () -> ()", "1:12: expected an integer of 64 bits"),
        ] {
            assert_eq!(parse(text).expect_err(text).to_string(), want);
        }
    }

    #[test]
    fn deep_and_cut_texts_do_not_crash() {
        for piece in ["[", "{a = ", "\"x\"() ({\n", "!x.y<", "(", "tensor<", "[!x.y<\""] {
            for prefix in ["", "\"x\"() {a = ", "\"x\"() : "] {
                assert!(parse(&format!("{prefix}{}", piece.repeat(50_000))).is_err());
            }
        }
        let text = "%1:2 = \"x\"(%0#1) ({\n^b(%2: !a.b<1.5 : f32>):\n}) {é = 1, s = \"\\0A\"} : (i1) -> (i1, tensor<1xi1>) loc(\"f\":1:2)";
        for end in (0..text.len()).filter(|i| text.is_char_boundary(*i)) {
            let _ = parse(&text[..end]);
        }
    }
}
