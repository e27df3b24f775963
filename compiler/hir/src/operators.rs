//! Binary operators and indexing.

use crate::{
    builtins,
    elaborate::{Elaborator, Stop},
    error::HirError,
    value::{TensorVal, Val},
};
use base::{Dim, Span, ty::ShapeDisplay};
use graph::{
    Op, OpError,
    op::{Contract, MapFn},
};
use syntax::ast::{self, BinaryOp};

impl Elaborator<'_> {
    pub fn binary(&mut self, op: BinaryOp, a: (Val, Span), b: (Val, Span), at: Span) -> Result<Val, Stop> {
        use BinaryOp as B;
        match (op, &a.0, &b.0) {
            (_, Val::Int(x), Val::Int(y)) => {
                let compare = |f: fn(i64, i64) -> bool| (x - y).known().map(|d| f(d, 0));
                let truth = match op {
                    B::Add => return Ok(Val::Int(x.clone() + y.clone())),
                    B::Sub => return Ok(Val::Int(x.clone() - y.clone())),
                    B::Mul => return Ok(Val::Int(x.clone() * y.clone())),
                    B::Div if y.known().is_none_or(|n| n > 0) => return Ok(Val::Int(x.floor_div(y))),
                    B::Rem if y.known().is_none_or(|n| n > 0) => return Ok(Val::Int(x.clone() - x.floor_div(y) * y.clone())),
                    B::Eq => compare(|a, b| a == b),
                    B::Ne => compare(|a, b| a != b),
                    B::Lt => compare(|a, b| a < b),
                    B::Le => compare(|a, b| a <= b),
                    B::Gt => compare(|a, b| a > b),
                    B::Ge => compare(|a, b| a >= b),
                    B::Div | B::Rem => {
                        let why = format!("of {} by {}", self.describe(&a.0), self.describe(&b.0));
                        return self.shape_error(symbol(op), OpError(why), at);
                    }
                    B::Or | B::And | B::BitOr | B::BitAnd | B::MatMul => return self.wrong(symbol(op), &a.0, a.1),
                };
                match truth {
                    Some(t) => Ok(Val::Bool(t)),
                    None => self.not_constant("what is compared", at),
                }
            }
            (_, Val::Float(_) | Val::Int(_), Val::Float(_) | Val::Int(_)) => {
                let number = |v: &Val| match v {
                    Val::Float(x) => Some(*x),
                    Val::Int(d) if self.opaque => Some(d.known().map_or(f64::NAN, |n| n as f64)),
                    Val::Int(d) => d.known().map(|n| n as f64),
                    _ => None,
                };
                let (Some(x), Some(y)) = (number(&a.0), number(&b.0)) else {
                    return self.not_constant("arithmetic of an extent and a float", at);
                };
                let compares = matches!(op, B::Eq | B::Ne | B::Lt | B::Le | B::Gt | B::Ge);
                if self.opaque && compares && (x.is_nan() || y.is_nan()) {
                    return Err(Stop);
                }
                Ok(match op {
                    B::Add => Val::Float(x + y),
                    B::Sub => Val::Float(x - y),
                    B::Mul => Val::Float(x * y),
                    B::Div => Val::Float(x / y),
                    B::Eq => Val::Bool(x == y),
                    B::Ne => Val::Bool(x != y),
                    B::Lt => Val::Bool(x < y),
                    B::Le => Val::Bool(x <= y),
                    B::Gt => Val::Bool(x > y),
                    B::Ge => Val::Bool(x >= y),
                    B::Rem | B::Or | B::And | B::BitOr | B::BitAnd | B::MatMul => return self.wrong(symbol(op), &a.0, a.1),
                })
            }
            (B::And, Val::Bool(x), Val::Bool(y)) => Ok(Val::Bool(*x && *y)),
            (B::Or, Val::Bool(x), Val::Bool(y)) => Ok(Val::Bool(*x || *y)),
            (B::Eq, Val::Bool(x), Val::Bool(y)) => Ok(Val::Bool(x == y)),
            (B::Eq, Val::Str(x), Val::Str(y)) => Ok(Val::Bool(x == y)),
            (B::Ne, Val::Str(x), Val::Str(y)) => Ok(Val::Bool(x != y)),
            (B::BitAnd | B::BitOr, Val::Domain(x), Val::Domain(y)) => {
                Ok(Val::Domain(builtins::join_domains(op == B::BitAnd, x, y)))
            }
            (B::MatMul, Val::Tensor(x), Val::Tensor(y)) => self.matmul((*x, a.1), (*y, b.1), at).map(Val::Tensor),
            (_, Val::Tensor(_), _) | (_, _, Val::Tensor(_)) => {
                let (x, y) = self.unify(a, b)?;
                let int = self.frames.ty(x).dtype.is_int();
                let (f, swap) = match op {
                    B::Add => (MapFn::Add, false),
                    B::Sub => (MapFn::Sub, false),
                    B::Mul => (MapFn::Mul, false),
                    B::Div => (if int { MapFn::FloorDiv } else { MapFn::Div }, false),
                    B::Rem => (MapFn::Rem, false),
                    B::Eq => (MapFn::Eq, false),
                    B::Ne => (MapFn::Ne, false),
                    B::Lt => (MapFn::Lt, false),
                    B::Le => (MapFn::Le, false),
                    B::Gt => (MapFn::Lt, true),
                    B::Ge => (MapFn::Le, true),
                    B::And => (MapFn::And, false),
                    B::Or => (MapFn::Or, false),
                    B::BitOr | B::BitAnd | B::MatMul => {
                        let v = Val::Tensor(x);
                        return self.wrong(symbol(op), &v, at);
                    }
                };
                let operands = if swap { [y, x] } else { [x, y] };
                self.node1(symbol(op), Op::Map(f), &operands, at).map(Val::Tensor)
            }
            (_, x, _) => {
                let x = x.clone();
                self.wrong(symbol(op), &x, a.1)
            }
        }
    }

    fn matmul(&mut self, (a, at_a): (TensorVal, Span), (b, at_b): (TensorVal, Span), at: Span) -> Result<TensorVal, Stop> {
        let (ta, tb) = (self.frames.ty(a).clone(), self.frames.ty(b).clone());
        if self.any_floats(ta.dtype, tb.dtype) {
            return Err(Stop);
        }
        if ta.dtype != tb.dtype {
            let (left_type, right_type) = (ta.to_string(), tb.to_string());
            let error = HirError::Mix { left_type, right_type, left: at_a.into(), right: at_b.into() };
            return self.misfit(at, error, &[a, b]);
        }
        let (Some(k1), Some(k2)) = (ta.shape.last(), tb.shape.first()) else {
            return self.shape_error("@", OpError(format!("{ta} @ {tb}: a scalar has no axis to contract")), at);
        };
        if k1 != k2 {
            let origin = self.origin_of(&[k1, k2]).map_or(String::new(), |o| format!("; {o}"));
            if self.undecided([k1, k2].into_iter()) {
                return Err(Stop);
            }
            let error = HirError::InnerExtent {
                left_shape: ShapeDisplay(&ta.shape).to_string(),
                right_shape: ShapeDisplay(&tb.shape).to_string(),
                left_extent: k1.to_string(),
                right_extent: k2.to_string(),
                origin,
                left: at_a.into(),
                right: at_b.into(),
            };
            return self.misfit(at, error, &[a, b]);
        }
        let letters: Vec<char> = ('a'..='z').chain('A'..='Z').collect();
        let (m, n) = (ta.rank(), tb.rank());
        if m + n > letters.len() {
            return self.shape_error("@", OpError(format!("{ta} @ {tb} has too many axes")), at);
        }
        let lhs = letters[..m].to_vec();
        let rhs: Vec<char> = [&letters[m - 1..m], &letters[m..m + n - 1]].concat();
        let out = [&lhs[..m - 1], &rhs[1..]].concat();
        self.contraction("@", Contract { lhs, rhs, out }, [a, b], at)
    }

    pub fn index(&mut self, mut t: TensorVal, items: &[ast::Index], at: Span) -> Result<TensorVal, Stop> {
        let rank = self.frames.ty(t).rank();
        let used = items.iter().filter(|i| matches!(i, ast::Index::At(_) | ast::Index::Slice { .. })).count();
        let rests = items.iter().filter(|i| matches!(i, ast::Index::Rest(_))).count();
        if used > rank || rests > 1 {
            let more = if rests > 1 { " and more than one `..`" } else { "" };
            let why = OpError(format!("{used} indices{more} of {}", self.frames.ty(t)));
            return self.shape_error("index", why, at);
        }
        let mut axis = 0;
        // The result's shape with dropped and new axes, applied as one reshape at the end.
        let mut reshape: Vec<Option<Dim>> = Vec::new();
        let mut changed = false;
        for item in items {
            match item {
                ast::Index::Rest(_) => {
                    for _ in 0..rank - used {
                        reshape.push(Some(self.frames.ty(t).shape[axis].clone()));
                        axis += 1;
                    }
                }
                ast::Index::New(_) => {
                    reshape.push(Some(Dim::from(1)));
                    changed = true;
                }
                ast::Index::At(e) => {
                    let extent = self.frames.ty(t).shape[axis].clone();
                    let i = self.extent(e)?;
                    let start = if i.known().is_some_and(|n| n < 0) { extent + i } else { i };
                    t = self.node1("index", Op::Slice { axis, start, len: Dim::from(1), step: 1 }, &[t], at)?;
                    changed = true;
                    axis += 1;
                }
                ast::Index::Slice { start, end, step } => {
                    let extent = self.frames.ty(t).shape[axis].clone();
                    let bound = |me: &mut Self, e: &Option<ast::Expr>, default: Dim| -> Result<Dim, Stop> {
                        let Some(e) = e else { return Ok(default) };
                        let d = me.extent(e)?;
                        Ok(if d.known().is_some_and(|n| n < 0) { extent.clone() + d } else { d })
                    };
                    let from = bound(self, start, Dim::from(0))?;
                    let to = bound(self, end, extent.clone())?;
                    let step = step.as_ref().map_or(Ok(1), |s| self.int(s, "the step of a slice"))?;
                    if step < 1 {
                        return self.shape_error("index", OpError(format!("a step of {step}")), at);
                    }
                    let len = (to - from.clone()).ceil_div(&Dim::from(step));
                    if !(from.is(0) && len == extent && step == 1) {
                        t = self.node1("index", Op::Slice { axis, start: from, len: len.clone(), step }, &[t], at)?;
                    }
                    reshape.push(Some(len));
                    axis += 1;
                }
            }
        }
        while axis < rank {
            reshape.push(Some(self.frames.ty(t).shape[axis].clone()));
            axis += 1;
        }
        if changed {
            let shape = reshape.into_iter().flatten().collect();
            t = self.node1("index", Op::Reshape(shape), &[t], at)?;
        }
        Ok(t)
    }
}

fn symbol(op: BinaryOp) -> &'static str {
    match op {
        BinaryOp::Or => "or",
        BinaryOp::And => "and",
        BinaryOp::Eq => "==",
        BinaryOp::Ne => "!=",
        BinaryOp::Lt => "<",
        BinaryOp::Le => "<=",
        BinaryOp::Gt => ">",
        BinaryOp::Ge => ">=",
        BinaryOp::BitOr => "|",
        BinaryOp::BitAnd => "&",
        BinaryOp::Add => "+",
        BinaryOp::Sub => "-",
        BinaryOp::Mul => "*",
        BinaryOp::Div => "/",
        BinaryOp::Rem => "%",
        BinaryOp::MatMul => "@",
    }
}
