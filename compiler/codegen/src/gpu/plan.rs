//! How a kernel is spread over threads, decided before anything is emitted.
//!
//! A kernel whose last statement walks the rows (or elements) of its block, and uses the block's number for nothing else, has them
//! dealt out over the whole grid: each team takes one and then the next that is as far on as there are teams. A team is a thread, some
//! neighbouring lanes of a warp, or all threads of a block, by how much work a row holds in vector loops. In any other kernel a block of the
//! tile program is a block of threads.

use super::{
    access::{Access, expr_uses, exprs, stmt_uses, visit},
    hopper::{self, Hopper},
    rows::{self, is_one_pass, read_once},
    unit::Units,
};
use crate::{
    copy::expand_copies,
    dot::{Matrix, Tiled, spread_dot},
    emit::loads_first,
};
use base::{DType, Dim};
use graph::op::{MapFn, ReduceFn};
use tile::{
    Expr, Kernel, LoopKind, Mem, Stmt, VarId,
    ir::{self, Copy},
};

/// The threads that run a statement together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Team {
    /// All threads of a block.
    Block,
    /// This many neighbouring lanes of a warp, a power of two above 1.
    Lanes(u32),
    /// One thread.
    Thread,
}

/// Where scratch memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In shared memory, at an offset. # Units: bytes.
    Shared(usize),
    /// In the block's part of the workspace, at an offset. # Units: bytes.
    Workspace(usize),
    /// Each thread has its own.
    Thread,
    /// In a ring of [`Hopper`].
    Ring,
    /// The threads of a block hold it among them, each the elements that [`Held`] says.
    Held,
}

/// A tile that is spread over the threads of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    /// Rows and columns.
    pub extents: [i64; 2],
}

/// What the processor allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Threads of a warp, a power of two.
    pub warp: u32,
    /// Threads of a block, least and most; multiples of `warp`, and powers of two.
    pub threads: (u32, u32),
    /// Threads that a block may have.
    pub most: u32,
    /// Shared memory of a block for scratch. # Units: bytes.
    pub shared_bytes: usize,
    /// Whether there are warp groups with products of their own, and copies that threads do not carry.
    pub hopper: bool,
    /// Blocks that may write each other's shared memory, at most.
    pub cluster: u32,
}

/// Rows that are dealt out over the grid.
#[derive(Clone, Debug)]
pub(crate) struct Rows {
    /// The row's number.
    pub var: VarId,
    /// How many.
    pub count: Expr,
    /// Who takes a row.
    pub team: Team,
    /// What it does with it.
    pub body: Vec<Stmt>,
}

/// How a kernel is spread over threads.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Threads of a block.
    pub threads: u32,
    /// Blocks that take a row together, each with a part of it: a cluster.
    pub cluster: u32,
    /// Threads of a warp.
    pub warp: u32,
    /// What each block does first, or all that it does.
    pub body: Vec<Stmt>,
    /// What follows.
    pub rows: Option<Rows>,
    /// Where each scratch memory is.
    pub places: Vec<Place>,
    /// Of a block, for all of its teams. # Units: bytes.
    pub shared_bytes: usize,
    /// Teams of a block that have scratch in shared memory, each its own: warps that have rows.
    pub teams: u32,
    /// Of each block. # Units: bytes.
    pub workspace_bytes: usize,
    /// The number of blocks that have something to do.
    pub grid: Dim,
    /// The same over the kernel's own extents, as [`crate::GpuKernel::blocks`] has it.
    pub blocks: Dim,
    /// What is held by threads.
    pub held: HeldMemories,
    /// How many neighbouring lanes share a row of what is held.
    pub row_lanes: u32,
    /// Whether products run on tensor cores: all are of bf16 or f16. What else the kernel does is as exact as that.
    pub tensor: bool,
    /// Whether it runs on warp groups; then `threads` are those that compute.
    pub hopper: Option<Hopper>,
    /// Scratch memories whose chunks are permuted.
    pub swizzles: Vec<Option<Swizzle>>,
}

/// How chunks of four f32 are permuted in the rows of a matrix in shared memory, so that the chunks of eight rows that threads read at once are in different banks:
/// chunk `c` is where `c ^ (index >> shift & mask)` was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Swizzle {
    /// Of an element's place, in bits.
    pub shift: i64,
    /// Which chunks change places, one less than a power of two.
    pub mask: i64,
}

impl Swizzle {
    /// Elements of a chunk.
    pub const CHUNK: i64 = 4;
    /// The one for rows of so many elements, if there is one.
    fn of_rows(elems: i64) -> Option<Swizzle> {
        let chunks = elems / Swizzle::CHUNK;
        let fits = elems % Swizzle::CHUNK == 0 && chunks.count_ones() == 1 && chunks > 1;
        fits.then(|| Swizzle { shift: i64::from(elems.ilog2()).max(5), mask: chunks.min(8) - 1 })
    }
}

/// Which scratch memories are permuted: f32 in shared memory that threads multiply, of which they read neighbours along the summed axis.
fn swizzles(k: &Kernel, places: &[Place], products: &[Tiled]) -> Vec<Option<Swizzle>> {
    let mut found = vec![None; k.scratch.len()];
    for t in products {
        for (x, terms, other) in [(&t.a, t.a.col, t.a.row), (&t.b, t.b.row, t.b.col)] {
            let shared = matches!(places[x.scratch], Place::Shared(_));
            if shared && terms == 1 && matches!(k.scratch[x.scratch].dtype, DType::F32 | DType::TF32) {
                found[x.scratch] = Swizzle::of_rows(other);
            }
        }
    }
    found
}

/// Elements that a thread holds of all tiles, at most, if there may be more threads.
const MAX_HELD: i64 = 96;
/// Elements of a map that a thread takes.
const ELEMS_PER_THREAD: i64 = 8;
/// Turns of a vector loop that a thread of a warp takes, at most, where that has a row with scratch.
const MOST_OF_WARP: i64 = 16;
/// What the rows of a processor load together, if that takes no more than so many threads: these have 40 registers, which is little for more than so many
/// elements each. # Units: bytes, threads, elements.
const LOADED_BYTES: usize = 96 << 10;
const ROW_THREADS: u32 = 1536;
const ROW_ELEMS: usize = 16;
/// Threads of a processor that keep long rows: each has 64 registers.
const CLUSTER_THREADS: u32 = 1024;
/// A row with more in its vector loops than this is for a whole block.
const LARGE_ROW: i64 = 4096;
/// So many threads leave most of a large device idle.
const FEW_ELEMS: i64 = 8192;
/// Scratch memories start at multiples of this. # Units: bytes.
pub(crate) const ALIGN: usize = 128;

/// A kernel as it is emitted, and its plan: products and copies that the threads of a block do not share are loops.
pub(crate) fn prepare(kernel: &Kernel, limits: Limits) -> (Kernel, Plan) {
    let k = spread_dot(kernel);
    let plan = Plan::new(&k, limits);
    let stays = |c: &Copy| match c.to {
        Mem::Scratch(_) => plan.hopper.is_some(),
        Mem::Buffer(_) => c.sides().and_then(|(_, s)| plan.held.tiles[s]).is_some_and(|h| h.extents == [c.rows, c.cols]),
    };
    let expanded = expand_copies(&k, &|_, c| stays(c));
    if expanded == k {
        return (k, plan);
    }
    let plan = Plan::new(&expanded, limits);
    (expanded, plan)
}

impl Plan {
    /// Threads of a block, those that only copy among them.
    pub(crate) fn launched(&self) -> u32 {
        self.threads + if self.hopper.is_some() { hopper::GROUP } else { 0 }
    }
    /// Neighbouring blocks that are a cluster.
    pub(crate) fn clustered(&self) -> u32 {
        if self.hopper.as_ref().is_some_and(|h| h.pairs) { 2 } else { self.cluster }
    }
    /// How many blocks a processor has at least: of blocks that take a row at a time and keep it in registers so many that what some load hides that others
    /// wait, if few threads with few registers can; else what warp groups ask for.
    pub(crate) fn neighbours(&self, k: &Kernel) -> u32 {
        if let Some(h) = &self.hopper {
            return h.neighbours;
        }
        let Some(r) = self.rows.as_ref().filter(|r| r.team == Team::Block) else { return 1 };
        if self.cluster > 1 {
            return CLUSTER_THREADS / self.threads;
        }
        let Some(mems) = read_once(k, &r.body, i64::from(self.threads)) else { return 1 };
        let read = Access::of(&r.body).read;
        let elems = widest(&r.body).map_or(0, |n| n as usize);
        if elems > ROW_ELEMS * self.threads as usize {
            return 1;
        }
        let bytes: usize = mems.intersection(&read).map(|m| elems * k.mem_dtype(*m).bytes()).sum();
        (LOADED_BYTES.div_ceil(bytes.max(1)) as u32).clamp(1, (ROW_THREADS / self.threads).max(1))
    }
    /// Decides for a kernel without products but those that are [`Tiled`].
    pub(crate) fn new(k: &Kernel, limits: Limits) -> Plan {
        let mut body = k.body.clone();
        let rows = whole_range(k).map(|(count, dropped)| {
            let Some(Stmt::For { var, kind, body: row, .. }) = body.pop() else { base::bug!("the rows of {}", k.name) };
            body.retain(|s| !matches!(s, Stmt::Let(v, _) if dropped.contains(v)));
            let alone = kind == LoopKind::Vector && !is_few_long_sums(&count, &row, limits);
            let team = if alone { Team::Thread } else { row_team(k, &row, limits) };
            Rows { var, count, team, body: row }
        });
        let widest = widest(rows.as_ref().map_or(&body, |r| &r.body)).unwrap_or(256);
        // Threads of a block that has no rows to deal out take several turns at once, where they can.
        let widest = if rows.is_none() { widest / i64::from(turns_at_once(k, &body).unwrap_or(1)) } else { widest };
        let (least, most) = limits.threads;
        let (threads, cluster) = match rows.as_ref().map(|r| r.team) {
            Some(Team::Thread) => (most, 1),
            Some(Team::Lanes(_)) => (least, 1),
            Some(Team::Block) if let Some(held) = rows.as_ref().and_then(|r| threads_of_row(k, &r.body, limits)) => held,
            Some(Team::Block) | None => ((widest.clamp(1, i64::from(most)) as u32).next_power_of_two().clamp(least, most), 1),
        };
        let own = rows.as_ref().filter(|r| r.team == Team::Thread).map(|r| Access::of(&r.body).written);
        let products = products(k, &body);
        let nothing = HeldMemories { tiles: vec![None; k.scratch.len()], rows: vec![false; k.scratch.len()], row_loops: None };
        let holds = |first: bool| if rows.is_some() { nothing.clone() } else { held(k, &body, &products, first) };
        // First operands are held by warp groups alone.
        let mut held = holds(limits.hopper);
        let is_held: Vec<bool> = held.tiles.iter().map(Option::is_some).collect();
        let hopper = if limits.hopper && rows.is_none() { Hopper::new(k, &is_held, limits.shared_bytes) } else { None };
        if hopper.is_none() {
            held = holds(false);
        }
        let threads = if products.is_empty() {
            threads
        } else {
            let elems: i64 = held.tiles.iter().flatten().map(|h| h.extents[0] * h.extents[1]).sum();
            if elems > MAX_HELD * i64::from(least) { most } else { least }
        };
        let threads = hopper.as_ref().map_or(threads, |h| h.consumers * hopper::GROUP);
        let own = own.unwrap_or_default();
        // Warps that have rows have scratch of their own.
        let teams = match rows.as_ref().map(|r| r.team) {
            Some(Team::Lanes(_)) => threads / limits.warp,
            Some(Team::Block | Team::Thread) | None => 1,
        };
        let room = limits.shared_bytes / teams as usize;
        let (mut places, mut shared_bytes, mut workspace_bytes) = place(k, &own, &held, hopper.as_ref(), room);
        let is_tensor = |places: &[Place], by_rows: bool| {
            let shared = |m: &Matrix| matches!(places[m.scratch], Place::Shared(_));
            let fits = |t: &Tiled| {
                let [m, n, _] = t.extents;
                let grid =
                    if by_rows { m % (16 * i64::from(threads / WARP)) == 0 } else { warp_grid([m, n], threads / WARP).is_some() };
                t.fits_tensor_cores(k) && [&t.a, &t.b].into_iter().all(shared) && grid
            };
            hopper.is_some() || limits.warp == WARP && !products.is_empty() && products.iter().all(fits)
        };
        let mut tensor = is_tensor(&places, held.row_loops.is_some());
        // Rows are shared by the lanes that tensor cores have, or by neighbouring ones.
        let row_lanes = if tensor { 4 } else { limits.warp.min(16) };
        if held.row_loops.is_some_and(|m| m % i64::from(threads / row_lanes) != 0) {
            held = nothing;
            (places, shared_bytes, workspace_bytes) = place(k, &own, &held, None, limits.shared_bytes);
            tensor = is_tensor(&places, false);
        }
        let on_lanes = hopper.is_none() && !tensor;
        let swizzles = swizzles(k, &places, if on_lanes { &products } else { &[] });
        let (grid, blocks) = match &rows {
            None => (k.grid.clone(), Dim::sym("grid")),
            Some(r) => {
                let per_block = match r.team {
                    Team::Block => 1,
                    Team::Lanes(n) => i64::from(threads / n),
                    Team::Thread if widest_list(&r.body).is_none() => i64::from(threads) * ELEMS_PER_THREAD,
                    Team::Thread => i64::from(threads),
                };
                let own = |i: usize| Dim::sym(&format!("d{i}"));
                let count = [extent(&r.count, &|i| k.dims[i].clone()), extent(&r.count, &own)];
                let [grid, blocks] = count.map(|n| n.ceil_div(&Dim::from(per_block)) * Dim::from(i64::from(cluster)));
                (grid, blocks)
            }
        };
        Plan {
            threads,
            cluster,
            warp: limits.warp,
            body,
            rows,
            places,
            shared_bytes: shared_bytes.next_multiple_of(ALIGN) * teams as usize,
            teams,
            workspace_bytes,
            grid,
            blocks,
            held,
            row_lanes,
            tensor,
            hopper,
            swizzles,
        }
    }
}

/// An extent that [`whole_range`] admits; `dim` gives the kernel's.
fn extent(e: &Expr, dim: &dyn Fn(usize) -> Dim) -> Dim {
    match (e, e.known()) {
        (_, Some(n)) => Dim::from(n),
        (Expr::Dim(i), None) => dim(*i),
        _ => base::bug!("{e:?} is no extent"),
    }
}

/// If the kernel ends in a loop over `block·size .. min(block·size + size, count)`, and has no other use of its block: the count, and the
/// variables that hold the bounds.
fn whole_range(k: &Kernel) -> Option<(Expr, Vec<VarId>)> {
    let (Stmt::For { lo, hi, kind: kind @ (LoopKind::Parallel | LoopKind::Vector), body, .. }, before) = k.body.split_last()?
    else {
        return None;
    };
    let bound = |e: &Expr| match e {
        Expr::Var(v) => before.iter().find_map(|s| match s {
            Stmt::Let(w, e) if w == v => Some((*v, e)),
            _ => None,
        }),
        _ => None,
    };
    let block = k.block();
    let (size, mut dropped) = match bound(lo) {
        None if *lo == block => (1, Vec::new()),
        None => return None,
        Some((v, Expr::Map(MapFn::Mul, args))) if args[0] == block => (args[1].known()?, vec![v]),
        Some(_) => return None,
    };
    let (end, Expr::Map(MapFn::Min, args)) = bound(hi)? else { return None };
    let [Expr::Map(MapFn::Add, sum), count] = args.as_slice() else { return None };
    if sum[0] != *lo || sum[1].known() != Some(size) || !(count.known().is_some() || matches!(count, Expr::Dim(_))) {
        return None;
    }
    dropped.push(end);
    // What a turn of a parallel loop writes to scratch is its own; a turn of a vector loop may read what was there.
    if *kind == LoopKind::Vector && Access::of(body).written.iter().any(|m| matches!(m, Mem::Scratch(_))) {
        return None;
    }
    // What the block wrote for all its rows each team would have to have.
    if Access::of(before).written.iter().any(|m| matches!(m, Mem::Scratch(_))) {
        return None;
    }
    let bounds = |v: VarId| v == VarId(0) || dropped.contains(&v);
    let rest = before.iter().filter(|s| !matches!(s, Stmt::Let(v, _) if bounds(*v)));
    let used = rest.chain(body).any(|s| stmt_uses(s, &bounds)) || expr_uses(count, &bounds);
    (!used).then_some((count.clone(), dropped))
}

/// Whether there are products or copies of rectangles.
fn has_products(body: &[Stmt]) -> bool {
    body.iter().any(|s| matches!(s, Stmt::Dot(_) | Stmt::Copy(_)) || s.lists().into_iter().any(has_products))
}

/// Whether there is room for the scratch of each of a block's warps.
fn keeps_little(k: &Kernel, limits: Limits) -> bool {
    let bytes = |s: &ir::Scratch| (s.elems.max(1) * s.dtype.bytes()).next_multiple_of(ALIGN);
    let warps = (limits.threads.0 / limits.warp) as usize;
    k.scratch.iter().map(bytes).sum::<usize>() * warps <= limits.shared_bytes
}

/// The threads of a block that reads a row once, and how many blocks it takes where one cannot keep the row.
fn threads_of_row(k: &Kernel, row: &[Stmt], limits: Limits) -> Option<(u32, u32)> {
    let of_one = [1, 2, 4].map(|n| (n * limits.threads.1, 1));
    // Two blocks of a processor hide what each waits for.
    let of_many = [2, 4, 8, 16].map(|blocks| (2 * limits.threads.1, blocks));
    let few = if k.scratch.is_empty() && !is_one_pass(row) { limits.cluster } else { 1 };
    let all = of_one.into_iter().chain(of_many).filter(|(n, blocks)| *n <= limits.most && *blocks <= few);
    all.into_iter().find(|(n, blocks)| read_once(k, row, i64::from(n * blocks)).is_some())
}

/// Whether elements are few and each sums so much that a thread would be at it long after the others have nothing to do.
fn is_few_long_sums(count: &Expr, row: &[Stmt], limits: Limits) -> bool {
    let long = widest(row).is_some_and(|n| n >= 4 * i64::from(limits.warp));
    long && count.known().is_some_and(|n| n <= FEW_ELEMS)
}

/// Who takes a row.
fn row_team(k: &Kernel, row: &[Stmt], limits: Limits) -> Team {
    let warp = limits.warp;
    let Some(widest) = widest_list(row) else { return Team::Thread };
    // What a row keeps in scratch is its team's: a block has one, a thread may have one.
    let scratch = Access::of(row).written.iter().any(|m| matches!(m, Mem::Scratch(_)));
    match widest {
        Some(n) if n <= 1 => Team::Thread,
        // What a row keeps is little: a warp waits for nobody, and there is room for many.
        Some(n) if scratch && n <= MOST_OF_WARP * i64::from(warp) && !has_products(row) && keeps_little(k, limits) => {
            Team::Lanes(warp)
        }
        _ if scratch => Team::Block,
        Some(n) if n > LARGE_ROW => Team::Block,
        // What is too much for the lanes of a warp to keep in registers a block can.
        Some(n) if n > rows::MOST * i64::from(warp) && threads_of_row(k, row, limits).is_some() => Team::Block,
        // A lane takes as many turns at once as it can.
        Some(n) => {
            let lanes = n as u32 / turns_at_once(k, row).unwrap_or(1);
            Team::Lanes(lanes.next_power_of_two().clamp(2, warp))
        }
        None => Team::Lanes(warp),
    }
}

/// How many turns all vector loops of a list allow to be taken at once, if any.
fn turns_at_once(k: &Kernel, body: &[Stmt]) -> Option<u32> {
    let of = |s: &Stmt| match s {
        Stmt::For { var, kind: LoopKind::Vector, body, .. } => Some(Units::new(k, *var, body).map_or(1, |u| u.turns as u32)),
        s => s.lists().into_iter().filter_map(|l| turns_at_once(k, l)).min(),
    };
    body.iter().filter_map(of).min()
}

/// The greatest number of turns of the vector loops in a list, where each is known.
pub(crate) fn widest(body: &[Stmt]) -> Option<i64> {
    widest_list(body).flatten()
}

/// Whether there are vector loops, and the greatest number of their turns, where each is known.
fn widest_list(body: &[Stmt]) -> Option<Option<i64>> {
    let mut found: Option<Option<i64>> = None;
    let mut join = |n: Option<i64>| found = Some(found.map_or(n, |m| m.zip(n).map(|(a, b)| a.max(b))));
    for s in body {
        match s {
            Stmt::For { lo, hi, kind: LoopKind::Vector, .. } => join(lo.known().zip(hi.known()).map(|(l, h)| h - l)),
            s => s.lists().into_iter().filter_map(widest_list).for_each(&mut join),
        }
    }
    found
}

/// Puts scratch into shared memory, the smallest first, and what does not fit into the workspace. What is written by one thread for itself
/// is its own.
fn place(
    k: &Kernel,
    own: &std::collections::BTreeSet<Mem>,
    held: &HeldMemories,
    hopper: Option<&Hopper>,
    limit: usize,
) -> (Vec<Place>, usize, usize) {
    let bytes = |i: usize| (k.scratch[i].elems.max(1) * k.scratch[i].dtype.bytes()).next_multiple_of(ALIGN);
    let mut order: Vec<usize> = (0..k.scratch.len()).collect();
    order.sort_by_key(|i| (bytes(*i), *i));
    let mut places = vec![Place::Thread; k.scratch.len()];
    // Rings are placed already, from the next multiple of their alignment on.
    let limit = limit.saturating_sub(hopper.map_or(0, |h| h.shared_bytes));
    let (mut shared, mut workspace) = (0, 0);
    for i in order.into_iter().filter(|i| !own.contains(&Mem::Scratch(*i))) {
        if held.tiles[i].is_some() || held.rows[i] {
            places[i] = Place::Held;
            continue;
        }
        if hopper.is_some_and(|h| h.ring_of.contains_key(&i)) {
            places[i] = Place::Ring;
            continue;
        }
        let (at, place): (&mut usize, fn(usize) -> Place) =
            if shared + bytes(i) <= limit { (&mut shared, Place::Shared) } else { (&mut workspace, Place::Workspace) };
        places[i] = place(*at);
        *at += bytes(i);
    }
    (places, shared, workspace)
}

/// Threads of a warp, as tensor cores know it.
pub(crate) const WARP: u32 = 32;

/// How many warps share the rows and how many the columns of a tile, each 16 by 16 or more, so that they read the least.
pub(crate) fn warp_grid([m, n]: [i64; 2], warps: u32) -> Option<[i64; 2]> {
    let warps = i64::from(warps);
    let fits = |[r, c]: &[i64; 2]| m % (16 * r) == 0 && n % (16 * c) == 0;
    let all = (0..=warps.ilog2()).map(|e| [warps >> e, 1 << e]).filter(fits);
    all.min_by_key(|[r, c]| m / r + n / c)
}

/// The products of a list that the whole block runs.
fn products(k: &Kernel, body: &[Stmt]) -> Vec<Tiled> {
    let of = |s: &Stmt| match s {
        Stmt::Dot(d) => vec![Tiled::new(k, d).unwrap_or_else(|| base::bug!("a product in {} is not expanded", k.name))],
        Stmt::For { body, .. } | Stmt::While { body, .. } => products(k, body),
        Stmt::If { then, otherwise, .. } => [products(k, then), products(k, otherwise)].concat(),
        Stmt::Let(..) | Stmt::Var(..) | Stmt::Assign(..) | Stmt::Accumulate(..) | Stmt::Store { .. } | Stmt::Copy(_) => {
            Vec::new()
        }
    };
    body.iter().flat_map(of).collect()
}

/// What threads hold between them.
#[derive(Clone, Debug, Default)]
pub(crate) struct HeldMemories {
    /// Tiles, by scratch memory.
    pub tiles: Vec<Option<Held>>,
    /// Memories with an element for each row of the tiles: the lanes that share a row all have it.
    pub rows: Vec<bool>,
    /// The rows of all tiles, if there are loops over rows.
    pub row_loops: Option<i64>,
}

/// A vector loop over the columns of groups of a held tile's rows, which sums each over the group's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GroupSum {
    /// The tile, and its columns.
    pub scratch: usize,
    pub columns: i64,
    /// Rows of a group: a power of two, all of one warp.
    pub rows: i64,
    /// The statement of the body that sums, and the variable that it adds to.
    pub at: usize,
    pub sum: VarId,
}

impl GroupSum {
    /// `for e in 0..groups·n: q = e / n, c = e % n, …, for h in 0..rows: sum += tile[(q·rows + h)·n + c], …`, if the loop is one. Each of a warp's lanes
    /// that share columns ends with as many of the sums as the others, which are two neighbours or more.
    pub(crate) fn of(h: &HeldMemories, var: VarId, hi: &Expr, body: &[Stmt]) -> Option<GroupSum> {
        let part = |f: MapFn, n: i64| {
            let want = Expr::Map(f, vec![Expr::Var(var), Expr::int(n)]);
            body.iter().find_map(|s| if let Stmt::Let(v, e) = s { (*e == want).then_some(*v) } else { None })
        };
        body.iter().enumerate().find_map(|(at, s)| {
            let Stmt::For { var: turn, lo, hi: rows, kind: LoopKind::Serial, body } = s else { return None };
            let [Stmt::Accumulate(sum, ReduceFn::Sum, Expr::Load(Mem::Scratch(scratch), index))] = &body[..] else { return None };
            let (rows, Held { extents: [m, n] }) = (rows.known()?, h.tiles[*scratch]?);
            let [q, c] = [part(MapFn::FloorDiv, n)?, part(MapFn::Rem, n)?].map(Expr::Var);
            let place = (q * Expr::int(rows) + Expr::Var(*turn)) * Expr::int(n) + c;
            let even = [2, 4, 8, 16].contains(&rows) && n % (8 * rows.min(8)) == 0;
            let whole = lo.known() == Some(0) && even && hi.known() == Some(m / rows * n);
            (whole && **index == place).then_some(GroupSum { scratch: *scratch, columns: n, rows, at, sum: *sum })
        })
    }
}

/// The scratch memories that threads can hold: sums of products, if `first` is set also first operands of others, else only touched at element `e` by
/// vector loops over all elements `e`, or at column `c` of row `r` by vector loops over `c` in vector loops over `r`; with `first`, also by [`GroupSum`].
fn held(k: &Kernel, body: &[Stmt], products: &[Tiled], first: bool) -> HeldMemories {
    let none = || HeldMemories { tiles: vec![None; k.scratch.len()], rows: vec![false; k.scratch.len()], row_loops: None };
    let mut h = none();
    let mut refused = vec![false; k.scratch.len()];
    let mut tile = |m: &Matrix, extents: [i64; 2]| {
        let this = Held { extents };
        let fits = m.row == extents[1] && m.col == 1 && k.scratch[m.scratch].elems as i64 == extents[0] * extents[1];
        refused[m.scratch] |= !fits || h.tiles[m.scratch].replace(this).is_some_and(|other| other != this);
    };
    for t in products {
        let [m, n, _] = t.extents;
        tile(&t.c, [m, n]);
    }
    let mut others = Vec::new();
    for t in products {
        let narrow = matches!(k.scratch[t.a.scratch].dtype, DType::BF16 | DType::F16);
        if first && narrow && t.a.col == 1 && !is_copied(body, Mem::Scratch(t.a.scratch)) {
            tile(&t.a, [t.extents[0], t.extents[2]]);
        } else {
            others.push(t.a.scratch);
        }
        others.push(t.b.scratch);
    }
    // Tiles of the same dtype and rows that only loops touch.
    let rows = products.first().map(|t| t.extents[0]);
    others.into_iter().for_each(|s| refused[s] = true);
    let is_row = |i: usize| h.tiles[i].is_none() && k.scratch[i].dtype == DType::F32 && rows == Some(k.scratch[i].elems as i64);
    h.rows = (0..k.scratch.len()).map(|i| is_row(i) && !refused[i]).collect();
    let scan = |h: &HeldMemories, refused: Vec<bool>| {
        let mut scan = Scan { held: h, rows, refused, row_loops: false, groups: first };
        scan.stmts(body, At::Outside);
        (scan.refused, scan.row_loops)
    };
    let (mut refused, mut row_loops) = scan(&h, refused);
    if !row_loops {
        // Results that are copied out, and lie as the sums that they are computed from.
        let sums: Vec<[i64; 2]> = products.iter().map(|t| [t.extents[0], t.extents[1]]).collect();
        let given = copied_out(body).into_iter().chain(added_to(k, body, products));
        for (i, extents) in given.filter(|(i, e)| !refused[*i] && sums.contains(e)) {
            if h.tiles[i].is_none() && !h.rows[i] && k.scratch[i].elems as i64 == extents[0] * extents[1] {
                h.tiles[i] = Some(Held { extents });
            }
        }
        (refused, row_loops) = scan(&h, refused);
    }
    let touched = |i: usize| h.tiles[i].is_some() || h.rows[i];
    let refuses = (0..k.scratch.len()).any(|i| touched(i) && refused[i]);
    if row_loops && (refuses || products.iter().any(|t| Some(t.extents[0]) != rows)) {
        return none();
    }
    for (i, no) in refused.into_iter().enumerate() {
        h.tiles[i] = h.tiles[i].filter(|_| !no);
        h.rows[i] &= !no && row_loops;
    }
    h.row_loops = rows.filter(|_| row_loops);
    h
}

/// The scratch memories that are copied to buffers as rectangles, and the rows and columns of these.
fn copied_out(body: &[Stmt]) -> Vec<(usize, [i64; 2])> {
    let of = |s: &Stmt| match s {
        Stmt::Copy(c) => match c.from {
            Mem::Scratch(i) => vec![(i, [c.rows, c.cols])],
            Mem::Buffer(_) => Vec::new(),
        },
        s => s.lists().into_iter().flat_map(copied_out).collect(),
    };
    body.iter().flat_map(of).collect()
}

/// The scratch memories of f32 that loops add products of codes to, and the rows and columns of these.
fn added_to(k: &Kernel, body: &[Stmt], products: &[Tiled]) -> Vec<(usize, [i64; 2])> {
    let of = |s: &Stmt| match s {
        Stmt::For { kind: LoopKind::Vector, body, .. } => {
            let access = Access::of(body);
            let codes =
                |t: &&Tiled| k.scratch[t.b.scratch].dtype == DType::E4M3 && access.read.contains(&Mem::Scratch(t.c.scratch));
            let Some(t) = products.iter().find(codes) else { return Vec::new() };
            let scratch = |m: &Mem| match m {
                Mem::Scratch(i) if k.scratch[*i].dtype == DType::F32 && *i != t.c.scratch => {
                    Some((*i, [t.extents[0], t.extents[1]]))
                }
                Mem::Scratch(_) | Mem::Buffer(_) => None,
            };
            access.written.iter().filter_map(scratch).collect()
        }
        s => s.lists().into_iter().flat_map(|b| added_to(k, b, products)).collect(),
    };
    body.iter().flat_map(of).collect()
}

fn is_copied(body: &[Stmt], mem: Mem) -> bool {
    let into = |s: &Stmt| matches!(s, Stmt::Copy(c) if c.to == mem);
    body.iter().any(|s| into(s) || s.lists().into_iter().any(|b| is_copied(b, mem)))
}

/// Whether a vector loop of so many turns is over the rows of held tiles: it touches what there is one of for each, or has loops over columns.
pub(crate) fn is_row_loop(h: &HeldMemories, rows: Option<i64>, hi: &Expr, body: &[Stmt]) -> bool {
    let access = Access::of(body);
    let mut touched = access.read.union(&access.written);
    let own = |m: &Mem| matches!(m, Mem::Scratch(i) if h.rows[*i]);
    let tile = |m: &Mem| matches!(m, Mem::Scratch(i) if h.tiles[*i].is_some());
    rows.is_some() && hi.known() == rows && touched.any(|m| own(m) || tile(m) && widest_list(body).is_some())
}

/// The loops over tiles around a statement.
#[derive(Clone, Copy, PartialEq)]
enum At {
    Outside,
    /// Elements, and how many.
    Elems(VarId, i64),
    /// Turns over first units, how many, and these.
    Units(VarId, i64, ir::Units),
    /// A row.
    Row(VarId),
    /// A row, a column, and how many columns.
    Column(VarId, VarId, i64),
}

/// Finds accesses that only a memory allows.
struct Scan<'a> {
    held: &'a HeldMemories,
    rows: Option<i64>,
    refused: Vec<bool>,
    row_loops: bool,
    /// Whether warp groups hold tiles: then warps may sum over groups of rows, and a thread has the same columns of each eight of a row.
    groups: bool,
}

/// The units of a loop over the columns of first units of scratch memories, which loads all before it stores.
pub(crate) fn units_of(body: &[Stmt]) -> Option<ir::Units> {
    let mut found = None;
    let mut look = |mem: &Mem, index: &Expr| {
        let units = || index.as_in_unit().map(|(_, units, _)| units);
        found = found.or_else(|| if matches!(mem, Mem::Scratch(_)) { units() } else { None });
    };
    for s in body {
        exprs(s, &mut |e| {
            visit(e, &mut |e| {
                if let Expr::Load(mem, index) = e {
                    look(mem, index)
                }
            })
        });
        if let Stmt::Store { mem, index, .. } = s {
            look(mem, index);
        }
    }
    found.filter(|_| loads_first(body))
}

impl Scan<'_> {
    fn stmts(&mut self, body: &[Stmt], at: At) {
        for s in body {
            exprs(s, &mut |e| {
                visit(e, &mut |e| {
                    if let Expr::Load(mem, index) = e {
                        self.touch(*mem, index, at);
                    }
                });
            });
            match s {
                Stmt::Store { mem, index, .. } => self.touch(*mem, index, at),
                Stmt::For { var, lo, hi, kind: LoopKind::Vector, body } if at == At::Outside && lo.known() == Some(0) => {
                    if is_row_loop(self.held, self.rows, hi, body) {
                        self.row_loops = true;
                        self.stmts(body, At::Row(*var));
                    } else if let Some(g) = GroupSum::of(self.held, *var, hi, body).filter(|_| self.groups) {
                        [&body[..g.at], &body[g.at + 1..]].into_iter().for_each(|b| self.stmts(b, At::Elems(*var, -1)));
                    } else {
                        let count = hi.known().unwrap_or(-1);
                        self.stmts(body, units_of(body).map_or(At::Elems(*var, count), |u| At::Units(*var, count, u)));
                        self.alike(body);
                    }
                }
                Stmt::For { var, lo, hi, kind: LoopKind::Vector, body } => match at {
                    At::Row(row) if lo.known() == Some(0) => self.stmts(body, At::Column(row, *var, hi.known().unwrap_or(-1))),
                    _ => self.stmts(body, At::Elems(*var, -1)),
                },
                Stmt::For { body, .. } | Stmt::While { body, .. } => self.stmts(body, at),
                Stmt::If { then, otherwise, .. } => [then, otherwise].into_iter().for_each(|b| self.stmts(b, at)),
                Stmt::Copy(c) => {
                    if let Some((_, s)) = c.sides()
                        && (self.held.rows[s] || self.held.tiles[s].is_some_and(|h| h.extents != [c.rows, c.cols]))
                    {
                        self.refused[s] = true;
                    }
                }
                Stmt::Let(..) | Stmt::Var(..) | Stmt::Assign(..) | Stmt::Accumulate(..) | Stmt::Dot(_) => {}
            }
        }
    }
    fn touch(&mut self, mem: Mem, index: &Expr, at: At) {
        let Mem::Scratch(i) = mem else { return };
        let own = if let Some(Held { extents: [m, n] }) = self.held.tiles[i] {
            match at {
                At::Elems(v, count) => *index == Expr::Var(v) && count == m * n,
                At::Column(r, c, count) => count == n && *index == Expr::Var(r) * Expr::int(n) + Expr::Var(c),
                At::Units(v, count, units) => {
                    let ir::Units { unit, period, .. } = units;
                    let whole = period % unit == 0 && n % period == 0 && count * period == m * n * units.turns();
                    let is_place = |(w, of, by)| w == v && of == units && units.taken().any(|x| x == by);
                    self.groups && unit % 8 == 0 && whole && index.as_in_unit().is_some_and(is_place)
                }
                At::Outside | At::Row(_) => false,
            }
        } else if self.held.rows[i] {
            match (at, index) {
                (At::Row(r) | At::Column(r, ..), Expr::Var(v)) => r == *v,
                (At::Elems(v, count), Expr::Map(MapFn::FloorDiv, args)) => {
                    args[0] == Expr::Var(v) && args[1].known().is_some_and(|n| self.rows == Some(count / n) && count % n == 0)
                }
                _ => false,
            }
        } else {
            return;
        };
        self.refused[i] |= !own;
    }
    /// Refuses tiles that one loop touches and that have other extents.
    fn alike(&mut self, body: &[Stmt]) {
        let access = Access::of(body);
        let touched = access.read.union(&access.written).filter_map(|m| match m {
            Mem::Scratch(i) => self.held.tiles[*i].map(|h| (*i, h)),
            Mem::Buffer(_) => None,
        });
        let touched: Vec<(usize, Held)> = touched.collect();
        if touched.iter().any(|(_, h)| *h != touched[0].1) {
            touched.iter().for_each(|(i, _)| self.refused[*i] = true);
        }
    }
}
