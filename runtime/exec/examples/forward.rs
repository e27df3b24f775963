//! A Rust program that runs a library: `cargo run -p exec --example forward -- strata.lodelib step-00000100.safetensors "In the"`
//! prints the likeliest byte after a text.

use exec::{HostTensor, Session};
use library::Role;
use std::{error::Error, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [path, weights, text] = &args[..] else { return Err("a library, weights and a text".into()) };
    // SAFETY: the user names a file that `lode build` made.
    let mut session = unsafe { Session::open(Path::new(path), None) }?;
    let manifest = session.manifest.clone();
    session.store.load_weights(&manifest, Path::new(weights), &[])?;
    let input = session.entry("forward")?.args.iter().find(|p| p.role == Role::Input).ok_or("no input")?.name.clone();
    let tokens: Vec<i32> = text.bytes().map(i32::from).collect();
    let tokens = HostTensor::from_i32(&[1, tokens.len() as i64], &tokens);
    let dims = session.bind("forward", &[(&input, &tokens.shape)])?;
    let outputs = session.run("forward", &dims, &[(&input, &tokens)])?;
    let (_, logits) = outputs.first().ok_or("no output")?;
    let vocab = logits.shape.last().copied().unwrap_or(1).max(1) as usize;
    let last = logits.to_f64().split_off(logits.elems() - vocab);
    let best = last.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(i, _)| i);
    println!("{:?}", char::from(u8::try_from(best)?));
    Ok(())
}
