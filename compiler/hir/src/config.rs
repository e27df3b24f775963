//! Config values: literals and arithmetic on earlier entries, replaced by `--set` and `config.json`.

use base::Dim;
use std::{collections::BTreeMap, fmt};
use syntax::ast::{BinaryOp as B, Expr, ExprKind as K, UnaryOp};

/// A config value.
#[derive(Clone, Debug, PartialEq)]
pub enum Constant {
    /// An integer.
    Int(i64),
    /// A float.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A string.
    Str(String),
}

impl fmt::Display for Constant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Constant::Int(n) => write!(f, "{n}"),
            Constant::Float(x) => write!(f, "{x:?}"),
            Constant::Bool(b) => write!(f, "{b}"),
            Constant::Str(s) => write!(f, "{s:?}"),
        }
    }
}

/// What replaces config values.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// From `--set`: unknown names are mistakes. Values as written.
    pub set: Vec<(String, String)>,
    /// From a JSON file: unknown names are ignored.
    pub config: BTreeMap<String, Constant>,
}

/// Evaluates a config entry.
///
/// # Errors
/// Why it has no value.
pub(crate) fn evaluate(e: &Expr, earlier: &[(String, Constant)]) -> Result<Constant, String> {
    use Constant as C;
    const WHAT: &str = "a config value is a literal or arithmetic on earlier entries";
    match &e.kind {
        K::Int(n) => Ok(C::Int(*n)),
        K::Float(x) => Ok(C::Float(*x)),
        K::Bool(b) => Ok(C::Bool(*b)),
        K::Str(s) => Ok(C::Str(s.clone())),
        K::Name(n) => {
            let value = earlier.iter().find(|(m, _)| m == n).map(|(_, c)| c.clone());
            value.ok_or_else(|| format!("'{n}' is not an earlier entry"))
        }
        K::Unary(op, a) => match (op, evaluate(a, earlier)?) {
            (UnaryOp::Neg, C::Int(n)) => Ok(C::Int(n.saturating_neg())),
            (UnaryOp::Neg, C::Float(x)) => Ok(C::Float(-x)),
            (UnaryOp::Not, C::Bool(b)) => Ok(C::Bool(!b)),
            (UnaryOp::Neg | UnaryOp::Not, c) => Err(format!("{c} is not what the operator takes")),
        },
        K::Binary(op, a, b) => {
            let (x, y) = (evaluate(a, earlier)?, evaluate(b, earlier)?);
            binary(*op, &x, &y).ok_or_else(|| format!("{x} and {y} are not what the operator takes"))
        }
        K::Call { func, args, .. } => {
            let values: Vec<C> = args.iter().map(|a| evaluate(&a.value, earlier)).collect::<Result<_, _>>()?;
            match (func.node.as_str(), &values[..]) {
                ("min", [C::Int(a), C::Int(b)]) => Ok(C::Int(*a.min(b))),
                ("max", [C::Int(a), C::Int(b)]) => Ok(C::Int(*a.max(b))),
                ("ceil_div", [C::Int(a), C::Int(b)]) if *b > 0 => {
                    Ok(C::Int(Dim::from(*a).ceil_div(&Dim::from(*b)).known().unwrap_or(0)))
                }
                ("sqrt", [C::Float(x)]) => Ok(C::Float(x.sqrt())),
                ("sqrt", [C::Int(n)]) => Ok(C::Float((*n as f64).sqrt())),
                _ => Err(format!("{WHAT}; there are min, max, ceil_div and sqrt")),
            }
        }
        K::Transpose(_) | K::Index(..) | K::Tuple(_) | K::List(_) | K::If { .. } | K::Param(_) | K::Error => Err(WHAT.into()),
    }
}

fn binary(op: B, x: &Constant, y: &Constant) -> Option<Constant> {
    use Constant as C;
    let ints = match (x, y) {
        (C::Int(a), C::Int(b)) => Some((*a, *b)),
        _ => None,
    };
    let number = |c: &C| match c {
        C::Int(n) => Some(*n as f64),
        C::Float(x) => Some(*x),
        C::Bool(_) | C::Str(_) => None,
    };
    let floats = number(x).zip(number(y));
    match (op, ints, floats) {
        (B::Add, Some((a, b)), _) => a.checked_add(b).map(C::Int),
        (B::Sub, Some((a, b)), _) => a.checked_sub(b).map(C::Int),
        (B::Mul, Some((a, b)), _) => a.checked_mul(b).map(C::Int),
        (B::Div, Some((a, b)), _) if b > 0 => Some(C::Int(a.div_euclid(b))),
        (B::Rem, Some((a, b)), _) if b > 0 => Some(C::Int(a.rem_euclid(b))),
        (B::Div | B::Rem, Some(_), _) => None,
        (B::Add, None, Some((a, b))) => Some(C::Float(a + b)),
        (B::Sub, None, Some((a, b))) => Some(C::Float(a - b)),
        (B::Mul, None, Some((a, b))) => Some(C::Float(a * b)),
        (B::Div, None, Some((a, b))) => Some(C::Float(a / b)),
        (B::Eq, _, _) => Some(C::Bool(x == y)),
        (B::Ne, _, _) => Some(C::Bool(x != y)),
        (B::Lt, _, Some((a, b))) => Some(C::Bool(a < b)),
        (B::Le, _, Some((a, b))) => Some(C::Bool(a <= b)),
        (B::Gt, _, Some((a, b))) => Some(C::Bool(a > b)),
        (B::Ge, _, Some((a, b))) => Some(C::Bool(a >= b)),
        (B::And, _, _) => matches!((x, y), (C::Bool(_), C::Bool(_))).then_some(C::Bool(x == y && *x == C::Bool(true))),
        (B::Or, _, _) => matches!((x, y), (C::Bool(_), C::Bool(_))).then(|| C::Bool(*x == C::Bool(true) || *y == C::Bool(true))),
        (B::Add | B::Sub | B::Mul | B::Div | B::Rem | B::Lt | B::Le | B::Gt | B::Ge, _, _) => None,
        (B::BitOr | B::BitAnd | B::MatMul, _, _) => None,
    }
}

/// A value given on the command line, in the place of `default`.
pub(crate) fn parse(text: &str, default: &Constant) -> Constant {
    if matches!(default, Constant::Str(_)) {
        return Constant::Str(text.into());
    }
    match (text, text.replace('_', "").parse::<i64>(), text.parse::<f64>()) {
        ("true", _, _) => Constant::Bool(true),
        ("false", _, _) => Constant::Bool(false),
        (_, Ok(n), _) => Constant::Int(n),
        (_, _, Ok(x)) => Constant::Float(x),
        _ => Constant::Str(text.into()),
    }
}
