//! The text of an attention domain: `causal & window(512) | blocks(0, 64)`; `&` binds tighter, both group to the left. The numbers
//! that name operands come first.

use crate::op::Domain;
use std::{fmt, str::FromStr};

/// How deep parentheses may nest.
const MAX_DEPTH: u32 = 50;
/// The operands an op may have; keeps counts far from overflow.
const MAX_OPERAND: i64 = 1000;

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Domain::Full => f.write_str("full"),
            Domain::Causal => f.write_str("causal"),
            Domain::Window(w) => write!(f, "window({w})"),
            Domain::Prefix(n) => write!(f, "prefix({n})"),
            Domain::EndsBefore { length, stride } => write!(f, "ends_before({length}, {stride})"),
            Domain::EndsAt(e) => write!(f, "ends_at({e})"),
            Domain::Segments(a, b) => write!(f, "segments({a}, {b})"),
            Domain::Blocks { idx, size } => write!(f, "blocks({idx}, {size})"),
            Domain::Groups { idx, of } => write!(f, "groups({idx}, {of})"),
            Domain::Tokens(idx) => write!(f, "tokens({idx})"),
            Domain::And(a, b) => {
                let part = |x: &Domain, right: bool| {
                    let looser = matches!(x, Domain::Or(..)) || right && matches!(x, Domain::And(..));
                    if looser { format!("({x})") } else { x.to_string() }
                };
                write!(f, "{} & {}", part(a, false), part(b, true))
            }
            Domain::Or(a, b) if matches!(**b, Domain::Or(..)) => write!(f, "{a} | ({b})"),
            Domain::Or(a, b) => write!(f, "{a} | {b}"),
        }
    }
}

/// Parses what `Display` prints.
impl FromStr for Domain {
    type Err = String;
    fn from_str(s: &str) -> Result<Domain, String> {
        let mut p = Parser { rest: s.trim_start(), depth: 0 };
        let domain = p.or()?;
        if p.rest.is_empty() { Ok(domain) } else { Err(format!("unexpected '{}' in the domain '{s}'", p.rest)) }
    }
}

struct Parser<'a> {
    rest: &'a str,
    depth: u32,
}

impl Parser<'_> {
    fn eat(&mut self, c: char) -> bool {
        let rest = self.rest.strip_prefix(c);
        self.rest = rest.unwrap_or(self.rest).trim_start();
        rest.is_some()
    }
    fn or(&mut self) -> Result<Domain, String> {
        let mut d = self.and()?;
        while self.eat('|') {
            d = Domain::Or(Box::new(d), Box::new(self.and()?));
        }
        Ok(d)
    }
    fn and(&mut self) -> Result<Domain, String> {
        let mut d = self.one()?;
        while self.eat('&') {
            d = Domain::And(Box::new(d), Box::new(self.one()?));
        }
        Ok(d)
    }
    fn one(&mut self) -> Result<Domain, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err("a domain nested too deep".into());
        }
        let result = self.one_inner();
        self.depth -= 1;
        result
    }
    fn one_inner(&mut self) -> Result<Domain, String> {
        if self.eat('(') {
            let d = self.or()?;
            return if self.eat(')') { Ok(d) } else { Err(format!("expected ')' before '{}'", self.rest)) };
        }
        let len = self.rest.find(|c: char| !(c.is_ascii_alphabetic() || c == '_')).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(len);
        self.rest = rest.trim_start();
        let mut numbers = Vec::new();
        if self.eat('(') {
            while !self.eat(')') {
                if !numbers.is_empty() && !self.eat(',') {
                    return Err(format!("expected ',' or ')' before '{}'", self.rest));
                }
                let len = self.rest.find(|c: char| !(c.is_ascii_digit() || c == '-')).unwrap_or(self.rest.len());
                let (digits, rest) = self.rest.split_at(len);
                numbers.push(digits.parse::<i64>().map_err(|_| format!("expected a number before '{}'", self.rest))?);
                self.rest = rest.trim_start();
            }
        }
        let operand = |n: i64| match usize::try_from(n) {
            Ok(i) if n < MAX_OPERAND => Ok(i),
            _ => Err(format!("no operand {n}")),
        };
        match (name, &numbers[..]) {
            ("full", []) => Ok(Domain::Full),
            ("causal", []) => Ok(Domain::Causal),
            ("window", [w]) => Ok(Domain::Window(*w)),
            ("prefix", [n]) => Ok(Domain::Prefix(*n)),
            ("ends_before", [length, stride]) => Ok(Domain::EndsBefore { length: *length, stride: *stride }),
            ("ends_at", [e]) => Ok(Domain::EndsAt(operand(*e)?)),
            ("segments", [a, b]) => Ok(Domain::Segments(operand(*a)?, operand(*b)?)),
            ("blocks", [idx, size]) => Ok(Domain::Blocks { idx: operand(*idx)?, size: *size }),
            ("groups", [idx, of]) => Ok(Domain::Groups { idx: operand(*idx)?, of: operand(*of)? }),
            ("tokens", [idx]) => Ok(Domain::Tokens(operand(*idx)?)),
            _ => Err(format!("no domain '{name}' of {} numbers", numbers.len())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_print_and_parse_back() {
        for s in [
            "full",
            "causal & window(512)",
            "causal & (window(4) | ends_before(32, 16)) & ends_at(0)",
            "segments(0, 1) & causal | blocks(2, 64) | tokens(3)",
            "full | (causal | full)",
            "causal & (window(4) | prefix(2))",
            "full & (causal & groups(0, 1))",
        ] {
            let d: Domain = s.parse().expect(s);
            assert_eq!(d.to_string(), s);
        }
        assert_eq!("(causal)&full".parse(), Ok(Domain::And(Box::new(Domain::Causal), Box::new(Domain::Full))));
    }

    #[test]
    fn wrong_domains_are_errors() {
        let deep = "(".repeat(100_000);
        for s in [
            "",
            "causal(",
            "window",
            "window(a)",
            "causal &",
            "causal full",
            "tokens(-1)",
            "tokens(99999999999999999999)",
            "(full",
            &deep,
        ] {
            assert!(s.parse::<Domain>().is_err(), "{s}");
        }
    }
}
