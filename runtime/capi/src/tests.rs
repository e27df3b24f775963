//! Calls that cannot be right. What is right is tested by a C program: `compiler/driver/tests/c`.

use super::*;
use std::ptr::{null, null_mut};

fn told() -> String {
    // SAFETY: `lode_error` gives a C string of this thread.
    unsafe { CStr::from_ptr(lode_error()) }.to_string_lossy().into_owned()
}

#[test]
fn null_pointers_are_wrong_calls_and_no_crashes() {
    // SAFETY: null is allowed everywhere.
    unsafe {
        assert!(lode_open(null(), 0).is_null());
        assert_eq!(told(), "the path is null");
        lode_close(null_mut());
        for status in [
            lode_initialise(null_mut(), 0),
            lode_load(null_mut(), c"x".as_ptr()),
            lode_describe(null(), null(), 0, null_mut()),
            lode_set(null_mut(), 0, null()),
            lode_get(null_mut(), 0, c"x".as_ptr(), null_mut()),
            lode_zero(null_mut(), 0),
            lode_run(null_mut(), c"forward".as_ptr(), null(), 0),
        ] {
            assert_eq!(status, convert::USAGE);
            assert_eq!(told(), "the library is null");
        }
        assert!(lode_entry(null(), 0).is_null());
    }
}

#[test]
fn what_cannot_be_opened_is_told_with_its_code() {
    let path = std::env::temp_dir().join(format!("lode-capi-{}.lodelib", std::process::id()));
    let c = CString::new(path.to_string_lossy().as_bytes()).expect("a path without NUL");
    // SAFETY: C strings; the files are no libraries, and nothing of them is run.
    unsafe {
        assert!(lode_open(c.as_ptr(), 0).is_null());
        assert!(told().starts_with("E0605: "), "{}", told());
        std::fs::write(&path, "hello").expect("it writes");
        assert!(lode_open(c.as_ptr(), 0).is_null());
        assert!(told().starts_with("E0601: "), "{}", told());
        assert!(lode_open(c.as_ptr(), -1).is_null());
        assert_eq!(told(), "-1 threads");
        assert!(lode_open(c"\xff".as_ptr(), 0).is_null());
        assert_eq!(told(), "the path is not UTF-8");
    }
    std::fs::remove_file(&path).expect("it is there");
}

#[test]
fn tensors_that_cannot_be_are_refused() {
    let name = c"x".as_ptr();
    let (shape, data) = ([2i64, 3], [0f32; 6]);
    let good = Tensor { name, dtype: 1, rank: 2, shape: shape.as_ptr(), data: data.as_ptr().cast() };
    let huge = [i64::MAX, 3];
    let negative = [-2i64, 3];
    // SAFETY: what is not null points to what the fields say, or is refused before it is read.
    unsafe {
        let (name, value) = convert::tensor(&good).expect("it is a tensor");
        assert_eq!((name, value.shape, value.dtype), ("x", vec![2, 3], DType::F32));
        for bad in [
            Tensor { name: null(), ..good },
            Tensor { dtype: 9, ..good },
            Tensor { dtype: -1, ..good },
            Tensor { rank: -1, ..good },
            Tensor { rank: 33, ..good },
            Tensor { shape: null(), ..good },
            Tensor { shape: huge.as_ptr(), ..good },
            Tensor { shape: negative.as_ptr(), ..good },
            Tensor { data: null(), ..good },
        ] {
            assert_eq!(convert::tensor(&bad).expect_err("it is refused").status, convert::USAGE);
        }
        let none = [0i64, 3];
        assert!(convert::tensor(&Tensor { shape: none.as_ptr(), data: null(), ..good }).is_ok());
        assert!(convert::tensor(&Tensor { rank: 0, shape: null(), ..good }).is_ok());
    }
}

#[test]
fn the_header_has_every_number_and_function() {
    let header = include_str!("../include/lode.h");
    let list = |first: &str| {
        let at = header.find(first).unwrap_or_else(|| panic!("{first} is in the header"));
        header[at..].split('}').next().unwrap_or_default().split(", ").map(|s| s.trim().to_string()).collect::<Vec<_>>()
    };
    let dtypes: Vec<String> = DType::ALL.iter().map(|d| format!("LODE_{}", d.to_string().to_uppercase())).collect();
    assert_eq!(list("LODE_F64"), dtypes);
    let roles: Vec<String> = handle::ROLES.iter().map(|r| format!("LODE_{r:?}").to_uppercase()).collect();
    assert_eq!(list("LODE_PARAM"), roles);
    let source = include_str!("lib.rs");
    let functions = source.split("extern \"C\" fn ").skip(1).filter_map(|s| s.split('(').next());
    functions.for_each(|f| assert!(header.contains(&format!("{f}(")), "{f}"));
}
