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
