use super::*;
use crate::{
    build::Builder,
    op::{Attend, Contract, Domain, Exchange, Form, Fused, ReduceFn, Repeat, Scalar, quantize},
};
use base::DType::{self, BF16, Bool, E4M3, F16, F32, F64, I32, I64};

/// The file that the tests of `dialects` give to MLIR; written by the test below when `UPDATE_SAMPLE` is set.
const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../dialects/graph/sample.mlir");
const IRDL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../dialects/graph/graph.irdl.mlir");

fn ty(dtype: DType, shape: &str) -> TensorType {
    let dims = shape.split_whitespace().map(|d| d.parse().expect("a dim"));
    TensorType::new(dtype, dims.collect::<Vec<Dim>>())
}

fn dims(shape: &str) -> Vec<Dim> {
    ty(F32, shape).shape
}

/// Every op at least once.
fn ops() -> Func {
    let mut f = Func::new("ops");
    let x = f.arg("x", Role::Input, ty(F32, "B T 8"));
    let w = f.arg("w", Role::Param, ty(F32, "8 4 6"));
    let idx = f.arg("idx", Role::Input, ty(I32, "B T 2 3"));
    let seg = f.arg("seg", Role::State, ty(I32, "B T"));
    let choice = f.arg("choice", Role::Scalar, ty(I32, "N 2"));
    let mut b = Builder::new(&mut f);
    let pi = b.constant(std::f64::consts::PI, F64);
    let nan = b.constant(f64::NAN, F32);
    let inf = b.constant(f64::NEG_INFINITY, F32);
    let tiny = b.constant(-5e-324, F64);
    let seven = b.constant(7.0, I64);
    let extent = b.op(Op::Extent("floordiv(T + 63, 64)*B - 1".parse().expect("a dim"), I64), &[]);
    let iota = b.op(Op::Iota("T".parse().expect("a dim")), &[]);
    let y = b.map(MapFn::Exp, &[x]);
    let y = b.add(x, y);
    let less = b.map(MapFn::Lt, &[x, y]);
    let y = b.map(MapFn::Select, &[less, x, y]);
    let small = [BF16, F16, E4M3, Bool].map(|d| b.cast(y, d));
    let max = b.op(Op::Reduce(ReduceFn::Max, vec![0, 2]), &[y]);
    let y = b.op(Op::StopGradient, &[y]);
    let all = b.sum(y, &[0, 1, 2]);
    let max = b.broadcast(max, &dims("B T 8"), &[1]);
    let y = b.map(MapFn::Sub, &[y, max]);
    let t = b.transpose(y, &[2, 0, 1]);
    let flat = b.reshape(y, &dims("B*T 2 4"));
    let part = b.op(Op::Slice { axis: 2, start: 1.into(), len: 2.into(), step: 2 }, &[flat]);
    let joined = b.op(Op::Concat(2), &[flat, part]);
    let value = Scalar::new(f64::INFINITY);
    let padded = b.op(Op::Pad { axis: 0, low: 0.into(), high: Dim::sym("P"), value }, &[joined]);
    let q = b.contract("btd,dhk->bthk", y, w);
    let k = b.op(Op::Slice { axis: 2, start: 0.into(), len: 2.into(), step: 1 }, &[q]);
    let causal = Attend { domain: "causal & window(64)".parse().expect("a domain"), scale: Scalar::new(0.25) };
    let plain = b.node(Op::Attend(causal.clone()), &[q, k, k]);
    let d_q = b.node(Op::AttendGrad(causal), &[q, k, k, plain[0], plain[1], plain[0], plain[1]]);
    let domain: Domain = "segments(0, 0) & (blocks(1, 64) | tokens(1) | groups(1, 0) | ends_at(0))".parse().expect("a domain");
    let sparse = Attend { domain, scale: Scalar::new(0.25) };
    let o = b.node(Op::Attend(sparse.clone()), &[q, k, k, seg, idx]);
    let d = b.node(Op::AttendGrad(sparse), &[q, k, k, o[0], o[1], o[0], o[1], seg, idx]);
    let picked = b.op(Op::Gather { batch: 1 }, &[x, seg]);
    let spread = b.op(Op::ScatterAdd { batch: 1, n: Dim::sym("V") }, &[seg, picked]);
    let top = b.op(Op::TopK(2), &[x]);
    let running = b.op(Op::Cumsum { axis: 1, exclusive: true, reverse: false }, &[x]);
    let rows = b.node(Op::Route { groups: 4 }, &[choice]);
    let table = b.reshape(x, &dims("B*T 8"));
    let sorted = b.op(Op::Gather { batch: 0 }, &[table, rows[1]]);
    let w3 = b.transpose(w, &[1, 0, 2]);
    let g = b.op(Op::GroupedContract { transposed: false }, &[sorted, w3, rows[0]]);
    let d_w = b.op(Op::GroupedOuter, &[sorted, g, rows[0]]);
    let exchange = |what| Op::Exchange { what, members: 2 };
    let told = b.node(exchange(Exchange::Offsets), &[rows[0]]);
    let there = b.op(exchange(Exchange::There), &[sorted, told[0]]);
    let back = b.op(exchange(Exchange::Back), &[there, told[0]]);
    let codes = b.node(Op::Quantize(quantize::Block { rows: 2, size: 4 }), &[sorted]);
    let worth = b.op(Op::Dequantize(quantize::Block { rows: 2, size: 4 }), &codes);
    for (i, v) in [
        vec![
            worth, pi, nan, inf, tiny, seven, extent, iota, all, t, padded, o[0], d[1], spread, top, running, rows[2], g, d_w,
            told[1], back,
        ],
        small.to_vec(),
        vec![plain[0], d_q[2]],
    ]
    .concat()
    .into_iter()
    .enumerate()
    {
        f.output(&format!("out{i}"), Role::Result, v);
    }
    f
}

/// Two loops, one inside the other.
fn loops() -> Func {
    let mut inner = Func::new("body");
    let (h, c, s) = (
        inner.arg("h", Role::Inner, ty(F32, "B 4")),
        inner.arg("c", Role::Inner, ty(F32, "B 4")),
        inner.arg("s", Role::Inner, ty(F32, "4")),
    );
    let mut b = Builder::new(&mut inner);
    let s = b.broadcast(s, &dims("B 4"), &[1]);
    let next = b.map(MapFn::Swiglu, &[h, s]);
    let next = b.add(next, c);
    inner.output("h", Role::Inner, next);
    inner.output("saved", Role::Inner, h);
    let inner = Repeat { count: 3, carried: 1, constant: 1, reverse: false, body: inner };

    let mut outer = Func::new("body");
    let h = outer.arg("h", Role::Inner, ty(F32, "B 4"));
    let w = outer.arg("layers.*.w", Role::Param, ty(F32, "3 4"));
    let r = Builder::new(&mut outer).node(Op::Repeat(Box::new(inner)), &[h, h, w]);
    outer.output("h", Role::Inner, r[0]);
    let outer = Repeat { count: 2, carried: 1, constant: 0, reverse: true, body: outer };

    let mut f = Func::new("loops");
    let h = f.arg("h", Role::Input, ty(F32, "B 4"));
    let w = f.arg("w", Role::Param, ty(F32, "2 3 4"));
    let r = Builder::new(&mut f).op(Op::Repeat(Box::new(outer)), &[h, w]);
    f.output("h", Role::Result, r);
    f
}

/// A region.
fn regions() -> Func {
    let mut f = Func::new("regions");
    let x = f.arg("x", Role::Input, ty(F32, "B T 8"));
    let mut b = Builder::new(&mut f);
    let e = b.map(MapFn::Exp, &[x]);
    let best = b.op(Op::TopK(2), &[e]);
    let (region, operands) = Fused::outline(b.func, Form::Select, &[e.node, best.node].into(), &[best]);
    let best = b.op(Op::Fused(Box::new(region)), &operands);
    f.output("best", Role::Result, best);
    f
}

fn sample() -> Module {
    let param = |name: &str, init, decay, role| ParamDecl { name: name.into(), ty: ty(BF16, "2 3 4"), init, decay, role };
    Module {
        name: "sample".into(),
        params: vec![
            param("layers.*.w", Init::Normal(0.02), true, Role::Param),
            param("odd \"name\"", Init::Uniform(0.5), false, Role::Param),
            param("bias", Init::Constant(f64::NEG_INFINITY), false, Role::State),
        ],
        funcs: vec![ops(), loops(), regions()],
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// A module does not equal itself if a NaN is among its inits, so texts are compared as well.
#[test]
fn a_module_prints_and_parses_back() {
    let (module, text) = (sample(), print(&sample()));
    if std::env::var_os("UPDATE_SAMPLE").is_some() {
        std::fs::write(SAMPLE, &text).expect("the sample can be written");
    }
    assert_eq!(text, read(SAMPLE), "set UPDATE_SAMPLE to write it anew");
    let back = parse(&text).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(back, module);
    assert_eq!(print(&back), text);
    assert_eq!(parse_func(&print_func(&module.funcs[1])).as_ref(), Ok(&module.funcs[1]));
}

#[test]
fn a_loop_reads_well() {
    let text = print_func(&loops());
    assert_eq!(
        text.lines().map(|l| l.chars().take(76).collect::<String>()).collect::<Vec<_>>().join("\n"),
        r#""graph.func"() ({
^bb0(%0: !graph.tensor<f32, ["B", "4"]>, %1: !graph.tensor<f32, ["2", "3", "
  %in2 = "builtin.unrealized_conversion_cast"(%0, %1) : (!graph.tensor<f32, 
  %out2 = "graph.repeat"(%in2) ({
  ^bb0(%3: !graph.tensor<f32, ["B", "4"]>, %4: !graph.tensor<f32, ["3", "4"]
    %in5 = "builtin.unrealized_conversion_cast"(%3, %3, %4) : (!graph.tensor
    %out5 = "graph.repeat"(%in5) ({
    ^bb0(%6: !graph.tensor<f32, ["B", "4"]>, %7: !graph.tensor<f32, ["B", "4
      %9 = "graph.broadcast"(%8) {axes = array<i64: 1>} : (!graph.tensor<f32
      %10 = "graph.map"(%6, %9) {fn = "swiglu"} : (!graph.tensor<f32, ["B", 
      %11 = "graph.map"(%10, %7) {fn = "add"} : (!graph.tensor<f32, ["B", "4
      "vector.yield"(%11, %6) : (!graph.tensor<f32, ["B", "4"]>, !graph.tens
    }) {count = 3 : i64, carried = 1 : i64, constant = 1 : i64, reverse = fa
    %5:2 = "builtin.unrealized_conversion_cast"(%out5) : (!graph.values) -> 
    "vector.yield"(%5#0) : (!graph.tensor<f32, ["B", "4"]>) -> ()
  }) {count = 2 : i64, carried = 1 : i64, constant = 0 : i64, reverse = true
  %2 = "builtin.unrealized_conversion_cast"(%out2) : (!graph.values) -> !gra
  "vector.yield"(%2) : (!graph.tensor<f32, ["B", "4"]>) -> ()
}) {sym_name = "loops", arg_names = ["h", "w"], arg_roles = ["input", "param"#
    );
}

#[test]
fn origins_are_printed_as_locations() {
    let mut sources = Sources::default();
    let file = sources.add("m.lode", "fn f\n  exp(x)");
    let mut f = Func::new("f");
    let x = f.arg("x", Role::Input, ty(F32, "T"));
    let y = Builder { func: &mut f, origin: Some(Span::new(file, 7, 13)) }.map(MapFn::Exp, &[x]);
    f.output("y", Role::Result, y);
    let module = Module { funcs: vec![f], ..Module::default() };
    let text = print_with(&module, &sources);
    assert!(text.contains(r#"-> !graph.tensor<f32, ["T"]> loc("m.lode":2:3)"#), "{text}");
    assert_eq!(print(&parse(&text).expect("it was printed")), print(&module));
}

/// The dialect's definition lists functions, reductions, roles, dtypes and ops; a new one must be added there.
#[test]
fn the_dialect_knows_all_names() {
    let irdl = read(IRDL);
    let listed = |name: &str| irdl.contains(&format!("= irdl.is \"{name}\""));
    for f in MapFn::ALL.iter().filter(|f| **f != MapFn::Select) {
        assert!(listed(f.name()), "no {} in graph.irdl.mlir", f.name());
    }
    assert!(ReduceFn::ALL.iter().all(|f| listed(f.name())));
    assert!(Role::ALL.iter().all(|r| Role::from_name(r.name()) == Some(*r)));
    for d in DType::ALL {
        assert!(irdl.contains(&format!("= irdl.is {}\n", d.mlir())), "no {d} in graph.irdl.mlir");
    }
    for op in base::text::parse(&read(SAMPLE)).expect("the sample parses")[0].regions[0].blocks[0].ops.iter() {
        let inside = op.regions.iter().flat_map(|r| &r.blocks).flat_map(|b| &b.ops);
        for op in inside.chain([op]) {
            if let Some(name) = op.name.strip_prefix("graph.") {
                assert!(irdl.contains(&format!("irdl.operation @{name} {{")), "no {name} in graph.irdl.mlir");
            }
        }
    }
}

#[test]
fn errors_say_where_and_what() {
    let func = |line: &str| {
        let body = format!("^bb0(%x: !graph.tensor<f32, [\"T\"]>):\n  {line}\n  \"vector.yield\"() : () -> ()");
        let attrs = r#"sym_name = "f", arg_names = ["x"], arg_roles = ["input"], output_names = [], output_roles = []"#;
        format!("\"graph.func\"() ({{\n{body}\n}}) {{{attrs}}} : () -> ()")
    };
    let t = r#"!graph.tensor<f32, ["T"]>"#;
    for (line, want) in [
        (format!("%y = \"graph.map\"(%z) {{fn = \"exp\"}} : ({t}) -> {t}"), "3:3: graph.map: no value %z"),
        (format!("%y = \"graph.map\"(%x) {{fn = \"ex\"}} : ({t}) -> {t}"), "3:3: graph.map: no function 'ex'"),
        (format!("%y = \"graph.map\"(%x) : ({t}) -> {t}"), "3:3: graph.map: no attribute 'fn', expected a string"),
        (
            format!("%y = \"graph.map\"(%x, %x) {{fn = \"exp\"}} : ({t}, {t}) -> {t}"),
            "3:3: graph.map: map takes 1 operands, not 2",
        ),
        (
            format!("%y = \"graph.reduce\"(%x) {{fn = \"sum\", axes = array<i64: 0>}} : ({t}) -> {t}"),
            "3:3: graph.reduce: the result is f32[], not f32[T]",
        ),
        (format!("%x = \"graph.map\"(%x) {{fn = \"exp\"}} : ({t}) -> {t}"), "3:3: graph.map: %x a second time"),
        (
            format!("%y = \"graph.map\"(%x) {{fn = \"exp\"}} : (f32) -> {t}"),
            "3:3: graph.map: expected !graph.tensor<dtype, [dims]>, not f32",
        ),
        (format!("%y = \"arith.addf\"(%x, %x) : ({t}, {t}) -> {t}"), "3:3: arith.addf: not an op of the graph"),
        (format!("%y = \"graph.top\"(%x) : ({t}) -> {t}"), "3:3: graph.top: no op 'top'"),
        (
            format!("%y = \"graph.route\"(%x) {{groups = 9223372036854775807}} : ({t}) -> {t}"),
            "3:3: graph.route: 'groups' is 9223372036854775807",
        ),
        (
            "%y = \"graph.iota\"() : () -> !graph.tensor<i32, [\"floordiv(T, 0)\"]>".into(),
            "3:3: graph.iota: division of a dim by 0",
        ),
    ] {
        assert_eq!(parse(&func(&line)).expect_err(&line).to_string(), want);
    }
    let contract: Contract = "a,a->".parse().expect("a spec");
    assert_eq!(attrs(&Op::Contract(contract)), named([("spec", Attr::str("a,a->"))]));
}

/// The page's example is what we print, and its table has every op of the sample.
#[test]
fn the_page_is_right() {
    let page = read(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/ir/graph.md"));
    let example = page.split("```mlir\n").nth(1).and_then(|t| t.split("```").next()).expect("the page has an example");
    let module = parse(example).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(print(&module), example);
    assert_eq!(crate::verify(&module), []);
    for node in ops().nodes.values().chain(loops().nodes.values()).filter(|n| !matches!(n.op, Op::Arg(_))) {
        assert!(page.contains(&format!("\n| `{}` |", node.op.name())), "no {} on the page", node.op.name());
    }
}

/// Hostile texts: the sample with pieces cut out, doubled and replaced. What still reads must print, verify and survive passes.
#[test]
fn damaged_texts_are_errors() {
    let text = read(SAMPLE);
    let lines: Vec<&str> = text.lines().collect();
    let pieces = [
        "-1",
        "0",
        "9223372036854775807",
        "[]",
        "\"T*T\"",
        "\"-9223372036854775807\"",
        "i1",
        "f32",
        "true",
        "array<i64: 7, 7>",
        "%0",
        "",
    ];
    let (mut state, mut good) = (7u64, 0);
    let mut random = |n: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % n
    };
    for _ in 0..400 {
        let at = random(lines.len());
        let words: Vec<&str> = lines[at].split_inclusive([' ', ',', '(', ')', '<', '>', '[', ']']).collect();
        let k = random(words.len().max(1));
        let piece = pieces[random(pieces.len())];
        let word = words.get(k).copied().unwrap_or("");
        let end = word.len() - usize::from(word.ends_with([' ', ',', '(', ')', '<', '>', '[', ']']));
        let line = [&words[..k.min(words.len())], &[piece, &word[end..]], words.get(k + 1..).unwrap_or(&[])].concat().concat();
        let damaged = [&lines[..at], &[line.as_str()], &lines[at + 1..]].concat().join("\n");
        if let Ok(mut module) = parse(&damaged) {
            good += 1;
            assert_eq!(print(&parse(&print(&module)).expect("it was printed")), print(&module));
            if crate::verify(&module).is_empty() {
                crate::passes::run(&mut module, crate::passes::PIPELINE, true).unwrap_or_else(|e| panic!("{e}\n{line}"));
            }
        }
    }
    assert!(good > 10, "{good}");
}
