//! Turns a gradient function into one that adds to what earlier micro-batches left.

use crate::{
    ir::{Func, NodeId, Output, Role, Value},
    op::{MapFn, Op},
};

/// The same function with an argument for each output of role `Grad` or `Tally`, of the same name, role and type, to which the
/// output is added. In: a function without such arguments. Out: one whose outputs replace them.
pub fn accumulate(func: &Func) -> Func {
    let summed = |o: &&Output| matches!(o.role, Role::Grad | Role::Tally);
    let mut out = Func::new(&func.name);
    for (arg, _, ty) in func.arg_values() {
        out.arg(&arg.name, arg.role, ty.clone());
    }
    let old: Vec<Value> =
        func.outputs.iter().filter(summed).map(|o| out.arg(&o.name, o.role, func.ty(o.value).clone())).collect();
    let added = old.len() as u32;
    let moved = |v: Value| {
        let shift = if (v.node.0 as usize) < func.args.len() { 0 } else { added };
        Value { node: NodeId(v.node.0 + shift), index: v.index }
    };
    for node in func.nodes.values().skip(func.args.len()) {
        let mut node = node.clone();
        node.inputs.iter_mut().for_each(|v| *v = moved(*v));
        out.nodes.push(node);
    }
    let mut old = old.into_iter();
    for o in &func.outputs {
        let mut value = moved(o.value);
        if summed(&o) {
            let before = old.next().expect("one argument for each such output");
            let sum = out.add(Op::Map(MapFn::Add), &[before, value], None).expect("both have the output's type");
            value = Value { node: sum, index: 0 };
        }
        out.output(&o.name, o.role, value);
    }
    out
}
