//! PTX of tile programs, for `gpu_check` of the tile crate, and how long it takes:
//! `cargo run --release -p codegen --example ptx -- FOLDER model.tile… maps`. Reads what `lode build --emit=tile` prints; `maps` stands for a kernel of
//! every function of f32 and of every conversion, `products` for products of many shapes and with what follows them, `odd_…` for shapes that no tile divides, `codes` for products of e4m3, `attends` for attention,
//! `grads` for its gradient, `lists` for attention over lists of blocks, `rows` for rows that are read once, `large_…` for those that are timed. Writes `.tile`, `.ptx` and `.launch` of each into the folder.

use base::{DType, Dim, TensorType};
use codegen::gpu::Extent;
use graph::op::{MapFn, ReduceFn, map::Kind};
use std::{fmt::Write, path::Path, time::Instant};
use tile::{
    Expr, Kernel, LoopKind,
    kernels::{
        build::Build,
        domain::Problem,
        gpu_attend::{self, AtEnd, Ending, gpu_attend, gpu_attend_map},
        gpu_attend_grad::{self, gpu_attend_grad_keys, gpu_attend_grad_parts, gpu_attend_grad_queries, gpu_attend_grad_rows},
        gpu_attend_grad_by_block::{gpu_attend_grad_query_merge, gpu_attend_grad_query_parts},
        gpu_attend_parts,
        gpu_attend_union::{gpu_attend_grad_items, gpu_attend_inverse, gpu_attend_union},
        gpu_product::{
            Element, Epilogue, Given, GivenScales, Grouped, OfCodes, Operand, Product, Tiling, gpu_grouped, gpu_grouped_map,
            gpu_product, gpu_product_map, gpu_scales,
        },
        gpu_route::gpu_route,
        gpu_scatter_add::gpu_scatter_add,
        gpu_topk::gpu_topk,
        host_gather::Rows,
        host_route::Route,
        host_topk::TopK,
    },
};

fn main() {
    let mut args = std::env::args().skip(1);
    let folder = args.next().expect("a folder");
    for path in args {
        let kernels = match path.as_str() {
            "maps" => maps(),
            "products" => products(),
            "odd_products" => odd_products(),
            "odd_attends" => odd_attends(),
            "codes" => codes(),
            "tf32" => tf32(),
            "large_tf32" => large_tf32(),
            "attends" => attends(),
            "grads" => all_grads(),
            "lists" => lists(),
            "sorted_lists" => sorted_lists(),
            "large_attends" => large_attends(),
            "latents" => latents(),
            "large_branches" => large_branches(),
            "large_grouped" => large_grouped(),
            "large_lists" => large_lists(),
            "indexing" => indexing(),
            "rows" => rows(&[64, 1032, 5000, 7168, 32_768, 33_000, 65_536, 128_256, 151_936]),
            "large_rows" => rows(&[4096, 5120, 7168, 16_384, 32_768, 65_536, 128_256, 151_936]),
            "large_grads" => large_grads(),
            "large_products" => large_products(),
            "short_products" => short_products(),
            "large_codes" => large_codes(),
            path => {
                let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{path}: {e}"));
                tile::text::parse(&text).unwrap_or_else(|e| panic!("{path}: {e}"))
            }
        };
        let start = Instant::now();
        let mlir = codegen::emit_gpu_mlir(&kernels).unwrap_or_else(|e| panic!("{path}: {e}"));
        let emitted = start.elapsed();
        let start = Instant::now();
        let ptx = codegen::emit_ptx(&kernels, &codegen::GpuOptions::default()).unwrap_or_else(|e| panic!("{path}: {e}"));
        println!(
            "{path}: {} kernels, {} lines of MLIR in {:.0} ms, {} lines of PTX in {:.0} ms",
            kernels.len(),
            mlir.lines().count(),
            emitted.as_secs_f64() * 1e3,
            ptx.text.lines().count(),
            start.elapsed().as_secs_f64() * 1e3
        );
        let mut launches = String::new();
        for k in &ptx.kernels {
            let _ =
                write!(launches, "{}\t{}\t{}\t{}\t{}\t{}", k.symbol, k.threads, k.cluster, k.grid, k.dynamic_shared, k.workspace);
            for m in &k.maps {
                let extent = |e: &Extent| match e {
                    Extent::Const(n) => n.to_string(),
                    Extent::Dim(i) => format!("d{i}"),
                };
                let axes: Vec<String> = m.axes.iter().map(|(e, s)| format!("{} {}", extent(e), extent(s))).collect();
                let _ = write!(launches, "\t{} {} {} {} {} {}", m.buffer, m.dtype, m.rows, m.runs, m.cols, axes.join(" "));
            }
            launches.push('\n');
        }
        let name = Path::new(&path).file_stem().expect("a file").to_string_lossy();
        for (ending, text) in [("tile", &tile::text::print(&kernels)), ("ptx", &ptx.text), ("launch", &launches)] {
            let file = Path::new(&folder).join(format!("{name}.{ending}"));
            std::fs::write(&file, text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        }
    }
}

/// A problem with rows of both operands as they are named: `turned` says that neighbours are along the axis that is not summed for a, and along
/// the summed one for b.
fn dense(dtype: DType, m: Dim, [n, k]: [i64; 2], turned: [bool; 2]) -> Product {
    let [one, n, k] = [1, n, k].map(Dim::from);
    let a = if turned[0] { [one.clone(), m.clone()] } else { [k.clone(), one.clone()] };
    let b = if turned[1] { [one.clone(), k.clone()] } else { [n.clone(), one.clone()] };
    let strides = [&a[0], &a[1], &b[0], &b[1], &n, &one].map(Dim::clone);
    let result = match dtype {
        DType::TF32 => DType::F32,
        DType::E4M3 => DType::BF16,
        _ => dtype,
    };
    let extents = [m, n, k];
    Product { dtype, result, extents, strides, batch: Vec::new(), accumulate: false, parts: 1, aligned: [true; 3] }
}

/// Its product, of a batch or added to what is there.
fn product(dtype: DType, m: Dim, [n, k]: [i64; 2], turned: [bool; 2], batch: i64, accumulate: bool, t: Option<Tiling>) -> Kernel {
    let by = [m.clone() * Dim::from(k), Dim::from(k * n), m.clone() * Dim::from(n)];
    let batch = if batch > 1 { vec![(Dim::from(batch), by)] } else { Vec::new() };
    gpu_product(&Product { batch, accumulate, ..dense(dtype, m, [n, k], turned) }, t)
}

/// What follows a dense product.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// Gate and up, with both kept or not.
    Gate(bool),
    /// A value of the same shape is added.
    Residual,
    /// A factor of each row, and a bias of each column.
    Bias,
    /// The gradients of both factors of a gate.
    Backward,
    /// As f32, added to what is there.
    Gradient,
    /// Three maps of one product; not on tensor cores, which have no registers for them.
    Three,
}

const WAYS: [Way; 7] = [Way::Gate(false), Way::Gate(true), Way::Residual, Way::Bias, Way::Backward, Way::Gradient, Way::Three];

/// A product with what follows it, in place of which `product` would be followed by kernels of their own.
fn mapped(way: Way, dtype: DType, m: Dim, [n, k]: [i64; 2], turned: [bool; 2], t: Option<Tiling>) -> Kernel {
    let p = dense(dtype, m.clone(), [n, k], turned);
    let whole = Operand::Read(dtype, m.clone() * Dim::from(n));
    let (operands, results) = match way {
        Way::Gate(kept) => {
            let all = [Given::Map, Given::Product(0), Given::Product(1)].map(|r| (r, dtype));
            (Vec::new(), all[..if kept { 3 } else { 1 }].to_vec())
        }
        Way::Residual => (vec![whole], vec![(Given::Map, dtype)]),
        Way::Bias => (vec![Operand::Read(DType::F32, m.clone()), Operand::Read(dtype, Dim::from(n))], vec![(Given::Map, dtype)]),
        Way::Backward => (vec![whole.clone(), whole], vec![(Given::Map, dtype); 2]),
        Way::Gradient => (Vec::new(), vec![(Given::Sum, DType::F32)]),
        Way::Three => (Vec::new(), vec![(Given::Map, dtype); 3]),
    };
    let map = move |b: &mut Build, at: &Element| {
        let [row, col] = &at.at[..] else { panic!("a row and a column") };
        let index = b.bind(row.clone() * Expr::int(n) + col.clone());
        let other = |b: &mut Build, i: usize, index: &Expr| b.bind(Expr::load(at.operands[i], index.clone()));
        let of = |f: MapFn, x: &[Expr]| Expr::Map(f, x.to_vec());
        let y = at.products[0].clone();
        match way {
            Way::Gate(_) => vec![of(MapFn::Swiglu, &at.products)],
            Way::Residual => vec![y + other(b, 0, &index)],
            Way::Bias => vec![y * other(b, 0, row) + other(b, 1, col)],
            Way::Backward => {
                let (g, u) = (other(b, 0, &index), other(b, 1, &index));
                let s = b.bind(of(MapFn::Silu, std::slice::from_ref(&g)));
                let slope = of(MapFn::Sigmoid, &[g]) * (Build::f(DType::F32, 1.0) + s.clone());
                vec![y.clone() * u * slope, y * s]
            }
            Way::Gradient => vec![y],
            Way::Three => {
                vec![of(MapFn::Silu, std::slice::from_ref(&y)), of(MapFn::Neg, std::slice::from_ref(&y)), of(MapFn::Abs, &[y])]
            }
        }
    };
    let matrices = if matches!(way, Way::Gate(_)) { 2 } else { 1 };
    gpu_product_map(&p, &Epilogue { taken: None, codes: None, matrices, operands, results, map: Some(&map), units: None }, t)
}

const ORDERS: [[bool; 2]; 4] = [[false, false], [false, true], [true, false], [true, true]];

/// Every order of operands, every tiling, a batch, extents that do not fit, sums into what is there.
fn products() -> Vec<Kernel> {
    let mut all = Vec::new();
    for turned in ORDERS {
        let m = if turned[0] { Dim::from(200) } else { Dim::sym("M") };
        all.push(product(DType::BF16, m.clone(), [264, 200], turned, 1, false, None));
        all.push(product(DType::F16, m.clone(), [72, 136], turned, 3, true, None));
        all.push(product(DType::BF16, m.clone(), [50, 30], turned, 2, true, None));
        all.push(product(DType::F32, m, [50, 30], turned, 2, false, None));
    }
    for t in Tiling::LEGAL {
        for turned in [[false, true], [true, false]] {
            all.push(product(DType::BF16, Dim::from(2 * t.m + 8), [t.n + 8, 3 * t.k + 8], turned, 1, false, Some(t)));
        }
    }
    // In pairs: an odd number of tiles, an even one, strips that end, a batch, sums to what is there.
    for t in Tiling::LEGAL[..5].iter().map(|t| Tiling { pairs: true, ..*t }) {
        for turned in [[false, true], [true, false]] {
            let m = |tiles: i64| Dim::from(tiles * t.m - 8);
            all.push(product(DType::BF16, m(3), [3 * t.n - 8, 7 * t.k + 8], turned, 1, false, Some(t)));
            all.push(product(DType::BF16, m(2), [t.n, 200], turned, 3, true, Some(t)));
        }
        all.push(product(DType::BF16, Dim::sym("M"), [t.n + 8, 200], [false, true], 1, false, Some(t)));
    }
    let t = Tiling { pairs: true, ..Tiling::LEGAL[0] };
    all.push(product(DType::BF16, Dim::from(17 * 128), [512, 136], [false, true], 1, false, Some(t)));
    all.push(mapped(Way::Residual, DType::BF16, Dim::sym("M"), [264, 200], [false, true], Some(t)));
    all.push(mapped(Way::Gate(true), DType::BF16, Dim::sym("M"), [264, 200], [false, true], Some(Tiling { n: 128, ..t })));
    all.push(product(DType::F64, Dim::sym("M"), [50, 30], [false, true], 1, false, None));
    all.push(product(DType::BF16, Dim::sym("M"), [2112, 1024], [false, true], 1, false, None));
    for (dtype, k) in [(DType::BF16, 136), (DType::F32, 30)] {
        for rows in [Some(false), Some(true), None] {
            let extents = [Dim::from(5), Dim::sym("M"), Dim::from(k), Dim::from(72)];
            all.push(gpu_grouped(&Grouped { dtype, extents, further: Vec::new(), rows, accumulate: false, aligned: true }, None));
        }
    }
    let in_pairs = |t: Tiling| Some(Tiling { pairs: true, ..t });
    for t in [0, 2, 5].map(|i| in_pairs(Tiling::LEGAL[i])) {
        for rows in [Some(false), Some(true), None] {
            let extents = [Dim::from(5), Dim::sym("M"), Dim::from(264), Dim::from(520)];
            let p = Grouped { dtype: DType::BF16, extents, further: Vec::new(), rows, accumulate: false, aligned: true };
            all.push(gpu_grouped(&p, t));
        }
    }
    for taken in [None, Some(Dim::from(3))] {
        all.push(gated(Dim::from(5), [136, 264], true, taken, in_pairs(Tiling::LEGAL[2])));
    }
    all.push(gated(Dim::from(5), [136, 72], true, None, None));
    all.push(gated(Dim::from(5), [136, 72], true, Some(Dim::from(3)), None));
    all.push(gated(Dim::from(5), [392, 72], false, Some(Dim::sym("M")), None));
    for way in WAYS {
        if way != Way::Three {
            all.push(mapped(way, DType::BF16, Dim::sym("M"), [264, 200], [false, true], None));
            all.push(mapped(way, DType::BF16, Dim::from(200), [512, 136], [true, false], None));
            all.push(mapped(way, DType::F16, Dim::sym("M"), [50, 30], [false, false], None));
        }
        all.push(mapped(way, DType::F32, Dim::sym("M"), [50, 30], [false, true], None));
    }
    numbered(all)
}

/// Products whose columns and terms are eights of every kind, in every order, and what follows them.
fn odd_products() -> Vec<Kernel> {
    let mut all = Vec::new();
    for (i, n) in
        [8, 24, 40, 48, 56, 80, 88, 96, 112, 120, 144, 160, 176, 208, 224, 240, 280, 320, 352, 416].into_iter().enumerate()
    {
        let (turned, k) = (ORDERS[i % 4], 8 * (i as i64 * 7 % 23 + 1));
        let m = if turned[0] { Dim::from(8 * (i as i64 % 17 + 9)) } else { Dim::sym("M") };
        let dtype = [DType::BF16, DType::F16][i / 4 % 2];
        all.push(product(dtype, m.clone(), [n, k], turned, 1 + i as i64 % 3, i % 2 == 1, None));
        for way in WAYS.iter().skip(i % 2).step_by(2) {
            all.push(mapped(*way, dtype, m.clone(), [n, k], turned, None));
        }
        let extents = [Dim::from(3), Dim::sym("M"), Dim::from(k), Dim::from(n)];
        let rows = [Some(false), Some(true), None][i % 3];
        all.push(gpu_grouped(
            &Grouped { dtype, extents, further: Vec::new(), rows, accumulate: i % 2 == 0, aligned: true },
            None,
        ));
    }
    numbered(all)
}

/// Attention and its gradients of heads whose columns are sixteens of every kind.
fn odd_attends() -> Vec<Kernel> {
    let mut all = Vec::new();
    for (i, dk) in [16, 32, 48, 80, 96, 112, 144, 160, 176, 208, 224, 240].into_iter().enumerate() {
        let dv = [dk, 64, 96, 128][i % 4];
        let (dtype, heads) = ([DType::BF16, DType::F16][i / 2 % 2], [[2, 2], [4, 2], [3, 1]][i % 3]);
        let domain = DOMAINS[i % DOMAINS.len()];
        all.push(attend(dtype, heads, [dk, dv], domain, None));
        all.extend(grads(dtype, heads, [dk, dv], domain));
    }
    numbered(all)
}

/// Products of tf32 in every order, with every tiling, a batch and parts of nothing, and large ones.
fn tf32() -> Vec<Kernel> {
    let product = |m, nk, turned, batch, add, t| product(DType::TF32, m, nk, turned, batch, add, t);
    let mut all = Vec::new();
    for turned in ORDERS {
        let m = if turned[0] { Dim::from(200) } else { Dim::sym("M") };
        all.push(product(m.clone(), [264, 200], turned, 1, false, None));
        all.push(product(m, [72, 136], turned, 3, true, None));
    }
    for t in Tiling::OF_TF32 {
        all.push(product(Dim::from(2 * t.m + 8), [t.n + 8, 3 * t.k + 8], [false, true], 1, false, Some(t)));
    }
    numbered(all)
}

fn large_tf32() -> Vec<Kernel> {
    let mut all: Vec<Kernel> = [[2112, 7168], [4096, 4096], [7168, 2048], [8192, 8192]]
        .into_iter()
        .map(|nk| product(DType::TF32, Dim::sym("M"), nk, [false, true], 1, false, None))
        .collect();
    // Without tensor cores.
    for t in [None, Some(Tiling::LEGAL[7])] {
        for turned in ORDERS {
            let m = if turned[0] { Dim::from(4096) } else { Dim::sym("M") };
            all.push(product(DType::F32, m, [4096, 4096], turned, 1, false, t));
        }
    }
    numbered(all)
}

/// Shapes of DeepSeek-V3 and a square, as `y = x·wᵀ`, `dx = dy·w` and `dw = dyᵀ·x`.
fn large_products() -> Vec<Kernel> {
    let mut all = Vec::new();
    for [n, k] in [[2112, 7168], [24576, 1536], [7168, 16384], [4096, 7168], [7168, 2048], [8192, 8192]] {
        all.push(product(DType::BF16, Dim::sym("M"), [n, k], [false, true], 1, false, None));
    }
    all.push(product(DType::BF16, Dim::sym("M"), [8192, 8192], [false, false], 1, false, None));
    all.push(product(DType::BF16, Dim::from(8192), [8192, 8192], [true, false], 1, false, None));
    for [n, k] in [[2112, 7168], [24576, 1536], [7168, 16384], [4096, 7168], [7168, 2048], [8192, 8192]] {
        let t = Tiling { pairs: true, ..Tiling::LEGAL[0] };
        all.push(product(DType::BF16, Dim::sym("M"), [n, k], [false, true], 1, false, Some(t)));
    }
    for t in &Tiling::LEGAL[..3] {
        all.push(product(DType::BF16, Dim::sym("M"), [4096, 7168], [false, true], 1, false, Some(*t)));
    }
    // Llama's 8B and DeepSeek-V3's dense layers: gate and up, their gradients, the residual after the product down, a gradient of weights.
    for [d, f] in [[4096, 14336], [7168, 18432]] {
        all.extend([false, true].map(|kept| mapped(Way::Gate(kept), DType::BF16, Dim::sym("M"), [f, d], [false, true], None)));
        all.push(mapped(Way::Backward, DType::BF16, Dim::sym("M"), [f, d], [false, false], None));
        all.push(mapped(Way::Residual, DType::BF16, Dim::sym("M"), [d, f], [false, true], None));
        all.push(mapped(Way::Gradient, DType::BF16, Dim::from(f), [d, 4096], [true, false], None));
    }
    numbered(all)
}

/// A layer 768 wide, whose products have few terms: projections, gate and up, down and its residual.
fn short_products() -> Vec<Kernel> {
    let mut all = Vec::new();
    for [n, k] in [[768, 768], [256, 768], [2048, 768], [768, 2048], [32000, 768]] {
        all.push(product(DType::BF16, Dim::sym("M"), [n, k], [false, true], 1, false, None));
        all.push(product(DType::BF16, Dim::sym("M"), [n, k], [false, false], 1, false, None));
    }
    all.extend([false, true].map(|kept| mapped(Way::Gate(kept), DType::BF16, Dim::sym("M"), [2048, 768], [false, true], None)));
    all.push(mapped(Way::Residual, DType::BF16, Dim::sym("M"), [768, 2048], [false, true], None));
    numbered(all)
}

/// A product of codes, or one of each of two matrices with their gate.
fn of_codes(m: Dim, [n, k]: [i64; 2], [block, columns]: [i64; 2], gate: bool, t: Option<Tiling>) -> Kernel {
    let p = dense(DType::E4M3, m, [n, k], [false, true]);
    let map = |_: &mut Build, at: &Element| vec![Expr::Map(MapFn::Swiglu, at.products.clone())];
    let (given, matrices) = if gate { (Given::Map, 2) } else { (Given::Product(0), 1) };
    let (results, codes) = (vec![(given, DType::BF16)], Some(OfCodes { block, columns, product: DType::BF16 }));
    let map: Option<&dyn Fn(&mut Build, &Element) -> Vec<Expr>> = if gate { Some(&map) } else { None };
    gpu_product_map(&p, &Epilogue { taken: None, codes, matrices, operands: Vec::new(), results, map, units: None }, t)
}

/// The same over ragged rows.
fn grouped_codes(extents: [Dim; 2], kn: [i64; 2], gate: bool, taken: Option<Dim>, t: Option<Tiling>) -> Kernel {
    grouped_blocks(extents, kn, (gate, 1), taken, t)
}

/// The same of matrices with a scale for so many columns.
fn grouped_blocks(
    [groups, rows]: [Dim; 2],
    [k, n]: [i64; 2],
    (gate, columns): (bool, i64),
    taken: Option<Dim>,
    t: Option<Tiling>,
) -> Kernel {
    let map = |_: &mut Build, at: &Element| vec![Expr::Map(MapFn::Swiglu, at.products.clone())];
    let (given, matrices) = if gate { (Given::Map, 2) } else { (Given::Product(0), 1) };
    let (results, codes) = (vec![(given, DType::BF16)], Some(OfCodes { block: 128, columns, product: DType::BF16 }));
    let extents = [groups, rows, Dim::from(k), Dim::from(n)];
    let p = Grouped { dtype: DType::E4M3, extents, further: Vec::new(), rows: Some(true), accumulate: false, aligned: true };
    let map: Option<&dyn Fn(&mut Build, &Element) -> Vec<Expr>> = if gate { Some(&map) } else { None };
    gpu_grouped_map(&p, &Epilogue { taken, codes, matrices, operands: Vec::new(), results, map, units: None }, t)
}

/// Products of codes with every tiling, extents that do not fit, a gate, ragged rows.
fn codes() -> Vec<Kernel> {
    let mut all: Vec<Kernel> =
        Tiling::OF_CODES.into_iter().map(|t| of_codes(Dim::sym("M"), [264, 400], [128, 1], false, Some(t))).collect();
    for (t, pairs) in Tiling::OF_BLOCKS.into_iter().flat_map(|t| [false, true].map(|pairs| (t, pairs))) {
        all.push(of_codes(Dim::sym("M"), [264, 400], [128, 128], false, Some(Tiling { pairs, ..t })));
        all.push(grouped_blocks([Dim::from(5), Dim::sym("M")], [272, 264], (false, 128), None, Some(Tiling { pairs, ..t })));
    }
    all.push(of_codes(Dim::sym("M"), [264, 400], [128, 1], true, Some(Tiling { pairs: true, ..Tiling::OF_CODES[2] })));
    all.push(of_codes(Dim::from(256), [256, 512], [256, 1], false, None));
    all.push(of_codes(Dim::sym("M"), [40, 144], [144, 1], false, None));
    all.push(of_codes(Dim::sym("M"), [50, 30], [128, 1], false, None));
    all.push(of_codes(Dim::sym("M"), [264, 400], [128, 1], true, None));
    let groups = || [Dim::from(5), Dim::sym("M")];
    all.push(grouped_codes(groups(), [272, 136], false, None, None));
    all.push(grouped_codes(groups(), [272, 136], true, None, None));
    for (i, gate) in [(0, false), (2, false), (2, true)] {
        let t = Some(Tiling { pairs: true, ..Tiling::OF_CODES[i] });
        all.push(grouped_codes(groups(), [272, 264], gate, None, t));
    }
    all.push(grouped_codes(groups(), [272, 136], true, Some(Dim::sym("M")), None));
    // Rows that are shorter than a piece, in one block.
    all.extend([[20, 32], [48, 16]].map(|nk| of_codes(Dim::sym("M"), nk, [64, 1], false, None)));
    all.push(of_codes(Dim::sym("M"), [32, 32], [64, 1], true, None));
    all.push(grouped_codes(groups(), [32, 16], false, None, None));
    all.push(grouped_codes(groups(), [16, 32], true, Some(Dim::sym("M")), None));
    // Scales as products take them: of each row, by index, of 128 rows.
    for (together, taken) in [(1, None), (1, Some(Dim::from(7))), (128, None)] {
        let groups = Dim::from(if taken.is_some() { 1 } else { 3 });
        all.push(gpu_scales(&GivenScales { groups, rows: Dim::from(300), together, blocks: Dim::from(3), taken }));
    }
    numbered(all)
}

/// DeepSeek-V3's shapes by codes, beside bf16; then its experts.
fn large_codes() -> Vec<Kernel> {
    let mut all = Vec::new();
    for [n, k] in [[2112, 7168], [24576, 1536], [7168, 16384], [4096, 7168], [7168, 2048]] {
        all.push(product(DType::BF16, Dim::sym("M"), [n, k], [false, true], 1, false, None));
        all.extend(Tiling::OF_CODES.map(|t| of_codes(Dim::sym("M"), [n, k], [128, 1], false, Some(t))));
        all.extend(Tiling::OF_BLOCKS.map(|t| of_codes(Dim::sym("M"), [n, k], [128, 128], false, Some(t))));
    }
    all.push(of_codes(Dim::sym("M"), [2048, 7168], [128, 1], true, None));
    for [k, n] in [[7168, 4096], [2048, 7168]] {
        let extents = [Dim::from(4), Dim::sym("R"), Dim::from(k), Dim::from(n)];
        let p = Grouped { dtype: DType::BF16, extents, further: Vec::new(), rows: Some(true), accumulate: false, aligned: true };
        all.push(gpu_grouped(&p, None));
        all.push(grouped_codes([Dim::from(4), Dim::sym("R")], [k, n], false, None, None));
        for t in Tiling::OF_BLOCKS.map(Some) {
            all.push(grouped_blocks([Dim::from(4), Dim::sym("R")], [k, n], (false, 128), None, t));
        }
    }
    all.push(grouped_codes([Dim::from(4), Dim::sym("R")], [7168, 2048], true, Some(Dim::sym("T")), None));
    numbered(all)
}

/// Experts of Qwen3-30B-A3B and a slice of DeepSeek-V3's: `[groups, k, n]` of both products, as y = x·wᵀ, dx = dy·w and dw = xᵀ·dy.
fn large_grouped() -> Vec<Kernel> {
    let mut all = Vec::new();
    for [groups, k, n] in [[128, 2048, 1536], [128, 768, 2048], [32, 7168, 4096], [32, 2048, 7168]] {
        for rows in [Some(true), Some(false), None] {
            let extents = [Dim::from(groups), Dim::sym("R"), Dim::from(k), Dim::from(n)];
            let p = Grouped { dtype: DType::BF16, extents, further: Vec::new(), rows, accumulate: false, aligned: true };
            all.extend([false, true].map(|pairs| gpu_grouped(&p, Some(Tiling { pairs, ..Tiling::LEGAL[0] }))));
        }
    }
    for [groups, k, n] in [[128, 2048, 768], [32, 7168, 2048]] {
        all.extend([false, true].map(|kept| gated(Dim::from(groups), [k, n], kept, None, None)));
        all.extend([false, true].map(|kept| gated(Dim::from(groups), [k, n], kept, Some(Dim::sym("T")), None)));
        let t = Some(Tiling { pairs: true, ..Tiling::LEGAL[2] });
        all.extend([None, Some(Dim::sym("T"))].map(|taken| gated(Dim::from(groups), [k, n], false, taken, t)));
    }
    numbered(all)
}

/// Both first products of experts and their gate, in one.
fn gated(groups: Dim, [k, n]: [i64; 2], kept: bool, taken: Option<Dim>, t: Option<Tiling>) -> Kernel {
    let gate = |_: &mut Build, at: &Element| vec![Expr::Map(MapFn::Swiglu, at.products.clone())];
    let results = [Given::Map, Given::Product(0), Given::Product(1)][..if kept { 3 } else { 1 }]
        .iter()
        .map(|r| (*r, DType::BF16))
        .collect();
    let extents = [groups, Dim::sym("R"), Dim::from(k), Dim::from(n)];
    let p = Grouped { dtype: DType::BF16, extents, further: Vec::new(), rows: Some(true), accumulate: false, aligned: true };
    gpu_grouped_map(
        &p,
        &Epilogue { taken, codes: None, matrices: 2, operands: Vec::new(), results, map: Some(&gate), units: None },
        t,
    )
}

/// Routing, choice and sums by index as a mixture of 128 experts and an embedding of 32000 tokens have them.
fn indexing() -> Vec<Kernel> {
    let mut all = Vec::from(gpu_route(&Route { choices: Dim::sym("R"), groups: 128 }));
    all.push(gpu_topk(&TopK { dtype: DType::F32, rows: Dim::sym("T"), n: Dim::from(128), k: 8 }));
    all.push(gpu_topk(&TopK { dtype: DType::F32, rows: Dim::sym("T"), n: Dim::sym("N"), k: 16 }));
    for n in [32000, 128] {
        let [batch, picks, n, row] = [Dim::from(1), Dim::sym("T"), Dim::from(n), Dim::from(2048)];
        all.push(gpu_scatter_add(&Rows { dtype: DType::BF16, batch, picks, n, row }));
    }
    numbered(all)
}

fn problem(dtype: DType, heads: [i64; 2], [dk, dv]: [i64; 2], domain: &str) -> Problem {
    let [b, t_dim, s] = ["B", "T", "T"].map(Dim::sym);
    let segments = TensorType::new(DType::I32, vec![b.clone(), t_dim.clone()]);
    let domain: graph::op::Domain = domain.parse().expect("a domain");
    let operands = vec![segments; domain.num_operands()];
    let scale = 1.0 / (dk as f64).sqrt();
    Problem { dtype, b, t: t_dim, s, h: heads[0], g: heads[1], dk, dv, domain, scale, operands, distinct: false, shared: false }
}

fn attend(dtype: DType, heads: [i64; 2], n: [i64; 2], domain: &str, t: Option<gpu_attend::Tiling>) -> Kernel {
    let p = problem(dtype, heads, n, domain);
    gpu_attend(&p, t.unwrap_or_else(|| gpu_attend::Tiling::choose(&p)))
}

fn grads(dtype: DType, heads: [i64; 2], n: [i64; 2], domain: &str) -> Vec<Kernel> {
    let p = problem(dtype, heads, n, domain);
    let t = gpu_attend_grad::Tiling::choose(&p);
    let mut all = vec![gpu_attend_grad_rows(&p, t), gpu_attend_grad_queries(&p, t, false)];
    all.extend(t.gives().iter().map(|gives| gpu_attend_grad_keys(&p, t, *gives)));
    if t.parts > 1 {
        all.extend([false, true].map(|values| gpu_attend_grad_parts(&p, t, values)));
    }
    all
}

const DOMAINS: [&str; 6] = [
    "full",
    "causal",
    "causal & window(40)",
    "segments(0, 0)",
    "causal & (window(3) | ends_before(8, 16))",
    "ends_before(16, 8)",
];

fn attends() -> Vec<Kernel> {
    let mut all = Vec::new();
    for domain in DOMAINS {
        for (dtype, n) in [(DType::BF16, [128, 128]), (DType::F16, [64, 64]), (DType::F32, [64, 32])] {
            all.push(attend(dtype, [4, 2], n, domain, None));
        }
    }
    all.push(attend(DType::BF16, [2, 1], [192, 128], "causal", None));
    all.push(attend(DType::BF16, [2, 1], [256, 256], "causal", None));
    for n in [[32, 16], [96, 64], [96, 96], [48, 80], [160, 160]] {
        all.push(attend(DType::BF16, [2, 1], n, "causal", None));
    }
    all.extend(
        [([4, 1], false), ([128, 1], false), ([16, 1], true), ([128, 1], true)].map(|(h, shared)| latent(h, "causal", shared)),
    );
    for (dtype, n, keeps) in [(DType::BF16, [128, 128], true), (DType::F16, [64, 64], false), (DType::F32, [64, 32], true)] {
        all.push(branch(&problem(dtype, [4, 2], n, "causal & window(90)"), keeps));
    }
    all.push(branch(&problem(DType::BF16, [2, 1], [256, 256], "causal"), false));
    all.push(branch(&problem(DType::BF16, [2, 1], [32, 16], "causal"), true));
    numbered(all)
}

/// Attention gated and added to another branch: gates of three, of which this is the last.
fn branch(p: &Problem, keeps: bool) -> Kernel {
    let t = gpu_attend::Tiling::choose(p);
    let rows = p.b.clone() * p.t.clone() * Dim::from(p.h);
    let map = |b: &mut Build, e: &Element| {
        let [row, col] = [0, 1].map(|i| e.at[i].clone());
        let gate = b.bind(row.clone() * Expr::int(3));
        let gate = b.bind(Expr::load(e.operands[0], gate));
        let at = b.bind(row * Expr::int(p.dv) + col);
        let other = b.bind(Expr::load(e.operands[1], at));
        let product = b.bind(gate * e.products[0].clone());
        (product.cast(p.dtype) + other).cast(p.dtype)
    };
    let operands = vec![(p.dtype, rows.clone() * Dim::from(3)), (p.dtype, rows * Dim::from(p.dv))];
    gpu_attend_map(p, t, &Ending { operands, keeps, gives: AtEnd::Map(p.dtype, &map) })
}

/// The window of native sparse attention and its selected branch: alone, gated, and gated with its result stored too.
fn large_branches() -> Vec<Kernel> {
    let mut all = Vec::new();
    for domain in ["causal & window(512)", "causal & blocks(0, 64)"] {
        let mut p = problem(DType::BF16, [64, 4], [128, 128], domain);
        if let Some(lists) = p.operands.first_mut() {
            lists.shape = vec![p.b.clone(), p.t.clone(), Dim::from(4), Dim::from(16)];
        }
        all.extend([gpu_attend(&p, gpu_attend::Tiling::choose(&p)), branch(&p, false), branch(&p, true)]);
    }
    numbered(all)
}

fn all_grads() -> Vec<Kernel> {
    let mut all = Vec::new();
    for domain in DOMAINS {
        for (dtype, n) in [(DType::BF16, [128, 128]), (DType::F16, [64, 64]), (DType::F32, [64, 32])] {
            all.extend(grads(dtype, [4, 2], n, domain));
        }
    }
    all.extend(grads(DType::BF16, [2, 2], [192, 128], "causal"));
    all.extend(grads(DType::BF16, [2, 1], [256, 256], "causal"));
    // Not on warp groups.
    all.extend([[96, 64], [96, 96], [48, 80], [160, 160]].into_iter().flat_map(|n| grads(DType::BF16, [2, 2], n, "causal")));
    numbered(all)
}

/// Attention to a latent of 512 columns and 64 more that all heads share, as DeepSeek's with its projections absorbed.
fn latents() -> Vec<Kernel> {
    let mut all = Vec::from([false, true].map(|shared| latent([128, 1], "causal", shared)));
    // A step of decoding, in parts of the keys.
    for shared in [false, true] {
        let p = problem(DType::BF16, [128, 1], [576, 512], "full");
        let p = Problem { shared, t: Dim::from(1), s: Dim::sym("S"), ..p };
        let t = gpu_attend::Tiling::choose(&p);
        let parts = gpu_attend_parts::num_parts(&p, t, 1).expect("an only query");
        all.push(gpu_attend_parts::gpu_attend_part(&p, t, &parts));
        all.push(gpu_attend_parts::gpu_attend_merge(&p, &parts, true));
    }
    numbered(all)
}

fn latent(heads: [i64; 2], domain: &str, shared: bool) -> Kernel {
    let p = Problem { shared, ..problem(DType::BF16, heads, [576, 512], domain) };
    gpu_attend(&p, gpu_attend::Tiling::choose(&p))
}

fn large_attends() -> Vec<Kernel> {
    let all = [[128, 128], [64, 64], [192, 128], [256, 256]];
    let mut all: Vec<Kernel> = all.map(|n| attend(DType::BF16, [16, 16], n, "causal", None)).into();
    all.push(attend(DType::BF16, [16, 16], [128, 128], "full", None));
    all.push(attend(DType::BF16, [16, 16], [128, 128], "causal", Some(gpu_attend::Tiling::LEGAL[1])));
    numbered(all)
}

/// Attention over lists of blocks: the unions of tiles, then the products.
fn listed(dtype: DType, heads: [i64; 2], n: [i64; 2], domain: &str, length: i64) -> Vec<Kernel> {
    let mut p = problem(dtype, heads, n, domain);
    p.operands[0].shape = vec![p.b.clone(), p.t.clone(), Dim::from(heads[1]), Dim::from(length)];
    let t = gpu_attend::Tiling::choose(&p);
    let mut all = vec![gpu_attend_union(&p, t), gpu_attend(&p, t), branch(&p, dtype == DType::BF16)];
    let t = gpu_attend_grad::Tiling::choose(&p);
    if gpu_attend_grad::takes(&p, t, true) {
        all.extend(gpu_attend_inverse(&p, gpu_attend_grad::forward(t)));
        all.extend([gpu_attend_grad_rows(&p, t), gpu_attend_grad_queries(&p, t, false)]);
        all.extend(t.gives().iter().map(|gives| gpu_attend_grad_keys(&p, t, *gives)));
        all.push(gpu_attend_grad_items(&p, gpu_attend_grad::forward(t), p.dk));
    }
    all
}

/// As native sparse attention has them: 64 heads of 4 groups, 16 blocks of 64 keys a query.
fn large_lists() -> Vec<Kernel> {
    let heads = [[64, 4], [32, 4], [16, 4], [64, 64]].into_iter();
    let all = heads
        .flat_map(|heads| listed(DType::BF16, heads, [128, 128], "causal & blocks(0, 64)", if heads[1] == 64 { 4 } else { 16 }));
    let wide = [[192, 128], [256, 256], [64, 64]].into_iter();
    numbered(all.chain(wide.flat_map(|n| listed(DType::BF16, [64, 4], n, "causal & blocks(0, 64)", 16))).collect())
}

fn lists() -> Vec<Kernel> {
    let mut all = Vec::new();
    for domain in ["blocks(0, 64)", "causal & blocks(0, 64)", "causal & blocks(0, 32) & window(90)"] {
        for (dtype, n) in [(DType::BF16, [128, 128]), (DType::F16, [64, 64]), (DType::F32, [64, 32])] {
            all.extend(listed(dtype, [8, 2], n, domain, 3));
            all.extend(listed(dtype, [32, 2], n, domain, 5));
        }
    }
    all.extend(listed(DType::BF16, [16, 1], [192, 128], "causal & blocks(0, 64)", 2));
    numbered(all)
}

/// Gradients of few heads by blocks, after the sort.
fn sorted_lists() -> Vec<Kernel> {
    let all = [(DType::BF16, [128, 128]), (DType::F16, [64, 64]), (DType::F32, [64, 32])].into_iter();
    numbered(all.flat_map(|(dtype, n)| [[4, 4], [4, 2]].into_iter().flat_map(move |heads| sorted(dtype, heads, n))).collect())
}

fn sorted(dtype: DType, heads: [i64; 2], n: [i64; 2]) -> Vec<Kernel> {
    let mut p = problem(dtype, heads, n, "causal & blocks(0, 64)");
    p.operands[0].shape = vec![p.b.clone(), p.t.clone(), Dim::from(heads[1]), Dim::from(9)];
    let t = gpu_attend_grad::Tiling::choose(&p);
    assert!(t.by_block && gpu_attend_grad::takes(&p, t, true), "{t:?}");
    let mut all = vec![gpu_attend_grad_query_parts(&p, t), gpu_attend_grad_query_merge(&p, t)];
    all.extend(t.gives().iter().map(|gives| gpu_attend_grad_keys(&p, t, *gives)));
    all
}

fn large_grads() -> Vec<Kernel> {
    let all = [[128, 128], [64, 64], [192, 128], [192, 192], [256, 256]];
    let mut all: Vec<Kernel> = all.into_iter().flat_map(|n| grads(DType::BF16, [16, 16], n, "causal")).collect();
    // Fewer queries a tile, but more keys.
    let p = problem(DType::BF16, [16, 16], [256, 256], "causal");
    let t = gpu_attend_grad::Tiling { of_queries: [64, 64], ..gpu_attend_grad::Tiling::choose(&p) };
    all.push(gpu_attend_grad_queries(&p, t, false));
    numbered(all)
}

fn numbered(mut all: Vec<Kernel>) -> Vec<Kernel> {
    all.iter_mut().enumerate().for_each(|(i, k)| k.name = format!("{}_{i}", k.name));
    all
}

/// The softmax of rows of such lengths, and x less their mean square, in place.
fn rows(lengths: &[i64]) -> Vec<Kernel> {
    let dtypes = [DType::BF16, DType::F32];
    numbered(lengths.iter().flat_map(|n| dtypes.map(|d| [softmax(d, *n), less_square(d, *n)])).flatten().collect())
}

fn softmax(dtype: DType, n: i64) -> Kernel {
    let mut b = Build::new(&format!("softmax_{dtype}_{n}"));
    let (all, rows) = (Dim::sym("B") * Dim::from(n), Dim::sym("B"));
    let (x, y) = (b.read("x", dtype, all.clone()), b.write("y", dtype, all));
    b.kernel.buffers.iter_mut().for_each(|b| b.alignment = 16);
    b.kernel.grid = rows.clone();
    let rows = b.dim(&rows);
    b.each_row(rows, 1, |b, row| {
        let start = b.bind(row * Expr::int(n));
        let of = |i: Expr| Expr::load(x, start.clone() + i);
        let most = b.reduce(ReduceFn::Max, Build::f(DType::F32, f64::NEG_INFINITY), Expr::int(n), |_, i| of(i));
        let power = |i: Expr| Expr::Map(MapFn::Exp, vec![of(i) - Expr::Var(most)]);
        let sum = b.reduce(ReduceFn::Sum, Build::f(DType::F32, 0.0), Expr::int(n), |_, i| power(i));
        b.each(Expr::int(n), |b, i| {
            let (at, value) = (b.bind(start.clone() + i.clone()), b.bind(power(i)));
            b.store(y, at, Expr::Map(MapFn::Div, vec![value, Expr::Var(sum)]));
        });
    });
    b.finish()
}

fn less_square(dtype: DType, n: i64) -> Kernel {
    let mut b = Build::new(&format!("less_square_{dtype}_{n}"));
    let rows = Dim::sym("B");
    let x = b.update("x", dtype, rows.clone() * Dim::from(n));
    b.kernel.buffers.iter_mut().for_each(|b| b.alignment = 16);
    b.kernel.grid = rows.clone();
    let rows = b.dim(&rows);
    b.each_row(rows, 1, |b, row| {
        let start = b.bind(row * Expr::int(n));
        let of = |i: Expr| Expr::load(x, start.clone() + i);
        let sum = b.reduce(ReduceFn::Sum, Build::f(DType::F32, 0.0), Expr::int(n), |_, i| of(i.clone()) * of(i));
        let mean = b.bind(Expr::Var(sum) * Build::f(DType::F32, 1.0 / n as f64));
        b.each(Expr::int(n), |b, i| {
            let (at, value) = (b.bind(start.clone() + i.clone()), b.bind(of(i)));
            b.store(x, at, value - mean.clone());
        });
    });
    b.finish()
}

/// y[i] = f(x[i], …) of f32, and each dtype to each other.
fn maps() -> Vec<Kernel> {
    let mut all = Vec::new();
    for f in MapFn::ALL.iter().copied().filter(|f| !matches!(f.kind(), Kind::Int | Kind::Logic | Kind::Select)) {
        let result = if matches!(f.kind(), Kind::Compare | Kind::Test) { DType::Bool } else { DType::F32 };
        all.push(map(&format!("map_{}", f.name()), &vec![DType::F32; f.arity()], result, |x| Expr::Map(f, x)));
    }
    let dtypes = [DType::F64, DType::F32, DType::BF16, DType::F16, DType::E4M3, DType::I64, DType::I32];
    for from in dtypes {
        for to in dtypes {
            let name = format!("cast_{from}_{to}");
            all.push(map(&name, &[from], to, |mut x| x.remove(0).cast(tile::ir::compute_dtype(to))));
        }
    }
    all
}

fn map(name: &str, operands: &[DType], result: DType, value: impl FnOnce(Vec<Expr>) -> Expr) -> Kernel {
    let mut b = Build::new(name);
    let n = Dim::sym("N");
    let x: Vec<_> = operands.iter().enumerate().map(|(i, d)| b.read(&format!("x{i}"), *d, n.clone())).collect();
    let y = b.write("y", result, n.clone());
    b.kernel.grid = n.ceil_div(&Dim::from(64));
    let n = b.dim(&n);
    let first = b.bind(b.block() * Expr::int(64));
    let last = b.bind(Expr::minimum(first.clone() + Expr::int(64), n));
    b.for_(first, last, LoopKind::Vector, |b, i| {
        let x = x.iter().map(|x| Expr::load(*x, i.clone())).collect();
        b.store(y, i, value(x));
    });
    b.finish()
}
