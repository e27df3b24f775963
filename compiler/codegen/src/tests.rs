mod maps;
mod programs;
mod ptx;

use crate::{Jit, Options, emit_llvm, emit_objects, emit_objects_for};
use base::{DType, Dim};
use graph::op::{MapFn, ReduceFn, Scalar};
use tile::{
    Access, Expr, Kernel, LoopKind, Stmt,
    ir::{Dot, TileRef},
};

type Entry = unsafe extern "C" fn(*const *mut u8, *const i64, i64, i64);

fn run(kernels: &[Kernel], calls: &mut [(usize, Vec<*mut u8>, Vec<i64>, i64)]) {
    let jit = Jit::load(&emit_objects(kernels).expect("it compiles")).expect("it links");
    for (k, buffers, dims, grid) in calls {
        let f = jit.symbol(&kernels[*k].name).expect("the symbol is there");
        // SAFETY: the symbol is an entry point, and the test's buffers have the sizes its kernel touches.
        unsafe { std::mem::transmute::<*const (), Entry>(f)(buffers.as_ptr(), dims.as_ptr(), 0, *grid) };
    }
}

fn ptr<T>(v: &mut [T]) -> *mut u8 {
    v.as_mut_ptr().cast()
}

/// y[i] = f(x0[i], x1[i], …) for i below the extent.
fn map_kernel(name: &str, f: MapFn, dtype: DType, result: DType) -> Kernel {
    let mut k = Kernel::new(name);
    let n = Dim::sym("N");
    let inputs: Vec<_> = (0..f.arity())
        .map(|i| {
            let d = if f == MapFn::Select && i == 0 { DType::Bool } else { dtype };
            k.buffer(&format!("x{i}"), d, n.clone(), Access::Read)
        })
        .collect();
    let y = k.buffer("y", result, n.clone(), Access::Write);
    let hi = k.dim(&n);
    let i = k.var(DType::I64);
    let value = Expr::Map(f, inputs.iter().map(|m| Expr::load(*m, Expr::Var(i))).collect());
    let body = vec![Stmt::Store { mem: y, index: Expr::Var(i), value }];
    k.body = vec![Stmt::For { var: i, lo: Expr::int(0), hi, kind: LoopKind::Vector, body }];
    k
}

#[test]
fn every_function_of_f32_matches_its_meaning() {
    let xs: Vec<f32> = [-f32::INFINITY, -200.0, -104.5, -88.0, -10.0, -3.0, -1.0, -0.7, -0.3, -1e-3, -1e-20, -0.0]
        .into_iter()
        .chain([
            0.0,
            1e-40,
            1e-20,
            1e-3,
            0.1,
            0.5,
            0.7,
            1.0,
            1.5,
            2.0,
            3.0,
            10.0,
            30.0,
            88.0,
            88.8,
            1e4,
            1e20,
            f32::INFINITY,
            f32::NAN,
        ])
        .collect();
    let floats: Vec<MapFn> = MapFn::ALL
        .iter()
        .copied()
        .filter(|f| !matches!(f.kind(), graph::op::map::Kind::Logic | graph::op::map::Kind::Int))
        .collect();
    let kernels: Vec<Kernel> = floats
        .iter()
        .map(|f| {
            let result = if matches!(f.kind(), graph::op::map::Kind::Compare | graph::op::map::Kind::Test) {
                DType::Bool
            } else {
                DType::F32
            };
            map_kernel(&format!("f32_{}", f.name()), *f, DType::F32, result)
        })
        .collect();
    let jit = Jit::load(&emit_objects(&kernels).expect("it compiles")).expect("it links");
    for (f, k) in floats.iter().zip(&kernels) {
        let entry = jit.symbol(&k.name).expect("the symbol is there");
        let n = xs.len() * xs.len();
        let mut a: Vec<f32> = (0..n).map(|i| xs[i % xs.len()]).collect();
        let mut b: Vec<f32> = (0..n).map(|i| xs[i / xs.len()]).collect();
        let mut c: Vec<u8> = (0..n).map(|i| (i % 2) as u8).collect();
        let (mut y, mut t) = (vec![0f32; n], vec![0u8; n]);
        let boolean = k.buffers.last().expect("a result").dtype == DType::Bool;
        let out = if boolean { ptr(&mut t) } else { ptr(&mut y) };
        let buffers = match (f.arity(), *f) {
            (_, MapFn::Select) => vec![ptr(&mut c), ptr(&mut a), ptr(&mut b), out],
            (1, _) => vec![ptr(&mut a), out],
            _ => vec![ptr(&mut a), ptr(&mut b), out],
        };
        // SAFETY: the buffers have n elements.
        unsafe { std::mem::transmute::<*const (), Entry>(entry)(buffers.as_ptr(), [n as i64].as_ptr(), 0, 1) };
        for i in 0..n {
            let (p, q) = (f64::from(a[i]), f64::from(b[i]));
            let want = match *f {
                MapFn::Select => f.eval(&[f64::from(c[i]), p, q]),
                _ => f.eval(&[p, q][..f.arity()]),
            };
            if boolean {
                assert_eq!(f64::from(t[i]), want, "{} of {p} and {q}", f.name());
                continue;
            }
            if *f == MapFn::Swiglu && p < -80.0 {
                // silu underflows in f32 and not in f64: 0·∞.
                continue;
            }
            let (got, want) = (f64::from(y[i]), f64::from(want as f32));
            // Subnormal and overflowing intermediates of quotients with e^−x aside, four units in the last place.
            let slack = 6.0 * 2f64.powi(-24) * want.abs() + f64::from(f32::MIN_POSITIVE);
            let same = got == want || (got.is_nan() && want.is_nan()) || (got - want).abs() <= slack;
            assert!(same, "{} of {p} and {q}: {got:e}, not {want:e}", f.name());
        }
    }
}

#[test]
fn integers_floor_and_survive_division_by_zero() {
    let xs = [-7i32, -6, -1, 0, 1, 5, 6, i32::MAX];
    let fs = [MapFn::Add, MapFn::Sub, MapFn::FloorDiv, MapFn::Rem, MapFn::Min, MapFn::Max];
    let kernels: Vec<Kernel> = fs.iter().map(|f| map_kernel(&format!("i32_{}", f.name()), *f, DType::I32, DType::I32)).collect();
    for (k, f) in fs.iter().enumerate() {
        let n = xs.len() * xs.len();
        let mut a: Vec<i32> = (0..n).map(|i| xs[i % xs.len()]).collect();
        let mut b: Vec<i32> = (0..n).map(|i| xs[i / xs.len()]).collect();
        let mut y = vec![0i32; n];
        run(&kernels, &mut [(k, vec![ptr(&mut a), ptr(&mut b), ptr(&mut y)], vec![n as i64], 1)]);
        for i in 0..n {
            let want = f.eval(&[f64::from(a[i]), f64::from(b[i])]);
            if want.abs() < 2e9 {
                assert_eq!(f64::from(y[i]), want, "{} of {} and {}", f.name(), a[i], b[i]);
            }
        }
    }
}

#[test]
fn narrow_floats_round_to_nearest_even() {
    for (dtype, bytes) in [(DType::BF16, 2), (DType::F16, 2), (DType::E4M3, 1)] {
        // x in f32 to the dtype in memory, and back.
        let mut k = Kernel::new("narrow");
        let n = Dim::sym("N");
        let x = k.buffer("x", DType::F32, n.clone(), Access::Read);
        let z = k.buffer("z", dtype, n.clone(), Access::ReadWrite);
        let y = k.buffer("y", DType::F32, n.clone(), Access::Write);
        let (hi, i, j) = (k.dim(&n), k.var(DType::I64), k.var(DType::I64));
        let store = |mem, i, value| vec![Stmt::Store { mem, index: Expr::Var(i), value }];
        let looped = |var, hi: Expr, body| Stmt::For { var, lo: Expr::int(0), hi, kind: LoopKind::Vector, body };
        k.body = vec![
            looped(i, hi.clone(), store(z, i, Expr::load(x, Expr::Var(i)))),
            looped(j, hi, store(y, j, Expr::load(z, Expr::Var(j)))),
        ];
        let mut xs: Vec<f32> = (0..4000).map(|i| ((i * 7919) % 4001) as f32 * 0.123 - 246.0).collect();
        xs.extend([0.0, -0.0, 1e-3, 1.5e-2, 0.0009, 447.0, 1e9, -1e9, f32::NAN, 1.0625, 1.1875]);
        let n = xs.len();
        let (mut z, mut y) = (vec![0u8; n * bytes], vec![0f32; n]);
        run(&[k], &mut [(0, vec![ptr(&mut xs), ptr(&mut z), ptr(&mut y)], vec![n as i64], 1)]);
        for (x, y) in xs.iter().zip(&y) {
            let want = dtype.round(f64::from(*x));
            assert!(f64::from(*y) == want || (want.is_nan() && y.is_nan()), "{dtype} of {x}: {y}, not {want}");
        }
    }
}

/// out[r] = f over the row.
fn row_kernel(name: &str, f: ReduceFn, first: f64) -> Kernel {
    let mut k = Kernel::new(name);
    let n = Dim::sym("N");
    let x = k.buffer("x", DType::F32, Dim::sym("R") * n.clone(), Access::Read);
    let y = k.buffer("y", DType::F32, Dim::sym("R"), Access::Write);
    let (hi, acc, i) = (k.dim(&n), k.var(DType::F32), k.var(DType::I64));
    let at = k.block() * hi.clone() + Expr::Var(i);
    let sum = vec![Stmt::Accumulate(acc, f, Expr::load(x, at))];
    k.body = vec![
        Stmt::Var(acc, Expr::Const(Scalar::new(first), DType::F32)),
        Stmt::For { var: i, lo: Expr::int(0), hi, kind: LoopKind::Vector, body: sum },
        Stmt::Store { mem: y, index: k.block(), value: Expr::Var(acc) },
    ];
    k
}

#[test]
fn rows_reduce_and_keep_nan() {
    let kernels = [row_kernel("rows_sum", ReduceFn::Sum, 0.0), row_kernel("rows_max", ReduceFn::Max, f64::NEG_INFINITY)];
    for n in [0usize, 1, 7, 64, 1000] {
        let mut x: Vec<f32> = (0..3 * n).map(|i| ((i * 37) % 101) as f32 - 50.0).collect();
        if n > 5 {
            x[n + 3] = f32::NAN;
        }
        for k in 0..2 {
            let mut y = vec![0f32; 3];
            run(&kernels, &mut [(k, vec![ptr(&mut x), ptr(&mut y)], vec![n as i64], 3)]);
            for r in 0..3 {
                let row = &x[r * n..(r + 1) * n];
                let want = if k == 0 {
                    row.iter().sum::<f32>()
                } else {
                    row.iter().fold(f32::NEG_INFINITY, |a, b| if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(*b) })
                };
                assert!(
                    (y[r] - want).abs() < 1e-2 || y[r] == want || (y[r].is_nan() && want.is_nan()),
                    "{k} {n} {r}: {} {want}",
                    y[r]
                );
            }
        }
    }
}

#[test]
fn loops_branches_and_searches() {
    // y[b] = the first i with x[i] > b, or -1; computed with while and if.
    let mut k = Kernel::new("search");
    let n = Dim::sym("N");
    let x = k.buffer("x", DType::I32, n.clone(), Access::Read);
    let y = k.buffer("y", DType::I64, Dim::sym("R"), Access::Write);
    let (hi, i) = (k.dim(&n), k.var(DType::I64));
    let found = k.var(DType::I64);
    let last = Expr::minimum(Expr::Var(i), hi.clone() - Expr::int(1));
    let more = Expr::and(Expr::lt(Expr::Var(i), hi.clone()), Expr::le(Expr::load(x, last).cast(DType::I64), k.block()));
    k.body = vec![
        Stmt::Var(i, Expr::int(0)),
        Stmt::Var(found, Expr::int(-1)),
        Stmt::While { cond: more, body: vec![Stmt::Assign(i, Expr::Var(i) + Expr::int(1))] },
        Stmt::If { cond: Expr::lt(Expr::Var(i), hi), then: vec![Stmt::Assign(found, Expr::Var(i))], otherwise: vec![] },
        Stmt::Store { mem: y, index: k.block(), value: Expr::Var(found) },
    ];
    let (mut x, mut y) = (vec![0i32, 3, 1, 5], vec![0i64; 7]);
    run(&[k], &mut [(0, vec![ptr(&mut x), ptr(&mut y)], vec![4], 7)]);
    assert_eq!(y, [1, 1, 1, 3, 3, -1, -1]);
}

#[test]
fn tile_products_of_any_shape() {
    for (m, n, k) in [(1, 1, 1), (3, 5, 7), (4, 8, 4), (9, 17, 6), (16, 64, 64), (5, 32, 3)] {
        for (unit, accumulate) in [(true, false), (true, true), (false, false)] {
            let mut kernel = Kernel::new("dot");
            let buffer = |kernel: &mut Kernel, name, elems: usize, access| {
                kernel.buffer(name, DType::F32, Dim::from(elems as i64), access)
            };
            let a = buffer(&mut kernel, "a", m * k, Access::Read);
            let b = buffer(&mut kernel, "b", k * n, Access::Read);
            let c = buffer(&mut kernel, "c", m * n, Access::ReadWrite);
            let tile = |mem, row: usize, col: usize| TileRef {
                mem,
                base: Expr::int(0),
                row: Expr::int(row as i64),
                col: Expr::int(col as i64),
            };
            let (br, bc) = if unit { (n, 1) } else { (1, k) };
            let [em, en, ek] = [m, n, k].map(|x| Expr::int(x as i64));
            kernel.body = vec![Stmt::Dot(Dot {
                m: em,
                n: en,
                k: ek,
                a: tile(a, k, 1),
                b: tile(b, br, bc),
                c: tile(c, n, 1),
                accumulate,
                counted: None,
            })];
            let fill = |count: usize, s: usize| (0..count).map(|i| ((i * s) % 13) as f32 - 6.0).collect::<Vec<f32>>();
            let (mut a, mut b, mut c) = (fill(m * k, 5), fill(k * n, 7), fill(m * n, 3));
            let old = c.clone();
            run(&[kernel], &mut [(0, vec![ptr(&mut a), ptr(&mut b), ptr(&mut c)], vec![], 1)]);
            for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                let sum: f32 = (0..k).map(|l| a[i * k + l] * b[l * br + j * bc]).sum();
                let want = sum + if accumulate { old[i * n + j] } else { 0.0 };
                assert_eq!(c[i * n + j], want, "{m}x{n}x{k} unit {unit} accumulate {accumulate} at {i},{j}");
            }
        }
    }
}

#[test]
fn scratch_memory_has_a_limit() {
    let mut k = Kernel::new("large");
    k.scratch("s", DType::F64, 1 << 15);
    assert!(emit_objects(&[k.clone()]).is_ok());
    k.scratch("t", DType::Bool, 1);
    let error = emit_objects(&[k]).expect_err("it is too large").0;
    assert!(error.contains("large") && error.contains("262208") && error.contains("262144"), "{error}");
}

#[test]
fn a_named_processor_is_compiled_for() {
    // Sines and cosines: both objects have the function of eight lanes.
    let kernels = ["a", "b"].map(|name| map_kernel(name, MapFn::Sin, DType::F32, DType::F32));
    let options = Options { cpu: Some("x86-64".into()), opt_level: 1 };
    let objects = emit_objects_for(&kernels, &options).expect("it compiles");
    assert_ne!(objects, emit_objects_for(&kernels, &Options { cpu: Some("x86-64-v3".into()), ..options }).expect("it compiles"));
    let jit = Jit::load(&objects).expect("it links");
    let (mut x, mut y) = ((0..99).map(|i| i as f32 * 3e3).collect::<Vec<f32>>(), vec![0f32; 99]);
    for k in &kernels {
        let entry = jit.symbol(&k.name).expect("the symbol is there");
        // SAFETY: the buffers have 99 elements.
        unsafe { std::mem::transmute::<*const (), Entry>(entry)([ptr(&mut x), ptr(&mut y)].as_ptr(), [99].as_ptr(), 0, 1) };
        assert!(x.iter().zip(&y).all(|(x, y)| (x.sin() - y).abs() < 1e-6), "{y:?}");
    }
}

#[test]
fn the_same_kernels_give_the_same_bytes_and_vectors() {
    let kernels = [row_kernel("rows", ReduceFn::Sum, 0.0), map_kernel("exp", MapFn::Exp, DType::F32, DType::F32)];
    assert_eq!(emit_objects(&kernels).expect("it compiles"), emit_objects(&kernels).expect("it compiles"));
    if std::arch::is_x86_feature_detected!("avx2") {
        let text = emit_llvm(&kernels).expect("it compiles");
        assert!(text.contains("<8 x float>") || text.contains("<16 x float>"), "{text}");
    }
}
