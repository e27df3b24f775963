use super::*;
use crate::testing::{self, folder, manifest};

fn initialised(seed: u64) -> Store {
    let mut s = Store::default();
    s.initialise(&manifest(false), seed).expect("there is memory");
    s
}

fn f32s(s: &Store, role: Role, name: &str) -> Vec<f64> {
    let slot = s.get(role, name).expect("it is there");
    tensor::read(slot.dtype, slot.memory.bytes())
}

/// A large parameter, drawn in pieces by several threads, is its stream; so is each layer of a stack.
#[test]
fn parameters_depend_on_seed_and_file_name_alone() {
    let mut m = manifest(false);
    let param = |name: &str, shape: &[i64]| Param { name: name.into(), shape: shape.to_vec(), ..m.params[0].clone() };
    let params = vec![param("big", &[300, 301]), param("l.*.w", &[3, 70, 301]), param("l.*+3.w", &[1, 70, 301])];
    m.params = params;
    let mut s = Store::default();
    s.initialise(&m, 9).expect("there is memory");
    let stream = |name: &str, n: u64| {
        let s = Stream::new(9, name);
        (0..n).map(|i| f64::from((0.5 * s.normal(i)) as f32)).collect::<Vec<f64>>()
    };
    assert_eq!(f32s(&s, Role::Param, "big"), stream("big", 300 * 301));
    let stacked = f32s(&s, Role::Param, "l.*.w");
    for (i, layer) in stacked.chunks(70 * 301).enumerate() {
        assert_eq!(layer, stream(&format!("l.{i}.w"), 70 * 301));
    }
    assert_eq!(f32s(&s, Role::Param, "l.*+3.w"), stream("l.3.w", 70 * 301));
    let (a, b) = (initialised(1), initialised(2));
    assert_ne!(f32s(&a, Role::Param, "table"), f32s(&b, Role::Param, "table"));
    assert!(f32s(&a, Role::Param, "layers.*.bias").iter().all(|x| (-0.1..0.1).contains(x)));
    assert_eq!(f32s(&a, Role::State, "balance"), [0.0; testing::V]);
}

#[test]
fn weights_read_back_in_any_float_type() {
    let m = manifest(false);
    let (a, folder) = (initialised(1), folder("store-types"));
    let path = folder.join("w.safetensors");
    let tensors = a.to_file(&m);
    let names: Vec<&str> = tensors.iter().map(|(n, _)| n.as_str()).collect();
    assert_eq!(names, ["table", "layers.0.bias", "layers.1.bias", "balance"]);
    for dtype in [DType::F32, DType::F64, DType::BF16, DType::F16] {
        let cast: Vec<_> = tensors.iter().map(|(n, t)| (n.clone(), t.cast(dtype))).collect();
        crate::checkpoint::write(&path, &cast, &[]).expect("it writes");
        let mut b = initialised(2);
        b.load_weights(&m, &path, &[]).expect("it fits");
        let want: Vec<f64> = f32s(&a, Role::Param, "table").into_iter().map(|x| dtype.round(x)).collect();
        assert_eq!(f32s(&b, Role::Param, "table"), want, "{dtype}");
    }
}

#[test]
fn everything_that_does_not_fit_is_listed_and_nothing_is_changed() {
    let m = manifest(false);
    let (a, folder) = (initialised(1), folder("store-misfit"));
    let path = folder.join("w.safetensors");
    let mut tensors = a.to_file(&m);
    tensors[0].1 = HostTensor::from_f64(DType::F32, &[2, 2], [1.0; 4]);
    tensors[1].0 = "layers.7.bias".into();
    tensors[2].1 = HostTensor::from_i32(&[32], &[0; 32]);
    tensors.remove(3);
    tensors.push(("lm.rotary_emb.inv_freq".into(), HostTensor::from_i32(&[1], &[0])));
    crate::checkpoint::write(&path, &tensors, &[]).expect("it writes");
    let mut b = initialised(2);
    let before = b.to_file(&m);
    let Err(ExecError::Weights { mismatches, .. }) = b.load_weights(&m, &path, &[]) else { panic!("it does not fit") };
    let want = [
        "  table is [2, 2], not [32, 32]",
        "  layers.0.bias [32] is missing",
        "  layers.1.bias is i32, not f32",
        "  layers.7.bias is not of the model",
    ];
    assert_eq!(mismatches.lines().collect::<Vec<_>>(), want);
    assert_eq!(b.to_file(&m), before);
}

#[test]
fn a_tied_name_stands_for_a_missing_tensor() {
    let m = manifest(false);
    let (a, folder) = (initialised(1), folder("store-tied"));
    let path = folder.join("w.safetensors");
    let mut tensors = a.to_file(&m);
    tensors[0].0 = "embed".into();
    crate::checkpoint::write(&path, &tensors, &[]).expect("it writes");
    let mut b = initialised(2);
    b.load_weights(&m, &path, &[("table", "embed")]).expect("it fits");
    assert_eq!(b.to_file(&m), a.to_file(&m));
    let missing = path.with_file_name("none.safetensors");
    assert!(matches!(b.load_weights(&m, &missing, &[]), Err(ExecError::File { .. })));
}

/// The system would promise it, and end the program when it is written to.
#[test]
fn a_model_beyond_memory_is_refused_before_it_is_made() {
    let mut m = manifest(false);
    let Some(available) = device::memory::available_bytes() else { return println!("skipped: the system does not say") };
    m.params = vec![Param { name: "w.*".into(), shape: vec![4, available as i64 / 8], ..m.params[0].clone() }];
    let mut s = Store::default();
    let Err(ExecError::Memory { needed_mib, available_mib, table }) = s.initialise(&m, 1) else {
        panic!("it is twice too large")
    };
    assert!(needed_mib > available_mib && table == "for parameters", "{needed_mib} of {available_mib}");
    assert_eq!(s.iter().count(), 0);
}
