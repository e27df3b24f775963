//! A model cut into stages for training over ranks: from a checked program to a program for each stage. All stages are compiled as one
//! module, so equal layers are optimised once and share their kernels.

use crate::pipeline::{self, BackError, Options};
use base::{Sources, TensorType};
use codegen::Jit;
use exec::ranks::{Code, Program as StageProgram};
use graph::{
    Func, Module, Op, Role, passes,
    stages::{self, Layout, StageError},
};
use hir::Program;
use library::{Library, Manifest, Port};
use std::sync::Arc;

/// Why a model is not cut as asked.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum CutError {
    /// The layout string makes no sense, or is of another model.
    #[error("the layout '{text}': {why}")]
    #[diagnostic(code(E0431), help("E, a t for each layer, L, and a | between stages, such as Et|tt|tL; (tt|)*3 is tt|tt|tt|"))]
    Layout {
        /// What was given.
        text: String,
        /// What is wrong.
        why: String,
    },
    /// There are more stages than layers to fill them.
    #[error("{layers} layers do not make {stages} stages")]
    #[diagnostic(code(E0431), help("take at most {layers} stages, or leave some without layers by --layout"))]
    TooMany {
        /// Of the model.
        layers: usize,
        /// Asked for.
        stages: usize,
    },
    /// The model has no experts, or they are not divided so.
    #[error("{0}")]
    #[diagnostic(code(E0433), help("--expert-parallel takes a divisor of the number of experts, of a model that has some"))]
    Experts(StageError),
    /// The model has something that belongs to all layers at once.
    #[error("{0}")]
    #[diagnostic(code(E0432), help("stages are cut between the turns of a repeat in the model's body"))]
    Model(StageError),
}

/// Reads a layout such as `Et*3|(tt|)*2tL`: E what comes before the layers, t a layer, L what comes after, | the end of a stage.
///
/// # Errors
/// E0431 if it is not such a text, or has another number of layers or stages.
pub fn parse_layout(text: &str, num_layers: usize, num_stages: usize) -> Result<Layout, CutError> {
    let wrong = |why: String| CutError::Layout { text: text.into(), why };
    let chars: Vec<char> = text.chars().filter(|c| !c.is_whitespace() && *c != ',').collect();
    let flat = expand(&mut chars.into_iter().peekable(), 0).map_err(&wrong)?;
    let (mut counts, mut seen) = (vec![0], String::new());
    for c in flat.chars() {
        match c {
            '|' => counts.push(0),
            't' => *counts.last_mut().expect("one at least") += 1,
            _ => {}
        }
        if c != '|' {
            seen.push(c);
        }
    }
    let layers: usize = counts.iter().sum();
    if let Some(c) = seen.chars().find(|c| !"EtL".contains(*c)) {
        return Err(wrong(format!("'{c}' is no part of this model")));
    }
    if seen != format!("E{}L", "t".repeat(layers)) {
        return Err(wrong("E comes first and L last, once each".into()));
    }
    if layers != num_layers {
        return Err(wrong(format!("it has {layers} layers, the model has {num_layers}")));
    }
    if counts.len() != num_stages {
        return Err(wrong(format!("it has {} stages, the schedule has {num_stages}", counts.len())));
    }
    Ok(Layout(counts))
}

/// Longer texts are no layouts.
const MAX_LAYOUT: usize = 1 << 16;

/// The text with groups and numbers written out, up to the end or a closing bracket.
fn expand(chars: &mut std::iter::Peekable<std::vec::IntoIter<char>>, depth: usize) -> Result<String, String> {
    let mut out = String::new();
    while let Some(c) = chars.next() {
        let unit = match c {
            ')' if depth > 0 => return Ok(out),
            '(' => expand(chars, depth + 1)?,
            ')' | '*' => return Err(format!("'{c}' follows nothing")),
            c => c.to_string(),
        };
        let mut times = 1;
        if chars.next_if_eq(&'*').is_some() {
            let digits: String = std::iter::from_fn(|| chars.next_if(char::is_ascii_digit)).collect();
            times = digits.parse::<usize>().map_err(|_| "a number follows *".to_string())?;
        }
        if out.len() + unit.len() * times > MAX_LAYOUT {
            return Err(format!("it has more than {MAX_LAYOUT} parts"));
        }
        out.push_str(&unit.repeat(times));
    }
    if depth > 0 { Err("a ) is missing".into()) } else { Ok(out) }
}

/// Layers a stage, so that the dearest stage is as cheap as can be. `ends`: the cost of what comes before the layers and after them.
///
/// # Errors
/// E0431 if there are fewer layers than stages.
pub fn balance(layers: &[f64], ends: [f64; 2], num_stages: usize) -> Result<Layout, CutError> {
    let n = layers.len();
    if n < num_stages || num_stages == 0 {
        return Err(CutError::TooMany { layers: n, stages: num_stages });
    }
    let mut sum = 0.0;
    let sums: Vec<f64> = layers.iter().map(|x| (sum += x, sum).1).collect();
    let cost = |stage: usize, from: usize, to: usize| {
        let before = if from == 0 { 0.0 } else { sums[from - 1] };
        let first = if stage == 0 { ends[0] } else { 0.0 };
        let last = if stage + 1 == num_stages { ends[1] } else { 0.0 };
        sums[to - 1] - before + first + last
    };
    // best[s][k]: the dearest of the first s stages with k layers, and where the last of them starts.
    let mut best = vec![vec![(f64::INFINITY, 0); n + 1]; num_stages + 1];
    best[0][0].0 = 0.0;
    for s in 0..num_stages {
        for to in s + 1..=n {
            for from in s..to {
                let dearest = best[s][from].0.max(cost(s, from, to));
                if dearest < best[s + 1][to].0 {
                    best[s + 1][to] = (dearest, from);
                }
            }
        }
    }
    let (mut counts, mut to) = (vec![0; num_stages], n);
    for s in (0..num_stages).rev() {
        let from = best[s + 1][to].1;
        counts[s] = to - from;
        to = from;
    }
    Ok(Layout(counts))
}

/// The forward cost of each layer, of what comes before and of what comes after. # Units: nanoseconds, by the cost model, for short texts.
fn costs(loss: &Func) -> (Vec<f64>, [f64; 2]) {
    let (mut layers, mut ends) = (Vec::new(), [0.0; 2]);
    for (id, node) in loss.nodes.iter() {
        match &node.op {
            Op::Repeat(r) if stages::is_layers(loss, id) => layers.extend((0..r.count).map(|_| func_cost(&r.body))),
            _ => ends[usize::from(!layers.is_empty())] += node_cost(loss, node),
        }
    }
    (layers, ends)
}

fn func_cost(func: &Func) -> f64 {
    func.nodes.values().map(|n| node_cost(func, n)).sum()
}

fn node_cost(func: &Func, node: &graph::Node) -> f64 {
    match &node.op {
        Op::Repeat(r) => r.count as f64 * func_cost(&r.body),
        op => {
            let operands: Vec<&TensorType> = node.inputs.iter().map(|v| func.ty(*v)).collect();
            tile::cost::op_cost(op, &operands, &node.types)
        }
    }
}

/// The vocabulary, if the model says: the last extent of what it predicts.
pub fn vocab(program: &Program) -> Option<i64> {
    let forward = program.module.func("forward")?;
    let types = forward.outputs.iter().filter(|o| o.role == Role::Result).map(|o| forward.ty(o.value));
    types.filter(|ty| ty.dtype.is_float() && ty.rank() == 3).find_map(|ty| ty.shape[2].known())
}

/// A model in stages, compiled.
pub struct Stages {
    /// Layers a stage.
    pub layout: Layout,
    /// By share of the experts, then by stage.
    pub programs: Vec<Vec<StageProgram>>,
    /// The whole model: names, dims and parameters.
    pub whole: Manifest,
    /// What the model is fed.
    pub inputs: Vec<Port>,
    /// The cost of a micro-batch's forward and backward, by stage. # Units: as the cost model's.
    pub costs: Vec<[f64; 2]>,
    /// Of the compiled code.
    pub checksum: u64,
}

/// Why there are no stages.
pub enum Failed {
    /// The user's mistake.
    Cut(CutError),
    /// The back half gave up.
    Back(BackError),
}

impl From<CutError> for Failed {
    fn from(e: CutError) -> Failed {
        Failed::Cut(e)
    }
}

impl From<BackError> for Failed {
    fn from(e: BackError) -> Failed {
        Failed::Back(e)
    }
}

/// The stages of a program as graphs: by the layout, or evenly by cost. `experts` members divide the experts of a stage; a group of one has
/// its exchanges, too.
///
/// # Errors
/// E0431 to E0433.
pub fn cut(
    program: &Program,
    layout: Option<&str>,
    (num_stages, experts): (usize, Option<usize>),
    options: &Options,
) -> Result<(Layout, Vec<Module>), CutError> {
    let module = &program.module;
    let no_layers = || CutError::Model(StageError::NoLayers(module.name.clone()));
    let loss = module.func("loss").ok_or_else(no_layers)?;
    let (layers, ends) = costs(loss);
    if layers.is_empty() {
        return Err(no_layers());
    }
    let layout = match layout {
        Some(text) => parse_layout(text, layers.len(), num_stages)?,
        None => balance(&layers, ends, num_stages)?,
    };
    let run = |m: &mut Module| {
        let first: &[&str] = if options.by_definition { &["expand_attend"] } else { &[] };
        for names in [first, passes::PIPELINE] {
            passes::run(m, names, cfg!(debug_assertions)).unwrap_or_else(|e| base::bug!("{e}"));
        }
    };
    let members = experts.map(|e| i64::try_from(e).unwrap_or(i64::MAX));
    let divided = members.map(|m| stages::divide_experts(module, m)).transpose().map_err(CutError::Experts)?;
    let modules = stages::split(divided.as_ref().unwrap_or(module), &layout, &run).map_err(CutError::Model)?;
    Ok((layout, modules))
}

/// The cost of a micro-batch's forward and backward. # Units: as the cost model's.
fn stage_costs(stage: &Module) -> [f64; 2] {
    ["forward", "backward"].map(|n| stage.func(n).map_or(0.0, func_cost))
}

/// A stage as a library of its own, and what a micro-batch costs.
pub struct Built {
    /// With the entries that ranks call.
    pub library: Library,
    /// How many layers it has.
    pub layers: usize,
    /// Of the forward, the gradients of inputs and those of weights. # Units: as the cost model's.
    pub costs: [f64; 3],
}

/// Cuts a program and compiles each stage apart; where experts are divided, for the first member of the group.
///
/// # Errors
/// E0431, E0432, and limits of the target.
pub fn build(
    program: &Program,
    sources: &Sources,
    layout: Option<&str>,
    size: (usize, Option<usize>),
    options: &Options,
) -> Result<Vec<Built>, Failed> {
    let (layout, modules) = cut(program, layout, size, options)?;
    let mut out = Vec::new();
    for (mut m, layers) in modules.into_iter().zip(layout.0) {
        let costs = ["forward", "backward_input", "backward_weight"].map(|n| m.func(n).map_or(0.0, func_cost));
        m.funcs.retain(|f| f.name != "backward");
        let m = pipeline::optimize(m, options)?.0;
        let lowered = pipeline::lower(&m, options)?;
        let mut library = pipeline::library(program, &m, &lowered, sources, options)?;
        if size.1.is_some() {
            library.manifest = of_member(library.manifest, 0);
        }
        out.push(Built { library, layers, costs });
    }
    Ok(out)
}

/// A stage under the names that a member of a group which divides experts has for its share.
fn of_member(mut m: Manifest, member: i64) -> Manifest {
    for p in &mut m.params {
        p.name = stages::of_member(&p.name, &p.shape, member);
    }
    for p in m.entries.iter_mut().flat_map(|e| e.args.iter_mut().chain(&mut e.outputs)) {
        let shape: Vec<i64> = p.shape.iter().map(|d| d.known().unwrap_or(0)).collect();
        p.name = stages::of_member(&p.name, &shape, member);
    }
    m
}

/// Cuts and compiles a program; `experts` is how many ranks divide the experts of a stage, 1 for none.
///
/// # Errors
/// E0431 to E0433, and limits of the target.
pub fn compile(
    program: &Program,
    sources: &Sources,
    layout: Option<&str>,
    (num_stages, experts): (usize, usize),
    options: &Options,
) -> Result<Stages, Failed> {
    let divided = (experts > 1).then_some(experts);
    let (layout, modules) = cut(program, layout, (num_stages, divided), options)?;
    let costs = modules.iter().map(stage_costs).collect();
    let mut all = Module { name: program.module.name.clone(), ..Module::default() };
    for (i, m) in modules.iter().enumerate() {
        // Ranks run a backward in its two parts, so that all schedules give the same bits.
        let used = m.funcs.iter().filter(|f| f.name != "backward");
        all.funcs.extend(used.map(|f| Func { name: format!("{i}/{}", f.name), ..f.clone() }));
    }
    let all = pipeline::optimize(all, options)?.0;
    let lowered = pipeline::lower(&all, options)?;
    // One module of code for all stages.
    let shared = Module { params: Vec::new(), ..all };
    let mut common = pipeline::manifest(program, &shared, &lowered, sources);
    let code = pipeline::emit(&mut common, &lowered, sources, options)?;
    let Manifest { kernels, target, .. } = common;
    let whole = Manifest { target, ..pipeline::manifest(program, &program.module, &tile::Lowered::default(), sources) };
    let members = i64::try_from(experts.max(1)).unwrap_or(1);
    let mut libraries = Vec::new();
    for (i, m) in modules.iter().enumerate() {
        let own = |e: &library::Entry| {
            let name = e.name.strip_prefix(&format!("{i}/"))?.to_string();
            Some(library::Entry { name, ..e.clone() })
        };
        let entries = lowered.entries.iter().filter_map(own).collect();
        let params = pipeline::manifest(program, m, &tile::Lowered::default(), sources).params;
        let manifest = Manifest { name: m.name.clone(), params, kernels: kernels.clone(), entries, ..whole.clone() };
        libraries.push(manifest);
    }
    let library = |m: Manifest| Library::new(m, Vec::new()).map_err(|e| BackError::Internal(e.to_string()));
    let shares = (0..members).map(|s| libraries.iter().map(|m| library(of_member(m.clone(), s))).collect::<Result<Vec<_>, _>>());
    let shares = shares.collect::<Result<Vec<_>, _>>()?;
    let checksum = library::file::checksum(&code.concat());
    let code = if options.gpu {
        Code::Gpu(Arc::new(code))
    } else {
        let jit = Jit::load(&code).unwrap_or_else(|e| base::bug!("{e}"));
        Code::Host(Arc::new(crate::commands::common::Loaded(jit)))
    };
    let loss = program.module.func("loss").expect("it was cut");
    let port = |(arg, _, ty): (&graph::Arg, graph::Value, &TensorType)| Port {
        name: arg.name.clone(),
        role: library::Role::Input,
        dtype: ty.dtype,
        shape: ty.shape.clone(),
        buffer: 0,
    };
    let inputs = loss.arg_values().filter(|(a, ..)| a.role == Role::Input).map(port).collect();
    let program = |l: Library| StageProgram { manifest: l.manifest, code: code.clone() };
    let programs = shares.into_iter().map(|stages| stages.into_iter().map(program).collect()).collect();
    Ok(Stages { layout, programs, whole, inputs, costs, checksum })
}
