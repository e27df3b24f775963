//! Files and what they define. In: the root file. Out: every used file parsed, each file's names resolved to items, and config values
//! with overrides applied. Of a used file only the functions count, with the dims and config values they see; its `precision`,
//! `pipeline`, `train` and the model's being a model are the root file's business.

use crate::{
    config::{self, Constant, Overrides},
    error::{HirError, suggest},
    pipeline::Pipeline,
    std_lib,
};
use base::{DType, Diags, FileId, Sources, Span};
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::Arc,
};
use syntax::ast;

/// Supplies the text of a used file: from `lib/layers.lode` to its text, beside the root file.
pub type Loader<'a> = dyn FnMut(&str) -> Option<String> + 'a;

/// What a name of a file means.
#[derive(Clone, Debug)]
pub struct Definition {
    /// The function.
    pub func: Rc<ast::Func>,
    /// The file it stands in, whose names it sees.
    pub file: FileId,
    /// Whether the parser told a mistake in it: it has no meaning, and its calls none, without a further word.
    pub is_broken: bool,
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
    /// Whether functions may be missing, as the head of one cannot be read.
    pub lacks_functions: bool,
    /// Whether other names may be missing that a file with a mistake of syntax meant to define. Then nothing is said of its functions.
    pub has_gaps: bool,
}

/// All that the program is made of.
pub struct Modules {
    /// The model's file.
    pub root: FileId,
    /// By file.
    pub scopes: BTreeMap<FileId, Scope>,
    /// The files of the standard library.
    pub library: BTreeSet<FileId>,
    /// The text of each file.
    pub texts: BTreeMap<FileId, Arc<str>>,
    /// The model, unless the root file has none.
    pub model: Option<Definition>,
    /// The `train` item of the root file.
    pub train: Option<Rc<ast::Train>>,
    /// The dtype of parameters in memory.
    pub storage: DType,
    /// What the root file says of ranks.
    pub pipeline: Pipeline,
    /// What untyped tensors are.
    pub compute: DType,
    /// Whether products of f32 take operands rounded to tf32.
    pub tf32: bool,
    /// How many calls were elaborated.
    pub num_calls: Cell<usize>,
    /// Where elaboration has told a mistake.
    pub told: RefCell<BTreeSet<Span>>,
}

struct Resolver<'a, 'l> {
    sources: &'a mut Sources,
    load: &'a mut Loader<'l>,
    diags: &'a mut Diags,
    overrides: &'a Overrides,
    modules: Modules,
    /// Files being resolved, to find circles.
    pending: Vec<FileId>,
    used_set: Vec<bool>,
    /// Whether the root file has a model that cannot be read.
    lost_model: bool,
}

/// Parses and resolves everything the root file uses.
pub fn resolve(root: FileId, sources: &mut Sources, load: &mut Loader, overrides: &Overrides, diags: &mut Diags) -> Modules {
    let modules = Modules {
        root,
        scopes: BTreeMap::new(),
        library: BTreeSet::new(),
        texts: BTreeMap::new(),
        model: None,
        train: None,
        pipeline: Pipeline::default(),
        storage: DType::F32,
        compute: DType::F32,
        tf32: false,
        num_calls: Cell::new(0),
        told: RefCell::default(),
    };
    let used_set = vec![false; overrides.set.len()];
    let mut r = Resolver { sources, load, diags, overrides, modules, pending: Vec::new(), used_set, lost_model: false };
    r.file(root);
    let start = Span::new(root, 0, 0);
    if r.modules.scopes[&root].has_gaps {
        return r.modules;
    }
    let lost_model = r.lost_model;
    for ((name, _), used) in overrides.set.iter().zip(&r.used_set) {
        if !used {
            let known: Vec<&str> = r.modules.scopes[&root].config.iter().map(|(n, _)| n.as_str()).collect();
            let help = suggest(name, known.iter().copied()).or_else(|| Some(format!("the config has {}", known.join(", "))));
            let why = "there is no such value to set".into();
            r.diags.push(start, HirError::Config { name: name.clone(), why, help, at: start.into() });
        }
    }
    if r.modules.model.is_none() && !lost_model {
        let help = "write `model name(tokens: i32[B, T]) -> […] { … }`";
        r.diags.push(start, HirError::Program { what: "the file has no model".into(), help, at: start.into() });
    }
    r.modules
}

impl Resolver<'_, '_> {
    fn file(&mut self, file: FileId) {
        let text = self.sources.get(file).text.clone();
        let tree = syntax::parse(file, &text, self.diags);
        self.modules.texts.insert(file, text);
        self.pending.push(file);
        self.lost_model |= file == self.modules.root && tree.lost.contains(&ast::FuncKind::Model);
        let mut scope = Scope { lacks_functions: !tree.lost.is_empty(), has_gaps: tree.has_gaps, ..Scope::default() };
        for item in tree.items {
            self.item(file, item, &mut scope);
        }
        self.pending.pop();
        self.modules.scopes.insert(file, scope);
    }

    fn item(&mut self, file: FileId, item: ast::Item, scope: &mut Scope) {
        let is_root = file == self.modules.root;
        match item.kind {
            ast::ItemKind::Use { path, names } => self.import(&path, &names, scope),
            ast::ItemKind::Dims(names) => {
                for n in names {
                    if scope.dims.contains(&n.node) || scope.config.iter().any(|(c, _)| *c == n.node) {
                        self.duplicate(&n);
                    } else {
                        scope.dims.push(n.node);
                    }
                }
            }
            ast::ItemKind::Config(entries) => {
                entries.into_iter().for_each(|(name, value)| self.config(is_root, &name, &value, scope))
            }
            ast::ItemKind::Precision(entries) if is_root => self.precision(&entries),
            ast::ItemKind::Precision(_) => {}
            ast::ItemKind::Pipeline(entries) if is_root => {
                self.modules.pipeline = Pipeline::read(&entries, &scope.config, self.diags);
            }
            ast::ItemKind::Pipeline(_) => {}
            ast::ItemKind::Func(func) => {
                let name = func.name.clone();
                for (i, p) in func.params.iter().enumerate() {
                    if func.params[..i].iter().any(|q| q.name.node == p.name.node) {
                        self.duplicate(&p.name);
                    }
                }
                let def = Definition { func: Rc::new(func), file, is_broken: item.is_broken };
                let is_model = is_root && def.func.kind == ast::FuncKind::Model;
                if is_model && self.modules.model.replace(def.clone()).is_some() {
                    let help = "a file has one model; make the others blocks";
                    self.program(name.span, "a second model".into(), help);
                }
                self.define(&name, def, scope);
            }
            ast::ItemKind::Train(_) if item.is_broken => {}
            ast::ItemKind::Train(train) if is_root => {
                for (i, p) in train.params.iter().enumerate() {
                    if p.name.node == "weights" || train.params[..i].iter().any(|q| q.name.node == p.name.node) {
                        self.duplicate(&p.name);
                    }
                }
                if self.modules.train.replace(Rc::new(train)).is_some() {
                    self.program(item.span, "a second train item".into(), "a file has one train item");
                }
            }
            ast::ItemKind::Train(_) => {}
        }
    }

    fn precision(&mut self, entries: &[(ast::Ident, ast::Spanned<DType>)]) {
        let help = "there are storage and compute, floats both, accumulate, which follows from compute, and matmul";
        for (name, dtype) in entries {
            match name.node.as_str() {
                "storage" | "compute" if !dtype.node.is_float() => {
                    self.program(dtype.span, format!("{} in {}", name.node, dtype.node), help)
                }
                "storage" | "compute" if dtype.node == DType::TF32 => {
                    self.program(dtype.span, format!("{} in tf32", name.node), "tf32 is for products: `matmul = tf32`")
                }
                "matmul" => {}
                "storage" => self.modules.storage = dtype.node,
                "compute" => self.modules.compute = dtype.node,
                "accumulate" => {}
                _ => {
                    let help = Some("there are storage, compute, accumulate, matmul".into());
                    let error = HirError::Unknown { what: "precision", name: name.node.clone(), help, at: name.span.into() };
                    self.diags.push(name.span, error);
                }
            }
        }
        let compute = self.modules.compute;
        for (_, dtype) in entries.iter().filter(|(n, _)| n.node == "matmul") {
            self.modules.tf32 = (compute, dtype.node) == (DType::F32, DType::TF32);
            if dtype.node != compute && !self.modules.tf32 {
                let help = "operands of products are of compute's dtype, and tf32 if that is f32";
                self.program(dtype.span, format!("products of {compute} in {}", dtype.node), help);
            }
        }
        if let Some((_, sums)) = entries.iter().find(|(n, d)| n.node == "accumulate" && d.node != compute.accumulator()) {
            let help = "sums are kept in f32, those of f64 in f64";
            self.program(sums.span, format!("sums of {compute} are kept in {}", compute.accumulator()), help);
        }
    }

    /// Gives a function its name in a file; the same function by two ways is no mistake.
    fn define(&mut self, name: &ast::Ident, def: Definition, scope: &mut Scope) {
        let same = |old: &Definition| Rc::ptr_eq(&old.func, &def.func);
        if scope.funcs.get(&name.node).is_some_and(|old| !same(old)) {
            self.duplicate(name);
        } else {
            scope.funcs.insert(name.node.clone(), def);
        }
    }

    fn import(&mut self, path: &ast::Path, names: &[ast::Ident], scope: &mut Scope) {
        let parts: Vec<&str> = path.parts.iter().map(|p| p.node.as_str()).collect();
        let is_std = parts.first() == Some(&"std");
        for name in names {
            // `use std.{moe}` and `use std.moe`: the module of that name; `use std.moe.{gate}`: a name of it.
            let key = match (is_std, parts.get(1)) {
                (true, Some(module)) => format!("std/{module}.lode"),
                (true, None) => format!("std/{}.lode", name.node),
                (false, _) => format!("{}.lode", parts.join("/")),
            };
            let known = |r: &Self, f: &FileId| r.modules.scopes.contains_key(f) || r.pending.contains(f);
            let file = match self.sources.find(&key).filter(|f| known(self, f)) {
                Some(file) => Some(file),
                None if is_std => {
                    let text = std_lib::MODULES.iter().find(|(n, _)| format!("std/{n}.lode") == key).map(|(_, t)| *t);
                    text.map(|text| {
                        let file = self.sources.add(&key, text);
                        self.modules.library.insert(file);
                        file
                    })
                }
                None => (self.load)(&key).map(|text| self.sources.add(&key, &text)),
            };
            let Some(file) = file else {
                let (why, help) = if is_std {
                    let modules: Vec<&str> = std_lib::MODULES.iter().map(|(n, _)| *n).collect();
                    let near = suggest(parts.get(1).copied().unwrap_or(&name.node), modules.iter().copied());
                    ("there is no such module", near.or_else(|| Some(format!("std has {}", modules.join(", ")))))
                } else {
                    ("there is no such file", Some(format!("the file has to be {key} beside the model's")))
                };
                self.module(key, why.into(), help, name.span);
                continue;
            };
            if !known(self, &file) {
                self.file(file);
            }
            if self.pending.contains(&file) {
                self.module(key, "it uses this file in turn".into(), None, name.span);
                continue;
            }
            match self.modules.scopes[&file].funcs.get(&name.node).cloned() {
                Some(def) => self.define(name, def, scope),
                None if self.modules.scopes[&file].has_gaps => scope.has_gaps = true,
                None if self.modules.scopes[&file].lacks_functions => scope.lacks_functions = true,
                None => {
                    let known: Vec<&String> =
                        self.modules.scopes[&file].funcs.iter().filter(|(_, d)| d.file == file).map(|(n, _)| n).collect();
                    let near = suggest(&name.node, known.iter().map(|n| n.as_str()));
                    let help = near.or_else(|| {
                        Some(format!("it defines {}", known.iter().map(|n| n.as_str()).collect::<Vec<_>>().join(", ")))
                    });
                    self.module(key, format!("it does not define '{}'", name.node), help, name.span);
                }
            }
        }
    }

    fn config(&mut self, is_root: bool, name: &ast::Ident, value: &ast::Expr, scope: &mut Scope) {
        let wrong = |why: String| HirError::Config { name: name.node.clone(), why, help: None, at: name.span.into() };
        let default = match config::evaluate(value, &scope.config) {
            Ok(c) => c,
            Err(why) => {
                let at = value.span.into();
                self.diags.push(value.span, HirError::Config { name: name.node.clone(), why, help: None, at });
                Constant::Int(1)
            }
        };
        let mut chosen = default.clone();
        if is_root {
            if let Some(c) = self.overrides.config.get(&name.node) {
                chosen = c.clone();
            }
            for (i, (_, text)) in self.overrides.set.iter().enumerate().filter(|(_, (n, _))| *n == name.node) {
                self.used_set[i] = true;
                chosen = config::parse(text, &default);
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
        if scope.config.iter().any(|(n, _)| *n == name.node) || scope.dims.contains(&name.node) {
            self.duplicate(name);
        }
        scope.config.push((name.node.clone(), chosen));
    }

    fn duplicate(&mut self, name: &ast::Ident) {
        self.diags.push(name.span, HirError::Duplicate { name: name.node.clone(), at: name.span.into() });
    }
    fn module(&mut self, path: String, why: String, help: Option<String>, at: Span) {
        self.diags.push(at, HirError::Module { path, why, help, at: at.into() });
    }
    fn program(&mut self, at: Span, what: String, help: &'static str) {
        self.diags.push(at, HirError::Program { what, help, at: at.into() });
    }
}
