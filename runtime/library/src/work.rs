//! What a step does, in the numbers that its time depends on: the compiler estimates it, the run-time counts it, `lode tune` measures it.

use base::{DType, Dim, DimEnv};
use serde::{Deserialize, Serialize};

/// The kind of a step: what its time is a function of. The extents of each are listed in [`Class::extents`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Class {
    Product,
    GroupedProduct,
    GroupedOuter,
    Attend,
    AttendGrad,
    Topk,
    Cumsum,
    ScatterAdd,
    Route,
    /// Elementwise ops and reductions in one kernel.
    Fused,
    /// Copies and zeros.
    Copy,
}

impl Class {
    /// Every class.
    pub const ALL: &[Class] = &[
        Class::Product,
        Class::GroupedProduct,
        Class::GroupedOuter,
        Class::Attend,
        Class::AttendGrad,
        Class::Topk,
        Class::Cumsum,
        Class::ScatterAdd,
        Class::Route,
        Class::Fused,
        Class::Copy,
    ];
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Class::Product => "product",
            Class::GroupedProduct => "grouped_product",
            Class::GroupedOuter => "grouped_outer",
            Class::Attend => "attend",
            Class::AttendGrad => "attend_grad",
            Class::Topk => "topk",
            Class::Cumsum => "cumsum",
            Class::ScatterAdd => "scatter_add",
            Class::Route => "route",
            Class::Fused => "fused",
            Class::Copy => "copy",
        }
    }
    /// The class of that name.
    pub fn from_name(name: &str) -> Option<Class> {
        Class::ALL.iter().copied().find(|c| c.name() == name)
    }
    /// What its extents are, in order. `heads` are pairs of batch and key head, `rows` the queries of each; `seen` is the number of keys that a
    /// query sees at most, `keys` of those that some query sees.
    pub fn extents(self) -> &'static [&'static str] {
        match self {
            Class::Product => &["batch", "m", "n", "k"],
            Class::GroupedProduct | Class::GroupedOuter => &["groups", "rows", "n", "k"],
            Class::Attend | Class::AttendGrad => &["heads", "rows", "seen", "keys", "dk", "dv"],
            Class::Topk => &["rows", "n", "k"],
            Class::Cumsum => &["lanes", "n"],
            Class::ScatterAdd => &["picks", "rows", "row"],
            Class::Route => &["choices", "groups"],
            Class::Fused => &["ops", "bytes"],
            Class::Copy => &["bytes"],
        }
    }
}

/// The work of a step for any run-time dims.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Work {
    /// Of which kind.
    pub class: Class,
    /// Of its operands.
    pub dtype: DType,
    /// What [`Class::extents`] says.
    pub shape: Vec<Dim>,
}

/// The same for run-time dims that are known.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Job {
    /// Of which kind.
    pub class: Class,
    /// Of its operands.
    pub dtype: DType,
    /// What [`Class::extents`] says; none is negative.
    pub shape: Vec<i64>,
}

impl Work {
    /// With the values of all its dims; `None` if one has none.
    pub fn at(&self, dims: &DimEnv) -> Option<Job> {
        let shape: Option<Vec<i64>> = self.shape.iter().map(|d| d.eval(dims).map(|n| n.max(0))).collect();
        Some(Job { class: self.class, dtype: self.dtype, shape: shape? })
    }
}

impl Job {
    /// Floating-point operations; of fused kernels, operations of any kind.
    pub fn flops(&self) -> f64 {
        let n: Vec<f64> = self.shape.iter().map(|n| *n as f64).collect();
        match (self.class, &n[..]) {
            (Class::Product, [batch, m, n, k]) => 2.0 * batch * m * n * k,
            (Class::GroupedProduct | Class::GroupedOuter, [_, rows, n, k]) => 2.0 * rows * n * k,
            // Scores and sums forward; scores, and four products with their gradients, backward.
            (Class::Attend, [heads, rows, seen, _, dk, dv]) => 2.0 * heads * rows * seen * (dk + dv),
            (Class::AttendGrad, [heads, rows, seen, _, dk, dv]) => 2.0 * heads * rows * seen * (3.0 * dk + 2.0 * dv),
            (Class::Topk, [rows, n, k]) => rows * n * k,
            (Class::Cumsum, [lanes, n]) => lanes * n,
            (Class::ScatterAdd, [picks, _, row]) => picks * row,
            (Class::Route, [choices, _]) => *choices,
            (Class::Fused, [ops, _]) => *ops,
            (Class::Copy, _) => 0.0,
            (class, _) => base::bug!("{} of {:?}", class.name(), self.shape),
        }
    }
    /// Bytes that have to be read and written at least.
    pub fn bytes(&self) -> f64 {
        let n: Vec<f64> = self.shape.iter().map(|n| *n as f64).collect();
        let elems = match (self.class, &n[..]) {
            (Class::Product, [batch, m, n, k]) => batch * (m * k + k * n + m * n),
            (Class::GroupedProduct | Class::GroupedOuter, [groups, rows, n, k]) => rows * (n + k) + groups * n * k,
            (Class::Attend, [heads, rows, _, keys, dk, dv]) => heads * (rows + keys) * (dk + dv),
            (Class::AttendGrad, [heads, rows, _, keys, dk, dv]) => heads * (rows + keys) * (2.0 * dk + 2.0 * dv),
            (Class::Topk, [rows, n, k]) => rows * (n + k),
            (Class::Cumsum, [lanes, n]) => 2.0 * lanes * n,
            (Class::ScatterAdd, [picks, rows, row]) => (picks + rows) * row,
            (Class::Route, [choices, groups]) => 3.0 * choices + groups,
            (Class::Fused, [_, bytes]) | (Class::Copy, [bytes]) => return *bytes,
            (class, _) => base::bug!("{} of {:?}", class.name(), self.shape),
        };
        elems * self.dtype.bytes() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_jobs_count() {
        for c in Class::ALL {
            assert_eq!(Class::from_name(c.name()), Some(*c));
            let job = Job { class: *c, dtype: DType::F32, shape: vec![2; c.extents().len()] };
            assert!(job.bytes() > 0.0 && (job.flops() > 0.0) == (*c != Class::Copy), "{job:?}");
        }
        let work = Work { class: Class::Product, dtype: DType::BF16, shape: vec![1.into(), Dim::sym("B"), 3.into(), 4.into()] };
        let job = work.at(&[("B".into(), 5)].into_iter().collect()).expect("B has a value");
        assert_eq!((job.flops(), job.bytes()), (120.0, 2.0 * (20.0 + 12.0 + 15.0)));
        assert_eq!(work.at(&DimEnv::new()), None);
    }
}
