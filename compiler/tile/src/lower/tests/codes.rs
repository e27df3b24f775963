//! Products of what codes are worth, as kernels of codes.

use super::{BT, compare, func, on_gpu, outlined};
use base::DType::{self, *};
use graph::{
    Func, Op, Value,
    build::Builder,
    op::{MapFn, quantize::Block},
};

/// An argument that says that values are rounded on the way.
const ROUNDED: &str = "bf16[1]";

/// What codes are worth, maybe rounded to a dtype.
fn worth(b: &mut Builder, of: &[Value], block: i64, dtype: DType, inside: &mut Vec<Value>) -> Value {
    let x = b.op(Op::Dequantize(Block::of_row(block)), of);
    inside.push(x);
    if dtype == F32 {
        return x;
    }
    let x = b.cast(x, dtype);
    inside.push(x);
    x
}

/// Codes and scales of N tokens by their two experts of three each: where an expert's rows begin, and what these are.
fn routed(b: &mut Builder, choice: Value, of_tokens: [Value; 2]) -> (Value, [Value; 2]) {
    let route = b.node(Op::Route { groups: 3 }, &[choice]);
    let two = b.constant(2.0, I32);
    let two = b.splat(two, &["2*N".parse().expect("a dim")]);
    let token = b.map(MapFn::FloorDiv, &[route[1], two]);
    (route[0], of_tokens.map(|x| b.op(Op::Gather { batch: 0 }, &[x, token])))
}

/// A weight of 130 rows in blocks of 128 by 128, as the second operand.
#[test]
fn weights_in_blocks_of_several_rows() {
    let block = Block { rows: 128, size: 128 };
    let weight = |b: &mut Builder, w: &[Value], inside: &mut Vec<Value>| {
        let x = b.op(Op::Dequantize(block), w);
        let y = b.cast(x, BF16);
        inside.extend([x, y]);
        y
    };
    let args = ["e4m3[T, 272]", "f32[T, 3]", "e4m3[130, 272]", "f32[2, 3]", "e4m3[130, 272]", "f32[2, 3]", ROUNDED];
    // Alone a scale is read as it is given; of a gate those of each column are laid out.
    for (gate, scales) in [(false, 1), (true, 2)] {
        let f = func(&args, |b, a| {
            let mut inside = Vec::new();
            let x = worth(b, &a[..2], 128, BF16, &mut inside);
            let products: Vec<Value> = a[2..if gate { 6 } else { 4 }]
                .chunks(2)
                .map(|w| {
                    let w = weight(b, w, &mut inside);
                    b.contract("tk,nk->tn", x, w)
                })
                .collect();
            inside.extend(&products);
            if !gate {
                return outlined(b, &inside, &products);
            }
            let y = b.map(MapFn::Swiglu, &products);
            inside.push(y);
            outlined(b, &inside, &[y])
        });
        let names = if gate { "a b0 b1 sa sb0 sb1 y" } else { "a b sa sb y" };
        assert_eq!(of_codes(&f, BT).as_deref(), Some(names));
        assert_eq!(on_gpu(&f).kernels.iter().filter(|k| k.name.contains("scales")).count(), scales, "gate {gate}");
    }
    let ragged = ["e4m3[N, 144]", "f32[N, 2]", "e4m3[3, 130, 144]", "f32[3, 2, 2]", "i32[N, 2]", ROUNDED];
    let f = func(&ragged, |b, a| {
        let mut inside = Vec::new();
        let (offsets, rows) = routed(b, a[4], [a[0], a[1]]);
        let x = worth(b, &rows, 128, BF16, &mut inside);
        let w = weight(b, &a[2..4], &mut inside);
        let y = b.op(Op::GroupedContract { transposed: true }, &[x, w, offsets]);
        inside.push(y);
        outlined(b, &inside, &[y])
    });
    assert_eq!(of_codes(&f, &[("N", 30)]).as_deref(), Some("x w sx sw offsets y"));
    // Blocks of rows that a product's columns do not lie in have no kernel of codes.
    let thin = Block { rows: 64, size: 128 };
    let f = func(&["e4m3[T, 256]", "f32[T, 2]", "e4m3[128, 256]", "f32[2, 2]", ROUNDED], |b, a| {
        let mut inside = Vec::new();
        let x = worth(b, &a[..2], 128, BF16, &mut inside);
        let w = b.op(Op::Dequantize(thin), &a[2..4]);
        let w16 = b.cast(w, BF16);
        let y = b.contract("tk,nk->tn", x, w16);
        inside.extend([w, w16, y]);
        outlined(b, &inside, &[y])
    });
    assert_eq!(of_codes(&f, BT), None);
    // Nor have blocks of rows that are terms.
    let f = func(&["e4m3[T, 2, 128]", "f32[T, 2, 1]", "e4m3[5, 2, 128]", "f32[5, 1, 1]", ROUNDED], |b, a| {
        let mut inside = Vec::new();
        let x = worth(b, &a[..2], 128, BF16, &mut inside);
        let w = weight(b, &a[2..4], &mut inside);
        let y = b.contract("thd,nhd->tn", x, w);
        inside.push(y);
        outlined(b, &inside, &[y])
    });
    assert_eq!(of_codes(&f, BT), None);
}

/// Compares the function; whether its last kernel multiplies codes, and what its buffers are called.
fn of_codes(f: &Func, dims: &[(&str, i64)]) -> Option<String> {
    compare(f.clone(), dims);
    let lowered = on_gpu(f);
    let codes = |k: &&crate::Kernel| k.scratch.iter().any(|s| s.dtype == E4M3);
    let kernel = lowered.kernels.iter().find(codes)?;
    let scales = lowered.kernels.iter().filter(|k| k.name.contains("scales")).count();
    assert!(scales > 0, "scales are laid out");
    Some(kernel.buffers.iter().map(|b| b.name.as_str()).collect::<Vec<_>>().join(" "))
}

#[test]
fn codes_and_scales_are_one_kernel() {
    for x in ["bf16[B, T, 256]", "f32[T, 384]"] {
        let f = func(&[x], |b, a| b.node(Op::Quantize(Block::of_row(128)), a));
        // A view that is given is a copy.
        let reads = |step: &&library::Step| matches!(step, library::Step::Launch { buffers, .. } if buffers[0].buffer == 0);
        assert_eq!(on_gpu(&f).entries[0].steps.iter().filter(reads).count(), 1, "{x} is read once");
    }
}

#[test]
fn dense_products_of_codes() {
    for dtype in [F16, BF16] {
        // What is rounded on the way is compared as bf16 is.
        let bias = format!("{dtype}[3, 8]");
        let args = ["e4m3[B, T, 272]", "f32[B, T, 3]", "e4m3[3, 8, 272]", "f32[3, 8, 3]", &bias, ROUNDED];
        // Alone, with a tail of a block.
        let alone = func(&args, |b, a| {
            let mut inside = Vec::new();
            let [x, w] = [0, 2].map(|i| worth(b, &a[i..i + 2], 128, dtype, &mut inside));
            let y = b.contract("btk,hdk->bthd", x, w);
            inside.push(y);
            outlined(b, &inside, &[y])
        });
        assert_eq!(of_codes(&alone, BT).as_deref(), Some("a b sa sb y"));
        // With a map.
        let mapped = func(&args, |b, a| {
            let mut inside = Vec::new();
            let [x, w] = [0, 2].map(|i| worth(b, &a[i..i + 2], 128, dtype, &mut inside));
            let y = b.contract("btk,hdk->bthd", x, w);
            let shape = b.func.ty(y).shape.clone();
            let bias = b.broadcast(a[4], &shape, &[2, 3]);
            let z = b.add(y, bias);
            inside.extend([y, bias, z]);
            outlined(b, &inside, &[z])
        });
        assert_eq!(of_codes(&mapped, BT).as_deref(), Some("a b sa sb z0 y"));
    }
    // Terms of two axes, in one block of all.
    let joined = func(&["e4m3[T, 3, 16]", "f32[T, 3, 1]", "e4m3[5, 3, 16]", "f32[5, 3, 1]", ROUNDED], |b, a| {
        let mut inside = Vec::new();
        let [x, w] = [0, 2].map(|i| worth(b, &a[i..i + 2], 16, BF16, &mut inside));
        let y = b.contract("thk,dhk->td", x, w);
        inside.push(y);
        outlined(b, &inside, &[y])
    });
    assert_eq!(of_codes(&joined, BT), None, "blocks of 16 terms are less than a piece");
    let wide = func(&["e4m3[T, 32]", "f32[T, 1]", "e4m3[5, 32]", "f32[5, 1]"], |b, a| {
        let mut inside = Vec::new();
        let [x, w] = [0, 2].map(|i| worth(b, &a[i..i + 2], 32, F32, &mut inside));
        let y = b.contract("tk,dk->td", x, w);
        inside.push(y);
        outlined(b, &inside, &[y])
    });
    assert_eq!(of_codes(&wide, BT), None, "sums of codes have fewer bits than f32");
}

#[test]
fn products_of_codes_over_ragged_rows() {
    for (taken, gate) in [(false, false), (true, false), (true, true)] {
        let w = ["e4m3[3, 24, 144]", "f32[3, 24, 1]"];
        let args = [["e4m3[N, 144]", "f32[N, 1]"], w, w, ["i32[N, 2]", ROUNDED]].concat();
        let f = func(&args, |b, a| {
            let (mut inside, mut products) = (Vec::new(), Vec::new());
            let (offsets, rows) = routed(b, a[6], [a[0], a[1]]);
            inside.extend(if taken { rows.to_vec() } else { Vec::new() });
            let x = worth(b, &rows, 144, BF16, &mut inside);
            for w in a[2..if gate { 6 } else { 4 }].chunks(2) {
                let w = worth(b, w, 144, BF16, &mut inside);
                products.push(b.op(Op::GroupedContract { transposed: true }, &[x, w, offsets]));
            }
            inside.extend(&products);
            if !gate {
                return outlined(b, &inside, &products);
            }
            let y = b.map(MapFn::Swiglu, &products);
            inside.push(y);
            outlined(b, &inside, &[y])
        });
        let want = match (taken, gate) {
            (false, _) => "x w sx sw offsets y",
            (true, false) => "x w sx sw index offsets y",
            (true, true) => "x w0 w1 sx sw0 sw1 index offsets y",
        };
        assert_eq!(of_codes(&f, &[("N", 5)]).as_deref(), Some(want));
    }
}

#[test]
fn what_codes_are_worth_may_lie_otherwise() {
    let product = |args: [&str; 4], blocks: [i64; 2], spec: &'static str| {
        func(&[&args[..], &[ROUNDED]].concat(), |b, a| {
            let mut inside = Vec::new();
            let [x, w] = [0, 1].map(|i| worth(b, &a[2 * i..2 * i + 2], blocks[i], BF16, &mut inside));
            let y = b.contract(spec, x, w);
            inside.push(y);
            outlined(b, &inside, &[y])
        })
    };
    let multiplies = |f: &Func| of_codes(f, &[("B", 2), ("T", 3), ("N", 3)]).is_some();
    let (rows, columns) = (["e4m3[B, T, 32]", "f32[B, T, 1]"], ["e4m3[5, 32]", "f32[5, 1]"]);
    let with = |w: [&'static str; 2]| [rows[0], rows[1], w[0], w[1]];
    assert!(multiplies(&product(with(columns), [32, 32], "btk,nk->btn")));
    // A batch, columns before rows, rows in another order, terms that are not blocked, other blocks, terms of 30.
    for (args, blocks, spec) in [
        (with(["e4m3[B, 5, 32]", "f32[B, 5, 1]"]), [32, 32], "btk,bnk->btn"),
        (with(columns), [32, 32], "btk,nk->nbt"),
        (with(columns), [32, 32], "btk,nk->tbn"),
        (["e4m3[32, T, 16]", "f32[32, T, 1]", "e4m3[32, 16]", "f32[32, 1]"], [16, 16], "ktn,km->tnm"),
        (with(columns), [32, 64], "btk,nk->btn"),
        (["e4m3[B, T, 30]", "f32[B, T, 1]", "e4m3[5, 30]", "f32[5, 1]"], [30, 30], "btk,nk->btn"),
    ] {
        assert!(!multiplies(&product(args, blocks, spec)), "{spec}");
    }
}
