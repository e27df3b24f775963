//! NumPy's .npy files: one tensor each. # Source: NEP 1.

use crate::{ExecError, HostTensor};
use base::DType;
use std::{fs, path::Path};

const MAGIC: &[u8] = b"\x93NUMPY";

/// Reads a C-order little-endian tensor.
///
/// # Errors
/// E0705 if the file cannot be read or is of another kind.
pub fn read(path: &Path) -> Result<HostTensor, ExecError> {
    let bytes = fs::read(path).map_err(|e| ExecError::io(path, &e))?;
    parse(&bytes).map_err(|why| ExecError::File {
        path: path.display().to_string(),
        why,
        help: "save it with numpy.save, C order",
    })
}

fn parse(bytes: &[u8]) -> Result<HostTensor, String> {
    let rest = bytes.strip_prefix(MAGIC).ok_or("it is not a .npy file")?;
    let (head, rest) = match rest {
        [1, _, a, b, rest @ ..] => (usize::from(u16::from_le_bytes([*a, *b])), rest),
        [2 | 3, _, a, b, c, d, rest @ ..] => (u32::from_le_bytes([*a, *b, *c, *d]) as usize, rest),
        _ => return Err("its version is unknown".into()),
    };
    let (head, data) = rest.split_at_checked(head).ok_or("it ends in its head")?;
    let head = String::from_utf8_lossy(head);
    let field = |name: &str| -> Result<&str, String> {
        let at = head.find(&format!("'{name}':")).ok_or(format!("its head has no {name}"))?;
        Ok(head[at + name.len() + 3..].trim_start())
    };
    let descr = field("descr")?;
    let dtype = match descr.split('\'').nth(1) {
        Some("<f8") => DType::F64,
        Some("<f4") => DType::F32,
        Some("<f2") => DType::F16,
        Some("<i8") => DType::I64,
        Some("<i4") => DType::I32,
        Some("|b1") => DType::Bool,
        _ => return Err(format!("its dtype is {}", descr.split(',').next().unwrap_or_default())),
    };
    if !field("fortran_order")?.starts_with("False") {
        return Err("it is in Fortran order".into());
    }
    let shape = field("shape")?.strip_prefix('(').and_then(|s| s.split(')').next()).ok_or("its shape is no tuple")?;
    let shape: Result<Vec<i64>, _> = shape.split(',').map(str::trim).filter(|s| !s.is_empty()).map(str::parse).collect();
    let shape = shape.map_err(|e| e.to_string())?;
    let want = shape
        .iter()
        .try_fold(dtype.bytes() as i64, |n, d| n.checked_mul(*d).filter(|n| *n >= 0))
        .ok_or("its shape is too large")?;
    if data.len() as i64 != want {
        return Err(format!("it has {} bytes of data, its shape needs {want}", data.len()));
    }
    Ok(HostTensor { dtype, shape, bytes: data.to_vec() })
}

/// Writes a tensor; bf16 and e4m3, which NumPy lacks, as f32.
///
/// # Errors
/// E0705.
pub fn write(path: &Path, t: &HostTensor) -> Result<(), ExecError> {
    let t = if matches!(t.dtype, DType::BF16 | DType::E4M3) { t.cast(DType::F32) } else { t.clone() };
    let descr = match t.dtype {
        DType::F64 => "<f8",
        DType::F32 | DType::BF16 | DType::E4M3 => "<f4",
        DType::F16 => "<f2",
        DType::I64 => "<i8",
        DType::I32 => "<i4",
        DType::Bool => "|b1",
    };
    let shape: String = t.shape.iter().map(|n| format!("{n}, ")).collect();
    let mut head = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}), }}", shape.trim_end());
    while !(MAGIC.len() + 4 + head.len() + 1).is_multiple_of(64) {
        head.push(' ');
    }
    head.push('\n');
    let size = u16::try_from(head.len()).expect("heads are short");
    let bytes = [MAGIC, &[1, 0], &size.to_le_bytes(), head.as_bytes(), &t.bytes].concat();
    fs::write(path, bytes).map_err(|e| ExecError::io(path, &e))
}
