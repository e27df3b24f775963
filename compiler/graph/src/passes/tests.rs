//! Text in, text out, in a shorthand: `f32[T, 4]` for `!graph.tensor<f32, ["T", "4"]>`, `= map(` for `= "graph.map"(`, and a last line
//! `return %3: f32[T]`. Loops are written with `repeat` and `turn`.

use super::*;
use crate::{
    ir::Role,
    text::{parse_func, print_func},
};
use base::{DType, TensorType};

/// Shorthand to MLIR's generic syntax.
fn expand(args: &str, text: &str) -> String {
    let (lines, returned) = text.trim().rsplit_once("return").unwrap_or_else(|| panic!("no return in {text}"));
    let list = |s: &str| s.split(';').filter(|v| !v.trim().is_empty()).map(|v| v.trim().to_string()).collect::<Vec<_>>();
    let (args, returned) = (list(args), list(returned));
    let names = |kind: &str, n: usize| (0..n).map(|i| format!("\"{kind}{i}\"")).collect::<Vec<_>>().join(", ");
    let roles = |role: Role, n: usize| vec![format!("\"{}\"", role.name()); n].join(", ");
    let parts =
        |i: usize| returned.iter().map(|v| v.split(": ").nth(i).expect("a name and a type")).collect::<Vec<_>>().join(", ");
    let (yielded, types) = (parts(0), parts(1));
    let mut out = format!(
        "\"graph.func\"() ({{\n^bb0({}):\n{lines}\n\"vector.yield\"({yielded}) : ({types}) -> ()\n}}) {{sym_name = \"f\", arg_names = [{}], \
         arg_roles = [{}], output_names = [{}], output_roles = [{}]}} : () -> ()",
        args.join(", "),
        names("a", args.len()),
        roles(Role::Input, args.len()),
        names("o", returned.len()),
        roles(Role::Result, returned.len()),
    );
    for d in DType::ALL {
        let mut done = String::new();
        while let Some((before, after)) = out.split_once(&format!("{}[", d.name())) {
            let (shape, rest) = after.split_once(']').expect("a closed shape");
            let dims = shape.split(',').filter(|d| !d.trim().is_empty()).map(|d| format!("\"{}\"", d.trim()));
            done += &format!("{before}!graph.tensor<{}, [{}]>", d.mlir(), dims.collect::<Vec<_>>().join(", "));
            out = rest.into();
        }
        out = done + &out;
    }
    let mut done = String::new();
    for line in out.lines() {
        match line.split_once(" = ").and_then(|(v, call)| Some((v, call.split_once('(')?))) {
            Some((v, (name, rest))) if name.chars().all(|c| c.is_ascii_lowercase() || c == '_') => {
                done += &format!("{v} = \"graph.{name}\"({rest}\n");
            }
            _ => done += &format!("{line}\n"),
        }
    }
    done
}

fn func(args: &str, text: &str) -> Func {
    let text = expand(args, text);
    let f = parse_func(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    assert_eq!(verify_func(&f), []);
    f
}

/// The passes turn one text into the other, what they give is right, and a second run changes nothing.
#[track_caller]
fn check(passes: &[&str], args: &str, before: &str, after: &str) {
    let mut module = Module { funcs: vec![func(args, before)], ..Module::default() };
    run(&mut module, passes, true).unwrap_or_else(|e| panic!("{e}"));
    let (got, want) = (print_func(&module.funcs[0]), print_func(&func(args, after)));
    assert_eq!(got, want, "\n{got}\n{want}");
    let again = run(&mut module, passes, true).expect("it ran before");
    assert!(again.iter().all(|(_, s)| s.changes == 0), "{again:?}");
    assert_eq!(print_func(&module.funcs[0]), want);
}

/// A loop in the shorthand: carried and constant operands, and the body's lines that end in `turn`.
fn repeat(operands: &str, counts: &str, args: &str, lines: &str, results: &str) -> String {
    let list = |s: &str| s.split(';').map(|v| v.trim().to_string()).filter(|v| !v.is_empty()).collect::<Vec<_>>();
    let (names, types): (Vec<String>, Vec<String>) =
        list(operands).iter().map(|v| v.split_once(": ").map(|(a, b)| (a.into(), b.into())).expect("a name and a type")).unzip();
    let (lines, turn) = lines.trim().rsplit_once("turn").expect("an end of the turn");
    let (turn, turn_types): (Vec<String>, Vec<String>) =
        list(turn).iter().map(|v| v.split_once(": ").map(|(a, b)| (a.into(), b.into())).expect("a name and a type")).unzip();
    let (results, result_types): (Vec<String>, Vec<String>) =
        list(results).iter().map(|v| v.split_once(": ").map(|(a, b)| (a.into(), b.into())).expect("a name and a type")).unzip();
    let named = |kind: &str, n: usize| (0..n).map(|i| format!("\"{kind}{i}\"")).collect::<Vec<_>>().join(", ");
    // Names of arguments that a pass adds are given after `|`.
    let arg_names = list(args).into_iter().enumerate().map(|(i, a)| match a.split_once('|') {
        Some((_, name)) => format!("\"{}\"", name.trim()),
        None => format!("\"a{i}\""),
    });
    let arg_names = arg_names.collect::<Vec<_>>().join(", ");
    let args = list(args).iter().map(|a| a.split('|').next().expect("a part").trim().to_string()).collect::<Vec<_>>();
    format!(
        "%in = \"builtin.unrealized_conversion_cast\"({}) : ({}) -> !graph.values\n%out = \"graph.repeat\"(%in) ({{\n^bb0({}):\n{lines}\n\
         \"vector.yield\"({}) : ({}) -> ()\n}}) {{{counts}, reverse = false, sym_name = \"body\", arg_names = [{arg_names}], \
         arg_roles = [{}], output_names = [{}], output_roles = [{}]}} : (!graph.values) -> !graph.values\n\
         {} = \"builtin.unrealized_conversion_cast\"(%out) : (!graph.values) -> ({})\n",
        names.join(", "),
        types.join(", "),
        args.join(", "),
        turn.join(", "),
        turn_types.join(", "),
        vec!["\"inner\""; args.len()].join(", "),
        named("o", turn.len()),
        vec!["\"inner\""; turn.len()].join(", "),
        results.join(", "),
        result_types.join(", "),
    )
}

#[test]
fn fold_constants_of_maps_casts_and_extents() {
    check(
        &["fold_constants", "prune_dead"],
        "%x: f32[T]",
        r#"
        %a = extent() {dim = "8"} : () -> i32[]
        %b = cast(%a) : (i32[]) -> f32[]
        %c = const() {value = 0.1} : () -> f32[]
        %d = map(%b, %c) {fn = "mul"} : (f32[], f32[]) -> f32[]
        %e = broadcast(%d) {axes = array<i64>} : (f32[]) -> f32[T]
        %f = map(%e) {fn = "neg"} : (f32[T]) -> f32[T]
        %g = map(%x, %f) {fn = "add"} : (f32[T], f32[T]) -> f32[T]
        return %g: f32[T]"#,
        r#"
        %a = const() {value = -0.800000011920929} : () -> f32[]
        %b = broadcast(%a) {axes = array<i64>} : (f32[]) -> f32[T]
        %c = map(%x, %b) {fn = "add"} : (f32[T], f32[T]) -> f32[T]
        return %c: f32[T]"#,
    );
}

#[test]
fn fold_constants_drops_what_changes_no_bit() {
    check(
        &["fold_constants", "prune_dead"],
        "%x: f32[T]; %n: i32[T]",
        r#"
        %one = const() {value = 1.0} : () -> f32[]
        %ones = broadcast(%one) {axes = array<i64>} : (f32[]) -> f32[T]
        %a = map(%ones, %x) {fn = "mul"} : (f32[T], f32[T]) -> f32[T]
        %b = map(%a, %ones) {fn = "div"} : (f32[T], f32[T]) -> f32[T]
        %zero = const() {value = 0.0} : () -> f32[]
        %zeros = broadcast(%zero) {axes = array<i64>} : (f32[]) -> f32[T]
        %c = map(%b, %zeros) {fn = "sub"} : (f32[T], f32[T]) -> f32[T]
        %d = map(%c, %zeros) {fn = "add"} : (f32[T], f32[T]) -> f32[T]
        %i = const() {value = 0.0} : () -> i32[]
        %is = broadcast(%i) {axes = array<i64>} : (i32[]) -> i32[T]
        %m = map(%is, %n) {fn = "add"} : (i32[T], i32[T]) -> i32[T]
        %y = const() {value = 1.0} : () -> bool[]
        %ys = broadcast(%y) {axes = array<i64>} : (bool[]) -> bool[T]
        %s = select(%ys, %d, %x) : (bool[T], f32[T], f32[T]) -> f32[T]
        return %s: f32[T]; %m: i32[T]"#,
        // x + 0 stays: -0 + 0 is 0.
        r#"
        %zero = const() {value = 0.0} : () -> f32[]
        %zeros = broadcast(%zero) {axes = array<i64>} : (f32[]) -> f32[T]
        %d = map(%x, %zeros) {fn = "add"} : (f32[T], f32[T]) -> f32[T]
        return %d: f32[T]; %n: i32[T]"#,
    );
}

#[test]
fn fold_constants_leaves_integers_that_do_not_fit() {
    let text = r#"
        %a = const() {value = 2147483647.0} : () -> i32[]
        %b = map(%a, %a) {fn = "add"} : (i32[], i32[]) -> i32[]
        %c = const() {value = 1.0e300} : () -> f64[]
        %d = cast(%c) : (f64[]) -> i64[]
        return %b: i32[]; %d: i64[]"#;
    check(&["fold_constants"], "", text, text);
}

#[test]
fn merge_equal_of_nodes_and_arguments() {
    let turn = |lines: &str| {
        repeat(
            "%x: f32[T]; %w: f32[T]; %w: f32[T]",
            "count = 2, carried = 1, constant = 2",
            "%h: f32[T]; %u: f32[T]; %v: f32[T]",
            lines,
            "%r: f32[T]",
        )
    };
    let before = turn(
        r#"
        %p = map(%h, %u) {fn = "mul"} : (f32[T], f32[T]) -> f32[T]
        %q = map(%v, %h) {fn = "mul"} : (f32[T], f32[T]) -> f32[T]
        %s = map(%p, %q) {fn = "sub"} : (f32[T], f32[T]) -> f32[T]
        turn %s: f32[T]"#,
    );
    let after = turn(
        r#"
        %p = map(%h, %u) {fn = "mul"} : (f32[T], f32[T]) -> f32[T]
        %s = map(%p, %p) {fn = "sub"} : (f32[T], f32[T]) -> f32[T]
        turn %s: f32[T]"#,
    );
    let rest = r#"
        %a = map(%r) {fn = "exp"} : (f32[T]) -> f32[T]
        %b = map(%r) {fn = "exp"} : (f32[T]) -> f32[T]
        %c = map(%a, %b) {fn = "sub"} : (f32[T], f32[T]) -> f32[T]
        return %c: f32[T]"#;
    let merged = r#"
        %a = map(%r) {fn = "exp"} : (f32[T]) -> f32[T]
        %c = map(%a, %a) {fn = "sub"} : (f32[T], f32[T]) -> f32[T]
        return %c: f32[T]"#;
    check(&["merge_equal"], "%x: f32[T]; %w: f32[T]", &(before + rest), &(after + merged));
}

#[test]
fn simplify_layout_joins_and_drops() {
    check(
        &["simplify_layout", "prune_dead"],
        "%x: bf16[T, 2, 3]",
        r#"
        %a = transpose(%x) {perm = array<i64: 1, 2, 0>} : (bf16[T, 2, 3]) -> bf16[2, 3, T]
        %b = transpose(%a) {perm = array<i64: 2, 0, 1>} : (bf16[2, 3, T]) -> bf16[T, 2, 3]
        %c = slice(%b) {axis = 1, start = "0", len = "2", step = 1} : (bf16[T, 2, 3]) -> bf16[T, 2, 3]
        %d = cast(%c) : (bf16[T, 2, 3]) -> f32[T, 2, 3]
        %e = cast(%d) : (f32[T, 2, 3]) -> f16[T, 2, 3]
        %f = reshape(%e) : (f16[T, 2, 3]) -> f16[6*T]
        %g = reshape(%f) : (f16[6*T]) -> f16[T, 6]
        %h = broadcast(%g) {axes = array<i64: 0, 1>} : (f16[T, 6]) -> f16[T, 6, B]
        %i = broadcast(%h) {axes = array<i64: 1, 2, 3>} : (f16[T, 6, B]) -> f16[4, T, 6, B]
        %j = cast(%i) : (f16[4, T, 6, B]) -> f16[4, T, 6, B]
        %k = cast(%f) : (f16[6*T]) -> e4m3[6*T]
        %l = cast(%k) : (e4m3[6*T]) -> f32[6*T]
        return %j: f16[4, T, 6, B]; %l: f32[6*T]"#,
        r#"
        %e = cast(%x) : (bf16[T, 2, 3]) -> f16[T, 2, 3]
        %f = reshape(%e) : (f16[T, 2, 3]) -> f16[6*T]
        %g = reshape(%e) : (f16[T, 2, 3]) -> f16[T, 6]
        %i = broadcast(%g) {axes = array<i64: 1, 2>} : (f16[T, 6]) -> f16[4, T, 6, B]
        %k = cast(%f) : (f16[6*T]) -> e4m3[6*T]
        %l = cast(%k) : (e4m3[6*T]) -> f32[6*T]
        return %i: f16[4, T, 6, B]; %l: f32[6*T]"#,
    );
}

#[test]
fn prune_dead_shrinks_loops() {
    // Carried: h is needed, g only by itself, k by h. Of the stacks the second is read, of the operands w is not.
    let before = repeat(
        "%x: f32[T]; %x: f32[T]; %x: f32[T]; %x: f32[T]; %s: f32[3, T]",
        "count = 3, carried = 3, constant = 1",
        "%h: f32[T]; %g: f32[T]; %k: f32[T]; %w: f32[T]; %t: f32[T]",
        r#"
        %p = map(%h, %k) {fn = "mul"} : (f32[T], f32[T]) -> f32[T]
        %q = map(%g, %w) {fn = "mul"} : (f32[T], f32[T]) -> f32[T]
        %u = map(%k, %t) {fn = "add"} : (f32[T], f32[T]) -> f32[T]
        turn %p: f32[T]; %q: f32[T]; %u: f32[T]; %q: f32[T]; %h: f32[T]"#,
        "%r0: f32[T]; %r1: f32[T]; %r2: f32[T]; %r3: f32[3, T]; %r4: f32[3, T]",
    );
    let after = repeat(
        "%x: f32[T]; %x: f32[T]; %s: f32[3, T]",
        "count = 3, carried = 2, constant = 0",
        "%h: f32[T]; %k: f32[T] | a2; %t: f32[T] | a4",
        r#"
        %p = map(%h, %k) {fn = "mul"} : (f32[T], f32[T]) -> f32[T]
        %u = map(%k, %t) {fn = "add"} : (f32[T], f32[T]) -> f32[T]
        turn %p: f32[T]; %u: f32[T]; %h: f32[T]"#,
        "%r0: f32[T]; %r2: f32[T]; %r4: f32[3, T]",
    );
    let after = after.replace(r#"["o0", "o1", "o2"]"#, r#"["o0", "o2", "o4"]"#);
    let rest = "%dead = map(%r0) {fn = \"exp\"} : (f32[T]) -> f32[T]\nreturn %r0: f32[T]; %r4: f32[3, T]";
    let kept = "return %r0: f32[T]; %r4: f32[3, T]";
    check(&["prune_dead"], "%x: f32[T]; %s: f32[3, T]", &(before + rest), &(after + kept));
}

#[test]
fn hoist_constant_moves_tables_and_leaves_masks() {
    let angles = r#"
        %i = iota() : () -> i32[T]
        %f = cast(%i) : (i32[T]) -> f32[T]
        %c = map(%f) {fn = "cos"} : (f32[T]) -> f32[T]
        "#;
    let mask = r#"
        %j = iota() : () -> i32[T]
        %row = broadcast(%j) {axes = array<i64: 0>} : (i32[T]) -> i32[T, T]
        %col = broadcast(%j) {axes = array<i64: 1>} : (i32[T]) -> i32[T, T]
        %m = map(%row, %col) {fn = "le"} : (i32[T, T], i32[T, T]) -> bool[T, T]
        %n = cast(%m) : (bool[T, T]) -> f32[T, T]
        %o = reduce(%n) {fn = "sum", axes = array<i64: 1>} : (f32[T, T]) -> f32[T]
        "#;
    let weight = "%v = cast(%w) : (bf16[T]) -> f32[T]\n";
    let turn = r#"
        %p = map(%h, %c) {fn = "mul"} : (f32[T], f32[T]) -> f32[T]
        %q = map(%p, %v) {fn = "add"} : (f32[T], f32[T]) -> f32[T]
        turn %q: f32[T]; %n: f32[T, T]"#;
    let before = repeat(
        "%x: f32[T]; %w0: bf16[T]",
        "count = 3, carried = 1, constant = 1",
        "%h: f32[T]; %w: bf16[T]",
        &format!("{angles}{mask}{weight}{turn}"),
        "%r: f32[T]; %s: f32[3, T, T]",
    );
    let inside = mask.lines().filter(|l| !l.contains("reduce")).collect::<Vec<_>>().join("\n");
    let after = repeat(
        "%x: f32[T]; %c0: f32[T]; %v0: f32[T]",
        "count = 3, carried = 1, constant = 2",
        "%h: f32[T]; %c: f32[T] | hoisted0; %v: f32[T] | hoisted1",
        &format!("{inside}{turn}"),
        "%r: f32[T]; %s: f32[3, T, T]",
    );
    let moved =
        angles.replace("%c =", "%c0 =").replace("%i", "%i0").replace("%f", "%f0") + "%v0 = cast(%w0) : (bf16[T]) -> f32[T]\n";
    let rest = "return %r: f32[T]; %s: f32[3, T, T]";
    check(&["hoist_constant", "prune_dead"], "%x: f32[T]; %w0: bf16[T]", &(before + rest), &(moved + &after + rest));
}

#[test]
fn fold_transpose_changes_the_order_of_a_result() {
    let args = "%x: bf16[T, 4]; %y: bf16[T, 6]";
    let product = |out: &str, shape: &str| {
        format!("%p = contract(%x, %y) {{spec = \"ab,ac->{out}\"}} : (bf16[T, 4], bf16[T, 6]) -> bf16[{shape}]\n")
    };
    let turned = r#"
        %c = cast(%p) : (bf16[4, 6]) -> f32[4, 6]
        %t = transpose(%c) {perm = array<i64: 1, 0>} : (f32[4, 6]) -> f32[6, 4]
        return %t: f32[6, 4]"#;
    let direct = "%c = cast(%p) : (bf16[6, 4]) -> f32[6, 4]\nreturn %c: f32[6, 4]";
    let passes = ["fold_transpose", "prune_dead"];
    check(&passes, args, &(product("bc", "4, 6") + turned), &(product("cb", "6, 4") + direct));
    // Another reads it as it is.
    let both = product("bc", "4, 6") + turned + "; %p: bf16[4, 6]";
    check(&passes, args, &both, &both);
}

#[test]
fn lift_transpose_computes_before_it() {
    check(
        &["lift_transpose", "prune_dead"],
        "%x: f32[T, 4]; %y: bf16[4]",
        r#"
        %t = transpose(%x) {perm = array<i64: 1, 0>} : (f32[T, 4]) -> f32[4, T]
        %c = cast(%t) : (f32[4, T]) -> bf16[4, T]
        %b = broadcast(%y) {axes = array<i64: 0>} : (bf16[4]) -> bf16[4, T]
        %m = map(%c, %b) {fn = "mul"} : (bf16[4, T], bf16[4, T]) -> bf16[4, T]
        return %m: bf16[4, T]"#,
        r#"
        %c = cast(%x) : (f32[T, 4]) -> bf16[T, 4]
        %b = broadcast(%y) {axes = array<i64: 1>} : (bf16[4]) -> bf16[T, 4]
        %m = map(%c, %b) {fn = "mul"} : (bf16[T, 4], bf16[T, 4]) -> bf16[T, 4]
        %t = transpose(%m) {perm = array<i64: 1, 0>} : (bf16[T, 4]) -> bf16[4, T]
        return %t: bf16[4, T]"#,
    );
}

#[test]
fn hoist_casts_narrows_once_for_two_loops() {
    let args = "%x: bf16[T]; %w: f32[3, 8]; %u: f32[3, T]";
    let turn = |line: &str, weight: &str| {
        format!(
            "{line}%v = reduce({weight}) {{fn = \"sum\", axes = array<i64: 0>}} : (bf16[8]) -> bf16[]\n%k = cast(%b) : (f32[T]) -> bf16[T]\n\
             %b2 = broadcast(%v) {{axes = array<i64>}} : (bf16[]) -> bf16[T]\n%p = map(%h, %b2) {{fn = \"mul\"}} : (bf16[T], bf16[T]) -> \
             bf16[T]\n%q = map(%p, %k) {{fn = \"add\"}} : (bf16[T], bf16[T]) -> bf16[T]\nturn %q: bf16[T]"
        )
    };
    let counts = "count = 3, carried = 1, constant = 0";
    let one = |x: &str, out: &str| {
        let cast = "%c = cast(%a) : (f32[8]) -> bf16[8]\n";
        let operands = format!("{x}: bf16[T]; %w: f32[3, 8]; %u: f32[3, T]");
        repeat(&operands, counts, "%h: bf16[T]; %a: f32[8]; %b: f32[T]", &turn(cast, "%c"), &format!("{out}: bf16[T]"))
    };
    let narrow = |x: &str, out: &str| {
        let operands = format!("{x}: bf16[T]; %u: f32[3, T]; %n: bf16[3, 8]");
        let inner = "%h: bf16[T] | a0; %b: f32[T] | a2; %a: bf16[8] | hoisted0";
        repeat(&operands, counts, inner, &turn("", "%a"), &format!("{out}: bf16[T]"))
    };
    // What a size is not known of stays: it may be much.
    check(
        &["hoist_casts", "prune_dead"],
        args,
        &(one("%x", "%r") + &one("%r", "%s").replace("%in", "%in1").replace("%out", "%out1") + "return %s: bf16[T]"),
        &("%n = cast(%w) : (f32[3, 8]) -> bf16[3, 8]\n".to_string()
            + &narrow("%x", "%r")
            + &narrow("%r", "%s").replace("%in", "%in1").replace("%out", "%out1")
            + "return %s: bf16[T]"),
    );
    let single = one("%x", "%r") + "return %r: bf16[T]";
    check(&["hoist_casts", "prune_dead"], args, &single, &single);
    // One loop that narrows twice is one.
    let again = "%v2 = cast(%a) : (f32[8]) -> bf16[8]\n%v = reduce(%v2)";
    let twice = single.replace("%v = reduce(%c)", again).replace(
        "%c = cast(%a) : (f32[8]) -> bf16[8]",
        "%c = cast(%a) : (f32[8]) -> bf16[8]\n%v1 = reduce(%c) {fn = \"sum\", axes = array<i64: 0>} : (bf16[8]) -> bf16[]",
    );
    check(&["hoist_casts"], args, &twice, &twice);
}

#[test]
fn sink_carried_puts_what_reads_the_old_before_the_new() {
    let loops = |lines: [&str; 3]| {
        let line = |s: &str| format!("%{} = map(%{}) {{fn = \"{}\"}} : (f32[T]) -> f32[T]\n", &s[..1], &s[1..2], &s[3..]);
        repeat(
            "%x: f32[T]",
            "count = 3, carried = 1, constant = 0",
            "%h: f32[T]",
            &format!("{}turn %a: f32[T]; %b: f32[T]; %c: f32[T]", lines.map(line).concat()),
            "%r: f32[T]; %s: f32[3, T]; %t: f32[3, T]",
        ) + "return %r: f32[T]; %s: f32[3, T]; %t: f32[3, T]"
    };
    check(&["sink_carried"], "%x: f32[T]", &loops(["ah exp", "ca neg", "bh sin"]), &loops(["bh sin", "ah exp", "ca neg"]));
}

#[test]
fn drop_stop_gradient_leaves_the_operand() {
    check(
        &["drop_stop_gradient"],
        "%x: f32[T]",
        "%a = stop_gradient(%x) : (f32[T]) -> f32[T]\n%b = map(%a) {fn = \"exp\"} : (f32[T]) -> f32[T]\nreturn %b: f32[T]; %a: f32[T]",
        "%b = map(%x) {fn = \"exp\"} : (f32[T]) -> f32[T]\nreturn %b: f32[T]; %x: f32[T]",
    );
}

#[test]
fn outline_sums_puts_the_region_where_the_attention_is() {
    use crate::{
        build::Builder,
        interp::{Options, Tensor, eval},
        op::{Attend, MapFn, ReduceFn, Scalar},
    };
    let build = |way: &str| {
        let mut f = Func::new("f");
        let types = ["f32[B, T, 2, 4]", "f32[B, T, 1, 4]", "f32[B, T, 1, 4]", "f32[B, T, 2, 4]"];
        let ty = |t: &str| -> TensorType {
            let shape: Vec<_> = t[4..t.len() - 1].split(", ").map(|d| d.parse::<base::Dim>().expect("a dim")).collect();
            TensorType::new(DType::F32, shape)
        };
        let a: Vec<Value> = types.iter().enumerate().map(|(i, t)| f.arg(&format!("a{i}"), Role::Input, ty(t))).collect();
        let b = &mut Builder::new(&mut f);
        let attend = |b: &mut Builder, domain: &str| {
            let attend = Attend { domain: domain.parse().expect("a domain"), scale: Scalar::new(0.5) };
            b.node(Op::Attend(attend), &a[..3])
        };
        let (near, far) = (attend(b, "causal & window(2)"), attend(b, "causal"));
        // What reads the sums of scores comes before what the region reads.
        let log = b.map(MapFn::Neg, &[far[1]]);
        let x = if way == "of its sums" {
            b.broadcast(log, &b.func.ty(a[3]).shape.clone(), &[0, 1, 2])
        } else {
            b.map(MapFn::Sin, &[a[3]])
        };
        let both = b.add(near[0], far[0]);
        let terms = [b.mul(both, x), b.mul(near[0], x), b.mul(x, far[0])];
        let mut results: Vec<Value> = terms.iter().map(|v| b.op(Op::Reduce(ReduceFn::Sum, vec![3]), &[*v])).collect();
        results.extend([log, near[1]]);
        match way {
            "a map is an output" => results.push(terms[2]),
            "the result is an output" => results.push(far[0]),
            "a sum over queries" => results.push(b.op(Op::Reduce(ReduceFn::Sum, vec![1]), &[terms[2]])),
            _ => {}
        }
        results.into_iter().enumerate().for_each(|(i, v)| f.output(&format!("o{i}"), Role::Result, v));
        f
    };
    let run_on = |f: &Func| {
        let tensor = |n: i64, shift: i64| {
            let data = (0..2 * 3 * n * 4).map(|i| ((i * 7 + shift) % 11) as f64 / 8.0 - 0.5).collect();
            Tensor::new(DType::F32, &[2, 3, n, 4], data)
        };
        let dims = [("B".into(), 2), ("T".into(), 3)].into_iter().collect();
        eval(f, &[tensor(2, 0), tensor(1, 1), tensor(1, 2), tensor(2, 3)], &dims, Options::EXACT).expect("it evaluates")
    };
    let before = build("");
    let mut after = before.clone();
    assert_eq!(outline_sums(&mut after).changes, 1, "the last attention's, as one map reads both");
    prune_dead(&mut after);
    assert_eq!(verify_func(&after), []);
    assert_eq!(run_on(&after), run_on(&before));
    let regions: Vec<&crate::op::Fused> =
        after.nodes.values().filter_map(|n| if let Op::Fused(f) = &n.op { Some(&**f) } else { None }).collect();
    assert_eq!((regions.len(), regions[0].body.outputs.len()), (1, 3), "two sums and those of scores");
    assert_eq!(outline_sums(&mut after).changes, 0);
    for way in ["of its sums", "a map is an output", "the result is an output", "a sum over queries"] {
        // Then it is the first one's, which reads the last's result.
        let mut f = build(way);
        assert_eq!(outline_sums(&mut f).changes, 1, "{way}");
        prune_dead(&mut f);
        assert_eq!(verify_func(&f), [], "{way}");
        assert_eq!(run_on(&f), run_on(&build(way)), "{way}");
        let domains = f.nodes.values().filter_map(|n| if let Op::Attend(a) = &n.op { Some(a.domain.to_string()) } else { None });
        assert_eq!(domains.collect::<Vec<_>>(), ["causal"], "{way}");
    }
}

/// Gates that cannot be negative are part of the weights, also where a loop or a region is given or gives them, unless the sums of scores have gradients of their own.
#[test]
fn split_deltas_knows_gates_by_where_they_come_from() {
    use crate::{
        build::Builder,
        interp::{Options, Tensor, eval},
        op::{Attend, Form, Fused, MapFn, Repeat, Scalar},
    };
    let types = ["f32[B, T, 2, 4]", "f32[B, T, 1, 4]", "f32[B, T, 1, 4]", "f32[B, T, 2, 4]", "f32[B, T, 2]"];
    let ty = |t: &str| -> TensorType {
        let shape: Vec<_> = t[4..t.len() - 1].split(", ").map(|d| d.parse::<base::Dim>().expect("a dim")).collect();
        TensorType::new(DType::F32, shape)
    };
    // The gradient of queries for a gate; of scores' sums, too, or not.
    let gradient = |b: &mut Builder, a: &[Value], gate: Value, of_sums: bool| {
        let attend = Attend { domain: "causal & window(2)".parse().expect("a domain"), scale: Scalar::new(0.5) };
        let results = b.node(Op::Attend(attend.clone()), &a[..3]);
        let shape = b.func.ty(a[3]).shape.clone();
        let wide = b.broadcast(gate, &shape, &[0, 1, 2]);
        let d_o = b.mul(a[3], wide);
        let d_lse = if of_sums { b.map(MapFn::Sin, &[results[1]]) } else { b.full_like(results[1], 0.0) };
        b.node(Op::AttendGrad(attend), &[&a[..3], &results, &[d_o, d_lse]].concat())
    };
    let region = |b: &mut Builder, x: Value, f: MapFn| {
        let y = b.map(f, &[x]);
        let (region, operands) = Fused::outline(b.func, Form::Rows, &[y.node].into(), &[y]);
        b.node(Op::Fused(Box::new(region)), &operands)[0]
    };
    let build = |way: &str, gate: MapFn| {
        let mut f = Func::new("f");
        let mut a: Vec<Value> = types.iter().enumerate().map(|(i, t)| f.arg(&format!("a{i}"), Role::Input, ty(t))).collect();
        let b = &mut Builder::new(&mut f);
        let results = match way {
            "in a region" => {
                let gate = region(b, a[4], gate);
                gradient(b, &a, gate, false)
            }
            "given to a loop" | "carried by a loop" => {
                a[4] = b.map(gate, &[a[4]]);
                let mut body = Func::new("body");
                // What is carried comes first: the gate, or queries.
                let first = if way == "carried by a loop" { 4 } else { 0 };
                let order: Vec<usize> = [first].into_iter().chain((0..5).filter(|i| *i != first)).collect();
                let inner: Vec<Value> = order.iter().map(|i| body.arg(&format!("a{i}"), Role::Inner, ty(types[*i]))).collect();
                let given: Vec<Value> = order.iter().map(|i| a[*i]).collect();
                let of = |i: usize| inner[order.iter().position(|k| *k == i).expect("one of five")];
                let own = &mut Builder::new(&mut body);
                let grads = gradient(own, &[0, 1, 2, 3].map(of), of(4), false);
                let next = if first == 4 { own.map(MapFn::Neg, &[of(4)]) } else { grads[0] };
                body.output("next", Role::Inner, next);
                body.output("dk", Role::Inner, grads[1]);
                let r = Repeat { count: 2, carried: 1, constant: 4, reverse: false, body };
                b.node(Op::Repeat(Box::new(r)), &given)
            }
            way => {
                let gate = b.map(gate, &[a[4]]);
                gradient(b, &a, gate, way == "with the sums' gradient")
            }
        };
        results.into_iter().enumerate().for_each(|(i, v)| f.output(&format!("o{i}"), Role::Result, v));
        f
    };
    let run_on = |f: &Func| {
        let tensor = |shape: &[i64], shift: i64| {
            let data = (0..shape.iter().product()).map(|i: i64| ((i * 7 + shift) % 11) as f64 / 8.0 - 0.5).collect();
            Tensor::new(DType::F32, shape, data)
        };
        let dims = [("B".into(), 2), ("T".into(), 3)].into_iter().collect();
        let given: Vec<Tensor> = [&[2, 3, 2, 4][..], &[2, 3, 1, 4], &[2, 3, 1, 4], &[2, 3, 2, 4], &[2, 3, 2]]
            .into_iter()
            .enumerate()
            .map(|(i, shape)| tensor(shape, i as i64))
            .collect();
        eval(f, &given, &dims, Options::EXACT).expect("it evaluates")
    };
    // Whether what comes from above is read as it is, and not times the gate.
    fn is_part(func: &Func) -> Option<bool> {
        func.nodes.values().find_map(|n| match &n.op {
            Op::AttendGrad(_) => Some(func.def(n.inputs[5]).op != Op::Map(MapFn::Mul)),
            Op::Repeat(r) => is_part(&r.body),
            _ => None,
        })
    }
    for (way, gate, part) in [
        ("here", MapFn::Exp, true),
        ("here", MapFn::Sin, false),
        ("with the sums' gradient", MapFn::Exp, false),
        ("in a region", MapFn::Exp, true),
        ("in a region", MapFn::Sin, false),
        ("given to a loop", MapFn::Exp, true),
        ("given to a loop", MapFn::Sin, false),
        ("carried by a loop", MapFn::Exp, false),
    ] {
        let (before, mut after) = (build(way, gate), build(way, gate));
        assert_eq!(verify_func(&before), [], "{way}");
        assert_eq!(split_deltas(&mut after).changes, 1, "{way}");
        prune_dead(&mut after);
        assert_eq!((verify_func(&after), is_part(&after)), (vec![], Some(part)), "{way} {gate:?}");
        for (x, y) in run_on(&after).iter().zip(&run_on(&before)) {
            assert!(x.data.iter().zip(&y.data).all(|(x, y)| (x - y).abs() < 1e-9), "{way} {gate:?}");
        }
    }
}

#[test]
fn the_table_and_unknown_names() {
    assert!(ALL.windows(2).all(|w| w[0].name < w[1].name));
    assert!(PIPELINE.iter().all(|n| by_name(n).is_some()));
    let error = run(&mut Module::default(), &["prune_dead", "prune"], true);
    assert_eq!(error, Err(RunError::Unknown("prune".into())));
}

/// The text form's sample has every op; the pipeline must keep it verifiable, print and read it.
#[test]
fn the_pipeline_keeps_the_sample_right() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../dialects/graph/sample.mlir");
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let mut module = crate::text::parse(&text).unwrap_or_else(|e| panic!("{e}"));
    let stats = run(&mut module, PIPELINE, true).unwrap_or_else(|e| panic!("{e}"));
    assert!(stats.iter().map(|(_, s)| s.changes).sum::<usize>() > 0);
    assert_eq!(crate::verify(&module), []);
    assert_eq!(crate::text::parse(&crate::text::print(&module)).as_ref(), Ok(&module));
}
