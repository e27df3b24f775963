//! What small kernels are as PTX.

use super::map_kernel;
use crate::{
    GpuKernel, GpuOptions, emit_objects, emit_ptx, emit_ptx_with_lines,
    gpu::{Extent, Lines, Place},
};
use base::{DType, Dim, TensorType};
use graph::op::{MapFn, ReduceFn};
use tile::{
    Expr, Kernel, Stmt,
    ir::{Axis, Copy, Units},
    kernels::{
        build::{Build, tile},
        domain::Problem,
        gpu_attend::{self, AtEnd, Ending, gpu_attend, gpu_attend_map},
        gpu_attend_grad::{self, gpu_attend_grad_keys},
        gpu_product::{
            Element, Epilogue, Given, Grouped, OfCodes, Operand, Product, Tiling, gpu_grouped, gpu_product, gpu_product_map,
        },
    },
};

fn ptx(k: &Kernel) -> (String, GpuKernel) {
    let mut out = emit_ptx(std::slice::from_ref(k), &GpuOptions::default()).expect("it compiles");
    (out.text, out.kernels.remove(0))
}

/// Fails unless the text has what stands after `check:` in this order, and nothing of what stands after `not:`.
#[track_caller]
fn check(text: &str, wanted: &str) {
    let mut rest = text;
    for line in wanted.lines().map(str::trim) {
        if let Some(part) = line.strip_prefix("check: ") {
            let at = rest.find(part).unwrap_or_else(|| panic!("no '{part}' in the rest of\n{text}"));
            rest = &rest[at + part.len()..];
        }
        if let Some(part) = line.strip_prefix("not: ") {
            assert!(!text.contains(part), "'{part}' in\n{text}");
        }
    }
}

/// y[r] = Σ x[r, i], or the row less its sum.
fn row_sums(n: i64) -> Kernel {
    let mut b = Build::new("sums");
    let r = Dim::sym("R");
    let x = b.read("x", DType::F32, r.clone() * Dim::from(n));
    let y = b.write("y", DType::F32, r.clone());
    b.kernel.grid = r.ceil_div(&Dim::from(4));
    let r = b.dim(&r);
    b.each_row(r, 4, |b, row| {
        let start = b.bind(row.clone() * Expr::int(n));
        let sum = b.reduce(ReduceFn::Sum, Build::f(DType::F32, 0.0), Expr::int(n), |_, i| Expr::load(x, start + i));
        b.store(y, row, Expr::Var(sum));
    });
    b.finish()
}

#[test]
fn maps_move_sixteen_bytes_at_once() {
    let mut b = Build::new("map");
    let n = Dim::sym("N");
    let x = b.read("x", DType::BF16, n.clone());
    let y = b.write("y", DType::BF16, n.clone());
    b.kernel.grid = n.ceil_div(&Dim::from(1000));
    let n = b.dim(&n);
    let first = b.bind(b.block() * Expr::int(1000));
    let last = b.bind(Expr::minimum(first.clone() + Expr::int(1000), n));
    b.for_(first, last, tile::LoopKind::Vector, |b, i| b.store(y, i.clone(), Expr::load(x, i) * Build::f(DType::F32, 3.0)));
    let (text, launch) = ptx(&b.finish());
    check(
        &text,
        "check: .target sm_90a
         check: .entry map(
         check: .maxntid 256
         check: ld.global.nc.v4.b32
         check: and.b32
         check: cvt.rn.bf16
         check: st.global.v4.b32
         check: ld.global.nc.b16
         check: st.global.b16
         not: bar.sync
         not: .shared
         not: .local",
    );
    assert_eq!((launch.threads, launch.static_shared, launch.dynamic_shared, launch.workspace), (256, 0, 0, 0));
    assert_eq!(launch.grid, Dim::sym("N").ceil_div(&Dim::from(2048)));
}

#[test]
fn a_short_row_is_for_a_warp_and_a_long_one_for_a_block() {
    let (text, launch) = ptx(&row_sums(1024));
    let halves = "check: shfl.sync.bfly.b32
         "
    .repeat(5);
    check(&text, &format!("check: ld.global.nc.v4.b32\n{halves}check: st.global.b32\nnot: bar.sync"));
    assert_eq!((launch.grid, launch.static_shared), (Dim::sym("R").ceil_div(&Dim::from(4)), 0));

    let (text, launch) = ptx(&row_sums(10_000));
    check(&text, &format!("{halves}check: st.shared.b32\ncheck: bar.sync\ncheck: ld.shared\ncheck: st.global.b32"));
    assert_eq!((launch.grid, launch.static_shared, launch.threads), (Dim::sym("R"), 64, 256));

    let (text, launch) = ptx(&row_sums(32));
    check(&text, "check: 4, 31\ncheck: 2, 31\ncheck: 1, 31\nnot: 8, 31");
    assert_eq!(launch.grid, Dim::sym("R").ceil_div(&Dim::from(16)));
}

/// y = x / Σ x of each row of bf16, and of the row Σ e^(x - most).
fn shares(n: i64) -> Kernel {
    let mut b = Build::new("shares");
    let r = Dim::sym("R");
    let x = b.read("x", DType::BF16, r.clone() * Dim::from(n));
    let y = b.write("y", DType::BF16, r.clone() * Dim::from(n));
    b.kernel.grid = r.clone();
    let r = b.dim(&r);
    b.each_row(r, 1, |b, row| {
        let start = b.bind(row * Expr::int(n));
        let sum = b.reduce(ReduceFn::Sum, Build::f(DType::F32, 0.0), Expr::int(n), |_, i| Expr::load(x, start.clone() + i));
        b.each(Expr::int(n), |b, i| {
            let at = b.bind(start + i);
            b.store(y, at.clone(), Expr::load(x, at) * Expr::Var(sum));
        });
    });
    b.finish()
}

#[test]
fn a_row_that_fits_is_loaded_once() {
    // 16 elements a thread: two loads, and as many stores; then the same element by element, where memory is not aligned.
    let (text, launch) = ptx(&shares(4096));
    assert_eq!((launch.threads, launch.grid), (256, Dim::sym("R")));
    let count = |what: &str| text.matches(what).count();
    assert_eq!((count("ld.global.nc.v4.b32"), count("st.global.v4.b32"), count("bar.sync")), (2, 2, 4), "{text}");
    // What begins aligned wherever it is launched has no other code.
    let aligned = |mut k: Kernel| {
        k.buffers.iter_mut().for_each(|b| b.alignment = 16);
        ptx(&k).0
    };
    let text = aligned(shares(4096));
    let count = |what: &str| text.matches(what).count();
    assert_eq!((count("ld.global"), count("st.global"), count("bar.sync")), (2, 2, 2), "{text}");
    // As many blocks share a processor as have few registers and load what hides that they wait; with more elements a thread they need their registers.
    assert!(text.contains(".minnctapersm 6") && aligned(shares(8192)).contains(".minnctapersm 1"), "{text}");
    // Three threads of four have nothing left at the last time.
    let text = aligned(shares(4608));
    let count = |what: &str| text.matches(what).count();
    assert_eq!((count("ld.global"), count("st.global"), count("bar.sync")), (3, 3, 2), "{text}");
    // Too long for the registers of any cluster: each loop loads.
    let text = ptx(&shares(524_288)).0;
    assert_eq!((text.matches("ld.global.nc.v4.b32").count(), text.matches("st.global.v4.b32").count()), (2, 1), "{text}");
}

#[test]
fn a_row_that_is_too_long_for_a_block_is_kept_by_a_cluster() {
    for (n, [threads, cluster, times]) in [(65_536, [512, 4, 4]), (128_256, [512, 8, 4]), (151_936, [512, 8, 5])] {
        let mut k = shares(n);
        k.buffers.iter_mut().for_each(|b| b.alignment = 16);
        let (text, launch) = ptx(&k);
        assert_eq!([launch.threads, launch.cluster], [threads, cluster]);
        assert_eq!(launch.grid, Dim::sym("R") * Dim::from(i64::from(cluster)));
        // Of each warp and of each block of the cluster a sum.
        assert_eq!(launch.static_shared as u32, 8 * (threads / 32 + cluster));
        let count = |what: &str| text.matches(what).count() as u32;
        assert_eq!((count("ld.global"), count("st.global")), (times, times), "{text}");
        // Before the first row, where a sum is told, and before the next row's is; the warps of a block wait once.
        let waits = ["barrier.cluster.arrive.aligned", "barrier.cluster.wait.aligned", "bar.sync", "st.shared::cluster.b32"];
        assert_eq!(waits.map(count), [3, 3, 1, 1], "{text}");
        check(&text, &format!("check: .reqnctapercluster {cluster}, 1, 1\ncheck: mapa.shared::cluster.u64"));
    }
}

#[test]
fn products_go_through_shared_memory() {
    let mut b = Build::new("product");
    let x = b.read("x", DType::F32, Dim::from(4096));
    let y = b.update("y", DType::F32, Dim::from(4096));
    let s = b.scratch("s", DType::F32, 4096);
    b.dot([64, 64, 64].map(Expr::int), tile(x, Expr::int(0), 64), tile(x, Expr::int(0), 64), tile(s, Expr::int(0), 64), false);
    b.dot([64, 64, 64].map(Expr::int), tile(s, Expr::int(0), 64), tile(x, Expr::int(0), 64), tile(y, Expr::int(0), 64), true);
    let (text, launch) = ptx(&b.finish());
    check(
        &text,
        "check: .extern .shared .align 128 .b8 lode_shared[];
         check: fma.rn.f32
         check: st.shared.b32
         check: bar.sync
         check: ld.shared
         check: fma.rn.f32
         check: st.global.b32",
    );
    assert_eq!((launch.dynamic_shared, launch.workspace), (16384, 0));

    // Scratch that does not fit is in the workspace.
    let mut b = Build::new("large");
    let y = b.write("y", DType::F32, Dim::from(100_000));
    let s = b.scratch("s", DType::F32, 100_000);
    b.each(Expr::int(100_000), |b, i| b.store(s, i.clone(), i.cast(DType::F32)));
    b.each(Expr::int(100_000), |b, i| b.store(y, i.clone(), Expr::load(s, Expr::int(99_999) - i)));
    let (text, launch) = ptx(&b.finish());
    check(&text, "check: st.global\ncheck: bar.sync\ncheck: ld.global\nnot: .shared");
    assert_eq!((launch.dynamic_shared, launch.workspace), (0, 400_000));
}

#[test]
fn narrow_floats_are_converted_by_instructions() {
    for (dtype, wide, narrow) in [
        (DType::BF16, "shl.b32", "cvt.rn.bf16.f32"),
        (DType::F16, "cvt.f32.f16", "cvt.rn.f16.f32"),
        (DType::E4M3, "cvt.rn.f16x2.e4m3x2", "cvt.rn.satfinite.e4m3x2.f32"),
    ] {
        let (text, _) = ptx(&map_kernel("narrow", MapFn::Silu, dtype, dtype));
        assert!(text.contains(narrow) || text.contains(&narrow.replace("16.f32", "16x2.f32")), "{text}");
        assert!(text.contains(wide) || dtype == DType::BF16, "{text}");
    }
}

#[test]
fn every_function_of_f32_has_code_and_what_f64_lacks_is_told() {
    for f in MapFn::ALL.iter().copied().filter(|f| super::maps::takes(*f, DType::F32)) {
        let (text, _) = ptx(&map_kernel("map", f, DType::F32, super::maps::result(f, DType::F32)));
        check(&text, "check: .entry map(\nnot: .extern .func");
    }
    let error = emit_ptx(&[map_kernel("map", MapFn::Exp, DType::F64, DType::F64)], &GpuOptions::default());
    assert!(error.is_err_and(|e| e.0 == "kernel map: exp of f64 has no code for GPUs"));
}

#[test]
fn the_same_kernels_give_the_same_text() {
    let kernels = [row_sums(64), map_kernel("map", MapFn::Sin, DType::F32, DType::F32)];
    let first = emit_ptx(&kernels, &GpuOptions::default()).expect("it compiles");
    emit_objects(&kernels).expect("it compiles");
    assert_eq!(first, emit_ptx(&kernels, &GpuOptions::default()).expect("it compiles"));
}

#[test]
fn instructions_tell_where_they_stand_in_the_sources() {
    // y = sin x + x, and a kernel of one op.
    let mut both = Build::new("both");
    let (x, n) = (both.read("x", DType::F32, Dim::from(64)), Expr::int(64));
    let y = both.write("y", DType::F32, Dim::from(64));
    let mut vars = Vec::new();
    both.each(n, |b, i| {
        let loaded = b.bind(Expr::load(x, i.clone()));
        let sine = b.bind(Expr::map1(MapFn::Sin, loaded.clone()));
        let sum = b.bind(sine.clone() + loaded);
        vars.extend([sine, sum.clone()]);
        b.store(y, i, sum);
    });
    let kernels = [both.finish(), map_kernel("one", MapFn::Neg, DType::F32, DType::F32)];
    let place = |file: &str, line: usize| Place { file: file.into(), line, column: 5 };
    let [Expr::Var(sine), Expr::Var(sum)] = vars[..] else { panic!("two variables") };
    // PTX is ASCII, which a path need not be.
    let ops = [(sine, place("std/sine.lode", 40)), (sum, place("ü\"m.lode", 30))];
    let lines = [
        Lines { kernel: Some(place("ü\"m.lode", 20)), vars: ops.into_iter().collect() },
        Lines { kernel: Some(place("ü\"m.lode", 50)), ..Lines::default() },
    ];
    let text = emit_ptx_with_lines(&kernels, &lines, &GpuOptions::default()).expect("it compiles").text;
    check(
        &text,
        "check: .entry both(
         check: .loc\t1 20 5
         check: .loc\t1 30 5
         check: add.f32
         check: .loc\t1 20 5
         check: .loc\t2 40 5
         check: fma.rn.f32
         check: .entry one(
         check: .loc\t1 50 5
         check: neg.f32
         check: .file\t1 \"__m.lode\"
         check: .file\t2 \"std/sine.lode\"
         not: $L__tmp",
    );
    // They change no instruction.
    let without: String =
        text.lines().filter(|l| !l.contains(".loc\t") && !l.contains(".file\t")).flat_map(|l| [l, "\n"]).collect();
    assert_eq!(without, emit_ptx(&kernels, &GpuOptions::default()).expect("it compiles").text);
}

fn dense(dtype: DType, [m, n, k]: [i64; 3], aligned: bool) -> Kernel {
    let strides = [k, 1, 1, k, n, 1].map(Dim::from);
    let p = Product {
        dtype,
        result: dtype,
        extents: [m, n, k].map(Dim::from),
        strides,
        batch: Vec::new(),
        accumulate: false,
        parts: 1,
        aligned: [aligned; 3],
    };
    gpu_product(&p, None)
}

#[test]
fn large_products_run_on_warp_groups() {
    let (text, launch) = ptx(&dense(DType::BF16, [8192, 4096, 1024], true));
    check(
        &text,
        "check: mbarrier.init
         check: prefetch.tensormap
         check: setmaxnreg.inc.sync.aligned.u32 232
         check: mbarrier.try_wait
         check: wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16
         check: wgmma.wait_group.sync.aligned 1
         check: setmaxnreg.dec.sync.aligned.u32 40
         check: cp.async.bulk.tensor.2d.shared::cluster.global
         not: ld.global
         not: st.global
         not: shfl",
    );
    check(
        &text,
        "check: stmatrix.sync.aligned.m8n8.x4.shared.b16
         check: fence.proxy.async.shared::cta
         check: bar.sync
         check: cp.async.bulk.tensor.2d.global.shared::cta.bulk_group",
    );
    // Strips of 64 columns, of sixteen at once; each is stored when the one before is read.
    let counts = ["stmatrix", "global.shared::cta", "wait_group.read 0"].map(|op| text.matches(op).count());
    assert_eq!(counts, [16, 4, 5]);
    assert_eq!((launch.threads, launch.maps.len(), launch.workspace), (384, 3, 0));
    let [a, b, c] = &launch.maps[..] else { panic!("three maps") };
    let boxes = [a, b, c].map(|m| (m.buffer, m.rows, m.cols));
    assert_eq!(boxes, [(0, 128, 64), (1, 256, 64), (2, 64, 64)]);
    assert!(launch.static_shared + launch.dynamic_shared <= 227 << 10, "{launch:?}");
    assert_eq!(a.axes, [(Extent::Const(8192), Extent::Const(1024)), (Extent::Const(1024), Extent::Const(1))]);

    // What begins anywhere is loaded by threads, and multiplied from shared memory.
    let (text, launch) = ptx(&dense(DType::BF16, [8192, 4096, 1024], false));
    check(&text, "check: ld.global\ncheck: mma.sync.aligned.m16n8k16\nnot: wgmma");
    assert!(launch.maps.is_empty());
    let (text, _) = ptx(&dense(DType::F32, [64, 64, 64], true));
    check(&text, "check: cp.async.cg\ncheck: ld.shared.v4\ncheck: fma.rn.f32\nnot: mma");
    // A thread has 8 by 4 sums, and reads four terms of its 12 rows and columns for 128 products.
    let (text, _) = ptx(&dense(DType::F32, [4096, 4096, 1024], true));
    assert_eq!(["fma.rn.f32", "ld.shared.v4", "ld.shared.b32"].map(|op| text.matches(op).count()), [128, 12, 0]);
}

#[test]
fn tf32_is_multiplied_by_warp_groups() {
    let strides = [1024, 1, 1, 1024, 4096, 1].map(Dim::from);
    let (dtype, result, extents) = (DType::TF32, DType::F32, [Dim::sym("M"), Dim::from(4096), Dim::from(1024)]);
    let p = Product { dtype, result, extents, strides, batch: Vec::new(), accumulate: false, parts: 1, aligned: [true; 3] };
    let (text, launch) = ptx(&gpu_product(&p, None));
    check(
        &text,
        "check: wgmma.mma_async.sync.aligned.m64n256k8.f32.tf32.tf32
         check: wgmma.wait_group.sync.aligned 1
         check: setmaxnreg.dec.sync.aligned.u32 40
         check: cp.async.bulk.tensor.2d
         not: ld.global",
    );
    assert_eq!((launch.threads, launch.workspace), (384, 0));
    let boxes: Vec<_> = launch.maps.iter().map(|m| (m.dtype, m.rows, m.cols)).collect();
    assert_eq!(boxes, [(DType::TF32, 128, 32), (DType::TF32, 256, 32)]);
}

#[test]
fn blocks_of_a_pair_bring_halves_of_a_matrix_for_both() {
    let extents = [Dim::from(8), Dim::sym("R"), Dim::from(2048), Dim::from(1536)];
    let p = Grouped { dtype: DType::BF16, extents, further: Vec::new(), rows: Some(true), accumulate: false, aligned: true };
    let (text, launch) = ptx(&gpu_grouped(&p, None));
    // Each half is asked for once for both, or twice for this block alone where the tiles are of two groups; a stage is empty when both blocks say so.
    check(
        &text,
        "check: .explicitcluster
         check: .reqnctapercluster 2, 1, 1
         check: barrier.cluster.wait.acquire.aligned
         check: wgmma
         check: mapa.shared::cluster.u32
         check: mbarrier.arrive.shared::cluster
         check: complete_tx::bytes.multicast::cluster
         check: barrier.cluster.arrive.release; barrier.cluster.wait.acquire;
         not: mbarrier.arrive.shared::cta.b64 _",
    );
    let copies = text.matches("cp.async.bulk.tensor.2d").count() + text.matches("cp.async.bulk.tensor.3d").count();
    assert_eq!((copies, text.matches("multicast").count()), (4, 1));
    let boxes: Vec<_> = launch.maps.iter().map(|m| (m.rows, m.cols)).collect();
    assert_eq!((launch.cluster, boxes), (2, vec![(128, 64), (128, 64)]));
    // As many clusters as there is work for, whatever the number of tiles.
    assert!(launch.grid.try_div(&Dim::from(2)).is_some(), "{}", launch.grid);
    assert_eq!(ptx(&gpu_grouped(&Grouped { rows: None, ..p }, None)).1.cluster, 1);
}

#[test]
fn codes_are_multiplied_as_such() {
    let [m, n, k] = [Dim::sym("M"), Dim::from(4096), Dim::from(7168)];
    let strides = [&k, &Dim::from(1), &Dim::from(1), &k, &n, &Dim::from(1)].map(Dim::clone);
    let (dtype, result, extents) = (DType::E4M3, DType::BF16, [m, n, k]);
    let p = Product { dtype, result, extents, strides, batch: Vec::new(), accumulate: false, parts: 1, aligned: [true; 3] };
    let (codes, results) = (Some(OfCodes { block: 128, columns: 1, product: result }), vec![(Given::Product(0), result)]);
    let epilogue = Epilogue { taken: None, codes, matrices: 1, operands: Vec::new(), results, map: None, units: None };
    let (text, launch) = ptx(&gpu_product_map(&p, &epilogue, Some(Tiling::OF_CODES[0])));
    // Two products of a piece one after the other: each is scaled when it is there, and warp groups do not wait for each other.
    check(
        &text,
        "check: mbarrier.try_wait
         check: setp.ne.b32 add, 0, 0
         check: wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3
         check: wgmma.wait_group.sync.aligned 0
         check: ld.shared
         check: wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3
         check: wgmma.wait_group.sync.aligned 0
         check: ld.shared",
    );
    // A factor and a sum for each of a thread's elements.
    assert_eq!(["mul.f32", "fma.rn.f32"].map(|op| text.matches(op).count()), [128, 128]);
    assert_eq!((launch.threads, launch.workspace), (384, 0));
    // Only before what is stored to the same buffer as before.
    assert_eq!(text.matches("bar.sync \t1").count(), 1);
    let boxes: Vec<_> = launch.maps.iter().map(|m| (m.dtype, m.rows, m.cols)).collect();
    assert_eq!(boxes, [(DType::E4M3, 128, 128), (DType::E4M3, 128, 128), (DType::F32, 1, 128), (DType::F32, 1, 256)]);
}

#[test]
fn columns_meet_others_of_their_head_in_registers() {
    // Halves of heads of 64, or neighbours, rotated by a table that has a number for each row and each of them.
    let rotated = |aligned: bool, units: Units| {
        let [m, n, k] = [256, 512, 1024].map(Dim::from);
        let table = Operand::Read(DType::F32, m.clone() * Dim::from(32));
        let map = |b: &mut Build, e: &Element| {
            let [row, _, column] = &e.at[..] else { panic!("a row, a head, a column") };
            let at = b.bind(row.clone() * Expr::int(32) + column.clone());
            let c = b.bind(Expr::load(e.operands[0], at));
            let [x, y] = [0, 1].map(|i| e.products[i].clone());
            vec![x.clone() * c.clone() - y.clone(), y * c + x]
        };
        let strides = [k.clone(), Dim::from(1), Dim::from(1), k.clone(), n.clone(), Dim::from(1)];
        let (dtype, aligned, extents) = (DType::BF16, [aligned; 3], [m, n, k]);
        let p = Product { dtype, result: dtype, extents, strides, batch: Vec::new(), accumulate: false, parts: 1, aligned };
        let (results, units) = (vec![(Given::Map, dtype)], Some(units));
        gpu_product_map(
            &p,
            &Epilogue { taken: None, codes: None, matrices: 1, operands: vec![table], results, map: Some(&map), units },
            None,
        )
    };
    let halves = Units { unit: 32, period: 64, pairs: false };
    for units in [halves, Units { unit: 64, period: 64, pairs: true }] {
        let (text, launch) = ptx(&rotated(true, units));
        check(
            &text,
            "check: ld.global.nc\ncheck: stmatrix\ncheck: wgmma.mma_async.sync.aligned.m64n256k16\nnot: st.global\nnot: st.shared",
        );
        // A thread has two rows, and of each the same eight columns of four heads: they share what they load.
        assert_eq!((launch.threads, launch.workspace, text.matches("ld.global.nc").count()), (384, 0, 16), "{units:?}");
        // Where threads do not hold all of a row, sums are in shared memory.
        let (text, launch) = ptx(&rotated(false, units));
        check(&text, "check: mma.sync.aligned.m16n8k16\ncheck: st.shared\nnot: wgmma");
        assert_eq!(launch.workspace, 0);
    }
}

fn attention(dtype: DType, d: i64) -> Problem {
    let [b, t] = ["B", "T"].map(Dim::sym);
    let (s, domain) = (t.clone(), "causal".parse().expect("a domain"));
    Problem {
        dtype,
        b,
        t,
        s,
        h: 4,
        g: 2,
        dk: d,
        dv: d,
        domain,
        scale: 0.125,
        operands: Vec::new(),
        distinct: false,
        shared: false,
    }
}

#[test]
fn attention_weighs_while_products_run() {
    let p = attention(DType::BF16, 128);
    let (text, launch) = ptx(&gpu_attend(&p, gpu_attend::Tiling::choose(&p)));
    // In the loop: two products, the first awaited while the second runs.
    check(
        &text,
        "check: bar.arrive
         check: wgmma.mma_async.sync.aligned.m64n128k16
         check: bar.sync
         check: wgmma.mma_async.sync.aligned.m64n128k16
         check: wgmma.mma_async.sync.aligned.m64n128k16
         check: bar.arrive
         check: wgmma.wait_group.sync.aligned 1;
         check: ex2.approx.ftz.f32
         check: wgmma.wait_group.sync.aligned 0;",
    );
    assert_eq!((launch.threads, launch.maps.len(), launch.workspace), (384, 3, 0));

    let (text, launch) = ptx(&gpu_attend_grad_keys(&p, gpu_attend_grad::Tiling::choose(&p), gpu_attend_grad::Gives::Both));
    check(
        &text,
        "check: wgmma.mma_async.sync.aligned.m64n64k16\ncheck: ld.shared\ncheck: m64n128k16\nnot: bar.arrive\nnot: atom",
    );
    // k and v by 128 keys, q and d_o by 64 queries, a row of what there is one of for each query.
    let vectors: Vec<_> = launch.maps.iter().filter(|m| m.dtype == DType::F32).map(|m| (m.rows, m.cols)).collect();
    assert_eq!((launch.maps.len(), vectors), (6, vec![(1, 64), (1, 64)]));

    // Lists of blocks: the heads of four queries are the rows of one warp group, and two blocks share a processor.
    let mut p = attention(DType::BF16, 128);
    (p.h, p.domain) = (32, "causal & blocks(0, 64)".parse().expect("a domain"));
    p.operands = vec![TensorType::new(DType::I32, vec![p.b.clone(), p.t.clone(), Dim::from(2), Dim::from(16)])];
    let (text, launch) = ptx(&gpu_attend(&p, gpu_attend::Tiling::choose(&p)));
    check(&text, "check: .maxntid 256\ncheck: .minnctapersm 2\ncheck: m64n64k16\ncheck: m64n128k16");
    let boxes: Vec<_> = launch.maps.iter().map(|m| (m.rows, m.runs, m.cols)).collect();
    assert_eq!((launch.threads, boxes), (256, vec![(16, 4, 64), (64, 1, 64), (64, 1, 64)]));

    // A map of the result reads another's sixteen bytes at once, which four lanes exchange.
    let p = attention(DType::BF16, 128);
    let rows = p.b.clone() * p.t.clone() * Dim::from(p.h);
    let add = |b: &mut Build, e: &Element| {
        let at = b.bind(e.at[0].clone() * Expr::int(128) + e.at[1].clone());
        let other = b.bind(Expr::load(e.operands[0], at));
        e.products[0].clone() + other
    };
    let operands = vec![(p.dtype, rows * Dim::from(128))];
    let ending = Ending { operands, keeps: false, gives: AtEnd::Map(p.dtype, &add) };
    let (text, launch) = ptx(&gpu_attend_map(&p, gpu_attend::Tiling::choose(&p), &ending));
    check(&text, "check: wgmma\ncheck: ld.global.nc.v4.b32\ncheck: shfl.sync.bfly\ncheck: st.global.v4.b32");
    assert_eq!((launch.threads, launch.maps.len(), text.matches("ld.global.nc.v4.b32").count()), (384, 3, 8));

    // Warps of 48 of 96 columns store by pairs what warps of 32 of 64 columns store by sixteen bytes, of the same rows.
    let p = Problem { dk: 96, ..attention(DType::BF16, 64) };
    let (text, launch) = ptx(&gpu_attend_grad_keys(&p, gpu_attend_grad::Tiling::choose(&p), gpu_attend_grad::Gives::Both));
    let stores = [".v4.b32", ".b32"].map(|kind| text.matches(&format!("st.global{kind}")).count());
    assert!(stores[0] > 0 && stores[1] == 24, "{stores:?}");
    assert_eq!((launch.threads, launch.maps.len()), (256, 0));

    // Without instructions for its dtype it is spread over the threads of a block.
    let p = attention(DType::F32, 64);
    let (text, launch) = ptx(&gpu_attend(&p, gpu_attend::Tiling::choose(&p)));
    check(&text, "check: fma.rn.f32\nnot: wgmma\nnot: mma.sync");
    assert!(launch.maps.is_empty());
}

#[test]
fn lanes_of_a_warp_come_to_a_barrier_of_warp_groups_together() {
    // A product, and two loops of which some lanes of a warp have turns: before each the consumers wait for each other, all at one place.
    let mut b = Build::new("k");
    let x = b.read("x", DType::BF16, Dim::from(64 * 64));
    let n = b.read("n", DType::F32, Dim::from(79));
    let (y, z) = (b.write("y", DType::F32, Dim::from(64 * 64)), b.write("z", DType::F32, Dim::from(79)));
    let [p, q] = ["p", "q"].map(|name| b.scratch(name, DType::BF16, 64 * 64));
    let (sums, own) = (b.scratch("sums", DType::F32, 64 * 64), b.scratch("own", DType::F32, 79));
    let axes = || vec![Axis::new(Expr::int(64), 64, Expr::int(0)), Axis::new(Expr::int(64), 1, Expr::int(0))];
    let copy = |from, to| Stmt::Copy(Copy { from, to, rows: 64, cols: 64, run: 64, axes: axes(), index: None, paired: None });
    [p, q].into_iter().for_each(|to| b.push(copy(x, to)));
    let at = |mem| tile(mem, Expr::int(0), 64);
    b.dot([64, 64, 64].map(Expr::int), at(p), at(q), at(sums), false);
    b.push(copy(sums, y));
    b.each(Expr::int(79), |b, i| b.store(own, i.clone(), Expr::load(n, i)));
    b.each(Expr::int(79), |b, i| b.store(z, i.clone(), Expr::load(own, Expr::int(78) - i)));
    let (text, launch) = ptx(&b.finish());
    assert_eq!((launch.threads, text.matches("bar.sync").count()), (256, 3), "{text}");
}
