//! Damaged texts: whatever is done to a model's text, the compiler tells mistakes or compiles, and nothing else.

use driver::pipeline::{self, BackError, Options};
use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

/// Texts tried.
const ROUNDS: u64 = 2000;
/// One in so many is taken down to kernels, which takes ten times as long as checking it.
const COMPILED: u64 = 16;

struct Rng(u64);

impl Rng {
    /// Below `n`. # Source: Knuth's 64-bit linear congruence; the high bits are the good ones.
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n.max(1)
    }
}

fn models() -> Vec<String> {
    let text = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models").join(name).join("model.lode");
        fs::read_to_string(path).expect("the model is part of the source")
    };
    ["strata", "llama", "qwen3_moe", "deepseek_v3"].map(text).to_vec()
}

/// Words, numbers and signs, each with the white space before it.
fn words(text: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let begin = rest.find(|c: char| !c.is_whitespace()).unwrap_or(rest.len());
        let first = rest[begin..].chars().next().map_or(0, char::len_utf8);
        let word = rest[begin..].find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len() - begin);
        let (head, tail) = rest.split_at(begin + word.max(first));
        out.push(head);
        rest = tail;
    }
    out
}

/// One change: of a word, of a character, of a line, or of a stretch of lines.
fn damage(text: &str, others: &[String], rng: &mut Rng) -> String {
    const SPLICED: &[&str] = &[
        " 0",
        " -1",
        " 9223372036854775807",
        " 1e300",
        " \"",
        " {",
        "}",
        "(",
        ")",
        "[",
        " as",
        " repeat",
        " let",
        "\u{0}",
        "é",
        "\n",
        ".*",
        "^T",
    ];
    let other = words(&others[rng.below(others.len())]).into_iter().map(String::from).collect::<Vec<_>>();
    let mut list: Vec<String> = words(text).into_iter().map(String::from).collect();
    let (i, j) = (rng.below(list.len()), rng.below(list.len()));
    match rng.below(8) {
        0 => drop(list.remove(i)),
        1 => list.swap(i, j),
        2 => list[i] = list[j].clone(),
        3 => list[i] = SPLICED[rng.below(SPLICED.len())].into(),
        4 => list.insert(i, SPLICED[rng.below(SPLICED.len())].into()),
        5 => list[i] = other[rng.below(other.len())].clone(),
        6 => {
            let end = (i + rng.below(40)).min(list.len());
            drop(list.drain(i..end));
        }
        _ => {
            let from = rng.below(other.len());
            let end = (from + rng.below(30)).min(other.len());
            list.splice(i..i, other[from..end].iter().cloned());
        }
    }
    list.concat()
}

/// Checks a text, and takes some that are programs down to kernels; whether it is one. A panic is told with the text.
fn compiles(text: &str, round: u64) -> bool {
    let options = Options::default();
    let attempt = catch_unwind(AssertUnwindSafe(|| {
        let front = pipeline::front("model.lode", text, &mut |_| None, &options);
        let Some(program) = &front.program else { return Ok(front.diagnostics.len()) };
        if !round.is_multiple_of(COMPILED) {
            return Ok(0);
        }
        let lowered = pipeline::middle(program, &options).and_then(|(module, _)| pipeline::lower(&module, &options));
        match lowered {
            Ok(_) | Err(BackError::Target(_)) => Ok(0),
            Err(BackError::Tuning(why)) => Err(why.to_string()),
            Err(BackError::Internal(why)) => Err(why),
        }
    }));
    match attempt {
        Ok(Ok(mistakes)) => mistakes == 0,
        Ok(Err(why)) => panic!("round {round}: {why}\n{text}"),
        Err(_) => panic!("round {round} crashed:\n{text}"),
    }
}

/// Runs on as much stack as the command has.
fn with_stack(f: impl FnOnce() + Send + 'static) {
    let worker = std::thread::Builder::new().stack_size(64 << 20).spawn(f).expect("a thread can be started");
    if let Err(e) = worker.join() {
        std::panic::resume_unwind(e);
    }
}

#[test]
fn damaged_models_are_told_or_compile() {
    with_stack(|| {
        let models = models();
        let mut compiled = 0;
        for round in 0..ROUNDS {
            let mut rng = Rng(round);
            let mut text = models[rng.below(models.len())].clone();
            for _ in 0..=rng.below(3) {
                text = damage(&text, &models, &mut rng);
            }
            compiled += u64::from(compiles(&text, round));
        }
        // Neither are all of them beyond reading, nor is the damage without effect.
        assert!((ROUNDS / 50..ROUNDS / 2).contains(&compiled), "{compiled}");
    });
}

#[test]
fn a_thousand_lines_of_garbage_are_told() {
    with_stack(|| {
        let models = models();
        for round in 0..40 {
            let mut rng = Rng(round);
            // Lines of all models, as they come; and characters.
            let lines: Vec<&str> = models.iter().flat_map(|m| m.lines()).collect();
            let line = |rng: &mut Rng| match round % 2 {
                0 => lines[rng.below(lines.len())].to_string(),
                _ => (0..rng.below(60)).map(|_| char::from_u32(rng.below(0x250) as u32).unwrap_or('?')).collect(),
            };
            let text: String = (0..1000).map(|_| line(&mut rng) + "\n").collect();
            assert!(!compiles(&text, round));
        }
    });
}
