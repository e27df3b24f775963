//! Tile programs as MLIR text: `func`, `scf`, `arith`, `math` and `llvm` dialects. Mutable variables and scratch are stack slots, which
//! LLVM promotes; loops have plain induction variables, which its vectoriser recognises.
//!
//! Floats may be contracted (a·b + c as one operation) everywhere; sums of [`Stmt::Accumulate`] in vector loops may be reordered. NaN
//! and infinity keep their meaning.

mod combine;
mod convert;
mod float;
mod gather;
mod groups;
mod hopper;
mod math;
mod product;
mod reduce;
mod simt;
mod stage;
mod text;
mod tiles;
mod trig;

use crate::{copy::expand_copies, dot::expand_dot};
use base::DType;
use convert::memory_type;
use graph::op::MapFn;
use reduce::Partial;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};
use text::{Helper, Writer};
use tile::{Expr, Kernel, LoopKind, Mem, Stmt, VarId, ir::compute_dtype};

pub(crate) use product::is_blocked;
pub(crate) use simt::{Function, Machine, function, functions_module};
pub(crate) use tiles::loads_first;

/// The module of some kernels.
pub(crate) fn module(kernels: &[Kernel]) -> String {
    let mut out = String::from("module {\n");
    let mut helpers = BTreeSet::new();
    for k in kernels {
        let k = expand_dot(&expand_copies(k, &|_, _| false));
        let mut e = Emitter::new(&k);
        out.push_str(&e.kernel());
        helpers.append(&mut e.w.helpers);
    }
    helpers.into_iter().for_each(|h| out.push_str(&host_function(h)));
    out.push_str("}\n");
    out
}

/// The text of a function that kernels call on the host.
fn host_function(helper: Helper) -> String {
    match helper {
        Helper::Erf => "  func.func private @erf(f64) -> f64\n".into(),
        Helper::Log1p => "  func.func private @log1p(f64) -> f64\n".into(),
        Helper::Sin => trig::functions("sin"),
        Helper::Cos => trig::functions("cos"),
    }
}

/// How a variable is held.
#[derive(Clone, Debug)]
enum Slot {
    Unset,
    /// An SSA name.
    Value(String),
    /// A pointer to its stack slot.
    Memory(String),
}

struct Emitter<'k> {
    k: &'k Kernel,
    w: Writer,
    vars: Vec<Slot>,
    /// The immutable i64 variables that are never negative.
    natural: Vec<bool>,
    /// The variables that are places on axes, made of loops, extents and constants alone.
    places: Vec<bool>,
    /// A number that divides each immutable i64 variable.
    multiples: Vec<i64>,
    /// Extremes of the vector loops around.
    partial: Vec<Partial>,
    /// The variables that need to be no more exact than a narrow float.
    coarse: Vec<bool>,
    /// The threads that run what is emitted, unless it is for the host.
    simt: Option<simt::Simt>,
    /// The place in the sources of the op that a variable is a value of, by its number.
    marks: BTreeMap<VarId, usize>,
}

/// The loops and the variables that are made of them.
fn find_places(k: &Kernel, body: &[Stmt], places: &mut [bool]) {
    for s in body {
        match s {
            Stmt::Let(v, e) => places[v.0 as usize] = k.expr_dtype(e) == DType::I64 && is_place(e, places) == Some(true),
            Stmt::For { var, body, .. } => {
                places[var.0 as usize] = true;
                find_places(k, body, places);
            }
            Stmt::While { body, .. } => find_places(k, body, places),
            Stmt::If { then, otherwise, .. } => [then, otherwise].into_iter().for_each(|b| find_places(k, b, places)),
            Stmt::Var(..) | Stmt::Assign(..) | Stmt::Accumulate(..) | Stmt::Store { .. } | Stmt::Dot(_) | Stmt::Copy(_) => {}
        }
    }
}

/// Of a product with a constant: the other factor, and the constant.
fn scaled(e: &Expr) -> Option<(&Expr, f64)> {
    let Expr::Map(MapFn::Mul, factors) = e else { return None };
    match &factors[..] {
        [x, Expr::Const(c, _)] | [Expr::Const(c, _), x] => Some((x, c.get())),
        _ => None,
    }
}

/// Whether an expression has a loop's variable in it; none if something else is in it than such, extents and constants.
fn is_place(e: &Expr, places: &[bool]) -> Option<bool> {
    match e {
        Expr::Const(..) | Expr::Dim(_) => Some(false),
        Expr::Var(v) => places[v.0 as usize].then_some(true),
        Expr::Map(_, args) => args.iter().try_fold(false, |some, a| Some(is_place(a, places)? || some)),
        Expr::Load(..) | Expr::Cast(..) | Expr::Order(_) => None,
    }
}

/// Whether it is the constant log 2.
fn is_log_2(e: &Expr) -> bool {
    matches!(e, Expr::Const(c, DType::F32) if c.get() == std::f64::consts::LN_2)
}

/// The MLIR type of values of a compute dtype.
fn value_type(d: DType) -> &'static str {
    match compute_dtype(d) {
        DType::F64 => "f64",
        DType::F32 | DType::TF32 | DType::BF16 | DType::F16 | DType::E4M3 => "f32",
        DType::I64 => "i64",
        DType::I32 => "i32",
        DType::Bool => "i1",
    }
}

/// The name of a memory's pointer.
fn pointer(mem: Mem) -> String {
    match mem {
        Mem::Buffer(i) => format!("%b{i}"),
        Mem::Scratch(i) => format!("%s{i}"),
    }
}

/// The entry point: it loads pointers and extents once and runs its blocks.
fn entry(k: &Kernel) -> String {
    let mut text = format!("  func.func @{}(%buffers: !llvm.ptr, %dims: !llvm.ptr, %begin: i64, %end: i64) {{\n", k.name);
    let (mut passed, mut types) = (Vec::new(), Vec::new());
    for (from, name, count, ty) in [("%buffers", "b", k.buffers.len(), "!llvm.ptr"), ("%dims", "d", k.dims.len(), "i64")] {
        for i in 0..count {
            let _ = writeln!(text, "    %p{name}{i} = llvm.getelementptr {from}[{i}] : (!llvm.ptr) -> !llvm.ptr, {ty}");
            let _ = writeln!(text, "    %{name}{i} = llvm.load %p{name}{i} : !llvm.ptr -> {ty}");
            passed.push(format!("%{name}{i}"));
            types.push(ty);
        }
    }
    passed.push("%block".into());
    types.push("i64");
    let (passed, types) = (passed.join(", "), types.join(", "));
    let _ = writeln!(text, "    %one = arith.constant 1 : i64");
    let _ = writeln!(text, "    scf.for %block = %begin to %end step %one : i64 {{");
    let _ = writeln!(text, "      func.call @block.{}({passed}) : ({types}) -> ()", k.name);
    text.push_str("    }\n    return\n  }\n");
    text
}

impl<'k> Emitter<'k> {
    fn new(k: &'k Kernel) -> Emitter<'k> {
        let n = k.vars.len();
        let mut places = vec![false; n];
        places[0] = true;
        find_places(k, &k.body, &mut places);
        Emitter {
            k,
            w: Writer::new(1),
            vars: vec![Slot::Unset; n],
            natural: vec![false; n],
            places,
            multiples: vec![1; n],
            partial: Vec::new(),
            coarse: vec![false; n],
            simt: None,
            marks: BTreeMap::new(),
        }
    }
    fn kernel(&mut self) -> String {
        let k = self.k;
        let buffer = |(i, b): (usize, &tile::ir::Buffer)| {
            // Views begin anywhere in the memory they share.
            format!("%b{i}: !llvm.ptr {{llvm.noalias, llvm.align = {} : i64}}", b.dtype.bytes())
        };
        let buffers: Vec<String> = k.buffers.iter().enumerate().map(buffer).collect();
        let dims: Vec<String> = (0..k.dims.len()).map(|i| format!("%d{i}: i64")).collect();
        let args = [buffers, dims, vec!["%block: i64".to_string()]].concat().join(", ");
        for (i, s) in k.scratch.iter().enumerate() {
            let size = self.w.int(s.elems.max(1) as i64, "i64");
            let ty = memory_type(s.dtype);
            let _ = writeln!(self.w.head, "    %s{i} = llvm.alloca {size} x {ty} {{alignment = 64 : i64}} : (i64) -> !llvm.ptr");
        }
        self.vars[0] = Slot::Value("%block".into());
        self.natural[0] = true;
        self.stmts(&k.body, LoopKind::Serial);
        let (head, body) = (&self.w.head, &self.w.out);
        let passthrough = "attributes {passthrough = [\"noinline\"]}";
        let block = format!("  func.func private @block.{}({args}) {passthrough} {{\n{head}{body}    return\n  }}\n", k.name);
        block + &entry(k)
    }

    // --- statements ---

    fn stmts(&mut self, body: &[Stmt], kind: LoopKind) {
        if self.simt.as_ref().is_some_and(|t| t.plan.hopper.is_some() && t.is_team()) && hopper::is_staged(body) {
            return self.staged(body);
        }
        body.iter().for_each(|s| self.stmt(s, kind));
    }
    /// A new stack slot.
    fn slot(&mut self, ty: &str) -> String {
        let (p, one) = (self.w.fresh(), self.w.int(1, "i64"));
        let _ = writeln!(self.w.head, "    {p} = llvm.alloca {one} x {ty} : (i64) -> !llvm.ptr");
        p
    }
    fn place(&self, v: VarId) -> String {
        match &self.vars[v.0 as usize] {
            Slot::Memory(p) => p.clone(),
            Slot::Value(_) | Slot::Unset => base::bug!("{v} is not mutable in {}", self.k.name),
        }
    }
    fn type_of(&self, v: VarId) -> &'static str {
        value_type(self.k.vars[v.0 as usize])
    }
    fn load(&mut self, p: &str, ty: &str) -> String {
        self.w.op(&format!("llvm.load {p} : !llvm.ptr -> {ty}"))
    }
    fn store(&mut self, v: &str, p: &str, ty: &str) {
        self.w.line(&format!("llvm.store {v}, {p} : {ty}, !llvm.ptr"));
    }

    fn stmt(&mut self, s: &Stmt, kind: LoopKind) {
        if let Stmt::Let(v, _) = s
            && let Some(mark) = self.marks.get(v)
        {
            self.w.mark(*mark);
        }
        if self.simt.as_ref().is_some_and(simt::Simt::is_team) {
            return self.team_stmt(s);
        }
        match s {
            Stmt::Let(v, e) => self.bind(*v, e),
            Stmt::Var(v, e) => {
                let value = self.expr(e);
                let ty = self.type_of(*v);
                let p = self.slot(ty);
                self.store(&value, &p, ty);
                self.vars[v.0 as usize] = Slot::Memory(p);
            }
            Stmt::Assign(v, e) => {
                let value = self.expr(e);
                let p = self.place(*v);
                self.store(&value, &p, self.type_of(*v));
            }
            Stmt::Accumulate(v, f, e) => self.accumulate(*v, *f, e, kind),
            Stmt::Store { mem, index, value } => {
                let v = self.expr(value);
                let at = self.expr(index);
                let dtype = self.k.mem_dtype(*mem);
                self.go_to_unit(index);
                let p = self.address(*mem, &at, dtype);
                let stored = self.w.narrow(v, dtype);
                let (ty, pointer, aligned) = (memory_type(dtype), self.pointer_type(*mem), self.alignment(*mem, index));
                self.w.line(&format!("llvm.store {stored}, {p}{aligned} : {ty}, {pointer}"));
            }
            Stmt::For { .. } => {
                if !self.copy_chunk(s) {
                    self.loop_of(s);
                }
            }
            Stmt::While { cond, body } => {
                self.w.line("scf.while : () -> () {");
                self.inside(|e| {
                    let c = e.expr(cond);
                    e.w.line(&format!("scf.condition({c})"));
                });
                self.w.line("} do {");
                self.inside(|e| {
                    e.stmts(body, LoopKind::Serial);
                    e.w.line("scf.yield");
                });
                self.w.line("}");
            }
            Stmt::If { cond, then, otherwise } => {
                let c = self.expr(cond);
                self.w.line(&format!("scf.if {c} {{"));
                self.inside(|e| e.stmts(then, kind));
                if !otherwise.is_empty() {
                    self.w.line("} else {");
                    self.inside(|e| e.stmts(otherwise, kind));
                }
                self.w.line("}");
            }
            Stmt::Dot(d) => self.product(d),
            Stmt::Copy(_) => base::bug!("a copy in {} is not expanded", self.k.name),
        }
    }
    /// Turn after turn.
    fn loop_of(&mut self, s: &Stmt) {
        let Stmt::For { var, lo, hi, kind, body } = s else { base::bug!("no loop") };
        self.natural[var.0 as usize] = self.not_negative(lo);
        let (lo, hi) = (self.expr(lo), self.expr(hi));
        let outer = self.partial.len();
        if *kind == LoopKind::Vector && self.simt.is_none() {
            self.begin_partial(body);
        }
        let (i, one) = (self.w.fresh(), self.w.int(1, "i64"));
        self.vars[var.0 as usize] = Slot::Value(i.clone());
        self.w.line(&format!("scf.for {i} = {lo} to {hi} step {one} : i64 {{"));
        self.inside(|e| e.stmts(body, *kind));
        self.w.line("}");
        self.end_partial(outer);
    }
    /// Gives a variable its value.
    fn bind(&mut self, v: VarId, e: &Expr) {
        let narrow = self.w.narrow;
        self.w.narrow |= self.coarse[v.0 as usize];
        let value = self.expr(e);
        self.w.narrow = narrow;
        self.learn(v, e);
        self.vars[v.0 as usize] = Slot::Value(value);
    }
    /// Notes what is known of a variable's value.
    fn learn(&mut self, v: VarId, e: &Expr) {
        self.natural[v.0 as usize] = self.not_negative(e);
        self.multiples[v.0 as usize] = self.multiple(e);
    }
    fn inside(&mut self, body: impl FnOnce(&mut Self)) {
        self.w.enter();
        body(self);
        self.w.leave();
    }

    // --- expressions ---

    /// The type of a memory's pointer.
    fn pointer_type(&self, mem: Mem) -> &'static str {
        self.simt.as_ref().map_or("!llvm.ptr", |s| s.pointer_type(mem))
    }
    /// The attribute of an access that is aligned to more than its element.
    fn alignment(&self, mem: Mem, index: &Expr) -> String {
        self.simt
            .as_ref()
            .and_then(|s| s.alignment(self.k, mem, index))
            .map_or(String::new(), |n| format!(" {{alignment = {n} : i64}}"))
    }
    fn address(&mut self, mem: Mem, index: &str, dtype: DType) -> String {
        if let Mem::Scratch(i) = mem
            && let Some(slot) = self.simt.as_ref().and_then(|t| t.held_slot(i))
        {
            return self.held_address(i, slot);
        }
        let (ty, pointer) = (memory_type(dtype), self.pointer_type(mem));
        let base = match mem {
            Mem::Scratch(i) if self.simt.as_ref().is_some_and(|t| t.is_ring(i)) => self.ring_address(i),
            Mem::Scratch(_) | Mem::Buffer(_) => self::pointer(mem),
        };
        let permuted = match mem {
            Mem::Scratch(i) => self.simt.as_ref().and_then(|t| t.plan.swizzles[i]),
            Mem::Buffer(_) => None,
        };
        if let Some(s) = permuted {
            let by = self.swizzle_of(s, index);
            let place = self.w.bin("xori", index, &by, "i64");
            return self.w.op(&format!("llvm.getelementptr inbounds {base}[{place}] : ({pointer}, i64) -> {pointer}, {ty}"));
        }
        if self.w.linear
            && let (Some(x), n) = self.w.parts(index)
            && n != 0
            && i32::try_from(n).is_ok()
        {
            // Not `inbounds`: the first may be outside.
            let first = self.w.op(&format!("llvm.getelementptr {base}[{x}] : ({pointer}, i64) -> {pointer}, {ty}"));
            return self.w.op(&format!("llvm.getelementptr {first}[{n}] : ({pointer}) -> {pointer}, {ty}"));
        }
        self.w.op(&format!("llvm.getelementptr inbounds {base}[{index}] : ({pointer}, i64) -> {pointer}, {ty}"))
    }

    fn expr(&mut self, e: &Expr) -> String {
        match e {
            Expr::Const(c, d) => self.constant(c.get(), *d),
            Expr::Dim(i) => format!("%d{i}"),
            Expr::Var(v) => match self.vars[v.0 as usize].clone() {
                Slot::Value(name) => name,
                Slot::Memory(p) => self.load(&p, self.type_of(*v)),
                Slot::Unset => base::bug!("{v} has no value in {}", self.k.name),
            },
            Expr::Load(mem, index) => {
                let at = self.expr(index);
                let dtype = self.k.mem_dtype(*mem);
                self.go_to_unit(index);
                let p = self.address(*mem, &at, dtype);
                let (ty, pointer, aligned) = (memory_type(dtype), self.pointer_type(*mem), self.alignment(*mem, index));
                let again = if self.simt.as_ref().is_some_and(|t| t.is_constant(self.k, *mem)) { " invariant" } else { "" };
                if let Some((upper, n)) = self.simt.as_ref().and_then(|t| t.half_of_word(self.k, *mem, index)) {
                    return self.half_of_word(&p, upper, &format!("{again} {{alignment = {n} : i64}}"), pointer);
                }
                let v = self.w.op(&format!("llvm.load {p}{again}{aligned} : {pointer} -> {ty}"));
                self.w.widen(v, dtype)
            }
            Expr::Map(f, args) => {
                if let Some(part) = self.simt.as_ref().and_then(|t| t.part_of_elem(*f, args)) {
                    return part;
                }
                let dtype = self.k.expr_dtype(&args[args.len() - 1]);
                if dtype == DType::F32 && self.simt.as_ref().is_some_and(simt::Simt::on_tensor_cores) {
                    match (f, &args[0]) {
                        // a·b - c.
                        (MapFn::Sub, Expr::Map(MapFn::Mul, factors)) => {
                            let values = [&factors[0], &factors[1], &args[1]].map(|e| self.expr(e));
                            let c = self.w.neg(&values[2], "f32");
                            return self.w.fma(&values[0], &values[1], &c, "f32");
                        }
                        // e^(x·log 2) = 2^x.
                        (MapFn::Exp, Expr::Map(MapFn::Mul, factors)) if is_log_2(&factors[1]) => {
                            let x = self.expr(&factors[0]);
                            return self.w.fast_exp2(&x);
                        }
                        // e^(x·factor - y): log₂ e goes into the factor and into y, which is often the same for many x.
                        (MapFn::Exp, Expr::Map(MapFn::Sub, parts)) if let Some((x, factor)) = scaled(&parts[0]) => {
                            let [x, y] = [x, &parts[1]].map(|e| self.expr(e));
                            let [factor, log2e] =
                                [factor * std::f64::consts::LOG2_E, std::f64::consts::LOG2_E].map(|c| self.w.float(c, "f32"));
                            let y = self.w.bin("mulf", &y, &log2e, "f32");
                            let y = self.w.neg(&y, "f32");
                            let power = self.w.fma(&x, &factor, &y, "f32");
                            return self.w.fast_exp2(&power);
                        }
                        _ => {}
                    }
                }
                let values: Vec<String> = args.iter().map(|a| self.expr(a)).collect();
                if matches!(f, MapFn::FloorDiv | MapFn::Rem) {
                    let ty = value_type(dtype);
                    if let Some(n) = args[1].known().filter(|n| *n > 0) {
                        return self.w.divide_by(*f, &values[0], n, self.not_negative(&args[0]), ty);
                    }
                    if args.iter().all(|a| self.not_negative(a)) {
                        return self.w.divide_unsigned(*f, &values[0], &values[1], ty);
                    }
                }
                // What is lost of e^x is far less than what a narrow float keeps.
                let coarse = self.w.narrow || self.simt.as_ref().is_some_and(simt::Simt::on_tensor_cores);
                if *f == MapFn::Exp && dtype == DType::F32 && coarse {
                    return self.w.fast_exp(&values[0]);
                }
                self.w.map(*f, &values, dtype)
            }
            Expr::Cast(to, x) => {
                // A place in a tile is small.
                if let (DType::I32, Expr::Map(f, args)) = (to, &**x)
                    && let Some(part) = self.simt.as_ref().and_then(|t| t.part_of_elem(*f, args))
                {
                    return self.w.convert("trunci", &part, "i64", "i32");
                }
                let from = self.k.expr_dtype(x);
                let v = self.expr(x);
                // A place on an axis that is counted by i32 is one.
                if (from, *to) == (DType::I64, DType::I32) && is_place(x, &self.places) == Some(true) {
                    return self.w.convert("trunci", &v, "i64", "i32");
                }
                self.w.cast(v, from, *to)
            }
            Expr::Order(x) => {
                let v = self.expr(x);
                self.w.order(&v)
            }
        }
    }
    /// The bf16 at an address as a half of the word that it has with its neighbour: a place or a mask makes it the f32 that it stands for.
    fn half_of_word(&mut self, p: &str, upper: bool, attributes: &str, pointer: &str) -> String {
        let first =
            if upper { self.w.op(&format!("llvm.getelementptr {p}[-1] : ({pointer}) -> {pointer}, i16")) } else { p.into() };
        let word = self.w.op(&format!("llvm.load {first}{attributes} : {pointer} -> i32"));
        let bits = if upper {
            let high = self.w.int(i64::from(-65536i32), "i32");
            self.w.bin("andi", &word, &high, "i32")
        } else {
            let places = self.w.int(16, "i32");
            self.w.bin("shli", &word, &places, "i32")
        };
        self.w.bits(&bits, "i32", "f32")
    }
    fn constant(&mut self, x: f64, d: DType) -> String {
        match value_type(d) {
            ty @ ("f64" | "f32") => self.w.float(x, ty),
            "i1" => self.w.constant(if x != 0.0 { "true" } else { "false" }, "i1"),
            // An f64 above the range stands for the greatest value of the type.
            ty => self.w.int(if ty == "i32" { i64::from(x as i32) } else { x as i64 }, ty),
        }
    }

    /// Whether an index is certainly 0 or more: extents, blocks, loops that start there, and what is made of them. Indices do not
    /// overflow.
    fn not_negative(&self, e: &Expr) -> bool {
        match e {
            Expr::Const(c, d) => d.is_int() && c.get() >= 0.0,
            Expr::Dim(_) => true,
            Expr::Var(v) => self.natural[v.0 as usize],
            Expr::Map(MapFn::Add | MapFn::Mul | MapFn::FloorDiv | MapFn::Rem | MapFn::Min, args) => {
                self.k.expr_dtype(&args[0]) == DType::I64 && args.iter().all(|a| self.not_negative(a))
            }
            Expr::Map(MapFn::Max, args) => self.k.expr_dtype(&args[0]) == DType::I64 && args.iter().any(|a| self.not_negative(a)),
            Expr::Map(..) | Expr::Load(..) | Expr::Cast(..) | Expr::Order(_) => false,
        }
    }
}
