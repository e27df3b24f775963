//! Writes MLIR operations, on scalars or on vectors of several lanes, one function at a time.

use crate::gpu::lines::MARK;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt::Write,
};

/// A function that kernels call, emitted once a module where it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Helper {
    /// The C library's error function in f64.
    Erf,
    /// The C library's log(1 + x) in f64.
    Log1p,
    /// The sine of an f32, and of eight.
    Sin,
    /// The cosine, likewise.
    Cos,
}

/// The text of a function being written.
pub(super) struct Writer {
    /// Constants and stack slots, at the head of the function.
    pub head: String,
    /// What follows.
    pub out: String,
    /// Nesting, for indentation.
    pub depth: usize,
    /// How many numbers an operation works on; 1 are scalars.
    pub lanes: usize,
    /// Whether it is for a GPU, which converts narrow floats itself and has no C library.
    pub gpu: bool,
    /// Whether quotients and roots of f32 may be 2 units in the last place away, as what is stored is narrower by far.
    pub narrow: bool,
    /// The functions it calls.
    pub helpers: BTreeSet<Helper>,
    next: usize,
    constants: BTreeMap<String, String>,
    /// The values of integer constants.
    numbers: BTreeMap<String, i64>,
    /// Whether sums of i64 have their constant part last, so that neighbouring places are one place and some more.
    pub linear: bool,
    /// Whether what is rounded to bf16 and goes on as f32 is rounded as half of a pair: one instruction, but results that are held among many sums spill.
    pub pairs: bool,
    /// The codes of e4m3 that values are, which were rounded to them.
    pub codes: HashMap<String, String>,
    /// The values of i64 that are another and a number.
    sums: HashMap<String, (String, i64)>,
    /// What operations without effect gave, where that is in scope; and what each scope around added.
    known: HashMap<String, String>,
    scopes: Vec<Vec<String>>,
    /// The place in the sources of the function, if it has marks.
    pub place: Option<usize>,
    /// The one that the text at hand is marked with, and those of the levels around it.
    mark: Option<usize>,
    marks: Vec<Option<usize>>,
}

/// How operations begin that give the same whenever they are given the same.
const PURE: [&str; 5] = ["arith.", "math.", "llvm.getelementptr ", "llvm.ptrtoint ", "llvm.intr.fmuladd("];

/// A function's text without operations that have no effect and whose values nobody names: sums of which only the parts were asked for, and constants.
pub(super) fn without_unused(text: &str) -> String {
    let (mut used, mut kept) = (HashSet::new(), Vec::new());
    for line in text.lines().rev() {
        let mut names = line.split('%').skip(1);
        if let Some((value, operation)) = line.trim_start().split_once(" = ")
            && PURE.iter().any(|p| operation.starts_with(p))
        {
            if !used.contains(value.trim_start_matches('%')) {
                continue;
            }
            names.next();
        }
        used.extend(names.map(|n| &n[..n.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(n.len())]));
        kept.push(line);
    }
    kept.iter().rev().flat_map(|line| [*line, "\n"]).collect()
}

impl Writer {
    /// Of a function without text.
    pub fn new(lanes: usize) -> Writer {
        Writer {
            head: String::new(),
            out: String::new(),
            depth: 2,
            lanes,
            gpu: false,
            narrow: false,
            helpers: BTreeSet::new(),
            next: 0,
            constants: BTreeMap::new(),
            numbers: BTreeMap::new(),
            linear: false,
            pairs: false,
            codes: HashMap::new(),
            sums: HashMap::new(),
            known: HashMap::new(),
            scopes: Vec::new(),
            place: None,
            mark: None,
            marks: Vec::new(),
        }
    }
    /// What follows is of a place in the sources, until the next mark.
    pub fn mark(&mut self, place: usize) {
        if self.mark.replace(place) != Some(place) {
            self.line(&format!("{MARK}{place}"));
        }
    }
    /// A new name.
    pub fn fresh(&mut self) -> String {
        self.next += 1;
        format!("%{}", self.next)
    }
    /// A line of text.
    pub fn line(&mut self, text: &str) {
        let _ = writeln!(self.out, "{:width$}{text}", "", width = 2 * self.depth);
    }
    /// The value of an operation: a new one, or what the same gave before.
    pub fn op(&mut self, text: &str) -> String {
        let pure = PURE.iter().any(|p| text.starts_with(p));
        if pure && let Some(v) = self.known.get(text) {
            return v.clone();
        }
        let v = self.fresh();
        let _ = writeln!(self.out, "{:width$}{v} = {text}", "", width = 2 * self.depth);
        if pure {
            self.known.insert(text.to_string(), v.clone());
            if let Some(scope) = self.scopes.last_mut() {
                scope.push(text.to_string());
            }
        }
        v
    }
    /// The lines of `body`, one level in.
    pub fn inside(&mut self, body: impl FnOnce(&mut Self)) {
        self.enter();
        body(self);
        self.leave();
    }
    /// What follows is one level in.
    pub fn enter(&mut self) {
        self.depth += 1;
        self.scopes.push(Vec::new());
        self.marks.push(self.mark);
    }
    /// It ends, and with it what its operations gave.
    pub fn leave(&mut self) {
        self.depth -= 1;
        for text in self.scopes.pop().expect("a level was entered") {
            self.known.remove(&text);
        }
        if let Some(place) = self.marks.pop().flatten().or(self.place) {
            self.mark(place);
        }
    }
    /// What was written; what follows will stand before it.
    pub fn take(&mut self) -> String {
        self.known.clear();
        self.mark = self.place;
        std::mem::take(&mut self.out)
    }
    /// The type of `lanes` scalars.
    pub fn ty(&self, scalar: &str) -> String {
        if self.lanes == 1 { scalar.into() } else { format!("vector<{}x{scalar}>", self.lanes) }
    }
    /// A constant, once a function.
    pub fn constant(&mut self, literal: &str, scalar: &str) -> String {
        let ty = self.ty(scalar);
        let text = match self.lanes {
            _ if scalar == "i1" && self.lanes == 1 => literal.to_string(),
            1 => format!("{literal} : {ty}"),
            _ => format!("dense<{literal}> : {ty}"),
        };
        if let Some(name) = self.constants.get(&text) {
            return name.clone();
        }
        let name = format!("%c{}", self.constants.len());
        let _ = writeln!(self.head, "    {name} = arith.constant {text}");
        self.constants.insert(text, name.clone());
        name
    }
    /// A float constant.
    pub fn float(&mut self, x: f64, scalar: &str) -> String {
        let bits = match scalar {
            "f64" => format!("0x{:016X}", x.to_bits()),
            _ => format!("0x{:08X}", (x as f32).to_bits()),
        };
        self.constant(&bits, scalar)
    }
    /// An integer constant.
    pub fn int(&mut self, n: i64, scalar: &str) -> String {
        let name = self.constant(&n.to_string(), scalar);
        if scalar == "i64" && self.lanes == 1 {
            self.numbers.insert(name.clone(), n);
        }
        name
    }

    /// `arith.op a, b`.
    pub fn bin(&mut self, op: &str, a: &str, b: &str, scalar: &str) -> String {
        let number = |v: &str| if scalar == "i64" { self.numbers.get(v).copied() } else { None };
        match (op, number(a), number(b)) {
            ("addi", Some(a), Some(b)) if let Some(n) = a.checked_add(b) => return self.int(n, scalar),
            ("muli", Some(a), Some(b)) if let Some(n) = a.checked_mul(b) => return self.int(n, scalar),
            ("addi", Some(0), None) | ("muli", Some(1), None) => return b.to_string(),
            ("addi" | "subi", None, Some(0)) | ("muli", None, Some(1)) => return a.to_string(),
            ("muli", Some(0), None) => return a.to_string(),
            ("muli", None, Some(0)) => return b.to_string(),
            _ => {}
        }
        if self.linear
            && scalar == "i64"
            && let Some(v) = self.linear(op, [a, b])
        {
            return v;
        }
        let ty = self.ty(scalar);
        self.op(&format!("arith.{op} {a}, {b} : {ty}"))
    }
    /// A value of i64 as another and a number; a constant is none and a number.
    pub fn parts(&self, v: &str) -> (Option<String>, i64) {
        match (self.numbers.get(v), self.sums.get(v)) {
            (Some(n), _) => (None, *n),
            (None, Some((x, n))) => (Some(x.clone()), *n),
            (None, None) => (Some(v.to_string()), 0),
        }
    }
    /// A sum or product of i64 with what is constant in it last, if that is something.
    fn linear(&mut self, op: &str, [a, b]: [&str; 2]) -> Option<String> {
        let [(x, m), (y, n)] = [a, b].map(|v| self.parts(v));
        match (op, x, y) {
            ("muli", Some(x), None) | ("muli", None, Some(x)) if m != 0 && n != 0 => {
                // One of both numbers is the factor.
                let (factor, rest) = if self.numbers.contains_key(b) { (b, m) } else { (a, n) };
                let product = self.bin("muli", &x, factor, "i64");
                let rest = rest.wrapping_mul(self.numbers[factor]);
                Some(self.plus_number(&product, rest))
            }
            ("addi", Some(x), None) | ("addi", None, Some(x)) => Some(self.plus_number(&x, m.wrapping_add(n))),
            ("subi", Some(x), None) => Some(self.plus_number(&x, m.wrapping_sub(n))),
            ("addi", Some(x), Some(y)) if m != 0 || n != 0 => {
                let sum = self.bin("addi", &x, &y, "i64");
                Some(self.plus_number(&sum, m.wrapping_add(n)))
            }
            ("subi", Some(x), Some(y)) if m != 0 || n != 0 => {
                let rest = self.bin("subi", &x, &y, "i64");
                Some(self.plus_number(&rest, m.wrapping_sub(n)))
            }
            _ => None,
        }
    }
    /// A value that is no sum with a number, and a number.
    fn plus_number(&mut self, x: &str, n: i64) -> String {
        let (x, n) = match self.parts(x) {
            (Some(x), m) => (x, m.wrapping_add(n)),
            (None, m) => return self.int(m.wrapping_add(n), "i64"),
        };
        if n == 0 {
            return x;
        }
        let number = self.int(n, "i64");
        let sum = self.op(&format!("arith.addi {x}, {number} : i64"));
        self.sums.insert(sum.clone(), (x, n));
        sum
    }
    /// `math.op a`.
    pub fn math(&mut self, op: &str, a: &str, scalar: &str) -> String {
        let ty = self.ty(scalar);
        self.op(&format!("math.{op} {a} : {ty}"))
    }
    /// −a.
    pub fn neg(&mut self, a: &str, scalar: &str) -> String {
        let ty = self.ty(scalar);
        self.op(&format!("arith.negf {a} : {ty}"))
    }
    /// a·b + c in one rounding, whatever the processor.
    pub fn fma(&mut self, a: &str, b: &str, c: &str, scalar: &str) -> String {
        let ty = self.ty(scalar);
        self.op(&format!("math.fma {a}, {b}, {c} : {ty}"))
    }
    /// a·b + c in one rounding if that is faster.
    pub fn muladd(&mut self, a: &str, b: &str, c: &str, scalar: &str) -> String {
        let ty = self.ty(scalar);
        self.op(&format!("llvm.intr.fmuladd({a}, {b}, {c}) : ({ty}, {ty}, {ty}) -> {ty}"))
    }
    /// c ? a : b.
    pub fn select(&mut self, c: &str, a: &str, b: &str, scalar: &str) -> String {
        let ty = self.ty(scalar);
        let conditions = if self.lanes == 1 { String::new() } else { format!("{}, ", self.ty("i1")) };
        self.op(&format!("arith.select {c}, {a}, {b} : {conditions}{ty}"))
    }
    /// A comparison of floats.
    pub fn cmpf(&mut self, predicate: &str, a: &str, b: &str, scalar: &str) -> String {
        let ty = self.ty(scalar);
        self.op(&format!("arith.cmpf {predicate}, {a}, {b} : {ty}"))
    }
    /// A comparison of integers.
    pub fn cmpi(&mut self, predicate: &str, a: &str, b: &str, scalar: &str) -> String {
        let ty = self.ty(scalar);
        self.op(&format!("arith.cmpi {predicate}, {a}, {b} : {ty}"))
    }
    /// A conversion: `arith.op a : from to to`.
    pub fn convert(&mut self, op: &str, a: &str, from: &str, to: &str) -> String {
        let (from, to) = (self.ty(from), self.ty(to));
        self.op(&format!("arith.{op} {a} : {from} to {to}"))
    }
    /// c₀ + x·(c₁ + x·(…)), by Horner's rule.
    pub fn polynomial(&mut self, x: &str, coefficients: &[f64], scalar: &str) -> String {
        let mut rest = coefficients.iter().rev();
        let mut p = self.float(*rest.next().expect("a polynomial has coefficients"), scalar);
        for c in rest {
            let c = self.float(*c, scalar);
            p = self.muladd(&p, x, &c, scalar);
        }
        p
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_names_is_left_out() {
        let text = "    %c0 = arith.constant 1 : i64\n    %c1 = arith.constant 2 : i64\n    // @3\n    %1 = arith.addi %x, %c1 : i64\n    %2 = \
                    arith.addi %x, %c0 : i64\n    %3 = llvm.load %p : !llvm.ptr -> i64\n    llvm.store %2, %p : i64, !llvm.ptr\n";
        let kept = without_unused(text);
        assert_eq!(kept, text.lines().filter(|l| !l.contains("%c1")).flat_map(|l| [l, "\n"]).collect::<String>());
        assert_eq!(without_unused(&kept), kept);
    }

    #[test]
    fn what_is_constant_in_a_sum_is_last() {
        let mut w = Writer::new(1);
        w.linear = true;
        let [three, four, five] = [3, 4, 5].map(|n| w.int(n, "i64"));
        let x = w.bin("addi", &three, "%x", "i64");
        let x = w.bin("muli", &x, &four, "i64");
        let y = w.bin("subi", "%y", &five, "i64");
        let sum = w.bin("addi", &x, &y, "i64");
        let (Some(rest), 7) = w.parts(&sum) else { panic!("12 - 5: {:?}", w.parts(&sum)) };
        let product = w.bin("muli", "%x", &four, "i64");
        assert_eq!(w.bin("addi", &product, "%y", "i64"), rest);
        // What is left of a difference is nothing constant.
        let [a, b] = [x, product].map(|v| w.bin("subi", &v, "%z", "i64"));
        let twelve = w.int(12, "i64");
        assert_eq!(w.bin("subi", &a, &twelve, "i64"), b);
    }
}
