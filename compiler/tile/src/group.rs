//! Decides which values get memory. In: a function. Out: for each node, whether it is a *root* (computed by a step of its own and
//! stored) or *inline* (recomputed inside the kernels that use it). Nodes that are neither are not needed.
//!
//! Layout ops of stored values stay views. A cheap elementwise value is recomputed by each kernel that uses it; an expensive one
//! with several users, or one that a broadcast over leading axes would recompute, is stored once. A reduction over trailing axes
//! is computed at the head of each row of the one kernel that uses it.

mod join;

use crate::{
    fused::num_parts,
    lower::{Options, attends, narrow},
    select::adds_to_queries,
    view::{StridedView, row_major},
};
use base::{Dim, TensorType};
use graph::{
    Func, Node, NodeId, Op, Value,
    op::{MapFn, are_pairs},
};
use std::collections::{BTreeMap, BTreeSet};

/// What becomes of each node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Grouping {
    /// Whether the node's results are stored, by node.
    pub root: Vec<bool>,
    /// For each root, the stored values (arguments and roots) that its step reads; for joined ones, all of them where they are computed.
    pub reads: Vec<Vec<Value>>,
    /// The roots that one step computes together, by the node in whose place that stands.
    pub joined: BTreeMap<NodeId, Vec<NodeId>>,
    /// Whether kernels are for a device of many processors.
    pub many: bool,
}

/// Costs above which a value with several users is stored. # Units: about one per floating-point operation.
const RECOMPUTE_LIMIT: u32 = 6;
/// Costs above which a value is stored anyway, to bound the size of kernels.
const SIZE_LIMIT: u32 = 400;
/// On a device of many processors, where arithmetic waits for memory: costs up to which a value with several users is recomputed that reads no more than it
/// would be read. An H200 does some 60 operations while it reads four bytes.
const LIGHT_LIMIT: u32 = 60;
/// A value of fewer elements stays in a cache.
const SMALL_ELEMS: i64 = 65_536;
/// A reduction of at most this many terms is written out as a sum.
pub const UNROLL_LIMIT: i64 = 8;

/// Whether the op is evaluated inside other kernels rather than by a step of its own.
pub fn is_inline(op: &Op) -> bool {
    match op {
        Op::Const(..)
        | Op::Extent(..)
        | Op::Iota(_)
        | Op::Map(_)
        | Op::Cast(_)
        | Op::Pad { .. }
        | Op::Concat(_)
        | Op::Gather { .. } => true,
        _ => is_layout(op),
    }
}

/// Whether the op only renames elements.
pub fn is_layout(op: &Op) -> bool {
    matches!(op, Op::Broadcast { .. } | Op::Transpose(_) | Op::Reshape(_) | Op::Slice { .. } | Op::StopGradient)
}

/// The number of terms of each element of a reduction, if known.
fn reduced_terms(axes: &[usize], operand: &TensorType) -> Option<i64> {
    axes.iter().map(|a| operand.shape[*a].known()).product()
}

/// Whether a reduction is short enough to be written out.
pub fn is_unrolled(op: &Op, operand: &TensorType) -> bool {
    matches!(op, Op::Reduce(_, axes) if reduced_terms(axes, operand).is_some_and(|n| (1..=UNROLL_LIMIT).contains(&n)))
}

/// Whether the reduced axes are the last ones.
pub fn reduces_trailing(axes: &[usize], operand: &TensorType) -> bool {
    axes.iter().rev().zip((0..operand.rank()).rev()).all(|(a, b)| *a == b)
}

/// The cost of one element of an op, without its operands.
fn op_cost(op: &Op) -> u32 {
    match op {
        Op::Map(f) => match f {
            MapFn::Exp
            | MapFn::Log
            | MapFn::Sigmoid
            | MapFn::Silu
            | MapFn::Swiglu
            | MapFn::Tanh
            | MapFn::Softplus
            | MapFn::Erf => 10,
            MapFn::Sin | MapFn::Cos | MapFn::Pow => 20,
            MapFn::Div | MapFn::Sqrt | MapFn::Rsqrt | MapFn::FloorDiv | MapFn::Rem => 3,
            _ => 1,
        },
        Op::Gather { .. } | Op::Concat(_) | Op::Pad { .. } => 3,
        _ => 0,
    }
}

/// The stored value below a chain of layout ops and the view it is seen through, supposing the value itself is contiguous; the value
/// itself if the chain is empty. `None` if some op of the chain has to move elements.
pub fn view_base(func: &Func, v: Value) -> Option<(Value, StridedView)> {
    view_below(func, v, &|_| false)
}

/// The same, but at most down to a value that is known to be stored.
fn view_below(func: &Func, v: Value, stored: &dyn Fn(Value) -> bool) -> Option<(Value, StridedView)> {
    let node = func.def(v);
    if is_layout(&node.op) && !stored(v) {
        let (base, view) = view_below(func, node.inputs[0], stored)?;
        return Some((base, view.apply(&node.op)?));
    }
    let at = library::View { buffer: 0, offset: Dim::from(0), turn: Vec::new() };
    let shape = func.ty(v).shape.clone();
    Some((v, StridedView { at, strides: row_major(&shape), shape }))
}

/// Whether operand `i` of a step that is not a fused kernel may be a strided view.
fn takes_strides(op: &Op) -> bool {
    matches!(op, Op::Contract(_) | Op::Repeat(_) | Op::Fused(_))
}

/// Decides for the whole function. Without `fuse` every value that some arithmetic makes is stored; with `parts` every reduction that is taken in
/// parts.
pub fn group(func: &Func, Options { fuse, parts, products, .. }: Options) -> Grouping {
    let n = func.nodes.len();
    let narrowed = |node: &Node| narrow::narrow_operands(func, &node.op, &node.inputs).filter(|_| products && fuse);
    let mut g = Grouping { root: vec![false; n], reads: vec![Vec::new(); n], joined: BTreeMap::new(), many: parts && products };
    // Full recomputation costs, as if nothing were stored below.
    let mut cost = vec![0u32; n];
    for (id, node) in func.nodes.iter() {
        let i = id.0 as usize;
        if is_inline(&node.op) || is_unrolled_node(func, id) {
            let times = if is_unrolled_node(func, id) { UNROLL_LIMIT as u32 / 2 } else { 1 };
            cost[i] = node.inputs.iter().map(|v| cost[v.node.0 as usize] * times).fold(op_cost(&node.op), u32::saturating_add);
        }
    }
    // The roots that use a node inline.
    let mut users: Vec<BTreeSet<NodeId>> = vec![BTreeSet::new(); n];
    let mut forced = vec![false; n];
    // What is repeated is of few elements for what reads it.
    let mut repeated = vec![false; n];
    // What a sum that is written out takes several of.
    let mut several = vec![false; n];
    for o in &func.outputs {
        forced[o.value.node.0 as usize] = true;
    }
    if parts {
        let adds = |id: NodeId| products && fuse && adds_gradient(func, id).is_some();
        func.nodes.ids().filter(|id| joins_gradients(func, *id) || adds(*id)).for_each(|id| forced[id.0 as usize] = true);
    }
    if !fuse {
        for (id, node) in func.nodes.iter() {
            forced[id.0 as usize] |=
                !is_layout(&node.op) && !matches!(node.op, Op::Arg(_) | Op::Const(..) | Op::Extent(..) | Op::Iota(_));
        }
    }
    for id in func.nodes.ids().rev() {
        let (i, node) = (id.0 as usize, &func.nodes[id]);
        if matches!(node.op, Op::Arg(_)) || (users[i].is_empty() && !forced[i]) {
            continue;
        }
        let is_root = if is_inline(&node.op) || is_unrolled_node(func, id) {
            let value = Value { node: id, index: 0 };
            let light = || parts && !repeated[i] && is_light(func, value, &cost, &forced);
            let twice = users[i].len() > 1 && cost[i] > RECOMPUTE_LIMIT && !light();
            let stored = (cost[i] > SIZE_LIMIT || twice) && !sees_stored(func, id, &cost, &forced);
            // What is repeated is stored before it is.
            let before = if stored { repeated_base(func, id) } else { None };
            before.iter().for_each(|base| forced[base.node.0 as usize] = true);
            forced[i] || stored && before.is_none()
        } else {
            let in_parts = parts && num_parts(func, Value { node: id, index: 0 }).is_some();
            forced[i] || in_parts || several[i] || !fuses_into_row(func, id, &users[i])
        };
        g.root[i] = is_root;
        let of_one = |id: NodeId| func.ty(func.nodes[id].inputs[0]).elems() == func.nodes[id].types[0].elems();
        let takes_several = !is_root && (several[i] || is_unrolled_node(func, id) && !of_one(id));
        let as_users = if is_root { BTreeSet::from([id]) } else { users[i].clone() };
        let is_fused_op = is_inline(&node.op) || matches!(node.op, Op::Reduce(..));
        let narrow = narrowed(node);
        for k in (0..node.inputs.len()).filter(|k| !is_unread(func, node, *k)) {
            let v = &operand(func, node, k, products);
            let j = v.node.0 as usize;
            users[j].extend(&as_users);
            several[j] |= takes_several;
            let grows = matches!(&node.op, Op::Broadcast { shape, axes } if axes.len() < shape.len());
            repeated[j] |= grows || repeated[i] && is_layout(&node.op);
            // What is only widened is needed as it is.
            let v = narrow.as_ref().map_or(v, |both| &both[k]);
            let amplifies = match &node.op {
                // Repeating over leading axes computes the operand again for each.
                Op::Broadcast { shape, axes } => {
                    let trailing = axes.iter().copied().eq(0..axes.len());
                    !trailing && !axes.is_empty() && cost[j] > RECOMPUTE_LIMIT && shape.len() > axes.len()
                }
                // Rows are taken by computed numbers, unless they are all the same, or fewer elements than there are.
                Op::Gather { batch } => {
                    let fewer = || func.ty(*v).elems().try_div(&node.types[0].elems()).and_then(|n| n.known()).is_some();
                    k == 0 && !is_repeated(func, *v, *batch) && !(parts && is_light(func, *v, &cost, &forced) && fewer())
                }
                // Dividing an index is dearer than storing.
                Op::Reshape(_) => cost[j] > 0 && needs_division(func, *v, id),
                _ => false,
            };
            if !is_fused_op || amplifies {
                // A reshape of stored memory costs nothing: the value is needed there, seen through its views.
                force_memory(func, *v, takes_strides(&node.op), &mut forced);
                let (base, _) = stored_base(func, *v, &forced);
                users[base.node.0 as usize].extend(&as_users);
            }
        }
    }
    for id in func.nodes.ids().filter(|id| g.root[id.0 as usize]) {
        let mut seen = BTreeSet::new();
        let mut reads = BTreeSet::new();
        let node = &func.nodes[id];
        // Of what is only widened the narrow value is read.
        let all =
            || (0..node.inputs.len()).filter(|k| !is_unread(func, node, *k)).map(|k| operand(func, node, k, products)).collect();
        let read = narrowed(node).map_or_else(all, Vec::from);
        read.into_iter().for_each(|v| collect_reads(func, &g, v, &mut seen, &mut reads));
        g.reads[id.0 as usize] = reads.into_iter().collect();
    }
    if parts && fuse {
        join::join_maps(func, &mut g);
    }
    g
}

/// Whether a sum is of gradients of attentions before another: stored, it takes the memory of one in place of that of both.
fn joins_gradients(func: &Func, id: NodeId) -> bool {
    let node = &func.nodes[id];
    let is_grad = |n: &Node| matches!(n.op, Op::AttendGrad(_));
    let of_grads = node.op == Op::Map(MapFn::Add) && node.inputs.iter().all(|v| is_grad(func.def(*v)));
    of_grads && (id.0 as usize + 1..func.nodes.len()).any(|n| is_grad(&func.nodes[NodeId(n as u32)]))
}

/// If a node adds an attention's gradient of queries to another's, or to such a sum, and is all that reads both: the sum that there is already, and the gradient that the last
/// kernel adds to it, in its memory.
pub fn adds_gradient(func: &Func, id: NodeId) -> Option<[Value; 2]> {
    let node = &func.nodes[id];
    let (Op::Map(MapFn::Add), [x, y]) = (&node.op, &node.inputs[..]) else { return None };
    let [first, last] = [*x.min(y), *x.max(y)];
    let is_grad = |v: Value| v.index == 0 && matches!(func.def(v).op, Op::AttendGrad(_));
    let alone = |v: Value| {
        let readers = func.nodes.values().flat_map(|n| &n.inputs).filter(|x| **x == v).count();
        readers == 1 && func.outputs.iter().all(|o| o.value != v)
    };
    let is_sum = |v: Value| is_grad(v) || adds_gradient(func, v.node).is_some();
    let operands: Vec<&TensorType> = func.def(last).inputs.iter().map(|v| func.ty(*v)).collect();
    let adds = is_grad(last) && adds_to_queries(&func.def(last).op, &operands);
    let own = func.outputs.iter().all(|o| o.value.node != id);
    (first != last && adds && own && is_sum(first) && alone(first) && alone(last)).then_some([first, last])
}

/// What a step reads for an operand, on a device of many processors or another: of keys that are values and something joined to them, that.
pub fn operand(func: &Func, node: &Node, k: usize, many: bool) -> Value {
    let rest = if many && k == 1 { attends::joined_to_values(func, node) } else { None };
    rest.unwrap_or(node.inputs[k])
}

/// Whether an operand is not looked at: zeros in place of the result, of which a gradient of attention needs nothing then.
pub fn is_unread(func: &Func, node: &Node, operand: usize) -> bool {
    matches!(node.op, Op::AttendGrad(_)) && operand == 3 && graph::passes::is_zero(func, node.inputs[3])
}

/// Whether a value takes little arithmetic and reads, computed again, no more bytes than itself.
fn is_light(func: &Func, v: Value, cost: &[u32], forced: &[bool]) -> bool {
    if cost[v.node.0 as usize] > LIGHT_LIMIT || forced[v.node.0 as usize] {
        return false;
    }
    let (elems, own) = (func.ty(v).elems(), func.ty(v).dtype.bytes() as i64);
    let (mut open, mut seen, mut bytes) = (vec![v], BTreeSet::from([v]), 0);
    while let Some(x) = open.pop() {
        let (node, ty) = (func.def(x), func.ty(x));
        let inside = x == v || !forced[x.node.0 as usize];
        match &node.op {
            Op::Const(..) | Op::Extent(..) => {}
            Op::Map(_) | Op::Cast(_) | Op::StopGradient | Op::Broadcast { .. } if inside => {
                open.extend(node.inputs.iter().filter(|y| seen.insert(**y)));
            }
            // Stored, or a view of what is: what there is one of for many elements counts for nothing.
            op if !inside || matches!(op, Op::Arg(_)) || !is_inline(op) || view_base(func, x).is_some_and(|(b, _)| b != x) => {
                let few = ty.elems().known().is_some_and(|n| n < SMALL_ELEMS);
                let shared = elems.try_div(&ty.elems()).and_then(|n| n.known());
                match shared {
                    _ if few => {}
                    Some(n) if n > 0 => bytes += ty.dtype.bytes() as i64 * 16 / n,
                    Some(_) | None => return false,
                }
            }
            _ => return false,
        }
    }
    bytes <= own * 16 + 1
}

/// The value that a broadcast repeats, below layout ops, if it has no more elements than the broadcast; or that a reshape sees whole.
fn repeated_base(func: &Func, id: NodeId) -> Option<Value> {
    let node = &func.nodes[id];
    let of = |v: Value| func.ty(v).elems();
    if let Op::Reshape(_) = &node.op {
        let (base, _) = view_base(func, Value { node: id, index: 0 })?;
        return (base.node != id && of(base) == node.types[0].elems()).then_some(base);
    }
    let Op::Broadcast { .. } = &node.op else { return None };
    let x = node.inputs[0];
    let (base, _) = view_base(func, x)?;
    let times = |n: Dim| n.try_div(&of(x))?.known();
    let (all, repeated) = (times(of(base))?, times(node.types[0].elems())?);
    (all <= repeated && repeated > 1).then_some(base)
}

/// Whether a layout op is a view of what is stored: by what reads it, or because it would divide indices of what is computed. Such a view is no copy, however many
/// read it.
fn sees_stored(func: &Func, id: NodeId, cost: &[u32], forced: &[bool]) -> bool {
    let node = &func.nodes[id];
    if !is_layout(&node.op) {
        return false;
    }
    let Some((base, _)) = view_base(func, Value { node: id, index: 0 }) else { return false };
    let below = node.inputs[0];
    let divides = matches!(node.op, Op::Reshape(_)) && cost[below.node.0 as usize] > 0 && needs_division(func, below, id);
    forced[base.node.0 as usize] || divides
}

fn is_unrolled_node(func: &Func, id: NodeId) -> bool {
    let node = &func.nodes[id];
    matches!(node.op, Op::Reduce(..)) && is_unrolled(&node.op, func.ty(node.inputs[0]))
}

/// Whether a value is the same at every index of an axis.
fn is_repeated(func: &Func, v: Value, axis: usize) -> bool {
    matches!(&func.def(v).op, Op::Broadcast { axes, .. } if !axes.contains(&axis))
}

/// Whether reading the operand of a reshape through its result's index needs divisions: several axes were merged into fewer.
fn needs_division(func: &Func, operand: Value, reshape: NodeId) -> bool {
    // A kernel takes both of a pair in turn.
    if joins_pairs(func, Value { node: reshape, index: 0 }) {
        return false;
    }
    let (old, new) = (&func.ty(operand).shape, &func.nodes[reshape].types[0].shape);
    let real = |shape: &[Dim], r: std::ops::Range<usize>| r.filter(|a| !shape[*a].is(1)).count();
    match crate::view::reshape_groups(old, new) {
        Some(groups) => groups.into_iter().any(|(o, n)| real(old, o) > 1 && (real(new, n.clone()) > 0)),
        None => true,
    }
}

/// Whether a value is computed pairs as neighbours of an axis: what is stored is such a row, and not each pair as one.
pub(crate) fn joins_pairs(func: &Func, v: Value) -> bool {
    let node = func.def(v);
    let computed = |x: Value| is_inline(&func.def(x).op) && !is_layout(&func.def(x).op);
    matches!(node.op, Op::Reshape(_)) && are_pairs(func.ty(v), func.ty(node.inputs[0])) && computed(node.inputs[0])
}

/// Marks the value that has to be stored for `v` to be in memory.
fn force_memory(func: &Func, v: Value, strided: bool, forced: &mut [bool]) {
    match view_below(func, v, &|x| forced[x.node.0 as usize] || joins_pairs(func, x)) {
        Some((base, view)) if strided || view.is_contiguous() => forced[base.node.0 as usize] = true,
        _ => forced[v.node.0 as usize] = true,
    }
}

fn stored_base(func: &Func, v: Value, forced: &[bool]) -> (Value, bool) {
    let mut v = v;
    while !forced[v.node.0 as usize] && is_layout(&func.def(v).op) {
        v = func.def(v).inputs[0];
    }
    (v, forced[v.node.0 as usize])
}

/// Whether a reduction is computed at the head of the rows of its single user.
fn fuses_into_row(func: &Func, id: NodeId, users: &BTreeSet<NodeId>) -> bool {
    let node = &func.nodes[id];
    let Op::Reduce(_, axes) = &node.op else { return false };
    let (Some(user), 1) = (users.first(), users.len()) else { return false };
    let target = &func.nodes[*user];
    if !is_inline(&target.op) || !reduces_trailing(axes, func.ty(node.inputs[0])) {
        return false;
    }
    // The user's rows are the reduction's elements, or its elements are.
    let (rows, shape) = (&node.types[0].shape, &target.types[0].shape);
    let ones = |s: &[Dim]| s.iter().filter(|d| !d.is(1)).cloned().collect::<Vec<_>>();
    let (rows, shape) = (ones(rows), ones(shape));
    rows == shape || (!shape.is_empty() && rows == shape[..shape.len() - 1])
}

fn collect_reads(func: &Func, g: &Grouping, v: Value, seen: &mut BTreeSet<Value>, reads: &mut BTreeSet<Value>) {
    if !seen.insert(v) {
        return;
    }
    let node = func.def(v);
    if g.root[v.node.0 as usize] || matches!(node.op, Op::Arg(_)) {
        reads.insert(v);
    } else {
        node.inputs.iter().for_each(|x| collect_reads(func, g, *x, seen, reads));
    }
}
