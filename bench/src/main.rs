//! `ringwall-bench`: what the running firewall costs. Each figure comes with its control from the same run.

mod figures;
mod generate;
mod hostile;
mod latency;
mod machine;
mod memory;
mod node;
mod outages;
mod packets;
mod peers;
mod policy;
mod rates;
mod recorder;
mod report;
mod restart;
mod rounds;
mod samples;
mod search;
mod synthetic;
mod under_load;
mod veth;
mod wire;

use std::process::ExitCode;

use anyhow::bail;
use clap::{Parser, Subcommand};

/// Measures ringwall: the real `ringwall run` on network namespaces and veth pairs of its own, which needs root and two
/// CPUs, and the policy engine on synthetic clusters, which does not. All need release builds:
/// `cargo build --release -p ringwall -p ringwall-bench -p ringwall-xsk --bins --examples`.
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
    /// Rates without loss, latency at shares of them, and connections per second, of a wire.
    Search(rates::Options),
    /// What changes of policy cost packets, how many flows are held at once, and their memory.
    UnderLoad(under_load::Options),
    /// From a changed manifest to its adoption by every worker.
    Latency(latency::Options),
    /// Nanoseconds and instructions per packet from memory to memory, against a loop that only finds flows in a table
    Memory(memory::Options),
    /// What a guarded node costs traffic from pod to pod: with ringwall and without, in turns.
    Node(node::Options),
    /// Packets lost while a killed dataplane is replaced.
    Restart(restart::Options),
    /// What floods of strangers and tenants take from everybody else.
    Hostile(hostile::Options),
    /// What outages of control, the API server and credentials cost traffic and policy.
    Outages(outages::Options),
    /// Throughput of a wire against other forwarders and against the kernel with the same policy, in turns
    Peers(peers::Options),
    /// Forwards on raw rings until it is killed: a peer
    #[command(hide = true)]
    RawForward(peers::raw::Options),
    /// What the policy engine costs, on synthetic clusters: compile, memory, latency, churn
    Policy(policy::Options),
    /// Writes the report from the samples of `make bench`, or compares it with them
    Report(report::Options),
    /// Sends load out of an interface, and counts what arrives: flows, lengths, rates, scripts, latencies
    #[command(name = "gen")]
    Generate(generate::Options),
    /// Makes a synthetic cluster: a folder of manifests, or an API server
    Synthetic(synthetic::Options),
}

fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse().benchmark {
        Benchmark::Veth(options) => return veth::run(&options),
        Benchmark::Latency(options) => can_make_namespaces().and_then(|()| latency::run(&options)),
        Benchmark::Memory(options) => return memory::run(&options),
        Benchmark::Node(options) => can_make_namespaces().and_then(|()| node::run(&options)),
        Benchmark::Restart(options) => can_make_namespaces().and_then(|()| restart::run(&options)),
        Benchmark::Hostile(options) => can_make_namespaces().and_then(|()| hostile::run(&options)),
        Benchmark::Outages(options) => can_make_namespaces().and_then(|()| outages::run(&options)),
        Benchmark::Peers(options) => return peers::run(&options),
        Benchmark::RawForward(options) => peers::raw::run(&options),
        Benchmark::Policy(options) => policy::run(&options),
        Benchmark::Search(options) => return rates::run(&options),
        Benchmark::UnderLoad(options) => return under_load::run(&options),
        Benchmark::Generate(options) => return Ok(generate::run(&options)),
        Benchmark::Report(options) => report::run(&options),
        Benchmark::Synthetic(options) => synthetic::run(&options),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// Whether network namespaces can be made.
fn can_make_namespaces() -> anyhow::Result<()> {
    match ringwall_testbed::preflight::obstacle() {
        Some(obstacle) => bail!("cannot measure here: {obstacle}"),
        None => Ok(()),
    }
}
