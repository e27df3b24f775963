//! Attention over a domain, and its gradient, row by row.

use super::{
    Tensor,
    contract::{axpy, dot},
};
use crate::op::{Attend, Domain};

/// The extents of an attention; `b t h dk`, `b s g dk`, `b s g dv`.
pub(super) struct Extents {
    pub(super) t: usize,
    pub(super) h: usize,
    pub(super) dk: usize,
    pub(super) s: usize,
    g: usize,
    pub(super) dv: usize,
}

/// A query row and its key head.
#[derive(Clone, Copy)]
pub(super) struct Row {
    b: usize,
    t: usize,
    g: usize,
}

impl Extents {
    pub(super) fn of(q: &Tensor, v: &Tensor) -> Extents {
        let ([_, t, h, dk], [_, s, g, dv]) = (q.axes(), v.axes());
        Extents { t, h, dk, s, g, dv }
    }
    /// Every query row with its head and the keys it sees, in order.
    pub(super) fn each_row(
        &self,
        batches: usize,
        domain: &Domain,
        operands: &[&Tensor],
        mut visit: impl FnMut(Row, usize, &[usize]),
    ) {
        for b in 0..batches {
            for t in 0..self.t {
                for g in 0..self.g {
                    let row = Row { b, t, g };
                    let seen = visible(domain, self, row, operands);
                    let keys: Vec<usize> = (0..self.s).filter(|s| seen[*s]).collect();
                    let heads = self.h / self.g;
                    (g * heads..(g + 1) * heads).for_each(|h| visit(row, h, &keys));
                }
            }
        }
    }
    /// The scores of query row `at` with the keys.
    fn scores(&self, a: &Attend, q: &[f64], k: &Tensor, row: Row, keys: &[usize]) -> Vec<f64> {
        keys.iter().map(|s| a.scale.get() * dot(q, &k.data[self.key(row, *s, self.dk)])).collect()
    }
    /// Where the vector of key `s` lies, `n` elements each.
    pub(super) fn key(&self, row: Row, s: usize, n: usize) -> std::ops::Range<usize> {
        let at = ((row.b * self.s + s) * self.g + row.g) * n;
        at..at + n
    }
    /// The number of the query's row among all `b t h`.
    pub(super) fn query(&self, row: Row, h: usize) -> usize {
        (row.b * self.t + row.t) * self.h + h
    }
}

/// Which keys a query sees.
fn visible(domain: &Domain, x: &Extents, row: Row, operands: &[&Tensor]) -> Vec<bool> {
    let at = (row.t + x.s) as i64 - x.t as i64;
    let by_key = |f: &dyn Fn(i64) -> bool| (0..x.s as i64).map(f).collect::<Vec<bool>>();
    let of_keys = |i: usize| &operands[i].data[row.b * x.s..(row.b + 1) * x.s];
    let chosen = |i: usize| {
        let n = *operands[i].shape.last().expect("choices have an axis") as usize;
        let from = ((row.b * x.t + row.t) * x.g + row.g) * n;
        &operands[i].data[from..from + n]
    };
    match domain {
        Domain::Full => vec![true; x.s],
        Domain::Causal => by_key(&|s| s <= at),
        Domain::Window(w) => by_key(&|s| at - w < s),
        Domain::Prefix(n) => by_key(&|s| s < *n),
        Domain::EndsBefore { length, stride } => by_key(&|s| s * stride + length - 1 <= row.t as i64),
        Domain::EndsAt(e) => of_keys(*e).iter().map(|end| *end <= row.t as f64).collect(),
        Domain::Segments(q, k) => {
            let own = operands[*q].data[row.b * x.t + row.t];
            of_keys(*k).iter().map(|segment| *segment == own).collect()
        }
        Domain::Blocks { idx, size } => {
            let chosen = chosen(*idx);
            by_key(&|s| chosen.contains(&((s / size) as f64)))
        }
        Domain::Groups { idx, of } => {
            let chosen = chosen(*idx);
            of_keys(*of).iter().map(|group| chosen.contains(group)).collect()
        }
        Domain::Tokens(idx) => {
            let mut seen = vec![false; x.s];
            for i in chosen(*idx).iter().filter(|i| **i >= 0.0 && **i < x.s as f64) {
                seen[*i as usize] = true;
            }
            seen
        }
        Domain::And(p, q) => both(p, q, x, row, operands, |a, b| a && b),
        Domain::Or(p, q) => both(p, q, x, row, operands, |a, b| a || b),
    }
}

fn both(p: &Domain, q: &Domain, x: &Extents, row: Row, operands: &[&Tensor], f: fn(bool, bool) -> bool) -> Vec<bool> {
    visible(p, x, row, operands).into_iter().zip(visible(q, x, row, operands)).map(|(a, b)| f(a, b)).collect()
}

/// o and lse.
pub(super) fn attend(a: &Attend, operands: &[&Tensor]) -> Vec<Vec<f64>> {
    let (q, k, v) = (operands[0], operands[1], operands[2]);
    let x = Extents::of(q, v);
    let rows = q.extents()[..3].iter().product::<usize>();
    let (mut o, mut lse) = (vec![0.0; rows * x.dv], vec![0.0; rows]);
    x.each_row(q.extents()[0], &a.domain, &operands[3..], |row, h, keys| {
        if keys.is_empty() {
            return;
        }
        let at = x.query(row, h);
        let scores = x.scores(a, &q.data[at * x.dk..(at + 1) * x.dk], k, row, keys);
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
        let o = &mut o[at * x.dv..(at + 1) * x.dv];
        for (s, score) in keys.iter().zip(&scores) {
            axpy((score - max).exp(), &v.data[x.key(row, *s, x.dv)], o);
        }
        o.iter_mut().for_each(|o| *o /= sum);
        lse[at] = max + sum.ln();
    });
    vec![o, lse]
}

/// dq, dk and dv.
pub(super) fn attend_grad(a: &Attend, operands: &[&Tensor]) -> Vec<Vec<f64>> {
    let [q, k, v, o, lse, d_o, d_lse, domain @ ..] = operands else { base::bug!("operands of attend_grad") };
    let x = Extents::of(q, v);
    let [mut dq, mut dk, mut dv] = [q, k, v].map(|t| vec![0.0; t.data.len()]);
    x.each_row(q.extents()[0], &a.domain, domain, |row, h, keys| {
        let at = x.query(row, h);
        let (of_q, of_o) = (at * x.dk..(at + 1) * x.dk, at * x.dv..(at + 1) * x.dv);
        let (q, d_o) = (&q.data[of_q.clone()], &d_o.data[of_o.clone()]);
        let delta = dot(d_o, &o.data[of_o]) - d_lse.data[at];
        for (s, score) in keys.iter().zip(x.scores(a, q, k, row, keys)) {
            let (of_k, of_v) = (x.key(row, *s, x.dk), x.key(row, *s, x.dv));
            let p = (score - lse.data[at]).exp();
            let ds = a.scale.get() * p * (dot(d_o, &v.data[of_v.clone()]) - delta);
            axpy(p, d_o, &mut dv[of_v]);
            axpy(ds, &k.data[of_k.clone()], &mut dq[of_q.clone()]);
            axpy(ds, q, &mut dk[of_k]);
        }
    });
    vec![dq, dk, dv]
}
