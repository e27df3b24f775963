//! Products with what follows them: maps of products of the same rows are computed where the products were summed, and rows that are taken by index
//! are taken where they are loaded. As in `regions`, a value inside of a region is the one outside, so every rule is exact; what a region saves is for
//! a target's cost to say.

use super::{
    Class, Family, How, Rule,
    regions::{Inside, depends, region},
};
use crate::rewrite::{Site, Term};
use egg::Id;
use graph::{Op, op::Form};
use std::collections::BTreeSet;

/// The table.
pub fn rules() -> Vec<Rule> {
    let how = How::Outline("grouped_contract", map_of_grouped_contracts);
    vec![Rule { name: "map-of-grouped-contracts", family: Family::Experts, class: Class::Exact, how }]
}

/// Ops of a region beside its products; what is left is taken from memory.
const MOST_OPS: usize = 24;
/// Mapped results of a region.
const MOST_RESULTS: usize = 4;

/// Products of the same rows, with the same offsets: their classes and operands.
type Products = Vec<(Id, Vec<Id>)>;

/// Whether an op computes an element from those at the same place.
fn is_map(op: &Op) -> bool {
    matches!(op, Op::Map(_) | Op::Cast(_))
}

/// The products of the site's rows.
fn products(site: &Site) -> Products {
    let [x, _, offsets] = site.children else { return Vec::new() };
    let mut found: Products = Vec::new();
    for user in site.egraph[*x].parents() {
        let class = site.egraph.find(user);
        for (op, of) in site.defs(class).filter(|(op, _)| **op == *site.op) {
            let alike = op.name() == site.op.name() && site.same(of[0], *x) && site.same(of[2], *offsets);
            if alike && site.ty_of(class) == site.ty && found.iter().all(|(c, _)| *c != class) {
                found.push((class, of.to_vec()));
            }
        }
    }
    found.sort();
    found
}

/// What maps of products end in: values that something other than a map reads, or nothing.
fn ends(site: &Site, products: &Products) -> Vec<Id> {
    let (mut seen, mut ends) = (BTreeSet::new(), Vec::new());
    let mut open: Vec<Id> = products.iter().map(|(c, _)| *c).collect();
    while let Some(class) = open.pop() {
        let (mut is_end, mut read) = (false, false);
        for user in site.egraph[class].parents() {
            read = true;
            let maps = site.egraph.analysis.op(site.egraph.id_to_node(user).head).is_some_and(|op| is_map(&op));
            let user = site.egraph.find(user);
            if maps && site.egraph[user].data.types[0].shape == site.ty.shape {
                if seen.insert(user) {
                    open.push(user);
                }
            } else {
                is_end = true;
            }
        }
        if (is_end || !read) && !products.iter().any(|(c, _)| *c == class) {
            ends.push(class);
        }
    }
    ends.sort();
    ends
}

/// The part of a region that follows its products.
struct Cone<'a> {
    site: &'a Site<'a>,
    products: &'a Products,
    order: Vec<Inside>,
    open: BTreeSet<Id>,
    num_ops: usize,
}

impl Cone<'_> {
    /// Takes a class in: with what it is mapped from, or as it is.
    fn take(&mut self, class: Id) {
        let class = self.site.egraph.find(class);
        if self.order.iter().any(|(c, _)| *c == class) || self.products.iter().any(|(c, _)| *c == class) {
            return;
        }
        self.open.insert(class);
        let rank = self.site.ty_of(class).rank();
        let fits = |op: &Op, of: &[Id]| match op {
            Op::Const(..) => true,
            Op::Broadcast { .. } => self.site.ty_of(of[0]).rank() < rank,
            op => is_map(op) && !of.iter().any(|c| self.open.contains(&self.site.egraph.find(*c))),
        };
        let def = self.site.defs(class).find(|(op, of)| fits(op, of)).map(|(op, of)| (op.into_owned(), of.to_vec()));
        let def = def.filter(|_| self.num_ops < MOST_OPS && !self.site.egraph[class].data.whole_arg);
        if let Some((_, of)) = &def {
            self.num_ops += 1;
            of.iter().for_each(|c| self.take(*c));
        }
        self.open.remove(&class);
        self.order.push((class, def));
    }
}

// f(x·w, x·u, …): a map of products of the same ragged rows is computed where they are summed. Where they are maps of one element of each, and of
// what does not depend on the products; rows taken by index come with their loads. Products that others read too are results besides.
fn map_of_grouped_contracts(site: &Site) -> Vec<(Id, Term)> {
    let all = products(site);
    if all.first().is_none_or(|(c, _)| *c != site.class) {
        return Vec::new();
    }
    let classes: BTreeSet<Id> = all.iter().map(|(c, _)| *c).collect();
    let mut cone = Cone { site, products: &all, order: Vec::new(), open: BTreeSet::new(), num_ops: 0 };
    let mut results = Vec::new();
    for end in ends(site, &all) {
        let before = (cone.order.len(), cone.num_ops);
        cone.take(end);
        let taken = &cone.order[before.0..];
        let whole = matches!(taken.last(), Some((_, Some(_))));
        if whole && results.len() < MOST_RESULTS && !taken.iter().any(|(c, op)| op.is_none() && depends(site, *c, &classes)) {
            results.push(end);
        } else {
            cone.order.truncate(before.0);
            cone.num_ops = before.1;
        }
    }
    let maps = cone.order;
    let is_read = |class: &Id| {
        let mut inputs = maps.iter().filter_map(|(_, op)| op.as_ref()).flat_map(|(_, of)| of);
        inputs.any(|c| site.egraph.find(*c) == *class)
    };
    let used: Products = all.iter().filter(|(c, _)| is_read(c)).cloned().collect();
    let Some((_, first)) = used.first() else { return Vec::new() };
    let rows = site.defs(first[0]).find(|(op, of)| {
        let picks = |x: Id, index: Id| site.ty_of(x).rank() == 2 && site.ty_of(index).rank() == 1;
        matches!(&**op, Op::Gather { batch: 0 }) && picks(of[0], of[1])
    });
    let mut found = Vec::new();
    for gathered in [false, true] {
        let mut order: Vec<Inside> = Vec::new();
        let take = |order: &mut Vec<Inside>, class: Id| {
            let class = site.egraph.find(class);
            if !order.iter().any(|(c, _)| *c == class) {
                order.push((class, None));
            }
        };
        match (&rows, gathered) {
            (None, true) => continue,
            (_, false) => take(&mut order, first[0]),
            (Some((op, of)), true) => {
                of.iter().for_each(|c| take(&mut order, *c));
                order.push((site.egraph.find(first[0]), Some(((**op).clone(), of.to_vec()))));
            }
        }
        for (class, of) in &used {
            of[1..].iter().for_each(|c| take(&mut order, *c));
            order.push((*class, Some((site.op.clone(), of.clone()))));
        }
        for (class, op) in &maps {
            match op {
                None => take(&mut order, *class),
                Some(_) => order.push((*class, op.clone())),
            }
        }
        for kept in [false, true] {
            let products = used.iter().map(|(c, _)| *c).filter(|_| kept);
            let results: Vec<Id> = results.iter().copied().chain(products).collect();
            found.extend(region(site, Form::Product, &order, &results).terms());
        }
    }
    found
}
