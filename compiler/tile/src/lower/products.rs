//! Regions of the form `product` as one kernel, for a device on which products are kernels: products of the same ragged rows, each with its group's
//! matrices, and maps of them at each element, which may read others' values there. Rows that are taken by index inside come with their loads
//! and are never stored. See `kernels::gpu_product::Epilogue`.

use super::{Body, Lowerer, is_aligned};
use crate::{
    cost,
    fused::constant,
    ir::Expr,
    kernels::{
        build::Build,
        gpu_product::{Element, Epilogue, Grouped, gpu_grouped_map},
    },
    view::StridedView,
};
use base::{DType, Dim, TensorType};
use graph::{Func, NodeId, Op, Value};
use library::Work;

/// Matrices that the registers of a kernel have sums for.
const MOST_MATRICES: usize = 2;

/// A region that can be computed so.
#[derive(Clone, Debug)]
pub(crate) struct Products<'a> {
    func: &'a Func,
    /// The products, with one orientation of their matrices.
    products: Vec<NodeId>,
    transposed: bool,
    /// The argument that rows are of, or are taken from by the indices.
    x: Value,
    index: Option<Value>,
    offsets: Value,
    /// What the maps read beside the products: arguments.
    operands: Vec<Value>,
}

impl<'a> Products<'a> {
    /// The region as one, if it is.
    pub(crate) fn of(region: &'a graph::op::Fused) -> Option<Products<'a>> {
        let func = &region.body;
        let is_arg = |v: Value| matches!(func.def(v).op, Op::Arg(_));
        let products = func.nodes.iter().filter(|(_, n)| matches!(n.op, Op::GroupedContract { .. }));
        let products: Vec<NodeId> = products.map(|(id, _)| id).collect();
        let first = &func.nodes[*products.first()?];
        let Op::GroupedContract { transposed } = first.op else { return None };
        let (rows, offsets, ty) = (first.inputs[0], first.inputs[2], &first.types[0]);
        let (x, index) = match &func.def(rows).op {
            Op::Gather { batch: 0 } => (func.def(rows).inputs[0], Some(func.def(rows).inputs[1])),
            _ => (rows, None),
        };
        let rows_fit = func.ty(x).rank() == 2 && index.is_none_or(|i| func.ty(i).rank() == 1 && is_arg(i));
        let fits = is_arg(x) && is_arg(offsets) && rows_fit && products.len() <= MOST_MATRICES && ty.dtype != DType::E4M3;
        let (mut above, mut operands) = (vec![false; func.nodes.len()], Vec::new());
        for (id, node) in func.nodes.iter() {
            let below = node.inputs.iter().any(|v| above[v.node.0 as usize]);
            above[id.0 as usize] = match &node.op {
                Op::Arg(_) | Op::Const(..) => false,
                Op::Gather { .. } if index.is_some() && id == rows.node => false,
                Op::GroupedContract { transposed: t } => {
                    let alike = node.inputs[0] == rows && node.inputs[2] == offsets && *t == transposed;
                    if !alike || !is_arg(node.inputs[1]) || node.types[0] != *ty {
                        return None;
                    }
                    true
                }
                // What is gathered is in no memory to be mapped.
                Op::Map(_) | Op::Cast(_) if index.is_none() || !node.inputs.contains(&rows) => below,
                Op::Broadcast { .. } if !below && (index.is_none() || node.inputs[0] != rows) => false,
                _ => return None,
            };
            if matches!(node.op, Op::Map(_) | Op::Cast(_) | Op::Broadcast { .. }) {
                operands.extend(node.inputs.iter().copied().filter(|v| is_arg(*v)));
            }
        }
        operands.sort_unstable();
        operands.dedup();
        let given = |v: Value| {
            let of = func.ty(v);
            above[v.node.0 as usize] && of.shape == ty.shape && of.dtype.is_float()
        };
        let whole = fits && func.outputs.iter().all(|o| given(o.value));
        whole.then_some(Products { func, products, transposed, x, index, offsets, operands })
    }

    fn ty(&self, v: Value) -> &'a TensorType {
        self.func.ty(v)
    }
    /// The dtype of rows and matrices.
    fn dtype(&self) -> DType {
        self.ty(self.x).dtype
    }
    /// Groups, rows, k, n.
    pub(crate) fn extents(&self) -> [Dim; 4] {
        let first = &self.func.nodes[self.products[0]];
        let [rows, n] = &first.types[0].shape[..] else { base::bug!("a product of rows has two axes") };
        [self.ty(first.inputs[1]).shape[0].clone(), rows.clone(), self.ty(self.x).shape[1].clone(), n.clone()]
    }
    /// How many there are.
    pub(crate) fn count(&self) -> i64 {
        self.products.len() as i64
    }
    /// What the maps read, and what is given.
    pub(crate) fn traffic(&self) -> impl Iterator<Item = &'a TensorType> {
        let func = self.func;
        self.operands.clone().into_iter().chain(func.outputs.iter().map(|o| o.value)).map(|v| func.ty(v))
    }
    /// What the kernel does.
    pub(crate) fn work(&self) -> Work {
        let [groups, rows, k, n] = self.extents();
        Work {
            class: library::Class::GroupedProduct,
            dtype: self.dtype(),
            shape: vec![groups, rows, n * Dim::from(self.count()), k],
        }
    }
}

/// The maps at an element.
struct Maps<'a> {
    products: &'a Products<'a>,
    /// Where each operand is seen.
    views: &'a [StridedView],
    element: &'a Element,
    known: Vec<(Value, Vec<Expr>, Expr)>,
}

impl Maps<'_> {
    fn eval(&mut self, b: &mut Build, v: Value, at: &[Expr]) -> Expr {
        if let Some((.., e)) = self.known.iter().find(|(x, i, _)| *x == v && i == at) {
            return e.clone();
        }
        let (func, node) = (self.products.func, self.products.func.def(v));
        let e = match &node.op {
            Op::GroupedContract { .. } => {
                let i = self.products.products.iter().position(|p| *p == v.node).expect("a product of the region");
                self.element.products[i].clone()
            }
            Op::Arg(_) => {
                let i = self.products.operands.iter().position(|o| *o == v).expect("an operand of the maps");
                let mut index = Expr::int(0);
                for (x, stride) in at.iter().zip(&self.views[i].strides) {
                    index = index + x.clone() * b.dim(stride);
                }
                let index = b.bind(index);
                Expr::load(self.element.operands[i], index)
            }
            Op::Const(c, dtype) => constant(*c, *dtype),
            Op::Map(f) => Expr::Map(*f, node.inputs.iter().map(|x| self.eval(b, *x, at)).collect()),
            Op::Cast(to) => {
                let x = self.eval(b, node.inputs[0], at);
                if func.ty(node.inputs[0]).dtype == *to { x } else { x.cast(*to) }
            }
            Op::Broadcast { axes, .. } => {
                let inner: Vec<Expr> = axes.iter().map(|a| at[*a].clone()).collect();
                self.eval(b, node.inputs[0], &inner)
            }
            op => base::bug!("{} is no map", op.name()),
        };
        let e = b.bind(e);
        self.known.push((v, at.to_vec(), e.clone()));
        e
    }
}

impl Lowerer<'_> {
    /// The step of such a region.
    pub(super) fn products(&mut self, b: &mut Body, id: NodeId, p: &Products) {
        let node = b.func.nodes[id].clone();
        let operand = |v: Value| match p.func.def(v).op {
            Op::Arg(i) => node.inputs[i as usize],
            _ => base::bug!("an argument of the region"),
        };
        let matrices: Vec<Value> = p.products.iter().map(|x| p.func.nodes[*x].inputs[1]).collect();
        let mut views = vec![self.dense(b, operand(p.x)).at];
        views.extend(matrices.iter().map(|w| self.dense(b, operand(*w)).at).collect::<Vec<_>>());
        let mut aligned = views.iter().all(|v| is_aligned(v, p.dtype()));
        views.extend(p.index.map(|i| self.dense(b, operand(i)).at));
        views.push(self.dense(b, operand(p.offsets)).at);
        let seen: Vec<StridedView> = p.operands.iter().map(|v| self.strided(b, operand(*v))).collect();
        views.extend(seen.iter().map(|v| v.at.clone()));
        let mut places = Vec::new();
        for (i, ty) in node.types.iter().enumerate() {
            let (view, add_to) = self.fresh_destination(b, Value { node: id, index: i as u32 });
            aligned &= is_aligned(&view.at, ty.dtype);
            views.push(view.at.clone());
            places.push((view, add_to));
        }
        let product_of = |v: Value| p.products.iter().position(|x| *x == v.node);
        let results: Vec<(Option<usize>, DType)> =
            p.func.outputs.iter().map(|o| (product_of(o.value), p.ty(o.value).dtype)).collect();
        let mapped: Vec<Value> = p.func.outputs.iter().map(|o| o.value).filter(|v| product_of(*v).is_none()).collect();
        let map = |build: &mut Build, element: &Element| {
            let mut maps = Maps { products: p, views: &seen, element, known: Vec::new() };
            mapped.iter().map(|v| maps.eval(build, *v, &element.at)).collect()
        };
        let elems = |(v, view): (&Value, &StridedView)| {
            let axes = view.shape.iter().zip(&view.strides);
            (p.ty(*v).dtype, axes.fold(Dim::from(1), |n, (d, s)| n + (d.clone() - Dim::from(1)) * s.clone()))
        };
        let epilogue = Epilogue {
            taken: p.index.map(|_| p.ty(p.x).shape[0].clone()),
            matrices: p.products.len(),
            operands: p.operands.iter().zip(&seen).map(elems).collect(),
            results,
            map: Some(&map),
        };
        let grouped = Grouped { dtype: p.dtype(), extents: p.extents(), rows: Some(p.transposed), aligned };
        let kernel = gpu_grouped_map(&grouped, &epilogue, None);
        let types: Vec<&TensorType> = node.inputs.iter().map(|v| b.func.ty(*v)).collect();
        let step = self.launch(kernel, views, node.origin, cost::work(&node.op, &types, &node.types));
        b.steps.push(step);
        for (i, (view, add_to)) in places.into_iter().enumerate() {
            self.finish(b, Value { node: id, index: i as u32 }, view, add_to);
        }
    }
}
