//! Applies rules until nothing is new or a limit is reached. In: an e-graph and the table. Out: the e-graph with what the rules say is equal.
//!
//! A rule is a pattern of elementwise functions, or *directed*: a function from a site (an e-node and what its operands are equal to) to terms
//! that equal it. Directed rules see attributes, shapes and facts, so a premise is an `if`.

use crate::{
    language::{ENode, Facts, Head},
    rules::{How, Rule},
};
use base::TensorType;
use egg::{EGraph, Id};
use graph::Op;
use std::borrow::Cow;

/// An e-node that a directed rule looks at.
pub struct Site<'a> {
    /// The e-graph.
    pub egraph: &'a EGraph<ENode, Facts>,
    /// The class of the value.
    pub class: Id,
    /// The op.
    pub op: &'a Op,
    /// Its operands.
    pub children: &'a [Id],
    /// The type of the value.
    pub ty: &'a TensorType,
    /// For an op with several results: which of them the value is.
    pub result: Option<u32>,
}

/// What a directed rule builds.
#[derive(Clone, Debug)]
pub enum Term {
    /// What is there.
    Class(Id),
    /// An op on terms.
    Op(Op, Vec<Term>),
    /// One result of an op that has several.
    Result(u32, Box<Term>),
}

impl Term {
    /// `op` of one operand.
    pub fn of(op: Op, operand: impl Into<Term>) -> Term {
        Term::Op(op, vec![operand.into()])
    }
}

impl From<Id> for Term {
    fn from(id: Id) -> Term {
        Term::Class(id)
    }
}

impl<'a> Site<'a> {
    /// The type of a class with one value.
    pub fn ty_of(&self, class: Id) -> &'a TensorType {
        &self.egraph[class].data.types[0]
    }
    /// The ops that compute a class, with their operands; of ops with several results, none.
    pub fn defs(&self, class: Id) -> impl Iterator<Item = (Cow<'a, Op>, &'a [Id])> + 'a {
        let egraph = self.egraph;
        sorted(egraph, class).into_iter().filter_map(move |n| Some((egraph.analysis.op(n.head)?, &n.children[..])))
    }
    /// The values (op with several results, which one) that a class is.
    pub fn results(&self, class: Id) -> impl Iterator<Item = (Id, u32)> + 'a {
        sorted(self.egraph, class).into_iter().filter_map(|n| match n.head {
            Head::Result(i) => Some((n.children[0], i)),
            Head::Arg(_) | Head::Map(_) | Head::Op(_) => None,
        })
    }
    /// Whether two are one class.
    pub fn same(&self, a: Id, b: Id) -> bool {
        self.egraph.find(a) == self.egraph.find(b)
    }
}

/// The e-nodes of a class, in their order.
pub fn sorted(egraph: &EGraph<ENode, Facts>, class: Id) -> Vec<&ENode> {
    let mut nodes: Vec<&ENode> = egraph[class].nodes.iter().collect();
    nodes.sort();
    nodes
}

/// The classes, in their order.
pub fn classes(egraph: &EGraph<ENode, Facts>) -> Vec<Id> {
    let mut ids: Vec<Id> = egraph.classes().map(|c| c.id).collect();
    ids.sort();
    ids
}

/// Adds a term; returns its class.
pub fn add(egraph: &mut EGraph<ENode, Facts>, term: &Term) -> Id {
    match term {
        Term::Class(id) => *id,
        Term::Result(i, of) => {
            let of = add(egraph, of);
            egraph.add(ENode { head: Head::Result(*i), children: vec![of] })
        }
        Term::Op(op, operands) => {
            let children = operands.iter().map(|t| add(egraph, t)).collect();
            let head = egraph.analysis.intern(op);
            egraph.add(ENode { head, children })
        }
    }
}

/// What a rule did to an e-graph.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Growth {
    /// How often it joined two classes.
    pub times: usize,
    /// The e-nodes that it added, of which congruence may show some to be equal later.
    pub nodes: usize,
}

/// Applies the rules; what each did, by its place in the table.
pub fn saturate(egraph: &mut EGraph<ENode, Facts>, table: &[Rule], iterations: usize, node_limit: usize) -> Vec<Growth> {
    let mut fired = vec![Growth::default(); table.len()];
    let times = |all: &[Growth]| all.iter().map(|g| g.times).sum::<usize>();
    for _ in 0..iterations {
        let before = times(&fired);
        apply(egraph, table, directed(egraph, table, false), node_limit, &mut fired);
        for (place, rule) in table.iter().enumerate() {
            let How::Pattern(rewrite) = &rule.how else { continue };
            egraph.analysis.rule = None;
            egraph.rebuild();
            if egraph.total_size() > node_limit {
                break;
            }
            let matches = rewrite.search(egraph);
            egraph.analysis.rule = Some(place);
            let nodes = egraph.total_size();
            fired[place].times += rewrite.apply(egraph, &matches).len();
            fired[place].nodes += egraph.total_size() - nodes;
        }
        egraph.analysis.rule = None;
        egraph.rebuild();
        if before == times(&fired) || egraph.total_size() > node_limit {
            break;
        }
    }
    fired
}

/// What outlines regions, once: nothing is rewritten in a region.
pub fn outline(egraph: &mut EGraph<ENode, Facts>, table: &[Rule], node_limit: usize, fired: &mut [Growth]) {
    apply(egraph, table, directed(egraph, table, true), node_limit, fired);
    egraph.analysis.rule = None;
    egraph.rebuild();
}

fn apply(egraph: &mut EGraph<ENode, Facts>, table: &[Rule], found: Vec<(usize, Found)>, node_limit: usize, fired: &mut [Growth]) {
    for (place, terms) in found {
        for (class, term) in terms {
            if egraph.total_size() > node_limit {
                break;
            }
            egraph.analysis.rule = Some(place);
            egraph.analysis.origin = egraph[class].data.origin;
            let nodes = egraph.total_size();
            let id = add(egraph, &term);
            fired[place].nodes += egraph.total_size() - nodes;
            fired[place].times += usize::from(egraph.union_trusted(class, id, table[place].name));
        }
    }
    egraph.analysis.origin = None;
}

type Found = Vec<(Id, Term)>;

/// What the directed rules find, by rule; or those that outline.
fn directed(egraph: &EGraph<ENode, Facts>, table: &[Rule], outlines: bool) -> Vec<(usize, Found)> {
    let mut found: Vec<(usize, Found)> = (0..table.len()).map(|i| (i, Vec::new())).collect();
    for class in classes(egraph) {
        for node in sorted(egraph, class) {
            let mut look = |op: &Op, children: &[Id], result| {
                let site = Site { egraph, class, op, children, ty: &egraph[class].data.types[0], result };
                for (rule, (_, terms)) in table.iter().zip(&mut found) {
                    match rule.how {
                        How::Directed(root, apply) if !outlines && root == op.name() => {
                            terms.extend(apply(&site).into_iter().map(|t| (class, t)));
                        }
                        How::Outline(root, apply) if outlines && root == op.name() => terms.extend(apply(&site)),
                        How::Pattern(_) | How::Directed(..) | How::Outline(..) | How::Join => {}
                    }
                }
            };
            match node.head {
                Head::Arg(_) => {}
                Head::Result(i) => {
                    for n in sorted(egraph, node.children[0]) {
                        let op = egraph.analysis.op(n.head).expect("an op has several results, no result has");
                        look(&op, &n.children, Some(i));
                    }
                }
                Head::Map(_) | Head::Op(_) if egraph[class].data.types.len() == 1 => {
                    look(&egraph.analysis.op(node.head).expect("a head with an op"), &node.children, None);
                }
                Head::Map(_) | Head::Op(_) => {}
            }
        }
    }
    found
}
