//! Replaces `attend` by its definition: all scores, a mask from the domain, softmax, the sum of values. Before gradients are taken.
//! Before: `%o, %lse = attend q, k, v {causal}`   After: `contract`, `select`, `reduce`, `map`, `contract`, in the accumulator type.
//!
//! What it needs grows with queries × keys. A key that is not finite and not seen is left out by `attend` and is not here.

use super::{Stats, rewrite};
use crate::{
    build::Builder,
    ir::{Func, Node, Value},
    op::{Attend, Domain, MapFn, Op, ReduceFn},
};
use base::{DType, Dim};

/// See the module.
pub fn expand_attend(func: &mut Func) -> Stats {
    rewrite(func, &mut |func, node| match &node.op {
        Op::Attend(attend) => Some(definition(func, node, attend)),
        _ => None,
    })
}

/// The extents of an attention, and its domain's operands.
struct Scene<'n> {
    b: Dim,
    t: Dim,
    s: Dim,
    g: Dim,
    operands: &'n [Value],
}

fn definition(func: &mut Func, node: &Node, attend: &Attend) -> Vec<Value> {
    let [q, k, v] = [0, 1, 2].map(|i| node.inputs[i]);
    let (tq, tv) = (func.ty(q).clone(), func.ty(v).clone());
    let (dtype, acc) = (tq.dtype, tq.dtype.accumulator());
    let [b, t, h, dk] = [0, 1, 2, 3].map(|i| tq.shape[i].clone());
    let [s, g, dv] = [1, 2, 3].map(|i| tv.shape[i].clone());
    let r = h.try_div(&g).unwrap_or_else(|| base::bug!("{h} heads in {g} groups"));
    let x = Scene { b: b.clone(), t: t.clone(), s: s.clone(), g: g.clone(), operands: &node.inputs[3..] };
    let mut f = Builder { func, origin: node.origin };

    let grouped = [b.clone(), t.clone(), g.clone(), r.clone(), dk];
    let qg = f.reshape(q, &grouped);
    let [qg, k, v] = [qg, k, v].map(|x| f.cast(x, acc));
    let scores = f.contract("btgrd,bsgd->btgrs", qg, k);
    let scale = f.full_like(scores, attend.scale.get());
    let scores = f.mul(scores, scale);
    let all = f.func.ty(scores).shape.clone();
    let mask = x.mask(&mut f, &attend.domain);
    let mask = f.broadcast(mask, &all, &[0, 1, 2, 4]);
    let never = f.full_like(scores, f64::NEG_INFINITY);
    let scores = f.map(MapFn::Select, &[mask, scores, never]);

    // A row that sees nothing: subtract 0 instead of -inf, divide by 1 instead of 0.
    let max = f.op(Op::Reduce(ReduceFn::Max, vec![4]), &[scores]);
    let max = f.op(Op::StopGradient, &[max]);
    let (zero, one) = (f.full_like(max, 0.0), f.full_like(max, 1.0));
    let seen = f.map(MapFn::IsFinite, &[max]);
    let max = f.map(MapFn::Select, &[seen, max, zero]);
    let rows = [0, 1, 2, 3];
    let shift = f.broadcast(max, &all, &rows);
    let shifted = f.map(MapFn::Sub, &[scores, shift]);
    let p = f.map(MapFn::Exp, &[shifted]);
    let sum = f.sum(p, &[4]);
    let sum = f.map(MapFn::Select, &[seen, sum, one]);
    let o = f.contract("btgrs,bsgd->btgrd", p, v);
    let wide = f.func.ty(o).shape.clone();
    let divisor = f.broadcast(sum, &wide, &rows);
    let o = f.map(MapFn::Div, &[o, divisor]);
    let o = f.reshape(o, &[b.clone(), t.clone(), h.clone(), dv]);
    let log = f.map(MapFn::Log, &[sum]);
    let lse = f.add(max, log);
    vec![f.cast(o, dtype), f.reshape(lse, &[b, t, h])]
}

impl Scene<'_> {
    /// Whether query t of key head g sees key s: bool `[b, t, g, s]`.
    fn mask(&self, f: &mut Builder, domain: &Domain) -> Value {
        match domain {
            Domain::Full => {
                let yes = f.constant(1.0, DType::Bool);
                f.broadcast(yes, &self.pairs(), &[])
            }
            Domain::Causal => {
                let (key, at) = (self.keys(f), self.positions(f));
                f.map(MapFn::Le, &[key, at])
            }
            Domain::Window(w) => {
                let (key, at) = (self.keys(f), self.positions(f));
                let width = f.full_like(at, *w as f64);
                let first = f.map(MapFn::Sub, &[at, width]);
                f.map(MapFn::Lt, &[first, key])
            }
            Domain::Prefix(n) => {
                let key = self.keys(f);
                let n = f.full_like(key, *n as f64);
                f.map(MapFn::Lt, &[key, n])
            }
            Domain::EndsBefore { length, stride } => {
                let (key, row) = (self.keys(f), self.rows(f));
                let (stride, length) = (f.full_like(key, *stride as f64), f.full_like(key, (length - 1) as f64));
                let start = f.mul(key, stride);
                let end = f.add(start, length);
                f.map(MapFn::Le, &[end, row])
            }
            Domain::EndsAt(ends) => {
                let end = f.broadcast(self.operands[*ends], &self.pairs(), &[0, 3]);
                let row = self.rows(f);
                f.map(MapFn::Le, &[end, row])
            }
            Domain::Segments(of_query, of_key) => {
                let a = f.broadcast(self.operands[*of_query], &self.pairs(), &[0, 1]);
                let b = f.broadcast(self.operands[*of_key], &self.pairs(), &[0, 3]);
                f.map(MapFn::Eq, &[a, b])
            }
            Domain::Blocks { idx, size } => {
                let size = Dim::from(*size);
                let chosen = self.chosen(f, *idx, self.s.ceil_div(&size));
                let key = self.keys(f);
                let by = f.full_like(key, size.known().expect("a constant") as f64);
                let block = f.map(MapFn::FloorDiv, &[key, by]);
                let found = f.op(Op::Gather { batch: 3 }, &[chosen, block]);
                positive(f, found)
            }
            Domain::Tokens(idx) => {
                let found = self.chosen(f, *idx, self.s.clone());
                positive(f, found)
            }
            Domain::Groups { idx, of } => {
                // Groups have no bound: each of the list is compared.
                let n = f.func.ty(self.operands[*idx]).shape[3].clone();
                let [b, t, g, s] = [&self.b, &self.t, &self.g, &self.s].map(Dim::clone);
                let all = [b, t, g, n, s];
                let listed = f.broadcast(self.operands[*idx], &all, &[0, 1, 2, 3]);
                let own = f.broadcast(self.operands[*of], &all, &[0, 4]);
                let same = f.map(MapFn::Eq, &[listed, own]);
                let same = f.cast(same, DType::I32);
                let found = f.sum(same, &[3]);
                positive(f, found)
            }
            Domain::And(a, b) => {
                let both = [self.mask(f, a), self.mask(f, b)];
                f.map(MapFn::And, &both)
            }
            Domain::Or(a, b) => {
                let either = [self.mask(f, a), self.mask(f, b)];
                f.map(MapFn::Or, &either)
            }
        }
    }
    fn pairs(&self) -> [Dim; 4] {
        [&self.b, &self.t, &self.g, &self.s].map(Dim::clone)
    }
    fn keys(&self, f: &mut Builder) -> Value {
        let key = f.op(Op::Iota(self.s.clone()), &[]);
        f.broadcast(key, &self.pairs(), &[3])
    }
    fn rows(&self, f: &mut Builder) -> Value {
        let row = f.op(Op::Iota(self.t.clone()), &[]);
        f.broadcast(row, &self.pairs(), &[1])
    }
    /// The place of each query among the keys.
    fn positions(&self, f: &mut Builder) -> Value {
        let row = self.rows(f);
        let ahead = f.op(Op::Extent(self.s.clone() - self.t.clone(), DType::I32), &[]);
        let ahead = f.broadcast(ahead, &self.pairs(), &[]);
        f.add(row, ahead)
    }
    /// How often each of `0..n` is in a list: i32 `[b, t, g, n]`.
    fn chosen(&self, f: &mut Builder, idx: usize, n: Dim) -> Value {
        let list = self.operands[idx];
        let ones = f.full_like(list, 1.0);
        f.op(Op::ScatterAdd { batch: 3, n }, &[list, ones])
    }
}

fn positive(f: &mut Builder, x: Value) -> Value {
    let zero = f.full_like(x, 0.0);
    f.map(MapFn::Lt, &[zero, x])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        interp::{self, Options, Tensor},
        ir::Role,
        op::Scalar,
        verify::verify_func,
    };
    use base::{DimEnv, TensorType};

    #[test]
    fn the_definition_is_what_attend_computes() {
        let and = |a, b| Domain::And(Box::new(a), Box::new(b));
        let or = |a, b| Domain::Or(Box::new(a), Box::new(b));
        let (b, t, s, h, g) = (2, 5, 7, 4, 2);
        let (list, by_key, by_row) = ([b, t, g, 3], [b, s], [b, t]);
        for (domain, operands) in [
            (Domain::Full, vec![]),
            (and(Domain::Causal, Domain::Window(2)), vec![]),
            (and(Domain::Causal, or(Domain::Window(2), Domain::Prefix(1))), vec![]),
            (Domain::EndsBefore { length: 3, stride: 2 }, vec![]),
            (Domain::EndsAt(0), vec![&by_key[..]]),
            (Domain::Segments(0, 1), vec![&by_row, &by_key]),
            (and(Domain::Blocks { idx: 0, size: 2 }, Domain::Causal), vec![&list]),
            (Domain::Groups { idx: 0, of: 1 }, vec![&list, &by_key]),
            (or(Domain::Tokens(0), Domain::Window(1)), vec![&list]),
        ] {
            let mut f = Func::new("f");
            let tensor = |dtype, shape: &[i64]| TensorType::new(dtype, shape.iter().copied().map(Dim::from).collect::<Vec<_>>());
            let floats = [[b, t, h, 3], [b, s, g, 3], [b, s, g, 2]];
            let types = floats.iter().map(|x| tensor(DType::F32, x)).chain(operands.iter().map(|x| tensor(DType::I32, x)));
            let types: Vec<TensorType> = types.collect();
            let args: Vec<Value> =
                types.iter().enumerate().map(|(i, t)| f.arg(&format!("a{i}"), Role::Input, t.clone())).collect();
            let attend = Attend { domain: domain.clone(), scale: Scalar::new(0.6) };
            for (i, v) in Builder::new(&mut f).node(Op::Attend(attend), &args).into_iter().enumerate() {
                f.output(&format!("o{i}"), Role::Result, v);
            }
            let mut seed = 3u64;
            let data = types.iter().map(|t| {
                let shape: Vec<i64> = t.shape.iter().map(|d| d.known().expect("a constant")).collect();
                let value = |_| {
                    seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    let n = (seed >> 40) as f64;
                    if t.dtype.is_float() { f64::from((n / 2f64.powi(23) - 1.0) as f32) } else { n % 6.0 - 1.0 }
                };
                Tensor::new(t.dtype, &shape, (0..shape.iter().product::<i64>()).map(value).collect())
            });
            let data: Vec<Tensor> = data.collect();
            let eval = |f: &Func| interp::eval(f, &data, &DimEnv::new(), Options::EXACT).expect("it evaluates");
            let want = eval(&f);
            assert_eq!(expand_attend(&mut f).changes, 1);
            assert_eq!(verify_func(&f), [], "{domain}");
            for (got, want) in eval(&f).iter().zip(&want) {
                for (x, y) in got.data.iter().zip(&want.data) {
                    assert!((x - y).abs() <= 1e-12, "{domain}: {x} for {y}");
                }
            }
        }
    }
}
