//! The manifest's data. Extents are [`Dim`]s over the entry's run-time dims, written as text in JSON.

use crate::work::{Class, Job, Work};
use base::{DType, Dim, DimEnv};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Index of a buffer within its entry.
pub type BufferId = usize;

/// What a build produced.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The model's name.
    pub name: String,
    /// `host` or `sm_90a`.
    pub target: String,
    /// Run-time dims, in order of declaration.
    pub dims: Vec<String>,
    /// Parameters and states, in order of declaration.
    pub params: Vec<Param>,
    /// Kernels; [`Step::Launch`] refers to them by index.
    pub kernels: Vec<Kernel>,
    /// The entry points.
    pub entries: Vec<Entry>,
    /// Defaults of `lode train`: `batch`, `seq`, `steps`, `lr`, ….
    pub settings: BTreeMap<String, f64>,
}

/// A parameter or state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Param {
    /// The dotted name; each `*` (or `*+3`, which counts from 3) stands for one leading axis.
    pub name: String,
    /// In memory.
    pub dtype: DType,
    /// All constants.
    pub shape: Vec<i64>,
    /// How it starts: `normal(0.02)`, `uniform(0.1)`, `constant(1)`.
    pub init: Init,
    /// Whether weight decay applies.
    pub decay: bool,
    /// `Role::Param` or `Role::State`.
    pub role: Role,
}

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Init {
    /// Normal. # Units: standard deviation.
    Normal(f64),
    /// Uniform in `[-a, a)`.
    Uniform(f64),
    /// One value.
    Constant(f64),
}

/// What a port of an entry is to the run-time; see `graph::Role`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Role {
    Param,
    State,
    Input,
    Grad,
    Moment,
    Tally,
    Scalar,
    Result,
    Inner,
}

impl Role {
    /// Whether such a tensor outlives a call: the run-time keeps it by role and name.
    pub fn is_stored(self) -> bool {
        match self {
            Role::Param | Role::State | Role::Grad | Role::Moment | Role::Tally => true,
            Role::Input | Role::Scalar | Role::Result | Role::Inner => false,
        }
    }
}

/// A compiled kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// Its symbol in the code.
    pub symbol: String,
    /// The number of buffers it takes.
    pub num_buffers: usize,
    /// The number of extents it takes.
    pub num_dims: usize,
    /// Scratch bytes of a block (informative; on the host it is on the stack).
    pub scratch_bytes: usize,
    /// The model's source line it stands for, `file:line`, if known.
    pub origin: Option<String>,
    /// How a GPU launches it; none on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuLaunch>,
}

/// How a GPU launches a kernel. Extents are over the kernel's own: `d0`, `d1`, … in their order, and `grid`, the step's number of blocks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuLaunch {
    /// Threads of a block, in one dimension.
    pub threads: u32,
    /// Neighbouring blocks that are a cluster: a multiple of so many is launched.
    #[serde(default = "alone", skip_serializing_if = "is_alone")]
    pub cluster: u32,
    /// The number of blocks that have something to do. Fewer do the same work.
    pub blocks: Dim,
    /// Shared memory that the code declares. # Units: bytes.
    pub static_shared_bytes: usize,
    /// Shared memory to ask for. # Units: bytes.
    pub dynamic_shared_bytes: usize,
    /// Global memory that each launched block needs. # Units: bytes.
    pub workspace_bytes: usize,
    /// The tensor maps that follow the other parameters.
    pub maps: Vec<TensorMap>,
}

/// A block that is no part of a cluster.
fn alone() -> u32 {
    1
}

fn is_alone(blocks: &u32) -> bool {
    *blocks == alone()
}

impl GpuLaunch {
    /// The values of a step's extents by the names that launch data has for them.
    pub fn extents(dims: &[i64], grid: i64) -> DimEnv {
        let named = dims.iter().enumerate().map(|(i, n)| (format!("d{i}").into(), *n));
        named.chain([("grid".into(), grid)]).collect()
    }
}

/// A buffer as a tensor whose rectangles the tensor memory accelerator copies; its neighbours are permuted within 128 bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorMap {
    /// The kernel's buffer.
    pub buffer: usize,
    /// Its dtype: bf16, f16, tf32 or e4m3; f32 of single rows, whose neighbours lie as they are.
    pub dtype: DType,
    /// Extent and stride (in elements) of each axis, outermost first; the last stride is 1.
    pub axes: Vec<(Dim, Dim)>,
    /// Rows of a rectangle, along the last axis but one.
    pub rows: u32,
    /// How many times so many, along the axis before; 1 where there are two axes.
    pub runs: u32,
    /// Columns of a rectangle, along the last axis.
    pub cols: u32,
}

/// The target of libraries whose code is a host object.
pub const HOST: &str = "host";
/// The target of libraries whose code is PTX for Hopper GPUs.
pub const SM_90A: &str = "sm_90a";

/// An entry point: ports, buffers, steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// `forward`, `loss`, `grad`, `update`.
    pub name: String,
    /// What the caller passes.
    pub args: Vec<Port>,
    /// What it gets. An output with the name and role of an argument is written in place: both name the same buffer.
    pub outputs: Vec<Port>,
    /// All memory, arguments and outputs included.
    pub buffers: Vec<Buffer>,
    /// What happens, in order.
    pub steps: Vec<Step>,
    /// Extents that must not be negative for the run-time dims given (slices, paddings), with what they are.
    pub constraints: Vec<(Dim, String)>,
    /// Of a variant: it runs in place of the entry of its name where none of these extents is negative. Its arguments and outputs are the
    /// entry's; it comes after it.
    pub when: Vec<Dim>,
}

impl Entry {
    /// Whether this is a variant of another entry.
    pub fn is_variant(&self) -> bool {
        !self.when.is_empty()
    }
    /// Whether it may run for these dims.
    pub fn runs_at(&self, dims: &DimEnv) -> bool {
        self.when.iter().all(|d| d.eval(dims).is_some_and(|n| n >= 0))
    }
}

impl Manifest {
    /// The entry called `name`: what every caller sees.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|e| e.name == name && !e.is_variant())
    }
    /// What runs for these dims when `name` is called: the first variant that may, else the entry itself.
    pub fn variant(&self, name: &str, dims: &DimEnv) -> Option<&Entry> {
        let variant = self.entries.iter().find(|e| e.name == name && e.is_variant() && e.runs_at(dims));
        variant.or_else(|| self.entry(name))
    }
}

/// An argument or output of an entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// Unique within its role.
    pub name: String,
    /// What it is.
    pub role: Role,
    /// In memory.
    pub dtype: DType,
    /// Row-major extents.
    pub shape: Vec<Dim>,
    /// Where it lies, from the buffer's start.
    pub buffer: BufferId,
}

/// Contiguous memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Buffer {
    /// The dtype.
    pub dtype: DType,
    /// The number of elements.
    pub elems: Dim,
    /// Whether it belongs to the caller (an argument or output) or to the plan's arena.
    pub external: bool,
}

/// A place in a buffer. Inside loops the place moves by `turn[d]` elements a turn of the enclosing loop `d` (0 the outermost).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct View {
    /// The buffer.
    pub buffer: BufferId,
    /// Elements from its start.
    pub offset: Dim,
    /// Elements per turn of each enclosing loop.
    pub turn: Vec<Dim>,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Step {
    /// Runs all blocks of a kernel.
    Launch {
        /// Index into [`Manifest::kernels`].
        kernel: usize,
        /// Its buffers.
        buffers: Vec<View>,
        /// Its extents.
        dims: Vec<Dim>,
        /// The number of blocks.
        grid: Dim,
        /// What its time depends on.
        work: Work,
    },
    /// A batched dense product.
    Gemm(Gemm),
    /// A product per group of rows.
    GroupedGemm(GroupedGemm),
    /// Rows among ranks that divide experts.
    Exchange(Exchange),
    /// Copies elements (of one dtype).
    Copy {
        /// From.
        from: View,
        /// To.
        to: View,
        /// How many.
        elems: Dim,
    },
    /// Zeros elements.
    Zero {
        /// Where.
        at: View,
        /// How many.
        elems: Dim,
    },
    /// Turns of a loop, forward or backward.
    Loop {
        /// How many.
        count: i64,
        /// Whether turn `count - 1` is the first.
        reverse: bool,
        /// What; views have one more entry in `turn`.
        body: Vec<Step>,
    },
}

/// `c[i, j] = beta·c[i, j] + Σ_k a[i, k]·b[k, j]` for each point of `batch`. Sums in the accumulator type of `dtype`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gemm {
    /// Of all three.
    pub dtype: DType,
    /// Left.
    pub a: View,
    /// Right.
    pub b: View,
    /// Result.
    pub c: View,
    /// Rows.
    pub m: Dim,
    /// Columns.
    pub n: Dim,
    /// Summed.
    pub k: Dim,
    /// Element strides: of a along i and k, of b along k and j, of c along i and j.
    pub strides: [Dim; 6],
    /// Further loops: extent and the strides of a, b, c.
    pub batch: Vec<(Dim, [Dim; 3])>,
    /// Whether to add to what is in c.
    pub accumulate: bool,
}

/// Products over ragged rows, rows of group e being `offsets[e]..offsets[e + 1]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum GroupedGemm {
    /// x `[rows, k]` times w `[e, k, n]` (`[e, n, k]` if transposed) to y `[rows, n]`; rows past the last offset become 0.
    Rows {
        /// Of x, w and y.
        dtype: DType,
        /// Rows.
        x: View,
        /// Matrices.
        w: View,
        /// i32 `[e + 1]`.
        offsets: View,
        /// Result.
        y: View,
        /// Groups, rows, k, n.
        extents: [Dim; 4],
        /// The layout of w.
        transposed: bool,
    },
    /// x `[rows, k]`, y `[rows, n]` to w `[e, k, n]`: the sum of outer products of each group; 0 for an empty one.
    Outer {
        /// Of all.
        dtype: DType,
        /// Left.
        x: View,
        /// Right.
        y: View,
        /// i32 `[e + 1]`.
        offsets: View,
        /// Result.
        w: View,
        /// Groups, rows, k, n.
        extents: [Dim; 4],
    },
}

/// What the members of a group that divides `groups` experts tell or send each other. Member m of E has the groups m·groups/E and on; each has
/// rows of its own, sorted by group. In a group of one what is sent stays.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Exchange {
    /// i32 `offsets [groups + 1]` to those of all `[members, groups + 1]`, and to those of the rows that come here, `[groups/members + 1]`.
    Offsets {
        /// Of this member's rows.
        offsets: View,
        /// Of every member's.
        all: View,
        /// Of what comes.
        own: View,
        /// How many members.
        members: i64,
        /// How many groups, of all members together.
        groups: i64,
    },
    /// Rows: `[rows, row]` to `[rows·members, row]`, by group and then by member; 0 behind them.
    Rows {
        /// Of a row's elements.
        dtype: DType,
        /// Whether it is the other way: what came goes back to where it was.
        back: bool,
        /// From.
        from: View,
        /// What [`Exchange::Offsets`] told.
        all: View,
        /// To.
        to: View,
        /// How many members.
        members: i64,
        /// How many groups, of all members together.
        groups: i64,
        /// Rows of a member before they are sent, and elements of a row.
        extents: [Dim; 2],
    },
}

impl Step {
    /// What the step does for dims that are known; `None` of a loop, of what only tells offsets, or if an extent has no value. `buffers` are the entry's.
    pub fn job(&self, buffers: &[Buffer], dims: &DimEnv) -> Option<Job> {
        let size = |d: &Dim| d.eval(dims).map(|n| n.max(0));
        let bytes = |v: &View, elems: &Dim, times: i64| {
            let dtype = buffers[v.buffer].dtype;
            let shape = vec![size(elems)?.saturating_mul(times * dtype.bytes() as i64)];
            Some(Job { class: Class::Copy, dtype, shape })
        };
        match self {
            Step::Launch { work, .. } => work.at(dims),
            Step::Gemm(g) => {
                let batch = g.batch.iter().try_fold(1i64, |n, (d, _)| Some(n.saturating_mul(size(d)?)))?;
                Some(Job { class: Class::Product, dtype: g.dtype, shape: vec![batch, size(&g.m)?, size(&g.n)?, size(&g.k)?] })
            }
            Step::GroupedGemm(g) => {
                let (class, dtype, [groups, rows, k, n]) = match g {
                    GroupedGemm::Rows { dtype, extents, .. } => (Class::GroupedProduct, dtype, extents),
                    GroupedGemm::Outer { dtype, extents, .. } => (Class::GroupedOuter, dtype, extents),
                };
                Some(Job { class, dtype: *dtype, shape: vec![size(groups)?, size(rows)?, size(n)?, size(k)?] })
            }
            Step::Exchange(Exchange::Offsets { .. }) => None,
            Step::Exchange(Exchange::Rows { from, extents: [rows, row], .. }) => bytes(from, &(rows.clone() * row.clone()), 2),
            Step::Copy { from, elems, .. } => bytes(from, elems, 2),
            Step::Zero { at, elems } => bytes(at, elems, 1),
            Step::Loop { .. } => None,
        }
    }
}
