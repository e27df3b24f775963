//! Sums of rows: reductions over leading axes, and parts of reductions of many elements to few.
//!
//! Memory map: a block owns some columns and keeps their sums in scratch, or each lane those of its own, of rows that it loads several of at once. Parts are a first
//! axis of the target; a part has neighbouring indices of the summed axes, those that lie as one counted as one.

use super::{Fused, Fuser, Loop, Scene, Scope, combine, neutral};
use crate::{
    group::is_unrolled,
    ir::{Access, Expr, LoopKind, Stmt, VarId, compute_dtype},
    view::StridedView,
};
use base::{DType, Dim};
use graph::{Func, Op, Value, op::ReduceFn};

/// Columns of a block of a reduction over leading axes.
const COLUMN_ELEMS: i64 = 256;
/// The same where each lane has its own, several that lie side by side.
const OWN_COLUMN_ELEMS: i64 = 2048;
/// A reduction of fewer terms is not taken in parts.
const LARGE_REDUCTION: i64 = 4096;
/// The same of one of several rows of weights, each of which a warp reduces, and the terms of a part.
const LARGE_ROW: i64 = 65_536;
const ROW_PART: i64 = 8192;
/// Blocks that the parts of a reduction of everything should have together, about two for each processor of a large GPU.
const MAX_PARTS: i64 = 256;
/// The same of a reduction over leading axes, whose blocks are small.
const MAX_COLUMN_BLOCKS: i64 = 512;
/// Rows of a reduction over leading axes that a lane takes at once, at most, and their loads, each of several columns, which are under way together: a sum of
/// rows that are gathered in eights took 468 µs with eight rows, 365 with one.
const ROWS_AT_ONCE: i64 = 4;
const LOADS_AT_ONCE: i64 = 16;
/// Fewer columns than that are one with those of the axis before: fewer lanes would be busy.
const FEW_COLUMNS: i64 = 32;
/// Parts of a reduction over leading axes, at most: each is read again.
const MAX_COLUMN_PARTS: i64 = 512;

/// The kernel that computes `parts` parts of a reduction into `target`, whose first axis they are, in the accumulator's dtype. Reducing that
/// axis gives the whole. Parts of results that keep the last axis are sums of rows, others are of the first axes that are reduced or of the only one.
pub fn fuse_parts(scene: &Scene, v: Value, target: &StridedView, parts: i64) -> Fused {
    let mut f = Fuser::new(scene, v, target);
    let Op::Reduce(r, axes) = &scene.func.def(v).op else { base::bug!("a part of no reduction") };
    if keeps_last(scene.func, v) {
        let by_column = !f.reduces_inline(v);
        f.column_sums(v, *r, axes, Some(parts), false, by_column);
    } else {
        f.total_parts(v, *r, axes, parts);
    }
    f.finish()
}

/// Into how many parts a reduction of many elements to few should be taken, if the whole would leave most of a large device idle. Those of the rows of weights depend on a row's
/// length alone: a stage with other layers has the same sums.
pub fn num_parts(func: &Func, v: Value) -> Option<i64> {
    let Op::Reduce(_, axes) = &func.def(v).op else { return None };
    let (operand, ty) = (func.ty(func.def(v).inputs[0]), func.ty(v));
    let terms = axes.iter().map(|a| operand.shape[*a].known()).product::<Option<i64>>();
    if is_unrolled(&func.def(v).op, operand) || terms.is_some_and(|n| n < LARGE_REDUCTION) {
        return None;
    }
    if ty.rank() > 0 && ty.elems().known().is_some() && !keeps_last(func, v) && terms.is_some() {
        let parts = |n: i64| ((n / ROW_PART) as u64).next_power_of_two() as i64;
        return terms.filter(|n| *n >= LARGE_ROW).map(|n| parts(n).min(MAX_PARTS));
    }
    if ty.elems().is(1) {
        return Some(MAX_PARTS);
    }
    let columns = Some(columns_of(func, v, OWN_COLUMN_ELEMS)).filter(|_| keeps_last(func, v))?.1.known()?;
    let blocks = |width: i64| Some(ty.elems().known()? / columns.max(1) * ((columns + width - 1) / width));
    // Enough of them fill the device as they are.
    let few = blocks(COLUMN_ELEMS)? < MAX_PARTS;
    let parts = (MAX_COLUMN_BLOCKS / blocks(OWN_COLUMN_ELEMS)?.max(1)) as u64;
    few.then(|| (parts.next_power_of_two() as i64).min(MAX_COLUMN_PARTS))
}

/// Whether there are as many parts as a warp has lanes, or more.
pub(super) fn has_many_parts(func: &Func, v: Value) -> bool {
    func.ty(func.def(v).inputs[0]).shape[0].known().is_some_and(|n| n >= 32)
}

/// Whether a reduction keeps the last axis, so that it sums rows.
pub(super) fn keeps_last(func: &Func, v: Value) -> bool {
    let Op::Reduce(_, axes) = &func.def(v).op else { return false };
    let operand = func.ty(func.def(v).inputs[0]);
    axes.last().is_none_or(|a| *a + 1 != operand.rank()) && !is_unrolled(&func.def(v).op, operand)
}

/// The columns of a reduction over leading axes: its last axis, with those before that are kept as well and lie beside it until they are enough. The first of these axes, and their number.
fn columns_of(func: &Func, v: Value, enough: i64) -> (usize, Dim) {
    let Op::Reduce(_, axes) = &func.def(v).op else { base::bug!("columns of no reduction") };
    let (shape, operand) = (&func.ty(v).shape, func.ty(func.def(v).inputs[0]).rank());
    let together = axes.last().map_or(operand, |a| operand - 1 - a);
    let mut first = shape.len() - 1;
    let mut columns = shape[first].clone();
    while shape.len() - first < together && columns.known().is_some_and(|n| n < enough) && shape[first - 1].known().is_some() {
        first -= 1;
        columns = columns * shape[first].clone();
    }
    (first, columns)
}

/// What a reduction over leading axes sums: the rows of a part, if it is one, and the index at hand.
struct Whole<'a> {
    operand: Value,
    axes: &'a [(usize, Dim)],
    part: Option<(Expr, i64)>,
    f: ReduceFn,
    sum: DType,
    inner: Vec<Expr>,
}

impl Fuser<'_> {
    /// Sums over leading axes: a block owns some columns and keeps their sums in scratch, or each lane its own.
    pub(super) fn column_sums(&mut self, v: Value, f: ReduceFn, axes: &[usize], parts: Option<i64>, add: bool, by_column: bool) {
        let func = self.scene.func;
        let ty = func.ty(v).clone();
        let operand = func.def(v).inputs[0];
        let shape = func.ty(operand).shape.clone();
        let sum = compute_dtype(ty.dtype.accumulator());
        let kept: Vec<usize> = (0..shape.len()).filter(|a| !axes.contains(a)).collect();
        let (mut near, mut last) = columns_of(func, v, OWN_COLUMN_ELEMS);
        let as_one = self.columns_lie_as_one(operand, &kept[near..]);
        if !as_one {
            (near, last) = columns_of(func, v, FEW_COLUMNS);
        }
        let most = if by_column { OWN_COLUMN_ELEMS } else { COLUMN_ELEMS };
        let width = last.known().map_or(most, |n| n.clamp(1, most));
        let chunks = last.ceil_div(&Dim::from(width));
        let outer: Dim = ty.shape[..near].iter().fold(Dim::from(1), |n, d| n * d.clone());
        self.kernel.grid = outer * chunks.clone() * Dim::from(parts.unwrap_or(1));
        let mut idx = vec![Expr::int(0); ty.rank()];
        let mut rest = self.kernel.block();
        let n = self.kernel.dim(&chunks);
        let whole = last.is(width);
        let first = if whole { Expr::int(0) } else { self.bind(Expr::rem(rest.clone(), n.clone()) * Expr::int(width)) };
        rest = if whole { rest } else { self.bind(Expr::floor_div(rest, n)) };
        for a in (0..near).rev() {
            let extent = self.kernel.dim(&ty.shape[a]);
            idx[a] = self.bind(Expr::rem(rest.clone(), extent.clone()));
            rest = self.bind(Expr::floor_div(rest, extent));
        }
        let part = rest;
        let end = self.kernel.dim(&last);
        let count = if whole { end } else { self.bind(Expr::minimum(end - first.clone(), Expr::int(width))) };
        let mut inner = vec![Expr::int(0); shape.len()];
        for (a, i) in kept.iter().zip(&idx) {
            inner[*a] = i.clone();
        }
        // The index of each axis of the columns, in the result and in the operand.
        let own = if as_one {
            vec![(ty.rank() - 1, last.clone())]
        } else {
            (near..ty.rank()).map(|a| (a, ty.shape[a].clone())).collect()
        };
        let columns: Vec<(usize, Dim)> = own.iter().map(|(a, extent)| (kept[*a], extent.clone())).collect();
        let axes = &self.merged(operand, axes, &shape);
        let mut whole = Whole { operand, axes, part: parts.map(|n| (part.clone(), n)), f, sum, inner };
        let (j, value) = if by_column {
            // Each lane has a column: it goes over the rows and stores what it has.
            let j = self.open_columns();
            let acc = self.new_var(sum, 1);
            self.scopes[1].stmts.push(Stmt::Var(acc, neutral(f, sum)));
            self.split_row(first.clone() + Expr::Var(j), &columns, &mut whole.inner);
            self.sum_rows(&mut whole, acc);
            (j, Expr::Var(acc))
        } else {
            // For each row, the lanes add it to the sums.
            let sums = self.kernel.scratch("sums", sum, width as usize);
            let j = self.new_var(DType::I64, 1);
            let zero = vec![Stmt::Store { mem: sums, index: Expr::Var(j), value: neutral(f, sum) }];
            let all = Stmt::For { var: j, lo: Expr::int(0), hi: count.clone(), kind: LoopKind::Vector, body: zero };
            self.scopes[0].stmts.push(all);
            let mut loops = self.open_rows(&mut whole);
            let j = self.new_var(DType::I64, self.scopes.len());
            loops.push((j, Expr::int(0), count.clone(), LoopKind::Vector));
            self.scopes.push(Scope::default());
            self.split_row(first.clone() + Expr::Var(j), &columns, &mut whole.inner);
            let value = self.summed(&whole, Expr::load(sums, Expr::Var(j)));
            let stmts = &mut self.scopes.last_mut().expect("the column loop").stmts;
            stmts.push(Stmt::Store { mem: sums, index: Expr::Var(j), value });
            self.close_loops(loops);
            let j = self.open_columns();
            (j, Expr::load(sums, Expr::Var(j)))
        };
        self.split_row(first + Expr::Var(j), &own, &mut idx);
        if parts.is_some() {
            idx.insert(0, part);
        }
        let target = self.target.clone();
        let index = self.address(&target, &idx);
        self.written = vec![(target.at.clone(), index.clone())];
        let root = func.ty(self.root).dtype;
        let stored = if parts.is_some() { ty.dtype.accumulator() } else { root };
        let result = compute_dtype(if parts.is_some() { stored } else { ty.dtype });
        let mut value = if result == sum { value } else { value.cast(result) };
        // What joins parts may be rounded more than once.
        let casts: Vec<DType> = self.casts(self.root).take_while(|x| *x != v).map(|x| func.ty(x).dtype).collect();
        value = casts.into_iter().rev().fold(value, Expr::cast);
        let mem = self.buffer(&target, stored, Access::Write);
        if add {
            value = self.load(&target, root, &idx) + value;
        }
        self.scopes[1].stmts.push(Stmt::Store { mem, index, value });
        self.close_loops(vec![(j, Expr::int(0), count, LoopKind::Vector)]);
    }
    /// The scope of a loop over columns.
    fn open_columns(&mut self) -> VarId {
        let j = self.new_var(DType::I64, 1);
        self.scopes.push(Scope::default());
        j
    }
    /// Loops over the indices that are summed.
    fn open_rows(&mut self, w: &mut Whole) -> Vec<Loop> {
        if let Some((part, parts)) = w.part.clone() {
            return vec![self.part_rows(part, parts, w.axes, &mut w.inner)];
        }
        let mut of = |f: &mut Self, (a, extent): &(usize, Dim)| {
            let var = f.new_var(DType::I64, f.scopes.len());
            w.inner[*a] = Expr::Var(var);
            f.scopes.push(Scope::default());
            (var, Expr::int(0), f.kernel.dim(extent), LoopKind::Serial)
        };
        w.axes.iter().map(|a| of(self, a)).collect()
    }
    /// Adds the rows to a variable in order, some at a time, so that their loads are under way together.
    fn sum_rows(&mut self, w: &mut Whole, acc: VarId) {
        let [lo, hi] = match w.part.clone() {
            Some((part, parts)) => self.part_bounds(part, parts, w.axes),
            None => [Expr::int(0), self.kernel.dim(&w.axes.iter().fold(Dim::from(1), |n, (_, extent)| n * extent.clone()))],
        };
        // What one row loads says how many are taken at once.
        let rest = self.new_var(DType::I64, self.scopes.len());
        let row_by_row = self.some_rows(w, acc, Expr::Var(rest), 1);
        let loads: i64 = row_by_row.iter().map(num_loads).sum();
        let at_once = 1 << (LOADS_AT_ONCE / loads.max(1)).clamp(1, ROWS_AT_ONCE).ilog2();
        let mut first = lo.clone();
        if at_once > 1 {
            let count = Expr::maximum(hi.clone() - lo.clone(), Expr::int(0));
            let groups = self.bind(Expr::floor_div(count, Expr::int(at_once)));
            first = self.bind(lo.clone() + groups.clone() * Expr::int(at_once));
            let var = self.new_var(DType::I64, self.scopes.len());
            let body = self.some_rows(w, acc, lo + Expr::Var(var) * Expr::int(at_once), at_once);
            let all = Stmt::For { var, lo: Expr::int(0), hi: groups, kind: LoopKind::Serial, body };
            self.scopes.last_mut().expect("the column's scope").stmts.push(all);
        }
        let rows = Stmt::For { var: rest, lo: first, hi, kind: LoopKind::Serial, body: row_by_row };
        self.scopes.last_mut().expect("the column's scope").stmts.push(rows);
    }
    /// The body of a loop that adds some rows from one on, all of them loaded before.
    fn some_rows(&mut self, w: &mut Whole, acc: VarId, first: Expr, rows: i64) -> Vec<Stmt> {
        self.scopes.push(Scope::default());
        let start = self.bind(first);
        let mut terms = Vec::new();
        for i in 0..rows {
            let row = self.bind(start.clone() + Expr::int(i));
            self.split_row(row, w.axes, &mut w.inner);
            terms.push(self.term(w));
        }
        let mut stmts = self.scopes.pop().expect("pushed above").stmts;
        stmts.extend(terms.into_iter().map(|term| Stmt::Assign(acc, Expr::Map(combine(w.f), vec![Expr::Var(acc), term]))));
        stmts
    }
    fn term(&mut self, w: &Whole) -> Expr {
        let term = self.eval(w.operand, &w.inner);
        if self.kernel.expr_dtype(&term) == w.sum { term } else { term.cast(w.sum) }
    }
    /// A sum so far with the term at hand.
    fn summed(&mut self, w: &Whole, so_far: Expr) -> Expr {
        let term = self.term(w);
        Expr::Map(combine(w.f), vec![so_far, term])
    }
    /// Whether something that is computed on the way is a reduction itself.
    pub(super) fn reduces_inline(&self, v: Value) -> bool {
        let (func, mut found) = (self.scene.func, false);
        self.visit_inline(v, &mut |x| {
            let node = func.def(x);
            let loops = matches!(node.op, Op::Reduce(..)) && !is_unrolled(&node.op, func.ty(node.inputs[0]));
            found |= x != v && loops;
        });
        found
    }

    /// Whether it reads a reduction that there is one of for several of its elements: a piece of a row would find that of the whole row.
    pub(super) fn reduces_rows(&self, v: Value) -> bool {
        let (func, mut found) = (self.scene.func, false);
        self.visit_inline(v, &mut |x| {
            let node = func.def(x);
            let loops = matches!(node.op, Op::Reduce(..)) && !is_unrolled(&node.op, func.ty(node.inputs[0]));
            found |= loops && func.ty(x).elems() != func.ty(v).elems();
        });
        found
    }

    /// Which axes of what is summed do not lie as one with the axis before, somewhere where it is read.
    fn breaks_of(&self, operand: Value) -> Vec<bool> {
        let shape = &self.scene.func.ty(operand).shape;
        let mut breaks = vec![false; shape.len()];
        let exact: Vec<Option<usize>> = (0..shape.len()).map(Some).collect();
        self.find_breaks(operand, &exact, shape, &mut breaks, &mut Vec::new());
        breaks
    }
    /// Whether kept axes, neighbours, lie as one wherever the operand is read and where the result goes.
    fn columns_lie_as_one(&self, operand: Value, kept: &[usize]) -> bool {
        let shape = &self.scene.func.ty(operand).shape;
        let mut breaks = self.breaks_of(operand);
        let to: Vec<usize> = (self.target.shape.len() - kept.len()..self.target.shape.len()).collect();
        let mut map = vec![None; self.target.shape.len()];
        to.iter().zip(kept).for_each(|(t, a)| map[*t] = Some(*a));
        super::check_merge(&self.target, &map, shape, &mut breaks);
        kept[1..].iter().all(|a| !breaks[*a])
    }

    /// Summed axes, those as one that lie as one wherever the operand is read: the last of each, and the extent of all.
    fn merged(&self, operand: Value, axes: &[usize], shape: &[Dim]) -> Vec<(usize, Dim)> {
        let breaks = self.breaks_of(operand);
        let mut all: Vec<(usize, Dim)> = Vec::new();
        for a in axes {
            match all.last_mut() {
                Some((last, extent)) if *last + 1 == *a && !breaks[*a] => {
                    *extent = extent.clone() * shape[*a].clone();
                    *last = *a;
                }
                _ => all.push((*a, shape[*a].clone())),
            }
        }
        all
    }
    /// A loop over the block's part of the indices of `axes`, and the index of each in `inner`.
    fn part_rows(&mut self, part: Expr, parts: i64, axes: &[(usize, Dim)], inner: &mut [Expr]) -> Loop {
        let [lo, hi] = self.part_bounds(part, parts, axes);
        let var = self.new_var(DType::I64, self.scopes.len());
        self.scopes.push(Scope::default());
        self.split_row(Expr::Var(var), axes, inner);
        (var, lo, hi, LoopKind::Serial)
    }
    /// The first and one past the last of the block's part of the indices of `axes`.
    fn part_bounds(&mut self, part: Expr, parts: i64, axes: &[(usize, Dim)]) -> [Expr; 2] {
        let total = axes.iter().fold(Dim::from(1), |n, (_, extent)| n * extent.clone());
        let (per_part, count) = (self.kernel.dim(&total.ceil_div(&Dim::from(parts))), self.kernel.dim(&total));
        let lo = self.bind(part * per_part.clone());
        let hi = self.bind(Expr::minimum(lo.clone() + per_part, count));
        [lo, hi]
    }
    /// The index of each axis, of a number among all of their indices.
    fn split_row(&mut self, number: Expr, axes: &[(usize, Dim)], inner: &mut [Expr]) {
        let mut rest = number;
        for (k, (a, extent)) in axes.iter().enumerate().rev() {
            if k == 0 {
                inner[*a] = rest.clone();
            } else {
                let extent = self.kernel.dim(extent);
                inner[*a] = self.bind(Expr::rem(rest.clone(), extent.clone()));
                rest = self.bind(Expr::floor_div(rest, extent));
            }
        }
    }

    /// Parts of a reduction over all axes that have more than one element, or over the last ones: a block has some of the indices of all but the last of them, or of
    /// the only one, and of one row if there are several.
    pub(super) fn total_parts(&mut self, v: Value, f: ReduceFn, axes: &[usize], parts: i64) {
        let func = self.scene.func;
        let (ty, operand) = (func.ty(v).clone(), func.def(v).inputs[0]);
        let shape = func.ty(operand).shape.clone();
        let sum = compute_dtype(ty.dtype.accumulator());
        self.kernel.grid = ty.shape.iter().fold(Dim::from(parts), |n, d| n * d.clone());
        let (mut part, mut idx) = (self.kernel.block(), vec![Expr::int(0); ty.rank()]);
        if ty.elems().known().is_none_or(|n| n > 1) {
            let mut rest = self.bind(Expr::floor_div(part.clone(), Expr::int(parts)));
            part = self.bind(Expr::rem(part, Expr::int(parts)));
            for a in (0..ty.rank()).rev().filter(|a| !ty.shape[*a].is(1)) {
                let extent = self.kernel.dim(&ty.shape[a]);
                idx[a] = self.bind(Expr::rem(rest.clone(), extent.clone()));
                rest = self.bind(Expr::floor_div(rest, extent));
            }
        }
        let acc = self.new_var(sum, 0);
        self.scopes[0].stmts.push(Stmt::Var(acc, neutral(f, sum)));
        let real: Vec<usize> = axes.iter().copied().filter(|a| !shape[*a].is(1)).collect();
        let mut inner = vec![Expr::int(0); shape.len()];
        let kept = (0..shape.len()).filter(|a| !axes.contains(a));
        kept.zip(&idx).for_each(|(a, i)| inner[a] = i.clone());
        let (last, outer) = real.split_last().expect("a reduction of many elements has an axis");
        let mut loops = Vec::new();
        if outer.is_empty() {
            let (var, lo, hi, _) = self.part_rows(part.clone(), parts, &[(*last, shape[*last].clone())], &mut inner);
            loops.push((var, lo, hi, LoopKind::Vector));
        } else {
            let outer = self.merged(operand, outer, &shape);
            loops.push(self.part_rows(part.clone(), parts, &outer, &mut inner));
            let var = self.new_var(DType::I64, 2);
            self.scopes.push(Scope::default());
            inner[*last] = Expr::Var(var);
            loops.push((var, Expr::int(0), self.kernel.dim(&shape[*last]), LoopKind::Vector));
        }
        let term = self.eval(operand, &inner);
        let term = if self.kernel.expr_dtype(&term) == sum { term } else { term.cast(sum) };
        self.scopes.last_mut().expect("a loop").stmts.push(Stmt::Accumulate(acc, f, term));
        self.close_loops(loops);
        idx.insert(0, part);
        let target = self.target.clone();
        let index = self.address(&target, &idx);
        let mem = self.buffer(&target, ty.dtype.accumulator(), Access::Write);
        self.scopes[0].stmts.push(Stmt::Store { mem, index, value: Expr::Var(acc) });
    }
}

/// How many elements a statement loads, nested ones once.
fn num_loads(s: &Stmt) -> i64 {
    fn of(e: &Expr) -> i64 {
        match e {
            Expr::Load(_, index) => 1 + of(index),
            Expr::Map(_, args) => args.iter().map(of).sum(),
            Expr::Cast(_, x) | Expr::Order(x) => of(x),
            Expr::Const(..) | Expr::Dim(_) | Expr::Var(_) => 0,
        }
    }
    match s {
        Stmt::Let(_, e) | Stmt::Var(_, e) | Stmt::Assign(_, e) | Stmt::Accumulate(_, _, e) => of(e),
        Stmt::Store { index, value, .. } => of(index) + of(value),
        Stmt::For { body, .. } | Stmt::While { body, .. } => body.iter().map(num_loads).sum(),
        Stmt::If { then, otherwise, .. } => then.iter().chain(otherwise).map(num_loads).sum(),
        Stmt::Dot(_) | Stmt::Copy(_) => 0,
    }
}
