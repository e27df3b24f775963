use super::*;
use base::DType;

fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut s = seed;
    (0..n)
        .map(|_| {
            s = s.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (s >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

fn ptr<T>(v: &mut [T]) -> *mut u8 {
    v.as_mut_ptr().cast()
}

unsafe extern "C" fn add_block(buffers: *const *mut u8, dims: *const i64, begin: i64, end: i64) {
    // SAFETY: the test passes one buffer of `grid` numbers and one extent.
    unsafe {
        let x = (*buffers).cast::<f32>();
        for i in begin..end {
            *x.add(i as usize) += (*dims + i) as f32;
        }
    }
}

#[test]
fn launches_run_each_block_once() {
    for threads in [1, 2, 3] {
        let device = HostDevice::new(Some(threads));
        for grid in [0, 1, 7, 1000] {
            let mut x = vec![0f32; grid];
            let l = Launch { kernel: 0, buffers: vec![ptr(&mut x)], dims: vec![5], grid: grid as i64 };
            // SAFETY: one element a block.
            unsafe { device.launch(add_block, &l) };
            assert!(x.iter().enumerate().all(|(i, v)| *v == (5 + i) as f32));
        }
    }
}

#[test]
fn products_match_loops_for_any_strides_and_threads() {
    for (m, n, k) in [(1, 1, 1), (3, 5, 7), (64, 33, 17), (4, 4, 0), (0, 3, 2), (130, 70, 129)] {
        let (mut a, mut b) = (numbers(m * k, 1), numbers(k * n, 2));
        for transposed in [false, true] {
            let strides = if transposed {
                [1, m as isize, 1, k as isize, n as isize, 1]
            } else {
                [k as isize, 1, n as isize, 1, n as isize, 1]
            };
            for accumulate in [false, true] {
                let mut results = Vec::new();
                for threads in [1, 2, 4] {
                    let mut c = numbers(m * n, 3);
                    let start = [ptr(&mut a), ptr(&mut b), ptr(&mut c)];
                    let p = Product { dtype: DType::F32, m, n, k, strides, starts: vec![start], accumulate };
                    let device = HostDevice::new(Some(threads));
                    // SAFETY: the vectors have these extents.
                    device.install(|| unsafe { device.multiply(&p) });
                    results.push(c);
                }
                assert!(results.iter().all(|r| *r == results[0]), "threads change {m}x{n}x{k}");
                let old = numbers(m * n, 3);
                for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                    let x = |l: usize| a[(i as isize * strides[0] + l as isize * strides[1]) as usize];
                    let y = |l: usize| b[(l as isize * strides[2] + j as isize * strides[3]) as usize];
                    let sum: f64 = (0..k).map(|l| f64::from(x(l)) * f64::from(y(l))).sum();
                    let want = sum + if accumulate { f64::from(old[i * n + j]) } else { 0.0 };
                    assert!((f64::from(results[0][i * n + j]) - want).abs() < 1e-4, "{m}x{n}x{k} {i},{j}");
                }
            }
        }
    }
}

/// Long sums are cut into pieces; where must not depend on the number of threads, nor on how many products there are.
#[test]
fn long_products_do_not_depend_on_threads() {
    for (m, n, k) in [(1, 200, 3000), (200, 1, 3000), (300, 170, 1500), (48, 48, 5000), (512, 33, 700)] {
        for transposed in [false, true] {
            let strides = match transposed {
                true => [1, m as isize, 1, k as isize, n as isize, 1],
                false => [k as isize, 1, n as isize, 1, n as isize, 1],
            };
            let (mut a, mut b) = (numbers(m * k, 1), numbers(k * n, 2));
            let mut run = |threads: usize, copies: usize| {
                let mut c: Vec<Vec<f32>> = vec![vec![f32::NAN; m * n]; copies];
                let starts = c.iter_mut().map(|c| [ptr(&mut a), ptr(&mut b), ptr(c)]).collect();
                let p = Product { dtype: DType::F32, m, n, k, strides, starts, accumulate: false };
                let device = HostDevice::new(Some(threads));
                // SAFETY: the vectors have these extents.
                device.install(|| unsafe { device.multiply(&p) });
                assert!(c.iter().all(|x| x.iter().map(|v| v.to_bits()).eq(c[0].iter().map(|v| v.to_bits()))));
                c.swap_remove(0)
            };
            let one = run(1, 1);
            for (threads, copies) in [(2, 1), (3, 1), (8, 1), (2, 5), (4, 3)] {
                assert!(run(threads, copies) == one, "{m}x{n}x{k} transposed {transposed}: {threads} threads, {copies} products");
            }
            let want: f64 = (0..k).map(|l| f64::from(a[l * strides[1] as usize]) * f64::from(b[l * strides[2] as usize])).sum();
            assert!((f64::from(one[0]) - want).abs() < 1e-3, "{m}x{n}x{k}: {} for {want}", one[0]);
        }
    }
}

/// Offsets are data: whatever they hold, nothing outside the rows is touched.
#[test]
fn wrong_offsets_stay_within_the_rows() {
    let (k, n, rows) = (2, 2, 3);
    for offsets in [[0, 2, 9], [-5, 1, 3], [2, 1, 3], [0, i32::MIN, i32::MAX]] {
        let (mut x, mut w) = (numbers(rows * k, 1), numbers(2 * k * n, 2));
        let mut y = vec![7f32; (rows + 2) * n];
        let memory = [ptr(&mut x), ptr(&mut w), ptr(&mut y)];
        let g = Grouped {
            dtype: DType::F32,
            memory,
            offsets: offsets.as_ptr(),
            extents: [2, rows, k, n],
            rows: Some(false),
            fixed: false,
        };
        // SAFETY: the vectors have these extents.
        unsafe { HostDevice::new(Some(1)).multiply_groups(&g) };
        assert_eq!(y[rows * n..], [7.0; 4], "{offsets:?}");
    }
}

/// Whatever the strides, a narrow product is the f32 product of the widened operands, rounded once.
#[test]
fn narrow_products_round_once() {
    fn check<T: Copy + PartialEq + std::fmt::Debug>(dtype: DType, narrow: fn(f32) -> T, wide: fn(T) -> f32) {
        for (m, n, k) in [(2, 2, 3), (0, 3, 2), (3, 5, 0), (1, 70, 33), (260, 200, 190)] {
            let mut a: Vec<T> = numbers(m * k, 1).into_iter().map(narrow).collect();
            let mut b: Vec<T> = numbers(k * n, 2).into_iter().map(narrow).collect();
            let (mut x, mut y): (Vec<f32>, Vec<f32>) =
                (a.iter().map(|v| wide(*v)).collect(), b.iter().map(|v| wide(*v)).collect());
            for (at, bt, ct) in [(false, false, false), (true, false, true), (false, true, false), (true, true, true)] {
                let pair = |turned: bool, rows: usize, cols: usize| if turned { [1, rows as isize] } else { [cols as isize, 1] };
                let ([am, ak], [bk, bn], [cm, cn]) = (pair(at, m, k), pair(bt, k, n), pair(ct, m, n));
                for accumulate in [false, true] {
                    let old: Vec<T> = numbers(m * n, 3).into_iter().map(narrow).collect();
                    let mut c = old.clone();
                    let mut z: Vec<f32> = old.iter().map(|v| wide(*v)).collect();
                    let p = |dtype, start| Product {
                        dtype,
                        m,
                        n,
                        k,
                        strides: [am, ak, bk, bn, cm, cn],
                        starts: vec![start],
                        accumulate,
                    };
                    let device = HostDevice::new(Some(2));
                    let narrow_product = p(dtype, [ptr(&mut a), ptr(&mut b), ptr(&mut c)]);
                    let wide_product = p(DType::F32, [ptr(&mut x), ptr(&mut y), ptr(&mut z)]);
                    // SAFETY: the vectors have these extents.
                    device.install(|| unsafe { device.multiply(&narrow_product) });
                    // SAFETY: as above.
                    device.install(|| unsafe { device.multiply(&wide_product) });
                    let close =
                        |got: &T, want: &f32| *got == narrow(*want) || (wide(*got) - want).abs() <= 1e-5 + want.abs() / 8.0;
                    assert!(c.iter().zip(&z).all(|(g, w)| close(g, w)), "{dtype} {m}x{n}x{k}");
                    let equal = c.iter().zip(&z).filter(|(g, w)| **g == narrow(**w)).count();
                    // Layouts differ, so sums may, and then a few results round the other way.
                    assert!(equal * 100 >= c.len() * 95, "{dtype} {m}x{n}x{k}: {equal} of {}", c.len());
                }
            }
        }
    }
    check(DType::BF16, half::bf16::from_f32, half::bf16::to_f32);
    check(DType::F16, half::f16::from_f32, half::f16::to_f32);
    check(DType::E4M3, product::f32_to_e4m3, product::e4m3_to_f32);
}

#[test]
fn groups_may_be_empty_and_rows_left_over_are_zero() {
    let (k, n, rows) = (3, 2, 6);
    let (mut x, mut w) = (numbers(rows * k, 1), numbers(4 * k * n, 2));
    for offsets in [[0, 2, 2, 5, 5], [0, 0, 0, 0, 0], [0, 6, 6, 6, 6], [0, 0, 0, 0, 6]] {
        let mut y = vec![f32::NAN; rows * n];
        let g = |memory, rows_kind| Grouped {
            dtype: DType::F32,
            memory,
            offsets: offsets.as_ptr(),
            extents: [4, rows, k, n],
            rows: rows_kind,
            fixed: false,
        };
        let device = HostDevice::new(Some(2));
        // SAFETY: the vectors have these extents.
        unsafe { device.multiply_groups(&g([ptr(&mut x), ptr(&mut w), ptr(&mut y)], Some(false))) };
        for r in 0..rows {
            let e = (0..4).find(|e| (offsets[*e] as usize..offsets[e + 1] as usize).contains(&r));
            for j in 0..n {
                let want: f32 = e.map_or(0.0, |e| (0..k).map(|i| x[r * k + i] * w[(e * k + i) * n + j]).sum());
                assert!((y[r * n + j] - want).abs() < 1e-5, "{offsets:?} row {r}");
            }
        }
        let mut outer = vec![f32::NAN; 4 * k * n];
        // SAFETY: the vectors have these extents.
        unsafe { device.multiply_groups(&g([ptr(&mut x), ptr(&mut outer), ptr(&mut y)], None)) };
        for (e, i, j) in (0..4).flat_map(|e| (0..k).flat_map(move |i| (0..n).map(move |j| (e, i, j)))) {
            let want: f32 = (offsets[e] as usize..offsets[e + 1] as usize).map(|r| x[r * k + i] * y[r * n + j]).sum();
            assert!((outer[(e * k + i) * n + j] - want).abs() < 1e-5, "{offsets:?} {e}");
        }
    }
}

#[test]
fn e4m3_codes_round_trip() {
    for code in 0..=255u8 {
        let x = product::e4m3_to_f32(code);
        if x.is_nan() {
            assert!(product::e4m3_to_f32(product::f32_to_e4m3(x)).is_nan());
        } else {
            assert_eq!(product::f32_to_e4m3(x), code, "{x}");
        }
    }
}

/// The bits say what `DType::round` says in f64, also half-way between codes and at the ends.
#[test]
fn e4m3_rounds_as_the_dtype_does() {
    let values: Vec<f32> = (0..127u8).map(product::e4m3_to_f32).collect();
    let middles = values.windows(2).map(|w| (w[0] + w[1]) / 2.0);
    let near = values.iter().copied().chain(middles).flat_map(|x| [x, x.next_up(), x.next_down()]);
    let far = [460.0, 464.0, 1e9, f32::INFINITY, f32::MIN_POSITIVE, 1e-40];
    for x in near.chain(far).chain(numbers(10_000, 4)).flat_map(|x| [x, -x]) {
        let want = DType::E4M3.round(f64::from(x));
        assert_eq!(f64::from(product::e4m3_to_f32(product::f32_to_e4m3(x))), want, "{x}");
    }
    assert!(product::e4m3_to_f32(product::f32_to_e4m3(f32::NAN)).is_nan());
}

/// The bits of a row do not depend on how many rows there are, nor on which it is; without `fixed` they do.
#[test]
fn a_row_is_the_same_among_any_others() {
    let mut differ = 0;
    for (dtype, n, k, transposed) in
        [1, 16, 64, 65, 257].into_iter().flat_map(|n| [1, 2, 3, 100, 513, 1100].map(|k| (n, k))).flat_map(|(n, k)| {
            [(DType::F32, n, k, false), (DType::F32, n, k, true), (DType::F64, n, k, true), (DType::BF16, n, k, true)]
        })
    {
        let most = 80;
        let (x, w) = (numbers(most * k, 1), numbers(k * n, 2));
        let bytes = |v: &[f32]| -> Vec<u8> {
            v.iter()
                .flat_map(|x| match dtype {
                    DType::F64 => f64::from(*x).to_le_bytes().to_vec(),
                    DType::BF16 => half::bf16::from_f32(*x).to_le_bytes().to_vec(),
                    _ => x.to_le_bytes().to_vec(),
                })
                .collect()
        };
        let (mut x, mut w) = (bytes(&x), bytes(&w));
        let size = dtype.bytes();
        let mut run = |from: usize, rows: usize, fixed: bool| {
            let mut y = vec![0xffu8; rows * n * size];
            let memory = [x[from * k * size..].as_mut_ptr(), w.as_mut_ptr(), y.as_mut_ptr()];
            let offsets = [0, rows as i32];
            let g = Grouped { dtype, memory, offsets: offsets.as_ptr(), extents: [1, rows, k, n], rows: Some(transposed), fixed };
            // SAFETY: the vectors have these extents.
            unsafe { HostDevice::new(Some(1)).multiply_groups(&g) };
            y
        };
        let all = run(0, most, true);
        for (from, rows) in
            [(0, 1), (17, 1), (79, 1), (3, 2), (1, 7), (40, 9), (30, 17), (7, 33), (2, 63), (9, 64), (5, 65), (0, 79)]
        {
            let want = &all[from * n * size..(from + rows) * n * size];
            assert!(run(from, rows, true) == want, "{dtype} rows {from}..{} of [{n}, {k}], transposed {transposed}", from + rows);
            differ += usize::from(run(from, rows, false) != want);
        }
    }
    assert!(differ > 0, "then nothing has to be fixed");
}

/// Every row comes to the member that has its group, sorted by group and then by member, and goes back to where it was.
#[test]
fn rows_go_there_and_back() {
    let offsets: [[i32; 5]; 2] = [[0, 1, 2, 3, 3], [0, 0, 2, 2, 4]];
    let rows = [[1.0f32, 2.0, 3.0, 9.0], [5.0, 6.0, 7.0, 8.0]];
    let mut all = [[-1i32; 10]; 2];
    let mut own = [[-1i32; 3]; 2];
    let mut there = [[f32::NAN; 8]; 2];
    let mut back = [[f32::NAN; 4]; 2];
    let carry = |exchanges: [Exchange; 2]| {
        for (rank, x) in exchanges.iter().enumerate() {
            // SAFETY: the arrays have these extents.
            unsafe {
                let parts: Vec<Vec<u8>> = exchanges.iter().enumerate().map(|(from, y)| y.parts(from)[rank].clone()).collect();
                assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), x.lengths(rank));
                x.put(rank, &parts);
            }
        }
    };
    let x = |what, from: *const u8, all: &mut [i32], to: *mut u8| {
        let (rows, row) = if what == What::Offsets { (0, 0) } else { (4, 4) };
        Exchange { what, from, all: all.as_mut_ptr(), to, members: 2, groups: 4, rows, row }
    };
    carry([0, 1].map(|m| x(What::Offsets, offsets[m].as_ptr().cast(), &mut all[m], own[m].as_mut_ptr().cast())));
    assert_eq!((all[0], all[1]), ([0, 1, 2, 3, 3, 0, 0, 2, 2, 4], all[0]));
    assert_eq!(own, [[0, 1, 4], [0, 1, 3]]);
    carry([0, 1].map(|m| x(What::There, rows[m].as_ptr().cast(), &mut all[m], there[m].as_mut_ptr().cast())));
    assert_eq!(there, [[1.0, 2.0, 5.0, 6.0, 0.0, 0.0, 0.0, 0.0], [3.0, 7.0, 8.0, 0.0, 0.0, 0.0, 0.0, 0.0]]);
    carry([0, 1].map(|m| x(What::Back, there[m].as_ptr().cast(), &mut all[m], back[m].as_mut_ptr().cast())));
    assert_eq!(back, [[1.0, 2.0, 3.0, 0.0], [5.0, 6.0, 7.0, 8.0]]);
}

/// Offsets that make no sense move rows somewhere, and touch nothing else.
#[test]
fn an_exchange_stays_within_its_rows() {
    for offsets in [[0, 9, 9], [7, 2, 1], [-4, -1, 3], [3, 3, i32::MAX]] {
        let mut all = [0; 3];
        let mut own = [0; 3];
        let mut from = [1.0f32, 2.0, 3.0];
        let mut to = [f32::NAN; 4];
        for (what, given, to, rows) in [
            (What::Offsets, offsets.as_ptr().cast::<u8>(), own.as_mut_ptr().cast::<u8>(), 0),
            (What::There, from.as_mut_ptr().cast(), to.as_mut_ptr().cast(), 3),
            (What::Back, from.as_mut_ptr().cast(), to.as_mut_ptr().cast(), 3),
        ] {
            let x = Exchange { what, from: given, all: all.as_mut_ptr(), to, members: 1, groups: 2, rows, row: 4 };
            // SAFETY: the arrays have these extents.
            unsafe { x.alone() };
        }
        assert!(to[..3].iter().all(|x| x.is_finite()) && to[3].is_nan(), "{offsets:?} {to:?}");
    }
}

#[test]
fn rows_go_piece_by_piece_where_parts_put_them() {
    let (members, groups, rows, row) = (3, 6, 7, 2);
    for seed in 0..50u64 {
        let mut state = seed;
        let mut next = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % n
        };
        // Offsets that do not decrease, of fewer rows than there is room for.
        let mut all: Vec<i32> = Vec::new();
        for _ in 0..members {
            let mut ends: Vec<i32> = (0..groups).map(|_| next(rows as u64 + 1) as i32).collect();
            ends.sort_unstable();
            all.push(0);
            all.extend(ends);
        }
        for what in [What::There, What::Back] {
            let [given, made] = if what == What::There { [rows, rows * members] } else { [rows * members, rows] };
            let from: Vec<Vec<u8>> = (0..members).map(|_| (0..given * row).map(|_| next(256) as u8).collect()).collect();
            let mut to = vec![vec![0xee; made * row]; members];
            let mut table = all.clone();
            let exchanges: Vec<Exchange> = (0..members)
                .map(|m| {
                    let (from, to, all) = (from[m].as_ptr(), to[m].as_mut_ptr(), table.as_mut_ptr());
                    Exchange { what, from, all, to, members, groups, rows, row }
                })
                .collect();
            // SAFETY: the memory has the exchange's extents.
            let parts: Vec<Vec<Vec<u8>>> = exchanges.iter().enumerate().map(|(m, x)| unsafe { x.parts(m) }).collect();
            for (m, x) in exchanges.iter().enumerate() {
                // SAFETY: as above.
                unsafe { x.put(m, &parts.iter().map(|p| p[m].clone()).collect::<Vec<_>>()) };
            }
            let places: Vec<Places> = exchanges.iter().enumerate().map(|(m, x)| x.places(m, &all)).collect();
            let mut got = vec![vec![0xdd; made * row]; members];
            for (m, p) in places.iter().enumerate() {
                for (other, q) in places.iter().enumerate().filter(|(other, _)| *other != m) {
                    let sends = q.sends.iter().filter(|(to, _)| *to == m).map(|(_, r)| r);
                    let receives = p.receives.iter().filter(|(from, _)| *from == other).map(|(_, r)| r);
                    assert_eq!(
                        sends.clone().map(|r| r.len()).collect::<Vec<_>>(),
                        receives.clone().map(|r| r.len()).collect::<Vec<_>>()
                    );
                    sends.zip(receives).for_each(|(a, b)| got[m][b.clone()].copy_from_slice(&from[other][a.clone()]));
                }
                p.keeps.iter().for_each(|(a, b)| got[m][b.clone()].copy_from_slice(&from[m][a.clone()]));
                got[m][p.rest.clone()].fill(0);
            }
            assert_eq!(got, to, "seed {seed}, {what:?}");
        }
    }
}
