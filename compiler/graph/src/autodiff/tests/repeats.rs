//! Loops.

use super::*;
use crate::op::Repeat;

/// Adds a loop; `turn` makes the body's outputs from its arguments: carried, constant, then stacked ones.
fn repeat(
    b: &mut Builder,
    (count, carried, constant, reverse): (i64, usize, usize, bool),
    operands: &[Value],
    turn: impl Fn(&mut Builder, &[Value]) -> Vec<Value>,
) -> Vec<Value> {
    let mut body = Func::new("body");
    let mut args = Vec::new();
    for (i, v) in operands.iter().enumerate() {
        let mut ty = b.func.ty(*v).clone();
        if i >= carried + constant {
            assert_eq!(ty.shape.remove(0), Dim::from(count));
        }
        args.push(body.arg(&format!("a{i}"), Role::Inner, ty));
    }
    let results = turn(&mut Builder::new(&mut body), &args);
    results.iter().enumerate().for_each(|(i, v)| body.output(&format!("r{i}"), Role::Inner, *v));
    b.node(Op::Repeat(Box::new(Repeat { count, carried, constant, reverse, body })), operands)
}

/// x ← tanh(x·w_i + k), and the tanh's square stacked.
fn layer(b: &mut Builder, x: &[Value]) -> Vec<Value> {
    let product = b.contract("td,de->te", x[0], x[2]);
    let shape = b.func.ty(product).shape.clone();
    let bias = b.broadcast(x[1], &shape, &[1]);
    let sum = b.add(product, bias);
    let next = b.map(MapFn::Tanh, &[sum]);
    let square = b.mul(next, next);
    vec![next, square]
}

#[test]
fn loops_of_layers() {
    for reverse in [false, true] {
        for t in [0, 1, 3] {
            for count in [0, 1, 3] {
                let w = format!("f {count}, 2, 2");
                check("layers", &["f T, 2", "f 2", &w], &[("T", t)], |b, x| repeat(b, (count, 1, 1, reverse), x, layer));
                check("last", &["f T, 2", "f 2", &w], &[("T", t)], |b, x| {
                    repeat(b, (count, 1, 1, reverse), x, layer)[..1].to_vec()
                });
                if count > 0 {
                    check("stack", &["f T, 2", "f 2", &w], &[("T", t)], |b, x| {
                        repeat(b, (count, 1, 1, reverse), x, layer)[1..].to_vec()
                    });
                }
            }
        }
    }
}

#[test]
fn nested_loops() {
    for reverse in [false, true] {
        check("nested", &["f 3, 2", "f 2", "f 2, 3, 2, 2"], &[], |b, x| {
            repeat(b, (2, 1, 1, reverse), x, |b, x| {
                let inner = repeat(b, (3, 1, 1, !reverse), x, layer);
                let scale = b.broadcast(x[1], &[3.into(), 2.into()], &[1]);
                let exp = b.map(MapFn::Exp, &[scale]);
                vec![b.mul(inner[0], exp), inner[1]]
            })
        });
    }
}

#[test]
fn loops_with_little_to_do() {
    // The carried value is replaced, swapped, counted in integers, or only starts to vary inside.
    check("replaced", &["f 2", "f 3, 2"], &[], |b, x| {
        repeat(b, (3, 1, 0, false), x, |b, x| vec![b.map(MapFn::Exp, &[x[1]]), b.map(MapFn::Sin, &[x[0]])])
    });
    check("swapped", &["f 2", "f 2", "f 2"], &[], |b, x| {
        repeat(b, (3, 2, 1, false), x, |b, x| vec![x[1], b.mul(x[0], x[2]), x[0], x[0]])
    });
    check("counted", &["f 2"], &[], |b, x| {
        let zero = b.constant(0.0, DType::I32);
        repeat(b, (3, 2, 0, false), &[zero, x[0]], |b, x| {
            let one = b.constant(1.0, DType::I32);
            let next = b.add(x[0], one);
            let factor = b.cast(next, DType::F64);
            let factor = b.splat(factor, &[2.into()]);
            let square = b.mul(x[1], x[1]);
            vec![next, b.mul(square, factor)]
        })
    });
    check("summed", &["f 3, 2", "f 2"], &[], |b, x| {
        let zero = b.full_like(x[1], 0.0);
        repeat(b, (3, 1, 1, false), &[zero, x[1], x[0]], |b, x| {
            let part = b.mul(x[1], x[2]);
            vec![b.add(x[0], part)]
        })[..1]
            .to_vec()
    });
    check("chained", &["f 2", "f 2", "f 2"], &[], |b, x| {
        repeat(b, (4, 3, 0, false), x, |b, x| vec![b.mul(x[1], x[1]), b.map(MapFn::Sin, &[x[2]]), x[2]])[..1].to_vec()
    });
    check("unused", &["f 2", "f 2"], &[], |b, x| {
        let ends = repeat(b, (3, 2, 0, false), x, |b, x| vec![b.mul(x[0], x[0]), b.map(MapFn::Exp, &[x[1]])]);
        vec![ends[0]]
    });
}

/// The loops of a gradient function: forward and backward.
fn loops(g: &Func) -> Vec<&Repeat> {
    g.nodes.values().filter_map(|n| if let Op::Repeat(r) = &n.op { Some(&**r) } else { None }).collect()
}

fn layers(remat: Remat) -> Func {
    layers_of(remat, layer)
}

/// The gradient of four of these layers.
fn layers_of(remat: Remat, layer: impl Fn(&mut Builder, &[Value]) -> Vec<Value>) -> Func {
    let mut f = Func::new("f");
    let of = |shape: &[i64]| TensorType::new(DType::F64, shape.iter().map(|n| Dim::from(*n)).collect::<Vec<_>>());
    let args = [("x", of(&[3, 2])), ("k", of(&[2])), ("w", of(&[4, 2, 2]))].map(|(n, ty)| f.arg(n, Role::Param, ty));
    let mut b = Builder::new(&mut f);
    let result = repeat(&mut b, (4, 1, 1, false), &args, layer)[0];
    let total = b.sum(result, &[0, 1]);
    f.output("total", Role::Scalar, total);
    grad(&f, &[0, 1, 2], Seed { objective: "total", remat }).expect("it has a derivative")
}

#[test]
fn loops_keep_what_is_asked_for() {
    // x and the tanh, which is no larger than the product that it is of and all that is read of it. The weights are never saved.
    for remat in [Remat::Save, Remat::Cheap] {
        let g = layers(remat);
        let [forward, backward] = loops(&g)[..] else { panic!("two loops") };
        assert_eq!(forward.body.outputs.len(), 2 + 2, "{remat:?}");
        assert_eq!((backward.carried, backward.constant, backward.stacked()), (2, 0, 3));
        assert!(backward.reverse && !forward.reverse);
        let tanh = |r: &Repeat| r.body.nodes.values().filter(|n| n.op == Op::Map(MapFn::Tanh)).count();
        assert_eq!((tanh(forward), tanh(backward)), (1, 0), "{remat:?}");
    }
    // The gradient of y·tanh y reads both: cheap, tanh is computed again.
    for remat in [Remat::Save, Remat::Cheap] {
        let g = layers_of(remat, |b, x| {
            let y = b.contract("ij,jk->ik", x[0], x[2]);
            let t = b.map(MapFn::Tanh, &[y]);
            let y = b.mul(y, t);
            let shape = b.func.ty(y).shape.clone();
            let k = b.broadcast(x[1], &shape, &[1]);
            vec![b.add(y, k)]
        });
        let [forward, backward] = loops(&g)[..] else { panic!("two loops") };
        let again = usize::from(remat == Remat::Cheap);
        assert_eq!((forward.body.outputs.len(), backward.stacked()), (1 + 3 - again, 4 - again), "{remat:?}");
        let tanh = |r: &Repeat| r.body.nodes.values().filter(|n| n.op == Op::Map(MapFn::Tanh)).count();
        assert_eq!((tanh(forward), tanh(backward)), (1, again), "{remat:?}");
    }
}

#[test]
fn what_is_read_of_a_kept_value_alone_is_kept_in_its_place() {
    let product = |b: &mut Builder, x: &[Value]| {
        let [y, w] = [x[0], x[2]].map(|v| b.cast(v, DType::F32));
        b.contract("ij,jk->ik", y, w)
    };
    let squared = |b: &mut Builder, y: Value| {
        let square = b.mul(y, y);
        vec![b.cast(square, DType::F64)]
    };
    let rotated = |b: &mut Builder, y: Value| {
        let half = |b: &mut Builder, at: i64| b.op(Op::Slice { axis: 1, start: Dim::from(at), len: Dim::from(1), step: 1 }, &[y]);
        let (first, last) = (half(b, 0), half(b, 1));
        let last = b.map(MapFn::Neg, &[last]);
        b.op(Op::Concat(1), &[last, first])
    };
    // Halves that are rotated, and nothing else reads the product.
    let alone = layers_of(Remat::Cheap, |b, x| {
        let y = product(b, x);
        let both = rotated(b, y);
        squared(b, both)
    });
    // The loop stacks the product for others: there is no second stack of what is made of it.
    let stacked = layers_of(Remat::Cheap, |b, x| {
        let y = product(b, x);
        let both = rotated(b, y);
        let next = squared(b, both)[0];
        vec![next, y]
    });
    // It stacks what is made of the product: that is read.
    let stacked_late = layers_of(Remat::Cheap, |b, x| {
        let y = product(b, x);
        let both = rotated(b, y);
        let next = squared(b, both)[0];
        vec![next, both]
    });
    // What is wider is made again.
    let widened = layers_of(Remat::Cheap, |b, x| {
        let y = product(b, x);
        let y = b.cast(y, DType::F64);
        squared(b, y)
    });
    // Of the carried value, too, what is read is narrower.
    for (f, kept) in [
        (alone, ["cast", "concat"]),
        (stacked, ["contract", "cast"]),
        (stacked_late, ["concat", "cast"]),
        (widened, ["cast", "contract"]),
    ] {
        let forward = loops(&f)[0];
        let stacked = forward.body.outputs.iter().skip(forward.carried).map(|o| forward.body.def(o.value).op.name());
        assert_eq!(stacked.collect::<Vec<_>>(), kept);
    }
}

#[test]
fn loops_compute_only_what_is_asked_for() {
    let mut f = Func::new("f");
    let of = |shape: &[i64]| TensorType::new(DType::F64, shape.iter().map(|n| Dim::from(*n)).collect::<Vec<_>>());
    let args = [("x", of(&[3, 2])), ("k", of(&[2])), ("w", of(&[4, 2, 2]))].map(|(n, ty)| f.arg(n, Role::Param, ty));
    let mut b = Builder::new(&mut f);
    let result = repeat(&mut b, (4, 1, 1, false), &args, layer)[0];
    let total = b.sum(result, &[0, 1]);
    f.output("total", Role::Scalar, total);
    let g = grad(&f, &[0], Seed { objective: "total", remat: Remat::Save }).expect("it has a derivative");
    let [forward, backward] = loops(&g)[..] else { panic!("two loops") };
    // Only the tanh is needed; one contraction a turn, for the carried gradient.
    assert_eq!(forward.body.outputs.len(), 2 + 1);
    assert_eq!((backward.carried, backward.constant, backward.stacked()), (1, 0, 2));
    assert_eq!(backward.body.nodes.values().filter(|n| matches!(n.op, Op::Contract(_))).count(), 1);
}

#[test]
fn a_loop_without_turns_gives_what_it_was_given() {
    for nested in [false, true] {
        check("turnless", &["f 3", "f 3"], &[], |b, x| {
            if nested {
                repeat(b, (2, 1, 1, false), x, |b, x| {
                    let square = b.mul(x[0], x[0]);
                    repeat(b, (0, 1, 1, false), &[square, x[1]], |_, x| vec![x[1]])
                })
            } else {
                repeat(b, (0, 1, 1, false), x, |_, x| vec![x[1]])
            }
        });
    }
}
