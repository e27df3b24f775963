//! Top-k, running sums, routing, gather and scatter.

use super::{Random, assert_near, i32s, oracle, results};
use crate::fused::{Rows as OfRows, fuse_rows};
use crate::ir::Kernel;
use crate::kernels::{
    gpu_route::{self, gpu_route},
    gpu_scatter_add::gpu_scatter_add,
    gpu_scatter_few::{gpu_scatter_few, is_few},
    gpu_topk::{gpu_topk, is_ordered},
    gpu_topk_long::gpu_topk_long,
    gpu_topk_parts,
    host_cumsum::{self, Cumsum, host_cumsum},
    host_gather::{self, Rows, host_gather},
    host_route::{Route, host_route},
    host_scatter_add::{self, host_scatter_add},
    host_topk::{self, TopK, host_topk},
};
use crate::view::StridedView;
use base::{DType, Dim, DimEnv, TensorType};
use graph::{
    Func, Op, Role, Value,
    interp::Tensor,
    op::{Form, Fused},
};
use std::sync::Arc;

const NAN: f64 = f64::NAN;
const INF: f64 = f64::INFINITY;

/// Runs kernels whose extents are symbols with these values, and compares all results with the oracle's.
#[track_caller]
fn check(op: &Op, args: &[Tensor], dims: &[(&str, i64)], kernels: impl IntoIterator<Item = Kernel>, tolerance: f64) {
    let want = oracle(op, args);
    let lens: Vec<usize> = want.iter().map(|t| t.data.len()).collect();
    let dims: DimEnv = dims.iter().map(|(n, x)| (Arc::from(*n), *x)).collect();
    for kernel in kernels {
        for (got, want) in results(&kernel, args, &lens, &dims, tolerance > 0.0).iter().zip(&want) {
            assert_near(&format!("{op:?}"), got, &want.data, tolerance);
        }
    }
}

/// A choice of so many rows at once by keys, as regions of rows have it; of symbol `R` such.
fn of_rows(dtype: DType, [together, n]: [i64; 2], k: i64) -> Kernel {
    let mut body = Func::new("body");
    let shape = [Dim::sym("R"), Dim::from(together), Dim::from(n)];
    let x = body.arg("x", Role::Inner, TensorType::new(dtype, shape.clone()));
    let node = body.add(Op::TopK(k), &[x], None).expect("it fits");
    body.output("y", Role::Inner, Value { node, index: 0 });
    let at = library::View { buffer: 0, offset: Dim::from(0), turn: Vec::new() };
    let region = Fused { form: Form::Rows, body };
    let rows = OfRows::of(&region).filter(|r| r.is_for_many()).expect("a warp can");
    fuse_rows(&rows, &[StridedView::contiguous(at, &shape)], true)
}

#[track_caller]
fn check_topk(x: Tensor, k: i64) {
    let n = x.shape[x.shape.len() - 1];
    let rows = x.shape[..x.shape.len() - 1].iter().product();
    let p = TopK { dtype: x.dtype, rows: Dim::sym("R"), n: Dim::sym("N"), k };
    let kernels = host_topk::Tiling::LEGAL.map(|t| host_topk(&p, t)).into_iter();
    let kernels = kernels.chain(is_ordered(x.dtype).then(|| [gpu_topk(&p), gpu_topk_long(&p, false)]).into_iter().flatten());
    check(&Op::TopK(k), std::slice::from_ref(&x), &[("R", rows), ("N", n)], kernels, 0.0);
    for together in [1, 2, 5].into_iter().filter(|t| rows % t == 0 && (1..=512).contains(&(t * n)) && is_ordered(x.dtype)) {
        let kernel = of_rows(x.dtype, [together, n], k);
        check(&Op::TopK(k), std::slice::from_ref(&x), &[("R", rows / together)], [kernel], 0.0);
    }
    if gpu_topk_parts::takes(&p) {
        let dims = [("R", rows), ("N", n)].into_iter().map(|(n, x)| (n.into(), x)).collect();
        let [of_parts, join] = gpu_topk_parts::gpu_topk_parts(&p);
        let lens =
            gpu_topk_parts::memories(&p, gpu_topk_parts::PART).map(|ty| ty.elems().eval(&dims).expect("known dims") as usize);
        let best = results(&of_parts, std::slice::from_ref(&x), &lens, &dims, false);
        let best: Vec<Tensor> = best.into_iter().map(|x| Tensor::new(DType::I32, &[x.len() as i64], x)).collect();
        let got = results(&join, &best, &[(rows * k) as usize], &dims, false);
        assert_near("the best of parts", &got[0], &oracle(&Op::TopK(k), &[x])[0].data, 0.0);
    }
}

#[test]
fn topk_orders_ties_nan_and_infinities() {
    for dtype in [DType::F64, DType::F32] {
        topk_orders(dtype);
    }
}

fn topk_orders(dtype: DType) {
    let rows = |shape: &[i64], data: &[f64]| Tensor::new(dtype, shape, data.to_vec());
    check_topk(rows(&[1, 6], &[1.0, 3.0, 2.0, 3.0, 3.0, 0.0]), 4);
    check_topk(rows(&[1, 6], &[INF, NAN, -INF, NAN, 1.0, INF]), 5);
    check_topk(rows(&[2, 3], &[-INF, -INF, -INF, -INF, 5.0, -INF]), 2);
    check_topk(rows(&[1, 4], &[0.0, -0.0, 0.0, -0.0]), 3);
    check_topk(rows(&[1, 2], &[1.0, 2.0]), 5);
    check_topk(rows(&[3, 0], &[]), 2);
    check_topk(rows(&[0, 3], &[]), 2);
    check_topk(rows(&[1, 3], &[7.0, 7.0, 7.0]), 1);
}

#[test]
fn topk_of_random_rows() {
    let mut r = Random::new(1);
    for (n, k) in [(1, 1), (17, 1), (17, 16), (17, 17), (40, 4)] {
        check_topk(r.tensor(DType::F32, &[3, 11, n]), k);
        // Few values, so many ties.
        let coarse = (0..20 * n).map(|_| r.int(-2, 3) as f64).collect();
        check_topk(Tensor::new(DType::BF16, &[20, n], coarse), k);
    }
    // Several parts of a row, and ties across them.
    let coarse = (0..2 * 290).map(|_| r.int(-2, 9) as f64).collect();
    check_topk(Tensor::new(DType::F32, &[2, 290], coarse), 5);
    // So many parts that only those with the greatest first values are joined, with few values and ties, with −∞ and with many.
    for (k, values) in [(32, 4), (31, 300)] {
        let coarse = (0..4300).map(|_| r.int(-2, values) as f64).map(|x| if x < 0.0 { -INF } else { x }).collect();
        check_topk(Tensor::new(DType::F32, &[1, 4300], coarse), k);
    }
}

#[test]
fn running_sums() {
    let mut r = Random::new(2);
    for shape in [[2, 5, 3], [1, 1, 1], [3, 0, 2], [2, 4, 300], [0, 2, 2]] {
        for (exclusive, reverse) in [(false, false), (true, false), (false, true), (true, true)] {
            for dtype in [DType::F64, DType::BF16, DType::I32, DType::I64] {
                let count = shape.iter().product::<i64>();
                let integers: Vec<f64> = (0..count).map(|_| r.int(-9, 10) as f64).collect();
                let x = Tensor::new(dtype, &shape, integers);
                let symbols = ["A", "N", "C"].map(Dim::sym);
                let [outer, n, inner] = symbols;
                let p = Cumsum { dtype, outer, n, inner, exclusive, reverse };
                let kernels = host_cumsum::Tiling::LEGAL.map(|t| host_cumsum(&p, t));
                let op = Op::Cumsum { axis: 1, exclusive, reverse };
                check(&op, &[x], &[("A", shape[0]), ("N", shape[1]), ("C", shape[2])], kernels, 0.0);
            }
        }
    }
}

#[test]
fn running_sums_of_bf16_are_kept_in_f32() {
    // In bf16 the sum would stay at 256.
    let x = Tensor::full(DType::BF16, &[1, 300, 1], 1.0);
    let p = Cumsum {
        dtype: DType::BF16,
        outer: Dim::from(1),
        n: Dim::from(300),
        inner: Dim::from(1),
        exclusive: false,
        reverse: false,
    };
    let y = results(&host_cumsum(&p, host_cumsum::Tiling::LEGAL[0]), &[x], &[300], &DimEnv::new(), true);
    assert_eq!(y[0][299], 300.0);
}

#[track_caller]
fn check_route(groups: i64, shape: [i64; 2], choice: Vec<i64>) {
    let kernel = host_route(&Route { choices: Dim::sym("N") * Dim::sym("K"), groups });
    let args = [i32s(&shape, choice)];
    check(&Op::Route { groups }, &args, &[("N", shape[0]), ("K", shape[1])], [kernel], 0.0);

    // In three kernels.
    let n = shape[0] * shape[1];
    let [count, starts, place] = gpu_route(&Route { choices: Dim::sym("N"), groups });
    let dims: DimEnv = [(Arc::from("N"), n)].into();
    let table = (gpu_route::PARTS * groups) as usize;
    let of_table = |data: &[f64]| Tensor::new(DType::I32, &[gpu_route::PARTS, groups], data.to_vec());
    let counts = results(&count, &args, &[table], &dims, true);
    let [starts, totals] = &results(&starts, &[of_table(&counts[0])], &[table, groups as usize], &dims, true)[..] else {
        panic!("two results")
    };
    let totals = Tensor::new(DType::I32, &[groups], totals.clone());
    let sizes = [groups as usize + 1, n as usize, n as usize];
    let placed = results(&place, &[args[0].clone(), of_table(starts), totals], &sizes, &dims, true);
    let want = oracle(&Op::Route { groups }, &args);
    assert_eq!(placed, want.into_iter().map(|t| t.data).collect::<Vec<_>>());
}

#[test]
fn routing() {
    check_route(4, [4, 2], vec![2, 1, 1, 2, 2, 2, 1, 1]); // The first and the last group are empty.
    check_route(4, [3, 2], vec![0, 3, 3, 0, 0, 3]); // Middle ones are.
    check_route(3, [5, 1], vec![1; 5]); // All but one are.
    check_route(1, [2, 2], vec![0; 4]);
    check_route(4, [3, 2], vec![-1, 2, 7, 2, -5, 0]); // Skipped ones.
    check_route(2, [2, 2], vec![-1; 4]);
    check_route(2, [2, 3], vec![1, 1, 1, 0, 1, 0]); // A group twice in one row.
    check_route(5, [0, 2], vec![]);
    let mut r = Random::new(4);
    for n in [1, 127, 128, 129] {
        check_route(8, [n, 4], (0..n * 4).map(|_| r.int(-1, 8)).collect());
    }
}

/// A problem of `[batch, n, row]` and `[batch, picks]`, with extents that are symbols.
fn rows(dtype: DType) -> Rows {
    let symbols = ["B", "P", "N", "D"].map(Dim::sym);
    let [batch, picks, n, row] = symbols;
    Rows { dtype, batch, picks, n, row }
}

#[test]
fn gather_and_scatter() {
    let mut r = Random::new(6);
    for (b, picks, n, d) in [(2, 7, 5, 3), (1, 1, 1, 1), (3, 0, 2, 2), (2, 3, 0, 2), (1, 70, 4, 100), (0, 2, 2, 2), (2, 3, 4, 0)]
    {
        let dims = [("B", b), ("P", picks), ("N", n), ("D", d)];
        let index = i32s(&[b, picks], (0..b * picks).map(|_| r.int(-2, n + 2)));
        for dtype in [DType::F64, DType::BF16, DType::I32, DType::Bool] {
            let x = Tensor::new(dtype, &[b, n, d], (0..b * n * d).map(|_| r.int(0, 9) as f64).collect());
            let kernels = host_gather::Tiling::LEGAL.map(|t| host_gather(&rows(dtype), t));
            check(&Op::Gather { batch: 1 }, &[x, index.clone()], &dims, kernels, 0.0);
        }
        for dtype in [DType::F64, DType::I32, DType::I64] {
            let v = Tensor::new(dtype, &[b, picks, d], (0..b * picks * d).map(|_| r.int(-9, 9) as f64).collect());
            let p = rows(dtype);
            let kernels =
                host_scatter_add::Tiling::LEGAL.map(|t| host_scatter_add(&p, t)).into_iter().chain([gpu_scatter_add(&p)]);
            check(&Op::ScatterAdd { batch: 1, n: Dim::from(n) }, &[index.clone(), v], &dims, kernels, 0.0);
        }
    }
}

#[test]
fn scatter_sums_duplicates_in_order() {
    // In f32 this order gives 1 exactly, another would give 0.
    let v = Tensor::new(DType::F32, &[1, 3, 1], vec![1e9, -1e9, 1.0]);
    let dims = [("B", 1), ("P", 3), ("N", 2), ("D", 1)];
    let kernel = host_scatter_add(&rows(DType::F32), host_scatter_add::Tiling::LEGAL[0]);
    let few = Rows { picks: Dim::from(3), row: Dim::from(1), ..rows(DType::F32) };
    assert!(is_few(&few) && !is_few(&rows(DType::F32)));
    let kernels = [kernel, gpu_scatter_add(&rows(DType::F32)), gpu_scatter_few(&few)];
    check(&Op::ScatterAdd { batch: 1, n: Dim::from(2) }, &[i32s(&[1, 3], [1, 1, 1]), v], &dims, kernels, 1e-12);
    // Rows of bf16 give sums in f32.
    let v = Tensor::full(DType::BF16, &[1, 300, 1], 1.0);
    let kernel = host_scatter_add(&rows(DType::BF16), host_scatter_add::Tiling::LEGAL[0]);
    let dims: DimEnv = [("B", 1), ("P", 300), ("N", 1), ("D", 1)].map(|(n, x)| (Arc::from(n), x)).into();
    let index = i32s(&[1, 300], vec![0; 300]);
    assert_eq!(results(&kernel, &[index, v], &[1], &dims, true)[0], [300.0]);
}
