//! Shorthands for writing tile programs: statements are appended to the innermost open list, so that a kernel reads like its
//! algorithm.

use crate::ir::{Access, Dot, Expr, Kernel, LoopKind, Mem, Stmt, TileRef, VarId};
use base::{DType, Dim};
use graph::op::{MapFn, ReduceFn, Scalar};

/// A kernel being written.
pub struct Build {
    /// What is there so far; its body is empty until the end.
    pub kernel: Kernel,
    /// The open lists, outermost first.
    lists: Vec<Vec<Stmt>>,
}

impl Build {
    /// A kernel without statements.
    pub fn new(name: &str) -> Build {
        Build { kernel: Kernel::new(name), lists: vec![Vec::new()] }
    }
    /// More of a kernel whose body is empty.
    pub fn on(kernel: Kernel) -> Build {
        Build { kernel, lists: vec![Vec::new()] }
    }
    /// The kernel with its statements.
    pub fn finish(mut self) -> Kernel {
        self.kernel.body = self.lists.pop().expect("the outermost list");
        self.kernel
    }

    /// A buffer that is only read.
    pub fn read(&mut self, name: &str, dtype: DType, elems: Dim) -> Mem {
        self.kernel.buffer(name, dtype, elems, Access::Read)
    }
    /// A buffer that is written.
    pub fn write(&mut self, name: &str, dtype: DType, elems: Dim) -> Mem {
        self.kernel.buffer(name, dtype, elems, Access::Write)
    }
    /// A buffer whose contents matter and change.
    pub fn update(&mut self, name: &str, dtype: DType, elems: Dim) -> Mem {
        self.kernel.buffer(name, dtype, elems, Access::ReadWrite)
    }
    /// Scratch memory; at least one element, as an empty one has no address.
    pub fn scratch(&mut self, name: &str, dtype: DType, elems: i64) -> Mem {
        self.kernel.scratch(name, dtype, usize::try_from(elems.max(1)).expect("it is positive"))
    }
    /// The block's index.
    pub fn block(&self) -> Expr {
        self.kernel.block()
    }
    /// An extent.
    pub fn dim(&mut self, d: &Dim) -> Expr {
        self.kernel.dim(d)
    }
    /// A float constant of the dtype.
    pub fn f(dtype: DType, x: f64) -> Expr {
        Expr::Const(Scalar::new(x), dtype)
    }

    /// Appends a statement.
    pub fn push(&mut self, s: Stmt) {
        self.lists.last_mut().expect("an open list").push(s);
    }
    /// A variable that holds the value; constants and variables stay what they are.
    pub fn bind(&mut self, e: Expr) -> Expr {
        if matches!(e, Expr::Const(..) | Expr::Dim(_) | Expr::Var(_)) {
            return e;
        }
        let v = self.kernel.var(self.kernel.expr_dtype(&e));
        self.push(Stmt::Let(v, e));
        Expr::Var(v)
    }
    /// A mutable variable.
    pub fn var(&mut self, dtype: DType, first: Expr) -> VarId {
        let v = self.kernel.var(dtype);
        self.push(Stmt::Var(v, first));
        v
    }
    /// What a variable is here, whatever is assigned to it later.
    pub fn now(&mut self, v: VarId) -> Expr {
        let zero = Build::f(self.kernel.expr_dtype(&Expr::Var(v)), 0.0);
        self.bind(Expr::Var(v) + zero)
    }
    /// See [`Stmt::Assign`].
    pub fn assign(&mut self, v: VarId, e: Expr) {
        self.push(Stmt::Assign(v, e));
    }
    /// See [`Stmt::Accumulate`].
    pub fn accumulate(&mut self, v: VarId, f: ReduceFn, e: Expr) {
        self.push(Stmt::Accumulate(v, f, e));
    }
    /// See [`Stmt::Store`].
    pub fn store(&mut self, mem: Mem, index: Expr, value: Expr) {
        self.push(Stmt::Store { mem, index, value });
    }
    /// Adds to an element.
    pub fn add(&mut self, mem: Mem, index: Expr, value: Expr) {
        let index = self.bind(index);
        self.store(mem, index.clone(), Expr::load(mem, index) + value);
    }
    fn list(&mut self, body: impl FnOnce(&mut Build)) -> Vec<Stmt> {
        self.lists.push(Vec::new());
        body(self);
        self.lists.pop().expect("opened above")
    }
    /// `for i in lo..hi`.
    pub fn for_(&mut self, lo: Expr, hi: Expr, kind: LoopKind, body: impl FnOnce(&mut Build, Expr)) {
        let var = self.kernel.var(DType::I64);
        let body = self.list(|b| body(b, Expr::Var(var)));
        self.push(Stmt::For { var, lo, hi, kind, body });
    }
    /// `for i in 0..n`, turn after turn.
    pub fn range(&mut self, n: Expr, body: impl FnOnce(&mut Build, Expr)) {
        self.for_(Expr::int(0), n, LoopKind::Serial, body);
    }
    /// `for i in 0..n`, in lanes.
    pub fn each(&mut self, n: Expr, body: impl FnOnce(&mut Build, Expr)) {
        self.for_(Expr::int(0), n, LoopKind::Vector, body);
    }
    /// `while cond`.
    pub fn while_(&mut self, cond: Expr, body: impl FnOnce(&mut Build)) {
        let body = self.list(body);
        self.push(Stmt::While { cond, body });
    }
    /// `if cond`; nothing if it is the constant true.
    pub fn if_(&mut self, cond: Expr, then: impl FnOnce(&mut Build)) {
        if is_true(&cond) {
            return then(self);
        }
        let then = self.list(then);
        self.push(Stmt::If { cond, then, otherwise: Vec::new() });
    }
    /// The rows below `total` of a block that has `size` of them, each on its own.
    pub fn each_row(&mut self, total: Expr, size: i64, body: impl FnOnce(&mut Build, Expr)) {
        let first = self.bind(self.block() * Expr::int(size));
        let last = self.bind(Expr::minimum(first.clone() + Expr::int(size), total));
        self.for_(first, last, LoopKind::Parallel, body);
    }
    /// `body` of what `load` has of each number from `first` to `end`, in order; so many are loaded before the first of them is used, so that they are
    /// under way together.
    pub fn at_once<T>(
        &mut self,
        [first, end]: [Expr; 2],
        many: i64,
        load: impl Fn(&mut Build, Expr) -> T,
        body: impl Fn(&mut Build, T),
    ) {
        let groups = self.bind(Expr::floor_div(end.clone() - first.clone(), Expr::int(many)));
        let rest = self.bind(first.clone() + groups.clone() * Expr::int(many));
        self.range(groups, |b, g| {
            let start = b.bind(first + g * Expr::int(many));
            let loaded: Vec<T> = (0..many).map(|i| load(b, start.clone() + Expr::int(i))).collect();
            loaded.into_iter().for_each(|x| body(b, x));
        });
        self.for_(rest, end, LoopKind::Serial, |b, i| {
            let x = load(b, i);
            body(b, x);
        });
    }
    /// A reduction over `0..n` in lanes.
    pub fn reduce(&mut self, f: ReduceFn, first: Expr, n: Expr, term: impl FnOnce(&mut Build, Expr) -> Expr) -> VarId {
        let sum = self.var(self.kernel.expr_dtype(&first), first);
        self.each(n, |b, i| {
            let x = term(b, i);
            b.accumulate(sum, f, x);
        });
        sum
    }
    /// `value` into elements `0..n`.
    pub fn fill(&mut self, mem: Mem, n: Expr, value: Expr) {
        self.each(n, |b, i| b.store(mem, i, value));
    }
    /// `c (+)= a·b` with extents `m, n, k`.
    pub fn dot(&mut self, [m, n, k]: [Expr; 3], a: TileRef, b: TileRef, c: TileRef, accumulate: bool) {
        self.push(Stmt::Dot(Dot { m, n, k, a, b, c, accumulate, counted: None }));
    }
    /// `c += a·b`, of which only the first rows count.
    pub fn dot_rows(&mut self, [m, n, k]: [Expr; 3], a: TileRef, b: TileRef, c: TileRef, counted: Expr) {
        self.push(Stmt::Dot(Dot { m, n, k, a, b, c, accumulate: true, counted: Some(counted) }));
    }
}

/// A row-major tile with `row` elements from row to row.
pub fn tile(mem: Mem, base: Expr, row: i64) -> TileRef {
    TileRef { mem, base, row: Expr::int(row), col: Expr::int(1) }
}

/// The transpose of a row-major tile with `row` elements from row to row.
pub fn transposed(mem: Mem, base: Expr, row: i64) -> TileRef {
    TileRef { mem, base, row: Expr::int(1), col: Expr::int(row) }
}

/// The constant true.
pub fn truth() -> Expr {
    Expr::Const(Scalar::new(1.0), DType::Bool)
}

fn is_true(e: &Expr) -> bool {
    *e == truth()
}

/// Both, without naming what is true anyway.
pub fn both(a: Expr, b: Expr) -> Expr {
    match (is_true(&a), is_true(&b)) {
        (true, _) => b,
        (_, true) => a,
        (false, false) => Expr::and(a, b),
    }
}

/// The quotient of floats.
pub fn div(a: Expr, b: Expr) -> Expr {
    Expr::map2(MapFn::Div, a, b)
}

/// `e^x`.
pub fn exp(x: Expr) -> Expr {
    Expr::map1(MapFn::Exp, x)
}

/// Whether two are equal.
pub fn eq(a: Expr, b: Expr) -> Expr {
    Expr::map2(MapFn::Eq, a, b)
}
