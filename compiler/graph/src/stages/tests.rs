//! A small model with two loops of layers, a tied table, tallies and a penalty: its stages, one after the other, against the whole.

use super::*;
use crate::{
    Value,
    autodiff::{Remat, Seed, grad},
    build::Builder,
    interp::{self, Options, Tensor},
    ir::{Init, ParamDecl},
    op::MapFn,
    passes, verify_func,
};
use base::{DType, Dim, DimEnv, TensorType};
use std::collections::BTreeMap;

const PARAMS: [(&str, &[i64]); 5] =
    [("table", &[5, 3]), ("a.*.w", &[3, 3, 3]), ("a.*.bias", &[3, 3]), ("b.*+3.w", &[2, 3, 3]), ("gain", &[3])];

fn of(dtype: DType, shape: &[Dim]) -> TensorType {
    TensorType::new(dtype, shape.to_vec())
}
fn dims(shape: &[i64]) -> Vec<Dim> {
    shape.iter().map(|n| Dim::from(*n)).collect()
}

/// x ← tanh(x·w + scale·bias), and the mean of its square stacked; `bias` may be absent.
fn layers_of(b: &mut Builder, count: i64, x: Value, scale: Value, stacked: &[Value]) -> Vec<Value> {
    let mut body = Func::new("body");
    let carried = body.arg("x", Role::Inner, b.func.ty(x).clone());
    let constant = body.arg("scale", Role::Inner, b.func.ty(scale).clone());
    let slices: Vec<Value> = stacked
        .iter()
        .enumerate()
        .map(|(i, v)| {
            let mut ty = b.func.ty(*v).clone();
            ty.shape.remove(0);
            body.arg(&format!("s{i}"), Role::Inner, ty)
        })
        .collect();
    let mut t = Builder::new(&mut body);
    let mut y = t.contract("td,de->te", carried, slices[0]);
    let shape = t.func.ty(y).shape.clone();
    if let Some(bias) = slices.get(1) {
        let bias = t.broadcast(*bias, &shape, &[1]);
        y = t.add(y, bias);
    }
    let constant = t.broadcast(constant, &shape, &[0]);
    let y = t.mul(y, constant);
    let next = t.map(MapFn::Tanh, &[y]);
    let square = t.mul(next, next);
    let load = t.sum(square, &[0]);
    body.output("x", Role::Inner, next);
    body.output("load", Role::Inner, load);
    let operands = [vec![x, scale], stacked.to_vec()].concat();
    b.node(Op::Repeat(Box::new(Repeat { count, carried: 1, constant: 1, reverse: false, body })), &operands)
}
fn model() -> Module {
    let t = Dim::sym("T");
    let mut f = Func::new("loss");
    let p = PARAMS.map(|(name, shape)| f.arg(name, Role::Param, of(DType::F64, &dims(shape))));
    let target = f.arg("a.*.state", Role::State, of(DType::F64, &dims(&[3, 3])));
    let tokens = f.arg("tokens", Role::Input, of(DType::I32, std::slice::from_ref(&t)));
    let weights = f.arg("weights", Role::Input, of(DType::F64, std::slice::from_ref(&t)));
    let mut b = Builder::new(&mut f);
    let x = b.op(Op::Gather { batch: 0 }, &[p[0], tokens]);
    // Of the inputs alone: every stage computes it.
    let scale = b.cast(tokens, DType::F64);
    let scale = b.map(MapFn::Cos, &[scale]);
    let sum = b.add(p[2], target);
    let first = layers_of(&mut b, 3, x, scale, &[p[1], sum]);
    let second = layers_of(&mut b, 2, first[0], scale, &[p[3]]);
    // Read again after both loops: it crosses every boundary between.
    let skipped = b.add(second[0], x);
    let gain = b.broadcast(p[4], &[t.clone(), Dim::from(3)], &[1]);
    let scaled = b.mul(skipped, gain);
    let head = b.transpose(p[0], &[1, 0]);
    let logits = b.contract("td,dv->tv", scaled, head);
    let each = b.sum(logits, &[1]);
    let each = b.map(MapFn::Sin, &[each]);
    let weighted = b.mul(each, weights);
    let total = b.sum(weighted, &[0]);
    let penalty = b.sum(first[1], &[0, 1]);
    let loss = b.add(total, penalty);
    f.output("loss", Role::Scalar, loss);
    f.output("a.*.load", Role::Tally, first[1]);

    let mut norm = Func::new("norm");
    let grads = PARAMS.map(|(name, shape)| norm.arg(name, Role::Grad, of(DType::F64, &dims(shape))));
    for ((name, shape), g) in PARAMS.iter().zip(grads) {
        let mut b = Builder::new(&mut norm);
        let square = b.mul(g, g);
        let axes: Vec<usize> = (usize::from(name.contains('*'))..shape.len()).collect();
        let sum = b.sum(square, &axes);
        norm.output(name, Role::Result, sum);
    }

    let mut update = Func::new("update");
    let old = PARAMS.map(|(name, shape)| update.arg(name, Role::Param, of(DType::F64, &dims(shape))));
    let state = update.arg("a.*.state", Role::State, of(DType::F64, &dims(&[3, 3])));
    let grads = PARAMS.map(|(name, shape)| update.arg(name, Role::Grad, of(DType::F64, &dims(shape))));
    let load = update.arg("a.*.load", Role::Tally, of(DType::F64, &dims(&[3, 3])));
    let rate = update.arg("grad_norm", Role::Scalar, TensorType::scalar(DType::F64));
    for (((name, shape), p), g) in PARAMS.iter().zip(old).zip(grads) {
        let mut b = Builder::new(&mut update);
        let rate = b.splat(rate, &dims(shape));
        let step = b.mul(g, rate);
        let next = b.add(p, step);
        update.output(name, Role::Param, next);
    }
    let mut body = Func::new("body");
    let args = ["k", "s"].map(|n| body.arg(n, Role::Inner, of(DType::F64, &dims(&[3]))));
    let next = Builder::new(&mut body).add(args[0], args[1]);
    body.output("next", Role::Inner, next);
    let after = Repeat { count: 3, carried: 0, constant: 0, reverse: false, body };
    let next = Builder::new(&mut update).node(Op::Repeat(Box::new(after)), &[state, load])[0];
    update.output("a.*.state", Role::State, next);

    let declare = |(name, shape): &(&str, &[i64])| ParamDecl {
        name: (*name).into(),
        ty: of(DType::F64, &dims(shape)),
        init: Init::Normal(1.0),
        decay: true,
        role: Role::Param,
    };
    let mut params: Vec<ParamDecl> = PARAMS.iter().map(declare).collect();
    params.push(ParamDecl { role: Role::State, ..declare(&("a.*.state", &[3, 3])) });
    Module { name: "m".into(), params, funcs: vec![f, norm, update] }
}

type Store = BTreeMap<(Role, String), Tensor>;

/// Runs an entry: arguments by role and name from `store`, outputs into it.
fn call(f: &Func, store: &mut Store, env: &DimEnv) {
    let args: Vec<Tensor> = f
        .args
        .iter()
        .map(|a| {
            store.get(&(a.role, a.name.clone())).unwrap_or_else(|| panic!("{} misses {:?} {}", f.name, a.role, a.name)).clone()
        })
        .collect();
    let results = interp::eval(f, &args, env, Options::EXACT).expect("it evaluates");
    for (o, t) in f.outputs.iter().zip(results) {
        store.insert((o.role, o.name.clone()), t);
    }
}

fn tensor(dtype: DType, shape: &[i64], f: impl Fn(usize) -> f64) -> Tensor {
    let n = shape.iter().product::<i64>() as usize;
    Tensor { dtype, shape: shape.to_vec(), data: (0..n).map(f).collect() }
}

/// A stack's slice, by the number in its name.
fn part(whole: &Tensor, start: usize, len: usize) -> Tensor {
    let each = whole.data.len() / whole.shape[0] as usize;
    let mut shape = whole.shape.clone();
    shape[0] = len as i64;
    Tensor { dtype: whole.dtype, shape, data: whole.data[start * each..(start + len) * each].to_vec() }
}

/// Of a whole store what a stage's entries name: its layers.
fn find(store: &Store, role: Role, name: &str, len: i64) -> Tensor {
    let base = |n: &str| n.split('.').filter(|p| !p.starts_with('*')).collect::<Vec<_>>().join(".");
    let start =
        |n: &str| n.split('.').find_map(|p| p.strip_prefix('*')).map_or(0, |r| r.trim_start_matches('+').parse().unwrap_or(0));
    if let Some(t) = store.get(&(role, name.to_string())).filter(|t| t.shape.first() == Some(&len) || len == 0) {
        return t.clone();
    }
    let ((_, whole), t) = store.iter().find(|((r, n), _)| *r == role && base(n) == base(name)).expect("of the whole");
    part(t, start(name) - start(whole), len as usize)
}

#[test]
fn stages_are_the_whole() {
    let mut module = model();
    let env: DimEnv = [("T".into(), 4)].into();
    let mut whole = Store::new();
    for (k, p) in module.params.iter().enumerate() {
        let shape: Vec<i64> = p.ty.shape.iter().map(|d| d.known().expect("known")).collect();
        whole.insert((p.role, p.name.clone()), tensor(DType::F64, &shape, |i| ((i * 7 + k * 3) as f64).sin() * 0.7));
    }
    whole.insert((Role::Input, "tokens".into()), tensor(DType::I32, &[4], |i| ((i * 3) % 5) as f64));
    whole.insert((Role::Input, "weights".into()), tensor(DType::F64, &[4], |i| 0.3 + i as f64));
    whole.insert((Role::Scalar, "grad_norm".into()), tensor(DType::F64, &[], |_| -0.25));
    let given = whole.clone();
    let loss = module.func("loss").expect("it has a loss");
    let wrt: Vec<usize> = (0..PARAMS.len()).collect();
    let joint = grad(loss, &wrt, Seed { objective: "loss", remat: Remat::Cheap }).expect("it has a gradient");
    call(&joint, &mut whole, &env);
    for name in ["norm", "update"] {
        call(module.func(name).expect("an entry"), &mut whole, &env);
    }
    passes::run(&mut module, passes::PIPELINE, true).expect("passes keep it");

    for layout in [vec![5], vec![2, 3], vec![3, 2], vec![1, 1, 1, 1, 1], vec![0, 4, 1, 0]] {
        let run = |m: &mut Module| drop(passes::run(m, passes::PIPELINE, true).expect("passes keep it"));
        let stages = split(&module, &Layout(layout.clone()), &run).expect("it is cut");
        assert_eq!(stages.len(), layout.len());
        for whole_backward in [true, false] {
            let mut stores: Vec<Store> = stages
                .iter()
                .map(|m| {
                    let mut store: Store = given
                        .iter()
                        .filter(|((r, _), _)| matches!(r, Role::Input | Role::Scalar))
                        .map(|(k, t)| (k.clone(), t.clone()))
                        .collect();
                    for p in &m.params {
                        let len = p.ty.shape[0].known().expect("known");
                        store.insert((p.role, p.name.clone()), find(&given, p.role, &p.name, len));
                    }
                    for f in &m.funcs {
                        assert_eq!(verify_func(f), [], "{layout:?}");
                        for (a, _, ty) in f.arg_values().filter(|(a, ..)| matches!(a.role, Role::Grad | Role::Tally)) {
                            let shape: Vec<i64> = ty.shape.iter().map(|d| d.known().expect("known")).collect();
                            store.insert((a.role, a.name.clone()), tensor(ty.dtype, &shape, |_| 0.0));
                        }
                    }
                    store
                })
                .collect();
            let hand = |from: &Store, to: &mut Store, prefix: &str, other: &str| {
                for ((role, name), t) in from.iter().filter(|((r, n), _)| *r == Role::Inner && n.starts_with(prefix)) {
                    to.insert((*role, format!("{other}{}", &name[prefix.len()..])), t.clone());
                }
            };
            for s in 0..stages.len() {
                call(stages[s].func("forward").expect("an entry"), &mut stores[s], &env);
                if s + 1 < stages.len() {
                    let (a, b) = stores.split_at_mut(s + 1);
                    hand(&a[s], &mut b[0], "out.", "in.");
                }
            }
            let last = stages.len() - 1;
            assert_eq!(
                stores[last][&(Role::Scalar, "loss".to_string())],
                whole[&(Role::Scalar, "loss".to_string())],
                "{layout:?}"
            );
            for s in (0..stages.len()).rev() {
                let names: &[&str] = if whole_backward { &["backward"] } else { &["backward_input", "backward_weight"] };
                names.iter().for_each(|n| call(stages[s].func(n).expect("an entry"), &mut stores[s], &env));
                if s > 0 {
                    let (a, b) = stores.split_at_mut(s);
                    hand(&b[0], &mut a[s - 1], "d_in.", "d_out.");
                }
            }
            // The table is the first stage's and the last one's: its gradients are summed.
            let table = (Role::Grad, "table".to_string());
            if last > 0 {
                let sum: Vec<f64> = stores[0][&table].data.iter().zip(&stores[last][&table].data).map(|(a, b)| a + b).collect();
                for s in [0, last] {
                    stores[s].get_mut(&table).expect("both have it").data.clone_from(&sum);
                }
            }
            let mut seen = 0;
            for (m, store) in stages.iter().zip(&mut stores) {
                call(m.func("norm").expect("an entry"), store, &env);
                let parts = m.funcs.iter().filter(|f| f.name.starts_with("update."));
                assert!(parts.clone().count() > 0);
                parts.for_each(|f| call(f, store, &env));
                for ((role, name), t) in store.iter().filter(|((r, _), _)| !matches!(r, Role::Inner | Role::Input | Role::Scalar))
                {
                    let want = find(&whole, *role, name, t.shape.first().copied().unwrap_or(0));
                    seen += t.data.len();
                    for (x, y) in t.data.iter().zip(&want.data) {
                        assert!((x - y).abs() < 1e-12, "{layout:?} {role:?} {name}: {x}, not {y}");
                    }
                }
            }
            assert!(seen > 150, "{seen}");
        }
    }
}

#[test]
fn weights_gradients_are_computed_apart() {
    let run = |m: &mut Module| drop(passes::run(m, passes::PIPELINE, true).expect("passes keep it"));
    let stages = split(&model(), &Layout(vec![2, 3]), &run).expect("it is cut");
    let contractions = |f: &Func| {
        let body =
            |n: &crate::Node| n.op.body().map_or(0, |b| b.nodes.values().filter(|n| matches!(n.op, Op::Contract(_))).count());
        f.nodes.values().map(|n| body(n) + usize::from(matches!(n.op, Op::Contract(_)))).sum::<usize>()
    };
    let count = |s: usize, name: &str| contractions(stages[s].func(name).expect("an entry"));
    // A layer has one product forward and two backward; the head too. The parts of the backward share the products between them.
    assert_eq!(
        [count(1, "forward"), count(1, "backward"), count(1, "backward_input"), count(1, "backward_weight")],
        [3, 6, 3, 3]
    );
}

#[test]
fn what_belongs_to_all_layers_is_not_cut() {
    let none = |_: &mut Module| {};
    let told = |m: &Module, layout: &[usize]| split(m, &Layout(layout.to_vec()), &none).expect_err("it is not cut").to_string();
    assert_eq!(told(&model(), &[2, 2]), "the layout has 4 layers, the model has 5");
    assert_eq!(
        told(&Module { name: "m".into(), ..Module::default() }, &[1]),
        "m has no train item, or no repeat with parameters to cut"
    );
    // An optimiser that looks at all layers of a parameter at once.
    let mut m = model();
    let update = m.funcs.iter_mut().find(|f| f.name == "update").expect("an entry");
    let at = update.outputs.iter().position(|o| o.name == "a.*.w").expect("an output");
    let v = update.outputs[at].value;
    let mut b = Builder::new(update);
    let sum = b.sum(v, &[0]);
    let all = b.broadcast(sum, &dims(&[3, 3, 3]), &[1, 2]);
    update.outputs[at].value = all;
    assert_eq!(
        told(&m, &[2, 3]),
        "a.*.w cannot be cut by layers: it is needed whole where only some layers are, or the other way round"
    );
}
