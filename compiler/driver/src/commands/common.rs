//! What several commands do: read a model with its config, report, make a session.

use crate::{
    cli::{Machine, MessageFormat, Model, On},
    pipeline::{self, BackError, Front, Lock, Options},
    report,
};
use base::DimEnv;
use codegen::Jit;
use device::{Code, KernelFn};
use exec::{HostTensor, Session, random::Stream};
use hir::{Constant, Overrides};
use library::{Library, Role};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};
use tile::{Tuning, TuningError};

/// The exit code of a mistake in the input.
pub const FAILED: u8 = 1;
/// A year: clocks can be asked for a moment that is so far. # Units: seconds.
pub const LONGEST: f64 = 365.0 * 86_400.0;
/// The exit code of a mistake in the command.
pub const USAGE: u8 = 2;

/// Compiled code as the device takes it.
pub(crate) struct Loaded(pub(crate) Jit);

impl Code for Loaded {
    fn kernel(&self, symbol: &str) -> Option<KernelFn> {
        let f = self.0.symbol(symbol)?;
        // SAFETY: every symbol of our objects that a manifest names is an entry point of this type.
        Some(unsafe { std::mem::transmute::<*const (), KernelFn>(f) })
    }
}

/// Reads `--set` and `--config`.
pub fn overrides(model: &Model) -> Result<Overrides, u8> {
    let mut set = Vec::new();
    for s in &model.set {
        let Some((name, value)) = s.split_once('=') else {
            eprintln!("--set takes name=value, not '{s}'");
            return Err(USAGE);
        };
        set.push((name.trim().to_string(), value.trim().to_string()));
    }
    let mut config = BTreeMap::new();
    if let Some(path) = &model.config {
        let text = std::fs::read_to_string(path).map_err(|e| fail(&format!("{}: {e}", path.display())))?;
        let json: serde_json::Value = serde_json::from_str(&text).map_err(|e| fail(&format!("{}: {e}", path.display())))?;
        insert_entries(&json, false, &mut config);
        insert_unscaled(&json, &mut config);
    }
    Ok(Overrides { set, config })
}

/// What Hugging Face's files say of how positions are scaled is in an object of either name.
const SCALING: [&str; 2] = ["rope_scaling", "rope_parameters"];

/// Adds a JSON object's entries. Those of an object within it stand beside its own and give way to them. `scaling`: it says how positions are scaled; older files
/// say `type` there where newer ones say `rope_type`, and a null is left out.
fn insert_entries(json: &serde_json::Value, scaling: bool, config: &mut BTreeMap<String, Constant>) {
    let entries = || json.as_object().into_iter().flatten();
    for (name, value) in entries() {
        let constant = match value {
            serde_json::Value::Bool(b) => Constant::Bool(*b),
            serde_json::Value::String(s) => Constant::Str(s.clone()),
            serde_json::Value::Number(n) => match (n.as_i64(), n.as_f64()) {
                (Some(i), _) => Constant::Int(i),
                (None, Some(x)) => Constant::Float(x),
                (None, None) => continue,
            },
            // A null is a 0; a list has no place in a config.
            serde_json::Value::Null if scaling => continue,
            serde_json::Value::Null => Constant::Int(0),
            serde_json::Value::Array(_) | serde_json::Value::Object(_) => continue,
        };
        let name = if scaling && name == "type" { "rope_type" } else { name };
        config.entry(name.into()).or_insert(constant);
    }
    for (name, value) in entries().filter(|(_, value)| value.is_object()) {
        insert_entries(value, SCALING.contains(&name.as_str()), config);
    }
}

/// What a file of Hugging Face's leaves out of how positions are scaled is not scaled, whatever the model's own defaults are; the original length is that of the model then.
fn insert_unscaled(json: &serde_json::Value, config: &mut BTreeMap<String, Constant>) {
    if SCALING.iter().any(|name| json.get(name).is_some_and(serde_json::Value::is_object)) {
        if let Some(length) = config.get("max_position_embeddings").cloned() {
            config.entry("original_max_position_embeddings".into()).or_insert(length);
        }
        for name in ["mscale", "mscale_all_dim"] {
            config.entry(name.into()).or_insert(Constant::Int(0));
        }
    } else if json.get("rope_theta").is_some() || json.get("rope_scaling").is_some() {
        config.entry("rope_type".into()).or_insert(Constant::Str("default".into()));
    }
}

/// Reads `--dims B=1,T=128`.
pub fn dims(given: &[String]) -> Result<DimEnv, u8> {
    let mut dims = DimEnv::new();
    for d in given {
        let Some((name, value)) = d.split_once('=').and_then(|(n, v)| Some((n.trim(), v.trim().parse::<i64>().ok()?))) else {
            eprintln!("--dims takes name=number, not '{d}'");
            return Err(USAGE);
        };
        dims.insert(name.into(), value);
    }
    Ok(dims)
}

fn fail(text: &str) -> u8 {
    eprintln!("{text}");
    FAILED
}

/// Reads and checks a model.
pub fn front(model: &Model, options: &Options, format: MessageFormat) -> Result<Front, u8> {
    let (name, text) = pipeline::read_source(&model.file).map_err(|e| fail(&format!("{}: {e}", model.file.display())))?;
    let folder = model.file.parent().unwrap_or(Path::new(".")).to_path_buf();
    let front = pipeline::front(&name, &text, &mut |path| std::fs::read_to_string(folder.join(path)).ok(), options);
    report::print(&front.sources, &front.diagnostics, format);
    if front.program.is_some() { Ok(front) } else { Err(FAILED) }
}

/// Tells why the back half gave up.
pub fn back_failed(e: &BackError) -> u8 {
    match e {
        BackError::Target(t) => fail_with(t),
        BackError::Tuning(t) => fail_with(t),
        BackError::Internal(text) => base::bug!("{text}"),
    }
}

/// Prints a diagnostic that has no source text.
pub fn fail_with(e: &(dyn miette::Diagnostic + Send + Sync)) -> u8 {
    let code = e.code().map_or(String::new(), |c| format!("{c}: "));
    eprintln!("error: {code}{e}");
    if let Some(help) = e.help() {
        eprintln!("  help: {help}");
    }
    FAILED
}

/// The library of a model: read, if its file is one that `lode build` wrote, else checked and compiled.
pub fn library(model: &Model, options: &Options, format: MessageFormat) -> Result<Library, u8> {
    if model.file.extension().is_none_or(|e| e != library::file::EXTENSION) {
        return compile(&front(model, options, format)?, options);
    }
    if !model.set.is_empty() || model.config.is_some() {
        eprintln!("{} is built: --set and --config come too late", model.file.display());
        return Err(USAGE);
    }
    let target = if options.gpu { library::SM_90A } else { library::HOST };
    let read = Library::read(&model.file).and_then(|l| l.expect_target(target).map(|()| l));
    read.map_err(|e| fail_with(&e))
}

/// The options with the lock beside the model, if there is one. One of another target, program or config is not used, and said so; with
/// `--locked` it is an error, as it is if there is none.
pub fn with_lock(front: &Front, options: &Options) -> Result<Options, u8> {
    if options.no_optimize && !options.locked {
        return Ok(options.clone());
    }
    let path = lock_path(Path::new(&*front.sources.get(front.root).name));
    let shown = path.display().to_string();
    let command = "`lode tune` with the same model and config writes it".to_string();
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && !options.locked => return Ok(options.clone()),
        Err(e) => return Err(fail_with(&TuningError::Unreadable { path: shown, why: e.to_string(), command })),
    };
    let tuning = Tuning::parse(&text, &shown).map_err(|e| fail_with(&e))?;
    let target = if options.gpu { "sm_90a" } else { "host" };
    let program = front.program.as_ref().expect("checked by `front`");
    let wanted = (program.module.name.clone(), pipeline::program_hash(program));
    let say = |p: &Option<(String, u64)>| p.as_ref().map_or("of none".into(), |(name, hash)| format!("{name} {hash:016x}"));
    let unfit = if tuning.target != target {
        Some(TuningError::Foreign { path: shown.clone(), found: tuning.target.clone(), wanted: target.into() })
    } else if tuning.program.as_ref() != Some(&wanted) {
        let found = say(&tuning.program);
        Some(TuningError::Outdated { path: shown.clone(), found, wanted: say(&Some(wanted)), command })
    } else {
        None
    };
    match unfit {
        Some(e) if options.locked => Err(fail_with(&e)),
        Some(e) => {
            eprintln!("note: {e}; it is not used");
            Ok(options.clone())
        }
        None => Ok(Options { lock: Some(Lock { path: shown, tuning }), ..options.clone() }),
    }
}

/// The lock beside a model.
pub fn lock_path(model: &Path) -> PathBuf {
    model.with_extension("tune.lock")
}

/// Seeded inputs of an entry: floats normal, integers uniform below [`TOKENS`], scalars 1. Of what has no size for these dims, the name.
pub fn inputs(entry: &library::Entry, dims: &DimEnv) -> Result<Vec<(String, HostTensor)>, String> {
    let ports = entry.args.iter().filter(|p| !p.role.is_stored());
    let tensor = |port: &library::Port| {
        let shape: Option<Vec<i64>> = port.shape.iter().map(|d| d.eval(dims)).collect();
        let shape = shape.ok_or_else(|| port.name.clone())?;
        let stream = Stream::new(0, &port.name);
        let value = |i: u64| match (port.role, port.dtype.is_float()) {
            (Role::Scalar, true) => 1.0,
            (_, true) => stream.normal(i),
            (_, false) => (stream.uniform(i) * TOKENS).floor(),
        };
        let elems = shape.iter().product::<i64>().max(0) as u64;
        Ok((port.name.clone(), HostTensor::from_f64(port.dtype, &shape, (0..elems).map(value))))
    };
    ports.map(tensor).collect()
}

/// Integer inputs are uniform below this: every shipped model has at least as many tokens.
const TOKENS: f64 = 64.0;

/// Compiles a checked model.
pub fn compile(front: &Front, options: &Options) -> Result<Library, u8> {
    let program = front.program.as_ref().expect("checked by `front`");
    let options = &with_lock(front, options)?;
    let library = || -> Result<Library, BackError> {
        let (module, _) = pipeline::middle(program, options)?;
        let lowered = pipeline::lower(&module, options)?;
        pipeline::library(program, &module, &lowered, &front.sources, options)
    };
    library().map_err(|e| back_failed(&e))
}

/// A session that runs a compiled library in this process.
pub fn session(library: Library, threads: Option<usize>) -> Result<Session, u8> {
    let jit = Jit::load(&library.code).unwrap_or_else(|e| base::bug!("{e}"));
    Session::new(library.manifest, Box::new(Loaded(jit)), threads).map_err(|e| fail_with(&e))
}

/// A session where `on` says: on this machine's processor, or on a GPU, whose code `LODE_PTXAS` assembles if it names an assembler.
pub fn session_on(library: Library, on: &On, threads: Option<usize>) -> Result<Session, u8> {
    match on.backend {
        Machine::Host => session(library, threads),
        Machine::Cuda => {
            let ptxas = std::env::var_os("LODE_PTXAS").map(std::path::PathBuf::from);
            Session::on_gpu(library, on.device, ptxas.as_deref()).map_err(|e| fail_with(&e))
        }
    }
}

impl On {
    /// Whether code for a GPU is needed.
    pub fn is_gpu(&self) -> bool {
        self.backend == Machine::Cuda
    }
}

#[cfg(test)]
mod tests {
    use super::{insert_entries, insert_unscaled};
    use hir::Constant;
    use std::collections::BTreeMap;

    fn config(text: &str) -> BTreeMap<String, Constant> {
        let (json, mut config) = (serde_json::from_str(text).expect("it is JSON"), BTreeMap::new());
        insert_entries(&json, false, &mut config);
        insert_unscaled(&json, &mut config);
        config
    }

    #[test]
    fn what_a_file_leaves_out_is_not_scaled() {
        let default = Constant::Str("default".into());
        for text in [r#"{ "rope_theta": 1e4 }"#, r#"{ "rope_theta": 1e4, "rope_scaling": null }"#, r#"{ "rope_scaling": null }"#]
        {
            assert_eq!(config(text).get("rope_type"), Some(&default), "{text}");
        }
        let scaled = config(r#"{ "rope_scaling": { "type": "yarn", "factor": 40, "mscale": 0.7 } }"#);
        let of = |name: &str| scaled.get(name).cloned();
        assert_eq!(of("rope_type"), Some(Constant::Str("yarn".into())));
        assert_eq!([of("mscale"), of("mscale_all_dim")], [Some(Constant::Float(0.7)), Some(Constant::Int(0))]);
        // A null is as nothing there; the length that positions were made for is the model's unless another is said; other objects have types of their own.
        let text = r#"{ "max_position_embeddings": 9, "rope_scaling": { "rope_type": "yarn", "beta_fast": null }, "quantization_config": { "type": "fp8" } }"#;
        let of = |name: &str| config(text).get(name).cloned();
        assert_eq!([of("beta_fast"), of("original_max_position_embeddings")], [None, Some(Constant::Int(9))]);
        assert_eq!(
            [of("rope_type"), of("type")].map(|c| c.expect("it is there")),
            ["yarn", "fp8"].map(|s| Constant::Str(s.into()))
        );
        let text = r#"{ "max_position_embeddings": 9, "rope_scaling": { "original_max_position_embeddings": 3 } }"#;
        assert_eq!(config(text).get("original_max_position_embeddings"), Some(&Constant::Int(3)));
        // A file that is of other things changes nothing.
        assert_eq!(config(r#"{ "hidden_size": 8 }"#).len(), 1);
    }
}
