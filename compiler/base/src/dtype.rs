//! Element types.

use std::{fmt, str::FromStr};

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DType {
    /// IEEE binary64.
    F64,
    /// IEEE binary32.
    F32,
    /// binary32 with 10 bits of fraction, what tensor cores read of it; four bytes in memory.
    TF32,
    /// bfloat16: 8 bits of exponent, 7 of fraction.
    BF16,
    /// IEEE binary16.
    F16,
    /// OCP FP8 E4M3: 4 bits of exponent, 3 of fraction, no infinity, maximum 448.
    E4M3,
    /// 64-bit signed integer.
    I64,
    /// 32-bit signed integer.
    I32,
    /// Truth value, one byte.
    Bool,
}

use DType::*;

impl DType {
    /// Every dtype, by number as C has them: a new one is the last.
    pub const ALL: [DType; 9] = [F64, F32, BF16, F16, E4M3, I64, I32, Bool, TF32];

    /// Size of an element. # Units: bytes.
    pub fn bytes(self) -> usize {
        match self {
            F64 | I64 => 8,
            F32 | TF32 | I32 => 4,
            BF16 | F16 => 2,
            E4M3 | Bool => 1,
        }
    }
    /// Whether it is a floating-point type.
    pub fn is_float(self) -> bool {
        matches!(self, F64 | F32 | TF32 | BF16 | F16 | E4M3)
    }
    /// Whether it is an integer type (not bool).
    pub fn is_int(self) -> bool {
        matches!(self, I64 | I32)
    }
    /// The name in the language.
    pub fn name(self) -> &'static str {
        match self {
            F64 => "f64",
            F32 => "f32",
            TF32 => "tf32",
            BF16 => "bf16",
            F16 => "f16",
            E4M3 => "e4m3",
            I64 => "i64",
            I32 => "i32",
            Bool => "bool",
        }
    }
    /// The name in MLIR.
    pub fn mlir(self) -> &'static str {
        match self {
            E4M3 => "f8E4M3FN",
            Bool => "i1",
            other => other.name(),
        }
    }
    /// The dtype with this MLIR name.
    pub fn from_mlir(name: &str) -> Option<DType> {
        DType::ALL.into_iter().find(|d| d.mlir() == name)
    }
    /// The type in which sums over this dtype are kept: at least f32 for floats, i64 for integers.
    pub fn accumulator(self) -> DType {
        match self {
            F64 => F64,
            F32 | TF32 | BF16 | F16 | E4M3 => F32,
            I64 | I32 | Bool => I64,
        }
    }
    /// Half the distance from 1 to the next value, the unit roundoff; 0 for integers.
    pub fn unit_roundoff(self) -> f64 {
        match self {
            F64 => 2f64.powi(-53),
            F32 => 2f64.powi(-24),
            BF16 => 2f64.powi(-8),
            TF32 | F16 => 2f64.powi(-11),
            E4M3 => 2f64.powi(-4),
            I64 | I32 | Bool => 0.0,
        }
    }
    /// `x` rounded to this dtype, to nearest even; integers truncate toward zero, e4m3 saturates at 448.
    pub fn round(self, x: f64) -> f64 {
        match self {
            F64 => x,
            F32 => f64::from(x as f32),
            TF32 => round_tf32(x),
            BF16 => half::bf16::from_f64(x).to_f64(),
            F16 => half::f16::from_f64(x).to_f64(),
            E4M3 => round_e4m3(x),
            I64 => (x as i64) as f64,
            I32 => f64::from(x as i32),
            Bool => f64::from(u8::from(x != 0.0)),
        }
    }
}

/// Rounds to the nearest f32 with 10 bits of fraction, ties to even.
fn round_tf32(x: f64) -> f64 {
    let bits = x.to_bits();
    // f64 has 42 bits of fraction more.
    let rounded = f64::from_bits((bits + (1 << 41) - 1 + (bits >> 42 & 1)) & !((1 << 42) - 1));
    // Of numbers below f32's least normal one fewer bits are left.
    let least = 2f64.powi(-126);
    if x.is_nan() || x.is_infinite() {
        x
    } else if x.abs() < least {
        let ulp = 2f64.powi(-136);
        ((x.abs() / ulp).round_ties_even() * ulp).copysign(x)
    } else {
        f64::from(rounded as f32)
    }
}

/// Rounds to the nearest E4M3 value, ties to even, saturating at ±448; NaN stays NaN.
/// # Source: OCP 8-bit floating point specification 1.0, section 5.
fn round_e4m3(x: f64) -> f64 {
    if x.is_nan() || x == 0.0 {
        return x;
    }
    let magnitude = x.abs().min(448.0);
    // The exponent of the result's ulp: normal numbers have 3 fraction bits, subnormals are multiples of 2^-9.
    let exponent = (magnitude.log2().floor() as i32).max(-6) - 3;
    let ulp = 2f64.powi(exponent);
    (magnitude / ulp).round_ties_even().mul_add(ulp, 0.0).min(448.0).copysign(x)
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for DType {
    type Err = ();
    fn from_str(s: &str) -> Result<Self, ()> {
        DType::ALL.into_iter().find(|d| d.name() == s).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e4m3_rounds_to_nearest_even_and_saturates() {
        for (x, want) in [
            (1.0, 1.0),
            (1.0625, 1.0),
            (1.1875, 1.25),
            (449.0, 448.0),
            (1e9, 448.0),
            (-3.3, -3.25),
            (0.001, 0.001953125),
            (0.0009, 0.0),
        ] {
            assert_eq!(DType::E4M3.round(x), want, "{x}");
        }
        assert!(DType::E4M3.round(f64::NAN).is_nan());
    }

    #[test]
    fn tf32_rounds_to_nearest_even() {
        let ulp = 2f64.powi(-10);
        for (x, want) in [
            (1.0 + ulp / 2.0, 1.0),
            (1.0 + ulp * 1.5, 1.0 + 2.0 * ulp),
            (-1.0 - ulp * 0.51, -1.0 - ulp),
            (2.0 - ulp / 4.0, 2.0),
            (f64::from(f32::MAX), f64::INFINITY),
            (2f64.powi(-136), 2f64.powi(-136)),
            (2f64.powi(-138), 0.0),
            (f64::NEG_INFINITY, f64::NEG_INFINITY),
        ] {
            assert_eq!(DType::TF32.round(x), want, "{x}");
        }
        assert!(DType::TF32.round(f64::NAN).is_nan());
    }

    #[test]
    fn names_parse_back() {
        for d in DType::ALL {
            assert_eq!(d.name().parse(), Ok(d));
            assert_eq!(DType::from_mlir(d.mlir()), Some(d));
        }
    }
}
