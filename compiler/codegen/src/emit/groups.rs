//! Sums over groups of a held tile's rows, all rows of a group in one warp. A lane adds its own two rows, then lanes with the same columns halve what they
//! have with one another, so that each ends with sums of its own.

use super::{Emitter, Slot, tiles::Elem};
use crate::gpu::plan::GroupSum;
use tile::{LoopKind, Stmt, VarId};

/// Rows of a warp's part of a tile, and the lanes that share a row.
const WARP_ROWS: i64 = 16;
const ROW_LANES: i64 = 4;

impl Emitter<'_> {
    /// A loop over the columns of all groups: each thread takes those whose sums it gets.
    pub(super) fn each_group_held(&mut self, var: VarId, g: &GroupSum, body: &[Stmt]) {
        let bits = g.rows.min(8).ilog2();
        // Rows eight apart are of one group, or of two.
        let halves = if g.rows == WARP_ROWS { 1 } else { 2 };
        let (eight, two, four) = (self.w.int(8, "i64"), self.w.int(2, "i64"), self.w.int(ROW_LANES, "i64"));
        let (own_row, own_col) = (self.w.bin("divui", "%lane", &four, "i64"), self.w.bin("remui", "%lane", &four, "i64"));
        let own_col = self.w.bin("muli", &own_col, &two, "i64");
        self.natural[var.0 as usize] = true;
        self.alone(|e| {
            for half in 0..halves {
                let mut sums = Vec::new();
                for eight in 0..g.columns / 8 {
                    sums.push([0, 1].map(|i| {
                        let of = |e: &mut Self, half: i64| {
                            let p = e.held_address(g.scratch, (4 * eight + 2 * half + i) as usize);
                            e.load(&p, "f32")
                        };
                        let x = of(e, half);
                        if halves == 2 {
                            return x;
                        }
                        let y = of(e, 1);
                        e.w.bin("addf", &x, &y, "f32")
                    }));
                }
                for bit in (0..bits).rev() {
                    sums = e.halve(sums, ROW_LANES << bit);
                }
                // What this lane has now: so many times eight columns, from the lane's place in its group on.
                let (places, count) = (e.w.int((1 << bits) - 1, "i64"), e.w.int(sums.len() as i64, "i64"));
                let place = e.w.bin("andi", &own_row, &places, "i64");
                let place = e.w.bin("muli", &place, &count, "i64");
                let place = e.w.bin("muli", &place, &eight, "i64");
                let first = e.w.bin("addi", &place, &own_col, "i64");
                let (all, rows) = (e.w.int(WARP_ROWS, "i64"), e.w.int(g.rows, "i64"));
                let row = e.w.bin("muli", "%warp", &all, "i64");
                let row = e.w.bin("addi", &row, &own_row, "i64");
                let row = e.plus(&row, 8 * half);
                let group = e.w.bin("divui", &row, &rows, "i64");
                for (j, pair) in sums.into_iter().enumerate() {
                    for (i, sum) in pair.into_iter().enumerate() {
                        let col = e.plus(&first, (8 * j + i) as i64);
                        e.group_of_column(var, g, [&group, &col], &sum, body);
                    }
                }
            }
        });
    }
    /// Lanes whose numbers differ by a bit: the one without it keeps the first half of the columns, the other the second.
    fn halve(&mut self, sums: Vec<[String; 2]>, bit: i64) -> Vec<[String; 2]> {
        let (mask, zero) = (self.w.int(bit, "i64"), self.w.int(0, "i64"));
        let own = self.w.bin("andi", "%lane", &mask, "i64");
        let second = self.w.cmpi("ne", &own, &zero, "i64");
        let (low, high) = sums.split_at(sums.len() / 2);
        low.iter()
            .zip(high)
            .map(|(low, high)| {
                [0, 1].map(|i| {
                    let gives = self.w.select(&second, &low[i], &high[i], "f32");
                    let keeps = self.w.select(&second, &high[i], &low[i], "f32");
                    let gives = self.w.op(&format!("arith.bitcast {gives} : f32 to i32"));
                    let gets = self.swap(&gives, bit as usize);
                    let gets = self.w.op(&format!("arith.bitcast {gets} : i32 to f32"));
                    self.w.bin("addf", &keeps, &gets, "f32")
                })
            })
            .collect()
    }
    /// A turn of the loop, with the sum there.
    fn group_of_column(&mut self, var: VarId, g: &GroupSum, [group, col]: [&str; 2], sum: &str, body: &[Stmt]) {
        let columns = self.w.int(g.columns, "i64");
        let first = self.w.bin("muli", group, &columns, "i64");
        let at = self.w.bin("addi", &first, col, "i64");
        self.vars[var.0 as usize] = Slot::Value(at);
        let (row, col) = (group.to_string(), col.to_string());
        let elem = Elem { var, columns: g.columns, row, col, slot: 0, row_slot: 0, unit: None };
        self.simt_mut().elem = Some(elem);
        for (i, s) in body.iter().enumerate() {
            if i != g.at {
                self.stmt(s, LoopKind::Serial);
                continue;
            }
            let place = self.place(g.sum);
            let before = self.load(&place, "f32");
            let after = self.w.bin("addf", &before, sum, "f32");
            self.store(&after, &place, "f32");
        }
        self.simt_mut().elem = None;
    }
}
