//! Text to graph. Types in the text must be those the shape rules give.

use super::{PACK, Role, YIELD};
use crate::{
    ir::{Func, Init, Module, ParamDecl, Value},
    op::{Attend, Contract, Exchange, Form, Fused, MapFn, Op, ReduceFn, Repeat, Scalar, quantize},
};
use base::{
    DType, Dim, TensorType,
    text::{Attr, Block, TextError, TextOp, TextValue, Type},
};
use std::collections::HashMap;

/// Bounds on the text of a dim, so that a hostile one is an error and no overflow of the stack.
const MAX_DIM_CHARS: usize = 2000;
const MAX_DIM_DEPTH: usize = 30;

type Parsed<T> = Result<T, TextError>;

/// The module of a text: a `builtin.module`, or what would be inside one.
///
/// # Errors
/// With line, column and what is wrong; syntax, unknown ops and attributes, and types that are not what the shape rules give.
pub fn parse(text: &str) -> Parsed<Module> {
    let ops = base::text::parse(text)?;
    let mut module = Module::default();
    match &ops[..] {
        [op] if op.name == "builtin.module" => {
            if op.attr("sym_name").is_some() {
                module.name = op.get_str("sym_name")?.into();
            }
            for op in op.regions.iter().flat_map(|r| &r.blocks).flat_map(|b| &b.ops) {
                item(op, &mut module)?;
            }
        }
        ops => ops.iter().try_for_each(|op| item(op, &mut module))?,
    }
    Ok(module)
}

/// The function of a text that is one `graph.func`.
///
/// # Errors
/// As [`parse`].
pub fn parse_func(text: &str) -> Parsed<Func> {
    match &base::text::parse(text)?[..] {
        [op] if op.name == "graph.func" => func(op),
        [op, ..] => Err(op.error("expected one graph.func")),
        [] => Err(TextError { line: 1, column: 1, message: "expected a graph.func".into() }),
    }
}

fn item(op: &TextOp, module: &mut Module) -> Parsed<()> {
    match op.name.as_str() {
        "graph.param" => module.params.push(param(op)?),
        "graph.func" => module.funcs.push(func(op)?),
        _ => return Err(op.error("expected graph.param or graph.func")),
    }
    Ok(())
}

fn param(op: &TextOp) -> Parsed<ParamDecl> {
    let value = op.get_float("value")?;
    let init = match op.get_str("init")? {
        "normal" => Init::Normal(value),
        "uniform" => Init::Uniform(value),
        "constant" => Init::Constant(value),
        other => return Err(op.error(format_args!("no init '{other}'"))),
    };
    let Some(Attr::Type(ty)) = op.attr("type") else { return Err(op.error("no type")) };
    let (name, decay) = (op.get_str("name")?.into(), op.get_bool("decay")?);
    Ok(ParamDecl { name, ty: tensor(op, ty)?, init, decay, role: role(op, op.get_str("role")?)? })
}

fn role(op: &TextOp, name: &str) -> Parsed<Role> {
    Role::from_name(name).ok_or_else(|| op.error(format_args!("no role '{name}'")))
}

/// The type `!graph.tensor<dtype, [dims]>`.
fn tensor(op: &TextOp, ty: &Type) -> Parsed<TensorType> {
    let wrong = || op.error(format_args!("expected !graph.tensor<dtype, [dims]>, not {ty}"));
    let Type::Dialect { name, params } = ty else { return Err(wrong()) };
    let ("graph.tensor", [Attr::Type(Type::Text(dtype)), Attr::Array(shape)]) = (name.as_str(), &params[..]) else {
        return Err(wrong());
    };
    let dtype = DType::from_mlir(dtype).ok_or_else(wrong)?;
    let shape = shape.iter().map(|d| if let Attr::Str(d) = d { parse_dim(op, d) } else { Err(wrong()) });
    Ok(TensorType::new(dtype, shape.collect::<Parsed<Vec<_>>>()?))
}

fn parse_dim(op: &TextOp, text: &str) -> Parsed<Dim> {
    if text.len() > MAX_DIM_CHARS || text.matches('(').count() > MAX_DIM_DEPTH {
        return Err(op.error("a dim too long"));
    }
    text.parse().map_err(|e| op.error(e))
}

/// The function that an op's attributes and its only region describe: `graph.func`, `graph.repeat`, `graph.fused`.
fn func(op: &TextOp) -> Parsed<Func> {
    let [region] = &op.regions[..] else { return Err(op.error("expected one region")) };
    let [Block { args, ops }] = &region.blocks[..] else { return Err(op.error("expected one block")) };
    let Some((last, ops)) = ops.split_last().filter(|(last, _)| last.name == YIELD) else {
        return Err(op.error(format_args!("expected {YIELD} at the end of the region")));
    };
    let mut b = Builder { func: Func::new(op.get_str("sym_name")?), names: HashMap::new(), packs: HashMap::new() };
    let signature = |names: &str, roles: &str, count: usize| {
        let (names, roles) = (op.get_strs(names)?, op.get_strs(roles)?);
        if names.len() != count || roles.len() != count {
            return Err(op.error(format_args!("{count} values, {} names and {} roles", names.len(), roles.len())));
        }
        names.into_iter().zip(roles).map(|(n, r)| Ok((n, role(op, r)?))).collect::<Parsed<Vec<_>>>()
    };
    for (arg, (name, role)) in args.iter().zip(signature("arg_names", "arg_roles", args.len())?) {
        let value = b.func.arg(name, role, tensor(op, &arg.ty)?);
        b.define(op, &arg.name, value)?;
    }
    for op in ops {
        b.op(op)?;
    }
    for (operand, (name, role)) in last.operands.iter().zip(signature("output_names", "output_roles", last.operands.len())?) {
        let value = b.value(last, operand)?;
        b.func.output(name, role, value);
    }
    Ok(b.func)
}

struct Builder {
    func: Func,
    names: HashMap<String, Value>,
    packs: HashMap<String, Vec<Value>>,
}

impl Builder {
    fn define(&mut self, op: &TextOp, name: &str, value: Value) -> Parsed<()> {
        if self.packs.contains_key(name) || self.names.insert(name.into(), value).is_some() {
            return Err(op.error(format_args!("%{name} a second time")));
        }
        Ok(())
    }
    fn value(&self, op: &TextOp, operand: &TextValue) -> Parsed<Value> {
        let name = &operand.name;
        let value = *self.names.get(name).ok_or_else(|| op.error(format_args!("no value %{name}")))?;
        let (said, is) = (tensor(op, &operand.ty)?, self.func.ty(value));
        if said == *is { Ok(value) } else { Err(op.error(format_args!("%{name} is {is}, not {said}"))) }
    }
    fn pack(&self, op: &TextOp, operand: &TextValue) -> Parsed<&[Value]> {
        let pack = self.packs.get(&operand.name);
        pack.map(Vec::as_slice).ok_or_else(|| op.error(format_args!("no packed values %{}", operand.name)))
    }
    fn define_pack(&mut self, op: &TextOp, name: &str, values: Vec<Value>) -> Parsed<()> {
        if self.names.contains_key(name) || self.packs.insert(name.into(), values).is_some() {
            return Err(op.error(format_args!("%{name} a second time")));
        }
        Ok(())
    }
    /// Names the values as the op's results say, and checks their types.
    fn define_results(&mut self, op: &TextOp, values: &[Value]) -> Parsed<()> {
        if values.len() != op.results.len() {
            return Err(op.error(format_args!("{} results, not {}", values.len(), op.results.len())));
        }
        for (result, value) in op.results.iter().zip(values) {
            let (said, is) = (tensor(op, &result.ty)?, self.func.ty(*value));
            if said != *is {
                return Err(op.error(format_args!("the result is {is}, not {said}")));
            }
            self.define(op, &result.name, *value)?;
        }
        Ok(())
    }
    fn op(&mut self, op: &TextOp) -> Parsed<()> {
        let is_pack = |v: &TextValue| v.ty == super::values();
        if op.name == PACK {
            return match (&op.operands[..], &op.results[..]) {
                ([packed], _) if is_pack(packed) => {
                    let values = self.pack(op, packed)?.to_vec();
                    self.define_results(op, &values)
                }
                (operands, [result]) if is_pack(result) => {
                    let values = operands.iter().map(|v| self.value(op, v)).collect::<Parsed<_>>()?;
                    self.define_pack(op, &result.name, values)
                }
                _ => Err(op.error("expected to pack or unpack !graph.values")),
            };
        }
        let mut inputs = Vec::new();
        for operand in &op.operands {
            match is_pack(operand) {
                true => inputs.extend_from_slice(self.pack(op, operand)?),
                false => inputs.push(self.value(op, operand)?),
            }
        }
        let built = build(op, &inputs)?;
        let has_body = built.body().is_some();
        let node = self.func.add(built, &inputs, None).map_err(|e| op.error(e))?;
        let results = (0..).zip(&self.func.nodes[node].types).map(|(index, _)| Value { node, index }).collect::<Vec<_>>();
        match (has_body, &op.results[..]) {
            (true, [packed]) => self.define_pack(op, &packed.name, results),
            (true, _) => Err(op.error("expected one result of type !graph.values")),
            (false, _) => self.define_results(op, &results),
        }
    }
}

/// The op of the table that `op` writes.
fn build(op: &TextOp, inputs: &[Value]) -> Parsed<Op> {
    let Some(name) = op.name.strip_prefix("graph.") else { return Err(op.error("not an op of the graph")) };
    // The result's type, where it is an attribute of ours.
    let result = || match &op.results[..] {
        [r] => tensor(op, &r.ty),
        _ => Err(op.error("expected one result")),
    };
    let dim = |key| parse_dim(op, op.get_str(key)?);
    let indices = |key| {
        let items = op.get_ints(key)?.iter().map(|n| usize::try_from(*n));
        items.collect::<Result<Vec<_>, _>>().map_err(|_| op.error(format_args!("a negative number in '{key}'")))
    };
    // Counts are far below 2^31; what is not would overflow in shape rules.
    let count = |key| match op.get_int(key)? {
        n if i32::try_from(n).is_ok() => Ok(n),
        n => Err(op.error(format_args!("'{key}' is {n}"))),
    };
    let no = |what: &str, name: &str| op.error(format_args!("no {what} '{name}'"));
    let attend = || {
        let domain = op.get_str("domain")?.parse().map_err(|e: String| op.error(e))?;
        Ok(Attend { domain, scale: Scalar::new(op.get_float("scale")?) })
    };
    Ok(match name {
        "const" => Op::Const(Scalar::new(op.get_float("value")?), result()?.dtype),
        "extent" => Op::Extent(dim("dim")?, result()?.dtype),
        "iota" => match &result()?.shape[..] {
            [n] => Op::Iota(n.clone()),
            _ => return Err(op.error("expected a result of one axis")),
        },
        "select" => Op::Map(MapFn::Select),
        "map" => {
            let name = op.get_str("fn")?;
            Op::Map(MapFn::from_name(name).filter(|f| *f != MapFn::Select).ok_or_else(|| no("function", name))?)
        }
        "cast" => Op::Cast(result()?.dtype),
        "stop_gradient" => Op::StopGradient,
        "reduce" => {
            let name = op.get_str("fn")?;
            Op::Reduce(ReduceFn::from_name(name).ok_or_else(|| no("reduction", name))?, indices("axes")?)
        }
        "broadcast" => Op::Broadcast { shape: result()?.shape, axes: indices("axes")? },
        "transpose" => Op::Transpose(indices("perm")?),
        "reshape" => Op::Reshape(result()?.shape),
        "slice" => Op::Slice { axis: op.get_index("axis")?, start: dim("start")?, len: dim("len")?, step: count("step")? },
        "concat" => Op::Concat(op.get_index("axis")?),
        "pad" => Op::Pad {
            axis: op.get_index("axis")?,
            low: dim("low")?,
            high: dim("high")?,
            value: Scalar::new(op.get_float("value")?),
        },
        "contract" => Op::Contract(op.get_str("spec")?.parse::<Contract>().map_err(|e| op.error(e))?),
        "gather" => Op::Gather { batch: op.get_index("batch")? },
        "scatter_add" => Op::ScatterAdd { batch: op.get_index("batch")?, n: dim("n")? },
        "topk" => Op::TopK(count("k")?),
        "cumsum" => {
            Op::Cumsum { axis: op.get_index("axis")?, exclusive: op.get_bool("exclusive")?, reverse: op.get_bool("reverse")? }
        }
        "attend" => Op::Attend(attend()?),
        "attend_grad" => Op::AttendGrad(attend()?),
        "route" => Op::Route { groups: count("groups")? },
        "grouped_contract" => Op::GroupedContract { transposed: op.get_bool("transposed")? },
        "grouped_outer" => Op::GroupedOuter,
        "exchange_offsets" => Op::Exchange { what: Exchange::Offsets, members: count("members")? },
        "exchange" => Op::Exchange { what: Exchange::There, members: count("members")? },
        "return" => Op::Exchange { what: Exchange::Back, members: count("members")? },
        "quantize" => Op::Quantize(quantize::Block { rows: count("rows")?, size: count("size")? }),
        "dequantize" => Op::Dequantize(quantize::Block { rows: count("rows")?, size: count("size")? }),
        "repeat" => {
            let (carried, constant) = (op.get_index("carried")?, op.get_index("constant")?);
            let body = func(op)?;
            let in_range = carried.checked_add(constant).is_some_and(|n| n <= body.args.len());
            if !in_range || body.args.len() != inputs.len() {
                return Err(op.error(format_args!("{} operands, {} arguments", inputs.len(), body.args.len())));
            }
            Op::Repeat(Box::new(Repeat { count: count("count")?, carried, constant, reverse: op.get_bool("reverse")?, body }))
        }
        "fused" => {
            let (form, body) = (op.get_str("form")?, func(op)?);
            Op::Fused(Box::new(Fused { form: Form::from_name(form).ok_or_else(|| no("form", form))?, body }))
        }
        _ => return Err(no("op", name)),
    })
}
