//! A stable counting sort of rows by group, on the host. Buffers: choice, offsets, source, position, all i32.
//!
//! One block: it counts the rows of each group, sums the counts to offsets, and places row after row; scratch has the next free place of
//! each group. Indices outside the groups are skipped: their position is -1, and so is the source of the places they leave at the
//! end. The work is two passes over the choices, far below that of what is routed.

use super::build::Build;
use crate::ir::{Expr, Kernel};
use base::{DType, Dim};
use graph::op::{MapFn, Scalar};

/// A routing. # Shapes: choice `[n, k]`; offsets `[groups + 1]`, source `[n*k]`, position `[n, k]`.
#[derive(Clone, Debug)]
pub struct Route {
    /// The number of choices, `n*k`.
    pub choices: Dim,
    /// The number of groups; from 1.
    pub groups: i64,
}

/// The kernel.
pub fn host_route(p: &Route) -> Kernel {
    let mut b = Build::new("route");
    let choice = b.read("choice", DType::I32, p.choices.clone());
    let offsets = b.write("offsets", DType::I32, Dim::from(p.groups + 1));
    let source = b.write("source", DType::I32, p.choices.clone());
    let position = b.write("position", DType::I32, p.choices.clone());
    let next = b.scratch("next", DType::I64, p.groups);
    let choices = b.dim(&p.choices);
    let groups = Expr::int(p.groups);
    let none = Expr::Const(Scalar::new(-1.0), DType::I32);
    let group_of = |b: &mut Build, i: Expr| {
        let group = b.bind(Expr::load(choice, i).cast(DType::I64));
        let valid = b.bind(Expr::and(Expr::le(Expr::int(0), group.clone()), Expr::lt(group.clone(), groups.clone())));
        (group, valid)
    };

    b.fill(next, groups.clone(), Expr::int(0));
    b.range(choices.clone(), |b, i| {
        let (group, valid) = group_of(b, i);
        b.if_(valid, |b| b.add(next, group, Expr::int(1)));
    });

    let total = b.var(DType::I64, Expr::int(0));
    b.range(groups.clone(), |b, e| {
        let count = b.bind(Expr::load(next, e.clone()));
        b.store(next, e.clone(), Expr::Var(total));
        b.store(offsets, e, Expr::Var(total).cast(DType::I32));
        b.assign(total, Expr::Var(total) + count);
    });
    b.store(offsets, groups.clone(), Expr::Var(total).cast(DType::I32));

    b.range(choices.clone(), |b, i| {
        let (group, valid) = group_of(b, i.clone());
        b.if_(valid.clone(), |b| {
            let to = b.bind(Expr::load(next, group.clone()));
            b.store(next, group, to.clone() + Expr::int(1));
            b.store(source, to.clone(), i.clone().cast(DType::I32));
            b.store(position, i.clone(), to.cast(DType::I32));
        });
        b.if_(Expr::map1(MapFn::Not, valid), |b| b.store(position, i, none.clone()));
    });
    let left = b.bind(choices - Expr::Var(total));
    b.each(left, |b, i| b.store(source, Expr::Var(total) + i, none));
    b.finish()
}
