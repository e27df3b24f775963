//! Picks one e-node for each class so that the program they make, shared values counted once, costs least.
//!
//! Bottom-up greedy with the set of classes each choice pulls in, then a local search that switches whole groups of choices and
//! keeps what lowers the cost of the program. Ties go to the e-node that is first in order.

use crate::{
    Cost,
    language::{ENode, Facts, Head},
    merge::Group,
};
use base::TensorType;
use egg::{EGraph, Id};
use graph::{Func, Node, NodeId, Op, Value};
use std::collections::BTreeMap;

/// The cost of a program: of all nodes that its outputs need.
pub fn program_cost(func: &Func, cost: Cost) -> f64 {
    let mut needed = vec![false; func.nodes.len()];
    func.outputs.iter().for_each(|o| needed[o.value.node.0 as usize] = true);
    let mut sum = 0.0;
    for id in func.nodes.ids().rev() {
        if !needed[id.0 as usize] {
            continue;
        }
        let node = &func.nodes[id];
        node.inputs.iter().for_each(|v| needed[v.node.0 as usize] = true);
        let operands: Vec<&TensorType> = node.inputs.iter().map(|v| func.ty(*v)).collect();
        sum += node_cost(&node.op, &operands, &node.types, cost);
    }
    sum
}

fn node_cost(op: &Op, operands: &[&TensorType], results: &[TensorType], cost: Cost) -> f64 {
    match op {
        Op::Arg(_) => 0.0,
        Op::Repeat(r) => r.count as f64 * program_cost(&r.body, cost),
        _ => cost(op, operands, results),
    }
}

/// The e-node chosen for each class.
pub struct Choice {
    nodes: BTreeMap<Id, ENode>,
}

impl Choice {
    /// The cheapest choice found for the outputs.
    pub fn cheapest(egraph: &EGraph<ENode, Facts>, outputs: &[Id], groups: &[Group], cost: Cost) -> Choice {
        let mut best = Choice::greedy(egraph, cost);
        let mut least = best.total(egraph, outputs, cost);
        for group in groups {
            let mut nodes = best.nodes.clone();
            for (class, node) in &group.members {
                let mut node = node.clone();
                node.children.iter_mut().for_each(|c| *c = egraph.find(*c));
                nodes.insert(egraph.find(*class), node);
            }
            let other = Choice { nodes };
            let total = other.total(egraph, outputs, cost);
            if total < least {
                (best, least) = (other, total);
            }
        }
        best
    }

    /// Bottom-up: each class takes the e-node whose classes below, each once, cost least.
    fn greedy(egraph: &EGraph<ENode, Facts>, cost: Cost) -> Choice {
        let mut classes: Vec<Id> = egraph.classes().map(|c| c.id).collect();
        classes.sort();
        // For each class: the chosen node and the cost of each class it needs, itself included.
        let mut chosen: BTreeMap<Id, (ENode, BTreeMap<Id, f64>, f64)> = BTreeMap::new();
        loop {
            let mut changed = false;
            for class in &classes {
                let mut nodes: Vec<&ENode> = egraph[*class].nodes.iter().collect();
                nodes.sort();
                for node in nodes {
                    let below: Option<Vec<_>> = node.children.iter().map(|c| chosen.get(&egraph.find(*c))).collect();
                    let Some(below) = below else { continue };
                    let mut needs: BTreeMap<Id, f64> = BTreeMap::new();
                    below.iter().for_each(|(_, set, _)| needs.extend(set));
                    if needs.contains_key(class) {
                        continue;
                    }
                    needs.insert(*class, enode_cost(egraph, *class, node, cost));
                    let total: f64 = needs.values().sum();
                    if chosen.get(class).is_none_or(|(_, _, least)| total < *least) {
                        chosen.insert(*class, (node.clone(), needs, total));
                        changed = true;
                    }
                }
            }
            if !changed {
                let canonical = |mut n: ENode| {
                    n.children.iter_mut().for_each(|c| *c = egraph.find(*c));
                    n
                };
                return Choice { nodes: chosen.into_iter().map(|(c, (n, _, _))| (c, canonical(n))).collect() };
            }
        }
    }

    /// The cost of the classes the outputs need; infinite if a choice needs itself.
    fn total(&self, egraph: &EGraph<ENode, Facts>, outputs: &[Id], cost: Cost) -> f64 {
        match self.order(egraph, outputs) {
            Some(order) => order.into_iter().map(|c| enode_cost(egraph, c, &self.nodes[&c], cost)).sum(),
            None => f64::INFINITY,
        }
    }

    /// The classes the outputs need, operands first; `None` on a cycle.
    fn order(&self, egraph: &EGraph<ENode, Facts>, outputs: &[Id]) -> Option<Vec<Id>> {
        let mut order = Vec::new();
        // false while its operands are being visited.
        let mut state: BTreeMap<Id, bool> = BTreeMap::new();
        for output in outputs {
            let mut stack = vec![(egraph.find(*output), 0)];
            while let Some((class, next)) = stack.pop() {
                if next == 0 {
                    match state.get(&class) {
                        Some(true) => continue,
                        Some(false) => return None,
                        None => state.insert(class, false),
                    };
                }
                let children = &self.nodes[&class].children;
                if next < children.len() {
                    stack.push((class, next + 1));
                    let child = children[next];
                    if state.get(&child) != Some(&true) {
                        if state.get(&child) == Some(&false) {
                            return None;
                        }
                        stack.push((child, 0));
                    }
                } else {
                    state.insert(class, true);
                    order.push(class);
                }
            }
        }
        Some(order)
    }
}

fn enode_cost(egraph: &EGraph<ENode, Facts>, class: Id, node: &ENode, cost: Cost) -> f64 {
    let Some(op) = egraph.analysis.op(node.head) else { return 0.0 };
    let operands: Vec<&TensorType> = node.children.iter().map(|c| &egraph[*c].data.types[0]).collect();
    node_cost(&op, &operands, &egraph[class].data.types, cost)
}

/// The chosen program as a function with the arguments and outputs of `func`.
pub fn rebuild(egraph: &EGraph<ENode, Facts>, choice: &Choice, func: &Func, classes: &BTreeMap<Value, Id>) -> Func {
    let mut out = Func::new(&func.name);
    let mut values: BTreeMap<Id, Vec<Value>> = BTreeMap::new();
    for (i, (arg, _, ty)) in func.arg_values().enumerate() {
        let v = out.arg(&arg.name, arg.role, ty.clone());
        values.insert(egraph.find(classes[&func.arg_value(i)]), vec![v]);
    }
    let outputs: Vec<Id> = func.outputs.iter().map(|o| classes[&o.value]).collect();
    let order = choice.order(egraph, &outputs).unwrap_or_else(|| base::bug!("the extracted program has a cycle"));
    for class in order {
        if values.contains_key(&class) {
            continue;
        }
        let node = &choice.nodes[&class];
        let results = match node.head {
            Head::Arg(_) => base::bug!("an argument has its value already"),
            Head::Result(i) => vec![values[&node.children[0]][i as usize]],
            Head::Map(_) | Head::Op(_) => {
                let fact = &egraph[class].data;
                let op = egraph.analysis.op(node.head).expect("a head with an op");
                let inputs = node.children.iter().map(|c| values[c][0]).collect();
                let id: NodeId = out.nodes.push(Node { op, inputs, types: fact.types.clone(), origin: fact.origin });
                (0..fact.types.len() as u32).map(|index| Value { node: id, index }).collect()
            }
        };
        values.insert(class, results);
    }
    for (o, class) in func.outputs.iter().zip(outputs) {
        out.output(&o.name, o.role, values[&egraph.find(class)][0]);
    }
    out
}
