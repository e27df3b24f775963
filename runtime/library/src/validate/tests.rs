use crate::file::tests::sample;
use crate::{
    Class, Entry, Gemm, GpuLaunch, GroupedGemm, Init, Kernel, Library, LibraryError, Manifest, Param, Role, SM_90A, Step,
    TensorMap, View, Work,
};
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
            m.kernels.push(Kernel { symbol, num_buffers: buffers, num_dims: 0, scratch_bytes: 0, origin: None, gpu: None });
            m.entries[0].steps.push(launch(0));
        })
    };
    assert_eq!(with_kernel("k", 0), "nothing");
    let short = Step::Launch { kernel: 0, buffers: vec![], dims: vec![], grid: Dim::from(1), work: copied(2) };
    let wrong = why(move |m| {
        m.kernels.push(Kernel { symbol: "k".into(), num_buffers: 0, num_dims: 0, scratch_bytes: 0, origin: None, gpu: None });
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

/// A library for GPUs of one kernel that is launched on the sample's buffers.
fn gpu(change: impl FnOnce(&mut Manifest, &mut GpuLaunch)) -> String {
    let d = |text: &str| text.parse::<Dim>().expect("a dim");
    let map = TensorMap {
        buffer: 1,
        dtype: DType::BF16,
        axes: vec![(d("d0"), d("d1")), (d("64"), d("1"))],
        rows: 64,
        runs: 1,
        cols: 64,
    };
    let mut l = GpuLaunch {
        threads: 384,
        cluster: 2,
        blocks: d("floordiv(d0 + 63, 64)"),
        static_shared_bytes: 64,
        dynamic_shared_bytes: 200 << 10,
        workspace_bytes: 128,
        maps: vec![map],
    };
    let bf16 = |m: &mut Manifest| {
        let e = &mut m.entries[0];
        e.buffers.iter_mut().for_each(|b| b.dtype = DType::BF16);
        e.args.iter_mut().chain(&mut e.outputs).for_each(|p| p.dtype = DType::BF16);
        e.steps = vec![Step::Launch {
            kernel: 0,
            buffers: vec![view(0, 0), view(1, 0)],
            dims: vec![d("B"), d("B")],
            grid: d("B"),
            work: copied(1),
        }];
        m.target = SM_90A.into();
    };
    why(|m| {
        bf16(m);
        m.kernels = vec![Kernel { symbol: "k".into(), num_buffers: 2, num_dims: 2, scratch_bytes: 0, origin: None, gpu: None }];
        change(m, &mut l);
        m.kernels[0].gpu = m.kernels[0].gpu.take().or(Some(l));
    })
}

#[test]
fn launches_on_gpus_are_checked() {
    assert_eq!(gpu(|_, _| ()), "nothing");
    assert_eq!(gpu(|m, _| m.target = "sm_100a".into()), "the target 'sm_100a'");
    assert_eq!(gpu(|m, _| m.target = "host".into()), "kernel k is not for host");
    assert_eq!(
        gpu(|m, l| {
            l.threads = 0;
            m.dims.push("T".into())
        }),
        "kernel k: 0 threads"
    );
    assert_eq!(gpu(|_, l| l.threads = 1025), "kernel k: 1025 threads");
    assert_eq!(gpu(|_, l| l.cluster = 17), "kernel k: clusters of 17 blocks");
    assert_eq!(gpu(|_, l| l.blocks = Dim::sym("d2")), "kernel k: d2 is none of its 2 extents");
    assert_eq!(gpu(|_, l| l.blocks = Dim::sym("B")), "kernel k: B is none of its 2 extents");
    assert!(gpu(|_, l| l.dynamic_shared_bytes = usize::MAX).contains("bytes of shared memory"));
    assert!(gpu(|_, l| l.workspace_bytes = usize::MAX).contains("of workspace"));
    assert!(gpu(|_, l| l.maps[0].buffer = 2).contains("of buffer 2"));
    assert!(gpu(|_, l| l.maps[0].dtype = DType::F32).contains("of f32"));
    assert!(gpu(|_, l| l.maps[0].rows = 257).contains("257 x 64"));
    assert!(gpu(|_, l| l.maps[0].cols = 0).contains("64 x 0"));
    assert!(gpu(|_, l| drop(l.maps[0].axes.pop())).contains("with 1 axes"));
    assert!(gpu(|_, l| l.maps[0].axes[1].1 = Dim::from(2)).contains("with 2 axes"));
    assert!(gpu(|_, l| l.maps[0].axes[0].0 = Dim::sym("Q")).contains("Q is none"));
    assert!(gpu(|_, l| l.maps[0].dtype = DType::F16).contains("k copies f16 from a buffer of another dtype"));
    let product = sample().manifest.entries[0].steps[1].clone();
    assert_eq!(gpu(|m, _| m.entries[0].steps.push(product)), "entry forward: a product that is no kernel, for sm_90a");
}
