//! Codes of eight bits with a scale for each block, and back. See `graph::Op::Quantize`.

use super::Args;
use crate::{
    elaborate::{Elaborator, Stop},
    value::Val,
};
use graph::{Op, op::quantize::Block};

/// Elements of a block, if nothing is said. # Source: DeepSeek-V3, arXiv 2412.19437, section 3.3.2.
const BLOCK: i64 = 128;

pub(super) fn call(e: &mut Elaborator, a: &mut Args) -> Option<Result<Val, Stop>> {
    let func = a.func;
    Some(match func {
        "quantize" => a.tensor(e, "x").and_then(|x| {
            let block = block(e, a)?;
            let results = e.node(func, Op::Quantize(block), &[x], a.at)?;
            Ok(Val::Tuple(results.into_iter().map(Val::Tensor).collect()))
        }),
        "dequantize" => a.tensor(e, "code").and_then(|code| {
            let scale = a.tensor(e, "scale")?;
            let block = block(e, a)?;
            e.node1(func, Op::Dequantize(block), &[code, scale], a.at).map(Val::Tensor)
        }),
        _ => return None,
    })
}

fn block(e: &mut Elaborator, a: &mut Args) -> Result<Block, Stop> {
    let mut extent = |name: &str, otherwise: i64| {
        let given = a.positional.len() > a.next || a.named.iter().any(|(n, _, _)| n == name);
        if given { a.int(e, name) } else { Ok(otherwise) }
    };
    let size = extent("size", BLOCK)?;
    Ok(Block { rows: extent("rows", 1)?, size })
}
