//! Both fabrics through one set of programs.

use crate::{Channel, Fabric, FabricError, Timeouts, World, collective, tcp, threads};
use std::{net::TcpListener, time::Duration};

const SHORT: Timeouts = Timeouts { start: Duration::from_secs(20), message: Duration::from_millis(400) };
const LONG: Timeouts = Timeouts { start: Duration::from_secs(20), message: Duration::from_secs(20) };

/// Runs `program` on every rank of both kinds of world; its results by rank.
fn each_fabric<R: Send>(size: usize, timeouts: Timeouts, program: impl Fn(&dyn Fabric) -> R + Sync) -> [Vec<R>; 2] {
    let on_threads = std::thread::scope(|s| {
        let ranks: Vec<_> = threads::world(size, timeouts).into_iter().map(|f| s.spawn(|| program(&{ f }))).collect();
        ranks.into_iter().map(|r| r.join().expect("no rank panics")).collect()
    });
    let on_tcp = std::thread::scope(|s| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let place = listener.local_addr().expect("an address").to_string();
        let mut listener = Some(listener);
        let ranks: Vec<_> = (0..size)
            .map(|rank| {
                let (world, listener) = (world(rank, size, &place), if rank == 0 { listener.take() } else { None });
                let program = &program;
                s.spawn(move || program(&tcp::connect_at(&world, 7, timeouts, listener).expect("they meet")))
            })
            .collect();
        ranks.into_iter().map(|r| r.join().expect("no rank panics")).collect()
    });
    [on_threads, on_tcp]
}

fn world(rank: usize, size: usize, place: &str) -> World {
    World { rank, size, local_rank: rank, rendezvous: Some(place.into()), source: "test" }
}

#[test]
fn messages_keep_their_order_and_channels() {
    for results in each_fabric(3, LONG, |f| {
        let (rank, size) = (f.rank(), f.size());
        for i in 0..50u8 {
            for to in 0..size {
                f.send(to, Channel(1), &[i, rank as u8]).expect("sent");
                f.send(to, Channel(2), &vec![i; 100_000]).expect("sent");
            }
        }
        for from in 0..size {
            let mut big = vec![0; 100_000];
            for i in 0..50u8 {
                f.receive(from, Channel(2), &mut big).expect("received");
                assert!(big.iter().all(|b| *b == i));
            }
            let mut small = [0; 2];
            for i in 0..50u8 {
                f.receive(from, Channel(1), &mut small).expect("received");
                assert_eq!(small, [i, from as u8]);
            }
        }
        true
    }) {
        assert_eq!(results, [true; 3]);
    }
}

#[test]
fn collectives_agree_on_every_rank_and_fabric() {
    for size in [1, 2, 5] {
        for results in each_fabric(size, LONG, |f| {
            collective::barrier(f).expect("a barrier");
            let gathered = collective::all_gather(f, &[f.rank() as u8, 1]).expect("all");
            assert_eq!(gathered, (0..size).map(|r| vec![r as u8, 1]).collect::<Vec<_>>());
            // Part r of rank s has s + r bytes of value s.
            let parts: Vec<Vec<u8>> = (0..size).map(|r| vec![f.rank() as u8; f.rank() + r]).collect();
            let lengths: Vec<usize> = (0..size).map(|s| s + f.rank()).collect();
            let got = collective::all_to_all(f, &parts, &lengths).expect("parts");
            assert_eq!(got, (0..size).map(|s| vec![s as u8; s + f.rank()]).collect::<Vec<_>>());
            let mut word = if f.rank() == size - 1 { *b"word" } else { [0; 4] };
            collective::broadcast(f, size - 1, &mut word).expect("a word");
            assert_eq!(&word, b"word");
            true
        }) {
            assert_eq!(results, vec![true; size]);
        }
    }
}

#[test]
fn waits_are_bounded_and_name_what_they_wait_for() {
    for results in each_fabric(2, SHORT, |f| {
        if f.rank() == 1 {
            // Stalled, but there.
            std::thread::sleep(2 * SHORT.message);
            return None;
        }
        f.receive(1, Channel(3), &mut [0; 4]).err()
    }) {
        let want = FabricError::Timeout { rank: 0, action: "receive", peer: 1, channel: Channel(3), number: 0, seconds: 0 };
        assert_eq!(results, [Some(want), None]);
    }
}

#[test]
fn a_rank_that_goes_ends_the_waits_for_it() {
    for results in each_fabric(3, LONG, |f| {
        if f.rank() == 2 {
            f.send(0, Channel(0), &[5]).expect("sent");
            return None;
        }
        if f.rank() == 0 {
            // What it sent before it went still counts.
            let mut last = [0];
            f.receive(2, Channel(0), &mut last).expect("received");
            assert_eq!(last, [5]);
        }
        f.receive(2, Channel(0), &mut [0]).err()
    }) {
        let lost = |rank, number| FabricError::Lost { rank, peer: 2, action: "receive", channel: Channel(0), number };
        assert_eq!(results, [Some(lost(0, 1)), Some(lost(1, 0)), None]);
    }
}

#[test]
fn a_rank_that_gives_up_says_why_to_all() {
    for results in each_fabric(3, LONG, |f| {
        if f.rank() == 1 {
            f.abort("loss is NaN at step 7");
        }
        f.receive((f.rank() + 1) % 3, Channel(0), &mut [0]).err()
    }) {
        let want = FabricError::Aborted { peer: 1, why: "loss is NaN at step 7".into() };
        assert_eq!(results, vec![Some(want); 3]);
    }
}

#[test]
fn a_message_of_another_length_is_not_data() {
    for results in each_fabric(2, LONG, |f| {
        f.send(1 - f.rank(), Channel(9), &[1, 2, 3]).expect("sent");
        let mut into = [9; 4];
        let error = f.receive(1 - f.rank(), Channel(9), &mut into).err();
        assert_eq!(into, [9; 4]);
        error.map(|e| e.to_string())
    }) {
        let want = "rank 0: message 0 on channel 9 from rank 1: it has 3 bytes, 4 are expected";
        assert_eq!(results[0].as_deref(), Some(want));
    }
}

#[test]
fn ranks_that_do_not_fit_do_not_start() {
    let met = |changed: fn(&mut World, &mut u64)| -> Vec<Option<String>> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let place = listener.local_addr().expect("an address").to_string();
        let mut listener = Some(listener);
        std::thread::scope(|s| {
            let ranks: Vec<_> = (0..2)
                .map(|rank| {
                    let (mut w, mut plan, listener) = (world(rank, 2, &place), 7, if rank == 0 { listener.take() } else { None });
                    if rank == 1 {
                        changed(&mut w, &mut plan);
                    }
                    s.spawn(move || tcp::connect_at(&w, plan, SHORT, listener).err().map(|e| e.to_string()))
                })
                .collect();
            ranks.into_iter().map(|r| r.join().expect("no rank panics")).collect()
        })
    };
    for (changed, what) in [
        ((|_: &mut World, plan: &mut u64| *plan = 8) as fn(&mut World, &mut u64), "another binary, model or plan"),
        (|w, _| w.size = 3, "started with 3 ranks, rank 0 with 2"),
    ] {
        for error in met(changed) {
            assert!(error.as_deref().is_some_and(|e| e.contains(what)), "{error:?}");
        }
    }
    // Nobody comes.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let timeouts = Timeouts { start: Duration::from_millis(100), ..SHORT };
    let error = tcp::connect_at(&world(0, 3, "unused"), 7, timeouts, Some(listener)).err().map(|e| e.to_string());
    assert_eq!(error.as_deref(), Some("rank 0: rank 1, 2 did not come"));
}
