//! The `lode` command.

// LLVM and MLIR ask for memory as often as we do, from all threads: with `override` theirs comes from here, too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    driver::main()
}
