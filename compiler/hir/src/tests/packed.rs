//! Packed sequences against the plain formula of each sequence alone.

use super::{
    nsa::{Answer, Problem, Sizes, USUAL, problem, reference},
    *,
};

fn program(x: &Sizes, sum: bool) -> String {
    let Sizes { h, g, dk, dv, length, stride, size, count, window, first, local } = x;
    let o = format!(
        "nsa_packed(q, k, v, gate, segment, length: {length}, stride: {stride}, size: {size}, count: {count}, window: {window},
           first: {first}, local: {local})"
    );
    let (ty, o) = if sum { ("f32[]".into(), format!("sum({o} * up, axis: \"all\")")) } else { (format!("[B, T, {h}, {dv}]"), o) };
    format!(
        "use std.nsa.nsa_packed\ndims B, T
        model m(q: [B, T, {h}, {dk}], k: [B, T, {g}, {dk}], v: [B, T, {g}, {dv}], gate: [B, T, {h}, 3], up: [B, T, {h}, {dv}],
          segment: i32[B, T]) -> {ty} {{
          {o}
        }}"
    )
}

/// Compares rows of packed sequences with the reference of each alone. `rows`: for each row, a segment number and a length per sequence.
fn check(x: &Sizes, rows: &[Vec<(i64, usize)>]) {
    let mut r = Rng(31);
    let (mut given, mut want): (Vec<Vec<f64>>, Vec<Vec<f64>>) = (vec![Vec::new(); 5], vec![Vec::new(); 5]);
    let mut segment = Vec::new();
    for (number, t) in rows.iter().flatten() {
        let mut p: Problem = problem(&mut r, x, *t);
        p.k = [0, 1, 2].map(|_| p.k[0].clone());
        p.v = [0, 1, 2].map(|_| p.v[0].clone());
        let a: Answer = reference(x, &p);
        let total = |d: &[Vec<f64>; 3]| (0..d[0].len()).map(|i| d[0][i] + d[1][i] + d[2][i]).collect::<Vec<f64>>();
        let parts = [a.o.clone(), a.dq.clone(), total(&a.dk), total(&a.dv), a.dgate.clone()];
        want.iter_mut().zip(parts).for_each(|(w, part)| w.extend(part));
        let [k, ..] = p.k;
        let [v, ..] = p.v;
        given.iter_mut().zip([p.q, k, v, p.gate, p.up]).for_each(|(g, part)| g.extend(part));
        segment.extend(vec![*number; *t]);
    }
    let shape = [rows.len() as i64, (segment.len() / rows.len()) as i64];
    let axes = [[x.h, x.dk], [x.g, x.dk], [x.g, x.dv], [x.h, 3], [x.h, x.dv]];
    let mut args: Vec<(&str, Tensor)> = ["q", "k", "v", "gate", "up"]
        .into_iter()
        .zip(given)
        .zip(axes)
        .map(|((name, data), [m, n])| {
            (name, Tensor { dtype: DType::F32, shape: vec![shape[0], shape[1], m as i64, n as i64], data })
        })
        .collect();
    args.push(("segment", ints(&shape, &segment)));
    close(&format!("{rows:?} o"), &eval(&program(x, false), &args)[0], &want[0], BOUND);
    let grads = grad(&program(x, true), &args, &["q", "k", "v", "gate"]);
    for (i, what) in ["dq", "dk", "dv", "dgate"].into_iter().enumerate() {
        close(&format!("{rows:?} {what}"), &grads[i], &want[i + 1], BOUND);
    }
}

#[test]
fn one_packed_sequence_is_the_plain_one() {
    for t in [1, 3, 4, 33, 41] {
        check(&USUAL, &[vec![(0, t)]]);
    }
}

#[test]
fn packed_sequences_see_nothing_of_each_other() {
    // Of length 1 and below a window between long ones, more blocks than n, lengths that do not divide.
    check(&USUAL, &[vec![(0, 45), (1, 1), (2, 3), (3, 17), (4, 1)], vec![(7, 2), (3, 39), (7, 4), (9, 22)]]);
    check(&USUAL, &[vec![(1, 1), (0, 1), (5, 1)]]);
    check(&Sizes { length: 4, stride: 4, size: 4, count: 3, local: 1, g: 4, ..USUAL }, &[vec![(0, 13), (1, 16), (0, 3), (1, 9)]]);
    check(&Sizes { length: 4, stride: 1, g: 1, ..USUAL }, &[vec![(0, 6), (1, 4), (0, 20)]]);
}
