//! Files that do not parse: what follows from a mistake of syntax is not told, and all else is.

use super::{mistakes::check, *};
use std::{collections::BTreeSet, fs, path::Path};

fn model(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models").join(name).join("model.lode");
    fs::read_to_string(path).expect("the model is part of the source")
}

/// Whatever sign is forgotten: if that is a mistake of syntax, it is the only one that is told.
#[test]
fn a_forgotten_sign_is_one_error() {
    let mut tried = 0;
    for name in ["strata", "deepseek_v3"] {
        let text = model(name);
        for (i, c) in text.char_indices().filter(|(_, c)| "{}()[],=:@".contains(*c)) {
            let broken = format!("{}{}", &text[..i], &text[i + 1..]);
            let mut sources = Sources::default();
            let root = sources.add("t.lode", &broken);
            let mut diags = Diags::new();
            syntax::parse(root, &broken, &mut diags);
            if diags.is_empty() {
                continue;
            }
            let told = errors(&broken);
            let line = text[..i].lines().count();
            assert!(told.len() == 1, "{name}, line {line} without '{c}': {told:#?}");
            tried += 1;
        }
    }
    assert!(tried > 300, "{tried}");
}

#[test]
fn functions_beside_a_broken_one_are_checked() {
    check(
        "dims B
config { d = 4 }
block broken(x: [B, d]) -> [B, d] {
  let y = x +
  let z = q
//^^^ E0101 unexpected keyword 'let'
  y @ param w: [3, d]
}
fn sound(x: [B, d]) -> [B, d] { x + z }
//                                  ^ E0201 no name is called 'z'
fn sgd(p: [..S], g: [..S], lr: f32[]) -> [..S] { p - lr * g }
model m(x: [B, d]) -> [B, d] {
  let y = broken(x + u)
//                   ^ E0201 no name is called 'u'
  let z = y @ param w: [3, d]
  v
//^ E0201 no name is called 'v'
}
train(x: [B, d]) {
  minimize sum(m(broken(x)))
  with sgd(lr: 0.1)
  set batch = 0
//            ^ E0209 setting 'batch': 0
}",
    );
    // Neither the model nor the objective's own mistakes are of the same piece.
    check(
        "dims B
fn sgd(p: [..S], g: [..S], lr: f32[]) -> [..S] { p - lr * g }
model m(x: [B, 4]) -> [B, 4] { x x }
//                               ^ E0101 unexpected name 'x'
train(x: [B, 4]) { minimize sum(m(x) + z)  with sgd(lr: 0.1) }
//                                     ^ E0201 no name is called 'z'",
    );
    check(
        "dims B
fn f(x: [..S],, y: [..S]) -> [..S] { x }
//            ^ E0101 unexpected ','
model m(x: [B, 4]) -> [B, 4] { f(x, z) + g(x) }
//                                  ^ E0201 no name is called 'z'",
    );
    check(
        "dims B
fn f(x: [..S]) -> [..S] { x + y }
//                            ^ E0201 no name is called 'y'
model m(x: [B, 4] -> [B, 4] { f(x) }
//     ^ E0102 this '(' is not closed",
    );
    check(
        "dims B
model m(x: [B, 4]) -> [B, 4] { x + y }
//                                 ^ E0201 no name is called 'y'
train(x: [B, 4]) { minimize with sgd(lr: 0.1) }
//                          ^^^^ E0101 unexpected keyword 'with'",
    );
}

#[test]
fn names_that_may_be_missing_are_not_missed() {
    // Config values, dims, used names, the model: whatever the broken item was to define.
    check(
        "dims B
config { d = 4, e = , f = 8 }
//                  ^ E0101 unexpected ','
model m(x: [B, d]) -> [B, f] { x @ param w: [d, f + e] }",
    );
    check(
        "use std.{rmsnorm, }}
//                 ^ E0103 nothing is open for this '}'
dims B
model m(x: [B, 4]) -> [B, 4] { rmsnorm(swiglu(x, 3)) }",
    );
    check(
        "dims B T
//     ^ E0101 unexpected name 'T'
model m(x: [B, T, 4]) -> [B, T, 4] { iota(T) }",
    );
    let told = errors("dims B\nmodle m(x: [B, 4]) -> [B, 4] { x }");
    assert_eq!(told, ["2:1 E0101 unexpected name 'modle'"]);
}

#[test]
fn nothing_follows_from_a_used_file_that_is_broken() {
    let lib = "fn good(x: [..S]) -> [..S] { x }\nfn bad(x: [..S]) -> [..S] { x + }\nconfig { a = }\n";
    let text = "use lib.{good, bad, missing}\ndims B\nmodel m(x: [B]) -> [B] { missing(bad(good(x))) + y }\n";
    let mut sources = Sources::default();
    let root = sources.add("t.lode", text);
    let mut diags = Diags::new();
    let mut load = |path: &str| (path == "lib.lode").then(|| lib.to_string());
    assert!(lower(root, &mut sources, &mut load, &Overrides::default(), &mut diags).is_none());
    let told: Vec<String> = diags
        .into_sorted()
        .iter()
        .map(|e| format!("{}:{} {}", sources.get(e.span.file).name, sources.line_col(e.span).0, e.error))
        .collect();
    assert_eq!(told, ["lib.lode:2 unexpected '}'", "lib.lode:3 unexpected '}'"]);
}

#[test]
fn every_mistake_of_syntax_has_its_place() {
    check(
        "dims B
model m(x: [B, 4]) -> [B, 4] {
  let y = exp((x + 1.0)
//           ^ E0102 this '(' is not closed
  y
}",
    );
    check(
        "dims B
fn a(x: [B]) -> [B] { exp(x)) }
//                          ^ E0103 nothing is open for this ')' to close
fn b(x: [B]) -> [B] { x * 99999999999999999999 }
//                        ^^^^^^^^^^^^^^^^^^^^ E0104
fn c(x: [B]) -> [B] { x * 2d }
//                        ^^ E0104
fn d(x: [B]) -> [B] { rearrange(x, \"b -> b) }
//                                 ^^^^^^^^^^ E0105
fn e(x: [B]) -> [B] { x ? x }
//                      ^ E0106 the character '?' has no meaning here
fn f(x: [B]) -> [B] { concat(axis: 0, x) }
//                                    ^ E0108 a positional argument after a named one
fn g(x: [B]) -> [B] { let state = x; x }
//                        ^^^^^ E0109 'state' is a reserved word
fn h(x: [B]) -> [B] { rearrange(x, \"b\\t-> b\") }
//                                   ^^ E0110 '\\t' is not an escape
model m(x: [B]) -> [B] { x }",
    );
    let deep = "(".repeat(300);
    let marks = format!("//{}^ E0107 levels of nesting: more than 256", " ".repeat(276 - 2));
    check(&format!("dims B\nfn f(x: [B]) -> [B] {{ {deep}x{} }}\n{marks}\nmodel m(x: [B]) -> [B] {{ x }}", ")".repeat(300)));
}

#[test]
fn modules_dtypes_patterns_and_messages_have_their_places() {
    check(
        "use std.{rmsnrom}
//       ^^^^^^^ E0206 cannot use std/rmsnrom.lode
use lib.layers.{mine}
//              ^^^^ E0206 cannot use lib/layers.lode
dims B
fn half(x: [..S], of: int) -> [..S] { if of % 2 == 1 { error(\"half takes an even number\") } else { x } }
//                                                     ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ E0308 half takes an even number
model m(x: [B, 4]) -> [B, 4] {
  let a = x + iota(4)
//        ^ E0305 f32[B, 4] and i32[4] do not mix
  let b = rearrange(x, \"b (h k) -> b h k\")
//                     ^^^^^^^^^^^^^^^^^^ E0307 the pattern does not fit
  half(x, of: 7)
}",
    );
}

/// Each code of E01 to E03 stands under a caret of some test.
#[test]
fn every_code_has_a_caret() {
    let codes = |source: &str, before: &str| -> BTreeSet<String> {
        source.split(before).skip(1).map(|rest| rest.chars().take(4).collect()).collect()
    };
    let sources = [include_str!("../error.rs"), include_str!("../../../syntax/src/error.rs")];
    let all: BTreeSet<String> = sources.iter().flat_map(|s| codes(s, "code(E")).collect();
    let tests = [include_str!("broken.rs"), include_str!("mistakes.rs")];
    let seen: BTreeSet<String> = tests.iter().flat_map(|s| codes(s, "^ E")).collect();
    assert_eq!(all.difference(&seen).collect::<Vec<_>>(), Vec::<&String>::new());
}
