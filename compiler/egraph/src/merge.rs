//! Products that share an operand become one: QKV, gate and up, router and shared expert. Done once, outside saturation, as a join on the
//! shared operand, so that the rule never sees its own result.
//!
//! x·w₁, x·w₂ → slices of x·[w₁ w₂]. Exact: each result element sums the same products in the same order.

use crate::{
    language::{ENode, Facts},
    rewrite::{self, Growth, Term, classes, sorted},
};
use base::Dim;
use egg::{EGraph, Id};
use graph::{Op, op::Contract};
use std::collections::BTreeSet;

/// What members of a set have in common beside the shared operand.
#[derive(Clone, PartialEq)]
enum Form {
    /// `x·w` with one column axis in w, last in the result.
    Contract(Contract),
    /// Each row by its group's matrix, with these offsets.
    Grouped { transposed: bool, offsets: Id },
}

/// A set: the shared operand, the form, and the products with their weights.
struct Set {
    x: Id,
    form: Form,
    members: Vec<(Id, Id)>,
}

/// The names of the rules: for contractions, and for grouped ones.
pub const RULES: [&str; 2] = ["contract-of-shared-operand", "grouped-contract-of-shared-operand"];

/// Adds the joined product of each set of two and more products `x·w` of one x and weights that are arguments. Returns what came of sets of
/// contractions (times: the sets) and of grouped contractions. `rules` are their places in the table; a form without one is left alone.
pub fn shared_operand(egraph: &mut EGraph<ENode, Facts>, rules: [Option<usize>; 2]) -> [Growth; 2] {
    let mut counts = [Growth::default(); 2];
    for set in with_parts(egraph, sets(egraph)).into_iter().filter(|s| s.members.len() > 1) {
        let grouped = usize::from(matches!(set.form, Form::Grouped { .. }));
        let Some(rule) = rules[grouped] else { continue };
        egraph.analysis.rule = Some(rule);
        egraph.analysis.origin = set.members.iter().filter_map(|(result, _)| egraph[*result].data.origin).min();
        let nodes = egraph.total_size();
        join(egraph, &set, RULES[grouped]);
        counts[grouped].times += 1;
        counts[grouped].nodes += egraph.total_size() - nodes;
    }
    (egraph.analysis.rule, egraph.analysis.origin) = (None, None);
    egraph.rebuild();
    counts
}

fn sets(egraph: &EGraph<ENode, Facts>) -> Vec<Set> {
    let mut sets: Vec<Set> = Vec::new();
    for class in classes(egraph) {
        for node in sorted(egraph, class) {
            let Some(op) = egraph.analysis.op(node.head) else { continue };
            let form = match &*op {
                Op::Contract(spec) if is_plain(spec) => Form::Contract(spec.clone()),
                Op::GroupedContract { transposed } => {
                    Form::Grouped { transposed: *transposed, offsets: egraph.find(node.children[2]) }
                }
                _ => continue,
            };
            let (x, w) = (egraph.find(node.children[0]), egraph.find(node.children[1]));
            // A transposed argument is joined as it is stored, by the contraction that names its axes.
            let is_transpose = |n: &ENode| egraph.analysis.op(n.head).is_some_and(|op| matches!(&*op, Op::Transpose(_)));
            if !egraph[w].data.whole_arg || egraph[w].nodes.iter().any(is_transpose) {
                continue;
            }
            match sets.iter_mut().find(|s| s.x == x && s.form == form) {
                Some(set) if set.members.iter().all(|(c, v)| *c != class && *v != w) => set.members.push((class, w)),
                Some(_) => {}
                None => sets.push(Set { x, form, members: vec![(class, w)] }),
            }
        }
    }
    sets
}

/// The sets, and of those of three and more members what is left without one whose columns are mapped with others: a region of its own may be cheaper
/// (`rules::products`).
fn with_parts(egraph: &EGraph<ENode, Facts>, sets: Vec<Set>) -> Vec<Set> {
    let mut all = Vec::new();
    for set in sets {
        let apart = set.members.iter().filter(|(class, _)| set.members.len() > 2 && joins_columns(egraph, *class));
        let without = |out: &(Id, Id)| set.members.iter().copied().filter(|m| m != out).collect();
        let parts: Vec<Set> = apart.map(|m| Set { x: set.x, form: set.form.clone(), members: without(m) }).collect();
        all.push(set);
        all.extend(parts);
    }
    all
}

/// Whether columns of a product are taken, mapped and joined again.
fn joins_columns(egraph: &EGraph<ENode, Facts>, product: Id) -> bool {
    let (mut seen, mut open) = (BTreeSet::new(), vec![(egraph.find(product), false)]);
    while let Some((class, sliced)) = open.pop() {
        for user in egraph[class].parents() {
            let Some(op) = egraph.analysis.op(egraph.id_to_node(user).head) else { continue };
            let user = (egraph.find(user), sliced || matches!(*op, Op::Slice { .. }));
            match &*op {
                Op::Concat(_) if sliced => return true,
                Op::Reshape(_) if sliced => {}
                Op::Reshape(_) | Op::Slice { .. } | Op::Map(_) | Op::Cast(_) if seen.insert(user) => open.push(user),
                _ => {}
            }
        }
    }
    false
}

/// Whether a product has no batch axes, and one column axis, last in the result.
fn is_plain(spec: &Contract) -> bool {
    let cols = spec.cols();
    spec.batch().is_empty() && spec.rhs.len() == 2 && cols.len() == 1 && spec.out.last() == cols.first()
}

fn join(egraph: &mut EGraph<ENode, Facts>, set: &Set, name: &'static str) {
    let weights = set.members.iter().map(|(_, w)| Term::from(*w)).collect();
    let product = match &set.form {
        Form::Contract(spec) => {
            let axis = spec.rhs.iter().position(|c| spec.cols().contains(c)).expect("the weight has the column axis");
            Term::Op(Op::Contract(spec.clone()), vec![set.x.into(), Term::Op(Op::Concat(axis), weights)])
        }
        Form::Grouped { transposed, offsets } => {
            let axis = if *transposed { 1 } else { 2 };
            let joined = Term::Op(Op::Concat(axis), weights);
            Term::Op(Op::GroupedContract { transposed: *transposed }, vec![set.x.into(), joined, (*offsets).into()])
        }
    };
    let mut start = Dim::from(0);
    for (result, _) in &set.members {
        let shape = &egraph[*result].data.types[0].shape;
        let axis = shape.len() - 1;
        let len = shape[axis].clone();
        let slice = Term::of(Op::Slice { axis, start: start.clone(), len: len.clone(), step: 1 }, product.clone());
        let slice = rewrite::add(egraph, &slice);
        egraph.union_trusted(*result, slice, name);
        start = start + len;
    }
}
