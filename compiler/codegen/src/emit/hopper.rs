//! What runs on warp groups: barriers, copies by the tensor memory accelerator, products by `wgmma`. What for: `gpu/hopper.rs`.

use super::{
    Emitter,
    gather::{arrivals, changed},
};
use crate::{
    copy::length,
    dot::{Matrix, Tiled},
    gpu::{
        access::{Access, expr_uses},
        hopper::{
            GROUP, GROUP_ROWS, Hopper, MAX_COLUMNS, Ring, STRIP_BYTES, comes_by_halves, copy_bytes, is_gathered, is_load,
            is_vector, limited_rows, runs, strip,
        },
    },
};
use base::DType;
use std::collections::{BTreeMap, BTreeSet};
use tile::{
    Expr, LoopKind, Mem, Stmt, VarId,
    ir::{Axis, Copy, Dot},
};

/// Where a thread is in the rings.
#[derive(Clone, Debug, Default)]
pub(super) struct Turn {
    /// Stack slots of the stage at hand and of its barriers' phase, by ring.
    slots: Vec<[String; 2]>,
    /// The stage that a consumer has: its number, and its first byte in shared memory (i32).
    current: BTreeMap<usize, [String; 2]>,
    /// A stack slot of the barrier to give back when the products under way are done, 0 for none, and how many there are of a turn; while some may be
    /// under way.
    under_way: Option<(String, u32)>,
    /// Products under way, the first first.
    pending: Vec<Pending>,
    /// Where all threads of the producer's warp group work: which of them starts the copies of rectangles.
    gathers: Option<String>,
    /// Where the rows begin that a thread copies by index, by the copy, if that is known before a loop.
    pub(super) rows: Vec<(Copy, Vec<String>)>,
    /// Whether a loop is around.
    in_loop: bool,
    /// Whether products are left out, because none of the warp group's rows counts.
    idle: bool,
    /// Whether that is decided around the loop at hand.
    decided: bool,
}

/// A product under way.
#[derive(Clone, Debug)]
struct Pending {
    dot: Dot,
    /// The held memories that it touches.
    access: Access,
    /// The registers that are its first operand.
    first: Vec<String>,
    /// The barriers of the stages that are free when it is done.
    frees: Vec<String>,
}

/// Registers that producers keep and consumers get, by the number of consumers and of blocks that share a processor.
fn registers(h: &Hopper) -> Option<[u32; 2]> {
    match (h.consumers, h.neighbours, h.gathers()) {
        (1, 4, false) => Some([40, 88]),
        (1, 3, false) => Some([40, 120]),
        (1, 2, false) if h.heavy => Some([24, 232]),
        (1, 2, false) => Some([40, 216]),
        (2, 1, false) => Some([40, 232]),
        (2, 1, true) => Some([72, 216]),
        (3, 1, false) => Some([32, 160]),
        _ => None,
    }
}

impl Emitter<'_> {
    pub(super) fn hopper(&self) -> &Hopper {
        self.simt().plan.hopper.as_ref().expect("it runs on warp groups")
    }
    pub(super) fn asm(&mut self, text: &str, constraints: &str, operands: &str, types: &str) {
        let memory = if constraints.is_empty() { "~{memory}" } else { ",~{memory}" };
        self.w.line(&format!(
            "llvm.inline_asm has_side_effects asm_dialect = att \"{text}\", \"{constraints}{memory}\" {operands} : ({types}) -> ()"
        ));
    }
    /// `a + n` of i32.
    pub(super) fn plus32(&mut self, a: &str, n: i64) -> String {
        if n == 0 {
            return a.to_string();
        }
        let n = self.w.int(n, "i32");
        self.w.bin("addi", a, &n, "i32")
    }

    /// What every thread finds out first: where the rings begin.
    pub(super) fn rings_begin(&mut self, shared_bytes: usize) {
        let start = self.w.op("llvm.ptrtoint %shared : !llvm.ptr<3> to i32");
        let past = self.plus32(&start, shared_bytes as i64 + 1023);
        let mask = self.w.int(-1024, "i32");
        self.w.line(&format!("%rings = arith.andi {past}, {mask} : i32"));
    }

    /// The program for both kinds of threads.
    pub(super) fn warp_groups(&mut self, body: &[Stmt]) {
        let h = self.hopper().clone();
        let threads = self.simt().plan.threads;
        let zero = self.w.int(0, "i64");
        let first = self.w.cmpi("eq", "%tid", &zero, "i64");
        self.w.line(&format!("scf.if {first} {{"));
        self.inside(|e| {
            for r in &h.rings {
                for stage in 0..r.stages {
                    let count = [arrivals(r), threads / 32 * if h.pairs { 2 } else { 1 }];
                    for (side, count) in count.into_iter().enumerate() {
                        let at = e.plus32("%rings", (r.barriers + 8 * (side * r.stages + stage)) as i64);
                        e.asm(&format!("mbarrier.init.shared::cta.b64 [$0], {count};"), "r", &at, "i32");
                    }
                }
            }
            e.asm("fence.mbarrier_init.release.cluster;", "", "", "");
        });
        self.w.line("}");
        let count = self.w.int(i64::from(threads), "i64");
        let elected = self.w.cmpi("eq", "%tid", &count, "i64");
        if !h.maps.is_empty() {
            // Tensor maps come from memory while the barriers are made.
            self.w.line(&format!("scf.if {elected} {{"));
            self.inside(|e| {
                for map in 0..h.maps.len() {
                    e.asm("prefetch.tensormap [$0];", "l", &format!("%map{map}"), "!llvm.ptr");
                }
            });
            self.w.line("}");
        }
        if h.pairs {
            self.asm("barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;", "", "", "");
        } else {
            self.asm("bar.sync 0;", "", "", "");
        }
        let computes = self.w.cmpi("slt", "%tid", &count, "i64");
        let registers = registers(&h);
        self.w.line(&format!("scf.if {computes} {{"));
        self.inside(|e| {
            if let Some([_, more]) = registers {
                e.asm(&format!("setmaxnreg.inc.sync.aligned.u32 {more};"), "", "", "");
            }
            e.begin_rings(&h);
            if takes_turns(body, h.consumers) {
                // The first group begins.
                let (group, last) = (e.group_number(), e.w.int(i64::from(h.consumers) - 1, "i32"));
                let passes = e.w.cmpi("eq", &group, &last, "i32");
                e.w.line(&format!("scf.if {passes} {{"));
                e.inside(Self::pass_turn);
                e.w.line("}");
            }
            e.blocks(body, |e| e.stmts(body, LoopKind::Serial));
            if h.staging.is_some() {
                // What is still to be stored is in memory that ends with the block.
                e.asm("cp.async.bulk.wait_group.read 0;", "", "", "");
            }
        });
        self.w.line("} else {");
        self.inside(|e| {
            if let Some([fewer, _]) = registers {
                e.asm(&format!("setmaxnreg.dec.sync.aligned.u32 {fewer};"), "", "", "");
            }
            if h.gathers() {
                e.begin_rings(&h);
                e.simt_mut().turn.gathers = Some(elected);
                e.alone(|e| e.blocks(body, |e| e.produce(body)));
                return;
            }
            e.w.line(&format!("scf.if {elected} {{"));
            e.inside(|e| {
                e.begin_rings(&h);
                e.alone(|e| e.blocks(body, |e| e.produce(body)));
            });
            e.w.line("}");
        });
        self.w.line("}");
        if h.pairs {
            // The other block may still write here, and tell these barriers.
            self.asm("barrier.cluster.arrive.release; barrier.cluster.wait.acquire;", "", "", "");
        }
    }
    fn begin_rings(&mut self, h: &Hopper) {
        let zero = self.w.int(0, "i32");
        let slots: Vec<[String; 2]> = h.rings.iter().map(|_| [self.slot("i32"), self.slot("i32")]).collect();
        for p in slots.iter().flatten() {
            self.store(&zero, p, "i32");
        }
        self.simt_mut().turn = Turn { slots, ..Turn::default() };
    }
    /// Waits until the barrier's phase of this parity is over.
    fn wait_barrier(&mut self, at: &str, parity: &str) {
        self.asm(
            "{ .reg .pred done; again: mbarrier.try_wait.parity.shared::cta.b64 done, [$0], $1; @!done bra again; }",
            "r,r",
            &format!("{at}, {parity}"),
            "i32, i32",
        );
    }
    /// The stage at hand: its number, its phase, and where its barrier of this side is.
    fn stage(&mut self, ring: usize, r: &Ring, side: usize) -> [String; 3] {
        let [slot, phase] = self.simt().turn.slots[ring].clone();
        let (slot, phase) = (self.load(&slot, "i32"), self.load(&phase, "i32"));
        let barrier = self.barrier(r, side, &slot);
        [slot, phase, barrier]
    }
    fn barrier(&mut self, r: &Ring, side: usize, slot: &str) -> String {
        let eight = self.w.int(8, "i32");
        let by = self.w.bin("muli", slot, &eight, "i32");
        let first = self.plus32("%rings", (r.barriers + 8 * side * r.stages) as i64);
        self.w.bin("addi", &first, &by, "i32")
    }
    /// Where a stage begins.
    fn stage_start(&mut self, r: &Ring, slot: &str) -> String {
        let bytes = self.w.int(r.bytes as i64, "i32");
        let by = self.w.bin("muli", slot, &bytes, "i32");
        let first = self.plus32("%rings", r.start as i64);
        self.w.bin("addi", &first, &by, "i32")
    }
    /// Goes on to the next stage.
    fn advance(&mut self, ring: usize, r: &Ring, slot: &str) {
        let [slot_at, phase_at] = self.simt().turn.slots[ring].clone();
        let phase = self.load(&phase_at, "i32");
        let [zero, one, stages] = [0, 1, r.stages as i64].map(|n| self.w.int(n, "i32"));
        let next = self.w.bin("addi", slot, &one, "i32");
        let around = self.w.cmpi("eq", &next, &stages, "i32");
        let next = self.w.select(&around, &zero, &next, "i32");
        let flipped = self.w.bin("xori", &phase, &one, "i32");
        let phase = self.w.select(&around, &flipped, &phase, "i32");
        self.store(&next, &slot_at, "i32");
        self.store(&phase, &phase_at, "i32");
    }

    // --- the producer ---

    /// The copies of statements, and what decides about them.
    fn produce(&mut self, body: &[Stmt]) {
        let runs = runs(body);
        for (i, s) in body.iter().enumerate() {
            if let Some(run) = runs.iter().find(|r| r.start == i) {
                self.start_copies(&body[run.clone()]);
            }
            match s {
                s if is_load(s) => {}
                Stmt::For { var, lo, hi, body, .. } if has_loads(body) => {
                    self.natural[var.0 as usize] = self.not_negative(lo);
                    let (lo, hi) = (self.expr(lo), self.expr(hi));
                    let (i, one) = (self.w.fresh(), self.w.int(1, "i64"));
                    let outside = self.simt().turn.rows.clone();
                    self.find_rows(*var, body);
                    self.vars[var.0 as usize] = super::Slot::Value(i.clone());
                    self.w.line(&format!("scf.for {i} = {lo} to {hi} step {one} : i64 {{"));
                    self.inside(|e| e.produce(body));
                    self.w.line("}");
                    self.simt_mut().turn.rows = outside;
                }
                Stmt::While { cond, body } if has_loads(body) => {
                    self.w.line("scf.while : () -> () {");
                    self.inside(|e| {
                        let c = e.expr(cond);
                        e.w.line(&format!("scf.condition({c})"));
                    });
                    self.w.line("} do {");
                    self.inside(|e| {
                        e.produce(body);
                        e.w.line("scf.yield");
                    });
                    self.w.line("}");
                }
                Stmt::If { cond, then, otherwise } if has_loads(then) || has_loads(otherwise) => {
                    let c = self.expr(cond);
                    self.w.line(&format!("scf.if {c} {{"));
                    self.inside(|e| e.produce(then));
                    self.w.line("} else {");
                    self.inside(|e| e.produce(otherwise));
                    self.w.line("}");
                }
                s => {
                    // What touches a block's memory, or writes, is for the consumers.
                    let a = Access::of(std::slice::from_ref(s));
                    let private = a.read.iter().any(|m| matches!(m, Mem::Scratch(_)));
                    if !private && a.written.is_empty() {
                        self.stmt(s, LoopKind::Serial);
                    }
                }
            }
        }
    }
    /// Starts neighbouring copies when their stage is empty.
    fn start_copies(&mut self, run: &[Stmt]) {
        let h = self.hopper().clone();
        let copies: Vec<&Copy> = run.iter().filter_map(|s| if let Stmt::Copy(c) = s { Some(c) } else { None }).collect();
        let ring = ring_of(&h, copies[0]);
        let r = &h.rings[ring];
        let (gathered, copies): (Vec<&Copy>, Vec<&Copy>) = copies.into_iter().partition(|c| is_gathered(c));
        // Where runs are is read while the stage is not empty yet.
        let copies: Vec<(&Copy, Vec<String>)> = copies.into_iter().map(|c| (c, self.places_of_runs(c))).collect();
        let [slot, phase, empty] = self.stage(ring, r, 1);
        let one = self.w.int(1, "i32");
        let before = self.w.bin("xori", &phase, &one, "i32");
        self.wait_barrier(&empty, &before);
        let full = self.barrier(r, 0, &slot);
        let start = self.stage_start(r, &slot);
        match self.simt().turn.gathers.clone() {
            None => self.start_rectangles(&h, r, &copies, [&full, &start]),
            Some(elected) => {
                self.w.line(&format!("scf.if {elected} {{"));
                self.inside(|e| e.start_rectangles(&h, r, &copies, [&full, &start]));
                self.w.line("}");
                if r.gathered {
                    for c in gathered {
                        let Mem::Scratch(scratch) = c.to else { base::bug!("a copy to scratch") };
                        let to = self.plus32(&start, r.offsets[&scratch] as i64);
                        self.gather_rows(c, &to);
                    }
                    self.asm("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [$0];", "r", &full, "i32");
                }
            }
        }
        self.advance(ring, r, &slot);
    }
    /// The index (i32) of each run that a copy takes by index, along the last axis but two.
    fn places_of_runs(&mut self, c: &Copy) -> Vec<String> {
        let Some(by) = c.index.filter(|_| c.takes_runs()) else { return Vec::new() };
        let at = self.expr(&c.axes[c.axes.len() - 3].at);
        let length = self.expr(&length(self.k, by));
        let place = |e: &mut Self, i: i64| {
            let at = e.plus(&at, i);
            e.index_at(by, &at, &length)
        };
        (0..c.rows / c.run).map(|i| place(self, i)).collect()
    }
    /// Starts a stage's copies of rectangles, each with the places of its runs, by the tensor memory accelerator: its barrier, and its first byte.
    fn start_rectangles(&mut self, h: &Hopper, r: &Ring, copies: &[(&Copy, Vec<String>)], [full, start]: [&str; 2]) {
        let bytes: i64 = copies.iter().map(|(c, _)| copy_bytes(self.k, c)).sum();
        self.asm(&format!("mbarrier.arrive.expect_tx.shared::cta.b64 _, [$0], {bytes};"), "r", full, "i32");
        for (c, runs) in copies {
            let Mem::Scratch(scratch) = c.to else { base::bug!("a copy to scratch") };
            let map = h.map_of(self.k, c);
            let coordinates: Vec<String> = c.axes.iter().map(|a| self.expr(&a.at)).collect();
            let coordinates: Vec<String> =
                coordinates.iter().map(|x| self.w.op(&format!("arith.trunci {x} : i64 to i32"))).collect();
            let (last, outer) = coordinates.split_last().expect("it has axes");
            let wide = if is_vector(self.k, c) { c.cols } else { strip(self.k.mem_dtype(c.to)) };
            let strips = c.cols / wide;
            let (n, rectangles) = (c.axes.len(), runs.len().max(1));
            if let Some(paired) = c.paired.as_ref().filter(|_| comes_by_halves(c)) {
                let to = self.plus32(start, r.offsets[&scratch] as i64);
                self.start_halves(c, paired, (map, strips, wide), &coordinates, [full, &to]);
                continue;
            }
            for (strip, i) in (0..strips).flat_map(|strip| (0..rectangles).map(move |i| (strip, i))) {
                let rows_before = strip * c.rows + i as i64 * c.run;
                let to = self.plus32(start, r.offsets[&scratch] as i64 + rows_before * STRIP_BYTES);
                let first = self.plus32(last, strip * wide);
                let mut outer = outer.to_vec();
                if let Some(run) = runs.get(i) {
                    outer[n - 3] = run.clone();
                }
                let at: Vec<String> = outer.into_iter().chain([first]).collect();
                self.start_rectangle(map, &at, [full, &to], false);
            }
        }
    }
    /// Starts a copy of a rectangle to a place in shared memory, and if it says so to the same place of the other block of the cluster.
    fn start_rectangle(&mut self, map: usize, at: &[String], [full, to]: [&str; 2], for_both: bool) {
        let n = at.len();
        let places: Vec<String> = (0..n).map(|i| format!("${}", 3 + i)).collect();
        let (how, blocks) = if for_both { (".multicast::cluster", ", 3") } else { ("", "") };
        let text = format!(
            "cp.async.bulk.tensor.{n}d.shared::cluster.global.mbarrier::complete_tx::bytes{how} [$0], [$1, {{{}}}], [$2]{blocks};",
            places.join(", ")
        );
        let constraints = ["r,l,r", &",r".repeat(n)].concat();
        let types = ["i32, !llvm.ptr, i32", &", i32".repeat(n)].concat();
        let inner_first: Vec<&str> = at.iter().rev().map(String::as_str).collect();
        self.asm(&text, &constraints, &format!("{to}, %map{map}, {full}, {}", inner_first.join(", ")), &types);
    }
    /// Starts a copy that the other block of the cluster may make too: then half of its rows for both, else all for this one.
    fn start_halves(
        &mut self,
        c: &Copy,
        paired: &Expr,
        (map, strips, wide): (usize, i64, i64),
        coordinates: &[String],
        [full, to]: [&str; 2],
    ) {
        let half = c.rows / 2;
        let (rows, columns) = (coordinates.len() - 2, coordinates.len() - 1);
        let (one, rows32) = (self.w.int(1, "i32"), self.w.int(half, "i32"));
        let own = self.w.bin("andi", "%ctaid_i32", &one, "i32");
        let own = self.w.bin("muli", &own, &rows32, "i32");
        let bytes = self.w.int(STRIP_BYTES, "i32");
        let own_bytes = self.w.bin("muli", &own, &bytes, "i32");
        let paired = self.expr(paired);
        let start = |e: &mut Self, before: &str, to: &str, for_both: bool| {
            let mut at = coordinates.to_vec();
            at[rows] = e.w.bin("addi", &coordinates[rows], before, "i32");
            for strip in 0..strips {
                at[columns] = e.plus32(&coordinates[columns], strip * wide);
                let to = e.plus32(to, strip * c.rows * STRIP_BYTES);
                e.start_rectangle(map, &at, [full, &to], for_both);
            }
        };
        self.w.line(&format!("scf.if {paired} {{"));
        self.inside(|e| {
            let to = e.w.bin("addi", to, &own_bytes, "i32");
            start(e, &own, &to, true);
        });
        self.w.line("} else {");
        self.inside(|e| {
            for i in 0..2 {
                let before = e.w.int(i * half, "i32");
                let to = e.plus32(to, i * half * STRIP_BYTES);
                start(e, &before, &to, false);
            }
        });
        self.w.line("}");
    }

    // --- consumers ---

    /// A list of statements: each run of copies is waited for where it stands, and its memory given back after its last use. Products run on until
    /// a statement touches their sums, or writes what they read, or the list ends.
    pub(super) fn staged(&mut self, body: &[Stmt]) {
        let h = self.hopper().clone();
        let runs = runs(body);
        let rings: Vec<usize> = runs
            .iter()
            .map(|r| if let Stmt::Copy(c) = &body[r.start] { ring_of(&h, c) } else { base::bug!("a run of copies") })
            .collect();
        // The last use before the same memory is copied to again.
        let last_use = |run: usize| {
            let of_ring = |m: &Mem| matches!(m, Mem::Scratch(i) if h.ring_of.get(i) == Some(&rings[run]));
            let access = |s: &Stmt| Access::of(std::slice::from_ref(s));
            let rest = body.iter().enumerate().skip(runs[run].end).take_while(|(_, s)| !access(s).written.iter().any(of_ring));
            rest.filter(|(_, s)| access(s).read.iter().any(of_ring)).map(|(i, _)| i).last()
        };
        let before = self.simt().turn.pending.len();
        let taken = if self.simt().turn.in_loop { taken_in_turns(body, h.consumers) } else { None };
        let mut together: Vec<&Stmt> = Vec::new();
        let mut begun = 0;
        for (i, s) in body.iter().enumerate() {
            if i < begun {
                continue;
            }
            let loops = if self.simt().turn.decided { 0 } else { alike_loops(&body[i..]) };
            if loops > 1 {
                begun = i + loops;
                self.settle_conflicts(&Access::of(&body[i..begun]));
                self.loops_of_products(&body[i..begun]);
                continue;
            }
            for (run, ring) in rings.iter().enumerate().filter(|(run, _)| runs[*run].start == i) {
                let r = &h.rings[*ring];
                let [slot, phase, full] = self.stage(*ring, r, 0);
                self.wait_barrier(&full, &phase);
                if r.gathered {
                    self.asm("fence.proxy.async.shared::cta;", "", "", "");
                }
                let start = self.stage_start(r, &slot);
                self.clear_outside(&body[runs[run].clone()], r, &start);
                self.simt_mut().turn.current.insert(*ring, [slot, start]);
                if last_use(run).is_none() || self.simt().turn.idle {
                    self.release(*ring, r);
                }
            }
            if is_load(s) || self.simt().turn.idle && matches!(s, Stmt::Dot(_)) {
                continue;
            }
            if let (Some((under_way, count)), Stmt::Dot(_)) = (self.simt().turn.under_way.clone(), s) {
                together.push(s);
                let next = body.get(i + 1);
                if next.is_some_and(|next| self.lies_behind(&together, next)) {
                    continue;
                }
                let dots: Vec<&Dot> = dots_of(&std::mem::take(&mut together));
                if next.is_some() {
                    self.wgmma(&dots, None);
                    continue;
                }
                self.wgmma(&dots, Some(count));
                // The products before are done, and what they read is free.
                self.give_back(&under_way);
                let [ring] = rings[..] else { base::bug!("one run of copies") };
                let (r, current) = (&h.rings[ring], self.simt_mut().turn.current.remove(&ring));
                let [slot, _] = current.expect("it was waited for");
                let empty = self.barrier(r, 1, &slot);
                self.store(&empty, &under_way, "i32");
                self.advance(ring, r, &slot);
                continue;
            }
            let access = Access::of(std::slice::from_ref(s));
            let goes_on = if let Stmt::Dot(d) = s { self.goes_on(d, &access) } else { false };
            if !goes_on {
                self.settle_conflicts(&access);
            }
            let done: Vec<usize> = (0..rings.len()).filter(|run| last_use(*run) == Some(i)).map(|run| rings[run]).collect();
            if let Stmt::Dot(d) = s {
                if taken.is_some_and(|[begin, _]| begin == i) {
                    self.await_turn();
                }
                let first = self.wgmma(&[d], None);
                if taken.is_some_and(|[_, end]| end == i) {
                    self.pass_turn();
                }
                let mut frees: Vec<String> = done.iter().map(|ring| self.pass(*ring, &h.rings[*ring])).collect();
                let copied = |m: &Mem| matches!(m, Mem::Scratch(i) if h.ring_of.contains_key(i));
                let mut access = access;
                access.read.retain(|m| !copied(m));
                if let Some(before) = goes_on.then(|| self.simt_mut().turn.pending.pop()).flatten() {
                    frees.extend(before.frees);
                    access.join(&before.access);
                }
                self.simt_mut().turn.pending.push(Pending { dot: d.clone(), access, first, frees });
                continue;
            }
            self.stmt(s, LoopKind::Serial);
            for ring in done {
                let r = &h.rings[ring];
                // A product under way may still read it.
                let reads = |p: &Pending| {
                    [&p.dot.a, &p.dot.b].iter().any(|x| matches!(x.mem, Mem::Scratch(i) if h.ring_of.get(&i) == Some(&ring)))
                };
                match self.simt().turn.pending.iter().rposition(reads) {
                    Some(p) => {
                        let empty = self.pass(ring, r);
                        self.simt_mut().turn.pending[p].frees.push(empty);
                    }
                    None => self.release(ring, r),
                }
            }
        }
        let pending = self.simt().turn.pending.len();
        if pending > before {
            self.settle_pending(pending);
        }
    }
    /// Rows past a limit that only the run finds out were copied from what follows: zeros take their place.
    fn clear_outside(&mut self, run: &[Stmt], r: &Ring, start: &str) {
        let copies: Vec<&Copy> = run.iter().filter_map(|s| if let Stmt::Copy(c) = s { Some(c) } else { None }).collect();
        let limited: Vec<(&Copy, &Axis)> = copies.into_iter().filter_map(|c| Some((c, limited_rows(c)?))).collect();
        let threads = self.w.int(i64::from(self.simt().plan.threads), "i64");
        let mut any: Option<String> = None;
        for (c, rows) in limited {
            let Mem::Scratch(scratch) = c.to else { base::bug!("a copy to scratch") };
            let (limit, at) = (self.expr(&rows.extent), self.expr(&rows.at));
            let inside = self.w.bin("subi", &limit, &at, "i64");
            let (zero, all) = (self.w.int(0, "i64"), self.w.int(c.rows, "i64"));
            let inside = self.w.bin("maxsi", &inside, &zero, "i64");
            let ends = self.w.cmpi("slt", &inside, &all, "i64");
            self.w.line(&format!("scf.if {ends} {{"));
            self.inside(|e| {
                // Pieces of sixteen bytes, eight a row of a strip.
                let (eight, sixteen) = (e.w.int(8, "i64"), e.w.int(16, "i64"));
                let (first, last) = (e.w.bin("muli", &inside, &eight, "i64"), e.w.bin("muli", &all, &eight, "i64"));
                let first = e.w.bin("addi", &first, "%tid", "i64");
                let piece = e.w.fresh();
                e.w.line(&format!("scf.for {piece} = {first} to {last} step {threads} : i64 {{"));
                e.inside(|e| {
                    let by = e.w.bin("muli", &piece, &sixteen, "i64");
                    let by = e.w.op(&format!("arith.trunci {by} : i64 to i32"));
                    let at = e.w.bin("addi", start, &by, "i32");
                    for strip in 0..c.cols / strip(e.k.scratch[scratch].dtype) {
                        let at = e.plus32(&at, r.offsets[&scratch] as i64 + strip * c.rows * STRIP_BYTES);
                        e.asm("st.shared.v4.b32 [$0], {0, 0, 0, 0};", "r", &at, "i32");
                    }
                });
                e.w.line("}");
            });
            self.w.line("}");
            any = Some(any.map_or(ends.clone(), |any| self.w.bin("ori", &any, &ends, "i1")));
        }
        if let Some(any) = any {
            self.w.line(&format!("scf.if {any} {{"));
            self.inside(|e| {
                e.asm("fence.proxy.async.shared::cta;", "", "", "");
                e.wait_consumers();
            });
            self.w.line("}");
        }
    }
    /// Waits until it is this warp group's turn: barriers from 2 on are for the groups.
    fn await_turn(&mut self) {
        let group = self.group_number();
        let own = self.plus32(&group, 2);
        self.asm(&format!("bar.sync $0, {};", 2 * GROUP), "r", &own, "i32");
    }
    /// Gives the turn to the next warp group.
    fn pass_turn(&mut self) {
        let groups = self.hopper().consumers;
        let (group, last) = (self.group_number(), self.w.int(i64::from(groups) - 1, "i32"));
        let (first, next) = (self.w.int(2, "i32"), self.plus32(&group, 3));
        let around = self.w.cmpi("eq", &group, &last, "i32");
        let next = self.w.select(&around, &first, &next, "i32");
        self.asm(&format!("bar.arrive $0, {};", 2 * GROUP), "r", &next, "i32");
    }
    /// This thread's warp group, i32.
    pub(super) fn group_number(&mut self) -> String {
        let group = self.w.int(i64::from(GROUP), "i64");
        let group = self.w.bin("divui", "%tid", &group, "i64");
        self.w.op(&format!("arith.trunci {group} : i64 to i32"))
    }
    /// Waits for the products under way up to the last that touches what is touched next.
    fn settle_conflicts(&mut self, access: &Access) {
        if let Some(last) = self.simt().turn.pending.iter().rposition(|p| p.access.conflicts(access)) {
            self.settle_pending(last + 1);
        }
    }
    /// Whether a product adds to the sums of the last one under way, and touches nothing else that is: the hardware takes them in order.
    fn goes_on(&self, d: &Dot, access: &Access) -> bool {
        let Some((last, before)) = self.simt().turn.pending.split_last() else { return false };
        let own = d.accumulate && last.dot.c == d.c && last.first.is_empty() && d.a.mem != d.c.mem;
        own && before.iter().all(|p| !p.access.conflicts(access))
    }
    /// Waits for the first `count` products under way.
    fn settle_pending(&mut self, count: usize) {
        let all = std::mem::take(&mut self.simt_mut().turn.pending);
        for (i, p) in all[..count].iter().enumerate() {
            self.settle(&p.dot, all.len() - 1 - i, &p.first);
            p.frees.iter().for_each(|empty| self.arrive(empty));
        }
        self.simt_mut().turn.pending = all[count..].to_vec();
    }
    /// Goes on to a ring's next stage; the barrier that gives this one back.
    fn pass(&mut self, ring: usize, r: &Ring) -> String {
        let [slot, _] = self.simt_mut().turn.current.remove(&ring).expect("it was waited for");
        let empty = self.barrier(r, 1, &slot);
        self.advance(ring, r, &slot);
        empty
    }
    /// A warp tells a barrier, that of both blocks of a cluster: a lane each.
    fn arrive(&mut self, empty: &str) {
        let first = self.arriving();
        self.arrive_if(&first, empty);
    }
    /// Whether this lane tells barriers.
    fn arriving(&mut self) -> String {
        let blocks = self.w.int(if self.hopper().pairs { 2 } else { 1 }, "i64");
        self.w.cmpi("slt", "%lane", &blocks, "i64")
    }
    fn arrive_if(&mut self, arriving: &str, empty: &str) {
        let pairs = self.hopper().pairs;
        self.w.line(&format!("scf.if {arriving} {{"));
        self.inside(|e| {
            if !pairs {
                return e.asm("mbarrier.arrive.shared::cta.b64 _, [$0];", "r", empty, "i32");
            }
            let block = e.w.op("arith.trunci %lane : i64 to i32");
            let text =
                "{ .reg .b32 there; mapa.shared::cluster.u32 there, $0, $1; mbarrier.arrive.shared::cluster.b64 _, [there]; }";
            e.asm(text, "r,r", &format!("{empty}, {block}"), "i32, i32");
        });
        self.w.line("}");
    }
    /// A loop of copies and products of them: those of a turn run while the next is prepared.
    pub(super) fn loop_of_products(&mut self, var: VarId, body: &[Stmt], emit: impl Fn(&mut Self)) {
        let dots = only_products(body);
        if dots.is_empty() {
            let outside = std::mem::replace(&mut self.simt_mut().turn.in_loop, true);
            emit(self);
            self.simt_mut().turn.in_loop = outside;
            return;
        }
        let (decided, idle) = (self.simt().turn.decided, self.simt().turn.idle);
        if decided && idle {
            return emit(self);
        }
        let busy = rows_of_all(var, body, &dots).filter(|_| !decided).map(|counted| self.counts(counted));
        if let Some(busy) = &busy {
            self.w.line(&format!("scf.if {busy} {{"));
            self.w.enter();
        }
        let (under_way, zero) = (self.slot("i32"), self.w.int(0, "i32"));
        self.store(&zero, &under_way, "i32");
        self.simt_mut().turn.under_way = Some((under_way.clone(), self.num_together(body)));
        emit(self);
        self.simt_mut().turn.under_way = None;
        dots.into_iter().for_each(|d| self.settle(d, 0, &[]));
        self.give_back(&under_way);
        if busy.is_some() {
            self.w.leave();
            self.w.line("} else {");
            self.simt_mut().turn.idle = true;
            self.inside(&emit);
            self.simt_mut().turn.idle = false;
            self.w.line("}");
        }
    }
    /// Loops of products that follow each other, with one decision whether the warp group's rows count: the sums stay where they are in between.
    fn loops_of_products(&mut self, loops: &[Stmt]) {
        let Some(Stmt::For { var, body, .. }) = loops.first() else { base::bug!("loops") };
        let dots = only_products(body);
        let busy = rows_of_all(*var, body, &dots).map(|counted| self.counts(counted)).expect("rows that count");
        self.simt_mut().turn.decided = true;
        self.w.line(&format!("scf.if {busy} {{"));
        self.inside(|e| loops.iter().for_each(|s| e.stmt(s, LoopKind::Serial)));
        self.w.line("} else {");
        self.simt_mut().turn.idle = true;
        self.inside(|e| loops.iter().for_each(|s| e.stmt(s, LoopKind::Serial)));
        self.simt_mut().turn.idle = false;
        self.w.line("}");
        self.simt_mut().turn.decided = false;
    }
    /// Whether one of this warp group's rows is among the first that count.
    fn counts(&mut self, counted: &Expr) -> String {
        let (counted, group, rows) = (self.expr(counted), self.group_number(), self.w.int(GROUP_ROWS, "i64"));
        let group = self.w.op(&format!("arith.extui {group} : i32 to i64"));
        let first = self.w.bin("muli", &group, &rows, "i64");
        self.w.cmpi("slt", &first, &counted, "i64")
    }
    fn tiled(&self, d: &Dot) -> Tiled {
        Tiled::new(self.k, d).unwrap_or_else(|| base::bug!("a product in {} is not expanded", self.k.name))
    }
    /// Whether a product goes on where those before end: the same first operand, and a second one that lies behind theirs, so that the hardware reads the
    /// first once for all columns.
    fn lies_behind(&self, before: &[&Stmt], next: &Stmt) -> bool {
        let (before, Stmt::Dot(next)) = (dots_of(before), next) else { return false };
        let (Some(last), t) = (before.last(), self.tiled(next)) else { return false };
        let (h, other) = (self.hopper(), self.tiled(last));
        let columns: i64 = before.iter().map(|d| self.tiled(d).extents[1]).sum::<i64>() + t.extents[1];
        let alike = last.a == next.a && last.accumulate == next.accumulate && t.extents == other.extents;
        // Rows of as many terms as a strip has follow each other, as do strips of columns.
        let [_, n, terms] = t.extents;
        let (inside, wide) = (t.b.row == 1, strip(self.k.scratch[t.b.scratch].dtype));
        let follow = (t.b.row, t.b.col) == (other.b.row, other.b.col) && if inside { terms == wide } else { n % wide == 0 };
        let place = |t: &Tiled| h.ring_of.get(&t.b.scratch).map(|ring| (*ring, h.rings[*ring].offsets[&t.b.scratch] as i64));
        let bytes = n * terms * self.k.scratch[t.b.scratch].dtype.bytes() as i64;
        let (Some((ring, at)), Some((first, before))) = (place(&t), place(&other)) else { return false };
        alike && columns <= MAX_COLUMNS && follow && ring == first && at == before + bytes
    }
    /// How many products the hardware does in a turn of such a loop.
    fn num_together(&self, body: &[Stmt]) -> u32 {
        let (mut count, mut together): (u32, Vec<&Stmt>) = (0, Vec::new());
        for s in body.iter().filter(|s| matches!(s, Stmt::Dot(_))) {
            if !self.lies_behind(&together, s) {
                together.clear();
                count += 1;
            }
            together.push(s);
        }
        count
    }
    /// Waits until no more than `under_way` products are; the sums of `d` are there then. Registers that it read were `first`.
    fn settle(&mut self, d: &Dot, under_way: usize, first: &[String]) {
        let t = self.tiled(d);
        let count = usize::try_from(t.extents[1] / 2).expect("it is small");
        let places: Vec<String> = (0..count).map(|slot| self.held_address(t.c.scratch, slot)).collect();
        let sums: Vec<String> = places.iter().map(|p| self.load(p, "f32")).collect();
        let outs = vec!["=f"; count].join(",");
        let ins = (0..count).map(|i| i.to_string()).collect::<Vec<_>>().join(",");
        let types = vec!["f32"; count].join(", ");
        let (kept, kept_types) = (",r".repeat(first.len()), ", i32".repeat(first.len()));
        let all = self.w.op(&format!(
            "llvm.inline_asm has_side_effects asm_dialect = att \"wgmma.wait_group.sync.aligned {under_way};\", \
             \"{outs},{ins}{kept},~{{memory}}\" {} : ({types}{kept_types}) -> !llvm.struct<({types})>",
            sums.iter().chain(first).cloned().collect::<Vec<_>>().join(", ")
        ));
        for (i, p) in places.iter().enumerate() {
            let sum = self.w.op(&format!("llvm.extractvalue {all}[{i}] : !llvm.struct<({types})>"));
            self.store(&sum, p, "f32");
        }
    }
    /// Gives back what a slot names, if it names something.
    fn give_back(&mut self, slot: &str) {
        let empty = self.load(slot, "i32");
        let none = self.w.int(0, "i32");
        let (first, some) = (self.arriving(), self.w.cmpi("ne", &empty, &none, "i32"));
        let first = self.w.op(&format!("arith.andi {first}, {some} : i1"));
        self.arrive_if(&first, &empty);
    }
    fn release(&mut self, ring: usize, r: &Ring) {
        let empty = self.pass(ring, r);
        // One lane tells that all of its warp have read.
        self.asm("bar.warp.sync 0xffffffff;", "", "", "");
        self.arrive(&empty);
    }
    /// All consumers wait for each other. LLVM knows that the lanes of a warp come to one such instruction together; of a text it makes two where lanes differ.
    pub(super) fn wait_consumers(&mut self) {
        let (barrier, threads) = (self.w.int(1, "i32"), self.w.int(i64::from(self.simt().plan.threads), "i32"));
        self.w.line(&format!(
            "llvm.call_intrinsic \"llvm.nvvm.barrier.cta.sync.aligned.count\"({barrier}, {threads}) : (i32, i32) -> ()"
        ));
    }

    /// Where a copied memory is in the stage at hand.
    pub(super) fn ring_address(&mut self, scratch: usize) -> String {
        let h = self.hopper();
        let ring = h.ring_of[&scratch];
        let offset = h.rings[ring].offsets[&scratch] as i64;
        let Some([_, start]) = self.simt().turn.current.get(&ring).cloned() else {
            base::bug!("a load of what was not waited for")
        };
        let start = self.plus32(&start, offset);
        self.w.op(&format!("llvm.inttoptr {start} : i32 to !llvm.ptr<3>"))
    }

    // --- products ---

    /// Where a matrix begins for this warp group, what the hardware is told of how its pieces lie, and how far each instruction's terms, 32 bytes, are from the first.
    /// `terms` is the summed extent, `own` says that warp groups take 64 rows each.
    fn operand(&mut self, x: &Matrix, other: i64, terms: i64, terms_inside: bool, own: bool) -> Operand {
        let h = self.hopper();
        let ring = h.ring_of[&x.scratch];
        let offset = h.rings[ring].offsets[&x.scratch] as i64;
        let Some([_, start]) = self.simt().turn.current.get(&ring).cloned() else {
            base::bug!("a product of what was not waited for")
        };
        let mut start = self.plus32(&start, offset);
        if own {
            let group = self.group_number();
            let by = self.w.int(STRIP_BYTES * if terms_inside { GROUP_ROWS } else { terms }, "i32");
            let by = self.w.bin("muli", &group, &by, "i32");
            start = self.w.bin("addi", &start, &by, "i32");
        }
        // Strips of terms, or of the other axis; eight rows of a strip are 1024 bytes apart.
        let strip = STRIP_BYTES * if terms_inside { other } else { terms };
        let at_once = terms_at_once(self.k.scratch[x.scratch].dtype);
        let step = move |i: i64| match terms_inside {
            true => i / 4 * strip + i % 4 * 32,
            false => i * at_once * STRIP_BYTES,
        };
        let steps = (0..terms / at_once).map(|i| step(i) >> 4).collect();
        let leading = if terms_inside { 1 } else { strip >> 4 };
        let (sixteenth, mask) = (self.w.int(4, "i32"), self.w.int(0x3FFF, "i32"));
        let start = self.w.bin("shrui", &start, &sixteenth, "i32");
        let start = self.w.bin("andi", &start, &mask, "i32");
        let start = self.w.op(&format!("arith.extui {start} : i32 to i64"));
        let rest = self.w.int((1 << 62) | (((8 * STRIP_BYTES) >> 4) << 32) | (leading << 16), "i64");
        Operand { first: self.w.bin("ori", &start, &rest, "i64"), steps, turned: !terms_inside }
    }
    /// A product of the warp groups; then waits until no more than `under_way` are, if that is said. The registers that are its first operand.
    /// Several have one first operand, and their second ones lie behind each other: they are one, of all their columns.
    fn wgmma(&mut self, dots: &[&Dot], under_way: Option<u32>) -> Vec<String> {
        let d = dots[0];
        let all: Vec<Tiled> = dots.iter().map(|d| self.tiled(d)).collect();
        let t = all[0];
        let [m, _, terms] = t.extents;
        let n: i64 = all.iter().map(|t| t.extents[1]).sum();
        let held = self.simt().plan.held.tiles[t.a.scratch].is_some();
        let a = (!held).then(|| self.operand(&t.a, m, terms, t.a.col == 1, true));
        let b = self.operand(&t.b, n, terms, t.b.row == 1, false);
        let dtype = self.k.scratch[t.b.scratch].dtype;
        // Of codes and tf32 neighbours are along the summed axis, and there is nothing to say.
        let (depth, turns, dtype) = (terms_at_once(dtype), dtype.bytes() == 2, dtype.name());
        let turn = |x: bool| if turns { format!(", {}", i32::from(x)) } else { String::new() };
        let count = usize::try_from(n / 2).expect("it is small");
        let mut places = Vec::new();
        for t in &all {
            places.extend((0..t.extents[1] / 2).map(|slot| self.held_address(t.c.scratch, slot as usize)));
        }
        // What is not added to may be anything.
        let any = if d.accumulate { String::new() } else { self.w.op("llvm.mlir.undef : f32") };
        let sums: Vec<String> = places.iter().map(|p| if d.accumulate { self.load(p, "f32") } else { any.clone() }).collect();
        // Two neighbours a register, as they are held: of sixteen columns the four pairs of a thread.
        let pairs = if held { usize::try_from(terms / 4).expect("it is small") } else { 0 };
        let first: Vec<String> = (0..pairs)
            .map(|i| {
                let p = self.held_address(t.a.scratch, 2 * i);
                self.w.op(&format!("llvm.load {p} {{alignment = 2 : i64}} : !llvm.ptr -> i32"))
            })
            .collect();
        let list = |from: usize, n: usize| (from..from + n).map(|i| format!("${i}")).collect::<Vec<_>>().join(",");
        let (x, y) = (2 * count, 2 * count + usize::from(!held) + pairs);
        let mut text = format!(
            "{{ .reg .pred add; .reg .b64 a, b; setp.ne.b32 add, {}, 0; wgmma.fence.sync.aligned; ",
            i32::from(d.accumulate)
        );
        for (i, db) in b.steps.iter().enumerate() {
            if i == 1 && !d.accumulate {
                text.push_str("setp.ne.b32 add, 1, 0; ");
            }
            let (left, turned) = match &a {
                Some(a) => {
                    text.push_str(&format!("add.s64 a, ${x}, {}; ", a.steps[i]));
                    ("a".to_string(), turn(a.turned))
                }
                None => (format!("{{{}}}", list(x + 4 * i, 4)), String::new()),
            };
            text.push_str(&format!(
                "add.s64 b, ${y}, {db}; wgmma.mma_async.sync.aligned.m64n{n}k{depth}.f32.{dtype}.{dtype} {{{}}}, {left}, b, add, 1, 1{turned}{}; ",
                list(0, count),
                turn(b.turned)
            ));
        }
        text.push_str("wgmma.commit_group.sync.aligned; ");
        if let Some(n) = under_way {
            text.push_str(&format!("wgmma.wait_group.sync.aligned {n}; "));
        }
        text.push('}');
        let outs = vec!["=f"; count].join(",");
        let ins = (0..count).map(|i| i.to_string()).collect::<Vec<_>>().join(",");
        let types = vec!["f32"; count].join(", ");
        let (left, left_constraint, left_type) = match &a {
            Some(a) => (a.first.clone(), "l".to_string(), "i64".to_string()),
            None => (first.join(", "), vec!["r"; pairs].join(","), vec!["i32"; pairs].join(", ")),
        };
        let all = self.w.op(&format!(
            "llvm.inline_asm has_side_effects asm_dialect = att \"{text}\", \"{outs},{ins},{left_constraint},l,~{{memory}}\" {}, {left}, {} : \
             ({types}, {left_type}, i64) -> !llvm.struct<({types})>",
            sums.join(", "),
            b.first
        ));
        for (i, p) in places.iter().enumerate() {
            let sum = self.w.op(&format!("llvm.extractvalue {all}[{i}] : !llvm.struct<({types})>"));
            self.store(&sum, p, "f32");
        }
        first
    }
}

/// Terms that an instruction takes.
fn terms_at_once(dtype: DType) -> i64 {
    32 / dtype.bytes() as i64
}

fn dots_of<'s>(stmts: &[&'s Stmt]) -> Vec<&'s Dot> {
    stmts.iter().filter_map(|s| if let Stmt::Dot(d) = s { Some(d) } else { None }).collect()
}

/// A matrix as the hardware takes it.
struct Operand {
    /// The descriptor of the first sixteen terms.
    first: String,
    /// What to add to it for each sixteen.
    steps: Vec<i64>,
    /// Whether neighbours are along the axis that is not summed.
    turned: bool,
}

/// The products at the end of a loop that has nothing else but a run of copies and scalars, each adding to its own sums; none if there is more.
fn only_products(body: &[Stmt]) -> Vec<&Dot> {
    let dots: Vec<&Dot> = body.iter().rev().map_while(|s| if let Stmt::Dot(d) = s { Some(d) } else { None }).collect();
    let before = &body[..body.len() - dots.len()];
    let simple = before.iter().all(|s| is_load(s) || matches!(s, Stmt::Let(..)));
    let sums: Vec<Mem> = dots.iter().map(|d| d.c.mem).collect();
    let apart = (1..sums.len()).all(|i| !sums[..i].contains(&sums[i]));
    let own = apart && dots.iter().all(|d| d.accumulate && !sums.contains(&d.a.mem));
    if simple && own && runs(body).len() == 1 { dots } else { Vec::new() }
}

/// Whether a list has something to wait for, or loops that belong together.
pub(super) fn is_staged(body: &[Stmt]) -> bool {
    body.iter().any(|s| is_load(s) || matches!(s, Stmt::Dot(_))) || body.windows(2).any(|two| alike_loops(two) > 1)
}

/// The number of rows that count for all products of a loop, if it is one and known before the loop.
fn rows_of_all<'s>(var: VarId, body: &'s [Stmt], dots: &[&'s Dot]) -> Option<&'s Expr> {
    let mut set = BTreeSet::from([var]);
    changed(body, &mut set);
    let counted = dots.first()?.counted.as_ref().filter(|e| !expr_uses(e, &|v| set.contains(&v)))?;
    dots.iter().all(|d| d.counted.as_ref() == Some(counted)).then_some(counted)
}

/// How many loops of products a list begins with that have one number of rows that count.
fn alike_loops(body: &[Stmt]) -> usize {
    let rows = |s: &Stmt| match s {
        Stmt::For { var, body, kind: LoopKind::Serial, .. } => {
            let dots = only_products(body);
            // What a loop multiplies is copied in it, so that none outlives it.
            let copied = |m: Mem| body.iter().any(|s| matches!(s, Stmt::Copy(c) if c.to == m));
            let own = dots.iter().all(|d| copied(d.a.mem) && copied(d.b.mem));
            rows_of_all(*var, body, &dots).filter(|_| own).cloned()
        }
        _ => None,
    };
    let Some(first) = body.first().and_then(rows) else { return 0 };
    body.iter().take_while(|s| rows(s).as_ref() == Some(&first)).count()
}

/// The first and the last of the products at the beginning of a loop's body that warp groups start in turns, so that one weighs what its products gave
/// while another's run: more than half of the body's, and something follows that is not scalar. With fewer, turns cost more than they give
/// (`docs/performance.md`).
fn taken_in_turns(body: &[Stmt], consumers: u32) -> Option<[usize; 2]> {
    let is_dot = |s: &Stmt| matches!(s, Stmt::Dot(_));
    let count = |body: &[Stmt]| body.iter().filter(|s| is_dot(s)).count();
    let begin = body.iter().position(is_dot)?;
    let plain = |s: &&Stmt| is_dot(s) || is_load(s) || matches!(s, Stmt::Let(..));
    let run = &body[begin..begin + body[begin..].iter().take_while(plain).count()];
    let end = begin + run.iter().rposition(is_dot)?;
    let fits = end > begin && begin + run.len() < body.len() && 2 * count(run) > count(body);
    (consumers > 1 && fits).then_some([begin, end])
}

/// Whether there is such a loop.
fn takes_turns(body: &[Stmt], consumers: u32) -> bool {
    body.iter().any(|s| match s {
        Stmt::For { body, kind: LoopKind::Serial, .. } | Stmt::While { body, .. } => {
            taken_in_turns(body, consumers).is_some() || takes_turns(body, consumers)
        }
        Stmt::If { then, otherwise, .. } => takes_turns(then, consumers) || takes_turns(otherwise, consumers),
        Stmt::For { .. }
        | Stmt::Let(..)
        | Stmt::Var(..)
        | Stmt::Assign(..)
        | Stmt::Accumulate(..)
        | Stmt::Store { .. }
        | Stmt::Dot(_)
        | Stmt::Copy(_) => false,
    })
}

fn has_loads(body: &[Stmt]) -> bool {
    body.iter().any(|s| is_load(s) || s.lists().into_iter().any(has_loads))
}

fn ring_of(h: &Hopper, c: &Copy) -> usize {
    match c.to {
        Mem::Scratch(i) => h.ring_of[&i],
        Mem::Buffer(_) => base::bug!("a copy to scratch"),
    }
}
