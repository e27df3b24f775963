//! `lode opt`: graph text in, passes, graph text out.

use crate::cli::Opt;
use std::io::Read;

/// Runs the passes and prints the module.
pub fn run(args: &Opt) -> u8 {
    let mut text = String::new();
    let read = if args.file.as_os_str() == "-" {
        std::io::stdin().read_to_string(&mut text).map(|_| ())
    } else {
        std::fs::read_to_string(&args.file).map(|t| text = t)
    };
    if let Err(e) = read {
        eprintln!("{}: {e}", args.file.display());
        return 1;
    }
    let mut module = match graph::text::parse(&text) {
        Ok(module) => module,
        Err(e) => {
            eprintln!("{}:{e}", args.file.display());
            return 1;
        }
    };
    let names: Vec<&str> = args.passes.split(',').map(str::trim).filter(|p| !p.is_empty()).collect();
    match graph::passes::run(&mut module, &names, args.verify_each) {
        Ok(stats) => {
            stats.iter().for_each(|(name, s)| eprintln!("{name}: {s:?}"));
            print!("{}", graph::text::print(&module));
            0
        }
        Err(e) => {
            eprintln!("{e}");
            1
        }
    }
}
