//! Lists the pages of `docs/errors`, so that a new page needs no line elsewhere.

use std::{env, fs, path::Path};

fn main() {
    let folder = Path::new("../../docs/errors");
    println!("cargo:rerun-if-changed={}", folder.display());
    let mut pages: Vec<_> = fs::read_dir(folder)
        .expect("docs/errors is part of the source")
        .map(|e| e.expect("a readable folder").path())
        .filter(|p| p.extension().is_some_and(|x| x == "md"))
        .collect();
    pages.sort();
    let entries: Vec<String> = pages
        .iter()
        .map(|p| {
            let code = p.file_stem().expect("a file").to_string_lossy();
            let path = p.canonicalize().expect("the file exists");
            format!("({code:?}, include_str!({:?})),", path.display().to_string())
        })
        .collect();
    let out = Path::new(&env::var("OUT_DIR").expect("cargo sets it")).join("error_pages.rs");
    fs::write(out, format!("&[{}]", entries.concat())).expect("the output folder is writable");
}
