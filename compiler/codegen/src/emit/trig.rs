//! Sine and cosine of f32. Arguments up to 10⁵ are reduced to |r| ≤ π/4 in three steps of one rounding each; the C library takes
//! the rest. As its call would keep a loop from being vectorised, each is a function that has a variant for eight lanes, of which the
//! vectoriser is told.
//! # Source: Cody and Waite, Software Manual for the Elementary Functions, 1980; coefficients as in `float.rs`.

use super::{float::MAGIC, text::Writer};

/// The greatest argument reduced here.
const LIMIT: f64 = 1e5;
/// π/2 as three f32: what is left is below 2^−75.
const HALF_PI: [f64; 3] = [1.570_796_370_506_286_6, -4.371_138_828_673_793e-8, -1.715_124_510_005_881_9e-15];
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

impl Writer {
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
        let z = self.bin("mulf", &r, &r, "f32");
        let s = self.polynomial(&z, &SIN, "f32");
        let cube = self.bin("mulf", &r, &z, "f32");
        let s = self.muladd(&s, &cube, &r, "f32");
        let c = self.polynomial(&z, &COS, "f32");
        let (half, one) = (self.float(-0.5, "f32"), self.float(1.0, "f32"));
        let square = self.bin("mulf", &z, &z, "f32");
        let flat = self.muladd(&half, &z, &one, "f32");
        let c = self.muladd(&c, &square, &flat, "f32");
        // The quadrant is in the low bits of t; the cosine is the sine of the next.
        let (zero, first, second, places) = (self.int(0, "i32"), self.int(1, "i32"), self.int(2, "i32"), self.int(30, "i32"));
        let mut quadrant = self.bits(&t, "f32", "i32");
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
