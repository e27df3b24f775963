//! The graph of a plan: what has to be done before what. In: a plan with its messages. Out: a node for each computation, for each message (its
//! send and its receive are one node: neither ends without the other) and for each sum of gradients; edges for the order of streams and for data.
//!
//! If the graph has no cycle the plan cannot hang, on ranks that post their messages in the order of their lists and then go on.

use crate::{Action, Message, Payload, Plan};
use petgraph::graph::{DiGraph, NodeIndex};
use std::collections::HashMap;

/// A node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// An action on a rank's compute stream.
    Compute {
        /// Where.
        rank: u32,
        /// In its list.
        position: u32,
    },
    /// A message between ranks.
    Message {
        /// Which.
        message: Message,
        /// The sender.
        from: u32,
        /// The receiver.
        to: u32,
    },
    /// A sum of gradients over all holders of a stage.
    Reduce {
        /// Which.
        stage: u16,
    },
}

/// Why one task comes after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// The same stream: of a rank's computations, of a communicator.
    Order,
    /// The next message from a rank to another.
    Channel,
    /// It reads what the other made.
    Data,
    /// A rank posts a message when its list gets there.
    Post,
    /// A rank waits for a send.
    Event,
}

/// The graph, and where actions are in it.
#[derive(Clone, Debug)]
pub struct Tasks {
    /// Nodes in the order of ranks and lists.
    pub graph: DiGraph<Task, Edge>,
    /// By rank and position; a wait has no node of its own and names its message's.
    pub nodes: Vec<Vec<Option<NodeIndex>>>,
}

/// Builds the graph. A plan that is wrong gives a graph too: ends that are missing have no edges.
pub fn tasks(plan: &Plan) -> Tasks {
    let total: usize = plan.actions.iter().map(Vec::len).sum();
    let mut graph = DiGraph::with_capacity(total, 4 * total);
    let units = plan.num_units();
    // Messages, and the forward and the backward that make them, by payload and unit.
    let mut message_node = [vec![None; units], vec![None; units]];
    let mut maker = [vec![None; units], vec![None; units]];
    let mut reduce_node: Vec<Option<NodeIndex>> = vec![None; plan.num_stages()];
    let mut nodes: Vec<Vec<Option<NodeIndex>>> = Vec::with_capacity(plan.num_ranks());
    for (rank, list) in plan.actions.iter().enumerate() {
        let mut row = Vec::with_capacity(list.len());
        for (position, action) in list.iter().enumerate() {
            row.push(match *action {
                Action::Send(m) | Action::Receive(m) => plan.index(m.unit).zip(plan.route(m)).map(|(i, (from, to))| {
                    let task = Task::Message { message: m, from: from as u32, to: to as u32 };
                    *message_node[m.payload as usize][i].get_or_insert_with(|| graph.add_node(task))
                }),
                Action::WaitSend(m) => plan.index(m.unit).and_then(|i| message_node[m.payload as usize][i]),
                Action::ReduceGrad { stage } => {
                    let known = reduce_node.get_mut(usize::from(stage));
                    known.map(|n| *n.get_or_insert_with(|| graph.add_node(Task::Reduce { stage })))
                }
                Action::Forward(_)
                | Action::Backward(_)
                | Action::BackwardInput(_)
                | Action::BackwardWeight(_)
                | Action::Pair { .. }
                | Action::Recompute(_)
                | Action::Update { .. } => {
                    let node = graph.add_node(Task::Compute { rank: rank as u32, position: position as u32 });
                    for m in action.makes() {
                        if let Some(i) = plan.index(m.unit) {
                            maker[m.payload as usize][i].get_or_insert(node);
                        }
                    }
                    Some(node)
                }
            });
        }
        nodes.push(row);
    }
    for (rank, list) in plan.actions.iter().enumerate() {
        let mut computed: Option<NodeIndex> = None;
        let mut reduced: Option<NodeIndex> = None;
        let mut events = Vec::new();
        let mut channels: HashMap<(usize, bool), NodeIndex> = HashMap::new();
        for (position, action) in list.iter().enumerate() {
            let Some(node) = nodes[rank][position] else { continue };
            let ends = |m: Message| plan.route(m).unwrap_or((rank, rank));
            match *action {
                Action::Send(m) | Action::Receive(m) => {
                    let sends = matches!(action, Action::Send(_));
                    let peer = if sends { ends(m).1 } else { ends(m).0 };
                    if let Some(before) = channels.insert((peer, sends), node) {
                        graph.add_edge(before, node, Edge::Channel);
                    }
                    let made = if sends { plan.index(m.unit).and_then(|i| maker[m.payload as usize][i]) } else { None };
                    if let Some(made) = made {
                        graph.add_edge(made, node, Edge::Data);
                    }
                    if let Some(computed) = computed.filter(|c| made != Some(*c)) {
                        graph.add_edge(computed, node, Edge::Post);
                    }
                }
                Action::WaitSend(_) => events.push(node),
                Action::ReduceGrad { .. } => {
                    if let Some(before) = reduced.replace(node) {
                        graph.add_edge(before, node, Edge::Order);
                    }
                    if let Some(computed) = computed {
                        graph.add_edge(computed, node, Edge::Data);
                    }
                }
                Action::Forward(_)
                | Action::Backward(_)
                | Action::BackwardInput(_)
                | Action::BackwardWeight(_)
                | Action::Pair { .. }
                | Action::Recompute(_)
                | Action::Update { .. } => {
                    if let Some(before) = computed.replace(node) {
                        graph.add_edge(before, node, Edge::Order);
                    }
                    events.drain(..).for_each(|e| _ = graph.add_edge(e, node, Edge::Event));
                    for m in action.reads(plan.num_stages()) {
                        let Some(i) = plan.index(m.unit) else { continue };
                        let (from, to) = ends(m);
                        let of = if from == to { &maker } else { &message_node };
                        if let Some(made) = of[m.payload as usize][i].filter(|n| *n != node) {
                            graph.add_edge(made, node, Edge::Data);
                        }
                    }
                    if let Action::Update { stage } = *action
                        && let Some(sum) = reduce_node.get(usize::from(stage)).copied().flatten()
                    {
                        graph.add_edge(sum, node, Edge::Data);
                    }
                }
            }
        }
    }
    Tasks { graph, nodes }
}

/// The nodes that can never start: those of cycles and what comes after them. None if the graph has no cycle.
pub fn stuck(tasks: &Tasks) -> Vec<bool> {
    let graph = &tasks.graph;
    let mut missing = vec![0u32; graph.node_count()];
    graph.raw_edges().iter().for_each(|e| missing[e.target().index()] += 1);
    let mut ready: Vec<NodeIndex> = graph.node_indices().filter(|n| missing[n.index()] == 0).collect();
    while let Some(node) = ready.pop() {
        for next in graph.neighbors(node) {
            missing[next.index()] -= 1;
            if missing[next.index()] == 0 {
                ready.push(next);
            }
        }
    }
    missing.iter().map(|m| *m > 0).collect()
}

/// What a task is, in the words of a plan's text.
pub fn name(plan: &Plan, task: Task) -> String {
    match task {
        Task::Compute { rank, position } => crate::text::cell(plan.actions[rank as usize][position as usize], plan.num_stages()),
        Task::Message { message, .. } => crate::text::cell(Action::Send(message), plan.num_stages()),
        Task::Reduce { stage } => crate::text::cell(Action::ReduceGrad { stage }, plan.num_stages()),
    }
}

const _: () = assert!(Payload::Activation as usize == 0 && Payload::Gradient as usize == 1, "they index pairs of lists");
