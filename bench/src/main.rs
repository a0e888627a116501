//! `ringwall-bench`: what the running firewall costs. Each figure comes with its control from the same run.

mod arguments;
mod figures;
mod generate;
mod hostile;
mod latency;
mod machine;
mod memory;
mod node;
mod outages;
mod peers;
mod pods;
mod policy;
mod rates;
mod recorder;
mod report;
mod restart;
mod rounds;
mod samples;
mod search;
mod suite;
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
///
/// Exit status: 0 success, 1 something is not as it should be, 2 bad input or nothing could be measured.
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
    /// What ports cost that have nothing to send: 110 pods against two, in turns
    Pods(pods::Options),
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
    /// Every row of the data sheet, one after the other, and the report
    Suite(suite::Options),
    /// Writes the report from the samples of `make bench`, or compares it with them
    Report(report::Options),
    /// Sends load out of an interface, and counts what arrives: flows, lengths, rates, scripts, latencies
    #[command(name = "gen")]
    Generate(generate::Options),
    /// Makes a synthetic cluster: a folder of manifests, or an API server
    Synthetic(synthetic::Options),
}

fn main() -> ExitCode {
    run(Arguments::parse().benchmark).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(2)
    })
}

fn run(benchmark: Benchmark) -> anyhow::Result<ExitCode> {
    match benchmark {
        Benchmark::Veth(options) => veth::run(&options),
        Benchmark::Search(options) => rates::run(&options),
        Benchmark::UnderLoad(options) => under_load::run(&options),
        Benchmark::Latency(options) => latency::run(&options),
        Benchmark::Memory(options) => memory::run(&options),
        Benchmark::Node(options) => node::run(&options),
        Benchmark::Pods(options) => pods::run(&options),
        Benchmark::Restart(options) => restart::run(&options),
        Benchmark::Hostile(options) => hostile::run(&options),
        Benchmark::Outages(options) => can_make_namespaces().map(|()| held(outages::run(&options))),
        Benchmark::Peers(options) => peers::run(&options),
        Benchmark::RawForward(options) => peers::raw::run(&options).map(|()| ExitCode::SUCCESS),
        Benchmark::Policy(options) => policy::run(&options).map(|()| ExitCode::SUCCESS),
        Benchmark::Suite(options) => suite::run(&options),
        Benchmark::Report(options) => report::run(&options),
        Benchmark::Generate(options) => Ok(generate::run(&options)),
        Benchmark::Synthetic(options) => synthetic::run(&options).map(|()| ExitCode::SUCCESS),
    }
}

/// Status 1 for what was measured and is not as it should be.
fn held(outcome: anyhow::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether network namespaces can be made.
fn can_make_namespaces() -> anyhow::Result<()> {
    match ringwall_testbed::preflight::obstacle() {
        Some(obstacle) => bail!("cannot measure here: {obstacle}"),
        None => Ok(()),
    }
}
