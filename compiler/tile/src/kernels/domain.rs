//! What an attention kernel skips, read from the domain: the keys that a tile of queries can see, and for each pair whether it does.
//!
//! A conjunction with a list (`blocks`, `tokens`) is driven by the list: only listed keys are visited. A tile is one query with the heads
//! of its group, all of which see the same keys; where these are few, a tile of several queries visits the union of their blocks, each
//! once and in order, and tests which of the queries listed it. Every other domain is driven by ranges: the keys of a tile of queries are an
//! interval that follows from the domain's structure (`and` intersects, `or` takes the hull), and pairs inside it are tested.

use super::build::{Build, both, eq, tile, truth};
use crate::ir::{Expr, Mem, TileRef};
use base::{DType, Dim, TensorType};
use graph::op::{Domain, MapFn, ReduceFn};

/// An attention or its gradient. # Shapes: as in [`graph::op::Attend`].
#[derive(Clone, Debug)]
pub struct Problem {
    /// The dtype of q, k, v and o.
    pub dtype: DType,
    /// Batch.
    pub b: Dim,
    /// Queries.
    pub t: Dim,
    /// Keys.
    pub s: Dim,
    /// Query heads.
    pub h: i64,
    /// Key heads; divides `h`.
    pub g: i64,
    /// Elements of a query and a key.
    pub dk: i64,
    /// Elements of a value.
    pub dv: i64,
    /// Which keys a query sees.
    pub domain: Domain,
    /// Factor of q·k.
    pub scale: f64,
    /// The types of the domain's operands.
    pub operands: Vec<TensorType>,
    /// Whether it is known that no list has something twice.
    pub distinct: bool,
    /// Whether values are the first columns of keys, as where a latent is both, and in the place of keys there are the others.
    pub shared: bool,
}

/// How many keys so many queries in a row see at most, if the domain bounds that whatever there are; of what is listed, by the length of a list of each of the domain's
/// operands, if that is known.
pub fn most_keys(d: &Domain, queries: i64, length: &dyn Fn(usize) -> Option<Dim>) -> Option<Dim> {
    let of = |d: &Domain| most_keys(d, queries, length);
    match d {
        Domain::Window(w) => Some(Dim::from(w + queries - 1)),
        Domain::Prefix(n) => Some(Dim::from(*n)),
        Domain::Blocks { idx, size } => length(*idx).map(|n| n * Dim::from(size * queries)),
        Domain::Tokens(idx) => length(*idx).map(|n| n * Dim::from(queries)),
        Domain::And(x, y) => match (of(x), of(y)) {
            (Some(x), Some(y)) => Some(x.minimum(&y)),
            (x, y) => x.or(y),
        },
        Domain::Or(x, y) => Some(of(x)? + of(y)?),
        Domain::Full
        | Domain::Causal
        | Domain::EndsBefore { .. }
        | Domain::EndsAt(_)
        | Domain::Segments(..)
        | Domain::Groups { .. } => None,
    }
}

/// Sizes of an attention kernel's tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling {
    /// Queries of a tile; each has as many rows as its group has heads. 1 where a list of tokens drives.
    pub queries: i64,
    /// Keys of a tile.
    pub keys: i64,
}

/// Rows of a tile that visits the union of its queries' blocks: two vectors. # Source: models/strata, `lode bench --entry grad`.
const UNION_ROWS: i64 = 16;

impl std::fmt::Display for Tiling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "queries={},keys={}", self.queries, self.keys)
    }
}

/// Scratch of a tiling that may still be the fastest: half of a level-2 cache. # Units: bytes.
const MOST_SCRATCH: i64 = 160 << 10;
/// Rows of a tile that may still be the fastest.
const MOST_ROWS: i64 = 128;

impl Tiling {
    /// All that kernels are built for, the largest first.
    pub fn legal(p: &Problem) -> Vec<Tiling> {
        let queries: &[i64] = match driving_list(&p.domain) {
            Some((Domain::Blocks { .. }, _)) => &[16, 8, 4, 2, 1],
            Some(_) => &[1],
            None => &[64, 32, 16, 8, 4, 2, 1],
        };
        queries.iter().flat_map(|q| [64, 32, 16, 8].map(|keys| Tiling { queries: *q, keys })).collect()
    }
    /// The largest whose scratch memory, `bytes`, fits in `budget`, with up to 32 rows; more rows do not make it faster.
    pub fn choose(p: &Problem, budget: i64, bytes: impl Fn(&Tiling) -> i64) -> Tiling {
        let heads = p.h / p.g;
        // Queries of a tile that is driven by lists see ever fewer of its keys.
        let rows = if driving_list(&p.domain).is_some() { UNION_ROWS } else { 32 };
        let enough = |t: &Tiling| t.queries == 1 || t.queries * heads <= rows && p.t.known().is_none_or(|n| n * 2 > t.queries);
        let legal = Tiling::legal(p);
        let smallest = *legal.last().expect("there are legal tilings");
        legal.into_iter().find(|t| enough(t) && bytes(t) <= budget).unwrap_or(smallest)
    }
}

impl Problem {
    /// The problem of an op on operands of these types.
    ///
    /// # Errors
    /// Which extent is not constant, though the kernel needs it to be: its name and value.
    pub fn new(attend: &graph::op::Attend, operands: &[&TensorType], num_fixed: usize) -> Result<Problem, (&'static str, Dim)> {
        let (q, v) = (operands[0], operands[2]);
        let known = |what, d: &Dim| d.known().ok_or((what, d.clone()));
        Ok(Problem {
            dtype: q.dtype,
            b: q.shape[0].clone(),
            t: q.shape[1].clone(),
            s: v.shape[1].clone(),
            h: known("the number of query heads", &q.shape[2])?,
            g: known("the number of key heads", &v.shape[2])?,
            dk: known("the extent of a key", &q.shape[3])?,
            dv: known("the extent of a value", &v.shape[3])?,
            domain: attend.domain.clone(),
            scale: attend.scale.get(),
            operands: operands[num_fixed..].iter().map(|t| (*t).clone()).collect(),
            distinct: false,
            shared: false,
        })
    }
    /// The legal tilings that are worth a measurement. `bytes` is their scratch memory.
    pub fn worthwhile(&self, bytes: impl Fn(&Problem, &Tiling) -> i64) -> Vec<Tiling> {
        let fits = |t: &Tiling| bytes(self, t) <= MOST_SCRATCH && (t.queries == 1 || t.queries * (self.h / self.g) <= MOST_ROWS);
        Tiling::legal(self).into_iter().filter(fits).collect()
    }
    /// The dtype of scores and sums.
    pub fn sum_dtype(&self) -> DType {
        self.dtype.accumulator()
    }
    /// Elements of q, of k, of v, of o and of lse.
    pub fn elems(&self) -> [Dim; 5] {
        let rows = self.b.clone() * self.t.clone() * Dim::from(self.h);
        let keys = self.b.clone() * self.s.clone() * Dim::from(self.g);
        let (dk, dv) = (Dim::from(self.dk), Dim::from(self.dv));
        [rows.clone() * dk.clone(), keys.clone() * dk, keys * dv.clone(), rows.clone() * dv, rows]
    }
    /// Elements of the scores of all queries and keys.
    pub fn scores(&self) -> Dim {
        self.b.clone() * self.t.clone() * Dim::from(self.h) * self.s.clone()
    }
}

/// A problem inside a kernel being written: where its operands are, and which batch and group the block has.
pub struct Scene<'a> {
    /// The problem.
    pub problem: &'a Problem,
    /// The domain's operands.
    pub operands: Vec<Mem>,
    /// The number of queries.
    pub t: Expr,
    /// The number of keys.
    pub s: Expr,
    /// The batch.
    pub batch: Expr,
    /// The key head.
    pub group: Expr,
}

/// A test of query `t` and key `s` of a tile.
#[derive(Clone, Debug)]
pub enum Test {
    /// None.
    Always,
    /// `factor·s − t ≤ below`, or more than that.
    Bound {
        /// Of the key.
        factor: i64,
        /// Whether the query counts, else `t` is 0.
        query: bool,
        /// A whole number.
        below: Expr,
        /// Whether `≤` is asked for, else `>`.
        at_most: bool,
    },
    /// Both.
    Both(Box<Test>, Box<Test>),
    /// Either.
    Either(Box<Test>, Box<Test>),
}

impl Test {
    /// The same with its numbers in 32 bits, as variables.
    pub fn near(self, b: &mut Build) -> Test {
        match self {
            Test::Always => self,
            Test::Bound { factor, query, below, at_most } => {
                Test::Bound { factor, query, below: b.bind(below.cast(DType::I32)), at_most }
            }
            Test::Both(x, y) => Test::Both(Box::new(x.near(b)), Box::new(y.near(b))),
            Test::Either(x, y) => Test::Either(Box::new(x.near(b)), Box::new(y.near(b))),
        }
    }
    /// Whether query `t` and key `s`, i32, pass it.
    pub fn passes(&self, t: &Expr, s: &Expr) -> Expr {
        match self {
            Test::Always => truth(),
            Test::Bound { factor, query, below, at_most } => {
                let s = if *factor == 1 { s.clone() } else { s.clone() * Expr::int(*factor).cast(DType::I32) };
                let limit = if *query { t.clone() + below.clone() } else { below.clone() };
                if *at_most { Expr::le(s, limit) } else { Expr::lt(limit, s) }
            }
            Test::Both(x, y) => both(x.passes(t, s), y.passes(t, s)),
            Test::Either(x, y) => Expr::map2(MapFn::Or, x.passes(t, s), y.passes(t, s)),
        }
    }
}

/// Whether a key that a query sees is certainly one of those there are.
pub fn sees_only_keys(d: &Domain) -> bool {
    match d {
        Domain::Causal => true,
        Domain::And(x, y) => sees_only_keys(x) || sees_only_keys(y),
        Domain::Or(x, y) => sees_only_keys(x) && sees_only_keys(y),
        Domain::Full
        | Domain::Window(_)
        | Domain::Prefix(_)
        | Domain::EndsBefore { .. }
        | Domain::EndsAt(_)
        | Domain::Segments(..)
        | Domain::Blocks { .. }
        | Domain::Groups { .. }
        | Domain::Tokens(_) => false,
    }
}

/// The keys of a tile.
pub enum Keys {
    /// Consecutive ones.
    Range {
        /// The first.
        first: Expr,
        /// How many.
        count: Expr,
        /// Which queries of the tile listed them (bool in scratch), where that is not told by the domain's other parts.
        listed: Option<Mem>,
    },
    /// Those listed in scratch; the query sees all.
    Listed {
        /// i64.
        list: Mem,
        /// How many.
        count: Expr,
    },
}

impl Keys {
    /// How many.
    pub fn count(&self) -> Expr {
        match self {
            Keys::Range { count, .. } | Keys::Listed { count, .. } => count.clone(),
        }
    }
    /// Key `c`.
    pub fn key(&self, c: Expr) -> Expr {
        match self {
            Keys::Range { first, .. } => first.clone() + c,
            Keys::Listed { list, .. } => Expr::load(*list, c),
        }
    }
}

/// Whether tiles have to be tested pair by pair.
pub fn is_masked(domain: &Domain, tiling: Tiling) -> bool {
    match driving_list(domain) {
        Some(_) => tiling.queries > 1,
        None => !matches!(domain, Domain::Full),
    }
}

/// The list that drives a conjunction, and the rest of it.
pub fn driving_list(domain: &Domain) -> Option<(Domain, Domain)> {
    match domain {
        Domain::Blocks { .. } | Domain::Tokens(_) => Some((domain.clone(), Domain::Full)),
        Domain::And(a, b) => {
            let and = |x: Domain, y: &Domain| match (x, y) {
                (Domain::Full, y) => y.clone(),
                (x, y) => Domain::And(Box::new(x), Box::new(y.clone())),
            };
            driving_list(a)
                .map(|(list, rest)| (list, and(rest, b)))
                .or_else(|| driving_list(b).map(|(list, rest)| (list, and(rest, a))))
        }
        Domain::Full
        | Domain::Causal
        | Domain::Window(_)
        | Domain::Prefix(_)
        | Domain::EndsBefore { .. }
        | Domain::EndsAt(_)
        | Domain::Segments(..)
        | Domain::Groups { .. }
        | Domain::Or(..) => None,
    }
}

/// Whether what one query sees is exactly its range.
fn is_range(domain: &Domain) -> bool {
    match domain {
        Domain::Full | Domain::Causal | Domain::Window(_) | Domain::Prefix(_) | Domain::EndsBefore { .. } => true,
        Domain::And(a, b) => is_range(a) && is_range(b),
        Domain::EndsAt(_)
        | Domain::Segments(..)
        | Domain::Blocks { .. }
        | Domain::Groups { .. }
        | Domain::Tokens(_)
        | Domain::Or(..) => false,
    }
}

impl Scene<'_> {
    /// The position of query `t` among the keys.
    fn position(&self, t: Expr) -> Expr {
        t + (self.s.clone() - self.t.clone())
    }
    /// Element `i` of an operand `[b, s]`.
    fn of_key(&self, operand: usize, key: Expr) -> Expr {
        Expr::load(self.operands[operand], self.batch.clone() * self.s.clone() + key)
    }
    /// The list of a query: its first element, and how many.
    fn list(&self, b: &mut Build, operand: usize, t: Expr) -> (Expr, Expr) {
        let n = b.dim(&self.problem.operands[operand].shape[3]);
        let row = (self.batch.clone() * self.t.clone() + t) * Expr::int(self.problem.g) + self.group.clone();
        (b.bind(row * n.clone()), n)
    }
    /// How many of the first `n` elements of a list are `x` (i64).
    fn occurrences(&self, b: &mut Build, operand: usize, first: &Expr, n: Expr, x: &Expr) -> Expr {
        let mem = self.operands[operand];
        let count = b.reduce(ReduceFn::Sum, Expr::int(0), n, |_, e| {
            eq(Expr::load(mem, first.clone() + e).cast(DType::I64), x.clone()).cast(DType::I64)
        });
        Expr::Var(count)
    }

    /// The keys that queries `first..=last` can see lie from the first result to before the second; not clipped.
    fn hull(&self, d: &Domain, first: &Expr, last: &Expr) -> (Expr, Expr) {
        let all = || (Expr::int(0), self.s.clone());
        match d {
            Domain::Causal => (Expr::int(0), self.position(last.clone()) + Expr::int(1)),
            Domain::Window(w) => (self.position(first.clone()) - Expr::int(w - 1), self.s.clone()),
            Domain::Prefix(n) => (Expr::int(0), Expr::int(*n)),
            Domain::EndsBefore { length, stride } => {
                let past = Expr::floor_div(last.clone() - Expr::int(length - 1), Expr::int(*stride)) + Expr::int(1);
                (Expr::int(0), past)
            }
            Domain::And(x, y) => {
                let ((a, b), (c, d)) = (self.hull(x, first, last), self.hull(y, first, last));
                (Expr::maximum(a, c), Expr::minimum(b, d))
            }
            Domain::Or(x, y) => {
                let ((a, b), (c, d)) = (self.hull(x, first, last), self.hull(y, first, last));
                (Expr::minimum(a, c), Expr::maximum(b, d))
            }
            Domain::Full
            | Domain::EndsAt(_)
            | Domain::Segments(..)
            | Domain::Blocks { .. }
            | Domain::Groups { .. }
            | Domain::Tokens(_) => all(),
        }
    }
    /// The range of keys that queries `first..=last` can see.
    pub fn range(&self, b: &mut Build, d: &Domain, first: &Expr, last: &Expr) -> (Expr, Expr) {
        let (lo, hi) = self.hull(d, first, last);
        (b.bind(Expr::maximum(lo, Expr::int(0))), b.bind(Expr::minimum(hi, self.s.clone())))
    }

    /// The ranges whose union has all keys that queries `first..=last` can see, one or two; not clipped.
    fn hulls(&self, d: &Domain, first: &Expr, last: &Expr) -> Vec<(Expr, Expr)> {
        let of = |x: &Domain| self.hulls(x, first, last);
        let all: Vec<(Expr, Expr)> = match d {
            Domain::Or(x, y) => [of(x), of(y)].concat(),
            Domain::And(x, y) => {
                let both = |(a, b): &(Expr, Expr), (c, d): &(Expr, Expr)| {
                    (Expr::maximum(a.clone(), c.clone()), Expr::minimum(b.clone(), d.clone()))
                };
                let ys = of(y);
                of(x).iter().flat_map(|x| ys.iter().map(move |y| both(x, y))).collect()
            }
            Domain::Full
            | Domain::Causal
            | Domain::Window(_)
            | Domain::Prefix(_)
            | Domain::EndsBefore { .. }
            | Domain::EndsAt(_)
            | Domain::Segments(..)
            | Domain::Blocks { .. }
            | Domain::Groups { .. }
            | Domain::Tokens(_) => vec![self.hull(d, first, last)],
        };
        if all.len() <= 2 { all } else { vec![self.hull(d, first, last)] }
    }
    /// The keys that queries `first..=last` can see, in pieces of `size`.
    pub fn pieces(&self, b: &mut Build, d: &Domain, [first, last]: [&Expr; 2], size: i64) -> Pieces {
        let hulls = self.hulls(d, first, last);
        let [(a, b0), (c, d0)] = &hulls[..] else {
            let (lo, end) = self.range(b, d, first, last);
            let count = b.bind(num_pieces(&lo, &end, size));
            return Pieces { size, count, lo, end, second: None };
        };
        let clip = |b: &mut Build, lo: &Expr, hi: &Expr| {
            let lo = b.bind(Expr::maximum(lo.clone(), Expr::int(0)));
            (lo, b.bind(Expr::minimum(hi.clone(), self.s.clone())))
        };
        let ((a, b0), (c, d0)) = (clip(b, a, b0), clip(b, c, d0));
        // The one that begins first, and what the other has behind its last piece.
        let turned = b.bind(Expr::lt(c.clone(), a.clone()));
        let of = |x: &Expr, y: &Expr| Expr::select(turned.clone(), y.clone(), x.clone());
        let (lo, hi) = (b.bind(of(&a, &c)), b.bind(of(&b0, &d0)));
        let few = b.bind(Expr::maximum(num_pieces(&lo, &hi, size), Expr::int(0)));
        let past = lo.clone() + few.clone() * Expr::int(size);
        let (next, end) = (b.bind(Expr::maximum(of(&c, &a), past)), of(&d0, &b0));
        let more = Expr::maximum(num_pieces(&next, &end, size), Expr::int(0));
        let count = b.bind(few.clone() + more);
        Pieces { size, count, lo, end: b.bind(Expr::maximum(b0, d0)), second: Some((few, next)) }
    }

    /// Whether queries `first..=last` see every one of the keys `low..=high`, as far as the domain's form tells.
    pub fn all_see(&self, b: &mut Build, d: &Domain, rows: [&Expr; 2], keys: [&Expr; 2]) -> Expr {
        let ([first, last], [low, high]) = (rows, keys);
        match d {
            Domain::Full => truth(),
            // What the first query sees of later keys, or the last of earlier ones.
            Domain::Causal | Domain::EndsBefore { .. } => self.sees(b, d, first, high),
            Domain::Window(_) => self.sees(b, d, last, low),
            Domain::Prefix(_) => self.sees(b, d, last, high),
            Domain::And(x, y) => {
                let x = self.all_see(b, x, rows, keys);
                both(x, self.all_see(b, y, rows, keys))
            }
            Domain::Or(x, y) => {
                let x = self.all_see(b, x, rows, keys);
                Expr::map2(MapFn::Or, x, self.all_see(b, y, rows, keys))
            }
            Domain::EndsAt(_) | Domain::Segments(..) | Domain::Blocks { .. } | Domain::Groups { .. } | Domain::Tokens(_) => {
                Expr::map1(MapFn::Not, truth())
            }
        }
    }
    /// The test of a domain that is made of straight bounds, for query `first[0] + t` and key `first[1] + s`; not whether the key exists.
    pub fn test(&self, d: &Domain, first: [&Expr; 2]) -> Option<Test> {
        let [query, key] = first.map(Expr::clone);
        let bound = |factor, below, at_most| Some(Test::Bound { factor, query: true, below, at_most });
        match d {
            Domain::Full => Some(Test::Always),
            Domain::Causal => bound(1, self.position(query) - key, true),
            Domain::Window(w) => bound(1, self.position(query) - Expr::int(*w) - key, false),
            Domain::Prefix(n) => Some(Test::Bound { factor: 1, query: false, below: Expr::int(n - 1) - key, at_most: true }),
            Domain::EndsBefore { length, stride } => {
                bound(*stride, query - key * Expr::int(*stride) - Expr::int(length - 1), true)
            }
            Domain::And(x, y) => Some(Test::Both(Box::new(self.test(x, first)?), Box::new(self.test(y, first)?))),
            Domain::Or(x, y) => Some(Test::Either(Box::new(self.test(x, first)?), Box::new(self.test(y, first)?))),
            Domain::EndsAt(_) | Domain::Segments(..) | Domain::Blocks { .. } | Domain::Groups { .. } | Domain::Tokens(_) => None,
        }
    }
    /// The range of queries that see some of the keys `first..=last`.
    pub fn queries(&self, b: &mut Build, d: &Domain, first: &Expr, last: &Expr) -> (Expr, Expr) {
        let (lo, hi) = self.seen_from(d, first, last);
        (b.bind(Expr::maximum(lo, Expr::int(0))), b.bind(Expr::minimum(hi, self.t.clone())))
    }
    /// The same, not clipped.
    fn seen_from(&self, d: &Domain, first: &Expr, last: &Expr) -> (Expr, Expr) {
        let before = self.s.clone() - self.t.clone();
        match d {
            Domain::Causal => (first.clone() - before, self.t.clone()),
            Domain::Window(w) => (Expr::int(0), last.clone() + Expr::int(*w) - before),
            // No query sees the keys after them: from behind the last to before the first, so that the hull of that and others is theirs.
            Domain::Prefix(n) => {
                let seen = Expr::lt(first.clone(), Expr::int(*n));
                (Expr::select(seen.clone(), Expr::int(0), self.t.clone()), Expr::select(seen, self.t.clone(), Expr::int(0)))
            }
            Domain::EndsBefore { length, stride } => (first.clone() * Expr::int(*stride) + Expr::int(length - 1), self.t.clone()),
            Domain::And(x, y) => {
                let ((a, b), (c, d)) = (self.seen_from(x, first, last), self.seen_from(y, first, last));
                (Expr::maximum(a, c), Expr::minimum(b, d))
            }
            Domain::Or(x, y) => {
                let ((a, b), (c, d)) = (self.seen_from(x, first, last), self.seen_from(y, first, last));
                (Expr::minimum(a, c), Expr::maximum(b, d))
            }
            Domain::Full
            | Domain::EndsAt(_)
            | Domain::Segments(..)
            | Domain::Blocks { .. }
            | Domain::Groups { .. }
            | Domain::Tokens(_) => (Expr::int(0), self.t.clone()),
        }
    }

    /// Whether query `t` sees `key`, which is in bounds. Lists are scanned.
    pub fn sees(&self, b: &mut Build, d: &Domain, t: &Expr, key: &Expr) -> Expr {
        match d {
            Domain::Full => truth(),
            Domain::Causal => Expr::le(key.clone(), self.position(t.clone())),
            Domain::Prefix(n) => Expr::lt(key.clone(), Expr::int(*n)),
            Domain::Window(w) => Expr::lt(self.position(t.clone()) - Expr::int(*w), key.clone()),
            Domain::EndsBefore { length, stride } => {
                Expr::le(key.clone() * Expr::int(*stride) + Expr::int(length - 1), t.clone())
            }
            Domain::EndsAt(e) => Expr::le(self.of_key(*e, key.clone()).cast(DType::I64), t.clone()),
            Domain::Segments(q, k) => {
                let own = Expr::load(self.operands[*q], self.batch.clone() * self.t.clone() + t.clone());
                eq(own, self.of_key(*k, key.clone()))
            }
            Domain::Blocks { idx, size } => {
                let block = b.bind(Expr::floor_div(key.clone(), Expr::int(*size)));
                self.listed(b, *idx, t, &block)
            }
            Domain::Groups { idx, of } => {
                let group = b.bind(self.of_key(*of, key.clone()).cast(DType::I64));
                self.listed(b, *idx, t, &group)
            }
            Domain::Tokens(idx) => self.listed(b, *idx, t, key),
            Domain::And(x, y) => {
                let x = self.sees(b, x, t, key);
                both(x, self.sees(b, y, t, key))
            }
            Domain::Or(x, y) => {
                let x = self.sees(b, x, t, key);
                Expr::map2(MapFn::Or, x, self.sees(b, y, t, key))
            }
        }
    }
    fn listed(&self, b: &mut Build, operand: usize, t: &Expr, x: &Expr) -> Expr {
        let (first, n) = self.list(b, operand, t.clone());
        Expr::lt(Expr::int(0), self.occurrences(b, operand, &first, n, x))
    }

    /// Runs `body` for tiles that hold every key which queries `first..first + count` see, each once.
    pub fn each_tile(&self, b: &mut Build, tiling: Tiling, [first, count]: [&Expr; 2], body: impl FnOnce(&mut Build, Keys)) {
        let domain = &self.problem.domain;
        let last = b.bind(first.clone() + count.clone() - Expr::int(1));
        match driving_list(domain) {
            None => {
                let pieces = self.pieces(b, domain, [first, &last], tiling.keys);
                b.range(pieces.count.clone(), |b, i| {
                    let first = pieces.at(b, &i);
                    let count = b.bind(Expr::minimum(pieces.end - first.clone(), Expr::int(tiling.keys)));
                    body(b, Keys::Range { first, count, listed: None });
                });
            }
            Some((Domain::Blocks { idx, size }, rest)) if tiling.queries > 1 => {
                let (lo, hi) = self.range(b, &rest, first, &last);
                let listed = b.scratch("listed", DType::Bool, tiling.queries);
                self.each_of_union(b, idx, size, [first, count], [lo, hi.clone()], |b, block, lo| {
                    b.range(count.clone(), |b, i| {
                        let (start, n) = self.list(b, idx, first.clone() + i.clone());
                        let times = self.occurrences(b, idx, &start, n, &block);
                        b.store(listed, i, Expr::lt(Expr::int(0), times));
                    });
                    let start = b.bind(block * Expr::int(size));
                    let lo = b.bind(Expr::maximum(start.clone(), lo));
                    let hi = b.bind(Expr::minimum(start + Expr::int(size), hi));
                    let listed = Some(listed);
                    chunks(b, lo, hi, tiling.keys.min(size), |b, first, count| body(b, Keys::Range { first, count, listed }));
                });
            }
            Some((Domain::Blocks { idx, size }, rest)) => {
                let (lo, hi) = self.range(b, &rest, first, &last);
                self.each_new(
                    b,
                    idx,
                    first,
                    |b, block| {
                        let start = b.bind(block * Expr::int(size));
                        let lo = b.bind(Expr::maximum(start.clone(), lo));
                        let hi = b.bind(Expr::minimum(start + Expr::int(size), hi));
                        chunks(b, lo, hi, tiling.keys.min(size), |b, start, count| {
                            if is_range(&rest) {
                                return body(b, Keys::Range { first: start, count, listed: None });
                            }
                            let found = self.collect(b, tiling, count, |b, c, take| {
                                let key = b.bind(start + c);
                                let seen = self.sees(b, &rest, first, &key);
                                b.if_(seen, |b| take(b, key));
                            });
                            b.if_(Expr::lt(Expr::int(0), found.count()), |b| body(b, found));
                        });
                    },
                    size,
                );
            }
            Some((list, rest)) => {
                let Domain::Tokens(idx) = list else { base::bug!("{list:?} drives nothing") };
                let (lo, hi) = self.range(b, &rest, first, &last);
                let (start, n) = self.list(b, idx, first.clone());
                chunks(b, Expr::int(0), n, tiling.keys, |b, from, count| {
                    let found = self.collect(b, tiling, count, |b, c, take| {
                        let at = b.bind(from + c);
                        let key = b.bind(Expr::load(self.operands[idx], start.clone() + at.clone()).cast(DType::I64));
                        b.if_(Expr::and(Expr::le(lo, key.clone()), Expr::lt(key.clone(), hi)), |b| {
                            let before = self.occurrences(b, idx, &start, at, &key);
                            let seen = self.sees(b, &rest, first, &key);
                            b.if_(both(eq(before, Expr::int(0)), seen), |b| take(b, key));
                        });
                    });
                    b.if_(Expr::lt(Expr::int(0), found.count()), |b| body(b, found));
                });
            }
        }
    }
    /// Runs `body` for each block in a query's list that has keys, once.
    fn each_new(&self, b: &mut Build, idx: usize, t: &Expr, body: impl FnOnce(&mut Build, Expr), size: i64) {
        let (start, n) = self.list(b, idx, t.clone());
        b.range(n, |b, e| {
            let block = b.bind(Expr::load(self.operands[idx], start.clone() + e.clone()).cast(DType::I64));
            let inside = Expr::lt(block.clone() * Expr::int(size), self.s.clone());
            b.if_(Expr::and(Expr::le(Expr::int(0), block.clone()), inside), |b| {
                let before = self.occurrences(b, idx, &start, e, &block);
                b.if_(eq(before, Expr::int(0)), |b| body(b, block));
            });
        });
    }
    /// Runs `body` for each block that some of the queries list and that reaches into `lo..hi`, in order; it is also given `lo`.
    fn each_of_union(
        &self,
        b: &mut Build,
        idx: usize,
        size: i64,
        [first, count]: [&Expr; 2],
        [lo, hi]: [Expr; 2],
        body: impl FnOnce(&mut Build, Expr, Expr),
    ) {
        let end = b.bind(Expr::floor_div(hi + Expr::int(size - 1), Expr::int(size)));
        let before = Expr::floor_div(lo.clone(), Expr::int(size)) - Expr::int(1);
        let at = b.var(DType::I64, before);
        b.while_(Expr::lt(Expr::Var(at), end.clone()), |b| {
            let (old, next) = (Expr::Var(at), b.var(DType::I64, end.clone()));
            b.range(count.clone(), |b, i| {
                let (start, n) = self.list(b, idx, first.clone() + i);
                let least = b.reduce(ReduceFn::Min, end.clone(), n, |b, e| {
                    let x = b.bind(Expr::load(self.operands[idx], start + e).cast(DType::I64));
                    Expr::select(Expr::lt(old.clone(), x.clone()), x, end.clone())
                });
                b.assign(next, Expr::minimum(Expr::Var(next), Expr::Var(least)));
            });
            b.assign(at, Expr::Var(next));
            b.if_(Expr::lt(Expr::Var(next), end), |b| body(b, Expr::Var(next), lo));
        });
    }
    /// Lists what `visit` takes of `0..count`, which is at most a tile.
    fn collect(
        &self,
        b: &mut Build,
        tiling: Tiling,
        count: Expr,
        visit: impl FnOnce(&mut Build, Expr, &dyn Fn(&mut Build, Expr)),
    ) -> Keys {
        let list = b.scratch("keys", DType::I64, tiling.keys);
        let found = b.var(DType::I64, Expr::int(0));
        b.range(count, |b, c| {
            visit(b, c, &|b, key| {
                b.store(list, Expr::Var(found), key);
                b.assign(found, Expr::Var(found) + Expr::int(1));
            });
        });
        Keys::Listed { list, count: Expr::Var(found) }
    }

    /// Where the vectors of a tile's keys lie in `mem`, `[b, s, g, n]`; those of a list are first copied to scratch.
    pub fn rows(&self, b: &mut Build, mem: Mem, n: i64, keys: &Keys, tiling: Tiling) -> TileRef {
        match keys {
            Keys::Range { first, .. } => {
                let base = self.row(first.clone(), n);
                TileRef { mem, base: b.bind(base), row: Expr::int(self.problem.g * n), col: Expr::int(1) }
            }
            Keys::Listed { count, .. } => {
                let copy = b.scratch("rows", self.problem.sum_dtype(), tiling.keys * n);
                b.range(count.clone(), |b, c| {
                    let from = b.bind(self.row(keys.key(c.clone()), n));
                    b.each(Expr::int(n), |b, d| {
                        b.store(copy, c * Expr::int(n) + d.clone(), Expr::load(mem, from + d));
                    });
                });
                tile(copy, Expr::int(0), n)
            }
        }
    }
    /// The first element of a key's vector in `[b, s, g, n]`.
    pub fn row(&self, key: Expr, n: i64) -> Expr {
        ((self.batch.clone() * self.s.clone() + key) * Expr::int(self.problem.g) + self.group.clone()) * Expr::int(n)
    }
    /// The number of the row of query `t` and head `j` of the group, in `[b, t, h]`.
    pub fn query(&self, t: Expr, j: Expr) -> Expr {
        let heads = Expr::int(self.problem.h / self.problem.g);
        (self.batch.clone() * self.t.clone() + t) * Expr::int(self.problem.h) + self.group.clone() * heads + j
    }
    /// Fills `mask [keys, queries]` and gives the number of pairs that see each other. The mask's other elements stay.
    pub fn mask(&self, b: &mut Build, mask: Mem, queries: i64, [first, count]: [&Expr; 2], keys: &Keys) -> Expr {
        let total = b.var(DType::I64, Expr::int(0));
        let domain = &self.problem.domain;
        let (listed, domain) = match (keys, driving_list(domain)) {
            (Keys::Range { listed: Some(listed), .. }, Some((_, rest))) => (Some(*listed), rest),
            (Keys::Range { .. } | Keys::Listed { .. }, _) => (None, domain.clone()),
        };
        b.range(keys.count(), |b, c| {
            let key = b.bind(keys.key(c.clone()));
            let body = |b: &mut Build, i: Expr| {
                let t = b.bind(first.clone() + i.clone());
                let seen = self.sees(b, &domain, &t, &key);
                let seen = match listed {
                    Some(listed) => both(Expr::load(listed, i.clone()), seen),
                    None => seen,
                };
                let seen = b.bind(seen);
                b.store(mask, c * Expr::int(queries) + i, seen.clone());
                b.accumulate(total, ReduceFn::Sum, seen.cast(DType::I64));
            };
            // A list is scanned in lanes, pair after pair.
            if domain.has_lists() { b.range(count.clone(), body) } else { b.each(count.clone(), body) }
        });
        Expr::Var(total)
    }
}

/// Keys in pieces of `size`; where there is a `second` range, those after the first so many pieces are from there on.
pub struct Pieces {
    size: i64,
    /// How many; may be negative.
    pub count: Expr,
    lo: Expr,
    /// One past the last key that a query can see.
    end: Expr,
    second: Option<(Expr, Expr)>,
}

impl Pieces {
    /// The first key of piece `j`.
    pub fn at(&self, b: &mut Build, j: &Expr) -> Expr {
        let size = Expr::int(self.size);
        let first = self.lo.clone() + j.clone() * size.clone();
        match &self.second {
            None => b.bind(first),
            Some((few, next)) => {
                let later = next.clone() + (j.clone() - few.clone()) * size;
                b.bind(Expr::select(Expr::lt(j.clone(), few.clone()), first, later))
            }
        }
    }
}

fn num_pieces(lo: &Expr, hi: &Expr, size: i64) -> Expr {
    Expr::floor_div(hi.clone() - lo.clone() + Expr::int(size - 1), Expr::int(size))
}

/// `lo..hi` in pieces of `size`: the first element and the length of each.
fn chunks(b: &mut Build, lo: Expr, hi: Expr, size: i64, body: impl FnOnce(&mut Build, Expr, Expr)) {
    let pieces = b.bind(Expr::floor_div(hi.clone() - lo.clone() + Expr::int(size - 1), Expr::int(size)));
    b.range(pieces, |b, i| {
        let first = b.bind(lo + i * Expr::int(size));
        let count = b.bind(Expr::minimum(hi - first.clone(), Expr::int(size)));
        body(b, first, count);
    });
}
