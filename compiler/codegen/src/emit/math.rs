//! Elementwise functions. In f32 exp, log and what is made of them are polynomials in plain arithmetic, so that they vectorise; in f64,
//! and for sin, cos and pow, the C library computes them.
//! # Source: ranges and polynomials as in S. Moshier, Cephes (expf, logf, tanhf); E4M3: OCP 8-bit floating point, 2023.

use super::{Emitter, value_type};
use base::DType;
use graph::op::{MapFn, map::Kind};

/// Functions that kernels call, and those of the C library.
pub(super) const PRELUDE: &str = r#"  func.func private @erf(f64) -> f64
  func.func private @lode_to_bf16(%x: f32) -> i16 attributes {passthrough = ["alwaysinline"]} {
    %bits = arith.bitcast %x : f32 to i32
    %c1 = arith.constant 1 : i32
    %c16 = arith.constant 16 : i32
    %half = arith.constant 32767 : i32
    %nan = arith.constant 32704 : i16
    %high = arith.shrui %bits, %c16 : i32
    %odd = arith.andi %high, %c1 : i32
    %up = arith.addi %bits, %half : i32
    %even = arith.addi %up, %odd : i32
    %kept = arith.shrui %even, %c16 : i32
    %code = arith.trunci %kept : i32 to i16
    %is_nan = arith.cmpf uno, %x, %x : f32
    %r = arith.select %is_nan, %nan, %code : i16
    return %r : i16
  }
  func.func private @lode_from_e4m3(%code: i8) -> f32 attributes {passthrough = ["alwaysinline"]} {
    %w = arith.extui %code : i8 to i32
    %c7f = arith.constant 127 : i32
    %c7 = arith.constant 7 : i32
    %c8 = arith.constant 8 : i32
    %c20 = arith.constant 20 : i32
    %c24 = arith.constant 24 : i32
    %c80 = arith.constant 128 : i32
    %rebias = arith.constant 1006632960 : i32
    %nan = arith.constant 2143289344 : i32
    %unit = arith.constant 0.001953125 : f32
    %magnitude = arith.andi %w, %c7f : i32
    %fraction = arith.andi %w, %c7 : i32
    %small = arith.sitofp %fraction : i32 to f32
    %subnormal = arith.mulf %small, %unit : f32
    %subnormal_bits = arith.bitcast %subnormal : f32 to i32
    %shifted = arith.shli %magnitude, %c20 : i32
    %normal_bits = arith.addi %shifted, %rebias : i32
    %is_small = arith.cmpi ult, %magnitude, %c8 : i32
    %bits = arith.select %is_small, %subnormal_bits, %normal_bits : i32
    %is_nan = arith.cmpi eq, %magnitude, %c7f : i32
    %value = arith.select %is_nan, %nan, %bits : i32
    %sign = arith.andi %w, %c80 : i32
    %sign_bit = arith.shli %sign, %c24 : i32
    %signed = arith.ori %value, %sign_bit : i32
    %r = arith.bitcast %signed : i32 to f32
    return %r : f32
  }
  func.func private @lode_to_e4m3(%x: f32) -> i8 attributes {passthrough = ["alwaysinline"]} {
    %bits = arith.bitcast %x : f32 to i32
    %mask = arith.constant 2147483647 : i32
    %c1 = arith.constant 1 : i32
    %c20 = arith.constant 20 : i32
    %c24 = arith.constant 24 : i32
    %c80 = arith.constant 128 : i32
    %c7f = arith.constant 127 : i32
    %half = arith.constant 524287 : i32
    %rebias = arith.constant 960 : i32
    %top = arith.constant 126 : i32
    %inf = arith.constant 2139095040 : i32
    %least = arith.constant 1015021568 : i32
    %scale = arith.constant 512.0 : f32
    %limit = arith.constant 1138753536 : i32
    %a = arith.andi %bits, %mask : i32
    %clamped = arith.minsi %a, %limit : i32
    %magnitude = arith.bitcast %clamped : i32 to f32
    %scaled = arith.mulf %magnitude, %scale : f32
    %rounded = math.roundeven %scaled : f32
    %subnormal = arith.fptosi %rounded : f32 to i32
    %drop = arith.shrui %clamped, %c20 : i32
    %odd = arith.andi %drop, %c1 : i32
    %up = arith.addi %clamped, %half : i32
    %even = arith.addi %up, %odd : i32
    %kept = arith.shrui %even, %c20 : i32
    %normal = arith.subi %kept, %rebias : i32
    %is_small = arith.cmpi slt, %clamped, %least : i32
    %code = arith.select %is_small, %subnormal, %normal : i32
    %sat = arith.minsi %code, %top : i32
    %is_nan = arith.cmpi sgt, %a, %inf : i32
    %final = arith.select %is_nan, %c7f, %sat : i32
    %sign = arith.shrui %bits, %c24 : i32
    %sign_bit = arith.andi %sign, %c80 : i32
    %signed = arith.ori %final, %sign_bit : i32
    %r = arith.trunci %signed : i32 to i8
    return %r : i8
  }
"#;

impl Emitter<'_> {
    /// A function of values of `dtype` (of the last operand).
    pub(super) fn map(&mut self, f: MapFn, v: &[String], dtype: DType) -> String {
        let ty = value_type(dtype);
        match f.kind() {
            Kind::Compare => self.compare(f, v, dtype),
            Kind::Logic => match f {
                MapFn::And => self.op(&format!("arith.andi {}, {} : i1", v[0], v[1])),
                MapFn::Or => self.op(&format!("arith.ori {}, {} : i1", v[0], v[1])),
                _ => {
                    let yes = self.op("arith.constant true");
                    self.op(&format!("arith.xori {}, {yes} : i1", v[0]))
                }
            },
            Kind::Test => {
                let a = self.op(&format!("math.absf {} : {ty}", v[0]));
                let inf = self.float(f64::INFINITY, ty);
                self.op(&format!("arith.cmpf olt, {a}, {inf} : {ty}"))
            }
            Kind::Select => self.op(&format!("arith.select {}, {}, {} : {ty}", v[0], v[1], v[2])),
            Kind::Float | Kind::Number | Kind::Int if dtype.is_float() => self.float_map(f, v, ty),
            Kind::Float | Kind::Number | Kind::Int => self.int_map(f, v, ty),
        }
    }

    fn compare(&mut self, f: MapFn, v: &[String], dtype: DType) -> String {
        let ty = value_type(dtype);
        let (float, int) = match f {
            MapFn::Eq => ("oeq", "eq"),
            MapFn::Ne => ("une", "ne"),
            MapFn::Lt => ("olt", if dtype == DType::Bool { "ult" } else { "slt" }),
            _ => ("ole", if dtype == DType::Bool { "ule" } else { "sle" }),
        };
        if dtype.is_float() {
            self.op(&format!("arith.cmpf {float}, {}, {} : {ty}", v[0], v[1]))
        } else {
            self.op(&format!("arith.cmpi {int}, {}, {} : {ty}", v[0], v[1]))
        }
    }

    fn bin(&mut self, op: &str, a: &str, b: &str, ty: &str) -> String {
        self.op(&format!("arith.{op} {a}, {b} fastmath<contract> : {ty}"))
    }
    /// a·b + c in one rounding.
    fn fma(&mut self, a: &str, b: &str, c: &str, ty: &str) -> String {
        self.op(&format!("math.fma {a}, {b}, {c} : {ty}"))
    }
    fn select(&mut self, c: &str, a: &str, b: &str, ty: &str) -> String {
        self.op(&format!("arith.select {c}, {a}, {b} : {ty}"))
    }
    fn cmp(&mut self, predicate: &str, a: &str, b: &str, ty: &str) -> String {
        self.op(&format!("arith.cmpf {predicate}, {a}, {b} : {ty}"))
    }

    fn float_map(&mut self, f: MapFn, v: &[String], ty: &str) -> String {
        let x = v[0].clone();
        let single = ty == "f32";
        match f {
            MapFn::Add => self.bin("addf", &x, &v[1], ty),
            MapFn::Sub => self.bin("subf", &x, &v[1], ty),
            MapFn::Mul => self.bin("mulf", &x, &v[1], ty),
            MapFn::Div => self.bin("divf", &x, &v[1], ty),
            MapFn::Min => self.op(&format!("arith.minimumf {x}, {} : {ty}", v[1])),
            MapFn::Max => self.op(&format!("arith.maximumf {x}, {} : {ty}", v[1])),
            MapFn::Pow => self.op(&format!("math.powf {x}, {} : {ty}", v[1])),
            MapFn::Neg => self.op(&format!("arith.negf {x} : {ty}")),
            MapFn::Abs => self.op(&format!("math.absf {x} : {ty}")),
            MapFn::Sign => {
                let (zero, one) = (self.float(0.0, ty), self.float(1.0, ty));
                let minus = self.float(-1.0, ty);
                let (above, below) = (self.cmp("ogt", &x, &zero, ty), self.cmp("olt", &x, &zero, ty));
                let r = self.select(&below, &minus, &x, ty);
                self.select(&above, &one, &r, ty)
            }
            MapFn::Floor => self.op(&format!("math.floor {x} : {ty}")),
            MapFn::Exp if single => self.exp(&x),
            MapFn::Log if single => self.log(&x),
            MapFn::Exp => self.op(&format!("math.exp {x} : {ty}")),
            MapFn::Log => self.op(&format!("math.log {x} : {ty}")),
            MapFn::Sqrt => self.op(&format!("math.sqrt {x} : {ty}")),
            MapFn::Rsqrt => {
                let (root, one) = (self.op(&format!("math.sqrt {x} : {ty}")), self.float(1.0, ty));
                self.bin("divf", &one, &root, ty)
            }
            MapFn::Sin => self.op(&format!("math.sin {x} : {ty}")),
            MapFn::Cos => self.op(&format!("math.cos {x} : {ty}")),
            MapFn::Tanh if single => self.tanh(&x),
            MapFn::Tanh => self.op(&format!("math.tanh {x} : {ty}")),
            MapFn::Sigmoid => {
                let one = self.float(1.0, ty);
                let d = self.one_plus_exp_neg(&x, ty);
                self.bin("divf", &one, &d, ty)
            }
            MapFn::Silu => {
                let d = self.one_plus_exp_neg(&x, ty);
                self.bin("divf", &x, &d, ty)
            }
            MapFn::Swiglu => {
                let d = self.one_plus_exp_neg(&x, ty);
                let s = self.bin("divf", &x, &d, ty);
                self.bin("mulf", &s, &v[1], ty)
            }
            MapFn::Softplus => {
                // max(x, 0) + log(1 + u), u = e^−|x|; the logarithm of w = 1 + u, corrected for what u lost in the sum.
                let a = self.op(&format!("math.absf {x} : {ty}"));
                let n = self.op(&format!("arith.negf {a} : {ty}"));
                let u = if single { self.exp(&n) } else { self.op(&format!("math.exp {n} : {ty}")) };
                let one = self.float(1.0, ty);
                let w = self.op(&format!("arith.addf {u}, {one} : {ty}"));
                let back = self.op(&format!("arith.subf {w}, {one} : {ty}"));
                let lost = self.op(&format!("arith.subf {u}, {back} : {ty}"));
                let l = if single { self.log(&w) } else { self.op(&format!("math.log {w} : {ty}")) };
                let fix = self.bin("divf", &lost, &w, ty);
                let l = self.bin("addf", &l, &fix, ty);
                let zero = self.float(0.0, ty);
                let top = self.op(&format!("arith.maximumf {x}, {zero} : {ty}"));
                self.bin("addf", &top, &l, ty)
            }
            MapFn::Erf if single => self.erf(&x),
            MapFn::Erf => self.op(&format!("func.call @erf({x}) : ({ty}) -> {ty}")),
            _ => base::bug!("{} of {ty}", f.name()),
        }
    }

    fn one_plus_exp_neg(&mut self, x: &str, ty: &str) -> String {
        let n = self.op(&format!("arith.negf {x} : {ty}"));
        let e = if ty == "f32" { self.exp(&n) } else { self.op(&format!("math.exp {n} : {ty}")) };
        let one = self.float(1.0, ty);
        self.bin("addf", &one, &e, ty)
    }

    fn polynomial(&mut self, x: &str, coefficients: &[f64]) -> String {
        let mut p = self.float(coefficients[0], "f32");
        for c in &coefficients[1..] {
            let c = self.float(*c, "f32");
            p = self.fma(&p, x, &c, "f32");
        }
        p
    }

    /// e^x in f32: x = n·ln 2 + r, a polynomial in r, and 2^n in two factors so that subnormal results are right.
    fn exp(&mut self, x: &str) -> String {
        let (low, high) = (self.float(-104.0, "f32"), self.float(89.0, "f32"));
        let below = self.cmp("olt", x, &low, "f32");
        let c = self.select(&below, &low, x, "f32");
        let above = self.cmp("ogt", &c, &high, "f32");
        let c = self.select(&above, &high, &c, "f32");
        let log2e = self.float(std::f64::consts::LOG2_E, "f32");
        let n = self.op(&format!("arith.mulf {c}, {log2e} : f32"));
        let n = self.op(&format!("math.roundeven {n} : f32"));
        // ln 2 as a short number and the rest, negated.
        let (hi, lo) = (self.float(-0.693_359_375, "f32"), self.float(2.121_944_4e-4, "f32"));
        let r = self.fma(&n, &hi, &c, "f32");
        let r = self.fma(&n, &lo, &r, "f32");
        let p = self.polynomial(
            &r,
            &[
                1.987_569_15e-4,
                1.398_199_950_7e-3,
                8.333_451_907_3e-3,
                4.166_579_589_4e-2,
                1.666_666_545_9e-1,
                5.000_000_120_1e-1,
            ],
        );
        let square = self.op(&format!("arith.mulf {r}, {r} : f32"));
        let p = self.fma(&p, &square, &r, "f32");
        let one = self.float(1.0, "f32");
        let p = self.op(&format!("arith.addf {p}, {one} : f32"));
        let i = self.op(&format!("arith.fptosi {n} : f32 to i32"));
        let (c1, c23, bias) = (self.int(1, "i32"), self.int(23, "i32"), self.int(127, "i32"));
        let first = self.op(&format!("arith.shrsi {i}, {c1} : i32"));
        let second = self.op(&format!("arith.subi {i}, {first} : i32"));
        let mut result = p;
        for part in [first, second] {
            let e = self.op(&format!("arith.addi {part}, {bias} : i32"));
            let bits = self.op(&format!("arith.shli {e}, {c23} : i32"));
            let power = self.op(&format!("arith.bitcast {bits} : i32 to f32"));
            result = self.op(&format!("arith.mulf {result}, {power} : f32"));
        }
        // The integer of a NaN is undefined: it must not be chosen.
        let is_nan = self.cmp("uno", x, x, "f32");
        self.select(&is_nan, x, &result, "f32")
    }

    /// ln x in f32: x = m·2^e with m in [√½, √2), a polynomial in m − 1.
    fn log(&mut self, x: &str) -> String {
        let tiny = self.float(f64::from(f32::MIN_POSITIVE), "f32");
        let subnormal = self.cmp("olt", x, &tiny, "f32");
        let up = self.float(8_388_608.0, "f32");
        let scaled = self.op(&format!("arith.mulf {x}, {up} : f32"));
        let y = self.select(&subnormal, &scaled, x, "f32");
        let bits = self.op(&format!("arith.bitcast {y} : f32 to i32"));
        // Exponent relative to √½, so that the fraction lies around 1.
        let (shift, root, mask) = (self.int(23, "i32"), self.int(0x3f35_04f3, "i32"), self.int(0x7f_ffff, "i32"));
        let above = self.op(&format!("arith.subi {bits}, {root} : i32"));
        let e = self.op(&format!("arith.shrsi {above}, {shift} : i32"));
        let kept = self.op(&format!("arith.andi {above}, {mask} : i32"));
        let m = self.op(&format!("arith.addi {kept}, {root} : i32"));
        let m = self.op(&format!("arith.bitcast {m} : i32 to f32"));
        let (none, fewer) = (self.int(0, "i32"), self.int(23, "i32"));
        let less = self.op(&format!("arith.select {subnormal}, {fewer}, {none} : i32"));
        let e = self.op(&format!("arith.subi {e}, {less} : i32"));
        let e = self.op(&format!("arith.sitofp {e} : i32 to f32"));
        let one = self.float(1.0, "f32");
        let t = self.op(&format!("arith.subf {m}, {one} : f32"));
        let z = self.op(&format!("arith.mulf {t}, {t} : f32"));
        let p = self.polynomial(
            &t,
            &[
                7.037_683_629_2e-2,
                -1.151_461_031_0e-1,
                1.167_699_874_0e-1,
                -1.242_014_084_6e-1,
                1.424_932_278_7e-1,
                -1.666_805_766_5e-1,
                2.000_071_476_5e-1,
                -2.499_999_399_3e-1,
                3.333_333_117_4e-1,
            ],
        );
        let p = self.op(&format!("arith.mulf {p}, {t} : f32"));
        let p = self.op(&format!("arith.mulf {p}, {z} : f32"));
        let (lo, hi) = (self.float(-2.121_944_4e-4, "f32"), self.float(0.693_359_375, "f32"));
        let half = self.float(-0.5, "f32");
        let p = self.fma(&e, &lo, &p, "f32");
        let p = self.fma(&half, &z, &p, "f32");
        let r = self.op(&format!("arith.addf {t}, {p} : f32"));
        let r = self.fma(&e, &hi, &r, "f32");
        // 0, negative numbers, infinity and NaN.
        let zero = self.float(0.0, "f32");
        let (inf, minus_inf, nan) =
            (self.float(f64::INFINITY, "f32"), self.float(f64::NEG_INFINITY, "f32"), self.float(f64::NAN, "f32"));
        let is_zero = self.cmp("oeq", x, &zero, "f32");
        let r = self.select(&is_zero, &minus_inf, &r, "f32");
        let negative = self.cmp("ult", x, &zero, "f32");
        let r = self.select(&negative, &nan, &r, "f32");
        let is_inf = self.cmp("oeq", x, &inf, "f32");
        self.select(&is_inf, &inf, &r, "f32")
    }

    /// tanh x in f32: a polynomial near 0, 1 − 2/(e^2|x| + 1) beyond.
    fn tanh(&mut self, x: &str) -> String {
        let z = self.op(&format!("arith.mulf {x}, {x} : f32"));
        let p =
            self.polynomial(&z, &[-5.704_988_727e-3, 2.063_908_879e-2, -5.373_971_555e-2, 1.333_144_220e-1, -3.333_328_194e-1]);
        let p = self.op(&format!("arith.mulf {p}, {z} : f32"));
        let near = self.fma(&p, x, x, "f32");
        let a = self.op(&format!("math.absf {x} : f32"));
        let twice = self.op(&format!("arith.addf {a}, {a} : f32"));
        let e = self.exp(&twice);
        let (one, two, edge) = (self.float(1.0, "f32"), self.float(2.0, "f32"), self.float(0.625, "f32"));
        let d = self.op(&format!("arith.addf {e}, {one} : f32"));
        let q = self.op(&format!("arith.divf {two}, {d} : f32"));
        let far = self.op(&format!("arith.subf {one}, {q} : f32"));
        let far = self.op(&format!("math.copysign {far}, {x} : f32"));
        let is_near = self.cmp("olt", &a, &edge, "f32");
        self.select(&is_near, &near, &far, "f32")
    }

    /// erf x in f32: x + x·p(x²) below 1, 1 − e^−q(|x|) beyond, 1 from 4 on. The coefficients interpolate at Chebyshev's points.
    fn erf(&mut self, x: &str) -> String {
        let z = self.op(&format!("arith.mulf {x}, {x} : f32"));
        let p = self.polynomial(
            &z,
            &[-5.648_059_887e-4, 4.921_761_807e-3, -2.671_505_511e-2, 1.128_031_686e-1, -3.761_234_283e-1, 1.283_791_214e-1],
        );
        let near = self.fma(&p, x, x, "f32");
        let a = self.op(&format!("math.absf {x} : f32"));
        let (one, four) = (self.float(1.0, "f32"), self.float(4.0, "f32"));
        let above = self.cmp("ogt", &a, &four, "f32");
        let t = self.select(&above, &four, &a, "f32");
        let q = self.polynomial(
            &t,
            &[
                -1.637_151_399e-6,
                4.605_804_133e-5,
                -5.968_056_503e-4,
                4.759_596_195e-3,
                -2.642_113_529e-2,
                1.100_800_857e-1,
                6.318_260_431e-1,
                1.130_233_407,
                -3.201_380_605e-4,
            ],
        );
        let q = self.op(&format!("arith.negf {q} : f32"));
        let e = self.exp(&q);
        let far = self.op(&format!("arith.subf {one}, {e} : f32"));
        let far = self.op(&format!("math.copysign {far}, {x} : f32"));
        let is_near = self.cmp("olt", &a, &one, "f32");
        self.select(&is_near, &near, &far, "f32")
    }

    fn int_map(&mut self, f: MapFn, v: &[String], ty: &str) -> String {
        let x = v[0].clone();
        let two = |op: &str| format!("arith.{op} {x}, {} : {ty}", v.get(1).map_or("", String::as_str));
        match f {
            MapFn::Add => self.op(&two("addi")),
            MapFn::Sub => self.op(&two("subi")),
            MapFn::Mul => self.op(&two("muli")),
            MapFn::Min => self.op(&two("minsi")),
            MapFn::Max => self.op(&two("maxsi")),
            MapFn::Neg => {
                let zero = self.int(0, ty);
                self.op(&format!("arith.subi {zero}, {x} : {ty}"))
            }
            MapFn::Abs => {
                let zero = self.int(0, ty);
                let n = self.op(&format!("arith.subi {zero}, {x} : {ty}"));
                self.op(&format!("arith.maxsi {x}, {n} : {ty}"))
            }
            MapFn::Sign => {
                let (one, minus) = (self.int(1, ty), self.int(-1, ty));
                let r = self.op(&format!("arith.minsi {x}, {one} : {ty}"));
                self.op(&format!("arith.maxsi {r}, {minus} : {ty}"))
            }
            MapFn::FloorDiv | MapFn::Rem => self.floor_div(f, &x, &v[1], ty),
            _ => base::bug!("{} of {ty}", f.name()),
        }
    }

    /// Division that rounds down, or its remainder; both are 0 if the divisor is.
    fn floor_div(&mut self, f: MapFn, x: &str, d: &str, ty: &str) -> String {
        let (zero, one, minus) = (self.int(0, ty), self.int(1, ty), self.int(-1, ty));
        let none = self.op(&format!("arith.cmpi eq, {d}, {zero} : {ty}"));
        // The processor traps on the least integer by −1, too.
        let negates = self.op(&format!("arith.cmpi eq, {d}, {minus} : {ty}"));
        let special = self.op(&format!("arith.ori {none}, {negates} : i1"));
        let safe = self.op(&format!("arith.select {special}, {one}, {d} : {ty}"));
        let q = self.op(&format!("arith.divsi {x}, {safe} : {ty}"));
        let back = self.op(&format!("arith.muli {q}, {safe} : {ty}"));
        let r = self.op(&format!("arith.subi {x}, {back} : {ty}"));
        // Truncation rounded up where the remainder and the divisor differ in sign.
        let inexact = self.op(&format!("arith.cmpi ne, {r}, {zero} : {ty}"));
        let mixed = self.op(&format!("arith.xori {r}, {safe} : {ty}"));
        let mixed = self.op(&format!("arith.cmpi slt, {mixed}, {zero} : {ty}"));
        let adjust = self.op(&format!("arith.andi {inexact}, {mixed} : i1"));
        if f == MapFn::Rem {
            // The remainder by 1, which stands for 0 and −1, is 0.
            let more = self.op(&format!("arith.addi {r}, {safe} : {ty}"));
            return self.op(&format!("arith.select {adjust}, {more}, {r} : {ty}"));
        }
        let less = self.op(&format!("arith.subi {q}, {one} : {ty}"));
        let value = self.op(&format!("arith.select {adjust}, {less}, {q} : {ty}"));
        let opposite = self.op(&format!("arith.subi {zero}, {x} : {ty}"));
        let value = self.op(&format!("arith.select {negates}, {opposite}, {value} : {ty}"));
        self.op(&format!("arith.select {none}, {zero}, {value} : {ty}"))
    }

    /// The same for operands that are not negative.
    pub(super) fn floor_div_unsigned(&mut self, f: MapFn, x: &str, d: &str, known: Option<i64>, ty: &str) -> String {
        let op = if f == MapFn::FloorDiv { "divui" } else { "remui" };
        if known.is_some_and(|n| n > 0) {
            return self.op(&format!("arith.{op} {x}, {d} : {ty}"));
        }
        let (zero, one) = (self.int(0, ty), self.int(1, ty));
        let none = self.op(&format!("arith.cmpi eq, {d}, {zero} : {ty}"));
        let safe = self.op(&format!("arith.select {none}, {one}, {d} : {ty}"));
        let q = self.op(&format!("arith.{op} {x}, {safe} : {ty}"));
        self.op(&format!("arith.select {none}, {zero}, {q} : {ty}"))
    }
}
