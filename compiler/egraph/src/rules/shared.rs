//! The shared expert, which every token has, as one more expert: its matrices beside those of the others, its choice after those of a token, its
//! weight 1. One product over ragged rows then takes the place of a dense one beside it.

use super::{
    Class, Family, Rule, directed,
    experts::{full, gather, is_number},
};
use crate::rewrite::{Site, Term};
use base::{DType, Dim, TensorType};
use egg::Id;
use graph::{
    Op,
    op::{Contract, MapFn},
};

/// The table.
pub fn rules() -> Vec<Rule> {
    vec![directed("add-of-shared-expert", Family::Experts, Class::Reassociates, "map", add_of_shared_expert)]
}

/// The sums of a product, its launch and its last wave are all that is saved: so many times the elements of all matrices are summed, at least.
const LEAST_ROWS: f64 = 16.0;

/// Routed experts: which tokens, whose choices, with what weights, and matrices `[groups, out, in]`.
struct Experts {
    x: Id,
    choice: Id,
    groups: i64,
    weights: Id,
    matrices: [Id; 3],
}

/// The class of a value that its rows are a view of, and itself.
fn flat(site: &Site, class: Id) -> Vec<Id> {
    let below = site.defs(class).filter(|(op, _)| matches!(**op, Op::Reshape(_))).map(|(_, of)| of[0]);
    [class].into_iter().chain(below).filter(|c| site.ty_of(*c).rank() == 2).collect()
}

/// What silu(g)·u is of.
fn gated(site: &Site, class: Id) -> Option<[Id; 2]> {
    let silu = |c: Id| site.defs(c).find(|(op, _)| matches!(**op, Op::Map(MapFn::Silu))).map(|(_, of)| of[0]);
    site.defs(class).find_map(|(op, of)| match &*op {
        Op::Map(MapFn::Swiglu) => Some([of[0], of[1]]),
        Op::Map(MapFn::Mul) => silu(of[0]).map(|g| [g, of[1]]).or_else(|| silu(of[1]).map(|g| [g, of[0]])),
        _ => None,
    })
}

/// The rows and the matrix `[out, in]` of a dense product.
fn dense(site: &Site, class: Id) -> Option<[Id; 2]> {
    site.defs(class).find_map(|(op, of)| match &*op {
        Op::Contract(c) => {
            let plain =
                c.batch().is_empty() && c.out == [c.rows(), c.cols()].concat() && c.lhs == [c.rows(), c.summed()].concat();
            (plain && c.rhs.len() == 2 && c.rhs == [c.cols(), c.summed()].concat()).then_some([of[0], of[1]])
        }
        _ => None,
    })
}

/// The experts whose combination a class is.
fn experts(site: &Site, class: Id) -> Option<Experts> {
    let combined = site.defs(class).find_map(|(op, of)| match &*op {
        Op::Contract(c) => {
            let [left, right] = [of[0], of[1]];
            let (values, weights, y, w) =
                if c.lhs.len() == 3 { (&c.lhs, &c.rhs, left, right) } else { (&c.rhs, &c.lhs, right, left) };
            let [n, k, d] = values[..] else { return None };
            (*weights == [n, k] && c.out == [n, d]).then_some([y, w])
        }
        _ => None,
    });
    let [picked, weights] = combined?;
    let op_of = |class: Id, is: fn(&Op) -> bool| site.defs(class).find(|(op, _)| is(op)).map(|(_, of)| of);
    let taken = |class: Id| op_of(class, |op| matches!(op, Op::Gather { batch: 0 }));
    let product = |class: Id| op_of(class, |op| matches!(op, Op::GroupedContract { transposed: true }));
    let (rows, position) = (taken(picked)?[0], taken(picked)?[1]);
    let result = |class: Id, which: u32, of: Option<Id>| {
        let mut all = site.results(class).filter(|(_, i)| *i == which).map(|(route, _)| route);
        all.find(|route| of.is_none_or(|of| site.same(of, *route)))
    };
    let route = result(position, 2, None)?;
    let (groups, choice) = site.defs(route).find_map(|(op, of)| match &*op {
        Op::Route { groups } => Some((*groups, of[0])),
        _ => None,
    })?;
    let last = product(rows)?;
    let [gate, up] = gated(site, last[0])?;
    let (gate, up) = (product(gate)?, product(up)?);
    let of_route = [last, gate, up].iter().all(|p| result(p[2], 0, Some(route)).is_some());
    let (x, token) = (taken(gate[0])?[0], taken(gate[0])?[1]);
    let count = site.ty_of(choice).shape.get(1)?.known()?;
    let of_token = site.defs(token).any(|(op, of)| {
        matches!(*op, Op::Map(MapFn::FloorDiv)) && result(of[0], 1, Some(route)).is_some() && is_number(site, of[1], count)
    });
    let fits = of_route && of_token && site.same(gate[0], up[0]) && site.ty_of(x).rank() == 2;
    fits.then_some(Experts { x, choice, groups, weights, matrices: [gate[1], up[1], last[1]] })
}

// Σₖ wₙₖ·Eₖ(xₙ) + S(xₙ) = Σₖ wₙₖ·Eₖ(xₙ) + 1·S(xₙ), S as one more expert that every token chooses last. Where S has the width and the gate of the others, of
// the same rows. Its matrices are copied beside theirs, so they have to be small; what that costs is for the target to say.
fn add_of_shared_expert(site: &Site) -> Vec<Term> {
    let (Op::Map(MapFn::Add), [a, b]) = (site.op, site.children) else { return Vec::new() };
    let mut found = Vec::new();
    for (y, s) in [(*a, *b), (*b, *a)] {
        let Some(e) = flat(site, y).into_iter().find_map(|y| experts(site, y)) else { continue };
        let Some([h, down]) = dense(site, s) else { continue };
        let Some([gate, up]) = gated(site, h) else { continue };
        let (Some([x, gate]), Some([x_up, up])) = (dense(site, gate), dense(site, up)) else { continue };
        let same_rows = site.same(x, x_up) && flat(site, e.x).iter().chain(&below(site, e.x)).any(|c| site.same(*c, x));
        let own = [gate, up, down];
        let alike = own.iter().zip(&e.matrices).all(|(own, all)| site.ty_of(*own).shape == site.ty_of(*all).shape[1..]);
        let size = |c: Id| site.ty_of(c).shape.iter().map(|d| site.egraph.analysis.size(d)).product::<f64>();
        let copied: f64 = own.iter().chain(&e.matrices).map(|w| size(*w)).sum();
        if same_rows && alike && copied * LEAST_ROWS <= size(s) {
            found.push(one_more(site, &e, own));
        }
    }
    found
}

/// What a class is a reshape of.
fn below(site: &Site, class: Id) -> Vec<Id> {
    site.defs(class).filter(|(op, _)| matches!(**op, Op::Reshape(_))).map(|(_, of)| of[0]).collect()
}

/// The combination of the experts and of one more with these matrices.
fn one_more(site: &Site, e: &Experts, own: [Id; 3]) -> Term {
    let one = Dim::from(1);
    let choices = site.ty_of(e.choice);
    let [n, k] = &choices.shape[..] else { base::bug!("choices of tokens") };
    let beside = |x: Term, ty: &TensorType, value: i64| {
        let column = TensorType::new(ty.dtype, vec![n.clone(), one.clone()]);
        Term::Op(Op::Concat(1), vec![x, full(&column, value)])
    };
    // Who chooses none still does.
    let map = |f: MapFn, of: Vec<Term>| Term::Op(Op::Map(f), of);
    let known = map(MapFn::Lt, vec![e.choice.into(), full(choices, e.groups)]);
    let choice = map(MapFn::Select, vec![known, e.choice.into(), full(choices, -1)]);
    let chosen = beside(choice, choices, e.groups);
    let route = Term::of(Op::Route { groups: e.groups + 1 }, chosen);
    let result = |i: u32| Term::Result(i, Box::new(route.clone()));
    let [gate, up, down] = [0, 1, 2].map(|i| {
        let shape = [std::slice::from_ref(&one), &site.ty_of(own[i]).shape[..]].concat();
        Term::Op(Op::Concat(0), vec![e.matrices[i].into(), Term::of(Op::Reshape(shape), own[i])])
    });
    let more = k.clone() + one.clone();
    let rows = TensorType::new(DType::I32, vec![n.clone() * more.clone()]);
    let count = full(&rows, more.known().unwrap_or_else(|| base::bug!("a number of choices")));
    let token = Term::Op(Op::Map(MapFn::FloorDiv), vec![result(1), count]);
    let x = gather(e.x.into(), token);
    let product = |x: Term, w: Term| Term::Op(Op::GroupedContract { transposed: true }, vec![x, w, result(0)]);
    let g = Term::of(Op::Map(MapFn::Silu), product(x.clone(), gate));
    let h = Term::Op(Op::Map(MapFn::Mul), vec![g, product(x, up)]);
    let picked = gather(product(h, down), result(2));
    let spec: Contract = "nkd,nk->nd".parse().expect("a contraction");
    let y = Term::Op(Op::Contract(spec), vec![picked, beside(e.weights.into(), site.ty_of(e.weights), 1)]);
    if site.ty.rank() == 2 { y } else { Term::of(Op::Reshape(site.ty.shape.clone()), y) }
}
