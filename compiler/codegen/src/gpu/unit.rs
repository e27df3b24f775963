//! Loops whose turns touch neighbouring elements, so that a thread may take several turns with one access of up to 16 bytes.

use super::{
    access::{expr_uses, exprs, visit},
    rows,
};
use graph::op::MapFn;
use std::collections::BTreeMap;
use tile::{Expr, Kernel, LoopKind, Mem, Stmt, VarId};

/// The widest access of a thread. # Units: bytes.
const ACCESS_BYTES: usize = 16;
/// Turns that a thread takes at once, at most.
const MAX_TURNS: usize = 8;
/// Turns at once that stand one after the other, at most.
const MAX_TIMES: i64 = 4;
/// The same of turns that are not neighbours.
const MAX_ALONE: i64 = 16;
/// Parts of expressions that the turns of a thread may have together: what is emitted grows with them.
const MAX_PARTS: usize = 2048;

/// A loop body that a thread may run for several turns at once.
#[derive(Clone, Debug)]
pub(crate) struct Units {
    /// How many turns.
    pub turns: usize,
    /// The memories of which turn `i` touches element `i + offset`.
    pub touched: Vec<(Mem, Expr)>,
    /// The same offsets without what loops inside add to them, which is a multiple of what any thread takes at once.
    pub firsts: Vec<(Mem, Expr)>,
    /// Whether it reduces into something.
    pub reduces: bool,
    /// Whether a thread takes twice as many, from two places: so few are neighbours as what is stored is wider than what is loaded.
    pub twice: bool,
    /// Parts of expressions of one turn.
    parts: usize,
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

/// How many turns a lane takes of a loop whose turns are no neighbours, if that is so few that they stand one after the other, as [`Units::times`].
pub(crate) fn times_alone(turns: i64, lanes: i64, body: &[Stmt]) -> Option<i64> {
    let mut parts = 0;
    let simple = body.iter().all(|s| {
        exprs(s, &mut |e| visit(e, &mut |_| parts += 1));
        matches!(s, Stmt::Let(..) | Stmt::Accumulate(..) | Stmt::Store { .. })
    });
    let times = turns / lanes;
    let short = parts * times <= MAX_PARTS as i64 / 4;
    (simple && short && turns % lanes == 0 && (2..=MAX_ALONE).contains(&times)).then_some(times)
}

/// What is known of a body while it is looked through.
struct Look {
    offsets: Offsets,
    /// Variables that are the same in all turns: of loops inside, and what is computed of these.
    inside: BTreeMap<VarId, Option<Expr>>,
    touched: Vec<(Mem, Expr)>,
    firsts: Vec<(Mem, Expr)>,
    /// What is stored to of these.
    stored: Vec<Mem>,
    parts: usize,
    reduces: bool,
}

impl Look {
    /// Whether all statements are such as several turns may run at once: simple ones, and serial loops of them that are the same in each.
    fn list(&mut self, body: &[Stmt]) -> bool {
        body.iter().all(|s| self.stmt(s))
    }
    fn stmt(&mut self, s: &Stmt) -> bool {
        let mut accesses = Vec::new();
        if let Stmt::Store { mem, index, .. } = s {
            accesses.push((*mem, index));
            self.stored.push(*mem);
        }
        let mut parts = 0;
        exprs(s, &mut |e| {
            visit(e, &mut |e| {
                parts += 1;
                if let Expr::Load(mem, index) = e {
                    accesses.push((*mem, index));
                }
            });
        });
        self.parts += parts;
        for (mem, index) in accesses {
            if matches!(mem, Mem::Scratch(_)) {
                return false;
            }
            let Some(offset) = self.offsets.of(index) else { continue };
            if let Some(first) = self.first(&offset)
                && !self.touched.contains(&(mem, offset.clone()))
            {
                self.touched.push((mem, offset));
                self.firsts.push((mem, first));
            }
        }
        let known = |e: &Expr| !expr_uses(e, &|v| self.offsets.0.contains_key(&v));
        match s {
            Stmt::Let(v, e) if known(e) && is_arithmetic(e) => {
                self.inside.insert(*v, Some(e.clone()));
            }
            Stmt::Let(v, e) => {
                let offset = self.offsets.of(e);
                self.offsets.0.insert(*v, offset);
            }
            Stmt::Var(v, _) => {
                self.offsets.0.insert(*v, None);
            }
            Stmt::Accumulate(..) => self.reduces = true,
            Stmt::Assign(..) | Stmt::Store { .. } => {}
            Stmt::For { var, lo, hi, kind: LoopKind::Serial, body } if known(lo) && known(hi) => {
                self.inside.insert(*var, None);
                return self.list(body);
            }
            Stmt::For { .. } | Stmt::While { .. } | Stmt::If { .. } | Stmt::Dot(_) | Stmt::Copy(_) => return false,
        }
        true
    }
    /// An offset without what loops inside add, if that is a multiple of what a thread takes at once.
    fn first(&self, e: &Expr) -> Option<Expr> {
        if !expr_uses(e, &|v| self.inside.contains_key(&v)) {
            return Some(e.clone());
        }
        match e {
            Expr::Var(v) => self.first(self.inside.get(v)?.as_ref()?),
            Expr::Map(f @ (MapFn::Add | MapFn::Sub), args) => Some(Expr::map2(*f, self.first(&args[0])?, self.first(&args[1])?)),
            Expr::Map(MapFn::Mul, args) => {
                let whole = |e: &Expr| e.known().is_some_and(|n| n % MAX_TURNS as i64 == 0);
                args.iter().any(whole).then(|| Expr::int(0))
            }
            Expr::Const(..) | Expr::Dim(_) | Expr::Load(..) | Expr::Map(..) | Expr::Cast(..) | Expr::Order(_) => None,
        }
    }
}

/// Whether an expression is made of numbers and variables alone.
pub(crate) fn is_arithmetic(e: &Expr) -> bool {
    match e {
        Expr::Const(..) | Expr::Dim(_) | Expr::Var(_) => true,
        Expr::Map(_, args) => args.iter().all(is_arithmetic),
        Expr::Load(..) | Expr::Cast(..) | Expr::Order(_) => false,
    }
}

impl Units {
    /// If the body touches buffers, not scratch, and has no loops but serial ones that are the same in all turns.
    pub(crate) fn new(k: &Kernel, var: VarId, body: &[Stmt]) -> Option<Units> {
        let offsets = Offsets(BTreeMap::from([(var, Some(Expr::int(0)))]));
        let (touched, firsts, inside) = (Vec::new(), Vec::new(), BTreeMap::new());
        let mut look = Look { offsets, inside, touched, firsts, stored: Vec::new(), parts: 0, reduces: false };
        if !look.list(body) {
            return None;
        }
        let Look { offsets, touched, firsts, stored, parts, reduces, .. } = look;
        let bytes = |m: &Mem| k.mem_dtype(*m).bytes();
        let narrowest = touched.iter().map(|(m, _)| bytes(m)).min()?;
        // Two stores of half a sector each are two writes for the second level.
        let widest = touched.iter().map(|(m, _)| m).filter(|m| stored.contains(m)).map(bytes).fold(narrowest, usize::max);
        let (narrowest, twice) = (widest, widest > narrowest);
        // As many as an access has, or fewer where the body is long.
        let most = (ACCESS_BYTES / narrowest).min(MAX_TURNS).min(MAX_PARTS / parts.max(1));
        let turns = if most > 1 { 1 << most.ilog2() } else { most };
        (turns > 1).then_some(Units { turns, touched, firsts, reduces, twice, parts, offsets })
    }
    /// How many times a thread takes turns at once, if that is so few that they stand one after the other, without a loop: then the loads of all are under way
    /// together. `turns` are shared by so many lanes.
    pub(crate) fn times(&self, turns: i64, lanes: i64) -> Option<i64> {
        let each = lanes * self.turns as i64;
        let times = turns / each;
        let short = self.parts as i64 * self.turns as i64 * times <= MAX_PARTS as i64;
        (turns % each == 0 && (2..=MAX_TIMES).contains(&times) && short).then_some(times)
    }
    /// The same where all loops over a row are such, once too; and whether there may be nothing left for a thread at the last time.
    pub(crate) fn times_of_row(&self, turns: i64, threads: i64) -> Option<(i64, bool)> {
        let each = threads * self.turns as i64;
        let times = (turns + each - 1) / each;
        let elems = times * self.turns as i64;
        let short = self.parts as i64 * elems <= 2 * MAX_PARTS as i64;
        let whole = turns % self.turns as i64 == 0 && turns >= each;
        (whole && elems <= rows::most(threads) && short).then_some((times, turns % each != 0))
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
