//! `lode reduce`: graph text that shows a mistake in, as little of it as still does out.

use super::common::{FAILED, USAGE};
use crate::put;
use crate::{
    cli::{Reduce, Way},
    compare::{self, Case, Verdict},
};
use base::DimEnv;
use graph::Module;
use std::{
    io::Read,
    path::Path,
    process::{Command, Stdio},
};

/// Shrinks the module and prints it.
pub fn run(args: &Reduce) -> u8 {
    reduce(args).unwrap_or_else(|code| code)
}

fn failed(text: &str) -> u8 {
    eprintln!("{text}");
    FAILED
}

fn reduce(args: &Reduce) -> Result<u8, u8> {
    let text = read(&args.file).map_err(|e| failed(&format!("{}: {e}", args.file.display())))?;
    let module = graph::text::parse(&text).map_err(|e| failed(&format!("{}:{e}", args.file.display())))?;
    if let Some(violation) = graph::verify(&module).first() {
        return Err(failed(&format!("{}: {violation}", args.file.display())));
    }
    let mut dims = dims_of(&module);
    for d in &args.dims {
        let Some((name, Ok(n))) = d.split_once('=').map(|(name, n)| (name, n.parse::<i64>())) else {
            eprintln!("--dims takes name=number, not '{d}'");
            return Err(USAGE);
        };
        dims.insert(name.into(), n);
    }
    let names: Vec<&str> = args.passes.iter().flat_map(|p| p.split(',')).map(str::trim).filter(|p| !p.is_empty()).collect();
    if let Some(unknown) = names.iter().find(|n| graph::passes::by_name(n).is_none()) {
        eprintln!("no pass '{unknown}'");
        return Err(USAGE);
    }
    let candidate = std::env::temp_dir().join(format!("lode-reduce-{}.mlir", std::process::id()));
    let mut last = String::new();
    let mut shows = |m: &Module| {
        let case = Case { module: m.clone(), dims: dims.clone(), seed: args.seed };
        let answer = match (&args.check, args.backend) {
            (Some(command), _) => return command_holds(command, m, &candidate),
            (None, None) => compare::passes(&case, &names),
            (None, Some(way)) => ask(way, &case),
        };
        match answer {
            Ok(()) => false,
            Err(Verdict::Differs(text)) => {
                last = text;
                true
            }
            Err(Verdict::Limit(text)) => {
                // Of the module as given it is worth knowing.
                if last.is_empty() {
                    last = text;
                }
                false
            }
        }
    };
    // Each candidate may crash in its own way; what is told at the end is the last.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let shown = shows(&module);
    let small = if shown { graph::shrink::shrink(&module, &mut shows) } else { module };
    std::panic::set_hook(hook);
    let _ = std::fs::remove_file(&candidate);
    if !shown {
        return Err(failed(&format!("{} does not show the mistake {last}", args.file.display())));
    }
    let text = graph::text::print(&small);
    match &args.out {
        Some(path) => std::fs::write(path, text).map_err(|e| failed(&format!("{}: {e}", path.display())))?,
        None => put!("{text}"),
    }
    if !last.is_empty() {
        eprintln!("{last}");
    }
    Ok(0)
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    match path.as_os_str() == "-" {
        true => std::io::stdin().read_to_string(&mut text).map(|_| text),
        false => std::fs::read_to_string(path),
    }
}

/// 3 for each run-time dim.
fn dims_of(module: &Module) -> DimEnv {
    let mut symbols = Default::default();
    let types = module.funcs.iter().flat_map(|f| f.nodes.values()).flat_map(|n| &n.types);
    types.flat_map(|t| &t.shape).for_each(|d| d.symbols(&mut symbols));
    symbols.into_iter().map(|s| (s, 3)).collect()
}

fn ask(way: Way, case: &Case) -> Result<(), Verdict> {
    match way {
        Way::Text => compare::text(&case.module),
        Way::Optimize => compare::optimized(case),
        Way::Grad => compare::gradient(case),
        Way::Tile => compare::tiles(case),
        Way::Host => compare::host(std::slice::from_ref(case), &codegen::Options::default()).remove(0),
    }
}

/// Whether the command ends with 0 on the module's text.
fn command_holds(command: &str, module: &Module, candidate: &Path) -> bool {
    if std::fs::write(candidate, graph::text::print(module)).is_err() {
        return false;
    }
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("{command} \"$1\"")).arg("sh").arg(candidate);
    let status = shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|s| s.success())
}
