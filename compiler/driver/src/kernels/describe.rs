//! Everything about one kernel.

use super::{Key, Row, Story, bytes, operations, place, time};
use crate::pipeline;
use base::Span;
use egraph::{Alternative, Report, Step, rules};
use graph::NodeId;
use library::Job;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};
use tile::{cost, cost::Model};

/// Alternatives that are told at most.
const MOST: usize = 8;

/// Its source, the rules that made it with their proofs, what it costs and what stood there before, what could stand there.
pub fn describe(story: &Story, r: &Row) -> String {
    let mut out = format!("kernel {}: {} [{}]\n", r.number, r.op, r.shown_kernel());
    let often = if r.times == 1 { "once".into() } else { format!("{} times", r.times) };
    let _ = writeln!(out, "in {}, runs {often}, costs at {}", r.func, pipeline::shown(&story.dims));
    let own: Vec<&Report> = story.reports.iter().filter(|x| x.func == r.func).collect();
    let keys: BTreeSet<&Key> = r.members.iter().filter(|m| !m.is_view).map(|m| &m.key).collect();
    let made_it = |s: &&Step| keys.contains(&(s.op, s.origin, s.types.clone()));
    let steps: Vec<&Step> = own.iter().flat_map(|x| &x.chosen).filter(made_it).collect();
    let replaced: BTreeSet<NodeId> = steps.iter().flat_map(|s| s.replaced.iter().copied()).collect();
    let before = |id: &NodeId| story.before.get(&(as_written(&r.func), *id));

    computes(&mut out, r);
    // Views compute nothing: their text is told where there is no other.
    let computed = |m: &&super::Member| !m.is_view || r.members.iter().all(|m| m.is_view);
    let spans = r.members.iter().filter(computed).filter_map(|m| m.key.1);
    source(&mut out, story, spans.chain(replaced.iter().filter_map(|id| before(id)?.0)).collect());
    why(&mut out, &steps, &|ids| ids.iter().filter(|id| before(id).is_some()).count());
    // What no rule made does what it did, as a step of its own.
    let by_rule = |key: &Key| steps.iter().any(|s| (s.op, s.origin, &s.types) == (key.0, key.1, &key.2));
    let kept = r.members.iter().filter(|m| !m.is_view && !by_rule(&m.key)).filter_map(|m| m.job.clone());
    let was: Vec<Job> = replaced.iter().filter_map(|id| Some(before(id)?.1.clone())).chain(kept).collect();
    costs(&mut out, story, r, &was);
    alternatives(&mut out, story, r, &own, &keys, &replaced);
    out
}

/// The function of which a variant is, `forward/body` of `forward@T<=16/body`.
fn as_written(func: &str) -> String {
    let (name, rest) = func.split_once('/').map_or((func, String::new()), |(n, r)| (n, format!("/{r}")));
    name.split('@').next().unwrap_or(name).to_string() + &rest
}

fn computes(out: &mut String, r: &Row) {
    let _ = write!(out, "\ncomputes {}", r.ty);
    let mut count: BTreeMap<&str, usize> = BTreeMap::new();
    r.members.iter().rev().skip(1).filter(|m| !m.is_view).for_each(|m| *count.entry(&m.label).or_default() += 1);
    let all: Vec<String> = count.iter().map(|(op, n)| if *n > 1 { format!("{op} ×{n}") } else { (*op).into() }).collect();
    let _ = match &all[..] {
        [] => writeln!(out, " by {}", r.op),
        all => writeln!(out, " by {} with {} inside", r.op, all.join(", ")),
    };
}

fn source(out: &mut String, story: &Story, spans: BTreeSet<Span>) {
    let mut lines: BTreeMap<(String, usize), &str> = BTreeMap::new();
    for span in spans {
        let (file, line) = place(story.sources, span);
        let text = story.sources.get(span.file).text.lines().nth(line - 1).unwrap_or("").trim();
        lines.insert((file, line), text);
    }
    let _ = writeln!(out, "\nsource");
    let width = lines.keys().map(|(f, l)| f.len() + l.to_string().len() + 1).max().unwrap_or(0);
    for ((file, line), text) in &lines {
        let _ = writeln!(out, "  {:<width$}  {text}", format!("{file}:{line}"));
    }
}

/// `count` is of nodes that compute something.
fn why(out: &mut String, steps: &[&Step], count: &dyn Fn(&BTreeSet<NodeId>) -> usize) {
    let _ = writeln!(out, "\nrules");
    if steps.is_empty() {
        let _ = writeln!(out, "  none: as written");
    }
    // A rule is told once, with all that it made; then proofs that go through more than the rule itself.
    let mut made: BTreeMap<&str, Vec<&&Step>> = BTreeMap::new();
    steps.iter().for_each(|s| made.entry(s.rule).or_default().push(s));
    let table = rules::all();
    for (name, steps) in made {
        let class = table.iter().find(|r| r.name == name).map_or("", |r| r.class.name());
        let _ = writeln!(out, "  {name} ({class}): {}", rules::law(name));
        let ops: BTreeSet<&str> = steps.iter().map(|s| s.op).collect();
        let old: BTreeSet<NodeId> = steps.iter().flat_map(|s| s.replaced.iter().copied()).collect();
        let ops = ops.into_iter().collect::<Vec<_>>().join(", ");
        let _ = writeln!(out, "    made {ops} in place of {}", counted(count(&old), "op"));
        let proofs: BTreeSet<String> = steps.iter().filter(|s| s.proof.len() > 1).map(|s| s.proof.join(", then ")).collect();
        for proof in proofs {
            let _ = writeln!(out, "    proof that it equals what was written: {proof}");
        }
    }
}

/// `1 op`, `2 ops`.
fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

fn costs(out: &mut String, story: &Story, r: &Row, was: &[Job]) {
    let model = Model::new(&story.table);
    let sum = |f: &dyn Fn(&Job) -> f64| was.iter().map(f).sum::<f64>();
    let measured = |ns: Option<f64>| ns.map_or("not measured".into(), time);
    let was_measured: Option<f64> = was.iter().map(|j| model.measured(j)).sum();
    let rows = [
        ("steps", was.len().to_string(), "1".into()),
        ("arithmetic", operations(sum(&Job::flops)), operations(r.job.flops())),
        ("memory traffic", bytes(sum(&Job::bytes)), bytes(r.job.bytes())),
        ("estimated", time(sum(&|j| model.time(j))), time(r.estimate)),
        ("measured", measured(was_measured), measured(r.measured)),
    ];
    let width = rows.iter().map(|x| x.1.chars().count()).max().unwrap_or(0).max(6);
    let _ = writeln!(out, "\ncost of a run      {:>width$}  {:>12}", "before", "now");
    for (what, before, now) in rows {
        let _ = writeln!(out, "  {what:<16} {before:>width$}  {now:>12}");
    }
    let _ = writeln!(out, "  the table has this as {}", tile::tuning::show(&tile::tuning::bucket(&r.job)));
}

/// What stands for the row's values elsewhere in the e-graph, and other tilings.
fn alternatives(out: &mut String, story: &Story, r: &Row, own: &[&Report], keys: &BTreeSet<&Key>, replaced: &BTreeSet<NodeId>) {
    let model = Model::new(&story.table);
    let _ = writeln!(out, "\nalternatives, by what {} would cost more at the sizes that the optimiser takes", r.func);
    let mut others: BTreeMap<String, f64> = BTreeMap::new();
    for x in own {
        let of_row = |a: &&Alternative| {
            !a.written.is_disjoint(replaced) || keys.iter().any(|k| (k.0, k.1, &k.2) == (a.instead_of, a.origin, &a.results))
        };
        for a in x.alternatives.iter().filter(of_row) {
            let operands: Vec<&base::TensorType> = a.operands.iter().collect();
            let job = cost::work(&a.op, &operands, &a.results).at(&story.dims);
            let measured =
                job.as_ref().and_then(|j| model.measured(j)).map_or(String::new(), |ns| format!(", {} measured", time(ns)));
            let alone = job.map_or(String::new(), |j| format!(": {} alone{measured}", time(model.time(&j))));
            let by = a.rule.map_or("as written".into(), |r| format!("by {r}"));
            let text = format!("{} of {}, {by}{alone}", crate::commands::viz::label(&a.op), a.results[0]);
            let least = others.entry(text).or_insert(f64::INFINITY);
            *least = least.min(a.cost - x.cost.1);
        }
    }
    let mut others: Vec<(f64, String)> = others.into_iter().map(|(text, more)| (more, text)).collect();
    others.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.cmp(&b.1)));
    if others.is_empty() {
        let _ = writeln!(out, "  no rule says that anything else computes this");
    }
    let sign = |ns: f64| if ns < -50.0 { "−" } else { "+" };
    let width = others.iter().take(MOST).map(|(more, _)| time(more.abs()).chars().count()).max().unwrap_or(0);
    for (more, what) in others.iter().take(MOST) {
        let _ = writeln!(out, "  {}{:>width$}  {what}", sign(*more), time(more.abs()));
    }
    if others.len() > MOST {
        let _ = writeln!(out, "  and {} more", others.len() - MOST);
    }
    for (problem, tiling) in &r.tilings {
        let all = story.tilings.get(problem).map_or(&[][..], |x| x);
        let other: Vec<&str> = all.iter().filter(|t| *t != tiling).map(String::as_str).collect();
        let _ = match &other[..] {
            [] => writeln!(out, "  tiling {tiling}: no other is legal"),
            other if other.len() <= MOST => writeln!(out, "  tiling {tiling}: {} would do too", other.join("; ")),
            other => writeln!(out, "  tiling {tiling}: {} and {} more would do too", other[..3].join("; "), other.len() - 3),
        };
    }
}
