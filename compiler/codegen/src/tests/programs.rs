//! Whole programs, compiled for the host, spread over threads, and in the tile interpreter.

use super::{Entry, ptr};
use crate::{Jit, emit_llvm, emit_objects, emulate::Emulated};
use base::{DType, Dim, DimEnv};
use graph::op::{MapFn, ReduceFn};
use half::{bf16, f16};
use tile::{
    Expr, Kernel, LoopKind, Stmt,
    interp::{self, Options},
    ir::TileRef,
    kernels::build::{Build, div, exp, tile},
};

/// The values as a buffer of the dtype.
fn pack(dtype: DType, xs: &[f64]) -> Vec<u8> {
    xs.iter()
        .flat_map(|x| match dtype {
            DType::F64 => x.to_ne_bytes().to_vec(),
            DType::F32 | DType::TF32 => (*x as f32).to_ne_bytes().to_vec(),
            DType::BF16 => bf16::from_f64(*x).to_ne_bytes().to_vec(),
            DType::F16 => f16::from_f64(*x).to_ne_bytes().to_vec(),
            DType::I64 => (*x as i64).to_ne_bytes().to_vec(),
            DType::I32 => (*x as i32).to_ne_bytes().to_vec(),
            DType::Bool => vec![u8::from(*x != 0.0)],
            DType::E4M3 => unreachable!("its codes are tested with the narrow floats"),
        })
        .collect()
}

/// The values of a buffer of the dtype.
fn unpack(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    bytes
        .chunks_exact(dtype.bytes())
        .map(|c| match dtype {
            DType::F64 => f64::from_ne_bytes(c.try_into().expect("eight bytes")),
            DType::F32 | DType::TF32 => f64::from(f32::from_ne_bytes(c.try_into().expect("four bytes"))),
            DType::BF16 => bf16::from_ne_bytes(c.try_into().expect("two bytes")).to_f64(),
            DType::F16 => f16::from_ne_bytes(c.try_into().expect("two bytes")).to_f64(),
            DType::I64 => i64::from_ne_bytes(c.try_into().expect("eight bytes")) as f64,
            DType::I32 => f64::from(i32::from_ne_bytes(c.try_into().expect("four bytes"))),
            DType::Bool => f64::from(c[0]),
            DType::E4M3 => unreachable!("its codes are tested with the narrow floats"),
        })
        .collect()
}

/// Memory as the run-time gives it.
fn aligned(bytes: &[u8]) -> (Vec<u8>, usize) {
    let mut memory = vec![0u8; bytes.len() + 64];
    let skip = (64 - memory.as_ptr() as usize % 64) % 64;
    memory[skip..skip + bytes.len()].copy_from_slice(bytes);
    (memory, skip)
}

/// Integers around zero, exact in every dtype.
fn integers(n: usize, seed: usize) -> Vec<f64> {
    (0..n).map(|i| ((i * (2 * seed + 5) + seed) % 13) as f64 - 6.0).collect()
}

/// What a function that is passed pointers and extents leaves in the buffers.
fn called(k: &Kernel, buffers: &[Vec<f64>], dims: &DimEnv, f: impl FnOnce(&[*mut u8], &[i64])) -> Vec<Vec<f64>> {
    let mut memory: Vec<(Vec<u8>, usize)> = k.buffers.iter().zip(buffers).map(|(b, x)| aligned(&pack(b.dtype, x))).collect();
    let pointers: Vec<*mut u8> = memory.iter_mut().map(|(m, skip)| ptr(&mut m[*skip..])).collect();
    let extents: Vec<i64> = k.dims.iter().map(|d| d.eval(dims).expect("a value")).collect();
    f(&pointers, &extents);
    let back = |((m, skip), (b, x)): (&(Vec<u8>, usize), (&tile::ir::Buffer, &Vec<f64>))| {
        unpack(b.dtype, &m[*skip..*skip + x.len() * b.dtype.bytes()])
    };
    memory.iter().zip(k.buffers.iter().zip(buffers)).map(back).collect()
}

/// What blocks `first..last` of a compiled kernel leave in its buffers.
fn compiled(code: &Code, k: &Kernel, buffers: &[Vec<f64>], dims: &DimEnv, blocks: (i64, i64)) -> Vec<Vec<f64>> {
    let entry = code.host.symbol(&k.name).expect("the symbol is there");
    // SAFETY: the symbol is an entry point.
    let entry = unsafe { std::mem::transmute::<*const (), Entry>(entry) };
    // SAFETY: the interpreter finds no access out of bounds.
    called(k, buffers, dims, |b, d| unsafe { entry(b.as_ptr(), d.as_ptr(), blocks.0, blocks.1) })
}

/// Compares the kernel with the interpreter: within `slack` of the greatest value, or exactly.
fn agree(code: &Code, k: &Kernel, buffers: &[Vec<f64>], dims: &[(&str, i64)], slack: f64) {
    let want = agree_on_host(code, k, buffers, dims, slack);
    let env: DimEnv = dims.iter().map(|(name, n)| ((*name).into(), *n)).collect();
    let grid = k.grid.eval(&env).expect("a value");
    // Any number of blocks, and of them any order of threads, give the same bits.
    let mut first: Option<Vec<Vec<f64>>> = None;
    for (blocks, reversed) in [(1, false), (1, true), (3, false), (3, true)] {
        let got = called(k, buffers, &env, |b, d| unsafe {
            // SAFETY: the interpreter finds no access out of bounds.
            code.threads.run(&k.name, b, d, grid, blocks, reversed);
        });
        same(k, dims, &got, &want, slack);
        let bits = |x: &[Vec<f64>]| x.iter().flatten().map(|x| x.to_bits()).collect::<Vec<_>>();
        let first = first.get_or_insert_with(|| got.clone());
        assert!(bits(first) == bits(&got), "{} {dims:?}: {blocks} blocks, reversed {reversed}", k.name);
    }
}

/// The same on the host alone; what the interpreter gives.
fn agree_on_host(code: &Code, k: &Kernel, buffers: &[Vec<f64>], dims: &[(&str, i64)], slack: f64) -> Vec<Vec<f64>> {
    let env: DimEnv = dims.iter().map(|(name, n)| ((*name).into(), *n)).collect();
    let mut want = buffers.to_vec();
    interp::run(k, &mut want, &env, Options::default()).expect("it runs");
    let grid = k.grid.eval(&env).expect("a value");
    same(k, dims, &compiled(code, k, buffers, &env, (0, grid)), &want, slack);
    want
}

fn same(k: &Kernel, dims: &[(&str, i64)], got: &[Vec<f64>], want: &[Vec<f64>], slack: f64) {
    for ((b, got), want) in k.buffers.iter().zip(got).zip(want) {
        let scale = want.iter().filter(|x| x.is_finite()).fold(0f64, |a, x| a.max(x.abs()));
        for (i, (g, w)) in got.iter().zip(want).enumerate() {
            let same = g == w || (g.is_nan() && w.is_nan()) || (g - w).abs() <= slack * scale;
            assert!(same, "{} {dims:?}: {}[{i}] is {g:e}, not {w:e}", k.name, b.name);
        }
    }
}

/// Kernels compiled for the host's loops, and for threads.
struct Code {
    host: Jit,
    threads: Emulated,
}

fn load(kernels: &[Kernel]) -> Code {
    let host = Jit::load(&emit_objects(kernels).expect("it compiles")).expect("it links");
    Code { host, threads: Emulated::load(kernels).expect("it compiles") }
}

/// y = softmax of each row of x.
fn softmax() -> Kernel {
    let mut b = Build::new("softmax");
    let (r, n) = (Dim::sym("R"), Dim::sym("N"));
    let x = b.read("x", DType::F32, r.clone() * n.clone());
    let y = b.write("y", DType::F32, r.clone() * n.clone());
    b.kernel.grid = r;
    let n = b.dim(&n);
    let row = b.bind(b.block() * n.clone());
    let top = b.reduce(ReduceFn::Max, Build::f(DType::F32, f64::NEG_INFINITY), n.clone(), |_, i| Expr::load(x, row.clone() + i));
    let top = b.bind(Expr::Var(top));
    let sum =
        b.reduce(ReduceFn::Sum, Build::f(DType::F32, 0.0), n.clone(), |_, i| exp(Expr::load(x, row.clone() + i) - top.clone()));
    let scale = b.bind(div(Build::f(DType::F32, 1.0), Expr::Var(sum)));
    b.each(n, |b, i| {
        let at = row.clone() + i;
        b.store(y, at.clone(), exp(Expr::load(x, at) - top.clone()) * scale.clone());
    });
    b.finish()
}

#[test]
fn softmax_of_rows() {
    let k = softmax();
    let jit = load(std::slice::from_ref(&k));
    for (r, n) in [(1, 1), (3, 7), (2, 64), (5, 100), (0, 4), (4, 0)] {
        let mut x = integers((r * n) as usize, 3);
        if n == 64 {
            x[70] = f64::NAN;
        }
        if n == 100 {
            x[205] = f64::NEG_INFINITY;
        }
        let y = vec![0.0; x.len()];
        agree(&jit, &k, &[x, y], &[("R", r), ("N", n)], 2e-6);
    }
    if std::arch::is_x86_feature_detected!("avx2") {
        let text = emit_llvm(&[k]).expect("it compiles");
        let wide = |op: &str| ["<8 x float>", "<16 x float>"].iter().any(|v| text.contains(&format!("{op} {v}")));
        assert!(wide("fadd reassoc contract") && wide("fmul contract"), "{text}");
        assert!(text.contains("llvm.vector.reduce.fmax"), "{text}");
    }
}

/// y = x - max - sum of each row, which a row is read once for, or z = x - max, z = z - sum in place; the sums of all rows. With `sum` alone y = x - sum.
fn centred(dtype: DType, n: i64, in_place: bool, sum_alone: bool) -> Kernel {
    let mut b = Build::new(&format!("centred_{n}_{}", u8::from(in_place) + 2 * u8::from(sum_alone)));
    let r = Dim::sym("R");
    let all = r.clone() * Dim::from(n);
    let x = if in_place { b.update("x", dtype, all.clone()) } else { b.read("x", dtype, all.clone()) };
    let y = if in_place { x } else { b.write("y", dtype, all.clone()) };
    // What stands between two stores is computed of each element, too.
    let z = sum_alone.then(|| b.write("z", dtype, all));
    let sums = b.write("sums", dtype, r.clone());
    b.kernel.grid = r.clone();
    let r = b.dim(&r);
    b.each_row(r, 1, |b, row| {
        let start = b.bind(row.clone() * Expr::int(n));
        let of = |i: Expr| Expr::load(x, start.clone() + i);
        let most = (!sum_alone)
            .then(|| b.reduce(ReduceFn::Max, Build::f(dtype, f64::NEG_INFINITY), Expr::int(n), |_, i| of(i)))
            .map_or(Build::f(dtype, 0.0), Expr::Var);
        let sum = b.reduce(ReduceFn::Sum, Build::f(dtype, 0.0), Expr::int(n), |_, i| of(i) + most.clone());
        b.each(Expr::int(n), |b, i| {
            let at = b.bind(start.clone() + i);
            let value = b.bind(Expr::load(x, at.clone()) - most.clone() - Expr::Var(sum));
            b.store(y, at.clone(), value.clone());
            if let Some(z) = z {
                let twice = b.bind(value * Build::f(dtype, 2.0));
                b.store(z, at, twice);
            }
        });
        b.store(sums, row, Expr::Var(sum));
    });
    b.finish()
}

#[test]
fn extremes_of_each_turn_are_its_own() {
    // Neighbouring turns are taken at once; each has a variable of its own, and all have another.
    let mut b = Build::new("extremes");
    let n = Dim::sym("N");
    let (x, y) = (b.read("x", DType::F32, n.clone()), b.write("y", DType::F32, n.clone()));
    let most = b.write("most", DType::F32, Dim::from(1));
    let n = b.dim(&n);
    let all = b.var(DType::F32, Build::f(DType::F32, f64::NEG_INFINITY));
    b.each(n, |b, i| {
        let own = b.var(DType::F32, Expr::load(x, i.clone()));
        b.accumulate(own, ReduceFn::Max, Expr::load(x, i.clone()) * Build::f(DType::F32, -1.0));
        b.accumulate(all, ReduceFn::Max, Expr::load(x, i.clone()));
        b.range(Expr::int(3), |b, j| {
            let times = j.cast(DType::F32) - Build::f(DType::F32, 2.0);
            b.accumulate(own, ReduceFn::Max, Expr::load(x, i.clone()) * times);
        });
        b.store(y, i, Expr::Var(own));
    });
    b.store(most, Expr::int(0), Expr::Var(all));
    let k = b.finish();
    let code = load(std::slice::from_ref(&k));
    for n in [1, 64, 100] {
        agree(&code, &k, &[integers(n as usize, 5), vec![0.0; n as usize], vec![0.0]], &[("N", n)], 0.0);
    }
}

#[test]
fn rows_that_are_read_once_by_a_block_or_a_cluster() {
    // 16 threads of a block, 32 elements a thread: whole; a last time that some threads have nothing for; 32 threads; then clusters of 2, 4 and 8.
    for (dtype, lengths) in [(DType::F32, &[128, 100, 516, 1028, 5000][..]), (DType::F64, &[1030])] {
        let kernels: Vec<Kernel> = lengths
            .iter()
            .copied()
            .flat_map(|n| [(false, false), (true, false), (false, true)].map(|(p, s)| centred(dtype, n, p, s)))
            .collect();
        let code = load(&kernels);
        for k in &kernels {
            for r in [0, 3] {
                let elems = |b: &tile::ir::Buffer| b.elems.eval(&DimEnv::from([("R".into(), r)])).expect("known") as usize;
                let mut buffers: Vec<Vec<f64>> = k.buffers.iter().map(|b| vec![0.0; elems(b)]).collect();
                let all = buffers[0].len();
                buffers[0] = integers(all, 7);
                if r > 0 {
                    buffers[0][all / 2] = f64::NAN;
                    buffers[0][all - 1] = f64::NEG_INFINITY;
                }
                agree(&code, k, &buffers, &[("R", r)], 0.0);
            }
        }
    }
}

#[test]
fn column_sums_through_scratch() {
    for (dtype, memory) in
        [(DType::F32, DType::F32), (DType::F32, DType::BF16), (DType::F64, DType::F64), (DType::I64, DType::I64)]
    {
        let mut b = Build::new("columns");
        let (r, n) = (Dim::sym("R"), 40);
        let x = b.read("x", memory, r.clone() * Dim::from(n));
        let y = b.write("y", dtype, Dim::from(n));
        let sums = b.scratch("sums", dtype, n);
        let rows = b.dim(&r);
        let zero = Expr::Const(graph::op::Scalar::new(0.0), dtype);
        b.fill(sums, Expr::int(n), zero);
        b.range(rows, |b, i| {
            b.each(Expr::int(n), |b, j| b.add(sums, j.clone(), Expr::load(x, i.clone() * Expr::int(n) + j)));
        });
        b.each(Expr::int(n), |b, j| b.store(y, j.clone(), Expr::load(sums, j)));
        let k = b.finish();
        let jit = load(std::slice::from_ref(&k));
        for r in [0, 1, 9] {
            agree(&jit, &k, &[integers((r * n) as usize, 1), vec![0.0; n as usize]], &[("R", r)], 0.0);
        }
    }
}

#[test]
fn reductions_of_every_kind() {
    for dtype in [DType::F32, DType::F64, DType::I64, DType::I32, DType::F16, DType::BF16] {
        let compute = tile::ir::compute_dtype(dtype);
        let mut b = Build::new("reduce");
        let n = Dim::sym("N");
        let x = b.read("x", dtype, n.clone());
        let y = b.write("y", compute, Dim::from(2 * ReduceFn::ALL.len() as i64));
        let n = b.dim(&n);
        for (slot, (f, kind)) in
            ReduceFn::ALL.iter().flat_map(|f| [LoopKind::Serial, LoopKind::Vector].map(move |k| (*f, k))).enumerate()
        {
            let v = b.var(compute, Expr::Const(graph::op::Scalar::new(1.0), compute));
            b.for_(Expr::int(0), n.clone(), kind, |b, i| b.accumulate(v, f, Expr::load(x, i)));
            b.store(y, Expr::int(slot as i64), Expr::Var(v));
        }
        let k = b.finish();
        let jit = load(std::slice::from_ref(&k));
        for n in [0, 1, 5, 8, 17, 33] {
            // Products of ones, twos and their negatives stay exact.
            let x: Vec<f64> = (0..n).map(|i| [1.0, -1.0, 1.0, if i < 20 { 2.0 } else { 1.0 }][i as usize % 4]).collect();
            agree(&jit, &k, &[x.clone(), vec![0.0; 2 * ReduceFn::ALL.len()]], &[("N", n)], 0.0);
            if compute.is_float() && n > 0 {
                let mut x = x;
                x[n as usize / 2] = f64::NAN;
                agree(&jit, &k, &[x, vec![0.0; 2 * ReduceFn::ALL.len()]], &[("N", n)], 0.0);
            }
        }
    }
}

#[test]
fn ranges_of_blocks_run_alone() {
    let mut b = Build::new("blocks");
    let g = Dim::sym("G");
    let y = b.update("y", DType::I64, g.clone());
    b.kernel.grid = g;
    let block = b.block();
    b.store(y, block.clone(), Expr::load(y, block.clone()) + block * Expr::int(10) + Expr::int(1));
    let k = b.finish();
    let jit = load(std::slice::from_ref(&k));
    let env = DimEnv::from([("G".into(), 6)]);
    for (first, last) in [(0, 6), (2, 4), (5, 6), (3, 3), (4, 2)] {
        let got = compiled(&jit, &k, &[vec![7.0; 6]], &env, (first, last));
        let want: Vec<f64> = (0..6).map(|i| if (first..last).contains(&i) { 8.0 + 10.0 * i as f64 } else { 7.0 }).collect();
        assert_eq!(got[0], want, "{first}..{last}");
    }
}

#[test]
fn empty_loops_and_both_branches() {
    // Loops whose end is below their start, inside branches, around a variable declared in the loop.
    let mut b = Build::new("branches");
    let n = Dim::sym("N");
    let x = b.read("x", DType::F32, n.clone());
    let y = b.update("y", DType::F32, n.clone());
    let t = b.write("t", DType::Bool, n.clone());
    let n = b.dim(&n);
    b.range(n.clone(), |b, i| {
        let v = b.var(DType::F32, Expr::load(x, i.clone()));
        b.for_(i.clone() + Expr::int(1), n.clone() - Expr::int(3), LoopKind::Vector, |b, j| {
            b.accumulate(v, ReduceFn::Sum, Expr::load(x, j));
        });
        let positive = b.bind(Expr::lt(Build::f(DType::F32, 0.0), Expr::Var(v)));
        b.store(t, i.clone(), positive.clone());
        let then = vec![Stmt::Store { mem: y, index: i.clone(), value: Expr::Var(v) }];
        let otherwise = vec![
            Stmt::Assign(v, Expr::Var(v) * Build::f(DType::F32, 2.0)),
            Stmt::Store { mem: y, index: i.clone(), value: Expr::load(y, i) + Expr::Var(v) },
        ];
        b.push(Stmt::If { cond: positive, then, otherwise });
    });
    let k = b.finish();
    let jit = load(std::slice::from_ref(&k));
    for n in [0, 1, 2, 3, 4, 11] {
        let size = n as usize;
        agree(&jit, &k, &[integers(size, 2), integers(size, 4), vec![0.0; size]], &[("N", n)], 0.0);
    }
}

#[test]
fn a_search_ends_where_it_should() {
    // The first place in a sorted row that is not below a key.
    let mut b = Build::new("bisect");
    let (n, q) = (Dim::sym("N"), Dim::sym("Q"));
    let x = b.read("x", DType::I32, n.clone());
    let keys = b.read("keys", DType::I32, q.clone());
    let y = b.write("y", DType::I64, q.clone());
    b.kernel.grid = q;
    let n = b.dim(&n);
    let key = b.bind(Expr::load(keys, b.block()));
    let (lo, hi) = (b.var(DType::I64, Expr::int(0)), b.var(DType::I64, n));
    b.while_(Expr::lt(Expr::Var(lo), Expr::Var(hi)), |b| {
        let mid = b.bind(Expr::floor_div(Expr::Var(lo) + Expr::Var(hi), Expr::int(2)));
        let below = b.bind(Expr::lt(Expr::load(x, mid.clone()), key.clone()));
        b.push(Stmt::If {
            cond: below,
            then: vec![Stmt::Assign(lo, mid.clone() + Expr::int(1))],
            otherwise: vec![Stmt::Assign(hi, mid)],
        });
    });
    let block = b.block();
    b.store(y, block, Expr::Var(lo));
    let k = b.finish();
    let jit = load(std::slice::from_ref(&k));
    for n in [0, 1, 2, 10] {
        let x: Vec<f64> = (0..n).map(|i| f64::from(3 * i - 4)).collect();
        let keys: Vec<f64> = (-6..30).map(f64::from).collect();
        let y = vec![0.0; keys.len()];
        agree(&jit, &k, &[x, keys, y], &[("N", i64::from(n)), ("Q", 36)], 0.0);
    }
}

#[test]
fn index_arithmetic_with_and_without_signs() {
    // Quotients and remainders by constants and extents, of indices that are surely not negative and of ones that may be.
    let mut b = Build::new("indices");
    let (n, d) = (Dim::sym("N"), Dim::sym("D"));
    let divisors = 6;
    let y = b.write("y", DType::I64, n.clone() * Dim::from(4 * divisors));
    let (n, d) = (b.dim(&n), b.dim(&d));
    b.each(n.clone(), |b, i| {
        let below = i.clone() - Expr::int(20);
        let by = [Expr::int(3), Expr::int(8), d.clone(), d - Expr::int(3), Expr::int(-5), Expr::int(0)];
        for (s, d) in by.into_iter().enumerate() {
            for (t, x) in [i.clone(), below.clone()].into_iter().enumerate() {
                let at = i.clone() * Expr::int(4 * divisors) + Expr::int(4 * s as i64 + 2 * t as i64);
                b.store(y, at.clone(), Expr::floor_div(x.clone(), d.clone()));
                b.store(y, at + Expr::int(1), Expr::rem(x, d.clone()));
            }
        }
    });
    let k = b.finish();
    let jit = load(std::slice::from_ref(&k));
    for d in [0, 1, 2, 3, 7] {
        agree(&jit, &k, &[vec![0.0; 41 * 24]], &[("N", 41), ("D", d)], 0.0);
    }
}

/// c (+)= a·b, with extents passed at run time.
fn product(name: &str, dtypes: [DType; 3], forms: [bool; 2], accumulate: bool) -> Kernel {
    let mut b = Build::new(name);
    let [m, n, l] = ["M", "N", "K"].map(Dim::sym);
    let x = b.read("a", dtypes[0], m.clone() * l.clone());
    let y = b.read("b", dtypes[1], l.clone() * n.clone());
    let z = b.update("c", dtypes[2], m.clone() * n.clone());
    let [m, n, l] = [m, n, l].map(|d| b.dim(&d));
    let rows = |mem, row: &Expr| TileRef { mem, base: Expr::int(0), row: row.clone(), col: Expr::int(1) };
    let columns = |mem, col: &Expr| TileRef { mem, base: Expr::int(0), row: Expr::int(1), col: col.clone() };
    let left = if forms[0] { columns(x, &m) } else { rows(x, &l) };
    let right = if forms[1] { columns(y, &l) } else { rows(y, &n) };
    b.dot([m, n.clone(), l], left, right, rows(z, &n), accumulate);
    b.finish()
}

#[test]
fn products_of_every_small_shape() {
    let f32s = [DType::F32; 3];
    let mut kernels = Vec::new();
    for accumulate in [false, true] {
        for forms in [[false, false], [true, false], [false, true]] {
            kernels.push(product(&format!("p{}", kernels.len()), f32s, forms, accumulate));
        }
        let bf16 = [DType::BF16, DType::BF16, DType::F32];
        kernels.push(product(&format!("p{}", kernels.len()), bf16, [false, false], accumulate));
        kernels.push(product(&format!("p{}", kernels.len()), [DType::F64; 3], [false, false], accumulate));
    }
    let jit = load(&kernels);
    let mut shapes: Vec<[i64; 3]> = Vec::new();
    for m in 0..=9 {
        for n in 1..=9 {
            shapes.extend([[m, n, 0], [m, n, 1], [m, n, 3], [m, n, 4], [m, n, 9], [m, n, m + 2]]);
        }
    }
    shapes.extend([[17, 17, 17], [64, 64, 64], [17, 64, 9], [4, 64, 17], [1, 64, 64], [64, 1, 17]]);
    for k in &kernels {
        for (s, [m, n, l]) in shapes.iter().enumerate() {
            let size = |a: i64, b: i64| (a * b) as usize;
            let buffers = [integers(size(*m, *l), 1), integers(size(*l, *n), 2), integers(size(*m, *n), 3)];
            let dims = [("M", *m), ("N", *n), ("K", *l)];
            if s % 37 == 0 {
                agree(&jit, k, &buffers, &dims, 0.0);
            } else {
                agree_on_host(&jit, k, &buffers, &dims, 0.0);
            }
        }
    }
}

#[test]
fn a_product_into_a_narrow_float_rounds_once() {
    let k = product("narrow", [DType::BF16; 3], [false, false], true);
    let jit = load(std::slice::from_ref(&k));
    let (m, n, l) = (5, 16, 64);
    let values = |count: usize, seed: usize| -> Vec<f64> {
        integers(count, seed).iter().enumerate().map(|(i, x)| DType::BF16.round(x * 0.37 + i as f64 * 0.011)).collect()
    };
    agree(&jit, &k, &[values(m * l, 1), values(l * n, 2), values(m * n, 3)], &[("M", 5), ("N", 16), ("K", 64)], 2f64.powi(-9));
}

#[test]
fn tiles_inside_buffers_and_scratch() {
    // A product of sub-tiles with offsets, through scratch, leaves the elements around it alone.
    let mut b = Build::new("inside");
    let x = b.read("x", DType::F32, Dim::from(200));
    let y = b.update("y", DType::F32, Dim::from(200));
    let s = b.scratch("s", DType::F32, 64);
    b.dot([6, 7, 5].map(Expr::int), tile(x, Expr::int(3), 11), tile(x, Expr::int(80), 13), tile(s, Expr::int(2), 9), false);
    b.dot([3, 7, 6].map(Expr::int), tile(x, Expr::int(1), 8), tile(s, Expr::int(2), 9), tile(y, Expr::int(21), 10), true);
    let k = b.finish();
    let jit = load(std::slice::from_ref(&k));
    agree(&jit, &k, &[integers(200, 5), integers(200, 6)], &[], 0.0);
}

#[test]
fn functions_share_variables_and_select_both_sides() {
    let mut b = Build::new("shared");
    let n = Dim::sym("N");
    let x = b.read("x", DType::F16, n.clone());
    let y = b.write("y", DType::F16, n.clone());
    let n = b.dim(&n);
    b.each(n, |b, i| {
        let v = b.bind(Expr::load(x, i.clone()));
        let half = b.bind(v.clone() * Build::f(DType::F32, 0.5));
        let least = Expr::minimum(v.clone(), half.clone());
        let c = Expr::and(Expr::lt(half.clone(), v.clone()), Expr::map1(MapFn::IsFinite, v.clone()));
        b.store(y, i, Expr::select(c, least + half, v));
    });
    let k = b.finish();
    let jit = load(std::slice::from_ref(&k));
    for n in [0, 1, 8, 31] {
        let mut x = integers(n as usize, 7);
        if n > 9 {
            (x[3], x[9]) = (f64::NAN, f64::INFINITY);
        }
        agree(&jit, &k, &[x.clone(), x], &[("N", n)], 0.0);
    }
}

#[test]
fn neighbours_at_any_alignment() {
    // y[i] = x[i + O] + x[i], and the sum of x[i + O] over rows of N.
    for dtype in [DType::F32, DType::BF16] {
        let mut b = Build::new("neighbours");
        let (r, n, o) = (Dim::sym("R"), Dim::sym("N"), Dim::sym("O"));
        let x = b.read("x", dtype, r.clone() * n.clone() + o.clone());
        let y = b.write("y", dtype, r.clone() * n.clone());
        let s = b.write("s", DType::F32, r.clone());
        b.kernel.grid = r.ceil_div(&Dim::from(2));
        let (r, n, o) = (b.dim(&r), b.dim(&n), b.dim(&o));
        b.each_row(r, 2, |b, row| {
            let start = b.bind(row.clone() * n.clone());
            let sum = b.reduce(ReduceFn::Sum, Build::f(DType::F32, 0.5), n.clone(), |b, i| {
                let at = b.bind(start.clone() + i);
                Expr::load(x, at + o.clone())
            });
            b.store(s, row, Expr::Var(sum));
            b.each(n, |b, i| {
                let at = b.bind(start + i);
                b.store(y, at.clone(), Expr::load(x, at.clone() + o) + Expr::load(x, at));
            });
        });
        let mut k = b.finish();
        let code = load(std::slice::from_ref(&k));
        k.buffers.iter_mut().for_each(|b| b.alignment = 16);
        let aligned = load(std::slice::from_ref(&k));
        for (r, n) in [(3, 0), (1, 1), (3, 32), (3, 40), (2, 67), (5, 133)] {
            for o in [0, 1, 4, 8] {
                let buffers = [integers((r * n + o) as usize, 1), vec![0.0; (r * n) as usize], vec![0.0; r as usize]];
                for code in [&code, &aligned] {
                    agree(code, &k, &buffers, &[("R", r), ("N", n), ("O", o)], 0.0);
                }
            }
        }
    }
}

/// The greatest of each row of `n`, the sum of e^x of what is less, and with `all` also the quotients, as fused maps have them.
fn softmax_of(dtype: DType, n: i64, all: bool) -> Kernel {
    let mut b = Build::new("rows");
    let r = Dim::sym("R");
    let x = b.read("x", dtype, r.clone() * Dim::from(n));
    let y = b.write("y", dtype, r.clone() * Dim::from(n));
    let [most, sum] = ["most", "sum"].map(|name| b.write(name, DType::F32, r.clone()));
    b.kernel.grid = r.ceil_div(&Dim::from(2));
    let r = b.dim(&r);
    b.each_row(r, 2, |b, row| {
        let start = b.bind(row.clone() * Expr::int(n));
        let top = b.reduce(ReduceFn::Max, Build::f(DType::F32, f64::NEG_INFINITY), Expr::int(n), |b, i| {
            b.bind(Expr::load(x, start.clone() + i))
        });
        let powers = |b: &mut Build, i: Expr| {
            let x = b.bind(Expr::load(x, start.clone() + i));
            let less = b.bind(x - Expr::Var(top));
            b.bind(exp(less))
        };
        let whole = b.reduce(ReduceFn::Sum, Build::f(DType::F32, 0.0), Expr::int(n), powers);
        b.store(most, row.clone(), Expr::Var(top));
        b.store(sum, row, Expr::Var(whole));
        if all {
            b.each(Expr::int(n), |b, i| {
                let power = powers(b, i.clone());
                b.store(y, start.clone() + i, div(power, Expr::Var(whole)));
            });
        }
    });
    b.finish()
}

#[test]
fn long_rows_are_read_once() {
    // Rows that lanes, a block and a block of more threads keep, and such as are too long for that.
    let [f32, bf16] = [DType::F32, DType::BF16];
    for (n, dtype, all) in
        [(64, f32, true), (256, bf16, true), (1024, f32, true), (1032, bf16, true), (4212, f32, false), (4104, bf16, false)]
    {
        {
            let k = softmax_of(dtype, n, all);
            let code = load(std::slice::from_ref(&k));
            let mut known = k.clone();
            known.buffers.iter_mut().for_each(|b| b.alignment = 16);
            let aligned = load(std::slice::from_ref(&known));
            let mut x: Vec<f64> =
                integers(6 * n as usize, 3).iter().enumerate().map(|(i, x)| x * 3.0 - (i / 100 % 7) as f64).collect();
            let row = |i: i64| (i * n) as usize..((i + 1) * n) as usize;
            // A NaN, none greater than -∞, some of these, a part of a thread and more of them, and an ∞.
            x[row(1)][7] = f64::NAN;
            x[row(2)].fill(f64::NEG_INFINITY);
            x[row(3)][..n as usize / 2].fill(f64::NEG_INFINITY);
            x[row(4)][9] = f64::INFINITY;
            let zeros = vec![0.0; x.len()];
            let slack = if dtype == DType::BF16 { 4e-3 } else { 2e-6 };
            let buffers = [x, zeros, vec![0.0; 6], vec![0.0; 6]];
            agree(&code, &k, &buffers, &[("R", 6)], slack);
            agree(&aligned, &known, &buffers, &[("R", 6)], slack);
            // Where memory begins in between the bits are the same.
            let env: DimEnv = [("R".into(), 6)].into_iter().collect();
            let run = |shift: usize| {
                called(&k, &buffers, &env, |pointers, dims| {
                    let bytes: Vec<usize> = k.buffers.iter().zip(&buffers).map(|(b, x)| b.dtype.bytes() * x.len()).collect();
                    let mut moved: Vec<Vec<u64>> = bytes.iter().map(|n| vec![0; n / 8 + 10]).collect();
                    let places: Vec<*mut u8> = moved
                        .iter_mut()
                        .zip(&k.buffers)
                        .map(|(m, b)| {
                            let start: *mut u8 = m.as_mut_ptr().cast();
                            // SAFETY: there are 80 bytes more than the buffer has.
                            unsafe { start.add(start.align_offset(16) + shift * b.dtype.bytes()) }
                        })
                        .collect();
                    for ((from, to), n) in pointers.iter().zip(&places).zip(&bytes) {
                        // SAFETY: both have so many bytes, in allocations of their own.
                        unsafe { to.copy_from_nonoverlapping(*from, *n) };
                    }
                    // SAFETY: the interpreter finds no access out of bounds.
                    unsafe { code.threads.run(&k.name, &places, dims, 3, 2, false) };
                    for ((to, from), n) in pointers.iter().zip(&places).zip(&bytes) {
                        // SAFETY: as above.
                        unsafe { to.copy_from_nonoverlapping(*from, *n) };
                    }
                })
            };
            let bits = |x: Vec<Vec<f64>>| x.into_iter().flatten().map(f64::to_bits).collect::<Vec<_>>();
            assert!(bits(run(0)) == bits(run(1)), "{dtype} {n}");
        }
    }
}

#[test]
fn what_is_stored_is_wider_than_what_is_loaded() {
    // m = m / 2 + x, y = y - m / 3, as an optimizer has them: y is narrow.
    let mut b = Build::new("step");
    let n = Dim::sym("N");
    let x = b.read("x", DType::BF16, n.clone());
    let [m, y] = [("m", DType::F32), ("y", DType::BF16)].map(|(name, dtype)| b.update(name, dtype, n.clone()));
    b.kernel.grid = n.ceil_div(&Dim::from(100));
    let n = b.dim(&n);
    let first = b.bind(b.block() * Expr::int(100));
    let last = b.bind(Expr::minimum(first.clone() + Expr::int(100), n));
    b.for_(first, last, tile::LoopKind::Vector, |b, i| {
        let [x, old] = [x, m].map(|from| b.bind(Expr::load(from, i.clone())));
        let new = b.bind(old * Build::f(DType::F32, 0.5) + x);
        let before = b.bind(Expr::load(y, i.clone()));
        let less = b.bind(div(new.clone(), Build::f(DType::F32, 3.0)));
        b.store(m, i.clone(), new);
        b.store(y, i, before - less);
    });
    let k = b.finish();
    let code = load(std::slice::from_ref(&k));
    for n in [0, 1, 31, 32, 33, 96, 250] {
        let buffers = [1, 2, 3].map(|seed| integers(n as usize, seed));
        agree(&code, &k, &buffers, &[("N", n)], 4e-3);
    }
    // On a GPU a thread loads and stores twice four neighbours; the quotient needs to be no more exact than y.
    let text = crate::emit_ptx(&[k], &crate::GpuOptions::default()).expect("it compiles").text;
    let count = |what: &str| text.matches(what).count();
    let wide = |op: &str, ty: &str| count(&format!("{op}.{ty}"));
    assert_eq!((wide("ld.global", "v4.b32"), wide("st.global", "v4.b32")), (2, 2), "{text}");
    assert_eq!(count("div."), 0, "{text}");
}
