//! The union of the blocks that a tile of queries lists, for attention over lists of blocks by many processors. Buffers: the lists, blocks, member, count.
//!
//! ```text
//! for each tile of queries of a batch and a group:
//!     count    how many blocks its queries list that hold keys which one of them may see
//!     blocks   these, each once, in order; then -1
//!     member   for each and each query: whether the query lists it
//! ```
//!
//! The gradient of keys needs the inverse: which queries list a block. They come together in tiles of their own, so that nothing is loaded or multiplied that
//! does not see the block's keys. A block that many queries list is cut into items, so that no block of threads has more than others. Four kernels, one after
//! the other:
//!
//! ```text
//! totals    blocks, member, count → counts, totals   how many queries list each block, those of each lane's tiles and all
//! offsets   totals → offsets, firsts           the tile that each block's queries begin at, and its items
//! entries   blocks, member, count, counts, totals, offsets, firsts → queries, owner
//!                                              for each block the queries that list it, in order, as numbers in [b, t, g]; then -1 to the tile's end
//!                                              for each item its block; those that are left have none of the last one's tiles
//! sorted    queries, l, Δ → l, Δ, rows         what there is one of for each row, in the order of the queries; where they have few heads also each row's number in [b, t, h]
//! ```
//!
//! A lane has a part of the union's tiles and looks a block up by halving. A block of keys is one of a batch and a group, as a tile is.
//!
//! A lane of the union has a place of a list: it is the block's if no place before it has the same, and the block's place in order is the number of smaller ones.
//! Work: the square of the places of a tile, which are few.

use super::{
    build::{Build, both, eq},
    domain::{Problem, Scene, driving_list},
    gpu_attend::{Blocks, Tiling},
    gpu_attend_by_block::{self, tiles_of},
    gpu_attend_grad::padded,
};
use crate::ir::{Expr, Kernel, Mem};
use base::{DType, Dim, TensorType};
use graph::op::{Domain, Scalar};

/// Places that the lists of a tile may have.
const MAX_PLACES: i64 = 256;

/// Tiles of an item.
const ITEM: i64 = 512;

/// What the kernel writes.
const MEMORIES: [(&str, DType); 3] = [("blocks", DType::I32), ("member", DType::Bool), ("count", DType::I32)];

/// The union of each tile's blocks: what an attention kernel reads.
#[derive(Clone, Debug)]
pub(super) struct Union {
    /// The operand with the lists.
    pub operand: usize,
    /// Keys of a block.
    pub size: i64,
    /// The domain's other parts.
    pub rest: Domain,
    /// Queries of a tile.
    pub queries: i64,
    /// Places of a list.
    pub n: i64,
    /// Blocks, members and counts in a kernel that reads them, and its tile's number.
    from: Option<([Mem; 3], Expr)>,
}

/// Keys of a block, where a list of blocks says what is seen.
pub(super) fn block_size(domain: &Domain) -> Option<i64> {
    match driving_list(domain) {
        Some((Domain::Blocks { size, .. }, _)) => Some(size),
        _ => None,
    }
}

impl Union {
    /// The union that a problem's kernel with this tiling needs, if it is one.
    pub fn new(p: &Problem, t: Tiling) -> Option<Union> {
        // The blocks of an only query are their own union.
        Union::listed(p, t).filter(|u| u.places() <= MAX_PLACES && Blocks::of(p, t).is_none())
    }
    /// The lists of a tile's queries, however many places they have.
    pub fn listed(p: &Problem, t: Tiling) -> Option<Union> {
        let (Domain::Blocks { idx, size }, rest) = driving_list(&p.domain)? else { return None };
        let n = p.operands[idx].shape[3].known()?;
        let fits = t.heads == p.h / p.g && t.rows % t.heads == 0 && size % t.keys == 0 && !rest.has_lists();
        let queries = t.rows / t.heads;
        (fits && n > 0).then_some(Union { operand: idx, size, rest, queries, n, from: None })
    }
    /// Places of a tile.
    fn places(&self) -> i64 {
        self.n * self.queries
    }
    /// Elements of blocks, members and counts.
    pub fn elems(&self, p: &Problem) -> [Dim; 3] {
        let tiles = p.t.ceil_div(&Dim::from(self.queries)) * p.b.clone() * Dim::from(p.g);
        let blocks = tiles.clone() * Dim::from(self.places());
        [blocks.clone(), blocks * Dim::from(self.queries), tiles]
    }
    /// The same in a kernel whose blocks are the tiles, as buffers that it reads.
    pub fn read(mut self, b: &mut Build, p: &Problem) -> Union {
        let elems = self.elems(p);
        let mems = std::array::from_fn(|i| b.read(MEMORIES[i].0, MEMORIES[i].1, elems[i].clone()));
        self.from = Some((mems, b.block()));
        self
    }
    fn source(&self) -> &([Mem; 3], Expr) {
        self.from.as_ref().expect("a kernel reads it")
    }
    /// How many pieces of `keys` keys the tile's blocks have.
    pub fn pieces(&self, b: &mut Build, keys: i64) -> Expr {
        let ([_, _, count], tile) = self.source();
        b.bind(Expr::load(*count, tile.clone()).cast(DType::I64) * Expr::int(self.size / keys))
    }
    /// The block of piece `j`, as a place in the memories.
    pub fn entry(&self, j: &Expr, keys: i64) -> Expr {
        let (_, tile) = self.source();
        tile.clone() * Expr::int(self.places()) + Expr::floor_div(j.clone(), Expr::int(self.size / keys))
    }
    /// The first key of piece `j`.
    pub fn piece(&self, b: &mut Build, j: &Expr, keys: i64) -> Expr {
        let ([blocks, ..], _) = self.source();
        let block = b.bind(Expr::load(*blocks, self.entry(j, keys)).cast(DType::I64));
        b.bind(block * Expr::int(self.size) + Expr::rem(j.clone(), Expr::int(self.size / keys)) * Expr::int(keys))
    }
    /// Whether query `q` of its tile lists the block of this entry.
    pub fn lists(&self, entry: &Expr, q: Expr) -> Expr {
        let ([_, member, _], _) = self.source();
        Expr::load(*member, entry.clone() * Expr::int(self.queries) + q)
    }
}

/// The domain's operand with the lists, if this tiling needs unions of them.
pub fn lists(p: &Problem, t: Tiling) -> Option<usize> {
    Union::new(p, t).map(|u| u.operand)
}

/// The types of blocks, members and counts.
pub fn memories(p: &Problem, t: Tiling) -> Vec<TensorType> {
    let of = |u: Union| u.elems(p).into_iter().zip(MEMORIES).map(|(n, (_, dtype))| TensorType::new(dtype, vec![n])).collect();
    Union::new(p, t).map(of).unwrap_or_default()
}

/// The batch, the group and the first position of the tile of `size` positions that a block has: all that share keys are neighbours.
pub(super) fn place(b: &mut Build, p: &Problem, positions: &Dim, size: i64) -> [Expr; 3] {
    let block = b.block();
    place_of(b, p, positions, size, block)
}
/// The same of the tile of this number.
fn place_of(b: &mut Build, p: &Problem, positions: &Dim, size: i64, number: Expr) -> [Expr; 3] {
    let (tiles, batches) = (b.dim(&positions.ceil_div(&Dim::from(size))), b.dim(&p.b));
    let tile = b.bind(Expr::rem(number.clone(), tiles.clone()));
    let rest = b.bind(Expr::floor_div(number, tiles));
    let batch = b.bind(Expr::rem(rest.clone(), batches.clone()));
    [batch, b.bind(Expr::floor_div(rest, batches)), b.bind(tile * Expr::int(size))]
}

/// The kernel, for attention with this tiling.
pub fn gpu_attend_union(p: &Problem, t: Tiling) -> Kernel {
    let u = Union::new(p, t).unwrap_or_else(|| base::bug!("no lists of blocks in {:?}", p.domain));
    let mut b = Build::new("attend_union");
    let lists = &p.operands[u.operand];
    let list = b.read("lists", lists.dtype, lists.elems());
    let elems = u.elems(p);
    let [blocks, member, count] = std::array::from_fn(|i| b.write(MEMORIES[i].0, MEMORIES[i].1, elems[i].clone()));
    b.kernel.grid = p.t.ceil_div(&Dim::from(u.queries)) * p.b.clone() * Dim::from(p.g);
    let [batch, group, first] = place(&mut b, p, &p.t, u.queries);
    let (t, s) = (b.dim(&p.t), b.dim(&p.s));
    let scene = Scene { problem: p, operands: Vec::new(), t: t.clone(), s, batch: batch.clone(), group: group.clone() };
    let last = b.bind(Expr::minimum(first.clone() + Expr::int(u.queries), t.clone()) - Expr::int(1));
    let (lo, hi) = scene.range(&mut b, &u.rest, &first, &last);

    let int = |n: f64| Expr::Const(Scalar::new(n), DType::I32);
    let (places, n, size) = (Expr::int(u.places()), Expr::int(u.n), Expr::int(u.size));
    let value = b.scratch("value", DType::I32, u.places());
    let is_first = b.scratch("is_first", DType::I32, u.places());
    b.each(places.clone(), |b, e| {
        let query = b.bind(first + Expr::floor_div(e.clone(), n.clone()));
        let inside = Expr::le(query.clone(), last.clone());
        let row = (batch * t + Expr::minimum(query, last)) * Expr::int(p.g) + group;
        let block = b.bind(Expr::load(list, row * n.clone() + Expr::rem(e.clone(), n.clone())).cast(DType::I64));
        let start = b.bind(block.clone() * size.clone());
        let some = both(Expr::lt(start.clone(), hi), Expr::lt(lo, start + size));
        let taken = b.bind(both(inside, both(Expr::le(Expr::int(0), block.clone()), some)));
        b.store(value, e, Expr::select(taken, block.cast(DType::I32), int(-1.0)));
    });
    b.each(places.clone(), |b, e| {
        let own = b.bind(Expr::load(value, e.clone()));
        let before = b.var(DType::I32, int(0.0));
        b.range(e.clone(), |b, other| {
            let same = eq(Expr::load(value, other), own.clone()).cast(DType::I32);
            b.assign(before, Expr::Var(before) + same);
        });
        let new = both(Expr::le(int(0.0), own), eq(Expr::Var(before), int(0.0)));
        b.store(is_first, e, new.cast(DType::I32));
    });
    b.each(places.clone(), |b, e| {
        let own = b.bind(Expr::load(value, e.clone()));
        let (smaller, all) = (b.var(DType::I32, int(0.0)), b.var(DType::I32, int(0.0)));
        b.range(places.clone(), |b, other| {
            let new = b.bind(Expr::load(is_first, other.clone()));
            b.assign(all, Expr::Var(all) + new.clone());
            let below = Expr::lt(Expr::load(value, other), own.clone());
            b.assign(smaller, Expr::Var(smaller) + Expr::select(below, new, int(0.0)));
        });
        let tile = b.block();
        let to = b.bind(tile.clone() * places + Expr::Var(smaller).cast(DType::I64));
        b.if_(eq(Expr::load(is_first, e.clone()), int(1.0)), |b| {
            b.store(blocks, to.clone(), own.clone());
            b.range(Expr::int(u.queries), |b, q| {
                let times = b.var(DType::I32, int(0.0));
                b.range(n.clone(), |b, i| {
                    let same = eq(Expr::load(value, q.clone() * n.clone() + i), own.clone()).cast(DType::I32);
                    b.assign(times, Expr::Var(times) + same);
                });
                b.store(member, to * Expr::int(u.queries) + q, Expr::lt(int(0.0), Expr::Var(times)));
            });
        });
        b.if_(eq(e.clone(), Expr::int(0)), |b| b.store(count, tile.clone() + e.clone(), Expr::Var(all)));
        // Places that are left.
        b.if_(Expr::le(Expr::Var(all).cast(DType::I64), e.clone()), |b| {
            let to = b.bind(tile * Expr::int(u.places()) + e);
            b.store(blocks, to.clone(), int(-1.0));
            b.range(Expr::int(u.queries), |b, q| {
                b.store(member, to * Expr::int(u.queries) + q, Expr::Const(Scalar::new(0.0), DType::Bool));
            });
        });
    });
    b.finish()
}

/// Lanes that share out the tiles of a batch and a group.
const LANES: i64 = 128;

/// The tiles that an item of a block of keys has: what a gradient reads.
pub(super) struct Inverse<'a> {
    union: &'a Union,
    /// Numbers of queries.
    pub queries: Mem,
    /// Numbers of rows, by which those are brought whose queries' heads are no rectangles.
    pub rows: Option<Mem>,
    groups: i64,
    /// The block, and its tiles.
    block: Expr,
    from: Expr,
    to: Expr,
}

/// Blocks of all batches and groups.
fn num_blocks(p: &Problem, u: &Union) -> Dim {
    p.s.ceil_div(&Dim::from(u.size)) * p.b.clone() * Dim::from(p.g)
}
/// As many tiles of a block's queries as there may be: those that are full, and one of each block that is not.
pub(super) fn num_tiles(p: &Problem, u: &Union) -> Dim {
    num_blocks(p, u) + u.elems(p)[0].clone().ceil_div(&Dim::from(u.queries))
}
/// The same of items.
pub(super) fn num_items(p: &Problem, u: &Union) -> Dim {
    num_blocks(p, u) + num_tiles(p, u).ceil_div(&Dim::from(ITEM))
}

impl<'a> Inverse<'a> {
    /// The same in a kernel whose blocks are the items, as buffers that it reads.
    pub fn read(union: &'a Union, b: &mut Build, p: &Problem, heads: i64) -> Inverse<'a> {
        let n = num_blocks(p, union);
        b.kernel.grid = num_items(p, union);
        let offsets = b.read("offsets", DType::I32, n.clone() + Dim::from(1));
        let firsts = b.read("firsts", DType::I32, n + Dim::from(1));
        let all = num_tiles(p, union) * Dim::from(union.queries);
        let queries = b.read("queries", DType::I32, all.clone());
        // Copies by index ask where the indices end.
        b.dim(&all);
        let owner = b.read("owner", DType::I32, num_items(p, union));
        let rows = by_rows(heads).then(|| {
            b.dim(&(all.clone() * Dim::from(heads)));
            b.read("rows", DType::I32, all * Dim::from(heads))
        });
        let load = |b: &mut Build, mem, i: Expr| b.bind(Expr::load(mem, i).cast(DType::I64));
        let item = b.block();
        let block = load(b, owner, item.clone());
        let first = load(b, firsts, block.clone());
        let [begin, end] = [block.clone(), block.clone() + Expr::int(1)].map(|i| load(b, offsets, i));
        let from = b.bind(Expr::minimum(begin + (item - first) * Expr::int(ITEM), end.clone()));
        let to = b.bind(Expr::minimum(from.clone() + Expr::int(ITEM), end));
        Inverse { union, queries, rows, groups: p.g, block, from, to }
    }
    /// The batch, the group and the first key of the item's block.
    pub fn place(&self, b: &mut Build, p: &Problem) -> [Expr; 3] {
        place_of(b, p, &p.s, self.union.size, self.block.clone())
    }
    /// For each tile that the item has: its number, and its first and last query in the batch.
    pub fn each(&self, b: &mut Build, batch: &Expr, t: &Expr, body: impl FnOnce(&mut Build, Expr, [Expr; 2])) {
        let size = self.union.queries;
        let before = b.bind(batch.clone() * t.clone());
        b.for_(self.from.clone(), self.to.clone(), crate::ir::LoopKind::Serial, |b, tile| {
            let slot = tile.clone() * Expr::int(size);
            let ends = [slot.clone(), slot + Expr::int(size - 1)].map(|at| b.bind(Expr::load(self.queries, at).cast(DType::I64)));
            let [first, last] =
                ends.clone().map(|number| b.bind(Expr::floor_div(number, Expr::int(self.groups)) - before.clone()));
            // A tile that is not full is its block's last.
            let last = b.bind(Expr::select(Expr::lt(ends[1].clone(), Expr::int(0)), t.clone() - Expr::int(1), last));
            body(b, tile, [first, last]);
        });
    }
}

/// Heads of a query that are a rectangle in shared memory, as multiples of these.
const HEADS: i64 = 8;

/// Whether rows are brought one by one.
pub fn by_rows(heads: i64) -> bool {
    heads % HEADS != 0
}

/// The types of counts, totals, offsets, firsts, queries, owner, l and Δ, and where rows are brought one by one of their numbers.
pub fn inverse_memories(p: &Problem, t: Tiling) -> Vec<TensorType> {
    let Some(u) = Union::listed(p, t) else { return Vec::new() };
    let blocks = num_blocks(p, &u);
    let ends = blocks.clone() + Dim::from(1);
    let queries = num_tiles(p, &u) * Dim::from(u.queries);
    let counts = blocks.clone() * Dim::from(LANES);
    let all =
        [counts, blocks, ends.clone(), ends, queries.clone(), num_items(p, &u)].map(|n| TensorType::new(DType::I32, vec![n]));
    let rows = queries * Dim::from(t.heads);
    let of_rows = TensorType::new(p.sum_dtype(), vec![rows.clone()]);
    let numbers = by_rows(t.heads).then(|| TensorType::new(DType::I32, vec![rows]));
    [all.into(), vec![of_rows.clone(), of_rows], numbers.into_iter().collect()].concat()
}

/// Elements of the items' sums, of `n` for each key.
pub(super) fn of_items(p: &Problem, u: &Union, n: i64) -> Dim {
    num_items(p, u) * Dim::from(u.size * n)
}

/// The sums that items of a block of keys have, added in order: dk or dv, of `n` elements a key. Buffers: sums, firsts, d.
pub fn gpu_attend_grad_items(p: &Problem, t: Tiling, n: i64) -> Kernel {
    let u = Union::listed(p, t).unwrap_or_else(|| base::bug!("no lists of blocks in {:?}", p.domain));
    let mut b = Build::new("attend_grad_items");
    let all = p.b.clone() * p.s.clone() * Dim::from(p.g * n);
    let sums = b.read("sums", p.sum_dtype(), of_items(p, &u, n));
    let firsts = b.read("firsts", DType::I32, num_blocks(p, &u) + Dim::from(1));
    let d = b.write("d", p.dtype, all.clone());
    b.kernel.grid = all.ceil_div(&Dim::from(ELEMS));
    let (all, s, batches, tiles) = (b.dim(&all), b.dim(&p.s), b.dim(&p.b), b.dim(&p.s.ceil_div(&Dim::from(u.size))));
    let begin = b.bind(b.block() * Expr::int(ELEMS));
    let end = b.bind(Expr::minimum(begin.clone() + Expr::int(ELEMS), all));
    b.for_(begin, end, crate::ir::LoopKind::Vector, |b, i| {
        let column = b.bind(Expr::rem(i.clone(), Expr::int(n)));
        let row = b.bind(Expr::floor_div(i.clone(), Expr::int(n)));
        let group = b.bind(Expr::rem(row.clone(), Expr::int(p.g)));
        let row = b.bind(Expr::floor_div(row, Expr::int(p.g)));
        let key = b.bind(Expr::rem(row.clone(), s.clone()));
        let batch = b.bind(Expr::floor_div(row, s));
        let block = b.bind((group * batches + batch) * tiles + Expr::floor_div(key.clone(), Expr::int(u.size)));
        let at = b.bind(Expr::rem(key, Expr::int(u.size)) * Expr::int(n) + column);
        let bound = |b: &mut Build, i: Expr| b.bind(Expr::load(firsts, i).cast(DType::I64));
        let [from, to] = [block.clone(), block + Expr::int(1)].map(|i| bound(b, i));
        let sum = b.var(p.sum_dtype(), Build::f(p.sum_dtype(), 0.0));
        b.for_(from, to, crate::ir::LoopKind::Serial, |b, item| {
            let x = Expr::load(sums, item * Expr::int(u.size * n) + at);
            b.assign(sum, Expr::Var(sum) + x);
        });
        let sum = Expr::Var(sum);
        b.store(d, i, if p.dtype == p.sum_dtype() { sum } else { sum.cast(p.dtype) });
    });
    b.finish()
}

/// Elements that a block of threads adds.
const ELEMS: i64 = 1024;

/// The four kernels of the inverse.
pub fn gpu_attend_inverse(p: &Problem, t: Tiling) -> [Kernel; 4] {
    let u = Union::new(p, t).unwrap_or_else(|| base::bug!("no lists of blocks in {:?}", p.domain));
    [totals(p, &u), offsets(p, &u), entries(p, &u), sorted(p, &u, t.heads)]
}

/// `sorted` alone.
pub fn gpu_attend_sorted(p: &Problem, t: Tiling) -> Kernel {
    let u = Union::listed(p, t).unwrap_or_else(|| base::bug!("no lists of blocks in {:?}", p.domain));
    sorted(p, &u, t.heads)
}

/// The inverse where `gpu_attend_by_block` has sorted rows by blocks: `offsets`, and what `entries` gives, of the rows. Buffers: totals, offsets, firsts; rows, offsets, firsts,
/// queries, owner.
pub(super) fn gpu_attend_listed(p: &Problem, t: Tiling) -> [Kernel; 2] {
    let u = Union::listed(p, t).unwrap_or_else(|| base::bug!("no lists of blocks in {:?}", p.domain));
    let mut b = Build::new("attend_listed");
    let tiles = gpu_attend_by_block::Sort::new(p, t).tiles;
    let rows = b.read("rows", DType::I32, tiles * Dim::from(t.rows));
    let ends = num_blocks(p, &u) + Dim::from(1);
    let [offsets, firsts] = ["offsets", "firsts"].map(|name| b.read(name, DType::I32, ends.clone()));
    let queries = b.write("queries", DType::I32, num_tiles(p, &u) * Dim::from(u.queries));
    let owner = b.write("owner", DType::I32, num_items(p, &u));
    b.kernel.grid = num_blocks(p, &u);
    let block = b.block();
    let slots = |b: &mut Build, i: Expr| b.bind(Expr::load(offsets, i).cast(DType::I64) * Expr::int(u.queries));
    let [from, to] = [block.clone(), block + Expr::int(1)].map(|i| slots(&mut b, i));
    let heads = int(t.heads as f64);
    b.for_(from, to, crate::ir::LoopKind::Vector, |b, i| {
        let row = b.bind(Expr::load(rows, i.clone() * Expr::int(t.heads)));
        let number = Expr::floor_div(Expr::map2(graph::op::MapFn::Max, row.clone(), int(0.0)), heads);
        b.store(queries, i, Expr::select(Expr::lt(row, int(0.0)), int(-1.0), number));
    });
    own_items(&mut b, p, &u, [offsets, firsts, queries, owner]);
    [self::offsets(p, &u), b.finish()]
}

/// Says whose the items of the block's block are, and of its share of the places that are left that they are no queries' and have none of the last block's tiles.
fn own_items(b: &mut Build, p: &Problem, u: &Union, [offsets, firsts, queries, owner]: [Mem; 4]) {
    let block = b.block();
    let bound = |b: &mut Build, mem, i: Expr| b.bind(Expr::load(mem, i).cast(DType::I64));
    let (n, all) = (num_blocks(p, u), num_tiles(p, u) * Dim::from(u.queries));
    let (n, all, items) = (b.dim(&n), b.dim(&all), b.dim(&num_items(p, u)));
    let [from, to] = [block.clone(), block.clone() + Expr::int(1)].map(|i| bound(b, firsts, i));
    b.for_(from, to, crate::ir::LoopKind::Vector, |b, i| b.store(owner, i, block.clone().cast(DType::I32)));
    // Places that are left, shared out among the blocks.
    let used = bound(b, offsets, n.clone()) * Expr::int(u.queries);
    let used = [b.bind(used), bound(b, firsts, n.clone())];
    let last = (n.clone() - Expr::int(1)).cast(DType::I32);
    for (mem, used, all, value) in [(queries, &used[0], all, int(-1.0)), (owner, &used[1], items, last)] {
        let part = b.bind(Expr::floor_div(all.clone() - used.clone() + n.clone() - Expr::int(1), n.clone()));
        let from = b.bind(Expr::minimum(used.clone() + block.clone() * part.clone(), all.clone()));
        let to = b.bind(Expr::minimum(from.clone() + part, all));
        b.for_(from, to, crate::ir::LoopKind::Vector, |b, i| b.store(mem, i, value));
    }
}

fn int(n: f64) -> Expr {
    Expr::Const(Scalar::new(n), DType::I32)
}

/// A block's number among its batch's and group's, and the tiles of these: the first, and how many a lane has.
struct Look {
    blocks: Mem,
    member: Mem,
    count: Mem,
    block: Expr,
    first: Expr,
    tiles: Expr,
    part: Expr,
}

impl Look {
    fn new(b: &mut Build, p: &Problem, u: &Union) -> Look {
        let elems = u.elems(p);
        let [blocks, member, count] = std::array::from_fn(|i| b.read(MEMORIES[i].0, MEMORIES[i].1, elems[i].clone()));
        b.kernel.grid = num_blocks(p, u);
        let own = p.t.ceil_div(&Dim::from(u.queries));
        let (each, part, tiles) =
            (b.dim(&p.s.ceil_div(&Dim::from(u.size))), b.dim(&own.ceil_div(&Dim::from(LANES))), b.dim(&own));
        let block = b.bind(Expr::rem(b.block(), each.clone()).cast(DType::I32));
        let first = b.bind(Expr::floor_div(b.block(), each) * tiles.clone());
        Look { blocks, member, count, block, first, tiles, part }
    }
    /// For each query of a lane's tiles: its number among those of the batch and the group, and whether it lists the block.
    fn each(&self, b: &mut Build, u: &Union, lane: &Expr, body: impl FnOnce(&mut Build, Expr, Expr)) {
        let from = b.bind(Expr::minimum(lane.clone() * self.part.clone(), self.tiles.clone()));
        let to = b.bind(Expr::minimum(from.clone() + self.part.clone(), self.tiles.clone()));
        b.for_(from, to, crate::ir::LoopKind::Serial, |b, i| {
            let tile = b.bind(self.first.clone() + i.clone());
            let start = b.bind(tile.clone() * Expr::int(u.places()));
            let count = b.bind(Expr::load(self.count, tile).cast(DType::I64));
            let (lo, hi) = (b.var(DType::I64, Expr::int(0)), b.var(DType::I64, count.clone()));
            let steps = (u.places() as u64).next_power_of_two().trailing_zeros() + 1;
            b.range(Expr::int(i64::from(steps)), |b, _| {
                let middle = b.bind(Expr::floor_div(Expr::Var(lo) + Expr::Var(hi), Expr::int(2)));
                b.if_(Expr::lt(Expr::Var(lo), Expr::Var(hi)), |b| {
                    let below = b.bind(Expr::lt(Expr::load(self.blocks, start.clone() + middle.clone()), self.block.clone()));
                    b.assign(lo, Expr::select(below.clone(), middle.clone() + Expr::int(1), Expr::Var(lo)));
                    b.assign(hi, Expr::select(below, Expr::Var(hi), middle));
                });
            });
            let known = b.bind(Expr::maximum(Expr::minimum(Expr::Var(lo), count.clone() - Expr::int(1)), Expr::int(0)));
            let place = b.bind(start + known);
            let same = eq(Expr::load(self.blocks, place.clone()), self.block.clone());
            let found = both(Expr::lt(Expr::Var(lo), count), same);
            b.if_(found, |b| {
                b.range(Expr::int(u.queries), |b, q| {
                    let lists = b.bind(Expr::load(self.member, place * Expr::int(u.queries) + q.clone()));
                    let query = b.bind(i * Expr::int(u.queries) + q);
                    body(b, query, lists);
                });
            });
        });
    }
}

fn totals(p: &Problem, u: &Union) -> Kernel {
    let mut b = Build::new("attend_totals");
    let look = Look::new(&mut b, p, u);
    let counts = b.write("counts", DType::I32, num_blocks(p, u) * Dim::from(LANES));
    let totals = b.write("totals", DType::I32, num_blocks(p, u));
    let sum = b.var(DType::I32, int(0.0));
    let at = b.block();
    b.each(Expr::int(LANES), |b, lane| {
        let own = b.var(DType::I32, int(0.0));
        look.each(b, u, &lane, |b, _, lists| b.assign(own, Expr::Var(own) + lists.cast(DType::I32)));
        let own = b.now(own);
        b.store(counts, at.clone() * Expr::int(LANES) + lane, own.clone());
        b.accumulate(sum, graph::op::ReduceFn::Sum, own);
    });
    b.store(totals, at, Expr::Var(sum));
    b.finish()
}

/// The tiles and the items that blocks before each one have.
fn offsets(p: &Problem, u: &Union) -> Kernel {
    gpu_attend_by_block::offsets(&num_blocks(p, u), ["offsets", "firsts"], |b, total| {
        let tiles = tiles_of(b, total, u.queries);
        let items = tiles_of(b, tiles.clone(), ITEM);
        [tiles, b.bind(Expr::maximum(items, int(1.0)))]
    })
}

fn entries(p: &Problem, u: &Union) -> Kernel {
    let mut b = Build::new("attend_entries");
    let look = Look::new(&mut b, p, u);
    let (n, all) = (num_blocks(p, u), num_tiles(p, u) * Dim::from(u.queries));
    let of_lanes = b.read("counts", DType::I32, n.clone() * Dim::from(LANES));
    let totals = b.read("totals", DType::I32, n.clone());
    let offsets = b.read("offsets", DType::I32, n.clone() + Dim::from(1));
    let firsts = b.read("firsts", DType::I32, n.clone() + Dim::from(1));
    let queries = b.write("queries", DType::I32, all.clone());
    let items = num_items(p, u);
    let owner = b.write("owner", DType::I32, items.clone());
    let counts = b.scratch("counts", DType::I32, LANES);
    let block = b.block();
    let from = b.bind(block.clone() * Expr::int(LANES));
    b.each(Expr::int(LANES), |b, lane| b.store(counts, lane.clone(), Expr::load(of_lanes, from + lane)));
    let bound = |b: &mut Build, mem, i: Expr| b.bind(Expr::load(mem, i).cast(DType::I64));
    let slots = |b: &mut Build, i: Expr| bound(b, offsets, i) * Expr::int(u.queries);
    let first = slots(&mut b, block.clone());
    let first = b.bind(first);
    let [batch, group, _] = place_of(&mut b, p, &p.s, u.size, block.clone());
    let t = b.dim(&p.t);
    b.each(Expr::int(LANES), |b, lane| {
        let next = b.var(DType::I64, first.clone());
        b.range(lane.clone(), |b, before| {
            b.assign(next, Expr::Var(next) + Expr::load(counts, before).cast(DType::I64));
        });
        look.each(b, u, &lane, |b, query, lists| {
            b.if_(lists, |b| {
                let number = (batch * t + query) * Expr::int(p.g) + group;
                b.store(queries, Expr::Var(next), number.cast(DType::I32));
                b.assign(next, Expr::Var(next) + Expr::int(1));
            });
        });
    });
    let total = bound(&mut b, totals, block.clone());
    let end = slots(&mut b, block.clone() + Expr::int(1));
    b.for_(first + total, end, crate::ir::LoopKind::Vector, |b, i| b.store(queries, i, int(-1.0)));
    own_items(&mut b, p, u, [offsets, firsts, queries, owner]);
    b.finish()
}

/// l and Δ of each row of the tiles of blocks' queries; 0 where there is none.
fn sorted(p: &Problem, u: &Union, heads: i64) -> Kernel {
    let mut b = Build::new("attend_sorted");
    let slots = num_tiles(p, u) * Dim::from(u.queries);
    let queries = b.read("queries", DType::I32, slots.clone());
    let sums = p.sum_dtype();
    let padded = padded(p, heads);
    let of_rows = p.b.clone() * Dim::from(p.g) * padded.clone();
    let from = ["l", "delta"].map(|name| b.read(name, sums, of_rows.clone()));
    let all = slots * Dim::from(heads);
    let to = ["sorted_l", "sorted_delta"].map(|name| b.write(name, sums, all.clone()));
    let rows = by_rows(heads).then(|| b.write("rows", DType::I32, all.clone()));
    b.kernel.grid = all.ceil_div(&Dim::from(ELEMS));
    let [all, t, padded] = [&all, &p.t, &padded].map(|d| b.dim(d));
    let begin = b.bind(b.block() * Expr::int(ELEMS));
    let end = b.bind(Expr::minimum(begin.clone() + Expr::int(ELEMS), all));
    b.for_(begin, end, crate::ir::LoopKind::Vector, |b, i| {
        let number = b.bind(Expr::load(queries, Expr::floor_div(i.clone(), Expr::int(heads))).cast(DType::I64));
        let there = b.bind(Expr::le(Expr::int(0), number.clone()));
        let number = b.bind(Expr::maximum(number, Expr::int(0)));
        let head = b.bind(Expr::rem(i.clone(), Expr::int(heads)));
        if let Some(rows) = rows {
            let row = (number.clone() * Expr::int(heads) + head.clone()).cast(DType::I32);
            b.store(rows, i.clone(), Expr::select(there.clone(), row, int(-1.0)));
        }
        let group = Expr::rem(number.clone(), Expr::int(p.g));
        let row = b.bind(Expr::floor_div(number, Expr::int(p.g)));
        let of_group = Expr::floor_div(row.clone(), t.clone()) * Expr::int(p.g) + group;
        let place = Expr::rem(row, t) * Expr::int(heads) + head;
        let at = b.bind(of_group * padded + place);
        for (from, to) in from.into_iter().zip(to) {
            b.store(to, i.clone(), Expr::select(there.clone(), Expr::load(from, at.clone()), Build::f(sums, 0.0)));
        }
    });
    b.finish()
}
