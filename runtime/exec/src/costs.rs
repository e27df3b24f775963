//! What it costs to start an entry's steps on a GPU.

use crate::{ExecError, HostTensor, Session};
use base::DimEnv;
use std::time::Instant;

/// Times of one run of an entry: medians. # Units: seconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Costs {
    /// Kernels that a run launches.
    pub kernels: usize,
    /// Copies and memory that is zeroed.
    pub others: usize,
    /// The host's time to start the steps one by one, and until the device is done.
    pub plain: (f64, f64),
    /// The same for a run that is recorded first, as a session's second one is.
    pub anew: (f64, f64),
    /// The same for the recorded run.
    pub recorded: (f64, f64),
    /// A recorded run among others one after the other, for which the host waits once: what the device takes, without starting it and waiting for it.
    pub in_a_row: f64,
}

impl Session {
    /// Measures `runs` runs either way; none on the host, where starting a step is running it.
    ///
    /// # Errors
    /// As `run`.
    pub fn costs(
        &mut self,
        entry: &str,
        dims: &DimEnv,
        inputs: &[(&str, &HostTensor)],
        runs: usize,
    ) -> Result<Option<Costs>, ExecError> {
        let device = self.device.clone();
        if !matches!(*device, device::Device::Gpu(_)) {
            return Ok(None);
        }
        // The first run is careful, the second records.
        for _ in 0..2 {
            self.run(entry, dims, inputs)?;
        }
        let key = self.prepare(entry, dims)?;
        self.write_inputs(&key, entry, inputs)?;
        self.send(&key, entry)?;
        let program = &mut self.prepared_mut(&key).program;
        let (kernels, others) = program.counts();
        let (mut plain, mut anew, mut recorded) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..runs.max(1) {
            device.wait()?;
            let begin = Instant::now();
            // SAFETY: the session resolved every pointer into memory of its own, and waits.
            unsafe { device.run_one_by_one(program) }?;
            let started = begin.elapsed().as_secs_f64();
            device.wait()?;
            plain.push((started, begin.elapsed().as_secs_f64()));
            let begin = Instant::now();
            // SAFETY: as above.
            unsafe { device.run_anew(program) }?;
            let started = begin.elapsed().as_secs_f64();
            device.wait()?;
            anew.push((started, begin.elapsed().as_secs_f64()));
            let begin = Instant::now();
            // SAFETY: as above.
            unsafe { device.run(program) }?;
            let started = begin.elapsed().as_secs_f64();
            device.wait()?;
            recorded.push((started, begin.elapsed().as_secs_f64()));
        }
        let begin = Instant::now();
        // SAFETY: as above.
        (0..runs.max(1)).try_for_each(|_| unsafe { device.run(program) })?;
        device.wait()?;
        let in_a_row = begin.elapsed().as_secs_f64() / runs.max(1) as f64;
        self.written(&key, entry);
        let [plain, anew, recorded] = [plain, anew, recorded].map(medians);
        Ok(Some(Costs { kernels, others, plain, anew, recorded, in_a_row }))
    }
}

fn medians(pairs: Vec<(f64, f64)>) -> (f64, f64) {
    let median = |mut x: Vec<f64>| {
        x.sort_by(f64::total_cmp);
        x[x.len() / 2]
    };
    (median(pairs.iter().map(|p| p.0).collect()), median(pairs.iter().map(|p| p.1).collect()))
}
