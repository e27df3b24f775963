//! `pipeline { ranks = 4, schedule = dualpipe, micro_batches = 20 }`: how a model is trained over ranks unless flags say otherwise.

use crate::{
    config::{self, Constant},
    error::{HirError, suggest},
};
use base::{Diags, Span};
use std::fmt;
use syntax::ast::{Expr, ExprKind, Ident};

/// The schedules that there are; the run-time's, whose names a test compares with these.
pub const SCHEDULES: [&str; 6] = ["1f1b", "interleaved", "zb1p", "zbv", "dualpipe", "dualpipev"];

const NAMES: [&str; 7] = ["ranks", "schedule", "micro_batches", "replicas", "expert_parallel", "chunks", "layout"];

/// What the model says of ranks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pipeline {
    /// Ranks of one pipeline.
    pub ranks: Option<usize>,
    /// The order of computing, one of [`SCHEDULES`].
    pub schedule: Option<String>,
    /// Micro-batches of a step, all pipelines together.
    pub micro_batches: Option<usize>,
    /// Pipelines side by side.
    pub replicas: Option<usize>,
    /// Pipelines that divide the experts of each layer.
    pub expert_parallel: Option<usize>,
    /// Stages a rank, for `interleaved`.
    pub chunks: Option<usize>,
    /// Which stage has which layers.
    pub layout: Option<String>,
}

/// What is wrong with an entry.
struct Wrong {
    at: Span,
    why: String,
    help: Option<String>,
}

impl Pipeline {
    /// The item's entries; numbers may be arithmetic on config values. Mistakes are told (E0201, E0209).
    pub(crate) fn read(entries: &[(Ident, Expr)], config: &[(String, Constant)], diags: &mut Diags) -> Pipeline {
        let mut out = Pipeline::default();
        for (i, (name, value)) in entries.iter().enumerate() {
            let count = || {
                let wrong = |why: String| Wrong { at: value.span, why, help: Some("it is a number from 1".into()) };
                match config::evaluate(value, config).map_err(&wrong)? {
                    Constant::Int(n) if n > 0 => Ok(Some(n as usize)),
                    other => Err(wrong(format!("it is {other}"))),
                }
            };
            let text = || match &value.kind {
                ExprKind::Str(s) => Ok(s.clone()),
                ExprKind::Name(n) if !config.iter().any(|(c, _)| c == n) => Ok(n.clone()),
                _ => match config::evaluate(value, config) {
                    Ok(Constant::Str(s)) => Ok(s),
                    Ok(other) => Err(Wrong { at: value.span, why: format!("it is {other}, not a text"), help: None }),
                    Err(why) => Err(Wrong { at: value.span, why, help: None }),
                },
            };
            let schedule = || {
                let s = text()?;
                if SCHEDULES.contains(&s.as_str()) {
                    return Ok(Some(s));
                }
                let near = suggest(&s, SCHEDULES.into_iter());
                let help = near.or_else(|| Some(format!("there are {}", SCHEDULES.join(", "))));
                Err(Wrong { at: value.span, why: format!("there is no schedule '{s}'"), help })
            };
            let mut read = || -> Result<(), Wrong> {
                if entries[..i].iter().any(|(n, _)| n.node == name.node) {
                    return Err(Wrong { at: name.span, why: "it is said twice".into(), help: None });
                }
                match name.node.as_str() {
                    "ranks" => out.ranks = count()?,
                    "schedule" => out.schedule = schedule()?,
                    "micro_batches" => out.micro_batches = count()?,
                    "replicas" => out.replicas = count()?,
                    "expert_parallel" => out.expert_parallel = count()?,
                    "chunks" => out.chunks = count()?,
                    "layout" => out.layout = Some(text()?),
                    other => {
                        let near = suggest(other, NAMES.into_iter());
                        let help = near.or_else(|| Some(format!("there are {}", NAMES.join(", "))));
                        let (what, at) = ("pipeline entry", name.span.into());
                        diags.push(name.span, HirError::Unknown { what, name: other.into(), help, at });
                    }
                }
                Ok(())
            };
            if let Err(Wrong { at, why, help }) = read() {
                diags.push(at, HirError::Setting { name: name.node.clone(), why, help, at: at.into() });
            }
        }
        out
    }
}

/// A line an entry, as `--emit=hir` has it.
impl fmt::Display for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |n: Option<usize>| n.map(|n| n.to_string());
        let text = |s: &Option<String>| s.as_ref().map(|s| format!("{s:?}"));
        let values = [
            number(self.ranks),
            text(&self.schedule),
            number(self.micro_batches),
            number(self.replicas),
            number(self.expert_parallel),
            number(self.chunks),
            text(&self.layout),
        ];
        for (name, value) in NAMES.iter().zip(values) {
            if let Some(value) = value {
                writeln!(f, "pipeline {name} = {value}")?;
            }
        }
        Ok(())
    }
}
