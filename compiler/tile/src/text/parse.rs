//! Text to tile programs. What is read can be printed and verified; whether it verifies is not asked here.

use super::YIELD;
use crate::ir::{Access, Axis, Buffer, Copy, Dot, Expr, Kernel, LoopKind, Mem, Scratch, Stmt, TileRef, VarId};
use base::{
    DType, Dim,
    text::{Attr, Block, TextError, TextOp, TextValue, Type},
};
use graph::op::{MapFn, ReduceFn, Scalar};
use std::collections::HashMap;

/// Bounds on hostile text, so that it is an error and no overflow of the stack.
const MAX_EXPR_DEPTH: usize = 200;
const MAX_DIM_CHARS: usize = 2000;
const MAX_DIM_DEPTH: usize = 30;

type Parsed<T> = Result<T, TextError>;

/// The kernels of a text: `tile.kernel` ops, or a `builtin.module` of them.
///
/// # Errors
/// With line, column and what is wrong: syntax, unknown ops, values that are not what an op takes.
pub fn parse(text: &str) -> Parsed<Vec<Kernel>> {
    let ops = base::text::parse(text)?;
    match &ops[..] {
        [op] if op.name == "builtin.module" => {
            op.regions.iter().flat_map(|r| &r.blocks).flat_map(|b| &b.ops).map(kernel).collect()
        }
        ops => ops.iter().map(kernel).collect(),
    }
}

/// What a name stands for.
#[derive(Clone)]
enum Bound {
    Mem(Mem),
    /// The value of a variable that does not change.
    Value(VarId),
    /// The place of a mutable one.
    Place(VarId),
    /// An expression and its depth; used once.
    Expr(Expr, usize),
}

struct Parser {
    kernel: Kernel,
    names: HashMap<String, Bound>,
}

fn kernel(op: &TextOp) -> Parsed<Kernel> {
    if op.name != "tile.kernel" {
        return Err(op.error("expected tile.kernel"));
    }
    let mut kernel = Kernel::new(op.get_str("sym_name")?);
    kernel.grid = dim(op, op.get_str("grid")?)?;
    kernel.dims = op.get_strs("dims")?.into_iter().map(|d| dim(op, d)).collect::<Parsed<_>>()?;
    let Some(Attr::Array(vars)) = op.attr("vars") else { return Err(op.error("no array 'vars'")) };
    let var = |a: &Attr| if let Attr::Type(t) = a { scalar(op, t) } else { Err(op.error(format_args!("{a} is no dtype"))) };
    kernel.vars = vars.iter().map(var).collect::<Parsed<_>>()?;
    let (buffers, scratch) = (op.get_strs("buffers")?, op.get_strs("scratch")?);
    let block = single_block(op, 0, 1)?;
    let [index, mems @ ..] = &block.args[..] else { return Err(op.error("no argument for the block's index")) };
    if mems.len() != buffers.len() + scratch.len() {
        return Err(op.error(format_args!("{} memories, and names for {}", mems.len(), buffers.len() + scratch.len())));
    }
    let mut p = Parser { kernel, names: HashMap::new() };
    p.names.insert(index.name.clone(), Bound::Value(p.declared(op, 0, &index.ty)?));
    for (name, arg) in buffers.iter().zip(mems) {
        let buffer = buffer(op, name, &arg.ty)?;
        p.names.insert(arg.name.clone(), Bound::Mem(Mem::Buffer(p.kernel.buffers.len())));
        p.kernel.buffers.push(buffer);
    }
    for (name, arg) in scratch.iter().zip(&mems[buffers.len()..]) {
        let scratch = scratch_of(op, name, &arg.ty)?;
        let mem = p.kernel.scratch(&scratch.name, scratch.dtype, scratch.elems);
        p.names.insert(arg.name.clone(), Bound::Mem(mem));
    }
    p.kernel.body = p.stmts(op, block)?;
    Ok(p.kernel)
}

fn scalar(op: &TextOp, ty: &Type) -> Parsed<DType> {
    let dtype = if let Type::Text(name) = ty { DType::from_mlir(name) } else { None };
    dtype.ok_or_else(|| op.error(format_args!("{ty} is no dtype")))
}

fn dim(op: &TextOp, text: &str) -> Parsed<Dim> {
    if text.len() > MAX_DIM_CHARS || text.matches('(').count() > MAX_DIM_DEPTH {
        return Err(op.error("a dim too long"));
    }
    text.parse().map_err(|e| op.error(e))
}

fn buffer(op: &TextOp, name: &str, ty: &Type) -> Parsed<Buffer> {
    match ty {
        Type::Dialect { name: ty_name, params } if ty_name == "tile.buffer" => {
            if let [Attr::Type(dtype), Attr::Str(elems), Attr::Str(access), Attr::Int(alignment, _)] = &params[..] {
                let alignment = *alignment;
                let access = Access::ALL.into_iter().find(|a| a.name() == access);
                let access = access.ok_or_else(|| op.error(format_args!("no access in {ty}")))?;
                return Ok(Buffer { name: name.into(), dtype: scalar(op, dtype)?, elems: dim(op, elems)?, access, alignment });
            }
            Err(op.error(format_args!("{ty} is no buffer")))
        }
        _ => Err(op.error(format_args!("{ty} is no buffer"))),
    }
}

fn scratch_of(op: &TextOp, name: &str, ty: &Type) -> Parsed<Scratch> {
    match ty {
        Type::Dialect { name: ty_name, params } if ty_name == "tile.scratch" => {
            if let [Attr::Type(dtype), Attr::Int(elems, _)] = &params[..]
                && let Ok(elems) = usize::try_from(*elems)
            {
                return Ok(Scratch { name: name.into(), dtype: scalar(op, dtype)?, elems });
            }
            Err(op.error(format_args!("{ty} is no scratch")))
        }
        _ => Err(op.error(format_args!("{ty} is no scratch"))),
    }
}

/// The only block of region `i` of `count`.
fn single_block(op: &TextOp, i: usize, count: usize) -> Parsed<&Block> {
    match op.regions.get(i).map(|r| &r.blocks[..]) {
        Some([block]) if op.regions.len() == count => Ok(block),
        _ => Err(op.error(format_args!("expected {count} regions of one block"))),
    }
}

fn operands<const N: usize>(op: &TextOp) -> Parsed<&[TextValue; N]> {
    op.operands[..].try_into().map_err(|_| op.error(format_args!("expected {N} operands, not {}", op.operands.len())))
}

impl Parser {
    /// Variable `id`, if it has this type.
    fn declared(&self, op: &TextOp, id: i64, ty: &Type) -> Parsed<VarId> {
        let dtype = usize::try_from(id).ok().and_then(|i| self.kernel.vars.get(i));
        match dtype {
            Some(d) if scalar(op, ty)? == *d => Ok(VarId(u32::try_from(id).map_err(|_| op.error("an id too large"))?)),
            Some(d) => Err(op.error(format_args!("variable {id} is {d}, not {ty}"))),
            None => Err(op.error(format_args!("'vars' has no variable {id}"))),
        }
    }
    fn bound(&self, op: &TextOp, v: &TextValue) -> Parsed<Bound> {
        self.names.get(&v.name).cloned().ok_or_else(|| op.error(format_args!("%{} is not defined, or is used twice", v.name)))
    }
    fn mem(&self, op: &TextOp, v: &TextValue) -> Parsed<Mem> {
        match self.bound(op, v)? {
            Bound::Mem(mem) => Ok(mem),
            Bound::Value(_) | Bound::Place(_) | Bound::Expr(..) => Err(op.error(format_args!("%{} is no memory", v.name))),
        }
    }
    fn place(&self, op: &TextOp, v: &TextValue) -> Parsed<VarId> {
        match self.bound(op, v)? {
            Bound::Place(var) => Ok(var),
            Bound::Mem(_) | Bound::Value(_) | Bound::Expr(..) => {
                Err(op.error(format_args!("%{} is no mutable variable", v.name)))
            }
        }
    }
    /// The expression and its depth; its name is gone then.
    fn expr(&mut self, op: &TextOp, v: &TextValue) -> Parsed<(Expr, usize)> {
        match self.names.get(&v.name) {
            Some(Bound::Value(var)) => Ok((Expr::Var(*var), 0)),
            Some(Bound::Expr(..)) => match self.names.remove(&v.name) {
                Some(Bound::Expr(e, depth)) => Ok((e, depth)),
                _ => Err(op.error(format_args!("%{} is not defined", v.name))),
            },
            Some(Bound::Mem(_) | Bound::Place(_)) => Err(op.error(format_args!("%{} is no value", v.name))),
            None => Err(op.error(format_args!("%{} is not defined, or is used twice", v.name))),
        }
    }
    fn value(&mut self, op: &TextOp, v: &TextValue) -> Parsed<Expr> {
        Ok(self.expr(op, v)?.0)
    }

    fn stmts(&mut self, parent: &TextOp, block: &Block) -> Parsed<Vec<Stmt>> {
        let Some((last, ops)) = block.ops.split_last().filter(|(last, _)| last.name == YIELD) else {
            return Err(parent.error(format_args!("a region that does not end in {YIELD}")));
        };
        if !last.operands.is_empty() {
            return Err(last.error("operands where nothing is given back"));
        }
        let mut stmts = Vec::new();
        for op in ops {
            if !self.define(op)? {
                stmts.push(self.stmt(op)?);
            }
        }
        Ok(stmts)
    }
    fn body(&mut self, op: &TextOp, i: usize, count: usize) -> Parsed<Vec<Stmt>> {
        let block = single_block(op, i, count)?;
        if !block.args.is_empty() {
            return Err(op.error("arguments of a region that takes none"));
        }
        self.stmts(op, block)
    }
    /// Declares the result of `tile.let` or `tile.var`.
    fn variable(&mut self, op: &TextOp) -> Parsed<(VarId, Expr)> {
        let [value] = operands(op)?;
        let value = self.value(op, value)?;
        let [result] = &op.results[..] else { return Err(op.error("expected one result")) };
        let id = op.get_int("id")?;
        let (var, bound) = match &result.ty {
            Type::Dialect { name, params } if name == "tile.place" && op.name == "tile.var" => {
                let [Attr::Type(ty)] = &params[..] else { return Err(op.error(format_args!("{} is no variable", result.ty))) };
                let var = self.declared(op, id, ty)?;
                (var, Bound::Place(var))
            }
            ty if op.name == "tile.let" => {
                let var = self.declared(op, id, ty)?;
                (var, Bound::Value(var))
            }
            ty => return Err(op.error(format_args!("{ty} is no variable"))),
        };
        self.names.insert(result.name.clone(), bound);
        Ok((var, value))
    }
    fn stmt(&mut self, op: &TextOp) -> Parsed<Stmt> {
        Ok(match op.name.as_str() {
            "tile.let" => {
                let (var, value) = self.variable(op)?;
                Stmt::Let(var, value)
            }
            "tile.var" => {
                let (var, value) = self.variable(op)?;
                Stmt::Var(var, value)
            }
            "tile.assign" => {
                let [var, value] = operands(op)?;
                Stmt::Assign(self.place(op, var)?, self.value(op, value)?)
            }
            "tile.accumulate" => {
                let [var, value] = operands(op)?;
                let f = ReduceFn::ALL.into_iter().find(|f| Ok(f.name()) == op.get_str("fn"));
                let f = f.ok_or_else(|| op.error("no such 'fn'"))?;
                Stmt::Accumulate(self.place(op, var)?, f, self.value(op, value)?)
            }
            "tile.store" => {
                let [mem, index, value] = operands(op)?;
                Stmt::Store { mem: self.mem(op, mem)?, index: self.value(op, index)?, value: self.value(op, value)? }
            }
            "tile.for" => {
                let [lo, hi] = operands(op)?;
                let (lo, hi) = (self.value(op, lo)?, self.value(op, hi)?);
                let kind = LoopKind::ALL.into_iter().find(|k| Ok(k.name()) == op.get_str("kind"));
                let kind = kind.ok_or_else(|| op.error("no such 'kind'"))?;
                let block = single_block(op, 0, 1)?;
                let [arg] = &block.args[..] else { return Err(op.error("expected one argument of the region")) };
                let var = self.declared(op, op.get_int("id")?, &arg.ty)?;
                self.names.insert(arg.name.clone(), Bound::Value(var));
                Stmt::For { var, lo, hi, kind, body: self.stmts(op, block)? }
            }
            "tile.while" => {
                let first = single_block(op, 0, 2)?;
                let Some((last, ops)) = first.ops.split_last().filter(|(last, _)| last.name == YIELD) else {
                    return Err(op.error(format_args!("a condition that does not end in {YIELD}")));
                };
                for inner in ops {
                    if !self.define(inner)? {
                        return Err(inner.error("a statement in a condition"));
                    }
                }
                let [cond] = operands(last)?;
                Stmt::While { cond: self.value(last, cond)?, body: self.body(op, 1, 2)? }
            }
            "tile.if" => {
                let [cond] = operands(op)?;
                let cond = self.value(op, cond)?;
                Stmt::If { cond, then: self.body(op, 0, 2)?, otherwise: self.body(op, 1, 2)? }
            }
            "tile.dot" | "tile.dot_rows" => {
                let (counted, operands) = match op.operands.split_last().filter(|_| op.name == "tile.dot_rows") {
                    None => (None, &op.operands[..]),
                    Some((counted, rest)) => (Some(self.value(op, counted)?), rest),
                };
                let [a, b, c, numbers @ ..] = operands else { return Err(op.error("expected three memories")) };
                let [a, b, c] = [self.mem(op, a)?, self.mem(op, b)?, self.mem(op, c)?];
                let numbers = numbers.iter().map(|v| self.value(op, v)).collect::<Parsed<Vec<Expr>>>()?;
                let numbers: [Expr; 12] = numbers.try_into().map_err(|_| op.error("expected 12 numbers"))?;
                let [m, n, k, a0, ar, ac, b0, br, bc, c0, cr, cc] = numbers;
                let tile = |mem, base, row, col| TileRef { mem, base, row, col };
                let (a, b, c) = (tile(a, a0, ar, ac), tile(b, b0, br, bc), tile(c, c0, cr, cc));
                Stmt::Dot(Dot { m, n, k, a, b, c, accumulate: op.get_bool("accumulate")?, counted })
            }
            "tile.copy" | "tile.copy_paired" | "tile.copy_rows" | "tile.copy_runs" | "tile.copy_rows_of_runs" => {
                let [from, to, numbers @ ..] = &op.operands[..] else { return Err(op.error("expected two memories")) };
                let (from, to) = (self.mem(op, from)?, self.mem(op, to)?);
                let (index, numbers) = match numbers.split_first().filter(|_| op.name.starts_with("tile.copy_rows")) {
                    None => (None, numbers),
                    Some((index, numbers)) => match self.mem(op, index)? {
                        Mem::Buffer(i) => (Some(i), numbers),
                        Mem::Scratch(_) => return Err(op.error("expected a buffer of indices")),
                    },
                };
                let (paired, numbers) = match numbers.split_first().filter(|_| op.name == "tile.copy_paired") {
                    None => (None, numbers),
                    Some((paired, numbers)) => (Some(self.value(op, paired)?), numbers),
                };
                let numbers = numbers.iter().map(|v| self.value(op, v)).collect::<Parsed<Vec<Expr>>>()?;
                let (axes, []) = numbers.as_chunks::<3>() else { return Err(op.error("expected three numbers an axis")) };
                let axis =
                    |[extent, stride, at]: &[Expr; 3]| Axis { extent: extent.clone(), stride: stride.clone(), at: at.clone() };
                let axes = axes.iter().map(axis).collect();
                let (rows, cols) = (op.get_int("rows")?, op.get_int("cols")?);
                let run = if op.name.ends_with("runs") { op.get_int("run")? } else { rows };
                Stmt::Copy(Copy { from, to, rows, cols, run, axes, index, paired })
            }
            _ => return Err(op.error("no such op in a tile program")),
        })
    }

    /// Binds the result of an op that is a node of an expression; false if it is a statement.
    fn define(&mut self, op: &TextOp) -> Parsed<bool> {
        let mut depth = 0;
        let e = match op.name.as_str() {
            "tile.const" => {
                let [result] = &op.results[..] else { return Err(op.error("expected one result")) };
                Expr::Const(Scalar::new(op.get_float("value")?), scalar(op, &result.ty)?)
            }
            "tile.dim" => {
                let index = op.get_index("index")?;
                if index >= self.kernel.dims.len() {
                    return Err(op.error(format_args!("no dim {index}")));
                }
                Expr::Dim(index)
            }
            "tile.get" => {
                let [place] = operands(op)?;
                Expr::Var(self.place(op, place)?)
            }
            "tile.load" => {
                let [mem, index] = operands(op)?;
                let mem = self.mem(op, mem)?;
                let (index, d) = self.expr(op, index)?;
                depth = d;
                Expr::load(mem, index)
            }
            "tile.map" | "tile.select" => {
                let name = if op.name == "tile.map" { op.get_str("fn")? } else { "select" };
                let f = MapFn::from_name(name).filter(|f| f.arity() == op.operands.len());
                let f = f.filter(|f| (*f == MapFn::Select) == (op.name == "tile.select"));
                let f = f.ok_or_else(|| op.error(format_args!("no function '{name}' of {} operands", op.operands.len())))?;
                let mut args = Vec::new();
                for v in &op.operands {
                    let (e, d) = self.expr(op, v)?;
                    depth = depth.max(d);
                    args.push(e);
                }
                Expr::Map(f, args)
            }
            "tile.cast" => {
                let [x] = operands(op)?;
                let (x, d) = self.expr(op, x)?;
                depth = d;
                let Some(Attr::Type(to)) = op.attr("to") else { return Err(op.error("no type 'to'")) };
                x.cast(scalar(op, to)?)
            }
            "tile.order" => {
                let [x] = operands(op)?;
                let (x, d) = self.expr(op, x)?;
                depth = d;
                x.order()
            }
            _ => return Ok(false),
        };
        let [result] = &op.results[..] else { return Err(op.error("expected one result")) };
        let dtype = self.kernel.expr_dtype(&e);
        if scalar(op, &result.ty)? != dtype {
            return Err(op.error(format_args!("the result is {}, not {}", dtype.mlir(), result.ty)));
        }
        if depth >= MAX_EXPR_DEPTH {
            return Err(op.error("an expression nested too deep"));
        }
        self.names.insert(result.name.clone(), Bound::Expr(e, depth + 1));
        Ok(true)
    }
}
