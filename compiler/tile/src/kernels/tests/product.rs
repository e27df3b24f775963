//! Products of a device of many processors, against plain loops.

use super::{Random, assert_near};
use crate::{
    interp::{Options, run},
    ir::{Expr, Kernel, Stmt},
    kernels::{
        build::Build,
        gpu_product::{
            Element, Epilogue, Given, Grouped, OfCodes, Operand, Product, Tiling, gpu_grouped, gpu_grouped_map, gpu_product,
            gpu_product_map, scales,
        },
    },
    verify::verify,
};
use base::{DType, Dim, DimEnv};
use graph::op::MapFn;

/// What the kernel leaves in its last buffer.
fn last(k: &Kernel, mut buffers: Vec<Vec<f64>>, dims: &DimEnv) -> Vec<f64> {
    let mut other = buffers.clone();
    run(k, &mut buffers, dims, Options::default()).unwrap_or_else(|e| panic!("{}: {e}", k.name));
    run(k, &mut other, dims, Options { seed: 5, ..Options::default() }).unwrap_or_else(|e| panic!("{}: {e}", k.name));
    let result = buffers.pop().expect("a result");
    assert_eq!(Some(&result), other.last(), "the order of blocks shows");
    result
}

fn copies(body: &[Stmt]) -> usize {
    body.iter()
        .map(|s| match s {
            Stmt::Copy(_) => 1,
            Stmt::For { body, .. } => copies(body),
            Stmt::If { then, .. } => copies(then),
            _ => 0,
        })
        .sum()
}

/// A product of `m n k` with each of the four orders of operands; the number of copies.
fn dense(
    dtype: DType,
    sizes: [i64; 3],
    turned: [bool; 2],
    batch: &[(i64, [i64; 3])],
    accumulate: bool,
    t: Option<Tiling>,
) -> usize {
    mixed([dtype, dtype], sizes, turned, batch, accumulate, t)
}

/// The same with a result of another dtype than the operands'.
fn mixed(
    [dtype, result]: [DType; 2],
    [m, n, k]: [i64; 3],
    turned: [bool; 2],
    batch: &[(i64, [i64; 3])],
    accumulate: bool,
    t: Option<Tiling>,
) -> usize {
    let mut random = Random::new((m * 31 + n * 7 + k) as u64);
    let a = if turned[0] { [1, m] } else { [k, 1] };
    let b = if turned[1] { [1, k] } else { [n, 1] };
    let strides = [a[0], a[1], b[0], b[1], n, 1];
    // The batch may be a dim of the run-time's.
    let sizes: Vec<(Dim, [Dim; 3])> = batch.iter().map(|(e, s)| (Dim::from(*e), s.map(Dim::from))).collect();
    let m_dim = if m % 3 == 0 { Dim::sym("M") } else { Dim::from(m) };
    let p = Product {
        dtype,
        result,
        extents: [m_dim, Dim::from(n), Dim::from(k)],
        strides: strides.map(Dim::from),
        batch: sizes,
        accumulate,
        parts: 1,
        aligned: [true; 3],
    };
    let kernel = gpu_product(&p, t);
    let dims: DimEnv = [("M".into(), m)].into_iter().collect();
    let elems = |i: usize| kernel.buffers[i].elems.eval(&dims).expect("a number") as usize;
    let mut fill = |n: usize| (0..n).map(|_| dtype.round(random.float())).collect::<Vec<f64>>();
    let (x, y) = (fill(elems(0)), fill(elems(1)));
    let z = if accumulate { fill(elems(2)) } else { vec![f64::NAN; elems(2)] };
    let mut want = z.clone();
    let mut starts = vec![[0i64; 3]];
    for (extent, by) in batch {
        let moved = |s: [i64; 3], i: i64| [0, 1, 2].map(|o| s[o] + i * by[o]);
        starts = starts.into_iter().flat_map(|s| (0..*extent).map(move |i| moved(s, i))).collect();
    }
    for [a0, b0, c0] in starts {
        for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
            let at = (c0 + i * strides[4] + j * strides[5]) as usize;
            let first = if accumulate { z[at] } else { 0.0 };
            let term =
                |l: i64| x[(a0 + i * strides[0] + l * strides[1]) as usize] * y[(b0 + l * strides[2] + j * strides[3]) as usize];
            want[at] = result.round(first + (0..k).map(term).sum::<f64>());
        }
    }
    // Sums in f32 may round a result to its neighbour.
    let near = if result == DType::BF16 || result == DType::F16 { 1e-2 } else { 1e-5 };
    assert_near("c", &last(&kernel, vec![x, y, z], &dims), &want, near);
    copies(&kernel.body)
}

#[test]
fn products_in_every_order() {
    for turned in [[false, false], [false, true], [true, false], [true, true]] {
        assert_eq!(dense(DType::BF16, [72, 80, 136], turned, &[], false, None), if turned[0] { 1 } else { 3 });
        assert_eq!(dense(DType::F32, [33, 20, 17], turned, &[], true, None), 1);
        dense(DType::F64, [5, 3, 40], turned, &[], false, None);
    }
}

#[test]
fn narrow_operands_have_products_in_f32() {
    let copies = mixed([DType::BF16, DType::F32], [72, 80, 136], [false, true], &[], false, None);
    assert_eq!(copies, 3);
    mixed([DType::F16, DType::F32], [20, 24, 40], [true, false], &[(2, [800, 960, 480])], true, None);
    mixed([DType::BF16, DType::F32], [5, 3, 7], [false, false], &[], false, None);
}

#[test]
fn products_of_tf32() {
    // Copied where terms are neighbours in both.
    for (turned, copied) in [([false, true], 3), ([false, false], 1), ([true, true], 1)] {
        assert_eq!(mixed([DType::TF32, DType::F32], [72, 80, 136], turned, &[], false, None), copied);
    }
    assert_eq!(mixed([DType::TF32, DType::F32], [20, 24, 40], [false, true], &[(2, [800, 960, 480])], true, None), 3);
    mixed([DType::TF32, DType::F32], [5, 3, 7], [false, true], &[], false, None);
    mixed([DType::TF32, DType::TF32], [5, 8, 16], [false, true], &[], false, None);
    for t in Tiling::OF_TF32 {
        mixed([DType::TF32, DType::F32], [t.m + 8, t.n + 8, t.k + 8], [false, true], &[], true, Some(t));
    }
}

#[test]
fn products_with_every_tiling() {
    for t in Tiling::LEGAL {
        dense(DType::F16, [t.m + 8, t.n + 8, t.k + 8], [false, true], &[], true, Some(t));
    }
}

#[test]
fn products_in_pairs() {
    // The interpreter compares what the blocks of a pair copy: odd and even numbers of tiles, strips that end, both orders of the second operand, a batch.
    let t = Tiling { pairs: true, down: 4, ..Tiling::LEGAL[6] };
    for (m, n, k, batch) in
        [(3, 3, 72, 1), (1, 3, 72, 1), (1, 1, 72, 1), (5, 1, 24, 1), (4, 2, 24, 1), (2, 1, 24, 2), (1, 3, 24, 2)]
    {
        let [m, n] = [m, n].map(|tiles| tiles * 64 - 8);
        let by = [m * k, k * n, m * n];
        let batch = if batch > 1 { vec![(batch, by)] } else { Vec::new() };
        for turned in [[false, true], [false, false]] {
            assert_eq!(dense(DType::F16, [m, n, k], turned, &batch, false, Some(t)), 3, "{m} by {n}");
        }
    }
    let of = |m: i64, n: i64, batch: i64| {
        let strides = [64, 1, 1, 64, n, 1].map(Dim::from);
        let by = [64 * m, 64 * n, m * n].map(Dim::from);
        let batch = if batch > 1 { vec![(Dim::from(batch), by)] } else { Vec::new() };
        let (extents, aligned) = ([m, n, 64].map(Dim::from), [true; 3]);
        let p =
            Product { dtype: DType::BF16, result: DType::BF16, extents, strides, batch, accumulate: false, parts: 1, aligned };
        let kernel = gpu_product(&p, Some(t));
        (kernel.in_pairs(), kernel.grid.known())
    };
    // One tile more, if their number is odd; in a batch pairs would be of two products.
    assert_eq!([of(192, 192, 1), of(128, 192, 1), of(192, 192, 2)], [(true, Some(10)), (true, Some(6)), (false, Some(18))]);
}

/// Rows, columns, terms if they are known; the parts of the product, and the rows and columns of its tiles.
#[test]
fn few_tiles_are_narrower_where_that_is_sooner() {
    for (m, n, k, parts, tile) in [
        (768, 768, None, 7, [128, 256]),
        (768, 768, Some(8192), 7, [128, 256]),
        // So few terms are not taken in parts, and more tiles are.
        (768, 768, Some(512), 1, [128, 128]),
        (2048, 768, None, 2, [128, 192]),
        (768, 2048, None, 2, [128, 192]),
        (256, 768, None, 8, [128, 128]),
        (32000, 768, None, 1, [128, 256]),
    ] {
        let strides = [1, m, n, 1, n, 1].map(Dim::from);
        let extents = [Dim::from(m), Dim::from(n), k.map_or(Dim::sym("T"), Dim::from)];
        let (dtype, result, aligned) = (DType::BF16, DType::F32, [true; 3]);
        let mut p = Product { dtype, result, extents, strides, batch: Vec::new(), accumulate: false, parts: 1, aligned };
        p.parts = p.choose_parts();
        let sums = gpu_product(&p, None).scratch.into_iter().find(|s| s.name == "c").expect("sums");
        assert_eq!((p.parts, sums.elems as i64), (parts, tile[0] * tile[1]), "{m} by {n}, {k:?} terms");
    }
}

#[test]
fn products_of_a_batch_and_of_nothing() {
    // Heads in the middle, one operand for all, results turned.
    assert_eq!(dense(DType::BF16, [24, 16, 64], [false, false], &[(2, [24 * 64, 0, 24 * 16]), (1, [8, 8, 8])], false, None), 3);
    // Extents that are no multiples: nothing to copy.
    assert_eq!(dense(DType::BF16, [24, 13, 9], [false, false], &[(3, [24 * 9, 9 * 13, 24 * 13])], true, None), 0);
    dense(DType::F32, [4, 5, 0], [false, false], &[], false, None);
    dense(DType::F32, [0, 5, 3], [false, false], &[], false, None);
}

#[test]
fn ragged_rows_with_empty_groups_and_all_in_one() {
    let (k, n) = (24, 40);
    // Alone, and in pairs: tiles of one group, of two, and of none.
    let pairs = Some(Tiling { pairs: true, ..Tiling::LEGAL[6] });
    for (offsets, rows) in [(vec![0, 5, 5, 130, 200], 203), (vec![0, 0, 0, 150, 150], 150), (vec![0, 0, 0, 0, 0], 7)] {
        let ways = [(DType::BF16, false), (DType::BF16, true), (DType::F32, false), (DType::F32, true)].map(|way| (way, None));
        for ((dtype, transposed), t) in ways.into_iter().chain([false, true].map(|turned| ((DType::BF16, turned), pairs))) {
            let mut random = Random::new(rows as u64);
            let groups = offsets.len() - 1;
            let p = Grouped {
                dtype,
                extents: [Dim::from(groups as i64), Dim::sym("R"), Dim::from(k), Dim::from(n)],
                further: Vec::new(),
                rows: Some(transposed),
                accumulate: false,
                aligned: true,
            };
            let dims: DimEnv = [("R".into(), rows)].into_iter().collect();
            let mut fill = |n: i64| (0..n).map(|_| dtype.round(random.float())).collect::<Vec<f64>>();
            let (x, w, y) = (fill(rows * k), fill(groups as i64 * k * n), fill(rows * n));
            let of = |r: i64| (0..groups).find(|g| (offsets[*g]..offsets[g + 1]).contains(&r));
            let weight = |g: usize, l: i64, j: i64| {
                let g = g as i64;
                w[(if transposed { (g * n + j) * k + l } else { (g * k + l) * n + j }) as usize]
            };
            let mut want = vec![0.0; (rows * n) as usize];
            let mut sums = vec![0.0; groups * (k * n) as usize];
            for (r, g) in (0..rows).filter_map(|r| Some((r, of(r)?))) {
                for j in 0..n {
                    let sum: f64 = (0..k).map(|l| x[(r * k + l) as usize] * weight(g, l, j)).sum();
                    want[(r * n + j) as usize] = dtype.round(sum);
                    for l in 0..k {
                        sums[g * (k * n) as usize + (l * n + j) as usize] += x[(r * k + l) as usize] * y[(r * n + j) as usize];
                    }
                }
            }
            let at: Vec<f64> = offsets.iter().map(|o| *o as f64).collect();
            let near = if dtype == DType::BF16 { 1e-2 } else { 1e-5 };
            let kernel = gpu_grouped(&p, t);
            let got = last(&kernel, vec![x.clone(), w.clone(), at.clone(), vec![f64::NAN; want.len()]], &dims);
            assert_near("y", &got, &want, near);
            // With more rows and matrices, which are halves here.
            let of_more = [w.iter().map(|x| x / 2.0).collect::<Vec<f64>>(), vec![f64::NAN; want.len()]];
            let more = Grouped { further: vec![Dim::from(k)], ..p.clone() };
            let [w1, nothing] = of_more;
            let got = last(&gpu_grouped(&more, t), vec![x.clone(), w.clone(), x.clone(), w1, at.clone(), nothing], &dims);
            let halves: Vec<f64> = want.iter().map(|x| x * 1.5).collect();
            assert_near("y, of more", &got, &halves, near);
            let kernel = gpu_grouped(&Grouped { rows: None, ..p.clone() }, t);
            let rounded: Vec<f64> = sums.iter().map(|x| dtype.round(*x)).collect();
            let got = last(&kernel, vec![x.clone(), y.clone(), at.clone(), vec![f64::NAN; sums.len()]], &dims);
            assert_near("w", &got, &rounded, near);
            let kernel = gpu_grouped(&Grouped { rows: None, accumulate: true, ..p }, t);
            let before = fill(sums.len() as i64);
            let added: Vec<f64> = before.iter().zip(&sums).map(|(a, b)| dtype.round(a + b)).collect();
            let got = last(&kernel, vec![x, y, at, before], &dims);
            assert_near("w, added", &got, &added, near);
        }
    }
}

#[test]
fn gated_products_of_ragged_rows() {
    let (k, n, rows) = (24i64, 40i64, 203i64);
    let offsets = [0i64, 5, 5, 130, 200];
    let pairs = Some(Tiling { pairs: true, ..Tiling::LEGAL[6] });
    let ways = [
        (DType::BF16, true, true, None, None),
        (DType::BF16, false, false, Some(50), None),
        (DType::F32, true, true, Some(7), None),
        (DType::BF16, true, true, Some(50), pairs),
    ];
    for (dtype, transposed, kept, taken, t) in ways {
        let mut random = Random::new(9);
        let p = Grouped {
            dtype,
            extents: [Dim::from(4), Dim::sym("R"), Dim::from(k), Dim::from(n)],
            further: Vec::new(),
            rows: Some(transposed),
            accumulate: false,
            aligned: true,
        };
        let gate = |_: &mut Build, at: &Element| vec![Expr::Map(MapFn::Swiglu, at.products.clone())];
        let results = [Given::Map, Given::Product(0), Given::Product(1)].map(|r| (r, dtype));
        let results = results[..if kept { 3 } else { 1 }].to_vec();
        let taken_of = taken.map(Dim::from);
        let epilogue =
            Epilogue { taken: taken_of, codes: None, matrices: 2, operands: Vec::new(), results, map: Some(&gate), units: None };
        let kernel = gpu_grouped_map(&p, &epilogue, t);
        assert_eq!(verify(&kernel), Vec::<String>::new());
        let dims: DimEnv = [("R".into(), rows)].into_iter().collect();
        let mut fill = |n: i64| (0..n).map(|_| dtype.round(random.float())).collect::<Vec<f64>>();
        let (x, w) = (fill(taken.unwrap_or(rows) * k), [fill(4 * k * n), fill(4 * k * n)]);
        // By indices, some of which are outside.
        let from = |r: i64| taken.map_or(Some(r), |n| Some(r * 5 % (n + 3) - 1).filter(|i| (0..n).contains(i)));
        let index: Vec<f64> = (0..rows).map(|r| from(r).map_or(-1.0, |i| i as f64)).collect();
        let nothing = || vec![f64::NAN; (rows * n) as usize];
        let mut buffers = vec![x.clone(), w[0].clone(), w[1].clone()];
        buffers.extend(taken.map(|_| index));
        buffers.extend([offsets.iter().map(|o| *o as f64).collect(), nothing()]);
        let first = buffers.len() - 1;
        buffers.extend(kept.then(|| [nothing(), nothing()]).into_iter().flatten());
        run(&kernel, &mut buffers, &dims, Options::default()).unwrap_or_else(|e| panic!("{e}"));
        let mut want = [nothing(), nothing(), nothing()];
        for r in 0..rows {
            let group = (0..4).find(|g| (offsets[*g as usize]..offsets[*g as usize + 1]).contains(&r));
            for j in 0..n {
                let product = |w: &[f64]| {
                    let at = |g: i64, l: i64| if transposed { (g * n + j) * k + l } else { (g * k + l) * n + j };
                    let sum = |g: i64, i: i64| (0..k).map(|l| x[(i * k + l) as usize] * w[at(g, l) as usize]).sum::<f64>();
                    dtype.round(group.zip(from(r)).map_or(0.0, |(g, i)| sum(g, i)))
                };
                let both = [product(&w[0]), product(&w[1])];
                let at = (r * n + j) as usize;
                (want[0][at], want[1][at], want[2][at]) = (MapFn::Swiglu.eval(&both), both[0], both[1]);
            }
        }
        // A sum in f32 may round to the neighbour, which the gate multiplies by at most the other product.
        let near = if dtype == DType::BF16 { 4e-2 } else { 1e-5 };
        for (i, want) in want.iter().enumerate().take(if kept { 3 } else { 1 }) {
            assert_near(&format!("result {i}"), &buffers[first + i], want, near);
        }
    }
}

#[test]
fn a_pair_with_a_tile_of_no_rows_maps_no_row_before_the_first() {
    let (k, n, rows) = (24i64, 40i64, 5i64);
    let extents = [Dim::from(3), Dim::sym("R"), Dim::from(k), Dim::from(n)];
    let p = Grouped { dtype: DType::BF16, extents, further: Vec::new(), rows: Some(true), accumulate: false, aligned: true };
    let operands = vec![Operand::Read(DType::BF16, Dim::sym("R") * Dim::from(n))];
    let more = |_: &mut Build, at: &Element| {
        let [row, col] = &at.at[..] else { panic!("a row and a column") };
        vec![at.products[0].clone() + Expr::load(at.operands[0], row.clone() * Expr::int(n) + col.clone())]
    };
    let results = vec![(Given::Map, DType::BF16)];
    let epilogue = Epilogue { taken: None, codes: None, matrices: 1, operands, results, map: Some(&more), units: None };
    let kernel = gpu_grouped_map(&p, &epilogue, Some(Tiling { pairs: true, ..Tiling::LEGAL[6] }));
    let dims: DimEnv = [("R".into(), rows)].into_iter().collect();
    // The first tile of the pair is of a group that ends where it begins.
    for offsets in [[0.0, 0.0, 5.0, 5.0], [0.0, 0.0, 0.0, 5.0], [0.0; 4]] {
        let ones = |n: i64| vec![1.0; n as usize];
        let mut buffers = vec![ones(rows * k), ones(3 * k * n), offsets.to_vec(), ones(rows * n), ones(rows * n)];
        run(&kernel, &mut buffers, &dims, Options::default()).unwrap_or_else(|e| panic!("{e}"));
        let inside = offsets[3] > 0.0;
        assert_eq!(buffers[4], vec![if inside { 25.0 } else { 1.0 }; (rows * n) as usize]);
    }
}

/// Codes of rows, scales of each block as products take them, and what both are worth.
struct Coded {
    codes: Vec<f64>,
    scales: Vec<f64>,
    worth: Vec<f64>,
}

impl Coded {
    /// Scales past the rows are there, and nothing to go by.
    fn new(random: &mut Random, rows: i64, terms: i64, block: i64) -> Coded {
        let [blocks, width] = scales(&Dim::from(rows), &Dim::from(terms), block).map(|d| d.known().expect("a number"));
        let codes: Vec<f64> = (0..rows * terms).map(|_| DType::E4M3.round(2.0 * random.float())).collect();
        let scale = |i: i64| if i % width < rows { DType::F32.round(0.02 + random.float().abs()) } else { f64::NAN };
        let scales: Vec<f64> = (0..blocks * width).map(scale).collect();
        let worth = |i: i64| codes[i as usize] * scales[(i % terms / block * width + i / terms) as usize];
        Coded { worth: (0..rows * terms).map(worth).collect(), codes, scales }
    }
}

fn dot(x: &Coded, i: i64, w: &Coded, j: i64, k: i64) -> f64 {
    (0..k).map(|l| x.worth[(i * k + l) as usize] * w.worth[(j * k + l) as usize]).sum()
}

#[test]
fn codes_are_worth_their_scales() {
    // With a tail of a block, blocks of several pieces, one scale for all of a row, no rows that are copied.
    let ways = Tiling::OF_CODES.map(|t| ([9, 136, 272], [128, 1], Some(t), 3));
    let others = [([9, 40, 512], [256, 1], None, 3), ([9, 40, 144], [144, 1], None, 3), ([9, 40, 30], [128, 1], None, 0)];
    // One scale for 128 columns, alone and in pairs of blocks.
    let few = [0, 2, 2].map(|i| ([9, 136, 272], [128, 128], Some(Tiling { pairs: i == 2, ..Tiling::OF_CODES[i] }), 3));
    for ([m, n, k], [block, columns], t, copied) in ways.into_iter().chain(others).chain(few) {
        for gate in [false, true] {
            if gate && t.is_some_and(|t| Tiling { pairs: false, ..t } != Tiling::OF_CODES[2]) {
                continue;
            }
            let mut random = Random::new((m * n + k) as u64);
            let x = Coded::new(&mut random, m, k, block);
            let mut w: Vec<Coded> = (0..if gate { 2 } else { 1 }).map(|_| Coded::new(&mut random, n, k, block)).collect();
            let blocks = (k + block - 1) / block;
            for w in w.iter_mut().filter(|_| columns > 1) {
                w.scales = (0..(n + columns - 1) / columns * blocks).map(|_| DType::F32.round(random.float())).collect();
                let scale = |i: i64| w.scales[(i / k / columns * blocks + i % k / block) as usize];
                w.worth = (0..n * k).map(|i| w.codes[i as usize] * scale(i)).collect();
            }
            let extents = [Dim::sym("M"), Dim::from(n), Dim::from(k)];
            let strides = [k, 1, 1, k, n, 1].map(Dim::from);
            let aligned = [true; 3];
            let (dtype, result) = (DType::E4M3, DType::F32);
            let p = Product { dtype, result, extents, strides, batch: Vec::new(), accumulate: false, parts: 1, aligned };
            let map = |_: &mut Build, at: &Element| vec![Expr::Map(MapFn::Mul, at.products.clone())];
            let map: Option<&dyn Fn(&mut Build, &Element) -> Vec<Expr>> = if gate { Some(&map) } else { None };
            let results = vec![(if gate { Given::Map } else { Given::Product(0) }, result)];
            let codes = Some(OfCodes { block, columns, product: result });
            let epilogue = Epilogue { taken: None, codes, matrices: w.len(), operands: Vec::new(), results, map, units: None };
            let kernel = gpu_product_map(&p, &epilogue, t);
            assert_eq!(verify(&kernel), Vec::<String>::new());
            let mut buffers = vec![x.codes.clone()];
            buffers.extend(w.iter().map(|w| w.codes.clone()));
            buffers.push(x.scales.clone());
            buffers.extend(w.iter().map(|w| w.scales.clone()));
            buffers.push(vec![f64::NAN; (m * n) as usize]);
            let want = |i: i64| w.iter().map(|w| dot(&x, i / n, w, i % n, k)).product();
            let want: Vec<f64> = (0..m * n).map(want).collect();
            let dims: DimEnv = [("M".into(), m)].into_iter().collect();
            assert_near("y", &last(&kernel, buffers, &dims), &want, 1e-4);
            let of_codes = kernel.scratch.iter().filter(|s| s.dtype == DType::E4M3).count();
            assert_eq!(of_codes > 0, copied > 0, "codes are copied as such");
        }
    }
}

#[test]
fn codes_of_ragged_rows() {
    let (k, n, rows, all) = (144, 40, 203, 50);
    let offsets = [0i64, 5, 5, 130, 200];
    for taken in [false, true] {
        let mut random = Random::new(3);
        let x = Coded::new(&mut random, if taken { all } else { rows }, k, 128);
        let w: Vec<Vec<Coded>> = (0..2).map(|_| (0..4).map(|_| Coded::new(&mut random, n, k, 128)).collect()).collect();
        let extents = [Dim::from(4), Dim::sym("R"), Dim::from(k), Dim::from(n)];
        let (dtype, further) = (DType::E4M3, Vec::new());
        let p = Grouped { dtype, extents, further, rows: Some(true), accumulate: false, aligned: true };
        let map = |_: &mut Build, at: &Element| vec![Expr::Map(MapFn::Mul, at.products.clone())];
        let (codes, results) = (Some(OfCodes { block: 128, columns: 1, product: DType::F32 }), vec![(Given::Map, DType::F32)]);
        let taken_of = taken.then_some(Dim::from(all));
        let epilogue =
            Epilogue { taken: taken_of, codes, matrices: 2, operands: Vec::new(), results, map: Some(&map), units: None };
        let kernel = gpu_grouped_map(&p, &epilogue, None);
        assert_eq!(verify(&kernel), Vec::<String>::new());
        let from = |r: i64| if taken { r * 7 % all } else { r };
        // Scales of the rows as they are taken.
        let [blocks, width] = scales(&Dim::from(rows), &Dim::from(k), 128).map(|d| d.known().expect("a number"));
        let own = x.scales.len() as i64 / blocks;
        let scale = |i: i64| if i % width < rows { x.scales[(i / width * own + from(i % width)) as usize] } else { f64::NAN };
        let of_all = |f: &dyn Fn(&Coded) -> Vec<f64>| w.iter().map(|w| w.iter().flat_map(f).collect()).collect::<Vec<Vec<f64>>>();
        let mut buffers = vec![x.codes.clone()];
        buffers.extend(of_all(&|w| w.codes.clone()));
        buffers.push((0..blocks * width).map(scale).collect());
        buffers.extend(of_all(&|w| w.scales.clone()));
        buffers.extend(taken.then(|| (0..rows).map(|r| from(r) as f64).collect()));
        buffers.extend([offsets.iter().map(|o| *o as f64).collect(), vec![f64::NAN; (rows * n) as usize]]);
        let order: Vec<&str> = kernel.buffers.iter().map(|b| b.name.as_str()).collect();
        let index = if taken { "index " } else { "" };
        assert_eq!(order.join(" "), format!("x w0 w1 sx sw0 sw1 {index}offsets y"));
        let want = |i: i64| {
            let group = (0..4).find(|g| (offsets[*g]..offsets[g + 1]).contains(&(i / n)));
            group.map_or(0.0, |g| w.iter().map(|w| dot(&x, from(i / n), &w[g], i % n, k)).product())
        };
        let want: Vec<f64> = (0..rows * n).map(want).collect();
        let dims: DimEnv = [("R".into(), rows)].into_iter().collect();
        assert_near("y", &last(&kernel, buffers, &dims), &want, 1e-4);
    }
}
