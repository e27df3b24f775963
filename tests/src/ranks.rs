//! Training over ranks: strata and deepseek_v3, tiny, with every schedule, over threads and TCP, against the model on one rank.

use device::{Device, Host, KernelFn};
use driver::{
    pipeline::{self, Options},
    stages::{self, Failed, Stages},
};
use exec::{
    ExecError,
    data::Text,
    plan::Peak,
    ranks::{self, Code, Engine, Job, Nodes, Silent, Traffic},
    train::{self, Figures, Report},
};
use fabric::{Direct, FabricError, Span, Staged, Tag, Timeouts, World, tcp, threads};
use hir::Overrides;
use schedule::{Plan, Policy, Size};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    net::TcpListener,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

const STRATA: (&str, &str) =
    ("strata", "d=32 heads=2 kv=1 dh=16 experts=4 top=2 ff=16 length=8 stride=4 size=8 count=2 window=16");
const DEEPSEEK: (&str, &str) = (
    "deepseek_v3",
    "vocab_size=256 hidden_size=32 intermediate_size=32 moe_intermediate_size=16 num_attention_heads=2 q_lora_rank=16 \
     kv_lora_rank=16 qk_nope_head_dim=8 qk_rope_head_dim=8 v_head_dim=8 n_routed_experts=8 num_experts_per_tok=2 n_group=4 \
     topk_group=2 initializer_range=0.05 first_k_dense_replace=1",
);
const LLAMA: (&str, &str) =
    ("llama", "vocab_size=256 hidden_size=32 intermediate_size=32 num_attention_heads=2 num_key_value_heads=1 head_dim=16");
const QWEN: (&str, &str) = (
    "qwen3_moe",
    "vocab_size=256 hidden_size=32 moe_intermediate_size=16 num_attention_heads=2 num_key_value_heads=1 head_dim=16 num_experts=4 \
     num_experts_per_tok=2",
);
const TIMEOUTS: Timeouts = Timeouts { start: Duration::from_secs(60), message: Duration::from_secs(60) };

fn compile(model: (&str, &str), more: &str, layout: Option<&str>, num_stages: usize) -> Stages {
    compile_for(model, more, layout, (num_stages, 1))
}

/// The same, for so many ranks that divide experts.
fn compile_for((model, set): (&str, &str), more: &str, layout: Option<&str>, size: (usize, usize)) -> Stages {
    compile_with(model, layout, size, &set_options(set, more))
}

fn set_options(set: &str, more: &str) -> Options {
    let all = format!("{set} {more}");
    let set = all.split_whitespace().filter_map(|s| s.split_once('=')).map(|(n, v)| (n.to_string(), v.to_string())).collect();
    Options { overrides: Overrides { set, ..Overrides::default() }, ..Options::default() }
}

fn compile_with(model: &str, layout: Option<&str>, size: (usize, usize), options: &Options) -> Stages {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models").join(model).join("model.lode");
    let text = std::fs::read_to_string(path).expect("the model is part of the source");
    let front = pipeline::front("model.lode", &text, &mut |_| None, options);
    let program = front.program.as_ref().expect("the model is right");
    match stages::compile(program, &front.sources, layout, size, options) {
        Ok(stages) => stages,
        Err(Failed::Cut(e)) => panic!("{e}"),
        Err(Failed::Back(e)) => panic!("{e:?}"),
    }
}

/// What a run reports.
#[derive(Clone, Debug, Default, PartialEq)]
struct Log {
    losses: Vec<Vec<f64>>,
    norms: Vec<f64>,
    val: Vec<f64>,
    sent: Option<Traffic>,
    /// Whether pairs ran as one list.
    paired: bool,
    /// What ranks sent of experts' rows in the last step. # Units: bytes.
    rows: u64,
}

impl Report for Log {
    fn measured(&mut self, m: &ranks::Measured) {
        self.paired = m.pair_ms.is_some_and(|ms| ms > 0.0);
        self.rows = m.sent.iter().filter(|(kind, _)| *kind == "rows of experts").map(|(_, n)| n).sum();
    }
    fn traffic(&mut self, sent: &Traffic) {
        self.sent = Some(*sent);
    }
    fn start(&mut self, peak: &Peak, _: u64, _: u64) {
        assert!(peak.total() > 0);
    }
    fn step(&mut self, f: &Figures) {
        self.norms.push(f.grad_norm);
        self.val.extend(f.val_loss);
    }
    fn micro_losses(&mut self, losses: &[f64]) {
        self.losses.push(losses.to_vec());
    }
    fn warn(&mut self, text: String) {
        panic!("{text}");
    }
}

fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("lode-ranks-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    path
}

fn options(out: PathBuf, micro_batches: usize, steps: u64) -> train::Options {
    train::Options {
        batch: micro_batches,
        seq: 24,
        micro_batches,
        steps,
        warmup: 0,
        lr: 3e-3,
        floor: 0.1,
        // Below the norm, so that clipping is at work.
        clip: 0.1,
        seed: 5,
        eval_every: 0,
        eval_rows: 4,
        save_every: 0,
        keep: 3,
        out,
        resume: false,
        memory_limit: None,
    }
}

fn plan(policy: Policy, ranks: usize, micro: usize, copies: usize) -> Plan {
    schedule::plan(policy, Size { ranks, micro, chunks: 2 }).expect("the size fits").copies(copies)
}

fn text() -> Text {
    let word = |i: usize| (i * i * 31 + i / 7 * 11 + (i % 13) * 17) % 251;
    Text::new((0..4000).map(|i| word(i) as i32).collect(), 24, "numbers").expect("it is long enough")
}

/// How ranks run.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Over {
    Threads,
    Replay,
    Tcp,
}

/// A run of these stages: as if every two ranks shared a machine, copies sharing the optimiser.
fn job<'a>(stages: &'a Stages, plan: &'a Plan, text: &'a Text, options: &'a train::Options) -> Job<'a> {
    Job {
        plan,
        programs: &stages.programs,
        replicas: replicas_of(plan),
        nodes: Nodes::Each(2),
        whole: &stages.whole,
        inputs: &stages.inputs,
        text,
        options,
        threads: 1,
        gpu: ranks::OnGpu::default(),
        checked: true,
        sharded: true,
    }
}

/// How many pipelines a plan of `plan` has.
fn replicas_of(plan: &Plan) -> usize {
    let each = if plan.policy == Policy::DualPipe.name() { 2 } else { 1 };
    plan.placement.num_dirs() / each
}

/// Trains, and loads the last checkpoint's tensors. Copies of a stage share its optimiser.
fn run(stages: &Stages, plan: &Plan, over: Over, o: &train::Options) -> Result<(Log, BTreeMap<String, Vec<f64>>), ExecError> {
    run_as(stages, plan, over, o, true)
}

fn run_as(
    stages: &Stages,
    plan: &Plan,
    over: Over,
    o: &train::Options,
    sharded: bool,
) -> Result<(Log, BTreeMap<String, Vec<f64>>), ExecError> {
    let text = text();
    let job = Job { checked: over != Over::Threads, sharded, ..job(stages, plan, &text, o) };
    let mut log = Log::default();
    match over {
        Over::Threads => ranks::train_here(&job, Engine::Threads, TIMEOUTS, &mut log)?,
        Over::Replay => ranks::train_here(&job, Engine::Replay, TIMEOUTS, &mut log)?,
        Over::Tcp => {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            let place = listener.local_addr().expect("an address").to_string();
            let (size, mut listener) = (plan.num_ranks(), Some(listener));
            let one = |rank: usize, listener: Option<TcpListener>, report: &mut dyn Report| {
                let world = World { rank, size, local_rank: rank, rendezvous: Some(place.clone()), source: "test" };
                let f = tcp::connect_at(&world, job.hash(1), TIMEOUTS, listener)?;
                // A process knows its own machine alone.
                let job = Job { nodes: Nodes::Machine(rank as u64 / 2), ..job };
                ranks::train_rank(&job, &f, None, report)
            };
            std::thread::scope(|s| {
                let one = &one;
                let others: Vec<_> = (1..size).map(|r| s.spawn(move || one(r, None, &mut Silent))).collect();
                let first = one(0, listener.take(), &mut log);
                for other in others {
                    other.join().expect("no rank panics")?;
                }
                first
            })?
        }
    };
    let path = exec::checkpoint::list(&o.out).first().cloned().expect("a checkpoint was made");
    let mut tensors = BTreeMap::new();
    for (path, bytes) in exec::checkpoint::read(&path)? {
        for (name, t) in exec::checkpoint::parse(&bytes, &path)? {
            tensors.insert(name, t.to_f64());
        }
    }
    Ok((log, tensors))
}

/// The model in one piece, and each of the others: the same bits. With copies of stages (mirrors, replicas) the gradient is the sum of each
/// copy's sum, so what they are compared with is as many copies of the whole model; the losses of the first step are always the same.
fn compare(model: (&str, &str), more: &str, name: &str, runs: &[(Policy, usize, usize, Over)]) {
    let micro = runs.iter().map(|(_, ranks, copies, _)| 2 * ranks * copies).max().expect("some runs");
    let one = compile(model, more, None, 1);
    let whole = |copies: usize, steps: u64| {
        let o = options(folder(&format!("{name}-{copies}-{steps}")), micro, steps);
        let plan = plan(Policy::OneFOneB, 1, micro / copies, copies);
        let (log, tensors) = run(&one, &plan, Over::Replay, &o).expect("it trains");
        assert!(log.norms.iter().all(|n| *n > o.clip), "{:?}", log.norms);
        let _ = std::fs::remove_dir_all(&o.out);
        (log, tensors)
    };
    let mut wholes = BTreeMap::from([(1, whole(1, 2))]);
    let mut first: Option<BTreeMap<String, Vec<f64>>> = None;
    let mut compiled: BTreeMap<usize, Stages> = BTreeMap::new();
    for (policy, ranks, copies, over) in runs {
        let what = format!("{name} {} on {ranks} ranks, {copies} copies, {over:?}", policy.name());
        let plan = plan(*policy, *ranks, micro / copies, *copies);
        let num_stages = plan.num_stages();
        let stages = compiled.entry(num_stages).or_insert_with(|| compile(model, more, None, num_stages));
        let o = options(folder(&what.replace([' ', ','], "-")), micro, 2);
        let (got, found) = run(stages, &plan, *over, &o).expect("it trains");
        let _ = std::fs::remove_dir_all(&o.out);
        let dirs = plan.placement.num_dirs();
        let (want, tensors) = wholes.entry(dirs).or_insert_with(|| whole(dirs, 2));
        assert!(found.keys().eq(tensors.keys()), "{what}");
        // A tied table's gradient is the sum of two stages'.
        let tied = more.contains("tie_word_embeddings=true");
        if !tied {
            assert_eq!(got, *want, "{what}");
            assert!(found == *tensors, "{what}");
        }
        assert_eq!(got.losses[0], wholes[&1].0.losses[0], "{what}");
        if dirs == 1 && !tied {
            continue;
        }
        // The first moments after one step are its gradients, but for a factor. Sums of `micro` terms of f32 (unit roundoff 6e-8) in another order:
        // 1 − cos is of the order of its square. # Source: DualPipe's examples hold gradients to 1e-13.
        let o = options(folder(&format!("{what}-first").replace([' ', ','], "-")), micro, 1);
        let (_, found) = run(stages, &plan, *over, &o).expect("it trains");
        let _ = std::fs::remove_dir_all(&o.out);
        let tensors = first.get_or_insert_with(|| whole(1, 1).1);
        let moments = tensors.iter().filter(|(name, x)| name.ends_with("#0") && x.iter().any(|x| *x != 0.0));
        let (worst, of) =
            moments.map(|(name, x)| (distance(x, &found[name]), name)).max_by(|a, b| a.0.total_cmp(&b.0)).expect("moments");
        println!("{what}: 1 − cos of gradients against one sum: {worst:e}, of {of}");
        assert!(worst < 1e-13, "{what}: {of}: {worst:e}");
    }
}

/// 1 − the cosine of the angle between two vectors, as half the square of the distance of their directions, which does not cancel.
fn distance(x: &[f64], y: &[f64]) -> f64 {
    let norm = |a: &[f64]| a.iter().map(|a| a * a).sum::<f64>().sqrt();
    let (p, q) = (norm(x), norm(y));
    x.iter().zip(y).map(|(x, y)| (x / p - y / q).powi(2)).sum::<f64>() / 2.0
}

#[test]
fn strata_is_the_same_on_any_ranks() {
    use Policy::*;
    compare(
        STRATA,
        "layers=4",
        "strata",
        &[
            (OneFOneB, 2, 1, Over::Threads),
            (Zb1p, 4, 1, Over::Tcp),
            (Interleaved, 2, 1, Over::Replay),
            (DualPipeV, 2, 1, Over::Threads),
            (DualPipe, 4, 1, Over::Tcp),
            (OneFOneB, 2, 2, Over::Threads),
        ],
    );
}

#[test]
fn a_tied_table_has_both_ends_gradients() {
    use Policy::*;
    let runs = [(OneFOneB, 2, 1, Over::Threads), (Zbv, 2, 1, Over::Replay), (DualPipe, 2, 1, Over::Threads)];
    compare(LLAMA, "num_hidden_layers=4 tie_word_embeddings=true", "llama", &runs);
}

#[test]
fn deepseek_is_the_same_on_any_ranks() {
    use Policy::*;
    let runs =
        [(OneFOneB, 4, 1, Over::Tcp), (Zbv, 2, 1, Over::Threads), (DualPipe, 4, 1, Over::Threads), (DualPipe, 2, 1, Over::Tcp)];
    compare(DEEPSEEK, "num_hidden_layers=4", "deepseek", &runs);
}

/// `LODE_RANKS_LONG=1` for 8 ranks of both models.
#[test]
fn eight_ranks_are_the_same() {
    if std::env::var("LODE_RANKS_LONG").is_err() {
        eprintln!("skipped: LODE_RANKS_LONG is not set");
        return;
    }
    use Policy::*;
    let of = |over| [OneFOneB, Zb1p, DualPipe].map(|p| (p, 8, 1, over));
    let four = |over| [Interleaved, Zbv, DualPipeV].map(|p| (p, 4, 1, over));
    let runs = [of(Over::Threads), of(Over::Tcp), four(Over::Threads), four(Over::Tcp)].concat();
    compare(STRATA, "layers=8", "strata8", &runs);
    compare(DEEPSEEK, "num_hidden_layers=8", "deepseek8", &runs);
}

/// Copies that share the optimiser of a stage (ZeRO-1) have the bits of copies that each do all of it, and its moments once.
#[test]
fn copies_share_their_optimiser() {
    use Policy::*;
    let micro = 16;
    for (policy, ranks, copies) in [(OneFOneB, 2, 2), (DualPipe, 2, 2)] {
        let plan = plan(policy, ranks, micro / copies, copies);
        let stages = compile(DEEPSEEK, "num_hidden_layers=4", None, plan.num_stages());
        let what = format!("{} on {ranks} ranks, {copies} copies", policy.name());
        let o = options(folder(&format!("{what}-whole").replace([' ', ','], "-")), micro, 3);
        let want = run_as(&stages, &plan, Over::Threads, &o, false).expect("it trains");
        for over in [Over::Threads, Over::Replay, Over::Tcp] {
            let o = options(folder(&format!("{what}-{over:?}").replace([' ', ','], "-")), micro, 3);
            let got = run_as(&stages, &plan, over, &o, true).expect("it trains");
            assert!(got == want, "{what}, {over:?}: {:?}, not {:?}", got.0, want.0);
            let _ = std::fs::remove_dir_all(&o.out);
        }
        let text = text();
        let job = |sharded| Job { sharded, ..job(&stages, &plan, &text, &o) };
        for stage in 0..plan.num_stages() as u16 {
            let holders = plan.placement.holders(stage);
            let moments = |sharded, rank| ranks::memory(&job(sharded), stage, rank).expect("it fits").moments;
            let parts: Vec<u64> = holders.iter().map(|r| moments(true, *r)).collect();
            let all = moments(false, holders[0]);
            assert_eq!(parts.iter().sum::<u64>(), all, "{what}, stage {stage}");
            // Whole tensors, the largest first: no copy has more than its share and one of them.
            assert!(parts.iter().all(|p| *p < all * 2 / holders.len() as u64), "{what}, stage {stage}: {parts:?} of {all}");
        }
        let _ = std::fs::remove_dir_all(&o.out);
    }
}

/// Replicas that divide the experts of each layer, against as many that have all of them: the first step's losses have the same bits, and the
/// gradients differ by the order of one sum, over threads, TCP and in one order; with and without the optimiser shared.
fn experts_over_ranks(model: (&str, &str), more: &str, name: &str, runs: &[(Policy, usize, usize, usize, Over)]) {
    let mut compiled: BTreeMap<(usize, usize), Stages> = BTreeMap::new();
    for (policy, ranks, replicas, experts, over) in runs {
        let micro = 2 * ranks * replicas;
        let what = format!("{name} {} on {ranks} ranks, {replicas} replicas, experts over {experts}, {over:?}", policy.name());
        let plan = plan(*policy, *ranks, micro / replicas, *replicas);
        let mut train = |experts: usize, over: Over, sharded: bool| {
            let size = (plan.num_stages(), experts);
            let stages = compiled.entry(size).or_insert_with(|| compile_for(model, more, None, size));
            let o = options(folder(&format!("{what}-{experts}-{sharded}").replace([' ', ','], "-")), micro, 2);
            let done = run_as(stages, &plan, over, &o, sharded).expect("it trains");
            let _ = std::fs::remove_dir_all(&o.out);
            done
        };
        let (want, tensors) = train(1, Over::Replay, true);
        let (got, found) = train(*experts, *over, true);
        assert_eq!(got.losses[0], want.losses[0], "{what}");
        assert!(found.keys().eq(tensors.keys()), "{what}");
        for (norm, other) in got.norms.iter().zip(&want.norms) {
            assert!((norm - other).abs() < 1e-5 * other, "{what}: {:?} {:?}", got.norms, want.norms);
        }
        for (name, t) in &found {
            let far = distance(t, &tensors[name]);
            assert!(far < 1e-9, "{what}: {name} {far:e}");
        }
        // A token has two experts, so fewer rows than there are choices go to other ranks; with nodes of two ranks some cross.
        let sent = got.sent.expect("ranks divide experts");
        assert!(
            want.sent.is_none() && 0 < sent.once && sent.once <= sent.plain && sent.across_once <= sent.across,
            "{what}: {sent:?}"
        );
        assert_eq!(sent.across > 0, *experts * ranks > 2, "{what}: {sent:?}");
        assert!((got.rows > 0, want.rows) == (true, 0), "{what}: {} {}", got.rows, want.rows);
        // What was counted as equal is what was sent.
        assert_eq!(sent.crossed, sent.across_once, "{what}: {sent:?}");
        // Two ranks share a node; of a pipeline of two ranks they are of one replica, so each member of a group is alone on its node. Rows are equal where a node has several experts.
        let given =
            |name: &str| model.1.split_whitespace().find_map(|s| s.strip_prefix(name)?.strip_prefix('=')?.parse::<usize>().ok());
        let all = given("experts").or(given("n_routed_experts")).or(given("num_experts")).expect("the model has experts");
        let on_a_node = all / experts * if *ranks == 1 { 2 } else { 1 };
        assert!(*experts < 4 || on_a_node < 2 || sent.crossed < sent.across, "{what}: {sent:?}");
        // Whatever carries the rows, and whoever keeps the optimiser.
        let (other, tensors) = train(*experts, Over::Replay, false);
        assert!(other == got && tensors == found, "{what}: {:?} {:?}", other.sent, got.sent);
    }
}

/// What owns a part of an update has all that it touches: a part of both experts and what all ranks have would have no owner.
#[test]
fn an_update_of_experts_with_others_is_refused() {
    let mut stages = compile_for(DEEPSEEK, "num_hidden_layers=2", None, (1, 2));
    for share in &mut stages.programs {
        let entries = &mut share[0].manifest.entries;
        let is_param = |p: &&library::Port| p.role == library::Role::Param;
        let of = |expert: bool| {
            let is = |e: &library::Entry| e.outputs.iter().filter(is_param).any(|p| p.name.contains(".mlp.experts.") == expert);
            entries.iter().position(|e| e.name.starts_with("update.") && is(e)).expect("there is one")
        };
        let (expert, other) = (of(true), of(false));
        let port = entries[other].args.iter().find(is_param).expect("it reads what it updates").clone();
        entries[expert].args.push(port);
    }
    let o = options(folder("mixed"), 4, 1);
    let refused = run(&stages, &plan(Policy::OneFOneB, 1, 2, 2), Over::Threads, &o).expect_err("it has no owner").to_string();
    assert!(refused.contains("it updates experts together with what all ranks have"), "{refused}");
}

/// A stage with experts that two ranks divide compiles for a GPU: all stages and shares with one module of code, and the exchanges between its steps.
#[test]
fn stages_compile_for_a_gpu() {
    let options = Options { gpu: true, ..set_options(QWEN.1, "num_hidden_layers=2") };
    let stages = compile_with(QWEN.0, None, (2, 2), &options);
    assert_eq!((stages.programs.len(), stages.programs[0].len()), (2, 2));
    let Code::Gpu(code) = &stages.programs[0][0].code else { panic!("it is for the host") };
    let text = String::from_utf8_lossy(&code[0]);
    for p in stages.programs.iter().flatten() {
        assert_eq!(p.manifest.target, library::SM_90A);
        assert!(p.manifest.kernels.iter().all(|k| k.gpu.is_some() && text.contains(&k.symbol)));
        let steps = p.manifest.entries.iter().flat_map(|e| exec::plan::steps(&e.steps));
        let members = steps.filter_map(|s| match s {
            library::Step::Exchange(library::Exchange::Offsets { members, .. } | library::Exchange::Rows { members, .. }) => {
                Some(*members)
            }
            _ => None,
        });
        assert!(members.collect::<Vec<_>>().iter().all(|m| *m == 2));
        let dims = [("B".into(), 1), ("T".into(), 24)].into_iter().collect();
        let list = exec::pair::listed(&p.manifest, &dims).expect("it is legal");
        let order: Vec<&str> = list.iter().map(|(part, _)| part.as_str()).filter(|part| part.ends_with(" 0")).collect();
        let want = "combine.B attention.F dispatch.F experts.B dispatch.B experts.W experts.F combine.F attention.B attention.W";
        let want: Vec<String> = want.split(' ').map(|part| format!("{part} 0")).collect();
        assert_eq!(order, want);
    }
    let exchanges = |share: usize, stage: usize| {
        let e = stages.programs[share][stage].manifest.entry("forward").expect("a stage has it");
        exec::plan::steps(&e.steps).into_iter().filter(|s| matches!(s, library::Step::Exchange(_))).count()
    };
    assert_eq!([exchanges(0, 0), exchanges(0, 1), exchanges(1, 1)], [3; 3]);
}

/// Rows go there and back once in a forward, their gradients once in a backward; gradients of weights need no rows of others.
#[test]
fn rows_of_experts_are_sent_twice_each_way() {
    let stages = compile_for(DEEPSEEK, "num_hidden_layers=2", None, (1, 2));
    let count = |entry: &str| {
        let e = stages.programs[0][0].manifest.entry(entry).expect("a stage has it");
        let steps = exec::plan::steps(&e.steps).into_iter();
        let sent = steps.filter_map(|s| if let library::Step::Exchange(x) = s { Some(x) } else { None });
        let kinds = sent.map(|x| match x {
            library::Exchange::Offsets { .. } => "offsets",
            library::Exchange::Rows { back: false, .. } => "there",
            library::Exchange::Rows { back: true, .. } => "back",
        });
        kinds.collect::<Vec<_>>()
    };
    assert_eq!(count("forward"), ["offsets", "there", "back"]);
    assert_eq!(count("backward_input"), ["there", "back"]);
    assert!(count("backward_weight").is_empty());
    // A share's parameters, under the numbers of its experts.
    let names = |share: usize| {
        let params = stages.programs[share][0].manifest.params.iter().filter(|p| p.name.contains("experts.*"));
        params.map(|p| (p.name.clone(), p.shape.clone())).collect::<Vec<_>>()
    };
    let name = |from: &str, part: &str| format!("model.layers.*+1.mlp.experts.*{from}.{part}_proj.weight");
    let shapes = [("gate", vec![1, 4, 16, 32]), ("up", vec![1, 4, 16, 32]), ("down", vec![1, 4, 32, 16])];
    assert_eq!(names(0), shapes.clone().map(|(part, shape)| (name("", part), shape)));
    assert_eq!(names(1), shapes.map(|(part, shape)| (name("+4", part), shape)));
}

#[test]
fn experts_of_deepseek_are_divided() {
    use Policy::*;
    let runs = [
        (OneFOneB, 1, 2, 2, Over::Threads),
        (OneFOneB, 1, 4, 4, Over::Threads),
        (OneFOneB, 1, 4, 4, Over::Tcp),
        (DualPipe, 2, 2, 2, Over::Threads),
    ];
    experts_over_ranks(DEEPSEEK, "num_hidden_layers=2", "deepseek-experts", &runs);
    if std::env::var("LODE_RANKS_LONG").is_ok() {
        let runs = [(OneFOneB, 1, 4, 2, Over::Tcp), (Zb1p, 2, 4, 4, Over::Threads), (DualPipeV, 2, 2, 2, Over::Tcp)];
        experts_over_ranks(DEEPSEEK, "num_hidden_layers=4", "deepseek-experts", &runs);
        experts_over_ranks(STRATA, "layers=4", "strata-experts", &runs);
        let runs = [(OneFOneB, 1, 2, 2, Over::Threads)];
        experts_over_ranks(DEEPSEEK, "num_hidden_layers=2 fp8_block=8", "deepseek-fp8-experts", &runs);
        experts_over_ranks(QWEN, "num_hidden_layers=2", "qwen-experts", &runs);
    }
}

/// No kernels.
struct Nothing;

impl device::Code for Nothing {
    fn kernel(&self, _: &str) -> Option<KernelFn> {
        None
    }
}

/// Stands for NCCL on the host's memory: a message has left when it is looked whether it has, and until then its memory has to stay as it was; flows and
/// sets are those that were told before.
struct Apart<'a> {
    staged: Staged<'a>,
    flows: Vec<(usize, usize)>,
    sets: Vec<Vec<usize>>,
    under_way: RefCell<Vec<(usize, Span, Vec<u8>)>>,
    looks: Cell<usize>,
    swapped: RefCell<BTreeMap<[u8; 4], usize>>,
    /// Rows of experts from two ranks to two others. # Units: bytes.
    crossed: Cell<usize>,
}

impl Apart<'_> {
    fn bytes(s: &Span) -> Vec<u8> {
        // SAFETY: the executor vouches for the memory.
        unsafe { std::slice::from_raw_parts(s.at, s.bytes) }.to_vec()
    }
    /// What was sent to these ranks has left.
    fn leave(&self, to: Option<usize>) {
        let (gone, stays) = self.under_way.take().into_iter().partition(|(peer, ..)| to.is_none_or(|to| to == *peer));
        self.under_way.replace(stays);
        let gone: Vec<(usize, Span, Vec<u8>)> = gone;
        gone.iter().for_each(|(_, s, bytes)| assert!(Self::bytes(s) == *bytes, "memory was used before it had left"));
    }
}

impl Direct for Apart<'_> {
    unsafe fn send_spans(&self, to: usize, tag: Tag, spans: &[Span]) -> Result<(), FabricError> {
        assert!(self.flows.contains(&(self.staged.fabric.rank(), to)), "no flow to {to}");
        self.under_way.borrow_mut().extend(spans.iter().map(|s| (to, *s, Self::bytes(s))));
        // SAFETY: as the caller says.
        unsafe { self.staged.send_spans(to, tag, spans) }
    }
    unsafe fn receive_spans(&self, from: usize, tag: Tag, spans: &[Span]) -> Result<(), FabricError> {
        assert!(self.flows.contains(&(from, self.staged.fabric.rank())), "no flow from {from}");
        // SAFETY: as above.
        unsafe { self.staged.receive_spans(from, tag, spans) }
    }
    fn is_sent(&self, to: usize) -> Result<bool, FabricError> {
        self.looks.set(self.looks.get() + 1);
        let sent = self.looks.get().is_multiple_of(3);
        if sent {
            self.leave(Some(to));
        }
        Ok(sent)
    }
    fn flush(&self) -> Result<(), FabricError> {
        self.leave(None);
        Ok(())
    }
    fn stop(&self, _why: &str) {}
    unsafe fn swap(
        &self,
        members: &[usize],
        tag: Tag,
        sends: &[(usize, Span)],
        receives: &[(usize, Span)],
    ) -> Result<(), FabricError> {
        assert!(self.sets.iter().any(|s| s == members), "no set {members:?}");
        let word = [0, 1, 2, 3].map(|i| tag.head[i]);
        *self.swapped.borrow_mut().entry(word).or_default() += sends.iter().map(|(_, s)| s.bytes).sum::<usize>();
        let across = |to: usize| word == *b"ROWS" && members[to] / 2 != self.staged.fabric.rank() / 2;
        self.crossed.set(self.crossed.get() + sends.iter().filter(|(to, _)| across(*to)).map(|(_, s)| s.bytes).sum::<usize>());
        // SAFETY: as above.
        unsafe { self.staged.swap(members, tag, sends, receives) }
    }
}

/// Trains from device to device, and loads the last checkpoint: also what went so by first word, and what of experts' rows went from a pair of ranks to
/// another. # Units: bytes.
fn run_direct(job: &Job) -> (Log, BTreeMap<String, Vec<f64>>, BTreeMap<[u8; 4], usize>, usize) {
    let one = |f: threads::Threads, report: &mut dyn Report| {
        let device = Arc::new(Device::Host(Host::new(Box::new(Nothing), [], Some(1)).expect("no kernels")));
        let staged = Staged { fabric: &f, device, checked: true };
        let apart = Apart {
            staged,
            flows: job.flows(),
            sets: job.sets(),
            under_way: RefCell::default(),
            looks: Cell::new(0),
            swapped: RefCell::default(),
            crossed: Cell::new(0),
        };
        ranks::train_rank(job, &f, Some(&apart), report).expect("it trains");
        assert!(apart.under_way.take().is_empty());
        (apart.swapped.take(), apart.crossed.get())
    };
    let mut log = Log::default();
    let mut world = threads::world(job.plan.num_ranks(), TIMEOUTS).into_iter();
    let first = world.next().expect("a rank");
    let (swapped, crossed) = std::thread::scope(|s| {
        let one = &one;
        let others: Vec<_> = world.map(|f| s.spawn(move || one(f, &mut Silent))).collect();
        let (mut swapped, mut crossed) = one(first, &mut log);
        for (words, bytes) in others.into_iter().map(|t| t.join().expect("no rank panics")) {
            words.into_iter().for_each(|(word, n)| *swapped.entry(word).or_default() += n);
            crossed += bytes;
        }
        (swapped, crossed)
    });
    let newest = exec::checkpoint::list(&job.options.out).first().cloned().expect("a checkpoint");
    let read = exec::checkpoint::read(&newest).expect("it reads");
    let all = read.iter().flat_map(|(path, bytes)| exec::checkpoint::parse(bytes, path).expect("it is whole"));
    let found = all.map(|(n, t)| (n, t.to_f64())).collect();
    let _ = std::fs::remove_dir_all(&job.options.out);
    (log, found, swapped, crossed)
}

/// What goes from device to device, as over NCCL, makes the same bits as what goes over the host: activations, gradients and their sums, rows of experts,
/// parameters, tied ones too.
#[test]
fn what_goes_from_device_to_device_is_the_same() {
    use Policy::*;
    let tied = "num_hidden_layers=4 tie_word_embeddings=true";
    let cases = [
        (LLAMA, tied, OneFOneB, 2, 2, 1, true),
        (LLAMA, tied, Zbv, 2, 1, 1, true),
        (DEEPSEEK, "num_hidden_layers=2", DualPipe, 2, 2, 2, true),
        (DEEPSEEK, "num_hidden_layers=2", OneFOneB, 1, 4, 4, false),
        // Pairs of stages with one and with two layers of experts, either way, and of two with two.
        (DEEPSEEK, "num_hidden_layers=4", DualPipe, 2, 2, 2, true),
        (QWEN, "num_hidden_layers=4", DualPipeV, 1, 2, 2, false),
    ];
    for (model, more, policy, ranks, copies, experts, sharded) in cases {
        let micro = 2 * ranks * copies;
        let plan = plan(policy, ranks, micro / copies, copies);
        let stages = compile_for(model, more, None, (plan.num_stages(), experts));
        let what = format!("{} {} on {ranks} ranks, {copies} copies, experts over {experts}", model.0, policy.name());
        let o = options(folder(&format!("{what}-host").replace([' ', ','], "-")), micro, 2);
        let (want, tensors) = run_as(&stages, &plan, Over::Threads, &o, sharded).expect("it trains");
        let _ = std::fs::remove_dir_all(&o.out);
        let o = options(folder(&what.replace([' ', ','], "-")), micro, 2);
        let text = text();
        let (log, found, swapped, _) = run_direct(&Job { sharded, ..job(&stages, &plan, &text, &o) });
        assert_eq!((&log.losses, &log.norms, &log.val), (&want.losses, &want.norms, &want.val), "{what}");
        assert!(found == tensors, "{what}");
        // Each of these went so, where there is something of it: both ends of a V are on one rank.
        let dirs = plan.placement.num_dirs();
        for (word, expected) in [
            (b"SUMS", dirs > 1),
            (b"NEXT", dirs > 1 && sharded),
            (b"TIED", more == tied && policy != Zbv),
            (b"ROWS", experts > 1),
        ] {
            assert_eq!(swapped.get(word).is_some_and(|n| *n > 0), expected, "{what}: {swapped:?}");
        }
        // One after the other over the host, as one list from device to device, where both stages of a pair have experts.
        let listed = experts > 1 && more == "num_hidden_layers=4";
        assert_eq!((log.paired, want.paired), (listed, false), "{what}");
        let (sent, looked) =
            (log.sent.map(|t| (t.plain, t.across, t.crossed)), want.sent.map(|t| (t.plain, t.across, t.crossed)));
        assert_eq!(sent, looked, "{what}");
    }
}

/// From device to device, too, a row that several experts of a node read crosses to it once: of two nodes of two ranks, of four of one, and of a group whose
/// members are one a node, the bits are those of one node, and fewer bytes cross.
#[test]
fn rows_from_device_to_device_cross_to_a_node_once() {
    use Policy::*;
    let cases = [
        (DEEPSEEK, "num_hidden_layers=2", OneFOneB, 1, 4, &[2, 1][..]),
        (STRATA, "layers=2", OneFOneB, 1, 4, &[2]),
        (DEEPSEEK, "num_hidden_layers=4", DualPipe, 2, 2, &[2]),
    ];
    for (model, more, policy, ranks, copies, nodes) in cases {
        let micro = 2 * ranks * copies;
        let plan = plan(policy, ranks, micro / copies, copies);
        let stages = compile_for(model, more, None, (plan.num_stages(), copies));
        let text = text();
        let of = |each: usize| {
            let o = options(folder(&format!("once-{}-{ranks}-{each}", model.0)), micro, 2);
            run_direct(&Job { nodes: Nodes::Each(each), ..job(&stages, &plan, &text, &o) })
        };
        let (want, tensors, _, plain) = of(4);
        for &each in nodes {
            let what = format!("{} on {ranks} ranks, {each} a node", model.0);
            let (log, found, _, crossed) = of(each);
            assert_eq!(
                (&log.losses, &log.norms, &log.val, log.paired),
                (&want.losses, &want.norms, &want.val, want.paired),
                "{what}"
            );
            assert!(found == tensors, "{what}");
            println!("{what}: {crossed} bytes in place of {plain}, {:?}", log.sent);
            assert!(0 < crossed && crossed < plain, "{what}: {crossed} of {plain}");
            let sent = log.sent.expect("ranks divide experts");
            assert!(sent.crossed < sent.across, "{what}: {sent:?}");
        }
    }
}

#[test]
fn a_run_goes_on_with_other_ranks() {
    let out = folder("resume");
    let micro = 8;
    let straight = options(folder("resume-straight"), micro, 4);
    let two = compile(STRATA, "layers=4", None, 2);
    let (want, tensors) = run(&two, &plan(Policy::OneFOneB, 2, micro, 1), Over::Threads, &straight).expect("it trains");
    // Two steps on 4 ranks, a third on 2, the last on one; each stops where its steps end, but the learning rate is that of the whole.
    let four = compile(STRATA, "layers=4", None, 4);
    let one = compile(STRATA, "layers=4", None, 1);
    let parts = [(&four, 4, Policy::Zb1p, 2), (&two, 2, Policy::OneFOneB, 3), (&one, 1, Policy::OneFOneB, 4)];
    let mut losses = Vec::new();
    let mut last = BTreeMap::new();
    for (stages, ranks, policy, until) in parts {
        let o = train::Options { resume: until > 2, steps: 4, save_every: 1, ..options(out.clone(), micro, 4) };
        let mut log = Until { log: Log::default(), until };
        let text = text();
        let plan = plan(policy, ranks, micro, 1);
        ranks::train_here(&job(stages, &plan, &text, &o), Engine::Threads, TIMEOUTS, &mut log).expect("it trains");
        losses.extend(log.log.losses);
        let newest = exec::checkpoint::list(&out).first().cloned().expect("a checkpoint");
        for (path, bytes) in exec::checkpoint::read(&newest).expect("it reads") {
            last.extend(exec::checkpoint::parse(&bytes, &path).expect("it is whole").into_iter().map(|(n, t)| (n, t.to_f64())));
        }
    }
    assert_eq!(losses, want.losses);
    assert_eq!(last, tensors);
    let _ = (std::fs::remove_dir_all(&out), std::fs::remove_dir_all(&straight.out));
}

/// Whatever group made a checkpoint, the next step has the same losses with 2, 4 and no ranks that divide experts.
#[test]
fn a_run_goes_on_with_another_group_of_experts() {
    let (out, copy) = (folder("resume-experts"), folder("resume-experts-next"));
    let micro = 4;
    let groups = [2, 4, 1].map(|experts| (experts, compile_for(DEEPSEEK, "num_hidden_layers=2", None, (1, experts))));
    let run = |(replicas, stages): &(usize, Stages), out: &Path, resume: bool, until: u64| {
        let (plan, text) = (plan(Policy::OneFOneB, 1, micro / replicas, *replicas), text());
        let o = train::Options { resume, steps: 5, save_every: 1, ..options(out.to_path_buf(), micro, 5) };
        let mut log = Until { log: Log::default(), until };
        ranks::train_here(&job(stages, &plan, &text, &o), Engine::Threads, TIMEOUTS, &mut log).expect("it trains");
        log.log.losses
    };
    let mut names: Option<Vec<String>> = None;
    for (i, group) in groups.iter().enumerate() {
        let until = 2 + i as u64;
        run(group, &out, i > 0, until);
        let next = |group| {
            copy_folder(&out, &copy);
            let losses = run(group, &copy, true, until + 1);
            let _ = std::fs::remove_dir_all(&copy);
            losses
        };
        let want = next(group);
        assert_eq!(want.len(), 1);
        groups.iter().for_each(|other| assert_eq!(next(other), want, "from {} to {}", group.0, other.0));
        // Each tensor once, under one name.
        let newest = exec::checkpoint::list(&out).first().cloned().expect("a checkpoint");
        let read = exec::checkpoint::read(&newest).expect("it reads");
        let all = read.iter().flat_map(|(path, bytes)| exec::checkpoint::parse(bytes, path).expect("it is whole"));
        let mut found: Vec<String> = all.map(|(n, _)| n).collect();
        found.sort();
        assert!(found.windows(2).all(|w| w[0] != w[1]), "{found:?}");
        assert_eq!(*names.get_or_insert(found.clone()), found);
    }
    let _ = std::fs::remove_dir_all(&out);
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder can be made");
    for file in std::fs::read_dir(from).expect("it is there").flatten() {
        let (from, to) = (file.path(), to.join(file.file_name()));
        if from.is_dir() { copy_folder(&from, &to) } else { _ = std::fs::copy(&from, &to).expect("it can be copied") }
    }
}

/// Stops after a step.
struct Until {
    log: Log,
    until: u64,
}

impl Report for Until {
    fn start(&mut self, peak: &Peak, first: u64, steps: u64) {
        self.log.start(peak, first, steps);
    }
    fn step(&mut self, f: &Figures) {
        self.until = if f.step >= self.until { 0 } else { self.until };
        self.log.step(f);
    }
    fn micro_losses(&mut self, losses: &[f64]) {
        self.log.micro_losses(losses);
    }
    fn warn(&mut self, text: String) {
        panic!("{text}");
    }
    fn stop(&mut self) -> bool {
        self.until == 0
    }
}
