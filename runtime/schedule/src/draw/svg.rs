//! A timeline: a lane a rank, a box an action. Colour is the kind, stripes are direction 1, a paler colour is a later stage of the same
//! direction; what is left hatched is idle time.

use crate::{Action, Plan, Simulated, Unit, simulate::RankTime};
use std::fmt::Write;

// The page. # Units: pixels.
const LEFT: f64 = 66.0;
const RIGHT: f64 = 92.0;
const TOP: f64 = 78.0;
/// The least width; it grows until a number fits into the smallest box, up to the most.
const WIDTH: [f64; 2] = [1500.0, 3600.0];
const LANE: f64 = 30.0;
const GAP: f64 = 6.0;
/// Lanes of a picture that can still be read; of more ranks the first are drawn.
const MOST_LANES: usize = 64;
/// A character of the boxes' font.
const CHARACTER: f64 = 5.9;

/// Kinds with their colours: told apart by lightness too, for those who do not see all hues.
const KINDS: [(&str, &str, &str); 6] = [
    ("f", "forward", "#5b8ff9"),
    ("b", "backward", "#3aa76d"),
    ("i", "backward, inputs", "#7fcf9f"),
    ("w", "backward, weights", "#f2b84b"),
    ("r", "recompute", "#b9a5e2"),
    ("u", "update", "#8a8f98"),
];

/// The picture.
pub fn svg(plan: &Plan, simulated: &Simulated, unit: &str) -> String {
    let lanes = plan.num_ranks().min(MOST_LANES);
    let end = simulated.makespan.max(f64::MIN_POSITIVE);
    let computes =
        plan.actions[..lanes].iter().zip(&simulated.tasks.nodes).flat_map(|(l, n)| l.iter().zip(n)).filter(|(a, _)| a.computes());
    let lengths =
        computes.filter_map(|(_, n)| n.map(|n| simulated.spans[n.index()])).map(|s| s.end - s.start).filter(|d| *d > 0.0);
    let shortest = lengths.fold(end, f64::min);
    let width = (LEFT + RIGHT + 3.1 * CHARACTER * end / shortest).clamp(WIDTH[0], WIDTH[1]).round();
    let scale = (width - LEFT - RIGHT) / end;
    let bottom = TOP + lanes as f64 * (LANE + GAP);
    let mut out = String::new();
    let mut put = |line: std::fmt::Arguments| writeln!(out, "{line}").expect("strings can be written");
    put(format_args!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{}" viewBox="0 0 {width} {}" font-family="Helvetica,Arial,sans-serif" font-size="12">"#,
        bottom + 48.0,
        bottom + 48.0
    ));
    put(format_args!("<style>"));
    put(format_args!(
        "text{{fill:#1f2329}} .n{{font-size:10px;text-anchor:middle;fill:#10151c}} .m{{text-anchor:middle}} .e{{text-anchor:end}} .q{{fill:#646a73}}"
    ));
    KINDS.iter().for_each(|(class, _, colour)| put(format_args!(".{class}{{fill:{colour}}}")));
    put(format_args!(
        ".box{{fill:none;stroke:#fff;stroke-width:1}} .pale{{fill:#fff;fill-opacity:.42}} .d1{{fill:url(#stripes)}} .pair{{stroke:#10151c;stroke-width:1.1;fill:none}}"
    ));
    put(format_args!("</style>"));
    put(format_args!(
        r##"<defs><pattern id="idle" width="7" height="7" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect width="7" height="7" fill="#fdeeee"/><rect width="1.4" height="7" fill="#f0a3a3"/></pattern><pattern id="stripes" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(-45)"><rect width="1.6" height="5" fill="#10151c" fill-opacity=".20"/></pattern></defs>"##
    ));
    put(format_args!(r##"<rect width="100%" height="100%" fill="#fff"/>"##));
    let idle: f64 = simulated.ranks.iter().map(RankTime::idle).sum::<f64>() / simulated.ranks.len().max(1) as f64;
    let micro = plan.num_micro * plan.placement.num_dirs();
    put(format_args!(
        r#"<text x="{LEFT}" y="24" font-size="17" font-weight="bold">{}: {} ranks, {micro} micro-batches</text>"#,
        plan.policy,
        plan.num_ranks()
    ));
    put(format_args!(
        r#"<text x="{}" y="24" font-size="15" class="e">step {}{unit_space}{unit}, idle {:.1} %</text>"#,
        width - RIGHT,
        number(simulated.makespan),
        100.0 * idle / end,
        unit_space = if unit.is_empty() { "" } else { " " },
    ));
    legend(plan, &mut put);
    for rank in 0..lanes {
        let y = TOP + rank as f64 * (LANE + GAP);
        put(format_args!(r#"<text x="{}" y="{}" class="e">rank {rank}</text>"#, LEFT - 8.0, y + LANE / 2.0 + 4.0));
        put(format_args!(r#"<rect x="{LEFT}" y="{y}" width="{}" height="{LANE}" fill="url(#idle)"/>"#, round(end * scale)));
        let list = plan.actions[rank].iter().zip(&simulated.tasks.nodes[rank]).filter(|(a, _)| a.computes());
        for (action, node) in list {
            let Some(span) = node.map(|n| simulated.spans[n.index()]).filter(|s| s.end > s.start) else { continue };
            let (x, width) = (round(LEFT + span.start * scale), round((span.end - span.start) * scale));
            draw(plan, rank, *action, [x, y, width], &mut put);
        }
        let share = 100.0 * simulated.ranks[rank].busy / end;
        put(format_args!(r#"<text x="{}" y="{}" class="q">{share:.1} % busy</text>"#, width - RIGHT + 8.0, y + LANE / 2.0 + 4.0));
    }
    put(format_args!(r##"<path d="M{LEFT} {}H{}" stroke="#8a8f98"/>"##, bottom + 2.0, round(LEFT + end * scale)));
    let step = tick(end);
    for k in 0..=(end / step) as usize {
        let x = round(LEFT + k as f64 * step * scale);
        put(format_args!(r##"<path d="M{x} {}v5" stroke="#8a8f98"/>"##, bottom + 2.0));
        put(format_args!(r#"<text x="{x}" y="{}" class="m q">{}</text>"#, bottom + 21.0, number(k as f64 * step)));
    }
    let name = if unit.is_empty() { "time, in units of the costs".to_string() } else { format!("time, {unit}") };
    put(format_args!(r#"<text x="{}" y="{}" class="m q">{name}</text>"#, (LEFT + width - RIGHT) / 2.0, bottom + 39.0));
    if lanes < plan.num_ranks() {
        put(format_args!(
            r#"<text x="{LEFT}" y="{}" class="q">the first {lanes} of {} ranks</text>"#,
            bottom + 39.0,
            plan.num_ranks()
        ));
    }
    out.push_str("</svg>\n");
    out
}

fn legend(plan: &Plan, put: &mut impl FnMut(std::fmt::Arguments)) {
    let has = |class: &str| {
        plan.actions.iter().flatten().any(|a| match *a {
            Action::Forward(_) => class == "f",
            Action::Backward(_) => class == "b",
            Action::BackwardInput(_) => class == "i",
            Action::BackwardWeight(_) => class == "w",
            Action::Pair { .. } => class == "f" || class == "b" || class == "pair",
            Action::Recompute(_) => class == "r",
            Action::Update { .. } => false,
            Action::Send(_) | Action::Receive(_) | Action::WaitSend(_) | Action::ReduceGrad { .. } => false,
        })
    };
    let mut x = LEFT;
    let mut entry = |draw: &dyn Fn(f64) -> String, name: &str| {
        put(format_args!(r#"{}<text x="{}" y="56">{name}</text>"#, draw(x), x + 32.0));
        x += 32.0 + 6.6 * name.len() as f64 + 22.0;
    };
    for (class, name, _) in KINDS.iter().filter(|(c, _, _)| has(c)) {
        entry(&|x| format!(r#"<rect x="{x}" y="44" width="26" height="16" class="{class}"/>"#), name);
    }
    if has("pair") {
        let pair = |x: f64| {
            format!(
                r#"<rect x="{x}" y="44" width="26" height="8" class="f"/><rect x="{x}" y="52" width="26" height="8" class="b"/><rect x="{x}" y="44" width="26" height="16" class="pair"/>"#
            )
        };
        entry(&pair, "forward over backward, overlapped");
    }
    if plan.placement.num_dirs() > 1 {
        let striped = |x: f64| {
            format!(
                r#"<rect x="{x}" y="44" width="26" height="16" class="f"/><rect x="{x}" y="44" width="26" height="16" class="d1"/>"#
            )
        };
        entry(&striped, "striped, 7': from the last rank to the first");
    } else if plan.num_stages() > plan.num_ranks() {
        let pale = |x: f64| {
            format!(
                r#"<rect x="{x}" y="44" width="26" height="16" class="f"/><rect x="{x}" y="44" width="26" height="16" class="pale"/>"#
            )
        };
        entry(&pale, "paler, 7': a later stage on the rank");
    }
    entry(&|x| format!(r#"<rect x="{x}" y="44" width="26" height="16" fill="url(#idle)"/>"#), "idle");
}

/// An action's box at x, y, of a width.
fn draw(plan: &Plan, rank: usize, action: Action, at: [f64; 3], put: &mut impl FnMut(std::fmt::Arguments)) {
    let [x, y, width] = at;
    let mut half = |class: &str, unit: Unit, y: f64, height: f64, size: f64| {
        put(format_args!(r#"<rect x="{x}" y="{y}" width="{width}" height="{height}" class="{class}"/>"#));
        let (striped, pale) = (unit.dir % 2 == 1, is_later(plan, rank, unit));
        for (_, over) in [(striped, "d1"), (pale, "pale")].iter().filter(|(is, _)| *is) {
            put(format_args!(r#"<rect x="{x}" y="{y}" width="{width}" height="{height}" class="{over}"/>"#));
        }
        let label = format!("{}{}", unit.micro, if striped || pale { "'" } else { "" });
        if width > CHARACTER * label.len() as f64 {
            let middle = y + height / 2.0 + size * 0.36;
            put(format_args!(
                r#"<text x="{}" y="{}" class="n" font-size="{size}">{label}</text>"#,
                round(x + width / 2.0),
                round(middle)
            ));
        }
    };
    match action {
        Action::Forward(u) => half("f", u, y, LANE, 10.0),
        Action::Backward(u) => half("b", u, y, LANE, 10.0),
        Action::BackwardInput(u) => half("i", u, y, LANE, 10.0),
        Action::BackwardWeight(u) => half("w", u, y, LANE, 10.0),
        Action::Recompute(u) => half("r", u, y, LANE, 10.0),
        Action::Pair { forward, backward } => {
            half("f", forward, y, LANE / 2.0, 10.0);
            half("b", backward, y + LANE / 2.0, LANE / 2.0, 10.0);
        }
        Action::Update { .. } => put(format_args!(r#"<rect x="{x}" y="{y}" width="{width}" height="{LANE}" class="u"/>"#)),
        Action::Send(_) | Action::Receive(_) | Action::WaitSend(_) | Action::ReduceGrad { .. } => {}
    }
    put(format_args!(r#"<rect x="{x}" y="{y}" width="{width}" height="{LANE}" class="box"/>"#));
    if matches!(action, Action::Pair { .. }) {
        put(format_args!(
            r#"<rect x="{}" y="{}" width="{}" height="{}" class="pair"/>"#,
            x + 0.8,
            y + 0.8,
            (width - 1.6).max(0.2),
            LANE - 1.6
        ));
    }
}

/// Whether the rank has an earlier stage of the same direction.
fn is_later(plan: &Plan, rank: usize, unit: Unit) -> bool {
    (0..unit.stage).any(|s| plan.placement.rank(unit.dir, s) == Some(rank))
}

/// Hundredths of a pixel are enough.
fn round(x: f64) -> f64 {
    (x * 100.0).round() / 100.0
}

/// A time with up to three digits behind the point, without zeros at the end.
fn number(x: f64) -> String {
    let text = format!("{x:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

/// Ticks at 1, 2 or 5 times a power of ten: 8 to 20 of them.
fn tick(end: f64) -> f64 {
    let power = 10f64.powf((end / 20.0).log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|k| k * power).find(|step| end / step <= 20.0).unwrap_or(power * 10.0)
}
