//! Sums of many rows by index, for a device of many processors: rows are sorted by index first, so that each is read once, however the indices are
//! spread. Kernels one after the other:
//!
//! ```text
//! fill                        zeros everywhere
//! count, starts, place        a stable counting sort by the last eight bits of the index, then by those before, …
//! sum      rows, order, keys → sums, firsts, lasts   a block has TILE sorted rows and some columns
//! join     keys, firsts, lasts → sums                what lies in several tiles
//! ```
//!
//! A run of equal indices inside of a tile is summed there. One that goes on leaves a part in `lasts` of the tile in which it begins, and in `firsts` of
//! the others, which the block of its first tile adds in order. So each sum is over increasing rows, in tiles that begin at multiples of TILE of the sorted
//! order, whatever runs when. Indices outside sort last and are dropped. Indices of a batch follow those of the one before.

use super::{build::Build, build::eq, gpu_route, host_gather::Rows, host_route::Route, host_scatter_add::sum_dtype};
use crate::ir::{Expr, Kernel, LoopKind, Mem, VarId};
use base::{DType, Dim, TensorType};

/// Values of a digit of the sort.
const DIGITS: i64 = 256;
/// Sorted rows of a block.
const TILE: i64 = 32;
/// Columns of a block, each once for what a thread takes of them.
const COLUMNS: i64 = 256;
/// Columns that a thread sums, at most: which rows are of one run it finds out once for all.
const MOST_COLUMNS: i64 = 4;
/// Rows whose loads are under way at once.
const AT_ONCE: i64 = 8;
/// Elements that a block clears.
const CLEARED: i64 = 16_384;
/// Fewer rows are looked for by [`super::gpu_scatter_add`].
const FEW: i64 = 1024;
/// Results, at most: three passes.
const MAX_KEYS: i64 = 1 << 24;

/// A buffer of one of the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffer {
    /// The op's indices.
    Index,
    /// The op's rows.
    Rows,
    /// The op's result.
    Sums,
    /// Of [`memories`].
    Aside(usize),
}

/// How many rows the result has over all batches, if the kernels are for the problem.
pub fn keys(p: &Rows) -> Option<i64> {
    let keys = p.batch.known()?.checked_mul(p.n.known()?)?;
    let many = p.picks.known().is_none_or(|n| n >= FEW);
    ((1..MAX_KEYS).contains(&keys) && many).then_some(keys)
}

/// Passes of the sort; one more value is that of indices outside.
fn passes(keys: i64) -> usize {
    (1..).find(|n| DIGITS.pow(*n) > keys).expect("keys are bounded") as usize
}

fn picks(p: &Rows) -> Dim {
    p.batch.clone() * p.picks.clone()
}

const COUNTS: usize = 0;
const STARTS: usize = 1;
const TOTALS: usize = 2;
const ORDERS: [usize; 2] = [3, 4];
const KEYS: usize = 5;
const FIRSTS: usize = 6;
const LASTS: usize = 7;

/// Memory between the kernels.
pub fn memories(p: &Rows) -> Vec<TensorType> {
    let table = TensorType::new(DType::I32, [gpu_route::PARTS, DIGITS].map(Dim::from).to_vec());
    let of_rows = TensorType::new(DType::I32, vec![picks(p)]);
    let parts = TensorType::new(sum_dtype(p.dtype), vec![picks(p).ceil_div(&Dim::from(TILE)), p.row.clone()]);
    let totals = TensorType::new(DType::I32, vec![Dim::from(DIGITS)]);
    vec![table.clone(), table, totals, of_rows.clone(), of_rows.clone(), of_rows, parts.clone(), parts]
}

/// The kernels, in order, and what each is passed.
///
/// # Panics
/// If [`keys`] says that they are not for the problem.
pub fn gpu_scatter_sorted(p: &Rows) -> Vec<(Kernel, Vec<Buffer>)> {
    use Buffer::{Aside, Index, Sums};
    let keys = keys(p).unwrap_or_else(|| base::bug!("sums by index are not sorted"));
    let mut all = vec![(fill(p), vec![Sums])];
    let last = passes(keys) - 1;
    for pass in 0..=last {
        let from = if pass == 0 { vec![] } else { vec![Aside(ORDERS[(pass + 1) % 2])] };
        let given = [vec![Index], from].concat();
        all.push((count(p, keys, pass), [given.clone(), vec![Aside(COUNTS)]].concat()));
        let route = Route { choices: picks(p), groups: DIGITS };
        all.push((gpu_route::starts(&route), [COUNTS, STARTS, TOTALS].map(Aside).to_vec()));
        let placed = [Aside(STARTS), Aside(TOTALS), Aside(ORDERS[pass % 2])].into_iter();
        let placed = placed.chain((pass == last).then_some(Aside(KEYS)));
        all.push((place(p, keys, pass, pass == last), given.into_iter().chain(placed).collect()));
    }
    let order = Aside(ORDERS[last % 2]);
    all.push((sum(p, keys), vec![Buffer::Rows, order, Aside(KEYS), Sums, Aside(FIRSTS), Aside(LASTS)]));
    all.push((join(p, keys), vec![Aside(KEYS), Aside(FIRSTS), Aside(LASTS), Sums]));
    all
}

fn fill(p: &Rows) -> Kernel {
    let mut b = Build::new("scatter_fill");
    let dtype = sum_dtype(p.dtype);
    let all = p.batch.clone() * p.n.clone() * p.row.clone();
    let sums = b.write("sums", dtype, all.clone());
    b.kernel.grid = all.ceil_div(&Dim::from(CLEARED));
    let n = b.dim(&all);
    let first = b.bind(b.block() * Expr::int(CLEARED));
    let last = b.bind(Expr::minimum(first.clone() + Expr::int(CLEARED), n));
    b.for_(first, last, LoopKind::Vector, |b, i| b.store(sums, i, Build::f(dtype, 0.0)));
    b.finish()
}

/// The rows of the sort so far: the indices, and where the pass before put them.
struct Sorted {
    index: Mem,
    order: Option<Mem>,
    n: Expr,
    picks: Expr,
    batches: bool,
    keys: i64,
    shift: i64,
}

impl Sorted {
    fn of(b: &mut Build, p: &Rows, keys: i64, pass: usize) -> Sorted {
        let index = b.read("index", DType::I32, picks(p));
        let order = (pass > 0).then(|| b.read("before", DType::I32, picks(p)));
        let (n, per_batch) = (b.dim(&p.n), b.dim(&p.picks));
        Sorted { index, order, n, picks: per_batch, batches: !p.batch.is(1), keys, shift: DIGITS.pow(pass as u32) }
    }
    /// The row at a place, and its key.
    fn row(&self, b: &mut Build, at: Expr) -> [Expr; 2] {
        let row = match self.order {
            Some(order) => b.bind(Expr::load(order, at).cast(DType::I64)),
            None => b.bind(at),
        };
        let index = b.bind(Expr::load(self.index, row.clone()).cast(DType::I64));
        let inside = Expr::and(Expr::le(Expr::int(0), index.clone()), Expr::lt(index.clone(), self.n.clone()));
        let batch = if self.batches { Expr::floor_div(row.clone(), self.picks.clone()) * self.n.clone() } else { Expr::int(0) };
        let key = b.bind(Expr::select(inside, batch + index, Expr::int(self.keys)));
        [row, key]
    }
    /// The rows at these places, in order, their loads some at a time.
    fn each(&self, b: &mut Build, places: [Expr; 2], body: impl Fn(&mut Build, [Expr; 2])) {
        b.at_once(places, AT_ONCE, |b, at| self.row(b, at), body);
    }
    fn digit(&self, key: Expr) -> Expr {
        Expr::rem(Expr::floor_div(key, Expr::int(self.shift)), Expr::int(DIGITS))
    }
}

/// How many rows of each chunk have each digit: a lane has a digit and walks the chunk.
fn count(p: &Rows, keys: i64, pass: usize) -> Kernel {
    let mut b = Build::new("scatter_count");
    let rows = Sorted::of(&mut b, p, keys, pass);
    let counts = b.write("counts", DType::I32, Dim::from(gpu_route::PARTS * DIGITS));
    let [first, last] = gpu_route::chunk(&mut b, &picks(p));
    let to = b.bind(b.block() * Expr::int(DIGITS));
    b.each(Expr::int(DIGITS), |b, digit| {
        let found = b.var(DType::I64, Expr::int(0));
        rows.each(b, [first, last], |b, [_, key]| {
            b.assign(found, Expr::Var(found) + eq(rows.digit(key), digit.clone()).cast(DType::I64));
        });
        b.store(counts, to + digit, Expr::Var(found).cast(DType::I32));
    });
    b.finish()
}

/// The rows in the order of their digits, and at the last pass their keys.
fn place(p: &Rows, keys: i64, pass: usize, last: bool) -> Kernel {
    let mut b = Build::new("scatter_place");
    let rows = Sorted::of(&mut b, p, keys, pass);
    let starts = b.read("starts", DType::I32, Dim::from(gpu_route::PARTS * DIGITS));
    let totals = b.read("totals", DType::I32, Dim::from(DIGITS));
    let order = b.write("order", DType::I32, picks(p));
    let sorted = last.then(|| b.write("keys", DType::I32, picks(p)));
    let [first, end] = gpu_route::chunk(&mut b, &picks(p));
    let from = b.bind(b.block() * Expr::int(DIGITS));
    let offsets = gpu_route::offsets(&mut b, totals, DIGITS);
    b.each(Expr::int(DIGITS), |b, digit| {
        let start =
            Expr::load(offsets, digit.clone()).cast(DType::I64) + Expr::load(starts, from + digit.clone()).cast(DType::I64);
        let next = b.var(DType::I64, start);
        rows.each(b, [first, end], |b, [row, key]| {
            b.if_(eq(rows.digit(key.clone()), digit.clone()), |b| {
                let to = b.now(next);
                b.store(order, to.clone(), row.cast(DType::I32));
                if let Some(sorted) = sorted {
                    b.store(sorted, to, key.cast(DType::I32));
                }
                b.assign(next, Expr::Var(next) + Expr::int(1));
            });
        });
    });
    b.finish()
}

/// A block's tile and columns.
struct Tile {
    number: Expr,
    /// The first sorted row and one past the last.
    rows: [Expr; 2],
    /// The first column, and how many.
    columns: [Expr; 2],
    /// All columns.
    row: Expr,
    /// Whether the tile before ends, and the next begins, as this one begins and ends.
    open: [Expr; 2],
    /// The keys of the first and the last row.
    ends: [Expr; 2],
}

impl Tile {
    fn of(b: &mut Build, p: &Rows, keys: Mem, columns: i64) -> Tile {
        let (tiles, chunks) = (picks(p).ceil_div(&Dim::from(TILE)), p.row.ceil_div(&Dim::from(columns)));
        b.kernel.grid = tiles * chunks.clone();
        let [all, row, chunks] = [&picks(p), &p.row, &chunks].map(|d| b.dim(d));
        let number = b.bind(Expr::floor_div(b.block(), chunks.clone()));
        let column = b.bind(Expr::rem(b.block(), chunks) * Expr::int(columns));
        let whole = p.row.known().is_some_and(|n| n % columns == 0);
        let count =
            if whole { Expr::int(columns) } else { b.bind(Expr::minimum(Expr::int(columns), row.clone() - column.clone())) };
        let first = b.bind(number.clone() * Expr::int(TILE));
        let last = b.bind(Expr::minimum(first.clone() + Expr::int(TILE), all.clone()));
        let key = |b: &mut Build, at: Expr| b.bind(Expr::load(keys, at).cast(DType::I64));
        let one = || Expr::int(1);
        let ends = [first.clone(), last.clone() - one()].map(|at| key(b, at));
        let before = key(b, Expr::maximum(first.clone() - one(), Expr::int(0)));
        let after = key(b, Expr::minimum(last.clone(), all.clone() - one()));
        let front = b.bind(Expr::and(Expr::lt(Expr::int(0), first.clone()), eq(before, ends[0].clone())));
        let back = b.bind(Expr::and(Expr::lt(last.clone(), all), eq(after, ends[1].clone())));
        Tile { number, rows: [first, last], columns: [column, count], row, open: [front, back], ends }
    }
}

fn sum(p: &Rows, keys: i64) -> Kernel {
    let mut b = Build::new("scatter_sum");
    let dtype = sum_dtype(p.dtype);
    let rows = b.read("rows", p.dtype, picks(p) * p.row.clone());
    let order = b.read("order", DType::I32, picks(p));
    let sorted = b.read("keys", DType::I32, picks(p));
    let sums = b.update("sums", dtype, p.batch.clone() * p.n.clone() * p.row.clone());
    let parts = picks(p).ceil_div(&Dim::from(TILE)) * p.row.clone();
    let [firsts, lasts] = ["firsts", "lasts"].map(|name| b.update(name, dtype, parts.clone()));
    // Columns of a thread are as far apart as there are threads.
    let fits = |n: &i64| p.row.known().is_some_and(|row| row % (n * COLUMNS) == 0);
    let many = [MOST_COLUMNS, 2].into_iter().find(fits).unwrap_or(1);
    let Tile { number, rows: [first, last], columns: [column, count], row, open: [front, back], ends } =
        Tile::of(&mut b, p, sorted, many * COLUMNS);
    let part = b.bind(number * row.clone() + column.clone());
    let threads = if many > 1 { Expr::int(COLUMNS) } else { count };
    b.each(threads, |b, c| {
        let further = |i: i64| Expr::int(i * COLUMNS);
        let sums_so_far: Vec<VarId> = (0..many).map(|_| b.var(dtype, Build::f(dtype, 0.0))).collect();
        let key = b.var(DType::I32, ends[0].clone().cast(DType::I32));
        // 1 while the tile's first run goes on.
        let is_first = b.var(DType::I64, Expr::int(1));
        let at = b.bind(column + c.clone());
        let store = |b: &mut Build, mem: Mem, from: Expr| {
            for (i, v) in (0..many).zip(&sums_so_far) {
                b.store(mem, from.clone() + further(i), Expr::Var(*v));
            }
        };
        let load = |b: &mut Build, i: Expr| {
            let key = b.bind(Expr::load(sorted, i.clone()));
            let from = b.bind(Expr::load(order, i).cast(DType::I64) * row.clone() + at.clone());
            let values: Vec<Expr> = (0..many).map(|i| b.bind(Expr::load(rows, from.clone() + further(i)))).collect();
            (key, values)
        };
        let begins_before = |b: &mut Build| b.bind(Expr::and(front.clone(), eq(Expr::Var(is_first), Expr::int(1))));
        let whole = |b: &mut Build| {
            let key = b.bind(Expr::Var(key).cast(DType::I64));
            b.if_(Expr::lt(key.clone(), Expr::int(keys)), |b| {
                store(b, sums, key * row.clone() + at.clone());
            });
        };
        let not = |b: &mut Build, e: Expr| b.bind(eq(e.cast(DType::I64), Expr::int(0)));
        let add = |b: &mut Build, (next, values): (Expr, Vec<Expr>)| {
            b.if_(Expr::map2(graph::op::MapFn::Ne, next.clone(), Expr::Var(key)), |b| {
                let early = begins_before(b);
                b.if_(early.clone(), |b| store(b, firsts, part.clone() + c.clone()));
                let own = not(b, early);
                b.if_(own, whole);
                b.assign(key, next);
                b.assign(is_first, Expr::int(0));
                sums_so_far.iter().for_each(|v| b.assign(*v, Build::f(dtype, 0.0)));
            });
            for (v, value) in sums_so_far.iter().zip(values) {
                b.assign(*v, Expr::Var(*v) + value);
            }
        };
        b.at_once([first, last], AT_ONCE, load, add);
        let early = begins_before(b);
        b.if_(early.clone(), |b| store(b, firsts, part.clone() + c.clone()));
        let own = not(b, early);
        b.if_(own, |b| {
            b.if_(back.clone(), |b| store(b, lasts, part + c));
            let ends_here = not(b, back);
            b.if_(ends_here, whole);
        });
    });
    b.finish()
}

fn join(p: &Rows, keys: i64) -> Kernel {
    let mut b = Build::new("scatter_join");
    let dtype = sum_dtype(p.dtype);
    let sorted = b.read("keys", DType::I32, picks(p));
    let parts = picks(p).ceil_div(&Dim::from(TILE)) * p.row.clone();
    let [firsts, lasts] = ["firsts", "lasts"].map(|name| b.read(name, dtype, parts.clone()));
    let sums = b.update("sums", dtype, p.batch.clone() * p.n.clone() * p.row.clone());
    let all = b.dim(&picks(p));
    let t = Tile::of(&mut b, p, sorted, COLUMNS);
    let [front, back] = t.open;
    let [column, count] = t.columns;
    let key = t.ends[1].clone();
    // A run that begins here and goes on.
    let inside = Expr::and(front, eq(t.ends[0].clone(), key.clone())).cast(DType::I64);
    let begins = Expr::and(back, Expr::and(eq(inside, Expr::int(0)), Expr::lt(key.clone(), Expr::int(keys))));
    let begins = b.bind(begins);
    b.if_(begins, |b| {
        // Where it ends, by halves.
        let (low, high): (VarId, VarId) = (b.var(DType::I64, t.rows[1].clone()), b.var(DType::I64, all));
        b.while_(Expr::lt(Expr::Var(low), Expr::Var(high)), |b| {
            let middle = b.bind(Expr::floor_div(Expr::Var(low) + Expr::Var(high), Expr::int(2)));
            let same = b.bind(Expr::le(Expr::load(sorted, middle.clone()).cast(DType::I64), key.clone()));
            b.assign(low, Expr::select(same.clone(), middle.clone() + Expr::int(1), Expr::Var(low)));
            b.assign(high, Expr::select(same, Expr::Var(high), middle));
        });
        let others = b.bind(Expr::floor_div(Expr::Var(low) - Expr::int(1), Expr::int(TILE)) - t.number.clone());
        let (row, number) = (t.row, t.number);
        b.each(count, |b, c| {
            let at = b.bind(column + c);
            let from = b.bind(number * row.clone() + at.clone());
            let so_far = b.var(dtype, Expr::load(lasts, from.clone()));
            let load = |b: &mut Build, i: Expr| b.bind(Expr::load(firsts, from.clone() + (i + Expr::int(1)) * row.clone()));
            let add = |b: &mut Build, x| b.assign(so_far, Expr::Var(so_far) + x);
            b.at_once([Expr::int(0), others], AT_ONCE, load, add);
            b.store(sums, key * row.clone() + at, Expr::Var(so_far));
        });
    });
    b.finish()
}
