//! Continuing a prompt: one token at a time from the model's last row. The prefix is computed anew each time; a cache of keys and
//! values would live here, beside the tokens.

use crate::{ExecError, HostTensor, Session, random::Stream};
use base::DType;

/// How to choose.
#[derive(Clone, Debug)]
pub struct Options {
    /// Tokens to make.
    pub length: usize,
    /// 0 takes the likeliest.
    pub temperature: f64,
    /// Only the k likeliest.
    pub top_k: Option<usize>,
    /// Only the likeliest that make up this share.
    pub top_p: Option<f64>,
    /// Tokens the model sees at once.
    pub context: usize,
    /// The seed.
    pub seed: u64,
}

/// Continues `prompt`; each token as it is made goes to `emit`.
///
/// # Errors
/// E0704 for an empty prompt; E07xx of the model's run.
pub fn generate(s: &mut Session, prompt: &[i32], o: &Options, emit: &mut dyn FnMut(i32)) -> Result<Vec<i32>, ExecError> {
    let input = s.entry("forward")?.args.iter().find(|p| p.role == library::Role::Input).map(|p| p.name.clone());
    let input = input.ok_or_else(|| ExecError::Input { name: "tokens".into(), why: "the model takes no input".into() })?;
    if prompt.is_empty() {
        return Err(ExecError::Input { name: input, why: "the prompt is empty".into() });
    }
    let stream = Stream::new(o.seed, "generate");
    let mut tokens = prompt.to_vec();
    for i in 0..o.length {
        let seen = &tokens[tokens.len().saturating_sub(o.context.max(1))..];
        let shape = [1, seen.len() as i64];
        let dims = s.bind("forward", &[(&input, &shape)])?;
        let t = HostTensor::from_f64(DType::I32, &shape, seen.iter().map(|x| f64::from(*x)));
        let outputs = s.run("forward", &dims, &[(&input, &t)])?;
        let logits = outputs[0].1.to_f64();
        let vocab = logits.len() / seen.len();
        let next = choose(&logits[logits.len() - vocab..], o, stream.uniform(i as u64));
        tokens.push(next);
        emit(next);
    }
    Ok(tokens)
}

/// A token for a uniform number `u`: softmax at the temperature, cut to `top_k` and `top_p`, likeliest first, ties to the lower number.
pub fn choose(logits: &[f64], o: &Options, u: f64) -> i32 {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
    if o.temperature <= 0.0 {
        return order[0] as i32;
    }
    order.truncate(o.top_k.unwrap_or(usize::MAX).max(1));
    let weights: Vec<f64> = order.iter().map(|i| ((logits[*i] - logits[order[0]]) / o.temperature).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut kept = 0.0;
    let mut last = 0;
    for (i, w) in weights.iter().enumerate() {
        kept += w;
        last = i;
        if kept >= o.top_p.unwrap_or(1.0) * total {
            break;
        }
    }
    let mut left = u * kept;
    for (i, w) in weights[..=last].iter().enumerate() {
        left -= w;
        if left < 0.0 {
            return order[i] as i32;
        }
    }
    order[last] as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_follow_the_options() {
        let o = Options { length: 1, temperature: 1.0, top_k: None, top_p: None, context: 8, seed: 0 };
        let logits = [0.0, 3f64.ln(), f64::NEG_INFINITY, 0.0];
        assert_eq!(choose(&logits, &Options { temperature: 0.0, ..o.clone() }, 0.9), 1);
        assert_eq!([0.0, 0.59, 0.61, 0.81].map(|u| choose(&logits, &o, u)), [1, 1, 0, 3]);
        assert_eq!(choose(&logits, &Options { top_k: Some(1), ..o.clone() }, 0.99), 1);
        assert_eq!(choose(&logits, &Options { top_p: Some(0.7), ..o.clone() }, 0.99), 0);
    }
}
