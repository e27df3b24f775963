//! Weight files and checkpoints: a safetensors file, or, of a run over ranks, one a stage in a folder `step-N/` and an index `step-N.json`
//! that names them, written last. A file is written under another name, forced to the disk and renamed, so that a checkpoint is whole or not
//! there. Our files carry a checksum of their data; the same tensors give the same bytes. Tensors are keyed by their name in the whole
//! model, with the number of their layer, so a run may go on with other stages than it was saved with.
//! # Source: the safetensors format: 8 bytes of length, a JSON head, data.

use crate::{ExecError, HostTensor, store::Store};
use base::DType;
use library::{Manifest, Role, names};
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
/// The extension of the index of a checkpoint in parts.
const INDEX: &str = "json";

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
        // Of four bytes, as it is there; what is read of them is f32.
        DType::F32 | DType::TF32 => Dtype::F32,
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
fn sum<'p>(pieces: impl Iterator<Item = &'p Piece<'p>>) -> u64 {
    let mut sorted: Vec<&Piece> = pieces.collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    sorted.iter().fold(0, |h, p| hash(hash(h, p.name.as_bytes()), p.bytes))
}

fn checksum<'p>(pieces: impl Iterator<Item = &'p Piece<'p>>) -> String {
    format!("{:016x}", sum(pieces))
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

impl<'a> Contents<'a> {
    /// The tensors of several files, with the metadata of the first.
    ///
    /// # Errors
    /// E0705 if one is truncated or damaged.
    pub(crate) fn parse_all(files: &'a [(PathBuf, Vec<u8>)]) -> Result<Contents<'a>, ExecError> {
        let mut out = Contents::default();
        for (path, bytes) in files {
            let part = Contents::parse(bytes, path)?;
            out.pieces.extend(part.pieces);
            out.foreign.extend(part.foreign);
            part.metadata.into_iter().for_each(|(k, v)| _ = out.metadata.entry(k).or_insert(v));
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
    write_whole(path, |file| {
        file.write_all(&(head.len() as u64).to_le_bytes())?;
        file.write_all(head.as_bytes())?;
        pieces.iter().try_for_each(|p| file.write_all(p.bytes))
    })
}

/// Writes a file that is whole or not there.
fn write_whole(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>) -> Result<(), ExecError> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temporary = path.with_extension("new");
    let save = || -> std::io::Result<()> {
        fs::create_dir_all(parent)?;
        let mut file = BufWriter::new(File::create(&temporary)?);
        fill(&mut file)?;
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
/// E0705, E0443.
pub fn save(store: &mut Store, manifest: &Manifest, folder: &Path, step: u64, identity: &Identity) -> Result<PathBuf, ExecError> {
    store.refresh()?;
    let path = folder.join(format!("step-{step:08}.safetensors"));
    write_pieces(&path, pieces(store, manifest), &metadata(step, identity))?;
    Ok(path)
}

/// Saves the same of a stage as a part of a checkpoint; the checksum of its tensors.
///
/// # Errors
/// E0705.
pub(crate) fn save_part(
    store: &Store,
    manifest: &Manifest,
    folder: &Path,
    (step, part): (u64, Part),
    identity: &Identity,
) -> Result<u64, ExecError> {
    let pieces = pieces(store, manifest);
    let sum = sum(pieces.iter());
    write_pieces(&folder.join(part.file(step)), pieces, &metadata(step, identity))?;
    Ok(sum)
}

/// The checksum of parameters and states, and of the moments if these are `all`.
pub(crate) fn checksum_of(store: &Store, manifest: &Manifest, all: bool) -> u64 {
    sum(if all { pieces(store, manifest) } else { store.pieces(manifest) }.iter())
}

/// Writes the index that makes a checkpoint of its parts: these, with their checksums.
///
/// # Errors
/// E0705.
pub(crate) fn save_index(folder: &Path, step: u64, parts: &[(Part, u64)], identity: &Identity) -> Result<PathBuf, ExecError> {
    let parts: Vec<_> =
        parts.iter().map(|(p, sum)| serde_json::json!({"file": p.file(step), CHECKSUM: format!("{sum:016x}")})).collect();
    let mut index: BTreeMap<&str, serde_json::Value> = BTreeMap::new();
    index.extend(metadata(step, identity).into_iter().map(|(k, v)| (k, v.into())));
    index.insert("parts", parts.into());
    let path = folder.join(format!("step-{step:08}.{INDEX}"));
    let text = serde_json::json!(index).to_string() + "\n";
    write_whole(&path, |file| file.write_all(text.as_bytes()))?;
    Ok(path)
}

/// A file of a checkpoint in parts: what one copy of a stage owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// The stage.
    pub stage: usize,
    /// Which of its copies; the first one has all, unless they share the optimiser.
    pub copy: usize,
}

impl Part {
    fn file(self, step: u64) -> String {
        let copy = if self.copy > 0 { format!("-{}", self.copy) } else { String::new() };
        format!("step-{step:08}/stage-{:03}{copy}.safetensors", self.stage)
    }
}

fn metadata(step: u64, identity: &Identity) -> [(&'static str, String); 4] {
    [
        ("format", "lode-checkpoint-2".to_string()),
        ("step", step.to_string()),
        ("identity", identity.run.clone()),
        ("schedule", identity.schedule.clone()),
    ]
}

/// Parameters, states and moments, each layer's apart.
fn pieces<'s>(store: &'s Store, manifest: &Manifest) -> Vec<Piece<'s>> {
    let mut pieces = store.pieces(manifest);
    let declared = |moment: &str| {
        let param = moment.rsplit_once('#').map_or(moment, |(param, _)| param);
        manifest.params.iter().any(|p| p.name == param)
    };
    for ((_, name), slot) in store.iter().filter(|((role, name), _)| *role == Role::Moment && declared(name)) {
        let (names, shape) = moment_names(name, &slot.shape);
        let each = (slot.memory.len() / names.len().max(1)).max(1);
        for (name, bytes) in names.into_iter().zip(slot.memory.bytes().chunks(each)) {
            pieces.push(Piece { name, dtype: slot.dtype, shape: shape.clone(), bytes });
        }
    }
    pieces
}

/// The names of a moment's layers in a file, and the shape of one.
fn moment_names(name: &str, shape: &[i64]) -> (Vec<String>, Vec<i64>) {
    let (param, number) = name.rsplit_once('#').unwrap_or((name, "0"));
    let (names, shape) = names::expand(param, shape);
    (names.into_iter().map(|n| format!("{MOMENT}{n}#{number}")).collect(), shape)
}

/// The files of a checkpoint or weight file: itself, or the parts that it is the index of.
///
/// # Errors
/// E0705.
pub fn read(path: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>, ExecError> {
    let bytes = fs::read(path).map_err(|e| ExecError::io(path, &e))?;
    if path.extension().is_none_or(|x| x != INDEX) {
        return Ok(vec![(path.into(), bytes)]);
    }
    let failed = |why: &str| ExecError::File { path: path.display().to_string(), why: why.into(), help: "the file is damaged" };
    let index: serde_json::Value = serde_json::from_slice(&bytes).map_err(|e| failed(&e.to_string()))?;
    let parts = index["parts"].as_array().ok_or_else(|| failed("it names no parts"))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut files = Vec::new();
    for part in parts {
        let file = folder.join(part["file"].as_str().ok_or_else(|| failed("a part has no file"))?);
        let bytes = fs::read(&file).map_err(|e| ExecError::io(&file, &e))?;
        // A part of another run under this name has another checksum.
        let contents = Contents::parse(&bytes, &file)?;
        if part[CHECKSUM].as_str() != contents.metadata.get(CHECKSUM).map(String::as_str) {
            return Err(failed(&format!("{} is not the part that it names", file.display())));
        }
        files.push((file, bytes));
    }
    Ok(files)
}

/// The checkpoints of a folder, newest first: files, and indices of parts.
pub fn list(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = [files(folder, "safetensors"), files(folder, INDEX)].concat();
    found.sort();
    found.reverse();
    found
}

/// What a folder has under `step-*`, with this extension.
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
    // Parts without an index.
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok).map(|e| e.path());
    let is_part = |p: &PathBuf| p.is_dir() && p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("step-"));
    for parts in entries.filter(is_part).filter(|p| !p.with_extension(INDEX).exists()) {
        let _ = fs::remove_dir_all(parts);
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
    newest(folder, warn, &mut |path, files, warn| load(store, manifest, files, path, identity, warn))
}

/// Tries checkpoints, the newest first, until one is good: what `load` makes of its files. Damaged ones are named to `warn`.
///
/// # Errors
/// E0709 if none is left; what `load` says but that a file is damaged.
pub(crate) fn newest<R>(
    folder: &Path,
    warn: &mut dyn FnMut(String),
    load: &mut dyn FnMut(&Path, &[(PathBuf, Vec<u8>)], &mut dyn FnMut(String)) -> Result<R, ExecError>,
) -> Result<R, ExecError> {
    let mut why = "the folder holds none".to_string();
    for path in list(folder) {
        match read(&path).and_then(|files| load(&path, &files, warn)) {
            Err(e @ ExecError::File { .. }) => {
                why = e.to_string();
                warn(format!("{e}; trying the checkpoint before it"));
            }
            other => return other,
        }
    }
    Err(ExecError::NoCheckpoint { path: folder.display().to_string(), why })
}

/// Loads what a manifest names from the files of a checkpoint; its step. The files may hold more, if they are several.
///
/// # Errors
/// E0705 if they are damaged, E0706 if they are of another run.
pub(crate) fn load(
    store: &mut Store,
    manifest: &Manifest,
    files: &[(PathBuf, Vec<u8>)],
    path: &Path,
    identity: &Identity,
    warn: &mut dyn FnMut(String),
) -> Result<u64, ExecError> {
    let mut contents = Contents::parse_all(files)?;
    let shown = || path.display().to_string();
    let Some(step) = contents.metadata.get("step").and_then(|s| s.parse::<u64>().ok()) else {
        let why = "it is no checkpoint of a training run".into();
        return Err(ExecError::File { path: shown(), why, help: "train without --resume" });
    };
    if contents.metadata.get("identity") != Some(&identity.run) {
        let mismatches = "  it was made with another model, config, batch, data or seed".into();
        return Err(ExecError::Weights { path: shown(), mismatches });
    }
    // A stage takes its own; a whole model has to take all.
    if manifest.entries.iter().all(|e| e.name != "loss") {
        let own: std::collections::BTreeSet<String> =
            manifest.params.iter().flat_map(|p| names::expand(&p.name, &p.shape).0).collect();
        contents.pieces.retain(|name, _| name.starts_with(MOMENT) || own.contains(name));
    }
    let found = store.match_names(manifest, &contents, &[], false);
    let found = found.map_err(|mismatches| ExecError::Weights { path: shown(), mismatches })?;
    let update = manifest.entries.iter().filter(|e| crate::train::is_update(&e.name));
    let mut moments = Vec::new();
    for p in update.flat_map(|e| &e.args).filter(|p| p.role == Role::Moment) {
        let shape: Vec<i64> = p.shape.iter().filter_map(base::Dim::known).collect();
        let (names, each) = moment_names(&p.name, &shape);
        let fits = |m: &&Piece| m.shape == each && m.dtype == p.dtype;
        let pieces: Option<Vec<&Piece>> = names.iter().map(|n| contents.pieces.get(n).filter(fits)).collect();
        let Some(pieces) = pieces else {
            return Err(ExecError::Weights {
                path: shown(),
                mismatches: format!("  the moment {} is missing or has another type", p.name),
            });
        };
        moments.push((p, shape, pieces));
    }
    store.fill(manifest, found)?;
    for (p, shape, pieces) in moments {
        let to = store.slot(Role::Moment, &p.name, p.dtype, &shape)?.memory.bytes_mut();
        let each = (to.len() / pieces.len().max(1)).max(1);
        to.chunks_mut(each).zip(pieces).for_each(|(to, piece)| to.copy_from_slice(piece.bytes));
    }
    if contents.metadata.get("schedule") != Some(&identity.schedule) {
        warn("steps or learning rate differ from those of the checkpoint: the run goes on with the new ones".into());
    }
    Ok(step)
}

#[cfg(test)]
mod tests;
