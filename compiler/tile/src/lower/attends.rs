//! Regions of the form `attend` as one kernel, for a device on which attention is one: a map of its result at each element, which may read others' values
//! there, as the gate of one branch of several and the sum of the others. See `kernels::gpu_attend::Ending`. Or sums of such maps over columns. Or the attention
//! and its scores, of queries that are few, as in a step of decoding that chooses by them: keys are read once.

use super::{Body, Lowerer, below, is_aligned, is_layout, is_set, products::Maps};
use crate::{
    cost,
    fused::{Select, joins},
    ir::Expr,
    kernels::{
        build::Build,
        domain::Problem,
        gpu_attend::{self, AtEnd, Ending, MapOfElement, Tiling, gpu_attend_map},
        gpu_attend_by_block,
        gpu_attend_parts::{self, gpu_attend_merge_map, gpu_attend_part, gpu_attend_part_scores, gpu_attend_two_parts},
        gpu_attend_union,
        gpu_product::Element,
    },
    view::StridedView,
};
use base::{DType, Dim, Span, TensorType};
use graph::{
    Func, Node, NodeId, Op, Value,
    op::{Domain, Form, Fused, MapFn, ReduceFn},
};
use library::Work;
use std::collections::BTreeSet;

/// An attention in parts that is still to be launched.
pub(super) struct Waiting {
    problem: Problem,
    /// What it is given: q, k, v, and operands of the domain.
    given: Vec<library::View>,
    /// Its o and lse, and in how many parts.
    results: [library::View; 2],
    parts: Dim,
    work: Work,
}

/// A region that can be computed so.
#[derive(Clone, Debug)]
pub(crate) struct Attends<'a> {
    func: &'a Func,
    /// The attention.
    node: NodeId,
    problem: Problem,
    /// What the map reads beside its result: arguments.
    operands: Vec<Value>,
    /// The result of the map; none where sums or scores are given.
    mapped: Option<Value>,
    /// Sums of maps over columns, those that are of the same terms together.
    summed: Vec<Vec<Value>>,
    /// The scores.
    scores: Option<Value>,
}

/// What is joined to values, along their columns, to be an attention's keys: a kernel reads both and no keys.
pub fn joined_to_values(func: &Func, attend: &Node) -> Option<Value> {
    let Op::Attend(a) = &attend.op else { return None };
    let rows = |v: Value| {
        let node = func.def(v);
        let same = matches!(node.op, Op::Reshape(_)) && func.ty(v).shape.last() == func.ty(node.inputs[0]).shape.last();
        if same { node.inputs[0] } else { v }
    };
    let keys = rows(attend.inputs[1]);
    let (Op::Concat(axis), [first, rest]) = (&func.def(keys).op, &func.def(keys).inputs[..]) else { return None };
    let types: Vec<&TensorType> = attend.inputs.iter().map(|v| func.ty(*v)).collect();
    let p = Problem { shared: true, ..Problem::new(a, &types, 3).ok()? };
    let joined = axis + 1 == func.ty(keys).rank() && rows(*first) == rows(attend.inputs[2]);
    (joined && gpu_attend::shares(&p) && gpu_attend::takes(&p, Tiling::choose(&p), true)).then_some(*rest)
}

/// Whether values are the same but for what was widened on the way, which kernels compute with anyway.
fn is_same(func: &Func, x: Value, y: Value) -> bool {
    let narrow = |mut v: Value| {
        while let Op::Cast(to) = func.def(v).op {
            let of = func.def(v).inputs[0];
            let wider = [func.ty(of).dtype, to].iter().all(|t| t.is_float()) && func.ty(of).dtype.bytes() < to.bytes();
            if !wider {
                break;
            }
            v = of;
        }
        v
    };
    let (x, y) = (narrow(x), narrow(y));
    let (n, m) = (func.def(x), func.def(y));
    let alike = |of: &[Value]| n.inputs.len() == of.len() && n.inputs.iter().zip(of).all(|(a, b)| is_same(func, *a, *b));
    let turned: Vec<Value> = m.inputs.iter().rev().copied().collect();
    let commutes = matches!(n.op, Op::Map(MapFn::Mul | MapFn::Add));
    x == y || matches!(n.op, Op::Map(_)) && n.op == m.op && (alike(&m.inputs) || commutes && alike(&turned))
}

/// The scores of an attention, and the nodes that give them: a product of nothing but its queries and keys, in f32, in the order `[b, t, h, s]`.
fn scores_of(func: &Func, attend: &Node) -> Option<(Value, BTreeSet<NodeId>)> {
    let mut products = func.nodes.iter().filter(|(_, n)| matches!(n.op, Op::Contract(_)));
    let ((id, node), None) = (products.next()?, products.next()) else { return None };
    let Op::Contract(c) = &node.op else { return None };
    let mut nodes = BTreeSet::from([id]);
    let mut below = |v: Value, f: fn(&Op) -> bool| {
        let mut v = v;
        while f(&func.def(v).op) {
            nodes.insert(v.node);
            v = func.def(v).inputs[0];
        }
        v
    };
    let q = below(node.inputs[0], |op| matches!(op, Op::Cast(DType::F32) | Op::Reshape(_)));
    let k = below(node.inputs[1], |op| matches!(op, Op::Cast(DType::F32)));
    // Heads are one axis or groups of some.
    let (Some((d, rows)), [b, s, g, depth]) = (c.lhs.split_last(), &c.rhs[..]) else { return None };
    let out: Vec<char> = rows.iter().chain([s]).copied().collect();
    let (queries, shape) = (func.ty(attend.inputs[0]), &func.ty(node.inputs[0]).shape);
    let of_heads = shape[..shape.len() - 1].iter().skip(2).fold(Dim::from(1), |n, x| n * x.clone());
    let alike = (b, g, depth) == (&rows[0], rows.get(2)?, d) && !c.lhs.contains(s) && c.out == out;
    let whole = shape[..2] == queries.shape[..2] && of_heads == queries.shape[2];
    let fits = [q, k] == attend.inputs[..2] && alike && whole && node.types[0].dtype == DType::F32;
    fits.then_some((Value { node: id, index: 0 }, nodes))
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
        let once = [o, lse].iter().all(|v| func.outputs.iter().filter(|out| out.value == *v).count() <= 1);
        if let Some((scores, nodes)) = scores_of(func, attend) {
            let all = func.nodes.iter().all(|(id, n)| id == node || nodes.contains(&id) || matches!(n.op, Op::Arg(_)));
            let given = func.outputs.iter().filter(|out| out.value != o && out.value != lse).map(|out| out.value);
            let fits =
                takes && once && all && given.eq([scores]) && problem.domain == Domain::Full && problem.dv <= gpu_attend::WIDEST;
            let tiling = Tiling::choose(&problem);
            let few = fits
                && problem.t.known().is_some_and(|t| t <= tiling.queries())
                && gpu_attend_parts::num_parts(&problem, tiling, 1).is_some();
            let scores = Some(scores);
            let (operands, summed) = (Vec::new(), Vec::new());
            return few.then_some(Attends { func, node, problem, operands, mapped: None, summed, scores });
        }
        let is_given = |id: NodeId| {
            let outputs = func.outputs.iter().filter(|o| o.value.node == id).count();
            outputs == 1 && !func.nodes.values().any(|n| n.inputs.iter().any(|v| v.node == id))
        };
        let (mut above, mut operands) = (vec![false; func.nodes.len()], Vec::new());
        for (id, n) in func.nodes.iter() {
            let below = n.inputs.iter().any(|v| above[v.node.0 as usize]);
            let of_sums = n.inputs.contains(&lse);
            above[id.0 as usize] = match &n.op {
                Op::Attend(_) => true,
                Op::Arg(_) | Op::Const(..) => false,
                Op::Map(_) | Op::Cast(_) if !of_sums => below,
                Op::Broadcast { .. } if !below => false,
                // A sum over columns, which nothing else here is of.
                Op::Reduce(ReduceFn::Sum, axes) if !of_sums && axes[..] == [3] && is_given(id) => false,
                _ => return None,
            };
            if id != node {
                operands.extend(n.inputs.iter().copied().filter(is_arg));
            }
        }
        operands.sort_unstable();
        operands.dedup();
        let given: Vec<Value> = func.outputs.iter().map(|o| o.value).filter(|v| *v != o && *v != lse).collect();
        let is_map = |v: Value| {
            let (y, of) = (func.ty(v), func.ty(o));
            let stored = matches!(y.dtype, DType::BF16 | DType::F16 | DType::F32);
            above[v.node.0 as usize] && y.shape == of.shape && stored
        };
        let tiling = Tiling::choose(&problem);
        let whole = gpu_attend_parts::num_parts(&problem, tiling, 1).is_none();
        let takes_sums = |count: usize| whole && gpu_attend::takes_sums(&problem, tiling, count);
        if let [mapped] = given[..]
            && is_map(mapped)
        {
            let (mapped, summed) = (Some(mapped), Vec::new());
            return (takes && once).then_some(Attends { func, node, problem, operands, mapped, summed, scores: None });
        }
        let terms = |v: Value| if let Op::Reduce(..) = func.def(v).op { Some(func.def(v).inputs[0]) } else { None };
        let mut summed: Vec<Vec<Value>> = Vec::new();
        for v in given {
            let x = terms(v).filter(|x| is_map(*x) && func.ty(v).dtype.is_float())?;
            match summed.iter_mut().find(|all| terms(all[0]).is_some_and(|y| is_same(func, x, y))) {
                Some(all) => all.push(v),
                None => summed.push(vec![v]),
            }
        }
        let fits = takes && once && !summed.is_empty() && takes_sums(summed.len());
        fits.then_some(Attends { func, node, problem, operands, mapped: None, summed, scores: None })
    }
    /// What is read at the end of a tile.
    pub(crate) fn read(&self) -> impl Iterator<Item = &'a TensorType> {
        let func = self.func;
        self.operands.clone().into_iter().map(move |v| func.ty(v))
    }
    /// What is given of the result's shape, or scores.
    pub(crate) fn given(&self) -> impl Iterator<Item = &'a TensorType> {
        let (func, lse) = (self.func, Value { node: self.node, index: 1 });
        func.outputs.iter().map(|o| o.value).filter(move |v| *v != lse).map(move |v| func.ty(v))
    }
    /// The attention's result.
    pub(crate) fn result(&self) -> &'a TensorType {
        &self.func.nodes[self.node].types[0]
    }
    /// Whether an argument has the result's axes wherever the map reads it.
    fn reads_whole(&self, arg: usize) -> bool {
        let v = Value { node: NodeId(arg as u32), index: 0 };
        let users = self.func.nodes.values().filter(|n| n.inputs.contains(&v));
        let maps = |n: &graph::Node| matches!(n.op, Op::Map(_) | Op::Cast(_));
        self.func.ty(v).shape == self.result().shape && { users }.all(maps)
    }
    /// Whether several blocks share a processor: those that go over lists, whose rows are one warp group's.
    pub(crate) fn shares_processors(&self) -> bool {
        gpu_attend_union::lists(&self.problem, Tiling::choose(&self.problem)).is_some()
    }
    /// What a node of this region is given for an argument.
    fn outside(&self, node: &Node, v: Value) -> Value {
        match self.func.def(v).op {
            Op::Arg(i) => node.inputs[i as usize],
            _ => base::bug!("an argument of the region"),
        }
    }
    /// What the attention does.
    pub(crate) fn work(&self) -> Work {
        let node = &self.func.nodes[self.node];
        let types: Vec<&TensorType> = node.inputs.iter().map(|v| self.func.ty(*v)).collect();
        cost::work(&node.op, &types, &node.types)
    }
}

impl Lowerer<'_> {
    /// Into how many parts an attention's keys are divided here, if they are.
    fn num_parts(&self, p: &Problem) -> Option<Dim> {
        gpu_attend_parts::num_parts(p, Tiling::choose(p), self.fewest(&p.t))
    }
    /// Memory for the parts of an attention: o and lse.
    pub(super) fn parts_of(&mut self, p: &Problem, parts: &Dim, depth: usize) -> [library::View; 2] {
        let [.., o, lse] = p.elems();
        [o, lse].map(|n| self.alloc(&TensorType::new(p.sum_dtype(), vec![n * parts.clone()]), false, depth).at)
    }
    /// An attention of which only parts are computed, as all that reads it is a map of another in parts, which joins both; whether it is one.
    pub(super) fn attend_in_parts(&mut self, b: &mut Body, id: NodeId) -> bool {
        let node = b.func.nodes[id].clone();
        let (Op::Attend(a), true, None) = (&node.op, self.options.products, joined_to_values(b.func, &node)) else {
            return false;
        };
        let types: Vec<&TensorType> = node.inputs.iter().map(|v| b.func.ty(*v)).collect();
        let distinct = node.inputs.iter().skip(3).all(|v| is_set(b.func, *v));
        let Ok(p) = Problem::new(a, &types, 3).map(|p| Problem { distinct, ..p }) else { return false };
        let (tiling, work) = (Tiling::choose(&p), cost::work(&node.op, &types, &node.types));
        let taken = gpu_attend_by_block::choose(&p).is_none() && gpu_attend::takes(&p, tiling, true);
        let [o, lse] = [0, 1].map(|index| Value { node: id, index });
        let alone = !b.outputs.contains_key(&lse) && !b.grouping.reads.iter().any(|r| r.contains(&lse));
        let parts = self.num_parts(&p).filter(|_| taken && alone && self.is_joined_by_map(b, o, &p));
        let Some(parts) = parts else { return false };
        let given = self.given(b, &node.inputs);
        let results = self.parts_of(&p, &parts, b.depth);
        b.in_parts.insert(o, (results.clone(), parts.clone()));
        // Until it is joined nothing may write over what it reads.
        let stays = |v: &library::View| b.targets.iter().all(|t| t.replaces.is_none() || t.view.at.buffer != v.buffer);
        if given.iter().all(stays) {
            b.waiting.insert(o, Waiting { problem: p, given, results, parts, work });
        } else {
            let views = given.into_iter().chain(results).collect();
            let step = self.launch(gpu_attend_part(&p, tiling, &parts), views, node.origin, work);
            b.steps.push(step);
        }
        true
    }
    /// The launches of an attention in parts and of those that wait for it: one of them is in the same launch, if queries are the same. What that launch does.
    fn launch_parts(&mut self, b: &mut Body, own: Waiting, others: Vec<Waiting>, origin: Option<Span>) -> Work {
        let tiling = Tiling::choose(&own.problem);
        let mut beside: Option<Waiting> = None;
        for w in others {
            let alike = w.given[0] == own.given[0]
                && gpu_attend_parts::same_queries(&w.problem, &own.problem)
                && Tiling::choose(&w.problem) == tiling;
            if alike && beside.is_none() {
                beside = Some(w);
                continue;
            }
            let kernel = gpu_attend_part(&w.problem, Tiling::choose(&w.problem), &w.parts);
            let step = self.launch(kernel, w.given.into_iter().chain(w.results).collect(), origin, w.work);
            b.steps.push(step);
        }
        let (kernel, views, work) = match beside {
            None => (gpu_attend_part(&own.problem, tiling, &own.parts), [own.given, own.results.into()].concat(), own.work),
            Some(w) => {
                let kernel = gpu_attend_two_parts([&own.problem, &w.problem], tiling, [&own.parts, &w.parts]);
                let work = cost::of_both(own.work, &w.work);
                (kernel, [&own.given[..], &w.given[1..], &own.results, &w.results].concat(), work)
            }
        };
        let step = self.launch(kernel, views, origin, work.clone());
        b.steps.push(step);
        work
    }
    /// Whether all that reads an attention's result is the map of another of the same extents in parts.
    fn is_joined_by_map(&self, b: &Body, o: Value, p: &Problem) -> bool {
        let mut readers = b.func.nodes.ids().filter(|r| b.grouping.reads[r.0 as usize].contains(&o));
        let (Some(reader), None) = (readers.next(), readers.next()) else { return false };
        let node = &b.func.nodes[reader];
        let Op::Fused(region) = &node.op else { return false };
        let Some(a) = Attends::of(region).filter(|_| region.form == Form::Attend) else { return false };
        // A view of a result has to find it in memory.
        let once = node.inputs.iter().filter(|v| below(b.func, **v) == o).count() == 1 && !b.outputs.contains_key(&o);
        let at = node.inputs.iter().position(|v| *v == o).filter(|_| once);
        let Some(at) = at else { return false };
        // As the reader will see it: its lists may have something twice, and are no parts then.
        let given = |v: &Value| if let Op::Arg(i) = a.func.def(*v).op { Some(node.inputs[i as usize]) } else { None };
        let lists = a.func.nodes[a.node].inputs.iter().skip(3).filter_map(given).collect::<Vec<_>>();
        let distinct = lists.iter().all(|v| is_set(b.func, *v));
        let other = Problem { distinct, ..a.problem.clone() };
        let of_map = a.operands.iter().any(|v| matches!(a.func.def(*v).op, Op::Arg(i) if i as usize == at));
        let of_attend = a.func.nodes[a.node].inputs.iter().any(|v| matches!(a.func.def(*v).op, Op::Arg(i) if i as usize == at));
        let same = other.elems()[3..] == p.elems()[3..] && other.dtype == p.dtype && a.reads_whole(at);
        of_map && !of_attend && same && self.num_parts(&other).is_some()
    }
    /// Whether all that reads the sums of an attention's scores are choices by these, which join parts of them.
    fn is_joined_by_choices(&self, b: &Body, lse: Value) -> bool {
        let reads = |n: &Node| n.inputs.iter().any(|v| below(b.func, *v) == lse);
        let mut readers = b.func.nodes.values().filter(|n| !is_layout(&n.op) && reads(n));
        let joins = |n: &Node| {
            let Op::Fused(region) = &n.op else { return false };
            let Some(select) = Select::of(region).filter(|_| region.form == Form::Select) else { return false };
            n.inputs.iter().enumerate().all(|(i, v)| below(b.func, *v) != lse || joins(&select, i))
        };
        let given = b.outputs.keys().any(|v| below(b.func, *v) == lse);
        !given && readers.all(joins)
    }
    /// What an attention is given, where rectangles of it can be copied.
    fn given(&mut self, b: &mut Body, inputs: &[Value]) -> Vec<library::View> {
        let mut views = Vec::new();
        for v in inputs {
            let (view, dtype) = (self.dense(b, *v), b.func.ty(*v).dtype);
            let view = if is_aligned(&view.at, dtype) { view } else { self.copied(b, &view, dtype) };
            views.push(view.at);
        }
        views
    }
    /// The steps of an attention whose scores are given.
    fn attend_and_scores(&mut self, b: &mut Body, id: NodeId, a: &Attends, scores: Value) {
        let (node, p) = (b.func.nodes[id].clone(), &a.problem);
        let given: Vec<Value> = a.func.nodes[a.node].inputs.iter().map(|v| a.outside(&node, *v)).collect();
        let (tiling, work) = (Tiling::choose(p), a.work());
        let parts = self.num_parts(p).expect("queries are few");
        let result = |v: Value| a.func.outputs.iter().position(|o| o.value == v).map(|i| Value { node: id, index: i as u32 });
        let [o, lse, scores] = [Value { node: a.node, index: 0 }, Value { node: a.node, index: 1 }, scores].map(result);
        let scores = scores.expect("they are given");

        let mut views = self.given(b, &given);
        let aside = self.parts_of(p, &parts, b.depth);
        views.extend(aside.clone());
        let (view, add_to) = self.fresh_destination(b, scores);
        views.push(view.at.clone());
        let step = self.launch(gpu_attend_part_scores(p, tiling, &parts), views, node.origin, work.clone());
        b.steps.push(step);
        self.finish(b, scores, view, add_to);

        // What joins the parts of the result with those of others leaves the sums' to be joined here.
        let mut views: Vec<library::View> = aside.clone().into();
        let joined = o.filter(|o| self.is_joined_by_map(b, *o, p));
        b.in_parts.extend(joined.map(|o| (o, (aside, parts.clone()))));
        let kept = o.filter(|_| joined.is_none());
        // So do choices by the scores with their sums.
        let chosen = lse.filter(|lse| self.is_joined_by_choices(b, *lse));
        if let Some(lse) = chosen {
            let ty = b.func.ty(lse);
            let first = StridedView::contiguous(views[1].clone(), &ty.shape);
            b.places[lse.node.0 as usize][lse.index as usize] = Some(first);
            b.sums_in_parts.insert(lse, parts.clone());
        }
        let lse = lse.filter(|_| chosen.is_none());
        let results: Vec<_> = kept.into_iter().chain(lse).map(|v| (v, self.fresh_destination(b, v))).collect();
        if results.is_empty() {
            return;
        }
        views.extend(results.iter().map(|(_, (view, _))| view.at.clone()));
        if lse.is_none() {
            views.push(self.alloc(&a.func.nodes[a.node].types[1], false, b.depth).at);
        }
        let step = self.launch(gpu_attend_parts::gpu_attend_merge(p, &parts, kept.is_some()), views, node.origin, work);
        b.steps.push(step);
        results.into_iter().for_each(|(v, (view, add_to))| self.finish(b, v, view, add_to));
    }
    /// The steps of such a region.
    pub(super) fn attends(&mut self, b: &mut Body, id: NodeId, a: &Attends) {
        if let Some(scores) = a.scores {
            return self.attend_and_scores(b, id, a, scores);
        }
        let node = b.func.nodes[id].clone();
        let outside = |v: Value| a.outside(&node, v);
        let given = a.func.nodes[a.node].inputs.clone();
        let mut views = self.given(b, &given.iter().map(|v| outside(*v)).collect::<Vec<_>>());
        let distinct = given.iter().skip(3).all(|v| is_set(b.func, outside(*v)));
        let p = &Problem { distinct, ..a.problem.clone() };
        let (tiling, mut work) = (Tiling::choose(p), a.work());
        // The parts of it, and of what the map reads.
        let parts = self.num_parts(p);
        let mut of_parts = Vec::new();
        let mut merged: Vec<(Value, Dim)> = Vec::new();
        if let Some(parts) = &parts {
            let aside = self.parts_of(p, parts, b.depth);
            let own = Waiting { problem: p.clone(), given: views, results: aside.clone(), parts: parts.clone(), work };
            let others = a.operands.iter().filter_map(|v| b.waiting.remove(&outside(*v))).collect();
            work = self.launch_parts(b, own, others, node.origin);
            views = aside.into();
            for v in &a.operands {
                if let Some((aside, parts)) = b.in_parts.remove(&outside(*v)) {
                    views.extend(aside);
                    merged.push((*v, parts));
                }
            }
            of_parts = [parts].into_iter().chain(merged.iter().map(|(_, n)| n)).cloned().collect();
        }
        if let Some(lists) = gpu_attend_union::lists(p, tiling) {
            let memories = gpu_attend_union::memories(p, tiling);
            let union: Vec<library::View> = memories.iter().map(|ty| self.alloc(ty, false, b.depth).at).collect();
            let buffers = [&views[3 + lists..4 + lists], &union[..]].concat();
            let step = self.launch(gpu_attend_union::gpu_attend_union(p, tiling), buffers, node.origin, work.clone());
            b.steps.push(step);
            views.extend(union);
        }
        let operands: Vec<Value> = a.operands.iter().copied().filter(|v| merged.iter().all(|(m, _)| m != v)).collect();
        let seen: Vec<StridedView> = operands.iter().map(|v| self.strided(b, outside(*v))).collect();
        views.extend(seen.iter().map(|v| v.at.clone()));

        // What the attention gives beside its map, and the map, each where it goes; rectangles go to where they can be copied.
        let sums = |index: u32| Value { node: a.node, index };
        let (mut keeps, mut late) = (false, Vec::new());
        for v in [sums(0), sums(1)].into_iter().chain(a.mapped).chain(a.summed.iter().flatten().copied()) {
            let ty = a.func.ty(v);
            match a.func.outputs.iter().position(|o| o.value == v) {
                Some(i) => {
                    let result = Value { node: id, index: i as u32 };
                    let (view, add_to) = self.fresh_destination(b, result);
                    let rectangle = v == sums(0) || a.mapped == Some(v);
                    let aside = (rectangle && !is_aligned(&view.at, ty.dtype)).then(|| self.alloc(ty, false, b.depth));
                    views.push(aside.as_ref().unwrap_or(&view).at.clone());
                    keeps |= v == sums(0);
                    late.push((result, ty.dtype, view, aside, add_to));
                }
                None if v == sums(0) => {}
                None => views.push(self.alloc(ty, false, b.depth).at),
            }
        }
        let read = operands.iter().zip(&seen).map(|(v, view)| (a.func.ty(*v).dtype, view.span())).collect();
        let (shape, axes, loops) = (&a.result().shape, [0, 1, 2, 3], [vec![0, 1, 2], vec![3]]);
        let eval = &|build: &mut Build, element: &Element, v: Value| -> Expr {
            let others = merged.iter().zip(&element.products[1..]);
            let known = others.map(|((v, _), x)| (*v, axes.to_vec(), 0, x.clone())).collect();
            let (sums, func) = (&[sums(0)][..], a.func);
            let mut maps =
                Maps { func, sums, operands: &operands, views: &seen, shape, loops: &loops, element, units: None, known };
            maps.eval(build, v, &axes, 0)
        };
        let dtype = |v: Value| a.func.ty(v).dtype;
        // A map, or what is summed of each.
        let terms = a.mapped.into_iter().chain(a.summed.iter().map(|all| a.func.def(all[0]).inputs[0]));
        let maps: Vec<_> = terms.map(|v| move |b: &mut Build, e: &Element| eval(b, e, v)).collect();
        let gives = match a.mapped {
            Some(v) => AtEnd::Map(dtype(v), &maps[0]),
            None => {
                let of = |all: &Vec<Value>| all.iter().map(|v| dtype(*v)).collect();
                let sums = a.summed.iter().zip(&maps).map(|(all, map)| (of(all), map as &MapOfElement));
                AtEnd::Sums(sums.collect())
            }
        };
        let ending = Ending { operands: read, keeps, gives };
        let kernel = match of_parts.is_empty() {
            true => gpu_attend_map(p, tiling, &ending),
            false => gpu_attend_merge_map(p, &of_parts, &ending),
        };
        let step = self.launch(kernel, views, node.origin, work);
        b.steps.push(step);
        for (v, dtype, view, aside, add_to) in late {
            if let Some(aside) = aside {
                self.copy(&mut b.steps, &aside, &view, dtype, false);
            }
            self.finish(b, v, view, add_to);
        }
    }
}
