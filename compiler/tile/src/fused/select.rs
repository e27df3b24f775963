//! The best of scores that are computed where they are compared: a region of the form `select`. No row of scores is ever whole in memory.
//!
//! A block has the rows that differ in one axis, `TILE / heads` of them, so that they share keys. It walks over the candidates in chunks. For a
//! chunk it computes one product of queries and keys into scratch (`s`), maps it there (scale, exp, mask), sums it over the axes that end
//! inside (heads of a group), then computes each candidate's score from that (folding windows to blocks), and lets those that beat the
//! last of a row's best so far into its list, in order of index, so that ties go to the lower one. A row that says itself that it takes no
//! candidate behind some index is not compared with those.
//!
//! Scratch: queries [rows, d], keys [d, w], scores [rows, w], their sums [tile, w], a chunk of a row's scores, the best [tile, k] and where
//! they are. Work: the product once, k² moves at most for each row that improves.
//! # Source: docs/adr/0005-fused-regions.md.

mod host;
mod many;
mod parts;
mod rows;

pub use host::select;
pub use many::{scores_many, select_many};
pub use parts::{Joined, candidates, joins, select_parts};

use super::{Fused, Fuser, Scene, Scope, combine, neutral};
use crate::{
    group::Grouping,
    ir::{Expr, Kernel, LoopKind, Mem, Stmt, VarId, compute_dtype},
    kernels::build::Build,
    view::{StridedView, reshape_groups},
};
use base::{DType, Dim};
use graph::{
    Func, NodeId, Op, Value,
    op::{Contract, MapFn, ReduceFn},
};
use std::collections::BTreeMap;

/// Rows of the product in a block: enough to use each key often, few enough for scratch.
const TILE: i64 = 64;
/// Keys of a chunk, about.
const CHUNK: i64 = 128;
/// Keys of a chunk for many processors, two blocks of which have to fit on one.
const MANY_KEYS: i64 = 64;

/// What a block needs of an axis of a value.
#[derive(Clone, Debug, PartialEq)]
enum Need {
    /// The index of this axis of the scores.
    Row(usize),
    /// For candidates `j..j + chunk`: `mul·j + lo`, and `len` from there.
    Range { mul: i64, lo: Dim, len: i64 },
    /// All of it.
    Whole(i64),
}

impl Need {
    /// The axis of the scores, if it is an index of one.
    fn row(&self) -> Option<usize> {
        if let Need::Row(a) = self { Some(*a) } else { None }
    }
}

/// How the product becomes a value per key without the axes that end inside.
#[derive(Clone, Debug, PartialEq)]
enum Fold {
    /// It has none.
    No,
    /// A reduction of the mapped product.
    Reduce(ReduceFn),
    /// A weighted sum; the weight, and its axes' letters.
    Weighted(Value, Contract, bool),
}

impl Fold {
    /// The function that folds.
    fn how(&self) -> Option<ReduceFn> {
        match self {
            Fold::No => None,
            Fold::Reduce(how) => Some(*how),
            Fold::Weighted(..) => Some(ReduceFn::Sum),
        }
    }
}

/// A region of the form `select` that can be computed so.
#[derive(Clone, Debug)]
pub struct Select<'a> {
    func: &'a Func,
    /// How many are chosen.
    k: i64,
    /// The scores, of all rows.
    scores: Value,
    /// The product, its operands (queries first) and how their axes meet, with what a block needs of each axis of it. It may be an argument, where it is stored
    /// already: then its axes are all that there is.
    product: Value,
    spec: Contract,
    /// The side of the queries.
    left: bool,
    need: Vec<Need>,
    /// The product after its maps.
    mapped: Value,
    /// What is folded from that, if anything.
    folded: Value,
    fold: Fold,
    /// The folded value with keys around it that do not count: the value, and how many there are before.
    padded: Option<(Value, Dim)>,
    /// Whether scratch may be read in vain, where there are no keys.
    in_vain: bool,
    /// The axis of the scores that rows of a block differ in.
    along: Option<usize>,
    /// No candidate behind this index is taken: a value that does not depend on the candidate, and the scores' axes that its are.
    last: Option<(Value, Vec<Option<usize>>)>,
}

/// A mask of the product: `keys <= rows`, each with the axes of the product that its own are.
struct Mask {
    value: Value,
    keys: (Value, Vec<Option<usize>>),
    rows: (Value, Vec<Option<usize>>),
}

/// Candidates of a chunk, when `mul` keys belong to each.
fn chunk(mul: i64) -> i64 {
    (CHUNK / mul).clamp(8, CHUNK)
}

/// The argument that scores are computed from and that has more run-time dims than their rows, and more axes than others that do.
fn stored(func: &Func, scores: Value) -> Option<Value> {
    let unknown = |shape: &[Dim]| shape.iter().filter(|d| d.known().is_none()).count();
    let (_, rows) = func.ty(scores).shape.split_last()?;
    let wide: Vec<Value> = func.arg_values().filter(|(.., ty)| unknown(&ty.shape) > unknown(rows)).map(|(_, v, _)| v).collect();
    let rank = wide.iter().map(|v| func.ty(*v).rank()).max()?;
    let mut found = wide.into_iter().filter(|v| func.ty(*v).rank() == rank);
    let (Some(v), None) = (found.next(), found.next()) else { return None };
    Some(v)
}

impl<'a> Select<'a> {
    /// The region as one, if it is.
    pub fn of(region: &'a graph::op::Fused) -> Option<Select<'a>> {
        let func = &region.body;
        let [output] = &func.outputs[..] else { return None };
        let (Op::TopK(k), 0) = (&func.def(output.value).op, output.value.index) else { return None };
        let scores = func.def(output.value).inputs[0];
        // The product that others are computed from.
        let contracts: Vec<(NodeId, &Contract)> =
            func.nodes.iter().filter_map(|(id, n)| if let Op::Contract(c) = &n.op { Some((id, c)) } else { None }).collect();
        let (product, spec) = match contracts.first() {
            Some((product, spec)) => (Value { node: *product, index: 0 }, (*spec).clone()),
            None => {
                let product = stored(func, scores)?;
                let out: Vec<char> = ('a'..).take(func.ty(product).rank()).collect();
                (product, Contract { lhs: out.clone(), rhs: Vec::new(), out })
            }
        };
        let mut above = vec![false; func.nodes.len()];
        above[product.node.0 as usize] = true;
        for (id, node) in func.nodes.iter() {
            let is = node.inputs.iter().any(|v| above[v.node.0 as usize]);
            above[id.0 as usize] |= is;
            let inline = crate::group::is_inline(&node.op) || matches!(node.op, Op::Arg(_) | Op::Reduce(..) | Op::Contract(_));
            if !inline && id != output.value.node {
                return None;
            }
        }
        let mut s = Select {
            func,
            k: *k,
            scores,
            product,
            spec,
            left: true,
            need: Vec::new(),
            mapped: product,
            folded: product,
            fold: Fold::No,
            padded: None,
            in_vain: false,
            along: None,
            last: None,
        };
        s.find_maps(&above, output.value.node)?;
        let known = if contracts.len() <= 1 { contracts.len() } else { 1 + usize::from(matches!(s.fold, Fold::Weighted(..))) };
        let needs = s.needs(&above)?;
        s.need = needs.get(&product)?.clone();
        (contracts.len() == known && s.folds_all() && s.sides()?).then_some(())?;
        s.last = s.last_candidate();
        s.find_padding(&needs);
        let pads = func.nodes.iter().filter(|(id, n)| above[id.0 as usize] && matches!(n.op, Op::Pad { .. })).count();
        s.in_vain = pads > usize::from(s.padded.is_some());
        Some(s)
    }

    /// Whether the product is stored already.
    pub fn is_given(&self) -> bool {
        matches!(self.func.def(self.product).op, Op::Arg(_))
    }
    /// How many are chosen.
    pub fn chosen(&self) -> i64 {
        self.k
    }
    /// The types of the scores.
    pub fn scores(&self) -> &'a base::TensorType {
        self.ty(self.scores)
    }
    fn ty(&self, v: Value) -> &'a base::TensorType {
        self.func.ty(v)
    }
    /// The single reader of a value.
    fn reader(&self, v: Value) -> Option<NodeId> {
        let mut all = self.func.nodes.iter().filter(|(_, n)| n.inputs.contains(&v));
        let (id, _) = all.next()?;
        all.next().is_none().then_some(id)
    }

    /// Follows the product through maps, and through the fold after them.
    fn find_maps(&mut self, above: &[bool], topk: NodeId) -> Option<()> {
        let value = |node| Value { node, index: 0 };
        while let Some(id) = self.reader(self.mapped).filter(|id| *id != topk) {
            let node = &self.func.nodes[id];
            // The other operands are read from memory or computed from indices.
            let alone = node.inputs.iter().filter(|v| above[v.node.0 as usize]).all(|v| *v == self.mapped);
            match &node.op {
                Op::Map(_) | Op::Cast(_) | Op::StopGradient if alone => self.mapped = value(id),
                _ => break,
            }
        }
        self.folded = self.mapped;
        let Some(id) = self.reader(self.mapped).filter(|id| *id != topk) else { return Some(()) };
        let node = &self.func.nodes[id];
        match &node.op {
            Op::Reduce(f, _) => (self.fold, self.folded) = (Fold::Reduce(*f), value(id)),
            Op::Contract(c) => {
                let right = node.inputs[0] == self.mapped;
                let weight = node.inputs[usize::from(right)];
                if above[weight.node.0 as usize] {
                    return None;
                }
                (self.fold, self.folded) = (Fold::Weighted(weight, c.clone(), right), value(id));
            }
            _ => {}
        }
        Some(())
    }

    /// Keys that do not count add nothing, as a fold of none gives: then what is in scratch is the folded value with those around it.
    fn find_padding(&mut self, needs: &BTreeMap<Value, Vec<Need>>) {
        let Some(how) = self.fold.how() else { return };
        let Some(id) = self.reader(self.folded) else { return };
        let (Op::Pad { axis, low, value, .. }, padded) = (&self.func.nodes[id].op, Value { node: id, index: 0 }) else { return };
        let dtype = compute_dtype(self.ty(self.product).dtype.accumulator());
        let around_keys = matches!(needs[&padded][*axis], Need::Range { .. });
        if around_keys && neutral(how, dtype) == Expr::Const(*value, dtype) {
            self.padded = Some((padded, low.clone()));
        }
    }

    /// What a block needs of the product and of what is computed from it.
    fn needs(&self, above: &[bool]) -> Option<BTreeMap<Value, Vec<Need>>> {
        let mut needs: BTreeMap<Value, Vec<Need>> = BTreeMap::new();
        let rank = self.ty(self.scores).rank();
        let range = Need::Range { mul: 1, lo: Dim::from(0), len: 1 };
        needs.insert(self.scores, (0..rank - 1).map(Need::Row).chain([range]).collect());
        for (id, node) in self.func.nodes.iter().rev() {
            let v = Value { node: id, index: 0 };
            if !above[id.0 as usize] || v == self.product {
                continue;
            }
            // The choice itself asks for nothing.
            let Some(need) = needs.get(&v).cloned() else { continue };
            for (i, x) in node.inputs.iter().enumerate().filter(|(_, x)| above[x.node.0 as usize]) {
                let below = self.below(&node.op, &need, i, *x)?;
                let joined = match needs.get(x) {
                    Some(other) => join(other, &below)?,
                    None => below,
                };
                needs.insert(*x, joined);
            }
        }
        Some(needs)
    }
    /// What an op needs of operand `i`.
    fn below(&self, op: &Op, need: &[Need], i: usize, x: Value) -> Option<Vec<Need>> {
        let shape = &self.ty(x).shape;
        let whole = |a: usize| shape[a].known().map(Need::Whole);
        match op {
            Op::Map(_) | Op::Cast(_) | Op::StopGradient => Some(need.to_vec()),
            Op::Broadcast { axes, .. } => Some(axes.iter().map(|a| need[*a].clone()).collect()),
            Op::Transpose(perm) => {
                let mut below = need.to_vec();
                perm.iter().enumerate().for_each(|(i, p)| below[*p] = need[i].clone());
                Some(below)
            }
            Op::Slice { axis, start, step: 1, .. } => {
                let mut below = need.to_vec();
                match &mut below[*axis] {
                    Need::Range { lo, .. } => *lo = lo.clone() + start.clone(),
                    Need::Row(_) if start.is(0) => {}
                    Need::Row(_) => return None,
                    Need::Whole(n) => *n = shape[*axis].known()?,
                }
                Some(below)
            }
            Op::Pad { axis, low, .. } => {
                let mut below = need.to_vec();
                match &mut below[*axis] {
                    Need::Range { lo, .. } => *lo = lo.clone() - low.clone(),
                    Need::Row(_) if low.is(0) => {}
                    Need::Row(_) => return None,
                    Need::Whole(n) => *n = shape[*axis].known()?,
                }
                Some(below)
            }
            Op::Reshape(new) => {
                let mut below = vec![Need::Whole(1); shape.len()];
                for (old, new_axes) in reshape_groups(shape, new)? {
                    let real = |s: &[Dim], r: std::ops::Range<usize>| r.filter(|a| !s[*a].is(1)).collect::<Vec<_>>();
                    let (old, news) = (real(shape, old), real(new, new_axes));
                    match (&old[..], &news[..]) {
                        ([], []) => {}
                        ([o], [n]) => below[*o] = need[*n].clone(),
                        // Candidates and what belongs to each lie side by side.
                        ([o], [n, inner @ ..]) => {
                            let count = inner.iter().map(|a| new[*a].known()).product::<Option<i64>>()?;
                            if !inner.iter().all(|a| matches!(need[*a], Need::Whole(_))) {
                                return None;
                            }
                            below[*o] = match &need[*n] {
                                Need::Range { mul, lo, len } => {
                                    Need::Range { mul: mul * count, lo: lo.clone() * Dim::from(count), len: len * count }
                                }
                                Need::Whole(n) => Need::Whole(n * count),
                                Need::Row(_) => return None,
                            };
                        }
                        (olds, news) => {
                            if !news.iter().all(|a| matches!(need[*a], Need::Whole(_))) {
                                return None;
                            }
                            for o in olds {
                                below[*o] = whole(*o)?;
                            }
                        }
                    }
                }
                Some(below)
            }
            Op::Reduce(_, axes) => {
                let mut kept = need.iter();
                (0..shape.len()).map(|a| if axes.contains(&a) { whole(a) } else { kept.next().cloned() }).collect()
            }
            Op::Contract(c) => {
                let letters = if i == 0 { &c.lhs } else { &c.rhs };
                let of = |(a, l): (usize, &char)| match c.out.iter().position(|o| o == l) {
                    Some(at) => Some(need[at].clone()),
                    None => whole(a),
                };
                letters.iter().enumerate().map(of).collect()
            }
            _ => None,
        }
    }

    /// Whether the fold, if there is one, is over what ends inside, all of it and nothing else.
    fn folds_all(&self) -> bool {
        let inside = |a: usize| matches!(self.need[a], Need::Whole(_));
        // An axis of one index is as good as none.
        let all = (0..self.spec.out.len()).filter(|a| self.need[*a] != Need::Whole(1));
        match &self.fold {
            Fold::No => true,
            Fold::Reduce(_) => match &self.func.def(self.folded).op {
                Op::Reduce(_, axes) => all.clone().all(|a: usize| axes.contains(&a) == inside(a)),
                op => base::bug!("{} is no reduction", op.name()),
            },
            Fold::Weighted(_, c, right) => {
                let mapped = if *right { &c.lhs } else { &c.rhs };
                all.clone().all(|a: usize| c.out.contains(&mapped[a]) != inside(a)) && c.out.iter().all(|l| mapped.contains(l))
            }
        }
    }
    /// Which operand of the product has the keys, and along which axis a block has several rows.
    fn sides(&mut self) -> Option<bool> {
        let letters = |left: bool| if left { &self.spec.lhs } else { &self.spec.rhs };
        let ranged: Vec<char> = self.letters(|n| matches!(n, Need::Range { .. }));
        let [key] = ranged[..] else { return None };
        if self.is_given() {
            return Some(self.has_all_rows());
        }
        let in_left = self.spec.lhs.contains(&key);
        if in_left == self.spec.rhs.contains(&key) {
            return None;
        }
        self.left = !in_left;
        let keys = letters(!self.left);
        // Keys are the same for the heads that share them.
        if self.letters(|n| matches!(n, Need::Whole(n) if *n > 1)).iter().any(|c| keys.contains(c)) {
            return None;
        }
        let mut along = self.spec.out.iter().zip(&self.need).filter(|(c, _)| !keys.contains(c)).filter_map(|(_, n)| n.row());
        self.along = along.next();
        let summed = self.spec.summed();
        let depth = |c: &char| self.spec.lhs.iter().position(|l| l == c).map(|a| self.lhs_shape()[a].known());
        if summed.is_empty() || summed.iter().any(|c| depth(c).flatten().is_none()) {
            return None;
        }
        Some(self.has_all_rows())
    }
    /// Whether a row of the scores is a row of the product: every axis of the scores is one of it.
    fn has_all_rows(&self) -> bool {
        let rows = self.ty(self.scores).rank() - 1;
        (0..rows).all(|a| self.need.iter().any(|n| n.row() == Some(a)) || self.ty(self.scores).shape[a].is(1))
    }
    fn lhs_shape(&self) -> &'a [Dim] {
        &self.ty(self.func.def(self.product).inputs[0]).shape
    }
    /// The result letters of the product whose need is such.
    fn letters(&self, is: impl Fn(&Need) -> bool) -> Vec<char> {
        self.spec.out.iter().zip(&self.need).filter(|(_, n)| is(n)).map(|(c, _)| *c).collect()
    }
    fn range(&self) -> (i64, Dim, i64) {
        let found = self.need.iter().find_map(|n| match n {
            Need::Range { mul, lo, len } => Some((*mul, lo.clone(), *len)),
            Need::Row(_) | Need::Whole(_) => None,
        });
        found.expect("one axis is of keys")
    }
    /// How many rows of the product belong to one of the scores.
    fn heads(&self) -> i64 {
        self.need.iter().map(|n| if let Need::Whole(n) = n { *n } else { 1 }).product()
    }

    /// Looks for `select(j <= last, score, -inf)`.
    fn last_candidate(&self) -> Option<(Value, Vec<Option<usize>>)> {
        let node = self.func.def(self.scores);
        let (Op::Map(MapFn::Select), [cond, _, never]) = (&node.op, &node.inputs[..]) else { return None };
        if !self.is_splat(*never, f64::NEG_INFINITY) {
            return None;
        }
        let rank = self.ty(self.scores).rank();
        let (v, axes) = self.spread(*cond, (0..rank).map(Some).collect());
        let node = self.func.def(v);
        let (Op::Map(MapFn::Le), [j, last]) = (&node.op, &node.inputs[..]) else { return None };
        let (j, of_j) = self.spread(*j, axes.clone());
        let is_index = matches!(self.func.def(j).op, Op::Iota(_)) && of_j == [Some(rank - 1)];
        (is_index && self.is_free_of(*last, &axes, rank - 1)).then_some((*last, axes))
    }
    /// Looks for `select(a <= b, x, y)` of the product's shape, where `a` grows with the key and `b` with the row.
    fn mask(&self) -> Option<Mask> {
        let shape = &self.ty(self.product).shape;
        let axis = |is: &dyn Fn(&Need) -> bool| self.need.iter().position(is);
        let key = axis(&|n| matches!(n, Need::Range { .. }))?;
        let row = axis(&|n| matches!(n, Need::Row(a) if Some(*a) == self.along))?;
        self.func.nodes.values().filter(|n| matches!(n.op, Op::Map(MapFn::Select)) && n.types[0].shape == *shape).find_map(|n| {
            let (v, axes) = self.spread(n.inputs[0], (0..shape.len()).map(Some).collect());
            let (Op::Map(MapFn::Le), [a, b]) = (&self.func.def(v).op, &self.func.def(v).inputs[..]) else { return None };
            let others = |v: Value, own: usize| (0..shape.len()).all(|o| o == own || self.is_free_of(v, &axes, o));
            let grows = |v: Value| self.grows(v, &axes);
            let found = others(*a, key) && others(*b, row) && grows(*a) && grows(*b);
            found.then(|| Mask { value: n.inputs[0], keys: (*a, axes.clone()), rows: (*b, axes) })
        })
    }
    /// Whether a value whose axes are these is no less where an index is greater, for certain.
    fn grows(&self, v: Value, axes: &[Option<usize>]) -> bool {
        if let Some((x, below)) = self.spread_once(v, axes) {
            return self.grows(x, &below);
        }
        let node = self.func.def(v);
        let positive = |v: Value| matches!(&self.func.def(self.spread(v, axes.to_vec()).0).op, Op::Const(c, _) if c.get() > 0.0);
        match (&node.op, &node.inputs[..]) {
            (Op::Const(..) | Op::Extent(..) | Op::Iota(_), _) => true,
            (Op::Map(MapFn::Add | MapFn::Min | MapFn::Max), [a, b]) => self.grows(*a, axes) && self.grows(*b, axes),
            (Op::Map(MapFn::Mul | MapFn::FloorDiv), [a, b]) => self.grows(*a, axes) && positive(*b),
            (Op::Map(MapFn::Sub), [a, b]) => self.grows(*a, axes) && axes.iter().flatten().all(|x| self.is_free_of(*b, axes, *x)),
            _ => false,
        }
    }
    /// What is spread along axes, by broadcasts and by axes of one index that come and go, and which axes its own are.
    fn spread(&self, mut v: Value, mut axes: Vec<Option<usize>>) -> (Value, Vec<Option<usize>>) {
        while let Some((x, below)) = self.spread_once(v, &axes) {
            (v, axes) = (x, below);
        }
        (v, axes)
    }
    fn spread_once(&self, v: Value, axes: &[Option<usize>]) -> Option<(Value, Vec<Option<usize>>)> {
        let node = self.func.def(v);
        let x = *node.inputs.first()?;
        match &node.op {
            Op::Broadcast { axes: to, .. } => Some((x, to.iter().map(|a| axes[*a]).collect())),
            Op::Reshape(_) => {
                let (from, to) = (&self.ty(x).shape, &self.ty(v).shape);
                let is_long = |d: &&Dim| !d.is(1);
                if !from.iter().filter(is_long).eq(to.iter().filter(is_long)) {
                    return None;
                }
                let mut long = to.iter().zip(axes).filter(|(d, _)| !d.is(1)).map(|(_, a)| *a);
                Some((x, from.iter().map(|d| if d.is(1) { None } else { long.next().flatten() }).collect()))
            }
            _ => None,
        }
    }
    /// Whether a value whose axes are these reads something along `axis` that is not the product.
    fn reads_along(&self, v: Value, axes: &[Option<usize>], axis: Option<usize>) -> bool {
        if v == self.product {
            return false;
        }
        let node = self.func.def(v);
        match (&node.op, self.spread_once(v, axes)) {
            (_, Some((x, below))) => self.reads_along(x, &below, axis),
            (Op::Const(..) | Op::Extent(..) | Op::Iota(_), _) => false,
            (Op::Map(_) | Op::Cast(_), _) => node.inputs.iter().any(|x| self.reads_along(*x, axes, axis)),
            _ => axes.contains(&axis),
        }
    }
    fn is_splat(&self, v: Value, x: f64) -> bool {
        let node = self.func.def(v);
        match &node.op {
            Op::Const(c, _) => c.get() == x,
            Op::Broadcast { .. } | Op::Cast(_) => self.is_splat(node.inputs[0], x),
            _ => false,
        }
    }
    /// Whether a value whose axes are these axes of the scores does not depend on one of them.
    fn is_free_of(&self, v: Value, axes: &[Option<usize>], axis: usize) -> bool {
        let node = self.func.def(v);
        match &node.op {
            _ if !axes.contains(&Some(axis)) => true,
            Op::Const(..) | Op::Extent(..) => true,
            Op::Map(_) | Op::Cast(_) => node.inputs.iter().all(|x| self.is_free_of(*x, axes, axis)),
            _ => self.spread_once(v, axes).is_some_and(|(x, below)| self.is_free_of(x, &below, axis)),
        }
    }
}

/// Both needs.
fn join(a: &[Need], b: &[Need]) -> Option<Vec<Need>> {
    let one = |(a, b): (&Need, &Need)| match (a, b) {
        _ if a == b => Some(a.clone()),
        (x, Need::Whole(1)) | (Need::Whole(1), x) => Some(x.clone()),
        (Need::Range { mul, lo, len }, Need::Range { mul: m, lo: l, len: n }) if mul == m => {
            let gap = (l.clone() - lo.clone()).known()?;
            let end = (gap + n).max(*len);
            let lo = if gap < 0 { l } else { lo };
            Some(Need::Range { mul: *mul, lo: lo.clone(), len: end - gap.min(0) })
        }
        (Need::Whole(a), Need::Whole(b)) => Some(Need::Whole(*a.max(b))),
        _ => None,
    };
    a.iter().zip(b).map(one).collect()
}

/// A value that is in scratch, of the block's rows and the chunk's keys.
pub(super) struct Tile {
    pub(super) value: Value,
    mem: Mem,
    /// Where it begins.
    base: Expr,
    /// For each axis of the value: its first index and the elements from one to the next. Axes of one index have none.
    axes: Vec<Option<(Expr, i64)>>,
    /// The axis of keys and how many there are, if what is read in vain, as a padding is, may be outside.
    keys: Option<(usize, i64)>,
    /// Where the element at hand is.
    own: Option<(Vec<Expr>, Expr)>,
}

impl Fuser<'_> {
    /// The element of a value in scratch, if it is.
    pub(super) fn in_scratch(&self, v: Value, idx: &[Expr]) -> Option<Expr> {
        let t = self.tiles.iter().find(|t| t.value == v)?;
        if let Some((_, at)) = t.own.as_ref().filter(|(own, _)| own == idx) {
            return Some(Expr::load(t.mem, at.clone()));
        }
        let mut at = t.base.clone();
        for (a, i) in t.axes.iter().zip(idx).enumerate().filter_map(|(a, (x, i))| x.as_ref().map(|x| ((a, x), i))) {
            let (a, (first, stride)) = a;
            let mut near = i.clone() - first.clone();
            if let Some((_, n)) = t.keys.filter(|(keys, _)| *keys == a) {
                near = Expr::maximum(Expr::int(0), Expr::minimum(near, Expr::int(n - 1)));
            }
            at = at + near * Expr::int(*stride);
        }
        Some(Expr::load(t.mem, at))
    }
    /// Statements written by hand, at the end of the innermost open loop.
    fn by_hand(&mut self, write: impl FnOnce(&mut Build)) {
        let mut b = Build::on(std::mem::replace(&mut self.kernel, Kernel::new("")));
        write(&mut b);
        self.kernel = b.finish();
        let stmts = std::mem::take(&mut self.kernel.body);
        let level = self.scopes.len() - 1;
        self.var_level.resize(self.kernel.vars.len(), level);
        self.scopes[level].stmts.extend(stmts);
    }
    /// `for i in lo..hi`, of the innermost open loop; the loops are closed by [`Fuser::close_loops`].
    fn open(&mut self, lo: Expr, hi: Expr, kind: LoopKind, loops: &mut Vec<super::Loop>) -> Expr {
        let var: VarId = self.new_var(DType::I64, self.scopes.len());
        self.scopes.push(Scope::default());
        loops.push((var, lo, hi, kind));
        Expr::Var(var)
    }
    /// `if cond`, of the innermost open loop.
    fn branch(&mut self, cond: Expr, then: impl FnOnce(&mut Self), otherwise: impl FnOnce(&mut Self)) {
        self.scopes.push(Scope::default());
        then(self);
        let then = self.scopes.pop().expect("it was opened").stmts;
        self.scopes.push(Scope::default());
        otherwise(self);
        let otherwise = self.scopes.pop().expect("it was opened").stmts;
        self.here(Stmt::If { cond, then, otherwise });
    }
    fn here(&mut self, s: Stmt) {
        self.scopes.last_mut().expect("a scope").stmts.push(s);
    }
    /// Closes loops; the innermost is turn after turn if it has a loop in it that is not.
    fn close(&mut self, mut loops: Vec<super::Loop>) {
        let spread = spreads(&self.scopes.last().expect("a scope").stmts);
        if let Some(last) = loops.last_mut().filter(|_| spread) {
            last.3 = LoopKind::Serial;
        }
        self.close_loops(loops);
    }
}

/// Whether a loop in statements is not turn after turn.
fn spreads(stmts: &[Stmt]) -> bool {
    stmts.iter().any(|s| {
        let own = matches!(s, Stmt::For { kind: LoopKind::Vector | LoopKind::Parallel, .. });
        own || s.lists().into_iter().any(spreads)
    })
}

/// The kernel that is written with the operands where they are, if it can be.
fn emitted(
    s: &Select,
    places: &[StridedView],
    target: &StridedView,
    write: impl FnOnce(&mut Fuser) -> Option<()>,
) -> Option<Fused> {
    let n = s.func.nodes.len();
    let grouping = Grouping { root: vec![false; n], reads: vec![Vec::new(); n], ..Grouping::default() };
    let mut all: Vec<Vec<Option<StridedView>>> = s.func.nodes.values().map(|n| vec![None; n.types.len()]).collect();
    places.iter().enumerate().for_each(|(i, p)| all[i][0] = Some(p.clone()));
    let scene = Scene { func: s.func, grouping: &grouping, places: &all };
    let mut f = Fuser::new(&scene, s.func.outputs[0].value, target);
    write(&mut f)?;
    Some(f.finish())
}

/// Sizes and memory of the kernel.
struct Emit<'a> {
    s: &'a Select<'a>,
    shape: &'a [Dim],
    /// Rows of the scores in a block, and of the product for each.
    queries: i64,
    heads: i64,
    /// Keys of a chunk, and for how many candidates.
    width: i64,
    chunk: i64,
    /// Of the keys of a candidate, those that belong to the one before too and whose sums a chunk takes over from the chunk before.
    carried: i64,
    depth: i64,
    dtype: DType,
    mem: Memory,
}

/// Candidates that are looked at together.
struct Chunk {
    /// The first, and how many.
    first: Expr,
    here: Expr,
    /// The first key that they ask for and that is not taken over; of these `from..to` exist, out of `reach`.
    key: Expr,
    from: Expr,
    to: Expr,
    reach: Expr,
}

struct Memory {
    queries: Mem,
    keys: Mem,
    scores: Mem,
    sums: Mem,
}

impl<'a> Emit<'a> {
    /// Sizes and memory; for many processors with the dtype of operands in scratch.
    fn new(s: &'a Select<'a>, f: &mut Fuser, many: Option<DType>) -> Emit<'a> {
        let shape = &s.ty(s.scores).shape[..];
        let heads = s.heads();
        let queries = if s.along.is_some() { (TILE / heads.max(1)).max(1) } else { 1 };
        let (mul, _, len) = s.range();
        let (chunk, width, carried) = match many {
            None => (chunk(mul), mul * (chunk(mul) - 1) + len, 0),
            // Columns of a product on tensor cores come in sixteens.
            Some(_) => {
                let width = (len.max(MANY_KEYS) + 15) / 16 * 16;
                // Before the first chunk there must be no keys that it would take over.
                let none_before = s.range().1.known().is_some_and(|lo| lo + len - mul <= 0);
                match len > mul && s.fold != Fold::No && width % mul == 0 && none_before {
                    true => (width / mul, width, len - mul),
                    false => ((width - len) / mul + 1, width, 0),
                }
            }
        };
        let summed = s.spec.summed();
        let extent = |c: &char| s.spec.lhs.iter().position(|l| l == c).and_then(|a| s.lhs_shape()[a].known());
        let depth: i64 = summed.iter().map(|c| extent(c).expect("checked before")).product();
        let dtype = compute_dtype(s.ty(s.product).dtype.accumulator());
        let k = &mut f.kernel;
        k.name = "select".into();
        let mut scratch = |name: &str, dtype, elems: i64| k.scratch(name, dtype, elems.max(1) as usize);
        let mem = Memory {
            queries: scratch("queries", many.unwrap_or(dtype), queries * heads * depth),
            keys: scratch("keys", many.unwrap_or(dtype), depth * width),
            scores: scratch("scores", dtype, queries * heads * width),
            sums: scratch("sums", dtype, if carried > 0 { 2 * queries * (width + carried) } else { queries * width }),
        };
        Emit { s, shape, queries, heads, width, chunk, carried, depth, dtype, mem }
    }

    /// Where the block's rows of the scores begin, how many there are, and how many candidates.
    fn rows(&self, f: &mut Fuser) -> (Vec<Expr>, Expr, Expr) {
        let s = self.s;
        let rank = self.shape.len();
        let mut counts: Vec<Dim> = self.shape[..rank - 1].to_vec();
        if let Some(a) = s.along {
            counts[a] = counts[a].ceil_div(&Dim::from(self.queries));
        }
        f.kernel.grid = counts.iter().fold(Dim::from(1), |n, d| n * d.clone());
        let mut at = vec![Expr::int(0); rank - 1];
        let mut rest = f.kernel.block();
        for a in (0..rank - 1).rev() {
            let n = f.kernel.dim(&counts[a]);
            at[a] = f.bind(Expr::rem(rest.clone(), n.clone()));
            rest = f.bind(Expr::floor_div(rest, n));
        }
        let mut rows = Expr::int(1);
        if let Some(a) = s.along {
            at[a] = f.bind(at[a].clone() * Expr::int(self.queries));
            let n = f.kernel.dim(&self.shape[a]);
            rows = f.bind(Expr::minimum(Expr::int(self.queries), n - at[a].clone()));
        }
        let n = f.kernel.dim(&self.shape[rank - 1]);
        (at, rows, n)
    }
    /// Chunk `c` of the candidates before `end`.
    fn chunk_at(&self, f: &mut Fuser, c: Expr, end: Expr) -> Chunk {
        let s = self.s;
        let first = f.bind(c * Expr::int(self.chunk));
        let here = f.bind(Expr::minimum(Expr::int(self.chunk), end - first.clone()));
        let (mul, lo, len) = s.range();
        let (len, lo) = (len - self.carried, f.kernel.dim(&(lo + Dim::from(self.carried))));
        let key = f.bind(first.clone() * Expr::int(mul) + lo);
        let num_keys = {
            let at = self.s.need.iter().position(|n| matches!(n, Need::Range { .. })).expect("one axis is of keys");
            f.kernel.dim(&s.ty(s.product).shape[at])
        };
        // Of the keys that the chunk's candidates ask for, those that there are.
        let reach = f.bind((here.clone() - Expr::int(1)) * Expr::int(mul) + Expr::int(len));
        // Where candidates have no keys before the first, every chunk begins with one.
        let begins = s.range().1.known().is_some_and(|lo| lo + self.carried >= 0);
        let before = || Expr::minimum(Expr::maximum(Expr::int(0) - key.clone(), Expr::int(0)), reach.clone());
        let from = if begins { Expr::int(0) } else { f.bind(before()) };
        let to = f.bind(Expr::minimum(Expr::maximum(num_keys - key.clone(), from.clone()), reach.clone()));
        Chunk { first, here, key, from, to, reach }
    }

    /// The index of a value of the product's letters: rows of the block from `at`, `query` along, heads, the key, the rest from `inner`.
    fn index(&self, letters: &[char], at: &[Expr], query: &Expr, heads: &BTreeMap<char, Expr>, key: Option<&Expr>) -> Vec<Expr> {
        let of = |c: &char| {
            let need = self.s.spec.out.iter().position(|o| o == c).map(|i| &self.s.need[i]);
            match need {
                Some(Need::Row(a)) if Some(*a) == self.s.along => at[*a].clone() + query.clone(),
                Some(Need::Row(a)) => at[*a].clone(),
                Some(Need::Range { .. }) => key.expect("keys are asked for").clone(),
                Some(Need::Whole(_)) | None => heads.get(c).cloned().unwrap_or_else(|| Expr::int(0)),
            }
        };
        letters.iter().map(of).collect()
    }
    /// The letters that end inside, with their extents.
    fn inside(&self) -> Vec<(char, i64)> {
        let whole = |(c, n): (&char, &Need)| if let Need::Whole(n) = n { Some((*c, *n)) } else { None };
        self.s.spec.out.iter().zip(&self.s.need).filter_map(whole).collect()
    }
    /// The letters that end inside at turn `number` of loops over them.
    fn inside_at(&self, f: &mut Fuser, number: Expr) -> BTreeMap<char, Expr> {
        let mut rest = f.bind(number);
        let mut found = BTreeMap::new();
        for (c, n) in self.inside().into_iter().rev() {
            found.insert(c, f.bind(Expr::rem(rest.clone(), Expr::int(n))));
            rest = f.bind(Expr::floor_div(rest, Expr::int(n)));
        }
        found
    }
    /// Loops over the letters that end inside, and the number of the turn.
    fn open_heads(&self, f: &mut Fuser, loops: &mut Vec<super::Loop>) -> (BTreeMap<char, Expr>, Expr) {
        let (mut found, mut number) = (BTreeMap::new(), Expr::int(0));
        for (c, n) in self.inside() {
            let i = f.open(Expr::int(0), Expr::int(n), LoopKind::Serial, loops);
            number = number * Expr::int(n) + i.clone();
            found.insert(c, i);
        }
        (found, f.bind(number))
    }
    fn operand(&self, queries: bool) -> (Value, &'a [char]) {
        let s = self.s;
        let left = s.left == queries;
        let v = s.func.def(s.product).inputs[usize::from(!left)];
        (v, if left { &s.spec.lhs } else { &s.spec.rhs })
    }

    /// Where the sums of an even chunk (0) or an odd one (1) begin, if some are taken over: what a chunk leaves for the next does not lie where its own front
    /// still is.
    fn sums_at(&self, side: &Expr) -> Expr {
        let all = self.queries * (self.width + self.carried);
        if self.carried > 0 { side.clone() * Expr::int(all) } else { Expr::int(0) }
    }
    /// What a fold of none gives.
    fn nothing(&self) -> Expr {
        neutral(self.s.fold.how().unwrap_or(ReduceFn::Sum), self.dtype)
    }
    /// Whether the maps after the product read something that lies along the keys.
    fn reads_by_key(&self) -> bool {
        let s = self.s;
        let key = s.need.iter().position(|n| matches!(n, Need::Range { .. }));
        s.reads_along(s.mapped, &(0..s.need.len()).map(Some).collect::<Vec<_>>(), key)
    }
    /// One past the last candidate that some row of the block may take.
    fn end(&self, f: &mut Fuser, at: &[Expr], rows: &Expr, n: Expr) -> Expr {
        let Some((last, axes)) = &self.s.last else { return n };
        let end = f.new_var(DType::I64, f.scopes.len() - 1);
        f.here(Stmt::Var(end, Expr::int(0)));
        let mut loops = Vec::new();
        let q = f.open(Expr::int(0), rows.clone(), LoopKind::Serial, &mut loops);
        let index = |a: &Option<usize>| match a {
            Some(a) if Some(*a) == self.s.along => at[*a].clone() + q.clone(),
            Some(a) if *a < at.len() => at[*a].clone(),
            Some(_) | None => Expr::int(0),
        };
        let idx: Vec<Expr> = axes.iter().map(index).collect();
        let value = f.eval(*last, &idx).cast(DType::I64) + Expr::int(1);
        f.here(Stmt::Assign(end, Expr::maximum(Expr::Var(end), Expr::minimum(value, n))));
        f.close_loops(loops);
        Expr::Var(end)
    }

    /// Where a value with the product's axes is; rows of the sums have those that are taken over in front.
    fn tile(&self, value: Value, letters: &[char], mem: Mem, at: &[Expr], key: &Expr, heads: i64) -> Tile {
        let width = if mem == self.mem.sums { self.width + self.carried } else { self.width };
        self.tile_of(value, letters, mem, at, key, [heads, width])
    }
    /// The same of rows of as many elements.
    fn tile_of(&self, value: Value, letters: &[char], mem: Mem, at: &[Expr], key: &Expr, [heads, width]: [i64; 2]) -> Tile {
        let mut stride = BTreeMap::new();
        let mut next = width;
        if heads > 1 {
            for (c, n) in self.inside().into_iter().rev() {
                stride.insert(c, next);
                next *= n;
            }
        }
        let mut keys = None;
        let mut axes = Vec::new();
        for (a, c) in letters.iter().enumerate() {
            let need = self.s.spec.out.iter().position(|o| o == c).map(|i| &self.s.need[i]);
            axes.push(match need {
                Some(Need::Row(r)) if Some(*r) == self.s.along => Some((at[*r].clone(), heads * width)),
                Some(Need::Row(_)) | None => None,
                Some(Need::Range { .. }) => {
                    keys = self.s.in_vain.then_some((a, width));
                    Some((key.clone(), 1))
                }
                Some(Need::Whole(_)) => stride.get(c).map(|s| (Expr::int(0), *s)),
            });
        }
        Tile { value, mem, base: Expr::int(0), axes, keys, own: None }
    }
    /// The factor of a row's head, if the fold has weights.
    fn weight(&self, f: &mut Fuser, at: &[Expr], query: &Expr, heads: &BTreeMap<char, Expr>) -> Option<Expr> {
        let Fold::Weighted(v, c, right) = &self.s.fold else { return None };
        // The weight's letters in the names of the product's.
        let own = if *right { &c.rhs } else { &c.lhs };
        let mapped = if *right { &c.lhs } else { &c.rhs };
        let name = |l: &char| mapped.iter().position(|m| m == l).map(|i| self.s.spec.out[i]);
        let letters: Vec<char> = own.iter().map(|l| name(l).unwrap_or('\0')).collect();
        let idx = self.index(&letters, at, query, heads, None);
        let w = f.eval(*v, &idx);
        Some(f.bind(w))
    }
    /// From here on the folded value is in scratch, from `base` on; its first key, as the value counts them.
    fn folded(&self, f: &mut Fuser, at: &[Expr], key: &Expr, base: Expr) -> Expr {
        let s = self.s;
        let letters: Vec<char> = match &s.fold {
            Fold::No | Fold::Reduce(_) => {
                let node = s.func.def(s.folded);
                let Op::Reduce(_, axes) = &node.op else { base::bug!("a reduction") };
                (0..s.spec.out.len()).filter(|a| !axes.contains(a)).map(|a| s.spec.out[a]).collect()
            }
            Fold::Weighted(_, c, right) => {
                let mapped = if *right { &c.lhs } else { &c.rhs };
                let name = |l: &char| mapped.iter().position(|m| m == l).map_or('\0', |i| s.spec.out[i]);
                c.out.iter().map(name).collect()
            }
        };
        let (value, key) = match &s.padded {
            Some((padded, low)) => (*padded, key.clone() + f.kernel.dim(low)),
            None => (s.folded, key.clone()),
        };
        let key = f.bind(key - Expr::int(self.carried));
        f.tiles = vec![Tile { base, ..self.tile(value, &letters, self.mem.sums, at, &key, 1) }];
        key
    }
}
