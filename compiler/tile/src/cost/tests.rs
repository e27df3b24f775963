use super::*;
use base::DType;

fn job(class: Class, shape: &[i64]) -> Job {
    Job { class, dtype: DType::F32, shape: shape.to_vec() }
}

fn table(times: &[(Job, f64)]) -> Tuning {
    let mut t = Tuning { times: BTreeMap::new(), ..Tuning::of_target(false).clone() };
    times.iter().for_each(|(job, ns)| t.note(job, *ns));
    t
}

#[test]
fn a_measured_bucket_gives_its_time_and_neighbours_lean_to_it() {
    let (here, near, far) = (
        job(Class::Product, &[1, 256, 256, 256]),
        job(Class::Product, &[1, 512, 256, 256]),
        job(Class::Product, &[1, 1 << 20, 4, 4]),
    );
    let slow = 3.0 * roofline(Tuning::of_target(false), &here);
    let t = table(&[(here.clone(), slow)]);
    let model = Model::new(&t);
    assert!((model.time(&here) / slow - 1.0).abs() < 1e-3);
    assert_eq!(model.measured(&near), None);
    let lean = |j: &Job| model.time(j) / roofline(&t, j);
    assert!(lean(&near) > 2.5 && lean(&near) < 3.0, "{}", lean(&near));
    assert!(lean(&far) > 1.0 && lean(&far) < 1.6, "{}", lean(&far));
    // What large ones take less than the roofline has, the start of a kernel does not.
    let fast = Model::new(Box::leak(Box::new(table(&[(here.clone(), 0.5 * roofline(&t, &here))]))));
    let tiny = job(Class::Product, &[1, 1, 1, 1]);
    assert!(fast.time(&tiny) >= t.launch_ns && fast.time(&here) < 0.51 * roofline(&t, &here));
    // Of another class nothing is learnt.
    assert_eq!(lean(&job(Class::Attend, &[4, 64, 64, 64, 32, 32])), 1.0);
}

#[test]
fn the_last_wave_and_the_launch_count() {
    // With all the memory traffic one could ask for.
    let gpu = &Tuning { bytes_per_ns: 1e9, ..Tuning::of_target(true).clone() };
    let time = |m: i64| roofline(gpu, &Job { dtype: DType::BF16, ..job(Class::Product, &[1, m, 256, 1 << 16]) }) - gpu.launch_ns;
    let [m, _] = gpu.tile;
    let p = gpu.processors as i64;
    assert!((time(m * p) / time(m) - 1.0).abs() < 1e-9, "a wave takes as long as a block");
    assert!((time(m * (p + 1)) / time(m * p) - 2.0).abs() < 1e-9, "a block more is a wave more");
    assert!(roofline(gpu, &job(Class::Copy, &[0])) == gpu.launch_ns);
}

#[test]
fn times_are_positive_for_any_job() {
    let t = table(&[(job(Class::Fused, &[1 << 20, 1 << 22]), 1e5)]);
    let model = Model::new(&t);
    for class in Class::ALL {
        for n in [0, 1, 3, 1 << 20, i64::MAX >> 40] {
            let time = model.time(&job(*class, &vec![n; class.extents().len()]));
            assert!(time.is_finite() && time > 0.0, "{} of {n}: {time}", class.name());
        }
    }
}

#[test]
fn queries_read_the_keys_that_they_see_and_gradients_all() {
    let ty = |shape: &[i64]| TensorType::new(DType::BF16, shape.iter().copied().map(Dim::from).collect::<Vec<_>>());
    let (q, kv, lse) = (ty(&[2, 12, 8, 64]), ty(&[2, 4096, 4, 64]), ty(&[2, 12, 8]));
    let lists = ty(&[2, 12, 4, 3]);
    // Neighbours share a window and a prefix, and may list what no other does.
    for (text, seen, keys) in [
        ("causal & window(512)", 512, 512 + 11),
        ("prefix(5)", 5, 5),
        ("window(512) | prefix(5)", 517, 523 + 5),
        ("blocks(0, 16)", 48, 12 * 48),
        ("tokens(0) & window(20)", 3, 31),
        ("window(5000)", 4096, 4096),
        ("causal", 4096, 4096),
    ] {
        let domain: Domain = text.parse().expect("a domain");
        let lists: Vec<&TensorType> = [&lists].into_iter().take(domain.num_operands()).collect();
        let a = graph::op::Attend { domain, scale: graph::op::Scalar::new(1.0) };
        let shape = |op: Op, operands: &[&TensorType]| {
            let work = work(&op, &[operands, &lists[..]].concat(), std::slice::from_ref(&q));
            work.at(&DimEnv::new()).expect("constants").shape
        };
        let forward = shape(Op::Attend(a.clone()), &[&q, &kv, &kv]);
        assert_eq!(forward, [8, 24, seen, keys, 64, 64], "{text}");
        let backward = shape(Op::AttendGrad(a), &[&q, &kv, &kv, &q, &lse, &q, &lse]);
        assert_eq!(backward, [8, 24, seen, 4096, 64, 64], "{text}");
    }
}
