//! The graph's data: a module of functions, a function of nodes in topological order.

use crate::op::{self, Op, OpError};
use base::{Arena, Span, TensorType, arena::Id};

base::id_type!(
    /// A node of a function.
    NodeId,
    "%"
);

/// A result of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value {
    /// The node.
    pub node: NodeId,
    /// Which of its results.
    pub index: u32,
}

/// An application of an op.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What it computes.
    pub op: Op,
    /// What from; all defined earlier.
    pub inputs: Vec<Value>,
    /// The types of its results.
    pub types: Vec<TensorType>,
    /// The source text it stands for.
    pub origin: Option<Span>,
}

/// What an argument or an output of an entry point is to the run-time. An output with the name and role of an argument
/// replaces it (the buffer may be shared).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// A trained parameter.
    Param,
    /// A buffer that is saved and not trained, such as a routing bias.
    State,
    /// Given by the caller: tokens, targets, per-token weights.
    Input,
    /// The accumulated gradient of the parameter of the same name.
    Grad,
    /// An optimiser moment of a parameter; its name is `<parameter>#<k>`.
    Moment,
    /// A sum over the micro-batches of a step.
    Tally,
    /// A scalar of the training loop: learning rate, step, gradient norm, loss.
    Scalar,
    /// A result for the caller.
    Result,
    /// A value saved for the backward pass, or carried inside a `repeat` body.
    Inner,
}

/// An argument of a function.
#[derive(Clone, Debug, PartialEq)]
pub struct Arg {
    /// Its name; unique within its role.
    pub name: String,
    /// What it is.
    pub role: Role,
}

/// An output of a function.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// Its name; unique within its role.
    pub name: String,
    /// What it is.
    pub role: Role,
    /// The value.
    pub value: Value,
}

/// A function: arguments, nodes in topological order, outputs. Node `i` for `i < args.len()` is `Op::Arg(i)`.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Func {
    /// Its name: an entry point (`forward`, `loss`, `grad`, `update`) or `body`.
    pub name: String,
    /// The arguments.
    pub args: Vec<Arg>,
    /// The nodes.
    pub nodes: Arena<NodeId, Node>,
    /// The results.
    pub outputs: Vec<Output>,
}

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Independent normal numbers. # Units: standard deviation.
    Normal(f64),
    /// Independent uniform numbers in `[-a, a)`.
    Uniform(f64),
    /// One value everywhere.
    Constant(f64),
}

/// A parameter or state of the model.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamDecl {
    /// The dotted name; each `*` stands for one leading axis: `layers.*.attention.wq`.
    pub name: String,
    /// Storage type, with the axes of all `*` first.
    pub ty: TensorType,
    /// How it starts.
    pub init: Init,
    /// Whether weight decay applies.
    pub decay: bool,
    /// `Role::Param` or `Role::State`.
    pub role: Role,
}

/// A compiled model: its parameters and entry points.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Module {
    /// The model's name.
    pub name: String,
    /// Parameters and states, in order of declaration.
    pub params: Vec<ParamDecl>,
    /// The entry points.
    pub funcs: Vec<Func>,
}

impl Module {
    /// The entry point called `name`.
    pub fn func(&self, name: &str) -> Option<&Func> {
        self.funcs.iter().find(|f| f.name == name)
    }
}

impl Func {
    /// A function without arguments and nodes.
    pub fn new(name: &str) -> Func {
        Func { name: name.into(), ..Func::default() }
    }
    /// Appends an argument. Arguments come before all other nodes.
    pub fn arg(&mut self, name: &str, role: Role, ty: TensorType) -> Value {
        assert_eq!(self.args.len(), self.nodes.len(), "arguments come first");
        let index = u32::try_from(self.args.len()).expect("fewer than 2^32 arguments");
        self.args.push(Arg { name: name.into(), role });
        let node = self.nodes.push(Node { op: Op::Arg(index), inputs: Vec::new(), types: vec![ty], origin: None });
        Value { node, index: 0 }
    }
    /// Appends a node whose result types follow from the op's shape rule.
    ///
    /// # Errors
    /// If the op does not take operands of these types.
    pub fn add(&mut self, op: Op, inputs: &[Value], origin: Option<Span>) -> Result<NodeId, OpError> {
        let operands: Vec<&TensorType> = inputs.iter().map(|v| self.ty(*v)).collect();
        let types = op::infer(&op, &operands)?;
        Ok(self.nodes.push(Node { op, inputs: inputs.to_vec(), types, origin }))
    }
    /// Names `value` as an output.
    pub fn output(&mut self, name: &str, role: Role, value: Value) {
        self.outputs.push(Output { name: name.into(), role, value });
    }
    /// Appends the nodes of this function to another, for these arguments; returns the outputs. `origin` is for nodes that have none.
    pub fn inline(&self, into: &mut Func, args: &[Value], origin: Option<Span>) -> Vec<Value> {
        let mut moved: Vec<Vec<Value>> = args.iter().map(|v| vec![*v]).collect();
        let at = |moved: &[Vec<Value>], v: Value| moved[v.node.index()][v.index as usize];
        for node in self.nodes.values().skip(self.args.len()) {
            let inputs = node.inputs.iter().map(|v| at(&moved, *v)).collect();
            let count = node.types.len() as u32;
            let node = into.nodes.push(Node { inputs, origin: node.origin.or(origin), ..node.clone() });
            moved.push((0..count).map(|index| Value { node, index }).collect());
        }
        self.outputs.iter().map(|o| at(&moved, o.value)).collect()
    }
    /// The type of a value.
    pub fn ty(&self, v: Value) -> &TensorType {
        &self.nodes[v.node].types[v.index as usize]
    }
    /// The node that defines a value.
    pub fn def(&self, v: Value) -> &Node {
        &self.nodes[v.node]
    }
    /// The value of argument `i`.
    pub fn arg_value(&self, i: usize) -> Value {
        Value { node: base::arena::Id::new(i), index: 0 }
    }
    /// The type of argument `i`.
    pub fn arg_type(&self, i: usize) -> &TensorType {
        self.ty(self.arg_value(i))
    }
    /// The arguments with values and types.
    pub fn arg_values(&self) -> impl Iterator<Item = (&Arg, Value, &TensorType)> {
        self.args.iter().enumerate().map(|(i, a)| (a, self.arg_value(i), self.arg_type(i)))
    }
    /// The output called `name`.
    pub fn output_named(&self, name: &str) -> Option<&Output> {
        self.outputs.iter().find(|o| o.name == name)
    }
}
