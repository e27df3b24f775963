//! Looks for what no tile program may do: dtypes that do not fit, variables out of scope or set twice, stores to read-only buffers,
//! and vector loops whose turns plainly depend on each other. The interpreter finds what only shows when it runs.

use crate::ir::{Access, COPY_ALIGN, Copy, Dot, Expr, Kernel, LoopKind, Mem, Stmt, VarId, compute_dtype};
use base::{DType, Dim};
use graph::op::map::Kind;
use std::collections::BTreeSet;

/// All violations, in program order.
pub fn verify(kernel: &Kernel) -> Vec<String> {
    let mut v = Verifier { kernel, state: vec![State::Unset; kernel.vars.len()], vectors: Vec::new(), found: Vec::new() };
    match v.state.first_mut() {
        Some(block) if kernel.vars[0] == DType::I64 => *block = State::Value,
        _ => v.found.push("variable 0 is not the block's index".into()),
    }
    if let Some(d) = kernel.vars.iter().find(|d| compute_dtype(**d) != **d) {
        v.found.push(format!("a variable of {d}"));
    }
    for b in &kernel.buffers {
        if !(b.alignment > 0 && b.alignment % b.dtype.bytes() as i64 == 0) {
            v.found.push(format!("{} of {} at a multiple of {} bytes", b.name, b.dtype, b.alignment));
        }
    }
    v.list(&kernel.body);
    v.found
}

/// What a variable is at a point of the program.
#[derive(Clone, Copy, PartialEq)]
enum State {
    Unset,
    Value,
    Mutable,
    /// Its scope has ended.
    Gone,
}

/// A vector loop around the current statement.
struct Vector {
    kind: LoopKind,
    /// Variables whose value may differ from turn to turn.
    varying: BTreeSet<VarId>,
    /// Variables declared inside.
    inside: BTreeSet<VarId>,
    /// Outside variables that the loop reduces into.
    sums: BTreeSet<VarId>,
}

struct Verifier<'a> {
    kernel: &'a Kernel,
    state: Vec<State>,
    vectors: Vec<Vector>,
    found: Vec<String>,
}

impl Verifier<'_> {
    fn list(&mut self, stmts: &[Stmt]) {
        for s in stmts {
            self.stmt(s);
        }
        for s in stmts {
            if let Stmt::Let(v, _) | Stmt::Var(v, _) = s {
                self.end(*v);
            }
        }
    }
    fn end(&mut self, v: VarId) {
        if let Some(s) = self.state.get_mut(v.0 as usize) {
            *s = State::Gone;
        }
    }
    fn declare(&mut self, v: VarId, state: State, from: &[&Expr]) {
        match self.state.get(v.0 as usize) {
            None => self.found.push(format!("{v} is not declared")),
            Some(State::Unset) => self.state[v.0 as usize] = state,
            Some(State::Value | State::Mutable | State::Gone) => self.found.push(format!("{v} is set twice")),
        }
        for loop_ in &mut self.vectors {
            loop_.inside.insert(v);
            if state == State::Mutable || from.iter().any(|e| varies(e, &loop_.varying)) {
                loop_.varying.insert(v);
            }
        }
    }
    fn dtype_of(&self, v: VarId) -> Option<DType> {
        self.kernel.vars.get(v.0 as usize).copied()
    }
    /// The value must have this dtype.
    fn expect(&mut self, what: &str, e: &Expr, dtype: Option<DType>) {
        let found = self.expr(e);
        if let (Some(found), Some(want)) = (found, dtype)
            && found != want
        {
            self.found.push(format!("{what} is {found}, not {want}"));
        }
    }
    fn mutable(&mut self, v: VarId) {
        if self.state.get(v.0 as usize) != Some(&State::Mutable) {
            self.found.push(format!("{v} is not a mutable variable here"));
        }
    }
    fn stmt(&mut self, s: &Stmt) {
        match s {
            Stmt::Let(v, e) => {
                self.expect(&format!("{v}'s value"), e, self.dtype_of(*v));
                self.declare(*v, State::Value, &[e]);
            }
            Stmt::Var(v, e) => {
                self.expect(&format!("{v}'s value"), e, self.dtype_of(*v));
                self.declare(*v, State::Mutable, &[e]);
            }
            Stmt::Assign(v, e) => {
                self.expect(&format!("{v}'s value"), e, self.dtype_of(*v));
                self.mutable(*v);
                if self.vectors.iter().any(|l| !l.inside.contains(v)) {
                    self.found.push(format!("{v} carries a value from turn to turn of a vector loop"));
                }
            }
            Stmt::Accumulate(v, _, e) => {
                self.expect(&format!("{v}'s term"), e, self.dtype_of(*v));
                self.mutable(*v);
                if self.dtype_of(*v) == Some(DType::Bool) {
                    self.found.push(format!("{v} is a reduction of bools"));
                }
                self.vectors.iter_mut().filter(|l| !l.inside.contains(v)).for_each(|l| {
                    l.sums.insert(*v);
                });
                if self.vectors.iter().any(|l| l.kind == LoopKind::Parallel && !l.inside.contains(v)) {
                    self.found.push(format!("{v} carries a value from turn to turn of a parallel loop"));
                }
            }
            Stmt::Store { mem, index, value } => {
                self.expect("an index", index, Some(DType::I64));
                self.written(*mem);
                let dtype = self.mem(*mem).map(compute_dtype);
                self.expect("a stored value", value, dtype);
                self.each_turn_its_own(*mem, &[index]);
            }
            Stmt::For { var, lo, hi, kind, body } => {
                self.expect("a loop bound", lo, Some(DType::I64));
                self.expect("a loop bound", hi, Some(DType::I64));
                if self.dtype_of(*var).is_some_and(|d| d != DType::I64) {
                    self.found.push(format!("{var} counts and is no i64"));
                }
                self.declare(*var, State::Value, &[lo, hi]);
                if *kind != LoopKind::Serial {
                    let varying = BTreeSet::from([*var]);
                    self.vectors.push(Vector { kind: *kind, varying, inside: BTreeSet::new(), sums: BTreeSet::new() });
                }
                self.list(body);
                if *kind != LoopKind::Serial {
                    self.vectors.pop();
                }
                self.end(*var);
            }
            Stmt::While { cond, body } => {
                self.expect("a condition", cond, Some(DType::Bool));
                self.list(body);
            }
            Stmt::If { cond, then, otherwise } => {
                self.expect("a condition", cond, Some(DType::Bool));
                self.list(then);
                self.list(otherwise);
            }
            Stmt::Dot(d) => self.dot(d),
            Stmt::Copy(c) => self.copy(c),
        }
    }
    fn copy(&mut self, c: &Copy) {
        for e in c.axes.iter().flat_map(|a| [&a.extent, &a.stride, &a.at]) {
            self.expect("a number of a copy", e, Some(DType::I64));
        }
        if let Some(e) = &c.paired {
            self.expect("whether the block beside makes a copy", e, Some(DType::Bool));
            if c.index.is_some() || c.run != c.rows || matches!(c.to, Mem::Buffer(_)) {
                self.found.push("a copy by halves that is no rectangle to scratch".into());
            }
            if self.kernel.grid.try_div(&Dim::from(2)).is_none() {
                self.found.push(format!("blocks in pairs, of which there are {}", self.kernel.grid));
            }
        }
        let dtypes = [c.from, c.to].map(|m| self.mem(m).map(compute_dtype));
        if let [Some(from), Some(to)] = dtypes
            && from != to
        {
            self.found.push(format!("a copy of {from} to {to}"));
        }
        match c.sides() {
            None => self.found.push("a copy that is not between a buffer and scratch".into()),
            Some((_, s)) => {
                let elems = self.kernel.scratch.get(s).map_or(0, |s| s.elems as i64);
                if c.rows < 1 || c.cols < 1 || c.rows.saturating_mul(c.cols) > elems {
                    self.found.push(format!("a copy of {} by {} of scratch with {elems} elements", c.rows, c.cols));
                }
            }
        }
        let runs = c.run != c.rows;
        if c.axes.len() < 2 + usize::from(runs) {
            self.found.push("a copy of fewer axes than its rectangle has".into());
        }
        if c.run < 1 || c.rows % c.run != 0 {
            self.found.push(format!("a copy of {} rows in runs of {}", c.rows, c.run));
        }
        if let (Some((b, _)), Some((last, outer))) = (c.sides(), c.axes.split_last()) {
            let bytes = self.kernel.buffers.get(b).map_or(1, |b| b.dtype.bytes() as i64);
            let aligned = |e: &Expr| e.known().is_none_or(|n| (n * bytes) % COPY_ALIGN == 0);
            if last.stride.known() != Some(1) || !outer.iter().all(|a| aligned(&a.stride)) {
                self.found.push("a copy of what does not begin at multiples of 16 bytes".into());
            }
        }
        if let Some(i) = c.index {
            if self.mem(Mem::Buffer(i)) != Some(DType::I32) {
                self.found.push("rows by indices that are not i32".into());
            }
            if matches!(c.to, Mem::Buffer(_)) {
                self.found.push("a copy to a buffer by indices".into());
            }
        }
        self.written(c.to);
        let at: Vec<&Expr> = c.axes.iter().map(|a| &a.at).collect();
        self.each_turn_its_own(c.to, &at);
    }
    fn dot(&mut self, d: &Dot) {
        let places = [&d.a, &d.b, &d.c].into_iter().flat_map(|t| [&t.base, &t.row, &t.col]);
        for e in [&d.m, &d.n, &d.k].into_iter().chain(places).chain(&d.counted) {
            self.expect("an extent of a product", e, Some(DType::I64));
        }
        let dtypes = [&d.a, &d.b, &d.c].map(|t| self.mem(t.mem).map(compute_dtype));
        if let [Some(a), Some(b), Some(c)] = dtypes
            && (!c.is_float() || a != c || b != c)
        {
            self.found.push(format!("a product of {a} and {b} in {c}"));
        }
        if d.c.mem == d.a.mem || d.c.mem == d.b.mem {
            self.found.push("a product into one of its operands".into());
        }
        self.written(d.c.mem);
        self.each_turn_its_own(d.c.mem, &[&d.c.base]);
    }
    fn mem(&mut self, mem: Mem) -> Option<DType> {
        let dtype = match mem {
            Mem::Buffer(i) => self.kernel.buffers.get(i).map(|b| b.dtype),
            Mem::Scratch(i) => self.kernel.scratch.get(i).map(|s| s.dtype),
        };
        if dtype.is_none() {
            self.found.push(format!("{mem:?} is not declared"));
        }
        dtype
    }
    fn written(&mut self, mem: Mem) {
        if let Mem::Buffer(i) = mem
            && let Some(b) = self.kernel.buffers.get(i)
            && b.access == Access::Read
        {
            self.found.push(format!("a store to '{}', which is only read", b.name));
        }
    }
    /// Fails if every turn of a vector loop writes the same elements.
    fn each_turn_its_own(&mut self, mem: Mem, index: &[&Expr]) {
        // A kernel of no blocks has no turns, and extents of 0 are strides of 0.
        if self.kernel.grid.is(0) {
            return;
        }
        // Scratch that a turn of a parallel loop writes is its own.
        let own = |l: &Vector| l.kind == LoopKind::Parallel && matches!(mem, Mem::Scratch(_));
        if self.vectors.iter().any(|l| !own(l) && !index.iter().any(|e| varies(e, &l.varying))) {
            self.found.push(format!("each turn of a vector loop writes the same element of {mem:?}"));
        }
    }
    /// The dtype of an expression whose parts fit.
    fn expr(&mut self, e: &Expr) -> Option<DType> {
        match e {
            Expr::Const(_, d) => {
                if compute_dtype(*d) != *d {
                    self.found.push(format!("a constant of {d}"));
                }
                Some(*d)
            }
            Expr::Dim(i) => {
                if *i >= self.kernel.dims.len() {
                    self.found.push(format!("extent {i} is not declared"));
                }
                Some(DType::I64)
            }
            Expr::Var(v) => {
                if !matches!(self.state.get(v.0 as usize), Some(State::Value | State::Mutable)) {
                    self.found.push(format!("{v} is used out of scope"));
                }
                if self.vectors.iter().any(|l| l.sums.contains(v)) {
                    self.found.push(format!("{v} is read inside the vector loop that reduces into it"));
                }
                self.dtype_of(*v)
            }
            Expr::Load(mem, index) => {
                self.expect("an index", index, Some(DType::I64));
                self.mem(*mem).map(compute_dtype)
            }
            Expr::Map(f, args) => {
                let given: Option<Vec<DType>> = args.iter().map(|a| self.expr(a)).collect();
                let given = given?;
                if given.len() != f.arity() {
                    self.found.push(format!("{} of {} operands", f.name(), given.len()));
                    return None;
                }
                let data = if f.kind() == Kind::Select { &given[1..] } else { &given[..] };
                let same = data.iter().all(|d| *d == data[0]);
                let (fits, result) = match f.kind() {
                    Kind::Float => (data[0].is_float(), data[0]),
                    Kind::Number => (data[0] != DType::Bool, data[0]),
                    Kind::Int => (data[0].is_int(), data[0]),
                    Kind::Compare => (true, DType::Bool),
                    Kind::Logic => (data[0] == DType::Bool, DType::Bool),
                    Kind::Test => (data[0].is_float(), DType::Bool),
                    Kind::Select => (given[0] == DType::Bool, data[0]),
                };
                if !fits || !same {
                    let names: Vec<&str> = given.iter().map(|d| d.name()).collect();
                    self.found.push(format!("{} of {}", f.name(), names.join(", ")));
                }
                Some(result)
            }
            Expr::Cast(d, x) => {
                self.expr(x);
                Some(compute_dtype(*d))
            }
            Expr::Order(x) => {
                if let Some(d) = self.expr(x).filter(|d| *d != DType::F32) {
                    self.found.push(format!("order of {}", d.name()));
                }
                Some(DType::I32)
            }
        }
    }
}

/// Whether the value may differ from turn to turn. Memory may change between turns, but only loads at varying places are told apart.
fn varies(e: &Expr, varying: &BTreeSet<VarId>) -> bool {
    match e {
        Expr::Const(..) | Expr::Dim(_) => false,
        Expr::Var(v) => varying.contains(v),
        Expr::Load(_, i) | Expr::Cast(_, i) | Expr::Order(i) => varies(i, varying),
        Expr::Map(_, args) => args.iter().any(|a| varies(a, varying)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::build::Build;
    use base::Dim;
    use graph::op::ReduceFn;

    #[track_caller]
    fn finds(want: &str, build: impl FnOnce(&mut Build)) {
        let mut b = Build::new("k");
        build(&mut b);
        let found = verify(&b.finish());
        assert!(found.iter().any(|f| f.contains(want)), "{want}: {found:?}");
    }

    #[test]
    fn dtypes_and_scopes() {
        finds("an index is f32, not i64", |b| {
            let x = b.scratch("x", DType::F32, 4);
            let at = Expr::load(x, Expr::int(0));
            b.store(x, at.clone(), at);
        });
        finds("add of i64, f32", |b| {
            let x = b.scratch("x", DType::F32, 4);
            b.bind(Expr::Map(graph::op::MapFn::Add, vec![Expr::int(1), Expr::load(x, Expr::int(0))]));
        });
        finds("v1 is used out of scope", |b| {
            let x = b.scratch("x", DType::I64, 4);
            let mut leaked = None;
            b.for_(Expr::int(0), Expr::int(4), LoopKind::Serial, |_, i| leaked = Some(i));
            b.store(x, Expr::int(0), leaked.expect("the loop's variable"));
        });
        finds("v1 is set twice", |b| {
            let v = b.kernel.var(DType::I64);
            b.push(Stmt::Let(v, Expr::int(0)));
            b.push(Stmt::Let(v, Expr::int(0)));
        });
        finds("only read", |b| {
            let x = b.read("x", DType::F32, Dim::from(4));
            b.store(x, Expr::int(0), Expr::load(x, Expr::int(0)));
        });
        finds("v1 is not a mutable variable", |b| {
            let x = b.bind(Expr::int(3) + b.kernel.block());
            let Expr::Var(v) = x else { panic!("bound") };
            b.assign(v, Expr::int(0));
        });
        finds("a product of i64 and f32 in f32", |b| {
            let (x, y) = (b.scratch("x", DType::I64, 4), b.scratch("y", DType::F32, 4));
            let tile = |mem| crate::kernels::build::tile(mem, Expr::int(0), 2);
            b.dot([2, 2, 2].map(Expr::int), tile(x), tile(y), tile(y), false);
        });
    }

    #[test]
    fn vector_loops() {
        finds("carries a value from turn to turn", |b| {
            let v = b.var(DType::I64, Expr::int(0));
            b.each(Expr::int(4), |b, i| b.assign(v, i));
        });
        finds("writes the same element", |b| {
            let x = b.scratch("x", DType::I64, 4);
            b.each(Expr::int(4), |b, i| b.store(x, Expr::int(0), i));
        });
        finds("inside the vector loop that reduces into it", |b| {
            let x = b.scratch("x", DType::I64, 4);
            let v = b.var(DType::I64, Expr::int(0));
            b.each(Expr::int(4), |b, i| {
                b.accumulate(v, ReduceFn::Sum, i.clone());
                b.store(x, i, Expr::Var(v));
            });
        });
    }

    #[test]
    fn parallel_loops() {
        let parallel = |b: &mut Build, body: &dyn Fn(&mut Build, Expr)| {
            b.for_(Expr::int(0), Expr::int(4), LoopKind::Parallel, |b, i| body(b, i));
        };
        finds("from turn to turn of a parallel loop", |b| {
            let v = b.var(DType::I64, Expr::int(0));
            parallel(b, &|b, i| b.accumulate(v, ReduceFn::Sum, i));
        });
        finds("writes the same element of Buffer(0)", |b| {
            let x = b.write("x", DType::I64, Dim::from(4));
            parallel(b, &|b, i| b.store(x, Expr::int(0), i));
        });
        // Scratch is each turn's own.
        let mut b = Build::new("k");
        let x = b.scratch("x", DType::I64, 4);
        parallel(&mut b, &|b, i| b.store(x, Expr::int(0), i));
        assert_eq!(verify(&b.finish()), Vec::<String>::new());
    }
}
