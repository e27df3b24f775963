//! The file: magic, format, manifest as JSON, code, checksum. Reading checks everything; a damaged or foreign file is an error, never
//! a crash.

use crate::{LibraryError, Manifest};
use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
};

/// A manifest and the code its kernels are in: host objects or PTX.
#[derive(Clone, Debug, PartialEq)]
pub struct Library {
    /// What it holds.
    pub manifest: Manifest,
    /// The code: relocatable objects of the host.
    pub code: Vec<Vec<u8>>,
}

const MAGIC: &[u8; 8] = b"LODELIB\n";
/// The format that this version writes and reads.
const FORMAT: u32 = 2;

/// A file's extension.
pub const EXTENSION: &str = "lodelib";
/// The symbol of a shared object whose value, 8 bytes, is [`Library::build`].
pub const BUILD_SYMBOL: &str = "lode_build";

/// The shared object that belongs to a library: `lib<stem>.so` beside `<stem>.lodelib`.
pub fn object_path(library: &Path) -> PathBuf {
    let stem = library.file_stem().unwrap_or_default().to_string_lossy();
    library.with_file_name(format!("lib{stem}.so"))
}

/// 64-bit FNV-1a. # Source: Fowler, Noll, Vo; RFC 9923.
pub fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3))
}

impl Library {
    /// A library of validated parts.
    ///
    /// # Errors
    /// E0604 if the manifest contradicts itself.
    pub fn new(manifest: Manifest, code: Vec<Vec<u8>>) -> Result<Library, LibraryError> {
        crate::validate::validate(&manifest).map_err(|why| LibraryError::Invalid { name: manifest.name.clone(), why })?;
        Ok(Library { manifest, code })
    }
    /// Fails unless the library was built for `target`.
    ///
    /// # Errors
    /// E0607.
    pub fn expect_target(&self, target: &str) -> Result<(), LibraryError> {
        let (name, built) = (&self.manifest.name, &self.manifest.target);
        if built == target {
            return Ok(());
        }
        Err(LibraryError::Target { name: name.clone(), built: built.clone(), wanted: target.into() })
    }
    /// What tells this library's code from that of another build: a shared object carries it as [`BUILD_SYMBOL`].
    pub fn build(&self) -> u64 {
        let parts: Vec<u8> = self.code.iter().flat_map(|part| checksum(part).to_le_bytes()).collect();
        checksum(&[self.manifest.name.as_bytes(), &parts].concat())
    }
    /// The file's bytes; the same library gives the same bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let manifest = serde_json::to_vec(&self.manifest).expect("a manifest is plain data");
        let mut out = MAGIC.to_vec();
        out.extend(FORMAT.to_le_bytes());
        out.extend((self.code.len() as u32).to_le_bytes());
        for part in [&manifest].into_iter().chain(&self.code) {
            out.extend((part.len() as u64).to_le_bytes());
            out.extend(part);
        }
        let sum = checksum(&out);
        out.extend(sum.to_le_bytes());
        out
    }
    /// Reads what `to_bytes` wrote; `path` is for messages.
    ///
    /// # Errors
    /// E0601 to E0604.
    pub fn from_bytes(bytes: &[u8], path: &str) -> Result<Library, LibraryError> {
        let damaged = |why: &str| LibraryError::Damaged { path: path.into(), why: why.into() };
        let mut rest = bytes.strip_prefix(MAGIC).ok_or(LibraryError::Foreign { path: path.into() })?;
        let found = u32::from_le_bytes(take(&mut rest).ok_or_else(|| damaged("it ends in its head"))?);
        if found != FORMAT {
            return Err(LibraryError::Version { path: path.into(), found, known: FORMAT });
        }
        let (body, sum) = bytes.split_at_checked(bytes.len().saturating_sub(8)).ok_or_else(|| damaged("it is too short"))?;
        if sum != checksum(body).to_le_bytes() {
            return Err(damaged("its checksum is wrong"));
        }
        let parts = u32::from_le_bytes(take(&mut rest).ok_or_else(|| damaged("it ends in its head"))?);
        let mut part = || -> Option<Vec<u8>> {
            let n = usize::try_from(u64::from_le_bytes(take(&mut rest)?)).ok()?;
            let (head, tail) = rest.split_at_checked(n)?;
            rest = tail;
            Some(head.to_vec())
        };
        let manifest = part().ok_or_else(|| damaged("it ends in its manifest"))?;
        let code: Option<Vec<Vec<u8>>> = (0..parts).map(|_| part()).collect();
        let code = code.ok_or_else(|| damaged("it ends in its code"))?;
        if rest.len() != sum.len() {
            return Err(damaged("it has more than its parts"));
        }
        let manifest = serde_json::from_slice(&manifest).map_err(|e| damaged(&e.to_string()))?;
        Library::new(manifest, code)
    }
    /// Writes the file, under another name first, so that it is whole or not there. A file that is no library stays.
    ///
    /// # Errors
    /// E0605, E0608.
    pub fn write(&self, path: &Path) -> Result<(), LibraryError> {
        let shown = path.display().to_string();
        let mut head = [0; MAGIC.len()];
        if let Ok(mut old) = fs::File::open(path)
            && (old.read_exact(&mut head).is_err() || head != *MAGIC)
        {
            return Err(LibraryError::Overwrite { path: shown });
        }
        let temporary = path.with_extension("new");
        let save = || fs::write(&temporary, self.to_bytes()).and_then(|()| fs::rename(&temporary, path));
        save().map_err(|source| {
            let _ = fs::remove_file(&temporary);
            LibraryError::Io { path: shown, source }
        })
    }
    /// Reads a file.
    ///
    /// # Errors
    /// E0601 to E0605.
    pub fn read(path: &Path) -> Result<Library, LibraryError> {
        let name = path.display().to_string();
        let bytes = fs::read(path).map_err(|source| LibraryError::Io { path: name.clone(), source })?;
        Library::from_bytes(&bytes, &name)
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{Buffer, Entry, Gemm, Port, Role, Step, View};
    use base::{DType, Dim};

    pub(crate) fn sample() -> Library {
        let d = |n: &str| n.parse::<Dim>().expect("a dim");
        let view = |b| View { buffer: b, offset: d("0"), turn: vec![] };
        let buffer = |e: &str| Buffer { dtype: DType::F32, elems: d(e), external: true };
        let port = |name: &str, b| Port {
            name: name.into(),
            role: Role::Input,
            dtype: DType::F32,
            shape: vec![d("B"), d("B")],
            buffer: b,
        };
        let one = d("1");
        let gemm = Gemm {
            dtype: DType::F32,
            a: view(0),
            b: view(0),
            c: view(1),
            m: d("B"),
            n: d("B"),
            k: d("B"),
            strides: [d("B"), one.clone(), d("B"), one.clone(), d("B"), one],
            batch: vec![],
            accumulate: false,
        };
        let entry = Entry {
            name: "forward".into(),
            args: vec![port("x", 0)],
            outputs: vec![port("y", 1)],
            buffers: vec![buffer("B*B"), buffer("B*B")],
            steps: vec![Step::Loop { count: 0, reverse: false, body: vec![] }, Step::Gemm(gemm)],
            constraints: vec![(d("B - 1"), "B".into())],
            when: vec![],
        };
        let manifest = Manifest {
            name: "m".into(),
            target: "host".into(),
            dims: vec!["B".into()],
            params: vec![],
            kernels: vec![],
            entries: vec![entry],
            settings: [("lr".to_string(), 0.1)].into(),
        };
        Library::new(manifest, vec![b"code".to_vec(), vec![]]).expect("it is valid")
    }

    #[test]
    fn a_library_reads_back() {
        let l = sample();
        assert_eq!(Library::from_bytes(&l.to_bytes(), "x").expect("it reads"), l);
    }

    #[test]
    fn damage_is_an_error_and_never_a_panic() {
        let good = sample().to_bytes();
        let mut seed = 1u64;
        for i in 0..2000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let mut bad = good.clone();
            let at = (seed >> 33) as usize % bad.len();
            if i % 2 == 0 {
                bad[at] ^= 1 << (i % 8);
            } else {
                bad.truncate(at);
            }
            if i % 3 == 0 && bad.len() > 8 {
                // A right checksum over wrong content.
                let n = bad.len() - 8;
                let sum = checksum(&bad[..n]).to_le_bytes();
                bad[n..].copy_from_slice(&sum);
            }
            if let Ok(l) = Library::from_bytes(&bad, "x") {
                assert!(crate::validate::validate(&l.manifest).is_ok());
            }
        }
        assert!(matches!(Library::from_bytes(b"ELF", "x"), Err(LibraryError::Foreign { .. })));
    }

    #[test]
    fn each_kind_of_damage_has_its_error() {
        let good = sample().to_bytes();
        let with_sum = |mut bytes: Vec<u8>| {
            let sum = checksum(&bytes).to_le_bytes();
            bytes.extend(sum);
            bytes
        };
        let body = &good[..good.len() - 8];
        let read = |bytes: &[u8]| Library::from_bytes(bytes, "x").expect_err("it is damaged");
        let newer = with_sum([&MAGIC[..], &9u32.to_le_bytes(), &body[12..]].concat());
        assert!(matches!(read(&newer), LibraryError::Version { found: 9, known: FORMAT, .. }));
        let longer = with_sum([body, b"more"].concat());
        assert!(matches!(read(&longer), LibraryError::Damaged { why, .. } if why == "it has more than its parts"));
        let text = |m: &str| {
            let head = [&MAGIC[..], &FORMAT.to_le_bytes(), &0u32.to_le_bytes(), &(m.len() as u64).to_le_bytes()].concat();
            with_sum([&head[..], m.as_bytes()].concat())
        };
        let json = serde_json::to_string(&sample().manifest).expect("a manifest is plain data");
        assert!(Library::from_bytes(&text(&json), "x").is_ok());
        let deep = format!("{}B{}", "max(1, ".repeat(100_000), ")".repeat(100_000));
        for (bad, why) in [
            ("{".to_string(), "EOF"),
            (json.replace("\"target\"", "\"targets\""), "unknown field `targets`"),
            (json.replace(",\"target\":\"host\"", ""), "missing field `target`"),
            (json.replace("\"B*B\"", "\"B*(B\""), "expected a dim"),
            (json.replace("\"B*B\"", &format!("\"{deep}\"")), "a dim of"),
            (json.replace("\"f32\"", "\"f31\""), "'f31' is not a dtype"),
        ] {
            let found = read(&text(&bad)).to_string();
            assert!(found.contains(why), "{found} for {why}");
        }
    }

    #[test]
    fn builds_differ_by_their_code() {
        let (a, mut b) = (sample(), sample());
        assert_eq!(a.build(), b.build());
        // Where one part ends and the next begins counts too.
        b.code = vec![b"cod".to_vec(), b"e".to_vec()];
        assert_ne!(a.build(), b.build());
        assert_eq!(object_path(Path::new("out/m.v2.lodelib")), Path::new("out/libm.v2.so"));
    }

    #[test]
    fn a_library_is_of_one_target() {
        assert!(sample().expect_target("host").is_ok());
        assert!(matches!(sample().expect_target("sm_90a"), Err(LibraryError::Target { .. })));
    }

    #[test]
    fn files_that_are_not_there_are_named() {
        let path = std::env::temp_dir().join("lode-no-such-folder").join("x.lodelib");
        assert!(matches!(Library::read(&path), Err(LibraryError::Io { .. })));
        assert!(matches!(sample().write(&path), Err(LibraryError::Io { .. })));
    }

    #[test]
    fn what_is_no_library_is_not_overwritten() {
        let path = std::env::temp_dir().join(format!("lode-library-{}.lodelib", std::process::id()));
        for old in ["", "model", "model m(x: [B]) -> [B] { x }"] {
            fs::write(&path, old).expect("it writes");
            assert!(matches!(sample().write(&path), Err(LibraryError::Overwrite { .. })));
            assert_eq!(fs::read_to_string(&path).expect("it is there"), old);
        }
        fs::remove_file(&path).expect("it is there");
        for _ in 0..2 {
            sample().write(&path).expect("a library may be replaced");
            assert_eq!(Library::read(&path).expect("it reads"), sample());
        }
        fs::remove_file(&path).expect("it is there");
    }
}
