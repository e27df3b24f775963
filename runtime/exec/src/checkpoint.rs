//! Checkpoints: one safetensors file each. It is written under another name, forced to the disk and renamed, so that a checkpoint is
//! whole or not there.

use crate::{ExecError, HostTensor, store::Store};
use base::DType;
use library::{Manifest, Role};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

fn to_safe(d: DType) -> Dtype {
    match d {
        DType::F64 => Dtype::F64,
        DType::F32 => Dtype::F32,
        DType::BF16 => Dtype::BF16,
        DType::F16 => Dtype::F16,
        DType::E4M3 => Dtype::F8_E4M3,
        DType::I64 => Dtype::I64,
        DType::I32 => Dtype::I32,
        DType::Bool => Dtype::BOOL,
    }
}

/// Writes tensors and metadata.
///
/// # Errors
/// E0705; what was at `path` before stays.
pub fn write(path: &Path, tensors: &[(String, HostTensor)], metadata: &[(&str, String)]) -> Result<(), ExecError> {
    let views: Result<Vec<(&str, TensorView)>, _> = tensors
        .iter()
        .map(|(n, t)| {
            let shape = t.shape.iter().map(|d| *d as usize).collect();
            TensorView::new(to_safe(t.dtype), shape, &t.bytes).map(|v| (n.as_str(), v))
        })
        .collect();
    let failed = |why: String| ExecError::File { path: path.display().to_string(), why, help: "nothing was changed" };
    let metadata: HashMap<String, String> = metadata.iter().map(|(k, v)| ((*k).to_string(), v.clone())).collect();
    let bytes =
        safetensors::serialize(views.map_err(|e| failed(e.to_string()))?, Some(metadata)).map_err(|e| failed(e.to_string()))?;
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temporary = path.with_extension("new");
    let save = || -> std::io::Result<()> {
        fs::create_dir_all(parent)?;
        let mut file = File::create(&temporary)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(parent)?.sync_all()
    };
    save().map_err(|e| {
        let _ = fs::remove_file(&temporary);
        ExecError::io(path, &e)
    })
}

/// The tensors of a safetensors file.
///
/// # Errors
/// E0705 if it is truncated or damaged.
pub fn parse(bytes: &[u8], path: &Path) -> Result<BTreeMap<String, HostTensor>, ExecError> {
    let failed =
        |why: String| ExecError::File { path: path.display().to_string(), why, help: "the file is truncated or damaged" };
    let file = SafeTensors::deserialize(bytes).map_err(|e| failed(e.to_string()))?;
    let mut out = BTreeMap::new();
    for (name, view) in file.tensors() {
        let dtype = DType::ALL.into_iter().find(|d| to_safe(*d) == view.dtype());
        let dtype = dtype.ok_or_else(|| failed(format!("{name} is of dtype {:?}", view.dtype())))?;
        let shape = view.shape().iter().map(|d| *d as i64).collect();
        out.insert(name, HostTensor { dtype, shape, bytes: view.data().to_vec() });
    }
    Ok(out)
}

/// The metadata of a safetensors file.
fn metadata(bytes: &[u8]) -> Option<HashMap<String, String>> {
    SafeTensors::read_metadata(bytes).ok()?.1.metadata().clone()
}

/// Saves parameters and states under their file names and moments as `<parameter>#<k>`.
///
/// # Errors
/// E0705.
pub fn save(store: &mut Store, manifest: &Manifest, folder: &Path, step: u64, identity: &str) -> Result<PathBuf, ExecError> {
    let mut tensors = store.to_file(manifest);
    for (name, slot) in store.of_role(Role::Moment) {
        let t = HostTensor { dtype: slot.dtype, shape: slot.shape.clone(), bytes: slot.memory.bytes().to_vec() };
        tensors.push((format!("moment:{name}"), t));
    }
    let path = folder.join(format!("step-{step:08}.safetensors"));
    write(&path, &tensors, &[("step", step.to_string()), ("identity", identity.into()), ("format", "lode-checkpoint-1".into())])?;
    Ok(path)
}

/// The checkpoints of a folder, newest first.
pub fn list(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok).map(|e| e.path());
    let mut found: Vec<PathBuf> = entries
        .filter(|p| {
            p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("step-"))
                && p.extension().is_some_and(|x| x == "safetensors")
        })
        .collect();
    found.sort();
    found.reverse();
    found
}

/// Removes all but the newest `keep` checkpoints.
pub fn prune(folder: &Path, keep: usize) {
    for old in list(folder).into_iter().skip(keep) {
        let _ = fs::remove_file(old);
    }
}

/// Loads the newest checkpoint that can be read; its step. Damaged ones are named to `warn` and passed over.
///
/// # Errors
/// E0709 if none is left, E0706 if it is of another model.
pub fn resume(
    store: &mut Store,
    manifest: &Manifest,
    folder: &Path,
    identity: &str,
    warn: &mut dyn FnMut(String),
) -> Result<u64, ExecError> {
    let mut why = "the folder holds none".to_string();
    for path in list(folder) {
        let bytes = match fs::read(&path) {
            Ok(b) => b,
            Err(e) => {
                warn(format!("{}: {e}; trying the one before", path.display()));
                continue;
            }
        };
        let tensors = match parse(&bytes, &path) {
            Ok(t) => t,
            Err(e) => {
                why = e.to_string();
                warn(format!("{e}; trying the one before"));
                continue;
            }
        };
        let meta = metadata(&bytes).unwrap_or_default();
        let Some(step) = meta.get("step").and_then(|s| s.parse::<u64>().ok()) else {
            why = format!("{} is no checkpoint of a training run", path.display());
            continue;
        };
        if meta.get("identity").is_some_and(|i| i != identity) {
            return Err(ExecError::Weights {
                path: path.display().to_string(),
                mismatches: "  it was made with another model, config, batch, data or seed".into(),
            });
        }
        for p in &manifest.params {
            let (names, _) = library::names::expand(&p.name, &p.shape);
            let slot = store.slot(p.role, &p.name, p.dtype, &p.shape)?;
            let data: Vec<u8> = names.iter().filter_map(|n| tensors.get(n)).flat_map(|t| t.bytes.iter().copied()).collect();
            if data.len() != slot.memory.len() {
                return Err(ExecError::Weights {
                    path: path.display().to_string(),
                    mismatches: format!("  {} has another size", p.name),
                });
            }
            slot.memory.bytes_mut().copy_from_slice(&data);
        }
        for (name, t) in tensors.iter().filter_map(|(n, t)| n.strip_prefix("moment:").map(|n| (n, t))) {
            let slot = store.slot(Role::Moment, name, t.dtype, &t.shape)?;
            slot.memory.bytes_mut().copy_from_slice(&t.bytes);
        }
        return Ok(step);
    }
    Err(ExecError::NoCheckpoint { path: folder.display().to_string(), why })
}
