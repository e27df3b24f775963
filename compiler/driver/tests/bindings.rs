//! Libraries from outside: a C program and a Rust session give what `lode run` gives.

use exec::{HostTensor, Session, checkpoint, npy};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// The binary.
const LODE: &str = env!("CARGO_BIN_EXE_lode");

/// An empty folder of this name for this process.
fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("lode-bindings-{}-{name}", std::process::id()));
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).expect("the folder for temporary files is writable");
    path
}

/// A command of `lode`, in a folder.
fn lode(folder: &Path, args: &str) -> Command {
    let mut command = Command::new(LODE);
    command.current_dir(folder).args(args.split_whitespace());
    command
}

/// What a command ended with.
struct Done {
    code: Option<i32>,
    out: String,
    err: String,
}

fn done(output: Output) -> Done {
    let text = |b: Vec<u8>| String::from_utf8(b).expect("output is UTF-8");
    Done { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// Runs `lode` in a folder.
fn run(folder: &Path, args: &str) -> Done {
    done(lode(folder, args).output().expect("the binary starts"))
}

/// Runs `lode`, which has to be content; what it printed.
fn fine(folder: &Path, args: &str) -> String {
    let done = run(folder, args);
    assert_eq!(done.code, Some(0), "lode {args}\n{}{}", done.out, done.err);
    done.out
}

fn write(folder: &Path, name: &str, content: impl AsRef<[u8]>) {
    fs::write(folder.join(name), content).expect("it writes");
}

/// A .npy file of i32.
fn npy_i32(shape: &[usize], data: &[i32]) -> Vec<u8> {
    let shape: String = shape.iter().map(|n| format!("{n}, ")).collect();
    let head = format!("{{'descr': '<i4', 'fortran_order': False, 'shape': ({shape}), }}\n");
    let data: Vec<u8> = data.iter().flat_map(|x| x.to_le_bytes()).collect();
    [b"\x93NUMPY\x01\x00", &(head.len() as u16).to_le_bytes()[..], head.as_bytes(), &data].concat()
}

/// Tokens to logits, with stacked parameters, a state and a training item.
const TINY: &str = "use std.{cross_entropy, adamw}
dims B, T
config { v = 6, d = 4 }
model tiny(tokens: i32[B, T]) -> [B, T, v] {
  let x = take(param table: [v, d] = normal(0.5), tokens)
  repeat 2 { x = x + tanh(x * param scale: [d] = normal(1.0)) }
  x @ table^T
}
train(tokens: i32[B, T], targets: i32[B, T]) {
  minimize cross_entropy(tiny(tokens), targets)
  with adamw(lr: 1e-2)
}
";

/// The run-time's shared object, beside this test's own dependencies.
fn runtime() -> PathBuf {
    let exe = std::env::current_exe().expect("a test has a path");
    let folder = exe.parent().expect("a file is in a folder");
    let found = [folder.to_path_buf(), folder.join("..")].into_iter().find(|f| f.join("liblode_runtime.so").exists());
    found.unwrap_or_else(|| panic!("no liblode_runtime.so in {}", folder.display()))
}

/// A folder with a built model, weights whose second scale is ones, others that differ in it alone, and tokens.
fn built(name: &str) -> PathBuf {
    let folder = folder(name);
    write(&folder, "tiny.lode", TINY);
    let paths = fine(&folder, "build tiny.lode --lib c -o out");
    assert_eq!(paths, "out/tiny.lodelib\nout/libtiny.so\nout/tiny.h\n");
    let number = |i: usize| (i as f64 * 0.7).sin();
    let tensor = |shape: &[i64], data: Vec<f64>| HostTensor::from_f64(base::DType::F32, shape, data);
    let table = tensor(&[6, 4], (0..24).map(number).collect());
    let zero = tensor(&[4], (50..54).map(number).collect());
    for (file, second) in [("w.safetensors", 1.0), ("other.safetensors", 0.25)] {
        let tensors = [("table", &table), ("layers.0.scale", &zero), ("layers.1.scale", &tensor(&[4], vec![second; 4]))];
        let tensors = tensors.map(|(n, t)| (n.to_string(), t.clone()));
        checkpoint::write(&folder.join(file), &tensors, &[]).expect("it writes");
    }
    write(&folder, "t.npy", npy_i32(&[2, 3], &[1, 2, 3, 4, 5, 0]));
    folder
}

fn logits(folder: &Path) -> Vec<f64> {
    fine(folder, "run tiny.lode --weights w.safetensors -i tokens=@t.npy --out given");
    npy::read(&folder.join("given/output.npy")).expect("it was written").to_f64()
}

#[test]
fn a_c_program_gets_what_run_gives() {
    let folder = built("c");
    let want = logits(&folder);
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let runtime = runtime();
    let mut cc = Command::new("cc");
    cc.args(["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"]).arg(here.join("tests/c/forward.c"));
    cc.arg("-I").arg(folder.join("out")).arg("-I").arg(here.join("../../runtime/capi/include"));
    cc.arg("-L").arg(&runtime).args(["-llode_runtime", "-o"]).arg(folder.join("forward"));
    let compiled = done(cc.output().expect("there is a C compiler"));
    assert_eq!(compiled.code, Some(0), "{}", compiled.err);
    // The program sets the second scale itself.
    let mut program = Command::new(folder.join("forward"));
    program.env("LD_LIBRARY_PATH", &runtime).arg(folder.join("out/tiny.lodelib")).arg(folder.join("other.safetensors"));
    let ran = done(program.output().expect("it starts"));
    assert_eq!(ran.code, Some(0), "{}{}", ran.out, ran.err);
    let lines: Vec<&str> = ran.out.lines().collect();
    let (head, rows) = lines.split_at(lines.len() - 2);
    assert_eq!(
        head,
        [
            "entry forward",
            "entry loss",
            "entry norm",
            "entry update",
            "entry grad",
            "param table 1 [6, 4]",
            "param layers.*.scale 1 [2, 4]",
            "port tokens 6 0 [B, T]",
            "port output 1 1 [B, T, 6]",
            "status 704 E0704: input 'layers.1.scale': f32[3] is not f32[4]",
            "status 701 E0701: there is no entry 'backward'",
            "  help: the library has forward, loss, norm, update, grad",
            "status 704 E0704: input 'output': the last run gave none",
        ]
    );
    let numbers = |line: &str| -> Vec<f64> {
        let words = line.strip_prefix("logits ").expect("a row of logits").split(' ');
        words.map(|w| f64::from(w.parse::<f32>().expect("a number"))).collect()
    };
    assert_eq!(numbers(rows[1]), want);
    assert_eq!(numbers(rows[0]), want[..18]);
}

#[test]
fn a_session_of_rust_gets_what_run_gives() {
    let folder = built("rust");
    let want = logits(&folder);
    // SAFETY: `built` made the library.
    let mut session = unsafe { Session::open(&folder.join("out/tiny.lodelib"), Some(1)) }.expect("it opens");
    let manifest = session.manifest.clone();
    session.store.load_weights(&manifest, &folder.join("w.safetensors"), &[]).expect("it fits");
    let tokens = npy::read(&folder.join("t.npy")).expect("it reads");
    let dims = session.bind("forward", &[("tokens", &tokens.shape)]).expect("it fits");
    let outputs = session.run("forward", &dims, &[("tokens", &tokens)]).expect("it runs");
    assert_eq!(outputs[0].1.to_f64(), want);
}

#[test]
fn commands_take_a_library_in_place_of_a_model() {
    let folder = built("library");
    let want = logits(&folder);
    // The model is not needed any more, nor is the shared object.
    fs::remove_file(folder.join("tiny.lode")).expect("it is there");
    fs::remove_file(folder.join("out/libtiny.so")).expect("it is there");
    fine(&folder, "run out/tiny.lodelib --weights w.safetensors -i tokens=@t.npy --out again");
    assert_eq!(npy::read(&folder.join("again/output.npy")).expect("it was written").to_f64(), want);
    write(&folder, "data.npy", npy_i32(&[600], &(0..600).map(|i| i * i % 6).collect::<Vec<_>>()));
    let said = fine(&folder, "train out/tiny.lodelib --data data.npy --steps 3 --batch 2 --seq 8 --out trained --sample 0");
    assert!(said.starts_with("validation loss "), "{said}");
    let said = fine(&folder, "generate out/tiny.lodelib --weights trained --tokens 1,2,3 -n 4");
    assert_eq!(said.trim().split(',').count(), 3 + 4, "{said}");
    let late = run(&folder, "run out/tiny.lodelib --set d=8 -i tokens=@t.npy");
    assert_eq!((late.code, late.err.contains("--set and --config come too late")), (Some(2), true), "{}", late.err);
    let interpreted = run(&folder, "run out/tiny.lodelib --backend ref -i tokens=@t.npy");
    assert_eq!(interpreted.code, Some(2));
}

#[test]
fn files_of_two_builds_are_not_mixed() {
    let folder = built("mixed");
    let path = folder.join("out/tiny.lodelib");
    // SAFETY: `lode build` made all files.
    let open = || unsafe { Session::open(&path, Some(1)) }.map(|_| ()).map_err(|e| e.to_string());
    assert_eq!(open(), Ok(()));
    let object = folder.join("out/libtiny.so");
    fs::rename(&object, folder.join("kept.so")).expect("it is there");
    assert!(open().expect_err("it is away").ends_with("libtiny.so cannot be used: it is not there"));
    fs::write(&object, "no object").expect("it writes");
    assert!(open().expect_err("it is no object").contains("libtiny.so cannot be used: "));
    write(&folder, "tiny.lode", TINY.replace("tanh", "sigmoid"));
    fine(&folder, "build tiny.lode --lib none -o out");
    // A loader may remember what it has seen under a name.
    fs::remove_file(&object).expect("it is there");
    fs::rename(folder.join("kept.so"), &object).expect("it is there");
    let error = open().expect_err("it is of the build before");
    assert!(error.contains("it is not of the same build as "), "{error}");
}

#[test]
fn without_a_c_compiler_there_is_still_a_library() {
    let folder = folder("no-cc");
    write(&folder, "tiny.lode", TINY);
    let build = |args: &str| done(lode(&folder, args).env("CC", "no-such-compiler").output().expect("the binary starts"));
    let quiet = build("build tiny.lode -o out");
    assert_eq!((quiet.code, quiet.out.as_str()), (Some(0), "out/tiny.lodelib\n"), "{}", quiet.err);
    assert!(quiet.err.starts_with("note: the C compiler no-such-compiler cannot be started"), "{}", quiet.err);
    let asked = build("build tiny.lode -o out --lib c");
    assert_eq!(asked.code, Some(1));
    assert!(asked.err.starts_with("error: the C compiler no-such-compiler"), "{}", asked.err);
}
