//! The update in parts that need nothing of each other, so that each can run on a rank of its own.

use super::{StageError, slice::Slicer};
use crate::ir::{Func, Role, Value};
use std::collections::{BTreeMap, BTreeSet};

/// What outlives the update and is not the same on all ranks while it runs: its name and role.
type Stored<'f> = (Role, &'f str);

/// A function for each part, `update.0` and on, in order of the outputs. Outputs that read or write one parameter, state, gradient or moment
/// are of one part; scalars and tallies are there for all.
pub(super) fn parts(update: &Func) -> Result<Vec<Func>, StageError> {
    let reads: Vec<BTreeSet<usize>> = update.outputs.iter().map(|o| reads(update, o.value)).collect();
    let kept = |role: Role| match role {
        Role::Param | Role::State | Role::Grad | Role::Moment => true,
        Role::Tally | Role::Scalar | Role::Input | Role::Result | Role::Inner => false,
    };
    let mut part_of: Vec<usize> = (0..update.outputs.len()).collect();
    let mut users: BTreeMap<Stored, usize> = BTreeMap::new();
    for (i, o) in update.outputs.iter().enumerate() {
        let args = reads[i].iter().map(|a| (update.args[*a].role, update.args[*a].name.as_str()));
        for stored in args.chain([(o.role, o.name.as_str())]).filter(|(role, _)| kept(*role)) {
            let (a, b) = (part_of[i], part_of[*users.entry(stored).or_insert(i)]);
            part_of.iter_mut().filter(|p| **p == a.max(b)).for_each(|p| *p = a.min(b));
        }
    }
    let mut out = Vec::new();
    for part in part_of.iter().collect::<BTreeSet<_>>() {
        let own: Vec<usize> = (0..part_of.len()).filter(|i| part_of[*i] == *part).collect();
        let args: BTreeSet<usize> = own.iter().flat_map(|i| &reads[*i]).copied().collect();
        let to = Func::new(&format!("{}.{}", update.name, out.len()));
        let mut s = Slicer { from: update, to, done: BTreeMap::new(), slices: None };
        for (i, (arg, v, ty)) in update.arg_values().enumerate() {
            if args.contains(&i) {
                let new = s.to.arg(&arg.name, arg.role, ty.clone());
                s.done.insert((v, None), new);
            }
        }
        for o in own.into_iter().map(|i| &update.outputs[i]) {
            let value = s.whole(o.value)?;
            s.to.output(&o.name, o.role, value);
        }
        out.push(s.to);
    }
    Ok(out)
}

/// The arguments that a value depends on.
fn reads(func: &Func, value: Value) -> BTreeSet<usize> {
    let (mut out, mut seen, mut waiting) = (BTreeSet::new(), BTreeSet::new(), vec![value.node]);
    while let Some(node) = waiting.pop() {
        if seen.insert(node) {
            if let crate::op::Op::Arg(i) = func.nodes[node].op {
                out.insert(i as usize);
            }
            waiting.extend(func.nodes[node].inputs.iter().map(|v| v.node));
        }
    }
    out
}
