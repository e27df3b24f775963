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
            unsafe { product(&p, start, gemm::Parallelism::None) };
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
            DType::F64 => dense::<f64>(p, start, 0.0, 1.0, parallelism),
            DType::F16 => widened(p, start, parallelism, |x: *const f16| (*x).to_f32(), |x: *mut f16, v| *x = f16::from_f32(v)),
            DType::BF16 => {
                widened(p, start, parallelism, |x: *const bf16| (*x).to_f32(), |x: *mut bf16, v| *x = bf16::from_f32(v))
            }
            DType::E4M3 => widened(p, start, parallelism, |x: *const u8| e4m3_to_f32(*x), |x: *mut u8, v| *x = f32_to_e4m3(v)),
            DType::I64 | DType::I32 | DType::Bool => base::bug!("a product of {}", p.dtype),
        }
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
unsafe fn widened<T>(
    p: &Product,
    [a, b, c]: [*mut u8; 3],
    parallelism: gemm::Parallelism,
    load: impl Fn(*const T) -> f32,
    store: impl Fn(*mut T, f32),
) {
    let [am, ak, bk, bn, cm, cn] = p.strides;
    let copy = |start: *mut u8, rows: usize, cols: usize, by: [isize; 2]| -> Vec<f32> {
        let at = |i: usize, j: usize| start.cast::<T>().wrapping_offset(i as isize * by[0] + j as isize * by[1]).cast_const();
        (0..rows).flat_map(|i| (0..cols).map(move |j| (i, j))).map(|(i, j)| load(at(i, j))).collect()
    };
    let (mut x, mut y) = (copy(a, p.m, p.k, [am, ak]), copy(b, p.k, p.n, [bk, bn]));
    let mut z = if p.accumulate { copy(c, p.m, p.n, [cm, cn]) } else { vec![0.0; p.m * p.n] };
    let strides = [p.k as isize, 1, p.n as isize, 1, p.n as isize, 1];
    let q = Product { dtype: DType::F32, strides, starts: Vec::new(), ..*p };
    // SAFETY: the copies have the extents and strides given.
    unsafe { dense::<f32>(&q, [x.as_mut_ptr().cast(), y.as_mut_ptr().cast(), z.as_mut_ptr().cast()], 0.0, 1.0, parallelism) };
    for (i, j) in (0..p.m).flat_map(|i| (0..p.n).map(move |j| (i, j))) {
        store(c.cast::<T>().wrapping_offset(i as isize * cm + j as isize * cn), z[i * p.n + j]);
    }
}

/// The value of an E4M3 code. # Source: OCP 8-bit floating point specification 1.0, section 5.
pub fn e4m3_to_f32(code: u8) -> f32 {
    let (exponent, fraction) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => fraction * 2f32.powi(-9),
        _ => (1.0 + fraction / 8.0) * 2f32.powi(exponent - 7),
    };
    if code & 128 == 0 { magnitude } else { -magnitude }
}

/// The code of the nearest E4M3 value, saturating; ties to even.
pub fn f32_to_e4m3(x: f32) -> u8 {
    let sign = if x.is_sign_negative() { 128 } else { 0 };
    if x.is_nan() {
        return sign | 127;
    }
    let v = DType::E4M3.round(f64::from(x.abs()));
    if v < 2f64.powi(-6) {
        return sign | (v * 512.0) as u8;
    }
    let exponent = v.log2().floor() as i32;
    let fraction = (v / 2f64.powi(exponent) - 1.0) * 8.0;
    sign | (((exponent + 7) as u8) << 3) | fraction as u8
}
