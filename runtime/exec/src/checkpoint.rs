//! Weight files and checkpoints: one safetensors file each. It is written under another name, forced to the disk and renamed, so that a
//! checkpoint is whole or not there. Our files carry a checksum of their data; the same tensors give the same bytes.
//! # Source: the safetensors format: 8 bytes of length, a JSON head, data.

use crate::{ExecError, HostTensor, store::Store};
use base::DType;
use library::{Manifest, Role};
use safetensors::{Dtype, SafeTensors};
use std::{
    cmp::Reverse,
    collections::BTreeMap,
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

/// Before a moment's name, `<parameter>#<k>`, in a checkpoint.
pub(crate) const MOMENT: &str = "moment:";
/// The checksum's name among the metadata.
const CHECKSUM: &str = "checksum";

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Piece<'a> {
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<i64>,
    pub bytes: &'a [u8],
}

/// A file's tensors and metadata.
#[derive(Debug, Default)]
pub(crate) struct Contents<'a> {
    /// By name.
    pub pieces: BTreeMap<String, Piece<'a>>,
    /// Names of tensors of dtypes that we do not have, and those.
    pub foreign: Vec<(String, String)>,
    pub metadata: BTreeMap<String, String>,
}

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

/// A hash that differs if one word does: each step is a bijection of the state and of the word. # Source: FNV-1a, on words.
fn hash(start: u64, bytes: &[u8]) -> u64 {
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let (words, rest) = bytes.as_chunks::<8>();
    let h = words.iter().fold(start, |h, w| (h ^ u64::from_le_bytes(*w)).wrapping_mul(PRIME).rotate_left(29));
    rest.iter().fold(h ^ bytes.len() as u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(PRIME))
}

/// The checksum of tensors, by name.
fn checksum<'p>(pieces: impl Iterator<Item = &'p Piece<'p>>) -> String {
    let mut sorted: Vec<&Piece> = pieces.collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    format!("{:016x}", sorted.iter().fold(0, |h, p| hash(hash(h, p.name.as_bytes()), p.bytes)))
}

impl<'a> Contents<'a> {
    /// Reads a file's bytes; `path` is for messages.
    ///
    /// # Errors
    /// E0705 if it is truncated or damaged.
    pub(crate) fn parse(bytes: &'a [u8], path: &Path) -> Result<Contents<'a>, ExecError> {
        let help = "the file is truncated or damaged";
        let failed = |why: String| ExecError::File { path: path.display().to_string(), why, help };
        let file = SafeTensors::deserialize(bytes).map_err(|e| failed(e.to_string()))?;
        let (_, head) = SafeTensors::read_metadata(bytes).map_err(|e| failed(e.to_string()))?;
        let mut out = Contents::default();
        out.metadata.extend(head.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())));
        for (name, view) in file.iter() {
            let Some(dtype) = DType::ALL.into_iter().find(|d| to_safe(*d) == view.dtype()) else {
                out.foreign.push((name.to_string(), format!("{:?}", view.dtype())));
                continue;
            };
            let shape = view.shape().iter().map(|d| *d as i64).collect();
            // The view borrows from the file's bytes, not from `file`.
            let piece = Piece { name: name.to_string(), dtype, shape, bytes: view.data() };
            out.pieces.insert(name.to_string(), piece);
        }
        out.foreign.sort();
        if out.metadata.get(CHECKSUM).is_some_and(|sum| *sum != checksum(out.pieces.values())) {
            return Err(failed("its checksum is wrong".into()));
        }
        Ok(out)
    }
}

/// Writes tensors and metadata.
///
/// # Errors
/// E0705; what was at `path` before stays.
pub fn write(path: &Path, tensors: &[(String, HostTensor)], metadata: &[(&str, String)]) -> Result<(), ExecError> {
    let pieces = tensors.iter().map(|(n, t)| Piece { name: n.clone(), dtype: t.dtype, shape: t.shape.clone(), bytes: &t.bytes });
    write_pieces(path, pieces.collect(), metadata)
}

fn write_pieces(path: &Path, mut pieces: Vec<Piece>, metadata: &[(&str, String)]) -> Result<(), ExecError> {
    // Wide elements first, so that all are aligned.
    pieces.sort_by(|a, b| (Reverse(a.dtype.bytes()), &a.name).cmp(&(Reverse(b.dtype.bytes()), &b.name)));
    let mut known: BTreeMap<&str, String> = metadata.iter().map(|(k, v)| (*k, v.clone())).collect();
    known.insert(CHECKSUM, checksum(pieces.iter()));
    let text = |x: &str| serde_json::Value::from(x).to_string();
    let mut head = format!("{{\"__metadata__\":{}", serde_json::json!(known));
    let mut at = 0;
    for p in &pieces {
        let end = at + p.bytes.len();
        let dtype = to_safe(p.dtype).to_string();
        head.push_str(&format!(
            ",{}:{{\"dtype\":\"{dtype}\",\"shape\":{:?},\"data_offsets\":[{at},{end}]}}",
            text(&p.name),
            p.shape
        ));
        at = end;
    }
    head.push('}');
    head.push_str(&" ".repeat(head.len().next_multiple_of(8) - head.len()));
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temporary = path.with_extension("new");
    let save = || -> std::io::Result<()> {
        fs::create_dir_all(parent)?;
        let mut file = BufWriter::new(File::create(&temporary)?);
        file.write_all(&(head.len() as u64).to_le_bytes())?;
        file.write_all(head.as_bytes())?;
        pieces.iter().try_for_each(|p| file.write_all(p.bytes))?;
        file.into_inner()?.sync_all()?;
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
    let contents = Contents::parse(bytes, path)?;
    if let Some((name, dtype)) = contents.foreign.first() {
        let (why, help) = (format!("{name} is of dtype {dtype}"), "convert it to a float type");
        return Err(ExecError::File { path: path.display().to_string(), why, help });
    }
    let tensor = |p: Piece| HostTensor { dtype: p.dtype, shape: p.shape, bytes: p.bytes.to_vec() };
    Ok(contents.pieces.into_iter().map(|(n, p)| (n, tensor(p))).collect())
}

/// What a run is, to go on with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Identity {
    /// Model, config, batch, data and seed: another one is another run.
    pub run: String,
    /// Steps and learning rate: may be changed on the way.
    pub schedule: String,
}

/// Saves parameters and states under their file names and moments as `moment:<parameter>#<k>`.
///
/// # Errors
/// E0705.
pub fn save(store: &mut Store, manifest: &Manifest, folder: &Path, step: u64, identity: &Identity) -> Result<PathBuf, ExecError> {
    let mut pieces = store.pieces(manifest);
    for ((role, name), slot) in store.iter() {
        if role == Role::Moment {
            let (name, shape) = (format!("{MOMENT}{name}"), slot.shape.clone());
            pieces.push(Piece { name, dtype: slot.dtype, shape, bytes: slot.memory.bytes() });
        }
    }
    let path = folder.join(format!("step-{step:08}.safetensors"));
    let metadata = [
        ("format", "lode-checkpoint-1".to_string()),
        ("step", step.to_string()),
        ("identity", identity.run.clone()),
        ("schedule", identity.schedule.clone()),
    ];
    write_pieces(&path, pieces, &metadata)?;
    Ok(path)
}

/// The checkpoints of a folder, newest first.
pub fn list(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = files(folder, "safetensors");
    found.sort();
    found.reverse();
    found
}

/// Files `step-*` with this extension.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok).map(|e| e.path());
    let is_step = |p: &PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("step-"));
    entries.filter(|p| is_step(p) && p.extension().is_some_and(|x| x == extension)).collect()
}

/// Removes all but the newest `keep` checkpoints, and what a run that was killed left half-written.
pub fn prune(folder: &Path, keep: usize) {
    for old in list(folder).into_iter().skip(keep).chain(files(folder, "new")) {
        let _ = fs::remove_file(old);
    }
}

/// Loads the newest checkpoint that can be read; its step. Damaged ones are named to `warn` and passed over.
///
/// # Errors
/// E0709 if none is left, E0706 if it is of another run.
pub fn resume(
    store: &mut Store,
    manifest: &Manifest,
    folder: &Path,
    identity: &Identity,
    warn: &mut dyn FnMut(String),
) -> Result<u64, ExecError> {
    let mut why = "the folder holds none".to_string();
    for path in list(folder) {
        let read = fs::read(&path).map_err(|e| ExecError::io(&path, &e));
        let loaded = read.and_then(|bytes| load(store, manifest, &bytes, &path, identity, warn));
        match loaded {
            Err(e @ ExecError::File { .. }) => {
                why = e.to_string();
                warn(format!("{e}; trying the checkpoint before it"));
            }
            other => return other,
        }
    }
    Err(ExecError::NoCheckpoint { path: folder.display().to_string(), why })
}

fn load(
    store: &mut Store,
    manifest: &Manifest,
    bytes: &[u8],
    path: &Path,
    identity: &Identity,
    warn: &mut dyn FnMut(String),
) -> Result<u64, ExecError> {
    let contents = Contents::parse(bytes, path)?;
    let shown = || path.display().to_string();
    let Some(step) = contents.metadata.get("step").and_then(|s| s.parse::<u64>().ok()) else {
        let why = "it is no checkpoint of a training run".into();
        return Err(ExecError::File { path: shown(), why, help: "train without --resume" });
    };
    if contents.metadata.get("identity") != Some(&identity.run) {
        let mismatches = "  it was made with another model, config, batch, data or seed".into();
        return Err(ExecError::Weights { path: shown(), mismatches });
    }
    let found = store.match_names(manifest, &contents, &[], false);
    let found = found.map_err(|mismatches| ExecError::Weights { path: shown(), mismatches })?;
    let update = manifest.entry("update");
    let mut moments = Vec::new();
    for p in update.iter().flat_map(|e| &e.args).filter(|p| p.role == Role::Moment) {
        let shape: Option<Vec<i64>> = p.shape.iter().map(base::Dim::known).collect();
        let piece = contents
            .pieces
            .get(&format!("{MOMENT}{}", p.name))
            .filter(|m| Some(&m.shape) == shape.as_ref() && m.dtype == p.dtype);
        let Some(piece) = piece else {
            return Err(ExecError::Weights {
                path: shown(),
                mismatches: format!("  the moment {} is missing or has another type", p.name),
            });
        };
        moments.push((p, piece));
    }
    store.fill(manifest, found)?;
    for (p, piece) in moments {
        store.slot(Role::Moment, &p.name, piece.dtype, &piece.shape)?.memory.bytes_mut().copy_from_slice(piece.bytes);
    }
    if contents.metadata.get("schedule") != Some(&identity.schedule) {
        warn("steps or learning rate differ from those of the checkpoint: the run goes on with the new ones".into());
    }
    Ok(step)
}

#[cfg(test)]
mod tests;
