//! How long each step of an entry takes alone.
//!
//! Every buffer has memory of its own, and all steps run once in order before the first is timed: a step then works on what it works on in a
//! run, with the indices that routing and top-k really chose. A step inside a loop is timed as it is in the last turn.

use crate::{ExecError, HostTensor, Session, plan, plan::Peak, resolve::flatten};
use base::DimEnv;
use library::{Job, Role, Step};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// What a step took.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// The kernel it launches, by its place in the manifest.
    pub kernel: Option<usize>,
    /// What it does.
    pub job: Job,
    /// Whether it zeros memory: the job of a copy of as many bytes, without reading any.
    pub zeros: bool,
    /// The least time of several. Whatever else the machine does only adds. # Units: nanoseconds.
    pub ns: f64,
    /// How often the entry runs it.
    pub times: usize,
}

/// Time spent on a step, and runs of it: at least this many, at most that many.
const SPEND: Duration = Duration::from_millis(12);
const RUNS: [usize; 2] = [3, 60];

impl Session {
    /// Measures the steps of an entry, those that take the most of a run first; each is given to `each` as it is known. Equal work by one
    /// kernel is measured once. False if the deadline came before all were.
    ///
    /// # Errors
    /// As `run`; E0703 if the buffers, each in memory of its own, do not fit.
    pub fn measure(
        &mut self,
        entry: &str,
        dims: &DimEnv,
        inputs: &[(&str, &HostTensor)],
        deadline: Instant,
        each: &mut dyn FnMut(Measured),
    ) -> Result<bool, ExecError> {
        let e = self.variant(entry, dims)?.clone();
        let plan = plan::plan_apart(&e, dims)?;
        self.forget();
        let mut peak = Peak { activations: plan.arena_bytes as u64, ..Peak::default() };
        for p in e.args.iter().chain(&e.outputs).filter(|p| !p.role.is_stored() || self.store.get(p.role, &p.name).is_none()) {
            *peak.by_role.entry(p.role).or_insert(0) += plan.bytes[p.buffer] as u64;
        }
        self.admit(&peak, None, 0)?;
        self.store.zero(Role::Grad);
        self.store.zero(Role::Tally);
        self.replace_arena(self.room(&e, &plan))?;
        let key = self.resolve(&e, plan)?;
        self.write_inputs(&key, entry, inputs)?;
        self.send(&key, entry)?;
        let program = &self.prepared(&key).program;
        // One step alone.
        let run = |i: usize| -> Result<Duration, ExecError> {
            let begin = self.device.mark()?;
            // SAFETY: `resolve` made every pointer from memory of this session with the planned sizes.
            unsafe { self.device.execute(program, i) }?;
            let end = self.device.mark()?;
            self.device.wait()?;
            Ok(Duration::from_nanos(self.device.nanoseconds(&begin, &end) as u64))
        };
        // What each kind of step took the first time, how often there is one, and the last of them.
        let mut kinds: BTreeMap<(Option<usize>, Job, bool), (Duration, usize, usize)> = BTreeMap::new();
        for (i, (original, _)) in flatten(&e.steps).into_iter().enumerate() {
            let took = run(i)?;
            let kernel = match original {
                Step::Launch { kernel, .. } => Some(*kernel),
                Step::Gemm(_)
                | Step::GroupedGemm(_)
                | Step::Exchange(_)
                | Step::Copy { .. }
                | Step::Zero { .. }
                | Step::Loop { .. } => None,
            };
            let Some(job) = original.job(&e.buffers, dims) else { continue };
            let zeros = matches!(original, Step::Zero { .. });
            let kind = kinds.entry((kernel, job, zeros)).or_insert((took, 0, i));
            *kind = (kind.0.min(took), kind.1 + 1, i);
        }
        let mut order: Vec<_> = kinds.into_iter().collect();
        order.sort_by_key(|(_, (took, times, at))| (std::cmp::Reverse(*took * *times as u32), *at));
        let mut whole = true;
        for ((kernel, job, zeros), (first, times, at)) in order {
            let mut least = first;
            let began = Instant::now();
            for done in 0..RUNS[1] {
                if began >= deadline || done >= RUNS[0] && began.elapsed() > SPEND {
                    break;
                }
                least = least.min(run(at)?);
            }
            whole &= began < deadline;
            each(Measured { kernel, job, zeros, ns: least.as_nanos() as f64, times });
        }
        self.forget();
        Ok(whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Build, dim, session_of, view};
    use base::DType;

    #[test]
    fn zeroing_is_no_copy_of_as_many_bytes() {
        let mut b = Build::new("f");
        let x = b.arg(Role::Input, "x", DType::F32, &["64"]);
        let y = b.output(Role::Result, "y", DType::F32, &["64"]);
        let z = b.output(Role::Result, "z", DType::F32, &["128"]);
        // 256 bytes are read and as many written; 512 are zeroed.
        b.step(Step::Copy { from: view(x, &[]), to: view(y, &[]), elems: dim("64") });
        b.step(Step::Zero { at: view(z, &[]), elems: dim("128") });
        let mut session = session_of(b.entry, &[], 1);
        let x = HostTensor::from_f64(DType::F32, &[64], vec![1.0; 64]);
        let mut found = Vec::new();
        let until = Instant::now() + Duration::from_secs(60);
        session.measure("f", &DimEnv::new(), &[("x", &x)], until, &mut |m| found.push(m)).expect("it runs");
        found.sort_by_key(|m| m.zeros);
        assert!(found[0].job == found[1].job, "{found:?}");
        assert_eq!(found.iter().map(|m| (m.kernel, m.zeros, m.times)).collect::<Vec<_>>(), [(None, false, 1), (None, true, 1)]);
    }
}
