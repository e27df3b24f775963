//! `lode opt`: graph text in, passes, graph text out; tile text, plans and schedules in, verified, out.

use crate::cli::Opt;
use crate::put;
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
    let of = |what: &str| {
        if !args.passes.is_empty() {
            eprintln!("passes are of graphs; {} is {what}", args.file.display());
        }
        !args.passes.is_empty()
    };
    if text.contains("\"tile.kernel\"") {
        return if of("tile text") { 2 } else { tile_text(args, &text) };
    }
    if text.starts_with("plan ") {
        return if of("a plan") { 2 } else { plan_text(args, &text) };
    }
    // A schedule without its header begins with a cell.
    if text.starts_with("schedule ") || text.starts_with(|c: char| c.is_ascii_digit()) {
        return if of("a schedule") { 2 } else { schedule_text(args, &text) };
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
            put!("{}", graph::text::print(&module));
            0
        }
        Err(e) => {
            eprintln!("{e}");
            1
        }
    }
}

/// Verifies kernels and prints them.
fn tile_text(args: &Opt, text: &str) -> u8 {
    let kernels = match tile::text::parse(text) {
        Ok(kernels) => kernels,
        Err(e) => {
            eprintln!("{}:{e}", args.file.display());
            return 1;
        }
    };
    let violations: Vec<String> =
        kernels.iter().flat_map(|k| tile::verify(k).into_iter().map(|v| format!("{}: {v}", k.name))).collect();
    violations.iter().for_each(|v| eprintln!("{v}"));
    put!("{}", tile::text::print(&kernels));
    u8::from(!violations.is_empty())
}

/// Verifies plans and prints them.
fn plan_text(args: &Opt, text: &str) -> u8 {
    let plans = match exec::plan::parse(text) {
        Ok(plans) => plans,
        Err(e) => {
            eprintln!("{}:{e}", args.file.display());
            return 1;
        }
    };
    let violations: Vec<String> =
        plans.iter().flat_map(|p| exec::plan::verify(&p.plan).into_iter().map(|v| format!("{}: {v}", p.entry))).collect();
    violations.iter().for_each(|v| eprintln!("{v}"));
    plans.iter().for_each(|p| put!("{p}"));
    u8::from(!violations.is_empty())
}

/// Verifies a schedule and prints it; messages, waits and sums that are not there are added first.
fn schedule_text(args: &Opt, text: &str) -> u8 {
    let mut plan = match schedule::text::parse(text) {
        Ok(plan) => plan,
        Err(e) => {
            eprintln!("{}:{e}", args.file.display());
            return 1;
        }
    };
    if let Err(e) = schedule::passes::complete(&mut plan) {
        return super::common::fail_with(&e);
    }
    let violations = schedule::verify(&plan, &schedule::assign_slots(&plan), &schedule::Limits::of(&plan));
    violations.iter().for_each(|v| eprintln!("{v}"));
    put!("{}", schedule::text::print(&plan));
    u8::from(!violations.is_empty())
}
