//! Precision: casts stand where they meet few elements, and next to arguments, so that equal ones are one. Only moves that keep every bit.

use super::{Class, Family, Rule, directed};
use crate::rewrite::{Site, Term};
use base::DType;
use graph::Op;

/// The table.
pub fn rules() -> Vec<Rule> {
    let rule = |name, f| directed(name, Family::Precision, Class::Exact, "cast", f);
    vec![
        rule("cast-of-layout", cast_of_layout),
        rule("cast-of-cast", cast_of_cast),
        directed("slice-of-cast", Family::Precision, Class::Exact, "slice", slice_of_cast),
        directed("gather-of-cast", Family::Precision, Class::Exact, "gather", gather_of_cast),
    ]
}

// A cast of moved elements moves cast elements. Towards the operand, which never has more; what is joined is narrowed first.
fn cast_of_layout(site: &Site) -> Vec<Term> {
    let Op::Cast(dtype) = site.op else { return Vec::new() };
    let mut found = Vec::new();
    for (op, of) in site.defs(site.children[0]) {
        if let Op::Broadcast { .. } | Op::Transpose(_) | Op::Reshape(_) = &*op {
            found.push(Term::of(op.into_owned(), Term::of(Op::Cast(*dtype), of[0])));
        } else if let Op::Concat(axis) = &*op
            && dtype.bytes() < site.ty_of(site.children[0]).dtype.bytes()
        {
            let parts = of.iter().map(|x| Term::of(Op::Cast(*dtype), *x)).collect();
            found.push(Term::Op(Op::Concat(*axis), parts));
        }
    }
    found
}

// Fewer elements are cast: slice(cast x) = cast(slice x).
fn slice_of_cast(site: &Site) -> Vec<Term> {
    moved_before_cast(site)
}

// gather(cast x) = cast(gather x): an index outside gives 0 both ways.
fn gather_of_cast(site: &Site) -> Vec<Term> {
    moved_before_cast(site)
}

fn moved_before_cast(site: &Site) -> Vec<Term> {
    let mut found = Vec::new();
    for (op, of) in site.defs(site.children[0]) {
        let Op::Cast(dtype) = &*op else { continue };
        let mut operands = vec![Term::from(of[0])];
        operands.extend(site.children[1..].iter().map(|c| Term::from(*c)));
        found.push(Term::of(Op::Cast(*dtype), Term::Op(site.op.clone(), operands)));
    }
    found
}

/// Whether every value of the first is one of the second.
fn is_within(a: DType, b: DType) -> bool {
    use DType::*;
    a == b
        || matches!(
            (a, b),
            (F32 | BF16 | F16 | E4M3 | I32 | Bool, F64)
                | (BF16 | F16 | E4M3 | Bool, F32)
                | (E4M3 | Bool, BF16 | F16)
                | (I32 | Bool, I64)
                | (Bool, I32)
        )
}

// A cast to what holds every value changes none, so the next cast may start from before it.
fn cast_of_cast(site: &Site) -> Vec<Term> {
    let Op::Cast(dtype) = site.op else { return Vec::new() };
    let mut found = Vec::new();
    for (op, of) in site.defs(site.children[0]) {
        let Op::Cast(between) = &*op else { continue };
        let from = site.ty_of(of[0]).dtype;
        if !is_within(from, *between) {
            continue;
        }
        found.push(if from == *dtype { of[0].into() } else { Term::of(Op::Cast(*dtype), of[0]) });
    }
    found
}
