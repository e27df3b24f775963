//! E-nodes and what is known of each class. An e-node wraps a graph op; there is no second list of ops.

use crate::routing::Routing;
use base::{Dim, DimEnv, Span, TensorType};
use egg::{Analysis, DidMerge, EGraph, FromOp, Id, Language};
use graph::{
    Op,
    op::{self, MapFn, Scalar},
};
use std::{borrow::Cow, collections::BTreeMap};

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

/// The e-graph's memory beside its nodes: ops by number, types of arguments, what rules have added.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The ops that heads refer to.
    pub ops: Vec<Op>,
    /// Their places by name, so that equal ones are found.
    pub by_name: BTreeMap<&'static str, Vec<u32>>,
    /// The types of the function's arguments.
    pub args: Vec<TensorType>,
    /// Arguments that are results of one routing.
    pub routings: Vec<Routing>,
    /// The classes that the function gives, as they were when it was built.
    pub outputs: Vec<Id>,
    /// The source text of nodes being added.
    pub origin: Option<Span>,
    /// What run-time dims are taken to be where a premise compares sizes.
    pub sizes: DimEnv,
    /// The rule that is being applied, by its place in the table.
    pub rule: Option<usize>,
    /// The e-nodes that rules added, as they were then.
    pub made: Vec<(ENode, usize)>,
}

/// What a run-time dim is taken to be if nothing is said of it.
pub const RUN_TIME_DIM: i64 = 64;

impl Facts {
    /// The head of `op`, the same for equal ops.
    pub fn intern(&mut self, op: &Op) -> Head {
        if let Op::Map(f) = op {
            return Head::Map(*f);
        }
        let same = self.by_name.entry(op.name()).or_default();
        let at = same.iter().copied().find(|i| self.ops[*i as usize] == *op).unwrap_or_else(|| {
            let at = u32::try_from(self.ops.len()).expect("fewer than 2^32 ops");
            self.ops.push(op.clone());
            same.push(at);
            at
        });
        Head::Op(at)
    }
    /// The op of a head; `None` for [`Head::Result`].
    pub fn op(&self, head: Head) -> Option<Cow<'_, Op>> {
        match head {
            Head::Arg(i) => Some(Cow::Owned(Op::Arg(i))),
            Head::Map(f) => Some(Cow::Owned(Op::Map(f))),
            Head::Op(i) => Some(Cow::Borrowed(&self.ops[i as usize])),
            Head::Result(_) => None,
        }
    }
    /// An extent as a number.
    pub fn size(&self, d: &Dim) -> f64 {
        let fixed = d.substitute(&|name| Some(Dim::from(self.sizes.get(name).copied().unwrap_or(RUN_TIME_DIM))));
        fixed.known().unwrap_or_else(|| base::bug!("{d} has no value")) as f64
    }
}

/// What is known of a class; what is equal has one fact, so facts of joined classes have to agree or add up.
#[derive(Clone, Debug, PartialEq)]
pub struct Fact {
    /// The types of its results: one, but for the class of an op with several.
    pub types: Vec<TensorType>,
    /// The source text of the first node that was added.
    pub origin: Option<Span>,
    /// The one value that all its elements have, if known.
    pub splat: Option<Scalar>,
    /// Whether it is an argument of the function, all of it: perhaps of another dtype, shape or order of axes. To join or scale it is
    /// a copy, and no computation is done twice.
    pub whole_arg: bool,
}

impl Analysis<ENode> for Facts {
    type Data = Fact;

    fn make(egraph: &mut EGraph<ENode, Self>, enode: &ENode, _: Id) -> Fact {
        let below = |i: usize| &egraph[enode.children[i]].data;
        let facts = &egraph.analysis;
        let (mut splat, mut whole_arg) = (None, false);
        let types = match enode.head {
            Head::Arg(i) => {
                whole_arg = true;
                vec![facts.args[i as usize].clone()]
            }
            Head::Result(i) => vec![below(0).types[i as usize].clone()],
            Head::Map(_) | Head::Op(_) => {
                let operands: Vec<&TensorType> = (0..enode.children.len()).map(|i| &below(i).types[0]).collect();
                let op = facts.op(enode.head).expect("a head with an op");
                match &*op {
                    Op::Const(x, dtype) if dtype.is_float() => splat = Some(Scalar::new(dtype.round(x.get()))),
                    Op::Broadcast { .. } | Op::Slice { .. } => splat = below(0).splat,
                    Op::Reshape(_) | Op::Transpose(_) => (splat, whole_arg) = (below(0).splat, below(0).whole_arg),
                    Op::Cast(_) => whole_arg = below(0).whole_arg,
                    _ => {}
                }
                op::infer(&op, &operands).unwrap_or_else(|e| base::bug!("a rule made an ill-typed {}: {e}", op.name()))
            }
        };
        let origin = facts.origin;
        if let Some(rule) = facts.rule {
            egraph.analysis.made.push((enode.clone(), rule));
        }
        Fact { types, origin, splat, whole_arg }
    }

    fn merge(&mut self, a: &mut Fact, b: Fact) -> DidMerge {
        assert_eq!(a.types, b.types, "a rule joined values of different types");
        let joined = Fact {
            types: b.types.clone(),
            origin: a.origin.into_iter().chain(b.origin).min(),
            splat: a.splat.or(b.splat),
            whole_arg: a.whole_arg || b.whole_arg,
        };
        let did = DidMerge(*a != joined, b != joined);
        *a = joined;
        did
    }
}
