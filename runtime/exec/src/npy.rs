//! NumPy's .npy files: one tensor each. # Source: NEP 1.

use crate::{ExecError, HostTensor};
use base::DType;
use std::{fs, path::Path};

const MAGIC: &[u8] = b"\x93NUMPY";

/// Reads a C-order little-endian tensor. Integers of 8 and 16 bits become i32, of 32 bits without sign i64.
///
/// # Errors
/// E0705 if the file cannot be read or is of another kind.
pub fn read(path: &Path) -> Result<HostTensor, ExecError> {
    let bytes = fs::read(path).map_err(|e| ExecError::io(path, &e))?;
    let help = "save it with numpy.save, C order";
    parse(&bytes).map_err(|why| ExecError::File { path: path.display().to_string(), why, help })
}

/// How elements of a file become ours.
enum Kind {
    As(DType),
    /// Integers of this many bytes, and whether they have a sign.
    Widened(usize, bool, DType),
}

fn kind(descr: &str) -> Option<Kind> {
    Some(match descr {
        "<f8" => Kind::As(DType::F64),
        "<f4" => Kind::As(DType::F32),
        "<f2" => Kind::As(DType::F16),
        "<i8" => Kind::As(DType::I64),
        "<i4" => Kind::As(DType::I32),
        "|b1" => Kind::As(DType::Bool),
        "|u1" => Kind::Widened(1, false, DType::I32),
        "|i1" => Kind::Widened(1, true, DType::I32),
        "<u2" => Kind::Widened(2, false, DType::I32),
        "<i2" => Kind::Widened(2, true, DType::I32),
        "<u4" => Kind::Widened(4, false, DType::I64),
        _ => return None,
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
        let quoted = format!("'{name}':");
        let at = head.find(&quoted).ok_or(format!("its head has no {name}"))?;
        Ok(head[at + quoted.len()..].trim_start())
    };
    let descr = field("descr")?;
    let kind = descr.split('\'').nth(1).and_then(kind);
    let kind = kind.ok_or_else(|| format!("its dtype is {}", descr.split(',').next().unwrap_or_default()))?;
    if !field("fortran_order")?.starts_with("False") {
        return Err("it is in Fortran order".into());
    }
    let shape = field("shape")?.strip_prefix('(').and_then(|s| s.split(')').next()).ok_or("its shape is no tuple")?;
    let shape: Result<Vec<i64>, _> = shape.split(',').map(str::trim).filter(|s| !s.is_empty()).map(str::parse).collect();
    let shape = shape.map_err(|e| e.to_string())?;
    let width = match &kind {
        Kind::As(dtype) => dtype.bytes(),
        Kind::Widened(width, ..) => *width,
    };
    let want = shape.iter().try_fold(width as i64, |n, d| n.checked_mul(*d).filter(|n| *n >= 0 && *d >= 0));
    let want = want.ok_or("its shape is negative or too large")?;
    if data.len() as i64 != want {
        return Err(format!("it has {} bytes of data, its shape needs {want}", data.len()));
    }
    Ok(match kind {
        Kind::As(dtype) => HostTensor { dtype, shape, bytes: data.to_vec() },
        Kind::Widened(width, signed, dtype) => {
            let number = |b: &[u8]| {
                let fill = if signed && b[width - 1] & 128 != 0 { 0xff } else { 0 };
                let mut word = [fill; 8];
                word[..width].copy_from_slice(b);
                i64::from_le_bytes(word)
            };
            let bytes = data.chunks_exact(width).flat_map(|b| number(b).to_le_bytes()[..dtype.bytes()].to_vec()).collect();
            HostTensor { dtype, shape, bytes }
        }
    })
}

/// Writes a tensor; bf16 and e4m3, which NumPy lacks, as f32.
///
/// # Errors
/// E0705.
pub fn write(path: &Path, t: &HostTensor) -> Result<(), ExecError> {
    fs::write(path, to_bytes(t)).map_err(|e| ExecError::io(path, &e))
}

fn to_bytes(t: &HostTensor) -> Vec<u8> {
    let t = if matches!(t.dtype, DType::TF32 | DType::BF16 | DType::E4M3) { t.cast(DType::F32) } else { t.clone() };
    let descr = match t.dtype {
        DType::F64 => "<f8",
        DType::F32 | DType::TF32 | DType::BF16 | DType::E4M3 => "<f4",
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
    [MAGIC, &[1, 0], &size.to_le_bytes(), head.as_bytes(), &t.bytes].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(descr: &str, order: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        let head = format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}\n");
        [MAGIC, &[1, 0], &(head.len() as u16).to_le_bytes(), head.as_bytes(), data].concat()
    }

    #[test]
    fn tensors_read_back() {
        for d in DType::ALL {
            for shape in [&[][..], &[0], &[3], &[2, 3]] {
                let n = shape.iter().product::<i64>();
                let t = HostTensor::from_f64(d, shape, (0..n).map(|i| (i % 2) as f64));
                let bytes = to_bytes(&t);
                let back = parse(&bytes).expect("it reads");
                assert!((bytes.len() - back.bytes.len()).is_multiple_of(64), "NEP 1 aligns data to 64 bytes");
                assert_eq!(back.cast(d), t);
            }
        }
    }

    #[test]
    fn other_integers_are_widened() {
        let read = |descr: &str, data: &[u8]| {
            let t = parse(&file(descr, "False", "(2,)", data)).expect("it reads");
            (t.dtype, t.to_f64())
        };
        assert_eq!(read("|u1", &[7, 255]), (DType::I32, vec![7.0, 255.0]));
        assert_eq!(read("|i1", &[7, 255]), (DType::I32, vec![7.0, -1.0]));
        assert_eq!(read("<u2", &[7, 0, 255, 255]), (DType::I32, vec![7.0, 65535.0]));
        assert_eq!(read("<i2", &[7, 0, 254, 255]), (DType::I32, vec![7.0, -2.0]));
        assert_eq!(read("<u4", &[7, 0, 0, 0, 255, 255, 255, 255]), (DType::I64, vec![7.0, 4294967295.0]));
    }

    #[test]
    fn damage_is_an_error() {
        let why = |bytes: &[u8]| parse(bytes).expect_err("it is damaged");
        assert_eq!(why(b"hello"), "it is not a .npy file");
        assert_eq!(why(&file("<f4", "False", "(2,)", &[0; 7])), "it has 7 bytes of data, its shape needs 8");
        assert_eq!(why(&file("<f4", "False", "(-2, -1)", &[0; 8])), "its shape is negative or too large");
        assert_eq!(why(&file(">f4", "False", "(2,)", &[0; 8])), "its dtype is '>f4'");
        assert_eq!(why(&file("<f4", "True", "(2,)", &[0; 8])), "it is in Fortran order");
        let good = to_bytes(&HostTensor::from_f64(DType::F32, &[2, 3], (0..6).map(f64::from)));
        for n in 0..good.len() {
            assert!(parse(&good[..n]).is_err());
        }
        for i in 0..good.len() - 24 {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[i] ^= 1 << bit;
                let _ = parse(&bad);
            }
        }
    }
}
