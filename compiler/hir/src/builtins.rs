//! The functions of the language that are not library code: one file a group, a row each. They take evaluated arguments and add
//! nodes; shapes come from the graph's rules.

mod attention;
mod basic;
mod moving;
mod precision;
mod routing;

use crate::{
    elaborate::{Elaborator, Stop},
    error::HirError,
    value::{DomainVal, TensorVal, Val},
};
use base::{DType, Dim, Span};
use graph::op::Domain;
use syntax::ast;

pub(crate) use attention::join_domains;

/// Every name, for "did you mean".
pub const NAMES: &[&str] = &[
    "exp",
    "log",
    "sqrt",
    "rsqrt",
    "sin",
    "cos",
    "tanh",
    "sigmoid",
    "silu",
    "gelu",
    "relu",
    "erf",
    "abs",
    "sign",
    "floor",
    "softplus",
    "min",
    "max",
    "pow",
    "where",
    "cast",
    "is_finite",
    "sum",
    "mean",
    "prod",
    "rearrange",
    "broadcast",
    "concat",
    "pad",
    "split",
    "contract",
    "take",
    "take_along",
    "put_along",
    "take_rows",
    "scatter_add",
    "topk",
    "cumsum",
    "iota",
    "full",
    "zeros",
    "ones",
    "one_hot",
    "attend",
    "attend_lse",
    "causal",
    "window",
    "prefix",
    "ends_before",
    "ends_at",
    "segments",
    "blocks",
    "groups",
    "tokens",
    "route",
    "dispatch",
    "grouped",
    "grouped_t",
    "collect",
    "count",
    "quantize",
    "dequantize",
    "stop_gradient",
    "len",
    "shape",
    "error",
    "ceil_div",
    "normal",
    "uniform",
    "constant",
];

/// The arguments of a call, evaluated.
pub(crate) struct Args<'c> {
    func: &'c str,
    at: Span,
    positional: Vec<(Val, Span)>,
    named: Vec<(String, Val, Span)>,
    next: usize,
}

/// The result of a built-in call; `None` if no built-in has that name.
pub(crate) fn call(e: &mut Elaborator, name: &ast::Ident, args: &[ast::Arg], at: Span) -> Option<Result<Val, Stop>> {
    if !NAMES.contains(&name.node.as_str()) {
        return None;
    }
    let mut a = Args { func: &name.node, at, positional: Vec::new(), named: Vec::new(), next: 0 };
    let mut stopped = false;
    for arg in args {
        match e.expr(&arg.value) {
            Ok(v) => match &arg.name {
                Some(n) => a.named.push((n.node.clone(), v, arg.value.span)),
                None => a.positional.push((v, arg.value.span)),
            },
            Err(Stop) => stopped = true,
        }
    }
    if stopped {
        return Some(Err(Stop));
    }
    let result = basic::call(e, &mut a)
        .or_else(|| moving::call(e, &mut a))
        .or_else(|| attention::call(e, &mut a))
        .or_else(|| routing::call(e, &mut a))
        .or_else(|| precision::call(e, &mut a))?;
    Some(result.and_then(|v| a.finish(e).map(|()| v)))
}

impl Args<'_> {
    fn wrong<T>(&self, e: &mut Elaborator, why: String) -> Result<T, Stop> {
        e.fail(self.at, HirError::Arguments { func: self.func.into(), why, help: None, at: self.at.into() })
    }
    /// The next positional argument.
    fn positional(&mut self) -> Option<(Val, Span)> {
        let v = self.positional.get(self.next).cloned()?;
        self.next += 1;
        Some(v)
    }
    /// The next positional argument, or the one with this name.
    fn optional(&mut self, name: &str) -> Option<(Val, Span)> {
        if let Some(i) = self.named.iter().position(|(n, _, _)| n == name) {
            let (_, v, s) = self.named.remove(i);
            return Some((v, s));
        }
        self.positional()
    }
    /// Only by name.
    fn option(&mut self, name: &str) -> Option<(Val, Span)> {
        let i = self.named.iter().position(|(n, _, _)| n == name)?;
        let (_, v, s) = self.named.remove(i);
        Some((v, s))
    }
    fn value(&mut self, e: &mut Elaborator, name: &str) -> Result<(Val, Span), Stop> {
        match self.optional(name) {
            Some(v) => Ok(v),
            None => self.wrong(e, format!("misses '{name}'")),
        }
    }
    fn tensor(&mut self, e: &mut Elaborator, name: &str) -> Result<TensorVal, Stop> {
        let (v, at) = self.value(e, name)?;
        e.as_tensor(v, at)
    }
    fn extent(&mut self, e: &mut Elaborator, name: &str) -> Result<Dim, Stop> {
        match self.value(e, name)? {
            (Val::Int(d), _) => Ok(d),
            (v, _) => {
                let why = format!("needs an int for '{name}', not {}", e.describe(&v));
                self.wrong(e, why)
            }
        }
    }
    fn int(&mut self, e: &mut Elaborator, name: &str) -> Result<i64, Stop> {
        let d = self.extent(e, name)?;
        match d.known() {
            Some(n) => Ok(n),
            None => e.not_constant(format!("'{name}' of {}", self.func), self.at),
        }
    }
    fn float(&mut self, e: &mut Elaborator, name: &str) -> Result<f64, Stop> {
        match self.value(e, name)? {
            (Val::Float(x), _) => Ok(x),
            (Val::Int(d), at) => match d.known() {
                Some(n) => Ok(n as f64),
                None if e.opaque => Ok(f64::NAN),
                None => e.not_constant(format!("'{name}' of {}", self.func), at),
            },
            (v, _) => {
                let why = format!("needs a float for '{name}', not {}", e.describe(&v));
                self.wrong(e, why)
            }
        }
    }
    fn text(&mut self, e: &mut Elaborator, name: &str) -> Result<(String, Span), Stop> {
        match self.value(e, name)? {
            (Val::Str(s), at) => Ok((s, at)),
            (v, _) => {
                let why = format!("needs a string for '{name}', not {}", e.describe(&v));
                self.wrong(e, why)
            }
        }
    }
    fn flag(&mut self, e: &mut Elaborator, name: &str, default: bool) -> Result<bool, Stop> {
        match self.option(name) {
            None => Ok(default),
            Some((Val::Bool(b), _)) => Ok(b),
            Some((v, _)) => {
                let why = format!("needs a bool for '{name}', not {}", e.describe(&v));
                self.wrong(e, why)
            }
        }
    }
    /// A list of extents.
    fn extents(&mut self, e: &mut Elaborator, name: &str) -> Result<Vec<Dim>, Stop> {
        match self.value(e, name)? {
            (Val::List(items), _) => {
                let dims: Option<Vec<Dim>> =
                    items.into_iter().map(|v| if let Val::Int(d) = v { Some(d) } else { None }).collect();
                match dims {
                    Some(dims) if dims.iter().any(|d| d.known().is_some_and(|n| n < 0)) => {
                        self.wrong(e, format!("gets a negative extent in '{name}'"))
                    }
                    Some(dims) => Ok(dims),
                    None => self.wrong(e, format!("needs a list of ints for '{name}'")),
                }
            }
            _ => self.wrong(e, format!("needs a list of ints for '{name}'")),
        }
    }
    /// An axis, counted from the end if negative.
    fn axis(&mut self, e: &mut Elaborator, rank: usize, default: i64) -> Result<usize, Stop> {
        let axis = match self.option("axis") {
            None => default,
            Some((Val::Int(d), _)) if d.known().is_some() => d.known().unwrap_or(default),
            Some(_) => return self.wrong(e, "needs an int for 'axis'".into()),
        };
        self.resolve_axis(e, axis, rank)
    }
    fn resolve_axis(&self, e: &mut Elaborator, axis: i64, rank: usize) -> Result<usize, Stop> {
        let from_start = if axis < 0 { axis + rank as i64 } else { axis };
        match usize::try_from(from_start) {
            Ok(a) if a < rank => Ok(a),
            _ => self.wrong(e, format!("gets axis {axis} of a tensor of rank {rank}")),
        }
    }
    fn dtype(&mut self, e: &mut Elaborator, default: Option<DType>) -> Result<DType, Stop> {
        match (self.optional("dtype"), default) {
            (Some((Val::DType(d), _)), _) | (None, Some(d)) => Ok(d),
            _ => self.wrong(e, "needs a dtype, such as f32".into()),
        }
    }
    /// Fails if arguments are left over.
    fn finish(&self, e: &mut Elaborator) -> Result<(), Stop> {
        if let Some((name, _, _)) = self.named.first() {
            return self.wrong(e, format!("has no parameter '{name}'"));
        }
        if self.next < self.positional.len() {
            return self.wrong(e, format!("takes {} arguments, not {}", self.next, self.positional.len()));
        }
        Ok(())
    }
}

/// A domain without operands.
fn domain(domain: Domain) -> Val {
    Val::Domain(DomainVal { domain, operands: Vec::new() })
}
