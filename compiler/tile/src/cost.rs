//! What an op costs, for the e-graph: measured times where there are some, and between and beyond them a roofline with a charge per launch
//! and for the last, partly empty wave of blocks. # Units: nanoseconds.
//!
//! In: a tuning table ([`Tuning`]). An estimate is the roofline's time, times the ratio of measured to roofline time of the same shape bucket;
//! without one, of the mean of the buckets around it, weighted by the inverse square of their distance in octaves.
//!
//! # Source: Williams, Waterman and Patterson, Roofline, 2009; inverse distances: Shepard, 1968.

use crate::{
    group::{Grouping, is_inline, is_layout, operand},
    kernels::domain::most_keys,
    lower::{attends::Attends, products::Products},
    tuning::{Tuning, bucket},
};
use base::{DType, Dim, DimEnv, TensorType};
use graph::{
    Func, NodeId, Op, Value,
    op::{Contract, Domain, Form, MapFn},
    passes::{CHUNK, Stream},
};
use library::{Class, Job, Work};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::OnceLock,
};

/// What run-time dims are taken to be if nothing is said of them.
pub const RUN_TIME_DIM: i64 = 64;
/// A bucket without measured neighbours is trusted to be as the roofline says by as much as one that is this far away. # Units: octaves.
const PRIOR_OCTAVES: f64 = 6.0;

/// What a number costs in a round of a choice that a warp makes for a row, in operations of a map: routers of 128 and 256 experts take 13.5 and 30 µs for 16,384
/// tokens by it, and 12.0 and 31.3 on an H200.
const OPS_OF_ROUND: f64 = 20.0;

/// What reading at the end of a tile costs, and storing results beyond what the products are, of their traffic's time: an estimate, with which a residual sum
/// is worth it, as it was measured on an H200 (m 4096, 14336 terms: 606 µs in place of 640).
const AT_END: [f64; 2] = [1.0, 0.1];
/// The same where a dense product gives more results than there are products (14336 columns: a gate's two gradients 1477 µs in place of 753, a gate that
/// both products are kept of 1352 and 1315).
const AT_END_OF_MANY: [f64; 2] = [6.0, 1.0];

/// What a map reads at the end of a tile of attention, of its traffic's time, where a block has a processor to itself and where others multiply meanwhile. What a
/// map reads is in no cost of one that is stored, so these are shares of what storing it would take: of 215 µs for the gates and sum of three branches (8192
/// tokens, 64 heads, an H200) the selected branch takes 85 longer with them, and the window 119 with one of the two that it would read.
const AT_END_OF_ATTENTION: [f64; 2] = [1.0, 0.4];

/// A bucket that was measured: the logarithms of its extents, and of measured over roofline time.
struct Point {
    at: Vec<f64>,
    ratio: f64,
}

/// A tuning table, made ready for many questions.
pub struct Model<'t> {
    tuning: &'t Tuning,
    points: BTreeMap<(Class, DType), Vec<Point>>,
}

impl<'t> Model<'t> {
    /// The model of a table.
    pub fn new(tuning: &'t Tuning) -> Model<'t> {
        let mut points: BTreeMap<_, Vec<Point>> = BTreeMap::new();
        for (job, ns) in &tuning.times {
            let ratio = (*ns as f64 / roofline(tuning, job)).ln();
            points.entry((job.class, job.dtype)).or_default().push(Point { at: octaves(job), ratio });
        }
        Model { tuning, points }
    }
    /// The model of the host's shipped table.
    pub fn host() -> &'static Model<'static> {
        static HOST: OnceLock<Model> = OnceLock::new();
        HOST.get_or_init(|| Model::new(Tuning::shipped(crate::tuning::HOST)))
    }
    /// The time of a step alone: not less than starting a kernel takes, whatever larger ones took.
    pub fn time(&self, job: &Job) -> f64 {
        let at = octaves(&bucket(job));
        let prior = PRIOR_OCTAVES.powi(-2);
        let (mut sum, mut weights) = (0.0, prior);
        for p in self.points.get(&(job.class, job.dtype)).into_iter().flatten() {
            let distance: f64 = p.at.iter().zip(&at).map(|(a, b)| (a - b).abs()).sum();
            if distance == 0.0 {
                return roofline(self.tuning, job) * p.ratio.exp();
            }
            let weight = distance.powi(-2);
            sum += weight * p.ratio;
            weights += weight;
        }
        (roofline(self.tuning, job) * (sum / weights).exp()).max(self.tuning.launch_ns)
    }
    /// Whether the bucket of a job was measured, and what it took there.
    pub fn measured(&self, job: &Job) -> Option<f64> {
        let key = bucket(job);
        let ns = *self.tuning.times.get(&key)? as f64;
        Some(ns * roofline(self.tuning, job) / roofline(self.tuning, &key))
    }

    /// The cost of `op`, as if its operands were in memory or fused as `group` would, with these values of run-time dims.
    pub fn op_cost(&self, sizes: &DimEnv, op: &Op, operands: &[&TensorType], results: &[TensorType]) -> f64 {
        let ops = |n: &Dim, each: i64| value(n, sizes) * each as f64 / self.tuning.map_ops_per_ns;
        match op {
            Op::Arg(_) => 0.0,
            Op::Map(f) => ops(&results[0].elems(), map_ops(*f)),
            // Copies each operand.
            Op::Concat(_) => self.time(&valued(&work(op, operands, results), sizes)),
            _ if is_layout(op) => 0.0,
            _ if is_inline(op) => ops(&results[0].elems(), 2),
            Op::Fused(region) => self.region_cost(sizes, region, operands, results),
            // A kernel for the scales and one for the codes.
            Op::Quantize(_) => self.tuning.launch_ns + self.time(&valued(&work(op, operands, results), sizes)),
            _ => self.time(&valued(&work(op, operands, results), sizes)),
        }
    }

    /// The arithmetic of a region, or its traffic. Without a kernel it is its ops one by one, each stored, and a launch more, so that nobody
    /// outlines it.
    fn region_cost(&self, sizes: &DimEnv, region: &graph::op::Fused, operands: &[&TensorType], results: &[TensorType]) -> f64 {
        let (body, t) = (&region.body, self.tuning);
        if let Some(stream) = Stream::of(region, CHUNK) {
            return self.stream_cost(sizes, &stream, body, operands, results);
        }
        let has_kernel = crate::lower::has_kernel(region, t.target == library::SM_90A);
        if let Some(products) = Products::of(region).filter(|_| has_kernel && region.form == Form::Product) {
            return self.products_cost(sizes, region, &products);
        }
        if let Some(attends) = Attends::of(region).filter(|_| has_kernel && region.form == Form::Attend) {
            return self.attends_cost(sizes, region, &attends);
        }
        let of = |node: &graph::Node| {
            let operands: Vec<&TensorType> = node.inputs.iter().map(|v| body.ty(*v)).collect();
            match &node.op {
                Op::Contract(_) if has_kernel => {
                    let job = valued(&work(&node.op, &operands, &node.types), sizes);
                    job.flops() / t.product_rate(job.dtype)
                }
                // A warp looks through all numbers in each round of a choice.
                Op::TopK(k) if has_kernel && region.form == Form::Rows && t.target == library::SM_90A => {
                    value(&operands[0].elems(), sizes) * *k as f64 * OPS_OF_ROUND / t.map_ops_per_ns
                }
                Op::Reduce(..) | Op::TopK(_) if has_kernel => value(&operands[0].elems(), sizes) / t.map_ops_per_ns,
                op => {
                    let copied = !has_kernel && is_inline(op) && !is_layout(op);
                    let stored = |ty: &TensorType| self.op_cost(sizes, &Op::Concat(0), &[ty], std::slice::from_ref(ty));
                    self.op_cost(sizes, op, &operands, &node.types) + if copied { stored(&node.types[0]) } else { 0.0 }
                }
            }
        };
        let arithmetic: f64 = body.nodes.values().map(of).sum();
        let bytes = |t: &TensorType| value(&t.elems(), sizes) * t.dtype.bytes() as f64;
        let traffic = operands.iter().copied().chain(results).map(bytes).sum::<f64>() / t.bytes_per_ns;
        t.launch_ns + if has_kernel { arithmetic.max(traffic) } else { arithmetic }
    }

    /// The time of the products, but for storing what is given in their place, the arithmetic of the maps, and what these read: at the end of a tile,
    /// when no product is under way. Nobody waits for what is stored, but what is given beyond as many values as products are has to be worth it.
    fn products_cost(&self, sizes: &DimEnv, region: &graph::op::Fused, products: &Products) -> f64 {
        let (body, t) = (&region.body, self.tuning);
        let job = valued(&products.work(), sizes);
        let bytes = |ty: &TensorType| value(&ty.elems(), sizes) * ty.dtype.bytes() as f64;
        let is_product = |n: &&graph::Node| matches!(n.op, Op::Contract(_) | Op::GroupedContract { .. });
        let of_sums = |n: &graph::Node| value(&n.types[0].elems(), sizes) * job.dtype.bytes() as f64;
        let summed: f64 = body.nodes.values().filter(is_product).map(of_sums).sum();
        // Of codes, results are something else.
        let of_codes = || body.nodes.values().filter(is_product).map(|n| bytes(&n.types[0])).sum();
        let stored: f64 = if products.num_scales() > 0 { of_codes() } else { summed };
        let given = products.given().map(bytes).sum::<f64>();
        let traffic = job.bytes() - summed + given;
        let num_products = body.nodes.values().filter(|n| matches!(n.op, Op::Contract(_))).count();
        let many = job.class == Class::Product && products.given().count() > num_products;
        let [read, beyond] = if many { AT_END_OF_MANY } else { AT_END };
        let measured = self.time(&job) / roofline(t, &job);
        let last = (read * products.read().map(bytes).sum::<f64>() + beyond * (given - stored).max(0.0)) / t.bytes_per_ns;
        // Where products wait for memory, the maps of a tile run while the next one's operands come.
        let waits = (traffic / t.bytes_per_ns - arithmetic(t, &job)).max(0.0);
        let maps = (self.maps(sizes, body) - waits).max(0.0);
        let laid_out = products.num_scales() as f64 * t.launch_ns;
        measured * (t.launch_ns + arithmetic(t, &job).max(traffic / t.bytes_per_ns)) + last + maps + laid_out
    }

    /// The time of a region's maps in registers. Operands that are only widened, or rounded from codes, for a product are multiplied as they are.
    fn maps(&self, sizes: &DimEnv, body: &Func) -> f64 {
        let mut widened = BTreeSet::new();
        for n in body.nodes.values().filter(|n| matches!(n.op, Op::Contract(_) | Op::GroupedContract { .. })) {
            widened.extend(n.inputs.iter().map(|v| v.node));
        }
        let of = |(id, n): (NodeId, &graph::Node)| match &n.op {
            Op::Map(f) => value(&n.types[0].elems(), sizes) * map_ops(*f) as f64,
            Op::Cast(_) if !widened.contains(&id) => value(&n.types[0].elems(), sizes) * 2.0,
            _ => 0.0,
        };
        body.nodes.iter().map(of).sum::<f64>() / self.tuning.map_ops_per_ns
    }

    /// The time of the attention with its result, the arithmetic of the map, what it reads later than another kernel would, and what is given beyond one
    /// result.
    fn attends_cost(&self, sizes: &DimEnv, region: &graph::op::Fused, attends: &Attends) -> f64 {
        let (body, t) = (&region.body, self.tuning);
        let bytes = |ty: &TensorType| value(&ty.elems(), sizes) * ty.dtype.bytes() as f64;
        let beyond = (attends.given().map(bytes).sum::<f64>() - bytes(attends.result())).max(0.0);
        let late = AT_END_OF_ATTENTION[usize::from(attends.shares_processors())];
        let last = (late * attends.read().map(bytes).sum::<f64>() + AT_END[1] * beyond) / t.bytes_per_ns;
        self.time(&valued(&attends.work(), sizes)) + last + self.maps(sizes, body)
    }

    /// The steps of a loop over chunks. What a chunk's steps hand to each other is in cache: between them there is arithmetic and no traffic.
    fn stream_cost(&self, sizes: &DimEnv, stream: &Stream, body: &Func, operands: &[&TensorType], results: &[TensorType]) -> f64 {
        let t = self.tuning;
        let of = |(id, node): (NodeId, &graph::Node)| {
            let operands: Vec<&TensorType> = node.inputs.iter().map(|v| body.ty(*v)).collect();
            let turns = stream.turns_of(id);
            match &node.op {
                Op::Contract(_) => {
                    let mut job = work(&node.op, &operands, &node.types);
                    job.shape.iter_mut().filter(|d| turns > 1 && d.is(stream.extent)).for_each(|d| *d = Dim::from(stream.chunk));
                    turns as f64 * self.time(&valued(&job, sizes))
                }
                Op::Reduce(..) => turns as f64 * t.launch_ns + value(&operands[0].elems(), sizes) / t.map_ops_per_ns,
                op => self.op_cost(sizes, op, &operands, &node.types),
            }
        };
        let arithmetic: f64 = body.nodes.iter().map(of).sum();
        let bytes = |t: &TensorType| value(&t.elems(), sizes) * t.dtype.bytes() as f64;
        arithmetic.max(operands.iter().copied().chain(results).map(bytes).sum::<f64>() / t.bytes_per_ns)
    }
}

/// [`Model::op_cost`] by the host's shipped table, with no dims known.
pub fn op_cost(op: &Op, operands: &[&TensorType], results: &[TensorType]) -> f64 {
    Model::host().op_cost(&DimEnv::new(), op, operands, results)
}

/// The same for a shape bucket: values of run-time dims.
pub fn op_cost_at(sizes: &DimEnv, op: &Op, operands: &[&TensorType], results: &[TensorType]) -> f64 {
    Model::host().op_cost(sizes, op, operands, results)
}

/// What the table's rates allow at best: the longer of arithmetic and memory traffic, and the launch.
pub fn roofline(t: &Tuning, job: &Job) -> f64 {
    t.launch_ns + arithmetic(t, job).max(job.bytes() / t.bytes_per_ns)
}

/// The time of a step's arithmetic.
fn arithmetic(t: &Tuning, job: &Job) -> f64 {
    let n = &job.shape;
    let tiles = |extent: i64, by: i64| (extent.max(1) as f64 / by.max(1) as f64).ceil();
    let (rate, blocks) = match job.class {
        Class::Product => (t.product_rate(job.dtype), n[0].max(1) as f64 * tiles(n[1], t.tile[0]) * tiles(n[2], t.tile[1])),
        // Groups end in the middle of a tile.
        Class::GroupedProduct => {
            (t.product_rate(job.dtype), (tiles(n[1], t.tile[0]) + n[0].min(n[1]) as f64 / 2.0) * tiles(n[2], t.tile[1]))
        }
        Class::GroupedOuter => (t.product_rate(job.dtype), n[0].max(1) as f64 * tiles(n[3], t.tile[0]) * tiles(n[2], t.tile[1])),
        Class::Attend => (t.product_rate(job.dtype), n[0].max(1) as f64 * tiles(n[1], t.tile[0])),
        Class::AttendGrad => (t.product_rate(job.dtype), n[0].max(1) as f64),
        Class::Topk | Class::Cumsum | Class::ScatterAdd | Class::Route | Class::Fused | Class::Copy => {
            (t.map_ops_per_ns, f64::INFINITY)
        }
    };
    // The last wave takes as long as a full one.
    let waves = blocks / t.processors;
    let tail = if waves.is_finite() { waves.ceil() / waves } else { 1.0 };
    job.flops() / rate * tail
}

fn octaves(job: &Job) -> Vec<f64> {
    job.shape.iter().map(|n| ((*n).max(0) as f64 + 1.0).log2()).collect()
}

/// What an op does, for any run-time dims. Of ops that are no step of their own, what a kernel of it alone would do.
pub fn work(op: &Op, operands: &[&TensorType], results: &[TensorType]) -> Work {
    if let Op::Fused(region) = op
        && region.form == Form::Product
        && let Some(products) = Products::of(region)
    {
        return products.work();
    }
    if let Op::Fused(region) = op
        && region.form == Form::Attend
        && let Some(attends) = Attends::of(region)
    {
        return attends.work();
    }
    let product = |dims: &[Dim]| dims.iter().fold(Dim::from(1), |n, d| n * d.clone());
    let dtype = operands.first().map_or(results[0].dtype, |t| t.dtype);
    let (class, shape) = match op {
        Op::Contract(c) => (Class::Product, contract(c, operands).to_vec()),
        Op::GroupedContract { .. } => {
            let (x, w) = (operands[0], operands[1]);
            (Class::GroupedProduct, vec![w.shape[0].clone(), x.shape[0].clone(), results[0].shape[1].clone(), x.shape[1].clone()])
        }
        Op::GroupedOuter => {
            let (x, y, w) = (operands[0], operands[1], &results[0]);
            (Class::GroupedOuter, vec![w.shape[0].clone(), x.shape[0].clone(), y.shape[1].clone(), x.shape[1].clone()])
        }
        Op::Attend(a) => (Class::Attend, attend(&a.domain, operands, &operands[3..])),
        Op::AttendGrad(a) => (Class::AttendGrad, attend_grad(&a.domain, operands, &operands[7..])),
        Op::TopK(k) => {
            let (n, rows) = operands[0].shape.split_last().expect("a row to choose from");
            (Class::Topk, vec![product(rows), n.clone(), Dim::from(*k)])
        }
        Op::Cumsum { axis, .. } => {
            let shape = &operands[0].shape;
            (Class::Cumsum, vec![product(&shape[..*axis]) * product(&shape[axis + 1..]), shape[*axis].clone()])
        }
        Op::ScatterAdd { batch, n } => {
            let (index, rows) = (operands[0], operands[1]);
            let of = product(&index.shape[..*batch]) * n.clone();
            (Class::ScatterAdd, vec![index.elems(), of, product(&rows.shape[index.rank()..])])
        }
        Op::Exchange { .. } => {
            let bytes = |t: &TensorType| t.elems() * Dim::from(t.dtype.bytes() as i64);
            (Class::Copy, vec![bytes(operands[0]) + bytes(&results[0])])
        }
        Op::Route { groups } => (Class::Route, vec![operands[0].elems(), Dim::from(*groups)]),
        op => {
            let bytes = |t: &TensorType| t.elems() * Dim::from(t.dtype.bytes() as i64);
            let traffic = operands.iter().copied().chain(results).map(bytes).fold(Dim::from(0), |a, b| a + b);
            // Read for the scales and once more for the codes.
            let again = if let Op::Quantize(_) = op { bytes(operands[0]) } else { Dim::from(0) };
            let traffic = traffic + again;
            (Class::Fused, vec![ops(op, operands, results), traffic])
        }
    };
    Work { class, dtype, shape }
}

/// What the step of a node does, on a device of many processors or another: as [`work`], but that keys which are values and more columns are read once, so that there
/// are as many keys as have these columns.
pub fn step_work(func: &Func, node: &graph::Node, many: bool) -> Work {
    let operands: Vec<&TensorType> = node.inputs.iter().map(|v| func.ty(*v)).collect();
    let mut work = work(&node.op, &operands, &node.types);
    if let (Op::Attend(_), true) = (&node.op, many)
        && operand(func, node, 1, many) != node.inputs[1]
    {
        let [.., keys, dk, dv] = &mut work.shape[..] else { base::bug!("extents of attention") };
        *keys = (keys.clone() * dk.clone()).floor_div(&(dk.clone() + dv.clone()));
    }
    work
}

/// What a kernel does that computes `v` and all that is not stored below it.
pub fn fused_work(func: &Func, grouping: &Grouping, v: Value) -> Work {
    joined_work(func, grouping, &[v], v.node)
}

/// The same of values that are computed together, in the place of a node.
pub fn joined_work(func: &Func, grouping: &Grouping, values: &[Value], at: NodeId) -> Work {
    let mut inside = BTreeSet::new();
    let mut open: Vec<NodeId> = values.iter().map(|v| v.node).collect();
    while let Some(id) = open.pop() {
        if inside.insert(id) {
            let below = func.nodes[id].inputs.iter().map(|x| x.node);
            open.extend(below.filter(|x| !grouping.root[x.0 as usize] && !matches!(func.nodes[*x].op, Op::Arg(_))));
        }
    }
    let types = |id: NodeId| func.nodes[id].inputs.iter().map(|x| func.ty(*x)).collect::<Vec<_>>();
    let all = inside.iter().map(|id| ops(&func.nodes[*id].op, &types(*id), &func.nodes[*id].types));
    let bytes = |v: Value| func.ty(v).elems() * Dim::from(func.ty(v).dtype.bytes() as i64);
    // Of what rows are gathered from, no more than these.
    let gathered = |v: &Value| {
        let users = || inside.iter().map(|id| &func.nodes[*id]).filter(|n| n.inputs.contains(v));
        let alone = users().all(|n| matches!(n.op, Op::Gather { .. }) && n.inputs[1..].iter().all(|x| x != v));
        let rows = users().fold(Dim::from(0), |all, n| all + n.types[0].elems());
        (alone && users().next().is_some()).then(|| rows * Dim::from(func.ty(*v).dtype.bytes() as i64))
    };
    let read = grouping.reads[at.0 as usize].iter().map(|v| match gathered(v) {
        Some(rows) => bytes(*v).minimum(&rows),
        None => bytes(*v),
    });
    let traffic = read.chain(values.iter().map(|v| bytes(*v))).fold(Dim::from(0), |a, b| a + b);
    Work { class: Class::Fused, dtype: func.ty(values[0]).dtype, shape: vec![all.fold(Dim::from(0), |a, b| a + b), traffic] }
}

/// Operations of an op that is computed element by element.
fn ops(op: &Op, operands: &[&TensorType], results: &[TensorType]) -> Dim {
    match op {
        Op::Map(f) => results[0].elems() * Dim::from(map_ops(*f)),
        Op::Reduce(..) => operands[0].elems(),
        // Magnitude and maximum; comparison, quotient, choice and rounding.
        Op::Quantize(_) => operands[0].elems() * Dim::from(4 + map_ops(MapFn::Div) + 2),
        Op::Dequantize(_) => results[0].elems() * Dim::from(3),
        _ if is_layout(op) => Dim::from(0),
        Op::Arg(_) | Op::Const(..) | Op::Extent(..) => Dim::from(0),
        Op::Fused(region) => {
            let body = &region.body;
            let of = |node: &graph::Node| {
                let operands: Vec<&TensorType> = node.inputs.iter().map(|v| body.ty(*v)).collect();
                match &node.op {
                    Op::Contract(c) => contract(c, &operands).into_iter().fold(Dim::from(2), |n, d| n * d),
                    op => ops(op, &operands, &node.types),
                }
            };
            body.nodes.values().map(of).fold(Dim::from(0), |a, b| a + b)
        }
        _ => results[0].elems() * Dim::from(2),
    }
}

/// Operations of a function for an element: the least, 1, is a vector instruction in a loop that waits for memory.
fn map_ops(f: MapFn) -> i64 {
    match f {
        MapFn::Exp | MapFn::Log | MapFn::Sigmoid | MapFn::Silu | MapFn::Tanh | MapFn::Softplus | MapFn::Erf => 20,
        MapFn::Swiglu => 21,
        MapFn::Sin | MapFn::Cos | MapFn::Pow => 40,
        MapFn::Div | MapFn::Sqrt | MapFn::Rsqrt | MapFn::FloorDiv | MapFn::Rem => 6,
        _ => 1,
    }
}

/// Batch, rows, columns and summed terms of a contraction.
pub(crate) fn contract(c: &Contract, operands: &[&TensorType]) -> [Dim; 4] {
    let extent = |x: &char| {
        let at = |letters: &[char], t: &TensorType| letters.iter().position(|y| y == x).map(|i| t.shape[i].clone());
        at(&c.lhs, operands[0]).or_else(|| at(&c.rhs, operands[1])).expect("each letter is in an operand")
    };
    let all = |letters: Vec<char>| letters.iter().map(extent).fold(Dim::from(1), |n, d| n * d);
    [all(c.batch()), all(c.rows()), all(c.cols()), all(c.summed())]
}

/// Extents of attention: q `[b, t, h, dk]`, k `[b, s, g, dk]`, v `[b, s, g, dv]`.
fn attend(domain: &Domain, operands: &[&TensorType], of_domain: &[&TensorType]) -> Vec<Dim> {
    let (q, k, v) = (&operands[0].shape, &operands[1].shape, &operands[2].shape);
    let rows = q[2].try_div(&k[2]).unwrap_or(Dim::from(1)) * q[1].clone();
    let length = |idx: usize| of_domain[idx].shape.last().cloned();
    let seen_by = |queries: i64| most_keys(domain, queries, &length).map_or(k[1].clone(), |n| n.minimum(&k[1]));
    // Few queries may see few of the keys.
    let keys = q[1].known().map_or(k[1].clone(), seen_by);
    vec![q[0].clone() * k[2].clone(), rows, seen_by(1), keys, q[3].clone(), v[3].clone()]
}

/// The same of its gradient, which all keys have.
fn attend_grad(domain: &Domain, operands: &[&TensorType], of_domain: &[&TensorType]) -> Vec<Dim> {
    let mut shape = attend(domain, operands, of_domain);
    shape[3] = operands[1].shape[1].clone();
    shape
}

/// Two attentions of the same queries.
pub fn of_both(own: Work, other: &Work) -> Work {
    let mut shape = own.shape;
    [2, 3].into_iter().for_each(|i| shape[i] = shape[i].clone() + other.shape[i].clone());
    Work { shape, ..own }
}

fn valued(work: &Work, sizes: &DimEnv) -> Job {
    let shape = work.shape.iter().map(|d| value(d, sizes) as i64).collect();
    Job { class: work.class, dtype: work.dtype, shape }
}

fn value(d: &Dim, sizes: &DimEnv) -> f64 {
    let fixed = match d.known() {
        Some(n) => Some(n),
        None => d.substitute(&|name| Some(Dim::from(sizes.get(name).copied().unwrap_or(RUN_TIME_DIM)))).known(),
    };
    fixed.unwrap_or_else(|| base::bug!("{d} has no value")).max(0) as f64
}

#[cfg(test)]
mod tests;
