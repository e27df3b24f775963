//! Types of parameters and results: their extents evaluated, generic names bound.

use crate::{
    elaborate::{Elaborator, Stop},
    error::HirError,
    value::Val,
};
use base::{DType, Dim, Span, TensorType, ty::ShapeDisplay};
use syntax::ast;

/// A value that is held against a written type.
struct Held<'t> {
    /// What it is, for messages.
    what: &'t str,
    at: Span,
    /// Whether names without meaning get it here, as in a signature.
    binds: bool,
}

impl Elaborator<'_> {
    /// Evaluates a tensor type all of whose names are known.
    pub(crate) fn tensor_type(&mut self, ty: &ast::Type) -> Result<TensorType, Stop> {
        let ast::TypeKind::Tensor { dtype, axes } = &ty.kind else {
            let (what, help) = ("this type".into(), "a tensor type is needed, such as [B, T, d]");
            return self.fail(ty.span, HirError::Place { what, help, at: ty.span.into() });
        };
        let mut shape = Vec::new();
        for axis in axes {
            match axis {
                ast::Axis::Extent(e) => {
                    let d = self.extent(e)?;
                    if d.known().is_some_and(|n| n < 0) {
                        return self.shape_error("type", graph::OpError(format!("an extent of {d}")), e.span);
                    }
                    shape.push(d);
                }
                ast::Axis::Rest(name) => match self.rest(&name.node) {
                    Some(rest) => shape.extend(rest),
                    None => return self.unknown("leading axes", name),
                },
                ast::Axis::Rows(name) => match self.lookup(&name.node) {
                    Some(Val::Rows(r)) => shape.push(r.rows),
                    Some(Val::Error) => return Err(Stop),
                    _ => return self.unknown("routing", name),
                },
            }
        }
        Ok(TensorType::new(dtype.unwrap_or(self.modules.compute), shape))
    }

    /// Checks an argument against a parameter's type, binding generic names of the signature.
    pub(crate) fn bind_param(&mut self, what: &str, ty: &ast::Type, value: Val, at: Span) -> Result<Val, Stop> {
        self.hold(&Held { what, at, binds: true }, ty, value)
    }
    /// Checks a value against a type all of whose names are known.
    pub(crate) fn fit(&mut self, what: &str, ty: &ast::Type, value: Val, at: Span) -> Result<Val, Stop> {
        self.hold(&Held { what, at, binds: false }, ty, value)
    }

    fn mismatch<T>(&mut self, held: &Held, expected: String, found: String, help: Option<String>) -> Result<T, Stop> {
        let (what, at) = (held.what.to_string(), held.at);
        self.fail(at, HirError::Mismatch { what, expected, found, help, at: at.into() })
    }

    fn hold(&mut self, held: &Held, ty: &ast::Type, value: Val) -> Result<Val, Stop> {
        match (&ty.kind, value) {
            (_, Val::Error) => Err(Stop),
            (ast::TypeKind::Name(n), value) => match (n.as_str(), value) {
                ("int", v @ Val::Int(_)) | ("float", v @ Val::Float(_)) | ("bool", v @ Val::Bool(_)) => Ok(v),
                ("string", v @ Val::Str(_)) | ("domain", v @ Val::Domain(_)) => Ok(v),
                ("float", Val::Int(n)) if n.known().is_some() => Ok(Val::Float(n.known().unwrap_or(0) as f64)),
                ("float", Val::Int(_)) if self.opaque => Ok(Val::Float(f64::NAN)),
                ("int" | "float" | "bool" | "string" | "domain", v) => {
                    let found = self.describe(&v);
                    self.mismatch(held, format!("a compile-time {n}"), found, None)
                }
                _ => {
                    let help = Some("types are int float bool string domain rows[E] and tensors [B, T, d]".into());
                    self.fail(ty.span, HirError::Unknown { what: "type", name: n.clone(), help, at: ty.span.into() })
                }
            },
            (ast::TypeKind::Rows(e), Val::Rows(r)) => {
                self.hold_extent(held, e, &Dim::from(r.groups))?;
                Ok(Val::Rows(r))
            }
            (ast::TypeKind::Tensor { dtype, axes }, Val::Tensor(t)) => {
                let found = self.frames.ty(t).clone();
                self.hold_tensor(held, ty, (*dtype, axes), &found)?;
                Ok(Val::Tensor(t))
            }
            // A compile-time number where a tensor is wanted becomes a scalar.
            (ast::TypeKind::Tensor { dtype, axes }, v @ (Val::Int(_) | Val::Float(_))) if axes.is_empty() => {
                let dtype: DType = dtype.unwrap_or(self.modules.compute);
                self.scalar_tensor(&v, dtype, held.at).map(Val::Tensor)
            }
            (ast::TypeKind::Tuple(types), Val::Tuple(parts)) if types.len() == parts.len() => {
                let parts: Result<Vec<Val>, Stop> = types.iter().zip(parts).map(|(t, v)| self.hold(held, t, v)).collect();
                parts.map(Val::Tuple)
            }
            (_, v) => {
                let (expected, found) = (self.source_of(ty.span), self.describe(&v));
                self.mismatch(held, expected, found, None)
            }
        }
    }

    /// A tensor type without a dtype takes any float.
    fn hold_tensor(
        &mut self,
        held: &Held,
        ty: &ast::Type,
        (dtype, axes): (Option<DType>, &[ast::Axis]),
        found: &TensorType,
    ) -> Result<(), Stop> {
        let expected = dtype.unwrap_or(if found.dtype.is_float() { found.dtype } else { self.modules.compute });
        let fixed = axes.iter().filter(|a| !matches!(a, ast::Axis::Rest(_))).count();
        let has_rest = fixed < axes.len();
        if self.any_floats(found.dtype, expected) {
            return Err(Stop);
        }
        if found.dtype != expected || found.rank() < fixed || (found.rank() > fixed && !has_rest) {
            let text = self.source_of(ty.span);
            let help = (found.dtype != expected).then(|| format!("convert it: `cast(x, {expected})`"));
            return self.mismatch(held, text, found.to_string(), help);
        }
        let mut next = 0;
        let mut free = found.rank() - fixed;
        for axis in axes {
            match axis {
                ast::Axis::Rest(name) => {
                    // A second `..` of one type can only be known before.
                    let bound = self.rest(&name.node);
                    let n = bound.as_ref().map_or(free, Vec::len).min(free);
                    free -= n;
                    let dims = found.shape[next..next + n].to_vec();
                    next += n;
                    match bound {
                        Some(bound) if bound != dims && self.undecided(bound.iter().chain(&dims)) => return Err(Stop),
                        Some(bound) if bound != dims => {
                            let expected = format!("{} for ..{}", ShapeDisplay(&bound), name.node);
                            return self.mismatch(held, expected, ShapeDisplay(&dims).to_string(), None);
                        }
                        Some(_) => {}
                        None if held.binds => self.bind_rest(&name.node, dims),
                        None => return self.unknown("leading axes", name),
                    }
                }
                ast::Axis::Extent(e) => {
                    self.hold_extent(held, e, &found.shape[next])?;
                    next += 1;
                }
                ast::Axis::Rows(name) => {
                    let r = match self.lookup(&name.node) {
                        Some(Val::Rows(r)) => r,
                        Some(Val::Error) => return Err(Stop),
                        _ => return self.unknown("routing", name),
                    };
                    if r.rows != found.shape[next] {
                        let expected = format!("{} rows, those of {}", r.rows, name.node);
                        return self.mismatch(held, expected, found.to_string(), None);
                    }
                    next += 1;
                }
            }
        }
        if free > 0 {
            let text = self.source_of(ty.span);
            return self.mismatch(held, text, found.to_string(), None);
        }
        Ok(())
    }

    /// Checks an extent against what was given; in a signature a name without meaning gets it.
    fn hold_extent(&mut self, held: &Held, e: &ast::Expr, found: &Dim) -> Result<(), Stop> {
        if let ast::ExprKind::Name(name) = &e.kind
            && held.binds
            && self.lookup(name).is_none()
        {
            self.define(name, Val::Int(found.clone()));
            return Ok(());
        }
        let expected = self.extent(e)?;
        if expected == *found {
            return Ok(());
        }
        if self.undecided([&expected, found].into_iter()) {
            return Err(Stop);
        }
        let text = self.source_of(e.span);
        let help = self.origin_of(&[&expected, found]);
        let expected = if text == expected.to_string() { text } else { format!("{text} = {expected}") };
        let held = Held { what: &format!("an extent of {}", held.what), at: held.at, binds: held.binds };
        self.mismatch(&held, expected, found.to_string(), help)
    }

    /// Which config values have these extents, for help texts.
    pub(crate) fn origin_of(&self, dims: &[&Dim]) -> Option<String> {
        let mut parts: Vec<String> = Vec::new();
        for d in dims {
            let Some(n) = d.known() else { continue };
            let equal = |(_, c): &&(String, crate::Constant)| *c == crate::Constant::Int(n);
            let names: Vec<&str> = self.scope().config.iter().filter(equal).map(|(name, _)| name.as_str()).collect();
            let text = format!("{n} is {} of the config", names.join(" or "));
            if !names.is_empty() && !parts.contains(&text) {
                parts.push(text);
            }
        }
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}
