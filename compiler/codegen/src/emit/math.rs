//! Elementwise functions of scalars: floats by `float.rs` and `trig.rs` in f32 and by the C library in f64, integers and truth values here.

use super::{
    text::{Helper, Writer},
    value_type,
};
use base::DType;
use graph::op::MapFn;

impl Writer {
    /// A function of values of `dtype` (of the last operand).
    pub fn map(&mut self, f: MapFn, v: &[String], dtype: DType) -> String {
        let ty = value_type(dtype);
        match dtype {
            DType::F64 | DType::F32 | DType::TF32 | DType::BF16 | DType::F16 | DType::E4M3 => self.float_map(f, v, ty),
            DType::I64 | DType::I32 | DType::Bool => self.int_map(f, v, ty),
        }
    }

    /// An operation whose product another may take in unrounded.
    pub fn contracted(&mut self, op: &str, a: &str, b: &str, scalar: &str) -> String {
        let ty = self.ty(scalar);
        self.op(&format!("arith.{op} {a}, {b} fastmath<contract> : {ty}"))
    }

    fn float_map(&mut self, f: MapFn, v: &[String], ty: &str) -> String {
        let x = v[0].as_str();
        let single = ty == "f32";
        match f {
            MapFn::Add => self.contracted("addf", x, &v[1], ty),
            MapFn::Sub => self.contracted("subf", x, &v[1], ty),
            MapFn::Mul => self.contracted("mulf", x, &v[1], ty),
            MapFn::Div if single && self.narrow => self.approximate_quotient(x, &v[1]),
            MapFn::Sqrt if single && self.narrow => self.approximate("sqrt.approx.f", v),
            MapFn::Rsqrt if single && self.narrow => self.approximate("rsqrt.approx.f", v),
            MapFn::Div => self.contracted("divf", x, &v[1], ty),
            MapFn::Min => self.bin("minimumf", x, &v[1], ty),
            MapFn::Max => self.bin("maximumf", x, &v[1], ty),
            MapFn::Neg => self.neg(x, ty),
            MapFn::Abs => self.math("absf", x, ty),
            MapFn::Floor => self.math("floor", x, ty),
            MapFn::Sqrt => self.math("sqrt", x, ty),
            MapFn::Rsqrt => {
                let (root, one) = (self.math("sqrt", x, ty), self.float(1.0, ty));
                self.bin("divf", &one, &root, ty)
            }
            MapFn::Sign => {
                let (zero, one, minus) = (self.float(0.0, ty), self.float(1.0, ty), self.float(-1.0, ty));
                let (above, below) = (self.cmpf("ogt", x, &zero, ty), self.cmpf("olt", x, &zero, ty));
                let r = self.select(&below, &minus, x, ty);
                self.select(&above, &one, &r, ty)
            }
            MapFn::Eq => self.cmpf("oeq", x, &v[1], ty),
            MapFn::Ne => self.cmpf("une", x, &v[1], ty),
            MapFn::Lt => self.cmpf("olt", x, &v[1], ty),
            MapFn::Le => self.cmpf("ole", x, &v[1], ty),
            MapFn::IsFinite => {
                let (a, inf) = (self.math("absf", x, ty), self.float(f64::INFINITY, ty));
                self.cmpf("olt", &a, &inf, ty)
            }
            MapFn::Select => self.select(x, &v[1], &v[2], ty),
            MapFn::Exp if single => self.exp(x),
            MapFn::Log if single => self.log(x),
            MapFn::Pow if single => self.pow(x, &v[1]),
            MapFn::Tanh if single => self.tanh(x),
            MapFn::Sigmoid if single => self.sigmoid(x),
            MapFn::Silu if single => self.silu(x),
            MapFn::Swiglu if single => {
                let s = self.silu(x);
                self.contracted("mulf", &s, &v[1], ty)
            }
            MapFn::Softplus if single => self.softplus(x),
            MapFn::Erf if single => self.erf(x),
            MapFn::Sin if single => self.helper(Helper::Sin, "lode.sin", x, ty),
            MapFn::Cos if single => self.helper(Helper::Cos, "lode.cos", x, ty),
            MapFn::Exp => self.math("exp", x, ty),
            MapFn::Log => self.math("log", x, ty),
            MapFn::Pow => self.op(&format!("math.powf {x}, {} : {ty}", v[1])),
            MapFn::Tanh => self.math("tanh", x, ty),
            MapFn::Sin => self.math("sin", x, ty),
            MapFn::Cos => self.math("cos", x, ty),
            MapFn::Erf => self.helper(Helper::Erf, "erf", x, ty),
            MapFn::Sigmoid => self.sigmoid_f64(x, None),
            MapFn::Silu => self.sigmoid_f64(x, Some(x)),
            MapFn::Swiglu => {
                let s = self.sigmoid_f64(x, Some(x));
                self.contracted("mulf", &s, &v[1], ty)
            }
            MapFn::Softplus => {
                let a = self.math("absf", x, ty);
                let n = self.neg(&a, ty);
                let u = self.math("exp", &n, ty);
                let l = self.helper(Helper::Log1p, "log1p", &u, ty);
                let zero = self.float(0.0, ty);
                let top = self.bin("maximumf", x, &zero, ty);
                self.bin("addf", &top, &l, ty)
            }
            MapFn::FloorDiv | MapFn::Rem | MapFn::And | MapFn::Or | MapFn::Not => base::bug!("{} of {ty}", f.name()),
        }
    }

    /// What the processor approximates. On a GPU.
    fn approximate(&mut self, name: &str, v: &[String]) -> String {
        let (values, types) = (v.join(", "), vec!["f32"; v.len()].join(", "));
        self.op(&format!("llvm.call_intrinsic \"llvm.nvvm.{name}\"({values}) : ({types}) -> f32"))
    }

    /// x / y by the processor's 1/y, within two units in the last place: y and x are brought by a power of two to where 1/y is neither large nor small. What
    /// is of y alone is computed once for all x.
    fn approximate_quotient(&mut self, x: &str, y: &str) -> String {
        let size = self.math("absf", y, "f32");
        let [large, small] = [126, -126].map(|n| self.float(2f64.powi(n), "f32"));
        let [down, up, one] = [-2, 24, 0].map(|n| self.float(2f64.powi(n), "f32"));
        let (is_large, is_small) = (self.cmpf("ogt", &size, &large, "f32"), self.cmpf("olt", &size, &small, "f32"));
        let factor = self.select(&is_small, &up, &one, "f32");
        let factor = self.select(&is_large, &down, &factor, "f32");
        let y = self.bin("mulf", y, &factor, "f32");
        let inverse = self.approximate("rcp.approx.ftz.f", &[y]);
        let x = self.bin("mulf", x, &factor, "f32");
        self.bin("mulf", &x, &inverse, "f32")
    }

    fn helper(&mut self, helper: Helper, name: &str, x: &str, ty: &str) -> String {
        self.helpers.insert(helper);
        self.op(&format!("func.call @{name}({x}) : ({ty}) -> {ty}"))
    }

    /// sigmoid x, or x·sigmoid x; e^x is in the numerator for negative x, as e^−x may overflow.
    fn sigmoid_f64(&mut self, x: &str, factor: Option<&str>) -> String {
        let a = self.math("absf", x, "f64");
        let n = self.neg(&a, "f64");
        let t = self.math("exp", &n, "f64");
        let (zero, one) = (self.float(0.0, "f64"), self.float(1.0, "f64"));
        let positive = self.cmpf("oge", x, &zero, "f64");
        let top = self.select(&positive, &one, &t, "f64");
        let top = match factor {
            Some(x) => self.bin("mulf", x, &top, "f64"),
            None => top,
        };
        let below = self.bin("addf", &one, &t, "f64");
        self.bin("divf", &top, &below, "f64")
    }

    fn int_map(&mut self, f: MapFn, v: &[String], ty: &str) -> String {
        let x = v[0].as_str();
        let signed = if ty == "i1" { "u" } else { "s" };
        match f {
            MapFn::Add => self.bin("addi", x, &v[1], ty),
            MapFn::Sub => self.bin("subi", x, &v[1], ty),
            MapFn::Mul => self.bin("muli", x, &v[1], ty),
            MapFn::Min => self.bin("minsi", x, &v[1], ty),
            MapFn::Max => self.bin("maxsi", x, &v[1], ty),
            MapFn::Neg => {
                let zero = self.int(0, ty);
                self.bin("subi", &zero, x, ty)
            }
            MapFn::Abs => {
                let zero = self.int(0, ty);
                let n = self.bin("subi", &zero, x, ty);
                self.bin("maxsi", x, &n, ty)
            }
            MapFn::Sign => {
                let (one, minus) = (self.int(1, ty), self.int(-1, ty));
                let r = self.bin("minsi", x, &one, ty);
                self.bin("maxsi", &r, &minus, ty)
            }
            MapFn::FloorDiv | MapFn::Rem => self.divide(f, x, &v[1], ty),
            MapFn::Eq => self.cmpi("eq", x, &v[1], ty),
            MapFn::Ne => self.cmpi("ne", x, &v[1], ty),
            MapFn::Lt => self.cmpi(&format!("{signed}lt"), x, &v[1], ty),
            MapFn::Le => self.cmpi(&format!("{signed}le"), x, &v[1], ty),
            MapFn::And => self.bin("andi", x, &v[1], ty),
            MapFn::Or => self.bin("ori", x, &v[1], ty),
            MapFn::Not => {
                let yes = self.constant("true", ty);
                self.bin("xori", x, &yes, ty)
            }
            MapFn::Select => self.select(x, &v[1], &v[2], ty),
            MapFn::Div
            | MapFn::Pow
            | MapFn::Floor
            | MapFn::Exp
            | MapFn::Log
            | MapFn::Sqrt
            | MapFn::Rsqrt
            | MapFn::Sin
            | MapFn::Cos
            | MapFn::Tanh
            | MapFn::Sigmoid
            | MapFn::Silu
            | MapFn::Swiglu
            | MapFn::Softplus
            | MapFn::Erf
            | MapFn::IsFinite => base::bug!("{} of {ty}", f.name()),
        }
    }

    /// Division rounded down. By 0 it gives 0; by −1 it must not trap where the quotient overflows.
    fn divide(&mut self, f: MapFn, x: &str, y: &str, ty: &str) -> String {
        let (zero, one, minus) = (self.int(0, ty), self.int(1, ty), self.int(-1, ty));
        let none = self.cmpi("eq", y, &zero, ty);
        let negated = self.cmpi("eq", y, &minus, ty);
        let special = self.bin("ori", &none, &negated, "i1");
        let d = self.select(&special, &one, y, ty);
        let q = self.bin("divsi", x, &d, ty);
        let back = self.bin("muli", &q, &d, ty);
        let r = self.bin("subi", x, &back, ty);
        // Truncation rounded up where the remainder and the divisor differ in sign.
        let inexact = self.cmpi("ne", &r, &zero, ty);
        let mixed = self.bin("xori", &r, &d, ty);
        let mixed = self.cmpi("slt", &mixed, &zero, ty);
        let adjust = self.bin("andi", &inexact, &mixed, "i1");
        if f == MapFn::Rem {
            let more = self.bin("addi", &r, &d, ty);
            // By 0 and −1 it was divided by 1: r is 0.
            return self.select(&adjust, &more, &r, ty);
        }
        let less = self.bin("subi", &q, &one, ty);
        let q = self.select(&adjust, &less, &q, ty);
        let opposite = self.bin("subi", &zero, x, ty);
        let q = self.select(&negated, &opposite, &q, ty);
        self.select(&none, &zero, &q, ty)
    }
    /// The same for operands that are not negative.
    pub fn divide_unsigned(&mut self, f: MapFn, x: &str, y: &str, ty: &str) -> String {
        let op = if f == MapFn::FloorDiv { "divui" } else { "remui" };
        let (zero, one) = (self.int(0, ty), self.int(1, ty));
        let none = self.cmpi("eq", y, &zero, ty);
        let d = self.select(&none, &one, y, ty);
        let q = self.bin(op, x, &d, ty);
        self.select(&none, &zero, &q, ty)
    }
    /// The same by a positive constant, of an operand that may be known not to be negative.
    pub fn divide_by(&mut self, f: MapFn, x: &str, n: i64, natural: bool, ty: &str) -> String {
        if n & (n - 1) == 0 {
            return if f == MapFn::FloorDiv {
                let places = self.int(i64::from(n.trailing_zeros()), ty);
                self.bin("shrsi", x, &places, ty)
            } else {
                let mask = self.int(n - 1, ty);
                self.bin("andi", x, &mask, ty)
            };
        }
        let (zero, d) = (self.int(0, ty), self.int(n, ty));
        if natural {
            return self.bin(if f == MapFn::FloorDiv { "divui" } else { "remui" }, x, &d, ty);
        }
        let r = self.bin("remsi", x, &d, ty);
        let below = self.cmpi("slt", &r, &zero, ty);
        if f == MapFn::Rem {
            let more = self.bin("addi", &r, &d, ty);
            return self.select(&below, &more, &r, ty);
        }
        let (q, minus) = (self.bin("divsi", x, &d, ty), self.int(-1, ty));
        let less = self.bin("addi", &q, &minus, ty);
        self.select(&below, &less, &q, ty)
    }
}
