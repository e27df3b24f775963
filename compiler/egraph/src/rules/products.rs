//! Products and attention with what follows them: maps of products of the same rows are computed where the products were summed, and rows that are taken by index
//! are taken where they are loaded. As in `regions`, a value inside of a region is the one outside, so every rule is exact; what a region saves is for
//! a target's cost to say.

use super::{
    Class, Family, How, Rule, directed,
    regions::{Inside, dependents, depends, region, region_with},
};
use crate::rewrite::{Site, Term};
use base::{DType, TensorType};
use egg::Id;
use graph::{
    Op,
    op::{Form, MapFn, are_pairs, quantize::Block, terms_axis},
};
use std::{borrow::Cow, collections::BTreeSet};

/// The table.
pub fn rules() -> Vec<Rule> {
    let rule = |name, family, root| Rule { name, family, class: Class::Exact, how: How::Outline(root, map_of_products) };
    vec![
        rule("map-of-contracts", Family::Fusion, "contract"),
        rule("map-of-grouped-contracts", Family::Experts, "grouped_contract"),
        directed("add-of-grouped-contracts", Family::Experts, Class::Reassociates, "map", add_of_grouped_contracts),
        Rule {
            name: "grouped-contract-of-joined",
            family: Family::Experts,
            class: Class::Exact,
            how: How::Outline("grouped_contract", product_of_joined),
        },
        Rule {
            name: "map-of-contract-columns",
            family: Family::Attention,
            class: Class::Exact,
            how: How::Outline("contract", map_of_columns),
        },
        Rule {
            name: "map-of-attend",
            family: Family::Attention,
            class: Class::Exact,
            how: How::Outline("attend", map_of_attend),
        },
        Rule {
            name: "scores-of-attend",
            family: Family::Attention,
            class: Class::Exact,
            how: How::Outline("contract", scores_of_attend),
        },
    ]
}

/// Ops of a region beside its products; what is left is taken from memory.
const MOST_OPS: usize = 24;
/// Mapped results of a region.
const MOST_RESULTS: usize = 4;

/// Products of the same rows, and of the same offsets if they are ragged: their classes and operands.
type Products = Vec<(Id, Vec<Id>)>;

/// Whether an op computes an element from those at the same place.
fn is_map(op: &Op) -> bool {
    matches!(op, Op::Map(_) | Op::Cast(_))
}

/// Whether an op takes some columns of a value, or joins columns of some; all of them known.
fn is_of_last_axis(op: &Op, result: &TensorType) -> bool {
    match op {
        Op::Slice { axis, start, len, step } => {
            *axis + 1 == result.rank() && *step == 1 && start.known().is_some() && len.known().is_some()
        }
        Op::Concat(axis) => *axis + 1 == result.rank() && result.shape[*axis].known().is_some(),
        _ => false,
    }
}

/// Whether an op makes pairs of neighbours of the last axis, or joins them.
fn is_of_pairs(op: &Op, from: &TensorType, to: &TensorType) -> bool {
    matches!(op, Op::Reshape(_)) && (are_pairs(from, to) || are_pairs(to, from))
}

/// Whether the columns of a dense product's matrix lie as one: not if it is some columns of each of several, as a half of each head. A tile would have
/// those of one alone.
fn lies_whole(site: &Site, w: Id) -> bool {
    let Op::Contract(spec) = site.op else { return true };
    let apart = |axis: usize| spec.cols().contains(&spec.rhs[axis]) && spec.rhs[..axis].iter().any(|l| spec.cols().contains(l));
    !site.defs(w).any(|(op, _)| matches!(*op, Op::Slice { axis, .. } if apart(axis)))
}

/// The products of the site's rows.
fn products(site: &Site) -> Products {
    let x = site.children[0];
    let mut found: Products = Vec::new();
    for user in site.egraph[x].parents() {
        let class = site.egraph.find(user);
        for (op, of) in site.defs(class).filter(|(op, _)| **op == *site.op) {
            let alike = op.name() == site.op.name()
                && of.iter().zip(site.children).enumerate().all(|(i, (a, b))| i == 1 || site.same(*a, *b));
            if alike && site.ty_of(class) == site.ty && lies_whole(site, of[1]) && found.iter().all(|(c, _)| *c != class) {
                found.push((class, of.to_vec()));
            }
        }
    }
    found.sort();
    found
}

/// What maps of products end in: values that something other than a map reads, or nothing.
fn ends(site: &Site, products: &Products) -> Vec<Id> {
    ends_from(site, products.iter().map(|(c, _)| *c).collect(), products)
}

/// The same of maps of these classes, which may be ends themselves unless they are products.
fn ends_from(site: &Site, mut open: Vec<Id>, products: &Products) -> Vec<Id> {
    let (mut seen, mut ends) = (open.iter().copied().collect::<BTreeSet<Id>>(), Vec::new());
    while let Some(class) = open.pop() {
        let (mut is_end, mut read) = (is_output(site, class), false);
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

/// Whether the function gives the class.
fn is_output(site: &Site, class: Id) -> bool {
    site.egraph.analysis.outputs.iter().any(|c| site.same(*c, class))
}

/// The part of a region that follows its products.
struct Cone<'a> {
    site: &'a Site<'a>,
    products: &'a Products,
    order: Vec<Inside>,
    open: BTreeSet<Id>,
    num_ops: usize,
    /// Classes that may be some columns of others, or columns joined.
    columns: BTreeSet<Id>,
}

impl<'a> Cone<'a> {
    fn new(site: &'a Site<'a>, products: &'a Products) -> Cone<'a> {
        Cone { site, products, order: Vec::new(), open: BTreeSet::new(), num_ops: 0, columns: BTreeSet::new() }
    }
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
            Op::Slice { .. } | Op::Concat(_) | Op::Reshape(_) => self.is_of_columns(class, op, of),
            // A table of angles is stored once, not computed in each tile.
            op if is_map(op) && !self.columns.is_empty() && rank < self.site.ty.rank() => false,
            op => is_map(op) && !of.iter().any(|c| self.open.contains(&self.site.egraph.find(*c))),
        };
        // Some columns of what was summed are there; what else is equal to them is not.
        let of_columns = |(op, _): &(Cow<Op>, &[Id])| !matches!(**op, Op::Slice { .. });
        let mut defs: Vec<_> = self.site.defs(class).filter(|(op, of)| fits(op, of)).collect();
        defs.sort_by_key(of_columns);
        let def = defs.into_iter().next().map(|(op, of)| (op.into_owned(), of.to_vec()));
        let def = def.filter(|_| self.num_ops < MOST_OPS && !self.site.egraph[class].data.whole_arg);
        if let Some((_, of)) = &def {
            self.num_ops += 1;
            of.iter().for_each(|c| self.take(*c));
        }
        self.open.remove(&class);
        self.order.push((class, def));
    }
    /// Whether a slice or a join is one along the last axis, or a reshape makes pairs of it or joins them, of what is computed from the products.
    fn is_of_columns(&self, class: Id, op: &Op, of: &[Id]) -> bool {
        let computed = |c: &Id| {
            let c = self.site.egraph.find(*c);
            (self.columns.contains(&c) || self.products.iter().any(|(p, _)| *p == c)) && !self.open.contains(&c)
        };
        let moves =
            is_of_last_axis(op, self.site.ty_of(class)) || is_of_pairs(op, self.site.ty_of(of[0]), self.site.ty_of(class));
        self.columns.contains(&class) && moves && of.iter().all(computed)
    }
    /// Takes what is computed at an element of the products from them and from what does not need them; `false`, and nothing, if that is not so.
    fn take_end(&mut self, end: Id, above: &BTreeSet<Id>) -> bool {
        let before = (self.order.len(), self.num_ops);
        self.take(end);
        let taken = &self.order[before.0..];
        let whole = matches!(taken.last(), Some((_, Some(_))));
        let fits = whole && !taken.iter().any(|(c, op)| op.is_none() && above.contains(c));
        if !fits {
            self.order.truncate(before.0);
            self.num_ops = before.1;
        }
        fits
    }
    /// The products that are read, by number.
    fn read(&self) -> BTreeSet<usize> {
        let inputs =
            self.order.iter().filter_map(|(_, op)| op.as_ref()).flat_map(|(_, of)| of).map(|c| self.site.egraph.find(*c));
        inputs.filter_map(|c| self.products.iter().position(|(of, _)| *of == c)).collect()
    }
}

/// The ends of maps of the products, those together that read one of them.
fn together(site: &Site, products: &Products, above: &BTreeSet<Id>) -> Vec<Vec<Id>> {
    let mut sets: Vec<(BTreeSet<usize>, Vec<Id>)> = Vec::new();
    for end in ends(site, products) {
        let mut cone = Cone::new(site, products);
        if !cone.take_end(end, above) {
            continue;
        }
        let mut own = (cone.read(), vec![end]);
        while let Some(i) = sets.iter().position(|(read, _)| !read.is_disjoint(&own.0)) {
            let (read, ends) = sets.remove(i);
            own.0.extend(read);
            own.1.splice(0..0, ends);
        }
        sets.push(own);
    }
    sets.iter_mut().for_each(|(_, ends)| ends.sort());
    sets.into_iter().filter(|(read, _)| !read.is_empty()).map(|(_, ends)| ends).collect()
}

/// If the operand of a product is only widened: the narrow class, and the op.
pub(super) fn widened(site: &Site, class: Id) -> Option<(Op, Vec<Id>)> {
    let narrow = |c: Id| matches!(site.ty_of(c).dtype, DType::TF32 | DType::BF16 | DType::F16);
    let def = site.defs(class).find(|(op, of)| matches!(**op, Op::Cast(DType::F32)) && narrow(of[0]));
    def.map(|(op, of)| (op.into_owned(), of.to_vec()))
}

/// What a region has before a product of operands that are all only widened: each narrow one, and its cast.
pub(super) fn widened_inside(site: &Site, operands: impl Iterator<Item = Id>) -> Option<Vec<Inside>> {
    let mut order: Vec<Inside> = Vec::new();
    for class in operands {
        let cast = widened(site, class)?;
        let below = site.egraph.find(cast.1[0]);
        for inside in [(below, None), (site.egraph.find(class), Some(cast))] {
            if order.iter().all(|(c, _)| *c != inside.0) {
                order.push(inside);
            }
        }
    }
    Some(order)
}

/// What a region has before a product of operands that are all what codes are worth in blocks of one size, of single rows in the first and of as many in all others, rounded for it, as tensor cores sum codes with fewer bits than
/// f32 has: codes and scales of each, and what they are worth. With `taken`, the first one's are rows by an index.
pub(super) fn coded_inside(site: &Site, operands: impl Iterator<Item = Id>, taken: bool) -> Option<Vec<Inside>> {
    type Def = (Op, Vec<Id>);
    let def = |class: Id, is: &dyn Fn(&Op) -> bool| -> Option<Def> {
        site.defs(class).find(|(op, _)| is(op)).map(|(op, of)| (op.into_owned(), of.to_vec()))
    };
    let worth = |class: Id| def(class, &|op| matches!(op, Op::Dequantize(_)));
    let (mut order, mut blocks): (Vec<Inside>, Vec<Block>) = (Vec::new(), Vec::new());
    let mut take = |class: Id, def: Option<Def>| {
        let class = site.egraph.find(class);
        if order.iter().all(|(c, _)| *c != class) {
            order.push((class, def));
        }
    };
    for (i, class) in operands.enumerate() {
        let rounded = || {
            let casts = site.defs(class).filter(|(op, _)| matches!(**op, Op::Cast(DType::BF16 | DType::F16)));
            casts.into_iter().find_map(|(op, of)| Some((of[0], worth(of[0])?, Some((op.into_owned(), of.to_vec())))))
        };
        let (below, (op, of), cast) = rounded()?;
        let Op::Dequantize(block) = op else { return None };
        blocks.push(block);
        if taken && i == 0 {
            let gather = |class: Id| def(class, &|op| matches!(op, Op::Gather { batch: 0 }));
            let (codes, scales) = (gather(of[0])?, gather(of[1])?);
            if !site.same(codes.1[1], scales.1[1]) || site.ty_of(codes.1[0]).rank() != 2 || site.ty_of(codes.1[1]).rank() != 1 {
                return None;
            }
            [codes.1[0], scales.1[0], codes.1[1]].into_iter().for_each(|c| take(c, None));
            take(of[0], Some(codes));
            take(of[1], Some(scales));
        } else {
            of.iter().for_each(|c| take(*c, None));
        }
        take(below, Some((op, of)));
        if cast.is_some() {
            take(class, cast);
        }
    }
    let alike = blocks[0].rows == 1 && blocks[1..].iter().all(|b| *b == blocks[1] && b.size == blocks[0].size);
    alike.then_some(order)
}

// A product of what codes are worth, dense or over ragged rows: codes are multiplied as they are, and what a block gives is scaled.
pub(super) fn product_of_codes(site: &Site) -> Vec<(Id, Term)> {
    let ragged = matches!(site.op, Op::GroupedContract { .. });
    let alone = |taken: bool| {
        let mut order = coded_inside(site, site.children[..2].iter().copied(), taken)?;
        order.extend(site.children[2..].iter().map(|c| (site.egraph.find(*c), None)));
        order.push((site.class, Some((site.op.clone(), site.children.to_vec()))));
        Some(region(site, Form::Product, &order, &[site.class]).terms())
    };
    [false, true].into_iter().filter(|taken| ragged || !taken).filter_map(alone).flatten().collect()
}

// f(x·w, x·u, …): a map of products of the same rows is computed where they are summed. Where it is a map of one element of each, and of what does
// not depend on the products; rows of ragged products that are taken by index come with their loads. Products that others read too are results besides.
fn map_of_products(site: &Site) -> Vec<(Id, Term)> {
    let all = products(site);
    if all.first().is_none_or(|(c, _)| *c != site.class) {
        return Vec::new();
    }
    let above = dependents(site, all.iter().map(|(c, _)| *c));
    let sets = together(site, &all, &above);
    sets.into_iter().flat_map(|ends| regions_to(site, &all, &above, &ends)).collect()
}

/// The regions that give some ends: with rows taken by index inside or not, and with the products as results or without, if somebody else reads them.
fn regions_to(site: &Site, all: &Products, above: &BTreeSet<Id>, ends: &[Id]) -> Vec<(Id, Term)> {
    let mut cone = Cone::new(site, all);
    let mut results = Vec::new();
    for end in ends {
        if results.len() < MOST_RESULTS && cone.take_end(*end, above) {
            results.push(*end);
        }
    }
    let used: Products = cone.read().into_iter().map(|i| all[i].clone()).collect();
    regions_of(site, &used, cone.order, &results)
}

/// The regions of these products and of these maps of them that give some results.
fn regions_of(site: &Site, used: &Products, maps: Vec<Inside>, results: &[Id]) -> Vec<(Id, Term)> {
    let Some((_, first)) = used.first() else { return Vec::new() };
    let is_inside = |user: Id| maps.iter().any(|(c, op)| op.is_some() && site.same(*c, user));
    let is_wanted = |class: Id| is_output(site, class) || site.egraph[class].parents().any(|user| !is_inside(user));
    let ragged = matches!(site.op, Op::GroupedContract { .. });
    let rows = site.defs(first[0]).find(|(op, of)| {
        let picks = |x: Id, index: Id| site.ty_of(x).rank() == 2 && site.ty_of(index).rank() == 1;
        ragged && matches!(&**op, Op::Gather { batch: 0 }) && picks(of[0], of[1])
    });
    let operands = || [first[0]].into_iter().chain(used.iter().map(|(_, of)| of[1]));
    let narrow = if ragged { None } else { widened_inside(site, operands()) };
    let coded = |taken: bool| coded_inside(site, operands(), taken);
    let mut ways: Vec<(bool, Option<Vec<Inside>>)> = vec![(false, narrow), (true, None), (false, coded(false))];
    ways.extend(ragged.then(|| (false, coded(true))));
    let mut found = Vec::new();
    for (way, (gathered, brought)) in ways.into_iter().enumerate() {
        if way > 1 && brought.is_none() {
            continue;
        }
        let mut order: Vec<Inside> = Vec::new();
        let take = |order: &mut Vec<Inside>, class: Id| {
            let class = site.egraph.find(class);
            if !order.iter().any(|(c, _)| *c == class) {
                order.push((class, None));
            }
        };
        match (&rows, gathered) {
            (None, true) => continue,
            (_, false) => match brought {
                Some(inside) => order = inside,
                None => take(&mut order, first[0]),
            },
            (Some((op, of)), true) => {
                of.iter().for_each(|c| take(&mut order, *c));
                order.push((site.egraph.find(first[0]), Some(((**op).clone(), of.to_vec()))));
            }
        }
        for (class, of) in used {
            of[1..].iter().for_each(|c| take(&mut order, *c));
            order.push((*class, Some((site.op.clone(), of.clone()))));
        }
        for (class, op) in &maps {
            match op {
                None => take(&mut order, *class),
                Some(_) => order.push((*class, op.clone())),
            }
        }
        for kept in [false, true].into_iter().filter(|kept| !kept || used.iter().any(|(c, _)| is_wanted(*c))) {
            let products = used.iter().map(|(c, _)| *c).filter(|_| kept);
            let results: Vec<Id> = results.iter().copied().chain(products).collect();
            found.extend(region(site, Form::Product, &order, &results).terms());
        }
    }
    found
}

// x·u + y·w = [x y]·[u; w] of ragged rows: what gate and up give to the rows is one product, summed in one go.
fn add_of_grouped_contracts(site: &Site) -> Vec<Term> {
    let Op::Map(MapFn::Add) = site.op else { return Vec::new() };
    let products = |class: Id| {
        let defs = site.defs(class).filter_map(|(op, of)| match &*op {
            Op::GroupedContract { transposed } => Some((*transposed, of.to_vec())),
            _ => None,
        });
        defs.collect::<Vec<_>>()
    };
    let joined = |class: Id| site.defs(class).any(|(op, _)| matches!(*op, Op::Concat(_)));
    let right = products(site.children[1]);
    let mut found = Vec::new();
    for (transposed, a) in products(site.children[0]) {
        for (_, b) in right.iter().filter(|(t, b)| *t == transposed && site.same(a[2], b[2])) {
            // What is joined already is not joined again, nor is a product with itself.
            if [a[0], b[0]].into_iter().any(joined) || site.same(a[0], b[0]) {
                continue;
            }
            let concat = |axis, x: Id, y: Id| Term::Op(Op::Concat(axis), vec![x.into(), y.into()]);
            let of = vec![concat(1, a[0], b[0]), concat(terms_axis(transposed), a[1], b[1]), a[2].into()];
            found.push(Term::Op(Op::GroupedContract { transposed }, of));
        }
    }
    found
}

// [x y]·[u; w] of ragged rows: part by part, nothing is joined in memory.
fn product_of_joined(site: &Site) -> Vec<(Id, Term)> {
    let Op::GroupedContract { transposed } = site.op else { return Vec::new() };
    let parts = |class: Id, axis: usize| {
        let mut defs = site.defs(class);
        defs.find(|(op, _)| matches!(**op, Op::Concat(a) if a == axis)).map(|(op, of)| (op.into_owned(), of.to_vec()))
    };
    let axis = terms_axis(*transposed);
    let [rows, matrix, offsets] = [0, 1, 2].map(|i| site.egraph.find(site.children[i]));
    let (Some(xs), Some(ws)) = (parts(rows, 1), parts(matrix, axis)) else { return Vec::new() };
    let terms = |(_, of): &(Op, Vec<Id>), axis: usize| of.iter().map(|c| site.ty_of(*c).shape[axis].clone()).collect::<Vec<_>>();
    if terms(&xs, 1) != terms(&ws, axis) {
        return Vec::new();
    }
    let mut order: Vec<Inside> = Vec::new();
    for class in xs.1.iter().chain(&ws.1).map(|c| site.egraph.find(*c)).chain([offsets]) {
        if !order.iter().any(|(c, _)| *c == class) {
            order.push((class, None));
        }
    }
    order.extend([(rows, Some(xs)), (matrix, Some(ws)), (site.class, Some((site.op.clone(), site.children.to_vec())))]);
    region(site, Form::Product, &order, &[site.class]).terms()
}

// [f(x·w₁, x·w₂, …) g(x·w₁, x·w₂, …)] = one product with [w₁ w₂], mapped where it is summed: maps of some columns of each of several, as of each head,
// with others of the same, joined again, as rotary positions are, of halves or of neighbours. What the maps read besides must not depend on the product.
fn map_of_columns(site: &Site) -> Vec<(Id, Term)> {
    let Op::Contract(spec) = site.op else { return Vec::new() };
    let last_is_column = spec.out.last().is_some_and(|l| !spec.lhs.contains(l));
    if site.ty.rank() == 0 || !last_is_column || !lies_whole(site, site.children[1]) {
        return Vec::new();
    }
    // What has rows as the product does, and is computed of its columns.
    let (mut columns, mut joined) = (BTreeSet::new(), Vec::new());
    let mut open = vec![site.class];
    while let Some(class) = open.pop() {
        for user in site.egraph[class].parents() {
            let Some(op) = site.egraph.analysis.op(site.egraph.id_to_node(user).head) else { continue };
            let user = site.egraph.find(user);
            let (ty, rank) = (site.ty_of(user), site.ty.rank());
            let pairs = ty.rank() == rank + 1 && ty.shape.last().is_some_and(|d| d.is(1) || d.is(2));
            let alike = (ty.rank() == rank || pairs) && ty.shape[..rank - 1] == site.ty.shape[..rank - 1];
            let of_pairs = is_of_pairs(&op, site.ty_of(class), ty);
            if alike && (is_map(&op) || is_of_last_axis(&op, ty) || of_pairs) && columns.insert(user) {
                open.push(user);
            }
            if alike && (matches!(*op, Op::Concat(_)) || of_pairs) && ty.shape == site.ty.shape && !joined.contains(&user) {
                joined.push(user);
            }
        }
    }
    if joined.is_empty() {
        return Vec::new();
    }
    joined.sort();
    let products: Products = vec![(site.class, site.children.to_vec())];
    let above = dependents(site, [site.class].into_iter());
    let mut found = Vec::new();
    for end in ends_from(site, joined, &products) {
        let mut cone = Cone { columns: columns.clone(), ..Cone::new(site, &products) };
        if cone.take_end(end, &above) && !cone.read().is_empty() {
            found.extend(regions_of(site, &products, cone.order, &[end]));
        }
    }
    found
}

// f(o, …), o = attend(q, k, v): a map of the result is computed where it was summed, as the gate of a branch and the sum with others. Where it is a map of one
// element, and of what does not depend on the attention. The result and the scores' sums, if others read them too, are results besides.
fn map_of_attend(site: &Site) -> Vec<(Id, Term)> {
    if site.result != Some(0) {
        return Vec::new();
    }
    let op = (site.op.clone(), site.children.to_vec());
    let is_this = |all: Id| {
        let nodes = &site.egraph[all].nodes;
        nodes.iter().any(|n| n.children == op.1 && site.egraph.analysis.op(n.head).is_some_and(|x| *x == op.0))
    };
    let Some((all, _)) = site.results(site.class).find(|(all, i)| *i == 0 && is_this(*all)) else { return Vec::new() };
    let result = |i: u32| move |user: &Id| site.results(*user).any(|(of, at)| at == i && site.same(of, all));
    let sums = site.egraph[all].parents().map(|user| site.egraph.find(user)).find(result(1));
    let above = dependents(site, [all].into_iter());
    let products = vec![(site.class, op.1.clone())];
    let mut found = Vec::new();
    for end in ends(site, &products) {
        let mut cone = Cone::new(site, &products);
        if !cone.take_end(end, &above) || cone.read().is_empty() {
            continue;
        }
        let maps = cone.order;
        let mut order: Vec<Inside> = Vec::new();
        let taken = op.1.iter().map(|c| site.egraph.find(*c)).chain(maps.iter().filter(|(_, op)| op.is_none()).map(|(c, _)| *c));
        for class in taken {
            if !order.iter().any(|(c, _)| *c == class) {
                order.push((class, None));
            }
        }
        order.push((site.class, Some(op.clone())));
        let is_inside = |user: Id| maps.iter().any(|(c, op)| op.is_some() && site.same(*c, user));
        let is_wanted = |class: Id| is_output(site, class) || site.egraph[class].parents().any(|user| !is_inside(user));
        order.extend(maps.iter().filter(|(_, op)| op.is_some()).cloned());
        let beside: Vec<(Id, u32, Id)> = sums.into_iter().map(|sums| (sums, 1, site.class)).collect();
        for kept in [false, true].into_iter().filter(|kept| !kept || is_wanted(site.class)) {
            let others = [site.class].into_iter().filter(|_| kept).chain(sums.filter(|c| is_wanted(*c)));
            let results: Vec<Id> = [end].into_iter().chain(others).collect();
            found.extend(region_with(site, Form::Attend, &order, &results, &beside).terms());
        }
    }
    found
}

/// What a class is made of by views alone, and the ops on the way, that one first: as it is, and through each of these.
fn views_of(site: &Site, class: Id) -> Vec<(Id, Vec<Inside>)> {
    let class = site.egraph.find(class);
    let defs = site.defs(class).filter(|(op, _)| matches!(**op, Op::Reshape(_)));
    let through = defs.map(|(op, of)| (site.egraph.find(of[0]), vec![(class, Some((op.into_owned(), of.to_vec())))]));
    [(class, Vec::new())].into_iter().chain(through).collect()
}

// q·k beside attend(q, k, v): the attention multiplies them anyway, so it stores what it has.
fn scores_of_attend(site: &Site) -> Vec<(Id, Term)> {
    let [left, right] = [0, 1].map(|i| site.egraph.find(site.children[i]));
    let mut widened_operands = Vec::new();
    let [q, k] = [left, right].map(|class| match widened(site, class) {
        Some(cast) => {
            let below = site.egraph.find(cast.1[0]);
            widened_operands.push((class, Some(cast)));
            below
        }
        None => class,
    });
    let mut found = Vec::new();
    for (q, views) in views_of(site, q) {
        let users = site.egraph[k].parents().map(|user| site.egraph.id_to_node(user).clone());
        for attend in users {
            let Some(op) = site.egraph.analysis.op(attend.head).filter(|op| matches!(**op, Op::Attend(_))) else { continue };
            let of: Vec<Id> = attend.children.iter().map(|c| site.egraph.find(*c)).collect();
            // What is attended to does not come of the scores.
            let on = BTreeSet::from([site.egraph.find(site.class)]);
            if of[..2] != [q, k] || of.iter().any(|c| depends(site, *c, &on)) {
                continue;
            }
            let Some(all) = site.egraph.lookup(attend.clone()) else { continue };
            let result = |i: u32| {
                let mut users = site.egraph[all].parents().map(|user| site.egraph.find(user));
                users.find(|user| site.results(*user).any(|(of, at)| at == i && site.same(of, all)))
            };
            let (Some(o), sums) = (result(0), result(1)) else { continue };
            let mut order: Vec<Inside> = Vec::new();
            for class in &of {
                if !order.iter().any(|(c, _)| c == class) {
                    order.push((*class, None));
                }
            }
            order.extend(views.iter().rev().chain(&widened_operands).cloned());
            order.push((o, Some((op.into_owned(), of.clone()))));
            order.push((site.egraph.find(site.class), Some((site.op.clone(), site.children.to_vec()))));
            let beside: Vec<(Id, u32, Id)> = sums.into_iter().map(|sums| (sums, 1, o)).collect();
            let is_wanted = |class: &Id| is_output(site, *class) || site.egraph[*class].parents().next().is_some();
            let results: Vec<Id> = [site.egraph.find(site.class), o].into_iter().chain(sums).filter(is_wanted).collect();
            found.extend(region_with(site, Form::Attend, &order, &results, &beside).terms());
        }
    }
    found
}
