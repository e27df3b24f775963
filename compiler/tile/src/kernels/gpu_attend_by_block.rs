//! Softmax attention over lists of blocks for a device of many processors, by blocks of keys: for tiles whose queries would share few of their blocks, because
//! each has few heads or because blocks are large. A query is looked at once for each block that it lists, with all the others that list the block, so
//! that keys come once for many rows. Kernels one after the other:
//!
//! ```text
//! count     lists → counts              how many queries of each part of a batch and a group list each block
//! starts    counts → starts, totals     the same of the parts before, and of all
//! offsets   totals → offsets            the tile that each block's queries begin at
//! place     lists, starts, offsets → rows, position, owner
//!                                       the rows of each tile, -1 for none; where each place of a list has its query, -1 if an earlier one has the
//!                                       same block or there is none; the block of each tile
//! part      q, k, v, domain operands…, rows, owner → parts, sums
//!                                       softmax attention of a tile's rows to their block: o, and lse, -∞ where nothing is seen
//! merge     position, parts, sums → o, lse
//! ```
//!
//! A tile's rows are queries, each with all heads that share keys, in order. The sort is stable and parts are added in the order of a query's list, so sums
//! have one order. Work: a look for each query and
//! block there is, and two of everything that parts take: their o are in the dtype of the result.
//!
//! # Source: Lu et al., MoBA, arXiv 2502.13189, algorithm 1; Dao, FlashAttention-2, 2023, on merging. Tested on the domains and sizes of `tests/attend.rs`.

use super::{
    build::{Build, both, div, eq, exp},
    domain::{Problem, Scene, driving_list},
    gpu_attend::{self, Attend, Gathered, Heads, Rows, Scratch, is_plain, pick_rows},
};
use crate::ir::{Expr, Kernel, LoopKind, Mem, VarId};
use base::{DType, Dim, TensorType};
use graph::op::{Domain, MapFn};

/// Parts of the queries of a batch and a group.
const PARTS: i64 = 64;
/// Places of a list: their numbers are kept as f16.
const MOST_PLACES: i64 = 2047;
/// Lists of blocks that a block of threads has.
const LISTS: i64 = 128;
/// Fewer queries are no tiles.
const FEW: i64 = 1024;
/// Places of a list, at most, whose results are kept apart until they are joined.
const MOST_JOINED: i64 = 32;
/// Queries that the sort looks at together, and blocks, at most: what takes 32 KiB of shared memory.
const MOST_PIECE: i64 = 32;
const MOST_WINDOW: i64 = 512;
/// Keys of a block that may be many tiles'.
const LARGE: i64 = 256;
/// Heads that share keys, so few that tiles of several queries with other lists would mostly multiply in vain.
const FEW_HEADS: i64 = 4;

/// The list of a problem, and sizes.
#[derive(Clone, Debug)]
struct Plan {
    operand: usize,
    /// Keys of a block.
    size: i64,
    rest: Domain,
    /// Places of a list.
    n: i64,
    /// Heads that share keys.
    heads: i64,
    /// Queries of a tile.
    queries: i64,
    /// Queries that the sort looks at together, and blocks.
    piece: i64,
    window: i64,
}

impl Plan {
    fn new(p: &Problem, t: gpu_attend::Tiling) -> Option<Plan> {
        let (Domain::Blocks { idx, size }, rest) = driving_list(&p.domain)? else { return None };
        let n = p.operands[idx].shape[3].known()?;
        let fits = t.heads == p.h / p.g
            && t.rows % t.heads == 0
            && size % t.keys == 0
            && !rest.has_lists()
            && (1..=MOST_PLACES).contains(&n);
        fits.then_some(Plan {
            operand: idx,
            size,
            rest,
            n,
            heads: t.heads,
            queries: t.queries(),
            piece: MOST_PIECE.min(t.rows / 2),
            window: MOST_WINDOW.min(8 * t.rows),
        })
    }
    /// Blocks of a batch and a group.
    fn blocks(&self, p: &Problem) -> Dim {
        p.s.ceil_div(&Dim::from(self.size))
    }
    /// Blocks of all.
    fn lists(&self, p: &Problem) -> Dim {
        self.blocks(p) * groups(p)
    }
    /// Tiles that there may be: those that are full, and one of each block that is not.
    fn tiles(&self, p: &Problem) -> Dim {
        places(p, self).ceil_div(&Dim::from(self.queries)) + self.lists(p)
    }
}

/// Batches with their groups.
fn groups(p: &Problem) -> Dim {
    p.b.clone() * Dim::from(p.g)
}
fn places(p: &Problem, plan: &Plan) -> Dim {
    groups(p) * p.t.clone() * Dim::from(plan.n)
}

/// The tiling, where attention by blocks is faster than by queries.
pub fn choose(p: &Problem) -> Option<gpu_attend::Tiling> {
    let (Domain::Blocks { size, .. }, _) = driving_list(&p.domain)? else { return None };
    let narrow = matches!(p.dtype, DType::BF16 | DType::F16);
    let wide = p.dk > 192 || p.dv > 128;
    let keys = if size % 128 == 0 && !wide { 128 } else { 64 };
    let tiling = gpu_attend::Tiling { rows: 128, keys, heads: p.h / p.g };
    let many = p.t.known().is_none_or(|t| t >= FEW);
    let pays = tiling.heads <= FEW_HEADS || size >= LARGE;
    // Each place of a list has results of its own, which one kernel joins.
    let short = Plan::new(p, tiling).is_some_and(|plan| plan.n <= MOST_JOINED);
    (narrow && many && pays && short && p.dk % 64 == 0 && p.dv % 64 == 0 && takes(p, tiling, true)).then_some(tiling)
}

/// Whether the kernels take the problem with this tiling.
pub fn takes(p: &Problem, t: gpu_attend::Tiling, aligned: bool) -> bool {
    is_plain(p, aligned) && Plan::new(p, t).is_some()
}

/// The domain's operand with the lists.
///
/// # Panics
/// If the kernels do not take the problem.
pub fn lists(p: &Problem, t: gpu_attend::Tiling) -> usize {
    plan(p, t).operand
}

/// Whether queries can be sorted by the blocks of the problem's lists, and what each place of a list gives be kept apart.
pub fn sorts(p: &Problem, t: gpu_attend::Tiling) -> bool {
    takes(p, t, true) && plan(p, t).n <= MOST_JOINED
}

/// The sort as others read it: how many blocks a batch and a group has and tiles there may be, the places of all lists and of one, a block's keys, and what else says
/// what is seen.
pub(super) struct Sort {
    pub blocks: Dim,
    pub tiles: Dim,
    pub places: Dim,
    pub n: i64,
    pub size: i64,
    pub rest: Domain,
}

impl Sort {
    /// # Panics
    /// If the kernels do not take the problem.
    pub fn new(p: &Problem, t: gpu_attend::Tiling) -> Sort {
        let plan = plan(p, t);
        let (blocks, tiles, places) = (plan.blocks(p), plan.tiles(p), places(p, &plan));
        Sort { blocks, tiles, places, n: plan.n, size: plan.size, rest: plan.rest }
    }
}

fn plan(p: &Problem, t: gpu_attend::Tiling) -> Plan {
    Plan::new(p, t).unwrap_or_else(|| base::bug!("no lists of blocks in {:?}", p.domain))
}

/// The types of counts, starts, totals, offsets, rows, position, owner, parts and sums.
pub fn memories(p: &Problem, t: gpu_attend::Tiling) -> [TensorType; 9] {
    let plan = plan(p, t);
    let i32s = |n: Dim| TensorType::new(DType::I32, vec![n]);
    let (lists, tiles) = (plan.lists(p), plan.tiles(p));
    let table = lists.clone() * Dim::from(PARTS);
    let rows = tiles.clone() * Dim::from(t.rows);
    [
        i32s(table.clone()),
        i32s(table),
        i32s(lists.clone()),
        i32s(lists + Dim::from(1)),
        i32s(rows.clone()),
        i32s(places(p, &plan)),
        i32s(tiles),
        TensorType::new(p.dtype, vec![rows.clone() * Dim::from(p.dv)]),
        TensorType::new(p.sum_dtype(), vec![rows]),
    ]
}

/// The six kernels, in order.
pub fn gpu_attend_by_block(p: &Problem, t: gpu_attend::Tiling) -> [Kernel; 6] {
    let plan = plan(p, t);
    let tiles = offsets(&plan.lists(p), ["offsets"], |b, total| [tiles_of(b, total, plan.queries)]);
    [count(p, &plan), starts(p, &plan), tiles, place(p, &plan, t), part(p, &plan, t), merge(p, &plan, t)]
}

/// Those of the sort but `offsets`.
pub(super) fn gpu_attend_sort(p: &Problem, t: gpu_attend::Tiling) -> [Kernel; 3] {
    let plan = plan(p, t);
    [count(p, &plan), starts(p, &plan), place(p, &plan, t)]
}

fn int(n: i64) -> Expr {
    Build::f(DType::I32, n as f64)
}

/// A part of the queries of a batch and a group.
struct Part {
    list: Mem,
    batch: Expr,
    group: Expr,
    number: Expr,
    /// The first query and one past the last.
    from: Expr,
    to: Expr,
    /// Blocks of the batch and the group.
    blocks: Expr,
    /// The first of these among all.
    first_list: Expr,
    /// Queries.
    t: Expr,
}

impl Part {
    fn new(b: &mut Build, p: &Problem, plan: &Plan) -> Part {
        let lists = &p.operands[plan.operand];
        let list = b.read("lists", lists.dtype, lists.elems());
        b.kernel.grid = groups(p) * Dim::from(PARTS);
        let number = b.bind(Expr::rem(b.block(), Expr::int(PARTS)));
        let rest = b.bind(Expr::floor_div(b.block(), Expr::int(PARTS)));
        let [t, batches, blocks] = [&p.t, &p.b, &plan.blocks(p)].map(|d| b.dim(d));
        let batch = b.bind(Expr::rem(rest.clone(), batches.clone()));
        let group = b.bind(Expr::floor_div(rest.clone(), batches));
        let size = b.dim(&p.t.ceil_div(&Dim::from(PARTS)));
        let from = b.bind(Expr::minimum(number.clone() * size.clone(), t.clone()));
        let to = b.bind(Expr::minimum(from.clone() + size, t.clone()));
        let first_list = b.bind(rest * blocks.clone());
        Part { list, batch, group, number, from, to, blocks, first_list, t }
    }
    /// Element `block` of the part's row of a table.
    fn row(&self, block: &Expr) -> Expr {
        self.first_list.clone() * Expr::int(PARTS) + self.number.clone() * self.blocks.clone() + block.clone()
    }
    /// The first place of a query's list.
    fn places(&self, p: &Problem, plan: &Plan, query: Expr) -> Expr {
        ((self.batch.clone() * self.t.clone() + query) * Expr::int(p.g) + self.group.clone()) * Expr::int(plan.n)
    }
    /// Runs `begin` for each window of blocks, which is given its first; then for each piece of the part's queries `piece`, which is also given the first query and
    /// how many, and then `end`. For each query of a piece and block of the window `seen` has 0, or one more than the first place of the list that
    /// has the block.
    fn each(
        &self,
        b: &mut Build,
        p: &Problem,
        plan: &Plan,
        begin: impl FnOnce(&mut Build, &Expr),
        piece: impl FnOnce(&mut Build, &Expr, [&Expr; 2], Mem),
        end: impl FnOnce(&mut Build, &Expr),
    ) {
        let seen = b.scratch("seen", DType::F16, plan.piece * plan.window);
        // Where there are no keys, one window says of every place that it has no tile.
        let windows = Expr::floor_div(self.blocks.clone() + Expr::int(plan.window - 1), Expr::int(plan.window));
        let windows = b.bind(Expr::maximum(windows, Expr::int(1)));
        let pieces = Expr::floor_div(self.to.clone() - self.from.clone() + Expr::int(plan.piece - 1), Expr::int(plan.piece));
        let pieces = b.bind(pieces);
        b.range(windows, |b, w| {
            let window = b.bind(w * Expr::int(plan.window));
            begin(b, &window);
            b.range(pieces, |b, i| {
                let from = b.bind(self.from.clone() + i * Expr::int(plan.piece));
                let size = b.bind(Expr::minimum(self.to.clone() - from.clone(), Expr::int(plan.piece)));
                b.fill(seen, Expr::int(plan.piece * plan.window), Build::f(DType::F32, 0.0));
                b.each(size.clone(), |b, q| {
                    let places = b.bind(self.places(p, plan, from.clone() + q.clone()));
                    // The last first, so that the first one stays.
                    b.range(Expr::int(plan.n), |b, i| {
                        let place = b.bind(Expr::int(plan.n - 1) - i);
                        let block = Expr::load(self.list, places.clone() + place.clone()).cast(DType::I64) - window.clone();
                        let block = b.bind(block);
                        let inside = both(Expr::le(Expr::int(0), block.clone()), Expr::lt(block.clone(), Expr::int(plan.window)));
                        b.if_(inside, |b| {
                            let number = (place + Expr::int(1)).cast(DType::F32);
                            b.store(seen, q.clone() * Expr::int(plan.window) + block, number);
                        });
                    });
                });
                piece(b, &window, [&from, &size], seen);
            });
            end(b, &window);
        });
    }
}

fn count(p: &Problem, plan: &Plan) -> Kernel {
    let mut b = Build::new("attend_count");
    let part = Part::new(&mut b, p, plan);
    let counts = b.write("counts", DType::I32, plan.lists(p) * Dim::from(PARTS));
    let found = b.scratch("found", DType::I32, plan.window);
    part.each(
        &mut b,
        p,
        plan,
        |b, _| b.fill(found, Expr::int(plan.window), int(0)),
        |b, _, [_, size], seen| {
            b.each(Expr::int(plan.window), |b, j| {
                let sum = b.var(DType::I32, Expr::load(found, j.clone()));
                b.range(size.clone(), |b, q| {
                    let some = Expr::lt(Build::f(DType::F32, 0.0), Expr::load(seen, q * Expr::int(plan.window) + j.clone()));
                    b.assign(sum, Expr::Var(sum) + some.cast(DType::I32));
                });
                b.store(found, j, Expr::Var(sum));
            });
        },
        |b, window| {
            let here = b.bind(Expr::minimum(part.blocks.clone() - window.clone(), Expr::int(plan.window)));
            b.each(here, |b, j| b.store(counts, part.row(&(window.clone() + j.clone())), Expr::load(found, j)));
        },
    );
    b.finish()
}

fn starts(p: &Problem, plan: &Plan) -> Kernel {
    let mut b = Build::new("attend_starts");
    let lists = plan.lists(p);
    let counts = b.read("counts", DType::I32, lists.clone() * Dim::from(PARTS));
    let starts = b.write("starts", DType::I32, lists.clone() * Dim::from(PARTS));
    let totals = b.write("totals", DType::I32, lists.clone());
    b.kernel.grid = lists.ceil_div(&Dim::from(LISTS));
    let [all, blocks] = [&lists, &plan.blocks(p)].map(|d| b.dim(d));
    let first = b.bind(b.block() * Expr::int(LISTS));
    let last = b.bind(Expr::minimum(first.clone() + Expr::int(LISTS), all));
    b.for_(first, last, LoopKind::Vector, |b, list| {
        let block = b.bind(Expr::rem(list.clone(), blocks.clone()));
        let at = b.bind((list.clone() - block.clone()) * Expr::int(PARTS) + block);
        let sum = b.var(DType::I32, int(0));
        let load = |b: &mut Build, part: Expr| {
            let at = b.bind(at.clone() + part * blocks.clone());
            (at.clone(), b.bind(Expr::load(counts, at)))
        };
        b.at_once([Expr::int(0), Expr::int(PARTS)], 8, load, |b, (at, n)| {
            b.store(starts, at, Expr::Var(sum));
            b.assign(sum, Expr::Var(sum) + n);
        });
        b.store(totals, list, Expr::Var(sum));
    });
    b.finish()
}

/// Lanes that share out the lists.
const LANES: i64 = 256;

/// One block: what blocks of keys before each one add, and all of them; a lane sums a part of the totals, then goes on from the parts before. Buffers: totals of so many
/// blocks, then a result for each name, to which a total adds what `adds` has of it.
pub(super) fn offsets<const N: usize>(blocks: &Dim, names: [&str; N], adds: impl Fn(&mut Build, Expr) -> [Expr; N]) -> Kernel {
    let mut b = Build::new("attend_offsets");
    let totals = b.read("totals", DType::I32, blocks.clone());
    let results = names.map(|name| b.write(name, DType::I32, blocks.clone() + Dim::from(1)));
    let parts = names.map(|name| b.scratch(&format!("{name}_of_lanes"), DType::I32, LANES));
    let (size, n) = (b.dim(&blocks.ceil_div(&Dim::from(LANES))), b.dim(blocks));
    let bounds = |b: &mut Build, lane: &Expr| {
        let from = b.bind(Expr::minimum(lane.clone() * size.clone(), n.clone()));
        [from.clone(), b.bind(Expr::minimum(from + size.clone(), n.clone()))]
    };
    let load = |b: &mut Build, i: Expr| {
        let total = b.bind(Expr::load(totals, i.clone()));
        (i, adds(b, total))
    };
    let add = |b: &mut Build, sums: [VarId; N], more: [Expr; N]| {
        sums.into_iter().zip(more).for_each(|(sum, x)| b.assign(sum, Expr::Var(sum) + x));
    };
    let store = |b: &mut Build, mems: [Mem; N], at: &Expr, sums: [VarId; N]| {
        mems.into_iter().zip(sums).for_each(|(mem, sum)| b.store(mem, at.clone(), Expr::Var(sum)));
    };
    b.each(Expr::int(LANES), |b, lane| {
        let range = bounds(b, &lane);
        let sums = names.map(|_| b.var(DType::I32, int(0)));
        b.at_once(range, 8, load, |b, (_, more)| add(b, sums, more));
        store(b, parts, &lane, sums);
    });
    b.each(Expr::int(LANES), |b, lane| {
        let range = bounds(b, &lane);
        let sums = names.map(|_| b.var(DType::I32, int(0)));
        b.range(lane.clone(), |b, before| add(b, sums, parts.map(|part| Expr::load(part, before.clone()))));
        b.at_once(range, 8, load, |b, (i, more)| {
            store(b, results, &i, sums);
            add(b, sums, more);
        });
        // The last lane has them all.
        b.if_(eq(lane.clone(), Expr::int(LANES - 1)), |b| {
            let end = b.bind(n.clone() + lane - Expr::int(LANES - 1));
            store(b, results, &end, sums);
        });
    });
    b.finish()
}

/// The tiles of so many queries that a total takes.
pub(super) fn tiles_of(b: &mut Build, total: Expr, queries: i64) -> Expr {
    b.bind(Expr::floor_div(total + int(queries - 1), int(queries)))
}

fn place(p: &Problem, plan: &Plan, t: gpu_attend::Tiling) -> Kernel {
    let mut b = Build::new("attend_place");
    let part = Part::new(&mut b, p, plan);
    let (lists, tiles) = (plan.lists(p), plan.tiles(p));
    let starts = b.read("starts", DType::I32, lists.clone() * Dim::from(PARTS));
    let offsets = b.read("offsets", DType::I32, lists.clone() + Dim::from(1));
    let rows = b.write("rows", DType::I32, tiles.clone() * Dim::from(t.rows));
    let position = b.write("position", DType::I32, places(p, plan));
    let owner = b.write("owner", DType::I32, tiles.clone());
    let heads = plan.heads;
    let row_of = |query: Expr, head: i64| {
        let query = part.batch.clone() * part.t.clone() + query;
        (query * Expr::int(p.h) + part.group.clone() * Expr::int(heads) + Expr::int(head)).cast(DType::I32)
    };
    let offset = |b: &mut Build, list: Expr| b.bind(Expr::load(offsets, list).cast(DType::I64));
    let next = b.scratch("next", DType::I32, plan.window);
    let here = |b: &mut Build, window: &Expr| b.bind(Expr::minimum(part.blocks.clone() - window.clone(), Expr::int(plan.window)));
    part.each(
        &mut b,
        p,
        plan,
        |b, window| {
            let here = here(b, window);
            b.each(here, |b, j| {
                let block = b.bind(window.clone() + j.clone());
                let start = Expr::load(offsets, part.first_list.clone() + block.clone()) * int(plan.queries);
                b.store(next, j, start + Expr::load(starts, part.row(&block)));
            });
        },
        |b, window, [from, size], seen| {
            b.each(size.clone() * Expr::int(plan.n), |b, e| {
                let (q, place) = (Expr::floor_div(e.clone(), Expr::int(plan.n)), Expr::rem(e, Expr::int(plan.n)));
                let [q, place] = [q, place].map(|x| b.bind(x));
                let at = b.bind(part.places(p, plan, from.clone() + q.clone()) + place.clone());
                let block = b.bind(Expr::load(part.list, at.clone()).cast(DType::I64));
                let known = both(Expr::le(Expr::int(0), block.clone()), Expr::lt(block.clone(), part.blocks.clone()));
                let known = b.bind(known);
                let inside = both(
                    Expr::le(window.clone(), block.clone()),
                    Expr::lt(block.clone(), window.clone() + Expr::int(plan.window)),
                );
                let inside = b.bind(both(known.clone(), inside));
                let column = b.bind(Expr::select(inside.clone(), block - window.clone(), Expr::int(0)));
                let number = Expr::load(seen, q * Expr::int(plan.window) + column);
                let later = Expr::lt(number, (place + Expr::int(1)).cast(DType::F32));
                // An earlier place has it, or there is no such block.
                let none = Expr::select(inside, later, Expr::map1(MapFn::Not, known));
                b.if_(none, |b| b.store(position, at, int(-1)));
            });
            let here = here(b, window);
            b.each(here, |b, j| {
                let to = b.var(DType::I32, Expr::load(next, j.clone()));
                b.range(size.clone(), |b, q| {
                    let number = b.bind(Expr::load(seen, q.clone() * Expr::int(plan.window) + j.clone()).cast(DType::I64));
                    b.if_(Expr::lt(Expr::int(0), number.clone()), |b| {
                        let query = b.bind(from.clone() + q);
                        let slot = b.bind(Expr::Var(to).cast(DType::I64) * Expr::int(heads));
                        (0..heads).for_each(|head| b.store(rows, slot.clone() + Expr::int(head), row_of(query.clone(), head)));
                        let at = part.places(p, plan, query) + number - Expr::int(1);
                        b.store(position, at, Expr::Var(to));
                        b.assign(to, Expr::Var(to) + int(1));
                    });
                });
                b.store(next, j, Expr::Var(to));
            });
        },
        |b, window| {
            // The last part has what a block's last tile is left with, the first says whose its tiles are.
            let here = here(b, window);
            b.each(here, |b, j| {
                let list = b.bind(part.first_list.clone() + window.clone() + j.clone());
                let [tile, end] = [list.clone(), list.clone() + Expr::int(1)].map(|i| offset(b, i));
                b.if_(eq(part.number.clone(), Expr::int(PARTS - 1)), |b| {
                    let from = b.bind(Expr::load(next, j).cast(DType::I64) * Expr::int(heads));
                    let to = end.clone() * Expr::int(plan.queries * heads);
                    b.for_(from, to, LoopKind::Serial, |b, i| b.store(rows, i, int(-1)));
                });
                b.if_(eq(part.number.clone(), Expr::int(0)), |b| {
                    b.for_(tile, end, LoopKind::Serial, |b, i| b.store(owner, i, list.cast(DType::I32)));
                });
            });
        },
    );
    // Tiles that are left, shared out among the blocks.
    let grid = b.kernel.grid.clone();
    let [n, lists, share] = [&tiles, &lists, &grid].map(|d| b.dim(d));
    let used = offset(&mut b, lists);
    let size = b.bind(Expr::floor_div(n.clone() - used.clone() + share.clone() - Expr::int(1), share));
    let from = b.bind(Expr::minimum(used + b.block() * size.clone(), n.clone()));
    let to = b.bind(Expr::minimum(from.clone() + size, n));
    b.for_(from.clone(), to.clone(), LoopKind::Vector, |b, i| b.store(owner, i, int(-1)));
    let [from, to] = [from, to].map(|x| b.bind(x * Expr::int(t.rows)));
    b.for_(from, to, LoopKind::Vector, |b, i| b.store(rows, i, int(-1)));
    b.finish()
}

/// What a block does with the tile of sorted rows that is its own, if it has rows: the scene of these, the number of their block of keys, and the first row.
pub(super) fn each_tile<'a>(
    b: &mut Build,
    p: &'a Problem,
    blocks: &Dim,
    (owner, rows): (Mem, i64),
    operands: Vec<Mem>,
    tile: impl FnOnce(&mut Build, Scene<'a>, [Expr; 2]),
) {
    let list = b.bind(Expr::load(owner, b.block()).cast(DType::I64));
    b.if_(Expr::le(Expr::int(0), list.clone()), |b| {
        let [blocks, batches, t, s] = [blocks, &p.b, &p.t, &p.s].map(|d| b.dim(d));
        let block = b.bind(Expr::rem(list.clone(), blocks.clone()));
        let rest = b.bind(Expr::floor_div(list, blocks));
        let batch = b.bind(Expr::rem(rest.clone(), batches.clone()));
        let group = b.bind(Expr::floor_div(rest, batches));
        let at = b.bind(b.block() * Expr::int(rows));
        tile(b, Scene { problem: p, operands, t, s, batch, group }, [block, at]);
    });
}

fn part(p: &Problem, plan: &Plan, t: gpu_attend::Tiling) -> Kernel {
    let mut b = Build::new("attend_part");
    let [q_elems, k_elems, v_elems, ..] = p.elems();
    let [q, k, v] = [("q", q_elems), ("k", k_elems), ("v", v_elems)].map(|(name, n)| b.read(name, p.dtype, n));
    let operands = p.operands.iter().enumerate().map(|(i, t)| b.read(&format!("d{i}"), t.dtype, t.elems())).collect();
    let all_rows = plan.tiles(p) * Dim::from(t.rows);
    let rows = b.read("rows", DType::I32, all_rows.clone());
    let owner = b.read("owner", DType::I32, plan.tiles(p));
    let parts = b.write("parts", p.dtype, all_rows.clone() * Dim::from(p.dv));
    let sums = b.write("sums", p.sum_dtype(), all_rows.clone());
    let k = Heads::new(&mut b, k, &p.b, &p.s, p.g, p.dk);
    let v = Heads::new(&mut b, v, &p.b, &p.s, p.g, p.dv);
    let parts = Heads::new(&mut b, parts, &Dim::from(1), &all_rows, 1, p.dv);
    b.kernel.grid = plan.tiles(p);

    each_tile(&mut b, p, &plan.blocks(p), (owner, t.rows), operands, |b, scene, [block, at]| {
        let first_key = b.bind(block * Expr::int(plan.size));
        let gathered = Gathered::new(b, &scene, rows, at.clone(), t.rows, plan.rest.clone());
        let first = gathered.first.clone();
        let scratch = Scratch::new(b, p, t);
        let a = Attend::new(&scene, t, first, Rows::Gathered(gathered), scratch);

        let of_rows = b.dim(&(p.b.clone() * p.t.clone() * Dim::from(p.h)));
        pick_rows(b, (q, a.q), [t.rows, p.dk], &of_rows, (rows, &at));
        a.begin(b);
        let place = |b: &mut Build, j: &Expr| b.bind(first_key.clone() + j.clone() * Expr::int(t.keys));
        a.visit(b, [&k, &v], [&scene.batch, &scene.group], Expr::int(plan.size / t.keys), place);
        let none = Build::f(p.sum_dtype(), f64::NEG_INFINITY);
        a.finish(b, |b, r, saw_none, log| b.store(sums, at.clone() + r, Expr::select(saw_none, none, log)));
        let zero = Expr::int(0);
        parts.copy(b, a.out, t.rows, [&zero, &zero, &at], true);
    });
    b.finish()
}

/// Rows of a block of a kernel that joins parts.
pub(super) const MERGED: i64 = 8;

/// The rows that a query's row has of the tiles, one for each of the `n` places of its list: the row's number, and whether there is one.
pub(super) fn places_of(b: &mut Build, p: &Problem, position: Mem, [n, heads]: [i64; 2], row: &Expr) -> Vec<[Expr; 2]> {
    let head = b.bind(Expr::rem(row.clone(), Expr::int(p.h)));
    let query = b.bind(Expr::floor_div(row.clone(), Expr::int(p.h)));
    let group = b.bind(Expr::floor_div(head.clone(), Expr::int(heads)));
    let own = b.bind(Expr::rem(head, Expr::int(heads)));
    let places = b.bind((query * Expr::int(p.g) + group) * Expr::int(n));
    (0..n)
        .map(|i| {
            let at = b.bind(Expr::load(position, places.clone() + Expr::int(i)).cast(DType::I64));
            let there = b.bind(Expr::le(Expr::int(0), at.clone()));
            [b.bind(Expr::maximum(at, Expr::int(0)) * Expr::int(heads) + own.clone()), there]
        })
        .collect()
}

fn merge(p: &Problem, plan: &Plan, t: gpu_attend::Tiling) -> Kernel {
    let mut b = Build::new("attend_merge");
    let all_rows = plan.tiles(p) * Dim::from(t.rows);
    let position = b.read("position", DType::I32, places(p, plan));
    let parts = b.read("parts", p.dtype, all_rows.clone() * Dim::from(p.dv));
    let sums = b.read("sums", p.sum_dtype(), all_rows);
    let [.., o_elems, lse_elems] = p.elems();
    let o = b.write("o", p.dtype, o_elems);
    let lse = b.write("lse", p.sum_dtype(), lse_elems.clone());
    b.kernel.grid = lse_elems.ceil_div(&Dim::from(MERGED));
    let total = b.dim(&lse_elems);
    let dtype = p.sum_dtype();
    let f = |x: f64| Build::f(dtype, x);
    let none = f(f64::NEG_INFINITY);
    b.each_row(total, MERGED, |b, row| {
        let found: Vec<[Expr; 2]> = places_of(b, p, position, [plan.n, plan.heads], &row)
            .into_iter()
            .map(|[at, there]| {
                let sum = b.bind(Expr::select(there, Expr::load(sums, at.clone()), none.clone()));
                [at, sum]
            })
            .collect();
        let largest = found.iter().map(|[_, sum]| sum.clone()).reduce(Expr::maximum).expect("a list has places");
        let largest = b.bind(largest);
        let saw_none = b.bind(eq(largest.clone(), none.clone()));
        let shift = b.bind(Expr::select(saw_none.clone(), f(0.0), largest));
        let weights: Vec<Expr> = found.iter().map(|[_, sum]| b.bind(exp(sum.clone() - shift.clone()))).collect();
        let sum = b.bind(weights.iter().cloned().reduce(|x, y| x + y).expect("a list has places"));
        let scale = b.bind(Expr::select(saw_none.clone(), f(0.0), div(f(1.0), sum.clone())));
        let log = Expr::select(saw_none, f(0.0), shift + Expr::map1(MapFn::Log, sum));
        b.store(lse, row.clone(), log);
        let froms: Vec<Expr> = found.iter().map(|[at, _]| b.bind(at.clone() * Expr::int(p.dv))).collect();
        let to = b.bind(row * Expr::int(p.dv));
        b.each(Expr::int(p.dv), |b, d| {
            let parts = froms.iter().zip(&weights).map(|(from, w)| {
                // What has no weight may be anything.
                let x = Expr::load(parts, from.clone() + d.clone());
                Expr::select(eq(w.clone(), f(0.0)), f(0.0), x * w.clone())
            });
            let sum = parts.reduce(|x, y| x + y).expect("a list has places") * scale;
            b.store(o, to + d, if p.dtype == dtype { sum } else { sum.cast(p.dtype) });
        });
    });
    b.finish()
}
