//! Norms, activations, losses, positions, the optimiser.

use super::*;

const DIMS: &str = "dims B, T\nconfig { d = 6, v = 5 }\n";

#[test]
fn softmax_and_its_logarithm_are_normalised_without_overflow() {
    let text = format!(
        "use std.softmax.{{softmax, log_softmax}}\n{DIMS}
        model m(x: [B, d]) -> ([B, d], [B, d]) {{ (softmax(x), log_softmax(x)) }}"
    );
    let mut x = Rng(1).tensor(&[4, 6]);
    x.data[0..6].iter_mut().for_each(|x| *x += 1e4);
    x.data[7] = -1e4;
    let got = eval(&text, &[("x", x.clone())]);
    let mut want = Vec::new();
    for row in x.data.chunks(6) {
        let max = row.iter().copied().fold(f64::MIN, f64::max);
        let sum: f64 = row.iter().map(|x| (x - max).exp()).sum();
        want.extend(row.iter().map(|x| (x - max).exp() / sum));
    }
    close("softmax", &got[0], &want, BOUND);
    for (row, log) in x.data.chunks(6).zip(got[1].data.chunks(6)) {
        for (i, l) in log.iter().enumerate() {
            // −log Σ exp(xⱼ − xᵢ), which does not overflow for these rows but to infinity where the answer is beyond e^700.
            let sum: f64 = row.iter().map(|x| (x - row[i]).exp()).sum();
            assert!((l + sum.ln()).abs() < 1e-9 || (sum.is_infinite() && *l < -700.0), "{l} {sum}");
        }
    }
}

#[test]
fn norms_follow_their_formulas() {
    let text = format!(
        "use std.rmsnorm.rmsnorm_with\nuse std.layernorm.layernorm_with\n{DIMS}
        model m(x: [B, T, d], w: [d], b: [d]) -> ([B, T, d], [B, T, d]) {{
          (rmsnorm_with(x, w, eps: 1e-3), layernorm_with(x, w, b, eps: 1e-3))
        }}"
    );
    let mut r = Rng(2);
    let (mut x, w, b) = (r.tensor(&[2, 3, 6]), r.tensor(&[6]), r.tensor(&[6]));
    x.data[0..6].fill(0.0);
    let got = eval(&text, &[("x", x.clone()), ("w", w.clone()), ("b", b.clone())]);
    let (mut rms, mut layer) = (Vec::new(), Vec::new());
    for row in x.data.chunks(6) {
        let square = row.iter().map(|x| x * x).sum::<f64>() / 6.0;
        let mean = row.iter().sum::<f64>() / 6.0;
        let var = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 6.0;
        for i in 0..6 {
            rms.push(row[i] / (square + 1e-3).sqrt() * w.data[i]);
            layer.push((row[i] - mean) / (var + 1e-3).sqrt() * w.data[i] + b.data[i]);
        }
    }
    close("rmsnorm", &got[0], &rms, BOUND);
    close("layernorm", &got[1], &layer, BOUND);
}

#[test]
fn norms_of_bf16_have_their_means_in_f32() {
    // A mean rounded to bf16 scales the whole row by up to 1 + 2⁻⁹, as the published models do not.
    for (call, sums) in [("rmsnorm_with(x, w)", 1), ("layernorm_with(x, w, w)", 2)] {
        let text = format!(
            "use std.rmsnorm.rmsnorm_with\nuse std.layernorm.layernorm_with\ndims B
            precision {{ storage = bf16, compute = bf16, accumulate = f32 }}
            model m(x: [B, 64], w: [64]) -> [B, 64] {{ {call} }}"
        );
        let p = lower_text(&text).unwrap_or_else(|e| panic!("{e:#?}"));
        let func = p.module.func("forward").expect("a model has a forward");
        let reduced = func.nodes.values().filter(|n| matches!(n.op, graph::Op::Reduce(..)));
        let types: Vec<String> = reduced.map(|n| n.types[0].to_string()).collect();
        assert_eq!(types, vec!["f32[B]"; sums], "{call}");
    }
}

#[test]
fn cross_entropy_is_zero_for_a_target_outside() {
    let text = format!(
        "use std.cross_entropy\n{DIMS}
        model m(x: [B, T, v], y: i32[B, T]) -> f32[B, T] {{ cross_entropy(x, y) }}"
    );
    let total = format!(
        "use std.cross_entropy\n{DIMS}
        model m(x: [B, T, v], y: i32[B, T]) -> f32[] {{ sum(cross_entropy(x, y), axis: \"all\") }}"
    );
    let x = Rng(3).tensor(&[2, 3, 5]);
    let y = [0i64, 4, -1, 5, 2, 1 << 20];
    let given = [("x", x.clone()), ("y", ints(&[2, 3], &y))];
    let (got, dx) = (eval(&text, &given), grad(&total, &given, &["x"]));
    let (mut loss, mut slope) = (Vec::new(), Vec::new());
    for (row, y) in x.data.chunks(5).zip(y) {
        let sum: f64 = row.iter().map(|x| x.exp()).sum();
        let inside = (0..5).contains(&y);
        loss.push(if inside { sum.ln() - row[y as usize] } else { 0.0 });
        slope.extend((0..5).map(|i| if inside { row[i].exp() / sum - f64::from(u8::from(i as i64 == y)) } else { 0.0 }));
    }
    close("loss", &got[0], &loss, BOUND);
    close("gradient", &dx[0], &slope, BOUND);
}

#[test]
fn embed_linear_and_swiglu_follow_their_formulas() {
    let text = format!(
        "use std.embed\nuse std.linear\nuse std.swiglu.swiglu_with\n{DIMS}
        model m(t: i32[B], table: [v, d], w1: [v, d], w2: [v, d], w3: [d, v]) -> ([B, d], [B, v], [B, d]) {{
          let x = embed(t, table)
          (x, linear(x, w1), swiglu_with(x, w1, w2, w3))
        }}"
    );
    let mut r = Rng(4);
    let (table, w1, w2, w3) = (r.tensor(&[5, 6]), r.tensor(&[5, 6]), r.tensor(&[5, 6]), r.tensor(&[6, 5]));
    let tokens = [4i64, 0, 5, -1];
    let given =
        [("t", ints(&[4], &tokens)), ("table", table.clone()), ("w1", w1.clone()), ("w2", w2.clone()), ("w3", w3.clone())];
    let got = eval(&text, &given);
    let (mut rows, mut lin, mut glu) = (Vec::new(), Vec::new(), Vec::new());
    for t in tokens {
        let x: Vec<f64> = (0..6).map(|i| if (0..5).contains(&t) { table.data[t as usize * 6 + i] } else { 0.0 }).collect();
        let times = |w: &Tensor, o: usize| (0..6).map(|i| x[i] * w.data[o * 6 + i]).sum::<f64>();
        lin.extend((0..5).map(|o| times(&w1, o)));
        let a: Vec<f64> = (0..5).map(|o| times(&w1, o) / (1.0 + (-times(&w1, o)).exp()) * times(&w2, o)).collect();
        glu.extend((0..6).map(|o| (0..5).map(|f| a[f] * w3.data[o * 5 + f]).sum::<f64>()));
        rows.extend(x);
    }
    close("embed", &got[0], &rows, 0.0);
    close("linear", &got[1], &lin, BOUND);
    close("swiglu", &got[2], &glu, BOUND);
}

#[test]
fn rope_rotates_as_the_published_code_does() {
    let text = "use std.rope.{rope, rope_interleaved}\ndims B, T
        model m(x: [B, T, 2, 6]) -> ([B, T, 2, 6], [B, T, 2, 6]) { (rope(x, theta: 500.0), rope_interleaved(x, theta: 500.0)) }";
    let (b, t, h, d) = (2usize, 7usize, 2usize, 6usize);
    let x = Rng(5).tensor(&[2, 7, 2, 6]);
    let got = eval(text, &[("x", x.clone())]);
    // inv_freq[i] = theta^(−2i/d), emb = (freqs, freqs), x·cos + rotate_half(x)·sin with rotate_half = (−second half, first half).
    let apply = |x: &[f64], t: usize| -> Vec<f64> {
        (0..d)
            .map(|i| {
                let angle = t as f64 * 500f64.powf(-2.0 * (i % (d / 2)) as f64 / d as f64);
                let turned = if i < d / 2 { -x[i + d / 2] } else { x[i - d / 2] };
                x[i] * angle.cos() + turned * angle.sin()
            })
            .collect()
    };
    let (mut plain, mut sides) = (Vec::new(), Vec::new());
    for row in 0..b * t * h {
        let at = (row / h) % t;
        let x = &x.data[row * d..(row + 1) * d];
        plain.extend(apply(x, at));
        // view(d / 2, 2) as complex numbers, transposed, then as above, and back.
        let apart: Vec<f64> = (0..d).map(|i| x[2 * (i % (d / 2)) + i / (d / 2)]).collect();
        let turned = apply(&apart, at);
        sides.extend((0..d).map(|i| turned[i / 2 + i % 2 * (d / 2)]));
    }
    close("rope", &got[0], &plain, BOUND);
    close("rope_interleaved", &got[1], &sides, BOUND);
}

/// Frequencies as `transformers.modeling_rope_utils` computes them (4.57): `_compute_yarn_parameters`, `_compute_llama3_parameters`, `_compute_linear_scaling_…`.
#[test]
fn frequencies_are_scaled_as_the_published_code_does() {
    use std::f64::consts::PI;
    let freq = |half: usize, theta: f64| (0..half).map(move |i| theta.powf(-(i as f64) / half as f64));
    let yarn = |half: usize, theta: f64, factor: f64, original: f64, [fast, slow]: [f64; 2]| -> Vec<f64> {
        let dim = 2.0 * half as f64;
        let correction = |turns: f64| dim * (original / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
        let (low, mut high) = (correction(fast).floor().max(0.0), correction(slow).ceil().min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        let of = |(i, f): (usize, f64)| {
            let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            f / factor * ramp + f * (1.0 - ramp)
        };
        freq(half, theta).enumerate().map(of).collect()
    };
    let llama3 = |half: usize, theta: f64, factor: f64, original: f64, [high, low]: [f64; 2]| -> Vec<f64> {
        let of = |f: f64| {
            let wavelength = 2.0 * PI / f;
            if wavelength < original / high {
                return f;
            } else if wavelength > original / low {
                return f / factor;
            }
            let smooth = (original / wavelength - low) / (high - low);
            (1.0 - smooth) * f / factor + smooth * f
        };
        freq(half, theta).map(of).collect()
    };
    // DeepSeek-V3 and Qwen3 with 131,072 positions; a ramp of no width, and one that is cut; Llama 3.1 and 3.2.
    let text = "use std.rope.{rope_freq, rope, rope_by, yarn_scale}\ndims T
        model m(x: [1, T, 1, 8]) -> (f32[32], f32[64], f32[4], f32[8], f32[64], f32[32], f32[8], f32[1], [1, T, 1, 8], [1, T, 1, 8]) {
          (rope_freq(32, kind: \"yarn\", factor: 40.0), rope_freq(64, theta: 1e6, kind: \"yarn\", factor: 4.0, original: 32768),
            rope_freq(4, kind: \"yarn\", factor: 2.0, original: 64, fast: 1.0, slow: 1.0),
            rope_freq(8, theta: 4.0, kind: \"yarn\", factor: 8.0, original: 512, fast: 100.0, slow: 1.0),
            rope_freq(64, theta: 500000.0, kind: \"llama3\", factor: 8.0, original: 8192, fast: 4.0, slow: 1.0),
            rope_freq(32, theta: 500000.0, kind: \"llama3\", factor: 32.0, original: 8192, fast: 4.0, slow: 1.0),
            rope_freq(8, kind: \"linear\", factor: 2.5), full([1], yarn_scale(\"yarn\", 40.0) * yarn_scale(\"linear\", 40.0), f32),
            rope(x), rope_by(x * yarn_scale(\"yarn\", 1.0), iota(T), rope_freq(4)))
        }";
    let got = eval(text, &[("x", Rng(3).tensor(&[1, 5, 1, 8]))]);
    let linear: Vec<f64> = freq(8, 1e4).map(|f| f / 2.5).collect();
    let want = [
        ("yarn of DeepSeek-V3", yarn(32, 1e4, 40.0, 4096.0, [32.0, 1.0])),
        ("yarn of Qwen3", yarn(64, 1e6, 4.0, 32768.0, [32.0, 1.0])),
        ("a ramp of no width", yarn(4, 1e4, 2.0, 64.0, [1.0, 1.0])),
        ("a ramp that is cut", yarn(8, 4.0, 8.0, 512.0, [100.0, 1.0])),
        ("llama 3.1", llama3(64, 5e5, 8.0, 8192.0, [4.0, 1.0])),
        ("llama 3.2", llama3(32, 5e5, 32.0, 8192.0, [4.0, 1.0])),
        ("linear", linear),
        ("the factor", vec![0.1 * 40f64.ln() + 1.0]),
    ];
    for ((what, want), got) in want.iter().zip(&got) {
        close(what, got, want, BOUND);
    }
    assert_eq!(got[8].data, got[9].data);
}

#[test]
fn adamw_takes_the_steps_of_the_algorithm() {
    let text = "use std.adamw\ndims N
        model o(p: [N], g: [N], m: [N], v: [N], t: f32[], lr: f32[]) -> ([N], [N], [N]) {
          adamw(p, g, m, v, t, lr, beta1: 0.8, beta2: 0.9, eps: 1e-3, decay: 0.25)
        }";
    let mut r = Rng(6);
    let n = 5usize;
    let zero = || Tensor::full(DType::F32, &[5], 0.0);
    let (mut p, mut m, mut v) = (r.tensor(&[5]), zero(), zero());
    let (mut want_p, mut want_m, mut want_v) = (p.data.clone(), vec![0.0; n], vec![0.0; n]);
    for t in 1..=4 {
        let (g, lr) = (r.tensor(&[5]), 0.125);
        let scalar = |x: f64| Tensor::full(DType::F32, &[], x);
        let given = [("p", p), ("g", g.clone()), ("m", m), ("v", v), ("t", scalar(f64::from(t))), ("lr", scalar(lr))];
        let got = eval(text, &given);
        for i in 0..n {
            want_m[i] = 0.8 * want_m[i] + 0.2 * g.data[i];
            want_v[i] = 0.9 * want_v[i] + 0.1 * g.data[i] * g.data[i];
            let (mh, vh) = (want_m[i] / (1.0 - 0.8f64.powi(t)), want_v[i] / (1.0 - 0.9f64.powi(t)));
            want_p[i] -= lr * (mh / (vh.sqrt() + 1e-3) + 0.25 * want_p[i]);
        }
        close("p", &got[0], &want_p, BOUND);
        close("m", &got[1], &want_m, BOUND);
        close("v", &got[2], &want_v, BOUND);
        [p, m, v] = got.try_into().expect("three results");
    }
}

#[test]
fn gradients_pass_straight_through_rounding_to_fp8() {
    let text = "use std.fp8.round_fp8\ndims B
        model m(x: [B, 6], w: [B, 6]) -> f32[] { sum(round_fp8(x, size: 3) * w, axis: \"all\") }";
    let mut r = Rng(9);
    let (x, w) = (r.tensor(&[2, 6]), r.tensor(&[2, 6]));
    let given = [("x", x), ("w", w.clone())];
    close("gradient", &grad(text, &given, &["x"])[0], &w.data, BOUND);
}
