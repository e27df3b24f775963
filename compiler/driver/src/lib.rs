//! The `lode` command and the pipeline it runs.

pub mod buckets;
pub mod cli;
pub mod commands;
pub mod compare;
pub mod kernels;
pub mod link;
pub mod picture;
pub mod pipeline;
pub mod report;
pub mod stages;

use clap::Parser;
use cli::{Cli, Command};
use std::process::ExitCode;

/// Runs the command line of this process. 0 fine, 1 diagnostics or a failed check, 2 usage, 101 an internal error.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let format = cli.message_format;
    // Deep trees of a program need more stack than a main thread has.
    let run = move || match &cli.command {
        Command::Check(model) => commands::build::check(model, format),
        Command::Build(args) => commands::build::run(args, format),
        Command::Opt(args) => commands::opt::run(args),
        Command::Reduce(args) => commands::reduce::run(args),
        Command::Run(args) => commands::run::run(args, format),
        Command::Bench(args) => commands::bench::run(args, format),
        Command::Trace(args) => commands::bench::trace(args, format),
        Command::Viz(args) => commands::viz::run(args, format),
        Command::Train(args) => commands::train::run(args, format),
        Command::Launch(args) => commands::launch::run(args),
        Command::Generate(args) => commands::generate::run(args, format),
        Command::Schedule(args) => commands::schedule::run(args),
        Command::Tune(args) => commands::tune::run(args, format),
        Command::Explain(args) => commands::explain::run(args, format),
        Command::Fmt { files, check } => commands::fmt::run(files, *check, format),
        Command::Doctor => commands::doctor::run(),
    };
    let worker =
        std::thread::Builder::new().name("lode".into()).stack_size(64 << 20).spawn(run).expect("a thread can be started");
    match worker.join() {
        Ok(code) => ExitCode::from(code),
        Err(_) => {
            let command: Vec<String> = std::env::args().collect();
            eprintln!("this is a bug of lode {}; to reproduce it: {}", env!("CARGO_PKG_VERSION"), command.join(" "));
            ExitCode::from(101)
        }
    }
}
