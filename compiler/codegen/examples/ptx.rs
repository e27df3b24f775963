//! How long PTX takes: `cargo run --release -p codegen --example ptx -- model.tile…`, of what `lode build --emit=tile` prints.

use std::time::Instant;

fn main() {
    for path in std::env::args().skip(1) {
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
        let kernels = tile::text::parse(&text).unwrap_or_else(|e| panic!("{path}: {e}"));
        let options = codegen::GpuOptions::default();
        let start = Instant::now();
        let mlir = codegen::emit_gpu_mlir(&kernels).unwrap_or_else(|e| panic!("{path}: {e}"));
        let emitted = start.elapsed();
        let start = Instant::now();
        let ptx = codegen::emit_ptx(&kernels, &options).unwrap_or_else(|e| panic!("{path}: {e}"));
        println!(
            "{path}: {} kernels, {} lines of MLIR in {:.0} ms, {} lines of PTX in {:.0} ms",
            kernels.len(),
            mlir.lines().count(),
            emitted.as_secs_f64() * 1e3,
            ptx.text.lines().count(),
            start.elapsed().as_secs_f64() * 1e3
        );
    }
}
