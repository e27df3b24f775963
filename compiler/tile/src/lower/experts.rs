//! Gated products of ragged rows as one kernel, for a device on which products are kernels: `swiglu(x·w, x·u)`, or `silu(x·w)·(x·u)` with the first
//! factor rounded, of the same rows, each with its group's matrices. Rows that are taken by index for these products alone come with their loads and are never stored; the products are stored if others read
//! them. See `kernels::gpu_product::Epilogue`.

use super::{Body, Class, Lowerer, Work, is_aligned};
use crate::{
    group::Grouping,
    ir::Expr,
    kernels::{
        build::Build,
        gpu_product::{Epilogue, Grouped, gpu_grouped_map},
    },
};
use base::DType;
use graph::{Func, NodeId, Op, Value, op::MapFn};
use std::collections::{BTreeMap, BTreeSet};

/// Two products and their gate.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Gate {
    /// The products: what goes through the gate's function, and what it is multiplied by.
    pub products: [NodeId; 2],
    /// The map of both.
    pub map: NodeId,
    /// Where it is a factor of the map that is rounded: the function of the first product.
    pub factor: Option<NodeId>,
    /// The gather that only they read.
    pub gather: Option<NodeId>,
}

impl Gate {
    /// Where its step stands: everything it reads is there.
    fn at(&self) -> NodeId {
        self.products[0].max(self.products[1])
    }
}

/// The gates of a function, by form.
pub(crate) fn find(func: &Func) -> Vec<Gate> {
    let mut users: BTreeMap<Value, BTreeSet<NodeId>> = BTreeMap::new();
    for (id, node) in func.nodes.iter() {
        node.inputs.iter().for_each(|v| {
            users.entry(*v).or_default().insert(id);
        });
    }
    let is_output = |v: Value| func.outputs.iter().any(|o| o.value == v);
    let product = |v: Value| match &func.def(v).op {
        Op::GroupedContract { transposed } if !is_output(v) => Some(*transposed),
        _ => None,
    };
    let gate = |(map, node): (NodeId, &graph::Node)| {
        let silu = |v: &Value| matches!(func.def(*v).op, Op::Map(MapFn::Silu)) && !is_output(*v);
        let (a, b, factor) = match (&node.op, node.inputs.as_slice()) {
            (Op::Map(MapFn::Swiglu), [a, b]) => (*a, *b, None),
            (Op::Map(MapFn::Mul), [s, b] | [b, s]) if silu(s) => (func.def(*s).inputs[0], *b, Some(s.node)),
            _ => return None,
        };
        let (p, q) = (func.def(a), func.def(b));
        let alike = product(a)? == product(b)? && p.inputs[0] == q.inputs[0] && p.inputs[2] == q.inputs[2];
        let narrow = matches!(node.types[0].dtype, DType::BF16 | DType::F16);
        let empty = node.types[0].elems().is(0);
        if !alike || !narrow || empty || a == b || is_output(Value { node: map, index: 0 }) {
            return None;
        }
        let (x, products) = (p.inputs[0], [a.node, b.node]);
        let alone = !is_output(x) && users.get(&x).is_some_and(|u| *u == BTreeSet::from(products));
        let rows = matches!(func.def(x).op, Op::Gather { batch: 0 }) && func.ty(func.def(x).inputs[0]).rank() == 2;
        Some(Gate { products, map, factor, gather: (alone && rows && func.ty(x).rank() == 2).then_some(x.node) })
    };
    func.nodes.iter().filter_map(gate).collect()
}

/// The gates whose parts are steps of their own and stand so that one step may do for them, by its place.
pub(super) fn steps(func: &Func, grouping: &Grouping) -> BTreeMap<NodeId, Gate> {
    let stands = |g: &Gate| {
        let first = Value { node: g.products[0].min(g.products[1]), index: 0 };
        let between = (first.node.0 + 1..g.at().0).map(|i| &grouping.reads[i as usize]);
        let stored = |n: NodeId| grouping.root[n.0 as usize];
        stored(g.map) && !g.factor.is_some_and(stored) && !between.into_iter().any(|r| r.contains(&first))
    };
    find(func).into_iter().filter(stands).map(|g| (g.at(), g)).collect()
}

impl Gate {
    /// The nodes that have no steps.
    pub(super) fn skipped(&self) -> impl Iterator<Item = NodeId> + '_ {
        let first = self.products[0].min(self.products[1]);
        [first, self.map].into_iter().chain(self.gather)
    }
}

impl Lowerer<'_> {
    /// The step of a gate, and the places of its results.
    pub(super) fn gate(&mut self, b: &mut Body, g: &Gate) {
        let func = b.func;
        let value = |node: NodeId| Value { node, index: 0 };
        let nodes = g.products.map(|p| &func.nodes[p]);
        let Op::GroupedContract { transposed } = nodes[0].op else { base::bug!("a product of ragged rows") };
        let (x, offsets) = (nodes[0].inputs[0], nodes[0].inputs[2]);
        let (x_ty, w_ty, y_ty) = (func.ty(x).clone(), func.ty(nodes[0].inputs[1]).clone(), func.ty(value(g.map)).clone());
        let (source, index) = match g.gather {
            Some(gather) => {
                let [from, index] = func.nodes[gather].inputs[..] else { base::bug!("a gather of two operands") };
                (from, Some(index))
            }
            None => (x, None),
        };
        let taken = index.map(|_| func.ty(source).shape[0].clone());
        let mut views = vec![self.dense(b, source).at];
        views.extend(nodes.map(|n| self.dense(b, n.inputs[1]).at));
        let aligned = views.iter().all(|v| is_aligned(v, x_ty.dtype));
        views.extend(index.map(|i| self.dense(b, i).at));
        views.push(self.dense(b, offsets).at);
        let result = self.alloc(&y_ty, false, b.depth);
        views.push(result.at.clone());
        b.places[g.map.0 as usize][0] = Some(result);
        let read = |p: NodeId| {
            let readers = b.grouping.reads.iter().enumerate().filter(|(_, r)| r.contains(&value(p)));
            readers.map(|(i, _)| i).any(|i| i != g.map.0 as usize)
        };
        let kept = g.products.map(read).contains(&true);
        if kept {
            for p in g.products {
                let view = self.alloc(&y_ty, false, b.depth);
                views.push(view.at.clone());
                b.places[p.0 as usize][0] = Some(view);
            }
        }
        let extents = [w_ty.shape[0].clone(), x_ty.shape[0].clone(), x_ty.shape[1].clone(), y_ty.shape[1].clone()];
        let [groups, rows, k, n] = extents.clone();
        // Two products of the same rows.
        let work = Work { class: Class::GroupedProduct, dtype: x_ty.dtype, shape: vec![groups, rows, n.clone() + n, k] };
        let dtype = x_ty.dtype;
        let swiglu = |_: &mut Build, x: &[Expr]| match g.factor {
            None => Expr::Map(MapFn::Swiglu, x.to_vec()),
            Some(_) => Expr::map1(MapFn::Silu, x[0].clone()).cast(dtype) * x[1].clone(),
        };
        let p = Grouped { dtype: x_ty.dtype, extents, rows: Some(transposed), aligned };
        let kernel = gpu_grouped_map(&p, &Epilogue { taken, matrices: 2, kept, map: Some(&swiglu) }, None);
        let step = self.launch(kernel, views, func.nodes[g.map].origin, work);
        b.steps.push(step);
    }
}
