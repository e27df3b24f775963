//! Kernels for lists of keys as threads of the host run them that stand for a GPU's, one after the other: what each leaves is what the next reads.

use base::{DType, Dim, DimEnv, TensorType};
use codegen::emulate::Emulated;
use tile::{
    Kernel,
    kernels::{
        domain::Problem,
        gpu_attend::Tiling,
        gpu_attend_by_block::{gpu_attend_by_block, lists, memories},
        gpu_attend_parts::gpu_attend_merge,
        gpu_topk_long::gpu_topk_long,
        host_topk::TopK,
    },
};

fn numbered(kernels: impl IntoIterator<Item = Kernel>) -> Vec<Kernel> {
    let mut all: Vec<Kernel> = kernels.into_iter().collect();
    all.iter_mut().enumerate().for_each(|(i, k)| k.name = format!("{}_{i}", k.name));
    all
}

/// Runs kernels, each with these of the memories, of four bytes an element.
fn run(kernels: &[Kernel], passed: &[Vec<usize>], memory: &mut [Vec<i32>], env: &DimEnv) {
    let threads = Emulated::load(kernels).expect("it compiles");
    let value = |d: &Dim| d.eval(env).expect("known dims");
    for (k, buffers) in kernels.iter().zip(passed) {
        let pointers: Vec<*mut u8> = buffers.iter().map(|i| memory[*i].as_mut_ptr().cast()).collect();
        let dims: Vec<i64> = k.dims.iter().map(value).collect();
        // SAFETY: the buffers have the sizes that the kernels name, and indices come from the kernel before.
        unsafe { threads.run(&k.name, &pointers, &dims, value(&k.grid), 3, true) };
    }
}

fn words(x: &[f32]) -> Vec<i32> {
    x.iter().map(|x| x.to_bits() as i32).collect()
}

fn floats(x: &[i32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(f32::from_bits(*x as u32))).collect()
}

/// In [-1, 1), some of them equal.
fn number(i: i64) -> f32 {
    ((i * 37 + i * i % 101) % 128 - 64) as f32 / 64.0
}

#[test]
fn long_choices_by_threads() {
    let (rows, n, k) = (4, 700, 200);
    let kernel = gpu_topk_long(&TopK { dtype: DType::F32, rows: Dim::sym("R"), n: Dim::sym("N"), k }, true);
    let env: DimEnv = [("R".into(), rows), ("N".into(), n)].into_iter().collect();
    let x: Vec<f32> = (0..rows * n).map(number).collect();
    let ends = [700, 13, 0, 400];
    let mut memory = [words(&x), ends.to_vec(), vec![7; (rows * k) as usize]];
    run(&numbered([kernel]), &[vec![0, 1, 2]], &mut memory, &env);
    for (row, end) in ends.into_iter().enumerate() {
        let at = |i: &i32| x[row * n as usize + *i as usize];
        let mut want: Vec<i32> = (0..end).collect();
        want.sort_by(|i, j| at(j).total_cmp(&at(i)));
        want.resize(k as usize, -1);
        assert_eq!(memory[2][row * k as usize..][..k as usize], want, "row {row}");
    }
}

#[test]
fn parts_of_attention_are_joined_by_threads() {
    let (h, d) = (3, 16);
    let p = Problem {
        dtype: DType::F32,
        b: Dim::from(1),
        t: Dim::from(2),
        s: Dim::sym("S"),
        h,
        g: h,
        dk: d,
        dv: d,
        domain: "full".parse().expect("a domain"),
        scale: 0.25,
        operands: Vec::new(),
        distinct: false,
        shared: false,
    };
    let kernels = numbered([gpu_attend_merge(&p, &Dim::sym("P"), true)]);
    let rows = 2 * h;
    for parts in [1, 3] {
        let env: DimEnv = [("P".into(), parts), ("S".into(), 9)].into_iter().collect();
        let o: Vec<f32> = (0..parts * rows * d).map(number).collect();
        // Row 0 sees nothing, and the last part nothing of row 1.
        let seen = |i: i64| i % rows > 0 && (i % rows > 1 || i / rows + 1 < parts || parts == 1);
        let lse: Vec<f32> = (0..parts * rows).map(|i| if seen(i) { number(3 * i) } else { f32::NEG_INFINITY }).collect();
        let mut memory = vec![words(&o), words(&lse), vec![7; (rows * d) as usize], vec![7; rows as usize]];
        run(&kernels, &[vec![0, 1, 2, 3]], &mut memory, &env);
        let (got, sums) = (floats(&memory[2]), floats(&memory[3]));
        for row in 0..rows {
            let weight = |part: i64| f64::from(lse[(part * rows + row) as usize]).exp();
            let total: f64 = (0..parts).map(weight).sum();
            let want = if row == 0 { 0.0 } else { total.ln() };
            assert!((sums[row as usize] - want).abs() < 1e-5, "lse of row {row} of {parts}: {}", sums[row as usize]);
            for c in 0..d {
                let of = |part: i64| f64::from(o[((part * rows + row) * d + c) as usize]) * weight(part);
                let want = if row == 0 { 0.0 } else { (0..parts).map(of).sum::<f64>() / total };
                let got = got[(row * d + c) as usize];
                assert!((got - want).abs() < 1e-5, "row {row}, {c} of {parts}: {got}, not {want}");
            }
        }
    }
}

#[test]
fn attention_by_blocks_by_threads() {
    let (t, h, g, d, n, size) = (70, 4, 2, 16, 3, 16);
    let extent = Dim::sym("T");
    let list = TensorType::new(DType::I32, vec![Dim::from(1), extent.clone(), Dim::from(g), Dim::from(n)]);
    let p = Problem {
        dtype: DType::F32,
        b: Dim::from(1),
        t: extent.clone(),
        s: extent,
        h,
        g,
        dk: d,
        dv: d,
        domain: format!("causal & blocks(0, {size})").parse().expect("a domain"),
        scale: 0.25,
        operands: vec![list],
        distinct: false,
        shared: false,
    };
    let tiling = Tiling { rows: 16, keys: 16, heads: 2 };
    assert_eq!(lists(&p, tiling), 0);
    let env: DimEnv = [("T".into(), t)].into_iter().collect();
    let [q, k, v] =
        [(h, 0), (g, 5), (g, 11)].map(|(heads, from)| (0..t * heads * d).map(|i| number(i + from)).collect::<Vec<f32>>());
    // Blocks twice, later ones and none.
    let idx: Vec<i32> = (0..t * g * n).map(|i| ((i * i + 3 * i) % 7) as i32 - 1).collect();
    let mut memory = vec![words(&q), words(&k), words(&v), idx.clone()];
    memory.extend(memories(&p, tiling).map(|ty| vec![7; ty.elems().eval(&env).expect("known dims") as usize]));
    memory.extend([vec![7; (t * h * d) as usize], vec![7; (t * h) as usize]]);
    let [counts, starts, totals, offsets, rows, position, owner, parts, sums, o, lse] = std::array::from_fn(|i| 4 + i);
    let passed = [
        vec![3, counts],
        vec![counts, starts, totals],
        vec![totals, offsets],
        vec![3, starts, offsets, rows, position, owner],
        vec![0, 1, 2, 3, rows, owner, parts, sums],
        vec![position, parts, sums, o, lse],
    ];
    run(&numbered(gpu_attend_by_block(&p, tiling)), &passed, &mut memory, &env);
    let (got, of_sums) = (floats(&memory[o]), floats(&memory[lse]));
    for row in 0..t * h {
        let (query, group) = (row / h, row % h / (h / g));
        let listed = &idx[((query * g + group) * n) as usize..][..n as usize];
        let seen = |s: &i64| *s <= query && listed.contains(&((s / size) as i32));
        let vector = |x: &[f32], at: i64| x[(at * d) as usize..][..d as usize].to_vec();
        let own = vector(&q, row);
        let score = |s: i64| 0.25 * own.iter().zip(vector(&k, s * g + group)).map(|(a, b)| f64::from(a * b)).sum::<f64>();
        let keys: Vec<i64> = (0..t).filter(seen).collect();
        let total: f64 = keys.iter().map(|s| score(*s).exp()).sum();
        let want_lse = if keys.is_empty() { 0.0 } else { total.ln() };
        // A few dozen terms of f32 below 4.
        assert!((of_sums[row as usize] - want_lse).abs() < 1e-4, "lse of row {row}: {}, not {want_lse}", of_sums[row as usize]);
        for c in 0..d {
            let term = |s: &i64| score(*s).exp() / total * f64::from(v[((s * g + group) * d + c) as usize]);
            let want: f64 = keys.iter().map(term).sum();
            let got = got[(row * d + c) as usize];
            assert!((got - want).abs() < 1e-4, "row {row}, {c}: {got}, not {want}");
        }
    }
}
