//! Experts: what a routing says of indices. `source` names for each row the choice that it is for, `position` for each choice its row, so sums
//! over choices by row are picks, and the other way round: nothing is added up in memory, and rows are computed where they are read.
//! # Source: SonicMoE, arXiv 2512.14080, section 3.

use super::{Class, Family, Rule, directed};
use crate::{
    language::{ENode, Head},
    rewrite::{Site, Term},
};
use base::{Dim, TensorType};
use egg::Id;
use graph::{
    Op,
    op::{MapFn, ReduceFn},
};

/// The table.
pub fn rules() -> Vec<Rule> {
    use Class::{Exact, Reassociates};
    let rule = |name, class, root, f| directed(name, Family::Experts, class, root, f);
    vec![
        rule("contract-of-nothing-summed", Exact, "contract", contract_of_nothing_summed),
        rule("contract-of-few-choices", Reassociates, "contract", contract_of_few_choices),
        rule("scatter-add-by-position", Exact, "scatter_add", scatter_add_by_position),
        rule("scatter-add-by-source", Reassociates, "scatter_add", scatter_add_by_source),
    ]
}

/// A value with letters as one with the axes of `out`: those that it has in order, repeated along the others.
fn spread(x: Term, letters: &[char], out: &[char], shape: &[Dim]) -> Term {
    let mut order: Vec<usize> = (0..letters.len()).collect();
    let at = |a: usize| out.iter().position(|o| *o == letters[a]).unwrap_or_else(|| base::bug!("a letter of no axis"));
    order.sort_by_key(|a| at(*a));
    let axes: Vec<usize> = order.iter().map(|a| at(*a)).collect();
    let x = if order.iter().copied().eq(0..letters.len()) { x } else { Term::of(Op::Transpose(order), x) };
    if axes.len() == out.len() { x } else { Term::of(Op::Broadcast { shape: shape.to_vec(), axes }, x) }
}

fn times(x: Term, y: Term) -> Term {
    Term::Op(Op::Map(MapFn::Mul), vec![x, y])
}

// Σ over nothing of x·y = x·y: an outer product is elementwise. Exact: one product, rounded once.
fn contract_of_nothing_summed(site: &Site) -> Vec<Term> {
    let Op::Contract(spec) = site.op else { return Vec::new() };
    if !spec.summed().is_empty() {
        return Vec::new();
    }
    let side = |i: usize, letters: &[char]| spread(site.children[i].into(), letters, &spec.out, &site.ty.shape);
    vec![times(side(0, &spec.lhs), side(1, &spec.rhs))]
}

/// A sum over at most so many choices is written out in the kernel that uses it.
const FEW: i64 = 8;

// Σₖ wₙₖ·yₙₖ: the combination of few choices is a sum of products in the accumulator's dtype, in the order of the choices. The weights have no
// axis that the values lack, so that no matrix is multiplied.
fn contract_of_few_choices(site: &Site) -> Vec<Term> {
    let Op::Contract(spec) = site.op else { return Vec::new() };
    let mut found = Vec::new();
    let (sum, dtype) = (site.ty.dtype.accumulator(), site.ty.dtype);
    let wide = |c: Id| if sum == dtype { Term::from(c) } else { Term::of(Op::Cast(sum), c) };
    for right in [false, true] {
        let (values, weights) = if right { (&spec.rhs, &spec.lhs) } else { (&spec.lhs, &spec.rhs) };
        let (y, w) = (site.children[usize::from(right)], site.children[usize::from(!right)]);
        let shape = &site.ty_of(y).shape;
        let summed: Vec<usize> = (0..values.len()).filter(|a| !spec.out.contains(&values[*a])).collect();
        let terms: Option<i64> = summed.iter().map(|a| shape[*a].known()).product();
        if summed.is_empty() || terms.is_none_or(|n| n > FEW) || !weights.iter().all(|c| values.contains(c)) {
            continue;
        }
        let products = times(wide(y), spread(wide(w), weights, values, shape));
        let sums = Term::of(Op::Reduce(ReduceFn::Sum, summed.clone()), products);
        let sums = if sum == dtype { sums } else { Term::of(Op::Cast(dtype), sums) };
        let kept: Vec<char> = values.iter().filter(|c| spec.out.contains(c)).copied().collect();
        found.push(spread(sums, &kept, &spec.out, &site.ty.shape));
    }
    found
}

/// Results of a routing.
struct Routed {
    /// The choice that each row is for.
    source: Term,
    /// The row of each choice.
    position: Term,
    /// The type of the positions.
    choices: TensorType,
}

/// The routings of which a class is this result: of the function, or of what its arguments come from.
fn routings(site: &Site, class: Id, which: usize) -> Vec<Routed> {
    let here = site.results(class).filter(|(_, i)| *i as usize == which).map(|(op, _)| op);
    let here = here.filter(|op| site.defs(*op).any(|(op, _)| matches!(&*op, Op::Route { .. })));
    let result = |route: Id, i: u32| Term::Result(i, Term::Class(route).into());
    let mut found: Vec<Routed> = here
        .map(|route| {
            let choices = site.egraph[route].data.types[2].clone();
            Routed { source: result(route, 1), position: result(route, 2), choices }
        })
        .collect();
    for args in &site.egraph.analysis.routings {
        let arg = |i: &Option<u32>| site.egraph.lookup(ENode { head: Head::Arg((*i)?), children: Vec::new() });
        let [of, source, position] = [&args[which], &args[1], &args[2]].map(arg);
        if let (Some(of), Some(source), Some(position)) = (of, source, position)
            && site.same(of, class)
        {
            let choices = site.ty_of(position).clone();
            found.push(Routed { source: source.into(), position: position.into(), choices });
        }
    }
    found
}

/// Whether a class is one integer everywhere.
pub(super) fn is_number(site: &Site, class: Id, n: i64) -> bool {
    site.defs(class).any(|(op, of)| match &*op {
        Op::Const(x, _) => x.get() == n as f64,
        Op::Broadcast { .. } | Op::Reshape(_) => is_number(site, of[0], n),
        _ => false,
    })
}

pub(super) fn gather(x: Term, index: Term) -> Term {
    Term::Op(Op::Gather { batch: 0 }, vec![x, index])
}

/// A number everywhere.
pub(super) fn full(ty: &TensorType, n: i64) -> Term {
    let scalar = Term::Op(Op::Const(graph::op::Scalar::new(n as f64), ty.dtype), Vec::new());
    Term::of(Op::Broadcast { shape: ty.shape.clone(), axes: Vec::new() }, scalar)
}

// Σ over choices with position r of v = v[source r]: each row is for one choice or for none, and then 0 both ways. Rows of a product of a
// token's and a choice's factors are the products of the picked factors. Exact.
fn scatter_add_by_position(site: &Site) -> Vec<Term> {
    let (Op::ScatterAdd { batch: 0, n }, [index, v]) = (site.op, site.children) else { return Vec::new() };
    let (choices, of_v) = (site.ty_of(*index), site.ty_of(*v));
    let [_, k] = &choices.shape[..] else { return Vec::new() };
    let mut found = Vec::new();
    for Routed { source, .. } in routings(site, *index, 2).into_iter().filter(|_| *n == choices.elems()) {
        // Axes before the choices of a token, and these, as one.
        let flat = |x: Id, before: usize| {
            let rest = &site.ty_of(x).shape[before..];
            Term::of(Op::Reshape([std::slice::from_ref(n), rest].concat()), x)
        };
        found.push(gather(flat(*v, 2), source.clone()));
        let Some(k) = k.known() else { continue };
        let index = TensorType::new(choices.dtype, vec![n.clone()]);
        let token = Term::Op(Op::Map(MapFn::FloorDiv), vec![source.clone(), full(&index, k)]);
        // The product itself, or with its tokens along several axes.
        let products = site.defs(*v).flat_map(|(op, of)| match &*op {
            Op::Reshape(_) => site.defs(of[0]).map(|(op, below)| (op.into_owned(), below, site.ty_of(of[0]))).collect(),
            op => vec![(op.clone(), of, of_v)],
        });
        for (op, of, ty) in products {
            // Axes of tokens.
            let lead = (ty.rank() + 1).saturating_sub(of_v.rank());
            let rows = of_v.shape[0].clone();
            let whole = ty.shape.len() > lead && lead > 0 && ty.shape[lead..] == of_v.shape[1..];
            let whole = whole && ty.shape[..lead].iter().fold(Dim::from(1), |n, d| n * d.clone()) == rows;
            if !whole || !matches!(op, Op::Map(MapFn::Mul)) {
                continue;
            }
            let tokens: Vec<usize> = (0..lead).collect();
            // A factor that is the same for all choices of a token, one that is a number for each choice, or any other.
            let factor = |x: Id| {
                for (op, below) in site.defs(x) {
                    let Op::Broadcast { axes, .. } = &*op else { continue };
                    let of_each = site.ty_of(below[0]);
                    let wide = |picked: Term, rest: &[usize]| {
                        let axes: Vec<usize> = [0].into_iter().chain(rest.iter().map(|a| a - lead)).collect();
                        let whole = axes.len() == site.ty.rank();
                        if whole { picked } else { Term::of(Op::Broadcast { shape: site.ty.shape.clone(), axes }, picked) }
                    };
                    if axes.starts_with(&tokens) && axes.get(lead) != Some(&lead) {
                        let shape = [std::slice::from_ref(&rows), &of_each.shape[lead..]].concat();
                        let each = if lead == 1 { below[0].into() } else { Term::of(Op::Reshape(shape), below[0]) };
                        return wide(gather(each, token.clone()), &axes[lead..]);
                    }
                    if axes.starts_with(&tokens) {
                        return wide(gather(flat(below[0], lead + 1), source.clone()), &axes[lead + 1..]);
                    }
                }
                gather(flat(x, lead + 1), source.clone())
            };
            found.push(times(factor(of[0]), factor(of[1])));
        }
    }
    found
}

// Σ over rows of token t of v = Σₖ v[position t k]: the sum of each token's rows, in the order of its choices rather than of its experts.
fn scatter_add_by_source(site: &Site) -> Vec<Term> {
    let (Op::ScatterAdd { batch: 0, n }, [index, v]) = (site.op, site.children) else { return Vec::new() };
    let mut found = Vec::new();
    for (op, of) in site.defs(*index) {
        if !matches!(&*op, Op::Map(MapFn::FloorDiv)) {
            continue;
        }
        for Routed { position, choices, .. } in routings(site, of[0], 1) {
            let [tokens, k] = &choices.shape[..] else { continue };
            let Some(k) = k.known().filter(|_| tokens == n) else { continue };
            if !is_number(site, of[1], k) || k < 1 {
                continue;
            }
            let picked = gather((*v).into(), position);
            found.push(Term::of(Op::Reduce(ReduceFn::Sum, vec![1]), picked));
        }
    }
    found
}
