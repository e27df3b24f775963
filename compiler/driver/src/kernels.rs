//! A model's kernels as `lode explain` tells them: what each is for, what it costs, which rules made it, what else there was.
//!
//! The optimiser runs a second time here, with explanations turned on: only then does egg keep what a proof needs.

mod describe;
mod table;

pub use describe::describe;
pub use table::table;

use crate::{
    buckets,
    commands::viz::label,
    pipeline::{self, BackError, Options},
};
use base::{DimEnv, Sources, Span, TensorType};
use graph::{Func, Module, NodeId, Op, Value};
use hir::Program;
use library::{Class, Job, Work};
use std::collections::{BTreeMap, BTreeSet};
use tile::{
    Tilings, Tuning,
    cost::{self, Model},
    group::{self, Grouping},
};

/// What is computed by a step: a stored value and all that is computed with it.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its number in the table.
    pub number: usize,
    /// The function, with `/body` for each loop around.
    pub func: String,
    /// The op that is stored.
    pub op: String,
    /// The kernels it launches; of a product that is the device's library's, none.
    pub symbols: Vec<String>,
    /// How often it runs.
    pub times: i64,
    /// What it does.
    pub job: Job,
    /// Estimated time. # Units: nanoseconds.
    pub estimate: f64,
    /// The time of its bucket in the tuning table, brought to its extents.
    pub measured: Option<f64>,
    /// The type of what it stores.
    ty: TensorType,
    /// The ops it computes, the stored one last.
    members: Vec<Member>,
    /// Where there are several legal tilings: the problem, and the one that its kernel has.
    tilings: Vec<(String, String)>,
}

/// An op that a step computes.
#[derive(Clone, Debug)]
struct Member {
    /// What is known of it wherever it went: its name, its source text, its types.
    key: Key,
    label: String,
    /// Whether it renames elements only.
    is_view: bool,
    /// What it would do as a step of its own.
    job: Option<Job>,
}

impl Row {
    /// The symbols of its kernels.
    fn shown_kernel(&self) -> String {
        match self.job.class {
            _ if !self.symbols.is_empty() => self.symbols.join(", "),
            Class::Product | Class::GroupedProduct | Class::GroupedOuter => "library product".into(),
            // Such as what a product adds to.
            _ => "in another step".into(),
        }
    }
}

/// An op as it is known before and after passes that number nodes anew.
type Key = (&'static str, Option<Span>, Vec<TensorType>);

/// All of a model's kernels.
pub struct Story<'a> {
    /// A row a step.
    pub rows: Vec<Row>,
    sources: &'a Sources,
    dims: DimEnv,
    table: Tuning,
    reports: Vec<egraph::Report>,
    /// All legal tilings of each problem that has several.
    tilings: BTreeMap<String, Vec<String>>,
    /// For each node as written, views and constants left out: by its function and number, its source text and what it does.
    before: BTreeMap<(String, NodeId), (Option<Span>, Job)>,
}

/// Works out the rows; with `proofs`, what the optimiser did for each.
///
/// # Errors
/// What the back half reports.
pub fn story<'a>(
    program: &Program,
    sources: &'a Sources,
    options: &Options,
    dims: &DimEnv,
    proofs: bool,
) -> Result<Story<'a>, BackError> {
    let (module, _) = pipeline::middle(program, options)?;
    let lowered = pipeline::lower(&module, options)?;
    let table = options.tuning();
    let model = Model::new(&table);
    let mut story = Story {
        rows: Vec::new(),
        sources,
        dims: dims.clone(),
        table: table.clone(),
        reports: Vec::new(),
        tilings: BTreeMap::new(),
        before: BTreeMap::new(),
    };
    let kernel = |k: usize| lowered.kernels[k].name.clone();
    for func in &tile::lower::prepared(&module, pipeline::lowering(options)).funcs {
        each_body(func, &func.name, &mut Vec::new(), 1, &mut |body, name, loops, times| {
            let grouping = group::group(body, pipeline::lowering(options));
            for (id, node) in
                body.nodes.iter().filter(|(id, n)| grouping.root[id.0 as usize] && !matches!(n.op, Op::Repeat(_) | Op::Arg(_)))
            {
                let launched = lowered.launched.iter().filter(|l| l.func == func.name && l.loops == loops && l.node == id);
                let launched: BTreeSet<usize> = launched.map(|l| l.kernel).collect();
                let symbols: BTreeSet<String> = launched.iter().map(|k| kernel(*k)).collect();
                let tilings: BTreeSet<(String, String)> = lowered
                    .tilings
                    .iter()
                    .filter(|(.., k)| launched.contains(k))
                    .map(|(problem, tiling, _)| (problem.clone(), tiling.clone()))
                    .collect();
                let Some(job) = work(body, &grouping, id).at(dims) else { continue };
                let members = members(body, &grouping, id);
                let member = |m: &NodeId| {
                    let node = &body.nodes[*m];
                    let operands: Vec<&TensorType> = node.inputs.iter().map(|v| body.ty(*v)).collect();
                    Member {
                        key: (node.op.name(), node.origin, node.types.clone()),
                        label: label(&node.op),
                        is_view: group::is_layout(&node.op),
                        job: cost::work(&node.op, &operands, &node.types).at(dims),
                    }
                };
                story.rows.push(Row {
                    number: story.rows.len() + 1,
                    func: name.into(),
                    op: label(&node.op),
                    symbols: symbols.into_iter().collect(),
                    times,
                    estimate: model.time(&job),
                    measured: model.measured(&job),
                    job,
                    ty: node.types[0].clone(),
                    members: members.iter().map(member).collect(),
                    tilings: tilings.into_iter().collect(),
                });
            }
        });
    }
    if proofs {
        let plain = Options { no_optimize: true, ..options.clone() };
        let (written, _) = pipeline::middle(program, &plain)?;
        story.before = before(&written, dims);
        let every = tile::lower_with(&module, pipeline::lowering(options), Tilings::Every).map_err(BackError::Target)?;
        for (problem, tiling, _) in every.tilings {
            let all = story.tilings.entry(problem).or_default();
            if !all.contains(&tiling) {
                all.push(tiling);
            }
        }
        if !options.no_optimize {
            story.reports = buckets::optimize_explained(&written, options).1;
        }
    }
    Ok(story)
}

/// Visits a function and the bodies of its loops: the body, its name, the loops around, how often it runs.
fn each_body(func: &Func, name: &str, loops: &mut Vec<NodeId>, times: i64, visit: &mut dyn FnMut(&Func, &str, &[NodeId], i64)) {
    visit(func, name, loops, times);
    let repeats = func.nodes.iter().filter_map(|(id, n)| if let Op::Repeat(r) = &n.op { Some((id, r)) } else { None });
    for ((id, r), name) in repeats.zip(egraph::body_names(func, name)) {
        loops.push(id);
        each_body(&r.body, &name, loops, times * r.count, visit);
        loops.pop();
    }
}

fn work(func: &Func, grouping: &Grouping, id: NodeId) -> Work {
    let node = &func.nodes[id];
    match &node.op {
        Op::Contract(_)
        | Op::GroupedContract { .. }
        | Op::GroupedOuter
        | Op::Exchange { .. }
        | Op::Attend(_)
        | Op::AttendGrad(_)
        | Op::TopK(_)
        | Op::Cumsum { .. }
        | Op::ScatterAdd { .. }
        | Op::Route { .. }
        | Op::Fused(_) => cost::step_work(func, node, grouping.many),
        _ => cost::fused_work(func, grouping, Value { node: id, index: 0 }),
    }
}

/// The nodes that a step computes, its stored one last.
fn members(func: &Func, grouping: &Grouping, root: NodeId) -> Vec<NodeId> {
    let mut found = BTreeSet::from([root]);
    let mut open = vec![root];
    while let Some(id) = open.pop() {
        for v in &func.nodes[id].inputs {
            let computed = !grouping.root[v.node.0 as usize] && !matches!(func.nodes[v.node].op, Op::Arg(_) | Op::Const(..));
            if computed && found.insert(v.node) {
                open.push(v.node);
            }
        }
    }
    found.into_iter().collect()
}

/// What each node does as written, each op a step of its own.
fn before(module: &Module, dims: &DimEnv) -> BTreeMap<(String, NodeId), (Option<Span>, Job)> {
    let mut out = BTreeMap::new();
    for func in &module.funcs {
        each_body(func, &func.name, &mut Vec::new(), 1, &mut |body, name, _, _| {
            let computed = |n: &graph::Node| {
                !matches!(n.op, Op::Arg(_) | Op::Const(..) | Op::Extent(..) | Op::Iota(_) | Op::Repeat(_))
                    && !group::is_layout(&n.op)
            };
            for (id, node) in body.nodes.iter().filter(|(_, n)| computed(n)) {
                let operands: Vec<&TensorType> = node.inputs.iter().map(|v| body.ty(*v)).collect();
                if let Some(job) = cost::work(&node.op, &operands, &node.types).at(dims) {
                    out.insert((name.to_string(), id), (node.origin, job));
                }
            }
        });
    }
    out
}

/// A time in the unit that reads best. # Units: in, nanoseconds.
fn time(ns: f64) -> String {
    match ns {
        ns if ns < 1e6 => format!("{:.1} µs", ns / 1e3),
        ns if ns < 1e9 => format!("{:.2} ms", ns / 1e6),
        ns => format!("{:.2} s", ns / 1e9),
    }
}

/// Operations.
fn operations(n: f64) -> String {
    let (by, unit) = if n < 1e9 { (1e6, "Mop") } else { (1e9, "Gop") };
    format!("{:.2} {unit}", n / by)
}

/// Bytes.
fn bytes(n: f64) -> String {
    let (by, unit) = if n < 1048576.0 { (1024.0, "KiB") } else { (1048576.0, "MiB") };
    format!("{:.1} {unit}", n / by)
}

/// A file and a line.
fn place(sources: &Sources, span: Span) -> (String, usize) {
    (sources.get(span.file).name.to_string(), sources.line_col(span).0)
}
