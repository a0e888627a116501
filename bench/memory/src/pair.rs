//! Two workers on two CPUs.

use std::{
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{anyhow, ensure};
use ringwall_dataplane::{
    dataplane::{Dataplane, DataplaneConfig},
    flow::FlowMemory,
    io::BURST,
    port::PortId,
    time::Nanos,
    wire::TcpFlags,
    worker::Worker,
};

use crate::{
    cluster::Cluster,
    load::{self, Plan},
    mix::Mix,
    source::FrameSource,
};

/// Which worker a flow's packets arrive at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steering {
    /// At the one that has the flow's entry: what a NIC does that hashes both directions alike.
    Symmetric,
    /// At either, whichever has the entry: half of the packets are handed over, as where a NIC hashes each direction apart.
    Apart,
}

/// Workers that share the flows of a plan.
#[derive(Debug)]
pub struct Pair {
    plane: Dataplane,
    workers: Vec<Worker<FrameSource>>,
    now: Nanos,
}

impl Pair {
    /// Opens the flows of a plan of [`Mix::Established`], by `workers` workers.
    ///
    /// # Errors
    /// The plan makes no sense, or its flows could not be opened.
    pub fn new(plan: Plan, workers: usize, steering: Steering) -> anyhow::Result<Self> {
        ensure!(
            plan.mix == Mix::Established,
            "two workers are measured with established flows"
        );
        let config = DataplaneConfig {
            workers,
            ..DataplaneConfig::default()
        };
        let memory = FlowMemory::private((plan.flows * 4).max(load::MIN_ENTRIES), load::SEED)?;
        let (mut plane, slots) = Dataplane::new(config, memory, Nanos(0))?;
        plane.snapshots.publish(Cluster::new(plan.rules).snapshot(false)?);
        plane.forwarding.publish(load::forwarding(plan.mix));
        let workers = slots
            .into_iter()
            .map(|slot| Ok(Worker::new(slot, FrameSource::new()?)))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let now = Nanos::from_secs(1000);
        let mut pair = Self { plane, workers, now };
        pair.open_flows(plan, steering)?;
        Ok(pair)
    }

    /// One by one, so that each shows who has it.
    fn open_flows(&mut self, plan: Plan, steering: Steering) -> anyhow::Result<()> {
        let mut shares = vec![Vec::new(); self.workers.len()];
        for (number, flow) in load::flows(plan).into_iter().enumerate() {
            if self.workers[0].io().spare().len() < BURST {
                self.level(); // frames of what it handed over
            }
            let mut owner = 0;
            for from in [PortId(0), PortId(1), PortId(0)] {
                let source = self.workers[0].io();
                source.flows = vec![flow];
                source.play(load::script(plan.mix, from, TcpFlags::ACK), 1)?;
                self.now = self.now.after(Nanos(1_000));
                for (index, worker) in self.workers.iter_mut().enumerate() {
                    let report = worker.run_once(self.now);
                    if index == 0 && report.handed_to != 0 {
                        owner = report.handed_to.trailing_zeros() as usize;
                    }
                }
            }
            let share = match steering {
                Steering::Symmetric => owner,
                Steering::Apart => number % shares.len(),
            };
            shares[share].push(flow);
        }
        let stats = self.plane.stats();
        let [opened, dropped] = [
            stats.sum(|it| it.flow_misses.get()),
            stats.sum(|it| it.drops.total()),
        ];
        ensure!(
            opened == plan.flows as u64,
            "{opened} of {} flows were opened",
            plan.flows
        );
        ensure!(
            dropped == 0,
            "{dropped} packets were dropped while flows were opened"
        );
        self.level();
        for (worker, flows) in self.workers.iter_mut().zip(shares) {
            worker.io().flows = flows;
        }
        Ok(())
    }

    /// Frames that went from one worker to another while flows were opened go back.
    fn level(&mut self) {
        let mut spare = Vec::new();
        for worker in &mut self.workers {
            spare.append(worker.io().spare());
        }
        let share = spare.len() / self.workers.len();
        for worker in &mut self.workers {
            let from = spare.len() - share;
            worker.io().spare().extend(spare.drain(from..));
        }
    }

    /// Packets per second of all workers together, each on a thread of its own that `pin` is called in with the worker's
    /// number, and the share of packets that were handed over.
    ///
    /// # Errors
    /// A packet was dropped, or judged anew.
    pub fn rate(&mut self, time: Duration, pin: impl Fn(usize) + Sync) -> anyhow::Result<(f64, f64)> {
        self.level();
        let stats = self.plane.stats();
        let read = || {
            [
                stats.sum(|it| it.forwarded.get()),
                stats.sum(|it| it.handed_over.get()),
                stats.sum(|it| it.drops.total() + it.flow_misses.get()),
            ]
        };
        let script = load::script(Mix::Established, PortId(0), TcpFlags::ACK);
        for worker in &mut self.workers {
            worker.io().play(script.clone(), usize::MAX)?;
        }
        let (stop, begin) = (AtomicBool::new(false), self.now);
        let (before, mut start) = (read(), Instant::now());
        let ready = Barrier::new(self.workers.len() + 1);
        let turns: Vec<u64> = thread::scope(|scope| {
            let (stop, pin, ready) = (&stop, &pin, &ready);
            let threads: Vec<_> = self
                .workers
                .iter_mut()
                .enumerate()
                .map(|(index, worker)| {
                    scope.spawn(move || {
                        pin(index);
                        let mut turns = 0;
                        ready.wait();
                        // At least once, however busy the machine is.
                        loop {
                            turns += 1;
                            worker.run_once(begin.after(Nanos(turns * 1_000)));
                            if stop.load(Relaxed) {
                                return turns;
                            }
                        }
                    })
                })
                .collect();
            ready.wait();
            start = Instant::now();
            thread::sleep(time);
            stop.store(true, Relaxed);
            let turns = threads
                .into_iter()
                .map(|thread| thread.join().map_err(|_| anyhow!("a worker panicked")));
            turns.collect::<anyhow::Result<_>>()
        })?;
        let taken = start.elapsed().as_secs_f64();
        self.now = begin.after(Nanos((turns.iter().max().copied().unwrap_or(0) + 1) * 1_000));
        // What was on its way from one to the other.
        for worker in &mut self.workers {
            worker.io().stop();
        }
        for _ in 0..16 {
            for worker in &mut self.workers {
                worker.run_once(self.now);
            }
        }
        let after = read();
        let [packets, handed, lost] = [0, 1, 2].map(|at| (after[at] - before[at]) as f64);
        ensure!(packets > 0.0, "no packet came");
        ensure!(lost == 0.0, "{lost} packets were dropped or began flows");
        Ok((packets / taken, handed / packets))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_stay_with_their_workers_and_half_of_them_arrive_at_the_other_one() -> anyhow::Result<()> {
        let plan = Plan {
            mix: Mix::Established,
            flows: 1_000,
            shuffled: false,
            rules: 10,
        };
        for (steering, least, most) in [(Steering::Symmetric, 0.0, 0.0), (Steering::Apart, 0.3, 0.7)] {
            let mut pair = Pair::new(plan, 2, steering)?;
            for _ in 0..2 {
                let (rate, handed) = pair.rate(Duration::from_millis(50), |_| {})?;
                assert!(rate > 0.0);
                assert!((least..=most).contains(&handed), "{steering:?}: {handed}");
            }
        }
        Ok(())
    }
}
