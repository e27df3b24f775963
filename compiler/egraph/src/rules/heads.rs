//! Heads: what follows the last layer, where of many logits few are wanted.

use super::{Class, Family, Rule, directed};
use crate::{
    contraction::Product,
    rewrite::{Site, Term},
};
use graph::{Op, op::MapFn};

/// The table.
pub fn rules() -> Vec<Rule> {
    vec![
        directed("gather-of-contract", Family::Heads, Class::Exact, "gather", gather_of_contract),
        directed("gather-of-map", Family::Heads, Class::Exact, "gather", gather_of_map),
    ]
}

// (x·W)[i] = ⟨x, W[i]⟩: the picked logits without the others. W has one axis to pick from, the last of the product, and all others are the
// rows of x. An index outside gives 0 both ways: the row of W is 0. Exact: each is the same sum.
fn gather_of_contract(site: &Site) -> Vec<Term> {
    let Op::Gather { batch } = site.op else { return Vec::new() };
    let (x, index) = (site.children[0], site.children[1]);
    let picks = site.ty_of(index).rank() - batch;
    let mut found = Vec::new();
    for (op, of) in site.defs(x) {
        let Op::Contract(spec) = &*op else { continue };
        let (Some(picked), true) = (spec.out.last(), spec.out.len() == batch + 1) else { continue };
        let at = spec.rhs.iter().position(|c| c == picked);
        if !spec.batch().is_empty() || spec.cols() != [*picked] || spec.rhs.len() != 2 {
            continue;
        }
        let Some(at) = at else { continue };
        // Rows of W: the picked axis first.
        let rows = if at == 0 { of[1].into() } else { Term::of(Op::Transpose(vec![1, 0]), of[1]) };
        let gathered = Term::Op(Op::Gather { batch: 0 }, vec![rows, index.into()]);
        let names = crate::contraction::fresh(spec, picks);
        let mut product = Product::of(spec, of);
        let kept = &spec.out[..*batch];
        product.rhs = (gathered, kept.iter().chain(&names).chain([&spec.rhs[1 - at]]).copied().collect());
        product.out = kept.iter().chain(&names).copied().collect();
        found.push(product.term());
    }
    found
}

// f(x, y)[i] = f(x[i], y[i]): of log-probabilities only the picked ones. An index outside gives 0 both ways, as f of zeros is 0; and so is 0/c for a
// number c, as a temperature is one, that is not 0. Exact.
fn gather_of_map(site: &Site) -> Vec<Term> {
    let index = site.children[1];
    let mut found = Vec::new();
    for (op, of) in site.defs(site.children[0]) {
        if let Op::Map(MapFn::Add | MapFn::Sub | MapFn::Mul | MapFn::Neg) = &*op {
            let picked = |x: &egg::Id| Term::Op(site.op.clone(), vec![(*x).into(), index.into()]);
            found.push(Term::Op(op.clone().into_owned(), of.iter().map(picked).collect()));
        }
        let is_number = |c: egg::Id| site.egraph[c].data.splat.is_some_and(|c| c.get() != 0.0 && !c.get().is_nan());
        if *op == Op::Map(MapFn::Div) && is_number(of[1]) {
            // The number as it is, repeated to fewer.
            let scalar = site.defs(of[1]).find(|(op, _)| matches!(&**op, Op::Broadcast { axes, .. } if axes.is_empty()));
            let Some((_, scalar)) = scalar else { continue };
            let c = Term::of(Op::Broadcast { shape: site.ty.shape.clone(), axes: Vec::new() }, scalar[0]);
            let x = Term::Op(site.op.clone(), vec![of[0].into(), index.into()]);
            found.push(Term::Op(op.into_owned(), vec![x, c]));
        }
    }
    found
}
