//! Used files, overrides, the outline, and that no text makes it crash.

use super::*;
use base::diag::Entry;

fn with_files(files: &[(&str, &str)], set: &[(&str, &str)], config: &[(&str, Constant)]) -> (Option<Program>, Vec<String>) {
    let mut sources = Sources::default();
    let root = sources.add("model.lode", files[0].1);
    let mut diags = Diags::new();
    let mut load = |name: &str| files[1..].iter().find(|(n, _)| *n == name).map(|(_, t)| (*t).to_string());
    let overrides = Overrides {
        set: set.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect(),
        config: config.iter().map(|(n, v)| ((*n).into(), v.clone())).collect(),
    };
    let program = lower(root, &mut sources, &mut load, &overrides, &mut diags);
    let told = |e: &Entry| format!("{}: {}", sources.get(e.span.file).name, e.error);
    (program, diags.into_sorted().iter().map(told).collect())
}

#[test]
fn a_used_file_sees_its_own_names() {
    let lib = "config { eps = 0.5 }\nprecision { compute = bf16 }\nuse std.softmax\nfn soft(x: [..S, n]) -> [..S, n] { softmax(x) + eps }";
    let root = "use lib.layers.{soft}\ndims B\nconfig { eps = 2 }\nmodel m(x: [B, 4]) -> [B, 4] { soft(x) }";
    let (program, told) = with_files(&[("", root), ("lib/layers.lode", lib)], &[], &[]);
    assert!(program.is_some(), "{told:?}");
    let (_, told) = with_files(&[("", root)], &[], &[]);
    assert_eq!(told[0], "model.lode: cannot use lib/layers.lode: there is no such file");
    let circle = "use model.{m}\nfn soft(x: [..S]) -> [..S] { x }";
    let (_, told) = with_files(&[("", root), ("lib/layers.lode", circle)], &[], &[]);
    assert_eq!(told, ["lib/layers.lode: cannot use model.lode: it uses this file in turn"]);
    let wrong = "fn soft(x: [..S, n]) -> [..S, n] { x }\nfn other(x: [n]) -> [n] { x @ x @ x }";
    let (_, told) = with_files(&[("", root), ("lib/layers.lode", wrong)], &[], &[]);
    assert_eq!(told, ["lib/layers.lode: @: f32[] @ f32[n]: a scalar has no axis to contract"]);
}

#[test]
fn a_name_defined_and_used_is_told_unless_it_is_the_same() {
    let lib = "fn f(x: [..S]) -> [..S] { x }";
    for (root, want) in [
        ("use lib.f\nuse lib.{f}\ndims B\nmodel m(x: [B]) -> [B] { f(x) }", None),
        ("use lib.f\ndims B\nfn f(x: [..S]) -> [..S] { x }\nmodel m(x: [B]) -> [B] { f(x) }", Some("'f' is defined twice")),
        ("dims B\nconfig { B = 3 }\nmodel m(x: [B]) -> [B] { x }", Some("'B' is defined twice")),
    ] {
        let (_, told) = with_files(&[("", root), ("lib.lode", lib)], &[], &[]);
        assert_eq!(told.first().map(|t| t.trim_start_matches("model.lode: ")), want);
    }
}

#[test]
fn overrides_replace_defaults_of_their_kind() {
    let text = "dims B\nconfig { d = 4, e = 2 * d, x = 1.0, on = false, name = \"a\" }\nmodel m(x: [B, d]) -> [B, d] { x @ param w: [d, d] }";
    let (program, told) = with_files(
        &[("", text)],
        &[("d", "1_6"), ("x", "3"), ("on", "true"), ("name", "7")],
        &[("d", Constant::Int(5)), ("other", Constant::Int(5)), ("e", Constant::Int(9))],
    );
    let config: Vec<String> =
        program.unwrap_or_else(|| panic!("{told:?}")).config.iter().map(|(n, c)| format!("{n}={c}")).collect();
    assert_eq!(config, ["d=16", "e=9", "x=3.0", "on=true", "name=\"7\""]);
    let (_, told) = with_files(&[("", text)], &[("dd", "3"), ("d", "many")], &[]);
    assert_eq!(
        told,
        ["model.lode: config 'dd': there is no such value to set", "model.lode: config 'd': \"many\" cannot replace 4"]
    );
}

#[test]
fn the_outline_shows_calls_names_and_loops() {
    let p = ok("use std.rmsnorm
        block f(x: [B, T, d], s: float = 2.0) -> [B, T, d] { rmsnorm(x) * s }
        model m(x: [B, T, d]) -> [B, T, d] { let y = x; repeat n as layers { y = y + f(y) as g }; y }");
    let text = crate::print(&p);
    let outline = &text[text.find("param").expect("a parameter")..];
    assert_eq!(
        outline,
        "param layers.*.g.rmsnorm.weight: f32[3, 8] = constant(1.0) nodecay
model m(x: f32[B, T, 8]) -> f32[B, T, 8]
  let y: f32[B, T, 8]
  repeat 3 as layers
    f(x: f32[B, T, 8], s: the float 2.0) -> f32[B, T, 8]
      rmsnorm(x: f32[B, T, 8], eps: the float 1e-6) -> f32[B, T, 8]
        rmsnorm_with(x: f32[B, T, 8], w: f32[8], eps: the float 1e-6) -> f32[B, T, 8]
          let y: f32[B, T, 8]
"
    );
}

#[test]
fn products_in_tf32_round_operands_alone() {
    let build = |precision: &str| {
        let text = format!(
            "dims B\nprecision {{ {precision} }}
            model m(x: [B, 4]) -> [B, 4] {{ contract(\"b i, i o -> b o\", x, param w: [4, 8]) @ param v: [8, 4] }}"
        );
        with_files(&[("", text.as_str())], &[], &[])
    };
    let types = |precision: &str| {
        let (p, told) = build(precision);
        let p = p.unwrap_or_else(|| panic!("{told:?}"));
        let func = p.module.func("forward").expect("a model has a forward").clone();
        let rounded = func.nodes.values().filter(|n| matches!(n.op, graph::Op::Cast(DType::TF32))).count();
        let products = func.nodes.values().filter(|n| matches!(n.op, graph::Op::Contract(_)));
        (rounded, products.map(|n| n.types[0].dtype).collect::<Vec<_>>())
    };
    assert_eq!(types("matmul = tf32"), (4, vec![DType::F32; 2]));
    assert_eq!(types("compute = f32, matmul = f32"), (0, vec![DType::F32; 2]));
    assert_eq!(types("compute = bf16, matmul = bf16"), (0, vec![DType::BF16; 2]));
    for (precision, why) in [
        ("compute = bf16, matmul = tf32", "products of bf16 in tf32"),
        ("matmul = bf16", "products of f32 in bf16"),
        ("compute = tf32", "compute in tf32"),
        ("storage = tf32", "storage in tf32"),
    ] {
        let (p, told) = build(precision);
        assert!(p.is_none() && format!("{told:?}").contains(why), "{precision}: {told:?}");
    }
}

#[test]
fn bf16_models_keep_parameters_in_storage_and_states_in_f32() {
    let (p, told) = with_files(
        &[(
            "",
            "dims B\nprecision { storage = f32, accumulate = f32, compute = bf16 }
            block f(x: [B, 4]) -> [B, 4] {
              state s: [4] = zeros
              tally c: [4] = sum(x, axis: 0)
              after step { s = s + c }
              x @ param w: [4, 4] + cast(param b: f32[4] = zeros, x)
            }
            model m(x: [B, 4]) -> [B, 4] { f(x) }
            fn sgd(p: [..S], g: [..S], lr: f32[]) -> [..S] { p - lr * g }
            train(x: [B, 4]) { minimize sum(m(x))  with sgd(lr: 0.1) }",
        )],
        &[],
        &[],
    );
    let p = p.unwrap_or_else(|| panic!("{told:?}"));
    assert!(graph::verify::verify(&p.module).is_empty());
    let types: Vec<String> = p.module.params.iter().map(|p| format!("{} {}", p.name, p.ty)).collect();
    assert_eq!(types, ["f.s f32[4]", "f.w f32[4, 4]", "f.b f32[4]"]);
    let forward = p.module.func("forward").expect("a forward");
    assert_eq!(forward.ty(forward.outputs[0].value).to_string(), "bf16[B, 4]");
}

#[test]
fn the_standard_library_passes_the_check_of_definitions() {
    for (name, text) in crate::std_lib::MODULES {
        let mut sources = Sources::default();
        let root = sources.add(&format!("{name}.lode"), text);
        let mut diags = Diags::new();
        let modules = crate::modules::resolve(root, &mut sources, &mut |_| None, &Overrides::default(), &mut diags);
        crate::check::definitions_of(&modules, root, &mut diags);
        let told: Vec<String> = diags.into_sorted().iter().map(|e| e.error.to_string()).collect();
        assert_eq!(told, ["the file has no model"], "{name}");
    }
}

#[test]
fn no_damaged_text_makes_it_crash() {
    let models =
        [include_str!("../../../../models/strata/model.lode"), include_str!("../../../../models/deepseek_v3/model.lode")];
    let texts: Vec<&str> = models.into_iter().chain(crate::std_lib::MODULES.iter().map(|(_, t)| *t)).collect();
    let words: Vec<&str> =
        "0 -1 9223372036854775807 1e300 x d B [ ] (x,x) [x] f32 \"a(b\" .. new true zeros".split(' ').collect();
    let mut rng = Rng(99);
    for round in 0..300 {
        let mut tokens: Vec<String> = Vec::new();
        let mut rest = texts[rng.below(texts.len())];
        while let Some(c) = rest.chars().next() {
            let word = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len()).max(c.len_utf8());
            tokens.push(rest[..word].into());
            rest = &rest[word..];
        }
        for _ in 0..=rng.below(4) {
            let (i, j) = (rng.below(tokens.len()), rng.below(tokens.len()));
            match rng.below(4) {
                0 => tokens[i].clear(),
                1 => tokens[i] = words[rng.below(words.len())].into(),
                2 => tokens[i] = tokens[j].clone(),
                _ => tokens.swap(i, j),
            }
        }
        let text = format!("{}\ndims B, T\nmodel mm(x: [B, T, 8]) -> [B, T, 8] {{ rmsnorm(x) }}", tokens.concat());
        match std::panic::catch_unwind(|| lower_text(&text).map(|p| graph::verify::verify(&p.module))) {
            Ok(Ok(violations)) => assert!(violations.is_empty(), "round {round}: {violations:?}\n{text}"),
            Ok(Err(told)) => assert!(!told.is_empty(), "round {round}:\n{text}"),
            Err(_) => panic!("round {round} crashed:\n{text}"),
        }
    }
}

#[test]
fn chains_of_calls_that_double_end() {
    let mut text = String::from("dims B\nfn f0(x: [B]) -> [B] { x }\n");
    for i in 1..40 {
        text.push_str(&format!("fn f{i}(x: [B]) -> [B] {{ f{}(x) + f{}(x) }}\n", i - 1, i - 1));
    }
    text.push_str("model m(x: [B]) -> [B] { f39(x) }");
    let told = errors(&text);
    assert!(told.iter().any(|t| t.contains("E0208 the program makes 100000 calls")), "{told:?}");
}
