//! Regions of rows: what a router computes of a token's scores is one operator. As in `regions`, a value inside is the one outside, so the rule is exact.

use super::{
    Class, Family, How, Rule,
    regions::{Inside, depends, region},
};
use crate::rewrite::{Site, Term};
use base::Dim;
use egg::Id;
use graph::{Op, op::Form};
use std::collections::BTreeSet;

/// The table.
pub fn rules() -> Vec<Rule> {
    let how = How::Outline("topk", topk_of_rows);
    vec![Rule { name: "topk-of-rows", family: Family::Experts, class: Class::Exact, how }]
}

/// Elements of a value that belong to a row.
const MOST_ELEMS: i64 = 1024;
/// Ops of a region.
const MOST_OPS: usize = 48;
/// Results of a region.
const MOST_RESULTS: usize = 8;

/// A region being found.
struct Rows<'a> {
    site: &'a Site<'a>,
    rows: Dim,
    order: Vec<Inside>,
    open: BTreeSet<Id>,
    /// How many of `order` are ops.
    num_ops: usize,
}

impl Rows<'_> {
    fn has(&self, class: Id) -> bool {
        self.order.iter().any(|(c, _)| *c == class)
    }
    /// Whether a value has a few elements for each row.
    fn is_row(&self, class: Id) -> bool {
        let shape = &self.site.ty_of(class).shape;
        let few =
            |rest: &[Dim]| rest.iter().map(Dim::known).product::<Option<i64>>().is_some_and(|n| (1..=MOST_ELEMS).contains(&n));
        shape.first() == Some(&self.rows) && few(&shape[1..])
    }
    /// Whether an op leaves each row what it has.
    fn stays(&self, op: &Op, of: &[Id]) -> bool {
        let row = |i: usize| self.is_row(of[i]);
        match op {
            Op::Const(..) | Op::Iota(_) => true,
            Op::Map(_) | Op::Cast(_) => true,
            Op::Broadcast { axes, .. } => !row(0) || axes.first() == Some(&0),
            Op::Reshape(_) => row(0),
            Op::Transpose(perm) => row(0) && perm[0] == 0,
            Op::Slice { axis, .. } => row(0) && *axis > 0,
            Op::Reduce(_, axes) => row(0) && !axes.contains(&0),
            Op::TopK(_) => row(0),
            Op::Gather { batch } => *batch > 0 && row(0) && row(1),
            Op::Arg(_)
            | Op::Extent(..)
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
            | Op::StopGradient
            | Op::Repeat(_)
            | Op::Fused(_) => false,
        }
    }
    /// Takes a class in: with what it is computed from, or as it is; false if that cannot be.
    fn take(&mut self, class: Id) -> bool {
        let class = self.site.egraph.find(class);
        if self.has(class) {
            return true;
        }
        if self.open.contains(&class) {
            return false;
        }
        let ty = self.site.ty_of(class);
        let shared = ty.shape.iter().map(Dim::known).product::<Option<i64>>().is_some_and(|n| (1..=MOST_ELEMS).contains(&n));
        if !self.is_row(class) && !shared {
            return false;
        }
        // A product has a kernel of its own, whatever else it is equal to.
        let is_product = self.site.defs(class).any(|(op, _)| matches!(*op, Op::Contract(_)));
        if !self.site.egraph[class].data.whole_arg && !is_product {
            self.open.insert(class);
            for (op, of) in self.site.defs(class) {
                let before = (self.order.len(), self.num_ops);
                if self.num_ops < MOST_OPS && self.stays(&op, of) && of.iter().all(|c| self.take(*c)) {
                    self.open.remove(&class);
                    let of = of.iter().map(|c| self.site.egraph.find(*c)).collect();
                    self.order.push((class, Some((op.into_owned(), of))));
                    self.num_ops += 1;
                    return true;
                }
                self.order.truncate(before.0);
                self.num_ops = before.1;
            }
            self.open.remove(&class);
        }
        self.order.push((class, None));
        true
    }
    /// The classes that read a class, itself or through views of it.
    fn readers(&self, class: Id) -> Vec<Id> {
        let (mut found, mut open) = (BTreeSet::new(), vec![class]);
        while let Some(c) = open.pop() {
            for user in self.site.egraph[c].parents() {
                let op = self.site.egraph.analysis.op(self.site.egraph.id_to_node(user).head);
                let user = self.site.egraph.find(user);
                let view = op.is_some_and(|op| {
                    matches!(&*op, Op::Broadcast { .. } | Op::Reshape(_) | Op::Transpose(_) | Op::Slice { .. })
                });
                if found.insert(user) && view {
                    open.push(user);
                }
            }
        }
        found.into_iter().collect()
    }
}

// topₖ(f(s)), and what is computed of a row's scores and choices: one operator for each row, from scores to the weights of what is chosen. Where a row has few
// numbers and none reads another's; values that something outside reads are its results.
fn topk_of_rows(site: &Site) -> Vec<(Id, Term)> {
    let Some(rows) = site.ty.shape.first().filter(|d| d.known().is_none() && site.ty.rank() > 1) else { return Vec::new() };
    let mut r = Rows { site, rows: rows.clone(), order: Vec::new(), open: BTreeSet::new(), num_ops: 0 };
    if !r.is_row(site.children[0]) || !r.take(site.class) || !matches!(r.order.last(), Some((_, Some(_)))) {
        return Vec::new();
    }
    // What else can be computed of it, until nothing is new.
    let mut next = 0;
    while next < r.order.len() {
        let (class, op) = &r.order[next];
        next += 1;
        // What a row reads is read by others too.
        if op.is_none() {
            continue;
        }
        for user in r.readers(*class) {
            let computes = site
                .defs(user)
                .any(|(op, _)| matches!(&*op, Op::Map(_) | Op::Cast(_) | Op::Reduce(..) | Op::Gather { .. } | Op::TopK(_)));
            if !computes || r.has(user) || !r.is_row(user) || site.egraph[user].data.types.len() != 1 {
                continue;
            }
            let before = (r.order.len(), r.num_ops);
            let inside: BTreeSet<Id> = r.order.iter().filter(|(_, op)| op.is_some()).map(|(c, _)| *c).collect();
            let fits = r.take(user) && matches!(r.order.last(), Some((_, Some(_))));
            let waits = |(c, op): &Inside| op.is_none() && depends(site, *c, &inside);
            if !fits || r.order[before.0..].iter().any(waits) {
                r.order.truncate(before.0);
                r.num_ops = before.1;
            }
        }
    }
    // Results: what anything outside reads, or nothing does.
    let given: BTreeSet<Id> = site.egraph.analysis.outputs.iter().map(|c| site.egraph.find(*c)).collect();
    let is_result = |class: Id| {
        let mut users = site.egraph[class].parents().map(|u| site.egraph.find(u)).peekable();
        users.peek().is_none() || users.any(|u| !r.has(u)) || given.contains(&class)
    };
    let computed = r.order.iter().filter(|(_, op)| op.as_ref().is_some_and(|(op, _)| !is_view(op)));
    let results: Vec<Id> = computed.map(|(c, _)| *c).filter(|c| r.is_row(*c) && is_result(*c)).collect();
    if r.num_ops < 2 || results.is_empty() || results.len() > MOST_RESULTS {
        return Vec::new();
    }
    region(site, Form::Rows, &r.order, &results).terms()
}

/// What renames elements, or is the same everywhere.
fn is_view(op: &Op) -> bool {
    matches!(op, Op::Broadcast { .. } | Op::Reshape(_) | Op::Transpose(_) | Op::Slice { .. } | Op::Const(..) | Op::Iota(_))
}
