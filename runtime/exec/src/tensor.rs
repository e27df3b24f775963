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
    /// The elements as f64.
    pub fn to_f64(&self) -> Vec<f64> {
        read(self.dtype, &self.bytes)
    }
    /// The same numbers in another dtype.
    pub fn cast(&self, dtype: DType) -> HostTensor {
        if dtype == self.dtype { self.clone() } else { HostTensor::from_f64(dtype, &self.shape, self.to_f64()) }
    }
}

fn push(dtype: DType, x: f64, out: &mut Vec<u8>) {
    match dtype {
        DType::F64 => out.extend(x.to_le_bytes()),
        DType::F32 => out.extend((x as f32).to_le_bytes()),
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
        DType::F32 => numbers!(4, |b| f64::from(f32::from_le_bytes(b))),
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
