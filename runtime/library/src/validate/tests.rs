use crate::file::tests::sample;
use crate::{Class, Entry, Gemm, GroupedGemm, Init, Kernel, Library, LibraryError, Manifest, Param, Role, Step, View, Work};
use base::{DType, Dim};

/// What is wrong with the sample after `change`.
fn why(change: impl FnOnce(&mut Manifest)) -> String {
    let mut m = sample().manifest;
    change(&mut m);
    match Library::new(m, Vec::new()) {
        Err(LibraryError::Invalid { why, .. }) => why,
        Err(e) => panic!("another error: {e}"),
        Ok(_) => "nothing".into(),
    }
}

fn view(buffer: usize, turns: usize) -> View {
    View { buffer, offset: Dim::from(0), turn: vec![Dim::from(0); turns] }
}

fn param(name: &str, shape: &[i64]) -> Param {
    Param {
        name: name.into(),
        dtype: DType::F32,
        shape: shape.to_vec(),
        init: Init::Constant(0.0),
        decay: false,
        role: Role::Param,
    }
}

fn copied(extents: usize) -> Work {
    Work { class: Class::Copy, dtype: DType::F32, shape: vec![Dim::from(1); extents] }
}

fn gemm(m: &mut Manifest) -> &mut Gemm {
    match &mut m.entries[0].steps[1] {
        Step::Gemm(g) => g,
        other => panic!("the sample has a product there, not {other:?}"),
    }
}

#[test]
fn names_and_dims_are_checked() {
    assert_eq!(why(|_| ()), "nothing");
    assert_eq!(why(|m| m.dims.push("B".into())), "the run-time dim 'B'");
    assert_eq!(why(|m| m.dims.push("2*T".into())), "the run-time dim '2*T'");
    assert_eq!(why(|m| m.entries.push(m.entries[0].clone())), "entry forward twice");
    assert_eq!(why(|m| m.entries[0].buffers[0].elems = Dim::sym("Q")), "entry forward: Q is not a run-time dim");
    assert_eq!(why(|m| m.entries[0].constraints[0].0 = Dim::sym("Q")), "entry forward: Q is not a run-time dim");
    let with = |change: fn(&mut Entry)| {
        why(move |m| {
            let mut e = m.entries[0].clone();
            e.when = vec!["4 - B".parse().expect("a dim")];
            change(&mut e);
            m.entries.push(e);
        })
    };
    assert_eq!(with(|_| ()), "nothing");
    assert_eq!(with(|e| e.name = "backward".into()), "a variant of backward: its entry does not precede it");
    assert_eq!(with(|e| e.args[0].dtype = DType::BF16), "a variant of forward: its arguments or outputs are others");
    assert_eq!(with(|e| e.when = vec![Dim::sym("Q")]), "entry forward: Q is not a run-time dim");
    assert_eq!(why(|m| _ = m.settings.insert("lr".into(), f64::NAN)), "the setting lr is NaN");
}

#[test]
fn parameters_are_checked() {
    assert_eq!(why(|m| m.params = vec![param("a.*+3.w", &[2, 4]), param("a.*.w", &[3, 4])]), "nothing");
    assert_eq!(why(|m| m.params = vec![param("a.*+3.w", &[2, 4]), param("a.*.w", &[4, 4])]), "parameter a.3.w twice");
    assert_eq!(why(|m| m.params = vec![param("w", &[2, -1])]), "parameter w of shape [2, -1]");
    assert_eq!(why(|m| m.params = vec![param("*.*", &[2])]), "parameter *.* of shape [2]");
    assert_eq!(why(|m| m.params = vec![param("a.*x", &[2])]), "parameter a.*x of shape [2]");
    assert!(why(|m| m.params = vec![param("w", &[i64::MAX, 3])]).starts_with("parameter w of shape"));
    assert!(why(|m| m.params = vec![param("*", &[1 << 40])]).starts_with("parameter * stands for"));
    let mut p = param("w", &[2]);
    p.init = Init::Normal(f64::INFINITY);
    assert!(why(|m| m.params = vec![p.clone()]).contains("starts as Normal(inf)"));
    p = param("w", &[2]);
    p.role = Role::Grad;
    assert!(why(|m| m.params = vec![p.clone()]).contains("has role Grad"));
}

#[test]
fn ports_are_checked() {
    assert_eq!(why(|m| m.entries[0].args[0].buffer = 9), "entry forward: argument x has no buffer");
    assert_eq!(why(|m| m.entries[0].args[0].dtype = DType::BF16), "entry forward: argument x does not fit its buffer");
    assert_eq!(why(|m| m.entries[0].buffers[0].external = false), "entry forward: argument x does not fit its buffer");
    assert_eq!(why(|m| m.entries[0].outputs[0].buffer = 0), "entry forward: output y shares its buffer");
    assert_eq!(why(|m| _ = m.entries[0].outputs.pop()), "entry forward: nobody brings buffer 1");
    let twice = |m: &mut Manifest| {
        let port = m.entries[0].args[0].clone();
        m.entries[0].args.push(port);
    };
    assert_eq!(why(twice), "entry forward: argument x twice");
    assert_eq!(why(|m| m.entries[0].outputs[0].name = "x".into()), "entry forward: output x is not in the argument's place");
    assert_eq!(why(|m| m.entries[0].args[0].role = Role::Param), "entry forward: x is not declared with this type");
}

#[test]
fn steps_are_checked() {
    let step = |s: Step| why(|m| m.entries[0].steps.push(s));
    let launch = |kernel| Step::Launch { kernel, buffers: vec![], dims: vec![], grid: Dim::from(1), work: copied(1) };
    assert_eq!(step(launch(3)), "entry forward: there is no kernel 3");
    let with_kernel = |symbol: &str, buffers: usize| {
        let symbol = symbol.to_string();
        why(move |m| {
            m.kernels.push(Kernel { symbol, num_buffers: buffers, num_dims: 0, scratch_bytes: 0, origin: None });
            m.entries[0].steps.push(launch(0));
        })
    };
    assert_eq!(with_kernel("k", 0), "nothing");
    let short = Step::Launch { kernel: 0, buffers: vec![], dims: vec![], grid: Dim::from(1), work: copied(2) };
    let wrong = why(move |m| {
        m.kernels.push(Kernel { symbol: "k".into(), num_buffers: 0, num_dims: 0, scratch_bytes: 0, origin: None });
        m.entries[0].steps.push(short.clone());
    });
    assert_eq!(wrong, "entry forward: k is copy of 2 extents");
    assert_eq!(with_kernel("k", 2), "entry forward: k gets 0 buffers and 0 extents");
    assert!(with_kernel("", 0).starts_with("the kernel ''"));
    assert_eq!(
        step(Step::Zero { at: view(2, 0), elems: Dim::from(1) }),
        "entry forward: a view of buffer 2 with 0 turns inside 0 loops"
    );
    assert_eq!(
        step(Step::Zero { at: view(1, 1), elems: Dim::from(1) }),
        "entry forward: a view of buffer 1 with 1 turns inside 0 loops"
    );
    let inner = Step::Zero { at: view(1, 1), elems: Dim::from(1) };
    let looped = |count, body: Vec<Step>| Step::Loop { count, reverse: false, body };
    assert_eq!(step(looped(2, vec![inner.clone()])), "nothing");
    assert!(step(looped(-1, vec![])).contains("a loop of -1 turns"));
    assert!(step(looped(i64::MAX, vec![])).contains("turns of"));
    assert!(step(looped(1 << 30, vec![inner])).contains("turns of"));
    assert!(why(|m| gemm(m).dtype = DType::BF16).contains("a product of bf16 on other operands"));
    assert!(why(|m| gemm(m).batch.push((Dim::sym("Q"), [0, 0, 0].map(Dim::from)))).contains("Q is not"));
    let grouped = GroupedGemm::Outer {
        dtype: DType::F32,
        x: view(0, 0),
        y: view(0, 0),
        offsets: view(0, 0),
        w: view(1, 0),
        extents: [1, 1, 1, 1].map(Dim::from),
    };
    assert!(step(Step::GroupedGemm(grouped)).contains("offsets that are not i32"));
    let deep = (0..40).fold(Step::Zero { at: view(1, 40), elems: Dim::from(1) }, |s, _| looped(1, vec![s]));
    assert!(step(deep).contains("at depth"));
}
