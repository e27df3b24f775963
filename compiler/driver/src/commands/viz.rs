//! `lode viz`: one self-contained HTML page with the graph as written and as kernels, side by side, for every function.

use super::common::{self, FAILED};
use crate::putln;
use crate::{
    cli::{MessageFormat, Viz},
    picture::{Box, Picture, escape},
    pipeline::{self, Options},
};
use base::Sources;
use graph::{Func, Module, Node, NodeId, Op, Value};
use std::collections::{BTreeMap, BTreeSet};
use tile::group;

const PAGE: &str = include_str!("../viz.html");

/// Writes the page.
pub fn run(args: &Viz, format: MessageFormat) -> u8 {
    draw(args, format).unwrap_or_else(|code| code)
}

fn draw(args: &Viz, format: MessageFormat) -> Result<u8, u8> {
    let options = Options { overrides: common::overrides(&args.model)?, locked: args.model.locked, ..Options::default() };
    let front = common::front(&args.model, &options, format)?;
    let program = front.program.as_ref().expect("checked by `front`");
    let options = common::with_lock(&front, &options)?;
    let middle = |no_optimize: bool| {
        let (module, _) =
            pipeline::middle(program, &Options { no_optimize, ..options.clone() }).map_err(|e| common::back_failed(&e))?;
        Ok::<Module, u8>(module)
    };
    let text = page(&middle(true)?, &middle(false)?, &front.sources);
    let out = args.out.clone().unwrap_or_else(|| args.model.file.with_extension("html"));
    std::fs::write(&out, text).map_err(|e| {
        eprintln!("{}: {e}", out.display());
        FAILED
    })?;
    putln!("{}", out.display());
    Ok(0)
}

/// The page of a module before and after the optimiser.
pub fn page(before: &Module, after: &Module, sources: &Sources) -> String {
    let (module_name, left, right) = (after.name.clone(), functions(before), functions(after));
    let mut lines = BTreeMap::new();
    let mut panes = [String::new(), String::new()];
    let mut choices = String::new();
    // A body that the optimiser made or removed stands against nothing.
    let names: Vec<&String> =
        left.iter().map(|(n, _)| n).chain(right.iter().map(|(n, _)| n).filter(|n| left.iter().all(|(m, _)| m != *n))).collect();
    // A layer says more than what is around the layers.
    let first = names.iter().position(|n| n.contains(" / loop")).unwrap_or(0);
    for (n, name) in names.into_iter().enumerate() {
        let selected = if n == first { " selected" } else { "" };
        choices += &format!("<option value=\"{n}\"{selected}>{}</option>", escape(name));
        let find = |of: &[(String, Func)]| of.iter().find(|(m, _)| m == name).map(|(_, f)| f.clone()).unwrap_or_default();
        let ops = nodes(&find(&left), sources, &mut lines);
        let kernels = kernels(&find(&right), sources, &mut lines);
        let count = |p: &Picture| p.boxes.iter().filter(|b| b.class != "arg").count();
        let titles = [format!("as written: {} ops", count(&ops)), format!("as run: {} steps", count(&kernels))];
        for (k, (side, picture)) in [("before", ops), ("after", kernels)].into_iter().enumerate() {
            let title = &titles[k];
            panes[k] += &format!(
                "<div class=\"pane\" data-side=\"{side}\" data-n=\"{n}\" data-title=\"{title}\">\n{}</div>\n",
                picture.svg()
            );
        }
    }
    let table = serde_json::to_string(&lines).expect("strings can be written").replace("</", "<\\/");
    let (name, [before, after]) = (&module_name, panes);
    PAGE.replace("TITLE", &escape(&format!("lode: {name}")))
        .replace("OPTIONS", &choices)
        .replace("SOURCES", &table)
        .replace("BEFORE", &before)
        .replace("AFTER", &after)
}

/// The functions of a module, and after each the bodies of its loops.
fn functions(module: &Module) -> Vec<(String, Func)> {
    fn visit(name: String, func: &Func, out: &mut Vec<(String, Func)>) {
        out.push((name.clone(), func.clone()));
        let bodies: Vec<(&Node, &Func)> = func.nodes.values().filter_map(|n| Some((n, n.op.body()?))).collect();
        for (k, (node, body)) in bodies.iter().enumerate() {
            let which = if bodies.len() == 1 { String::new() } else { format!(" {}", k + 1) };
            // An argument of the body is called what the function calls it.
            let mut body = Func::clone(body);
            for (arg, v) in body.args.iter_mut().zip(&node.inputs) {
                if let Op::Arg(i) = func.nodes[v.node].op {
                    arg.name.clone_from(&func.args[i as usize].name);
                }
            }
            visit(format!("{name} / loop{which}"), &body, out);
        }
    }
    let mut out = Vec::new();
    module.funcs.iter().for_each(|f| visit(f.name.clone(), f, &mut out));
    out
}

/// The source line of a node, noted in the table of lines.
fn origin(node: &Node, sources: &Sources, lines: &mut BTreeMap<String, String>) -> Option<String> {
    let span = node.origin?;
    let file = sources.get(span.file);
    let line = sources.line_col(span).0;
    let name = format!("{}:{line}", file.name);
    let text = file.text.lines().nth(line - 1).unwrap_or("").trim().to_string();
    lines.insert(name.clone(), text);
    Some(name)
}

/// What an op is, in a few words.
pub fn label(op: &Op) -> String {
    match op {
        Op::Map(f) => f.name().into(),
        Op::Contract(c) => format!("product {c}"),
        Op::Attend(a) => format!("attend {}", a.domain),
        Op::AttendGrad(a) => format!("attend_grad {}", a.domain),
        Op::Reduce(f, _) => format!("reduce {}", f.name()),
        Op::Repeat(r) => format!("repeat {}", r.count),
        Op::Fused(f) => format!("fused {}", f.form.name()),
        Op::Cast(d) => format!("cast {d}"),
        op => op.name().into(),
    }
}

fn class(op: &Op) -> &'static str {
    match op {
        Op::Arg(_) => "arg",
        Op::Contract(_) | Op::GroupedContract { .. } | Op::GroupedOuter => "product",
        Op::Repeat(_) => "loop",
        op if group::is_layout(op) => "layout",
        _ => "op",
    }
}

/// Constants are drawn inside what uses them.
fn is_drawn(op: &Op) -> bool {
    !matches!(op, Op::Const(..) | Op::Extent(..) | Op::Iota(_))
}

fn argument(func: &Func, i: u32) -> Box {
    let i = i as usize;
    Box { lines: vec![func.args[i].name.clone(), func.arg_type(i).to_string()], class: "arg", ..Box::default() }
}

/// A box for each op.
fn nodes(func: &Func, sources: &Sources, lines: &mut BTreeMap<String, String>) -> Picture {
    let mut number: BTreeMap<NodeId, usize> = BTreeMap::new();
    let mut boxes = Vec::new();
    for (id, node) in func.nodes.iter().filter(|(_, n)| is_drawn(&n.op)) {
        number.insert(id, boxes.len());
        boxes.push(match node.op {
            Op::Arg(i) => argument(func, i),
            _ => Box {
                lines: vec![label(&node.op), node.types[0].to_string()],
                class: class(&node.op),
                origin: origin(node, sources, lines),
                reads: reads(node.inputs.iter().filter_map(|v| number.get(&v.node).copied())),
            },
        });
    }
    folded(Picture { boxes })
}

/// A box for each step: what it computes, and the ops inside it.
fn kernels(func: &Func, sources: &Sources, lines: &mut BTreeMap<String, String>) -> Picture {
    let grouping = group::group(func, tile::Options::default());
    let mut number: BTreeMap<NodeId, usize> = BTreeMap::new();
    let mut boxes = Vec::new();
    for (id, node) in func.nodes.iter() {
        if let Op::Arg(i) = node.op {
            number.insert(id, boxes.len());
            boxes.push(argument(func, i));
        }
        if !grouping.root[id.0 as usize] {
            continue;
        }
        let mut inside = Vec::new();
        members(func, &grouping, id, &mut BTreeSet::new(), &mut inside);
        let mut text = vec![format!("{} {}", label(&node.op), node.types[0])];
        // Six names a line.
        text.extend(inside.chunks(6).map(|c| format!("  {}", c.join(" "))));
        let stored = grouping.reads[id.0 as usize].iter().filter_map(|v: &Value| number.get(&v.node).copied());
        let class = if inside.is_empty() { class(&node.op) } else { "kernel" };
        let class = if class == "op" { "kernel" } else { class };
        let read = reads(stored);
        number.insert(id, boxes.len());
        boxes.push(Box { lines: text, class, origin: origin(node, sources, lines), reads: read });
    }
    folded(Picture { boxes })
}

/// The ops that a step computes besides its root, in order.
fn members(func: &Func, grouping: &group::Grouping, at: NodeId, seen: &mut BTreeSet<NodeId>, out: &mut Vec<String>) {
    for v in &func.nodes[at].inputs {
        let op = &func.nodes[v.node].op;
        if grouping.root[v.node.0 as usize] || matches!(op, Op::Arg(_)) || !seen.insert(v.node) {
            continue;
        }
        members(func, grouping, v.node, seen, out);
        if is_drawn(op) && !group::is_layout(op) {
            out.push(label(op));
        }
    }
}

fn reads(boxes: impl Iterator<Item = usize>) -> Vec<usize> {
    boxes.collect::<BTreeSet<_>>().into_iter().collect()
}

/// A box that alone reads so many arguments names them; of more it says how many.
const NAMED: usize = 4;

/// Arguments that one box alone reads are told in that box; what nothing reads is left out.
fn folded(mut picture: Picture) -> Picture {
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); picture.boxes.len()];
    for (i, b) in picture.boxes.iter().enumerate() {
        b.reads.iter().for_each(|r| readers[*r].push(i));
    }
    let is_own = |i: usize| picture.boxes[i].class == "arg" && readers[i].len() == 1;
    let told: Vec<Vec<String>> = picture
        .boxes
        .iter()
        .map(|b| b.reads.iter().filter(|r| is_own(**r)).map(|r| picture.boxes[*r].lines.join(" ")).collect())
        .collect();
    let kept: Vec<usize> =
        (0..picture.boxes.len()).filter(|i| picture.boxes[*i].class != "arg" || readers[*i].len() > 1).collect();
    let new: BTreeMap<usize, usize> = kept.iter().enumerate().map(|(new, old)| (*old, new)).collect();
    for (b, own) in picture.boxes.iter_mut().zip(told) {
        if own.len() > NAMED {
            b.lines.push(format!("\u{25b8} {} arguments of its own", own.len()));
        } else {
            b.lines.extend(own.into_iter().map(|a| format!("\u{25b8} {a}")));
        }
        b.reads = b.reads.iter().filter_map(|r| new.get(r).copied()).collect();
    }
    Picture { boxes: kept.into_iter().map(|i| picture.boxes[i].clone()).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_every_function_and_both_sides() {
        let text = "use std.rmsnorm\ndims B\nconfig { d = 8 }\nmodel m(x: [B, d]) -> [B, d] {\n  repeat 2 { x = x + rmsnorm(x) @ param w: [d, d] }\n  x\n}\n";
        let front = pipeline::front("m.lode", text, &mut |_| None, &Options::default());
        let program = front.program.as_ref().expect("it checks");
        let module = |no_optimize| {
            pipeline::middle(program, &Options { no_optimize, ..Options::default() }).unwrap_or_else(|e| panic!("{e:?}")).0
        };
        let page = page(&module(true), &module(false), &front.sources);
        for part in [">forward</option>", ">forward / loop</option>", "m.lode:5", "rmsnorm(x) @ param w"] {
            assert!(page.contains(part), "no {part}");
        }
        assert_eq!(page.matches("class=\"pane\"").count(), 4);
        for placeholder in ["TITLE", "OPTIONS", "SOURCES", "BEFORE", "AFTER"] {
            assert!(!page.contains(placeholder), "{placeholder}");
        }
        // What is loaded from elsewhere would not be there without a network.
        assert!(!page.contains("src=") && !page.contains("href="), "the page is not self-contained");
    }
}
