//! A small model of everything together.

use super::*;
use crate::op::{Attend, Domain, ReduceFn, Repeat};

/// x / √(mean x² + ε) · g over the last axis.
fn rmsnorm(b: &mut Builder, x: Value, g: Value) -> Value {
    let shape = b.func.ty(x).shape.clone();
    let (rest, last) = (shape.len() - 1, shape[shape.len() - 1].clone());
    let square = b.mul(x, x);
    let sum = b.sum(square, &[rest]);
    let n = b.op(Op::Extent(last, DType::F64), &[]);
    let n = b.splat(n, &shape[..rest]);
    let mean = b.map(MapFn::Div, &[sum, n]);
    let eps = b.full_like(mean, 1e-5);
    let mean = b.add(mean, eps);
    let inverse = b.map(MapFn::Rsqrt, &[mean]);
    let inverse = b.broadcast(inverse, &shape, &(0..rest).collect::<Vec<_>>());
    let g = b.broadcast(g, &shape, &[rest]);
    let scaled = b.mul(x, inverse);
    b.mul(scaled, g)
}

/// Sliding-window attention with 4 heads of 2 over 2 key heads.
fn attention(b: &mut Builder, x: Value, [wq, wk, wv, wo]: [Value; 4]) -> Value {
    let q = b.contract("btd,dhk->bthk", x, wq);
    let k = b.contract("btd,dhk->bthk", x, wk);
    let v = b.contract("btd,dhk->bthk", x, wv);
    let domain = Domain::And(Box::new(Domain::Causal), Box::new(Domain::Window(3)));
    let o = b.op(Op::Attend(Attend { domain, scale: Scalar::new(0.7) }), &[q, k, v]);
    b.contract("bthk,hkd->btd", o, wo)
}

/// Two of three experts a token, with renormalised sigmoid weights.
fn experts(b: &mut Builder, x: Value, [router, gate, up, down]: [Value; 4]) -> Value {
    let shape = b.func.ty(x).shape.clone();
    let (n, d) = (shape[0].clone() * shape[1].clone(), shape[2].clone());
    let x = b.reshape(x, &[n.clone(), d]);
    let logits = b.contract("nd,de->ne", x, router);
    let scores = b.map(MapFn::Sigmoid, &[logits]);
    let chosen = b.op(Op::TopK(2), &[scores]);
    let weights = b.op(Op::Gather { batch: 1 }, &[scores, chosen]);
    let sum = b.sum(weights, &[1]);
    let sum = b.broadcast(sum, &[n.clone(), 2.into()], &[0]);
    let weights = b.map(MapFn::Div, &[weights, sum]);
    let rows = b.node(Op::Route { groups: 3 }, &[chosen]);
    let two = b.full_like(rows[1], 2.0);
    let tokens = b.map(MapFn::FloorDiv, &[rows[1], two]);
    let sent = b.op(Op::Gather { batch: 0 }, &[x, tokens]);
    let grouped = |b: &mut Builder, x, w, transposed| b.op(Op::GroupedContract { transposed }, &[x, w, rows[0]]);
    let (g, u) = (grouped(b, sent, gate, false), grouped(b, sent, up, false));
    let hidden = b.map(MapFn::Swiglu, &[g, u]);
    let made = grouped(b, hidden, down, true);
    let back = b.op(Op::Gather { batch: 0 }, &[made, rows[2]]);
    let combined = b.contract("nkd,nk->nd", back, weights);
    b.reshape(combined, &shape)
}

fn model(b: &mut Builder, x: &[Value]) -> Vec<Value> {
    let [tokens, targets, table] = [x[0], x[1], x[2]];
    let weights = &x[3..];
    let hidden = b.op(Op::Gather { batch: 0 }, &[table, tokens]);
    let mut body = Func::new("body");
    let of_hidden = b.func.ty(hidden).clone();
    let mut args = vec![body.arg("x", Role::Inner, of_hidden)];
    for (i, w) in weights.iter().enumerate() {
        let mut ty = b.func.ty(*w).clone();
        ty.shape.remove(0);
        args.push(body.arg(&format!("w{i}"), Role::Inner, ty));
    }
    let mut inner = Builder::new(&mut body);
    let norm = rmsnorm(&mut inner, args[0], args[1]);
    let mixed = attention(&mut inner, norm, [args[2], args[3], args[4], args[5]]);
    let middle = inner.add(args[0], mixed);
    let norm = rmsnorm(&mut inner, middle, args[1]);
    let mixed = experts(&mut inner, norm, [args[6], args[7], args[8], args[9]]);
    let last = inner.add(middle, mixed);
    body.output("x", Role::Inner, last);
    let repeat = Repeat { count: 2, carried: 1, constant: 0, reverse: false, body };
    let operands = [&[hidden], weights].concat();
    let hidden = b.op(Op::Repeat(Box::new(repeat)), &operands);
    // Cross entropy with the tied table.
    let logits = b.contract("btd,vd->btv", hidden, table);
    let shape = b.func.ty(logits).shape.clone();
    let max = b.op(Op::Reduce(ReduceFn::Max, vec![2]), &[logits]);
    let max = b.op(Op::StopGradient, &[max]);
    let wide = b.broadcast(max, &shape, &[0, 1]);
    let shifted = b.map(MapFn::Sub, &[logits, wide]);
    let exp = b.map(MapFn::Exp, &[shifted]);
    let sum = b.sum(exp, &[2]);
    let log = b.map(MapFn::Log, &[sum]);
    let picked = b.op(Op::Gather { batch: 2 }, &[shifted, targets]);
    vec![b.map(MapFn::Sub, &[log, picked])]
}

#[test]
fn two_layers_of_attention_and_experts() {
    let specs = [
        "i0:7 B, T",
        "i0:7 B, T",
        "f 7, 4",
        "p 2, 4",
        "f 2, 4, 4, 2",
        "f 2, 4, 2, 2",
        "f 2, 4, 2, 2",
        "f 2, 4, 2, 4",
        "f 2, 4, 3",
        "f 2, 3, 4, 2",
        "f 2, 3, 4, 2",
        "f 2, 3, 4, 2",
    ];
    for (batch, t) in [(2, 5), (1, 1), (1, 0)] {
        check("model", &specs, &[("B", batch), ("T", t)], model);
    }
}
