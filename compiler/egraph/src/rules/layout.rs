//! Layout: transposes, reshapes, slices and broadcasts are moved out of the way of products and of one another, so that weights are
//! recognised as arguments and products of one operand as such.

use super::{Class, Family, Rule, directed};
use crate::{
    contraction::{Product, fresh, groups, is_own},
    rewrite::{Site, Term},
};
use graph::{Op, op::Contract};

/// The table.
pub fn rules() -> Vec<Rule> {
    use Class::Exact;
    let rule = |name, root, f| directed(name, Family::Layout, Exact, root, f);
    vec![
        rule("contract-of-transpose", "contract", contract_of_transpose),
        rule("contract-of-reshape", "contract", contract_of_reshape),
        rule("transpose-of-contract", "transpose", transpose_of_contract),
        rule("reshape-of-contract", "reshape", reshape_of_contract),
        rule("slice-of-contract", "slice", slice_of_contract),
        rule("concat-of-broadcast", "concat", concat_of_broadcast),
    ]
}

fn contract<'a>(site: &Site<'a>) -> &'a Contract {
    match site.op {
        Op::Contract(spec) => spec,
        op => base::bug!("{} for contract", op.name()),
    }
}

// Aᵀ·B is a sum over the same products: the letters of A change places. Exact.
fn contract_of_transpose(site: &Site) -> Vec<Term> {
    let spec = contract(site);
    let mut found = Vec::new();
    for right in [false, true] {
        for (op, of) in site.defs(site.children[usize::from(right)]) {
            let Op::Transpose(perm) = &*op else { continue };
            let mut product = Product::of(spec, site.children);
            let (operand, letters) = product.side(right);
            let moved = letters.clone();
            perm.iter().zip(&moved).for_each(|(from, c)| letters[*from] = *c);
            *operand = of[0].into();
            found.push(product.term());
        }
    }
    found
}

// Where a reshape joins axes of an operand, they are axes of the product of their own: kept ones are joined afterwards, summed ones are split
// in the other operand. Exact: the same products in the same order.
fn contract_of_reshape(site: &Site) -> Vec<Term> {
    let spec = contract(site);
    let mut found = Vec::new();
    for right in [false, true] {
        let child = site.children[usize::from(right)];
        for (op, of) in site.defs(child) {
            let Op::Reshape(shape) = &*op else { continue };
            let from = &site.ty_of(of[0]).shape;
            let Some(groups) = groups(from, shape) else { continue };
            if groups.iter().any(|(_, to)| to.len() > 1) {
                continue;
            }
            let mut names = fresh(spec, from.len()).into_iter();
            let mut product = Product::of(spec, site.children);
            let other_shape = &site.ty_of(site.children[usize::from(!right)]).shape;
            let (mut letters, mut split) = (Vec::new(), Vec::new());
            for (joined, at) in &groups {
                let old = product.side(right).1[at.start];
                if joined.len() == 1 {
                    letters.push(old);
                    continue;
                }
                let new: Vec<char> = names.by_ref().take(joined.len()).collect();
                letters.extend(&new);
                split.push((old, new, from[joined.clone()].to_vec()));
            }
            *product.side(right) = (of[0].into(), letters);
            // The other operand, where it has the letter.
            let (operand, letters) = product.side(!right);
            let (mut shape, mut word) = (Vec::new(), Vec::new());
            for (c, extent) in letters.iter().zip(other_shape) {
                match split.iter().find(|(old, ..)| old == c) {
                    Some((_, new, extents)) => {
                        word.extend(new);
                        shape.extend(extents.iter().cloned());
                    }
                    None => {
                        word.push(*c);
                        shape.push(extent.clone());
                    }
                }
            }
            if word != *letters {
                *operand = Term::of(Op::Reshape(shape), operand.clone());
                *letters = word;
            }
            let out = std::mem::take(&mut product.out);
            product.out = out
                .iter()
                .flat_map(|c| split.iter().find(|(old, ..)| old == c).map_or(vec![*c], |(_, new, _)| new.clone()))
                .collect();
            let whole = product.out == out;
            let term = product.term();
            found.push(if whole { term } else { Term::of(Op::Reshape(site.ty.shape.clone()), term) });
        }
    }
    found
}

// (A·B)ᵀ: the letters of the result change places. Exact.
fn transpose_of_contract(site: &Site) -> Vec<Term> {
    let Op::Transpose(perm) = site.op else { return Vec::new() };
    let mut found = Vec::new();
    for (op, of) in site.defs(site.children[0]) {
        let Op::Contract(spec) = &*op else { continue };
        let mut product = Product::of(spec, of);
        product.out = perm.iter().map(|p| spec.out[*p]).collect();
        found.push(product.term());
    }
    found
}

// A reshape that splits axes of a product which come from one operand splits them there. Exact.
fn reshape_of_contract(site: &Site) -> Vec<Term> {
    let mut found = Vec::new();
    let from = &site.ty_of(site.children[0]).shape;
    let Some(groups) = groups(from, &site.ty.shape) else { return found };
    for (op, of) in site.defs(site.children[0]) {
        let Op::Contract(spec) = &*op else { continue };
        let splits = |(joined, to): &&(std::ops::Range<usize>, std::ops::Range<usize>)| joined.len() != 1 || to.len() != 1;
        if groups.iter().filter(splits).any(|(joined, _)| joined.len() != 1 || !is_own(spec, spec.out[joined.start])) {
            continue;
        }
        let mut names = fresh(spec, site.ty.rank()).into_iter();
        let mut product = Product::of(spec, of);
        product.out.clear();
        for (joined, to) in &groups {
            let old = spec.out[joined.start];
            if to.len() == 1 {
                product.out.push(old);
                continue;
            }
            let new: Vec<char> = names.by_ref().take(to.len()).collect();
            let right = spec.rhs.contains(&old);
            let shape = &site.ty_of(of[usize::from(right)]).shape;
            let (operand, letters) = product.side(right);
            let at = letters.iter().position(|c| *c == old).expect("the operand has the letter");
            letters.splice(at..=at, new.iter().copied());
            // A second split of the same operand starts from the first one's shape.
            let mut shape = match operand {
                Term::Op(Op::Reshape(shape), _) => shape.clone(),
                Term::Op(..) | Term::Class(_) | Term::Result(..) => shape.clone(),
            };
            shape.splice(at..=at, site.ty.shape[to.clone()].iter().cloned());
            *operand = Term::of(Op::Reshape(shape), of[usize::from(right)]);
            product.out.extend(new);
        }
        found.push(product.term());
    }
    found
}

// Some rows or columns of a product are the product of those rows or columns. Exact.
fn slice_of_contract(site: &Site) -> Vec<Term> {
    let Op::Slice { axis, start, len, step } = site.op else { return Vec::new() };
    let mut found = Vec::new();
    for (op, of) in site.defs(site.children[0]) {
        let Op::Contract(spec) = &*op else { continue };
        let letter = spec.out[*axis];
        if !is_own(spec, letter) {
            continue;
        }
        let mut product = Product::of(spec, of);
        let (operand, letters) = product.side(spec.rhs.contains(&letter));
        let axis = letters.iter().position(|c| *c == letter).expect("the operand has the letter");
        let op = Op::Slice { axis, start: start.clone(), len: len.clone(), step: *step };
        *operand = Term::of(op, operand.clone());
        found.push(product.term());
    }
    found
}

// Operands that are all repeated along the same axes, and not along the joined one, are joined before they are repeated. Exact.
fn concat_of_broadcast(site: &Site) -> Vec<Term> {
    let Op::Concat(axis) = site.op else { return Vec::new() };
    let first = site.defs(site.children[0]);
    let kept: Vec<Vec<usize>> = first.filter_map(|(op, _)| broadcast_axes(&op)).collect();
    let mut found = Vec::new();
    for axes in kept {
        let Some(at) = axes.iter().position(|a| a == axis) else { continue };
        let before = |child| site.defs(child).find(|(op, _)| broadcast_axes(op).as_ref() == Some(&axes)).map(|(_, of)| of[0]);
        let Some(operands) = site.children.iter().map(|c| before(*c).map(Term::from)).collect::<Option<Vec<_>>>() else {
            continue;
        };
        let shape = site.ty.shape.clone();
        found.push(Term::of(Op::Broadcast { shape, axes }, Term::Op(Op::Concat(at), operands)));
    }
    found
}

/// Where a broadcast's operand axes go; `None` of another op.
fn broadcast_axes(op: &Op) -> Option<Vec<usize>> {
    match op {
        Op::Broadcast { axes, .. } => Some(axes.clone()),
        _ => None,
    }
}
