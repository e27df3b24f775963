use crate::{ast::*, parse};
use base::{Diags, Sources};

fn errors(text: &str) -> Vec<String> {
    let mut sources = Sources::default();
    let file = sources.add("t.lode", text);
    let mut diags = Diags::new();
    parse(file, text, &mut diags);
    diags
        .into_sorted()
        .iter()
        .map(|e| format!("{} {} @{}", e.error.code().expect("a code"), e.error, sources.line_col(e.span).0))
        .collect()
}

fn tree(text: &str) -> File {
    let mut sources = Sources::default();
    let file = sources.add("t.lode", text);
    let mut diags = Diags::new();
    let tree = parse(file, text, &mut diags);
    let all: Vec<String> = diags.into_sorted().iter().map(|e| e.error.to_string()).collect();
    assert!(all.is_empty(), "{all:?}");
    tree
}

const MODEL: &str = r#"
use std.{embed, rmsnorm}
use std.moe
dims B, T
config { vocab = 256, d = 128
  layers = 4, }
precision { storage = f32, compute = bf16 }
/// A block.
block attention(x: [B, T, d], scale: float = 0.5) -> [B, T, d] {
  let q = rope(rearrange(x @ param wq: [d, heads * dh] = normal(0.02), "b t (h k) -> b t h k", h: heads))
  let (a, b) = topk(q, 4)
  let y = x
    + q
  (a, b) = (b, a)
  if heads > 2 { y = y[.., 0:3, new, :] } else { y = -y }
  state bias: f32[4] = zeros
  tally load: f32[4] = count(r)
  penalty 0.1 * sum(y)
  after step { bias = bias + 0.001 * sign(mean(load) - load) }
  attention(y, scale: 1e-3) as self_attn
}
model strata(tokens: i32[B, T]) -> [B, T, vocab] {
  let x = embed(tokens, param model.table: [vocab, d])
  repeat layers as model.layers {
    x = x + attention(rmsnorm(x))
  }
  rmsnorm(x) @ table^T
}
train(tokens: i32[B, T], targets: i32[B, T]) {
  minimize cross_entropy(strata(tokens), targets)
  with adamw(lr: 3e-3, beta1: 0.9)
  set batch = 8, seq = 256
}
"#;

#[test]
fn a_model_parses() {
    let t = tree(MODEL);
    assert_eq!(t.items.len(), 8);
    let ItemKind::Func(f) = &t.items[5].kind else { panic!("a block") };
    assert_eq!(t.items[5].doc.as_deref(), Some("A block."));
    assert_eq!(f.body.stmts.len(), 9);
    assert!(f.body.value.is_some());
}

#[test]
fn one_missing_bracket_is_one_error() {
    for bracket in ["}\nmodel", "}\n  rmsnorm", ")\n  let (a", "]\n  let x"] {
        let broken = MODEL.replacen(bracket, &bracket[1..], 1);
        if broken != MODEL {
            assert_eq!(errors(&broken).len(), 1, "{bracket:?}: {:?}", errors(&broken));
        }
    }
    let closed = MODEL.replacen("let q = rope(", "let q = rope", 1);
    assert!(errors(&closed).iter().any(|e| e.starts_with("E0103")), "{:?}", errors(&closed));
}

#[test]
fn errors_of_separate_statements_are_all_told() {
    let text = "fn f(x: [d]) -> [d] {\n  let = 3\n  let y = x +\n  let z = 4\n  y y\n  z\n}\nfn g( -> [d] { }\n";
    let e = errors(text);
    assert!(e.len() >= 3, "{e:?}");
    assert!(e.iter().any(|m| m.ends_with("@2")) && e.iter().any(|m| m.ends_with("@5")), "{e:?}");
}

const SOUP: &[u8] = b"(){}[]:;=+-*/@<>|&.,\"'^T\\aB1 \n\xc3\xa4";

#[test]
fn no_input_panics() {
    let mut state = 1u64;
    let mut next = |n: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % n
    };
    let words: Vec<&str> = MODEL.split_inclusive([' ', '\n', '(', ')', '[', ']', '{', '}', ',']).collect();
    for _ in 0..1500 {
        let text: String = (0..next(40)).map(|_| words[next(words.len())]).collect();
        errors(&text);
        let bytes: Vec<u8> = (0..next(60)).map(|_| SOUP[next(SOUP.len())]).collect();
        errors(&String::from_utf8_lossy(&bytes));
    }
    errors(&"(".repeat(100_000));
    errors(&format!("fn f() -> [] {{ {} }}", "-".repeat(100_000)));
    errors(&format!("fn f() -> [] {{ {} 1 }}", "1 + ".repeat(100_000)));
    errors(&format!("fn f() -> [] {{ x {} }}", "^T ".repeat(100_000)));
    errors(&MODEL.repeat(40).replace('x', "{"));
}

#[test]
fn precedence_is_as_documented() {
    let shape = |text: &str| {
        let t = tree(&format!("fn f() -> [] {{ {text} }}"));
        let ItemKind::Func(f) = &t.items[0].kind else { panic!("a function") };
        fn show(e: &Expr) -> String {
            match &e.kind {
                ExprKind::Name(n) => n.clone(),
                ExprKind::Int(n) => n.to_string(),
                ExprKind::Binary(op, a, b) => format!("({} {op:?} {})", show(a), show(b)),
                ExprKind::Unary(op, a) => format!("({op:?} {})", show(a)),
                ExprKind::Transpose(a) => format!("{}^T", show(a)),
                ExprKind::Param(d) => format!("param {}", d.path.parts[0].node),
                other => format!("{other:?}"),
            }
        }
        show(f.body.value.as_ref().expect("a value"))
    };
    assert_eq!(shape("a + b * c @ d^T"), "(a Add (b Mul (c MatMul d^T)))");
    assert_eq!(shape("not a < b and c or d"), "(((Not (a Lt b)) And c) Or d)");
    assert_eq!(shape("a & b | c & d"), "((a BitAnd b) BitOr (c BitAnd d))");
    assert_eq!(shape("-a @ param w: [d] = normal(1.0) + b"), "(((Neg a) MatMul param w) Add b)");
    assert_eq!(shape("a - b - 1"), "((a Sub b) Sub 1)");
}

#[test]
fn formatting_keeps_tokens_and_is_idempotent() {
    let mut sources = Sources::default();
    let file = sources.add("t.lode", MODEL);
    let messy = MODEL.replace("  ", "      ").replace(" = ", "=").replace(", ", " ,").replace("\n\n", "\n\n\n\n") + "// end";
    let mut diags = Diags::new();
    let once = crate::format(file, &messy, &mut diags).expect("it parses");
    let twice = crate::format(file, &once, &mut diags).expect("it parses");
    assert_eq!(once, twice);
    let words = |t: &str| crate::lex(file, t, &mut Diags::new()).into_iter().map(|t| t.1).collect::<Vec<_>>();
    assert_eq!(words(&messy), words(&once));
    assert!(
        once.contains(
            "  let q = rope(rearrange(x @ param wq: [d, heads * dh] = normal(0.02), \"b t (h k) -> b t h k\", h: heads))\n"
        ),
        "{once}"
    );
    assert!(once.contains("y[.., 0:3, new, :]") && once.ends_with("// end\n"), "{once}");
}
