//! E-nodes and what is known of each class. An e-node wraps a graph op; there is no second list of ops.

use base::{Span, TensorType};
use egg::{Analysis, DidMerge, EGraph, FromOp, Id, Language};
use graph::{
    Op,
    op::{self, MapFn},
};

/// What an e-node applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Head {
    /// Argument of the function.
    Arg(u32),
    /// An elementwise function; patterns name it.
    Map(MapFn),
    /// Any other op, by its place in [`Facts::ops`].
    Op(u32),
    /// One result of an op that has several.
    Result(u32),
}

/// An op applied to classes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ENode {
    /// What.
    pub head: Head,
    /// To what.
    pub children: Vec<Id>,
}

impl Language for ENode {
    type Discriminant = Head;
    fn discriminant(&self) -> Head {
        self.head
    }
    fn matches(&self, other: &Self) -> bool {
        self.head == other.head && self.children.len() == other.children.len()
    }
    fn children(&self) -> &[Id] {
        &self.children
    }
    fn children_mut(&mut self) -> &mut [Id] {
        &mut self.children
    }
}

impl FromOp for ENode {
    type Error = String;
    fn from_op(name: &str, children: Vec<Id>) -> Result<Self, String> {
        match MapFn::from_name(name) {
            Some(f) if f.arity() == children.len() => Ok(ENode { head: Head::Map(f), children }),
            Some(f) => Err(format!("{name} takes {} operands", f.arity())),
            None => Err(format!("no elementwise function is called {name}")),
        }
    }
}

/// The e-graph's memory beside its nodes: ops by number, types of arguments.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The ops that heads refer to.
    pub ops: Vec<Op>,
    /// The types of the function's arguments.
    pub args: Vec<TensorType>,
    /// The source text of nodes being added.
    pub origin: Option<Span>,
}

impl Facts {
    /// The head of `op`, the same for equal ops.
    pub fn intern(&mut self, op: &Op) -> Head {
        let at = self.ops.iter().position(|x| x == op).unwrap_or_else(|| {
            self.ops.push(op.clone());
            self.ops.len() - 1
        });
        Head::Op(u32::try_from(at).expect("fewer than 2^32 ops"))
    }
    /// The op of a head; `None` for [`Head::Result`].
    pub fn op(&self, head: Head) -> Option<Op> {
        match head {
            Head::Arg(i) => Some(Op::Arg(i)),
            Head::Map(f) => Some(Op::Map(f)),
            Head::Op(i) => Some(self.ops[i as usize].clone()),
            Head::Result(_) => None,
        }
    }
}

/// What is known of a class.
#[derive(Clone, Debug, PartialEq)]
pub struct Fact {
    /// The types of its results: one, but for the class of an op with several.
    pub types: Vec<TensorType>,
    /// The source text of the first node that was added.
    pub origin: Option<Span>,
}

impl Analysis<ENode> for Facts {
    type Data = Fact;

    fn make(egraph: &mut EGraph<ENode, Self>, enode: &ENode, _: Id) -> Fact {
        let facts = &egraph.analysis;
        let types = match enode.head {
            Head::Arg(i) => vec![facts.args[i as usize].clone()],
            Head::Result(i) => vec![egraph[enode.children[0]].data.types[i as usize].clone()],
            Head::Map(_) | Head::Op(_) => {
                let operands: Vec<&TensorType> = enode.children.iter().map(|c| &egraph[*c].data.types[0]).collect();
                let op = facts.op(enode.head).expect("a head with an op");
                op::infer(&op, &operands).unwrap_or_else(|e| base::bug!("a rule made an ill-typed {}: {e}", op.name()))
            }
        };
        Fact { types, origin: facts.origin }
    }

    fn merge(&mut self, a: &mut Fact, b: Fact) -> DidMerge {
        assert_eq!(a.types, b.types, "a rule joined values of different types");
        let (had, has) = (a.origin, a.origin.into_iter().chain(b.origin).min());
        a.origin = has;
        DidMerge(had != has, b.origin != has)
    }
}
