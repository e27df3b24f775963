//! Reductions. Sums and products of floats may be reordered in vector loops. Extremes keep NaN: in a vector loop that takes two
//! reductions of an instruction each, the extreme of what is not NaN and whether there was a NaN; an instruction that does both
//! would be several, each waiting for the one before.

use super::{Emitter, Slot};
use graph::op::ReduceFn;
use tile::{Expr, LoopKind, Stmt, VarId};

/// An extreme of floats in a vector loop.
pub(super) struct Partial {
    var: VarId,
    f: ReduceFn,
    /// The slot of the extreme.
    extreme: String,
    /// The slot of the flag, an integer as wide as the float.
    nan: String,
}

/// What no value changes by `f`.
pub(super) fn neutral(f: ReduceFn) -> f64 {
    match f {
        ReduceFn::Sum => 0.0,
        ReduceFn::Prod => 1.0,
        ReduceFn::Max => f64::NEG_INFINITY,
        ReduceFn::Min => f64::INFINITY,
    }
}

fn flag_type(float: &str) -> &'static str {
    if float == "f64" { "i64" } else { "i32" }
}

impl Emitter<'_> {
    /// `v = f(v, e)`.
    pub(super) fn accumulate(&mut self, v: VarId, f: ReduceFn, e: &Expr, kind: LoopKind) {
        let value = self.expr(e);
        let value = self.if_there(value, f, v);
        let ty = self.type_of(v);
        if let Some(p) = self.partial.iter().find(|p| p.var == v) {
            let (extreme, nan) = (p.extreme.clone(), p.nan.clone());
            return self.extreme(f, &value, ty, &extreme, &nan);
        }
        let p = self.place(v);
        let old = self.load(&p, ty);
        let new = self.combine(f, &old, &value, ty, kind == LoopKind::Vector);
        self.store(&new, &p, ty);
    }
    /// `f(a, b)`; a sum may be taken in another order if `lanes`.
    pub(super) fn combine(&mut self, f: ReduceFn, a: &str, b: &str, ty: &str, lanes: bool) -> String {
        let fast = if lanes { " fastmath<reassoc,contract>" } else { " fastmath<contract>" };
        let (op, fast) = match (f, ty == "f32" || ty == "f64") {
            (ReduceFn::Sum, true) => ("addf", fast),
            (ReduceFn::Prod, true) => ("mulf", fast),
            (ReduceFn::Max, true) => ("maximumf", ""),
            (ReduceFn::Min, true) => ("minimumf", ""),
            (ReduceFn::Sum, false) => ("addi", ""),
            (ReduceFn::Prod, false) => ("muli", ""),
            (ReduceFn::Max, false) => ("maxsi", ""),
            (ReduceFn::Min, false) => ("minsi", ""),
        };
        self.w.op(&format!("arith.{op} {a}, {b}{fast} : {ty}"))
    }

    fn extreme(&mut self, f: ReduceFn, value: &str, ty: &str, extreme: &str, nan: &str) {
        // If one is NaN the extreme does not count, so anything may stand for it. What changes no extreme may not: LLVM would then
        // skip the operation instead, and see no reduction.
        let (zero, is_nan) = (self.w.float(0.0, ty), self.w.cmpf("uno", value, value, ty));
        let known = self.w.select(&is_nan, &zero, value, ty);
        let old = self.load(extreme, ty);
        let op = if f == ReduceFn::Max { "maxnumf" } else { "minnumf" };
        // Neither is NaN, and which of the zeros it is does not matter.
        let new = self.w.op(&format!("arith.{op} {old}, {known} fastmath<nnan,nsz> : {ty}"));
        self.store(&new, extreme, ty);
        let flag = self.w.convert("extsi", &is_nan, "i1", flag_type(ty));
        let old = self.load(nan, flag_type(ty));
        let new = self.w.bin("ori", &old, &flag, flag_type(ty));
        self.store(&new, nan, flag_type(ty));
    }
    /// Starts the extremes of a vector loop with this body.
    pub(super) fn begin_partial(&mut self, body: &[Stmt]) {
        let mut found = Vec::new();
        reductions(body, &mut found);
        for (var, f) in &found {
            let declared = matches!(self.vars[var.0 as usize], Slot::Memory(_));
            let extreme = matches!(f, ReduceFn::Max | ReduceFn::Min) && self.k.vars[var.0 as usize].is_float();
            let started = self.partial.iter().any(|p| p.var == *var);
            if !extreme || !declared || started || found.iter().any(|(v, g)| v == var && g != f) {
                continue;
            }
            let ty = self.type_of(*var);
            let p = Partial { var: *var, f: *f, extreme: self.slot(ty), nan: self.slot(flag_type(ty)) };
            let (first, none) = (self.w.float(neutral(*f), ty), self.w.int(0, flag_type(ty)));
            self.store(&first, &p.extreme, ty);
            self.store(&none, &p.nan, flag_type(ty));
            self.partial.push(p);
        }
    }
    /// Ends all but the first `outer`, after their loop.
    pub(super) fn end_partial(&mut self, outer: usize) {
        for p in self.partial.split_off(outer) {
            let (ty, place) = (self.type_of(p.var), self.place(p.var));
            let (old, new, flag) = (self.load(&place, ty), self.load(&p.extreme, ty), self.load(&p.nan, flag_type(ty)));
            let op = if p.f == ReduceFn::Max { "maximumf" } else { "minimumf" };
            let value = self.w.bin(op, &old, &new, ty);
            let (none, nan) = (self.w.int(0, flag_type(ty)), self.w.float(f64::NAN, ty));
            let is_nan = self.w.cmpi("ne", &flag, &none, flag_type(ty));
            let value = self.w.select(&is_nan, &nan, &value, ty);
            self.store(&value, &place, ty);
        }
    }
}

/// The variables that statements reduce into.
pub(super) fn reductions(body: &[Stmt], found: &mut Vec<(VarId, ReduceFn)>) {
    for s in body {
        match s {
            Stmt::Accumulate(v, f, _) => found.push((*v, *f)),
            Stmt::For { body, .. } | Stmt::While { body, .. } => reductions(body, found),
            Stmt::If { then, otherwise, .. } => {
                reductions(then, found);
                reductions(otherwise, found);
            }
            Stmt::Let(..) | Stmt::Var(..) | Stmt::Assign(..) | Stmt::Store { .. } | Stmt::Dot(_) | Stmt::Copy(_) => {}
        }
    }
}
