//! A model's kernels as `lode explain` tells them: what each is for, what it costs, which rules made it, what else there was.
//!
//! The optimiser runs a second time here, with explanations turned on: only then does egg keep what a proof needs.

use crate::{
    buckets,
    commands::viz::label,
    pipeline::{self, BackError, Options},
};
use base::{DimEnv, Sources, Span, TensorType};
use graph::{Func, Module, NodeId, Op, Value};
use hir::Program;
use library::{Job, Step, Work};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};
use tile::{
    cost::{self, Model},
    group::{self, Grouping},
    tuning,
};

/// What is computed by a step: a stored value and all that is computed with it.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its number in the table.
    pub number: usize,
    /// The function, `/body` for each loop around.
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
    /// The source text of everything it computes.
    spans: BTreeSet<Span>,
    /// The ops it computes.
    inside: Vec<String>,
    /// The names of its ops with their source text, for what rules made.
    ops: BTreeSet<(&'static str, Option<Span>)>,
}

/// All of a model's kernels.
pub struct Story<'a> {
    /// A row a step.
    pub rows: Vec<Row>,
    sources: &'a Sources,
    dims: DimEnv,
    reports: Vec<egraph::Report>,
    /// What the steps of each entry's plan do: its name and condition, and operations and bytes of a run. Of a variant, where it runs.
    totals: Vec<(String, f64, f64)>,
    /// For each node as written: its function, source text, how often it runs and what it does.
    before: Vec<(String, Option<Span>, i64, Job)>,
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
    let mut story =
        Story { rows: Vec::new(), sources, dims: dims.clone(), reports: Vec::new(), totals: Vec::new(), before: Vec::new() };
    for (func, entry) in module.funcs.iter().zip(&lowered.entries) {
        let (flops, bytes) = total(&entry.steps, &entry.buffers, dims);
        story.totals.push((func.name.clone(), flops, bytes));
    }
    let kernel = |k: usize| lowered.kernels[k].name.clone();
    for func in &module.funcs {
        each_body(func, &func.name, &mut Vec::new(), 1, &mut |body, name, loops, times| {
            let grouping = group::group(body, pipeline::lowering(options));
            for (id, node) in
                body.nodes.iter().filter(|(id, n)| grouping.root[id.0 as usize] && !matches!(n.op, Op::Repeat(_) | Op::Arg(_)))
            {
                let launched = lowered.launched.iter().filter(|l| l.func == func.name && l.loops == loops && l.node == id);
                let symbols: BTreeSet<String> = launched.map(|l| kernel(l.kernel)).collect();
                let Some(job) = work(body, &grouping, id).at(dims) else { continue };
                let members = members(body, &grouping, id);
                let spans = members.iter().filter_map(|m| body.nodes[*m].origin).collect();
                let named = members.iter().map(|m| (body.nodes[*m].op.name(), body.nodes[*m].origin)).collect();
                let inside = members.iter().filter(|m| **m != id).map(|m| &body.nodes[*m].op);
                story.rows.push(Row {
                    number: story.rows.len() + 1,
                    func: name.into(),
                    op: label(&node.op),
                    symbols: symbols.into_iter().collect(),
                    times,
                    estimate: model.time(&job),
                    measured: model.measured(&job),
                    job,
                    spans,
                    inside: inside.filter(|op| !group::is_layout(op)).map(label).collect(),
                    ops: named,
                });
            }
        });
    }
    if proofs {
        let plain = Options { no_optimize: true, ..options.clone() };
        let (written, _) = pipeline::middle(program, &plain)?;
        story.before = before(&written, dims);
        if !options.no_optimize {
            story.reports = buckets::optimize_explained(&written, options).1;
        }
    }
    Ok(story)
}

/// Operations and bytes of steps, turns of loops counted.
fn total(steps: &[Step], buffers: &[library::Buffer], dims: &DimEnv) -> (f64, f64) {
    let one = |s: &Step| match s {
        Step::Loop { count, body, .. } => {
            let (flops, bytes) = total(body, buffers, dims);
            (*count as f64 * flops, *count as f64 * bytes)
        }
        s => s.job(buffers, dims).map_or((0.0, 0.0), |j| (j.flops(), j.bytes())),
    };
    steps.iter().map(one).fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1))
}

/// Visits a function and the bodies of its loops: the body, its name, the loops around, how often it runs.
fn each_body(func: &Func, name: &str, loops: &mut Vec<NodeId>, times: i64, visit: &mut dyn FnMut(&Func, &str, &[NodeId], i64)) {
    visit(func, name, loops, times);
    for (id, node) in func.nodes.iter() {
        if let Op::Repeat(r) = &node.op {
            loops.push(id);
            each_body(&r.body, &format!("{name}/body"), loops, times * r.count, visit);
            loops.pop();
        }
    }
}

fn work(func: &Func, grouping: &Grouping, id: NodeId) -> Work {
    let node = &func.nodes[id];
    match &node.op {
        Op::Contract(_)
        | Op::GroupedContract { .. }
        | Op::GroupedOuter
        | Op::Attend(_)
        | Op::AttendGrad(_)
        | Op::TopK(_)
        | Op::Cumsum { .. }
        | Op::ScatterAdd { .. }
        | Op::Route { .. }
        | Op::Fused(_) => {
            let operands: Vec<&TensorType> = node.inputs.iter().map(|v| func.ty(*v)).collect();
            cost::work(&node.op, &operands, &node.types)
        }
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
fn before(module: &Module, dims: &DimEnv) -> Vec<(String, Option<Span>, i64, Job)> {
    let mut out = Vec::new();
    for func in &module.funcs {
        each_body(func, &func.name, &mut Vec::new(), 1, &mut |body, name, _, times| {
            for node in body
                .nodes
                .values()
                .filter(|n| !matches!(n.op, Op::Arg(_) | Op::Const(..) | Op::Repeat(_)) && !group::is_layout(&n.op))
            {
                let operands: Vec<&TensorType> = node.inputs.iter().map(|v| body.ty(*v)).collect();
                if let Some(job) = cost::work(&node.op, &operands, &node.types).at(dims) {
                    out.push((name.to_string(), node.origin, times, job));
                }
            }
        });
    }
    out
}

fn us(ns: f64) -> String {
    format!("{:.1}", ns / 1e3)
}

fn place(sources: &Sources, span: Span) -> (String, usize) {
    (sources.get(span.file).name.to_string(), sources.line_col(span).0)
}

/// The table of all kernels. # Units: µs of one run of the step; Mops and KiB of one run.
pub fn table(story: &Story) -> String {
    let mut out = format!("dims {}\n", pipeline::shown(&story.dims));
    let head = ["#", "function", "op", "kernel", "times", "estimated µs", "measured µs", "Mops", "KiB", "source"];
    let mut lines: Vec<Vec<String>> = vec![head.map(String::from).to_vec()];
    for r in &story.rows {
        let source = r.spans.iter().next().map_or(String::new(), |s| {
            let (file, line) = place(story.sources, *s);
            format!("{file}:{line}")
        });
        let kernel = if r.symbols.is_empty() { "library".into() } else { r.symbols.join(" ") };
        lines.push(vec![
            r.number.to_string(),
            r.func.clone(),
            r.op.clone(),
            kernel,
            r.times.to_string(),
            us(r.estimate),
            r.measured.map_or("-".into(), us),
            format!("{:.2}", r.job.flops() / 1e6),
            format!("{:.0}", r.job.bytes() / 1024.0),
            source,
        ]);
    }
    let width: Vec<usize> = (0..head.len()).map(|i| lines.iter().map(|l| l[i].chars().count()).max().unwrap_or(0)).collect();
    for line in &lines {
        let cells: Vec<String> = line
            .iter()
            .enumerate()
            .map(|(i, cell)| {
                let room = " ".repeat(width[i] - cell.chars().count());
                // Numbers stand to the right.
                if (4..9).contains(&i) || i == 0 { format!("{room}{cell}") } else { format!("{cell}{room}") }
            })
            .collect();
        let _ = writeln!(out, "{}", cells.join("  ").trim_end());
    }
    let total: f64 = story.rows.iter().map(|r| r.estimate * r.times as f64).sum();
    for (name, flops, bytes) in &story.totals {
        let _ = writeln!(out, "plan {name}: {:.2} Mops, {:.1} MiB", flops / 1e6, bytes / f64::from(1 << 20));
    }
    let _ = writeln!(out, "{} steps; all functions once: {} µs estimated", story.rows.len(), us(total));
    out
}

/// Everything about one kernel.
pub fn describe(story: &Story, r: &Row) -> String {
    let kernel = if r.symbols.is_empty() { "a product of the device's library".into() } else { r.symbols.join(", ") };
    let mut out = format!("{} in {}: {} [{kernel}]\n", r.number, r.func, r.op);
    if !r.inside.is_empty() {
        let mut count: BTreeMap<&str, usize> = BTreeMap::new();
        r.inside.iter().for_each(|op| *count.entry(op).or_default() += 1);
        let all: Vec<String> = count.iter().map(|(op, n)| if *n > 1 { format!("{op} ×{n}") } else { (*op).into() }).collect();
        let _ = writeln!(out, "  with {}", all.join(", "));
    }
    let _ = writeln!(out, "  runs {} times for {}: {}", r.times, pipeline::shown(&story.dims), tuning::show(&r.job));
    let measured = r.measured.map_or("not measured".into(), |ns| format!("{} µs measured", us(ns)));
    let _ = writeln!(out, "  {} µs estimated, {measured}", us(r.estimate));
    let _ = writeln!(out, "source");
    let lines: BTreeSet<(String, usize)> = r.spans.iter().map(|s| place(story.sources, *s)).collect();
    for (file, line) in &lines {
        let text = r.spans.iter().find(|s| place(story.sources, **s) == (file.clone(), *line));
        let text = text.and_then(|s| story.sources.get(s.file).text.lines().nth(line - 1)).unwrap_or("").trim();
        let _ = writeln!(out, "  {file}:{line}: {text}");
    }
    let own: Vec<&egraph::Report> = story.reports.iter().filter(|x| x.func == r.func).collect();
    let _ = writeln!(out, "rules");
    let made: Vec<&egraph::Step> = own.iter().flat_map(|x| &x.chosen).filter(|s| r.ops.contains(&(s.op, s.origin))).collect();
    if made.is_empty() {
        let _ = writeln!(out, "  none: as written");
    }
    let mut said = BTreeSet::new();
    for s in made {
        let proof = if s.proof.is_empty() { "made on the way to another".into() } else { s.proof.join(", then ") };
        if said.insert((s.op, s.rule, proof.clone())) {
            let _ = writeln!(out, "  {} by {}; proof: {proof}", s.op, s.rule);
        }
    }
    let _ = writeln!(out, "alternatives, by the cost of the whole function");
    let mut others: Vec<(f64, String)> = Vec::new();
    for x in &own {
        for a in x.alternatives.iter().filter(|a| a.origin.is_some_and(|o| r.spans.contains(&o))) {
            others.push((a.cost - x.cost.1, format!("{} {}", a.op, a.rule.map_or("as written".into(), |r| format!("by {r}")))));
        }
    }
    others.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.cmp(&b.1)));
    others.dedup();
    if others.is_empty() {
        let _ = writeln!(out, "  none");
    }
    for (more, what) in others.iter().take(8) {
        let _ = writeln!(out, "  {what}: {}{} µs", if *more < 0.0 { "−" } else { "+" }, us(more.abs()));
    }
    let before: Vec<&Job> = story
        .before
        .iter()
        .filter(|(f, o, ..)| *f == r.func.split('@').next().unwrap_or("") && o.is_some_and(|o| r.spans.contains(&o)))
        .map(|(.., j)| j)
        .collect();
    let sum = |f: fn(&Job) -> f64| before.iter().map(|j| f(j)).sum::<f64>();
    let _ = writeln!(
        out,
        "before, an op a step: {:.3} Mops, {:.1} KiB in {} ops; now: {:.3} Mops, {:.1} KiB",
        sum(Job::flops) / 1e6,
        sum(Job::bytes) / 1024.0,
        before.len(),
        r.job.flops() / 1e6,
        r.job.bytes() / 1024.0
    );
    out
}
