//! Attention and the algebra of domains.

use super::{Args, domain};
use crate::{
    elaborate::{Elaborator, Stop},
    value::{DomainVal, TensorVal, Val},
};
use graph::{
    Op,
    op::{Attend, Domain, Scalar},
};

/// Both, or either, of two domains.
pub(crate) fn join_domains(both: bool, x: &DomainVal, y: &DomainVal) -> DomainVal {
    let right = Box::new(y.domain.shift(x.operands.len()));
    let left = Box::new(x.domain.clone());
    let domain = if both { Domain::And(left, right) } else { Domain::Or(left, right) };
    DomainVal { domain, operands: [&x.operands[..], &y.operands[..]].concat() }
}

pub(super) fn call(e: &mut Elaborator, a: &mut Args) -> Option<Result<Val, Stop>> {
    let of = |domain: Domain, operands: Vec<TensorVal>| Val::Domain(DomainVal { domain, operands });
    Some(match a.func {
        "full" => Ok(domain(Domain::Full)),
        "causal" => Ok(domain(Domain::Causal)),
        "window" => a.int(e, "w").map(|w| domain(Domain::Window(w))),
        "prefix" => a.int(e, "n").map(|n| domain(Domain::Prefix(n))),
        "ends_before" => {
            a.int(e, "l").and_then(|length| a.int(e, "d").map(|stride| domain(Domain::EndsBefore { length, stride })))
        }
        "ends_at" => a.tensor(e, "e").map(|t| of(Domain::EndsAt(0), vec![t])),
        "segments" => a.tensor(e, "a").and_then(|q| a.tensor(e, "b").map(|k| of(Domain::Segments(0, 1), vec![q, k]))),
        "blocks" => a.tensor(e, "idx").and_then(|t| a.int(e, "size").map(|size| of(Domain::Blocks { idx: 0, size }, vec![t]))),
        "groups" => a.tensor(e, "idx").and_then(|t| a.tensor(e, "of").map(|k| of(Domain::Groups { idx: 0, of: 1 }, vec![t, k]))),
        "tokens" => a.tensor(e, "idx").map(|t| of(Domain::Tokens(0), vec![t])),
        "attend" => attend(e, a).map(|r| Val::Tensor(r[0])),
        "attend_lse" => attend(e, a).map(|r| Val::Tuple(r.into_iter().map(Val::Tensor).collect())),
        _ => return None,
    })
}

fn attend(e: &mut Elaborator, a: &mut Args) -> Result<Vec<TensorVal>, Stop> {
    let (q, k, v) = (a.tensor(e, "q")?, a.tensor(e, "k")?, a.tensor(e, "v")?);
    let (d, at) = a.value(e, "domain")?;
    let Val::Domain(mut d) = d else { return e.wrong(a.func, &d, at) };
    let scale = a.float(e, "scale")?;
    let (tq, tk) = (e.frames.ty(q).clone(), e.frames.ty(k).clone());
    if let ([b, _, h, _], [_, _, g, _]) = (&tq.shape[..], &tk.shape[..]) {
        // Whether one unknown divides another is for the uses to see.
        if e.opaque && h.try_div(g).is_none() && (h.known().is_none() || g.known().is_none()) {
            return Err(Stop);
        }
        // Where a domain's tensor is the same for the whole batch, the batch may be left out.
        for t in &mut d.operands {
            if let [n] = &e.frames.ty(*t).shape[..] {
                let shape = vec![b.clone(), n.clone()];
                *t = e.broadcast(*t, &shape);
            }
        }
    }
    let operands: Vec<TensorVal> = [q, k, v].into_iter().chain(d.operands).collect();
    e.node(a.func, Op::Attend(Attend { domain: d.domain, scale: Scalar::new(scale) }), &operands, a.at)
}
