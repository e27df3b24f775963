//! Symbolic extents: integer polynomials over named run-time dims, with floor division, `min` and `max`.
//!
//! A dim is kept in a canonical form (a sum of products with like terms merged), so that equality of values that differ
//! only by ring laws is structural equality: `B*T*2 == 2*T*B`. Division cancels what divides exactly. Coefficients saturate: no
//! tensor has 2^63 elements, and a text that says so must not crash.

use std::{
    collections::BTreeMap,
    fmt,
    ops::{Add, Mul, Neg, Sub},
    str::FromStr,
    sync::Arc,
};

/// The values of run-time dims.
pub type DimEnv = BTreeMap<Arc<str>, i64>;

/// An extent: a constant, or a polynomial over run-time dims.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dim(Repr);

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Repr {
    Const(i64),
    /// At least one term with an atom; no zero coefficient.
    Poly(Arc<BTreeMap<Monomial, i64>>),
}

/// A product of atoms, sorted; empty for the constant term.
type Monomial = Vec<Atom>;

/// What a polynomial is built of.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Atom {
    /// A run-time dim.
    Sym(Arc<str>),
    /// `⌊a / n⌋` with `n > 0`.
    FloorDiv(Dim, Dim),
    /// The smaller.
    Min(Dim, Dim),
    /// The larger.
    Max(Dim, Dim),
}

impl Dim {
    /// The run-time dim called `name`.
    pub fn sym(name: &str) -> Dim {
        Dim::atom(Atom::Sym(name.into()))
    }
    fn atom(a: Atom) -> Dim {
        Dim(Repr::Poly(Arc::new(BTreeMap::from([(vec![a], 1)]))))
    }
    fn terms(&self) -> BTreeMap<Monomial, i64> {
        match &self.0 {
            Repr::Const(0) => BTreeMap::new(),
            Repr::Const(c) => BTreeMap::from([(Vec::new(), *c)]),
            Repr::Poly(p) => (**p).clone(),
        }
    }
    fn from_terms(mut terms: BTreeMap<Monomial, i64>) -> Dim {
        terms.retain(|_, c| *c != 0);
        match terms.len() {
            0 => Dim(Repr::Const(0)),
            1 if terms.contains_key(&Vec::new()) => Dim(Repr::Const(terms[&Vec::new()])),
            _ => Dim(Repr::Poly(Arc::new(terms))),
        }
    }
    /// The value, if it does not depend on run-time dims.
    pub fn known(&self) -> Option<i64> {
        match self.0 {
            Repr::Const(c) => Some(c),
            Repr::Poly(_) => None,
        }
    }
    /// Whether this is the constant `n`.
    pub fn is(&self, n: i64) -> bool {
        self.known() == Some(n)
    }
    /// `⌊self / n⌋`. Parts that divide exactly leave the floor: `⌊(8·B + 3) / 4⌋ = 2·B + ⌊3/4⌋`.
    ///
    /// # Panics
    /// If `n` is the constant 0 or negative.
    pub fn floor_div(&self, n: &Dim) -> Dim {
        if let Some(q) = self.try_div(n) {
            return q;
        }
        if let Some(c) = n.known() {
            assert!(c > 0, "division of a dim by {c}");
            if let Some(a) = self.known() {
                return Dim::from(a.div_euclid(c));
            }
            let (mut whole, mut rest) = (BTreeMap::new(), BTreeMap::new());
            for (m, k) in self.terms() {
                if m.is_empty() {
                    whole.insert(m.clone(), k.div_euclid(c));
                    rest.insert(m, k.rem_euclid(c));
                } else if k % c == 0 {
                    whole.insert(m, k / c);
                } else {
                    rest.insert(m, k);
                }
            }
            let (whole, rest) = (Dim::from_terms(whole), Dim::from_terms(rest));
            return match rest.known() {
                Some(r) => whole + Dim::from(r.div_euclid(c)),
                None => whole + Dim::atom(Atom::FloorDiv(rest, n.clone())),
            };
        }
        Dim::atom(Atom::FloorDiv(self.clone(), n.clone()))
    }
    /// `⌈self / n⌉`.
    pub fn ceil_div(&self, n: &Dim) -> Dim {
        (self.clone() + n.clone() - Dim::from(1)).floor_div(n)
    }
    /// The exact quotient by a constant or a single product, or `None` if it does not visibly divide.
    pub fn try_div(&self, n: &Dim) -> Option<Dim> {
        if self == n && !n.is(0) {
            return Some(Dim::from(1));
        }
        let divisor = n.terms();
        let (dm, dk) = divisor.iter().next().filter(|_| divisor.len() == 1)?;
        let mut out = BTreeMap::new();
        for (mut m, k) in self.terms() {
            if k.checked_rem(*dk) != Some(0) {
                return None;
            }
            for a in dm {
                let at = m.iter().position(|x| x == a)?;
                m.remove(at);
            }
            out.insert(m, k / dk);
        }
        Some(Dim::from_terms(out))
    }
    /// Whether it is visibly at least 1 where all run-time dims are.
    pub fn is_positive(&self) -> bool {
        self.least().is_some_and(|n| n >= 1)
    }
    /// The visibly positive factor that all terms share: `4*B` of `4*B*T - 8*B`; 1 of a constant.
    pub fn content(&self) -> Dim {
        let Repr::Poly(terms) = &self.0 else { return Dim::from(1) };
        let gcd = terms.values().fold(0u64, |mut a, k| {
            let mut b = k.unsigned_abs();
            while b != 0 {
                (a, b) = (b, a % b);
            }
            a
        });
        let (first, mut rest) =
            (terms.keys().next().expect("a polynomial has a term"), terms.keys().skip(1).cloned().collect::<Vec<_>>());
        let mut content = Dim::from(i64::try_from(gcd).unwrap_or(1));
        for atom in first.iter().map(|a| Dim::atom(a.clone())).filter(Dim::is_positive) {
            let here = |m: &Monomial| m.iter().position(|a| Dim::atom(a.clone()) == atom);
            if rest.iter().all(|m| here(m).is_some()) {
                rest.iter_mut().for_each(|m| drop(m.remove(here(m).expect("found before"))));
                content = content * atom;
            }
        }
        content
    }
    /// A lower bound, if one shows.
    fn least(&self) -> Option<i64> {
        let Repr::Poly(terms) = &self.0 else { return self.known() };
        let mut sum = 0i64;
        for (m, k) in terms.iter() {
            let mut product = *k;
            for a in m {
                let least = match a {
                    Atom::Sym(_) => 1,
                    Atom::FloorDiv(a, n) => a.least()?.div_euclid(n.known()?),
                    Atom::Min(a, b) => a.least()?.min(b.least()?),
                    Atom::Max(a, b) => a.least().max(b.least())?,
                };
                // A factor that may be negative, or a term that falls without end, has no bound.
                product = product.saturating_mul((*k > 0 && least >= 0).then_some(least)?);
            }
            sum = sum.saturating_add(product);
        }
        Some(sum)
    }
    /// The smaller of two extents.
    pub fn minimum(&self, other: &Dim) -> Dim {
        match (self - other).known() {
            Some(d) if d <= 0 => self.clone(),
            Some(_) => other.clone(),
            None => Dim::atom(Atom::Min(self.clone().min_first(other), self.clone().max_first(other))),
        }
    }
    /// The larger of two extents.
    pub fn maximum(&self, other: &Dim) -> Dim {
        match (self - other).known() {
            Some(d) if d >= 0 => self.clone(),
            Some(_) => other.clone(),
            None => Dim::atom(Atom::Max(self.clone().min_first(other), self.clone().max_first(other))),
        }
    }
    // `min` and `max` commute: arguments are kept in the order of `Ord`.
    fn min_first(self, other: &Dim) -> Dim {
        std::cmp::min(self, other.clone())
    }
    fn max_first(self, other: &Dim) -> Dim {
        std::cmp::max(self, other.clone())
    }
    /// The value for given run-time dims; `None` if one is missing or a divisor is not positive.
    pub fn eval(&self, env: &DimEnv) -> Option<i64> {
        let Repr::Poly(terms) = &self.0 else { return self.known() };
        let mut sum = 0i64;
        for (m, k) in terms.iter() {
            let mut product = *k;
            for a in m {
                product = product.checked_mul(match a {
                    Atom::Sym(s) => *env.get(s)?,
                    Atom::FloorDiv(a, n) => a.eval(env)?.div_euclid(n.eval(env).filter(|n| *n > 0)?),
                    Atom::Min(a, b) => a.eval(env)?.min(b.eval(env)?),
                    Atom::Max(a, b) => a.eval(env)?.max(b.eval(env)?),
                })?;
            }
            sum = sum.checked_add(product)?;
        }
        Some(sum)
    }
    /// Replaces run-time dims; names for which `with` gives `None` stay.
    pub fn substitute(&self, with: &dyn Fn(&str) -> Option<Dim>) -> Dim {
        let Repr::Poly(terms) = &self.0 else { return self.clone() };
        let mut sum = Dim::from(0);
        for (m, k) in terms.iter() {
            let mut product = Dim::from(*k);
            for a in m {
                let a = match a {
                    Atom::Sym(s) => with(s).unwrap_or_else(|| Dim::sym(s)),
                    Atom::FloorDiv(a, n) => a.substitute(with).floor_div(&n.substitute(with)),
                    Atom::Min(a, b) => a.substitute(with).minimum(&b.substitute(with)),
                    Atom::Max(a, b) => a.substitute(with).maximum(&b.substitute(with)),
                };
                product = product * a;
            }
            sum = sum + product;
        }
        sum
    }
    /// The run-time dims it depends on, in order, added to `out` once each.
    pub fn symbols(&self, out: &mut std::collections::BTreeSet<Arc<str>>) {
        let Repr::Poly(terms) = &self.0 else { return };
        for a in terms.keys().flatten() {
            match a {
                Atom::Sym(s) => {
                    out.insert(s.clone());
                }
                Atom::FloorDiv(a, b) | Atom::Min(a, b) | Atom::Max(a, b) => {
                    a.symbols(out);
                    b.symbols(out);
                }
            }
        }
    }
    /// The sum of products, for code generation: coefficient and atoms of each term, in a fixed order.
    pub fn sum_of_products(&self) -> Vec<(i64, Vec<Atom>)> {
        self.terms().into_iter().map(|(m, k)| (k, m)).collect()
    }
}

impl From<i64> for Dim {
    fn from(n: i64) -> Dim {
        Dim(Repr::Const(n))
    }
}

impl Add for Dim {
    type Output = Dim;
    fn add(self, rhs: Dim) -> Dim {
        if let (Repr::Const(a), Repr::Const(b)) = (&self.0, &rhs.0) {
            return Dim::from(a.saturating_add(*b));
        }
        let mut terms = self.terms();
        for (m, k) in rhs.terms() {
            let sum = terms.entry(m).or_insert(0);
            *sum = sum.saturating_add(k);
        }
        Dim::from_terms(terms)
    }
}

impl Neg for Dim {
    type Output = Dim;
    fn neg(self) -> Dim {
        self * Dim::from(-1)
    }
}

impl Sub for Dim {
    type Output = Dim;
    fn sub(self, rhs: Dim) -> Dim {
        self + -rhs
    }
}

impl Sub for &Dim {
    type Output = Dim;
    fn sub(self, rhs: &Dim) -> Dim {
        self.clone() - rhs.clone()
    }
}

impl Mul for Dim {
    type Output = Dim;
    fn mul(self, rhs: Dim) -> Dim {
        if let (Repr::Const(a), Repr::Const(b)) = (&self.0, &rhs.0) {
            return Dim::from(a.saturating_mul(*b));
        }
        let mut out = BTreeMap::new();
        for (m1, k1) in self.terms() {
            for (m2, k2) in rhs.terms() {
                let mut m = m1.clone();
                m.extend(m2);
                m.sort();
                let sum = out.entry(m).or_insert(0i64);
                *sum = sum.saturating_add(k1.saturating_mul(k2));
            }
        }
        Dim::from_terms(out)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let terms = match &self.0 {
            Repr::Const(c) => return write!(f, "{c}"),
            Repr::Poly(p) => p,
        };
        // The constant term last, so that `T + 1` reads as written.
        let ordered = terms.iter().filter(|(m, _)| !m.is_empty()).chain(terms.iter().filter(|(m, _)| m.is_empty()));
        for (i, (m, k)) in ordered.enumerate() {
            match (i, *k < 0) {
                (0, true) => f.write_str("-")?,
                (0, false) => {}
                (_, true) => f.write_str(" - ")?,
                (_, false) => f.write_str(" + ")?,
            }
            let k = k.unsigned_abs();
            let mut factors: Vec<String> = m.iter().map(|a| a.to_string()).collect();
            if k != 1 || m.is_empty() {
                factors.insert(0, k.to_string());
            }
            f.write_str(&factors.join("*"))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Atom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Atom::Sym(s) => f.write_str(s),
            Atom::FloorDiv(a, n) => write!(f, "floordiv({a}, {n})"),
            Atom::Min(a, b) => write!(f, "min({a}, {b})"),
            Atom::Max(a, b) => write!(f, "max({a}, {b})"),
        }
    }
}

/// Parses what `Display` prints.
impl FromStr for Dim {
    type Err = String;
    fn from_str(s: &str) -> Result<Dim, String> {
        let mut p = Parser { rest: s };
        let dim = p.sum()?;
        if p.rest.trim().is_empty() { Ok(dim) } else { Err(format!("unexpected '{}' in dim '{s}'", p.rest.trim())) }
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    fn eat(&mut self, c: char) -> bool {
        self.rest = self.rest.trim_start();
        match self.rest.strip_prefix(c) {
            Some(r) => {
                self.rest = r;
                true
            }
            None => false,
        }
    }
    fn expect(&mut self, c: char) -> Result<(), String> {
        if self.eat(c) { Ok(()) } else { Err(format!("expected '{c}' before '{}'", self.rest)) }
    }
    fn sum(&mut self) -> Result<Dim, String> {
        let mut sum = if self.eat('-') { -self.product()? } else { self.product()? };
        loop {
            if self.eat('+') {
                sum = sum + self.product()?;
            } else if self.eat('-') {
                sum = sum - self.product()?;
            } else {
                return Ok(sum);
            }
        }
    }
    fn product(&mut self) -> Result<Dim, String> {
        let mut product = self.factor()?;
        while self.eat('*') {
            product = product * self.factor()?;
        }
        Ok(product)
    }
    fn factor(&mut self) -> Result<Dim, String> {
        self.rest = self.rest.trim_start();
        let len = self.rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '.')).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(len);
        if word.is_empty() {
            return Err(format!("expected a dim before '{}'", self.rest));
        }
        self.rest = rest;
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            return word.parse::<i64>().map(Dim::from).map_err(|e| format!("'{word}': {e}"));
        }
        if !matches!(word, "floordiv" | "min" | "max") || !self.eat('(') {
            return Ok(Dim::sym(word));
        }
        let a = self.sum()?;
        self.expect(',')?;
        let b = self.sum()?;
        self.expect(')')?;
        match word {
            "min" => Ok(a.minimum(&b)),
            "max" => Ok(a.maximum(&b)),
            _ if b.known().is_some_and(|n| n <= 0) => Err(format!("division of a dim by {b}")),
            _ => Ok(a.floor_div(&b)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn d(s: &str) -> Dim {
        s.parse().expect("a dim")
    }

    #[test]
    fn equal_by_ring_laws_is_equal() {
        assert_eq!(d("B*T*2"), d("2*T*B"));
        assert_eq!(d("(B)".trim_matches(['(', ')'])) + d("1") - d("B"), d("1"));
        assert_eq!((d("B") + d("1")) * (d("B") - d("1")), d("B*B - 1"));
    }

    #[test]
    fn division_cancels_what_divides() {
        assert_eq!(d("8*B*T").try_div(&d("4*T")), Some(d("2*B")));
        assert_eq!(d("8*B + 3").floor_div(&d("4")), d("2*B"));
        assert_eq!(d("T - 32").floor_div(&d("16")) + d("1"), d("floordiv(T, 16) - 1"));
        assert_eq!(d("T").ceil_div(&d("64")), d("floordiv(T + 63, 64)"));
        assert_eq!(d("T").try_div(&d("2")), None);
    }

    #[test]
    fn prints_and_parses_back() {
        for s in ["0", "-3", "B*T - 1", "floordiv(T + 63, 64)*B", "max(T, 31)", "-B + 2*T*T + 7", "min(T, max(B, 4)) + 1"] {
            assert_eq!(d(&d(s).to_string()), d(s), "{s}");
        }
        assert!("B +".parse::<Dim>().is_err());
        assert!("floordiv(B, 0)".parse::<Dim>().is_err());
    }

    #[test]
    fn positive_where_run_time_dims_are() {
        for s in ["1", "B*T", "T + 1", "floordiv(T, 2) + 1", "max(T - 4, 1)", "2*min(B, T)"] {
            assert!(d(s).is_positive(), "{s}");
        }
        for s in ["0", "T - 1", "floordiv(T, 2)", "B - T + 5", "max(T - 1, 0)", "B*floordiv(T, 2)"] {
            assert!(!d(s).is_positive(), "{s}");
        }
    }

    #[test]
    fn content_is_what_terms_share() {
        for (s, c) in
            [("4*B*T - 8*B", "4*B"), ("T - 1", "1"), ("6*floordiv(T, 2)", "6"), ("3*B*B*T - 3*B*B", "3*B*B"), ("0", "1")]
        {
            assert_eq!(d(s).content(), d(c), "{s}");
        }
    }

    #[test]
    fn evaluates_and_substitutes() {
        let env = DimEnv::from([("B".into(), 3), ("T".into(), 100)]);
        assert_eq!(d("B*floordiv(T + 63, 64) + max(T, 31)").eval(&env), Some(106));
        assert_eq!(d("X").eval(&env), None);
        assert_eq!(d("B*T").substitute(&|s| (s == "T").then(|| d("2*S"))), d("2*B*S"));
    }
}
