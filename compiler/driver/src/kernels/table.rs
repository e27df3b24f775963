//! The table of all kernels.

use super::{Row, Story, bytes, operations, place, time};
use crate::pipeline;
use library::Job;
use std::fmt::Write;

/// A part of a run's time below which a kernel is summed up with others of its function.
const SMALL: f64 = 0.001;

/// All kernels by function, with what a run of the step takes and its share of the function's time; what takes next to nothing is counted
/// and left out unless `all` is asked for.
pub fn table(story: &Story, all: bool) -> String {
    let mut out = format!("costs at {}, {}\n", pipeline::shown(&story.dims), story.table.device);
    let total_of = |r: &Row| r.measured.unwrap_or(r.estimate) * r.times as f64;
    let mut functions: Vec<&str> = Vec::new();
    for r in &story.rows {
        let name = r.func.split('/').next().unwrap_or(&r.func);
        if !functions.contains(&name) {
            functions.push(name);
        }
    }
    let any_measured = story.rows.iter().any(|r| r.measured.is_some());
    for name in functions {
        let rows: Vec<&Row> = story.rows.iter().filter(|r| r.func.split('/').next() == Some(name)).collect();
        let total: f64 = rows.iter().map(|r| total_of(r)).sum();
        let all_of = |of: fn(&Job) -> f64| rows.iter().map(|r| r.times as f64 * of(&r.job)).sum::<f64>();
        let (flops, moved) = (operations(all_of(Job::flops)), bytes(all_of(Job::bytes)));
        let _ = writeln!(out, "\n{name}: {} steps, {}, {flops}, {moved}", rows.len(), time(total));
        let (shown, small): (Vec<&&Row>, Vec<&&Row>) = rows.iter().partition(|r| all || total_of(r) >= SMALL * total);
        let mut lines =
            vec![["#", "share", "runs", "each", "", "arithmetic", "memory", "op", "kernel", "source"].map(String::from)];
        for r in shown {
            let origin = r.members.iter().rev().find_map(|m| m.key.1);
            let source = origin.map_or(String::new(), |s| {
                let (file, line) = place(story.sources, s);
                format!("{file}:{line}")
            });
            let others = r.members.iter().filter(|m| !m.is_view).count().saturating_sub(1);
            lines.push([
                r.number.to_string(),
                format!("{:.1} %", 100.0 * total_of(r) / total),
                format!("{}×", r.times),
                time(r.measured.unwrap_or(r.estimate)),
                if r.measured.is_some() { "measured".into() } else { String::new() },
                operations(r.job.flops()),
                bytes(r.job.bytes()),
                if others > 0 { format!("{} +{others}", r.op) } else { r.op.clone() },
                r.shown_kernel(),
                source,
            ]);
        }
        let width: Vec<usize> =
            (0..lines[0].len()).map(|i| lines.iter().map(|l| l[i].chars().count()).max().unwrap_or(0)).collect();
        for line in &lines {
            let mut text = String::from(" ");
            for (i, cell) in line.iter().enumerate().filter(|(i, _)| *i != 4 || any_measured) {
                let room = " ".repeat(width[i] - cell.chars().count());
                // Numbers stand to the right.
                let _ = if i < 7 && i != 4 { write!(text, " {room}{cell} ") } else { write!(text, " {cell}{room} ") };
            }
            let _ = writeln!(out, "{}", text.trim_end());
        }
        if !small.is_empty() {
            let sum: f64 = small.iter().map(|r| total_of(r)).sum();
            let _ =
                writeln!(out, "  and {} of {} in all, each below {} %: --all lists them", small.len(), time(sum), 100.0 * SMALL);
        }
    }
    let _ = writeln!(out, "\n--kernel N tells where a kernel comes from, which rules made it, and what else there was");
    out
}
