//! The plan of an entry for given run-time dims: every extent a number, every buffer a place, all memory known before the run.
//!
//! A buffer of the arena lives from the first step that touches it to the last. One that is only touched inside a loop's body lives
//! from turn to turn anew; one that is touched outside as well lives through the whole loop. Places are found largest first, at the
//! lowest offset free over that time.

mod text;

pub use text::{Described, describe, parse, print, verify};

use crate::ExecError;
use base::{Dim, DimEnv};
use library::{Entry, Exchange, GroupedGemm, Role, Step, View};
use std::collections::BTreeMap;

/// Sizes and places.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The dims it is for.
    pub dims: DimEnv,
    /// Size of each buffer. # Units: bytes.
    pub bytes: Vec<usize>,
    /// The place of each arena buffer. # Units: bytes; `None` for the caller's buffers.
    pub offset: Vec<Option<usize>>,
    /// First and last step of each buffer that is touched; a loop counts as one step at its begin, one at its end, and its body's.
    pub life: Vec<Option<(usize, usize)>>,
    /// The arena's size. # Units: bytes.
    pub arena_bytes: usize,
}

/// More than any machine addresses. # Units: bytes. # Source: x86-64 has 47 bits of user addresses.
const MAX_BYTES: usize = 1 << 47;

/// The value of an extent that `plan` has seen.
pub fn size(d: &Dim, dims: &DimEnv) -> i64 {
    d.eval(dims).unwrap_or_else(|| base::bug!("{d} has no value"))
}

/// Plans `entry` for `dims`.
///
/// # Errors
/// E0702 if a slice, padding or extent does not fit these dims.
pub fn plan(entry: &Entry, dims: &DimEnv) -> Result<Plan, ExecError> {
    place(entry, dims, true)
}

/// Plans `entry` for `dims` with memory of its own for every buffer.
///
/// # Errors
/// As `plan`.
pub fn plan_apart(entry: &Entry, dims: &DimEnv) -> Result<Plan, ExecError> {
    place(entry, dims, false)
}

/// Whether `entry` takes these dims.
///
/// # Errors
/// As `plan`.
pub fn fits(entry: &Entry, dims: &DimEnv) -> Result<(), ExecError> {
    if let Some(d) = extents(entry).into_iter().find(|d| d.eval(dims).is_none()) {
        return Err(ExecError::NoExtent { what: d.to_string(), dims: shown(dims) });
    }
    for (d, what) in &entry.constraints {
        let value = size(d, dims);
        if value < 0 {
            return Err(ExecError::Extent { what: what.clone(), value, dims: shown(dims) });
        }
    }
    Ok(())
}

fn shown(dims: &DimEnv) -> String {
    dims.iter().map(|(n, v)| format!("{n} = {v}")).collect::<Vec<_>>().join(", ")
}

fn place(entry: &Entry, dims: &DimEnv, share: bool) -> Result<Plan, ExecError> {
    fits(entry, dims)?;
    let mut bytes = Vec::new();
    for b in &entry.buffers {
        let elems = size(&b.elems, dims);
        let n = usize::try_from(elems).ok().and_then(|n| n.checked_mul(b.dtype.bytes())).filter(|n| *n <= MAX_BYTES);
        let what = || format!("a buffer of {} elements", b.elems);
        bytes.push(n.ok_or_else(|| ExecError::Extent { what: what(), value: elems, dims: shown(dims) })?);
    }
    let mut lives: BTreeMap<usize, (usize, usize)> = BTreeMap::new();
    let mut clock = 0;
    let counts = uses(&entry.steps);
    walk(&entry.steps, &counts, &mut clock, &mut lives);
    let mut order: Vec<usize> = lives.keys().copied().filter(|b| !entry.buffers[*b].external).collect();
    order.sort_by_key(|b| (std::cmp::Reverse(bytes[*b]), *b));
    let mut offset = vec![None; bytes.len()];
    let mut placed: Vec<(usize, usize, usize, usize)> = Vec::new();
    let mut arena_bytes = 0;
    for b in order {
        let (from, to) = lives[&b];
        let len = bytes[b].next_multiple_of(device::memory::ALIGNMENT);
        let overlaps = |f: usize, t: usize| !share || (f <= to && from <= t);
        let mut busy: Vec<(usize, usize)> =
            placed.iter().filter(|(_, _, f, t)| overlaps(*f, *t)).map(|(start, end, _, _)| (*start, *end)).collect();
        busy.sort_unstable();
        let mut at = 0;
        for (start, end) in busy {
            if start >= at + len {
                break;
            }
            at = at.max(end);
        }
        placed.push((at, at + len, from, to));
        offset[b] = Some(at);
        arena_bytes = arena_bytes.max(at + len);
    }
    let life = (0..bytes.len()).map(|b| lives.get(&b).copied()).collect();
    Ok(Plan { dims: dims.clone(), bytes, offset, life, arena_bytes })
}

/// Every extent of an entry.
fn extents(entry: &Entry) -> Vec<&Dim> {
    let mut out: Vec<&Dim> = entry.constraints.iter().map(|(d, _)| d).collect();
    out.extend(entry.buffers.iter().map(|b| &b.elems));
    out.extend(entry.args.iter().chain(&entry.outputs).flat_map(|p| &p.shape));
    step_extents(&entry.steps, &mut out);
    out
}

fn step_extents<'e>(steps: &'e [Step], out: &mut Vec<&'e Dim>) {
    for s in steps {
        out.extend(views(s).into_iter().flat_map(|v| v.turn.iter().chain([&v.offset])));
        match s {
            Step::Launch { dims, grid, work, .. } => out.extend(dims.iter().chain([grid]).chain(&work.shape)),
            Step::Gemm(g) => {
                out.extend(g.strides.iter().chain([&g.m, &g.n, &g.k]));
                out.extend(g.batch.iter().flat_map(|(n, strides)| strides.iter().chain([n])));
            }
            Step::GroupedGemm(GroupedGemm::Rows { extents, .. } | GroupedGemm::Outer { extents, .. }) => out.extend(extents),
            Step::Exchange(Exchange::Offsets { .. }) => {}
            Step::Exchange(Exchange::Rows { extents, .. }) => out.extend(extents),
            Step::Copy { elems, .. } | Step::Zero { elems, .. } => out.push(elems),
            Step::Loop { body, .. } => step_extents(body, out),
        }
    }
}

/// How often each buffer is named.
fn uses(steps: &[Step]) -> BTreeMap<usize, usize> {
    let mut out = BTreeMap::new();
    for s in steps {
        match s {
            Step::Loop { body, .. } => uses(body).into_iter().for_each(|(b, n)| *out.entry(b).or_insert(0) += n),
            s => views(s).iter().for_each(|v| *out.entry(v.buffer).or_insert(0) += 1),
        }
    }
    out
}

/// First and last time each buffer is touched.
fn walk(steps: &[Step], total: &BTreeMap<usize, usize>, clock: &mut usize, lives: &mut BTreeMap<usize, (usize, usize)>) {
    let touch = |lives: &mut BTreeMap<usize, (usize, usize)>, b: usize, from: usize, to: usize| {
        let life = lives.entry(b).or_insert((from, to));
        *life = (life.0.min(from), life.1.max(to));
    };
    for s in steps {
        *clock += 1;
        let start = *clock;
        match s {
            Step::Loop { body, .. } => {
                let inside = uses(body);
                let mut inner = BTreeMap::new();
                walk(body, total, clock, &mut inner);
                *clock += 1;
                for (b, (from, to)) in inner {
                    // Touched elsewhere too: what it holds has to survive every turn.
                    let through = inside[&b] < total[&b];
                    let (from, to) = if through { (start, *clock) } else { (from, to) };
                    touch(lives, b, from, to);
                }
            }
            s => views(s).iter().for_each(|v| touch(lives, v.buffer, start, start)),
        }
    }
}

/// Every step that is no loop, once, in order.
pub fn steps(steps: &[Step]) -> Vec<&Step> {
    let mut out = Vec::new();
    for s in steps {
        match s {
            Step::Loop { body, .. } => out.extend(self::steps(body)),
            s => out.push(s),
        }
    }
    out
}

/// The places a step touches.
pub fn views(step: &Step) -> Vec<&View> {
    match step {
        Step::Launch { buffers, .. } => buffers.iter().collect(),
        Step::Gemm(g) => vec![&g.a, &g.b, &g.c],
        Step::GroupedGemm(GroupedGemm::Rows { x, w, offsets, y, .. } | GroupedGemm::Outer { x, w, offsets, y, .. }) => {
            vec![x, w, offsets, y]
        }
        Step::Exchange(Exchange::Offsets { offsets, all, own, .. }) => vec![offsets, all, own],
        Step::Exchange(Exchange::Rows { from, all, to, .. }) => vec![from, all, to],
        Step::Copy { from, to, .. } => vec![from, to],
        Step::Zero { at, .. } => vec![at],
        Step::Loop { .. } => Vec::new(),
    }
}

/// Memory by cause. # Units: bytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Peak {
    /// By role of the caller's buffers.
    pub by_role: BTreeMap<Role, u64>,
    /// The largest arena.
    pub activations: u64,
    /// What kernels need besides.
    pub workspace: u64,
}

impl Peak {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.by_role.values().sum::<u64>() + self.activations + self.workspace
    }
    /// A line a cause.
    pub fn table(&self) -> String {
        let mut out = String::new();
        let line = |what: &str, n: u64| format!("{what:<12} {:>10.1} MiB", n as f64 / f64::from(1 << 20));
        for (role, n) in &self.by_role {
            out += &(line(&format!("{role:?}").to_lowercase(), *n) + "\n");
        }
        if self.workspace > 0 {
            out += &(line("workspace", self.workspace) + "\n");
        }
        out + &line("activations", self.activations)
    }
}
