//! The same of few rows, as in a step of decoding, where the product is stored already: each row's candidates are divided among blocks, which keep the best of
//! their own; `kernels::gpu_topk_parts` joins these.
//!
//! ```text
//! for each key that the block's candidates ask for: F[i] = fold of map(S) over the heads
//! own[j] = score(F), and the k best of these, in order
//! ```
//!
//! Scratch: F [keys], own [candidates]. A thread has a key, and loads it of all heads at once.

use super::{Emit, Fold, Fused, Fuser, Memory, Select, combine, emitted};
use crate::{
    ir::{Access, Expr, LoopKind, Stmt, compute_dtype},
    kernels::gpu_topk_parts::{keep, never},
    view::StridedView,
};
use base::{DType, Dim};
use std::collections::BTreeMap;

/// Keys of a block.
const KEYS: i64 = 256;
/// Heads whose loads stand one after the other, at most.
const UNROLLED: i64 = 16;

/// How many candidates a block has, if it can have some.
pub fn candidates(s: &Select) -> Option<i64> {
    let (mul, _, len) = s.range();
    let chunk = (KEYS - len).max(0) / mul + 1;
    (s.is_given() && len <= KEYS / 2 && chunk >= s.k).then_some(chunk)
}

/// The kernel that gives the best of each part: values in the order of all, and their places.
pub fn select_parts(s: &Select, places: &[StridedView], values: &StridedView, found: &StridedView) -> Option<Fused> {
    let chunk = candidates(s)?;
    emitted(s, places, values, |f| {
        block(s, f, chunk, found);
        Some(())
    })
}

fn block(s: &Select, f: &mut Fuser, chunk: i64, found: &StridedView) {
    let shape = &s.ty(s.scores).shape[..];
    let (n, rows) = shape.split_last().expect("a row to choose from");
    let dtype = compute_dtype(s.ty(s.product).dtype.accumulator());
    f.kernel.name = "choice".into();
    let sums = f.kernel.scratch("sums", dtype, KEYS as usize);
    let own = f.kernel.scratch("own", DType::I32, chunk as usize);
    let mem = Memory { queries: sums, keys: sums, scores: sums, sums };
    let e = Emit { s, shape, queries: 1, heads: s.heads(), width: KEYS, chunk, carried: 0, depth: 1, dtype, mem };

    let parts = n.ceil_div(&Dim::from(chunk)).maximum(&Dim::from(1));
    f.kernel.grid = rows.iter().fold(parts.clone(), |all, d| all * d.clone());
    let parts = f.kernel.dim(&parts);
    let block = f.kernel.block();
    let part = f.bind(Expr::rem(block.clone(), parts.clone()));
    let mut rest = f.bind(Expr::floor_div(block.clone(), parts));
    let mut at = vec![Expr::int(0); rows.len()];
    for a in (0..rows.len()).rev() {
        let extent = f.kernel.dim(&rows[a]);
        at[a] = f.bind(Expr::rem(rest.clone(), extent.clone()));
        rest = f.bind(Expr::floor_div(rest, extent));
    }
    let n = f.kernel.dim(n);
    let c = e.chunk_at(f, part, n);

    // F of the keys that there are.
    let any = Expr::lt(c.from.clone(), c.to.clone());
    let fill = |f: &mut Fuser| f.by_hand(|b| b.fill(sums, Expr::int(KEYS), e.nothing()));
    let fold = |f: &mut Fuser| {
        let mut loops = Vec::new();
        let i = f.open(Expr::int(0), Expr::int(KEYS), LoopKind::Vector, &mut loops);
        let near = Expr::maximum(c.from.clone(), Expr::minimum(i.clone(), c.to.clone() - Expr::int(1)));
        let key = f.bind(c.key.clone() + near);
        let value = |f: &mut Fuser, heads: &BTreeMap<char, Expr>| {
            let idx = e.index(&s.spec.out, &at, &Expr::int(0), heads, Some(&key));
            let value = f.eval(s.mapped, &idx);
            if f.kernel.expr_dtype(&value) == dtype { value } else { value.cast(dtype) }
        };
        let how = s.fold.how();
        let sum = match how {
            None => value(f, &BTreeMap::new()),
            Some(how) if e.heads <= UNROLLED => {
                let all: Vec<Expr> = (0..e.heads).map(|h| value(f, &inside_of(&e, h))).collect();
                all.into_iter().reduce(|sum, x| Expr::Map(combine(how), vec![sum, x])).expect("there are heads")
            }
            Some(how) => {
                let sum = f.new_var(dtype, f.scopes.len() - 1);
                f.here(Stmt::Var(sum, e.nothing()));
                let mut inner = Vec::new();
                let (heads, _) = e.open_heads(f, &mut inner);
                let x = value(f, &heads);
                f.here(Stmt::Assign(sum, Expr::Map(combine(how), vec![Expr::Var(sum), x])));
                f.close_loops(inner);
                Expr::Var(sum)
            }
        };
        let inside = Expr::and(Expr::le(c.from.clone(), i.clone()), Expr::lt(i.clone(), c.to.clone()));
        let value = Expr::select(inside, sum, e.nothing());
        f.here(Stmt::Store { mem: sums, index: i, value });
        f.close(loops);
    };
    f.branch(any, fold, fill);
    match s.fold {
        Fold::No => f.tiles = vec![e.tile(s.mapped, &s.spec.out, sums, &at, &c.key, 1)],
        Fold::Reduce(_) | Fold::Weighted(..) => drop(e.folded(f, &at, &c.key, Expr::int(0))),
    }

    // The scores of the candidates that there are.
    f.by_hand(|b| b.fill(own, Expr::int(chunk), never()));
    let some = Expr::lt(Expr::int(0), c.here.clone());
    let scores = |f: &mut Fuser| {
        let mut loops = Vec::new();
        let j = f.open(Expr::int(0), Expr::int(chunk), LoopKind::Vector, &mut loops);
        let near = Expr::minimum(j.clone(), c.here.clone() - Expr::int(1));
        let candidate = f.bind(c.first.clone() + near);
        let idx: Vec<Expr> = at.iter().cloned().chain([candidate]).collect();
        let value = f.eval(s.scores, &idx).order();
        let value = Expr::select(Expr::lt(j.clone(), c.here.clone()), value, never());
        f.here(Stmt::Store { mem: own, index: j, value });
        f.close_loops(loops);
    };
    f.branch(some, scores, |_| {});
    let values = f.target.clone();
    let [values, found] = [&values, found].map(|view| f.buffer(view, DType::I32, Access::Write));
    f.by_hand(|b| {
        let to = b.bind(block * Expr::int(s.k));
        keep(b, own, [chunk, s.k], [c.first, to], [values, found]);
    });
}

/// The letters that end inside of head `number`.
fn inside_of(e: &Emit, mut number: i64) -> BTreeMap<char, Expr> {
    let mut found = BTreeMap::new();
    for (c, n) in e.inside().into_iter().rev() {
        found.insert(c, Expr::int(number % n));
        number /= n;
    }
    found
}
