//! A region: ops that are computed together, whose inner values are never stored. The meaning is that of the ops; the form says which kind of
//! kernel the region is cut out for. `docs/adr/0005-fused-regions.md`.

use super::{Op, OpError, op_error};
use crate::ir::{Func, Node, NodeId, Role, Value};
use base::{Span, TensorType};
use std::collections::{BTreeMap, BTreeSet};

/// What kind of kernel a region is cut out for. A target without such a kernel computes the ops one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Form {
    /// Ends in `topk` of scores that are computed where they are compared: each row keeps its best so far. Of few rows the product that they are computed from may be stored.
    Select,
    /// Ends in maps of products of the same rows, element by element: tiles of the products are mapped where they were summed. Products that others
    /// read too are results besides.
    Product,
    /// Ends in reductions along a long axis, as of logits: the axis is walked in chunks, and nothing that has it is whole in memory.
    Stream,
    /// Ends in what is chosen, summed and mapped of each row of a few numbers, as a router does: a row is computed by itself.
    Rows,
    /// Ends in a map of an attention's result, element by element: a tile of the result is mapped before it is stored. The result and the scores' sums,
    /// if others read them too, are results besides. Or in sums of such maps over columns, in place of the maps. Or gives, of few queries, an attention and the product of its queries and keys.
    Attend,
}

impl Form {
    /// Every form.
    pub const ALL: [Form; 5] = [Form::Select, Form::Product, Form::Stream, Form::Rows, Form::Attend];
    /// Its name in the text form.
    pub fn name(self) -> &'static str {
        match self {
            Form::Select => "select",
            Form::Product => "product",
            Form::Stream => "stream",
            Form::Rows => "rows",
            Form::Attend => "attend",
        }
    }
    /// The form with this name.
    pub fn from_name(name: &str) -> Option<Form> {
        Form::ALL.into_iter().find(|f| f.name() == name)
    }
}

/// Ops that are computed together. Operands are the body's arguments, results its outputs. The body has no loop and no region in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Fused {
    /// What for.
    pub form: Form,
    /// The ops; arguments and outputs have the role [`Role::Inner`].
    pub body: Func,
}

impl Fused {
    /// The region of some nodes of a function, which gives `results`, and the values that it takes, in order of first use.
    pub fn outline(func: &Func, form: Form, nodes: &BTreeSet<NodeId>, results: &[Value]) -> (Fused, Vec<Value>) {
        let mut operands: Vec<Value> = Vec::new();
        for v in nodes.iter().flat_map(|id| &func.nodes[*id].inputs).chain(results) {
            if !nodes.contains(&v.node) && !operands.contains(v) {
                operands.push(*v);
            }
        }
        let mut body = Func::new("body");
        let mut moved: BTreeMap<Value, Value> = BTreeMap::new();
        for (i, v) in operands.iter().enumerate() {
            moved.insert(*v, body.arg(&format!("x{i}"), Role::Inner, func.ty(*v).clone()));
        }
        for id in nodes {
            let node = &func.nodes[*id];
            let inputs = node.inputs.iter().map(|v| moved[v]).collect();
            let count = node.types.len() as u32;
            let new = body.nodes.push(Node { inputs, ..node.clone() });
            moved.extend((0..count).map(|index| (Value { node: *id, index }, Value { node: new, index })));
        }
        for (i, v) in results.iter().enumerate() {
            body.output(&format!("y{i}"), Role::Inner, moved[v]);
        }
        (Fused { form, body }, operands)
    }
    /// Appends the region's ops to a function; returns its results.
    pub fn inline(&self, func: &mut Func, inputs: &[Value], origin: Option<Span>) -> Vec<Value> {
        self.body.inline(func, inputs, origin)
    }
}

pub(super) fn infer(f: &Fused, operands: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    let body = &f.body;
    if operands.len() != body.args.len() {
        return op_error!("a region of {} arguments and {} operands", body.args.len(), operands.len());
    }
    if let Some(i) = (0..operands.len()).find(|i| body.arg_type(*i) != operands[*i]) {
        return op_error!("operand {i} of a region is {}, not {}", operands[i], body.arg_type(i));
    }
    if let Some(node) = body.nodes.values().find(|n| matches!(n.op, Op::Repeat(_) | Op::Fused(_))) {
        return op_error!("{} in a region", node.op.name());
    }
    if body.outputs.is_empty() {
        return op_error!("a region without results");
    }
    Ok(body.outputs.iter().map(|o| body.ty(o.value).clone()).collect())
}
