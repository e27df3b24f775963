//! The forward part of each stage: which nodes it computes, what it takes from the stage before and hands to the next.

use super::{
    Layout, Range, StageError, layers,
    slice::{Part, Slicer},
    slice_name,
};
use crate::{
    ir::{Func, Module, Node, NodeId, ParamDecl, Role, Value},
    op::{Op, Repeat},
};
use base::{Dim, arena::Id};
use std::collections::{BTreeMap, BTreeSet};

/// A stage before gradients are taken.
pub(super) struct Stage {
    /// Its parameters and states.
    pub params: Vec<ParamDecl>,
    /// What each tally of the whole is to it.
    pub tallies: BTreeMap<String, Part>,
    /// What each parameter of the whole is to it.
    parts: BTreeMap<String, Part>,
    /// Its forward part: parameters, states, inputs, `in.k` to `out.k`, or the loss, and tallies.
    pub func: Func,
}

impl Stage {
    /// What a parameter or state of the whole is to the stage.
    pub fn part(&self, name: &str) -> Part {
        self.parts.get(name).cloned().unwrap_or(Part::Absent)
    }
}

/// An argument of the loss, or some layers of it.
#[derive(Clone, Debug, PartialEq)]
struct Argument {
    /// Which of the loss's arguments.
    index: usize,
    range: Option<Range>,
}

/// The loss with its loops cut at the stages' ends. Arguments stand anywhere among the nodes.
struct Flat {
    func: Func,
    args: BTreeMap<NodeId, Argument>,
    /// Of nodes that depend on parameters and on inputs: the stage.
    stage: Vec<Option<usize>>,
    /// The outputs of each stage but those that cross: name, role, value.
    outputs: Vec<Vec<(String, Role, Value)>>,
    /// What each tally is to each stage.
    tallies: Vec<BTreeMap<String, Part>>,
}

/// What a node depends on.
#[derive(Clone, Copy, Default)]
struct Reads {
    params: bool,
    inputs: bool,
    /// The last layer.
    end: bool,
}

/// The stages of the loss.
pub(super) fn cut(module: &Module, loss: &Func, layout: &Layout) -> Result<Vec<Stage>, StageError> {
    let flat = flatten(loss, layout)?;
    let num_stages = layout.0.len();
    // What crosses each boundary, in order of the nodes.
    let mut crossing: Vec<BTreeSet<Value>> = vec![BTreeSet::new(); num_stages];
    let mut waiting: Vec<(Value, usize)> = Vec::new();
    for (s, outputs) in flat.outputs.iter().enumerate() {
        waiting.extend(outputs.iter().map(|(_, _, v)| (*v, s)));
    }
    let mut seen = BTreeSet::new();
    while let Some((v, s)) = waiting.pop() {
        if !seen.insert((v, s)) {
            continue;
        }
        let at = flat.stage[v.node.index()].unwrap_or(s);
        crossing[at.min(s) + 1..=s].iter_mut().for_each(|c| _ = c.insert(v));
        waiting.extend(flat.func.nodes[v.node].inputs.iter().map(|x| (*x, at)));
    }
    let mut stages = Vec::new();
    for s in 0..num_stages {
        let next = crossing.get(s + 1);
        stages.push(stage(module, loss, &flat, s, &crossing[s], next)?);
    }
    whole(module, loss, &mut stages)?;
    Ok(stages)
}

fn flatten(loss: &Func, layout: &Layout) -> Result<Flat, StageError> {
    let num_stages = layout.0.len();
    let last = num_stages - 1;
    let total: usize = layout.0.iter().sum();
    let mut s = Slicer { from: loss, to: Func::new("loss"), done: BTreeMap::new(), slices: Some(BTreeMap::new()) };
    let mut args = BTreeMap::new();
    let mut outputs = vec![Vec::new(); num_stages];
    let mut tallies = vec![BTreeMap::new(); num_stages];
    for (i, (_, v, ty)) in loss.arg_values().enumerate() {
        let node = s.to.nodes.push(Node { op: Op::Arg(i as u32), inputs: Vec::new(), types: vec![ty.clone()], origin: None });
        args.insert(node, Argument { index: i, range: None });
        s.done.insert((v, None), Value { node, index: 0 });
    }
    // Stages of loops' parts and of what is made of their stacks, by node of `to`.
    let mut placed: BTreeMap<NodeId, usize> = BTreeMap::new();
    let mut ends: BTreeSet<NodeId> = BTreeSet::new();
    let mut before = 0;
    for (id, node) in loss.nodes.iter() {
        let Some(r) = layers(loss, node) else {
            if !matches!(node.op, Op::Arg(_)) {
                s.whole(Value { node: id, index: 0 })?;
            }
            continue;
        };
        let mut carried = node.inputs[..r.carried].iter().map(|v| s.whole(*v)).collect::<Result<Vec<_>, _>>()?;
        let constants =
            node.inputs[r.carried..r.carried + r.constant].iter().map(|v| s.whole(*v)).collect::<Result<Vec<_>, _>>()?;
        let mut stacks: Vec<Vec<Value>> = vec![Vec::new(); r.body.outputs.len() - r.carried];
        for (stage, range) in parts(layout, before, r.count as usize) {
            let mut inputs = [carried.clone(), constants.clone()].concat();
            for v in &node.inputs[r.carried + r.constant..] {
                inputs.push(s.slice(*v, range)?);
            }
            let turns = Repeat { count: range.len, ..r.clone() };
            let made = s.to.add(Op::Repeat(Box::new(turns)), &inputs, node.origin);
            let made = made.map_err(|e| StageError::Whole { what: "a repeat".into(), why: e.0 })?;
            placed.insert(made, stage);
            if before + r.count as usize == total && range.start + range.len == r.count {
                ends.insert(made);
            }
            carried = (0..r.carried as u32).map(|index| Value { node: made, index }).collect();
            for (k, stack) in stacks.iter_mut().enumerate() {
                let v = Value { node: made, index: (r.carried + k) as u32 };
                stack.push(v);
                let old = Value { node: id, index: v.index };
                for o in loss.outputs.iter().filter(|o| o.value == old) {
                    let whole = range.len == r.count;
                    let name = if whole { o.name.clone() } else { slice_name(&o.name, range.start) };
                    outputs[stage].push((name, o.role, v));
                    tallies[stage].insert(o.name.clone(), if whole { Part::Whole } else { Part::Slice(range) });
                }
            }
        }
        for (k, v) in carried.into_iter().enumerate() {
            s.done.insert((Value { node: id, index: k as u32 }, None), v);
        }
        for (k, stack) in stacks.into_iter().enumerate() {
            let whole = match stack[..] {
                [one] => one,
                _ => {
                    let joined = s.to.add(Op::Concat(0), &stack, node.origin).unwrap_or_else(|e| base::bug!("concat: {e}"));
                    Value { node: joined, index: 0 }
                }
            };
            s.done.insert((Value { node: id, index: (r.carried + k) as u32 }, None), whole);
        }
        before += r.count as usize;
    }
    for (node, (index, range)) in s.slices.take().into_iter().flatten() {
        args.insert(node, Argument { index, range: Some(range) });
    }
    // Outputs that are no stack of a loop.
    let is_stack = |v: Value| layers(loss, &loss.nodes[v.node]).is_some_and(|r| v.index as usize >= r.carried);
    let mut reads: Vec<Reads> = Vec::new();
    let mut stage: Vec<Option<usize>> = Vec::new();
    for (id, node) in s.to.nodes.iter() {
        let mut sum = Reads { end: ends.contains(&id), ..Reads::default() };
        let mut after = placed.get(&id).copied().unwrap_or(0);
        for x in &node.inputs {
            let r = reads[x.node.index()];
            sum = Reads { params: sum.params | r.params, inputs: sum.inputs | r.inputs, end: sum.end | r.end };
            after = after.max(stage[x.node.index()].unwrap_or(0));
        }
        if let Op::Arg(i) = node.op {
            let role = loss.args[i as usize].role;
            sum.params = matches!(role, Role::Param | Role::State);
            sum.inputs = !sum.params;
        }
        let trunk = (sum.params && sum.inputs) || placed.contains_key(&id);
        let at = if sum.end && !ends.contains(&id) { last } else { after };
        stage.push(trunk.then_some(at));
        reads.push(sum);
    }
    for o in loss.outputs.iter().filter(|o| !is_stack(o.value)) {
        let v = s.whole(o.value)?;
        let at = if o.role == Role::Tally { stage[v.node.index()].unwrap_or(last) } else { last };
        outputs[at].push((o.name.clone(), o.role, v));
        tallies[at].insert(o.name.clone(), Part::Whole);
    }
    Ok(Flat { func: s.to, args, stage, outputs, tallies })
}

/// The stages that have layers of a loop of `count` turns, whose first turn is layer `first`, and which turns.
fn parts(layout: &Layout, first: usize, count: usize) -> Vec<(usize, Range)> {
    let mut out = Vec::new();
    let mut start = 0;
    for (stage, n) in layout.0.iter().enumerate() {
        let (from, to) = (start.max(first), (start + n).min(first + count));
        if from < to {
            out.push((stage, Range { start: (from - first) as i64, len: (to - from) as i64 }));
        }
        start += n;
    }
    out
}

fn stage(
    module: &Module,
    loss: &Func,
    flat: &Flat,
    s: usize,
    before: &BTreeSet<Value>,
    after: Option<&BTreeSet<Value>>,
) -> Result<Stage, StageError> {
    let mut nodes = BTreeSet::new();
    let mut waiting: Vec<Value> =
        flat.outputs[s].iter().map(|(_, _, v)| *v).chain(after.into_iter().flatten().copied()).collect();
    while let Some(v) = waiting.pop() {
        if !before.contains(&v) && nodes.insert(v.node) {
            waiting.extend(&flat.func.nodes[v.node].inputs);
        }
    }
    // Arguments in the order of the loss's.
    let mut used: Vec<(&NodeId, &Argument)> = flat.args.iter().filter(|(id, _)| nodes.contains(id)).collect();
    used.sort_by_key(|(_, a)| (a.index, a.range));
    let mut func = Func::new("forward");
    let mut map = BTreeMap::new();
    let mut parts = BTreeMap::new();
    for (id, a) in used {
        let arg = &loss.args[a.index];
        let name = a.range.map_or(arg.name.clone(), |r| slice_name(&arg.name, r.start));
        map.insert(Value { node: *id, index: 0 }, func.arg(&name, arg.role, flat.func.nodes[*id].types[0].clone()));
        if matches!(arg.role, Role::Param | Role::State) {
            let part = a.range.map_or(Part::Whole, Part::Slice);
            if parts.insert(arg.name.clone(), part.clone()).is_some_and(|other| other != part) {
                let why = "a stage needs it whole and in part".to_string();
                return Err(StageError::Whole { what: arg.name.clone(), why });
            }
        }
    }
    for (k, v) in before.iter().enumerate() {
        map.insert(*v, func.arg(&format!("in.{k}"), Role::Inner, flat.func.ty(*v).clone()));
    }
    for id in nodes.iter().filter(|id| !flat.args.contains_key(id)) {
        let mut node = flat.func.nodes[*id].clone();
        node.inputs.iter_mut().for_each(|v| *v = map[v]);
        let results = node.types.len() as u32;
        let new = func.nodes.push(node);
        for index in 0..results {
            // What came in is not made again.
            map.entry(Value { node: *id, index }).or_insert(Value { node: new, index });
        }
    }
    flat.outputs[s].iter().for_each(|(name, role, v)| func.output(name, *role, map[v]));
    for (k, v) in after.into_iter().flatten().enumerate() {
        func.output(&format!("out.{k}"), Role::Inner, map[v]);
    }
    let params = declared(module, &parts);
    Ok(Stage { params, tallies: flat.tallies[s].clone(), parts, func })
}

/// Declarations of a stage's parameters, in the order of the whole.
fn declared(module: &Module, parts: &BTreeMap<String, Part>) -> Vec<ParamDecl> {
    let declare = |p: &ParamDecl| match parts.get(&p.name)? {
        Part::Absent => None,
        Part::Whole => Some(p.clone()),
        Part::Slice(r) => {
            let mut p = ParamDecl { name: slice_name(&p.name, r.start), ..p.clone() };
            p.ty.shape[0] = Dim::from(r.len);
            Some(p)
        }
    };
    module.params.iter().filter_map(declare).collect()
}

/// Every parameter has all its layers in some stage: those that the loss does not read are the first stage's.
fn whole(module: &Module, loss: &Func, stages: &mut [Stage]) -> Result<(), StageError> {
    for p in &module.params {
        let parts: Vec<Part> = stages.iter().map(|s| s.part(&p.name)).filter(|p| *p != Part::Absent).collect();
        if parts.is_empty() {
            let arg = loss.args.iter().find(|a| a.name == p.name && a.role == p.role);
            debug_assert!(arg.is_none_or(|a| a.role != Role::Input));
            stages[0].parts.insert(p.name.clone(), Part::Whole);
        } else if parts.contains(&Part::Whole) && parts.iter().any(|p| *p != Part::Whole) {
            return Err(StageError::Whole { what: p.name.clone(), why: "it is read outside its layers".into() });
        }
    }
    stages[0].params = declared(module, &stages[0].parts);
    Ok(())
}
