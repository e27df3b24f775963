//! The simulator against closed formulas, the tables of the specification, and DeepSeek's published figures.

use super::planned;
use crate::{
    Costs, Policy,
    cluster::{Cluster, Routing},
    pair::{self, PairCosts},
    simulate::{RankTime, simulate},
};

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1.0)
}

/// The makespan, and the idle time of every rank.
fn played(policy: Policy, ranks: usize, micro: usize, costs: &Costs) -> (f64, Vec<f64>) {
    let out = simulate(&planned(policy, ranks, micro), costs).unwrap_or_else(|e| panic!("{policy:?} {ranks} {micro}: {e}"));
    (out.makespan, out.ranks.iter().map(RankTime::idle).collect())
}

#[test]
fn eight_ranks_twenty_micro_batches() {
    // Policy, ranks, micro-batches, parts, pair; makespan, idle of the ranks (least, most), peak activations (most, least).
    let rows = [
        (Policy::OneFOneB, 8, 20, 8.0, 3.0, 81.0, [21.0, 21.0], [8.0, 1.0]),
        (Policy::Interleaved, 8, 20, 8.0, 3.0, 70.5, [10.5, 10.5], [12.5, 5.5]),
        (Policy::Zb1p, 8, 20, 8.0, 3.0, 67.0, [7.0, 7.0], [8.0, 8.0]),
        (Policy::Zbv, 8, 20, 8.0, 3.0, 63.5, [3.5, 3.5], [8.0, 8.0]),
        (Policy::DualPipe, 8, 20, 8.0, 3.0, 66.0, [6.0, 6.0], [9.0, 9.0]),
        (Policy::DualPipe, 8, 20, 8.0, 2.4, 57.6, [3.0, 4.2], [9.0, 9.0]),
        (Policy::DualPipeV, 8, 20, 8.0, 3.0, 67.0, [7.0, 7.0], [8.5, 8.5]),
        (Policy::DualPipeV, 8, 20, 8.0, 2.4, 58.0, [3.1, 4.9], [8.5, 8.5]),
        (Policy::DualPipeV, 4, 10, 8.0, 3.0, 66.0, [6.0, 6.0], [9.0, 9.0]),
        (Policy::DualPipeV, 4, 10, 8.0, 2.4, 57.6, [3.0, 4.2], [9.0, 9.0]),
    ];
    for (policy, ranks, micro, parts, pair, makespan, idle, peak) in rows {
        let costs = Costs { parts: Some(parts), ..Costs::unit(pair) };
        let out = simulate(&planned(policy, ranks, micro), &costs).expect("it ends");
        let found: Vec<f64> = out.ranks.iter().map(RankTime::idle).collect();
        let (least, most) = (found.iter().copied().fold(f64::MAX, f64::min), found.iter().copied().fold(0.0, f64::max));
        let peaks = out.memory.iter().map(|m| m.peak_parts);
        let peaks = [peaks.clone().fold(0.0, f64::max), peaks.fold(f64::MAX, f64::min)];
        let what = format!("{} on {ranks}, pair {pair}: {} {least} {most} {peaks:?}", policy.name(), out.makespan);
        assert!(close(out.makespan, makespan) && close(least, idle[0]) && close(most, idle[1]) && peaks == peak, "{what}");
    }
}

#[test]
fn the_critical_path_is_the_makespan() {
    for policy in Policy::ALL {
        let plan = planned(policy, 8, 20);
        let costs = Costs { hop: crate::costs::Hop { latency: 0.1, bytes: 10.0, bytes_per_unit: 100.0 }, ..Costs::unit(2.4) };
        let out = simulate(&plan, &costs).expect("it ends");
        let path = out.critical.iter().map(|n| out.spans[n.index()]);
        // The next message of a link begins while the one before it is on its way: up to the latency earlier than its end.
        assert!(
            path.clone().zip(path.clone().skip(1)).all(|(a, b)| (0.0..=0.1 + 1e-9).contains(&(a.end - b.start))),
            "{policy:?}"
        );
        let (first, last) = (path.clone().next().expect("a path"), path.clone().next_back().expect("a path"));
        assert_eq!((first.start, last.end), (0.0, out.makespan), "{policy:?}");
        for r in &out.ranks {
            assert!(close(r.busy + r.idle(), out.makespan), "{policy:?} {r:?}");
        }
    }
}

#[test]
fn dualpipes_formula_is_exact_for_equal_parts() {
    for ranks in [2, 4, 6, 8, 16] {
        for micro in [2 * ranks, 2 * ranks + 2] {
            for fb in [2.0, 2.25, 3.0] {
                let (p, n, b) = (ranks as f64, micro as f64, 2.0);
                let bubble = (p / 2.0 - 1.0) * (fb + b - 3.0);
                let makespan = (n - p - 1.0) * fb + (p + 1.0) * (1.0 + b) + bubble;
                let (found, idle) = played(Policy::DualPipe, ranks, micro, &Costs::unit(fb));
                assert!(close(found, makespan), "{ranks} {micro} {fb}: {found} is not {makespan}");
                assert!(close(idle[ranks / 2], bubble), "{ranks} {micro} {fb}: {idle:?} is not {bubble}");
            }
        }
    }
}

#[test]
fn dualpipes_formula_is_a_bound_otherwise() {
    // I ≥ F ≥ W: the published bubble is an upper bound, (P/2 − 1)(FB + F − 2W) a lower one. F ≥ I ≥ W: the lower one is exact.
    let mut seed = 7u64;
    let mut draw = || {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        1.0 + (seed >> 40) as f64 / (1u64 << 24) as f64
    };
    for round in 0..40 {
        let mut drawn = [draw(), draw(), draw()];
        drawn.sort_by(f64::total_cmp);
        let [w, middle, most] = drawn;
        let input_most = round % 2 == 0;
        let (f, i) = if input_most { (middle, most) } else { (most, middle) };
        let fb = (f + i + w) * (0.7 + 0.3 * (draw() - 1.0));
        let costs = Costs { forward: f, backward_input: i, backward_weight: w, ..Costs::unit(fb) };
        let (_, idle) = played(Policy::DualPipe, 8, 20, &costs);
        let idle = idle.iter().copied().fold(0.0, f64::max);
        let (published, exact) = (3.0 * (fb + i + w - 3.0 * w), 3.0 * (fb + f - 2.0 * w));
        if input_most {
            assert!(idle <= published + 1e-9 && idle >= exact - 1e-9, "{f} {i} {w} {fb}: {idle}, {exact}, {published}");
        } else {
            assert!(close(idle, exact), "{f} {i} {w} {fb}: {idle} is not {exact}");
        }
    }
}

#[test]
fn nothing_gets_faster_if_a_cost_rises() {
    for policy in Policy::ALL {
        let plan = planned(policy, 6, 14);
        let hop = crate::costs::Hop { latency: 0.1, ..Default::default() };
        let mut costs = Costs { hop, stages: vec![1.0; plan.num_stages()], ..Costs::unit(2.4) };
        let mut before = simulate(&plan, &costs).expect("it ends").makespan;
        let mut rises = |costs: &Costs| {
            let now = simulate(&plan, costs).expect("it ends").makespan;
            assert!(now >= before - 1e-9, "{policy:?}: {before} and then {now}");
            before = now;
        };
        for s in 0..plan.num_stages() {
            costs.stages[s] += 0.3;
            rises(&costs);
        }
        costs.hop.latency = 0.2;
        rises(&costs);
        costs.pair = Some(2.9);
        rises(&costs);
        costs.jitter.spread = 0.1;
        rises(&costs);
    }
}

#[test]
fn latency_costs_what_the_specification_says() {
    use crate::Plan;
    let added = |plan: &Plan, c: f64| {
        let hop = crate::costs::Hop { latency: c, ..Default::default() };
        let makespan = |costs: &Costs| simulate(plan, costs).expect("it ends").makespan;
        // Per cent, to a tenth.
        (1e3 * (makespan(&Costs { hop, ..Costs::unit(2.4) }) / makespan(&Costs::unit(2.4)) - 1.0)).round() / 10.0
    };
    let found = [Policy::DualPipe, Policy::OneFOneB].map(|policy| [0.05, 0.1].map(|c| added(&planned(policy, 8, 20), c)));
    assert_eq!(found, [[2.3, 4.5], [2.8, 5.7]]);
}

#[test]
fn a_shared_link_is_slower_than_two() {
    // Rank 1 of three sends an activation up and a gradient down at once: both leave by its one link.
    let plan = planned(Policy::OneFOneB, 3, 8);
    let hop = |bytes: f64| crate::costs::Hop { latency: 0.0, bytes, bytes_per_unit: 1.0 };
    let shared = simulate(&plan, &Costs { hop: hop(0.5), ..Costs::unit(3.0) }).expect("it ends");
    let alone = crate::costs::Hop { latency: 0.5, ..Default::default() };
    let alone = simulate(&plan, &Costs { hop: alone, ..Costs::unit(3.0) }).expect("it ends");
    assert!(shared.makespan >= alone.makespan, "{} {}", shared.makespan, alone.makespan);
}

#[test]
fn two_runs_are_equal() {
    let plan = planned(Policy::DualPipe, 8, 20);
    let costs = Costs { jitter: crate::costs::Jitter { spread: 0.2, seed: 3 }, ..Costs::unit(2.4) };
    let (a, b) = (simulate(&plan, &costs).expect("it ends"), simulate(&plan, &costs).expect("it ends"));
    assert_eq!((a.spans, a.critical), (b.spans, b.critical));
}

#[test]
fn remote_copies_are_the_specifications() {
    // Nodes of the expert group; copies, MB a layer, ms at 50 GB/s: not deduplicated, deduplicated, limited.
    let rows = [
        (64, [7.00, 4.63, 3.18], [1251.0, 828.0, 568.0]),
        (128, [7.50, 6.12, 3.43], [1341.0, 1093.0, 613.0]),
        (256, [7.75, 7.04, 3.60], [1386.0, 1259.0, 644.0]),
    ];
    for (expert_ranks, copies, megabytes) in rows {
        let cluster = Cluster::parse("4096xH800", 16, expert_ranks).expect("a cluster");
        for (k, routing) in [Routing::Plain, Routing::Unrestricted, Routing::Limited].into_iter().enumerate() {
            let (found, bytes) = (cluster.remote_copies(routing), cluster.remote_bytes(routing) / 1e6);
            assert!(
                (found - copies[k]).abs() <= 0.005 && (bytes - megabytes[k]).abs() <= 1.0,
                "{expert_ranks} {routing:?}: {found} {bytes}"
            );
        }
    }
}

#[test]
fn steps_of_deepseek_v3_are_the_specifications() {
    // Expert ranks, routing; seconds and overhead of DualPipe (16, 120), (16, 60), (4, 60); of 1F1B without overlap (16, 120).
    let rows = [
        (64, Routing::Limited, 20.1, 0.0, [17.3, 9.7, 8.0, 25.3], [26, 34, 20, 49]),
        (64, Routing::Unrestricted, 29.3, 0.15, [20.5, 11.6, 9.5, 30.2], [37, 44, 32, 58]),
        (64, Routing::Plain, 44.2, 0.40, [28.3, 15.8, 13.2, 38.3], [55, 59, 51, 66]),
        (256, Routing::Limited, 22.8, 0.0, [17.5, 9.9, 8.1, 26.7], [27, 35, 21, 52]),
        (256, Routing::Unrestricted, 44.5, 0.40, [28.5, 15.9, 13.3, 38.5], [55, 60, 52, 67]),
    ];
    for (expert_ranks, routing, comm, exposed, seconds, overhead) in rows {
        let sizes =
            [(Policy::DualPipe, 16, 120), (Policy::DualPipe, 16, 60), (Policy::DualPipe, 4, 60), (Policy::OneFOneB, 16, 120)];
        for (k, (policy, ranks, micro)) in sizes.into_iter().enumerate() {
            let cluster = Cluster::parse("2048xH800", ranks, expert_ranks).expect("a cluster");
            assert!((cluster.comm(routing) - comm).abs() < 0.1, "{}", cluster.comm(routing));
            assert!((cluster.exposed(routing) - exposed).abs() < 0.006, "{}", cluster.exposed(routing));
            // The specification's table is without the hop between stages.
            let costs = Costs { hop: Default::default(), ..cluster.costs(routing) };
            let (makespan, _) = played(policy, ranks, micro, &costs);
            let share = 100.0 * (1.0 - cluster.pure_compute(micro) / makespan);
            let what = format!("{expert_ranks} {routing:?} {policy:?} {ranks} {micro}: {:.2} s, {share:.1} %", makespan / 1e3);
            // To the last digit that the table has, and one unit of it for the digits that its inputs were rounded to.
            assert!((makespan / 1e3 - seconds[k]).abs() < 0.11 && (share - f64::from(overhead[k])).abs() < 1.0, "{what}");
        }
    }
}

#[test]
fn the_published_step_of_deepseek_v3() {
    // 2,048 H800, 16 ranks, 120 micro-batches: 19.93 s, of which 13.95 s overlapped (arXiv:2505.09343, table 4).
    let cluster = Cluster::parse("2048xH800", 16, 64).expect("a cluster");
    assert_eq!((cluster.copies(), cluster.micro()), (128, 120));
    let costs = cluster.costs(Routing::Limited);
    let plan = planned(Policy::DualPipe, 16, 120);
    let out = simulate(&plan, &costs).expect("it ends");
    let pairs = plan.actions[7].iter().filter(|a| matches!(a, crate::Action::Pair { .. })).count();
    let overlapped = pairs as f64 * costs.whole_pair() / 1e3;
    let step = out.makespan / 1e3;
    // The table's bubble, 0.7 s and 4.1 %, is that of the first rank, without hops.
    let alone = simulate(&plan, &Costs { hop: Default::default(), ..costs.clone() }).expect("it ends");
    assert!((alone.ranks[0].idle() / 1e3 - 0.72).abs() < 0.02, "{:?}", alone.ranks[0]);
    assert!((step / 19.93 - 1.0).abs() <= 0.15, "{step} s");
    assert!((overlapped / 13.95 - 1.0).abs() <= 0.10, "{overlapped} s");
}

#[test]
fn many_micro_batches_pay() {
    let cluster = Cluster::parse("2048xH800", 16, 64).expect("a cluster");
    for (k, share) in [(2, 44.0), (3, 37.0), (4, 33.0), (6, 28.0), (8, 25.0), (12, 22.0)] {
        // The specification's numbers are without the hop between stages.
        let costs = Costs { hop: Default::default(), ..cluster.costs(Routing::Limited) };
        let (makespan, _) = played(Policy::DualPipe, 16, k * 16, &costs);
        let found = 100.0 * (1.0 - cluster.pure_compute(k * 16) / makespan);
        assert!((found - share).abs() < 1.0, "{k}: {found} is not {share}");
        let with_hops = crate::report::overhead(&cluster, Policy::DualPipe, k * 16).expect("it ends");
        assert!((found..found + 2.0).contains(&with_hops), "{k}: {with_hops}");
    }
}

#[test]
fn recomputing_trades_time_for_memory() {
    let bytes = crate::costs::Memory { activation: 100.0, input: 10.0, ..Default::default() };
    let costs = Costs { memory: bytes, ..Costs::unit(3.0) };
    for policy in Policy::ALL {
        let mut plan = super::generated(policy, 4, 8);
        crate::passes::insert_recompute(&mut plan);
        crate::passes::lower(&mut plan).expect("it ends");
        let found = crate::verify(&plan, &crate::assign_slots(&plan), &crate::Limits::of(&plan));
        assert!(found.is_empty(), "{policy:?}: {}", found[0]);
        let (again, kept) =
            (simulate(&plan, &costs).expect("it ends"), simulate(&planned(policy, 4, 8), &costs).expect("it ends"));
        let peak = |out: &crate::Simulated| out.memory.iter().map(|m| m.peak_activations).fold(0.0, f64::max);
        // A forward more for each, some of it in what was idle; all but those that are computed just then are inputs.
        for (again, kept) in again.ranks.iter().zip(&kept.ranks) {
            assert!(close(again.busy, kept.busy + 8.0), "{policy:?}: {again:?} {kept:?}");
        }
        assert!(again.makespan > kept.makespan, "{policy:?}: {} {}", again.makespan, kept.makespan);
        assert!(peak(&again) < peak(&kept), "{policy:?}: {} {}", peak(&again), peak(&kept));
        assert_eq!(crate::text::parse(&crate::text::print(&plan)), Ok(plan));
    }
    let kept =
        simulate(&planned(Policy::OneFOneB, 4, 8), &Costs { memory: crate::costs::Memory { activation: 1e9, ..bytes }, ..costs });
    let kept = kept.expect("it ends");
    let needs = crate::simulate::check_memory(&kept, 3000).expect_err("four units of 954 MiB");
    assert_eq!(needs.to_string(), "rank 0 needs 3815 MiB at once, of 3000");
    assert_eq!(crate::simulate::check_memory(&kept, 3815), Ok(()));
}

#[test]
fn a_pair_is_deepseeks_trace() {
    let launches = pair::launches(4);
    let time = pair::simulate(&launches, &PairCosts::deepseek_v3());
    // 129.0 ms with its ramps and 31.6 ms a layer pair (126.4); 124.3 compute, 114.5 communication, 110.3 both.
    assert!((126.0..=129.0).contains(&time.makespan), "{time:?}");
    for (found, measured) in [(time.compute, 124.3), (time.comm, 114.5), (time.both, 110.3)] {
        assert!((found / measured - 1.0).abs() < 0.04, "{found} is not {measured}");
    }
    // Without the other stream both take as long as they take; communication that holds more processors slows compute down.
    let slow = PairCosts { comm_processors: 40.0, ..PairCosts::deepseek_v3() };
    let slow = pair::simulate(&launches, &slow);
    assert!(slow.makespan > 1.1 * time.makespan, "{} {}", slow.makespan, time.makespan);
    assert!(launches.iter().enumerate().all(|(k, l)| l.waits.iter().all(|w| *w < k)));
    for l in &launches {
        assert!(l.waits.iter().all(|w| launches[*w].part.communicates() != l.part.communicates()));
    }
}

#[test]
fn costs_are_read_and_refused() {
    let costs = Costs::parse(r#"{"forward": 1, "backward_input": 1.5, "backward_weight": 0.5, "hop": {"latency": 0.25}}"#)
        .expect("it reads");
    assert_eq!((costs.whole_backward(), costs.whole_pair(), costs.hop.latency), (2.0, 3.0, 0.25));
    let mut out = String::new();
    for text in [
        "{",
        r#"{"forward": 1}"#,
        r#"{"forward": 1, "backward_input": 1, "backward_weight": 1, "speed": 2}"#,
        r#"{"forward": -1, "backward_input": 1, "backward_weight": 1}"#,
    ] {
        out += &format!("{}\n", Costs::parse(text).expect_err("it is wrong"));
    }
    let costs = Costs { stages: vec![1.0; 3], ..Costs::unit(3.0) };
    out += &format!("{}\n", simulate(&planned(Policy::OneFOneB, 2, 2), &costs).expect_err("it does not fit"));
    insta::assert_snapshot!(out, @"
    costs: EOF while parsing an object at line 1 column 1
    costs: missing field `backward_input` at line 1 column 14
    costs: unknown field `speed`, expected one of `unit`, `parts`, `forward`, `backward_input`, `backward_weight`, `backward`, `pair`, `update`, `reduce`, `stages`, `hop`, `memory`, `jitter` at line 1 column 65
    costs: -1 is no time and no number of bytes
    costs: there are factors for 3 stages, and the plan has 2
    ");
    let uneven = Costs { stages: vec![1.0, 2.0], parts: Some(2.0), ..Costs::unit(3.0) };
    assert_eq!(played(Policy::OneFOneB, 2, 4, &uneven).0, 27.0);
}

#[test]
fn memory_is_held_until_the_weights_have_their_gradients() {
    let bytes = crate::costs::Memory { activation: 100.0, weight_part: 40.0, input: 10.0, parameters: 7.0 };
    let costs = Costs { memory: bytes, ..Costs::unit(3.0) };
    let out = simulate(&planned(Policy::Zb1p, 4, 8), &costs).expect("it ends");
    // The first rank computes gradients of weights at once; the last has three waiting.
    let peaks: Vec<f64> = out.memory.iter().map(|m| m.peak_activations).collect();
    assert_eq!(peaks, [400.0, 340.0, 280.0, 220.0]);
    assert!(out.memory.iter().all(|m| m.curve.last().is_some_and(|(_, b)| *b == 0.0) && m.parameters == 7.0));
    let both = simulate(&planned(Policy::DualPipe, 4, 8), &costs).expect("it ends");
    assert!(both.memory.iter().all(|m| m.parameters == 14.0));
}
