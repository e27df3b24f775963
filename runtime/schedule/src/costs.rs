//! What actions cost: read from JSON, or a preset. Times are in any one unit; bytes are bytes.
//!
//! ```json
//! { "unit": "ms", "parts": 8,
//!   "forward": 1, "backward_input": 1, "backward_weight": 1, "pair": 2.4,
//!   "hop": { "latency": 0.01, "bytes": 58720256, "bytes_per_unit": 5e7 },
//!   "memory": { "activation": 1048576, "weight_part": 524288, "parameters": 4194304 } }
//! ```
//!
//! `parts`: the times and bytes are those of one of so many equal parts of the model; a plan with another number of stages scales them. Left
//! out, they are those of the part that each rank would hold if every stage were held once.

use crate::{Plan, ScheduleError};
use serde::{Deserialize, Serialize};

/// Times and bytes of a part of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Costs {
    /// The unit of times, for display.
    #[serde(default)]
    pub unit: String,
    /// How many equal parts the model has; the plan's ranks if left out.
    #[serde(default)]
    pub parts: Option<f64>,
    /// A forward.
    pub forward: f64,
    /// Gradients of inputs.
    pub backward_input: f64,
    /// Gradients of weights.
    pub backward_weight: f64,
    /// A whole backward; both halves if left out.
    #[serde(default)]
    pub backward: Option<f64>,
    /// A forward and a whole backward overlapped; their sum if left out.
    #[serde(default)]
    pub pair: Option<f64>,
    /// The optimiser's step.
    #[serde(default)]
    pub update: f64,
    /// The sum of gradients over a stage's holders.
    #[serde(default)]
    pub reduce: f64,
    /// A factor for each stage, where they differ (embedding, head): its times over those of an equal part.
    #[serde(default)]
    pub stages: Vec<f64>,
    /// A message to the next rank.
    #[serde(default)]
    pub hop: Hop,
    /// Bytes.
    #[serde(default)]
    pub memory: Memory,
    /// How much times vary.
    #[serde(default)]
    pub jitter: Jitter,
}

/// A message to a neighbour. It does not scale with the stage: it is a micro-batch's activations between two layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hop {
    /// Before the first byte.
    pub latency: f64,
    /// How large it is.
    pub bytes: f64,
    /// What a rank's link carries in a unit of time, in each direction, shared by the messages under way; 0: infinitely fast.
    pub bytes_per_unit: f64,
}

/// Memory of a part of the model, for one micro-batch where that matters. # Units: bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Memory {
    /// What a forward keeps for the backward.
    pub activation: f64,
    /// What of that, and of gradients, a split backward keeps on for the gradients of weights.
    pub weight_part: f64,
    /// What a forward keeps if it is recomputed: the input.
    pub input: f64,
    /// Parameters with gradients and moments.
    pub parameters: f64,
}

/// Slow and fast actions: each action's time is multiplied by 1 + `spread` · x, x drawn from an exponential distribution of mean 1 by a
/// counter-based generator, so that one action's draw does not depend on others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Jitter {
    /// 0: none.
    pub spread: f64,
    /// Of the generator.
    pub seed: u64,
}

impl Costs {
    /// Forward = gradients of inputs = gradients of weights = 1; `pair` as given.
    pub fn unit(pair: f64) -> Costs {
        Costs {
            unit: String::new(),
            parts: None,
            forward: 1.0,
            backward_input: 1.0,
            backward_weight: 1.0,
            backward: None,
            pair: Some(pair),
            update: 0.0,
            reduce: 0.0,
            stages: Vec::new(),
            hop: Hop::default(),
            memory: Memory::default(),
            jitter: Jitter::default(),
        }
    }

    /// Reads JSON.
    ///
    /// # Errors
    /// E0405 if it is not of the form above, or a time is negative.
    pub fn parse(text: &str) -> Result<Costs, ScheduleError> {
        let costs: Costs = serde_json::from_str(text).map_err(|e| ScheduleError::Costs { what: e.to_string() })?;
        let hop = [costs.hop.latency, costs.hop.bytes, costs.hop.bytes_per_unit];
        let memory = [costs.memory.activation, costs.memory.weight_part, costs.memory.input, costs.memory.parameters];
        let times = [costs.forward, costs.backward_input, costs.backward_weight, costs.update, costs.reduce, costs.jitter.spread];
        let optional = [costs.backward, costs.pair, costs.parts].into_iter().flatten();
        let mut all = times.into_iter().chain(optional).chain(hop).chain(memory).chain(costs.stages.iter().copied());
        match all.find(|x| !x.is_finite() || *x < 0.0) {
            Some(x) => Err(ScheduleError::Costs { what: format!("{x} is no time and no number of bytes") }),
            None => Ok(costs),
        }
    }

    /// Checks that the costs are of the plan.
    ///
    /// # Errors
    /// E0405 if there is a factor for another number of stages.
    pub fn check(&self, plan: &Plan) -> Result<(), ScheduleError> {
        if self.stages.is_empty() || self.stages.len() == plan.num_stages() {
            return Ok(());
        }
        let what = format!("there are factors for {} stages, and the plan has {}", self.stages.len(), plan.num_stages());
        Err(ScheduleError::Costs { what })
    }

    /// How large a stage of the plan is: 1 is a part. `pipeline_ranks`: ranks of one copy of the pipeline.
    pub fn scale(&self, plan: &Plan, stage: u16) -> f64 {
        let even = self.parts.unwrap_or(pipeline_ranks(plan) as f64) / plan.num_stages() as f64;
        even * self.stages.get(usize::from(stage)).copied().unwrap_or(1.0)
    }

    /// A whole backward.
    pub fn whole_backward(&self) -> f64 {
        self.backward.unwrap_or(self.backward_input + self.backward_weight)
    }

    /// A pair.
    pub fn whole_pair(&self) -> f64 {
        self.pair.unwrap_or(self.forward + self.whole_backward())
    }
}

/// The ranks of one copy of the pipeline: those that its first direction visits.
pub fn pipeline_ranks(plan: &Plan) -> usize {
    let mut ranks = plan.placement.ranks()[0].clone();
    ranks.sort_unstable();
    ranks.dedup();
    ranks.len()
}
