//! Expressions: values of names and literals, conversions, broadcasting.

use crate::{
    builtins,
    calls::Callee,
    elaborate::{Elaborator, Stop},
    error::HirError,
    value::{TensorVal, Val},
};
use base::{DType, Dim, Span};
use graph::{Op, OpError, ir::Init, op::MapFn};
use syntax::ast::{self, ExprKind, UnaryOp};

impl Elaborator<'_> {
    pub fn expr(&mut self, e: &ast::Expr) -> Result<Val, Stop> {
        match &e.kind {
            ExprKind::Int(n) => Ok(Val::Int(Dim::from(*n))),
            ExprKind::Float(x) => Ok(Val::Float(*x)),
            ExprKind::Bool(b) => Ok(Val::Bool(*b)),
            ExprKind::Str(s) => Ok(Val::Str(s.clone())),
            ExprKind::Name(n) => match self.lookup(n) {
                Some(Val::Error) => Err(Stop),
                Some(v) => Ok(v),
                None => match n.as_str() {
                    "zeros" => Ok(Val::Init(Init::Constant(0.0))),
                    "ones" => Ok(Val::Init(Init::Constant(1.0))),
                    _ => self.unknown("name", &ast::Spanned { node: n.clone(), span: e.span }),
                },
            },
            ExprKind::Binary(op, a, b) => {
                let x = self.expr(a);
                let y = self.expr(b);
                self.binary(*op, (x?, a.span), (y?, b.span), e.span)
            }
            ExprKind::Unary(UnaryOp::Neg, a) => match self.expr(a)? {
                Val::Int(d) => Ok(Val::Int(-d)),
                Val::Float(x) => Ok(Val::Float(-x)),
                Val::Tensor(t) => self.node1("-", Op::Map(MapFn::Neg), &[t], e.span).map(Val::Tensor),
                v => self.wrong("-", &v, a.span),
            },
            ExprKind::Unary(UnaryOp::Not, a) => match self.expr(a)? {
                Val::Bool(b) => Ok(Val::Bool(!b)),
                Val::Tensor(t) => self.node1("not", Op::Map(MapFn::Not), &[t], e.span).map(Val::Tensor),
                v => self.wrong("not", &v, a.span),
            },
            ExprKind::Transpose(a) => {
                let t = self.tensor(a)?;
                let rank = self.frames.ty(t).rank();
                if rank < 2 {
                    return self.shape_error("^T", OpError(format!("{} has no two axes to swap", self.frames.ty(t))), e.span);
                }
                let perm = (0..rank - 2).chain([rank - 1, rank - 2]).collect();
                self.node1("^T", Op::Transpose(perm), &[t], e.span).map(Val::Tensor)
            }
            ExprKind::Call { func, args, label } => {
                if let Some(def) = self.scope().funcs.get(&func.node).cloned() {
                    return self.call_function(&def, &Callee { name: func, args, label: label.as_ref(), at: e.span });
                }
                match (builtins::call(self, func, args, e.span), label) {
                    (Some(result), None) => result,
                    (Some(_), Some(label)) => self.stray_label(label),
                    (None, _) => {
                        // Mistakes in the arguments are told as well.
                        args.iter().for_each(|a| drop(self.expr(&a.value)));
                        self.unknown("function", func)
                    }
                }
            }
            ExprKind::Index(x, items) => {
                let t = self.tensor(x)?;
                self.index(t, items, e.span).map(Val::Tensor)
            }
            ExprKind::Tuple(parts) => self.all(parts).map(Val::Tuple),
            ExprKind::List(parts) => self.all(parts).map(Val::List),
            ExprKind::If { cond, then, otherwise } => match self.expr(cond)? {
                Val::Bool(true) => self.body(then),
                Val::Bool(false) => otherwise.as_ref().map_or(Ok(Val::Unit), |b| self.body(b)),
                Val::Tensor(_) => self.not_constant("the condition of an `if`", cond.span),
                v => self.wrong("if", &v, cond.span),
            },
            ExprKind::Param(d) => self.param(d),
            ExprKind::Error => Err(Stop),
        }
    }
    /// The values of several expressions, all of which are looked at.
    fn all(&mut self, parts: &[ast::Expr]) -> Result<Vec<Val>, Stop> {
        let values: Vec<Result<Val, Stop>> = parts.iter().map(|p| self.expr(p)).collect();
        values.into_iter().collect()
    }
    pub fn wrong<T>(&mut self, func: &str, v: &Val, at: Span) -> Result<T, Stop> {
        let why = format!("does not take {}", self.describe(v));
        self.fail(at, HirError::Arguments { func: func.into(), why, help: None, at: at.into() })
    }
    pub fn tensor(&mut self, e: &ast::Expr) -> Result<TensorVal, Stop> {
        let v = self.expr(e)?;
        self.as_tensor(v, e.span)
    }
    pub fn as_tensor(&mut self, v: Val, at: Span) -> Result<TensorVal, Stop> {
        match v {
            Val::Tensor(t) => Ok(t),
            v => {
                let found = self.describe(&v);
                self.fail(
                    at,
                    HirError::Mismatch { what: "this".into(), expected: "a tensor".into(), found, help: None, at: at.into() },
                )
            }
        }
    }
    /// An extent.
    pub fn extent(&mut self, e: &ast::Expr) -> Result<Dim, Stop> {
        match self.expr(e)? {
            Val::Int(d) => Ok(d),
            v => {
                let found = self.describe(&v);
                self.fail(
                    e.span,
                    HirError::Mismatch {
                        what: "an extent".into(),
                        expected: "an int".into(),
                        found,
                        help: None,
                        at: e.span.into(),
                    },
                )
            }
        }
    }
    /// A compile-time integer.
    pub fn int(&mut self, e: &ast::Expr, what: &str) -> Result<i64, Stop> {
        match self.extent(e)?.known() {
            Some(n) => Ok(n),
            None => self.not_constant(what, e.span),
        }
    }
    /// A scalar tensor of a compile-time number; a tensor as it is.
    pub fn scalar_tensor(&mut self, v: &Val, dtype: DType, at: Span) -> Result<TensorVal, Stop> {
        match v {
            Val::Tensor(t) => Ok(*t),
            Val::Int(d) => Ok(match d.known() {
                Some(n) => self.frames.constant(n as f64, dtype),
                None => self.frames.op(Op::Extent(d.clone(), dtype), &[]),
            }),
            Val::Float(x) if dtype.is_float() => Ok(self.frames.constant(*x, dtype)),
            Val::Bool(b) if dtype == DType::Bool => Ok(self.frames.constant(f64::from(u8::from(*b)), dtype)),
            v => {
                let found = self.describe(v);
                let help = Some("convert with `cast`".into());
                self.fail(
                    at,
                    HirError::Mismatch {
                        what: "this".into(),
                        expected: format!("a number of {dtype}"),
                        found,
                        help,
                        at: at.into(),
                    },
                )
            }
        }
    }
    /// Repeats `t` to `shape`; its axes are the last ones, each equal or 1.
    pub fn broadcast(&mut self, t: TensorVal, shape: &[Dim]) -> TensorVal {
        let ty = self.frames.ty(t).clone();
        if ty.shape == shape {
            return t;
        }
        let shift = shape.len() - ty.rank();
        let kept: Vec<usize> = (0..ty.rank()).filter(|a| ty.shape[*a] == shape[a + shift]).collect();
        let squeezed: Vec<Dim> = kept.iter().map(|a| ty.shape[*a].clone()).collect();
        let t = if kept.len() == ty.rank() { t } else { self.frames.op(Op::Reshape(squeezed), &[t]) };
        self.frames.op(Op::Broadcast { shape: shape.to_vec(), axes: kept.iter().map(|a| a + shift).collect() }, &[t])
    }
    /// The common shape of two, if they broadcast.
    pub fn common_shape(a: &[Dim], b: &[Dim]) -> Option<Vec<Dim>> {
        let rank = a.len().max(b.len());
        let one = Dim::from(1);
        (0..rank)
            .map(|i| {
                let of = |s: &[Dim]| (i + s.len()).checked_sub(rank).map_or(one.clone(), |j| s[j].clone());
                match (of(a), of(b)) {
                    (x, y) if x == y => Some(x),
                    (x, y) if x.is(1) => Some(y),
                    (x, y) if y.is(1) => Some(x),
                    _ => None,
                }
            })
            .collect()
    }
    /// Two operands brought to one dtype and shape; at least one is a tensor.
    pub fn unify(&mut self, (a, at_a): (Val, Span), (b, at_b): (Val, Span)) -> Result<(TensorVal, TensorVal), Stop> {
        let dtype = match (&a, &b) {
            (Val::Tensor(t), _) | (_, Val::Tensor(t)) => self.frames.ty(*t).dtype,
            // Numbers alone: `where(c, 1, 0)` is of integers.
            (Val::Int(_), Val::Int(_)) => DType::I32,
            _ => self.modules.compute,
        };
        let x = self.scalar_tensor(&a, dtype, at_a)?;
        let y = self.scalar_tensor(&b, dtype, at_b)?;
        let (tx, ty) = (self.frames.ty(x).clone(), self.frames.ty(y).clone());
        let (left_type, right_type) = (tx.to_string(), ty.to_string());
        if self.any_floats(tx.dtype, ty.dtype) {
            return Err(Stop);
        }
        if tx.dtype != ty.dtype {
            let error = HirError::Mix { left_type, right_type, left: at_a.into(), right: at_b.into() };
            return self.misfit(at_a, error, &[x, y]);
        }
        match Self::common_shape(&tx.shape, &ty.shape) {
            Some(shape) => Ok((self.broadcast(x, &shape), self.broadcast(y, &shape))),
            None => {
                if self.undecided(tx.shape.iter().chain(&ty.shape)) {
                    return Err(Stop);
                }
                let dims: Vec<&Dim> = tx.shape.iter().chain(&ty.shape).collect();
                let origin = self.origin_of(&dims).map_or(String::new(), |o| format!("; {o}"));
                let error = HirError::Broadcast { left_type, right_type, origin, left: at_a.into(), right: at_b.into() };
                self.misfit(at_a, error, &[x, y])
            }
        }
    }
}
