//! Native sparse attention against loops over single tokens, written from the formulas of arXiv 2502.11089 in 0-based form.

use super::*;

/// The sizes of a problem: heads, key heads, dims, compression length and stride, block size and count, window, forced blocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub h: usize,
    pub g: usize,
    pub dk: usize,
    pub dv: usize,
    pub length: usize,
    pub stride: usize,
    pub size: usize,
    pub count: usize,
    pub window: usize,
    pub first: usize,
    pub local: usize,
}

/// The proportions of 32/16/64.
pub(super) const USUAL: Sizes =
    Sizes { h: 4, g: 2, dk: 3, dv: 2, length: 4, stride: 2, size: 8, count: 4, window: 5, first: 1, local: 2 };

/// Of one sequence: q `[t, h, dk]`, keys and values `[t, g, ..]` of the three branches, gate `[t, h, 3]`, upstream `[t, h, dv]`.
pub(super) struct Problem {
    pub t: usize,
    pub q: Vec<f64>,
    pub k: [Vec<f64>; 3],
    pub v: [Vec<f64>; 3],
    pub gate: Vec<f64>,
    pub up: Vec<f64>,
}

/// What comes out, and the gradients of Σ up·o.
pub(super) struct Answer {
    pub o: Vec<f64>,
    /// By token and key head, ascending.
    pub chosen: Vec<Vec<usize>>,
    pub dq: Vec<f64>,
    pub dk: [Vec<f64>; 3],
    pub dv: [Vec<f64>; 3],
    pub dgate: Vec<f64>,
}

pub(super) fn problem(r: &mut Rng, x: &Sizes, t: usize) -> Problem {
    let mut take = |n: usize| r.tensor(&[(t * n) as i64]).data;
    Problem {
        t,
        q: take(x.h * x.dk).into_iter().map(|q| 3.0 * q).collect(),
        k: [0, 1, 2].map(|_| take(x.g * x.dk)),
        v: [0, 1, 2].map(|_| take(x.g * x.dv)),
        gate: take(x.h * 3).into_iter().map(f64::abs).collect(),
        up: take(x.h * x.dv),
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn softmax(scores: &[f64]) -> Vec<f64> {
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
    scores.iter().map(|s| (s - max).exp() / sum).collect()
}

pub(super) fn reference(x: &Sizes, p: &Problem) -> Answer {
    let (t, scale) = (p.t, 1.0 / (x.dk as f64).sqrt());
    let windows = if t < x.length { 0 } else { (t - x.length) / x.stride + 1 };
    let row = |of: &[f64], s: usize, g: usize, n: usize| of[(s * x.g + g) * n..(s * x.g + g + 1) * n].to_vec();
    let pool = |of: &[f64], g: usize, n: usize| -> Vec<Vec<f64>> {
        let mean = |i: usize, c: usize| {
            (i * x.stride..i * x.stride + x.length).map(|s| of[(s * x.g + g) * n + c]).sum::<f64>() / x.length as f64
        };
        (0..windows).map(|i| (0..n).map(|c| mean(i, c)).collect()).collect()
    };
    let mut out = Answer {
        o: vec![0.0; t * x.h * x.dv],
        chosen: Vec::new(),
        dq: vec![0.0; p.q.len()],
        dk: p.k.clone().map(|k| vec![0.0; k.len()]),
        dv: p.v.clone().map(|v| vec![0.0; v.len()]),
        dgate: vec![0.0; p.gate.len()],
    };
    for at in 0..t {
        for g in 0..x.g {
            let heads = g * (x.h / x.g)..(g + 1) * (x.h / x.g);
            let query = |h: usize| &p.q[(at * x.h + h) * x.dk..(at * x.h + h + 1) * x.dk];
            // Window i is visible if all of it is past or present.
            let seen: Vec<usize> = (0..windows).filter(|i| i * x.stride + x.length - 1 <= at).collect();
            let (kc, vc) = (pool(&p.k[0], g, x.dk), pool(&p.v[0], g, x.dv));
            let mut score = vec![0.0; at / x.size + 1];
            for h in heads.clone() {
                let weights = softmax(&seen.iter().map(|i| scale * dot(query(h), &kc[*i])).collect::<Vec<_>>());
                for (j, score) in score.iter_mut().enumerate() {
                    for m in 0..x.size / x.stride {
                        for k in 0..x.length / x.stride {
                            let i = ((x.size / x.stride * (j + 1)) as i64) - 1 - m as i64 - k as i64;
                            *score += usize::try_from(i).ok().and_then(|i| weights.get(i)).unwrap_or(&0.0);
                        }
                    }
                }
            }
            let own = at / x.size;
            let forced = |j: usize| j < x.first || j + x.local > own;
            let mut chosen: Vec<usize> = (0..=own).filter(|j| forced(*j)).collect();
            let mut others: Vec<usize> = (0..=own).filter(|j| !forced(*j)).collect();
            others.sort_by(|a, b| score[*b].total_cmp(&score[*a]).then(a.cmp(b)));
            chosen.extend(others.into_iter().take(x.count.saturating_sub(chosen.len())));
            chosen.sort_unstable();
            let selected: Vec<usize> = (0..=at).filter(|s| chosen.contains(&(s / x.size))).collect();
            let near: Vec<usize> = (0..=at).filter(|s| s + x.window > at).collect();
            for h in heads {
                let (q, at_o) = (query(h), (at * x.h + h) * x.dv);
                let up = &p.up[at_o..at_o + x.dv];
                for (c, keys) in [&seen, &selected, &near].into_iter().enumerate() {
                    let of = |i: usize| if c == 0 { kc[i].clone() } else { row(&p.k[c], i, g, x.dk) };
                    let value = |i: usize| if c == 0 { vc[i].clone() } else { row(&p.v[c], i, g, x.dv) };
                    let weights = softmax(&keys.iter().map(|i| scale * dot(q, &of(*i))).collect::<Vec<_>>());
                    let gate = p.gate[(at * x.h + h) * 3 + c];
                    let mut o = vec![0.0; x.dv];
                    for (i, w) in keys.iter().zip(&weights) {
                        o.iter_mut().zip(value(*i)).for_each(|(o, v)| *o += w * v);
                    }
                    o.iter().enumerate().for_each(|(e, o)| out.o[at_o + e] += gate * o);
                    let d = dot(up, &o);
                    out.dgate[(at * x.h + h) * 3 + c] = d;
                    for (i, w) in keys.iter().zip(&weights) {
                        let ds = scale * w * (gate * dot(up, &value(*i)) - gate * d);
                        let tokens = if c == 0 { i * x.stride..i * x.stride + x.length } else { *i..*i + 1 };
                        let share = 1.0 / tokens.len() as f64;
                        (0..x.dk).for_each(|e| out.dq[(at * x.h + h) * x.dk + e] += ds * of(*i)[e]);
                        for s in tokens {
                            (0..x.dk).for_each(|e| out.dk[c][(s * x.g + g) * x.dk + e] += share * ds * q[e]);
                            (0..x.dv).for_each(|e| out.dv[c][(s * x.g + g) * x.dv + e] += share * w * gate * up[e]);
                        }
                    }
                }
            }
            out.chosen.push(chosen);
        }
    }
    out
}

const ARGS: [&str; 9] = ["q", "kc", "ks", "kw", "vc", "vs", "vw", "gate", "up"];

/// A program of the three branches: the output, the choice, or Σ up·o.
fn program(x: &Sizes, result: &str) -> String {
    let Sizes { h, g, dk, dv, length, stride, size, count, window, first, local } = x;
    let sizes = format!("{length}, {stride}, {size}, {count}");
    let forced = format!("first: {first}, local: {local}");
    let o = format!("nsa_branches(q, kc, vc, ks, vs, kw, vw, gate, {sizes}, {window}, {forced})");
    let (ty, body) = match result {
        "o" => (format!("[B, T, {h}, {dv}]"), o),
        "sum" => ("f32[]".into(), format!("sum({o} * up, axis: \"all\")")),
        _ => (
            format!("i32[B, T, {g}, {count}]"),
            format!(
                "let c = compress(kc, {length}, {stride})
                let (o, lse) = attend_lse(q, c, compress(vc, {length}, {stride}), ends_before({length}, {stride}), scale: 1.0 / sqrt({dk}))
                select_blocks(q, c, lse, {sizes}, {forced})"
            ),
        ),
    };
    format!(
        "use std.nsa.{{nsa_branches, compress, select_blocks}}\ndims B, T
        model m(q: [B, T, {h}, {dk}], kc: [B, T, {g}, {dk}], ks: [B, T, {g}, {dk}], kw: [B, T, {g}, {dk}], vc: [B, T, {g}, {dv}],
          vs: [B, T, {g}, {dv}], vw: [B, T, {g}, {dv}], gate: [B, T, {h}, 3], up: [B, T, {h}, {dv}]) -> {ty} {{
          {body}
        }}"
    )
}

/// The arguments of a batch.
fn given(x: &Sizes, batch: &[&Problem]) -> Vec<(&'static str, Tensor)> {
    let t = batch[0].t;
    let of = |p: &Problem, i: usize| match i {
        0 => p.q.clone(),
        1..=3 => p.k[i - 1].clone(),
        4..=6 => p.v[i - 4].clone(),
        7 => p.gate.clone(),
        _ => p.up.clone(),
    };
    let axes = [[x.h, x.dk], [x.g, x.dk], [x.g, x.dk], [x.g, x.dk], [x.g, x.dv], [x.g, x.dv], [x.g, x.dv], [x.h, 3], [x.h, x.dv]];
    (0..9)
        .map(|i| {
            let shape = [batch.len() as i64, t as i64, axes[i][0] as i64, axes[i][1] as i64];
            let data = batch.iter().flat_map(|p| of(p, i)).collect();
            (ARGS[i], Tensor { dtype: DType::F32, shape: shape.to_vec(), data })
        })
        .collect()
}

/// Compares output, choice and gradients of a problem with the reference.
fn check(x: &Sizes, p: &Problem) {
    let what = format!("{x:?} t {}", p.t);
    let (given, want) = (given(x, &[p]), reference(x, p));
    close(&format!("{what} o"), &eval(&program(x, "o"), &given)[0], &want.o, BOUND);
    let idx = &eval(&program(x, "idx"), &given)[0];
    for (row, chosen) in idx.data.chunks(x.count).zip(&want.chosen) {
        let mut got: Vec<usize> = row.iter().filter(|i| **i >= 0.0).map(|i| *i as usize).collect();
        got.sort_unstable();
        assert_eq!(&got, chosen, "{what}: {row:?}");
        assert!(row[chosen.len()..].iter().all(|i| *i == -1.0), "{what}: {row:?}");
    }
    let grads = grad(&program(x, "sum"), &given, &ARGS[..8]);
    close(&format!("{what} dq"), &grads[0], &want.dq, BOUND);
    for c in 0..3 {
        close(&format!("{what} dk {c}"), &grads[1 + c], &want.dk[c], BOUND);
        close(&format!("{what} dv {c}"), &grads[4 + c], &want.dv[c], BOUND);
    }
    close(&format!("{what} dgate"), &grads[7], &want.dgate, BOUND);
}

#[test]
fn nsa_follows_its_formulas_at_the_edges_of_windows_and_blocks() {
    let mut r = Rng(21);
    // Around one window (4), one block (8), exactly n blocks (32) and one more.
    for t in [1, 3, 4, 5, 7, 8, 9, 16, 31, 32, 33, 41] {
        check(&USUAL, &problem(&mut r, &USUAL, t));
    }
}

#[test]
fn nsa_follows_its_formulas_for_other_sizes() {
    let mut r = Rng(22);
    for (h, g) in [(1, 1), (2, 1), (4, 1), (3, 3)] {
        let x = Sizes { h, g, ..USUAL };
        check(&x, &problem(&mut r, &x, 37));
    }
    for (length, stride, size, count, window, first, local) in
        [(4, 4, 4, 3, 4, 1, 1), (4, 2, 4, 5, 1, 0, 1), (8, 2, 8, 3, 100, 1, 2), (4, 1, 8, 4, 8, 2, 1), (6, 3, 12, 2, 6, 0, 2)]
    {
        let x = Sizes { length, stride, size, count, window, first, local, ..USUAL };
        check(&x, &problem(&mut r, &x, 38));
    }
}

#[test]
fn nsa_breaks_ties_to_the_lower_block_and_survives_saturation() {
    let mut r = Rng(23);
    let mut p = problem(&mut r, &USUAL, 70);
    p.q.fill(0.0);
    check(&USUAL, &p);
    // One key far above all others, and one far below.
    let mut p = problem(&mut r, &USUAL, 45);
    for k in &mut p.k {
        k[..USUAL.g * USUAL.dk].fill(4e3);
        k[USUAL.g * USUAL.dk * 20..USUAL.g * USUAL.dk * 21].fill(-4e3);
    }
    let o = &eval(&program(&USUAL, "o"), &given(&USUAL, &[&p]))[0];
    close("saturated", o, &reference(&USUAL, &p).o, BOUND);
}

#[test]
fn nsa_keeps_the_sequences_of_a_batch_apart() {
    let mut r = Rng(24);
    let (a, b) = (problem(&mut r, &USUAL, 21), problem(&mut r, &USUAL, 21));
    let o = &eval(&program(&USUAL, "o"), &given(&USUAL, &[&a, &b]))[0];
    close("batch", o, &[reference(&USUAL, &a).o, reference(&USUAL, &b).o].concat(), BOUND);
}

#[test]
fn nsa_does_not_leak_nan() {
    let mut r = Rng(25);
    let (t, x) = (70, USUAL);
    let row = x.h * x.dv;
    let clean = problem(&mut r, &x, t);
    let want = reference(&x, &clean);
    // The selected branch's block 3 for those that did not choose it.
    let mut p = problem(&mut Rng(25), &x, t);
    p.k[1][x.g * x.dk * 24..x.g * x.dk * 32].fill(f64::NAN);
    p.v[1][x.g * x.dv * 24..x.g * x.dv * 32].fill(f64::NAN);
    let o = &eval(&program(&x, "o"), &given(&x, &[&p]))[0];
    let (mut with, mut without) = (0, 0);
    for at in 0..t {
        for h in 0..x.h {
            let took = want.chosen[at * x.g + h / 2].contains(&3) && at >= 24;
            let got = &o.data[at * row + h * x.dv..at * row + (h + 1) * x.dv];
            assert_eq!(got.iter().any(|o| o.is_nan()), took, "token {at} head {h}");
            if took { with += 1 } else { without += 1 }
        }
    }
    assert!(with > 40 && without > 110, "{with} {without}");
    // The future, in every input.
    let mut p = problem(&mut Rng(25), &x, t);
    p.q[x.h * x.dk * 50..].fill(f64::NAN);
    p.k.iter_mut().for_each(|k| k[x.g * x.dk * 50..].fill(f64::NAN));
    p.v.iter_mut().for_each(|v| v[x.g * x.dv * 50..].fill(f64::NAN));
    let o = &eval(&program(&x, "o"), &given(&x, &[&p]))[0];
    let past = Tensor { dtype: DType::F32, shape: vec![50, row as i64], data: o.data[..50 * row].to_vec() };
    close("past", &past, &want.o[..50 * row], BOUND);
}

#[test]
fn nsa_of_one_set_of_keys_is_the_branches_given_it_thrice() {
    let mut r = Rng(26);
    let mut p = problem(&mut r, &USUAL, 40);
    p.k = [0, 1, 2].map(|_| p.k[0].clone());
    p.v = [0, 1, 2].map(|_| p.v[0].clone());
    let text = "use std.nsa\ndims B, T
        model m(q: [B, T, 4, 3], kc: [B, T, 2, 3], vc: [B, T, 2, 2], gate: [B, T, 4, 3]) -> [B, T, 4, 2] {
          nsa(q, kc, vc, gate, length: 4, stride: 2, size: 8, count: 4, window: 5)
        }";
    close("nsa", &eval(text, &given(&USUAL, &[&p]))[0], &reference(&USUAL, &p).o, BOUND);
}

#[test]
fn blocks_weigh_windows_by_overlap() {
    let text = "use std.nsa.overlap\ndims T
        model m(x: [T]) -> ([T], f32[9, 3]) { (x, overlap(9, 3, 32, 16, 64)) }";
    let got = eval(text, &[("x", Tensor::full(DType::F32, &[1], 0.0))]);
    for j in 0..3usize {
        let column: Vec<f64> = (0..9).map(|i| got[1].data[i * 3 + j]).collect();
        let weight = |i: usize| match (i + 1) as i64 - 4 * j as i64 {
            0 | 4 => 1.0,
            1..=3 => 2.0,
            _ => 0.0,
        };
        assert_eq!(column, (0..9).map(weight).collect::<Vec<_>>(), "block {j}");
    }
}
