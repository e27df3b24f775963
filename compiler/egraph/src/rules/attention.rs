//! Attention: projections of a latent absorbed into queries and results, heads that share keys, scales.

use super::{Class, Family, Rule, directed};
use crate::{
    contraction::Product,
    rewrite::{Site, Term},
};
use base::Dim;
use egg::Id;
use graph::{
    Op,
    op::{Attend, Contract, MapFn, Scalar},
};

/// The table.
pub fn rules() -> Vec<Rule> {
    use Class::{Exact, Reassociates};
    let rule = |name, class, f| directed(name, Family::Attention, class, "attend", f);
    vec![
        rule("attend-of-projected-keys", Reassociates, attend_of_projected_keys),
        rule("attend-of-projected-values", Reassociates, attend_of_projected_values),
        rule("attend-of-repeated-heads", Exact, attend_of_repeated_heads),
        rule("attend-of-scaled-query", Reassociates, attend_of_scaled_query),
    ]
}

/// The parts of an `attend` site: the op, its operands, which result.
fn attend<'a>(site: &Site<'a>) -> Option<(&'a Attend, u32)> {
    match (site.op, site.result) {
        (Op::Attend(a), Some(result)) => Some((a, result)),
        _ => None,
    }
}

/// The same attention of other queries, keys and values.
fn with(site: &Site, a: &Attend, q: Term, k: Term, v: Term) -> Term {
    let mut operands = vec![q, k, v];
    operands.extend(site.children[3..].iter().map(|c| Term::from(*c)));
    Term::Op(Op::Attend(a.clone()), operands)
}

/// A projection of a latent that all heads share: `c [b, s, l]`, and a matrix `w` for each head whose letters are h (head), k (result)
/// and l, in some order.
struct Projection {
    latent: Id,
    weight: Id,
    letters: Vec<char>,
}

/// The ways in which a class `[b, s, h, k]` is such a projection.
fn projections(site: &Site, class: Id) -> Vec<Projection> {
    let mut found = Vec::new();
    for (op, of) in site.defs(class) {
        let Op::Contract(Contract { lhs, rhs, out }) = &*op else { continue };
        let ([b, s, l], [ob, os, h, k]) = (&lhs[..], &out[..]) else { continue };
        if (b, s) != (ob, os) || rhs.len() != 3 || ![h, k, l].iter().all(|c| rhs.contains(c)) {
            continue;
        }
        let role = |c: &char| {
            if c == h {
                'h'
            } else if c == k {
                'k'
            } else {
                'l'
            }
        };
        found.push(Projection { latent: of[0], weight: of[1], letters: rhs.iter().map(role).collect() });
    }
    found
}

/// `c [b, s, l]` for each of `heads`: `[b, s, heads, l]`.
fn for_each_head(site: &Site, latent: Id, heads: &Dim) -> Term {
    let ty = site.ty_of(latent);
    let shape = vec![ty.shape[0].clone(), ty.shape[1].clone(), heads.clone(), ty.shape[2].clone()];
    Term::of(Op::Broadcast { shape, axes: vec![0, 1, 3] }, latent)
}

/// Whether each query head has keys of its own.
fn own_heads(site: &Site) -> bool {
    site.ty_of(site.children[0]).shape[2] == site.ty_of(site.children[1]).shape[2]
}

// ⟨q, W·c⟩ = ⟨Wᵀ·q, c⟩: queries meet the latent itself. Keys may have a part besides, in all heads: ⟨q₁ ⧺ q₂, W·c ⧺ r⟩ = ⟨Wᵀ·q₁ ⧺ q₂, c ⧺ r⟩.
// # Source: DeepSeek-V2, arXiv 2405.04434, section 2.1.2.
fn attend_of_projected_keys(site: &Site) -> Vec<Term> {
    let Some((a, result)) = attend(site).filter(|_| own_heads(site)) else { return Vec::new() };
    let (q, k, v) = (site.children[0], site.children[1], site.children[2]);
    let heads = &site.ty_of(k).shape[2];
    let absorb = |q: Id, p: &Projection| {
        let out = "bthl".chars().collect();
        Product { lhs: (q.into(), "bthk".chars().collect()), rhs: (p.weight.into(), p.letters.clone()), out }.term()
    };
    let mut found = Vec::new();
    for p in projections(site, k) {
        found.push(with(site, a, absorb(q, &p), for_each_head(site, p.latent, heads), v.into()));
    }
    let pairs = |class: Id| {
        let all = site.defs(class).filter(|(op, of)| matches!(&**op, Op::Concat(3)) && of.len() == 2);
        all.map(|(_, of)| (of[0], of[1])).collect::<Vec<_>>()
    };
    for (k1, rest) in pairs(k) {
        for (q1, q2) in pairs(q).into_iter().filter(|(q1, _)| site.ty_of(*q1).shape[3] == site.ty_of(k1).shape[3]) {
            for p in projections(site, k1) {
                let q = Term::Op(Op::Concat(3), vec![absorb(q1, &p), q2.into()]);
                let k = Term::Op(Op::Concat(3), vec![for_each_head(site, p.latent, heads), rest.into()]);
                found.push(with(site, a, q, k, v.into()));
            }
        }
    }
    found.into_iter().map(|t| Term::Result(result, t.into())).collect()
}

// Σₛ P·(W·c) = W·Σₛ P·c: the values' projection after the sum. The weights P and their normaliser are the same.
// # Source: DeepSeek-V2, arXiv 2405.04434, section 2.1.2.
fn attend_of_projected_values(site: &Site) -> Vec<Term> {
    let Some((a, result)) = attend(site).filter(|_| own_heads(site)) else { return Vec::new() };
    let (q, k, v) = (site.children[0], site.children[1], site.children[2]);
    let mut found = Vec::new();
    for p in projections(site, v) {
        let v = for_each_head(site, p.latent, &site.ty_of(v).shape[2]);
        let latent = Term::Result(result, with(site, a, q.into(), k.into(), v).into());
        found.push(match result {
            0 => {
                let lhs = (latent, "bthl".chars().collect());
                Product { lhs, rhs: (p.weight.into(), p.letters), out: "bthk".chars().collect() }.term()
            }
            _ => latent,
        });
    }
    found
}

/// The ways in which `[b, s, h, d]` is `[b, s, g, d]` with each head repeated h/g times in a row: that value, as a term, and g.
fn repeated(site: &Site, class: Id) -> Vec<(Term, Dim)> {
    let ty = site.ty_of(class);
    let mut found = Vec::new();
    for (op, of) in site.defs(class) {
        match &*op {
            Op::Broadcast { axes, .. } if axes[..] == [0, 1, 3] => {
                let shape = vec![ty.shape[0].clone(), ty.shape[1].clone(), Dim::from(1), ty.shape[3].clone()];
                found.push((Term::of(Op::Reshape(shape), of[0]), Dim::from(1)));
            }
            Op::Reshape(_) => {
                for (op, below) in site.defs(of[0]) {
                    let Op::Broadcast { shape, axes } = &*op else { continue };
                    let kept = shape.len() == 5 && axes[..] == [0, 1, 2, 4];
                    if kept && shape[..2] == ty.shape[..2] && shape[4] == ty.shape[3] {
                        found.push((below[0].into(), shape[2].clone()));
                    }
                }
            }
            _ => {}
        }
    }
    found
}

// Heads that see the same keys and values share them. Exact. Not where the domain chooses keys for each key head.
fn attend_of_repeated_heads(site: &Site) -> Vec<Term> {
    let Some((a, result)) = attend(site).filter(|(a, _)| !a.domain.has_lists()) else { return Vec::new() };
    let values = repeated(site, site.children[2]);
    let mut found = Vec::new();
    for (k, g) in repeated(site, site.children[1]) {
        for (v, _) in values.iter().filter(|(_, of)| *of == g) {
            let shared = with(site, a, site.children[0].into(), k.clone(), v.clone());
            found.push(Term::Result(result, shared.into()));
        }
    }
    found
}

/// The ways in which a class is x·c for a number c.
fn by_constant(site: &Site, class: Id) -> Vec<(Id, f64)> {
    let products = site.defs(class).filter(|(op, _)| matches!(&**op, Op::Map(MapFn::Mul)));
    let both = products.flat_map(|(_, of)| [(of[0], of[1]), (of[1], of[0])]);
    both.filter_map(|(x, c)| Some((x, site.egraph[c].data.splat?.get()))).filter(|(_, c)| c.is_finite()).collect()
}

// scale·⟨c·q, k⟩ = (c·scale)·⟨q, k⟩, and the same for keys.
fn attend_of_scaled_query(site: &Site) -> Vec<Term> {
    let Some((a, result)) = attend(site) else { return Vec::new() };
    let (q, k, v) = (site.children[0], site.children[1], site.children[2]);
    let scaled = |c: f64| Attend { domain: a.domain.clone(), scale: Scalar::new(a.scale.get() * c) };
    let queries = by_constant(site, q).into_iter().map(|(x, c)| with(site, &scaled(c), x.into(), k.into(), v.into()));
    let keys = by_constant(site, k).into_iter().map(|(x, c)| with(site, &scaled(c), q.into(), x.into(), v.into()));
    queries.chain(keys).map(|t| Term::Result(result, t.into())).collect()
}
