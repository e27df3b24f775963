//! Attention and its gradient.

use super::{Random, assert_near, i32s, oracle, results, updated};
use crate::ir::{Expr, Kernel};
use crate::kernels::{
    build::Build,
    domain::{Problem, Scene, Tiling},
    gpu_attend::{self, AtEnd, Ending, gpu_attend_map},
    gpu_attend_by_block,
    gpu_attend_grad::{self, Gives, gpu_attend_grad_keys, gpu_attend_grad_parts, gpu_attend_grad_queries, gpu_attend_grad_rows},
    gpu_attend_parts::{gpu_attend_merge, gpu_attend_merge_map, gpu_attend_part, gpu_attend_part_scores, num_parts},
    gpu_attend_union,
    gpu_product::Element,
    host_attend, host_attend_grad,
};
use crate::select::{self, Place};
use base::{DType, Dim, DimEnv, TensorType};
use graph::{
    Op,
    interp::Tensor,
    op::{Attend, Domain, Scalar},
};
use std::sync::Arc;

/// Extents: batch, queries, keys, query heads, key heads, elements of a key, of a value.
#[derive(Clone, Copy, Debug)]
struct Size {
    b: i64,
    t: i64,
    s: i64,
    h: i64,
    g: i64,
    dk: i64,
    dv: i64,
}

const SMALL: Size = Size { b: 2, t: 5, s: 5, h: 4, g: 2, dk: 4, dv: 3 };

impl Size {
    fn tokens(self, n: i64) -> Size {
        Size { t: n, s: n, ..self }
    }
}

struct Case {
    size: Size,
    domain: Domain,
    operands: Vec<Tensor>,
    dtype: DType,
    /// q, k and v, random if absent.
    data: Option<[Tensor; 3]>,
    /// o, lse, dq, dk, dv.
    tolerance: f64,
}

impl Case {
    fn new(size: Size, domain: &str, operands: &[Tensor]) -> Case {
        let domain = domain.parse().expect("a domain");
        Case { size, domain, operands: operands.to_vec(), dtype: DType::F64, data: None, tolerance: 1e-11 }
    }
    fn random(&self) -> [Tensor; 3] {
        let Size { b, t, s, h, g, dk, dv } = self.size;
        let mut r = Random::new(1 + t as u64);
        [r.tensor(self.dtype, &[b, t, h, dk]), r.tensor(self.dtype, &[b, s, g, dk]), r.tensor(self.dtype, &[b, s, g, dv])]
    }
    fn problem(&self, scale: f64) -> Problem {
        let Size { h, g, dk, dv, .. } = self.size;
        let symbols = ["B", "T", "S"].map(Dim::sym);
        let [b, t, s] = symbols.clone();
        let operands = self.operands.iter().map(|x| {
            let mut ty = super::known(x);
            ty.shape[0] = b.clone();
            // Keys' operands and queries' operands of two axes are told apart by the domain; extents that agree are the same here.
            if x.shape.len() == 4 {
                ty.shape[1] = t.clone();
                if self.dtype == DType::F64 {
                    ty.shape[3] = Dim::sym("N");
                }
            }
            ty
        });
        let operands = operands.collect();
        let (dtype, domain) = (self.dtype, self.domain.clone());
        Problem { dtype, b: b.clone(), t: t.clone(), s, h, g, dk, dv, domain, scale, operands, distinct: true, shared: false }
    }
    fn check(&self) {
        let tilings = [Tiling { queries: 4, keys: 8 }, Tiling { queries: 1, keys: 16 }, Tiling { queries: 16, keys: 64 }];
        let tokens = matches!(crate::kernels::domain::driving_list(&self.domain), Some((Domain::Tokens(_), _)));
        for tiling in tilings.into_iter().filter(|t| !tokens || t.queries == 1) {
            self.check_with(tiling);
        }
    }
    fn check_with(&self, tiling: Tiling) {
        let scale = 1.0 / (self.size.dk as f64).sqrt();
        let [q, k, v] = self.data.clone().unwrap_or_else(|| self.random());
        let attend = Attend { domain: self.domain.clone(), scale: Scalar::new(scale) };
        let name = |x: &str| format!("{x} of {} at {:?} with {tiling:?}", self.domain, self.size);
        let p = self.problem(scale);
        let list = self.operands.iter().find(|x| x.shape.len() == 4).map_or(0, |x| x.shape[3]);
        let dims = [("B", self.size.b), ("T", self.size.t), ("S", self.size.s), ("N", list)];
        let dims: DimEnv = dims.into_iter().map(|(n, x)| (Arc::from(n), x)).collect();
        let rounded = self.dtype != DType::F64;

        let args: Vec<Tensor> = [&q, &k, &v].into_iter().chain(&self.operands).cloned().collect();
        let want = oracle(&Op::Attend(attend.clone()), &args);
        let lens: Vec<usize> = want.iter().map(|x| x.data.len()).collect();
        let got = results(&host_attend::host_attend(&p, tiling), &args, &lens, &dims, rounded);
        for (i, x) in ["o", "lse"].into_iter().enumerate() {
            assert_near(&name(x), &got[i], &want[i].data, self.tolerance);
        }

        let [o, lse] = [0, 1].map(|i| Tensor::new(want[i].dtype, &want[i].shape, want[i].data.clone()));
        let mut r = Random::new(99);
        let (d_o, d_lse) = (r.tensor(self.dtype, &o.shape), r.tensor(lse.dtype, &lse.shape));
        let args: Vec<Tensor> = [&q, &k, &v, &o, &lse, &d_o, &d_lse].into_iter().chain(&self.operands).cloned().collect();
        let want = oracle(&Op::AttendGrad(attend), &args);
        let lens: Vec<usize> = want.iter().map(|x| x.data.len()).collect();
        let got = results(&host_attend_grad::host_attend_grad(&p, tiling), &args, &lens, &dims, rounded);
        for (i, x) in ["dq", "dk", "dv"].into_iter().enumerate() {
            assert_near(&name(x), &got[i], &want[i].data, self.tolerance);
        }
    }
}

impl Case {
    /// The same in f32, its op and problem, and what its dims are: what kernels for many processors are compared on.
    fn for_many(&self) -> (Case, Attend, Problem, DimEnv) {
        let scale = 1.0 / (self.size.dk as f64).sqrt();
        let case = Case { dtype: DType::F32, operands: self.operands.clone(), domain: self.domain.clone(), data: None, ..*self };
        let (attend, p) = (Attend { domain: self.domain.clone(), scale: Scalar::new(scale) }, case.problem(scale));
        let Size { b, t, s, .. } = case.size;
        let dims = [("B", b), ("T", t), ("S", s)].into_iter().map(|(n, x)| (Arc::from(n), x)).collect();
        (case, attend, p, dims)
    }
    /// Blocks, members and counts of tiles, with lists.
    fn union(&self, p: &Problem, tiling: gpu_attend::Tiling, dims: &DimEnv) -> Vec<Tensor> {
        let Some(lists) = gpu_attend_union::lists(p, tiling) else { return Vec::new() };
        let types = gpu_attend_union::memories(p, tiling);
        let lens: Vec<usize> = types.iter().map(|ty| ty.elems().eval(dims).expect("known dims") as usize).collect();
        let kernel = gpu_attend_union::gpu_attend_union(p, tiling);
        let got = results(&kernel, &self.operands[lists..=lists], &lens, dims, true);
        types.iter().zip(got).map(|(ty, x)| Tensor::new(ty.dtype, &[x.len() as i64], x)).collect()
    }
    /// The forward kernel for many processors.
    fn check_many(&self, tiling: gpu_attend::Tiling) {
        let (case, attend, p, dims) = self.for_many();
        assert!(gpu_attend::takes(&p, tiling, true));
        let Size { t, s, .. } = case.size;
        let mut args: Vec<Tensor> = case.random().into_iter().chain(case.operands.clone()).collect();
        let want = oracle(&Op::Attend(attend), &args);
        let lens: Vec<usize> = want.iter().map(|x| x.data.len()).collect();
        args.extend(case.union(&p, tiling, &dims));
        let got = results(&gpu_attend::gpu_attend(&p, tiling), &args, &lens, &dims, true);
        let near = |got: &[Vec<f64>]| {
            for (i, x) in ["o", "lse"].into_iter().enumerate() {
                let name = format!("{x} of {} at {:?} with {tiling:?}", self.domain, self.size);
                assert_near(&name, &got[i], &want[i].data, 2e-5);
            }
        };
        near(&got);
        // In parts of keys, some of which are empty or seen by no row.
        if tiling.rows == 64 && gpu_attend_union::lists(&p, tiling).is_none() {
            let parts = Dim::from(3);
            let of_parts = in_parts(&gpu_attend_part(&p, tiling, &parts), &args, &lens, 3, &dims);
            near(&results(&gpu_attend_merge(&p, &parts, true), &of_parts, &lens, &dims, true));
            let sums = results(&gpu_attend_merge(&p, &parts, false), &of_parts, &lens[1..], &dims, true);
            assert_near("lse alone", &sums[0], &want[1].data, 2e-5);
            if p.domain == Domain::Full && p.dv <= gpu_attend::WIDEST {
                let n = lens[1] * s as usize;
                let got =
                    results(&gpu_attend_part_scores(&p, tiling, &parts), &args, &[&lens[0] * 3, &lens[1] * 3, n], &dims, true);
                assert_eq!(got[..2], of_parts.iter().map(|x| x.data.clone()).collect::<Vec<_>>());
                let Size { h, g, dk, .. } = case.size;
                let at = |x: &Tensor, i: i64, d: i64| x.data[(i * dk + d) as usize];
                for (i, score) in (0..).zip(&got[2]) {
                    let (row, key) = (i / s, i % s);
                    let of_key = (row / (t * h) * s + key) * g + row % h / (h / g);
                    let want = (0..dk).map(|d| at(&args[0], row, d) * at(&args[1], of_key, d)).sum::<f64>();
                    assert!((score - want).abs() < 1e-4, "score {i} at {:?} with {tiling:?}: {score} for {want}", self.size);
                }
            }
        }
    }
}

impl Case {
    /// The kernels that go by blocks; what unused tiles have is not written.
    fn check_by_block(&self, tiling: gpu_attend::Tiling) {
        let (case, attend, p, dims) = self.for_many();
        assert!(gpu_attend_by_block::takes(&p, tiling, true), "{p:?}");
        let args: Vec<Tensor> = case.random().into_iter().chain(case.operands.clone()).collect();
        let want = oracle(&Op::Attend(attend), &args);
        let got = run_work(&select::attend_by_block(&p, tiling), &args, &want, &dims);
        for (i, x) in ["o", "lse"].into_iter().enumerate() {
            let name = format!("{x} of {} at {:?} with {tiling:?}", self.domain, self.size);
            assert_near(&name, &got[i], &want[i].data, 2e-5);
        }
    }
}

/// The results of an op's kernels, one after the other, each with what the ones before gave; memory holds nothing before.
fn run_work(work: &select::Work, args: &[Tensor], results: &[Tensor], dims: &DimEnv) -> Vec<Vec<f64>> {
    let elems = |t: &TensorType| t.elems().eval(dims).expect("known dims") as usize;
    let lens = work.asides.iter().map(elems).chain(results.iter().map(|x| x.data.len()));
    let mut memory: Vec<Vec<f64>> = args.iter().map(|x| x.data.clone()).chain(lens.map(|n| vec![f64::NAN; n])).collect();
    let first = args.len() + work.asides.len();
    for (kernel, places, _) in &work.launches {
        let at = |place: &Place| match place {
            Place::Operand(i) => *i,
            Place::Aside(i) => args.len() + i,
            Place::Result(i) => first + i,
        };
        run_on(kernel, &places.iter().map(at).collect::<Vec<_>>(), &mut memory, dims);
    }
    memory.split_off(first)
}

/// o and lse of so many parts, each of so many elements.
fn in_parts(kernel: &Kernel, args: &[Tensor], lens: &[usize], parts: usize, dims: &DimEnv) -> Vec<Tensor> {
    let found = results(kernel, args, &[lens[0] * parts, lens[1] * parts], dims, true);
    found.into_iter().map(|x| Tensor::new(DType::F32, &[x.len() as i64], x)).collect()
}

/// Runs a kernel on some of the memories, in two orders of blocks, which must give the same bits.
fn run_on(kernel: &Kernel, places: &[usize], memory: &mut [Vec<f64>], dims: &DimEnv) {
    let once = |seed| {
        let mut buffers: Vec<Vec<f64>> = places.iter().map(|i| memory[*i].clone()).collect();
        let options = crate::interp::Options { rounded: true, seed, ..Default::default() };
        let report = crate::interp::run(kernel, &mut buffers, dims, options);
        report.unwrap_or_else(|e| panic!("{}: {e}", kernel.name));
        buffers
    };
    let (ordered, permuted) = (once(0), once(7));
    let bits = |x: &[Vec<f64>]| x.iter().flatten().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&ordered), bits(&permuted), "{}: the order of blocks shows", kernel.name);
    places.iter().zip(ordered).for_each(|(i, x)| memory[*i] = x);
}

#[test]
fn lists_of_keys_for_many_processors() {
    for (heads, n, len) in [(2, 1, 1), (2, 37, 11), (4, 21, 30)] {
        let size = Size { h: 2 * heads, dk: 16, dv: 32, ..SMALL }.tokens(n);
        let tiling = gpu_attend::Tiling { rows: heads, keys: 8, heads };
        let list = lists(size, len, |t| t + 1);
        for domain in ["tokens(0)", "causal & tokens(0)", "tokens(0) & window(9)"] {
            Case::new(size, domain, std::slice::from_ref(&list)).check_many(tiling);
            Case::new(Size { s: n + 13, ..size }, domain, std::slice::from_ref(&list)).check_many(tiling);
        }
        // Keys that there are not.
        let odd = i32s(&[2, n, 2, 3], (0..4 * n).flat_map(|i| [-7, i % n, n + 4]));
        Case::new(size, "tokens(0)", &[odd]).check_many(tiling);
    }
}

#[test]
fn lists_of_blocks_by_block() {
    let tiling = |rows, keys, heads| gpu_attend::Tiling { rows, keys, heads };
    for (tiling, lengths) in [(tiling(16, 8, 1), vec![1, 37]), (tiling(16, 4, 2), vec![21]), (tiling(8, 4, 4), vec![8])] {
        for n in lengths {
            let size = Size { h: 2 * tiling.heads, dk: 16, dv: 16, ..SMALL }.tokens(n);
            let random = lists(size, 3, |t| t / 8 + 1);
            // Out of range, twice, none at all; all queries the same.
            let mut r = Random::new(7);
            let odd = i32s(&[2, n, 2, 3], (0..12 * n).map(|_| r.int(-2, n / 8 + 3)).collect::<Vec<_>>());
            let none = i32s(&[2, n, 2, 1], vec![-1; 4 * n as usize]);
            let same = i32s(&[2, n, 2, 2], (0..8 * n).map(|i| i % 2));
            let segments = i32s(&[2, n], (0..2 * n).map(|i| i % n / 5));
            for list in [random, odd, none, same] {
                let check = |size, domain, operands: &[Tensor]| Case::new(size, domain, operands).check_by_block(tiling);
                check(size, "blocks(0, 8) & window(9)", std::slice::from_ref(&list));
                check(size, "causal & blocks(0, 8) & segments(1, 1)", &[list.clone(), segments.clone()]);
                // More keys than queries.
                check(Size { s: n + 13, ..size }, "causal & blocks(0, 8)", &[list]);
            }
        }
    }
}

impl Case {
    /// The kernels of the gradient for many processors.
    fn check_many_grads(&self, tiling: gpu_attend_grad::Tiling) {
        let (case, attend, p, dims) = self.for_many();
        assert!(gpu_attend_grad::takes(&p, tiling, true), "{p:?}");
        let [q, k, v] = case.random();
        let args: Vec<Tensor> = [&q, &k, &v].into_iter().chain(&case.operands).cloned().collect();
        let [o, lse] = oracle(&Op::Attend(attend.clone()), &args).try_into().expect("two results");
        let mut r = Random::new(99);
        let (d_o, d_lse) = (r.tensor(DType::F32, &o.shape), r.tensor(DType::F32, &lse.shape));
        let args: Vec<Tensor> = [&q, &k, &v, &o, &lse, &d_o, &d_lse].into_iter().chain(&case.operands).cloned().collect();
        let want = oracle(&Op::AttendGrad(attend), &args);

        let n = gpu_attend_grad::of_rows(&p, tiling).eval(&dims).expect("known dims") as usize;
        let of_rows = results(&gpu_attend_grad_rows(&p, tiling), &[o, lse, d_o.clone(), d_lse], &[n, n], &dims, true);
        let of_rows = of_rows.into_iter().map(|x| Tensor::new(DType::F32, &[n as i64], x));
        let mut args: Vec<Tensor> = [q, k, v, d_o].into_iter().chain(of_rows).chain(case.operands.clone()).collect();
        let lens: Vec<usize> = want.iter().map(|x| x.data.len()).collect();
        let union = case.union(&p, gpu_attend_grad::forward(tiling), &dims);
        let of_queries: Vec<Tensor> = args.iter().chain(&union).cloned().collect();
        let mut got = results(&gpu_attend_grad_queries(&p, tiling, false), &of_queries, &lens[..1], &dims, true);
        if matches!(&*self.domain.to_string(), "causal" | "causal & blocks(0, 8)") {
            let before = Random::new(98).tensor(DType::F32, &[lens[0] as i64]).data;
            let added = updated(&gpu_attend_grad_queries(&p, tiling, true), &of_queries, before.clone(), &dims);
            let sum: Vec<f64> = before.iter().zip(&got[0]).map(|(x, y)| x + y).collect();
            assert_near(&format!("dq and what was there, of {}", self.domain), &added, &sum, 2e-5);
        }
        let mut inverse = Vec::new();
        if let [blocks, member, count] = &union[..] {
            let forward = gpu_attend_grad::forward(tiling);
            let types = gpu_attend_union::inverse_memories(&p, forward);
            let run = |kernel: &Kernel, args: &[&Tensor], types: &[TensorType]| -> Vec<Tensor> {
                let n: Vec<usize> = types.iter().map(|t| t.elems().eval(&dims).expect("known dims") as usize).collect();
                let args: Vec<Tensor> = args.iter().map(|x| (*x).clone()).collect();
                let found = results(kernel, &args, &n, &dims, true).into_iter().zip(types);
                found.map(|(x, t)| Tensor::new(t.dtype, &[x.len() as i64], x)).collect()
            };
            let [totals, offsets, entries, sorted] = &gpu_attend_union::gpu_attend_inverse(&p, forward);
            let [counts, totals] = &run(totals, &[blocks, member, count], &types[..2])[..] else { panic!("two results") };
            inverse = run(offsets, &[totals], &types[2..4]);
            let more = run(entries, &[blocks, member, count, counts, totals, &inverse[0], &inverse[1]], &types[4..6]);
            let mut sorted = run(sorted, &[&more[0], &args[4], &args[5]], &types[6..]);
            inverse.extend(more);
            inverse.extend(sorted.split_off(2));
            args.splice(4..6, sorted);
        }
        args.extend(inverse.clone());
        let sums = gpu_attend_grad::of_sums(&p, tiling);
        let len = |t: &TensorType| t.elems().eval(&dims).expect("known dims") as usize;
        let of_sums: Vec<usize> = sums.as_ref().map_or(lens[1..].to_vec(), |s| s.iter().map(len).collect());
        let found = tiling.gives().iter().flat_map(|gives| {
            let own = match gives {
                Gives::Both => &of_sums[..],
                Gives::Keys => &of_sums[..1],
                Gives::Values => &of_sums[1..],
            };
            results(&gpu_attend_grad_keys(&p, tiling, *gives), &args, own, &dims, true)
        });
        let found: Vec<Vec<f64>> = found.collect();
        for ((x, n), values) in found.into_iter().zip(&lens[1..]).zip([false, true]) {
            let sum = Tensor::new(DType::F32, &[x.len() as i64], x.clone());
            got.extend(match (&sums, inverse.get(1)) {
                (None, _) => vec![x],
                (Some(_), Some(firsts)) => {
                    let forward = gpu_attend_grad::forward(tiling);
                    let add = gpu_attend_union::gpu_attend_grad_items(&p, forward, if values { p.dv } else { p.dk });
                    results(&add, &[sum, firsts.clone()], &[*n], &dims, true)
                }
                (Some(_), None) => results(&gpu_attend_grad_parts(&p, tiling, values), &[sum], &[*n], &dims, true),
            });
        }
        for (i, x) in ["dq", "dk", "dv"].into_iter().enumerate() {
            let name = format!("{x} of {} at {:?} with {tiling:?}", self.domain, self.size);
            assert_near(&name, &got[i], &want[i].data, 2e-5);
        }
    }
}

impl Case {
    /// The kernels of the gradient where queries are sorted by blocks, each with what the ones before gave.
    fn check_sorted_grads(&self, tiling: gpu_attend_grad::Tiling) {
        let (case, attend, p, dims) = self.for_many();
        assert!(gpu_attend_grad::takes(&p, tiling, true), "{p:?}");
        let qkv = case.random();
        let args: Vec<Tensor> = qkv.iter().chain(&case.operands).cloned().collect();
        let [o, lse] = oracle(&Op::Attend(attend.clone()), &args).try_into().expect("two results");
        let mut r = Random::new(99);
        let (d_o, d_lse) = (r.tensor(DType::F32, &o.shape), r.tensor(DType::F32, &lse.shape));
        let args: Vec<Tensor> = qkv.into_iter().chain([o, lse, d_o, d_lse]).chain(case.operands.clone()).collect();
        let want = oracle(&Op::AttendGrad(attend), &args);

        let got = run_work(&select::attend_grad(&p, tiling, false, false), &args, &want, &dims);
        for (i, x) in ["dq", "dk", "dv"].into_iter().enumerate() {
            let name = format!("{x} of {} at {:?} with {tiling:?}", self.domain, self.size);
            assert_near(&name, &got[i], &want[i].data, 2e-5);
        }
    }
}

/// Domains of ranges and tests; of two ranges one may reach into the other, lie behind it, or be empty.
const RANGES: [&str; 6] = [
    "full",
    "causal",
    "causal & window(9)",
    "causal & (window(3) | ends_before(8, 16))",
    "causal & (window(9) | prefix(5))",
    "causal & (prefix(20) | window(2))",
];

#[test]
fn gradients_for_many_processors() {
    let size = Size { dk: 16, dv: 32, ..SMALL };
    let legal = gpu_attend_grad::Tiling::LEGAL;
    let apart = gpu_attend_grad::Tiling { of_values: Some([32, 32]), ..legal[5] };
    for (tiling, lengths) in [(&legal[4], [1, 70]), (&legal[5], [15, 33]), (&apart, [15, 37])] {
        for n in lengths {
            for domain in RANGES {
                Case::new(size.tokens(n), domain, &[]).check_many_grads(*tiling);
            }
            // More keys than queries, more queries than keys, and as many as end before the last query.
            Case::new(Size { s: n + 21, ..size.tokens(n) }, "causal", &[]).check_many_grads(*tiling);
            Case::new(Size { t: n + 21, ..size.tokens(n) }, "causal & window(9)", &[]).check_many_grads(*tiling);
            let few = Case::new(Size { s: (n / 4).max(1), ..size.tokens(n) }, "ends_before(4, 4)", &[]);
            few.check_many_grads(*tiling);
            few.check_many_grads(gpu_attend_grad::Tiling { parts: 2, ..*tiling });
            let segments = i32s(&[2, n], (0..2 * n).map(|i| i % n / 11));
            Case::new(size.tokens(n), "causal & segments(0, 0)", &[segments]).check_many_grads(*tiling);
        }
    }
}

#[test]
fn tiles_for_many_processors() {
    let size = Size { dk: 16, dv: 32, ..SMALL };
    for (tiling, lengths) in [(2, [1, 70]), (3, [15, 33])] {
        let tiling = &gpu_attend::Tiling::LEGAL[tiling];
        for n in lengths {
            for domain in RANGES {
                Case::new(size.tokens(n), domain, &[]).check_many(*tiling);
            }
            // More keys than queries, and as many as end before the last query.
            Case::new(Size { s: n + 21, ..size.tokens(n) }, "causal", &[]).check_many(*tiling);
            Case::new(Size { s: n + 21, ..size.tokens(n) }, "causal & (window(9) | prefix(5))", &[]).check_many(*tiling);
            Case::new(Size { s: (n / 4).max(1), ..size.tokens(n) }, "ends_before(4, 4)", &[]).check_many(*tiling);
            let segments = i32s(&[2, n], (0..2 * n).map(|i| i % n / 11));
            Case::new(size.tokens(n), "causal & segments(0, 0)", &[segments]).check_many(*tiling);
        }
    }
}

#[test]
fn wide_heads_share_keys_by_halves_of_the_result() {
    // As a latent that all heads share: few heads, and more than a tile has rows.
    for (heads, t, s) in [(4, 17, 37), (128, 1, 37)] {
        let size = Size { b: 1, t, s, h: heads, g: 1, dk: 272, dv: 288 };
        for domain in ["causal", "full", "causal & window(9)"] {
            let case = Case::new(size, domain, &[]);
            let tiling = gpu_attend::Tiling::choose(&case.problem(0.1));
            assert_eq!((tiling.rows, tiling.heads), (64, heads.min(64)));
            case.check_many(tiling);
        }
    }
}

#[test]
fn halves_of_the_result_are_mapped() {
    // A gate of each row and another value: in a tile's registers, and of joined parts; with the result stored, too, or not.
    let size = Size { b: 2, t: 5, s: 19, h: 4, g: 1, dk: 272, dv: 288 };
    let (case, attend, p, dims) = Case::new(size, "causal", &[]).for_many();
    let tiling = gpu_attend::Tiling::choose(&p);
    let args = case.random();
    let want = oracle(&Op::Attend(attend), &args);
    let [o, lse] = &want[..] else { panic!("two results") };
    let mut r = Random::new(5);
    let (gate, other) = (r.tensor(DType::F32, &lse.shape), r.tensor(DType::F32, &o.shape));
    let mapped = |(i, x): (usize, &f64)| x * gate.data[i / 288] + other.data[i];
    let mapped: Vec<f64> = o.data.iter().enumerate().map(mapped).collect();
    let map = |b: &mut Build, e: &Element| {
        let at = b.bind(e.at[0].clone() * Expr::int(288) + e.at[1].clone());
        e.products[0].clone() * Expr::load(e.operands[0], e.at[0].clone()) + Expr::load(e.operands[1], at)
    };
    let [.., of_o, of_lse] = p.elems();
    let lens = [o.data.len(), lse.data.len(), o.data.len()];
    let parts = Dim::from(3);
    let of_parts = in_parts(&gpu_attend_part(&p, tiling, &parts), &args, &lens, 3, &dims);
    for keeps in [false, true] {
        let operands = vec![(DType::F32, of_lse.clone()), (DType::F32, of_o.clone())];
        let ending = Ending { operands, keeps, gives: AtEnd::Map(DType::F32, &map) };
        let whole = (gpu_attend_map(&p, tiling, &ending), &args[..]);
        let joined = (gpu_attend_merge_map(&p, std::slice::from_ref(&parts), &ending), &of_parts[..]);
        for (kernel, given) in [whole, joined] {
            let args: Vec<Tensor> = given.iter().chain([&gate, &other]).cloned().collect();
            let got = results(&kernel, &args, &lens[if keeps { 0 } else { 1 }..], &dims, true);
            let all = [&o.data, &lse.data, &mapped];
            let want = if keeps { &all[..] } else { &all[1..] };
            got.iter().zip(want).for_each(|(x, y)| assert_near(&kernel.name, x, y, 2e-5));
        }
    }
}

#[test]
fn keys_are_values_and_more_columns() {
    for (heads, t, s) in [(4, 17, 37), (128, 1, 37)] {
        let size = Size { b: 2, t, s, h: heads, g: 1, dk: 320, dv: 288 };
        let (case, attend, p, dims) = Case::new(size, "causal", &[]).for_many();
        let p = Problem { shared: true, ..p };
        let tiling = gpu_attend::Tiling::choose(&p);
        assert_eq!((tiling.rows, tiling.heads, gpu_attend::shares(&p)), (128, heads, true));
        let [q, k, _] = case.random();
        let columns = |from: usize, to: usize| {
            let data = k.data.chunks(320).flat_map(|row| row[from..to].to_vec()).collect();
            Tensor::new(DType::F32, &[2, s, 1, (to - from) as i64], data)
        };
        let (v, rest) = (columns(0, 288), columns(288, 320));
        let want = oracle(&Op::Attend(attend), &[q.clone(), k.clone(), v.clone()]);
        let lens: Vec<usize> = want.iter().map(|x| x.data.len()).collect();
        let near = |got: &[Vec<f64>]| (0..2).for_each(|i| assert_near("shared", &got[i], &want[i].data, 2e-5));
        let args = [q, rest, v];
        near(&results(&gpu_attend::gpu_attend(&p, tiling), &args, &lens, &dims, true));
        let parts = Dim::from(3);
        let of_parts = in_parts(&gpu_attend_part(&p, tiling, &parts), &args, &lens, 3, &dims);
        near(&results(&gpu_attend_merge(&p, &parts, true), &of_parts, &lens, &dims, true));
    }
}

#[test]
fn keys_are_divided_where_blocks_are_few() {
    let latent = |t: Dim, s: Dim| {
        let size = Size { b: 1, t: 1, s: 1, h: 128, g: 1, dk: 576, dv: 512 };
        let case = Case { dtype: DType::BF16, ..Case::new(size, "causal", &[]) };
        Problem { t, s, shared: true, ..case.problem(0.1) }
    };
    let parts = |p: &Problem, fewest: i64| num_parts(p, gpu_attend::Tiling::choose(p), fewest);
    let [t, s] = ["T", "S"].map(Dim::sym);
    let at = |p: &Problem, b: i64, t: i64, s: i64| {
        let dims: DimEnv = [("B", b), ("T", t), ("S", s)].into_iter().map(|(n, x)| (Arc::from(n), x)).collect();
        parts(p, 1).expect("there are parts").eval(&dims).expect("known dims")
    };
    // A sequence has two blocks of 132; of 52 or 80 at a time more parts take two turns, and of 20 no more than one.
    let decode = latent(Dim::from(1), s.clone());
    let of = |b: i64| at(&decode, b, 1, 65536);
    assert_eq!([1, 2, 10, 26, 33, 40, 52, 64, 100].map(of), [66, 33, 6, 5, 2, 3, 1, 1, 1]);
    assert_eq!(at(&latent(t.clone(), s.clone() + t.clone()), 1, 4, 65536), 16);
    // Four tiles of 32 keys each, at least.
    assert_eq!([4096, 1000, 1].map(|s| at(&decode, 1, 1, s)), [32, 7, 1]);
    assert_eq!(parts(&latent(Dim::from(1), Dim::from(200)), 1), None);
    // Many queries are enough blocks, and queries that all keys are of.
    assert_eq!(parts(&latent(t.clone(), s.clone() + t.clone()), 129), None);
    assert_eq!(parts(&latent(Dim::from(4096), s), 1), None);
    assert_eq!(parts(&latent(t.clone(), t), 1), None);
}

#[test]
fn lists_of_blocks_for_many_processors() {
    let tiling = |rows, keys, heads| gpu_attend::Tiling { rows, keys, heads };
    let few = [(2, tiling(16, 8, 2), [1, 21]), (4, tiling(16, 4, 4), [7, 8]), (1, tiling(8, 8, 1), [9, 17])];
    // Heads that are a rectangle each, and an only query that fills a tile.
    let many = [(8, tiling(16, 8, 8), [1, 13]), (16, tiling(16, 8, 16), [5, 9])];
    for (heads, tiling, lengths) in few.into_iter().chain(many) {
        for n in lengths {
            let size = Size { h: 2 * heads, dk: 16, dv: 16, ..SMALL }.tokens(n);
            let random = lists(size, 3, |t| t / 8 + 1);
            // Out of range, twice, none at all; all queries the same.
            let mut r = Random::new(7);
            let odd = i32s(&[2, n, 2, 3], (0..12 * n).map(|_| r.int(-2, n / 8 + 3)).collect::<Vec<_>>());
            let none = i32s(&[2, n, 2, 1], vec![-1; 4 * n as usize]);
            let same = i32s(&[2, n, 2, 2], (0..8 * n).map(|i| i % 2));
            let segments = i32s(&[2, n], (0..2 * n).map(|i| i % n / 5));
            for list in [random, odd, none, same] {
                let of_queries = [tiling.rows, tiling.keys];
                let grads = gpu_attend_grad::Tiling {
                    of_keys: [tiling.rows, 8],
                    of_queries,
                    heads,
                    parts: 1,
                    of_values: None,
                    by_block: false,
                };
                let sorted = gpu_attend_grad::Tiling { by_block: true, ..grads };
                // dk and dv apart, as of wide heads.
                let apart = gpu_attend_grad::Tiling { of_values: Some(grads.of_keys), ..grads };
                let sorted_apart = gpu_attend_grad::Tiling { by_block: true, ..apart };
                let check = |size, domain, operands: &[Tensor]| {
                    let case = Case::new(size, domain, operands);
                    case.check_many(tiling);
                    case.check_many_grads(grads);
                    case.check_sorted_grads(sorted);
                };
                for domain in ["blocks(0, 8)", "causal & blocks(0, 8)", "blocks(0, 8) & window(9)"] {
                    check(size, domain, std::slice::from_ref(&list));
                }
                let causal = Case::new(size, "causal & blocks(0, 8)", std::slice::from_ref(&list));
                causal.check_many_grads(apart);
                if heads <= 2 {
                    causal.check_sorted_grads(sorted_apart);
                }
                check(size, "causal & blocks(0, 8) & segments(1, 1)", &[list.clone(), segments.clone()]);
                // More keys than queries.
                check(Size { s: n + 13, ..size }, "causal & blocks(0, 8)", &[list]);
            }
        }
    }
}

#[test]
fn gradients_of_few_wide_heads_over_lists_are_sorted_and_apart() {
    for heads in [1, 2] {
        let size = Size { b: 1, t: 1, s: 1, h: 2 * heads, g: 2, dk: 192, dv: 192 };
        let list = i32s(&[1, 1, 2, 16], vec![0; 32]);
        let case = Case { dtype: DType::BF16, ..Case::new(size, "causal & blocks(0, 64)", &[list]) };
        let tiling = gpu_attend_grad::Tiling::choose(&case.problem(0.1));
        assert!(tiling.by_block && tiling.of_values.is_some(), "{tiling:?}");
    }
}

#[test]
fn heads_that_share_keys_are_rows() {
    for t in [1, 5] {
        let size = Size { b: 1, h: 16, g: 2, dk: 16, dv: 16, t, s: 37 };
        for tiling in [gpu_attend::Tiling { rows: 64, keys: 32, heads: 8 }, gpu_attend::Tiling { rows: 16, keys: 16, heads: 8 }] {
            for domain in ["full", "causal", "causal & window(9)", "causal & (window(3) | ends_before(8, 16))"] {
                Case::new(size, domain, &[]).check_many(tiling);
            }
        }
    }
}

impl Case {
    /// One query of each batch, which has each block once: whole, and in parts of which some have no keys.
    fn check_only_query(&self, tiling: gpu_attend::Tiling) {
        let (case, attend, p, mut dims) = self.for_many();
        let mut p = Problem { t: Dim::from(1), ..p };
        p.operands.iter_mut().filter(|ty| ty.rank() == 4).for_each(|ty| ty.shape[1] = Dim::from(1));
        assert!(gpu_attend::takes(&p, tiling, true) && gpu_attend_union::lists(&p, tiling).is_none());
        let parts = Dim::sym("P");
        let args: Vec<Tensor> = case.random().into_iter().chain(case.operands.clone()).collect();
        let want = oracle(&Op::Attend(attend), &args);
        let lens: Vec<usize> = want.iter().map(|x| x.data.len()).collect();
        let near = |got: &[Vec<f64>], what: &str| {
            for (i, x) in ["o", "lse"].into_iter().enumerate() {
                assert_near(&format!("{x} of {} at {:?} {what}", self.domain, self.size), &got[i], &want[i].data, 2e-5);
            }
        };
        near(&results(&gpu_attend::gpu_attend(&p, tiling), &args, &lens, &dims, true), "whole");
        for n in [1, 3] {
            dims.insert("P".into(), n);
            let of_parts = in_parts(&gpu_attend_part(&p, tiling, &parts), &args, &lens, n as usize, &dims);
            near(&results(&gpu_attend_merge(&p, &parts, true), &of_parts, &lens, &dims, true), "in parts");
        }
    }
}

#[test]
fn blocks_of_an_only_query() {
    let tiling = |rows, keys, heads| gpu_attend::Tiling { rows, keys, heads };
    for (heads, tiling) in [(2, tiling(16, 8, 2)), (4, tiling(16, 4, 4)), (1, tiling(8, 8, 1))] {
        for s in [1, 37] {
            let size = Size { h: 2 * heads, dk: 16, dv: 16, t: 1, s, ..SMALL };
            let blocks = (s + 7) / 8;
            let none = i32s(&[2, 1, 2, 1], vec![-1; 4]);
            for list in [lists(size, 3, |_| blocks), lists(size, 5, |_| 2.min(blocks)), none] {
                for domain in ["blocks(0, 8)", "causal & blocks(0, 8)", "blocks(0, 8) & window(9)"] {
                    Case::new(size, domain, std::slice::from_ref(&list)).check_only_query(tiling);
                }
            }
        }
    }
}

/// Lists `[b, t, g, n]` of distinct numbers below `limit(t)`, the unused places -1.
fn lists(size: Size, n: i64, limit: impl Fn(i64) -> i64) -> Tensor {
    let mut r = Random::new(5);
    let mut data = Vec::new();
    for _ in 0..size.b {
        for t in 0..size.t {
            for _ in 0..size.g {
                let mut all: Vec<i64> = (0..limit(t)).collect();
                let mut list = vec![-1; n as usize];
                for place in list.iter_mut().take(all.len()) {
                    *place = all.remove(r.int(0, all.len() as i64) as usize);
                }
                data.extend(list);
            }
        }
    }
    i32s(&[size.b, size.t, size.g, n], data)
}

#[test]
fn ranges_at_all_lengths() {
    for n in [1, 15, 31, 32, 33, 47, 48, 63, 64, 65, 127] {
        let size = Size { b: 1, h: 2, g: 1, ..SMALL }.tokens(n);
        let tiling = Tiling { queries: 16, keys: 32 };
        Case::new(size, "causal", &[]).check_with(tiling);
        Case::new(size, "causal & window(16)", &[]).check_with(tiling);
        // Compressed keys: none before the first whole window.
        let keys = if n < 32 { 0 } else { (n - 32) / 16 + 1 };
        Case::new(Size { s: keys, ..size }, "ends_before(32, 16)", &[]).check_with(tiling);
    }
}

#[test]
fn every_domain_and_tiling() {
    let size = SMALL.tokens(21);
    let mut r = Random::new(3);
    let ends = i32s(&[2, 21], (0..42).map(|_| r.int(0, 25)));
    let segments = i32s(&[2, 21], (0..42).map(|i| [0, 1, 1, 1, 2, 3, 3][(i % 21 / 3) as usize]));
    let blocks = lists(size, 3, |t| t / 4 + 1);
    let tokens = lists(size, 5, |_| 21);
    let far = i32s(&[2, 21, 2, 3], (0..252).map(|_| r.int(-3, 9)));
    let groups = i32s(&[2, 21], (0..42).map(|_| r.int(-1, 6)));
    for (domain, operands) in [
        ("full", vec![]),
        ("causal", vec![]),
        ("window(4)", vec![]),
        ("ends_at(0)", vec![&ends]),
        ("segments(0, 0)", vec![&segments]),
        ("causal & segments(0, 0)", vec![&segments]),
        ("blocks(0, 4)", vec![&blocks]),
        ("causal & blocks(0, 4)", vec![&blocks]),
        ("causal & blocks(0, 4) & segments(1, 1)", vec![&blocks, &segments]),
        ("blocks(0, 4)", vec![&far]),
        ("tokens(0)", vec![&tokens]),
        ("tokens(0) & causal & window(9)", vec![&tokens]),
        ("tokens(0)", vec![&far]),
        ("groups(0, 1)", vec![&far, &groups]),
        ("causal & groups(0, 1)", vec![&far, &groups]),
        ("causal & blocks(0, 4) & blocks(1, 8)", vec![&blocks, &far]),
        ("causal & (blocks(0, 4) | window(3))", vec![&blocks]),
        ("window(2) | tokens(0)", vec![&far]),
        ("causal & window(3) | ends_before(8, 1)", vec![]),
        ("causal & (window(3) | prefix(2))", vec![]),
    ] {
        let operands: Vec<Tensor> = operands.into_iter().cloned().collect();
        Case::new(size, domain, &operands).check();
    }
}

/// A random domain of at most `depth` joins; operands are those of `random_domains`.
fn random_domain(r: &mut Random, depth: i64) -> Domain {
    if depth > 0 && r.int(0, 3) > 0 {
        let (a, b) = (Box::new(random_domain(r, depth - 1)), Box::new(random_domain(r, depth - 1)));
        return if r.int(0, 3) > 0 { Domain::And(a, b) } else { Domain::Or(a, b) };
    }
    match r.int(0, 9) {
        0 => Domain::Full,
        1 | 2 => Domain::Causal,
        3 => Domain::Window(r.int(1, 8)),
        4 => Domain::EndsBefore { length: r.int(1, 6), stride: r.int(1, 4) },
        5 => Domain::EndsAt(1),
        6 => Domain::Segments(2, 1),
        7 => Domain::Blocks { idx: 0, size: r.int(1, 7) },
        _ if r.int(0, 2) == 0 => Domain::Groups { idx: 0, of: 1 },
        _ => Domain::Tokens(0),
    }
}

#[test]
fn random_domains() {
    let mut r = Random::new(11);
    for _ in 0..120 {
        let (t, s, g) = (r.int(1, 14), r.int(0, 20), r.int(1, 3));
        let size = Size { b: 2, t, s, h: g * r.int(1, 4), g, dk: r.int(1, 5), dv: r.int(1, 5) };
        let domain = random_domain(&mut r, 3);
        let mut numbers = |shape: &[i64]| i32s(shape, (0..shape.iter().product()).map(|_| r.int(-1, 6)).collect::<Vec<_>>());
        let pool = [numbers(&[2, t, g, 3]), numbers(&[2, s]), numbers(&[2, t])];
        let mut case = Case::new(size, "full", &pool[..domain.num_operands()]);
        case.domain = domain;
        // NaN in some vector of q, k or v, which only what sees it may get.
        let mut data = case.random();
        let spoilt = &mut data[r.int(0, 3) as usize];
        let (n, len) = (spoilt.shape[3] as usize, spoilt.data.len() as i64);
        if len > 0 && r.int(0, 3) > 0 {
            let at = r.int(0, len) as usize / n * n;
            spoilt.data[at..at + n].fill(f64::NAN);
        }
        case.data = Some(data);
        let queries =
            if crate::kernels::domain::driving_list(&case.domain).is_some() { 1 } else { [1, 2, 4][r.int(0, 3) as usize] };
        case.check_with(Tiling { queries, keys: 8 });
    }
}

#[test]
fn fewer_or_more_queries_than_keys() {
    for (t, s) in [(1, 20), (3, 20), (20, 3), (7, 0), (0, 7)] {
        let size = Size { t, s, ..SMALL };
        for domain in ["full", "causal", "causal & window(5)", "ends_before(2, 2)"] {
            Case::new(size, domain, &[]).check();
        }
        Case::new(size, "causal & blocks(0, 4)", &[lists(size, 2, |_| s / 4 + 1)]).check();
    }
}

#[test]
fn groups_of_heads() {
    for heads in [1, 2, 3, 4, 8] {
        for g in [1, 2] {
            let size = Size { b: 1, h: heads * g, g, dk: 3, dv: 5, ..SMALL }.tokens(18);
            Case::new(size, "causal", &[]).check();
            Case::new(size, "causal & blocks(0, 8)", &[lists(size, 2, |t| t / 8 + 1)]).check();
        }
    }
}

#[test]
fn lists_with_duplicates_and_holes_count_each_key_once() {
    let size = SMALL.tokens(16);
    let repeated = i32s(&[2, 16, 2, 4], [1, -1, 1, 0].into_iter().cycle().take(256));
    Case::new(size, "blocks(0, 8)", std::slice::from_ref(&repeated)).check();
    Case::new(size, "causal & tokens(0)", &[repeated]).check();
    Case::new(size, "blocks(0, 8)", &[i32s(&[2, 16, 2, 3], vec![-1; 192])]).check();
    Case::new(size, "tokens(0)", &[i32s(&[2, 16, 2, 0], vec![])]).check();
}

#[test]
fn packed_sequences_of_one_token() {
    let size = Size { b: 1, ..SMALL }.tokens(40);
    let segment = |i: i64| {
        if i < 19 {
            0
        } else if i < 20 {
            1
        } else if i < 21 {
            2
        } else {
            3
        }
    };
    let segments = i32s(&[1, 40], (0..40).map(segment));
    Case::new(size, "causal & segments(0, 0)", std::slice::from_ref(&segments)).check();
    Case::new(size, "causal & segments(0, 0) & blocks(1, 8)", &[segments, lists(size, 3, |t| t / 8 + 1)]).check();
}

#[test]
fn equal_and_huge_scores() {
    let size = SMALL.tokens(20);
    let full = |x: f64, shape: &[i64]| Tensor::full(DType::F64, shape, x);
    let v = Random::new(2).tensor(DType::F64, &[2, 20, 2, 3]);
    for q in [0.0, 1.0, 1e4] {
        let data = Some([full(q, &[2, 20, 4, 4]), full(1.0, &[2, 20, 2, 4]), v.clone()]);
        Case { data, tolerance: 1e-9, ..Case::new(size, "causal", &[]) }.check();
    }
    let mut case = Case::new(size, "causal", &[]);
    let [q, mut k, v] = case.random();
    k.data.iter_mut().step_by(7).for_each(|x| *x *= 1e3);
    case.data = Some([q, k, v]);
    case.tolerance = 1e-9;
    case.check();
}

#[test]
fn what_is_not_seen_does_not_leak() {
    let size = Size { b: 1, ..SMALL }.tokens(24);
    let blocks = i32s(&[1, 24, 2, 2], (0..24).flat_map(|t| [0, t / 8, 0, t / 8]));
    for poison in [f64::NAN, f64::INFINITY] {
        // Keys 8..16 are bad: whole blocks for the lists, later or other keys for the rest.
        for (domain, operands) in [
            ("causal", vec![]),
            ("causal & window(4)", vec![]),
            ("blocks(0, 8)", vec![blocks.clone()]),
            ("causal & blocks(0, 8)", vec![blocks.clone()]),
            ("causal & (blocks(0, 8) | window(2))", vec![blocks.clone()]),
            ("segments(0, 0)", vec![i32s(&[1, 24], (0..24).map(|s| s / 8))]),
        ] {
            let mut case = Case::new(size, domain, &operands);
            let [q, k, v] = case.random();
            let spoil = |x: &Tensor, n: usize| {
                let mut x = x.clone();
                x.data[8 * n..16 * n].fill(poison);
                x
            };
            case.data = Some([q.clone(), k.clone(), spoil(&v, 2 * 3)]);
            case.check();
            if poison.is_nan() {
                case.data = Some([q.clone(), spoil(&k, 2 * 4), v.clone()]);
                case.check();
                case.data = Some([spoil(&q, 4 * 4), k, v]);
                case.check();
            }
        }
    }
}

#[test]
fn keys_of_infinite_distance() {
    // Score -inf, so weight 0 and finite o; but 0·inf in dq, for the rows that see the key and for no other.
    let mut case = Case::new(Size { b: 1, ..SMALL }.tokens(12), "causal", &[]);
    let [_, mut k, v] = case.random();
    k.data[5 * 8..6 * 8].fill(f64::INFINITY);
    case.data = Some([Tensor::full(DType::F64, &[1, 12, 4, 4], -1.0), k, v]);
    case.check();
}

#[test]
fn narrow_dtypes() {
    // Scores below 4, so each term of o and of the sums errs by a few roundings of f32; the result rounds once to the dtype.
    let size = SMALL.tokens(33);
    for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::BF16, 2f64.powi(-7)), (DType::F16, 2f64.powi(-10))] {
        Case { dtype, tolerance, ..Case::new(size, "causal", &[]) }.check();
        Case { dtype, tolerance, ..Case::new(size, "causal & blocks(0, 8)", &[lists(size, 2, |t| t / 8 + 1)]) }.check();
    }
}

#[test]
fn problems_come_from_ops() {
    let ty = |shape: &str| {
        let dims = shape.split(' ').map(|d| d.parse().expect("a dim"));
        base::TensorType::new(DType::BF16, dims.collect::<Vec<Dim>>())
    };
    let (q, k, v, ends) = (ty("B T 8 64"), ty("B S 2 64"), ty("B S 2 32"), ty("B S"));
    let attend = Attend { domain: "causal & ends_at(0)".parse().expect("a domain"), scale: Scalar::new(0.5) };
    let p = Problem::new(&attend, &[&q, &k, &v, &ends], 3).expect("constant heads");
    assert_eq!((p.h, p.g, p.dk, p.dv, p.scale), (8, 2, 64, 32, 0.5));
    assert_eq!((p.t, p.s, p.operands), (Dim::sym("T"), Dim::sym("S"), vec![ends.clone()]));
    let unknown = ty("B T H 64");
    let error = Problem::new(&attend, &[&unknown, &k, &v, &ends], 3).map(|p| p.h);
    assert_eq!(error, Err(("the number of query heads", Dim::sym("H"))));
}

#[test]
fn default_tilings_fit() {
    for (h, g, d) in [(8, 2, 32), (64, 4, 128), (1, 1, 8), (128, 1, 192)] {
        for domain in ["causal", "causal & blocks(0, 64)"] {
            let operands = if domain.contains("blocks") { vec![i32s(&[1, 1, g, 1], vec![0; g as usize])] } else { vec![] };
            let p = Case::new(Size { b: 1, t: 1, s: 1, h, g, dk: d, dv: d }, domain, &operands).problem(1.0);
            for tiling in [host_attend::default_tiling(&p), host_attend_grad::default_tiling(&p)] {
                assert!(Tiling::legal(&p).contains(&tiling), "{tiling:?}");
                assert!(h / g > 32 || tiling.queries == 1 || tiling.queries * h / g <= 32, "{tiling:?}");
            }
        }
    }
}

#[test]
fn keys_after_a_prefix_are_seen_from_where_others_see_them() {
    // Of 16 tokens, for four keys at a time: the first query that sees some, and one past the last.
    for (domain, want) in [
        ("prefix(5)", [[0, 16], [0, 16], [0, 0], [0, 0]]),
        ("causal | prefix(5)", [[0, 16], [0, 16], [8, 16], [12, 16]]),
        ("causal & (prefix(5) | window(2))", [[0, 16], [4, 16], [8, 13], [12, 16]]),
    ] {
        let n = Dim::from(16);
        let domain = domain.parse().expect("a domain");
        let (b, t, s, operands) = (Dim::from(1), n.clone(), n, Vec::new());
        let p = Problem {
            dtype: DType::F32,
            b,
            t,
            s,
            h: 1,
            g: 1,
            dk: 8,
            dv: 8,
            domain,
            scale: 1.0,
            operands,
            distinct: false,
            shared: false,
        };
        let mut b = Build::new("ranges");
        let out = b.write("y", DType::I32, Dim::from(8));
        let [t, s, zero] = [16, 16, 0].map(Expr::int);
        let scene = Scene { problem: &p, operands: Vec::new(), t, s, batch: zero.clone(), group: zero };
        for k in 0..4 {
            let (lo, hi) = scene.queries(&mut b, &p.domain, &Expr::int(4 * k), &Expr::int(4 * k + 3));
            // None is from anywhere.
            let lo = b.bind(Expr::select(Expr::lt(lo.clone(), hi.clone()), lo, Expr::int(0)));
            b.store(out, Expr::int(2 * k), lo.cast(DType::I32));
            b.store(out, Expr::int(2 * k + 1), hi.cast(DType::I32));
        }
        let got = results(&b.finish(), &[], &[8], &DimEnv::new(), false);
        assert_eq!(got[0], want.concat().into_iter().map(f64::from).collect::<Vec<_>>(), "{:?}", p.domain);
    }
}
