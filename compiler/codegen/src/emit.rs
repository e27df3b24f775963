//! Tile programs as MLIR text: `func`, `scf`, `arith`, `math` and `llvm` dialects. Mutable variables and scratch are stack slots, which
//! LLVM promotes; loops have plain induction variables, which its vectoriser recognises.
//!
//! Floats may be contracted (a·b + c as one operation) everywhere; sums of [`Stmt::Accumulate`] in vector loops may be reordered. NaN
//! and infinity keep their meaning.

mod math;

use crate::dot::expand_dot;
use base::DType;
use graph::op::{MapFn, ReduceFn};
use std::fmt::Write;
use tile::{Expr, Kernel, LoopKind, Mem, Stmt, VarId, ir::compute_dtype};

/// The module of some kernels.
pub(crate) fn module(kernels: &[Kernel]) -> String {
    let mut out = String::from("module {\n");
    out.push_str(math::PRELUDE);
    for k in kernels {
        let k = expand_dot(k);
        let mut e = Emitter {
            k: &k,
            out: String::new(),
            head: String::new(),
            next: 0,
            depth: 2,
            vars: vec![Slot::Unset; k.vars.len()],
            natural: vec![false; k.vars.len()],
        };
        out.push_str(&e.kernel());
    }
    out.push_str("}\n");
    out
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
    out: String,
    /// Stack slots, at the head of the function.
    head: String,
    next: usize,
    depth: usize,
    vars: Vec<Slot>,
    /// The immutable i64 variables that are never negative.
    natural: Vec<bool>,
}

/// The MLIR type of values of a compute dtype.
fn value_type(d: DType) -> &'static str {
    match compute_dtype(d) {
        DType::F64 => "f64",
        DType::F32 | DType::BF16 | DType::F16 | DType::E4M3 => "f32",
        DType::I64 => "i64",
        DType::I32 => "i32",
        DType::Bool => "i1",
    }
}

/// The MLIR type in memory.
fn memory_type(d: DType) -> &'static str {
    match d {
        DType::F64 => "f64",
        DType::F32 => "f32",
        DType::F16 => "f16",
        DType::I64 => "i64",
        DType::I32 => "i32",
        // In integers: conversions are library calls on processors without instructions for them.
        DType::BF16 => "i16",
        DType::E4M3 | DType::Bool => "i8",
    }
}

impl Emitter<'_> {
    fn kernel(&mut self) -> String {
        let k = self.k;
        let buffers: Vec<String> =
            (0..k.buffers.len()).map(|i| format!("%b{i}: !llvm.ptr {{llvm.noalias, llvm.align = 4 : i64}}")).collect();
        let dims: Vec<String> = (0..k.dims.len()).map(|i| format!("%d{i}: i64")).collect();
        let args = [buffers, dims, vec!["%block: i64".to_string()]].concat().join(", ");
        for (i, s) in k.scratch.iter().enumerate() {
            let size = s.elems.max(1);
            let _ = writeln!(self.head, "    %n{i} = arith.constant {size} : i64");
            let ty = memory_type(s.dtype);
            let _ = writeln!(self.head, "    %s{i} = llvm.alloca %n{i} x {ty} {{alignment = 64 : i64}} : (i64) -> !llvm.ptr");
        }
        let _ = writeln!(self.head, "    %one = arith.constant 1 : i64");
        self.vars[0] = Slot::Value("%block".into());
        self.natural[0] = true;
        self.stmts(&k.body, LoopKind::Serial);
        let mut text = format!("  func.func private @{}_block({args}) attributes {{passthrough = [\"noinline\"]}} {{\n", k.name);
        text.push_str(&self.head);
        text.push_str(&self.out);
        text.push_str("    return\n  }\n");
        // The entry point loads pointers and extents once and runs its blocks.
        let _ = writeln!(text, "  func.func @{}(%buffers: !llvm.ptr, %dims: !llvm.ptr, %begin: i64, %end: i64) {{", k.name);
        let mut passed = Vec::new();
        let mut types = Vec::new();
        for i in 0..k.buffers.len() {
            let _ = writeln!(text, "    %pb{i} = llvm.getelementptr %buffers[{i}] : (!llvm.ptr) -> !llvm.ptr, !llvm.ptr");
            let _ = writeln!(text, "    %b{i} = llvm.load %pb{i} : !llvm.ptr -> !llvm.ptr");
            passed.push(format!("%b{i}"));
            types.push("!llvm.ptr");
        }
        for i in 0..k.dims.len() {
            let _ = writeln!(text, "    %pd{i} = llvm.getelementptr %dims[{i}] : (!llvm.ptr) -> !llvm.ptr, i64");
            let _ = writeln!(text, "    %d{i} = llvm.load %pd{i} : !llvm.ptr -> i64");
            passed.push(format!("%d{i}"));
            types.push("i64");
        }
        passed.push("%block".into());
        types.push("i64");
        let _ = writeln!(text, "    %one = arith.constant 1 : i64");
        let _ = writeln!(text, "    scf.for %block = %begin to %end step %one : i64 {{");
        let _ = writeln!(text, "      func.call @{}_block({}) : ({}) -> ()", k.name, passed.join(", "), types.join(", "));
        text.push_str("    }\n    return\n  }\n");
        text
    }

    fn fresh(&mut self) -> String {
        self.next += 1;
        format!("%{}", self.next)
    }
    fn line(&mut self, text: &str) {
        let _ = writeln!(self.out, "{}{text}", "  ".repeat(self.depth));
    }
    /// A new value of an operation.
    fn op(&mut self, text: &str) -> String {
        let v = self.fresh();
        self.line(&format!("{v} = {text}"));
        v
    }
    fn float(&mut self, x: f64, ty: &str) -> String {
        let bits = match ty {
            "f64" => format!("0x{:016X}", x.to_bits()),
            _ => format!("0x{:08X}", (x as f32).to_bits()),
        };
        self.op(&format!("arith.constant {bits} : {ty}"))
    }
    fn int(&mut self, n: i64, ty: &str) -> String {
        self.op(&format!("arith.constant {n} : {ty}"))
    }
    fn constant(&mut self, x: f64, d: DType) -> String {
        match value_type(d) {
            ty @ ("f64" | "f32") => self.float(x, ty),
            "i1" => self.op(&format!("arith.constant {}", x != 0.0)),
            // An f64 above the range stands for the greatest value of the type.
            ty => {
                let n = if ty == "i32" { i64::from(x as i32) } else { x as i64 };
                self.int(n, ty)
            }
        }
    }

    // --- statements ---

    fn stmts(&mut self, body: &[Stmt], kind: LoopKind) {
        body.iter().for_each(|s| self.stmt(s, kind));
    }

    fn slot(&mut self, v: VarId) -> String {
        let p = format!("%m{}", v.0);
        let ty = value_type(self.k.vars[v.0 as usize]);
        let _ = writeln!(self.head, "    %c{} = arith.constant 1 : i64", v.0);
        let _ = writeln!(self.head, "    {p} = llvm.alloca %c{} x {ty} : (i64) -> !llvm.ptr", v.0);
        self.vars[v.0 as usize] = Slot::Memory(p.clone());
        p
    }
    fn pointer(&self, v: VarId) -> String {
        match &self.vars[v.0 as usize] {
            Slot::Memory(p) => p.clone(),
            Slot::Value(_) | Slot::Unset => base::bug!("{v} is not mutable in {}", self.k.name),
        }
    }

    fn stmt(&mut self, s: &Stmt, kind: LoopKind) {
        match s {
            Stmt::Let(v, e) => {
                let value = self.expr(e);
                self.natural[v.0 as usize] = self.not_negative(e);
                self.vars[v.0 as usize] = Slot::Value(value);
            }
            Stmt::Var(v, e) => {
                let value = self.expr(e);
                let p = self.slot(*v);
                let ty = value_type(self.k.vars[v.0 as usize]);
                self.line(&format!("llvm.store {value}, {p} : {ty}, !llvm.ptr"));
            }
            Stmt::Assign(v, e) => {
                let value = self.expr(e);
                let p = self.pointer(*v);
                let ty = value_type(self.k.vars[v.0 as usize]);
                self.line(&format!("llvm.store {value}, {p} : {ty}, !llvm.ptr"));
            }
            Stmt::Accumulate(v, f, e) => {
                let value = self.expr(e);
                let p = self.pointer(*v);
                let dtype = self.k.vars[v.0 as usize];
                let ty = value_type(dtype);
                let old = self.op(&format!("llvm.load {p} : !llvm.ptr -> {ty}"));
                let new = self.combine(*f, &old, &value, dtype, kind);
                self.line(&format!("llvm.store {new}, {p} : {ty}, !llvm.ptr"));
            }
            Stmt::Store { mem, index, value } => {
                let v = self.expr(value);
                let at = self.expr(index);
                let dtype = self.k.mem_dtype(*mem);
                let p = self.address(*mem, &at, dtype);
                let stored = self.narrow(v, dtype);
                self.line(&format!("llvm.store {stored}, {p} : {}, !llvm.ptr", memory_type(dtype)));
            }
            Stmt::For { var, lo, hi, kind, body } => {
                self.natural[var.0 as usize] = self.not_negative(lo);
                let (lo, hi) = (self.expr(lo), self.expr(hi));
                let i = self.fresh();
                self.vars[var.0 as usize] = Slot::Value(i.clone());
                self.line(&format!("scf.for {i} = {lo} to {hi} step %one : i64 {{"));
                self.inside(|e| e.stmts(body, *kind));
                self.line("}");
            }
            Stmt::While { cond, body } => {
                self.line("scf.while : () -> () {");
                self.inside(|e| {
                    let c = e.expr(cond);
                    e.line(&format!("scf.condition({c})"));
                });
                self.line("} do {");
                self.inside(|e| {
                    e.stmts(body, LoopKind::Serial);
                    e.line("scf.yield");
                });
                self.line("}");
            }
            Stmt::If { cond, then, otherwise } => {
                let c = self.expr(cond);
                self.line(&format!("scf.if {c} {{"));
                self.inside(|e| e.stmts(then, kind));
                if !otherwise.is_empty() {
                    self.line("} else {");
                    self.inside(|e| e.stmts(otherwise, kind));
                }
                self.line("}");
            }
            Stmt::Dot(_) => base::bug!("products are expanded before they are emitted"),
        }
    }
    fn inside(&mut self, body: impl FnOnce(&mut Self)) {
        self.depth += 1;
        body(self);
        self.depth -= 1;
    }

    fn combine(&mut self, f: ReduceFn, a: &str, b: &str, dtype: DType, kind: LoopKind) -> String {
        let ty = value_type(dtype);
        let float = dtype.is_float();
        let fast = if kind == LoopKind::Vector { " fastmath<reassoc,contract>" } else { " fastmath<contract>" };
        let op = match (f, float) {
            (ReduceFn::Sum, true) => format!("arith.addf {a}, {b}{fast}"),
            (ReduceFn::Prod, true) => format!("arith.mulf {a}, {b}{fast}"),
            (ReduceFn::Max, true) => format!("arith.maximumf {a}, {b}"),
            (ReduceFn::Min, true) => format!("arith.minimumf {a}, {b}"),
            (ReduceFn::Sum, false) => format!("arith.addi {a}, {b}"),
            (ReduceFn::Prod, false) => format!("arith.muli {a}, {b}"),
            (ReduceFn::Max, false) => format!("arith.maxsi {a}, {b}"),
            (ReduceFn::Min, false) => format!("arith.minsi {a}, {b}"),
        };
        self.op(&format!("{op} : {ty}"))
    }

    // --- memory ---

    fn address(&mut self, mem: Mem, index: &str, dtype: DType) -> String {
        let base = match mem {
            Mem::Buffer(i) => format!("%b{i}"),
            Mem::Scratch(i) => format!("%s{i}"),
        };
        self.op(&format!("llvm.getelementptr inbounds {base}[{index}] : (!llvm.ptr, i64) -> !llvm.ptr, {}", memory_type(dtype)))
    }
    /// A loaded value in its compute dtype.
    fn widen(&mut self, v: String, dtype: DType) -> String {
        match dtype {
            DType::F64 | DType::F32 | DType::I64 | DType::I32 => v,
            DType::F16 => self.op(&format!("arith.extf {v} : f16 to f32")),
            DType::BF16 => {
                let (word, places) = (self.op(&format!("arith.extui {v} : i16 to i32")), self.int(16, "i32"));
                let bits = self.op(&format!("arith.shli {word}, {places} : i32"));
                self.op(&format!("arith.bitcast {bits} : i32 to f32"))
            }
            DType::E4M3 => self.op(&format!("func.call @lode_from_e4m3({v}) : (i8) -> f32")),
            DType::Bool => {
                let zero = self.int(0, "i8");
                self.op(&format!("arith.cmpi ne, {v}, {zero} : i8"))
            }
        }
    }
    /// A value as it is stored.
    fn narrow(&mut self, v: String, dtype: DType) -> String {
        match dtype {
            DType::F64 | DType::F32 | DType::I64 | DType::I32 => v,
            DType::F16 => self.op(&format!("arith.truncf {v} : f32 to f16")),
            DType::BF16 => self.op(&format!("func.call @lode_to_bf16({v}) : (f32) -> i16")),
            DType::E4M3 => self.op(&format!("func.call @lode_to_e4m3({v}) : (f32) -> i8")),
            DType::Bool => self.op(&format!("arith.extui {v} : i1 to i8")),
        }
    }

    // --- expressions ---

    fn expr(&mut self, e: &Expr) -> String {
        match e {
            Expr::Const(c, d) => self.constant(c.get(), *d),
            Expr::Dim(i) => format!("%d{i}"),
            Expr::Var(v) => match self.vars[v.0 as usize].clone() {
                Slot::Value(name) => name,
                Slot::Memory(p) => self.op(&format!("llvm.load {p} : !llvm.ptr -> {}", value_type(self.k.vars[v.0 as usize]))),
                Slot::Unset => base::bug!("{v} has no value in {}", self.k.name),
            },
            Expr::Load(mem, index) => {
                let at = self.expr(index);
                let dtype = self.k.mem_dtype(*mem);
                let p = self.address(*mem, &at, dtype);
                let v = self.op(&format!("llvm.load {p} : !llvm.ptr -> {}", memory_type(dtype)));
                self.widen(v, dtype)
            }
            Expr::Map(f, args) => {
                let dtype = self.k.expr_dtype(&args[args.len() - 1]);
                // Floor division by a power of two is a shift; the remainder a mask.
                if let (MapFn::FloorDiv | MapFn::Rem, Some(n)) = (f, args.last().and_then(Expr::known))
                    && n > 0
                    && n & (n - 1) == 0
                {
                    let a = self.expr(&args[0]);
                    let ty = value_type(dtype);
                    return if *f == MapFn::FloorDiv {
                        let shift = self.int(i64::from(n.trailing_zeros()), ty);
                        self.op(&format!("arith.shrsi {a}, {shift} : {ty}"))
                    } else {
                        let mask = self.int(n - 1, ty);
                        self.op(&format!("arith.andi {a}, {mask} : {ty}"))
                    };
                }
                let values: Vec<String> = args.iter().map(|a| self.expr(a)).collect();
                if matches!(f, MapFn::FloorDiv | MapFn::Rem) && args.iter().all(|a| self.not_negative(a)) {
                    return self.floor_div_unsigned(*f, &values[0], &values[1], args[1].known(), value_type(dtype));
                }
                self.map(*f, &values, dtype)
            }
            Expr::Cast(to, x) => {
                let from = self.k.expr_dtype(x);
                let v = self.expr(x);
                self.cast(v, from, *to)
            }
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
            Expr::Map(..) | Expr::Load(..) | Expr::Cast(..) => false,
        }
    }

    fn cast(&mut self, v: String, from: DType, to: DType) -> String {
        let (a, b) = (value_type(from), value_type(to));
        let v = match (a, b) {
            _ if a == b => v,
            ("f32", "f64") => self.op(&format!("arith.extf {v} : f32 to f64")),
            ("f64", "f32") => self.op(&format!("arith.truncf {v} : f64 to f32")),
            ("f32" | "f64", "i1") => {
                let zero = self.float(0.0, a);
                self.op(&format!("arith.cmpf une, {v}, {zero} : {a}"))
            }
            ("i64" | "i32", "i1") => {
                let zero = self.int(0, a);
                self.op(&format!("arith.cmpi ne, {v}, {zero} : {a}"))
            }
            ("i1", "f32" | "f64") => self.op(&format!("arith.uitofp {v} : i1 to {b}")),
            ("i1", _) => self.op(&format!("arith.extui {v} : i1 to {b}")),
            ("f32" | "f64", _) => self.op(&format!("llvm.call_intrinsic \"llvm.fptosi.sat.{b}.{a}\"({v}) : ({a}) -> {b}")),
            ("i64" | "i32", "f32" | "f64") => self.op(&format!("arith.sitofp {v} : {a} to {b}")),
            ("i32", _) => self.op(&format!("arith.extsi {v} : i32 to i64")),
            _ => {
                let (least, greatest) = (self.int(i64::from(i32::MIN), a), self.int(i64::from(i32::MAX), a));
                let v = self.op(&format!("arith.maxsi {v}, {least} : {a}"));
                let v = self.op(&format!("arith.minsi {v}, {greatest} : {a}"));
                self.op(&format!("arith.trunci {v} : i64 to i32"))
            }
        };
        // A narrow float is rounded to and computed with in f32.
        match to {
            DType::BF16 | DType::F16 | DType::E4M3 => {
                let narrow = self.narrow(v, to);
                self.widen(narrow, to)
            }
            DType::F64 | DType::F32 | DType::I64 | DType::I32 | DType::Bool => v,
        }
    }
}
