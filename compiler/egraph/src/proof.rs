//! Why a chosen op equals what was written: egg's proof, shortened to the rules it goes through. In: an e-graph with explanations turned on.

use crate::language::{ENode, Facts};
use egg::{EGraph, Id, TreeExplanation, TreeTerm};
use std::{collections::BTreeSet, rc::Rc};

/// Rules that are listed at most.
const MOST: usize = 12;

/// The rules of the proof that an e-node of `class` equals the first e-node of the program as it came that is in the class, in the order in which
/// the proof applies them, each once.
pub fn rules(egraph: &mut EGraph<ENode, Facts>, written: &[(Id, ENode)], e_node: &ENode, class: Id) -> Vec<String> {
    let class = egraph.find(class);
    let Some((from, _)) = written.iter().find(|(id, _)| egraph.find(*id) == class) else { return Vec::new() };
    let to = egraph.add_uncanonical(e_node.clone());
    let explanation = egraph.explain_id_equivalence(*from, to);
    let mut found = Vec::new();
    visit(&explanation.explanation_trees, &mut BTreeSet::new(), &mut found);
    found
}

/// Parts of a proof are shared: each is visited once.
fn visit(steps: &TreeExplanation<ENode>, seen: &mut BTreeSet<*const TreeTerm<ENode>>, found: &mut Vec<String>) {
    for step in steps {
        if !seen.insert(Rc::as_ptr(step)) {
            continue;
        }
        step.child_proofs.iter().for_each(|p| visit(p, seen, found));
        for rule in [step.backward_rule, step.forward_rule].into_iter().flatten() {
            let rule = rule.to_string();
            if !found.contains(&rule) && found.len() < MOST {
                found.push(rule);
            }
        }
    }
}
