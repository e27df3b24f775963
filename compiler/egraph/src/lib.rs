//! The optimiser: finds the cheapest program among those that the rules say are equal.
//!
//! In: a verified module. Out: a verified module that computes the same, never costs more, and a report of what fired. E-nodes never
//! leave this crate. There is one e-graph for each function and each `repeat` body, so time does not depend on depth. No clock, no
//! randomness, no hash order: the same module gives the same result.
//! # Source: egg (Willsey et al., POPL 2021); extraction over shared nodes as in `docs/adr/0002-egraph-scope.md`.

mod contraction;
mod extract;
mod history;
mod language;
mod merge;
mod proof;
mod rewrite;
mod routing;
pub mod rules;

pub use language::RUN_TIME_DIM;
pub use rewrite::Growth;

use base::{DimEnv, Span, TensorType};
use egg::{EGraph, Id};
use extract::Space;
use graph::{Func, Module, NodeId, Op, Value};
use history::History;
use language::{ENode, Facts, Head};
use routing::Routing;
use rules::{Class, How, Rule};
use std::collections::{BTreeMap, BTreeSet};

/// What an op costs: op, operand types, result types. Storing a value that is otherwise computed where it is read is asked for as a
/// `concat` of one operand. # Units: any, the same for all.
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
    /// What run-time dims are taken to be where a rule compares sizes: the shape bucket that the program is for. Others are [`RUN_TIME_DIM`].
    pub sizes: DimEnv,
    /// Whether reports say what else could have been chosen, and prove what was.
    pub explain: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { class: Class::Reassociates, node_limit: 20_000, iteration_limit: 8, sizes: DimEnv::new(), explain: false }
    }
}

/// What happened in one function body.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The function, with what [`body_names`] says for each `repeat` around it.
    pub func: String,
    /// Cost before and after.
    pub cost: (f64, f64),
    /// E-nodes before and at the end.
    pub num_nodes: (usize, usize),
    /// What each rule that said something new did, in the order of the table.
    pub fired: Vec<(String, Growth)>,
    /// Ops of the result that a rule made, in order: the rule, the op, the source text that it computes.
    pub chosen: Vec<Step>,
    /// With [`Options::explain`], what else could have been chosen, and what the function would cost then.
    pub alternatives: Vec<Alternative>,
}

/// An op of the result that a rule made.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The rule.
    pub rule: &'static str,
    /// The op.
    pub op: &'static str,
    /// The source text.
    pub origin: Option<Span>,
    /// The types of its results.
    pub types: Vec<TensorType>,
    /// With [`Options::explain`], the rules of egg's proof that it equals what was written, in order, each once. Empty if it equals no value
    /// of the program as it came, but is a part of one that does.
    pub proof: Vec<String>,
    /// With [`Options::explain`], the nodes of the function as it came in place of which it stands; of a part, those of what it is a part of.
    pub replaced: BTreeSet<NodeId>,
}

/// An op that could compute a value instead.
#[derive(Clone, Debug, PartialEq)]
pub struct Alternative {
    /// The rule that found it; `None` if it is as written.
    pub rule: Option<&'static str>,
    /// The op.
    pub op: Op,
    /// The types of its operands.
    pub operands: Vec<TensorType>,
    /// The types of its results.
    pub results: Vec<TensorType>,
    /// The op that was chosen.
    pub instead_of: &'static str,
    /// The source text of the value.
    pub origin: Option<Span>,
    /// The nodes of the function as it came that compute the value.
    pub written: BTreeSet<NodeId>,
    /// What the function would cost with it.
    pub cost: f64,
}

/// Optimises every function of a module.
pub fn optimize(module: &Module, cost: Cost, options: &Options) -> (Module, Vec<Report>) {
    let table = rules::all().into_iter().filter(|r| r.class <= options.class).collect();
    let mut run = Run { table, cost, options, bodies: Vec::new(), reports: Vec::new() };
    let mut out = module.clone();
    for func in &mut out.funcs {
        let name = func.name.clone();
        *func = run.func(func, &name, Vec::new());
    }
    (out, run.reports)
}

/// What reports call the bodies of a function's loops, in order: `name/body`, numbered if there are several.
pub fn body_names(func: &Func, name: &str) -> Vec<String> {
    let count = func.nodes.values().filter(|n| matches!(n.op, Op::Repeat(_))).count();
    (1..=count).map(|k| if count == 1 { format!("{name}/body") } else { format!("{name}/body{k}") }).collect()
}

/// The cost of a function as it is.
pub fn program_cost(func: &Func, cost: Cost) -> f64 {
    extract::program_cost(func, cost)
}

/// What is the same for all functions of a module.
struct Run<'a> {
    table: Vec<Rule>,
    cost: Cost<'a>,
    options: &'a Options,
    /// Bodies of loops as they came and as they became, with their reports: equal layers are optimised once.
    bodies: Vec<(Func, Vec<Routing>, Func, Vec<Report>)>,
    reports: Vec<Report>,
}

impl Run<'_> {
    /// A function, with the arguments that are known to be of routings.
    fn func(&mut self, func: &Func, name: &str, routings: Vec<Routing>) -> Func {
        let mut func = func.clone();
        let mut names = body_names(&func, name).into_iter();
        for id in func.nodes.ids() {
            let of_body = routing::routings(&func, id);
            let Op::Repeat(r) = &mut func.nodes[id].op else { continue };
            let body_name = names.next().expect("a name for each loop");
            let same = |(before, of, ..): &&(Func, Vec<Routing>, Func, Vec<Report>)| *before == r.body && *of == of_body;
            if let Some((_, _, after, reports)) = self.bodies.iter().find(same) {
                let again =
                    |r: &Report| Report { func: r.func.replacen(&reports[reports.len() - 1].func, &body_name, 1), ..r.clone() };
                self.reports.extend(reports.iter().map(again));
                r.body = after.clone();
                continue;
            }
            let first = self.reports.len();
            let after = self.func(&r.body.clone(), &body_name, of_body.clone());
            let Op::Repeat(r) = &mut func.nodes[id].op else { base::bug!("a loop") };
            let before = std::mem::replace(&mut r.body, after.clone());
            self.bodies.push((before, of_body, after, self.reports[first..].to_vec()));
        }
        let (func, report) = optimize_func(func, name, routings, self);
        self.reports.push(report);
        func
    }
}

fn optimize_func(func: Func, name: &str, routings: Vec<Routing>, run: &Run) -> (Func, Report) {
    let (table, cost, options) = (&run.table, run.cost, run.options);
    let Built { mut egraph, classes, nodes, ops } = build(&func, options);
    egraph.analysis.routings = routings;
    let nodes_before = egraph.total_size();
    let fired = grow(&mut egraph, table, options);
    let space = Space::new(&egraph, cost);
    let at = |v: Value| space.at(classes[&v]);
    let outputs: Vec<usize> = func.outputs.iter().map(|o| at(o.value)).collect();
    let args: Vec<usize> = (0..func.args.len()).map(|i| at(func.arg_value(i))).collect();
    let choice = space.cheapest(&outputs, &nodes);
    let named: Vec<_> = func.outputs.iter().zip(outputs.iter().copied()).collect();
    let result = space.rebuild(&choice, &func, &args, &named);
    let cost = (extract::program_cost(&func, cost), extract::program_cost(&result.func, cost));
    let gains = cost.1 < cost.0;
    let mut report = Report {
        func: name.into(),
        cost: (cost.0, cost.1.min(cost.0)),
        num_nodes: (nodes_before, egraph.total_size()),
        fired: table.iter().zip(fired).filter(|(_, g)| g.times > 0).map(|(r, g)| (r.name.to_string(), g)).collect(),
        chosen: Vec::new(),
        alternatives: Vec::new(),
    };
    let history = options.explain.then(|| History::new(&func, &space, &classes, &ops, &result));
    if let Some(history) = &history {
        let name = |a: extract::Alternative| Alternative {
            rule: a.rule.map(|r| table[r].name),
            op: a.op,
            operands: a.operands,
            results: a.results,
            instead_of: a.instead_of,
            origin: a.origin,
            written: history.written.get(&a.class).cloned().unwrap_or_default(),
            cost: a.cost,
        };
        report.alternatives = space.alternatives(&choice, &outputs).into_iter().map(name).collect();
    }
    if gains {
        let made: Vec<(ENode, Id)> = result.by_rule.iter().map(|m| (m.e_node.clone(), space.id(m.class))).collect();
        let step = |m: &extract::Made| {
            let node = &result.func.nodes[m.node];
            Step {
                rule: table[m.rule].name,
                op: node.op.name(),
                origin: node.origin,
                types: node.types.clone(),
                proof: Vec::new(),
                replaced: history.as_ref().and_then(|h| h.replaced.get(&m.node)).cloned().unwrap_or_default(),
            }
        };
        report.chosen = result.by_rule.iter().map(step).collect();
        if options.explain {
            for (step, (e_node, class)) in report.chosen.iter_mut().zip(made) {
                step.proof = proof::rules(&mut egraph, &nodes, &e_node, class);
            }
        }
    }
    (if gains { result.func } else { func }, report)
}

/// Applies the rules, then the joins, then what outlines regions; what each did.
fn grow(egraph: &mut EGraph<ENode, Facts>, table: &[Rule], options: &Options) -> Vec<Growth> {
    let mut fired = rewrite::saturate(egraph, table, options.iteration_limit, options.node_limit);
    let join = |name| table.iter().position(|r| r.name == name && matches!(r.how, How::Join));
    let joins = merge::RULES.map(join);
    for (rule, count) in joins.into_iter().zip(merge::shared_operand(egraph, joins)) {
        if let Some(rule) = rule {
            fired[rule].times += count.times;
            fired[rule].nodes += count.nodes;
        }
    }
    rewrite::outline(egraph, table, options.node_limit, &mut fired);
    fired
}

/// A function as an e-graph.
struct Built {
    egraph: EGraph<ENode, Facts>,
    /// The class of each value.
    classes: BTreeMap<Value, Id>,
    /// The e-nodes as they came, with their classes.
    nodes: Vec<(Id, ENode)>,
    /// The class of each node's op, which is that of its value if it has one.
    ops: Vec<Id>,
}

fn build(func: &Func, options: &Options) -> Built {
    let mut egraph = EGraph::new(Facts { sizes: options.sizes.clone(), ..Facts::default() });
    if options.explain {
        egraph = egraph.with_explanations_enabled().without_explanation_length_optimization();
    }
    let mut classes: BTreeMap<Value, Id> = BTreeMap::new();
    let (mut nodes, mut ops) = (Vec::new(), Vec::new());
    for (id, node) in func.nodes.iter() {
        let children: Vec<Id> = node.inputs.iter().map(|v| classes[v]).collect();
        egraph.analysis.origin = node.origin;
        let head = match &node.op {
            Op::Arg(i) => {
                egraph.analysis.args.push(node.types[0].clone());
                Head::Arg(*i)
            }
            op => egraph.analysis.intern(op),
        };
        let whole = ENode { head, children };
        let class = egraph.add(whole.clone());
        ops.push(class);
        nodes.push((class, whole));
        for index in 0..node.types.len() as u32 {
            let value = Value { node: id, index };
            let class = match node.types.len() {
                1 => class,
                _ => {
                    let part = ENode { head: Head::Result(index), children: vec![class] };
                    let of = egraph.add(part.clone());
                    nodes.push((of, part));
                    of
                }
            };
            classes.insert(value, class);
        }
    }
    egraph.analysis.origin = None;
    egraph.analysis.outputs = func.outputs.iter().map(|o| classes[&o.value]).collect();
    egraph.rebuild();
    Built { egraph, classes, nodes, ops }
}

#[cfg(test)]
mod tests;
