//! Kernels as code that every thread of a block runs: for a GPU, or for threads of the host that stand for its threads, by which tests
//! follow what a GPU would do.
//!
//! Statements belong to a [`Team`]: all threads of a block, some lanes of a warp, or one thread. What is not in a spread loop every thread
//! of the team computes for itself, with the same result, so that control flow is the same; stores there are one thread's. A vector loop is
//! spread: thread `r` of `n` takes turns `lo + r`, `lo + r + n`, …, and its body is one thread's. What it accumulates starts from nothing
//! in each thread; after it, or after the outermost loop around it that does nothing else with the variable, the lanes of each warp combine in pairs, by halves, and then the warps in order, so that every thread has the same bits
//! in every run.
//!
//! Between a write and a read or another write of the same memory, and between a read and a write, the team waits, as soon as a statement
//! is about to do so; at the head of a loop all that its body does counts as done. Memories are told apart, elements are not.

use super::{
    Emitter, Slot,
    convert::memory_type,
    hopper::Turn,
    host_function, pointer,
    reduce::reductions,
    text::{Helper, without_unused},
    tiles::{Elem, Row, has_chunks},
    trig,
};
use crate::gpu::{
    access::{Access, each_expr, expr_uses, exprs, visit},
    hopper::weighs,
    lines,
    plan::{GroupSum, Place, Plan, Team, is_row_loop, widest},
    rows::{Online, read_once},
    unit::{Units, is_arithmetic, times_alone},
};
use base::DType;
use graph::op::{MapFn, ReduceFn};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};
use tile::{Expr, Kernel, LoopKind, Mem, Stmt, VarId, ir};

/// What runs the threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Machine {
    /// A GPU.
    Gpu,
    /// Functions of the host: one that waits, and one that exchanges values.
    Emulated,
}

/// The threads that run what is emitted.
pub(super) struct Simt {
    pub(super) machine: Machine,
    pub(super) plan: Plan,
    pub(super) team: Team,
    /// The element of held tiles that a thread is at.
    pub(super) elem: Option<Elem>,
    /// The row of held tiles that it is at.
    pub(super) row: Option<Row>,
    /// The buffers of which chunks are copied past the registers.
    pub(super) copied: BTreeSet<usize>,
    /// Whether there may be such copies.
    copies: bool,
    /// Where it is in the rings of copies.
    pub(super) turn: Turn,
    /// What the team did since it last waited.
    pub(super) since: Access,
    /// Whether the memory of reductions was read since.
    pub(super) combined: bool,
    /// The variables of which each thread has a part.
    pub(super) partial: Vec<VarId>,
    /// The turns that a thread takes at once, if they are aligned, and which of them is emitted.
    at_once: Option<(Units, usize)>,
    /// Of a row that is read once: whether all memories begin aligned.
    aligned_row: Option<bool>,
    /// Whether the teams of a warp do the same at once.
    pub(super) in_step: bool,
    /// Values that each warp passes to the others at once, at most.
    pub(super) passed: usize,
    /// Values that each block of a cluster has passed to the others for a row, and reductions that did; and the most of any row.
    pub(super) told: (usize, usize),
    pub(super) most_told: usize,
    /// Whether the turns at hand are there, where a thread may have none left.
    pub(super) there: Option<String>,
}

impl Simt {
    /// Whether more than one thread runs the statement at hand.
    pub(super) fn is_team(&self) -> bool {
        self.team != Team::Thread
    }
    pub(super) fn pointer_type(&self, mem: Mem) -> &'static str {
        match (self.machine, mem) {
            (Machine::Emulated, _) => "!llvm.ptr",
            (Machine::Gpu, Mem::Buffer(_)) => "!llvm.ptr<1>",
            (Machine::Gpu, Mem::Scratch(i)) => match self.plan.places[i] {
                Place::Shared(_) => "!llvm.ptr<3>",
                Place::Workspace(_) => "!llvm.ptr<1>",
                Place::Thread | Place::Held => "!llvm.ptr",
                Place::Ring => "!llvm.ptr<3>",
            },
        }
    }
    /// What an access is aligned to, if that is more than its element. # Units: bytes.
    pub(super) fn alignment(&self, k: &Kernel, mem: Mem, index: &Expr) -> Option<usize> {
        let (units, turn) = self.at_once.as_ref()?;
        let bytes = k.mem_dtype(mem).bytes();
        let starts = (turn * bytes).is_multiple_of(units.alignment(bytes));
        (starts && units.touches(mem, index)).then(|| units.alignment(bytes))
    }
    /// Of a bf16 that one of several turns loads, which is half of a word with that of a neighbouring turn: whether it is the upper half, and what the word
    /// is aligned to. # Units: bytes.
    pub(super) fn half_of_word(&self, k: &Kernel, mem: Mem, index: &Expr) -> Option<(bool, usize)> {
        let (units, turn) = self.at_once.as_ref()?;
        let alignment = units.alignment(2);
        let starts = (turn / 2 * 4).is_multiple_of(alignment);
        (k.mem_dtype(mem) == DType::BF16 && units.touches(mem, index))
            .then_some((turn % 2 == 1, if starts { alignment } else { 4 }))
    }
    /// Whether what a row's loops read there is the same in all of them, which is said where they stand one after the other.
    pub(super) fn is_constant(&self, k: &Kernel, mem: Mem) -> bool {
        let read = |i: usize| k.buffers[i].access == ir::Access::Read;
        self.aligned_row == Some(true) && self.machine == Machine::Gpu && matches!(mem, Mem::Buffer(i) if read(i))
    }
    /// Whether products are `mma.sync`, and what goes with them as exact as that.
    pub(super) fn on_tensor_cores(&self) -> bool {
        self.machine == Machine::Gpu && self.plan.tensor
    }
    pub(super) fn is_ring(&self, scratch: usize) -> bool {
        self.plan.places[scratch] == Place::Ring
    }
    pub(super) fn is_shared(&self, mem: Mem) -> bool {
        matches!(mem, Mem::Scratch(i) if matches!(self.plan.places[i], Place::Shared(_)))
    }
    /// The place of the element at hand among those that a thread holds of a memory.
    pub(super) fn held_slot(&self, scratch: usize) -> Option<usize> {
        if self.plan.held.rows[scratch] {
            return self.elem.as_ref().map(|e| e.row_slot).or(self.row.as_ref().map(|r| r.slot));
        }
        self.plan.held.tiles[scratch].and(self.elem.as_ref()).map(|e| e.slot + e.unit.as_ref().map_or(0, |u| u.further))
    }
    /// The row or the column of the element at hand, where that is asked for.
    pub(super) fn part_of_elem(&self, f: MapFn, args: &[Expr]) -> Option<String> {
        let e = self.elem.as_ref()?;
        if let (Some(u), [of, by]) = (&e.unit, args)
            && by.known() == Some(u.turns)
        {
            let period = *of == Expr::rem(Expr::Var(e.var), Expr::int(e.columns));
            match f {
                MapFn::Rem if *of == Expr::Var(e.var) => return Some(u.turn.clone()),
                MapFn::FloorDiv if period => return Some(u.period.clone()),
                _ => {}
            }
        }
        let asked = args.first() == Some(&Expr::Var(e.var)) && args.get(1)?.known() == Some(e.columns);
        match f {
            MapFn::FloorDiv if asked => Some(e.row.clone()),
            MapFn::Rem if asked => Some(e.col.clone()),
            _ => None,
        }
    }
    pub(super) fn shared_pointer(&self) -> &'static str {
        match self.machine {
            Machine::Gpu => "!llvm.ptr<3>",
            Machine::Emulated => "!llvm.ptr",
        }
    }
    fn workspace_pointer(&self) -> &'static str {
        match self.machine {
            Machine::Gpu => "!llvm.ptr<1>",
            Machine::Emulated => "!llvm.ptr",
        }
    }
    fn size(&self) -> u32 {
        match self.team {
            Team::Block => self.plan.threads * self.plan.cluster,
            Team::Lanes(n) => n,
            Team::Thread => 1,
        }
    }
    /// Whether the turns at hand are there, if that is not certain.
    pub(super) fn there(&self) -> Option<&String> {
        self.there.as_ref()
    }
}

/// Whether a kernel compares floats or makes whole numbers of them: there the least difference may become a step.
fn has_steps(k: &Kernel) -> bool {
    let mut found = false;
    let is_float = |e: &Expr| k.expr_dtype(e).is_float();
    each_expr(&k.body, &mut |e| {
        found |= match e {
            Expr::Map(MapFn::Floor | MapFn::Sign, _) => true,
            Expr::Map(MapFn::Eq | MapFn::Ne | MapFn::Lt | MapFn::Le, args) => is_float(&args[0]),
            Expr::Map(..) => false,
            Expr::Cast(to, x) => !to.is_float() && is_float(x),
            Expr::Order(_) => true,
            Expr::Const(..) | Expr::Dim(_) | Expr::Var(_) | Expr::Load(..) => false,
        };
    });
    found
}

/// The variables of which nothing is made but what is stored as a narrow float.
fn only_for_halves(k: &Kernel) -> Vec<bool> {
    let (mut made, mut fine) = (BTreeMap::new(), Vec::new());
    look_for_uses(k, &k.body, &mut made, &mut fine);
    let mut coarse = vec![false; k.vars.len()];
    made.keys().for_each(|v: &VarId| coarse[v.0 as usize] = true);
    while let Some(e) = fine.pop() {
        visit(&e, &mut |e| {
            if let Expr::Var(v) = e
                && std::mem::replace(&mut coarse[v.0 as usize], false)
            {
                fine.extend(made.get(v).cloned());
            }
        });
    }
    coarse
}

/// What immutable variables are made of, and what else there is but values that are stored as narrow floats.
fn look_for_uses(k: &Kernel, body: &[Stmt], made: &mut BTreeMap<VarId, Expr>, fine: &mut Vec<Expr>) {
    for s in body {
        match s {
            Stmt::Let(v, e) => {
                made.insert(*v, e.clone());
            }
            Stmt::Store { mem, index, .. } if matches!(k.mem_dtype(*mem), DType::BF16 | DType::F16) => fine.push(index.clone()),
            s => exprs(s, &mut |e| fine.push(e.clone())),
        }
        s.lists().into_iter().for_each(|body| look_for_uses(k, body, made, fine));
    }
}

/// A kernel's function, to be put into a module.
pub(crate) struct Function {
    /// Its text, and what stands with it.
    pub text: String,
    /// Shared memory that its reductions take. # Units: bytes.
    pub reductions: usize,
    helpers: BTreeSet<Helper>,
    has_lines: bool,
}

/// The function of a kernel without products, number `i` of all that may be in a module with it.
pub(crate) fn function(i: usize, (k, plan): (&Kernel, &Plan), marks: &BTreeMap<VarId, usize>, machine: Machine) -> Function {
    let mut e = Emitter::new(k);
    let has_lines = lines::is_of_several(marks);
    if has_lines {
        e.marks.clone_from(marks);
    }
    e.w.place = e.marks.get(&VarId(0)).copied();
    e.w.gpu = machine == Machine::Gpu;
    e.w.pairs = e.w.gpu && plan.hopper.is_none();
    // Gradients of attention have no register to spare for places that are told apart so.
    e.w.linear = plan.hopper.is_none() || plan.held.row_loops.is_some() || !weighs(&plan.body);
    let mut written = k.buffers.iter().filter(|b| b.access != ir::Access::Read).peekable();
    let halves = written.peek().is_some() && written.all(|b| matches!(b.dtype, DType::BF16 | DType::F16));
    let coarse = e.w.gpu && !has_steps(k);
    e.w.narrow = coarse && halves;
    if coarse && !halves {
        e.coarse = only_for_halves(k);
    }
    e.simt = Some(Simt {
        machine,
        plan: plan.clone(),
        team: Team::Block,
        elem: None,
        row: None,
        copied: BTreeSet::new(),
        copies: machine == Machine::Gpu && plan.rows.is_none() && has_chunks(k, &plan.body),
        turn: Turn::default(),
        since: Access::default(),
        combined: false,
        partial: Vec::new(),
        at_once: None,
        aligned_row: None,
        in_step: false,
        passed: 0,
        told: (0, 0),
        most_told: 0,
        there: None,
    });
    let (text, reductions) = e.threads(i);
    Function { text, reductions, helpers: e.w.helpers, has_lines }
}

/// The module of some functions.
pub(crate) fn functions_module(functions: &[&Function], machine: Machine) -> String {
    let mut out = String::from(if functions.iter().any(|f| f.has_lines) { lines::HEAD } else { "" });
    out.push_str("module {\n");
    if machine == Machine::Gpu {
        out.push_str(
            "  llvm.mlir.global external @lode_shared() {addr_space = 3 : i32, alignment = 128 : i64} : !llvm.array<0 x i8>\n",
        );
    }
    functions.iter().for_each(|f| out.push_str(&f.text));
    let helpers: BTreeSet<Helper> = functions.iter().flat_map(|f| f.helpers.iter().copied()).collect();
    for helper in helpers {
        match (machine, helper) {
            (Machine::Gpu, Helper::Sin) => out.push_str(&trig::gpu_function("sin")),
            (Machine::Gpu, Helper::Cos) => out.push_str(&trig::gpu_function("cos")),
            (Machine::Gpu, Helper::Erf | Helper::Log1p) => base::bug!("{helper:?} on a GPU"),
            (Machine::Emulated, _) => out.push_str(&host_function(helper)),
        }
    }
    out.push_str("}\n");
    out
}

impl Emitter<'_> {
    pub(super) fn simt(&self) -> &Simt {
        self.simt.as_ref().expect("it is for threads")
    }
    pub(super) fn simt_mut(&mut self) -> &mut Simt {
        self.simt.as_mut().expect("it is for threads")
    }

    /// The function that every thread runs, the `i`th of its module, and the bytes of shared memory for its reductions.
    fn threads(&mut self, i: usize) -> (String, usize) {
        let k = self.k;
        let plan = self.simt().plan.clone();
        match &plan.rows {
            Some(rows) => {
                self.stmts(&plan.body, LoopKind::Serial);
                self.rows(rows);
            }
            None if plan.hopper.is_some() => self.warp_groups(&plan.body),
            None => self.blocks(&plan.body, |e| e.stmts(&plan.body, LoopKind::Serial)),
        }
        let body = self.w.take();
        // What blocks tell each other lies behind what warps do.
        let reductions = self.told_begin() + self.simt().most_told * plan.cluster as usize * 8;
        self.prologue(&plan, reductions);
        let statements = without_unused(&[self.w.head.as_str(), &self.w.out, &body].concat());
        let args = self.arguments(&plan);
        let shared = if reductions > 0 && self.simt().machine == Machine::Gpu {
            format!(
                "  llvm.mlir.global internal @{}_sums() {{addr_space = 3 : i32, alignment = 16 : i64}} : !llvm.array<{reductions} x i8>\n",
                k.name
            )
        } else {
            String::new()
        };
        let attributes = match self.simt().machine {
            Machine::Gpu => {
                let (blocks, threads) = (plan.neighbours(k), plan.launched());
                let cluster = match plan.clustered() {
                    1 => String::new(),
                    n => format!(", nvvm.cluster_dim = array<i32: {n}, 1, 1>"),
                };
                format!(
                    " attributes {{nvvm.kernel, nvvm.maxntid = array<i32: {threads}>, nvvm.minctasm = {blocks} : i32{cluster}}}"
                )
            }
            Machine::Emulated => String::new(),
        };
        let own = self.marks.get(&VarId(0));
        let mark = own.map_or(String::new(), |mark| format!("  {}{mark}\n", lines::MARK));
        let lines = own.map_or(String::new(), |_| lines::subprogram(i, &k.name));
        (
            format!("{shared}{mark}  llvm.func @{}({args}){attributes} {{\n{statements}    llvm.return\n  }}{lines}\n", k.name),
            reductions,
        )
    }

    fn arguments(&self, plan: &Plan) -> String {
        let k = self.k;
        if self.simt().machine == Machine::Emulated {
            return "%buffers: !llvm.ptr, %dims: !llvm.ptr, %thread: !llvm.ptr".into();
        }
        let all: Vec<Stmt> = plan.body.iter().chain(plan.rows.iter().flat_map(|r| &r.body)).cloned().collect();
        let access = Access::of(&all);
        let alone = plan.rows.as_ref().is_some_and(|r| r.team == Team::Thread);
        let buffer = |(i, b): (usize, &ir::Buffer)| {
            let mem = Mem::Buffer(i);
            let (read, written) = (access.read.contains(&mem), access.written.contains(&mem));
            // What a thread writes and another reads must not be taken for this thread's alone.
            let noalias = if alone || !(read && written) { "llvm.noalias, " } else { "" };
            let readonly = if written { "" } else { "llvm.readonly, " };
            format!("%b{i}: !llvm.ptr<1> {{{noalias}{readonly}llvm.align = {} : i64}}", b.dtype.bytes())
        };
        let buffers = k.buffers.iter().enumerate().map(buffer);
        let dims = (0..k.dims.len()).map(|i| format!("%d{i}: i64"));
        let rest = ["%grid: i64".to_string(), "%workspace: !llvm.ptr<1>".to_string()];
        let maps = plan.hopper.as_ref().map_or(0, |h| h.maps.len());
        let attributes = "llvm.byval = !llvm.array<128 x i8>, llvm.align = 64 : i64, nvvm.grid_constant";
        let maps = (0..maps).map(|i| format!("%map{i}: !llvm.ptr {{{attributes}}}"));
        buffers.chain(dims).chain(rest).chain(maps).collect::<Vec<_>>().join(", ")
    }

    /// What each thread finds out first: who it is, and where its memory is.
    fn prologue(&mut self, plan: &Plan, reductions: usize) {
        let k = self.k;
        match self.simt().machine {
            Machine::Gpu => {
                for (name, register) in [("tid", "tid.x"), ("ctaid", "ctaid.x"), ("nctaid", "nctaid.x")] {
                    self.w.line(&format!("%{name}_i32 = nvvm.read.ptx.sreg.{register} : i32"));
                    self.w.line(&format!("%{name} = arith.extui %{name}_i32 : i32 to i64"));
                }
                if plan.shared_bytes > 0 || plan.hopper.is_some() {
                    self.w.line("%shared = llvm.mlir.addressof @lode_shared : !llvm.ptr<3>");
                }
                if reductions > 0 {
                    self.w.line(&format!("%sums = llvm.mlir.addressof @{}_sums : !llvm.ptr<3>", k.name));
                }
            }
            Machine::Emulated => {
                let passed = [("%buffers", "b", k.buffers.len(), "!llvm.ptr"), ("%dims", "d", k.dims.len(), "i64")];
                for (from, name, count, ty) in passed {
                    for i in 0..count {
                        self.field(from, i, &format!("{name}{i}"), ty);
                    }
                }
                for (i, (name, ty)) in THREAD.iter().enumerate() {
                    self.field("%thread", i, name, ty);
                }
            }
        }
        if plan.workspace_bytes > 0 {
            let (ty, bytes) = (self.simt().workspace_pointer(), self.w.int(plan.workspace_bytes as i64, "i64"));
            self.w.line(&format!("%own_workspace = arith.muli %ctaid, {bytes} : i64"));
            self.w.line(&format!("%own = llvm.getelementptr %workspace[%own_workspace] : ({ty}, i64) -> {ty}, i8"));
        }
        if plan.cluster > 1 {
            let [threads, blocks] = [plan.threads, plan.cluster].map(|n| self.w.int(i64::from(n), "i64"));
            self.w.line(&format!("%in_cluster = arith.remui %ctaid, {blocks} : i64"));
            let before = self.w.bin("muli", "%in_cluster", &threads, "i64");
            self.w.line(&format!("%thread_of_cluster = arith.addi {before}, %tid : i64"));
            self.w.line(&format!("%cluster = arith.divui %ctaid, {blocks} : i64"));
            self.w.line(&format!("%clusters = arith.divui %nctaid, {blocks} : i64"));
            let (ty, told) = (self.simt().shared_pointer(), self.told_begin());
            self.w.line(&format!("%told = llvm.getelementptr %sums[{told}] : ({ty}) -> {ty}, i8"));
        }
        let warp = self.w.int(i64::from(plan.warp), "i64");
        self.w.line(&format!("%lane = arith.remui %tid, {warp} : i64"));
        self.w.line(&format!("%warp = arith.divui %tid, {warp} : i64"));
        let mut shared = "%shared".to_string();
        if plan.teams > 1 && plan.shared_bytes > 0 {
            let (ty, bytes) = (self.simt().shared_pointer(), self.w.int((plan.shared_bytes / plan.teams as usize) as i64, "i64"));
            let before = self.w.bin("muli", "%warp", &bytes, "i64");
            shared = self.w.op(&format!("llvm.getelementptr %shared[{before}] : ({ty}, i64) -> {ty}, i8"));
        }
        for (i, place) in plan.places.iter().enumerate() {
            let elems = self.w.int(k.scratch[i].elems.max(1) as i64, "i64");
            let (ty, element) = (self.simt().pointer_type(Mem::Scratch(i)), memory_type(k.scratch[i].dtype));
            let p = pointer(Mem::Scratch(i));
            match place {
                Place::Shared(at) => self.w.line(&format!("{p} = llvm.getelementptr {shared}[{at}] : ({ty}) -> {ty}, i8")),
                Place::Workspace(at) => self.w.line(&format!("{p} = llvm.getelementptr %own[{at}] : ({ty}) -> {ty}, i8")),
                Place::Ring => {}
                Place::Thread => {
                    let _ = writeln!(self.w.head, "    {p} = llvm.alloca {elems} x {element} : (i64) -> !llvm.ptr");
                }
                Place::Held => {
                    let elems = match plan.held.tiles[i] {
                        Some(h) => self.num_held(h.extents),
                        None => k.scratch[i].elems as i64 / i64::from(plan.threads / plan.row_lanes),
                    };
                    let elems = self.w.int(elems, "i64");
                    let _ = writeln!(self.w.head, "    {p} = llvm.alloca {elems} x {element} : (i64) -> !llvm.ptr");
                }
            }
        }
        let copied: Vec<usize> = self.simt().copied.iter().copied().collect();
        if !copied.is_empty() {
            let mut bits: Option<String> = None;
            for i in copied {
                let address = self.w.op(&format!("llvm.ptrtoint %b{i} : !llvm.ptr<1> to i64"));
                bits = Some(match bits {
                    None => address,
                    Some(before) => self.w.bin("ori", &before, &address, "i64"),
                });
            }
            let (mask, zero) = (self.w.int(15, "i64"), self.w.int(0, "i64"));
            let low = self.w.bin("andi", &bits.expect("a buffer"), &mask, "i64");
            self.w.line(&format!("%aligned = arith.cmpi eq, {low}, {zero} : i64"));
        }
        if plan.hopper.is_some() {
            self.rings_begin(plan.shared_bytes);
        }
    }
    /// Field `i` of what is passed at an address.
    fn field(&mut self, from: &str, i: usize, name: &str, ty: &str) {
        self.w.line(&format!("%at_{name} = llvm.getelementptr {from}[{i}] : (!llvm.ptr) -> !llvm.ptr, i64"));
        self.w.line(&format!("%{name} = llvm.load %at_{name} : !llvm.ptr -> {ty}"));
    }

    // --- the grid ---

    /// Blocks of the tile program, as many apart as there are blocks of threads.
    pub(super) fn blocks(&mut self, body: &[Stmt], inside: impl FnOnce(&mut Self)) {
        // Warp groups that weigh what products gave and fill a processor have no register to spare. A tile that they make is kilobytes, so no memory has
        // as many as i32 counts.
        let plan = &self.simt().plan;
        let alone = plan.hopper.as_ref().is_some_and(|h| h.neighbours == 1) && plan.held.row_loops.is_some();
        let narrow = alone && self.simt().machine == Machine::Gpu;
        let block = self.w.fresh();
        self.natural[0] = true;
        if narrow {
            let grid = self.w.op("arith.trunci %grid : i64 to i32");
            self.w.line(&format!("scf.for {block} = %ctaid_i32 to {grid} step %nctaid_i32 : i32 {{"));
        } else {
            self.w.line(&format!("scf.for {block} = %ctaid to %grid step %nctaid : i64 {{"));
        }
        self.inside(|e| {
            let block = if narrow { e.w.op(&format!("arith.extui {block} : i32 to i64")) } else { block };
            e.vars[0] = Slot::Value(block);
            // What scratch held for the last block may still be read.
            e.simt_mut().since = scratch_only(Access::of(body));
            e.simt_mut().combined = true;
            inside(e);
        });
        self.w.line("}");
    }
    /// Rows, dealt out over the teams of the grid.
    fn rows(&mut self, rows: &crate::gpu::plan::Rows) {
        let threads = i64::from(self.simt().plan.threads);
        let count = self.expr(&rows.count);
        let (first, step) = match rows.team {
            Team::Block if self.simt().plan.cluster > 1 => {
                // Nobody writes to a block that is not there yet.
                self.wait();
                ("%cluster".to_string(), "%clusters".to_string())
            }
            Team::Block => ("%ctaid".to_string(), "%nctaid".to_string()),
            Team::Lanes(_) | Team::Thread => {
                let lanes = if let Team::Lanes(n) = rows.team { i64::from(n) } else { 1 };
                let (threads, teams) = (self.w.int(threads, "i64"), self.w.int(threads / lanes, "i64"));
                let before = self.w.bin("muli", "%ctaid", &threads, "i64");
                let first = self.w.bin("addi", &before, "%tid", "i64");
                let lanes = self.w.int(lanes, "i64");
                (self.w.bin("divui", &first, &lanes, "i64"), self.w.bin("muli", "%nctaid", &teams, "i64"))
            }
        };
        if rows.team != Team::Block {
            // What the block wrote its teams read.
            self.wait_before(&Access::of(&rows.body));
            self.simt_mut().since = Access::default();
        }
        self.natural[rows.var.0 as usize] = true;
        if rows.team == Team::Thread {
            let zero = self.w.int(0, "i64");
            let few = i64::from(self.simt().plan.warp);
            let known = (rows.count.known(), [few, 4 * few], None);
            let multiples = [&Expr::int(0), &rows.count].map(|e| self.multiple(e));
            return self.alone(|e| e.turns(rows.var, ([&zero, &count], multiples), [&first, &step], known, &rows.body));
        }
        let size = if let Team::Lanes(n) = rows.team { n } else { self.simt().size() };
        let Some(mems) = read_once(self.k, &rows.body, i64::from(size)) else {
            return self.each_row(rows, [&first, &count, &step]);
        };
        let unsure: Vec<Mem> = mems.into_iter().filter(|m| self.begins_at(*m) % ALIGNED != 0).collect();
        if unsure.is_empty() {
            self.simt_mut().aligned_row = Some(true);
            self.each_row(rows, [&first, &count, &step]);
            self.simt_mut().aligned_row = None;
            return;
        }
        let starts = unsure.into_iter().map(|m| (m, self.w.int(0, "i64"))).collect();
        let aligned = self.starts_are_aligned(starts, |_| ALIGNED as usize);
        let before = (self.simt().since.clone(), self.simt().combined);
        self.w.line(&format!("scf.if {aligned} {{"));
        self.simt_mut().aligned_row = Some(true);
        self.inside(|e| e.each_row(rows, [&first, &count, &step]));
        self.w.line("} else {");
        (self.simt_mut().since, self.simt_mut().combined) = before;
        self.simt_mut().aligned_row = Some(false);
        self.inside(|e| e.each_row(rows, [&first, &count, &step]));
        self.w.line("}");
        self.simt_mut().aligned_row = None;
    }
    /// Rows from the first on.
    fn each_row(&mut self, rows: &crate::gpu::plan::Rows, [first, count, step]: [&str; 3]) {
        let row = self.w.fresh();
        self.vars[rows.var.0 as usize] = Slot::Value(row.clone());
        self.w.line(&format!("scf.for {row} = {first} to {count} step {step} : i64 {{"));
        self.inside(|e| {
            let simt = e.simt_mut();
            simt.team = rows.team;
            // What scratch held for the last row may still be read.
            simt.since.join(&scratch_only(Access::of(&rows.body)));
            // Blocks of a cluster wait for each other after each reduction.
            simt.combined |= rows.team == Team::Block && simt.plan.cluster == 1;
            simt.told = (0, 0);
            let mut rest = &rows.body[..];
            while let Some((s, after)) = rest.split_first() {
                if e.simt().aligned_row.is_none()
                    && let Some(o) = Online::of(rest)
                    && e.online(&o)
                {
                    rest = &rest[3..];
                    continue;
                }
                e.stmt(s, LoopKind::Serial);
                rest = after;
            }
            // Where two blocks reduce once a row, one may tell what it has of the next before the other has read this.
            if e.simt().told.1 == 1 {
                e.wait();
            }
        });
        self.w.line("}");
        self.simt_mut().team = Team::Block;
    }

    // --- teams ---

    /// A statement of several threads.
    pub(super) fn team_stmt(&mut self, s: &Stmt) {
        let mut own = Vec::new();
        exprs(s, &mut |e| own.push(e.clone()));
        let mut access = Access::of_exprs(&own);
        match s {
            Stmt::Let(v, e) => {
                self.wait_before(&access);
                self.bind(*v, e);
            }
            Stmt::Var(v, e) => {
                self.wait_before(&access);
                let value = self.expr(e);
                let ty = self.type_of(*v);
                let p = self.slot(ty);
                self.store(&value, &p, ty);
                self.vars[v.0 as usize] = Slot::Memory(p);
            }
            Stmt::Assign(v, e) => {
                self.wait_before(&access);
                let value = self.expr(e);
                let p = self.place(*v);
                self.store(&value, &p, self.type_of(*v));
            }
            Stmt::Accumulate(v, f, e) => {
                self.wait_before(&access);
                self.accumulate(*v, *f, e, LoopKind::Serial);
            }
            Stmt::Store { mem, .. } => {
                access.written.insert(*mem);
                self.wait_before(&access);
                if matches!(mem, Mem::Scratch(i) if self.simt().plan.held.rows[*i]) {
                    return self.alone(|e| e.stmt(s, LoopKind::Serial));
                }
                self.first_thread(|e| e.stmt(s, LoopKind::Serial));
            }
            Stmt::For { var, lo, hi, kind, body } => {
                if *kind == LoopKind::Vector {
                    if self.simt().row.is_some()
                        && let Some(columns) = hi.known()
                    {
                        access.join(&Access::of(body));
                        self.wait_before(&access);
                        return self.each_column_held(*var, columns, body);
                    }
                    let held = &self.simt().plan.held;
                    if self.simt().team == Team::Block
                        && let Some(rows) = held.row_loops.filter(|r| is_row_loop(held, Some(*r), hi, body))
                    {
                        access.join(&Access::of(body));
                        self.wait_before(&access);
                        return self.each_row_held(*var, rows, body);
                    }
                    if self.simt().team == Team::Block
                        && let Some(g) = GroupSum::of(&self.simt().plan.held, *var, hi, body)
                    {
                        access.join(&Access::of(body));
                        self.wait_before(&access);
                        return self.each_group_held(*var, &g, body);
                    }
                    if self.simt().team == Team::Block
                        && let Some(extents) = self.held_by(body)
                    {
                        access.join(&Access::of(body));
                        self.wait_before(&access);
                        return self.each_held(*var, extents, body);
                    }
                    if let Some(lanes) = self.row_lanes(lo, hi, body) {
                        access.join(&Access::of(body));
                        self.wait_before(&access);
                        return self.rows_of_block(*var, [lo, hi], lanes, body);
                    }
                    if self.is_spread(lo, hi, body) {
                        access.join(&Access::of(body));
                        self.wait_before(&access);
                        return self.spread(*var, lo, hi, body);
                    }
                }
                self.wait_before(&access);
                self.natural[var.0 as usize] = self.not_negative(lo);
                let (lo, hi) = (self.expr(lo), self.expr(hi));
                let (i, one) = (self.w.fresh(), self.w.int(1, "i64"));
                self.vars[var.0 as usize] = Slot::Value(i.clone());
                let deferred = self.deferred(body);
                let partial = self.begin(deferred);
                let turns = |e: &mut Self| {
                    e.w.line(&format!("scf.for {i} = {lo} to {hi} step {one} : i64 {{"));
                    e.repeated(&Access::of(body), |e| e.inside(|e| e.stmts(body, LoopKind::Serial)));
                    e.w.line("}");
                };
                if self.simt().plan.hopper.is_some() {
                    self.loop_of_products(*var, body, turns);
                } else {
                    turns(self);
                }
                self.gather(partial);
            }
            Stmt::While { cond, body } => {
                let mut all = Access::of(body);
                all.join(&access);
                self.w.line("scf.while : () -> () {");
                self.repeated(&all, |e| {
                    e.inside(|e| {
                        e.wait_before(&access);
                        let c = e.expr(cond);
                        e.w.line(&format!("scf.condition({c})"));
                    });
                    e.w.line("} do {");
                    e.inside(|e| {
                        e.stmts(body, LoopKind::Serial);
                        e.w.line("scf.yield");
                    });
                });
                self.w.line("}");
            }
            Stmt::If { cond, then, otherwise } => {
                self.wait_before(&access);
                let c = self.expr(cond);
                self.w.line(&format!("scf.if {c} {{"));
                let before = (self.simt().since.clone(), self.simt().combined);
                self.inside(|e| e.stmts(then, LoopKind::Serial));
                let after = std::mem::replace(&mut self.simt_mut().since, before.0);
                let combined = std::mem::replace(&mut self.simt_mut().combined, before.1);
                if !otherwise.is_empty() {
                    self.w.line("} else {");
                    self.inside(|e| e.stmts(otherwise, LoopKind::Serial));
                }
                self.simt_mut().since.join(&after);
                self.simt_mut().combined |= combined;
                self.w.line("}");
            }
            Stmt::Dot(d) => {
                access.join(&Access::of(std::slice::from_ref(s)));
                self.wait_before(&access);
                self.tile_product(d);
            }
            Stmt::Copy(c) => {
                access.join(&Access::of(std::slice::from_ref(s)));
                self.wait_before(&access);
                if !self.stage_and_store(c) {
                    self.put(c);
                }
            }
        }
    }

    /// The part that is about memory that changes and that other threads see; a ring's stages have barriers of their own.
    fn shared_only(&self, mut a: Access) -> Access {
        let constant = |m: &Mem| matches!(m, Mem::Buffer(i) if self.k.buffers[*i].access == ir::Access::Read);
        let places = &self.simt().plan.places;
        let own = |m: &Mem| matches!(m, Mem::Scratch(i) if matches!(places[*i], Place::Held | Place::Ring));
        a.read.retain(|m| !constant(m) && !own(m));
        a.written.retain(|m| !own(m));
        a
    }
    /// What runs any number of times and does this.
    fn repeated(&mut self, access: &Access, body: impl FnOnce(&mut Self)) {
        let before = (self.simt().since.clone(), self.simt().combined);
        let access = self.shared_only(access.clone());
        self.simt_mut().since.join(&access);
        self.simt_mut().combined = true;
        body(self);
        self.simt_mut().since.join(&before.0);
        self.simt_mut().combined |= before.1;
    }
    /// Waits if what comes may conflict with what the team did since it last waited; then that counts as done.
    fn wait_before(&mut self, next: &Access) {
        let next = self.shared_only(next.clone());
        if self.simt().since.conflicts(&next) {
            self.wait();
        }
        self.simt_mut().since.join(&next);
    }
    pub(super) fn wait(&mut self) {
        match (self.simt().machine, self.simt().team) {
            (_, Team::Thread) => {}
            (Machine::Gpu, Team::Block) if self.simt().plan.cluster > 1 => {
                for half in ["arrive", "wait"] {
                    self.w.line(&format!("llvm.call_intrinsic \"llvm.nvvm.barrier.cluster.{half}.aligned\"() : () -> ()"));
                }
            }
            (Machine::Gpu, Team::Block) if self.simt().plan.hopper.is_some() => self.wait_consumers(),
            (Machine::Gpu, Team::Block) => {
                if self.simt().copies {
                    self.w.line(
                        "llvm.inline_asm has_side_effects asm_dialect = att \"cp.async.wait_all;\", \"~{memory}\" : () -> ()",
                    );
                }
                self.barrier_of_block();
            }
            (Machine::Gpu, Team::Lanes(_)) => {
                let mask = self.lane_mask();
                self.w.line(&format!("llvm.call_intrinsic \"llvm.nvvm.bar.warp.sync\"({mask}) : (i32) -> ()"));
            }
            (Machine::Emulated, _) => self.wait_emulated(self.simt().size()),
        }
        self.simt_mut().since = Access::default();
        self.simt_mut().combined = false;
    }
    fn barrier_of_block(&mut self) {
        let zero = self.w.int(0, "i32");
        self.w.line(&format!("llvm.call_intrinsic \"llvm.nvvm.barrier.cta.sync.aligned.all\"({zero}) : (i32) -> ()"));
    }
    fn wait_emulated(&mut self, threads: u32) {
        let threads = self.w.int(i64::from(threads), "i64");
        self.w.line(&format!("llvm.call %wait(%thread, {threads}) : !llvm.ptr, (!llvm.ptr, i64) -> ()"));
    }
    /// Waits for the other warps of the block, before one reads what another has of a reduction.
    pub(super) fn wait_for_warps(&mut self) {
        if self.simt().plan.cluster == 1 {
            return self.wait();
        }
        match self.simt().machine {
            Machine::Gpu => self.barrier_of_block(),
            Machine::Emulated => self.wait_emulated(self.simt().plan.threads),
        }
    }
    /// The lanes of the team that this thread is in, as bits.
    pub(super) fn lane_mask(&mut self) -> String {
        match self.simt().team {
            Team::Lanes(n) if n < self.simt().plan.warp && !self.simt().in_step => {
                let (bits, others) = (self.w.int((1 << n) - 1, "i32"), self.w.int(!(i64::from(n) - 1), "i64"));
                let first = self.w.bin("andi", "%lane", &others, "i64");
                let first = self.w.convert("trunci", &first, "i64", "i32");
                self.w.bin("shli", &bits, &first, "i32")
            }
            Team::Block | Team::Lanes(_) | Team::Thread => self.w.int(-1, "i32"),
        }
    }
    /// This thread's number in its team.
    fn rank(&mut self) -> String {
        match self.simt().team {
            Team::Block if self.simt().plan.cluster > 1 => "%thread_of_cluster".into(),
            Team::Block => "%tid".into(),
            Team::Lanes(n) => {
                let mask = self.w.int(i64::from(n) - 1, "i64");
                self.w.bin("andi", "%tid", &mask, "i64")
            }
            Team::Thread => self.w.int(0, "i64"),
        }
    }
    /// What one thread of the team does.
    fn first_thread(&mut self, body: impl FnOnce(&mut Self)) {
        let (rank, zero) = (self.rank(), self.w.int(0, "i64"));
        let first = self.w.cmpi("eq", &rank, &zero, "i64");
        self.w.line(&format!("scf.if {first} {{"));
        self.alone(|e| e.inside(body));
        self.w.line("}");
    }
    pub(super) fn alone(&mut self, body: impl FnOnce(&mut Self)) {
        let team = std::mem::replace(&mut self.simt_mut().team, Team::Thread);
        body(self);
        self.simt_mut().team = team;
    }

    // --- spread loops ---

    /// Whether the turns of a vector loop are spread over the team; if not, a loop inside it is.
    fn is_spread(&self, lo: &Expr, hi: &Expr, body: &[Stmt]) -> bool {
        let mut found = Vec::new();
        reductions(body, &mut found);
        // One that is reduced into by two functions has no partial result.
        if found.iter().any(|(v, f)| found.iter().any(|(w, g)| v == w && f != g)) {
            return false;
        }
        let few = lo.known().zip(hi.known()).is_some_and(|(l, h)| (h - l) * 4 < i64::from(self.simt().size()));
        !(few && has_vector_loop(body))
    }
    /// How many lanes take a turn of a vector loop together, if it is around others that are spread over these.
    fn row_lanes(&self, lo: &Expr, hi: &Expr, body: &[Stmt]) -> Option<u32> {
        let mut found = Vec::new();
        reductions(body, &mut found);
        found.retain(|(v, _)| matches!(self.vars[v.0 as usize], Slot::Memory(_)));
        let turns = lo.known().zip(hi.known()).map(|(l, h)| h - l);
        let (warp, threads) = (i64::from(self.simt().plan.warp), i64::from(self.simt().size()));
        let is_team = threads >= warp && self.simt().team != Team::Thread;
        if !is_team || !found.is_empty() || !has_vector_loop(body) || turns.is_some_and(|n| n < 2) {
            return None;
        }
        // A lane has eight turns of the inner loops, or fewer where threads would have nothing to do.
        let inner = widest(body).map_or(warp, |n| n / 8);
        let spare = turns.map_or(2, |n| threads / n);
        let lanes = inner.max(spare).clamp(2, warp) as u32;
        Some(lanes.next_power_of_two())
    }
    /// A vector loop whose turns are dealt out to groups of lanes.
    fn rows_of_block(&mut self, var: VarId, [lo, hi]: [&Expr; 2], lanes: u32, body: &[Stmt]) {
        self.natural[var.0 as usize] = self.not_negative(lo);
        let turns = lo.known().zip(hi.known()).map(|(l, h)| h - l);
        let in_step = turns.is_some_and(|n| n % i64::from(self.simt().size() / lanes) == 0) && runs_in_step(body);
        let (lo, hi) = (self.expr(lo), self.expr(hi));
        let (team, of_team) = (self.simt().team, self.rank());
        let [size, step] = [lanes, self.simt().size() / lanes].map(|n| self.w.int(i64::from(n), "i64"));
        let rank = self.w.bin("divui", &of_team, &size, "i64");
        let first = self.w.bin("addi", &lo, &rank, "i64");
        let i = self.w.fresh();
        self.vars[var.0 as usize] = Slot::Value(i.clone());
        // Turns touch elements of their own, so a group only waits for what its own turn does.
        let since = std::mem::take(&mut self.simt_mut().since);
        self.simt_mut().team = Team::Lanes(lanes);
        self.simt_mut().in_step = in_step;
        self.w.line(&format!("scf.for {i} = {first} to {hi} step {step} : i64 {{"));
        self.inside(|e| e.stmts(body, LoopKind::Serial));
        self.w.line("}");
        self.simt_mut().team = team;
        self.simt_mut().in_step = false;
        self.simt_mut().since = since;
    }
    fn spread(&mut self, var: VarId, lo: &Expr, hi: &Expr, body: &[Stmt]) {
        self.natural[var.0 as usize] = self.not_negative(lo);
        let turns = lo.known().zip(hi.known()).map(|(l, h)| h - l);
        let multiples = [lo, hi].map(|e| self.multiple(e));
        let (lo, hi) = (self.expr(lo), self.expr(hi));
        let mut found = Vec::new();
        reductions(body, &mut found);
        let partial = self.begin(found);
        let (rank, size) = (self.rank(), i64::from(self.simt().size()));
        let step = self.w.int(size, "i64");
        // With few turns more threads are better.
        let lanes = match self.simt().team {
            Team::Lanes(n) => Some(i64::from(n)),
            Team::Block => self.simt().aligned_row.map(|_| size),
            Team::Thread => None,
        };
        let few = lanes.unwrap_or(i64::from(self.simt().plan.warp));
        // Two groups a thread only where no thread is left without one.
        let bounds = ([lo.as_str(), &hi], multiples);
        self.alone(|e| e.turns(var, bounds, [&rank, &step], (turns, [few, 2 * size], lanes), body));
        self.gather(partial);
    }
    /// Both loops as one: a thread has the greatest of what it saw and a sum that is of differences from that. `false` if elements are not taken at once.
    fn online(&mut self, o: &Online) -> bool {
        let Some((units, turns)) = Units::new(self.k, o.var, o.lets).zip(o.hi.known()) else { return false };
        let (ty, size, width) = (self.type_of(o.sum), i64::from(self.simt().size()), units.turns as i64);
        if ty != "f32" || turns % width != 0 || turns < width * size {
            return false;
        }
        let mut read = Access::of(o.lets);
        read.join(&Access::of_exprs([o.value]));
        self.wait_before(&read);
        self.natural[o.var.0 as usize] = true;
        self.stmt(o.declared, LoopKind::Serial);
        let most = self.begin(vec![(o.most, ReduceFn::Max)]);
        let sum = self.begin(vec![(o.sum, ReduceFn::Sum)]);
        let (zero, rank) = (self.w.int(0, "i64"), self.rank());
        let all = size * GROUPS;
        let [groups, one, all, up, ahead] = [turns / width, size, all, all - 1, all - size].map(|n| self.w.int(n, "i64"));
        let aligned = self.are_aligned(&units, (&zero, 0));
        // As many groups together as there are whole ones, then the others.
        let whole = self.w.bin("subi", &groups, &ahead, "i64");
        let many = self.w.bin("subi", &whole, &rank, "i64");
        let many = self.w.bin("maxsi", &many, &zero, "i64");
        let many = self.w.bin("addi", &many, &up, "i64");
        let many = self.w.bin("divui", &many, &all, "i64");
        let first = self.w.bin("muli", &many, &all, "i64");
        let first = self.w.bin("addi", &rank, &first, "i64");
        let run = |e: &mut Self, aligned: bool| {
            for (from, to, step, count) in [(&rank, &whole, &all, GROUPS), (&first, &groups, &one, 1)] {
                let group = e.w.fresh();
                e.w.line(&format!("scf.for {group} = {from} to {to} step {step} : i64 {{"));
                e.inside(|e| e.alone(|e| e.online_groups(o, (&units, aligned), &group, &one, count)));
                e.w.line("}");
            }
        };
        match aligned {
            None => run(self, true),
            Some(aligned) => {
                self.w.line(&format!("scf.if {aligned} {{"));
                self.inside(|e| run(e, true));
                self.w.line("} else {");
                self.inside(|e| run(e, false));
                self.w.line("}");
            }
        }
        let [own, place] = [o.most, o.sum].map(|v| self.place(v));
        let own = self.load(&own, ty);
        self.gather(most);
        let whole = self.place(o.most);
        let whole = self.load(&whole, ty);
        let rest = self.load(&place, ty);
        let less = self.w.bin("subf", &own, &whole, ty);
        let factor = self.power_of_e(&less);
        let rest = self.w.bin("mulf", &rest, &factor, ty);
        self.store(&rest, &place, ty);
        self.gather(sum);
        true
    }
    /// What a thread does with some groups of neighbours.
    fn online_groups(&mut self, o: &Online, (units, aligned): (&Units, bool), group: &str, step: &str, count: i64) {
        let (zero, mut turns, mut group) = (self.w.int(0, "i64"), Vec::new(), group.to_string());
        for i in 0..count {
            if i > 0 {
                group = self.w.bin("addi", &group, step, "i64");
            }
            let mut own = self.neighbours(o.var, &zero, &group, units);
            self.side_by_side(&mut own, (units, aligned), o.lets);
            self.simt_mut().at_once = None;
            turns.extend(own);
        }
        let mut values = Vec::new();
        for mut vars in turns {
            std::mem::swap(&mut self.vars, &mut vars);
            values.push(self.expr(o.value));
            std::mem::swap(&mut self.vars, &mut vars);
        }
        let [most, sum] = [o.most, o.sum].map(|v| self.place(v));
        let (old, lowest, zero) = (self.load(&most, "f32"), self.w.float(f64::NEG_INFINITY, "f32"), self.w.float(0.0, "f32"));
        let new = self.in_pairs(values.clone(), |e, a, b| e.combine(ReduceFn::Max, a, b, "f32", false));
        let new = self.combine(ReduceFn::Max, &old, &new, "f32", false);
        self.store(&new, &most, "f32");
        // Where nothing is greater than -∞, e^x is 0.
        let nothing = self.w.cmpf("oeq", &new, &lowest, "f32");
        let base = self.w.select(&nothing, &zero, &new, "f32");
        let power = |e: &mut Self, x: &String| {
            let less = e.w.bin("subf", x, &base, "f32");
            e.power_of_e(&less)
        };
        let (powers, factor): (Vec<String>, String) = (values.iter().map(|x| power(self, x)).collect(), power(self, &old));
        let more = self.in_pairs(powers, |e, a, b| e.combine(ReduceFn::Sum, a, b, "f32", false));
        let old = self.load(&sum, "f32");
        let old = self.w.bin("mulf", &old, &factor, "f32");
        let new = self.combine(ReduceFn::Sum, &old, &more, "f32", false);
        self.store(&new, &sum, "f32");
    }
    /// All combined, neighbours first, so that few wait for one another.
    pub(super) fn in_pairs(&mut self, mut values: Vec<String>, combine: impl Fn(&mut Self, &str, &str) -> String) -> String {
        while values.len() > 1 {
            values = values.chunks(2).map(|p| if let [a, b] = p { combine(self, a, b) } else { p[0].clone() }).collect();
        }
        values.pop().expect("there is a value")
    }
    /// e^x of an x that is not positive: what is lost of small powers is nothing beside the 1 that they are added to.
    fn power_of_e(&mut self, x: &str) -> String {
        match self.simt().machine {
            Machine::Gpu => self.w.fast_exp(x),
            Machine::Emulated => self.w.map(MapFn::Exp, &[x.to_string()], DType::F32),
        }
    }
    /// Turns of a loop that one of several threads takes. If they touch neighbouring elements it takes some at once, as one access if those are
    /// aligned; what remains, or all of a map that is not aligned, one by one. A reduction takes its terms in the same order, aligned or not.
    fn turns(
        &mut self,
        var: VarId,
        ([lo, hi], multiples): ([&str; 2], [i64; 2]),
        [rank, step]: [&str; 2],
        (known, [threads, groups_of_twice], lanes): (Option<i64>, [i64; 2], Option<i64>),
        body: &[Stmt],
    ) {
        let units = Units::new(self.k, var, body);
        let Some(units) = units.filter(|u| known.is_none_or(|n| n >= u.turns as i64 * threads)) else {
            let first = self.w.bin("addi", lo, rank, "i64");
            let Some(times) = known.zip(lanes).and_then(|(n, lanes)| times_alone(n, lanes, body)) else {
                return self.one_by_one(var, [&first, hi, step], body);
            };
            for i in 0..times {
                let before = self.w.int(i, "i64");
                let before = self.w.bin("muli", step, &before, "i64");
                let turn = self.w.bin("addi", &first, &before, "i64");
                self.vars[var.0 as usize] = Slot::Value(turn);
                self.stmts(body, LoopKind::Serial);
            }
            return;
        };
        if let Some(aligned) = self.simt().aligned_row
            && let Some((n, lanes)) = known.zip(lanes)
            && let Some((times, ragged)) = units.times_of_row(n, lanes)
        {
            let groups = self.w.int(n / units.turns as i64, "i64");
            let times = aligned.then_some((times, ragged));
            return self.at_once(var, lo, [rank, &groups, step], (&units, aligned), times, body);
        }
        let aligned = self.are_aligned(&units, (lo, multiples[0]));
        let whole = multiples.iter().all(|n| n % units.turns as i64 == 0);
        let (zero, width) = (self.w.int(0, "i64"), self.w.int(units.turns as i64, "i64"));
        let count = self.w.bin("subi", hi, lo, "i64");
        let count = self.w.bin("maxsi", &count, &zero, "i64");
        let groups = self.w.bin("divui", &count, &width, "i64");
        let groups = match &aligned {
            Some(aligned) if !units.reduces => self.w.select(aligned, &groups, &zero, "i64"),
            Some(_) | None => groups,
        };
        if units.twice && !units.reduces && known.is_none_or(|n| n >= units.turns as i64 * groups_of_twice) && lanes.is_none() {
            let taken = self.twice(var, [lo, rank, step, &groups], &units, body);
            let first = self.w.bin("addi", lo, &taken, "i64");
            let first = self.w.bin("addi", &first, rank, "i64");
            return self.one_by_one(var, [&first, hi, step], body);
        }
        let times = known.zip(lanes).and_then(|(n, lanes)| units.times(n, lanes)).map(|times| (times, false));
        match &aligned {
            Some(aligned) if units.reduces || times.is_some() => {
                self.w.line(&format!("scf.if {aligned} {{"));
                self.inside(|e| e.at_once(var, lo, [rank, &groups, step], (&units, true), times, body));
                if units.reduces {
                    self.w.line("} else {");
                    self.inside(|e| e.at_once(var, lo, [rank, &groups, step], (&units, false), times, body));
                }
                self.w.line("}");
            }
            Some(_) | None => self.at_once(var, lo, [rank, &groups, step], (&units, true), times, body),
        }
        if whole && (units.reduces || aligned.is_none()) {
            return;
        }
        let taken = self.w.bin("muli", &groups, &width, "i64");
        let first = self.w.bin("addi", lo, &taken, "i64");
        let first = self.w.bin("addi", &first, rank, "i64");
        self.one_by_one(var, [&first, hi, step], body);
    }
    /// Groups of a map two at once: what a warp takes lies together, its second groups after its first. How many turns were taken.
    fn twice(&mut self, var: VarId, [lo, rank, step, groups]: [&str; 4], units: &Units, body: &[Stmt]) -> String {
        let warp = i64::from(self.simt().plan.warp);
        let (lanes, both, width) = (self.w.int(warp, "i64"), self.w.int(2 * warp, "i64"), self.w.int(units.turns as i64, "i64"));
        let wholes = self.w.bin("divui", groups, &both, "i64");
        let [first, step] = [rank, step].map(|n| self.w.bin("divui", n, &lanes, "i64"));
        let lane = self.w.bin("remui", rank, &lanes, "i64");
        let whole = self.w.fresh();
        self.w.line(&format!("scf.for {whole} = {first} to {wholes} step {step} : i64 {{"));
        self.inside(|e| {
            let before = e.w.bin("muli", &whole, &both, "i64");
            let group = e.w.bin("addi", &before, &lane, "i64");
            let after = e.w.bin("addi", &group, &lanes, "i64");
            let mut turns = Vec::new();
            for group in [group, after] {
                turns.extend(e.neighbours(var, lo, &group, units));
            }
            e.side_by_side(&mut turns, (units, true), body);
            e.simt_mut().at_once = None;
        });
        self.w.line("}");
        let taken = self.w.bin("muli", &wholes, &both, "i64");
        self.w.bin("muli", &taken, &width, "i64")
    }
    /// For each turn of a group, what variables are.
    fn neighbours(&mut self, var: VarId, lo: &str, group: &str, units: &Units) -> Vec<Vec<Slot>> {
        let width = self.w.int(units.turns as i64, "i64");
        let start = self.w.bin("muli", group, &width, "i64");
        let start = self.w.bin("addi", lo, &start, "i64");
        let mut turns = Vec::new();
        for turn in 0..units.turns {
            let turn = self.w.int(turn as i64, "i64");
            let i = self.w.bin("addi", &start, &turn, "i64");
            self.vars[var.0 as usize] = Slot::Value(i);
            turns.push(self.vars.clone());
        }
        turns
    }
    fn one_by_one(&mut self, var: VarId, [first, hi, step]: [&str; 3], body: &[Stmt]) {
        let i = self.w.fresh();
        self.vars[var.0 as usize] = Slot::Value(i.clone());
        self.w.line(&format!("scf.for {i} = {first} to {hi} step {step} : i64 {{"));
        self.inside(|e| e.stmts(body, LoopKind::Serial));
        self.w.line("}");
    }
    /// Groups of turns from `first` on, each at once; so many one after the other, of which the last may not be there, or in a loop.
    fn at_once(
        &mut self,
        var: VarId,
        lo: &str,
        [first, groups, step]: [&str; 3],
        (units, aligned): (&Units, bool),
        times: Option<(i64, bool)>,
        body: &[Stmt],
    ) {
        let one = |e: &mut Self, group: &str| {
            let mut turns = e.neighbours(var, lo, group, units);
            e.side_by_side(&mut turns, (units, aligned), body);
            e.simt_mut().at_once = None;
        };
        if let Some((times, ragged)) = times {
            for i in 0..times {
                let before = self.w.int(i, "i64");
                let before = self.w.bin("muli", step, &before, "i64");
                let mut group = self.w.bin("addi", first, &before, "i64");
                if ragged && i + 1 == times {
                    // Another group of the thread stands for one that is not there: it is read, and counts for nothing.
                    let there = self.w.cmpi("slt", &group, groups, "i64");
                    group = self.w.select(&there, &group, first, "i64");
                    self.simt_mut().there = Some(there);
                }
                one(self, &group);
                self.simt_mut().there = None;
            }
            return;
        }
        let group = self.w.fresh();
        self.w.line(&format!("scf.for {group} = {first} to {groups} step {step} : i64 {{"));
        self.inside(|e| one(e, &group));
        self.w.line("}");
    }
    /// What several turns do, given what variables are in each: turn after turn, but loops inside are one for all, and extremes are found in pairs.
    fn side_by_side(&mut self, turns: &mut [Vec<Slot>], (units, aligned): (&Units, bool), body: &[Stmt]) {
        for part in body.chunk_by(|a, b| !matches!(a, Stmt::For { .. }) && !matches!(b, Stmt::For { .. })) {
            if let [Stmt::For { var, lo, hi, body, .. }] = part {
                self.vars.clone_from(&turns[0]);
                self.natural[var.0 as usize] = self.not_negative(lo);
                let (lo, hi) = (self.expr(lo), self.expr(hi));
                let (i, one) = (self.w.fresh(), self.w.int(1, "i64"));
                self.w.line(&format!("scf.for {i} = {lo} to {hi} step {one} : i64 {{"));
                turns.iter_mut().for_each(|vars| vars[var.0 as usize] = Slot::Value(i.clone()));
                self.inside(|e| e.side_by_side(turns, (units, aligned), body));
                self.w.line("}");
                continue;
            }
            // A variable that a turn declares is its own; of one that they share the extreme is found for all.
            let same = |v: VarId| {
                let place = |vars: &Vec<Slot>| if let Slot::Memory(p) = &vars[v.0 as usize] { Some(p.clone()) } else { None };
                let first = place(&turns[0]);
                first.is_some() && turns.iter().all(|vars| place(vars) == first)
            };
            let accumulated = part.iter().filter_map(|s| if let Stmt::Accumulate(v, ..) = s { Some(*v) } else { None });
            let shared: BTreeSet<VarId> = accumulated.filter(|v| same(*v)).collect();
            // All is loaded before anything is computed of it, and computed before anything is stored.
            let first = part.iter().position(|s| matches!(s, Stmt::Store { .. })).unwrap_or(part.len());
            let (loads, rest) = loads_ahead(self.k, &part[..first]);
            for part in [loads, rest, part[first..].iter().collect()] {
                // What may not be there is not stored: all stores of the turns in one condition, so that neighbours stay one access.
                let there = self.simt().there.clone();
                let stores = !part.is_empty() && part.iter().all(|s| matches!(s, Stmt::Store { .. }));
                let [of_all, of_each] = [stores, !stores].map(|wanted| there.clone().filter(|_| wanted));
                of_all.iter().for_each(|there| self.enter_if(there));
                let mut extremes: Vec<(VarId, ReduceFn, Vec<String>)> = Vec::new();
                for (turn, vars) in turns.iter_mut().enumerate() {
                    std::mem::swap(&mut self.vars, vars);
                    self.simt_mut().at_once = aligned.then(|| (units.clone(), turn));
                    for s in &part {
                        let (v, f, e) = match s {
                            Stmt::Accumulate(v, f @ (ReduceFn::Max | ReduceFn::Min), e) if shared.contains(v) => (v, f, e),
                            s => {
                                let condition = of_each.as_ref().filter(|_| matches!(s, Stmt::Store { .. }));
                                condition.iter().for_each(|there| self.enter_if(there));
                                self.stmt(s, LoopKind::Serial);
                                condition.iter().for_each(|_| self.leave_if());
                                continue;
                            }
                        };
                        let value = self.expr(e);
                        let value = self.if_there(value, *f, *v);
                        match extremes.iter_mut().find(|(w, g, _)| w == v && g == f) {
                            Some((.., values)) => values.push(value),
                            None => extremes.push((*v, *f, vec![value])),
                        }
                    }
                    std::mem::swap(&mut self.vars, vars);
                }
                for (v, f, values) in extremes {
                    let (ty, p) = (self.type_of(v), self.place(v));
                    let old = self.load(&p, ty);
                    let most = self.in_pairs(values, |e, a, b| e.combine(f, a, b, ty, false));
                    let new = self.combine(f, &old, &most, ty, false);
                    self.store(&new, &p, ty);
                }
                of_all.iter().for_each(|_| self.leave_if());
            }
        }
    }
    /// What follows is done if a condition holds.
    fn enter_if(&mut self, condition: &str) {
        self.w.line(&format!("scf.if {condition} {{"));
        self.w.enter();
    }
    fn leave_if(&mut self) {
        self.w.leave();
        self.w.line("}");
    }
    /// Whether all that the turn `lo` touches, a multiple of a number, starts at a multiple of what a thread touches at once; none if that is certain.
    fn are_aligned(&mut self, units: &Units, (lo, multiple): (&str, i64)) -> Option<String> {
        let mut starts = Vec::new();
        for (mem, offset) in &units.firsts {
            let bytes = self.k.mem_dtype(*mem).bytes();
            let alignment = units.alignment(bytes) as i64;
            let places = [multiple, self.multiple(offset)].map(|n| n * bytes as i64);
            if places.into_iter().chain([self.begins_at(*mem)]).all(|n| n % alignment == 0) {
                continue;
            }
            let offset = self.expr(offset);
            starts.push((*mem, self.w.bin("addi", lo, &offset, "i64")));
        }
        (!starts.is_empty()).then(|| self.starts_are_aligned(starts, |bytes| units.alignment(bytes)))
    }
    /// What a memory begins at a multiple of. # Units: bytes.
    fn begins_at(&self, mem: Mem) -> i64 {
        match mem {
            Mem::Buffer(i) => self.k.buffers[i].alignment,
            Mem::Scratch(_) => ALIGNED,
        }
    }
    /// Whether elements of memories are where an element of so many bytes has to be.
    fn starts_are_aligned(&mut self, starts: Vec<(Mem, String)>, alignment: impl Fn(usize) -> usize) -> String {
        let mut bits: Option<String> = None;
        for (mem, index) in starts {
            let (dtype, space) = (self.k.mem_dtype(mem), self.pointer_type(mem));
            // Not `inbounds`: there may be no turn.
            let (base, ty) = (pointer(mem), memory_type(dtype));
            let p = self.w.op(&format!("llvm.getelementptr {base}[{index}] : ({space}, i64) -> {space}, {ty}"));
            let address = self.w.op(&format!("llvm.ptrtoint {p} : {space} to i64"));
            let mask = self.w.int(alignment(dtype.bytes()) as i64 - 1, "i64");
            let low = self.w.bin("andi", &address, &mask, "i64");
            bits = Some(match bits {
                None => low,
                Some(before) => self.w.bin("ori", &before, &low, "i64"),
            });
        }
        let (bits, zero) = (bits.expect("something is touched"), self.w.int(0, "i64"));
        self.w.cmpi("eq", &bits, &zero, "i64")
    }
    /// The reductions into outer variables that happen in spread loops of a list alone, and are not read there: they may be combined after the
    /// loop around it.
    fn deferred(&self, body: &[Stmt]) -> Vec<(VarId, ReduceFn)> {
        let mut found = Vec::new();
        reductions(body, &mut found);
        let single = |(v, f): &(VarId, ReduceFn)| found.iter().all(|(w, g)| v != w || f == g);
        let outer = |v: VarId| matches!(self.vars[v.0 as usize], Slot::Memory(_));
        found.iter().copied().filter(|(v, f)| single(&(*v, *f)) && outer(*v) && self.only_spread(body, *v)).collect()
    }
    fn only_spread(&self, body: &[Stmt], v: VarId) -> bool {
        let mut read = false;
        body.iter().for_each(|s| exprs(s, &mut |e| read |= expr_uses(e, &|w| w == v)));
        !read
            && body.iter().all(|s| match s {
                Stmt::Assign(w, _) | Stmt::Accumulate(w, ..) => *w != v,
                Stmt::For { lo, hi, kind: LoopKind::Vector, body, .. } if self.is_spread(lo, hi, body) => true,
                Stmt::For { body, .. } | Stmt::While { body, .. } => self.only_spread(body, v),
                Stmt::If { then, otherwise, .. } => self.only_spread(then, v) && self.only_spread(otherwise, v),
                Stmt::Let(..) | Stmt::Var(..) | Stmt::Store { .. } | Stmt::Dot(_) | Stmt::Copy(_) => true,
            })
    }
}

/// What neighbours are taken at once begin at, where all are aligned. # Units: bytes.
const ALIGNED: i64 = 16;
/// Groups of neighbours of a long row that a thread loads together.
const GROUPS: i64 = 4;

/// What a thread of the host that stands for one of a GPU is passed, in order.
const THREAD: [(&str, &str); 12] = [
    ("tid", "i64"),
    ("ctaid", "i64"),
    ("nctaid", "i64"),
    ("grid", "i64"),
    ("shared", "!llvm.ptr"),
    ("sums", "!llvm.ptr"),
    ("sums_bytes", "i64"),
    ("workspace", "!llvm.ptr"),
    ("wait", "!llvm.ptr"),
    ("exchange", "!llvm.ptr"),
    ("number", "i64"),
    ("context", "!llvm.ptr"),
];

/// The part that is about scratch.
fn scratch_only(mut a: Access) -> Access {
    a.read.retain(|m| matches!(m, Mem::Scratch(_)));
    a.written.retain(|m| matches!(m, Mem::Scratch(_)));
    a
}

/// The statements that a turn may start with, as they are values of buffers whose places depend on what comes before alone; and the others.
fn loads_ahead<'b>(k: &Kernel, body: &'b [Stmt]) -> (Vec<&'b Stmt>, Vec<&'b Stmt>) {
    let mut later = BTreeSet::new();
    body.iter().partition(|s| {
        let (v, ahead) = match s {
            Stmt::Let(v, Expr::Load(Mem::Buffer(_), index)) => (v, !expr_uses(index, &|v| later.contains(&v))),
            Stmt::Let(v, e) if is_arithmetic(e) && k.expr_dtype(e) == DType::I64 => (v, !expr_uses(e, &|v| later.contains(&v))),
            Stmt::Let(v, _) | Stmt::Var(v, _) | Stmt::Assign(v, _) | Stmt::Accumulate(v, ..) => (v, false),
            Stmt::Store { .. } | Stmt::For { .. } | Stmt::While { .. } | Stmt::If { .. } | Stmt::Dot(_) | Stmt::Copy(_) => {
                return false;
            }
        };
        if !ahead {
            later.insert(*v);
        }
        ahead
    })
}

/// Whether a body does the same whichever turn it is.
fn runs_in_step(body: &[Stmt]) -> bool {
    body.iter().all(|s| match s {
        Stmt::For { lo, hi, body, .. } => lo.known().is_some() && hi.known().is_some() && runs_in_step(body),
        Stmt::Let(..) | Stmt::Var(..) | Stmt::Assign(..) | Stmt::Accumulate(..) | Stmt::Store { .. } => true,
        Stmt::While { .. } | Stmt::If { .. } | Stmt::Dot(_) | Stmt::Copy(_) => false,
    })
}

fn has_vector_loop(body: &[Stmt]) -> bool {
    let is_one = |s: &Stmt| matches!(s, Stmt::For { kind: LoopKind::Vector, .. });
    body.iter().any(|s| is_one(s) || s.lists().into_iter().any(has_vector_loop))
}
