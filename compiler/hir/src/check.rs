//! Checks functions at their definition, with generic names opaque: extents are unknown dims, leading axes two of them, floats NaN.
//! Where elaboration would need a value (an `if`, the length of a list, whether one unknown divides another), the check of that
//! function ends; its uses check it.

use crate::{
    elaborate::{Elaborator, Stop},
    modules::{Definition, Modules},
    value::{DomainVal, Val},
};
use base::{DType, Diags, Dim, TensorType};
use graph::{Role, op::Domain};
use syntax::ast;

/// Checks every function and block of the program's own files.
pub fn definitions(modules: &Modules, diags: &mut Diags) {
    for (file, _) in modules.scopes.iter().filter(|(f, _)| !modules.library.contains(f)) {
        definitions_of(modules, *file, diags);
    }
}

/// Checks every function and block of a file.
pub(crate) fn definitions_of(modules: &Modules, file: base::FileId, diags: &mut Diags) {
    let scope = &modules.scopes[&file];
    let own = scope.funcs.values().filter(|d| d.file == file && d.func.kind != ast::FuncKind::Model && !d.is_broken);
    let own = own.filter(|_| !scope.has_gaps);
    for def in own {
        let mut e = Elaborator::new(modules, diags);
        e.opaque = true;
        e.enter_file(def);
        if let Ok(args) = opaque_args(&mut e, def) {
            // What it found is in `diags`; where it ended does not matter.
            let _ = e.body_of(def, args, def.func.name.span);
        }
    }
}

fn opaque_args(e: &mut Elaborator, def: &Definition) -> Result<Vec<(String, Val)>, Stop> {
    let mut args = Vec::new();
    for p in &def.func.params {
        let value = match &p.ty.kind {
            ast::TypeKind::Name(n) => match n.as_str() {
                "int" => Val::Int(Dim::sym(&p.name.node)),
                "float" => Val::Float(f64::NAN),
                "domain" => Val::Domain(DomainVal { domain: Domain::Full, operands: Vec::new() }),
                // A bool or string decides what the body is.
                _ => match &p.default {
                    Some(d) => {
                        let v = e.expr(d)?;
                        e.bind_param(&format!("'{}'", p.name.node), &p.ty, v, d.span)?
                    }
                    None => return Err(Stop),
                },
            },
            ast::TypeKind::Tensor { dtype, axes } => {
                let ty = opaque_type(e, *dtype, axes)?;
                let t = e.frames.entry_arg(&p.name.node, Role::Input, &ty);
                e.written.insert(t, p.ty.span);
                Val::Tensor(t)
            }
            ast::TypeKind::Rows(_) | ast::TypeKind::Tuple(_) => return Err(Stop),
        };
        e.define(&p.name.node, value.clone());
        args.push((p.name.node.clone(), value));
    }
    Ok(args)
}

fn opaque_type(e: &mut Elaborator, dtype: Option<DType>, axes: &[ast::Axis]) -> Result<TensorType, Stop> {
    let mut shape = Vec::new();
    for axis in axes {
        match axis {
            ast::Axis::Extent(x) => {
                if let ast::ExprKind::Name(name) = &x.kind
                    && e.lookup(name).is_none()
                {
                    e.define(name, Val::Int(Dim::sym(name)));
                }
                shape.push(e.extent(x)?);
            }
            ast::Axis::Rest(name) => {
                let dims = e.rest(&name.node).unwrap_or_else(|| {
                    let dims: Vec<Dim> = (0..2).map(|i| Dim::sym(&format!("{}.{i}", name.node))).collect();
                    e.bind_rest(&name.node, dims.clone());
                    dims
                });
                shape.extend(dims);
            }
            ast::Axis::Rows(_) => return Err(Stop),
        }
    }
    Ok(TensorType::new(dtype.unwrap_or(e.modules.compute), shape))
}
