//! Reductions along a long axis of a product, such as the maximum of logits and the sum of their exponentials: regions whose axis is walked in
//! chunks, so that no logit is stored. As with all regions what is inside is computed as it would be outside, and a target's cost says whether it
//! is worth it.

use super::{
    Class, Family, How, Rule,
    regions::{Inside, region},
};
use crate::rewrite::{Site, Term};
use egg::Id;
use graph::{
    Op,
    op::{Form, ReduceFn},
    passes::{CHUNK, Stream},
};
use std::collections::{BTreeMap, BTreeSet};

/// The table.
pub fn rules() -> Vec<Rule> {
    let how = How::Outline("reduce", reduce_of_streamed);
    vec![Rule { name: "reduce-of-streamed", family: Family::Heads, class: Class::Exact, how }]
}

/// The ops of a region, as they were found.
#[derive(Clone, Default)]
struct Found {
    /// Classes, operands first, with the op that computes each; none for what the region takes.
    order: Vec<Inside>,
}

impl Found {
    fn has(&self, class: Id) -> bool {
        self.order.iter().any(|(c, _)| *c == class)
    }
    fn add(&mut self, other: Found) {
        for (class, op) in other.order {
            if !self.has(class) {
                self.order.push((class, op));
            }
        }
    }
    /// Ops, of which a product weighs as much as a chain of maps.
    fn weight(&self) -> usize {
        let of =
            |op: &Option<(Op, Vec<Id>)>| op.as_ref().map_or(0, |(op, _)| if matches!(op, Op::Contract(_)) { 100 } else { 1 });
        self.order.iter().map(|(_, op)| of(op)).sum()
    }
}

/// A walk down from a reduction along its axis.
struct Walk<'a> {
    site: &'a Site<'a>,
    open: BTreeSet<Id>,
    /// The lightest way to compute a class that has the axis here.
    known: BTreeMap<(Id, usize), Option<Found>>,
}

impl Walk<'_> {
    fn find(&self, class: Id) -> Id {
        self.site.egraph.find(class)
    }
    /// A class whose axis `a` is walked along.
    fn along(&mut self, class: Id, a: usize) -> Option<Found> {
        let class = self.find(class);
        if self.site.egraph[class].data.whole_arg {
            return Some(Found { order: vec![(class, None)] });
        }
        if let Some(known) = self.known.get(&(class, a)) {
            return known.clone();
        }
        if !self.open.insert(class) {
            return None;
        }
        let mut best: Option<Found> = None;
        for (op, of) in self.site.defs(class) {
            let Some(mut found) = self.operands(&op, of, a) else { continue };
            let of = of.iter().map(|c| self.find(*c)).collect();
            found.order.push((class, Some((op.into_owned(), of))));
            if best.as_ref().is_none_or(|b| found.weight() < b.weight()) {
                best = Some(found);
            }
        }
        self.open.remove(&class);
        self.known.insert((class, a), best.clone());
        best
    }
    /// What an op of a class along `a` needs.
    fn operands(&mut self, op: &Op, of: &[Id], a: usize) -> Option<Found> {
        let mut found = Found::default();
        match op {
            Op::Map(_) | Op::Cast(_) => {
                for x in of {
                    found.add(self.along(*x, a)?);
                }
            }
            Op::Transpose(perm) => found.add(self.along(of[0], perm[a])?),
            Op::Broadcast { axes, .. } => match axes.iter().position(|x| *x == a) {
                Some(at) => found.add(self.along(of[0], at)?),
                None => found.add(self.whole(of[0])),
            },
            Op::Contract(c) => {
                for (letters, x) in [&c.lhs, &c.rhs].into_iter().zip(of) {
                    match letters.iter().position(|l| *l == c.out[a]) {
                        Some(at) => found.add(self.along(*x, at)?),
                        None => found.add(Found { order: vec![(self.find(*x), None)] }),
                    }
                }
            }
            Op::Arg(_)
            | Op::Const(..)
            | Op::Extent(..)
            | Op::Iota(_)
            | Op::Reduce(..)
            | Op::Reshape(_)
            | Op::Slice { .. }
            | Op::Concat(_)
            | Op::Pad { .. }
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
            | Op::Fused(_) => return None,
        }
        Some(found)
    }
    /// A class that is repeated along the axis: a constant, the maximum along it, or what is computed elsewhere.
    fn whole(&mut self, class: Id) -> Found {
        let class = self.find(class);
        let mut found = Found::default();
        for (op, of) in self.site.defs(class) {
            match &*op {
                Op::Const(..) => {
                    found.order.push((class, Some((op.into_owned(), Vec::new()))));
                    return found;
                }
                Op::Reduce(ReduceFn::Max, axes) if axes.len() == 1 && is_long(self.site, of[0], axes[0]) => {
                    let Some(below) = self.along(of[0], axes[0]) else { continue };
                    found.add(below);
                    found.order.push((class, Some((op.clone().into_owned(), vec![self.find(of[0])]))));
                    return found;
                }
                _ => {}
            }
        }
        found.order.push((class, None));
        found
    }
}

/// Whether an axis has more than two chunks.
fn is_long(site: &Site, class: Id, axis: usize) -> bool {
    site.ty_of(class).shape[axis].known().is_some_and(|n| n >= 2 * CHUNK)
}

// Σ exp(x·W − m), and m = max x·W: reduced chunk by chunk of W's columns, with the sums scaled where the maximum grows; no product is whole in
// memory. Where there is a product whose columns are summed. The maximum is a result as well, for whoever else reads it.
fn reduce_of_streamed(site: &Site) -> Vec<(Id, Term)> {
    let (Op::Reduce(ReduceFn::Sum, axes), [x]) = (site.op, site.children) else { return Vec::new() };
    let [axis] = axes[..] else { return Vec::new() };
    if !is_long(site, *x, axis) {
        return Vec::new();
    }
    let mut walk = Walk { site, open: BTreeSet::new(), known: BTreeMap::new() };
    let Some(mut found) = walk.along(*x, axis) else { return Vec::new() };
    if !found.order.iter().any(|(_, op)| matches!(op, Some((Op::Contract(_), _)))) {
        return Vec::new();
    }
    found.order.push((walk.find(site.class), Some((site.op.clone(), vec![walk.find(*x)]))));

    let reduced = found.order.iter().filter(|(_, op)| matches!(op, Some((Op::Reduce(..), _))));
    let results: Vec<Id> = reduced.map(|(class, _)| *class).collect();
    let region = region(site, Form::Stream, &found.order, &results);
    if Stream::of(&region.fused, CHUNK).is_none() {
        return Vec::new();
    }
    region.terms()
}
