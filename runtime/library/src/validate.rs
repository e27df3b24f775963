//! Checks that a manifest does not contradict itself: what the run-time would otherwise index out of range.

use crate::{Entry, GroupedGemm, Manifest, Step, View};
use base::Dim;
use std::collections::BTreeSet;

/// The first contradiction, in words.
pub(crate) fn validate(m: &Manifest) -> Result<(), String> {
    let dims: BTreeSet<&str> = m.dims.iter().map(String::as_str).collect();
    let mut names = BTreeSet::new();
    for p in &m.params {
        if !names.insert(&p.name) {
            return Err(format!("parameter {} twice", p.name));
        }
        let elems = p.shape.iter().try_fold(1i64, |n, d| n.checked_mul(*d).filter(|n| *n >= 0));
        if elems.is_none() || p.name.split('.').filter(|x| x.starts_with('*')).count() > p.shape.len() {
            return Err(format!("parameter {} of shape {:?}", p.name, p.shape));
        }
    }
    let mut symbols = BTreeSet::new();
    if let Some(k) = m.kernels.iter().find(|k| !symbols.insert(&k.symbol)) {
        return Err(format!("kernel {} twice", k.symbol));
    }
    let mut entries = BTreeSet::new();
    for e in &m.entries {
        if !entries.insert(&e.name) {
            return Err(format!("entry {} twice", e.name));
        }
        Check { m, e, dims: &dims }.entry().map_err(|why| format!("entry {}: {why}", e.name))?;
    }
    Ok(())
}

struct Check<'a> {
    m: &'a Manifest,
    e: &'a Entry,
    dims: &'a BTreeSet<&'a str>,
}

impl Check<'_> {
    fn entry(&self) -> Result<(), String> {
        for b in &self.e.buffers {
            self.dim(&b.elems)?;
        }
        for (what, ports) in [("argument", &self.e.args), ("output", &self.e.outputs)] {
            let mut names = BTreeSet::new();
            for p in ports {
                if !names.insert((p.role, &p.name)) {
                    return Err(format!("{what} {} twice", p.name));
                }
                p.shape.iter().try_for_each(|d| self.dim(d))?;
                let buffer = self.e.buffers.get(p.buffer).ok_or_else(|| format!("{what} {} has no buffer", p.name))?;
                let elems = p.shape.iter().fold(Dim::from(1), |n, d| n * d.clone());
                if !buffer.external || buffer.dtype != p.dtype || buffer.elems != elems {
                    return Err(format!("{what} {} does not fit its buffer", p.name));
                }
            }
        }
        self.e.constraints.iter().try_for_each(|(d, _)| self.dim(d))?;
        self.steps(&self.e.steps, 0)
    }
    fn steps(&self, steps: &[Step], depth: usize) -> Result<(), String> {
        for step in steps {
            match step {
                Step::Launch { kernel, buffers, dims, grid } => {
                    let k = self.m.kernels.get(*kernel).ok_or_else(|| format!("there is no kernel {kernel}"))?;
                    if buffers.len() != k.num_buffers || dims.len() != k.num_dims {
                        return Err(format!("{} gets {} buffers and {} extents", k.symbol, buffers.len(), dims.len()));
                    }
                    self.views(buffers.iter(), depth)?;
                    dims.iter().chain([grid]).try_for_each(|d| self.dim(d))?;
                }
                Step::Gemm(g) => {
                    self.views([&g.a, &g.b, &g.c].into_iter(), depth)?;
                    let strides = g.batch.iter().flat_map(|(n, s)| [n].into_iter().chain(s));
                    g.strides.iter().chain([&g.m, &g.n, &g.k]).chain(strides).try_for_each(|d| self.dim(d))?;
                }
                Step::GroupedGemm(GroupedGemm::Rows { x, w, offsets, y, extents, .. }) => {
                    self.views([x, w, offsets, y].into_iter(), depth)?;
                    extents.iter().try_for_each(|d| self.dim(d))?;
                }
                Step::GroupedGemm(GroupedGemm::Outer { x, y, offsets, w, extents, .. }) => {
                    self.views([x, y, offsets, w].into_iter(), depth)?;
                    extents.iter().try_for_each(|d| self.dim(d))?;
                }
                Step::Copy { from, to, elems } => {
                    self.views([from, to].into_iter(), depth)?;
                    self.dim(elems)?;
                }
                Step::Zero { at, elems } => {
                    self.views([at].into_iter(), depth)?;
                    self.dim(elems)?;
                }
                Step::Loop { count, body, .. } => {
                    if *count < 0 || depth > 16 {
                        return Err(format!("a loop of {count} turns"));
                    }
                    self.steps(body, depth + 1)?;
                }
            }
        }
        Ok(())
    }
    fn views<'v>(&self, mut views: impl Iterator<Item = &'v View>, depth: usize) -> Result<(), String> {
        views.try_for_each(|v| {
            if v.buffer >= self.e.buffers.len() || v.turn.len() != depth {
                return Err(format!("a view of buffer {} with {} turns inside {depth} loops", v.buffer, v.turn.len()));
            }
            v.turn.iter().chain([&v.offset]).try_for_each(|d| self.dim(d))
        })
    }
    fn dim(&self, d: &Dim) -> Result<(), String> {
        let mut symbols = BTreeSet::new();
        d.symbols(&mut symbols);
        match symbols.iter().find(|s| !self.dims.contains(&***s)) {
            Some(s) => Err(format!("{s} is not a run-time dim")),
            None => Ok(()),
        }
    }
}
