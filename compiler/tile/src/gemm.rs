//! Einstein summations as batched dense products over strided views.

use crate::view::StridedView;
use base::{DType, Dim};
use graph::op::Contract;
use library::Gemm;

/// What a run-time dim is taken to be where loops are compared.
const LARGE: i64 = 1 << 10;

/// One loop of a product: its extent and the strides it has in a, b and c.
#[derive(Clone, Debug, PartialEq)]
struct Axis {
    extent: Dim,
    strides: [Dim; 3],
    /// The letters that it goes through, outermost first.
    letters: Vec<char>,
}

/// The letters of the loops of a product: of each axis of the batch, of the rows and of the columns. Axes of one are in none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Letters {
    /// Of the batch.
    pub batch: Vec<Vec<char>>,
    /// Of the rows.
    pub rows: Vec<char>,
    /// Of the columns.
    pub cols: Vec<char>,
}

/// The product that computes `spec` from views `a` and `b` into `c`; `None` if the summed axes are not one stride in both operands
/// (then the operands have to be copied).
pub fn gemm(spec: &Contract, dtype: DType, a: &StridedView, b: &StridedView, c: &StridedView, accumulate: bool) -> Option<Gemm> {
    Some(gemm_of(spec, dtype, [a, b, c], accumulate)?.0)
}

/// The same, and what its loops go through.
pub fn gemm_of(spec: &Contract, dtype: DType, [a, b, c]: [&StridedView; 3], accumulate: bool) -> Option<(Gemm, Letters)> {
    let axis = |x: char| {
        let of = |letters: &[char], v: &StridedView| {
            letters.iter().position(|y| *y == x).map(|i| (v.shape[i].clone(), v.strides[i].clone()))
        };
        let found = [of(&spec.lhs, a), of(&spec.rhs, b), of(&spec.out, c)];
        let extent = found.iter().flatten().next().expect("each letter is in an operand").0.clone();
        Axis { extent, strides: found.map(|f| f.map_or(Dim::from(0), |(_, s)| s)), letters: vec![x] }
    };
    let axes = |letters: Vec<char>| letters.into_iter().map(axis).filter(|x| !x.extent.is(1)).collect::<Vec<_>>();
    let mut batch = axes(spec.batch());
    let k = permutations(axes(spec.summed())).into_iter().map(merge_all).find(|merged| merged.len() < 2)?;
    let k = k.into_iter().next().unwrap_or_else(one);
    let (m_rest, m) = take_largest(merge_all(axes(spec.rows())));
    let (n_rest, n) = take_largest(merge_all(axes(spec.cols())));
    batch.extend(m_rest);
    batch.extend(n_rest);
    let [ak, bk, _] = k.strides;
    let batch = merge_all(batch);
    let [am, _, cm] = m.strides;
    let [_, bn, cn] = n.strides;
    let letters = Letters { batch: batch.iter().map(|x| x.letters.clone()).collect(), rows: m.letters, cols: n.letters };
    let product = Gemm {
        dtype,
        a: a.at.clone(),
        b: b.at.clone(),
        c: c.at.clone(),
        m: m.extent,
        n: n.extent,
        k: k.extent,
        strides: [am, ak, bk, bn, cm, cn],
        batch: batch.into_iter().map(|x| (x.extent, x.strides)).collect(),
        accumulate,
    };
    Some((product, letters))
}

/// Whether `outer` followed by `inner` is one loop.
fn nests(outer: &Axis, inner: &Axis) -> bool {
    outer.strides.iter().zip(&inner.strides).all(|(o, i)| *o == i.clone() * inner.extent.clone())
}

fn join(outer: Axis, inner: Axis) -> Axis {
    Axis { extent: outer.extent * inner.extent, strides: inner.strides, letters: [outer.letters, inner.letters].concat() }
}

/// A loop of one turn.
fn one() -> Axis {
    Axis { extent: Dim::from(1), strides: [Dim::from(0), Dim::from(0), Dim::from(0)], letters: Vec::new() }
}

/// The largest loop, the last of equals, and the others. Run-time dims are taken to be large.
fn take_largest(mut axes: Vec<Axis>) -> (Vec<Axis>, Axis) {
    let size = |x: &Axis| x.extent.substitute(&|_| Some(Dim::from(LARGE))).known().unwrap_or(LARGE);
    match (0..axes.len()).max_by_key(|i| size(&axes[*i])) {
        Some(i) => {
            let largest = axes.remove(i);
            (axes, largest)
        }
        None => (axes, one()),
    }
}

/// Neighbouring loops joined where they can be.
fn merge_all(axes: Vec<Axis>) -> Vec<Axis> {
    let mut merged: Vec<Axis> = Vec::new();
    for x in axes {
        match merged.pop_if(|outer| nests(outer, &x)) {
            Some(outer) => merged.push(join(outer, x)),
            None => merged.push(x),
        }
    }
    merged
}

/// All orders, the given one first.
fn permutations(axes: Vec<Axis>) -> Vec<Vec<Axis>> {
    if axes.len() < 2 {
        return vec![axes];
    }
    let mut all = Vec::new();
    for i in 0..axes.len() {
        let mut rest = axes.clone();
        let first = rest.remove(i);
        all.extend(permutations(rest).into_iter().map(|p| [vec![first.clone()], p].concat()));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::StridedView;

    fn view(s: &str) -> StridedView {
        let shape: Vec<Dim> = s.split_whitespace().map(|d| d.parse().expect("a dim")).collect();
        StridedView::contiguous(library::View { buffer: 0, offset: Dim::from(0), turn: Vec::new() }, &shape)
    }

    fn check(spec: &str, a: &str, b: &str, c: &str) -> Option<String> {
        let spec = spec.parse().expect("a contraction");
        let g = gemm(&spec, DType::F32, &view(a), &view(b), &view(c), false)?;
        let batch: Vec<String> = g.batch.iter().map(|(n, s)| format!("{n}:{s:?}")).collect();
        Some(format!("m={} n={} k={} {:?} batch={}", g.m, g.n, g.k, g.strides, batch.join(" ")))
    }

    #[test]
    fn projections_are_one_product() {
        assert_eq!(
            check("btd,df->btf", "B T 64", "64 32", "B T 32").as_deref(),
            Some("m=B*T n=32 k=64 [64, 1, 32, 1, 32, 1] batch=")
        );
        assert_eq!(
            check("btd,fd->btf", "B T 64", "32 64", "B T 32").as_deref(),
            Some("m=B*T n=32 k=64 [64, 1, 1, 64, 32, 1] batch=")
        );
        assert_eq!(
            check("btf,btd->fd", "B T 32", "B T 64", "32 64").as_deref(),
            Some("m=32 n=64 k=B*T [1, 32, 64, 1, 64, 1] batch=")
        );
        assert_eq!(
            check("bthk,hko->bto", "B T 4 16", "4 16 64", "B T 64").as_deref(),
            Some("m=B*T n=64 k=64 [64, 1, 64, 1, 64, 1] batch=")
        );
    }

    #[test]
    fn heads_are_batch_loops() {
        assert_eq!(
            check("bthk,bshk->bhts", "B T 4 16", "B S 4 16", "B 4 T S").as_deref(),
            Some("m=T n=S k=16 [64, 1, 1, 64, S, 1] batch=B:[64*T, 64*S, 4*S*T] 4:[16, 16, S*T]")
        );
    }

    #[test]
    fn the_largest_loop_is_a_matrix_axis() {
        // Scores of grouped heads: two heads a group are a loop, tokens are the rows.
        assert_eq!(
            check("btgrd,bmgd->btgrm", "B T 2 2 32", "B M 2 32", "B T 2 2 M").as_deref(),
            Some("m=T n=M k=32 [128, 1, 1, 64, 4*M, 1] batch=B:[128*T, 64*M, 4*M*T] 2:[64, 32, 2*M] 2:[32, 0, M]")
        );
    }

    #[test]
    fn sums_that_are_two_strides_in_an_operand_need_a_copy() {
        assert_eq!(check("hbk,bhk->k", "4 B 16", "B 4 16", "16"), None);
    }
}
