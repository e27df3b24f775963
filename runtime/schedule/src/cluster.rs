//! Costs of a mixture-of-experts run on many GPUs, from a description of the machine and of the routing, so that a run can be planned that
//! nobody can afford to try. The model is DeepSeek-V3: tokens leave a GPU's node in copies, one for each expert or one for each node.
//! # Source: DeepSeek-V3 report, 2024, sections 2.1.2 and 3.2; the published trace of its training (profile-data, train.json).

use crate::{
    Costs,
    costs::{Hop, Memory},
};

/// A kind of GPU in nodes of eight, each with a network card of its own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gpu {
    /// Its name on the command line.
    pub name: &'static str,
    /// Inside the node. # Units: bytes a second.
    pub nvlink: f64,
    /// Between nodes. # Units: bytes a second.
    pub network: f64,
}

/// The GPUs that a cluster may have: all compute alike; H800 has less NVLink. # Source: 160 GB/s usable of H800's, DeepSeek-V3 report 3.2.2;
/// 450 GB/s one way of H100's and H200's, NVIDIA's data sheets; 400 Gb/s InfiniBand.
pub const GPUS: [Gpu; 3] = [
    Gpu { name: "H800", nvlink: 160e9, network: 50e9 },
    Gpu { name: "H100", nvlink: 450e9, network: 50e9 },
    Gpu { name: "H200", nvlink: 450e9, network: 50e9 },
];

/// GPUs of a node.
pub const NODE: usize = 8;

/// How tokens are sent to experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routing {
    /// A token's experts are on at most four nodes; one copy goes to each.
    Limited,
    /// Experts anywhere; one copy to each node.
    Unrestricted,
    /// Experts anywhere; one copy to each expert.
    Plain,
}

impl Routing {
    /// All.
    pub const ALL: [Routing; 3] = [Routing::Limited, Routing::Unrestricted, Routing::Plain];

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Routing::Limited => "node-limited, deduplicated",
            Routing::Unrestricted => "unrestricted, deduplicated",
            Routing::Plain => "unrestricted, not deduplicated",
        }
    }
}

/// A run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cluster {
    /// How many.
    pub gpus: usize,
    /// Of which kind.
    pub gpu: Gpu,
    /// GPUs that share a layer's experts.
    pub expert_ranks: usize,
    /// Ranks of a pipeline.
    pub ranks: usize,
}

// The layer of DeepSeek-V3. # Source: its config.json and report, section 4.2.
const HIDDEN: f64 = 7168.0;
const EXPERT_HIDDEN: f64 = 2048.0;
const EXPERTS: f64 = 256.0;
const TOP: f64 = 8.0;
const NODE_LIMIT: f64 = 4.0;
/// Sequence length, one sequence a micro-batch.
pub const TOKENS: f64 = 4096.0;
/// Sequences of a step.
pub const BATCH: usize = 15_360;
/// Layers of a stage: 61 over 16 ranks.
pub const STAGE_LAYERS: f64 = 4.0;
/// Attention (multi-head latent), norms, router and the shared expert of a layer. # Units: parameters. From the dimensions in config.json.
const DENSE_PARAMETERS: f64 = 231e6;

// What the trace says of a layer's forward and backward, overlapped. # Units: ms. Compute spans of the last three layers, on the 112
// processors that communication leaves.
const FORWARD: f64 = 4.5 + 4.8;
const BACKWARD_INPUT: f64 = 5.2 + 9.6;
const BACKWARD_WEIGHT: f64 = 5.0 + 2.4;
/// The layer pair in steady state. # Units: ms.
const PAIR: f64 = 31.6;
/// Waiting in notify kernels. # Units: ms a layer pair.
const NOTIFY: f64 = 8.0;
/// All processors over those that communication leaves: 132 / 112.
const WHOLE_GPU: f64 = 1.18;
/// Transfers under compute move 568 MB in 20.1 ms over a card of 50 GB/s.
const LINE_RATE: f64 = 568.0e6 / 20.1e-3 / 50.0e9;

impl Cluster {
    /// Reads `4096xH100`. Nothing if it is not of that form, or no GPU that is known.
    pub fn parse(text: &str, ranks: usize, expert_ranks: usize) -> Option<Cluster> {
        let (gpus, name) = text.split_once('x')?;
        let gpu = *GPUS.iter().find(|g| g.name.eq_ignore_ascii_case(name))?;
        Some(Cluster { gpus: gpus.parse().ok()?, gpu, expert_ranks, ranks })
    }

    /// Pipelines side by side.
    pub fn copies(&self) -> usize {
        self.gpus / self.ranks
    }

    /// Micro-batches of each pipeline's step, for the published global batch.
    pub fn micro(&self) -> usize {
        BATCH / self.copies()
    }

    /// Copies of a token that leave its node, on average.
    pub fn remote_copies(&self, routing: Routing) -> f64 {
        let nodes = (self.expert_ranks as f64 / NODE as f64).max(1.0);
        let away = 1.0 - 1.0 / nodes;
        match routing {
            Routing::Plain => TOP * away,
            Routing::Unrestricted => nodes_hit(nodes, EXPERTS) * away,
            Routing::Limited => {
                let limit = NODE_LIMIT.min(nodes);
                nodes_hit(limit, EXPERTS * limit / nodes) * away
            }
        }
    }

    /// What a GPU sends to other nodes for a layer's forward and backward: FP8 with a scale for 128 values and 12 bytes an expert one way,
    /// BF16 back, and the same for gradients. # Units: bytes.
    pub fn remote_bytes(&self, routing: Routing) -> f64 {
        2.0 * TOKENS * self.remote_copies(routing) * COPY_BYTES
    }

    /// Transfers of a layer's forward and backward: network or NVLink, whichever takes longer. # Units: ms.
    pub fn comm(&self, routing: Routing) -> f64 {
        // Inside the node each expert on another GPU gets a copy.
        let local = 2.0 * TOKENS * TOP * (1.0 - 1.0 / NODE as f64) * COPY_BYTES;
        let network = self.remote_bytes(routing) / (LINE_RATE * self.gpu.network);
        network.max(local / (LINE_RATE * self.gpu.nvlink)) * 1e3
    }

    /// The part of a pair's time that communication is not under compute.
    pub fn exposed(&self, routing: Routing) -> f64 {
        let pair = PAIR.max(self.comm(routing) + NOTIFY);
        1.0 - PAIR / pair
    }

    /// Costs of a stage. # Units: ms, bytes.
    pub fn costs(&self, routing: Routing) -> Costs {
        let comm = self.comm(routing);
        let layers = STAGE_LAYERS;
        let alone = |compute: f64, comm: f64| layers * (compute / WHOLE_GPU + comm);
        let message = TOKENS * HIDDEN * 2.0;
        let parameters = layers * (DENSE_PARAMETERS + 3.0 * HIDDEN * EXPERT_HIDDEN * EXPERTS / self.expert_ranks as f64);
        Costs {
            unit: "ms".into(),
            parts: Some(self.ranks as f64),
            forward: alone(FORWARD, comm / 2.0),
            backward_input: alone(BACKWARD_INPUT, comm / 2.0),
            backward_weight: alone(BACKWARD_WEIGHT, 0.0),
            pair: Some(layers * PAIR.max(comm + NOTIFY)),
            hop: Hop { latency: 0.0, bytes: message, bytes_per_unit: self.gpu.network * 1e-3 },
            // BF16 weights and F32 gradients.
            memory: Memory { parameters: parameters * 6.0, ..Memory::default() },
            ..Costs::unit(0.0)
        }
    }

    /// What the step would take if a GPU did nothing but compute. # Units: ms.
    pub fn pure_compute(&self, micro: usize) -> f64 {
        micro as f64 * STAGE_LAYERS * (FORWARD + BACKWARD_INPUT + BACKWARD_WEIGHT) / WHOLE_GPU
    }
}

/// A copy of a token there and back: see [`Cluster::remote_bytes`].
const COPY_BYTES: f64 = HIDDEN + 4.0 * HIDDEN / 128.0 + 12.0 * TOP + 2.0 * HIDDEN;

/// Of `nodes` that hold `experts` together, how many have one of a token's experts, on average.
fn nodes_hit(nodes: f64, experts: f64) -> f64 {
    // C(e − e/d, k) / C(e, k): all k miss a node.
    let here = experts / nodes;
    let miss: f64 = (0..TOP as usize).map(|i| ((experts - here - i as f64) / (experts - i as f64)).max(0.0)).product();
    nodes * (1.0 - miss)
}
