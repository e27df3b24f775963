//! Shape rules of routing and of contractions over ragged rows.

use super::{OpError, check_dtype, check_shape, op_error};
use base::{DType, Dim, TensorType};

/// What the members of a group tell or send each other. Member m of E has the experts m·e/E and on; each has R rows, sorted by expert; what is behind its last offset is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Exchange {
    /// i32 `offsets [e + 1]` → those of all members `[E, e + 1]`, and of the rows that this one gets, by its experts, `[e/E + 1]`.
    Offsets,
    /// `x [R, d]`, all offsets → `[R·E, d]`: the rows of this member's experts, by expert, then by member; 0 behind them.
    There,
    /// `y [R·E, d]`, all offsets → `[R, d]`: the other way; 0 behind the rows that this member has.
    Back,
}

impl Exchange {
    /// Its name in the text form.
    pub fn name(self) -> &'static str {
        match self {
            Exchange::Offsets => "exchange_offsets",
            Exchange::There => "exchange",
            Exchange::Back => "return",
        }
    }
    /// What that of a row's gradient is.
    pub fn turned(self) -> Exchange {
        match self {
            Exchange::Offsets => Exchange::Offsets,
            Exchange::There => Exchange::Back,
            Exchange::Back => Exchange::There,
        }
    }
}

pub(super) fn exchange(what: Exchange, members: i64, operands: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    let all = operands[operands.len() - 1];
    check_dtype("the offsets", all, DType::I32)?;
    let experts = all.shape.last().and_then(Dim::known).unwrap_or(1) - 1;
    if members < 1 || experts < 1 || experts % members != 0 {
        return op_error!("{members} members for offsets of {all}");
    }
    let e = Dim::from(members);
    if what == Exchange::Offsets {
        let [n] = &all.shape[..] else { return op_error!("offsets of {all}") };
        let i32s = |shape: Vec<Dim>| TensorType::new(DType::I32, shape);
        return Ok(vec![i32s(vec![e, n.clone()]), i32s(vec![Dim::from(experts / members + 1)])]);
    }
    let x = operands[0];
    let ([rows, d], [of, _]) = (&x.shape[..], &all.shape[..]) else { return op_error!("rows of {x} by offsets of {all}") };
    check_shape("the number of members", std::slice::from_ref(of), std::slice::from_ref(&e))?;
    if !x.dtype.is_float() {
        return op_error!("rows of {x}");
    }
    let rows = match what {
        Exchange::There => rows.clone() * e,
        Exchange::Back | Exchange::Offsets => match rows.try_div(&e) {
            Some(rows) => rows,
            None => return op_error!("{rows} rows from {members} members"),
        },
    };
    Ok(vec![TensorType::new(x.dtype, vec![rows, d.clone()])])
}

pub(super) fn route(groups: i64, idx: &TensorType) -> Result<Vec<TensorType>, OpError> {
    check_dtype("the choice", idx, DType::I32)?;
    if idx.rank() != 2 || groups < 1 {
        return op_error!("routing of {idx} to {groups} groups");
    }
    let i32s = |shape: Vec<Dim>| TensorType::new(DType::I32, shape);
    Ok(vec![i32s(vec![Dim::from(groups + 1)]), i32s(vec![idx.elems()]), idx.clone()])
}

fn groups(offsets: &TensorType) -> Result<Dim, OpError> {
    check_dtype("the offsets", offsets, DType::I32)?;
    match &offsets.shape[..] {
        [n] => Ok(n.clone() - Dim::from(1)),
        _ => op_error!("offsets of {offsets}"),
    }
}

/// The summed axis of the matrices of a product of ragged rows.
pub fn terms_axis(transposed: bool) -> usize {
    if transposed { 2 } else { 1 }
}

pub(super) fn grouped_contract(transposed: bool, operands: &[&TensorType]) -> Result<TensorType, OpError> {
    let (x, w) = (operands[0], operands[1]);
    let e = groups(operands[2])?;
    let ([r, k], [we, wa, wb]) = (&x.shape[..], &w.shape[..]) else { return op_error!("grouped_contract of {x} and {w}") };
    let (wk, n) = if transposed { (wb, wa) } else { (wa, wb) };
    if x.dtype != w.dtype || !x.dtype.is_float() {
        return op_error!("grouped_contract of {x} and {w}");
    }
    check_shape("the rows' inner extent", std::slice::from_ref(k), std::slice::from_ref(wk))?;
    check_shape("the number of matrices", std::slice::from_ref(we), &[e])?;
    Ok(TensorType::new(x.dtype, vec![r.clone(), n.clone()]))
}

pub(super) fn grouped_outer(operands: &[&TensorType]) -> Result<TensorType, OpError> {
    let (x, y) = (operands[0], operands[1]);
    let e = groups(operands[2])?;
    let ([r, k], [r2, n]) = (&x.shape[..], &y.shape[..]) else { return op_error!("grouped_outer of {x} and {y}") };
    if x.dtype != y.dtype || !x.dtype.is_float() {
        return op_error!("grouped_outer of {x} and {y}");
    }
    check_shape("the number of rows", std::slice::from_ref(r), std::slice::from_ref(r2))?;
    Ok(TensorType::new(x.dtype, vec![e, k.clone(), n.clone()]))
}
