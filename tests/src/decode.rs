//! Attention over a cache of latents gives what attention over all tokens gives, for few new tokens and for many: both variants of its entry.

use base::{DType, DimEnv};
use driver::{
    commands::common,
    pipeline::{self, Options},
};
use exec::{HostTensor, Session, random::Stream};

const SIZES: &str = "heads: 16, q_rank: 0, kv_rank: 32, nope: 16, rope_dim: 8, v_dim: 16";
const D: i64 = 48;

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
