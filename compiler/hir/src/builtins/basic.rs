//! Elementwise functions, reductions, constants.

use super::Args;
use crate::{
    elaborate::{Elaborator, Stop},
    error::HirError,
    value::{TensorVal, Val},
};
use base::{DType, Dim};
use graph::{
    Op,
    ir::Init,
    op::{MapFn, ReduceFn, Scalar},
};

pub(super) fn call(e: &mut Elaborator, a: &mut Args) -> Option<Result<Val, Stop>> {
    let func = a.func;
    let is_reduction = ReduceFn::from_name(func).is_some();
    // `min(a, b)` and `max(a, b)` are elementwise, `min(x)` and `max(x)` reduce.
    if let ("min" | "max", 2) = (func, a.positional.len()) {
        return Some(pair(e, a, if func == "min" { MapFn::Min } else { MapFn::Max }));
    }
    Some(match func {
        "exp" | "log" | "rsqrt" | "sin" | "cos" | "tanh" | "sigmoid" | "silu" | "softplus" | "erf" | "abs" | "sign" | "floor"
        | "is_finite" | "sqrt" => unary(e, a, MapFn::from_name(func).expect("a row of the map table")),
        "relu" => a.tensor(e, "x").and_then(|x| {
            let zero = scalar_like(e, x, 0.0);
            e.node1(func, Op::Map(MapFn::Max), &[x, zero], a.at).map(Val::Tensor)
        }),
        "gelu" => a.tensor(e, "x").and_then(|x| gelu(e, x, a.at).map(Val::Tensor)),
        "pow" => pair(e, a, MapFn::Pow),
        "ceil_div" => a.extent(e, "a").and_then(|n| {
            let d = a.extent(e, "b")?;
            if d.known().is_some_and(|d| d < 1) { a.wrong(e, format!("divides by {d}")) } else { Ok(Val::Int(n.ceil_div(&d))) }
        }),
        "where" => select(e, a),
        "cast" => a.tensor(e, "x").and_then(|x| {
            // A dtype's name, or a tensor whose dtype is meant.
            let dtype = match a.optional("dtype") {
                Some((Val::DType(d), _)) => d,
                Some((Val::Tensor(like), _)) => e.frames.ty(like).dtype,
                _ => return a.wrong(e, "needs a dtype, such as f32, or a tensor that has it".into()),
            };
            if e.frames.ty(x).dtype == dtype {
                Ok(Val::Tensor(x))
            } else {
                e.node1(func, Op::Cast(dtype), &[x], a.at).map(Val::Tensor)
            }
        }),
        "mean" => reduce(e, a, ReduceFn::Sum, true),
        _ if is_reduction => reduce(e, a, ReduceFn::from_name(func).expect("checked"), false),
        "iota" => a.extent(e, "n").and_then(|n| e.node1(func, Op::Iota(n), &[], a.at).map(Val::Tensor)),
        "zeros" => filled(e, a, Some(0.0)),
        "ones" => filled(e, a, Some(1.0)),
        "full" if !a.positional.is_empty() => filled(e, a, None),
        "one_hot" => one_hot(e, a),
        "stop_gradient" => a.tensor(e, "x").and_then(|x| e.node1(func, Op::StopGradient, &[x], a.at).map(Val::Tensor)),
        "normal" => a.float(e, "std").map(|x| Val::Init(Init::Normal(x))),
        "uniform" => a.float(e, "a").map(|x| Val::Init(Init::Uniform(x))),
        "constant" => a.float(e, "c").map(|x| Val::Init(Init::Constant(x))),
        "len" => match a.value(e, "list") {
            Ok((Val::List(items), _)) => Ok(Val::Int(Dim::from(items.len() as i64))),
            Ok((v, at)) => e.wrong(func, &v, at),
            Err(stop) => Err(stop),
        },
        "shape" => a.tensor(e, "x").and_then(|x| {
            let rank = e.frames.ty(x).rank();
            let axis = a.int(e, "axis")?;
            let axis = a.resolve_axis(e, axis, rank)?;
            Ok(Val::Int(e.frames.ty(x).shape[axis].clone()))
        }),
        // A definition's check does not know whether this is reached.
        "error" if e.opaque => Err(Stop),
        "error" => a.text(e, "message").and_then(|(why, _)| e.fail(a.at, HirError::User { why, at: a.at.into() })),
        _ => return None,
    })
}

/// A constant of the type of `x`.
pub(super) fn scalar_like(e: &mut Elaborator, x: TensorVal, value: f64) -> TensorVal {
    let ty = e.frames.ty(x).clone();
    let c = e.frames.constant(value, ty.dtype);
    e.broadcast(c, &ty.shape)
}

fn unary(e: &mut Elaborator, a: &mut Args, f: MapFn) -> Result<Val, Stop> {
    match a.value(e, "x")? {
        (Val::Float(x), _) => Ok(Val::Float(f.eval(&[x]))),
        (Val::Int(d), at) => match d.known() {
            Some(n) => Ok(Val::Float(f.eval(&[n as f64]))),
            None if e.opaque => Ok(Val::Float(f64::NAN)),
            None => e.not_constant(format!("the argument of {}", f.name()), at),
        },
        (v, at) => {
            let x = e.as_tensor(v, at)?;
            e.node1(f.name(), Op::Map(f), &[x], a.at).map(Val::Tensor)
        }
    }
}

fn pair(e: &mut Elaborator, a: &mut Args, f: MapFn) -> Result<Val, Stop> {
    let (x, y) = (a.value(e, "a")?, a.value(e, "b")?);
    match (&x.0, &y.0) {
        (Val::Int(p), Val::Int(q)) if f == MapFn::Min => Ok(Val::Int(p.minimum(q))),
        (Val::Int(p), Val::Int(q)) if f == MapFn::Max => Ok(Val::Int(p.maximum(q))),
        (Val::Float(p), Val::Float(q)) => Ok(Val::Float(f.eval(&[*p, *q]))),
        _ => {
            let (p, q) = e.unify(x, y)?;
            e.node1(f.name(), Op::Map(f), &[p, q], a.at).map(Val::Tensor)
        }
    }
}

/// x/2·(1 + erf(x/√2)).
fn gelu(e: &mut Elaborator, x: TensorVal, at: base::Span) -> Result<TensorVal, Stop> {
    let half = scalar_like(e, x, 0.5);
    let one = scalar_like(e, x, 1.0);
    let scale = scalar_like(e, x, std::f64::consts::FRAC_1_SQRT_2);
    let y = e.node1("gelu", Op::Map(MapFn::Mul), &[x, scale], at)?;
    let y = e.node1("gelu", Op::Map(MapFn::Erf), &[y], at)?;
    let y = e.node1("gelu", Op::Map(MapFn::Add), &[y, one], at)?;
    let x = e.node1("gelu", Op::Map(MapFn::Mul), &[x, half], at)?;
    e.node1("gelu", Op::Map(MapFn::Mul), &[x, y], at)
}

fn select(e: &mut Elaborator, a: &mut Args) -> Result<Val, Stop> {
    let c = a.tensor(e, "c")?;
    let (x, y) = (a.value(e, "a")?, a.value(e, "b")?);
    let spans = (x.1, y.1);
    let (x, y) = e.unify(x, y)?;
    let shape = Elaborator::common_shape(&e.frames.ty(c).shape, &e.frames.ty(x).shape);
    let Some(shape) = shape else {
        if e.undecided(e.frames.ty(c).shape.iter().chain(&e.frames.ty(x).shape)) {
            return Err(Stop);
        }
        let (left_type, right_type) = (e.frames.ty(c).to_string(), e.frames.ty(x).to_string());
        let (left, right) = (a.at.into(), spans.0.into());
        return e.fail(a.at, HirError::Broadcast { left_type, right_type, origin: String::new(), left, right });
    };
    let (c, x, y) = (e.broadcast(c, &shape), e.broadcast(x, &shape), e.broadcast(y, &shape));
    e.node1("where", Op::Map(MapFn::Select), &[c, x, y], a.at).map(Val::Tensor)
}

fn reduce(e: &mut Elaborator, a: &mut Args, f: ReduceFn, mean: bool) -> Result<Val, Stop> {
    let x = a.tensor(e, "x")?;
    let ty = e.frames.ty(x).clone();
    let mut axes = Vec::new();
    match a.option("axis") {
        // Without an axis, all of a tensor: the language's default is the last; a scalar has none.
        None => axes.extend((0..ty.rank()).last()),
        Some((Val::List(items), _)) => {
            for v in items {
                match v {
                    Val::Int(d) if d.known().is_some() => axes.push(a.resolve_axis(e, d.known().unwrap_or(0), ty.rank())?),
                    _ => return a.wrong(e, "needs ints in 'axis'".into()),
                }
            }
        }
        Some((Val::Int(d), _)) if d.known().is_some() => axes.push(a.resolve_axis(e, d.known().unwrap_or(0), ty.rank())?),
        Some((Val::Str(s), _)) if s == "all" => axes.extend(0..ty.rank()),
        Some(_) => return a.wrong(e, "needs an int, a list of ints or \"all\" for 'axis'".into()),
    }
    axes.sort_unstable();
    axes.dedup();
    let keep = a.flag(e, "keep", false)?;
    let mut y = e.node1(a.func, Op::Reduce(f, axes.clone()), &[x], a.at)?;
    if mean {
        let n = axes.iter().fold(Dim::from(1), |n, i| n * ty.shape[*i].clone());
        let n = match n.known() {
            Some(n) => e.frames.constant(n as f64, ty.dtype),
            None => e.frames.op(Op::Extent(n, ty.dtype), &[]),
        };
        let shape = e.frames.ty(y).shape.clone();
        let n = e.broadcast(n, &shape);
        y = e.node1(a.func, Op::Map(MapFn::Div), &[y, n], a.at)?;
    }
    if keep {
        let shape = ty.shape.iter().enumerate().map(|(i, d)| if axes.contains(&i) { Dim::from(1) } else { d.clone() }).collect();
        y = e.node1(a.func, Op::Reshape(shape), &[y], a.at)?;
    }
    Ok(Val::Tensor(y))
}

fn filled(e: &mut Elaborator, a: &mut Args, value: Option<f64>) -> Result<Val, Stop> {
    let shape = a.extents(e, "shape")?;
    let value = value.map_or_else(|| a.float(e, "value"), Ok)?;
    let default = e.modules.compute;
    let dtype = a.dtype(e, Some(default))?;
    let c = e.node1(a.func, Op::Const(Scalar::new(value), dtype), &[], a.at)?;
    Ok(Val::Tensor(e.broadcast(c, &shape)))
}

/// `[..] -> [.., n]`: 1 where the index is, else 0, in the compute dtype.
fn one_hot(e: &mut Elaborator, a: &mut Args) -> Result<Val, Stop> {
    let idx = a.tensor(e, "idx")?;
    let n = a.extent(e, "n")?;
    let mut shape = e.frames.ty(idx).shape.clone();
    let rank = shape.len();
    shape.push(n.clone());
    let numbers = e.node1(a.func, Op::Iota(n), &[], a.at)?;
    let numbers = e.broadcast(numbers, &shape);
    let idx = e.node1(a.func, Op::Broadcast { shape, axes: (0..rank).collect() }, &[idx], a.at)?;
    let same = e.node1(a.func, Op::Map(MapFn::Eq), &[idx, numbers], a.at)?;
    let dtype: DType = e.modules.compute;
    e.node1(a.func, Op::Cast(dtype), &[same], a.at).map(Val::Tensor)
}
