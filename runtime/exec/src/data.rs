//! Text as tokens: bytes of a file, or the integers of a .npy file; the last tenth for validation. Which windows make a batch depends on
//! the seed and the step alone.

use crate::{ExecError, HostTensor, npy, random::Stream};
use std::path::Path;

/// A file's tokens, split.
#[derive(Clone, Debug)]
pub struct Text {
    train: Vec<i32>,
    valid: Vec<i32>,
    path: String,
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
    /// Reads a file: the integers of a one-dimensional `.npy`, or the bytes of any other.
    ///
    /// # Errors
    /// E0705 if it cannot be read, E0707 if a part is shorter than a window of `seq` tokens and one more.
    pub fn read(path: &Path, seq: usize) -> Result<Text, ExecError> {
        let bytes = if path.extension().is_some_and(|x| x == "npy") {
            let t = npy::read(path)?;
            let fits = |x: f64| (0.0..=f64::from(i32::MAX)).contains(&x);
            let tokens = t.to_f64();
            if t.shape.len() != 1 || !t.dtype.is_int() || !tokens.iter().all(|x| fits(*x)) {
                let why = format!("{}{:?} is no row of tokens", t.dtype, t.shape);
                let help = "a one-dimensional array of integers from 0";
                return Err(ExecError::File { path: path.display().to_string(), why, help });
            }
            tokens.into_iter().map(|x| x as i32).collect()
        } else {
            std::fs::read(path).map_err(|e| ExecError::io(path, &e))?.into_iter().map(i32::from).collect()
        };
        Text::new(bytes, seq, &path.display().to_string())
    }
    /// Splits tokens; `path` is for messages.
    ///
    /// # Errors
    /// E0707 if a part is shorter than a window of `seq` tokens and one more.
    pub fn new(mut tokens: Vec<i32>, seq: usize, path: &str) -> Result<Text, ExecError> {
        let have = tokens.len();
        let checksum = library::file::checksum(&tokens.iter().flat_map(|t| t.to_le_bytes()).collect::<Vec<_>>());
        let valid = tokens.split_off(have - have / 10);
        if tokens.len() < seq + 1 || valid.len() < seq + 1 {
            return Err(ExecError::ShortData { path: path.into(), have, need: 10 * (seq + 1) });
        }
        Ok(Text { train: tokens, valid, path: path.into(), checksum })
    }
    /// Fails if a token is beyond a vocabulary of `vocab`.
    ///
    /// # Errors
    /// E0711.
    pub fn expect_vocab(&self, vocab: i64) -> Result<(), ExecError> {
        let all = self.train.iter().chain(&self.valid);
        match all.enumerate().find(|(_, t)| i64::from(**t) >= vocab) {
            Some((at, token)) => Err(ExecError::Vocabulary { path: self.path.clone(), token: *token, at, vocab }),
            None => Ok(()),
        }
    }
    /// Rows `first..first + rows` of the batch of a step.
    pub fn batch(&self, seed: u64, step: u64, first: usize, rows: usize, seq: usize) -> Batch {
        let stream = Stream::new(seed, "batch");
        let places = (self.train.len() - seq) as u64;
        let starts = (first..first + rows).map(|r| stream.below((step << 20) + r as u64, places) as usize);
        windows(&self.train, starts, seq)
    }
    /// Validation windows `first..first + rows` of `total`, evenly spaced over the validation part.
    pub fn validation(&self, first: usize, rows: usize, total: usize, seq: usize) -> Batch {
        let places = self.valid.len() - seq;
        windows(&self.valid, (first..first + rows).map(|r| r * places / total.max(1)), seq)
    }
}

fn windows(text: &[i32], starts: impl Iterator<Item = usize>, seq: usize) -> Batch {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    let mut rows = 0;
    for s in starts {
        a.extend_from_slice(&text[s..s + seq]);
        b.extend_from_slice(&text[s + 1..=s + seq]);
        rows += 1;
    }
    let shape = [rows, seq as i64];
    Batch { tokens: HostTensor::from_i32(&shape, &a), targets: HostTensor::from_i32(&shape, &b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::folder;
    use base::DType;
    use std::collections::BTreeSet;

    #[test]
    fn windows_are_of_their_part_and_targets_follow_tokens() {
        let text = Text::new((0..1000).collect(), 20, "x").expect("it is long enough");
        let mut starts = BTreeSet::new();
        for step in 1..200 {
            let b = text.batch(7, step, 0, 4, 20);
            let (a, t) = (b.tokens.to_f64(), b.targets.to_f64());
            assert!(a.iter().zip(&t).all(|(x, y)| x + 1.0 == *y && *y < 900.0));
            starts.extend(a.chunks(20).map(|r| r[0] as i64));
            // Parts of a batch are the batch.
            let (c, d) = (text.batch(7, step, 0, 1, 20), text.batch(7, step, 1, 3, 20));
            assert_eq!([c.tokens.bytes, d.tokens.bytes].concat(), b.tokens.bytes);
        }
        assert!(starts.len() > 400 && starts.first() < Some(&10) && starts.last() > Some(&870));
        assert_ne!(text.batch(7, 1, 0, 4, 20).tokens, text.batch(8, 1, 0, 4, 20).tokens);
        let v = text.validation(0, 5, 5, 20).targets.to_f64();
        assert!(v.iter().all(|x| *x > 900.0) && v[0] == 901.0);
        assert_eq!(text.validation(4, 1, 5, 20).targets.to_f64()[..], v[80..]);
    }

    #[test]
    fn the_shortest_text_has_one_window() {
        let text = Text::new((0..210).collect(), 20, "x").expect("it is just long enough");
        assert_eq!(text.validation(0, 3, 3, 20).tokens.to_f64()[0], 189.0);
        assert_eq!(text.batch(1, 1, 0, 1, 188).targets.to_f64()[187], 188.0);
        let Err(ExecError::ShortData { have, need, .. }) = Text::new((0..209).collect(), 20, "x") else { panic!("too short") };
        assert_eq!((have, need), (209, 210));
    }

    #[test]
    fn bytes_and_tokens_are_read() {
        let folder = folder("data");
        std::fs::write(folder.join("a.txt"), "ab".repeat(50)).expect("it writes");
        let text = Text::read(&folder.join("a.txt"), 4).expect("it reads");
        assert_eq!(text.validation(0, 1, 1, 4).tokens.to_f64(), [97.0, 98.0, 97.0, 98.0]);
        assert!(text.expect_vocab(99).is_ok());
        let error = text.expect_vocab(98).expect_err("b is 98").to_string();
        assert!(error.ends_with("a.txt: token 98 at 1, the model has 98"), "{error}");
        let path = folder.join("t.npy");
        npy::write(&path, &HostTensor::from_i32(&[100], &[300; 100])).expect("it writes");
        assert_eq!(Text::read(&path, 4).expect("it reads").validation(0, 1, 1, 4).tokens.to_f64(), [300.0; 4]);
        npy::write(&path, &HostTensor::from_i32(&[100], &[-1; 100])).expect("it writes");
        assert!(matches!(Text::read(&path, 4), Err(ExecError::File { .. })));
        npy::write(&path, &HostTensor::from_f64(DType::F32, &[100], vec![1.0; 100])).expect("it writes");
        assert!(matches!(Text::read(&path, 4), Err(ExecError::File { .. })));
        assert!(matches!(Text::read(&folder.join("none.txt"), 4), Err(ExecError::File { .. })));
    }
}
