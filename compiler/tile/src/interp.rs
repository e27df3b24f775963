//! The f64 meaning of tile programs: the second opinion on every kernel. In: a kernel, the contents of its buffers, the run-time
//! dims. Out: the buffers as the kernel leaves them, or the first thing it must not do.
//!
//! Memory holds values rounded to its dtype; arithmetic is exact in f64, or rounded to the compute dtype after each op. Blocks run one
//! after the other in an order that a seed permutes, so a result that depends on the order shows. What is found: out-of-bounds
//! accesses, reads of scratch or of write-only buffers before they are written, blocks that touch an element another one writes, and
//! turns of a vector loop that do.

use crate::{
    ir::{Access, Copy, Dot, Expr, Kernel, LoopKind, Mem, Stmt, TileRef, compute_dtype},
    verify::verify,
};
use base::{DType, DimEnv};
use graph::op::{MapFn, ReduceFn};
use std::{collections::HashMap, rc::Rc};

/// How to run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Whether each arithmetic result is rounded to its compute dtype (else it stays in f64).
    pub rounded: bool,
    /// Permutes the blocks; 0 runs them in order.
    pub seed: u64,
    /// Statements after which a run counts as endless.
    pub max_steps: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options { rounded: false, seed: 0, max_steps: 1_000_000_000 }
    }
}

/// What a run did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Blocks run.
    pub blocks: u64,
    /// Statements executed.
    pub steps: u64,
    /// Multiply-adds inside products.
    pub products: u64,
    /// Elements of each buffer that no block wrote; 0 for buffers that are only read.
    pub unwritten: Vec<usize>,
}

/// What a kernel must not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InterpError {
    /// It does not verify.
    #[error("{}", .0.join("; "))]
    Invalid(Vec<String>),
    /// The buffers or dims are not what it takes.
    #[error("{0}")]
    Arguments(String),
    /// An access outside a memory.
    #[error("block {block}: element {index} of '{mem}', which has {elems}")]
    Bounds {
        /// The block.
        block: u32,
        /// The memory's name.
        mem: String,
        /// The element.
        index: i64,
        /// How many there are.
        elems: usize,
    },
    /// A read of what was never written.
    #[error("block {block}: element {index} of '{mem}' is read before it is written")]
    Uninitialised {
        /// The block.
        block: u32,
        /// The memory's name.
        mem: String,
        /// The element.
        index: usize,
    },
    /// Two blocks touch an element and one of them writes it.
    #[error("blocks {block} and {other} share element {index} of '{mem}'")]
    Race {
        /// A block.
        block: u32,
        /// Another; `u32::MAX - 1` stands for several.
        other: u32,
        /// The memory's name.
        mem: String,
        /// The element.
        index: usize,
    },
    /// Two turns of a vector or parallel loop touch an element and one of them writes it.
    #[error("block {block}: turns {turn} and {other} of a vector loop share element {index} of '{mem}'")]
    Turns {
        /// The block.
        block: u32,
        /// A turn.
        turn: i64,
        /// Another.
        other: i64,
        /// The memory's name.
        mem: String,
        /// The element.
        index: usize,
    },
    /// A block's copies are not those that the block beside it makes.
    #[error("block {block}: copy {copy} is not that of the block beside")]
    Paired {
        /// The block.
        block: u32,
        /// The copy's number among those that may be alike.
        copy: usize,
    },
    /// More statements than allowed.
    #[error("block {block} does not end")]
    Endless {
        /// The block.
        block: u32,
    },
}

const NONE: u32 = u32::MAX;
const SEVERAL: u32 = u32::MAX - 1;

/// Runs all blocks on `buffers`, one a buffer of the kernel, whose values must be of their dtype.
///
/// # Errors
/// The first thing the kernel must not do.
pub fn run(kernel: &Kernel, buffers: &mut [Vec<f64>], dims: &DimEnv, options: Options) -> Result<Report, InterpError> {
    let violations = verify(kernel);
    if !violations.is_empty() {
        return Err(InterpError::Invalid(violations));
    }
    let value = |d: &base::Dim| d.eval(dims).ok_or_else(|| InterpError::Arguments(format!("{d} has no value")));
    if buffers.len() != kernel.buffers.len() {
        return Err(InterpError::Arguments(format!("{} buffers for {}", buffers.len(), kernel.buffers.len())));
    }
    for (b, given) in kernel.buffers.iter().zip(&*buffers) {
        let elems = value(&b.elems)?;
        if elems != given.len() as i64 {
            return Err(InterpError::Arguments(format!("'{}' has {elems} elements, not {}", b.name, given.len())));
        }
    }
    let sizes: Vec<usize> = buffers.iter().map(Vec::len).collect();
    let mut m = Machine {
        kernel,
        dims: kernel.dims.iter().map(value).collect::<Result<_, _>>()?,
        buffers,
        tracks: sizes.iter().map(|n| Track { writer: vec![NONE; *n], reader: vec![NONE; *n] }).collect(),
        scratch: Vec::new(),
        vars: vec![0.0; kernel.vars.len()],
        block: 0,
        options,
        report: Report::default(),
        vectors: Vec::new(),
        touched: Vec::new(),
        epoch: 0,
        stored: HashMap::new(),
        copies: Vec::new(),
    };
    let mut pairs: HashMap<u32, Vec<(bool, Vec<i64>)>> = HashMap::new();
    let grid = value(&kernel.grid)?.max(0);
    let grid = u32::try_from(grid).ok().filter(|n| *n < SEVERAL);
    let grid = grid.ok_or_else(|| InterpError::Arguments("too many blocks".into()))?;
    for block in order(grid, options.seed) {
        m.block = block;
        m.vars[0] = f64::from(block);
        m.scratch = kernel.scratch.iter().map(|s| vec![None; s.elems]).collect();
        m.list(&kernel.body)?;
        m.report.blocks += 1;
        let copies = std::mem::take(&mut m.copies);
        match pairs.remove(&(block ^ 1)) {
            None => _ = pairs.insert(block, copies),
            Some(others) => {
                let alike = |(x, y): (&(bool, Vec<i64>), &(bool, Vec<i64>))| x.0 == y.0 && (!x.0 || x.1 == y.1);
                let same = copies.iter().zip(&others).take_while(|pair| alike(*pair)).count();
                if same < copies.len().max(others.len()) {
                    return Err(InterpError::Paired { block, copy: same });
                }
            }
        }
    }
    let unwritten = |(b, t): (&crate::ir::Buffer, &Track)| match b.access {
        Access::Read => 0,
        Access::Write | Access::ReadWrite => t.writer.iter().filter(|w| **w == NONE).count(),
    };
    m.report.unwritten = kernel.buffers.iter().zip(&m.tracks).map(unwritten).collect();
    Ok(m.report)
}

/// The blocks in an order given by the seed.
fn order(n: u32, seed: u64) -> Vec<u32> {
    let mut blocks: Vec<u32> = (0..n).collect();
    let mut state = seed;
    for i in (1..blocks.len()).rev().take_while(|_| seed != 0) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        blocks.swap(i, (state >> 33) as usize % (i + 1));
    }
    blocks
}

/// Who touched each element of a buffer.
struct Track {
    writer: Vec<u32>,
    reader: Vec<u32>,
}

/// A running vector loop, and what its turns touched of the memories that it writes.
struct Turns {
    turn: i64,
    /// Tells this run of the loop from others at the same depth.
    epoch: u64,
    /// Which memories, buffers first.
    stored: Rc<[bool]>,
}

/// Who touched an element last, in the run of a loop called `epoch`.
#[derive(Clone, Copy, Default)]
struct Touch {
    epoch: u64,
    turn: i64,
    other: Option<i64>,
    wrote: bool,
}

struct Machine<'a> {
    kernel: &'a Kernel,
    dims: Vec<i64>,
    buffers: &'a mut [Vec<f64>],
    tracks: Vec<Track>,
    scratch: Vec<Vec<Option<f64>>>,
    vars: Vec<f64>,
    block: u32,
    options: Options,
    report: Report,
    vectors: Vec<Turns>,
    /// By depth of the loop and memory.
    touched: Vec<Vec<Vec<Touch>>>,
    epoch: u64,
    /// The memories that a loop's body writes, by the body's address.
    stored: HashMap<usize, Rc<[bool]>>,
    /// The block's copies that the block beside may make too: whether it does, and of what.
    copies: Vec<(bool, Vec<i64>)>,
}

impl Machine<'_> {
    fn name(&self, mem: Mem) -> String {
        match mem {
            Mem::Buffer(i) => self.kernel.buffers[i].name.clone(),
            Mem::Scratch(i) => self.kernel.scratch[i].name.clone(),
        }
    }
    fn elems(&self, mem: Mem) -> usize {
        match mem {
            Mem::Buffer(i) => self.buffers[i].len(),
            Mem::Scratch(i) => self.scratch[i].len(),
        }
    }
    /// The memory's number, buffers first.
    fn id(&self, mem: Mem) -> usize {
        match mem {
            Mem::Buffer(i) => i,
            Mem::Scratch(i) => self.kernel.buffers.len() + i,
        }
    }
    /// The element, in bounds and no other turn's.
    fn touch(&mut self, mem: Mem, index: i64, write: bool) -> Result<usize, InterpError> {
        let (elems, block) = (self.elems(mem), self.block);
        let Some(at) = usize::try_from(index).ok().filter(|i| *i < elems) else {
            return Err(InterpError::Bounds { block, mem: self.name(mem), index, elems });
        };
        let id = self.id(mem);
        for (l, touched) in self.vectors.iter().zip(&mut self.touched) {
            if !l.stored[id] {
                continue;
            }
            if touched[id].len() < elems {
                touched[id] = vec![Touch::default(); elems];
            }
            let (touch, turn) = (&mut touched[id][at], l.turn);
            if touch.epoch != l.epoch {
                *touch = Touch { epoch: l.epoch, turn, other: None, wrote: false };
            }
            if touch.turn != turn {
                touch.other = Some(touch.turn);
                touch.turn = turn;
            }
            if let Some(other) = touch.other.filter(|_| write || touch.wrote) {
                return Err(InterpError::Turns { block, turn, other, mem: self.name(mem), index: at });
            }
            touch.wrote |= write;
        }
        Ok(at)
    }
    fn race(&self, mem: Mem, index: usize, other: u32) -> InterpError {
        InterpError::Race { block: self.block, other, mem: self.name(mem), index }
    }
    fn read(&mut self, mem: Mem, index: i64) -> Result<f64, InterpError> {
        let at = self.touch(mem, index, false)?;
        let block = self.block;
        let uninitialised = |m: &Self| InterpError::Uninitialised { block, mem: m.name(mem), index: at };
        match mem {
            Mem::Scratch(i) => self.scratch[i][at].ok_or_else(|| uninitialised(self)),
            Mem::Buffer(i) => {
                let (writer, reader) = (self.tracks[i].writer[at], self.tracks[i].reader[at]);
                if writer != NONE && writer != block {
                    return Err(self.race(mem, at, writer));
                }
                if self.kernel.buffers[i].access == Access::Write && writer == NONE {
                    return Err(uninitialised(self));
                }
                self.tracks[i].reader[at] = if reader == NONE || reader == block { block } else { SEVERAL };
                Ok(self.buffers[i][at])
            }
        }
    }
    fn write(&mut self, mem: Mem, index: i64, value: f64) -> Result<(), InterpError> {
        let at = self.touch(mem, index, true)?;
        let value = self.kernel.mem_dtype(mem).round(value);
        match mem {
            Mem::Scratch(i) => self.scratch[i][at] = Some(value),
            Mem::Buffer(i) => {
                let other = [self.tracks[i].writer[at], self.tracks[i].reader[at]].into_iter();
                if let Some(other) = other.into_iter().find(|o| *o != NONE && *o != self.block) {
                    return Err(self.race(mem, at, other));
                }
                self.tracks[i].writer[at] = self.block;
                self.buffers[i][at] = value;
            }
        }
        Ok(())
    }

    /// The value and its dtype.
    fn expr(&mut self, e: &Expr) -> Result<(f64, DType), InterpError> {
        Ok(match e {
            Expr::Const(c, d) => (c.get(), *d),
            Expr::Dim(i) => (self.dims[*i] as f64, DType::I64),
            Expr::Var(v) => (self.vars[v.0 as usize], self.kernel.vars[v.0 as usize]),
            Expr::Load(mem, index) => {
                let index = self.int(index)?;
                (self.read(*mem, index)?, compute_dtype(self.kernel.mem_dtype(*mem)))
            }
            Expr::Map(f, args) => {
                let mut values = [0.0; 3];
                let mut dtype = DType::Bool;
                for (i, a) in args.iter().enumerate() {
                    (values[i], dtype) = self.expr(a)?;
                }
                let value = f.eval(&values[..args.len()]);
                match f.kind() {
                    graph::op::map::Kind::Compare | graph::op::map::Kind::Logic | graph::op::map::Kind::Test => {
                        (value, DType::Bool)
                    }
                    graph::op::map::Kind::Select => (value, dtype),
                    graph::op::map::Kind::Float | graph::op::map::Kind::Number | graph::op::map::Kind::Int => {
                        (self.round(value, dtype), dtype)
                    }
                }
            }
            Expr::Cast(d, x) => {
                let (x, _) = self.expr(x)?;
                // Widening keeps the value; narrowing rounds, also where arithmetic is exact.
                let same = *d == compute_dtype(*d) && d.is_float() && !self.options.rounded;
                (if same { x } else { d.round(x) }, compute_dtype(*d))
            }
            Expr::Order(x) => (f64::from(place_in_order(self.expr(x)?.0 as f32)), DType::I32),
        })
    }
    fn int(&mut self, e: &Expr) -> Result<i64, InterpError> {
        Ok(self.expr(e)?.0 as i64)
    }
    fn round(&self, x: f64, dtype: DType) -> f64 {
        if self.options.rounded || dtype == DType::I32 { dtype.round(x) } else { x }
    }

    fn list(&mut self, stmts: &[Stmt]) -> Result<(), InterpError> {
        stmts.iter().try_for_each(|s| self.stmt(s))
    }
    fn stmt(&mut self, s: &Stmt) -> Result<(), InterpError> {
        self.report.steps += 1;
        if self.report.steps > self.options.max_steps {
            return Err(InterpError::Endless { block: self.block });
        }
        match s {
            Stmt::Let(v, e) | Stmt::Var(v, e) | Stmt::Assign(v, e) => self.vars[v.0 as usize] = self.expr(e)?.0,
            Stmt::Accumulate(v, f, e) => {
                let (x, dtype) = self.expr(e)?;
                let f = match f {
                    ReduceFn::Sum => MapFn::Add,
                    ReduceFn::Prod => MapFn::Mul,
                    ReduceFn::Max => MapFn::Max,
                    ReduceFn::Min => MapFn::Min,
                };
                self.vars[v.0 as usize] = self.round(f.eval(&[self.vars[v.0 as usize], x]), dtype);
            }
            Stmt::Store { mem, index, value } => {
                let (index, value) = (self.int(index)?, self.expr(value)?.0);
                self.write(*mem, index, value)?;
            }
            Stmt::For { var, lo, hi, kind, body } => {
                let (lo, hi) = (self.int(lo)?, self.int(hi)?);
                let num_buffers = self.kernel.buffers.len();
                let mut own = Vec::new();
                let stored = match kind {
                    LoopKind::Serial => None,
                    LoopKind::Vector => Some(self.stored_by(body)),
                    LoopKind::Parallel => {
                        let stored = self.stored_by(body);
                        own = (0..self.kernel.scratch.len()).filter(|i| stored[num_buffers + i]).collect();
                        Some(stored.iter().enumerate().map(|(i, s)| *s && i < num_buffers).collect())
                    }
                }
                .filter(|s| s.contains(&true));
                let logged = stored.is_some();
                if let Some(stored) = stored {
                    self.epoch += 1;
                    self.vectors.push(Turns { turn: lo, epoch: self.epoch, stored });
                    if self.touched.len() < self.vectors.len() {
                        let mems = self.kernel.buffers.len() + self.kernel.scratch.len();
                        self.touched.push(vec![Vec::new(); mems]);
                    }
                }
                for i in lo..hi {
                    self.vars[var.0 as usize] = i as f64;
                    if let Some(l) = self.vectors.last_mut().filter(|_| logged) {
                        l.turn = i;
                    }
                    own.iter().for_each(|s| self.scratch[*s].fill(None));
                    self.list(body)?;
                }
                if logged {
                    self.vectors.pop();
                }
            }
            Stmt::While { cond, body } => {
                while self.expr(cond)?.0 != 0.0 {
                    self.report.steps += 1;
                    if self.report.steps > self.options.max_steps {
                        return Err(InterpError::Endless { block: self.block });
                    }
                    self.list(body)?;
                }
            }
            Stmt::If { cond, then, otherwise } => {
                let branch = if self.expr(cond)?.0 != 0.0 { then } else { otherwise };
                self.list(branch)?;
            }
            Stmt::Dot(d) => self.dot(d)?,
            Stmt::Copy(c) => self.copy(c)?,
        }
        Ok(())
    }
    fn stored_by(&mut self, body: &[Stmt]) -> Rc<[bool]> {
        let address = body.as_ptr() as usize;
        if let Some(known) = self.stored.get(&address) {
            return Rc::clone(known);
        }
        let mut written = vec![false; self.kernel.buffers.len() + self.kernel.scratch.len()];
        self.stores(body, &mut written);
        let written: Rc<[bool]> = written.into();
        self.stored.insert(address, Rc::clone(&written));
        written
    }
    /// Marks the memories that statements write.
    fn stores(&self, stmts: &[Stmt], written: &mut [bool]) {
        for s in stmts {
            match s {
                Stmt::Let(..) | Stmt::Var(..) | Stmt::Assign(..) | Stmt::Accumulate(..) => {}
                Stmt::Store { mem, .. } => written[self.id(*mem)] = true,
                Stmt::For { body, .. } | Stmt::While { body, .. } => self.stores(body, written),
                Stmt::If { then, otherwise, .. } => {
                    self.stores(then, written);
                    self.stores(otherwise, written);
                }
                Stmt::Dot(d) => written[self.id(d.c.mem)] = true,
                Stmt::Copy(c) => written[self.id(c.to)] = true,
            }
        }
    }

    fn copy(&mut self, c: &Copy) -> Result<(), InterpError> {
        let axis = |m: &mut Self, a: &crate::ir::Axis| Ok([m.int(&a.extent)?, m.int(&a.stride)?, m.int(&a.at)?]);
        let axes = c.axes.iter().map(|a| axis(self, a)).collect::<Result<Vec<_>, InterpError>>()?;
        if let Some(paired) = &c.paired {
            let memories = [self.id(c.from), self.id(c.to)].map(|i| i as i64);
            let what = memories.into_iter().chain(axes.iter().flatten().copied()).collect();
            let alike = self.expr(paired)?.0 != 0.0;
            self.copies.push((alike, what));
        }
        for (r, col) in (0..c.rows).flat_map(|r| (0..c.cols).map(move |col| (r, col))) {
            let (mut inside, mut index) = (true, 0);
            for (back, [extent, stride, at]) in axes.iter().rev().enumerate() {
                let i = match (c.index, back) {
                    (Some(by), 1) if c.run == c.rows => self.index_of(by, at + r)?,
                    (Some(by), 2) if c.run != c.rows => self.index_of(by, at + r / c.run)?,
                    _ => at + [col, r % c.run, r / c.run].get(back).unwrap_or(&0),
                };
                inside &= (0..*extent).contains(&i);
                index += i * stride;
            }
            let place = r * c.cols + col;
            match c.to {
                Mem::Scratch(_) => {
                    let value = if inside { self.read(c.from, index)? } else { 0.0 };
                    self.write(c.to, place, value)?;
                }
                Mem::Buffer(_) if inside => {
                    let value = self.read(c.from, place)?;
                    self.write(c.to, index, value)?;
                }
                Mem::Buffer(_) => {}
            }
        }
        Ok(())
    }
    /// An element of a buffer of indices, -1 outside.
    fn index_of(&mut self, by: usize, at: i64) -> Result<i64, InterpError> {
        let inside = usize::try_from(at).is_ok_and(|i| i < self.buffers[by].len());
        if inside { Ok(self.read(Mem::Buffer(by), at)? as i64) } else { Ok(-1) }
    }
    fn dot(&mut self, d: &Dot) -> Result<(), InterpError> {
        let [m, n, k] = [self.int(&d.m)?, self.int(&d.n)?, self.int(&d.k)?];
        let a = self.tile(&d.a, m, k)?;
        let b = self.tile(&d.b, k, n)?;
        let [base, row, col] = self.place(&d.c)?;
        let dtype = compute_dtype(self.kernel.mem_dtype(d.c.mem));
        let counted = d.counted.as_ref().map_or(Ok(m), |e| self.int(e))?;
        for i in 0..m {
            for j in 0..n {
                let at = base + i * row + j * col;
                if i >= counted {
                    self.write(d.c.mem, at, f64::NAN)?;
                    continue;
                }
                let mut sum = if d.accumulate { self.read(d.c.mem, at)? } else { 0.0 };
                for l in 0..k {
                    sum = self.round(sum + a[(i * k + l) as usize] * b[(l * n + j) as usize], dtype);
                }
                self.write(d.c.mem, at, sum)?;
            }
        }
        self.report.products += (m.max(0) * n.max(0) * k.max(0)) as u64;
        Ok(())
    }
    fn place(&mut self, t: &TileRef) -> Result<[i64; 3], InterpError> {
        Ok([self.int(&t.base)?, self.int(&t.row)?, self.int(&t.col)?])
    }
    /// The elements of a tile, row-major.
    fn tile(&mut self, t: &TileRef, rows: i64, cols: i64) -> Result<Vec<f64>, InterpError> {
        let [base, row, col] = self.place(t)?;
        let mut out = Vec::new();
        for r in 0..rows {
            for c in 0..cols {
                out.push(self.read(t.mem, base + r * row + c * col)?);
            }
        }
        Ok(out)
    }
}

/// What [`Expr::Order`] is.
fn place_in_order(x: f32) -> i32 {
    // Both zeros are the same.
    let bits = (x + 0.0).to_bits() as i32;
    if x.is_nan() { i32::MAX } else { bits ^ (bits >> 31 & i32::MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::build::{Build, tile};
    use base::Dim;

    fn run_on(build: impl FnOnce(&mut Build), buffers: &mut [Vec<f64>], options: Options) -> Result<Report, InterpError> {
        let mut b = Build::new("k");
        build(&mut b);
        run(&b.finish(), buffers, &DimEnv::from([("N".into(), 4)]), options)
    }
    #[track_caller]
    fn fails(want: &str, buffers: &[usize], build: impl FnOnce(&mut Build)) {
        let mut data: Vec<Vec<f64>> = buffers.iter().map(|n| vec![1.0; *n]).collect();
        let error = run_on(build, &mut data, Options { max_steps: 10_000, ..Options::default() }).expect_err(want).to_string();
        assert!(error.contains(want), "{error}");
    }

    #[test]
    fn sums_rows_in_any_order_of_blocks() {
        for seed in 0..5 {
            let mut data = vec![(0..12).map(f64::from).collect(), vec![f64::NAN; 4]];
            let report = run_on(
                |b| {
                    let x = b.read("x", DType::BF16, Dim::sym("N") * Dim::from(3));
                    let y = b.write("y", DType::F32, Dim::sym("N"));
                    b.kernel.grid = Dim::sym("N");
                    let row = b.block();
                    let sum = b.var(DType::F32, Build::f(DType::F32, 0.0));
                    b.each(Expr::int(3), |b, i| {
                        b.accumulate(sum, ReduceFn::Sum, Expr::load(x, b.block() * Expr::int(3) + i));
                    });
                    b.store(y, row, Expr::Var(sum));
                },
                &mut data,
                Options { seed, ..Options::default() },
            );
            assert_eq!(report.map(|r| (r.blocks, r.unwritten)), Ok((4, vec![0, 0])));
            assert_eq!(data[1], [3.0, 12.0, 21.0, 30.0]);
        }
    }

    #[test]
    fn rounding_is_of_memory_or_of_each_step() {
        let third = |rounded| {
            let mut data = vec![vec![0.0; 2]];
            let build = |b: &mut Build| {
                let y = b.write("y", DType::F64, Dim::from(2));
                let x = Build::f(DType::F32, 1.0);
                let third = Expr::map2(MapFn::Div, x, Build::f(DType::F32, 3.0));
                b.store(y, Expr::int(0), third.clone().cast(DType::F64));
                b.store(y, Expr::int(1), third.cast(DType::BF16).cast(DType::F64));
            };
            run_on(build, &mut data, Options { rounded, ..Options::default() }).expect("it runs");
            data.remove(0)
        };
        let bf16 = DType::BF16.round(1.0 / 3.0);
        assert_eq!(third(false), [1.0 / 3.0, bf16]);
        assert_eq!(third(true), [f64::from(1.0f32 / 3.0), bf16]);
    }

    #[test]
    fn products_read_and_add() {
        let mut data = vec![vec![1.0, 2.0, 3.0, 4.0], vec![10.0; 4]];
        let build = |b: &mut Build| {
            let x = b.read("x", DType::F32, Dim::from(4));
            let y = b.update("y", DType::F32, Dim::from(4));
            let (t, n) = (|m| tile(m, Expr::int(0), 2), || [2, 2, 2].map(Expr::int));
            b.dot(n(), t(x), t(x), t(y), true);
        };
        let report = run_on(build, &mut data, Options::default()).expect("it runs");
        assert_eq!((data[1].as_slice(), report.products), (&[17.0, 20.0, 25.0, 32.0][..], 8));
    }

    #[test]
    fn scratch_of_a_parallel_loop_is_a_turns_own() {
        fails("element 0 of 's' is read before it is written", &[4], |b| {
            let y = b.write("y", DType::F32, Dim::from(4));
            let s = b.scratch("s", DType::F32, 1);
            b.for_(Expr::int(0), Expr::int(4), crate::ir::LoopKind::Parallel, |b, i| {
                b.if_(Expr::lt(i.clone(), Expr::int(1)), |b| b.store(s, Expr::int(0), Build::f(DType::F32, 1.0)));
                b.store(y, i, Expr::load(s, Expr::int(0)));
            });
        });
        fails("share element 0 of 'y'", &[4], |b| {
            let y = b.update("y", DType::F32, Dim::from(4));
            b.for_(Expr::int(0), Expr::int(4), crate::ir::LoopKind::Parallel, |b, i| {
                b.store(y, i, Expr::load(y, Expr::int(0)));
            });
        });
    }

    #[test]
    fn misdeeds_are_found() {
        let one = || Build::f(DType::F32, 1.0);
        fails("element 4 of 'x', which has 4", &[4], |b| {
            let x = b.write("x", DType::F32, Dim::from(4));
            b.range(Expr::int(5), |b, i| b.store(x, i, one()));
        });
        fails("element 0 of 's' is read before", &[4], |b| {
            let x = b.write("x", DType::F32, Dim::from(4));
            let s = b.scratch("s", DType::F32, 1);
            b.store(x, Expr::int(0), Expr::load(s, Expr::int(0)));
        });
        fails("element 1 of 'x' is read before", &[4], |b| {
            let x = b.write("x", DType::F32, Dim::from(4));
            b.store(x, Expr::int(0), Expr::load(x, Expr::int(1)));
        });
        fails("blocks 1 and 0 share element 0 of 'x'", &[4], |b| {
            let x = b.write("x", DType::F32, Dim::from(4));
            b.kernel.grid = Dim::from(2);
            b.store(x, Expr::int(0), one());
        });
        fails("share element 1 of 'x'", &[4], |b| {
            let x = b.update("x", DType::F32, Dim::from(4));
            b.kernel.grid = Dim::from(2);
            let at = b.block();
            b.store(x, at, Expr::load(x, Expr::int(1)));
        });
        fails("turns 1 and 0 of a vector loop share element 1", &[4], |b| {
            let x = b.update("x", DType::F32, Dim::from(4));
            b.each(Expr::int(3), |b, i| b.store(x, i.clone(), Expr::load(x, i + Expr::int(1))));
        });
        fails("block 1: copy 1 is not that of the block beside", &[32], |b| {
            let x = b.read("x", DType::F32, Dim::from(32));
            let s = b.scratch("s", DType::F32, 8);
            b.kernel.grid = Dim::from(2);
            // The first is another one, as it says; the second one is, and does not.
            for alike in [0.0, 1.0] {
                let axes = [(Expr::int(4), Expr::int(8), b.block()), (Expr::int(8), Expr::int(1), Expr::int(0))];
                let axes = axes.map(|(extent, stride, at)| crate::ir::Axis { extent, stride, at }).into();
                let paired = Some(Build::f(DType::Bool, alike));
                b.push(Stmt::Copy(Copy { from: x, to: s, rows: 1, cols: 8, run: 1, axes, index: None, paired }));
            }
        });
        fails("does not end", &[], |b| {
            let v = b.var(DType::I64, Expr::int(0));
            b.while_(Expr::lt(Expr::Var(v), Expr::int(1)), |_| ());
        });
        fails("4 elements, not 3", &[3], |b| {
            b.write("x", DType::F32, Dim::sym("N"));
        });
    }
}
