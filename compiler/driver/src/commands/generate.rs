//! `lode generate`: continues a prompt.

use super::common;
use crate::putln;
use crate::{
    cli::{Generate, MessageFormat},
    pipeline::Options,
};
use exec::{ExecError, Session, checkpoint, generate, store::TIED};
use std::io::Write;

/// Continues a prompt on standard output.
pub fn run(args: &Generate, format: MessageFormat) -> u8 {
    start(args, format).map_or_else(|code| code, |()| 0)
}

fn start(args: &Generate, format: MessageFormat) -> Result<(), u8> {
    let options = Options {
        overrides: common::overrides(&args.model)?,
        locked: args.model.locked,
        gpu: args.on.is_gpu(),
        ..Options::default()
    };
    let mut session = common::session_on(common::library(&args.model, &options, format)?, &args.on, None)?;
    let manifest = session.manifest.clone();
    let failed = |e: ExecError| common::fail_with(&e);
    session.store.initialise(&manifest, args.seed).map_err(failed)?;
    if let Some(path) = &args.weights {
        // A folder stands for its newest checkpoint.
        let path = if path.is_dir() { checkpoint::list(path).first().cloned().unwrap_or(path.clone()) } else { path.clone() };
        session.store.load_weights(&manifest, &path, TIED).map_err(failed)?;
    }
    let o = generate::Options {
        length: args.length,
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        context: args.context,
        seed: args.seed,
    };
    if args.tokens.is_empty() {
        return print(&mut session, args.prompt.as_bytes(), &o).map_err(failed);
    }
    let tokens = generate::generate(&mut session, &args.tokens, &o, &mut |_| {}).map_err(failed)?;
    putln!("{}", tokens.iter().map(i32::to_string).collect::<Vec<_>>().join(","));
    Ok(())
}

/// Continues bytes, printing them as they come.
pub fn print(session: &mut Session, prompt: &[u8], o: &generate::Options) -> Result<(), ExecError> {
    let mut out = std::io::stdout();
    let mut put = |byte: i32| {
        // What is no text of one byte is shown as a dot, so that the terminal stays sane.
        let b = u8::try_from(byte).unwrap_or(b'.');
        let shown = if b == b'\n' || b == b'\t' || (b' '..=b'~').contains(&b) { b } else { b'.' };
        let _ = out.write_all(&[shown]).and_then(|()| out.flush());
    };
    prompt.iter().for_each(|b| put(i32::from(*b)));
    let tokens: Vec<i32> = prompt.iter().map(|b| i32::from(*b)).collect();
    generate::generate(session, &tokens, o, &mut put)?;
    putln!();
    Ok(())
}
