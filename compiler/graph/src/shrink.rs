//! Makes a module that shows a mistake small: as long as it still does, outputs, functions and nodes go, values become arguments or
//! constants, loops are opened, extents and dtypes get simple. In: a verified module and whether a module shows it. Out: a verified
//! module that does, and to which no single change can be made without losing it.
//!
//! Deterministic: changes are tried in a fixed order, each must make the module lighter. What a change does to the meaning is of no
//! matter, only that the graph stays whole.
//! # Source: Zeller and Hildebrandt, Simplifying and isolating failure-inducing input, 2002.

use crate::{
    build::Builder,
    ir::{Func, Module, Node, NodeId, Role, Value},
    op::{self, Domain, MapFn, Op, ReduceFn, Repeat, Scalar, map::Kind},
    passes::prune_dead,
    verify::verify,
};
use base::{DType, Dim, TensorType, arena::Id};
use std::collections::{BTreeMap, BTreeSet};

/// A module as small as it can be while `fails` of it; `module` itself if it does not.
pub fn shrink(module: &Module, fails: &mut dyn FnMut(&Module) -> bool) -> Module {
    let mut best = module.clone();
    if !fails(&best) {
        return best;
    }
    loop {
        // Where what nobody reads is needed for the mistake, nodes are taken away one by one.
        let tidied = tidy(&best);
        let tidies = fails(&tidied);
        if tidies {
            best = tidied;
        }
        let mut weight = weigh(&best);
        let before = weight;
        let mut at = 0;
        let mut list = changes(&best);
        while at < list.len() {
            let changed = apply(&best, &list[at]).map(|m| if tidies { tidy(&m) } else { m });
            match changed.filter(|m| weigh(m) < weight && verify(m).is_empty()).filter(|m| fails(m)) {
                // What was next stands at about the same place in the new list.
                Some(lighter) => {
                    best = lighter;
                    weight = weigh(&best);
                    list = changes(&best);
                }
                None => at += 1,
            }
        }
        if weight == before {
            return best;
        }
    }
}

/// A change to a module.
enum Change {
    /// This function alone.
    Keep(usize),
    /// Without some outputs.
    Outputs { func: usize, from: usize, len: usize },
    /// Another extent for a run-time dim.
    Dim(String, i64),
    /// A constant extent in place of another.
    Extent(i64, i64),
    /// A dtype in place of another.
    DType(DType, DType),
    /// At a node of a function, or of a loop's body that the nodes lead to.
    Node { func: usize, path: Vec<NodeId>, node: NodeId, how: How },
}

/// A change at a node.
#[derive(Clone)]
enum How {
    /// Its results are other values.
    Values(Vec<Value>),
    /// Its results are all that the function gives; what comes later goes.
    Only,
    /// Its results are arguments, in a loop's body further constants of the loop.
    Args,
    /// Its results are constants.
    Constants(f64),
    /// Another op.
    Op(Box<Op>, Vec<Value>),
    /// The body of a loop of one turn, or of a region.
    Inline,
    /// It goes, as nothing reads it.
    Drop,
}

/// What `shrink` lowers: functions, nodes with those in loops, outputs, arguments, extents, how simple ops are.
type Weight = (usize, usize, usize, usize, i64, usize);

fn weigh(module: &Module) -> Weight {
    let mut w = (module.funcs.len(), 0, 0, 0, 0, 0);
    for f in &module.funcs {
        w.2 += f.outputs.len();
        w.3 += f.args.len();
        of_func(f, &mut w);
    }
    w
}

fn of_func(func: &Func, w: &mut Weight) {
    // A run-time dim weighs more than any extent it may have.
    let extent = |d: &Dim| d.known().unwrap_or(1 << 20);
    for node in func.nodes.values() {
        w.1 += match &node.op {
            Op::Arg(_) => 0,
            Op::Const(..) => 1,
            Op::Broadcast { axes, .. } if axes.is_empty() => 2,
            Op::Repeat(_) | Op::Fused(_) => 40,
            Op::Concat(_) => 3 + node.inputs.len(),
            _ => 4,
        };
        w.4 += node.types.iter().flat_map(|t| &t.shape).map(extent).sum::<i64>();
        w.5 += node.types.iter().filter(|t| !matches!(t.dtype, DType::F32 | DType::I32 | DType::Bool)).count();
        match &node.op {
            Op::Attend(a) | Op::AttendGrad(a) => w.5 += of_domain(&a.domain),
            Op::Map(f) => w.5 += usize::from(!plain(*f)),
            Op::Reduce(f, _) => w.5 += usize::from(*f != ReduceFn::Sum),
            Op::Cumsum { exclusive, reverse, .. } => w.5 += usize::from(*exclusive) + usize::from(*reverse),
            Op::Repeat(r) => {
                w.4 += r.count;
                w.5 += usize::from(r.reverse);
                w.3 += r.body.args.len() + r.body.outputs.len();
                of_func(&r.body, w);
            }
            Op::Fused(f) => {
                w.3 += f.body.args.len() + f.body.outputs.len();
                of_func(&f.body, w);
            }
            Op::Const(c, _) => w.5 += usize::from(c.get() != 0.0 && c.get() != 1.0),
            Op::Slice { step, .. } => w.5 += *step as usize,
            Op::Arg(_)
            | Op::Extent(..)
            | Op::Iota(_)
            | Op::Cast(_)
            | Op::Broadcast { .. }
            | Op::Transpose(_)
            | Op::Reshape(_)
            | Op::Concat(_)
            | Op::Pad { .. }
            | Op::Contract(_)
            | Op::Gather { .. }
            | Op::ScatterAdd { .. }
            | Op::TopK(_)
            | Op::Route { .. }
            | Op::GroupedContract { .. }
            | Op::GroupedOuter
            | Op::Exchange { .. }
            | Op::Quantize(_)
            | Op::Dequantize(_)
            | Op::StopGradient => {}
        }
    }
}

fn of_domain(d: &Domain) -> usize {
    match d {
        Domain::Full => 0,
        Domain::Causal => 1,
        Domain::Window(_) | Domain::Prefix(_) | Domain::EndsBefore { .. } | Domain::EndsAt(_) => 2,
        Domain::Segments(..) | Domain::Blocks { .. } | Domain::Groups { .. } | Domain::Tokens(_) => 2,
        Domain::And(a, b) | Domain::Or(a, b) => 1 + of_domain(a) + of_domain(b),
    }
}

/// The functions that stand for others of their kind.
fn plain(f: MapFn) -> bool {
    matches!(f, MapFn::Neg | MapFn::Add | MapFn::Not | MapFn::And | MapFn::Lt | MapFn::Select)
}

/// Every change there is, those that take away most first.
fn changes(module: &Module) -> Vec<Change> {
    let mut list = Vec::new();
    if module.funcs.len() > 1 {
        list.extend((0..module.funcs.len()).map(Change::Keep));
    }
    for (func, f) in module.funcs.iter().enumerate() {
        prefixes(f, func, &mut Vec::new(), &mut list);
        let mut len = f.outputs.len() / 2;
        while len > 0 {
            list.extend((0..f.outputs.len()).step_by(len).map(|from| Change::Outputs { func, from, len }));
            len /= 2;
        }
    }
    for (func, f) in module.funcs.iter().enumerate() {
        at_nodes(f, func, &mut Vec::new(), &mut list);
    }
    let (mut names, mut extents, mut dtypes) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    module.funcs.iter().for_each(|f| facts(f, &mut names, &mut extents, &mut dtypes));
    for name in names {
        list.extend([1, 2, 3, 5].map(|n| Change::Dim(name.clone(), n)));
    }
    for n in extents.into_iter().rev() {
        let smaller: BTreeSet<i64> = [1, 2, 3, n / 2, n - 1].into_iter().filter(|m| *m > 0 && *m < n).collect();
        list.extend(smaller.into_iter().map(|m| Change::Extent(n, m)));
    }
    for dtype in dtypes {
        match dtype {
            DType::F64 | DType::TF32 | DType::BF16 | DType::F16 | DType::E4M3 => list.push(Change::DType(dtype, DType::F32)),
            DType::I64 => list.push(Change::DType(dtype, DType::I32)),
            DType::F32 | DType::I32 | DType::Bool => {}
        }
    }
    list
}

/// The nodes a function or a loop in it might end at, the first first.
fn prefixes(f: &Func, func: usize, path: &mut Vec<NodeId>, list: &mut Vec<Change>) {
    for (id, node) in f.nodes.iter().filter(|(_, n)| !matches!(n.op, Op::Arg(_))) {
        if let Op::Repeat(r) = &node.op {
            path.push(id);
            prefixes(&r.body, func, path, list);
            path.pop();
        }
        list.push(Change::Node { func, path: path.clone(), node: id, how: How::Only });
    }
}

/// The run-time dims, constant extents and dtypes of a function.
fn facts(func: &Func, names: &mut BTreeSet<String>, extents: &mut BTreeSet<i64>, dtypes: &mut BTreeSet<DType>) {
    for node in func.nodes.values() {
        for t in &node.types {
            dtypes.insert(t.dtype);
            for d in &t.shape {
                extents.extend(d.known());
                let mut symbols = BTreeSet::new();
                d.symbols(&mut symbols);
                names.extend(symbols.iter().map(|s| s.to_string()));
            }
        }
        if let Op::Repeat(r) = &node.op {
            extents.insert(r.count);
        }
        if let Some(body) = node.op.body() {
            facts(body, names, extents, dtypes);
        }
    }
}

/// The changes at the nodes of a function and of the loops in it, the last first.
fn at_nodes(f: &Func, func: usize, path: &mut Vec<NodeId>, list: &mut Vec<Change>) {
    let mut read: BTreeSet<NodeId> = f.nodes.values().flat_map(|n| &n.inputs).map(|v| v.node).collect();
    read.extend(f.outputs.iter().map(|o| o.value.node));
    let all: Vec<NodeId> = f.nodes.ids().collect();
    for id in all.into_iter().rev() {
        let node = &f.nodes[id];
        let mut add = |how: How| list.push(Change::Node { func, path: path.clone(), node: id, how });
        if matches!(node.op, Op::Arg(_)) {
            continue;
        }
        if !read.contains(&id) {
            add(How::Drop);
            continue;
        }
        add(How::Args);
        // The latest value of the type of each result, or an operand of it.
        let ty = &node.types[0];
        if node.types.len() == 1 {
            let same = |v: &Value| f.ty(*v) == ty;
            let inputs: BTreeSet<Value> = node.inputs.iter().copied().filter(same).collect();
            inputs.into_iter().for_each(|v| add(How::Values(vec![v])));
            let earlier = f
                .nodes
                .iter()
                .take(id.index())
                .flat_map(|(node, n)| (0..n.types.len() as u32).map(move |index| Value { node, index }));
            let earlier: Vec<Value> = earlier.filter(same).collect();
            earlier.iter().rev().take(2).for_each(|v| add(How::Values(vec![*v])));
        }
        if !matches!(node.op, Op::Const(..)) {
            add(How::Constants(0.0));
            add(How::Constants(1.0));
        }
        simpler(node).into_iter().for_each(|(op, inputs)| add(How::Op(Box::new(op), inputs)));
        if let Op::Fused(_) = &node.op {
            add(How::Inline);
        }
        if let Op::Repeat(r) = &node.op {
            if r.count == 1 {
                add(How::Inline);
            }
            path.push(id);
            at_nodes(&r.body, func, path, list);
            path.pop();
        }
    }
}

/// Simpler ops that might stand in a node's place.
fn simpler(node: &Node) -> Vec<(Op, Vec<Value>)> {
    let x = &node.inputs;
    let same = |op: Op| vec![(op, x.clone())];
    match &node.op {
        Op::Map(f) if !plain(*f) => {
            let unary: &[MapFn] = match f.kind() {
                Kind::Float | Kind::Number | Kind::Int => &[MapFn::Add, MapFn::Neg],
                Kind::Compare => &[MapFn::Lt],
                Kind::Logic => &[MapFn::And, MapFn::Not],
                Kind::Test | Kind::Select => &[],
            };
            unary.iter().map(|g| (Op::Map(*g), x[..g.arity().min(x.len())].to_vec())).collect()
        }
        Op::Const(_, dtype) => [0.0, 1.0].iter().map(|c| (Op::Const(Scalar::new(*c), *dtype), Vec::new())).collect(),
        Op::Reduce(_, axes) => same(Op::Reduce(ReduceFn::Sum, axes.clone())),
        Op::Cumsum { axis, .. } => same(Op::Cumsum { axis: *axis, exclusive: false, reverse: false }),
        Op::Slice { axis, start, len, step } => [Dim::from(0), start.clone()]
            .map(|start| (Op::Slice { axis: *axis, start, len: len.clone(), step: (step - 1).max(1) }, x.clone()))
            .into(),
        Op::Pad { axis, low, high, value } => [(Dim::from(0), high.clone()), (low.clone(), Dim::from(0))]
            .map(|(low, high)| (Op::Pad { axis: *axis, low, high, value: *value }, x.clone()))
            .into(),
        Op::Concat(_) if x.len() > 1 => {
            let without = |i: usize| x.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, v)| *v).collect();
            (0..x.len()).map(|i| (node.op.clone(), without(i))).collect()
        }
        Op::Attend(a) => {
            let with = |(domain, operands): (Domain, Vec<Value>)| {
                (Op::Attend(op::Attend { domain, ..a.clone() }), [&x[..3], &operands].concat())
            };
            parts(&a.domain, &x[3..]).into_iter().map(with).collect()
        }
        Op::AttendGrad(a) => {
            let with = |(domain, operands): (Domain, Vec<Value>)| {
                (Op::AttendGrad(op::Attend { domain, ..a.clone() }), [&x[..7], &operands].concat())
            };
            parts(&a.domain, &x[7..]).into_iter().map(with).collect()
        }
        Op::Repeat(r) => {
            let with = |count, reverse| (Op::Repeat(Box::new(Repeat { count, reverse, ..(**r).clone() })), x.clone());
            // Fewer turns need operands of fewer; that is done for all extents of a kind at once.
            let mut list = vec![with(r.count, false)];
            if r.stacked() == 0 && r.body.outputs.len() == r.carried {
                list.extend(
                    [1, r.count / 2, r.count - 1].into_iter().filter(|n| *n > 0 && *n < r.count).map(|n| with(n, r.reverse)),
                );
            }
            list
        }
        Op::TopK(k) if *k > 1 => same(Op::TopK(k - 1)),
        Op::Route { groups } if *groups > 1 => same(Op::Route { groups: groups - 1 }),
        Op::Arg(_)
        | Op::TopK(_)
        | Op::Route { .. }
        | Op::Extent(..)
        | Op::Iota(_)
        | Op::Map(_)
        | Op::Cast(_)
        | Op::Broadcast { .. }
        | Op::Transpose(_)
        | Op::Reshape(_)
        | Op::Concat(_)
        | Op::Contract(_)
        | Op::Gather { .. }
        | Op::ScatterAdd { .. }
        | Op::GroupedContract { .. }
        | Op::GroupedOuter
        | Op::Exchange { .. }
        | Op::Quantize(_)
        | Op::Dequantize(_)
        | Op::StopGradient
        | Op::Fused(_) => Vec::new(),
    }
}

/// Simpler domains with the operands they need: everything, either side, or a side simplified.
fn parts(d: &Domain, operands: &[Value]) -> Vec<(Domain, Vec<Value>)> {
    fn smaller(d: &Domain) -> Vec<Domain> {
        let (a, b, join): (&Domain, &Domain, fn(Box<Domain>, Box<Domain>) -> Domain) = match d {
            Domain::And(a, b) => (a, b, Domain::And),
            Domain::Or(a, b) => (a, b, Domain::Or),
            Domain::Full => return Vec::new(),
            Domain::Causal
            | Domain::Window(_)
            | Domain::Prefix(_)
            | Domain::EndsBefore { .. }
            | Domain::EndsAt(_)
            | Domain::Segments(..)
            | Domain::Blocks { .. }
            | Domain::Groups { .. }
            | Domain::Tokens(_) => return vec![Domain::Full],
        };
        let left = smaller(a).into_iter().map(|a| join(Box::new(a), Box::new(b.clone())));
        let right = smaller(b).into_iter().map(|b| join(Box::new(a.clone()), Box::new(b)));
        [Domain::Full, a.clone(), b.clone()].into_iter().chain(left).chain(right).collect()
    }
    smaller(d).into_iter().map(|d| renumber(&d, operands)).collect()
}

/// The domain with its operands numbered from 0 without gaps.
fn renumber(d: &Domain, operands: &[Value]) -> (Domain, Vec<Value>) {
    fn walk(d: &Domain, number: &mut dyn FnMut(usize) -> usize) -> Domain {
        match d {
            Domain::Full | Domain::Causal | Domain::Window(_) | Domain::Prefix(_) | Domain::EndsBefore { .. } => d.clone(),
            Domain::EndsAt(a) => Domain::EndsAt(number(*a)),
            Domain::Segments(a, b) => Domain::Segments(number(*a), number(*b)),
            Domain::Blocks { idx, size } => Domain::Blocks { idx: number(*idx), size: *size },
            Domain::Groups { idx, of } => Domain::Groups { idx: number(*idx), of: number(*of) },
            Domain::Tokens(a) => Domain::Tokens(number(*a)),
            Domain::And(a, b) => Domain::And(Box::new(walk(a, number)), Box::new(walk(b, number))),
            Domain::Or(a, b) => Domain::Or(Box::new(walk(a, number)), Box::new(walk(b, number))),
        }
    }
    let mut used: Vec<usize> = Vec::new();
    let d = walk(d, &mut |i| {
        used.iter().position(|u| *u == i).unwrap_or_else(|| {
            used.push(i);
            used.len() - 1
        })
    });
    (d, used.into_iter().map(|i| operands[i]).collect())
}

/// The changed module, or none if its types do not fit.
fn apply(module: &Module, change: &Change) -> Option<Module> {
    let mut out = module.clone();
    match change {
        Change::Keep(i) => out.funcs = vec![module.funcs.get(*i)?.clone()],
        Change::Outputs { func, from, len } => {
            let outputs = &mut out.funcs[*func].outputs;
            if outputs.len() <= *len || from + len > outputs.len() {
                return None;
            }
            outputs.drain(*from..from + len);
        }
        Change::Dim(name, n) => {
            let dim = |d: &Dim| d.substitute(&|s| (s == name).then(|| Dim::from(*n)));
            everywhere(&mut out, &dim, &|n| n, &|d| d)?;
        }
        Change::Extent(old, new) => {
            let number = |n: i64| if n == *old { *new } else { n };
            // In a product with a run-time dim the extent is a factor.
            let dim = |d: &Dim| match d.known() {
                Some(n) => Dim::from(number(n)),
                None => d.try_div(&Dim::from(*old)).map_or_else(|| d.clone(), |q| q * Dim::from(*new)),
            };
            everywhere(&mut out, &dim, &number, &|d| d)?;
        }
        Change::DType(old, new) => {
            everywhere(&mut out, &Dim::clone, &|n| n, &|d| if d == *old { *new } else { d })?;
        }
        Change::Node { func, path, node, how } => {
            out.funcs[*func] = at_path(&module.funcs[*func], path, *node, how)?;
        }
    }
    Some(out)
}

/// The change at a node of this function or of a body inside it.
fn at_path(func: &Func, path: &[NodeId], at: NodeId, how: &How) -> Option<Func> {
    if let How::Only = how {
        return only(func, path, at, 0);
    }
    let Some((first, rest)) = path.split_first() else { return at_node(func, at, how) };
    let Op::Repeat(r) = &func.nodes[*first].op else { return None };
    let mut body = at_path(&r.body, rest, at, how)?;
    let (mut inputs, mut constant, fixed) = (func.nodes[*first].inputs.clone(), r.constant, r.carried + r.constant);
    let fresh = body.args.len() - r.body.args.len();
    let mut types: Vec<TensorType> = Vec::new();
    if fresh > 0 {
        types = (r.body.args.len()..body.args.len()).map(|i| body.arg_type(i).clone()).collect();
        body = reorder_args(&body, fixed, r.body.args.len());
        constant += fresh;
    }
    // A constant of each type stands before the loop until an argument takes its place.
    rebuild(func, head(func, &TensorType::clone), &mut |out, id, moved| {
        if id != *first {
            return Some(None);
        }
        let node = &func.nodes[id];
        inputs = inputs.iter().map(|v| follow(moved, *v)).collect::<Option<_>>()?;
        let mut b = Builder { func: out, origin: node.origin };
        let zeros = types.iter().map(|t| {
            let c = b.constant(0.0, t.dtype);
            b.splat(c, &t.shape)
        });
        let zeros: Vec<Value> = zeros.collect();
        inputs.splice(fixed..fixed, zeros);
        let op = Op::Repeat(Box::new(Repeat { body: body.clone(), constant, ..(**r).clone() }));
        append(out, op, &inputs, node).map(Some)
    })
}

/// The function with its arguments from `last` on moved to `at`.
fn reorder_args(func: &Func, at: usize, last: usize) -> Func {
    let order: Vec<usize> = (0..at).chain(last..func.args.len()).chain(at..last).collect();
    let mut place = vec![0; order.len()];
    order.iter().enumerate().for_each(|(new, old)| place[*old] = new);
    let mut out = Func::new(&func.name);
    for i in order {
        out.arg(&func.args[i].name, func.args[i].role, func.arg_type(i).clone());
    }
    let moved = |v: Value| match place.get(v.node.index()) {
        Some(i) => Value { node: NodeId::new(*i), index: 0 },
        None => v,
    };
    for node in func.nodes.values().skip(func.args.len()) {
        out.nodes.push(Node { inputs: node.inputs.iter().map(|v| moved(*v)).collect(), ..node.clone() });
    }
    func.outputs.iter().for_each(|o| out.output(&o.name, o.role, moved(o.value)));
    out
}

/// The function up to a node of it or of a body inside it, whose results are its only outputs. Loops around give them as stacks and
/// change nothing that they carry: of their outputs the first `carried` stay.
fn only(func: &Func, path: &[NodeId], at: NodeId, carried: usize) -> Option<Func> {
    let (last, rest) = path.split_first().map_or((at, path), |(first, rest)| (*first, rest));
    let mut out = Func { outputs: Vec::new(), ..func.clone() };
    out.nodes = func.nodes.values().take(last.index() + 1).cloned().collect();
    let mut results = 0..func.nodes[last].types.len() as u32;
    if !path.is_empty() {
        let Op::Repeat(r) = &func.nodes[last].op else { return None };
        let body = only(&r.body, rest, at, r.carried)?;
        let op = Op::Repeat(Box::new(Repeat { body, ..(**r).clone() }));
        let mut shorter = head(func, &TensorType::clone);
        for node in func.nodes.values().take(last.index()).skip(func.args.len()) {
            shorter.nodes.push(node.clone());
        }
        results = r.carried as u32..append(&mut shorter, op, &func.nodes[last].inputs, &func.nodes[last])?.len() as u32;
        out = shorter;
    }
    let role = func.outputs.first().map_or(Role::Result, |o| o.role);
    (0..carried).for_each(|i| out.output(&format!("y{i}"), role, func.arg_value(i)));
    for (i, index) in results.enumerate() {
        out.output(&format!("y{}", carried + i), role, Value { node: last, index });
    }
    Some(out)
}

/// A copy whose types follow anew; `place` may put values in a node's place.
fn rebuild(
    func: &Func,
    mut out: Func,
    place: &mut dyn FnMut(&mut Func, NodeId, &[Vec<Value>]) -> Option<Option<Vec<Value>>>,
) -> Option<Func> {
    let mut moved: Vec<Vec<Value>> = (0..func.args.len()).map(|i| vec![out.arg_value(i)]).collect();
    for (id, node) in func.nodes.iter().skip(func.args.len()) {
        let values = match place(&mut out, id, &moved)? {
            Some(values) => values,
            None => {
                let inputs: Vec<Value> = node.inputs.iter().map(|v| follow(&moved, *v)).collect::<Option<_>>()?;
                append(&mut out, node.op.clone(), &inputs, node)?
            }
        };
        moved.push(values);
    }
    for o in &func.outputs {
        out.output(&o.name, o.role, follow(&moved, o.value)?);
    }
    Some(out)
}

fn follow(moved: &[Vec<Value>], v: Value) -> Option<Value> {
    moved[v.node.index()].get(v.index as usize).copied()
}

fn append(out: &mut Func, op: Op, inputs: &[Value], like: &Node) -> Option<Vec<Value>> {
    let node = out.add(op, inputs, like.origin).ok()?;
    Some((0..out.nodes[node].types.len() as u32).map(|index| Value { node, index }).collect())
}

/// The function with its name and arguments alone, their types changed.
fn head(func: &Func, ty: &dyn Fn(&TensorType) -> TensorType) -> Func {
    let mut out = Func::new(&func.name);
    for (arg, _, t) in func.arg_values() {
        out.arg(&arg.name, arg.role, ty(t));
    }
    out
}

fn at_node(func: &Func, at: NodeId, how: &How) -> Option<Func> {
    let node = &func.nodes[at];
    let mut out = head(func, &TensorType::clone);
    let mut given = Vec::new();
    if let How::Args = how {
        for ty in &node.types {
            let fresh = (0..).map(|i| format!("v{i}")).find(|n| out.args.iter().all(|a| a.name != *n))?;
            given.push(out.arg(&fresh, Role::Input, ty.clone()));
        }
    }
    rebuild(func, out, &mut |out, id, moved| {
        if id != at {
            return Some(None);
        }
        let inputs = |of: &[Value]| of.iter().map(|v| follow(moved, *v)).collect::<Option<Vec<Value>>>();
        Some(Some(match how {
            How::Values(values) => inputs(values)?,
            How::Args => given.clone(),
            How::Constants(x) => {
                let mut b = Builder { func: out, origin: node.origin };
                let constant = |t: &TensorType| {
                    let c = b.constant(*x, t.dtype);
                    b.splat(c, &t.shape)
                };
                node.types.iter().map(constant).collect()
            }
            How::Op(op, operands) => append(out, (**op).clone(), &inputs(operands)?, node)?,
            How::Inline => inline(out, node, &inputs(&node.inputs)?)?,
            How::Drop => Vec::new(),
            How::Only => base::bug!("a function's end is no node's change"),
        }))
    })
}

/// What a loop of one turn or a region does.
fn inline(out: &mut Func, node: &Node, inputs: &[Value]) -> Option<Vec<Value>> {
    if let Op::Fused(f) = &node.op {
        return Some(f.inline(out, inputs, node.origin));
    }
    let Op::Repeat(r) = &node.op else { return None };
    let fixed = r.carried + r.constant;
    let mut moved: Vec<Vec<Value>> = Vec::new();
    for (i, v) in inputs.iter().enumerate() {
        let shape = r.body.arg_type(i).shape.clone();
        moved.push(if i < fixed { vec![*v] } else { append(out, Op::Reshape(shape), &[*v], node)? });
    }
    for inner in r.body.nodes.values().skip(r.body.args.len()) {
        let inputs: Vec<Value> = inner.inputs.iter().map(|v| follow(&moved, *v)).collect::<Option<_>>()?;
        moved.push(append(out, inner.op.clone(), &inputs, inner)?);
    }
    let mut results = Vec::new();
    for (i, o) in r.body.outputs.iter().enumerate() {
        let v = follow(&moved, o.value)?;
        results.push(if i < r.carried { v } else { append(out, Op::Reshape(node.types[i].shape.clone()), &[v], node)?[0] });
    }
    Some(results)
}

/// Changes all extents, counts that follow from extents, and dtypes.
fn everywhere(
    module: &mut Module,
    dim: &dyn Fn(&Dim) -> Dim,
    number: &dyn Fn(i64) -> i64,
    dtype: &dyn Fn(DType) -> DType,
) -> Option<()> {
    let ty = |t: &TensorType| TensorType::new(dtype(t.dtype), t.shape.iter().map(dim).collect::<Vec<_>>());
    module.params.iter_mut().for_each(|p| p.ty = ty(&p.ty));
    for f in &mut module.funcs {
        *f = in_func(f, dim, number, dtype, &ty)?;
    }
    Some(())
}

fn in_func(
    func: &Func,
    dim: &dyn Fn(&Dim) -> Dim,
    number: &dyn Fn(i64) -> i64,
    dtype: &dyn Fn(DType) -> DType,
    ty: &dyn Fn(&TensorType) -> TensorType,
) -> Option<Func> {
    rebuild(func, head(func, ty), &mut |out, id, moved| {
        let node = &func.nodes[id];
        let dims = |shape: &[Dim]| shape.iter().map(dim).collect::<Vec<_>>();
        let op = match &node.op {
            Op::Const(c, d) => Op::Const(*c, dtype(*d)),
            Op::Extent(d, t) => Op::Extent(dim(d), dtype(*t)),
            Op::Iota(d) => Op::Iota(dim(d)),
            Op::Cast(d) => Op::Cast(dtype(*d)),
            Op::Broadcast { shape, axes } => Op::Broadcast { shape: dims(shape), axes: axes.clone() },
            Op::Reshape(shape) => Op::Reshape(dims(shape)),
            Op::Slice { axis, start, len, step } => Op::Slice { axis: *axis, start: dim(start), len: dim(len), step: *step },
            Op::Pad { axis, low, high, value } => Op::Pad { axis: *axis, low: dim(low), high: dim(high), value: *value },
            Op::ScatterAdd { batch, n } => Op::ScatterAdd { batch: *batch, n: dim(n) },
            Op::TopK(k) => Op::TopK(number(*k)),
            Op::Route { groups } => Op::Route { groups: number(*groups) },
            Op::Repeat(r) => {
                let body = in_func(&r.body, dim, number, dtype, ty)?;
                Op::Repeat(Box::new(Repeat { body, count: number(r.count), ..(**r).clone() }))
            }
            Op::Fused(f) => Op::Fused(Box::new(op::Fused { body: in_func(&f.body, dim, number, dtype, ty)?, form: f.form })),
            Op::Arg(_)
            | Op::Map(_)
            | Op::Reduce(..)
            | Op::Transpose(_)
            | Op::Concat(_)
            | Op::Contract(_)
            | Op::Gather { .. }
            | Op::Cumsum { .. }
            | Op::Attend(_)
            | Op::AttendGrad(_)
            | Op::GroupedContract { .. }
            | Op::GroupedOuter
            | Op::Exchange { .. }
            | Op::Quantize(_)
            | Op::Dequantize(_)
            | Op::StopGradient => node.op.clone(),
        };
        let inputs: Vec<Value> = node.inputs.iter().map(|v| follow(moved, *v)).collect::<Option<_>>()?;
        append(out, op, &inputs, node).map(Some)
    })
}

/// Without nodes, arguments and parameters that nothing reads.
fn tidy(module: &Module) -> Module {
    let mut out = module.clone();
    for f in &mut out.funcs {
        prune_dead(f);
        *f = without_idle_args(f);
    }
    let used: BTreeSet<&str> = out.funcs.iter().flat_map(|f| &f.args).map(|a| a.name.as_str()).collect();
    out.params = module.params.iter().filter(|p| used.contains(p.name.as_str())).cloned().collect();
    out
}

fn without_idle_args(func: &Func) -> Func {
    let mut read: BTreeSet<NodeId> = func.nodes.values().flat_map(|n| &n.inputs).map(|v| v.node).collect();
    read.extend(func.outputs.iter().map(|o| o.value.node));
    let mut out = Func::new(&func.name);
    let mut moved: BTreeMap<NodeId, NodeId> = BTreeMap::new();
    for (arg, v, ty) in func.arg_values().filter(|(_, v, _)| read.contains(&v.node)) {
        moved.insert(v.node, out.arg(&arg.name, arg.role, ty.clone()).node);
    }
    for (id, node) in func.nodes.iter().skip(func.args.len()) {
        let inputs = node.inputs.iter().map(|v| Value { node: moved[&v.node], index: v.index }).collect();
        moved.insert(id, out.nodes.push(Node { inputs, ..node.clone() }));
    }
    for o in &func.outputs {
        out.output(&o.name, o.role, Value { node: moved[&o.value.node], index: o.value.index });
    }
    out
}

#[cfg(test)]
mod tests;
