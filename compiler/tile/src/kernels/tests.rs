//! Each kernel in the tile interpreter against the graph's.

mod attend;
mod index;
mod product;
mod select;

use crate::{
    interp::{Options, run},
    ir::Kernel,
};
use base::{DType, Dim, DimEnv, TensorType};
use graph::{
    Func, Op, Role, Value,
    build::Builder,
    interp::{Tensor, eval},
};

/// Seeded numbers.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }
    fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 11
    }
    /// In [-1, 1).
    pub fn float(&mut self) -> f64 {
        self.bits() as f64 / (1u64 << 52) as f64 - 1.0
    }
    /// In lo..hi.
    pub fn int(&mut self, lo: i64, hi: i64) -> i64 {
        lo + (self.bits() % (hi - lo) as u64) as i64
    }
    pub fn tensor(&mut self, dtype: DType, shape: &[i64]) -> Tensor {
        let n = shape.iter().product::<i64>();
        Tensor::new(dtype, shape, (0..n).map(|_| self.float()).collect())
    }
}

pub fn i32s(shape: &[i64], data: impl IntoIterator<Item = i64>) -> Tensor {
    Tensor::new(DType::I32, shape, data.into_iter().map(|x| x as f64).collect())
}

pub fn known(t: &Tensor) -> TensorType {
    TensorType::new(t.dtype, t.shape.iter().map(|n| Dim::from(*n)).collect::<Vec<_>>())
}

/// The results of an op by the graph's interpreter.
pub fn oracle(op: &Op, args: &[Tensor]) -> Vec<Tensor> {
    let mut f = Func::new("f");
    let operands: Vec<Value> = args.iter().enumerate().map(|(i, t)| f.arg(&i.to_string(), Role::Input, known(t))).collect();
    for (i, v) in Builder::new(&mut f).node(op.clone(), &operands).into_iter().enumerate() {
        f.output(&i.to_string(), Role::Result, v);
    }
    eval(&f, args, &DimEnv::new(), graph::interp::Options::EXACT).expect("the op evaluates")
}

/// The results of a kernel whose buffers are `args`, then results of `lens` elements that start as NaN. Checks that all of them are
/// written, and that the order of blocks does not matter.
pub fn results(kernel: &Kernel, args: &[Tensor], lens: &[usize], dims: &DimEnv, rounded: bool) -> Vec<Vec<f64>> {
    let once = |seed| {
        let inputs = args.iter().map(|t| t.data.clone());
        let mut buffers: Vec<Vec<f64>> = inputs.chain(lens.iter().map(|n| vec![f64::NAN; *n])).collect();
        let report = run(kernel, &mut buffers, dims, Options { rounded, seed, ..Options::default() });
        let report = report.unwrap_or_else(|e| panic!("{}: {e}", kernel.name));
        assert!(report.unwritten.iter().all(|n| *n == 0), "{}: unwritten elements {:?}", kernel.name, report.unwritten);
        buffers.split_off(args.len())
    };
    let (ordered, permuted) = (once(0), once(7));
    let same = |a: &f64, b: &f64| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
    assert!(ordered.iter().flatten().zip(permuted.iter().flatten()).all(|(a, b)| same(a, b)), "the order of blocks shows");
    ordered
}

/// What a kernel makes of its last buffer, which it changes.
pub fn updated(kernel: &Kernel, args: &[Tensor], last: Vec<f64>, dims: &DimEnv) -> Vec<f64> {
    let mut buffers: Vec<Vec<f64>> = args.iter().map(|t| t.data.clone()).chain([last]).collect();
    run(kernel, &mut buffers, dims, Options { rounded: true, ..Options::default() })
        .unwrap_or_else(|e| panic!("{}: {e}", kernel.name));
    buffers.pop().expect("the last")
}

/// Equal up to `tolerance`, relative to the larger of 1 and the wanted size; NaN and infinities exactly.
#[track_caller]
pub fn assert_near(what: &str, got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let near = g == w || g.is_nan() && w.is_nan() || (g - w).abs() <= tolerance * w.abs().max(1.0);
        assert!(near, "{what}: element {i} is {g}, not {w}");
    }
}
