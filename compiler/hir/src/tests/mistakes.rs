//! Mistakes by their place: a caret line under the source states span and code, and the start of the message.

use super::*;

/// The text without its caret lines, and what they say: line, first column, width, rest.
fn split(text: &str) -> (String, Vec<(usize, usize, usize, String)>) {
    let (mut source, mut want, mut number) = (String::new(), Vec::new(), 0);
    for line in text.lines() {
        let marks = line.trim_start().strip_prefix("//").map(str::trim_start).filter(|m| m.starts_with('^'));
        match marks {
            Some(marks) => {
                let width = marks.chars().take_while(|c| *c == '^').count();
                let column = line.chars().count() - marks.chars().count() + 1;
                want.push((number, column, width, marks[width..].trim().to_string()));
            }
            None => {
                source.push_str(line);
                source.push('\n');
                number += 1;
            }
        }
    }
    (source, want)
}

/// Fails unless exactly the marked mistakes are found, in order.
#[track_caller]
pub(super) fn check(text: &str) {
    let (source, want) = split(text);
    let mut sources = Sources::default();
    let root = sources.add("t.lode", &source);
    let mut diags = Diags::new();
    let program = lower(root, &mut sources, &mut |_| None, &Overrides::default(), &mut diags);
    let got: Vec<(usize, usize, usize, String)> = diags
        .into_sorted()
        .iter()
        .map(|e| {
            let (line, column) = sources.line_col(e.span);
            let message = format!("{} {}", e.error.code().expect("a code"), e.error);
            (line, column, sources.text(e.span).chars().count(), message)
        })
        .collect();
    let agree = got.len() == want.len()
        && got.iter().zip(&want).all(|(g, w)| (g.0, g.1, g.2) == (w.0, w.1, w.2) && g.3.starts_with(w.3.as_str()));
    assert!(agree, "wanted {want:#?}\ngot {got:#?}");
    assert_eq!(program.is_none(), !want.is_empty());
}

#[test]
fn states_change_only_after_a_step() {
    check(
        "dims B
block f(x: [B, 4]) -> [B, 4] {
  state s: [4] = zeros
  tally c: [4] = sum(x, axis: 0)
  after step {
    if true { s = s + c }
    c = s
//  ^ E0204 an assignment to 'c' cannot stand here
    param w: [4]
//        ^ E0204 param cannot stand here
  }
  x
}
model m(x: [B, 4]) -> [B, 4] { f(x) }
fn sgd(p: [..S], g: [..S], lr: f32[]) -> [..S] { p - lr * g }
train(x: [B, 4]) { minimize sum(m(x))  with sgd(lr: 0.1) }",
    );
}

#[test]
fn states_do_not_change_in_a_forward_pass() {
    check(
        "dims B
block f(x: [B, 4]) -> [B, 4] {
  state s: [4] = zeros
  s = s + 1.0
//^ E0204 an assignment to the state 's' cannot stand here
  repeat 2 as layers { s = s + 1.0 }
//                     ^ E0204 an assignment to the state 's'
  x
}
model m(x: [B, 4]) -> [B, 4] { f(x) }",
    );
}

#[test]
fn only_tensors_are_carried_through_a_loop() {
    check(
        "dims B
model m(x: [B, 4]) -> [B, 4] {
  let i = 1
  let y = x
  repeat 3 as layers {
    let z = if true { y = y + x; y } else { x }
    i = i + 1
//  ^ E0204 the assignment of an int in a `repeat`
  }
  y
}",
    );
}

#[test]
fn instance_names_belong_to_blocks() {
    check(
        "dims B
fn f(x: [..S]) -> [..S] { x }
block g(x: [B, 4]) -> [B, 4] { x + param w: [4] }
model m(x: [B, 4]) -> [B, 4] {
  let a = f(x) as one
//                ^^^ E0204 an instance name
  let b = exp(x) as two
//                  ^^^ E0204 an instance name
  g(x) as heads.*
//              ^ E0204 a `*`
}",
    );
}

#[test]
fn declarations_have_one_name_and_constant_extents() {
    check(
        "dims B
block f(x: [B, 4]) -> [B, 4] {
  tally c: [4] = sum(x, axis: 0)
  tally c: [4] = sum(x, axis: 0)
//      ^ E0205 two parameters have the name f.c
  tally e: [B] = sum(x)
//      ^ E0303 the extent B of tally f.e
  let w = param w.*.*.*: [4, 4]
//              ^^^^^^^ E0204 a name with 3 `*` of a tensor of rank 2
  let i = param i: i32[4]
//                 ^^^^^^ E0302 a parameter is i32[4], not a tensor of floats
  x
}
model m(x: [B, 4], x: [B]) -> [B, 4] { f(x) }
//                 ^ E0202 'x' is defined twice",
    );
}

#[test]
fn generic_names_are_bound_by_arguments_alone() {
    check(
        "dims B
fn f(x: [..S, n]) -> [..S, k] { x }
//                         ^ E0201 no name is called 'k'
model m(x: [B, 4]) -> [B, 4] {
  let y: [B, q] = x
//           ^ E0201 no name is called 'q'
  f(x)
}",
    );
}

#[test]
fn recursion_is_refused_without_running_it() {
    check(
        "dims B
fn f(x: [B]) -> [B] { g(x) + g(x) }
//                    ^^^^ E0203 g calls itself
//                           ^^^^ E0203 g calls itself
fn g(x: [B]) -> [B] { f(x) + f(x) }
//                    ^^^^ E0203 f calls itself
//                           ^^^^ E0203 f calls itself
model m(x: [B]) -> [B] { x }",
    );
}

#[test]
fn definitions_are_checked_as_far_as_they_can_be() {
    // Nothing is known to be wrong: extents may divide, floats may compare, the branch may not be taken.
    check(
        "dims B
precision { compute = bf16 }
fn heads_of(x: [..S, c], h: int) -> [..S, h, c / h] { rearrange(x, \"... (h k) -> ... h k\", h: h) }
fn halves(x: [b, c]) -> [b, c] { concat(x[:, c / 2:c], x[:, 0:c / 2]) }
fn scaled(x: [..S], a: float) -> [..S] { if a > 1.0 { x } else { error(\"too small\") } }
fn seen(q: [b, t, h, k], kv: [b, s, g, k]) -> [b, t, h, k] { attend(q, kv, kv, causal(), scale: 1.0 / sqrt(k)) }
fn mixed(x: [..S], lr: f32[]) -> [..S] { x * lr }
block gated(x: [..S, c], f: int) -> [..S, c] { (x @ param up: [c, f]) @ param down: [f, c] }
model m(x: [B]) -> [B] { x }",
    );
    check(
        "dims B
block gated(x: [..S, c], f: int) -> [..S, c] { (x @ param up: [c, f]) @ param down: [c, f] }
//                                             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ E0301 cannot multiply [S.0, S.1, f] by [c, f]
fn add(x: [a], y: [b]) -> [a] { x + y }
//                              ^ E0304 f32[a] and f32[b] do not broadcast
model m(x: [B]) -> [B] { x }",
    );
}

#[test]
fn a_mistake_in_a_function_is_told_once() {
    check(
        "dims B
fn f(x: [n], y: [k]) -> [n] { x + y }
//                            ^ E0304 f32[4] and f32[3] do not broadcast
model m(x: [4], y: [3]) -> [4] { f(x, y) }",
    );
}

#[test]
fn settings_the_optimiser_and_the_model_are_told_in_one_run() {
    check(
        "dims B
model m(x: [B, 4]) -> [B, 4] { x @ y }
//                                 ^ E0201 no name is called 'y'
fn sgd(p: [..S], g: [..S], lr: f32[]) -> [..S] { p - lr * q }
//                                                        ^ E0201 no name is called 'q'
train(x: [B, 4], weights: [B]) {
//               ^^^^^^^ E0202 'weights' is defined twice
  minimize sum(m(x)) + z
//                     ^ E0201 no name is called 'z'
  with sgd(lr: 0.1)
  set batch = 0, sqe = 4, steps = 2.5
//            ^ E0209 setting 'batch': 0 is not a whole number from 1
//               ^^^ E0201 no setting is called 'sqe'
//                                ^^^ E0209 setting 'steps': 2.5
}",
    );
}

#[test]
fn what_a_pipeline_says_is_checked() {
    check(
        "dims B
config { p = 4 }
pipeline { ranks = p / 2, schedule = dualpip, micro_batches = 0, layout = 3, depth = 2, ranks = 3 }
//                                   ^^^^^^^ E0209 setting 'schedule': there is no schedule 'dualpip'
//                                                            ^ E0209 setting 'micro_batches': it is 0
//                                                                        ^ E0209 setting 'layout': it is 3, not a text
//                                                                           ^^^^^ E0201 no pipeline entry is called 'depth'
//                                                                                      ^^^^^ E0209 setting 'ranks': it is said twice
model m(x: [B]) -> [B] { x }",
    );
    check(
        "dims B
pipeline { ranks = 4, schedule = \"1f1b\", micro_batches = 20, replicas = 4, expert_parallel = 2, layout = \"Et|tt|tt|tL\" }
model m(x: [B]) -> [B] { x }",
    );
}

#[test]
fn numbers_and_indices_out_of_range_are_told() {
    check(
        "dims B
precision { compute = i32 }
//                    ^^^ E0208 compute in i32
config { a = 9223372036854775807 + 1, b = 4 / 0, n = -3, big = 9223372036854775807 }
//           ^^^^^^^^^^^^^^^^^^^^^^^ E0207 config 'a'
//                                        ^^^^^ E0207 config 'b'
model m(x: f32[B, 4]) -> f32[B, 4] {
  let a = x[.., .., 0]
//        ^^^^^^^^^^^^ E0306 index: 1 indices and more than one `..`
  let b = iota(n)
//        ^^^^^^^ E0306 iota: an extent of -3
  let c = zeros([n])
//        ^^^^^^^^^^ E0203 zeros gets a negative extent
  let d = 3 / 0
//        ^^^^^ E0306 /: of the int 3 by the int 0
  let e = route(cast(x, i32), big)
//        ^^^^^^^^^^^^^^^^^^^^^^^^ E0203 route routes to
  repeat n as layers { x = x }
//       ^ E0306 repeat: -3 turns
  let f = if 3 { x } else { x }
//           ^ E0203 if does not take the int 3
  let g = param g: [n, 4]
//                  ^ E0306 type: an extent of -3
  let h = big * big + big
  x
}",
    );
}

#[test]
fn the_types_of_both_operands_are_shown_where_they_are_written() {
    let text = "dims B\nmodel m(x: [B, 4], y: [3]) -> [B, 4] { x + y }";
    let mut sources = Sources::default();
    let root = sources.add("t.lode", text);
    let mut diags = Diags::new();
    assert!(lower(root, &mut sources, &mut |_| None, &Overrides::default(), &mut diags).is_none());
    let entries = diags.into_sorted();
    let related: Vec<(&str, &str)> = entries[0].related.iter().map(|(s, t)| (sources.text(*s), t.as_str())).collect();
    assert_eq!(related, [("[B, 4]", "this is f32[B, 4]"), ("[3]", "this is f32[3]")]);
}

#[test]
fn blocks_have_elements_and_scales_fit() {
    check(
        "dims B, T
model m(x: [B, 300], i: i32[B, 4], s: f32[B, 2]) -> f32[B, 300] {
  let (a, b) = quantize(x, size: 0)
//             ^^^^^^^^^^^^^^^^^^^^ E0306 quantize: blocks of 0 elements of f32[B, 300]
  let (c, d) = quantize(i)
//             ^^^^^^^^^^^ E0306 quantize: blocks of 128 elements of i32[B, 4]
  let (e, f) = quantize(x, size: T)
//             ^^^^^^^^^^^^^^^^^^^^ E0303 'size' of quantize
  let (codes, scales) = quantize(x, size: 128)
  let y = dequantize(codes, s)
//        ^^^^^^^^^^^^^^^^^^^^ E0306 dequantize: the shape of the scales is [B, 2], not [B, 3]
  let z = dequantize(x, scales)
//        ^^^^^^^^^^^^^^^^^^^^^ E0306 dequantize: the value of the codes is f32[B, 300], not e4m3
  dequantize(codes, scales)
}
",
    );
}
