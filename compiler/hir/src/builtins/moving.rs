//! Functions that move elements: rearrangement, joining, taking, ordering; and contraction by pattern.

use super::Args;
use crate::{
    einops::{self, Word},
    elaborate::{Elaborator, Stop},
    error::HirError,
    value::{TensorVal, Val},
};
use base::{Dim, Span};
use graph::{
    Op,
    op::{Contract, Scalar},
};
use std::collections::BTreeMap;

pub(super) fn call(e: &mut Elaborator, a: &mut Args) -> Option<Result<Val, Stop>> {
    let func = a.func;
    Some(match func {
        "rearrange" => rearrange(e, a),
        "contract" => contract(e, a),
        "broadcast" => a.tensor(e, "x").and_then(|x| {
            let shape = a.extents(e, "shape")?;
            let have = e.frames.ty(x).shape.clone();
            if have.len() <= shape.len() && Elaborator::common_shape(&have, &shape).as_deref() == Some(&shape[..]) {
                return Ok(Val::Tensor(e.broadcast(x, &shape)));
            }
            if e.undecided(have.iter().chain(&shape)) {
                return Err(Stop);
            }
            let why = format!("{} does not broadcast to {}", e.frames.ty(x), base::ty::ShapeDisplay(&shape));
            e.shape_error(func, graph::OpError(why), a.at)
        }),
        "concat" => concat(e, a),
        "split" => split(e, a),
        "pad" => a.tensor(e, "x").and_then(|x| {
            let rank = e.frames.ty(x).rank();
            let axis = a.axis(e, rank, -1)?;
            let part = |v: Option<(Val, Span)>| match v {
                Some((Val::Int(d), _)) => Some(d),
                None => Some(Dim::from(0)),
                Some(_) => None,
            };
            let (Some(low), Some(high)) = (part(a.option("before")), part(a.option("after"))) else {
                return a.wrong(e, "needs ints for 'before' and 'after'".into());
            };
            let value = match a.option("value") {
                None => 0.0,
                Some((Val::Float(x), _)) => x,
                Some((Val::Int(d), _)) if d.known().is_some() => d.known().unwrap_or(0) as f64,
                Some(_) => return a.wrong(e, "needs a number for 'value'".into()),
            };
            e.node1(func, Op::Pad { axis, low, high, value: Scalar::new(value) }, &[x], a.at).map(Val::Tensor)
        }),
        "take" => a.tensor(e, "x").and_then(|x| {
            let idx = a.tensor(e, "idx")?;
            e.node1(func, Op::Gather { batch: 0 }, &[x, idx], a.at).map(Val::Tensor)
        }),
        "take_along" => a.tensor(e, "x").and_then(|x| {
            let idx = a.tensor(e, "idx")?;
            let batch = e.frames.ty(x).rank().saturating_sub(1);
            e.node1(func, Op::Gather { batch }, &[x, idx], a.at).map(Val::Tensor)
        }),
        "take_rows" => a.tensor(e, "x").and_then(|x| {
            let idx = a.tensor(e, "idx")?;
            let batch = e.frames.ty(x).rank().saturating_sub(2);
            e.node1(func, Op::Gather { batch }, &[x, idx], a.at).map(Val::Tensor)
        }),
        "put_along" => a.tensor(e, "idx").and_then(|idx| {
            let v = a.tensor(e, "v")?;
            let n = a.extent(e, "n")?;
            let batch = e.frames.ty(idx).rank().saturating_sub(1);
            e.node1(func, Op::ScatterAdd { batch, n }, &[idx, v], a.at).map(Val::Tensor)
        }),
        "scatter_add" => a.tensor(e, "idx").and_then(|idx| {
            let v = a.tensor(e, "v")?;
            let n = a.extent(e, "n")?;
            e.node1(func, Op::ScatterAdd { batch: 0, n }, &[idx, v], a.at).map(Val::Tensor)
        }),
        "topk" => a.tensor(e, "x").and_then(|x| {
            let k = a.int(e, "k")?;
            let idx = e.node1(func, Op::TopK(k), &[x], a.at)?;
            let batch = e.frames.ty(x).rank() - 1;
            let values = e.node1(func, Op::Gather { batch }, &[x, idx], a.at)?;
            Ok(Val::Tuple(vec![Val::Tensor(values), Val::Tensor(idx)]))
        }),
        "cumsum" => a.tensor(e, "x").and_then(|x| {
            let rank = e.frames.ty(x).rank();
            let axis = a.axis(e, rank, -1)?;
            let exclusive = a.flag(e, "exclusive", false)?;
            let reverse = a.flag(e, "reverse", false)?;
            e.node1(func, Op::Cumsum { axis, exclusive, reverse }, &[x], a.at).map(Val::Tensor)
        }),
        _ => return None,
    })
}

fn concat(e: &mut Elaborator, a: &mut Args) -> Result<Val, Stop> {
    let mut parts = Vec::new();
    while let Some((v, at)) = a.optional("") {
        parts.push(e.as_tensor(v, at)?);
    }
    let Some(first) = parts.first() else { return a.wrong(e, "needs tensors".into()) };
    let rank = e.frames.ty(*first).rank();
    let axis = a.axis(e, rank, -1)?;
    e.node1(a.func, Op::Concat(axis), &parts, a.at).map(Val::Tensor)
}

fn split(e: &mut Elaborator, a: &mut Args) -> Result<Val, Stop> {
    let x = a.tensor(e, "x")?;
    let sizes = a.extents(e, "sizes")?;
    let ty = e.frames.ty(x).clone();
    let axis = a.axis(e, ty.rank(), -1)?;
    let total = sizes.iter().fold(Dim::from(0), |n, d| n + d.clone());
    if total != ty.shape[axis] {
        if e.undecided([&total, &ty.shape[axis]].into_iter()) {
            return Err(Stop);
        }
        let why = format!("the parts make {total}, the axis is {}", ty.shape[axis]);
        return e.shape_error(a.func, graph::OpError(why), a.at);
    }
    let mut start = Dim::from(0);
    let mut parts = Vec::new();
    for len in sizes {
        let op = Op::Slice { axis, start: start.clone(), len: len.clone(), step: 1 };
        parts.push(Val::Tensor(e.node1(a.func, op, &[x], a.at)?));
        start = start + len;
    }
    Ok(Val::Tuple(parts))
}

fn pattern_error<T>(e: &mut Elaborator, why: String, at: Span) -> Result<T, Stop> {
    e.fail(at, HirError::Pattern { why, at: at.into() })
}

fn rearrange(e: &mut Elaborator, a: &mut Args) -> Result<Val, Stop> {
    // By position only: the names are those of axes.
    let (Some((x, at_x)), Some((pattern, at))) = (a.positional(), a.positional()) else {
        return a.wrong(e, "needs a tensor and a pattern".into());
    };
    let x = e.as_tensor(x, at_x)?;
    let Val::Str(pattern) = pattern else { return e.wrong(a.func, &pattern, at) };
    let mut known: BTreeMap<String, Dim> = BTreeMap::new();
    for (name, v, span) in std::mem::take(&mut a.named) {
        match v {
            Val::Int(d) => {
                known.insert(name, d);
            }
            v => return e.wrong("rearrange", &v, span),
        }
    }
    let ty = e.frames.ty(x).clone();
    let sides = einops::arrow(&pattern).and_then(|(l, r)| Ok((einops::words(l)?, einops::words(r)?)));
    let (left, right) = match sides {
        Ok(s) => s,
        Err(why) => return pattern_error(e, why, at),
    };
    let fixed = left.iter().filter(|w| **w != Word::Rest).count();
    let rest = ty.rank().checked_sub(fixed).filter(|n| *n == 0 || left.contains(&Word::Rest));
    let Some(rest) = rest else { return pattern_error(e, format!("it has {fixed} axes on the left, the tensor is {ty}"), at) };
    // Every name becomes an axis of its own, then axes are put in order, then joined.
    let mut atoms: Vec<(String, Dim)> = Vec::new();
    let mut next = 0;
    for word in &left {
        match word {
            Word::Rest => {
                for i in 0..rest {
                    atoms.push((format!("...{i}"), ty.shape[next].clone()));
                    next += 1;
                }
            }
            Word::One => {
                if !ty.shape[next].is(1) {
                    return pattern_error(e, format!("an axis of {} is written 1", ty.shape[next]), at);
                }
                next += 1;
            }
            Word::Name(n) => {
                if known.get(n).is_some_and(|d| *d != ty.shape[next]) {
                    if e.undecided([&known[n], &ty.shape[next]].into_iter()) {
                        return Err(Stop);
                    }
                    return pattern_error(e, format!("{n} is {} and the axis {}", known[n], ty.shape[next]), at);
                }
                atoms.push((n.clone(), ty.shape[next].clone()));
                next += 1;
            }
            Word::Group(names) => {
                let extent = ty.shape[next].clone();
                next += 1;
                let open: Vec<&String> = names.iter().filter(|n| !known.contains_key(*n)).collect();
                let product = names.iter().filter_map(|n| known.get(n)).fold(Dim::from(1), |p, d| p * d.clone());
                if open.len() > 1 {
                    return pattern_error(
                        e,
                        format!("the extents of {} and {} are needed: `{}: …`", open[0], open[1], open[0]),
                        at,
                    );
                }
                let Some(quotient) = extent.try_div(&product) else {
                    // Whether one unknown divides another is for the uses to see.
                    if e.opaque {
                        return Err(Stop);
                    }
                    return pattern_error(e, format!("{extent} is not a multiple of {product}"), at);
                };
                if open.is_empty() && !quotient.is(1) {
                    return pattern_error(e, format!("the group makes {product}, the axis is {extent}"), at);
                }
                for n in names {
                    atoms.push((n.clone(), known.get(n).cloned().unwrap_or_else(|| quotient.clone())));
                }
            }
        }
    }
    let mut order = Vec::new();
    let mut shape = Vec::new();
    for word in &right {
        let names: Vec<String> = match word {
            Word::Rest => (0..rest).map(|i| format!("...{i}")).collect(),
            Word::One => Vec::new(),
            Word::Name(n) => vec![n.clone()],
            Word::Group(names) => names.clone(),
        };
        let mut extents = Vec::new();
        for n in &names {
            match atoms.iter().position(|(m, _)| m == n) {
                Some(i) if !order.contains(&i) => {
                    order.push(i);
                    extents.push(atoms[i].1.clone());
                }
                Some(_) => return pattern_error(e, format!("{n} is twice on the right"), at),
                None => return pattern_error(e, format!("{n} is not on the left"), at),
            }
        }
        match word {
            Word::Rest => shape.extend(extents),
            _ => shape.push(extents.into_iter().fold(Dim::from(1), |p, d| p * d)),
        }
    }
    if let Some(i) = (0..atoms.len()).find(|i| !order.contains(i)) {
        return pattern_error(e, format!("{} is not on the right", atoms[i].0), at);
    }
    let atom_shape: Vec<Dim> = atoms.iter().map(|(_, d)| d.clone()).collect();
    let mut y = reshape(e, x, atom_shape, a.at)?;
    if order.iter().copied().ne(0..order.len()) {
        y = e.node1(a.func, Op::Transpose(order), &[y], a.at)?;
    }
    reshape(e, y, shape, a.at).map(Val::Tensor)
}

fn reshape(e: &mut Elaborator, x: TensorVal, shape: Vec<Dim>, at: Span) -> Result<TensorVal, Stop> {
    if e.frames.ty(x).shape == shape { Ok(x) } else { e.node1("rearrange", Op::Reshape(shape), &[x], at) }
}

fn contract(e: &mut Elaborator, a: &mut Args) -> Result<Val, Stop> {
    let (pattern, at) = a.text(e, "pattern")?;
    let (x, y) = (a.tensor(e, "a")?, a.tensor(e, "b")?);
    let parsed = einops::arrow(&pattern).and_then(|(ab, out)| {
        let (l, r) = ab.split_once(',').ok_or("it needs one ',' between the operands")?;
        Ok([einops::words(l)?, einops::words(r)?, einops::words(out)?])
    });
    let sides = match parsed {
        Ok(s) => s,
        Err(why) => return pattern_error(e, why, at),
    };
    let ranks = [e.frames.ty(x).rank(), e.frames.ty(y).rank()];
    let fixed = |w: &[Word]| w.iter().filter(|x| **x != Word::Rest).count();
    let rest = [0, 1].map(|i| ranks[i].checked_sub(fixed(&sides[i])).filter(|n| *n == 0 || sides[i].contains(&Word::Rest)));
    let [Some(rx), Some(ry)] = rest else {
        let why = format!("the operands are {} and {}", e.frames.ty(x), e.frames.ty(y));
        return pattern_error(e, why, at);
    };
    // Letters for names; the leading axes of `...` are aligned at their last.
    let mut names: Vec<String> = Vec::new();
    let mut letters = |side: &[Word], n: usize| -> Result<Vec<char>, String> {
        let mut out = Vec::new();
        for w in side {
            let words: Vec<String> = match w {
                Word::Name(n) => vec![n.clone()],
                Word::Rest => (0..n).rev().map(|i| format!("...{i}")).collect(),
                Word::One | Word::Group(_) => return Err("axes are names or '...'".into()),
            };
            for word in words {
                let i = names.iter().position(|m| *m == word).unwrap_or_else(|| {
                    names.push(word);
                    names.len() - 1
                });
                out.push(('a'..='z').chain('A'..='Z').nth(i).ok_or("too many axes")?);
            }
        }
        Ok(out)
    };
    let spec = letters(&sides[0], rx).and_then(|lhs| {
        let rhs = letters(&sides[1], ry)?;
        let out = letters(&sides[2], rx.max(ry))?;
        Ok(Contract { lhs, rhs, out })
    });
    match spec {
        Ok(spec) => e.contraction(a.func, spec, [x, y], a.at).map(Val::Tensor),
        Err(why) => pattern_error(e, why, at),
    }
}
