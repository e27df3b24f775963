//! Types of parameters and results: their extents evaluated, generic names bound.

use crate::{
    elaborate::{Elaborator, Stop},
    error::HirError,
    value::Val,
};
use base::{DType, Dim, TensorType, ty::ShapeDisplay};
use syntax::ast;

impl Elaborator<'_> {
    /// The dtype of a tensor type without one.
    fn dtype(&self, written: Option<DType>) -> DType {
        written.unwrap_or(self.modules.compute)
    }

    /// Evaluates a tensor type all of whose names are known.
    pub(crate) fn tensor_type(&mut self, ty: &ast::Type) -> Result<TensorType, Stop> {
        let ast::TypeKind::Tensor { dtype, axes } = &ty.kind else {
            return self.fail(
                ty.span,
                HirError::Place { what: "this type", help: "a tensor type is needed, such as [B, T, d]", at: ty.span.into() },
            );
        };
        let mut shape = Vec::new();
        for axis in axes {
            match axis {
                ast::Axis::Extent(e) => shape.push(self.extent(e)?),
                ast::Axis::Rest(name) => match self.rest(&name.node) {
                    Some(rest) => shape.extend(rest),
                    None => return self.unknown("leading axes", name),
                },
                ast::Axis::Rows(name) => match self.lookup(&name.node) {
                    Some(Val::Rows(r)) => shape.push(r.rows),
                    _ => return self.unknown("routing", name),
                },
            }
        }
        Ok(TensorType::new(self.dtype(*dtype), shape))
    }

    /// Checks an argument against a parameter's type, binding generic names of the signature.
    pub(crate) fn bind_param(&mut self, what: &str, ty: &ast::Type, value: Val, at: base::Span) -> Result<Val, Stop> {
        let mismatch = |e: &mut Self, expected: &str, found: String, help: Option<String>| {
            e.fail(at, HirError::Mismatch { what: what.into(), expected: expected.into(), found, help, at: at.into() })
        };
        match (&ty.kind, value) {
            (_, Val::Error) => Ok(Val::Error),
            (ast::TypeKind::Name(n), value) => match (n.as_str(), value) {
                ("int", v @ Val::Int(_)) | ("float", v @ Val::Float(_)) | ("bool", v @ Val::Bool(_)) => Ok(v),
                ("string", v @ Val::Str(_)) | ("domain", v @ Val::Domain(_)) => Ok(v),
                ("float", Val::Int(n)) if n.known().is_some() => Ok(Val::Float(n.known().unwrap_or(0) as f64)),
                ("float", Val::Int(_)) if self.opaque => Ok(Val::Float(1.0)),
                ("int" | "float" | "bool" | "string" | "domain", v) => {
                    let found = self.describe(&v);
                    mismatch(self, &format!("a compile-time {n}"), found, None)
                }
                _ => {
                    let help = Some("types are int float bool string domain rows[E] and tensors [B, T, d]".into());
                    self.fail(ty.span, HirError::Unknown { what: "type", name: n.clone(), help, at: ty.span.into() })
                }
            },
            (ast::TypeKind::Rows(e), Val::Rows(r)) => {
                self.bind_extent(e, &Dim::from(r.groups), what, at)?;
                Ok(Val::Rows(r))
            }
            (ast::TypeKind::Tensor { dtype, axes }, Val::Tensor(t)) => {
                let found = self.frames.ty(t).clone();
                let expected = dtype.unwrap_or(if found.dtype.is_float() { found.dtype } else { self.modules.compute });
                let fixed = axes.iter().filter(|a| !matches!(a, ast::Axis::Rest(_))).count();
                let has_rest = fixed < axes.len();
                if found.dtype != expected || (found.rank() != fixed && !(has_rest && found.rank() >= fixed)) {
                    let text = self.source_of(ty.span);
                    let help = (found.dtype != expected).then(|| format!("convert it: `cast(x, {expected})`"));
                    return mismatch(self, &text, found.to_string(), help);
                }
                let mut next = 0;
                for axis in axes {
                    match axis {
                        ast::Axis::Rest(name) => {
                            let n = found.rank() - fixed;
                            let dims = found.shape[next..next + n].to_vec();
                            next += n;
                            match self.rest(&name.node) {
                                Some(bound) if bound != dims => {
                                    let expected = format!("{} for ..{}", ShapeDisplay(&bound), name.node);
                                    return mismatch(self, &expected, ShapeDisplay(&dims).to_string(), None);
                                }
                                Some(_) => {}
                                None => self.bind_rest(&name.node, dims),
                            }
                        }
                        ast::Axis::Extent(e) => {
                            self.bind_extent(e, &found.shape[next].clone(), what, at)?;
                            next += 1;
                        }
                        ast::Axis::Rows(name) => {
                            let Some(Val::Rows(r)) = self.lookup(&name.node) else { return self.unknown("routing", name) };
                            if r.rows != found.shape[next] {
                                return mismatch(self, &format!("[rows {}, …]", name.node), found.to_string(), None);
                            }
                            next += 1;
                        }
                    }
                }
                Ok(Val::Tensor(t))
            }
            // A compile-time number where a tensor is wanted becomes a scalar.
            (ast::TypeKind::Tensor { dtype, axes }, v @ (Val::Int(_) | Val::Float(_))) if axes.is_empty() => {
                let dtype = self.dtype(*dtype);
                self.scalar_tensor(&v, dtype, at).map(Val::Tensor)
            }
            (_, v) => {
                let (expected, found) = (self.source_of(ty.span), self.describe(&v));
                mismatch(self, &expected, found, None)
            }
        }
    }

    /// Checks an extent of a signature against what was given; a name without meaning gets it.
    fn bind_extent(&mut self, e: &ast::Expr, found: &Dim, what: &str, at: base::Span) -> Result<(), Stop> {
        if let ast::ExprKind::Name(name) = &e.kind
            && self.lookup(name).is_none()
        {
            self.define(name, Val::Int(found.clone()));
            return Ok(());
        }
        let expected = self.extent(e)?;
        if expected == *found {
            return Ok(());
        }
        let text = self.source_of(e.span);
        let help = self.origin_of(&[&expected, found]);
        let expected = if text == expected.to_string() { text } else { format!("{text} = {expected}") };
        let what = format!("an extent of {what}");
        self.fail(at, HirError::Mismatch { what, expected, found: found.to_string(), help, at: at.into() })
    }

    /// Which config values or dims have these extents, for help texts.
    pub(crate) fn origin_of(&self, dims: &[&Dim]) -> Option<String> {
        let mut parts: Vec<String> = Vec::new();
        for d in dims {
            let Some(n) = d.known() else { continue };
            let names: Vec<&str> = self
                .scope()
                .config
                .iter()
                .filter(|(_, c)| *c == crate::Constant::Int(n))
                .map(|(name, _)| name.as_str())
                .collect();
            let text = format!("{n} is {} of the config", names.join(" or "));
            if !names.is_empty() && !parts.contains(&text) {
                parts.push(text);
            }
        }
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}
