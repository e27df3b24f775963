//! Each rule on both sides by the interpreter, every choice of small programs, what must not fire, and that nothing gets dearer or differs from
//! run to run. A rule is tested at every shape, dtype and set of values that its instance is drawn at.

mod instances;
mod models;
mod source;

use super::*;
use base::{DType, Dim};
use extract::Choice;
use graph::{
    Output, Role,
    build::Builder,
    interp::{
        self,
        bounds::{Bounded, Roundoff, bounds},
    },
    op::{Domain, MapFn, quantize::Block},
    random::{self, Random},
    text::print,
};
use instances::INSTANCES;

/// A unit an element; a product its multiplications; a fixed charge a step.
fn cost(op: &Op, operands: &[&TensorType], results: &[TensorType]) -> f64 {
    let size = |d: &Dim| d.substitute(&|_| Some(Dim::from(8))).known().expect("all dims have a value") as f64;
    let elems = |t: &TensorType| size(&t.elems());
    match op {
        Op::Arg(_) | Op::Slice { .. } | Op::Reshape(_) | Op::Transpose(_) | Op::Broadcast { .. } => 0.0,
        Op::Contract(c) => {
            let own = c.rhs.iter().zip(&operands[1].shape).filter(|(x, _)| !c.lhs.contains(x));
            1000.0 + elems(operands[0]) * own.map(|(_, d)| size(d)).product::<f64>()
        }
        Op::Attend(_) => 1000.0 + (elems(operands[0]) + elems(&results[0])) * size(&operands[1].shape[1]),
        Op::Concat(_) => 10.0 + elems(&results[0]) / 10.0,
        _ => 10.0 + elems(&results[0]),
    }
}

type Build = fn(&mut Builder, &[Value]) -> Vec<Value>;

/// What the letters in the types of instances stand for: `B` and `T` are run-time dims, others constants, and `float` a dtype.
struct Draw {
    float: DType,
    constants: Vec<(char, i64)>,
    dims: DimEnv,
}

impl Draw {
    /// The first is what instances are written for: every constant another prime, so that no extents are equal by chance.
    fn first() -> Draw {
        let constants = "KLMNHG".chars().zip([5, 7, 4, 6, 3, 2]).collect();
        Draw { float: DType::F32, constants, dims: [("B".into(), 3), ("T".into(), 4)].into_iter().collect() }
    }
    fn random(random: &mut Random) -> Draw {
        let float = [DType::F64, DType::F32, DType::BF16, DType::F16][random.below(4)];
        let constants = "KLMNHG".chars().map(|c| (c, [1, 1, 2, 3, 4, 8][random.below(6)])).collect();
        let dims = ["B", "T"].map(|d| (d.into(), [0, 1, 2, 5][random.below(4)]));
        Draw { float, constants, dims: dims.into_iter().collect() }
    }
    fn ty(&self, text: &str) -> TensorType {
        let mut words = text.split(' ');
        let dtype = match words.next().expect("a dtype") {
            "float" => self.float,
            word => word.parse().expect("a dtype"),
        };
        let dim = |word: &str| match self.constants.iter().find(|(c, _)| word == c.to_string()) {
            Some((_, n)) => Dim::from(*n),
            None => word.parse().expect("a dim"),
        };
        TensorType::new(dtype, words.map(dim).collect::<Vec<_>>())
    }
    fn func(&self, types: &[&str], build: Build) -> Func {
        let mut f = Func::new("f");
        let args: Vec<Value> = types.iter().enumerate().map(|(i, t)| f.arg(&format!("a{i}"), Role::Input, self.ty(t))).collect();
        let outputs = build(&mut Builder::new(&mut f), &args);
        outputs.into_iter().enumerate().for_each(|(i, v)| f.output(&format!("o{i}"), Role::Result, v));
        f
    }
}

fn module_of(f: &Func) -> Module {
    Module { name: "m".into(), params: Vec::new(), funcs: vec![f.clone()] }
}

fn optimized(f: &Func, class: Class) -> (Module, Report) {
    let module = module_of(f);
    assert_eq!(graph::verify::verify(&module), []);
    let (out, mut reports) = optimize(&module, &cost, &Options { class, ..Options::default() });
    assert_eq!(graph::verify::verify(&out), []);
    (out, reports.pop().expect("a report a function"))
}

/// Fails unless both are equal up to what rounding in f64 can do to either.
fn assert_agree(what: &str, want: &[Bounded], got: &[Bounded]) {
    for (want, got) in want.iter().zip(got) {
        assert_eq!((want.value.dtype, &want.value.shape), (got.value.dtype, &got.value.shape), "{what}");
        let mut want = want.clone();
        want.error.iter_mut().zip(&got.error).for_each(|(e, other)| *e += other);
        if let Some((at, got, want, error)) = want.disagreement(&got.value.data) {
            panic!("{what}: element {at} is {got:e}, not {want:e} ± {error:.1e}");
        }
    }
}

fn run(f: &Func, dims: &DimEnv, seed: u64) -> Vec<Bounded> {
    bounds(f, &random::args(f, dims, seed), dims, Roundoff::Exact).unwrap_or_else(|e| panic!("{e}:\n{}", print(&module_of(f))))
}

/// Compares every e-node of every class with the others of its class. Returns how often each rule fired and how many were compared.
fn check_all_choices(what: &str, func: &Func, class: Class, dims: &DimEnv, seed: u64) -> (Vec<(&'static str, usize)>, usize) {
    check_choices_for(what, func, &Options { class, ..Options::default() }, dims, seed)
}

/// The same with other options: of a shape bucket, for one.
fn check_choices_for(
    what: &str,
    func: &Func,
    options: &Options,
    dims: &DimEnv,
    seed: u64,
) -> (Vec<(&'static str, usize)>, usize) {
    let (mut compared, mut regions) = (0, false);
    let fired = each_choice(what, func, options, &mut |choices| {
        let values: Vec<_> = choices.iter().map(|f| run(f, dims, seed)).collect();
        let has_region = |f: &Func| f.nodes.values().any(|n| matches!(n.op, Op::Fused(_)));
        regions |= values.len() > 1 && choices.iter().any(has_region);
        for (other, f) in values.iter().zip(choices).skip(1) {
            let what = format!("{what}: in place of\n{}\n{}", print(&module_of(&choices[0])), print(&module_of(f)));
            assert_agree(&what, &values[0], other);
            compared += 1;
        }
    });
    // A region that was outlined is held against the ops it stands for.
    let outlined = fired.iter().any(|(r, n)| matches!(r.how, How::Outline(..)) && *n > 0);
    assert!(regions || !outlined, "{what}: a region was not compared");
    (fired.into_iter().map(|(r, n)| (r.name, n)).collect(), compared)
}

/// Visits the classes that can be computed in several ways, with a function for each way. Returns how often each rule fired.
fn each_choice(what: &str, func: &Func, options: &Options, visit: &mut dyn FnMut(&[Func])) -> Vec<(Rule, usize)> {
    let table: Vec<Rule> = rules::all().into_iter().filter(|r| r.class <= options.class).collect();
    let Built { mut egraph, classes, .. } = build(func, options);
    let fired = grow(&mut egraph, &table, options);
    let space = Space::new(&egraph, &cost);
    let at = |v: Value| space.at(classes[&v]);
    let outputs: Vec<usize> = func.outputs.iter().map(|o| at(o.value)).collect();
    let args: Vec<usize> = (0..func.args.len()).map(|i| at(func.arg_value(i))).collect();
    let choice = space.greedy(&outputs);
    let output = Output { name: "o".into(), role: Role::Result, value: Value { node: base::arena::Id::new(0), index: 0 } };
    let extracted = |choice: &Choice, class: usize| {
        let extracted = space.rebuild(choice, func, &args, &[(&output, class)]).func;
        assert_eq!(graph::verify_func(&extracted), [], "{what}");
        extracted
    };
    for (class, count) in space.num_options().into_iter().enumerate().filter(|(c, n)| *n > 1 && !args.contains(c)) {
        // What has several results is compared by each of them.
        let forced = (0..count).filter(|_| space.is_single(class)).filter_map(|i| space.force(&choice, class, i));
        visit(&forced.map(|c| extracted(&c, class)).collect::<Vec<_>>());
    }
    table.into_iter().zip(fired.iter().map(|g| g.times)).collect()
}

#[test]
fn every_rule_fires_and_both_sides_are_equal() {
    for rule in rules::all() {
        let name = rule.name;
        let (_, types, build) = INSTANCES.iter().find(|(n, ..)| *n == name).unwrap_or_else(|| panic!("no instance of {name}"));
        let f = Draw::first().func(types, *build);
        // With its own class and stricter ones: a rule that says it is exact does not lean on others.
        let (fired, compared) = check_all_choices(name, &f, rule.class, &Draw::first().dims, 1);
        assert!(
            fired.iter().any(|(n, count)| *n == name && *count > 0),
            "{name} did not fire: {fired:?}\n{}",
            print(&module_of(&f))
        );
        let mut random = Random::new(7);
        for seed in 0..24 {
            let draw = Draw::random(&mut random);
            check_all_choices(name, &draw.func(types, *build), Class::ChangesIntermediate, &draw.dims, seed);
        }
        let (out, report) = optimized(&f, Class::ChangesIntermediate);
        // A value that is equal to a part of itself has no second program; then the result is what is compared.
        assert!(compared > 0 || report.cost.1 < report.cost.0, "{name}: nothing to compare");
        assert_agree(name, &run(&f, &Draw::first().dims, 3), &run(&out.funcs[0], &Draw::first().dims, 3));
    }
    assert_eq!(INSTANCES.len(), rules::all().len(), "an instance for a rule that is not there");
}

/// In exact numbers codes are worth what they were made from, so bounds say nothing of a rule that takes rounding back; bits do.
#[test]
fn rules_of_precision_keep_every_bit() {
    let mut random = Random::new(11);
    let mut compared = 0;
    let of_precision = |name: &str| rules::all().iter().any(|r| r.name == name && r.family == rules::Family::Precision);
    for (name, types, build) in INSTANCES.iter().filter(|(name, ..)| of_precision(name)) {
        for seed in 0..12 {
            let draw = if seed == 0 { Draw::first() } else { Draw::random(&mut random) };
            let f = draw.func(types, *build);
            each_choice(name, &f, &Options { class: Class::Exact, ..Options::default() }, &mut |choices| {
                let run = |f: &Func| interp::eval(f, &random::args(f, &draw.dims, seed), &draw.dims, interp::Options::ROUNDED);
                let values: Vec<_> = choices.iter().map(|f| run(f).expect("it evaluates")).collect();
                for (other, f) in values.iter().zip(choices).skip(1) {
                    let same = |(x, y): (&f64, &f64)| x == y || x.is_nan() && y.is_nan();
                    let pairs = || values[0].iter().zip(other).flat_map(|(x, y)| x.data.iter().zip(&y.data));
                    assert!(pairs().all(same), "{name}: {:?} {other:?}\n{}", values[0], print(&module_of(f)));
                    compared += 1;
                }
            });
        }
    }
    assert!(compared > 300, "only {compared} choices");
}

#[test]
fn rounding_to_codes_is_never_taken_back() {
    let f = Draw::first().func(&["f32 B 8", "f32 B 8"], |b, a| {
        let rounded = |b: &mut Builder, x, size| {
            let q = b.node(Op::Quantize(Block::of_row(size)), &[x]);
            b.op(Op::Dequantize(Block::of_row(size)), &q)
        };
        let once = rounded(b, a[0], 4);
        // In the same blocks again, in others, and of what was added up.
        let sum = b.add(once, a[1]);
        vec![rounded(b, once, 4), rounded(b, once, 2), rounded(b, sum, 4)]
    });
    let options = Options { class: Class::ChangesIntermediate, ..Options::default() };
    let Built { mut egraph, classes, nodes, .. } = super::build(&f, &options);
    let count = egraph.number_of_classes();
    grow(&mut egraph, &rules::all(), &options);
    assert_eq!((egraph.number_of_classes(), egraph.total_size()), (count, nodes.len()));
    let all: BTreeSet<Id> = classes.values().map(|c| egraph.find(*c)).collect();
    assert_eq!(all.len(), classes.len(), "two values became one");
}

#[test]
fn the_page_and_the_table_name_the_same_rules() {
    let page = include_str!("../../../docs/optimiser.md");
    let named = rules::all().iter().map(|r| format!("`{}`", r.name)).collect::<Vec<_>>();
    named.iter().for_each(|n| assert!(page.contains(n.as_str()), "{n} is not on the page"));
    rules::all().iter().for_each(|r| assert!(rules::law(r.name).len() > 4, "no law of {}", r.name));
    let rows = page.lines().filter(|l| l.starts_with("| ") && !l.starts_with("| family"));
    let on_page: usize = rows.filter_map(|l| l.split('|').nth(2)).map(|cell| cell.matches('`').count() / 2).sum();
    assert_eq!(on_page, named.len());
}

#[test]
fn every_choice_of_random_programs_is_equal() {
    let mut compared = 0;
    for seed in 0..300 {
        let p = random::program(seed, random::Options { ops: 14, max_elems: 200 });
        compared += check_all_choices(&format!("seed {seed}"), p.func(), Class::ChangesIntermediate, &p.dims, seed).1;
    }
    assert!(compared > 100, "only {compared} choices");
}

#[test]
fn what_only_looks_alike_is_left_alone() {
    for (name, forbidden, types, build) in instances::LOOK_ALIKES {
        let f = Draw::first().func(types, *build);
        let (fired, _) = check_all_choices(name, &f, Class::ChangesIntermediate, &Draw::first().dims, 5);
        for (rule, count) in fired {
            assert!(count == 0 || !forbidden.contains(&rule), "{name}: {rule} fired\n{}", print(&module_of(&f)));
        }
        for rule in *forbidden {
            assert!(rules::all().iter().any(|r| r.name == *rule), "{name}: no rule '{rule}'");
        }
    }
    // Every rule has something that it leaves alone.
    for rule in rules::all() {
        let has_one = instances::LOOK_ALIKES.iter().any(|(_, forbidden, ..)| forbidden.contains(&rule.name));
        assert!(has_one, "nothing only looks like {}", rule.name);
    }
}

/// Domains of each kind: what attention may see, and the operands that say so. `H` in an operand's type is the number of key heads.
fn domains() -> Vec<(Domain, &'static [&'static str])> {
    let and = |a, b| Domain::And(Box::new(a), Box::new(b));
    let or = |a, b| Domain::Or(Box::new(a), Box::new(b));
    vec![
        (Domain::Full, &[]),
        (Domain::Causal, &[]),
        (and(Domain::Causal, Domain::Window(2)), &[]),
        (or(and(Domain::Causal, Domain::Window(1)), Domain::Prefix(2)), &[]),
        (Domain::EndsBefore { length: 2, stride: 1 }, &[]),
        (Domain::EndsAt(0), &["i32 B T"]),
        (and(Domain::Causal, Domain::Segments(0, 1)), &["i32 B T", "i32 B T"]),
        (and(Domain::Causal, Domain::Blocks { idx: 0, size: 2 }), &["i32 B T H 1"]),
        (Domain::Tokens(0), &["i32 B T H 2"]),
        (and(Domain::Causal, Domain::Groups { idx: 0, of: 1 }), &["i32 B T H 1", "i32 B T"]),
    ]
}

/// Plain, causal, windowed, packed and block attention are one op to the rules: what holds for one domain is done for each.
#[test]
fn rules_of_attention_hold_for_every_domain() {
    for name in [
        "attend-of-projected-keys",
        "attend-of-projected-values",
        "attend-of-repeated-heads",
        "attend-of-scaled-query",
        "map-of-attend",
        "scores-of-attend",
    ] {
        let (_, types, build) = INSTANCES.iter().find(|(n, ..)| *n == name).expect("it has an instance");
        // The key heads of the instance.
        let shared = name == "attend-of-repeated-heads";
        let heads = if shared {
            "6"
        } else if name == "scores-of-attend" {
            "2"
        } else {
            "H"
        };
        for (domain, operands) in domains() {
            let mut f = Func::new("f");
            let all = types.iter().map(|t| t.to_string());
            let all = all.chain(operands.iter().map(|t| t.replace('H', heads)));
            let args: Vec<Value> =
                all.enumerate().map(|(i, t)| f.arg(&format!("a{i}"), Role::Input, Draw::first().ty(&t))).collect();
            let outputs = build(&mut Builder::new(&mut f), &args[..types.len()]);
            outputs.into_iter().enumerate().for_each(|(i, v)| f.output(&format!("o{i}"), Role::Result, v));
            for node in f.nodes.values_mut() {
                if let Op::Attend(a) = &mut node.op {
                    a.domain = domain.clone();
                    node.inputs.extend(&args[types.len()..]);
                }
            }
            let what = format!("{name}, {domain:?}");
            assert_eq!(graph::verify_func(&f), [], "{what}");
            let (fired, _) = check_all_choices(&what, &f, Class::Reassociates, &Draw::first().dims, 2);
            let times = fired.iter().find(|(n, _)| *n == name).map(|(_, n)| *n).expect("it is in the table");
            // Heads whose keys are chosen for each share none.
            let of_each_head = operands.iter().any(|t| t.contains('H'));
            assert_eq!(times > 0, !(shared && of_each_head), "{what}: {fired:?}");
        }
    }
}

#[test]
fn the_gate_and_the_value_of_swiglu_are_not_swapped() {
    let f = Draw::first().func(&["f64 4", "f64 4"], |b, a| {
        let s = b.map(MapFn::Silu, &[a[0]]);
        vec![b.mul(a[1], s)]
    });
    let (out, _) = optimized(&f, Class::Reassociates);
    let (_, node) = out.funcs[0].nodes.iter().find(|(_, n)| n.op == Op::Map(MapFn::Swiglu)).expect("it is fused");
    assert_eq!(node.inputs, [f.arg_value(0), f.arg_value(1)]);
}

#[test]
fn products_of_other_rows_or_offsets_are_in_no_region_together() {
    for (same_rows, same_offsets, want) in [(true, true, 2), (false, true, 1), (true, false, 1)] {
        let f = Draw::first().func(&["f32 B K", "f32 B K", "f32 3 M K", "f32 3 M K", "i32 B 1", "i32 B 1"], |b, a| {
            let offsets = [a[4], a[5]].map(|c| b.node(Op::Route { groups: 3 }, &[c])[0]);
            let mut product = |x, w, i: usize| b.op(Op::GroupedContract { transposed: true }, &[x, w, offsets[i]]);
            // Which is which is told by the number of results.
            let all = [product(a[0], a[2], 0), product(a[0], a[3], 0), product(a[1], a[3], 0), product(a[0], a[3], 1)];
            all.to_vec()
        });
        let mut f = f;
        let [g, same, other_rows, other_offsets] = [0, 1, 2, 3].map(|i| f.outputs[i].value);
        let u = if !same_rows {
            other_rows
        } else if !same_offsets {
            other_offsets
        } else {
            same
        };
        f.outputs.clear();
        let h = Builder::new(&mut f).map(MapFn::Swiglu, &[g, u]);
        f.output("o", Role::Result, h);
        graph::passes::prune_dead(&mut f);
        let options = Options::default();
        let mut egraph = super::build(&f, &options).egraph;
        grow(&mut egraph, &rules::all(), &options);
        let of = |op: &Op| match op {
            Op::Fused(r) => Some(r.body.nodes.values().filter(|n| matches!(n.op, Op::GroupedContract { .. })).count()),
            _ => None,
        };
        let counts: Vec<usize> = egraph.analysis.ops.iter().filter_map(of).collect();
        assert!(!counts.is_empty() && counts.iter().all(|n| *n == want), "{counts:?}");
    }
}

/// A loop that routes by two choices, and one backwards over what they gave, which adds up rows by each.
fn routed_by_an_earlier_loop() -> Func {
    let ty = |text: &str| Draw::first().ty(text);
    let mut f = Func::new("f");
    let mut arg = |name: &str, text: &str| f.arg(name, Role::Input, ty(text));
    let choices = [arg("a", "i32 2 B 2"), arg("b", "i32 2 B 2")];
    let (rows, tokens) = (arg("rows", "f32 2 2*B K"), arg("tokens", "f32 2 B K"));
    let mut first = Func::new("body");
    let chosen = ["a", "b"].map(|name| first.arg(name, Role::Inner, ty("i32 B 2")));
    for (i, c) in chosen.into_iter().enumerate() {
        let route = Builder::new(&mut first).node(Op::Route { groups: 3 }, &[c]);
        first.output(&format!("source{i}"), Role::Inner, route[1]);
        first.output(&format!("position{i}"), Role::Inner, route[2]);
    }
    let of =
        |body: Func, reverse: bool| Op::Repeat(Box::new(graph::op::Repeat { count: 2, carried: 0, constant: 0, reverse, body }));
    let routed = Builder::new(&mut f).node(of(first, false), &choices);
    let mut second = Func::new("body");
    let mut arg = |name: &str, text: &str| second.arg(name, Role::Inner, ty(text));
    let of_routes = [0, 1].map(|i| [arg(&format!("source{i}"), "i32 2*B"), arg(&format!("position{i}"), "i32 B 2")]);
    let (v, y) = (arg("rows", "f32 2*B K"), arg("tokens", "f32 B K"));
    for (i, [source, position]) in of_routes.into_iter().enumerate() {
        let mut b = Builder::new(&mut second);
        let two = b.full_like(source, 2.0);
        let token = b.map(MapFn::FloorDiv, &[source, two]);
        let sum = b.op(Op::ScatterAdd { batch: 0, n: Dim::sym("B") }, &[token, v]);
        let each = b.broadcast(y, &[Dim::sym("B"), Dim::from(2), Dim::from(5)], &[0, 2]);
        let back = b.op(Op::ScatterAdd { batch: 0, n: Dim::sym("B") * Dim::from(2) }, &[position, each]);
        second.output(&format!("sum{i}"), Role::Inner, sum);
        second.output(&format!("back{i}"), Role::Inner, back);
    }
    let sums = Builder::new(&mut f).node(of(second, true), &[routed, vec![rows, tokens]].concat());
    sums.into_iter().enumerate().for_each(|(i, v)| f.output(&format!("o{i}"), Role::Result, v));
    f
}

#[test]
fn rows_are_picked_by_the_routing_of_an_earlier_loop_and_no_other() {
    let f = routed_by_an_earlier_loop();
    let (out, reports) = optimize(&module_of(&f), &cost, &Options::default());
    for rule in ["scatter-add-by-position", "scatter-add-by-source"] {
        assert!(reports.iter().flat_map(|r| &r.fired).any(|(name, g)| name == rule && g.times == 2), "{rule}: {reports:?}");
    }
    for seed in 0..4 {
        let dims = [("B".into(), 1 + 3 * seed as i64)].into_iter().collect();
        assert_agree("two routings", &run(&f, &dims, seed), &run(&out.funcs[0], &dims, seed));
    }
    // What the first loop gives is no routing of the second's if it is not of the same turn.
    let mut f = f;
    let loops: Vec<_> = f.nodes.iter().filter(|(_, n)| matches!(n.op, Op::Repeat(_))).map(|(id, _)| id).collect();
    let Op::Repeat(r) = &mut f.nodes[loops[0]].op else { panic!("a loop") };
    let [source, position] = [0, 3].map(|i| r.body.outputs[i].value);
    (r.body.outputs[0].value, r.body.outputs[1].value) = (source, position);
    let of = super::routing::routings(&f, loops[1]);
    assert_eq!(of, [[None, Some(0), None], [None, Some(2), Some(1)]]);
}

#[test]
fn rules_of_a_looser_class_are_off_when_not_asked_for() {
    for rule in rules::all().into_iter().filter(|r| r.class > Class::Exact) {
        let (_, types, build) = INSTANCES.iter().find(|(n, ..)| *n == rule.name).expect("tested above");
        let (_, report) = optimized(&Draw::first().func(types, *build), Class::Exact);
        assert!(report.fired.iter().all(|(n, _)| n != rule.name), "{report:?}");
    }
}

#[test]
fn the_same_program_gives_the_same_text() {
    for (_, types, build) in INSTANCES {
        let f = Draw::first().func(types, *build);
        let run = || print(&optimized(&f, Class::ChangesIntermediate).0);
        assert_eq!(run(), run());
    }
}

#[test]
fn nothing_gets_dearer() {
    // Where merging costs more than it brings, the products stay.
    let f = Draw::first().func(&["f32 B 4", "f32 4 3", "f32 4 5"], |b, a| {
        vec![b.contract("bd,df->bf", a[0], a[1]), b.contract("bd,df->bf", a[0], a[2])]
    });
    let module = module_of(&f);
    let dear = |op: &Op, operands: &[&TensorType], results: &[TensorType]| match op {
        Op::Concat(_) => 1e9,
        op => cost(op, operands, results),
    };
    let (out, reports) = optimize(&module, &dear, &Options::default());
    assert_eq!(reports[0].cost.0, reports[0].cost.1);
    assert_eq!(print(&out), print(&module));
    // And of random programs none does, with a cost that has nothing to do with what the rules are for.
    for seed in 0..200 {
        let p = random::program(seed, random::Options { ops: 30, max_elems: 500 });
        let odd = |op: &Op, _: &[&TensorType], _: &[TensorType]| op.name().bytes().map(f64::from).sum::<f64>() % 17.0;
        for (name, cost) in [("real", &cost as Cost), ("odd", &odd)] {
            for r in optimize(&p.module, cost, &Options::default()).1 {
                assert!(r.cost.1 <= r.cost.0, "seed {seed}, {name}: {r:?}");
            }
        }
    }
}

#[test]
fn the_node_limit_stops_growth_and_the_result_stays_whole() {
    let m = source::module("llama", "");
    let limited = Options { node_limit: 120, ..Options::default() };
    let (out, reports) = optimize(&m, &cost, &limited);
    assert_eq!(graph::verify::verify(&out), []);
    // A term is added whole, and joins add a few nodes after the limit.
    assert!(
        reports.iter().all(|r| r.num_nodes.1 <= r.num_nodes.0.max(120) + 40),
        "{:?}",
        reports.iter().map(|r| r.num_nodes).collect::<Vec<_>>()
    );
}

#[test]
fn what_made_an_op_and_what_else_there_was() {
    let (_, types, build) = INSTANCES.iter().find(|(n, ..)| *n == "contract-of-shared-operand").expect("it is there");
    let module = module_of(&Draw::first().func(types, *build));
    let (_, reports) = optimize(&module, &cost, &Options { explain: true, ..Options::default() });
    let r = &reports[0];
    let made: Vec<(&str, &str)> = r.chosen.iter().map(|s| (s.rule, s.op)).collect();
    let rule = "contract-of-shared-operand";
    assert_eq!(made, [(rule, "concat"), (rule, "contract"), (rule, "slice"), (rule, "slice")]);
    // The joined product is both products, each slice its own; the joined weights are part of the joined product.
    let old: BTreeSet<NodeId> = module.funcs[0].nodes.iter().filter(|(_, n)| n.op.name() == "contract").map(|(i, _)| i).collect();
    let sizes: Vec<usize> = r.chosen.iter().map(|s| s.replaced.len()).collect();
    assert_eq!(sizes, [2, 2, 1, 1]);
    assert!(r.chosen.iter().all(|s| s.replaced.is_subset(&old)));
    assert_eq!(r.alternatives.len(), 2, "{:?}", r.alternatives);
    assert!(r.alternatives.iter().all(|a| a.instead_of == "slice" && a.written.is_subset(&old) && a.operands.len() == 2));
    // One product by itself beside the joined one is dearer than what was chosen.
    assert!(
        r.alternatives.iter().all(|a| a.rule.is_none() && a.op.name() == "contract" && a.cost > r.cost.1),
        "{:?}",
        r.alternatives
    );
}

/// Attention reads rows: of a slice between columns, or of one that is given, there is a copy; of the first rows there is none, nor for a product.
#[test]
fn a_view_costs_its_copy_where_one_is_made() {
    let of = |body: &str| {
        let head = "dims T\nmodel m(q: [1, T, 2, 8], k: [1, T, 2, 8], x: [1, T, 4, 8], w: [8, 3])";
        let module = source::compile(&format!("{head} {body}"), "");
        let f = &module.funcs[0];
        let kept: BTreeSet<&str> = f.nodes.values().map(|n| n.op.name()).collect();
        assert!(kept.contains("slice"), "{kept:?}");
        program_cost(f, &tile::cost::op_cost)
            - f.nodes
                .values()
                .map(|n| {
                    let x: Vec<&TensorType> = n.inputs.iter().map(|v| f.ty(*v)).collect();
                    if matches!(n.op, Op::Arg(_)) { 0.0 } else { tile::cost::op_cost(&n.op, &x, &n.types) }
                })
                .sum::<f64>()
    };
    let ty = |t: &str| TensorType {
        dtype: DType::F32,
        shape: t.split(' ').map(|d| d.parse::<i64>().map_or(Dim::sym(d), Dim::from)).collect(),
    };
    let copy = |t: &str| tile::cost::op_cost(&Op::Concat(0), &[&ty(t)], &[ty(t)]);
    assert_eq!(of("-> [1, T, 2, 8] { attend(q, k, x[:, :, 1:3, :], causal(), scale: 1.0) }"), copy("1 T 2 8"));
    assert_eq!(of("-> [1, 3, 2, 8] { attend(q[:, 0:3, :, :], k, k, causal(), scale: 1.0) }"), 0.0);
    assert_eq!(of("-> [1, T, 2, 3] { x[:, :, 1:3, :] @ w }"), 0.0);
    assert_eq!(of("-> [1, T, 2, 8] { x[:, :, 1:3, :] }"), copy("1 T 2 8"));
}
