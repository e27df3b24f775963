//! Kernels whose tiles come through the tensor memory accelerator and whose products run on warp groups.
//!
//! A tile program that copies rectangles of bf16, f16, tf32 or e4m3 to scratch that only products read is run by two kinds of threads. One thread of the last
//! warp group, the producer, walks the program for its copies alone and starts them as soon as there is room; the other warp groups, the
//! consumers, walk it for all the rest and wait for each copy where it stands. Neighbouring copies of a list of statements are a ring: there is
//! memory for some turns of them, and two barriers for each, full and empty. A single row of f32 may be copied likewise, for loops to read.
//!
//! In shared memory a matrix is cut into strips of columns (64 of bf16), each row of a strip 128 bytes, with the pieces of 16 bytes permuted as the accelerator
//! and `wgmma` agree (128-byte swizzle).
//!
//! # Source: PTX ISA 8.6, sections 9.7.9.27 (cp.async.bulk.tensor), 9.7.13 (mbarrier), 9.7.15 (wgmma).

use super::access::Access;
use crate::dot::{Matrix, Tiled};
use base::{DType, Dim};
use std::collections::{BTreeMap, BTreeSet};
use tile::{
    Expr, Kernel, LoopKind, Mem, Stmt,
    ir::{Axis, Copy, Dot},
};

/// Threads of a warp group.
pub(crate) const GROUP: u32 = 128;
/// Rows of a warp group's product.
pub(crate) const GROUP_ROWS: i64 = 64;
/// A row of a strip. # Units: bytes.
pub(crate) const STRIP_BYTES: i64 = 128;

/// Columns of a strip.
pub(crate) fn strip(dtype: DType) -> i64 {
    STRIP_BYTES / dtype.bytes() as i64
}
/// Rings begin at multiples of eight rows of a strip. # Units: bytes.
const ALIGN: usize = 1024;
/// Other scratch begins at multiples of this. # Units: bytes.
const SCRATCH_ALIGN: usize = super::plan::ALIGN;
/// Columns of a product, at most.
pub(crate) const MAX_COLUMNS: i64 = 256;
/// Turns of a ring.
const MAX_STAGES: usize = 8;
/// Elements that a warp group may hold, if three or four share a processor.
const LIGHT: usize = 64 * 64;
/// Elements that a warp group holds, of which on there are no registers to spare.
const HEAVY: usize = 192 * GROUP as usize;
/// Elements that a warp group may hold, if its threads are left half of a processor's registers.
const ROOMY: usize = 168 * GROUP as usize;
/// Two strips of a warp group's rows. # Units: bytes.
const STAGED_BYTES: usize = 2 * (GROUP_ROWS * STRIP_BYTES) as usize;
/// What kernels that reduce need of shared memory beside what they ask for. # Units: bytes.
const REDUCTION_BYTES: usize = 3 << 10;
/// Stages that hide how long copies take.
const STAGES_UNDER_WAY: usize = 4;
/// What the barriers may take. # Units: bytes.
const BARRIER_BYTES: usize = 1024;

/// An extent or stride of a map: a constant or a dim of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Extent {
    /// A number.
    Const(i64),
    /// The kernel's dim of this number.
    Dim(usize),
}

/// A buffer as a tensor whose rectangles are copied: what `cuTensorMapEncodeTiled` is told. Elements outside are 0; neighbours are permuted within 128
/// bytes, but those of f32 lie as they are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TensorMap {
    /// The kernel's buffer.
    pub buffer: usize,
    /// Its dtype: bf16, f16, tf32, e4m3 or, of single rows, f32.
    pub dtype: DType,
    /// Extent and stride (in elements) of each axis, outermost first; the last stride is 1.
    pub axes: Vec<(Extent, Extent)>,
    /// Rows of a rectangle, along the last axis but one.
    pub rows: u32,
    /// How many times so many, along the axis before.
    pub runs: u32,
    /// Columns of a rectangle, along the last axis.
    pub cols: u32,
}

/// Neighbouring copies, and memory for some turns of them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ring {
    /// Where each copy's scratch lies in a stage. # Units: bytes.
    pub offsets: BTreeMap<usize, usize>,
    /// A stage. # Units: bytes.
    pub bytes: usize,
    /// How many.
    pub stages: usize,
    /// Where the first is in shared memory. # Units: bytes.
    pub start: usize,
    /// Where its barriers are: full, then empty, one of each a stage. # Units: bytes.
    pub barriers: usize,
    /// Whether some of the copies take rows by index.
    pub gathered: bool,
}

/// How a kernel runs on warp groups.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Hopper {
    /// Warp groups that compute.
    pub consumers: u32,
    /// Each copied scratch memory's ring.
    pub ring_of: BTreeMap<usize, usize>,
    /// The rings.
    pub rings: Vec<Ring>,
    /// The tensor maps that the kernel is passed.
    pub maps: Vec<TensorMap>,
    /// Shared memory from a multiple of 1024 bytes on. # Units: bytes.
    pub shared_bytes: usize,
    /// Blocks that share a processor, so that one multiplies while the other weighs.
    pub neighbours: u32,
    /// Whether a warp group that shares a processor holds so much that its producer is left the fewest registers that there may be.
    pub heavy: bool,
    /// Where tiles of a result are in shared memory before the accelerator stores them, if it does: two strips of 64 columns for each warp group. # Units: bytes.
    pub staging: Option<usize>,
    /// Whether two neighbouring blocks are a cluster: they are as far as each other in all rings, and what both copy each brings half of.
    pub pairs: bool,
}

/// Whether a statement copies to scratch.
pub(crate) fn is_load(s: &Stmt) -> bool {
    matches!(s, Stmt::Copy(Copy { to: Mem::Scratch(_), .. }))
}

/// The runs of neighbouring copies to scratch in a list, as ranges.
pub(crate) fn runs(body: &[Stmt]) -> Vec<std::ops::Range<usize>> {
    let mut out: Vec<std::ops::Range<usize>> = Vec::new();
    for i in (0..body.len()).filter(|i| is_load(&body[*i])) {
        match out.last_mut().filter(|r| r.end == i) {
            Some(r) => r.end += 1,
            None => out.push(i..i + 1),
        }
    }
    out
}

impl Hopper {
    /// If the kernel is one. `limit` is the shared memory that is left. # Units: bytes.
    pub(crate) fn new(k: &Kernel, held: &[bool], limit: usize) -> Option<Hopper> {
        // A warp group that does more than products waits for itself: several blocks fill a processor, more if their threads hold little.
        let of_held = |i: usize| if held[i] { k.scratch[i].elems } else { 0 };
        let elems = (0..k.scratch.len()).map(of_held).sum::<usize>();
        let light = elems <= LIGHT;
        let shared = |n: u32| {
            let h = Hopper::within(k, held, limit / n as usize)?;
            let fits = n < 3 || h.shared_bytes + h.others(k, held) <= limit / n as usize;
            if h.consumers != 1 || h.gathers() || !weighs(&k.body) || !fits {
                return None;
            }
            Some(Hopper { neighbours: n, heavy: elems >= HEAVY, ..h })
        };
        let many = if light { shared(4).or_else(|| shared(3)) } else { None };
        let h = many.or_else(|| shared(2)).or_else(|| Hopper::within(k, held, limit))?;
        // One that gathers a tile and waits for it leaves the processor to another, if both have room.
        let waits = h.neighbours == 1 && h.consumers == 1 && h.gathers() && elems <= ROOMY;
        let two = waits && h.shared_bytes + h.others(k, held) <= limit / 2;
        let h = Hopper { neighbours: if two { 2 } else { h.neighbours }, ..h };
        Some(h.staged(k, held, limit).unwrap_or(h))
    }
    /// The same with room for tiles of results that the accelerator stores, if that leaves as many stages as are under way.
    fn staged(&self, k: &Kernel, held: &[bool], limit: usize) -> Option<Hopper> {
        let mut stores = Vec::new();
        stores_of(&k.body, &mut stores);
        // Of two results of maps the second is there, too, while the first is stored: more than threads hold.
        let mapped: BTreeSet<Mem> = stores.iter().map(|c| c.from).filter(|m| k.mem_dtype(*m) != DType::F32).collect();
        let stored = |c: &&Copy| Some((store_map(k, held, self.consumers, c)?, c.cols / strip(k.mem_dtype(c.to)) % 2));
        let (maps, odd): (BTreeSet<TensorMap>, BTreeSet<i64>) = stores.iter().filter_map(stored).unzip();
        // Strips alternate between two places: where a tile has an odd number and the next an even one, its first would be over the last.
        if maps.is_empty()
            || odd.len() > 1
            || mapped.len() > 1
            || self.neighbours > 1
            || weighs(&k.body)
            || self.others(k, held) > 0
            || reduces(&k.body)
        {
            return None;
        }
        let bytes = STAGED_BYTES * self.consumers as usize;
        let mut h = Hopper::within(k, held, limit + REDUCTION_BYTES - bytes)?;
        let fewest = |h: &Hopper| h.rings.iter().map(|r| r.stages).min();
        if fewest(&h) < fewest(self).min(Some(STAGES_UNDER_WAY)) {
            return None;
        }
        h.staging = Some(h.shared_bytes - ALIGN);
        h.shared_bytes += bytes;
        h.maps.extend(maps);
        h.maps.sort_unstable();
        h.maps.dedup();
        Some(h)
    }
    /// The number of the tensor map by which the accelerator stores a copy, if it does.
    pub(crate) fn store_of(&self, k: &Kernel, held: &[bool], c: &Copy) -> Option<usize> {
        let map = self.staging.and_then(|_| store_map(k, held, self.consumers, c))?;
        self.maps.iter().position(|m| *m == map)
    }
    fn within(k: &Kernel, held: &[bool], limit: usize) -> Option<Hopper> {
        let mut found = Found::default();
        found.list(&k.body, false);
        let consumers = found.dots.iter().map(|d| consumers_of(k, held, d)).collect::<Option<BTreeSet<u32>>>()?;
        let (Some(consumers), 1, false) = (consumers.first().copied(), consumers.len(), found.runs.is_empty()) else {
            return None;
        };
        let copies = || found.runs.iter().flat_map(|(run, _)| run.iter().copied());
        let copied: BTreeSet<Mem> = copies().map(|c| c.to).collect();
        let same_dtype = |c: &Copy| k.mem_dtype(c.from) == k.mem_dtype(c.to);
        let untouched =
            |c: &Copy| !found.touched.written.contains(&c.to) && (is_vector(k, c) || !found.touched.read.contains(&c.to));
        let private = copies().all(|c| same_dtype(c) && untouched(c));
        let held_mem = |m: &Mem| matches!(m, Mem::Scratch(i) if held[*i]);
        let brought = |d: &&Dot| (copied.contains(&d.a.mem) || held_mem(&d.a.mem)) && copied.contains(&d.b.mem);
        if !private || !found.dots.iter().all(brought) {
            return None;
        }
        let mut h = Hopper {
            consumers,
            ring_of: BTreeMap::new(),
            rings: Vec::new(),
            maps: Vec::new(),
            shared_bytes: 0,
            neighbours: 1,
            heavy: false,
            staging: None,
            pairs: copies().any(comes_by_halves),
        };
        for (run, staged) in &found.runs {
            let (mut offsets, mut bytes) = (BTreeMap::new(), 0);
            for c in run {
                let (buffer, scratch) = c.sides()?;
                if k.scratch[scratch].elems as i64 != c.rows * c.cols || offsets.insert(scratch, bytes).is_some() {
                    return None;
                }
                bytes += usize::try_from(copy_bytes(k, c)).ok()?.next_multiple_of(ALIGN);
                match c.index {
                    None => h.maps.push(tensor_map(k, buffer, c)?),
                    // Runs of whole patterns of a rectangle in shared memory are rectangles of their own.
                    Some(_) if c.takes_runs() && c.run % PATTERN_ROWS == 0 => h.maps.push(tensor_map(k, buffer, c)?),
                    Some(_) if takes_rows(c, k.mem_dtype(c.to)) => {}
                    Some(_) => return None,
                }
            }
            let gathered = run.iter().any(|c| is_gathered(c));
            // What is copied in several places has one ring.
            let stages = usize::from(!staged);
            if let Some(known) = h.rings.iter_mut().find(|r| r.offsets == offsets) {
                known.stages &= stages;
                known.gathered |= gathered;
                continue;
            }
            if offsets.keys().any(|s| h.ring_of.insert(*s, h.rings.len()).is_some()) {
                return None;
            }
            h.rings.push(Ring { offsets, bytes, stages, start: 0, barriers: 0, gathered });
        }
        let single: usize = h.rings.iter().filter(|r| r.stages == 1).map(|r| r.bytes).sum();
        h.maps.sort_unstable();
        h.maps.dedup();
        // Rings of loops share what is left.
        let staged: usize = h.rings.iter().filter(|r| r.stages == 0).map(|r| r.bytes).sum();
        let left = limit.checked_sub(BARRIER_BYTES + ALIGN + single)?;
        // What else is in shared memory, unless it leaves no room for two turns.
        let room = left.checked_sub(h.others(k, held)).filter(|n| *n >= 2 * staged).unwrap_or(left);
        let stages = room.checked_div(staged).unwrap_or(1).min(MAX_STAGES);
        if stages < 2 && staged > 0 {
            return None;
        }
        let mut barriers = 0;
        let mut start = BARRIER_BYTES;
        for r in &mut h.rings {
            r.stages = if r.stages == 0 { stages } else { 1 };
            (r.start, r.barriers) = (start, barriers);
            start += r.bytes * r.stages;
            barriers += 16 * r.stages;
        }
        h.shared_bytes = start + ALIGN;
        (barriers <= BARRIER_BYTES).then_some(h)
    }
    /// What is in shared memory beside the rings. # Units: bytes.
    fn others(&self, k: &Kernel, held: &[bool]) -> usize {
        let of = |i: usize| (k.scratch[i].elems * k.scratch[i].dtype.bytes()).next_multiple_of(SCRATCH_ALIGN);
        (0..k.scratch.len()).filter(|i| !held[*i] && !self.ring_of.contains_key(i)).map(of).sum()
    }
    /// Whether rows are copied by index, for which all threads of the producer's warp group work.
    pub(crate) fn gathers(&self) -> bool {
        self.rings.iter().any(|r| r.gathered)
    }
    /// The number of a copy's tensor map.
    pub(crate) fn map_of(&self, k: &Kernel, c: &Copy) -> usize {
        let map = c.sides().and_then(|(buffer, _)| tensor_map(k, buffer, c));
        map.and_then(|m| self.maps.iter().position(|x| *x == m))
            .unwrap_or_else(|| base::bug!("a copy without a map in {}", k.name))
    }
}

/// The copies to buffers.
fn stores_of<'k>(body: &'k [Stmt], out: &mut Vec<&'k Copy>) {
    for s in body {
        match s {
            Stmt::Copy(c) if matches!(c.to, Mem::Buffer(_)) => out.push(c),
            s => s.lists().into_iter().for_each(|b| stores_of(b, out)),
        }
    }
}

fn reduces(body: &[Stmt]) -> bool {
    body.iter().any(|s| matches!(s, Stmt::Accumulate(..)) || s.lists().into_iter().any(reduces))
}

/// The tensor map of strips by which the accelerator stores a tile that warp groups hold, if it can: a rectangle of bf16 or f16 of constant width that ends where
/// the buffer's axes do.
fn store_map(k: &Kernel, held: &[bool], consumers: u32, c: &Copy) -> Option<TensorMap> {
    let (buffer, scratch) = c.sides()?;
    let (dtype, from) = (k.buffers[buffer].dtype, k.scratch[scratch].dtype);
    let narrow = matches!(dtype, DType::BF16 | DType::F16) && (from == dtype || from == DType::F32);
    let whole = c.run == c.rows && c.rows == GROUP_ROWS * i64::from(consumers) && c.cols % strip(dtype) == 0;
    let ends = limited_rows(c).is_none();
    let map = (narrow && whole && ends && held[scratch]).then(|| tensor_map(k, buffer, c)).flatten()?;
    Some(TensorMap { rows: GROUP_ROWS as u32, ..map })
}

/// Whether a loop has products and vector loops.
pub(crate) fn weighs(body: &[Stmt]) -> bool {
    let has_dot = |b: &[Stmt]| {
        let mut found = Found::default();
        found.list(b, true);
        !found.dots.is_empty()
    };
    body.iter().any(|s| match s {
        Stmt::For { body, kind: LoopKind::Serial, .. } | Stmt::While { body, .. } => {
            has_dot(body) && super::plan::widest(body).is_some() || weighs(body)
        }
        Stmt::If { then, otherwise, .. } => weighs(then) || weighs(otherwise),
        _ => false,
    })
}

fn tensor_map(k: &Kernel, buffer: usize, c: &Copy) -> Option<TensorMap> {
    let extent = |e: &Expr| match (e, e.known()) {
        (_, Some(n)) => Some(Extent::Const(n)),
        (Expr::Dim(i), None) => Some(Extent::Dim(*i)),
        _ => None,
    };
    let mut axes = Vec::new();
    for (i, Axis { extent: e, stride, .. }) in c.axes.iter().enumerate() {
        let stride = extent(stride)?;
        let extent = match extent(e) {
            // The buffer ends where its first axis does.
            None if limited_rows(c).is_some() && i == 0 => rows_of(k, buffer, stride)?,
            known => known?,
        };
        axes.push((extent, stride));
    }
    let runs = if c.takes_runs() { 1 } else { c.rows / c.run };
    let run = if comes_by_halves(c) { c.run / 2 } else { c.run };
    let [rows, runs] = [run, runs].map(|n| u32::try_from(n).ok().filter(|n| *n <= 256));
    let vector = is_vector(k, c);
    let dtype = k.mem_dtype(c.to);
    let (cols, narrow) =
        (if vector { c.cols } else { strip(dtype) }, matches!(dtype, DType::TF32 | DType::BF16 | DType::F16 | DType::E4M3));
    let fits = axes.len() <= 5 && c.cols % cols == 0 && (narrow || vector);
    fits.then_some(TensorMap { buffer, dtype: k.buffers[buffer].dtype, axes, rows: rows?, runs: runs?, cols: cols as u32 })
}

/// Whether a copy is of a single row of f32, which loops may read.
pub(crate) fn is_vector(k: &Kernel, c: &Copy) -> bool {
    c.rows == 1 && c.cols % 4 == 0 && c.cols <= 256 && k.mem_dtype(c.to) == DType::F32
}

/// What a copy moves. # Units: bytes.
pub(crate) fn copy_bytes(k: &Kernel, c: &Copy) -> i64 {
    c.rows * c.cols * k.mem_dtype(c.to).bytes() as i64
}

/// Rows after which the pattern repeats by which neighbours lie in different banks.
const PATTERN_ROWS: i64 = 8;

/// Whether threads carry a copy, and not the tensor memory accelerator: of rows by index.
pub(crate) fn is_gathered(c: &Copy) -> bool {
    c.index.is_some() && !c.takes_runs()
}

/// Whether the two blocks of a cluster may each bring half of a copy for both: whole patterns of rows.
pub(crate) fn comes_by_halves(c: &Copy) -> bool {
    c.paired.is_some() && c.rows % (2 * PATTERN_ROWS) == 0
}

/// Whether a warp group's threads can carry a copy of rows by index.
fn takes_rows(c: &Copy, dtype: DType) -> bool {
    is_gathered(c) && c.axes.len() == 2 && c.cols % strip(dtype) == 0 && c.rows % (i64::from(GROUP) / 8) == 0
}

/// The rows of a copy of two axes, if they end where only the run finds out.
pub(crate) fn limited_rows(c: &Copy) -> Option<&Axis> {
    let [rows, _] = c.axes.as_slice() else { return None };
    (rows.extent.known().is_none() && !matches!(rows.extent, Expr::Dim(_))).then_some(rows)
}

/// The rows of a buffer, by the stride between them.
fn rows_of(k: &Kernel, buffer: usize, stride: Extent) -> Option<Extent> {
    let stride = match stride {
        Extent::Const(n) => Dim::from(n),
        Extent::Dim(i) => k.dims[i].clone(),
    };
    let rows = k.buffers[buffer].elems.try_div(&stride)?;
    match rows.known() {
        Some(n) => Some(Extent::Const(n)),
        None => k.dims.iter().position(|d| *d == rows).map(Extent::Dim),
    }
}

/// What is found on the way.
#[derive(Default)]
struct Found<'k> {
    /// Runs of copies, and whether a loop is around each.
    runs: Vec<(Vec<&'k Copy>, bool)>,
    /// Products.
    dots: Vec<&'k Dot>,
    /// What the other statements touch.
    touched: Access,
}

impl<'k> Found<'k> {
    fn list(&mut self, body: &'k [Stmt], in_loop: bool) {
        for run in runs(body) {
            let copies = body[run].iter().filter_map(|s| if let Stmt::Copy(c) = s { Some(c) } else { None });
            self.runs.push((copies.collect(), in_loop));
        }
        for s in body {
            match s {
                Stmt::Dot(d) => self.dots.push(d),
                s if is_load(s) => {}
                Stmt::For { body, kind: LoopKind::Serial, .. } | Stmt::While { body, .. } => self.list(body, true),
                Stmt::If { then, otherwise, .. } => [then, otherwise].into_iter().for_each(|b| self.list(b, in_loop)),
                s => {
                    self.touched.join(&Access::of(std::slice::from_ref(s)));
                }
            }
        }
    }
}

/// The warp groups that share a product, if it is one for them: held sums of 64 rows a group, operands that lie as they are copied.
fn consumers_of(k: &Kernel, held: &[bool], d: &Dot) -> Option<u32> {
    let t = Tiled::new(k, d)?;
    let [m, n, depth] = t.extents;
    let strip = |x: &Matrix| strip(k.scratch[x.scratch].dtype);
    let lies = |x: &Matrix, rows: i64, cols: i64| match (x.row, x.col) {
        (r, 1) => r == cols && cols % strip(x) == 0,
        (1, c) => c == rows && rows % strip(x) == 0,
        _ => false,
    };
    let fits = m % GROUP_ROWS == 0 && (1..=3).contains(&(m / GROUP_ROWS)) && n % 8 == 0 && n <= MAX_COLUMNS;
    let lies = (held[t.a.scratch] || lies(&t.a, m, depth)) && lies(&t.b, depth, n);
    (fits && lies && held[t.c.scratch] && t.fits_warp_groups(k)).then_some((m / GROUP_ROWS) as u32)
}
