//! `lode doctor`: what this machine has and what follows from it.

use crate::putln;
/// Prints one line per finding.
pub fn run() -> u8 {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    putln!("lode      {}", env!("CARGO_PKG_VERSION"));
    putln!("llvm      {}", codegen::llvm_version());
    putln!("cpu       {} ({threads} threads)", codegen::host_cpu());
    match device::memory::available_bytes() {
        Some(n) => putln!("memory    {:.1} GiB available", n as f64 / f64::from(1 << 30)),
        None => putln!("memory    unknown"),
    }
    putln!("targets   host");
    0
}
