//! Which arguments of a loop's body are results of one routing: those of a turn of an earlier loop, which gradients are computed from, or of the function around.
//! In: a function whose earlier loops may be optimised already. Out: for each routing the arguments, so that rules know more of them than their types.

use graph::{Func, NodeId, Op};

/// The arguments that are a routing's offsets, sources and positions.
pub type Routing = [Option<u32>; 3];

/// The routings that the loop `id` gets results of.
pub fn routings(func: &Func, id: NodeId) -> Vec<Routing> {
    let node = &func.nodes[id];
    let Op::Repeat(r) = &node.op else { return Vec::new() };
    let mut found: Vec<(Vec<NodeId>, Routing)> = Vec::new();
    for (i, v) in node.inputs.iter().enumerate().skip(r.carried) {
        let is_slice = i >= r.carried + r.constant;
        let (route, index) = match &func.def(*v).op {
            Op::Route { .. } if !is_slice => (vec![v.node], v.index),
            Op::Repeat(from) if is_slice && v.index as usize >= from.carried => {
                let each = from.body.outputs[v.index as usize].value;
                if !matches!(from.body.def(each).op, Op::Route { .. }) {
                    continue;
                }
                (vec![v.node, each.node], each.index)
            }
            _ => continue,
        };
        let at = found.iter().position(|(r, _)| *r == route).unwrap_or_else(|| {
            found.push((route, [None; 3]));
            found.len() - 1
        });
        found[at].1[index as usize].get_or_insert(i as u32);
    }
    found.into_iter().map(|(_, args)| args).collect()
}
