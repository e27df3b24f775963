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

/// The errors of `text` are these: code and message, and the line.
#[track_caller]
fn check(text: &str, want: &[&str]) {
    assert_eq!(errors(text), want, "{text}");
}

/// The names of the functions that the tree of `text` has, broken or not.
fn functions(text: &str) -> Vec<String> {
    let file = Sources::default().add("t.lode", text);
    let items = parse(file, text, &mut Diags::new()).items;
    items.into_iter().filter_map(|i| if let ItemKind::Func(f) = i.kind { Some(f.name.node) } else { None }).collect()
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
pipeline { ranks = 4, schedule = dualpipe, layout = "Et|tt|tt|tL" }
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
    assert_eq!(t.items.len(), 9);
    let ItemKind::Func(f) = &t.items[6].kind else { panic!("a block") };
    assert_eq!(t.items[6].doc.as_deref(), Some("A block."));
    assert_eq!(f.body.stmts.len(), 9);
    assert!(f.body.value.is_some());
}

#[test]
fn one_missing_brace_is_one_error() {
    for (i, _) in MODEL.match_indices('}') {
        let broken = format!("{}{}", &MODEL[..i], &MODEL[i + 1..]);
        let e = errors(&broken);
        assert!(e.len() == 1 && e[0].starts_with("E0102 this '{' is not closed"), "{e:?}\n{broken}");
        assert_eq!(functions(&broken), ["attention", "strata"]);
    }
}

#[test]
fn one_missing_bracket_is_told_in_its_item() {
    let in_string = |i: usize| MODEL[..i].matches('"').count() % 2 == 1;
    for (i, c) in MODEL.char_indices().filter(|(i, c)| "()[]{".contains(*c) && !in_string(*i)) {
        let broken = format!("{}{}", &MODEL[..i], &MODEL[i + 1..]);
        let e = errors(&broken);
        assert!((1..=2).contains(&e.len()), "{c} {e:?}\n{broken}");
        assert!(!functions(&broken).is_empty(), "{broken}");
    }
}

#[test]
fn the_forgotten_brace_is_found_by_its_indentation() {
    let text = "fn f(x: [d]) -> [d] {\n  repeat 3 {\n    x = x + 1\n  x\n}\n\nfn g(x: [d]) -> [d] {\n  x\n}\n";
    check(text, &["E0102 this '{' is not closed @2"]);
    assert_eq!(functions(text), ["f", "g"]);
    check("fn f() -> [] {\n  let x = (1 + 2\n  let y = 3\n  x\n}\n", &["E0102 this '(' is not closed @2"]);
    check("config {\n  a = 1,\ndims B\n", &["E0102 this '{' is not closed @1"]);
    check("fn f() -> [] {\n  1\n}\n}\nfn g() -> [] {\n  2\n}\n", &["E0103 nothing is open for this '}' to close @4"]);
    check("fn f() -> [] {\n  g(1))\n}\n", &["E0103 nothing is open for this ')' to close @2"]);
}

#[test]
fn errors_of_separate_statements_are_all_told() {
    check(
        "fn f(x: [d]) -> [d] {\n  let = 3\n  let y = x +\n  let z = 4\n  y y\n  z\n}\nfn g(, x: [d]) -> [d] { x }\nfunc h\n",
        &[
            "E0101 unexpected '=' @2",
            "E0101 unexpected keyword 'let' @4",
            "E0101 unexpected name 'y' @5",
            "E0101 unexpected ',' @8",
            "E0101 unexpected name 'func' @9",
        ],
    );
    // A head that cannot be read does not make its body's statements wrong.
    check(
        "fn f() -> [] {\n  repeat 3 as {\n    let x = 1\n    g(x)\n  }\n  2\n}\nfn g() -> [] { 1 }\n",
        &["E0101 unexpected '{' @2"],
    );
}

#[test]
fn words_have_their_own_errors() {
    check(
        "fn f() -> [] {\n  let x = 12abc\n  99999999999999999999\n}\n",
        &["E0104 '12abc' is not a number @2", "E0104 '99999999999999999999' is not a number @3"],
    );
    check("fn f() -> [] {\n  g(\"a b)\n  1\n}\n", &["E0105 this string does not end on its line @2"]);
    check(
        "fn f() -> [] {\n  let x = a ! b\n  let y = ä€ö\n  1\n}\n",
        &["E0106 the character '!' has no meaning here @2", "E0106 the character 'ä' has no meaning here @3"],
    );
    check("fn f() -> [] {\n  g(\"a\\q\\n\")\n}\n", &["E0110 '\\q' is not an escape @2"]);
    check("config { model = 1 }\n", &["E0109 'model' is a reserved word @1"]);
    check(
        "fn f() -> [] {\n  let step = 1\n  state = 2\n  g(set: 3) + block\n}\n",
        &["E0109 'step' is a reserved word @2", "E0109 'state' is a reserved word @3", "E0109 'set' is a reserved word @4"],
    );
    check(
        "fn f() -> f33[B] {\n  g(a: 1, 2)\n}\n",
        &["E0108 'f33' is not a dtype @1", "E0108 a positional argument after a named one @2"],
    );
    check("fn f() -> [] { 1", &["E0102 this '{' is not closed @1"]);
    check("fn f() ->", &["E0101 unexpected end of the file @1"]);
}

#[test]
fn depth_is_limited_and_the_next_item_is_read() {
    for deep in [
        "(".repeat(300),
        "-".repeat(300),
        "1 + ".repeat(300),
        "[- ".repeat(150),
        "if a { 1 } else ".repeat(300),
        "f(1, ".repeat(300),
        "repeat 2 { ".repeat(130),
    ] {
        let text = format!("/// Deep.\nfn f() -> [] {{\n  {deep}1\n}}\nfn g() -> [] {{\n  2\n}}\n");
        check(&text, &["E0107 levels of nesting: more than 256 @3"]);
        assert_eq!(functions(&text), ["g"]);
    }
    // Neither many statements nor many arguments are deep.
    tree(&format!("fn f() -> [] {{\n{}  f({})\n}}\n", "  let x = g(1 + 2) * 3\n".repeat(400), "1 + 1, ".repeat(400)));
}

#[test]
fn statements_end_where_a_line_cannot_go_on() {
    let values = |text: &str| {
        let t = tree(&format!("fn f() -> [] {{\n{text}\n}}"));
        crate::print_ast(&t).lines().skip(1).map(|l| l.trim().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(values("x\n+ y\n@ z\n^T"), ["=> (x + (y @ z^T))"]);
    assert_eq!(values("x +\ny"), ["=> (x + y)"]);
    assert_eq!(values("x\n-y"), ["x", "=> -y"]);
    assert_eq!(values("x\n[1, 2]"), ["x", "=> [1, 2]"]);
    assert_eq!(values("x\n(y, z)"), ["x", "=> (y, z)"]);
    assert_eq!(values("(x\n-y)"), ["=> (x - y)"]);
    assert_eq!(values("f(x,\n  y\n)\nas model.block\ng(x) as block\nz"), ["f(x, y) as model.block", "g(x) as block", "=> z"]);
    assert_eq!(values("if a {\n x = 1\n}\nelse {\n x = 2 }\nx"), ["if a { x = 1 } else { x = 2 }", "=> x"]);
    assert_eq!(values("x; // a comment\n\n// another\ny;"), ["x", "y"]);
    assert_eq!(
        values("param w: [d, v]\n = zeros\n nodecay\nparam model.w: [v]"),
        ["param w: [d, v] = zeros nodecay", "=> param model.w: [v]"]
    );
    assert_eq!(values("repeat 2 * n + 1 as block\n.x {\nx = x[1:, ..]\n}"), ["repeat ((2 * n) + 1) as block.x", "x = x[1:, ..]"]);
}

#[test]
fn settings_stand_in_one_list_or_in_lines() {
    let train = |set: &str| {
        let t = tree(&format!("train(x: i32[B]) {{\n  minimize x\n  with sgd(lr: 1)\n{set}}}\n"));
        let ItemKind::Train(t) = &t.items[0].kind else { panic!("a train") };
        t.settings.iter().map(|(n, _)| n.node.clone()).collect::<String>()
    };
    assert_eq!(train("set a = 1, b = 2"), "ab");
    assert_eq!(train("set a = 1,\n b = 2,\n"), "ab");
    assert_eq!(train("set a = 1\n b = 2\n set c = 3\n"), "abc");
    assert_eq!(train(""), "");
}

#[test]
fn spans_are_exact() {
    let text = "/// D.\nfn f(a: f32[B, 2 * d] = 1) -> [B] {\n  let (x, y) = g(a + (b), k: -c) as q.r\n  x[1:, new]^T @ param w.*.v: [d] = zeros nodecay\n}\n";
    let mut sources = Sources::default();
    let file = sources.add("t.lode", text);
    let t = tree(text);
    let at = |s: base::Span| sources.text(base::Span { file, ..s });
    assert!(at(t.items[0].span).starts_with("fn f(") && at(t.items[0].span).ends_with("nodecay\n}"));
    let ItemKind::Func(f) = &t.items[0].kind else { panic!("a function") };
    assert_eq!(
        [at(f.name.span), at(f.params[0].name.span), at(f.params[0].ty.span), at(f.result.span)],
        ["f", "a", "f32[B, 2 * d]", "[B]"]
    );
    assert_eq!(at(f.body.stmts[0].span), "let (x, y) = g(a + (b), k: -c) as q.r");
    let StmtKind::Let { names, value, .. } = &f.body.stmts[0].kind else { panic!("a let") };
    assert_eq!([at(names[1].span), at(value.span)], ["y", "g(a + (b), k: -c) as q.r"]);
    let ExprKind::Call { args, label, .. } = &value.kind else { panic!("a call") };
    assert_eq!(
        [at(args[0].value.span), at(args[1].value.span), at(label.as_ref().expect("a label").span)],
        ["a + (b)", "-c", "q.r"]
    );
    let value = f.body.value.as_ref().expect("a value");
    let ExprKind::Binary(BinaryOp::MatMul, a, b) = &value.kind else { panic!("a product") };
    assert_eq!([at(a.span), at(b.span)], ["x[1:, new]^T", "param w.*.v: [d] = zeros nodecay"]);
    let ExprKind::Param(d) = &b.kind else { panic!("a param") };
    assert_eq!([at(d.path.span), at(d.ty.span), at(d.init.as_ref().expect("an init").span)], ["w.*.v", "[d]", "zeros"]);
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
    for _ in 0..1500 {
        // A model with a few words lost, doubled or swapped.
        let mut words = words.clone();
        for _ in 0..1 + next(4) {
            let (a, b) = (next(words.len()), next(words.len()));
            match next(3) {
                0 => drop(words.remove(a)),
                1 => words.insert(a, words[b]),
                _ => words.swap(a, b),
            }
        }
        errors(&words.concat());
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
    assert_eq!(shape("-a^T @ (param w: [d, v]^T)"), "((Neg a^T) MatMul param w^T)");
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

/// Laid out, `text` is `want`, which is laid out.
#[track_caller]
fn lays_out(text: &str, want: &str) {
    let mut diags = Diags::new();
    let file = Sources::default().add("t.lode", text);
    let words = |t: &str| crate::lex(file, t, &mut Diags::new()).into_iter().map(|t| t.1).collect::<Vec<_>>();
    let once = crate::format(file, text, &mut diags).expect("it parses");
    assert_eq!(once, want);
    assert_eq!(words(text), words(&once));
    assert_eq!(crate::format(file, &once, &mut diags).expect("it parses"), want);
}

#[test]
fn layout_is_canonical() {
    lays_out(
        "fn f(x:[d])->[d]{ // why\n\n\nlet y=x-1 *-2\n -y\n// so\n  if a{\ny=(y\n-x)\n\n}\nelse {y=x[1 :,-1]}\n y\n}",
        "fn f(x: [d]) -> [d] {  // why\n\n  let y = x - 1 * -2\n  -y\n  // so\n  if a {\n    y = (y\n        - x)\n  }\n  else { y = x[1:, -1] }\n  y\n}\n",
    );
    let name = "a".repeat(30);
    lays_out(
        &format!(
            "fn f({name}: [B, T], b{name}: [B, T], c{name}: [B, T]) -> [B, T] {{\n  f({name} + {name}, {name}, {name})\n  x + {name} * {name} + {name} * {name}\n}}\n"
        ),
        &format!(
            "fn f({name}: [B, T], b{name}: [B, T],\n  c{name}: [B, T]) -> [B, T] {{\n  f({name} + {name}, {name},\n    {name})\n  x + {name} * {name}\n    + {name} * {name}\n}}\n"
        ),
    );
}

#[test]
fn fuzzed_layouts_are_stable() {
    let mut state = 7u64;
    let mut next = |n: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % n
    };
    for _ in 0..300 {
        // Blanks and breaks where they change no token: behind commas and inside parentheses.
        let text: String = MODEL
            .split_inclusive(' ')
            .map(|w| match next(5) {
                0 if w.ends_with(", ") => format!("{w}\n\n  // a comment {{\n"),
                1 => format!("{w}     "),
                2 if w.ends_with("\n  ") => format!("{w}\n"),
                _ => w.into(),
            })
            .collect();
        let mut diags = Diags::new();
        let file = Sources::default().add("t.lode", &text);
        let words = |t: &str| crate::lex(file, t, &mut Diags::new()).into_iter().map(|t| t.1).collect::<Vec<_>>();
        let once = crate::format(file, &text, &mut diags).expect(&text);
        assert_eq!(words(&text), words(&once), "{text}");
        assert_eq!(crate::format(file, &once, &mut diags).as_deref(), Some(once.as_str()), "{text}");
    }
}

#[test]
fn the_repository_s_models_parse_and_lay_out_stably() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let mut seen = 0;
    for dir in ["compiler/hir/std", "models/strata"] {
        for entry in std::fs::read_dir(format!("{root}/{dir}")).expect("the folder is in the repository") {
            let path = entry.expect("the folder can be read").path();
            if path.extension().is_none_or(|e| e != "lode") {
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("the file can be read");
            tree(&text);
            let file = Sources::default().add("t.lode", &text);
            let once = crate::format(file, &text, &mut Diags::new()).expect("it parses");
            let words = |t: &str| crate::lex(file, t, &mut Diags::new()).into_iter().map(|t| t.1).collect::<Vec<_>>();
            assert_eq!(words(&text), words(&once), "{}", path.display());
            assert_eq!(crate::format(file, &once, &mut Diags::new()).as_deref(), Some(once.as_str()), "{}", path.display());
            seen += 1;
        }
    }
    assert!(seen > 5);
}

#[test]
fn the_error_pages_programs_have_their_errors() {
    for n in 101..=110 {
        let path = format!("{}/../../docs/errors/E0{n}.md", env!("CARGO_MANIFEST_DIR"));
        let page = std::fs::read_to_string(&path).expect("each code has a page");
        assert!(page.starts_with(&format!("# E0{n}: ")), "{path}");
        let programs: Vec<String> = page.split("```\n").skip(1).step_by(2).map(|p| p.replace('…', &"(".repeat(300))).collect();
        assert_eq!(programs.len(), 2, "{path}");
        let e = errors(&programs[0]);
        assert!(!e.is_empty() && e.iter().all(|e| e.starts_with(&format!("E0{n} "))), "{path}: {e:?}");
        tree(&programs[1]);
    }
}

#[test]
fn dumps_show_tokens_and_trees() {
    let text = "fn f(x: [n]) -> [n] {\n  \"a\\n\" + 1.50\n  x\n}\n";
    let file = Sources::default().add("t.lode", text);
    let tokens = crate::print_tokens(&crate::lex(file, text, &mut Diags::new()));
    assert!(tokens.starts_with("0..2 keyword fn\n3..4 name f\n4..5 punct (\n"), "{tokens}");
    assert!(tokens.contains("24..29 string \"a\\n\"\n30..31 punct +\n32..36 float 1.5\n36..36 newline\n"), "{tokens}");
    assert_eq!(crate::print_ast(&tree(text)), "fn f(x: [n]) -> [n]\n  (\"a\\n\" + 1.5)\n  => x\n");
}
