//! `ringwall diff`: exactly which flows two folders of manifests decide differently.

mod capture;
mod lines;
mod recorded;
mod sums;
mod table;

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context;

use super::{ClusterArgs, Output, progress::Progress};
use crate::{
    cluster::Cluster,
    refine::{self, Compiled},
};

/// More regions than anybody reads.
const MANY: usize = 300;

/// Arguments of `ringwall diff`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_long_help = "\
Compares what the compiled policies of both folders say about every packet
there is, not the text. Pods and workloads are matched by namespace/name; those
that only one folder has are added or removed, not changes of a verdict.

As JSON: one object per region of flows that change alike, sorted:

  {\"src\":{\"pods\":[\"shop/web\"],\"cidrs\":[]},\"dst\":{\"pods\":[\"shop/db\"],\"cidrs\":[]},
   \"protocol\":\"TCP\",\"ports\":[[5432,5432]],\"from\":\"allow\",\"to\":\"deny\",\"policies\":[\"shop/db\"]}

from each pod and address of src to each of dst. protocol is TCP, UDP, SCTP or
other: every protocol without ports, whose ports are null. cidrs never mean the
addresses of pods inside them. policies are those that decide, on either side,
in the direction that changes. A region with \"except\":\"self\" does not mean a
pod's traffic to itself, which always passes; one with \"family\" is about IPv4
or IPv6 alone. from or to is depends where an ipBlock holds a part of the pod
network and the manifests do not say which address a pod or workload will have;
--pod-cidr says where pods' addresses are. Then {\"endpoint\":\"shop/new\",\"change\":\"added\"} or removed.

With --flows or --pcap: which of the recorded flows change, the most frequent
first, then a summary.

For people, a change of more than 300 regions is summed up by namespaces; --all
shows every region. JSON always has them all.

Exit status: 0; with --exit-code 1 where something changes; 2 for input that
cannot be read.

Examples:
  ringwall diff --from ./cluster --to ./cluster-new
  ringwall diff --from ./main --to ./branch --exit-code -o json
  ringwall diff --from ./main --to ./branch --pcap node1.pcapng")]
pub struct DiffArgs {
    /// Folder of manifests before the change
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// Folder of manifests after the change
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Configuration file to take pod, node and Service networks and unknownEndpoints from, for both
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Pod network besides those of the Nodes and of --config, for both; may be repeated
    #[arg(long = "pod-cidr", value_name = "CIDR")]
    pod_cidrs: Vec<ipnet::IpNet>,
    /// Recorded flows, as `query` reads them; - for standard input: say which of them change
    #[arg(long, value_name = "FILE", conflicts_with = "pcap")]
    flows: Option<PathBuf>,
    /// Captured packets (pcap or pcapng): say which of their flows change
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
    /// Show every region, however many there are
    #[arg(long)]
    all: bool,
    /// Exit with status 1 where something changes
    #[arg(long)]
    exit_code: bool,
}

impl DiffArgs {
    fn load(&self, manifests: &std::path::Path) -> anyhow::Result<Cluster> {
        let args = ClusterArgs {
            manifests: manifests.to_owned(),
            config: self.config.clone(),
            pod_cidrs: self.pod_cidrs.clone(),
        };
        args.load()
    }
}

/// What of the outcome the exit status is about.
struct Outcome {
    changes: bool,
    /// Input that could not be understood.
    failed: bool,
}

pub(super) fn run(args: &DiffArgs, output: Output) -> anyhow::Result<ExitCode> {
    let clusters = [args.load(&args.from)?, args.load(&args.to)?];
    let [from, to] = &clusters;
    let progress = Progress::new("compiling");
    let readings = |cluster: &Cluster| match cluster.readings() {
        Some(readings) => readings.to_vec(),
        None => vec![cluster.clone()],
    };
    let (from, to) = (readings(from), readings(to));
    let (from, to) = (compiled(&from)?, compiled(&to)?);
    progress.stage("comparing");
    let found = refine::difference_of_readings(&from, &to)?.context("there is nothing to compare")?;
    drop(progress);
    let mut out = io::BufWriter::with_capacity(1 << 16, io::stdout().lock());
    let style = table::Style {
        colour: io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
    };
    let outcome = if let Some(file) = &args.flows {
        let recorded = recorded::read_flows(file)?;
        recorded::tell(&found, recorded, output, style, &mut out)?
    } else if let Some(file) = &args.pcap {
        let recorded = capture::read(file)?;
        recorded::tell(&found, recorded, output, style, &mut out)?
    } else {
        match output {
            Output::Human if found.regions.len() > MANY && !args.all => sums::write(&found, &mut out)?,
            Output::Human => table::write(&found, style, &mut out)?,
            Output::Json => lines::write(&found, &mut out)?,
        }
        Outcome {
            changes: !found.regions.is_empty() || !found.one_sided.is_empty(),
            failed: false,
        }
    };
    out.flush()?;
    Ok(match outcome {
        Outcome { failed: true, .. } => ExitCode::from(2),
        Outcome { changes: true, .. } if args.exit_code => ExitCode::from(1),
        _ => ExitCode::SUCCESS,
    })
}

fn compiled(readings: &[Cluster]) -> Result<Vec<Compiled<'_>>, refine::RefineError> {
    readings.iter().map(Compiled::of).collect()
}

/// Policy kinds that either side does not evaluate yet.
fn incomplete(found: &refine::Difference<'_>) -> Vec<String> {
    let sides = found.ends.sides.iter();
    let kinds = sides.flat_map(|side| side.cluster.unevaluated_kinds.iter().cloned());
    let kinds: std::collections::BTreeSet<String> = kinds.collect();
    kinds.into_iter().collect()
}
