//! Softmax attention over a domain.
//!
//! o[b,t,h] = Σ_s P[t,s]·v[b,s,h/(H/G)] with P = softmax over the visible s of scale·q·k; lse = log Σ exp. A query that sees no
//! key has o = 0, lse = 0 and no gradient. The gradient: dS = P∘(dP − ⟨d_o, o⟩ + d_lse), dq = scale·dS·k, dk = scale·dSᵀ·q,
//! dv = Pᵀ·d_o. # Source: Dao, FlashAttention-2, 2023, algorithms 1 and 2; NSA, arXiv 2502.11089, section 3.

use super::{OpError, Scalar, check_dtype, check_shape, op_error};
use base::{DType, Dim, TensorType};

/// Attention: q `[b, t, h, dk]`, k `[b, s, g, dk]`, v `[b, s, g, dv]` with `h % g == 0` → o `[b, t, h, dv]`, lse `[b, t, h]` in the
/// accumulator type.
#[derive(Clone, Debug, PartialEq)]
pub struct Attend {
    /// Which keys a query sees.
    pub domain: Domain,
    /// Factor of q·k. # Units: dimensionless, usually 1/√dk.
    pub scale: Scalar,
}

/// Which keys a query sees; the algebra of `docs/language.md`. Numbers called *operand* index the op's domain operands (those after
/// the fixed ones). The position of query row t is `s_len − t_len + t`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Domain {
    /// All.
    Full,
    /// s ≤ t.
    Causal,
    /// t − w < s.
    Window(i64),
    /// s < n.
    Prefix(i64),
    /// s·stride + length − 1 ≤ t where t is the query's row plus `offset`.
    EndsBefore {
        /// Tokens of a compressed window.
        length: i64,
        /// Tokens from one to the next.
        stride: i64,
    },
    /// ends[s] ≤ t (the row); the operand is i32 `[b, s]`.
    EndsAt(usize),
    /// query[b, t] == key[b, s]; operands i32 `[b, t]` and `[b, s]`.
    Segments(usize, usize),
    /// s / size ∈ idx[b, t, g, :]; operand i32 `[b, t, g, n]`.
    Blocks {
        /// The operand.
        idx: usize,
        /// Keys of a block.
        size: i64,
    },
    /// of[b, s] ∈ idx[b, t, g, :]; operands i32 `[b, t, g, n]` and `[b, s]`.
    Groups {
        /// The chosen groups.
        idx: usize,
        /// The group of each key.
        of: usize,
    },
    /// s ∈ idx[b, t, g, :]; operand i32 `[b, t, g, n]`.
    Tokens(usize),
    /// Both.
    And(Box<Domain>, Box<Domain>),
    /// Either.
    Or(Box<Domain>, Box<Domain>),
}

impl Domain {
    /// Whether keys are in lists, each for a key head.
    pub fn has_lists(&self) -> bool {
        match self {
            Domain::Blocks { .. } | Domain::Groups { .. } | Domain::Tokens(_) => true,
            Domain::And(a, b) | Domain::Or(a, b) => a.has_lists() || b.has_lists(),
            Domain::Full
            | Domain::Causal
            | Domain::Window(_)
            | Domain::Prefix(_)
            | Domain::EndsBefore { .. }
            | Domain::EndsAt(_)
            | Domain::Segments(..) => false,
        }
    }
    /// The number of operands it needs: one more than the greatest it names.
    pub fn num_operands(&self) -> usize {
        match self {
            Domain::Full | Domain::Causal | Domain::Window(_) | Domain::Prefix(_) | Domain::EndsBefore { .. } => 0,
            Domain::EndsAt(a) | Domain::Blocks { idx: a, .. } | Domain::Tokens(a) => a + 1,
            Domain::Segments(a, b) | Domain::Groups { idx: a, of: b } => a.max(b) + 1,
            Domain::And(a, b) | Domain::Or(a, b) => a.num_operands().max(b.num_operands()),
        }
    }
    /// The same domain with `by` added to each operand number.
    pub fn shift(&self, by: usize) -> Domain {
        match self {
            Domain::Full | Domain::Causal | Domain::Window(_) | Domain::Prefix(_) | Domain::EndsBefore { .. } => self.clone(),
            Domain::EndsAt(a) => Domain::EndsAt(a + by),
            Domain::Segments(a, b) => Domain::Segments(a + by, b + by),
            Domain::Blocks { idx, size } => Domain::Blocks { idx: idx + by, size: *size },
            Domain::Groups { idx, of } => Domain::Groups { idx: idx + by, of: of + by },
            Domain::Tokens(a) => Domain::Tokens(a + by),
            Domain::And(a, b) => Domain::And(Box::new(a.shift(by)), Box::new(b.shift(by))),
            Domain::Or(a, b) => Domain::Or(Box::new(a.shift(by)), Box::new(b.shift(by))),
        }
    }
    /// Fails unless the operands have the types the domain asks for.
    fn check(&self, b: &Dim, t: &Dim, s: &Dim, g: &Dim, operands: &[&TensorType]) -> Result<(), OpError> {
        let of_keys = |i: usize| i32s("key", operands[i], &[b.clone(), s.clone()]);
        let chosen = |i: usize| {
            let rank = operands[i].rank();
            let n = operands[i].shape.last().cloned().filter(|_| rank == 4).unwrap_or_else(|| Dim::from(0));
            i32s("choice", operands[i], &[b.clone(), t.clone(), g.clone(), n])
        };
        match self {
            Domain::Full | Domain::Causal => Ok(()),
            Domain::Window(w) if *w < 1 => op_error!("a window of {w} keys"),
            Domain::Prefix(n) if *n < 0 => op_error!("the first {n} keys"),
            Domain::Window(_) | Domain::Prefix(_) => Ok(()),
            Domain::EndsBefore { length, stride } if *length < 1 || *stride < 1 => {
                op_error!("windows of {length} every {stride}")
            }
            Domain::EndsBefore { .. } => Ok(()),
            Domain::EndsAt(e) => of_keys(*e),
            Domain::Segments(q, k) => {
                i32s("query segment", operands[*q], &[b.clone(), t.clone()])?;
                of_keys(*k)
            }
            Domain::Blocks { size, .. } if *size < 1 => op_error!("blocks of {size} keys"),
            Domain::Blocks { idx, .. } | Domain::Tokens(idx) => chosen(*idx),
            Domain::Groups { idx, of } => {
                chosen(*idx)?;
                of_keys(*of)
            }
            Domain::And(x, y) | Domain::Or(x, y) => {
                x.check(b, t, s, g, operands)?;
                y.check(b, t, s, g, operands)
            }
        }
    }
}

fn i32s(what: &str, t: &TensorType, shape: &[Dim]) -> Result<(), OpError> {
    check_dtype(what, t, DType::I32)?;
    check_shape(what, &t.shape, shape)
}

pub(super) fn infer(a: &Attend, operands: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    if operands.len() != 3 + a.domain.num_operands() {
        return op_error!("attend takes 3 operands and {} of its domain, not {}", a.domain.num_operands(), operands.len());
    }
    let (q, k, v) = (operands[0], operands[1], operands[2]);
    let ([b, t, h, dk], [kb, s, g, kd], [vb, vs, vg, dv]) = (&q.shape[..], &k.shape[..], &v.shape[..]) else {
        return op_error!("attend of {q}, {k}, {v}: each has 4 axes");
    };
    if (kb, kd, vb, vs, vg) != (b, dk, b, s, g) || !q.dtype.is_float() || q.dtype != k.dtype || q.dtype != v.dtype {
        return op_error!("attend of {q}, {k}, {v}");
    }
    if h.try_div(g).is_none() {
        return op_error!("{h} query heads are not a multiple of {g} key heads");
    }
    a.domain.check(b, t, s, g, &operands[3..])?;
    let lse = TensorType::new(q.dtype.accumulator(), vec![b.clone(), t.clone(), h.clone()]);
    Ok(vec![TensorType::new(q.dtype, vec![b.clone(), t.clone(), h.clone(), dv.clone()]), lse])
}

pub(super) fn infer_grad(a: &Attend, operands: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    if operands.len() != 7 + a.domain.num_operands() {
        return op_error!("attend_grad takes 7 operands and {} of its domain, not {}", a.domain.num_operands(), operands.len());
    }
    let forward: Vec<&TensorType> = operands[..3].iter().chain(&operands[7..]).copied().collect();
    let results = infer(a, &forward)?;
    let given = [(operands[3], &results[0]), (operands[4], &results[1]), (operands[5], &results[0]), (operands[6], &results[1])];
    match given.iter().find(|(x, y)| *x != *y) {
        Some((x, y)) => op_error!("attend_grad got {x} for {y}"),
        None => Ok(operands[..3].iter().map(|t| (*t).clone()).collect()),
    }
}
