//! `ringwall-bench`: what the running firewall costs. Each figure comes with its control from the same run.

mod figures;
mod latency;
mod packets;
mod restart;
mod veth;

use anyhow::bail;
use clap::{Parser, Subcommand};

/// Measures the real `ringwall run` on network namespaces and veth pairs of its own. Needs root, two CPUs and release
/// builds: `cargo build --release -p ringwall -p ringwall-bench -p ringwall-xsk --bins --examples`.
///
/// Figures of a veth are not figures of a NIC: compare within a run.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    benchmark: Benchmark,
}

#[derive(Debug, Subcommand)]
enum Benchmark {
    /// Throughput of a wire against a bare AF_XDP forwarder on the same rings, in turns.
    Veth(veth::Options),
    /// From a changed manifest to its adoption by every worker.
    Latency(latency::Options),
    /// Packets lost while a killed dataplane is replaced.
    Restart(restart::Options),
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if let Some(obstacle) = ringwall_testbed::preflight::obstacle() {
        bail!("cannot measure here: {obstacle}");
    }
    match arguments.benchmark {
        Benchmark::Veth(options) => veth::run(&options),
        Benchmark::Latency(options) => latency::run(&options),
        Benchmark::Restart(options) => restart::run(&options),
    }
}
