//! `lode doctor`: what this machine has and what follows from it.

/// Prints one line per finding.
pub fn run() -> u8 {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    println!("lode      {}", env!("CARGO_PKG_VERSION"));
    println!("llvm      {}", codegen::llvm_version());
    println!("cpu       {} ({threads} threads)", codegen::host_cpu());
    match device::memory::available_bytes() {
        Some(n) => println!("memory    {:.1} GiB available", n as f64 / f64::from(1 << 30)),
        None => println!("memory    unknown"),
    }
    println!("targets   host");
    0
}
