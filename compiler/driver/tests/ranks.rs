//! Training as several processes over TCP: launched, killed, stalled, of other plans; conditions are awaited, never times.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

/// No condition takes longer, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);
/// What a rank waits for a message. # Units: seconds. Long enough for a micro-batch on a busy machine.
const TIMEOUT: &str = "8";

/// A folder that is gone at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("lode-processes-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("a folder can be made");
        let words = (0..6000u32).map(|i| b'a' + (i * i % 23 + i / 97 % 3) as u8).collect::<Vec<u8>>();
        fs::write(path.join("a.txt"), words).expect("it can be written");
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Processes that do not outlive the test.
struct Ranks(Vec<Option<Child>>);

impl Drop for Ranks {
    fn drop(&mut self) {
        for child in self.0.iter_mut().flatten() {
            let _ = (child.kill(), child.wait());
        }
    }
}

fn train(folder: &Folder, out: &str, steps: u32) -> Vec<String> {
    let set =
        "vocab_size=256 hidden_size=32 intermediate_size=32 num_hidden_layers=4 num_attention_heads=2 num_key_value_heads=1";
    train_of(("llama", set), folder, out, steps)
}

fn train_of((model, set): (&str, &str), folder: &Folder, out: &str, steps: u32) -> Vec<String> {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models").join(model).join("model.lode").display().to_string();
    let mut args = vec!["train".to_string(), model];
    set.split(' ').for_each(|s| args.extend(["--set".into(), s.into()]));
    let more =
        format!("--batch 8 --micro-batches 8 --seq 16 --steps {steps} --save-every 2 --check-messages --timeout {TIMEOUT}");
    args.extend(more.split(' ').map(String::from));
    let path = |name: &str| folder.0.join(name).display().to_string();
    args.extend(["--data".into(), path("a.txt"), "--out".into(), path(out), "--sample".into(), "0".into()]);
    args
}

fn lode(args: &[String]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lode"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for name in ["RANK", "WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_PROCID", "LODE_RESTART"] {
        command.env_remove(name);
    }
    command
}

/// Starts ranks; `more` gives further arguments of a rank.
fn start(size: usize, args: &[String], more: impl Fn(usize) -> Vec<String>) -> Ranks {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    drop(listener);
    let rank = |rank: usize| {
        let mut command = lode(&[args.to_vec(), more(rank)].concat());
        let vars = [("RANK", rank.to_string()), ("WORLD_SIZE", size.to_string()), ("LOCAL_RANK", rank.to_string())];
        command.envs(vars).env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
        Some(command.spawn().expect("lode starts"))
    };
    Ranks((0..size).map(rank).collect())
}

/// Waits until a condition holds.
#[track_caller]
fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Steps that a run has written down.
fn steps(folder: &Folder, out: &str) -> usize {
    fs::read_to_string(folder.0.join(out).join("metrics.jsonl")).map_or(0, |t| t.lines().count())
}

/// Waits for a rank's end: exit code and what it said.
#[track_caller]
fn end(ranks: &mut Ranks, rank: usize) -> (i32, String, String) {
    let mut child = ranks.0[rank].take().expect("it was started");
    let until = Instant::now() + PATIENCE;
    while child.try_wait().expect("it can be asked").is_none() {
        if Instant::now() > until {
            let _ = child.kill();
            panic!("rank {rank} does not end");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let Output { status, stdout, stderr } = child.wait_with_output().expect("it has ended");
    let text = |b: Vec<u8>| String::from_utf8_lossy(&b).into_owned();
    (status.code().unwrap_or(-1), text(stdout), text(stderr))
}

/// A signal to a rank.
fn signal(ranks: &Ranks, rank: usize, name: &str) {
    let id = ranks.0[rank].as_ref().expect("it runs").id().to_string();
    assert!(Command::new("kill").args([name, &id]).status().expect("kill starts").success());
}

#[test]
fn launched_ranks_train_and_rank_0_alone_speaks() {
    let folder = Folder::new("launch");
    let launch = |n: &str, out: &str, more: &[&str]| {
        let mut args: Vec<String> = ["launch", "-n", n, "lode"].map(String::from).to_vec();
        args.extend(train(&folder, out, 3));
        args.extend(more.iter().map(|s| s.to_string()));
        let Output { status, stdout, stderr } = lode(&args).output().expect("lode starts");
        (status.code(), String::from_utf8_lossy(&stdout).into_owned(), String::from_utf8_lossy(&stderr).into_owned())
    };
    let (code, out, err) = launch("4", "four", &["--schedule", "dualpipe"]);
    assert_eq!((code, out.lines().count()), (Some(0), 1), "{out}{err}");
    assert!(
        err.contains("dualpipe on 4 ranks, 4 stages of 1 + 1 + 1 + 1 layers, 8 micro-batches, half of them each way"),
        "{err}"
    );
    // The same in one process, and on two ranks a stage.
    let (code, same, err) = launch("1", "here", &["--schedule", "dualpipe", "--ranks", "4"]);
    assert_eq!((code, &same), (Some(0), &out), "{err}");
    let (code, _, err) = launch("3", "three", &["--schedule", "dualpipe"]);
    assert!(code == Some(1) && err.contains("E0401") && err.contains("dualpipev"), "{err}");
    let (code, _, err) = launch("2", "two", &["--layout", "Ett|tL"]);
    assert!(code == Some(1) && err.contains("E0431") && err.contains("it has 3 layers, the model has 4"), "{err}");
    let (code, _, err) = launch("2", "two", &["--ranks", "3"]);
    assert!(code == Some(2) && err.contains("3 ranks × 1 replicas are not the 2 processes that torchrun says"), "{err}");
}

/// Experts over processes, over threads, and on every replica; and what cannot be divided.
#[test]
fn processes_divide_experts() {
    let folder = Folder::new("experts");
    let strata = ("strata", "layers=1 d=32 heads=2 kv=1 dh=16 experts=4 top=2 ff=16 length=8 stride=4 size=8 count=2 window=16");
    let run = |out: &str, steps: u32, n: usize, more: &[&str]| {
        let mut args = train_of(strata, &folder, out, steps);
        args.extend(more.iter().map(|s| s.to_string()));
        let mut ranks = start(n, &args, |_| Vec::new());
        let (code, out, err) = end(&mut ranks, 0);
        let others: Vec<i32> = (1..n).map(|r| end(&mut ranks, r).0).collect();
        assert!(others.iter().all(|c| *c == code), "{others:?} {err}");
        (code, out, err)
    };
    let losses = |out: &str| {
        let text = fs::read_to_string(folder.0.join(out).join("metrics.jsonl")).expect("it trains");
        let list = |l: &str| {
            let from = l.find("\"micro_losses\"").expect("it has them");
            l[from..from + l[from..].find(']').expect("a list ends")].to_string()
        };
        text.lines().map(list).collect::<Vec<_>>()
    };
    let (code, divided, err) = run("two", 2, 2, &["--expert-parallel", "2"]);
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("1f1b on 2 ranks (2 replicas, 2 of them divide the experts), 1 stages of 1 layers"), "{err}");
    assert!(err.contains("experts: ranks send ") && err.contains(" MiB a step, "), "{err}");
    let (code, here, err) = run("here", 2, 1, &["--expert-parallel", "2", "--engine", "replay"]);
    assert_eq!((code, &here), (0, &divided), "{err}");
    assert_eq!(losses("here"), losses("two"));
    // On without ranks.
    let (code, _, err) = run("two", 3, 1, &["--resume"]);
    assert!(code == 0 && err.contains("going on from step 2"), "{err}");
    // The model says it, and a flag overrides that.
    let file = folder.0.join("declared.lode");
    let mut args = train_of(strata, &folder, "declared", 2);
    let text = fs::read_to_string(&args[1]).expect("the model is part of the source");
    fs::write(&file, format!("pipeline {{ expert_parallel = 2 }}\n{text}")).expect("it can be written");
    args[1] = file.display().to_string();
    args.extend(["--engine", "replay"].map(String::from));
    let declared = |args: &[String]| {
        let Output { status, stdout, stderr } = lode(args).output().expect("lode starts");
        assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
        (String::from_utf8_lossy(&stdout).into_owned(), String::from_utf8_lossy(&stderr).into_owned())
    };
    let (out, err) = declared(&args);
    assert_eq!(out, divided);
    assert!(err.contains("(2 replicas, 2 of them divide the experts)"), "{err}");
    let mut args = args.iter().map(|a| a.replace("/declared", "/overridden")).collect::<Vec<_>>();
    args[1] = file.display().to_string();
    args.extend(["--expert-parallel", "1", "--replicas", "2"].map(String::from));
    let (_, err) = declared(&args);
    assert!(err.contains("1f1b on 2 ranks (2 replicas), 1 stages"), "{err}");
    // One replica has nobody to divide experts with.
    let last = args.len() - 4;
    let mut args: Vec<String> = args[..last].iter().map(|a| a.replace("/overridden", "/alone")).collect();
    args[1] = file.display().to_string();
    args.extend(["--replicas", "1"].map(String::from));
    let (_, err) = declared(&args);
    assert!(err.contains("1f1b on 1 ranks, 1 stages"), "{err}");
    // A build of stages divides them as the model says, unless a flag says otherwise.
    let build = |experts: &[&str]| {
        let mut args: Vec<String> = ["build", "--ranks", "1", "--lib", "none", "-o"].map(String::from).to_vec();
        args.extend([folder.0.join("built").display().to_string(), file.display().to_string()]);
        args.extend(strata.1.split_whitespace().flat_map(|s| ["--set".into(), s.to_string()]));
        args.extend(experts.iter().map(|s| s.to_string()));
        declared(&args);
        let library = library::Library::read(&folder.0.join("built/declared.0.lodelib")).expect("it was written");
        let stacked = library.manifest.params.iter().filter(|p| p.name.contains("experts") && p.shape.len() == 4);
        stacked.map(|p| p.shape[1]).collect::<Vec<_>>()
    };
    let (two, none) = (build(&[]), build(&["--expert-parallel", "0"]));
    assert!(!two.is_empty() && two.iter().all(|n| *n == 2) && none.iter().all(|n| *n == 4), "{two:?} {none:?}");
    let (code, _, err) = run("none", 2, 1, &["--replicas", "3", "--expert-parallel", "2"]);
    assert!(code == 2 && err.contains("--expert-parallel 2 does not divide 3 replicas; the nearest that does is 1"), "{err}");
    let (code, _, err) = run("none", 2, 1, &["--expert-parallel", "8"]);
    assert!(code == 1 && err.contains("E0433") && err.contains("4 experts are not shared evenly by 8 ranks"), "{err}");
    let (code, _, err) = run("none", 2, 1, &["--fabric", "nccl"]);
    assert!(code == 2 && err.contains("--fabric nccl is for GPUs: --backend cuda"), "{err}");
    let mut args = train(&folder, "none", 2);
    args.extend(["--expert-parallel", "2"].map(String::from));
    let err = String::from_utf8_lossy(&lode(&args).output().expect("it starts").stderr).into_owned();
    assert!(err.contains("E0433") && err.contains("has no experts"), "{err}");
}

#[test]
fn a_killed_rank_ends_all_and_a_restart_goes_on() {
    let folder = Folder::new("killed");
    // Far more steps than it will make.
    let mut ranks = start(4, &train(&folder, "run", 100_000), |_| Vec::new());
    wait_for("the run makes a checkpoint", || steps(&folder, "run") >= 3);
    signal(&ranks, 2, "-KILL");
    let killed = Instant::now();
    assert_eq!(end(&mut ranks, 2).0, -1);
    let told: Vec<_> = [0, 1, 3].map(|r| end(&mut ranks, r)).into_iter().collect();
    // Far below the time that a message may take: the connection's end is seen.
    assert!(killed.elapsed() < PATIENCE / 2);
    assert!(told.iter().all(|(code, ..)| *code == 1), "{told:?}");
    let all: String = told.iter().map(|(_, _, err)| err.as_str()).collect();
    assert!(all.contains("rank 2 is gone, before ") && all.contains(" of message "), "{all}");
    // It goes on from the last checkpoint, on other ranks too.
    let done = steps(&folder, "run") as u32;
    let mut args = train(&folder, "run", done + 2);
    args.push("--resume".into());
    let mut ranks = start(2, &args, |_| Vec::new());
    let (code, _, err) = end(&mut ranks, 0);
    assert!(code == 0 && err.contains("going on from step "), "{err}");
    assert_eq!(end(&mut ranks, 1).0, 0);
    assert_eq!(steps(&folder, "run") as u32, done + 2);
}

#[test]
fn a_launcher_starts_again_after_a_rank_was_killed() {
    let folder = Folder::new("again");
    let mut args: Vec<String> = ["launch", "-n", "2", "--restarts", "1", "--grace", "30", "lode"].map(String::from).to_vec();
    args.extend(train(&folder, "run", 60));
    let mut launcher = Ranks(vec![Some(lode(&args).spawn().expect("lode starts"))]);
    let id = launcher.0[0].as_ref().expect("it runs").id();
    wait_for("the run makes a checkpoint", || steps(&folder, "run") >= 3);
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
    let children = if children.is_empty() { all_children(id) } else { children };
    let last = children.split_whitespace().last().expect("it has ranks").to_string();
    assert!(Command::new("kill").args(["-KILL", &last]).status().expect("kill starts").success());
    let (code, out, err) = end(&mut launcher, 0);
    assert_eq!((code, out.lines().count()), (0, 1), "{err}");
    assert!(err.contains("starting all again, 1 of 1") && err.contains("going on from step "), "{err}");
    assert_eq!(steps(&folder, "run"), 60);
}

/// The children of all threads of a process.
fn all_children(id: u32) -> String {
    let threads = fs::read_dir(format!("/proc/{id}/task")).expect("it runs");
    threads.flatten().filter_map(|t| fs::read_to_string(t.path().join("children")).ok()).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_stalled_rank_ends_all_within_the_time_out() {
    let folder = Folder::new("stalled");
    let mut ranks = start(4, &train(&folder, "run", 100_000), |_| Vec::new());
    wait_for("the run makes steps", || steps(&folder, "run") >= 2);
    signal(&ranks, 1, "-STOP");
    let told: Vec<_> = [0, 2, 3].map(|r| end(&mut ranks, r)).into_iter().collect();
    assert!(told.iter().all(|(code, ..)| *code == 1), "{told:?}");
    let all: String = told.iter().map(|(_, _, err)| err.as_str()).collect();
    assert!(all.contains("E0421") && all.contains(" took longer than 8 s") && all.contains("step "), "{all}");
}

#[test]
fn another_plan_or_model_does_not_start() {
    let folder = Folder::new("other");
    for more in [["--lr", "0.5"], ["--schedule", "zb1p"], ["--set", "rope_theta=5000.0"]] {
        let args = train(&folder, "run", 2);
        let mut ranks = start(2, &args, |r| if r == 1 { more.map(String::from).to_vec() } else { Vec::new() });
        for rank in [0, 1] {
            let (code, _, err) = end(&mut ranks, rank);
            assert!(
                code == 1 && err.contains("E0425") && err.contains("rank 1 runs another binary, model or plan"),
                "{more:?}: {err}"
            );
        }
        assert!(!folder.0.join("run").join("metrics.jsonl").exists());
    }
}

/// What is not said by flags, the model says.
#[test]
fn a_model_may_say_how_it_is_cut() {
    assert_eq!(hir::SCHEDULES, schedule::Policy::ALL.map(schedule::Policy::name));
    let folder = Folder::new("pipeline");
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/llama/model.lode")).expect("it reads");
    let declared = "pipeline { ranks = 2, schedule = dualpipe, micro_batches = 4, layout = \"Ettt|tL\" }\n";
    let path = folder.0.join("model.lode").display().to_string();
    fs::write(&path, format!("{declared}{text}")).expect("it can be written");
    let mut args = train(&folder, "out", 1);
    args[1].clone_from(&path);
    let at = args.iter().position(|a| a == "--micro-batches").expect("it says so");
    args.drain(at..at + 2);
    let told = |args: &[String]| String::from_utf8_lossy(&lode(args).output().expect("it starts").stderr).into_owned();
    let says = told(&args);
    assert!(says.contains("dualpipe on 2 ranks, 2 stages of 3 + 1 layers, 4 micro-batches, half of them each way"), "{says}");
    assert!(says.contains("of them moments"), "{says}");
    args.extend(["--ranks", "1", "--schedule", "1f1b", "--micro-batches", "2", "--out"].map(String::from));
    args.push(folder.0.join("other").display().to_string());
    args.remove(args.iter().position(|a| a == "--out").expect("it says so") + 1);
    args.remove(args.iter().position(|a| a == "--out").expect("it says so"));
    let says = told(&args);
    assert!(says.contains("1f1b on 1 ranks, 1 stages of 4 layers, 2 micro-batches"), "{says}");

    let out = folder.0.join("stages");
    let set = args.windows(2).filter(|w| w[0] == "--set").flatten().cloned();
    let mut build: Vec<String> = ["build".to_string(), path].into_iter().chain(set).collect();
    build.extend(["--ranks", "4", "--schedule", "1f1b", "--lib", "none", "-o"].map(String::from));
    build.push(out.display().to_string());
    let built = lode(&build).output().expect("it starts");
    let says = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "{says}");
    assert!(says.contains("1f1b on 4 ranks, 4 stages, a micro-batch of B=2,T=128"), "{says}");
    assert_eq!(says.lines().filter(|l| l.starts_with("stage ") && l.contains("MiB stored")).count(), 4, "{says}");
    let paths: Vec<String> = String::from_utf8_lossy(&built.stdout).lines().map(String::from).collect();
    let (costs, paths) = paths.split_last().expect("there are files");
    assert_eq!(paths.len(), 4);
    let simulate = ["schedule", "--policy", "1f1b", "--ranks", "4", "--micro", "8", "--simulate", costs].map(String::from);
    let simulated = lode(&simulate).output().expect("it starts");
    assert!(simulated.status.success(), "{}", String::from_utf8_lossy(&simulated.stderr));
    for (i, path) in paths.iter().enumerate() {
        assert!(path.ends_with(&format!(".{i}.lodelib")), "{path}");
        let library = library::Library::read(Path::new(path)).expect("it is whole");
        let names: Vec<&str> = library.manifest.entries.iter().map(|e| e.name.as_str()).collect();
        assert_eq!(names[..4], ["forward", "backward_input", "backward_weight", "norm"]);
        assert!(names[4..].iter().all(|n| n.starts_with("update.")) && names.len() > 10, "{names:?}");
    }
}
