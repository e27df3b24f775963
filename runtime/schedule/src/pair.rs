//! The inside of an overlapped pair: forward of one micro-batch and backward of another through the layers of their stages, as one list of
//! launches over a compute and a communication stream. Forward layers go up while backward layers come down.
//!
//! | slot | compute | communication |
//! |---|---|---|
//! | 1 | attention, forward | combine, backward: gradients go to the experts |
//! | 2 | experts, backward of inputs | dispatch, forward |
//! | 3 | experts, backward of weights; experts, forward | dispatch, backward: gradients come back |
//! | 4 | attention, backward of inputs; of weights | combine, forward |
//!
//! # Source: DeepSeek-V3 report, 2024, section 3.2.1, figure 4.

use crate::engine::{self, Job, Share, Span};
use petgraph::graph::{DiGraph, NodeIndex};

/// A part of a layer. Communication is named in the forward's words: the backward of a combine sends gradients out, as a dispatch does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Norm, attention, router.
    AttentionForward,
    /// Its gradients of inputs.
    AttentionBackwardInput,
    /// Its gradients of weights.
    AttentionBackwardWeight,
    /// The experts.
    ExpertsForward,
    /// Their gradients of inputs.
    ExpertsBackwardInput,
    /// Their gradients of weights.
    ExpertsBackwardWeight,
    /// Tokens to experts.
    DispatchForward,
    /// Gradients of tokens from experts.
    DispatchBackward,
    /// Results from experts.
    CombineForward,
    /// Gradients of results to experts.
    CombineBackward,
}

impl Part {
    /// A short name: F forward, B backward of inputs, W of weights.
    pub fn name(self) -> &'static str {
        match self {
            Part::AttentionForward => "attention.F",
            Part::AttentionBackwardInput => "attention.B",
            Part::AttentionBackwardWeight => "attention.W",
            Part::ExpertsForward => "experts.F",
            Part::ExpertsBackwardInput => "experts.B",
            Part::ExpertsBackwardWeight => "experts.W",
            Part::DispatchForward => "dispatch.F",
            Part::DispatchBackward => "dispatch.B",
            Part::CombineForward => "combine.F",
            Part::CombineBackward => "combine.B",
        }
    }

    /// Whether it runs on the communication stream.
    pub fn communicates(self) -> bool {
        match self {
            Part::DispatchForward | Part::DispatchBackward | Part::CombineForward | Part::CombineBackward => true,
            Part::AttentionForward | Part::AttentionBackwardInput | Part::AttentionBackwardWeight => false,
            Part::ExpertsForward | Part::ExpertsBackwardInput | Part::ExpertsBackwardWeight => false,
        }
    }

    /// Whether it belongs to the pair's forward.
    pub fn is_forward(self) -> bool {
        match self {
            Part::AttentionForward | Part::ExpertsForward | Part::DispatchForward | Part::CombineForward => true,
            Part::DispatchBackward | Part::CombineBackward => false,
            Part::AttentionBackwardInput | Part::AttentionBackwardWeight => false,
            Part::ExpertsBackwardInput | Part::ExpertsBackwardWeight => false,
        }
    }
}

/// One launch. Launches of a stream run in the order of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// What.
    pub part: Part,
    /// Of which layer of the stage, from 0.
    pub layer: usize,
    /// Launches of the other stream that it waits for, by their place in the list; all stand before it.
    pub waits: Vec<usize>,
}

/// The launches of a pair of stages with so many layers each, in the order in which one host thread can launch them.
pub fn launches(layers: usize) -> Vec<Launch> {
    let mut out: Vec<Launch> = Vec::with_capacity(10 * layers);
    let mut place = std::collections::BTreeMap::new();
    let mut launch = |part: Part, layer: usize, after: &[(Part, usize)]| {
        let waits = after.iter().filter_map(|a| place.get(a).copied()).collect();
        place.insert((part, layer), out.len());
        out.push(Launch { part, layer, waits });
    };
    for up in 0..layers {
        let down = layers - 1 - up;
        // What comes from outside the pair is there: the first attention and the last combine wait for nothing.
        let before = if up > 0 { vec![(Part::CombineForward, up - 1)] } else { vec![] };
        launch(Part::CombineBackward, down, &[(Part::AttentionBackwardInput, down + 1)]);
        launch(Part::AttentionForward, up, &before);
        launch(Part::DispatchForward, up, &[(Part::AttentionForward, up)]);
        launch(Part::ExpertsBackwardInput, down, &[(Part::CombineBackward, down)]);
        launch(Part::DispatchBackward, down, &[(Part::ExpertsBackwardInput, down)]);
        launch(Part::ExpertsBackwardWeight, down, &[]);
        launch(Part::ExpertsForward, up, &[(Part::DispatchForward, up)]);
        launch(Part::CombineForward, up, &[(Part::ExpertsForward, up)]);
        launch(Part::AttentionBackwardInput, down, &[(Part::DispatchBackward, down)]);
        launch(Part::AttentionBackwardWeight, down, &[]);
    }
    out
}

/// What the parts of a layer take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairCosts {
    /// Each part alone on what `compute_processors` or `comm_processors` give it, in the order of [`Part`].
    pub parts: [f64; 10],
    /// Processors of the GPU.
    pub processors: f64,
    /// Those that a kernel of the compute stream is written for.
    pub compute_processors: f64,
    /// Those that a kernel of the communication stream holds.
    pub comm_processors: f64,
}

impl PairCosts {
    /// DeepSeek's published trace: H800, 64 expert ranks, 4,096 tokens. Means of the last three layers; each transfer with a quarter of the
    /// 8 ms that a layer pair waits in notify kernels. # Units: ms.
    pub fn deepseek_v3() -> PairCosts {
        let notify = 2.0;
        PairCosts {
            parts: [4.5, 9.6, 2.4, 4.8, 5.2, 5.0, 4.35 + notify, 6.2 + notify, 6.2 + notify, 3.4 + notify],
            processors: 132.0,
            compute_processors: 112.0,
            comm_processors: 20.0,
        }
    }
}

/// A pair on the clock.
#[derive(Clone, Debug, PartialEq)]
pub struct PairTime {
    /// When each launch ran.
    pub spans: Vec<Span>,
    /// From the first to the last.
    pub makespan: f64,
    /// The compute stream is busy.
    pub compute: f64,
    /// The communication stream is busy.
    pub comm: f64,
    /// Both are.
    pub both: f64,
}

/// Plays a list of launches.
pub fn simulate(launches: &[Launch], costs: &PairCosts) -> PairTime {
    let mut graph = DiGraph::new();
    let nodes: Vec<NodeIndex> = launches.iter().map(|_| graph.add_node(())).collect();
    let mut last: [Option<NodeIndex>; 2] = [None; 2];
    for (launch, node) in launches.iter().zip(&nodes) {
        if let Some(before) = last[usize::from(launch.part.communicates())].replace(*node) {
            graph.add_edge(before, *node, ());
        }
        launch.waits.iter().for_each(|w| _ = graph.add_edge(nodes[*w], *node, ()));
    }
    let job = |l: &Launch| {
        let first = l.part.communicates();
        let amount = if first { costs.comm_processors } else { costs.compute_processors };
        Job { work: costs.parts[l.part as usize], shares: [Some(Share { pool: 0, amount, first }), None], ..Job::default() }
    };
    let jobs: Vec<Job> = launches.iter().map(job).collect();
    let spans: Vec<Span> = engine::run(&graph, &jobs, &[costs.processors], |()| false).into_iter().flatten().collect();
    assert_eq!(spans.len(), launches.len(), "waits point backwards, so nothing hangs");
    let of = |comm: bool| launches.iter().zip(&spans).filter(move |(l, _)| l.part.communicates() == comm).map(|(_, s)| *s);
    let busy = |comm: bool| of(comm).map(|s| s.end - s.start).sum();
    let both = of(false).flat_map(|a| of(true).map(move |b| (a.end.min(b.end) - a.start.max(b.start)).max(0.0))).sum();
    let makespan = spans.iter().map(|s| s.end).fold(0.0, f64::max);
    PairTime { makespan, compute: busy(false), comm: busy(true), both, spans }
}
