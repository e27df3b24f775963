//! Objects linked to a shared object, by the system's C compiler.

use library::{Library, file::BUILD_SYMBOL};
use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    process::Command,
};

/// Why there is no shared object.
#[derive(Debug)]
pub enum LinkError {
    /// The C compiler cannot be started.
    NoCompiler(String, io::Error),
    /// It says so.
    Refused(String),
    /// A file cannot be written.
    Io(PathBuf, io::Error),
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LinkError::NoCompiler(name, e) => write!(f, "the C compiler {name} cannot be started: {e}; CC names another"),
            LinkError::Refused(text) => write!(f, "the objects do not link: {text}"),
            LinkError::Io(path, e) => write!(f, "{}: {e}", path.display()),
        }
    }
}

impl LinkError {
    /// Whether this machine has no C compiler.
    pub fn is_no_compiler(&self) -> bool {
        matches!(self, LinkError::NoCompiler(..))
    }
}

/// Links a library's code to the shared object at `path`, under another name first, by `cc`, or what the variable `CC` names. It
/// carries the build's number, so that it is not taken for that of another.
///
/// # Errors
/// No compiler, what the linker says, or a file that cannot be written.
pub fn link(library: &Library, path: &Path) -> Result<(), LinkError> {
    let parts = path.with_extension(format!("{}.parts", std::process::id()));
    let result = link_in(library, path, &parts);
    let _ = fs::remove_dir_all(&parts);
    result
}

/// As `link`, with intermediate files in the folder `parts`.
fn link_in(library: &Library, path: &Path, parts: &Path) -> Result<(), LinkError> {
    let io = |path: &Path| {
        let path = path.to_path_buf();
        move |e| LinkError::Io(path, e)
    };
    fs::create_dir_all(parts).map_err(io(parts))?;
    let linked = parts.join("linked.so");
    let compiler = std::env::var("CC").ok().filter(|c| !c.is_empty()).unwrap_or("cc".into());
    let mut command = Command::new(&compiler);
    // No symbol may be missing: the run-time loads nothing besides.
    command.args(["-shared", "-Wl,-z,defs", "-Wl,-z,noexecstack", "-o"]).arg(&linked);
    let number = parts.join("build.c");
    let text = format!("const unsigned long long {BUILD_SYMBOL} = {:#x}ULL;\n", library.build());
    fs::write(&number, text).map_err(io(&number))?;
    command.arg(&number);
    for (i, code) in library.code.iter().enumerate() {
        let object = parts.join(format!("{i}.o"));
        fs::write(&object, code).map_err(io(&object))?;
        command.arg(&object);
    }
    let output = command.arg("-lm").output().map_err(|e| LinkError::NoCompiler(compiler, e))?;
    if !output.status.success() {
        return Err(LinkError::Refused(String::from_utf8_lossy(&output.stderr).trim().to_string()));
    }
    fs::rename(&linked, path).map_err(io(path))
}
