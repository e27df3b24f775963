//! Dense attention blocks: gqa and mla against loops over tokens.

use super::*;

/// Row `i` of `x·wᵀ` with `w` `[o, n]`.
fn times(x: &[f64], w: &Tensor) -> Vec<f64> {
    w.data.chunks(x.len()).map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum()).collect()
}

/// Halves rotated against each other, positions from 0.
fn turn(x: &[f64], t: usize, theta: f64) -> Vec<f64> {
    let half = x.len() / 2;
    turn_by(x, t, &(0..half).map(|i| theta.powf(-(i as f64) / half as f64)).collect::<Vec<_>>())
}

fn turn_by(x: &[f64], t: usize, freq: &[f64]) -> Vec<f64> {
    let half = freq.len();
    (0..x.len())
        .map(|i| {
            let a = t as f64 * freq[i % half];
            if i < half { x[i] * a.cos() - x[i + half] * a.sin() } else { x[i] * a.cos() + x[i - half] * a.sin() }
        })
        .collect()
}

fn norm(x: &[f64], w: &Tensor, eps: f64) -> Vec<f64> {
    let square = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter().zip(&w.data).map(|(x, w)| x / (square + eps).sqrt() * w).collect()
}

/// Causal attention of one head: the output of query `t`.
fn causal(q: &[f64], k: &[Vec<f64>], v: &[Vec<f64>], t: usize, times: f64) -> Vec<f64> {
    let scale = times / (q.len() as f64).sqrt();
    let p: Vec<f64> = k[..=t].iter().map(|k| (scale * k.iter().zip(q).map(|(a, b)| a * b).sum::<f64>()).exp()).collect();
    let sum: f64 = p.iter().sum();
    (0..v[0].len()).map(|i| p.iter().zip(v).map(|(p, v)| p / sum * v[i]).sum()).collect()
}

#[test]
fn gqa_shares_keys_among_the_heads_of_a_group() {
    // Once with both multiplied by a number.
    for stretch in [1.0, 1.3] {
        gqa_is_what_loops_say(stretch);
    }
}

fn gqa_is_what_loops_say(stretch: f64) {
    let text = format!(
        "use std.gqa\ndims B, T
        model m(x: [B, T, 5]) -> [B, T, 5] {{ gqa(x, heads: 4, kv: 2, dh: 6, theta: 100.0, stretch: {stretch:?}) as _ }}"
    );
    let mut r = Rng(11);
    let (x, wq, wk, wv, wo) =
        (r.tensor(&[1, 4, 5]), r.tensor(&[24, 5]), r.tensor(&[12, 5]), r.tensor(&[12, 5]), r.tensor(&[5, 24]));
    let given = [
        ("x", x.clone()),
        ("q_proj.weight", wq.clone()),
        ("k_proj.weight", wk.clone()),
        ("v_proj.weight", wv.clone()),
        ("o_proj.weight", wo.clone()),
    ];
    let got = eval(&text, &given);
    let rows: Vec<&[f64]> = x.data.chunks(5).collect();
    let mut want = Vec::new();
    for t in 0..4 {
        let q = times(rows[t], &wq);
        let mut heads = Vec::new();
        for h in 0..4 {
            let of = |w: &Tensor, s: usize| times(rows[s], w)[h / 2 * 6..h / 2 * 6 + 6].to_vec();
            let k: Vec<Vec<f64>> = (0..4).map(|s| turn(&of(&wk, s), s, 100.0)).collect();
            let v: Vec<Vec<f64>> = (0..4).map(|s| of(&wv, s)).collect();
            heads.extend(causal(&turn(&q[h * 6..h * 6 + 6], t, 100.0), &k, &v, t, stretch * stretch));
        }
        want.extend(times(&heads, &wo));
    }
    close("gqa", &got[0], &want, BOUND);
}

#[test]
fn mla_follows_the_published_code() {
    let (d, heads, q_rank, kv_rank, nope, rope, v_dim) = (5usize, 3usize, 4usize, 6usize, 2usize, 4usize, 3usize);
    // As it is; and with YaRN, of which one frequency stays.
    let m = |m: f64| 0.1 * m * 40f64.ln() + 1.0;
    let plain = ("", [1.0, 50f64.powf(-0.5)], 1.0, 1.0);
    let yarn = (
        "scaling: \"yarn\", factor: 40.0, original: 8, fast: 1.0, slow: 1.0, mscale: 0.7, mscale_all: 1.2,",
        [1.0, 50f64.powf(-0.5) / 40.0],
        m(0.7) / m(1.2),
        m(1.2),
    );
    for (interleaved, with_rank, (scaling, freq, by, scores)) in
        [(true, true, plain), (true, false, yarn), (false, true, yarn), (false, false, plain)]
    {
        let text = format!(
            "use std.mla\ndims B, T
            model m(x: [B, T, 5]) -> [B, T, 5] {{
              mla(x, heads: 3, q_rank: {}, kv_rank: 6, nope: 2, rope_dim: 4, v_dim: 3, theta: 50.0, eps: 0.01, {scaling} interleaved: {interleaved}) as _
            }}",
            if with_rank { q_rank } else { 0 }
        );
        let mut r = Rng(12);
        let mut weight = |o: usize, i: usize| r.tensor(&[o as i64, i as i64]);
        let wqa = weight(q_rank, d);
        let wqb = weight(heads * (nope + rope), q_rank);
        let wq = weight(heads * (nope + rope), d);
        let wkva = weight(kv_rank + rope, d);
        let wkvb = weight(heads * (nope + v_dim), kv_rank);
        let wo = weight(d, heads * v_dim);
        let (nq, nkv, x) = (r.tensor(&[q_rank as i64]), r.tensor(&[kv_rank as i64]), r.tensor(&[1, 4, d as i64]));
        let given = [
            ("x", x.clone()),
            ("q_a_proj.weight", wqa.clone()),
            ("q_a_layernorm.weight", nq.clone()),
            ("q_b_proj.weight", wqb.clone()),
            ("q_proj.weight", wq.clone()),
            ("kv_a_proj_with_mqa.weight", wkva.clone()),
            ("kv_a_layernorm.weight", nkv.clone()),
            ("kv_b_proj.weight", wkvb.clone()),
            ("o_proj.weight", wo.clone()),
        ];
        let got = eval(&text, &given);
        let turned = |x: &[f64], t: usize| {
            let apart: Vec<f64> = (0..rope).map(|i| x[2 * (i % (rope / 2)) + i / (rope / 2)]).collect();
            turn_by(if interleaved { &apart } else { x }, t, &freq).into_iter().map(|x| x * by).collect::<Vec<_>>()
        };
        let rows: Vec<&[f64]> = x.data.chunks(d).collect();
        let mut want = Vec::new();
        for t in 0..4 {
            let q = if with_rank { times(&norm(&times(rows[t], &wqa), &nq, 0.01), &wqb) } else { times(rows[t], &wq) };
            let mut out = Vec::new();
            for h in 0..heads {
                let q = &q[h * (nope + rope)..(h + 1) * (nope + rope)];
                let q = [&q[..nope], &turned(&q[nope..], t)].concat();
                let (mut k, mut v) = (Vec::new(), Vec::new());
                for (s, row) in rows.iter().enumerate() {
                    let a = times(row, &wkva);
                    let kv = times(&norm(&a[..kv_rank], &nkv, 0.01), &wkvb);
                    let kv = &kv[h * (nope + v_dim)..(h + 1) * (nope + v_dim)];
                    k.push([&kv[..nope], &turned(&a[kv_rank..], s)].concat());
                    v.push(kv[nope..].to_vec());
                }
                out.extend(causal(&q, &k, &v, t, scores * scores));
            }
            want.extend(times(&out, &wo));
        }
        close(&format!("mla, interleaved {interleaved}, q_rank {with_rank}"), &got[0], &want, BOUND);
    }
}
