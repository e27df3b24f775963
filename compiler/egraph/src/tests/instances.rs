//! For each rule a program where it has to fire, and programs that only look alike. In types `B` and `T` are run-time dims, `K L M N H G`
//! constants, `float` a dtype that are drawn.

use super::Build;
use base::{DType, Dim};
use graph::{
    Op, Value,
    build::Builder,
    op::{Attend, Domain, MapFn, ReduceFn, Scalar, quantize::Block},
};

fn shape(b: &Builder, v: Value) -> Vec<Dim> {
    b.func.ty(v).shape.clone()
}

/// x·c for a number.
fn scaled(b: &mut Builder, x: Value, c: f64) -> Value {
    let c = b.full_like(x, c);
    b.mul(x, c)
}

/// x·f with f repeated along all axes but `axes`.
fn scaled_along(b: &mut Builder, x: Value, f: Value, axes: &[usize]) -> Value {
    let shape = shape(b, x);
    let f = b.broadcast(f, &shape, axes);
    b.mul(x, f)
}

fn slice(b: &mut Builder, x: Value, axis: usize, start: i64, len: i64) -> Value {
    b.op(Op::Slice { axis, start: Dim::from(start), len: Dim::from(len), step: 1 }, &[x])
}

/// Positions of heads `[b, t, h, d]` rotated, but for some columns before them: halves of f32, each with tables of angles.
fn rotated(b: &mut Builder, q: Value, [cos, sin]: [Value; 2], kept: i64) -> Value {
    let half = (6 - kept) / 2;
    let [x, y] = [kept, kept + half].map(|start| {
        let part = slice(b, q, 3, start, half);
        b.cast(part, DType::F32)
    });
    let of_half = shape(b, x);
    let [c, s] = [cos, sin].map(|table| b.broadcast(table, &of_half, &[1, 3]));
    let [xc, ys, yc, xs] = [(x, c), (y, s), (y, c), (x, s)].map(|(a, z)| b.mul(a, z));
    let (first, second) = (b.map(MapFn::Sub, &[xc, ys]), b.add(yc, xs));
    let dtype = b.func.ty(q).dtype;
    if kept == 0 {
        let both = b.op(Op::Concat(3), &[first, second]);
        return b.cast(both, dtype);
    }
    let parts = [first, second].map(|v| b.cast(v, dtype));
    let before = slice(b, q, 3, 0, kept);
    b.op(Op::Concat(3), &[before, parts[0], parts[1]])
}

/// The same of neighbours: pairs are an axis of their own meanwhile.
fn rotated_pairs(b: &mut Builder, q: Value, [cos, sin]: [Value; 2], kept: i64) -> Value {
    let mut all = shape(b, q);
    let half = Dim::from((6 - kept) / 2);
    let turned = if kept == 0 { q } else { slice(b, q, 3, kept, 6 - kept) };
    all.splice(3.., [half.clone(), Dim::from(2)]);
    let pairs = b.reshape(turned, &all);
    let [x, y] = [0, 1].map(|i| {
        let part = slice(b, pairs, 4, i, 1);
        b.cast(part, DType::F32)
    });
    let each = shape(b, x);
    let [c, s] = [cos, sin].map(|table| {
        let table = b.reshape(table, &[each[1].clone(), half.clone(), Dim::from(1)]);
        b.broadcast(table, &each, &[1, 3, 4])
    });
    let [xc, ys, yc, xs] = [(x, c), (y, s), (y, c), (x, s)].map(|(a, z)| b.mul(a, z));
    let (first, second) = (b.map(MapFn::Sub, &[xc, ys]), b.add(yc, xs));
    let both = b.op(Op::Concat(4), &[first, second]);
    let dtype = b.func.ty(q).dtype;
    let both = b.cast(both, dtype);
    let mut joined = shape(b, q);
    joined[3] = Dim::from(6 - kept);
    let joined = b.reshape(both, &joined);
    if kept == 0 {
        return joined;
    }
    let before = slice(b, q, 3, 0, kept);
    b.op(Op::Concat(3), &[before, joined])
}

fn attend(b: &mut Builder, domain: Domain, operands: &[Value]) -> Vec<Value> {
    b.node(Op::Attend(Attend { domain, scale: Scalar::new(0.5) }), operands)
}

/// What codes are worth, rounded for a product.
fn rounded_codes(b: &mut Builder, x: Value, size: i64, to: DType) -> Value {
    let y = there_and_back(b, x, size);
    b.cast(y, to)
}

/// x rounded to codes of blocks, and back.
fn there_and_back(b: &mut Builder, x: Value, size: i64) -> Value {
    of_blocks(b, x, Block::of_row(size))
}

fn of_blocks(b: &mut Builder, x: Value, block: Block) -> Value {
    let q = b.node(Op::Quantize(block), &[x]);
    b.op(Op::Dequantize(block), &q)
}

/// Blocks of two rows.
const ROWS: Block = Block { rows: 2, size: 4 };

/// The rules that move a quantisation.
const MOVED: &[&str] = &[
    "quantize-of-moved",
    "gather-of-quantize",
    "slice-of-quantize",
    "gather-of-dequantize",
    "slice-of-dequantize",
    "reshape-of-dequantize",
    "concat-of-dequantize",
    "dequantize-of-moved",
];

/// `[b, s, d]` for each of the heads of q.
fn for_heads(b: &mut Builder, x: Value, q: Value) -> Value {
    let (s, h) = (shape(b, x), shape(b, q)[2].clone());
    b.broadcast(x, &[s[0].clone(), s[1].clone(), h, s[2].clone()], &[0, 1, 3])
}

/// Σ exp(z − max z) over the last axis, and the maximum.
fn exponentials(b: &mut Builder, z: Value) -> [Value; 2] {
    let (s, last) = (shape(b, z), b.func.ty(z).rank() - 1);
    let rows: Vec<usize> = (0..last).collect();
    let m = b.op(Op::Reduce(ReduceFn::Max, vec![last]), &[z]);
    let wide = b.broadcast(m, &s, &rows);
    let c = b.map(MapFn::Sub, &[z, wide]);
    let e = b.map(MapFn::Exp, &[c]);
    [b.sum(e, &[last]), m]
}

/// Operands of [`mixture`]: tokens, choices, weights, matrices of experts and of one that every token has.
const OF_MIXTURE: [&str; 9] = [
    "float B T K",
    "i32 B*T 2",
    "float B*T 2",
    "float 3 M K",
    "float 3 M K",
    "float 3 K M",
    "float M K",
    "float M K",
    "float K M",
];

/// Two values of rows, matrices of each as both orientations have them, and choices.
const OF_TWO_PRODUCTS: [&str; 7] =
    ["float B K", "float B L", "float 3 K M", "float 3 M K", "float 3 L M", "float 3 M L", "i32 B 1"];

/// The sum of two products of ragged rows: the rows and the matrices of each, and where its groups begin.
fn sum_of_ragged(b: &mut Builder, products: [[Value; 2]; 2], offsets: [Value; 2], transposed: bool) -> Value {
    let op = Op::GroupedContract { transposed };
    let [p, q] = [0, 1].map(|i| b.op(op.clone(), &[products[i][0], products[i][1], offsets[i]]));
    b.add(p, q)
}

/// A mixture of experts and an expert that every token has, with the gates of both: whether the factors are in the other order.
fn mixture(b: &mut Builder, a: &[Value], own: [Value; 3], swapped: [bool; 2], rows: Value) -> Value {
    let of_x = shape(b, a[0]);
    let x = b.reshape(a[0], &[of_x[0].clone() * of_x[1].clone(), of_x[2].clone()]);
    let route = b.node(Op::Route { groups: 3 }, &[a[1]]);
    let two = b.full_like(route[1], 2.0);
    let token = b.map(MapFn::FloorDiv, &[route[1], two]);
    let xs = b.op(Op::Gather { batch: 0 }, &[x, token]);
    let product = |b: &mut Builder, x, w| b.op(Op::GroupedContract { transposed: true }, &[x, w, route[0]]);
    let gate = |b: &mut Builder, g, u, swapped: bool| {
        let (g, u) = if swapped { (u, g) } else { (g, u) };
        let s = b.map(MapFn::Silu, &[g]);
        b.mul(s, u)
    };
    let (g, u) = (product(b, xs, a[3]), product(b, xs, a[4]));
    let h = gate(b, g, u, swapped[0]);
    let y = product(b, h, a[5]);
    let picked = b.op(Op::Gather { batch: 0 }, &[y, route[2]]);
    let y = b.contract("nkd,nk->nd", picked, a[2]);
    let y = b.reshape(y, &of_x);
    let (g, u) = (b.contract("btd,fd->btf", rows, own[0]), b.contract("btd,fd->btf", rows, own[1]));
    let h = gate(b, g, u, swapped[1]);
    let s = b.contract("btf,df->btd", h, own[2]);
    b.add(y, s)
}

/// For each rule a program where it has to fire: operand types as text, and the program.
pub const INSTANCES: &[(&str, &[&str], Build)] = &[
    ("contract-of-transpose", &["float B K", "float N K"], |b, a| {
        let w = b.transpose(a[1], &[1, 0]);
        vec![b.contract("bk,kn->bn", a[0], w)]
    }),
    ("contract-of-reshape", &["float B T K H", "float M N", "float K H N"], |b, a| {
        let (s, last) = (shape(b, a[0]), shape(b, a[1])[1].clone());
        let x = b.reshape(a[0], &[s[0].clone() * s[1].clone(), s[2].clone() * s[3].clone()]);
        let w = b.reshape(a[2], &[s[2].clone() * s[3].clone(), last]);
        vec![b.contract("rk,kn->rn", x, w)]
    }),
    ("transpose-of-contract", &["float B K", "float K N"], |b, a| {
        let y = b.contract("bk,kn->bn", a[0], a[1]);
        vec![b.transpose(y, &[1, 0])]
    }),
    ("reshape-of-contract", &["float B T K", "float K 6"], |b, a| {
        let y = b.contract("btk,kn->btn", a[0], a[1]);
        let s = shape(b, y);
        vec![b.reshape(y, &[s[0].clone(), s[1].clone(), Dim::from(3), Dim::from(2)])]
    }),
    ("slice-of-contract", &["float B K", "float K 9"], |b, a| {
        let y = b.contract("bk,kn->bn", a[0], a[1]);
        vec![slice(b, y, 1, 2, 4)]
    }),
    ("concat-of-broadcast", &["float B K", "float B L", "float H"], |b, a| {
        let h = shape(b, a[2])[0].clone();
        let wide = |b: &mut Builder, x| {
            let s = shape(b, x);
            b.broadcast(x, &[s[0].clone(), h.clone(), s[1].clone()], &[0, 2])
        };
        let (x, y) = (wide(b, a[0]), wide(b, a[1]));
        vec![b.op(Op::Concat(2), &[x, y])]
    }),
    // A narrow middle: through it is cheaper, whichever way it was written.
    ("contract-of-contract", &["float B K", "float 20 2", "float 2 N", "float 20 K"], |b, a| {
        let w = b.contract("kr,rn->kn", a[1], a[2]);
        let x = b.contract("bk,jk->bj", a[0], a[3]);
        vec![b.contract("bk,kn->bn", x, w)]
    }),
    ("contract-of-mul-by-row", &["float B T K", "float B T", "float K N", "float K", "float K 2"], |b, a| {
        let x = scaled_along(b, a[0], a[1], &[0, 1]);
        let weighted = scaled_along(b, x, a[3], &[2]);
        vec![b.contract("btk,kn->btn", x, a[2]), b.contract("btk,kn->btn", weighted, a[4])]
    }),
    ("contract-of-mul-by-summed", &["float B T K", "float K", "float K N"], |b, a| {
        let x = scaled_along(b, a[0], a[1], &[2]);
        vec![b.contract("btk,kn->btn", x, a[2])]
    }),
    ("contract-of-mul-by-constant", &["float B T 90", "float 90 N"], |b, a| {
        let x = scaled(b, a[0], 0.75);
        vec![b.contract("btk,kn->btn", x, a[1])]
    }),
    ("add-of-contracts", &["float B K", "float K N", "float B L", "float L N", "float B M", "float M N"], |b, a| {
        let parts = [(a[0], a[1]), (a[2], a[3]), (a[4], a[5])].map(|(x, w)| b.contract("bk,kn->bn", x, w));
        let sum = b.add(parts[0], parts[1]);
        vec![b.add(sum, parts[2])]
    }),
    ("div-by-constant", &["float B K"], |b, a| {
        let c = b.full_like(a[0], 8.0);
        vec![b.map(MapFn::Div, &[a[0], c])]
    }),
    // Keys of each head from a latent, with a part besides that all heads have: DeepSeek's.
    (
        "attend-of-projected-keys",
        &["float B T H K", "float B T H L", "float B T N", "float H K N", "float B T L", "float B T H M"],
        |b, a| {
            let q = b.op(Op::Concat(3), &[a[0], a[1]]);
            let k = b.contract("bsl,hkl->bshk", a[2], a[3]);
            let shared = for_heads(b, a[4], q);
            let k = b.op(Op::Concat(3), &[k, shared]);
            attend(b, Domain::Causal, &[q, k, a[5]])
        },
    ),
    ("attend-of-projected-values", &["float B T H K", "float B T H K", "float B T N", "float N L H"], |b, a| {
        let v = b.contract("bsl,lvh->bshv", a[2], a[3]);
        attend(b, Domain::Causal, &[a[0], a[1], v])
    }),
    ("attend-of-repeated-heads", &["float B T 6 K", "float B T 2 K", "float B T 2 M"], |b, a| {
        let repeat = |b: &mut Builder, x| {
            let s = shape(b, x);
            let five = [s[0].clone(), s[1].clone(), Dim::from(2), Dim::from(3), s[3].clone()];
            let x = b.broadcast(x, &five, &[0, 1, 2, 4]);
            b.reshape(x, &[s[0].clone(), s[1].clone(), Dim::from(6), s[3].clone()])
        };
        let (k, v) = (repeat(b, a[1]), repeat(b, a[2]));
        attend(b, Domain::And(Box::new(Domain::Causal), Box::new(Domain::Window(2))), &[a[0], k, v])
    }),
    ("attend-of-scaled-query", &["float B T H K", "float B T H K", "float B T H M"], |b, a| {
        let (q, k) = (scaled(b, a[0], 0.75), scaled(b, a[1], -2.0));
        attend(b, Domain::Full, &[q, k, a[2]])
    }),
    // A gate of each query and head, and another branch; the result and the scores' sums are wanted too.
    ("map-of-attend", &["float B T H K", "float B T H K", "float B T H M", "float B T H", "float B T H M"], |b, a| {
        let o = attend(b, Domain::Causal, &a[..3]);
        let gated = scaled_along(b, o[0], a[3], &[0, 1, 2]);
        let sum = b.add(gated, a[4]);
        let turned = b.transpose(sum, &[1, 0, 2, 3]);
        vec![turned, b.map(MapFn::Abs, &[o[1]]), b.op(Op::Reduce(ReduceFn::Max, vec![3]), &[o[0]])]
    }),
    // Two heads of queries share keys, and what the scores are mapped to needs the sums.
    ("scores-of-attend", &["float B T 4 K", "float B T 2 K", "float B T 2 M"], |b, a| {
        let o = attend(b, Domain::Full, a);
        let grouped = shape(b, a[0]);
        let grouped = [&grouped[..2], &[Dim::from(2), Dim::from(2)], &grouped[3..]].concat();
        let q = b.op(Op::Reshape(grouped), &[a[0]]);
        let scores = b.contract("btgrd,bsgd->btgrs", q, a[1]);
        let of_scores = shape(b, scores);
        let dtype = b.func.ty(scores).dtype;
        let sums = b.cast(o[1], dtype);
        let sums = b.op(Op::Reshape(of_scores[..4].to_vec()), &[sums]);
        let sums = b.broadcast(sums, &of_scores, &[0, 1, 2, 3]);
        vec![o[0], b.map(MapFn::Sub, &[scores, sums])]
    }),
    ("mul-of-silu", &["float B K", "float B K"], |b, a| {
        let s = b.map(MapFn::Silu, &[a[0]]);
        vec![b.mul(s, a[1])]
    }),
    ("mul-of-silu-right", &["float K", "float K"], |b, a| {
        let s = b.map(MapFn::Silu, &[a[1]]);
        vec![b.mul(a[0], s)]
    }),
    ("contract-of-nothing-summed", &["float B K", "float B N"], |b, a| vec![b.contract("ac,ab->abc", a[0], a[1])]),
    ("contract-of-few-choices", &["float B 4 N", "float B 4"], |b, a| vec![b.contract("nkd,nk->nd", a[0], a[1])]),
    // Choices outside of the groups are among those drawn: their rows are none.
    ("scatter-add-by-position", &["float B N", "float B 2", "float B 2 N", "i32 B 2"], |b, a| {
        let route = b.node(Op::Route { groups: 3 }, &[a[3]]);
        let n = shape(b, route[1])[0].clone();
        let product = b.contract("ac,ab->abc", a[0], a[1]);
        [product, a[2]].map(|v| b.op(Op::ScatterAdd { batch: 0, n: n.clone() }, &[route[2], v])).to_vec()
    }),
    ("scatter-add-by-source", &["float 8 N", "i32 4 2"], |b, a| {
        let route = b.node(Op::Route { groups: 3 }, &[a[1]]);
        let k = b.full_like(route[1], 2.0);
        let token = b.map(MapFn::FloorDiv, &[route[1], k]);
        vec![b.op(Op::ScatterAdd { batch: 0, n: Dim::from(4) }, &[token, a[0]])]
    }),
    // The best earlier tokens by the sum of an indexer's heads: DSA's.
    ("topk-of-scores", &["float B T H K", "float B T K", "float B T H"], |b, a| {
        let like = b.contract("bthd,bsd->bths", a[0], a[1]);
        let zero = b.full_like(like, 0.0);
        let like = b.map(MapFn::Max, &[like, zero]);
        let score = b.contract("bths,bth->bts", like, a[2]);
        let all = shape(b, score);
        let i = b.op(Op::Iota(all[1].clone()), &[]);
        let (j, t) = (b.broadcast(i, &all, &[2]), b.broadcast(i, &all, &[1]));
        let known = b.map(MapFn::Le, &[j, t]);
        let never = b.full_like(score, f64::NEG_INFINITY);
        let score = b.map(MapFn::Select, &[known, score, never]);
        vec![b.op(Op::TopK(2), &[score])]
    }),
    // Indices outside are among those drawn.
    ("gather-of-contract", &["float B T K", "float K N", "i32 B T 2"], |b, a| {
        let y = b.contract("btk,kn->btn", a[0], a[1]);
        vec![b.op(Op::Gather { batch: 2 }, &[y, a[2]])]
    }),
    ("gather-of-map", &["float B T K", "float B T", "i32 B T 2"], |b, a| {
        let s = shape(b, a[0]);
        let lse = b.broadcast(a[1], &s, &[0, 1]);
        let p = b.map(MapFn::Sub, &[a[0], lse]);
        let p = b.map(MapFn::Neg, &[p]);
        let c = b.full_like(p, 0.7);
        let p = b.map(MapFn::Div, &[p, c]);
        vec![b.op(Op::Gather { batch: 2 }, &[p, a[2]])]
    }),
    ("cast-of-layout", &["float K", "float B T N"], |b, a| {
        let (s, k) = (shape(b, a[1]), shape(b, a[0])[0].clone());
        let wide = b.broadcast(a[0], &[s[0].clone(), k], &[1]);
        let turned = b.transpose(a[1], &[2, 0, 1]);
        vec![b.cast(wide, DType::I32), b.cast(turned, DType::I32)]
    }),
    ("cast-of-cast", &["bf16 B K", "i32 B K"], |b, a| {
        let wide = b.cast(a[0], DType::F32);
        let wider = b.cast(a[1], DType::F64);
        vec![b.cast(wide, DType::BF16), b.cast(wider, DType::I32)]
    }),
    ("slice-of-cast", &["float B 9"], |b, a| {
        let y = b.cast(a[0], DType::I32);
        vec![slice(b, y, 1, 2, 4)]
    }),
    // Parts as columns of the result, on either side and of a batch; and as terms, of a matrix that is repeated.
    ("contract-of-widened-and-f32", &["bf16 B T 40", "f32 40 3", "f32 B T 40", "f32 40 2", "bf16 40 N", "f32 B T 40"], |b, a| {
        let [x, w] = [a[0], a[4]].map(|v| b.cast(v, DType::F32));
        let batch = b.contract("bti,bto->bio", x, a[2]);
        let terms = b.contract("btk,kn->btn", a[5], w);
        vec![b.contract("btk,kn->btn", x, a[1]), b.contract("kn,btk->ntb", a[3], x), batch, terms]
    }),
    ("contract-of-widened", &["bf16 B K", "bf16 K N", "f16 B 9", "f16 9 N", "f32 B K", "f32 K N"], |b, a| {
        let wide: Vec<Value> = a[..4].iter().map(|v| b.cast(*v, DType::F32)).collect();
        let tf32 = [4, 5].map(|i| {
            let narrow = b.cast(a[i], DType::TF32);
            b.cast(narrow, DType::F32)
        });
        let rounded = b.contract("bk,kn->bn", tf32[0], tf32[1]);
        vec![b.contract("bk,kn->bn", wide[0], wide[1]), b.contract("bk,kn->nb", wide[2], wide[3]), rounded]
    }),
    ("gather-of-cast", &["float N K", "i32 B"], |b, a| {
        let y = b.cast(a[0], DType::I32);
        vec![b.op(Op::Gather { batch: 0 }, &[y, a[1]])]
    }),
    // The last block of a row is a shorter one for most K; an index outside is among those drawn.
    ("quantize-of-moved", &["float B T K", "i32 N", "float B T K", "float B T 4"], |b, a| {
        let s = shape(b, a[0]);
        let joined = [s[0].clone() * s[1].clone(), s[2].clone()];
        let wide = [s[0].clone(), s[1].clone(), Dim::from(2), s[2].clone()];
        let moved = [
            b.op(Op::Gather { batch: 0 }, &[a[0], a[1]]),
            b.transpose(a[0], &[1, 0, 2]),
            b.reshape(a[0], &joined),
            b.broadcast(a[0], &wide, &[0, 1, 3]),
            b.op(Op::Concat(0), &[a[0], a[2]]),
            b.op(Op::Concat(2), &[a[3], a[0]]),
        ];
        moved.into_iter().flat_map(|x| b.node(Op::Quantize(Block::of_row(2)), &[x])).collect()
    }),
    ("gather-of-quantize", &["float N K", "i32 B", "float 3 N K", "i32 3 B"], |b, a| {
        let (q, r) = (b.node(Op::Quantize(Block::of_row(2)), &[a[0]]), b.node(Op::Quantize(Block::of_row(4)), &[a[2]]));
        [(q, a[1], 0), (r, a[3], 1)]
            .into_iter()
            .flat_map(|(q, index, batch)| [q[0], q[1]].map(|v| b.op(Op::Gather { batch }, &[v, index])))
            .collect()
    }),
    // Rows, whole blocks, and all that is left from a border on.
    ("slice-of-quantize", &["float 9 11", "float B 8", "float 3 7 9"], |b, a| {
        let (q, r) = (b.node(Op::Quantize(Block::of_row(4)), &[a[0]]), b.node(Op::Quantize(Block::of_row(2)), &[a[1]]));
        let s = b.node(Op::Quantize(ROWS), &[a[2]]);
        vec![
            slice(b, s[0], 1, 2, 5),
            slice(b, s[1], 1, 1, 3),
            slice(b, s[0], 2, 4, 4),
            slice(b, s[1], 0, 1, 2),
            slice(b, q[0], 0, 1, 3),
            slice(b, q[1], 0, 1, 3),
            slice(b, q[0], 1, 4, 7),
            slice(b, q[1], 1, 1, 2),
            slice(b, r[0], 1, 2, 4),
            slice(b, r[1], 1, 1, 2),
        ]
    }),
    ("gather-of-dequantize", &["float N K", "i32 B"], |b, a| {
        let y = there_and_back(b, a[0], 2);
        vec![b.op(Op::Gather { batch: 0 }, &[y, a[1]])]
    }),
    ("slice-of-dequantize", &["float 9 11", "float B 8", "float 7 9"], |b, a| {
        let (x, y) = (there_and_back(b, a[0], 4), there_and_back(b, a[1], 2));
        let z = of_blocks(b, a[2], ROWS);
        vec![slice(b, x, 0, 1, 3), slice(b, x, 1, 4, 7), slice(b, y, 1, 2, 4), slice(b, z, 0, 2, 4), slice(b, z, 1, 4, 5)]
    }),
    ("reshape-of-dequantize", &["float B T K", "float B 12", "float 8 3", "float 4 2 3"], |b, a| {
        let s = shape(b, a[0]);
        let (x, y) = (there_and_back(b, a[0], 2), there_and_back(b, a[1], 2));
        let rows = shape(b, y)[0].clone();
        let x = b.reshape(x, &[s[0].clone() * s[1].clone(), s[2].clone()]);
        let [z, w] = [2, 3].map(|i| of_blocks(b, a[i], ROWS));
        let several = [b.reshape(z, &[2, 4, 3].map(Dim::from)), b.reshape(w, &[8, 3].map(Dim::from))];
        [vec![x, b.reshape(y, &[rows, Dim::from(3), Dim::from(4)])], several.into()].concat()
    }),
    ("concat-of-dequantize", &["float B 4", "float B K", "float B 4", "float 4 K", "float 3 K"], |b, a| {
        let [x, y, z] = [0, 1, 2].map(|i| there_and_back(b, a[i], 2));
        let [v, w] = [3, 4].map(|i| of_blocks(b, a[i], ROWS));
        vec![b.op(Op::Concat(1), &[x, y]), b.op(Op::Concat(0), &[x, z]), b.op(Op::Concat(0), &[v, w])]
    }),
    ("dequantize-of-moved", &["float N K", "i32 B"], |b, a| {
        let q = b.node(Op::Quantize(Block::of_row(2)), &[a[0]]);
        let picked = [q[0], q[1]].map(|v| b.op(Op::Gather { batch: 0 }, &[v, a[1]]));
        vec![b.op(Op::Dequantize(Block::of_row(2)), &picked)]
    }),
    ("contract-of-dequantized", &["bf16 B T 8", "bf16 N 8", "f32 B T K", "f32 N K"], |b, a| {
        let [x, w] = [a[0], a[1]].map(|v| rounded_codes(b, v, 4, DType::BF16));
        let [y, u] = [a[2], a[3]].map(|v| rounded_codes(b, v, 4, DType::F16));
        let v = of_blocks(b, a[1], ROWS);
        let v = b.cast(v, DType::BF16);
        vec![b.contract("btk,nk->btn", x, w), b.contract("btk,nk->nbt", y, u), b.contract("btk,nk->btn", x, v)]
    }),
    ("grouped-contract-of-dequantized", &["float N K", "i32 N 2", "float 3 M K"], |b, a| {
        let route = b.node(Op::Route { groups: 3 }, &[a[1]]);
        let [x, w] = [a[0], a[2]].map(|v| rounded_codes(b, v, 2, DType::BF16));
        let rows = b.op(Op::Gather { batch: 0 }, &[x, route[1]]);
        vec![b.op(Op::GroupedContract { transposed: true }, &[rows, w, route[0]])]
    }),
    // As `std.fp8` has it, and from the other side.
    ("add-of-rounding", &["float B K", "float B 8"], |b, a| {
        let rounded = [(a[0], 2), (a[1], 4)].map(|(x, size)| {
            let (y, dtype) = (there_and_back(b, x, size), b.func.ty(x).dtype);
            let y = b.cast(y, dtype);
            (x, b.map(MapFn::Sub, &[y, x]))
        });
        vec![b.add(rounded[0].0, rounded[0].1), b.add(rounded[1].1, rounded[1].0)]
    }),
    ("contract-of-shared-operand", &["float B K", "float K M", "float K N"], |b, a| {
        vec![b.contract("bd,df->bf", a[0], a[1]), b.contract("bd,df->bf", a[0], a[2])]
    }),
    ("grouped-contract-of-shared-operand", &["float B K", "float 3 M K", "float 3 N K", "i32 B 1"], |b, a| {
        let route = b.node(Op::Route { groups: 3 }, &[a[3]]);
        let op = Op::GroupedContract { transposed: true };
        [a[1], a[2]].map(|w| b.op(op.clone(), &[a[0], w, route[0]])).to_vec()
    }),
    // DeepSeek's gate: a bias that only selects, the best of the best of two groups, weights of what is chosen.
    ("topk-of-rows", &["float B 4", "float 4"], |b, a| {
        let s = b.map(MapFn::Sigmoid, &[a[0]]);
        let all = shape(b, s);
        let bias = b.broadcast(a[1], &all, &[1]);
        let biased = b.add(s, bias);
        let groups = b.reshape(biased, &[all[0].clone(), Dim::from(2), Dim::from(2)]);
        let best = b.op(Op::Reduce(ReduceFn::Max, vec![2]), &[groups]);
        let group = b.op(Op::TopK(1), &[best]);
        let most = b.op(Op::Gather { batch: 1 }, &[best, group]);
        let of_groups = shape(b, groups);
        let most = b.reshape(most, &all[..1]);
        let most = b.broadcast(most, &of_groups, &[0]);
        let per_group = b.broadcast(best, &of_groups, &[0, 1]);
        let kept = b.map(MapFn::Eq, &[per_group, most]);
        let never = b.full_like(groups, f64::NEG_INFINITY);
        let left = b.map(MapFn::Select, &[kept, groups, never]);
        let left = b.reshape(left, &all);
        let chosen = b.op(Op::TopK(2), &[left]);
        let w = b.op(Op::Gather { batch: 1 }, &[s, chosen]);
        let sum = b.op(Op::Reduce(ReduceFn::Sum, vec![1]), &[w]);
        let of_choices = shape(b, w);
        let sum = b.broadcast(sum, &of_choices, &[0]);
        vec![b.map(MapFn::Div, &[w, sum]), chosen, s]
    }),
    // With the factors in the same order, and in the other: the matrices change places then.
    ("add-of-shared-expert", &OF_MIXTURE, |b, a| {
        [false, true].map(|swapped| mixture(b, a, [a[6], a[7], a[8]], [false, swapped], a[0])).to_vec()
    }),
    // Gate and up of rows that are taken by index, by a factor for each row; the up product is wanted besides.
    ("map-of-grouped-contracts", &["float B K", "float 3 M K", "float 3 M K", "float 3 K M", "i32 B 2", "float 2*B"], |b, a| {
        let route = b.node(Op::Route { groups: 3 }, &[a[4]]);
        let two = b.full_like(route[1], 2.0);
        let token = b.map(MapFn::FloorDiv, &[route[1], two]);
        let x = b.op(Op::Gather { batch: 0 }, &[a[0], token]);
        let product = |b: &mut Builder, x, w| b.op(Op::GroupedContract { transposed: true }, &[x, w, route[0]]);
        let [g, u] = [a[1], a[2]].map(|w| product(b, x, w));
        let s = b.map(MapFn::Silu, &[g]);
        let s = scaled_along(b, s, a[5], &[0]);
        let h = b.mul(s, u);
        vec![product(b, h, a[3]), b.map(MapFn::Exp, &[u]), u]
    }),
    // Both orientations of the matrices, of rows that some expert has, and of as many terms or not.
    ("add-of-grouped-contracts", &OF_TWO_PRODUCTS, |b, a| {
        let offsets = b.node(Op::Route { groups: 3 }, &[a[6]])[0];
        [false, true]
            .map(|t| sum_of_ragged(b, [[a[0], a[2 + usize::from(t)]], [a[1], a[4 + usize::from(t)]]], [offsets; 2], t))
            .to_vec()
    }),
    ("grouped-contract-of-joined", &OF_TWO_PRODUCTS, |b, a| {
        let offsets = b.node(Op::Route { groups: 3 }, &[a[6]])[0];
        let x = b.op(Op::Concat(1), &[a[0], a[1]]);
        let product = |b: &mut Builder, of: [Value; 2], transposed: bool| {
            let w = b.op(Op::Concat(if transposed { 2 } else { 1 }), &of);
            b.op(Op::GroupedContract { transposed }, &[x, w, offsets])
        };
        vec![product(b, [a[2], a[4]], false), product(b, [a[3], a[5]], true)]
    }),
    // Gate and up of the same rows, a factor for each row and a bias for each column, the up product being wanted besides; and a residual, to which
    // what is widened for its product is added.
    (
        "map-of-contracts",
        &["float B T K", "float K M", "float K M", "float B T", "float M", "bf16 B K", "bf16 K M", "f32 B M"],
        |b, a| {
            let [g, u] = [a[1], a[2]].map(|w| b.contract("btd,df->btf", a[0], w));
            let g = scaled_along(b, g, a[3], &[0, 1]);
            let shape = shape(b, g);
            let bias = b.broadcast(a[4], &shape, &[2]);
            let g = b.add(g, bias);
            let s = b.map(MapFn::Silu, &[g]);
            let h = b.mul(s, u);
            let e = b.map(MapFn::Exp, &[u]);
            let [x, w] = [a[5], a[6]].map(|v| b.cast(v, DType::F32));
            let y = b.contract("bd,df->bf", x, w);
            vec![b.op(Op::Reduce(ReduceFn::Sum, vec![1]), &[h]), e, u, b.add(a[7], y)]
        },
    ),
    // Positions of heads: halves rotated against each other after a bias, and with columns before them that stay; neighbours in the same way; what is
    // rotated is wanted besides.
    (
        "map-of-contract-columns",
        &["float B T K", "float K 2 6", "float 2 6", "f32 T 3", "f32 T 3", "f32 T 2", "f32 T 2"],
        |b, a| {
            let q = b.contract("btd,dhk->bthk", a[0], a[1]);
            let all = shape(b, q);
            let bias = b.broadcast(a[2], &all, &[2, 3]);
            let q = b.add(q, bias);
            let [whole, part] = [[a[3], a[4]], [a[5], a[6]]];
            vec![rotated(b, q, whole, 0), rotated(b, q, part, 2), rotated_pairs(b, q, whole, 0), rotated_pairs(b, q, part, 2), q]
        },
    ),
    ("reduce-of-streamed", &["float B K", "float 4100 K", "f32 B"], |b, a| {
        let w = b.transpose(a[1], &[1, 0]);
        let z = b.contract("bk,kn->bn", a[0], w);
        let z = b.cast(z, DType::F32);
        let z = scaled_along(b, z, a[2], &[0]);
        let z = scaled(b, z, 0.5);
        exponentials(b, z).to_vec()
    }),
];

/// Programs that only look alike, with the rules that must not fire there.
pub const LOOK_ALIKES: &[(&str, &[&str], &[&str], Build)] = &[
    (
        "x·x, summed",
        &["contract-of-contract", "contract-of-mul-by-summed", "mul-of-silu", "contract-of-shared-operand"],
        &["f32 B 4"],
        |b, a| {
            let x = b.mul(a[0], a[0]);
            vec![b.sum(x, &[1])]
        },
    ),
    ("the sum of a silu", &["mul-of-silu", "mul-of-silu-right"], &["f32 B", "f32 B"], |b, a| {
        let s = b.map(MapFn::Silu, &[a[0]]);
        vec![b.add(s, a[1])]
    }),
    ("products of two left operands", &["contract-of-shared-operand"], &["f32 B 4", "f32 B 4", "f32 4 3", "f32 4 5"], |b, a| {
        vec![b.contract("bd,df->bf", a[0], a[2]), b.contract("bd,df->bf", a[1], a[3])]
    }),
    (
        "a product that needs another's result",
        &["contract-of-shared-operand", "contract-of-contract"],
        &["f32 4 4", "f32 4 4"],
        |b, a| {
            let x = b.contract("bd,df->bf", a[0], a[1]);
            let y = b.contract("bd,df->bf", a[0], x);
            vec![b.op(Op::Reduce(ReduceFn::Max, vec![0]), &[y])]
        },
    ),
    ("weights of different axes", &["contract-of-shared-operand"], &["f32 B 4", "f32 4 3", "f32 5 4"], |b, a| {
        vec![b.contract("bd,df->bf", a[0], a[1]), b.contract("bd,fd->bf", a[0], a[2])]
    }),
    (
        "two values and no weight",
        &["contract-of-shared-operand", "contract-of-mul-by-row"],
        &["f32 B 4", "f32 4 3", "f32 4 5"],
        |b, a| {
            let (u, w) = (b.map(MapFn::Exp, &[a[1]]), b.map(MapFn::Exp, &[a[2]]));
            vec![b.contract("bd,df->bf", a[0], u), b.contract("bd,df->bf", a[0], w)]
        },
    ),
    (
        "experts of different tokens",
        &["grouped-contract-of-shared-operand"],
        &["f32 B 4", "f32 3 2 4", "f32 3 5 4", "i32 B 1", "i32 B 1"],
        |b, a| {
            let routes = [a[3], a[4]].map(|idx| b.node(Op::Route { groups: 3 }, &[idx])[0]);
            let op = Op::GroupedContract { transposed: true };
            [(a[1], routes[0]), (a[2], routes[1])].map(|(w, r)| b.op(op.clone(), &[a[0], w, r])).to_vec()
        },
    ),
    ("a shared expert without the others' activation", &["add-of-shared-expert"], &OF_MIXTURE, |b, a| {
        let other = b.map(MapFn::Silu, &[a[0]]);
        let y = mixture(b, a, [a[6], a[7], a[8]], [false, false], other);
        let (g, u) = (b.contract("btd,fd->btf", a[0], a[6]), b.contract("btd,fd->btf", a[0], a[7]));
        let h = b.mul(g, u);
        let s = b.contract("btf,df->btd", h, a[8]);
        vec![b.add(y, s)]
    }),
    (
        "a shared expert of another width",
        &["add-of-shared-expert"],
        &["f32 B T K", "i32 B*T 2", "f32 B*T 2", "f32 3 4 K", "f32 3 4 K", "f32 3 K 4", "f32 7 K", "f32 7 K", "f32 K 7"],
        |b, a| vec![mixture(b, a, [a[6], a[7], a[8]], [false, false], a[0])],
    ),
    ("a shared expert of other tokens", &["add-of-shared-expert"], &OF_MIXTURE, |b, a| {
        let other = b.map(MapFn::Silu, &[a[0]]);
        vec![mixture(b, a, [a[6], a[7], a[8]], [false, false], other)]
    }),
    ("a map that needs all of a row", &["map-of-grouped-contracts"], &["f32 B K", "f32 3 M K", "i32 B 1"], |b, a| {
        let offsets = b.node(Op::Route { groups: 3 }, &[a[2]])[0];
        let g = b.op(Op::GroupedContract { transposed: true }, &[a[0], a[1], offsets]);
        let most = b.op(Op::Reduce(ReduceFn::Max, vec![1]), &[g]);
        let shape = shape(b, g);
        let most = b.broadcast(most, &shape, &[0]);
        vec![b.map(MapFn::Sub, &[g, most])]
    }),
    (
        "a sum of products of other groups",
        &["add-of-grouped-contracts"],
        &["f32 B K", "f32 B K", "f32 3 K M", "f32 3 K M", "i32 B 1", "i32 B 1"],
        |b, a| {
            let offsets = [a[4], a[5]].map(|idx| b.node(Op::Route { groups: 3 }, &[idx])[0]);
            vec![sum_of_ragged(b, [[a[0], a[2]], [a[1], a[3]]], offsets, false)]
        },
    ),
    (
        "a product of the same rows twice",
        &["add-of-grouped-contracts"],
        &["f32 B K", "f32 3 K M", "f32 3 K M", "i32 B 1"],
        |b, a| {
            let offsets = b.node(Op::Route { groups: 3 }, &[a[3]])[0];
            vec![sum_of_ragged(b, [[a[0], a[1]], [a[0], a[2]]], [offsets; 2], false)]
        },
    ),
    (
        "a product whose rows alone are joined",
        &["grouped-contract-of-joined"],
        &["f32 B 4", "f32 B 4", "f32 3 8 M", "i32 B 1"],
        |b, a| {
            let offsets = b.node(Op::Route { groups: 3 }, &[a[3]])[0];
            let x = b.op(Op::Concat(1), &[a[0], a[1]]);
            vec![b.op(Op::GroupedContract { transposed: false }, &[x, a[2], offsets])]
        },
    ),
    (
        "rows and matrices that are joined at other places",
        &["grouped-contract-of-joined"],
        &["f32 B 4", "f32 B 8", "f32 3 8 M", "f32 3 4 M", "i32 B 1"],
        |b, a| {
            let offsets = b.node(Op::Route { groups: 3 }, &[a[4]])[0];
            let (x, w) = (b.op(Op::Concat(1), &[a[0], a[1]]), b.op(Op::Concat(1), &[a[2], a[3]]));
            vec![b.op(Op::GroupedContract { transposed: false }, &[x, w, offsets])]
        },
    ),
    ("a map of rows, and no product", &["map-of-grouped-contracts"], &["f32 B K", "f32 3 K K", "i32 B 1"], |b, a| {
        let offsets = b.node(Op::Route { groups: 3 }, &[a[2]])[0];
        let x = b.map(MapFn::Silu, &[a[0]]);
        let g = b.op(Op::GroupedContract { transposed: true }, &[x, a[1], offsets]);
        vec![b.transpose(g, &[1, 0])]
    }),
    ("a map that needs all of a dense row", &["map-of-contracts"], &["f32 B K", "f32 K M"], |b, a| {
        let y = b.contract("bk,km->bm", a[0], a[1]);
        let most = b.op(Op::Reduce(ReduceFn::Max, vec![1]), &[y]);
        let shape = shape(b, y);
        let most = b.broadcast(most, &shape, &[0]);
        vec![b.map(MapFn::Sub, &[y, most])]
    }),
    ("a map of what needs the product", &["map-of-contracts"], &["f32 B K", "f32 K K", "f32 K K"], |b, a| {
        let y = b.contract("bk,km->bm", a[0], a[1]);
        let z = b.contract("bk,mk->bm", y, a[2]);
        let z = b.transpose(z, &[1, 0]);
        let z = b.op(Op::Reduce(ReduceFn::Max, vec![1]), &[z]);
        let shape = shape(b, y);
        let z = b.broadcast(z, &shape, &[1]);
        vec![b.add(y, z)]
    }),
    ("a map of the operand, and no product", &["map-of-contracts"], &["f32 B K", "f32 K M"], |b, a| {
        let x = b.map(MapFn::Silu, &[a[0]]);
        let y = b.contract("bk,km->bm", x, a[1]);
        vec![b.op(Op::Reduce(ReduceFn::Max, vec![0]), &[y])]
    }),
    (
        "squares of a row, summed, and of a row of a product",
        &["contract-of-mul-by-row", "contract-of-mul-by-summed", "contract-of-few-choices"],
        &["f32 B K", "f32 K M"],
        |b, a| {
            let y = b.contract("bk,km->bm", a[0], a[1]);
            [a[0], y]
                .map(|x| {
                    let square = b.mul(x, x);
                    b.op(Op::Reduce(ReduceFn::Sum, vec![1]), &[square])
                })
                .to_vec()
        },
    ),
    ("columns of two products", &["map-of-contract-columns"], &["f32 B T K", "f32 K 2 6", "f32 K 2 6"], |b, a| {
        let [p, q] = [a[1], a[2]].map(|w| b.contract("btd,dhk->bthk", a[0], w));
        let [p, q] = [(p, 0), (q, 3)].map(|(v, start)| slice(b, v, 3, start, 3));
        let both = b.op(Op::Concat(3), &[p, q]);
        vec![b.op(Op::Reduce(ReduceFn::Max, vec![3]), &[both])]
    }),
    (
        "rows that are joined, and columns of which some are left out",
        &["map-of-contract-columns"],
        &["f32 4 K", "f32 K 6"],
        |b, a| {
            let q = b.contract("bd,dk->bk", a[0], a[1]);
            let [low, high] = [0, 2].map(|start| slice(b, q, 0, start, 2));
            let turned = b.op(Op::Concat(0), &[high, low]);
            let [first, last] = [0, 4].map(|start| slice(b, q, 1, start, 2));
            let fewer = b.op(Op::Concat(1), &[last, first]);
            vec![b.op(Op::Reduce(ReduceFn::Max, vec![0]), &[turned]), b.op(Op::Reduce(ReduceFn::Max, vec![1]), &[fewer])]
        },
    ),
    ("pairs of halves, and of rows", &["map-of-contract-columns"], &["f32 4 K", "f32 K 6"], |b, a| {
        let q = b.contract("bd,dk->bk", a[0], a[1]);
        let swapped = |b: &mut Builder, x: Value, to: &[i64], axis: usize| {
            let whole = shape(b, x);
            let pairs = b.reshape(x, &to.iter().copied().map(Dim::from).collect::<Vec<_>>());
            let [first, second] = [0, 1].map(|start| slice(b, pairs, axis, start, 1));
            let both = b.op(Op::Concat(axis), &[second, first]);
            b.reshape(both, &whole)
        };
        let all = [swapped(b, q, &[4, 2, 3], 1), swapped(b, q, &[2, 2, 6], 1)];
        all.map(|x| b.op(Op::Reduce(ReduceFn::Max, vec![0]), &[x])).to_vec()
    }),
    ("a map of the scores' sums too", &["map-of-attend"], &["f32 B T 2 K", "f32 B T 2 K", "f32 B T 2 M"], |b, a| {
        let o = attend(b, Domain::Full, a);
        let sums = b.cast(o[1], DType::F32);
        vec![scaled_along(b, o[0], sums, &[0, 1, 2])]
    }),
    ("a map of another that needs this", &["map-of-attend"], &["f32 B T 2 K", "f32 B T 2 K", "f32 B T 2 K"], |b, a| {
        let first = attend(b, Domain::Causal, a);
        let most = b.op(Op::Reduce(ReduceFn::Max, vec![1]), &[first[1]]);
        let shape = shape(b, first[0]);
        let most = b.broadcast(most, &shape, &[0, 2]);
        vec![b.map(MapFn::Sub, &[first[0], most])]
    }),
    ("scores that what is attended to needs", &["scores-of-attend"], &["f32 B T 2 K", "f32 B T 2 K"], |b, a| {
        let scores = b.contract("bthd,bshd->bths", a[0], a[1]);
        let least = b.op(Op::Reduce(ReduceFn::Max, vec![1]), &[scores]);
        let v = b.transpose(least, &[0, 2, 1]);
        let shape = [shape(b, v), vec![Dim::from(3)]].concat();
        let v = b.broadcast(v, &shape, &[0, 1, 2]);
        attend(b, Domain::Full, &[a[0], a[1], v])
    }),
    ("scores of other queries", &["scores-of-attend"], &["f32 B T 2 K", "f32 B T 2 K", "f32 B T 2 M"], |b, a| {
        let q = scaled_along(b, a[0], a[0], &[0, 1, 2, 3]);
        vec![b.contract("bthd,bshd->bths", q, a[1]), attend(b, Domain::Full, a)[0]]
    }),
    ("a factor of rows is none of columns", &["contract-of-mul-by-summed"], &["f32 B K", "f32 B", "f32 K N"], |b, a| {
        let x = scaled_along(b, a[0], a[1], &[0]);
        vec![b.contract("bk,kn->bn", x, a[2])]
    }),
    (
        "a factor of both rows and columns",
        &["contract-of-mul-by-summed", "contract-of-mul-by-row"],
        &["f32 B T K", "f32 T K", "f32 K N"],
        |b, a| {
            let x = scaled_along(b, a[0], a[1], &[1, 2]);
            vec![b.contract("btk,kn->btn", x, a[2])]
        },
    ),
    ("re-associated, it would be dearer", &["contract-of-contract"], &["f32 B 20", "f32 20 2", "f32 2 20"], |b, a| {
        let x = b.contract("bk,kr->br", a[0], a[1]);
        vec![b.contract("br,rn->bn", x, a[2])]
    }),
    ("x/3 is not x·(1/3)", &["div-by-constant"], &["f32 B K"], |b, a| {
        let c = b.full_like(a[0], 3.0);
        vec![b.map(MapFn::Div, &[a[0], c])]
    }),
    ("slices within blocks", MOVED, &["f32 B 8", "f32 B 9"], |b, a| {
        let parts = [(a[0], 1, 4), (a[0], 4, 2), (a[1], 4, 3)];
        let mut all: Vec<Value> = parts
            .into_iter()
            .flat_map(|(x, start, len)| {
                let part = slice(b, x, 1, start, len);
                let (codes, y) = (b.node(Op::Quantize(Block::of_row(4)), &[x])[0], there_and_back(b, x, 4));
                [b.node(Op::Quantize(Block::of_row(4)), &[part])[0], slice(b, codes, 1, start, len), slice(b, y, 1, start, len)]
            })
            .collect();
        // Every other element is of all blocks.
        let y = there_and_back(b, a[0], 4);
        all.push(b.op(Op::Slice { axis: 1, start: Dim::from(0), len: Dim::from(4), step: 2 }, &[y]));
        all
    }),
    ("rows within blocks, of several rows each", MOVED, &["f32 8 4", "f32 3 4"], |b, a| {
        let (q, y) = (b.node(Op::Quantize(ROWS), &[a[0]]), of_blocks(b, a[0], ROWS));
        let part = slice(b, a[0], 0, 1, 4);
        let of_part = b.node(Op::Quantize(ROWS), &[part]);
        let last = of_blocks(b, a[1], ROWS);
        let joined = b.op(Op::Concat(0), &[last, y]);
        vec![of_part[0], of_part[1], slice(b, q[0], 0, 1, 4), slice(b, y, 0, 1, 4), joined, b.reshape(y, &[4, 8].map(Dim::from))]
    }),
    ("a transpose of the blocked axis", MOVED, &["f32 4 8"], |b, a| {
        let (t, y) = (b.transpose(a[0], &[1, 0]), there_and_back(b, a[0], 4));
        let q = b.node(Op::Quantize(Block::of_row(4)), &[t]);
        vec![q[0], q[1], b.transpose(y, &[1, 0])]
    }),
    ("a gather along the blocked axis", MOVED, &["f32 4 8", "i32 4 4"], |b, a| {
        let picked = b.op(Op::Gather { batch: 1 }, &[a[0], a[1]]);
        let (codes, y) = (b.node(Op::Quantize(Block::of_row(4)), &[a[0]])[0], there_and_back(b, a[0], 4));
        let q = b.node(Op::Quantize(Block::of_row(4)), &[picked]);
        vec![q[0], q[1], b.op(Op::Gather { batch: 1 }, &[codes, a[1]]), b.op(Op::Gather { batch: 1 }, &[y, a[1]])]
    }),
    ("a reshape across blocks", MOVED, &["f32 4 6", "f32 8 6"], |b, a| {
        let [x, y] = [0, 1].map(|i| {
            let s = if i == 0 { [3, 8] } else { [4, 12] };
            b.reshape(a[i], &s.map(Dim::from))
        });
        let (q, r) = (b.node(Op::Quantize(Block::of_row(4)), &[x]), b.node(Op::Quantize(Block::of_row(4)), &[y]));
        let back = there_and_back(b, a[0], 4);
        vec![q[0], q[1], r[0], r[1], b.reshape(back, &[Dim::from(3), Dim::from(8)])]
    }),
    ("joined within a block", MOVED, &["f32 B 6", "f32 B 4"], |b, a| {
        let joined = b.op(Op::Concat(1), a);
        let q = b.node(Op::Quantize(Block::of_row(4)), &[joined]);
        let [x, y] = [0, 1].map(|i| there_and_back(b, a[i], 4));
        vec![q[0], q[1], b.op(Op::Concat(1), &[x, y])]
    }),
    ("joined from blocks of two sizes", MOVED, &["f32 B 8", "f32 B 8"], |b, a| {
        let (x, y) = (there_and_back(b, a[0], 4), there_and_back(b, a[1], 2));
        vec![b.op(Op::Concat(1), &[x, y])]
    }),
    ("a sum of what is quantised, and of codes' worth", MOVED, &["f32 4 B 8"], |b, a| {
        let (sum, y) = (b.sum(a[0], &[0]), there_and_back(b, a[0], 4));
        let q = b.node(Op::Quantize(Block::of_row(4)), &[sum]);
        vec![q[0], q[1], b.sum(y, &[0])]
    }),
    ("codes and scales moved by two indices", &["dequantize-of-moved"], &["f32 N K", "i32 B", "i32 B"], |b, a| {
        let q = b.node(Op::Quantize(Block::of_row(2)), &[a[0]]);
        let picked = [(q[0], a[1]), (q[1], a[2])].map(|(v, i)| b.op(Op::Gather { batch: 0 }, &[v, i]));
        vec![b.op(Op::Dequantize(Block::of_row(2)), &picked)]
    }),
    ("rows in blocks of several", &["contract-of-dequantized"], &["bf16 B 8", "bf16 N 8"], |b, a| {
        let x = of_blocks(b, a[0], ROWS);
        let x = b.cast(x, DType::BF16);
        let w = rounded_codes(b, a[1], 4, DType::BF16);
        vec![b.contract("bk,nk->bn", x, w)]
    }),
    (
        "one operand of codes, blocks of two sizes, and none rounded",
        &["contract-of-dequantized"],
        &["f32 B 8", "f32 N 8"],
        |b, a| {
            let (x, w, u) = (there_and_back(b, a[0], 4), there_and_back(b, a[1], 4), there_and_back(b, a[1], 2));
            let [narrow, y, v] = [a[0], x, u].map(|z| b.cast(z, DType::BF16));
            let [changed, other] = [w, a[1]].map(|z| {
                let z = b.map(MapFn::Neg, &[z]);
                b.cast(z, DType::BF16)
            });
            let of = |b: &mut Builder, x, w| b.contract("bk,nk->bn", x, w);
            vec![of(b, narrow, v), of(b, y, v), of(b, y, changed), of(b, y, other), of(b, x, w)]
        },
    ),
    (
        "ragged rows of codes, matrices as they are",
        &["grouped-contract-of-dequantized"],
        &["f32 N 8", "i32 N 1", "f32 3 M 8"],
        |b, a| {
            let route = b.node(Op::Route { groups: 3 }, &[a[1]]);
            let x = rounded_codes(b, a[0], 4, DType::BF16);
            let w = b.cast(a[2], DType::BF16);
            vec![b.op(Op::GroupedContract { transposed: true }, &[x, w, route[0]])]
        },
    ),
    ("rounding of another value, or with other scales", &["add-of-rounding"], &["f32 B 8", "f32 B 8"], |b, a| {
        let y = there_and_back(b, a[1], 4);
        let change = b.map(MapFn::Sub, &[y, a[0]]);
        let (q, r) = (b.node(Op::Quantize(Block::of_row(4)), &[a[0]]), b.node(Op::Quantize(Block::of_row(4)), &[a[1]]));
        let mixed = b.op(Op::Dequantize(Block::of_row(4)), &[q[0], r[1]]);
        let also = b.map(MapFn::Sub, &[mixed, a[0]]);
        vec![b.add(a[0], change), b.add(a[0], also)]
    }),
    ("rounded between", &["cast-of-cast"], &["f32 B K", "f32 B"], |b, a| {
        let x = b.cast(a[0], DType::BF16);
        let n = b.cast(a[1], DType::I32);
        vec![b.cast(x, DType::F32), b.cast(n, DType::F32)]
    }),
    ("a reshape across axes of a product", &["reshape-of-contract"], &["f32 B 4", "f32 4 6"], |b, a| {
        let y = b.contract("bk,kn->bn", a[0], a[1]);
        let s = shape(b, y);
        vec![b.reshape(y, &[s[0].clone() * Dim::from(2), Dim::from(3)])]
    }),
    ("a slice of a batch axis", &["slice-of-contract"], &["f32 9 B K", "f32 9 K N"], |b, a| {
        let y = b.contract("hbk,hkn->hbn", a[0], a[1]);
        vec![slice(b, y, 0, 2, 4)]
    }),
    ("joined along the repeated axis", &["concat-of-broadcast"], &["f32 B K", "f32 B K"], |b, a| {
        let wide = [a[0], a[1]].map(|x| {
            let s = shape(b, x);
            b.broadcast(x, &[s[0].clone(), Dim::from(3), s[1].clone()], &[0, 2])
        });
        vec![b.op(Op::Concat(1), &wide)]
    }),
    (
        "keys chosen for each head",
        &["attend-of-repeated-heads"],
        &["f32 B T 2 K", "f32 B T K", "f32 B T M", "i32 B T 2 1"],
        |b, a| {
            let (k, v) = (for_heads(b, a[1], a[0]), for_heads(b, a[2], a[0]));
            attend(b, Domain::And(Box::new(Domain::Tokens(0)), Box::new(Domain::Causal)), &[a[0], k, v, a[3]])
        },
    ),
    (
        "heads that share projected keys",
        &["attend-of-projected-keys", "attend-of-projected-values"],
        &["f32 B T 6 K", "f32 B T N", "f32 2 K N", "f32 2 M N"],
        |b, a| {
            let k = b.contract("bsl,hkl->bshk", a[1], a[2]);
            let v = b.contract("bsl,hkl->bshk", a[1], a[3]);
            attend(b, Domain::Causal, &[a[0], k, v])
        },
    ),
    ("a scale of each query", &["attend-of-scaled-query"], &["f32 B T 2 K", "f32 B T 2 K", "f32 B T 2 M", "f32 B T"], |b, a| {
        let q = scaled_along(b, a[0], a[3], &[0, 1]);
        attend(b, Domain::Full, &[q, a[1], a[2]])
    }),
    ("a pick along the rows", &["gather-of-contract"], &["f32 T K", "f32 K N", "i32 2"], |b, a| {
        let y = b.contract("tk,kn->tn", a[0], a[1]);
        vec![b.op(Op::Gather { batch: 0 }, &[y, a[2]])]
    }),
    ("many choices are a product", &["contract-of-few-choices"], &["f32 B 9 K", "f32 B 9"], |b, a| {
        vec![b.contract("nkd,nk->nd", a[0], a[1])]
    }),
    ("a matrix for each row", &["contract-of-few-choices"], &["f32 B 4 N", "f32 B 4 M"], |b, a| {
        vec![b.contract("nkd,nkm->ndm", a[0], a[1])]
    }),
    ("positions of another routing's rows", &["scatter-add-by-position"], &["f32 B 2 N", "i32 B 2"], |b, a| {
        let n = shape(b, a[0])[0].clone() * Dim::from(2);
        vec![b.op(Op::ScatterAdd { batch: 0, n }, &[a[1], a[0]])]
    }),
    ("fewer rows than there are choices", &["scatter-add-by-position"], &["f32 B 2 N", "i32 B 2"], |b, a| {
        let route = b.node(Op::Route { groups: 3 }, &[a[1]]);
        let n = shape(b, a[0])[0].clone();
        vec![b.op(Op::ScatterAdd { batch: 0, n }, &[route[2], a[0]])]
    }),
    ("tokens of another number of choices", &["scatter-add-by-source"], &["f32 8 N", "i32 4 2"], |b, a| {
        let route = b.node(Op::Route { groups: 3 }, &[a[1]]);
        let k = b.full_like(route[1], 4.0);
        let token = b.map(MapFn::FloorDiv, &[route[1], k]);
        vec![b.op(Op::ScatterAdd { batch: 0, n: Dim::from(4) }, &[token, a[0]])]
    }),
    ("experts are few: their scores are small", &["topk-of-scores"], &["f32 B K", "f32 K N"], |b, a| {
        let y = b.contract("bk,kn->bn", a[0], a[1]);
        let y = b.map(MapFn::Sigmoid, &[y]);
        vec![b.op(Op::TopK(2), &[y])]
    }),
    ("scores of positions are many", &["topk-of-rows"], &["f32 B T B"], |b, a| {
        let y = b.map(MapFn::Exp, &[a[0]]);
        vec![b.op(Op::TopK(2), &[y])]
    }),
    ("rows that read others", &["topk-of-rows"], &["f32 B 4"], |b, a| {
        let y = b.op(Op::Cumsum { axis: 0, exclusive: false, reverse: false }, &[a[0]]);
        vec![b.op(Op::TopK(2), &[y])]
    }),
    ("scores that are there already", &["topk-of-scores"], &["f32 B T B"], |b, a| {
        let y = b.map(MapFn::Exp, &[a[0]]);
        vec![b.op(Op::TopK(2), &[y])]
    }),
    ("each score needs all others", &["topk-of-scores"], &["f32 B T K", "f32 B T K", "f32 B T T"], |b, a| {
        let s = b.contract("btd,bsd->bts", a[0], a[1]);
        let s = b.map(MapFn::Exp, &[s]);
        let y = b.contract("bts,bsu->btu", s, a[2]);
        vec![b.op(Op::TopK(2), &[y])]
    }),
    ("outside, e⁰ is not 0", &["gather-of-map"], &["f32 K N", "i32 B"], |b, a| {
        let y = b.map(MapFn::Exp, &[a[0]]);
        vec![b.op(Op::Gather { batch: 0 }, &[y, a[1]])]
    }),
    ("outside, 0/0 is not 0", &["gather-of-map"], &["f32 K N", "i32 B", "f32 K N"], |b, a| {
        let c = b.full_like(a[0], 0.0);
        let y = [b.map(MapFn::Div, &[a[0], c]), b.map(MapFn::Div, &[a[0], a[2]])];
        y.map(|y| b.op(Op::Gather { batch: 0 }, &[y, a[1]])).to_vec()
    }),
    ("a transpose of no product", &["transpose-of-contract"], &["f32 B K"], |b, a| {
        let y = b.map(MapFn::Exp, &[a[0]]);
        vec![b.transpose(y, &[1, 0])]
    }),
    ("a sum of products of different forms", &["add-of-contracts"], &["f32 B K", "f32 K N", "f32 B L", "f32 N L"], |b, a| {
        let (x, y) = (b.contract("bk,kn->bn", a[0], a[1]), b.contract("bk,nk->bn", a[2], a[3]));
        vec![b.add(x, y)]
    }),
    ("experts are few: their sum is short", &["reduce-of-streamed"], &["f32 B K", "f32 K 300"], |b, a| {
        let z = b.contract("bk,kn->bn", a[0], a[1]);
        exponentials(b, z).to_vec()
    }),
    ("logits that are there already", &["reduce-of-streamed"], &["f32 B 4100"], |b, a| exponentials(b, a[0]).to_vec()),
    ("a sum over what is known at run time", &["reduce-of-streamed"], &["f32 B K", "f32 K T"], |b, a| {
        let z = b.contract("bk,kn->bn", a[0], a[1]);
        exponentials(b, z).to_vec()
    }),
    ("a transpose with a map after it", &["contract-of-transpose"], &["f32 K B", "f32 K N"], |b, a| {
        let x = b.transpose(a[0], &[1, 0]);
        let x = b.map(MapFn::Exp, &[x]);
        vec![b.contract("bk,kn->bn", x, a[1])]
    }),
    (
        "a reshape that splits an axis, and one across axes",
        &["contract-of-reshape"],
        &["f32 B 6", "f32 3 N", "f32 4 6"],
        |b, a| {
            let rows = shape(b, a[0])[0].clone();
            let split = b.reshape(a[0], &[rows, Dim::from(2), Dim::from(3)]);
            let across = b.reshape(a[2], &[Dim::from(8), Dim::from(3)]);
            vec![b.contract("bhk,kn->bhn", split, a[1]), b.contract("bk,kn->bn", across, a[1])]
        },
    ),
    ("a number where there are no more elements", &["contract-of-mul-by-constant"], &["f32 B 5", "f32 5 90"], |b, a| {
        let x = scaled(b, a[0], 0.75);
        vec![b.contract("bk,kn->bn", x, a[1])]
    }),
    // Of two elements there is no second block of three.
    ("scales that may be none", &["slice-of-quantize"], &["float 1 B"], |b, a| {
        let q = b.node(Op::Quantize(Block::of_row(3)), &[a[0]]);
        let len = shape(b, q[1])[1].clone() - Dim::from(1);
        vec![b.op(Op::Slice { axis: 1, start: Dim::from(1), len, step: 1 }, &[q[1]])]
    }),
    ("a sum of one term", &["contract-of-nothing-summed"], &["f32 B 1", "f32 1 N"], |b, a| {
        vec![b.contract("bk,kn->bn", a[0], a[1])]
    }),
    ("widened after it is joined, or some of it", &["cast-of-layout"], &["bf16 B 8", "bf16 B 8"], |b, a| {
        let (joined, some) = (b.op(Op::Concat(1), a), slice(b, a[0], 1, 2, 4));
        vec![b.cast(joined, DType::F32), b.cast(some, DType::F32)]
    }),
    (
        "a product of f32 as it is, one of f16 and f32, one of bf16 and f16, one of bf16 and f64, and one with as much in its result as it reads",
        &["contract-of-widened-and-f32", "contract-of-widened"],
        &["bf16 B 9", "f32 B 9", "f16 B 9", "f32 9 9", "f64 9 2"],
        |b, a| {
            let [x, h] = [a[0], a[2]].map(|v| b.cast(v, DType::F32));
            let wide = b.cast(a[0], DType::F64);
            let (plain, half) = (b.contract("bk,kn->bn", a[1], a[3]), b.contract("bk,kn->bn", h, a[3]));
            let (mixed, double) = (b.contract("bk,bn->kn", x, h), b.contract("bk,kn->bn", wide, a[4]));
            vec![plain, half, mixed, double, b.contract("bk,kn->bn", x, a[3])]
        },
    ),
    (
        "rows of a map of a cast, rows by a cast index, and what is added up",
        &["slice-of-cast", "gather-of-cast"],
        &["bf16 9 K", "f32 B", "i32 9"],
        |b, a| {
            let wide = b.cast(a[0], DType::F32);
            let e = b.map(MapFn::Exp, &[wide]);
            let index = b.cast(a[1], DType::I32);
            let sums = b.op(Op::ScatterAdd { batch: 0, n: Dim::from(4) }, &[a[2], wide]);
            vec![slice(b, e, 0, 2, 4), b.op(Op::Gather { batch: 0 }, &[a[0], index]), sums]
        },
    ),
    (
        "latents of each head: one axis more",
        &["attend-of-projected-keys", "attend-of-projected-values"],
        &["f32 B T H K", "f32 B T H N", "f32 H K N", "f32 H M N"],
        |b, a| {
            let k = b.contract("bshl,hkl->bshk", a[1], a[2]);
            let v = b.contract("bshl,hkl->bshk", a[1], a[3]);
            attend(b, Domain::Causal, &[a[0], k, v])
        },
    ),
    ("the summed axis of a product", &["reduce-of-streamed"], &["f32 B 4100", "f32 4100 K"], |b, a| {
        vec![b.contract("bk,kn->bn", a[0], a[1])]
    }),
];
