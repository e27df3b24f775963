//! Rows that are copied by index, for warp groups: the tensor memory accelerator takes rectangles alone, so the threads of the producer's warp group
//! carry them, sixteen bytes each, past their registers.
//!
//! Eight lanes take a row of a strip, 128 neighbouring bytes. What is outside becomes 0. A stage's barrier is told by the copies themselves when they are
//! done, so that a thread never waits for them; a consumer makes what the generic proxy wrote visible to the asynchronous one. Where rows are is found
//! before a loop whose turns all have the same: a turn that waited for its indices was as long as the products.
//!
//! # Source: PTX ISA 8.6, sections 9.7.9.25 (cp.async), 9.7.13.15.17 (cp.async.mbarrier.arrive), 8.6 (proxies).

use super::{Emitter, convert::memory_type, pointer};
use crate::{
    copy::length,
    gpu::{
        access::expr_uses,
        hopper::{GROUP, Ring, STRIP_BYTES, is_load, strip},
    },
};
use base::DType;
use std::collections::BTreeSet;
use tile::{Expr, Mem, Stmt, VarId, ir::Copy};

/// Rows from one of a thread's to the next: eight lanes have one.
const ROWS_APART: i64 = GROUP as i64 / 8;

impl Emitter<'_> {
    /// Where a thread's rows of a copy begin, in elements; -1 of what is outside.
    fn places_of_rows(&mut self, c: &Copy) -> Vec<String> {
        let (Some(by), [rows, _]) = (c.index, c.axes.as_slice()) else { base::bug!("rows by index of two axes") };
        let length = length(self.k, by);
        let [length, extent, stride, at] = [&length, &rows.extent, &rows.stride, &rows.at].map(|e| self.expr(e));
        let none = self.w.int(-1, "i64");
        let row = self.row_of_gather();
        let place = |e: &mut Self, i: i64| {
            let r = e.plus(&row, i * ROWS_APART);
            let r = e.w.bin("addi", &at, &r, "i64");
            let index = e.index_at(by, &r, &length);
            let index = e.w.op(&format!("arith.extsi {index} : i32 to i64"));
            // As if without a sign, what is negative is beyond.
            let there = e.w.cmpi("ult", &index, &extent, "i64");
            let element = e.w.bin("muli", &index, &stride, "i64");
            e.w.select(&there, &element, &none, "i64")
        };
        (0..c.rows / ROWS_APART).map(|i| place(self, i)).collect()
    }
    /// An index (i32) that stands in a buffer of `length`, -1 past its end.
    pub(super) fn index_at(&mut self, by: usize, at: &str, length: &str) -> String {
        let (zero, none) = (self.w.int(0, "i64"), self.w.int(-1, "i32"));
        let inside = self.w.cmpi("slt", at, length, "i64");
        let known = self.w.select(&inside, at, &zero, "i64");
        let p = self.address(Mem::Buffer(by), &known, DType::I32);
        let index = self.w.op(&format!("llvm.load {p} : !llvm.ptr<1> -> i32"));
        self.w.select(&inside, &index, &none, "i32")
    }
    /// The first of a thread's rows; the others are [`ROWS_APART`].
    fn row_of_gather(&mut self) -> String {
        let (threads, eight) = (self.w.int(i64::from(self.simt().plan.threads), "i64"), self.w.int(8, "i64"));
        let own = self.w.bin("subi", "%tid", &threads, "i64");
        self.w.bin("divui", &own, &eight, "i64")
    }
    /// Before a loop: the places of the rows of those copies in it whose rows are the same in every turn.
    pub(super) fn find_rows(&mut self, var: VarId, body: &[Stmt]) {
        let mut set = BTreeSet::from([var]);
        changed(body, &mut set);
        let turns = |e: &Expr| expr_uses(e, &|v| set.contains(&v));
        for s in body {
            let (Stmt::Copy(c), true) = (s, is_load(s)) else { continue };
            let (Some(_), [rows, _]) = (c.index, c.axes.as_slice()) else { continue };
            if ![&rows.extent, &rows.stride, &rows.at].into_iter().any(turns) {
                let places = self.places_of_rows(c);
                self.simt_mut().turn.rows.push((c.clone(), places));
            }
        }
    }
    /// Starts a thread's part of a copy to `start`, the first byte of its scratch (i32).
    pub(super) fn gather_rows(&mut self, c: &Copy, start: &str) {
        let [_, cols] = c.axes.as_slice() else { base::bug!("rows by index of two axes") };
        let Mem::Buffer(from) = c.from else { base::bug!("rows of a buffer") };
        let places = self.simt().turn.rows.iter().find(|(known, _)| known == c).map(|(_, places)| places.clone());
        let places = places.unwrap_or_else(|| self.places_of_rows(c));
        let [width, first] = [&cols.extent, &cols.at].map(|e| self.expr(e));
        let dtype = self.k.buffers[from].dtype;
        let wide = strip(dtype);
        let [zero, seven, piece] = [0, 7, wide / 8].map(|n| self.w.int(n, "i64"));
        let row = self.row_of_gather();
        let chunk = self.w.bin("andi", "%tid", &seven, "i64");
        // All pieces of a thread have one place in their rows of 128 bytes.
        let turned = self.w.bin("andi", &row, &seven, "i64");
        let turned = self.w.bin("xori", &turned, &chunk, "i64");
        let (sixteen, row_bytes) = (self.w.int(16, "i64"), self.w.int(STRIP_BYTES, "i64"));
        let place = self.w.bin("muli", &turned, &sixteen, "i64");
        let by_row = self.w.bin("muli", &row, &row_bytes, "i64");
        let place = self.w.bin("addi", &place, &by_row, "i64");
        let place = self.w.op(&format!("arith.trunci {place} : i64 to i32"));
        let start = self.w.bin("addi", start, &place, "i32");
        let col = self.w.bin("muli", &chunk, &piece, "i64");
        let col = self.w.bin("addi", &first, &col, "i64");
        for strip in 0..c.cols / wide {
            let col = self.plus(&col, strip * wide);
            let within = self.w.cmpi("slt", &col, &width, "i64");
            for (i, element) in places.iter().enumerate() {
                let there = self.w.cmpi("sge", element, &zero, "i64");
                let there = self.w.bin("andi", &within, &there, "i1");
                let element = self.w.bin("addi", element, &col, "i64");
                let element = self.w.select(&there, &element, &zero, "i64");
                let (buffer, ty) = (pointer(Mem::Buffer(from)), memory_type(dtype));
                let p = self.w.op(&format!("llvm.getelementptr {buffer}[{element}] : (!llvm.ptr<1>, i64) -> !llvm.ptr<1>, {ty}"));
                let (all, nothing) = (self.w.int(16, "i32"), self.w.int(0, "i32"));
                let size = self.w.select(&there, &all, &nothing, "i32");
                let to = self.plus32(&start, (strip * c.rows + i as i64 * ROWS_APART) * STRIP_BYTES);
                self.asm(
                    "cp.async.cg.shared.global [$0], [$1], 16, $2;",
                    "r,l,r",
                    &format!("{to}, {p}, {size}"),
                    "i32, !llvm.ptr<1>, i32",
                );
            }
        }
    }
}

/// How many threads say of a ring's stage that it is there.
pub(super) fn arrivals(r: &Ring) -> u32 {
    1 + if r.gathered { GROUP } else { 0 }
}

/// The variables that statements set.
pub(super) fn changed(body: &[Stmt], found: &mut BTreeSet<VarId>) {
    for s in body {
        match s {
            Stmt::Let(v, _) | Stmt::Var(v, _) | Stmt::Assign(v, _) | Stmt::Accumulate(v, ..) | Stmt::For { var: v, .. } => {
                found.insert(*v);
            }
            Stmt::While { .. } | Stmt::If { .. } | Stmt::Store { .. } | Stmt::Dot(_) | Stmt::Copy(_) => {}
        }
        s.lists().into_iter().for_each(|b| changed(b, found));
    }
}
