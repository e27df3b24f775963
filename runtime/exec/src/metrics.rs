//! The metrics file: a JSON object a line and step.

use crate::{ExecError, train::Figures};
use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

/// An open metrics file.
pub(crate) struct Metrics {
    path: PathBuf,
    file: File,
}

impl Metrics {
    /// Opens the file for a run that goes on after step `first`: what an earlier run wrote about later steps goes.
    ///
    /// # Errors
    /// E0705.
    pub(crate) fn open(path: &Path, first: u64) -> Result<Metrics, ExecError> {
        let open = || -> std::io::Result<File> {
            path.parent().map_or(Ok(()), fs::create_dir_all)?;
            let old = if first > 0 && path.exists() { fs::read(path)? } else { Vec::new() };
            let old = String::from_utf8_lossy(&old);
            let step = |line: &str| serde_json::from_str::<serde_json::Value>(line).ok()?.get("step")?.as_u64();
            let mut file = File::create(path)?;
            for line in old.lines().filter(|l| step(l).is_some_and(|n| n <= first)) {
                writeln!(file, "{line}")?;
            }
            Ok(file)
        };
        let file = open().map_err(|e| ExecError::io(path, &e))?;
        Ok(Metrics { path: path.into(), file })
    }
    /// Adds a step, with the losses of its micro-batches: they are written so that reading gives the same bits.
    ///
    /// # Errors
    /// E0705.
    pub(crate) fn write(&mut self, f: &Figures, micro_losses: &[f64]) -> Result<(), ExecError> {
        let line = serde_json::json!({
            "step": f.step, "loss": f.loss, "lr": f.lr, "grad_norm": f.grad_norm, "tokens_per_s": f.tokens_per_s,
            "max_vio": f.max_violation, "val_loss": f.val_loss, "peak_bytes": f.peak_bytes,
            "micro_losses": micro_losses,
        });
        writeln!(self.file, "{line}").map_err(|e| ExecError::io(&self.path, &e))
    }
    /// Forces what was written to the disk, so that it is never behind a checkpoint.
    ///
    /// # Errors
    /// E0705.
    pub(crate) fn sync(&mut self) -> Result<(), ExecError> {
        self.file.sync_all().map_err(|e| ExecError::io(&self.path, &e))
    }
}
