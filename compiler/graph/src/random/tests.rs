//! Programs are whole, varied, and the same again.

use super::*;
use crate::{text, verify};
use std::collections::BTreeMap;

/// Each op, function and domain of the function and its loops, counted.
fn count(func: &Func, seen: &mut BTreeMap<String, usize>) {
    fn domain(d: &Domain, seen: &mut BTreeMap<String, usize>) {
        let name = format!("{d:?}");
        let name = name.split(|c: char| !c.is_alphanumeric()).next().expect("a word");
        *seen.entry(format!("domain {name}")).or_default() += 1;
        if let Domain::And(a, b) | Domain::Or(a, b) = d {
            domain(a, seen);
            domain(b, seen);
        }
    }
    for node in func.nodes.values() {
        *seen.entry(node.op.name().into()).or_default() += 1;
        for t in &node.types {
            *seen.entry(t.dtype.to_string()).or_default() += 1;
            t.shape.iter().filter_map(Dim::known).for_each(|n| *seen.entry(format!("extent {n}")).or_default() += 1);
        }
        match &node.op {
            Op::Map(f) => *seen.entry(f.name().into()).or_default() += 1,
            Op::Attend(a) | Op::AttendGrad(a) => domain(&a.domain, seen),
            op => {
                if let Some(body) = op.body() {
                    count(body, seen);
                }
            }
        }
    }
}

#[test]
fn programs_are_whole_and_varied() {
    let mut seen = BTreeMap::new();
    for seed in 0..600 {
        let p = program(seed, Options::default());
        assert_eq!(verify(&p.module), [], "{seed}");
        let args = args(p.func(), &p.dims, seed);
        interp::eval(p.func(), &args, &p.dims, InterpOptions::EXACT).unwrap_or_else(|e| panic!("{seed}: {e}"));
        count(p.func(), &mut seen);
    }
    let ops = [
        "arg",
        "const",
        "extent",
        "iota",
        "map",
        "cast",
        "reduce",
        "broadcast",
        "transpose",
        "reshape",
        "slice",
        "concat",
        "pad",
        "contract",
        "gather",
        "scatter_add",
        "topk",
        "cumsum",
        "attend",
        "attend_grad",
        "route",
        "grouped_contract",
        "grouped_outer",
        "quantize",
        "dequantize",
        "stop_gradient",
        "repeat",
        "fused",
    ];
    let domains =
        ["Full", "Causal", "Window", "Prefix", "EndsBefore", "EndsAt", "Segments", "Blocks", "Groups", "Tokens", "And", "Or"]
            .map(|d| format!("domain {d}"));
    let names = ops.iter().map(|s| s.to_string()).chain(domains);
    let names = names.chain(MapFn::ALL.iter().map(|f| f.name().into())).chain(DType::ALL.iter().map(DType::to_string));
    for name in names.chain(["extent 0".into(), "extent 1".into(), "extent 33".into()]) {
        assert!(seen.contains_key(&name), "no {name} in {seen:?}");
    }
}

#[test]
fn a_seed_is_a_program() {
    let texts: Vec<String> = (0..40).map(|seed| text::print(&program(seed, Options::default()).module)).collect();
    for (seed, text) in texts.iter().enumerate() {
        assert_eq!(text::print(&program(seed as u64, Options::default()).module), *text, "{seed}");
        assert_eq!(
            texts.iter().filter(|t| t.split_once('{').map(|s| s.1) == text.split_once('{').map(|s| s.1)).count(),
            1,
            "{seed}"
        );
    }
}

#[test]
fn an_argument_depends_on_its_name_alone() {
    let p = (0..).map(|seed| program(seed, Options::default())).find(|p| p.func().args.len() > 2).expect("there is one");
    let mut fewer = Func::new("f");
    let (second, _, ty) = p.func().arg_values().nth(1).expect("it has three");
    fewer.arg(&second.name, Role::Input, ty.clone());
    assert_eq!(args(&fewer, &p.dims, 3)[0], args(p.func(), &p.dims, 3)[1]);
}
