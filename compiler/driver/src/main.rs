//! The `lode` command.

fn main() -> std::process::ExitCode {
    driver::main()
}
