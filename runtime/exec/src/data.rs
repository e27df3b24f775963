//! Text as tokens: bytes of a file, the last tenth for validation. Which windows make a batch depends on the seed and the step alone.

use crate::{ExecError, HostTensor, random::Stream};
use base::DType;
use std::path::Path;

/// A file's bytes, split.
#[derive(Clone, Debug)]
pub struct Text {
    train: Vec<u8>,
    valid: Vec<u8>,
    /// Identifies the content in checkpoints.
    pub checksum: u64,
}

/// Tokens and the tokens that follow them, i32 `[rows, seq]` each.
pub struct Batch {
    /// What the model sees.
    pub tokens: HostTensor,
    /// What it has to predict.
    pub targets: HostTensor,
}

impl Text {
    /// Reads a file.
    ///
    /// # Errors
    /// E0705 if it cannot be read, E0707 if a part is shorter than a window of `seq` tokens and one more.
    pub fn read(path: &Path, seq: usize) -> Result<Text, ExecError> {
        let bytes = std::fs::read(path).map_err(|e| ExecError::io(path, &e))?;
        let cut = bytes.len() - bytes.len() / 10;
        let (train, valid) = bytes.split_at(cut);
        let need = 10 * (seq + 1);
        if train.len() < seq + 1 || valid.len() < seq + 1 {
            return Err(ExecError::ShortData { path: path.display().to_string(), have: bytes.len(), need });
        }
        Ok(Text { checksum: library::file::checksum(&bytes), train: train.to_vec(), valid: valid.to_vec() })
    }
    /// Rows `first..first + rows` of the batch of a step.
    pub fn batch(&self, seed: u64, step: u64, first: usize, rows: usize, seq: usize) -> Batch {
        let stream = Stream::new(seed, "batch");
        let places = (self.train.len() - seq) as u64;
        let starts = (first..first + rows).map(|r| stream.below((step << 20) + r as u64, places) as usize);
        windows(&self.train, starts, seq)
    }
    /// Validation windows `first..first + rows`, evenly spaced over the validation part.
    pub fn validation(&self, first: usize, rows: usize, total: usize, seq: usize) -> Batch {
        let places = self.valid.len() - seq;
        windows(&self.valid, (first..first + rows).map(|r| r * (places - 1) / total.max(1)), seq)
    }
}

fn windows(text: &[u8], starts: impl Iterator<Item = usize>, seq: usize) -> Batch {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    let mut rows = 0;
    for s in starts {
        a.extend(text[s..s + seq].iter().map(|x| f64::from(*x)));
        b.extend(text[s + 1..=s + seq].iter().map(|x| f64::from(*x)));
        rows += 1;
    }
    let tensor = |v: Vec<f64>| HostTensor::from_f64(DType::I32, &[rows, seq as i64], v);
    Batch { tokens: tensor(a), targets: tensor(b) }
}
