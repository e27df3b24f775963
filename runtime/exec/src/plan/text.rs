//! The text of plans: printed, read back, and checked on its own.

use super::{Plan, shown};
use base::DimEnv;
use device::memory::ALIGNMENT;
use library::Entry;
use std::fmt;

/// A plan with what its text says besides: the entry's name, and what each buffer is to the caller.
#[derive(Clone, Debug, PartialEq)]
pub struct Described {
    /// The entry's name.
    pub entry: String,
    /// The plan.
    pub plan: Plan,
    /// Whether each buffer is the caller's.
    pub external: Vec<bool>,
    /// What lies in each buffer, if it is an argument or output: `input tokens`.
    pub port: Vec<Option<String>>,
}

/// What the text of a plan says.
pub fn describe(entry: &Entry, plan: &Plan) -> Described {
    let port = |i: usize| {
        let port = entry.args.iter().chain(&entry.outputs).find(|p| p.buffer == i)?;
        Some(format!("{} {}", format!("{:?}", port.role).to_lowercase(), port.name))
    };
    Described {
        entry: entry.name.clone(),
        plan: plan.clone(),
        external: entry.buffers.iter().map(|b| b.external).collect(),
        port: (0..entry.buffers.len()).map(port).collect(),
    }
}

/// The text of a plan: dims, the arena, and of each buffer its size, place, life and what it is to the caller.
pub fn print(entry: &Entry, plan: &Plan) -> String {
    describe(entry, plan).to_string()
}

const COLUMNS: &str = "  buffer        bytes       offset  life";

impl fmt::Display for Described {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Described { entry, plan, .. } = self;
        writeln!(f, "plan {entry}({}) arena {} bytes\n{COLUMNS}", shown(&plan.dims), plan.arena_bytes)?;
        for (i, bytes) in plan.bytes.iter().enumerate() {
            let place = match plan.offset[i] {
                Some(at) => at.to_string(),
                None if self.external[i] => "caller".into(),
                None => "unused".into(),
            };
            let life = plan.life[i].map_or("never".into(), |(from, to)| format!("{from}..={to}"));
            let port = self.port[i].as_ref().map_or(String::new(), |p| format!("  {p}"));
            writeln!(f, "  {i:>6} {bytes:>12} {place:>12}  {life}{port}")?;
        }
        Ok(())
    }
}

/// Reads plans as `Display` prints them, one after another.
///
/// # Errors
/// The first line that is none of a plan's, with its number.
pub fn parse(text: &str) -> Result<Vec<Described>, String> {
    let mut plans: Vec<Described> = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let wrong = |why: &str| format!("{}: {why}: {line}", i + 1);
        if line.starts_with("plan ") {
            plans.push(head(line).ok_or_else(|| wrong("no head of a plan"))?);
        } else if line != COLUMNS && !line.trim().is_empty() {
            let plan = plans.last_mut().ok_or_else(|| wrong("a buffer before its plan"))?;
            buffer(line, plan).ok_or_else(|| wrong("no buffer of a plan, or not the next one"))?;
        }
    }
    if plans.is_empty() { Err("1: there is no plan".into()) } else { Ok(plans) }
}

/// `plan forward(B = 2, T = 4) arena 1024 bytes`.
fn head(line: &str) -> Option<Described> {
    let (entry, rest) = line.strip_prefix("plan ")?.split_once('(')?;
    let (dims, rest) = rest.split_once(") arena ")?;
    let pair = |d: &str| d.split_once(" = ").and_then(|(n, v)| Some((n.into(), v.parse().ok()?)));
    let dims: DimEnv = dims.split(", ").filter(|d| !d.is_empty()).map(pair).collect::<Option<_>>()?;
    let arena_bytes = rest.strip_suffix(" bytes")?.parse().ok()?;
    let plan = Plan { dims, bytes: Vec::new(), offset: Vec::new(), life: Vec::new(), arena_bytes };
    Some(Described { entry: entry.into(), plan, external: Vec::new(), port: Vec::new() })
}

/// `2 128 caller never  state balance`.
fn buffer(line: &str, to: &mut Described) -> Option<()> {
    let mut words = line.split_whitespace();
    let index: usize = words.next()?.parse().ok()?;
    let bytes = words.next()?.parse().ok()?;
    let (offset, external) = match words.next()? {
        "caller" => (None, true),
        "unused" => (None, false),
        at => (Some(at.parse().ok()?), false),
    };
    let life = match words.next()? {
        "never" => None,
        range => range.split_once("..=").and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?))).map(Some)?,
    };
    let port = words.collect::<Vec<_>>().join(" ");
    if index != to.plan.bytes.len() {
        return None;
    }
    to.plan.bytes.push(bytes);
    to.plan.offset.push(offset);
    to.plan.life.push(life);
    to.external.push(external);
    to.port.push(Some(port).filter(|p| !p.is_empty()));
    Some(())
}

/// What contradicts itself: places outside the arena or not aligned, buffers that share bytes while both live, an arena larger than needed.
pub fn verify(plan: &Plan) -> Vec<String> {
    let mut out = Vec::new();
    let mut placed: Vec<(usize, usize, usize, (usize, usize))> = Vec::new();
    for (i, offset) in plan.offset.iter().enumerate() {
        let Some(at) = *offset else { continue };
        let Some(life) = plan.life[i] else {
            out.push(format!("buffer {i} has a place and never lives"));
            continue;
        };
        if life.0 > life.1 {
            out.push(format!("buffer {i} ends at step {} before it begins at {}", life.1, life.0));
        }
        if !at.is_multiple_of(ALIGNMENT) {
            out.push(format!("buffer {i} at {at} is not aligned to {ALIGNMENT} bytes"));
        }
        placed.push((i, at, at.saturating_add(plan.bytes[i]), life));
    }
    for (n, (i, at, end, life)) in placed.iter().enumerate() {
        for (j, other_at, other_end, other_life) in &placed[..n] {
            let bytes = at < other_end && other_at < end && at < end && other_at < other_end;
            if bytes && life.0 <= other_life.1 && other_life.0 <= life.1 {
                let steps = life.0.max(other_life.0)..=life.1.min(other_life.1);
                out.push(format!("buffers {j} and {i} share bytes from {} in steps {steps:?}", at.max(other_at)));
            }
        }
    }
    let needed = placed.iter().map(|(_, _, end, _)| end.next_multiple_of(ALIGNMENT)).max().unwrap_or(0);
    if needed != plan.arena_bytes {
        out.push(format!("the arena has {} bytes, {needed} are needed", plan.arena_bytes));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The plan that docs/ir/plan.md shows; `session::tests` holds it against the planner.
    fn page() -> String {
        let page = include_str!("../../../../docs/ir/plan.md");
        let begin = page.find("plan forward(").expect("the page shows a plan");
        page[begin..].split("```").next().expect("a fence ends it").into()
    }

    #[test]
    fn plans_read_back() {
        let text = page() + "plan grad() arena 0 bytes\n" + COLUMNS + "\n       0            0       unused  never\n";
        let plans = parse(&text).expect("it reads");
        assert_eq!(plans.iter().map(Described::to_string).collect::<String>(), text);
        assert_eq!((plans.len(), plans[0].plan.dims["T"], plans[1].plan.dims.len()), (2, 4, 0));
        assert_eq!(plans[0].port[1].as_deref(), Some("param layers.*.bias"));
        assert!(plans.iter().all(|p| verify(&p.plan).is_empty()));
    }

    #[test]
    fn what_is_no_plan_is_told_by_its_line() {
        let good = page();
        for (from, to, want) in [
            ("plan forward(", "a plan forward(", "1: a buffer before its plan"),
            (" = 2", " = two", "1: no head of a plan"),
            (" bytes\n", "\n", "1: no head of a plan"),
            ("       1   ", "       2   ", "4: no buffer of a plan, or not the next one"),
            ("caller", "callers", "3: no buffer of a plan"),
            ("1..=1", "1..1", "3: no buffer of a plan"),
        ] {
            assert!(good.contains(from), "{from}");
            let error = parse(&good.replacen(from, to, 1)).expect_err(to);
            assert!(error.starts_with(want), "{to}: {error}");
        }
        assert!(parse("").is_err());
    }

    #[test]
    fn violations_are_all_found() {
        let with = |places: &[(usize, usize, (usize, usize))], arena_bytes| {
            let plan = Plan {
                dims: DimEnv::new(),
                bytes: places.iter().map(|p| p.0).collect(),
                offset: places.iter().map(|p| Some(p.1)).collect(),
                life: places.iter().map(|p| Some(p.2)).collect(),
                arena_bytes,
            };
            verify(&plan).join("; ")
        };
        assert_eq!(with(&[(64, 0, (1, 2)), (64, 0, (3, 4)), (64, 64, (2, 3))], 128), "");
        assert_eq!(with(&[(64, 0, (1, 3)), (65, 0, (3, 4))], 128), "buffers 0 and 1 share bytes from 0 in steps 3..=3");
        assert_eq!(with(&[(64, 0, (1, 2)), (0, 0, (1, 2))], 64), "", "nothing shares no bytes");
        assert_eq!(
            with(&[(8, 32, (2, 1))], 64),
            "buffer 0 ends at step 1 before it begins at 2; buffer 0 at 32 is not aligned to 64 bytes"
        );
        assert_eq!(with(&[(65, 0, (1, 1))], 64), "the arena has 64 bytes, 128 are needed");
    }
}
