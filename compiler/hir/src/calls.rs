//! Calls of functions and blocks: arguments bound to parameters, instance names, the body's value against the result's type.

use crate::{
    elaborate::{Elaborator, Stop},
    error::HirError,
    modules::Definition,
    value::Val,
};
use base::Span;
use std::rc::Rc;
use syntax::ast;

/// Calls of a program and its checks. Functions do not call themselves, but chains of calls can double at each link.
const MAX_CALLS: usize = 100_000;

/// A written call.
pub(crate) struct Callee<'c> {
    pub name: &'c ast::Ident,
    pub args: &'c [ast::Arg],
    pub label: Option<&'c ast::Path>,
    pub at: Span,
}

impl Elaborator<'_> {
    /// The value of a function's body for these arguments, in the call frame already entered.
    pub fn body_of(&mut self, def: &Definition, args: Vec<(String, Val)>, at: Span) -> Result<Val, Stop> {
        args.into_iter().for_each(|(n, v)| self.define(&n, v));
        let before = self.diags.len();
        let value = self.body(&def.func.body);
        if self.diags.len() > before {
            return Err(Stop);
        }
        let value = value?;
        let at = def.func.body.value.as_ref().map_or(at, |v| v.span);
        self.fit(&format!("the result of {}", def.func.name.node), &def.func.result, value, at)
    }

    pub fn call_function(&mut self, def: &Definition, call: &Callee) -> Result<Val, Stop> {
        let (func, name, at) = (&def.func, call.name, call.at);
        if def.is_broken {
            call.args.iter().for_each(|a| drop(self.expr(&a.value)));
            return Err(Stop);
        }
        self.modules.num_calls.set(self.modules.num_calls.get() + 1);
        if self.modules.num_calls.get() == MAX_CALLS {
            let what = format!("the program makes {MAX_CALLS} calls");
            return self.fail(at, HirError::Program { what, help: "use `repeat` for layers that are alike", at: at.into() });
        }
        // Told above.
        if self.modules.num_calls.get() > MAX_CALLS {
            return Err(Stop);
        }
        if self.calls.iter().any(|c| c.func.as_ref().is_some_and(|f| Rc::ptr_eq(f, func))) {
            let help = Some("use `repeat` for layers that are alike".into());
            let why = "calls itself".into();
            return self.fail(at, HirError::Arguments { func: name.node.clone(), why, help, at: at.into() });
        }
        let is_block = func.kind != ast::FuncKind::Fn;
        if is_block && self.calls.last().is_some_and(|c| c.kind == ast::FuncKind::Fn) {
            let help = "make the caller a block: only blocks have parameters";
            return self.fail(at, HirError::Place { what: "a block's call in a fn".into(), help, at: at.into() });
        }
        if !is_block && let Some(label) = call.label {
            return self.stray_label(label);
        }
        let given = self.arguments(func, call)?;
        let depth = self.path.len();
        if is_block {
            match call.label {
                Some(label) => self.push_label(label)?,
                // The model itself adds nothing: its parameters have the names the model file gives them.
                None if func.kind == ast::FuncKind::Model => {}
                None => self.path.push(name.node.clone()),
            }
        }
        let line = self.begin_outline();
        self.enter_file(def);
        let outcome = self.bind_and_run(def, given, call);
        let args = self.signature(func);
        self.pop_call();
        self.path.truncate(depth);
        let value = outcome?;
        let text = format!("{}{args} -> {}", name.node, self.describe(&value));
        self.end_outline(line, text);
        Ok(value)
    }

    /// Adds an instance name to the path; `_` adds nothing.
    pub fn push_label(&mut self, label: &ast::Path) -> Result<(), Stop> {
        if let Some(star) = label.parts.iter().find(|p| p.node == "*") {
            let help = "a `*` stands for an axis of a parameter: write it in the parameter's name";
            return self.fail(star.span, HirError::Place { what: "a `*`".into(), help, at: star.span.into() });
        }
        if !(label.parts.len() == 1 && label.parts[0].node == "_") {
            self.path.extend(label.parts.iter().map(|p| p.node.clone()));
        }
        Ok(())
    }

    /// A fn and a built-in have no parameters that a name could tell apart.
    pub fn stray_label<T>(&mut self, label: &ast::Path) -> Result<T, Stop> {
        let help = "leave it out: only calls of blocks are instances";
        self.fail(label.span, HirError::Place { what: "an instance name".into(), help, at: label.span.into() })
    }

    /// The written arguments by parameter; all of them are looked at.
    fn arguments(&mut self, func: &ast::Func, call: &Callee) -> Result<Vec<Option<(Val, Span)>>, Stop> {
        let mut given: Vec<Option<(Val, Span)>> = vec![None; func.params.len()];
        let mut stopped = false;
        for (i, arg) in call.args.iter().enumerate() {
            let slot = match &arg.name {
                Some(n) => func.params.iter().position(|p| p.name.node == n.node),
                None => Some(i).filter(|i| *i < given.len()),
            };
            let why = match slot {
                Some(s) if given[s].is_some() => format!("gets '{}' twice", func.params[s].name.node),
                Some(s) => {
                    match self.expr(&arg.value) {
                        Ok(v) => given[s] = Some((v, arg.value.span)),
                        Err(Stop) => {
                            given[s] = Some((Val::Error, arg.value.span));
                            stopped = true;
                        }
                    }
                    continue;
                }
                None => match &arg.name {
                    Some(n) => format!("has no parameter '{}'", n.node),
                    None => format!("takes {} arguments", func.params.len()),
                },
            };
            let params = func.params.iter().map(|p| p.name.node.as_str()).collect::<Vec<_>>().join(", ");
            let at = arg.value.span;
            let help = Some(format!("it takes ({params})"));
            return self.fail(at, HirError::Arguments { func: call.name.node.clone(), why, help, at: at.into() });
        }
        if stopped { Err(Stop) } else { Ok(given) }
    }

    fn bind_and_run(&mut self, def: &Definition, given: Vec<Option<(Val, Span)>>, call: &Callee) -> Result<Val, Stop> {
        let (name, at) = (call.name, call.at);
        let mut args = Vec::new();
        for (p, given) in def.func.params.iter().zip(given) {
            let (value, span) = match (given, &p.default) {
                (Some(g), _) => g,
                (None, Some(d)) => (self.expr(d)?, at),
                (None, None) => {
                    let why = format!("misses '{}'", p.name.node);
                    return self.fail(at, HirError::Arguments { func: name.node.clone(), why, help: None, at: at.into() });
                }
            };
            let value = self.bind_param(&format!("'{}' of {}", p.name.node, name.node), &p.ty, value, span)?;
            self.define(&p.name.node, value.clone());
            args.push((p.name.node.clone(), value));
        }
        self.body_of(def, args, at)
    }

    /// `(x: f32[B, T, 8], eps: 0.001)`: the arguments of the call just run, while its frame is there.
    pub fn signature(&self, func: &ast::Func) -> String {
        if self.opaque {
            return String::new();
        }
        let arg = |p: &ast::Param| match self.lookup(&p.name.node) {
            Some(v) => format!("{}: {}", p.name.node, self.describe(&v)),
            None => p.name.node.clone(),
        };
        format!("({})", func.params.iter().map(arg).collect::<Vec<_>>().join(", "))
    }
}
