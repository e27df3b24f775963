//! Functions of f32 in plain arithmetic, so that they vectorise: reduced arguments, then polynomials.
//!
//! Coefficients are minimax: found by Remez' exchange in 40 digits for the error relative to the function (of erf's far half, to 1)
//! on the interval named beside them, then rounded to f32 (f64 inside pow). The errors named are before that rounding. Whole
//! functions are within 2 units in the last place (exp, log) or 4, which tests check; results below the least normal number may
//! be 0. A GPU has 2^x and 1/x; there e^x is within 3, and what is made of it within 4.
//! # Source: ranges as in S. Moshier, Cephes; Remez, Sur le calcul effectif des polynomes d'approximation de Tschebyscheff, 1934.

use super::text::Writer;
use std::f64::consts::{LN_2, LOG2_E};

/// Adding and subtracting 1.5·2²³ rounds an f32 to an integer, which is then in the low bits.
pub(super) const MAGIC: f64 = 12_582_912.0;
/// The same for f64.
const MAGIC_F64: f64 = 6_755_399_441_055_744.0;
/// ln 2 in ten bits, so that small multiples are exact.
const LN_2_HIGH: f64 = 0.693_359_375;
/// (e^r − 1 − r)/r² for |r| ≤ ln 2 / 2; 2^−28.3.
const EXP: [f64; 5] = [
    0.499_999_940_395_355_2,
    0.166_665_211_319_923_4,
    0.041_668_388_992_547_99,
    0.008_368_726_819_753_647,
    0.001_381_459_063_840_352_3,
];
/// (log(1 + t) − t + t²/2)/t³ for √½ ≤ 1 + t ≤ √2; 2^−30.3.
const LOG: [f64; 9] = [
    0.333_333_134_651_184_1,
    -0.250_000_089_406_967_16,
    0.200_021_192_431_449_9,
    -0.166_679_963_469_505_3,
    0.142_195_537_686_347_96,
    -0.124_055_899_679_660_8,
    0.118_881_531_059_741_97,
    -0.116_756_312_549_114_23,
    0.067_466_259_002_685_55,
];
/// (tanh(x)/x − 1)/x² over x² for |x| ≤ 0.625; 2^−27.8.
const TANH: [f64; 5] = [
    -0.333_332_806_825_637_8,
    0.133_314_415_812_492_37,
    -0.053_739_603_608_846_664,
    0.020_638_702_437_281_61,
    -0.005_704_536_102_712_154,
];
/// (artanh(s)/s − 1)/s² over s² for |s| ≤ 1/3; 2^−33.1.
const ARTANH: [f64; 5] = [
    0.333_333_373_069_763_2,
    0.199_994_444_847_106_93,
    0.143_082_976_341_247_56,
    0.107_153_698_801_994_32,
    0.121_447_831_392_288_21,
];
/// erf(x)/x − 1 over x² for |x| ≤ 0.8; 2^−34.
const ERF_NEAR: [f64; 7] = [
    0.128_379_166_126_251_22,
    -0.376_126_378_774_642_94,
    0.112_837_672_233_581_54,
    -0.026_863_858_103_752_136,
    0.005_213_556_811_213_493,
    -0.000_830_469_129_141_420_1,
    9.155_969_746_643_677e-5,
];
/// log(1 − erf(x)) for 0.8 ≤ x ≤ 4, from where on erf is 1; 2^−32.4 of 1.
const ERF_FAR: [f64; 8] = [
    0.000_140_895_237_564_109_27,
    -1.129_346_489_906_311,
    -0.633_698_999_881_744_4,
    -0.107_880_242_168_903_35,
    0.024_853_255_599_737_167,
    -0.004_067_266_825_586_557,
    0.000_412_519_584_642_723_2,
    -1.915_581_196_954_008_2e-5,
];
/// log₂((1 + s)/(1 − s))/s over s² for √½ ≤ (1 + s)/(1 − s) ≤ √2; 2^−45.
const LOG2: [f64; 6] = [
    2.885_390_081_777_85,
    0.961_796_694_113_300_5,
    0.577_077_942_377_388_4,
    0.412_209_251_035_430_27,
    0.319_905_755_243_529,
    0.282_899_282_696_416_23,
];
/// 2^x for |x| ≤ ½; 2^−34.5.
const EXP2: [f64; 8] = [
    0.999_999_999_961_688_4,
    0.693_147_180_728_433_7,
    0.240_226_511_981_700_34,
    0.055_504_103_534_660_01,
    0.009_618_027_250_481_23,
    0.001_333_392_254_167_322_7,
    0.000_154_692_922_280_758_06,
    1.520_192_865_727_430_8e-5,
];

impl Writer {
    /// e^x of f32 by the processor's 2^x: relative error below 2⁻²² plus |x|·2⁻²³. On a GPU.
    pub fn fast_exp(&mut self, x: &str) -> String {
        let factor = self.float(LOG2_E, "f32");
        let power = self.bin("mulf", x, &factor, "f32");
        self.fast_exp2(&power)
    }
    /// 2^x of f32 by the processor. On a GPU.
    pub fn fast_exp2(&mut self, x: &str) -> String {
        self.op(&format!("llvm.call_intrinsic \"llvm.nvvm.ex2.approx.ftz.f\"({x}) : (f32) -> f32"))
    }
    /// e^x·2^`shift` as bits, which are right where that is a normal number.
    fn exp_bits(&mut self, x: &str, shift: i64) -> String {
        let (log2e, magic) = (self.float(LOG2_E, "f32"), self.float(MAGIC, "f32"));
        let t = self.muladd(x, &log2e, &magic, "f32");
        let n = self.bin("subf", &t, &magic, "f32");
        let (high, low) = (self.float(-LN_2_HIGH, "f32"), self.float(LN_2_HIGH - LN_2, "f32"));
        let r = self.muladd(&n, &high, x, "f32");
        let r = self.muladd(&n, &low, &r, "f32");
        let p = self.polynomial(&r, &EXP, "f32");
        let square = self.bin("mulf", &r, &r, "f32");
        let p = self.muladd(&p, &square, &r, "f32");
        let one = self.float(1.0, "f32");
        let p = self.bin("addf", &p, &one, "f32");
        // n is in the low bits of t, whose others the shift drops.
        let t = self.bits(&t, "f32", "i32");
        let (places, more) = (self.int(23, "i32"), self.int(shift << 23, "i32"));
        let e = self.bin("shli", &t, &places, "i32");
        let p = self.bits(&p, "f32", "i32");
        let e = self.bin("addi", &e, &p, "i32");
        if shift == 0 { e } else { self.bin("addi", &e, &more, "i32") }
    }
    /// e^x on a GPU: 2^n·2^r, the second by the processor, n near x·log₂ e and from −126 to 126; what is beyond leaves r outside of ±½ and 2^r 0 or infinite.
    fn gpu_exp(&mut self, x: &str) -> String {
        let high = f64::from(LOG2_E as f32);
        let [small, half, range, first] = [high / 252.0, 0.5, 252.0, MAGIC + 1.0].map(|c| self.float(c, "f32"));
        // 252·t is n + 126; with one more it is the exponent's bits of 2^n.
        let t = self.fma(x, &small, &half, "f32");
        let t = self.op(&format!("llvm.call_intrinsic \"llvm.nvvm.saturate.f\"({t}) : (f32) -> f32"));
        let exponent = self.fma(&t, &range, &first, "f32");
        let [high, low, minus] = [high, LOG2_E - high, -(MAGIC + 127.0)].map(|c| self.float(c, "f32"));
        let n = self.bin("addf", &exponent, &minus, "f32");
        let n = self.neg(&n, "f32");
        let r = self.fma(x, &high, &n, "f32");
        let r = self.fma(x, &low, &r, "f32");
        let r = self.fast_exp2(&r);
        let (bits, places) = (self.bits(&exponent, "f32", "i32"), self.int(23, "i32"));
        let power = self.bin("shli", &bits, &places, "i32");
        let power = self.bits(&power, "i32", "f32");
        self.bin("mulf", &r, &power, "f32")
    }
    /// 1/x of f32 by the processor, for x of 1 or more: within one unit in the last place, 0 where it is below the least normal number. On a GPU.
    fn gpu_reciprocal(&mut self, x: &str) -> String {
        self.op(&format!("llvm.call_intrinsic \"llvm.nvvm.rcp.approx.ftz.f\"({x}) : (f32) -> f32"))
    }
    /// 1/(1 + e^x) on a GPU.
    fn gpu_logistic(&mut self, x: &str) -> String {
        let (e, one) = (self.gpu_exp(x), self.float(1.0, "f32"));
        let below = self.bin("addf", &e, &one, "f32");
        self.gpu_reciprocal(&below)
    }
    /// The same bits as another type.
    pub fn bits(&mut self, x: &str, from: &str, to: &str) -> String {
        self.convert("bitcast", x, from, to)
    }
    /// The larger of a number and 0; x if it is NaN.
    fn positive(&mut self, x: &str) -> String {
        let zero = self.float(0.0, "f32");
        let below = self.cmpf("ogt", &zero, x, "f32");
        self.select(&below, &zero, x, "f32")
    }
    /// e^x.
    pub fn exp(&mut self, x: &str) -> String {
        if self.gpu {
            return self.gpu_exp(x);
        }
        let bits = self.exp_bits(x, 0);
        let r = self.bits(&bits, "i32", "f32");
        // Below the least normal number 0; bits made from a NaN mean nothing.
        let (least, greatest) = (self.float(-87.336_54, "f32"), self.float(88.722_83, "f32"));
        let inside = self.cmpf("oge", x, &least, "f32");
        let outside = self.positive(x);
        let r = self.select(&inside, &r, &outside, "f32");
        let inf = self.float(f64::INFINITY, "f32");
        let above = self.cmpf("ogt", x, &greatest, "f32");
        self.select(&above, &inf, &r, "f32")
    }
    /// e^−a·2^64 for a ≥ 0, exact to where e^−a underflows.
    fn exp_neg_scaled(&mut self, a: &str) -> String {
        let x = self.neg(a, "f32");
        let bits = self.exp_bits(&x, 64);
        let r = self.bits(&bits, "i32", "f32");
        let least = self.float(-130.0, "f32");
        let inside = self.cmpf("oge", &x, &least, "f32");
        let outside = self.positive(&x);
        self.select(&inside, &r, &outside, "f32")
    }
    /// e^−a for a ≥ 0, with gradual underflow.
    fn exp_neg(&mut self, a: &str) -> String {
        if self.gpu {
            let x = self.neg(a, "f32");
            return self.gpu_exp(&x);
        }
        let t = self.exp_neg_scaled(a);
        let scale = self.float(2f64.powi(-64), "f32");
        self.bin("mulf", &t, &scale, "f32")
    }
    /// 1/(1 + e^−x).
    pub fn sigmoid(&mut self, x: &str) -> String {
        if self.gpu {
            let x = self.neg(x, "f32");
            return self.gpu_logistic(&x);
        }
        let a = self.math("absf", x, "f32");
        let t = self.exp_neg(&a);
        let (zero, one) = (self.float(0.0, "f32"), self.float(1.0, "f32"));
        let positive = self.cmpf("oge", x, &zero, "f32");
        let top = self.select(&positive, &one, &t, "f32");
        let below = self.bin("addf", &one, &t, "f32");
        self.bin("divf", &top, &below, "f32")
    }
    /// x/(1 + e^−x); x·e^x/(1 + e^x) for negative x, scaled so that e^x does not underflow before the product. On a GPU −0 below −87.3, where it is above −1e-36.
    pub fn silu(&mut self, x: &str) -> String {
        if self.gpu {
            let s = self.sigmoid(x);
            return self.bin("mulf", x, &s, "f32");
        }
        let a = self.math("absf", x, "f32");
        let scaled = self.exp_neg_scaled(&a);
        let (zero, one, scale) = (self.float(0.0, "f32"), self.float(1.0, "f32"), self.float(2f64.powi(-64), "f32"));
        let t = self.bin("mulf", &scaled, &scale, "f32");
        let product = self.bin("mulf", x, &scaled, "f32");
        let product = self.bin("mulf", &product, &scale, "f32");
        let positive = self.cmpf("oge", x, &zero, "f32");
        let top = self.select(&positive, x, &product, "f32");
        let below = self.bin("addf", &one, &t, "f32");
        self.bin("divf", &top, &below, "f32")
    }
    /// tanh x: a polynomial near 0, (1 − e^−2|x|)/(1 + e^−2|x|) beyond.
    pub fn tanh(&mut self, x: &str) -> String {
        let z = self.bin("mulf", x, x, "f32");
        let p = self.polynomial(&z, &TANH, "f32");
        let p = self.bin("mulf", &p, &z, "f32");
        let near = self.muladd(&p, x, x, "f32");
        let a = self.math("absf", x, "f32");
        let twice = self.bin("addf", &a, &a, "f32");
        let (one, edge) = (self.float(1.0, "f32"), self.float(0.625, "f32"));
        let far = if self.gpu {
            // 1 − 2/(1 + e^2|x|).
            let (s, minus) = (self.gpu_logistic(&twice), self.float(-2.0, "f32"));
            self.fma(&s, &minus, &one, "f32")
        } else {
            let t = self.exp_neg(&twice);
            let (top, below) = (self.bin("subf", &one, &t, "f32"), self.bin("addf", &one, &t, "f32"));
            self.bin("divf", &top, &below, "f32")
        };
        let far = self.copysign(&far, x);
        let is_near = self.cmpf("olt", &a, &edge, "f32");
        self.select(&is_near, &near, &far, "f32")
    }
    fn copysign(&mut self, x: &str, sign: &str) -> String {
        let ty = self.ty("f32");
        self.op(&format!("math.copysign {x}, {sign} : {ty}"))
    }
    /// log(1 + e^x) = max(x, 0) + 2·artanh(u/(2 + u)), u = e^−|x|.
    pub fn softplus(&mut self, x: &str) -> String {
        let a = self.math("absf", x, "f32");
        let u = self.exp_neg(&a);
        let two = self.float(2.0, "f32");
        let below = self.bin("addf", &two, &u, "f32");
        let s = self.bin("divf", &u, &below, "f32");
        let z = self.bin("mulf", &s, &s, "f32");
        let p = self.polynomial(&z, &ARTANH, "f32");
        let twice = self.bin("addf", &s, &s, "f32");
        let p = self.bin("mulf", &p, &z, "f32");
        let l = self.muladd(&p, &twice, &twice, "f32");
        let top = self.positive(x);
        self.bin("addf", &top, &l, "f32")
    }
    /// ln x: x = m·2^e with m in [√½, √2), a polynomial in m − 1.
    pub fn log(&mut self, x: &str) -> String {
        let (tiny, up) = (self.float(f64::from(f32::MIN_POSITIVE), "f32"), self.float(8_388_608.0, "f32"));
        let subnormal = self.cmpf("olt", x, &tiny, "f32");
        let scaled = self.bin("mulf", x, &up, "f32");
        let y = self.select(&subnormal, &scaled, x, "f32");
        let bits = self.bits(&y, "f32", "i32");
        // The exponent relative to √½, so that the fraction lies around 1.
        let (places, root, mask) = (self.int(23, "i32"), self.int(0x3f35_04f3, "i32"), self.int(0x7f_ffff, "i32"));
        let above = self.bin("subi", &bits, &root, "i32");
        let e = self.bin("shrsi", &above, &places, "i32");
        let kept = self.bin("andi", &above, &mask, "i32");
        let m = self.bin("addi", &kept, &root, "i32");
        let m = self.bits(&m, "i32", "f32");
        let (none, fewer) = (self.float(0.0, "f32"), self.float(-23.0, "f32"));
        let less = self.select(&subnormal, &fewer, &none, "f32");
        let e = self.convert("sitofp", &e, "i32", "f32");
        let e = self.bin("addf", &e, &less, "f32");
        let one = self.float(1.0, "f32");
        let t = self.bin("subf", &m, &one, "f32");
        let z = self.bin("mulf", &t, &t, "f32");
        let p = self.polynomial(&t, &LOG, "f32");
        let cube = self.bin("mulf", &z, &t, "f32");
        let (low, high, half) = (self.float(LN_2 - LN_2_HIGH, "f32"), self.float(LN_2_HIGH, "f32"), self.float(-0.5, "f32"));
        let rest = self.bin("mulf", &e, &low, "f32");
        let p = self.muladd(&p, &cube, &rest, "f32");
        let p = self.muladd(&half, &z, &p, "f32");
        let r = self.bin("addf", &t, &p, "f32");
        let r = self.muladd(&e, &high, &r, "f32");
        let zero = self.float(0.0, "f32");
        let (inf, minus_inf, nan) =
            (self.float(f64::INFINITY, "f32"), self.float(f64::NEG_INFINITY, "f32"), self.float(f64::NAN, "f32"));
        let is_zero = self.cmpf("oeq", x, &zero, "f32");
        let special = self.select(&is_zero, &minus_inf, &nan, "f32");
        let positive = self.cmpf("ogt", x, &zero, "f32");
        let r = self.select(&positive, &r, &special, "f32");
        let is_inf = self.cmpf("oeq", x, &inf, "f32");
        self.select(&is_inf, &inf, &r, "f32")
    }
    /// The error function: odd polynomial near 0, 1 − e^Q(|x|) beyond.
    pub fn erf(&mut self, x: &str) -> String {
        let z = self.bin("mulf", x, x, "f32");
        let p = self.polynomial(&z, &ERF_NEAR, "f32");
        let near = self.muladd(&p, x, x, "f32");
        let a = self.math("absf", x, "f32");
        let (edge, end, one) = (self.float(0.8, "f32"), self.float(4.0, "f32"), self.float(1.0, "f32"));
        let before = self.cmpf("olt", &a, &end, "f32");
        let b = self.select(&before, &a, &end, "f32");
        let q = self.polynomial(&b, &ERF_FAR, "f32");
        let bits = self.exp_bits(&q, 0);
        let e = self.bits(&bits, "i32", "f32");
        let far = self.bin("subf", &one, &e, "f32");
        let far = self.copysign(&far, x);
        let is_far = self.cmpf("oge", &a, &edge, "f32");
        self.select(&is_far, &far, &near, "f32")
    }
    /// x^y = ±2^(y·log₂|x|), in f64 between.
    pub fn pow(&mut self, x: &str, y: &str) -> String {
        let wide = self.convert("extf", x, "f32", "f64");
        let wide_y = self.convert("extf", y, "f32", "f64");
        let a = self.math("absf", &wide, "f64");
        let l = self.log2_f64(&a);
        let (zero, one, inf) = (self.float(0.0, "f64"), self.float(1.0, "f64"), self.float(f64::INFINITY, "f64"));
        let (minus_inf, nan) = (self.float(f64::NEG_INFINITY, "f64"), self.float(f64::NAN, "f64"));
        let finite = self.cmpf("olt", &a, &inf, "f64");
        let l = self.select(&finite, &l, &a, "f64");
        let is_zero = self.cmpf("oeq", &a, &zero, "f64");
        let l = self.select(&is_zero, &minus_inf, &l, "f64");
        let t = self.bin("mulf", &wide_y, &l, "f64");
        // 1 to any power is 1, and anything to the 0.
        let unit = self.cmpf("oeq", &l, &zero, "f64");
        let flat = self.cmpf("oeq", &wide_y, &zero, "f64");
        let trivial = self.bin("ori", &unit, &flat, "i1");
        let t = self.select(&trivial, &zero, &t, "f64");
        let r = self.exp2_f64(&t);
        // Signs: of odd powers, and none of other powers of negative numbers.
        let whole = self.math("floor", &wide_y, "f64");
        let is_whole = self.cmpf("oeq", &whole, &wide_y, "f64");
        let half = self.float(0.5, "f64");
        let halved = self.bin("mulf", &wide_y, &half, "f64");
        let floor = self.math("floor", &halved, "f64");
        let uneven = self.cmpf("one", &floor, &halved, "f64");
        let odd = self.bin("andi", &is_whole, &uneven, "i1");
        let ty = self.ty("f64");
        let signed = self.op(&format!("math.copysign {r}, {wide} : {ty}"));
        let r2 = self.select(&odd, &signed, &r, "f64");
        let below = self.cmpf("olt", &wide, &zero, "f64");
        let below = self.bin("andi", &below, &finite, "i1");
        let kept = self.select(&is_whole, &r2, &nan, "f64");
        let r = self.select(&below, &kept, &r2, "f64");
        let r = self.select(&flat, &one, &r, "f64");
        self.convert("truncf", &r, "f64", "f32")
    }
    /// log₂ a of a normal f64.
    fn log2_f64(&mut self, a: &str) -> String {
        let bits = self.bits(a, "f64", "i64");
        // In unsigned arithmetic, as there is no signed shift of 64-bit lanes.
        let (places, root) = (self.int(52, "i64"), self.int(0x3fe6_a09e_667f_3bcd, "i64"));
        let (mask, bias) = (self.int((1 << 52) - 1, "i64"), self.int(1024 << 52, "i64"));
        let above = self.bin("subi", &bits, &root, "i64");
        let biased = self.bin("addi", &above, &bias, "i64");
        let e = self.bin("shrui", &biased, &places, "i64");
        let (two52, offset) = (self.int(0x4330_0000_0000_0000, "i64"), self.float(2f64.powi(52) + 1024.0, "f64"));
        let e = self.bin("ori", &e, &two52, "i64");
        let e = self.bits(&e, "i64", "f64");
        let e = self.bin("subf", &e, &offset, "f64");
        let kept = self.bin("andi", &above, &mask, "i64");
        let m = self.bin("addi", &kept, &root, "i64");
        let m = self.bits(&m, "i64", "f64");
        let one = self.float(1.0, "f64");
        let (top, below) = (self.bin("subf", &m, &one, "f64"), self.bin("addf", &m, &one, "f64"));
        let s = self.bin("divf", &top, &below, "f64");
        let z = self.bin("mulf", &s, &s, "f64");
        let p = self.polynomial(&z, &LOG2, "f64");
        self.muladd(&p, &s, &e, "f64")
    }
    /// 2^t, for t between what overflows f32 and what underflows it.
    fn exp2_f64(&mut self, t: &str) -> String {
        let (least, greatest) = (self.float(-160.0, "f64"), self.float(130.0, "f64"));
        let above = self.cmpf("ogt", t, &greatest, "f64");
        let t = self.select(&above, &greatest, t, "f64");
        let below = self.cmpf("olt", &t, &least, "f64");
        let t = self.select(&below, &least, &t, "f64");
        let magic = self.float(MAGIC_F64, "f64");
        let u = self.bin("addf", &t, &magic, "f64");
        let n = self.bin("subf", &u, &magic, "f64");
        let f = self.bin("subf", &t, &n, "f64");
        let p = self.polynomial(&f, &EXP2, "f64");
        // A NaN that comes from f32 has no low bits: it stays one.
        let places = self.int(52, "i64");
        let (u, p) = (self.bits(&u, "f64", "i64"), self.bits(&p, "f64", "i64"));
        let e = self.bin("shli", &u, &places, "i64");
        let r = self.bin("addi", &e, &p, "i64");
        self.bits(&r, "i64", "f64")
    }
}
