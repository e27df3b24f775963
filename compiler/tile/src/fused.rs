//! Kernels made of inline values: elementwise maps with reductions at the head of their rows, and reductions over leading axes.
//!
//! Memory map: one buffer per distinct view read, the target last or, if it is also read, in its place. A block walks a range of
//! rows (all axes but the innermost); the innermost axis, or the innermost reduced one, is a vector loop. Each value is bound at
//! the outermost loop its index allows, so what a row shares is computed once a row.

mod rows;
mod select;
mod sums;

pub use rows::{Rows, rows as fuse_rows};
pub use select::{
    Joined, Select, candidates, joins, scores_many as fuse_scores_many, select as fuse_select, select_many as fuse_select_many,
    select_parts as fuse_select_parts,
};
pub use sums::{fuse_parts, num_parts};

use crate::{
    group::{Grouping, is_inline, is_unrolled, joins_pairs, reduces_trailing},
    ir::{Access, Expr, Kernel, LoopKind, Mem, Stmt, VarId, compute_dtype},
    view::{StridedView, first_of_slice, reshape_groups},
};
use base::{DType, Dim, Span};
use graph::{
    Func, Op, Value,
    op::{MapFn, ReduceFn, Scalar},
};
use library::View;
use sums::{has_many_parts, keeps_last};

/// Elements a block should handle, about a quarter of a level-2 cache in f32.
const BLOCK_ELEMS: i64 = 16_384;
/// Elements of a piece of a row that may be of any length, for many processors: two for each lane.
const PIECE: i64 = 64;
/// Rows that are too few for a block each, elements of one from which on it is cut into pieces then, and of such a piece.
const FEW_ROWS: i64 = 256;
const LONG_ROW: i64 = 8192;
const LONG_PIECE: i64 = 1024;
/// Elements of a row that is cut if there may be any number of them: fewer are little for a warp, of more a block has a row.
const ANY_ROW: std::ops::RangeInclusive<i64> = 2048..=4096;
/// Pieces of the innermost loop, at most.
const MAX_PIECES: usize = 8;

/// Where values are: what a fused kernel needs to know of the function.
pub struct Scene<'a> {
    /// The function.
    pub func: &'a Func,
    /// Which values are stored.
    pub grouping: &'a Grouping,
    /// The places of arguments and of the roots computed so far, by node and result.
    pub places: &'a [Vec<Option<StridedView>>],
}

impl Scene<'_> {
    /// Where a value lies, itself or as a view of another, if it is in memory.
    pub fn place(&self, v: Value) -> Option<StridedView> {
        let i = v.node.0 as usize;
        if let Some(p) = self.places[i].get(v.index as usize).and_then(Option::as_ref) {
            return Some(p.clone());
        }
        let node = self.func.def(v);
        if self.grouping.root[i] || !crate::group::is_layout(&node.op) {
            return None;
        }
        self.place(node.inputs[0])?.apply(&node.op)
    }
    fn dtype(&self, v: Value) -> DType {
        compute_dtype(self.func.ty(v).dtype)
    }
}

/// A kernel and what it is passed.
#[derive(Clone, Debug)]
pub struct Fused {
    /// The kernel.
    pub kernel: Kernel,
    /// Its buffers.
    pub views: Vec<View>,
    /// Of each target, whether it is also read at other elements than the one written: then it must not share memory with what is read.
    pub target_conflicts: Vec<bool>,
    /// The op that a variable is a value of, where it stands in the sources.
    pub lines: Vec<(VarId, Span)>,
}

/// The kernel that computes root `v` (a fused value or a reduction) into `target`; adds to what is there if `add`.
pub fn fuse(scene: &Scene, v: Value, target: &StridedView, add: bool) -> Fused {
    fuse_root(scene, v, target, add, false)
}

/// The same of a reduction of parts along the first axis for a device of many processors.
pub fn fuse_joined(scene: &Scene, v: Value, target: &StridedView, add: bool) -> Fused {
    fuse_root(scene, v, target, add, true)
}

/// The kernel that computes roots of one shape, or of one for each row of that, each into its target or, if that is said, added to what is there.
pub fn fuse_many(scene: &Scene, targets: &[(Value, StridedView, bool)]) -> Fused {
    if let [(v, target, add)] = targets {
        return fuse(scene, *v, target, *add);
    }
    let axes = |v: Value| scene.func.ty(v).shape.iter().rposition(|d| !d.is(1)).map_or(0, |last| last + 1);
    let most = targets.iter().map(|(v, ..)| axes(*v)).max().unwrap_or_else(|| base::bug!("a kernel computes something"));
    let (whole, heads): (Vec<usize>, Vec<usize>) = (0..targets.len()).partition(|i| axes(targets[*i].0) == most);
    let these = |of: &[usize]| of.iter().map(|i| targets[*i].clone()).collect::<Vec<_>>();
    let (first, target, add) = &targets[whole[0]];
    let mut f = Fuser::new(scene, *first, target);
    (f.others, f.heads) = (these(&whole[1..]), these(&heads));
    f.rows(*first, *add, false);
    let mut fused = f.finish();
    // As they were given.
    let found = std::mem::replace(&mut fused.target_conflicts, vec![false; targets.len()]);
    whole.into_iter().chain(heads).zip(found).for_each(|(i, conflicts)| fused.target_conflicts[i] = conflicts);
    fused
}

fn fuse_root(scene: &Scene, v: Value, target: &StridedView, add: bool, joins: bool) -> Fused {
    let mut f = Fuser::new(scene, v, target);
    let sum = if joins { f.casts(v).last().expect("itself") } else { v };
    match &scene.func.def(sum).op {
        // Many parts are of few columns: each of these is a row of its own.
        Op::Reduce(r, axes) if keeps_last(scene.func, sum) && !(joins && has_many_parts(scene.func, sum)) => {
            f.column_sums(sum, *r, axes, None, add, joins);
        }
        _ => f.rows(v, add, joins),
    }
    f.finish()
}

impl<'a> Fuser<'a> {
    fn new(scene: &'a Scene<'a>, v: Value, target: &StridedView) -> Fuser<'a> {
        Fuser {
            scene,
            kernel: Kernel::new(""),
            views: Vec::new(),
            scopes: vec![Scope::default()],
            var_level: vec![0],
            target: target.clone(),
            written: Vec::new(),
            conflicts: Vec::new(),
            root: v,
            others: Vec::new(),
            heads: Vec::new(),
            piece: None,
            tiles: Vec::new(),
            given: None,
            at: None,
            lines: Vec::new(),
        }
    }
    fn finish(mut self) -> Fused {
        self.conflicts.resize(1 + self.others.len() + self.heads.len(), false);
        self.kernel.body = self.scopes.pop().expect("the outermost scope").stmts;
        Fused { kernel: self.kernel, views: self.views, target_conflicts: self.conflicts, lines: self.lines }
    }
}

/// A loop to be closed: its variable, first, end and kind.
type Loop = (VarId, Expr, Expr, LoopKind);

#[derive(Default)]
struct Scope {
    stmts: Vec<Stmt>,
    memo: Vec<(Value, Vec<Expr>, Expr)>,
}

struct Fuser<'a> {
    scene: &'a Scene<'a>,
    kernel: Kernel,
    views: Vec<View>,
    scopes: Vec<Scope>,
    var_level: Vec<usize>,
    target: StridedView,
    /// Where an element goes, of each target.
    written: Vec<(View, Expr)>,
    /// Of each target, as [`Fused::target_conflicts`]; of those that are not there yet, none.
    conflicts: Vec<bool>,
    root: Value,
    /// What is computed besides, where it goes, and whether it is added to what is there.
    others: Vec<(Value, StridedView, bool)>,
    /// The same of what there is one of for each row.
    heads: Vec<(Value, StridedView, bool)>,
    /// The variable of the innermost loop, its turns, and how far apart these are, where that is a piece of its axis.
    piece: Option<(VarId, i64, i64)>,
    /// Values in scratch.
    tiles: Vec<select::Tile>,
    /// A truth value that is the same everywhere, where that is known.
    given: Option<(Value, bool)>,
    /// Where the op at hand stands in the sources, and as [`Fused::lines`].
    at: Option<Span>,
    lines: Vec<(VarId, Span)>,
}

impl Fuser<'_> {
    fn new_var(&mut self, dtype: DType, level: usize) -> VarId {
        let v = self.kernel.var(dtype);
        self.var_level.push(level);
        v
    }
    /// The scope an expression belongs to: the innermost loop whose variables it names.
    fn level(&self, e: &Expr) -> usize {
        match e {
            Expr::Const(..) | Expr::Dim(_) => 0,
            Expr::Var(v) => self.var_level[v.0 as usize],
            Expr::Load(_, i) | Expr::Cast(_, i) | Expr::Order(i) => self.level(i),
            Expr::Map(_, args) => args.iter().map(|a| self.level(a)).max().unwrap_or(0),
        }
    }
    fn bind(&mut self, e: Expr) -> Expr {
        if matches!(e, Expr::Const(..) | Expr::Dim(_) | Expr::Var(_)) {
            return e;
        }
        let level = self.level(&e);
        let var = self.new_var(self.kernel.expr_dtype(&e), level);
        self.scopes[level].stmts.push(Stmt::Let(var, e));
        self.lines.extend(self.at.map(|at| (var, at)));
        Expr::Var(var)
    }
    fn buffer(&mut self, view: &StridedView, dtype: DType, access: Access) -> Mem {
        if let Some(i) = self.views.iter().position(|v| *v == view.at) {
            let b = &mut self.kernel.buffers[i];
            if b.access != access {
                b.access = Access::ReadWrite;
            }
            return Mem::Buffer(i);
        }
        self.views.push(view.at.clone());
        let name = format!("b{}", self.views.len() - 1);
        self.kernel.buffer(&name, dtype, view.span(), access)
    }
    fn address(&mut self, view: &StridedView, idx: &[Expr]) -> Expr {
        let mut sum = Expr::int(0);
        for (i, s) in idx.iter().zip(&view.strides) {
            let s = self.kernel.dim(s);
            sum = sum + i.clone() * s;
        }
        sum
    }
    fn load(&mut self, view: &StridedView, dtype: DType, idx: &[Expr]) -> Expr {
        let index = self.address(view, idx);
        let same = self.written.iter().any(|(at, i)| *at == view.at && *i == index);
        let elsewhere: Vec<bool> = self.targets().map(|t| t.at.buffer == view.at.buffer && !t.is_apart(view) && !same).collect();
        self.conflicts.resize(elsewhere.len(), false);
        self.conflicts.iter_mut().zip(elsewhere).for_each(|(conflicts, here)| *conflicts |= here);
        let mem = self.buffer(view, dtype, Access::Read);
        self.bind(Expr::load(mem, index))
    }

    /// The value of `v` at an index, bound as far out as it can be.
    fn eval(&mut self, v: Value, idx: &[Expr]) -> Expr {
        // What has no elements is only read in vain.
        if self.scene.func.ty(v).elems().is(0) {
            return Expr::Const(Scalar::new(0.0), self.scene.dtype(v));
        }
        if let Some(e) = self.in_scratch(v, idx) {
            return e;
        }
        if let Some((_, known)) = self.given.filter(|(given, _)| *given == v) {
            return Expr::Const(Scalar::new(f64::from(u8::from(known))), DType::Bool);
        }
        for scope in &self.scopes {
            if let Some((_, _, e)) = scope.memo.iter().find(|(w, i, _)| *w == v && i == idx) {
                return e.clone();
            }
        }
        let e = match self.scene.place(v) {
            Some(view) if v != self.root => self.load(&view, self.scene.func.ty(v).dtype, idx),
            _ => {
                let around = self.at;
                self.at = self.scene.func.def(v).origin.or(around);
                let e = self.compute(v, idx);
                let e = self.bind(e);
                self.at = around;
                e
            }
        };
        let level = idx.iter().chain([&e]).map(|x| self.level(x)).max().unwrap_or(0);
        self.scopes[level].memo.push((v, idx.to_vec(), e.clone()));
        e
    }

    /// What e is raised to; x·y - z in one piece, so that instructions for such are found.
    fn exponent(&mut self, v: Value, idx: &[Expr]) -> Expr {
        let computed = |f: &Fuser, v: Value, wanted: MapFn| match &f.scene.func.def(v).op {
            Op::Map(found) if *found == wanted && f.scene.place(v).is_none() && f.in_scratch(v, idx).is_none() => {
                let inputs = &f.scene.func.def(v).inputs;
                Some([inputs[0], inputs[1]])
            }
            _ => None,
        };
        let Some([product, z]) = computed(self, v, MapFn::Sub) else { return self.eval(v, idx) };
        let Some([x, y]) = computed(self, product, MapFn::Mul) else { return self.eval(v, idx) };
        let [x, y, z] = [x, y, z].map(|v| self.eval(v, idx));
        Expr::map2(MapFn::Sub, Expr::map2(MapFn::Mul, x, y), z)
    }

    fn compute(&mut self, v: Value, idx: &[Expr]) -> Expr {
        let func = self.scene.func;
        let node = func.def(v).clone();
        let dtype = self.scene.dtype(v);
        match &node.op {
            Op::Const(c, of) => constant(*c, *of),
            Op::Extent(d, _) => {
                let d = self.kernel.dim(d);
                if dtype == DType::I64 { d } else { d.cast(dtype) }
            }
            Op::Iota(_) => idx[0].clone().cast(DType::I32),
            Op::Map(MapFn::Exp) => Expr::map1(MapFn::Exp, self.exponent(node.inputs[0], idx)),
            Op::Map(f) => {
                let args = node.inputs.iter().map(|x| self.eval(*x, idx)).collect();
                Expr::Map(*f, args)
            }
            Op::Cast(to) => {
                let e = self.eval(node.inputs[0], idx);
                if func.ty(node.inputs[0]).dtype == *to { e } else { e.cast(*to) }
            }
            Op::StopGradient => self.eval(node.inputs[0], idx),
            Op::Broadcast { axes, .. } => {
                let inner: Vec<Expr> = axes.iter().map(|a| idx[*a].clone()).collect();
                self.eval(node.inputs[0], &inner)
            }
            Op::Transpose(perm) => {
                let mut inner = idx.to_vec();
                for (i, p) in perm.iter().enumerate() {
                    inner[*p] = idx[i].clone();
                }
                self.eval(node.inputs[0], &inner)
            }
            Op::Slice { axis, start, len, step } => {
                let mut inner = idx.to_vec();
                let start = first_of_slice(start, len, &func.ty(node.inputs[0]).shape[*axis]);
                let start = self.kernel.dim(&start);
                inner[*axis] = match start.known() {
                    Some(n) if *step == 1 => plus(&inner[*axis], n),
                    _ => inner[*axis].clone() * Expr::int(*step) + start,
                };
                self.eval(node.inputs[0], &inner)
            }
            Op::Reshape(shape) => {
                let inner = self.reshape_index(&func.ty(node.inputs[0]).shape.clone(), shape, idx);
                self.eval(node.inputs[0], &inner)
            }
            Op::Pad { axis, low, value, .. } => {
                let extent = func.ty(node.inputs[0]).shape[*axis].clone();
                if let (Some([first, end]), Some(low), Some(n)) = (self.in_piece(&idx[*axis]), low.known(), extent.known()) {
                    let mut inner = idx.to_vec();
                    inner[*axis] = plus(&idx[*axis], -low);
                    if end <= low || low + n <= first {
                        return constant(*value, func.ty(v).dtype);
                    } else if low <= first && end <= low + n {
                        return self.eval(node.inputs[0], &inner);
                    }
                }
                let (low, n) = (self.kernel.dim(low), self.kernel.dim(&extent));
                let at = self.bind(idx[*axis].clone() - low);
                let inside = Expr::and(Expr::le(Expr::int(0), at.clone()), Expr::lt(at.clone(), n));
                let inside = self.bind(inside);
                let mut inner = idx.to_vec();
                inner[*axis] = self.bind(Expr::select(inside.clone(), at, Expr::int(0)));
                let x = self.eval(node.inputs[0], &inner);
                Expr::select(inside, x, constant(*value, func.ty(v).dtype))
            }
            Op::Concat(axis) => {
                let mut start = Dim::from(0);
                let mut parts = Vec::new();
                if let Some((part, first)) = self.part_of_piece(&node.inputs, *axis, &idx[*axis]) {
                    let mut inner = idx.to_vec();
                    inner[*axis] = plus(&idx[*axis], -first);
                    return self.eval(part, &inner);
                }
                for x in &node.inputs {
                    let extent = func.ty(*x).shape[*axis].clone();
                    let (s, n) = (self.kernel.dim(&start), self.kernel.dim(&extent));
                    let at = self.bind(idx[*axis].clone() - s);
                    let inside = Expr::and(Expr::le(Expr::int(0), at.clone()), Expr::lt(at.clone(), n));
                    let inside = self.bind(inside);
                    let mut inner = idx.to_vec();
                    inner[*axis] = self.bind(Expr::select(inside.clone(), at, Expr::int(0)));
                    parts.push((inside, self.eval(*x, &inner)));
                    start = start + extent;
                }
                let (_, last) = parts.pop().expect("concat has operands");
                parts.into_iter().rev().fold(last, |rest, (inside, x)| Expr::select(inside, x, rest))
            }
            Op::Gather { batch } => {
                let (x, index) = (node.inputs[0], node.inputs[1]);
                let rank = func.ty(index).rank();
                let extent = func.ty(x).shape[*batch].clone();
                let n = self.kernel.dim(&extent);
                let at = self.eval(index, &idx[..rank]).cast(DType::I64);
                let at = self.bind(at);
                let inside = Expr::and(Expr::le(Expr::int(0), at.clone()), Expr::lt(at.clone(), n));
                let inside = self.bind(inside);
                let safe = self.bind(Expr::select(inside.clone(), at, Expr::int(0)));
                let inner: Vec<Expr> = idx[..*batch].iter().cloned().chain([safe]).chain(idx[rank..].iter().cloned()).collect();
                let value = self.eval(x, &inner);
                Expr::select(inside, value, Expr::Const(Scalar::new(0.0), dtype))
            }
            Op::Reduce(f, axes) => self.reduce(v, *f, axes, idx),
            Op::Arg(_)
            | Op::Contract(_)
            | Op::ScatterAdd { .. }
            | Op::TopK(_)
            | Op::Cumsum { .. }
            | Op::Attend(_)
            | Op::AttendGrad(_)
            | Op::Route { .. }
            | Op::GroupedContract { .. }
            | Op::GroupedOuter
            | Op::Exchange { .. }
            | Op::Quantize(_)
            | Op::Dequantize(_)
            | Op::Repeat(_)
            | Op::Fused(_) => base::bug!("{} has no place and is not fused", node.op.name()),
        }
    }

    fn reshape_index(&mut self, old: &[Dim], new: &[Dim], idx: &[Expr]) -> Vec<Expr> {
        let whole = || vec![(0..old.len(), 0..new.len())];
        let mut inner = vec![Expr::int(0); old.len()];
        for (o, n) in reshape_groups(old, new).unwrap_or_else(whole) {
            let news: Vec<usize> = n.filter(|a| !new[*a].is(1)).collect();
            let olds: Vec<usize> = o.filter(|a| !old[*a].is(1)).collect();
            let mut linear = Expr::int(0);
            for a in &news {
                let extent = self.kernel.dim(&new[*a]);
                linear = linear * extent + idx[*a].clone();
            }
            if let ([outer, two], Some((pair, i))) = (&olds[..], of_pair(&linear))
                && old[*two].is(2)
            {
                (inner[*outer], inner[*two]) = (pair, Expr::int(i));
                continue;
            }
            let mut rest = if news.len() > 1 { self.bind(linear) } else { linear };
            for (k, a) in olds.iter().enumerate().rev() {
                if k == 0 {
                    inner[*a] = rest.clone();
                } else {
                    let extent = self.kernel.dim(&old[*a]);
                    inner[*a] = self.bind(Expr::rem(rest.clone(), extent.clone()));
                    rest = self.bind(Expr::floor_div(rest, extent));
                }
            }
        }
        inner
    }

    fn reduce(&mut self, v: Value, f: ReduceFn, axes: &[usize], idx: &[Expr]) -> Expr {
        let operand = self.scene.func.def(v).inputs[0];
        let shape = self.scene.func.ty(operand).shape.clone();
        let mut inner = vec![Expr::int(0); shape.len()];
        let kept = (0..shape.len()).filter(|a| !axes.contains(a));
        kept.zip(idx).for_each(|(a, i)| inner[a] = i.clone());
        if is_unrolled(&self.scene.func.def(v).op, self.scene.func.ty(operand)) {
            return self.unroll(operand, f, axes, &shape, &mut inner).expect("at least one term");
        }
        let dtype = self.scene.func.ty(v).dtype;
        let sum = compute_dtype(dtype.accumulator());
        let level = idx.iter().map(|i| self.level(i)).max().unwrap_or(0);
        let suspended = self.scopes.split_off(level + 1);
        let acc = self.new_var(sum, level);
        self.scopes[level].stmts.push(Stmt::Var(acc, neutral(f, sum)));
        let mut loops = Vec::new();
        for (k, a) in axes.iter().enumerate() {
            let var = self.new_var(DType::I64, level + 1 + k);
            let hi = self.kernel.dim(&shape[*a]);
            inner[*a] = Expr::Var(var);
            loops.push((var, Expr::int(0), hi, if k + 1 == axes.len() { LoopKind::Vector } else { LoopKind::Serial }));
            self.scopes.push(Scope::default());
        }
        let term = self.eval(operand, &inner);
        let term = if self.kernel.expr_dtype(&term) == sum { term } else { term.cast(sum) };
        self.scopes.last_mut().expect("a loop").stmts.push(Stmt::Accumulate(acc, f, term));
        self.close_loops(loops);
        self.scopes.extend(suspended);
        let result = compute_dtype(dtype);
        if result == sum { Expr::Var(acc) } else { Expr::Var(acc).cast(result) }
    }
    /// Pops a scope per loop and nests them.
    fn close_loops(&mut self, loops: Vec<Loop>) {
        for (var, lo, hi, kind) in loops.into_iter().rev() {
            let body = self.scopes.pop().expect("a scope per loop").stmts;
            let outer = self.scopes.last_mut().expect("loops are inside a scope");
            outer.stmts.push(Stmt::For { var, lo, hi, kind, body });
        }
    }
    fn unroll(&mut self, operand: Value, f: ReduceFn, axes: &[usize], shape: &[Dim], inner: &mut [Expr]) -> Option<Expr> {
        let Some((axis, rest)) = axes.split_first() else { return Some(self.eval(operand, inner)) };
        let mut sum = None;
        for i in 0..shape[*axis].known().expect("unrolled extents are constants") {
            inner[*axis] = Expr::int(i);
            let term = self.unroll(operand, f, rest, shape, inner);
            sum = match (sum, term) {
                (Some(a), Some(b)) => Some(Expr::map2(combine(f), a, b)),
                (a, b) => a.or(b),
            };
        }
        sum
    }

    /// A value, what it is before it is rounded, and so on.
    fn casts(&self, v: Value) -> impl Iterator<Item = Value> + use<'_> {
        let func = self.scene.func;
        let before = move |v: &Value| matches!(func.def(*v).op, Op::Cast(_)).then(|| func.def(*v).inputs[0]);
        std::iter::successors(Some(v), before)
    }
    /// One element per index of the target, rows in parallel; if it joins parts, each reduces its own.
    fn rows(&mut self, v: Value, add: bool, joins: bool) {
        let ty = self.scene.func.ty(v).clone();
        let per_element = joins || self.roots().any(|v| self.reduces_per_element(v));
        let mut groups: Vec<std::ops::Range<usize>> = Vec::new();
        let breaks = self.breaks();
        for a in 0..ty.rank() {
            match groups.last_mut() {
                Some(g) if !breaks[a] => g.end = a + 1,
                _ => groups.push(a..a + 1),
            }
        }
        let product = |r: std::ops::Range<usize>| ty.shape[r].iter().fold(Dim::from(1), |n, d| n * d.clone());
        // The inner loop is the last group; with a reduction per element that reduction is the inner loop.
        let inner = if per_element { None } else { groups.pop() };
        let rows = groups.iter().fold(Dim::from(1), |n, g| n * product(g.clone()));
        let mut idx = vec![Expr::int(0); ty.rank()];
        let flat = inner.as_ref().filter(|_| groups.is_empty()).cloned();
        // Rows of any length may be few and long: blocks have pieces of them. So do rows that are known to be.
        let is_long = |n: i64| match rows.known() {
            Some(rows) => rows <= FEW_ROWS && n >= LONG_ROW,
            None => ANY_ROW.contains(&n),
        };
        let long = |g: &std::ops::Range<usize>| {
            let joined = self.pieces(g, &product(g.clone())).iter().map(|p| p.starts.len()).sum::<usize>() > 1;
            let whole = self.scene.grouping.many && self.heads.is_empty() && !joined;
            whole && product(g.clone()).known().is_none_or(is_long) && !self.roots().any(|r| self.reduces_rows(r))
        };
        let piece_elems = if inner.clone().is_some_and(|g| product(g).known().is_some()) { LONG_PIECE } else { PIECE };
        let cut = inner.clone().filter(|g| flat.is_none() && long(g)).map(|g| product(g).ceil_div(&Dim::from(piece_elems)));
        let (count, per_block) = match (&flat, &inner) {
            (Some(g), _) => (product(g.clone()), BLOCK_ELEMS),
            (None, Some(_)) if let Some(pieces) = &cut => (rows.clone() * pieces.clone(), 1),
            (None, Some(g)) => (rows.clone(), (BLOCK_ELEMS / product(g.clone()).known().unwrap_or(256).max(1)).max(1)),
            (None, None) => (rows.clone(), 64),
        };
        self.kernel.grid = count.ceil_div(&Dim::from(per_block));
        let (lo, hi) = (self.kernel.block() * Expr::int(per_block), self.kernel.dim(&count));
        let lo = self.bind(lo);
        let hi = self.bind(Expr::minimum(lo.clone() + Expr::int(per_block), hi));
        let var = self.new_var(DType::I64, 1);
        self.scopes.push(Scope::default());
        if let Some(g) = flat {
            idx[g.end - 1] = Expr::Var(var);
            self.store(v, std::slice::from_ref(&idx), add);
            let body = self.scopes.pop().expect("the loop's scope").stmts;
            self.scopes[0].stmts.push(Stmt::For { var, lo, hi, kind: LoopKind::Vector, body });
            return;
        }
        let mut rest = Expr::Var(var);
        let mut piece = None;
        if let Some(pieces) = &cut {
            let pieces = self.kernel.dim(pieces);
            piece = Some(self.bind(Expr::rem(rest.clone(), pieces.clone()) * Expr::int(piece_elems)));
            rest = self.bind(Expr::floor_div(rest, pieces));
        }
        for (k, g) in groups.iter().enumerate().rev() {
            if k == 0 {
                idx[g.end - 1] = rest.clone();
            } else {
                let extent = self.kernel.dim(&product(g.clone()));
                idx[g.end - 1] = self.bind(Expr::rem(rest.clone(), extent.clone()));
                rest = self.bind(Expr::floor_div(rest, extent));
            }
        }
        if let Some(g) = inner {
            let row: Vec<_> = self.heads.iter().map(|head| (self.index_of(head.0, &idx[..g.start]), head.clone())).collect();
            self.store_all(&row);
            for Piece { starts, turns, step } in self.pieces(&g, &product(g.clone())) {
                let column = self.new_var(DType::I64, 2);
                self.piece = turns.known().map(|n| (column, n, step));
                let extent = self.kernel.dim(&turns);
                let (first, end) = match &piece {
                    Some(first) => {
                        let end = Expr::minimum(first.clone() + Expr::int(piece_elems), extent);
                        (first.clone(), self.bind(end))
                    }
                    None => (Expr::int(0), extent),
                };
                self.scopes.push(Scope::default());
                let at = |start: &i64| {
                    let mut idx = idx.clone();
                    idx[g.end - 1] = plus(&of_turn(column, step), *start);
                    idx
                };
                self.store(v, &starts.iter().map(at).collect::<Vec<_>>(), add);
                let has_loop = self.scopes[2].stmts.iter().any(|s| matches!(s, Stmt::For { .. }));
                let kind = if has_loop { LoopKind::Serial } else { LoopKind::Vector };
                self.close_loops(vec![(column, first, end, kind)]);
            }
            self.piece = None;
        } else {
            self.store(v, std::slice::from_ref(&idx), add);
        }
        let body = self.scopes.pop().expect("the row's scope").stmts;
        // A row that is one of a stack's is reduced as if there were others: the sum of a layer is the same in any stage.
        let alone = count.is(1) && !(per_element && ty.rank() > 0);
        let kind = if alone { LoopKind::Serial } else { LoopKind::Parallel };
        self.scopes[0].stmts.push(Stmt::For { var, lo, hi, kind, body });
    }
    /// Stores what is computed at these indices.
    fn store(&mut self, v: Value, indices: &[Vec<Expr>], add: bool) {
        let roots: Vec<(Value, StridedView, bool)> =
            [(v, self.target.clone(), add)].into_iter().chain(self.others.iter().cloned()).collect();
        let all: Vec<_> =
            indices.iter().flat_map(|idx| roots.iter().map(|root| (self.index_of(root.0, idx), root.clone()))).collect();
        self.store_all(&all);
    }
    /// Stores values at indices, all of them read before anything is written.
    fn store_all(&mut self, all: &[(Vec<Expr>, (Value, StridedView, bool))]) {
        self.written = all.iter().map(|(idx, (_, target, _))| (target.at.clone(), self.address(target, idx))).collect();
        let values: Vec<Expr> = all.iter().map(|(idx, (v, ..))| self.eval(*v, idx)).collect();
        let mut stores = Vec::new();
        for (((idx, (v, target, add)), mut value), k) in all.iter().zip(values).zip(0..) {
            let dtype = self.scene.func.ty(*v).dtype;
            let mem = self.buffer(target, dtype, Access::Write);
            if *add {
                value = self.load(target, dtype, idx) + value;
            }
            stores.push(Stmt::Store { mem, index: self.written[k].1.clone(), value });
        }
        self.scopes.last_mut().expect("the innermost scope").stmts.extend(stores);
    }
    /// The index of a value at the index of another that has its axes first; what it has besides are axes of one.
    fn index_of(&self, v: Value, idx: &[Expr]) -> Vec<Expr> {
        let rank = self.scene.func.ty(v).rank();
        idx.iter().cloned().chain(std::iter::repeat_n(Expr::int(0), rank)).take(rank).collect()
    }
    /// Where the innermost loop is cut: the first columns of pieces that have a loop together, and its length. What is joined from parts or padded lies in one of
    /// them at each piece, so that nobody asks at each element which.
    fn pieces(&self, g: &std::ops::Range<usize>, extent: &Dim) -> Vec<Piece> {
        let whole = || vec![Piece { starts: vec![0], turns: extent.clone(), step: 1 }];
        let (Some(n), 1) = (extent.known(), g.len()) else { return whole() };
        let mut cuts = std::collections::BTreeSet::from([0, n]);
        // What is computed by pairs.
        let mut pairs: Vec<[i64; 2]> = Vec::new();
        let (func, mut open) = (self.scene.func, self.roots().collect::<Vec<_>>());
        while let Some(v) = open.pop() {
            if v != self.root && self.scene.place(v).is_some() {
                continue;
            }
            let node = func.def(v);
            match &node.op {
                Op::Map(_) | Op::Cast(_) | Op::StopGradient => open.extend(&node.inputs),
                Op::Concat(axis) if *axis == g.start => {
                    let mut end = 0;
                    for x in &node.inputs {
                        let Some(n) = func.ty(*x).shape[*axis].known() else { return whole() };
                        if self.has_pairs(*x) {
                            pairs.push([end, end + n]);
                        }
                        end += n;
                        cuts.insert(end);
                    }
                }
                Op::Pad { axis, low, .. } if *axis == g.start => {
                    let (Some(low), Some(n)) = (low.known(), func.ty(node.inputs[0]).shape[*axis].known()) else {
                        return whole();
                    };
                    cuts.extend([low, low + n]);
                    if self.has_pairs(node.inputs[0]) {
                        pairs.push([low, low + n]);
                    }
                }
                Op::Reshape(_) if self.has_pairs(v) => pairs.push([0, n]),
                _ => {}
            }
        }
        cuts.retain(|c| (0..=n).contains(c));
        let least = if pairs.is_empty() { 3 } else { 2 };
        if !(least..=MAX_PIECES + 1).contains(&cuts.len()) {
            return whole();
        }
        let cuts: Vec<i64> = cuts.into_iter().collect();
        let lens: Vec<i64> = cuts.windows(2).map(|c| c[1] - c[0]).collect();
        let starts = cuts[..lens.len()].to_vec();
        if pairs.is_empty() && lens.iter().all(|n| *n == lens[0]) {
            return vec![Piece { starts, turns: Dim::from(lens[0]), step: 1 }];
        }
        let piece = |(start, n): (i64, i64)| {
            let even = |[first, end]: &[i64; 2]| *first <= start && start + n <= *end && (start - first) % 2 == 0 && n % 2 == 0;
            let step = if pairs.iter().any(even) { 2 } else { 1 };
            Piece { starts: (0..step).map(|i| start + i).collect(), turns: Dim::from(n / step), step }
        };
        starts.into_iter().zip(lens).map(piece).collect()
    }
    /// Whether a value is a map of pairs as neighbours of its last axis, which nobody has stored.
    fn has_pairs(&self, v: Value) -> bool {
        let (func, mut open) = (self.scene.func, vec![v]);
        while let Some(v) = open.pop() {
            if v != self.root && self.scene.place(v).is_some() {
                continue;
            }
            match &func.def(v).op {
                Op::Map(_) | Op::Cast(_) | Op::StopGradient => open.extend(&func.def(v).inputs),
                _ if joins_pairs(func, v) => return true,
                _ => {}
            }
        }
        false
    }
    /// The part of what is joined along an axis in which an index lies at this piece, and where that begins.
    fn part_of_piece(&self, parts: &[Value], axis: usize, index: &Expr) -> Option<(Value, i64)> {
        let [first, end] = self.in_piece(index)?;
        let mut start = 0;
        for x in parts {
            let next = start + self.scene.func.ty(*x).shape[axis].known()?;
            if start <= first && end <= next {
                return Some((*x, start));
            }
            start = next;
        }
        None
    }
    /// The first and one past the last that an index is in this piece.
    fn in_piece(&self, index: &Expr) -> Option<[i64; 2]> {
        if let Some(n) = index.known() {
            return Some([n, n + 1]);
        }
        let (column, turns, step) = self.piece?;
        let first = match index {
            e if *e == of_turn(column, step) => 0,
            Expr::Map(MapFn::Add, args) if args[0] == of_turn(column, step) => args[1].known()?,
            _ => return None,
        };
        Some([first, first + (turns - 1) * step + 1])
    }

    /// Whether an inline reduction has one result per element of the target.
    fn reduces_per_element(&self, v: Value) -> bool {
        let func = self.scene.func;
        let real = |s: &[Dim]| s.iter().filter(|d| !d.is(1)).cloned().collect::<Vec<_>>();
        let mut found = false;
        self.visit_inline(v, &mut |x| {
            let node = func.def(x);
            if let Op::Reduce(_, axes) = &node.op
                && !is_unrolled(&node.op, func.ty(node.inputs[0]))
                && (reduces_trailing(axes, func.ty(node.inputs[0])) || x == v)
            {
                found |= real(&func.ty(x).shape) == real(&func.ty(v).shape);
            }
        });
        found
    }
    /// What the kernel computes.
    fn roots(&self) -> impl Iterator<Item = Value> {
        [self.root].into_iter().chain(self.others.iter().map(|(v, ..)| *v))
    }
    /// Where it goes.
    fn targets(&self) -> impl Iterator<Item = &StridedView> {
        [&self.target].into_iter().chain(self.others.iter().chain(&self.heads).map(|(_, target, _)| target))
    }
    fn visit_inline(&self, v: Value, see: &mut dyn FnMut(Value)) {
        let mut seen = std::collections::BTreeSet::new();
        let mut stack = vec![v];
        while let Some(x) = stack.pop() {
            if (x != self.root && self.scene.place(x).is_some()) || !seen.insert(x) {
                continue;
            }
            see(x);
            stack.extend(&self.scene.func.def(x).inputs);
        }
    }

    /// For each axis of the target, whether it cannot be merged with the axis before it.
    fn breaks(&self) -> Vec<bool> {
        let ty = self.scene.func.ty(self.root);
        let mut breaks = vec![false; ty.rank()];
        let exact: Vec<Option<usize>> = (0..ty.rank()).map(Some).collect();
        let mut seen = Vec::new();
        let all = self.roots().map(|v| (v, exact.len()));
        for (v, axes) in all.chain(self.heads.iter().map(|(v, ..)| (*v, exact.len() - 1))) {
            let rank = self.scene.func.ty(v).rank();
            let map: Vec<_> = (0..rank).map(|a| (a < axes).then_some(a)).collect();
            self.find_breaks(v, &map, &ty.shape, &mut breaks, &mut seen);
        }
        let whole = [&self.target].into_iter().chain(self.others.iter().map(|(_, target, _)| target)).map(|t| (t, exact.len()));
        for (target, axes) in whole.chain(self.heads.iter().map(|(_, target, _)| (target, exact.len() - 1))) {
            let map: Vec<_> = (0..target.shape.len()).map(|a| (a < axes).then_some(a)).collect();
            check_merge(target, &map, &ty.shape, &mut breaks);
        }
        breaks
    }
    /// `map[a]` is the target's axis whose index axis `a` of `v` has, if it is one unchanged.
    fn find_breaks(
        &self,
        v: Value,
        map: &[Option<usize>],
        shape: &[Dim],
        breaks: &mut [bool],
        seen: &mut Vec<(Value, Vec<Option<usize>>)>,
    ) {
        if seen.iter().any(|(w, m)| *w == v && m == map) {
            return;
        }
        seen.push((v, map.to_vec()));
        let func = self.scene.func;
        if v != self.root
            && let Some(view) = self.scene.place(v)
        {
            check_merge(&view, map, shape, breaks);
            return;
        }
        let isolate = |axis: Option<usize>, breaks: &mut [bool]| {
            if let Some(a) = axis {
                breaks[a] = true;
                if a + 1 < breaks.len() {
                    breaks[a + 1] = true;
                }
            }
        };
        let node = func.def(v);
        match &node.op {
            Op::Map(_) | Op::Cast(_) | Op::StopGradient => {
                node.inputs.iter().for_each(|x| self.find_breaks(*x, map, shape, breaks, seen));
            }
            Op::Broadcast { axes, .. } => {
                let inner: Vec<_> = axes.iter().map(|a| map[*a]).collect();
                // An axis that is dropped here merges with its neighbour only if that one is dropped too.
                let dropped = |a: usize| map.get(a).is_some_and(|_| !axes.contains(&a));
                for a in 0..map.len() {
                    if dropped(a) != (a > 0 && dropped(a - 1)) {
                        map[a].into_iter().for_each(|t| breaks[t] = true);
                    }
                }
                self.find_breaks(node.inputs[0], &inner, shape, breaks, seen);
            }
            Op::Transpose(perm) => {
                let mut inner = map.to_vec();
                perm.iter().enumerate().for_each(|(i, p)| inner[*p] = map[i]);
                self.find_breaks(node.inputs[0], &inner, shape, breaks, seen);
            }
            Op::Const(..) | Op::Extent(..) => {}
            _ => {
                // Anything that computes with an index needs the index itself.
                map.iter().for_each(|a| isolate(*a, breaks));
                for x in &node.inputs {
                    let inner = vec![None; func.ty(*x).rank()];
                    if is_inline(&func.def(*x).op) {
                        self.find_breaks(*x, &inner, shape, breaks, seen);
                    }
                }
            }
        }
    }
}

/// A loop over columns that stand at some places of the innermost axis, one after the other or every second.
struct Piece {
    /// What a turn takes, of the first.
    starts: Vec<i64>,
    /// How many.
    turns: Dim,
    /// From one to the next.
    step: i64,
}

/// The column of a turn.
fn of_turn(column: VarId, step: i64) -> Expr {
    if step == 1 { Expr::Var(column) } else { Expr::Var(column) * Expr::int(step) }
}

/// If an index is the first or second of a pair: which pair, and which of it.
fn of_pair(index: &Expr) -> Option<(Expr, i64)> {
    let (first, i) = match index {
        Expr::Map(MapFn::Add, args) => (&args[0], args[1].known().filter(|i| (0..2).contains(i))?),
        first => (first, 0),
    };
    match first {
        Expr::Map(MapFn::Mul, args) if args[1].known() == Some(2) => Some((args[0].clone(), i)),
        _ => None,
    }
}

/// An index that is more by a number.
fn plus(index: &Expr, n: i64) -> Expr {
    match index {
        Expr::Map(MapFn::Add, args) if let Some(m) = args[1].known() => args[0].clone() + Expr::int(m + n),
        _ => index.clone() + Expr::int(n),
    }
}

/// A constant of a dtype: rounded where the compute dtype is wider, as wide ones are rounded where they are used.
pub(crate) fn constant(c: Scalar, dtype: DType) -> Expr {
    let compute = compute_dtype(dtype);
    let exact = compute == dtype && dtype.is_float();
    Expr::Const(if exact { c } else { Scalar::new(dtype.round(c.get())) }, compute)
}

/// Marks the target's axes that a view does not let merge with the axis before.
fn check_merge(view: &StridedView, map: &[Option<usize>], shape: &[Dim], breaks: &mut [bool]) {
    let mut strides = vec![Dim::from(0); shape.len()];
    for (a, s) in map.iter().zip(&view.strides) {
        if let Some(a) = a {
            strides[*a] = strides[*a].clone() + s.clone();
        }
    }
    for a in 1..shape.len() {
        if strides[a - 1] != strides[a].clone() * shape[a].clone() {
            breaks[a] = true;
        }
    }
}

/// The function that joins two partial results.
fn combine(f: ReduceFn) -> MapFn {
    f.joins()
}

/// The result of reducing nothing.
fn neutral(f: ReduceFn, dtype: DType) -> Expr {
    let int = !dtype.is_float();
    let x = match f {
        ReduceFn::Sum => 0.0,
        ReduceFn::Prod => 1.0,
        ReduceFn::Max if int => i64::MIN as f64,
        ReduceFn::Min if int => i64::MAX as f64,
        ReduceFn::Max => f64::NEG_INFINITY,
        ReduceFn::Min => f64::INFINITY,
    };
    Expr::Const(Scalar::new(x), dtype)
}
