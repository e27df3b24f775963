//! Codes of eight bits: a quantisation stands where it meets few elements, and what is moved is codes of a byte rather than what they are worth. Only moves
//! of whole blocks: rows, axes before the blocked one, and the blocked one at borders of blocks. Nothing is ever taken back: rounding to codes loses
//! bits, so that neither what codes are worth is what they were made from, nor are its codes these.
//! # Source: placement of FP8 casts before dispatch: DeepSeek-V3, arXiv 2412.19437, section 3.3.

use super::{Class, Family, How, Rule, directed, products::product_of_codes};
use crate::rewrite::{Site, Term};
use base::{Dim, TensorType};
use egg::Id;
use graph::{
    Op,
    op::{
        self, MapFn,
        quantize::{Block, of_scales},
    },
};
use std::borrow::Cow;

/// The table.
pub fn rules() -> Vec<Rule> {
    let rule = |name, root, f| directed(name, Family::Precision, Class::Exact, root, f);
    let outline =
        |name, root| Rule { name, family: Family::Precision, class: Class::Exact, how: How::Outline(root, product_of_codes) };
    vec![
        rule("quantize-of-moved", "quantize", quantize_of_moved),
        rule("gather-of-quantize", "gather", moved_before_quantize),
        rule("slice-of-quantize", "slice", moved_before_quantize),
        rule("gather-of-dequantize", "gather", moved_before_dequantize),
        rule("slice-of-dequantize", "slice", moved_before_dequantize),
        rule("reshape-of-dequantize", "reshape", moved_before_dequantize),
        rule("concat-of-dequantize", "concat", concat_of_dequantize),
        rule("dequantize-of-moved", "dequantize", dequantize_of_moved),
        rule("add-of-rounding", "map", add_of_rounding),
        outline("contract-of-dequantized", "contract"),
        outline("grouped-contract-of-dequantized", "grouped_contract"),
    ]
}

/// The operands of a move whose elements it moves; the others are its index.
fn num_moved(op: &Op, operands: &[Id]) -> usize {
    if let Op::Gather { .. } = op { 1 } else { operands.len() }
}

/// The move of scales that goes with a move of elements from classes to a shape, if it moves blocks whole.
fn scale_move(site: &Site, op: &Op, size: Block, of: &[Id], to: &[Dim]) -> Option<Op> {
    let from: Vec<&[Dim]> = of[..num_moved(op, of)].iter().map(|c| &site.ty_of(*c).shape[..]).collect();
    of_scales(op, size, &from, to)
}

/// `op` on terms in place of the operands that it moves.
fn moved(op: &Op, terms: Vec<Term>, of: &[Id]) -> Term {
    let index = of[terms.len()..].iter().map(|c| Term::from(*c));
    Term::Op(op.clone(), terms.into_iter().chain(index).collect())
}

/// The type of a move of values of these types.
fn type_of(site: &Site, op: &Op, types: &[TensorType], of: &[Id]) -> Option<TensorType> {
    let index = of[types.len()..].iter().map(|c| site.ty_of(*c));
    op::infer(op, &types.iter().chain(index).collect::<Vec<_>>()).ok().map(|mut t| t.remove(0))
}

/// The types of codes and scales of a class.
fn quantized(site: &Site, size: Block, x: Id) -> Option<Vec<TensorType>> {
    op::infer(&Op::Quantize(size), &[site.ty_of(x)]).ok()
}

// Blocks of moved rows are the moved blocks: each is the same elements, so it has the same largest one, scale and codes. An index outside gives a row of 0,
// whose codes and scales are 0.
fn quantize_of_moved(site: &Site) -> Vec<Term> {
    let (Op::Quantize(size), Some(result)) = (site.op, site.result) else { return Vec::new() };
    let mut found = Vec::new();
    let to = &site.ty_of(site.children[0]).shape;
    for (op, of) in site.defs(site.children[0]) {
        let Some(scales) = scale_move(site, &op, *size, of, to) else { continue };
        let how = if result == 0 { op.into_owned() } else { scales };
        let each = &of[..num_moved(&how, of)];
        let types =
            each.iter().map(|x| Some(quantized(site, *size, *x)?.swap_remove(result as usize))).collect::<Option<Vec<_>>>();
        // Extents may be equal in another form.
        if types.and_then(|types| type_of(site, &how, &types, of)).as_ref() != Some(site.ty) {
            continue;
        }
        let part = |x: &Id| Term::Result(result, Box::new(Term::of(Op::Quantize(*size), *x)));
        found.push(moved(&how, each.iter().map(part).collect(), of));
    }
    found
}

// The same the other way round, where it leaves fewer to quantise.
fn moved_before_quantize(site: &Site) -> Vec<Term> {
    let (x, mut found) = (site.children[0], Vec::new());
    for (q, result) in site.results(x) {
        for (op, of) in site.defs(q) {
            let Op::Quantize(size) = &*op else { continue };
            let shape = &site.ty_of(of[0]).shape;
            let Some(how) = (if result == 0 { Some(site.op.clone()) } else { of_elements(site.op, *size, shape) }) else {
                continue;
            };
            let Some(ty) = type_of(site, &how, &[site.ty_of(of[0]).clone()], site.children) else { continue };
            let Some(scales) = of_scales(&how, *size, &[shape], &ty.shape) else { continue };
            let is_it = result == 0 || scales == *site.op;
            let same = op::infer(&op, &[&ty]).is_ok_and(|types| types[result as usize] == *site.ty);
            if is_it && same {
                let term = Term::of(op.into_owned(), moved(&how, vec![of[0].into()], site.children));
                found.push(Term::Result(result, Box::new(term)));
            }
        }
    }
    found
}

/// What does to elements of this shape what a gather or slice does to their scales.
fn of_elements(op: &Op, block: Block, shape: &[Dim]) -> Option<Op> {
    let first = shape.len() - block.axes();
    match op {
        Op::Slice { axis, start, len, step: 1 } if *axis >= first => {
            let by = Dim::from(block.along(*axis, shape.len()));
            let first = start.clone();
            let start = start.clone() * by.clone();
            // No block of a row that may end before them has no place among its elements.
            let known = |d: &Dim, least: i64| d.known().is_some_and(|n| n >= least);
            if !(first.is(0) || known(len, 1) || known(&(shape[*axis].clone() - start.clone()), 0)) {
                return None;
            }
            // All that is left, or whole blocks.
            let rest = shape[*axis].clone() - start.clone();
            let len = if rest.ceil_div(&by) == *len { rest } else { len.clone() * by };
            Some(Op::Slice { axis: *axis, start, len, step: 1 })
        }
        Op::Slice { axis, .. } if *axis < first => Some(op.clone()),
        Op::Gather { batch } if *batch < first => Some(op.clone()),
        _ => None,
    }
}

// Moved, codes are worth what they were worth: an index outside gives the code 0.
fn moved_before_dequantize(site: &Site) -> Vec<Term> {
    let mut found = Vec::new();
    for (op, of) in site.defs(site.children[0]) {
        let Op::Dequantize(size) = &*op else { continue };
        let Some(scales) = scale_move(site, site.op, *size, site.children, &site.ty.shape) else { continue };
        let types =
            [(site.op, of[0]), (&scales, of[1])].map(|(how, x)| type_of(site, how, &[site.ty_of(x).clone()], site.children));
        let [Some(codes), Some(of_codes)] = types else { continue };
        if op::infer(&op, &[&codes, &of_codes]).is_ok_and(|t| t[0] == *site.ty) {
            let parts = [(site.op, of[0]), (&scales, of[1])].map(|(how, x)| moved(how, vec![x.into()], site.children));
            found.push(Term::Op(op.into_owned(), parts.into()));
        }
    }
    found
}

// Joined at borders of blocks, codes are copied in place of what they are worth.
fn concat_of_dequantize(site: &Site) -> Vec<Term> {
    let mut found = Vec::new();
    let of_first: Vec<Block> = site.defs(site.children[0]).filter_map(|(op, _)| block(&op)).collect();
    for size in of_first {
        let def = |c: &Id| site.defs(*c).find(|(op, _)| block(op) == Some(size)).map(|(_, of)| of);
        let Some(all) = site.children.iter().map(def).collect::<Option<Vec<_>>>() else { continue };
        let Some(scales) = scale_move(site, site.op, size, site.children, &site.ty.shape) else { continue };
        let types = |i: usize| all.iter().map(|of| site.ty_of(of[i])).collect::<Vec<_>>();
        let (codes, of_codes) = (op::infer(site.op, &types(0)), op::infer(&scales, &types(1)));
        let (Ok(codes), Ok(of_codes)) = (codes, of_codes) else { continue };
        if op::infer(&Op::Dequantize(size), &[&codes[0], &of_codes[0]]).is_ok_and(|t| t[0] == *site.ty) {
            let parts =
                [(site.op, 0), (&scales, 1)].map(|(how, i)| Term::Op(how.clone(), all.iter().map(|of| of[i].into()).collect()));
            found.push(Term::Op(Op::Dequantize(size), parts.into()));
        }
    }
    found
}

fn block(op: &Op) -> Option<Block> {
    if let Op::Dequantize(size) = op { Some(*size) } else { None }
}

// Codes and scales that were moved alike are worth what was moved: where there are fewer before than after, or a product's kernel takes rows by index.
fn dequantize_of_moved(site: &Site) -> Vec<Term> {
    let (Op::Dequantize(size), [codes, scales]) = (site.op, site.children) else { return Vec::new() };
    let mut found = Vec::new();
    for (op, of) in site.defs(*codes) {
        if num_moved(&op, of) != 1 {
            continue;
        }
        let Some(want) = scale_move(site, &op, *size, of, &site.ty.shape) else { continue };
        let alike = |x: &[Id]| x.iter().zip(of).skip(1).all(|(a, b)| site.same(*a, *b));
        for (_, of_scale) in site.defs(*scales).filter(|(op, x)| **op == want && alike(x)) {
            let before = op::infer(site.op, &[site.ty_of(of[0]), site.ty_of(of_scale[0])]);
            if before.is_ok_and(|t| type_of(site, &op, &t, of).as_ref() == Some(site.ty)) {
                let worth = Term::Op(site.op.clone(), vec![of[0].into(), of_scale[0].into()]);
                found.push(moved(&op, vec![worth], of));
            }
        }
    }
    found
}

// x + (r − x) = r for x rounded to codes and back: a code that is not 0 is worth x within a factor of two, so the difference is exact (Sterbenz), and so is
// the sum; one that is 0 gives x + (0 − x). What gradients are straight through of is r itself, once they are taken.
fn add_of_rounding(site: &Site) -> Vec<Term> {
    let (Op::Map(MapFn::Add), [a, b]) = (site.op, site.children) else { return Vec::new() };
    let mut found = Vec::new();
    for (x, change) in [(*a, *b), (*b, *a)] {
        for (op, of) in site.defs(change) {
            if matches!(&*op, Op::Map(MapFn::Sub)) && site.same(of[1], x) && is_rounded(site, of[0], x) {
                found.push(of[0].into());
            }
        }
    }
    found
}

/// Whether a class is x rounded to codes and back, in x's dtype.
fn is_rounded(site: &Site, class: Id, x: Id) -> bool {
    let dtype = site.ty_of(x).dtype;
    let cast = |(op, of): (Cow<Op>, &[Id])| *op == Op::Cast(dtype) && is_worth(site, of[0], x);
    is_worth(site, class, x) && site.ty_of(class).dtype == dtype || site.defs(class).any(cast)
}

/// Whether a class is what the codes of x are worth.
fn is_worth(site: &Site, class: Id, x: Id) -> bool {
    site.defs(class).any(|(op, of)| {
        let Some(size) = block(&op) else { return false };
        let of_x = |(op, of): (Cow<Op>, &[Id])| *op == Op::Quantize(size) && site.same(of[0], x);
        site.results(of[0]).any(|(q, result)| {
            let scales = site.results(of[1]).any(|(r, result)| result == 1 && site.same(q, r));
            result == 0 && scales && site.defs(q).any(of_x)
        })
    })
}
