use super::*;
use crate::testing::{folder, manifest};
use std::os::unix::fs::symlink;

fn identity(run: &str, schedule: &str) -> Identity {
    Identity { run: run.into(), schedule: schedule.into() }
}

/// A store with parameters of a seed and moments of ones.
fn store(seed: u64) -> Store {
    let mut s = Store::default();
    s.initialise(&manifest(false), seed).expect("there is memory");
    for k in 0..2 {
        for (name, shape) in [("table", vec![32, 32]), ("layers.*.bias", vec![2, 32])] {
            let slot = s.slot(Role::Moment, &format!("{name}#{k}"), DType::F32, &shape).expect("there is memory");
            slot.memory.bytes_mut().fill(seed as u8);
        }
    }
    s
}

fn all(s: &Store) -> Vec<((Role, String), Vec<u8>)> {
    s.iter().map(|((r, n), slot)| ((r, n.to_string()), slot.memory.bytes().to_vec())).collect()
}

fn resumed(s: &mut Store, folder: &Path, id: &Identity) -> (Result<u64, ExecError>, Vec<String>) {
    let mut warnings = Vec::new();
    let step = resume(s, &manifest(false), folder, id, &mut |w| warnings.push(w));
    (step, warnings)
}

#[test]
fn a_checkpoint_reads_back_and_is_the_same_each_time() {
    let (folder, m, id) = (folder("checkpoint-back"), manifest(false), identity("run", "plan"));
    let mut a = store(1);
    let path = save(&mut a, &m, &folder, 7, &id).expect("it saves");
    let first = fs::read(&path).expect("it is there");
    assert_eq!(save(&mut a, &m, &folder, 7, &id).expect("it saves"), path);
    assert_eq!(fs::read(&path).expect("it is there"), first);
    let file = SafeTensors::deserialize(&first).expect("others read it too");
    // A table, two layers' biases, a state; two moments of each of the three parameters.
    assert_eq!(file.len(), 4 + 6);
    assert_eq!(file.tensor("moment:layers.1.bias#0").expect("a layer's").shape(), [32]);
    assert_eq!(file.tensor("layers.1.bias").expect("a layer").shape(), [32]);
    let mut b = store(2);
    let (step, warnings) = resumed(&mut b, &folder, &id);
    assert_eq!((step.expect("it reads"), warnings), (7, vec![]));
    assert_eq!(all(&b), all(&a));
    // A checkpoint is a weight file too.
    let mut c = store(3);
    c.load_weights(&m, &path, &[]).expect("it fits");
    assert_eq!(c.to_file(&m), a.to_file(&m));
}

#[test]
fn damaged_checkpoints_are_passed_over() {
    let (folder, m, id) = (folder("checkpoint-damaged"), manifest(false), identity("run", "plan"));
    save(&mut store(1), &m, &folder, 10, &id).expect("it saves");
    let newest = save(&mut store(2), &m, &folder, 20, &id).expect("it saves");
    let good = fs::read(&newest).expect("it is there");
    let mut flipped = good.clone();
    flipped[good.len() - 9] ^= 4;
    for bad in [&good[..good.len() / 2], &good[..100], &good[..3], b"", &flipped] {
        fs::write(&newest, bad).expect("the test damages it");
        let mut s = store(3);
        let (step, warnings) = resumed(&mut s, &folder, &id);
        assert_eq!(step.expect("the one before is whole"), 10);
        assert!(warnings.len() == 1 && warnings[0].contains("step-00000020.safetensors: "), "{warnings:?}");
        assert!(warnings[0].ends_with("; trying the checkpoint before it"), "{warnings:?}");
        assert_eq!(all(&s), all(&store(1)));
    }
    fs::remove_file(folder.join("step-00000010.safetensors")).expect("it is there");
    let (step, warnings) = resumed(&mut store(3), &folder, &id);
    let Err(ExecError::NoCheckpoint { why, .. }) = step else { panic!("none is whole") };
    assert!(why.contains("its checksum is wrong") && warnings.len() == 1, "{why}");
    let (step, _) = resumed(&mut store(3), &folder.join("none"), &id);
    assert_eq!(
        step.expect_err("there is none").to_string(),
        format!("no checkpoint in {} can be read", folder.join("none").display())
    );
}

#[test]
fn another_run_is_refused_and_another_schedule_noted() {
    let (folder, m) = (folder("checkpoint-other"), manifest(false));
    save(&mut store(1), &m, &folder, 10, &identity("run", "plan")).expect("it saves");
    let (step, _) = resumed(&mut store(3), &folder, &identity("another", "plan"));
    assert!(matches!(step, Err(ExecError::Weights { .. })));
    let (step, warnings) = resumed(&mut store(3), &folder, &identity("run", "longer"));
    assert_eq!((step.expect("it fits"), warnings.len()), (10, 1));
    // Without moments it is a weight file.
    let mut bare = Store::default();
    bare.initialise(&m, 1).expect("there is memory");
    save(&mut bare, &m, &folder, 11, &identity("run", "plan")).expect("it saves");
    let mut s = store(3);
    let (step, _) = resumed(&mut s, &folder, &identity("run", "plan"));
    assert!(step.expect_err("moments are missing").to_string().contains("the moment table#0 is missing"));
    assert_eq!(all(&s), all(&store(3)), "nothing is changed by a refusal");
}

#[test]
fn a_full_disk_leaves_the_old_checkpoint() {
    if !Path::new("/dev/full").exists() {
        return println!("skipped: no /dev/full");
    }
    let (folder, m, id) = (folder("checkpoint-full"), manifest(false), identity("run", "plan"));
    let path = save(&mut store(1), &m, &folder, 5, &id).expect("it saves");
    let old = fs::read(&path).expect("it is there");
    symlink("/dev/full", path.with_extension("new")).expect("the test's disk is full");
    let error = save(&mut store(2), &m, &folder, 5, &id).expect_err("the disk is full");
    assert!(error.to_string().contains("No space left"), "{error}");
    assert_eq!(fs::read(&path).expect("it is there"), old);
    assert!(!path.with_extension("new").exists());
    assert_eq!(save(&mut store(2), &m, &folder, 5, &id).expect("there is space again"), path);
}

#[test]
fn only_the_newest_are_kept() {
    let (folder, m, id) = (folder("checkpoint-prune"), manifest(false), identity("run", "plan"));
    for step in [5, 10, 15, 100] {
        save(&mut store(1), &m, &folder, step, &id).expect("it saves");
    }
    fs::write(folder.join("step-00000120.new"), "half").expect("a run was killed");
    fs::write(folder.join("notes.txt"), "mine").expect("a file of the user's");
    prune(&folder, 2);
    let mut left: Vec<String> = fs::read_dir(&*folder)
        .expect("a folder")
        .map(|e| e.expect("a file").file_name().to_string_lossy().into_owned())
        .collect();
    left.sort();
    assert_eq!(left, ["notes.txt", "step-00000015.safetensors", "step-00000100.safetensors"]);
}
