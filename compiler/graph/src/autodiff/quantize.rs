//! The derivative of block quantisation: that of its definition, in which rounding to a code has the slope 1. What is to be straight through puts
//! `stop_gradient` before it, and then none of this is built.

use super::{AutodiffError, Site, pull_back};
use crate::{
    build::Builder,
    ir::{Func, Role, Value},
    passes::definition,
};

pub(super) fn terms(b: &mut Builder, s: &Site) -> Result<Vec<Option<Value>>, AutodiffError> {
    let mut f = Func::new("derivative");
    let given = s.dy.iter().enumerate().filter_map(|(i, dy)| Some((i, (*dy)?)));
    let given: Vec<(usize, Value)> = given.collect();
    let mut args = s.node.inputs.clone();
    args.extend(given.iter().map(|(_, dy)| *dy));
    let inner: Vec<Value> =
        args.iter().enumerate().map(|(i, v)| f.arg(&format!("x{i}"), Role::Inner, b.func.ty(*v).clone())).collect();
    let (x, dy) = inner.split_at(s.node.inputs.len());
    let results = definition(&mut Builder::new(&mut f), &s.node.op, x);
    let seeds: Vec<(Value, Value)> = given.iter().zip(dy).map(|((i, _), dy)| (results[*i], *dy)).collect();
    let wanted: Vec<usize> = (0..s.want.len()).filter(|i| s.want[*i]).collect();
    let gradients = pull_back(&mut f, &seeds, &wanted, s.remat)?;
    gradients.into_iter().enumerate().for_each(|(i, v)| f.output(&format!("y{i}"), Role::Inner, v));
    let mut terms = vec![None; s.want.len()];
    for (i, v) in wanted.into_iter().zip(f.inline(b.func, &args, s.node.origin)) {
        terms[i] = Some(v);
    }
    Ok(terms)
}
