//! The text of a tuning table, written and read.

use super::{Tuning, TuningError, VERSION, bucket, show};
use base::DType;
use library::{Class, Job};
use std::fmt;

impl fmt::Display for Tuning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "lode-tuning {VERSION}\ntarget {}\ndevice {}", self.target, quoted(&self.device))?;
        if let Some((name, hash)) = &self.program {
            writeln!(f, "program {} {hash:016x}", quoted(name))?;
        }
        if !self.dims.is_empty() {
            let dims: Vec<String> = self.dims.iter().map(|(n, v)| format!("{n}={v}")).collect();
            writeln!(f, "dims {}", dims.join(" "))?;
        }
        let rates = [
            ("launch", self.launch_ns),
            ("memory", self.bytes_per_ns),
            ("map", self.map_ops_per_ns),
            ("processors", self.processors),
        ];
        rates.iter().try_for_each(|(name, x)| writeln!(f, "rate {name} {x}"))?;
        writeln!(f, "rate tile {} {}", self.tile[0], self.tile[1])?;
        self.products.iter().try_for_each(|(d, x)| writeln!(f, "rate product {d} {x}"))?;
        self.times.iter().try_for_each(|(job, ns)| writeln!(f, "time {} {ns}", show(job)))?;
        self.tilings.iter().try_for_each(|(problem, tiling)| writeln!(f, "tiling {} {tiling}", quoted(problem)))
    }
}

impl Tuning {
    /// Reads a table. Lines that begin with `#` and empty ones are skipped. `path` is for messages.
    ///
    /// # Errors
    /// E0511 with the first line that says nothing, or nothing sensible; E0512 for another version.
    pub fn parse(text: &str, path: &str) -> Result<Tuning, TuningError> {
        let damaged = |line: usize, why: &str| TuningError::Damaged { path: path.into(), line: line + 1, why: why.into() };
        let mut lines = text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty() && !l.starts_with('#'));
        let (at, head) = lines.next().ok_or_else(|| damaged(0, "it is empty"))?;
        match head.strip_prefix("lode-tuning ").map(str::parse::<u32>) {
            Some(Ok(VERSION)) => {}
            Some(Ok(found)) => return Err(TuningError::Version { path: path.into(), found, known: VERSION }),
            Some(Err(_)) | None => return Err(damaged(at, "it is no tuning table, which begin with 'lode-tuning 1'")),
        }
        let mut t = Tuning::default();
        for (i, line) in lines {
            t.line(line).map_err(|why| damaged(i, &format!("{why}: {line}")))?;
        }
        let rates = [t.launch_ns, t.bytes_per_ns, t.map_ops_per_ns, t.processors, t.tile[0] as f64, t.tile[1] as f64];
        if t.target.is_empty() || t.products.is_empty() || rates.contains(&0.0) {
            return Err(damaged(text.lines().count().saturating_sub(1), "the target or a rate is missing"));
        }
        Ok(t)
    }

    fn line(&mut self, line: &str) -> Result<(), String> {
        let words = words(line).ok_or("a quote is not closed")?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let rate =
            |x: &str| x.parse::<f64>().ok().filter(|x| x.is_finite() && *x > 0.0).ok_or_else(|| format!("'{x}' is no rate"));
        let dtype = |d: &str| d.parse::<DType>().map_err(|_| format!("'{d}' is no dtype"));
        match words[..] {
            ["target", name] => self.target = name.into(),
            ["device", name] => self.device = name.into(),
            ["program", name, hash] => {
                let hash = u64::from_str_radix(hash, 16).map_err(|_| format!("'{hash}' is no hash"))?;
                self.program = Some((name.into(), hash));
            }
            ["dims", ..] => {
                for d in &words[1..] {
                    let pair = d.split_once('=').and_then(|(n, v)| Some((n, v.parse::<i64>().ok()?)));
                    let (name, value) = pair.ok_or_else(|| format!("'{d}' is no dim"))?;
                    self.dims.insert(name.into(), value);
                }
            }
            ["rate", "launch", x] => self.launch_ns = rate(x)?,
            ["rate", "memory", x] => self.bytes_per_ns = rate(x)?,
            ["rate", "map", x] => self.map_ops_per_ns = rate(x)?,
            ["rate", "processors", x] => self.processors = rate(x)?,
            ["rate", "tile", m, n] => {
                let extent = |x: &str| x.parse::<i64>().ok().filter(|n| *n > 0).ok_or_else(|| format!("'{x}' is no extent"));
                self.tile = [extent(m)?, extent(n)?];
            }
            ["rate", "product", d, x] => _ = self.products.insert(dtype(d)?, rate(x)?),
            ["time", class, d, shape, ns] => {
                let class = Class::from_name(class).ok_or_else(|| format!("there is no class '{class}'"))?;
                let extents: Option<Vec<i64>> = shape.split('x').map(|n| n.parse().ok().filter(|n| *n >= 0)).collect();
                let shape = extents.filter(|s| s.len() == class.extents().len());
                let shape = shape.ok_or_else(|| format!("the extents of {} are {}", class.name(), class.extents().join("x")))?;
                let job = Job { class, dtype: dtype(d)?, shape };
                if job != bucket(&job) {
                    return Err("an extent is no power of two".into());
                }
                let ns = ns.parse::<u64>().ok().filter(|n| *n > 0).ok_or_else(|| format!("'{ns}' is no time"))?;
                if self.times.insert(job, ns).is_some() {
                    return Err("a bucket twice".into());
                }
            }
            ["tiling", problem, tiling] => {
                if self.tilings.insert(problem.into(), tiling.into()).is_some() {
                    return Err("a problem twice".into());
                }
            }
            _ => return Err("this is no line of a tuning table".into()),
        }
        Ok(())
    }
}

/// In quotes; what would end them or the line is left out.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace(['"', '\n', '\r'], ""))
}

/// Words, and texts in quotes; `None` if a quote is not closed.
fn words(line: &str) -> Option<Vec<String>> {
    let mut out = Vec::new();
    let mut rest = line.trim();
    while !rest.is_empty() {
        let (word, tail) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => rest.split_once(char::is_whitespace).unwrap_or((rest, "")),
        };
        if word.contains('"') {
            return None;
        }
        out.push(word.to_string());
        rest = tail.trim_start();
    }
    Some(out)
}
