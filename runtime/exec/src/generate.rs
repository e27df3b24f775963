//! Continuing a prompt: one token at a time from the model's last row. The prefix is computed anew each time; a cache of keys and
//! values would live here, beside the tokens.

use crate::{ExecError, HostTensor, Session, plan, random::Stream, tensor};
use base::DimEnv;
use library::Role;

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

/// How far a text is padded to find a length that the model takes. Windows of sparse attention are the reason, and they are short.
const MAX_PADDING: usize = 4096;

/// Continues `prompt`; each token as it is made goes to `emit`. A text that is too short for the model is padded behind its end, where a
/// causal model does not look.
///
/// # Errors
/// E0704 for an empty prompt, a token outside the vocabulary, or options that make no sense; E0708 if the model's output is not finite; what
/// the model's run reports.
pub fn generate(s: &mut Session, prompt: &[i32], o: &Options, emit: &mut dyn FnMut(i32)) -> Result<Vec<i32>, ExecError> {
    let model = s.entry("forward")?;
    let inputs: Vec<&str> = model.args.iter().filter(|p| p.role == Role::Input).map(|p| p.name.as_str()).collect();
    let wrong = |name: &str, why: String| Err(ExecError::Input { name: name.into(), why });
    let [input] = inputs[..] else {
        return wrong("tokens", format!("generation feeds tokens alone, the model takes {inputs:?}"));
    };
    let input = input.to_string();
    let logits = model.outputs.iter().find(|p| p.role == Role::Result && p.dtype.is_float() && p.shape.len() == 3);
    let Some((output, vocab)) = logits.and_then(|p| Some((p.name.clone(), p.shape[2].known()?))) else {
        return wrong(&input, "the model's result is not [B, T, vocabulary]".into());
    };
    if prompt.is_empty() {
        return wrong(&input, "the prompt is empty".into());
    }
    if let Some(t) = prompt.iter().find(|t| !(0..vocab).contains(&i64::from(**t))) {
        return wrong(&input, format!("token {t} is not among the model's {vocab}"));
    }
    let share = o.top_p.unwrap_or(1.0);
    if !o.temperature.is_finite() || o.temperature < 0.0 || !(share > 0.0 && share <= 1.0) || o.top_k == Some(0) {
        return wrong("temperature", format!("{} with top-p {share} and top-k {:?} chooses nothing", o.temperature, o.top_k));
    }
    let stream = Stream::new(o.seed, "generate");
    let mut tokens = prompt.to_vec();
    for i in 0..o.length {
        let seen = &tokens[tokens.len().saturating_sub(o.context.max(1))..];
        let (len, dims) = fit(s, &input, seen.len())?;
        let mut padded = seen.to_vec();
        padded.resize(len, 0);
        let t = HostTensor::from_i32(&[1, len as i64], &padded);
        let outputs = s.run("forward", &dims, &[(&input, &t)])?;
        let (_, logits) = outputs.iter().find(|(n, _)| *n == output).expect("the entry has this output");
        let row = vocab as usize * logits.dtype.bytes();
        let last = tensor::read(logits.dtype, &logits.bytes[(seen.len() - 1) * row..seen.len() * row]);
        if let Some(x) = last.iter().find(|x| x.is_nan() || **x == f64::INFINITY) {
            let first = s.find_not_finite("forward", &dims, &[(&input, &t)])?;
            let first = first.unwrap_or("it does not come from one step".into());
            let (what, step) = ("a logit".into(), i as u64 + 1);
            return Err(ExecError::NotFinite { what, value: *x, step, first, checkpoint: "generation makes none".into() });
        }
        let next = choose(&last, o, stream.uniform(i as u64));
        tokens.push(next);
        emit(next);
    }
    Ok(tokens)
}

/// The shortest length from `len` on that the model takes, and its dims.
fn fit(s: &Session, input: &str, len: usize) -> Result<(usize, DimEnv), ExecError> {
    let mut refused = None;
    for n in len..=len + MAX_PADDING {
        let dims = s.bind("forward", &[(input, &[1, n as i64])])?;
        match plan::fits(s.entry("forward")?, &dims) {
            Ok(()) => return Ok((n, dims)),
            Err(e) => refused = refused.or(Some(e)),
        }
    }
    Err(refused.expect("there was a first try"))
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
    use crate::testing;
    use base::DType;

    #[test]
    fn choices_follow_the_options() {
        let o = Options { length: 1, temperature: 1.0, top_k: None, top_p: None, context: 8, seed: 0 };
        let logits = [0.0, 3f64.ln(), f64::NEG_INFINITY, 0.0];
        assert_eq!(choose(&logits, &Options { temperature: 0.0, ..o.clone() }, 0.9), 1);
        assert_eq!([0.0, 0.59, 0.61, 0.81].map(|u| choose(&logits, &o, u)), [1, 1, 0, 3]);
        assert_eq!(choose(&logits, &Options { top_k: Some(1), ..o.clone() }, 0.99), 1);
        assert_eq!(choose(&logits, &Options { top_p: Some(0.7), ..o.clone() }, 0.99), 0);
    }

    fn options(length: usize) -> Options {
        Options { length, temperature: 0.9, top_k: None, top_p: None, context: 6, seed: 3 }
    }

    fn session() -> Session {
        let mut s = testing::session(1);
        let manifest = s.manifest.clone();
        s.store.initialise(&manifest, 3).expect("there is memory");
        s
    }

    #[test]
    fn the_greedy_choice_is_the_tables() {
        let mut s = session();
        let slot = s.store.slot(Role::Param, "table", DType::F32, &[32, 32]).expect("it is there");
        // Token t is followed by 5t + 3.
        let table = (0..32 * 32).map(|i| if (i / 32 * 5 + 3) % 32 == i % 32 { 9.0 } else { 0.0 });
        slot.memory.bytes_mut().copy_from_slice(&HostTensor::from_f64(DType::F32, &[32, 32], table).bytes);
        let mut seen = Vec::new();
        let o = Options { temperature: 0.0, ..options(12) };
        // A prompt of one token is too short for the model's window of two.
        let out = generate(&mut s, &[1], &o, &mut |t| seen.push(t)).expect("it runs");
        assert_eq!(out, [1, 8, 11, 26, 5, 28, 15, 14, 9, 16, 19, 2, 13]);
        assert_eq!(seen, out[1..]);
    }

    #[test]
    fn a_seed_settles_the_text() {
        let run = |o: &Options| generate(&mut session(), &[1, 2, 3], o, &mut |_| ()).expect("it runs");
        let text = run(&options(40));
        assert_eq!(text.len(), 43);
        assert_eq!(run(&options(40)), text);
        assert_eq!(run(&options(20)), text[..23]);
        assert_ne!(run(&Options { seed: 4, ..options(40) }), text);
        // A bigram model does not see how long its context is.
        assert_eq!(run(&Options { context: 1, ..options(40) }), text);
    }

    #[test]
    fn mistakes_are_named() {
        let mut s = session();
        let mut why =
            |prompt: &[i32], o: Options| generate(&mut s, prompt, &o, &mut |_| ()).expect_err("it is wrong").to_string();
        assert_eq!(why(&[], options(1)), "input 'tokens': the prompt is empty");
        assert_eq!(why(&[0, 32], options(1)), "input 'tokens': token 32 is not among the model's 32");
        assert_eq!(why(&[-1], options(1)), "input 'tokens': token -1 is not among the model's 32");
        for o in [
            Options { temperature: f64::NAN, ..options(1) },
            Options { temperature: -1.0, ..options(1) },
            Options { top_p: Some(0.0), ..options(1) },
            Options { top_k: Some(0), ..options(1) },
        ] {
            assert!(why(&[1], o).starts_with("input 'temperature': "));
        }
        let slot = s.store.slot(Role::Param, "table", DType::F32, &[32, 32]).expect("it is there");
        slot.memory.bytes_mut()[..4].copy_from_slice(&f32::NAN.to_le_bytes());
        let error = generate(&mut s, &[0, 0], &options(1), &mut |_| ()).expect_err("a logit is NaN");
        let ExecError::NotFinite { first, step, .. } = error else { panic!("another error: {error}") };
        assert_eq!((step, first.as_str()), (1, "param table held NaN before the first step"));
    }
}
