//! Picks the kernels of an op that is not fused, by the tilings that were measured where there are some.

use crate::{
    ir::Kernel,
    kernels::{
        domain::Problem,
        gpu_attend, gpu_attend_by_block, gpu_attend_grad, gpu_attend_grad_by_block, gpu_attend_parts, gpu_attend_union,
        gpu_route, gpu_scatter_add, gpu_scatter_few, gpu_scatter_sorted, gpu_topk, gpu_topk_long, gpu_topk_parts, host_attend,
        host_attend_grad,
        host_cumsum::{self, Cumsum},
        host_gather::Rows,
        host_route::{self, Route},
        host_scatter_add,
        host_topk::{self, TopK},
    },
    lower::TargetError,
};
use base::{DType, Dim, TensorType};
use graph::{Op, op::Attend};
use std::collections::BTreeMap;

/// What the kernel is for.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    /// Whether it has many processors.
    pub many: bool,
    /// Whether operands and results begin where rectangles can be copied.
    pub aligned: bool,
    /// Whether lists of keys are known to have each once.
    pub distinct: bool,
    /// Whether an attention's values are the first columns of its keys, of which it is given the others.
    pub shared: bool,
    /// Whether a gradient of attention needs nothing of its result, which is zeros then.
    pub of_sums: bool,
    /// Whether the gradient of an attention's queries is added to what its memory has.
    pub adds: bool,
    /// Queries that there are at least.
    pub fewest: i64,
}

/// What is done for an op: kernels one after the other, and memory between them.
#[derive(Clone, Debug)]
pub struct Work {
    /// What it is for, if there are several tilings: problems of one name have the same legal ones.
    pub problem: String,
    /// The kernels, what each is passed, and its tiling (`queries=16,keys=64`) if there are several. With [`Want::All`] those of one problem
    /// compute the same.
    pub launches: Vec<(Kernel, Vec<Place>, Option<String>)>,
    /// Memory that holds nothing before and is needed by nobody after.
    pub asides: Vec<TensorType>,
    /// The dtypes in which results are given: sums come in their accumulator's.
    pub dtypes: Vec<DType>,
}

/// A buffer of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The op's operand.
    Operand(usize),
    /// The op's result.
    Result(usize),
    /// Of [`Work::asides`].
    Aside(usize),
}

/// Which of an op's kernels are asked for.
#[derive(Clone, Copy, Debug)]
pub enum Want<'a> {
    /// The one whose tiling was chosen for its problem, else the usual one.
    Chosen(&'a BTreeMap<String, String>),
    /// Each that may be the fastest, the usual one first.
    All,
}

/// The kernels for `op`.
///
/// # Errors
/// E0501 if a size that has to be a constant is not.
pub fn kernels(
    op: &Op,
    operands: &[&TensorType],
    results: &[TensorType],
    device: Device,
    want: Want,
) -> Result<Work, TargetError> {
    if let (Op::Route { groups }, true) = (op, device.many) {
        return Ok(route(&Route { choices: operands[0].elems(), groups: *groups }));
    }
    if let (Op::ScatterAdd { batch, n }, true) = (op, device.many) {
        let p = rows(operands, *batch, n);
        if gpu_scatter_sorted::keys(&p).is_some() {
            return Ok(scatter_sorted(&p));
        }
    }
    if let (Op::Attend(a), true) = (op, device.many) {
        let p = Problem { distinct: device.distinct, shared: device.shared, ..problem(op, a, operands, &operands[3..])? };
        if let Some(tiling) = gpu_attend_by_block::choose(&p).filter(|_| device.aligned) {
            return Ok(attend_by_block(&p, tiling));
        }
        let tiling = gpu_attend::Tiling::choose(&p);
        if gpu_attend::takes(&p, tiling, device.aligned) {
            return Ok(attend(&p, tiling, device.fewest));
        }
        if p.shared {
            base::bug!("no other kernel has keys without the columns that are values");
        }
    }
    if let (Op::AttendGrad(a), true) = (op, device.many) {
        let p = problem(op, a, operands, &operands[7..])?;
        let tiling = gpu_attend_grad::Tiling::choose(&p);
        if gpu_attend_grad::takes(&p, tiling, device.aligned) {
            return Ok(attend_grad(&p, tiling, device.of_sums, device.adds));
        }
    }
    if let (Op::TopK(k), true) = (op, device.many) {
        let (n, rows) = operands[0].shape.split_last().expect("a row to choose from");
        let p = TopK { dtype: operands[0].dtype, rows: product(rows), n: n.clone(), k: *k };
        if gpu_topk_parts::are_few(rows) && gpu_topk_parts::takes(&p) {
            return Ok(topk_parts(&p));
        }
    }
    let Kernels { problem, candidates, dtypes } = candidates(op, operands, results, device, want)?;
    let places: Vec<Place> = (0..operands.len()).map(Place::Operand).chain((0..results.len()).map(Place::Result)).collect();
    let launches = candidates.into_iter().map(|c| (c.kernel, places.clone(), c.tiling)).collect();
    Ok(Work { problem, launches, asides: Vec::new(), dtypes })
}

/// Attention by many processors.
fn attend(p: &Problem, tiling: gpu_attend::Tiling, fewest: i64) -> Work {
    let given: Vec<Place> = (0..3 + p.operands.len()).map(Place::Operand).collect();
    let results = [0, 1].map(Place::Result);
    let dtypes = vec![p.dtype, p.sum_dtype()];
    let (mut launches, mut asides) = (Vec::new(), Vec::new());
    if let Some(parts) = &gpu_attend_parts::num_parts(p, tiling, fewest) {
        let [.., o, lse] = p.elems().map(|n| TensorType::new(p.sum_dtype(), vec![n * parts.clone()]));
        let [of_o, of_lse] = [0, 1].map(Place::Aside);
        let places = given.into_iter().chain([of_o, of_lse]).collect();
        launches.push((gpu_attend_parts::gpu_attend_part(p, tiling, parts), places, None));
        launches.push((
            gpu_attend_parts::gpu_attend_merge(p, parts, true),
            [vec![of_o, of_lse], results.to_vec()].concat(),
            None,
        ));
        return Work { problem: String::new(), launches, asides: vec![o, lse], dtypes };
    }
    if let Some(lists) = gpu_attend_union::lists(p, tiling) {
        asides = gpu_attend_union::memories(p, tiling);
        let union = (0..asides.len()).map(Place::Aside);
        let places = [Place::Operand(3 + lists)].into_iter().chain(union).collect();
        launches.push((gpu_attend_union::gpu_attend_union(p, tiling), places, None));
    }
    let union = (0..asides.len()).map(Place::Aside);
    let places = given.into_iter().chain(union).chain(results).collect();
    launches.push((gpu_attend::gpu_attend(p, tiling), places, None));
    Work { problem: String::new(), launches, asides, dtypes }
}

/// Attention over lists of blocks, by blocks.
pub(crate) fn attend_by_block(p: &Problem, tiling: gpu_attend::Tiling) -> Work {
    let given: Vec<Place> = (0..3 + p.operands.len()).map(Place::Operand).collect();
    let lists = Place::Operand(3 + gpu_attend_by_block::lists(p, tiling));
    let [counts, starts, totals, offsets, rows, position, owner, parts, sums] = std::array::from_fn(Place::Aside);
    let [o, lse] = [0, 1].map(Place::Result);
    let places = [
        vec![lists, counts],
        vec![counts, starts, totals],
        vec![totals, offsets],
        vec![lists, starts, offsets, rows, position, owner],
        [given, vec![rows, owner, parts, sums]].concat(),
        vec![position, parts, sums, o, lse],
    ];
    let kernels = gpu_attend_by_block::gpu_attend_by_block(p, tiling);
    let launches = kernels.into_iter().zip(places).map(|(kernel, places)| (kernel, places, None)).collect();
    let asides = gpu_attend_by_block::memories(p, tiling).into();
    Work { problem: String::new(), launches, asides, dtypes: vec![p.dtype, p.sum_dtype()] }
}

/// Whether a gradient of attention is computed by many processors, if its operands are aligned.
pub fn takes_attend_grad(op: &Op, operands: &[&TensorType]) -> bool {
    let Op::AttendGrad(a) = op else { return false };
    let Ok(p) = problem(op, a, operands, &operands[7..]) else { return false };
    gpu_attend_grad::takes(&p, gpu_attend_grad::Tiling::choose(&p), true)
}

/// Whether such a gradient can add that of queries to what is in its memory.
pub fn adds_to_queries(op: &Op, operands: &[&TensorType]) -> bool {
    let Op::AttendGrad(a) = op else { return false };
    let Ok(p) = problem(op, a, operands, &operands[7..]) else { return false };
    takes_attend_grad(op, operands) && !gpu_attend_grad::Tiling::choose(&p).by_block
}

/// The gradient of attention by many processors; with `adds`, that of queries is added to what its memory has.
pub(crate) fn attend_grad(p: &Problem, tiling: gpu_attend_grad::Tiling, of_sums: bool, adds: bool) -> Work {
    let [q, k, v, o, lse, d_o, d_lse] = [0, 1, 2, 3, 4, 5, 6].map(Place::Operand);
    let ([l, delta], [dq, dk, dv]) = ([0, 1].map(Place::Aside), [0, 1, 2].map(Place::Result));
    let of_domain = (7..7 + p.operands.len()).map(Place::Operand);
    let operands: Vec<Place> = [q, k, v, d_o].into();
    let given = |[l, delta]: [Place; 2]| [operands.clone(), vec![l, delta], of_domain.clone().collect()].concat();
    let of_rows = TensorType::new(p.sum_dtype(), vec![gpu_attend_grad::of_rows(p, tiling)]);
    let mut asides = vec![of_rows.clone(), of_rows];
    let rows = match of_sums {
        true => (gpu_attend_grad::gpu_attend_grad_rows_of_sums(p, tiling), vec![lse, d_lse, l, delta], None),
        false => (gpu_attend_grad::gpu_attend_grad_rows(p, tiling), vec![o, lse, d_o, d_lse, l, delta], None),
    };
    let mut launches = vec![rows];
    let (mut inverse, mut union, mut sorted) = (Vec::new(), Vec::new(), [l, delta]);
    let forward = gpu_attend_grad::forward(tiling);
    let mut by_block = None;
    if tiling.by_block {
        asides.extend(gpu_attend_grad_by_block::memories(p, tiling));
        let lists = Place::Operand(7 + gpu_attend_by_block::lists(p, forward));
        let [counts, starts, totals, rows, position, owner, parts, offsets, firsts, queries, of_item] =
            [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12].map(Place::Aside);
        sorted = [13, 14].map(Place::Aside);
        let numbers: Vec<Place> = gpu_attend_union::by_rows(tiling.heads).then_some(Place::Aside(15)).into_iter().collect();
        let places = [
            vec![lists, counts],
            vec![counts, starts, totals],
            vec![totals, offsets, firsts],
            vec![lists, starts, offsets, rows, position, owner],
            vec![rows, offsets, firsts, queries, of_item],
            [vec![queries, l, delta], sorted.to_vec(), numbers.clone()].concat(),
        ];
        let kernels = gpu_attend_grad_by_block::gpu_attend_grad_sort(p, tiling).into_iter();
        let kernels = kernels.chain([gpu_attend_union::gpu_attend_sorted(p, forward)]);
        launches.extend(kernels.zip(places).map(|(kernel, places)| (kernel, places, None)));
        inverse = [vec![offsets, firsts, queries, of_item], numbers].concat();
        by_block = Some([rows, owner, position, parts]);
    } else if let Some(lists) = gpu_attend_union::lists(p, forward) {
        asides.extend(gpu_attend_union::memories(p, forward));
        asides.extend(gpu_attend_union::inverse_memories(p, forward));
        let [blocks, member, count, counts, totals, offsets, firsts, queries, owner] =
            [2, 3, 4, 5, 6, 7, 8, 9, 10].map(Place::Aside);
        sorted = [11, 12].map(Place::Aside);
        union = vec![blocks, member, count];
        let rows: Vec<Place> = gpu_attend_union::by_rows(tiling.heads).then_some(Place::Aside(13)).into_iter().collect();
        launches.push((
            gpu_attend_union::gpu_attend_union(p, forward),
            vec![Place::Operand(7 + lists), blocks, member, count],
            None,
        ));
        let kernels = gpu_attend_union::gpu_attend_inverse(p, forward);
        let places = [
            vec![blocks, member, count, counts, totals],
            vec![totals, offsets, firsts],
            vec![blocks, member, count, counts, totals, offsets, firsts, queries, owner],
            [vec![queries, l, delta], sorted.to_vec(), rows.clone()].concat(),
        ];
        launches.extend(kernels.into_iter().zip(places).map(|(kernel, places)| (kernel, places, None)));
        inverse = [vec![offsets, firsts, queries, owner], rows].concat();
    }
    // dk and dv, or sums that are still to be added.
    let kept = gpu_attend_grad::of_sums(p, tiling);
    let first = asides.len();
    let sums = if kept.is_some() { [0, 1].map(|i| Place::Aside(first + i)) } else { [dk, dv] };
    asides.extend(kept.clone().into_iter().flatten());
    for gives in tiling.gives() {
        let results = match gives {
            gpu_attend_grad::Gives::Both => sums.to_vec(),
            gpu_attend_grad::Gives::Keys => vec![sums[0]],
            gpu_attend_grad::Gives::Values => vec![sums[1]],
        };
        let places = [given(sorted), inverse.clone(), results].concat();
        launches.push((gpu_attend_grad::gpu_attend_grad_keys(p, tiling, *gives), places, None));
    }
    if kept.is_some() {
        for (sum, d, values) in [(sums[0], dk, false), (sums[1], dv, true)] {
            launches.push(match inverse.get(1) {
                Some(firsts) => {
                    let n = if values { p.dv } else { p.dk };
                    (gpu_attend_union::gpu_attend_grad_items(p, forward, n), vec![sum, *firsts, d], None)
                }
                None => (gpu_attend_grad::gpu_attend_grad_parts(p, tiling, values), vec![sum, d], None),
            });
        }
    }
    match by_block {
        Some([rows, owner, position, parts]) => {
            let places = [given([l, delta]), vec![rows, owner, parts]].concat();
            launches.push((gpu_attend_grad_by_block::gpu_attend_grad_query_parts(p, tiling), places, None));
            let merge = gpu_attend_grad_by_block::gpu_attend_grad_query_merge(p, tiling);
            launches.push((merge, vec![position, parts, dq], None));
        }
        None => {
            let places = [given([l, delta]), union, vec![dq]].concat();
            launches.push((gpu_attend_grad::gpu_attend_grad_queries(p, tiling, adds), places, None));
        }
    }
    Work { problem: String::new(), launches, asides, dtypes: vec![p.dtype; 3] }
}

/// A choice from few rows by many processors.
fn topk_parts(p: &TopK) -> Work {
    let [of_parts, join] = gpu_topk_parts::gpu_topk_parts(p);
    let [values, places] = [0, 1].map(Place::Aside);
    let launches =
        vec![(of_parts, vec![Place::Operand(0), values, places], None), (join, vec![values, places, Place::Result(0)], None)];
    Work {
        problem: String::new(),
        launches,
        asides: gpu_topk_parts::memories(p, gpu_topk_parts::PART).into(),
        dtypes: vec![DType::I32],
    }
}

/// A routing by many processors.
fn route(p: &Route) -> Work {
    let [count, find, place] = gpu_route::gpu_route(p);
    let [counts, starts, totals] = [0, 1, 2].map(Place::Aside);
    let (choice, [at, source, position]) = (Place::Operand(0), [0, 1, 2].map(Place::Result));
    let launches = vec![
        (count, vec![choice, counts], None),
        (find, vec![counts, starts, totals], None),
        (place, vec![choice, starts, totals, at, source, position], None),
    ];
    let of = |shape: &[i64]| TensorType::new(DType::I32, shape.iter().copied().map(Dim::from).collect::<Vec<_>>());
    let table = of(&[gpu_route::PARTS, p.groups]);
    Work { problem: String::new(), launches, asides: vec![table.clone(), table, of(&[p.groups])], dtypes: vec![DType::I32; 3] }
}

/// Sums by index of many rows by many processors.
fn scatter_sorted(p: &Rows) -> Work {
    use gpu_scatter_sorted::Buffer;
    let place = |b: &Buffer| match *b {
        Buffer::Index => Place::Operand(0),
        Buffer::Rows => Place::Operand(1),
        Buffer::Sums => Place::Result(0),
        Buffer::Aside(i) => Place::Aside(i),
    };
    let kernels = gpu_scatter_sorted::gpu_scatter_sorted(p).into_iter();
    let launches = kernels.map(|(kernel, buffers)| (kernel, buffers.iter().map(place).collect(), None)).collect();
    let dtypes = vec![host_scatter_add::sum_dtype(p.dtype)];
    Work { problem: String::new(), launches, asides: gpu_scatter_sorted::memories(p), dtypes }
}

fn product(dims: &[Dim]) -> Dim {
    dims.iter().fold(Dim::from(1), |n, d| n * d.clone())
}

/// The extents of sums by index.
fn rows(operands: &[&TensorType], batch: usize, n: &Dim) -> Rows {
    let (index, rows) = (operands[0], operands[1]);
    Rows {
        dtype: rows.dtype,
        batch: product(&index.shape[..batch]),
        picks: product(&index.shape[batch..]),
        n: n.clone(),
        row: product(&rows.shape[index.rank()..]),
    }
}

/// A kernel that an op can have.
struct Candidate {
    /// Its tiling; none where there is one.
    tiling: Option<String>,
    kernel: Kernel,
}

/// The kernels that an op can have, where it has one.
struct Kernels {
    problem: String,
    candidates: Vec<Candidate>,
    dtypes: Vec<DType>,
}

/// The kernels of an op that has one at a time: their buffers are the operands, then the results.
fn candidates(
    op: &Op,
    operands: &[&TensorType],
    results: &[TensorType],
    device: Device,
    want: Want,
) -> Result<Kernels, TargetError> {
    let given = || results.iter().map(|t| t.dtype).collect::<Vec<_>>();
    let dtype = operands[0].dtype;
    Ok(match op {
        Op::Attend(a) => {
            let p = problem(op, a, operands, &operands[3..])?;
            let (name, usual) = (attention("attend", &p), host_attend::default_tiling(&p));
            pick(name, usual, &p.worthwhile(host_attend::scratch_bytes), want, |t| host_attend::host_attend(&p, t), given())
        }
        Op::AttendGrad(a) => {
            let p = problem(op, a, operands, &operands[7..])?;
            let sum = p.dtype.accumulator();
            let (name, usual) = (attention("attend_grad", &p), host_attend_grad::default_tiling(&p));
            let worth = p.worthwhile(host_attend_grad::scratch_bytes);
            pick(name, usual, &worth, want, |t| host_attend_grad::host_attend_grad(&p, t), vec![p.dtype, sum, sum])
        }
        Op::TopK(k) => {
            let (n, rows) = operands[0].shape.split_last().expect("a row to choose from");
            let p = TopK { dtype, rows: product(rows), n: n.clone(), k: *k };
            if device.many && gpu_topk_long::takes(*k, dtype) {
                return Ok(only(gpu_topk_long::gpu_topk_long(&p, false), given()));
            }
            if device.many && gpu_topk::is_ordered(dtype) {
                return Ok(only(gpu_topk::gpu_topk(&p), given()));
            }
            let legal = &host_topk::Tiling::LEGAL;
            pick(format!("topk {dtype} {n} {k}"), legal[0], legal, want, |t| host_topk::host_topk(&p, t), given())
        }
        Op::Cumsum { axis, exclusive, reverse } => {
            let shape = &operands[0].shape;
            let p = Cumsum {
                dtype,
                outer: product(&shape[..*axis]),
                n: shape[*axis].clone(),
                inner: product(&shape[axis + 1..]),
                exclusive: *exclusive,
                reverse: *reverse,
            };
            let (name, legal) = (format!("cumsum {dtype} {} {}", p.n, p.inner), &host_cumsum::Tiling::LEGAL);
            pick(name, legal[0], legal, want, |t| host_cumsum::host_cumsum(&p, t), given())
        }
        Op::Route { groups } => only(host_route::host_route(&Route { choices: operands[0].elems(), groups: *groups }), given()),
        Op::ScatterAdd { batch, n } => {
            let p = rows(operands, *batch, n);
            let sum = host_scatter_add::sum_dtype(p.dtype);
            if device.many && gpu_scatter_few::is_few(&p) {
                return Ok(only(gpu_scatter_few::gpu_scatter_few(&p), vec![sum]));
            }
            if device.many {
                return Ok(only(gpu_scatter_add::gpu_scatter_add(&p), vec![sum]));
            }
            let (name, legal) = (format!("scatter_add {} {}", p.dtype, p.row), &host_scatter_add::Tiling::LEGAL);
            pick(name, legal[0], legal, want, |t| host_scatter_add::host_scatter_add(&p, t), vec![sum])
        }
        _ => base::bug!("{} is fused or a product", op.name()),
    })
}

/// A kernel without a choice.
fn only(kernel: Kernel, dtypes: Vec<DType>) -> Kernels {
    Kernels { problem: String::new(), candidates: vec![Candidate { tiling: None, kernel }], dtypes }
}

/// What is wanted of the legal tilings.
fn pick<T: Copy + PartialEq + std::fmt::Display>(
    problem: String,
    usual: T,
    legal: &[T],
    want: Want,
    build: impl Fn(T) -> Kernel,
    dtypes: Vec<DType>,
) -> Kernels {
    let candidate = |t: T| Candidate { tiling: Some(t.to_string()), kernel: build(t) };
    let candidates = match want {
        Want::Chosen(chosen) => {
            let found = chosen.get(&problem).and_then(|name| legal.iter().find(|t| t.to_string() == *name));
            vec![candidate(*found.unwrap_or(&usual))]
        }
        Want::All => [usual].into_iter().chain(legal.iter().copied().filter(|t| *t != usual)).map(candidate).collect(),
    };
    Kernels { problem, candidates, dtypes }
}

/// The name of an attention problem.
fn attention(what: &str, p: &Problem) -> String {
    let Problem { dtype, b, t, s, h, g, dk, dv, domain, scale, operands, distinct: _, shared: _ } = p;
    let of_domain: Vec<String> = operands.iter().map(TensorType::to_string).collect();
    format!("{what} {dtype} b={b} t={t} s={s} heads={h}/{g} dk={dk} dv={dv} scale={scale} {domain} {}", of_domain.join(" "))
        .trim_end()
        .into()
}

fn problem(op: &Op, a: &Attend, operands: &[&TensorType], of_domain: &[&TensorType]) -> Result<Problem, TargetError> {
    let (q, k, v) = (operands[0], operands[1], operands[2]);
    let constant =
        |what: &'static str, d: &Dim| d.known().ok_or_else(|| TargetError::NotConstant { op: op.name(), what, dim: d.clone() });
    Ok(Problem {
        dtype: q.dtype,
        b: q.shape[0].clone(),
        t: q.shape[1].clone(),
        s: k.shape[1].clone(),
        h: constant("the number of query heads", &q.shape[2])?,
        g: constant("the number of key heads", &k.shape[2])?,
        dk: constant("the head dim", &q.shape[3])?,
        dv: constant("the value dim", &v.shape[3])?,
        domain: a.domain.clone(),
        scale: a.scale.get(),
        operands: of_domain.iter().map(|t| (*t).clone()).collect(),
        distinct: false,
        shared: false,
    })
}
