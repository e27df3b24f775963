//! Generators against the tables of DualPipe's authors, as `specs` writes them: `F3'` is the far chunk, `F7&B3'` a pair.

use super::{generated, planned};
use crate::{Action, Policy, Size, passes, play, text};

/// A rank's list in the table's words; `near` tells the chunks apart.
fn words(actions: &[Action], near: impl Fn(crate::Unit) -> bool) -> String {
    let name = |kind: &str, u: crate::Unit| format!("{kind}{}{}", u.micro, if near(u) { "" } else { "'" });
    let word = |a: &Action| match *a {
        Action::Forward(u) => name("F", u),
        Action::Backward(u) => name("B", u),
        Action::BackwardInput(u) => name("I", u),
        Action::BackwardWeight(u) => name("W", u),
        Action::Pair { forward, backward } => format!("{}&{}", name("F", forward), name("B", backward)),
        other => panic!("{other:?}"),
    };
    actions.iter().map(word).collect::<Vec<_>>().join(" ")
}

const EIGHT_0: &str = "F0 F1 F2 F3 F4 F5 F6 F0' I0' W0' F1' I1' W1' F2' I2' W2' F3' F7&B3' F4'&B0 F8&B4' F5'&B1 F9&B5' F6'&B2 \
    B6' F7'&B3 B7' F8'&B4 B8' F9'&B5 B9' I6 W6 I7 W7 I8 W8 I9 W9";
const EIGHT_3: &str = "F0 F0' F1 F1' F2 F2' F3 F3' F4 B0' F4'&B0 F5&B1' F5'&B1 F6&B2' F6'&B2 F7&B3' F7'&B3 F8&B4' F8'&B4 F9&B5' F9'&B5 \
    B6' B6 B7' B7 I8' I8 I9' I9 W8' W8 W9' W9";
const FOUR: [&str; 2] = [
    "F0 F1 F2 F0' I0' W0' F1' F3&B1' F2'&B0 F4&B2' F3'&B1 B3' F4'&B2 B4' I3 W3 I4 W4",
    "F0 F0' F1 F1' F2 B0' F2'&B0 F3&B1' F3'&B1 F4&B2' F4'&B2 B3' B3 I4' I4 W4' W4",
];

#[test]
fn dualpipe_is_the_authors_table() {
    for (ranks, micro, rows) in [(8, 20, vec![(0, EIGHT_0), (3, EIGHT_3)]), (4, 10, vec![(0, FOUR[0]), (1, FOUR[1])])] {
        let plan = generated(Policy::DualPipe, ranks, micro);
        for (rank, row) in rows {
            assert_eq!(words(&plan.actions[rank], |u| u.dir == 0), row);
            // The mirror runs the same with directions swapped.
            assert_eq!(words(&plan.actions[ranks - 1 - rank], |u| u.dir == 1), row);
        }
    }
}

#[test]
fn dualpipev_is_half_of_it() {
    for (ranks, micro, rows) in [(4u16, 10, vec![(0, EIGHT_0), (3, EIGHT_3)]), (2, 5, vec![(0, FOUR[0]), (1, FOUR[1])])] {
        let plan = generated(Policy::DualPipeV, ranks.into(), micro);
        for (rank, row) in rows {
            assert_eq!(words(&plan.actions[rank], |u| u.stage < ranks), row);
        }
    }
}

#[test]
fn one_forward_one_backward() {
    let text = text::print(&generated(Policy::OneFOneB, 3, 4));
    insta::assert_snapshot!(text, @"
    schedule 1f1b micro 4 placement 0 1 2
    0F0,0F1,0F2,0B0,0F3,0B1,0B2,0B3
    1F0,1F1,1B0,1F2,1B1,1F3,1B2,1B3
    2F0,2B0,2F1,2B1,2F2,2B2,2F3,2B3
    ");
}

#[test]
fn a_whole_plan_reads() {
    let both = text::print(&planned(Policy::OneFOneB, 2, 2)) + &text::print(&planned(Policy::DualPipe, 2, 4));
    insta::assert_snapshot!(both, @"
    schedule 1f1b micro 2 placement 0 1
    0F0,0SEND_F0,0RECV_B0,0F1,0SEND_F1,0RECV_B1,0B0,0B1,0WAIT_SEND_F0,0WAIT_SEND_F1,0REDUCE_GRAD,0UPDATE
    1RECV_F0,1F0,1RECV_F1,1B0,1SEND_B0,1F1,1B1,1SEND_B1,1WAIT_SEND_B0,1WAIT_SEND_B1,1REDUCE_GRAD,1UPDATE
    schedule dualpipe micro 2 placement 0 1/1 0
    d1:1RECV_F0,0F0,0SEND_F0,d1:1F0,0F1,0SEND_F1,d1:1RECV_F1,0RECV_B0,d1:1B0,0WAIT_SEND_F0,d1:1SEND_B0,(d1:1F1;0B0)OVERLAP_F_B,0RECV_B1,d1:1B1,0WAIT_SEND_F1,d1:1SEND_B1,1REDUCE_GRAD,0I1,0W1,d1:1WAIT_SEND_B0,d1:1WAIT_SEND_B1,0REDUCE_GRAD,1UPDATE,0UPDATE
    1RECV_F0,d1:0F0,d1:0SEND_F0,1F0,d1:0F1,d1:0SEND_F1,1RECV_F1,d1:0RECV_B0,1B0,d1:0WAIT_SEND_F0,1SEND_B0,(1F1;d1:0B0)OVERLAP_F_B,d1:0RECV_B1,1B1,d1:0WAIT_SEND_F1,1SEND_B1,1REDUCE_GRAD,d1:0I1,d1:0W1,1WAIT_SEND_B0,1WAIT_SEND_B1,0REDUCE_GRAD,1UPDATE,0UPDATE
    ");
}

#[test]
fn every_plan_reads_back_and_ends_in_the_worst_ways() {
    for policy in Policy::ALL {
        for (ranks, micro) in [(2, 2), (2, 4), (4, 6), (4, 10), (6, 12), (8, 20), (16, 32)] {
            let plan = planned(policy, ranks, if policy == Policy::DualPipeV { micro + 2 } else { micro });
            assert_eq!(text::parse(&text::print(&plan)).as_ref(), Ok(&plan));
            let mut compute = plan.compute_only();
            assert!(play::lazy_stuck(&plan).is_empty(), "{policy:?} {ranks} {micro}");
            let rows = text::parse(&text::print_rows(&compute)).expect("rows are enough");
            assert_eq!((&rows.actions, &rows.placement), (&compute.actions, &compute.placement));
            passes::insert_messages(&mut compute).expect("it ends");
            assert_eq!(play::batches_stuck(&compute), [], "{policy:?} {ranks} {micro}");
        }
    }
}

/// What torch 2.11's `torch.distributed.pipelining.schedules` wrote for these sizes; see the header of `torch.txt`'s sections.
const TORCH: &str = include_str!("torch.txt");

#[test]
fn generators_are_torchs() {
    let mut compared = 0;
    for section in TORCH.split("# ").skip(1) {
        let (title, rows) = section.split_once('\n').expect("a title");
        let words: Vec<&str> = title.split(' ').collect();
        let [name, "ranks", ranks, "micro", micro, "chunks", chunks] = words[..] else { panic!("{title}") };
        let policy = match name {
            "1F1B" => Policy::OneFOneB,
            "Interleaved1F1B" => Policy::Interleaved,
            "InterleavedZeroBubble" => Policy::Zb1p,
            "ZBVZeroBubble" => Policy::Zbv,
            "DualPipeV" => Policy::DualPipeV,
            name => panic!("{name}"),
        };
        let number = |s: &str| s.parse::<usize>().expect("a number");
        let (ranks, micro, chunks) = (number(ranks), number(micro), number(chunks));
        let ours = policy.generate(Size { ranks, micro, chunks }).unwrap_or_else(|e| panic!("{title}: {e}"));
        let theirs = text::parse(rows).unwrap_or_else(|e| panic!("{title}: {e}")).compute_only();
        for rank in 0..ranks {
            // Torch numbers the micro-batches of 1F1B's last rank from 1 where it shows the order: a mistake of its picture.
            if policy == Policy::OneFOneB && rank == ranks - 1 {
                continue;
            }
            assert_eq!(ours.actions[rank], theirs.actions[rank], "{title}, rank {rank}");
            compared += 1;
        }
    }
    assert_eq!(compared, 123);
}

#[test]
fn text_that_is_no_plan_is_refused() {
    let mut out = String::new();
    for text in [
        "",
        "0F0,0X0",
        "0F0,F0",
        "0F0\n0F99999999999",
        "0F4000000000",
        "schedule x micro 99999999999999999 placement 0\n0F0,0B0",
        "schedule x micro 1 placement 0 5\n0F0,0B0",
        "schedule x micro 1 placement 0 1/0\n0F0,0B0\n",
        "schedule x micro one placement 0\n",
        "0F0,(0F1;0F0)OVERLAP_F_B",
        "0F0,0RECV_F0",
        "0F0,2F0",
        "d70000:0F0",
        "0F0,d1:0UPDATE",
    ] {
        out += &format!("{}\n", text::parse(text).expect_err("it is no plan"));
    }
    insta::assert_snapshot!(out, @"
    line 1: no forward anywhere
    line 1: '0X0' is no action
    line 1: 'F0' is no action
    line 2: '0F99999999999' is no action
    line 1: 4000000001 micro-batches through 1 stages, and only 1 cells
    line 1: 99999999999999999 micro-batches through 1 stages, and only 2 cells
    line 1: the placement names rank 5, and there are 1 lines
    line 1: every direction has the same stages, and at least one
    line 1: a header is 'schedule NAME micro N placement RANK RANK …/RANK …'
    line 1: '(0F1;0F0)OVERLAP_F_B': a pair is a forward and a whole backward
    line 1: '0RECV_F0': nothing comes before stage 0
    line 1: no forward of stage 1 in direction 0
    line 1: 'd70000:0F0' is no action
    line 1: 'd1:0UPDATE' is no action
    ");
}
