//! Readable dumps of tokens and trees, for `--emit=tokens` and `--emit=ast`. Spans are left out of the tree, so that a dump does not
//! change when a line above it does.

use crate::{ast::*, lexer::Tok};
use std::fmt::Write;

/// One token a line: byte range and token.
pub fn print_tokens(tokens: &[(usize, Tok, usize)]) -> String {
    tokens.iter().fold(String::new(), |mut out, (start, tok, end)| {
        let text = match tok {
            Tok::Ident(s) => format!("name {s}"),
            Tok::Int(n) => format!("int {n}"),
            Tok::Float(x) => format!("float {x:?}"),
            Tok::Str(s) => format!("string {s:?}"),
            Tok::Doc(s) => format!("doc {s}"),
            Tok::Keyword(k) => format!("keyword {k}"),
            Tok::Punct(p) => format!("punct {p}"),
            Tok::Newline => "newline".into(),
        };
        let _ = writeln!(out, "{start}..{end} {text}");
        out
    })
}

/// The tree as nested lists: `(block attention (x [B T d]) …`.
pub fn print_ast(file: &File) -> String {
    let mut p = Printer { out: String::new(), depth: 0 };
    file.items.iter().for_each(|i| p.item(i));
    p.out
}

struct Printer {
    out: String,
    depth: usize,
}

impl Printer {
    fn line(&mut self, text: &str) {
        let _ = writeln!(self.out, "{}{text}", "  ".repeat(self.depth));
    }
    fn nested(&mut self, text: &str, inside: impl FnOnce(&mut Self)) {
        self.line(text);
        self.depth += 1;
        inside(self);
        self.depth -= 1;
    }
    fn item(&mut self, item: &Item) {
        if let Some(doc) = &item.doc {
            self.line(&format!("doc {doc:?}"));
        }
        match &item.kind {
            ItemKind::Use { path: p, names } => self.line(&format!("use {} {{{}}}", path(p), idents(names))),
            ItemKind::Dims(names) => self.line(&format!("dims {}", idents(names))),
            ItemKind::Config(entries) => self.nested("config", |p| {
                entries.iter().for_each(|(n, e)| p.line(&format!("{} = {}", n.node, expr(e))));
            }),
            ItemKind::Precision(entries) => self.nested("precision", |p| {
                entries.iter().for_each(|(n, d)| p.line(&format!("{} = {}", n.node, d.node)));
            }),
            ItemKind::Pipeline(entries) => self.nested("pipeline", |p| {
                entries.iter().for_each(|(n, e)| p.line(&format!("{} = {}", n.node, expr(e))));
            }),
            ItemKind::Func(f) => {
                let kind = match f.kind {
                    FuncKind::Fn => "fn",
                    FuncKind::Block => "block",
                    FuncKind::Model => "model",
                };
                self.nested(&format!("{kind} {}({}) -> {}", f.name.node, params(&f.params), ty(&f.result)), |p| p.body(&f.body));
            }
            ItemKind::Train(t) => self.nested(&format!("train({})", params(&t.params)), |p| {
                t.stmts.iter().for_each(|s| p.stmt(s));
                p.line(&format!("minimize {}", expr(&t.objective)));
                p.line(&format!("with {}({})", t.optimizer.node, args(&t.optimizer_args)));
                t.settings.iter().for_each(|(n, e)| p.line(&format!("set {} = {}", n.node, expr(e))));
            }),
        }
    }
    fn body(&mut self, body: &Body) {
        body.stmts.iter().for_each(|s| self.stmt(s));
        if let Some(value) = &body.value {
            self.line(&format!("=> {}", expr(value)));
        }
    }
    fn stmt(&mut self, stmt: &Stmt) {
        match &stmt.kind {
            StmtKind::Let { names, ty: t, value } => {
                let t = t.as_ref().map_or(String::new(), |t| format!(": {}", ty(t)));
                self.line(&format!("let {}{t} = {}", idents(names), expr(value)));
            }
            StmtKind::Assign { names, value } => self.line(&format!("{} = {}", idents(names), expr(value))),
            StmtKind::Repeat { count, label, body } => {
                let label = label.as_ref().map_or(String::new(), |l| format!(" as {}", path(l)));
                self.nested(&format!("repeat {}{label}", expr(count)), |p| p.body(body));
            }
            StmtKind::Expr(e) => self.line(&expr(e)),
            StmtKind::State(d) => self.line(&format!("state {}", declared(d))),
            StmtKind::Tally { name, ty: t, value } => self.line(&format!("tally {}: {} = {}", name.node, ty(t), expr(value))),
            StmtKind::Penalty(e) => self.line(&format!("penalty {}", expr(e))),
            StmtKind::AfterStep(body) => self.nested("after step", |p| p.body(body)),
        }
    }
}

fn joined<T>(items: &[T], show: impl Fn(&T) -> String) -> String {
    items.iter().map(show).collect::<Vec<_>>().join(", ")
}

fn idents(names: &[Ident]) -> String {
    joined(names, |n| n.node.clone())
}

fn path(p: &Path) -> String {
    p.parts.iter().map(|x| x.node.as_str()).collect::<Vec<_>>().join(".")
}

fn params(params: &[Param]) -> String {
    joined(params, |p| {
        let default = p.default.as_ref().map_or(String::new(), |d| format!(" = {}", expr(d)));
        format!("{}: {}{default}", p.name.node, ty(&p.ty))
    })
}

fn ty(t: &Type) -> String {
    match &t.kind {
        TypeKind::Tensor { dtype, axes } => {
            let axes = joined(axes, |a| match a {
                Axis::Extent(e) => expr(e),
                Axis::Rest(n) => format!("..{}", n.node),
                Axis::Rows(n) => format!("rows {}", n.node),
            });
            format!("{}[{axes}]", dtype.map_or("", |d| d.name()))
        }
        TypeKind::Name(n) => n.clone(),
        TypeKind::Rows(e) => format!("rows[{}]", expr(e)),
        TypeKind::Tuple(types) => format!("({})", joined(types, ty)),
    }
}

fn declared(d: &Declared) -> String {
    let init = d.init.as_ref().map_or(String::new(), |i| format!(" = {}", expr(i)));
    format!("{}: {}{init}{}", path(&d.path), ty(&d.ty), if d.nodecay { " nodecay" } else { "" })
}

fn args(args: &[Arg]) -> String {
    joined(args, |a| a.name.as_ref().map_or(String::new(), |n| format!("{}: ", n.node)) + &expr(&a.value))
}

fn inline(body: &Body) -> String {
    let mut p = Printer { out: String::new(), depth: 0 };
    p.body(body);
    format!("{{ {} }}", p.out.trim_end().lines().map(str::trim).collect::<Vec<_>>().join("; "))
}

fn expr(e: &Expr) -> String {
    match &e.kind {
        ExprKind::Int(n) => n.to_string(),
        ExprKind::Float(x) => format!("{x:?}"),
        ExprKind::Bool(b) => b.to_string(),
        ExprKind::Str(s) => format!("{s:?}"),
        ExprKind::Name(n) => n.clone(),
        ExprKind::Binary(op, a, b) => format!("({} {} {})", expr(a), symbol(*op), expr(b)),
        ExprKind::Unary(UnaryOp::Neg, a) => format!("-{}", expr(a)),
        ExprKind::Unary(UnaryOp::Not, a) => format!("(not {})", expr(a)),
        ExprKind::Transpose(a) => format!("{}^T", expr(a)),
        ExprKind::Call { func, args: a, label } => {
            format!("{}({}){}", func.node, args(a), label.as_ref().map_or(String::new(), |l| format!(" as {}", path(l))))
        }
        ExprKind::Index(x, items) => {
            let part = |e: &Option<Expr>| e.as_ref().map_or(String::new(), expr);
            let items = joined(items, |i| match i {
                Index::At(e) => expr(e),
                Index::Slice { start, end, step } => {
                    let step = step.as_ref().map_or(String::new(), |s| format!(":{}", expr(s)));
                    format!("{}:{}{step}", part(start), part(end))
                }
                Index::Rest(_) => "..".into(),
                Index::New(_) => "new".into(),
            });
            format!("{}[{items}]", expr(x))
        }
        ExprKind::Tuple(v) => format!("({})", joined(v, expr)),
        ExprKind::List(v) => format!("[{}]", joined(v, expr)),
        ExprKind::If { cond, then, otherwise } => {
            let otherwise = otherwise.as_ref().map_or(String::new(), |b| format!(" else {}", inline(b)));
            format!("if {} {}{otherwise}", expr(cond), inline(then))
        }
        ExprKind::Param(d) => format!("param {}", declared(d)),
        ExprKind::Error => "<error>".into(),
    }
}

/// The operator as written.
pub(crate) fn symbol(op: BinaryOp) -> &'static str {
    match op {
        BinaryOp::Or => "or",
        BinaryOp::And => "and",
        BinaryOp::Eq => "==",
        BinaryOp::Ne => "!=",
        BinaryOp::Lt => "<",
        BinaryOp::Le => "<=",
        BinaryOp::Gt => ">",
        BinaryOp::Ge => ">=",
        BinaryOp::BitOr => "|",
        BinaryOp::BitAnd => "&",
        BinaryOp::Add => "+",
        BinaryOp::Sub => "-",
        BinaryOp::Mul => "*",
        BinaryOp::Div => "/",
        BinaryOp::Rem => "%",
        BinaryOp::MatMul => "@",
    }
}
