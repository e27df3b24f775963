//! The entry points of training against numbers worked out by hand.

use super::*;
use graph::Role;

const MODEL: &str = "dims B
config { d = 2 }
block layer(x: [B, d], rate: float) -> [B, d] {
  state s: [d] = zeros
  tally c: [d] = sum(x, axis: 0)
  penalty 0.5 * sum(sum(param w: [d, d] = zeros))
  after step {
    let old = s
    s = s + rate * c
    if rate > 0.0 { s = s + old }
  }
  repeat 2 as inner {
    state n: [] = zeros
    tally k: [] = sum(sum(x))
    after step { n = n + k }
    x = x + x
  }
  x @ w
}
model m(x: [B, d]) -> [B, d] {
  let y = x
  repeat 3 as layers { y = y + layer(y, 0.25) }
  y + param b: [d] = zeros
}
fn heavy(p: [..S], g: [..S], v: [..S], lr: f32[], t: f32[], decay: float = 0.0, mass: float = 0.5) -> ([..S], [..S]) {
  let v = mass * v + g
  (p - lr * (v + decay * p) * t, v)
}
train(x: [B, d], y: [B, d]) {
  let e = m(x) - y
  minimize sum(e * e)
  with heavy(lr: 0.1, decay: 0.5)
}";

fn tensor(shape: &[i64], data: &[f64]) -> Tensor {
    Tensor::new(DType::F32, shape, data.to_vec())
}

/// The outputs of an entry point by role and name.
fn outputs(entry: &str, given: &[(Role, &str, Tensor)]) -> Vec<(Role, String, Tensor)> {
    let p = lower_text(MODEL).unwrap_or_else(|e| panic!("{e:#?}"));
    assert!(graph::verify::verify(&p.module).is_empty());
    let func = p.module.func(entry).unwrap_or_else(|| panic!("no {entry}"));
    let find = |a: &graph::ir::Arg| {
        let found = given.iter().find(|(r, n, _)| *r == a.role && *n == a.name);
        found.unwrap_or_else(|| panic!("no {:?} {}", a.role, a.name)).2.clone()
    };
    let args: Vec<Tensor> = func.args.iter().map(find).collect();
    let shapes: Vec<&[i64]> = args.iter().map(|t| &t.shape[..]).collect();
    let dims = interp::bind_dims(func, &shapes).unwrap_or_else(|e| panic!("{e}"));
    let values = interp::eval(func, &args, &dims, Options::EXACT).unwrap_or_else(|e| panic!("{e}"));
    func.outputs.iter().zip(values).map(|(o, v)| (o.role, o.name.clone(), v)).collect()
}

#[track_caller]
fn is(got: &[(Role, String, Tensor)], role: Role, name: &str, shape: &[i64], want: &[f64]) {
    let found = got.iter().find(|(r, n, _)| *r == role && n == name).unwrap_or_else(|| panic!("no {role:?} {name}"));
    assert_eq!(found.2.shape, shape, "{name}");
    close(name, &found.2, want, BOUND);
}

#[test]
fn the_loss_weighs_tokens_and_adds_penalties_by_their_share() {
    // With w = 0 the layers add nothing: y = x + b; e = x + b − y.
    let w = tensor(&[3, 2, 2], &[0.0; 12]);
    let given = |w: Tensor| {
        [
            (Role::Param, "layers.*.layer.w", w),
            (Role::Param, "b", tensor(&[2], &[1.0, -1.0])),
            (Role::State, "layers.*.layer.s", tensor(&[3, 2], &[0.0; 6])),
            (Role::State, "layers.*.layer.inner.*.n", tensor(&[3, 2], &[0.0; 6])),
            (Role::Input, "x", tensor(&[2, 2], &[1.0, 2.0, 3.0, 4.0])),
            (Role::Input, "y", tensor(&[2, 2], &[0.0, 0.0, 0.0, 1.0])),
            (Role::Input, "weights", tensor(&[2], &[0.5, 2.0])),
        ]
    };
    // e = (2, 1), (4, 2): losses 5 and 20.
    let got = outputs("loss", &given(w));
    is(&got, Role::Scalar, "loss", &[], &[0.5 * 5.0 + 2.0 * 20.0]);
    is(&got, Role::Tally, "layers.*.layer.c", &[3, 2], &[4.0, 6.0, 4.0, 6.0, 4.0, 6.0]);
    // The sum of x, then of 2x, in each of three layers.
    is(&got, Role::Tally, "layers.*.layer.inner.*.k", &[3, 2], &[10.0, 20.0, 10.0, 20.0, 10.0, 20.0]);
    // The last layer's w = [[1, 0], [0, 0]]: it adds 4x₀ to the first axis; e = (6, 1), (16, 2). Its penalty is ½·1, by Σw = 2.5.
    let mut last = [0.0; 12];
    last[8] = 1.0;
    let got = outputs("loss", &given(tensor(&[3, 2, 2], &last)));
    is(&got, Role::Scalar, "loss", &[], &[0.5 * 37.0 + 2.0 * 260.0 + 0.5 * 2.5]);
}

#[test]
fn the_update_clips_decays_and_runs_what_is_after_the_step() {
    let w: Vec<f64> = (0..12).map(f64::from).collect();
    let g: Vec<f64> = (0..12).map(|i| f64::from(i % 3)).collect();
    let v = vec![2.0; 12];
    for clip in [0.0, 1.0, 100.0] {
        let given = [
            (Role::Param, "layers.*.layer.w", tensor(&[3, 2, 2], &w)),
            (Role::Param, "b", tensor(&[2], &[1.0, -1.0])),
            (Role::State, "layers.*.layer.s", tensor(&[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])),
            (Role::State, "layers.*.layer.inner.*.n", tensor(&[3, 2], &[0.0, 1.0, 0.0, 2.0, 0.0, 3.0])),
            (Role::Grad, "layers.*.layer.w", tensor(&[3, 2, 2], &g)),
            (Role::Grad, "b", tensor(&[2], &[4.0, 0.0])),
            (Role::Tally, "layers.*.layer.c", tensor(&[3, 2], &[4.0, 8.0, 4.0, 8.0, 4.0, 8.0])),
            (Role::Tally, "layers.*.layer.inner.*.k", tensor(&[3, 2], &[1.0, 1.0, 2.0, 2.0, 3.0, 3.0])),
            (Role::Moment, "layers.*.layer.w#0", tensor(&[3, 2, 2], &v)),
            (Role::Moment, "b#0", tensor(&[2], &[0.0, 1.0])),
            (Role::Scalar, "lr", tensor(&[], &[0.125])),
            (Role::Scalar, "step", tensor(&[], &[2.0])),
            (Role::Scalar, "clip", tensor(&[], &[clip])),
            (Role::Scalar, "grad_norm", tensor(&[], &[6.0])),
        ];
        // Four each of 0, 1, 2, in each of three layers 0 1 2 0, 1 2 0 1, 2 0 1 2; and one 4.
        let sums = outputs("norm", &given);
        is(&sums, Role::Result, "layers.*.layer.w", &[3], &[5.0, 6.0, 9.0]);
        is(&sums, Role::Result, "b", &[], &[16.0]);
        let got = outputs("update", &given);
        let norm = (5.0 + 6.0 + 9.0 + 16.0f64).sqrt();
        let factor = if clip > 0.0 { (clip / (norm + 1e-6)).min(1.0) } else { 1.0 };
        let moment: Vec<f64> = g.iter().map(|g| 1.0 + factor * g).collect();
        let next: Vec<f64> = w.iter().zip(&moment).map(|(w, v)| w - 0.25 * (v + 0.5 * w)).collect();
        is(&got, Role::Moment, "layers.*.layer.w#0", &[3, 2, 2], &moment);
        is(&got, Role::Param, "layers.*.layer.w", &[3, 2, 2], &next);
        // Of rank 1: no decay.
        is(&got, Role::Moment, "b#0", &[2], &[4.0 * factor, 0.5]);
        is(&got, Role::Param, "b", &[2], &[1.0 - factor, -1.125]);
        // s + ¼c, and the old s once more.
        is(&got, Role::State, "layers.*.layer.s", &[3, 2], &[3.0, 6.0, 7.0, 10.0, 11.0, 14.0]);
        is(&got, Role::State, "layers.*.layer.inner.*.n", &[3, 2], &[1.0, 2.0, 2.0, 4.0, 3.0, 6.0]);
    }
}

#[test]
fn a_loop_carries_keeps_and_stacks() {
    // Fibonacci, with an outer tensor as it is in every turn, and a loop inside a branch of another.
    let text = "dims B
        model m(x: [B], one: [B]) -> ([B], [B]) {
          let (a, b) = (x, x)
          let n = one - one
          repeat 4 as layers {
            let c = a + b
            (a, b) = (b, c)
            if true { repeat 2 as inner { n = n + one } }
          }
          (b, n)
        }";
    let got = eval(text, &[("x", tensor(&[2], &[1.0, 10.0])), ("one", tensor(&[2], &[1.0, 1.0]))]);
    close("b", &got[0], &[8.0, 80.0], 0.0);
    close("n", &got[1], &[8.0, 8.0], 0.0);
}

#[test]
fn a_domain_tensor_without_a_batch_is_for_all_of_it() {
    let text = |e: &str| {
        format!(
            "dims B, T, S\nmodel m(q: [B, T, 1, 2], k: [B, S, 1, 2], e: i32[S], f: i32[B, S]) -> [B, T, 1, 2] {{
              attend(q, k, k, ends_at({e}), scale: 1.0)
            }}"
        )
    };
    let mut r = Rng(8);
    let given = [
        ("q", r.tensor(&[2, 3, 1, 2])),
        ("k", r.tensor(&[2, 2, 1, 2])),
        ("e", ints(&[2], &[0, 2])),
        ("f", ints(&[2, 2], &[0, 2, 0, 2])),
    ];
    assert_eq!(eval(&text("e"), &given), eval(&text("f"), &given));
}
