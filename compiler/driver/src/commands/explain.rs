//! `lode explain E0301`: the page of an error code. `lode explain model.lode --kernel K`: how a kernel came about.

use super::common::{self, USAGE};
use crate::{
    cli::{Explain, MessageFormat},
    kernels::{self, Row},
    pipeline::Options,
    put,
};

/// The pages of `docs/errors`, by code, from the build script's listing.
const PAGES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/error_pages.rs"));

/// The page of `code`, such as `E0301`; case does not matter.
pub fn page(code: &str) -> Option<&'static str> {
    PAGES.iter().find(|(c, _)| c.eq_ignore_ascii_case(code)).map(|(_, text)| *text)
}

/// Prints the page of a code, the table of a model's kernels, or what there is to say of one.
pub fn run(args: &Explain, format: MessageFormat) -> u8 {
    let what = args.what.file.to_string_lossy();
    if let Some(text) = page(&what) {
        put!("{text}");
        return 0;
    }
    let is_code = what.len() == 5 && what.starts_with(['E', 'e']) && what[1..].bytes().all(|b| b.is_ascii_digit());
    if is_code && !args.what.file.exists() {
        let known: Vec<&str> = PAGES.iter().map(|(c, _)| *c).collect();
        eprintln!("there is no code '{what}'; the codes are {}", known.join(" "));
        return USAGE;
    }
    model(args, format).map_or_else(|code| code, |()| 0)
}

fn model(args: &Explain, format: MessageFormat) -> Result<(), u8> {
    let gpu = match args.target.as_str() {
        library::HOST => false,
        library::SM_90A => true,
        other => {
            eprintln!("there is no target '{other}'; there are {} {}", library::HOST, library::SM_90A);
            return Err(USAGE);
        }
    };
    let options = Options { overrides: common::overrides(&args.what)?, gpu, locked: args.what.locked, ..Options::default() };
    let front = common::front(&args.what, &options, format)?;
    let options = common::with_lock(&front, &options)?;
    let program = front.program.as_ref().expect("checked by `front`");
    let mut dims = options.sizes();
    dims.extend(common::dims(&args.dims)?);
    for d in &program.dims {
        dims.entry(d.as_str().into()).or_insert(tile::cost::RUN_TIME_DIM);
    }
    let story =
        kernels::story(program, &front.sources, &options, &dims, args.kernel.is_some()).map_err(|e| common::back_failed(&e))?;
    let Some(kernel) = &args.kernel else {
        put!("{}", kernels::table(&story, args.all));
        return Ok(());
    };
    let is_it = |r: &&Row| r.number.to_string() == *kernel || r.symbols.iter().any(|s| s == kernel);
    let found: Vec<&Row> = story.rows.iter().filter(is_it).collect();
    if found.is_empty() {
        eprintln!("there is no kernel '{kernel}': `lode explain {}` lists them by number and symbol", args.what.file.display());
        return Err(USAGE);
    }
    let all: Vec<String> = found.iter().map(|r| kernels::describe(&story, r)).collect();
    put!("{}", all.join("\n"));
    Ok(())
}
