//! Steps as pointers. In: an entry, its plan, the first byte of each buffer. Out: a flat list of steps, loops unrolled, that costs a call
//! each. Every place that products and copies touch is checked against its buffer; a kernel's views begin inside theirs.

use crate::plan::{Plan, size};
use base::Dim;
use device::{Exchange as Exchanged, Grouped, Launch, Product, Step as Resolved, What};
use library::{Entry, Exchange, Gemm, GpuLaunch, GroupedGemm, Kernel, Manifest, Step, View};

/// What a step is, for profiles and messages.
pub(crate) fn describe(step: &Resolved, manifest: &Manifest) -> String {
    match step {
        Resolved::Launch(l) => {
            let k = &manifest.kernels[l.kernel];
            k.origin.as_ref().map_or(k.symbol.clone(), |o| format!("{} ({o})", k.symbol))
        }
        Resolved::Product(p) => format!("{} products [{}, {}] @ [{}, {}]", p.starts.len(), p.m, p.k, p.k, p.n),
        Resolved::Grouped(g) => {
            let [groups, rows, k, n] = g.extents;
            match g.rows {
                Some(_) => format!("grouped product [{rows}, {k}] @ [{groups}, {k}, {n}]"),
                None => format!("grouped outer product [{rows}, {k}], [{rows}, {n}] to [{groups}, {k}, {n}]"),
            }
        }
        Resolved::Exchange(x) => match x.what {
            What::Offsets => format!("offsets of {} members", x.members),
            What::There => format!("exchange of {} rows among {} members", x.rows, x.members),
            What::Back => format!("return of {} rows among {} members", x.rows, x.members),
        },
        Resolved::Copy { .. } => "copy".into(),
        Resolved::Zero { .. } => "zero".into(),
    }
}

/// Every step that is no loop, with the turns of the loops around it, in order.
pub(crate) fn flatten(steps: &[Step]) -> Vec<(&Step, Vec<i64>)> {
    let numbers = |turns: Vec<Turn>| turns.into_iter().map(|t| t.number).collect();
    in_turns(steps).into_iter().map(|(s, turns)| (s, numbers(turns))).collect()
}

/// A turn of a loop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    /// Which.
    pub number: i64,
    /// Of how many.
    pub count: i64,
}

/// The same with how many turns there are.
pub(crate) fn in_turns(steps: &[Step]) -> Vec<(&Step, Vec<Turn>)> {
    fn add<'e>(steps: &'e [Step], turns: &mut Vec<Turn>, out: &mut Vec<(&'e Step, Vec<Turn>)>) {
        for s in steps {
            let Step::Loop { count, reverse, body } = s else {
                out.push((s, turns.clone()));
                continue;
            };
            for i in 0..*count {
                turns.push(Turn { number: if *reverse { count - 1 - i } else { i }, count: *count });
                add(body, turns, out);
                turns.pop();
            }
        }
    }
    let mut out = Vec::new();
    add(steps, &mut Vec::new(), &mut out);
    out
}

/// What steps are resolved against.
pub(crate) struct Scene<'a> {
    /// The entry.
    pub entry: &'a Entry,
    /// Its plan.
    pub plan: &'a Plan,
    /// The first byte of each buffer.
    pub bases: &'a [*mut u8],
    /// The kernels of the manifest, in its order.
    pub kernels: &'a [Kernel],
    /// Whether rows of grouped products are the same among any others.
    pub fixed: bool,
}

impl Scene<'_> {
    /// The pointers of a step.
    ///
    /// # Errors
    /// What it would touch outside its buffers, in words.
    pub(crate) fn resolve(&self, step: &Step, turns: &[i64]) -> Result<Resolved, String> {
        let row = |elems: i64| (0, i128::from(elems) - 1);
        Ok(match step {
            Step::Launch { kernel, buffers, dims, grid, .. } => {
                let dims: Vec<i64> = dims.iter().map(|d| self.size(d)).collect();
                let grid = self.size(grid).max(0);
                if let Some(l) = self.kernels[*kernel].gpu.as_ref().filter(|l| !l.maps.is_empty() && grid > 0) {
                    self.maps(l, buffers, turns, &dims, grid)?;
                }
                let buffers: Result<_, _> = buffers.iter().map(|v| self.at(v, turns, (0, -1))).collect();
                Resolved::Launch(Launch { kernel: *kernel, buffers: buffers?, dims, grid })
            }
            Step::Gemm(g) => Resolved::Product(self.product(g, turns)?),
            Step::GroupedGemm(g) => Resolved::Grouped(self.grouped(g, turns)?),
            Step::Exchange(x) => Resolved::Exchange(self.exchange(x, turns)?),
            Step::Copy { from, to, elems } => {
                let n = self.size(elems).max(0);
                let bytes = n as usize * self.entry.buffers[from.buffer].dtype.bytes();
                Resolved::Copy { from: self.at(from, turns, row(n))?, to: self.at(to, turns, row(n))?, bytes }
            }
            Step::Zero { at, elems } => {
                let n = self.size(elems).max(0);
                let bytes = n as usize * self.entry.buffers[at.buffer].dtype.bytes();
                Resolved::Zero { at: self.at(at, turns, row(n))?, bytes }
            }
            Step::Loop { .. } => base::bug!("loops are flattened before they are resolved"),
        })
    }

    /// Checks that the tensors whose rectangles a kernel copies are inside their buffers.
    fn maps(&self, l: &GpuLaunch, buffers: &[View], turns: &[i64], dims: &[i64], grid: i64) -> Result<(), String> {
        let env = GpuLaunch::extents(dims, grid);
        for m in &l.maps {
            let value = |d: &Dim| d.eval(&env).ok_or_else(|| format!("{d} has no value for {dims:?}"));
            let axes = m.axes.iter().map(|(n, s)| Ok((value(n)?, value(s)?))).collect::<Result<Vec<_>, String>>()?;
            self.at(&buffers[m.buffer], turns, span(axes.into_iter()))?;
        }
        Ok(())
    }

    fn product(&self, g: &Gemm, turns: &[i64]) -> Result<Product, String> {
        let [m, n, k] = [&g.m, &g.n, &g.k].map(|d| self.size(d).max(0));
        let strides = g.strides.each_ref().map(|d| self.size(d));
        let batch: Vec<(i64, [i64; 3])> =
            g.batch.iter().map(|(n, by)| (self.size(n).max(0), by.each_ref().map(|d| self.size(d)))).collect();
        let points = batch.iter().try_fold(1i64, |p, (n, _)| p.checked_mul(*n)).ok_or("more products than can be counted")?;
        // What each operand touches: all of its loops at both ends; nothing if one of them is empty.
        let range = |view: &View, operand: usize, [(r, rs), (c, cs)]: [(i64, i64); 2]| {
            let loops = batch.iter().map(|(n, by)| (*n, by[operand])).chain([(r, rs), (c, cs)]);
            let touched = if points == 0 || m == 0 || n == 0 { (0, -1) } else { span(loops) };
            self.at(view, turns, touched)
        };
        let [am, ak, bk, bn, cm, cn] = strides;
        let start =
            [range(&g.a, 0, [(m, am), (k, ak)])?, range(&g.b, 1, [(k, bk), (n, bn)])?, range(&g.c, 2, [(m, cm), (n, cn)])?];
        let bytes = g.dtype.bytes() as isize;
        let mut starts = vec![start];
        for (n, by) in batch {
            let moved = |s: [*mut u8; 3], i: i64| [0, 1, 2].map(|o| s[o].wrapping_offset((i * by[o]) as isize * bytes));
            starts = starts.into_iter().flat_map(|s| (0..n).map(move |i| moved(s, i))).collect();
        }
        let [m, n, k] = [m, n, k].map(|x| x as usize);
        let strides = strides.map(|s| s as isize);
        Ok(Product { dtype: g.dtype, m, n, k, strides, starts, accumulate: g.accumulate })
    }

    fn grouped(&self, g: &GroupedGemm, turns: &[i64]) -> Result<Grouped, String> {
        let (GroupedGemm::Rows { dtype, x, w, offsets, y, extents, .. }
        | GroupedGemm::Outer { dtype, x, w, offsets, y, extents }) = g;
        let [groups, rows, k, n] = extents.each_ref().map(|d| self.size(d).max(0));
        let at = |v: &View, sizes: &[i64]| self.at(v, turns, span(contiguous(sizes)));
        let memory = [at(x, &[rows, k])?, at(w, &[groups, k, n])?, at(y, &[rows, n])?];
        let offsets = at(offsets, &[groups + 1])?.cast::<i32>().cast_const();
        let rows_kind = match g {
            GroupedGemm::Rows { transposed, .. } => Some(*transposed),
            GroupedGemm::Outer { .. } => None,
        };
        let extents = [groups, rows, k, n].map(|x| x as usize);
        Ok(Grouped { dtype: *dtype, memory, offsets, extents, rows: rows_kind, fixed: self.fixed })
    }

    fn exchange(&self, x: &Exchange, turns: &[i64]) -> Result<Exchanged, String> {
        let at = |v: &View, sizes: &[i64]| self.at(v, turns, span(contiguous(sizes)));
        let (Exchange::Offsets { all, members, groups, .. } | Exchange::Rows { all, members, groups, .. }) = x;
        let told = at(all, &[*members, groups + 1])?.cast::<i32>();
        let (what, from, to, rows, row) = match x {
            Exchange::Offsets { offsets, own, .. } => {
                (What::Offsets, at(offsets, &[groups + 1])?, at(own, &[groups / members + 1])?, 0, 0)
            }
            Exchange::Rows { dtype, back, from, to, extents, .. } => {
                let [rows, elems] = extents.each_ref().map(|d| self.size(d).max(0));
                let (what, [given, made]) =
                    if *back { (What::Back, [rows * members, rows]) } else { (What::There, [rows, rows * members]) };
                (what, at(from, &[given, elems])?, at(to, &[made, elems])?, rows, elems * dtype.bytes() as i64)
            }
        };
        let [members, groups, rows, row] = [*members, *groups, rows, row].map(|n| n as usize);
        Ok(Exchanged { what, from: from.cast_const(), all: told, to, members, groups, rows, row })
    }

    /// The view's first byte, if elements `low..=high` from there are in its buffer (none are touched if `high < low`).
    fn at(&self, v: &View, turns: &[i64], (low, high): (i128, i128)) -> Result<*mut u8, String> {
        let buffer = &self.entry.buffers[v.buffer];
        let elems = i128::from(self.size(&buffer.elems));
        let moved: i128 = v.turn.iter().zip(turns).map(|(s, i)| i128::from(self.size(s)) * i128::from(*i)).sum();
        let start = i128::from(self.size(&v.offset)) + moved;
        let outside = if high < low { start < 0 || start > elems } else { start + low < 0 || start + high >= elems };
        if outside {
            let (from, to) = (start + low, start + high);
            return Err(format!("elements {from} to {to} of buffer {} with {elems} elements in turn {turns:?}", v.buffer));
        }
        Ok(self.bases[v.buffer].wrapping_offset(start as isize * buffer.dtype.bytes() as isize))
    }
    fn size(&self, d: &Dim) -> i64 {
        size(d, &self.plan.dims)
    }
}

/// Loops over all of a contiguous tensor.
fn contiguous(sizes: &[i64]) -> impl Iterator<Item = (i64, i64)> {
    // Extents are checked one by one, so the product of the inner ones saturates only for memory that cannot exist.
    sizes.iter().enumerate().map(|(i, n)| (*n, sizes[i + 1..].iter().fold(1i64, |p, n| p.saturating_mul(*n))))
}

/// The least and greatest element that nested loops of these extents and strides touch; empty if one has no turn.
fn span(loops: impl Iterator<Item = (i64, i64)>) -> (i128, i128) {
    let mut range = (0i128, 0i128);
    for (n, stride) in loops {
        if n <= 0 {
            return (0, -1);
        }
        let end = i128::from(n - 1) * i128::from(stride);
        range = (range.0 + end.min(0), range.1 + end.max(0));
    }
    range
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_the_ends_of_loops() {
        assert_eq!(span([(3, 10), (4, -1)].into_iter()), (-3, 20));
        assert_eq!(span([(3, 10), (0, 1)].into_iter()), (0, -1));
        assert_eq!(span(contiguous(&[2, 3, 4])), (0, 23));
        assert_eq!(span([].into_iter()), (0, 0));
    }
}
