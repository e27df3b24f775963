//! Shape buckets: where the best program depends on how many queries meet how many keys, both are kept, and the run-time picks by its dims.
//!
//! Such a function has an `attend` whose queries are counted by a run-time dim of their own, apart from those that count its keys: a few new tokens
//! against a cache, or many. It is optimised for both; if the programs differ, that for few becomes a variant (see [`tile::lower::variant_of`]),
//! up to the greatest power of two at which the cost model prefers it.

use crate::pipeline::Options;
use base::{Dim, DimEnv};
use graph::{Func, Module, Op};
use std::{collections::BTreeSet, sync::Arc};
use tile::cost::Model;

/// What keys, and many queries, are taken to be: the context at which decoding is compared. # Source: DeepSeek-V3's training context.
const MANY: i64 = 4096;
/// A variant has to gain this share of the cost at one query.
const GAIN: f64 = 0.1;

/// Optimises every function, those of two buckets for both.
pub fn optimize(module: &Module, options: &Options) -> (Module, Vec<egraph::Report>) {
    run(module, options, false)
}

/// The same with proofs and alternatives in the reports, which takes longer.
pub fn optimize_explained(module: &Module, options: &Options) -> (Module, Vec<egraph::Report>) {
    run(module, options, true)
}

fn run(module: &Module, options: &Options, explain: bool) -> (Module, Vec<egraph::Report>) {
    let tuning = options.tuning();
    let model = Model::new(&tuning);
    let at = |module: &Module, sizes: &DimEnv| {
        let cost = |op: &Op, x: &[&base::TensorType], y: &[base::TensorType]| model.op_cost(sizes, op, x, y);
        egraph::optimize(module, &cost, &egraph::Options { sizes: sizes.clone(), explain, ..egraph::Options::default() })
    };
    let mut out = Module { funcs: Vec::new(), ..module.clone() };
    let mut reports = Vec::new();
    let (mut variants, mut of_variants) = (Vec::new(), Vec::new());
    for func in &module.funcs {
        let alone = Module { funcs: vec![func.clone()], ..out.clone() };
        let Some((queries, keys)) = few_queries(func) else {
            let (done, found) = at(&alone, &options.sizes());
            out.funcs.extend(done.funcs);
            reports.extend(found);
            continue;
        };
        let sizes = |n: i64| -> DimEnv { keys.iter().map(|k| (k.clone(), MANY)).chain([(queries.clone(), n)]).collect() };
        let ((many, found), (few, of_few)) = (at(&alone, &sizes(MANY)), at(&alone, &sizes(1)));
        let cost = |f: &Func, n: i64| {
            let sizes = sizes(n);
            egraph::program_cost(f, &|op, x, y| model.op_cost(&sizes, op, x, y))
        };
        let (many, few) = (&many.funcs[0], &few.funcs[0]);
        reports.extend(found);
        out.funcs.push(many.clone());
        if cost(few, 1) < (1.0 - GAIN) * cost(many, 1) {
            let better = (0..).map(|k| 1i64 << k).take_while(|n| *n <= MANY && cost(few, *n) <= cost(many, *n));
            let name = format!("{}@{queries}<={}", func.name, better.last().unwrap_or(1));
            variants.push(Func { name: name.clone(), ..few.clone() });
            of_variants.extend(of_few.into_iter().map(|r| egraph::Report { func: r.func.replacen(&func.name, &name, 1), ..r }));
        }
    }
    out.funcs.extend(variants);
    reports.extend(of_variants);
    (out, reports)
}

/// The dim that counts the queries of some attention, and those that count its keys besides.
fn few_queries(func: &Func) -> Option<(Arc<str>, Vec<Arc<str>>)> {
    let of_node = |n: &graph::Node| match &n.op {
        Op::Attend(_) => {
            let (t, s) = (&func.ty(n.inputs[0]).shape[1], &func.ty(n.inputs[1]).shape[1]);
            let mut all = [BTreeSet::new(), BTreeSet::new()];
            t.symbols(&mut all[0]);
            s.symbols(&mut all[1]);
            let queries = all[0].iter().next().filter(|d| *t == Dim::sym(d))?.clone();
            let keys: Vec<Arc<str>> = all[1].iter().filter(|d| **d != queries).cloned().collect();
            (!keys.is_empty()).then_some((queries, keys))
        }
        op => op.body().and_then(few_queries),
    };
    func.nodes.values().find_map(of_node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::{self, lower, middle};

    const LATENT: &str = "use std.mla.mla_cached\ndims B, T, S\nmodel m(x: [B, T, 64], latents: [B, S, 32], ropes: [B, S, 8]) -> [B, T, 64] {\n  let (y, unused, none) = mla_cached(x, latents, ropes, heads: 16, q_rank: 0, kv_rank: 32, nope: 16, rope_dim: 8, v_dim: 16)\n  y\n}\n";

    fn funcs(text: &str, options: &Options) -> Vec<String> {
        let front = pipeline::front("m.lode", text, &mut |_| None, options);
        let mistakes: Vec<String> = front.diagnostics.iter().map(|d| d.error.to_string()).collect();
        let program = front.program.as_ref().unwrap_or_else(|| panic!("{mistakes:?}"));
        let (module, reports) = middle(program, options).unwrap_or_else(|e| panic!("{e:?}"));
        assert!(reports.iter().all(|r| r.cost.1 <= r.cost.0), "{reports:?}");
        let lowered = lower(&module, options).unwrap_or_else(|e| panic!("{e:?}"));
        let variants = lowered.entries.iter().filter(|e| e.is_variant()).count();
        assert_eq!(variants, module.funcs.iter().filter(|f| f.name.contains('@')).count());
        module.funcs.iter().map(|f| f.name.clone()).collect()
    }

    #[test]
    fn few_queries_against_a_cache_are_a_variant() {
        let names = funcs(LATENT, &Options::default());
        assert!(names.len() == 2 && names[0] == "forward" && names[1].starts_with("forward@T<="), "{names:?}");
        let plain = "use std.mla\ndims B, T\nmodel m(x: [B, T, 64]) -> [B, T, 64] {\n  mla(x, heads: 16, q_rank: 0, kv_rank: 32, nope: 16, rope_dim: 8, v_dim: 16)\n}\n";
        assert_eq!(funcs(plain, &Options::default()), ["forward"]);
        assert_eq!(funcs(LATENT, &Options { no_optimize: true, ..Options::default() }), ["forward"]);
    }
}
