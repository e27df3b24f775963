//! The gradient of softmax attention over lists of blocks where few heads share keys, for a device of many processors: unions of the blocks of a tile's queries, which
//! `gpu_attend_grad` goes over for dq, would be most of the blocks there are. Queries are sorted by the blocks that they list, as in `gpu_attend_by_block`. Kernels one after the other:
//!
//! ```text
//! count, starts, offsets, place    lists → rows, position, owner of tiles, offsets, firsts   the sort of that file, with items of `gpu_attend_union`
//! listed    rows, offsets, firsts → queries, owner of items        what a block of keys goes over
//! sorted, keys, items              as with unions: dk and dv
//! parts     q, k, v, d_o, l, Δ, domain operands…, rows, owner → parts   for a tile's rows and the keys of its block, queries down and keys across:
//!               S = Q·Kᵀ, dP = dO·Vᵀ, P = 2^(c·S − l), dS = P∘(dP − Δ), dQ = scale·dS·K     in the dtype of the result
//! merge     position, parts → dq                                    the parts of a query's row added in the order of its list
//! ```
//!
//! # Source: Lu et al., MoBA, arXiv 2502.13189; `specs/nsa.md` 2.3. Tested on the domains and sizes of `tests/attend.rs`.

use super::{
    build::Build,
    domain::Problem,
    gpu_attend::{Gathered, Heads, Sides, mask},
    gpu_attend_by_block::{self, MERGED, each_tile, gpu_attend_sort, places_of},
    gpu_attend_grad::{Given, Queries, Tiling, forward, of_rows, padded},
    gpu_attend_union,
};
use crate::ir::{Expr, Kernel};
use base::{DType, Dim, TensorType};

/// Whether the kernels are built for a problem with this tiling.
pub fn takes(p: &Problem, t: Tiling) -> bool {
    gpu_attend_by_block::sorts(p, forward(t)) && t.of_keys[0] == t.of_queries[0]
}

/// The types of counts, starts, totals, rows, position, owner of tiles, and parts; then offsets, firsts, queries, owner of items, l, Δ and numbers of rows.
pub fn memories(p: &Problem, t: Tiling) -> Vec<TensorType> {
    let [counts, starts, totals, _, rows, position, owner, parts, _] = gpu_attend_by_block::memories(p, forward(t));
    let parts = TensorType::new(p.dtype, vec![parts.elems().try_div(&Dim::from(p.dv)).expect("rows of dv") * Dim::from(p.dk)]);
    let mut all = vec![counts, starts, totals, rows, position, owner, parts];
    all.extend(gpu_attend_union::inverse_memories(p, forward(t)).into_iter().skip(2));
    all
}

/// The kernels of the sort, in order: count, starts, offsets, place, listed.
pub fn gpu_attend_grad_sort(p: &Problem, t: Tiling) -> [Kernel; 5] {
    let [count, starts, place] = gpu_attend_sort(p, forward(t));
    let [offsets, listed] = gpu_attend_union::gpu_attend_listed(p, forward(t));
    [count, starts, offsets, place, listed]
}

/// What each tile's rows have of dq. Buffers: q, k, v, d_o, l, Δ, domain operands…, rows, owner, parts.
pub fn gpu_attend_grad_query_parts(p: &Problem, t: Tiling) -> Kernel {
    let [rows, keys] = t.of_queries;
    let plan = gpu_attend_by_block::Sort::new(p, forward(t));
    let mut b = Build::new("attend_grad_query_parts");
    let given = Given::new(&mut b, p, &of_rows(p, t));
    let all_rows = plan.tiles.clone() * Dim::from(rows);
    let numbers = b.read("rows", DType::I32, all_rows.clone());
    let owner = b.read("owner", DType::I32, plan.tiles.clone());
    let parts = b.write("parts", p.dtype, all_rows.clone() * Dim::from(p.dk));
    let parts = Heads::new(&mut b, parts, &Dim::from(1), &all_rows, 1, p.dk);
    b.kernel.grid = plan.tiles.clone();

    let tile = Queries::new(&mut b, p, t.of_queries);
    each_tile(&mut b, p, &plan.blocks, (owner, rows), given.operands.clone(), |b, scene, [block, at]| {
        let gathered = Gathered::new(b, &scene, numbers, at.clone(), rows, plan.rest.clone());
        let all = b.dim(&(p.b.clone() * p.t.clone() * Dim::from(p.h)));
        given.q.pick_rows(b, tile.q, rows, &all, (numbers, &at));
        given.d_o.pick_rows(b, tile.d_o, rows, &all, (numbers, &at));
        tile.begin(b);
        let (padded, groups) = (b.dim(&padded(p, t.heads)), Expr::int(p.h / t.heads));
        b.each(Expr::int(rows), |b, r| {
            let number = b.bind(Expr::load(numbers, at.clone() + r.clone()).cast(DType::I64));
            let there = b.bind(Expr::le(Expr::int(0), number.clone()));
            let number = b.bind(Expr::maximum(number, Expr::int(0)));
            let head = b.bind(Expr::rem(number.clone(), Expr::int(p.h)));
            let query = b.bind(Expr::floor_div(number, Expr::int(p.h)));
            let (batch, query) = (Expr::floor_div(query.clone(), scene.t.clone()), Expr::rem(query, scene.t.clone()));
            let heads = Expr::int(t.heads);
            let of_heads = batch * groups + Expr::floor_div(head.clone(), heads.clone());
            let from = b.bind(of_heads * padded + query * heads.clone() + Expr::rem(head, heads));
            for (mem, to) in [(given.l, tile.l), (given.delta, tile.delta)] {
                let none = Build::f(p.sum_dtype(), 0.0);
                b.store(to, r.clone(), Expr::select(there.clone(), Expr::load(mem, from.clone()), none));
            }
        });
        let piece = |b: &mut Build, j: Expr| {
            let start = b.bind(block.clone() * Expr::int(plan.size) + j * Expr::int(keys));
            tile.add(b, &given, [&scene.batch, &scene.group, &start], |b, scores| {
                let queries = (&gathered.first, rows / t.heads);
                let sides = Sides { queries, heads: t.heads, keys: (&start, keys), by_queries: true, rows: Some(&gathered) };
                mask(b, &scene, &gathered.rest, scores, &sides, None);
            });
        };
        // One piece is no loop, so that its copies need no more room than they take.
        match plan.size / keys {
            1 => piece(b, Expr::int(0)),
            n => b.range(Expr::int(n), piece),
        }
        let (sums, zero) = (tile.finish(b, |_, _| None), Expr::int(0));
        parts.copy(b, sums, rows, [&zero, &zero, &at], true);
    });
    b.finish()
}

/// dq of its parts. Buffers: position, parts, dq.
pub fn gpu_attend_grad_query_merge(p: &Problem, t: Tiling) -> Kernel {
    let plan = gpu_attend_by_block::Sort::new(p, forward(t));
    let mut b = Build::new("attend_grad_query_merge");
    let position = b.read("position", DType::I32, plan.places.clone());
    let all_rows = plan.tiles * Dim::from(t.of_queries[0]);
    let parts = b.read("parts", p.dtype, all_rows * Dim::from(p.dk));
    let [q_elems, .., rows] = p.elems();
    let dq = b.write("dq", p.dtype, q_elems);
    b.kernel.grid = rows.ceil_div(&Dim::from(MERGED));
    let total = b.dim(&rows);
    let dtype = p.sum_dtype();
    b.each_row(total, MERGED, |b, row| {
        let found: Vec<[Expr; 2]> = places_of(b, p, position, [plan.n, t.heads], &row)
            .into_iter()
            .map(|[at, there]| [b.bind(at * Expr::int(p.dk)), there])
            .collect();
        let to = b.bind(row * Expr::int(p.dk));
        b.each(Expr::int(p.dk), |b, d| {
            let part = |[from, there]: &[Expr; 2]| {
                let x = Expr::load(parts, from.clone() + d.clone());
                Expr::select(there.clone(), x, Build::f(dtype, 0.0))
            };
            let sum = found.iter().map(part).reduce(|x, y| x + y).expect("a list has places");
            b.store(dq, to + d, if p.dtype == dtype { sum } else { sum.cast(p.dtype) });
        });
    });
    b.finish()
}
