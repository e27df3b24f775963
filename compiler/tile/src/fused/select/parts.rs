//! The same of few rows, as in a step of decoding, where the product is stored already: each row's candidates are divided among blocks, which keep the best of
//! their own; `kernels::gpu_topk_parts` joins these.
//!
//! ```text
//! for each key that the block's candidates ask for: F[i] = fold of map(S) over the heads
//! own[j] = score(F), and the k best of these, in order
//! ```
//!
//! Scratch: F [keys], own [candidates]. A thread has a key, and loads it of some heads at once. The sums of an attention's scores may come by parts of its keys
//! (`kernels::gpu_attend_parts`): a block joins those of its heads, in scratch [heads].

use super::{
    Emit, Fold, Fused, Fuser, Memory, Select, combine, emitted,
    rows::{OfRow, only_of_rows},
};
use crate::{
    group::is_layout,
    ir::{Access, Expr, LoopKind, Mem, Stmt, compute_dtype},
    kernels::{
        build::Build,
        gpu_attend_parts::{MAX_PARTS, join_logs},
        gpu_topk_parts::{keep, never},
    },
    view::StridedView,
};
use base::{DType, Dim};
use graph::{Op, Value};
use std::collections::BTreeMap;

/// Keys of a block.
const KEYS: i64 = 256;
/// Heads that are loaded at once, at most: a divisor of all.
const UNROLLED: i64 = 8;

/// How many candidates a block has, if it can have some.
pub fn candidates(s: &Select) -> Option<i64> {
    let (mul, _, len) = s.range();
    let chunk = (KEYS - len).max(0) / mul + 1;
    let narrow = compute_dtype(s.ty(s.scores).dtype) == DType::F32;
    (s.is_given() && narrow && len <= KEYS / 2 && chunk >= s.k).then_some(chunk)
}

/// Sums of an attention's scores that come by parts: which argument they are, how many parts, and the elements from one to the next. Its place is that of the first.
#[derive(Clone, Debug)]
pub struct Joined {
    /// The argument's number.
    pub arg: usize,
    /// Parts.
    pub count: Dim,
    /// Elements.
    pub stride: Dim,
}

/// Whether an argument may come by parts.
pub fn joins(s: &Select, arg: usize) -> bool {
    candidates(s).is_some() && only_of_rows(s, arg).is_some()
}

/// The kernel that gives the best of each part: values in the order of all, and their places.
pub fn select_parts(s: &Select, places: &[StridedView], [values, found]: [&StridedView; 2], joined: &[Joined]) -> Option<Fused> {
    let chunk = candidates(s)?;
    emitted(s, places, values, |f| {
        block(s, f, chunk, found, (places, joined));
        Some(())
    })
}

/// Where a view of an argument lies.
fn view_of(s: &Select, places: &[StridedView], v: Value) -> StridedView {
    let node = s.func.def(v);
    match &node.op {
        Op::Arg(i) => places[*i as usize].clone(),
        op if is_layout(op) => view_of(s, places, node.inputs[0]).apply(op).expect("a view of what lies in rows"),
        op => base::bug!("{} is no view of an argument", op.name()),
    }
}

/// What there is of each head, joined from parts by some lanes, to scratch: all parts are loaded at once.
fn join(f: &mut Fuser, e: &Emit, at: &[Expr], (x, j): (&OfRow, &Joined), view: &StridedView) -> Mem {
    let (dtype, most) = (DType::F32, Expr::int(MAX_PARTS));
    let parts = f.kernel.scratch("parts", dtype, (e.heads * MAX_PARTS) as usize);
    let mem = f.kernel.scratch("joined", dtype, e.heads as usize);
    let [count, stride] = [&j.count, &j.stride].map(|d| f.kernel.dim(d));
    let mut loops = Vec::new();
    let element = f.open(Expr::int(0), Expr::int(e.heads * MAX_PARTS), LoopKind::Vector, &mut loops);
    let heads = e.inside_at(f, Expr::floor_div(element.clone(), most.clone()));
    let part = Expr::rem(element.clone(), most.clone());
    let idx = e.index(&x.letters, at, &Expr::int(0), &heads, None);
    let near = Expr::minimum(part.clone(), count.clone() - Expr::int(1));
    let index = f.address(view, &idx) + near * stride;
    let (mut shape, mut strides) = (view.shape.clone(), view.strides.clone());
    shape.insert(0, j.count.clone());
    strides.insert(0, j.stride.clone());
    let from = f.buffer(&StridedView { at: view.at.clone(), shape, strides }, dtype, Access::Read);
    let log = f.bind(Expr::load(from, index));
    // What there is none of weighs nothing.
    let log = Expr::select(Expr::lt(part, count), log, Build::f(dtype, f64::NEG_INFINITY));
    f.here(Stmt::Store { mem: parts, index: element, value: log });
    f.close_loops(loops);
    f.by_hand(|b| {
        b.each(Expr::int(e.heads), |b, h| {
            let of_part = |i: Expr| Expr::load(parts, h.clone() * most.clone() + i);
            let [log, ..] = join_logs(b, dtype, LoopKind::Vector, most.clone(), &of_part);
            b.store(mem, h.clone(), log);
        });
    });
    mem
}

fn block(s: &Select, f: &mut Fuser, chunk: i64, found: &StridedView, (places, joined): (&[StridedView], &[Joined])) {
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

    let mut tiles = Vec::new();
    for j in joined {
        for x in only_of_rows(s, j.arg).expect("it was asked before") {
            let view = view_of(s, places, x.number);
            let mem = join(f, &e, &at, (&x, j), &view);
            let letters = x.own_letters(&s.spec.out);
            tiles.push(e.tile_of(x.repeated, &letters, mem, &at, &c.key, [e.heads, 1]));
        }
    }
    f.tiles = tiles;

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
            Some(how) => {
                // Some heads are loaded at once.
                let many = (1..=UNROLLED).rev().find(|n| e.heads % n == 0).expect("1 divides it");
                let sum = f.new_var(dtype, f.scopes.len() - 1);
                f.here(Stmt::Var(sum, e.nothing()));
                let mut inner = Vec::new();
                let turn = f.open(Expr::int(0), Expr::int(e.heads / many), LoopKind::Serial, &mut inner);
                let all: Vec<Expr> = (0..many)
                    .map(|h| {
                        let heads = e.inside_at(f, turn.clone() * Expr::int(many) + Expr::int(h));
                        value(f, &heads)
                    })
                    .collect();
                for x in all {
                    f.here(Stmt::Assign(sum, Expr::Map(combine(how), vec![Expr::Var(sum), x])));
                }
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
