//! Einstein summation of two operands.

use super::{OpError, op_error};
use base::{Dim, TensorType};
use std::{fmt, str::FromStr};

/// Which axes meet: one letter per axis. A letter in both operands and the result is a batch axis; in both and not in the
/// result it is summed; in one it is kept. No letter twice in an operand, none only in one operand and not in the result.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Contract {
    /// The letters of the left operand's axes.
    pub lhs: Vec<char>,
    /// Of the right's.
    pub rhs: Vec<char>,
    /// Of the result's.
    pub out: Vec<char>,
}

impl Contract {
    /// The letters that are summed over, in the order of the left operand.
    pub fn summed(&self) -> Vec<char> {
        self.lhs.iter().copied().filter(|c| self.rhs.contains(c) && !self.out.contains(c)).collect()
    }
    /// The letters in both operands and the result, in the order of the result.
    pub fn batch(&self) -> Vec<char> {
        self.out.iter().copied().filter(|c| self.lhs.contains(c) && self.rhs.contains(c)).collect()
    }
    /// The letters of the result that only the left operand has, in the order of the result.
    pub fn rows(&self) -> Vec<char> {
        self.out.iter().copied().filter(|c| !self.rhs.contains(c)).collect()
    }
    /// The letters of the result that only the right operand has, in the order of the result.
    pub fn cols(&self) -> Vec<char> {
        self.out.iter().copied().filter(|c| !self.lhs.contains(c)).collect()
    }
}

/// `bthk,hkd->btd`.
impl fmt::Display for Contract {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |w: &[char]| w.iter().collect::<String>();
        write!(f, "{},{}->{}", word(&self.lhs), word(&self.rhs), word(&self.out))
    }
}

impl FromStr for Contract {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let (ab, out) = s.split_once("->").ok_or_else(|| format!("no '->' in '{s}'"))?;
        let (lhs, rhs) = ab.split_once(',').ok_or_else(|| format!("no ',' in '{s}'"))?;
        let word = |w: &str| w.trim().chars().collect::<Vec<_>>();
        Ok(Contract { lhs: word(lhs), rhs: word(rhs), out: word(out) })
    }
}

pub(super) fn infer(c: &Contract, a: &TensorType, b: &TensorType) -> Result<TensorType, OpError> {
    if a.dtype != b.dtype || !a.dtype.is_float() {
        return op_error!("contract of {a} and {b}");
    }
    if c.lhs.len() != a.rank() || c.rhs.len() != b.rank() {
        return op_error!("{c} does not fit {a} and {b}");
    }
    let repeated = |w: &[char]| w.iter().enumerate().any(|(i, x)| w[..i].contains(x));
    if repeated(&c.lhs) || repeated(&c.rhs) || repeated(&c.out) {
        return op_error!("a letter twice in one operand of {c}");
    }
    let extent = |x: char| -> Option<&Dim> {
        let in_a = c.lhs.iter().position(|y| *y == x).map(|i| &a.shape[i]);
        in_a.or_else(|| c.rhs.iter().position(|y| *y == x).map(|i| &b.shape[i]))
    };
    for (i, x) in c.rhs.iter().enumerate() {
        if extent(*x) != Some(&b.shape[i]) {
            return op_error!("'{x}' is {} in {a} and {} in {b}", extent(*x).expect("it is in rhs"), b.shape[i]);
        }
    }
    if let Some(x) = c.lhs.iter().chain(&c.rhs).find(|x| !(c.out.contains(x) || c.lhs.contains(x) && c.rhs.contains(x))) {
        return op_error!("'{x}' of {c} is summed in one operand alone");
    }
    let shape: Option<Vec<Dim>> = c.out.iter().map(|x| extent(*x).cloned()).collect();
    match shape {
        Some(shape) => Ok(TensorType::new(a.dtype, shape)),
        None => op_error!("a letter of the result of {c} is in neither operand"),
    }
}
