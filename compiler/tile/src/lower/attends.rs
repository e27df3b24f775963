//! Regions of the form `attend` as one kernel, for a device on which attention is one: a map of its result at each element, which may read others' values
//! there, as the gate of one branch of several and the sum of the others. See `kernels::gpu_attend::Ending`.

use super::{Body, Lowerer, is_aligned, products::Maps};
use crate::{
    cost,
    ir::Expr,
    kernels::{
        build::Build,
        domain::Problem,
        gpu_attend::{self, Ending, Tiling, gpu_attend_map},
        gpu_attend_by_block, gpu_attend_union,
        gpu_product::Element,
    },
    view::StridedView,
};
use base::{DType, TensorType};
use graph::{Func, NodeId, Op, Value, op::Fused};
use library::Work;

/// A region that can be computed so.
#[derive(Clone, Debug)]
pub(crate) struct Attends<'a> {
    func: &'a Func,
    /// The attention.
    node: NodeId,
    problem: Problem,
    /// What the map reads beside its result: arguments.
    operands: Vec<Value>,
    /// The result of the map.
    mapped: Value,
}

impl<'a> Attends<'a> {
    /// The region as one, if it is.
    pub(crate) fn of(region: &'a Fused) -> Option<Attends<'a>> {
        let func = &region.body;
        let is_arg = |v: &Value| matches!(func.def(*v).op, Op::Arg(_));
        let mut all = func.nodes.iter().filter(|(_, n)| matches!(n.op, Op::Attend(_)));
        let ((node, attend), None) = (all.next()?, all.next()) else { return None };
        let Op::Attend(a) = &attend.op else { return None };
        let types: Vec<&TensorType> = attend.inputs.iter().map(|v| func.ty(*v)).collect();
        let problem = Problem::new(a, &types, 3).ok()?;
        let takes =
            gpu_attend::takes(&problem, Tiling::choose(&problem), true) && gpu_attend_by_block::choose(&problem).is_none();
        let takes = takes && attend.inputs.iter().all(is_arg);
        let (o, lse) = (Value { node, index: 0 }, Value { node, index: 1 });
        let (mut above, mut operands) = (vec![false; func.nodes.len()], Vec::new());
        for (id, n) in func.nodes.iter() {
            let below = n.inputs.iter().any(|v| above[v.node.0 as usize]);
            let of_sums = n.inputs.contains(&lse);
            above[id.0 as usize] = match &n.op {
                Op::Attend(_) => true,
                Op::Arg(_) | Op::Const(..) => false,
                Op::Map(_) | Op::Cast(_) if !of_sums => below,
                Op::Broadcast { .. } if !below => false,
                _ => return None,
            };
            if id != node {
                operands.extend(n.inputs.iter().copied().filter(is_arg));
            }
        }
        operands.sort_unstable();
        operands.dedup();
        let mut mapped = func.outputs.iter().map(|o| o.value).filter(|v| *v != o && *v != lse);
        let (mapped, None) = (mapped.next()?, mapped.next()) else { return None };
        let once = [o, lse].iter().all(|v| func.outputs.iter().filter(|out| out.value == *v).count() <= 1);
        let (y, of) = (func.ty(mapped), func.ty(o));
        let stored = matches!(y.dtype, DType::BF16 | DType::F16 | DType::F32);
        let fits = takes && once && above[mapped.node.0 as usize] && y.shape == of.shape && stored;
        fits.then_some(Attends { func, node, problem, operands, mapped })
    }
    /// What is read at the end of a tile.
    pub(crate) fn read(&self) -> impl Iterator<Item = &'a TensorType> {
        let func = self.func;
        self.operands.clone().into_iter().map(move |v| func.ty(v))
    }
    /// What is given of the result's shape.
    pub(crate) fn given(&self) -> impl Iterator<Item = &'a TensorType> {
        let (func, lse) = (self.func, Value { node: self.node, index: 1 });
        func.outputs.iter().map(|o| o.value).filter(move |v| *v != lse).map(move |v| func.ty(v))
    }
    /// The attention's result.
    pub(crate) fn result(&self) -> &'a TensorType {
        &self.func.nodes[self.node].types[0]
    }
    /// Whether several blocks share a processor: those that go over lists, whose rows are one warp group's.
    pub(crate) fn shares_processors(&self) -> bool {
        gpu_attend_union::lists(&self.problem, Tiling::choose(&self.problem)).is_some()
    }
    /// What the attention does.
    pub(crate) fn work(&self) -> Work {
        let node = &self.func.nodes[self.node];
        let types: Vec<&TensorType> = node.inputs.iter().map(|v| self.func.ty(*v)).collect();
        cost::work(&node.op, &types, &node.types)
    }
}

impl Lowerer<'_> {
    /// The steps of such a region.
    pub(super) fn attends(&mut self, b: &mut Body, id: NodeId, a: &Attends) {
        let node = b.func.nodes[id].clone();
        let outside = |v: Value| match a.func.def(v).op {
            Op::Arg(i) => node.inputs[i as usize],
            _ => base::bug!("an argument of the region"),
        };
        let given = a.func.nodes[a.node].inputs.clone();
        let mut views: Vec<library::View> = Vec::new();
        for v in &given {
            let (view, dtype) = (self.dense(b, outside(*v)), a.func.ty(*v).dtype);
            let view = if is_aligned(&view.at, dtype) { view } else { self.copied(b, &view, dtype) };
            views.push(view.at);
        }
        let (p, tiling) = (&a.problem, Tiling::choose(&a.problem));
        let work = a.work();
        if let Some(lists) = gpu_attend_union::lists(p, tiling) {
            let memories = gpu_attend_union::memories(p, tiling);
            let union: Vec<library::View> = memories.iter().map(|ty| self.alloc(ty, false, b.depth).at).collect();
            let buffers = [&views[3 + lists..4 + lists], &union[..]].concat();
            let step = self.launch(gpu_attend_union::gpu_attend_union(p, tiling), buffers, node.origin, work.clone());
            b.steps.push(step);
            views.extend(union);
        }
        let seen: Vec<StridedView> = a.operands.iter().map(|v| self.strided(b, outside(*v))).collect();
        views.extend(seen.iter().map(|v| v.at.clone()));

        // What the attention gives beside its map, and the map, each where it goes; rectangles go to where they can be copied.
        let sums = |index: u32| Value { node: a.node, index };
        let (mut keeps, mut late) = (false, Vec::new());
        for v in [sums(0), sums(1), a.mapped] {
            let ty = a.func.ty(v);
            match a.func.outputs.iter().position(|o| o.value == v) {
                Some(i) => {
                    let result = Value { node: id, index: i as u32 };
                    let (view, add_to) = self.fresh_destination(b, result);
                    let aside = (v != sums(1) && !is_aligned(&view.at, ty.dtype)).then(|| self.alloc(ty, false, b.depth));
                    views.push(aside.as_ref().unwrap_or(&view).at.clone());
                    keeps |= v == sums(0);
                    late.push((result, ty.dtype, view, aside, add_to));
                }
                None if v == sums(0) => {}
                None => views.push(self.alloc(ty, false, b.depth).at),
            }
        }
        let operands = a.operands.iter().zip(&seen).map(|(v, view)| (a.func.ty(*v).dtype, view.span())).collect();
        let (shape, axes, loops) = (&a.result().shape, [0, 1, 2, 3], [vec![0, 1, 2], vec![3]]);
        let map = |build: &mut Build, element: &Element| -> Expr {
            let (sums, known) = (&[sums(0)][..], Vec::new());
            let (func, operands) = (a.func, &a.operands);
            let mut maps = Maps { func, sums, operands, views: &seen, shape, loops: &loops, element, units: None, known };
            maps.eval(build, a.mapped, &axes, 0)
        };
        let ending = Ending { operands, keeps, dtype: a.func.ty(a.mapped).dtype, map: &map };
        let step = self.launch(gpu_attend_map(p, tiling, &ending), views, node.origin, work);
        b.steps.push(step);
        for (v, dtype, view, aside, add_to) in late {
            if let Some(aside) = aside {
                self.copy(&mut b.steps, &aside, &view, dtype, false);
            }
            self.finish(b, v, view, add_to);
        }
    }
}
