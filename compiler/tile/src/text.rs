//! Tile programs as text: MLIR's generic syntax in the dialect `tile` (`dialects/tile/tile.irdl.mlir`, `docs/ir/tile.md`).
//!
//! `parse(print(k)) == k`. Each node of an expression is an op whose result is used once; what is used more often is a `tile.let`. Numbers
//! of variables are the attribute `id`, so that the text may be renamed. As in `graph`, regions end in `vector.yield`.

mod parse;

pub use parse::parse;

use crate::ir::{Access, Copy, Dot, Expr, Kernel, LoopKind, Mem, Stmt, TileRef, VarId};
use base::{
    DType,
    text::{Attr, Block, Region, TextOp, TextValue, Type},
};
use graph::op::MapFn;

/// The op that ends a region.
const YIELD: &str = "vector.yield";

impl Access {
    /// Every access.
    pub const ALL: [Access; 3] = [Access::Read, Access::Write, Access::ReadWrite];
    /// Its name in the text form.
    pub fn name(self) -> &'static str {
        match self {
            Access::Read => "read",
            Access::Write => "write",
            Access::ReadWrite => "read_write",
        }
    }
}

impl LoopKind {
    /// Every kind.
    pub const ALL: [LoopKind; 3] = [LoopKind::Serial, LoopKind::Parallel, LoopKind::Vector];
    /// Its name in the text form.
    pub fn name(self) -> &'static str {
        match self {
            LoopKind::Serial => "serial",
            LoopKind::Parallel => "parallel",
            LoopKind::Vector => "vector",
        }
    }
}

/// The text of kernels, one after the other.
pub fn print(kernels: &[Kernel]) -> String {
    base::text::print(&kernels.iter().map(kernel_op).collect::<Vec<_>>())
}

fn kernel_op(kernel: &Kernel) -> TextOp {
    let mut p = Printer { kernel, next: 0, mutable: vec![false; kernel.vars.len()] };
    let mems = (0..kernel.buffers.len()).map(Mem::Buffer).chain((0..kernel.scratch.len()).map(Mem::Scratch));
    let block = p.variable(VarId(0));
    let args = [block].into_iter().chain(mems.map(|m| p.mem(m))).collect();
    let region = p.region(args, &kernel.body);
    let strs = |items: Vec<String>| Attr::Array(items.into_iter().map(Attr::Str).collect());
    let attrs = [
        ("sym_name", Attr::str(&kernel.name)),
        ("grid", Attr::str(kernel.grid.to_string())),
        ("dims", strs(kernel.dims.iter().map(|d| d.to_string()).collect())),
        ("buffers", strs(kernel.buffers.iter().map(|b| b.name.clone()).collect())),
        ("scratch", strs(kernel.scratch.iter().map(|s| s.name.clone()).collect())),
        ("vars", Attr::Array(kernel.vars.iter().map(|d| Attr::Type(scalar(*d))).collect())),
    ];
    TextOp { attrs: named(attrs), regions: vec![region], ..TextOp::new("tile.kernel") }
}

fn named<const N: usize>(attrs: [(&str, Attr); N]) -> Vec<(String, Attr)> {
    attrs.into_iter().map(|(k, a)| (k.to_string(), a)).collect()
}

fn scalar(d: DType) -> Type {
    Type::text(d.mlir())
}

struct Printer<'a> {
    kernel: &'a Kernel,
    /// The number of the next expression.
    next: u32,
    /// Which variables are mutable, of those declared so far.
    mutable: Vec<bool>,
}

impl Printer<'_> {
    fn dtype(&self, v: VarId) -> DType {
        self.kernel.vars.get(v.0 as usize).copied().unwrap_or(DType::I64)
    }
    /// A variable's value, or the place of a mutable one.
    fn variable(&self, v: VarId) -> TextValue {
        let ty = scalar(self.dtype(v));
        let ty = match self.mutable.get(v.0 as usize) {
            Some(true) => Type::Dialect { name: "tile.place".into(), params: vec![Attr::Type(ty)] },
            Some(false) | None => ty,
        };
        TextValue { name: v.to_string(), ty }
    }
    fn mem(&self, mem: Mem) -> TextValue {
        let dialect = |name: &str, params: Vec<Attr>| Type::Dialect { name: name.into(), params };
        match mem {
            Mem::Buffer(i) => {
                let ty = self.kernel.buffers.get(i).map_or_else(
                    || Type::text("none"),
                    |b| {
                        let (elems, access) = (Attr::str(b.elems.to_string()), Attr::str(b.access.name()));
                        dialect("tile.buffer", vec![Attr::Type(scalar(b.dtype)), elems, access, Attr::i64(b.alignment)])
                    },
                );
                TextValue { name: format!("b{i}"), ty }
            }
            Mem::Scratch(i) => {
                let ty = self.kernel.scratch.get(i).map_or_else(
                    || Type::text("none"),
                    |s| {
                        let elems = i64::try_from(s.elems).expect("memory of a block is below 2^63");
                        dialect("tile.scratch", vec![Attr::Type(scalar(s.dtype)), Attr::i64(elems)])
                    },
                );
                TextValue { name: format!("s{i}"), ty }
            }
        }
    }
    fn region(&mut self, args: Vec<TextValue>, stmts: &[Stmt]) -> Region {
        let mut ops = Vec::new();
        for s in stmts {
            self.stmt(s, &mut ops);
        }
        ops.push(TextOp::new(YIELD));
        Region { blocks: vec![Block { args, ops }] }
    }

    fn stmt(&mut self, s: &Stmt, ops: &mut Vec<TextOp>) {
        let id = |v: &VarId| ("id", Attr::i64(i64::from(v.0)));
        let op = match s {
            Stmt::Let(v, e) => {
                let operands = vec![self.expr(e, ops)];
                TextOp { operands, results: vec![self.variable(*v)], attrs: named([id(v)]), ..TextOp::new("tile.let") }
            }
            Stmt::Var(v, e) => {
                let operands = vec![self.expr(e, ops)];
                if let Some(m) = self.mutable.get_mut(v.0 as usize) {
                    *m = true;
                }
                TextOp { operands, results: vec![self.variable(*v)], attrs: named([id(v)]), ..TextOp::new("tile.var") }
            }
            Stmt::Assign(v, e) => {
                let e = self.expr(e, ops);
                TextOp { operands: vec![self.variable(*v), e], ..TextOp::new("tile.assign") }
            }
            Stmt::Accumulate(v, f, e) => {
                let e = self.expr(e, ops);
                let attrs = named([("fn", Attr::str(f.name()))]);
                TextOp { operands: vec![self.variable(*v), e], attrs, ..TextOp::new("tile.accumulate") }
            }
            Stmt::Store { mem, index, value } => {
                let operands = vec![self.mem(*mem), self.expr(index, ops), self.expr(value, ops)];
                TextOp { operands, ..TextOp::new("tile.store") }
            }
            Stmt::For { var, lo, hi, kind, body } => {
                let operands = vec![self.expr(lo, ops), self.expr(hi, ops)];
                let attrs = named([id(var), ("kind", Attr::str(kind.name()))]);
                let regions = vec![self.region(vec![self.variable(*var)], body)];
                TextOp { operands, attrs, regions, ..TextOp::new("tile.for") }
            }
            Stmt::While { cond, body } => {
                let mut first = Vec::new();
                let operands = vec![self.expr(cond, &mut first)];
                first.push(TextOp { operands, ..TextOp::new(YIELD) });
                let cond = Region { blocks: vec![Block { args: Vec::new(), ops: first }] };
                TextOp { regions: vec![cond, self.region(Vec::new(), body)], ..TextOp::new("tile.while") }
            }
            Stmt::If { cond, then, otherwise } => {
                let operands = vec![self.expr(cond, ops)];
                let regions = vec![self.region(Vec::new(), then), self.region(Vec::new(), otherwise)];
                TextOp { operands, regions, ..TextOp::new("tile.if") }
            }
            Stmt::Dot(d) => self.dot(d, ops),
            Stmt::Copy(c) => self.copy(c, ops),
        };
        ops.push(op);
    }
    fn copy(&mut self, c: &Copy, ops: &mut Vec<TextOp>) -> TextOp {
        let memories = [c.from, c.to].into_iter().chain(c.index.map(Mem::Buffer));
        let mut operands: Vec<TextValue> = memories.map(|m| self.mem(m)).collect();
        operands.extend(c.paired.as_ref().map(|e| self.expr(e, ops)));
        for e in c.axes.iter().flat_map(|a| [&a.extent, &a.stride, &a.at]) {
            operands.push(self.expr(e, ops));
        }
        let mut attrs = named([("rows", Attr::i64(c.rows)), ("cols", Attr::i64(c.cols))]);
        if c.run != c.rows {
            attrs.extend(named([("run", Attr::i64(c.run))]));
        }
        let name = match (c.index, c.run != c.rows) {
            (Some(_), false) => "tile.copy_rows",
            (Some(_), true) => "tile.copy_rows_of_runs",
            (None, false) if c.paired.is_some() => "tile.copy_paired",
            (None, false) => "tile.copy",
            (None, true) => "tile.copy_runs",
        };
        TextOp { operands, attrs, ..TextOp::new(name) }
    }
    fn dot(&mut self, d: &Dot, ops: &mut Vec<TextOp>) -> TextOp {
        let mut operands: Vec<TextValue> = [&d.a, &d.b, &d.c].map(|t| self.mem(t.mem)).into();
        let places = [&d.a, &d.b, &d.c].map(|TileRef { base, row, col, .. }| [base, row, col]);
        for e in [&d.m, &d.n, &d.k].into_iter().chain(places.into_iter().flatten()) {
            operands.push(self.expr(e, ops));
        }
        let name = if d.counted.is_some() { "tile.dot_rows" } else { "tile.dot" };
        operands.extend(d.counted.as_ref().map(|e| self.expr(e, ops)));
        TextOp { operands, attrs: named([("accumulate", Attr::Bool(d.accumulate))]), ..TextOp::new(name) }
    }

    /// Appends the ops of an expression.
    fn expr(&mut self, e: &Expr, ops: &mut Vec<TextOp>) -> TextValue {
        let op = match e {
            Expr::Const(c, _) => TextOp { attrs: named([("value", Attr::f64(c.get()))]), ..TextOp::new("tile.const") },
            Expr::Dim(i) => {
                let index = Attr::i64(i64::try_from(*i).expect("few dims"));
                TextOp { attrs: named([("index", index)]), ..TextOp::new("tile.dim") }
            }
            Expr::Var(v) => {
                let place = self.variable(*v);
                if self.mutable.get(v.0 as usize) != Some(&true) {
                    return place;
                }
                TextOp { operands: vec![place], ..TextOp::new("tile.get") }
            }
            Expr::Load(mem, index) => {
                TextOp { operands: vec![self.mem(*mem), self.expr(index, ops)], ..TextOp::new("tile.load") }
            }
            Expr::Map(f, args) => {
                let operands = args.iter().map(|a| self.expr(a, ops)).collect();
                match f {
                    MapFn::Select => TextOp { operands, ..TextOp::new("tile.select") },
                    f => TextOp { operands, attrs: named([("fn", Attr::str(f.name()))]), ..TextOp::new("tile.map") },
                }
            }
            Expr::Cast(to, x) => {
                let operands = vec![self.expr(x, ops)];
                TextOp { operands, attrs: named([("to", Attr::Type(scalar(*to)))]), ..TextOp::new("tile.cast") }
            }
            Expr::Order(x) => TextOp { operands: vec![self.expr(x, ops)], ..TextOp::new("tile.order") },
        };
        let result = TextValue { name: self.next.to_string(), ty: scalar(self.kernel.expr_dtype(e)) };
        self.next += 1;
        ops.push(TextOp { results: vec![result.clone()], ..op });
        result
    }
}

#[cfg(test)]
mod tests;
