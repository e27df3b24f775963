//! A few numbers of each row: a region of the form `rows`. What is chosen, summed and mapped of a row is computed in scratch, one value after the other.
//!
//! ```text
//! for each row
//!   for each value of the region that others read at other elements, or several read
//!     scratch ← its elements, each from scratch, from the operands, or computed again
//!   results ← theirs
//! ```
//!
//! Scratch: such a value's elements of one row, and beside the places of a choice what was found there. Work: that of the ops.
//!
//! On a device of many processors a team takes a row: elements are spread over its threads, and a choice has no list, as in `gpu_topk`.
//! # Source: docs/adr/0010-regions-of-rows.md, 0017-rows-by-a-warp.md.

use super::{constant, neutral};
use crate::{
    group::is_layout,
    ir::{Expr, Kernel, LoopKind, Mem, compute_dtype},
    kernels::{build::Build, gpu_topk, host_topk::insert},
    view::{StridedView, first_of_slice},
};
use base::{DType, Dim};
use graph::{Func, NodeId, Op, Value, op::Scalar};
use std::collections::BTreeMap;

/// Elements of a value of one row, at most: scratch is small.
const MOST_ELEMS: i64 = 1 << 12;
/// Ops of a region, at most.
const MOST_OPS: usize = 96;
/// Rows of a block. As the host's choice has.
const BLOCK: i64 = 16;
/// Elements that a choice is made among, at most, where a warp makes it: 16 of a thread.
const MOST_CHOICES: i64 = 512;
/// Terms of a sum that a thread takes alone, at most, where there are several sums.
const FEW_TERMS: i64 = 64;

/// A region of the form `rows` that can be computed so.
#[derive(Clone, Debug)]
pub struct Rows<'a> {
    func: &'a Func,
    /// How many.
    rows: Dim,
    /// Whether a value has an element, or some, for each row.
    by_row: Vec<bool>,
    /// Whether a value is in scratch.
    kept: Vec<bool>,
}

impl<'a> Rows<'a> {
    /// The region as one, if it is.
    pub fn of(region: &'a graph::op::Fused) -> Option<Rows<'a>> {
        let func = &region.body;
        let rows = func.ty(func.outputs.first()?.value).shape.first()?.clone();
        if rows.known().is_some() || func.nodes.len() > MOST_OPS {
            return None;
        }
        let mut by_row: Vec<bool> = Vec::new();
        for node in func.nodes.values() {
            let [ty] = &node.types[..] else { return None };
            let first = ty.shape.first() == Some(&rows);
            let of = |i: usize| by_row[node.inputs[i].node.0 as usize];
            let any = (0..node.inputs.len()).any(of);
            // Axes of rows stay first, and nothing goes from one row to another.
            let own = match &node.op {
                Op::Arg(_) => true,
                Op::Const(..) | Op::Iota(_) => !first,
                Op::Map(_) | Op::Cast(_) | Op::StopGradient => any == first,
                Op::Broadcast { axes, .. } => first && (axes.first() == Some(&0)) == of(0) || !first && !any,
                Op::Reshape(_) => first == any,
                Op::Transpose(perm) => first == any && (!any || perm[0] == 0),
                Op::Slice { axis, .. } => first == any && (!any || *axis > 0),
                Op::Reduce(_, axes) => first && any && !axes.contains(&0),
                Op::TopK(_) => first && any && ty.rank() > 1,
                Op::Gather { batch } => first && of(1) && (*batch > 0) == of(0),
                Op::Extent(..)
                | Op::Concat(_)
                | Op::Pad { .. }
                | Op::Contract(_)
                | Op::ScatterAdd { .. }
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
                | Op::Fused(_) => false,
            };
            let rest = &ty.shape[usize::from(first)..];
            let elems = rest.iter().map(Dim::known).product::<Option<i64>>();
            if !own || !elems.is_some_and(|n| (1..=MOST_ELEMS).contains(&n)) {
                return None;
            }
            by_row.push(first);
        }
        let mut kept = vec![false; func.nodes.len()];
        let mut readers = vec![0; func.nodes.len()];
        for node in func.nodes.values() {
            let elsewhere = matches!(node.op, Op::Reduce(..) | Op::TopK(_) | Op::Gather { .. });
            for v in &node.inputs {
                // What is kept is what a view is of.
                let mut v = *v;
                while is_layout(&func.def(v).op) {
                    v = func.def(v).inputs[0];
                }
                readers[v.node.0 as usize] += 1;
                kept[v.node.0 as usize] |= elsewhere || readers[v.node.0 as usize] > 1;
            }
        }
        for (id, node) in func.nodes.iter() {
            let i = id.0 as usize;
            let computed = !is_layout(&node.op) && !matches!(node.op, Op::Arg(_));
            let always = matches!(node.op, Op::Reduce(..) | Op::TopK(_));
            kept[i] = computed && by_row[i] && (always || kept[i]);
        }
        let given = |v: Value| by_row[v.node.0 as usize];
        func.outputs.iter().all(|o| given(o.value)).then_some(Rows { func, rows, by_row, kept })
    }
    /// Whether a device of many processors has the kernel: a warp chooses among few, by the order of floats.
    pub fn is_for_many(&self) -> bool {
        let chooses = |n: &&graph::Node| matches!(n.op, Op::TopK(_));
        self.func.nodes.values().filter(chooses).all(|n| {
            let of = n.inputs[0];
            let few = self.rest(of).iter().product::<i64>() <= MOST_CHOICES;
            few && gpu_topk::is_ordered(self.func.ty(of).dtype)
        })
    }
    /// Extents of a value but for its rows.
    fn rest(&self, v: Value) -> Vec<i64> {
        let shape = &self.func.ty(v).shape[usize::from(self.by_row[v.node.0 as usize])..];
        shape.iter().map(|d| d.known().expect("a constant")).collect()
    }
}

/// The kernel, for a device of many processors or for few: operands, then results, which are contiguous.
pub fn rows(r: &Rows, operands: &[StridedView], many: bool) -> Kernel {
    let mut b = Build::new("rows");
    let func = r.func;
    let args = func.args.iter().zip(operands).enumerate();
    let inputs: Vec<Mem> = args
        .map(|(i, (_, view))| {
            let axes = view.shape.iter().zip(&view.strides);
            let elems = axes.fold(Dim::from(1), |n, (d, s)| n + (d.clone() - Dim::from(1)) * s.clone());
            b.read(&format!("x{i}"), func.arg_type(i).dtype, elems)
        })
        .collect();
    let results = func.outputs.iter().enumerate();
    let results: Vec<Mem> =
        results.map(|(i, o)| b.write(&format!("y{i}"), func.ty(o.value).dtype, func.ty(o.value).elems())).collect();
    b.kernel.grid = r.rows.ceil_div(&Dim::from(BLOCK));
    let mut scratch = BTreeMap::new();
    for (id, node) in func.nodes.iter().filter(|(id, _)| r.kept[id.0 as usize]) {
        let v = Value { node: id, index: 0 };
        let elems: i64 = r.rest(v).iter().product();
        let dtype = compute_dtype(node.types[0].dtype);
        let of_value = b.scratch(&format!("v{}", id.0), dtype, elems);
        // Beside places, what is there; or of all that is chosen from its key in their order.
        let beside = match &node.op {
            Op::TopK(_) if many => b.scratch(&format!("k{}", id.0), DType::I32, r.rest(node.inputs[0]).iter().product()),
            Op::TopK(_) => b.scratch(&format!("b{}", id.0), compute_dtype(func.ty(node.inputs[0]).dtype), elems),
            _ => of_value,
        };
        scratch.insert(v, [of_value, beside]);
    }
    let count = b.dim(&r.rows);
    b.each_row(count, BLOCK, |b, row| {
        let mut w = Walk { r, operands, many, inputs: &inputs, scratch: &scratch, row, done: vec![false; func.nodes.len()] };
        for id in func.nodes.ids().filter(|id| r.kept[id.0 as usize]) {
            w.keep(b, id);
        }
        for (o, mem) in func.outputs.iter().zip(&results) {
            let rest = r.rest(o.value);
            let elems = Expr::int(rest.iter().product());
            let start = b.bind(w.row.clone() * elems.clone());
            b.each(elems, |b, e| {
                let at = unflatten(b, &e, &rest);
                let value = w.read(b, o.value, &at);
                b.store(*mem, start + e, value);
            });
        }
    });
    b.finish()
}

/// An element's index from its number.
fn unflatten(b: &mut Build, e: &Expr, shape: &[i64]) -> Vec<Expr> {
    let mut rest = e.clone();
    let mut at = vec![Expr::int(0); shape.len()];
    let real: Vec<usize> = (0..shape.len()).filter(|a| shape[*a] > 1).collect();
    for (k, a) in real.iter().enumerate().rev() {
        if k == 0 {
            at[*a] = rest.clone();
        } else {
            at[*a] = b.bind(Expr::rem(rest.clone(), Expr::int(shape[*a])));
            rest = b.bind(Expr::floor_div(rest, Expr::int(shape[*a])));
        }
    }
    at
}

/// An element's number.
fn flatten(at: &[Expr], shape: &[i64]) -> Expr {
    at.iter().zip(shape).filter(|(_, n)| **n > 1).fold(Expr::int(0), |sum, (i, n)| sum * Expr::int(*n) + i.clone())
}

/// A row being computed.
struct Walk<'a> {
    r: &'a Rows<'a>,
    operands: &'a [StridedView],
    /// Whether a team takes the row.
    many: bool,
    inputs: &'a [Mem],
    scratch: &'a BTreeMap<Value, [Mem; 2]>,
    row: Expr,
    /// What is in scratch already.
    done: Vec<bool>,
}

impl Walk<'_> {
    /// Computes a value into scratch.
    fn keep(&mut self, b: &mut Build, id: NodeId) {
        let (v, node) = (Value { node: id, index: 0 }, &self.r.func.nodes[id]);
        let [mem, beside] = self.scratch[&v];
        let shape = self.r.rest(v);
        match &node.op {
            Op::TopK(k) => {
                let operand = node.inputs[0];
                let n = *self.r.rest(operand).last().expect("a row to choose from");
                let outer = &shape[..shape.len() - 1];
                if self.many {
                    let (rows, all) = (outer.iter().product::<i64>(), self.r.rest(operand));
                    b.each(Expr::int(rows * n), |b, e| {
                        let at = unflatten(b, &e, &all);
                        let value = self.read(b, operand, &at);
                        b.store(beside, e, value.order());
                    });
                    // Rows that are several are shared out among the lanes.
                    let kind = if rows > 1 { LoopKind::Vector } else { LoopKind::Serial };
                    b.for_(Expr::int(0), Expr::int(rows), kind, |b, o| {
                        let keys = b.bind(o.clone() * Expr::int(n));
                        let base = b.bind(o * Expr::int(*k));
                        gpu_topk::choose_by_key(b, (beside, keys), n, *k, |b, j, index| b.store(mem, base + j, index));
                    });
                    self.done[id.0 as usize] = true;
                    return;
                }
                b.range(Expr::int(outer.iter().product()), |b, o| {
                    let at = unflatten(b, &o, outer);
                    let base = b.bind(o * Expr::int(*k));
                    let count = b.var(DType::I64, Expr::int(0));
                    b.range(Expr::int(n), |b, i| {
                        let index = [at.clone(), vec![i.clone()]].concat();
                        let value = self.read(b, operand, &index);
                        let value = b.bind(value);
                        insert(b, [beside, mem], &base, *k, count, value, i);
                    });
                    b.range(Expr::int(*k) - Expr::Var(count), |b, j| {
                        let to = b.bind(base + Expr::Var(count) + j);
                        b.store(mem, to, Expr::Const(Scalar::new(-1.0), DType::I32));
                    });
                });
            }
            Op::Reduce(f, axes) => {
                let operand = node.inputs[0];
                let all = self.r.rest(operand);
                let summed: Vec<usize> = axes.iter().map(|a| a - 1).collect();
                let extents: Vec<i64> = summed.iter().map(|a| all[*a]).collect();
                let (dtype, kept) = (node.types[0].dtype, (0..all.len()).filter(|a| !summed.contains(a)).collect::<Vec<_>>());
                let sum = compute_dtype(dtype.accumulator());
                let (sums, terms): (i64, i64) = (shape.iter().product(), extents.iter().product());
                // Several short sums are spread over a team's threads, others their terms.
                let (spread, inside) = if self.many && sums > 1 && terms <= FEW_TERMS {
                    (LoopKind::Vector, LoopKind::Serial)
                } else {
                    (LoopKind::Serial, LoopKind::Vector)
                };
                b.for_(Expr::int(0), Expr::int(sums), spread, |b, e| {
                    let outer = unflatten(b, &e, &shape);
                    let total = b.var(sum, neutral(*f, sum));
                    b.for_(Expr::int(0), Expr::int(terms), inside, |b, t| {
                        let inner = unflatten(b, &t, &extents);
                        let mut at = vec![Expr::int(0); all.len()];
                        kept.iter().zip(&outer).chain(summed.iter().zip(&inner)).for_each(|(a, i)| at[*a] = i.clone());
                        let term = self.read(b, operand, &at);
                        let term = if b.kernel.expr_dtype(&term) == sum { term } else { term.cast(sum) };
                        b.accumulate(total, *f, term);
                    });
                    let total = Expr::Var(total);
                    b.store(mem, e, if dtype == sum { total } else { total.cast(dtype) });
                });
            }
            _ => b.each(Expr::int(shape.iter().product()), |b, e| {
                let at = unflatten(b, &e, &shape);
                // As if it were stored, so that a choice among rounded numbers is the same.
                let (value, dtype) = (self.compute(b, v, &at), node.types[0].dtype);
                b.store(mem, e, if compute_dtype(dtype) == dtype { value } else { value.cast(dtype) });
            }),
        }
        self.done[id.0 as usize] = true;
    }
    /// An element of a value: its index within the row, or its whole index if the value is the same for all rows.
    fn read(&self, b: &mut Build, v: Value, at: &[Expr]) -> Expr {
        match self.scratch.get(&v) {
            Some([mem, _]) if self.done[v.node.0 as usize] => Expr::load(*mem, flatten(at, &self.r.rest(v))),
            _ => self.compute(b, v, at),
        }
    }
    fn compute(&self, b: &mut Build, v: Value, at: &[Expr]) -> Expr {
        let (func, node) = (self.r.func, self.r.func.def(v));
        let by_row = |v: Value| usize::from(self.r.by_row[v.node.0 as usize]);
        let (own, x) = (by_row(v), node.inputs.first().copied().unwrap_or(v));
        let below = by_row(x);
        match &node.op {
            Op::Arg(i) => {
                let whole: Vec<Expr> = std::iter::repeat_n(self.row.clone(), own).chain(at.iter().cloned()).collect();
                let mut index = Expr::int(0);
                for (i, stride) in whole.into_iter().zip(&self.operands[*i as usize].strides) {
                    index = index + i * b.dim(stride);
                }
                Expr::load(self.inputs[*i as usize], index)
            }
            Op::Const(c, dtype) => constant(*c, *dtype),
            Op::Iota(_) => at[0].clone().cast(DType::I32),
            Op::Map(f) => {
                let args = node.inputs.iter().map(|x| {
                    let x = self.read(b, *x, at);
                    b.bind(x)
                });
                Expr::Map(*f, args.collect())
            }
            Op::Cast(to) => {
                let e = self.read(b, x, at);
                if func.ty(x).dtype == *to { e } else { e.cast(*to) }
            }
            Op::StopGradient => self.read(b, x, at),
            Op::Broadcast { axes, .. } => {
                let inner: Vec<Expr> = axes[below..].iter().map(|a| at[a - own].clone()).collect();
                self.read(b, x, &inner)
            }
            Op::Transpose(perm) => {
                let mut inner = at.to_vec();
                perm[own..].iter().enumerate().for_each(|(i, p)| inner[p - own] = at[i].clone());
                self.read(b, x, &inner)
            }
            Op::Slice { axis, start, len, step } => {
                let mut inner = at.to_vec();
                let start = first_of_slice(start, len, &func.ty(x).shape[*axis]);
                let start = b.dim(&start);
                inner[axis - own] = b.bind(at[axis - own].clone() * Expr::int(*step) + start);
                self.read(b, x, &inner)
            }
            Op::Reshape(_) => {
                let number = b.bind(flatten(at, &self.r.rest(v)));
                let inner = unflatten(b, &number, &self.r.rest(x));
                self.read(b, x, &inner)
            }
            Op::Gather { batch } => {
                let index = node.inputs[1];
                let (rank, axis) = (func.ty(index).rank() - 1, batch.saturating_sub(1));
                let n = Expr::int(self.r.rest(x)[axis]);
                let i = self.read(b, index, &at[..rank]).cast(DType::I64);
                let i = b.bind(i);
                let inside = b.bind(Expr::and(Expr::le(Expr::int(0), i.clone()), Expr::lt(i.clone(), n)));
                let safe = b.bind(Expr::select(inside.clone(), i, Expr::int(0)));
                let inner: Vec<Expr> = at[..axis].iter().cloned().chain([safe]).chain(at[rank..].iter().cloned()).collect();
                let value = self.read(b, x, &inner);
                Expr::select(inside, value, Expr::Const(Scalar::new(0.0), compute_dtype(func.ty(v).dtype)))
            }
            op => base::bug!("{} is kept, or in no region of rows", op.name()),
        }
    }
}
