//! The graph as text: MLIR's generic syntax in the dialect `graph` (`dialects/graph/graph.irdl.mlir`, `docs/ir/graph.md`).
//!
//! `parse(print(m)) == m` but for origins, which are printed as `loc` where the sources are given and not read back. Two things
//! IRDL cannot say are said with stock ops: a region ends in `vector.yield`, as IRDL declares no terminators; and operands or
//! results of differing types pass through `builtin.unrealized_conversion_cast` as one `!graph.values`, as IRDL's variadics
//! have one type.

mod domain;
mod parse;

pub use parse::{parse, parse_func};

use crate::{
    ir::{Func, Init, Module, NodeId, ParamDecl, Role, Value},
    op::{MapFn, Op},
};
use base::{
    Dim, Sources, Span, TensorType,
    text::{Attr, Block, Loc, Region, TextOp, TextValue, Type},
};

/// The op that packs values of differing types, and unpacks them.
const PACK: &str = "builtin.unrealized_conversion_cast";
/// The op that ends a region.
const YIELD: &str = "vector.yield";

impl Role {
    /// Every role.
    pub const ALL: [Role; 9] =
        [Role::Param, Role::State, Role::Input, Role::Grad, Role::Moment, Role::Tally, Role::Scalar, Role::Result, Role::Inner];
    /// Its name in the text form.
    pub fn name(self) -> &'static str {
        match self {
            Role::Param => "param",
            Role::State => "state",
            Role::Input => "input",
            Role::Grad => "grad",
            Role::Moment => "moment",
            Role::Tally => "tally",
            Role::Scalar => "scalar",
            Role::Result => "result",
            Role::Inner => "inner",
        }
    }
    /// The role with this name.
    pub fn from_name(name: &str) -> Option<Role> {
        Role::ALL.into_iter().find(|r| r.name() == name)
    }
}

/// The text of a module.
pub fn print(module: &Module) -> String {
    base::text::print(&[module_op(module, None)])
}

/// The text of a module, with the source position of each node that has one.
pub fn print_with(module: &Module, sources: &Sources) -> String {
    base::text::print(&[module_op(module, Some(sources))])
}

/// The text of one function.
pub fn print_func(func: &Func) -> String {
    base::text::print(&[func_op(func, None)])
}

fn module_op(module: &Module, sources: Option<&Sources>) -> TextOp {
    let params = module.params.iter().map(param_op);
    let ops = params.chain(module.funcs.iter().map(|f| func_op(f, sources))).collect();
    TextOp {
        attrs: vec![("sym_name".into(), Attr::str(&module.name))],
        regions: vec![Region { blocks: vec![Block { args: Vec::new(), ops }] }],
        ..TextOp::new("builtin.module")
    }
}

fn param_op(p: &ParamDecl) -> TextOp {
    let (init, value) = match p.init {
        Init::Normal(x) => ("normal", x),
        Init::Uniform(x) => ("uniform", x),
        Init::Constant(x) => ("constant", x),
    };
    let attrs = [
        ("name", Attr::str(&p.name)),
        ("type", Attr::Type(tensor(&p.ty))),
        ("role", Attr::str(p.role.name())),
        ("init", Attr::str(init)),
        ("value", Attr::f64(value)),
        ("decay", Attr::Bool(p.decay)),
    ];
    TextOp { attrs: named(attrs), ..TextOp::new("graph.param") }
}

fn func_op(func: &Func, sources: Option<&Sources>) -> TextOp {
    let mut printer = Printer { next: 0, sources };
    TextOp { attrs: func_attrs(func), regions: vec![printer.region(func)], ..TextOp::new("graph.func") }
}

fn named<const N: usize>(attrs: [(&str, Attr); N]) -> Vec<(String, Attr)> {
    attrs.into_iter().map(|(k, a)| (k.to_string(), a)).collect()
}

/// What a function is besides its nodes.
fn func_attrs(func: &Func) -> Vec<(String, Attr)> {
    let strs = |items: Vec<&str>| Attr::Array(items.into_iter().map(Attr::str).collect());
    named([
        ("sym_name", Attr::str(&func.name)),
        ("arg_names", strs(func.args.iter().map(|a| a.name.as_str()).collect())),
        ("arg_roles", strs(func.args.iter().map(|a| a.role.name()).collect())),
        ("output_names", strs(func.outputs.iter().map(|o| o.name.as_str()).collect())),
        ("output_roles", strs(func.outputs.iter().map(|o| o.role.name()).collect())),
    ])
}

/// `!graph.tensor<f32, ["B", "4"]>`.
fn tensor(t: &TensorType) -> Type {
    let shape = t.shape.iter().map(|d| Attr::Str(d.to_string())).collect();
    Type::Dialect { name: "graph.tensor".into(), params: vec![Attr::Type(Type::text(t.dtype.mlir())), Attr::Array(shape)] }
}

/// The type of packed values.
fn values() -> Type {
    Type::Dialect { name: "graph.values".into(), params: Vec::new() }
}

struct Printer<'a> {
    /// The next value's number; numbers are unique in a function with the bodies inside it.
    next: u32,
    sources: Option<&'a Sources>,
}

impl Printer<'_> {
    fn number(&mut self) -> String {
        self.next += 1;
        (self.next - 1).to_string()
    }
    /// The function's block: arguments, nodes, and the outputs at the end.
    fn region(&mut self, func: &Func) -> Region {
        let (mut names, mut block) = (Vec::new(), Block::default());
        for (id, node) in func.nodes.iter() {
            if matches!(node.op, Op::Arg(_)) {
                let name = self.number();
                block.args.extend(node.types.iter().map(|t| TextValue { name: name.clone(), ty: tensor(t) }));
                names.push(name);
            } else {
                let name = self.node(func, id, &names, &mut block.ops);
                names.push(name);
            }
        }
        let outputs = func.outputs.iter().map(|o| operand(func, o.value, &names)).collect();
        block.ops.push(TextOp { operands: outputs, ..TextOp::new(YIELD) });
        Region { blocks: vec![block] }
    }
    /// Appends a node and what packs and unpacks its values; returns its name.
    fn node(&mut self, func: &Func, id: NodeId, names: &[String], ops: &mut Vec<TextOp>) -> String {
        let node = &func.nodes[id];
        let name = self.number();
        let loc = self.loc(node.origin);
        let mut operands: Vec<TextValue> = node.inputs.iter().map(|v| operand(func, *v, names)).collect();
        // How many operands come before those that are packed.
        let fixed = match operands.len() {
            _ if matches!(node.op, Op::Concat(_) | Op::Repeat(_) | Op::Fused(_)) => Some(0),
            n if matches!(node.op, Op::Attend(_)) && n > 3 => Some(3),
            n if matches!(node.op, Op::AttendGrad(_)) && n > 7 => Some(7),
            _ => None,
        };
        if let Some(fixed) = fixed {
            let packed = TextValue { name: format!("in{name}"), ty: values() };
            let rest = operands.split_off(fixed);
            operands.push(packed.clone());
            ops.push(TextOp { operands: rest, results: vec![packed], loc: loc.clone(), ..TextOp::new(PACK) });
        }
        let result = |i: usize| TextValue { name: result_name(&name, i, node.types.len()), ty: tensor(&node.types[i]) };
        let results: Vec<TextValue> = (0..node.types.len()).map(result).collect();
        let op_name = if node.op == Op::Map(MapFn::Select) { "select" } else { node.op.name() };
        let mut op = TextOp { operands, attrs: attrs(&node.op), loc: loc.clone(), ..TextOp::new(&format!("graph.{op_name}")) };
        let Some(body) = node.op.body() else {
            op.results = results;
            ops.push(op);
            return name;
        };
        op.attrs.extend(func_attrs(body));
        op.regions.push(self.region(body));
        let packed = TextValue { name: format!("out{name}"), ty: values() };
        op.results = vec![packed.clone()];
        ops.push(op);
        if !results.is_empty() {
            ops.push(TextOp { operands: vec![packed], results, loc, ..TextOp::new(PACK) });
        }
        name
    }
    fn loc(&self, origin: Option<Span>) -> Option<Loc> {
        let (sources, span) = (self.sources?, origin?);
        let (line, column) = sources.line_col(span);
        let small = |n| u32::try_from(n).expect("sources are below 4 GiB");
        Some(Loc { file: sources.get(span.file).name.to_string(), line: small(line), column: small(column) })
    }
}

fn result_name(name: &str, index: usize, count: usize) -> String {
    if count == 1 { name.to_string() } else { format!("{name}#{index}") }
}

fn operand(func: &Func, v: Value, names: &[String]) -> TextValue {
    let name = names.get(v.node.0 as usize).map_or("undefined", String::as_str);
    let count = func.nodes.get(v.node).map_or(1, |n| n.types.len());
    let ty = func.nodes.get(v.node).and_then(|n| n.types.get(v.index as usize)).map_or_else(|| Type::text("none"), tensor);
    TextValue { name: result_name(name, v.index as usize, count), ty }
}

/// The attributes of an op; what its result type says is not repeated.
fn attrs(op: &Op) -> Vec<(String, Attr)> {
    let index = |n: usize| Attr::i64(i64::try_from(n).expect("an axis"));
    let indices = |items: &[usize]| Attr::Ints(items.iter().map(|n| i64::try_from(*n).expect("an axis")).collect());
    let dim = |d: &Dim| Attr::Str(d.to_string());
    match op {
        Op::Const(value, _) => named([("value", Attr::f64(value.get()))]),
        Op::Extent(d, _) => named([("dim", dim(d))]),
        Op::Map(MapFn::Select) => Vec::new(),
        Op::Map(f) => named([("fn", Attr::str(f.name()))]),
        Op::Reduce(f, axes) => named([("fn", Attr::str(f.name())), ("axes", indices(axes))]),
        Op::Broadcast { axes, .. } => named([("axes", indices(axes))]),
        Op::Transpose(perm) => named([("perm", indices(perm))]),
        Op::Slice { axis, start, len, step } => {
            named([("axis", index(*axis)), ("start", dim(start)), ("len", dim(len)), ("step", Attr::i64(*step))])
        }
        Op::Concat(axis) => named([("axis", index(*axis))]),
        Op::Pad { axis, low, high, value } => {
            named([("axis", index(*axis)), ("low", dim(low)), ("high", dim(high)), ("value", Attr::f64(value.get()))])
        }
        Op::Contract(c) => named([("spec", Attr::Str(c.to_string()))]),
        Op::Gather { batch } => named([("batch", index(*batch))]),
        Op::ScatterAdd { batch, n } => named([("batch", index(*batch)), ("n", dim(n))]),
        Op::TopK(k) => named([("k", Attr::i64(*k))]),
        Op::Cumsum { axis, exclusive, reverse } => {
            named([("axis", index(*axis)), ("exclusive", Attr::Bool(*exclusive)), ("reverse", Attr::Bool(*reverse))])
        }
        Op::Attend(a) | Op::AttendGrad(a) => {
            named([("domain", Attr::Str(a.domain.to_string())), ("scale", Attr::f64(a.scale.get()))])
        }
        Op::Route { groups } => named([("groups", Attr::i64(*groups))]),
        Op::GroupedContract { transposed } => named([("transposed", Attr::Bool(*transposed))]),
        Op::Quantize(b) | Op::Dequantize(b) => named([("size", Attr::i64(b.size)), ("rows", Attr::i64(b.rows))]),
        Op::Repeat(r) => named([
            ("count", Attr::i64(r.count)),
            ("carried", index(r.carried)),
            ("constant", index(r.constant)),
            ("reverse", Attr::Bool(r.reverse)),
        ]),
        Op::Fused(f) => named([("form", Attr::str(f.form.name()))]),
        Op::Arg(_) | Op::Iota(_) | Op::Cast(_) | Op::Reshape(_) | Op::GroupedOuter | Op::StopGradient => Vec::new(),
        Op::Exchange { members, .. } => named([("members", Attr::i64(*members))]),
    }
}

#[cfg(test)]
mod tests;
