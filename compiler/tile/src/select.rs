//! Picks the kernels of an op that is not fused.

use crate::{
    ir::Kernel,
    kernels::{
        domain::Problem,
        gpu_attend, gpu_route, gpu_scatter_add, gpu_topk, host_attend, host_attend_grad,
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

/// What the kernel is for.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    /// Whether it has many processors.
    pub many: bool,
    /// Whether operands and results begin where rectangles can be copied.
    pub aligned: bool,
}

/// What is done for an op: kernels one after the other, and memory between them.
#[derive(Clone, Debug)]
pub struct Work {
    /// The kernels and what each is passed.
    pub launches: Vec<(Kernel, Vec<Place>)>,
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

/// The kernels for `op`.
///
/// # Errors
/// E0501 if a size that has to be a constant is not.
pub fn kernels(op: &Op, operands: &[&TensorType], results: &[TensorType], device: Device) -> Result<Work, TargetError> {
    if let (Op::Route { groups }, true) = (op, device.many) {
        return Ok(route(&Route { choices: operands[0].elems(), groups: *groups }));
    }
    let (kernel, dtypes) = kernel(op, operands, results, device)?;
    let places = (0..operands.len()).map(Place::Operand).chain((0..results.len()).map(Place::Result)).collect();
    Ok(Work { launches: vec![(kernel, places)], asides: Vec::new(), dtypes })
}

/// A routing by many processors.
fn route(p: &Route) -> Work {
    let [count, offsets, place] = gpu_route::gpu_route(p);
    let [counts, starts] = [0, 1].map(Place::Aside);
    let (choice, [at, source, position]) = (Place::Operand(0), [0, 1, 2].map(Place::Result));
    let launches = vec![
        (count, vec![choice, counts]),
        (offsets, vec![counts, at, starts]),
        (place, vec![choice, starts, at, source, position]),
    ];
    let table = TensorType::new(DType::I32, [gpu_route::PARTS, p.groups].map(Dim::from).to_vec());
    Work { launches, asides: vec![table.clone(), table], dtypes: vec![DType::I32; 3] }
}

/// The kernel for an op that has one: its buffers are the operands, then the results.
fn kernel(
    op: &Op,
    operands: &[&TensorType],
    results: &[TensorType],
    device: Device,
) -> Result<(Kernel, Vec<DType>), TargetError> {
    let product = |dims: &[Dim]| dims.iter().fold(Dim::from(1), |n, d| n * d.clone());
    let given = || results.iter().map(|t| t.dtype).collect::<Vec<_>>();
    match op {
        Op::Attend(a) => {
            let p = problem(op, a, operands, &operands[3..])?;
            if device.many && gpu_attend::takes(&p, device.aligned) {
                return Ok((gpu_attend::gpu_attend(&p, gpu_attend::Tiling::choose(&p)), given()));
            }
            Ok((host_attend::host_attend(&p, host_attend::default_tiling(&p)), given()))
        }
        Op::AttendGrad(a) => {
            let p = problem(op, a, operands, &operands[7..])?;
            let sum = p.dtype.accumulator();
            Ok((host_attend_grad::host_attend_grad(&p, host_attend_grad::default_tiling(&p)), vec![p.dtype, sum, sum]))
        }
        Op::TopK(k) => {
            let (n, rows) = operands[0].shape.split_last().expect("a row to choose from");
            let p = TopK { dtype: operands[0].dtype, rows: product(rows), n: n.clone(), k: *k };
            let kernel = if device.many { gpu_topk::gpu_topk(&p) } else { host_topk::host_topk(&p, host_topk::Tiling::LEGAL[0]) };
            Ok((kernel, given()))
        }
        Op::Cumsum { axis, exclusive, reverse } => {
            let shape = &operands[0].shape;
            let p = Cumsum {
                dtype: operands[0].dtype,
                outer: product(&shape[..*axis]),
                n: shape[*axis].clone(),
                inner: product(&shape[axis + 1..]),
                exclusive: *exclusive,
                reverse: *reverse,
            };
            Ok((host_cumsum::host_cumsum(&p, host_cumsum::Tiling::LEGAL[0]), given()))
        }
        Op::Route { groups } => Ok((host_route::host_route(&Route { choices: operands[0].elems(), groups: *groups }), given())),
        Op::ScatterAdd { batch, n } => {
            let (index, rows) = (operands[0], operands[1]);
            let p = Rows {
                dtype: rows.dtype,
                batch: product(&index.shape[..*batch]),
                picks: product(&index.shape[*batch..]),
                n: n.clone(),
                row: product(&rows.shape[index.rank()..]),
            };
            let sum = host_scatter_add::sum_dtype(rows.dtype);
            let kernel = if device.many {
                gpu_scatter_add::gpu_scatter_add(&p)
            } else {
                host_scatter_add::host_scatter_add(&p, host_scatter_add::Tiling::LEGAL[0])
            };
            Ok((kernel, vec![sum]))
        }
        _ => base::bug!("{} is fused or a product", op.name()),
    }
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
    })
}
