//! Finding the first step that makes a number which is not finite.

use crate::{
    ExecError, HostTensor, Session,
    plan::{self, size},
    resolve::{describe, flatten},
    tensor,
};
use base::DimEnv;
use library::{Role, Step};
use std::collections::BTreeSet;

impl Session {
    /// Runs an entry and looks after every step for the first NaN, or else for the first infinity above zero (masks hold the one below):
    /// what held it before the first step, or the step that made it. Every buffer has memory of its own here. Gradients and tallies
    /// start from zero.
    ///
    /// # Errors
    /// As `run`.
    pub fn find_not_finite(
        &mut self,
        entry: &str,
        dims: &DimEnv,
        inputs: &[(&str, &HostTensor)],
    ) -> Result<Option<String>, ExecError> {
        let e = self.variant(entry, dims)?.clone();
        let plan = plan::plan_apart(&e, dims)?;
        self.store.zero(Role::Grad);
        self.store.zero(Role::Tally);
        self.replace_arena(self.room(&e, &plan))?;
        let key = self.resolve(&e, plan)?;
        self.write_inputs(&key, entry, inputs)?;
        self.send(&key, entry)?;
        if let Some(held) = self.held_before(&e, inputs) {
            self.forget();
            return Ok(Some(held));
        }
        // What is read alone was looked at; all else may be written.
        let written: BTreeSet<usize> = e.outputs.iter().map(|p| p.buffer).collect();
        let read_only = |b: usize| e.buffers[b].external && !written.contains(&b);
        let prepared = self.prepared(&key);
        let mut infinite = None;
        let mut found = None;
        let mut kernel = None;
        let total = prepared.program.steps.len();
        for (i, (step, (original, turns))) in prepared.program.steps.iter().zip(flatten(&e.steps)).enumerate() {
            // SAFETY: `resolve` made every pointer from memory of this session with the planned sizes.
            unsafe { self.device.execute(&prepared.program, i) }?;
            self.device.wait()?;
            let mut what = format!("{}, step {} of {total} of {entry}", describe(step, &self.manifest), i + 1);
            if matches!(original, Step::Launch { .. }) {
                kernel = Some(describe(step, &self.manifest));
            } else if let Some(kernel) = &kernel {
                what.push_str(&format!(", after {kernel}"));
            }
            for v in plan::views(original) {
                let b = &e.buffers[v.buffer];
                if !b.dtype.is_float() || read_only(v.buffer) {
                    continue;
                }
                let moved = size(&v.offset, dims) + v.turn.iter().zip(&turns).map(|(s, t)| size(s, dims) * t).sum::<i64>();
                let skipped = moved as usize * b.dtype.bytes();
                let len = prepared.plan.bytes[v.buffer] - skipped;
                // SAFETY: the rest of the buffer from the view's start, which `resolve` found to be inside.
                let rest = unsafe { self.device.read(prepared.bases[v.buffer].wrapping_add(skipped), len) }?;
                match tensor::not_finite(b.dtype, &rest) {
                    Some(x) if x.is_nan() => found = Some(format!("{what}, made NaN")),
                    Some(x) if x > 0.0 && infinite.is_none() => infinite = Some(format!("{what}, made infinity")),
                    _ => {}
                }
            }
            if found.is_some() {
                break;
            }
        }
        self.forget();
        Ok(found.or(infinite))
    }

    /// What an argument holds before the first step.
    fn held_before(&self, e: &library::Entry, inputs: &[(&str, &HostTensor)]) -> Option<String> {
        let bad = |dtype, bytes: &[u8]| tensor::not_finite(dtype, bytes).filter(|x| x.is_nan() || *x > 0.0);
        e.args.iter().filter(|p| p.dtype.is_float()).find_map(|p| {
            let x = if p.role.is_stored() {
                let slot = self.store.get(p.role, &p.name)?;
                bad(slot.dtype, slot.memory.bytes())?
            } else {
                let (_, t) = inputs.iter().find(|(n, _)| *n == p.name)?;
                bad(t.dtype, &t.bytes)?
            };
            Some(format!("{} {} held {x} before the first step", format!("{:?}", p.role).to_lowercase(), p.name))
        })
    }
}
