//! `ringwall-memory-load MIX`: takes 100,000 packets of 1,000 flows through a worker, under 1,000 rules. For
//! `ringwall-instructions`, which has callgrind watch it. Prints the mix and how many packets there were.

use anyhow::Context;
use ringwall_bench_memory::load::{Load, Plan};

const PACKETS: usize = 100_000;

fn main() -> anyhow::Result<()> {
    let mix = std::env::args()
        .nth(1)
        .context("usage: ringwall-memory-load MIX")?
        .parse()?;
    let mut load = Load::new(Plan {
        mix,
        flows: 1_000,
        shuffled: false,
        rules: 1_000,
    })?;
    let round = load.round(PACKETS, || 0)?;
    println!("{mix} {}", round.packets);
    Ok(())
}
