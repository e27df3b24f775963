//! Routing rows to groups, and products over ragged rows. See `graph::Op::Route`.

use super::Args;
use crate::{
    elaborate::{Elaborator, Stop},
    value::{RowsVal, TensorVal, Val},
};
use base::{DType, Dim};
use graph::{Op, op::MapFn};

pub(super) fn call(e: &mut Elaborator, a: &mut Args) -> Option<Result<Val, Stop>> {
    Some(match a.func {
        "route" => route(e, a),
        "dispatch" => a.tensor(e, "x").and_then(|x| {
            let r = rows(e, a)?;
            // The token of row r is ⌊source / k⌋; -1 stays -1, which gathers zeros.
            let token = floor_div(e, r.source, &r.k, a)?;
            e.node1(a.func, Op::Gather { batch: 0 }, &[x, token], a.at).map(Val::Tensor)
        }),
        "collect" => a.tensor(e, "y").and_then(|y| {
            let r = rows(e, a)?;
            e.node1(a.func, Op::Gather { batch: 0 }, &[y, r.position], a.at).map(Val::Tensor)
        }),
        "grouped" | "grouped_t" => a.tensor(e, "x").and_then(|x| {
            let w = a.tensor(e, "w")?;
            let r = rows(e, a)?;
            let transposed = a.func == "grouped_t";
            e.node1(a.func, Op::GroupedContract { transposed }, &[x, w, r.offsets], a.at).map(Val::Tensor)
        }),
        "count" => rows(e, a).and_then(|r| {
            let part = |start| Op::Slice { axis: 0, start: Dim::from(start), len: Dim::from(r.groups), step: 1 };
            let ends = e.node1(a.func, part(1), &[r.offsets], a.at)?;
            let starts = e.node1(a.func, part(0), &[r.offsets], a.at)?;
            e.node1(a.func, Op::Map(MapFn::Sub), &[ends, starts], a.at).map(Val::Tensor)
        }),
        _ => return None,
    })
}

fn rows(e: &mut Elaborator, a: &mut Args) -> Result<RowsVal, Stop> {
    match a.value(e, "r")? {
        (Val::Rows(r), _) => Ok(r),
        (v, at) => e.wrong(a.func, &v, at),
    }
}

fn route(e: &mut Elaborator, a: &mut Args) -> Result<Val, Stop> {
    let idx = a.tensor(e, "idx")?;
    let groups = a.int(e, "groups")?;
    if i32::try_from(groups).is_err() {
        return a.wrong(e, format!("routes to {groups} groups"));
    }
    let results = e.node(a.func, Op::Route { groups }, &[idx], a.at)?;
    let shape = e.frames.ty(idx).shape.clone();
    let rows = e.frames.ty(results[1]).shape[0].clone();
    Ok(Val::Rows(RowsVal { offsets: results[0], source: results[1], position: results[2], groups, k: shape[1].clone(), rows }))
}

fn floor_div(e: &mut Elaborator, x: TensorVal, by: &Dim, a: &Args) -> Result<TensorVal, Stop> {
    let n = e.scalar_tensor(&Val::Int(by.clone()), DType::I32, a.at)?;
    let shape = e.frames.ty(x).shape.clone();
    let n = e.broadcast(n, &shape);
    e.node1(a.func, Op::Map(MapFn::FloorDiv), &[x, n], a.at)
}
