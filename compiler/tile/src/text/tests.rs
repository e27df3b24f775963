use super::*;
use crate::ir::Axis;
use crate::kernels::{
    build::{Build, tile},
    domain::{Problem, Tiling},
    host_attend::host_attend,
    host_attend_grad::host_attend_grad,
    host_route::{Route, host_route},
    host_topk::{self, TopK, host_topk},
};
use base::{Dim, TensorType};
use graph::op::{ReduceFn, Scalar};

/// The file that the tests of `dialects` give to MLIR; written by the test below when `UPDATE_SAMPLE` is set.
const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../dialects/tile/sample.mlir");
const IRDL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../dialects/tile/tile.irdl.mlir");
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/ir/tile.md");

/// Every statement, expression, dtype and access at least once.
fn all() -> Kernel {
    let mut b = Build::new("every_op");
    b.kernel.grid = "2*B*floordiv(T + 63, 64)".parse().expect("a dim");
    let t = b.dim(&Dim::sym("T"));
    let reads: Vec<Mem> = DType::ALL.into_iter().map(|d| b.read(d.name(), d, Dim::sym("T") * Dim::from(2))).collect();
    let (y, z) = (b.write("odd \"name\"", DType::BF16, Dim::sym("T")), b.update("z", DType::F32, Dim::from(64)));
    let s = b.scratch("s", DType::F32, 64);
    for mem in &reads {
        b.bind(Expr::load(*mem, b.block()));
    }
    let x = b.bind(Expr::load(reads[2], b.block() + t.clone()));
    for value in [f64::NAN, f64::NEG_INFINITY, -0.0, 1e-310] {
        b.kernel.var(DType::F64);
        b.bind(Build::f(DType::F64, value).cast(DType::F32));
    }
    for f in MapFn::ALL {
        let integer = f.kind() == graph::op::map::Kind::Int;
        let data = if integer { b.block() } else { x.clone() };
        let data = if f.kind() == graph::op::map::Kind::Logic { x.clone().cast(DType::Bool) } else { data };
        let mut args = vec![data; f.arity()];
        if *f == MapFn::Select {
            args[0] = Expr::lt(x.clone(), x.clone());
        }
        b.bind(Expr::Map(*f, args));
    }
    for to in DType::ALL {
        b.bind(x.clone().cast(to));
    }
    b.bind(Build::f(DType::F32, 1.0).order());
    let sum = b.var(DType::F32, x.clone());
    for f in ReduceFn::ALL {
        b.each(t.clone(), |b, i| b.accumulate(sum, f, Expr::load(z, i)));
    }
    b.range(t.clone(), |b, i| {
        let i = b.bind(i);
        b.if_(Expr::lt(i.clone(), t.clone()), |b| b.store(y, i, Expr::Var(sum)));
    });
    b.for_(Expr::int(0), t.clone(), crate::LoopKind::Parallel, |b, i| b.store(y, i, x.clone()));
    b.push(Stmt::If { cond: Expr::Const(Scalar::new(0.0), DType::Bool), then: Vec::new(), otherwise: Vec::new() });
    b.while_(Expr::lt(Expr::Var(sum), x.clone()), |b| b.assign(sum, Expr::Var(sum) + x.clone()));
    let at = |mem| tile(mem, Expr::int(0), 8);
    b.dot([8, 8, 8].map(Expr::int), at(reads[1]), at(s), at(z), true);
    b.dot([Expr::int(8), Expr::int(8), t.clone()], at(reads[1]), at(z), at(s), false);
    b.dot_rows([8, 8, 8].map(Expr::int), at(reads[1]), at(s), at(z), t.clone());
    let axes = vec![Axis::new(t, 8, b.block()), Axis::new(Expr::int(8), 1, Expr::int(0))];
    b.push(Stmt::Copy(Copy { from: z, to: s, rows: 4, cols: 16, run: 4, axes: axes.clone(), index: None, paired: None }));
    let Mem::Buffer(by) = b.read("by", DType::I32, Dim::from(4)) else { panic!("a buffer") };
    b.push(Stmt::Copy(Copy { from: z, to: s, rows: 4, cols: 16, run: 4, axes: axes.clone(), index: Some(by), paired: None }));
    let paired = Some(Expr::lt(b.block(), Expr::int(2)));
    b.push(Stmt::Copy(Copy { from: z, to: s, rows: 4, cols: 16, run: 4, axes: axes.clone(), index: None, paired }));
    b.push(Stmt::Copy(Copy { from: s, to: z, rows: 4, cols: 16, run: 4, axes: axes.clone(), index: None, paired: None }));
    let axes = [axes[..1].to_vec(), axes].concat();
    b.push(Stmt::Copy(Copy { from: z, to: s, rows: 4, cols: 16, run: 2, axes: axes.clone(), index: None, paired: None }));
    b.push(Stmt::Copy(Copy { from: z, to: s, rows: 4, cols: 16, run: 2, axes, index: Some(by), paired: None }));
    b.finish()
}

fn kernels() -> Vec<Kernel> {
    let dims = ["B", "T", "S"].map(Dim::sym);
    let [b, t, s] = dims.clone();
    let list = TensorType::new(DType::I32, vec![b.clone(), t.clone(), Dim::from(2), Dim::from(4)]);
    let attend = |domain: &str, operands: Vec<TensorType>| {
        let (domain, [b, t, s]) = (domain.parse().expect("a domain"), dims.clone());
        Problem {
            dtype: DType::BF16,
            b,
            t,
            s,
            h: 4,
            g: 2,
            dk: 8,
            dv: 16,
            domain,
            scale: 0.25,
            operands,
            distinct: false,
            shared: false,
        }
    };
    let tiling = Tiling { queries: 4, keys: 8 };
    let one = Tiling { queries: 1, keys: 8 };
    vec![
        all(),
        host_attend(&attend("causal & (window(9) | blocks(0, 8))", vec![list.clone()]), tiling),
        host_attend_grad(&attend("causal & blocks(0, 8)", vec![list.clone()]), one),
        host_attend_grad(&attend("causal & tokens(0)", vec![list]), one),
        host_topk(&TopK { dtype: DType::F32, rows: b * t, n: s, k: 16 }, host_topk::Tiling::LEGAL[0]),
        host_route(&Route { choices: Dim::sym("N"), groups: 8 }),
        Kernel::new("empty"),
    ]
}

#[test]
fn text_reads_back() {
    for kernel in kernels() {
        assert_eq!(crate::verify(&kernel), Vec::<String>::new(), "{}", kernel.name);
        let text = print(std::slice::from_ref(&kernel));
        assert_eq!(parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}")), [kernel]);
    }
    let all = kernels();
    assert_eq!(parse(&print(&all)), Ok(all));
}

#[test]
fn sample_is_what_is_printed() {
    let text = print(&kernels()[..2]);
    if std::env::var_os("UPDATE_SAMPLE").is_some() {
        std::fs::write(SAMPLE, &text).expect("the dialect's folder can be written");
    }
    assert_eq!(std::fs::read_to_string(SAMPLE).expect("the sample is there"), text, "run with UPDATE_SAMPLE=1");
}

#[test]
fn irdl_has_every_op_and_function() {
    let irdl = std::fs::read_to_string(IRDL).expect("the dialect is there");
    let names = |ops: &[TextOp]| {
        let mut names = std::collections::BTreeSet::new();
        let mut stack: Vec<&TextOp> = ops.iter().collect();
        while let Some(op) = stack.pop() {
            names.insert(op.name.clone());
            stack.extend(op.regions.iter().flat_map(|r| &r.blocks).flat_map(|b| &b.ops));
        }
        names
    };
    let used = names(&[kernel_op(&all())]);
    for name in used.iter().filter_map(|n| n.strip_prefix("tile.")) {
        assert!(irdl.contains(&format!("irdl.operation @{name} ")), "{name}");
    }
    assert_eq!(irdl.matches("irdl.operation @").count() + 1, used.len(), "ops that no kernel has, but for {YIELD}");
    for f in MapFn::ALL.iter().filter(|f| **f != MapFn::Select) {
        assert!(irdl.contains(&format!("irdl.is \"{}\"", f.name())), "{}", f.name());
    }
}

/// The kernel on the page: the sum of each row of x, plus what y held.
fn example() -> Kernel {
    let mut b = Build::new("add_row_sums");
    let x = b.read("x", DType::BF16, Dim::sym("B") * Dim::from(64));
    let y = b.update("y", DType::F32, Dim::sym("B"));
    b.kernel.grid = Dim::sym("B");
    let first = b.bind(b.block() * Expr::int(64));
    let sum = b.var(DType::F32, Expr::load(y, b.block()));
    b.each(Expr::int(64), |b, i| b.accumulate(sum, ReduceFn::Sum, Expr::load(x, first + i)));
    b.store(y, b.block(), Expr::Var(sum));
    b.finish()
}

#[test]
fn the_page_shows_what_is_printed() {
    let page = std::fs::read_to_string(PAGE).expect("the page is there");
    let text = page.split("```mlir\n").nth(1).and_then(|t| t.split("```").next()).expect("the page has a text");
    assert_eq!(text, print(&[example()]));
    assert_eq!(parse(text), Ok(vec![example()]));
    assert!(crate::verify(&example()).is_empty());
}

#[test]
fn errors_say_where_and_what() {
    let text = print(&[all()]);
    for (from, to, want) in [
        ("tile.kernel", "tile.colonel", "tile.colonel: expected tile.kernel"),
        ("tile.dot", "tile.dott", "tile.dott: no such op in a tile program"),
        ("{fn = \"exp\"}", "{fn = \"pow\"}", "no function 'pow' of 1 operands"),
        ("\"tile.assign\"(%v63", "\"tile.assign\"(%b0", "%b0 is no mutable variable"),
        ("\"tile.load\"(%b0", "\"tile.load\"(%v0", "%v0 is no memory"),
        ("{id = 1 : i64}", "{id = 999 : i64}", "'vars' has no variable 999"),
        ("{id = 1 : i64}", "{id = 4 : i64}", "variable 4 is f32, not f64"),
        ("{index = 0 : i64}", "{index = 7 : i64}", "no dim 7"),
        ("\"vector.yield\"(%", "\"vector.yielt\"(%", "a condition that does not end in vector.yield"),
        ("\"vector\"}", "\"victor\"}", "no such 'kind'"),
        ("!tile.scratch<f32, 64 : i64>", "!tile.scratch<f32, -1 : i64>", "is no scratch"),
        ("grid = \"", "grid = \"(", "tile.kernel: "),
    ] {
        assert!(text.contains(from), "{from}");
        let error = parse(&text.replacen(from, to, 1)).expect_err(to).to_string();
        assert!(error.contains(want), "{to}: {error}");
    }
    // What is used twice needs a variable, else text of n lines could stand for 2^n nodes.
    let twice =
        "%1 = \"tile.const\"() {value = 1.0 : f64} : () -> i64\n%2 = \"tile.map\"(%1, %1) {fn = \"add\"} : (i64, i64) -> i64";
    let head = "\"tile.kernel\"() ({\n^bb0(%v0: i64):\n";
    let tail = "\n\"vector.yield\"() : () -> ()\n}) {sym_name = \"k\", grid = \"1\", dims = [], buffers = [], scratch = [], vars = [i64]} : () -> ()";
    let error = parse(&format!("{head}{twice}{tail}")).expect_err("used twice").to_string();
    assert!(error.contains("%1 is not defined, or is used twice"), "{error}");
    // An expression as deep as the text is long.
    let mut deep = "%0 = \"tile.const\"() {value = 1.0 : f64} : () -> i64\n".to_string();
    for i in 0..100_000 {
        deep.push_str(&format!("%{} = \"tile.map\"(%{i}) {{fn = \"neg\"}} : (i64) -> i64\n", i + 1));
    }
    let error = parse(&format!("{head}{deep}{tail}")).expect_err("too deep").to_string();
    assert!(error.contains("nested too deep"), "{error}");
}

#[test]
fn damaged_text_does_not_crash() {
    let text = print(&[all()]);
    let lines: Vec<&str> = text.lines().collect();
    for i in 0..lines.len() {
        let without = [&lines[..i], &lines[i + 1..]].concat().join("\n");
        if let Ok(kernels) = parse(&without) {
            kernels.iter().for_each(|k| {
                crate::verify(k);
                print(std::slice::from_ref(k));
            });
        }
    }
}
