//! Regions: ops that are computed together, so that what is large between them is never stored. Every rule has one law: values computed inside
//! of a region are those computed outside. So the rules say what is worth it, and a target's cost whether it has a kernel.

use super::{Class, Family, How, Rule};
use crate::rewrite::{Site, Term};
use base::{DType, TensorType};
use egg::Id;
use graph::{
    Func, Op, Role, Value,
    op::{Form, Fused},
};
use std::collections::{BTreeMap, BTreeSet};

/// The table.
pub fn rules() -> Vec<Rule> {
    let rule = |name, family, root, f| Rule { name, family, class: Class::Exact, how: How::Outline(root, f) };
    vec![rule("topk-of-scores", Family::Attention, "topk", topk_of_scores)]
}

/// How many extents are run-time dims.
fn degree(shape: &[base::Dim]) -> usize {
    shape.iter().filter(|d| d.known().is_none()).count()
}

/// A region being cut out, from its end.
struct Cut<'a> {
    site: &'a Site<'a>,
    /// Values with more run-time dims than this are not to be stored.
    most: usize,
    /// The classes so far, operands first.
    order: Vec<Inside>,
    open: BTreeSet<Id>,
    index: BTreeMap<Id, bool>,
    /// What is taken as it is although it is large.
    stored: Option<Id>,
}

impl<'a> Cut<'a> {
    fn new(site: &'a Site<'a>, most: usize, stored: Option<Id>) -> Cut<'a> {
        Cut { site, most, order: Vec::new(), open: BTreeSet::new(), index: BTreeMap::new(), stored }
    }
    fn is_wide(&self, ty: &TensorType) -> bool {
        degree(&ty.shape) > self.most
    }
    /// Whether a class is computed from indices and constants alone.
    fn is_index(&mut self, class: Id) -> bool {
        let class = self.site.egraph.find(class);
        if let Some(known) = self.index.get(&class) {
            return *known;
        }
        self.index.insert(class, false);
        let is = self.site.defs(class).any(|(op, of)| match &*op {
            Op::Const(..) | Op::Extent(..) | Op::Iota(_) => true,
            Op::Map(_) | Op::Cast(_) | Op::Broadcast { .. } | Op::Reshape(_) | Op::Transpose(_) | Op::Slice { .. } => {
                of.iter().all(|c| self.is_index(*c))
            }
            _ => false,
        });
        self.index.insert(class, is);
        is
    }
    /// Whether an op of a class belongs inside.
    fn belongs(&mut self, class: Id, op: &Op, of: &[Id]) -> bool {
        let wide = self.is_wide(self.site.ty_of(class));
        match op {
            Op::Const(..) | Op::Extent(..) | Op::Iota(_) => true,
            // What was narrowed is stored as it is.
            Op::Cast(DType::TF32 | DType::BF16 | DType::F16 | DType::E4M3) => wide || self.is_index(class),
            Op::Broadcast { .. } | Op::Reshape(_) | Op::Transpose(_) | Op::Slice { .. } | Op::Cast(_) => true,
            Op::Map(_) | Op::Reduce(..) | Op::Pad { .. } => wide || self.is_index(class),
            // What is summed of large values is few.
            Op::Contract(c) => {
                let wide_below = of.iter().any(|x| self.is_wide(self.site.ty_of(*x)));
                let shape = &self.site.ty_of(of[0]).shape;
                let few = c.lhs.iter().zip(shape).all(|(l, d)| c.out.contains(l) || d.known().is_some());
                (wide || wide_below) && few
            }
            Op::Arg(_)
            | Op::Concat(_)
            | Op::Gather { .. }
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
            | Op::StopGradient
            | Op::Repeat(_)
            | Op::Fused(_) => false,
        }
    }
    /// Takes a class in, with what it is computed from; false if that cannot be without storing a large value.
    fn take(&mut self, class: Id) -> bool {
        let class = self.site.egraph.find(class);
        if self.order.iter().any(|(c, _)| *c == class) {
            return true;
        }
        if self.open.contains(&class) {
            return false;
        }
        if self.stored == Some(class) {
            self.order.push((class, None));
            return true;
        }
        // What is widened is read as it lies; else an argument is not computed anew from what else is equal to it.
        let whole = self.site.egraph[class].data.whole_arg;
        let widens = |op: &Op, of: &[Id]| {
            matches!(op, Op::Cast(DType::F32)) && matches!(self.site.ty_of(of[0]).dtype, DType::TF32 | DType::BF16 | DType::F16)
        };
        let defs = self.site.defs(class).filter(|(op, of)| !whole || widens(op, of)).collect::<Vec<_>>();
        if !defs.is_empty() {
            self.open.insert(class);
            for (op, of) in defs {
                let before = self.order.len();
                if self.belongs(class, &op, of) && of.iter().all(|c| self.take(*c)) {
                    self.open.remove(&class);
                    let of = of.iter().map(|c| self.site.egraph.find(*c)).collect();
                    self.order.push((class, Some((op.into_owned(), of))));
                    return true;
                }
                self.order.truncate(before);
            }
            self.open.remove(&class);
        }
        let small = self.site.egraph[class].data.whole_arg || !self.is_wide(self.site.ty_of(class));
        if small {
            self.order.push((class, None));
        }
        small
    }
}

/// A class of a region, with the op that computes it inside; none for what the region takes.
pub(super) type Inside = (Id, Option<(Op, Vec<Id>)>);

/// Whether a class can be computed from one of the others.
pub(super) fn depends(site: &Site, class: Id, on: &BTreeSet<Id>) -> bool {
    let (mut seen, mut open) = (BTreeSet::new(), vec![site.egraph.find(class)]);
    while let Some(c) = open.pop() {
        if on.contains(&c) {
            return true;
        }
        if seen.insert(c) {
            open.extend(site.egraph[c].nodes.iter().flat_map(|n| &n.children).map(|x| site.egraph.find(*x)));
        }
    }
    false
}

/// Classes that can be computed from some of these, and these.
pub(super) fn dependents(site: &Site, on: impl Iterator<Item = Id>) -> BTreeSet<Id> {
    let (mut seen, mut open) = (BTreeSet::new(), on.map(|c| site.egraph.find(c)).collect::<Vec<_>>());
    while let Some(class) = open.pop() {
        if seen.insert(class) {
            open.extend(site.egraph[class].parents().map(|user| site.egraph.find(user)));
        }
    }
    seen
}

/// A region that was cut out.
pub(super) struct Region {
    /// The op.
    pub fused: Fused,
    operands: Vec<Term>,
    results: Vec<Id>,
}

impl Region {
    /// The classes that it computes.
    pub fn terms(self) -> Vec<(Id, Term)> {
        let term = Term::Op(Op::Fused(Box::new(self.fused)), self.operands);
        match self.results[..] {
            [only] => vec![(only, term)],
            _ => self.results.into_iter().zip(0..).map(|(class, i)| (class, Term::Result(i, Box::new(term.clone())))).collect(),
        }
    }
}

/// The region of these classes, operands first, that gives `results`.
pub(super) fn region(site: &Site, form: Form, order: &[Inside], results: &[Id]) -> Region {
    region_with(site, form, order, results, &[])
}

/// The same, where some classes are another result of the op that computes one inside: the class, which result, and that one.
pub(super) fn region_with(site: &Site, form: Form, order: &[Inside], results: &[Id], beside: &[(Id, u32, Id)]) -> Region {
    let mut body = Func::new("body");
    let mut values: BTreeMap<Id, Value> = BTreeMap::new();
    let mut operands = Vec::new();
    for (class, _) in order.iter().filter(|(_, op)| op.is_none()) {
        let ty = site.ty_of(*class).clone();
        values.insert(*class, body.arg(&format!("x{}", operands.len()), Role::Inner, ty));
        operands.push(Term::from(*class));
    }
    for (class, op) in order {
        let Some((op, of)) = op else { continue };
        let inputs: Vec<Value> = of.iter().map(|c| values[&site.egraph.find(*c)]).collect();
        let node = body.add(op.clone(), &inputs, None).unwrap_or_else(|e| base::bug!("a region of misfits: {e}"));
        values.insert(*class, Value { node, index: 0 });
        let others = beside.iter().filter(|(.., first)| first == class);
        values.extend(others.map(|(other, index, _)| (*other, Value { node, index: *index })));
    }
    for (i, class) in results.iter().enumerate() {
        body.output(&format!("y{i}"), Role::Inner, values[class]);
    }
    Region { fused: Fused { form, body }, operands, results: results.to_vec() }
}

// topₖ(f(q·k)): each row keeps its best so far while its scores are computed; no row of scores is whole in memory. Where a score belongs to a
// pair of positions, or of a position and a block of them, and is computed from products that themselves are not argument or result.
fn topk_of_scores(site: &Site) -> Vec<(Id, Term)> {
    let (Op::TopK(_), [scores]) = (site.op, site.children) else { return Vec::new() };
    let (_, rows) = site.ty_of(*scores).shape.split_last().expect("a row to choose from");
    let most = degree(rows);
    let mut cut = Cut::new(site, most, None);
    let large = cut.is_wide(site.ty_of(*scores));
    if !large || !cut.take(*scores) {
        return Vec::new();
    }
    let product = cut.order.iter().find_map(|(class, op)| matches!(op, Some((Op::Contract(_), _))).then_some(*class));
    let Some(product) = product else { return Vec::new() };
    let region_of = |mut order: Vec<Inside>| {
        order.push((site.class, Some((site.op.clone(), site.children.to_vec()))));
        region(site, Form::Select, &order, &[site.class]).terms()
    };
    let mut found = region_of(cut.order);
    // Of few rows the product may be there: others want it, or have it on the way.
    let mut cut = Cut::new(site, most, Some(product));
    if most <= 1 && cut.take(*scores) {
        found.extend(region_of(cut.order));
    }
    found
}
