use super::*;
use crate::testing::{self, Folder, folder};
use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

/// A text in which a token settles the next one nine times in ten.
fn text() -> Text {
    let stream = crate::random::Stream::new(5, "text");
    let mut token = 0;
    let tokens = (0..3000).map(|i| {
        token = if stream.uniform(i) < 0.9 { (token * 5 + 3) % 32 } else { stream.below(i + 10_000, 32) as i32 };
        token
    });
    Text::new(tokens.collect(), 16, "text").expect("it is long enough")
}

fn options(out: &Path) -> Options {
    Options {
        batch: 8,
        seq: 16,
        micro_batches: 2,
        steps: 24,
        warmup: 4,
        lr: 0.05,
        floor: 0.1,
        clip: 1.0,
        seed: 11,
        eval_every: 6,
        eval_rows: 20,
        save_every: 5,
        keep: 2,
        out: out.into(),
        resume: false,
        memory_limit: None,
    }
}

/// Collects; panics or stops after a step if told so.
#[derive(Default)]
struct Log {
    first: u64,
    steps: Vec<Figures>,
    warnings: Vec<String>,
    die_after: Option<u64>,
    stop_after: Option<u64>,
}

impl Report for Log {
    fn start(&mut self, peak: &Peak, first: u64, _steps: u64) {
        assert!(peak.total() > 0);
        self.first = first;
    }
    fn step(&mut self, figures: &Figures) {
        assert!(self.die_after != Some(figures.step), "the machine fails");
        self.steps.push(Figures { tokens_per_s: 0.0, ..figures.clone() });
    }
    fn warn(&mut self, text: String) {
        self.warnings.push(text);
    }
    fn stop(&mut self) -> bool {
        self.steps.last().map(|f| f.step) == self.stop_after
    }
}

fn run(o: &Options, threads: usize) -> (Result<f64, ExecError>, Log) {
    let mut log = Log::default();
    let outcome = train(&mut testing::session(threads), &text(), o, &mut log);
    (outcome, log)
}

fn checkpoints(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let file = |p: PathBuf| (p.file_name().expect("a file").to_string_lossy().into_owned(), fs::read(p).expect("it is there"));
    checkpoint::list(folder).into_iter().map(file).collect()
}

/// The metrics without what depends on the clock.
fn metrics(folder: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(folder.join("metrics.jsonl")).expect("it is there");
    let lines = text.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).expect("a line of JSON"));
    lines
        .map(|mut v| {
            v.as_object_mut().expect("an object").remove("tokens_per_s");
            v
        })
        .collect()
}

fn uninterrupted(name: &str) -> (Folder, Log, f64) {
    let folder = folder(name);
    let (loss, log) = run(&options(&folder), 1);
    (folder, log, loss.expect("it trains"))
}

#[test]
fn training_learns_and_reports() {
    let (folder, log, val) = uninterrupted("train-learns");
    assert_eq!((log.first, log.steps.len()), (0, 24));
    assert!(log.steps[0].loss > 3.2 && log.steps[23].loss < 2.6, "{} to {}", log.steps[0].loss, log.steps[23].loss);
    let evaluated: Vec<u64> = log.steps.iter().filter(|f| f.val_loss.is_some()).map(|f| f.step).collect();
    assert_eq!((evaluated, log.steps[23].val_loss), (vec![6, 12, 18, 24], Some(val)));
    assert!(log.steps.iter().all(|f| f.grad_norm > 0.0 && f.max_violation.is_some_and(|x| x > 0.0) && f.peak_bytes > 0));
    assert!((log.steps[1].lr - 0.025).abs() < 1e-12 && (log.steps[23].lr - 0.005).abs() < 1e-12);
    let lines = metrics(&folder);
    assert_eq!((lines.len(), lines[23]["step"].as_u64(), lines[23]["val_loss"].as_f64()), (24, Some(24), Some(val)));
    let names: Vec<String> = checkpoints(&folder).into_iter().map(|c| c.0).collect();
    assert_eq!(names, ["step-00000024.safetensors", "step-00000020.safetensors"]);
}

#[test]
fn neither_threads_nor_poison_change_a_bit() {
    let (first, log, val) = uninterrupted("train-threads-1");
    let other = folder("train-threads-2");
    let mut s = testing::session(3);
    s.poison = true;
    let mut again = Log::default();
    let loss = train(&mut s, &text(), &options(&other), &mut again).expect("it trains");
    assert_eq!((again.steps, loss), (log.steps, val));
    assert!(checkpoints(&first) == checkpoints(&other));
}

/// Micro-batches change the order of sums and nothing else.
#[test]
fn micro_batches_are_parts_of_one_step() {
    let results: Vec<Figures> = [1, 2, 8]
        .map(|micro_batches| {
            let folder = folder(&format!("train-micro-{micro_batches}"));
            let (_, log) = run(&Options { micro_batches, steps: 1, ..options(&folder) }, 1);
            log.steps[0].clone()
        })
        .to_vec();
    for f in &results[1..] {
        assert!((f.loss - results[0].loss).abs() < 1e-5 && (f.grad_norm - results[0].grad_norm).abs() < 1e-5);
        assert_eq!(f.max_violation, results[0].max_violation);
    }
}

#[test]
fn a_run_that_died_goes_on_bit_equal() {
    let (whole, log, val) = uninterrupted("train-whole");
    let folder = folder("train-died");
    let mut first = Log { die_after: Some(13), ..Log::default() };
    let died = catch_unwind(AssertUnwindSafe(|| train(&mut testing::session(1), &text(), &options(&folder), &mut first)));
    assert!(died.is_err() && first.steps.len() == 12);
    assert_eq!(metrics(&folder).len(), 13);
    let (loss, second) = run(&Options { resume: true, ..options(&folder) }, 2);
    assert_eq!((loss.expect("it trains"), second.first, second.warnings.len()), (val, 10, 0));
    assert_eq!(second.steps, log.steps[10..]);
    assert_eq!(metrics(&folder), metrics(&whole));
    assert!(checkpoints(&folder) == checkpoints(&whole));
}

#[test]
fn a_run_that_was_stopped_goes_on_bit_equal() {
    let (whole, log, val) = uninterrupted("train-unstopped");
    let folder = folder("train-stopped");
    let mut first = Log { stop_after: Some(7), ..Log::default() };
    let stopped = train(&mut testing::session(1), &text(), &options(&folder), &mut first).expect("it stops");
    assert_eq!(Some(stopped), log.steps[5].val_loss);
    assert_eq!(checkpoints(&folder)[0].0, "step-00000007.safetensors");
    let (loss, second) = run(&Options { resume: true, ..options(&folder) }, 1);
    assert_eq!((loss.expect("it trains"), second.first), (val, 7));
    assert!(checkpoints(&folder) == checkpoints(&whole));
    // What is done already is only evaluated.
    let (loss, third) = run(&Options { resume: true, ..options(&folder) }, 1);
    assert_eq!((loss.expect("it evaluates"), third.first, third.steps.len()), (val, 24, 0));
}

#[test]
fn a_damaged_checkpoint_costs_only_its_steps() {
    let (whole, log, val) = uninterrupted("train-undamaged");
    let path = checkpoint::list(&whole)[0].clone();
    let good = checkpoints(&whole);
    fs::write(&path, &good[0].1[..good[0].1.len() - 100]).expect("the test damages it");
    let (loss, second) = run(&Options { resume: true, ..options(&whole) }, 1);
    assert_eq!((loss.expect("it trains"), second.first, second.warnings.len()), (val, 20, 1));
    assert_eq!(second.steps, log.steps[20..]);
    assert!(checkpoints(&whole) == good);
}

#[test]
fn a_new_run_does_not_touch_an_old_one() {
    let (old, ..) = uninterrupted("train-old");
    let before = checkpoints(&old);
    let (outcome, _) = run(&options(&old), 1);
    let error = outcome.expect_err("the folder is taken").to_string();
    assert!(error.ends_with("train-old holds a run up to step 24"), "{error}");
    let (outcome, _) = run(&Options { resume: true, seed: 12, ..options(&old) }, 1);
    assert!(matches!(outcome, Err(ExecError::Weights { .. })));
    assert!(checkpoints(&old) == before);
    let empty = folder("train-empty");
    let (outcome, _) = run(&Options { resume: true, ..options(&empty) }, 1);
    assert!(matches!(outcome, Err(ExecError::NoCheckpoint { .. })));
}

#[test]
fn a_longer_schedule_is_noted() {
    let (old, ..) = uninterrupted("train-longer");
    let (outcome, log) = run(&Options { resume: true, steps: 26, ..options(&old) }, 1);
    assert!(outcome.is_ok());
    assert_eq!((log.first, log.steps.len(), log.warnings.len()), (24, 2, 1));
}

#[test]
fn nan_stops_before_the_update_and_is_traced() {
    let folder = folder("train-nan");
    let o = Options { steps: 60, save_every: 4, lr: 0.3, ..options(&folder) };
    let mut s = Session::new(testing::manifest(true), testing::code(), Some(1)).expect("its kernels are there");
    // The state `limit` starts at 1e9, where nothing breaks; the test's first checkpoint lowers it.
    let mut first = Log { stop_after: Some(4), ..Log::default() };
    train(&mut s, &text(), &o, &mut first).expect("it stops");
    let (mut at, limit) = (Vec::new(), 2.5);
    let slot = s.store.slot(Role::State, "limit", DType::F32, &[1]).expect("it is there");
    at.extend(HostTensor::from_f64(DType::F32, &[1], [limit]).bytes);
    slot.memory.bytes_mut().copy_from_slice(&at);
    let identity = identity(&s.manifest, &text(), &o);
    let manifest = s.manifest.clone();
    checkpoint::save(&mut s.store, &manifest, &folder, 4, &identity).expect("it saves");
    let mut log = Log::default();
    let outcome = train(&mut s, &text(), &Options { resume: true, ..o.clone() }, &mut log);
    let Err(ExecError::NotFinite { what, value, step, first, checkpoint }) = outcome else { panic!("a logit passes 2.5") };
    assert!(what == "the loss" && value.is_nan() && step == log.steps.last().map_or(5, |f| f.step + 1) && step > 5, "{step}");
    assert!(first.starts_with("break_above (bigram.lode:4), step 4 of ") && first.ends_with(" of grad, made NaN"), "{first}");
    let newest = checkpoint::list(&folder)[0].clone();
    assert_eq!(checkpoint, newest.display().to_string());
    assert_eq!(newest.file_name().expect("a file").to_string_lossy(), format!("step-{:08}.safetensors", (step - 1) / 4 * 4));
    // The parameters are those before the step: what the run would have saved then.
    let table = crate::tensor::read(DType::F32, s.store.get(Role::Param, "table").expect("it is there").memory.bytes());
    assert!(table.iter().all(|x| x.is_finite()));
}

#[test]
fn a_broken_parameter_is_named() {
    let folder = folder("train-broken");
    let mut s = testing::session(1);
    let o = options(&folder);
    let mut first = Log { stop_after: Some(3), ..Log::default() };
    train(&mut s, &text(), &o, &mut first).expect("it stops");
    let slot = s.store.slot(Role::Param, "layers.*.bias", DType::F32, &[2, 32]).expect("it is there");
    slot.memory.bytes_mut()[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let identity = identity(&s.manifest, &text(), &o);
    let manifest = s.manifest.clone();
    checkpoint::save(&mut s.store, &manifest, &folder, 3, &identity).expect("it saves");
    let (outcome, _) = run(&Options { resume: true, ..o }, 1);
    let Err(ExecError::NotFinite { step, first, .. }) = outcome else { panic!("a parameter is NaN") };
    assert_eq!((step, first.as_str()), (4, "param layers.*.bias held NaN before the first step"));
}

#[test]
fn options_data_and_memory_are_checked_first() {
    let folder = folder("train-options");
    let o = options(&folder);
    let why = |o: Options| run(&o, 1).0.expect_err("it is wrong").to_string();
    assert_eq!(
        why(Options { micro_batches: 3, ..o.clone() }),
        "input 'micro-batches': 8 sequences cannot be split in 3 equal parts"
    );
    assert_eq!(
        why(Options { micro_batches: 0, ..o.clone() }),
        "input 'micro-batches': 8 sequences cannot be split in 0 equal parts"
    );
    assert_eq!(why(Options { seq: 0, ..o.clone() }), "input 'batch': 8 sequences of 0 tokens are none");
    assert_eq!(why(Options { lr: f64::NAN, ..o.clone() }), "input 'lr': it is NaN");
    assert_eq!(why(Options { memory_limit: Some(1 << 10), ..o.clone() }), "the plan needs 1 MiB, 0 MiB are available");
    let beyond = Text::new(vec![32; 3000], 16, "far").expect("it is long enough");
    let error = train(&mut testing::session(1), &beyond, &o, &mut Log::default()).expect_err("there are 32 tokens");
    assert_eq!(error.to_string(), "far: token 32 at 0, the model has 32");
    assert!(checkpoint::list(&folder).is_empty() && !folder.join("metrics.jsonl").exists());
}

#[test]
fn the_learning_rate_rises_and_falls() {
    let o = Options { steps: 100, warmup: 10, lr: 1.0, floor: 0.1, ..options(Path::new("")) };
    let at = [1, 5, 10, 55, 100].map(|t| (learning_rate(&o, t) * 1e6).round() / 1e6);
    assert_eq!(at, [0.1, 0.5, 1.0, 0.55, 0.1]);
    let o = Options { warmup: 0, steps: 1, ..o };
    assert_eq!(learning_rate(&o, 1), 0.1);
}
