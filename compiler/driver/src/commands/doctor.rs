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
    match device::gpus() {
        Ok(all) => {
            for g in &all {
                let (major, minor) = g.capability;
                let gib = g.memory_bytes as f64 / f64::from(1 << 30);
                let what = format!("gpu {}", g.ordinal);
                putln!("{what:<9} {}, sm_{major}{minor}, {gib:.1} GiB, {} multiprocessors", g.name, g.processors);
            }
            putln!("driver    {}", device::driver_version().unwrap_or("unknown".into()));
        }
        Err(e) => putln!("{e}"),
    }
    putln!("targets   host sm_90a");
    0
}
