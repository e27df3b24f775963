//! What of a function as it came an extracted one has in its place. In: both, and their classes. Out: for each new node the old ones that
//! nothing computes any more because of it.

use crate::extract::{Extracted, Space};
use egg::Id;
use graph::{Func, NodeId, Value};
use std::collections::{BTreeMap, BTreeSet};

/// Old nodes and new ones.
pub struct History {
    /// The old nodes of each class, by its place.
    pub written: BTreeMap<usize, BTreeSet<NodeId>>,
    /// For each new node the old ones in its place: that of its value, and below it all whose values the new function does not compute. A new
    /// node whose value nobody wrote is a part of those that read it.
    pub replaced: BTreeMap<NodeId, BTreeSet<NodeId>>,
}

impl History {
    /// Compares. `classes` are those of the old values, `ops` those of the old nodes.
    pub fn new(func: &Func, space: &Space, classes: &BTreeMap<Value, Id>, ops: &[Id], result: &Extracted) -> History {
        let mut written: BTreeMap<usize, BTreeSet<NodeId>> = BTreeMap::new();
        for id in func.nodes.ids() {
            written.entry(space.at(ops[id.0 as usize])).or_default().insert(id);
        }
        for (value, class) in classes {
            written.entry(space.at(*class)).or_default().insert(value.node);
        }
        let below = |class: usize| {
            let mut found = BTreeSet::new();
            let mut open: Vec<NodeId> = written.get(&class).into_iter().flatten().copied().collect();
            while let Some(id) = open.pop() {
                if found.insert(id) {
                    let gone = func.nodes[id].inputs.iter().filter(|v| !result.needed.contains(&space.at(classes[v])));
                    open.extend(gone.map(|v| v.node));
                }
            }
            found
        };
        let mut replaced: BTreeMap<NodeId, BTreeSet<NodeId>> = BTreeMap::new();
        let mut read: BTreeMap<NodeId, BTreeSet<NodeId>> = BTreeMap::new();
        for id in result.func.nodes.ids().rev() {
            let own = result.classes.get(&id).map(|c| below(*c)).unwrap_or_default();
            let all = if own.is_empty() { read.remove(&id).unwrap_or_default() } else { own };
            for v in &result.func.nodes[id].inputs {
                read.entry(v.node).or_default().extend(all.iter().copied());
            }
            replaced.insert(id, all);
        }
        History { written, replaced }
    }
}
