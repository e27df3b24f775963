//! A graph as kernels, buffers and steps. In: a verified module with autodiff done. Out: the entries of a library and the kernels
//! they launch; equal kernels once.
//!
//! Values get memory as `group` says. An output that replaces an argument is written in place if no later step reads the
//! argument, else through a copy at the end; a map is written over what only it reads, element by element. A `repeat` becomes a loop over steps: stacked operands and results are views that
//! move by a slice a turn, carried values live in one buffer.

use crate::{
    cost,
    fused::{
        Fused, Joined, Rows, Scene, Select, candidates, fuse, fuse_joined, fuse_many, fuse_parts, fuse_rows, fuse_scores_many,
        fuse_select, fuse_select_many, fuse_select_parts, num_parts,
    },
    gemm::gemm,
    group::{Grouping, adds_gradient, group, is_layout, is_unread, operand},
    ir::{COPY_ALIGN, Kernel, divisor},
    kernels::gpu_product::{Grouped, Product, gpu_grouped, gpu_product, is_multiple},
    kernels::{gpu_topk_long, gpu_topk_parts, host_topk::TopK},
    select::{Device, Place, Want, kernels, takes_attend_grad},
    view::StridedView,
};
use attends::Attends;
use base::{DType, Dim, TensorType};
use graph::{
    Func, Module, NodeId, Op, Role, Value,
    op::{Form, MapFn},
    passes::{
        CHUNK, Stream, expand_fused_where, expand_quantize, outline_sums_where, sort_gradients, split_deltas_where, stream_fused,
    },
};
use library::{BufferId, Class, Exchange, GroupedGemm, Port, Step, View, Work};
use products::Products;
use std::collections::{BTreeMap, BTreeSet};

/// Entries and kernels of a module.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lowered {
    /// The kernels; launches refer to them by index.
    pub kernels: Vec<Kernel>,
    /// The source span each kernel stands for, if known.
    pub origins: Vec<Option<base::Span>>,
    /// Of each kernel, the op that a variable is a value of, where that is known and may be another than the kernel's.
    pub lines: Vec<Vec<(crate::VarId, base::Span)>>,
    /// One for each function of the module.
    pub entries: Vec<library::Entry>,
    /// The kernels that each node's steps launch, in order.
    pub launched: Vec<Launched>,
    /// The problems that have several legal tilings, each tiling that was built, and its kernel; each once.
    pub tilings: Vec<(String, String, usize)>,
}

/// A kernel that the steps of a node launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launched {
    /// The function of the module.
    pub func: String,
    /// The `repeat` nodes around the node, the outermost first.
    pub loops: Vec<NodeId>,
    /// The node.
    pub node: NodeId,
    /// The kernel.
    pub kernel: usize,
}

/// What the target cannot do.
#[derive(Clone, Debug, PartialEq, thiserror::Error, miette::Diagnostic)]
pub enum TargetError {
    /// A size that has to be a constant depends on run-time dims.
    #[error("{what} of {op} is {dim}, which is not known before run time")]
    #[diagnostic(code(E0501), help("make it a config value"))]
    NotConstant {
        /// The op.
        op: &'static str,
        /// Which extent.
        what: &'static str,
        /// Its value.
        dim: Dim,
    },
}

/// How to lower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether elementwise ops and reductions join the kernels that use them; else each is a kernel of its own.
    pub fuse: bool,
    /// Whether reductions of many elements to few are taken in parts, by many blocks, and those summed by another kernel: for a device of many
    /// processors.
    pub parts: bool,
    /// Whether products are kernels, and attention is spread over many processors; else products are steps for the device's library.
    pub products: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { fuse: true, parts: false, products: false }
    }
}

/// Which tilings kernels get.
#[derive(Clone, Copy, Debug)]
pub enum Tilings<'a> {
    /// Those of a tuning table, by problem; the usual ones for others.
    Of(&'a BTreeMap<String, String>),
    /// Every legal one that may be the fastest: the launches stand one after the other and compute the same.
    Every,
}

/// The module of which nodes are lowered: regions without a kernel are taken apart, and gradients of attention put apart what they need of its result.
pub fn prepared(module: &Module, options: Options) -> Module {
    let mut module = module.clone();
    for func in &mut module.funcs {
        stream_fused(func);
        expand_fused_where(func, &|region| !has_kernel(region, options.products && options.fuse));
        expand_quantize(func);
        if options.products && options.parts && options.fuse {
            split_deltas_where(func, &|func, node| {
                takes_attend_grad(&node.op, &node.inputs.iter().map(|v| func.ty(*v)).collect::<Vec<_>>())
            });
            sort_gradients(func);
            outline_sums_where(func, &|region| has_kernel(region, true));
        }
    }
    module
}

/// Lowers every function of the module with the usual tilings.
///
/// # Errors
/// E05xx if an op is beyond what the target does.
pub fn lower(module: &Module, options: Options) -> Result<Lowered, TargetError> {
    lower_with(module, options, Tilings::Of(&BTreeMap::new()))
}

/// The same with these tilings.
///
/// # Errors
/// As `lower`.
pub fn lower_with(module: &Module, options: Options, tilings: Tilings) -> Result<Lowered, TargetError> {
    let mut out = Lowered::default();
    let mut seen = BTreeMap::new();
    let module = prepared(module, options);
    for func in &module.funcs {
        let (func_name, loops) = (func.name.clone(), Vec::new());
        let (buffers, constraints) = (Vec::new(), Vec::new());
        let few = few(&module, func);
        let mut l =
            Lowerer { out: &mut out, seen: &mut seen, buffers, constraints, options, tilings, func: func_name, loops, few };
        let entry = l.entry(func)?;
        out.entries.push(entry);
    }
    Ok(out)
}

struct Lowerer<'a> {
    out: &'a mut Lowered,
    /// Kernels by everything but their names and extents.
    seen: &'a mut BTreeMap<String, usize>,
    buffers: Vec<library::Buffer>,
    constraints: Vec<(Dim, String)>,
    options: Options,
    tilings: Tilings<'a>,
    /// The function being lowered, and the loops around its body.
    func: String,
    loops: Vec<NodeId>,
    /// What is negative wherever the function runs.
    few: Vec<Dim>,
}

/// The entry that a function is for, and the extents that are not negative where it runs: `forward@T<=16` is what runs in place of `forward`
/// where T is at most 16.
pub fn variant_of(name: &str) -> (&str, Vec<Dim>) {
    let Some((entry, conditions)) = name.split_once('@') else { return (name, Vec::new()) };
    let room = |c: &str| {
        let (dim, most) = c.split_once("<=")?;
        Some(most.parse::<Dim>().ok()? - dim.parse::<Dim>().ok()?)
    };
    let when: Option<Vec<Dim>> = conditions.split('&').map(room).collect();
    (entry, when.unwrap_or_else(|| base::bug!("'{conditions}' is no condition of a variant")))
}

/// What is negative wherever a function runs: a variant of it runs where the one extent of its condition is not.
fn few(module: &Module, func: &Func) -> Vec<Dim> {
    let of = |f: &Func| match variant_of(&f.name) {
        (name, when) if name == func.name && when.len() == 1 => when.into_iter().next(),
        _ => None,
    };
    module.funcs.iter().filter_map(of).collect()
}

/// Whether a region has a kernel of its own, on a device on which products are kernels or another; others are computed op by op.
pub fn has_kernel(region: &graph::op::Fused, products: bool) -> bool {
    match region.form {
        Form::Select => Select::of(region).is_some_and(|s| match s.is_given() {
            true => products && takes_parts(&s),
            false => !(products && has_few_rows(region)),
        }),
        Form::Product => products && Products::of(region).is_some(),
        // No kernel, but a loop of steps.
        Form::Stream => Stream::of(region, CHUNK).is_some(),
        Form::Rows => Rows::of(region).is_some_and(|r| !products || r.is_for_many()),
        Form::Attend => products && Attends::of(region).is_some(),
    }
}

/// Whether a choice by what is stored is made for few rows by many blocks.
fn takes_parts(s: &Select) -> bool {
    let (_, rows) = s.scores().shape.split_last().expect("a row to choose from");
    candidates(s).is_some() && gpu_topk_parts::are_few(rows) && gpu_topk_parts::takes(&choice(s))
}

/// A region's choice as the kernels of choices see it.
fn choice(s: &Select) -> TopK {
    let (n, rows) = s.scores().shape.split_last().expect("a row to choose from");
    let rows = rows.iter().fold(Dim::from(1), |all, d| all * d.clone());
    TopK { dtype: DType::F32, rows, n: n.clone(), k: s.chosen() }
}

/// Whether all rows that share keys are one tile's, as in a step of decoding: one block would walk over all keys, where the ops of the region, one by one, are
/// spread over the keys.
fn has_few_rows(region: &graph::op::Fused) -> bool {
    let func = &region.body;
    let rows = |side: Vec<char>, letters: &[char], v: Value| {
        let extent = |c: &char| letters.iter().position(|l| l == c).and_then(|a| func.ty(v).shape[a].known());
        side.iter().map(extent).product::<Option<i64>>().is_some_and(|n| n <= FEW_ROWS)
    };
    let few = |n: &graph::Node| match &n.op {
        Op::Contract(c) => rows(c.rows(), &c.lhs, n.inputs[0]) || rows(c.cols(), &c.rhs, n.inputs[1]),
        _ => false,
    };
    func.nodes.values().find(|n| matches!(n.op, Op::Contract(_))).is_some_and(few)
}

/// What one warp group multiplies.
const FEW_ROWS: i64 = 64;

/// Whether some axis of a value may have no element.
fn may_be_empty(ty: &TensorType) -> bool {
    !ty.shape.iter().all(Dim::is_positive)
}

/// Where an output of a body goes.
#[derive(Clone)]
struct Target {
    view: StridedView,
    /// The argument whose memory this is.
    replaces: Option<usize>,
    /// Whether to add to what is there.
    add: bool,
}

/// One function body being lowered.
struct Body<'f> {
    func: &'f Func,
    grouping: Grouping,
    places: Vec<Vec<Option<StridedView>>>,
    targets: Vec<Target>,
    /// Output numbers by value.
    outputs: BTreeMap<Value, Vec<usize>>,
    /// The last node that reads each argument.
    last_read: Vec<Option<NodeId>>,
    /// Sums into an argument that their operand's step performs: the `add` node is done with it.
    absorbed: BTreeSet<NodeId>,
    steps: Vec<Step>,
    /// Attentions of which there are only parts, o and lse and how many: what reads them joins them.
    in_parts: BTreeMap<Value, ([View; 2], Dim)>,
    /// The sums of an attention's scores of which there are only parts, and how many: the choices that read them join them. Their place is that of the first part.
    sums_in_parts: BTreeMap<Value, Dim>,
    /// Those of them that are still to be launched, by what joins them, in one launch with its own.
    waiting: BTreeMap<Value, attends::Waiting>,
    /// Copies that have to wait for the end of the body.
    late: Vec<Step>,
    depth: usize,
}

impl Lowerer<'_> {
    fn entry(&mut self, func: &Func) -> Result<library::Entry, TargetError> {
        let mut args = Vec::new();
        let mut places = Vec::new();
        for (arg, _, ty) in func.arg_values() {
            let view = self.alloc(ty, true, 0);
            args.push(port(&arg.name, arg.role, ty, view.at.buffer));
            places.push(view);
        }
        let (mut outputs, mut targets) = (Vec::new(), Vec::new());
        for o in &func.outputs {
            let ty = func.ty(o.value);
            let replaces = func.args.iter().position(|a| a.name == o.name && a.role == o.role);
            let view = match replaces {
                Some(i) => places[i].clone(),
                None => self.alloc(ty, true, 0),
            };
            outputs.push(port(&o.name, o.role, ty, view.at.buffer));
            targets.push(Target { view, replaces, add: false });
        }
        let mut copies = Vec::new();
        for ((_, _, ty), view) in func.arg_values().zip(&mut places) {
            // It is not read in place: its memory has no room.
            if may_be_empty(ty) && !targets.iter().any(|t| t.view.at == view.at) {
                let to = self.alloc(ty, false, 0);
                self.copy(&mut copies, view, &to, ty.dtype, false);
                *view = to;
            }
        }
        let mut steps = self.body(func, places, targets, 0)?;
        steps.splice(0..0, copies);
        let (buffers, constraints) = (std::mem::take(&mut self.buffers), std::mem::take(&mut self.constraints));
        let (name, when) = variant_of(&func.name);
        Ok(library::Entry { name: name.into(), args, outputs, buffers, steps, constraints, when })
    }

    /// How many there are of an extent wherever the function runs, at least.
    fn fewest(&self, extent: &Dim) -> i64 {
        // Where `most - extent` is negative, there are more.
        self.few.iter().filter_map(|d| (d.clone() + extent.clone()).known()).max().map_or(1, |most| most + 1)
    }

    /// Memory of its own for a value. An axis that may be empty has room for an index of what it was made of: a kernel that pads an empty value, joins it with
    /// others or gathers from it reads an element in vain. What is passed in or out has its exact size.
    fn alloc(&mut self, ty: &TensorType, external: bool, depth: usize) -> StridedView {
        let room = |d: &Dim| if external || d.is_positive() { d.clone() } else { d.maximum(&d.content()) };
        let elems = ty.shape.iter().fold(Dim::from(1), |n, d| n * room(d));
        self.buffers.push(library::Buffer { dtype: ty.dtype, elems, external });
        let at = View { buffer: self.buffers.len() - 1, offset: Dim::from(0), turn: vec![Dim::from(0); depth] };
        StridedView::contiguous(at, &ty.shape)
    }

    fn body(
        &mut self,
        func: &Func,
        args: Vec<StridedView>,
        targets: Vec<Target>,
        depth: usize,
    ) -> Result<Vec<Step>, TargetError> {
        let grouping = group(func, self.options);
        let mut places: Vec<Vec<Option<StridedView>>> = func.nodes.values().map(|n| vec![None; n.types.len()]).collect();
        for (i, view) in args.into_iter().enumerate() {
            places[i][0] = Some(view);
        }
        let mut outputs: BTreeMap<Value, Vec<usize>> = BTreeMap::new();
        for (i, o) in func.outputs.iter().enumerate() {
            outputs.entry(o.value).or_default().push(i);
        }
        let mut last_read = vec![None; func.args.len()];
        for (i, reads) in grouping.reads.iter().enumerate() {
            for v in reads.iter().filter(|v| (v.node.0 as usize) < func.args.len()) {
                last_read[v.node.0 as usize] = Some(NodeId(i as u32));
            }
        }
        let mut b = Body {
            func,
            grouping,
            places,
            targets,
            outputs,
            last_read,
            absorbed: BTreeSet::new(),
            in_parts: BTreeMap::new(),
            sums_in_parts: BTreeMap::new(),
            waiting: BTreeMap::new(),
            steps: Vec::new(),
            late: Vec::new(),
            depth,
        };
        // Arguments that are outputs themselves are copied first: later steps may write over them.
        for (v, outs) in b.outputs.clone() {
            if let Op::Arg(arg) = func.def(v).op {
                for o in outs.into_iter().filter(|o| b.targets[*o].replaces != Some(arg as usize)) {
                    let from = b.places[arg as usize][0].clone().expect("arguments have places");
                    let late = b.targets[o].replaces.is_some();
                    let to = if late { self.alloc(func.ty(v), false, depth) } else { b.targets[o].view.clone() };
                    self.copy(&mut b.steps, &from, &to, func.ty(v).dtype, false);
                    if late {
                        let target = b.targets[o].view.clone();
                        self.copy(&mut b.late, &to, &target, func.ty(v).dtype, false);
                    }
                }
            }
        }
        let elsewhere: BTreeSet<NodeId> = b.grouping.joined.values().flatten().copied().collect();
        for (id, node) in func.nodes.iter() {
            self.constrain(func, id);
            let first = b.steps.len();
            let together = b.grouping.joined.get(&id).cloned();
            if let Some(members) = &together {
                self.fused(&mut b, &members.iter().map(|m| Value { node: *m, index: 0 }).collect::<Vec<_>>(), id);
            } else if b.grouping.root[id.0 as usize] && !elsewhere.contains(&id) && !b.absorbed.contains(&id) {
                self.root(&mut b, id)?;
            }
            for step in &b.steps[first..] {
                if let Step::Launch { kernel, .. } = step {
                    for node in together.clone().unwrap_or(vec![id]) {
                        let (func, loops) = (self.func.clone(), self.loops.clone());
                        self.out.launched.push(Launched { func, loops, node, kernel: *kernel });
                    }
                }
            }
            debug_assert!(node.types.len() == b.places[id.0 as usize].len());
        }
        b.steps.append(&mut b.late);
        Ok(b.steps)
    }

    /// Records what slices and paddings ask of run-time dims.
    fn constrain(&mut self, func: &Func, id: NodeId) {
        let node = &func.nodes[id];
        let mut need = |d: Dim, what: String| {
            if d.known().is_none() && !self.constraints.iter().any(|(x, _)| *x == d) {
                self.constraints.push((d, what));
            }
        };
        match &node.op {
            Op::Slice { axis, start, len, step } => {
                let extent = &func.ty(node.inputs[0]).shape[*axis];
                need(start.clone(), format!("the start of a slice, {start}"));
                need(len.clone(), format!("the length of a slice, {len}"));
                let end = start.clone() + (len.clone() - Dim::from(1)) * Dim::from(*step) + Dim::from(1);
                need(extent - &end, format!("elements up to {end} of an axis of {extent}"));
            }
            Op::Pad { low, high, .. } => {
                need(low.clone(), format!("a padding of {low}"));
                need(high.clone(), format!("a padding of {high}"));
            }
            _ => {}
        }
    }

    /// Where a result of a root goes: its output's memory if that is safe, else memory of its own and a copy later.
    fn destination(&mut self, b: &mut Body, v: Value, elementwise: bool) -> (StridedView, bool) {
        self.destination_at(b, v, v.node, elementwise)
    }
    /// The same of a result that is computed in the place of a node.
    fn destination_at(&mut self, b: &mut Body, v: Value, at: NodeId, elementwise: bool) -> (StridedView, bool) {
        let ty = b.func.ty(v);
        let outs = b.outputs.get(&v).cloned().unwrap_or_default();
        let has_readers = b.grouping.reads.iter().any(|r| r.contains(&v));
        let safe = |o: &usize| match b.targets[*o].replaces {
            None => !b.targets[*o].add || !has_readers,
            Some(arg) => b.last_read[arg].is_none_or(|last| last < at || (elementwise && last == at)),
        };
        let is_read = has_readers || matches!(b.func.def(v).op, Op::Repeat(_));
        let roomy = |o: &usize| !(is_read && may_be_empty(ty) && b.targets[*o].replaces.is_none());
        let direct = outs.iter().copied().find(|o| safe(o) && roomy(o));
        let (view, add) = match direct {
            Some(o) => (b.targets[o].view.clone(), b.targets[o].add),
            None => (self.alloc(ty, false, b.depth), false),
        };
        for o in outs.into_iter().filter(|o| Some(*o) != direct) {
            let target = b.targets[o].clone();
            self.copy(&mut b.late, &view, &target.view, ty.dtype, target.add);
        }
        (view, add)
    }

    fn root(&mut self, b: &mut Body, id: NodeId) -> Result<(), TargetError> {
        let node = b.func.nodes[id].clone();
        let value = |index: usize| Value { node: id, index: index as u32 };
        if node.types.iter().all(|t| t.elems().is(0)) {
            for i in 0..node.types.len() {
                b.places[id.0 as usize][i] = Some(self.destination(b, value(i), false).0);
            }
            return Ok(());
        }
        match &node.op {
            Op::Contract(_) => {
                let operands = self.operands(b, &node);
                self.contraction(b, id, &node, operands);
            }
            Op::GroupedContract { transposed } => {
                let (y, add) = self.fresh_destination(b, value(0));
                let [x, w, offsets] = [0, 1, 2].map(|i| self.dense(b, node.inputs[i]));
                let (xs, ws) = (b.func.ty(node.inputs[0]), b.func.ty(node.inputs[1]));
                let n = b.func.ty(value(0)).shape[1].clone();
                let extents = [ws.shape[0].clone(), xs.shape[0].clone(), xs.shape[1].clone(), n];
                let (dtype, transposed) = (xs.dtype, *transposed);
                let step =
                    GroupedGemm::Rows { dtype, x: x.at, w: w.at, offsets: offsets.at, y: y.at.clone(), extents, transposed };
                let step = self.grouped(step, false, node.origin);
                b.steps.push(step);
                self.finish(b, value(0), y, add);
            }
            Op::GroupedOuter => {
                // Kernels add to what is there, if they are to.
                let absorbed = if self.options.products { self.absorbs(b, value(0)) } else { None };
                let ((w, adds), add) = match absorbed {
                    Some(w) => ((w, true), None),
                    None if self.options.products => (self.destination(b, value(0), false), None),
                    None => {
                        let (w, add) = self.fresh_destination(b, value(0));
                        ((w, false), add)
                    }
                };
                debug_assert!(w.is_contiguous(), "targets are contiguous");
                let [x, y, offsets] = [0, 1, 2].map(|i| self.dense(b, node.inputs[i]));
                let (xs, ws) = (b.func.ty(node.inputs[0]), b.func.ty(value(0)));
                let extents = [ws.shape[0].clone(), xs.shape[0].clone(), ws.shape[1].clone(), ws.shape[2].clone()];
                let dtype = xs.dtype;
                let step = GroupedGemm::Outer { dtype, x: x.at, y: y.at, offsets: offsets.at, w: w.at.clone(), extents };
                let step = self.grouped(step, adds, node.origin);
                b.steps.push(step);
                self.finish(b, value(0), w, add);
            }
            Op::Exchange { what: graph::op::Exchange::Offsets, members } => {
                let (all, add_all) = self.fresh_destination(b, value(0));
                let (own, add_own) = self.fresh_destination(b, value(1));
                let offsets = self.dense(b, node.inputs[0]).at;
                let groups = b.func.ty(node.inputs[0]).shape[0].known().expect("its shape rule") - 1;
                let (all_at, own_at) = (all.at.clone(), own.at.clone());
                b.steps.push(Step::Exchange(Exchange::Offsets { offsets, all: all_at, own: own_at, members: *members, groups }));
                self.finish(b, value(0), all, add_all);
                self.finish(b, value(1), own, add_own);
            }
            Op::Exchange { what, members } => {
                let (to, add) = self.fresh_destination(b, value(0));
                let [from, all] = [0, 1].map(|i| self.dense(b, node.inputs[i]).at);
                let groups = b.func.ty(node.inputs[1]).shape[1].known().expect("its shape rule") - 1;
                let back = *what == graph::op::Exchange::Back;
                let ty = if back { b.func.ty(value(0)) } else { b.func.ty(node.inputs[0]) };
                let (dtype, extents) = (ty.dtype, [0, 1].map(|a| ty.shape[a].clone()));
                let step = Exchange::Rows { dtype, back, from, all, to: to.at.clone(), members: *members, groups, extents };
                b.steps.push(Step::Exchange(step));
                self.finish(b, value(0), to, add);
            }
            Op::Repeat(_) => self.repeat(b, id)?,
            Op::Fused(region) => self.region(b, id, region),
            Op::Attend(_) if self.attend_in_parts(b, id) => {}
            Op::ScatterAdd { .. } | Op::TopK(_) | Op::Cumsum { .. } | Op::Attend(_) | Op::AttendGrad(_) | Op::Route { .. } => {
                // What is not looked at is as good as another of its type.
                let unread = |k: usize| is_unread(b.func, &node, k);
                let of_sums = (0..node.inputs.len()).any(unread);
                let of = |k: usize| if unread(k) { node.inputs[5] } else { operand(b.func, &node, k, self.options.products) };
                let inputs: Vec<Value> = (0..node.inputs.len()).map(of).collect();
                let shared = node.inputs.iter().zip(&inputs).any(|(v, read)| v != read) && !of_sums;
                let mut operands: Vec<StridedView> = inputs.iter().map(|v| self.dense(b, *v)).collect();
                if shared {
                    // There is no kernel for others.
                    operands = operands
                        .into_iter()
                        .zip(&inputs)
                        .map(|(view, v)| {
                            let dtype = b.func.ty(*v).dtype;
                            if is_aligned(&view.at, dtype) { view } else { self.copied(b, &view, dtype) }
                        })
                        .collect();
                }
                let added = self.adds_to_sum(b, id, &operands);
                let of_result = |l: &mut Self, b: &mut Body, i: usize| match (&added, i) {
                    (Some((_, view)), 0) => (view.clone(), None),
                    _ => l.fresh_destination(b, value(i)),
                };
                let results: Vec<(StridedView, Option<StridedView>)> =
                    (0..node.types.len()).map(|i| of_result(self, b, i)).collect();
                let types: Vec<&TensorType> = node.inputs.iter().map(|v| b.func.ty(*v)).collect();
                let views = operands.iter().zip(types.iter().copied()).chain(results.iter().map(|r| &r.0).zip(&node.types));
                // Of sums of rows, and what there is one of for a query or a key, kernels read and store elements.
                let aligned = views.into_iter().all(|(v, ty)| ty.rank() < 4 || is_aligned(&v.at, ty.dtype));
                let distinct = node.inputs.iter().skip(3).all(|v| is_set(b.func, *v));
                if of_sums && !(aligned && self.options.products && takes_attend_grad(&node.op, &types)) {
                    // The kernel for others looks at it.
                    operands[3] = self.alloc(types[3], false, b.depth);
                    let (at, elems) = (operands[3].at.clone(), types[3].elems());
                    b.steps.push(Step::Zero { at, elems });
                }
                let fewest = if let Op::Attend(_) = node.op { self.fewest(&types[0].shape[1]) } else { 1 };
                let adds = added.is_some();
                let device = Device { many: self.options.products, aligned, distinct, shared, of_sums, adds, fewest };
                let want = match self.tilings {
                    Tilings::Of(chosen) => Want::Chosen(chosen),
                    Tilings::Every => Want::All,
                };
                let work = kernels(&node.op, &types, &node.types, device, want)?;
                let does = cost::step_work(b.func, &node, self.options.products);
                // A kernel that gives sums in a wider dtype writes them aside.
                let written: Vec<StridedView> = results
                    .iter()
                    .zip(&node.types)
                    .zip(&work.dtypes)
                    .map(|((r, ty), d)| if ty.dtype == *d { r.0.clone() } else { self.alloc(&ty.with_dtype(*d), false, b.depth) })
                    .collect();
                let asides: Vec<StridedView> = work.asides.iter().map(|ty| self.alloc(ty, false, b.depth)).collect();
                for (kernel, places, tiling) in work.launches {
                    let view = |p: &Place| match *p {
                        Place::Operand(i) => operands[i].at.clone(),
                        Place::Result(i) => written[i].at.clone(),
                        Place::Aside(i) => asides[i].at.clone(),
                    };
                    let step = self.launch(kernel, places.iter().map(view).collect(), node.origin, does.clone());
                    if let (Step::Launch { kernel, .. }, Some(tiling)) = (&step, tiling) {
                        let built = (work.problem.clone(), tiling, *kernel);
                        if !self.out.tilings.contains(&built) {
                            self.out.tilings.push(built);
                        }
                    }
                    b.steps.push(step);
                }
                for (((w, r), ty), d) in written.iter().zip(&results).zip(&node.types).zip(&work.dtypes) {
                    if ty.dtype != *d {
                        self.convert(&mut b.steps, (w, *d), (&r.0, ty.dtype), false);
                    }
                }
                for (i, (view, add_to)) in results.into_iter().enumerate() {
                    self.finish(b, value(i), view, add_to);
                }
                if let Some((sum, view)) = added {
                    b.absorbed.insert(sum);
                    b.places[sum.0 as usize][0] = Some(view);
                }
            }
            Op::Reduce(..)
            | Op::Const(..)
            | Op::Extent(..)
            | Op::Iota(_)
            | Op::Map(_)
            | Op::Cast(_)
            | Op::Pad { .. }
            | Op::Concat(_)
            | Op::Gather { .. }
            | Op::Broadcast { .. }
            | Op::Transpose(_)
            | Op::Reshape(_)
            | Op::Slice { .. }
            | Op::StopGradient => self.fused(b, &[value(0)], id),
            Op::Arg(_) | Op::Quantize(_) | Op::Dequantize(_) => base::bug!("{} is no root", node.op.name()),
        }
        Ok(())
    }

    /// A region that has a kernel.
    fn region(&mut self, b: &mut Body, id: NodeId, region: &graph::op::Fused) {
        const ONE: &str = "a region without a kernel was taken apart";
        let select = match region.form {
            Form::Select => Select::of(region).expect(ONE),
            Form::Product => return self.products(b, id, &Products::of(region).expect(ONE)),
            Form::Stream => base::bug!("a region that is walked in chunks was not made a loop"),
            Form::Rows => return self.rows(b, id, &Rows::of(region).expect(ONE)),
            Form::Attend => return self.attends(b, id, &Attends::of(region).expect(ONE)),
        };
        let node = b.func.nodes[id].clone();
        let operands: Vec<StridedView> = node.inputs.iter().map(|v| self.strided(b, *v)).collect();
        let v = Value { node: id, index: 0 };
        let (view, add_to) = self.fresh_destination(b, v);
        if let Some(part) = candidates(&select) {
            self.select_in_parts(b, &node, &select, part, (&operands, &view));
            return self.finish(b, v, view, add_to);
        }
        let long = self.options.products && gpu_topk_long::takes(select.chosen(), DType::F32);
        if long && self.select_of_stored(b, &node, &select, (&operands, &view)).is_some() {
            return self.finish(b, v, view, add_to);
        }
        let many = if self.options.products { fuse_select_many(&select, &operands, &view) } else { None };
        let fused = many.unwrap_or_else(|| fuse_select(&select, &operands, &view));
        let types: Vec<&TensorType> = node.inputs.iter().map(|v| b.func.ty(*v)).collect();
        let step = self.launch_fused(fused, node.origin, cost::work(&node.op, &types, &node.types));
        b.steps.push(step);
        self.finish(b, v, view, add_to);
    }

    /// A choice of few rows by what is stored: the best of each part of the candidates, then of these.
    fn select_in_parts(
        &mut self,
        b: &mut Body,
        node: &graph::Node,
        select: &Select,
        part: i64,
        (operands, view): (&[StridedView], &StridedView),
    ) {
        let p = choice(select);
        let [values, places] = gpu_topk_parts::memories(&p, part).map(|ty| self.alloc(&ty, false, b.depth));
        let joined = |(arg, v): (usize, &Value)| {
            let v = below(b.func, *v);
            let (count, stride) = (b.sums_in_parts.get(&v)?.clone(), b.func.ty(v).elems());
            Some(Joined { arg, count, stride })
        };
        let joined: Vec<Joined> = node.inputs.iter().enumerate().filter_map(joined).collect();
        let fused = fuse_select_parts(select, operands, [&values, &places], &joined).expect("it was asked before");
        let types: Vec<&TensorType> = node.inputs.iter().map(|v| b.func.ty(*v)).collect();
        let step = self.launch_fused(fused, node.origin, cost::work(&node.op, &types, &node.types));
        b.steps.push(step);
        let work = cost::work(&Op::TopK(select.chosen()), &[select.scores()], &node.types);
        let step = self.launch(gpu_topk_parts::join(&p, part), vec![values.at, places.at, view.at.clone()], node.origin, work);
        b.steps.push(step);
    }

    /// A choice of so many that all scores are stored first, if the kernels take it.
    fn select_of_stored(
        &mut self,
        b: &mut Body,
        node: &graph::Node,
        select: &Select,
        (operands, view): (&[StridedView], &StridedView),
    ) -> Option<()> {
        let all = select.scores().with_dtype(DType::F32);
        let scores = self.alloc(&all, false, b.depth);
        let (n, rows) = all.shape.split_last().expect("it has candidates");
        let ends = self.alloc(&TensorType::new(DType::I32, rows.to_vec()), false, b.depth);
        let fused = fuse_scores_many(select, operands, &scores, &ends)?;
        let types: Vec<&TensorType> = node.inputs.iter().map(|v| b.func.ty(*v)).collect();
        let work = cost::work(&node.op, &types, &node.types);
        let step = self.launch_fused(fused, node.origin, work);
        b.steps.push(step);
        let rows = rows.iter().fold(Dim::from(1), |all, d| all * d.clone());
        let op = Op::TopK(select.chosen());
        let work = cost::work(&op, &[&all], &node.types);
        let p = TopK { dtype: DType::F32, rows, n: n.clone(), k: select.chosen() };
        let step =
            self.launch(gpu_topk_long::gpu_topk_long(&p, true), vec![scores.at, ends.at, view.at.clone()], node.origin, work);
        b.steps.push(step);
        Some(())
    }

    /// A region of rows.
    fn rows(&mut self, b: &mut Body, id: NodeId, rows: &Rows) {
        let node = b.func.nodes[id].clone();
        let operands: Vec<StridedView> = node.inputs.iter().map(|v| self.strided(b, *v)).collect();
        let value = |i: usize| Value { node: id, index: i as u32 };
        let results: Vec<_> = (0..node.types.len()).map(|i| self.fresh_destination(b, value(i))).collect();
        let views = operands.iter().chain(results.iter().map(|(view, _)| view)).map(|v| v.at.clone()).collect();
        let types: Vec<&TensorType> = node.inputs.iter().map(|v| b.func.ty(*v)).collect();
        let work = cost::work(&node.op, &types, &node.types);
        let step = self.launch(fuse_rows(rows, &operands, self.options.products), views, node.origin, work);
        b.steps.push(step);
        for (i, (view, add_to)) in results.into_iter().enumerate() {
            self.finish(b, value(i), view, add_to);
        }
    }

    /// A reduction whose parts are computed by many blocks.
    fn in_parts(&mut self, b: &mut Body, v: Value, parts: i64) {
        let (ty, node) = (b.func.ty(v).clone(), b.func.def(v).clone());
        let Op::Reduce(f, _) = node.op else { base::bug!("a part of no reduction") };
        let sum = ty.dtype.accumulator();
        let shape = [Dim::from(parts)].into_iter().chain(ty.shape.iter().cloned()).collect::<Vec<_>>();
        let of_parts = TensorType::new(sum, shape);
        let partial = self.alloc(&of_parts, false, b.depth);
        let scene = Scene { func: b.func, grouping: &b.grouping, places: &b.places };
        let fused = fuse_parts(&scene, v, &partial, parts);
        let step = self.launch_fused(fused, node.origin, cost::fused_work(b.func, &b.grouping, v));
        b.steps.push(step);

        let widened = self.widened(b, v);
        let (target, add) = match widened {
            Some(r) => self.destination_at(b, r, v.node, true),
            None => self.destination(b, v, false),
        };
        let stored = self.done_with(b, v, widened, &target);
        let step = self.join_parts(f, (partial, of_parts), &[ty.dtype, stored], (&target, add), node.origin);
        b.steps.push(step);
    }

    /// The root that only widens a value, if nobody else reads it and nothing else is computed with that: where parts of the value are joined, it is stored so.
    fn widened(&self, b: &Body, v: Value) -> Option<Value> {
        let mut readers = b.func.nodes.ids().filter(|id| b.grouping.reads[id.0 as usize].contains(&v));
        let (Some(reader), None) = (readers.next(), readers.next()) else { return None };
        let node = &b.func.nodes[reader];
        let alone = !b.outputs.contains_key(&v) && !b.grouping.joined.values().flatten().any(|m| *m == reader);
        (node.op == Op::Cast(node.types[0].dtype) && node.inputs[..] == [v] && alone && b.grouping.root[reader.0 as usize])
            .then_some(Value { node: reader, index: 0 })
    }
    /// Says where a value is, or what only widens it; the dtype that is stored there.
    fn done_with(&self, b: &mut Body, v: Value, widened: Option<Value>, view: &StridedView) -> DType {
        let at = widened.unwrap_or(v);
        b.absorbed.extend(widened.map(|r| r.node));
        b.places[at.node.0 as usize][at.index as usize] = Some(view.clone());
        b.func.ty(at).dtype
    }

    /// The step that reduces parts along their first axis, in order, rounded to each of these dtypes in turn, to a place of the last.
    fn join_parts(
        &mut self,
        f: graph::op::ReduceFn,
        (partial, of_parts): (StridedView, TensorType),
        dtypes: &[DType],
        (to, adds): (&StridedView, bool),
        origin: Option<base::Span>,
    ) -> Step {
        let mut func = Func::new("parts");
        let x = func.arg("x", Role::Inner, of_parts);
        let mut last = Value { node: func.add(Op::Reduce(f, vec![0]), &[x], None).expect("it has a first axis"), index: 0 };
        for dtype in dtypes {
            if func.ty(last).dtype != *dtype {
                last.node = func.add(Op::Cast(*dtype), &[last], None).expect("it takes any type");
            }
        }
        let n = func.nodes.len();
        let (mut root, mut reads, mut places) = (vec![false; n], vec![Vec::new(); n], vec![vec![None]; n]);
        (root[n - 1], reads[n - 1], places[0][0]) = (true, vec![x], Some(partial));
        let grouping = Grouping { root, reads, ..Grouping::default() };
        let scene = Scene { func: &func, grouping: &grouping, places: &places };
        let Fused { kernel, views, .. } = fuse_joined(&scene, last, to, adds);
        self.launch(kernel, views, origin, cost::fused_work(&func, &grouping, last))
    }

    /// Values that one kernel computes, in the place of a node.
    fn fused(&mut self, b: &mut Body, values: &[Value], at: NodeId) {
        if let [v] = values
            && let Some(parts) = num_parts(b.func, *v).filter(|_| self.options.parts)
        {
            return self.in_parts(b, *v, parts);
        }
        let origin = b.func.def(values[values.len() - 1]).origin;
        if let [v] = values
            && let Some(target) = self.over(b, *v)
        {
            let scene = Scene { func: b.func, grouping: &b.grouping, places: &b.places };
            let fused = fuse(&scene, *v, &target, false);
            if !fused.target_conflicts.contains(&true) {
                let step = self.launch_fused(fused, origin, cost::joined_work(b.func, &b.grouping, values, at));
                b.steps.push(step);
                b.places[v.node.0 as usize][0] = Some(target);
                return;
            }
        }
        let num_late = b.late.len();
        let mut targets: Vec<(Value, StridedView, bool)> = Vec::new();
        for v in values {
            let (target, add) = self.destination_at(b, *v, at, true);
            targets.push((*v, target, add));
        }
        let scene = Scene { func: b.func, grouping: &b.grouping, places: &b.places };
        let mut fused = fuse_many(&scene, &targets);
        let conflicts = |(conflicts, _): &(bool, _)| *conflicts;
        if fused.target_conflicts.contains(&true) {
            // It reads a target at other places than it writes: compute that aside, copy at the end, but before other outputs get the value
            // from the target.
            let mut copies = Vec::new();
            for (_, (v, target, add)) in fused.target_conflicts.into_iter().zip(&mut targets).filter(conflicts) {
                let aside = self.alloc(b.func.ty(*v), false, b.depth);
                self.copy(&mut copies, &aside, target, b.func.ty(*v).dtype, *add);
                (*target, *add) = (aside, false);
            }
            let scene = Scene { func: b.func, grouping: &b.grouping, places: &b.places };
            fused = fuse_many(&scene, &targets);
            b.late.splice(num_late..num_late, copies);
        }
        let step = self.launch_fused(fused, origin, cost::joined_work(b.func, &b.grouping, values, at));
        b.steps.push(step);
        for (v, target, add) in targets {
            debug_assert!(
                !add || !b.grouping.reads.iter().any(|r| r.contains(&v)),
                "a value that is added to an output has no other use"
            );
            b.places[v.node.0 as usize][0] = Some(target);
        }
    }

    /// The memory of a value of a map's type that nobody else reads: the map may be written over it, so that one of the two is in memory at once.
    fn over(&self, b: &Body, v: Value) -> Option<StridedView> {
        let ty = b.func.ty(v);
        if !matches!(b.func.def(v).op, Op::Map(_) | Op::Cast(_)) || b.outputs.contains_key(&v) {
            return None;
        }
        let is_own = |x: &Value| {
            let given =
                matches!(b.func.def(*x).op, Op::Arg(_) | Op::Repeat(_)) || b.outputs.keys().any(|o| is_seen_in(b.func, *x, *o));
            b.func.ty(*x) == ty && !given && b.grouping.reads.iter().filter(|reads| reads.contains(x)).count() == 1
        };
        let whole = |view: &StridedView| {
            let buffer = &self.buffers[view.at.buffer];
            let first = view.at.offset.is(0) && view.at.turn.iter().all(|n| n.is(0));
            first
                && !buffer.external
                && buffer.dtype == ty.dtype
                && view.strides == crate::view::row_major(&ty.shape)
                && buffer.elems == ty.elems()
        };
        let read = &b.grouping.reads[v.node.0 as usize];
        read.iter().filter(|x| is_own(x)).find_map(|x| b.places[x.node.0 as usize][x.index as usize].clone().filter(whole))
    }

    /// If a gradient of attention's queries is only added to another that is there: the sum, and the memory that has that one.
    fn adds_to_sum(&self, b: &Body, id: NodeId, operands: &[StridedView]) -> Option<(NodeId, StridedView)> {
        let Op::AttendGrad(_) = b.func.nodes[id].op else { return None };
        let [dq, others @ ..] = [0, 1, 2].map(|index| Value { node: id, index });
        let mut sums = b.func.nodes.iter().filter(|(_, n)| n.inputs.contains(&dq));
        let (sum, _) = sums.next().filter(|(sum, _)| b.grouping.root[sum.0 as usize])?;
        let [first, _] = adds_gradient(b.func, sum).filter(|[_, last]| *last == dq)?;
        let all = Options { fuse: true, parts: true, products: true };
        let types = b.func.nodes[id].inputs.iter().map(|v| b.func.ty(*v));
        let lies = |(v, ty): (&StridedView, &TensorType)| ty.rank() < 4 || is_aligned(&v.at, ty.dtype);
        let given = |v: &Value| {
            let mut outputs = b.outputs.get(v).into_iter().flatten();
            outputs.all(|o| is_aligned(&b.targets[*o].view.at, b.func.ty(*v).dtype))
        };
        let fits = self.options == all && operands.iter().zip(types).all(lies) && others.iter().all(given);
        let place = b.places[first.node.0 as usize][first.index as usize].clone()?;
        let own = !self.buffers[place.at.buffer].external && place.is_contiguous();
        (fits && own).then_some((sum, place))
    }

    /// If the only use of `v` is to be added to an argument that the sum replaces: that argument's memory, and the sum is done.
    fn absorbs(&mut self, b: &mut Body, v: Value) -> Option<StridedView> {
        let (sum, arg) = sum_into_argument(b, v)?;
        let out = b.outputs.get(&Value { node: sum, index: 0 })?;
        let [o] = out[..] else { return None };
        let target = &b.targets[o];
        if target.replaces != Some(arg) || target.add || b.last_read[arg] != Some(sum) {
            return None;
        }
        // The argument changes where the product is, not where the sum is; nor may the product read it.
        let reads = |id: NodeId| {
            b.grouping.reads[id.0 as usize].iter().any(|x| matches!(b.func.def(*x).op, Op::Arg(i) if i as usize == arg))
        };
        if b.func.nodes.ids().any(|id| id != sum && id >= v.node && reads(id)) {
            return None;
        }
        let view = target.view.clone();
        b.absorbed.insert(sum);
        b.places[sum.0 as usize][0] = Some(view.clone());
        Some(view)
    }

    /// The root that is a contraction, of operands as they are multiplied and their dtype.
    fn contraction(&mut self, b: &mut Body, id: NodeId, node: &graph::Node, operands: ([StridedView; 2], DType)) {
        let Op::Contract(spec) = &node.op else { base::bug!("{} is no contraction", node.op.name()) };
        let value = Value { node: id, index: 0 };
        let widened = self.widened(b, value).filter(|_| self.is_in_parts(&node.types[0], spec, &operands));
        let (view, add) = match widened {
            Some(r) => self.destination_at(b, r, id, true),
            None => match self.absorbs(b, value) {
                Some(view) => (view, true),
                None => self.destination(b, value, false),
            },
        };
        let stored = self.done_with(b, value, widened, &view);
        self.contract(b, node, operands, (&view, stored), add);
    }
    /// Whether each operand of a product lies as a kernel takes it: tf32 with neighbours along the summed axis.
    fn lies(&self, g: &library::Gemm) -> [bool; 2] {
        let taken = |stride: usize| !self.options.products || g.dtype != DType::TF32 || g.strides[stride].is(1);
        [taken(1), taken(2)]
    }
    /// The left operand of a contraction and some right ones, contiguous copies of those that do not lie as they are taken, and the contraction of these.
    fn laid_out(
        &mut self,
        b: &mut Body,
        spec: &graph::op::Contract,
        views: Vec<StridedView>,
        dtype: DType,
        lie: [bool; 2],
    ) -> (graph::op::Contract, Vec<StridedView>) {
        let to_rhs = match dtype {
            DType::TF32 => [spec.batch(), spec.cols(), spec.summed()].concat(),
            _ => [spec.batch(), spec.summed(), spec.cols()].concat(),
        };
        let orders = [(&spec.lhs, [spec.batch(), spec.rows(), spec.summed()].concat()), (&spec.rhs, to_rhs)];
        let place = |(i, view): (usize, StridedView)| {
            let side = i.min(1);
            let (from, to) = &orders[side];
            if lie[side] { view } else { self.reorder(b, &view, [from, to], spec.summed().len(), dtype) }
        };
        let views = views.into_iter().enumerate().map(place).collect();
        let [lhs, rhs] = [0, 1].map(|i| if lie[i] { orders[i].0.clone() } else { orders[i].1.clone() });
        (graph::op::Contract { lhs, rhs, out: spec.out.clone() }, views)
    }
    /// The operands of a contraction as they are multiplied, and their dtype.
    fn operands(&mut self, b: &mut Body, node: &graph::Node) -> ([StridedView; 2], DType) {
        let fuses = self.options.products && self.options.fuse;
        let narrow = narrow::narrow_operands(b.func, &node.op, &node.inputs).filter(|_| fuses);
        let dtype = narrow.map_or(node.types[0].dtype, |[x, _]| b.func.ty(x).dtype);
        let operands = [0, 1].map(|i| match narrow {
            Some(_) => self.strided_narrow(b, node.inputs[i]),
            None => self.strided(b, node.inputs[i]),
        });
        (operands, dtype)
    }
    /// Whether a contraction of operands that are in place is taken in parts.
    fn is_in_parts(&self, ty: &TensorType, spec: &graph::op::Contract, ([lhs, rhs], dtype): &([StridedView; 2], DType)) -> bool {
        // Which memory it is does not matter.
        let c = StridedView::contiguous(lhs.at.clone(), &ty.shape);
        let product = gemm(spec, *dtype, lhs, rhs, &c, false);
        let in_parts = |g: library::Gemm| g.batch.is_empty() && Product::parts_of(*dtype, &[g.m, g.n, g.k]) > 1;
        self.options.products && self.options.parts && product.is_some_and(in_parts)
    }
    fn contract(
        &mut self,
        b: &mut Body,
        node: &graph::Node,
        ([lhs, rhs], dtype): ([StridedView; 2], DType),
        (c, stored): (&StridedView, DType),
        add: bool,
    ) {
        let Op::Contract(spec) = &node.op else { base::bug!("{} is no contraction", node.op.name()) };
        let found = gemm(spec, dtype, &lhs, &rhs, c, add);
        let lies = found.as_ref().map_or([false; 2], |g| self.lies(g));
        let product = found.filter(|_| lies == [true; 2]).unwrap_or_else(|| {
            let (copied, views) = self.laid_out(b, spec, vec![lhs, rhs], dtype, lies);
            gemm(&copied, dtype, &views[0], &views[1], c, add).unwrap_or_else(|| base::bug!("{copied} of contiguous operands"))
        });
        let steps = self.product(product, [node.types[0].dtype, stored], node.origin, b.depth);
        b.steps.extend(steps);
    }
    /// The steps of a dense product, of operands of its dtype.
    /// Its result is rounded to the first dtype and stored as the second, which differs only where it is taken in parts.
    fn product(&mut self, g: library::Gemm, [result, stored]: [DType; 2], origin: Option<base::Span>, depth: usize) -> Vec<Step> {
        if !self.options.products {
            return vec![Step::Gemm(g)];
        }
        let aligned = [(&g.a, g.dtype), (&g.b, g.dtype), (&g.c, result)].map(|(v, dtype)| is_aligned(v, dtype));
        let extents = [g.m, g.n, g.k];
        let (accumulate, parts) = (g.accumulate, 1);
        let mut p = Product { dtype: g.dtype, result, extents, strides: g.strides, batch: g.batch, accumulate, parts, aligned };
        let all = p.batch.iter().fold(Dim::from(1), |n, (d, _)| n * d.clone());
        let [m, n, k] = p.extents.clone();
        let work = Work { class: Class::Product, dtype: p.dtype, shape: vec![all, m, n, k] };
        p.parts = if self.options.parts { p.choose_parts() } else { 1 };
        if p.parts == 1 {
            if result != stored {
                base::bug!("{result} stored as {stored} by a product that is not in parts");
            }
            return vec![self.launch(gpu_product(&p, None), vec![g.a, g.b, g.c], origin, work)];
        }
        // Parts lie as the result does, so that who joins them reads and writes neighbours: its transpose is the product of the others' transposes.
        let mut operands = [g.a, g.b];
        if p.strides[4].is(1) && !p.strides[5].is(1) {
            operands.reverse();
            p.extents.swap(0, 1);
            p.strides.reverse();
            p.strides.rotate_left(2);
            p.aligned.swap(0, 1);
        }
        // Parts are summed aside, and added in order.
        let [m, n] = [0, 1].map(|i| p.extents[i].clone());
        let of_parts = TensorType::new(result.accumulator(), vec![Dim::from(p.parts), m.clone(), n.clone()]);
        let aside = self.alloc(&of_parts, false, depth);
        let [c_row, c_col] = [4, 5].map(|i| std::mem::replace(&mut p.strides[i], if i == 4 { n.clone() } else { Dim::from(1) }));
        (p.result, p.accumulate, p.aligned[2]) = (of_parts.dtype, false, true);
        let [a, b] = operands;
        let first = self.launch(gpu_product(&p, None), vec![a, b, aside.at.clone()], origin, work);
        // Along an axis of one a product has no stride, but a map that writes it goes by one.
        let strides = [(&m, c_row), (&n, c_col)].map(|(extent, s)| if extent.is(1) { Dim::from(1) } else { s }).to_vec();
        let to = StridedView { at: g.c, shape: vec![m, n], strides };
        let last = self.join_parts(graph::op::ReduceFn::Sum, (aside, of_parts), &[result, stored], (&to, accumulate), origin);
        vec![first, last]
    }
    /// The step of a product over ragged rows; outer products may be added to what is there.
    fn grouped(&mut self, g: GroupedGemm, accumulate: bool, origin: Option<base::Span>) -> Step {
        if !self.options.products {
            return Step::GroupedGemm(g);
        }
        let (dtype, extents, rows, views) = match g {
            GroupedGemm::Rows { dtype, x, w, offsets, y, extents, transposed } => {
                (dtype, extents, Some(transposed), vec![x, w, offsets, y])
            }
            GroupedGemm::Outer { dtype, x, y, offsets, w, extents } => (dtype, extents, None, vec![x, y, offsets, w]),
        };
        let aligned = [0, 1, 3].iter().all(|i| is_aligned(&views[*i], dtype));
        let class = if rows.is_some() { Class::GroupedProduct } else { Class::GroupedOuter };
        let [groups, all, k, n] = extents.clone();
        let work = Work { class, dtype, shape: vec![groups, all, n, k] };
        self.launch(
            gpu_grouped(&Grouped { dtype, extents, further: Vec::new(), rows, accumulate, aligned }, None),
            views,
            origin,
            work,
        )
    }
    /// A contiguous copy with its axes in another order.
    fn reorder(
        &mut self,
        b: &mut Body,
        view: &StridedView,
        [from, to]: [&[char]; 2],
        summed: usize,
        dtype: DType,
    ) -> StridedView {
        let perm = to.iter().map(|x| from.iter().position(|y| y == x).expect("the same letters")).collect();
        let turned = view.apply(&Op::Transpose(perm)).expect("a transpose is a view");
        let unit = COPY_ALIGN / dtype.bytes() as i64;
        let outer = turned.shape.len() - summed;
        let terms = turned.shape[outer..].iter().cloned().fold(Dim::from(1), |n, d| n * d);
        if dtype != DType::TF32 || is_multiple(&terms, unit) {
            return self.copied(b, &turned, dtype);
        }
        // Its rows are copied as rectangles, and begin where these may.
        let padded = terms.ceil_div(&Dim::from(unit)) * Dim::from(unit);
        let room = self.alloc(&TensorType::new(dtype, [&turned.shape[..outer], &[padded]].concat()), false, b.depth);
        let within = StridedView::contiguous(room.at.clone(), &turned.shape[outer..]);
        let strides = [&room.strides[..outer], &within.strides[..]].concat();
        let to = StridedView { at: room.at, shape: turned.shape.clone(), strides };
        self.copy(&mut b.steps, &turned, &to, dtype, false);
        to
    }

    /// The operand as a view; it is in memory, as `group` arranged.
    fn strided(&mut self, b: &mut Body, v: Value) -> StridedView {
        let scene = Scene { func: b.func, grouping: &b.grouping, places: &b.places };
        if let Some(view) = scene.place(v) {
            return view;
        }
        let node = b.func.def(v);
        if !is_layout(&node.op) {
            base::bug!("{} has no memory", node.op.name());
        }
        // An argument of a loop's body may be a view that cannot be reshaped.
        let (op, below) = (node.op.clone(), node.inputs[0]);
        let view = self.strided(b, below);
        view.apply(&op).unwrap_or_else(|| {
            let dense = self.copied(b, &view, b.func.ty(below).dtype);
            dense.apply(&op).expect("a layout op of a contiguous value is a view")
        })
    }
    /// A contiguous copy.
    fn copied(&mut self, b: &mut Body, view: &StridedView, dtype: DType) -> StridedView {
        let to = self.alloc(&TensorType::new(dtype, view.shape.clone()), false, b.depth);
        self.copy(&mut b.steps, view, &to, dtype, false);
        to
    }
    /// The operand, contiguous; copied if it is not.
    fn dense(&mut self, b: &mut Body, v: Value) -> StridedView {
        let view = self.strided(b, v);
        if view.is_contiguous() {
            return view;
        }
        self.copied(b, &view, b.func.ty(v).dtype)
    }

    /// A destination for steps that cannot add to what is there, and where its result has to be added afterwards.
    fn fresh_destination(&mut self, b: &mut Body, v: Value) -> (StridedView, Option<StridedView>) {
        let (view, add) = self.destination(b, v, false);
        if !add && view.is_contiguous() {
            return (view, None);
        }
        debug_assert!(add, "targets are contiguous");
        (self.alloc(b.func.ty(v), false, b.depth), Some(view))
    }

    fn finish(&mut self, b: &mut Body, v: Value, view: StridedView, add_to: Option<StridedView>) {
        if let Some(target) = add_to {
            self.copy(&mut b.late, &view, &target, b.func.ty(v).dtype, true);
        }
        b.places[v.node.0 as usize][v.index as usize] = Some(view);
    }

    fn repeat(&mut self, b: &mut Body, id: NodeId) -> Result<(), TargetError> {
        let node = b.func.nodes[id].clone();
        let Op::Repeat(r) = &node.op else { base::bug!("not a repeat") };
        let operands: Vec<StridedView> = node.inputs.iter().map(|v| self.strided(b, *v)).collect();
        let (mut args, mut targets) = (Vec::new(), Vec::new());
        // What was stacked already, by output.
        let mut stacked: BTreeMap<usize, StridedView> = BTreeMap::new();
        for (i, operand) in operands.iter().enumerate() {
            let turned = if let Some((output, first)) = self.stack_of_states(b, id, r, i) {
                let elems = first.elems();
                let later = |view: &StridedView, n: &Dim| {
                    let mut v = view.clone();
                    v.at.offset = v.at.offset + n.clone();
                    v
                };
                let dtype = b.func.ty(Value { node: id, index: i as u32 }).dtype;
                self.copy(&mut b.steps, operand, &first, dtype, false);
                self.finish(b, Value { node: id, index: i as u32 }, later(&first, &(elems.clone() * Dim::from(r.count))), None);
                let shape = [Dim::from(r.count)].into_iter().chain(first.shape.iter().cloned()).collect::<Vec<_>>();
                let all = StridedView::contiguous(first.at.clone(), &shape);
                let inside = slice(&all);
                targets.push(Target { view: later(&inside, &elems), replaces: None, add: false });
                stacked.insert(output, all);
                inside
            } else if i < r.carried {
                let v = Value { node: id, index: i as u32 };
                let (state, add_to) = self.fresh_destination(b, v);
                self.copy(&mut b.steps, operand, &state, b.func.ty(v).dtype, false);
                let inside = enter(&state);
                self.finish(b, v, state, add_to);
                targets.push(Target { view: inside.clone(), replaces: Some(i), add: false });
                inside
            } else if i < r.carried + r.constant {
                enter(operand)
            } else {
                slice(operand)
            };
            args.push(turned);
        }
        let body_outputs = &r.body.outputs;
        for (i, output) in body_outputs.iter().enumerate().skip(r.carried) {
            let v = Value { node: id, index: i as u32 };
            if let Some(all) = stacked.remove(&i) {
                targets.push(Target { view: slice(&all), replaces: None, add: false });
                self.finish(b, v, all, None);
                continue;
            }
            // A stack whose only use is to be added to an argument is added turn by turn.
            let alone = !r.body.nodes.values().any(|n| n.inputs.contains(&output.value))
                && body_outputs.iter().filter(|o| o.value == output.value).count() == 1
                && !matches!(r.body.def(output.value).op, Op::Arg(_));
            let absorbed = if alone { self.absorbs(b, v) } else { None };
            let (stack, add) = match absorbed {
                Some(view) => {
                    b.places[id.0 as usize][i] = Some(view.clone());
                    (view, true)
                }
                None => {
                    let (view, add_to) = self.fresh_destination(b, v);
                    self.finish(b, v, view.clone(), add_to);
                    (view, false)
                }
            };
            targets.push(Target { view: slice(&stack), replaces: None, add });
        }
        self.loops.push(id);
        let body = self.body(&r.body, args, targets, b.depth + 1)?;
        self.loops.pop();
        b.steps.push(Step::Loop { count: r.count, reverse: r.reverse, body });
        Ok(())
    }

    /// If a result of a loop is what it carries, as each turn finds it: that result, and memory for the first turn's, with room for one a turn behind it and the
    /// last. Each turn then leaves what it carries where the stack has it, and nothing is copied.
    fn stack_of_states(&mut self, b: &Body, id: NodeId, r: &graph::op::Repeat, i: usize) -> Option<(usize, StridedView)> {
        let is_state = |v: Value| matches!(r.body.def(v).op, Op::Arg(k) if k as usize == i);
        if i >= r.carried || r.reverse {
            return None;
        }
        let output = (r.carried..r.body.outputs.len()).find(|o| is_state(r.body.outputs[*o].value))?;
        let [carried, all] = [i, output].map(|k| Value { node: id, index: k as u32 });
        let ty = b.func.ty(carried);
        if [carried, all].iter().any(|v| b.outputs.contains_key(v)) || may_be_empty(ty) {
            return None;
        }
        let shape = [Dim::from(r.count + 1)].into_iter().chain(ty.shape.iter().cloned()).collect::<Vec<_>>();
        let room = self.alloc(&TensorType::new(ty.dtype, shape), false, b.depth);
        Some((output, StridedView::contiguous(room.at, &ty.shape)))
    }

    fn copy(&mut self, steps: &mut Vec<Step>, from: &StridedView, to: &StridedView, dtype: DType, add: bool) {
        if (from == to && !add) || from.elems().is(0) {
            return;
        }
        if from.is_contiguous() && to.is_contiguous() && !add {
            steps.push(Step::Copy { from: from.at.clone(), to: to.at.clone(), elems: from.elems() });
            return;
        }
        self.convert(steps, (from, dtype), (to, dtype), add);
    }

    /// A kernel that copies a view to another, rounding to its dtype.
    fn convert(&mut self, steps: &mut Vec<Step>, from: (&StridedView, DType), to: (&StridedView, DType), add: bool) {
        let mut func = Func::new("copy");
        let x = func.arg("x", Role::Inner, TensorType::new(from.1, from.0.shape.clone()));
        let op = if from.1 == to.1 { Op::StopGradient } else { Op::Cast(to.1) };
        let copy = func.add(op, &[x], None).expect("it takes any type");
        let v = Value { node: copy, index: 0 };
        let (root, reads) = (vec![false, true], vec![Vec::new(), vec![x]]);
        let grouping = Grouping { root, reads, many: self.options.parts && self.options.products, ..Grouping::default() };
        let places = [vec![Some(from.0.clone())], vec![None]];
        let Fused { kernel, views, .. } = fuse(&Scene { func: &func, grouping: &grouping, places: &places }, v, to.0, add);
        let work = cost::fused_work(&func, &grouping, v);
        let step = self.launch(kernel, views, None, work);
        steps.push(step);
    }

    /// As `launch`, of a kernel whose variables are values of ops; of equal kernels the lines are those of the first.
    fn launch_fused(&mut self, Fused { kernel, views, lines, .. }: Fused, origin: Option<base::Span>, work: Work) -> Step {
        let next = self.out.kernels.len();
        let step = self.launch(kernel, views, origin, work);
        if let Some(of) = self.out.lines.get_mut(next) {
            *of = lines;
        }
        step
    }
    /// The step that runs a kernel; equal kernels are one.
    fn launch(&mut self, mut kernel: Kernel, buffers: Vec<View>, origin: Option<base::Span>, work: Work) -> Step {
        let (dims, grid) = (kernel.dims.clone(), kernel.grid.clone());
        let memory: Vec<_> = kernel.buffers.iter().map(|b| (b.dtype, b.access)).collect();
        let divisors: Vec<i64> = dims.iter().map(divisor).collect();
        let key = format!("{memory:?} {divisors:?} {:?} {:?} {:?}", kernel.scratch, kernel.vars, kernel.body);
        for (b, _) in kernel.buffers.iter_mut().zip(&buffers).filter(|(b, view)| is_aligned(view, b.dtype)) {
            b.alignment = COPY_ALIGN;
        }
        let next = self.out.kernels.len();
        let index = *self.seen.entry(key).or_insert(next);
        if index < next {
            // As all that launch it have it.
            let all = self.out.kernels[index].buffers.iter_mut().zip(&kernel.buffers);
            all.for_each(|(b, other)| b.alignment = b.alignment.min(other.alignment));
        } else {
            let kind = if kernel.name.is_empty() { "map" } else { &kernel.name };
            kernel.name = format!("host_{kind}_{next}");
            self.out.kernels.push(kernel);
            self.out.origins.push(origin);
            self.out.lines.push(Vec::new());
        }
        Step::Launch { kernel: index, buffers, dims, grid, work }
    }
}

/// What a value is a view of.
fn below(func: &Func, mut v: Value) -> Value {
    while is_layout(&func.def(v).op) {
        v = func.def(v).inputs[0];
    }
    v
}

/// Whether a value is another or a view of it, of which some may be stored on the way.
fn is_seen_in(func: &Func, x: Value, mut v: Value) -> bool {
    while v != x && is_layout(&func.def(v).op) {
        v = func.def(v).inputs[0];
    }
    v == x
}

/// Whether an attention's operand is no list, or one that has nothing twice.
fn is_set(func: &Func, v: Value) -> bool {
    func.ty(v).rank() != 4 || chooses(func, v)
}

/// Whether each row along the last axis is a choice, so that it has nothing twice but -1.
fn chooses(func: &Func, v: Value) -> bool {
    let node = func.def(v);
    let row = |v: Value| func.ty(v).shape.last();
    match &node.op {
        Op::TopK(_) => true,
        Op::Fused(region) => region.form == Form::Select,
        Op::StopGradient => chooses(func, node.inputs[0]),
        Op::Reshape(_) => row(v) == row(node.inputs[0]) && chooses(func, node.inputs[0]),
        Op::Broadcast { shape, axes } => {
            let kept = axes.last().is_some_and(|a| *a + 1 == shape.len()) && row(v) == row(node.inputs[0]);
            kept && chooses(func, node.inputs[0])
        }
        _ => false,
    }
}

/// Whether a view begins at a multiple of what copies of rectangles take; buffers do.
fn is_aligned(v: &View, dtype: DType) -> bool {
    let n = COPY_ALIGN / dtype.bytes() as i64;
    v.turn.iter().chain([&v.offset]).all(|d| is_multiple(d, n))
}

/// The view inside one more loop, at the same place each turn.
fn enter(view: &StridedView) -> StridedView {
    let mut v = view.clone();
    v.at.turn.push(Dim::from(0));
    v
}

/// The view of one slice of the first axis a turn.
fn slice(view: &StridedView) -> StridedView {
    let mut v = view.clone();
    v.at.turn.push(v.strides.remove(0));
    v.shape.remove(0);
    v
}

fn port(name: &str, role: Role, ty: &TensorType, buffer: BufferId) -> Port {
    let role = match role {
        Role::Param => library::Role::Param,
        Role::State => library::Role::State,
        Role::Input => library::Role::Input,
        Role::Grad => library::Role::Grad,
        Role::Moment => library::Role::Moment,
        Role::Tally => library::Role::Tally,
        Role::Scalar => library::Role::Scalar,
        Role::Result => library::Role::Result,
        Role::Inner => library::Role::Inner,
    };
    Port { name: name.into(), role, dtype: ty.dtype, shape: ty.shape.clone(), buffer }
}

/// The `add` node and argument, if `v`'s only use is to be added to that argument.
fn sum_into_argument(b: &Body, v: Value) -> Option<(NodeId, usize)> {
    let mut users = b.func.nodes.iter().filter(|(_, n)| n.inputs.contains(&v));
    let (id, user) = users.next()?;
    if users.next().is_some() || b.outputs.contains_key(&v) || user.op != Op::Map(MapFn::Add) || user.inputs[0] == user.inputs[1]
    {
        return None;
    }
    let other = user.inputs.iter().copied().find(|x| *x != v)?;
    match b.func.def(other).op {
        Op::Arg(i) => Some((id, i as usize)),
        _ => None,
    }
}

pub(crate) mod attends;
pub(crate) mod narrow;
pub(crate) mod products;
#[cfg(test)]
mod tests;
