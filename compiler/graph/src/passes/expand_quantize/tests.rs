//! The definition against the op, block by block, with rounding: bit by bit.

use super::*;
use crate::{
    interp::{Options, Tensor, eval},
    random::Random,
    verify::verify_func,
};
use base::{DType, DimEnv};

/// Codes and scales of x, and what they are worth.
fn there_and_back(block: Block, x: &TensorType) -> Func {
    let mut f = Func::new("f");
    let x = f.arg("x", Role::Input, x.clone());
    let mut b = Builder::new(&mut f);
    let q = b.node(Op::Quantize(block), &[x]);
    let y = b.op(Op::Dequantize(block), &q);
    q.iter().chain([&y]).enumerate().for_each(|(i, v)| f.output(&format!("y{i}"), Role::Result, *v));
    f
}

/// Equal bits but for the sign of zeros; all that is undefined is equal.
fn assert_same(what: &str, a: &[Tensor], b: &[Tensor]) {
    for (a, b) in a.iter().zip(b) {
        assert_eq!((a.dtype, &a.shape), (b.dtype, &b.shape), "{what}");
        let differs = |(x, y): (&f64, &f64)| x != y && !(x.is_nan() && y.is_nan());
        assert_eq!(a.data.iter().zip(&b.data).position(differs), None, "{what}: {a:?} {b:?}");
    }
}

fn check(dtype: DType, block: Block, shape: &[i64], data: Vec<f64>) -> Vec<Tensor> {
    let what = format!("{dtype} {shape:?} by {block:?}");
    // The last axis once as a constant, once as what is known at run time.
    let known: Vec<Dim> = shape.iter().map(|n| Dim::from(*n)).collect();
    let mut open = known.clone();
    open[shape.len() - 1] = Dim::sym("N");
    let dims = DimEnv::from([("N".into(), shape[shape.len() - 1])]);
    let x = Tensor::new(dtype, shape, data);
    let mut found = Vec::new();
    for dims_of_x in [known, open] {
        let func = there_and_back(block, &TensorType::new(dtype, dims_of_x));
        let mut expanded = func.clone();
        assert_eq!(expand_quantize(&mut expanded).changes, 2, "{what}");
        assert_eq!(verify_func(&expanded), [], "{what}");
        let run = |f: &Func, options| eval(f, std::slice::from_ref(&x), &dims, options).unwrap_or_else(|e| panic!("{what}: {e}"));
        for options in [Options::EXACT, Options::ROUNDED] {
            assert_same(&what, &run(&func, options), &run(&expanded, options));
        }
        found = run(&func, Options::ROUNDED);
    }
    found
}

#[test]
fn the_definition_is_the_op() {
    let mut random = Random::new(3);
    for dtype in [DType::F64, DType::F32, DType::BF16, DType::F16, DType::E4M3] {
        // Whole blocks, a shorter last one, less than one, single elements, none at all; then the same of several rows.
        let of_rows: [(&[i64], i64); 8] = [
            (&[2, 12], 4),
            (&[3, 10], 4),
            (&[2, 3], 128),
            (&[5], 1),
            (&[2, 3, 0], 4),
            (&[0, 8], 4),
            (&[2, 2, 9], 8),
            (&[1, 300], 128),
        ];
        let of_several: [(&[i64], i64, i64); 6] =
            [(&[4, 12], 2, 4), (&[2, 5, 10], 2, 4), (&[3, 5], 128, 128), (&[3, 0], 2, 4), (&[2, 0, 3], 2, 4), (&[6, 8], 3, 1)];
        let of_rows = of_rows.map(|(shape, size)| (shape, Block::of_row(size)));
        for (shape, block) in of_rows.into_iter().chain(of_several.map(|(shape, rows, size)| (shape, Block { rows, size }))) {
            let n = shape.iter().product::<i64>();
            // From far below the least code to far above the greatest.
            let number = |i: i64| (random.unit() - 0.5) * 2f64.powi((i % 23 - 14) as i32);
            check(dtype, block, shape, (0..n).map(number).collect());
        }
    }
}

#[test]
fn edges_of_blocks() {
    let inf = f64::INFINITY;
    let of = |x: &[f64]| {
        check(DType::F32, Block::of_row(4), &[1, x.len() as i64], x.to_vec()).into_iter().map(|t| t.data).collect::<Vec<_>>()
    };
    // Zeros of both signs: no division by 0.
    assert_eq!(of(&[0.0, -0.0, 0.0, 0.0]), [vec![0.0; 4], vec![0.0], vec![0.0; 4]]);
    // The largest is the greatest code, whatever its size; the least codes are subnormal.
    assert_eq!(
        of(&[-448.0, 1.0, 2f64.powi(-9), 2f64.powi(-11)]),
        [vec![-448.0, 1.0, 2f64.powi(-9), 0.0], vec![1.0], vec![-448.0, 1.0, 2f64.powi(-9), 0.0]]
    );
    for k in [-60, -1, 1, 60] {
        let x = [1.0, -3.5, 448.0, 0.0].map(|x| x * 2f64.powi(k));
        assert_eq!(of(&x)[2], x, "2^{k}");
    }
    // Ties go to the even code.
    assert_eq!(of(&[448.0, 17.0, 19.0, 21.0])[0], [448.0, 16.0, 20.0, 20.0]);
    // What is no number stays in its block.
    let [code, scale, worth] = &of(&[1.0, inf, 2.0, 3.0, 448.0, 7.0, f64::NAN, 1.0, 1.0, 448.0])[..] else {
        panic!("three results")
    };
    assert!(code[1].is_nan() && scale[0] == inf && worth[..4].iter().all(|x| x.is_nan()), "{code:?} {scale:?} {worth:?}");
    assert!(scale[1].is_nan() && worth[4..8].iter().all(|x| x.is_nan()), "{code:?} {scale:?} {worth:?}");
    assert_eq!((&code[8..], scale[2], &worth[8..]), (&[1.0, 448.0][..], 1.0, &[1.0, 448.0][..]));
    // So small that the scale is 0.
    assert_eq!(of(&[2f64.powi(-149); 4]), [vec![0.0; 4], vec![0.0], vec![0.0; 4]]);
}
