//! Elaboration: what is declared, what is refused and where.

use super::*;
use graph::Role;

#[test]
fn a_model_with_loops_has_stacked_parameters() {
    let p = ok("block f(x: [B, T, d]) -> [B, T, d] { x @ param w: [d, d] }
        model m(x: [B, T, d]) -> [B, T, d] { let y = x; repeat n as layers { y = y + f(y) }; repeat 2 as layers { y = f(y) }; y @ param out: [d, d] = zeros }");
    let names: Vec<String> = p.module.params.iter().map(|p| format!("{} {}", p.name, p.ty)).collect();
    assert_eq!(names, ["layers.*.f.w f32[3, 8, 8]", "layers.*+3.f.w f32[2, 8, 8]", "out f32[8, 8]"]);
    assert_eq!(p.module.funcs[0].name, "forward");
}

#[test]
fn generic_functions_bind_leading_axes_and_extents() {
    ok("fn norm(x: [..S, m], eps: float = 1e-5) -> [..S, m] { x * rsqrt(mean(x * x, keep: true) + eps) }
        model m(x: [B, T, d]) -> [B, T, h, k] { rearrange(norm(x), \"b t (h k) -> b t h k\", h: h) }");
}

#[test]
fn attention_and_routing_elaborate() {
    ok("block moe(x: [m, d]) -> [m, d] {
          let scores = sigmoid(x @ param wr: [d, n])
          let (w, idx) = topk(scores, 2)
          let r = route(idx, n)
          state bias: f32[n] = zeros
          tally load: f32[n] = cast(count(r), f32)
          after step { bias = bias + 0.001 * sign(mean(load) - load) }
          penalty 0.1 * mean(sum(scores))
          let y = grouped(dispatch(x, r), param w1: [n, d, d], r)
          contract(\"m k d, m k -> m d\", collect(y, r), w)
        }
        fn adam(p: [..S], g: [..S], m: [..S], t: f32[], lr: f32[], beta: float, decay: float) -> ([..S], [..S]) {
          let m2 = beta * m + (1.0 - beta) * g
          (p - lr * (m2 + decay * p), m2)
        }
        model m(x: [B, T, d]) -> [B, T, d] {
          let q = rearrange(x, \"b t (h k) -> b t h k\", h: h)
          let o = attend(q, q, q, causal() & window(5) | blocks(cast(zeros([B, T, h, 2]), i32), 4), scale: 0.5)
          let y = rearrange(o, \"b t h k -> b t (h k)\")
          repeat 2 as layers { y = y + rearrange(moe(rearrange(y, \"b t d -> (b t) d\")), \"(b t) d -> b t d\", b: B) }
          y
        }
        train(x: [B, T, d], y: [B, T, d]) {
          let e = m(x) - y
          minimize sum(e * e)
          with adam(lr: 0.1, beta: 0.9, decay: 0.1)
          set batch = 4
        }");
}

#[test]
fn train_entries_have_the_roles_the_run_time_needs() {
    let p = ok("fn sgd(p: [..S], g: [..S], lr: f32[]) -> [..S] { p - lr * g }
        model m(x: [B, d]) -> [B, d] { x @ param w: [d, d] }
        train(x: [B, d]) { minimize sum(m(x))  with sgd(lr: 0.5) }");
    let update = p.module.func("update").expect("update");
    let roles: Vec<(Role, &str)> = update.args.iter().map(|a| (a.role, a.name.as_str())).collect();
    assert_eq!(
        roles,
        [
            (Role::Param, "w"),
            (Role::Grad, "w"),
            (Role::Scalar, "lr"),
            (Role::Scalar, "step"),
            (Role::Scalar, "clip"),
            (Role::Scalar, "grad_norm")
        ]
    );
    assert_eq!(p.settings["lr"], 0.5);
}

#[test]
fn mistakes_have_codes_places_and_shapes() {
    for (text, want) in [
        ("model m(x: [B, d]) -> [B, d] {\n x @ param w: [n, d] }", "4:2 E0301 cannot multiply [B, 8] by [3, 8]"),
        ("model m(x: [B, d]) -> [B, d] {\n y }", "4:2 E0201 no name is called 'y'"),
        ("model m(x: [B, d]) -> [B, d] {\n sigmod(x) }", "4:2 E0201 no function is called 'sigmod'"),
        ("model m(x: [B, d]) -> [B, n] {\n x }", "4:2 E0302 an extent of the result of m is 8, not n = 3"),
        ("model m(x: [B, d]) -> [B, d] {\n x + iota(d) }", "4:2 E0305 f32[B, 8] and i32[8] do not mix"),
        ("model m(x: [B, d]) -> [B, d] {\n x + zeros([n]) }", "4:2 E0304 f32[B, 8] and f32[3] do not broadcast"),
        (
            "model m(x: [B, d]) -> [B, d] {\n if B > 2 { x } else { x } }",
            "4:5 E0303 what is compared has to be known at compile time",
        ),
        (
            "fn f(x: [B, d]) -> [B, d] { x @ param w: [d, d] }\nmodel m(x: [B, d]) -> [B, d] {\n x }",
            "3:39 E0204 param cannot stand here",
        ),
        (
            "model m(x: [B, d]) -> [B, d] {\n let y = x @ param w: [d, d]\n y @ param w: [d, d] }",
            "5:12 E0205 two parameters have the name w",
        ),
        ("use std.{nope}\nmodel m(x: [B, d]) -> [B, d] {\n x }", "3:10 E0206 cannot use std/nope.lode: there is no such module"),
        (
            "model m(x: [B, d]) -> [B, d] {\n rearrange(x, \"b (h -> b h\") }",
            "4:15 E0307 the pattern does not fit: a parenthesis is not closed",
        ),
        (
            "fn f(x: [..S, q]) -> [..S, q] { x @ zeros([d, d]) }\nmodel m(x: [B, d]) -> [B, d] {\n x }",
            "3:33 E0301 cannot multiply [S.0, S.1, q] by [8, 8]",
        ),
    ] {
        let got = errors(&format!("{HEAD}{text}"));
        assert!(got.first().is_some_and(|g| g.starts_with(want)), "{want}\n{got:#?}");
        assert_eq!(got.len(), 1, "{got:#?}");
    }
}

#[test]
fn all_mistakes_of_a_file_are_told_once() {
    let got = errors(&format!(
        "{HEAD}model m(x: [B, d]) -> [B, d] {{\n let a = y\n let b = z + a\n let c = x @ zeros([n, n])\n b + c }}"
    ));
    assert_eq!(got.len(), 3, "{got:#?}");
}

#[test]
fn the_models_elaborate() {
    for (name, text) in [
        ("strata", include_str!("../../../../models/strata/model.lode")),
        ("llama", include_str!("../../../../models/llama/model.lode")),
        ("qwen3_moe", include_str!("../../../../models/qwen3_moe/model.lode")),
        ("deepseek_v3", include_str!("../../../../models/deepseek_v3/model.lode")),
    ] {
        let p = lower_text(text).unwrap_or_else(|e| panic!("{name}: {e:#?}"));
        let violations = graph::verify::verify(&p.module);
        assert!(violations.is_empty(), "{name}: {violations:?}");
    }
}
