//! What the command prints, and the pictures.

use super::{planned, size};
use crate::{Costs, Policy, cluster::Cluster, draw, report, simulate};

#[test]
fn all_policies_side_by_side() {
    let out = report::compare(size(8, 20), &Costs::unit(2.4)).expect("it ends");
    insta::assert_snapshot!(out, @"
    8 ranks, 20 micro-batches; activations of a rank in 1/8 of the model
    policy       stages  step      bubble  bubble %  activations  parameters     pairs
    1f1b              8    81          21      25.9       1 to 8          1x         0
    interleaved      16  70.5        10.5      14.9  5.5 to 12.5          1x         0
    zb1p              8    67           7      10.4            8          1x         0
    zbv              16  63.5         3.5       5.5            8          1x         0
    dualpipe          8  57.6    3 to 4.2       6.5            9          2x   9 to 11
    dualpipev        16    58  3.1 to 4.9       7.1          8.5          1x  17 to 23
    ");
    let out = report::compare(size(7, 10), &Costs::unit(2.4)).expect("it ends");
    insta::assert_snapshot!(out, @"
    7 ranks, 10 micro-batches; activations of a rank in 1/7 of the model
    policy       stages  step  bubble  bubble %  activations  parameters  pairs
    1f1b              7    48      18      37.5       1 to 7          1x      0
    interleaved      14    39       9      23.1    5.5 to 10          1x      0
    zb1p              7    36       6      16.7            7          1x      0
    zbv              14    33       3       9.1     5.5 to 7          1x      0
    dualpipe does not run on 7 ranks: the number of ranks is even (take 6 or 8 ranks, or --policy dualpipev, which runs on 7 ranks)
    dualpipev on 7 ranks does not run with 10 micro-batches: they are at least 13 (take 13)
    ");
}

#[test]
fn a_simulated_plan_in_words() {
    let costs = Costs { unit: "ms".into(), hop: crate::costs::Hop { latency: 0.1, ..Default::default() }, ..Costs::unit(2.4) };
    let plan = planned(Policy::DualPipe, 4, 10);
    let out = simulate(&plan, &costs).expect("it ends");
    insta::assert_snapshot!(report::simulated(&plan, &costs, &out), @"
    dualpipe on 4 ranks, 10 micro-batches: step 29.5 ms, bubble 2.5 ms (8.5 % of the ranks' time)
    rank  busy  warm-up  dependency  rendezvous  drain  idle  activations
    0       27        0           2         0.5      0   2.5            5
    1       27      1.1         0.4         0.9    0.1   2.5            5
    2       27      1.1         0.4         0.9    0.1   2.5            5
    3       27        0           2         0.5      0   2.5            5
    critical path: 28.4 ms of computing, 1.1 ms of messages, 11 hops between ranks
    ");
}

#[test]
fn a_plan_explained() {
    let memory = crate::costs::Memory { activation: 1e8, weight_part: 4e7, input: 1e7, parameters: 5e8 };
    let hop = crate::costs::Hop { latency: 0.0, bytes: 1e7, bytes_per_unit: 0.0 };
    let costs = Costs { memory, hop, ..Costs::unit(2.4) };
    let plan = planned(Policy::DualPipe, 4, 10);
    let out = simulate(&plan, &costs).expect("it ends");
    insta::assert_snapshot!(report::explain(Policy::DualPipe, size(4, 10), &plan, &costs, &out), @"
    rank  forwards  backwards  inputs  weights  pairs  sends  receives  slots  receive  send
    0            5          2       3        3      5     10        10      5        2     4
    1            5          3       2        2      5     20        20      5        4     6
    2            5          3       2        2      5     20        20      5        4     6
    3            5          2       3        3      5     10        10      5        2     4
    bubble: (P/2 - 1)(FB + B - 3W), the middle ranks' = 1.4 by the formula (exact for F = I = W); simulated 1.4
    times of a part: F = 1, I = 1, W = 1, B = 2, FB = 2.4
    activations: at most 5 units (stage x micro-batch) at once, the policy's bound is 5
    rank  parameters MiB  activations MiB  buffers MiB  sum MiB
    0                954              477           57     1488
    1                954              477           95     1526
    2                954              477           95     1526
    3                954              477           57     1488
    a pair takes 2.4, 20.0 % less than its halves apart
    ");
}

#[test]
fn formulas_are_the_simulators_where_they_are_exact() {
    for policy in Policy::ALL {
        let (size, costs) = (size(8, 24), Costs::unit(2.25));
        let out = simulate(&planned(policy, 8, 24), &costs).expect("it ends");
        let most = out.ranks.iter().map(|r| r.idle()).fold(0.0, f64::max);
        let (_, value, _) = report::formula(policy, size, &costs);
        assert!((most - value).abs() < 1e-9, "{policy:?}: {most} is not {value}");
    }
}

#[test]
fn a_cluster_that_nobody_can_afford() {
    let cluster = Cluster::parse("4096xH100", 16, 64).expect("a cluster");
    insta::assert_snapshot!(report::cluster(&cluster, Policy::DualPipe, cluster.micro()).expect("it fits"), @"
    4096 H100: 16 ranks a pipeline, 256 pipelines, experts over 64 GPUs; DeepSeek-V3's layers, 60 micro-batches of 4096 tokens each
    routing                         copies    MB  comm ms  exposed %  step s      bubble %  overhead %  1f1b s  overhead %
    node-limited, deduplicated        3.18   568     20.1          0    9.87     9 to 12.7          35   14.20          55
    unrestricted, deduplicated        4.63   828     29.3         15   11.75   9.1 to 12.9          45   16.97          62
    unrestricted, not deduplicated    7.00  1251     44.3         40   15.94  10.5 to 13.3          60   21.46          70
    overhead by micro-batches, node-limited: 2P 45 %, 3P 38 %, 4P 34 %, 6P 29 %, 8P 27 %, 12P 24 %
    copies: of a token to other nodes; MB: a GPU's to other nodes, a layer's forward and backward; comm: those transfers under compute
    exposed: of a pair's time; overhead: what computing alone on whole GPUs would not take; 1f1b: communication not overlapped
    memory of a GPU: 18638 MiB of weights and gradients, 336 MiB of message buffers, activations of 17 units
    not in the step: the optimiser, the sum of gradients, embedding and head, differences between pipelines
    ");
}

#[test]
fn the_inside_of_a_pair() {
    insta::assert_snapshot!(report::pair(2, &crate::pair::PairCosts::deepseek_v3()), @"
    #          stream        launch  start    end     waits for
    0   communication    combine.B1      0    5.4
    1         compute  attention.F0      0    4.5
    2   communication   dispatch.F0    5.4  11.75  attention.F0
    3         compute    experts.B1    5.4   10.6    combine.B1
    4   communication   dispatch.B1  11.75  19.95    experts.B1
    5         compute    experts.W1   10.6   15.6
    6         compute    experts.F0   15.6   20.4   dispatch.F0
    7   communication    combine.F0   20.4   28.6    experts.F0
    8         compute  attention.B1   20.4     30   dispatch.B1
    9         compute  attention.W1     30   32.4
    10  communication    combine.B0     30   35.4  attention.B1
    11        compute  attention.F1   32.4   36.9    combine.F0
    12  communication   dispatch.F1   36.9  43.25  attention.F1
    13        compute    experts.B0   36.9   42.1    combine.B0
    14  communication   dispatch.B0  43.25  51.45    experts.B0
    15        compute    experts.W0   42.1   47.1
    16        compute    experts.F1   47.1   51.9   dispatch.F1
    17  communication    combine.F1   51.9   60.1    experts.F1
    18        compute  attention.B0   51.9   61.5   dispatch.B0
    19        compute  attention.W0   61.5   63.9
    63.9 ms: compute busy 63, communication busy 56.3, both 55.4; 98.4 % of communication is under compute
    ");
}

#[test]
fn the_picture_and_the_trace_have_every_action() {
    for policy in [Policy::DualPipe, Policy::Zbv] {
        let plan = planned(policy, 4, 8);
        let out = simulate(&plan, &Costs::unit(2.4)).expect("it ends");
        let (svg, trace) = (draw::svg(&plan, &out, "ms"), draw::trace(&plan, &out));
        let computes = plan.compute_only().actions.concat().len();
        assert_eq!(svg.matches("class=\"box\"").count(), computes);
        let events: serde_json::Value = serde_json::from_str(&trace).expect("it is JSON");
        let events = events["traceEvents"].as_array().expect("a list");
        let of = |phase: &str, category: &str| {
            events.iter().filter(|e| e["ph"] == phase && (category.is_empty() || e["cat"] == category)).count()
        };
        let messages = out.tasks.graph.node_weights().filter(|t| matches!(t, crate::tasks::Task::Message { .. })).count();
        assert_eq!((of("s", ""), of("f", ""), of("X", "message")), (messages, messages, messages));
        assert_eq!(of("X", "") - messages - of("X", "update"), computes);
        // A picture of its own: nothing is loaded from elsewhere.
        assert!(!svg.contains("href") && svg.matches("http").count() == 1);
    }
}
