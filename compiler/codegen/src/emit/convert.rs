//! Conversions: between memory and compute dtypes, and among dtypes. bf16 and e4m3 are integers in memory and are rounded as such on the
//! host, as arithmetic of theirs is library calls on processors that have none; a GPU has instructions.
//! # Source: OCP 8-bit floating point specification 1.0, section 5.

use super::{text::Writer, value_type};
use base::DType;

/// The MLIR type of an element in memory.
pub(super) fn memory_type(d: DType) -> &'static str {
    match d {
        DType::F64 => "f64",
        DType::F32 | DType::TF32 => "f32",
        DType::BF16 => "i16",
        DType::F16 => "f16",
        DType::I64 => "i64",
        DType::I32 => "i32",
        DType::E4M3 | DType::Bool => "i8",
    }
}

impl Writer {
    /// A loaded value in its compute dtype.
    pub fn widen(&mut self, v: String, dtype: DType) -> String {
        match dtype {
            DType::F64 | DType::F32 | DType::TF32 | DType::I64 | DType::I32 => v,
            DType::BF16 => {
                let (bits, places) = (self.convert("extui", &v, "i16", "i32"), self.int(16, "i32"));
                let bits = self.bin("shli", &bits, &places, "i32");
                self.bits(&bits, "i32", "f32")
            }
            DType::F16 => self.convert("extf", &v, "f16", "f32"),
            DType::E4M3 if self.gpu => {
                let pair = self.convert("extui", &v, "i8", "i16");
                let pair =
                    self.op(&format!("llvm.call_intrinsic \"llvm.nvvm.e4m3x2.to.f16x2.rn\"({pair}) : (i16) -> vector<2xf16>"));
                let first = self.int(0, "i64");
                let half = self.op(&format!("llvm.extractelement {pair}[{first} : i64] : vector<2xf16>"));
                self.convert("extf", &half, "f16", "f32")
            }
            DType::E4M3 => self.widen_e4m3(&v),
            DType::Bool => {
                let zero = self.int(0, "i8");
                self.cmpi("ne", &v, &zero, "i8")
            }
        }
    }
    /// A value as it is stored.
    pub fn narrow(&mut self, v: String, dtype: DType) -> String {
        match dtype {
            DType::E4M3 if self.codes.contains_key(&v) => self.codes[&v].clone(),
            DType::F64 | DType::F32 | DType::I64 | DType::I32 => v,
            // What was rounded is as it was.
            DType::TF32 if self.codes.get(&v) == Some(&v) => v,
            DType::TF32 => self.round_tf32(&v),
            DType::F16 => self.convert("truncf", &v, "f32", "f16"),
            DType::BF16 if self.gpu => {
                let narrow = self.convert("truncf", &v, "f32", "bf16");
                self.bits(&narrow, "bf16", "i16")
            }
            DType::BF16 => self.round_bf16(&v),
            DType::E4M3 if self.gpu => {
                let zero = self.float(0.0, "f32");
                let pair =
                    self.op(&format!("llvm.call_intrinsic \"llvm.nvvm.ff.to.e4m3x2.rn\"({zero}, {v}) : (f32, f32) -> i16"));
                self.convert("trunci", &pair, "i16", "i8")
            }
            DType::E4M3 => self.round_e4m3(&v),
            DType::Bool => self.convert("extui", &v, "i1", "i8"),
        }
    }

    /// To nearest even by adding half a unit, less one if the kept part is even; NaN becomes the quiet one.
    fn round_bf16(&mut self, x: &str) -> String {
        let bits = self.bits(x, "f32", "i32");
        let (one, places, half, nan) =
            (self.int(1, "i32"), self.int(16, "i32"), self.int(0x7fff, "i32"), self.int(0x7fc0, "i32"));
        let high = self.bin("shrui", &bits, &places, "i32");
        let odd = self.bin("andi", &high, &one, "i32");
        let up = self.bin("addi", &bits, &half, "i32");
        let up = self.bin("addi", &up, &odd, "i32");
        let code = self.bin("shrui", &up, &places, "i32");
        let is_nan = self.cmpf("uno", x, x, "f32");
        let code = self.select(&is_nan, &nan, &code, "i32");
        self.convert("trunci", &code, "i32", "i16")
    }
    /// The same of the upper 19 bits.
    fn round_tf32(&mut self, x: &str) -> String {
        let bits = self.bits(x, "f32", "i32");
        let (one, places, half, kept) =
            (self.int(1, "i32"), self.int(13, "i32"), self.int(0xfff, "i32"), self.int(-0x2000, "i32"));
        let high = self.bin("shrui", &bits, &places, "i32");
        let odd = self.bin("andi", &high, &one, "i32");
        let up = self.bin("addi", &bits, &half, "i32");
        let up = self.bin("addi", &up, &odd, "i32");
        let up = self.bin("andi", &up, &kept, "i32");
        let up = self.bits(&up, "i32", "f32");
        let is_nan = self.cmpf("uno", x, x, "f32");
        self.select(&is_nan, x, &up, "f32")
    }
    fn widen_e4m3(&mut self, code: &str) -> String {
        let w = self.convert("extui", code, "i8", "i32");
        let (seven, eight, places, top) = (self.int(7, "i32"), self.int(8, "i32"), self.int(20, "i32"), self.int(0x7f, "i32"));
        let (sign, far, rebias, nan) =
            (self.int(0x80, "i32"), self.int(24, "i32"), self.int(120 << 23, "i32"), self.int(0x7fc0_0000, "i32"));
        let magnitude = self.bin("andi", &w, &top, "i32");
        // Subnormals are multiples of 2^−9.
        let fraction = self.bin("andi", &w, &seven, "i32");
        let fraction = self.convert("sitofp", &fraction, "i32", "f32");
        let unit = self.float(2f64.powi(-9), "f32");
        let small = self.bin("mulf", &fraction, &unit, "f32");
        let small = self.bits(&small, "f32", "i32");
        let normal = self.bin("shli", &magnitude, &places, "i32");
        let normal = self.bin("addi", &normal, &rebias, "i32");
        let is_small = self.cmpi("ult", &magnitude, &eight, "i32");
        let bits = self.select(&is_small, &small, &normal, "i32");
        let is_nan = self.cmpi("eq", &magnitude, &top, "i32");
        let bits = self.select(&is_nan, &nan, &bits, "i32");
        let sign = self.bin("andi", &w, &sign, "i32");
        let sign = self.bin("shli", &sign, &far, "i32");
        let bits = self.bin("ori", &bits, &sign, "i32");
        self.bits(&bits, "i32", "f32")
    }
    /// To nearest even, saturating at 448.
    fn round_e4m3(&mut self, x: &str) -> String {
        let bits = self.bits(x, "f32", "i32");
        let (mask, one, places, half) =
            (self.int(0x7fff_ffff, "i32"), self.int(1, "i32"), self.int(20, "i32"), self.int(0x7_ffff, "i32"));
        let a = self.bin("andi", &bits, &mask, "i32");
        let limit = self.int(0x43e0_0000, "i32");
        let clamped = self.bin("minsi", &a, &limit, "i32");
        // Below 2^−6 in multiples of 2^−9: adding 1.5·2^14, whose unit that is, rounds and leaves the multiple in the low bits.
        let magnitude = self.bits(&clamped, "i32", "f32");
        let magic = self.float(1.5 * 2f64.powi(14), "f32");
        let shifted = self.bin("addf", &magnitude, &magic, "f32");
        let shifted = self.bits(&shifted, "f32", "i32");
        let low = self.int(0xf, "i32");
        let small = self.bin("andi", &shifted, &low, "i32");
        let kept = self.bin("shrui", &clamped, &places, "i32");
        let odd = self.bin("andi", &kept, &one, "i32");
        let up = self.bin("addi", &clamped, &half, "i32");
        let up = self.bin("addi", &up, &odd, "i32");
        let normal = self.bin("shrui", &up, &places, "i32");
        let rebias = self.int(120 << 3, "i32");
        let normal = self.bin("subi", &normal, &rebias, "i32");
        let least = self.int(0x3c80_0000, "i32");
        let is_small = self.cmpi("slt", &clamped, &least, "i32");
        let code = self.select(&is_small, &small, &normal, "i32");
        let (inf, nan) = (self.int(0x7f80_0000, "i32"), self.int(0x7f, "i32"));
        let is_nan = self.cmpi("sgt", &a, &inf, "i32");
        let code = self.select(&is_nan, &nan, &code, "i32");
        let (far, sign) = (self.int(24, "i32"), self.int(0x80, "i32"));
        let s = self.bin("shrui", &bits, &far, "i32");
        let s = self.bin("andi", &s, &sign, "i32");
        let code = self.bin("ori", &code, &s, "i32");
        self.convert("trunci", &code, "i32", "i8")
    }

    /// The i32 by which an f32 is found in their order: the bits, of negative numbers those below the sign the other way round.
    pub fn order(&mut self, x: &str) -> String {
        // Both zeros are the same.
        let (zero, places, greatest) = (self.float(0.0, "f32"), self.int(31, "i32"), self.int(i64::from(i32::MAX), "i32"));
        let number = self.bin("addf", x, &zero, "f32");
        let bits = self.bits(&number, "f32", "i32");
        let sign = self.bin("shrsi", &bits, &places, "i32");
        let below = self.bin("andi", &sign, &greatest, "i32");
        let key = self.bin("xori", &bits, &below, "i32");
        let is_nan = self.cmpf("uno", x, x, "f32");
        self.select(&is_nan, &greatest, &key, "i32")
    }

    /// A conversion of scalars; a narrow float is rounded to, and computed with in f32.
    pub fn cast(&mut self, v: String, from: DType, to: DType) -> String {
        let (a, b) = (value_type(from), value_type(to));
        let v = match (a, b) {
            _ if a == b => v,
            ("f32", "f64") => self.convert("extf", &v, a, b),
            ("f64", "f32") => self.convert("truncf", &v, a, b),
            ("f32" | "f64", "i1") => {
                let zero = self.float(0.0, a);
                self.cmpf("une", &v, &zero, a)
            }
            ("i64" | "i32", "i1") => {
                let zero = self.int(0, a);
                self.cmpi("ne", &v, &zero, a)
            }
            ("i1", "f32" | "f64") => self.convert("uitofp", &v, a, b),
            ("i1", _) => self.convert("extui", &v, a, b),
            ("f32" | "f64", _) => self.op(&format!("llvm.call_intrinsic \"llvm.fptosi.sat.{b}.{a}\"({v}) : ({a}) -> {b}")),
            ("i64" | "i32", "f32" | "f64") => self.convert("sitofp", &v, a, b),
            ("i32", _) => self.convert("extsi", &v, a, b),
            _ => {
                let (least, greatest) = (self.int(i64::from(i32::MIN), a), self.int(i64::from(i32::MAX), a));
                let v = self.bin("maxsi", &v, &least, a);
                let v = self.bin("minsi", &v, &greatest, a);
                self.convert("trunci", &v, a, b)
            }
        };
        match to {
            // Of a pair the second is the upper half of a word, and so with nothing below it the f32.
            DType::BF16 if self.pairs => {
                let zero = self.float(0.0, "f32");
                let pair = self
                    .op(&format!("llvm.call_intrinsic \"llvm.nvvm.ff2bf16x2.rn\"({v}, {zero}) : (f32, f32) -> vector<2xbf16>"));
                self.op(&format!("llvm.bitcast {pair} : vector<2xbf16> to f32"))
            }
            DType::TF32 => {
                let rounded = self.narrow(v, to);
                self.codes.insert(rounded.clone(), rounded.clone());
                rounded
            }
            DType::BF16 | DType::F16 | DType::E4M3 => {
                let narrow = self.narrow(v, to);
                let wide = self.widen(narrow.clone(), to);
                if to == DType::E4M3 {
                    self.codes.insert(wide.clone(), narrow);
                }
                wide
            }
            DType::F64 | DType::F32 | DType::I64 | DType::I32 | DType::Bool => v,
        }
    }
}
