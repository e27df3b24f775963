//! Derivatives of the elementwise functions.

use super::Site;
use crate::{build::Builder, ir::Value, op::MapFn};

/// Whether the derivative by operand `i` is not zero everywhere.
pub(super) fn flows(f: MapFn, i: usize) -> bool {
    match f {
        MapFn::Add
        | MapFn::Sub
        | MapFn::Mul
        | MapFn::Div
        | MapFn::Min
        | MapFn::Max
        | MapFn::Pow
        | MapFn::Neg
        | MapFn::Abs
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
        | MapFn::Erf => true,
        MapFn::Select => i > 0,
        MapFn::FloorDiv
        | MapFn::Rem
        | MapFn::Sign
        | MapFn::Floor
        | MapFn::Eq
        | MapFn::Ne
        | MapFn::Lt
        | MapFn::Le
        | MapFn::And
        | MapFn::Or
        | MapFn::Not
        | MapFn::IsFinite => false,
    }
}

/// dy · ∂f/∂xᵢ. Of `min` and `max` the first operand gets all of dy where it is the strict extremum, the second elsewhere, so
/// that the derivative of `max(x, 0)` at 0 is 0.
pub(super) fn term(b: &mut Builder, s: &Site, f: MapFn, i: usize) -> Option<Value> {
    let (dy, y, x) = (s.dy(), s.y(), &s.node.inputs);
    let mut m = |f, operands: &[Value]| b.map(f, operands);
    Some(match f {
        MapFn::Add => dy,
        MapFn::Sub if i == 0 => dy,
        MapFn::Sub => m(MapFn::Neg, &[dy]),
        MapFn::Mul => m(MapFn::Mul, &[dy, x[1 - i]]),
        MapFn::Div if i == 0 => m(MapFn::Div, &[dy, x[1]]),
        MapFn::Div => {
            let part = m(MapFn::Mul, &[dy, y]);
            let part = m(MapFn::Div, &[part, x[1]]);
            m(MapFn::Neg, &[part])
        }
        MapFn::Min | MapFn::Max => {
            let first = if f == MapFn::Min { m(MapFn::Lt, &[x[0], x[1]]) } else { m(MapFn::Lt, &[x[1], x[0]]) };
            let zero = b.full_like(dy, 0.0);
            b.map(MapFn::Select, &if i == 0 { [first, dy, zero] } else { [first, zero, dy] })
        }
        // 0 for the exponent 0, also at x = 0; the derivative by the exponent is 0 at x = 0.
        MapFn::Pow => {
            let zero = b.full_like(dy, 0.0);
            let slope = if i == 0 {
                let one = b.full_like(dy, 1.0);
                let less = b.map(MapFn::Sub, &[x[1], one]);
                let power = b.map(MapFn::Pow, &[x[0], less]);
                b.mul(x[1], power)
            } else {
                let log = b.map(MapFn::Log, &[x[0]]);
                b.mul(y, log)
            };
            let none = b.map(MapFn::Eq, &[x[1 - i], zero]);
            let product = b.mul(dy, slope);
            b.map(MapFn::Select, &[none, zero, product])
        }
        MapFn::Neg => m(MapFn::Neg, &[dy]),
        MapFn::Abs => {
            let sign = m(MapFn::Sign, &[x[0]]);
            m(MapFn::Mul, &[dy, sign])
        }
        MapFn::Exp => m(MapFn::Mul, &[dy, y]),
        MapFn::Log => m(MapFn::Div, &[dy, x[0]]),
        MapFn::Sqrt => {
            let twice = m(MapFn::Add, &[y, y]);
            m(MapFn::Div, &[dy, twice])
        }
        MapFn::Rsqrt => {
            let square = b.mul(y, y);
            let cube = b.mul(square, y);
            let half = b.full_like(y, -0.5);
            let slope = b.mul(half, cube);
            b.mul(dy, slope)
        }
        MapFn::Sin => {
            let cos = m(MapFn::Cos, &[x[0]]);
            m(MapFn::Mul, &[dy, cos])
        }
        MapFn::Cos => {
            let sin = m(MapFn::Sin, &[x[0]]);
            let part = m(MapFn::Mul, &[dy, sin]);
            m(MapFn::Neg, &[part])
        }
        MapFn::Tanh => {
            let square = b.mul(y, y);
            let slope = less_from_one(b, square);
            b.mul(dy, slope)
        }
        MapFn::Sigmoid => {
            let rest = less_from_one(b, y);
            let slope = b.mul(y, rest);
            b.mul(dy, slope)
        }
        MapFn::Silu => {
            let slope = silu_slope(b, x[0]);
            b.mul(dy, slope)
        }
        MapFn::Swiglu if i == 0 => {
            let slope = silu_slope(b, x[0]);
            let up = b.mul(dy, x[1]);
            b.mul(up, slope)
        }
        MapFn::Swiglu => {
            let gate = m(MapFn::Silu, &[x[0]]);
            m(MapFn::Mul, &[dy, gate])
        }
        MapFn::Softplus => {
            let slope = m(MapFn::Sigmoid, &[x[0]]);
            m(MapFn::Mul, &[dy, slope])
        }
        MapFn::Erf => {
            let square = b.mul(x[0], x[0]);
            let negated = b.map(MapFn::Neg, &[square]);
            let bell = b.map(MapFn::Exp, &[negated]);
            let factor = b.full_like(bell, std::f64::consts::FRAC_2_SQRT_PI);
            let slope = b.mul(factor, bell);
            b.mul(dy, slope)
        }
        MapFn::Select => {
            let zero = b.full_like(dy, 0.0);
            b.map(MapFn::Select, &if i == 1 { [x[0], dy, zero] } else { [x[0], zero, dy] })
        }
        MapFn::FloorDiv
        | MapFn::Rem
        | MapFn::Sign
        | MapFn::Floor
        | MapFn::Eq
        | MapFn::Ne
        | MapFn::Lt
        | MapFn::Le
        | MapFn::And
        | MapFn::Or
        | MapFn::Not
        | MapFn::IsFinite => return None,
    })
}

/// 1 − x.
fn less_from_one(b: &mut Builder, x: Value) -> Value {
    let one = b.full_like(x, 1.0);
    b.map(MapFn::Sub, &[one, x])
}

/// σ(x)·(1 + x·(1 − σ(x))).
fn silu_slope(b: &mut Builder, x: Value) -> Value {
    let sigmoid = b.map(MapFn::Sigmoid, &[x]);
    let rest = less_from_one(b, sigmoid);
    let part = b.mul(x, rest);
    let one = b.full_like(x, 1.0);
    let sum = b.add(one, part);
    b.mul(sigmoid, sum)
}
