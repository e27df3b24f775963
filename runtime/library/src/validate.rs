//! Checks that a manifest does not contradict itself: what the run-time would otherwise index out of range, resolve to the wrong
//! memory or never finish.

use crate::{
    Entry, Exchange, GpuLaunch, GroupedGemm, HOST, Init, Kernel, Manifest, Param, Port, Role, SM_90A, Step, View, names,
};
use base::{DType, Dim};
use std::collections::{BTreeMap, BTreeSet};

/// Names of tensors in weight files, and steps of an entry with its loops unrolled: far above any model, far below what memory holds.
const MAX_UNROLLED: i64 = 1 << 22;

/// The first contradiction, in words.
pub(crate) fn validate(m: &Manifest) -> Result<(), String> {
    let mut dims = BTreeSet::new();
    for d in &m.dims {
        let is_name = d.parse::<Dim>() == Ok(Dim::sym(d)) && !d.is_empty();
        if !is_name || !dims.insert(d.as_str()) {
            return Err(format!("the run-time dim '{d}'"));
        }
    }
    if let Some((name, x)) = m.settings.iter().find(|(_, x)| !x.is_finite()) {
        return Err(format!("the setting {name} is {x}"));
    }
    params(&m.params)?;
    let mut symbols = BTreeSet::new();
    if let Some(k) = m.kernels.iter().find(|k| k.symbol.is_empty() || k.symbol.contains('\0') || !symbols.insert(&k.symbol)) {
        return Err(format!("the kernel '{}' twice, or it has no symbol", k.symbol));
    }
    let gpu = match m.target.as_str() {
        HOST => false,
        SM_90A => true,
        other => return Err(format!("the target '{other}'")),
    };
    for k in &m.kernels {
        match &k.gpu {
            Some(l) if gpu => launch(k, l).map_err(|why| format!("kernel {}: {why}", k.symbol))?,
            None if !gpu => {}
            _ => return Err(format!("kernel {} is not for {}", k.symbol, m.target)),
        }
    }
    let mut entries = BTreeSet::new();
    for e in &m.entries {
        if e.is_variant() {
            variant(m, e, &entries).map_err(|why| format!("a variant of {}: {why}", e.name))?;
        } else if !entries.insert(&e.name) {
            return Err(format!("entry {} twice", e.name));
        }
        Check { m, e, dims: &dims }.entry().map_err(|why| format!("entry {}: {why}", e.name))?;
    }
    Ok(())
}

/// Threads of a block, and its shared memory. # Units: threads, bytes. # Source: CUDA C++ programming guide, technical specifications of 9.0.
const MAX_THREADS: u32 = 1024;
/// Blocks of a cluster; more than 8 a function has to ask for. # Source: CUDA C++ programming guide, thread block clusters.
const MAX_CLUSTER: u32 = 16;
const MAX_SHARED: usize = 227 << 10;
/// What a tensor map may be. # Units: axes, elements, elements. # Source: CUDA driver API, cuTensorMapEncodeTiled; 128 bytes are permuted.
const MAX_AXES: usize = 5;
const MAX_ROWS: u32 = 256;
const MAX_COLS: u32 = 64;

fn launch(k: &Kernel, l: &GpuLaunch) -> Result<(), String> {
    if l.threads == 0 || l.threads > MAX_THREADS {
        return Err(format!("{} threads", l.threads));
    }
    if !(1..=MAX_CLUSTER).contains(&l.cluster) {
        return Err(format!("clusters of {} blocks", l.cluster));
    }
    let shared = l.static_shared_bytes.saturating_add(l.dynamic_shared_bytes);
    if shared > MAX_SHARED || l.workspace_bytes > 1 << 40 {
        return Err(format!("{shared} bytes of shared memory and {} of workspace", l.workspace_bytes));
    }
    let own: BTreeSet<String> = (0..k.num_dims).map(|i| format!("d{i}")).chain(["grid".into()]).collect();
    let dim = |d: &Dim| {
        let mut symbols = BTreeSet::new();
        d.symbols(&mut symbols);
        let foreign = symbols.iter().find(|s| !own.contains(&***s));
        foreign.map_or(Ok(()), |s| Err(format!("{s} is none of its {} extents", k.num_dims)))
    };
    dim(&l.blocks)?;
    for m in &l.maps {
        // Single rows of f32 are not permuted.
        let (known, cols) = match m.dtype {
            DType::BF16 | DType::F16 => (true, MAX_COLS),
            DType::E4M3 => (true, 2 * MAX_COLS),
            DType::TF32 => (true, MAX_COLS / 2),
            DType::F32 => (m.rows == 1, MAX_ROWS),
            DType::F64 | DType::I64 | DType::I32 | DType::Bool => (false, 0),
        };
        let runs = if m.axes.len() > 2 { MAX_ROWS } else { 1 };
        let sizes = [(m.rows, MAX_ROWS), (m.runs, runs), (m.cols, cols)];
        let fits = sizes.iter().all(|(n, most)| (1..=*most).contains(n)) && (2..=MAX_AXES).contains(&m.axes.len());
        if m.buffer >= k.num_buffers || !known || !fits || !m.axes.last().is_some_and(|(_, s)| s.is(1)) {
            let (rows, axes) = (m.rows * m.runs, m.axes.len());
            return Err(format!("{rows} x {} of buffer {} of {} with {axes} axes", m.cols, m.buffer, m.dtype));
        }
        m.axes.iter().flat_map(|(n, s)| [n, s]).try_for_each(dim)?;
    }
    Ok(())
}

fn params(params: &[Param]) -> Result<(), String> {
    let mut files = BTreeSet::new();
    let mut stacked = 0i64;
    for p in params {
        let elems = p.shape.iter().try_fold(1i64, |n, d| n.checked_mul(*d).filter(|n| *n >= 0));
        let stars: Vec<&str> = p.name.split('.').filter(|x| x.starts_with('*')).collect();
        let counted = |s: &&str| **s == *"*" || s.strip_prefix("*+").is_some_and(|k| k.parse::<u32>().is_ok());
        if elems.is_none() || p.shape.iter().any(|n| *n < 0) || stars.len() > p.shape.len() || !stars.iter().all(counted) {
            return Err(format!("parameter {} of shape {:?}", p.name, p.shape));
        }
        let (Init::Normal(x) | Init::Uniform(x) | Init::Constant(x)) = p.init;
        if !x.is_finite() || !matches!(p.role, Role::Param | Role::State) {
            return Err(format!("parameter {} has role {:?} and starts as {:?}", p.name, p.role, p.init));
        }
        let copies = p.shape[..stars.len()].iter().try_fold(1i64, |n, d| n.checked_mul(*d)).unwrap_or(i64::MAX);
        stacked = stacked.saturating_add(copies);
        if stacked > MAX_UNROLLED {
            return Err(format!("parameter {} stands for {copies} tensors", p.name));
        }
        for name in names::expand(&p.name, &p.shape).0 {
            if let Some(name) = files.replace(name) {
                return Err(format!("parameter {name} twice"));
            }
        }
    }
    Ok(())
}

/// A variant comes after its entry, and a caller cannot tell them apart.
fn variant(m: &Manifest, e: &Entry, before: &BTreeSet<&String>) -> Result<(), String> {
    let Some(whole) = m.entry(&e.name).filter(|_| before.contains(&e.name)) else {
        return Err("its entry does not precede it".into());
    };
    let same = |a: &[Port], b: &[Port]| {
        let face = |p: &Port| (p.name.clone(), p.role, p.dtype, p.shape.clone());
        a.iter().map(face).eq(b.iter().map(face))
    };
    if same(&e.args, &whole.args) && same(&e.outputs, &whole.outputs) {
        Ok(())
    } else {
        Err("its arguments or outputs are others".into())
    }
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
            if b.elems.known().is_some_and(|n| n < 0) {
                return Err(format!("a buffer of {} elements", b.elems));
            }
        }
        self.ports()?;
        self.e.constraints.iter().map(|(d, _)| d).chain(&self.e.when).try_for_each(|d| self.dim(d))?;
        self.steps(&self.e.steps, 0, 1)
    }
    /// Every port fits its buffer, every external buffer has one owner, and an output shares memory with the argument it replaces and
    /// with nothing else.
    fn ports(&self) -> Result<(), String> {
        let mut owners: BTreeMap<usize, (Role, &str)> = BTreeMap::new();
        for (what, ports) in [("argument", &self.e.args), ("output", &self.e.outputs)] {
            let mut names = BTreeSet::new();
            for p in ports {
                let name = &p.name;
                if !names.insert((p.role, name)) {
                    return Err(format!("{what} {name} twice"));
                }
                p.shape.iter().try_for_each(|d| self.dim(d))?;
                let buffer = self.e.buffers.get(p.buffer).ok_or_else(|| format!("{what} {name} has no buffer"))?;
                let elems = p.shape.iter().fold(Dim::from(1), |n, d| n * d.clone());
                if !buffer.external || buffer.dtype != p.dtype || buffer.elems != elems {
                    return Err(format!("{what} {name} does not fit its buffer"));
                }
                let replaced = self.e.args.iter().find(|a| what == "output" && a.name == *name && a.role == p.role);
                if replaced.is_some_and(|a| a.buffer != p.buffer) {
                    return Err(format!("output {name} is not in the argument's place"));
                }
                if replaced.is_none() && owners.insert(p.buffer, (p.role, name)).is_some() {
                    return Err(format!("{what} {name} shares its buffer"));
                }
                self.declared(p)?;
            }
        }
        match self.e.buffers.iter().enumerate().find(|(i, b)| b.external && !owners.contains_key(i)) {
            Some((i, _)) => Err(format!("nobody brings buffer {i}")),
            None => Ok(()),
        }
    }
    /// A parameter or state is one of the manifest's.
    fn declared(&self, p: &Port) -> Result<(), String> {
        if !matches!(p.role, Role::Param | Role::State) {
            return Ok(());
        }
        let found = self.m.params.iter().find(|q| q.name == p.name && q.role == p.role);
        let fits = |q: &Param| q.dtype == p.dtype && q.shape.iter().map(|n| Dim::from(*n)).eq(p.shape.iter().cloned());
        if found.is_some_and(fits) { Ok(()) } else { Err(format!("{} is not declared with this type", p.name)) }
    }
    /// `turns`: how often these steps run in all.
    fn steps(&self, steps: &[Step], depth: usize, turns: i64) -> Result<(), String> {
        if turns.saturating_mul(steps.len().max(1) as i64) > MAX_UNROLLED {
            return Err(format!("{turns} turns of {} steps", steps.len()));
        }
        for step in steps {
            match step {
                Step::Launch { kernel, buffers, dims, grid, work } => {
                    let k = self.m.kernels.get(*kernel).ok_or_else(|| format!("there is no kernel {kernel}"))?;
                    if buffers.len() != k.num_buffers || dims.len() != k.num_dims {
                        return Err(format!("{} gets {} buffers and {} extents", k.symbol, buffers.len(), dims.len()));
                    }
                    self.views(buffers.iter(), depth)?;
                    let other = |m: &&crate::TensorMap| self.e.buffers[buffers[m.buffer].buffer].dtype != m.dtype;
                    if let Some(map) = k.gpu.iter().flat_map(|l| &l.maps).find(other) {
                        return Err(format!("{} copies {} from a buffer of another dtype", k.symbol, map.dtype));
                    }
                    if work.shape.len() != work.class.extents().len() {
                        return Err(format!("{} is {} of {} extents", k.symbol, work.class.name(), work.shape.len()));
                    }
                    dims.iter().chain([grid]).chain(&work.shape).try_for_each(|d| self.dim(d))?;
                }
                Step::Gemm(_) | Step::GroupedGemm(_) if self.m.target != HOST => {
                    return Err(format!("a product that is no kernel, for {}", self.m.target));
                }
                Step::Gemm(g) => {
                    self.views([&g.a, &g.b, &g.c].into_iter(), depth)?;
                    self.typed("product", g.dtype, &[&g.a, &g.b, &g.c])?;
                    let strides = g.batch.iter().flat_map(|(n, s)| [n].into_iter().chain(s));
                    g.strides.iter().chain([&g.m, &g.n, &g.k]).chain(strides).try_for_each(|d| self.dim(d))?;
                }
                Step::GroupedGemm(
                    GroupedGemm::Rows { dtype, x, w, offsets, y, extents, .. }
                    | GroupedGemm::Outer { dtype, x, y, offsets, w, extents },
                ) => {
                    self.views([x, w, offsets, y].into_iter(), depth)?;
                    self.typed("grouped product", *dtype, &[x, w, y])?;
                    if self.e.buffers[offsets.buffer].dtype != DType::I32 {
                        return Err("a grouped product with offsets that are not i32".into());
                    }
                    extents.iter().try_for_each(|d| self.dim(d))?;
                }
                Step::Exchange(Exchange::Offsets { offsets, all, own, members, groups }) => {
                    self.views([offsets, all, own].into_iter(), depth)?;
                    self.members(*members, *groups, &[offsets, all, own])?;
                }
                Step::Exchange(Exchange::Rows { dtype, from, all, to, members, groups, extents, .. }) => {
                    self.views([from, all, to].into_iter(), depth)?;
                    self.typed("exchange", *dtype, &[from, to])?;
                    self.members(*members, *groups, &[all])?;
                    extents.iter().try_for_each(|d| self.dim(d))?;
                }
                Step::Copy { from, to, elems } => {
                    self.views([from, to].into_iter(), depth)?;
                    if self.e.buffers[from.buffer].dtype != self.e.buffers[to.buffer].dtype {
                        return Err(format!("a copy from buffer {} to {} of another dtype", from.buffer, to.buffer));
                    }
                    self.dim(elems)?;
                }
                Step::Zero { at, elems } => {
                    self.views([at].into_iter(), depth)?;
                    self.dim(elems)?;
                }
                Step::Loop { count, body, .. } => {
                    if *count < 0 || depth > 16 {
                        return Err(format!("a loop of {count} turns at depth {depth}"));
                    }
                    self.steps(body, depth + 1, turns.saturating_mul(*count))?;
                }
            }
        }
        Ok(())
    }
    /// The operands of a product are floats of one dtype.
    fn typed(&self, what: &str, dtype: DType, views: &[&View]) -> Result<(), String> {
        let fits = |v: &&View| self.e.buffers[v.buffer].dtype == dtype;
        if dtype.is_float() && views.iter().all(fits) { Ok(()) } else { Err(format!("a {what} of {dtype} on other operands")) }
    }
    /// The members of an exchange share its groups evenly, and its offsets are i32.
    fn members(&self, members: i64, groups: i64, offsets: &[&View]) -> Result<(), String> {
        if members < 1 || groups < 1 || groups % members != 0 || groups > MAX_UNROLLED {
            return Err(format!("an exchange of {groups} groups among {members} members"));
        }
        if offsets.iter().any(|v| self.e.buffers[v.buffer].dtype != DType::I32) {
            return Err("an exchange with offsets that are not i32".into());
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

#[cfg(test)]
mod tests;
