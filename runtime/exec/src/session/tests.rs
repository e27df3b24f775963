use super::*;
use crate::{
    plan::{self, Plan},
    random::Stream,
    testing::{self, Build, V, dim, launch, numbers, session_of, view},
};
use base::DType;
use library::{Gemm, Step};

fn f32s(shape: &[i64], data: Vec<f64>) -> HostTensor {
    HostTensor::from_f64(DType::F32, shape, data)
}

fn tokens(rows: i64, cols: i64) -> HostTensor {
    HostTensor::from_f64(DType::I32, &[rows, cols], (0..rows * cols).map(|i| (i * 7 % 32) as f64))
}

#[test]
fn a_forward_pass_is_the_sum_of_its_parts() {
    let mut results = Vec::new();
    for (threads, poison) in [(1, false), (2, true), (5, true)] {
        let mut s = testing::session(threads);
        s.poison = poison;
        let manifest = s.manifest.clone();
        s.store.initialise(&manifest, 3).expect("there is memory");
        let t = tokens(2, 5);
        let dims = s.bind("forward", &[("tokens", &t.shape)]).expect("it fits");
        assert_eq!(dims, DimEnv::from([("B".into(), 2), ("T".into(), 5)]));
        let out = s.run("forward", &dims, &[("tokens", &t)]).expect("it runs");
        assert_eq!((out.len(), out[0].0.as_str(), &out[0].1.shape[..]), (1, "logits", &[2, 5, 32][..]));
        assert_eq!(s.run("forward", &dims, &[("tokens", &t)]).expect("it runs again"), out);
        let of = |name: &str| {
            let slot = s.store.get(Role::Param, name).expect("it is initialised");
            crate::tensor::read(slot.dtype, slot.memory.bytes())
        };
        let (table, bias) = (of("table"), of("layers.*.bias"));
        for (i, x) in out[0].1.to_f64().into_iter().enumerate() {
            let token = t.to_f64()[i / V] as usize;
            let want = table[token * V + i % V] + bias[i % V] + bias[V + i % V];
            assert!((x - want).abs() < 1e-6, "{i}: {x} for {want}");
        }
        results.push(out);
    }
    assert!(results.iter().all(|r| *r == results[0]));
}

#[test]
fn what_does_not_fit_is_named() {
    let mut s = testing::session(1);
    let manifest = s.manifest.clone();
    s.store.initialise(&manifest, 3).expect("there is memory");
    let error = |r: Result<DimEnv, ExecError>| r.expect_err("it does not fit").to_string();
    assert_eq!(error(s.bind("backward", &[])), "there is no entry 'backward'");
    assert_eq!(error(s.bind("forward", &[("x", &[1])])), "input 'x': it is unknown; there are tokens");
    assert_eq!(error(s.bind("forward", &[("tokens", &[4])])), "input 'tokens': it has 1 axes, the model takes [B, T]");
    assert_eq!(error(s.bind("forward", &[])), "input '': B is not settled by it; there are tokens");
    let two: [(&str, &[i64]); 2] = [("tokens", &[2, 5]), ("targets", &[2, 6])];
    assert_eq!(error(s.bind("loss", &two)), "input 'targets': T is 5 and 6");
    let t = tokens(2, 5);
    let dims = s.bind("forward", &[("tokens", &t.shape)]).expect("it fits");
    let mut run = |inputs: &[(&str, &HostTensor)]| s.run("forward", &dims, inputs).expect_err("it does not fit").to_string();
    assert_eq!(run(&[]), "input 'tokens': it is missing; there are tokens");
    assert_eq!(run(&[("tokens", &t), ("x", &t)]), "input 'x': it is unknown; there are tokens");
    assert_eq!(run(&[("tokens", &tokens(5, 2))]), "input 'tokens': i32[5, 2] is not i32[2, 5]");
    assert_eq!(run(&[("tokens", &f32s(&[2, 5], vec![0.0; 10]))]), "input 'tokens': f32[2, 5] is not i32[2, 5]");
    let short = HostTensor { bytes: vec![0; 8], ..t.clone() };
    assert_eq!(run(&[("tokens", &short)]), "input 'tokens': it has 8 bytes of data, 40 are needed");
    let run = |s: &mut Session, b: i64, t: i64| {
        let dims = DimEnv::from([("B".into(), b), ("T".into(), t)]);
        s.run("forward", &dims, &[]).expect_err("it does not fit").to_string()
    };
    assert_eq!(run(&mut s, 1, 1), "the length of a window of 2 is -1 for B = 1, T = 1");
    assert_eq!(run(&mut s, -2, 5), "a buffer of B*T elements is -10 for B = -2, T = 5");
    assert_eq!(run(&mut s, 1 << 40, 1 << 40), "B*T has no value for B = 1099511627776, T = 1099511627776");
    assert!(run(&mut s, 1 << 44, 8).starts_with("a buffer of B*T elements is"));
    let Err(e) = Session::new(s.manifest.clone(), Box::new(testing::Kernels(BTreeMap::new())), None) else {
        panic!("there is no kernel");
    };
    assert_eq!(e.to_string(), "the code has no symbol lookup");
}

#[test]
fn memory_is_counted_by_cause_and_limited() {
    let s = testing::session(1);
    let dims = DimEnv::from([("B".into(), 4), ("T".into(), 16)]);
    let peak = s.peak(&[("grad", &dims), ("loss", &dims), ("update", &dims)]).expect("it fits");
    let weights = (32 * 32 + 2 * 32) * 4;
    assert_eq!(peak.by_role[&Role::Param], weights);
    assert_eq!((peak.by_role[&Role::Grad], peak.by_role[&Role::Moment]), (weights, 2 * weights));
    assert_eq!((peak.by_role[&Role::State], peak.by_role[&Role::Tally]), (128, 128));
    assert_eq!(peak.activations, 4 * 16 * 32 * 4);
    assert!(s.admit(&peak, None, 0).is_ok());
    assert!(s.admit(&peak, Some(peak.total()), 0).is_ok());
    let Err(ExecError::Memory { needed_mib, available_mib, table }) = s.admit(&peak, Some(peak.total() - 1), 0) else {
        panic!("one byte is missing");
    };
    assert_eq!((needed_mib, available_mib), (1, 0));
    assert!(table.contains("activations") && table.contains("moment"), "{table}");
}

#[test]
fn a_profile_counts_calls() {
    let mut s = testing::session(2);
    s.profile = Some(Profile::default());
    let manifest = s.manifest.clone();
    s.store.initialise(&manifest, 3).expect("there is memory");
    let t = tokens(2, 5);
    let dims = s.bind("forward", &[("tokens", &t.shape)]).expect("it fits");
    (0..3).for_each(|_| drop(s.run("forward", &dims, &[("tokens", &t)]).expect("it runs")));
    let profile = s.profile.take().expect("it was on");
    let mut rows: Vec<_> = profile.rows().into_iter().map(|(e, s, calls, _)| (e, s, calls)).collect();
    rows.sort_unstable();
    let want = [("forward", "add_bias (bigram.lode:5)", 6), ("forward", "copy", 3), ("forward", "lookup (bigram.lode:5)", 3)];
    assert_eq!(rows, want);
}

#[test]
fn the_host_has_no_cost_of_starting() {
    let mut s = testing::session(1);
    let t = tokens(2, 5);
    let dims = s.bind("forward", &[("tokens", &t.shape)]).expect("it fits");
    assert_eq!(s.costs("forward", &dims, &[("tokens", &t)], 3).expect("nothing fails"), None);
    assert_eq!(s.device_name(), "host");
}

#[test]
fn a_tensor_that_is_not_finite_is_found() {
    let mut s = testing::session(1);
    let manifest = s.manifest.clone();
    s.store.initialise(&manifest, 3).expect("there is memory");
    assert_eq!(s.first_not_finite(Role::Param).expect("nothing fails"), None);
    let slot = s.store.slot(Role::Param, "table", DType::F32, &[32, 32]).expect("it is there");
    slot.memory.bytes_mut()[8..12].copy_from_slice(&f32::INFINITY.to_le_bytes());
    assert_eq!(s.first_not_finite(Role::Param).expect("nothing fails"), Some(("table".into(), f64::INFINITY)));
}

#[test]
fn only_a_few_resolved_entries_are_kept() {
    let mut s = testing::session(1);
    let manifest = s.manifest.clone();
    s.store.initialise(&manifest, 3).expect("there is memory");
    for n in 2..60 {
        let t = tokens(1, n);
        let dims = s.bind("forward", &[("tokens", &t.shape)]).expect("it fits");
        s.run("forward", &dims, &[("tokens", &t)]).expect("it runs");
        assert!(s.prepared.len() <= MAX_PREPARED);
    }
}

fn product(g: impl FnOnce(Gemm) -> Gemm, c_elems: &str) -> Session {
    let mut b = Build::new("f");
    let a = b.arg(Role::Input, "a", DType::F32, &["N", "3", "4"]);
    let w = b.arg(Role::Input, "b", DType::F32, &["5", "4"]);
    let c = b.output(Role::Result, "c", DType::F32, &[c_elems]);
    let strides = ["4", "1", "1", "4", "1", "3"].map(dim);
    let batch = vec![(dim("N"), ["12", "0", "15"].map(dim))];
    let gemm = Gemm {
        dtype: DType::F32,
        a: view(a, &[]),
        b: view(w, &[]),
        c: view(c, &[]),
        m: dim("3"),
        n: dim("5"),
        k: dim("4"),
        strides,
        batch,
        accumulate: false,
    };
    b.step(Step::Gemm(g(gemm)));
    session_of(b.entry, &["N"], 2)
}

#[test]
fn products_may_be_batched_and_transposed() {
    for n in [0, 1, 7] {
        let mut s = product(|g| g, "15*N");
        let (a, w) = (f32s(&[n, 3, 4], numbers(n as usize * 12, 1)), f32s(&[5, 4], numbers(20, 2)));
        let dims = s.bind("f", &[("a", &a.shape), ("b", &w.shape)]).expect("it fits");
        let c = s.run("f", &dims, &[("a", &a), ("b", &w)]).expect("it runs")[0].1.to_f64();
        let (a, w) = (a.to_f64(), w.to_f64());
        assert_eq!(c.len(), n as usize * 15);
        for (at, x) in c.into_iter().enumerate() {
            let (e, j, i) = (at / 15, at % 15 / 3, at % 3);
            let want: f64 = (0..4).map(|k| a[e * 12 + i * 4 + k] * w[j * 4 + k]).sum();
            assert!((x - want).abs() < 1e-6);
        }
    }
}

#[test]
fn steps_stay_inside_their_buffers() {
    let run = |mut s: Session| {
        let (a, w) = (f32s(&[2, 3, 4], vec![0.0; 24]), f32s(&[5, 4], vec![0.0; 20]));
        let dims = s.bind("f", &[("a", &a.shape), ("b", &w.shape)]).expect("it fits");
        s.run("f", &dims, &[("a", &a), ("b", &w)]).map_err(|e| e.to_string()).map(|_| ())
    };
    assert_eq!(run(product(|g| g, "15*N")), Ok(()));
    let short = "the manifest of f is not valid: elements 0 to 29 of buffer 2 with 29 elements in turn []";
    assert_eq!(run(product(|g| g, "15*N - 1")), Err(short.into()));
    let back = |mut g: Gemm| {
        g.strides[0] = dim("-4");
        g
    };
    let before = "the manifest of f is not valid: elements -8 to 15 of buffer 0 with 24 elements in turn []";
    assert_eq!(run(product(back, "15*N")), Err(before.into()));
    let far = |mut g: Gemm| {
        g.b.offset = dim("4611686018427387904");
        g
    };
    assert!(run(product(far, "15*N")).is_err());
}

/// Programs that write before they read give the same with shared memory as with a buffer each.
#[test]
fn sharing_memory_changes_nothing() {
    let (mut shared, mut apart) = (0, 0);
    for seed in 0..150 {
        let (entry, steps) = program(seed);
        let mut s = session_of(entry.clone(), &[], 1);
        s.poison = true;
        let input = f32s(&[128], numbers(128, seed));
        let got = s.run("f", &DimEnv::new(), &[("x", &input)]).expect("it runs")[0].1.to_f64();
        let mut memory: Vec<Vec<f32>> =
            entry.buffers.iter().map(|b| vec![f32::NAN; b.elems.known().expect("a number") as usize]).collect();
        memory[0] = input.to_f64().into_iter().map(|x| x as f32).collect();
        play(&steps, &mut memory, 0);
        let want: Vec<f64> = memory[1].iter().map(|x| f64::from(*x)).collect();
        assert_eq!(got, want, "program {seed}: {:#?}", entry.steps);
        let plan = plan::plan(&entry, &DimEnv::new()).expect("it fits");
        shared += plan.arena_bytes;
        assert_eq!(plan::verify(&plan), Vec::<String>::new());
        let text = plan::print(&entry, &plan);
        assert_eq!(plan::parse(&text), Ok(vec![plan::describe(&entry, &plan)]), "{text}");
        apart += plan::plan_apart(&entry, &DimEnv::new()).expect("it fits").arena_bytes;
        assert_eq!(plan, plan::plan(&entry, &DimEnv::new()).expect("it fits"));
    }
    assert!(shared * 5 < apart * 4, "{shared} bytes instead of {apart}");
}

/// What a program does, to be played on vectors.
enum Do {
    Copy(usize, usize),
    Add(usize, usize),
    Fill(usize),
    Slice(usize),
    Loop(i64, bool, Vec<Do>),
}

fn play(steps: &[Do], memory: &mut [Vec<f32>], turn: usize) {
    for s in steps {
        match s {
            Do::Copy(a, b) => memory[*b] = memory[*a].clone(),
            Do::Add(a, b) => {
                let row = memory[*b][..32].to_vec();
                memory[*a].iter_mut().enumerate().for_each(|(i, x)| *x += row[i % 32]);
            }
            Do::Fill(b) => memory[*b] = memory[0][..memory[*b].len()].to_vec(),
            Do::Slice(b) => memory[*b] = memory[0][turn * 32..][..32].to_vec(),
            Do::Loop(n, reverse, body) => {
                for i in 0..*n as usize {
                    play(body, memory, if *reverse { *n as usize - 1 - i } else { i });
                }
            }
        }
    }
}

/// A random program over thirty arena buffers, of 32 and 96 elements by turns, and its input and output: copies, in-place sums, slices of the
/// input, loops in loops.
fn program(seed: u64) -> (Entry, Vec<Do>) {
    let mut b = Build::new("f");
    b.arg(Role::Input, "x", DType::F32, &["128"]);
    let out = b.output(Role::Result, "y", DType::F32, &["96"]);
    for i in 2..32 {
        b.inner(DType::F32, elems(i));
    }
    let stream = Stream::new(seed, "program");
    let mut drawn = 0;
    let mut draw = |n: usize| {
        drawn += 1;
        stream.below(drawn, n as u64) as usize
    };
    let mut written = vec![3];
    let mut doing = vec![Do::Fill(3)];
    doing.extend(body(&mut draw, &mut written, 0));
    // The result: a wide buffer, and one or two more added to it.
    let wide: Vec<usize> = written.iter().copied().filter(|b| b % 2 == 1).collect();
    doing.push(Do::Copy(wide[draw(wide.len())], out));
    (0..1 + draw(2)).for_each(|_| doing.push(Do::Add(out, written[draw(written.len())])));
    b.entry.steps = doing.iter().map(|d| step(d, 0)).collect();
    (b.entry, doing)
}

/// Elements of a buffer of a program.
fn elems(buffer: usize) -> &'static str {
    if buffer.is_multiple_of(2) { "32" } else { "96" }
}

fn step(d: &Do, depth: usize) -> Step {
    let still = vec![0; depth];
    match d {
        Do::Copy(a, b) => Step::Copy { from: view(*a, &still), to: view(*b, &still), elems: dim(elems(*b)) },
        Do::Add(a, b) => {
            let rows = if elems(*a) == "32" { "1" } else { "3" };
            launch("add_bias", vec![view(*a, &still), view(*b, &still)], &[rows, "32"], rows)
        }
        Do::Fill(b) => Step::Copy { from: view(0, &still), to: view(*b, &still), elems: dim(elems(*b)) },
        Do::Slice(b) => {
            let mut turn = still.clone();
            turn[depth - 1] = 32;
            Step::Copy { from: view(0, &turn), to: view(*b, &still), elems: dim("32") }
        }
        Do::Loop(count, reverse, body) => {
            Step::Loop { count: *count, reverse: *reverse, body: body.iter().map(|d| step(d, depth + 1)).collect() }
        }
    }
}

fn body(draw: &mut dyn FnMut(usize) -> usize, written: &mut Vec<usize>, depth: usize) -> Vec<Do> {
    let mut doing = Vec::new();
    for _ in 0..3 + draw(6) {
        // The latest, so that others have died.
        let known: Vec<usize> = written[written.len().saturating_sub(5)..].to_vec();
        let to = 2 + draw(30);
        let same: Vec<usize> = known.iter().copied().filter(|b| b % 2 == to % 2 && *b != to).collect();
        let d = match draw(4) {
            0 if depth < 2 => Do::Loop(1 + draw(4) as i64, draw(2) == 0, body(draw, written, depth + 1)),
            1 => {
                let to = known[draw(known.len())];
                let others: Vec<usize> = known.iter().copied().filter(|b| *b != to).collect();
                if others.is_empty() {
                    continue;
                }
                Do::Add(to, others[draw(others.len())])
            }
            2 if depth > 0 && to.is_multiple_of(2) => Do::Slice(to),
            _ if !same.is_empty() => Do::Copy(same[draw(same.len())], to),
            _ => Do::Fill(to),
        };
        if let Do::Copy(_, b) | Do::Slice(b) | Do::Fill(b) = &d {
            written.retain(|x| x != b);
            written.push(*b);
        }
        doing.push(d);
    }
    doing
}

#[test]
fn a_plan_prints() {
    let s = testing::session(1);
    let plan: Plan =
        plan::plan(s.entry("forward").expect("it is there"), &DimEnv::from([("B".into(), 2), ("T".into(), 4)])).expect("it fits");
    let text = plan::print(s.entry("forward").expect("it is there"), &plan);
    let page = include_str!("../../../../docs/ir/plan.md");
    assert!(page.contains(&format!("```\n{text}```\n")), "docs/ir/plan.md shows this plan:\n{text}");
}
