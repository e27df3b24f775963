//! PTX of tile programs, for `gpu_check` of the tile crate, and how long it takes:
//! `cargo run --release -p codegen --example ptx -- FOLDER model.tile… maps`. Reads what `lode build --emit=tile` prints; `maps` stands for a kernel of
//! every function of f32 and of every conversion. Writes `.tile`, `.ptx` and `.launch` of each into the folder.

use base::{DType, Dim};
use graph::op::{MapFn, map::Kind};
use std::{fmt::Write, path::Path, time::Instant};
use tile::{Expr, Kernel, LoopKind, kernels::build::Build};

fn main() {
    let mut args = std::env::args().skip(1);
    let folder = args.next().expect("a folder");
    for path in args {
        let kernels = if path == "maps" {
            maps()
        } else {
            let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
            tile::text::parse(&text).unwrap_or_else(|e| panic!("{path}: {e}"))
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
            let _ = writeln!(launches, "{}\t{}\t{}\t{}\t{}", k.symbol, k.threads, k.grid, k.dynamic_shared, k.workspace);
        }
        let name = Path::new(&path).file_stem().expect("a file").to_string_lossy();
        for (ending, text) in [("tile", &tile::text::print(&kernels)), ("ptx", &ptx.text), ("launch", &launches)] {
            let file = Path::new(&folder).join(format!("{name}.{ending}"));
            std::fs::write(&file, text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        }
    }
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
