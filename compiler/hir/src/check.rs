//! Checks functions at their definition, with generic names opaque: extents are unknown dims, leading axes two of them. Where
//! elaboration would need a value (an `if`, the length of a list), the check of that function ends; its uses check it.

use crate::{
    elaborate::{Elaborator, Stop},
    modules::{Definition, Modules},
    value::{DomainVal, Val},
};
use base::{Diags, Dim, TensorType};
use graph::{Role, op::Domain};
use syntax::ast;

/// Checks every function and block of the root file.
pub fn definitions(modules: &Modules, diags: &mut Diags) {
    let root = &modules.scopes[&modules.root];
    for def in root.funcs.values().filter(|d| d.file == modules.root && d.func.kind != ast::FuncKind::Model) {
        let mut e = Elaborator::new(modules, diags);
        e.opaque = true;
        e.enter_file(def);
        if let Ok(args) = opaque_args(&mut e, def) {
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
                "float" => Val::Float(1.0),
                "domain" => Val::Domain(DomainVal { domain: Domain::Full, operands: Vec::new() }),
                // A bool or string decides what the body is.
                _ => match &p.default {
                    Some(d) => e.expr(d)?,
                    None => return Err(Stop),
                },
            },
            ast::TypeKind::Tensor { dtype, axes } => {
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
                            if e.rest(&name.node).is_none() {
                                e.bind_rest(
                                    &name.node,
                                    vec![Dim::sym(&format!("{}.0", name.node)), Dim::sym(&format!("{}.1", name.node))],
                                );
                            }
                            shape.extend(e.rest(&name.node).unwrap_or_default());
                        }
                        ast::Axis::Rows(_) => return Err(Stop),
                    }
                }
                let ty = TensorType::new(dtype.unwrap_or(e.modules.compute), shape);
                Val::Tensor(e.frames.entry_arg(&p.name.node, Role::Input, &ty))
            }
            ast::TypeKind::Rows(_) | ast::TypeKind::Tuple(_) => return Err(Stop),
        };
        e.define(&p.name.node, value.clone());
        args.push((p.name.node.clone(), value));
    }
    Ok(args)
}
