//! A stage's forward and backward as one list over two streams: whatever the streams do within what waits allow, the bits are those of the
//! entries one after the other.

use base::DimEnv;
use device::{Placed, Streams};
use driver::{
    commands::common::session,
    pipeline::{self, Options},
    stages::{self, Failed},
};
use exec::{HostTensor, Pair, Session, pair::Half, random::Stream};
use hir::Overrides;
use library::{Library, Role};
use std::{collections::BTreeMap, path::Path};

/// The second of three stages of a model, in a group of `members`.
fn stage_of(model: (&str, &str, &str), members: Option<usize>) -> Session {
    let library = built(model, members, false);
    let manifest = library.manifest.clone();
    let mut session = session(library, Some(1)).expect("it loads");
    session.fixed = true;
    session.store.initialise(&manifest, 5).expect("there is memory");
    session
}

fn built((file, set, layout): (&str, &str, &str), members: Option<usize>, gpu: bool) -> Library {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
    let text = std::fs::read_to_string(path).expect("it is part of the source");
    let set = set.split_whitespace().filter_map(|s| s.split_once('=')).map(|(n, v)| (n.to_string(), v.to_string())).collect();
    let options = Options { overrides: Overrides { set, ..Overrides::default() }, gpu, ..Options::default() };
    let front = pipeline::front("model.lode", &text, &mut |_| None, &options);
    let program = front.program.as_ref().expect("the model is right");
    let built = stages::build(program, &front.sources, Some(layout), (3, members), &options);
    let built = built.unwrap_or_else(|e| match e {
        Failed::Cut(e) => panic!("{e}"),
        Failed::Back(e) => panic!("{e:?}"),
    });
    built.into_iter().nth(1).expect("three stages").library
}

fn stage(model: (&str, &str, &str)) -> Session {
    stage_of(model, Some(1))
}

const QWEN: (&str, &str, &str) = (
    "models/qwen3_moe/model.lode",
    "vocab_size=64 hidden_size=32 moe_intermediate_size=16 num_attention_heads=2 num_key_value_heads=1 head_dim=16 num_experts=4 \
     num_experts_per_tok=2 num_hidden_layers=3",
    "E|ttt|L",
);
/// With a layer without experts, a shared expert, and a bias of the gate that a tally changes.
const DEEPSEEK: (&str, &str, &str) = (
    "models/deepseek_v3/model.lode",
    "vocab_size=64 hidden_size=32 intermediate_size=32 moe_intermediate_size=16 num_attention_heads=2 q_lora_rank=16 kv_lora_rank=16 \
     qk_nope_head_dim=8 qk_rope_head_dim=8 v_head_dim=8 n_routed_experts=8 num_experts_per_tok=2 n_group=4 topk_group=2 \
     initializer_range=0.05 first_k_dense_replace=1 num_hidden_layers=4",
    "E|tttt|L",
);

fn dims() -> DimEnv {
    [("B".into(), 2), ("T".into(), 12)].into_iter().collect()
}

fn tensor(s: &Session, entry: &str, name: &str, seed: u64) -> HostTensor {
    let port = s.entry(entry).expect("it is there").args.iter().find(|p| p.name == name).expect("it takes it").clone();
    let shape: Vec<i64> = port.shape.iter().map(|d| d.eval(&dims()).expect("known")).collect();
    let stream = Stream::new(seed, name);
    let n = shape.iter().product::<i64>() as u64;
    HostTensor::from_f64(port.dtype, &shape, (0..n).map(|i| stream.normal(i)).collect::<Vec<f64>>())
}

fn gradients(s: &mut Session) -> BTreeMap<String, Vec<u8>> {
    s.store.of_role(Role::Grad).map(|(n, slot)| (n.to_string(), slot.memory.bytes().to_vec())).collect()
}

/// What a pair makes, by name.
type Made = BTreeMap<String, Vec<u8>>;

/// The entries one after the other, each by its session's own plan.
fn apart(s: &mut Session) -> Made {
    let (dims, mut made) = (dims(), Made::new());
    let [a, b] = [3, 1].map(|seed| tensor(s, "forward", "in.0", seed));
    let forward = s.run("forward", &dims, &[("in.0", &a)]).expect("it runs");
    made.extend(forward.into_iter().map(|(n, t)| (n, t.bytes)));
    let mut pool: BTreeMap<String, HostTensor> = s.run("forward", &dims, &[("in.0", &b)]).expect("it runs").into_iter().collect();
    pool.insert("in.0".into(), b);
    pool.insert("d_out.0".into(), tensor(s, "backward_input", "d_out.0", 2));
    s.store.zero(Role::Grad);
    for entry in ["backward_input", "backward_weight"] {
        let args: Vec<String> = s.entry(entry).expect("it is there").args.iter().map(|p| p.name.clone()).collect();
        let given: Vec<(&str, &HostTensor)> = args.iter().filter_map(|n| Some((n.as_str(), pool.get(n)?))).collect();
        let results = s.run(entry, &dims, &given).expect("it runs");
        pool.extend(results);
    }
    made.insert("d_in.0".into(), pool["d_in.0"].bytes.clone());
    made.extend(gradients(s));
    made
}

/// The pair, with its memory set.
fn prepared<'s>(s: &'s mut Session, streams: &Streams) -> Pair<'s> {
    let [a, b] = [3, 1].map(|seed| tensor(s, "forward", "in.0", seed));
    let d = tensor(s, "backward_input", "d_out.0", 2);
    let mut pair = s.pair(&dims()).expect("it is a stage with exchanges");
    pair.set(Half::Forward, "in.0", &b).expect("it fits");
    pair.forward(streams).expect("it runs");
    pair.hand_over().expect("it is copied");
    pair.set(Half::Forward, "in.0", &a).expect("it fits");
    pair.set(Half::Backward, "d_out.0", &d).expect("it fits");
    pair
}

fn run(pair: &mut Pair, list: &[Placed], streams: &Streams) -> Made {
    pair.poison();
    pair.session().store.zero(Role::Grad);
    pair.run(list, streams, false).expect("it runs");
    let mut made = Made::new();
    for (half, prefix) in [(Half::Forward, "out."), (Half::Forward, "saved."), (Half::Backward, "d_in.")] {
        for p in pair.ports(half, prefix) {
            made.insert(p.name.clone(), pair.get(half, &p.name).expect("it is there").bytes);
        }
    }
    made.extend(gradients(pair.session()));
    made
}

/// An order that two streams may run a list in: each stream in order, after what it waits for. `choose` says whether communication goes first.
fn played(list: &[Placed], waits: bool, mut choose: impl FnMut() -> bool) -> Vec<Placed> {
    let mut queues =
        [false, true].map(|c| (0..list.len()).filter(|i| list[*i].communicates == c).collect::<std::collections::VecDeque<_>>());
    let mut done = vec![false; list.len()];
    let mut out = Vec::new();
    while out.len() < list.len() {
        let ready = queues.each_ref().map(|q| q.front().is_some_and(|i| !waits || list[*i].waits.iter().all(|w| done[*w])));
        let first = choose();
        let stream = [usize::from(first), usize::from(!first)].into_iter().find(|s| ready[*s]).expect("waits point backwards");
        let i = queues[stream].pop_front().expect("it is ready");
        done[i] = true;
        out.push(list[i].clone());
    }
    out
}

fn compare(model: (&str, &str, &str)) {
    let mut s = stage(model);
    let want = apart(&mut s);
    let streams = Streams::Host;
    let mut pair = prepared(&mut s, &streams);
    let (in_turn, list) = (pair.in_turn(), pair.interleaved().expect("it is legal"));
    let mut differs = |what: &str, order: &[Placed]| {
        let got = run(&mut pair, order, &streams);
        assert!(got.keys().eq(want.keys()), "{what}");
        want.iter().find(|(n, bytes)| got[*n] != **bytes).map(|(n, _)| n.clone())
    };
    assert_eq!(differs("in turn", &in_turn), None);
    assert_eq!(differs("as listed", &list), None);
    assert_eq!(differs("communication as early as it may be", &played(&list, true, || true)), None);
    assert_eq!(differs("communication as late as it may be", &played(&list, true, || false)), None);
    for seed in 0..8 {
        let (stream, mut i) = (Stream::new(seed, "order"), 0);
        let choose = || (i += 1, stream.uniform(i) < 0.5).1;
        assert_eq!(differs("by chance", &played(&list, true, choose)), None, "{seed}");
    }
    // The waits are needed: without them the streams may run so that bits differ.
    assert!(differs("without waits", &played(&list, false, || true)).is_some());
    assert!(differs("without waits", &played(&list, false, || false)).is_some());
}

#[test]
fn a_pair_of_qwen_has_the_bits_of_its_entries() {
    compare(QWEN);
}

#[test]
fn a_pair_of_deepseek_has_the_bits_of_its_entries() {
    compare(DEEPSEEK);
}

/// The list, equal neighbours counted.
#[test]
fn a_pair_goes_by_the_slots_of_its_source() {
    let (file, set, layout) = QWEN;
    let set = set.replace("num_hidden_layers=3", "num_hidden_layers=2");
    let mut s = stage((file, &set, &layout.replace("ttt", "tt")));
    let pair = s.pair(&dims()).expect("it is a stage with exchanges");
    let list = pair.interleaved().expect("it is legal");
    let mut rows: Vec<(String, usize, Vec<String>)> = Vec::new();
    let part = |p: &Placed| pair.name(p).split(':').next().unwrap_or_default().to_string();
    for p in &list {
        let stream = if p.communicates { "communication" } else { "compute" };
        let name = format!("{stream:<13} {}", part(p));
        let waits = p.waits.iter().map(|w| part(&list[*w]));
        match rows.last_mut().filter(|r| r.0 == name) {
            Some(row) => (row.1, _) = (row.1 + 1, row.2.extend(waits)),
            None => rows.push((name, 1, waits.collect())),
        }
    }
    let line = |(name, n, waits): &(String, usize, Vec<String>)| {
        let waits = if waits.is_empty() { String::new() } else { format!("after {}", waits.join(", ")) };
        format!("{name:<28} {n:>3} {waits}").trim_end().to_string()
    };
    insta::assert_snapshot!(rows.iter().map(line).collect::<Vec<_>>().join("\n"));
}

/// The list of the bench's stage for a GPU, at its sizes: made without a device.
#[test]
fn the_bench_has_a_list() {
    let library = built(("tests/benches/pair.lode", "layers=2", "E|tt|L"), Some(1), true);
    let dims: DimEnv = [("B".into(), 1), ("T".into(), 8192)].into_iter().collect();
    let list = exec::pair::listed(&library.manifest, &dims).expect("it is legal");
    insta::assert_snapshot!(list.iter().map(|(name, n)| format!("{name:<14} {n:>3}")).collect::<Vec<_>>().join("\n"));
}

#[test]
fn a_stage_without_exchanges_is_no_pair() {
    let mut s = stage_of(QWEN, None);
    let refused = s.pair(&dims()).err().expect("it has no exchanges").to_string();
    assert!(refused.contains("--expert-parallel 1"), "{refused}");
}
