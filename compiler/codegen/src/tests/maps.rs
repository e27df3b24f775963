//! Every elementwise function in every dtype against its meaning, and every conversion.

use super::{Entry, map_kernel, ptr};
use crate::{Jit, emit_objects};
use base::{DType, Dim};
use graph::op::{MapFn, map::Kind};
use tile::{Access, Expr, Kernel, LoopKind, Stmt};

/// Values as bytes of a memory dtype.
fn pack(dtype: DType, xs: &[f64]) -> Vec<u64> {
    let bytes: Vec<u8> = xs
        .iter()
        .flat_map(|x| match dtype {
            DType::F64 => x.to_ne_bytes().to_vec(),
            DType::F32 => (*x as f32).to_ne_bytes().to_vec(),
            DType::I64 => (*x as i64).to_ne_bytes().to_vec(),
            DType::I32 => (*x as i32).to_ne_bytes().to_vec(),
            DType::Bool => vec![u8::from(*x != 0.0)],
            DType::TF32 | DType::BF16 | DType::F16 | DType::E4M3 => unreachable!("not a dtype of variables"),
        })
        .collect();
    let words = bytes.len().div_ceil(8);
    let padded = bytes.into_iter().chain(std::iter::repeat(0)).take(words * 8).collect::<Vec<_>>();
    padded.chunks_exact(8).map(|c| u64::from_ne_bytes(c.try_into().expect("eight bytes"))).collect()
}

/// The values behind the bytes.
fn unpack(dtype: DType, words: &[u64], n: usize) -> Vec<f64> {
    let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
    let size = dtype.bytes();
    bytes
        .chunks_exact(size)
        .take(n)
        .map(|c| match dtype {
            DType::F64 => f64::from_ne_bytes(c.try_into().expect("eight bytes")),
            DType::F32 => f64::from(f32::from_ne_bytes(c.try_into().expect("four bytes"))),
            DType::I64 => i64::from_ne_bytes(c.try_into().expect("eight bytes")) as f64,
            DType::I32 => f64::from(i32::from_ne_bytes(c.try_into().expect("four bytes"))),
            DType::Bool => f64::from(c[0]),
            DType::TF32 | DType::BF16 | DType::F16 | DType::E4M3 => unreachable!("not a dtype of variables"),
        })
        .collect()
}

pub(super) fn takes(f: MapFn, dtype: DType) -> bool {
    match f.kind() {
        Kind::Float | Kind::Test => dtype.is_float(),
        Kind::Number => dtype != DType::Bool,
        Kind::Int => dtype.is_int(),
        Kind::Compare | Kind::Select => true,
        Kind::Logic => dtype == DType::Bool,
    }
}

pub(super) fn result(f: MapFn, dtype: DType) -> DType {
    match f.kind() {
        Kind::Compare | Kind::Logic | Kind::Test => DType::Bool,
        Kind::Float | Kind::Number | Kind::Int | Kind::Select => dtype,
    }
}

/// Numbers to try: those where functions change their course, and a spread of magnitudes.
fn samples(dtype: DType) -> Vec<f64> {
    let mut xs = vec![0.0, 1.0, 2.0, 3.0, 7.0, 10.0, 63.0, 1000.0];
    match dtype {
        DType::F64 | DType::F32 => {
            xs.extend([1e-45, 1e-40, 1e-38, 1e-20, 1e-6, 1e-3, 0.1, 0.3, 0.5, 0.625, 0.7, 0.9, 0.99, 1.01, 1.41, 1.5]);
            xs.extend([2.5, 3.9, 4.1, 5.0, 8.5, 9.1, 20.0, 44.0, 60.0, 87.0, 88.7, 88.8, 104.5, 200.0, 700.0, 1e10, 1e20]);
            xs.extend([f64::INFINITY, f64::NAN]);
        }
        DType::I64 => xs.extend([2f64.powi(40), 2f64.powi(52)]),
        DType::I32 => xs.extend([f64::from(i32::MAX), 65536.0]),
        DType::Bool => return vec![0.0, 1.0],
        DType::TF32 | DType::BF16 | DType::F16 | DType::E4M3 => unreachable!("not a dtype of variables"),
    }
    let negated: Vec<f64> = xs.iter().map(|x| -x).collect();
    xs.extend(negated);
    if dtype == DType::I32 {
        xs.push(f64::from(i32::MIN));
    }
    xs.iter().map(|x| dtype.round(*x)).collect()
}

/// Units in the last place that a float function may be off, beside the rounding of the reference.
fn slack(f: MapFn, dtype: DType) -> f64 {
    match f {
        // Two roundings.
        MapFn::Rsqrt => 1.5,
        MapFn::Exp | MapFn::Log | MapFn::Sin | MapFn::Cos | MapFn::Pow => 1.5,
        // The reference itself is good to 1e-15.
        MapFn::Erf if dtype == DType::F64 => 8.0,
        MapFn::Tanh | MapFn::Sigmoid | MapFn::Silu | MapFn::Softplus | MapFn::Erf => 3.0,
        // The reference multiplies in f64 what we round before.
        MapFn::Swiglu => 4.0,
        _ if dtype == DType::F32 => 0.5,
        _ => 0.0,
    }
}

fn ulp(x: f64, dtype: DType) -> f64 {
    match dtype {
        DType::F32 => {
            let a = (x.abs() as f32).min(f32::MAX);
            f64::from(a) - f64::from(f32::from_bits(a.to_bits().max(1) - 1))
        }
        _ => {
            let a = x.abs().min(f64::MAX);
            a - f64::from_bits(a.to_bits().max(1) - 1)
        }
    }
}

fn entry(jit: &Jit, name: &str) -> Entry {
    let f = jit.symbol(name).expect("the symbol is there");
    // SAFETY: the symbol is an entry point.
    unsafe { std::mem::transmute::<*const (), Entry>(f) }
}

#[test]
fn every_function_of_every_dtype() {
    let cases: Vec<(MapFn, DType)> = [DType::F32, DType::F64, DType::I64, DType::I32, DType::Bool]
        .into_iter()
        .flat_map(|d| MapFn::ALL.iter().filter(move |f| takes(**f, d)).map(move |f| (*f, d)))
        .collect();
    let name = |f: MapFn, d: DType| format!("{}_{d}", f.name());
    let kernels: Vec<Kernel> = cases.iter().map(|(f, d)| map_kernel(&name(*f, *d), *f, *d, result(*f, *d))).collect();
    let jit = Jit::load(&emit_objects(&kernels).expect("it compiles")).expect("it links");
    let mut wrong = Vec::new();
    for (f, dtype) in cases {
        let xs = samples(dtype);
        let n = xs.len() * xs.len();
        let a: Vec<f64> = (0..n).map(|i| xs[i % xs.len()]).collect();
        let b: Vec<f64> = (0..n).map(|i| xs[i / xs.len()]).collect();
        let c: Vec<f64> = (0..n).map(|i| f64::from(u8::from(i % 3 == 0))).collect();
        let (mut pa, mut pb, mut pc) = (pack(dtype, &a), pack(dtype, &b), pack(DType::Bool, &c));
        let mut y = vec![0u64; n];
        let mut buffers = match (f.arity(), f) {
            (_, MapFn::Select) => vec![ptr(&mut pc), ptr(&mut pa), ptr(&mut pb)],
            (1, _) => vec![ptr(&mut pa)],
            _ => vec![ptr(&mut pa), ptr(&mut pb)],
        };
        buffers.push(ptr(&mut y));
        // SAFETY: the buffers have n elements.
        unsafe { entry(&jit, &name(f, dtype))(buffers.as_ptr(), [n as i64].as_ptr(), 0, 1) };
        let got = unpack(result(f, dtype), &y, n);
        for i in 0..n {
            let want = match f {
                MapFn::Select => f.eval(&[c[i], a[i], b[i]]),
                _ => f.eval(&[a[i], b[i]][..f.arity()]),
            };
            let beyond = |x: f64| !dtype.is_float() && x.abs() > 2f64.powi(if dtype == DType::I32 { 31 } else { 53 }) - 1.0;
            // Half of a subnormal is 0 in f32 and not in f64, and so is silu(−80); then a great factor.
            let vanishes = f == MapFn::Swiglu && dtype == DType::F32 && (a[i] < -80.0 || a[i].abs() < 1e-37);
            if beyond(want) || vanishes {
                continue;
            }
            let floor = if slack(f, dtype) > 0.5 { 1e-36 } else { 0.0 };
            let rounded = if result(f, dtype).is_float() { dtype.round(want) } else { want };
            let same = got[i] == rounded
                || (got[i].is_nan() && rounded.is_nan())
                || (got[i] - want).abs() <= slack(f, dtype) * ulp(want, dtype) + floor;
            if !same {
                wrong.push(format!("{} {dtype} of {:e} and {:e}: {:e}, not {rounded:e}", f.name(), a[i], b[i], got[i]));
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong[..wrong.len().min(30)].join("\n"));
}

#[test]
fn vectorised_functions_are_accurate_over_their_range() {
    // Greatest error in units in the last place, over a dense sample.
    let cases = [
        (MapFn::Exp, -87.3f32, 88.7, 1.2),
        (MapFn::Log, 1e-37, 10.0, 1.2),
        (MapFn::Log, 0.5, 2.0, 1.2),
        (MapFn::Tanh, -10.0, 10.0, 2.5),
        (MapFn::Sigmoid, -80.0, 20.0, 2.5),
        (MapFn::Silu, -80.0, 20.0, 3.0),
        (MapFn::Softplus, -80.0, 40.0, 2.5),
        (MapFn::Erf, -4.5, 4.5, 2.5),
        (MapFn::Silu, -92.0, -80.0, 3.0),
        (MapFn::Sin, -30.0, 30.0, 2.0),
        (MapFn::Cos, -30.0, 30.0, 2.0),
        (MapFn::Sin, -1e5, 1e5, 2.0),
        (MapFn::Sin, 9e4, 1.1e5, 2.0),
        (MapFn::Cos, -1.1e5, -9e4, 2.0),
        (MapFn::Cos, 1e4, 1e9, 2.0),
    ];
    let kernels: Vec<Kernel> =
        cases.iter().enumerate().map(|(k, c)| map_kernel(&format!("f{k}"), c.0, DType::F32, DType::F32)).collect();
    let jit = Jit::load(&emit_objects(&kernels).expect("it compiles")).expect("it links");
    for (k, (f, lo, hi, bound)) in cases.into_iter().enumerate() {
        let n = 200_000;
        let mut x: Vec<f32> = (0..n).map(|i| lo + (hi - lo) * (i as f32 / n as f32)).collect();
        let mut y = vec![0f32; n];
        // SAFETY: the buffers have n elements.
        unsafe { entry(&jit, &format!("f{k}"))([ptr(&mut x), ptr(&mut y)].as_ptr(), [n as i64].as_ptr(), 0, 1) };
        let error = |i: usize| {
            let want = f.eval(&[f64::from(x[i])]);
            (f64::from(y[i]) - want).abs() / ulp(want, DType::F32).max(f64::from(f32::MIN_POSITIVE) * 2f64.powi(-23))
        };
        let worst = (0..n).max_by(|a, b| error(*a).total_cmp(&error(*b))).expect("a sample");
        println!("{}: {} ulp at {}", f.name(), error(worst), x[worst]);
        assert!(error(worst) <= bound, "{} of {}: {}, {} ulp", f.name(), x[worst], y[worst], error(worst));
    }
}

#[test]
fn powers_are_accurate_and_keep_special_cases() {
    let k = map_kernel("pow", MapFn::Pow, DType::F32, DType::F32);
    let jit = Jit::load(&emit_objects(&[k]).expect("it compiles")).expect("it links");
    let special = [0.0f32, 1.0, 2.0, 3.0, 0.5, 1e-40, 1e38, f32::INFINITY];
    let special: Vec<f32> = special.iter().flat_map(|x| [*x, -x]).chain([f32::NAN]).collect();
    let pairs = special.iter().flat_map(|x| special.iter().map(move |y| (*x, *y)));
    let dense = (0..100_000).map(|i| (1e-3 + i as f32 * 3e-3, -9.0 + (i % 1000) as f32 * 0.0181));
    let (mut x, mut y): (Vec<f32>, Vec<f32>) = pairs.chain(dense).unzip();
    let mut z = vec![0f32; x.len()];
    let n = x.len() as i64;
    // SAFETY: the buffers have n elements.
    unsafe { entry(&jit, "pow")([ptr(&mut x), ptr(&mut y), ptr(&mut z)].as_ptr(), [n].as_ptr(), 0, 1) };
    for ((x, y), z) in x.iter().zip(&y).zip(&z) {
        let want = f64::from(*x).powf(f64::from(*y)) as f32;
        let close = (f64::from(*z) - f64::from(want)).abs() <= ulp(f64::from(want), DType::F32);
        assert!(
            *z == want && z.is_sign_negative() == want.is_sign_negative() || close || z.is_nan() && want.is_nan(),
            "{x}^{y}: {z}, not {want}"
        );
    }
}

#[test]
fn conversions_between_all_dtypes() {
    let all = [DType::F64, DType::F32, DType::I64, DType::I32, DType::Bool];
    let targets = || DType::ALL.into_iter();
    let compute = tile::ir::compute_dtype;
    let kernel = |from: DType, to: DType| {
        let mut k = Kernel::new(&format!("{from}_to_{to}"));
        let n = Dim::sym("N");
        let x = k.buffer("x", from, n.clone(), Access::Read);
        let y = k.buffer("y", compute(to), n.clone(), Access::Write);
        let (hi, i) = (k.dim(&n), k.var(DType::I64));
        let store = Stmt::Store { mem: y, index: Expr::Var(i), value: Expr::load(x, Expr::Var(i)).cast(to) };
        k.body = vec![Stmt::For { var: i, lo: Expr::int(0), hi, kind: LoopKind::Vector, body: vec![store] }];
        k
    };
    let kernels: Vec<Kernel> = all.iter().flat_map(|a| targets().map(move |b| kernel(*a, b))).collect();
    let jit = Jit::load(&emit_objects(&kernels).expect("it compiles")).expect("it links");
    let mut wrong = Vec::new();
    for (from, to) in all.iter().flat_map(|a| targets().map(move |b| (*a, b))) {
        let mut xs = samples(from);
        if from.is_float() {
            xs.extend([1.99, -1.99, 447.9, 448.1, 464.0, 464.1, 65504.0, 65519.0, 65521.0, 3e38, 1e300, 2147483648.0, -9.3e18]);
            xs = xs.into_iter().map(|x| from.round(x)).collect();
        }
        let n = xs.len();
        let (mut x, mut y) = (pack(from, &xs), vec![0u64; n]);
        // SAFETY: the buffers have n elements.
        unsafe { entry(&jit, &format!("{from}_to_{to}"))([ptr(&mut x), ptr(&mut y)].as_ptr(), [n as i64].as_ptr(), 0, 1) };
        for (x, y) in xs.iter().zip(unpack(compute(to), &y, n)) {
            let want = to.round(*x);
            if y != want && !(y.is_nan() && want.is_nan()) {
                wrong.push(format!("{from} {x:e} to {to}: {y:e}, not {want:e}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
