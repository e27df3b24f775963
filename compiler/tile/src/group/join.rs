//! Maps of one shape in one kernel, so that what several read is read once, and what only they read is not stored; and reductions along their rows.
//!
//! In: a grouping. Out: the same with roots *joined*: one step computes them all, where the first of them stands by whose turn all that they read is there,
//! and before anything else reads them. Joined are element by element maps that read each other or the same long value, and what is computed of whole rows
//! for these. Maps are not moved past a gradient of attention.

mod rows;

use super::{Grouping, adds_gradient, is_inline, is_layout, view_base};
use base::Dim;
use graph::{Func, NodeId, Op, Value, op::MapFn};
use std::collections::BTreeSet;

/// Stored values that a kernel reads and writes, at most.
const MAX_BUFFERS: usize = 16;

/// Roots that are computed together.
#[derive(Clone)]
struct Joined {
    members: Vec<NodeId>,
    at: NodeId,
}

/// Where things stand while groups grow.
struct Order<'a> {
    func: &'a Func,
    root: &'a [bool],
    reads: &'a [Vec<Value>],
    /// The roots that read each node.
    readers: Vec<Vec<NodeId>>,
    /// When the step of each node runs.
    at: Vec<NodeId>,
    /// The node whose value replaces an argument at the end.
    replaced: Vec<Option<NodeId>>,
}

/// Joins roots.
pub(super) fn join_maps(func: &Func, g: &mut Grouping) {
    let n = func.nodes.len();
    let mut readers = vec![Vec::new(); n];
    for (i, reads) in g.reads.iter().enumerate() {
        reads.iter().for_each(|v| readers[v.node.0 as usize].push(NodeId(i as u32)));
    }
    let output_of = |a: &graph::Arg| func.outputs.iter().find(|o| o.name == a.name && o.role == a.role).map(|o| o.value.node);
    let replaced = func.args.iter().map(output_of).collect();
    let mut order = Order { func, root: &g.root, reads: &g.reads, readers, at: func.nodes.ids().collect(), replaced };
    let mut groups: Vec<Joined> = Vec::new();
    let joins = |id: &NodeId| is_map(func, &g.root, *id) || rows::may_be(func, *id);
    for id in func.nodes.ids().filter(|id| g.root[id.0 as usize] && joins(id)) {
        let with = |k: usize| Some((k, order.with(&groups[k], id)?));
        // Sums of rows as early as they can be: what they are of is not needed for them later.
        let found = match is_map(func, &g.root, id) {
            true => (0..groups.len()).rev().find_map(with),
            false => (0..groups.len()).find_map(with),
        };
        match found {
            Some((k, joined)) => {
                joined.members.iter().for_each(|m| order.at[m.0 as usize] = joined.at);
                groups[k] = joined;
            }
            None => groups.push(Joined { members: vec![id], at: id }),
        }
    }
    let readers = order.readers;
    for Joined { members, at } in groups.into_iter().filter(|j| j.members.len() > 1) {
        let reads: BTreeSet<Value> = members.iter().flat_map(|m| std::mem::take(&mut g.reads[m.0 as usize])).collect();
        let inside = |v: &Value| members.contains(&v.node);
        g.reads[at.0 as usize] = reads.into_iter().filter(|v| !inside(v)).collect();
        // What only members read they compute as they go.
        let stored = |m: &NodeId| {
            func.outputs.iter().any(|o| o.value.node == *m) || readers[m.0 as usize].iter().any(|r| !members.contains(r))
        };
        let (stored, inner): (Vec<NodeId>, Vec<NodeId>) = members.iter().copied().partition(stored);
        inner.iter().for_each(|m| g.root[m.0 as usize] = false);
        g.joined.insert(at, stored);
    }
}

impl Order<'_> {
    /// The group with one more member, if that is legal and saves something.
    fn with(&self, j: &Joined, id: NodeId) -> Option<Joined> {
        let members: Vec<NodeId> = j.members.iter().copied().chain([id]).collect();
        let shape = |m: NodeId| &self.func.nodes[m].types[0].shape;
        // Most have nothing to do with each other.
        let near = |v: &Value| j.members.iter().any(|m| *m == v.node || self.reads[m.0 as usize].contains(v));
        if !self.reads[id.0 as usize].iter().any(near) {
            return None;
        }
        let maps = members.iter().all(|m| shape(*m) == shape(id) && is_map(self.func, self.root, *m));
        // Beside what rows are summed of, which is needed no more after that, it would be in memory at once; it is anyway if they are summed of it.
        let summed = |m: &NodeId| members.iter().any(|x| self.reads[x.0 as usize].iter().any(|v| v.node == *m));
        if !maps && members.iter().any(|m| self.is_upstream(*m) && !summed(m)) {
            return None;
        }
        let elems = if maps { self.func.nodes[id].types[0].elems() } else { rows::of(self.func, self.root, &members)?.elems() };
        if !self.shares(j, id, &elems) {
            return None;
        }
        let outside = |x: &NodeId| !members.contains(x);
        let at = |x: NodeId| self.at[x.0 as usize];
        let read: BTreeSet<NodeId> = members.iter().flat_map(|m| self.reads[m.0 as usize].iter().map(|v| v.node)).collect();
        if read.len() + members.len() > MAX_BUFFERS {
            return None;
        }
        let inputs = || read.iter().copied().filter(outside);
        // As early as what they read is there.
        let when = *members.iter().find(|m| inputs().all(|x| at(x) < **m))?;
        if members.iter().any(|m| crosses(self.func, when, *m)) {
            return None;
        }
        let later = |x: &NodeId| self.readers[x.0 as usize].iter().filter(|r| outside(r)).all(|r| at(*r) > when);
        // What replaces an argument is written in its place if all have read it.
        let is_arg = |x: NodeId| matches!(self.func.nodes[x].op, Op::Arg(_));
        let in_place = |arg: NodeId| {
            let Some(by) = self.replaced[arg.0 as usize] else { return true };
            if members.contains(&by) {
                // A row is read more than once.
                (maps || !read.contains(&arg))
                    && self.readers[arg.0 as usize].iter().filter(|r| outside(r)).all(|r| at(*r) < when)
            } else {
                at(by) > when
            }
        };
        let args = (0..self.func.args.len() as u32).map(NodeId);
        let touched = args.filter(|a| read.contains(a) || self.replaced[a.0 as usize].is_some_and(|by| members.contains(&by)));
        let legal = members.iter().all(later) && touched.filter(|a| is_arg(*a)).all(in_place);
        legal.then_some(Joined { members, at: when })
    }
    /// Whether a root is what a gradient of attention comes from.
    fn is_upstream(&self, id: NodeId) -> bool {
        let of = |r: &NodeId| {
            let reader = &self.func.nodes[*r];
            matches!(reader.op, Op::AttendGrad(_)) && reader.inputs[5].node == id
        };
        self.readers[id.0 as usize].iter().any(of)
    }
    /// Whether a root reads what a group computes, or a value of so many elements that the group reads.
    fn shares(&self, j: &Joined, id: NodeId, elems: &Dim) -> bool {
        let long = |v: &Value| self.func.ty(*v).elems() == *elems;
        let read = |v: &Value| j.members.iter().any(|m| self.reads[m.0 as usize].contains(v));
        self.reads[id.0 as usize].iter().any(|v| j.members.contains(&v.node) || long(v) && read(v))
    }
}

/// Whether a map would be computed on the other side of a gradient of attention: it, or what it reads, would take memory all that time, and what that takes to read
/// operands again is little beside it.
fn crosses(func: &Func, when: NodeId, id: NodeId) -> bool {
    let own = &func.nodes[id];
    let as_long = |n: &graph::Node| [&n.types[0], func.ty(n.inputs[5])].iter().any(|ty| ty.elems() == own.types[0].elems());
    let is_grad = |n: &graph::Node| matches!(n.op, Op::AttendGrad(_)) && as_long(n);
    let between = when.min(id).0..when.max(id).0;
    matches!(own.op, Op::Map(_) | Op::Cast(_)) && between.into_iter().any(|n| is_grad(&func.nodes[NodeId(n)]))
}

/// Whether a root adds a product to an argument, which the product does itself.
fn adds_to_argument(func: &Func, id: NodeId) -> bool {
    let node = &func.nodes[id];
    let is_arg = |v: &Value| matches!(func.def(*v).op, Op::Arg(_));
    node.op == Op::Map(MapFn::Add)
        && node.inputs.iter().any(is_arg)
        && node.inputs.iter().any(|v| !is_inline(&func.def(*v).op) && !is_arg(v))
}

/// Whether a root computes each element from elements at its own index, or fewer, of what is stored.
fn is_map(func: &Func, root: &[bool], id: NodeId) -> bool {
    let node = &func.nodes[id];
    if !matches!(node.op, Op::Map(_) | Op::Cast(_)) {
        return false;
    }
    if adds_to_argument(func, id) || adds_gradient(func, id).is_some() {
        return false;
    }
    let is_arg = |v: &Value| matches!(func.def(*v).op, Op::Arg(_));
    let stored = |v: Value| root[v.node.0 as usize] || is_arg(&v);
    let (mut open, mut seen) = (node.inputs.clone(), BTreeSet::new());
    while let Some(v) = open.pop() {
        if stored(v) || !seen.insert(v) {
            continue;
        }
        let below = func.def(v);
        match &below.op {
            Op::Const(..) | Op::Extent(..) => {}
            Op::Map(_) | Op::Cast(_) | Op::StopGradient | Op::Broadcast { .. } => open.extend(&below.inputs),
            op if is_layout(op) && view_base(func, v).is_some_and(|(base, _)| stored(base)) => {}
            _ => return false,
        }
    }
    true
}
