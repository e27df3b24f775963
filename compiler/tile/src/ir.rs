//! Tile programs: what one thread block does, as loops over scalars, memory in spaces, and tile-level operations.
//!
//! A [`Kernel`] runs `grid` independent blocks. A block reads and writes its buffers, has scratch memory of constant size, and
//! mutable scalars. Expressions are trees over immutable variables; sharing goes through [`Stmt::Let`]. Arithmetic is in f32, f64,
//! i64, i32 or bool: loads of narrower floats widen to f32, stores round to nearest even.
//!
//! *Not yet decided here*: vector width, registers, instruction selection. On the host a block is a task of the thread pool and
//! the innermost loops are vectorised; the GPU adds its own statements.

use base::{DType, Dim};
use graph::op::{MapFn, ReduceFn, Scalar};

base::id_type!(
    /// A scalar variable of a kernel.
    VarId,
    "v"
);

/// A device function.
#[derive(Clone, Debug, PartialEq)]
pub struct Kernel {
    /// The symbol, unique in its library.
    pub name: String,
    /// The buffers it is passed, in order. Distinct buffers do not overlap, unless both are only read.
    pub buffers: Vec<Buffer>,
    /// The extents it is passed as i64, in order; [`Expr::Dim`] refers to them.
    pub dims: Vec<Dim>,
    /// The number of blocks, over `dims`.
    pub grid: Dim,
    /// Scratch memory of a block.
    pub scratch: Vec<Scratch>,
    /// The dtype of each variable, in order of [`VarId`]. Variable 0 is the block's index (i64).
    pub vars: Vec<DType>,
    /// What a block does.
    pub body: Vec<Stmt>,
}

/// A buffer of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Buffer {
    /// For readers: the value's name.
    pub name: String,
    /// The dtype in memory.
    pub dtype: DType,
    /// Its number of elements, for bounds checks.
    pub elems: Dim,
    /// What the kernel does with it.
    pub access: Access,
    /// What it begins at a multiple of, wherever the kernel is launched. # Units: bytes.
    pub alignment: i64,
}

/// What a kernel does with a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads only.
    Read,
    /// Writes every element it touches before it reads it.
    Write,
    /// Reads what was there before.
    ReadWrite,
}

/// Memory of one block, uninitialised at its start.
#[derive(Clone, Debug, PartialEq)]
pub struct Scratch {
    /// For readers.
    pub name: String,
    /// The dtype.
    pub dtype: DType,
    /// The number of elements.
    pub elems: usize,
}

/// Where a load or store goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mem {
    /// Buffer `i`.
    Buffer(usize),
    /// Scratch `i`.
    Scratch(usize),
}

/// How a loop may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoopKind {
    /// Turn after turn.
    Serial,
    /// Turns are independent, and scratch that one writes is its own, written before it is read: they may run at once.
    Parallel,
    /// Turns are independent, but for [`Stmt::Accumulate`], whose sums may be taken in lanes: vectorise.
    Vector,
}

/// A statement.
#[derive(Clone, Debug, PartialEq)]
pub enum Stmt {
    /// `var = value`, once; in scope to the end of the enclosing list.
    Let(VarId, Expr),
    /// A mutable variable with its first value.
    Var(VarId, Expr),
    /// A new value of a mutable variable.
    Assign(VarId, Expr),
    /// `var = f(var, value)`: a reduction over the enclosing loops, which may be taken in lanes.
    Accumulate(VarId, ReduceFn, Expr),
    /// `mem[index] = value`, rounding to the memory's dtype.
    Store {
        /// Where.
        mem: Mem,
        /// The element, i64.
        index: Expr,
        /// What.
        value: Expr,
    },
    /// `for var in lo..hi`.
    For {
        /// i64.
        var: VarId,
        /// The first, i64.
        lo: Expr,
        /// One past the last, i64.
        hi: Expr,
        /// How.
        kind: LoopKind,
        /// What.
        body: Vec<Stmt>,
    },
    /// `while cond`: for searches.
    While {
        /// Bool.
        cond: Expr,
        /// What.
        body: Vec<Stmt>,
    },
    /// Either list.
    If {
        /// Bool.
        cond: Expr,
        /// If true.
        then: Vec<Stmt>,
        /// If false.
        otherwise: Vec<Stmt>,
    },
    /// c[i·m + j] (+)= Σ_k a[i, k]·b[k, j] in f32 (f64 if c is): the tile-level product.
    Dot(Dot),
    /// A rectangle of a buffer to scratch, or back.
    Copy(Copy),
}

impl Stmt {
    /// The lists of statements inside of it.
    pub fn lists(&self) -> [&[Stmt]; 2] {
        match self {
            Stmt::For { body, .. } | Stmt::While { body, .. } => [body, &[]],
            Stmt::If { then, otherwise, .. } => [then, otherwise],
            Stmt::Let(..)
            | Stmt::Var(..)
            | Stmt::Assign(..)
            | Stmt::Accumulate(..)
            | Stmt::Store { .. }
            | Stmt::Dot(_)
            | Stmt::Copy(_) => [&[], &[]],
        }
    }
}

/// A rectangle of a buffer to scratch or back. Elements of scratch are row-major; element `(r, c)` is at index `at_a` of each axis of the buffer, `r % run`
/// further along the last but one, `r / run` along the one before, and `c` further along the last. Where an index is outside of its axis, scratch becomes 0, and a buffer stays as
/// it was. Values are widened and rounded as by a load and a store.
///
/// The buffer and all strides but the last, which is 1, are multiples of 16 bytes, and so is the last extent: neighbours move together.
#[derive(Clone, Debug, PartialEq)]
pub struct Copy {
    /// A buffer or scratch.
    pub from: Mem,
    /// The other.
    pub to: Mem,
    /// Rows of the rectangle.
    pub rows: i64,
    /// Columns of the rectangle.
    pub cols: i64,
    /// Rows along the last axis but one before the next of the axis before; all of them, unless the rectangle has three axes. Divides `rows`.
    pub run: i64,
    /// The buffer's axes, two or more.
    pub axes: Vec<Axis>,
    /// A buffer of i32 by which rows are taken, to scratch: row `r` is at index `index[at + r]` of the last axis but one, or where the rectangle has three axes,
    /// run `r / run` at index `index[at + r / run]` of the one before. Past the end of `index` scratch becomes 0.
    pub index: Option<usize>,
    /// Of a rectangle of two axes that goes to scratch, in a kernel whose blocks run in pairs: whether the block beside, `block ^ 1`, makes the same copy as its
    /// copy of the same number, so that each may bring half of it for both. Both blocks make equally many such copies. Bool.
    pub paired: Option<Expr>,
}

/// An axis of a buffer.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// Indices, i64.
    pub extent: Expr,
    /// Elements from one to the next, i64.
    pub stride: Expr,
    /// The rectangle's first, i64; may be outside.
    pub at: Expr,
}

impl Axis {
    /// One with a stride that is known.
    pub fn new(extent: Expr, stride: i64, at: Expr) -> Axis {
        Axis { extent, stride: Expr::int(stride), at }
    }
}

/// What a rectangle's rows begin at multiples of. # Units: bytes.
pub const COPY_ALIGN: i64 = 16;

impl Copy {
    /// The buffer and the scratch memory.
    pub fn sides(&self) -> Option<(usize, usize)> {
        match (self.from, self.to) {
            (Mem::Buffer(b), Mem::Scratch(s)) | (Mem::Scratch(s), Mem::Buffer(b)) => Some((b, s)),
            (Mem::Buffer(_), Mem::Buffer(_)) | (Mem::Scratch(_), Mem::Scratch(_)) => None,
        }
    }
    /// Whether runs of rows are taken by index.
    pub fn takes_runs(&self) -> bool {
        self.index.is_some() && self.run != self.rows
    }
    /// Its expressions.
    pub fn exprs(&self) -> impl Iterator<Item = &Expr> {
        self.axes.iter().flat_map(|a| [&a.extent, &a.stride, &a.at]).chain(&self.paired)
    }
}

/// A product of tiles: `c[i, j] = init + Σ_k a[i, k]·b[k, j]`, `init` being `c[i, j]` if `accumulate`, else 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Dot {
    /// Rows, i64.
    pub m: Expr,
    /// Columns, i64.
    pub n: Expr,
    /// Summed extent, i64.
    pub k: Expr,
    /// `[m, k]`.
    pub a: TileRef,
    /// `[k, n]`; fastest if the column stride is the constant 1.
    pub b: TileRef,
    /// `[m, n]`, likewise.
    pub c: TileRef,
    /// Whether to add to what is in `c`.
    pub accumulate: bool,
    /// The rows from the first on that count, i64, if that may be fewer than `m`: what the others of `c` hold then is not defined.
    pub counted: Option<Expr>,
}

/// A rectangle in memory: element `(r, c)` is at `base + r·row + c·col`.
#[derive(Clone, Debug, PartialEq)]
pub struct TileRef {
    /// Which memory.
    pub mem: Mem,
    /// The first element, i64.
    pub base: Expr,
    /// Elements from row to row, i64.
    pub row: Expr,
    /// Elements from column to column, i64.
    pub col: Expr,
}

/// How columns that are mapped with others lie: in periods, as of a head, of units of as many each. A turn takes one column of each unit, or two neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Units {
    /// Columns of a unit.
    pub unit: i64,
    /// Columns of a period, a multiple of that.
    pub period: i64,
    /// Whether two neighbours are taken at once; units are even then.
    pub pairs: bool,
}

impl Units {
    /// Units of a period.
    pub fn count(self) -> i64 {
        self.period / self.unit
    }
    /// Columns that a turn takes of a unit.
    pub fn together(self) -> i64 {
        if self.pairs { 2 } else { 1 }
    }
    /// Turns for the columns of a unit.
    pub fn turns(self) -> i64 {
        self.unit / self.together()
    }
    /// The columns that a turn takes: how many further on each is than the first.
    pub fn taken(self) -> impl Iterator<Item = i64> {
        (0..self.count()).flat_map(move |k| (0..self.together()).map(move |i| k * self.unit + i))
    }
}

/// An expression.
#[derive(Clone, Debug, PartialEq)]
pub enum Expr {
    /// A constant of the dtype (F32, F64, I64, I32, Bool).
    Const(Scalar, DType),
    /// `dims[i]`, i64.
    Dim(usize),
    /// A variable.
    Var(VarId),
    /// `mem[index]`, widened to f32 if it is a narrower float.
    Load(Mem, Box<Expr>),
    /// Elementwise function; the meaning is graph's. Select evaluates both sides.
    Map(MapFn, Vec<Expr>),
    /// Conversion among F64, F32, I64, I32 and Bool; to TF32, BF16, F16 or E4M3: rounds to that type and stays F32.
    Cast(DType, Box<Expr>),
    /// The I32 by which an F32 is found in their order: it is greater if the number is, the same if that is, and the greatest of all if it is NaN.
    Order(Box<Expr>),
}

impl Expr {
    /// An i64 constant.
    pub fn int(n: i64) -> Expr {
        Expr::Const(Scalar::new(n as f64), DType::I64)
    }
    /// The value of an i64 constant.
    pub fn known(&self) -> Option<i64> {
        match self {
            Expr::Const(c, DType::I64) => Some(c.get() as i64),
            _ => None,
        }
    }
    /// `mem[index]`.
    pub fn load(mem: Mem, index: Expr) -> Expr {
        Expr::Load(mem, Box::new(index))
    }
    /// Columns lie in units of periods; a loop over `v` is over the columns of all first units, or over their pairs of neighbours. The element `by` columns
    /// further on.
    pub fn in_unit(v: Expr, units: Units, by: i64) -> Expr {
        let of_unit = Expr::int(units.turns());
        let place = Expr::rem(v.clone(), of_unit.clone());
        let place = if units.pairs { place * Expr::int(units.together()) } else { place };
        Expr::floor_div(v, of_unit) * Expr::int(units.period) + place + Expr::int(by)
    }
    /// If it is such an element: the loop's variable, the units, and how many columns further on.
    pub fn as_in_unit(&self) -> Option<(VarId, Units, i64)> {
        let Expr::Map(MapFn::Add, sum) = self else { return None };
        let (first, by) = match sum[1].known() {
            Some(by) => (&sum[0], by),
            None => (self, 0),
        };
        let Expr::Map(MapFn::Add, sum) = first else { return None };
        let Expr::Map(MapFn::Mul, start) = &sum[0] else { return None };
        let (pairs, place) = match &sum[1] {
            Expr::Map(MapFn::Mul, two) => (true, &two[0]),
            place => (false, place),
        };
        let Expr::Map(MapFn::Rem, place) = place else { return None };
        let (Expr::Var(v), turns, period) = (&place[0], place[1].known()?, start[1].known()?) else { return None };
        let units = Units { unit: if pairs { 2 * turns } else { turns }, period, pairs };
        (*self == Expr::in_unit(Expr::Var(*v), units, by)).then_some((*v, units, by))
    }
    /// A conversion.
    pub fn cast(self, dtype: DType) -> Expr {
        Expr::Cast(dtype, Box::new(self))
    }
    /// The integer by which an F32 is found in their order.
    pub fn order(self) -> Expr {
        Expr::Order(Box::new(self))
    }
    /// An elementwise function of one operand.
    pub fn map1(f: MapFn, a: Expr) -> Expr {
        Expr::Map(f, vec![a])
    }
    /// An elementwise function of two operands; folds the i64 cases that index arithmetic makes.
    pub fn map2(f: MapFn, a: Expr, b: Expr) -> Expr {
        match (f, a.known(), b.known()) {
            (MapFn::Add | MapFn::Sub | MapFn::Mul | MapFn::Min | MapFn::Max | MapFn::FloorDiv | MapFn::Rem, Some(x), Some(y)) => {
                Expr::int(f.eval(&[x as f64, y as f64]) as i64)
            }
            (MapFn::Add, Some(0), _) => b,
            (MapFn::Add | MapFn::Sub, _, Some(0)) => a,
            (MapFn::Mul, Some(1), _) => b,
            (MapFn::Mul | MapFn::FloorDiv, _, Some(1)) => a,
            (MapFn::Mul, Some(0), _) | (MapFn::Mul, _, Some(0)) | (MapFn::Rem, _, Some(1)) => Expr::int(0),
            _ => Expr::Map(f, vec![a, b]),
        }
    }
    /// `c ? a : b`.
    pub fn select(c: Expr, a: Expr, b: Expr) -> Expr {
        Expr::Map(MapFn::Select, vec![c, a, b])
    }
    /// `a < b`.
    pub fn lt(a: Expr, b: Expr) -> Expr {
        Expr::map2(MapFn::Lt, a, b)
    }
    /// `a <= b`.
    pub fn le(a: Expr, b: Expr) -> Expr {
        Expr::map2(MapFn::Le, a, b)
    }
    /// Both.
    pub fn and(a: Expr, b: Expr) -> Expr {
        Expr::map2(MapFn::And, a, b)
    }
    /// The smaller.
    pub fn minimum(a: Expr, b: Expr) -> Expr {
        Expr::map2(MapFn::Min, a, b)
    }
    /// The larger.
    pub fn maximum(a: Expr, b: Expr) -> Expr {
        Expr::map2(MapFn::Max, a, b)
    }
    /// `⌊a / b⌋`.
    pub fn floor_div(a: Expr, b: Expr) -> Expr {
        Expr::map2(MapFn::FloorDiv, a, b)
    }
    /// `a - b·⌊a / b⌋`.
    pub fn rem(a: Expr, b: Expr) -> Expr {
        Expr::map2(MapFn::Rem, a, b)
    }
}

/// Adds, subtracts and multiplies i64 or float expressions.
macro_rules! expr_op {
    ($trait:ident $method:ident $f:ident) => {
        impl std::ops::$trait for Expr {
            type Output = Expr;
            fn $method(self, rhs: Expr) -> Expr {
                Expr::map2(MapFn::$f, self, rhs)
            }
        }
    };
}
expr_op!(Add add Add);
expr_op!(Sub sub Sub);
expr_op!(Mul mul Mul);

impl Kernel {
    /// Whether blocks `2i` and `2i + 1` run as a pair: one of its copies says whether the block beside makes it too.
    pub fn in_pairs(&self) -> bool {
        fn any(body: &[Stmt]) -> bool {
            body.iter().any(|s| matches!(s, Stmt::Copy(c) if c.paired.is_some()) || s.lists().into_iter().any(any))
        }
        any(&self.body)
    }
    /// An empty kernel of one block; variable 0 is the block's index.
    pub fn new(name: &str) -> Kernel {
        Kernel {
            name: name.into(),
            buffers: Vec::new(),
            dims: Vec::new(),
            grid: Dim::from(1),
            scratch: Vec::new(),
            vars: vec![DType::I64],
            body: Vec::new(),
        }
    }
    /// The block's index.
    pub fn block(&self) -> Expr {
        Expr::Var(VarId(0))
    }
    /// A new variable.
    pub fn var(&mut self, dtype: DType) -> VarId {
        self.vars.push(dtype);
        VarId(u32::try_from(self.vars.len() - 1).expect("fewer than 2^32 variables"))
    }
    /// A new buffer.
    pub fn buffer(&mut self, name: &str, dtype: DType, elems: Dim, access: Access) -> Mem {
        let alignment = dtype.bytes() as i64;
        self.buffers.push(Buffer { name: name.into(), dtype, elems, access, alignment });
        Mem::Buffer(self.buffers.len() - 1)
    }
    /// New scratch memory.
    pub fn scratch(&mut self, name: &str, dtype: DType, elems: usize) -> Mem {
        self.scratch.push(Scratch { name: name.into(), dtype, elems });
        Mem::Scratch(self.scratch.len() - 1)
    }
    /// An extent as an expression: a constant, or the argument that carries it.
    pub fn dim(&mut self, d: &Dim) -> Expr {
        if let Some(n) = d.known() {
            return Expr::int(n);
        }
        let i = self.dims.iter().position(|x| x == d).unwrap_or_else(|| {
            self.dims.push(d.clone());
            self.dims.len() - 1
        });
        Expr::Dim(i)
    }
    /// The dtype in memory.
    pub fn mem_dtype(&self, mem: Mem) -> DType {
        match mem {
            Mem::Buffer(i) => self.buffers[i].dtype,
            Mem::Scratch(i) => self.scratch[i].dtype,
        }
    }
    /// The dtype of an expression.
    pub fn expr_dtype(&self, e: &Expr) -> DType {
        match e {
            Expr::Const(_, d) => *d,
            Expr::Dim(_) => DType::I64,
            Expr::Var(v) => self.vars[v.0 as usize],
            Expr::Load(mem, _) => compute_dtype(self.mem_dtype(*mem)),
            Expr::Map(f, args) => match f.kind() {
                graph::op::map::Kind::Compare | graph::op::map::Kind::Logic | graph::op::map::Kind::Test => DType::Bool,
                graph::op::map::Kind::Select => self.expr_dtype(&args[1]),
                graph::op::map::Kind::Float | graph::op::map::Kind::Number | graph::op::map::Kind::Int => {
                    self.expr_dtype(&args[0])
                }
            },
            Expr::Cast(d, _) => compute_dtype(*d),
            Expr::Order(_) => DType::I32,
        }
    }
}

/// A power of two that divides an extent whatever the sizes, up to [`COPY_ALIGN`]. Kernels that differ in it are not one.
pub fn divisor(d: &Dim) -> i64 {
    let divides = |n: &i64| d.try_div(&Dim::from(*n)).is_some();
    [COPY_ALIGN, 8, 4, 2].into_iter().find(divides).unwrap_or(1)
}

/// The dtype in which values of a memory dtype are computed.
pub fn compute_dtype(memory: DType) -> DType {
    match memory {
        DType::F64 => DType::F64,
        DType::F32 | DType::TF32 | DType::BF16 | DType::F16 | DType::E4M3 => DType::F32,
        DType::I64 => DType::I64,
        DType::I32 => DType::I32,
        DType::Bool => DType::Bool,
    }
}
