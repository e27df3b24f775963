//! Files, what they define, and the config. In: the root file. Out: every used file parsed, each file's names resolved to items, and
//! config values with overrides applied.

use crate::{error::HirError, std_lib};
use base::{DType, Diags, FileId, Sources, Span};
use std::{collections::BTreeMap, fmt, rc::Rc};
use syntax::ast;

/// Supplies the text of a used file: from `lib/layers.lode` to its text, beside the root file.
pub type Loader<'a> = dyn FnMut(&str) -> Option<String> + 'a;

/// A config value.
#[derive(Clone, Debug, PartialEq)]
pub enum Constant {
    /// An integer.
    Int(i64),
    /// A float.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A string.
    Str(String),
}

impl fmt::Display for Constant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Constant::Int(n) => write!(f, "{n}"),
            Constant::Float(x) => write!(f, "{x:?}"),
            Constant::Bool(b) => write!(f, "{b}"),
            Constant::Str(s) => write!(f, "{s:?}"),
        }
    }
}

/// What replaces config values.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// From `--set`: unknown names are mistakes. Values as written.
    pub set: Vec<(String, String)>,
    /// From a JSON file: unknown names are ignored.
    pub config: BTreeMap<String, Constant>,
}

/// What a name of a file means.
#[derive(Clone, Debug)]
pub struct Definition {
    /// The function.
    pub func: Rc<ast::Func>,
    /// The file it stands in, whose names it sees.
    pub file: FileId,
}

/// A file's own and used names.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// Functions, blocks and models.
    pub funcs: BTreeMap<String, Definition>,
    /// Run-time dims.
    pub dims: Vec<String>,
    /// Config values.
    pub config: Vec<(String, Constant)>,
}

/// All that the program is made of.
pub struct Modules {
    /// The model's file.
    pub root: FileId,
    /// By file.
    pub scopes: BTreeMap<FileId, Scope>,
    /// The text of each file.
    pub texts: BTreeMap<FileId, std::sync::Arc<str>>,
    /// The model.
    pub model: Definition,
    /// The `train` item of the root file.
    pub train: Option<Rc<ast::Train>>,
    /// Dtypes: storage, compute.
    pub storage: DType,
    /// What untyped tensors are.
    pub compute: DType,
}

struct Resolver<'a, 'l> {
    sources: &'a mut Sources,
    load: &'a mut Loader<'l>,
    diags: &'a mut Diags,
    overrides: &'a Overrides,
    root: FileId,
    scopes: BTreeMap<FileId, Scope>,
    /// Files being resolved, to find circles.
    pending: Vec<FileId>,
    used_set: Vec<bool>,
    model: Option<Definition>,
    train: Option<Rc<ast::Train>>,
    precision: (DType, DType),
}

/// Parses and resolves everything the root file uses.
pub fn resolve(
    root: FileId,
    sources: &mut Sources,
    load: &mut Loader,
    overrides: &Overrides,
    diags: &mut Diags,
) -> Option<Modules> {
    let mut r = Resolver {
        sources,
        load,
        diags,
        overrides,
        root,
        scopes: BTreeMap::new(),
        pending: Vec::new(),
        used_set: vec![false; overrides.set.len()],
        model: None,
        train: None,
        precision: (DType::F32, DType::F32),
    };
    r.file(root);
    let start = Span::new(root, 0, 0);
    for ((name, _), used) in overrides.set.iter().zip(&r.used_set) {
        if !used {
            let known: Vec<String> = r.scopes[&root].config.iter().map(|(n, _)| n.clone()).collect();
            let help =
                suggest(name, known.iter().map(String::as_str)).or_else(|| Some(format!("the config has {}", known.join(", "))));
            r.diags.push(
                start,
                HirError::Config { name: name.clone(), why: "there is no such value to set".into(), help, at: start.into() },
            );
        }
    }
    let Some(model) = r.model else {
        let help = "write `model name(tokens: i32[B, T]) -> […] { … }`";
        r.diags.push(start, HirError::Program { what: "the file has no model".into(), help, at: start.into() });
        return None;
    };
    let texts = r.scopes.keys().map(|f| (*f, r.sources.get(*f).text.clone())).collect();
    Some(Modules { root, texts, scopes: r.scopes, model, train: r.train, storage: r.precision.0, compute: r.precision.1 })
}

impl Resolver<'_, '_> {
    fn file(&mut self, file: FileId) {
        let text = self.sources.get(file).text.clone();
        let tree = syntax::parse(file, &text, self.diags);
        self.pending.push(file);
        let mut scope = Scope::default();
        for item in tree.items {
            self.item(file, item, &mut scope);
        }
        self.pending.pop();
        self.scopes.insert(file, scope);
    }

    fn item(&mut self, file: FileId, item: ast::Item, scope: &mut Scope) {
        match item.kind {
            ast::ItemKind::Use { path, names } => self.import(&path, &names, scope),
            ast::ItemKind::Dims(names) => {
                for n in names {
                    if scope.dims.contains(&n.node) {
                        self.duplicate(&n);
                    } else {
                        scope.dims.push(n.node);
                    }
                }
            }
            ast::ItemKind::Config(entries) => {
                entries.into_iter().for_each(|(name, value)| self.config(file, &name, &value, scope))
            }
            ast::ItemKind::Precision(entries) => {
                for (name, dtype) in entries {
                    match name.node.as_str() {
                        "storage" => self.precision.0 = dtype.node,
                        "compute" => self.precision.1 = dtype.node,
                        "accumulate" if dtype.node == self.precision.1.accumulator() => {}
                        "accumulate" => {
                            let what = format!("sums of {} are kept in {}", self.precision.1, self.precision.1.accumulator());
                            let help = "write accumulate after compute, as f32 (or f64 for f64)";
                            self.diags.push(dtype.span, HirError::Program { what, help, at: dtype.span.into() });
                        }
                        _ => self.unknown("precision", &name, &["storage", "compute", "accumulate"]),
                    }
                }
            }
            ast::ItemKind::Func(func) => {
                let name = func.name.clone();
                let def = Definition { func: Rc::new(func), file };
                if def.func.kind == ast::FuncKind::Model && file == self.root && self.model.replace(def.clone()).is_some() {
                    let help = "a file has one model; make the others blocks";
                    self.diags.push(name.span, HirError::Program { what: "a second model".into(), help, at: name.span.into() });
                }
                if scope.funcs.insert(name.node.clone(), def).is_some() {
                    self.duplicate(&name);
                }
            }
            ast::ItemKind::Train(train) if file == self.root => {
                if self.train.replace(Rc::new(train)).is_some() {
                    let help = "a file has one train item";
                    self.diags
                        .push(item.span, HirError::Program { what: "a second train item".into(), help, at: item.span.into() });
                }
            }
            ast::ItemKind::Train(_) => {}
        }
    }

    fn import(&mut self, path: &ast::Path, names: &[ast::Ident], scope: &mut Scope) {
        let parts: Vec<&str> = path.parts.iter().map(|p| p.node.as_str()).collect();
        for name in names {
            // `use std.{moe}` and `use std.moe`: the module of that name; `use std.moe.{gate}`: a name of it.
            let (key, text) = if parts[0] == "std" {
                let module = parts.get(1).copied().unwrap_or(&name.node);
                let text = std_lib::MODULES.iter().find(|(n, _)| *n == module).map(|(_, t)| (*t).to_string());
                (format!("std/{module}.lode"), text)
            } else {
                let key = format!("{}.lode", parts.join("/"));
                let text = if self.sources.find(&key).is_some() { None } else { (self.load)(&key) };
                (key, text)
            };
            let file = match (self.sources.find(&key).filter(|f| self.scopes.contains_key(f) || self.pending.contains(f)), text) {
                (Some(file), _) => file,
                (None, Some(text)) => {
                    let file = self.sources.add(&key, &text);
                    self.file(file);
                    file
                }
                (None, None) => {
                    let modules: Vec<&str> = std_lib::MODULES.iter().map(|(n, _)| *n).collect();
                    let help =
                        suggest(&name.node, modules.iter().copied()).or_else(|| Some(format!("std has {}", modules.join(", "))));
                    let why = "there is no such module".into();
                    self.diags.push(name.span, HirError::Module { path: key, why, help, at: name.span.into() });
                    continue;
                }
            };
            if self.pending.contains(&file) {
                let why = "it uses this file in turn".into();
                self.diags.push(name.span, HirError::Module { path: key, why, help: None, at: name.span.into() });
                continue;
            }
            match self.scopes[&file].funcs.get(&name.node).cloned() {
                Some(def) => {
                    scope.funcs.insert(name.node.clone(), def);
                }
                None => {
                    let known: Vec<String> = self.scopes[&file].funcs.keys().cloned().collect();
                    let help = Some(format!("it defines {}", known.join(", ")));
                    let why = format!("it does not define '{}'", name.node);
                    self.diags.push(name.span, HirError::Module { path: key, why, help, at: name.span.into() });
                }
            }
        }
    }

    fn config(&mut self, file: FileId, name: &ast::Ident, value: &ast::Expr, scope: &mut Scope) {
        let wrong = |why: String| HirError::Config { name: name.node.clone(), why, help: None, at: name.span.into() };
        let default = match constant(value, &scope.config) {
            Ok(c) => c,
            Err(why) => {
                self.diags.push(value.span, wrong(why));
                Constant::Int(1)
            }
        };
        let mut chosen = default.clone();
        if file == self.root {
            if let Some(c) = self.overrides.config.get(&name.node) {
                chosen = c.clone();
            }
            for (i, (_, text)) in self.overrides.set.iter().enumerate().filter(|(_, (n, _))| *n == name.node) {
                self.used_set[i] = true;
                chosen = parse_constant(text);
            }
        }
        let chosen = match (&default, chosen) {
            (Constant::Float(_), Constant::Int(n)) => Constant::Float(n as f64),
            (d, c) if std::mem::discriminant(d) == std::mem::discriminant(&c) => c,
            (d, c) => {
                self.diags.push(name.span, wrong(format!("{c} cannot replace {d}")));
                d.clone()
            }
        };
        if scope.config.iter().any(|(n, _)| *n == name.node) {
            self.duplicate(name);
        }
        scope.config.push((name.node.clone(), chosen));
    }

    fn duplicate(&mut self, name: &ast::Ident) {
        self.diags.push(name.span, HirError::Duplicate { name: name.node.clone(), at: name.span.into() });
    }
    fn unknown(&mut self, what: &'static str, name: &ast::Ident, known: &[&str]) {
        let help = Some(format!("there are {}", known.join(", ")));
        self.diags.push(name.span, HirError::Unknown { what, name: name.node.clone(), help, at: name.span.into() });
    }
}

/// A value given on the command line.
fn parse_constant(text: &str) -> Constant {
    match text {
        "true" => Constant::Bool(true),
        "false" => Constant::Bool(false),
        _ => match (text.parse::<i64>(), text.parse::<f64>()) {
            (Ok(n), _) => Constant::Int(n),
            (_, Ok(x)) => Constant::Float(x),
            _ => Constant::Str(text.into()),
        },
    }
}

/// Evaluates a config entry: literals, earlier entries, arithmetic.
fn constant(e: &ast::Expr, earlier: &[(String, Constant)]) -> Result<Constant, String> {
    use ast::{BinaryOp as B, ExprKind as K};
    match &e.kind {
        K::Int(n) => Ok(Constant::Int(*n)),
        K::Float(x) => Ok(Constant::Float(*x)),
        K::Bool(b) => Ok(Constant::Bool(*b)),
        K::Str(s) => Ok(Constant::Str(s.clone())),
        K::Name(n) => {
            earlier.iter().find(|(m, _)| m == n).map(|(_, c)| c.clone()).ok_or(format!("'{n}' is not an earlier entry"))
        }
        K::Binary(op, a, b) => match (op, constant(a, earlier)?, constant(b, earlier)?) {
            (B::Add, Constant::Int(a), Constant::Int(b)) => Ok(Constant::Int(a + b)),
            (B::Sub, Constant::Int(a), Constant::Int(b)) => Ok(Constant::Int(a - b)),
            (B::Mul, Constant::Int(a), Constant::Int(b)) => Ok(Constant::Int(a * b)),
            (B::Div, Constant::Int(a), Constant::Int(b)) if b > 0 => Ok(Constant::Int(a.div_euclid(b))),
            (B::Div, Constant::Float(a), Constant::Float(b)) => Ok(Constant::Float(a / b)),
            (B::Mul, Constant::Float(a), Constant::Float(b)) => Ok(Constant::Float(a * b)),
            _ => Err("only + - * / of numbers of one kind".into()),
        },
        _ => Err("a config value is a literal or arithmetic on earlier entries".into()),
    }
}

/// "did you mean" for a name, if a known one is close.
pub fn suggest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    let (distance, best) = known.map(|k| (edit_distance(name, k), k)).min()?;
    (distance <= 1 + name.len() / 4).then(|| format!("did you mean '{best}'?"))
}

/// The number of characters to insert, delete or change. # Source: Wagner and Fischer, 1974.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let cost = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
