//! What ran when, as a file that Perfetto shows (ui.perfetto.dev): a lane each for entries, kernels, copies and communication, if it has any.
//! # Source: the Trace Event Format, complete events (`ph: X`) and metadata.

use crate::ExecError;
use std::{path::Path, time::Instant};

/// Where an event is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Calls of an entry.
    Entries,
    /// Kernels and products.
    Kernels,
    /// Memory that is moved or zeroed.
    Copies,
    /// What other devices are sent, on a stream of its own.
    Communication,
}

impl Lane {
    const ALL: [Lane; 4] = [Lane::Entries, Lane::Kernels, Lane::Copies, Lane::Communication];
    fn name(self) -> &'static str {
        match self {
            Lane::Entries => "entries",
            Lane::Kernels => "kernels",
            Lane::Copies => "copies",
            Lane::Communication => "communication",
        }
    }
}

/// Something that took time.
#[derive(Clone, Debug, PartialEq)]
struct Span {
    lane: Lane,
    name: String,
    /// Since the trace began. # Units: microseconds.
    start: f64,
    /// # Units: microseconds.
    length: f64,
}

/// Events of one device.
#[derive(Clone, Debug)]
pub struct Trace {
    device: String,
    begin: Instant,
    spans: Vec<Span>,
}

impl Trace {
    /// An empty trace that begins now.
    pub fn new(device: &str) -> Trace {
        Trace { device: device.into(), begin: Instant::now(), spans: Vec::new() }
    }
    /// Adds what began so long after `since` and took so long. # Units: nanoseconds.
    pub(crate) fn add(&mut self, lane: Lane, name: &str, since: Instant, after: f64, took: f64) {
        let start = since.saturating_duration_since(self.begin).as_secs_f64() * 1e6 + after / 1e3;
        self.spans.push(Span { lane, name: name.into(), start, length: took / 1e3 });
    }
    /// The file's text.
    pub fn to_json(&self) -> String {
        let named = |what: &str, tid: usize, name: &str| serde_json::json!({ "ph": "M", "name": what, "pid": 1, "tid": tid, "args": { "name": name } });
        let mut lines = vec![named("process_name", 0, &self.device)];
        let used = Lane::ALL.iter().enumerate().filter(|(_, l)| self.spans.iter().any(|s| s.lane == **l));
        lines.extend(used.map(|(i, l)| named("thread_name", i + 1, l.name())));
        lines.extend(self.spans.iter().map(|s| {
            let tid = Lane::ALL.iter().position(|l| *l == s.lane).map_or(0, |i| i + 1);
            serde_json::json!({ "ph": "X", "name": s.name, "pid": 1, "tid": tid, "ts": s.start, "dur": s.length })
        }));
        let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
        format!("{{\"traceEvents\":[\n{}\n]}}\n", lines.join(",\n"))
    }
    /// Writes the file.
    ///
    /// # Errors
    /// E0705.
    pub fn write(&self, path: &Path) -> Result<(), ExecError> {
        std::fs::write(path, self.to_json()).map_err(|e| ExecError::io(path, &e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HostTensor;
    use crate::testing;

    #[test]
    fn every_step_of_a_run_is_in_its_trace() {
        let mut s = testing::session(1);
        s.trace = Some(Trace::new("host"));
        let manifest = s.manifest.clone();
        s.store.initialise(&manifest, 3).expect("there is memory");
        let t = HostTensor::from_i32(&[1, 4], &[1, 2, 3, 4]);
        let dims = s.bind("forward", &[("tokens", &t.shape)]).expect("it fits");
        s.run("forward", &dims, &[("tokens", &t)]).expect("it runs");
        let text = s.trace.take().expect("it was on").to_json();
        let json: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
        let events = json["traceEvents"].as_array().expect("a list");
        let names = |tid: u64| -> Vec<&str> {
            let of = events.iter().filter(|e| e["ph"] == "X" && e["tid"] == tid);
            of.filter_map(|e| e["name"].as_str()).collect()
        };
        assert_eq!(names(1), ["forward"]);
        assert_eq!(names(2), ["lookup (bigram.lode:5)", "add_bias (bigram.lode:5)", "add_bias (bigram.lode:5)"]);
        assert_eq!(names(3), ["copy"]);
        let long = |e: &serde_json::Value| e["ph"] != "X" || e["dur"].as_f64().is_some_and(|d| d >= 0.0);
        assert!(events.iter().all(long), "{text}");
    }
}
