//! Products of tiles that a block's threads share out, the tiles that threads hold between them, and copies to shared memory that do
//! not pass through registers.
//!
//! A held tile is in registers: element `(i, j)` belongs to the thread, and has the place among its elements, that `mma.sync` gives its
//! result (m16n8: lane `4g + q` has rows `g`, `g + 8` and columns `2q`, `2q + 1` of each 16 by 8), warps being a grid over the tile; without
//! tensor cores threads are a grid of 16 columns. Loops over all elements are unrolled, each thread taking its own.
//!
//! Operands lie in shared memory, in any of the four orders: `ldmatrix` reads eight rows of eight neighbours, and transposes them where
//! neighbours are along the other axis. Terms are summed sixteen at a time in order.
//!
//! # Source: PTX ISA 8.6, sections 9.7.14 (mma, ldmatrix) and 9.7.9.25 (cp.async).

use super::{
    Emitter, Slot,
    convert::memory_type,
    pointer,
    reduce::{neutral, reductions},
    simt::Machine,
};
use crate::{
    dot::{Matrix, Tiled},
    gpu::{
        access::{Access, expr_uses, exprs, visit},
        plan::{Swizzle, Team, units_of, warp_grid},
    },
};
use base::DType;
use graph::op::{MapFn, ReduceFn};
use std::collections::BTreeMap;
use tile::{
    Access as BufferAccess, Expr, Kernel, LoopKind, Mem, Stmt, VarId,
    ir::{self, Copy, Dot, Units},
};

/// The element of a held tile that a thread is at.
#[derive(Clone, Debug)]
pub(super) struct Elem {
    /// Its number.
    pub var: VarId,
    /// Columns of the tile.
    pub columns: i64,
    /// Its row.
    pub row: String,
    /// Its column.
    pub col: String,
    /// Its place among the thread's elements.
    pub slot: usize,
    /// Its row's place among the thread's rows.
    pub row_slot: usize,
    /// If a loop is over first units: where it is among all.
    pub unit: Option<Unit>,
}

/// Where an element is among columns that lie in periods of units (see [`Expr::in_unit`]).
#[derive(Clone, Debug)]
pub(super) struct Unit {
    /// Turns for a unit.
    pub turns: i64,
    /// The number of its period.
    pub period: String,
    /// Its turn in the unit.
    pub turn: String,
    /// How many of a thread's elements further on the one is that is asked for.
    pub further: usize,
}

/// What an element stores.
struct HeldStore {
    value: String,
    to: String,
    dtype: DType,
    space: &'static str,
    /// Whether threads hold it.
    held: bool,
}

/// The row of held tiles that a thread is at.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// How many rows there are.
    pub rows: i64,
    /// Its place among the thread's rows.
    pub slot: usize,
}

/// A copy of neighbouring elements from a buffer to scratch, or of zeros.
pub(super) struct Chunk<'a> {
    from: (usize, &'a Expr),
    to: (usize, &'a Expr),
    only_if: Option<&'a Expr>,
}

/// What a loop over elements loads by sixteen bytes.
pub(super) struct Piece {
    /// The variable that is the loaded element.
    value: VarId,
    buffer: usize,
    /// What is added to an element's column for its index.
    first: Vec<Expr>,
    /// What that is computed from in the loop.
    needs: Vec<VarId>,
}

/// How expressions of a loop over elements depend on the element.
struct Along<'a> {
    var: VarId,
    columns: i64,
    /// What variables of the loop are.
    lets: &'a BTreeMap<VarId, &'a Expr>,
}

impl Along<'_> {
    fn part(&self, f: MapFn, e: &Expr) -> bool {
        matches!(e, Expr::Map(g, args) if *g == f && args[0] == Expr::Var(self.var) && args[1].known() == Some(self.columns))
    }
    /// Whether it is the same in all of a row.
    fn is_of_row(&self, e: &Expr) -> bool {
        match e {
            _ if self.part(MapFn::FloorDiv, e) => true,
            Expr::Const(..) | Expr::Dim(_) => true,
            Expr::Var(v) => *v != self.var && self.lets.get(v).is_none_or(|e| self.is_of_row(e)),
            Expr::Map(_, args) => args.iter().all(|e| self.is_of_row(e)),
            Expr::Cast(_, x) | Expr::Order(x) => self.is_of_row(x),
            Expr::Load(..) => false,
        }
    }
    /// If it is the column and what is the same in all of a row: the latter.
    fn start(&self, e: &Expr) -> Option<Vec<Expr>> {
        match e {
            _ if self.part(MapFn::Rem, e) => Some(Vec::new()),
            Expr::Var(v) => self.start(self.lets.get(v)?),
            Expr::Map(MapFn::Mul, args) if args[1].known() == Some(1) => self.start(&args[0]),
            Expr::Map(MapFn::Add, args) => {
                let (a, b) = (&args[0], &args[1]);
                let (column, other) = if self.is_of_row(b) { (a, b) } else { (b, a) };
                let mut first = self.start(column).filter(|_| self.is_of_row(other))?;
                first.push(other.clone());
                Some(first)
            }
            Expr::Const(..) | Expr::Dim(_) | Expr::Load(..) | Expr::Map(..) | Expr::Cast(..) | Expr::Order(_) => None,
        }
    }
    /// A number that divides it for certain.
    fn multiple(&self, emitter: &Emitter, e: &Expr) -> i64 {
        match e {
            Expr::Var(v) => self.lets.get(v).map_or_else(|| emitter.multiple(e), |x| self.multiple(emitter, x)),
            Expr::Map(MapFn::Mul, args) => (self.multiple(emitter, &args[0]) * self.multiple(emitter, &args[1])).min(MULTIPLE),
            Expr::Map(MapFn::Add, args) => common(self.multiple(emitter, &args[0]), self.multiple(emitter, &args[1])),
            e => emitter.multiple(e),
        }
    }
    /// The loop's variables that it is computed from.
    fn needs(&self, e: &Expr, found: &mut Vec<VarId>) {
        visit(e, &mut |e| {
            if let Expr::Var(v) = e
                && let Some(x) = self.lets.get(v)
                && !found.contains(v)
            {
                found.push(*v);
                self.needs(x, found);
            }
        });
    }
}

/// Terms of a row's reduction that a thread has under way at once, a power of two: each waits some cycles for the one before.
const CHAINS: usize = 4;
/// Elements of a held tile for which a thread loads what is not held before it stores: a multiple of the four that `mma.sync` has together.
const LOADED_AT_ONCE: usize = 32;
/// What a thread copies at once. # Units: bytes.
const CHUNK: usize = 16;

impl<'a> Chunk<'a> {
    /// If the statement is one: `for j in 0..n { to[x + j] = from[y + j] }`, of a buffer that does not change.
    pub(super) fn new(k: &Kernel, s: &'a Stmt) -> Option<Chunk<'a>> {
        let Stmt::For { var, lo, hi, kind: LoopKind::Serial, body } = s else { return None };
        let [Stmt::Store { mem: Mem::Scratch(to), index, value }] = body.as_slice() else { return None };
        let next = |e: &'a Expr| match e {
            Expr::Map(MapFn::Add, args) if args[1] == Expr::Var(*var) && !expr_uses(&args[0], &|v| v == *var) => Some(&args[0]),
            _ => None,
        };
        let (only_if, load) = match value {
            Expr::Map(MapFn::Select, args) => match &args[2] {
                Expr::Const(c, _) if c.get() == 0.0 && !expr_uses(&args[0], &|v| v == *var) => (Some(&args[0]), &args[1]),
                _ => return None,
            },
            _ => (None, value),
        };
        let Expr::Load(Mem::Buffer(from), at) = load else { return None };
        let buffer = &k.buffers[*from];
        let whole = lo.known() == Some(0) && hi.known()? as usize * buffer.dtype.bytes() == CHUNK;
        let plain = buffer.access == BufferAccess::Read && buffer.dtype == k.scratch[*to].dtype;
        (whole && plain).then_some(Chunk { from: (*from, next(at)?), to: (*to, next(index)?), only_if })
    }
}

/// Whether statements may copy chunks.
pub(super) fn has_chunks(k: &Kernel, body: &[Stmt]) -> bool {
    body.iter().any(|s| Chunk::new(k, s).is_some() || s.lists().into_iter().any(|b| has_chunks(k, b)))
}

/// The greatest multiple that matters.
const MULTIPLE: i64 = 1 << 20;

fn common(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { common(b, a % b) }
}

/// Whether each sixteen of a thread's elements are of 32 columns of the same rows: not where warps have other columns than by 32, as two have of 96.
fn by_pieces(shares: &[(String, String)]) -> bool {
    shares.len().is_multiple_of(16) && shares.chunks(16).all(|x| (0..4).all(|j| x[4 * j].0 == x[0].0))
}

impl Emitter<'_> {
    // --- copies ---

    /// A number that divides the index for certain.
    pub(super) fn multiple(&self, e: &Expr) -> i64 {
        if let Some(n) = e.known() {
            return if n == 0 { MULTIPLE } else { common(n.abs(), MULTIPLE) };
        }
        match e {
            Expr::Dim(i) => ir::divisor(&self.k.dims[*i]),
            Expr::Var(v) => self.multiples[v.0 as usize],
            Expr::Map(MapFn::Mul, args) => (self.multiple(&args[0]) * self.multiple(&args[1])).min(MULTIPLE),
            Expr::Map(MapFn::Add | MapFn::Sub | MapFn::Min | MapFn::Max | MapFn::Rem, args) => {
                common(self.multiple(&args[0]), self.multiple(&args[1]))
            }
            Expr::Map(MapFn::Select, args) => common(self.multiple(&args[1]), self.multiple(&args[2])),
            Expr::Const(..) | Expr::Load(..) | Expr::Map(..) | Expr::Cast(..) | Expr::Order(_) => 1,
        }
    }
    /// What is emitted where the chunks of these buffers begin at multiples of their size, and else.
    fn if_aligned(&mut self, buffers: &[usize], then: impl FnOnce(&mut Self), otherwise: impl FnOnce(&mut Self)) {
        let unsure = |i: &usize| self.k.buffers[*i].alignment % CHUNK as i64 != 0;
        let unsure: Vec<usize> = buffers.iter().copied().filter(unsure).collect();
        if unsure.is_empty() {
            return then(self);
        }
        self.simt_mut().copied.extend(unsure);
        self.w.line("scf.if %aligned {");
        self.inside(then);
        self.w.line("} else {");
        self.inside(otherwise);
        self.w.line("}");
    }
    /// Copies a chunk past the registers, if the buffers begin where that is possible; `false` if the statement is none.
    pub(super) fn copy_chunk(&mut self, s: &Stmt) -> bool {
        let k = self.k;
        let Some(simt) = self.simt.as_ref().filter(|t| t.machine == Machine::Gpu) else { return false };
        let Some(c) = Chunk::new(k, s) else { return false };
        let bytes = k.buffers[c.from.0].dtype.bytes() as i64;
        let aligned = [c.from.1, c.to.1].into_iter().all(|e| (self.multiple(e) * bytes) % CHUNK as i64 == 0);
        if !aligned || !simt.is_shared(Mem::Scratch(c.to.0)) {
            return false;
        }
        let copy = |e: &mut Self| {
            let dtype = k.buffers[c.from.0].dtype;
            let (to, from) = (e.expr(c.to.1), e.expr(c.from.1));
            let to = e.address(Mem::Scratch(c.to.0), &to, dtype);
            let from = e.address(Mem::Buffer(c.from.0), &from, dtype);
            let to = e.w.op(&format!("llvm.ptrtoint {to} : !llvm.ptr<3> to i32"));
            let size = e.w.int(CHUNK as i64, "i32");
            let size = match c.only_if {
                None => size,
                Some(cond) => {
                    let (cond, none) = (e.expr(cond), e.w.int(0, "i32"));
                    e.w.select(&cond, &size, &none, "i32")
                }
            };
            e.w.line(&format!(
                "llvm.inline_asm has_side_effects asm_dialect = att \"cp.async.cg.shared.global [$0], [$1], {CHUNK}, $2;\", \
                 \"r,l,r,~{{memory}}\" {to}, {from}, {size} : (i32, !llvm.ptr<1>, i32) -> ()"
            ));
        };
        self.if_aligned(&[c.from.0], copy, |e| e.loop_of(s));
        true
    }

    // --- held tiles ---

    /// The rows and columns of a thread's elements, by place.
    fn shares(&mut self, extents: [i64; 2]) -> Vec<(String, String)> {
        self.shares_of("%lane", extents)
    }
    fn shares_of(&mut self, lane: &str, [m, n]: [i64; 2]) -> Vec<(String, String)> {
        let (rows, cols): (Vec<(String, i64)>, Vec<(String, i64)>);
        if self.simt().on_tensor_cores() {
            let [row0, col0, tall, wide] = self.warp_tile([m, n]);
            let (four, two) = (self.w.int(4, "i64"), self.w.int(2, "i64"));
            let g = self.w.bin("divui", lane, &four, "i64");
            let q = self.w.bin("remui", lane, &four, "i64");
            let q = self.w.bin("muli", &q, &two, "i64");
            let (row0, col0) = (self.w.bin("addi", &row0.0, &g, "i64"), self.w.bin("addi", &col0.0, &q, "i64"));
            rows = (0..tall.1 / 8).map(|i| (row0.clone(), i * 8)).collect();
            cols = (0..wide.1 / 8).flat_map(|j| [(col0.clone(), j * 8), (col0.clone(), j * 8 + 1)]).collect();
            let [rows, cols] = [rows, cols].map(|list| list.into_iter().map(|(v, by)| self.plus(&v, by)).collect::<Vec<_>>());
            // By 16 rows, by 8 columns, then as mma.sync has them.
            let mut all = Vec::new();
            for i in (0..rows.len()).step_by(2) {
                for j in (0..cols.len()).step_by(2) {
                    all.extend([(i, j), (i, j + 1), (i + 1, j), (i + 1, j + 1)].map(|(i, j)| (rows[i].clone(), cols[j].clone())));
                }
            }
            return all;
        }
        let [down, across] = self.threads_of_tile();
        let width = self.w.int(across, "i64");
        let (ty, tx) = (self.w.bin("divui", "%tid", &width, "i64"), self.w.bin("remui", "%tid", &width, "i64"));
        rows = (0..m / down).map(|i| (ty.clone(), i * down)).collect();
        // What is read by chunks of terms is read by neighbouring lanes from neighbouring rows.
        let by_terms = self.simt().plan.swizzles.iter().any(Option::is_some);
        cols = if (n / across) % 4 == 0 && !by_terms {
            let four = self.w.int(4, "i64");
            let first = self.w.bin("muli", &tx, &four, "i64");
            (0..n / across).map(|j| (first.clone(), j / 4 * 4 * across + j % 4)).collect()
        } else {
            (0..n / across).map(|j| (tx.clone(), j * across)).collect()
        };
        let [rows, cols] = [rows, cols].map(|list| list.into_iter().map(|(v, by)| self.plus(&v, by)).collect::<Vec<_>>());
        rows.iter().flat_map(|r| cols.iter().map(|c| (r.clone(), c.clone()))).collect()
    }
    /// How many threads share the columns of a tile without tensor cores, and how many its rows: a thread has every so many-th.
    fn threads_of_tile(&self) -> [i64; 2] {
        let plan = &self.simt().plan;
        let across = i64::from(plan.threads).min(16).min(i64::from(plan.warp));
        [i64::from(plan.threads) / across, across]
    }
    /// The first row and column of this warp's part of a tile, and its extents.
    fn warp_tile(&mut self, [m, n]: [i64; 2]) -> [(String, i64); 4] {
        let warps = self.simt().plan.threads / self.simt().plan.warp;
        let by_rows = self.simt().plan.hopper.is_some() || self.simt().plan.held.row_loops.is_some();
        let grid = if by_rows { Some([i64::from(warps), 1]) } else { warp_grid([m, n], warps) };
        let [down, across] = grid.expect("the plan says that it fits");
        let (tall, wide) = (m / down, n / across);
        let count = self.w.int(across, "i64");
        let (i, j) = (self.w.bin("divui", "%warp", &count, "i64"), self.w.bin("remui", "%warp", &count, "i64"));
        let [row, col] = [(i, tall), (j, wide)].map(|(at, by)| {
            let by = self.w.int(by, "i64");
            self.w.bin("muli", &at, &by, "i64")
        });
        [(row, 0), (col, 0), (String::new(), tall), (String::new(), wide)]
    }
    pub(super) fn plus(&mut self, a: &str, n: i64) -> String {
        if n == 0 {
            return a.to_string();
        }
        let n = self.w.int(n, "i64");
        self.w.bin("addi", a, &n, "i64")
    }
    /// How many elements of a tile a thread holds.
    pub(super) fn num_held(&self, [m, n]: [i64; 2]) -> i64 {
        m * n / i64::from(self.simt().plan.threads)
    }
    /// The extents of the held tiles that statements touch.
    pub(super) fn held_by(&self, body: &[Stmt]) -> Option<[i64; 2]> {
        let access = Access::of(body);
        access.read.iter().chain(&access.written).find_map(|m| match m {
            Mem::Scratch(i) => self.simt().plan.held.tiles[*i].map(|h| h.extents),
            Mem::Buffer(_) => None,
        })
    }
    /// A loop over all elements of held tiles: each thread takes its own.
    pub(super) fn each_held(&mut self, var: VarId, extents: [i64; 2], body: &[Stmt]) {
        let mut found = Vec::new();
        reductions(body, &mut found);
        let partial = self.begin(found);
        // Places that tests ask for are found anew, so that they do not take registers where nothing is tested.
        let lane = match self.simt().plan.hopper {
            Some(_) if body.iter().any(|s| matches!(s, Stmt::Let(..))) => {
                self.w.op("llvm.inline_asm has_side_effects asm_dialect = att \"mov.b64 $0, $1;\", \"=l,l\" %lane : (i64) -> i64")
            }
            Some(_) | None => "%lane".to_string(),
        };
        let shares = self.shares_of(&lane, extents);
        self.natural[var.0 as usize] = true;
        if let Some(units) = units_of(body) {
            self.each_unit_held(var, (extents[1], units), shares, body);
            return self.gather(partial);
        }
        let columns = extents[1];
        let apart = loads_first(body);
        let row_slots = row_slots(&shares);
        if let Some(factor) = row_factor(body).filter(|m| self.simt().plan.held.rows[*m]) {
            // Most of the time there is nothing to scale.
            let one = self.w.float(1.0, "f32");
            let mut changes: Option<String> = None;
            for slot in 0..=row_slots.iter().copied().max().unwrap_or(0) {
                let p = self.held_address(factor, slot);
                let x = self.load(&p, "f32");
                let other = self.w.cmpf("une", &x, &one, "f32");
                changes = Some(changes.map_or(other.clone(), |c| self.w.bin("ori", &c, &other, "i1")));
            }
            self.w.line(&format!("scf.if {} {{", changes.expect("a thread has rows")));
            self.inside(|e| e.each_held_elem(var, columns, (shares, row_slots), body, (apart, &[])));
            self.w.line("}");
            return self.gather(partial);
        }
        let pieces = if apart { self.pieces(var, columns, &shares, body) } else { Vec::new() };
        if pieces.is_empty() {
            self.each_held_elem(var, columns, (shares, row_slots), body, (apart, &[]));
            return self.gather(partial);
        }
        let buffers: Vec<usize> = pieces.iter().map(|p| p.buffer).collect();
        let all = (shares.clone(), row_slots.clone());
        let wide = |e: &mut Self| e.each_held_elem(var, columns, all, body, (apart, &pieces));
        self.if_aligned(&buffers, wide, |e| e.each_held_elem(var, columns, (shares, row_slots), body, (apart, &[])));
        self.gather(partial);
    }
    /// A loop over first units: warp groups have all of a row, and a thread the same two neighbours of each eight columns.
    fn each_unit_held(&mut self, var: VarId, (columns, units): (i64, Units), shares: Vec<(String, String)>, body: &[Stmt]) {
        let (Units { unit, period, .. }, together) = (units, units.together());
        let across = columns / period * units.turns();
        let width = self.w.int(across, "i64");
        // Of the elements four, two of each of two rows, are of the same eight columns.
        let eight = |slot: usize| (slot as i64 / 4 * 8) % columns;
        let row_slots = row_slots(&shares);
        let is_first = |slot: &usize| eight(*slot) % period < unit && (*slot as i64) % together == 0;
        let own: Vec<usize> = (0..shares.len()).filter(is_first).collect();
        self.alone(|e| {
            for some in own.chunks(LOADED_AT_ONCE) {
                let mut stores: Vec<Vec<HeldStore>> = Vec::new();
                for slot in some {
                    let (row, col) = shares[*slot].clone();
                    let before = eight(*slot) / period;
                    let [turn, col] = [period, period - unit].map(|by| {
                        let at = e.plus(&col, -before * by);
                        let together = e.w.int(together, "i64");
                        if units.pairs { e.w.bin("divui", &at, &together, "i64") } else { at }
                    });
                    let first = e.w.bin("muli", &row, &width, "i64");
                    let at = e.w.bin("addi", &first, &col, "i64");
                    e.vars[var.0 as usize] = Slot::Value(at);
                    let number = e.w.int(before, "i64");
                    let of_unit = Some(Unit { turns: units.turns(), period: number, turn, further: 0 });
                    let elem = Elem { var, columns: across, row, col, slot: *slot, row_slot: row_slots[*slot], unit: of_unit };
                    e.simt_mut().elem = Some(elem);
                    stores.push(e.held_elem(body));
                }
                e.simt_mut().elem = None;
                e.store_held(&stores, some.len() < own.len());
            }
        });
    }
    /// The statements of the element at hand; what it stores, in order.
    fn held_elem(&mut self, body: &[Stmt]) -> Vec<HeldStore> {
        let mut own = Vec::new();
        for s in body {
            match s {
                Stmt::Store { mem, index, value } => own.push(self.held_store(*mem, index, value)),
                s => self.stmt(s, LoopKind::Serial),
            }
        }
        own
    }
    /// What an element stores.
    fn held_store(&mut self, mem: Mem, index: &Expr, value: &Expr) -> HeldStore {
        let dtype = self.k.mem_dtype(mem);
        let (value, at) = (self.expr(value), self.expr(index));
        self.go_to_unit(index);
        let held = matches!(mem, Mem::Scratch(i) if self.simt().held_slot(i).is_some());
        let to = self.address(mem, &at, dtype);
        HeldStore { value, to, dtype, space: self.pointer_type(mem), held }
    }
    /// Goes to the element of the unit that an index names.
    pub(super) fn go_to_unit(&mut self, index: &Expr) {
        let unit = self.simt.as_mut().and_then(|s| s.elem.as_mut()).and_then(|e| e.unit.as_mut());
        if let Some(unit) = unit {
            unit.further = index.as_in_unit().map_or(0, |(_, _, by)| (by / 8 * 4 + by % 8) as usize);
        }
    }
    /// The elements of a thread, one after the other.
    fn each_held_elem(
        &mut self,
        var: VarId,
        columns: i64,
        (shares, row_slots): (Vec<(String, String)>, Vec<usize>),
        body: &[Stmt],
        (apart, pieces): (bool, &[Piece]),
    ) {
        let width = self.w.int(columns, "i64");
        let mut loads = false;
        body.iter().for_each(|s| exprs(s, &mut |e| visit(e, &mut |e| loads |= matches!(e, Expr::Load(Mem::Buffer(_), _)))));
        // Where sums take most registers, what is loaded from buffers has some for a part of the elements at a time.
        let tight = self.simt().plan.hopper.is_some() && self.simt().plan.held.row_loops.is_none();
        // Scores that nobody needs any more leave registers for more, in attention that has a processor to itself.
        let few = shares.len() <= 2 * LOADED_AT_ONCE;
        let roomy = !tight && few && self.simt().plan.hopper.as_ref().is_some_and(|h| h.neighbours == 1);
        let at_once = match pieces.len() {
            0 if !(loads && tight) => shares.len().max(1),
            0 => LOADED_AT_ONCE,
            n if roomy => (4 * LOADED_AT_ONCE / n).max(16) / 16 * 16,
            _ => LOADED_AT_ONCE,
        };
        self.alone(|e| {
            let shares: Vec<(usize, (String, String))> = shares.into_iter().enumerate().collect();
            let count = shares.len();
            for some in shares.chunks(at_once) {
                let mut stores: Vec<Vec<HeldStore>> = Vec::new();
                let loaded: Vec<Vec<String>> =
                    pieces.iter().map(|p| e.load_pieces(p, (var, columns, &width), some, &row_slots, body)).collect();
                for (slot, (row, col)) in some {
                    let first = e.w.bin("muli", row, &width, "i64");
                    let at = e.w.bin("addi", &first, col, "i64");
                    e.vars[var.0 as usize] = Slot::Value(at);
                    let (row, col, row_slot) = (row.clone(), col.clone(), row_slots[*slot]);
                    e.simt_mut().elem = Some(Elem { var, columns, row, col, slot: *slot, row_slot, unit: None });
                    let mut own = Vec::new();
                    for s in body {
                        let piece = pieces.iter().position(|p| matches!(s, Stmt::Let(v, _) if *v == p.value));
                        match s {
                            Stmt::Let(v, _) if piece.is_some() => {
                                let loaded = &loaded[piece.expect("it is some")];
                                e.vars[v.0 as usize] = Slot::Value(loaded[slot - some[0].0].clone());
                            }
                            Stmt::Store { mem, index, value } if apart => own.push(e.held_store(*mem, index, value)),
                            s => e.stmt(s, LoopKind::Serial),
                        }
                    }
                    stores.push(own);
                }
                e.simt_mut().elem = None;
                e.store_held(&stores, some.len() < count);
            }
        });
    }
    /// What a loop over elements loads by sixteen bytes: operands of bf16 or f16 that the loop does not write, whose neighbours along a row are neighbours. On tensor cores.
    fn pieces(&self, var: VarId, columns: i64, shares: &[(String, String)], body: &[Stmt]) -> Vec<Piece> {
        if !self.simt().on_tensor_cores() || columns % 32 != 0 || !by_pieces(shares) {
            return Vec::new();
        }
        let lets: BTreeMap<VarId, &Expr> =
            body.iter().filter_map(|s| if let Stmt::Let(v, e) = s { Some((*v, e)) } else { None }).collect();
        let along = Along { var, columns, lets: &lets };
        let piece = |(v, e): (&VarId, &&Expr)| {
            let Expr::Load(Mem::Buffer(buffer), index) = e else { return None };
            let of = &self.k.buffers[*buffer];
            let narrow = matches!(of.dtype, DType::BF16 | DType::F16);
            // What other blocks write of it, this one does not look at.
            let stays = of.access != BufferAccess::Write && !Access::of(body).written.contains(&Mem::Buffer(*buffer));
            let first = along.start(index).filter(|_| narrow && stays)?;
            let by = CHUNK as i64 / of.dtype.bytes() as i64;
            let aligned = first.iter().all(|e| along.multiple(self, e) % by == 0);
            let mut needs = Vec::new();
            first.iter().for_each(|e| along.needs(e, &mut needs));
            aligned.then_some(Piece { value: *v, buffer: *buffer, first, needs })
        };
        lets.iter().filter_map(piece).collect()
    }
    /// The elements of a piece that a thread has of these places, loaded by sixteen bytes: of 32 columns each of the four lanes of a row loads eight neighbours,
    /// which they exchange as [`Self::put_pieces`] does.
    fn load_pieces(
        &mut self,
        p: &Piece,
        (var, columns, width): (VarId, i64, &str),
        some: &[(usize, (String, String))],
        row_slots: &[usize],
        body: &[Stmt],
    ) -> Vec<String> {
        let dtype = self.k.buffers[p.buffer].dtype;
        let mut values = vec![String::new(); some.len()];
        for first in (0..some.len()).step_by(16) {
            for down in [0, 2] {
                let (slot, (row, col)) = &some[first + down];
                let (start, three, six) = (self.w.bin("muli", row, width, "i64"), self.w.int(3, "i64"), self.w.int(6, "i64"));
                let at = self.w.bin("addi", &start, col, "i64");
                self.vars[var.0 as usize] = Slot::Value(at);
                let row_slot = row_slots[*slot];
                let elem = Elem { var, columns, row: row.clone(), col: col.clone(), slot: *slot, row_slot, unit: None };
                self.simt_mut().elem = Some(elem);
                for s in body.iter().filter(|s| matches!(s, Stmt::Let(v, _) if p.needs.contains(v))) {
                    self.stmt(s, LoopKind::Serial);
                }
                let place = self.w.bin("andi", "%lane", &three, "i64");
                let by = self.w.bin("muli", &place, &six, "i64");
                let mut index = self.w.bin("addi", col, &by, "i64");
                for e in &p.first {
                    let by = self.expr(e);
                    index = self.w.bin("addi", &index, &by, "i64");
                }
                self.simt_mut().elem = None;
                let from = self.address(Mem::Buffer(p.buffer), &index, dtype);
                let space = self.pointer_type(Mem::Buffer(p.buffer));
                let v = self.w.op(&format!("llvm.load {from} {{alignment = 16 : i64}} : {space} -> vector<4xi32>"));
                let mut x: Vec<String> = Vec::new();
                for j in 0..4 {
                    let at = self.w.int(j, "i32");
                    x.push(self.w.op(&format!("llvm.extractelement {v}[{at} : i32] : vector<4xi32>")));
                }
                let bits = self.place_bits();
                self.exchange_four(&mut x, &bits);
                let ty = memory_type(dtype);
                for (j, pair) in x.into_iter().enumerate() {
                    let pair = self.w.op(&format!("llvm.bitcast {pair} : i32 to vector<2x{ty}>"));
                    for i in 0..2 {
                        let at = self.w.int(i as i64, "i32");
                        let v = self.w.op(&format!("llvm.extractelement {pair}[{at} : i32] : vector<2x{ty}>"));
                        values[first + 4 * j + down + i] = self.w.widen(v, dtype);
                    }
                }
            }
        }
        values
    }
    /// Of a lane's place among four the bits: whether each is set.
    fn place_bits(&mut self) -> [String; 2] {
        let (one, two, zero) = (self.w.int(1, "i64"), self.w.int(2, "i64"), self.w.int(0, "i64"));
        [one, two].map(|bit| {
            let of_lane = self.w.bin("andi", "%lane", &bit, "i64");
            self.w.cmpi("ne", &of_lane, &zero, "i64")
        })
    }
    /// Of four lanes each has four registers: afterwards lane `i` has in register `j` what lane `j` had in register `i`.
    fn exchange_four(&mut self, x: &mut [String], bits: &[String; 2]) {
        for (bit, apart) in [(0, 1), (1, 2)] {
            for low in (0..4).filter(|j| j & apart == 0) {
                let high = low + apart;
                let gives = self.w.select(&bits[bit], &x[low], &x[high], "i32");
                let gets = self.swap(&gives, apart);
                x[low] = self.w.select(&bits[bit], &gets, &x[low], "i32");
                x[high] = self.w.select(&bits[bit], &x[high], &gets, "i32");
            }
        }
    }
    /// What elements store; of neighbours two narrow ones at once. With `first`, nothing is loaded before that is there.
    fn store_held(&mut self, stores: &[Vec<HeldStore>], first: bool) {
        let narrow = |s: &HeldStore| s.held && matches!(s.dtype, DType::BF16 | DType::F16);
        let mut all: Vec<(String, &HeldStore, &str)> = Vec::new();
        if self.simt().on_tensor_cores() && stores.iter().flatten().all(narrow) {
            for two in stores.chunks(2) {
                for (low, high) in two[0].iter().zip(&two[1]) {
                    let ty = if low.dtype == DType::BF16 { "bf16" } else { "f16" };
                    all.push((self.packed(&[low.value.clone(), high.value.clone()], ty), low, "i32"));
                }
            }
        } else {
            for s in stores.iter().flatten() {
                all.push((self.w.narrow(s.value.clone(), s.dtype), s, memory_type(s.dtype)));
            }
        }
        let kind = all.first().map_or("f32", |(_, _, ty)| *ty);
        if first
            && self.simt().machine == Machine::Gpu
            && matches!(kind, "f32" | "i32")
            && all.iter().all(|(_, _, ty)| *ty == kind)
        {
            let (count, letter) = (all.len(), if kind == "f32" { "f" } else { "r" });
            let outs = vec![format!("={letter}"); count].join(",");
            let ins = (0..count).map(|i| i.to_string()).collect::<Vec<_>>().join(",");
            let types = vec![kind; count].join(", ");
            let values = all.iter().map(|(v, ..)| v.as_str()).collect::<Vec<_>>().join(", ");
            let there = self.w.op(&format!(
                "llvm.inline_asm has_side_effects asm_dialect = att \"\", \"{outs},{ins},~{{memory}}\" {values} : ({types}) -> \
                 !llvm.struct<({types})>"
            ));
            for (i, (v, ..)) in all.iter_mut().enumerate() {
                *v = self.w.op(&format!("llvm.extractvalue {there}[{i}] : !llvm.struct<({types})>"));
            }
        }
        for (value, s, ty) in all {
            let aligned = if ty == "i32" { " {alignment = 2 : i64}" } else { "" };
            self.w.line(&format!("llvm.store {value}, {}{aligned} : {ty}, {}", s.to, s.space));
        }
    }

    /// A loop over the rows of held tiles: the lanes that share a row take it together, each its columns.
    pub(super) fn each_row_held(&mut self, var: VarId, rows: i64, body: &[Stmt]) {
        let (lanes, threads) = (self.simt().plan.row_lanes, self.simt().plan.threads);
        let count = rows / i64::from(threads / lanes);
        // Any tile of these rows has the same.
        let extents = [rows, 16];
        let mut values: Vec<String> = Vec::new();
        for (row, _) in self.shares(extents) {
            if !values.contains(&row) {
                values.push(row);
            }
        }
        debug_assert_eq!(values.len() as i64, count, "each thread's rows");
        self.natural[var.0 as usize] = true;
        self.simt_mut().team = Team::Lanes(lanes);
        for (slot, value) in values.into_iter().enumerate() {
            self.vars[var.0 as usize] = Slot::Value(value);
            self.simt_mut().row = Some(Row { rows, slot });
            body.iter().for_each(|s| self.stmt(s, LoopKind::Serial));
        }
        self.simt_mut().row = None;
        self.simt_mut().team = Team::Block;
    }
    /// A loop over the columns of a row.
    pub(super) fn each_column_held(&mut self, var: VarId, columns: i64, body: &[Stmt]) {
        let row = self.simt().row.clone().expect("a loop over rows is around it");
        let mut found = Vec::new();
        reductions(body, &mut found);
        let partial = self.begin(found);
        let chains = self.chains(&partial);
        let shares = self.shares([row.rows, columns]);
        let row_slots = row_slots(&shares);
        self.natural[var.0 as usize] = true;
        self.alone(|e| {
            let own = shares.into_iter().enumerate().filter(|(slot, _)| row_slots[*slot] == row.slot);
            for (i, (slot, (value, col))) in own.enumerate() {
                for (v, places) in &chains {
                    e.vars[v.0 as usize] = Slot::Memory(places[i % CHAINS].clone());
                }
                e.vars[var.0 as usize] = Slot::Value(col.clone());
                let (var, row_slot) = (VarId(u32::MAX), row.slot);
                e.simt_mut().elem = Some(Elem { var, columns, row: value, col, slot, row_slot, unit: None });
                body.iter().for_each(|s| e.stmt(s, LoopKind::Serial));
            }
            e.simt_mut().elem = None;
        });
        self.join_chains(chains, &partial);
        self.gather(partial);
    }
    /// For each reduction places for terms that do not wait for each other.
    fn chains(&mut self, partial: &[(VarId, ReduceFn, String)]) -> Vec<(VarId, Vec<String>)> {
        let mut all = Vec::new();
        for (v, f, _) in partial {
            let (ty, first) = (self.type_of(*v), self.place(*v));
            let nothing = self.constant(neutral(*f), self.k.vars[v.0 as usize]);
            let mut places = vec![first];
            for _ in 1..CHAINS {
                let p = self.slot(ty);
                self.store(&nothing, &p, ty);
                places.push(p);
            }
            all.push((*v, places));
        }
        all
    }
    /// Puts what [`Self::chains`] gave together in pairs.
    fn join_chains(&mut self, chains: Vec<(VarId, Vec<String>)>, partial: &[(VarId, ReduceFn, String)]) {
        for ((v, places), (_, f, _)) in chains.into_iter().zip(partial) {
            let ty = self.type_of(v);
            let mut values: Vec<String> = places.iter().map(|p| self.load(p, ty)).collect();
            while values.len() > 1 {
                values = values.chunks(2).map(|x| self.combine(*f, &x[0], &x[1], ty, false)).collect();
            }
            self.store(&values[0], &places[0], ty);
            self.vars[v.0 as usize] = Slot::Memory(places[0].clone());
        }
    }
    /// Elements of a held tile into a buffer. On tensor cores two neighbours go at once.
    pub(super) fn put(&mut self, c: &Copy) {
        let Some((buffer, scratch)) = c.sides() else { base::bug!("a copy to a buffer in {}", self.k.name) };
        let dtype = self.k.buffers[buffer].dtype;
        let axes: Vec<[String; 3]> = c.axes.iter().map(|a| [&a.extent, &a.stride, &a.at].map(|e| self.expr(e))).collect();
        // Runs of rows go along one more axis.
        let runs = usize::from(c.run != c.rows);
        let (outer, own) = axes.split_at(axes.len() - 2 - runs);
        let (run_axis, [row_axis, col_axis]) = own.split_at(runs) else { base::bug!("a copy of two axes") };
        let mut base: Option<String> = None;
        let mut inside: Option<String> = None;
        for [extent, stride, at] in outer {
            let within = self.w.cmpi("ult", at, extent, "i64");
            inside = Some(inside.map_or(within.clone(), |x| self.w.op(&format!("arith.andi {x}, {within} : i1"))));
            let by = self.w.bin("muli", at, stride, "i64");
            base = Some(match base {
                Some(b) => self.w.bin("addi", &b, &by, "i64"),
                None => by,
            });
        }
        let pairs = self.simt().on_tensor_cores() && matches!(dtype, DType::F32 | DType::BF16 | DType::F16);
        let shares = self.shares([c.rows, c.cols]);
        let mut rows: BTreeMap<String, [String; 2]> = BTreeMap::new();
        let mut cols: BTreeMap<String, [String; 2]> = BTreeMap::new();
        for (row, col) in &shares {
            if !rows.contains_key(row) {
                let mut places = vec![(row_axis, row.clone())];
                for axis in run_axis {
                    let run = self.w.int(c.run, "i64");
                    places =
                        vec![(row_axis, self.w.bin("remui", row, &run, "i64")), (axis, self.w.bin("divui", row, &run, "i64"))];
                }
                let (mut start, mut all) = (base.clone(), inside.clone());
                for ([extent, stride, at], by) in places {
                    let i = self.w.bin("addi", at, &by, "i64");
                    let within = self.w.cmpi("ult", &i, extent, "i64");
                    all = Some(all.map_or(within.clone(), |x| self.w.op(&format!("arith.andi {x}, {within} : i1"))));
                    let by = self.w.bin("muli", &i, stride, "i64");
                    start = Some(start.map_or(by.clone(), |b| self.w.bin("addi", &b, &by, "i64")));
                }
                let place = start.zip(all).expect("a row has a place");
                rows.insert(row.clone(), [place.0, place.1]);
            }
            if !cols.contains_key(col) {
                let [extent, _, at] = col_axis;
                let i = self.w.bin("addi", at, col, "i64");
                let within = self.w.cmpi("ult", &i, extent, "i64");
                cols.insert(col.clone(), [i, within]);
            }
        }
        let held = self.simt().plan.held.tiles[scratch].is_some();
        if !held {
            base::bug!("a copy of what is not held in {}", self.k.name);
        }
        if pairs && dtype != DType::F32 && c.cols % 32 == 0 && by_pieces(&shares) {
            // A thread whose elements are all inside asks once.
            let all = rows.values().chain(cols.values()).map(|[_, w]| w.clone()).collect::<Vec<_>>();
            let all = all.into_iter().reduce(|a, b| self.w.op(&format!("arith.andi {a}, {b} : i1"))).expect("it has elements");
            return self.put_pieces(buffer, scratch, dtype, &shares, [&rows, &cols], (&col_axis[0], &all));
        }
        let step = if pairs { 2 } else { 1 };
        for slot in (0..shares.len()).step_by(step) {
            let (row, col) = &shares[slot];
            let ([start, row_in], [i, col_in]) = (&rows[row], &cols[col]);
            let within = self.w.op(&format!("arith.andi {row_in}, {col_in} : i1"));
            let from = self.k.scratch[scratch].dtype;
            let values: Vec<String> = (slot..slot + step)
                .map(|slot| {
                    let p = self.held_address(scratch, slot);
                    let v = self.w.op(&format!("llvm.load {p} : !llvm.ptr -> {}", memory_type(from)));
                    let v = self.w.widen(v, from);
                    self.w.narrow(v, dtype)
                })
                .collect();
            let index = self.w.bin("addi", start, i, "i64");
            // What is constant in the place the instruction adds.
            let (first, further) = self.w.parts(&index);
            let further = further * dtype.bytes() as i64;
            let near = first.filter(|_| i32::try_from(further).is_ok());
            let (index, further) = near.map_or((index, 0), |first| (first, further));
            let to = (self.address(Mem::Buffer(buffer), &index, dtype), further);
            let ty = memory_type(dtype);
            match (&values[..], dtype) {
                ([v], _) => self.store_if(&within, &to, &[v], ty),
                ([a, b], DType::F32) => self.store_if(&within, &to, &[a, b], ty),
                _ => {
                    let mut pair = self.w.op(&format!("llvm.mlir.undef : vector<2x{ty}>"));
                    for (i, v) in values.iter().enumerate() {
                        let at = self.w.int(i as i64, "i32");
                        pair = self.w.op(&format!("llvm.insertelement {v}, {pair}[{at} : i32] : vector<2x{ty}>"));
                    }
                    let pair = self.w.op(&format!("llvm.bitcast {pair} : vector<2x{ty}> to i32"));
                    self.store_if(&within, &to, &[&pair], "i32");
                }
            }
        }
    }
    /// Neighbouring values of a type to a buffer, so many bytes after an address, at once, if a condition holds. On a GPU an instruction has a condition of its
    /// own, so that nothing branches.
    fn store_if(&mut self, within: &str, (to, further): &(String, i64), values: &[&str], ty: &str) {
        let kind = match ty {
            "f32" => Some(("f", "b32")),
            "i32" => Some(("r", "b32")),
            "f64" => Some(("d", "b64")),
            _ => None,
        };
        match (self.simt().machine, kind) {
            (Machine::Gpu, Some((letter, bits))) => {
                let list = (0..values.len()).map(|i| format!("${}", i + 2)).collect::<Vec<_>>().join(", ");
                let (vector, list) = match values.len() {
                    1 => (String::new(), list),
                    n => (format!(".v{n}"), format!("{{{list}}}")),
                };
                let constraints = format!("b,l{}", format!(",{letter}").repeat(values.len()));
                let types = format!("i1, !llvm.ptr<1>{}", format!(", {ty}").repeat(values.len()));
                let text = format!("@$0 st.global{vector}.{bits} [$1+{further}], {list};");
                self.asm(&text, &constraints, &format!("{within}, {to}, {}", values.join(", ")), &types);
            }
            _ => {
                let pointer = if self.simt().machine == Machine::Gpu { "!llvm.ptr<1>" } else { "!llvm.ptr" };
                self.w.line(&format!("scf.if {within} {{"));
                self.inside(|e| {
                    let first = e.w.op(&format!("llvm.getelementptr {to}[{further}] : ({pointer}) -> {pointer}, i8"));
                    for (i, v) in values.iter().enumerate() {
                        let to = e.w.op(&format!("llvm.getelementptr {first}[{i}] : ({pointer}) -> {pointer}, {ty}"));
                        e.w.line(&format!("llvm.store {v}, {to} : {ty}, {pointer}"));
                    }
                });
                self.w.line("}");
            }
        }
    }

    /// Elements of a held tile into a buffer of bf16 or f16, sixteen bytes at once: of 32 columns, the four lanes that have two neighbours of each eight
    /// exchange them so that each has eight neighbours.
    fn put_pieces(
        &mut self,
        buffer: usize,
        scratch: usize,
        dtype: DType,
        shares: &[(String, String)],
        [rows, cols]: [&BTreeMap<String, [String; 2]>; 2],
        (columns, all): (&str, &str),
    ) {
        let (from, ty) = (self.k.scratch[scratch].dtype, if dtype == DType::BF16 { "bf16" } else { "f16" });
        let bits = self.place_bits();
        let mut pieces = Vec::new();
        for first in (0..shares.len()).step_by(16) {
            for down in [0, 2] {
                let mut x: Vec<String> = (0..4)
                    .map(|j| {
                        let at = first + 4 * j + down;
                        if from == dtype {
                            let p = self.held_address(scratch, at);
                            return self.w.op(&format!("llvm.load {p} {{alignment = 2 : i64}} : !llvm.ptr -> i32"));
                        }
                        let pair: Vec<String> = (0..2)
                            .map(|i| {
                                let p = self.held_address(scratch, at + i);
                                let v = self.w.op(&format!("llvm.load {p} : !llvm.ptr -> {}", memory_type(from)));
                                self.w.widen(v, from)
                            })
                            .collect();
                        self.packed(&pair, ty)
                    })
                    .collect();
                self.exchange_four(&mut x, &bits);
                pieces.push((first, down, x));
            }
        }
        // A lane has the eight columns that its place among the four says; a pair's columns begin at twice that.
        let store = |e: &mut Self, (first, down, x): &(usize, usize, Vec<String>), asks: bool| {
            let (row, col) = &shares[first + down];
            let ([start, row_in], [i, _]) = (&rows[row], &cols[col]);
            let (three, six) = (e.w.int(3, "i64"), e.w.int(6, "i64"));
            let place = e.w.bin("andi", "%lane", &three, "i64");
            let by = e.w.bin("muli", &place, &six, "i64");
            let i = e.w.bin("addi", i, &by, "i64");
            if asks {
                // Columns are inside by eights: if the first is.
                let within = e.w.cmpi("ult", &i, columns, "i64");
                let within = e.w.op(&format!("arith.andi {row_in}, {within} : i1"));
                e.w.line(&format!("scf.if {within} {{"));
            }
            e.inside(|e| {
                let index = e.w.bin("addi", start, &i, "i64");
                let to = e.address(Mem::Buffer(buffer), &index, dtype);
                let space = e.pointer_type(Mem::Buffer(buffer));
                let mut v = e.w.op("llvm.mlir.undef : vector<4xi32>");
                for (j, x) in x.iter().enumerate() {
                    let at = e.w.int(j as i64, "i32");
                    v = e.w.op(&format!("llvm.insertelement {x}, {v}[{at} : i32] : vector<4xi32>"));
                }
                e.w.line(&format!("llvm.store {v}, {to} {{alignment = 16 : i64}} : vector<4xi32>, {space}"));
            });
            if asks {
                e.w.line("}");
            }
        };
        self.w.line(&format!("scf.if {all} {{"));
        self.inside(|e| pieces.iter().for_each(|p| store(e, p, false)));
        self.w.line("} else {");
        self.inside(|e| pieces.iter().for_each(|p| store(e, p, true)));
        self.w.line("}");
    }
    /// Two of f32 as two of a narrow float in one register.
    pub(super) fn packed(&mut self, pair: &[String], ty: &str) -> String {
        let mut v = self.w.op("llvm.mlir.undef : vector<2xf32>");
        for (i, x) in pair.iter().enumerate() {
            let at = self.w.int(i as i64, "i32");
            v = self.w.op(&format!("llvm.insertelement {x}, {v}[{at} : i32] : vector<2xf32>"));
        }
        let v = self.w.op(&format!("llvm.fptrunc {v} : vector<2xf32> to vector<2x{ty}>"));
        self.w.op(&format!("llvm.bitcast {v} : vector<2x{ty}> to i32"))
    }
    /// What the lane whose number differs by this bit has.
    pub(super) fn swap(&mut self, x: &str, bit: usize) -> String {
        let [all, bit, last] = [-1, bit as i64, 31].map(|n| self.w.int(n, "i32"));
        self.w.op(&format!(
            "llvm.call_intrinsic \"llvm.nvvm.shfl.sync.bfly.i32\"({all}, {x}, {bit}, {last}) : (i32, i32, i32, i32) -> i32"
        ))
    }

    // --- products ---

    /// A product that is [`Tiled`].
    pub(super) fn tile_product(&mut self, d: &Dot) {
        let t = Tiled::new(self.k, d).unwrap_or_else(|| base::bug!("a product in {} is not expanded", self.k.name));
        let [m, n, _] = t.extents;
        let shares = self.shares([m, n]);
        let held = self.simt().plan.held.tiles[t.c.scratch].is_some();
        let places: Vec<String> = (0..shares.len())
            .map(|slot| {
                let (row, col) = &shares[slot];
                if held { self.held_address(t.c.scratch, slot) } else { self.matrix_address(&t.c, row, col) }
            })
            .collect();
        let space = self.pointer_type(Mem::Scratch(t.c.scratch));
        let zero = self.w.float(0.0, "f32");
        let first: Vec<String> = places
            .iter()
            .map(|p| if d.accumulate { self.w.op(&format!("llvm.load {p} : {space} -> f32")) } else { zero.clone() })
            .collect();
        let sums = if self.simt().on_tensor_cores() { self.mma(&t, first) } else { self.fma(&t, &shares, first) };
        for (sum, p) in sums.iter().zip(&places) {
            self.w.line(&format!("llvm.store {sum}, {p} : f32, {space}"));
        }
    }
    /// Where a thread has an element that it holds.
    pub(super) fn held_address(&mut self, scratch: usize, slot: usize) -> String {
        let p = pointer(Mem::Scratch(scratch));
        let ty = memory_type(self.k.scratch[scratch].dtype);
        self.w.op(&format!("llvm.getelementptr inbounds {p}[{slot}] : (!llvm.ptr) -> !llvm.ptr, {ty}"))
    }
    fn matrix_address(&mut self, x: &Matrix, row: &str, col: &str) -> String {
        let [row, col] = [(row, x.row), (col, x.col)].map(|(at, by)| {
            let by = self.w.int(by, "i64");
            self.w.bin("muli", at, &by, "i64")
        });
        let index = self.w.bin("addi", &row, &col, "i64");
        self.address(Mem::Scratch(x.scratch), &index, self.k.scratch[x.scratch].dtype)
    }
    fn matrix_element(&mut self, x: &Matrix, row: &str, col: &str) -> String {
        let p = self.matrix_address(x, row, col);
        let (dtype, space) = (self.k.scratch[x.scratch].dtype, self.pointer_type(Mem::Scratch(x.scratch)));
        let v = self.w.op(&format!("llvm.load {p} : {space} -> {}", memory_type(dtype)));
        self.w.widen(v, dtype)
    }
    /// By what the places of the elements in a chunk are changed ([`Swizzle`]), from the place of one.
    pub(super) fn swizzle_of(&mut self, s: Swizzle, index: &str) -> String {
        let [shift, mask, two] = [s.shift, s.mask, 2].map(|n| self.w.int(n, "i64"));
        let by = self.w.bin("shrui", index, &shift, "i64");
        let by = self.w.bin("andi", &by, &mask, "i64");
        self.w.bin("shli", &by, &two, "i64")
    }
    /// Of a matrix that is permuted, where rows from one on, so far apart, have the chunk of terms from `l` on; `rows` is the elements of one.
    fn chunks(&mut self, scratch: usize, elems: i64, rows: &[&String], apart: i64, l: &str) -> Vec<String> {
        let s = self.simt().plan.swizzles[scratch].expect("it is permuted");
        let (ty, pointer) = (memory_type(DType::F32), self.pointer_type(Mem::Scratch(scratch)));
        let base = self::pointer(Mem::Scratch(scratch));
        let elems_of = self.w.int(elems, "i64");
        let mut first = String::new();
        let mut out = Vec::new();
        for (i, row) in rows.iter().enumerate() {
            // Rows a multiple of eight apart are permuted alike.
            if i == 0 || apart % 8 != 0 {
                let start = self.w.bin("muli", row, &elems_of, "i64");
                let by = self.swizzle_of(s, &start);
                let at = self.w.bin("xori", l, &by, "i64");
                let at = self.w.bin("addi", &start, &at, "i64");
                first = self.w.op(&format!("llvm.getelementptr inbounds {base}[{at}] : ({pointer}, i64) -> {pointer}, {ty}"));
                out.push(first.clone());
            } else {
                let by = i as i64 * apart * elems;
                out.push(self.w.op(&format!("llvm.getelementptr inbounds {first}[{by}] : ({pointer}) -> {pointer}, {ty}")));
            }
        }
        let load = |p: &String| self.w.op(&format!("llvm.load {p} {{alignment = 16 : i64}} : {pointer} -> vector<4xf32>"));
        out.iter().map(load).collect()
    }
    /// If the terms of an operand are read by chunks: the elements of one of its rows.
    fn by_chunks(&self, x: &Matrix, terms: i64, other: i64) -> Option<i64> {
        (terms == 1 && self.simt().plan.swizzles[x.scratch].is_some()).then_some(other)
    }
    /// Each thread for its elements, term after term.
    fn fma(&mut self, t: &Tiled, shares: &[(String, String)], first: Vec<String>) -> Vec<String> {
        let mut rows: Vec<&String> = shares.iter().map(|s| &s.0).collect();
        rows.dedup();
        let width = shares.len() / rows.len();
        let cols: Vec<&String> = shares[..width].iter().map(|s| &s.1).collect();
        let (sums, l) = (self.w.fresh(), self.w.fresh());
        let old: Vec<String> = first.iter().map(|_| self.w.fresh()).collect();
        let pairs: Vec<String> = old.iter().zip(&first).map(|(a, f)| format!("{a} = {f}")).collect();
        let types = vec!["f32"; first.len()].join(", ");
        let chunked = [self.by_chunks(&t.a, t.a.col, t.a.row), self.by_chunks(&t.b, t.b.row, t.b.col)];
        let chunked = if t.extents[2] % Swizzle::CHUNK == 0 { chunked } else { [None; 2] };
        let turn = if chunked == [None; 2] { 1 } else { Swizzle::CHUNK };
        let [down, across] = self.threads_of_tile();
        let [zero, one, k] = [0, turn, t.extents[2]].map(|n| self.w.int(n, "i64"));
        let (count, pairs) = (first.len(), pairs.join(", "));
        self.w.line(&format!("{sums}:{count} = scf.for {l} = {zero} to {k} step {one} iter_args({pairs}) -> ({types}) : i64 {{"));
        self.inside(|e| {
            let chunks = [(&t.a, &rows, down), (&t.b, &cols, across)];
            let [left, right] = [0, 1].map(|i| {
                let (x, places, apart) = chunks[i];
                chunked[i].map_or(Vec::new(), |elems| e.chunks(x.scratch, elems, places, apart, &l))
            });
            let mut new = old.clone();
            for term in 0..turn {
                let l = e.plus(&l, term);
                let place = e.w.int(term, "i64");
                let of_chunk =
                    |e: &mut Self, chunk: &String| e.w.op(&format!("llvm.extractelement {chunk}[{place} : i64] : vector<4xf32>"));
                let b: Vec<String> = match right.is_empty() {
                    true => cols.iter().map(|c| e.matrix_element(&t.b, &l, c)).collect(),
                    false => right.iter().map(|chunk| of_chunk(e, chunk)).collect(),
                };
                for (i, r) in rows.iter().enumerate() {
                    let a = if left.is_empty() { e.matrix_element(&t.a, r, &l) } else { of_chunk(e, &left[i]) };
                    (0..width).for_each(|j| new[i * width + j] = e.w.muladd(&a, &b[j], &new[i * width + j], "f32"));
                }
            }
            e.w.line(&format!("scf.yield {} : {types}", new.join(", ")));
        });
        self.w.line("}");
        (0..count).map(|s| if count == 1 { sums.clone() } else { format!("{sums}#{s}") }).collect()
    }
    /// On tensor cores.
    fn mma(&mut self, t: &Tiled, mut sums: Vec<String>) -> Vec<String> {
        let [m, n, k] = t.extents;
        let [row0, col0, tall, wide] = self.warp_tile([m, n]);
        let ty = if self.k.scratch[t.a.scratch].dtype == DType::BF16 { "bf16" } else { "f16" };
        // Matrices of eight by eight: which of them a lane gives the address of, and which row.
        let [one, seven, three, four] = [1, 7, 3, 4].map(|n| self.w.int(n, "i64"));
        let inner = self.w.bin("andi", "%lane", &seven, "i64");
        let bit3 = self.w.bin("shrui", "%lane", &three, "i64");
        let bit3 = self.w.bin("andi", &bit3, &one, "i64");
        let bit4 = self.w.bin("shrui", "%lane", &four, "i64");
        let [bit3, bit4, inner] = [(bit3, 8), (bit4, 8), (inner, 1)].map(|(x, by)| {
            let by = self.w.int(by, "i64");
            self.w.bin("muli", &x, &by, "i64")
        });
        // a: rows of the tile by bit 3, terms by bit 4; b: terms by bit 3, columns by bit 4. Where the neighbours are along the first of these, the row
        // inside a matrix is along the second.
        let a_turned = t.a.col != 1;
        let (ai, al) = if a_turned {
            (bit3.clone(), self.w.bin("addi", &bit4, &inner, "i64"))
        } else {
            (self.w.bin("addi", &bit3, &inner, "i64"), bit4.clone())
        };
        let b_turned = t.b.row != 1;
        let (bl, bj) = if b_turned {
            (self.w.bin("addi", &bit3, &inner, "i64"), bit4)
        } else {
            (bit3, self.w.bin("addi", &bit4, &inner, "i64"))
        };
        let ai = self.w.bin("addi", &row0.0, &ai, "i64");
        let bj = self.w.bin("addi", &col0.0, &bj, "i64");
        let a_start = self.shared_address(&t.a, &ai, &al);
        let b_start = self.shared_address(&t.b, &bl, &bj);
        let atoms = [tall.1 / 16, wide.1 / 8];
        for l in (0..k).step_by(16) {
            let a: Vec<[String; 4]> =
                (0..atoms[0]).map(|i| self.ldmatrix(&a_start, 2 * (i * 16 * t.a.row + l * t.a.col), a_turned)).collect();
            for pair in 0..atoms[1] / 2 {
                let b = self.ldmatrix(&b_start, 2 * (l * t.b.row + pair * 16 * t.b.col), b_turned);
                for (i, a) in a.iter().enumerate() {
                    for half in 0..2 {
                        let at = (i * atoms[1] as usize + pair as usize * 2 + half) * 4;
                        let b = &b[2 * half..2 * half + 2];
                        let operands = [a.as_slice(), b, &sums[at..at + 4]].concat().join(", ");
                        let all = self.w.op(&format!(
                            "llvm.inline_asm has_side_effects asm_dialect = att \
                             \"mma.sync.aligned.m16n8k16.row.col.f32.{ty}.{ty}.f32 {{$0,$1,$2,$3}}, {{$4,$5,$6,$7}}, {{$8,$9}}, {{$10,$11,$12,$13}};\", \
                             \"=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f\" {operands} : (i32, i32, i32, i32, i32, i32, f32, f32, f32, f32) -> \
                             !llvm.struct<(f32, f32, f32, f32)>"
                        ));
                        for (e, sum) in sums[at..at + 4].iter_mut().enumerate() {
                            *sum = self.w.op(&format!("llvm.extractvalue {all}[{e}] : !llvm.struct<(f32, f32, f32, f32)>"));
                        }
                    }
                }
            }
        }
        sums
    }
    fn shared_address(&mut self, x: &Matrix, row: &str, col: &str) -> String {
        let p = self.matrix_address(x, row, col);
        self.w.op(&format!("llvm.ptrtoint {p} : !llvm.ptr<3> to i32"))
    }
    /// Four matrices of eight by eight, `bytes` after the lane's address.
    fn ldmatrix(&mut self, start: &str, bytes: i64, turned: bool) -> [String; 4] {
        let turned = if turned { ".trans" } else { "" };
        let all = self.w.op(&format!(
            "llvm.inline_asm has_side_effects asm_dialect = att \"ldmatrix.sync.aligned.m8n8.x4{turned}.shared.b16 \
             {{$0,$1,$2,$3}}, [$4+{bytes}];\", \"=r,=r,=r,=r,r,~{{memory}}\" {start} : (i32) -> !llvm.struct<(i32, i32, i32, i32)>"
        ));
        [0, 1, 2, 3].map(|i| self.w.op(&format!("llvm.extractvalue {all}[{i}] : !llvm.struct<(i32, i32, i32, i32)>")))
    }
}

/// If a loop over elements multiplies each by what there is one of for its row: that memory.
fn row_factor(body: &[Stmt]) -> Option<usize> {
    let [Stmt::Store { mem, index, value: Expr::Map(MapFn::Mul, args) }] = body else { return None };
    match &args[..] {
        [Expr::Load(own, at), Expr::Load(Mem::Scratch(factor), row)] if own == mem && **at == *index => {
            matches!(&**row, Expr::Map(MapFn::FloorDiv, a) if a[0] == *index).then_some(*factor)
        }
        _ => None,
    }
}

/// For each share the place of its row among the thread's rows.
fn row_slots(shares: &[(String, String)]) -> Vec<usize> {
    let mut rows: Vec<&String> = Vec::new();
    let mut place = |row| {
        rows.iter().position(|r| *r == row).unwrap_or_else(|| {
            rows.push(row);
            rows.len() - 1
        })
    };
    shares.iter().map(|(row, _)| place(row)).collect()
}

/// Whether all that turns load may be loaded before any of them stores: simple statements, none of which reads what one before stored.
pub(crate) fn loads_first(body: &[Stmt]) -> bool {
    let mut stored = Vec::new();
    body.iter().all(|s| {
        let mut fits = true;
        exprs(s, &mut |e| {
            visit(e, &mut |e| {
                if let Expr::Load(mem, _) = e {
                    fits &= !stored.contains(mem);
                }
            });
        });
        match s {
            Stmt::Store { mem, .. } => stored.push(*mem),
            Stmt::Let(..) | Stmt::Accumulate(..) => {}
            Stmt::Var(..)
            | Stmt::Assign(..)
            | Stmt::For { .. }
            | Stmt::While { .. }
            | Stmt::If { .. }
            | Stmt::Dot(_)
            | Stmt::Copy(_) => fits = false,
        }
        fits
    })
}
