use super::*;

fn sample() -> Tuning {
    let mut t = Tuning {
        device: "a \u{201c}machine\u{201d}".into(),
        program: Some(("m".into(), 0xab)),
        dims: [("B".into(), 2), ("T".into(), 64)].into_iter().collect(),
        times: BTreeMap::new(),
        ..Tuning::of_target(false).clone()
    };
    t.note(&Job { class: Class::Product, dtype: DType::F32, shape: vec![1, 100, 30, 0] }, 1234.0);
    t.tilings.insert("attend f32 b=B causal".into(), "queries=16,keys=64".into());
    t
}

fn read(text: &str) -> Result<Tuning, TuningError> {
    Tuning::parse(text, "x.tune.lock")
}

#[test]
fn tables_read_back_and_the_shipped_ones_are_as_printed() {
    let t = sample();
    assert_eq!(read(&t.to_string()).expect("it reads"), t);
    for gpu in [false, true] {
        let shipped = Tuning::of_target(gpu);
        assert_eq!(read(&shipped.to_string()).expect("it reads"), *shipped);
        assert!(shipped.program.is_none() && shipped.tilings.is_empty());
    }
}

#[test]
fn buckets_are_the_nearest_powers_of_two() {
    let at = |shape: &[i64]| bucket(&Job { class: Class::Product, dtype: DType::F32, shape: shape.to_vec() }).shape;
    assert_eq!(at(&[0, 1, 3, 5]), [0, 1, 4, 4]);
    assert_eq!(at(&[90, 91, 100, 181]), [64, 128, 128, 128]);
    assert_eq!(at(&at(&[7, 77, 777, 7777])), at(&[7, 77, 777, 7777]));
}

#[test]
fn each_mistake_has_its_line_and_code() {
    let good = sample().to_string();
    let swapped = |from: &str, to: &str| {
        assert!(good.contains(from), "{from} is not in\n{good}");
        good.replace(from, to)
    };
    for (text, why) in [
        (String::new(), "it is empty"),
        ("\u{7f}ELF".into(), "no tuning table"),
        (swapped("time product", "time produce"), "there is no class 'produce'"),
        (swapped("1x128x32x0", "1x128x32"), "the extents of product are batchxmxnxk"),
        (swapped("1x128x32x0", "1x100x32x0"), "an extent is no power of two"),
        (swapped("rate memory", "rate memories"), "this is no line of a tuning table"),
        (swapped("dims B=2", "dims B=two"), "'B=two' is no dim"),
        (swapped("causal\"", "causal"), "a quote is not closed"),
        (swapped("target host\n", ""), "the target or a rate is missing"),
        (format!("{good}tiling \"attend f32 b=B causal\" queries=8,keys=8\n"), "a problem twice"),
        (swapped("rate launch ", "rate launch -"), "is no rate"),
    ] {
        match read(&text) {
            Err(TuningError::Damaged { why: found, line, .. }) => assert!(found.contains(why) && line > 0, "{found} for {why}"),
            other => panic!("{why}: {other:?}"),
        }
    }
    assert!(matches!(
        read(&good.replace("lode-tuning 1", "lode-tuning 2")),
        Err(TuningError::Version { found: 2, known: 1, .. })
    ));
}

#[test]
fn damage_is_an_error_and_never_a_panic() {
    let good = sample().to_string().into_bytes();
    let mut seed = 1u64;
    for i in 0..3000 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut bad = good.clone();
        let at = (seed >> 33) as usize % bad.len();
        match i % 3 {
            0 => bad[at] ^= 1 << (i % 7),
            1 => bad.truncate(at),
            _ => bad[at] = b"0 x\"\n="[(seed >> 20) as usize % 6],
        }
        if let Ok(t) = read(&String::from_utf8_lossy(&bad)) {
            assert_eq!(read(&t.to_string()).expect("what is printed reads"), t);
        }
    }
}

/// What was measured on GPUs, as `docs/performance.md` has it: class, dtype, extents, and µs or, of products, TFLOP/s.
const ON_GPUS: &[(Class, DType, &[i64], Figure)] = {
    use Class::*;
    use DType::*;
    use Figure::*;
    &[
        // One H100: m = 4096, and 8192³.
        (Product, BF16, &[1, 4096, 2112, 7168], Tflops(730.0)),
        (Product, BF16, &[1, 4096, 24576, 1536], Tflops(751.0)),
        (Product, BF16, &[1, 4096, 7168, 16384], Tflops(814.0)),
        (Product, BF16, &[1, 4096, 4096, 7168], Tflops(803.0)),
        (Product, BF16, &[1, 4096, 7168, 2048], Tflops(754.0)),
        (Product, BF16, &[1, 8192, 8192, 8192], Tflops(806.0)),
        // One H200, values of a llama of 119 M parameters (docs/optimiser.md): the product alone, where `lode tune` had that of keys with its rotation.
        (Product, BF16, &[1, 16384, 256, 768], Us(15.6)),
        // Groups, rows, columns, summed terms of y = x·wᵀ and dx = dy·w.
        (GroupedProduct, BF16, &[128, 131_072, 1536, 2048], Tflops(610.0)),
        (GroupedProduct, BF16, &[128, 131_072, 2048, 1536], Tflops(600.0)),
        (GroupedProduct, BF16, &[128, 131_072, 2048, 768], Tflops(562.0)),
        (GroupedProduct, BF16, &[128, 131_072, 768, 2048], Tflops(561.0)),
        (GroupedProduct, BF16, &[32, 131_072, 4096, 7168], Tflops(722.0)),
        (GroupedProduct, BF16, &[32, 131_072, 7168, 4096], Tflops(625.0)),
        (GroupedProduct, BF16, &[32, 131_072, 7168, 2048], Tflops(695.0)),
        (GroupedProduct, BF16, &[32, 131_072, 2048, 7168], Tflops(672.0)),
        (GroupedOuter, BF16, &[128, 131_072, 1536, 2048], Tflops(674.0)),
        (GroupedOuter, BF16, &[128, 131_072, 2048, 768], Tflops(662.0)),
        (GroupedOuter, BF16, &[32, 131_072, 4096, 7168], Tflops(747.0)),
        (GroupedOuter, BF16, &[32, 131_072, 7168, 2048], Tflops(761.0)),
        // 16 heads, causal: batch × heads, queries, keys that are seen at most, keys, d of keys and of values.
        (Attend, BF16, &[16, 8192, 8192, 8192, 128, 128], Us(470.0)),
        (Attend, BF16, &[16, 16384, 16384, 16384, 128, 128], Us(1805.0)),
        (Attend, BF16, &[64, 2048, 2048, 2048, 128, 128], Us(145.0)),
        (Attend, BF16, &[16, 8192, 8192, 8192, 64, 64], Us(352.0)),
        (Attend, BF16, &[16, 16384, 16384, 16384, 64, 64], Us(1280.0)),
        (Attend, BF16, &[64, 2048, 2048, 2048, 64, 64], Us(108.0)),
        (Attend, BF16, &[16, 8192, 8192, 8192, 192, 128], Us(548.0)),
        (Attend, BF16, &[16, 16384, 16384, 16384, 192, 128], Us(2121.0)),
        (Attend, BF16, &[64, 2048, 2048, 2048, 192, 128], Us(173.0)),
        (Attend, BF16, &[16, 8192, 8192, 8192, 256, 256], Us(904.0)),
        (AttendGrad, BF16, &[16, 8192, 8192, 8192, 128, 128], Us(1533.0)),
        (AttendGrad, BF16, &[16, 16384, 16384, 16384, 128, 128], Us(5749.0)),
        (AttendGrad, BF16, &[64, 2048, 2048, 2048, 128, 128], Us(487.0)),
        (AttendGrad, BF16, &[16, 8192, 8192, 8192, 64, 64], Us(1010.0)),
        (AttendGrad, BF16, &[16, 16384, 16384, 16384, 64, 64], Us(3644.0)),
        (AttendGrad, BF16, &[64, 2048, 2048, 2048, 64, 64], Us(314.0)),
        (AttendGrad, BF16, &[16, 8192, 8192, 8192, 192, 128], Us(2117.0)),
        (AttendGrad, BF16, &[16, 16384, 16384, 16384, 192, 128], Us(7915.0)),
        (AttendGrad, BF16, &[64, 2048, 2048, 2048, 192, 128], Us(638.0)),
        (Topk, F32, &[16384, 128, 8], Us(29.0)),
        (Route, I32, &[131_072, 128], Us(45.0)),
        // Adam's moments of 23.6 M elements: an operation or three an element, 12 bytes of traffic.
        (Fused, F32, &[70_800_000, 283_200_000], Us(69.0)),
    ]
};

#[derive(Clone, Copy)]
enum Figure {
    Tflops(f64),
    Us(f64),
}

#[test]
fn the_table_of_gpus_says_what_was_measured() {
    let shipped = Tuning::of_target(true);
    let mut steps: BTreeMap<Job, Vec<(Job, f64)>> = BTreeMap::new();
    for (class, dtype, shape, figure) in ON_GPUS {
        let job = Job { class: *class, dtype: *dtype, shape: shape.to_vec() };
        let ns = match figure {
            Figure::Tflops(rate) => job.flops() / (rate * 1e3),
            Figure::Us(us) => us * 1e3,
        };
        steps.entry(bucket(&job)).or_default().push((job, ns));
    }
    // What `lode tune` found beside these, or in one of their buckets in less time, is there too.
    let mut want = shipped.clone();
    for (bucket, of) in steps {
        let ns = want.in_bucket(&of.iter().map(|(j, ns)| (j, *ns)).collect::<Vec<_>>());
        let known = want.times.entry(bucket).or_insert(ns);
        *known = (*known).min(ns);
    }
    assert!(want == *shipped, "tuning/sm_90a.txt should be\n{want}");
    // And questions of what was measured are answered by it.
    let model = crate::cost::Model::new(shipped);
    for (class, dtype, shape, _) in ON_GPUS {
        assert!(model.measured(&Job { class: *class, dtype: *dtype, shape: shape.to_vec() }).is_some());
    }
}

/// A table that is printed anew differs by its comments alone: sorted, nothing twice.
#[test]
fn shipped_tables_are_as_they_would_be_printed() {
    for (gpu, (name, text)) in [(false, HOST), (true, SM_90A)] {
        let facts: String = text.lines().filter(|l| !l.starts_with('#')).map(|l| format!("{l}\n")).collect();
        let printed = Tuning::of_target(gpu).to_string();
        assert!(facts == printed, "{name} should be\n{printed}");
    }
}
