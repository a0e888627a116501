//! `ringwall-memory-load MIX [FLOWS [RULES [shuffled|in-order [PACKETS [sampled]]]]]`: takes 100,000 packets (and each flow at
//! least once) through a worker. Prints the mix, how many packets there were, and the nanoseconds for each; `sampled`, before
//! that, where and when the looks of a profiler were at packets. For `ringwall-instructions`, which has callgrind watch it, and
//! for profilers.

use anyhow::Context;
use ringwall_bench_memory::{
    clock::thread_nanos,
    load::{Load, Plan},
    sampling,
};

const PACKETS: usize = 100_000;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: usize| {
        let text = arguments.get(at);
        text.map_or(Ok(default), |text| {
            text.parse().with_context(|| format!("`{text}`: no number"))
        })
    };
    let mix = arguments
        .first()
        .context("usage: ringwall-memory-load MIX [FLOWS [RULES [shuffled|in-order [PACKETS [sampled]]]]]")?
        .parse()?;
    let plan = Plan {
        mix,
        flows: number(1, 1_000)?,
        rules: number(2, 1_000)?,
        shuffled: arguments.get(3).is_some_and(|text| text == "shuffled"),
    };
    let packets = number(4, PACKETS.max(plan.flows))?;
    let mut load = Load::new(plan)?;
    let round = if arguments.get(5).is_some_and(|text| text == "sampled") {
        sampling::report(&mut load, packets)?
    } else {
        load.round(packets, thread_nanos)?
    };
    println!(
        "{mix} {} {:.1}",
        round.packets,
        round.elapsed as f64 / round.packets as f64
    );
    Ok(())
}
