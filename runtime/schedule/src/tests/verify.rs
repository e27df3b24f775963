//! Every rule of the proof on a plan that breaks it, and on all that are right.

use super::{planned, size};
use crate::{Action, Limits, Plan, Policy, Slots, Violation, assign_slots, slots::Pool, text, verify};

/// The plan on which mutations are tried.
fn plan() -> Plan {
    planned(Policy::DualPipe, 4, 10)
}

fn proof(plan: &Plan) -> Vec<Violation> {
    verify(plan, &assign_slots(plan), &Limits::default())
}

/// The position of a cell in a rank's list.
fn at(plan: &Plan, rank: usize, cell: &str) -> usize {
    let found = plan.actions[rank].iter().position(|a| text::cell(*a, plan.num_stages()) == cell);
    found.unwrap_or_else(|| panic!("no {cell} on rank {rank}"))
}

/// The mutated plan breaks the rule, at the rank and action and for the reason that the line names; every violation is where it says.
fn rejects(rule: u8, line: &str, mutate: impl FnOnce(&mut Plan)) {
    let mut plan = plan();
    mutate(&mut plan);
    let found = proof(&plan);
    let lines: Vec<String> = found.iter().map(|v| format!("{}: rank {}, {}: {}", v.rule, v.rank, v.action, v.what)).collect();
    let line = format!("{rule}: {line}");
    assert!(lines.contains(&line), "{line}\nis not among\n{}", lines.join("\n"));
    for v in found {
        let there = plan.actions[v.rank].get(v.position).map(|a| text::cell(*a, plan.num_stages()));
        assert!(there.is_none_or(|cell| cell == v.action), "{v}");
    }
}

/// Moves an action to before another of the same rank.
fn moved(plan: &mut Plan, rank: usize, cell: &str, before: &str) {
    let from = at(plan, rank, cell);
    let action = plan.actions[rank].remove(from);
    let to = at(plan, rank, before);
    plan.actions[rank].insert(to, action);
}

fn swapped(plan: &mut Plan, rank: usize, a: &str, b: &str) {
    let (a, b) = (at(plan, rank, a), at(plan, rank, b));
    plan.actions[rank].swap(a, b);
}

#[test]
fn both_ends_of_a_message_have_the_same_tensors() {
    let plan = planned(Policy::DualPipe, 4, 10);
    let same = |_: u16, _: crate::Payload| vec!["bf16[B, T, 32]".to_string()];
    assert_eq!(crate::verify_messages(&plan, &same, &same), []);
    // Stage 2 takes activations of another dtype.
    let other = |stage: u16, payload: crate::Payload| match (stage, payload) {
        (2, crate::Payload::Activation) => vec!["f32[B, T, 32]".to_string()],
        _ => same(stage, payload),
    };
    let found = crate::verify_messages(&plan, &same, &other);
    // A message a micro-batch, of five each way.
    assert_eq!(found.len(), 10);
    let first = &found[0];
    assert_eq!((first.rule, first.action.as_str()), (3, "d1:2F0"));
    assert_eq!(first.what, "stage 1 hands over bf16[B, T, 32], stage 2 takes f32[B, T, 32]");
}

#[test]
fn every_generated_plan_is_proved() {
    for policy in Policy::ALL {
        // M = P, M = 2P − 2 and P = 2, where next and previous are the same rank, have hung pipelines elsewhere.
        for (ranks, micro) in [(1, 2), (2, 2), (2, 4), (2, 8), (3, 6), (4, 4), (4, 6), (4, 8), (4, 16), (5, 10), (8, 14), (8, 20)]
        {
            let size = size(ranks, micro);
            let Ok(plan) = crate::plan(policy, size) else {
                let refused = policy == Policy::DualPipe && (ranks % 2 != 0 || micro < 2 * ranks - 2);
                assert!(refused || (policy == Policy::DualPipeV && micro < 2 * ranks - 1), "{policy:?} {ranks} {micro}");
                continue;
            };
            let limits = Limits { max_live: Some(policy.max_live(size)), bytes: None };
            let found = verify(&plan, &assign_slots(&plan), &limits);
            assert!(found.is_empty(), "{policy:?} {ranks} {micro}: {}", found[0]);
        }
    }
}

#[test]
fn limits_are_reached() {
    for policy in Policy::ALL {
        let live = crate::slots::peak_live(&planned(policy, 8, 24));
        let bound = policy.max_live(size(8, 24));
        assert_eq!(live.iter().max(), bound.iter().max(), "{policy:?}");
    }
}

#[test]
fn rule_1_a_unit_is_computed_once() {
    rejects(1, "rank 0, 0W3: no gradients of weights", |p| {
        let w = at(p, 0, "0W3");
        p.actions[0].remove(w);
    });
    rejects(1, "rank 0, 0F0: a second time", |p| {
        let again = p.actions[0][0];
        p.actions[0].insert(1, again);
    });
    rejects(1, "rank 1, 0F0: its stage is on rank 0", |p| {
        let f = p.actions[0].remove(0);
        p.actions[1].insert(0, f);
    });
    rejects(1, "rank 0, 0W3: gradients of weights before those of inputs", |p| moved(p, 0, "0W3", "0I3"));
    rejects(1, "rank 0, 0F7: there is no such stage or micro-batch", |p| {
        p.actions[0].push(Action::Forward(crate::Unit { dir: 0, stage: 0, micro: 7 }));
    });
}

#[test]
fn rule_2_data_is_there() {
    rejects(2, "rank 0, d1:3I0: before the forward", |p| moved(p, 0, "d1:3I0", "d1:3F0"));
    rejects(2, "rank 1, 1F0: before the activation that it reads", |p| swapped(p, 1, "1RECV_F0", "1F0"));
    rejects(2, "rank 0, 0SEND_F0: it is not made yet", |p| swapped(p, 0, "0F0", "0SEND_F0"));
}

#[test]
fn rule_3_messages_agree() {
    rejects(3, "rank 0, 0SEND_F1: message 0 from rank 0 to rank 1; received there is 1RECV_F0", |p| {
        swapped(p, 0, "0SEND_F0", "0SEND_F1")
    });
    rejects(3, "rank 0, 0SEND_F0: message 0 from rank 0 to rank 1; received there is 1RECV_F1", |p| {
        let receive = at(p, 1, "1RECV_F0");
        p.actions[1].remove(receive);
    });
    rejects(3, "rank 0, 0SEND_F0: it is waited for 0 times, not once", |p| {
        let wait = at(p, 0, "0WAIT_SEND_F0");
        p.actions[0].remove(wait);
    });
    rejects(3, "rank 2, 0SEND_F0: it goes from rank 0 to rank 1", |p| {
        let send = p.actions[0].remove(1);
        p.actions[2].insert(0, send);
    });
}

#[test]
fn rule_4_nothing_hangs() {
    // Each rank sends what the other waits for, behind its own wait.
    let text = "0F0,0SEND_F0,0RECV_B0,0B0,0WAIT_SEND_F0,0REDUCE_GRAD,0UPDATE\n\
        1F0,1RECV_F0,1B0,1SEND_B0,1WAIT_SEND_B0,1REDUCE_GRAD,1UPDATE\n";
    let found: Vec<String> = proof(&text::parse(text).expect("it reads")).iter().map(Violation::to_string).collect();
    insta::assert_snapshot!(found.join("\n"), @"
    rule 2: rank 1, position 0, 1F0: before the activation that it reads
    rule 4: rank 0, position 1, 0SEND_F0: it waits forever for 1F0 of rank 1
    rule 4: rank 1, position 0, 1F0: it waits forever for 0SEND_F0
    rule 8: rank 1, position 0, 1F0: what it reads is not there
    ");
    // Both send a third forward before either reads the first, and may have two under way. Receives that are posted early would save them.
    let text = "0F0,0SEND_F0,0F1,0SEND_F1,0WAIT_SEND_F0,0F2,0SEND_F2,d1:1RECV_F0,d1:1F0,d1:1RECV_F1,d1:1F1,d1:1RECV_F2,d1:1F2\n\
        d1:0F0,d1:0SEND_F0,d1:0F1,d1:0SEND_F1,d1:0WAIT_SEND_F0,d1:0F2,d1:0SEND_F2,1RECV_F0,1F0,1RECV_F1,1F1,1RECV_F2,1F2\n";
    let waits = text::parse(text).expect("it reads");
    let early = text.replace("0F0,0SEND_F0,", "d1:1RECV_F0,0F0,0SEND_F0,").replace("2,d1:1RECV_F0", "2");
    let early = text::parse(&early).expect("it reads");
    let found = |plan: &Plan| -> Vec<String> { proof(plan).iter().filter(|v| v.rule == 4).map(Violation::to_string).collect() };
    insta::assert_snapshot!([found(&waits), vec!["---".into()], found(&early)].concat().join("\n"), @"
    rule 4: rank 0, position 1, 0SEND_F0: it waits forever for d1:0F2 of rank 1
    rule 4: rank 1, position 1, d1:0SEND_F0: it waits forever for 0F2 of rank 0
    ---
    rule 4: rank 0, position 5, 0WAIT_SEND_F0: ranks that take messages only when they read them hang here
    rule 4: rank 1, position 4, d1:0WAIT_SEND_F0: ranks that take messages only when they read them hang here
    ");
}

#[test]
fn rule_5_collectives_agree() {
    rejects(5, "rank 3, 0REDUCE_GRAD: rank 0 sums stage 3 at this point", |p| {
        swapped(p, 3, "3REDUCE_GRAD", "0REDUCE_GRAD");
    });
}

/// Replicas that divide experts meet in every forward and backward: their lists are the same.
#[test]
fn rule_5_replicas_that_divide_experts_compute_alike() {
    for policy in Policy::ALL {
        let plan = planned(policy, 4, 10).copies(2);
        assert_eq!(crate::verify_members(&plan, 2), [], "{}", policy.name());
    }
    let mut plan = planned(Policy::OneFOneB, 2, 3).copies(2);
    swapped(&mut plan, 3, "d1:1F1", "d1:1B0");
    let found: Vec<String> = crate::verify_members(&plan, 2).iter().map(Violation::to_string).collect();
    assert_eq!(found, ["rule 5: rank 3, position 3, d1:1F1: rank 1 of the first replica computes something else then"]);
    let mut plan = planned(Policy::OneFOneB, 2, 3).copies(2);
    plan.actions[2].retain(|a| text::cell(*a, 2) != "d1:0B2");
    let found: Vec<String> = crate::verify_members(&plan, 2).iter().map(Violation::to_string).collect();
    assert_eq!(found, ["rule 5: rank 2, position 15, 0UPDATE: rank 0 of the first replica computes something else then"]);
}

#[test]
fn rule_6_memory_is_bounded() {
    let plan = plan();
    let limits = Limits { max_live: Some(vec![5, 4, 5, 5]), bytes: Some((100, 400)) };
    let found: Vec<String> = verify(&plan, &assign_slots(&plan), &limits).iter().map(Violation::to_string).collect();
    insta::assert_snapshot!(found.join("\n"), @"
    rule 6: rank 0, position 17, (0F3;d1:3B1)OVERLAP_F_B: activations of 500 bytes at once, the budget is 400
    rule 6: rank 1, position 14, 1F2: activations of 5 units at once, at most 4 are allowed
    rule 6: rank 1, position 14, 1F2: activations of 500 bytes at once, the budget is 400
    rule 6: rank 2, position 14, d1:1F2: activations of 500 bytes at once, the budget is 400
    rule 6: rank 3, position 17, (d1:0F3;3B1)OVERLAP_F_B: activations of 500 bytes at once, the budget is 400
    ");
}

#[test]
fn rule_7_the_weight_queue_ends_empty() {
    rejects(7, "rank 0, 0W3: it is not in the queue", |p| moved(p, 0, "0W3", "0I3"));
    rejects(7, "rank 0, 0I3: its gradients of weights stay in the queue", |p| {
        let w = at(p, 0, "0W3");
        p.actions[0].remove(w);
    });
}

#[test]
fn rule_8_memory_is_not_reused_early() {
    let plan = plan();
    let broken = |change: &dyn Fn(&mut Slots)| {
        let mut slots = assign_slots(&plan);
        change(&mut slots);
        verify(&plan, &slots, &Limits::default())
    };
    // The forward of micro-batch 1 into the slot of micro-batch 0, whose backward is far.
    let second = at(&plan, 0, "0F1");
    let found = broken(&|s| s.of[0][second][0] = 0);
    assert_eq!(found[0].to_string(), "rule 8: rank 0, position 2, 0F1: piece 0 still holds what 0F0 put there");
    // Each piece one action earlier than it is free: whoever takes it next is caught, in every pool.
    let right = assign_slots(&plan);
    for pool in Pool::ALL {
        let mut caught = 0;
        for (position, action) in plan.actions[1].iter().enumerate() {
            for (k, _) in crate::slots::begins(&plan, 1, *action).iter().enumerate().filter(|(_, (p, _))| *p == pool) {
                let other = (right.of[1][position][k] + 1) % right.num[1][pool as usize];
                caught += usize::from(broken(&|s| s.of[1][position][k] = other).iter().any(|v| v.rule == 8));
            }
        }
        assert!(caught > 4, "{pool:?}: {caught}");
    }
    assert_eq!(broken(&|s| s.num[0] = [0; 3]).iter().filter(|v| v.what == "there is no piece 0").count(), 13);
}

#[test]
fn rule_9_sums_follow_the_last_gradients() {
    rejects(9, "rank 0, 3REDUCE_GRAD: before d1:3B4", |p| moved(p, 0, "3REDUCE_GRAD", "d1:3B4"));
    rejects(9, "rank 0, 0UPDATE: 0 times, not once", |p| _ = p.actions[0].pop());
    rejects(9, "rank 0, 0UPDATE: before the sum of its gradients", |p| swapped(p, 0, "0UPDATE", "0REDUCE_GRAD"));
    rejects(9, "rank 0, 2UPDATE: its stage is not on this rank", |p| p.actions[0].push(Action::Update { stage: 2 }));
}

#[test]
fn rule_10_a_pair_is_of_two() {
    rejects(10, "rank 0, (0F0;0B0)OVERLAP_F_B: both halves are the same stage and micro-batch", |p| {
        let unit = crate::Unit { dir: 0, stage: 0, micro: 0 };
        p.actions[0][0] = Action::Pair { forward: unit, backward: unit };
    });
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    use miette::Diagnostic;
    let mut out = String::new();
    for (policy, ranks, micro) in [
        (Policy::DualPipe, 7, 20),
        (Policy::DualPipe, 0, 20),
        (Policy::DualPipe, 8, 12),
        (Policy::DualPipe, 8, 19),
        (Policy::DualPipeV, 4, 6),
        (Policy::Interleaved, 3, 7),
        (Policy::OneFOneB, 0, 1),
        (Policy::Zbv, 2, 0),
    ] {
        let e = crate::plan(policy, size(ranks, micro)).expect_err("it does not fit");
        let (code, help) = (e.code().expect("a code").to_string(), e.help().expect("help").to_string());
        out += &format!("{code}: {e}\n  {help}\n");
    }
    insta::assert_snapshot!(out, @"
    E0401: dualpipe does not run on 7 ranks: the number of ranks is even
      take 6 or 8 ranks, or --policy dualpipev, which runs on 7 ranks
    E0401: dualpipe does not run on 0 ranks: the number of ranks is even
      take 2 ranks, or --policy dualpipev, which runs on 1 ranks
    E0402: dualpipe on 8 ranks does not run with 12 micro-batches: half of them go each way, and they are at least 14
      take 14, or 16 for a steady state, or --policy dualpipev on 4 ranks
    E0402: dualpipe on 8 ranks does not run with 19 micro-batches: half of them go each way, and they are at least 14
      take 18 or 20, or --policy dualpipev on 4 ranks
    E0402: dualpipev on 4 ranks does not run with 6 micro-batches: they are at least 7
      take 7
    E0402: interleaved on 3 ranks does not run with 7 micro-batches: they make 2 equal rounds
      take 6 or 8
    E0401: 1f1b does not run on 0 ranks: a pipeline has a rank
      take 1 rank
    E0402: zbv on 2 ranks does not run with 0 micro-batches: they are at least 1
      take 1
    ");
}
