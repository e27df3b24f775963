//! Kernels on the GPU at hand against the tile interpreter, and how fast they are; needs only the driver.
//!
//! `gpu_check FOLDER NAME… [B=2 T=19]` takes `NAME.tile`, `.ptx` and `.launch` from the folder, where the example `ptx` of the codegen crate puts them.
//! Each kernel runs on made-up operands, with results and workspace filled with NaN, with the blocks that have work and with three, twice: all must
//! agree with the interpreter, and have the same bits. With `time`, kernels run on made-up operands at the given extents, and what they took,
//! the bytes of their buffers over that time and, for dense products, operations over it are printed, slowest first.

use base::{DType, Dim, DimEnv};
use half::{bf16, f16};
use std::{
    collections::BTreeMap,
    ffi::{CStr, CString, c_char, c_int, c_uint, c_void},
    fs,
    path::Path,
    time::Instant,
};
use tile::{Access, Kernel, interp};

type Status = c_int;
type Address = u64;

unsafe extern "C" {
    fn dlopen(name: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
}

/// The functions of the driver that are used here.
struct Driver {
    library: *mut c_void,
}

macro_rules! call {
    ($driver:expr, $name:literal, $($arg:expr => $ty:ty),*) => {{
        let name: &CStr = $name;
        // SAFETY: the symbol is a function of the driver of this type, and the arguments are what its reference asks for.
        let status = unsafe {
            let f = dlsym($driver.library, name.as_ptr());
            assert!(!f.is_null(), "the driver has no {name:?}");
            std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($ty),*) -> Status>(f)($($arg),*)
        };
        assert!(status == 0, "{name:?}: error {status}");
    }};
}

impl Driver {
    /// The first device's, with a context.
    fn new() -> Driver {
        // SAFETY: two strings that end in 0.
        let library = unsafe { dlopen(c"libcuda.so.1".as_ptr(), 2) };
        assert!(!library.is_null(), "no libcuda.so.1");
        let d = Driver { library };
        let (mut device, mut context) = (0, std::ptr::null_mut::<c_void>());
        call!(d, c"cuInit", 0 => c_uint);
        call!(d, c"cuDeviceGet", &mut device => *mut c_int, 0 => c_int);
        call!(d, c"cuDevicePrimaryCtxRetain", &mut context => *mut *mut c_void, device => c_int);
        call!(d, c"cuCtxSetCurrent", context => *mut c_void);
        d
    }
    fn module(&self, ptx: &str) -> *mut c_void {
        let (text, mut module) = (CString::new(ptx).expect("text"), std::ptr::null_mut::<c_void>());
        call!(self, c"cuModuleLoadData", &mut module => *mut *mut c_void, text.as_ptr() => *const c_char);
        module
    }
    fn allocate(&self, bytes: usize, fill: u8) -> Address {
        let mut p = 0;
        call!(self, c"cuMemAlloc_v2", &mut p => *mut Address, bytes.max(1) => usize);
        call!(self, c"cuMemsetD8_v2", p => Address, fill => u8, bytes.max(1) => usize);
        p
    }
    fn upload(&self, bytes: &[u8]) -> Address {
        let p = self.allocate(bytes.len(), 0xff);
        call!(self, c"cuMemcpyHtoD_v2", p => Address, bytes.as_ptr() => *const u8, bytes.len() => usize);
        p
    }
    /// Memory with made-up numbers: small ones of both signs, or zeros of integers.
    fn fill(&self, dtype: DType, bytes: usize) -> Address {
        let p = self.allocate(bytes, 0);
        if !dtype.is_float() {
            return p;
        }
        let n = (bytes / dtype.bytes()).min(1 << 18);
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64 / f64::from(1 << 23) - 1.0
        };
        let some = pack(dtype, &(0..n).map(|_| next()).collect::<Vec<_>>());
        for at in (0..bytes).step_by(some.len().max(1)) {
            let len = some.len().min(bytes - at);
            call!(self, c"cuMemcpyHtoD_v2", p + at as u64 => Address, some.as_ptr() => *const u8, len => usize);
        }
        p
    }
    /// What a kernel is timed on: where ragged groups of R rows begin, choices and indices at random, else numbers.
    fn timed(&self, b: &tile::ir::Buffer, bytes: usize, env: &DimEnv) -> Address {
        let (n, mut state) = (bytes / 4, 7u64);
        let mut next = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let numbers: Vec<i32> = match (b.name.as_str(), b.dtype) {
            ("offsets", DType::I32) => {
                let rows = env.get("R").copied().unwrap_or(0).max(1) as u64;
                let mut cuts: Vec<i32> = (1..n.saturating_sub(1)).map(|_| next(rows) as i32).collect();
                cuts.extend([0, rows as i32]);
                // Halfway from even to random.
                cuts.sort_unstable();
                let even = |i: usize| (rows as usize * i / (n - 1)) as i32;
                cuts.iter().enumerate().map(|(i, c)| (c + even(i)) / 2).collect()
            }
            ("choice", DType::I32) => (0..n).map(|_| next(128) as i32).collect(),
            ("index", DType::I32) => {
                let rows = env.get("T").copied().unwrap_or(1).max(1) as u64;
                (0..n).map(|_| next(rows) as i32).collect()
            }
            _ => return self.fill(b.dtype, bytes),
        };
        self.upload(&numbers.iter().flat_map(|x| x.to_ne_bytes()).collect::<Vec<_>>())
    }
    fn download(&self, p: Address, bytes: usize) -> Vec<u8> {
        let mut out = vec![0; bytes];
        call!(self, c"cuMemcpyDtoH_v2", out.as_mut_ptr() => *mut u8, p => Address, bytes => usize);
        out
    }
    fn free(&self, p: Address) {
        call!(self, c"cuMemFree_v2", p => Address);
    }
    fn wait(&self, what: &str) {
        // SAFETY: the function takes nothing.
        let status = unsafe {
            let f = dlsym(self.library, c"cuCtxSynchronize".as_ptr());
            std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> Status>(f)()
        };
        assert!(status == 0, "{what}: error {status}");
    }
    fn function(&self, module: *mut c_void, l: &Launch) -> *mut c_void {
        let (name, mut f) = (CString::new(l.symbol.as_str()).expect("a name"), std::ptr::null_mut::<c_void>());
        call!(self, c"cuModuleGetFunction",
            &mut f => *mut *mut c_void, module => *mut c_void, name.as_ptr() => *const c_char);
        // 8: the limit of dynamic shared memory; 14: clusters that not every device has room for.
        call!(self, c"cuFuncSetAttribute", f => *mut c_void, 8 => c_int, l.dynamic_shared as c_int => c_int);
        if l.cluster > 8 {
            call!(self, c"cuFuncSetAttribute", f => *mut c_void, 14 => c_int, 1 => c_int);
        }
        f
    }
    /// How many blocks of a kernel in clusters run at the same time.
    fn in_clusters(&self, f: *mut c_void, l: &Launch) -> i64 {
        let none = std::ptr::null_mut();
        let size = [l.cluster as u32, 1, 1, l.threads, 1, 1, l.dynamic_shared as u32];
        let (config, mut count) = (Config { size, stream: none, attributes: none, count: 0 }, 0);
        call!(self, c"cuOccupancyMaxActiveClusters",
            &mut count => *mut c_int, f => *mut c_void, &raw const config => *const Config);
        i64::from(count) * l.cluster
    }
    /// The tensor maps of a launch on buffers, with these dims.
    fn maps(&self, l: &Launch, buffers: &[Address], dims: &[i64]) -> Vec<TensorMap> {
        let encode = |m: &MapOf| {
            let value = |e: &Extent| match e {
                Extent::Const(n) => *n as u64,
                Extent::Dim(i) => dims[*i] as u64,
            };
            let rank = m.axes.len();
            let extents: Vec<u64> = m.axes.iter().rev().map(|(e, _)| value(e).max(1)).collect();
            // 7, 9, 6, 0: f32, bf16, f16, bytes. 3: swizzle of 128 bytes.
            let (dtype, bytes, swizzle) = match m.dtype {
                DType::F32 => (7, 4, 0),
                DType::TF32 => (7, 4, 3),
                DType::BF16 => (9, 2, 3),
                DType::F16 => (6, 2, 3),
                DType::E4M3 => (0, 1, 3),
                other => panic!("a tensor map of {other}"),
            };
            let strides: Vec<u64> = m.axes.iter().rev().skip(1).map(|(_, s)| bytes * value(s)).collect();
            let mut sizes = vec![1u32; rank];
            sizes.iter_mut().zip([m.cols, m.rows, m.runs]).for_each(|(size, n)| *size = n);
            let steps = vec![1u32; rank];
            let mut map = TensorMap([0; 16]);
            // 0, swizzle, 3, 0: elements lie as they are; 256 bytes at once to the second level; zeros outside.
            call!(self, c"cuTensorMapEncodeTiled", &mut map => *mut TensorMap, dtype => c_int,
                rank as c_uint => c_uint, buffers[m.buffer] => Address, extents.as_ptr() => *const u64,
                strides.as_ptr() => *const u64, sizes.as_ptr() => *const u32, steps.as_ptr() => *const u32,
                0 => c_int, swizzle => c_int, 3 => c_int, 0 => c_int);
            map
        };
        l.maps.iter().map(encode).collect()
    }
    fn launch(&self, f: *mut c_void, l: &Launch, blocks: i64, arguments: &[u64], maps: &[TensorMap]) {
        let mut pointers: Vec<*const u64> =
            arguments.iter().map(|a| a as *const u64).chain(maps.iter().map(|m| m.0.as_ptr())).collect();
        let none = std::ptr::null_mut::<c_void>;
        call!(self, c"cuLaunchKernel", f => *mut c_void,
            blocks as c_uint => c_uint, 1 => c_uint, 1 => c_uint, l.threads => c_uint, 1 => c_uint, 1 => c_uint,
            l.dynamic_shared as c_uint => c_uint, none() => *mut c_void,
            pointers.as_mut_ptr() => *mut *const u64, none() => *mut c_void);
    }
}

/// What the driver makes of a tensor's shape.
#[repr(align(64))]
struct TensorMap([u64; 16]);

enum Extent {
    Const(i64),
    Dim(usize),
}

/// A tensor map to be.
struct MapOf {
    buffer: usize,
    dtype: DType,
    rows: u32,
    runs: u32,
    cols: u32,
    axes: Vec<(Extent, Extent)>,
}

/// What the driver knows as `CUlaunchConfig`: blocks and threads along three axes, shared memory; then no attributes.
#[repr(C)]
struct Config {
    size: [u32; 7],
    stream: *mut c_void,
    attributes: *mut c_void,
    count: u32,
}

/// A line of a `.launch` file.
struct Launch {
    symbol: String,
    threads: u32,
    /// Neighbouring blocks that are launched together.
    cluster: i64,
    grid: Dim,
    dynamic_shared: usize,
    workspace: usize,
    maps: Vec<MapOf>,
}

fn launches(text: &str) -> BTreeMap<String, Launch> {
    let parse = |line: &str| {
        let f: Vec<&str> = line.split('\t').collect();
        let n = |i: usize| f[i].parse::<usize>().expect("a number");
        let grid = f[3].parse().expect("a dim");
        let map = |text: &&str| {
            let w: Vec<&str> = text.split(' ').collect();
            let extent = |t: &str| match t.strip_prefix('d') {
                Some(i) => Extent::Dim(i.parse().expect("a dim's number")),
                None => Extent::Const(t.parse().expect("an extent")),
            };
            let axes = w[5..].chunks(2).map(|p| (extent(p[0]), extent(p[1]))).collect();
            let n = |i: usize| w[i].parse::<u32>().expect("a number");
            MapOf { buffer: n(0) as usize, dtype: w[1].parse().expect("a dtype"), rows: n(2), runs: n(3), cols: n(4), axes }
        };
        let maps = f[6..].iter().map(map).collect();
        Launch {
            symbol: f[0].into(),
            threads: n(1) as u32,
            cluster: n(2) as i64,
            grid,
            dynamic_shared: n(4),
            workspace: n(5),
            maps,
        }
    };
    text.lines().map(parse).map(|l| (l.symbol.clone(), l)).collect()
}

fn eval(d: &Dim, env: &DimEnv) -> i64 {
    d.eval(env).unwrap_or_else(|| panic!("{d} has no value"))
}

/// The value of an e4m3 code.
fn e4m3(code: u8) -> f64 {
    let (e, m) = (i32::from(code >> 3 & 15), f64::from(code & 7));
    let x = match (e, code & 7) {
        (15, 7) => f64::NAN,
        (0, _) => m / 8.0 * 2f64.powi(-6),
        _ => (1.0 + m / 8.0) * 2f64.powi(e - 7),
    };
    if code >= 128 { -x } else { x }
}

fn pack(dtype: DType, xs: &[f64]) -> Vec<u8> {
    let code = |x: f64| {
        let x = DType::E4M3.round(x);
        (0..=255u8).find(|c| e4m3(*c).to_bits() == x.to_bits()).unwrap_or(0x7f)
    };
    xs.iter()
        .flat_map(|x| match dtype {
            DType::F64 => x.to_ne_bytes().to_vec(),
            DType::F32 | DType::TF32 => (*x as f32).to_ne_bytes().to_vec(),
            DType::BF16 => bf16::from_f64(*x).to_ne_bytes().to_vec(),
            DType::F16 => f16::from_f64(*x).to_ne_bytes().to_vec(),
            DType::E4M3 => vec![code(*x)],
            DType::I64 => (*x as i64).to_ne_bytes().to_vec(),
            DType::I32 => (*x as i32).to_ne_bytes().to_vec(),
            DType::Bool => vec![u8::from(*x != 0.0)],
        })
        .collect()
}

fn unpack(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    let value = |c: &[u8]| match dtype {
        DType::F64 => f64::from_ne_bytes(c.try_into().expect("eight bytes")),
        DType::F32 | DType::TF32 => f64::from(f32::from_ne_bytes(c.try_into().expect("four bytes"))),
        DType::BF16 => bf16::from_ne_bytes([c[0], c[1]]).to_f64(),
        DType::F16 => f16::from_ne_bytes([c[0], c[1]]).to_f64(),
        DType::E4M3 => e4m3(c[0]),
        DType::I64 => i64::from_ne_bytes(c.try_into().expect("eight bytes")) as f64,
        DType::I32 => f64::from(i32::from_ne_bytes(c.try_into().expect("four bytes"))),
        DType::Bool => f64::from(c[0]),
    };
    bytes.chunks_exact(dtype.bytes()).map(value).collect()
}

/// Numbers of a buffer: small ones of both signs, indices from -1 on, where groups of rows begin; for maps also large ones.
fn numbers(b: &tile::ir::Buffer, n: usize, seed: usize, wide: bool) -> Vec<f64> {
    let dtype = b.dtype;
    match b.name.as_str() {
        "offsets" => return (0..n).map(|i| (i * 7) as f64).collect(),
        // How many blocks a tile has, and where they stand.
        "count" => return (0..n).map(|i| (i % 3) as f64).collect(),
        "entries" => return (0..n).map(|i| (i % 4) as f64).collect(),
        _ => {}
    }
    let at = |i: usize| ((i * 37 + seed * 11 + i * i % 101) % 64) as f64;
    let special = [0.0, -0.0, 1.0, 1e5, 1e6, 3.3e9, 1e20, 2.5e38, f64::INFINITY, -f64::INFINITY, f64::NAN, 88.8, -90.0, 449.0];
    (0..n)
        .map(|i| match dtype {
            DType::I32 | DType::I64 => at(i) % 5.0 - 1.0,
            DType::Bool => f64::from(u8::from(at(i) < 40.0)),
            DType::F64 | DType::F32 | DType::TF32 | DType::BF16 | DType::F16 | DType::E4M3 => {
                let j = i + seed * 5;
                let spread = (at(i) - 31.5) * 1.37f64.powi((i / 64 % 40) as i32 - 20);
                dtype.round(if !wide {
                    at(i) / 32.0 - 0.9
                } else if j.is_multiple_of(3) {
                    special[j / 3 % special.len()]
                } else {
                    spread
                })
            }
        })
        .collect()
}

/// What is wrong with a kernel, if anything is.
fn check(d: &Driver, module: *mut c_void, k: &Kernel, l: &Launch, env: &DimEnv, wide: bool) -> Result<bool, String> {
    let sizes: Vec<usize> = k.buffers.iter().map(|b| eval(&b.elems, env) as usize).collect();
    let given: Vec<Vec<f64>> = k.buffers.iter().zip(&sizes).enumerate().map(|(i, (b, n))| numbers(b, *n, i, wide)).collect();
    let mut want = given.clone();
    // What a kernel leaves as it is must be left so by both: results begin as bytes of ones.
    for ((b, want), n) in k.buffers.iter().zip(&mut want).zip(&sizes).filter(|((b, _), _)| b.access == Access::Write) {
        *want = unpack(b.dtype, &vec![0xff; n * b.dtype.bytes()]);
    }
    if interp::run(k, &mut want, env, interp::Options::default()).is_err() {
        return Ok(false);
    }
    let f = d.function(module, l);
    let work = eval(&l.grid, env).max(l.cluster);
    let mut first: Option<Vec<Vec<u8>>> = None;
    // Clusters are launched whole.
    for blocks in [work, (3 + l.cluster - 1) / l.cluster * l.cluster, work] {
        let buffers: Vec<Address> = k
            .buffers
            .iter()
            .zip(&given)
            .map(|(b, x)| match b.access {
                Access::Read | Access::ReadWrite => d.upload(&pack(b.dtype, x)),
                Access::Write => d.allocate(x.len() * b.dtype.bytes(), 0xff),
            })
            .collect();
        let workspace = d.allocate(l.workspace * blocks as usize, 0xff);
        let dims: Vec<i64> = k.dims.iter().map(|x| eval(x, env)).collect();
        let passed = dims.iter().map(|n| *n as u64).chain([eval(&k.grid, env) as u64, workspace]);
        let arguments: Vec<u64> = buffers.iter().copied().chain(passed).collect();
        d.launch(f, l, blocks, &arguments, &d.maps(l, &buffers, &dims));
        d.wait(&k.name);
        let got: Vec<Vec<u8>> =
            k.buffers.iter().zip(&buffers).zip(&sizes).map(|((b, p), n)| d.download(*p, n * b.dtype.bytes())).collect();
        buffers.into_iter().chain([workspace]).for_each(|p| d.free(p));
        // Sums of products of narrow operands are as near as these are, whatever the result's dtype.
        let narrow = k.buffers.iter().any(|b| matches!(b.dtype, DType::BF16 | DType::F16));
        for ((b, got), want) in k.buffers.iter().zip(&got).zip(&want).filter(|((b, _), _)| b.access != Access::Read) {
            let scale = want.iter().filter(|x| x.is_finite()).fold(1e-3f64, |a, x| a.max(x.abs()));
            for (i, (g, w)) in unpack(b.dtype, got).into_iter().zip(want).enumerate() {
                // Of maps each element for itself; what is below the least normal number may be 0, also before it is multiplied.
                let rounding = match b.dtype {
                    DType::BF16 => 8e-3,
                    DType::F16 => 1e-3,
                    _ => 0.0,
                };
                // A product that is rounded, to a neighbour of what it is here, before a map changes it.
                let rounding = if k.name.contains("product") && narrow { 1.6e-2 } else { rounding };
                // Two of them, as far apart as columns are: a neighbour of the larger.
                let scale = if k.name.contains("product_of_columns") && narrow { 400.0 * scale } else { scale };
                // Weights of attention are rounded like its operands.
                let scale = if k.name.contains("attend") && narrow { 500.0 * scale } else { scale };
                // Tensor cores sum codes with some fourteen bits.
                let scale = if k.buffers.iter().any(|b| b.dtype == DType::E4M3) { 50.0 * scale } else { scale };
                let slack = if wide { 1e-6 * w.abs() + 1e-35 } else { 2e-5 * scale + rounding * w.abs() };
                let same = g == *w || g.is_nan() && w.is_nan() || (g - w).abs() <= slack;
                let over = wide && w.abs() > 3.4e38 && g.is_infinite();
                if !(same || over) {
                    return Err(format!("{}[{i}] is {g:e}, not {w:e}", b.name));
                }
            }
        }
        if *first.get_or_insert_with(|| got.clone()) != got {
            return Err(format!("{blocks} blocks give other bits"));
        }
    }
    Ok(true)
}

/// The least time of launches, the bytes of the buffers, and what a dense product of them computes. # Units: seconds, bytes, operations.
fn time(d: &Driver, module: *mut c_void, k: &Kernel, l: &Launch, env: &DimEnv) -> Option<(f64, f64, f64)> {
    let sizes: Vec<usize> = k.buffers.iter().map(|b| eval(&b.elems, env) as usize * b.dtype.bytes()).collect();
    if sizes.iter().sum::<usize>() > 20 << 30 {
        return None;
    }
    let f = d.function(module, l);
    let most = if l.workspace > 0 { 264 } else { i64::from(i32::MAX) };
    let most = if l.cluster > 1 { d.in_clusters(f, l) } else { most };
    // One block of these fits a processor.
    let blocks = eval(&l.grid, env).clamp(1, if l.maps.is_empty() { most } else { 132 });
    let mut held: Vec<Address> = k.buffers.iter().zip(&sizes).map(|(b, n)| d.timed(b, *n, env)).collect();
    held.push(d.allocate(l.workspace * blocks as usize, 0));
    let workspace = held[sizes.len()];
    let dims: Vec<i64> = k.dims.iter().map(|x| eval(x, env)).collect();
    let passed = dims.iter().map(|n| *n as u64).chain([eval(&k.grid, env) as u64, workspace]);
    let arguments: Vec<u64> = held[..sizes.len()].iter().copied().chain(passed).collect();
    let maps = d.maps(l, &held, &dims);
    let (mut best, mut times) = (f64::INFINITY, 1);
    for _ in 0..5 {
        d.wait("before");
        let start = Instant::now();
        (0..times).for_each(|_| d.launch(f, l, blocks, &arguments, &maps));
        d.wait(&k.name);
        best = best.min(start.elapsed().as_secs_f64() / f64::from(times));
        if best > 0.3 {
            break;
        }
        times = ((0.02 / best) as i32).clamp(1, 50);
    }
    held.into_iter().for_each(|p| d.free(p));
    let elems: Vec<f64> = k.buffers.iter().map(|b| eval(&b.elems, env) as f64).collect();
    let flops = if k.name.starts_with("product") {
        // Each matrix b with all rows; the last buffer is a result.
        let matrices = k.buffers.iter().filter(|b| b.name.starts_with('b')).count() as f64;
        2.0 * matrices * (elems[0] * elems[1] * elems[elems.len() - 1]).sqrt()
    } else if k.name.starts_with("grouped") {
        // Each matrix of the groups with all rows.
        let matrices = k.buffers.iter().zip(&elems).filter(|(b, _)| b.name.starts_with('w')).map(|(_, n)| n);
        let offsets = k.buffers.iter().position(|b| b.name == "offsets").map_or(2.0, |i| elems[i]);
        2.0 * matrices.sum::<f64>() / (offsets - 1.0) * env.get("R").copied().unwrap_or(0) as f64
    } else {
        0.0
    };
    Some((best, sizes.iter().sum::<usize>() as f64, flops))
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let mut env = DimEnv::new();
    for (name, n) in args.iter().filter_map(|a| a.split_once('=')) {
        env.insert(name.into(), n.parse().expect("an extent"));
    }
    let timed = args.iter().any(|a| a == "time");
    let mut words = args.iter().filter(|a| !a.contains('=') && *a != "time");
    let folder = words.next().expect("a folder");
    let d = Driver::new();
    let mut failed = 0;
    for name in words {
        let read = |ending: &str| {
            let file = Path::new(folder).join(format!("{name}.{ending}"));
            fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
        };
        let kernels = tile::text::parse(&read("tile")).unwrap_or_else(|e| panic!("{name}: {e}"));
        let (launches, start) = (launches(&read("launch")), Instant::now());
        let module = d.module(&read("ptx"));
        let loaded = start.elapsed().as_secs_f64();
        eprintln!("{name}: {} kernels, loaded in {loaded:.2} s", kernels.len());
        let (mut good, mut skipped, mut times) = (0, 0, Vec::new());
        for k in &kernels {
            let l = &launches[&k.name];
            if timed {
                let t = time(&d, module, k, l, &env);
                eprintln!("{} {:.1} us", k.name, t.map_or(0.0, |t| t.0 * 1e6));
                times.extend(t.map(|t| (t, k, l)));
                continue;
            }
            match check(&d, module, k, l, &env, name == "maps") {
                Ok(true) => good += 1,
                Ok(false) => skipped += 1,
                Err(e) => {
                    failed += 1;
                    println!("{name} {}: {e}", k.name);
                }
            }
        }
        if !timed {
            println!(
                "{name}: {good} of {} kernels agree, {skipped} without operands; the driver took {loaded:.2} s",
                kernels.len()
            );
        }
        times.sort_by(|a, b| b.0.0.total_cmp(&a.0.0));
        let total: f64 = times.iter().map(|t| t.0.0).sum();
        println!("{name}: {total:.4} s in {} kernels", times.len());
        for ((seconds, bytes, flops), k, l) in times.into_iter().take(40) {
            let (us, rate, work) = (seconds * 1e6, bytes / seconds / 1e9, flops / seconds / 1e12);
            let grid = eval(&l.grid, &env);
            println!("{us:>10.1} us {rate:>8.1} GB/s {work:>7.1} TFLOP/s {grid:>9} x {:<4} {}", l.threads, k.name);
        }
    }
    assert!(failed == 0, "{failed} kernels failed");
}
