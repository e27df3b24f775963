//! What always holds of a graph. Looks, changes nothing, returns all violations: each is a mistake of the stage before.
//!
//! Arguments come first, values are defined before they are used, types are what the shape rules give, bodies of loops are graphs too,
//! names are unique within their role.

use crate::{
    ir::{Func, Module, NodeId, Role, Value},
    op::{self, Op},
};
use base::{TensorType, arena::Id};
use std::{collections::BTreeSet, fmt};

/// Something that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The function, and the loops inside it on the way: `loss`, `loss.%7`.
    pub func: String,
    /// The node, if it is one node's fault.
    pub node: Option<NodeId>,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.node {
            Some(node) => write!(f, "{} {node}: {}", self.func, self.message),
            None => write!(f, "{}: {}", self.func, self.message),
        }
    }
}

/// The violations of a module, in order.
pub fn verify(module: &Module) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut report = |func: &str, message: String| found.push(Violation { func: func.into(), node: None, message });
    for name in repeated(module.funcs.iter().map(|f| f.name.clone())) {
        report(&name, "two functions of this name".into());
    }
    for name in repeated(module.params.iter().map(|p| p.name.clone())) {
        report("params", format!("'{name}' twice"));
    }
    for p in &module.params {
        if !matches!(p.role, Role::Param | Role::State) {
            report("params", format!("'{}' has the role {}", p.name, p.role.name()));
        }
        if p.name.matches('*').count() > p.ty.rank() {
            report("params", format!("'{}' has more '*' than axes in {}", p.name, p.ty));
        }
    }
    for f in &module.funcs {
        let of_func = verify_func(f);
        if of_func.is_empty() {
            for (arg, _, ty) in f.arg_values() {
                if let Some(p) = module.params.iter().find(|p| p.name == arg.name && p.role == arg.role)
                    && p.ty != *ty
                {
                    found.push(Violation {
                        func: f.name.clone(),
                        node: None,
                        message: format!("'{}' is {}, not {ty}", p.name, p.ty),
                    });
                }
            }
        }
        found.extend(of_func);
    }
    found
}

/// The violations of a function, in order.
pub fn verify_func(func: &Func) -> Vec<Violation> {
    let mut check = Check { func, path: func.name.clone(), found: Vec::new() };
    check.all();
    check.found
}

/// Items that occurred before, once each.
fn repeated(items: impl Iterator<Item = String>) -> Vec<String> {
    let (mut seen, mut again) = (BTreeSet::new(), BTreeSet::new());
    for item in items {
        if let Some(item) = seen.replace(item.clone()) {
            again.insert(item);
        }
    }
    again.into_iter().collect()
}

struct Check<'a> {
    func: &'a Func,
    path: String,
    found: Vec<Violation>,
}

impl Check<'_> {
    fn report(&mut self, node: Option<NodeId>, message: String) {
        self.found.push(Violation { func: self.path.clone(), node, message });
    }
    fn all(&mut self) {
        let func = self.func;
        if func.nodes.len() < func.args.len() {
            self.report(None, format!("{} arguments and {} nodes", func.args.len(), func.nodes.len()));
        }
        for name in repeated(func.args.iter().map(|a| format!("{} '{}'", a.role.name(), a.name))) {
            self.report(None, format!("two arguments {name}"));
        }
        for id in func.nodes.ids() {
            self.node(id);
        }
        for name in repeated(func.outputs.iter().map(|o| format!("{} '{}'", o.role.name(), o.name))) {
            self.report(None, format!("two outputs {name}"));
        }
        for o in &func.outputs {
            if self.ty(o.value).is_none() {
                self.report(None, format!("output '{}' is no value", o.name));
            }
        }
    }
    fn ty(&self, v: Value) -> Option<&TensorType> {
        self.func.nodes.get(v.node)?.types.get(v.index as usize)
    }
    fn node(&mut self, id: NodeId) {
        let (func, node) = (self.func, &self.func.nodes[id]);
        for t in &node.types {
            if t.shape.iter().any(|d| d.known().is_some_and(|n| n < 0)) {
                self.report(Some(id), format!("a negative extent in {t}"));
            }
        }
        let is_arg = matches!(node.op, Op::Arg(_));
        if id.index() < func.args.len() || is_arg {
            let right = matches!(node.op, Op::Arg(i) if i as usize == id.index() && id.index() < func.args.len());
            if !right || !node.inputs.is_empty() || node.types.len() != 1 {
                self.report(Some(id), format!("{} among the arguments or one past them", node.op.name()));
            }
            if is_arg {
                return;
            }
        }
        for v in &node.inputs {
            if v.node >= id {
                return self.report(Some(id), format!("{} uses {} before it is defined", node.op.name(), v.node));
            }
            if self.ty(*v).is_none() {
                return self.report(Some(id), format!("{} uses result {} of {}", node.op.name(), v.index, v.node));
            }
        }
        if let Some(inner) = node.op.body() {
            let mut body = Check { func: inner, path: format!("{}.{id}", self.path), found: Vec::new() };
            body.all();
            // The shape rules of loops and regions are stated for bodies that are graphs.
            let whole = body.found.is_empty();
            self.found.append(&mut body.found);
            if !whole {
                return;
            }
            if let Op::Repeat(r) = &node.op
                && r.carried.checked_add(r.constant).is_none_or(|n| n > r.body.args.len())
            {
                return self.report(Some(id), format!("{} carried and {} constant arguments", r.carried, r.constant));
            }
        }
        let operands: Vec<&TensorType> = node.inputs.iter().map(|v| func.ty(*v)).collect();
        match op::infer(&node.op, &operands) {
            Ok(types) if types == node.types => {}
            Ok(types) => {
                let list = |types: &[TensorType]| types.iter().map(TensorType::to_string).collect::<Vec<_>>().join(", ");
                self.report(Some(id), format!("{} gives {}, not {}", node.op.name(), list(&types), list(&node.types)));
            }
            Err(e) => self.report(Some(id), e.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        build::Builder,
        ir::{Init, Node, ParamDecl},
        op::{MapFn, Repeat},
    };
    use base::{DType, Dim};

    fn square() -> Func {
        let mut f = Func::new("f");
        let x = f.arg("x", Role::Input, TensorType::new(DType::F32, vec![Dim::sym("T")]));
        let y = Builder::new(&mut f).mul(x, x);
        f.output("y", Role::Result, y);
        f
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut Func), want: &[&str]) {
        let mut f = square();
        change(&mut f);
        assert_eq!(verify_func(&f).iter().map(Violation::to_string).collect::<Vec<_>>(), want);
    }

    #[test]
    fn violations_of_functions() {
        check(|_| {}, &[]);
        check(|f| f.nodes[NodeId(1)].inputs[1].node = NodeId(1), &["f %1: map uses %1 before it is defined"]);
        check(|f| f.nodes[NodeId(1)].inputs[1].index = 1, &["f %1: map uses result 1 of %0"]);
        check(|f| f.nodes[NodeId(1)].types[0].dtype = DType::F16, &["f %1: map gives f32[T], not f16[T]"]);
        check(|f| f.nodes[NodeId(1)].op = Op::Map(MapFn::Not), &["f %1: map takes 1 operands, not 2"]);
        check(|f| f.nodes[NodeId(1)].op = Op::Arg(1), &["f %1: arg among the arguments or one past them"]);
        check(|f| f.outputs[0].value.node = NodeId(9), &["f: output 'y' is no value"]);
        check(
            |f| {
                let value = f.outputs[0].value;
                f.output("y", Role::Result, value);
                f.output("y", Role::State, value);
            },
            &["f: two outputs result 'y'"],
        );
        check(|f| f.args.clear(), &["f %0: arg among the arguments or one past them"]);
    }

    #[test]
    fn violations_inside_loops() {
        let with_body = |change: &dyn Fn(&mut Repeat)| {
            let mut body = square();
            body.name = "body".into();
            let mut r = Repeat { count: 2, carried: 1, constant: 0, reverse: false, body };
            change(&mut r);
            move |f: &mut Func| {
                let inputs = vec![f.outputs[0].value];
                let types = vec![f.ty(inputs[0]).clone()];
                f.nodes.push(Node { op: Op::Repeat(Box::new(r)), inputs, types, origin: None });
            }
        };
        check(with_body(&|_| {}), &[]);
        check(with_body(&|r| r.body.outputs[0].value.node = NodeId(7)), &["f.%2: output 'y' is no value"]);
        check(with_body(&|r| r.constant = usize::MAX), &["f %2: 1 carried and 18446744073709551615 constant arguments"]);
        check(with_body(&|r| r.carried = 0), &["f %2: operand 0 of repeat is f32[T], not f32[2, T]"]);
    }

    #[test]
    fn violations_of_modules() {
        let ty = TensorType::new(DType::F32, vec![Dim::from(4)]);
        let param =
            |name: &str, role| ParamDecl { name: name.into(), ty: ty.clone(), init: Init::Normal(1.0), decay: true, role };
        let mut module = Module { funcs: vec![square()], ..Module::default() };
        assert_eq!(verify(&module), []);
        module.funcs.push(square());
        module.params =
            vec![param("a.*.*", Role::Param), param("b", Role::Grad), param("b", Role::Param), param("x", Role::State)];
        module.funcs[0].args[0].role = Role::State;
        assert_eq!(
            verify(&module).iter().map(Violation::to_string).collect::<Vec<_>>(),
            [
                "f: two functions of this name",
                "params: 'b' twice",
                "params: 'a.*.*' has more '*' than axes in f32[4]",
                "params: 'b' has the role grad",
                "f: 'x' is f32[4], not f32[T]",
            ]
        );
    }
}
