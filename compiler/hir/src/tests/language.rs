//! What `docs/language.md` says of operators and built-in functions, by example.

use super::*;

#[test]
fn functions_do_what_the_reference_says() {
    let x = Tensor::new(DType::F32, &[2, 3], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let i = ints(&[2, 3], &[0, 2, -1, 7, 1, 1]);
    for (ty, value, want) in [
        ("[B]", "sum(x)", "f32[2] 6 15"),
        ("[T]", "mean(x, axis: 0)", "f32[3] 2.5 3.5 4.5"),
        ("[]", "max(x, axis: \"all\")", "f32[] 6"),
        ("[]", "prod(x, axis: [0, -1])", "f32[] 720"),
        ("[B, 1]", "min(x, keep: true)", "f32[2, 1] 1 4"),
        ("[B, T]", "max(x, 3.5)", "f32[2, 3] 3.5 3.5 3.5 4 5 6"),
        ("i32[B, T]", "i / 2", "i32[2, 3] 0 1 -1 3 0 0"),
        ("i32[B, T]", "i % 3", "i32[2, 3] 0 2 2 1 1 1"),
        ("[B, T]", "cast(i, f32)", "f32[2, 3] 0 2 -1 7 1 1"),
        ("[B, T]", "cast(i, x)", "f32[2, 3] 0 2 -1 7 1 1"),
        ("bool[B, T]", "i == 1 or not x < 3.0", "bool[2, 3] 0 0 1 1 1 1"),
        ("[B, T]", "x * (T / 2)", "f32[2, 3] 1 2 3 4 5 6"),
        ("[B, T]", "where(x > 2.0, x, -1.0 / 0.0)", "f32[2, 3] -inf -inf 3 4 5 6"),
        ("[B, T]", "-x + 2.0 * x", "f32[2, 3] 1 2 3 4 5 6"),
        ("[T, B]", "x^T", "f32[3, 2] 1 4 2 5 3 6"),
        ("[B, B]", "x @ x^T", "f32[2, 2] 14 32 32 77"),
        ("[B]", "x[:, -1]", "f32[2] 3 6"),
        ("[B, 2]", "x[.., 0:3:2]", "f32[2, 2] 1 3 4 6"),
        ("[B, T - 1]", "x[:, :-1]", "f32[2, 2] 1 2 4 5"),
        ("[1, B, T]", "x[new]", "f32[1, 2, 3] 1 2 3 4 5 6"),
        ("[B, T, T]", "take(x, i)", "f32[2, 3, 3] 1 2 3 0 0 0 0 0 0 0 0 0 4 5 6 4 5 6"),
        ("[B, T]", "take_along(x, i)", "f32[2, 3] 1 3 0 0 5 5"),
        ("[B, 2]", "put_along(i, x, 2)", "f32[2, 2] 1 0 0 11"),
        ("[2]", "scatter_add(i, x, 2)", "f32[2] 1 11"),
        ("[B, T]", "cumsum(x, exclusive: true)", "f32[2, 3] 0 1 3 0 4 9"),
        ("[B, T]", "cumsum(x, axis: 0, reverse: true)", "f32[2, 3] 5 7 9 4 5 6"),
        ("[B, T, 2]", "one_hot(i, 2)", "f32[2, 3, 2] 1 0 0 0 0 0 0 0 0 1 0 1"),
        ("[2]", "full([2], 0.5)", "f32[2] 0.5 0.5"),
        ("i32[2]", "zeros([2], i32)", "i32[2] 0 0"),
        ("bf16[1]", "full([1], 1.0, bf16)", "bf16[1] 1"),
        ("[B, T]", "pad(x[:, 1:], before: 1, value: 9)", "f32[2, 3] 9 2 3 9 5 6"),
        ("[2 * B, T]", "concat(x, x, axis: 0)[0:2 * B]", "f32[4, 3] 1 2 3 4 5 6 1 2 3 4 5 6"),
        ("[B, 1, T]", "rearrange(x, \"b t -> b 1 t\")", "f32[2, 1, 3] 1 2 3 4 5 6"),
        ("[T, T]", "contract(\"b t, b s -> t s\", x, x)", "f32[3, 3] 17 22 27 22 29 36 27 36 45"),
        ("[B, T]", "if len([1, 2]) == 2 { x } else { i }", "f32[2, 3] 1 2 3 4 5 6"),
        ("[B, T]", "x + i", "refused"),
        ("[B, T]", "i", "refused"),
    ] {
        let text = format!("dims B, T\nmodel m(x: [B, T], i: i32[B, T]) -> {ty} {{\n  {value}\n}}");
        match (lower_text(&text), want) {
            (Err(_), "refused") => {}
            (Err(e), _) => panic!("{value}: {e:#?}"),
            (Ok(_), _) => assert_eq!(format!("{:?}", eval(&text, &[("x", x.clone()), ("i", i.clone())])[0]), want, "{value}"),
        }
    }
}

#[test]
fn topk_is_best_first_and_has_minus_one_where_too_few_are_left() {
    let text = "dims B\nmodel m(x: [B, 4]) -> ([B, 4], i32[B, 4]) { topk(where(x < 0.0, -1.0 / 0.0, x), 4) }";
    let got = eval(text, &[("x", Tensor::new(DType::F32, &[1, 4], vec![1.0, 2.0, -1.0, 2.0]))]);
    assert_eq!(format!("{got:?}"), "[f32[1, 4] 2 2 1 0, i32[1, 4] 1 3 0 -1]");
}

#[test]
fn every_domain_shows_the_keys_the_reference_says() {
    // Keys all alike, so that the output is the mean of the values seen; powers of two, whose sum tells the set.
    let base = "dims T\nmodel m(q: [1, T, 1, 1], k: [1, 5, 1, 1], v: [1, 5, 1, 1], a: i32[1, T], b: i32[1, 5], idx: i32[1, T, 1, 2]) -> [1, T, 1, 1]";
    let given = [
        ("q", Tensor::full(DType::F32, &[1, 3, 1, 1], 0.0)),
        ("k", Tensor::full(DType::F32, &[1, 5, 1, 1], 0.0)),
        ("v", Tensor::new(DType::F32, &[1, 5, 1, 1], vec![1.0, 2.0, 4.0, 8.0, 16.0])),
        ("a", ints(&[1, 3], &[1, 0, 7])),
        ("b", ints(&[1, 5], &[0, 1, 1, 0, 2])),
        ("idx", ints(&[1, 3, 1, 2], &[0, 2, -1, 1, -1, -1])),
    ];
    // Positions of the three queries are 2, 3, 4; their rows 0, 1, 2.
    for (domain, want) in [
        ("full()", [0b11111, 0b11111, 0b11111]),
        ("causal()", [0b00111, 0b01111, 0b11111]),
        ("causal() & window(2)", [0b00110, 0b01100, 0b11000]),
        ("window(2)", [0b11110, 0b11100, 0b11000]),
        ("prefix(1)", [1, 1, 1]),
        ("causal() & (window(1) | prefix(2))", [0b00111, 0b01011, 0b10011]),
        ("ends_before(2, 1)", [0, 0b00001, 0b00011]),
        ("ends_at(b)", [0b01001, 0b01111, 0b11111]),
        ("segments(a, b)", [0b00110, 0b01001, 0]),
        ("blocks(idx, 2)", [0b10011, 0b01100, 0]),
        ("groups(idx, b)", [0b11001, 0b00110, 0]),
        ("tokens(idx)", [0b00101, 0b00010, 0]),
        ("tokens(idx) | window(1)", [0b11101, 0b11010, 0b10000]),
    ] {
        let text = format!("{base} {{ attend(q, k, v, {domain}, scale: 1.0) }}");
        let mean = |set: i32| if set == 0 { 0.0 } else { f64::from(set) / f64::from(set.count_ones()) };
        close(domain, &eval(&text, &given)[0], &want.map(mean), BOUND);
    }
}

#[test]
fn blocks_have_codes_and_scales() {
    let text = "dims B\nmodel m(x: [B, 5]) -> (e4m3[B, 5], f32[B, 3], f32[B, 5], f32[B, 1]) {
      let (codes, scales) = quantize(x, 2)
      let (all, one) = quantize(x)
      (codes, scales, dequantize(codes, scales, size: 2), one)
    }";
    let x = Tensor::new(DType::F32, &[1, 5], vec![448.0, 17.0, 0.0, 0.0, -896.0]);
    // Numbers are exact here: codes are not rounded.
    let want = "[e4m3[1, 5] 448 17 0 0 -448, f32[1, 3] 1 0 2, f32[1, 5] 448 17 0 0 -896, f32[1, 1] 2]";
    assert_eq!(format!("{:?}", eval(text, &[("x", x)])), want);
}
