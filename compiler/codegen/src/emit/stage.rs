//! Tiles that warp groups hold, stored by the tensor memory accelerator: each warp group writes strips of 64 columns to shared memory, and one of its threads
//! starts their copies, which run on while the next strip is written and the next tile multiplied.
//!
//! # Source: PTX ISA 8.6, sections 9.7.9.27 (cp.async.bulk.tensor), 9.7.14.5.16 (stmatrix). The swizzle is that of copies to shared memory (`gpu/hopper.rs`).

use super::Emitter;
use crate::gpu::hopper::{GROUP, GROUP_ROWS, STRIP_BYTES, strip};
use base::DType;
use tile::ir::Copy;

/// The named barrier of the first warp group; those before are for all groups and for turns.
const BARRIER: i64 = 5;

impl Emitter<'_> {
    /// Stores a held tile by the accelerator, if the plan says so.
    pub(super) fn stage_and_store(&mut self, c: &Copy) -> bool {
        let held: Vec<bool> = self.simt().plan.held.tiles.iter().map(Option::is_some).collect();
        let hopper = self.simt().plan.hopper.clone();
        let Some((map, staging)) = hopper.and_then(|h| Some((h.store_of(self.k, &held, c)?, h.staging?))) else { return false };
        let Some((buffer, scratch)) = c.sides() else { base::bug!("a copy to a buffer in {}", self.k.name) };
        let (from, dtype) = (self.k.scratch[scratch].dtype, self.k.buffers[buffer].dtype);
        let ty = if dtype == DType::BF16 { "bf16" } else { "f16" };
        let at: Vec<String> = c.axes.iter().map(|a| self.expr(&a.at)).collect();
        let mut at: Vec<String> = at.iter().map(|x| self.w.op(&format!("arith.trunci {x} : i64 to i32"))).collect();
        let group = self.group_number();
        let (rows, strip_bytes) = (self.w.int(GROUP_ROWS, "i32"), GROUP_ROWS * STRIP_BYTES);
        let own_rows = self.w.bin("muli", &group, &rows, "i32");
        let (row, col) = (at.len() - 2, at.len() - 1);
        at[row] = self.w.bin("addi", &at[row], &own_rows, "i32");
        let two_strips = self.w.int(2 * strip_bytes, "i32");
        let own = self.w.bin("muli", &group, &two_strips, "i32");
        let first = self.plus32("%rings", staging as i64);
        let first = self.w.bin("addi", &first, &own, "i32");
        let to = self.matrices_of_lane(&first);
        let barrier = self.plus32(&group, BARRIER);
        let threads = self.w.int(i64::from(GROUP) - 1, "i32");
        let number = self.w.bin("andi", "%tid_i32", &threads, "i32");
        // The first thread has started all copies: the others wait for none.
        let wait = |e: &mut Self| {
            e.asm("cp.async.bulk.wait_group.read 0;", "", "", "");
            e.asm(&format!("bar.sync $0, {GROUP};"), "r", &barrier, "i32");
        };
        let strips = c.cols / strip(dtype);
        if strips % 2 == 1 {
            // The last strip of what was stored before was the first one, too.
            wait(self);
        }
        for i in 0..strips {
            let by = i % 2 * strip_bytes;
            for sixteen in 0..strip(dtype) / 16 {
                // Two of eight columns, of each eight rows and eight rows: as threads hold them.
                let slot = usize::try_from(8 * (i * strip(dtype) / 16 + sixteen)).expect("it is small");
                let x: Vec<String> = (0..4).map(|j| self.held_pair(scratch, slot + 2 * j, (from, dtype), ty)).collect();
                let to = self.plus32(&to, by);
                let place = self.w.int(32 * sixteen, "i32");
                let to = self.w.bin("xori", &to, &place, "i32");
                let text = "stmatrix.sync.aligned.m8n8.x4.shared.b16 [$0], {$1, $2, $3, $4};";
                self.asm(text, "r,r,r,r,r", &format!("{to}, {}", x.join(", ")), "i32, i32, i32, i32, i32");
            }
            self.asm("fence.proxy.async.shared::cta;", "", "", "");
            // All have written this strip, and the one before is read: it may be written next.
            wait(self);
            let from = self.plus32(&first, by);
            let mut at = at.clone();
            at[col] = self.plus32(&at[col], i * strip(dtype));
            // A condition of the instructions, not a branch: what follows is for the whole warp.
            let places: Vec<String> = (0..at.len()).map(|i| format!("${}", 3 + i)).collect();
            let text = format!(
                "{{ .reg .pred first; setp.eq.b32 first, $2, 0; \
                 @first cp.async.bulk.tensor.{}d.global.shared::cta.bulk_group [$0, {{{}}}], [$1]; \
                 @first cp.async.bulk.commit_group; }}",
                at.len(),
                places.join(", ")
            );
            let constraints = ["l,r,r", &",r".repeat(at.len())].concat();
            let types = ["!llvm.ptr, i32, i32", &", i32".repeat(at.len())].concat();
            let inner_first: Vec<&str> = at.iter().rev().map(String::as_str).collect();
            self.asm(&text, &constraints, &format!("%map{map}, {from}, {number}, {}", inner_first.join(", ")), &types);
        }
        true
    }
    /// Where this lane's row of its four matrices of eight rows and columns is in a strip that begins there: of two down and then two across.
    fn matrices_of_lane(&mut self, strip: &str) -> String {
        let part = |e: &mut Self, shift: i64, mask: i64, by: i64| {
            let [shift, mask, by] = [shift, mask, by].map(|n| e.w.int(n, "i32"));
            let x = e.w.bin("shrui", "%tid_i32", &shift, "i32");
            let x = e.w.bin("andi", &x, &mask, "i32");
            e.w.bin("muli", &x, &by, "i32")
        };
        let warp = part(self, 5, 3, 16 * STRIP_BYTES);
        let (eight, row) = (part(self, 3, 1, 8 * STRIP_BYTES), part(self, 0, 7, STRIP_BYTES));
        // Sixteen bytes of a row are where the swizzle has them.
        let (across, swizzle) = (part(self, 4, 1, 16), part(self, 0, 7, 16));
        let piece = self.w.bin("xori", &across, &swizzle, "i32");
        [warp, eight, row, piece].iter().fold(strip.to_string(), |sum, x| self.w.bin("addi", &sum, x, "i32"))
    }
    /// Two neighbours that a thread holds, in one register.
    fn held_pair(&mut self, scratch: usize, slot: usize, (from, dtype): (DType, DType), ty: &str) -> String {
        if from == dtype {
            let p = self.held_address(scratch, slot);
            return self.w.op(&format!("llvm.load {p} {{alignment = 2 : i64}} : !llvm.ptr -> i32"));
        }
        let pair = [slot, slot + 1].map(|slot| {
            let p = self.held_address(scratch, slot);
            self.w.op(&format!("llvm.load {p} : !llvm.ptr -> f32"))
        });
        self.packed(&pair, ty)
    }
}
