//! Values in memory as strided views: transposes, slices, broadcasts and most reshapes of a buffer cost nothing.

use base::Dim;
use graph::Op;

/// A value's place: element `i` is at `offset + Σ i[a]·strides[a]` of `buffer`, moved by the turns of enclosing loops.
#[derive(Clone, Debug, PartialEq)]
pub struct StridedView {
    /// The buffer and where the view starts in it.
    pub at: library::View,
    /// The extents.
    pub shape: Vec<Dim>,
    /// Elements from one index to the next, per axis.
    pub strides: Vec<Dim>,
}

/// The strides of a contiguous row-major tensor.
pub fn row_major(shape: &[Dim]) -> Vec<Dim> {
    let mut strides = vec![Dim::from(1); shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i].clone() * shape[i].clone();
    }
    strides
}

impl StridedView {
    /// A contiguous view.
    pub fn contiguous(at: library::View, shape: &[Dim]) -> Self {
        Self { at, shape: shape.to_vec(), strides: row_major(shape) }
    }
    /// Whether element order in memory is row-major without gaps. Strides of axes of extent 1 do not matter.
    pub fn is_contiguous(&self) -> bool {
        let dense = row_major(&self.shape);
        self.shape.iter().zip(self.strides.iter().zip(&dense)).all(|(d, (s, r))| d.is(1) || s == r)
    }
    /// Whether a view of the same buffer surely has none of its elements: one ends before the other begins, in each turn.
    pub fn is_apart(&self, other: &StridedView) -> bool {
        let before = |a: &StridedView, b: &StridedView| {
            let gap = b.at.offset.clone() - a.at.offset.clone() - a.span();
            (gap + Dim::from(1)).is_positive()
        };
        self.at.turn == other.at.turn && (before(self, other) || before(other, self))
    }
    /// Elements from the first to the last.
    pub fn span(&self) -> Dim {
        self.shape.iter().zip(&self.strides).fold(Dim::from(1), |n, (d, s)| n + (d.clone() - Dim::from(1)) * s.clone())
    }
    /// The number of elements.
    pub fn elems(&self) -> Dim {
        self.shape.iter().fold(Dim::from(1), |n, d| n * d.clone())
    }
    /// The view that a layout op makes of this one, or `None` if it has to move elements.
    pub fn apply(&self, op: &Op) -> Option<StridedView> {
        let mut v = self.clone();
        match op {
            Op::Transpose(perm) => {
                v.shape = perm.iter().map(|p| self.shape[*p].clone()).collect();
                v.strides = perm.iter().map(|p| self.strides[*p].clone()).collect();
            }
            Op::Broadcast { shape, axes } => {
                v.shape = shape.clone();
                v.strides = vec![Dim::from(0); shape.len()];
                for (a, s) in axes.iter().zip(&self.strides) {
                    v.strides[*a] = s.clone();
                }
            }
            Op::Slice { axis, start, len, step } => {
                v.at.offset = v.at.offset + first_of_slice(start, len, &self.shape[*axis]) * self.strides[*axis].clone();
                v.shape[*axis] = len.clone();
                v.strides[*axis] = self.strides[*axis].clone() * Dim::from(*step);
            }
            Op::Reshape(shape) => {
                v.strides = self.reshape_strides(shape)?;
                v.shape = shape.clone();
            }
            Op::StopGradient => {}
            _ => return None,
        }
        Some(v)
    }
    fn reshape_strides(&self, shape: &[Dim]) -> Option<Vec<Dim>> {
        if self.is_contiguous() {
            return Some(row_major(shape));
        }
        let mut strides = vec![Dim::from(0); shape.len()];
        for (old, new) in reshape_groups(&self.shape, shape)? {
            // The old axes of a group, without those of extent 1, have to nest to be one axis.
            let axes: Vec<usize> = old.filter(|a| !self.shape[*a].is(1)).collect();
            if axes.windows(2).any(|w| self.strides[w[0]] != self.strides[w[1]].clone() * self.shape[w[1]].clone()) {
                return None;
            }
            let mut stride = axes.last().map_or(Dim::from(0), |a| self.strides[*a].clone());
            for a in new.rev() {
                strides[a] = stride.clone();
                stride = stride * shape[a].clone();
            }
        }
        Some(strides)
    }
}

/// Where a slice starts. One that may be empty may start past the end of its axis; it is moved to the last element, as kernels that pad or
/// join an empty value read its first element in vain.
pub fn first_of_slice(start: &Dim, len: &Dim, extent: &Dim) -> Dim {
    if len.is_positive() {
        return start.clone();
    }
    let last = extent.clone() - Dim::from(1);
    let within = start.minimum(&last);
    if extent.is_positive() { within } else { within.maximum(&Dim::from(0)) }
}

/// Pairs runs of axes of two shapes with equal products, smallest runs first: `[b, t, h*k]` and `[b, t, h, k]` give
/// `(b, b), (t, t), (h*k, h k)`. `None` if the products never meet.
pub fn reshape_groups(old: &[Dim], new: &[Dim]) -> Option<Vec<(std::ops::Range<usize>, std::ops::Range<usize>)>> {
    let (mut i, mut j, mut groups) = (0, 0, Vec::new());
    while i < old.len() || j < new.len() {
        let (i0, j0) = (i, j);
        let (mut p, mut q) = (Dim::from(1), Dim::from(1));
        loop {
            // Take from the side whose product is visibly a proper divisor of the other's; ones join the group at hand.
            if i > i0 && j > j0 && p == q {
                break;
            }
            let take_old = match (i < old.len(), j < new.len()) {
                (false, false) => break,
                (true, false) => true,
                (false, true) => false,
                (true, true) => i == i0 || (j > j0 && p.try_div(&q).is_none()),
            };
            if take_old {
                p = p * old[i].clone();
                i += 1;
            } else {
                q = q * new[j].clone();
                j += 1;
            }
        }
        if p != q {
            return None;
        }
        // Trailing axes of extent 1 belong to the last group.
        if i < old.len() && old[i..].iter().all(|d| d.is(1)) && j == new.len() {
            i = old.len();
        }
        if j < new.len() && new[j..].iter().all(|d| d.is(1)) && i == old.len() {
            j = new.len();
        }
        groups.push((i0..i, j0..j));
    }
    Some(groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(s: &str) -> Vec<Dim> {
        s.split_whitespace().map(|d| d.parse().expect("a dim")).collect()
    }

    fn view(s: &str) -> StridedView {
        StridedView::contiguous(library::View { buffer: 0, offset: Dim::from(0), turn: Vec::new() }, &shape(s))
    }

    #[test]
    fn reshape_groups_pair_equal_products() {
        let groups = |a: &str, b: &str| reshape_groups(&shape(a), &shape(b));
        assert_eq!(groups("B T 256", "B T 8 32"), Some(vec![(0..1, 0..1), (1..2, 1..2), (2..3, 2..4)]));
        assert_eq!(groups("B T 8 32", "B*T 256"), Some(vec![(0..2, 0..1), (2..4, 1..2)]));
        assert_eq!(groups("B 1 T", "B T"), Some(vec![(0..1, 0..1), (1..3, 1..2)]));
        assert_eq!(groups("B T", "B T 1"), Some(vec![(0..1, 0..1), (1..2, 1..3)]));
        assert_eq!(groups("6 T", "4 T"), None);
    }

    #[test]
    fn views_compose() {
        let v = view("B T 8 32").apply(&Op::Transpose(vec![0, 2, 1, 3])).expect("a view");
        assert_eq!(v.strides, shape("256*T 32 256 1"));
        assert!(!v.is_contiguous());
        assert_eq!(v.apply(&Op::Reshape(shape("B 8 T*32"))), None);
        let r = v.apply(&Op::Reshape(shape("B 2 4 T 32"))).expect("a split");
        assert_eq!(r.strides, shape("256*T 128 32 256 1"));
        let s = view("B T 8").apply(&Op::Slice { axis: 1, start: Dim::from(2), len: Dim::from(3), step: 2 }).expect("a view");
        assert_eq!((s.at.offset, s.strides), (Dim::from(16), shape("8*T 16 1")));
    }
}
