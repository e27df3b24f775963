//! Elementwise functions: one row each. The derivative is in `autodiff/map.rs`.

use super::{OpError, op_error};
use base::{DType, TensorType};

/// What operand dtypes a function takes and what it gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Floats to the same float.
    Float,
    /// Numbers (float or int) to the same dtype.
    Number,
    /// Integers to the same integer.
    Int,
    /// Two numbers of one dtype (or two bools) to bool.
    Compare,
    /// Bools to bool.
    Logic,
    /// A float to bool.
    Test,
    /// `select(bool, x, x)`.
    Select,
}

/// Declares [`MapFn`]: variant, name in the text form and the language, arity, kind, f64 meaning.
macro_rules! map_fns {
    ($($(#[$doc:meta])* $variant:ident $name:literal $arity:literal $kind:ident |$x:ident| $eval:expr;)*) => {
        /// An elementwise function.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum MapFn { $($(#[$doc])* $variant,)* }

        impl MapFn {
            /// Every function, in the order of the table.
            pub const ALL: &[MapFn] = &[$(MapFn::$variant,)*];
            /// Its name in the text form.
            pub fn name(self) -> &'static str { match self { $(MapFn::$variant => $name,)* } }
            /// The number of operands.
            pub fn arity(self) -> usize { match self { $(MapFn::$variant => $arity,)* } }
            /// The dtypes it takes and gives.
            pub fn kind(self) -> Kind { match self { $(MapFn::$variant => Kind::$kind,)* } }
            /// Its meaning: f64 in, f64 out; integers are exact up to 2^53, bools are 0 and 1.
            pub fn eval(self, operands: &[f64]) -> f64 {
                match self { $(MapFn::$variant => { let $x = operands; $eval })* }
            }
        }
    };
}

map_fns! {
    /// x + y.
    Add "add" 2 Number |x| x[0] + x[1];
    /// x − y.
    Sub "sub" 2 Number |x| x[0] - x[1];
    /// x · y.
    Mul "mul" 2 Number |x| x[0] * x[1];
    /// x / y for floats.
    Div "div" 2 Float |x| x[0] / x[1];
    /// ⌊x / y⌋ for integers; 0 if y is 0.
    FloorDiv "floor_div" 2 Int |x| if x[1] == 0.0 { 0.0 } else { (x[0] / x[1]).floor() };
    /// x − y·⌊x / y⌋ for integers; 0 if y is 0.
    Rem "rem" 2 Int |x| if x[1] == 0.0 { 0.0 } else { x[0] - x[1] * (x[0] / x[1]).floor() };
    /// The smaller; NaN if either is.
    Min "min" 2 Number |x| if x[0].is_nan() || x[1].is_nan() { f64::NAN } else { x[0].min(x[1]) };
    /// The larger; NaN if either is.
    Max "max" 2 Number |x| if x[0].is_nan() || x[1].is_nan() { f64::NAN } else { x[0].max(x[1]) };
    /// x to the power y.
    Pow "pow" 2 Float |x| x[0].powf(x[1]);
    /// −x.
    Neg "neg" 1 Number |x| -x[0];
    /// |x|.
    Abs "abs" 1 Number |x| x[0].abs();
    /// −1, 0 or 1.
    Sign "sign" 1 Number |x| if x[0] > 0.0 { 1.0 } else if x[0] < 0.0 { -1.0 } else { x[0] };
    /// ⌊x⌋.
    Floor "floor" 1 Float |x| x[0].floor();
    /// e to the x.
    Exp "exp" 1 Float |x| x[0].exp();
    /// The natural logarithm.
    Log "log" 1 Float |x| x[0].ln();
    /// √x.
    Sqrt "sqrt" 1 Float |x| x[0].sqrt();
    /// 1/√x.
    Rsqrt "rsqrt" 1 Float |x| 1.0 / x[0].sqrt();
    /// The sine. # Units: radians.
    Sin "sin" 1 Float |x| x[0].sin();
    /// The cosine. # Units: radians.
    Cos "cos" 1 Float |x| x[0].cos();
    /// The hyperbolic tangent.
    Tanh "tanh" 1 Float |x| x[0].tanh();
    /// 1/(1 + e^−x).
    Sigmoid "sigmoid" 1 Float |x| 1.0 / (1.0 + (-x[0]).exp());
    /// x·sigmoid(x).
    Silu "silu" 1 Float |x| x[0] / (1.0 + (-x[0]).exp());
    /// silu(x)·y, the gate of SwiGLU.
    Swiglu "swiglu" 2 Float |x| x[0] / (1.0 + (-x[0]).exp()) * x[1];
    /// log(1 + e^x), without overflow.
    Softplus "softplus" 1 Float |x| x[0].max(0.0) + (-x[0].abs()).exp().ln_1p();
    /// The error function.
    Erf "erf" 1 Float |x| erf(x[0]);
    /// Whether x == y.
    Eq "eq" 2 Compare |x| truth(x[0] == x[1]);
    /// Whether x != y.
    Ne "ne" 2 Compare |x| truth(x[0] != x[1]);
    /// Whether x < y.
    Lt "lt" 2 Compare |x| truth(x[0] < x[1]);
    /// Whether x ≤ y.
    Le "le" 2 Compare |x| truth(x[0] <= x[1]);
    /// Both.
    And "and" 2 Logic |x| truth(x[0] != 0.0 && x[1] != 0.0);
    /// Either.
    Or "or" 2 Logic |x| truth(x[0] != 0.0 || x[1] != 0.0);
    /// Not.
    Not "not" 1 Logic |x| truth(x[0] == 0.0);
    /// Neither infinite nor NaN.
    IsFinite "is_finite" 1 Test |x| truth(x[0].is_finite());
    /// c ? x : y.
    Select "select" 3 Select |x| if x[0] != 0.0 { x[1] } else { x[2] };
}

fn truth(b: bool) -> f64 {
    f64::from(u8::from(b))
}

impl MapFn {
    /// The function with this name.
    pub fn from_name(name: &str) -> Option<MapFn> {
        MapFn::ALL.iter().copied().find(|f| f.name() == name)
    }
}

/// The error function to about 1e-15: its Maclaurin series for small |x|, a continued fraction of erfc beyond.
/// # Source: Abramowitz and Stegun, 7.1.5 and 7.1.14.
pub fn erf(x: f64) -> f64 {
    let a = x.abs();
    if a.is_nan() {
        return x;
    }
    let value = if a < 2.5 {
        let (mut term, mut sum, mut n) = (a, a, 0.0);
        while term.abs() > 1e-17 * sum.abs() {
            n += 1.0;
            term *= -a * a / n;
            sum += term / (2.0 * n + 1.0);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    } else if a < 6.0 {
        let fraction = (1..=60).rev().fold(a, |f, k| a + f64::from(k) / 2.0 / f);
        1.0 - (-a * a).exp() / fraction * std::f64::consts::FRAC_2_SQRT_PI / 2.0
    } else {
        1.0
    };
    value.copysign(x)
}

pub(super) fn infer(f: MapFn, operands: &[&TensorType]) -> Result<TensorType, OpError> {
    let first = operands[0];
    if let Some(other) = operands.iter().find(|t| t.shape != first.shape) {
        return op_error!("{} of {first} and {other}", f.name());
    }
    let data = if f.kind() == Kind::Select { &operands[1..] } else { operands };
    if let Some(other) = data.iter().find(|t| t.dtype != data[0].dtype) {
        return op_error!("{} of {} and {other}", f.name(), data[0]);
    }
    let dtype = data[0].dtype;
    let (fits, result) = match f.kind() {
        Kind::Float => (dtype.is_float(), dtype),
        Kind::Number => (dtype != DType::Bool, dtype),
        Kind::Int => (dtype.is_int(), dtype),
        Kind::Compare => (true, DType::Bool),
        Kind::Logic => (dtype == DType::Bool, DType::Bool),
        Kind::Test => (dtype.is_float(), DType::Bool),
        Kind::Select => (first.dtype == DType::Bool, dtype),
    };
    if fits { Ok(first.with_dtype(result)) } else { op_error!("{} does not take {first}", f.name()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_matches_known_values() {
        for (x, want) in [
            (0.0, 0.0),
            (0.5, 0.520_499_877_813_046_5),
            (1.0, 0.842_700_792_949_714_9),
            (2.0, 0.995_322_265_018_952_7),
            (3.0, 0.999_977_909_503_001_4),
            (7.0, 1.0),
        ] {
            assert!((erf(x) - want).abs() < 1e-13, "{x}: {} {want}", erf(x));
            assert_eq!(erf(-x), -erf(x));
        }
    }

    #[test]
    fn names_are_unique() {
        for f in MapFn::ALL {
            assert_eq!(MapFn::from_name(f.name()), Some(*f));
        }
    }
}
