//! Contractions by their letters: what rules need to move axes from one operand to another.

use crate::rewrite::{Site, Term};
use base::{Dim, TensorType};
use egg::Id;
use graph::{Op, op::Contract};

/// Two operands and the letters of their axes and of the result's.
#[derive(Clone, Debug)]
pub struct Product {
    /// The left operand and its letters.
    pub lhs: (Term, Vec<char>),
    /// The right one.
    pub rhs: (Term, Vec<char>),
    /// The result's letters.
    pub out: Vec<char>,
}

impl Product {
    /// The product of an e-node.
    pub fn of(spec: &Contract, children: &[Id]) -> Product {
        Product {
            lhs: (children[0].into(), spec.lhs.clone()),
            rhs: (children[1].into(), spec.rhs.clone()),
            out: spec.out.clone(),
        }
    }
    /// The operand on one side.
    pub fn side(&mut self, right: bool) -> &mut (Term, Vec<char>) {
        if right { &mut self.rhs } else { &mut self.lhs }
    }
    /// The term, with letters in order of appearance, so that equal contractions look the same.
    pub fn term(self) -> Term {
        let spec = canonical(&Contract { lhs: self.lhs.1, rhs: self.rhs.1, out: self.out });
        Term::Op(Op::Contract(spec), vec![self.lhs.0, self.rhs.0])
    }
}

/// The same contraction with letters `a`, `b`, … in order of appearance.
pub fn canonical(spec: &Contract) -> Contract {
    let mut seen: Vec<char> = Vec::new();
    for c in spec.lhs.iter().chain(&spec.rhs) {
        if !seen.contains(c) {
            seen.push(*c);
        }
    }
    let letter = |c: &char| {
        let at = seen.iter().position(|x| x == c).unwrap_or_else(|| base::bug!("'{c}' is in no operand"));
        char::from_u32('a' as u32 + at as u32).expect("a letter")
    };
    let word = |w: &[char]| w.iter().map(letter).collect();
    Contract { lhs: word(&spec.lhs), rhs: word(&spec.rhs), out: word(&spec.out) }
}

/// `n` letters that `spec` does not have.
pub fn fresh(spec: &Contract, n: usize) -> Vec<char> {
    let used = |c: &char| spec.lhs.contains(c) || spec.rhs.contains(c) || spec.out.contains(c);
    (0x100..).filter_map(char::from_u32).filter(|c| !used(c)).take(n).collect()
}

/// The letters of one operand that stay in the result and are not in the other.
pub fn is_own(spec: &Contract, c: char) -> bool {
    spec.lhs.contains(&c) != spec.rhs.contains(&c)
}

/// How a reshape moves axes: for each group of operand axes the group of result axes that they become, in order. `None` if an extent of the
/// operand is cut across.
pub fn groups(from: &[Dim], to: &[Dim]) -> Option<Vec<(std::ops::Range<usize>, std::ops::Range<usize>)>> {
    let (mut i, mut j, mut found) = (0, 0, Vec::new());
    while i < from.len() && j < to.len() {
        let (start_i, start_j) = (i, j);
        i += 1;
        j += 1;
        if from[start_i] != to[start_j] {
            // One axis becomes several, or several one.
            let reach = |one: &Dim, many: &[Dim]| {
                let mut product = Dim::from(1);
                many.iter().position(|d| {
                    product = product.clone() * d.clone();
                    product == *one
                })
            };
            match (reach(&from[start_i], &to[start_j..]), reach(&to[start_j], &from[start_i..])) {
                (Some(n), _) => j = start_j + n + 1,
                (None, Some(n)) => i = start_i + n + 1,
                (None, None) => return None,
            }
        }
        found.push((start_i..i, start_j..j));
    }
    // What is left over are axes of extent 1, or the reshape does not keep the order of axes.
    (i == from.len() && j == to.len()).then_some(found)
}

/// Multiplications of a contraction of these types.
pub fn terms(site: &Site, spec: &Contract, lhs: &TensorType, rhs: &TensorType) -> f64 {
    let own = spec.rhs.iter().zip(&rhs.shape).filter(|(c, _)| !spec.lhs.contains(c));
    lhs.shape.iter().chain(own.map(|(_, d)| d)).map(|d| site.egraph.analysis.size(d)).product()
}
