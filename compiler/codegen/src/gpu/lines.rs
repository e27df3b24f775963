//! Source lines in PTX, as `.loc`.
//!
//! What is emitted has marks: comments that say, by a number, which place in the sources the lines after them are for. LLVM is told that the MLIR text is
//! the source, so what it says of an instruction is a line of that; here it becomes the place that was marked there. So instructions are the same
//! with lines and without. Kernels of one place, as all products are, begin with it, and LLVM is told nothing, which would cost it a tenth of its time.

use std::{collections::BTreeMap, fmt::Write, sync::Arc};
use tile::VarId;

/// Where something stands in the sources.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file, as it was named.
    pub file: Arc<str>,
    /// From 1 on.
    pub line: usize,
    /// From 1 on.
    pub column: usize,
}

/// Where what a kernel computes stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lines {
    /// The kernel; if that is not known it has no lines.
    pub kernel: Option<Place>,
    /// The op that a variable is a value of.
    pub vars: BTreeMap<VarId, Place>,
}

/// Places by number: of some kernels, each its variables', variable 0 standing for the kernel.
#[derive(Debug, Default)]
pub(crate) struct Places {
    all: Vec<Place>,
    pub of_kernels: Vec<BTreeMap<VarId, usize>>,
}

/// What begins a comment that is a mark.
pub(crate) const MARK: &str = "// @";

/// Said before a module whose functions have lines. The file is the MLIR text, which no one sees.
pub(crate) const HEAD: &str = "#file = #llvm.di_file<\"mlir\" in \"\">
#unit = #llvm.di_compile_unit<id = distinct[0]<>, sourceLanguage = DW_LANG_C99, file = #file, isOptimized = true, emissionKind = DebugDirectivesOnly>
#type = #llvm.di_subroutine_type<callingConvention = DW_CC_normal>
";

/// Said after function number `i` of a module, if it has lines.
pub(crate) fn subprogram(i: usize, name: &str) -> String {
    let id = i + 1;
    format!(
        " loc(fused<#llvm.di_subprogram<id = distinct[{id}]<>, compileUnit = #unit, scope = #file, name = \"{name}\", file = #file, line = 1, \
         subprogramFlags = \"Definition|Optimized\", type = #type>>[\"mlir\":1:1])"
    )
}

/// Whether a kernel is of several places.
pub(crate) fn is_of_several(marks: &BTreeMap<VarId, usize>) -> bool {
    let own = marks.get(&VarId(0));
    marks.values().any(|m| Some(m) != own)
}

impl Places {
    pub fn new(lines: &[Lines]) -> Places {
        let (mut places, mut numbers) = (Places::default(), BTreeMap::new());
        for of in lines {
            let vars = of.vars.iter().map(|(v, place)| (*v, place));
            let all = of.kernel.iter().flat_map(|k| vars.clone().chain([(VarId(0), k)]));
            let numbered = all.map(|(v, place)| {
                let number = *numbers.entry(place).or_insert_with(|| {
                    places.all.push(place.clone());
                    places.all.len() - 1
                });
                (v, number)
            });
            let numbered = numbered.collect();
            places.of_kernels.push(numbered);
        }
        places
    }
    /// The PTX of a marked text, whose lines it names, with those of the sources in their place. Files are numbered as they are met; `kernels` has the numbers of
    /// those that are in the text, in its order.
    pub fn write(&self, ptx: &str, marked: &str, kernels: &[usize], files: &mut Vec<Arc<str>>) -> String {
        if self.all.is_empty() {
            return ptx.to_string();
        }
        let mut marks = Vec::new();
        for line in marked.lines() {
            let before = marks.last().copied().flatten();
            marks.push(line.trim_start().strip_prefix(MARK).map_or(before, |n| n.parse::<usize>().ok()));
        }
        let mut out = String::with_capacity(ptx.len() + ptx.len() / 8);
        let mut say = |out: &mut String, mark: usize| {
            let Place { file, line, column } = &self.all[mark];
            let number = files.iter().position(|f| f == file).unwrap_or_else(|| {
                files.push(file.clone());
                files.len() - 1
            });
            let _ = writeln!(out, "\t.loc\t{} {line} {column}", number + 1);
        };
        let (mut kernels, mut first, mut last) = (kernels.iter().map(|i| &self.of_kernels[*i]), None, None);
        for line in ptx.lines() {
            let text = line.trim_start();
            if text.starts_with(".visible .entry") {
                first = kernels.next().and_then(|marks| marks.get(&VarId(0)).copied());
                last = None;
            }
            if let Some(at) = text.strip_prefix(".loc") {
                // An instruction that is of several has line 0.
                let number = at.split_whitespace().nth(1).and_then(|n| n.parse::<usize>().ok());
                let mark = number.and_then(|n| marks.get(n.checked_sub(1)?).copied().flatten());
                if let Some(mark) = mark.filter(|m| last != Some(*m)) {
                    say(&mut out, mark);
                    (first, last) = (None, Some(mark));
                }
                continue;
            }
            let of_lines = [".file", ".section", "$L__tmp", "$L__func_begin", "$L__func_end"];
            if of_lines.iter().any(|p| text.starts_with(p)) {
                continue;
            }
            // The first instruction.
            if text.ends_with(';')
                && !text.starts_with('.')
                && let Some(mark) = first.take()
            {
                say(&mut out, mark);
                last = Some(mark);
            }
            out.extend([line, "\n"]);
        }
        out
    }
}
