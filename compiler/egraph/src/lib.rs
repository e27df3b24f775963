//! The optimiser: finds the cheapest program among those that the rules say are equal.
//!
//! In: a verified module. Out: a verified module that computes the same, never costs more, and a report of what fired. E-nodes never
//! leave this crate. There is one e-graph for each function and each `repeat` body, so time does not depend on depth. No clock, no
//! randomness, no hash order: the same module gives the same result.
//! # Source: egg (Willsey et al., POPL 2021); extraction over shared nodes as in `docs/adr/0002-egraph-scope.md`.

mod extract;
mod language;
mod merge;
pub mod rules;

use base::TensorType;
use egg::{EGraph, Id, Runner, SimpleScheduler};
use extract::Choice;
use graph::{Func, Module, Op, Value};
use language::{ENode, Facts, Head};
use rules::Class;
use std::collections::BTreeMap;

/// What an op costs: op, operand types, result types. # Units: any, the same for all.
pub type Cost<'a> = &'a dyn Fn(&Op, &[&TensorType], &[TensorType]) -> f64;

/// Limits and permissions.
#[derive(Clone, Debug)]
pub struct Options {
    /// Rules of this class and stricter ones are used.
    pub class: Class,
    /// E-nodes per function body.
    pub node_limit: usize,
    /// Rounds of rewriting.
    pub iteration_limit: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { class: Class::Reassociates, node_limit: 20_000, iteration_limit: 8 }
    }
}

/// What happened in one function body.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The function, with `/body` for each `repeat` around it.
    pub func: String,
    /// Cost before and after.
    pub cost: (f64, f64),
    /// E-nodes at the end.
    pub num_nodes: usize,
    /// How often each rule added something, in the order of the table.
    pub fired: Vec<(String, usize)>,
}

/// Optimises every function of a module.
pub fn optimize(module: &Module, cost: Cost, options: &Options) -> (Module, Vec<Report>) {
    let mut reports = Vec::new();
    let mut out = module.clone();
    for func in &mut out.funcs {
        let name = func.name.clone();
        *func = optimize_func(func, &name, cost, options, &mut reports);
    }
    (out, reports)
}

fn optimize_func(func: &Func, name: &str, cost: Cost, options: &Options, reports: &mut Vec<Report>) -> Func {
    let mut func = func.clone();
    for node in func.nodes.values_mut() {
        if let Op::Repeat(r) = &mut node.op {
            r.body = optimize_func(&r.body, &format!("{name}/body"), cost, options, reports);
        }
    }
    let (egraph, roots) = build(&func);
    let table = rules::all().into_iter().filter(|r| r.class <= options.class);
    let rewrites: Vec<_> = table.map(|r| r.rewrite).collect();
    let mut runner = Runner::<ENode, Facts, ()>::new(Facts::default())
        .with_egraph(egraph)
        .with_scheduler(SimpleScheduler)
        .with_node_limit(options.node_limit)
        .with_iter_limit(options.iteration_limit)
        .with_time_limit(std::time::Duration::MAX)
        .run(&rewrites);
    let mut fired: BTreeMap<String, usize> = BTreeMap::new();
    for (rule, count) in runner.iterations.iter().flat_map(|i| &i.applied) {
        *fired.entry(rule.to_string()).or_default() += count;
    }
    let groups = merge::shared_operand(&mut runner.egraph, &func, &roots);
    if !groups.is_empty() {
        fired.insert("contract-of-shared-operand".into(), groups.len());
    }
    let before = extract::program_cost(&func, cost);
    let choice = Choice::cheapest(&runner.egraph, &outputs(&func, &roots), &groups, cost);
    let result = extract::rebuild(&runner.egraph, &choice, &func, &roots);
    let after = extract::program_cost(&result, cost);
    let result = if after <= before { result } else { func };
    let fired = rules::names().into_iter().filter_map(|n| fired.remove(n).map(|k| (n.to_string(), k))).collect();
    reports.push(Report { func: name.into(), cost: (before, after.min(before)), num_nodes: runner.egraph.total_size(), fired });
    result
}

/// The e-graph of a function, and the class of each value.
fn build(func: &Func) -> (EGraph<ENode, Facts>, BTreeMap<Value, Id>) {
    let mut egraph = EGraph::new(Facts::default());
    let mut roots: BTreeMap<Value, Id> = BTreeMap::new();
    for (id, node) in func.nodes.iter() {
        let children: Vec<Id> = node.inputs.iter().map(|v| roots[v]).collect();
        egraph.analysis.origin = node.origin;
        let head = match &node.op {
            Op::Arg(i) => {
                egraph.analysis.args.push(node.types[0].clone());
                Head::Arg(*i)
            }
            Op::Map(f) => Head::Map(*f),
            op => egraph.analysis.intern(op),
        };
        let class = egraph.add(ENode { head, children });
        for index in 0..node.types.len() as u32 {
            let value = Value { node: id, index };
            let class = match node.types.len() {
                1 => class,
                _ => egraph.add(ENode { head: Head::Result(index), children: vec![class] }),
            };
            roots.insert(value, class);
        }
    }
    egraph.rebuild();
    (egraph, roots)
}

fn outputs(func: &Func, roots: &BTreeMap<Value, Id>) -> Vec<Id> {
    func.outputs.iter().map(|o| roots[&o.value]).collect()
}

#[cfg(test)]
mod tests;
