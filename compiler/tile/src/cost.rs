//! What an op costs on the host, for the e-graph: a roofline with a charge per step. # Units: nanoseconds.

use crate::group::{is_inline, is_layout};
use base::{Dim, DimEnv, TensorType};
use graph::{
    Op,
    op::{Contract, Domain, MapFn},
};

/// Dense products, both cores of the reference machine. # Units: floating-point operations a nanosecond.
const PRODUCT_FLOPS_PER_NS: f64 = 80.0;
/// Elementwise arithmetic in vector loops.
const MAP_FLOPS_PER_NS: f64 = 8.0;
/// Memory traffic. # Units: bytes a nanosecond.
const BYTES_PER_NS: f64 = 10.0;
/// Starting a step on the thread pool.
const STEP_NS: f64 = 1_500.0;
/// What run-time dims are taken to be if nothing is said of them.
const RUN_TIME_DIM: i64 = 64;

/// The cost of `op`, as if its operands were in memory or fused as `group` would.
pub fn op_cost(op: &Op, operands: &[&TensorType], results: &[TensorType]) -> f64 {
    op_cost_at(&DimEnv::new(), op, operands, results)
}

/// The same for a shape bucket: values of run-time dims.
pub fn op_cost_at(sizes: &DimEnv, op: &Op, operands: &[&TensorType], results: &[TensorType]) -> f64 {
    let value = |d: &Dim| value(d, sizes);
    let elems = |t: &TensorType| value(&t.elems());
    let bytes = |t: &TensorType| elems(t) * t.dtype.bytes() as f64;
    let traffic: f64 = operands.iter().map(|t| bytes(t)).sum::<f64>() + results.iter().map(bytes).sum::<f64>();
    let roofline = |flops: f64| STEP_NS + (flops / PRODUCT_FLOPS_PER_NS).max(traffic / BYTES_PER_NS);
    match op {
        Op::Arg(_) => 0.0,
        Op::Map(f) => elems(&results[0]) * map_flops(*f) / MAP_FLOPS_PER_NS,
        // Copies each operand.
        Op::Concat(_) => STEP_NS + traffic / BYTES_PER_NS,
        _ if is_layout(op) => 0.0,
        _ if is_inline(op) => elems(&results[0]) / MAP_FLOPS_PER_NS,
        Op::Contract(c) => roofline(2.0 * contract_terms(c, operands, sizes)),
        Op::GroupedContract { .. } => roofline(2.0 * elems(&results[0]) * value(&operands[0].shape[1])),
        Op::GroupedOuter => roofline(2.0 * elems(operands[0]) * value(&operands[1].shape[1])),
        // Scores and sums forward; scores, and four products with their gradients, backward.
        Op::Attend(a) => {
            let (keys, of_domain) = (value(&operands[1].shape[1]), &operands[3..]);
            roofline(2.0 * (elems(operands[0]) + elems(&results[0])) * visible(&a.domain, keys, of_domain, sizes))
        }
        Op::AttendGrad(a) => {
            let (keys, of_domain) = (value(&operands[1].shape[1]), &operands[7..]);
            let products = 3.0 * elems(operands[0]) + 2.0 * elems(operands[3]);
            roofline(2.0 * products * visible(&a.domain, keys, of_domain, sizes))
        }
        _ => STEP_NS + traffic / BYTES_PER_NS,
    }
}

fn map_flops(f: MapFn) -> f64 {
    match f {
        MapFn::Exp | MapFn::Log | MapFn::Sigmoid | MapFn::Silu | MapFn::Tanh | MapFn::Softplus | MapFn::Erf => 10.0,
        MapFn::Swiglu => 10.5,
        MapFn::Sin | MapFn::Cos | MapFn::Pow => 20.0,
        MapFn::Div | MapFn::Sqrt | MapFn::Rsqrt | MapFn::FloorDiv | MapFn::Rem => 3.0,
        // One vector instruction in a loop that waits for memory.
        _ => 0.5,
    }
}

/// The keys that a query sees at most.
fn visible(domain: &Domain, keys: f64, operands: &[&TensorType], sizes: &DimEnv) -> f64 {
    let chosen = |idx: usize| operands[idx].shape.last().map_or(0.0, |n| value(n, sizes));
    let seen = match domain {
        Domain::Full
        | Domain::Causal
        | Domain::EndsBefore { .. }
        | Domain::EndsAt(_)
        | Domain::Segments(..)
        | Domain::Groups { .. } => keys,
        Domain::Window(w) => *w as f64,
        Domain::Blocks { idx, size } => chosen(*idx) * *size as f64,
        Domain::Tokens(idx) => chosen(*idx),
        Domain::And(a, b) => visible(a, keys, operands, sizes).min(visible(b, keys, operands, sizes)),
        Domain::Or(a, b) => visible(a, keys, operands, sizes) + visible(b, keys, operands, sizes),
    };
    seen.min(keys)
}

fn contract_terms(c: &Contract, operands: &[&TensorType], sizes: &DimEnv) -> f64 {
    let rhs_only = c.rhs.iter().zip(&operands[1].shape).filter(|(x, _)| !c.lhs.contains(x));
    rhs_only.map(|(_, d)| value(d, sizes)).product::<f64>() * value(&operands[0].elems(), sizes)
}

fn value(d: &Dim, sizes: &DimEnv) -> f64 {
    let fixed = d.substitute(&|name| Some(Dim::from(sizes.get(name).copied().unwrap_or(RUN_TIME_DIM))));
    fixed.known().unwrap_or_else(|| base::bug!("{d} has no value")).max(0) as f64
}
