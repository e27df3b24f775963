//! Sine and cosine of f32. Arguments up to 10⁵ are reduced to |r| ≤ π/4 in three steps of one rounding each; the C library takes
//! the rest. As its call would keep a loop from being vectorised, each is a function that has a variant for eight lanes, of which the
//! vectoriser is told.
//! # Source: Cody and Waite, Software Manual for the Elementary Functions, 1980; coefficients as in `float.rs`.

use super::{float::MAGIC, text::Writer};

/// The greatest argument reduced here.
const LIMIT: f64 = 1e5;
/// π/2 as three f32: what is left is below 2^−75.
const HALF_PI: [f64; 3] = [1.570_796_370_506_286_6, -4.371_138_828_673_793e-8, -1.715_124_510_005_881_9e-15];
/// The bits of 2/π, after 32 of its whole part.
const TWO_OVER_PI: [i64; 8] = [0, 0xa2f9_836e, 0x4e44_1529, 0xfc27_57d1, 0xf534_ddc0, 0xdb62_9599, 0x3c43_9041, 0xfe51_63ab];
/// (sin(r)/r − 1)/r² over r² for |r| ≤ π/4; 2^−28.
const SIN: [f64; 3] = [-0.166_666_552_424_430_85, 0.008_332_156_576_216_22, -0.000_195_146_465_557_627_38];
/// (cos r − 1 + r²/2)/r⁴ over r² for |r| ≤ π/4; 2^−33.
const COS: [f64; 3] = [0.041_666_645_556_688_31, -0.001_388_730_946_928_262_7, 2.443_243_101_879_489_5e-5];

/// The function of one f32 and the function of eight.
pub(super) fn functions(name: &str) -> String {
    let mut w = Writer::new(1);
    let r = w.trig("%x", name == "cos");
    let mut text = format!(
        "  func.func private @lode.{name}(%x: f32) -> f32 attributes {{passthrough = [\"noinline\", \
         [\"vector-function-abi-variant\", \"_ZGV_LLVM_N8v_lode.{name}(lode.{name}.x8)\"]]}} {{\n"
    );
    let a = w.math("absf", "%x", "f32");
    let limit = w.float(LIMIT, "f32");
    let large = w.cmpf("ogt", &a, &limit, "f32");
    let result = w.op(&format!("scf.if {large} -> (f32) {{"));
    let far = w.math(name, "%x", "f32");
    w.line(&format!("scf.yield {far} : f32\n    }} else {{\n      scf.yield {r} : f32\n    }}"));
    text.push_str(&format!("{}{}    return {result} : f32\n  }}\n", w.head, w.out));

    let mut w = Writer::new(8);
    let ty = w.ty("f32");
    let r = w.trig("%x", name == "cos");
    let a = w.math("absf", "%x", "f32");
    let limit = w.float(LIMIT, "f32");
    let large = w.cmpf("ogt", &a, &limit, "f32");
    let any = w.op(&format!("\"llvm.intr.vector.reduce.or\"({large}) : ({}) -> i1", w.ty("i1")));
    let result = w.op(&format!("scf.if {any} -> ({ty}) {{"));
    w.inside(|w| {
        let mut v = "%x".to_string();
        for lane in 0..8 {
            let i = w.op(&format!("llvm.mlir.constant({lane} : i64) : i64"));
            let x = w.op(&format!("llvm.extractelement %x[{i} : i64] : {ty}"));
            // Not the function above, whose variant this is.
            let y = w.op(&format!("math.{name} {x} : f32"));
            v = w.op(&format!("llvm.insertelement {y}, {v}[{i} : i64] : {ty}"));
        }
        w.line(&format!("scf.yield {v} : {ty}"));
    });
    w.line(&format!("}} else {{\n      scf.yield {r} : {ty}\n    }}"));
    let (head, body) = (w.head, w.out);
    text.push_str(&format!("  func.func @lode.{name}.x8(%x: {ty}) -> {ty} {{\n{head}{body}    return {result} : {ty}\n  }}\n"));
    text
}

/// The function of one f32 on a GPU, which has no library to take arguments above [`LIMIT`].
pub(super) fn gpu_function(name: &str) -> String {
    let mut w = Writer::new(1);
    let near = w.trig("%x", name == "cos");
    let a = w.math("absf", "%x", "f32");
    let limit = w.float(LIMIT, "f32");
    let large = w.cmpf("ogt", &a, &limit, "f32");
    let result = w.op(&format!("scf.if {large} -> (f32) {{"));
    w.inside(|w| {
        let far = w.far_trig("%x", &a, name == "cos");
        w.line(&format!("scf.yield {far} : f32"));
    });
    w.line(&format!("}} else {{\n      scf.yield {near} : f32\n    }}"));
    format!("  func.func private @lode.{name}(%x: f32) -> f32 {{\n{}{}    return {result} : f32\n  }}\n", w.head, w.out)
}

impl Writer {
    /// sin x or cos x for |x| = a > [`LIMIT`]. With |x| = m·2^e, bits of 2/π that make multiples of 4 turns of a quadrant do not matter; the
    /// 96 that follow, times m, give the quadrant and 62 bits of what is left.
    /// # Source: Payne and Hanek, Radian reduction for trigonometric functions, 1983.
    fn far_trig(&mut self, x: &str, a: &str, cosine: bool) -> String {
        let bits = self.bits(a, "f32", "i32");
        let (mask, one, places) = (self.int(0x7f_ffff, "i32"), self.int(1 << 23, "i32"), self.int(23, "i32"));
        let m = self.bin("andi", &bits, &mask, "i32");
        let m = self.bin("ori", &m, &one, "i32");
        let m = self.convert("extui", &m, "i32", "i64");
        // e is the exponent less 150, and the first bit that matters is that of weight 2^(1 − e): 30 + e in the table.
        let exponent = self.bin("shrui", &bits, &places, "i32");
        let shift = self.int(150 - 30, "i32");
        let first = self.bin("subi", &exponent, &shift, "i32");
        let (five, low) = (self.int(5, "i32"), self.int(31, "i32"));
        let word = self.bin("shrui", &first, &five, "i32");
        let offset = self.bin("andi", &first, &low, "i32");
        let offset = self.convert("extui", &offset, "i32", "i64");
        let words: Vec<String> = (0..4).map(|i| self.word_of_two_over_pi(&word, i)).collect();
        // Three words, from the offset on.
        let thirty_two = self.int(32, "i64");
        let mut window = Vec::new();
        for pair in words.windows(2) {
            let high = self.bin("shli", &pair[0], &thirty_two, "i64");
            let both = self.bin("ori", &high, &pair[1], "i64");
            let both = self.bin("shli", &both, &offset, "i64");
            window.push(self.bin("shrui", &both, &thirty_two, "i64"));
        }
        let high = self.bin("shli", &window[0], &thirty_two, "i64");
        let high = self.bin("ori", &high, &window[1], "i64");
        let product = self.bin("muli", &high, &m, "i64");
        let below = self.bin("muli", &window[2], &m, "i64");
        let below = self.bin("shrui", &below, &thirty_two, "i64");
        let turns = self.bin("addi", &product, &below, "i64");
        // In units of 2^−62 quadrants, modulo 4; for negative x from the other side.
        let (none, zero) = (self.int(0, "i64"), self.float(0.0, "f32"));
        let opposite = self.bin("subi", &none, &turns, "i64");
        let negative = self.cmpf("olt", x, &zero, "f32");
        let turns = self.select(&negative, &opposite, &turns, "i64");
        let (half, whole) = (self.int(1 << 61, "i64"), self.int(62, "i64"));
        let quadrant = self.bin("addi", &turns, &half, "i64");
        let quadrant = self.bin("shrui", &quadrant, &whole, "i64");
        let start = self.bin("shli", &quadrant, &whole, "i64");
        let rest = self.bin("subi", &turns, &start, "i64");
        let rest = self.convert("sitofp", &rest, "i64", "f64");
        let scale = self.float(std::f64::consts::FRAC_PI_2 / 2f64.powi(62), "f64");
        let r = self.bin("mulf", &rest, &scale, "f64");
        let r = self.convert("truncf", &r, "f64", "f32");
        let quadrant = self.convert("trunci", &quadrant, "i64", "i32");
        let v = self.wave(&r, quadrant, cosine);
        let (inf, nan) = (self.float(f64::INFINITY, "f32"), self.float(f64::NAN, "f32"));
        let finite = self.cmpf("olt", a, &inf, "f32");
        self.select(&finite, &v, &nan, "f32")
    }
    /// Word `word + i` of [`TWO_OVER_PI`], of those that an f32 reaches.
    fn word_of_two_over_pi(&mut self, word: &str, i: usize) -> String {
        let mut value = self.int(TWO_OVER_PI[i], "i64");
        for first in 1..5 {
            let (this, number) = (self.int(TWO_OVER_PI[first + i], "i64"), self.int(first as i64, "i32"));
            let here = self.cmpi("eq", word, &number, "i32");
            value = self.select(&here, &this, &value, "i64");
        }
        value
    }
    /// sin x or cos x for |x| ≤ [`LIMIT`].
    fn trig(&mut self, x: &str, cosine: bool) -> String {
        let (scale, magic) = (self.float(std::f64::consts::FRAC_2_PI, "f32"), self.float(MAGIC, "f32"));
        let t = self.muladd(x, &scale, &magic, "f32");
        let n = self.bin("subf", &t, &magic, "f32");
        let mut r = x.to_string();
        for part in HALF_PI {
            let part = self.float(-part, "f32");
            r = self.fma(&n, &part, &r, "f32");
        }
        // The quadrant is in the low bits of t.
        let quadrant = self.bits(&t, "f32", "i32");
        self.wave(&r, quadrant, cosine)
    }
    /// sin or cos of r + quadrant·π/2, |r| ≤ π/4.
    fn wave(&mut self, r: &str, mut quadrant: String, cosine: bool) -> String {
        let z = self.bin("mulf", r, r, "f32");
        let s = self.polynomial(&z, &SIN, "f32");
        let cube = self.bin("mulf", r, &z, "f32");
        let s = self.muladd(&s, &cube, r, "f32");
        let c = self.polynomial(&z, &COS, "f32");
        let (half, one) = (self.float(-0.5, "f32"), self.float(1.0, "f32"));
        let square = self.bin("mulf", &z, &z, "f32");
        let flat = self.muladd(&half, &z, &one, "f32");
        let c = self.muladd(&c, &square, &flat, "f32");
        // The cosine is the sine of the next quadrant.
        let (zero, first, second, places) = (self.int(0, "i32"), self.int(1, "i32"), self.int(2, "i32"), self.int(30, "i32"));
        if cosine {
            quadrant = self.bin("addi", &quadrant, &first, "i32");
        }
        let odd = self.bin("andi", &quadrant, &first, "i32");
        let even = self.cmpi("eq", &odd, &zero, "i32");
        let v = self.select(&even, &s, &c, "f32");
        let sign = self.bin("andi", &quadrant, &second, "i32");
        let sign = self.bin("shli", &sign, &places, "i32");
        let v = self.bits(&v, "f32", "i32");
        let v = self.bin("xori", &v, &sign, "i32");
        self.bits(&v, "i32", "f32")
    }
}
