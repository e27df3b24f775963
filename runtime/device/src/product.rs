//! Dense and grouped products through the `gemm` crate. Sums are in the accumulator type; bf16 and e4m3 go through f32 copies.

use crate::HostDevice;
use base::DType;
use half::{bf16, f16};
use rayon::prelude::*;

/// `c[i, j] = (accumulate ? c[i, j] : 0) + Σ_k a[i, k]·b[k, j]` for each start. Strides are in elements.
#[derive(Clone, Debug)]
pub struct Product {
    /// Of all three.
    pub dtype: DType,
    /// Rows, columns, summed extent.
    pub m: usize,
    /// Columns.
    pub n: usize,
    /// Summed.
    pub k: usize,
    /// a along i and k, b along k and j, c along i and j.
    pub strides: [isize; 6],
    /// Where a, b and c start, for each product.
    pub starts: Vec<[*mut u8; 3]>,
    /// Whether to add to c.
    pub accumulate: bool,
}

// SAFETY: the pointers are only used by `HostDevice::multiply`, whose caller keeps the memory alive.
unsafe impl Send for Product {}
// SAFETY: as above; a product is never changed while it is shared.
unsafe impl Sync for Product {}

/// Products over ragged rows; see `library::GroupedGemm`.
#[derive(Clone, Debug)]
pub struct Grouped {
    /// Of all three.
    pub dtype: DType,
    /// x, w, y.
    pub memory: [*mut u8; 3],
    /// i32 `[groups + 1]`.
    pub offsets: *const i32,
    /// Groups, rows, k, n.
    pub extents: [usize; 4],
    /// Outer products into w, or rows into y with w as `[groups, n, k]` if `Some(true)`.
    pub rows: Option<bool>,
    /// Whether the bits of a row of y are the same whatever other rows its group has.
    pub fixed: bool,
}

// SAFETY: as for `Product`.
unsafe impl Send for Grouped {}
// SAFETY: as for `Product`.
unsafe impl Sync for Grouped {}

/// Floating-point operations below which threads cost more than they bring.
const SERIAL_FLOPS: usize = 1 << 18;

impl HostDevice {
    /// Computes the products.
    ///
    /// # Safety
    /// The memory is valid for the extents and strides, results overlap nothing else, and nothing else uses them meanwhile.
    pub unsafe fn multiply(&self, p: &Product) {
        let flops = 2 * p.m * p.n * p.k;
        let threads = self.threads();
        let many = p.starts.len() >= threads && threads > 1 && flops * p.starts.len() > SERIAL_FLOPS;
        let inner = if many || flops < SERIAL_FLOPS || threads == 1 {
            gemm::Parallelism::None
        } else {
            gemm::Parallelism::Rayon(threads)
        };
        let one = |start: &[*mut u8; 3]| {
            // SAFETY: the caller vouches for the memory.
            unsafe { product(p, *start, inner) }
        };
        if many {
            let p = Shared(&p.starts);
            let (starts, one) = (p, Shared(&one));
            (0..starts.0.len()).into_par_iter().for_each(|i| (one.get())(&starts.get()[i]));
        } else {
            p.starts.iter().for_each(one);
        }
    }

    /// Computes a grouped product; groups in parallel.
    ///
    /// # Safety
    /// As for `multiply`.
    pub unsafe fn multiply_groups(&self, g: &Grouped) {
        let [groups, rows, k, n] = g.extents;
        let size = g.dtype.bytes();
        // SAFETY: the caller vouches for the memory of the offsets.
        let given = unsafe { std::slice::from_raw_parts(g.offsets, groups + 1) };
        // What they hold is data: kept within the rows, and not decreasing.
        let mut offsets = vec![0; groups + 1];
        given.iter().zip(&mut offsets).fold(0, |low, (o, to)| {
            *to = usize::try_from(*o).unwrap_or(0).clamp(low, rows);
            *to
        });
        let g = Shared(g);
        let work = |e: usize| {
            let g: &Grouped = g.get();
            let (first, last) = (offsets[e], offsets[e + 1]);
            let at = |p: *mut u8, elems: usize| p.wrapping_add(elems * size);
            let [x, w, y] = g.memory;
            let (m, cols, inner, strides, start) = match g.rows {
                Some(transposed) => {
                    let b = if transposed { [1, k as isize] } else { [n as isize, 1] };
                    let strides = [k as isize, 1, b[0], b[1], n as isize, 1];
                    (last - first, n, k, strides, [at(x, first * k), at(w, e * k * n), at(y, first * n)])
                }
                None => (
                    k,
                    n,
                    last - first,
                    [1, k as isize, n as isize, 1, n as isize, 1],
                    [at(x, first * k), at(y, first * n), at(w, e * k * n)],
                ),
            };
            let p = Product { dtype: g.dtype, m, n: cols, k: inner, strides, starts: Vec::new(), accumulate: false };
            // SAFETY: each group writes its own rows or its own matrix.
            unsafe { if g.fixed && g.rows.is_some() { fixed(&p, start) } else { product(&p, start, gemm::Parallelism::None) } };
        };
        if self.threads() > 1 && 2 * rows * k * n > SERIAL_FLOPS {
            (0..groups).into_par_iter().for_each(work);
        } else {
            (0..groups).for_each(work);
        }
        let g: &Grouped = g.get();
        if g.rows.is_some() {
            let used = offsets[groups];
            // SAFETY: rows past the last group belong to y.
            unsafe { g.memory[2].add(used * n * size).write_bytes(0, (rows - used) * n * size) };
        }
    }
}

/// Carries a reference to pointers into the pool; the callers' contracts make that sound.
#[derive(Clone, Copy)]
struct Shared<'a, T: ?Sized>(&'a T);
// SAFETY: what is shared is only read.
unsafe impl<T: ?Sized> Send for Shared<'_, T> {}
// SAFETY: what is shared is only read.
unsafe impl<T: ?Sized> Sync for Shared<'_, T> {}
impl<'a, T: ?Sized> Shared<'a, T> {
    fn get(&self) -> &'a T {
        self.0
    }
}

/// One product.
///
/// # Safety
/// As for `HostDevice::multiply`.
unsafe fn product(p: &Product, start: [*mut u8; 3], parallelism: gemm::Parallelism) {
    // SAFETY: the caller vouches for the memory.
    unsafe {
        match p.dtype {
            DType::F32 => dense::<f32>(p, start, 0.0, 1.0, parallelism),
            DType::TF32 => widened(p, start, parallelism, |x: f32| x, |x| DType::TF32.round(f64::from(x)) as f32),
            DType::F64 => dense::<f64>(p, start, 0.0, 1.0, parallelism),
            DType::F16 => widened(p, start, parallelism, f16::to_f32, f16::from_f32),
            DType::BF16 => widened(p, start, parallelism, bf16::to_f32, bf16::from_f32),
            DType::E4M3 => widened(p, start, parallelism, e4m3_to_f32, f32_to_e4m3),
            DType::I64 | DType::I32 | DType::Bool => base::bug!("a product of {}", p.dtype),
        }
    }
}

/// A product whose rows do not depend on their number: few rows are computed among rows of zeros. # Source: `gemm` 0.19 sums in another order if
/// there is one row, or if the result has at most 256 elements; and if it has at most 64 rows and columns it cuts sums of more than 512 elsewhere.
///
/// # Safety
/// As for `HostDevice::multiply`; rows of x and y are contiguous.
unsafe fn fixed(p: &Product, [x, w, y]: [*mut u8; 3]) {
    let least = if p.n <= 64 && p.k > 512 { 65 } else { 256 / p.n.max(1) + 2 };
    if p.m == 0 || p.m >= least {
        // SAFETY: the caller vouches for the memory.
        return unsafe { product(p, [x, w, y], gemm::Parallelism::None) };
    }
    let size = p.dtype.bytes();
    // Words, so that every dtype is aligned.
    let zeros = |elems: usize| vec![0u64; (elems * size).div_ceil(8)];
    let (mut wide, mut made) = (zeros(least * p.k), zeros(least * p.n));
    let q = Product { m: least, starts: Vec::new(), ..*p };
    // SAFETY: the caller vouches for so many rows of x and y; the others are in the copies.
    unsafe {
        std::ptr::copy_nonoverlapping(x, wide.as_mut_ptr().cast(), p.m * p.k * size);
        product(&q, [wide.as_mut_ptr().cast(), w, made.as_mut_ptr().cast()], gemm::Parallelism::None);
        std::ptr::copy_nonoverlapping(made.as_ptr().cast(), y, p.m * p.n * size);
    }
}

/// # Safety
/// As for `HostDevice::multiply`.
unsafe fn dense<T: Copy + 'static>(p: &Product, [a, b, c]: [*mut u8; 3], zero: T, one: T, parallelism: gemm::Parallelism) {
    let [am, ak, bk, bn, cm, cn] = p.strides;
    if p.m == 0 || p.n == 0 {
        return;
    }
    // SAFETY: the caller vouches for the memory. `gemm` computes alpha·dst + beta·lhs·rhs.
    unsafe {
        gemm::gemm(
            p.m,
            p.n,
            p.k,
            c.cast::<T>(),
            cn,
            cm,
            p.accumulate,
            a.cast::<T>(),
            ak,
            am,
            b.cast::<T>(),
            bn,
            bk,
            if p.accumulate { one } else { zero },
            one,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// A product of narrow floats: operands are copied to f32, the result is rounded once.
///
/// # Safety
/// As for `HostDevice::multiply`.
unsafe fn widened<T: Copy>(
    p: &Product,
    [a, b, c]: [*mut u8; 3],
    parallelism: gemm::Parallelism,
    load: impl Fn(T) -> f32 + Sync,
    store: impl Fn(f32) -> T + Sync,
) {
    let [am, ak, bk, bn, cm, cn] = p.strides;
    let (a, b, c) = (Grid::new(a, [p.m, p.k], [am, ak]), Grid::new(b, [p.k, p.n], [bk, bn]), Grid::new(c, [p.m, p.n], [cm, cn]));
    // SAFETY: the caller vouches for the memory.
    let (mut x, mut y) = unsafe { (a.load(&load), b.load(&load)) };
    // SAFETY: as above.
    let mut z = if p.accumulate { unsafe { c.load(&load) } } else { vec![0.0; p.m * p.n] };
    let ([am, ak], [bk, bn], [cm, cn]) = (a.copied(), b.copied(), c.copied());
    let q = Product { dtype: DType::F32, strides: [am, ak, bk, bn, cm, cn], starts: Vec::new(), ..*p };
    let start = [x.as_mut_ptr().cast(), y.as_mut_ptr().cast(), z.as_mut_ptr().cast()];
    // SAFETY: the copies have the extents and strides given; the caller vouches for c.
    unsafe {
        dense::<f32>(&q, start, 0.0, 1.0, parallelism);
        c.store(&z, &store);
    }
}

/// A matrix in memory, its inner axis the one of the smaller stride.
struct Grid<T> {
    start: *mut T,
    outer: usize,
    inner: usize,
    by: [isize; 2],
    /// Whether rows are the inner axis.
    turned: bool,
}

// SAFETY: the pointer is only used under the contract of `HostDevice::multiply`; threads take different rows.
unsafe impl<T> Send for Grid<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Grid<T> {}

/// Elements below which threads cost more than they bring to a copy.
const SERIAL_ELEMS: usize = 1 << 15;

impl<T: Copy> Grid<T> {
    fn new(start: *mut u8, [rows, cols]: [usize; 2], [by_row, by_col]: [isize; 2]) -> Grid<T> {
        let start = start.cast::<T>();
        if by_row.unsigned_abs() < by_col.unsigned_abs() {
            Grid { start, outer: cols, inner: rows, by: [by_col, by_row], turned: true }
        } else {
            Grid { start, outer: rows, inner: cols, by: [by_row, by_col], turned: false }
        }
    }
    /// The strides of a copy along rows and columns.
    fn copied(&self) -> [isize; 2] {
        let inner = self.inner as isize;
        if self.turned { [1, inner] } else { [inner, 1] }
    }
    fn at(&self, i: usize, j: usize) -> *mut T {
        self.start.wrapping_offset(i as isize * self.by[0] + j as isize * self.by[1])
    }
    /// # Safety
    /// The memory is valid for reading.
    unsafe fn load(&self, load: &(impl Fn(T) -> f32 + Sync)) -> Vec<f32> {
        let mut out = vec![0.0; self.outer * self.inner];
        let row = |(i, to): (usize, &mut [f32])| {
            if self.by[1] == 1 {
                // SAFETY: the caller vouches for the row, which is contiguous.
                let from = unsafe { std::slice::from_raw_parts(self.at(i, 0), self.inner) };
                to.iter_mut().zip(from).for_each(|(to, x)| *to = load(*x));
            } else {
                // SAFETY: the caller vouches for the row.
                to.iter_mut().enumerate().for_each(|(j, to)| *to = load(unsafe { *self.at(i, j) }));
            }
        };
        if out.len() < SERIAL_ELEMS {
            out.chunks_mut(self.inner.max(1)).enumerate().for_each(row);
        } else {
            out.par_chunks_mut(self.inner.max(1)).enumerate().for_each(row);
        }
        out
    }
    /// # Safety
    /// The memory is valid for writing, and no two elements are at one place.
    unsafe fn store(&self, from: &[f32], store: &(impl Fn(f32) -> T + Sync)) {
        let row = |(i, from): (usize, &[f32])| {
            // SAFETY: the caller vouches for the row.
            from.iter().enumerate().for_each(|(j, x)| unsafe { *self.at(i, j) = store(*x) });
        };
        if from.len() < SERIAL_ELEMS {
            from.chunks(self.inner.max(1)).enumerate().for_each(row);
        } else {
            from.par_chunks(self.inner.max(1)).enumerate().for_each(row);
        }
    }
}

/// The value of an E4M3 code. # Source: OCP 8-bit floating point specification 1.0, section 5.
pub fn e4m3_to_f32(code: u8) -> f32 {
    let (exponent, fraction) = (u32::from(code >> 3 & 15), u32::from(code & 7));
    let magnitude = match (exponent, fraction) {
        (15, 7) => f32::NAN,
        (0, _) => fraction as f32 / 512.0,
        // The exponent's bias is 7, that of f32 127.
        _ => f32::from_bits((exponent + 120) << 23 | fraction << 20),
    };
    if code & 128 == 0 { magnitude } else { -magnitude }
}

/// The code of the nearest E4M3 value, saturating; ties to even.
pub fn f32_to_e4m3(x: f32) -> u8 {
    let sign = if x.is_sign_negative() { 128 } else { 0 };
    let magnitude = x.abs();
    let code = if x.is_nan() {
        127
    } else if magnitude >= 448.0 {
        126
    } else if magnitude < 1.0 / 64.0 {
        // Below the normal numbers: multiples of 2^-9.
        (magnitude * 512.0).round_ties_even() as u8
    } else {
        // To nearest: half of the last place kept, less one if that is even, carries into it.
        let bits = magnitude.to_bits();
        let rounded = bits + 0x7_ffff + (bits >> 20 & 1);
        ((rounded >> 20) - (120 << 3)) as u8
    };
    sign | code
}
