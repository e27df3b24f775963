//! The syntax tree: what was written, with a span on each node, names unresolved. In: tokens. Out: to `hir`.
//!
//! *Not yet decided here*: what a name means, whether a call is a block, any type or shape.

use base::{DType, Span};

/// A value and the text it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Spanned<T> {
    /// The value.
    pub node: T,
    /// Its text.
    pub span: Span,
}

/// A name as written.
pub type Ident = Spanned<String>;

/// A dotted name: `model.layers`, `experts.*.up.weight`; a part is `*` or an identifier.
#[derive(Clone, Debug, PartialEq)]
pub struct Path {
    /// The parts, at least one.
    pub parts: Vec<Ident>,
    /// The whole text.
    pub span: Span,
}

/// A source file.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct File {
    /// The items in order.
    pub items: Vec<Item>,
    /// Functions that the tree does not have, as their heads cannot be read; nor can their names be relied on.
    pub lost: Vec<FuncKind>,
    /// Whether other names may be missing: an item is none of the tree's, or one that is no function has a mistake.
    pub has_gaps: bool,
}

/// A top-level item.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// What it is.
    pub kind: ItemKind,
    /// The `///` lines above it, joined by `\n`.
    pub doc: Option<String>,
    /// The whole text.
    pub span: Span,
    /// Whether a mistake was told in it: the tree is what could be made of it, and not what was meant.
    pub is_broken: bool,
}

/// The kinds of items.
#[derive(Clone, Debug, PartialEq)]
pub enum ItemKind {
    /// `use std.{a, b}`: `path` = `std`, `names` = a, b. `use std.moe`: `path` = `std`, `names` = moe.
    Use {
        /// The module.
        path: Path,
        /// The imported names.
        names: Vec<Ident>,
    },
    /// `dims B, T`.
    Dims(Vec<Ident>),
    /// `config { a = 1 }`.
    Config(Vec<(Ident, Expr)>),
    /// `precision { compute = bf16 }`.
    Precision(Vec<(Ident, Spanned<DType>)>),
    /// `pipeline { ranks = 4, schedule = dualpipe }`.
    Pipeline(Vec<(Ident, Expr)>),
    /// `fn`, `block` or `model`.
    Func(Func),
    /// `train(…) { … }`.
    Train(Train),
}

/// Which keyword began a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FuncKind {
    /// Pure.
    Fn,
    /// With parameters.
    Block,
    /// The entry point.
    Model,
}

/// A function, block or model.
#[derive(Clone, Debug, PartialEq)]
pub struct Func {
    /// Its keyword.
    pub kind: FuncKind,
    /// Its name.
    pub name: Ident,
    /// Its parameters.
    pub params: Vec<Param>,
    /// Its result type.
    pub result: Type,
    /// Its body.
    pub body: Body,
}

/// A parameter of a function.
#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    /// The name.
    pub name: Ident,
    /// The type.
    pub ty: Type,
    /// The default, a compile-time expression.
    pub default: Option<Expr>,
}

/// A type as written.
#[derive(Clone, Debug, PartialEq)]
pub struct Type {
    /// What it is.
    pub kind: TypeKind,
    /// The whole text.
    pub span: Span,
}

/// The forms of types.
#[derive(Clone, Debug, PartialEq)]
pub enum TypeKind {
    /// `f32[B, T]`, or `[B, T]` with the dtype left to the precision policy.
    Tensor {
        /// The dtype, if written.
        dtype: Option<DType>,
        /// The axes.
        axes: Vec<Axis>,
    },
    /// `int`, `float`, `bool`, `string`, `domain`.
    Name(String),
    /// `rows[E]`.
    Rows(Box<Expr>),
    /// `(T1, T2)`.
    Tuple(Vec<Type>),
}

/// An axis of a tensor type.
#[derive(Clone, Debug, PartialEq)]
pub enum Axis {
    /// An extent.
    Extent(Expr),
    /// `..S`: any number of axes.
    Rest(Ident),
    /// `rows r`: the rows of routing `r`.
    Rows(Ident),
}

/// A `{ … }`.
#[derive(Clone, Debug, PartialEq)]
pub struct Body {
    /// The statements.
    pub stmts: Vec<Stmt>,
    /// The value, if the last statement is an expression without `;`.
    pub value: Option<Box<Expr>>,
    /// With the braces.
    pub span: Span,
}

/// A statement.
#[derive(Clone, Debug, PartialEq)]
pub struct Stmt {
    /// What it is.
    pub kind: StmtKind,
    /// The whole text.
    pub span: Span,
}

/// The kinds of statements.
#[derive(Clone, Debug, PartialEq)]
pub enum StmtKind {
    /// `let x = e`, `let (a, b) = e`.
    Let {
        /// One name, or those of a tuple; `_` ignores.
        names: Vec<Ident>,
        /// The type, if written (one name only).
        ty: Option<Type>,
        /// The value.
        value: Expr,
    },
    /// `x = e`, `(a, b) = e`.
    Assign {
        /// The targets.
        names: Vec<Ident>,
        /// The value.
        value: Expr,
    },
    /// `repeat n as label { … }`.
    Repeat {
        /// How often.
        count: Expr,
        /// The path part, if given.
        label: Option<Path>,
        /// What.
        body: Body,
    },
    /// An expression for its effect (an `if` with assignments), or ended by `;`.
    Expr(Expr),
    /// `state s: T = init`.
    State(Declared),
    /// `tally c: T = e`.
    Tally {
        /// The name.
        name: Ident,
        /// The type.
        ty: Type,
        /// What is summed.
        value: Expr,
    },
    /// `penalty e`.
    Penalty(Expr),
    /// `after step { … }`.
    AfterStep(Body),
}

/// `param a.b: T = init nodecay`, or a `state`.
#[derive(Clone, Debug, PartialEq)]
pub struct Declared {
    /// The dotted name.
    pub path: Path,
    /// The type.
    pub ty: Type,
    /// The initialiser, an expression such as `normal(0.02)` or `zeros`.
    pub init: Option<Box<Expr>>,
    /// Whether `nodecay` was written.
    pub nodecay: bool,
}

/// An expression.
#[derive(Clone, Debug, PartialEq)]
pub struct Expr {
    /// What it is.
    pub kind: ExprKind,
    /// The whole text.
    pub span: Span,
}

/// The kinds of expressions.
#[derive(Clone, Debug, PartialEq)]
pub enum ExprKind {
    /// `42`.
    Int(i64),
    /// `0.5`.
    Float(f64),
    /// `true`.
    Bool(bool),
    /// `"b t -> t b"`, unescaped.
    Str(String),
    /// A name: variable, config value, dim, dtype.
    Name(String),
    /// `a + b`.
    Binary(BinaryOp, Box<Expr>, Box<Expr>),
    /// `-a`, `not a`.
    Unary(UnaryOp, Box<Expr>),
    /// `a^T`.
    Transpose(Box<Expr>),
    /// `f(a, name: b) as label`.
    Call {
        /// What is called.
        func: Ident,
        /// The arguments, positional ones first.
        args: Vec<Arg>,
        /// The instance name, if given.
        label: Option<Path>,
    },
    /// `x[…]`.
    Index(Box<Expr>, Vec<Index>),
    /// `(a, b)`.
    Tuple(Vec<Expr>),
    /// `[a, b]`.
    List(Vec<Expr>),
    /// `if c { … } else { … }`.
    If {
        /// A compile-time value.
        cond: Box<Expr>,
        /// Taken if true.
        then: Body,
        /// Taken if false; `else if` nests.
        otherwise: Option<Body>,
    },
    /// `param …`.
    Param(Declared),
    /// What could not be parsed; already reported.
    Error,
}

/// An argument of a call.
#[derive(Clone, Debug, PartialEq)]
pub struct Arg {
    /// `name:`, if given.
    pub name: Option<Ident>,
    /// The value.
    pub value: Expr,
}

/// An item between the brackets of `x[…]`.
// A tree is read once and short-lived: plain fields over small nodes.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug, PartialEq)]
pub enum Index {
    /// `3`.
    At(Expr),
    /// `a:b:s`, each part optional.
    Slice {
        /// First.
        start: Option<Expr>,
        /// One past the last.
        end: Option<Expr>,
        /// The step, a positive compile-time int.
        step: Option<Expr>,
    },
    /// `..`: as many whole axes as are left.
    Rest(Span),
    /// `new`: an axis of extent 1.
    New(Span),
}

/// Binary operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum BinaryOp {
    Or,
    And,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    BitOr,
    BitAnd,
    Add,
    Sub,
    Mul,
    Div,
    Rem,
    MatMul,
}

/// Unary operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnaryOp {
    /// `-a`.
    Neg,
    /// `not a`.
    Not,
}

/// `train(…) { minimize e  with f(…)  set a = 1, … }`.
#[derive(Clone, Debug, PartialEq)]
pub struct Train {
    /// The batch: what the data loader supplies.
    pub params: Vec<Param>,
    /// `let` statements before `minimize`.
    pub stmts: Vec<Stmt>,
    /// The loss.
    pub objective: Expr,
    /// The optimiser's name.
    pub optimizer: Ident,
    /// Its hyper-parameters.
    pub optimizer_args: Vec<Arg>,
    /// `set` entries.
    pub settings: Vec<(Ident, Expr)>,
}
