//! Rows that are copied by index, for warp groups: the tensor memory accelerator takes rectangles alone, so the threads of the producer's warp group
//! carry them, sixteen bytes each, past their registers.
//!
//! Eight lanes take a row of a strip, 128 neighbouring bytes. What is outside becomes 0. A stage's barrier is told by the copies themselves when they are
//! done, so that a thread never waits for them; a consumer makes what the generic proxy wrote visible to the asynchronous one.
//!
//! # Source: PTX ISA 8.6, sections 9.7.9.25 (cp.async), 9.7.13.15.17 (cp.async.mbarrier.arrive), 8.6 (proxies).

use super::{Emitter, convert::memory_type, pointer};
use crate::{
    copy::length,
    gpu::hopper::{GROUP, Ring, STRIP, STRIP_BYTES},
};
use base::DType;
use tile::{Mem, ir::Copy};

impl Emitter<'_> {
    /// Starts a thread's part of a copy to `start`, the first byte of its scratch (i32).
    pub(super) fn gather_rows(&mut self, c: &Copy, start: &str) {
        let (Some(by), [rows, cols]) = (c.index, c.axes.as_slice()) else { base::bug!("rows by index of two axes") };
        let Mem::Buffer(from) = c.from else { base::bug!("rows of a buffer") };
        let length = length(self.k, by);
        let exprs = [&length, &rows.extent, &rows.stride, &rows.at, &cols.extent, &cols.at];
        let [length, extent, stride, at, width, first] = exprs.map(|e| self.expr(e));
        let [zero, none, seven, eight] = [0, -1, 7, 8].map(|n| self.w.int(n, "i64"));
        let threads = self.w.int(i64::from(self.simt().plan.threads), "i64");
        let own = self.w.bin("subi", "%tid", &threads, "i64");
        let (chunk, row) = (self.w.bin("andi", &own, &seven, "i64"), self.w.bin("divui", &own, &eight, "i64"));
        // Rows of a thread are 16 apart, so all its pieces have one place in their rows of 128 bytes.
        let turned = self.w.bin("andi", &row, &seven, "i64");
        let turned = self.w.bin("xori", &turned, &chunk, "i64");
        let (sixteen, row_bytes) = (self.w.int(16, "i64"), self.w.int(STRIP_BYTES, "i64"));
        let place = self.w.bin("muli", &turned, &sixteen, "i64");
        let by_row = self.w.bin("muli", &row, &row_bytes, "i64");
        let place = self.w.bin("addi", &place, &by_row, "i64");
        let place = self.w.op(&format!("arith.trunci {place} : i64 to i32"));
        let start = self.w.bin("addi", start, &place, "i32");
        let col = self.w.bin("muli", &chunk, &eight, "i64");
        let col = self.w.bin("addi", &first, &col, "i64");
        let apart = i64::from(GROUP) / 8;
        for i in 0..c.rows / apart {
            let further = self.w.int(i * apart, "i64");
            let r = self.w.bin("addi", &row, &further, "i64");
            let r = self.w.bin("addi", &at, &r, "i64");
            let inside = self.w.cmpi("slt", &r, &length, "i64");
            let known = self.w.select(&inside, &r, &zero, "i64");
            let p = self.address(Mem::Buffer(by), &known, DType::I32);
            let index = self.w.op(&format!("llvm.load {p} : !llvm.ptr<1> -> i32"));
            let index = self.w.op(&format!("arith.extsi {index} : i32 to i64"));
            let index = self.w.select(&inside, &index, &none, "i64");
            // As if without a sign, what is negative is beyond.
            let there = self.w.cmpi("ult", &index, &extent, "i64");
            let index = self.w.select(&there, &index, &zero, "i64");
            let element = self.w.bin("muli", &index, &stride, "i64");
            let element = self.w.bin("addi", &element, &col, "i64");
            for strip in 0..c.cols / STRIP {
                let further = self.w.int(strip * STRIP, "i64");
                let col = self.w.bin("addi", &col, &further, "i64");
                let within = self.w.cmpi("slt", &col, &width, "i64");
                let within = self.w.bin("andi", &within, &there, "i1");
                let element = self.w.bin("addi", &element, &further, "i64");
                let element = self.w.select(&within, &element, &zero, "i64");
                let (buffer, ty) = (pointer(Mem::Buffer(from)), memory_type(self.k.buffers[from].dtype));
                let p = self.w.op(&format!("llvm.getelementptr {buffer}[{element}] : (!llvm.ptr<1>, i64) -> !llvm.ptr<1>, {ty}"));
                let (all, nothing) = (self.w.int(16, "i32"), self.w.int(0, "i32"));
                let size = self.w.select(&within, &all, &nothing, "i32");
                let to = self.plus32(&start, strip * c.rows * STRIP_BYTES + i * apart * STRIP_BYTES);
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
