//! Tensors in the caller's memory.

use base::DType;
use device::product::{e4m3_to_f32, f32_to_e4m3};

/// A dense row-major tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    /// The dtype.
    pub dtype: DType,
    /// The extents.
    pub shape: Vec<i64>,
    /// The elements, little-endian.
    pub bytes: Vec<u8>,
}

impl HostTensor {
    /// The number of elements.
    pub fn elems(&self) -> usize {
        self.shape.iter().product::<i64>().max(0) as usize
    }
    /// A tensor of numbers, rounded to the dtype.
    pub fn from_f64(dtype: DType, shape: &[i64], data: impl IntoIterator<Item = f64>) -> HostTensor {
        let mut bytes = Vec::new();
        data.into_iter().for_each(|x| push(dtype, x, &mut bytes));
        HostTensor { dtype, shape: shape.to_vec(), bytes }
    }
    /// An i32 tensor.
    pub fn from_i32(shape: &[i64], data: &[i32]) -> HostTensor {
        HostTensor { dtype: DType::I32, shape: shape.to_vec(), bytes: data.iter().flat_map(|x| x.to_le_bytes()).collect() }
    }
    /// The elements as f64.
    pub fn to_f64(&self) -> Vec<f64> {
        read(self.dtype, &self.bytes)
    }
    /// The same numbers in another dtype.
    pub fn cast(&self, dtype: DType) -> HostTensor {
        if dtype == self.dtype { self.clone() } else { HostTensor::from_f64(dtype, &self.shape, self.to_f64()) }
    }
}

/// Appends an element, rounded to the dtype.
pub(crate) fn push(dtype: DType, x: f64, out: &mut Vec<u8>) {
    match dtype {
        DType::F64 => out.extend(x.to_le_bytes()),
        DType::F32 => out.extend((x as f32).to_le_bytes()),
        DType::TF32 => out.extend((dtype.round(x) as f32).to_le_bytes()),
        DType::BF16 => out.extend(half::bf16::from_f64(x).to_le_bytes()),
        DType::F16 => out.extend(half::f16::from_f64(x).to_le_bytes()),
        DType::E4M3 => out.push(f32_to_e4m3(x as f32)),
        DType::I64 => out.extend((x as i64).to_le_bytes()),
        DType::I32 => out.extend((x as i32).to_le_bytes()),
        DType::Bool => out.push(u8::from(x != 0.0)),
    }
}

/// Elements of `dtype` as f64.
pub fn read(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    macro_rules! numbers {
        ($n:literal, $from:expr) => {
            bytes.as_chunks::<$n>().0.iter().map(|b| $from(*b)).collect()
        };
    }
    match dtype {
        DType::F64 => numbers!(8, f64::from_le_bytes),
        DType::F32 | DType::TF32 => numbers!(4, |b| f64::from(f32::from_le_bytes(b))),
        DType::BF16 => numbers!(2, |b| half::bf16::from_le_bytes(b).to_f64()),
        DType::F16 => numbers!(2, |b| half::f16::from_le_bytes(b).to_f64()),
        DType::E4M3 => bytes.iter().map(|b| f64::from(e4m3_to_f32(*b))).collect(),
        DType::I64 => numbers!(8, |b| i64::from_le_bytes(b) as f64),
        DType::I32 => numbers!(4, |b| f64::from(i32::from_le_bytes(b))),
        DType::Bool => bytes.iter().map(|b| f64::from(u8::from(*b != 0))).collect(),
    }
}

/// A NaN if there is one, else the greatest infinity if there is one.
pub fn not_finite(dtype: DType, bytes: &[u8]) -> Option<f64> {
    if !dtype.is_float() {
        return None;
    }
    // Almost always there is none: look at the exponents alone first, where that is quick.
    let all_ones = |b: &[u8; 4]| u32::from_le_bytes(*b) & 0x7f80_0000 == 0x7f80_0000;
    if dtype == DType::F32 && !bytes.as_chunks::<4>().0.iter().fold(false, |found, b| found | all_ones(b)) {
        return None;
    }
    // Pieces, so that a large tensor is not widened at once.
    let mut worst: Option<f64> = None;
    for piece in bytes.chunks(dtype.bytes() << 12) {
        for x in read(dtype, piece).into_iter().filter(|x| !x.is_finite()) {
            if x.is_nan() {
                return Some(x);
            }
            worst = Some(worst.map_or(x, |w| w.max(x)));
        }
    }
    worst
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_survive_every_dtype_that_holds_them() {
        for d in DType::ALL {
            let data = if d == DType::Bool { vec![0.0, 1.0, 1.0] } else { vec![-1.0, 0.0, 1.5, 448.0] };
            let t = HostTensor::from_f64(d, &[data.len() as i64], data.clone());
            assert_eq!((t.bytes.len(), t.elems()), (data.len() * d.bytes(), data.len()));
            let want: Vec<f64> = data.iter().map(|x| if d.is_int() { x.trunc() } else { *x }).collect();
            assert_eq!(t.to_f64(), want, "{d}");
            assert_eq!(t.cast(DType::F64).to_f64(), want);
        }
        let t = HostTensor::from_i32(&[2], &[-3, 7]);
        assert_eq!(t, HostTensor::from_f64(DType::I32, &[2], [-3.0, 7.0]));
    }

    #[test]
    fn what_is_not_finite_is_found() {
        let find = |d: DType, x: &[f64]| {
            let t = HostTensor::from_f64(d, &[x.len() as i64], x.iter().copied());
            not_finite(d, &t.bytes).map(|x| x.to_string())
        };
        for d in [DType::F64, DType::F32, DType::BF16, DType::F16] {
            assert_eq!(find(d, &[0.0, -1.0, 448.0]), None);
            assert_eq!(find(d, &[0.0, f64::NEG_INFINITY, f64::INFINITY]), Some("inf".into()));
            assert_eq!(find(d, &[f64::INFINITY, f64::NAN]), Some("NaN".into()));
            assert_eq!(find(d, &[1.0, f64::NEG_INFINITY]), Some("-inf".into()));
        }
        assert_eq!(find(DType::I32, &[5.0]), None);
        assert_eq!(find(DType::E4M3, &[f64::NAN]), Some("NaN".into()));
    }
}
