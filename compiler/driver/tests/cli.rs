//! The `lode` command as a user meets it: one process a step, exit codes and streams, interrupted and broken runs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

const SMALL: &[&str] = &[
    "--set",
    "d=32",
    "--set",
    "layers=2",
    "--set",
    "heads=2",
    "--set",
    "kv=1",
    "--set",
    "dh=16",
    "--set",
    "experts=4",
    "--set",
    "ff=16",
];

fn model(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models").join(name).join("model.lode").display().to_string()
}

/// A folder that is gone at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("lode-cli-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("a folder can be made");
        Folder(path)
    }
    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
    fn write(&self, name: &str, bytes: &[u8]) -> String {
        fs::write(self.0.join(name), bytes).expect("it can be written");
        self.path(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn lode(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lode"));
    command.args(args).stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs to the end; exit code, standard output, standard error.
fn run(args: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = lode(args).output().expect("lode starts");
    (status.code().unwrap_or(-1), text(&stdout), text(&stderr))
}

#[track_caller]
fn fails(args: &[&str], code: i32, parts: &[&str]) {
    let (got, out, err) = run(args);
    assert_eq!(got, code, "{args:?}\n{out}\n{err}");
    for part in parts {
        assert!(err.contains(part), "{args:?}: no '{part}' in\n{err}");
    }
}

fn words() -> Vec<u8> {
    b"the quick brown fox jumps over the lazy dog and runs away. ".repeat(200)
}

/// Arguments of a short training run.
fn training<'a>(model: &'a str, data: &'a str, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let fixed = ["train", model, "--data", data, "--out", out, "--batch", "2", "--seq", "32", "--sample", "0", "--threads", "2"];
    fixed.into_iter().chain(SMALL.iter().copied()).chain(more.iter().copied()).collect()
}

fn parameters(out: &str) -> Vec<u8> {
    fs::read(Path::new(out).join("step-00000012.safetensors")).unwrap_or_else(|_| {
        let names: Vec<_> = fs::read_dir(out).expect("the folder is there").flatten().map(|e| e.file_name()).collect();
        panic!("no last checkpoint among {names:?}")
    })
}

#[test]
fn a_killed_run_resumes_to_the_same_bits() {
    let (f, m) = (Folder::new("kill"), model("strata"));
    let data = f.write("text", &words());
    let (whole, broken) = (f.path("whole"), f.path("broken"));
    let steps = ["--steps", "12", "--save-every", "3"];
    assert_eq!(run(&training(&m, &data, &whole, &steps)).0, 0);

    let mut child =
        lode(&training(&m, &data, &broken, &steps)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
    let end = Instant::now() + Duration::from_secs(120);
    // Killed as soon as there is a checkpoint, wherever it is then.
    while !Path::new(&broken).join("step-00000003.safetensors").exists() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().expect("it can be killed");
    child.wait().expect("it ends");
    let resumed: Vec<&str> = training(&m, &data, &broken, &steps).into_iter().chain(["--resume"]).collect();
    let (code, _, err) = run(&resumed);
    assert_eq!(code, 0, "{err}");
    assert!(parameters(&whole) == parameters(&broken), "the resumed run differs from the uninterrupted one");
    // Another run does not write over it.
    fails(&training(&m, &data, &whole, &steps), 1, &["E0710", "--resume"]);
}

#[test]
fn a_full_disk_keeps_the_last_good_checkpoint() {
    let (f, m) = (Folder::new("disk"), model("strata"));
    let data = f.write("text", &words());
    let out = f.path("run");
    assert_eq!(run(&training(&m, &data, &out, &["--steps", "3", "--save-every", "3"])).0, 0);
    let saved = fs::read(Path::new(&out).join("step-00000003.safetensors")).expect("it was saved");
    // No file may be longer than 16 KiB: to the program, writing fails as on a full disk.
    let args = training(&m, &data, &out, &["--steps", "6", "--save-every", "3", "--resume"]);
    let quoted = args.iter().map(|a| format!("'{a}'")).collect::<Vec<_>>().join(" ");
    let script = format!("trap '' XFSZ; ulimit -f 32; exec '{}' {quoted}", env!("CARGO_BIN_EXE_lode"));
    let limited = Command::new("sh").args(["-c", &script]).output().expect("sh starts");
    assert_eq!(limited.status.code(), Some(1), "{}", text(&limited.stderr));
    assert!(text(&limited.stderr).contains("E0705"), "{}", text(&limited.stderr));
    assert_eq!(fs::read(Path::new(&out).join("step-00000003.safetensors")).expect("it is still there"), saved);
    assert_eq!(run(&args).0, 0, "it goes on once there is space");
}

#[test]
fn bad_data_and_weights_are_told() {
    let (f, m) = (Folder::new("bad"), model("strata"));
    let out = f.path("run");
    fails(&training(&m, &f.path("nothing"), &out, &[]), 1, &["E0705", "nothing"]);
    for bytes in [&b""[..], b"too short"] {
        let short = f.write("short", bytes);
        fails(&training(&m, &short, &out, &[]), 1, &["E0707", "needed"]);
    }
    let data = f.write("text", &words());
    // A learning rate beyond all numbers: the loss is no number any more.
    let wild = f.path("wild");
    fails(&training(&m, &data, &wild, &["--steps", "6", "--lr", "1e30", "--save-every", "1"]), 1, &["E0708", "step"]);

    assert_eq!(run(&training(&m, &data, &out, &["--steps", "1"])).0, 0);
    let good = fs::read(Path::new(&out).join("step-00000001.safetensors")).expect("it was saved");
    let torn = f.write("torn.safetensors", &good[..good.len() / 2]);
    let with = |weights: &str, more: &[&str]| -> (i32, String) {
        let args: Vec<&str> = ["generate", &m, "--weights", weights, "-n", "1"].into_iter().chain(more.iter().copied()).collect();
        let (code, _, err) = run(&args);
        (code, err)
    };
    let (code, err) = with(&torn, SMALL);
    assert!(code == 1 && err.contains("torn.safetensors"), "{err}");
    // Of another config: every tensor that does not fit is listed.
    let whole = Path::new(&out).join("step-00000001.safetensors").display().to_string();
    let (code, err) = with(&whole, &[]);
    assert!(code == 1 && err.contains("E0706") && err.matches("layers.0").count() > 3, "{err}");
}

#[test]
fn bad_flags_are_told() {
    let m = model("strata");
    fails(&["check", &m, "--set", "nothing=3"], 1, &["E0207", "nothing"]);
    fails(&["check", &m, "--set", "layers"], 2, &["name=value"]);
    fails(&["check", "no-such-file.lode"], 1, &["no-such-file.lode"]);
    fails(&["build", &m, "--emit=soup"], 2, &["soup", "graph"]);
    fails(&["build", &m, "--target", "abacus"], 2, &["abacus"]);
    fails(&["build", &m, "-o", "/proc/nowhere"], 1, &["/proc/nowhere"]);
    fails(&["bench", &m, "--dims", "B"], 2, &["name=number"]);
    fails(&["explain", "E9999"], 2, &["E9999"]);
    fails(&["frobnicate"], 2, &["frobnicate"]);
}

#[test]
fn a_built_library_runs_as_its_source_does() {
    let (f, m) = (Folder::new("library"), model("strata"));
    let folder = f.path("built");
    let args: Vec<&str> = ["build", &m, "-o", &folder].into_iter().chain(SMALL.iter().copied()).collect();
    let (code, out, err) = run(&args);
    assert_eq!(code, 0, "{err}");
    let library = out.lines().next().unwrap_or_default().to_string();
    assert!(library.ends_with("strata.lodelib"), "{out}");
    let source: Vec<&str> = ["generate", &m, "-n", "20", "--prompt", "a"].into_iter().chain(SMALL.iter().copied()).collect();
    let (from_source, from_library) = (run(&source), run(&["generate", &library, "-n", "20", "--prompt", "a"]));
    assert_eq!((from_source.0, from_library.0), (0, 0), "{}", from_library.2);
    assert_eq!(from_source.1, from_library.1);
    fails(&["generate", &library, "--set", "d=3"], 2, &["too late"]);
    // Damaged, and something else.
    let mut bytes = fs::read(&library).expect("it was built");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fails(&["generate", &f.write("damaged.lodelib", &bytes)], 1, &["E0602"]);
    fails(&["generate", &f.write("other.lodelib", b"hello")], 1, &["E0601"]);
    fs::write(&library, "mine").expect("it can be written");
    fails(&args, 1, &["E0608"]);
    assert_eq!(fs::read_to_string(&library).expect("it is there"), "mine");
}

#[test]
fn every_stage_prints_and_graph_and_tile_read_back() {
    let (f, m) = (Folder::new("stages"), model("strata"));
    for stage in ["tokens", "ast", "hir", "graph", "tile", "mlir", "llvm", "library", "plan"] {
        let emit = format!("--emit={stage}");
        let args: Vec<&str> =
            ["build", &m, &emit, "--dims", "B=2,T=64", "-o", "-"].into_iter().chain(SMALL.iter().copied()).collect();
        let (code, out, err) = run(&args);
        assert_eq!(code, 0, "{stage}: {err}");
        assert!(out.lines().count() > 10, "{stage}: {out}");
        if ["graph", "tile", "plan"].contains(&stage) {
            let file = f.write(stage, out.as_bytes());
            let (code, again, err) = run(&["opt", &file]);
            assert_eq!(code, 0, "{stage}: {err}");
            let third = run(&["opt", &f.write(stage, again.as_bytes())]);
            assert_eq!((third.0, third.1 == again), (0, true), "{stage} reads back as it was");
        }
    }
    let (code, out, _) = run(&["build", &m, "--target", "sm_90a", "--emit=ptx", "-o", "-"]);
    assert!(code == 0 && out.contains(".target sm_90a"));
    assert!(out.contains("\t.loc\t") && out.contains(" \"std/rmsnorm.lode\""));
}

#[test]
fn a_reader_that_goes_away_is_no_crash() {
    let script = format!("'{}' build '{}' --emit=graph -o - | head -c 1; exit 0", env!("CARGO_BIN_EXE_lode"), model("strata"));
    let out = Command::new("sh").args(["-c", &script]).output().expect("sh starts");
    assert!(!text(&out.stderr).contains("bug of lode"), "{}", text(&out.stderr));
}

#[test]
fn shipped_sources_are_formatted() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut files = Vec::new();
    for folder in ["compiler/hir/std", "models/strata", "models/llama", "models/qwen3_moe", "models/deepseek_v3"] {
        let entries = fs::read_dir(root.join(folder)).expect("the folder is there").flatten().map(|e| e.path());
        files.extend(entries.filter(|p| p.extension().is_some_and(|e| e == "lode")).map(|p| p.display().to_string()));
    }
    files.sort();
    let args: Vec<&str> = ["fmt", "--check"].into_iter().chain(files.iter().map(String::as_str)).collect();
    let (code, out, err) = run(&args);
    assert_eq!(code, 0, "{out}{err}");
}

#[test]
fn schedules_are_planned_drawn_and_read_back() {
    let f = Folder::new("schedule");
    let (code, order, err) = run(&["schedule", "--policy", "dualpipe", "--ranks", "4", "--micro", "10"]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(
        order.starts_with("schedule dualpipe micro 5 placement 0 1 2 3/3 2 1 0\n0F0,0F1,0F2,d1:3F0,d1:3I0,d1:3W0,"),
        "{order}"
    );
    let (_, whole, _) = run(&["schedule", "--ranks", "4", "--micro", "10", "--whole"]);
    // What `opt` makes of the order of computing is the whole plan, and of that itself.
    for text in [&order, &whole] {
        let file = f.write("plan.txt", text.as_bytes());
        assert_eq!(run(&["opt", &file]), (0, whole.clone(), String::new()));
    }
    let wrong = f.write("wrong.txt", whole.replacen("0W3,", "", 1).as_bytes());
    fails(&["opt", &wrong], 1, &["rule 1: rank 0", "rule 7: rank 0", "0I3: its gradients of weights stay in the queue"]);
    fails(&["opt", &f.write("no.txt", b"schedule x micro 1 placement 0\n0X0\n")], 1, &["line 2: '0X0' is no action"]);
    fails(&["opt", &wrong, "-p", "fold_constants"], 2, &["passes are of graphs"]);

    let (svg, trace) = (f.path("plan.svg"), f.path("plan.json"));
    let (code, out, _) =
        run(&["schedule", "--ranks", "8", "--micro", "20", "--simulate", "overlap", "--svg", &svg, "--trace", &trace]);
    assert!(code == 0 && out.contains("step 57.6, bubble 3 to 4.2"), "{out}");
    assert!(
        fs::read_to_string(&svg).expect("drawn").starts_with("<svg ")
            && fs::read_to_string(&trace).expect("written").contains("traceEvents")
    );
    let costs = f.write("costs.json", br#"{"forward": 1, "backward_input": 1, "backward_weight": 1}"#);
    assert!(run(&["schedule", "--policy", "1f1b", "--micro", "20", "--simulate", &costs]).1.contains("step 81, bubble 21"));

    let heavy =
        br#"{"forward": 1, "backward_input": 1, "backward_weight": 1, "memory": {"activation": 104857600, "input": 1048576}}"#;
    let heavy = ["schedule", "--simulate", &f.write("heavy.json", heavy), "--memory-limit", "500"];
    fails(&heavy, 1, &["E0406", "rank 0 needs 900 MiB at once, of 500", "--recompute"]);
    assert_eq!(run(&[&heavy[..], &["--recompute"]].concat()).0, 0);
    fails(&["schedule", "--ranks", "7"], 1, &["E0401", "take 6 or 8 ranks, or --policy dualpipev"]);
    fails(&["schedule", "--micro", "12"], 1, &["E0402", "take 14"]);
    fails(&["schedule", "--policy", "gpipe"], 2, &["there are 1f1b, interleaved"]);
    fails(&["schedule", "--cluster", "12xTPU"], 2, &["4096xH100"]);
    fails(&["schedule", "--simulate", &f.write("bad.json", b"{}")], 1, &["E0405", "missing field"]);
    fails(&["schedule", "--simulate", "nowhere.json"], 1, &["nowhere.json"]);
}

/// A model small enough to be tuned in a test: attention, a norm, products and a choice.
const TUNED: &str = "use std.rmsnorm
dims B, T
config { d = 16, heads = 2 }
model tuned(x: [B, T, d]) -> [B, T, d] {
  let q = rearrange(x @ param wq: [d, d], \"b t (h k) -> b t h k\", h: heads)
  let k = rearrange(x @ param wk: [d, d], \"b t (h k) -> b t h k\", h: heads)
  let y = attend(q, k, k, causal(), scale: 0.35)
  rmsnorm(rearrange(y, \"b t h k -> b t (h k)\") @ param wo: [d, d])
}
";

#[test]
fn a_lock_is_written_used_and_checked() {
    let folder = Folder::new("lock");
    let model = folder.write("tuned.lode", TUNED.as_bytes());
    let build = |out: &str, more: &[&str]| {
        let out = folder.path(out);
        run(&[&["build", &model, "--lib", "none", "-o", &out], more].concat())
    };
    let bytes = |out: &str| fs::read(folder.path(out) + "/tuned.lodelib").expect("it was built");

    let none = build("none", &["--locked"]);
    assert!(none.0 == 1 && none.2.contains("E0516"), "{}", none.2);
    assert_eq!(build("plain", &[]).0, 0);
    let tuned = run(&["tune", &model, "--budget", "120s", "--dims", "B=2,T=48"]);
    assert_eq!(tuned.0, 0, "{}", tuned.2);
    let lock = folder.path("tuned.tune.lock");
    let text = fs::read_to_string(&lock).expect("the lock was written");
    for part in [
        "lode-tuning 1\n",
        "target host\n",
        "program \"tuned\" ",
        "dims B=2 T=48\n",
        "\ntime product f32 ",
        "\ntiling \"attend f32 ",
    ] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }

    // The same input and lock give the same bytes.
    for out in ["a", "b"] {
        let built = build(out, &["--locked"]);
        assert_eq!(built.0, 0, "{}", built.2);
    }
    assert_eq!(bytes("a"), bytes("b"));
    assert_eq!(build("c", &[]).0, 0);
    assert_eq!(bytes("a"), bytes("c"), "without --locked the lock is used all the same");

    // Another tiling is another library: the lock says which. It may know problems of programs that were cheapest on the way, so all change.
    let other = |line: &str| match line.rsplit_once(' ').filter(|_| line.starts_with("tiling")) {
        Some((problem, "queries=8,keys=8")) => format!("{problem} queries=4,keys=8\n"),
        Some((problem, _)) => format!("{problem} queries=8,keys=8\n"),
        None => format!("{line}\n"),
    };
    fs::write(&lock, text.lines().map(other).collect::<String>()).expect("it writes");
    assert_eq!(build("d", &["--locked"]).0, 0);
    assert_ne!(bytes("a"), bytes("d"));

    let refused = |text: &str, want: &str| {
        fs::write(&lock, text).expect("it writes");
        let out = build("bad", &["--locked"]);
        assert!(out.0 == 1 && out.2.contains(want), "{want}: {}", out.2);
    };
    let without = |prefix: &str| text.lines().filter(|l| !l.starts_with(prefix)).map(|l| format!("{l}\n")).collect::<String>();
    refused(&without("time product"), "E0515");
    refused(&without("tiling"), "lacks tiling");
    refused(&text[..text.len() / 2], "error: E051");
    refused("not a lock", "E0511");
    refused(&text.replace("lode-tuning 1", "lode-tuning 7"), "E0512");
    refused(&text.replace("target host", "target sm_90a"), "E0513");
    fs::write(&lock, &text).expect("it writes");
    let config = build("bad", &["--locked", "--set", "heads=4"]);
    assert!(config.0 == 1 && config.2.contains("E0514"), "{}", config.2);
    let noted = build("other", &["--set", "heads=4"]);
    assert!(noted.0 == 0 && noted.2.contains("it is not used"), "{}", noted.2);
}

#[test]
fn tune_refuses_what_it_cannot_measure() {
    let folder = Folder::new("tune");
    let model = folder.write("tuned.lode", TUNED.as_bytes());
    fails(&["tune", &model, "--budget", "soon"], 2, &["--budget"]);
    fails(&["tune", &model, "--dims", "Q=1"], 2, &["no run-time dim Q"]);
    fails(&["tune", &model, "--locked"], 2, &["--locked"]);
    let table = concat!(env!("CARGO_MANIFEST_DIR"), "/../tile/tuning/sm_90a.txt");
    fails(&["tune", &model, "--table", table], 2, &["is of sm_90a, what is measured of host"]);
    if device::gpus().is_err() {
        fails(&["tune", &model, "--backend", "cuda"], 1, &["E0441"]);
    }
    let strata = crate::model("strata");
    let data = folder.write("text", &words());
    fails(
        &["train", &strata, "--data", &data, "--ranks", "2", "--locked", "--out", &folder.path("out")],
        2,
        &["--locked", "one process"],
    );
    fails(&["tune", &folder.path("none.lode")], 1, &["none.lode"]);
}

#[test]
fn kernels_are_explained() {
    let folder = Folder::new("explain");
    let model = folder.write("tuned.lode", TUNED.as_bytes());
    let say = |more: &[&str]| {
        let out = run(&[&["explain", &model, "--dims", "B=2,T=48"], more].concat());
        assert_eq!(out.0, 0, "{}", out.2);
        out.1.replace(&folder.path(""), "")
    };
    let table = say(&[]);
    for part in ["costs at B=2,T=48", "\nforward: ", "attend causal", "tuned.lode:7", "--kernel N"] {
        assert!(table.contains(part), "no {part:?} in\n{table}");
    }
    let number = table.lines().find(|l| l.contains("attend causal")).and_then(|l| l.split_whitespace().next()).expect("a row");
    let one = say(&["--kernel", number]);
    for part in
        ["host_attend_", "\nsource\n", "let y = attend(", "\nrules\n", "\nalternatives", "\ncost of a run", "  tiling queries="]
    {
        assert!(one.contains(part), "no {part:?} in\n{one}");
    }
    fails(&["explain", &model, "--target", "abacus"], 2, &["abacus", "sm_90a"]);
    fails(&["explain", &model, "--kernel", "no_such"], 2, &["no kernel 'no_such'"]);
    fails(&["explain", "E9999"], 2, &["E9999"]);
}
