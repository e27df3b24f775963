//! The greatest elements of each row where so many are chosen that no list of them grows by merges, for a device of many processors. Buffers: x, ends, indices,
//! or x, indices; `ends` has how many elements of each row are looked at.
//!
//! A block has a row. In the order of all values as integers it looks for the least one that is taken, three bits at a time, by counting how many elements are
//! at least each of seven bounds; of elements equal to that, those at the lowest indices are taken, whose bound is looked for likewise if not all are. Each
//! lane then counts what it takes and puts it behind what the lanes before have, and a bitonic network sorts what was taken by value, then by index. NaN
//! come first, -inf is never taken, places that are left are -1. Work: fourteen passes over the row.

use super::{
    build::{Build, both, eq},
    host_topk::TopK,
};
use crate::ir::{Expr, Kernel, LoopKind, Mem, VarId};
use base::{DType, Dim};
use graph::op::{MapFn, ReduceFn};

/// Fewer are looked for one by one.
pub const MANY: i64 = 128;
/// More do not fit in shared memory.
const MOST: i64 = 8192;
/// Lanes of a block.
const LANES: i64 = 256;
/// Neighbouring lanes whose counts are added first.
const TEAM: i64 = 16;

/// Whether the kernel takes a choice of so many, of elements of this dtype.
pub fn takes(k: i64, dtype: DType) -> bool {
    (MANY..=MOST).contains(&k) && super::gpu_topk::is_ordered(dtype)
}

fn int(n: i64) -> Expr {
    Build::f(DType::I32, n as f64)
}

/// A row in the order of all values.
struct Row {
    x: Mem,
    start: Expr,
    n: Expr,
}

impl Row {
    fn at(&self, i: Expr) -> Expr {
        Expr::load(self.x, self.start.clone() + i).order()
    }
    /// How many elements pass each of some tests of a value and its index.
    fn count<const N: usize>(&self, b: &mut Build, passes: impl Fn(&Expr, &Expr) -> [Expr; N]) -> [VarId; N] {
        let counts = std::array::from_fn(|_| b.var(DType::I32, int(0)));
        b.each(self.n.clone(), |b, i| {
            let v = b.bind(self.at(i.clone()));
            let i = b.bind(i.cast(DType::I32));
            for (count, pass) in counts.iter().zip(passes(&v, &i)) {
                b.accumulate(*count, ReduceFn::Sum, pass.cast(DType::I32));
            }
        });
        counts
    }
    /// Raises `low` to the last of N bounds, `by` apart from there on, that `k` elements reach.
    fn narrow<const N: usize>(&self, b: &mut Build, k: i64, low: VarId, by: &Expr) {
        // One after the other, as a multiple may have more than 31 bits.
        let mut at = b.now(low);
        let bounds: [Expr; N] = std::array::from_fn(|_| {
            at = b.bind(at.clone() + by.clone());
            at.clone()
        });
        let found = self.count(b, |v, _| bounds.clone().map(|bound| Expr::le(bound, v.clone())));
        for (bound, count) in bounds.into_iter().zip(found) {
            let enough = Expr::le(int(k), Expr::Var(count));
            b.assign(low, Expr::select(enough, bound, Expr::Var(low)));
        }
    }
    /// Runs `body` for each element of a lane: its value and its index.
    fn each_of(&self, b: &mut Build, lane: &Expr, body: impl FnOnce(&mut Build, Expr, Expr)) {
        let turns = b.bind(Expr::floor_div(self.n.clone() - lane.clone() + Expr::int(LANES - 1), Expr::int(LANES)));
        b.range(turns, |b, j| {
            let i = b.bind(j * Expr::int(LANES) + lane.clone());
            let v = b.bind(self.at(i.clone()));
            let i = b.bind(i.cast(DType::I32));
            body(b, v, i);
        });
    }
}

/// The kernel. `ends` says that rows end where another kernel said.
pub fn gpu_topk_long(p: &TopK, ends: bool) -> Kernel {
    let mut b = Build::new("topk_long");
    let x = b.read("x", p.dtype, p.rows.clone() * p.n.clone());
    let ends = ends.then(|| b.read("ends", DType::I32, p.rows.clone()));
    let indices = b.write("indices", DType::I32, p.rows.clone() * Dim::from(p.k));
    b.kernel.grid = p.rows.clone();
    let (n, rows) = (b.dim(&p.n), b.dim(&p.rows));
    // Later rows may be longer: they begin first.
    let number = b.bind(rows - Expr::int(1) - b.block());
    let start = b.bind(number.clone() * n.clone());
    let n = ends.map_or(n, |ends| b.bind(Expr::load(ends, number.clone()).cast(DType::I64)));
    let row = Row { x, start, n };
    let room = (p.k as u64).next_power_of_two() as i64;
    let values = b.scratch("values", DType::I32, room);
    let places = b.scratch("places", DType::I32, room);
    let (counts, sums) = (b.scratch("counts", DType::I32, LANES), b.scratch("sums", DType::I32, LANES / TEAM));
    let none = b.bind(Build::f(DType::F32, f64::NEG_INFINITY).order());
    b.fill(values, Expr::int(room), none.clone());
    b.fill(places, Expr::int(room), int(-1));

    // The least value that is taken, if all equal to it are.
    let low = b.var(DType::I32, int(i64::from(i32::MIN)));
    row.narrow::<3>(&mut b, p.k, low, &int(1 << 30));
    let step = b.var(DType::I32, int(1 << 27));
    b.range(Expr::int(10), |b, _| {
        let by = b.now(step);
        row.narrow::<7>(b, p.k, low, &by);
        b.assign(step, Expr::floor_div(by, int(8)));
    });
    let least = b.bind(Expr::maximum(Expr::Var(low), none.clone() + int(1)));
    let [above, equal] = row.count(&mut b, |v, _| [Expr::lt(least.clone(), v.clone()), eq(v.clone(), least.clone())]);
    let wanted = b.bind(int(p.k) - Expr::Var(above));
    // Equal ones are taken before this index.
    let end = b.var(DType::I32, row.n.clone().cast(DType::I32));
    b.if_(Expr::lt(wanted.clone(), Expr::Var(equal)), |b| {
        // The greatest index that has fewer than the wanted ones before it.
        let (last, step) = (b.var(DType::I32, int(0)), b.var(DType::I32, int(1 << 30)));
        b.range(Expr::int(31), |b, _| {
            let (from, by) = (b.now(last), b.now(step));
            let next = b.bind(from.clone() + by.clone());
            let [before] = row.count(b, |v, i| [both(eq(v.clone(), least.clone()), Expr::lt(i.clone(), next.clone()))]);
            b.assign(last, Expr::select(Expr::lt(Expr::Var(before), wanted.clone()), next, from));
            b.assign(step, Expr::floor_div(by, int(2)));
        });
        b.assign(end, Expr::Var(last) + int(1));
    });
    let end = b.now(end);
    let taken = |v: &Expr, i: &Expr| {
        let last = both(eq(v.clone(), least.clone()), Expr::lt(i.clone(), end.clone()));
        Expr::map2(MapFn::Or, Expr::lt(least.clone(), v.clone()), last)
    };
    b.each(Expr::int(LANES), |b, lane| {
        let own = b.var(DType::I32, int(0));
        row.each_of(b, &lane, |b, v, i| b.assign(own, Expr::Var(own) + taken(&v, &i).cast(DType::I32)));
        b.store(counts, lane, Expr::Var(own));
    });
    b.each(Expr::int(LANES / TEAM), |b, team| {
        let sum = b.var(DType::I32, int(0));
        b.range(Expr::int(TEAM), |b, i| b.assign(sum, Expr::Var(sum) + Expr::load(counts, team.clone() * Expr::int(TEAM) + i)));
        b.store(sums, team, Expr::Var(sum));
    });
    b.each(Expr::int(LANES), |b, lane| {
        let next = b.var(DType::I32, int(0));
        let team = b.bind(Expr::floor_div(lane.clone(), Expr::int(TEAM)));
        b.range(team.clone(), |b, before| b.assign(next, Expr::Var(next) + Expr::load(sums, before)));
        b.for_(team * Expr::int(TEAM), lane.clone(), LoopKind::Serial, |b, before| {
            b.assign(next, Expr::Var(next) + Expr::load(counts, before));
        });
        row.each_of(b, &lane, |b, v, i| {
            b.if_(taken(&v, &i), |b| {
                let to = b.bind(Expr::Var(next).cast(DType::I64));
                b.store(values, to.clone(), v);
                b.store(places, to, i);
                b.assign(next, Expr::Var(next) + int(1));
            });
        });
    });
    sort(&mut b, [values, places], room);
    let to = b.bind(number * Expr::int(p.k));
    b.each(Expr::int(p.k), |b, i| b.store(indices, to + i.clone(), Expr::load(places, i)));
    b.finish()
}

/// Sorts a power of two of elements by falling values, then by rising places. # Source: Batcher, 1968.
fn sort(b: &mut Build, [values, places]: [Mem; 2], n: i64) {
    for size in (1..).map(|e| 1i64 << e).take_while(|s| *s <= n) {
        for apart in (0..size.trailing_zeros()).rev().map(|e| 1i64 << e) {
            b.each(Expr::int(n / 2), |b, pair| {
                let inner = Expr::rem(pair.clone(), Expr::int(apart));
                let first = b.bind(Expr::floor_div(pair.clone(), Expr::int(apart)) * Expr::int(2 * apart) + inner);
                let second = b.bind(first.clone() + Expr::int(apart));
                let load = |b: &mut Build, mem, at: &Expr| b.bind(Expr::load(mem, at.clone()));
                let [v, w] = [&first, &second].map(|at| load(b, values, at));
                let [i, j] = [&first, &second].map(|at| load(b, places, at));
                let later = both(eq(v.clone(), w.clone()), Expr::lt(j.clone(), i.clone()));
                let later = Expr::map2(MapFn::Or, Expr::lt(v.clone(), w.clone()), later);
                // Every other run of `size` is the other way round, until there is one.
                let up = eq(Expr::rem(Expr::floor_div(first.clone(), Expr::int(size)), Expr::int(2)), Expr::int(0));
                let turns = b.bind(eq(later.cast(DType::I32), up.cast(DType::I32)));
                let pick = |x: &Expr, y: &Expr| Expr::select(turns.clone(), x.clone(), y.clone());
                b.store(values, first.clone(), pick(&w, &v));
                b.store(values, second.clone(), pick(&v, &w));
                b.store(places, first.clone(), pick(&j, &i));
                b.store(places, second.clone(), pick(&i, &j));
            });
        }
    }
}
