//! How threads combine what each has accumulated: the lanes of a warp, then the warps of a block through shared memory, then the blocks of a cluster through
//! each other's. Always in the same order.

use super::{
    Emitter, Slot,
    reduce::neutral,
    simt::{Machine, Simt},
};
use crate::gpu::plan::Team;
use graph::op::ReduceFn;
use tile::VarId;

impl Emitter<'_> {
    /// Starts reductions from nothing in each thread, but those that are under way; returns what they go into.
    pub(super) fn begin(&mut self, found: Vec<(VarId, ReduceFn)>) -> Vec<(VarId, ReduceFn, String)> {
        let mut partial = Vec::new();
        for (v, f) in found {
            if let Slot::Memory(whole) = &self.vars[v.0 as usize]
                && !self.simt().partial.contains(&v)
            {
                let (whole, ty) = (whole.clone(), self.type_of(v));
                let p = self.slot(ty);
                let nothing = self.constant(neutral(f), self.k.vars[v.0 as usize]);
                self.store(&nothing, &p, ty);
                self.vars[v.0 as usize] = Slot::Memory(p);
                self.simt_mut().partial.push(v);
                partial.push((v, f, whole));
            }
        }
        partial
    }
    /// Combines what the threads of the team have of each variable, and adds that to the variable.
    pub(super) fn gather(&mut self, partial: Vec<(VarId, ReduceFn, String)>) {
        if partial.is_empty() {
            return;
        }
        let (team, warp) = (self.simt().team, self.simt().plan.warp);
        let lanes = if let Team::Lanes(n) = team { n } else { warp };
        let mut of_lanes = Vec::new();
        for (v, f, _) in &partial {
            let (ty, p) = (self.type_of(*v), self.place(*v));
            let mut value = self.load(&p, ty);
            match self.lane_reduction(*f, ty) {
                // A reduction of all lanes is one instruction; of a few that are not all, one for each such few.
                Some(name) if 4 * lanes > warp && lanes > 1 => {
                    let mask = self.lane_mask();
                    value = self
                        .w
                        .op(&format!("llvm.call_intrinsic \"llvm.nvvm.redux.sync.{name}\"({value}, {mask}) : (i32, i32) -> i32"));
                }
                _ => {
                    let mut distance = lanes / 2;
                    while distance > 0 {
                        let other = self.exchange(&value, ty, distance, lanes);
                        value = self.combine(*f, &value, &other, ty, false);
                        distance /= 2;
                    }
                }
            }
            of_lanes.push(value);
        }
        let warps = (self.simt().plan.threads / warp) as usize;
        if team == Team::Block && warps > 1 {
            self.simt_mut().passed = self.simt().passed.max(partial.len());
            if self.simt().combined {
                self.wait_for_warps();
            }
            let (zero, pointer) = (self.w.int(0, "i64"), self.simt().shared_pointer());
            let first = self.w.cmpi("eq", "%lane", &zero, "i64");
            self.w.line(&format!("scf.if {first} {{"));
            self.inside(|e| {
                for (a, ((v, ..), value)) in partial.iter().zip(&of_lanes).enumerate() {
                    let (ty, before) = (e.type_of(*v), e.w.int((a * warps) as i64, "i64"));
                    let at = e.w.bin("addi", "%warp", &before, "i64");
                    let p = e.w.op(&format!("llvm.getelementptr %sums[{at}] : ({pointer}, i64) -> {pointer}, i64"));
                    e.w.line(&format!("llvm.store {value}, {p} : {ty}, {pointer}"));
                }
            });
            self.w.line("}");
            self.wait_for_warps();
            self.simt_mut().combined = true;
            for (a, (v, f, _)) in partial.iter().enumerate() {
                let ty = self.type_of(*v);
                let mut sum: Option<String> = None;
                for w in 0..warps {
                    let at = a * warps + w;
                    let p = self.w.op(&format!("llvm.getelementptr %sums[{at}] : ({pointer}) -> {pointer}, i64"));
                    let value = self.w.op(&format!("llvm.load {p} : {pointer} -> {ty}"));
                    sum = Some(match sum {
                        None => value,
                        Some(sum) => self.combine(*f, &sum, &value, ty, false),
                    });
                }
                of_lanes[a] = sum.expect("a block has warps");
            }
        }
        if team == Team::Block && self.simt().plan.cluster > 1 {
            self.combine_blocks(&partial, &mut of_lanes);
        }
        for ((v, f, whole), value) in partial.into_iter().zip(of_lanes) {
            let ty = self.type_of(v);
            let old = self.load(&whole, ty);
            let new = self.combine(f, &old, &value, ty, false);
            self.store(&new, &whole, ty);
            self.vars[v.0 as usize] = Slot::Memory(whole);
            self.simt_mut().partial.retain(|w| *w != v);
        }
    }
    /// What the blocks of a cluster have of each variable, in their order: each tells it to all, in shared memory of theirs that no other reduction of the row uses.
    fn combine_blocks(&mut self, partial: &[(VarId, ReduceFn, String)], values: &mut [String]) {
        let (blocks, pointer) = (self.simt().plan.cluster as usize, self.simt().shared_pointer());
        let (told, reductions) = self.simt().told;
        self.simt_mut().told = (told + partial.len(), reductions + 1);
        self.simt_mut().most_told = self.simt().most_told.max(told + partial.len());
        let count = self.w.int(blocks as i64, "i64");
        let tells = self.w.cmpi("slt", "%tid", &count, "i64");
        self.w.line(&format!("scf.if {tells} {{"));
        self.inside(|e| {
            for (a, ((v, ..), value)) in partial.iter().zip(values.iter()).enumerate() {
                let (ty, before) = (e.type_of(*v), e.w.int(((told + a) * blocks) as i64, "i64"));
                let at = e.w.bin("addi", "%in_cluster", &before, "i64");
                let p = e.w.op(&format!("llvm.getelementptr %told[{at}] : ({pointer}, i64) -> {pointer}, i64"));
                let (p, pointer) = e.of_other_block(&p);
                e.w.line(&format!("llvm.store {value}, {p} : {ty}, {pointer}"));
            }
        });
        self.w.line("}");
        self.wait();
        for (a, (v, f, _)) in partial.iter().enumerate() {
            let ty = self.type_of(*v);
            let of_blocks: Vec<String> = (0..blocks)
                .map(|i| {
                    let at = (told + a) * blocks + i;
                    let p = self.w.op(&format!("llvm.getelementptr %told[{at}] : ({pointer}) -> {pointer}, i64"));
                    self.w.op(&format!("llvm.load {p} : {pointer} -> {ty}"))
                })
                .collect();
            values[a] = self.in_pairs(of_blocks, |e, a, b| e.combine(*f, a, b, ty, false));
        }
    }
    /// The same place in the shared memory of the block of the cluster that has this thread's number.
    fn of_other_block(&mut self, p: &str) -> (String, &'static str) {
        match self.simt().machine {
            Machine::Gpu => {
                let block = self.w.convert("trunci", "%tid", "i64", "i32");
                let call = format!("llvm.call_intrinsic \"llvm.nvvm.mapa.shared.cluster\"({p}, {block})");
                (self.w.op(&format!("{call} : (!llvm.ptr<3>, i32) -> !llvm.ptr<7>")), "!llvm.ptr<7>")
            }
            Machine::Emulated => {
                let away = self.w.bin("subi", "%tid", "%in_cluster", "i64");
                let bytes = self.w.bin("muli", &away, "%sums_bytes", "i64");
                (self.w.op(&format!("llvm.getelementptr {p}[{bytes}] : (!llvm.ptr, i64) -> !llvm.ptr, i8")), "!llvm.ptr")
            }
        }
    }
    /// Where what blocks tell each other begins in the memory of reductions. # Units: bytes.
    pub(super) fn told_begin(&self) -> usize {
        let plan = &self.simt().plan;
        self.simt().passed * (plan.threads / plan.warp) as usize * 8
    }
    /// A value that is accumulated: what changes nothing, if the turn at hand is not there.
    pub(super) fn if_there(&mut self, value: String, f: ReduceFn, v: VarId) -> String {
        let Some(there) = self.simt.as_ref().and_then(Simt::there).cloned() else { return value };
        let nothing = self.constant(neutral(f), self.k.vars[v.0 as usize]);
        self.w.select(&there, &value, &nothing, self.type_of(v))
    }
    /// The instruction by which the lanes of a warp reduce, of integers alone.
    fn lane_reduction(&self, f: ReduceFn, ty: &str) -> Option<&'static str> {
        match (self.simt().machine, f) {
            _ if ty != "i32" => None,
            (Machine::Emulated, _) | (Machine::Gpu, ReduceFn::Prod) => None,
            (Machine::Gpu, ReduceFn::Sum) => Some("add"),
            (Machine::Gpu, ReduceFn::Max) => Some("max"),
            (Machine::Gpu, ReduceFn::Min) => Some("min"),
        }
    }
    /// The value that the lane at a distance has.
    fn exchange(&mut self, value: &str, ty: &str, distance: u32, lanes: u32) -> String {
        let bits = match ty {
            "f32" => self.w.bits(value, "f32", "i32"),
            "f64" => self.w.bits(value, "f64", "i64"),
            _ => value.to_string(),
        };
        let wide = matches!(ty, "f64" | "i64");
        let other = match self.simt().machine {
            Machine::Gpu if wide => {
                let places = self.w.int(32, "i64");
                let high = self.w.bin("shrui", &bits, &places, "i64");
                let halves = [high, bits].map(|half| {
                    let half = self.w.convert("trunci", &half, "i64", "i32");
                    let half = self.shuffle(&half, distance);
                    self.w.convert("extui", &half, "i32", "i64")
                });
                let high = self.w.bin("shli", &halves[0], &places, "i64");
                self.w.bin("ori", &high, &halves[1], "i64")
            }
            Machine::Gpu => self.shuffle(&bits, distance),
            Machine::Emulated => {
                let bits = if wide { bits } else { self.w.convert("extui", &bits, "i32", "i64") };
                let (distance, lanes) = (self.w.int(i64::from(distance), "i64"), self.w.int(i64::from(lanes), "i64"));
                let other = self.w.op(&format!(
                    "llvm.call %exchange(%thread, {bits}, {distance}, {lanes}) : !llvm.ptr, (!llvm.ptr, i64, i64, i64) -> i64"
                ));
                if wide { other } else { self.w.convert("trunci", &other, "i64", "i32") }
            }
        };
        match ty {
            "f32" => self.w.bits(&other, "i32", "f32"),
            "f64" => self.w.bits(&other, "i64", "f64"),
            _ => other,
        }
    }
    fn shuffle(&mut self, bits: &str, distance: u32) -> String {
        let (mask, distance, clamp) = (self.lane_mask(), self.w.int(i64::from(distance), "i32"), self.w.int(31, "i32"));
        self.w.op(&format!(
            "llvm.call_intrinsic \"llvm.nvvm.shfl.sync.bfly.i32\"({mask}, {bits}, {distance}, {clamp}) : (i32, i32, i32, i32) -> i32"
        ))
    }
}
