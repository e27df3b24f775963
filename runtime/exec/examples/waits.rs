//! Schedules on a real clock: every policy on 8 ranks with 20 micro-batches, ranks as threads, waiting instead of computing, against the
//! simulator. `cargo run --release -p exec --example waits -- 20` for 20 ms a forward of an eighth of the model.

use exec::{
    ExecError,
    ranks::{Compute, Follow, execute},
};
use fabric::{Fabric, Tag, Timeouts, direct::HEAD, threads};
use schedule::{Action, Costs, Message, Plan, Policy, Size, Unit, simulate};
use std::time::{Duration, Instant};

/// Waits as long as the cost model says.
struct Wait<'a> {
    plan: &'a Plan,
    costs: &'a Costs,
    fabric: &'a dyn Fabric,
    unit: Duration,
    busy: Duration,
    end: Instant,
}

impl Wait<'_> {
    fn wait(&mut self, action: Action) -> Vec<u8> {
        let since = Instant::now();
        let time = self.unit.mul_f64(simulate::time(self.plan, self.costs, action));
        let end = since + time;
        // Sleeps may be long by a little; the last of it is watched.
        std::thread::sleep(time.saturating_sub(Duration::from_micros(300)));
        while Instant::now() < end {
            std::thread::yield_now();
        }
        self.end = Instant::now();
        self.busy += self.end - since;
        vec![0; 64]
    }
}

impl Compute for Wait<'_> {
    type Parcel = Vec<u8>;
    fn send(&mut self, to: usize, tag: Tag, _: Message, parcel: Vec<u8>) -> Result<(), ExecError> {
        Ok(self.fabric.send(to, tag.channel, &[&tag.head[..], &parcel].concat())?)
    }
    fn receive(&mut self, from: usize, tag: Tag, _: Message) -> Result<Vec<u8>, ExecError> {
        let mut bytes = vec![0; HEAD + 64];
        self.fabric.receive(from, tag.channel, &mut bytes)?;
        tag.expect(self.fabric.rank(), from, &bytes[..HEAD])?;
        Ok(bytes.split_off(HEAD))
    }
    fn forward(&mut self, u: Unit, _: Vec<u8>) -> Result<Vec<u8>, ExecError> {
        Ok(self.wait(Action::Forward(u)))
    }
    fn backward(&mut self, u: Unit, _: Vec<u8>) -> Result<Vec<u8>, ExecError> {
        Ok(self.wait(Action::Backward(u)))
    }
    fn backward_input(&mut self, u: Unit, _: Vec<u8>) -> Result<Vec<u8>, ExecError> {
        Ok(self.wait(Action::BackwardInput(u)))
    }
    fn backward_weight(&mut self, u: Unit) -> Result<(), ExecError> {
        self.wait(Action::BackwardWeight(u));
        Ok(())
    }
    fn pair(&mut self, forward: (Unit, Vec<u8>), backward: (Unit, Vec<u8>)) -> Result<[Vec<u8>; 2], ExecError> {
        let made = self.wait(Action::Pair { forward: forward.0, backward: backward.0 });
        Ok([made.clone(), made])
    }
    fn reduce(&mut self, _: u16) -> Result<(), ExecError> {
        Ok(())
    }
    fn update(&mut self, _: u16) -> Result<(), ExecError> {
        Ok(())
    }
}

fn main() {
    let unit: f64 = std::env::args().nth(1).and_then(|x| x.parse().ok()).unwrap_or(20.0);
    let unit = Duration::from_secs_f64(unit / 1e3);
    let costs = Costs::unit(2.4);
    println!(
        "{:<12} {:>10} {:>10} {:>8} {:>16} {:>16}",
        "policy", "simulated", "measured", "off", "idle, simulated", "idle, measured"
    );
    for policy in Policy::ALL {
        let plan = schedule::plan(policy, Size { ranks: 8, micro: 20, chunks: 2 }).expect("the size fits every policy");
        let simulated = simulate::simulate(&plan, &costs).expect("a plan ends");
        let timeouts = Timeouts { message: Duration::from_secs(60), ..Timeouts::default() };
        let barrier = std::sync::Barrier::new(plan.num_ranks());
        let results: Vec<(Instant, Instant, Duration)> = std::thread::scope(|s| {
            let one = |f: threads::Threads| {
                let (plan, costs, barrier) = (&plan, &costs, &barrier);
                s.spawn(move || {
                    barrier.wait();
                    let start = Instant::now();
                    let mut wait = Wait { plan, costs, fabric: &f, unit, busy: Duration::ZERO, end: start };
                    execute(plan, f.rank(), &mut wait, Follow { step: 1, turns: None }).expect("the plan runs");
                    (start, wait.end, wait.busy)
                })
            };
            let ranks: Vec<_> = threads::world(plan.num_ranks(), timeouts).into_iter().map(one).collect();
            ranks.into_iter().map(|r| r.join().expect("no rank panics")).collect()
        });
        let start = results.iter().map(|r| r.0).min().expect("ranks");
        let end = results.iter().map(|r| r.1).max().expect("ranks");
        let measured = (end - start).as_secs_f64() / unit.as_secs_f64();
        let busy: f64 = results.iter().map(|r| r.2.as_secs_f64()).sum::<f64>() / unit.as_secs_f64();
        let idle = measured - busy / plan.num_ranks() as f64;
        let want: f64 = simulated.ranks.iter().map(simulate::RankTime::idle).sum::<f64>() / plan.num_ranks() as f64;
        let off = 100.0 * (measured / simulated.makespan - 1.0);
        println!("{:<12} {:>10.2} {measured:>10.2} {off:>7.2}% {want:>16.2} {idle:>16.2}", policy.name(), simulated.makespan);
    }
}
