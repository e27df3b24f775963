//! Runs an entry step by step in f64: kernels in the tile interpreter, products as plain loops. The second opinion on `lower`: what it
//! gives is compared with the graph's interpreter.

use crate::{
    interp::{self, InterpError},
    ir::{Access, Kernel},
    lower::Lowered,
};
use base::{Dim, DimEnv};
use library::{Entry, Exchange, GroupedGemm, Step, View};

/// Runs `entry` of `lowered` on its arguments; its outputs, in order.
///
/// # Errors
/// What the tile interpreter reports: uninitialised or out-of-bounds accesses, races.
pub fn simulate(lowered: &Lowered, entry: &Entry, args: &[Vec<f64>], dims: &DimEnv) -> Result<Vec<Vec<f64>>, InterpError> {
    let size = |d: &Dim| extent(d, dims);
    let mut memory: Vec<Vec<f64>> = entry.buffers.iter().map(|b| vec![f64::NAN; size(&b.elems)]).collect();
    for (port, data) in entry.args.iter().zip(args) {
        memory[port.buffer].clone_from(data);
    }
    let mut s = Simulation { lowered, entry, dims, memory, turns: Vec::new() };
    s.steps(&entry.steps)?;
    Ok(entry.outputs.iter().map(|p| s.memory[p.buffer].clone()).collect())
}

fn extent(d: &Dim, dims: &DimEnv) -> usize {
    let n = d.eval(dims).unwrap_or_else(|| base::bug!("{d} has no value"));
    usize::try_from(n).unwrap_or_else(|_| base::bug!("{d} is {n}"))
}

struct Simulation<'a> {
    lowered: &'a Lowered,
    entry: &'a Entry,
    dims: &'a DimEnv,
    memory: Vec<Vec<f64>>,
    turns: Vec<usize>,
}

impl Simulation<'_> {
    fn size(&self, d: &Dim) -> usize {
        extent(d, self.dims)
    }
    fn start(&self, v: &View) -> usize {
        assert_eq!(v.turn.len(), self.turns.len(), "a stride for each loop around");
        self.size(&v.offset) + v.turn.iter().zip(&self.turns).map(|(s, i)| self.size(s) * i).sum::<usize>()
    }
    fn round(&mut self, v: &View, at: usize, x: f64) {
        let dtype = self.entry.buffers[v.buffer].dtype;
        self.memory[v.buffer][at] = dtype.round(x);
    }

    fn steps(&mut self, steps: &[Step]) -> Result<(), InterpError> {
        steps.iter().try_for_each(|s| self.step(s))
    }

    fn step(&mut self, step: &Step) -> Result<(), InterpError> {
        match step {
            Step::Launch { kernel, buffers, dims, grid, .. } => {
                self.launch(&self.lowered.kernels[*kernel], buffers, dims, grid)?
            }
            Step::Gemm(g) => {
                let (m, n, k) = (self.size(&g.m), self.size(&g.n), self.size(&g.k));
                let [am, ak, bk, bn, cm, cn] = g.strides.each_ref().map(|d| self.size(d));
                let mut starts = vec![[self.start(&g.a), self.start(&g.b), self.start(&g.c)]];
                for (extent, strides) in &g.batch {
                    let by = strides.each_ref().map(|d| self.size(d));
                    let n = self.size(extent);
                    starts = starts
                        .iter()
                        .flat_map(|s| (0..n).map(move |i| [s[0] + i * by[0], s[1] + i * by[1], s[2] + i * by[2]]))
                        .collect();
                }
                for [a, b, c] in starts {
                    for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                        let old = if g.accumulate { self.memory[g.c.buffer][c + i * cm + j * cn] } else { 0.0 };
                        let (x, y) = (&self.memory[g.a.buffer], &self.memory[g.b.buffer]);
                        let sum: f64 = (0..k).map(|l| x[a + i * am + l * ak] * y[b + l * bk + j * bn]).sum();
                        self.round(&g.c, c + i * cm + j * cn, old + sum);
                    }
                }
            }
            Step::GroupedGemm(GroupedGemm::Rows { x, w, offsets, y, extents, transposed, .. }) => {
                let [_, rows, k, n] = extents.each_ref().map(|d| self.size(d));
                let [xs, ws, ys] = [x, w, y].map(|v| self.start(v));
                (0..rows * n).for_each(|i| self.memory[y.buffer][ys + i] = 0.0);
                for (e, r) in self.groups(offsets, &extents[0]) {
                    for j in 0..n {
                        let at = |i: usize| ws + if *transposed { (e * n + j) * k + i } else { (e * k + i) * n + j };
                        let sum = (0..k).map(|i| self.memory[x.buffer][xs + r * k + i] * self.memory[w.buffer][at(i)]).sum();
                        self.round(y, ys + r * n + j, sum);
                    }
                }
            }
            Step::GroupedGemm(GroupedGemm::Outer { x, y, offsets, w, extents, .. }) => {
                let [groups, _, k, n] = extents.each_ref().map(|d| self.size(d));
                let [xs, ys, ws] = [x, y, w].map(|v| self.start(v));
                let mut sums = vec![0.0; groups * k * n];
                for (e, r) in self.groups(offsets, &extents[0]) {
                    for (i, j) in (0..k).flat_map(|i| (0..n).map(move |j| (i, j))) {
                        sums[(e * k + i) * n + j] +=
                            self.memory[x.buffer][xs + r * k + i] * self.memory[y.buffer][ys + r * n + j];
                    }
                }
                sums.into_iter().enumerate().for_each(|(i, v)| self.round(w, ws + i, v));
            }
            // A group of one.
            Step::Exchange(Exchange::Offsets { offsets, all, own, groups, .. }) => {
                let (n, at) = (*groups as usize + 1, self.start(offsets));
                let data = self.memory[offsets.buffer][at..at + n].to_vec();
                for to in [all, own] {
                    let at = self.start(to);
                    self.memory[to.buffer][at..at + n].copy_from_slice(&data);
                }
            }
            Step::Exchange(Exchange::Rows { from, all, to, groups, extents, .. }) => {
                let [rows, row] = extents.each_ref().map(|d| self.size(d));
                let used = self.memory[all.buffer][self.start(all) + *groups as usize] as usize * row;
                let (a, b) = (self.start(from), self.start(to));
                let mut data = self.memory[from.buffer][a..a + rows * row].to_vec();
                data[used..].fill(0.0);
                self.memory[to.buffer][b..b + rows * row].copy_from_slice(&data);
            }
            Step::Copy { from, to, elems } => {
                let (n, a, b) = (self.size(elems), self.start(from), self.start(to));
                let data = self.memory[from.buffer][a..a + n].to_vec();
                self.memory[to.buffer][b..b + n].copy_from_slice(&data);
            }
            Step::Zero { at, elems } => {
                let (n, a) = (self.size(elems), self.start(at));
                self.memory[at.buffer][a..a + n].fill(0.0);
            }
            Step::Loop { count, reverse, body } => {
                let count = usize::try_from(*count).expect("counts are not negative");
                for i in 0..count {
                    self.turns.push(if *reverse { count - 1 - i } else { i });
                    self.steps(body)?;
                    self.turns.pop();
                }
            }
        }
        Ok(())
    }

    fn groups(&self, offsets: &View, groups: &Dim) -> Vec<(usize, usize)> {
        let (n, at) = (self.size(groups), self.start(offsets));
        let data = &self.memory[offsets.buffer][at..=at + n];
        data.windows(2).enumerate().flat_map(|(e, w)| (w[0] as usize..w[1] as usize).map(move |r| (e, r))).collect()
    }

    fn launch(&mut self, kernel: &Kernel, views: &[View], dims: &[Dim], grid: &Dim) -> Result<(), InterpError> {
        let mut kernel = kernel.clone();
        kernel.dims = dims.to_vec();
        kernel.grid = grid.clone();
        let starts: Vec<usize> = views.iter().map(|v| self.start(v)).collect();
        for (b, at) in kernel.buffers.iter().zip(&starts) {
            let begins = at * b.dtype.bytes();
            assert!(begins.is_multiple_of(b.alignment as usize), "{} of {} begins at {begins}", b.name, kernel.name);
        }
        let mut buffers: Vec<Vec<f64>> = views
            .iter()
            .zip(&starts)
            .map(|(v, at)| self.memory[v.buffer][(*at).min(self.memory[v.buffer].len())..].to_vec())
            .collect();
        for (b, data) in kernel.buffers.iter_mut().zip(&buffers) {
            b.elems = Dim::from(data.len() as i64);
        }
        let before = buffers.clone();
        interp::run(&kernel, &mut buffers, self.dims, interp::Options { rounded: false, ..interp::Options::default() })?;
        for (((v, at), b), (new, old)) in views.iter().zip(&starts).zip(&kernel.buffers).zip(buffers.iter().zip(&before)) {
            if b.access != Access::Read {
                // Only what the kernel wrote: another of its buffers may be a neighbouring part of the same memory.
                for (i, (x, y)) in new.iter().zip(old).enumerate().filter(|(_, (x, y))| x.to_bits() != y.to_bits()) {
                    let _ = y;
                    self.memory[v.buffer][at + i] = *x;
                }
            }
        }
        Ok(())
    }
}
