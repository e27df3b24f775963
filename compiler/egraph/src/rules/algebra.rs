//! Algebra: products re-associated where that takes fewer multiplications, factors moved to where they are few.

use super::{Class, Family, Rule, directed};
use crate::{
    contraction::{Product, terms},
    rewrite::{Site, Term},
};
use base::{Dim, TensorType};
use egg::Id;
use graph::{
    Op,
    op::{Contract, MapFn, Scalar, infer},
};

/// The table.
pub fn rules() -> Vec<Rule> {
    let rule = |name, root, f| directed(name, Family::Algebra, Class::Reassociates, root, f);
    vec![
        rule("contract-of-contract", "contract", contract_of_contract),
        rule("contract-of-mul-by-row", "contract", contract_of_mul_by_row),
        rule("contract-of-mul-by-summed", "contract", contract_of_mul_by_summed),
        rule("contract-of-mul-by-constant", "contract", contract_of_mul_by_constant),
        rule("add-of-contracts", "map", add_of_contracts),
        directed("div-by-constant", Family::Algebra, Class::Exact, "map", div_by_constant),
    ]
}

// (x·u)·w = x·(u·w) = (x·w)·u, as einsums over the letters of all three. Only where that takes fewer multiplications at the sizes that run-time
// dims are taken to have: so it ends, and the growth is bounded.
fn contract_of_contract(site: &Site) -> Vec<Term> {
    let Op::Contract(spec) = site.op else { return Vec::new() };
    let mut found = Vec::new();
    for right in [false, true] {
        let (inner, outer) = (site.children[usize::from(right)], site.children[usize::from(!right)]);
        let (joined, letters) = if right { (&spec.rhs, &spec.lhs) } else { (&spec.lhs, &spec.rhs) };
        for (op, of) in site.defs(inner) {
            let Op::Contract(below) = &*op else { continue };
            // The inner product's letters in the outer one's names; those it sums have names of their own.
            let name = |c: &char| match below.out.iter().position(|o| o == c) {
                Some(i) => joined[i],
                None => char::from_u32(*c as u32 + 0x1000).expect("a letter"),
            };
            let three: [(Id, Vec<char>); 3] = [
                (of[0], below.lhs.iter().map(name).collect()),
                (of[1], below.rhs.iter().map(name).collect()),
                (outer, letters.clone()),
            ];
            let before = terms(site, below, site.ty_of(of[0]), site.ty_of(of[1]))
                + terms(site, spec, site.ty_of(site.children[0]), site.ty_of(site.children[1]));
            for (alone, pair) in [(0, (1, 2)), (1, (0, 2))] {
                let (x, u, w) = (&three[alone], &three[pair.0], &three[pair.1]);
                let needed = |c: &&char| x.1.contains(c) || spec.out.contains(c);
                let mut out: Vec<char> = u.1.iter().filter(needed).copied().collect();
                out.extend(w.1.iter().filter(|c| !u.1.contains(c)).filter(needed));
                let first = Contract { lhs: u.1.clone(), rhs: w.1.clone(), out };
                let (tu, tw) = (site.ty_of(u.0), site.ty_of(w.0));
                let Ok(types) = infer(&Op::Contract(first.clone()), &[tu, tw]) else { continue };
                let second = Contract { lhs: x.1.clone(), rhs: first.out.clone(), out: spec.out.clone() };
                let Ok(result) = infer(&Op::Contract(second.clone()), &[site.ty_of(x.0), &types[0]]) else { continue };
                let after = terms(site, &first, tu, tw) + terms(site, &second, site.ty_of(x.0), &types[0]);
                if result[0] != *site.ty || after >= before {
                    continue;
                }
                let inner = Product { lhs: (u.0.into(), first.lhs), rhs: (w.0.into(), first.rhs), out: first.out };
                found.push(Product { lhs: (x.0.into(), second.lhs), rhs: (inner.term(), second.rhs), out: second.out }.term());
            }
        }
    }
    found
}

/// What a class is as x·f with f repeated along axes: x, f, and the axes of x that f has, for each way.
fn scaled(site: &Site, class: Id) -> Vec<(Id, Id, Vec<usize>)> {
    let mut found = Vec::new();
    for (op, of) in site.defs(class) {
        if !matches!(&*op, Op::Map(MapFn::Mul)) {
            continue;
        }
        for (x, f) in [(of[0], of[1]), (of[1], of[0])] {
            for (op, below) in site.defs(f) {
                if let Op::Broadcast { axes, .. } = &*op {
                    found.push((x, below[0], axes.clone()));
                }
            }
        }
    }
    found
}

/// Where `axes` of a value with `letters` are among `among`, if all are there and in the same order.
fn positions(axes: &[usize], letters: &[char], among: &[char]) -> Option<Vec<usize>> {
    let at: Option<Vec<usize>> = axes.iter().map(|a| among.iter().position(|c| *c == letters[*a])).collect();
    at.filter(|at| at.windows(2).all(|w| w[0] < w[1]))
}

fn times(x: Term, f: Term, shape: &[Dim], axes: Vec<usize>) -> Term {
    Term::Op(Op::Map(MapFn::Mul), vec![x, Term::of(Op::Broadcast { shape: shape.to_vec(), axes }, f)])
}

// Σₖ (xᵢₖ·rᵢ)·wₖⱼ = rᵢ·Σₖ xᵢₖ·wₖⱼ: a norm's factor of each row after the product. The other operand is an argument, so that a value is scaled
// once. With the norm's weight between, Σₖ (xᵢₖ·rᵢ·gₖ)·wₖⱼ = rᵢ·Σₖ (xᵢₖ·gₖ)·wₖⱼ, where the product has fewer elements than x.
fn contract_of_mul_by_row(site: &Site) -> Vec<Term> {
    let Op::Contract(spec) = site.op else { return Vec::new() };
    let elems = |t: &TensorType| t.shape.iter().map(|d| site.egraph.analysis.size(d)).product::<f64>();
    let mut found = Vec::new();
    for right in [false, true] {
        if !site.egraph[site.children[usize::from(!right)]].data.whole_arg {
            continue;
        }
        let child = site.children[usize::from(right)];
        let ty = site.ty_of(child);
        let mut ways: Vec<(Term, Id, Vec<usize>)> = Vec::new();
        for (x, f, axes) in scaled(site, child) {
            if elems(site.ty) < elems(ty) && site.egraph[f].data.whole_arg {
                let below = scaled(site, x).into_iter();
                ways.extend(below.map(|(x, r, of_r)| (times(x.into(), f.into(), &ty.shape, axes.clone()), r, of_r)));
            }
            ways.push((x.into(), f, axes));
        }
        for (x, f, axes) in ways {
            let mut product = Product::of(spec, site.children);
            let (operand, letters) = product.side(right);
            *operand = x;
            let Some(at) = positions(&axes, letters, &spec.out).filter(|_| !axes.is_empty()) else { continue };
            found.push(times(product.term(), f.into(), &site.ty.shape, at));
        }
    }
    found
}

// Σₖ (xᵢₖ·gₖ)·wₖⱼ = Σₖ xᵢₖ·(gₖ·wₖⱼ): a norm's weight into the matrix after it. Only where g and w are arguments.
fn contract_of_mul_by_summed(site: &Site) -> Vec<Term> {
    let Op::Contract(spec) = site.op else { return Vec::new() };
    let mut found = Vec::new();
    let arg = |c: Id| site.egraph[c].data.whole_arg;
    for right in [false, true] {
        let other = site.children[usize::from(!right)];
        for (x, f, axes) in scaled(site, site.children[usize::from(right)]) {
            let mut product = Product::of(spec, site.children);
            let letters = product.side(right).1.clone();
            let summed = !axes.is_empty() && axes.iter().all(|a| !spec.out.contains(&letters[*a]));
            let (operand, among) = product.side(!right);
            let Some(at) = positions(&axes, &letters, among).filter(|_| summed && arg(f) && arg(other)) else { continue };
            *operand = times(other.into(), f.into(), &site.ty_of(other).shape, at);
            product.side(right).0 = x.into();
            found.push(product.term());
        }
    }
    found
}

/// The number that multiplies a class, with the rest, for each way.
fn by_constant(site: &Site, class: Id) -> Vec<(Id, f64)> {
    let splat = |c: Id| site.egraph[c].data.splat.map(Scalar::get);
    let products = site.defs(class).filter(|(op, _)| matches!(&**op, Op::Map(MapFn::Mul)));
    let both = products.flat_map(|(_, of)| [(of[0], of[1]), (of[1], of[0])]);
    both.filter_map(|(x, c)| Some((x, splat(c)?))).filter(|(x, _)| splat(*x).is_none()).collect()
}

/// A value of the type that has one number everywhere.
pub(super) fn full(ty: &TensorType, x: f64) -> Term {
    let scalar = Term::Op(Op::Const(Scalar::new(x), ty.dtype), Vec::new());
    if ty.rank() == 0 { scalar } else { Term::of(Op::Broadcast { shape: ty.shape.clone(), axes: Vec::new() }, scalar) }
}

// (c·x)·w = c·(x·w), where the result has fewer elements than x.
fn contract_of_mul_by_constant(site: &Site) -> Vec<Term> {
    let Op::Contract(spec) = site.op else { return Vec::new() };
    let elems = |t: &TensorType| t.shape.iter().map(|d| site.egraph.analysis.size(d)).product::<f64>();
    let mut found = Vec::new();
    for right in [false, true] {
        let child = site.children[usize::from(right)];
        for (x, c) in by_constant(site, child).into_iter().filter(|_| elems(site.ty) < elems(site.ty_of(child))) {
            let mut product = Product::of(spec, site.children);
            product.side(right).0 = x.into();
            found.push(Term::Op(Op::Map(MapFn::Mul), vec![product.term(), full(site.ty, c)]));
        }
    }
    found
}

/// Pairs of contractions of one form whose sum this is.
fn sums<'a>(site: &Site<'a>) -> Vec<(Contract, [Id; 2], [Id; 2])> {
    let Op::Map(MapFn::Add) = site.op else { return Vec::new() };
    let products = |class: Id| {
        let all = site.defs(class).filter_map(|(op, of)| match &*op {
            Op::Contract(spec) => Some((spec.clone(), [of[0], of[1]])),
            _ => None,
        });
        all.collect::<Vec<_>>()
    };
    let right = products(site.children[1]);
    let left = products(site.children[0]);
    let pairs = left.iter().flat_map(|(s, a)| right.iter().filter(move |(t, _)| t == s).map(move |(_, b)| (s.clone(), *a, *b)));
    pairs.collect()
}

// x·u + y·w = [x y]·[u; w], joined along the summed axis: the gradient of what several projections share. The second operands are
// arguments; the sum is taken in one go.
fn add_of_contracts(site: &Site) -> Vec<Term> {
    let mut found = Vec::new();
    let arg = |c: Id| site.egraph[c].data.whole_arg;
    // Joined arguments are as good as arguments: a sum of three is two sums.
    let joined = |c: Id| arg(c) || site.defs(c).any(|(op, of)| matches!(&*op, Op::Concat(_)) && of.iter().all(|o| arg(*o)));
    for (spec, a, b) in sums(site) {
        let summed = spec.summed();
        if summed.len() != 1 || !joined(a[1]) || !joined(b[1]) {
            continue;
        }
        let at = |word: &[char]| word.iter().position(|c| *c == summed[0]).expect("a summed letter is in both");
        let pieces = |c: Id, axis: usize| {
            let whole = site.defs(c).find(|(op, _)| matches!(&**op, Op::Concat(a) if *a == axis));
            whole.map_or(vec![Term::from(c)], |(_, of)| of.iter().map(|o| Term::from(*o)).collect())
        };
        let concat = |x: Id, y: Id, axis: usize| {
            let mut all = pieces(x, axis);
            all.extend(pieces(y, axis));
            Term::Op(Op::Concat(axis), all)
        };
        let mut product = Product::of(&spec, &a);
        product.lhs.0 = concat(a[0], b[0], at(&spec.lhs));
        product.rhs.0 = concat(a[1], b[1], at(&spec.rhs));
        found.push(product.term());
    }
    found
}

// x/c = x·(1/c) for a power of two c: 1/c is exact.
fn div_by_constant(site: &Site) -> Vec<Term> {
    let Op::Map(MapFn::Div) = site.op else { return Vec::new() };
    let Some(c) = site.egraph[site.children[1]].data.splat.map(Scalar::get) else { return Vec::new() };
    let exponent = c.abs().log2();
    let inverse = 1.0 / c;
    if exponent.fract() != 0.0 || exponent.abs() > 14.0 || site.ty.dtype.round(inverse) != inverse {
        return Vec::new();
    }
    vec![Term::Op(Op::Map(MapFn::Mul), vec![site.children[0].into(), full(site.ty, inverse)])]
}
