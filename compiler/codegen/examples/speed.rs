//! Speed of generated code and of its generation: `cargo run --release -p codegen --example speed [file.tile]`.
//!
//! Tile products as a share of this core's peak, an elementwise kernel as a share of a copy's bandwidth, functions in nanoseconds an
//! element, and, for a file of tile programs, the milliseconds that a kernel takes to compile.

use base::{DType, Dim};
use codegen::{Jit, emit_objects};
use graph::op::{MapFn, ReduceFn};
use std::time::Instant;
use tile::{
    Expr, Kernel,
    kernels::build::{Build, tile},
};

type Entry = unsafe extern "C" fn(*const *mut u8, *const i64, i64, i64);

fn main() {
    match std::env::args().nth(1) {
        Some(path) => compile_times(&path),
        None => {
            products();
            elementwise();
            functions();
        }
    }
}

/// Seconds a call takes: the best of many batches, each short enough to fit between two context switches.
fn seconds(mut call: impl FnMut()) -> f64 {
    let (begin, mut turns, mut best) = (Instant::now(), 1, f64::INFINITY);
    while begin.elapsed().as_secs_f64() < 0.3 {
        let start = Instant::now();
        (0..turns).for_each(|_| call());
        let elapsed = start.elapsed().as_secs_f64();
        best = best.min(elapsed / f64::from(turns));
        if elapsed < 2e-4 {
            turns *= 2;
        }
    }
    best
}

fn compiled(kernel: Kernel) -> (Jit, Entry) {
    let name = kernel.name.clone();
    let jit = Jit::load(&emit_objects(&[kernel]).expect("it compiles")).expect("it links");
    let entry = jit.symbol(&name).expect("the symbol is there");
    // SAFETY: entry points have this signature.
    let entry = unsafe { std::mem::transmute::<*const (), Entry>(entry) };
    (jit, entry)
}

/// Memory that a test fills, 64-byte aligned.
fn floats(n: usize) -> (Vec<f32>, usize) {
    let v: Vec<f32> = (0..n + 16).map(|i| (i % 17) as f32 * 0.25 - 2.0).collect();
    let skip = (64 - v.as_ptr() as usize % 64) % 64 / 4;
    (v, skip)
}

fn products() {
    // The peak: independent chains of multiply-adds in registers, written as a kernel.
    let peak = peak();
    println!("peak {peak:.1} GFLOP/s");
    for (m, n, k) in [
        (1, 64, 64),
        (4, 32, 32),
        (4, 64, 64),
        (4, 128, 128),
        (7, 48, 33),
        (16, 64, 64),
        (64, 64, 64),
        (64, 32, 128),
        (64, 128, 32),
        (128, 128, 128),
    ] {
        for transposed in [false, true] {
            let mut b = Build::new("product");
            let x = b.read("x", DType::F32, Dim::from(m * k));
            let y = b.read("y", DType::F32, Dim::from(k * n));
            let z = b.update("z", DType::F32, Dim::from(m * n));
            let a = if transposed { tile::kernels::build::transposed(x, Expr::int(0), m) } else { tile(x, Expr::int(0), k) };
            b.dot([m, n, k].map(Expr::int), a, tile(y, Expr::int(0), n), tile(z, Expr::int(0), n), true);
            let (_jit, entry) = compiled(b.finish());
            let sizes = [m * k, k * n, m * n];
            let mut data = sizes.map(|n| floats(n as usize));
            let pointers = data.each_mut().map(|(v, skip)| v[*skip..].as_mut_ptr().cast::<u8>());
            // SAFETY: the buffers are as long as the kernel says.
            let t = seconds(|| unsafe { entry(pointers.as_ptr(), std::ptr::null(), 0, 1) });
            let rate = 2.0 * (m * n * k) as f64 / t * 1e-9;
            let form = if transposed { "aT" } else { "a " };
            println!("product {m:3}x{n:3}x{k:3} {form} {rate:7.1} GFLOP/s  {:3.0} %", 100.0 * rate / peak);
        }
    }
}

/// Multiply-adds a second that this core does at most. # Units: GFLOP/s.
fn peak() -> f64 {
    if !std::arch::is_x86_feature_detected!("fma") {
        return f64::NAN;
    }
    const TURNS: u64 = 100_000;
    let mut rate = 0f64;
    for _ in 0..20 {
        let start = Instant::now();
        fma_chains(TURNS);
        rate = rate.max((TURNS * 12 * 16) as f64 / start.elapsed().as_secs_f64() * 1e-9);
    }
    rate
}

/// Twelve chains of eight lanes, `turns` times; in assembly, as a debug build would not keep them in registers.
fn fma_chains(turns: u64) {
    // SAFETY: only registers are used, and the processor has the instructions.
    unsafe {
        std::arch::asm!(
            "2:",
            "vfmadd231ps ymm0, ymm12, ymm13", "vfmadd231ps ymm1, ymm12, ymm13", "vfmadd231ps ymm2, ymm12, ymm13",
            "vfmadd231ps ymm3, ymm12, ymm13", "vfmadd231ps ymm4, ymm12, ymm13", "vfmadd231ps ymm5, ymm12, ymm13",
            "vfmadd231ps ymm6, ymm12, ymm13", "vfmadd231ps ymm7, ymm12, ymm13", "vfmadd231ps ymm8, ymm12, ymm13",
            "vfmadd231ps ymm9, ymm12, ymm13", "vfmadd231ps ymm10, ymm12, ymm13", "vfmadd231ps ymm11, ymm12, ymm13",
            "dec {turns}",
            "jnz 2b",
            turns = inout(reg) turns => _,
            out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _, out("ymm5") _, out("ymm6") _,
            out("ymm7") _, out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
        );
    }
}

fn elementwise() {
    let n = 1 << 24;
    let mut b = Build::new("gate");
    let [x, g, r] = ["x", "g", "r"].map(|name| b.read(name, DType::F32, Dim::from(n)));
    let y = b.write("y", DType::F32, Dim::from(n));
    b.each(Expr::int(n), |b, i| {
        let [x, g, r] = [x, g, r].map(|m| Expr::load(m, i.clone()));
        b.store(y, i, Expr::Map(MapFn::Swiglu, vec![x, g]) + r);
    });
    let (_jit, entry) = compiled(b.finish());
    let mut data = [(); 4].map(|()| floats(n as usize));
    let pointers = data.each_mut().map(|(v, skip)| v[*skip..].as_mut_ptr().cast::<u8>());
    // SAFETY: the buffers are as long as the kernel says.
    let t = seconds(|| unsafe { entry(pointers.as_ptr(), std::ptr::null(), 0, 1) });
    let mut sum = Build::new("add");
    let [x, g, r] = ["x", "g", "r"].map(|name| sum.read(name, DType::F32, Dim::from(n)));
    let y = sum.write("y", DType::F32, Dim::from(n));
    sum.each(Expr::int(n), |b, i| {
        let [x, g, r] = [x, g, r].map(|m| Expr::load(m, i.clone()));
        b.store(y, i, x + g + r);
    });
    let (_jit, entry) = compiled(sum.finish());
    // SAFETY: as above.
    let add = seconds(|| unsafe { entry(pointers.as_ptr(), std::ptr::null(), 0, 1) });
    let bytes = 16.0 * n as f64;
    println!("swiglu(x, g) + r: {:.1} GB/s; x + g + r: {:.1} GB/s; ratio {:.2}", bytes / t * 1e-9, bytes / add * 1e-9, add / t);
}

fn functions() {
    let n = 4096;
    for f in MapFn::ALL.iter().filter(|f| f.kind() == graph::op::map::Kind::Float) {
        let mut b = Build::new("map");
        let [x, z] = ["x", "z"].map(|name| b.read(name, DType::F32, Dim::from(n)));
        let y = b.write("y", DType::F32, Dim::from(n));
        b.each(Expr::int(n), |b, i| {
            let args = [x, z].into_iter().take(f.arity()).map(|m| Expr::load(m, i.clone())).collect();
            b.store(y, i, Expr::Map(*f, args));
        });
        let (_jit, entry) = compiled(b.finish());
        let mut data = [(); 3].map(|()| floats(n as usize));
        let pointers = data.each_mut().map(|(v, skip)| v[*skip..].as_mut_ptr().cast::<u8>());
        // SAFETY: the buffers are as long as the kernel says.
        let t = seconds(|| unsafe { entry(pointers.as_ptr(), std::ptr::null(), 0, 1) });
        println!("{:10} {:.2} ns an element", f.name(), t / n as f64 * 1e9);
    }
    for f in ReduceFn::ALL {
        let mut b = Build::new("reduce");
        let x = b.read("x", DType::F32, Dim::from(n));
        let y = b.write("y", DType::F32, Dim::from(1));
        let sum = b.reduce(f, Build::f(DType::F32, 1.0), Expr::int(n), |_, i| Expr::load(x, i));
        b.store(y, Expr::int(0), Expr::Var(sum));
        let (_jit, entry) = compiled(b.finish());
        let mut data = [(); 2].map(|()| floats(n as usize));
        let pointers = data.each_mut().map(|(v, skip)| v[*skip..].as_mut_ptr().cast::<u8>());
        // SAFETY: the buffers are as long as the kernel says.
        let t = seconds(|| unsafe { entry(pointers.as_ptr(), std::ptr::null(), 0, 1) });
        println!("{:10} {:.3} ns an element, reduced", f.name(), t / n as f64 * 1e9);
    }
}

fn compile_times(path: &str) {
    let text = std::fs::read_to_string(path).expect("the file can be read");
    let kernels = tile::text::parse(&text).expect("tile programs");
    let start = Instant::now();
    let objects = emit_objects(&kernels).expect("they compile");
    let ms = start.elapsed().as_secs_f64() * 1e3;
    let bytes: usize = objects.iter().map(Vec::len).sum();
    println!("{} kernels, {ms:.0} ms, {:.1} ms each, {bytes} bytes", kernels.len(), ms / kernels.len() as f64);
    let mut each: Vec<(f64, &str)> = kernels
        .iter()
        .map(|k| {
            let start = Instant::now();
            emit_objects(std::slice::from_ref(k)).expect("it compiles");
            (start.elapsed().as_secs_f64() * 1e3, k.name.as_str())
        })
        .collect();
    each.sort_by(|a, b| b.0.total_cmp(&a.0));
    each.iter().take(10).for_each(|(ms, name)| println!("{ms:7.1} ms {name}"));
}
