//! A tiny library by hand, for tests: a bigram model of `V` tokens whose logits are a row of a table and the sum of stacked biases. Its
//! kernels are functions of this file, so no compiler is needed.

use crate::Session;
use base::{DType, Dim};
use device::{Code, Device, Host, KernelFn};
use library::{Buffer, Class, Entry, Init, Kernel, Library, Manifest, Param, Port, Role, Step, View, Work};
use std::collections::BTreeMap;

/// Tokens of the model.
pub(crate) const V: usize = 32;
/// Stacked biases.
pub(crate) const LAYERS: i64 = 2;

/// Kernels by symbol.
pub(crate) struct Kernels(pub BTreeMap<&'static str, KernelFn>);

impl Code for Kernels {
    fn kernel(&self, symbol: &str) -> Option<KernelFn> {
        self.0.get(symbol).copied()
    }
}

/// The host without kernels, on one thread.
pub(crate) fn bare_host() -> Device {
    Device::Host(Host::new(Box::new(Kernels(BTreeMap::new())), [], Some(1)).expect("no kernels"))
}

pub(crate) fn dim(text: &str) -> Dim {
    text.parse().expect("a dim")
}

/// A view of a whole buffer inside loops that move it by `turn` elements each.
pub(crate) fn view(buffer: usize, turn: &[i64]) -> View {
    View { buffer, offset: Dim::from(0), turn: turn.iter().map(|n| Dim::from(*n)).collect() }
}

/// Builds an entry; buffers are numbered as they are added.
pub(crate) struct Build {
    pub entry: Entry,
}

impl Build {
    pub(crate) fn new(name: &str) -> Build {
        let entry = Entry {
            name: name.into(),
            args: Vec::new(),
            outputs: Vec::new(),
            buffers: Vec::new(),
            steps: Vec::new(),
            constraints: Vec::new(),
            when: Vec::new(),
        };
        Build { entry }
    }
    pub(crate) fn inner(&mut self, dtype: DType, elems: &str) -> usize {
        self.entry.buffers.push(Buffer { dtype, elems: dim(elems), external: false });
        self.entry.buffers.len() - 1
    }
    fn port(&mut self, role: Role, name: &str, dtype: DType, shape: &[&str]) -> Port {
        let shape: Vec<Dim> = shape.iter().map(|d| dim(d)).collect();
        let elems = shape.iter().fold(Dim::from(1), |n, d| n * d.clone());
        self.entry.buffers.push(Buffer { dtype, elems, external: true });
        Port { name: name.into(), role, dtype, shape, buffer: self.entry.buffers.len() - 1 }
    }
    pub(crate) fn arg(&mut self, role: Role, name: &str, dtype: DType, shape: &[&str]) -> usize {
        let port = self.port(role, name, dtype, shape);
        self.entry.args.push(port);
        self.entry.buffers.len() - 1
    }
    pub(crate) fn output(&mut self, role: Role, name: &str, dtype: DType, shape: &[&str]) -> usize {
        let port = self.port(role, name, dtype, shape);
        self.entry.outputs.push(port);
        self.entry.buffers.len() - 1
    }
    /// An argument that is written in place.
    pub(crate) fn in_place(&mut self, role: Role, name: &str, shape: &[&str]) -> usize {
        let b = self.arg(role, name, DType::F32, shape);
        self.entry.outputs.push(self.entry.args.last().expect("added above").clone());
        b
    }
    pub(crate) fn step(&mut self, s: Step) {
        self.entry.steps.push(s);
    }
}

type Buffers = *const *mut u8;

/// # Safety
/// Buffer `i` holds `n` elements of T that nothing else writes.
unsafe fn slice<'a, T>(buffers: Buffers, i: usize, n: usize) -> &'a mut [T] {
    // SAFETY: the caller vouches for it.
    unsafe { std::slice::from_raw_parts_mut((*buffers.add(i)).cast::<T>(), n) }
}

macro_rules! kernel {
    ($name:ident, |$b:ident, $d:ident, $range:ident| $body:block) => {
        unsafe extern "C" fn $name($b: Buffers, dims: *const i64, begin: i64, end: i64) {
            // SAFETY: the entries below pass the buffers and extents that this kernel declares.
            unsafe {
                let $d = |i: usize| usize::try_from(*dims.add(i)).expect("an extent");
                let $range = begin as usize..end as usize;
                $body
            }
        }
    };
}

// tokens [n], table [V, V], h [n, V]
kernel!(lookup, |b, d, range| {
    let (n, v) = (d(0), d(1));
    let (tokens, table) = (slice::<i32>(b, 0, n), slice::<f32>(b, 1, v * v));
    for i in range {
        let h = std::slice::from_raw_parts_mut((*b.add(2)).cast::<f32>().add(i * v), v);
        h.copy_from_slice(&table[tokens[i] as usize * v..][..v]);
    }
});
// h [n, V], bias [V]
kernel!(add_bias, |b, d, range| {
    let v = d(1);
    let bias = slice::<f32>(b, 1, v);
    for i in range {
        let h = std::slice::from_raw_parts_mut((*b).cast::<f32>().add(i * v), v);
        h.iter_mut().zip(bias.iter()).for_each(|(h, x)| *h += x);
    }
});
// h [n, V], targets [n], weights [n], loss []
kernel!(cross_entropy, |b, d, _range| {
    let (n, v) = (d(0), d(1));
    let (h, targets, weights) = (slice::<f32>(b, 0, n * v), slice::<i32>(b, 1, n), slice::<f32>(b, 2, n));
    let loss = |i: usize| {
        let row = &h[i * v..][..v];
        row.iter().map(|x| x.exp()).sum::<f32>().ln() - row[targets[i] as usize]
    };
    slice::<f32>(b, 3, 1)[0] = (0..n).map(|i| weights[i] * loss(i)).sum();
});
// targets [n], load [V]
kernel!(count, |b, d, _range| {
    let (n, v) = (d(0), d(1));
    let (targets, load) = (slice::<i32>(b, 0, n), slice::<f32>(b, 1, v));
    targets.iter().for_each(|t| load[*t as usize] += 1.0);
});
// h [n, V], targets [n], weights [n]
kernel!(cross_entropy_grad, |b, d, range| {
    let (n, v) = (d(0), d(1));
    let (targets, weights) = (slice::<i32>(b, 1, n), slice::<f32>(b, 2, n));
    for i in range {
        let h = std::slice::from_raw_parts_mut((*b).cast::<f32>().add(i * v), v);
        let total: f32 = h.iter().map(|x| x.exp()).sum();
        for (j, x) in h.iter_mut().enumerate() {
            *x = weights[i] * (x.exp() / total - f32::from(u8::from(j == targets[i] as usize)));
        }
    }
});
// tokens [n], dh [n, V], dtable [V, V]
kernel!(lookup_grad, |b, d, _range| {
    let (n, v) = (d(0), d(1));
    let (tokens, dh, table) = (slice::<i32>(b, 0, n), slice::<f32>(b, 1, n * v), slice::<f32>(b, 2, v * v));
    for i in 0..n {
        let row = &mut table[tokens[i] as usize * v..][..v];
        row.iter_mut().zip(&dh[i * v..]).for_each(|(g, x)| *g += x);
    }
});
// dh [n, V], dbias [V]
kernel!(bias_grad, |b, d, _range| {
    let (n, v) = (d(0), d(1));
    let (dh, bias) = (slice::<f32>(b, 0, n * v), slice::<f32>(b, 1, v));
    (0..n * v).for_each(|i| bias[i % v] += dh[i]);
});
// g [layers, n], sums [layers]
kernel!(squares, |b, d, range| {
    let g = slice::<f32>(b, 0, d(0) * d(1));
    let sums = slice::<f32>(b, 1, d(0));
    range.for_each(|i| sums[i] = g[i * d(1)..][..d(1)].iter().map(|x| x * x).sum());
});
// p, g, m, v [n]; lr, step, clip, norm []
kernel!(adamw, |b, d, range| {
    let n = d(0);
    let [p, g, m, v] = [0, 1, 2, 3].map(|i| slice::<f32>(b, i, n));
    let [lr, step, clip, norm] = [4, 5, 6, 7].map(|i| slice::<f32>(b, i, 1)[0]);
    let factor = if clip > 0.0 { (clip / (norm + 1e-6)).min(1.0) } else { 1.0 };
    for i in range {
        let g = g[i] * factor;
        m[i] = 0.9 * m[i] + 0.1 * g;
        v[i] = 0.95 * v[i] + 0.05 * g * g;
        let (c1, c2) = (1.0 - 0.9f32.powf(step), 1.0 - 0.95f32.powf(step));
        p[i] -= lr * (m[i] / c1 / ((v[i] / c2).sqrt() + 1e-8) + 0.01 * p[i]);
    }
});
// balance [V], load [V]
kernel!(rebalance, |b, d, _range| {
    let v = d(0);
    let (balance, load) = (slice::<f32>(b, 0, v), slice::<f32>(b, 1, v));
    let mean = load.iter().sum::<f32>() / v as f32;
    balance.iter_mut().zip(load.iter()).for_each(|(x, l)| *x += 0.001 * (mean - l).signum());
});
// x [n]: NaN where x is above the limit in y []
kernel!(break_above, |b, d, range| {
    let (x, y) = (slice::<f32>(b, 0, d(0)), slice::<f32>(b, 1, 1));
    range.for_each(|i| x[i] = if x[i] > y[0] { f32::NAN } else { x[i] });
});

const KERNELS: [(&str, KernelFn, usize, usize); 11] = [
    ("lookup", lookup, 3, 2),
    ("add_bias", add_bias, 2, 2),
    ("cross_entropy", cross_entropy, 4, 2),
    ("count", count, 2, 2),
    ("cross_entropy_grad", cross_entropy_grad, 3, 2),
    ("lookup_grad", lookup_grad, 3, 2),
    ("bias_grad", bias_grad, 2, 2),
    ("squares", squares, 2, 2),
    ("adamw", adamw, 8, 1),
    ("rebalance", rebalance, 2, 1),
    ("break_above", break_above, 2, 1),
];

/// A launch of a kernel of this file.
pub(crate) fn launch(symbol: &str, buffers: Vec<View>, dims: &[&str], grid: &str) -> Step {
    let kernel = KERNELS.iter().position(|k| k.0 == symbol).expect("a kernel of this file");
    let work = Work { class: Class::Copy, dtype: DType::F32, shape: vec![dim(grid)] };
    Step::Launch { kernel, buffers, dims: dims.iter().map(|d| dim(d)).collect(), grid: dim(grid), work }
}

pub(crate) fn kernels() -> Vec<Kernel> {
    let kernel = |(symbol, _, num_buffers, num_dims): &(&str, KernelFn, usize, usize)| Kernel {
        symbol: (*symbol).into(),
        num_buffers: *num_buffers,
        num_dims: *num_dims,
        scratch_bytes: 0,
        origin: Some(format!("bigram.lode:{}", num_dims + 3)),
        gpu: None,
    };
    KERNELS.iter().map(kernel).collect()
}

/// The code of this file's kernels.
pub(crate) fn code() -> Box<dyn Code> {
    Box::new(Kernels(KERNELS.iter().map(|k| (k.0, k.1)).collect()))
}

/// Logits into an arena buffer: the head of three entries. Buffers 0 and 1 are the table and the biases.
fn logits(b: &mut Build) -> (usize, usize) {
    let table = b.arg(Role::Param, "table", DType::F32, &["32", "32"]);
    let biases = b.arg(Role::Param, "layers.*.bias", DType::F32, &["2", "32"]);
    b.arg(Role::State, "balance", DType::F32, &["32"]);
    let tokens = b.arg(Role::Input, "tokens", DType::I32, &["B", "T"]);
    let h = b.inner(DType::F32, "32*B*T");
    b.step(launch("lookup", vec![view(tokens, &[]), view(table, &[]), view(h, &[])], &["B*T", "32"], "B*T"));
    let add = launch("add_bias", vec![view(h, &[0]), view(biases, &[V as i64])], &["B*T", "32"], "B*T");
    b.step(Step::Loop { count: LAYERS, reverse: false, body: vec![add] });
    (tokens, h)
}

fn forward() -> Entry {
    let mut b = Build::new("forward");
    let (_, h) = logits(&mut b);
    let out = b.output(Role::Result, "logits", DType::F32, &["B", "T", "32"]);
    b.step(Step::Copy { from: view(h, &[]), to: view(out, &[]), elems: dim("32*B*T") });
    b.entry.constraints.push((dim("T - 2"), "the length of a window of 2".into()));
    b.entry
}

fn loss() -> Entry {
    let mut b = Build::new("loss");
    let (_, h) = logits(&mut b);
    let targets = b.arg(Role::Input, "targets", DType::I32, &["B", "T"]);
    let weights = b.arg(Role::Input, "weights", DType::F32, &["B", "T"]);
    let loss = b.output(Role::Scalar, "loss", DType::F32, &[]);
    let load = b.output(Role::Tally, "router.load", DType::F32, &["32"]);
    let views = [h, targets, weights, loss].map(|x| view(x, &[])).to_vec();
    b.step(launch("cross_entropy", views, &["B*T", "32"], "1"));
    b.step(Step::Zero { at: view(load, &[]), elems: dim("32") });
    b.step(launch("count", vec![view(targets, &[]), view(load, &[])], &["B*T", "32"], "1"));
    b.entry
}

fn grad(breaks: bool) -> Entry {
    let mut b = Build::new("grad");
    let (tokens, h) = logits(&mut b);
    let targets = b.arg(Role::Input, "targets", DType::I32, &["B", "T"]);
    let weights = b.arg(Role::Input, "weights", DType::F32, &["B", "T"]);
    let dtable = b.in_place(Role::Grad, "table", &["32", "32"]);
    let dbias = b.in_place(Role::Grad, "layers.*.bias", &["2", "32"]);
    let load = b.in_place(Role::Tally, "router.load", &["32"]);
    let loss = b.output(Role::Scalar, "loss", DType::F32, &[]);
    if breaks {
        let limit = b.arg(Role::State, "limit", DType::F32, &["1"]);
        b.step(launch("break_above", vec![view(h, &[]), view(limit, &[])], &["32*B*T"], "32*B*T"));
    }
    let views = [h, targets, weights, loss].map(|x| view(x, &[])).to_vec();
    b.step(launch("cross_entropy", views.clone(), &["B*T", "32"], "1"));
    b.step(launch("cross_entropy_grad", views[..3].to_vec(), &["B*T", "32"], "B*T"));
    b.step(launch("lookup_grad", [tokens, h, dtable].map(|x| view(x, &[])).to_vec(), &["B*T", "32"], "1"));
    let body = launch("bias_grad", vec![view(h, &[0]), view(dbias, &[V as i64])], &["B*T", "32"], "1");
    b.step(Step::Loop { count: LAYERS, reverse: true, body: vec![body] });
    b.step(launch("count", vec![view(targets, &[]), view(load, &[])], &["B*T", "32"], "1"));
    b.entry
}

fn norm() -> Entry {
    let mut b = Build::new("norm");
    let sizes: [(&str, &[&str], &[&str], [&str; 2]); 2] =
        [("table", &["32", "32"], &[], ["1", "1024"]), ("layers.*.bias", &["2", "32"], &["2"], ["2", "32"])];
    for (name, shape, sums, extents) in sizes {
        let g = b.arg(Role::Grad, name, DType::F32, shape);
        let sum = b.output(Role::Result, name, DType::F32, sums);
        b.step(launch("squares", [g, sum].map(|x| view(x, &[])).to_vec(), &extents, extents[0]));
    }
    b.entry
}

fn update() -> Entry {
    let mut b = Build::new("update");
    let sizes: [(&str, &[&str], &str); 2] = [("table", &["32", "32"], "1024"), ("layers.*.bias", &["2", "32"], "64")];
    let params = sizes.map(|(n, shape, _)| b.in_place(Role::Param, n, shape));
    let balance = b.in_place(Role::State, "balance", &["32"]);
    let grads = sizes.map(|(n, shape, _)| b.arg(Role::Grad, n, DType::F32, shape));
    let moments = sizes.map(|(n, shape, _)| [0, 1].map(|k| b.in_place(Role::Moment, &format!("{n}#{k}"), shape)));
    let load = b.arg(Role::Tally, "router.load", DType::F32, &["32"]);
    let scalars = ["lr", "step", "clip", "grad_norm"].map(|n| b.arg(Role::Scalar, n, DType::F32, &[]));
    for i in 0..2 {
        let own = [params[i], grads[i], moments[i][0], moments[i][1]];
        let views = own.into_iter().chain(scalars).map(|x| view(x, &[])).collect();
        b.step(launch("adamw", views, &[sizes[i].2], sizes[i].2));
    }
    b.step(launch("rebalance", vec![view(balance, &[]), view(load, &[])], &["32"], "1"));
    b.entry
}

fn param(name: &str, shape: &[i64], init: Init, role: Role) -> Param {
    Param { name: name.into(), dtype: DType::F32, shape: shape.to_vec(), init, decay: false, role }
}

/// The bigram model. If it `breaks`, its gradient's logits above the state `limit` become NaN.
pub(crate) fn manifest(breaks: bool) -> Manifest {
    let mut params = vec![
        param("table", &[32, 32], Init::Normal(0.5), Role::Param),
        param("layers.*.bias", &[2, 32], Init::Uniform(0.1), Role::Param),
        param("balance", &[32], Init::Constant(0.0), Role::State),
    ];
    if breaks {
        params.push(param("limit", &[1], Init::Constant(1e9), Role::State));
    }
    let manifest = Manifest {
        name: "bigram".into(),
        target: "host".into(),
        dims: vec!["B".into(), "T".into()],
        params,
        kernels: kernels(),
        entries: vec![forward(), loss(), grad(breaks), norm(), update()],
        settings: BTreeMap::new(),
    };
    Library::new(manifest, Vec::new()).expect("it is valid").manifest
}

/// A session of the bigram model.
pub(crate) fn session(threads: usize) -> Session {
    Session::new(manifest(false), code(), Some(threads)).expect("its kernels are there")
}

/// A session of one entry.
pub(crate) fn session_of(entry: Entry, dims: &[&str], threads: usize) -> Session {
    let manifest = Manifest {
        name: "one".into(),
        target: "host".into(),
        dims: dims.iter().map(|d| (*d).to_string()).collect(),
        params: Vec::new(),
        kernels: kernels(),
        entries: vec![entry],
        settings: BTreeMap::new(),
    };
    let manifest = Library::new(manifest, Vec::new()).expect("it is valid").manifest;
    Session::new(manifest, code(), Some(threads)).expect("its kernels are there")
}

/// Numbers in -1..1.
pub(crate) fn numbers(n: usize, seed: u64) -> Vec<f64> {
    let stream = crate::random::Stream::new(seed, "test");
    (0..n as u64).map(|i| f64::from((2.0 * stream.uniform(i) - 1.0) as f32)).collect()
}

/// A folder that goes with the test.
pub(crate) struct Folder(std::path::PathBuf);

/// An empty folder for the test of this name.
pub(crate) fn folder(name: &str) -> Folder {
    let path = std::env::temp_dir().join(format!("lode-exec-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).expect("a folder for the test");
    Folder(path)
}

impl std::ops::Deref for Folder {
    type Target = std::path::Path;
    fn deref(&self) -> &std::path::Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
