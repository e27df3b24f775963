//! Precision: casts stand where they meet few elements, and next to arguments, so that equal ones are one; products of what is only widened, and of
//! such with f32, are products of narrow operands, which tensor cores take. All but those with f32 keep every bit.

use super::{
    Class, Family, How, Rule,
    algebra::full,
    directed,
    products::{widened, widened_inside},
    regions::region,
};
use crate::{
    contraction::{Product, fresh, is_own},
    rewrite::{Site, Term},
};
use base::{DType, Dim, TensorType};
use egg::Id;
use graph::{
    Op,
    op::{Form, MapFn, ReduceFn, Scalar},
};

/// The table.
pub fn rules() -> Vec<Rule> {
    let rule = |name, f| directed(name, Family::Precision, Class::Exact, "cast", f);
    vec![
        rule("cast-of-layout", cast_of_layout),
        rule("cast-of-cast", cast_of_cast),
        directed("slice-of-cast", Family::Precision, Class::Exact, "slice", slice_of_cast),
        directed("gather-of-cast", Family::Precision, Class::Exact, "gather", gather_of_cast),
        directed("contract-of-widened-and-f32", Family::Precision, Class::Reassociates, "contract", contract_of_widened_and_f32),
        Rule {
            name: "contract-of-widened",
            family: Family::Precision,
            class: Class::Exact,
            how: How::Outline("contract", contract_of_widened),
        },
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
            (F32 | TF32 | BF16 | F16 | E4M3 | I32 | Bool, F64)
                | (TF32 | BF16 | F16 | E4M3 | Bool, F32)
                | (BF16 | F16 | E4M3 | Bool, TF32)
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

/// Parts of eight bits that an f32 is the sum of.
const PARTS: i64 = 3;
/// Above this a number may round to no finite bf16; it is a part alone.
const MOST: f64 = 3.38e38;
/// The share of what is read or given that may be added so that there are parts.
const SHARE: f64 = 0.25;

// Σₖ aᵢₖ·bₖⱼ for an a that is widened bf16 and a b of f32 = Σₚₖ aᵢₖ·bₖₚⱼ, the bf16 parts of b being b = b₀ + b₁ + b₂ without a rounding: factors of eight
// bits have exact products in f32. Of a b above [`MOST`] there is one part, rounded, and what it has below bf16's least number, 2^-133, is lost; an infinite a gives NaN
// where a part is 0. Where the parts are columns of the result, or terms of a matrix that is repeated, and that are few elements.
fn contract_of_widened_and_f32(site: &Site) -> Vec<Term> {
    let Op::Contract(spec) = site.op else { return Vec::new() };
    let size = |ty: &TensorType| ty.shape.iter().map(|d| site.egraph.analysis.size(d)).product::<f64>();
    let is_bf16 = |c: Id| widened(site, c).is_some_and(|(_, of)| site.ty_of(of[0]).dtype == DType::BF16);
    let mut found = Vec::new();
    for right in [false, true] {
        let [b, a] = [right, !right].map(|r| site.children[usize::from(r)]);
        if !is_bf16(a) || widened(site, b).is_some() || site.ty.dtype != DType::F32 || site.same(a, b) {
            continue;
        }
        let letters = if right { &spec.rhs } else { &spec.lhs };
        let part = fresh(spec, 1)[0];
        let own = letters.iter().position(|c| is_own(spec, *c) && spec.out.contains(c));
        if let Some(at) = own.filter(|_| size(site.ty) <= SHARE * size(site.ty_of(a))) {
            let mut product = Product::of(spec, site.children);
            let (operand, among) = product.side(right);
            *operand = parts(site, b, at);
            among.insert(at, part);
            let to = spec.out.iter().position(|c| *c == letters[at]).expect("it is in the result");
            product.out.insert(to, part);
            found.push(Term::of(Op::Reduce(ReduceFn::Sum, vec![to]), product.term()));
        }
        let summed = letters.iter().position(|c| !spec.out.contains(c));
        if let Some(at) = summed.filter(|_| size(site.ty_of(a)) <= SHARE * size(site.ty)) {
            let mut product = Product::of(spec, site.children);
            let (operand, among) = product.side(right);
            *operand = parts(site, b, at);
            among.insert(at, part);
            let (operand, among) = product.side(!right);
            let to = among.iter().position(|c| *c == letters[at]).expect("both sum it");
            among.insert(to, part);
            let (shape, axes) = with_parts(site.ty_of(a), to);
            let narrow = widened(site, a).expect("asked before").1[0];
            *operand = Term::of(Op::Cast(DType::F32), Term::of(Op::Broadcast { shape, axes }, narrow));
            found.push(product.term());
        }
    }
    found
}

/// A shape with an axis of parts, and where the other axes are.
fn with_parts(ty: &TensorType, at: usize) -> (Vec<Dim>, Vec<usize>) {
    let mut shape = ty.shape.clone();
    shape.insert(at, Dim::from(PARTS));
    (shape, (0..=ty.rank()).filter(|i| *i != at).collect())
}

/// The bf16 parts of an f32, widened, along a new axis: it rounded, what that leaves rounded, and what is left then, which is exact.
fn parts(site: &Site, b: Id, at: usize) -> Term {
    let map = |f, of: &[&Term]| Term::Op(Op::Map(f), of.iter().map(|t| (*t).clone()).collect());
    let cast = |dtype, x: Term| Term::of(Op::Cast(dtype), x);
    let rounded = |x: &Term| cast(DType::F32, cast(DType::BF16, x.clone()));
    let ty = site.ty_of(b);
    let whole = Term::from(b);
    let few = map(MapFn::Le, &[&map(MapFn::Abs, &[&whole]), &full(ty, MOST)]);
    let left = map(MapFn::Select, &[&few, &map(MapFn::Sub, &[&whole, &rounded(&whole)]), &full(ty, 0.0)]);
    let last = map(MapFn::Sub, &[&left, &rounded(&left)]);
    let (shape, axes) = with_parts(ty, at);
    let along = |x: Term| Term::of(Op::Broadcast { shape: shape.clone(), axes: axes.clone() }, x);
    let number = Term::Op(Op::Iota(Dim::from(PARTS)), Vec::new());
    let number = Term::of(Op::Broadcast { shape: shape.clone(), axes: vec![at] }, number);
    let is = |i: i64| {
        let i = Term::Op(Op::Const(Scalar::new(i as f64), DType::I32), Vec::new());
        map(MapFn::Eq, &[&number, &Term::of(Op::Broadcast { shape: shape.clone(), axes: Vec::new() }, i)])
    };
    let behind = map(MapFn::Select, &[&is(1), &along(left), &along(last)]);
    let all = map(MapFn::Select, &[&is(0), &along(whole), &behind]);
    cast(DType::F32, cast(DType::BF16, all))
}

// A product of operands that are only widened: they are multiplied as they are in memory, summed in f32.
fn contract_of_widened(site: &Site) -> Vec<(Id, Term)> {
    let Some(mut order) = widened_inside(site, site.children.iter().copied()) else { return Vec::new() };
    let mut dtypes = order.iter().filter(|(_, op)| op.is_none()).map(|(c, _)| site.ty_of(*c).dtype);
    let first = dtypes.next();
    if dtypes.any(|d| Some(d) != first) {
        return Vec::new();
    }
    order.push((site.class, Some((site.op.clone(), site.children.to_vec()))));
    region(site, Form::Product, &order, &[site.class]).terms()
}
