//! Gates, experts and balance against loops over single tokens, written from arXiv 2412.19437 and 2408.15664.

use super::*;

/// The indices of the `k` greatest, best first, ties to the lower.
fn best(x: &[f64], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..x.len()).collect();
    order.sort_by(|a, b| x[*b].total_cmp(&x[*a]).then(a.cmp(b)));
    order.truncate(k);
    order
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// A gate's sizes.
#[derive(Clone, Copy, Debug)]
struct Gate {
    e: usize,
    k: usize,
    groups: usize,
    keep: usize,
    normalise: bool,
    scale: f64,
}

impl Gate {
    /// Choice and scores of one token.
    fn choose(&self, logits: &[f64], bias: &[f64]) -> (Vec<usize>, Vec<f64>) {
        let s: Vec<f64> = logits.iter().map(|x| sigmoid(*x)).collect();
        let mut b: Vec<f64> = s.iter().zip(bias).map(|(s, b)| s + b).collect();
        let per = self.e / self.groups;
        let sums: Vec<f64> = b.chunks(per).map(|g| best(g, 2).into_iter().map(|i| g[i]).sum()).collect();
        let kept = best(&sums, self.keep);
        for (i, b) in b.iter_mut().enumerate() {
            if !kept.contains(&(i / per)) {
                *b = f64::NEG_INFINITY;
            }
        }
        (best(&b, self.k), s)
    }
    fn weights(&self, s: &[f64], chosen: &[usize]) -> Vec<f64> {
        let sum = if self.normalise { chosen.iter().map(|i| s[*i]).sum() } else { 1.0 };
        chosen.iter().map(|i| s[*i] / sum * self.scale).collect()
    }
    /// dlogits for upstream gradients `up` of the weights.
    fn slope(&self, s: &[f64], chosen: &[usize], up: &[f64]) -> Vec<f64> {
        let sum: f64 = if self.normalise { chosen.iter().map(|i| s[*i]).sum() } else { 1.0 };
        let mean: f64 = chosen.iter().zip(up).map(|(i, d)| d * s[*i] / sum).sum();
        let mut out = vec![0.0; self.e];
        for (i, d) in chosen.iter().zip(up) {
            let ds = self.scale / sum * (d - if self.normalise { mean } else { 0.0 });
            out[*i] += ds * s[*i] * (1.0 - s[*i]);
        }
        out
    }
    fn check(&self, logits: &Tensor, bias: &Tensor) {
        let Gate { e, k, groups, keep, normalise, scale } = *self;
        let call =
            format!("sigmoid_gate(x, bias, {k}, groups: {groups}, keep: {keep}, normalise: {normalise}, scale: {scale:?})");
        let head = format!("use std.moe.sigmoid_gate\ndims N\nmodel m(x: [N, {e}], bias: f32[{e}], up: [N, {k}])");
        let n = logits.data.len() / e;
        let up = Rng(41).tensor(&[n as i64, k as i64]);
        let given = [("x", logits.clone()), ("bias", bias.clone()), ("up", up.clone())];
        let got = eval(&format!("{head} -> (f32[N, {k}], i32[N, {k}], f32[N, {e}]) {{ {call} }}"), &given);
        let text = format!("{head} -> f32[] {{\n let (w, idx, s) = {call}\n sum(w * up, axis: \"all\") }}");
        let slope = grad(&text, &given, &["x", "bias"]);
        let mut want: [Vec<f64>; 4] = [const { Vec::new() }; 4];
        for (row, up) in logits.data.chunks(e).zip(up.data.chunks(k)) {
            let (chosen, s) = self.choose(row, &bias.data);
            want[0].extend(self.weights(&s, &chosen));
            want[3].extend(self.slope(&s, &chosen, up));
            want[1].extend(chosen.into_iter().map(|i| i as f64));
            want[2].extend(s);
        }
        close(&format!("{self:?} experts"), &got[1], &want[1], 0.0);
        close(&format!("{self:?} weights"), &got[0], &want[0], BOUND);
        close(&format!("{self:?} scores"), &got[2], &want[2], BOUND);
        close(&format!("{self:?} dx"), &slope[0], &want[3], BOUND);
        close(&format!("{self:?} dbias"), &slope[1], &vec![0.0; e], 0.0);
    }
}

const GATE: Gate = Gate { e: 12, k: 4, groups: 4, keep: 2, normalise: true, scale: 2.5 };

#[test]
fn the_sigmoid_gate_follows_its_formulas() {
    let mut r = Rng(42);
    for n in [0, 1, 2, 33] {
        let (mut x, b) = (r.tensor(&[n, 12]), r.tensor(&[12]));
        x.data.iter_mut().for_each(|x| *x *= 4.0);
        for gate in [
            GATE,
            Gate { groups: 1, keep: 1, ..GATE },
            Gate { groups: 4, keep: 4, ..GATE },
            Gate { groups: 2, keep: 1, k: 6, normalise: false, ..GATE },
            Gate { groups: 6, keep: 3, k: 1, ..GATE },
        ] {
            gate.check(&x, &b);
        }
    }
}

#[test]
fn a_great_bias_changes_the_choice_and_not_the_weights() {
    let x = Rng(43).tensor(&[9, 12]);
    let mut bias = Tensor::full(DType::F32, &[12], 0.0);
    bias.data[7] = 1e6;
    bias.data[2] = -1e6;
    GATE.check(&x, &bias);
}

#[test]
fn equal_scores_go_to_the_lower_expert() {
    let zero = |shape: &[i64]| Tensor::full(DType::F32, shape, 0.0);
    GATE.check(&zero(&[2, 12]), &zero(&[12]));
    Gate { groups: 1, keep: 1, ..GATE }.check(&zero(&[2, 12]), &zero(&[12]));
}

#[test]
fn scores_that_all_underflow_have_no_nan() {
    let text = "use std.moe.sigmoid_gate\ndims N
        model m(x: [N, 4], bias: f32[4]) -> (f32[N, 2], i32[N, 2], f32[N, 4]) { sigmoid_gate(x, bias, 2) }";
    let given = [("x", Tensor::full(DType::F32, &[1, 4], -1e5)), ("bias", Tensor::full(DType::F32, &[4], 0.0))];
    close("weights", &eval(text, &given)[0], &[0.0, 0.0], 0.0);
}

#[test]
fn the_softmax_gate_follows_its_formulas() {
    let mut r = Rng(44);
    let (mut x, up) = (r.tensor(&[7, 6]), r.tensor(&[7, 3]));
    x.data[..6].fill(0.5);
    for normalise in [true, false] {
        let head = "use std.moe.softmax_gate\ndims N\nmodel m(x: [N, 6], up: [N, 3])";
        let call = format!("softmax_gate(x, 3, normalise: {normalise})");
        let given = [("x", x.clone()), ("up", up.clone())];
        let got = eval(&format!("{head} -> (f32[N, 3], i32[N, 3]) {{ {call} }}"), &given);
        let text = format!("{head} -> f32[] {{\n let (w, idx) = {call}\n sum(w * up, axis: \"all\") }}");
        let slope = grad(&text, &given, &["x"]);
        let (mut w, mut idx, mut dx) = (Vec::new(), Vec::new(), Vec::new());
        for (row, up) in x.data.chunks(6).zip(up.data.chunks(3)) {
            let chosen = best(row, 3);
            // Normalised, it is the softmax over the chosen logits alone.
            let over: Vec<usize> = if normalise { chosen.clone() } else { (0..6).collect() };
            let sum: f64 = over.iter().map(|i| row[*i].exp()).sum();
            let p: Vec<f64> = chosen.iter().map(|i| row[*i].exp() / sum).collect();
            let mean: f64 = p.iter().zip(up).map(|(p, d)| p * d).sum();
            let mut d: Vec<f64> = (0..6).map(|i| if over.contains(&i) { -row[i].exp() / sum * mean } else { 0.0 }).collect();
            chosen.iter().zip(&p).zip(up).for_each(|((i, p), up)| d[*i] += p * up);
            w.extend(p);
            idx.extend(chosen.into_iter().map(|i| i as f64));
            dx.extend(d);
        }
        close("weights", &got[0], &w, BOUND);
        close("experts", &got[1], &idx, 0.0);
        close("dx", &slope[0], &dx, BOUND);
    }
}

/// Experts of f = 2 over d = 3.
struct Experts {
    gate: Tensor,
    up: Tensor,
    down: Tensor,
}

impl Experts {
    fn new(r: &mut Rng, e: i64) -> Experts {
        Experts { gate: r.tensor(&[e, 2, 3]), up: r.tensor(&[e, 2, 3]), down: r.tensor(&[e, 3, 2]) }
    }
    /// The output of expert `e` for `x`; with `dy`, its gradients by x and the three weights are added up.
    fn run(&self, e: usize, x: &[f64], dy: Option<(&[f64], &mut [Vec<f64>; 3])>) -> (Vec<f64>, Vec<f64>) {
        let at = |w: &Tensor, i: usize, n: usize| w.data[e * 6 + i * n..e * 6 + (i + 1) * n].to_vec();
        let times = |w: &[f64], x: &[f64]| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
        let g: Vec<f64> = (0..2).map(|f| times(&at(&self.gate, f, 3), x)).collect();
        let u: Vec<f64> = (0..2).map(|f| times(&at(&self.up, f, 3), x)).collect();
        let a: Vec<f64> = (0..2).map(|f| g[f] * sigmoid(g[f]) * u[f]).collect();
        let y = (0..3).map(|i| times(&at(&self.down, i, 2), &a)).collect();
        let mut dx = vec![0.0; 3];
        if let Some((dy, sums)) = dy {
            for f in 0..2 {
                let da: f64 = (0..3).map(|i| dy[i] * at(&self.down, i, 2)[f]).sum();
                let sg = sigmoid(g[f]);
                let (du, dg) = (da * g[f] * sg, da * u[f] * sg * (1.0 + g[f] * (1.0 - sg)));
                for i in 0..3 {
                    dx[i] += dg * at(&self.gate, f, 3)[i] + du * at(&self.up, f, 3)[i];
                    sums[0][e * 6 + f * 3 + i] += dg * x[i];
                    sums[1][e * 6 + f * 3 + i] += du * x[i];
                    sums[2][e * 6 + i * 2 + f] += dy[i] * a[f];
                }
            }
        }
        (y, dx)
    }
}

#[test]
fn experts_sum_by_weight_whatever_the_routing() {
    let mut r = Rng(45);
    let w = Experts::new(&mut r, 5);
    let random: Vec<i64> = (0..26).map(|_| r.below(5) as i64).collect();
    for (what, idx) in [
        ("random, experts twice in a token", random),
        ("first, middle and last empty", vec![1, 3, 3, 1, 3, 1]),
        ("all to the same", vec![4, 4, 4, 4, 4, 4, 4, 4]),
        ("skipped", vec![-1, 2, -1, -1, 0, -1]),
        ("one token", vec![3, 1]),
        ("no token", vec![]),
    ] {
        let n = idx.len() / 2;
        let (x, weights, up) = (r.tensor(&[n as i64, 3]), r.tensor(&[n as i64, 2]), r.tensor(&[n as i64, 3]));
        let head = "use std.moe.experts\ndims N
            model m(x: [N, 3], w: f32[N, 2], idx: i32[N, 2], g: [5, 2, 3], u: [5, 2, 3], d: [5, 3, 2], up: [N, 3])";
        let given = [
            ("x", x.clone()),
            ("w", weights.clone()),
            ("idx", ints(&[n as i64, 2], &idx)),
            ("g", w.gate.clone()),
            ("u", w.up.clone()),
            ("d", w.down.clone()),
            ("up", up.clone()),
        ];
        let got = eval(&format!("{head} -> [N, 3] {{ experts(x, w, route(idx, 5), g, u, d) }}"), &given);
        let text = format!("{head} -> f32[] {{ sum(experts(x, w, route(idx, 5), g, u, d) * up, axis: \"all\") }}");
        let slope = grad(&text, &given, &["x", "w", "g", "u", "d"]);
        let (mut o, mut dx, mut dw) = (vec![0.0; n * 3], vec![0.0; n * 3], vec![0.0; n * 2]);
        let mut sums = [0, 1, 2].map(|_| vec![0.0; 30]);
        for (at, e) in idx.iter().enumerate().filter(|(_, e)| **e >= 0) {
            let (t, weight) = (at / 2, weights.data[at]);
            let up = &up.data[t * 3..t * 3 + 3];
            let dy: Vec<f64> = up.iter().map(|d| weight * d).collect();
            let (y, d) = w.run(*e as usize, &x.data[t * 3..t * 3 + 3], Some((&dy, &mut sums)));
            for i in 0..3 {
                o[t * 3 + i] += weight * y[i];
                dx[t * 3 + i] += d[i];
                dw[at] += up[i] * y[i];
            }
        }
        close(&format!("{what}: o"), &got[0], &o, BOUND);
        close(&format!("{what}: dx"), &slope[0], &dx, BOUND);
        close(&format!("{what}: dw"), &slope[1], &dw, BOUND);
        for i in 0..3 {
            close(&format!("{what}: weight {i}"), &slope[2 + i], &sums[i], BOUND);
        }
    }
}

/// A layer of 6 experts with `alpha` for balance, and a training that only steps.
fn layer(alpha: f64, dims: &str) -> String {
    format!(
        "use std.moe\ndims {dims}
        fn sgd(p: [..S], g: [..S], lr: f32[]) -> [..S] {{ p - lr * g }}
        model m(x: [B, T, 3]) -> [B, T, 3] {{
          moe(x, n: 6, top: 2, f: 2, shared: 1, groups: 3, keep: 2, scale: 1.5, rate: 0.25, alpha: {alpha:?}) as _
        }}
        train(x: [B, T, 3]) {{ minimize sum(m(x)) with sgd(lr: 0.5) }}"
    )
}

/// The parameters of [`layer`] and its input.
fn parts(r: &mut Rng, shape: &[i64]) -> (Vec<(&'static str, Tensor)>, Experts, Experts) {
    let (w, shared) = (Experts::new(r, 6), Experts::new(r, 1));
    let flat = |t: &Tensor| Tensor { dtype: t.dtype, shape: t.shape[1..].to_vec(), data: t.data.clone() };
    let given = vec![
        ("x", r.tensor(shape)),
        ("gate.weight", r.tensor(&[6, 3])),
        ("gate.e_score_correction_bias", r.tensor(&[6])),
        ("experts.*.gate_proj.weight", w.gate.clone()),
        ("experts.*.up_proj.weight", w.up.clone()),
        ("experts.*.down_proj.weight", w.down.clone()),
        ("shared_experts.gate_proj.weight", flat(&shared.gate)),
        ("shared_experts.up_proj.weight", flat(&shared.up)),
        ("shared_experts.down_proj.weight", flat(&shared.down)),
    ];
    (given, w, shared)
}

const LAYER: Gate = Gate { e: 6, k: 2, groups: 3, keep: 2, normalise: true, scale: 1.5 };

/// The logits of each row of x.
fn logits(given: &Given) -> Vec<Vec<f64>> {
    let row = |x: &[f64]| given[1].1.data.chunks(3).map(|w| w.iter().zip(x).map(|(w, x)| w * x).sum()).collect();
    given[0].1.data.chunks(3).map(row).collect()
}

#[test]
fn a_layer_adds_its_shared_expert() {
    let mut r = Rng(46);
    for shape in [[2, 5, 3], [1, 1, 3], [2, 0, 3]] {
        let (given, w, shared) = parts(&mut r, &shape);
        let got = eval(&layer(0.0, "B, T"), &given);
        let mut want = Vec::new();
        for (x, logits) in given[0].1.data.chunks(3).zip(logits(&given)) {
            let (chosen, s) = LAYER.choose(&logits, &given[2].1.data);
            let mut y = shared.run(0, x, None).0;
            for (e, weight) in chosen.iter().zip(LAYER.weights(&s, &chosen)) {
                y.iter_mut().zip(w.run(*e, x, None).0).for_each(|(y, o)| *y += weight * o);
            }
            want.extend(y);
        }
        close(&format!("{shape:?}"), &got[0], &want, BOUND);
    }
}

#[test]
fn the_bias_moves_by_the_sign_of_the_load() {
    let p = lower_text(&layer(0.0, "B, T")).unwrap_or_else(|e| panic!("{e:#?}"));
    let update = p.module.func("update").expect("a training has an update");
    let (given, ..) = parts(&mut Rng(47), &[1, 1, 3]);
    let bias = given[2].1.data.clone();
    for load in [[4.0, 0.0, 2.0, 2.0, 1.0, 3.0], [2.0; 6], [0.0, 0.0, 0.0, 0.0, 0.0, 1e7]] {
        let args: Vec<Tensor> = update
            .arg_values()
            .map(|(a, _, ty)| match a.role {
                graph::Role::Tally => Tensor::new(DType::F32, &[6], load.to_vec()),
                graph::Role::Scalar => Tensor::full(DType::F32, &[], 1.0),
                graph::Role::Grad => Tensor::full(DType::F32, &ty.eval(&DimEnv::new()).expect("constant"), 0.5),
                _ => given.iter().find(|(n, _)| *n == a.name).expect("a parameter").1.clone(),
            })
            .collect();
        let got = interp::eval(update, &args, &DimEnv::new(), Options::EXACT).unwrap_or_else(|e| panic!("{e}"));
        let out = update.outputs.iter().position(|o| o.role == graph::Role::State).expect("the bias");
        let mean = load.iter().sum::<f64>() / 6.0;
        let step = |c: f64| {
            if c < mean {
                0.25
            } else if c > mean {
                -0.25
            } else {
                0.0
            }
        };
        let want: Vec<f64> = bias.iter().zip(load).map(|(b, c)| b + step(c)).collect();
        close(&format!("{load:?}"), &got[out], &want, 0.0);
    }
}

#[test]
fn load_and_balance_follow_their_formulas() {
    let (alpha, b, t) = (0.125, 2usize, 4usize);
    let p = lower_text(&layer(alpha, "B, T")).unwrap_or_else(|e| panic!("{e:#?}"));
    let loss = p.module.func("loss").expect("a training has a loss");
    let (mut given, ..) = parts(&mut Rng(48), &[b as i64, t as i64, 3]);
    // Weights that sum to 1 exactly, as the run-time gives them; the tokens' own loss is subtracted below.
    given.push(("weights", Tensor::full(DType::F32, &[b as i64, t as i64], 0.125)));
    let without = lower_text(&layer(0.0, "B, T")).unwrap_or_else(|e| panic!("{e:#?}"));
    let run = |func: &Func| {
        let gate = func.args.iter().position(|a| a.name == "gate.weight").expect("the gate");
        let seed = Seed { objective: "loss", remat: Remat::Save };
        let func = autodiff::grad(func, &[gate], seed).unwrap_or_else(|e| panic!("{e}"));
        let (args, dims) = arguments(&func, &given);
        interp::eval(&func, &args, &dims, Options::EXACT).unwrap_or_else(|e| panic!("{e}"))
    };
    let (with, without) = (run(loss), run(without.module.func("loss").expect("a training has a loss")));
    let (mut load, mut total, mut dw) = (vec![0.0; 6], 0.0, vec![0.0; 18]);
    let (rows, x) = (logits(&given), given[0].1.data.clone());
    for sequence in 0..b {
        let (mut f, mut mean) = ([0.0; 6], [0.0; 6]);
        let chosen: Vec<(Vec<usize>, Vec<f64>)> =
            (0..t).map(|i| LAYER.choose(&rows[sequence * t + i], &given[2].1.data)).collect();
        for (chosen, s) in &chosen {
            for e in chosen {
                load[*e] += 1.0;
                f[*e] += 6.0 / (2.0 * t as f64);
            }
            (0..6).for_each(|e| mean[e] += s[e] / s.iter().sum::<f64>() / t as f64);
        }
        total += alpha / b as f64 * f.iter().zip(mean).map(|(f, p)| f * p).sum::<f64>();
        for (i, (_, s)) in chosen.iter().enumerate() {
            let sum: f64 = s.iter().sum();
            let average: f64 = f.iter().zip(s).map(|(f, s)| f * s / sum).sum();
            for e in 0..6 {
                let ds = alpha / (t * b) as f64 * (f[e] - average) / sum;
                let dlogit = ds * s[e] * (1.0 - s[e]);
                (0..3).for_each(|c| dw[e * 3 + c] += dlogit * x[(sequence * t + i) * 3 + c]);
            }
        }
    }
    let tally = loss.outputs.iter().position(|o| o.role == graph::Role::Tally).expect("the load");
    close("load", &with[tally], &load, 0.0);
    // Σ weights is 1, so the penalty is whole.
    close("penalty", &with[0], &[without[0].data[0] + total], BOUND);
    let rest: Vec<f64> = without[without.len() - 1].data.iter().zip(dw).map(|(a, b)| a + b).collect();
    close("gradient", &with[with.len() - 1], &rest, BOUND);
}

#[test]
fn the_softmax_layer_follows_its_formulas() {
    let mut r = Rng(49);
    let (w, gate, x) = (Experts::new(&mut r, 4), r.tensor(&[4, 3]), r.tensor(&[1, 6, 3]));
    let text = "use std.moe.softmax_moe\ndims B, T
        model m(x: [B, T, 3]) -> [B, T, 3] { softmax_moe(x, n: 4, top: 2, f: 2) as _ }";
    let given = [
        ("x", x.clone()),
        ("gate.weight", gate.clone()),
        ("experts.*.gate_proj.weight", w.gate.clone()),
        ("experts.*.up_proj.weight", w.up.clone()),
        ("experts.*.down_proj.weight", w.down.clone()),
    ];
    let mut want = Vec::new();
    for x in x.data.chunks(3) {
        let logits: Vec<f64> = gate.data.chunks(3).map(|w| w.iter().zip(x).map(|(w, x)| w * x).sum()).collect();
        let chosen = best(&logits, 2);
        let sum: f64 = chosen.iter().map(|i| logits[*i].exp()).sum();
        let mut y = vec![0.0; 3];
        for e in chosen {
            y.iter_mut().zip(w.run(e, x, None).0).for_each(|(y, o)| *y += logits[e].exp() / sum * o);
        }
        want.extend(y);
    }
    close("softmax_moe", &eval(text, &given)[0], &want, BOUND);
}
