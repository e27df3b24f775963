//! Rows that a team reads once. If the loops over a row are so short that what a thread takes of each stands one after the other, without a loop, and all
//! memories that they touch begin aligned, then what is loaded or computed twice is the same value, and stays in registers.

use super::{
    access::{expr_uses, exprs},
    unit::Units,
};
use graph::op::{MapFn, ReduceFn};
use std::collections::{BTreeMap, BTreeSet};
use tile::{Expr, Kernel, LoopKind, Mem, Stmt, VarId, ir};

/// Elements of a row that a thread takes, at most: what is computed of each of them is in a register.
pub(crate) const MOST: i64 = 32;
/// The same where so many threads take it that they are of several blocks, which have registers for that: eight keep a row of 151,936.
pub(crate) const MOST_OF_CLUSTER: i64 = 40;
/// Threads of a block.
const BLOCK: i64 = 1024;

/// Elements of a row that each of so many threads takes, at most.
pub(crate) fn most(threads: i64) -> i64 {
    if threads > BLOCK { MOST_OF_CLUSTER } else { MOST }
}
/// The powers of two that matter here are up to this.
const UNIT: i64 = 16;

/// The memories of which the starts have to be aligned, if a team of so many threads reads a row once: there are several loops over it, all short enough.
pub(crate) fn read_once(k: &Kernel, row: &[Stmt], threads: i64) -> Option<BTreeSet<Mem>> {
    let lets: BTreeMap<VarId, &Expr> =
        row.iter().filter_map(|s| if let Stmt::Let(v, e) = s { Some((*v, e)) } else { None }).collect();
    let (mut mems, mut loops, mut ragged) = (BTreeSet::new(), 0, false);
    for s in row {
        match s {
            Stmt::For { var, lo, hi, kind: LoopKind::Vector, body } => {
                let units = Units::new(k, *var, body)?;
                let turns = hi.known().filter(|_| lo.known() == Some(0))?;
                ragged |= units.times_of_row(turns, threads)?.1;
                let whole = |(_, first): &(Mem, Expr)| multiple(k, &lets, first) % units.turns as i64 == 0;
                if !units.firsts.iter().all(whole) {
                    return None;
                }
                mems.extend(units.firsts.iter().map(|(m, _)| *m));
                loops += 1;
            }
            Stmt::For { .. } | Stmt::While { .. } | Stmt::If { .. } | Stmt::Dot(_) | Stmt::Copy(_) => return None,
            Stmt::Let(..) | Stmt::Var(..) | Stmt::Assign(..) | Stmt::Accumulate(..) | Stmt::Store { .. } => {}
        }
    }
    (loops >= 2 && !(ragged && is_one_pass(row))).then_some(mems)
}

/// Whether the loops over a row are two that are done as one, so that it need not be kept to be read once.
pub(crate) fn is_one_pass(row: &[Stmt]) -> bool {
    let loops = row.iter().filter(|s| matches!(s, Stmt::For { .. })).count();
    loops == 2 && (0..row.len()).any(|i| Online::of(&row[i..]).is_some())
}

/// A power of two that divides an index, up to [`UNIT`].
fn multiple(k: &Kernel, lets: &BTreeMap<VarId, &Expr>, e: &Expr) -> i64 {
    let power = |n: i64| if n == 0 { UNIT } else { (1 << n.trailing_zeros().min(62)).min(UNIT) };
    if let Some(n) = e.known() {
        return power(n);
    }
    let of = |e: &Expr| multiple(k, lets, e);
    match e {
        Expr::Dim(i) => ir::divisor(&k.dims[*i]),
        Expr::Var(v) => lets.get(v).map_or(1, |e| of(e)),
        Expr::Map(MapFn::Mul, args) => (of(&args[0]) * of(&args[1])).min(UNIT),
        Expr::Map(MapFn::Add | MapFn::Sub, args) => of(&args[0]).min(of(&args[1])),
        Expr::Map(MapFn::Select, args) => of(&args[1]).min(of(&args[2])),
        Expr::Const(..) | Expr::Load(..) | Expr::Map(..) | Expr::Cast(..) | Expr::Order(_) => 1,
    }
}

/// A row's greatest element and the sum of what e^x is of its elements less that, in two loops.
pub(crate) struct Online<'a> {
    /// The loop's variable and its end.
    pub var: VarId,
    pub hi: &'a Expr,
    /// What is computed of an element, and what of that is compared.
    pub lets: &'a [Stmt],
    pub value: &'a Expr,
    /// The greatest, and the sum.
    pub most: VarId,
    pub sum: VarId,
    /// Where the sum is declared.
    pub declared: &'a Stmt,
}

impl<'a> Online<'a> {
    /// `for i: …, most max= x`, `sum = 0`, `for i: …, d = x - most, e = exp(d), sum += e`, if these are the next statements.
    pub(crate) fn of(body: &'a [Stmt]) -> Option<Online<'a>> {
        let [first, declared, second, ..] = body else { return None };
        let (Stmt::For { var, lo, hi, kind: LoopKind::Vector, body: first }, Stmt::Var(sum, zero)) = (first, declared) else {
            return None;
        };
        let Stmt::For { var: again, lo: lo2, hi: hi2, kind: LoopKind::Vector, body: second } = second else { return None };
        let (Stmt::Accumulate(most, ReduceFn::Max, value), lets) = first.split_last()? else { return None };
        let alike = [lo, lo2].iter().all(|e| e.known() == Some(0)) && hi == hi2 && second.len() == lets.len() + 3;
        if !alike || !matches!(zero, Expr::Const(c, _) if c.get() == 0.0) {
            return None;
        }
        let mut names = BTreeMap::from([(*again, *var)]);
        for (a, b) in lets.iter().zip(second) {
            let (Stmt::Let(v, x), Stmt::Let(w, y)) = (a, b) else { return None };
            if *x != renamed(y, &names) {
                return None;
            }
            names.insert(*w, *v);
        }
        let [
            Stmt::Let(d, Expr::Map(MapFn::Sub, parts)),
            Stmt::Let(e, power),
            Stmt::Accumulate(to, ReduceFn::Sum, Expr::Var(added)),
        ] = &second[lets.len()..]
        else {
            return None;
        };
        let is_sum = to == sum && added == e && *power == Expr::Map(MapFn::Exp, vec![Expr::Var(*d)]);
        let less_most = renamed(&parts[0], &names) == *value && parts[1] == Expr::Var(*most);
        let mut reads = false;
        lets.iter().for_each(|s| exprs(s, &mut |e| reads |= expr_uses(e, &|v| v == *most)));
        (is_sum && less_most && !reads).then_some(Online { var: *var, hi, lets, value, most: *most, sum: *sum, declared })
    }
}

fn renamed(e: &Expr, names: &BTreeMap<VarId, VarId>) -> Expr {
    let of = |e: &Expr| renamed(e, names);
    match e {
        Expr::Const(..) | Expr::Dim(_) => e.clone(),
        Expr::Var(v) => Expr::Var(*names.get(v).unwrap_or(v)),
        Expr::Load(mem, index) => Expr::load(*mem, of(index)),
        Expr::Map(f, args) => Expr::Map(*f, args.iter().map(of).collect()),
        Expr::Cast(to, x) => of(x).cast(*to),
        Expr::Order(x) => of(x).order(),
    }
}
