//! Models on the GPU at hand against the host; `skipped: no device` where there is none. The same without the compiler, for a machine that has a
//! GPU and nothing else: `tests/benches/gpu_models.sh`.

use crate::gpu::{MODELS, built};
use driver::commands::common;
use exec::{
    Session,
    agree::{self, Problem},
};
use std::path::PathBuf;

const PROBLEM: Problem = Problem { batch: 2, seq: 45, steps: 200 };
const SHORT: Problem = Problem { steps: 8, ..PROBLEM };
/// As near as the host is to the interpreter, twice: `models.rs`.
const NEAR: f64 = 2.0 * 2e-4;

/// The model's session on the first GPU.
fn on_gpu(model: usize) -> Option<Session> {
    if let Err(e) = device::gpus() {
        println!("skipped: {e}");
        return None;
    }
    let (name, set) = MODELS[model];
    Some(Session::on_gpu(built(name, set, true, false), 0, None).unwrap_or_else(|e| panic!("{name}: {e}")))
}

/// The model's session on the host; `plain` is by its definitions.
fn on_host(model: usize, plain: bool) -> Session {
    let (name, set) = MODELS[model];
    common::session(built(name, set, false, plain), None).expect("it links")
}

/// A folder that does not exist yet.
fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("lode-device-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    path
}

fn agrees(model: usize) {
    let Some(mut gpu) = on_gpu(model) else { return };
    let name = MODELS[model].0;
    let once = |s: &mut Session| agree::once(s, &PROBLEM).unwrap_or_else(|e| panic!("{name}: {e}"));
    let first = once(&mut gpu);
    let (worst, apart) = agree::farthest(&once(&mut on_host(model, false)), &first);
    assert!(apart <= NEAR, "{name}: {worst} is {apart:.2e} apart");
    // As a recorded run, and in an arena of NaN.
    gpu.poison = true;
    assert!((0..3).all(|_| once(&mut gpu) == first), "{name}: two runs differ");
}

fn trains(model: usize) {
    let Some(mut gpu) = on_gpu(model) else { return };
    let (name, out) = (MODELS[model].0, folder(MODELS[model].0));
    let losses = |s: &mut Session, folder: &str| {
        let t = agree::losses(s, &PROBLEM, &out.join(folder)).unwrap_or_else(|e| panic!("{name}: {e}"));
        t.to_f64()
    };
    let got = losses(&mut gpu, "a");
    assert_eq!(got, losses(&mut gpu, "b"), "{name}: two runs differ");
    let host = [false, true].map(|plain| losses(&mut on_host(model, plain), if plain { "plain" } else { "host" }));
    let (step, share) = agree::drift(&got, [&host[0], &host[1]]);
    assert!(share <= 1.0, "{name}: the loss of step {step} is {share:.2} times its bound from the host's");
    assert!(agree::resumes(&mut gpu, &SHORT, &out).expect("it trains"), "{name}: a run that goes on ends elsewhere");
    std::fs::remove_dir_all(&out).expect("the folder is there");
}

#[test]
fn llama_agrees_on_the_gpu() {
    agrees(0);
}

#[test]
fn strata_agrees_on_the_gpu() {
    agrees(1);
}

#[test]
fn qwen3_moe_agrees_on_the_gpu() {
    agrees(2);
}

#[test]
fn deepseek_v3_agrees_on_the_gpu() {
    agrees(3);
}

#[test]
fn llama_trains_on_the_gpu() {
    trains(0);
}

#[test]
fn strata_trains_on_the_gpu() {
    trains(1);
}

#[test]
fn qwen3_moe_trains_on_the_gpu() {
    trains(2);
}

#[test]
fn deepseek_v3_trains_on_the_gpu() {
    trains(3);
}

/// A library for a GPU reads back and says what is missing where there is none.
#[test]
fn a_library_for_a_gpu_needs_one() {
    let (name, set) = MODELS[0];
    let library = built(name, set, true, false);
    let again = library::Library::from_bytes(&library.to_bytes(), "x").expect("it reads");
    assert_eq!(again, library);
    assert!(library.code[0].starts_with(b"//") || library.code[0].starts_with(b".version"), "PTX");
    assert!(library.manifest.kernels.iter().all(|k| k.gpu.is_some()));
    match (device::gpus(), Session::on_gpu(library, 0, None)) {
        (Ok(_), made) => assert!(made.is_ok()),
        (Err(why), Err(e)) => assert_eq!(e.to_string(), why.to_string()),
        (Err(_), Ok(_)) => panic!("there is no device"),
    }
    let e = Session::on_gpu(built(name, set, false, false), 0, None).err().expect("it is for the host");
    assert_eq!(e.to_string(), "llama was built for host, not for sm_90a");
}
