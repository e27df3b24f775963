//! Whether a model computes the same in two places: on the host and on a GPU, twice on the same, before and after an interruption. What a model
//! computes from seeded parameters and made-up text, as tensors by name, and how far two such sets are apart.

use crate::{
    ExecError, HostTensor, Session, checkpoint,
    data::Text,
    plan::Peak,
    random::Stream,
    train::{self, Feed, Figures, Options, Report},
};
use base::DType;
use library::Role;
use std::{collections::BTreeMap, fs, path::Path};

/// What a model computes, by entry, role and name.
pub type Tensors = BTreeMap<String, HostTensor>;

/// The name of the losses of training among the tensors.
pub const LOSSES: &str = "train losses";

/// Sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Sequences.
    pub batch: usize,
    /// Tokens of a sequence.
    pub seq: usize,
    /// Training steps.
    pub steps: u64,
}

/// Tokens of made-up text.
const TOKENS: u64 = 6000;

/// Text in which a token mostly settles the next one.
fn text(s: &Session, seq: usize) -> Result<Text, ExecError> {
    let vocab = train::vocab(s).unwrap_or(2).max(2) as u64;
    let (stream, mut token) = (Stream::new(5, "text"), 0);
    let tokens = (0..TOKENS).map(|i| {
        token = if stream.uniform(i) < 0.9 { (token * 5 + 3) % vocab } else { stream.below(i + TOKENS, vocab) };
        token as i32
    });
    Text::new(tokens.collect(), seq, "made-up text")
}

fn options(p: &Problem, folder: &Path, steps: u64) -> Options {
    Options {
        batch: p.batch,
        seq: p.seq,
        micro_batches: if p.batch.is_multiple_of(2) { 2 } else { 1 },
        steps,
        warmup: steps / 10,
        lr: 1e-2,
        floor: 0.1,
        clip: 1.0,
        seed: 11,
        eval_every: 0,
        eval_rows: p.batch,
        save_every: steps.div_ceil(2),
        keep: 2,
        out: folder.into(),
        resume: false,
        memory_limit: None,
    }
}

#[derive(Default)]
struct Losses(Vec<f64>);

impl Report for Losses {
    fn start(&mut self, _peak: &Peak, _first: u64, _steps: u64) {}
    fn step(&mut self, f: &Figures) {
        self.0.push(f.loss);
    }
    fn warn(&mut self, _text: String) {}
}

/// `forward` and `grad` of a batch from fresh parameters: results, gradients and tallies.
///
/// # Errors
/// As runs of the entries.
pub fn once(s: &mut Session, p: &Problem) -> Result<Tensors, ExecError> {
    let manifest = s.manifest.clone();
    s.store.initialise(&manifest, 1)?;
    let o = Options { micro_batches: 1, ..options(p, Path::new(""), 1) };
    let (text, feed) = (text(s, p.seq)?, Feed::new(s, &o)?);
    let batch = text.batch(o.seed, 1, 0, p.batch, p.seq);
    let mut out = Tensors::new();
    let tokens = [(feed.names[0].as_str(), &batch.tokens)];
    let dims = s.bind("forward", &[(tokens[0].0, &batch.tokens.shape)])?;
    out.extend(s.run("forward", &dims, &tokens)?.into_iter().map(|(n, t)| (format!("forward {n}"), t)));
    s.store.zero(Role::Grad);
    s.store.zero(Role::Tally);
    let results = s.run("grad", &feed.dims, &feed.inputs(&batch, &feed.weights))?;
    out.extend(results.into_iter().map(|(n, t)| (format!("grad {n}"), t)));
    s.store.refresh()?;
    for ((role, name), slot) in s.store.iter().filter(|((r, _), _)| matches!(r, Role::Grad | Role::Tally)) {
        let t = HostTensor { dtype: slot.dtype, shape: slot.shape.clone(), bytes: slot.memory.bytes().to_vec() };
        out.insert(format!("grad {} {name}", format!("{role:?}").to_lowercase()), t);
    }
    Ok(out)
}

/// The losses of training from fresh parameters; checkpoints go to an empty folder.
///
/// # Errors
/// As training.
pub fn losses(s: &mut Session, p: &Problem, folder: &Path) -> Result<HostTensor, ExecError> {
    let mut log = Losses::default();
    let text = text(s, p.seq)?;
    train::train(s, &text, &options(p, folder, p.steps), &mut log)?;
    Ok(HostTensor::from_f64(DType::F64, &[log.0.len() as i64], log.0))
}

/// Whether a run that goes on from its middle ends with the bytes of one that never stopped. Works in an empty folder.
///
/// # Errors
/// As training.
pub fn resumes(s: &mut Session, p: &Problem, folder: &Path) -> Result<bool, ExecError> {
    let text = text(s, p.seq)?;
    let (whole, broken) = (folder.join("whole"), folder.join("broken"));
    let io = |path: &Path, e: std::io::Error| ExecError::io(path, &e);
    train::train(s, &text, &options(p, &whole, p.steps), &mut Losses::default())?;
    let [last, middle] = &checkpoint::list(&whole)[..] else { return Ok(false) };
    fs::create_dir_all(&broken).map_err(|e| io(&broken, e))?;
    let copy = broken.join(middle.file_name().unwrap_or_default());
    fs::copy(middle, &copy).map_err(|e| io(&copy, e))?;
    let o = Options { resume: true, ..options(p, &broken, p.steps) };
    train::train(s, &text, &o, &mut Losses::default())?;
    let again = broken.join(last.file_name().unwrap_or_default());
    let read = |path: &Path| fs::read(path).map_err(|e| io(path, e));
    Ok(read(last)? == read(&again)?)
}

/// The tensor that is farthest apart, and how far over the largest magnitude of it; infinitely far if one set lacks it or a number is NaN.
pub fn farthest(a: &Tensors, b: &Tensors) -> (String, f64) {
    let mut worst = (String::new(), 0.0);
    let names = a.keys().chain(b.keys().filter(|n| !a.contains_key(*n)));
    for name in names {
        let apart = match (a.get(name), b.get(name)) {
            (Some(x), Some(y)) if x.shape == y.shape => {
                let (x, y) = (x.to_f64(), y.to_f64());
                let scale = x.iter().fold(1e-6f64, |m, v| m.max(v.abs()));
                let far = |(x, y): (&f64, &f64)| if x == y { 0.0 } else { (x - y).abs() / scale };
                // A NaN is far.
                x.iter().zip(&y).map(far).fold(0.0, |m: f64, d| if m.is_nan() || d <= m { m } else { d })
            }
            _ => f64::INFINITY,
        };
        if apart.is_nan() || apart > worst.1 {
            worst = (name.clone(), if apart.is_nan() { f64::INFINITY } else { apart });
        }
    }
    worst
}

/// How far losses may be from the host's: rounding makes runs drift apart, and how far is seen between two programs of the host that compute the
/// same in another order. Four times that, and what rounding of a loss itself may be. # Units: nats.
pub const DRIFT: f64 = 4.0;
const FLOOR: f64 = 2e-3;
/// Steps in which two programs may be together by chance: how far they are apart in any of these counts for all.
const EARLY: usize = 10;

/// The step with the largest share of its bound, and that share, for losses against those of two programs of the host.
pub fn drift(losses: &[f64], host: [&[f64]; 2]) -> (usize, f64) {
    let early = host[0].iter().zip(host[1]).take(EARLY).map(|(a, b)| (a - b).abs());
    let (mut apart, mut worst) = (early.fold(0.0, f64::max), (0, 0.0));
    for (i, x) in losses.iter().enumerate() {
        let Some((a, b)) = host[0].get(i).zip(host[1].get(i)) else { return (i, f64::INFINITY) };
        apart = apart.max((a - b).abs());
        let share = (x - a).abs() / (DRIFT * apart + FLOOR);
        if share.is_nan() || share > worst.1 {
            worst = (i + 1, if share.is_nan() { f64::INFINITY } else { share });
        }
    }
    if losses.len() == host[0].len() { worst } else { (losses.len(), f64::INFINITY) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, folder};

    #[test]
    fn a_model_agrees_with_itself_and_resumes() {
        let p = Problem { batch: 4, seq: 8, steps: 6 };
        let (mut s, mut other) = (testing::session(1), testing::session(3));
        other.poison = true;
        let (a, b) = (once(&mut s, &p).expect("it runs"), once(&mut other, &p).expect("it runs"));
        assert!(a.contains_key("grad grad table") && a.contains_key("grad loss") && a.contains_key("forward logits"), "{a:?}");
        assert_eq!((farthest(&a, &b).1, a == b), (0.0, true));
        let here = folder("agree");
        let l = losses(&mut s, &p, &here.join("a")).expect("it trains").to_f64();
        assert_eq!(l.len(), 6);
        assert!(drift(&l, [&l, &l]) == (0, 0.0));
        assert!(resumes(&mut s, &p, &here).expect("it trains"));
    }

    #[test]
    fn what_is_apart_is_named() {
        let set = |x: &[f64]| Tensors::from([("x".to_string(), HostTensor::from_f64(DType::F64, &[x.len() as i64], x.to_vec()))]);
        assert_eq!(farthest(&set(&[4.0, 1.0]), &set(&[4.0, 2.0])), ("x".into(), 0.25));
        assert_eq!(farthest(&set(&[4.0]), &set(&[f64::NAN])).1, f64::INFINITY);
        assert_eq!(farthest(&set(&[f64::NAN, 1.0]), &set(&[2.0, 1.0])).1, f64::INFINITY);
        assert_eq!(farthest(&set(&[4.0]), &Tensors::new()).1, f64::INFINITY);
        assert_eq!(drift(&[1.0, 1.1], [&[1.0, 1.0], &[1.0, 1.024]]).0, 2);
        assert!(drift(&[1.0, 1.1], [&[1.0, 1.0], &[1.0, 1.024]]).1 > 1.0);
        assert!(drift(&[1.0, 1.09], [&[1.0, 1.0], &[1.0, 1.024]]).1 < 1.0);
        assert_eq!(drift(&[1.0], [&[1.0, 1.0], &[1.0, 1.0]]).1, f64::INFINITY);
        assert_eq!(drift(&[f64::NAN], [&[1.0], &[1.0]]).1, f64::INFINITY);
    }
}
