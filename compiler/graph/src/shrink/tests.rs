//! What is left shows the mistake and nothing else.

use super::*;
use crate::{
    random::{Options, program},
    text,
};

/// Whether some node of the module, in loops too, is so.
fn any(func: &Func, is: &dyn Fn(&Func, &Node) -> bool) -> bool {
    func.nodes.values().any(|n| is(func, n) || n.op.body().is_some_and(|b| any(b, is)))
}

fn shrunk(is: &dyn Fn(&Func, &Node) -> bool, from: u64) -> Module {
    let shows = |m: &Module| m.funcs.iter().any(|f| any(f, is));
    let p = (from..).map(|seed| program(seed, Options::default())).find(|p| shows(&p.module)).expect("there is one");
    let small = shrink(&p.module, &mut |m| shows(m));
    assert_eq!(verify(&small), []);
    assert!(shows(&small));
    assert_eq!(small, shrink(&p.module, &mut |m| shows(m)), "the same again");
    small
}

fn num_nodes(f: &Func) -> usize {
    f.nodes.values().filter(|n| !matches!(n.op, Op::Arg(_))).count()
}

#[test]
fn an_op_is_left_alone() {
    let names = ["contract", "cumsum", "scatter_add", "route", "attend", "attend_grad", "concat", "grouped_outer", "topk"];
    for from in [0, 200, 400] {
        for name in names {
            let small = shrunk(&|_, n| n.op.name() == name, from);
            assert_eq!((small.funcs.len(), num_nodes(&small.funcs[0])), (1, 1), "{name}\n{}", text::print(&small));
            // Everything that can be 1 is; what an attention's heads are is fixed by them alone.
            let extents = small.funcs[0].nodes.values().flat_map(|n| &n.types).flat_map(|t| &t.shape);
            assert!(extents.clone().all(|d| d.known().is_some_and(|n| n <= 4)), "{name}\n{}", text::print(&small));
        }
    }
}

#[test]
fn loops_are_opened_where_they_may_be() {
    let small = shrunk(&|_, n| n.op == Op::Map(MapFn::Tanh), 0);
    assert!(num_nodes(&small.funcs[0]) <= 2, "{}", text::print(&small));
    let inside = |_: &Func, n: &Node| n.op.body().is_some_and(|b| any(b, &|_, n| matches!(n.op, Op::Reduce(..))));
    let small = shrunk(&inside, 0);
    assert!(num_nodes(&small.funcs[0]) == 1, "{}", text::print(&small));
}

#[test]
fn two_ops_stay_connected() {
    let sum_of_exp =
        |f: &Func, n: &Node| matches!(n.op, Op::Reduce(..)) && n.inputs.iter().any(|v| f.def(*v).op == Op::Map(MapFn::Exp));
    let small = shrunk(&sum_of_exp, 0);
    assert_eq!(num_nodes(&small.funcs[0]), 2, "{}", text::print(&small));
}

#[test]
fn dead_nodes_that_matter_stay() {
    let p = program(5, Options::default());
    let mut module = p.module.clone();
    let x = module.funcs[0].arg_value(0);
    Builder::new(&mut module.funcs[0]).op(Op::StopGradient, &[x]);
    let dead = |m: &Module| m.funcs[0].nodes.values().last().is_some_and(|n| n.op == Op::StopGradient);
    assert!(!dead(&tidy(&module)));
    let small = shrink(&module, &mut |m| dead(m));
    assert_eq!(num_nodes(&small.funcs[0]), 1, "{}", text::print(&small));
}

#[test]
fn what_does_not_fail_stays() {
    let p = program(1, Options::default());
    assert_eq!(shrink(&p.module, &mut |_| false), p.module);
}
