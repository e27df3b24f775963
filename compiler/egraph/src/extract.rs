//! Picks one e-node for each class so that the program they make, shared values counted once, costs least.
//!
//! Two starts: the program as it came, and bottom-up greedy with the set of classes that each choice pulls in. From both a local search, which
//! switches one choice, or all choices that can read one more product at once, and keeps what lowers the cost of the program; a region that maps columns
//! of a product takes that from others which are joined with it, so it is switched together with these. Ties go to the program as it came, then to the
//! e-node that is first in order.

use crate::{
    Cost,
    language::{ENode, Facts, Head},
    rewrite::{classes, sorted},
};
use base::{Span, TensorType};
use egg::{EGraph, Id};
use graph::{Func, Node, NodeId, Op, Value, op::Form};
use std::collections::{BTreeMap, BTreeSet};

/// How an op meets memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Renames elements of its first operand. Whether they lie row after row if those do.
    View { in_rows: bool },
    /// One result of several: where that is.
    Part,
    /// Computed where it is read, element by element; has to be stored for an op that reads memory.
    OnTheFly,
    /// Reads operands from memory, where they have to be: with gaps between elements or in any order, or row after row, so that a view which is not is copied
    /// for it.
    Memory { strided: bool },
    /// Takes operands as they come; its result is in memory, or it is a constant. Whether what copies a view of it computes it instead.
    Sink { moved: bool },
}

fn place(op: &Op, operands: &[&TensorType], results: &[TensorType]) -> Place {
    let is_one = |axis: usize| operands[0].shape[axis].is(1);
    match op {
        Op::Broadcast { .. } => Place::View { in_rows: operands[0].elems() == results[0].elems() },
        Op::Transpose(axes) => Place::View { in_rows: axes.iter().filter(|a| !is_one(**a)).is_sorted() },
        Op::Slice { axis, step, .. } => {
            Place::View { in_rows: *step == 1 && (operands[0].shape == results[0].shape || (0..*axis).all(is_one)) }
        }
        Op::Reshape(_) | Op::StopGradient => Place::View { in_rows: true },
        Op::Map(_) | Op::Cast(_) | Op::Pad { .. } | Op::Gather { .. } => Place::OnTheFly,
        Op::Contract(_) | Op::Repeat(_) | Op::Fused(_) => Place::Memory { strided: true },
        Op::ScatterAdd { .. }
        | Op::TopK(_)
        | Op::Cumsum { .. }
        | Op::Attend(_)
        | Op::AttendGrad(_)
        | Op::Route { .. }
        | Op::GroupedContract { .. }
        | Op::GroupedOuter
        | Op::Exchange { .. }
        | Op::Quantize(_) => Place::Memory { strided: false },
        Op::Const(..) | Op::Extent(..) | Op::Iota(_) | Op::Concat(_) => Place::Sink { moved: true },
        Op::Arg(_) | Op::Reduce(..) | Op::Dequantize(_) => Place::Sink { moved: false },
    }
}

/// Whether a value that is given is stored by a kernel of its own, which the kernel of an operand might do: that of a product, or of a row.
fn is_map(op: &Op) -> bool {
    matches!(op, Op::Map(_) | Op::Cast(_))
}

fn op_cost(op: &Op, operands: &[&TensorType], results: &[TensorType], cost: Cost) -> f64 {
    match op {
        Op::Arg(_) => 0.0,
        Op::Repeat(r) => r.count as f64 * program_cost(&r.body, cost),
        _ => cost(op, operands, results),
    }
}

/// What it costs to store a value that is computed on the fly: a copy, which is a `concat` of one.
fn store_cost(ty: &TensorType, cost: Cost) -> f64 {
    if ty.rank() == 0 { 0.0 } else { cost(&Op::Concat(0), &[ty], std::slice::from_ref(ty)) }
}

/// The cost of a program: of all nodes that its outputs need, and of storing what is computed on the fly and read from memory, or mapped
/// and given, and of copying views for what reads rows.
pub fn program_cost(func: &Func, cost: Cost) -> f64 {
    let mut needed = vec![false; func.nodes.len()];
    let mut stored = vec![false; func.nodes.len()];
    let mut sum = 0.0;
    let place = |node: &Node| {
        let operands: Vec<&TensorType> = node.inputs.iter().map(|v| func.ty(*v)).collect();
        place(&node.op, &operands, &node.types)
    };
    // What a value in memory costs, if it is a view of what is computed on the fly or is computed so itself, or if its elements have to be moved.
    let mut store = |v: Value, user: User| {
        let (mut from, mut in_place) = (v, true);
        while let Place::View { in_rows } = place(func.def(from)) {
            in_place &= user.sees(in_rows);
            from = func.def(from).inputs[0];
        }
        let Some(at) = to_store(v, from, in_place, place(func.def(from))) else { return 0.0 };
        let new = !std::mem::replace(&mut stored[at.node.0 as usize], true);
        if new { store_cost(func.ty(at), cost) } else { 0.0 }
    };
    for o in &func.outputs {
        needed[o.value.node.0 as usize] = true;
        let node = func.def(o.value);
        let counts = is_map(&node.op) || matches!(place(node), Place::View { .. });
        sum += if counts { store(o.value, User::Output) } else { 0.0 };
    }
    for id in func.nodes.ids().rev() {
        if !needed[id.0 as usize] {
            continue;
        }
        let node = &func.nodes[id];
        for v in &node.inputs {
            needed[v.node.0 as usize] = true;
            if let Place::Memory { strided } = place(node) {
                sum += store(*v, User::Reader { strided });
            }
        }
        let operands: Vec<&TensorType> = node.inputs.iter().map(|v| func.ty(*v)).collect();
        sum += op_cost(&node.op, &operands, &node.types, cost);
    }
    sum
}

/// Who wants a value in memory.
#[derive(Clone, Copy)]
enum User {
    /// An op, of any order and gaps or of rows alone.
    Reader { strided: bool },
    /// Whoever the program gives it to, in a place of its own.
    Output,
}

impl User {
    /// Whether a view is seen where the value below it is.
    fn sees(self, in_rows: bool) -> bool {
        match self {
            User::Reader { strided } => strided || in_rows,
            User::Output => false,
        }
    }
}

/// What a kernel has to store for a reader of memory to find a view of `from`, if any does: the view, where it is not in place, or what is computed on the fly.
fn to_store<T>(view: T, from: T, in_place: bool, place: Place) -> Option<T> {
    match place {
        Place::OnTheFly if in_place => Some(from),
        Place::Sink { moved: true } => None,
        _ => (!in_place).then_some(view),
    }
}

/// An e-node of a class.
struct Candidate<'a> {
    node: &'a ENode,
    children: Vec<usize>,
    cost: f64,
    place: Place,
    is_map: bool,
    /// Whether it is a region of a product's columns that costs less than its ops do apart: for which there is a kernel.
    maps_columns: bool,
}

impl Candidate<'_> {
    fn is_view(&self) -> bool {
        matches!(self.place, Place::View { .. } | Place::Part)
    }
    fn reads_memory(&self) -> bool {
        matches!(self.place, Place::Memory { .. })
    }
}

/// Everything that can be chosen: for each class its e-nodes, costs worked out.
pub struct Space<'a> {
    egraph: &'a EGraph<ENode, Facts>,
    ids: Vec<Id>,
    options: Vec<Vec<Candidate<'a>>>,
    store: Vec<f64>,
    /// For each class the choices of others that are views of it.
    viewers: Vec<Vec<(usize, u32)>>,
}

/// Classes, each with the place of a candidate.
type Choices = Vec<(usize, u32)>;

/// For each class the e-node chosen, by its place among the candidates.
#[derive(Clone, PartialEq, Debug)]
pub struct Choice(Vec<Option<u32>>);

/// Evaluations of the whole program that the local search may spend on one function.
const TRIES: usize = 3000;
/// Rounds of the greedy start; it settles in three or four.
const ROUNDS: usize = 12;

impl<'a> Space<'a> {
    /// The choices of an e-graph.
    pub fn new(egraph: &'a EGraph<ENode, Facts>, cost: Cost) -> Space<'a> {
        let ids = classes(egraph);
        let at: BTreeMap<Id, usize> = ids.iter().enumerate().map(|(i, id)| (*id, i)).collect();
        let candidate = |id: Id, node: &'a ENode| {
            let children = node.children.iter().map(|c| at[&egraph.find(*c)]).collect();
            let Some(op) = egraph.analysis.op(node.head) else {
                return Candidate { node, children, cost: 0.0, place: Place::Part, is_map: false, maps_columns: false };
            };
            let operands: Vec<&TensorType> = node.children.iter().map(|c| &egraph[*c].data.types[0]).collect();
            let results = &egraph[id].data.types;
            let (own, place) = (op_cost(&op, &operands, results, cost), place(&op, &operands, results));
            let maps_columns = match &*op {
                Op::Fused(r) => {
                    let joins = || r.body.nodes.values().any(|n| matches!(n.op, Op::Concat(_)));
                    r.form == Form::Product && joins() && own < program_cost(&r.body, cost)
                }
                _ => false,
            };
            Candidate { node, children, cost: own, place, is_map: is_map(&op), maps_columns }
        };
        let options: Vec<Vec<Candidate>> =
            ids.iter().map(|id| sorted(egraph, *id).into_iter().map(|n| candidate(*id, n)).collect()).collect();
        let store = ids.iter().map(|id| store_cost(&egraph[*id].data.types[0], cost)).collect();
        let mut viewers = vec![Vec::new(); ids.len()];
        for (class, candidates) in options.iter().enumerate() {
            for (i, c) in candidates.iter().enumerate().filter(|(_, c)| c.is_view()) {
                viewers[c.children[0]].push((class, i as u32));
            }
        }
        Space { egraph, ids, options, store, viewers }
    }

    /// The class at a place.
    pub fn id(&self, class: usize) -> Id {
        self.ids[class]
    }

    /// The place of a class.
    pub fn at(&self, class: Id) -> usize {
        self.ids.binary_search(&self.egraph.find(class)).unwrap_or_else(|_| base::bug!("no class {class}"))
    }

    /// Whether a class is one value, rather than the results of an op with several.
    #[cfg(test)]
    pub fn is_single(&self, class: usize) -> bool {
        self.egraph[self.ids[class]].data.types.len() == 1
    }

    /// The number of candidates of each class.
    #[cfg(test)]
    pub fn num_options(&self) -> Vec<usize> {
        self.options.iter().map(Vec::len).collect()
    }

    /// The cheapest choice found for the outputs. `input` are the e-nodes of the program as it came.
    pub fn cheapest(&self, outputs: &[usize], input: &[(Id, ENode)]) -> Choice {
        let greedy = self.greedy(outputs);
        let mut given = greedy.clone();
        for (class, node) in input.iter().rev() {
            let mut node = node.clone();
            node.children.iter_mut().for_each(|c| *c = self.egraph.find(*c));
            let class = self.at(*class);
            // Of equal values the first stays.
            if let Some(i) = self.options[class].iter().position(|c| *c.node == node) {
                given.0[class] = Some(i as u32);
            }
        }
        let mut tries = TRIES;
        let (given, greedy) = (self.improve(given, outputs, &mut tries), self.improve(greedy, outputs, &mut tries));
        if greedy.1 < given.1 { greedy.0 } else { given.0 }
    }

    /// Bottom-up: each class takes the e-node whose classes below, each once, cost least.
    pub fn greedy(&self, outputs: &[usize]) -> Choice {
        let words = self.ids.len().div_ceil(64);
        let mut chosen: Vec<Option<(u32, Vec<u64>, f64)>> = vec![None; self.ids.len()];
        let order = self.postorder(outputs);
        let mut needs = vec![0u64; words];
        for _ in 0..ROUNDS {
            let mut changed = false;
            for class in &order {
                let bit = |set: &[u64]| set[class / 64] >> (class % 64) & 1 == 1;
                for (i, candidate) in self.options[*class].iter().enumerate() {
                    needs.fill(0);
                    let mut whole = true;
                    for c in &candidate.children {
                        match &chosen[*c] {
                            Some((_, set, _)) => needs.iter_mut().zip(set).for_each(|(a, b)| *a |= b),
                            None => whole = false,
                        }
                    }
                    if !whole || bit(&needs) {
                        continue;
                    }
                    let mut total = candidate.cost;
                    for (word, bits) in needs.iter().enumerate() {
                        let mut bits = *bits;
                        while bits != 0 {
                            let c = word * 64 + bits.trailing_zeros() as usize;
                            total += chosen[c].as_ref().map_or(0.0, |(n, ..)| self.options[c][*n as usize].cost);
                            bits &= bits - 1;
                        }
                    }
                    if candidate.reads_memory() {
                        for c in &candidate.children {
                            total +=
                                chosen[*c].as_ref().map_or(0.0, |(n, ..)| self.stored_below(*c, &self.options[*c][*n as usize]));
                        }
                    }
                    if chosen[*class].as_ref().is_none_or(|(_, _, least)| total < *least) {
                        let mut set = needs.clone();
                        set[class / 64] |= 1 << (class % 64);
                        chosen[*class] = Some((i as u32, set, total));
                        changed = true;
                    }
                }
            }
            if !changed {
                break;
            }
        }
        Choice(chosen.into_iter().map(|c| c.map(|(i, ..)| i)).collect())
    }

    /// What a reader of memory makes an operand cost, if that is computed on the fly.
    fn stored_below(&self, class: usize, chosen: &Candidate) -> f64 {
        if chosen.place == Place::OnTheFly { self.store[class] } else { 0.0 }
    }

    /// Classes, operands before users where that can be.
    fn postorder(&self, outputs: &[usize]) -> Vec<usize> {
        let mut order = Vec::new();
        let mut seen = vec![false; self.ids.len()];
        // What no output needs comes last: rules may choose it all the same.
        for root in outputs.iter().copied().chain(0..self.ids.len()) {
            let mut stack = vec![(root, false)];
            while let Some((class, done)) = stack.pop() {
                if done {
                    order.push(class);
                } else if !std::mem::replace(&mut seen[class], true) {
                    stack.push((class, true));
                    let below = self.options[class].iter().flat_map(|c| &c.children);
                    stack.extend(below.filter(|c| !seen[**c]).map(|c| (*c, false)));
                }
            }
        }
        order
    }

    fn chosen(&self, choice: &Choice, class: usize) -> Option<&Candidate<'a>> {
        choice.0[class].map(|i| &self.options[class][i as usize])
    }

    /// The classes the outputs need, operands first; `None` on a cycle or a gap.
    fn order(&self, choice: &Choice, outputs: &[usize]) -> Option<Vec<usize>> {
        #[derive(Clone, Copy, PartialEq)]
        enum State {
            New,
            Open,
            Done,
        }
        let mut order = Vec::new();
        let mut state = vec![State::New; self.ids.len()];
        for output in outputs {
            let mut stack = vec![(*output, 0)];
            while let Some((class, next)) = stack.pop() {
                if next == 0 {
                    match state[class] {
                        State::Done => continue,
                        State::Open => return None,
                        State::New => state[class] = State::Open,
                    }
                }
                let children = &self.chosen(choice, class)?.children;
                if next < children.len() {
                    stack.push((class, next + 1));
                    match state[children[next]] {
                        State::Done => {}
                        State::Open => return None,
                        State::New => stack.push((children[next], 0)),
                    }
                } else {
                    state[class] = State::Done;
                    order.push(class);
                }
            }
        }
        Some(order)
    }

    /// The cost of the classes the outputs need; infinite if a choice needs itself.
    pub fn total(&self, choice: &Choice, outputs: &[usize]) -> f64 {
        let Some(order) = self.order(choice, outputs) else { return f64::INFINITY };
        let chosen = |class: usize| self.chosen(choice, class).expect("all that is needed is chosen");
        let mut stored = vec![false; self.ids.len()];
        let mut store = |class: usize, user: User| {
            let (mut from, mut in_place) = (class, true);
            while chosen(from).is_view() {
                in_place &= chosen(from).place == Place::Part || user.sees(chosen(from).place == Place::View { in_rows: true });
                from = chosen(from).children[0];
            }
            let Some(at) = to_store(class, from, in_place, chosen(from).place) else { return 0.0 };
            let new = !std::mem::replace(&mut stored[at], true);
            if new { self.store[at] } else { 0.0 }
        };
        let mut sum = 0.0;
        for class in order {
            let candidate = chosen(class);
            sum += candidate.cost;
            if let Place::Memory { strided } = candidate.place {
                sum += candidate.children.iter().map(|c| store(*c, User::Reader { strided })).sum::<f64>();
            }
        }
        let given = outputs.iter().filter(|c| chosen(**c).is_map || matches!(chosen(**c).place, Place::View { .. }));
        sum + given.map(|c| store(*c, User::Output)).sum::<f64>()
    }

    /// Local search; the choice and its cost.
    fn improve(&self, mut best: Choice, outputs: &[usize], tries: &mut usize) -> (Choice, f64) {
        let mut least = self.total(&best, outputs);
        let readers = (0..self.ids.len()).map(|p| (p, self.readers(p)));
        let groups: Vec<(usize, Choices)> = readers.filter(|(_, g)| !g.is_empty()).collect();
        let apart = self.apart(&groups);
        loop {
            let before = least;
            let keep = |other: Choice, best: &mut Choice, least: &mut f64| {
                let total = self.total(&other, outputs);
                // Rounding of sums in another order is no gain.
                if total < *least * (1.0 - 1e-12) {
                    (*best, *least) = (other, total);
                }
            };
            for (_, group) in &groups {
                if *tries > 0 && group.iter().any(|(c, i)| best.0[*c] != Some(*i)) {
                    *tries -= 1;
                    let mut other = best.clone();
                    group.iter().for_each(|(c, i)| other.0[*c] = Some(*i));
                    keep(other, &mut best, &mut least);
                }
            }
            let needed = self.order(&best, outputs).unwrap_or_default();
            for ((class, i), others) in &apart {
                for group in others {
                    if *tries > 0 && needed.contains(class) && best.0[*class] != Some(*i) {
                        *tries -= 1;
                        let mut other = best.clone();
                        group.iter().chain([&(*class, *i)]).for_each(|(c, i)| other.0[*c] = Some(*i));
                        keep(other, &mut best, &mut least);
                    }
                }
            }
            for class in needed {
                for i in 0..self.options[class].len() as u32 {
                    if *tries > 0 && best.0[class] != Some(i) {
                        *tries -= 1;
                        let mut other = best.clone();
                        other.0[class] = Some(i);
                        keep(other, &mut best, &mut least);
                    }
                }
            }
            if least >= before || *tries == 0 {
                return (best, least);
            }
        }
    }

    /// Choices that are regions of a product's columns, and what may change with each: readers of a joined product of the same rows, or such a product that is
    /// read no more from a joined one.
    fn apart(&self, groups: &[(usize, Choices)]) -> Vec<((usize, u32), Vec<Choices>)> {
        let all = || self.options.iter().enumerate().flat_map(|(class, of)| (0..).zip(of).map(move |(i, c)| (class, i, c)));
        let op = |c: &Candidate| self.egraph.analysis.op(c.node.head);
        let is_slice = |c: &Candidate| matches!(op(c).as_deref(), Some(Op::Slice { .. }));
        let is_product = |c: &Candidate| matches!(op(c).as_deref(), Some(Op::Contract(_)));
        let own: Vec<_> = all().filter(|(class, _, c)| is_product(c) && self.options[*class].iter().any(is_slice)).collect();
        let of_region = |(class, i, region): (usize, u32, &Candidate)| {
            // Rows may be widened before a product, and inside of a region.
            let widens =
                |c: &Candidate| matches!(op(c).as_deref(), Some(Op::Cast(_))) && region.children.contains(&c.children[0]);
            let has = |x: usize| region.children.contains(&x) || self.options[x].iter().any(widens);
            let same_rows = |c: &Candidate| is_product(c) && has(c.children[0]);
            let joined = groups.iter().filter(|(product, _)| self.options[*product].iter().any(same_rows));
            let apart = own.iter().filter(|(.., c)| same_rows(c)).map(|(class, i, _)| vec![(*class, *i)]);
            ((class, i), joined.map(|(_, readers)| readers.clone()).chain(apart).collect())
        };
        all().filter(|(.., c)| c.maps_columns).map(of_region).collect()
    }

    /// All choices that lead to one class through views alone: what can read it. None for a class that is not computed in memory.
    fn readers(&self, class: usize) -> Choices {
        if self.options[class].iter().all(|c| !c.reads_memory()) {
            return Vec::new();
        }
        let mut reached = vec![class];
        let mut found = Choices::new();
        let mut next = 0;
        while next < reached.len() {
            for (user, i) in &self.viewers[reached[next]] {
                if !reached.contains(user) {
                    reached.push(*user);
                    found.push((*user, *i));
                }
            }
            next += 1;
        }
        // Only where there is a choice to make.
        found.retain(|(c, _)| self.options[*c].len() > 1);
        found
    }
}

/// A program that was extracted.
pub struct Extracted {
    /// The function.
    pub func: Func,
    /// The nodes that a rule made.
    pub by_rule: Vec<Made>,
    /// The place of the class of each node.
    pub classes: BTreeMap<NodeId, usize>,
    /// The places of all classes that it computes.
    pub needed: BTreeSet<usize>,
}

/// A node that a rule made.
pub struct Made {
    /// The node of the extracted program.
    pub node: NodeId,
    /// The rule's place in the table.
    pub rule: usize,
    /// Its e-node.
    pub e_node: ENode,
    /// The place of the class.
    pub class: usize,
}

impl Space<'_> {
    /// The same choice but for one class; `None` if it then needs itself.
    #[cfg(test)]
    pub fn force(&self, choice: &Choice, class: usize, option: usize) -> Option<Choice> {
        let mut other = choice.clone();
        other.0[class] = Some(option as u32);
        self.order(&other, &[class]).is_some().then_some(other)
    }

    /// What the choice for a class is made by: a rule, or the source.
    fn rules(&self) -> BTreeMap<ENode, usize> {
        let mut rules = BTreeMap::new();
        for (node, rule) in &self.egraph.analysis.made {
            let mut node = node.clone();
            node.children.iter_mut().for_each(|c| *c = self.egraph.find(*c));
            rules.entry(node).or_insert(*rule);
        }
        rules
    }

    /// The chosen program: a function with the arguments of `func` and these outputs, of the classes.
    pub fn rebuild(&self, choice: &Choice, func: &Func, args: &[usize], outputs: &[(&graph::Output, usize)]) -> Extracted {
        let mut out = Func::new(&func.name);
        let mut values: Vec<Vec<Value>> = vec![Vec::new(); self.ids.len()];
        for ((arg, _, ty), class) in func.arg_values().zip(args) {
            values[*class] = vec![out.arg(&arg.name, arg.role, ty.clone())];
        }
        let rules = self.rules();
        let (mut by_rule, mut of_nodes) = (Vec::new(), BTreeMap::new());
        let roots: Vec<usize> = outputs.iter().map(|(_, c)| *c).collect();
        let order = self.order(choice, &roots).unwrap_or_else(|| base::bug!("the extracted program has a cycle"));
        let needed = order.iter().copied().collect();
        for class in order {
            if !values[class].is_empty() {
                continue;
            }
            let candidate = self.chosen(choice, class).expect("all that is needed is chosen");
            values[class] = match candidate.node.head {
                Head::Arg(_) => base::bug!("an argument has its value already"),
                Head::Result(i) => vec![values[candidate.children[0]][i as usize]],
                Head::Map(_) | Head::Op(_) => {
                    let fact = &self.egraph[self.ids[class]].data;
                    let op = self.egraph.analysis.op(candidate.node.head).expect("a head with an op").into_owned();
                    let inputs = candidate.children.iter().map(|c| values[*c][0]).collect();
                    let node = out.nodes.push(Node { op, inputs, types: fact.types.clone(), origin: fact.origin });
                    of_nodes.insert(node, class);
                    if let Some(rule) = rules.get(candidate.node) {
                        by_rule.push(Made { node, rule: *rule, e_node: candidate.node.clone(), class });
                    }
                    (0..fact.types.len() as u32).map(|index| Value { node, index }).collect()
                }
            };
        }
        for (o, class) in outputs {
            out.output(&o.name, o.role, values[*class][0]);
        }
        Extracted { func: out, by_rule, classes: of_nodes, needed }
    }

    /// For each class that is needed, is no view and could be computed otherwise: each other choice.
    pub fn alternatives(&self, choice: &Choice, outputs: &[usize]) -> Vec<Alternative> {
        let rules = self.rules();
        let mut found = Vec::new();
        for class in self.order(choice, outputs).unwrap_or_default() {
            let chosen = self.chosen(choice, class).expect("all that is needed is chosen");
            for (i, candidate) in self.options[class].iter().enumerate() {
                let mut other = choice.clone();
                other.0[class] = Some(i as u32);
                let cost = self.total(&other, outputs);
                let (Some(op), Some(instead_of)) =
                    (self.egraph.analysis.op(candidate.node.head), self.egraph.analysis.op(chosen.node.head))
                else {
                    continue;
                };
                let rule = rules.get(candidate.node).copied();
                // One view in place of another says nothing; a view of what a rule makes may.
                let is_other_view = candidate.is_view() && (chosen.is_view() || rule.is_none());
                if other == *choice || is_other_view || cost.is_infinite() {
                    continue;
                }
                let types = |classes: &[usize]| classes.iter().map(|c| self.egraph[self.ids[*c]].data.types[0].clone()).collect();
                let fact = &self.egraph[self.ids[class]].data;
                found.push(Alternative {
                    class,
                    origin: fact.origin,
                    instead_of: instead_of.name(),
                    op: op.into_owned(),
                    operands: types(&candidate.children),
                    results: fact.types.clone(),
                    rule,
                    cost,
                });
            }
        }
        found
    }
}

/// What could have been chosen instead.
#[derive(Clone, Debug, PartialEq)]
pub struct Alternative {
    /// The place of the class.
    pub class: usize,
    /// The source text of the value.
    pub origin: Option<Span>,
    /// The op that was chosen.
    pub instead_of: &'static str,
    /// The op that would compute it.
    pub op: Op,
    /// The types of its operands.
    pub operands: Vec<TensorType>,
    /// The types of its results.
    pub results: Vec<TensorType>,
    /// The place of the rule that found it; `None` if it is as written.
    pub rule: Option<usize>,
    /// What the whole function would cost.
    pub cost: f64,
}
