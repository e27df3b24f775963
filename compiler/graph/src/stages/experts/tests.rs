//! Two layers of four experts, run by two and by four interpreters that exchange rows, against one that has all experts.

use super::*;
use crate::{
    autodiff::{Remat, Seed, grad},
    build::Builder,
    interp::{Options, Tensor, eval, eval_among, peers::Meeting},
    ir::{Init, ParamDecl},
    op::{MapFn, ReduceFn, Repeat, quantize::Block},
    passes,
    random::Random,
    verify,
};
use base::{DType, DimEnv};

const EXPERTS: i64 = 4;
const PARAMS: [(&str, &[i64]); 4] = [
    ("l.*.gate", &[2, 3, 3]),
    ("l.*.experts.*.up", &[2, EXPERTS, 5, 3]),
    ("l.*.experts.*.scale", &[2, EXPERTS, 5]),
    ("l.*.experts.*.down", &[2, EXPERTS, 5, 3]),
];

fn of(dtype: DType, shape: &[Dim]) -> TensorType {
    TensorType::new(dtype, shape.to_vec())
}
fn dims(shape: &[i64]) -> Vec<Dim> {
    shape.iter().map(|n| Dim::from(*n)).collect()
}

/// x as codes and back, gradients straight through.
fn rounded(b: &mut Builder, x: Value) -> Value {
    let stopped = b.op(Op::StopGradient, &[x]);
    let q = b.node(Op::Quantize(Block::of_row(2)), &[stopped]);
    let y = b.op(Op::Dequantize(Block::of_row(2)), &q);
    let y = b.cast(y, DType::F64);
    let change = b.map(MapFn::Sub, &[y, stopped]);
    b.add(x, change)
}

/// x ← x + Σ over the choices of (tanh(rows·upᵀ)·scale of the matrix·row's size)·down.
fn layer(choices: i64) -> Func {
    let n = Dim::sym("N");
    let mut body = Func::new("body");
    let x = body.arg("x", Role::Inner, of(DType::F64, &[n.clone(), 3.into()]));
    let choice = body.arg("choice", Role::Inner, of(DType::I32, &[n.clone(), choices.into()]));
    let [gate, up, scale, down] = PARAMS.map(|(name, shape)| body.arg(name, Role::Inner, of(DType::F64, &dims(&shape[1..]))));
    let mut b = Builder::new(&mut body);
    let gated = b.contract("nd,de->ne", x, gate);
    let routed = b.node(Op::Route { groups: EXPERTS }, &[choice]);
    let all = b.func.ty(routed[1]).shape.clone();
    let by = b.constant(choices as f64, DType::I32);
    let by = b.splat(by, &all);
    let token = b.map(MapFn::FloorDiv, &[routed[1], by]);
    let rows = b.op(Op::Gather { batch: 0 }, &[gated, token]);
    // The matrix, scaled by row; its own axes stay apart.
    let scale = b.broadcast(scale, &dims(&[EXPERTS, 5, 3]), &[0, 1]);
    let up = b.mul(up, scale);
    let up = rounded(&mut b, up);
    let made = b.op(Op::GroupedContract { transposed: true }, &[rows, up, routed[0]]);
    let bent = b.map(MapFn::Tanh, &[made]);
    // Something of each row alone, something of the rows before they were sent, and something that is the same for all.
    let wide = b.func.ty(bent).shape.clone();
    let most = b.op(Op::Reduce(ReduceFn::Max, vec![1]), &[bent]);
    let most = b.broadcast(most, &wide, &[0]);
    let sum = b.sum(rows, &[1]);
    let sum = b.broadcast(sum, &wide, &[0]);
    let half = b.constant(0.5, DType::F64);
    let half = b.splat(half, &wide);
    let mixed = b.mul(bent, most);
    let mixed = b.add(mixed, sum);
    let mixed = b.mul(mixed, half);
    let mixed = rounded(&mut b, mixed);
    let out = b.op(Op::GroupedContract { transposed: false }, &[mixed, down, routed[0]]);
    let back = b.op(Op::Gather { batch: 0 }, &[out, routed[2]]);
    let back = b.sum(back, &[1]);
    let next = b.add(x, back);
    body.output("x", Role::Inner, next);
    body
}

fn model(choices: i64) -> Module {
    let n = Dim::sym("N");
    let mut f = Func::new("loss");
    let p = PARAMS.map(|(name, shape)| f.arg(name, Role::Param, of(DType::F64, &dims(shape))));
    let x = f.arg("x", Role::Input, of(DType::F64, &[n.clone(), 3.into()]));
    let choice = f.arg("choice", Role::Input, of(DType::I32, &[n, choices.into()]));
    let mut b = Builder::new(&mut f);
    let turns = Repeat { count: 2, carried: 1, constant: 1, reverse: false, body: layer(choices) };
    let x = b.node(Op::Repeat(Box::new(turns)), &[vec![x, choice], p.to_vec()].concat())[0];
    let each = b.map(MapFn::Sin, &[x]);
    let loss = b.sum(each, &[0, 1]);
    f.output("loss", Role::Scalar, loss);
    f.output("x", Role::Result, x);

    let (mut norm, mut update) = (Func::new("norm"), Func::new("update"));
    let grads = PARAMS.map(|(name, shape)| norm.arg(name, Role::Grad, of(DType::F64, &dims(shape))));
    for ((name, shape), g) in PARAMS.iter().zip(grads) {
        let mut b = Builder::new(&mut norm);
        let square = b.mul(g, g);
        let axes: Vec<usize> = (name.matches('*').count()..shape.len()).collect();
        let sum = b.sum(square, &axes);
        norm.output(name, Role::Result, sum);
    }
    let old = PARAMS.map(|(name, shape)| update.arg(name, Role::Param, of(DType::F64, &dims(shape))));
    let moments = PARAMS.map(|(name, shape)| update.arg(&format!("{name}#0"), Role::Moment, of(DType::F64, &dims(shape))));
    for (((name, shape), p), m) in PARAMS.iter().zip(old).zip(moments) {
        let mut b = Builder::new(&mut update);
        let rate = b.constant(0.5, DType::F64);
        let rate = b.splat(rate, &dims(shape));
        let step = b.mul(m, rate);
        let next = b.add(p, step);
        update.output(name, Role::Param, next);
        update.output(&format!("{name}#0"), Role::Moment, step);
    }
    let declare = |(name, shape): &(&str, &[i64])| ParamDecl {
        name: (*name).into(),
        ty: of(DType::F64, &dims(shape)),
        init: Init::Normal(1.0),
        decay: false,
        role: Role::Param,
    };
    let params = PARAMS.iter().map(declare).collect();
    Module { name: "m".into(), params, funcs: vec![f, norm, update] }
}

fn numbers(random: &mut Random, shape: &[i64]) -> Tensor {
    let n = shape.iter().product::<i64>();
    Tensor::new(DType::F64, shape, (0..n).map(|_| random.below(2001) as f64 / 1000.0 - 1.0).collect())
}

/// The experts `from..from + n` of a tensor of all layers.
fn experts(t: &Tensor, from: i64, n: i64) -> Tensor {
    let inner = t.shape[2..].iter().product::<i64>();
    let at = |l: i64| ((l * t.shape[1] + from) * inner) as usize;
    let data = (0..t.shape[0]).flat_map(|l| t.data[at(l)..at(l) + (n * inner) as usize].to_vec()).collect();
    Tensor { dtype: t.dtype, shape: [vec![t.shape[0], n], t.shape[2..].to_vec()].concat(), data }
}

#[test]
fn members_compute_what_one_does() {
    let whole = model(2);
    assert_eq!(verify(&whole), []);
    for members in [1, 2, 4] {
        let mut divided = divide_experts(&whole, members).expect("its experts are divided");
        assert_eq!(verify(&divided), []);
        passes::run(&mut divided, passes::PIPELINE, true).expect("the passes keep it right");
        let mut random = Random::new(7 + members as u64);
        let params: Vec<Tensor> = PARAMS.iter().map(|(_, shape)| numbers(&mut random, shape)).collect();
        let own = EXPERTS / members;
        let wanted: Vec<usize> = (0..5).collect();
        let seed = || Seed { objective: "loss", remat: Remat::Cheap };
        let of_all = grad(whole.func("loss").expect("it has one"), &wanted, seed()).expect("it has gradients");
        let of_one = grad(divided.func("loss").expect("it has one"), &wanted, seed()).expect("it has gradients");
        // Some rows choose nobody; one member's choose nobody at all.
        let given: Vec<[Tensor; 2]> = (0..members)
            .map(|m| {
                let most = if m == 2 { 1 } else { EXPERTS as usize + 1 };
                let choice = (0..10).map(|_| random.below(most) as f64 - 1.0).collect();
                [numbers(&mut random, &[5, 3]), Tensor::new(DType::I32, &[5, 2], choice)]
            })
            .collect();
        let dims = DimEnv::from([("N".into(), 5)]);
        let want: Vec<Vec<Tensor>> = (0..members)
            .map(|m| {
                let args = [params.clone(), given[m as usize].to_vec()].concat();
                eval(&of_all, &args, &dims, Options::EXACT).expect("it evaluates")
            })
            .collect();
        let meeting = Meeting::new(members as usize);
        let run = |m: i64| {
            let mut args = vec![params[0].clone()];
            args.extend(params[1..].iter().map(|t| experts(t, m * own, own)));
            args.extend(given[m as usize].to_vec());
            let member = meeting.member(m as usize);
            eval_among(&of_one, &args, &dims, Options::EXACT, &member).expect("it evaluates")
        };
        let got: Vec<Vec<Tensor>> = std::thread::scope(|s| {
            let threads: Vec<_> = (0..members).map(|m| s.spawn(move || run(m))).collect();
            threads.into_iter().map(|t| t.join().expect("it does not panic")).collect()
        });
        let close = |a: &Tensor, b: &Tensor| {
            assert_eq!(a.shape, b.shape);
            assert!(a.data.iter().zip(&b.data).all(|(x, y)| (x - y).abs() < 1e-12), "{a:?} is not {b:?}");
        };
        let sum = |i: usize| {
            let mut sum = want[0][i].clone();
            want[1..].iter().for_each(|w| sum.data.iter_mut().zip(&w[i].data).for_each(|(s, x)| *s += x));
            sum
        };
        for m in 0..members as usize {
            for (i, o) in of_all.outputs.iter().enumerate() {
                let (name, role) = (o.name.as_str(), o.role);
                if role == Role::Grad && name.contains("experts") {
                    close(&got[m][i], &experts(&sum(i), m as i64 * own, own));
                } else {
                    // Forward results, and the gradients of what each member has of its own: as if it had all experts.
                    close(&got[m][i], &want[m][i]);
                }
            }
            assert_eq!(got[m].len(), of_all.outputs.len());
        }
    }
}

#[test]
fn parameters_norms_and_updates_are_shares() {
    let divided = divide_experts(&model(1), 2).expect("its experts are divided");
    let face: Vec<String> = divided.params.iter().map(|p| format!("{} {}", p.name, p.ty)).collect();
    let want = [
        "l.*.gate f64[2, 3, 3]",
        "l.*.experts.*+0.up f64[2, 2, 5, 3]",
        "l.*.experts.*+0.scale f64[2, 2, 5]",
        "l.*.experts.*+0.down f64[2, 2, 5, 3]",
    ];
    assert_eq!(face, want);
    for f in &divided.funcs {
        let names = f.args.iter().map(|a| &a.name).chain(f.outputs.iter().map(|o| &o.name)).collect::<Vec<_>>();
        assert!(names.iter().all(|n| !n.contains("experts.*.")), "{names:?}");
    }
    assert_eq!(of_member("l.*+2.experts.*+0.up#1", &[2, 2, 5, 3], 0), "l.*+2.experts.*.up#1");
    assert_eq!(of_member("l.*+2.experts.*+0.up", &[2, 2, 5, 3], 3), "l.*+2.experts.*+6.up");
    assert_eq!(of_member("l.*.gate", &[2, 3, 3], 3), "l.*.gate");
}

#[test]
fn what_cannot_be_divided_says_why() {
    let uneven = divide_experts(&model(1), 3).expect_err("four experts");
    assert_eq!(uneven.to_string(), "4 experts are not shared evenly by 3 ranks");
    let mut without = model(1);
    let names = ["l.*.gate", "l.*.u.up", "l.*.u.scale", "l.*.u.down"];
    for f in &mut without.funcs {
        f.args.iter_mut().for_each(|a| {
            if let Some(i) = PARAMS.iter().position(|(n, _)| *n == a.name) {
                a.name = names[i].into();
            }
        });
    }
    let unnamed = divide_experts(&without, 2).expect_err("no star for the axis of experts");
    assert_eq!(unnamed.to_string(), "l.*.u.up cannot be divided by experts: its experts have no numbers");
    let mut plain = model(1);
    let loss = &mut plain.funcs[0];
    loss.outputs.clear();
    let x = loss.arg_value(4);
    loss.output("loss", Role::Scalar, x);
    assert_eq!(divide_experts(&plain, 2).expect_err("no experts"), StageError::NoExperts("m".into()));
}
