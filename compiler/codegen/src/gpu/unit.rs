//! Loops whose turns touch neighbouring elements, so that a thread may take several turns with one access of up to 16 bytes.

use super::access::{expr_uses, exprs, visit};
use graph::op::MapFn;
use std::collections::BTreeMap;
use tile::{Expr, Kernel, Mem, Stmt, VarId};

/// The widest access of a thread. # Units: bytes.
const ACCESS_BYTES: usize = 16;
/// Turns that a thread takes at once, at most.
const MAX_TURNS: usize = 8;
/// Parts of expressions that the turns of a thread may have together: what is emitted grows with them.
const MAX_PARTS: usize = 2048;

/// A loop body that a thread may run for several turns at once.
#[derive(Clone, Debug)]
pub(crate) struct Units {
    /// How many turns.
    pub turns: usize,
    /// The memories of which turn `i` touches element `i + offset`.
    pub touched: Vec<(Mem, Expr)>,
    /// Whether it reduces into something.
    pub reduces: bool,
    offsets: Offsets,
}

/// For each variable of the body, what it is more than the loop's, if that is the same in all turns.
#[derive(Clone, Debug)]
struct Offsets(BTreeMap<VarId, Option<Expr>>);

impl Offsets {
    /// What an index is more than the loop's variable.
    fn of(&self, e: &Expr) -> Option<Expr> {
        let uniform = |e: &Expr| !expr_uses(e, &|v| self.0.contains_key(&v));
        match e {
            Expr::Var(v) => self.0.get(v)?.clone(),
            Expr::Map(f @ (MapFn::Add | MapFn::Sub), args) if uniform(&args[1]) => {
                Some(Expr::map2(*f, self.of(&args[0])?, args[1].clone()))
            }
            Expr::Map(MapFn::Add, args) if uniform(&args[0]) => Some(args[0].clone() + self.of(&args[1])?),
            Expr::Const(..) | Expr::Dim(_) | Expr::Load(..) | Expr::Map(..) | Expr::Cast(..) | Expr::Order(_) => None,
        }
    }
}

impl Units {
    /// If the body is a list of simple statements that touch buffers, not scratch.
    pub(crate) fn new(k: &Kernel, var: VarId, body: &[Stmt]) -> Option<Units> {
        let mut offsets = Offsets(BTreeMap::from([(var, Some(Expr::int(0)))]));
        let (mut touched, mut parts, mut reduces): (Vec<(Mem, Expr)>, usize, bool) = (Vec::new(), 0, false);
        for s in body {
            let mut accesses = Vec::new();
            match s {
                Stmt::Let(..) => {}
                Stmt::Accumulate(..) => reduces = true,
                Stmt::Store { mem, index, .. } => accesses.push((*mem, index)),
                Stmt::Var(..)
                | Stmt::Assign(..)
                | Stmt::For { .. }
                | Stmt::While { .. }
                | Stmt::If { .. }
                | Stmt::Dot(_)
                | Stmt::Copy(_) => {
                    return None;
                }
            }
            exprs(s, &mut |e| {
                visit(e, &mut |e| {
                    parts += 1;
                    if let Expr::Load(mem, index) = e {
                        accesses.push((*mem, index));
                    }
                });
            });
            for (mem, index) in accesses {
                if matches!(mem, Mem::Scratch(_)) {
                    return None;
                }
                let found = offsets.of(index).map(|offset| (mem, offset));
                touched.extend(found.filter(|f| !touched.contains(f)));
            }
            if let Stmt::Let(v, e) = s {
                let offset = offsets.of(e);
                offsets.0.insert(*v, offset);
            }
        }
        let narrowest = touched.iter().map(|(m, _)| k.mem_dtype(*m).bytes()).min()?;
        // As many as an access has, or fewer where the body is long.
        let most = (ACCESS_BYTES / narrowest).min(MAX_TURNS).min(MAX_PARTS / parts.max(1));
        let turns = if most > 1 { 1 << most.ilog2() } else { most };
        (turns > 1).then_some(Units { turns, touched, reduces, offsets })
    }
    /// The alignment of the elements that the turns of a thread touch. # Units: bytes.
    pub(crate) fn alignment(&self, bytes: usize) -> usize {
        (self.turns * bytes).min(ACCESS_BYTES)
    }
    /// Whether an access is of neighbouring elements.
    pub(crate) fn touches(&self, mem: Mem, index: &Expr) -> bool {
        self.offsets.of(index).is_some_and(|offset| self.touched.contains(&(mem, offset)))
    }
}
