//! Ways of evaluating one graph held against each other: what tests of random programs and `lode reduce` ask.
//!
//! The reference is the interpreter in f64 with [`bounds`] on what rounding can change; two results agree if each is within the other's
//! bounds. Every question has three answers: they agree, they differ, or the graph is beyond what can be asked (a target's stated limit,
//! dims for which a slice leaves its axis).

use crate::{commands::common, pipeline};
use base::{DType, DimEnv, Sources, TensorType};
use exec::HostTensor;
use graph::{
    Func, Module, Op, Role,
    autodiff::{self, AutodiffError, Remat, Seed},
    build::Builder,
    interp::{
        self, Tensor,
        bounds::{Bounded, Roundoff, bounds},
    },
    op::MapFn,
    passes,
    random::{self, Random},
};
use hir::Program;
use library::Library;
use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
};
use tile::{Tuning, cost::Model};

/// A module with what to run it on.
#[derive(Clone, Debug)]
pub struct Case {
    /// The functions to compare.
    pub module: Module,
    /// The run-time dims.
    pub dims: DimEnv,
    /// What the arguments are made from.
    pub seed: u64,
}

/// Why a comparison does not end in agreement.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Verdict {
    /// A mistake: two ways disagree, one crashes, or what came out is not whole.
    #[error("{0}")]
    Differs(String),
    /// The graph is beyond what can be compared.
    #[error("{0}")]
    Limit(String),
}

type Answer<T = ()> = Result<T, Verdict>;

fn differs<T>(text: impl Into<String>) -> Answer<T> {
    Err(Verdict::Differs(text.into()))
}

/// A panic is a mistake too.
fn guarded<T>(ask: impl FnOnce() -> Answer<T>) -> Answer<T> {
    catch_unwind(AssertUnwindSafe(ask)).unwrap_or_else(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        differs(format!("panic: {}", text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("of some kind")))
    })
}

/// The outputs of each function, with bounds.
fn reference(case: &Case, roundoff: Roundoff) -> Answer<Vec<Vec<Bounded>>> {
    let of = |f: &Func| {
        bounds(f, &random::args(f, &case.dims, case.seed), &case.dims, roundoff)
            .map_err(|e| Verdict::Limit(format!("{}: {e}", f.name)))
    };
    case.module.funcs.iter().map(of).collect()
}

/// Fails at the first output of `f` that is not what it should be.
fn agree(f: &Func, want: &[Bounded], got: &[Vec<f64>]) -> Answer {
    for ((o, want), got) in f.outputs.iter().zip(want).zip(got) {
        if let Some((at, got, want, error)) = want.disagreement(got) {
            return differs(format!("{} {}[{at}] is {got:e}, not {want:e} ± {error:.1e}", f.name, o.name));
        }
    }
    Ok(())
}

/// Fails if two modules with the same functions differ by more than what rounding can do to the first, and that of f64 to the other.
fn same_meaning(before: &Case, after: &Module, roundoff: Roundoff, what: &str) -> Answer {
    let mut want = reference(before, roundoff)?;
    let changed = Case { module: after.clone(), ..before.clone() };
    let got = match reference(&changed, Roundoff::Exact) {
        Ok(got) => got,
        Err(e) => return differs(format!("after {what}: {e}")),
    };
    for ((f, want), got) in before.module.funcs.iter().zip(&mut want).zip(&got) {
        let both = |(e, other): (&mut f64, &f64)| *e += other;
        want.iter_mut().zip(got).for_each(|(w, g)| w.error.iter_mut().zip(&g.error).for_each(both));
        let values: Vec<Vec<f64>> = got.iter().map(|b| b.value.data.clone()).collect();
        agree(f, want, &values).map_err(|e| Verdict::Differs(format!("after {what}: {e}")))?;
    }
    Ok(())
}

/// Whether the text of the module reads back as the module.
///
/// # Errors
/// What came of it.
pub fn text(module: &Module) -> Answer {
    guarded(|| {
        let text = graph::text::print(module);
        match graph::text::parse(&text) {
            Err(e) => differs(format!("the text does not read back: {e}")),
            Ok(back) if back != *module => differs("the text reads back as another module"),
            Ok(_) => Ok(()),
        }
    })
}

/// Whether passes, run in order, keep the module whole and what it means.
///
/// # Errors
/// What came of it.
pub fn passes(case: &Case, names: &[&str]) -> Answer {
    guarded(|| {
        let mut after = case.module.clone();
        passes::run(&mut after, names, true).map_err(|e| Verdict::Differs(e.to_string()))?;
        // What is computed at compile time is rounded to its dtype.
        let roundoff = if names.contains(&"fold_constants") { Roundoff::Dtype } else { Roundoff::Exact };
        same_meaning(case, &after, roundoff, &names.join(","))
    })
}

/// Whether the optimiser keeps the module whole and what it means, and never makes a function dearer, by the costs of each target.
///
/// # Errors
/// What came of it.
pub fn optimized(case: &Case) -> Answer {
    guarded(|| {
        let mut last = None;
        for gpu in [false, true] {
            let model = Model::new(Tuning::of_target(gpu));
            let cost = |op: &Op, x: &[&TensorType], y: &[TensorType]| model.op_cost(&DimEnv::new(), op, x, y);
            let (after, _) = egraph::optimize(&case.module, &cost, &egraph::Options::default());
            if let Some(violation) = graph::verify(&after).first() {
                return differs(format!("after optimising: {violation}"));
            }
            for (f, g) in case.module.funcs.iter().zip(&after.funcs) {
                let [before, now] = [f, g].map(|f| egraph::program_cost(f, &cost));
                if now > before {
                    let target = if gpu { "a GPU" } else { "the host" };
                    return differs(format!("{} costs {now} in place of {before} on {target}", f.name));
                }
            }
            if last.as_ref() != Some(&after) {
                same_meaning(case, &after, Roundoff::Exact, "optimising")?;
                last = Some(after);
            }
        }
        Ok(())
    })
}

/// The module with its first function's gradient by all float arguments: of a weighted sum of its float outputs, named `objective`.
///
/// # Errors
/// If there is nothing to differentiate, or an op has no derivative.
pub fn with_gradient(module: &Module) -> Answer<Module> {
    guarded(|| {
        let mut out = module.clone();
        passes::run(&mut out, &["drop_stop_gradient"], true).map_err(|e| Verdict::Differs(e.to_string()))?;
        let f = &mut out.funcs[0];
        let mut b = Builder::new(f);
        let mut total = None;
        for (i, o) in b.func.outputs.clone().iter().enumerate() {
            let ty = b.func.ty(o.value).clone();
            if !ty.dtype.is_float() {
                continue;
            }
            let wide = b.cast(o.value, DType::F32);
            let flat = b.reshape(wide, &[ty.elems()]);
            let index = b.op(Op::Iota(ty.elems()), &[]);
            let index = b.cast(index, DType::F32);
            let (step, start) = (b.full_like(index, 1.7), b.full_like(index, i as f64 + 0.3));
            let angle = b.mul(index, step);
            let angle = b.add(angle, start);
            let factor = b.map(MapFn::Cos, &[angle]);
            let weighed = b.mul(flat, factor);
            let sum = b.sum(weighed, &[0]);
            total = Some(total.map_or(sum, |t| b.add(t, sum)));
        }
        let floats: Vec<usize> = (0..f.args.len()).filter(|i| f.arg_type(*i).dtype.is_float()).collect();
        let Some(total) = total.filter(|_| !floats.is_empty()) else {
            return Err(Verdict::Limit("there is nothing to differentiate".into()));
        };
        f.outputs.clear();
        f.output("objective", Role::Scalar, total);
        match autodiff::grad(f, &floats, Seed { objective: "objective", remat: Remat::Cheap }) {
            Ok(mut g) => {
                // A gradient is what the caller gets, not what training adds up.
                g.outputs.iter_mut().skip(1).for_each(|o| {
                    o.role = Role::Result;
                    o.name = format!("d_{}", o.name);
                });
                out.funcs = vec![g];
                match graph::verify(&out).first() {
                    Some(violation) => differs(format!("the gradient: {violation}")),
                    None => Ok(out),
                }
            }
            Err(e @ AutodiffError::NotDifferentiable { .. }) => Err(Verdict::Limit(e.to_string())),
            Err(e) => differs(e.to_string()),
        }
    })
}

/// Whether the gradient that [`with_gradient`] finds is that of differences along a random direction. Where the function has a kink or
/// rounding drowns the difference, nothing is asked.
///
/// # Errors
/// What came of it.
pub fn gradient(case: &Case) -> Answer {
    let module = with_gradient(&case.module)?;
    guarded(|| {
        let f = &module.funcs[0];
        let args = random::args(f, &case.dims, case.seed);
        let limit = |text: &str| Err(Verdict::Limit(text.into()));
        let at = |args: &[Tensor]| bounds(f, args, &case.dims, Roundoff::Exact).map_err(|e| Verdict::Limit(e.to_string()));
        let here = at(&args)?;
        let mut random = Random::new(case.seed ^ 0x5eed);
        let direction: Vec<Vec<f64>> = args
            .iter()
            .map(|t| t.data.iter().map(|_| if t.dtype.is_float() { random.unit() * 2.0 - 1.0 } else { 0.0 }).collect())
            .collect();
        let step = 1e-6;
        let moved = |by: f64| {
            let mut args = args.clone();
            for (t, d) in args.iter_mut().zip(&direction) {
                t.data.iter_mut().zip(d).for_each(|(x, d)| *x += by * d);
            }
            at(&args).map(|mut r| r.remove(0))
        };
        let (above, below, objective) = (moved(step)?, moved(-step)?, &here[0]);
        let value = |b: &Bounded| b.value.data[0];
        let noise = 2.0 * [&above, &below, objective].iter().map(|b| b.error[0]).sum::<f64>() / step;
        let (right, left) = ((value(&above) - value(objective)) / step, (value(objective) - value(&below)) / step);
        let floats = args.iter().zip(&direction).filter(|(t, _)| t.dtype.is_float());
        let (mut along, mut size) = (0.0, 0.0);
        for ((_, d), g) in floats.zip(&here[1..]) {
            for (d, g) in d.iter().zip(&g.value.data) {
                along += d * g;
                size += (d * g).abs();
            }
        }
        let tolerance = 1e-4 * (1.0 + size) + noise;
        if !(tolerance.is_finite() && right.is_finite() && left.is_finite()) || tolerance > 1e-2 * (1.0 + size) {
            return limit("too little is known of the objective");
        }
        if (right - left).abs() > tolerance {
            return limit("a kink");
        }
        let slope = (right + left) / 2.0;
        // An undefined gradient of a function with a slope is wrong as well.
        if (along - slope).abs() <= tolerance {
            Ok(())
        } else {
            differs(format!("the slope is {slope:e}, the gradient says {along:e}, within {tolerance:.1e}"))
        }
    })
}

/// Lowers for the host, or says that it is beyond the target.
fn lowered(module: &Module, options: tile::Options) -> Answer<tile::Lowered> {
    tile::lower(module, options).map_err(|e| Verdict::Limit(e.to_string()))
}

/// Whether the text of the tile programs reads back as them.
///
/// # Errors
/// What came of it.
pub fn tile_text(module: &Module) -> Answer {
    guarded(|| {
        let kernels = lowered(module, tile::Options::default())?.kernels;
        match tile::text::parse(&tile::text::print(&kernels)) {
            Err(e) => differs(format!("the text of the kernels does not read back: {e:?}")),
            Ok(back) if back != kernels => differs("the text of the kernels reads back as others"),
            Ok(_) => Ok(()),
        }
    })
}

/// Whether the tile programs, run by their interpreter, give what the graph does: fused, in parts as for a GPU, and each op alone.
///
/// # Errors
/// What came of it.
pub fn tiles(case: &Case) -> Answer {
    guarded(|| {
        let want = reference(case, Roundoff::Dtype)?;
        for (fuse, parts) in [(true, false), (true, true), (false, false)] {
            let lowered = lowered(&case.module, tile::Options { fuse, parts, products: parts })?;
            for ((f, entry), want) in case.module.funcs.iter().zip(&lowered.entries).zip(&want) {
                let args = random::args(f, &case.dims, case.seed).into_iter().map(|t| t.data).collect::<Vec<_>>();
                let how = || format!("fuse {fuse}, parts {parts}");
                let got = tile::simulate::simulate(&lowered, entry, &args, &case.dims)
                    .map_err(|e| Verdict::Differs(format!("{}: {e}", how())))?;
                agree(f, want, &got).map_err(|e| Verdict::Differs(format!("{}: {e}", how())))?;
            }
        }
        Ok(())
    })
}

/// Whether code for this machine, made as the options say, gives what the graph does. All cases are compiled at once, which takes a fraction of the time; if
/// that fails, one by one.
///
/// # Errors
/// What came of each.
pub fn host(cases: &[Case], options: &codegen::Options) -> Vec<Answer> {
    let ready: Vec<Answer> = cases.iter().map(|c| guarded(|| lowered(&c.module, tile::Options::default()).map(|_| ()))).collect();
    let able: Vec<&Case> = cases.iter().zip(&ready).filter(|(_, r)| r.is_ok()).map(|(c, _)| c).collect();
    let together = guarded(|| compiled(&able, options));
    let mut answers = match together {
        Ok(answers) => answers,
        Err(e) if able.len() > 1 => {
            let mut alone: Vec<Answer> =
                able.iter().map(|c| guarded(|| compiled(&[c], options)).and_then(|mut a| a.remove(0))).collect();
            // What only several together show is told of the first.
            if alone.iter().all(|a| !matches!(a, Err(Verdict::Differs(_)))) {
                alone[0] = Err(e);
            }
            alone
        }
        Err(e) => able.iter().map(|_| Err(e.clone())).collect(),
    }
    .into_iter();
    ready.into_iter().map(|r| r.and_then(|()| answers.next().expect("one for each that was lowered"))).collect()
}

/// Compiles the cases as entries of one library and runs each.
fn compiled(cases: &[&Case], options: &codegen::Options) -> Answer<Vec<Answer>> {
    let (mut module, mut dims) = (Module { name: "compare".into(), ..Module::default() }, BTreeSet::new());
    for (i, case) in cases.iter().enumerate() {
        dims.extend(case.dims.keys().map(|n| n.to_string()));
        for (j, f) in case.module.funcs.iter().enumerate() {
            // Every argument is given and every output returned, whatever its role in training.
            let mut f = Func { name: format!("f{i}.{j}"), ..f.clone() };
            f.args.iter_mut().enumerate().for_each(|(k, a)| (a.role, a.name) = (Role::Input, format!("{k}")));
            f.outputs.iter_mut().enumerate().for_each(|(k, o)| (o.role, o.name) = (Role::Result, format!("{k}")));
            module.funcs.push(f);
        }
    }
    let lowered = lowered(&module, tile::Options::default())?;
    let program = Program {
        module: module.clone(),
        dims: dims.into_iter().collect(),
        config: Vec::new(),
        settings: Default::default(),
        pipeline: Default::default(),
        outline: String::new(),
    };
    let manifest = pipeline::manifest(&program, &module, &lowered, &Sources::default());
    let code = codegen::emit_objects_for(&lowered.kernels, options).map_err(|e| Verdict::Differs(e.to_string()))?;
    let library = Library::new(manifest, code).map_err(|e| Verdict::Differs(e.to_string()))?;
    let mut session = common::session(library, Some(2)).map_err(|_| Verdict::Differs("the library does not link".into()))?;
    session.poison = true;
    let run = |(i, case): (usize, &&Case)| {
        let want = reference(case, Roundoff::Dtype)?;
        for (j, (f, want)) in case.module.funcs.iter().zip(&want).enumerate() {
            let args = random::args(f, &case.dims, case.seed).into_iter().enumerate();
            let given = args.map(|(k, t)| (k.to_string(), HostTensor::from_f64(t.dtype, &t.shape, t.data)));
            let given: Vec<(String, HostTensor)> = given.collect();
            let inputs: Vec<(&str, &HostTensor)> = given.iter().map(|(name, t)| (name.as_str(), t)).collect();
            let got = session.run(&format!("f{i}.{j}"), &case.dims, &inputs);
            let got = got.map_err(|e| Verdict::Differs(e.to_string()))?;
            agree(f, want, &got.into_iter().map(|(_, t)| t.to_f64()).collect::<Vec<_>>())?;
        }
        Ok(())
    };
    Ok(cases.iter().enumerate().map(run).collect())
}

/// How the interpreter itself does: whether rounding after each node stays within the bounds.
///
/// # Errors
/// What came of it.
pub fn rounding(case: &Case) -> Answer {
    guarded(|| {
        let want = reference(case, Roundoff::Dtype)?;
        for (f, want) in case.module.funcs.iter().zip(&want) {
            let args = random::args(f, &case.dims, case.seed);
            let got = interp::eval(f, &args, &case.dims, interp::Options::ROUNDED);
            let got = got.map_err(|e| Verdict::Limit(e.to_string()))?;
            agree(f, want, &got.into_iter().map(|t| t.data).collect::<Vec<_>>())?;
        }
        Ok(())
    })
}
