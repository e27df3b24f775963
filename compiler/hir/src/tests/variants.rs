//! Other sparse attentions of the library against loops over single tokens, written from their papers' formulas.

use super::*;

const H: usize = 4;
const G: usize = 2;
const D: usize = 3;

/// q `[t, h, d]`, k and v `[t, g, d]`.
struct Input {
    t: usize,
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

fn input(r: &mut Rng, t: usize) -> Input {
    let mut take = |h: usize| r.tensor(&[1, t as i64, h as i64, D as i64]);
    Input { t, q: take(H), k: take(G), v: take(G) }
}

fn row(of: &Tensor, heads: usize, s: usize, h: usize) -> &[f64] {
    let n = of.shape[of.shape.len() - 1] as usize;
    &of.data[(s * heads + h) * n..(s * heads + h + 1) * n]
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Softmax attention of every query and head over the keys that `sees` names.
fn attention(x: &Input, sees: impl Fn(usize, usize) -> Vec<usize>) -> Vec<f64> {
    let mut out = Vec::new();
    for at in 0..x.t {
        for h in 0..H {
            let (q, keys) = (row(&x.q, H, at, h), sees(at, h));
            let scores: Vec<f64> = keys.iter().map(|s| dot(q, row(&x.k, G, *s, h / 2)) / (D as f64).sqrt()).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            for e in 0..D {
                out.push(keys.iter().zip(&scores).map(|(s, z)| (z - max).exp() / sum * row(&x.v, G, *s, h / 2)[e]).sum());
            }
        }
    }
    out
}

/// The `count` numbers of highest score, ties to the lower one.
fn best(mut of: Vec<usize>, count: usize, score: impl Fn(usize) -> f64) -> Vec<usize> {
    of.sort_by(|a, b| score(*b).total_cmp(&score(*a)).then(a.cmp(b)));
    of.truncate(count);
    of
}

fn check(name: &str, text: &str, x: &Input, more: &[(&str, Tensor)], want: &[f64]) {
    let given: Vec<(&str, Tensor)> =
        [("q", x.q.clone()), ("k", x.k.clone()), ("v", x.v.clone())].into_iter().chain(more.iter().cloned()).collect();
    close(&format!("{name} t {}", x.t), &eval(text, &given)[0], want, BOUND);
}

const HEADS: &str = "q: [B, T, 4, 3], k: [B, T, 2, 3], v: [B, T, 2, 3]";

#[test]
fn moba_takes_its_own_block_and_the_best_of_the_earlier_ones() {
    let mut r = Rng(31);
    let (size, count) = (4, 3);
    let text =
        format!("use std.moba\ndims B, T\nmodel m({HEADS}) -> [B, T, 4, 3] {{ moba(q, k, v, size: {size}, count: {count}) }}");
    for t in [1, 3, 4, 5, 16, 27] {
        let x = input(&mut r, t);
        let want = attention(&x, |at, h| {
            let mean =
                |j: usize, e: usize| (j * size..(j + 1) * size).map(|s| row(&x.k, G, s, h / 2)[e]).sum::<f64>() / size as f64;
            let like = |j: usize| (0..D).map(|e| row(&x.q, H, at, h)[e] * mean(j, e)).sum::<f64>();
            let own = at / size;
            let mut chosen = best((0..own).collect(), count - 1, like);
            chosen.push(own);
            (0..=at).filter(|s| chosen.contains(&(s / size))).collect()
        });
        check("moba", &text, &x, &[], &want);
    }
}

#[test]
fn dsa_takes_the_tokens_its_indexer_likes() {
    let mut r = Rng(32);
    let count = 5;
    let indexer = "qi: [B, T, 2, 2], ki: [B, T, 2], wi: [B, T, 2]";
    let text = format!(
        "use std.dsa\ndims B, T\nmodel m({HEADS}, {indexer}) -> [B, T, 4, 3] {{ dsa(q, k, v, qi, ki, wi, count: {count}) }}"
    );
    for t in [1, 4, 5, 6, 23] {
        let x = input(&mut r, t);
        let n = t as i64;
        let (qi, ki, wi) = (r.tensor(&[1, n, 2, 2]), r.tensor(&[1, n, 2]), r.tensor(&[1, n, 2]));
        let want = attention(&x, |at, _| {
            let score = |s: usize| {
                let like = |j: usize| dot(row(&qi, 2, at, j), row(&ki, 1, s, 0)).max(0.0);
                (0..2).map(|j| wi.data[at * 2 + j] * like(j)).sum::<f64>()
            };
            best((0..=at).collect(), count, score)
        });
        check("dsa", &text, &x, &[("qi", qi), ("ki", ki), ("wi", wi)], &want);
    }
}

#[test]
fn sink_sees_the_window_and_the_first_tokens() {
    let mut r = Rng(33);
    let text = format!("use std.sink\ndims B, T\nmodel m({HEADS}) -> [B, T, 4, 3] {{ sink(q, k, v, window: 4, sinks: 2) }}");
    for t in [1, 2, 5, 6, 7, 20] {
        let x = input(&mut r, t);
        let want = attention(&x, |at, _| (0..=at).filter(|s| *s < 2 || s + 4 > at).collect());
        check("sink", &text, &x, &[], &want);
    }
}

#[test]
fn variants_are_attend_over_a_domain() {
    // What the back half sees is one op with a domain, so that no variant needs a kernel of its own.
    for (name, args, call) in [
        ("moba", "", "moba(q, k, v)"),
        ("dsa", ", qi: [B, T, 2, 2], ki: [B, T, 2], wi: [B, T, 2]", "dsa(q, k, v, qi, ki, wi)"),
        ("sink", "", "sink(q, k, v)"),
    ] {
        let text = format!("use std.{name}\ndims B, T\nmodel m({HEADS}{args}) -> [B, T, 4, 3] {{ {call} }}");
        let p = lower_text(&text).unwrap_or_else(|e| panic!("{e:#?}"));
        let forward = p.module.func("forward").expect("a model has it");
        let attends = forward.nodes.iter().filter(|(_, n)| matches!(n.op, graph::Op::Attend(_))).count();
        assert_eq!(attends, 1, "{name}");
    }
}
