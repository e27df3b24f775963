//! Attention over a cache gives what attention over all tokens gives: of latents, for few new tokens and for many, which are both variants of its entry; and sparse
//! attention of one new token.

use base::{DType, DimEnv};
use driver::{
    commands::common,
    pipeline::{self, Options},
};
use exec::{HostTensor, Session, random::Stream};
use tile::{LoopKind, Stmt};

const SIZES: &str = "heads: 16, q_rank: 0, kv_rank: 32, nope: 16, rope_dim: 8, v_dim: 16";
const D: i64 = 48;

/// A program as entries and kernels.
fn lowered(text: &str, options: &Options) -> tile::Lowered {
    let front = pipeline::front("m.lode", text, &mut |_| None, options);
    let (module, _) = pipeline::middle(front.program.as_ref().expect("it checks"), options).expect("it optimises");
    pipeline::lower(&module, options).expect("it lowers")
}

fn session(text: &str) -> Session {
    let options = Options::default();
    let front = pipeline::front("m.lode", text, &mut |_| None, &options);
    let told: Vec<String> = front.diagnostics.iter().map(|d| d.error.to_string()).collect();
    let program = front.program.as_ref().unwrap_or_else(|| panic!("{told:?}"));
    let (module, _) = pipeline::middle(program, &options).expect("it optimises");
    let lowered = pipeline::lower(&module, &options).expect("it lowers");
    let library = pipeline::library(program, &module, &lowered, &front.sources, &options).expect("it compiles");
    let mut session = common::session(library, Some(2)).expect("it links");
    let manifest = session.manifest.clone();
    session.store.initialise(&manifest, 7).expect("it fits");
    session
}

fn dims(t: i64, s: i64) -> DimEnv {
    [("B".into(), 2), ("T".into(), t), ("S".into(), s)].into_iter().collect()
}

/// Rows `from..to` of each batch of `[2, n, width]`, and columns `left..right`.
fn part(x: &HostTensor, (from, to): (i64, i64), (left, right): (i64, i64)) -> HostTensor {
    let (n, width, data) = (x.shape[1], x.shape[2], x.to_f64());
    let at = |b: i64, t: i64, c: i64| data[((b * n + t) * width + c) as usize];
    let all = (0..2).flat_map(|b| (from..to).flat_map(move |t| (left..right).map(move |c| (b, t, c))));
    let picked: Vec<f64> = all.map(|(b, t, c)| at(b, t, c)).collect();
    HostTensor::from_f64(DType::F32, &[2, to - from, right - left], picked)
}

#[test]
fn a_cache_gives_what_all_tokens_give_in_both_buckets() {
    let whole = format!("use std.mla\ndims B, T\nmodel m(x: [B, T, {D}]) -> [B, T, {D}] {{ mla(x, {SIZES}) as _ }}\n");
    let cache = format!(
        "use std.rmsnorm\nuse std.rope.rope_interleaved\ndims B, T\nmodel m(x: [B, T, {D}]) -> [B, T, 40] {{
  let (latent, k) = split(x @ (param kv_a_proj_with_mqa.weight: [40, {D}] = normal(0.02))^T, [32, 8])
  let latent = rmsnorm(latent, eps: 1e-6) as kv_a_layernorm
  concat(latent, rearrange(rope_interleaved(k[:, :, new, :]), \"b t 1 k -> b t k\"))
}}\n"
    );
    let decode = format!(
        "use std.mla.mla_cached\ndims B, T, S\nmodel m(x: [B, T, {D}], latents: [B, S, 32], ropes: [B, S, 8]) -> [B, T, {D}] {{
  let (y, latent, new_rope) = mla_cached(x, latents, ropes, {SIZES}) as _
  y
}}\n"
    );
    let (mut whole, mut cache, mut decode) = (session(&whole), session(&cache), session(&decode));
    let few = decode.manifest.entries.iter().find(|e| e.is_variant()).expect("few queries have a variant").clone();
    let limit = (1..).find(|t| !few.runs_at(&dims(*t, 4))).expect("it has a limit") - 1;
    assert!((1..200).contains(&limit), "a limit of {limit} tokens");
    for (new, old) in [(1, 9), (limit.min(3), 6), (limit, 5), (limit + 1, 4)] {
        let n = new + old;
        let stream = Stream::new(3, "x");
        let x = HostTensor::from_f64(DType::F32, &[2, n, D], (0..2 * n * D).map(|i| stream.normal(i as u64)));
        let want = whole.run("forward", &dims(n, 1), &[("x", &x)]).expect("it runs");
        let rows = cache.run("forward", &dims(n, 1), &[("x", &x)]).expect("it runs");
        let (latents, ropes) = (part(&rows[0].1, (0, old), (0, 32)), part(&rows[0].1, (0, old), (32, 40)));
        let last = part(&x, (old, n), (0, D));
        let at = dims(new, old);
        assert_eq!(decode.variant("forward", &at).expect("it is there").is_variant(), new <= limit);
        let got = decode.run("forward", &at, &[("x", &last), ("latents", &latents), ("ropes", &ropes)]).expect("it runs");
        let want = part(&want[0].1, (old, n), (0, D)).to_f64();
        let scale = want.iter().fold(1e-6f64, |m, x| m.max(x.abs()));
        let worst = got[0].1.to_f64().iter().zip(&want).fold(0.0f64, |m, (x, y)| m.max((x - y).abs() / scale));
        // As for whole models: f32 sums of a few hundred terms.
        assert!(worst < 2e-4, "{new} after {old}: {worst:.1e} of {scale:.1e}");
    }
}

/// Whether the threads of a block go together through a loop that stores.
fn stores_in_turn(stmts: &[Stmt]) -> bool {
    stmts.iter().any(|s| match s {
        Stmt::For { kind: LoopKind::Serial, body, .. } => {
            body.iter().any(|s| matches!(s, Stmt::Store { .. })) || stores_in_turn(body)
        }
        Stmt::For { .. } => false,
        _ => s.lists().into_iter().any(stores_in_turn),
    })
}

#[test]
fn a_step_of_sparse_attention_gives_the_last_row() {
    const SIZES: &str = "length: 8, stride: 4, size: 32, count: 3, window: 64";
    let whole = format!(
        "use std.nsa\ndims B, T\nmodel m(q: [B, T, 4, 16], k: [B, T, 2, 16], v: [B, T, 2, 16], gate: [B, T, 4, 3]) -> [B, T, 4, 16] {{
  nsa(q, k, v, gate, {SIZES})
}}\n"
    );
    let compressed = "use std.nsa.compress\ndims B, T\nmodel m(k: [B, T, 2, 16]) -> [B, max(0, (T - 4) / 4), 2, 16] {
  compress(k, 8, 4)
}\n";
    let step = format!(
        "use std.nsa.nsa_cached\ndims B, S\nmodel m(q: [B, 1, 4, 16], k: [B, S, 2, 16], v: [B, S, 2, 16],
  kc: [B, max(0, (S - 4) / 4), 2, 16], vc: [B, max(0, (S - 4) / 4), 2, 16], gate: [B, 1, 4, 3]) -> [B, 1, 4, 16] {{
  nsa_cached(q, k, v, kc, vc, gate, {SIZES})
}}\n"
    );
    let many = lowered(&step, &Options { gpu: true, ..Options::default() });
    // Scores are those of the attention; two branches are one launch, and all three are joined by one.
    let names: Vec<&str> = many.kernels.iter().filter_map(|k| Some(k.name.strip_prefix("host_")?.rsplit_once('_')?.0)).collect();
    assert_eq!(names, ["attend_part", "choice", "topk_join", "attend_part", "attend_merge"]);
    // A thread has a key: no loop of the block stores element after element.
    let choice = many.kernels.iter().find(|k| k.name.starts_with("host_choice")).expect("one is");
    assert!(!stores_in_turn(&choice.body), "{}", tile::text::print(std::slice::from_ref(choice)));
    let (mut whole, mut compressed, mut step) = (session(&whole), session(compressed), session(&step));
    for n in [1, 5, 8, 11, 12, 130, 257] {
        let tensor = |name: &str, shape: [i64; 3], scale: f64| {
            let stream = Stream::new(n as u64, name);
            let count = shape.iter().product::<i64>() * 2;
            let all = (0..count).map(|i| scale * stream.normal(i as u64));
            HostTensor::from_f64(DType::F32, &[2, shape[0], shape[1], shape[2]], all)
        };
        let [q, k, v] = [("q", 4), ("k", 2), ("v", 2)].map(|(name, heads)| tensor(name, [n, heads, 16], 1.0));
        let gate = tensor("gate", [n, 4, 3], 0.5);
        let last = |x: &HostTensor| {
            let flat = HostTensor { shape: vec![2, n, x.shape[2] * x.shape[3]], ..x.clone() };
            let row = part(&flat, (n - 1, n), (0, flat.shape[2]));
            HostTensor { shape: vec![2, 1, x.shape[2], x.shape[3]], ..row }
        };
        let at = dims(n, n);
        let want = whole.run("forward", &at, &[("q", &q), ("k", &k), ("v", &v), ("gate", &gate)]).expect("it runs");
        let [kc, vc] = [&k, &v].map(|x| compressed.run("forward", &at, &[("k", x)]).expect("it runs").remove(0).1);
        let inputs = [("q", &last(&q)), ("k", &k), ("v", &v), ("kc", &kc), ("vc", &vc), ("gate", &last(&gate))];
        let got = step.run("forward", &at, &inputs).expect("it runs");
        let want = last(&want[0].1).to_f64();
        let scale = want.iter().fold(1e-6f64, |m, x| m.max(x.abs()));
        let apart = |got: &[f64]| got.iter().zip(&want).fold(0.0f64, |m, (x, y)| m.max((x - y).abs() / scale));
        let given: Vec<Vec<f64>> = inputs.iter().map(|(_, x)| x.to_f64()).collect();
        let by_many = tile::simulate::simulate(&many, &many.entries[0], &given, &at).expect("it runs");
        for worst in [apart(&got[0].1.to_f64()), apart(&by_many[0])] {
            assert!(worst < 2e-4, "after {n}: {worst:.1e} of {scale:.1e}");
        }
    }
}
